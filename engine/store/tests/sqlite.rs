//! What only the store on disk promises: durability, one owner, readers beside it, group commit, tamper evidence, and what
//! happens when the disk fails.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::fs;
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use common::*;
use farrier_model::{RunState, Value};
use farrier_store::{Claim, OpenOptions, RunFilter, SqliteStore, Store, StoreError, Violation, fsck};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, Row, SqliteConnection, raw_sql};

async fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(dir, OpenOptions::default()).await.unwrap()
}

/// A connection past the store, as an attacker or a curious person has one.
async fn raw(dir: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(dir.join("farrier.db")).connect().await.unwrap()
}

async fn count(connection: &mut SqliteConnection, sql: &'static str) -> i64 {
    sqlx::query(sql).fetch_one(connection).await.unwrap().get(0)
}

async fn create_and_claim(store: &SqliteStore, number: u16) -> Claim {
    store.create_run(new_run(number)).await.unwrap();
    store.claim(run_id(number), "host:1").await.unwrap()
}

/// Does what a killed process does: everything stops at once, nothing is closed.
fn run_and_die<T>(work: impl Future<Output = T>) -> T {
    // Dropping a runtime of one thread drops the writer wherever it stands.
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

/// Overwrites the page that `table` begins with.
fn damage(dir: &Path, table: &'static str) {
    let root = run_and_die(async {
        let mut connection = raw(dir).await;
        let root: i64 = sqlx::query("SELECT rootpage FROM sqlite_master WHERE name = ?")
            .bind(table)
            .fetch_one(&mut connection)
            .await
            .unwrap()
            .get(0);
        connection.close().await.unwrap();
        root
    });
    let mut file = fs::File::options().write(true).open(dir.join("farrier.db")).unwrap();
    file.seek(SeekFrom::Start((root as u64 - 1) * 4096)).unwrap();
    file.write_all(&[0xff; 4096]).unwrap();
}

/// Guards T7: two daemons on one directory would both think that they own every run. Mechanism: flock.
#[tokio::test]
async fn the_second_owner_is_refused_and_readers_are_not() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let claim = create_and_claim(&store, 1).await;
    let busy = StoreError::Busy { dir: dir.path().to_path_buf(), pid: Some(std::process::id()) };
    assert_eq!(SqliteStore::open(dir.path(), OpenOptions::default()).await.unwrap_err(), busy);

    let reader = SqliteStore::open(dir.path(), OpenOptions::read_only()).await.unwrap();
    assert_eq!(reader.journal(run_id(1)).await.unwrap().len(), 2);
    store.append(&claim, vec![succeeded("a", 1)], None).await.unwrap();
    assert_eq!(reader.journal(run_id(1)).await.unwrap().len(), 3);
    assert_eq!(
        reader.runs(RunFilter::default()).await.unwrap(),
        store.runs(RunFilter::default()).await.unwrap()
    );
    assert_eq!(reader.generation(), store.generation());
    assert!(fsck(&reader).await.unwrap().is_clean());
    let refused = reader.append(&claim, vec![succeeded("b", 1)], None).await.unwrap_err();
    assert_eq!(refused, StoreError::ReadOnly);
    assert_eq!(reader.create_run(new_run(2)).await.unwrap_err(), StoreError::ReadOnly);
    reader.close().await;

    store.close().await;
    let reader = SqliteStore::open(dir.path(), OpenOptions::read_only()).await.unwrap();
    assert_eq!(reader.journal(run_id(1)).await.unwrap().len(), 3, "nobody owns it now");
}

#[tokio::test]
async fn a_reader_needs_something_to_read() {
    let dir = tempfile::tempdir().unwrap();
    let missing = StoreError::Missing { dir: dir.path().to_path_buf() };
    assert_eq!(SqliteStore::open(dir.path(), OpenOptions::read_only()).await.unwrap_err(), missing);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "looking makes nothing");
    fs::write(dir.path().join("farrier.db"), "").unwrap();
    let refused = SqliteStore::open(dir.path(), OpenOptions::read_only()).await.unwrap_err();
    assert_eq!(refused, missing, "its first owner died before it made the tables");
}

