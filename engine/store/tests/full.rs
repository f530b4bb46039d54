//! A disk that is really full: a small file system in memory, mounted for the length of a test.
//!
//! Guards T6. Mechanism: the ballast, and `Work::can_wait`.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::*;
use farrier_model::{Event, NodeEvent, Value};
use farrier_store::{Claim, OpenOptions, RunFilter, SqliteStore, Store, StoreError, fsck};

/// A file system in memory; unmounted when it is dropped.
struct Mount(PathBuf);

impl Mount {
    /// None, and it is said, where nobody may mount.
    fn new(path: &Path, size: &str) -> Option<Mount> {
        fs::create_dir_all(path).unwrap();
        let options = format!("size={size},mode=0700");
        let ran =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(path).output().unwrap();
        if ran.status.success() {
            return Some(Mount(path.to_path_buf()));
        }
        eprintln!(
            "NOT TESTED, since this machine does not let us mount a file system in memory: {}",
            String::from_utf8_lossy(&ran.stderr).trim()
        );
        None
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

/// Writes until nothing more fits.
fn fill(path: &Path) {
    let mut file = fs::File::options().create(true).append(true).open(path).unwrap();
    for size in [65_536, 4_096] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
}

fn is_full<T: std::fmt::Debug>(answer: Result<T, StoreError>) -> bool {
    matches!(answer, Err(StoreError::Full { .. }))
}

/// An intent that surely needs pages of its own.
fn wide_intent(step: &str) -> Event {
    let inputs = Value::text("x".repeat(12_000));
    let (changes, effect) = (Vec::new(), farrier_model::Effect::Once);
    node(step, 1, NodeEvent::Intent { inputs, changes, effect, effect_id: step.into() })
}

async fn claimed(store: &SqliteStore, number: u16) -> Claim {
    store.create_run(new_run(number)).await.unwrap();
    store.claim(run_id(number), "host:1").await.unwrap()
}

#[tokio::test]
async fn outcomes_are_recorded_on_a_full_disk_and_room_is_enough_to_go_on() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let Some(_mount) = Mount::new(&dir, "8m") else { return };
    let store = SqliteStore::open(&dir, OpenOptions::default()).await.unwrap();
    let kept = fs::metadata(dir.join("farrier.ballast")).unwrap().blocks() * 512;
    assert!((200_000..=840_000).contains(&kept), "a tenth of what is free: {kept}");

    let claim = claimed(&store, 1).await;
    let steps: Vec<String> = (0..20).map(|at| format!("s{at}")).collect();
    for step in &steps {
        store.append(&claim, vec![intent(step, 1)], None).await.unwrap();
    }
    fill(&dir.join("filler"));
    // The effects of all these have happened while the disk filled up.
    let mut refused = 0;
    for (at, step) in steps.iter().enumerate() {
        let event = NodeEvent::Succeeded { output: Value::text("done ".repeat(600)), changed: 1 };
        store.append(&claim, vec![node(step, 1, event)], None).await.unwrap();
        refused += u32::from(is_full(store.append(&claim, vec![wide_intent(&format!("n{at}"))], None).await));
    }
    assert!(refused >= 19, "{refused}");
    assert!(store.is_full());
    assert!(is_full(store.create_run(new_run(2)).await));
    assert!(is_full(store.claim(run_id(1), "host:1").await));
    assert!(is_full(store.put_bundle(farrier_model::Digest::of("x"), "r", &[].into()).await));
    assert_eq!(store.heartbeat(&[claim]).await.unwrap(), []);
    assert_eq!(fs::metadata(dir.join("farrier.ballast")).unwrap().blocks(), 0);
    assert_eq!(store.runs(RunFilter::default()).await.unwrap().len(), 1, "reading goes on");

    let before = store.journal(run_id(1)).await.unwrap();
    fs::remove_file(dir.join("filler")).unwrap();
    store.append(&claim, vec![wide_intent("later")], None).await.unwrap();
    assert!(!store.is_full());
    let again = fs::metadata(dir.join("farrier.ballast")).unwrap().blocks() * 512;
    assert!(again >= kept, "{again}");
    store.create_run(new_run(2)).await.unwrap();
    let journal = store.journal(run_id(1)).await.unwrap();
    assert_eq!(journal[..before.len()], before);
    let outcomes = journal.iter().filter(|entry| entry.event.name() == "succeeded").count();
    assert_eq!(outcomes, 20);
    assert!(fsck(&store).await.unwrap().is_clean());
    store.close().await;
}

/// What was left in doubt on a full disk is found out there too: the next start lives on the ballast.
#[test]
fn a_start_on_a_full_disk_records_what_has_happened() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let Some(_mount) = Mount::new(&dir, "8m") else { return };
    let die = |full: bool| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let store = SqliteStore::open(&dir, OpenOptions::default()).await.unwrap();
            assert_eq!(store.is_full(), full);
            if full {
                assert!(is_full(store.create_run(new_run(2)).await));
            } else {
                claimed(&store, 1).await;
            }
            store.generation()
        })
    };
    assert_eq!(die(false), 1);
    fill(&dir.join("filler"));
    // Each start uses a page or two; at some point the log has none left.
    let mut generation = 1;
    for _ in 0..50 {
        let begun = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| die(true)));
        fill(&dir.join("filler"));
        generation += 1;
        if let Ok(found) = begun {
            assert_eq!(found, generation);
            return;
        }
    }
    panic!("the disk never was full for a start");
}

#[tokio::test]
async fn nothing_is_lost_when_even_the_ballast_is_used_up() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("data");
    let Some(_mount) = Mount::new(&dir, "4m") else { return };
    let store = SqliteStore::open(&dir, OpenOptions::default()).await.unwrap();
    let claim = claimed(&store, 1).await;
    fill(&dir.join("filler"));
    let mut written = Vec::new();
    let refused = loop {
        let step = format!("s{}", written.len());
        let output = Value::text(step.repeat(15_000 / step.len()));
        let event = node(&step, 1, NodeEvent::Succeeded { output, changed: 0 });
        match store.append(&claim, vec![event.clone()], None).await {
            Ok(entries) => written.extend(entries),
            Err(error) => break (event, error),
        }
        // What frees the disk's room by itself is not wanted here.
        fill(&dir.join("filler"));
    };
    assert!(matches!(refused.1, StoreError::Full { .. }), "{}", refused.1);
    assert!(!written.is_empty(), "the ballast is used for outcomes");
    fs::remove_file(dir.join("filler")).unwrap();
    written.extend(store.append(&claim, vec![refused.0], None).await.unwrap());
    assert_eq!(store.journal(run_id(1)).await.unwrap()[2..], written);
    store.close().await;
    let store = SqliteStore::open(&dir, OpenOptions::default()).await.unwrap();
    assert_eq!(store.journal(run_id(1)).await.unwrap()[2..], written);
    assert!(fsck(&store).await.unwrap().is_clean());
    store.close().await;
}
