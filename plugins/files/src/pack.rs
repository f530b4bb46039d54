//! Writing a tree as a tar archive: GNU headers, long names as GNU writes them, sparse files in the PAX form 1.0.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use farrier_model::{Failure, FailureKind};
use flate2::{Compression, GzBuilder};
use rustix::fs::{FileType, SeekFrom, Stat, fstat, major, minor, readlinkat, seek};
use rustix::io::Errno;
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

use crate::manifest::{Kind, Line, MEMBER, Manifest, Member, Members, Metadata, Name, Remarks};
use crate::strict::{failed, io_failed};
use crate::usage::human;
use crate::walk::{Seen, reopen, shown};
use crate::work::Work;

/// How the tar is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Gzip,
    Zstd,
}

impl Format {
    /// By the ending of a file's name.
    pub(crate) fn of_name(name: &str) -> Option<Format> {
        let ends = |endings: &[&str]| {
            endings.iter().any(|ending| name.strip_suffix(ending).is_some_and(|stem| !stem.is_empty()))
        };
        if ends(&[".tgz", ".tar.gz"]) {
            Some(Format::Gzip)
        } else if ends(&[".tzst", ".tar.zst"]) {
            Some(Format::Zstd)
        } else {
            None
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Format::Gzip => "gzip",
            Format::Zstd => "zstd",
        }
    }
}

/// A writer that knows the digest of what went through it.
pub(crate) struct Hashing<W> {
    inner: W,
    pub(crate) sha256: Sha256,
    pub(crate) bytes: u64,
}

impl<W> Hashing<W> {
    pub(crate) fn new(inner: W) -> Hashing<W> {
        Hashing { inner, sha256: Sha256::new(), bytes: 0 }
    }

    pub(crate) fn digest(&self) -> String {
        hex::encode(self.sha256.clone().finalize())
    }

    pub(crate) fn inner_mut(&mut self) -> &mut W {
        &mut self.inner
    }
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.sha256.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.sha256.update(&buffer[..count]);
        self.bytes += count as u64;
        Ok(count)
    }
}

/// The compressing writer under the tar.
enum Compressor {
    Gzip(Box<flate2::write::GzEncoder<Hashing<File>>>),
    Zstd(Box<zstd::stream::write::Encoder<'static, Hashing<File>>>),
}

impl Compressor {
    fn new(format: Format, file: File) -> io::Result<Compressor> {
        let file = Hashing::new(file);
        Ok(match format {
            // No time and no name in its header: equal trees give equal archives.
            Format::Gzip => {
                Compressor::Gzip(Box::new(GzBuilder::new().mtime(0).write(file, Compression::default())))
            }
            Format::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(file, 3)?;
                encoder.include_checksum(true)?;
                Compressor::Zstd(Box::new(encoder))
            }
        })
    }

    fn finish(self) -> io::Result<Hashing<File>> {
        match self {
            Compressor::Gzip(encoder) => encoder.finish(),
            Compressor::Zstd(encoder) => encoder.finish(),
        }
    }
}

impl Write for Compressor {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        match self {
            Compressor::Gzip(encoder) => encoder.write(buffer),
            Compressor::Zstd(encoder) => encoder.write(buffer),
        }
    }
    fn flush(&mut self) -> io::Result<()> {
        match self {
            Compressor::Gzip(encoder) => encoder.flush(),
            Compressor::Zstd(encoder) => encoder.flush(),
        }
    }
}

const BLOCK: u64 = 512;
/// Files with more pieces of data between holes are stored with the rest as it reads.
const MAX_PIECES: usize = 100_000;
/// Files whose several names are remembered to be stored as links; further ones are stored anew under each name.
const MAX_LINKS: usize = 200_000;

/// An archive that is being written.
pub(crate) struct Packer<'a> {
    work: &'a Work,
    out: Compressor,
    /// The lines of the manifest, kept apart until the end.
    lines: Hashing<io::BufWriter<File>>,
    members: Members,
    remarks: Remarks,
    /// Whose tree it is: of files of others that have other names as well, only the metadata is taken.
    owner: u32,
    max_bytes: u64,
    links: HashMap<(u64, u64), Vec<u8>>,
}

