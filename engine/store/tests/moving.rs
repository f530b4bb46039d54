//! Runs that leave a store: exported and imported elsewhere, or taken away after their time; and what can be read of a
//! damaged file. `fsck` is clean after each.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use common::*;
use farrier_model::{Digest, RunState, Text};
use farrier_store::{
    Keep, NewRun, OpenOptions, Pruned, Retention, RunFilter, RunRecord, SqliteStore, Store, StoreError, fsck,
};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions, Row, SqliteConnection, raw_sql};

async fn open(dir: &Path) -> SqliteStore {
    SqliteStore::open(dir, OpenOptions::default()).await.unwrap()
}

async fn raw(dir: &Path) -> SqliteConnection {
    SqliteConnectOptions::new().filename(dir.join("farrier.db")).connect().await.unwrap()
}

async fn count(connection: &mut SqliteConnection, sql: &'static str) -> i64 {
    sqlx::query(sql).fetch_one(connection).await.unwrap().get(0)
}

fn texts() -> BTreeMap<Text, Text> {
    [("sweep".into(), "runbook: sweep\n".into())].into()
}

/// A run that has ended, with a body in its row and one that is stored by content.
async fn ended(store: &SqliteStore, new: NewRun, output: &str) {
    let run = new.id;
    store.put_bundle(new.bundle, "sweep", &texts()).await.unwrap();
    store.create_run(new).await.unwrap();
    let claim = store.claim(run, "host:1").await.unwrap();
    let value = farrier_model::Value::text(output.repeat(20_000));
    let event = farrier_model::NodeEvent::Succeeded { output: value, changed: 0 };
    let events = vec![intent("a", 1), succeeded("a", 1), node("b", 1, event), finished(RunState::Succeeded)];
    store.append(&claim, events, None).await.unwrap();
}

/// Guards the promise of `export`: what arrives is what left, chain and all.
#[tokio::test]
async fn an_imported_run_is_the_exported_one() {
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(from.path()).await;
    ended(&store, new_run(1), "x").await;
    store.create_run(new_run(2)).await.unwrap();
    let claim = store.claim(run_id(2), "host:1").await.unwrap();
    store.append(&claim, vec![intent("a", 1)], None).await.unwrap();
    let (ids, damage) = store.run_ids().await.unwrap();
    assert_eq!((ids, damage), (vec![run_id(1), run_id(2)], None));
    let other = open(to.path()).await;
    for run in [run_id(1), run_id(2)] {
        let line = store.export(run).await.unwrap().line().unwrap();
        let record = RunRecord::parse(&line).unwrap();
        assert_eq!(record.owned_by.is_some(), run == run_id(2));
        assert!(other.import(record.clone()).await.unwrap());
        assert!(!other.import(record).await.unwrap(), "twice is once");
        assert_eq!(other.journal(run).await.unwrap(), store.journal(run).await.unwrap());
        let (here, there) = (store.run(run).await.unwrap().unwrap(), other.run(run).await.unwrap().unwrap());
        assert_eq!(there.owner, None, "nobody owns it there");
        let moved = farrier_store::RunRow { owner: None, lease_until: None, ..here };
        assert_eq!(there, moved);
        let again = other.export(run).await.unwrap();
        let mut same = store.export(run).await.unwrap();
        same.owned_by = None;
        assert_eq!(again, same);
    }
    assert_eq!(other.bundle(Digest::of("bundle")).await.unwrap().unwrap(), ("sweep".into(), texts()));
    let report = fsck(&other).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.violations);
    // It goes on there, and then it is another journal.
    let claim = other.claim(run_id(2), "elsewhere:1").await.unwrap();
    assert_eq!(claim.epoch, 2);
    let refused = other.import(store.export(run_id(2)).await.unwrap()).await.unwrap_err();
    assert!(refused.to_string().contains("another journal is stored under this id"), "{refused}");
    assert!(fsck(&other).await.unwrap().is_clean());
}

