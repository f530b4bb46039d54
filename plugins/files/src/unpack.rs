//! Unpacking an archive that [`crate::Archive`] made, as an ordinary account.
//!
//! First the whole archive is read and its own list kept. Then it is read once more and unpacked, each member held against its line,
//! into a folder beside the final one, which gets its name at the end. So there is a whole folder of that name or none.
//!
//! What lies in an archive was the owner's to decide. Every path is made of names beneath the new folder, resolved through no
//! link, so a link that an archive brings leads nothing that is unpacked later out of it. Owners, devices and the bits that make
//! programs run as someone else are left out.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use farrier_model::{Failure, FailureKind};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT, fchmod, futimens, linkat,
    mkdirat, mknodat, open, renameat_with, symlinkat, unlinkat,
};
use rustix::io::Errno;

use crate::manifest::MEMBER;
use crate::pack::Format;
use crate::strict::{FOLDER, LISTED, create_strict, failed, io_failed, open_strict};
use crate::verify::{Begun, Lines, Part, read_archive};
use crate::walk::shown;
use crate::work::{Work, do_blocking};

/// What was unpacked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unpacked {
    /// The tree that the archive is of.
    pub tree: String,
    /// The number of the account that owned it.
    pub owner: u32,
    /// How many files, folders, links and pipes there are now.
    pub entries: u64,
    /// How many bytes of content they have.
    pub bytes: u64,
    /// How many devices were left out.
    pub devices: u64,
    /// How many entries of the tree the archive never had.
    pub not_stored: u64,
    /// How many files changed while the archive was made.
    pub changed: u64,
}

/// Unpacks an archive into the folder `into`, which must not be there. `sha256` is the digest that the archive must have.
///
/// # Errors
/// The archive cannot be read, is damaged, none of ours or another one; the folder is there or cannot be made.
pub async fn unpack(archive: File, into: &Path, sha256: Option<String>) -> Result<Unpacked, Failure> {
    let into = into.to_owned();
    do_blocking(move |work| unpack_into(work, archive, &into, sha256.as_deref())).await
}

fn unpack_into(
    work: &Work,
    mut archive: File,
    into: &Path,
    sha256: Option<&str>,
) -> Result<Unpacked, Failure> {
    let format = format_of(&mut archive)?;
    let (beside, name) = (into.parent().unwrap_or(Path::new("")), into.file_name());
    let Some(name) = name else {
        return Err(Failure::new(
            FailureKind::Input,
            format!("`{}` is no name for a folder", into.display()),
        ));
    };
    let beside = if beside.as_os_str().is_empty() { Path::new(".") } else { beside };
    let beside = open(beside, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| failed(format_args!("cannot open `{}`", beside.display()), error))?;
    if into.symlink_metadata().is_ok() {
        return Err(Failure::new(FailureKind::Refused, format!("there is a `{}` already", into.display()))
            .help("nothing is overwritten: name a folder that is not there"));
    }
    let mut part = name.to_owned();
    part.push(".part");
    mkdirat(&beside, &part, Mode::RWXU).map_err(|error| {
        let failure = failed(format_args!("cannot make `{}`", part.display()), error);
        match error {
            Errno::EXIST => failure.help("it is left of an attempt that ended early: remove it"),
            _ => failure,
        }
    })?;
    let root = open_strict(&beside, &*part, LISTED).map_err(writing("the new folder"))?;
    let lines = match check(work, &archive, format, &root, sha256) {
        Ok(lines) => lines,
        Err(failure) => {
            // Nothing is unpacked of an archive that is not whole.
            let _ = unlinkat(&root, MEMBER, AtFlags::empty());
            let _ = unlinkat(&beside, &part, AtFlags::REMOVEDIR);
            return Err(failure);
        }
    };
    let done = fill(work, &archive, format, root, lines).map_err(|failure| {
        // Whatever the reader wants to look at is there, and says by its name that it is not whole.
        failure.help(format!("what was unpacked until then is in `{}`", part.display()))
    })?;
    renameat_with(&beside, &part, &beside, name, RenameFlags::NOREPLACE)
        .map_err(writing("the new folder"))?;
    Ok(done)
}