/// Guards section 11: every start is a new generation. Mechanism: the cluster row, in the transaction that begins it.
#[tokio::test]
async fn each_start_is_a_generation() {
    let dir = tempfile::tempdir().unwrap();
    for generation in 1..=3 {
        let store = open(dir.path()).await;
        assert_eq!(store.generation(), generation);
        store.close().await;
    }
}

/// Guards K20 and T17: an older program must not write what a newer one has changed. Mechanism: the migration table.
#[tokio::test]
async fn a_newer_schema_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    open(dir.path()).await.close().await;
    let mut connection = raw(dir.path()).await;
    raw_sql("INSERT INTO migration (version, applied_at) VALUES (999, 0)")
        .execute(&mut connection)
        .await
        .unwrap();
    connection.close().await.unwrap();
    for options in [OpenOptions::default(), OpenOptions::read_only()] {
        let refused = SqliteStore::open(dir.path(), options).await.unwrap_err();
        assert!(matches!(refused, StoreError::NewerSchema { found: 999, .. }), "{refused}");
    }
}

/// Guards G1 and section 11: after a kill everything acknowledged is there and leases do not delay the takeover.
#[test]
fn a_killed_owner_leaves_everything_and_no_lease() {
    let dir = tempfile::tempdir().unwrap();
    let entries = run_and_die(async {
        let store = open(dir.path()).await;
        let claim = create_and_claim(&store, 1).await;
        store.append(&claim, vec![intent("a", 1), large("b", 200_000)], None).await.unwrap()
    });
    run_and_die(async {
        let store = open(dir.path()).await;
        assert_eq!(store.journal(run_id(1)).await.unwrap()[2..], entries);
        assert_eq!(store.claim(run_id(1), "host:2").await.unwrap().epoch, 2);
        assert!(fsck(&store).await.unwrap().is_clean());
    });
}

/// Guards "dropping the last handle is a clean stop too": what is queued is done, and the directory is free afterwards.
#[tokio::test]
async fn dropping_every_handle_finishes_the_work() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let claim = create_and_claim(&store, 1).await;
    let handle = store.clone();
    drop(store);
    handle.append(&claim, vec![succeeded("a", 1)], None).await.unwrap();
    drop(handle);
    let again = loop {
        match SqliteStore::open(dir.path(), OpenOptions::default()).await {
            Err(StoreError::Busy { .. }) => tokio::task::yield_now().await,
            opened => break opened.unwrap(),
        }
    };
    assert_eq!(again.journal(run_id(1)).await.unwrap().len(), 3);
    let other = again.clone();
    again.close().await;
    assert_eq!(other.release(&claim).await.unwrap_err(), StoreError::Closed);
    assert_eq!(other.run(run_id(1)).await.unwrap_err(), StoreError::Closed);
}

/// Guards the speed that journaling every step rests on. Mechanism: the writer takes everything that waits into one commit.
#[tokio::test]
async fn fifty_runs_share_a_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let mut claims = Vec::new();
    for number in 0..50 {
        claims.push(create_and_claim(&store, number).await);
    }
    // One of them breaks a rule; it alone is refused.
    store.append(&claims[20], vec![succeeded("step1", 1)], None).await.unwrap();
    for (round, most) in [(0, 2), (1, 52)] {
        let before = store.counts();
        let mut tasks = tokio::task::JoinSet::new();
        for claim in claims.clone() {
            let store = store.clone();
            let events = vec![intent(&format!("step{round}"), 1), succeeded(&format!("step{round}"), 1)];
            tasks.spawn(async move { (claim, store.append(&claim, events, None).await) });
        }
        let mut appended = 0;
        for (claim, answer) in tasks.join_all().await {
            match answer {
                Ok(entries) => appended += entries.len() as u64,
                Err(error) => {
                    assert!(matches!(error, StoreError::Refused { .. }), "{error}");
                    assert_eq!((round, claim), (1, claims[20]));
                }
            }
        }
        let after = store.counts();
        assert_eq!(appended, 100 - 2 * round);
        assert_eq!(after.entries - before.entries, appended);
        assert!(after.commits - before.commits <= most, "{before:?} {after:?}");
    }
    assert!(fsck(&store).await.unwrap().is_clean());
}