/// Guards "a line that was changed is refused": by the digest of the line, and by the chain for who makes a new digest.
#[tokio::test]
async fn a_changed_line_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    ended(&store, new_run(1), "x").await;
    let record = store.export(run_id(1)).await.unwrap();
    let line = record.line().unwrap();
    for (from, to) in
        [("sweep 1", "sweep 2"), ("a/b", "a/c"), ("xxxx\\\"", "xxxy\\\""), ("\"attempt\":1", "\"attempt\":2")]
    {
        assert!(line.contains(from), "{from}");
        let changed = line.replacen(from, to, 1);
        let refused = RunRecord::parse(&changed).unwrap_err();
        assert!(refused.contains("was changed after it had been exported"), "{refused}");
    }
    assert!(RunRecord::parse("{}").unwrap_err().contains("no exported run"));
    assert!(RunRecord::parse(&line.replacen("\"farrier_run\":1", "\"farrier_run\":9", 1)).is_err());

    let empty = tempfile::tempdir().unwrap();
    let other = open(empty.path()).await;
    for (from, to, expected) in [
        ("a/b", "a/c", "hash chain is broken"),
        ("xxxx\\\"", "xxxy\\\"", "hash chain is broken"),
        ("\"state\":\"succeeded\"", "\"state\":\"failed\"", "[I8]"),
        ("\"epoch\":1,\"created_at\"", "\"epoch\":4,\"created_at\"", "[row]"),
    ] {
        let json = serde_json::to_string(&record).unwrap();
        assert!(json.contains(from), "{from}");
        let forged: RunRecord = serde_json::from_str(&json.replacen(from, to, 1)).unwrap();
        let forged = RunRecord::parse(&forged.line().unwrap()).unwrap();
        let refused = other.import(forged).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid { .. }), "{refused}");
        assert!(refused.to_string().contains(expected), "{refused}");
    }
    assert_eq!(other.runs(RunFilter::default()).await.unwrap(), []);
}

fn child(number: u16, parent: u16) -> NewRun {
    NewRun { parent: Some(run_id(parent)), ..new_run(number) }
}

/// Guards retention: by age and by number, whole trees, with all that only they needed.
#[tokio::test]
async fn what_is_over_goes_whole_and_nothing_else_does() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new();
    let options = OpenOptions { clock: clock.clock(), ..OpenOptions::default() };
    let store = SqliteStore::open(dir.path(), options).await.unwrap();
    let day = 24 * 60 * 60 * 1000;
    let pinned = |new: NewRun, text: &str| {
        let bundle = Digest::of(text);
        let mut created = new.created.clone();
        if let farrier_model::Event::Created { bundle: its, .. } = &mut created {
            *its = bundle;
        }
        NewRun { bundle, created, ..new }
    };
    ended(&store, pinned(new_run(1), "old"), "old").await;
    ended(&store, pinned(child(2, 1), "old"), "shared").await;
    ended(&store, new_run(3), "x").await;
    // Its child has not ended.
    ended(&store, new_run(4), "x").await;
    store.create_run(child(5, 4)).await.unwrap();
    store.create_run(new_run(6)).await.unwrap();
    clock.advance_ms(10 * day);
    ended(&store, new_run(7), "shared").await;
    let keep = |days: u64, at_least| Keep { keep: Duration::from_secs(days * 24 * 60 * 60), at_least };
    let rule = |days, at_least| Retention { others: Some(keep(days, at_least)), ..Retention::default() };

    assert_eq!(store.expired(&rule(11, 0)).await.unwrap(), []);
    assert_eq!(store.expired(&rule(5, 4)).await.unwrap(), []);
    assert_eq!(store.expired(&rule(5, 3)).await.unwrap(), [run_id(1)], "the newest three stay");
    let named = [("sweep".to_owned(), keep(30, 0))].into();
    let other = Retention { runbooks: named, ..rule(0, 0) };
    assert_eq!(store.expired(&other).await.unwrap(), [], "its own rule");

    let before = fsck(&store).await.unwrap();
    assert!(before.is_clean(), "{:?}", before.violations);
    let pruned = store.prune(&rule(5, 0)).await.unwrap();
    // The body `shared` is used by the newest run.
    assert_eq!(pruned, Pruned { runs: 3, entries: 18, blobs: 1, texts: 1 });
    let left: Vec<_> =
        store.runs(RunFilter::default()).await.unwrap().into_iter().map(|row| row.id).collect();
    for (number, stays) in [(1, false), (2, false), (3, false), (4, true), (5, true), (6, true), (7, true)] {
        assert_eq!(left.contains(&run_id(number)), stays, "{number}");
    }
    let report = fsck(&store).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.violations);
    assert_eq!(store.prune(&rule(5, 0)).await.unwrap(), Pruned::default(), "once");

    let mut connection = raw(dir.path()).await;
    assert_eq!(count(&mut connection, "SELECT count(*) FROM retention").await, 0);
    assert_eq!(count(&mut connection, "SELECT count(*) FROM blob").await, 2);
    let refused = raw_sql("DELETE FROM journal").execute(&mut connection).await.unwrap_err();
    assert!(refused.to_string().contains("the journal is append-only"), "{refused}");
    // Whoever makes the mark by hand is found out.
    raw_sql("INSERT INTO retention (run_id) VALUES ('x')").execute(&mut connection).await.unwrap();
    let report = fsck(&store).await.unwrap();
    assert_eq!(report.violations[0].invariant, "retention");
}

