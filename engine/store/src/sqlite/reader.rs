//! Rows to entries and runs. Reads nothing but what it is handed, so the writer can use it inside its transaction.

use farrier_model::{Digest, Entry, Request, RunId, RunState, Text};
use sqlx::sqlite::SqliteRow;
use sqlx::{QueryBuilder, Row as _, Sqlite};

use crate::body::{self, Place, Said};
use crate::{RunFilter, RunRow, StoreError, Ticket, Violation, timestamp};

/// Journal columns in the order that [`entry`] and [`Stored`] read them.
macro_rules! entry_columns {
    () => {
        "SELECT j.seq, j.epoch, j.at, j.node, j.attempt, j.kind, j.body, j.blob, b.zstd, j.entry_id, j.part, j.hash \
         FROM journal j LEFT JOIN blob b ON b.digest = j.blob "
    };
}

pub(crate) const ENTRIES_AFTER: &str =
    concat!(entry_columns!(), "WHERE j.run_id = ? AND j.seq > ? ORDER BY j.seq");
pub(crate) const KNOWN_ENTRIES: &str =
    concat!(entry_columns!(), "WHERE j.run_id = ? AND j.entry_id = ? ORDER BY j.part");

const RUN_COLUMNS: &str = "SELECT run_id, runbook, bundle, environment, title, state, owner, epoch, lease_until, created_at, \
     updated_at, finished_at, parent_id, reason, seq, not_before FROM run";

/// A journal row as it is stored.
struct Stored<'r> {
    seq: i64,
    epoch: i64,
    at: i64,
    node: Option<&'r str>,
    attempt: Option<i64>,
    kind: &'r str,
    body: Option<&'r str>,
    blob: Option<&'r str>,
    zstd: Option<&'r [u8]>,
    entry_id: &'r [u8],
    part: i64,
    hash: &'r [u8],
}

impl<'r> Stored<'r> {
    fn of(row: &'r SqliteRow) -> Result<Stored<'r>, sqlx::Error> {
        Ok(Stored {
            seq: row.try_get(0)?,
            epoch: row.try_get(1)?,
            at: row.try_get(2)?,
            node: row.try_get(3)?,
            attempt: row.try_get(4)?,
            kind: row.try_get(5)?,
            body: row.try_get(6)?,
            blob: row.try_get(7)?,
            zstd: row.try_get(8)?,
            entry_id: row.try_get(9)?,
            part: row.try_get(10)?,
            hash: row.try_get(11)?,
        })
    }

    fn read(&self) -> Result<Entry, String> {
        if self.blob.is_some() && self.zstd.is_none() {
            return Err("its blob is missing".into());
        }
        let event = body::read_event(self.node, self.attempt, self.kind, self.body, self.zstd)?;
        Ok(Entry { seq: self.seq, epoch: self.epoch, at: timestamp(self.at), event })
    }

    fn link(&self, run: &str, before: &[u8]) -> [u8; 32] {
        let Stored { seq, epoch, at, node, attempt, kind, body, blob, entry_id, part, .. } = *self;
        body::link(
            before,
            Place { run, seq, epoch, at, entry_id, part },
            Said { node, attempt, kind, body, blob },
        )
    }
}

/// The entry of a journal row.
pub(crate) fn entry(run: RunId, row: &SqliteRow) -> Result<Entry, StoreError> {
    let corrupt = |place: String, message: String| StoreError::Corrupt { place, message };
    let stored = Stored::of(row).map_err(|error| corrupt(format!("run {run}"), error.to_string()))?;
    stored.read().map_err(|message| corrupt(format!("run {run} entry {}", stored.seq), message))
}

/// Reads a journal leniently and follows its hash chain; `head` is the link that the run's row ends with.
#[derive(Default)]
pub(crate) struct Auditor {
    pub(crate) entries: Vec<Entry>,
    pub(crate) violations: Vec<Violation>,
    last: i64,
    link: Option<Vec<u8>>,
    broken: bool,
}

impl Auditor {
    pub(crate) fn row(&mut self, run: RunId, row: &SqliteRow) {
        let stored = match Stored::of(row) {
            Ok(stored) => stored,
            Err(error) => return self.violation(run, None, "body", error.to_string()),
        };
        let seq = Some(stored.seq);
        if stored.seq != self.last + 1 {
            self.violation(run, seq, "seq", format!("entry {} is missing before it", self.last + 1));
        }
        self.last = stored.seq;
        let before = self.link.take().unwrap_or_else(|| body::NO_LINK.to_vec());
        if stored.link(&run.to_string(), &before) != stored.hash && !self.broken {
            // One message for one break: what follows a changed row cannot be judged by the same chain again.
            self.broken = true;
            self.violation(
                run,
                seq,
                "chain",
                "the hash chain is broken: this entry or one before it was changed".into(),
            );
        }
        self.link = Some(stored.hash.to_vec());
        match stored.read() {
            Ok(entry) => self.entries.push(entry),
            Err(message) => self.violation(run, seq, "body", message),
        }
    }

