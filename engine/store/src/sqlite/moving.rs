//! Runs out of a store and into another: [`SqliteStore::export`], [`SqliteStore::import`], and what can still be read of a
//! damaged file.

use std::collections::BTreeSet;

use farrier_model::{Digest, RunId, Text};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row as _, SqliteConnection};

use super::writer::{Done, Work};
use super::{SqliteStore, mismatched, reader};
use crate::StoreError;
use crate::body;
use crate::record::{Recorded, RunRecord, Texts};

const RUN: &str = "SELECT runbook, bundle, environment, title, parent_id, state, reason, owner, live_key, epoch, \
     created_at, updated_at, finished_at, not_before, head FROM run WHERE run_id = ?";

/// Ways to the ids of all runs, over different pages of the file.
const IDS: [&str; 4] = [
    "SELECT run_id FROM run INDEXED BY run_newest ORDER BY created_at, run_id",
    "SELECT run_id FROM run ORDER BY run_id",
    "SELECT run_id FROM run NOT INDEXED",
    "SELECT DISTINCT run_id FROM journal",
];

impl SqliteStore {
    /// Everything that is stored of a run, as of one moment. Read as it is: whether its chain holds is for
    /// [`fsck`](crate::fsck()) and for [`import`](SqliteStore::import) to say.
    ///
    /// # Errors
    /// There is no such run, or a part of it cannot be read.
    pub async fn export(&self, run: RunId) -> Result<RunRecord, StoreError> {
        let mut snapshot = self.readers.begin().await.map_err(|error| self.unreadable(error))?;
        let corrupt = |message: String| StoreError::Corrupt { place: format!("run {run}"), message };
        let read = async |snapshot: &mut SqliteConnection| -> Result<Option<RunRecord>, sqlx::Error> {
            let row = sqlx::query(RUN).bind(run.to_string()).fetch_optional(&mut *snapshot).await?;
            let Some(row) = row else { return Ok(None) };
            let mut record = record(run, &row)?;
            let texts = sqlx::query("SELECT root, sources FROM bundle WHERE digest = ?")
                .bind(record.bundle.to_string())
                .fetch_optional(&mut *snapshot)
                .await?;
            record.texts = texts.map(|row| texts_of(&row)).transpose()?;
            let rows = sqlx::query(reader::ENTRIES_AFTER)
                .bind(run.to_string())
                .bind(i64::MIN)
                .fetch_all(&mut *snapshot)
                .await?;
            record.entries = rows.iter().map(recorded).collect::<Result<_, _>>()?;
            Ok(Some(record))
        };
        match read(&mut snapshot).await {
            Ok(record) => record.ok_or(StoreError::NoRun { run }),
            Err(sqlx::Error::PoolClosed) => Err(StoreError::Closed),
            Err(error) => Err(corrupt(error.to_string())),
        }
    }

    /// The ids of all runs, oldest first; of a damaged file, those that any way leads to, with what is wrong.
    ///
    /// # Errors
    /// No way leads to any.
    pub async fn run_ids(&self) -> Result<(Vec<RunId>, Option<StoreError>), StoreError> {
        let mut found = BTreeSet::new();
        let (mut damage, mut read_one) = (None, false);
        for sql in IDS {
            let rows = sqlx::query(sql).fetch_all(&self.readers).await;
            match rows {
                Ok(rows) => {
                    read_one = true;
                    let ids = rows.iter().filter_map(|row| row.try_get::<String, _>(0).ok());
                    found.extend(ids.filter_map(|id| id.parse::<RunId>().ok()));
                    if damage.is_none() {
                        break;
                    }
                }
                Err(error) => damage = Some(self.unreadable(error)),
            }
        }
        match damage {
            Some(damage) if !read_one => Err(damage),
            // Ids begin with the time at which they were made.
            damage => Ok((found.into_iter().collect(), damage)),
        }
    }

    /// Stores a run that was exported, with its journal as it is; nobody owns it here. False when it is stored already.
    ///
    /// # Errors
    /// [`StoreError::Invalid`] for a record that was changed or breaks the journal's rules, and for one whose id has
    /// another journal here.
    pub async fn import(&self, record: RunRecord) -> Result<bool, StoreError> {
        let run = record.id;
        let verified = tokio::task::spawn_blocking(move || record.verify())
            .await
            .map_err(|error| StoreError::Unavailable { message: error.to_string() })?
            .map_err(|message| StoreError::Invalid {
                run,
                message: format!("it is not imported: {message}"),
            })?;
        match self.work(Work::Import { run: Box::new(verified) }).await? {
            (_, Done::Created(created)) => Ok(created),
            _ => Err(mismatched()),
        }
    }
}

fn damaged(message: impl ToString) -> sqlx::Error {
    sqlx::Error::Decode(message.to_string().into())
}

fn record(run: RunId, row: &SqliteRow) -> Result<RunRecord, sqlx::Error> {
    let text = |at: usize| row.try_get::<&str, _>(at).map(Text::from);
    let parent = row.try_get::<Option<&str>, _>(4)?;
    Ok(RunRecord {
        id: run,
        runbook: text(0)?,
        bundle: Digest::try_from(row.try_get::<String, _>(1)?).map_err(damaged)?,
        environment: text(2)?,
        title: text(3)?,
        parent: parent.map(|id| id.parse().map_err(damaged)).transpose()?,
        state: row.try_get(5)?,
        reason: row.try_get(6)?,
        owned_by: row.try_get(7)?,
        live_key: row.try_get(8)?,
        epoch: row.try_get(9)?,
        created_at: row.try_get(10)?,
        updated_at: row.try_get(11)?,
        finished_at: row.try_get(12)?,
        not_before: row.try_get(13)?,
        head: hex::encode(row.try_get::<&[u8], _>(14)?),
        texts: None,
        entries: Vec::new(),
    })
}

fn texts_of(row: &SqliteRow) -> Result<Texts, sqlx::Error> {
    let json = body::unpack(row.try_get(1)?).map_err(damaged)?;
    Ok(Texts { root: row.try_get(0)?, sources: serde_json::from_slice(&json).map_err(damaged)? })
}

/// A row in the order of [`reader::ENTRIES_AFTER`].
fn recorded(row: &SqliteRow) -> Result<Recorded, sqlx::Error> {
    let large = match (row.try_get::<Option<&str>, _>(7)?, row.try_get::<Option<&[u8]>, _>(8)?) {
        (Some(_), Some(zstd)) => {
            Some(String::from_utf8(body::unpack(zstd).map_err(damaged)?).map_err(damaged)?)
        }
        (Some(digest), None) => return Err(damaged(format!("blob {digest} is missing"))),
        (None, _) => None,
    };
    Ok(Recorded {
        seq: row.try_get(0)?,
        epoch: row.try_get(1)?,
        at: row.try_get(2)?,
        node: row.try_get(3)?,
        attempt: row.try_get(4)?,
        kind: row.try_get(5)?,
        body: row.try_get(6)?,
        large,
        entry_id: hex::encode(row.try_get::<&[u8], _>(9)?),
        part: row.try_get(10)?,
        hash: hex::encode(row.try_get::<&[u8], _>(11)?),
    })
}
