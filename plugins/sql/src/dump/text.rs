//! The text of a dump: how it is written, and how it is read back.
//!
//! ```text
//! -- Farrier dump 1 of `s1__links`
//! SET …;
//! CREATE TABLE …;
//! INSERT INTO `pages` (`id`, `title`) VALUES
//! (1,'a'),
//! (2,'b');
//! -- table `pages`: 2 rows
//! -- rest
//! CREATE VIEW …;
//! -- end of dump: 1 tables, 2 rows
//! ```
//!
//! A row is one line, whatever is in it, so that rows can be counted without understanding SQL.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::ops::ControlFlow;

use farrier_model::{Failure, FailureKind, Value};
use sha2::{Digest as _, Sha256};

use super::{About, Contents, unwritten};
use crate::database::{Session, fetch_values};

/// One statement has no more rows than this,
const ROWS: u64 = 1_000;
/// and stops after the row that reaches this size.
const BYTES: usize = 512 << 10;
/// zstd's default.
const LEVEL: i32 = 3;

/// What was written, or is read.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Written {
    /// Of the text.
    pub(super) sha256: String,
    pub(super) tables: u64,
    pub(super) rows: u64,
}

impl Written {
    /// What is recorded of it.
    pub(super) fn about(self, server: &str, database: &str) -> About {
        let Written { sha256, tables, rows } = self;
        About { server: server.into(), database: database.into(), text_sha256: sha256, tables, rows }
    }
}

/// Digests what goes by.
struct Digesting<'o> {
    out: &'o mut (dyn Write + Send),
    sha256: Sha256,
}

impl Digesting<'_> {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.sha256.update(bytes);
        self.out.write_all(bytes).map_err(|error| unwritten(&error))
    }
}

/// Writes everything, and compares the rows that came with the database's own count.
pub(super) async fn write(
    contents: &dyn Contents,
    session: &mut dyn Session,
    database: &str,
    out: &mut (dyn Write + Send),
) -> Result<Written, Failure> {
    let mut out = Digesting { out, sha256: Sha256::new() };
    let (head, foot) = contents.frame();
    out.put(format!("-- Farrier dump 1 of `{database}`\n{head}").as_bytes())?;
    let parts = contents.tables(session, database).await?;
    let mut total = 0;
    for part in &parts {
        out.put(part.create.as_bytes())?;
        out.put(b"\n")?;
        let mut rows = 0_u64;
        let mut in_statement = 0_u64;
        let mut buffer: Vec<u8> = Vec::with_capacity(BYTES + (64 << 10));
        if !part.columns.is_empty() {
            session
                .fetch(&part.select, &[], &mut |row| {
                    if in_statement == 0 {
                        buffer.extend_from_slice(part.insert.as_bytes());
                        buffer.push(b'\n');
                    } else {
                        buffer.extend_from_slice(b",\n");
                    }
                    buffer.push(b'(');
                    for (at, form) in part.columns.iter().enumerate() {
                        if at > 0 {
                            buffer.push(b',');
                        }
                        contents.literal(*form, &row.cell(at)?, &mut buffer)?;
                    }
                    buffer.push(b')');
                    rows += 1;
                    in_statement += 1;
                    if in_statement == ROWS || buffer.len() >= BYTES {
                        buffer.extend_from_slice(b";\n");
                        out.put(&buffer)?;
                        buffer.clear();
                        in_statement = 0;
                    }
                    Ok(ControlFlow::Continue(()))
                })
                .await?;
        }
        if in_statement > 0 {
            buffer.extend_from_slice(b";\n");
        }
        out.put(&buffer)?;
        let counted = fetch_values(session, &part.count, &[]).await?;
        let counted = counted.first().and_then(|row| row.first()).and_then(Value::as_int);
        if counted != Some(rows as i64) {
            return Err(Failure::new(
                FailureKind::Conflict,
                format!("table `{}` gave {rows} rows and counts {}", part.name, counted.unwrap_or(-1)),
            )
            .help("a table without transactions was changed while it was dumped; stop what writes to it"));
        }
        out.put(format!("-- table `{}`: {rows} rows\n", part.name).as_bytes())?;
        total += rows;
    }
    out.put(b"-- rest\n")?;
    for statement in contents.rest(session, database).await? {
        out.put(statement.as_bytes())?;
        out.put(b"\n")?;
    }
    let tables = parts.len() as u64;
    out.put(format!("{foot}-- end of dump: {tables} tables, {total} rows\n").as_bytes())?;
    Ok(Written { sha256: hex::encode(out.sha256.finalize()), tables, rows: total })
}