/// By the first bytes, since an archive may come without a name.
fn format_of(archive: &mut File) -> Result<Format, Failure> {
    let mut first = Vec::new();
    let cannot = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotSeekable => {
            Failure::new(FailureKind::Input, "an archive is read twice, and this one comes through a pipe")
                .help("name the file, or let the shell open it: `farrier unpack - … < FILE`")
        }
        _ => io_failed("cannot read the archive", &error),
    };
    archive.rewind().map_err(cannot)?;
    archive.take(4).read_to_end(&mut first).map_err(cannot)?;
    match *first {
        [0x1f, 0x8b, ..] => Ok(Format::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd] => Ok(Format::Zstd),
        _ => Err(Failure::new(FailureKind::Input, "this is no archive: neither gzip nor zstd")),
    }
}

/// Reads it to the last byte, and keeps its list in the new folder.
fn check(
    work: &Work,
    archive: &File,
    format: Format,
    root: &OwnedFd,
    sha256: Option<&str>,
) -> Result<Lines, Failure> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let list = create_strict(root, MEMBER, flags, Mode::RUSR | Mode::WUSR).map_err(writing(MEMBER))?;
    let mut list = File::from(list);
    let found = read_archive(work, from_its_beginning(archive)?, format, &mut |part| match part {
        Part::List(piece) => {
            list.write_all(piece).map_err(|error| io_failed("cannot write the archive's list", &error))
        }
        _ => Ok(()),
    })?;
    if let Some(wanted) = sha256
        && !wanted.eq_ignore_ascii_case(&found.sha256)
    {
        let message = format!("the archive has the digest {}, not {wanted}", found.sha256);
        return Err(Failure::new(FailureKind::Drift, message));
    }
    if found.list.is_empty() {
        return Err(Failure::new(FailureKind::Input, format!("the archive has no list `{MEMBER}`"))
            .help("it is none of `files.archive`; unpack it with `tar`"));
    }
    list.rewind().map_err(|error| io_failed("cannot read the archive's list", &error))?;
    Lines::open(list)
}

fn from_its_beginning(archive: &File) -> Result<File, Failure> {
    let again = || {
        let mut file = archive.try_clone()?;
        file.rewind()?;
        Ok(file)
    };
    again().map_err(|error| io_failed("cannot read the archive", &error))
}

fn fill(
    work: &Work,
    archive: &File,
    format: Format,
    root: OwnedFd,
    mut lines: Lines,
) -> Result<Unpacked, Failure> {
    let mut unpacking = Unpacking { root, parent: None, content: None, folders: Vec::new(), devices: 0 };
    let found = read_archive(work, from_its_beginning(archive)?, format, &mut |part| match part {
        Part::Begins(member) => unpacking.begin(member),
        Part::Content(piece) => unpacking.content(piece),
        Part::Ends(member) => lines.compare(member).and_then(|()| unpacking.end()),
        Part::List(_) => Ok(()),
    })?;
    lines.end()?;
    let devices = unpacking.devices;
    unpacking.finish()?;
    Ok(Unpacked {
        tree: lines.head.tree,
        owner: lines.head.owner,
        entries: found.entries - devices,
        bytes: found.content,
        devices,
        not_stored: lines.not_stored,
        changed: lines.changed,
    })
}

/// A folder that is being filled.
struct Unpacking {
    root: OwnedFd,
    /// The folder of the last member, and its path.
    parent: Option<(Vec<u8>, OwnedFd)>,
    /// The file whose content comes next.
    content: Option<Content>,
    /// Folders with the modes and times that they get in the end, when nothing is made in them any more.
    folders: Vec<(Vec<u8>, u32, i64)>,
    devices: u64,
}

