//! Small files with credentials.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use farrier_model::{Failure, FailureKind, Secret, Value};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fstat, fsync, renameat_with,
    unlinkat,
};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::making::{DEPOSITS, PART, existing_folder};
use crate::helper::odd;
use crate::helper::wire::{Job, Looked, MakeSecret, Plain, RemoveSecret};
use crate::place::{FilePlace, Segments};
use crate::private::{make_own, make_private, remove};
use crate::store::final_folder;
use crate::strict::{create_strict, failed, io_failed, open_strict};
use crate::target::Files;
use crate::work::do_blocking;

/// Where a small file with a secret goes, such as a tool's file with credentials.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SecretPlace {
    /// The root, and the path beneath it.
    place: FilePlace,
    /// The number of the account and group that it is to belong to.
    owner: Option<u32>,
}

/// What lies there.
#[derive(Debug)]
pub enum Found {
    /// The folder is not there.
    NoFolder,
    /// Nothing yet.
    Nothing,
    /// A file of text.
    Text(Secret),
}

impl From<Looked> for Found {
    fn from(looked: Looked) -> Found {
        match looked {
            Looked::NoFolder => Found::NoFolder,
            Looked::Nothing => Found::Nothing,
            Looked::Text(Plain(text)) => Found::Text(text),
        }
    }
}

/// A helper looks at so many at once.
const AT_ONCE: usize = 1_000;

/// Longer files hold no credentials.
const SECRET_BYTES: u64 = 16 << 10;

impl SecretPlace {
    /// A place beneath a root, as checked segments.
    ///
    /// # Errors
    /// [`FailureKind::Input`] when the path would lead elsewhere.
    pub fn new(root: &str, path: &Value, owner: Option<u32>) -> Result<SecretPlace, Failure> {
        let path =
            path.read::<Segments>().map_err(|error| Failure::new(FailureKind::Input, error.to_string()))?;
        Ok(SecretPlace { place: FilePlace { root: root.to_owned(), path }, owner })
    }

    /// As plans name it.
    pub fn shown(&self) -> String {
        self.place.to_string()
    }

    /// Reads what lies there, through no link.
    ///
    /// # Errors
    /// What lies there is no small text file, or cannot be read.
    pub async fn look(&self, files: Arc<Files>) -> Result<Found, Failure> {
        let mut found = SecretPlace::look_at_all(files, vec![self.clone()]).await?;
        let none = || Failure::new(FailureKind::Internal, "nothing is known of a file that was looked at");
        found.pop().unwrap_or_else(|| Err(none()))
    }

    /// The same for many, at once.
    ///
    /// # Errors
    /// None could be looked at. What is wrong with one is told in its place.
    pub async fn look_at_all(
        files: Arc<Files>,
        places: Vec<SecretPlace>,
    ) -> Result<Vec<Result<Found, Failure>>, Failure> {
        let count = places.len();
        let found = match files.via() {
            None => do_blocking(move |_| Ok(places.iter().map(|place| place.read(&files)).collect())).await?,
            Some(via) => {
                let mut found: Vec<Result<Found, Failure>> = Vec::with_capacity(count);
                for some in places.chunks(AT_ONCE) {
                    let looked: Vec<Result<Looked, Failure>> =
                        via.ask(Job::LookAtSecrets(some.to_vec())).await?;
                    found.extend(looked.into_iter().map(|looked| looked.map(Found::from)));
                }
                found
            }
        };
        if found.len() != count {
            return Err(odd());
        }
        Ok(found)
    }

    fn read(&self, files: &Files) -> Result<Found, Failure> {
        let root = files.open(&self.place.root)?;
        match existing_folder(&root, &self.place)? {
            Some((folder, name)) => read_secret(&folder, &name, &self.place),
            None => Ok(Found::NoFolder),
        }
    }