    pub(crate) fn end(&mut self, run: RunId, head: &[u8]) {
        if !self.broken && self.link.as_deref().unwrap_or(&body::NO_LINK) != head {
            self.violation(
                run,
                None,
                "chain",
                "the journal does not end where the run says: entries were cut off".into(),
            );
        }
    }

    fn violation(&mut self, run: RunId, seq: Option<i64>, invariant: &'static str, message: String) {
        self.violations.push(Violation { run: Some(run), seq, invariant, message });
    }
}

/// The query for the runs that fit `filter`.
pub(crate) fn runs_query(filter: &RunFilter) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(RUN_COLUMNS);
    query.push(" WHERE 1 = 1");
    if !filter.states.is_empty() {
        query.push(" AND state IN (");
        let mut states = query.separated(", ");
        for state in &filter.states {
            states.push_bind(state.name());
        }
        query.push(")");
    }
    if let Some(runbook) = &filter.runbook {
        query.push(" AND runbook = ").push_bind(runbook.clone());
    }
    if let Some(parent) = filter.parent {
        query.push(" AND parent_id = ").push_bind(parent.to_string());
    }
    if let Some(after) = filter.ended_after {
        query.push(" AND finished_at > ").push_bind(after.as_millisecond());
    }
    if let Some(prefix) = &filter.id_prefix {
        // Ids consist of hexadecimal digits and `-`; `g` follows them all.
        let prefix = prefix.to_lowercase();
        query.push(" AND run_id >= ").push_bind(prefix.clone());
        query.push(" AND run_id < ").push_bind(format!("{prefix}g"));
    }
    if let Some((at, id)) = filter.before {
        query.push(" AND (created_at, run_id) < (").push_bind(at.as_millisecond());
        query.push(", ").push_bind(id.to_string()).push(")");
    }
    query.push(" ORDER BY created_at DESC, run_id DESC");
    if let Some(limit) = filter.limit {
        query.push(" LIMIT ").push_bind(limit as i64);
    }
    query
}

/// The query for one run.
pub(crate) fn run_query(run: RunId) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(RUN_COLUMNS);
    query.push(" WHERE run_id = ").push_bind(run.to_string());
    query
}

/// A run's row.
pub(crate) fn run_row(row: &SqliteRow) -> Result<RunRow, StoreError> {
    read_run_row(row).map_err(|error| StoreError::Corrupt {
        place: row.try_get::<String, _>(0).map_or("a run".into(), |run| format!("run {run}")),
        message: error.to_string(),
    })
}

fn read_run_row(row: &SqliteRow) -> Result<RunRow, sqlx::Error> {
    let damaged = |message: String| sqlx::Error::Decode(message.into());
    let text = |index: usize| row.try_get::<&str, _>(index).map(Text::from);
    let id = |text: &str| text.parse::<RunId>().map_err(|_| damaged(format!("`{text}` is not a run id")));
    let time = |index: usize| row.try_get::<Option<i64>, _>(index).map(|ms| ms.map(timestamp));
    let state: &str = row.try_get(5)?;
    Ok(RunRow {
        id: id(row.try_get(0)?)?,
        runbook: text(1)?,
        bundle: Digest::try_from(row.try_get::<String, _>(2)?).map_err(damaged)?,
        environment: text(3)?,
        title: text(4)?,
        state: RunState::from_name(state).ok_or_else(|| damaged(format!("`{state}` is not a run state")))?,
        owner: row.try_get(6)?,
        epoch: row.try_get(7)?,
        lease_until: time(8)?,
        created_at: timestamp(row.try_get(9)?),
        updated_at: timestamp(row.try_get(10)?),
        finished_at: time(11)?,
        parent: row.try_get::<Option<&str>, _>(12)?.map(id).transpose()?,
        reason: row.try_get(13)?,
        seq: row.try_get(14)?,
        not_before: time(15)?,
    })
}