/// Reads a dump back: its end is there, and the rows of each table are as many as it says. What it holds is for the caller to
/// compare.
pub(super) fn check(file: &mut dyn Read, compressed: bool) -> Result<Written, Failure> {
    let wrong = |message: String| Failure::new(FailureKind::Drift, format!("the dump is damaged: {message}"));
    let unread = |error: &std::io::Error| wrong(format!("it cannot be read: {error}"));
    let mut reader: Box<dyn Read + '_> = if compressed {
        Box::new(zstd::stream::Decoder::new(file).map_err(|error| unread(&error))?)
    } else {
        Box::new(file)
    };
    let mut lines = BufReader::with_capacity(128 << 10, &mut reader);
    let mut sha256 = Sha256::new();
    let (mut tables, mut total, mut rows) = (0_u64, 0_u64, 0_u64);
    let (mut in_rows, mut in_rest, mut ended) = (false, false, false);
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line).map_err(|error| unread(&error))? == 0 {
            break;
        }
        sha256.update(&line);
        if ended {
            return Err(wrong("something follows its end".into()));
        }
        if in_rows {
            if !line.starts_with(b"(") {
                return Err(wrong(format!("row {} of a table is none", rows + 1)));
            }
            rows += 1;
            in_rows = line.ends_with(b",\n");
        } else if !in_rest && line.starts_with(b"INSERT INTO ") && line.ends_with(b" VALUES\n") {
            in_rows = true;
        } else if !in_rest && line.starts_with(b"-- table `") {
            if !line.ends_with(format!(": {rows} rows\n").as_bytes()) {
                return Err(wrong(format!("a table has {rows} rows and says otherwise")));
            }
            tables += 1;
            total += rows;
            rows = 0;
        } else if line == b"-- rest\n" {
            in_rest = true;
        } else if in_rest && line.starts_with(b"-- end of dump: ") {
            ended = line == format!("-- end of dump: {tables} tables, {total} rows\n").as_bytes();
        }
    }
    if !ended {
        return Err(wrong("its end is missing".into()));
    }
    Ok(Written { sha256: hex::encode(sha256.finalize()), tables, rows: total })
}

/// Where a dump's text goes: into a file, compressed or not.
pub(super) enum Sink<'o> {
    Plain(Sending<'o>),
    Compressed(Box<zstd::stream::Encoder<'static, Sending<'o>>>),
}

/// A borrowed writer.
pub(super) struct Sending<'o>(&'o mut (dyn Write + Send));

impl Write for Sending<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.0.write(buffer)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

impl<'o> Sink<'o> {
    pub(super) fn new(out: &'o mut (dyn Write + Send), compressed: bool) -> Result<Sink<'o>, Failure> {
        if !compressed {
            return Ok(Sink::Plain(Sending(out)));
        }
        let encoder = zstd::stream::Encoder::new(Sending(out), LEVEL).map_err(|error| unwritten(&error))?;
        Ok(Sink::Compressed(Box::new(encoder)))
    }

    pub(super) fn finish(self) -> Result<(), Failure> {
        match self {
            Sink::Plain(mut out) => out.flush(),
            Sink::Compressed(encoder) => encoder.finish().and_then(|mut out| out.flush()),
        }
        .map_err(|error| unwritten(&error))
    }
}

impl Write for Sink<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        match self {
            Sink::Plain(out) => out.write(buffer),
            Sink::Compressed(out) => out.write(buffer),
        }
    }
    fn flush(&mut self) -> std::io::Result<()> {
        match self {
            Sink::Plain(out) => out.flush(),
            Sink::Compressed(out) => out.flush(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "-- Farrier dump 1 of `a`\nCREATE TABLE `t` (\n  `x` int\n);\nINSERT INTO `t` (`x`) VALUES\n(1),\n(2);\n\
                        INSERT INTO `t` (`x`) VALUES\n(3);\n-- table `t`: 3 rows\n-- rest\nCREATE VIEW v AS SELECT '\n-- end of dump?';\n\
                        -- end of dump: 1 tables, 3 rows\n";

    fn judged(text: &str, compressed: bool) -> Result<(), String> {
        let written = Written { sha256: hex::encode(Sha256::digest(TEXT.as_bytes())), tables: 1, rows: 3 };
        let mut bytes = text.as_bytes().to_vec();
        if compressed {
            bytes = zstd::stream::encode_all(&*bytes, LEVEL).unwrap();
        }
        match check(&mut &*bytes, compressed).map_err(|failure| failure.message)? {
            read if read == written => Ok(()),
            read => Err(format!("{read:?}")),
        }
    }

    #[test]
    fn a_whole_dump_is_told_from_any_other() {
        assert_eq!(judged(TEXT, false), Ok(()));
        assert_eq!(judged(TEXT, true), Ok(()));
        for wrong in [
            String::new(),
            TEXT.replace("(2);\n", ""),
            TEXT.replace("(3)", "(4)"),
            TEXT.replace("\n(1),\n", "\n"),
            TEXT.replace("1 tables, 3 rows", "1 tables, 4 rows"),
            TEXT.replace("-- end of dump: 1 tables, 3 rows\n", ""),
            format!("{TEXT}DROP DATABASE b;\n"),
        ] {
            assert!(judged(&wrong, false).is_err(), "{wrong}");
        }
        for cut in 0..TEXT.len() {
            assert!(judged(&TEXT[..cut], false).is_err(), "cut at {cut}");
        }
        let whole = zstd::stream::encode_all(TEXT.as_bytes(), LEVEL).unwrap();
        for cut in 0..whole.len() {
            assert!(check(&mut &whole[..cut], true).is_err(), "cut at {cut}");
        }
    }
}
