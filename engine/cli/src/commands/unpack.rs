//! `farrier unpack`.

use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use farrier_model::{Failure, FailureKind};
use farrier_plugin_files::{Unpacked, unpack};

use super::Problem;
use crate::exit::Exit;
use crate::render;

/// Unpack an archive that `files.archive` made: the home of a deleted tool, with what was stored beside it.
///
/// Run it as the account that the files are to belong to, not as the superuser. The archive is read to its end and compared with its own
/// list first; devices, owners and the bits that make programs run as someone else are left out.
#[derive(Debug, Args)]
pub struct Unpack {
    /// The archive; `-` for standard input, which must be a file.
    archive: PathBuf,
    /// The folder to unpack into. It must not be there.
    #[arg(long, value_name = "FOLDER")]
    into: PathBuf,
    /// The SHA-256 that the archive must have, as its run says.
    #[arg(long, value_name = "DIGEST")]
    sha256: Option<String>,
}

impl Unpack {
    pub(super) async fn run(&self) -> Result<Exit, Problem> {
        if rustix::process::geteuid().is_root() {
            let message = "an archive of other people's files is not unpacked by the superuser";
            return Err(Failure::new(FailureKind::Refused, message)
                .help(format!(
                    "run it as their account: `sudo -u '#NUMBER' farrier unpack - --into {} < {}`",
                    self.into.display(),
                    self.archive.display()
                ))
                .into());
        }
        let unpacked = unpack(self.open()?, &self.into, self.sha256.clone()).await?;
        render::line(&told(&unpacked, &self.into))?;
        Ok(Exit::Ok)
    }

    fn open(&self) -> Result<File, Problem> {
        let opened = if self.archive == Path::new("-") {
            std::io::stdin().as_fd().try_clone_to_owned().map(File::from)
        } else {
            File::open(&self.archive)
        };
        Ok(opened.with_context(|| format!("cannot open `{}`", self.archive.display()))?)
    }
}

fn told(unpacked: &Unpacked, into: &Path) -> String {
    let Unpacked { tree, owner, entries, bytes, devices, not_stored, changed } = unpacked;
    let entries = render::many_of(*entries, "entry", "entries");
    let mut text =
        format!("{}: {entries} of `{tree}`, which belonged to {owner}; {bytes} bytes", into.display());
    for (count, what) in [
        (*devices, "left out: devices"),
        (*not_stored, "never in the archive: `_manifest.jsonl` says why"),
        (*changed, "changed while the archive was made: `_manifest.jsonl` says how"),
    ] {
        if count > 0 {
            text.push_str(&format!("\n  {count} {what}"));
        }
    }
    text
}
