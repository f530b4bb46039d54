//! The private folder beneath a root, where only Farrier's own account can look.
//!
//! ```text
//! ROOT/.farrier-private/                     mode 0700
//!     quarantine/EFFECT/NAME                 a tree that was taken out of its place to be archived and deleted
//!     quarantine/EFFECT/deleting             its deletion has begun: nothing brings it back
//!     digests/SHA256.json                    which tree the archive with this digest holds, and where it lies
//!     archives/EFFECT.part, EFFECT.manifest  an archive that is being written
//!     archives/EFFECT.json                   the archive that this effect finished
//!     writing/EFFECT                         a file on its way to its place
//!     deposits/EFFECT/part, receipt.json     a file of another plugin's step on its way to its place, and what it is
//!     deposits/sha256-SHA256.json            the file that such a step made with this digest
//! ```
//!
//! It lies beneath the root because a rename works within one file system alone. `EFFECT` is the effect id of a step,
//! the same for every attempt, so that an attempt after a crash finds what the one before it left.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use farrier_model::{Failure, FailureKind};
use rustix::fs::{AtFlags, Mode, OFlags, fstat, fsync, mkdirat, renameat, unlinkat};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::strict::{LISTED, create_strict, failed, io_failed, open_strict};

/// The folder's name beneath a root. No path of a runbook may begin with it.
pub(crate) const PRIVATE: &str = ".farrier-private";

/// Trees taken out of their place.
pub(crate) const QUARANTINE: &str = "quarantine";
/// What is known of archives, by digest.
pub(crate) const DIGESTS: &str = "digests";
/// Archives that are being written, and what is known of those that were.
pub(crate) const ARCHIVES: &str = "archives";
/// Files on their way to their place.
pub(crate) const WRITING: &str = "writing";

/// Opens a folder in the private folder of a root; nothing when there is none.
pub(crate) fn open_private(root: impl AsFd, folder: &str) -> Result<Option<OwnedFd>, Failure> {
    match open_own(root.as_fd(), PRIVATE)? {
        Some(private) => open_own(&private, folder),
        None => Ok(None),
    }
}

/// The same, made when there is none.
pub(crate) fn make_private(root: impl AsFd, folder: &str) -> Result<OwnedFd, Failure> {
    let private = make_own(root.as_fd(), PRIVATE)?;
    make_own(&private, folder)
}

/// Opens a folder that only this account may look into.
pub(crate) fn open_own(parent: impl AsFd, name: &str) -> Result<Option<OwnedFd>, Failure> {
    let folder = match open_strict(parent, name, LISTED) {
        Ok(folder) => folder,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(format_args!("cannot open the private folder `{name}`"), error)),
    };
    let stat = fstat(&folder).map_err(|error| failed(format_args!("cannot look at `{name}`"), error))?;
    if stat.st_uid != rustix::process::geteuid().as_raw() || stat.st_mode & 0o077 != 0 {
        let message = format!(
            "the private folder `{name}` belongs to {} and has mode {:04o}; it must be this account's with mode 0700",
            stat.st_uid,
            stat.st_mode & 0o7777
        );
        return Err(Failure::new(FailureKind::Refused, message)
            .help("find out who made it, then give it the right owner and mode or move it away"));
    }
    Ok(Some(folder))
}

/// The same, made when it is not there.
pub(crate) fn make_own(parent: impl AsFd, name: &str) -> Result<OwnedFd, Failure> {
    if let Some(folder) = open_own(parent.as_fd(), name)? {
        return Ok(folder);
    }
    let cannot = |error| failed(format_args!("cannot make the private folder `{name}`"), error);
    match mkdirat(parent.as_fd(), name, Mode::RWXU) {
        Ok(()) => sync_folder(parent.as_fd(), name)?,
        Err(Errno::EXIST) => {}
        Err(error) => return Err(cannot(error)),
    }
    open_own(parent, name)?.ok_or_else(|| cannot(Errno::NOENT))
}

/// Makes names in a folder durable. `what` is for the message.
pub(crate) fn sync_folder(folder: impl AsFd, what: &str) -> Result<(), Failure> {
    open_strict(folder, ".", LISTED)
        .and_then(fsync)
        .map_err(|error| failed(format_args!("cannot make `{what}` durable"), error))
}

/// Reads a record; nothing when there is none.
pub(crate) fn read_record<T: DeserializeOwned>(folder: impl AsFd, name: &str) -> Result<Option<T>, Failure> {
    let file = match open_strict(folder, name, OFlags::RDONLY | OFlags::NOFOLLOW) {
        Ok(file) => file,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(failed(format_args!("cannot open the record `{name}`"), error)),
    };
    let mut text = String::new();
    File::from(file)
        .read_to_string(&mut text)
        .map_err(|error| io_failed(format_args!("cannot read the record `{name}`"), &error))?;
    serde_json::from_str(&text).map(Some).map_err(|error| {
        Failure::new(FailureKind::Refused, format!("the record `{name}` does not fit: {error}"))
    })
}

/// Writes a record so that it is there as a whole or not at all, and stays.
pub(crate) fn write_record<T: Serialize>(folder: &OwnedFd, name: &str, record: &T) -> Result<(), Failure> {
    let text = serde_json::to_vec(record)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("the record `{name}`: {error}")))?;
    let cannot = |error| failed(format_args!("cannot write the record `{name}`"), error);
    let temporary = format!("{name}.new");
    remove(folder, &temporary)?;
    let file = create_strict(
        folder,
        &*temporary,
        OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW,
        Mode::RUSR | Mode::WUSR,
    )
    .map_err(cannot)?;
    let mut file = File::from(file);
    file.write_all(&text)
        .and_then(|()| file.sync_all())
        .map_err(|error| io_failed(format_args!("cannot write the record `{name}`"), &error))?;
    renameat(folder, &*temporary, folder, name).map_err(cannot)?;
    fsync(folder).map_err(cannot)
}

/// Removes a file of a private folder, if it is there.
pub(crate) fn remove(folder: impl AsFd, name: &str) -> Result<(), Failure> {
    match unlinkat(folder, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(failed(format_args!("cannot remove `{name}` from the private folder"), error)),
    }
}
