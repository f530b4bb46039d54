//! Opening without following anything: what the actions that write, archive and delete use.
//!
//! Every path is resolved beneath an open folder with `openat2`, and the kernel refuses links of both kinds, mount
//! points and `..`. There is no fallback for kernels without `openat2` (before Linux 5.6): walking by hand leaves a
//! moment between looking and opening, and here root would open what the owner of the tree put there.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use farrier_model::{Failure, FailureKind};
use rustix::fs::{
    AtFlags, FileType, FlockOperation, Mode, OFlags, ResolveFlags, Stat, flock, openat2, statat,
};
use rustix::io::Errno;
use rustix::path::Arg;
use serde::{Deserialize, Serialize};

use crate::work::Work;

/// A folder that is only looked things up in.
pub(crate) const FOLDER: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);
/// A folder that is listed, synced or locked.
pub(crate) const LISTED: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW);
/// Whatever it is, without opening it.
pub(crate) const LOOK: OFlags = OFlags::PATH.union(OFlags::NOFOLLOW);

const NO_LINKS: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);
const RESOLVE: ResolveFlags = NO_LINKS.union(ResolveFlags::NO_XDEV);
/// Resolution that loses a race against a rename asks to be repeated.
const RACES: usize = 16;

/// Opens `path` beneath `folder`, through no link and into no other file system.
pub(crate) fn open_strict<P: Arg + Copy>(
    folder: impl AsFd,
    path: P,
    flags: OFlags,
) -> Result<OwnedFd, Errno> {
    create_strict(folder, path, flags, Mode::empty())
}

/// The same for a file that `flags` may create.
pub(crate) fn create_strict<P: Arg + Copy>(
    folder: impl AsFd,
    path: P,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, Errno> {
    open(folder, path, flags, mode, RESOLVE)
}

/// Opens a folder among what the superuser mounts there, as snapshots are: through no link, and into other file systems.
pub(crate) fn open_mounted<P: Arg + Copy>(folder: impl AsFd, path: P) -> Result<OwnedFd, Errno> {
    open(folder, path, FOLDER, Mode::empty(), NO_LINKS)
}

fn open<P: Arg + Copy>(
    folder: impl AsFd,
    path: P,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    for _ in 0..RACES {
        match openat2(folder.as_fd(), path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
    Err(Errno::AGAIN)
}

/// What stands under a name, itself and not what it points to; nothing when nothing does.
pub(crate) fn look<P: Arg>(folder: impl AsFd, name: P) -> Result<Option<Stat>, Errno> {
    match statat(folder.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Which folder it is, whatever it is called, and whose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) owner: u32,
}

impl Identity {
    pub(crate) fn of(stat: &Stat) -> Identity {
        Identity { device: stat.st_dev, inode: stat.st_ino, owner: stat.st_uid }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "inode {} of device {:#x}, owner {}", self.inode, self.device, self.owner)
    }
}

/// What kind of file a mode tells, in words.
pub(crate) fn kind_in_words(stat: &Stat) -> &'static str {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => "a regular file",
        FileType::Directory => "a folder",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        FileType::Symlink => "a link",
        FileType::Unknown => "of unknown type",
    }
}

/// Why the kernel did not do what `doing` says: `cannot open ...`.
pub(crate) fn failed(doing: impl fmt::Display, error: Errno) -> Failure {
    let failure = |kind| Failure::new(kind, format!("{doing}: {error}"));
    match error {
        Errno::NOSPC | Errno::DQUOT => {
            failure(FailureKind::Limit).help("free some space there, and try again")
        }
        Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::FBIG => failure(FailureKind::Limit),
        Errno::ACCESS | Errno::PERM => failure(FailureKind::Denied),
        Errno::IO | Errno::STALE | Errno::TIMEDOUT => failure(FailureKind::Unreachable),
        Errno::BUSY | Errno::AGAIN | Errno::TXTBSY => failure(FailureKind::Conflict),
        Errno::NOSYS => failure(FailureKind::Refused).help("this needs `openat2`: Linux 5.6 or newer"),
        Errno::LOOP => Failure::new(
            FailureKind::Refused,
            format!("{doing}: there is a link on the way, and none is followed"),
        ),
        Errno::XDEV => Failure::new(
            FailureKind::Refused,
            format!("{doing}: it lies on another file system or outside its root"),
        ),
        _ => failure(FailureKind::Refused),
    }
}

/// The same for an error of the standard library.
pub(crate) fn io_failed(doing: impl fmt::Display, error: &io::Error) -> Failure {
    match error.raw_os_error() {
        Some(code) => failed(doing, Errno::from_raw_os_error(code)),
        None => Failure::new(FailureKind::Refused, format!("{doing}: {error}")),
    }
}

/// Waits until nobody else holds `folder`: a thread of an attempt that was given up may still be on its way out.
pub(crate) fn lock(work: &Work, folder: &OwnedFd, what: impl fmt::Display) -> Result<(), Failure> {
    for _ in 0..600 {
        match flock(folder, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(()),
            Err(Errno::WOULDBLOCK | Errno::INTR) => std::thread::sleep(std::time::Duration::from_millis(50)),
            Err(error) => return Err(failed(format_args!("cannot lock {what}"), error)),
        }
        work.check()?;
    }
    Err(Failure::new(FailureKind::Conflict, format!("{what} is in the hands of another attempt")))
}
