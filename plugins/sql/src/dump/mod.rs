//! `sql.dump`: a database as text that makes it again, in a file that is whole or not there.
//!
//! Read in this order: [`Dump`] (the input), `text` (what a dump looks like, how it is written and read back), and the
//! adapters, which say what a database consists of. `sql.drop_databases` writes the same text into a digest, and so knows
//! whether a dump still is all of the database.
//!
//! The text is written over the plugin's own connection, in one transaction with one view of the data. So no password is
//! on any command line, and rows and counts are of the same moment. It has no date in it: the same content gives the same
//! text.

mod mariadb;
mod standin;
pub(crate) mod text;

use std::io::{Read, Write};
use std::sync::Arc;

use async_trait::async_trait;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Fidelity, Value, ids};
use farrier_plugin_files::deposit::{self, Deposited, Destination, Receipt, disk_failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::at;
use crate::database::{Database, Session};
use crate::server::{self, database_name_error};
use crate::target::Sql;
use crate::value::Cell;
pub(crate) use mariadb::MariaContents;
pub(crate) use standin::StandInContents;

/// Writes a database into a file beneath a root of a `files` target.
///
/// The file is SQL text, compressed when its name ends in `.sql.zst`, and can be fed to the database's own client. All
/// of it is of one moment: tables with their rows, views, triggers, routines and events, read in one transaction (tables
/// without transactions, such as MyISAM, may change meanwhile). It is written under a private name, read back from the
/// disk, and its rows are counted against the database's; only then it gets its name, which must be free. A step that was
/// cut off starts again or goes on, and never makes a second file. Undo removes the file. Where the target of the files has
/// `via`, the text goes to the host with the disk as it is written, and is read on its way; the host compares what lies on its disk
/// with the digest of what was sent before the file gets its name.
///
/// The account must be allowed to see everything in the database, since what it may not see would be missing without
/// a word.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Dump {
    /// The server.
    target: Target<Sql>,
    /// The database's name, exactly.
    database: String,
    /// Where the file goes.
    into: Destination,
}

/// What `sql.dump` made.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Dumped {
    /// The file, as `files.archive` takes it under `add`.
    file: Deposited,
    /// Its SHA-256, by which `sql.drop_databases` finds it.
    sha256: String,
    /// How many tables it holds.
    tables: u64,
    /// How many rows.
    rows: u64,
}

/// What is recorded of a dump, beside its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct About {
    /// The server.
    pub(crate) server: String,
    /// The database.
    pub(crate) database: String,
    /// The digest of the text, before it was compressed.
    pub(crate) text_sha256: String,
    pub(crate) tables: u64,
    pub(crate) rows: u64,
}

/// What a database consists of, and how its values are written.
#[async_trait]
pub(crate) trait Contents: Send + Sync {
    /// Makes sure that everything in the database can be seen; statements are about this database from here on.
    async fn enter(&self, session: &mut dyn Session, database: &str) -> Result<(), Failure>;
    /// The tables, in order.
    async fn tables(&self, session: &mut dyn Session, database: &str) -> Result<Vec<Part>, Failure>;
    /// Statements that come after the rows: views, triggers, routines, events.
    async fn rest(&self, session: &mut dyn Session, database: &str) -> Result<Vec<String>, Failure>;
    /// What comes first and last.
    fn frame(&self) -> (&'static str, &'static str);
    /// Writes one value. What it is, the select list has decided.
    fn literal(&self, form: Form, cell: &Cell<'_>, out: &mut Vec<u8>) -> Result<(), Failure>;
}

/// One table of a dump.
pub(crate) struct Part {
    pub(crate) name: String,
    /// The statement that makes it, with its end.
    pub(crate) create: String,
    /// `INSERT INTO … VALUES`.
    pub(crate) insert: String,
    pub(crate) select: String,
    pub(crate) count: String,
    pub(crate) columns: Vec<Form>,
}

/// How a value is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// As it came: a number, or what is a literal already.
    Plain,
    /// In quotes.
    Text,
    /// Digits of bytes.
    Hex,
}

/// The database of a target, if this version can write it.
pub(crate) fn contents_of(database: &dyn Database) -> Result<&'static dyn Contents, Failure> {
    let dialect = database.dialect();
    dialect.contents().ok_or_else(|| {
        Failure::new(
            FailureKind::Refused,
            format!("this version does not dump databases of {}", dialect.name()),
        )
    })
}

/// Fails when the server has no database of exactly this name.
pub(crate) async fn must_exist(
    database: &dyn Database,
    session: &mut dyn Session,
    name: &str,
) -> Result<(), Failure> {
    if server::of(database)?.databases(session).await?.iter().any(|known| known == name) {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Refused, format!("there is no database `{name}`")))
}

impl Dump {
    fn compressed(&self) -> Result<bool, Failure> {
        if let Some(error) = database_name_error(&self.database) {
            return Err(Failure::new(FailureKind::Input, error));
        }
        let name = self.into.name();
        let compressed = name.strip_suffix(".zst");
        match compressed.unwrap_or(name).strip_suffix(".sql") {
            Some(stem) if !stem.is_empty() => Ok(compressed.is_some()),
            _ => Err(Failure::new(
                FailureKind::Input,
                format!("`into.path`: `{name}` does not end as a dump does"),
            )
            .help("end it in `.sql.zst`, or in `.sql` to leave it uncompressed")),
        }
    }