/// What was written.
pub(crate) struct Packed {
    pub(crate) manifest: Manifest,
    /// Of the compressed file.
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    pub(crate) file: File,
}

impl<'a> Packer<'a> {
    pub(crate) fn new(
        work: &'a Work,
        format: Format,
        archive: File,
        lines: File,
        owner: u32,
        max_bytes: u64,
    ) -> Result<Packer<'a>, Failure> {
        Ok(Packer {
            work,
            out: Compressor::new(format, archive).map_err(|error| writing(&error))?,
            lines: Hashing::new(io::BufWriter::new(lines)),
            members: Members::default(),
            remarks: Remarks::default(),
            owner,
            max_bytes,
            links: HashMap::new(),
        })
    }

    /// Writes one line of the manifest.
    pub(crate) fn line(&mut self, line: &impl serde::Serialize) -> Result<(), Failure> {
        serde_json::to_writer(&mut self.lines, line)
            .map_err(io::Error::from)
            .and_then(|()| self.lines.write_all(b"\n"))
            .map_err(|error| io_failed("cannot write the archive's manifest", &error))
    }

    /// Stores what a walk saw.
    pub(crate) fn add(&mut self, path: &[u8], seen: Seen<'_>) -> Result<(), Failure> {
        match seen {
            Seen::Entry(fd, stat) => self.entry(path, fd, stat),
            Seen::Passed(stat, why) => self.not_stored(path, stat, why),
            Seen::Unreadable(error) => {
                Err(failed(format_args!("cannot archive: `{}` cannot be read", shown(path)), error))
            }
        }
    }

    fn not_stored(&mut self, path: &[u8], stat: Option<&Stat>, why: String) -> Result<(), Failure> {
        let line = Line {
            path: Name::of(path),
            kind: stat.map_or(Kind::Unknown, kind),
            metadata: stat.map(metadata),
            stored: None,
            sha256: None,
            to: None,
            not_stored: Some(why),
            changed: None,
        };
        self.remarks.count(&line);
        self.line(&line)
    }

    fn entry(&mut self, path: &[u8], fd: BorrowedFd<'_>, stat: &Stat) -> Result<(), Failure> {
        let what = FileType::from_raw_mode(stat.st_mode);
        match what {
            FileType::RegularFile => self.regular(path, fd, stat),
            FileType::Directory => self.bare(path, EntryType::Directory, stat, &[]),
            FileType::Symlink => match readlinkat(fd, "", Vec::new()) {
                Ok(to) => self.bare(path, EntryType::Symlink, stat, to.as_bytes()),
                Err(error) => self.add(path, Seen::Unreadable(error)),
            },
            FileType::Fifo => self.bare(path, EntryType::Fifo, stat, &[]),
            FileType::CharacterDevice => self.bare(path, EntryType::Char, stat, &[]),
            FileType::BlockDevice => self.bare(path, EntryType::Block, stat, &[]),
            FileType::Socket => self.not_stored(path, Some(stat), "it is a socket".into()),
            FileType::Unknown => self.not_stored(path, Some(stat), "it is of unknown type".into()),
        }
    }

    /// A member without content.
    fn bare(&mut self, path: &[u8], entry_type: EntryType, stat: &Stat, to: &[u8]) -> Result<(), Failure> {
        let mut header = header(entry_type, stat, 0);
        if matches!(entry_type, EntryType::Char | EntryType::Block) {
            let rdev = stat.st_rdev;
            header
                .set_device_major(major(rdev))
                .and_then(|()| header.set_device_minor(minor(rdev)))
                .map_err(|error| writing(&error))?;
        }
        self.head(path, to, header)?;
        let kind = if entry_type == EntryType::Link { Kind::HardLink } else { kind(stat) };
        let to_name = (!to.is_empty()).then(|| Name::of(to));
        let line = Line {
            path: Name::of(path),
            kind,
            metadata: Some(metadata(stat)),
            stored: Some(0),
            sha256: None,
            to: to_name,
            not_stored: None,
            changed: None,
        };
        self.stored(path, entry_type.as_byte(), to, 0, Sha256::new(), line)
    }

    fn regular(&mut self, path: &[u8], fd: BorrowedFd<'_>, stat: &Stat) -> Result<(), Failure> {
        if stat.st_nlink > 1 {
            if stat.st_uid != self.owner {
                let why = format!("it is a file of owner {} that has other names as well", stat.st_uid);
                return self.not_stored(path, Some(stat), why);
            }
            if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)).cloned() {
                return self.bare(path, EntryType::Link, stat, &first);
            }
        }
        let opened = reopen(fd).and_then(|file| Ok((fstat(&file)?, file)));
        let (now, file) = match opened {
            Ok(opened) => opened,
            Err(error) => return self.add(path, Seen::Unreadable(error)),
        };
        // A name was added since: then the question above has another answer.
        if now.st_nlink > 1 && now.st_uid != self.owner {
            let why = "it became a file of another owner with other names as well".to_owned();
            return self.not_stored(path, Some(&now), why);
        }
        if now.st_nlink > 1 && self.links.len() < MAX_LINKS {
            self.links.insert((now.st_dev, now.st_ino), path.to_vec());
        }
        self.content(path, file, &now)
    }

    /// Stores a regular file that is open for reading, with the size it has now.
    pub(crate) fn content(&mut self, path: &[u8], file: OwnedFd, stat: &Stat) -> Result<(), Failure> {
        let size = stat.st_size as u64;
        let unreadable =
            |error: Errno| failed(format_args!("cannot archive: `{}` cannot be read", shown(path)), error);
        let pieces = if (stat.st_blocks as u64).saturating_mul(BLOCK) < size {
            pieces(&file, size).map_err(unreadable)?
        } else {
            None
        };
        let map = pieces.as_deref().map(sparse_map);
        let data: u64 = pieces.as_ref().map_or(size, |pieces| pieces.iter().map(|(_, length)| length).sum());
        let stored = data + map.as_ref().map_or(0, |map| map.len() as u64);
        if self.members.bytes.saturating_add(stored) > self.max_bytes {
            let message = format!("the tree holds more than {} bytes, at `{}`", self.max_bytes, shown(path));
            return Err(Failure::new(FailureKind::Limit, message)
                .help("raise `max_bytes` if that is as it should be"));
        }
        let header = header(EntryType::Regular, stat, stored);
        if map.is_some() {
            let records = [
                pax_record("GNU.sparse.major", b"1"),
                pax_record("GNU.sparse.minor", b"0"),
                pax_record("GNU.sparse.name", path),
                pax_record("GNU.sparse.realsize", size.to_string().as_bytes()),
            ];
            self.extension(EntryType::XHeader, b"././@PaxHeader", &records.concat())?;
            let mut header = header;
            set_name(&mut header, b"GNUSparseFile.0/member");
            // Readers look for the map only behind a header of the POSIX kind.
            posix(&mut header);
            header.set_cksum();
            self.write(header.as_bytes())?;
        } else {
            self.head(path, &[], header)?;
        }
        let mut content = Content { file: File::from(file), sha256: Sha256::new(), short: 0 };
        if let Some(map) = &map {
            content.sha256.update(map);
            self.write(map)?;
        }
        for (start, length) in pieces.unwrap_or_else(|| vec![(0, size)]) {
            self.copy(path, &mut content, start, length)?;
        }
        self.pad(stored)?;
        let after = fstat(&content.file).map_err(unreadable)?;
        let changed = if content.short > 0 {
            Some(format!("it shrank while it was read: {} bytes were filled up with zeros", content.short))
        } else if after.st_size > stat.st_size {
            Some("it grew while it was read: what came later is cut off".into())
        } else if (after.st_mtime, after.st_mtime_nsec) != (stat.st_mtime, stat.st_mtime_nsec) {
            Some("it was written to while it was read".into())
        } else {
            None
        };
        let line = Line {
            path: Name::of(path),
            kind: if map.is_some() { Kind::SparseFile } else { Kind::File },
            metadata: Some(metadata(stat)),
            stored: Some(stored),
            sha256: None,
            to: None,
            not_stored: None,
            changed,
        };
        self.stored(path, b'0', &[], stored, content.sha256, line)
    }

    /// Copies a piece of a file, with zeros for what is not there any more.
    fn copy(&mut self, path: &[u8], content: &mut Content, start: u64, length: u64) -> Result<(), Failure> {
        let cannot = |error: &io::Error| {
            io_failed(format_args!("cannot archive: `{}` cannot be read", shown(path)), error)
        };
        content.file.seek(io::SeekFrom::Start(start)).map_err(|error| cannot(&error))?;
        let mut buffer = vec![0; (128 << 10).min(length as usize)];
        let mut left = length;
        while left > 0 {
            self.work.point("copying")?;
            let want = (buffer.len() as u64).min(left) as usize;
            let got = match content.file.read(&mut buffer[..want]) {
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(cannot(&error)),
            };
            let got = if got == 0 {
                buffer[..want].fill(0);
                content.short += want as u64;
                want
            } else {
                got
            };
            content.sha256.update(&buffer[..got]);
            self.out.write_all(&buffer[..got]).map_err(|error| writing(&error))?;
            left -= got as u64;
        }
        Ok(())
    }

    /// Counts a member that was written, and writes its line.
    fn stored(
        &mut self,
        path: &[u8],
        flag: u8,
        to: &[u8],
        size: u64,
        sha256: Sha256,
        mut line: Line,
    ) -> Result<(), Failure> {
        let sha256 = sha256.finalize().into();
        self.members.add(&Member { path: path.to_vec(), flag, to: to.to_vec(), size, sha256 });
        if matches!(line.kind, Kind::File | Kind::SparseFile) {
            line.sha256 = Some(hex::encode(sha256));
        }
        self.remarks.count(&line);
        self.work.tell_of_many(self.members.entries, 0, || {
            format!("entries packed, {}", human(self.members.bytes))
        });
        self.line(&line)
    }

    /// Writes a header, after the long names that do not fit it.
    fn head(&mut self, path: &[u8], to: &[u8], mut header: Header) -> Result<(), Failure> {
        for (bytes, entry_type) in [(path, EntryType::GNULongName), (to, EntryType::GNULongLink)] {
            if bytes.len() > 100 {
                let mut data = bytes.to_vec();
                data.push(0);
                self.extension(entry_type, b"././@LongLink", &data)?;
            }
        }
        set_name(&mut header, path);
        let old = header.as_old_mut();
        let short = &to[..to.len().min(100)];
        old.linkname[..short.len()].copy_from_slice(short);
        header.set_cksum();
        self.write(header.as_bytes())
    }

    fn extension(&mut self, entry_type: EntryType, name: &[u8], data: &[u8]) -> Result<(), Failure> {
        let mut header = Header::new_gnu();
        header.set_entry_type(entry_type);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(data.len() as u64);
        set_name(&mut header, name);
        if entry_type == EntryType::XHeader {
            posix(&mut header);
        }
        header.set_cksum();
        self.write(header.as_bytes())?;
        self.write(data)?;
        self.pad(data.len() as u64)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.out.write_all(bytes).map_err(|error| writing(&error))
    }

    fn pad(&mut self, length: u64) -> Result<(), Failure> {
        let over = (length % BLOCK) as usize;
        if over == 0 { Ok(()) } else { self.write(&[0; BLOCK as usize][over..]) }
    }

    /// Adds the manifest and ends the archive.
    pub(crate) fn finish(mut self) -> Result<Packed, Failure> {
        let cannot = |error: &io::Error| io_failed("cannot write the archive's manifest", error);
        self.lines.flush().map_err(|error| cannot(&error))?;
        let manifest = Manifest {
            entries: self.members.entries,
            files: self.members.files,
            bytes: self.members.bytes,
            members: self.members.digest(),
            sha256: self.lines.digest(),
            not_stored: self.remarks.not_stored,
            changed: self.remarks.changed,
            first_not_stored: std::mem::take(&mut self.remarks.first),
            snapshot: None,
        };
        let length = self.lines.bytes;
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_mode(0o600);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(length);
        self.head(MEMBER.as_bytes(), &[], header)?;
        let lines = self.lines.inner_mut().get_mut();
        lines.seek(io::SeekFrom::Start(0)).map_err(|error| cannot(&error))?;
        let mut lines = lines.try_clone().map_err(|error| cannot(&error))?.take(length);
        let mut buffer = vec![0; 128 << 10];
        loop {
            let got = lines.read(&mut buffer).map_err(|error| cannot(&error))?;
            if got == 0 {
                break;
            }
            self.write(&buffer[..got])?;
        }
        self.pad(length)?;
        self.write(&[0; 2 * BLOCK as usize])?;
        let mut file = self.out.finish().map_err(|error| writing(&error))?;
        file.flush().map_err(|error| writing(&error))?;
        Ok(Packed { manifest, sha256: file.digest(), bytes: file.bytes, file: file.inner })
    }
}

