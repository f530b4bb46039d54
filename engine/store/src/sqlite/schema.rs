//! Tables, and how a database gets from one version to the next.
//!
//! Migrations are numbered and go forward only; a released one is never edited. Types are those that SQLite and PostgreSQL
//! share: BIGINT for numbers, milliseconds and flags, TEXT for names and JSON, BLOB (there `bytea`) for bytes.

use sqlx::{Row as _, SqliteConnection, raw_sql};

/// Every version's script, oldest first; the first makes version 1.
const MIGRATIONS: [&str; 7] = [V1, V2, V3, V4, V5, V6, V7];

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

/// Schedules, what became of their due times, and alarms.
const V4: &str = "
CREATE TABLE schedule (
    schedule_id  TEXT   PRIMARY KEY,
    environment  TEXT   NOT NULL,
    runbook      TEXT   NOT NULL,
    spec         TEXT   NOT NULL,
    spec_version BIGINT NOT NULL,
    since        BIGINT NOT NULL,
    cursor       BIGINT NOT NULL,
    next_due     BIGINT,
    -- Records up to this due time were taken away with their age.
    kept_after   BIGINT NOT NULL,
    awake_since  BIGINT NOT NULL,
    paused_by    TEXT,
    paused_why   TEXT,
    paused_at    BIGINT,
    retired_at   BIGINT
);
CREATE INDEX schedule_due ON schedule (next_due) WHERE retired_at IS NULL AND next_due IS NOT NULL;

-- The database itself refuses a second decision on a due time.
CREATE TABLE fire (
    schedule_id  TEXT   NOT NULL REFERENCES schedule (schedule_id),
    nominal      BIGINT NOT NULL,
    since        BIGINT,
    decision     TEXT   NOT NULL CHECK (decision IN ('run', 'skipped', 'coalesced')),
    reason       TEXT,
    run_id       TEXT,
    into_nominal BIGINT,
    -- Its run was taken away after its time.
    run_gone     BIGINT NOT NULL DEFAULT 0,
    spec_version BIGINT NOT NULL,
    tzdb         TEXT   NOT NULL,
    decided_at   BIGINT NOT NULL,
    PRIMARY KEY (schedule_id, nominal)
);
CREATE INDEX fire_run ON fire (run_id) WHERE decision = 'run';

-- A run of a schedule; held: the due time of one that begins when those before it have ended.
ALTER TABLE run ADD COLUMN schedule_id TEXT;
ALTER TABLE run ADD COLUMN held        BIGINT;
CREATE INDEX run_schedule ON run (schedule_id) WHERE schedule_id IS NOT NULL AND finished_at IS NULL;

CREATE TABLE clock (
    one     BIGINT PRIMARY KEY CHECK (one = 1),
    seen_at BIGINT NOT NULL
);

CREATE TABLE alarm (
    kind    TEXT   NOT NULL,
    subject TEXT   NOT NULL,
    message TEXT   NOT NULL,
    since   BIGINT NOT NULL,
    PRIMARY KEY (kind, subject)
);
";

/// Alerts: what came in, what it belongs to, and what is counted.
const V5: &str = "
-- One row for each piece of news and runbook, however often it was sent.
CREATE TABLE event (
    dedup       TEXT   NOT NULL,
    environment TEXT   NOT NULL,
    runbook     TEXT   NOT NULL,
    receiver    TEXT   NOT NULL,
    alert       TEXT   NOT NULL,
    fingerprint TEXT   NOT NULL,
    status      TEXT   NOT NULL CHECK (status IN ('firing', 'resolved')),
    starts_at   BIGINT,
    ends_at     BIGINT,
    body        TEXT   NOT NULL,
    first_at    BIGINT NOT NULL,
    last_at     BIGINT NOT NULL,
    seen        BIGINT NOT NULL,
    decision    TEXT   NOT NULL,
    why         TEXT   NOT NULL,
    incident_id TEXT,
    PRIMARY KEY (dedup, environment, runbook)
);
CREATE INDEX event_newest   ON event (last_at, dedup);
CREATE INDEX event_incident ON event (incident_id, first_at) WHERE incident_id IS NOT NULL;
CREATE INDEX event_resolved ON event (fingerprint, ends_at) WHERE status = 'resolved';