/// Several batches of one run in one group get their numbers in the order they were sent.
#[tokio::test]
async fn batches_of_one_run_keep_their_order_in_a_group() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let claim = create_and_claim(&store, 1).await;
    let mut tasks = Vec::new();
    for number in 0..200 {
        let store = store.clone();
        let event = match number {
            199 => finished(RunState::Failed),
            _ if number % 7 == 0 => parked(&format!("reason {number}")),
            _ => succeeded(&format!("s{number}"), 1),
        };
        tasks.push(tokio::spawn(async move { store.append(&claim, vec![event], None).await.unwrap() }));
    }
    let mut sent = Vec::new();
    for task in tasks {
        sent.extend(task.await.unwrap());
    }
    assert_eq!(store.journal(run_id(1)).await.unwrap()[2..], sent);
    let row = store.run(run_id(1)).await.unwrap().unwrap();
    assert_eq!((row.state, row.seq, row.owner), (RunState::Failed, 202, None));
    assert!(fsck(&store).await.unwrap().is_clean());
}

/// Guards the size of the store under periodic runs: equal large outputs are stored once, compressed.
#[tokio::test]
async fn equal_large_bodies_are_stored_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for number in 0..20 {
        let claim = create_and_claim(&store, number).await;
        store.append(&claim, vec![large("table", 1_000_000), succeeded("small", 1)], None).await.unwrap();
        if number == 19 {
            store.append(&claim, vec![large("other", 500_000)], None).await.unwrap();
        }
    }
    let mut connection = raw(dir.path()).await;
    assert_eq!(count(&mut connection, "SELECT count(*) FROM blob").await, 2);
    assert_eq!(count(&mut connection, "SELECT count(*) FROM journal WHERE blob IS NOT NULL").await, 21);
    assert_eq!(count(&mut connection, "SELECT count(*) FROM journal WHERE length(body) > 16384").await, 0);
    assert!(count(&mut connection, "SELECT sum(length(zstd)) FROM blob").await < 10_000);
    let journal = store.journal(run_id(3)).await.unwrap();
    assert_eq!(journal[2].event, large("table", 1_000_000));
}

/// Guards G8 and T43: the journal is append-only for whoever uses the database. Mechanism: triggers.
#[tokio::test]
async fn the_database_refuses_to_change_the_journal() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    create_and_claim(&store, 1).await;
    let mut connection = raw(dir.path()).await;
    for sql in
        ["UPDATE journal SET body = '{}'", "DELETE FROM journal", "UPDATE journal SET at = 0 WHERE seq = 2"]
    {
        let refused = raw_sql(sql).execute(&mut connection).await.unwrap_err().to_string();
        assert!(refused.contains("the journal is append-only"), "{refused}");
    }
    assert!(fsck(&store).await.unwrap().is_clean());
}

