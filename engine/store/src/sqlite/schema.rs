//! Tables, and how a database gets from one version to the next.
//!
//! Migrations are numbered and go forward only; a released one is never edited. Types are those that SQLite and PostgreSQL
//! share: BIGINT for numbers, milliseconds and flags, TEXT for names and JSON, BLOB (there `bytea`) for bytes.

use sqlx::{Row as _, SqliteConnection, raw_sql};

/// Every version's script, oldest first; the first makes version 1.
const MIGRATIONS: [&str; 3] = [V1, V2, V3];

/// The version that this program reads and writes.
pub(crate) const VERSION: i64 = MIGRATIONS.len() as i64;

const V1: &str = "
CREATE TABLE cluster (
    one        BIGINT PRIMARY KEY CHECK (one = 1),
    id         TEXT   NOT NULL,
    generation BIGINT NOT NULL
);

-- One row for each start of an owning process. The latest without stopped_at means that the last stop was unclean.
CREATE TABLE node (
    node_id    TEXT   PRIMARY KEY,
    generation BIGINT NOT NULL UNIQUE,
    pid        BIGINT NOT NULL,
    version    TEXT   NOT NULL,
    started_at BIGINT NOT NULL,
    stopped_at BIGINT
);

CREATE TABLE bundle (
    digest  TEXT   PRIMARY KEY,
    root    TEXT   NOT NULL,
    sources BLOB   NOT NULL,
    at      BIGINT NOT NULL
);

CREATE TABLE run (
    run_id      TEXT   PRIMARY KEY,
    runbook     TEXT   NOT NULL,
    bundle      TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    title       TEXT   NOT NULL,
    parent_id   TEXT,
    state       TEXT   NOT NULL CHECK (state IN ('queued', 'running', 'waiting', 'undoing', 'succeeded', 'degraded',
                                                 'failed', 'undone', 'cancelled', 'parked')),
    reason      TEXT,
    owner       TEXT,
    generation  BIGINT NOT NULL,
    epoch       BIGINT NOT NULL,
    lease_until BIGINT,
    seq         BIGINT NOT NULL,
    head        BLOB   NOT NULL,
    created_at  BIGINT NOT NULL,
    updated_at  BIGINT NOT NULL,
    finished_at BIGINT
);
CREATE INDEX run_newest  ON run (created_at, run_id);
CREATE INDEX run_state   ON run (state, created_at);
CREATE INDEX run_runbook ON run (runbook, created_at);
CREATE INDEX run_parent  ON run (parent_id) WHERE parent_id IS NOT NULL;

CREATE TABLE blob (
    digest  TEXT   PRIMARY KEY,
    raw_len BIGINT NOT NULL,
    zstd    BLOB   NOT NULL
);

CREATE TABLE journal (
    run_id   TEXT   NOT NULL REFERENCES run (run_id),
    seq      BIGINT NOT NULL,
    epoch    BIGINT NOT NULL,
    at       BIGINT NOT NULL,
    node     TEXT,
    attempt  BIGINT,
    kind     TEXT   NOT NULL,
    body     TEXT,
    blob     TEXT   REFERENCES blob (digest),
    entry_id BLOB   NOT NULL,
    part     BIGINT NOT NULL,
    hash     BLOB   NOT NULL,
    PRIMARY KEY (run_id, seq)
);
-- A batch that is sent again is found again.
CREATE UNIQUE INDEX once_entry  ON journal (run_id, entry_id, part);
-- The database itself refuses a second success, and a second intent unless it is another attempt.
CREATE UNIQUE INDEX once_ok     ON journal (run_id, node) WHERE kind = 'succeeded';
CREATE UNIQUE INDEX once_intent ON journal (run_id, node, kind, attempt) WHERE kind IN ('intent', 'undo_intent');

CREATE TRIGGER journal_no_update BEFORE UPDATE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE TRIGGER journal_no_delete BEFORE DELETE ON journal
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
";