    /// Makes the file, for its owner to read and nobody to write, unless something lies there by now.
    ///
    /// # Errors
    /// [`FailureKind::Drift`] when something does.
    pub async fn make(&self, files: Arc<Files>, effect: String, content: Secret) -> Result<(), Failure> {
        if let Some(via) = files.via() {
            let wanted = MakeSecret { place: self.clone(), effect, content: Plain(content) };
            return via.tell(Job::MakeSecret(wanted)).await;
        }
        let this = self.clone();
        do_blocking(move |work| {
            let place = &this.place;
            let root = files.open(&place.root)?;
            let (folder, name) = final_folder(&root, place)?;
            let own = make_own(make_private(&root, DEPOSITS)?, &effect)?;
            crate::strict::lock(work, &own, format_args!("the making of `{place}`"))?;
            remove(&own, PART)?;
            let cannot = |error| failed(format_args!("cannot write `{place}`"), error);
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
            let file = create_strict(&own, PART, flags, Mode::RUSR | Mode::WUSR).map_err(cannot)?;
            let mut file = File::from(file);
            file.write_all(content.reveal().as_bytes())
                .map_err(|error| io_failed(format_args!("cannot write `{place}`"), &error))?;
            if let Some(owner) = this.owner.filter(|_| rustix::process::geteuid().is_root()) {
                fchown(&file, Some(Uid::from_raw(owner)), Some(Gid::from_raw(owner))).map_err(cannot)?;
            }
            fchmod(&file, Mode::RUSR | Mode::RGRP).map_err(cannot)?;
            file.sync_all().map_err(|error| io_failed(format_args!("cannot write `{place}`"), &error))?;
            renameat_with(&own, PART, &folder, name, RenameFlags::NOREPLACE).map_err(
                |error| match error {
                    Errno::EXIST => Failure::new(
                        FailureKind::Drift,
                        format!("`{place}` exists already, and is never overwritten"),
                    ),
                    error => cannot(error),
                },
            )?;
            fsync(&folder).map_err(cannot)
        })
        .await
    }

    /// Removes the file, if it holds what `is_ours` knows.
    ///
    /// # Errors
    /// It cannot be read or removed.
    pub async fn remove(
        &self,
        files: Arc<Files>,
        is_ours: impl FnOnce(&Secret) -> bool + Send + 'static,
    ) -> Result<(), Failure> {
        if let Some(via) = files.via() {
            // Looked at here, and there removed if it is the same still.
            let Found::Text(text) = self.look(files.clone()).await? else { return Ok(()) };
            if !is_ours(&text) {
                return Ok(());
            }
            let sha256 = hex::encode(Sha256::digest(text.reveal()));
            return via.tell(Job::RemoveSecret(RemoveSecret { place: self.clone(), sha256 })).await;
        }
        let place = self.place.clone();
        do_blocking(move |_| {
            let root = files.open(&place.root)?;
            let Some((folder, name)) = existing_folder(&root, &place)? else { return Ok(()) };
            match read_secret(&folder, &name, &place)? {
                Found::Text(text) if is_ours(&text) => unlinkat(&folder, name.as_str(), AtFlags::empty())
                    .and_then(|()| fsync(&folder))
                    .map_err(|error| failed(format_args!("cannot remove `{place}`"), error)),
                _ => Ok(()),
            }
        })
        .await
    }
}

fn read_secret(folder: &OwnedFd, name: &str, place: &FilePlace) -> Result<Found, Failure> {
    let refused = |why: &str| Failure::new(FailureKind::Refused, format!("`{place}` {why}"));
    let file = match open_strict(folder, name, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(Found::Nothing),
        Err(error) => return Err(failed(format_args!("cannot open `{place}`"), error)),
    };
    let stat = fstat(&file).map_err(|error| failed(format_args!("cannot look at `{place}`"), error))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || stat.st_size as u64 > SECRET_BYTES {
        return Err(refused("is no small file of text"));
    }
    let mut text = String::new();
    File::from(file)
        .take(SECRET_BYTES)
        .read_to_string(&mut text)
        .map_err(|_| refused("is no small file of text"))?;
    Ok(Found::Text(Secret::new(text)))
}