struct Content {
    file: File,
    sha256: Sha256,
    /// How many bytes were not there any more.
    short: u64,
}

fn writing(error: &io::Error) -> Failure {
    io_failed("cannot write the archive", error)
}

fn metadata(stat: &Stat) -> Metadata {
    Metadata {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        size: stat.st_size as u64,
        mtime: stat.st_mtime,
        links: stat.st_nlink,
    }
}

fn kind(stat: &Stat) -> Kind {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Kind::File,
        FileType::Directory => Kind::Folder,
        FileType::Symlink => Kind::Link,
        FileType::Fifo => Kind::Pipe,
        FileType::Socket => Kind::Socket,
        FileType::CharacterDevice | FileType::BlockDevice => Kind::Device,
        FileType::Unknown => Kind::Unknown,
    }
}

fn header(entry_type: EntryType, stat: &Stat, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(entry_type);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    // Times before 1970 have no place in the header; the manifest has them.
    header.set_mtime(stat.st_mtime.max(0) as u64);
    header.set_size(size);
    header
}

/// The name as far as it fits; a folder's ends with no slash, which every reader accepts.
fn set_name(header: &mut Header, name: &[u8]) {
    let short = &name[..name.len().min(100)];
    header.as_old_mut().name[..short.len()].copy_from_slice(short);
}