impl Unpacking {
    fn begin(&mut self, member: &Begun) -> Result<(), Failure> {
        let path = &member.path;
        let cannot = |error: Errno| failed(format_args!("cannot unpack `{}`", shown(path)), error);
        let (folder, name) = split(path)?;
        match member.flag {
            b'0' => {
                let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
                let parent = self.folder(folder)?;
                let file = create_strict(parent, name, flags, Mode::RUSR | Mode::WUSR).map_err(cannot)?;
                self.content = Some(Content::new(member, file));
            }
            b'5' => {
                mkdirat(self.folder(folder)?, name, Mode::RWXU).map_err(cannot)?;
                self.folders.push((path.clone(), member.mode, member.mtime));
            }
            b'2' => symlinkat(&*member.to, self.folder(folder)?, name).map_err(cannot)?,
            b'1' => {
                let (other, first) = split(&member.to)?;
                let other = self
                    .folder(other)?
                    .try_clone()
                    .map_err(|error| io_failed(format_args!("cannot unpack `{}`", shown(path)), &error))?;
                linkat(other, first, self.folder(folder)?, name, AtFlags::empty()).map_err(cannot)?;
            }
            b'6' => {
                let mode = Mode::from_raw_mode(member.mode & 0o777);
                mknodat(self.folder(folder)?, name, FileType::Fifo, mode, 0).map_err(cannot)?;
            }
            b'3' | b'4' => self.devices += 1,
            flag => {
                let message = format!("`{}` is of a kind that no archive of ours has: {flag}", shown(path));
                return Err(Failure::new(FailureKind::Input, message));
            }
        }
        Ok(())
    }

    fn content(&mut self, piece: &[u8]) -> Result<(), Failure> {
        match &mut self.content {
            Some(content) => content.take(piece),
            None => Err(Failure::new(FailureKind::Input, "something has content in it that is no file")),
        }
    }

    fn end(&mut self) -> Result<(), Failure> {
        self.content.take().map_or(Ok(()), Content::end)
    }

    /// The folder of this path, which is made if an archive leaves it out.
    fn folder(&mut self, path: &[u8]) -> Result<&OwnedFd, Failure> {
        if self.parent.as_ref().is_none_or(|(known, _)| known != path) {
            let opened = self.open(path)?;
            self.parent = Some((path.to_vec(), opened));
        }
        Ok(self.parent.as_ref().map_or(&self.root, |(_, folder)| folder))
    }

    fn open(&self, path: &[u8]) -> Result<OwnedFd, Failure> {
        let cannot = |error: Errno| failed(format_args!("cannot unpack into `{}`", shown(path)), error);
        if path.is_empty() {
            return open_strict(&self.root, ".", FOLDER).map_err(cannot);
        }
        match open_strict(&self.root, path, FOLDER) {
            Err(Errno::NOENT) => {
                let (folder, name) = split(path)?;
                mkdirat(self.open(folder)?, name, Mode::RWXU).map_err(cannot)?;
                open_strict(&self.root, path, FOLDER).map_err(cannot)
            }
            other => other.map_err(cannot),
        }
    }

    /// Modes and times of folders, the inner ones first.
    fn finish(self) -> Result<(), Failure> {
        for (path, mode, mtime) in self.folders.iter().rev() {
            let cannot = |error: Errno| failed(format_args!("cannot finish `{}`", shown(path)), error);
            let folder = open_strict(&self.root, &**path, LISTED).map_err(cannot)?;
            futimens(&folder, &times(*mtime)).map_err(cannot)?;
            fchmod(&folder, Mode::from_raw_mode(mode & 0o777)).map_err(cannot)?;
        }
        Ok(())
    }
}

/// A path in an archive as its folder and the last name: names alone, and none that leads upwards.
fn split(path: &[u8]) -> Result<(&[u8], &[u8]), Failure> {
    if path.split(|byte| *byte == b'/').any(|name| matches!(name, b"" | b"." | b"..")) {
        let message = format!("`{}` is in it, which is no path beneath a folder", shown(path));
        return Err(Failure::new(FailureKind::Input, message));
    }
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => Ok((&path[..slash], &path[slash + 1..])),
        None => Ok((b"", path)),
    }
}

/// A regular file that is written.
struct Content {
    path: Vec<u8>,
    file: File,
    mode: u32,
    mtime: i64,
    sparse: Option<Sparse>,
}

/// One whose holes are not stored.
struct Sparse {
    size: u64,
    /// The beginning of the content, until the map in it is whole.
    map: Vec<u8>,
    /// Where the data goes that is still to come: start and length of each piece.
    pieces: Option<VecDeque<(u64, u64)>>,
}