/// Guards T43: whoever gets past the triggers is found out. Mechanism: hash chain, content addresses, and the run's row.
#[tokio::test]
async fn tampering_is_found_by_fsck() {
    /// The attack, and the invariants with the entries that tell of it.
    type Found = &'static [(&'static str, Option<i64>)];
    let cases: [(&str, Found); 10] = [
        ("UPDATE journal SET body = replace(body, '7', '8') WHERE seq = 3", &[("chain", Some(3))]),
        ("UPDATE journal SET at = at + 1 WHERE seq = 4", &[("chain", Some(4))]),
        ("UPDATE journal SET entry_id = x'00' WHERE seq = 2", &[("chain", Some(2))]),
        ("UPDATE journal SET body = '{' WHERE seq = 3", &[("chain", Some(3)), ("body", Some(3))]),
        ("UPDATE journal SET kind = 'failed' WHERE seq = 3", &[("chain", Some(3)), ("body", Some(3))]),
        ("DELETE FROM journal WHERE seq = 3", &[("seq", Some(4)), ("chain", Some(4))]),
        ("DELETE FROM journal WHERE seq = 5", &[("chain", None)]),
        ("UPDATE blob SET zstd = x'28b52ffd2000010000'", &[("blob", None), ("body", Some(5))]),
        ("UPDATE run SET state = 'failed'", &[("I8", None)]),
        ("UPDATE run SET epoch = 5", &[("row", None)]),
    ];
    for (sql, expected) in cases {
        let dir = tempfile::tempdir().unwrap();
        let store = open(dir.path()).await;
        let claim = create_and_claim(&store, 1).await;
        store
            .append(&claim, vec![succeeded("a", 1), succeeded("b", 1), large("c", 60_000)], None)
            .await
            .unwrap();
        create_and_claim(&store, 2).await;
        assert!(fsck(&store).await.unwrap().is_clean());
        store.close().await;

        let mut connection = raw(dir.path()).await;
        let only = match (sql.contains("blob"), sql.contains("WHERE")) {
            (true, _) => String::new(), // a blob belongs to no run
            (_, true) => format!(" AND run_id = '{}'", run_id(1)),
            (_, false) => format!(" WHERE run_id = '{}'", run_id(1)),
        };
        let attack = format!("DROP TRIGGER journal_no_update; DROP TRIGGER journal_no_delete; {sql}{only}");
        raw_sql(AssertSqlSafe(attack)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();

        let store = SqliteStore::open(dir.path(), OpenOptions::read_only()).await.unwrap();
        let report = fsck(&store).await.unwrap();
        let found: Vec<_> =
            report.violations.iter().map(|violation| (violation.invariant, violation.seq)).collect();
        assert_eq!(found, expected, "{sql}: {:?}", report.violations);
        let named = |violation: &Violation| violation.invariant == "blob" || violation.run == Some(run_id(1));
        assert!(report.violations.iter().all(named), "{:?}", report.violations);
        assert_eq!(report.runs, 2, "{sql}: the other run is still read");
    }
}

/// A damaged journal is refused as a whole, naming the place, and never read around.
#[tokio::test]
async fn a_journal_with_a_hole_is_not_replayed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let claim = create_and_claim(&store, 1).await;
    store.append(&claim, vec![succeeded("a", 1), succeeded("b", 1)], None).await.unwrap();
    let mut connection = raw(dir.path()).await;
    raw_sql("DROP TRIGGER journal_no_delete; DELETE FROM journal WHERE seq = 3")
        .execute(&mut connection)
        .await
        .unwrap();
    let refused = store.journal(run_id(1)).await.unwrap_err().to_string();
    assert_eq!(refused, format!("run {} entry 3 is damaged: it is missing", run_id(1)));
}

/// Guards T5: after the database failed nobody knows what the disk holds, so nothing is written any more. Mechanism: the
/// writer's fatal state.
#[test]
fn after_a_fatal_error_every_write_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    run_and_die(async {
        let store = open(dir.path()).await;
        create_and_claim(&store, 1).await;
        store.close().await;
    });
    damage(dir.path(), "journal");
    run_and_die(async {
        let store = open(dir.path()).await;
        let fatal = store.create_run(new_run(2)).await.unwrap_err();
        assert!(
            matches!(&fatal, StoreError::Fatal { file, .. } if *file == dir.path().join("farrier.db")),
            "{fatal}"
        );
        assert!(fatal.is_fatal());
        // This one would have touched no damaged page.
        assert_eq!(
            store.put_bundle(farrier_model::Digest::of(""), "r", &[].into()).await.unwrap_err(),
            fatal
        );
        assert_eq!(store.heartbeat(&[]).await.unwrap_err(), fatal);
        assert_eq!(store.counts().commits, 0);
        let report = fsck(&store).await;
        assert!(!report.is_ok_and(|report| report.is_clean()));
        store.close().await;
    });
    // That was no clean stop, so the next start looks at the file.
    let refused = run_and_die(SqliteStore::open(dir.path(), OpenOptions::default())).unwrap_err();
    let file = dir.path().join("farrier.db").display().to_string();
    assert!(matches!(&refused, StoreError::Corrupt { place, .. } if place.contains(&file)), "{refused}");
}