/// Keeps a query to environments, whose names are a list in JSON; to all without one.
fn within(query: &mut QueryBuilder<Sqlite>, environments: Option<&str>) {
    if let Some(names) = environments {
        query
            .push(" AND environment IN (SELECT value FROM json_each(")
            .push_bind(names.to_owned())
            .push("))");
    }
}

/// Runs that nobody works on and that wait for no other: the generation, and the time at which a lease of it is over.
pub(crate) fn unowned_query(
    generation: i64,
    lease_end: i64,
    environments: Option<&str>,
    limit: i64,
) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(RUN_COLUMNS);
    query.push(" WHERE state IN ('queued', 'running', 'undoing') AND held IS NULL AND (owner IS NULL OR generation < ");
    query.push_bind(generation).push(" OR lease_until < ").push_bind(lease_end).push(")");
    within(&mut query, environments);
    query.push(" ORDER BY created_at, run_id LIMIT ").push_bind(limit);
    query
}

/// Waiting runs whose moment has come. The index is named, because SQLite would rather sort all that wait.
pub(crate) fn due_query(now: i64, environments: Option<&str>, limit: i64) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(RUN_COLUMNS);
    query.push(" INDEXED BY run_due WHERE state = 'waiting' AND not_before <= ").push_bind(now);
    within(&mut query, environments);
    query.push(" ORDER BY not_before, run_id LIMIT ").push_bind(limit);
    query
}

/// Parked runs of which somebody wants something.
pub(crate) fn asked_query(environments: Option<&str>, limit: i64) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(RUN_COLUMNS);
    query.push(" WHERE state = 'parked' AND run_id IN (SELECT run_id FROM request)");
    within(&mut query, environments);
    query.push(" ORDER BY created_at, run_id LIMIT ").push_bind(limit);
    query
}

/// When the next waiting run is due.
pub(crate) const NEXT_DUE: &str = "SELECT not_before FROM run INDEXED BY run_due WHERE state = 'waiting' AND not_before > ? \
     ORDER BY not_before LIMIT 1";

pub(crate) const REQUESTS: &str =
    "SELECT request_id, at, body FROM request WHERE run_id = ? ORDER BY at, request_id";

/// A stored request.
pub(crate) fn request(run: RunId, row: &SqliteRow) -> Result<Request, StoreError> {
    let read = || -> Result<Request, sqlx::Error> {
        let damaged = |message: String| sqlx::Error::Decode(message.into());
        let (by, ask) = serde_json::from_str(row.try_get(2)?).map_err(|error| damaged(error.to_string()))?;
        let id = row.try_get::<&str, _>(0)?.parse().map_err(|_| damaged("its id is not a UUID".into()))?;
        Ok(Request { id, at: timestamp(row.try_get(1)?), by, ask })
    };
    read().map_err(|error| StoreError::Corrupt {
        place: format!("a request to run {run}"),
        message: error.to_string(),
    })
}

const TICKET_COLUMNS: &str = "SELECT lock, number, run_id, node, capacity, asked_at, held_at FROM ticket";

/// The tickets of one run, or of all.
pub(crate) fn tickets_query(run: Option<RunId>) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(TICKET_COLUMNS);
    if let Some(run) = run {
        query.push(" WHERE run_id = ").push_bind(run.to_string());
    }
    query.push(" ORDER BY lock, number");
    query
}

/// A stored ticket.
pub(crate) fn ticket(row: &SqliteRow) -> Result<Ticket, StoreError> {
    let read = || -> Result<Ticket, sqlx::Error> {
        let damaged = |message: String| sqlx::Error::Decode(message.into());
        let node: &str = row.try_get(3)?;
        let run: &str = row.try_get(2)?;
        Ok(Ticket {
            lock: Text::from(row.try_get::<&str, _>(0)?),
            number: row.try_get(1)?,
            run: run.parse().map_err(|_| damaged(format!("`{run}` is not a run id")))?,
            node: if node.is_empty() { None } else { Some(node.parse().map_err(damaged)?) },
            capacity: u32::try_from(row.try_get::<i64, _>(4)?).unwrap_or(u32::MAX),
            asked_at: timestamp(row.try_get(5)?),
            held_since: row.try_get::<Option<i64>, _>(6)?.map(timestamp),
        })
    };
    read().map_err(|error| StoreError::Corrupt { place: "a lock".into(), message: error.to_string() })
}