    fn dumped(receipt: Receipt) -> Result<Dumped, Failure> {
        let about: About = about(&receipt)?;
        let sha256 = receipt.file.sha256.clone();
        Ok(Dumped { file: receipt.file, sha256, tables: about.tables, rows: about.rows })
    }

    async fn look(&self, cx: &ReadCx) -> Result<Planned<Dumped>, Failure> {
        self.compressed()?;
        let files = cx.reader(self.into.target()).await?;
        let made = deposit::deposited(files, self.into.clone(), effect_of(cx)).await;
        if let Some(receipt) = made.map_err(|failure| at(failure, self.into.target().alias()))? {
            return Ok(Planned::known(Self::dumped(receipt)?));
        }
        let reader = cx.reader(&self.target).await?;
        let contents = contents_of(&*reader.0)?;
        let mut session = reader.0.read().await?;
        must_exist(&*reader.0, &mut *session, &self.database).await?;
        session.take_time().await?;
        contents.enter(&mut *session, &self.database).await?;
        let tables = contents.tables(&mut *session, &self.database).await?;
        session.rollback().await;
        let change = Change {
            object: self.into.shown().into(),
            kind: ChangeKind::Create,
            before: Value::Null,
            after: Value::map([
                ("dump_of", Value::text(&*self.database)),
                ("tables", Value::Int(tables.len() as i64)),
            ]),
            fingerprint: None,
        };
        // The digest and the rows are known when the file is there.
        Ok(Planned { fidelity: Fidelity::Computed, ..Planned::described(vec![change]) })
    }
}

/// What a dump's maker said of it.
pub(crate) fn about(receipt: &Receipt) -> Result<About, Failure> {
    receipt.about.read().map_err(|_| {
        Failure::new(
            FailureKind::Refused,
            format!("the file with the digest {} is no dump", receipt.file.sha256),
        )
    })
}

/// The id of what the step does, which undoing needs as well: it has an id of its own.
fn effect_of(cx: &ReadCx) -> String {
    ids::effect_id(cx.node().run, &cx.node().node, "do")
}

/// Writes everything in a database, from one transaction.
pub(crate) async fn write_database(
    database: &dyn Database,
    name: &str,
    server: &str,
    out: &mut (dyn Write + Send),
) -> Result<About, Failure> {
    let contents = contents_of(database)?;
    let mut session = database.read().await?;
    let written = async {
        session.take_time().await?;
        must_exist(database, &mut *session, name).await?;
        contents.enter(&mut *session, name).await?;
        text::write(contents, &mut *session, name, out).await
    }
    .await;
    session.rollback().await;
    Ok(written?.about(server, name))
}

impl Action for Dump {
    const NAME: &'static str = "sql.dump";
    const EFFECT: Effect = Effect::Keyed;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
dump:
  uses: sql.dump
  with:
    target: database
    database: s52503__links
    into: { target: homes, root: staging, path: [tools.example, s52503__links.sql.zst] }
  timeout: 6h
  undo: restore
";
    type Output = Dumped;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Dumped>, Failure> {
        self.look(cx).await.map_err(|failure| at(failure, self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, _: &[Change]) -> Result<Dumped, Failure> {
        let compressed = self.compressed()?;
        let files = cx.writer(self.into.target()).await?;
        // Dumping reads, so it needs no more rights than a plan.
        let reader = cx.reader(&self.target).await?;
        let (alias, into) = (self.target.alias().to_owned(), self.into.target().alias().to_owned());
        let (place, name): (String, String) = (reader.1.place.clone(), self.database.clone());
        let (of_server, of_name) = (place.clone(), name.clone());
        let database: Arc<dyn Database> = reader.0.clone();
        let runtime = tokio::runtime::Handle::current();
        let write = move |out: &mut (dyn Write + Send)| -> Result<Value, Failure> {
            let mut out = text::Sink::new(out, compressed)?;
            let about = runtime.block_on(write_database(&*database, &name, &place, &mut out));
            let about = about.map_err(|failure| at(failure, &alias))?;
            out.finish()?;
            Value::of(&about).map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
        };
        let check = move |file: &mut dyn Read| -> Result<Value, Failure> {
            let read = text::check(file, compressed)?;
            Value::of(&read.about(&of_server, &of_name))
                .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))
        };
        let receipt = deposit::deposit(files, self.into.clone(), effect_of(cx), write, check).await;
        Self::dumped(receipt.map_err(|failure| at(failure, &into))?)
    }

    async fn undo(&self, cx: &WriteCx, _: &[Change]) -> Result<(), Failure> {
        let files = cx.writer(self.into.target()).await?;
        deposit::withdraw(files, self.into.clone(), effect_of(cx))
            .await
            .map_err(|failure| at(failure, self.into.target().alias()))
    }
}

/// A disk's error while a dump is written.
fn unwritten(error: &std::io::Error) -> Failure {
    disk_failure("cannot write the dump", error)
}
