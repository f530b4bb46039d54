//! The faults that a simulator injects do what they say, and callers come through them.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use common::*;
use farrier_model::RunState;
use farrier_store::{Batch, Claim, Fault, MemoryStore, Store, StoreError, fsck};

async fn begun() -> (MemoryStore, Claim) {
    let store = MemoryStore::new(TestClock::new().clock());
    store.create_run(new_run(1)).await.unwrap();
    let claim = store.claim(run_id(1), "host:1").await.unwrap();
    (store, claim)
}

async fn length(store: &MemoryStore) -> usize {
    store.journal(run_id(1)).await.unwrap().len()
}

/// What the caller hears of a faulty append, and how long the journal is afterwards for whoever comes next.
#[tokio::test]
async fn each_fault_does_what_it_says() {
    let lost = StoreError::Ambiguous { run: run_id(1) };
    let failed = StoreError::Unavailable { message: "a fault was injected".into() };
    let cases = [
        (Fault::CrashBefore, StoreError::Closed, 2),
        (Fault::CrashAfter, StoreError::Closed, 3),
        (Fault::AnswerLost, lost.clone(), 3),
        (Fault::RequestLost, lost, 2),
        (Fault::FailOnce, failed, 2),
    ];
    for (fault, expected, entries) in cases {
        let (store, claim) = begun().await;
        store.inject(1, fault);
        let batch = Batch::new(vec![succeeded("a", 1)], None);
        assert_eq!(store.append_batch(&claim, batch.clone()).await.unwrap_err(), expected, "{fault:?}");
        assert_eq!(store.pending_faults(), 0);
        let crashed = expected == StoreError::Closed;
        assert_eq!(store.run(run_id(1)).await.is_err(), crashed, "a dead process reads nothing");
        let next = store.restart();
        assert_eq!(length(&next).await, entries, "{fault:?}");
        assert_eq!(store.release(&claim).await.unwrap_err(), StoreError::Closed, "an old handle stays dead");
        // Whatever happened, sending the batch again makes it exactly one.
        let sent = next.append_batch(&claim, batch).await.unwrap();
        assert_eq!((sent[0].seq, length(&next).await), (3, 3), "{fault:?}");
    }
}

/// Guards K7 and K11 for callers of `append`: a lost answer is invisible to them. Mechanism: it sends the same entry id.
#[tokio::test]
async fn append_gets_over_lost_answers() {
    let (store, claim) = begun().await;
    for (nth, fault) in [(1, Fault::AnswerLost), (2, Fault::RequestLost), (3, Fault::AnswerLost)] {
        store.inject(nth, fault);
    }
    let entries = store.append(&claim, vec![intent("a", 1)], None).await.unwrap();
    assert_eq!((entries[0].seq, length(&store).await), (3, 3));
    for nth in 1..100 {
        store.inject(nth, Fault::RequestLost);
    }
    let lost = store.append(&claim, vec![succeeded("b", 1)], None).await.unwrap_err();
    assert_eq!(lost, StoreError::Ambiguous { run: run_id(1) });
    assert!(store.pending_faults() > 50, "it gives up after a few times");
}

/// A caller that starts over after each crash brings its run to an end, wherever the crash is, and every journal on the way
/// is sound.
#[tokio::test]
async fn a_crash_at_every_write_is_survived() {
    let mut crash_at = 1;
    loop {
        for fault in [Fault::CrashBefore, Fault::CrashAfter] {
            let mut store = MemoryStore::new(TestClock::new().clock());
            store.inject(crash_at, fault);
            while let Err(error) = work(&store).await {
                assert_eq!(error, StoreError::Closed);
                store = store.restart();
                assert!(fsck(&store).await.unwrap().is_clean());
            }
            let report = fsck(&store).await.unwrap();
            assert!(report.is_clean(), "{:?}", report.violations);
            assert_eq!(report.succeeded, 1);
            if store.pending_faults() > 0 {
                assert_eq!(store.writes(), 6);
                return;
            }
        }
        crash_at += 1;
    }
}

/// Creates the run if need be, and goes on where the journal ends.
async fn work(store: &MemoryStore) -> Result<(), StoreError> {
    store.create_run(new_run(1)).await?;
    let claim = match store.claim(run_id(1), "host:1").await {
        Err(StoreError::Final { .. }) => return Ok(()),
        claimed => claimed?,
    };
    let journal = store.journal(run_id(1)).await?;
    for step in ["a", "b", "c"] {
        let event = succeeded(step, 1);
        if !journal.iter().any(|entry| entry.event == event) {
            store.append(&claim, vec![event], None).await?;
        }
    }
    store.append(&claim, vec![finished(RunState::Succeeded)], None).await.map(|_| ())
}