CREATE TABLE incident (
    incident_id TEXT   PRIMARY KEY,
    environment TEXT   NOT NULL,
    runbook     TEXT   NOT NULL,
    key         TEXT   NOT NULL,
    alert       TEXT   NOT NULL,
    receiver    TEXT   NOT NULL,
    opened_at   BIGINT NOT NULL,
    last_event  BIGINT NOT NULL,
    resolved_at BIGINT,
    closed_at   BIGINT,
    run_id      TEXT,
    runs        BIGINT NOT NULL,
    held        TEXT,
    held_until  BIGINT,
    held_why    TEXT,
    priority    BIGINT NOT NULL,
    -- What a run of it would be, and the texts that it needs.
    wish        TEXT,
    bundle      TEXT
);
-- The database itself refuses a second open incident with the same identity.
CREATE UNIQUE INDEX incident_open ON incident (environment, runbook, key) WHERE closed_at IS NULL;
CREATE INDEX incident_newest ON incident (opened_at, incident_id);
CREATE INDEX incident_held   ON incident (priority, opened_at) WHERE held IS NOT NULL;
CREATE INDEX incident_of_run ON incident (run_id) WHERE run_id IS NOT NULL;

CREATE TABLE incident_alert (
    incident_id TEXT   NOT NULL REFERENCES incident (incident_id),
    fingerprint TEXT   NOT NULL,
    firing      BIGINT NOT NULL,
    starts_at   BIGINT,
    PRIMARY KEY (incident_id, fingerprint)
);

-- Every run that an alert has started.
CREATE TABLE incident_run (
    run_id      TEXT   PRIMARY KEY,
    incident_id TEXT   NOT NULL REFERENCES incident (incident_id),
    environment TEXT   NOT NULL,
    runbook     TEXT   NOT NULL,
    key         TEXT   NOT NULL,
    at          BIGINT NOT NULL,
    ended_at    BIGINT,
    state       TEXT
);
CREATE INDEX incident_run_incident ON incident_run (incident_id, at);
CREATE INDEX incident_run_alive ON incident_run (environment, runbook) WHERE ended_at IS NULL;
CREATE INDEX incident_run_ended ON incident_run (environment, runbook, ended_at) WHERE ended_at IS NOT NULL;
CREATE INDEX incident_run_key ON incident_run (environment, runbook, key, at);
CREATE INDEX incident_run_at  ON incident_run (environment, runbook, at);

-- What is counted for a runbook: tokens, and whether its fuse has blown.
CREATE TABLE gauge (
    environment TEXT   NOT NULL,
    runbook     TEXT   NOT NULL,
    tokens      BIGINT,
    counted_at  BIGINT,
    blown_at    BIGINT,
    blown_why   TEXT,
    mended_at   BIGINT,
    mended_by   TEXT,
    mended_why  TEXT,
    PRIMARY KEY (environment, runbook)
);
";

/// Who did what through the service.
const V6: &str = "
CREATE TABLE audit (
    audit_id TEXT   PRIMARY KEY,
    at       BIGINT NOT NULL,
    who      TEXT   NOT NULL,
    via      TEXT   NOT NULL,
    what     TEXT   NOT NULL,
    object   TEXT   NOT NULL,
    outcome  TEXT   NOT NULL,
    detail   TEXT   NOT NULL
);
CREATE INDEX audit_newest ON audit (at, audit_id);
CREATE INDEX audit_object ON audit (object, at);
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit
BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
";