/// Makes a header one of the POSIX kind.
fn posix(header: &mut Header) {
    header.as_mut_bytes()[257..265].copy_from_slice(b"ustar\x0000");
}

/// A PAX record: its own length in digits, then key and value.
fn pax_record(key: &str, value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    let mut record = format!("{length} {key}=").into_bytes();
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}

/// Where the data of a file is: start and length of each piece. Nothing when it has no holes.
fn pieces(file: &OwnedFd, size: u64) -> Result<Option<Vec<(u64, u64)>>, Errno> {
    let mut pieces: Vec<(u64, u64)> = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match seek(file.as_fd(), SeekFrom::Data(at)) {
            Ok(start) if start < size => start,
            // No data after this: the rest is a hole.
            Ok(_) | Err(Errno::NXIO) => break,
            // The file system cannot tell.
            Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(None),
            Err(error) => return Err(error),
        };
        let end = if pieces.len() + 1 >= MAX_PIECES {
            size
        } else {
            match seek(file.as_fd(), SeekFrom::Hole(start)) {
                Ok(end) => end.min(size),
                Err(Errno::NXIO) => size,
                Err(error) => return Err(error),
            }
        };
        // A file that changes meanwhile must not keep us here.
        let end = end.max(start + 1);
        pieces.push((start, end - start));
        at = end;
    }
    if pieces == [(0, size)] {
        return Ok(None);
    }
    if pieces.last().is_none_or(|(start, length)| start + length < size) {
        // The end of the file is told by an empty piece.
        pieces.push((size, 0));
    }
    Ok(Some(pieces))
}

/// The map before the data: how many pieces, then start and length of each, one number per line, filled up to a block.
fn sparse_map(pieces: &[(u64, u64)]) -> Vec<u8> {
    let mut map = format!("{}\n", pieces.len()).into_bytes();
    for (start, length) in pieces {
        map.extend_from_slice(format!("{start}\n{length}\n").as_bytes());
    }
    map.resize(map.len().next_multiple_of(BLOCK as usize), 0);
    map
}