impl Content {
    fn new(member: &Begun, file: OwnedFd) -> Content {
        let sparse = member.sparse.map(|size| Sparse { size, map: Vec::new(), pieces: None });
        let (mode, mtime) = (member.mode, member.mtime);
        Content { path: member.path.clone(), file: File::from(file), mode, mtime, sparse }
    }

    fn take(&mut self, data: &[u8]) -> Result<(), Failure> {
        let cannot =
            |error: std::io::Error| io_failed(format_args!("cannot unpack `{}`", shown(&self.path)), &error);
        let Some(sparse) = &mut self.sparse else {
            self.file.write_all(data).map_err(cannot)?;
            return Ok(());
        };
        let wrong = || {
            let message = format!("the map of the sparse file `{}` makes no sense", shown(&self.path));
            Failure::new(FailureKind::Input, message)
        };
        let rest;
        let mut data = data;
        if sparse.pieces.is_none() {
            sparse.map.extend_from_slice(data);
            let Some(Map { pieces, length }) = read_map(&sparse.map).map_err(|NoMap| wrong())? else {
                return Ok(());
            };
            sparse.pieces = Some(pieces);
            rest = sparse.map.split_off(length);
            data = &rest;
        }
        let pieces = sparse.pieces.get_or_insert_default();
        while !data.is_empty() {
            let (start, left) = pieces.front_mut().ok_or_else(wrong)?;
            let now = data.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            self.file.write_all_at(&data[..now], *start).map_err(cannot)?;
            (*start, *left) = (*start + now as u64, *left - now as u64);
            data = &data[now..];
            if *left == 0 {
                pieces.pop_front();
            }
        }
        Ok(())
    }

    fn end(self) -> Result<(), Failure> {
        let cannot = |error: Errno| failed(format_args!("cannot unpack `{}`", shown(&self.path)), error);
        if let Some(sparse) = &self.sparse {
            self.file
                .set_len(sparse.size)
                .map_err(|error| io_failed(format_args!("cannot unpack `{}`", shown(&self.path)), &error))?;
        }
        futimens(&self.file, &times(self.mtime)).map_err(cannot)?;
        fchmod(&self.file, Mode::from_raw_mode(self.mode & 0o777)).map_err(cannot)
    }
}

/// Where the data of a sparse file goes, and the length of the map that says so.
struct Map {
    pieces: VecDeque<(u64, u64)>,
    length: usize,
}

/// What begins with it is no map.
struct NoMap;

/// The map at the beginning of a sparse file's content; nothing while it is not whole.
fn read_map(bytes: &[u8]) -> Result<Option<Map>, NoMap> {
    const BLOCK: usize = 512;
    const LONGEST: usize = 8 << 20;
    let mut numbers: Vec<u64> = Vec::new();
    let (mut at, mut wanted) = (0, 1);
    while numbers.len() < wanted {
        let Some(end) = bytes[at..].iter().position(|byte| *byte == b'\n') else {
            return if bytes.len() < LONGEST { Ok(None) } else { Err(NoMap) };
        };
        let digits = std::str::from_utf8(&bytes[at..at + end]).map_err(|_| NoMap)?;
        let number = digits.parse().map_err(|_| NoMap)?;
        if numbers.is_empty() {
            let pieces =
                usize::try_from(number).ok().and_then(|pieces| pieces.checked_mul(2)?.checked_add(1));
            wanted = pieces.ok_or(NoMap)?;
        }
        numbers.push(number);
        at += end + 1;
    }
    let length = at.next_multiple_of(BLOCK);
    if bytes.len() < length {
        return Ok(None);
    }
    let pieces = numbers[1..].chunks_exact(2).map(|piece| (piece[0], piece[1]));
    Ok(Some(Map { pieces: pieces.filter(|(_, length)| *length > 0).collect(), length }))
}

fn times(mtime: i64) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: UTIME_OMIT },
        last_modification: Timespec { tv_sec: mtime, tv_nsec: 0 },
    }
}

fn writing(what: &str) -> impl Fn(Errno) -> Failure {
    move |error| failed(format_args!("cannot write {what}"), error)
}
