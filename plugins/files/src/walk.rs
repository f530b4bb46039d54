//! Walking a tree whose owner may still be changing it.
//!
//! Only open folders are walked: a name is looked at, opened without following or opening what is behind it, and
//! compared with what was looked at; what it is, is then asked of the open descriptor and never of the name again. The
//! folders on the way down are a list, not calls within calls, and at most [`MAX_DEPTH`] of them are open.

use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use farrier_model::{Failure, FailureKind};
use rustix::fs::{Dir, FileType, OFlags, Stat, fstat};
use rustix::io::Errno;

use crate::strict::{LISTED, LOOK, failed, look, open_strict};
use crate::work::Work;

/// What is deeper is not looked at.
pub(crate) const MAX_DEPTH: usize = 256;
/// A longer path could not be unpacked again.
pub(crate) const MAX_PATH: usize = 4095;
/// A tree with more entries is refused.
pub(crate) const MAX_ENTRIES: u64 = 10_000_000;

/// One thing in the tree.
pub(crate) enum Seen<'a> {
    /// It is there. The descriptor was opened with `O_PATH`, for a link on the link itself.
    Entry(BorrowedFd<'a>, &'a Stat),
    /// It is there, and by rule not gone into.
    Passed(Option<&'a Stat>, String),
    /// It could not be looked at.
    Unreadable(Errno),
}

/// What is called for each thing, with its path: a folder before what is in it, names in order.
pub(crate) type Visit<'a> = dyn FnMut(&[u8], Seen<'_>) -> Result<(), Failure> + 'a;

struct Frame {
    folder: OwnedFd,
    /// The names to come, the next one last.
    names: Vec<CString>,
    /// How much of the path is the folder's.
    path: usize,
}

/// Walks the tree at `top` (any open folder), whose own path is `prefix`.
pub(crate) fn walk(
    work: &Work,
    top: &OwnedFd,
    prefix: &str,
    max_entries: u64,
    visit: &mut Visit<'_>,
) -> Result<(), Failure> {
    let stat = fstat(top).map_err(|error| failed(format_args!("cannot look at `{prefix}`"), error))?;
    let mut path = prefix.as_bytes().to_vec();
    visit(&path, Seen::Entry(top.as_fd(), &stat))?;
    let mut entries = 1;
    let mut stack = Vec::new();
    match list(top.as_fd(), max_entries, &mut entries)? {
        Ok((folder, names)) => stack.push(Frame { folder, names, path: path.len() }),
        Err(error) => visit(&path, Seen::Unreadable(error))?,
    }
    while let Some(frame) = stack.last_mut() {
        path.truncate(frame.path);
        let Some(name) = frame.names.pop() else {
            stack.pop();
            continue;
        };
        work.point("walking")?;
        path.push(b'/');
        path.extend_from_slice(name.as_bytes());
        let Some((fd, stat)) = open_entry(&frame.folder, &name, &path, visit)? else { continue };
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            visit(&path, Seen::Entry(fd.as_fd(), &stat))?;
            continue;
        }
        if stack.len() >= MAX_DEPTH {
            let why = format!("it lies {MAX_DEPTH} folders deep, and deeper ones are not gone into");
            visit(&path, Seen::Passed(Some(&stat), why))?;
            continue;
        }
        visit(&path, Seen::Entry(fd.as_fd(), &stat))?;
        match list(fd.as_fd(), max_entries, &mut entries)? {
            Ok((folder, names)) => stack.push(Frame { folder, names, path: path.len() }),
            Err(error) => visit(&path, Seen::Unreadable(error))?,
        }
    }
    Ok(())
}

/// Opens one name without going into it; nothing when there is nothing to see, which is then told.
fn open_entry(
    folder: &OwnedFd,
    name: &CString,
    path: &[u8],
    visit: &mut Visit<'_>,
) -> Result<Option<(OwnedFd, Stat)>, Failure> {
    let vanished = || "it vanished while the tree was read".to_owned();
    let seen = match look(folder, name) {
        Ok(Some(seen)) => seen,
        Ok(None) => return visit(path, Seen::Passed(None, vanished())).map(|()| None),
        Err(error) => return visit(path, Seen::Unreadable(error)).map(|()| None),
    };
    if path.len() > MAX_PATH {
        let why = format!("its path is longer than {MAX_PATH} bytes");
        return visit(path, Seen::Passed(Some(&seen), why)).map(|()| None);
    }
    let opened = open_strict(folder, name.as_c_str(), LOOK).and_then(|fd| Ok((fstat(&fd)?, fd)));
    let (stat, fd) = match opened {
        Ok(opened) => opened,
        Err(Errno::NOENT) => return visit(path, Seen::Passed(None, vanished())).map(|()| None),
        Err(Errno::XDEV) => {
            let why = "another file system is mounted there".to_owned();
            return visit(path, Seen::Passed(Some(&seen), why)).map(|()| None);
        }
        Err(error) => return visit(path, Seen::Unreadable(error)).map(|()| None),
    };
    if (stat.st_dev, stat.st_ino) != (seen.st_dev, seen.st_ino) {
        let why = "it was replaced while the tree was read".to_owned();
        return visit(path, Seen::Passed(None, why)).map(|()| None);
    }
    Ok(Some((fd, stat)))
}

/// A folder that can be listed, and the names in it, the first in order last.
type Listed = (OwnedFd, Vec<CString>);

fn list(folder: BorrowedFd<'_>, max: u64, entries: &mut u64) -> Result<Result<Listed, Errno>, Failure> {
    let folder = match open_strict(folder, ".", LISTED) {
        Ok(folder) => folder,
        Err(error) => return Ok(Err(error)),
    };
    let reading = match Dir::read_from(&folder) {
        Ok(reading) => reading,
        Err(error) => return Ok(Err(error)),
    };
    let mut names = Vec::new();
    for entry in reading {
        let name = match entry {
            Ok(entry) => entry.file_name().to_owned(),
            Err(error) => return Ok(Err(error)),
        };
        if name.as_bytes() == b"." || name.as_bytes() == b".." {
            continue;
        }
        *entries += 1;
        if *entries > max {
            return Err(Failure::new(FailureKind::Limit, format!("the tree has more than {max} entries")));
        }
        names.push(name);
    }
    names.sort_unstable_by(|a, b| b.cmp(a));
    Ok(Ok((folder, names)))
}

/// A path for people: whatever is no plain text is escaped.
pub(crate) fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) => text.escape_debug().to_string(),
        Err(_) => path.escape_ascii().to_string(),
    }
}

/// Opens a regular file for reading by its open descriptor, so that no name is looked up again.
pub(crate) fn reopen(fd: BorrowedFd<'_>) -> Result<OwnedFd, Errno> {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, rustix::fs::Mode::empty())
}