/// What people are to hear.
const V7: &str = "
CREATE TABLE outbox (
    notice_id   TEXT   PRIMARY KEY,
    run_id      TEXT,
    environment TEXT   NOT NULL,
    recipient   TEXT   NOT NULL,
    occasion    TEXT   NOT NULL,
    subject     TEXT   NOT NULL,
    body        TEXT   NOT NULL,
    at          BIGINT NOT NULL,
    not_before  BIGINT NOT NULL,
    attempts    BIGINT NOT NULL,
    sent_at     BIGINT,
    trouble     TEXT
);
CREATE INDEX outbox_due ON outbox (not_before) WHERE sent_at IS NULL;
CREATE INDEX outbox_run ON outbox (run_id) WHERE run_id IS NOT NULL;
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

/// Brings a database from `found` to [`VERSION`], in one transaction: one that is interrupted leaves it as it was, and nobody
/// meets a new database that is half made.
pub(crate) async fn migrate(
    connection: &mut SqliteConnection,
    found: i64,
    now: i64,
) -> Result<(), sqlx::Error> {
    if found >= VERSION {
        return Ok(());
    }
    raw_sql("BEGIN IMMEDIATE").execute(&mut *connection).await?;
    let applied = apply_from(connection, found, now).await;
    let end = if applied.is_ok() { "COMMIT" } else { "ROLLBACK" };
    let ended = raw_sql(end).execute(&mut *connection).await;
    applied?;
    ended?;
    tracing::info!(found, version = VERSION, "store schema brought up to date");
    Ok(())
}

