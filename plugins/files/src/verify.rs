//! Reading an archive back, to the last byte, and comparing it with what was written.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};

use farrier_model::{Failure, FailureKind};
use rustix::fs::{Advice, fadvise};
use sha2::{Digest, Sha256};
use tar::EntryType;

use crate::manifest::{Head, Line, MEMBER, Manifest, Member, Members};
use crate::pack::{Format, Hashing};
use crate::strict::io_failed;
use crate::walk::shown;
use crate::work::Work;

/// Paths and maps longer than this are not ours.
const MAX_EXTENSION: u64 = 1 << 20;

/// What an archive on disk turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Of the compressed file.
    pub(crate) sha256: String,
    pub(crate) bytes: u64,
    pub(crate) entries: u64,
    pub(crate) files: u64,
    pub(crate) content: u64,
    pub(crate) members: String,
    /// Of its own list; empty when it has none.
    pub(crate) list: String,
}

/// What is come to while an archive is read, in its order.
pub(crate) enum Part<'a> {
    /// A member begins.
    Begins(&'a Begun),
    /// A piece of its content, as it is stored.
    Content(&'a [u8]),
    /// It is over, and this is what it was.
    Ends(&'a Member),
    /// A piece of the archive's own list, its last member.
    List(&'a [u8]),
}

/// What is known of a member before its content.
#[derive(Debug)]
pub(crate) struct Begun {
    pub(crate) path: Vec<u8>,
    pub(crate) flag: u8,
    pub(crate) to: Vec<u8>,
    pub(crate) mode: u32,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
    /// The size of a file whose holes are not stored: its content begins with a map.
    pub(crate) sparse: Option<u64>,
}

/// Reads a whole archive, and tells `each` what it comes to.
pub(crate) fn read_archive(
    work: &Work,
    file: File,
    format: Format,
    each: &mut dyn FnMut(Part<'_>) -> Result<(), Failure>,
) -> Result<Found, Failure> {
    // Read what is on disk, as far as the kernel lets us, and not what was just written to memory.
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let mut hashing = Hashing::new(file);
    let mut members = Members::default();
    let mut list = None;
    {
        let buffered = BufReader::with_capacity(128 << 10, &mut hashing);
        let decoder: Box<dyn Read + '_> = match format {
            Format::Gzip => Box::new(flate2::bufread::GzDecoder::new(buffered)),
            Format::Zstd => {
                Box::new(zstd::stream::read::Decoder::with_buffer(buffered).map_err(|e| damaged("", &e))?)
            }
        };
        let mut archive = tar::Archive::new(decoder);
        let entries = archive.entries().map_err(|error| damaged("", &error))?.raw(true);
        let mut names = Names::default();
        let mut last = Vec::new();
        let mut buffer = vec![0; 64 << 10];
        for entry in entries {
            work.point("reading back")?;
            let mut entry = entry.map_err(|error| damaged(&after(&last), &error))?;
            if list.is_some() {
                return Err(not_ours("something follows its list"));
            }
            let entry_type = entry.header().entry_type();
            if let EntryType::GNULongName | EntryType::GNULongLink | EntryType::XHeader = entry_type {
                if entry.size() > MAX_EXTENSION {
                    return Err(not_ours("a name in it is too long"));
                }
                let mut data = Vec::new();
                entry.read_to_end(&mut data).map_err(|error| damaged(&after(&last), &error))?;
                names.extension(entry_type, data)?;
                continue;
            }
            let begun = std::mem::take(&mut names).begin(&entry)?;
            if begun.path == MEMBER.as_bytes() {
                let (_, sha256) =
                    digest(work, &mut entry, &begun.path, &mut buffer, &mut |piece| each(Part::List(piece)))?;
                list = Some(hex::encode(sha256));
                continue;
            }
            each(Part::Begins(&begun))?;
            let (size, sha256) =
                digest(work, &mut entry, &begun.path, &mut buffer, &mut |piece| each(Part::Content(piece)))?;
            let Begun { path, flag, to, .. } = begun;
            let member = Member { path, flag, to, size, sha256 };
            members.add(&member);
            work.tell_of_many(members.entries, 0, || "entries read back".into());
            each(Part::Ends(&member))?;
            last = member.path;
        }
        // To the very end: the checksum of the compression comes after the last entry.
        let mut rest = archive.into_inner();
        let trailing = io::copy(&mut rest, &mut OnlyZeros).map_err(|error| damaged(&after(&last), &error))?;
        if trailing > 1 << 20 {
            return Err(not_ours("it goes on after its end"));
        }
    }
    // The decoder stops at its own end; whatever follows counts as well.
    io::copy(&mut hashing, &mut io::sink()).map_err(|error| damaged("", &error))?;
    Ok(Found {
        sha256: hashing.digest(),
        bytes: hashing.bytes,
        entries: members.entries,
        files: members.files,
        content: members.bytes,
        members: members.digest(),
        list: list.unwrap_or_default(),
    })
}

impl Found {
    /// Compares the sum.
    pub(crate) fn compare(&self, manifest: &Manifest) -> Result<(), Failure> {
        let differs = |what: &str, found: &dyn std::fmt::Display, wanted: &dyn std::fmt::Display| {
            Err(Failure::new(
                FailureKind::Drift,
                format!("the archive on disk is not what was written: {what} is {found}, and was {wanted}"),
            ))
        };
        if self.entries != manifest.entries {
            return differs("the count of entries", &self.entries, &manifest.entries);
        }
        if self.files != manifest.files {
            return differs("the count of files", &self.files, &manifest.files);
        }
        if self.content != manifest.bytes {
            return differs("the size of the content", &self.content, &manifest.bytes);
        }
        if self.members != manifest.members {
            return differs("the digest over its entries", &self.members, &manifest.members);
        }
        if self.list != manifest.sha256 {
            return differs("the digest of its own list", &self.list, &manifest.sha256);
        }
        Ok(())
    }
}

/// Reads an archive back and compares each member with its line in the list that was kept while writing.
pub(crate) fn compare_with_lines(
    work: &Work,
    archive: File,
    format: Format,
    lines: File,
) -> Result<Found, Failure> {
    let mut lines = Lines::open(lines)?;
    let found = read_archive(work, archive, format, &mut |part| match part {
        Part::Ends(member) => lines.compare(member),
        _ => Ok(()),
    })?;
    lines.end()?;
    Ok(found)
}

/// The lines of a manifest, one after the other, each held against the member that it is about.
pub(crate) struct Lines {
    reader: BufReader<File>,
    pub(crate) head: Head,
    /// How many lines so far are of what the archive never had.
    pub(crate) not_stored: u64,
    /// How many are of files that changed while it was made.
    pub(crate) changed: u64,
}

impl Lines {
    /// From the beginning of `file`.
    pub(crate) fn open(file: File) -> Result<Lines, Failure> {
        let head = Head { tree: String::new(), owner: 0, effect: String::new(), snapshot: None };
        let mut lines = Lines { reader: BufReader::new(file), head, not_stored: 0, changed: 0 };
        let first = lines.text()?.unwrap_or_default();
        lines.head = Self::parse(&first)?;
        Ok(lines)
    }

    /// Compares the next member with its line.
    pub(crate) fn compare(&mut self, member: &Member) -> Result<(), Failure> {
        let Some(line) = self.next_stored()? else {
            return Err(not_ours(&format!("`{}` is in it and not in the manifest", shown(&member.path))));
        };
        let path = line.path.bytes();
        if path != member.path {
            let (is, should) = (shown(&member.path), shown(&path));
            return Err(not_ours(&format!("`{is}` stands where `{should}` should")));
        }
        if line.stored != Some(member.size) {
            let (path, is) = (shown(&path), member.size);
            return Err(not_ours(&format!("`{path}` has {is} bytes, not {:?}", line.stored)));
        }
        if line.to.map(|to| to.bytes()).unwrap_or_default() != member.to {
            return Err(not_ours(&format!("the link `{}` leads elsewhere", shown(&path))));
        }
        match line.sha256 {
            Some(sha256) if sha256 != hex::encode(member.sha256) => {
                Err(not_ours(&format!("the content of `{}` has another digest", shown(&path))))
            }
            _ => Ok(()),
        }
    }

    /// No line is left.
    pub(crate) fn end(&mut self) -> Result<(), Failure> {
        match self.next_stored()? {
            None => Ok(()),
            Some(line) => Err(not_ours(&format!("`{}` is not in it", shown(&line.path.bytes())))),
        }
    }

    fn text(&mut self) -> Result<Option<String>, Failure> {
        let mut text = String::new();
        match self.reader.read_line(&mut text) {
            Ok(0) => Ok(None),
            Ok(_) => Ok(Some(text)),
            Err(error) => Err(io_failed("cannot read the archive's manifest", &error)),
        }
    }

    fn parse<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Failure> {
        serde_json::from_str(text)
            .map_err(|error| Failure::new(FailureKind::Internal, format!("a line of the manifest: {error}")))
    }

    fn next_stored(&mut self) -> Result<Option<Line>, Failure> {
        while let Some(text) = self.text()? {
            let line: Line = Self::parse(&text)?;
            self.not_stored += u64::from(line.not_stored.is_some());
            self.changed += u64::from(line.changed.is_some());
            if line.stored.is_some() {
                return Ok(Some(line));
            }
        }
        Ok(None)
    }
}

/// Names that stand before the header they are for.
#[derive(Default)]
struct Names {
    path: Option<Vec<u8>>,
    to: Option<Vec<u8>>,
    sparse: Option<u64>,
}

impl Names {
    fn extension(&mut self, entry_type: EntryType, mut data: Vec<u8>) -> Result<(), Failure> {
        match entry_type {
            EntryType::XHeader => {
                self.path = pax_value(&data, b"GNU.sparse.name")?;
                let size = pax_value(&data, b"GNU.sparse.realsize")?.unwrap_or_default();
                let size = std::str::from_utf8(&size).ok().and_then(|digits| digits.parse().ok());
                self.sparse = Some(size.ok_or_else(|| not_ours("a sparse file in it has no size"))?);
            }
            _ => {
                if data.pop() != Some(0) {
                    return Err(not_ours("a long name in it has no end"));
                }
                let place = if entry_type == EntryType::GNULongName { &mut self.path } else { &mut self.to };
                *place = Some(data);
            }
        }
        Ok(())
    }

    fn begin<R: Read>(self, entry: &tar::Entry<'_, R>) -> Result<Begun, Failure> {
        let header = entry.header();
        let old = header.as_old();
        let text = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
        let path = self.path.unwrap_or_else(|| text(&old.name));
        let to = self.to.unwrap_or_else(|| text(&old.linkname));
        let wrong = |error: io::Error| not_ours(&format!("the header of `{}`: {error}", shown(&path)));
        let mode = header.mode().map_err(wrong)?;
        let mtime = header.mtime().map_err(wrong)?.cast_signed();
        let flag = header.entry_type().as_byte();
        Ok(Begun { flag, to, mode, mtime, sparse: self.sparse, path })
    }
}

/// A value of a PAX extension, whose records tell their length: values may hold line breaks.
fn pax_value(mut data: &[u8], key: &[u8]) -> Result<Option<Vec<u8>>, Failure> {
    let wrong = || not_ours("an extended header in it has no sense");
    let mut value = None;
    while !data.is_empty() {
        let space = data.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length: usize = std::str::from_utf8(&data[..space])
            .ok()
            .and_then(|digits| digits.parse().ok())
            .ok_or_else(wrong)?;
        let record = data.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n"));
        let record = record.ok_or_else(wrong)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        if &record[..equals] == key {
            value = Some(record[equals + 1..].to_vec());
        }
        data = &data[length..];
    }
    Ok(value)
}

fn digest(
    work: &Work,
    entry: &mut impl Read,
    path: &[u8],
    buffer: &mut [u8],
    each: &mut dyn FnMut(&[u8]) -> Result<(), Failure>,
) -> Result<(u64, [u8; 32]), Failure> {
    let mut sha256 = Sha256::new();
    let mut size = 0;
    loop {
        work.check()?;
        match entry.read(buffer) {
            Ok(0) => return Ok((size, sha256.finalize().into())),
            Ok(got) => {
                size += got as u64;
                sha256.update(&buffer[..got]);
                each(&buffer[..got])?;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(damaged(&format!(" in `{}`", shown(path)), &error)),
        }
    }
}

/// The digest of a whole file.
pub(crate) fn file_digest(work: &Work, file: File, what: &str) -> Result<(String, u64), Failure> {
    let _ = fadvise(&file, 0, None, Advice::DontNeed);
    let mut file = Hashing::new(file);
    let mut buffer = vec![0; 128 << 10];
    loop {
        work.check()?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok((file.digest(), file.bytes)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(io_failed(format_args!("cannot read `{what}`"), &error)),
        }
    }
}

fn after(path: &[u8]) -> String {
    if path.is_empty() { String::new() } else { format!(" after `{}`", shown(path)) }
}

fn damaged(place: &str, error: &io::Error) -> Failure {
    if error.raw_os_error().is_some() {
        return io_failed("cannot read the archive", error);
    }
    Failure::new(FailureKind::Drift, format!("the archive on disk is damaged{place}: {error}"))
}

fn not_ours(why: &str) -> Failure {
    Failure::new(FailureKind::Drift, format!("the archive on disk is not what was written: {why}"))
}

/// Takes zeros only: what may stand after the end of a tar.
struct OnlyZeros;

impl io::Write for OnlyZeros {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        if buffer.iter().any(|byte| *byte != 0) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "something follows the end of the tar"));
        }
        Ok(buffer.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