/// Guards T8: of a damaged file, what can be read is still written out, and what cannot is named.
#[tokio::test]
async fn a_damaged_page_costs_the_runs_on_it_and_no_others() {
    use std::io::{Seek as _, SeekFrom, Write as _};
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    for number in 1..=40 {
        // Bodies below the limit fill the journal's own pages.
        store.create_run(new_run(number)).await.unwrap();
        let claim = store.claim(run_id(number), "host:1").await.unwrap();
        let events = (0..4).map(|at| large(&format!("s{at}"), 3_000)).collect();
        store.append(&claim, events, None).await.unwrap();
    }
    store.close().await;
    let mut connection = raw(dir.path()).await;
    raw_sql("PRAGMA wal_checkpoint(TRUNCATE)").execute(&mut connection).await.unwrap();
    let pages = count(&mut connection, "PRAGMA page_count").await;
    // A page in the middle that holds rows of the journal: the text of their bodies is on it.
    drop(connection);
    let path = dir.path().join("farrier.db");
    let bytes = std::fs::read(&path).unwrap();
    let holds_rows = |page: &i64| {
        let from = usize::try_from(*page).unwrap() * 4096;
        let page = &bytes[from..from + 4096];
        page[0] == 13 && String::from_utf8_lossy(page).contains("tools tools")
    };
    let damaged = (pages / 2..pages).find(holds_rows).expect("a leaf of the journal");
    let mut file = std::fs::File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(damaged.unsigned_abs() * 4096)).unwrap();
    file.write_all(&[0xff; 4096]).unwrap();
    drop(file);

    let store = SqliteStore::open(dir.path(), OpenOptions::read_only()).await.unwrap();
    let (ids, _) = store.run_ids().await.unwrap();
    assert_eq!(ids.len(), 40);
    let (mut read, mut lost) = (0, 0);
    for run in ids {
        match store.export(run).await {
            Ok(record) => {
                assert_eq!(record.len(), 6);
                read += 1;
            }
            Err(error) => {
                assert!(error.to_string().contains(&format!("run {run}")), "{error}");
                lost += 1;
            }
        }
    }
    assert!(lost > 0 && lost < 5, "{lost} lost, {read} read");
}