/// Guards T8: a start after an unclean stop checks the file and names it. Mechanism: quick_check.
#[test]
fn a_damaged_file_is_found_at_an_unclean_start() {
    let dir = tempfile::tempdir().unwrap();
    run_and_die(async {
        let store = open(dir.path()).await;
        create_and_claim(&store, 1).await;
    });
    // Empties the log, so that the damage is not hidden by it.
    run_and_die(async {
        let mut connection = raw(dir.path()).await;
        raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
    });
    damage(dir.path(), "bundle");
    let refused = run_and_die(SqliteStore::open(dir.path(), OpenOptions::default())).unwrap_err();
    assert!(
        matches!(&refused, StoreError::Corrupt { place, .. } if place.contains("farrier.db")),
        "{refused}"
    );
}

#[tokio::test]
async fn a_file_that_is_no_database_is_named() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("farrier.db"), "not a database, but long enough to look at it".repeat(100))
        .unwrap();
    for options in [OpenOptions::default(), OpenOptions::read_only()] {
        let refused = SqliteStore::open(dir.path(), options).await.unwrap_err();
        assert!(
            matches!(&refused, StoreError::Corrupt { place, .. } if place.contains("farrier.db")),
            "{refused}"
        );
    }
}

/// Guards the fence in the database itself: a run's row that changed behind the writer's back stops the write.
#[tokio::test]
async fn a_row_changed_by_hand_is_noticed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let claim = create_and_claim(&store, 1).await;
    store.append(&claim, vec![succeeded("a", 1)], None).await.unwrap();
    let mut connection = raw(dir.path()).await;
    raw_sql("UPDATE run SET owner = NULL").execute(&mut connection).await.unwrap();
    let fenced = StoreError::Fenced { run: run_id(1), epoch: 1 };
    assert_eq!(store.append(&claim, vec![succeeded("b", 1)], None).await.unwrap_err(), fenced);
    raw_sql("UPDATE run SET owner = 'host:1', epoch = 2").execute(&mut connection).await.unwrap();
    assert_eq!(store.append(&claim, vec![succeeded("b", 1)], None).await.unwrap_err(), fenced);
    assert_eq!(store.journal(run_id(1)).await.unwrap().len(), 3);
}

/// A transaction of thousands of rows, in every size of statement.
#[tokio::test]
async fn large_batches_keep_every_row() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let claim = create_and_claim(&store, 1).await;
    let mut total = 2;
    for size in [1, 7, 8, 9, 63, 64, 65, 73, 3_000] {
        let events = (0..size).map(|part| succeeded(&format!("s{size}_{part}"), 1)).collect();
        assert_eq!(store.append(&claim, events, None).await.unwrap().len(), size);
        total += size;
        assert_eq!(store.journal(run_id(1)).await.unwrap().len(), total);
    }
    assert_eq!(store.journal(run_id(1)).await.unwrap()[2].event, succeeded("s1_0", 1));
    assert!(fsck(&store).await.unwrap().is_clean());
    let outputs = Value::Null;
    let end = farrier_model::Event::Finished { state: RunState::Succeeded, outputs, failure: None };
    store.append(&claim, vec![end], None).await.unwrap();
    assert_eq!(fsck(&store).await.unwrap().succeeded, 1);
}
