//! Logins of whoever is at the keyboard: the token of each service that they logged in to, in a file of their own.
//!
//! **Rule:** a file that others can read is not used, and a token goes to the service that gave it and to no other.

use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use url::Url;

/// A login.
#[derive(Serialize, Deserialize)]
pub struct Login {
    /// The service that gave the token.
    service: String,
    /// Who they are there.
    pub name: String,
    /// The token.
    pub token: String,
    /// Until when it is good.
    pub expires: String,
}

/// A service, by scheme, host and port.
fn service(url: &Url) -> String {
    url.origin().ascii_serialization()
}

/// Where logins are: `$XDG_STATE_HOME/farrier/logins`, or the same below `~/.local/state`.
fn folder() -> Option<PathBuf> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let state = absolute("XDG_STATE_HOME").or_else(|| Some(absolute("HOME")?.join(".local/state")))?;
    Some(state.join("farrier/logins"))
}

fn file(url: &Url) -> Option<PathBuf> {
    let name: String =
        service(url).chars().map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '_' }).collect();
    Some(folder()?.join(name))
}

/// The login at a service, if there is one.
///
/// # Errors
/// Its file cannot be used.
pub fn find(url: &Url) -> anyhow::Result<Option<Login>> {
    let Some(file) = file(url) else { return Ok(None) };
    let shown = file.display();
    let metadata = match std::fs::metadata(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        metadata => metadata.with_context(|| format!("cannot look at {shown}"))?,
    };
    let is_own = metadata.uid() == rustix::process::geteuid().as_raw();
    if !is_own || metadata.permissions().mode() & 0o077 != 0 {
        anyhow::bail!("the login in {shown} can be read by others; log in again after removing it");
    }
    let text = std::fs::read_to_string(&file).with_context(|| format!("cannot read {shown}"))?;
    let login: Login = serde_json::from_str(&text).with_context(|| format!("{shown} is no login"))?;
    Ok((login.service == service(url)).then_some(login))
}

/// Keeps a login, readable by nobody else.
///
/// # Errors
/// The file cannot be written.
pub fn keep(url: &Url, name: &str, token: &str, expires: &str) -> anyhow::Result<PathBuf> {
    let file = file(url).context("there is no home folder to keep the login in; set XDG_STATE_HOME")?;
    let folder = file.parent().unwrap_or(Path::new("/"));
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("cannot make {}", folder.display()))?;
    let login =
        Login { service: service(url), name: name.into(), token: token.into(), expires: expires.into() };
    let mut new = tempfile::Builder::new()
        .permissions(std::fs::Permissions::from_mode(0o600))
        .tempfile_in(folder)
        .with_context(|| format!("cannot write in {}", folder.display()))?;
    serde_json::to_writer(&mut new, &login)?;
    new.flush()?;
    new.persist(&file).with_context(|| format!("cannot write {}", file.display()))?;
    Ok(file)
}

/// Forgets the login at a service.
///
/// # Errors
/// The file cannot be removed.
pub fn forget(url: &Url) -> anyhow::Result<()> {
    let Some(file) = file(url) else { return Ok(()) };
    match std::fs::remove_file(&file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot remove {}", file.display()))
        }
        _ => Ok(()),
    }
}
