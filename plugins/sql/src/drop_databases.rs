//! `sql.drop_databases`.

use std::collections::BTreeSet;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use farrier_plugin_files::deposit::{self, Shelf};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::at;
use crate::dump::{About, about, contents_of, write_database};
use crate::server::{self, database_name_error};
use crate::target::Sql;

/// Removes databases of which there are dumps, and no others.
///
/// Each database is named exactly, and with the SHA-256 of its dump, which `sql.dump` made beneath the given root. Planning
/// reads each dump again from the disk. Applying does so once more, then reads the whole database and compares it with what
/// the dump holds: a table, a row or a view that changed since is drift, and the database stays. So nothing is removed that is
/// not in a file. What writes to the database must have been stopped before; the look and the removal are two moments.
/// A database that is gone already is done.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DropDatabases {
    /// The server.
    target: Target<Sql>,
    /// Their names, exactly.
    databases: Vec<String>,
    /// The SHA-256 of each one's dump, in the same order.
    dumped_as: Vec<String>,
    /// Where the dumps lie.
    dumps: Shelf,
}

/// What `sql.drop_databases` removed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Dropped {
    /// Those that were there and are removed.
    dropped: Vec<String>,
    /// Those that were gone already.
    missing: Vec<String>,
}

impl DropDatabases {
    /// Each database with the digest of its dump.
    fn pairs(&self) -> Result<Vec<(&str, &str)>, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        if self.databases.len() != self.dumped_as.len() {
            return Err(input(format!(
                "{} databases and {} digests of dumps; each database needs one",
                self.databases.len(),
                self.dumped_as.len()
            )));
        }
        let mut seen = BTreeSet::new();
        for name in &self.databases {
            if let Some(error) = database_name_error(name) {
                return Err(input(error));
            }
            if !seen.insert(name) {
                return Err(input(format!("`{name}` is listed twice")));
            }
        }
        Ok(self.databases.iter().map(String::as_str).zip(self.dumped_as.iter().map(String::as_str)).collect())
    }

    /// The dump with this digest, as it lies on the disk, if it is one of this database.
    async fn dump(&self, cx: &ReadCx, server: &str, name: &str, sha256: &str) -> Result<About, Failure> {
        let files = cx.reader(self.dumps.target()).await?;
        let receipt = deposit::with_digest(files, self.dumps.clone(), sha256.to_owned()).await;
        let receipt = receipt.map_err(|failure| {
            let mut failure = at(failure, self.dumps.target().alias());
            failure.message = format!("`{name}` is not removed: {}", failure.message);
            failure
        })?;
        let about = about(&receipt)?;
        if about.database != name || about.server != server {
            return Err(Failure::new(
                FailureKind::Refused,
                format!(
                    "`{name}` is not removed: the dump {sha256} is one of `{}` of {}",
                    about.database, about.server
                ),
            ));
        }
        Ok(about)
    }

    async fn look(&self, cx: &ReadCx) -> Result<Planned<Dropped>, Failure> {
        let pairs = self.pairs()?;
        let reader = cx.reader(&self.target).await?;
        let server = server::of(&*reader.0)?;
        contents_of(&*reader.0)?;
        let mut session = reader.0.read().await?;
        let there: BTreeSet<String> = server.databases(&mut *session).await?.into_iter().collect();
        session.rollback().await;
        let (mut changes, mut output) = (Vec::new(), Dropped { dropped: Vec::new(), missing: Vec::new() });
        for (name, sha256) in pairs {
            if !there.contains(name) {
                output.missing.push(name.to_owned());
                continue;
            }
            let about = self.dump(cx, &reader.1.place, name, sha256).await?;
            output.dropped.push(name.to_owned());
            changes.push(Change {
                object: object(name).into(),
                kind: ChangeKind::Delete,
                before: Value::map([
                    ("tables", Value::Int(about.tables as i64)),
                    ("rows", Value::Int(about.rows as i64)),
                    ("dumped_as", Value::text(sha256)),
                ]),
                after: Value::Null,
                fingerprint: Some(about.text_sha256.into()),
            });
        }
        let considered = output.dropped.len();
        Ok(Planned::changes(changes, output).considered(considered))
    }

    async fn drop_all(&self, cx: &WriteCx, changes: &[Change]) -> Result<Dropped, Failure> {
        let pairs = self.pairs()?;
        let (reader, writer) = (cx.reader(&self.target).await?, cx.writer(&self.target).await?);
        let server = server::of(&*writer.0)?;
        let mut output = Dropped { dropped: Vec::new(), missing: Vec::new() };
        for (name, sha256) in pairs {
            let object = object(name);
            let Some(change) = changes.iter().find(|change| *change.object == *object) else {
                output.missing.push(name.to_owned());
                continue;
            };
            let mut session = writer.0.write().await?;
            let there = server.databases(&mut *session).await?.iter().any(|known| known == name);
            session.rollback().await;
            if there {
                let about = self.dump(cx, &reader.1.place, name, sha256).await?;
                let now = write_database(&*reader.0, name, &reader.1.place, &mut std::io::sink()).await?;
                if now.text_sha256 != about.text_sha256
                    || change.fingerprint.as_deref() != Some(about.text_sha256.as_str())
                {
                    return Err(Failure::new(
                        FailureKind::Drift,
                        format!("`{name}` is not as it was when it was dumped; it was left alone"),
                    )
                    .help("find out who writes to it, then dump it again"));
                }
                let mut session = writer.0.write().await?;
                session.take_time().await?;
                server.drop_database(&mut *session, name).await.map_err(|fault| {
                    if fault.unanswered { fault.failure.in_doubt() } else { fault.failure }
                })?;
                session.rollback().await;
            }
            output.dropped.push(name.to_owned());
        }
        Ok(output)
    }
}

fn object(name: &str) -> String {
    format!("database {name}")
}

impl Action for DropDatabases {
    const NAME: &'static str = "sql.drop_databases";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Destructive;
    const DELETES: bool = true;
    const EXAMPLE: &'static str = "\
drop:
  uses: sql.drop_databases
  needs: [dump]
  with:
    target: database
    databases: [s52503__links]
    dumped_as: [\"${ steps.dump.sha256 }\"]
    dumps: { target: homes, root: staging }
  undo: none
";
    type Output = Dropped;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Dropped>, Failure> {
        self.look(cx).await.map_err(|failure| at(failure, self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Dropped, Failure> {
        self.drop_all(cx, changes).await.map_err(|failure| at(failure, self.target.alias()))
    }
}
