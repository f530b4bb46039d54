//! A process is killed while it writes, again and again. What it had said was durable must be there (G1), and what it left
//! must be sound.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use common::*;
use farrier_store::{OpenOptions, SqliteStore, Store, StoreError, fsck};

const DIRECTORY: &str = "FARRIER_CRASH_TEST_DIR";
const RUNS: u16 = 4;

/// The process to be killed: appends to several runs at once and says what was acknowledged.
async fn write_until_killed(dir: &Path) {
    let store = SqliteStore::open(dir, OpenOptions::default()).await.unwrap();
    let mut tasks = tokio::task::JoinSet::new();
    for number in 0..RUNS {
        let store = store.clone();
        tasks.spawn(async move {
            store.create_run(new_run(number)).await.unwrap();
            let owner = format!("test:{}", std::process::id());
            // The process before this one was killed with its lease alive: the generation has expired it.
            let claim = store.claim(run_id(number), &owner).await.unwrap();
            for seq in claim.next_seq.. {
                let event = match seq % 50 {
                    0 => large(&format!("s{seq}"), 100_000),
                    _ => succeeded(&format!("s{seq}"), 1),
                };
                let entries = store.append(&claim, vec![event], None).await.unwrap();
                assert_eq!(entries[0].seq, seq);
                let mut out = std::io::stdout().lock();
                writeln!(out, "durable {number} {seq}").unwrap();
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_process_is_killed() {
    // This test starts itself again as the process that it kills.
    if let Some(dir) = std::env::var_os(DIRECTORY) {
        return write_until_killed(Path::new(&dir)).await;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut durable = [0; RUNS as usize];
    for (round, lines) in [30, 333, 5, 1_000, 80].into_iter().enumerate() {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "nothing_acknowledged_is_lost_when_the_process_is_killed", "--nocapture"])
            .env(DIRECTORY, dir.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut heard = |line: String| {
            let said = line.split_once("durable ").and_then(|(_, said)| said.split_once(' '));
            // The kill may cut the last line short.
            let said =
                said.and_then(|(run, seq)| Some((run.parse::<usize>().ok()?, seq.parse::<i64>().ok()?)));
            if let Some((run, seq)) = said {
                durable[run] = seq.max(durable[run]);
            }
        };
        output.by_ref().take(lines).for_each(&mut heard);
        child.kill().unwrap();
        // What it said before it died counts too, except a last line that may be half of a number.
        let rest: Vec<String> = output.collect();
        rest.into_iter().rev().skip(1).for_each(&mut heard);
        child.wait().unwrap();

        let store = SqliteStore::open(dir.path(), OpenOptions::default()).await.unwrap();
        for (number, seq) in (0..RUNS).zip(durable) {
            match store.journal(run_id(number)).await {
                Ok(journal) => assert!(journal.len() as i64 >= seq, "round {round}, run {number}: {seq}"),
                Err(error) => assert_eq!((seq, error), (0, StoreError::NoRun { run: run_id(number) })),
            }
        }
        let report = fsck(&store).await.unwrap();
        assert!(report.is_clean(), "round {round}: {:?}", report.violations);
        store.close().await;
    }
    assert!(durable.iter().sum::<i64>() > 1_000, "the child did no useful work: {durable:?}");
}