/// Waiting runs, requests, locks, saved plans, and counting across runs.
const V2: &str = "
ALTER TABLE run ADD COLUMN not_before BIGINT;
ALTER TABLE run ADD COLUMN live_key   TEXT;
CREATE INDEX run_due ON run (not_before, run_id) WHERE state = 'waiting';
-- The database itself refuses a second live run with the same key.
CREATE UNIQUE INDEX run_live ON run (runbook, live_key) WHERE live_key IS NOT NULL AND finished_at IS NULL;

CREATE TABLE request (
    request_id TEXT   PRIMARY KEY,
    run_id     TEXT   NOT NULL REFERENCES run (run_id),
    at         BIGINT NOT NULL,
    body       TEXT   NOT NULL
);
CREATE INDEX request_run ON request (run_id, at);

CREATE TABLE lock (
    name TEXT   PRIMARY KEY,
    last BIGINT NOT NULL
);
CREATE TABLE ticket (
    lock     TEXT   NOT NULL,
    number   BIGINT NOT NULL,
    run_id   TEXT   NOT NULL REFERENCES run (run_id),
    node     TEXT   NOT NULL,
    capacity BIGINT NOT NULL,
    asked_at BIGINT NOT NULL,
    held_at  BIGINT,
    told     BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (lock, number)
);
CREATE UNIQUE INDEX ticket_run ON ticket (run_id, lock, node);

CREATE TABLE plan_use (
    digest TEXT   PRIMARY KEY,
    run_id TEXT   NOT NULL,
    at     BIGINT NOT NULL
);

CREATE INDEX journal_intent ON journal (node, at) WHERE kind = 'intent';
";

/// Taking runs away after their time.
const V3: &str = "
-- Marks the run that is being taken away, within the one transaction that does it.
CREATE TABLE retention (
    run_id TEXT PRIMARY KEY
);
DROP TRIGGER journal_no_delete;
CREATE TRIGGER journal_no_delete BEFORE DELETE ON journal
WHEN NOT EXISTS (SELECT 1 FROM retention WHERE run_id = OLD.run_id)
BEGIN SELECT RAISE(ABORT, 'the journal is append-only'); END;
CREATE INDEX journal_blob ON journal (blob) WHERE blob IS NOT NULL;
";

/// The version of an opened database; 0 for an empty one.
pub(crate) async fn version(connection: &mut SqliteConnection) -> Result<i64, sqlx::Error> {
    let tables =
        sqlx::query("SELECT count(*) FROM sqlite_master WHERE type = 'table' AND name = 'migration'")
            .fetch_one(&mut *connection)
            .await?;
    if tables.try_get::<i64, _>(0)? == 0 {
        return Ok(0);
    }
    let row = sqlx::query("SELECT coalesce(max(version), 0) FROM migration").fetch_one(connection).await?;
    row.try_get(0)
}

/// Brings a database from `found` to [`VERSION`]. Each step and its version row are one transaction, so an interrupted
/// upgrade goes on where it stopped.
pub(crate) async fn migrate(
    connection: &mut SqliteConnection,
    found: i64,
    now: i64,
) -> Result<(), sqlx::Error> {
    for (script, version) in MIGRATIONS.into_iter().zip(1..).filter(|(_, version)| *version > found) {
        raw_sql("BEGIN IMMEDIATE").execute(&mut *connection).await?;
        let applied = apply(connection, script, version, now).await;
        let end = if applied.is_ok() { "COMMIT" } else { "ROLLBACK" };
        let ended = raw_sql(end).execute(&mut *connection).await;
        applied?;
        ended?;
        tracing::info!(version, "store schema brought up to date");
    }
    Ok(())
}

async fn apply(
    connection: &mut SqliteConnection,
    script: &'static str,
    version: i64,
    now: i64,
) -> Result<(), sqlx::Error> {
    raw_sql("CREATE TABLE IF NOT EXISTS migration (version BIGINT PRIMARY KEY, applied_at BIGINT NOT NULL)")
        .execute(&mut *connection)
        .await?;
    raw_sql(script).execute(&mut *connection).await?;
    sqlx::query("INSERT INTO migration (version, applied_at) VALUES (?, ?)")
        .bind(version)
        .bind(now)
        .execute(connection)
        .await?;
    Ok(())
}