async fn apply_from(connection: &mut SqliteConnection, found: i64, now: i64) -> Result<(), sqlx::Error> {
    for (script, version) in MIGRATIONS.into_iter().zip(1..).filter(|(_, version)| *version > found) {
        apply(connection, script, version, now).await?;
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

#[cfg(test)]
mod tests {
    use std::path::Path;

    use farrier_model::event::Trigger;
    use farrier_model::{Digest, Event, RunId, RunState, Value};
    use sqlx::ConnectOptions as _;
    use sqlx::sqlite::SqliteConnectOptions;

    use super::*;
    use crate::body::{self, NO_LINK, Place, Row as Stored};
    use crate::{OpenOptions, RunFilter, SqliteStore, Store, fsck};

    async fn raw(dir: &Path) -> SqliteConnection {
        let file = super::super::directory::database(dir);
        SqliteConnectOptions::new().filename(file).create_if_missing(true).connect().await.unwrap()
    }

    /// A database as the first version left it, with one queued run and one that has ended.
    async fn version_one(dir: &Path) {
        let mut connection = raw(dir).await;
        apply(&mut connection, V1, 1, 0).await.unwrap();
        raw_sql("INSERT INTO cluster VALUES (1, 'id', 4)").execute(&mut connection).await.unwrap();
        for (number, state) in [(1_u8, RunState::Queued), (2, RunState::Succeeded)] {
            let (id, bundle) = (RunId::at(1_000, [number; 10]).to_string(), Digest::of(""));
            let created = Event::Created {
                runbook: "r".into(),
                bundle,
                environment: "e".into(),
                inputs: Value::Null,
                trigger: Trigger::Manual { by: "me".into() },
                plan: None,
            };
            let finished = Event::Finished { state, outputs: Value::Null, failure: None };
            let events = match state {
                RunState::Queued => vec![(0, created)],
                _ => vec![(0, created), (1, Event::Claimed { owner: "h:1".into() }), (1, finished)],
            };
            let mut link = NO_LINK;
            let mut lines = Vec::new();
            for ((epoch, event), seq) in events.iter().zip(1..) {
                let row = Stored::of(event).unwrap();
                let entry_id = [number, u8::try_from(seq).unwrap()];
                let place = Place { run: &id, seq, epoch: *epoch, at: 5, entry_id: &entry_id, part: 0 };
                link = body::link(&link, place, row.said());
                lines.push((seq, *epoch, row, entry_id, link));
            }
            sqlx::query(
                "INSERT INTO run (run_id, runbook, bundle, environment, title, state, generation, epoch, seq, head, created_at, \
                 updated_at, finished_at) VALUES (?, 'r', ?, 'e', 't', ?, 4, ?, ?, ?, 1, 5, ?)",
            )
            .bind(id.clone())
            .bind(bundle.to_string())
            .bind(state.name())
            .bind(lines.last().map(|line| line.1))
            .bind(lines.len() as i64)
            .bind(link.to_vec())
            .bind(state.is_final().then_some(5_i64))
            .execute(&mut connection)
            .await
            .unwrap();
            for (seq, epoch, row, entry_id, link) in lines {
                sqlx::query(
                    "INSERT INTO journal (run_id, seq, epoch, at, kind, body, entry_id, part, hash) \
                     VALUES (?, ?, ?, 5, ?, ?, ?, 0, ?)",
                )
                .bind(id.clone())
                .bind(seq)
                .bind(epoch)
                .bind(row.kind)
                .bind(row.body.clone())
                .bind(entry_id.to_vec())
                .bind(link.to_vec())
                .execute(&mut connection)
                .await
                .unwrap();
            }
        }
        sqlx::Connection::close(connection).await.unwrap();
    }

    async fn is_up_to_date(dir: &Path) {
        let store = SqliteStore::open(dir, OpenOptions::default()).await.unwrap();
        assert_eq!(store.generation(), 5);
        let runs = store.runs(RunFilter::default()).await.unwrap();
        let states: Vec<RunState> = runs.iter().map(|row| row.state).collect();
        assert_eq!(states, [RunState::Succeeded, RunState::Queued]);
        assert_eq!(store.journal(runs[0].id).await.unwrap().len(), 3);
        store.claim(runs[1].id, "h:2").await.unwrap();
        let report = fsck(&store).await.unwrap();
        assert!(report.is_clean() && report.runs == 2, "{:?}", report.violations);
        store.close().await;
        let mut connection = raw(dir).await;
        assert_eq!(version(&mut connection).await.unwrap(), VERSION);
    }

    /// Guards "migrations go forward only, and what was stored stays": a database of the first version works.
    #[tokio::test]
    async fn a_database_of_the_first_version_is_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        version_one(dir.path()).await;
        let refused = SqliteStore::open(dir.path(), OpenOptions::read_only()).await.unwrap_err();
        assert!(refused.to_string().contains("has schema version 1"), "{refused}");
        is_up_to_date(dir.path()).await;
    }

    /// Guards K20: nobody meets a database between two versions.
    #[tokio::test]
    async fn an_upgrade_happens_as_a_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        version_one(dir.path()).await;
        let mut connection = raw(dir.path()).await;
        // The last step meets a table of that name, after all others went well.
        raw_sql("CREATE TABLE outbox (stranger TEXT)").execute(&mut connection).await.unwrap();
        migrate(&mut connection, 1, 0).await.unwrap_err();
        let version: i64 = sqlx::query_scalar("SELECT max(version) FROM migration")
            .fetch_one(&mut connection)
            .await
            .unwrap();
        assert_eq!(version, 1);
        raw_sql("DROP TABLE outbox").execute(&mut connection).await.unwrap();
        sqlx::Connection::close(connection).await.unwrap();
        is_up_to_date(dir.path()).await;
    }

    /// Guards K20: a process that dies within an upgrade, from whichever version, leaves what was there before, from which the
    /// next one starts again.
    #[tokio::test]
    async fn an_interrupted_upgrade_goes_on() {
        for done in 1..VERSION {
            let dir = tempfile::tempdir().unwrap();
            version_one(dir.path()).await;
            let mut connection = raw(dir.path()).await;
            for (script, number) in MIGRATIONS.into_iter().zip(1..).filter(|(_, number)| *number > 1) {
                raw_sql("BEGIN IMMEDIATE").execute(&mut connection).await.unwrap();
                apply(&mut connection, script, number, 0).await.unwrap();
                if number > done {
                    // It dies here; what was not committed is gone.
                    break;
                }
                raw_sql("COMMIT").execute(&mut connection).await.unwrap();
            }
            // A dropped connection ends at some later moment.
            sqlx::Connection::close(connection).await.unwrap();
            is_up_to_date(dir.path()).await;
        }
    }
}
