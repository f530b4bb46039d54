//! One list of behaviours, run on every store. Each behaviour asserts what it promises and writes down what it saw; what
//! the stores let it see must be equal, down to the times and the error texts.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests fail as tests do")]

mod common;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::time::Duration;

use common::*;
use farrier_model::{Ask, BoundPlan, Digest, Event, NodeEvent, NodeName, Request, RunState, Text, Value};
use farrier_store::{
    Batch, Claim, Delivery, Executed, MemoryStore, Notice, NoticeFilter, OpenOptions, RunFilter, SqliteStore,
    Store, StoreError, fsck,
};

enum Backing {
    Memory(MemoryStore),
    Sqlite { dir: tempfile::TempDir, store: SqliteStore },
}

struct World {
    clock: TestClock,
    backing: Backing,
    trace: Vec<String>,
}

impl World {
    fn memory() -> World {
        let clock = TestClock::new();
        let backing = Backing::Memory(MemoryStore::new(clock.clock()));
        World { clock, backing, trace: Vec::new() }
    }

    async fn sqlite() -> World {
        let clock = TestClock::new();
        let dir = tempfile::tempdir().unwrap();
        let options = OpenOptions { clock: clock.clock(), ..OpenOptions::default() };
        let store = SqliteStore::open(dir.path(), options).await.unwrap();
        World { clock, backing: Backing::Sqlite { dir, store }, trace: Vec::new() }
    }

    fn store(&self) -> &dyn Store {
        match &self.backing {
            Backing::Memory(store) => store,
            Backing::Sqlite { store, .. } => store,
        }
    }

    /// The process ends and another begins.
    async fn restart(&mut self) {
        match &mut self.backing {
            Backing::Memory(store) => *store = store.restart(),
            Backing::Sqlite { dir, store } => {
                store.clone().close().await;
                let options = OpenOptions { clock: self.clock.clock(), ..OpenOptions::default() };
                *store = SqliteStore::open(dir.path(), options).await.unwrap();
            }
        }
    }

    fn saw(&mut self, what: impl Debug) {
        self.trace.push(format!("{what:?}"));
    }

    async fn create_and_claim(&self, number: u16) -> Claim {
        self.store().create_run(new_run(number)).await.unwrap();
        self.store().claim(run_id(number), "host:1").await.unwrap()
    }

    /// Everything a caller can learn of a run.
    async fn look(&mut self, number: u16) {
        let row = self.store().run(run_id(number)).await;
        let journal = self.store().journal(run_id(number)).await;
        self.saw((row, journal));
    }
}

/// Runs a behaviour on each store and compares.
macro_rules! behaviours {
    ($($name:ident)*) => {
        mod on_every_store {
            use super::*;
            $(#[tokio::test]
            async fn $name() {
                let mut traces = Vec::new();
                for mut world in [World::memory(), World::sqlite().await] {
                    super::$name(&mut world).await;
                    let report = fsck(world.store()).await.unwrap();
                    assert!(report.is_clean(), "{:?}", report.violations);
                    traces.push(world.trace);
                }
                assert_eq!(traces[0], traces[1]);
            })*
        }
    };
}

behaviours! {
    creating_twice_creates_once
    a_claim_moves_the_epoch_and_says_so
    a_live_lease_keeps_others_away
    an_old_claim_is_fenced
    a_released_run_is_anyones_and_not_its_old_owners
    intents_need_a_lease_and_outcomes_do_not
    heartbeats_extend_leases_and_name_the_fenced
    a_second_success_is_refused
    an_intent_is_unique_by_attempt
    a_refused_batch_leaves_nothing_behind
    a_batch_sent_again_gets_its_first_answer
    an_entry_id_belongs_to_its_events
    the_state_follows_the_events
    a_final_run_takes_nothing_more
    the_store_alone_creates_and_claims
    journals_read_in_order_from_anywhere
    everything_is_there_after_a_restart
    a_new_generation_expires_old_claims_at_once
    runs_are_listed_newest_first_and_filtered
    bundles_are_kept_by_digest
    unknown_runs_are_errors
    a_suspended_run_is_a_row_with_a_moment
    requests_wait_for_the_owner_and_make_a_waiting_run_due
    a_parked_run_that_is_asked_is_due
    what_comes_while_a_run_lets_go_is_not_slept_over
    locks_are_lines_of_tickets
    a_lock_is_given_back_with_the_end_of_its_run
    the_end_of_a_child_makes_its_parent_due
    one_run_per_key_is_alive
    a_saved_plan_is_carried_out_once
    executions_are_counted_over_time
    notices_are_stored_with_their_reason_and_tried_until_they_are_told
}

/// Guards K14: what people are to hear is stored with its reason, and is there until they have heard it. Mechanism: the
/// outbox's rows are written in the transaction of the batch.
async fn notices_are_stored_with_their_reason_and_tried_until_they_are_told(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    let notice = |number: u8, run| Notice {
        id: Notice::id_of(&number.to_string()),
        run,
        environment: "tools".into(),
        to: "roots".into(),
        occasion: "failed".into(),
        subject: format!("notice {number}"),
        body: "it failed".into(),
    };
    let failed = vec![finished(RunState::Failed)];
    let refused = Batch::new(failed.clone(), None).telling(vec![notice(9, Some(run_id(1)))]);
    let stale = Claim { epoch: claim.epoch - 1, ..claim };
    world.store().append_batch(&stale, refused).await.unwrap_err();
    assert_eq!(world.store().notices(NoticeFilter::default()).await.unwrap(), [], "no reason, no notice");

    let batch = Batch::new(failed, Some(RunState::Failed)).telling(vec![notice(1, Some(run_id(1)))]);
    world.store().append_batch(&claim, batch.clone()).await.unwrap();
    world.store().append_batch(&claim, batch).await.unwrap();
    world.clock.advance_ms(5);
    world.store().notify(notice(2, None)).await.unwrap();
    world.store().notify(notice(2, None)).await.unwrap();
    world.restart().await;
    let due =
        |world: &World| NoticeFilter { due: Some(world.clock.clock().now()), ..NoticeFilter::default() };
    let posted = world.store().notices(due(world)).await.unwrap();
    let subjects: Vec<&str> = posted.iter().map(|posted| posted.notice.subject.as_str()).collect();
    assert_eq!(subjects, ["notice 1", "notice 2"]);

    let again = world.clock.at(1_000);
    let failure = Delivery::Failed { trouble: "no route".into(), again };
    world.store().delivered(posted[0].notice.id, failure.clone()).await.unwrap();
    world.store().delivered(posted[1].notice.id, Delivery::Sent).await.unwrap();
    world.store().delivered(posted[1].notice.id, failure).await.unwrap();
    world.store().delivered(Notice::id_of("nobody"), Delivery::Sent).await.unwrap();
    assert_eq!(world.store().notices(due(world)).await.unwrap(), [], "one is told, the other has to wait");
    let pending = NoticeFilter { pending: true, ..NoticeFilter::default() };
    assert_eq!(world.store().notices(pending).await.unwrap().len(), 1);
    world.clock.advance_ms(1_000);
    let posted = world.store().notices(due(world)).await.unwrap();
    assert_eq!((posted[0].attempts, posted[0].trouble.as_deref()), (1, Some("no route")));
    let of_run = NoticeFilter { run: Some(run_id(1)), limit: Some(5), ..NoticeFilter::default() };
    assert_eq!(world.store().notices(of_run).await.unwrap(), posted);
    let all = world.store().notices(NoticeFilter::default()).await.unwrap();
    assert!(all[1].sent_at.is_some() && all[1].trouble.is_none());
    world.saw(all);
}

/// Guards G1: a trigger that repeats itself must not start two runs. Mechanism: the run id is the primary key.
async fn creating_twice_creates_once(world: &mut World) {
    assert!(world.store().create_run(new_run(1)).await.unwrap());
    let mut again = new_run(1);
    again.title = "another".into();
    assert!(!world.store().create_run(again).await.unwrap());
    let row = world.store().run(run_id(1)).await.unwrap().unwrap();
    assert_eq!((&*row.title, row.state, row.seq, row.epoch), ("sweep 1", RunState::Queued, 1, 0));
    let mut wrong = new_run(2);
    wrong.environment = "production".into();
    let refused = world.store().create_run(wrong).await.unwrap_err();
    assert!(matches!(refused, StoreError::Invalid { .. }));
    world.saw(refused);
    world.look(1).await;
    world.look(2).await;
}

/// Guards I5: every ownership is in the journal. Mechanism: epoch, lease and `claimed` in one transaction.
async fn a_claim_moves_the_epoch_and_says_so(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    assert_eq!(claim, Claim { run: run_id(1), epoch: 1, next_seq: 3 });
    let row = world.store().run(run_id(1)).await.unwrap().unwrap();
    assert_eq!((row.state, row.owner.as_deref()), (RunState::Running, Some("host:1")));
    assert_eq!(row.lease_until.unwrap().as_millisecond() - row.updated_at.as_millisecond(), 15_000);
    let entry = world.store().journal(run_id(1)).await.unwrap().pop().unwrap();
    assert_eq!((entry.seq, entry.epoch, entry.event), (2, 1, Event::Claimed { owner: "host:1".into() }));
    world.look(1).await;
}

/// Guards K5: takeover only after lease and grace. Mechanism: the lease check inside the claim's transaction.
async fn a_live_lease_keeps_others_away(world: &mut World) {
    world.create_and_claim(1).await;
    let owned = StoreError::Owned { owner: "host:1".into() };
    for wait in [0, 15_000, 4_999] {
        world.clock.advance_ms(wait);
        assert_eq!(world.store().claim(run_id(1), "host:2").await.unwrap_err(), owned);
    }
    // Its own owner may start over at any time; that fences its earlier claim.
    assert_eq!(world.store().claim(run_id(1), "host:1").await.unwrap().epoch, 2);
    world.clock.advance_ms(20_000);
    assert_eq!(world.store().claim(run_id(1), "host:2").await.unwrap().epoch, 3);
    world.look(1).await;
}

/// Guards K17: a frozen owner that wakes up writes nothing. Mechanism: the epoch in every append.
async fn an_old_claim_is_fenced(world: &mut World) {
    let old = world.create_and_claim(1).await;
    world.clock.advance_ms(20_000);
    let new = world.store().claim(run_id(1), "host:2").await.unwrap();
    let fenced = StoreError::Fenced { run: run_id(1), epoch: 1 };
    for events in [vec![succeeded("a", 1)], vec![intent("a", 1)], vec![finished(RunState::Failed)]] {
        assert_eq!(world.store().append(&old, events, None).await.unwrap_err(), fenced);
    }
    assert_eq!(world.store().heartbeat(&[old, new]).await.unwrap(), [run_id(1)]);
    // Releasing what is no longer ours must not release it for the new owner.
    world.store().release(&old).await.unwrap();
    world.store().append(&new, vec![succeeded("a", 1)], None).await.unwrap();
    world.look(1).await;
}

/// Guards G5 for a graceful stop: nobody waits for a lease that was given back. Mechanism: release clears the owner, and an
/// append without an owner is fenced although the epoch is still the same.
async fn a_released_run_is_anyones_and_not_its_old_owners(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    world.store().append(&claim, vec![], Some(RunState::Waiting)).await.unwrap();
    world.store().release(&claim).await.unwrap();
    world.store().release(&claim).await.unwrap();
    world.look(1).await;
    let refused = world.store().append(&claim, vec![succeeded("a", 1)], None).await.unwrap_err();
    assert_eq!(refused, StoreError::Fenced { run: run_id(1), epoch: 1 });
    let next = world.store().claim(run_id(1), "host:2").await.unwrap();
    assert_eq!(next.epoch, 2);
    world.look(1).await;
}

/// Guards section 3's rule: an effect begins only under a lease with a margin, the truth is recorded even late.
/// Mechanism: `needs_lease` per batch.
async fn intents_need_a_lease_and_outcomes_do_not(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    world.clock.advance_ms(11_999);
    world.store().append(&claim, vec![intent("a", 1)], None).await.unwrap();
    world.clock.advance_ms(1);
    let fenced = StoreError::Fenced { run: run_id(1), epoch: 1 };
    let allowed = Event::WritesAllowed { creates: 0, updates: 1, deletes: 0 };
    for events in [
        vec![intent("b", 1)],
        vec![undo_intent("b", 1)],
        vec![allowed],
        vec![succeeded("c", 1), intent("b", 1)],
    ] {
        assert_eq!(world.store().append(&claim, events, None).await.unwrap_err(), fenced);
    }
    world.clock.advance_ms(3_600_000);
    world
        .store()
        .append(&claim, vec![node("a", 1, NodeEvent::Succeeded { output: Value::Null, changed: 1 })], None)
        .await
        .unwrap();
    world.look(1).await;
}

/// Guards G5: a living owner keeps its runs, and learns which it lost. Mechanism: heartbeat by run and epoch.
async fn heartbeats_extend_leases_and_name_the_fenced(world: &mut World) {
    let (one, two, done) =
        (world.create_and_claim(1).await, world.create_and_claim(2).await, world.create_and_claim(3).await);
    world.store().append(&done, vec![finished(RunState::Failed)], None).await.unwrap();
    for _ in 0..5 {
        world.clock.advance_ms(10_000);
        assert_eq!(world.store().heartbeat(&[one, two]).await.unwrap(), []);
    }
    world.store().append(&one, vec![intent("a", 1)], None).await.unwrap();
    assert!(matches!(world.store().claim(run_id(2), "host:2").await, Err(StoreError::Owned { .. })));
    world.store().release(&two).await.unwrap();
    let unknown = Claim { run: run_id(9), epoch: 1, next_seq: 1 };
    let fenced = world.store().heartbeat(&[one, two, done, unknown]).await.unwrap();
    assert_eq!(fenced, [run_id(2), run_id(3), run_id(9)]);
    world.look(1).await;
    world.look(2).await;
}

/// Guards G2 and I1 even against a wrong dispatcher. Mechanism: unique index `once_ok`.
async fn a_second_success_is_refused(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    world.store().append(&claim, vec![succeeded("a", 1), succeeded("b", 1)], None).await.unwrap();
    for again in
        [vec![succeeded("a", 1)], vec![succeeded("a", 2)], vec![succeeded("c", 1), succeeded("c", 2)]]
    {
        let refused = world.store().append(&claim, again, None).await.unwrap_err();
        assert!(matches!(refused, StoreError::Refused { .. }), "{refused}");
        world.saw(refused.to_string());
    }
    world.store().append(&claim, vec![succeeded("c", 1)], None).await.unwrap();
    world.look(1).await;
}

/// Guards I4: an effect begins once per attempt; a retry is the next attempt. Mechanism: unique index `once_intent`.
async fn an_intent_is_unique_by_attempt(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    world.store().append(&claim, vec![intent("a", 1)], None).await.unwrap();
    let refused = world.store().append(&claim, vec![intent("a", 1)], None).await.unwrap_err();
    world.saw(refused.to_string());
    let retry = vec![failed("a", 1, true), intent("a", 2)];
    world.store().append(&claim, retry, None).await.unwrap();
    let done = vec![node("a", 2, NodeEvent::Succeeded { output: Value::Null, changed: 1 })];
    world.store().append(&claim, done, None).await.unwrap();
    // An undo has attempts of its own, and may need several too.
    let undo = vec![Event::UndoStarted { reason: "b failed".into() }, undo_intent("a", 1)];
    world.store().append(&claim, undo, None).await.unwrap();
    let refused = world.store().append(&claim, vec![undo_intent("a", 1)], None).await.unwrap_err();
    assert!(refused.to_string().contains("`undo_intent`"), "{refused}");
    world.saw(refused.to_string());
    world
        .store()
        .append(&claim, vec![undo_intent("a", 2), node("a", 2, NodeEvent::UndoDone)], None)
        .await
        .unwrap();
    world.look(1).await;
}

/// Guards the batch as a unit: together or not at all. Mechanism: one transaction per batch at least.
async fn a_refused_batch_leaves_nothing_behind(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    world.store().append(&claim, vec![succeeded("a", 1)], None).await.unwrap();
    let before = world.store().run(run_id(1)).await.unwrap();
    let batch = vec![intent("b", 1), succeeded("a", 2), parked("never")];
    world.store().append(&claim, batch, None).await.unwrap_err();
    assert_eq!(world.store().run(run_id(1)).await.unwrap(), before);
    let entries = world.store().append(&claim, vec![intent("b", 1)], None).await.unwrap();
    assert_eq!(entries[0].seq, 4);
    world.look(1).await;
}

/// Guards K7 and K11: "commit sent, answer lost" resolves to the first answer. Mechanism: the entry id, looked up even when
/// the claim is no longer good.
async fn a_batch_sent_again_gets_its_first_answer(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    let batch = Batch::new(vec![intent("a", 1), succeeded("b", 1)], None);
    let last = Batch::new(vec![finished(RunState::Failed)], None);
    let first = world.store().append_batch(&claim, batch.clone()).await.unwrap();
    assert_eq!(first.iter().map(|entry| entry.seq).collect::<Vec<_>>(), [3, 4]);
    world.clock.advance_ms(1_000);
    assert_eq!(world.store().append_batch(&claim, batch.clone()).await.unwrap(), first);
    world.clock.advance_ms(60_000);
    let next = world.store().claim(run_id(1), "host:2").await.unwrap();
    assert_eq!(world.store().append_batch(&claim, batch.clone()).await.unwrap(), first);
    let end = world.store().append_batch(&next, last.clone()).await.unwrap();
    assert_eq!(world.store().append_batch(&next, last).await.unwrap(), end);
    world.restart().await;
    assert_eq!(world.store().append_batch(&claim, batch).await.unwrap(), first);
    world.look(1).await;
}

/// Guards the look-up above: an id that comes with other events is a defect, never an answer.
async fn an_entry_id_belongs_to_its_events(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    let batch = Batch::new(vec![intent("a", 1)], None);
    world.store().append_batch(&claim, batch.clone()).await.unwrap();
    for events in [vec![intent("b", 1)], vec![intent("a", 1), succeeded("b", 1)]] {
        let reused = Batch { events, ..batch.clone() };
        let refused = world.store().append_batch(&claim, reused).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid { .. }), "{refused}");
    }
    world.look(1).await;
}

/// Guards "nothing is shown that the journal does not say". Mechanism: the state comes from the events of the batch.
async fn the_state_follows_the_events(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    let resumed = Event::Resumed { by: "me".into(), accepted: None };
    let undo = Event::UndoStarted { reason: "a failed".into() };
    /// The events, the state that the caller says, and the state and reason that must follow.
    type Follows = (Vec<Event>, Option<RunState>, RunState, Option<&'static str>);
    let steps: [Follows; 6] = [
        (vec![succeeded("a", 1)], None, RunState::Running, None),
        (vec![parked("step `b` is in doubt")], None, RunState::Parked, Some("step `b` is in doubt")),
        (vec![resumed], None, RunState::Running, None),
        (vec![], Some(RunState::Waiting), RunState::Waiting, None),
        (vec![undo], None, RunState::Undoing, None),
        (vec![finished(RunState::Undone)], Some(RunState::Undone), RunState::Undone, Some("step `a` failed")),
    ];
    for (events, state, expected, reason) in steps {
        world.store().append(&claim, events, state).await.unwrap();
        let row = world.store().run(run_id(1)).await.unwrap().unwrap();
        assert_eq!((row.state, row.reason.as_deref()), (expected, reason));
        world.look(1).await;
    }
}

/// Guards I8. Mechanism: `finished` and a final state come together, once.
async fn a_final_run_takes_nothing_more(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    let contradictions = [
        (vec![], Some(RunState::Failed)),
        (vec![succeeded("a", 1)], Some(RunState::Succeeded)),
        (vec![finished(RunState::Failed)], Some(RunState::Succeeded)),
        (vec![finished(RunState::Failed)], Some(RunState::Running)),
        (vec![finished(RunState::Running)], None),
        (vec![finished(RunState::Failed), succeeded("a", 1)], None),
    ];
    for (events, state) in contradictions {
        let refused = world.store().append(&claim, events, state).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid { .. }), "{refused}");
        world.saw(refused);
    }
    world.store().append(&claim, vec![finished(RunState::Failed)], None).await.unwrap();
    let row = world.store().run(run_id(1)).await.unwrap().unwrap();
    assert_eq!((row.owner.clone(), row.lease_until, row.finished_at), (None, None, Some(row.updated_at)));
    let over = StoreError::Final { run: run_id(1), state: RunState::Failed };
    assert_eq!(world.store().append(&claim, vec![succeeded("a", 1)], None).await.unwrap_err(), over);
    assert_eq!(world.store().claim(run_id(1), "host:2").await.unwrap_err(), over);
    world.look(1).await;
}

/// Guards I5 and I8 against callers: these two events are the store's own.
async fn the_store_alone_creates_and_claims(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    for event in [new_run(1).created, Event::Claimed { owner: "host:9".into() }] {
        let refused = world.store().append(&claim, vec![event], None).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid { .. }), "{refused}");
        world.saw(refused);
    }
}

/// Guards replay: entries come back as they were written, in order. Mechanism: sequence numbers without gaps.
async fn journals_read_in_order_from_anywhere(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    let mut appended = Vec::new();
    for step in 0..150 {
        world.clock.advance_ms(7);
        let events = (0..step % 3).map(|part| succeeded(&format!("s{step}_{part}"), 1)).collect();
        appended.extend(world.store().append(&claim, events, None).await.unwrap());
    }
    let journal = world.store().journal(run_id(1)).await.unwrap();
    assert_eq!(journal[2..], appended);
    assert!(journal.iter().zip(1..).all(|(entry, seq)| entry.seq == seq));
    for after in [-5, 0, 1, 77, 151, 152, 1_000] {
        let first = usize::try_from(after).unwrap_or(0).min(journal.len());
        assert_eq!(world.store().journal_after(run_id(1), after).await.unwrap(), journal[first..], "{after}");
    }
    world.look(1).await;
}

/// Guards G1: what was acknowledged is there. Mechanism: commit before answer.
async fn everything_is_there_after_a_restart(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    let text = Value::text("ünï \u{0} \u{1F525} \" \\ \n");
    let odd = Value::map([
        ("tiny", Value::Float(1e-9)),
        ("max", Value::Int(i64::MAX)),
        ("text", text),
        ("no", Value::Null),
    ]);
    let events = vec![
        node("a[x]", 1, NodeEvent::Expanded { keys: vec!["k]".into(), "".into()] }),
        node("b", 1, NodeEvent::Succeeded { output: odd, changed: 0 }),
        large("c", 300_000),
        failed("d", 3, false),
    ];
    let entries = world.store().append(&claim, events, None).await.unwrap();
    world.restart().await;
    assert_eq!(world.store().journal(run_id(1)).await.unwrap()[2..], entries);
    world.look(1).await;
}

/// Guards section 11: after a restart nobody waits for the leases of a process that is gone. Mechanism: the generation.
async fn a_new_generation_expires_old_claims_at_once(world: &mut World) {
    let old = world.create_and_claim(1).await;
    world.restart().await;
    // Nobody has claimed since, so the truth may still be recorded, but no effect may begin.
    let fenced = StoreError::Fenced { run: run_id(1), epoch: 1 };
    assert_eq!(world.store().append(&old, vec![intent("a", 1)], None).await.unwrap_err(), fenced);
    world.store().append(&old, vec![failed("b", 1, false)], None).await.unwrap();
    let new = world.store().claim(run_id(1), "host:2").await.unwrap();
    assert_eq!(new.epoch, 2);
    assert_eq!(world.store().append(&old, vec![succeeded("c", 1)], None).await.unwrap_err(), fenced);
    world.look(1).await;
}

/// Guards the lists of the command line and the pages.
async fn runs_are_listed_newest_first_and_filtered(world: &mut World) {
    for number in 1..=6 {
        // Two of them in the same millisecond: the id decides.
        world.clock.advance_ms(i64::from(number != 4));
        let mut new = new_run(number);
        new.parent = (number == 5).then(|| run_id(1));
        if number % 2 == 0 {
            new.runbook = "even".into();
            if let Event::Created { runbook, .. } = &mut new.created {
                *runbook = "even".into();
            }
        }
        world.store().create_run(new).await.unwrap();
    }
    world.store().claim(run_id(2), "host:1").await.unwrap();
    // One ends, and time goes on.
    let ending = world.store().claim(run_id(4), "host:1").await.unwrap();
    let end = Event::Finished { state: RunState::Failed, outputs: Value::Null, failure: None };
    world.store().append(&ending, vec![end], None).await.unwrap();
    let ended_at = world.store().run(run_id(4)).await.unwrap().unwrap().finished_at.unwrap();
    let before = ended_at - Duration::from_millis(1);
    let three = world.store().run(run_id(3)).await.unwrap().unwrap();
    let id = run_id(6).to_string();
    let all = RunFilter::default;
    let cases: Vec<(RunFilter, Vec<u16>)> = vec![
        (all(), vec![6, 5, 4, 3, 2, 1]),
        (RunFilter { limit: Some(2), ..all() }, vec![6, 5]),
        (RunFilter { runbook: Some("even".into()), ..all() }, vec![6, 4, 2]),
        (RunFilter { parent: Some(run_id(1)), ..all() }, vec![5]),
        (RunFilter { states: vec![RunState::Running, RunState::Parked], ..all() }, vec![2]),
        (
            RunFilter {
                states: vec![RunState::Running, RunState::Queued],
                runbook: Some("even".into()),
                limit: Some(2),
                ..all()
            },
            vec![6, 2],
        ),
        (RunFilter { id_prefix: Some(id[..13].to_uppercase()), ..all() }, vec![6, 5, 4, 3, 2, 1]),
        (RunFilter { id_prefix: Some(id.clone()), ..all() }, vec![6]),
        (RunFilter { id_prefix: Some(String::new()), limit: Some(1), ..all() }, vec![6]),
        (RunFilter { id_prefix: Some("%".into()), ..all() }, vec![]),
        (RunFilter { ended_after: Some(before), ..all() }, vec![4]),
        (RunFilter { ended_after: Some(before), runbook: Some("odd".into()), ..all() }, vec![]),
        (RunFilter { ended_after: Some(ended_at), ..all() }, vec![]),
        (RunFilter { before: Some((three.created_at, three.id)), ..all() }, vec![2, 1]),
    ];
    for (filter, expected) in cases {
        let rows = world.store().runs(filter.clone()).await.unwrap();
        let expected: Vec<_> = expected.into_iter().map(run_id).collect();
        assert_eq!(rows.iter().map(|row| row.id).collect::<Vec<_>>(), expected, "{filter:?}");
        world.saw(rows);
    }
}

/// Guards "a run is pinned to the text it started with". Mechanism: bundles by digest, never replaced.
async fn bundles_are_kept_by_digest(world: &mut World) {
    let sources: BTreeMap<Text, Text> =
        [("sweep".into(), "runbook: sweep\n".into()), ("child".into(), "steps: {}\n".repeat(10_000).into())]
            .into();
    let digest = Digest::of("one");
    assert_eq!(world.store().bundle(digest).await.unwrap(), None);
    world.store().put_bundle(digest, "sweep", &sources).await.unwrap();
    world.store().put_bundle(digest, "other", &BTreeMap::new()).await.unwrap();
    world.restart().await;
    assert_eq!(world.store().bundle(digest).await.unwrap(), Some(("sweep".into(), sources)));
}

/// A run that is not there is said to be not there, whatever is asked.
async fn unknown_runs_are_errors(world: &mut World) {
    let run = run_id(7);
    let claim = Claim { run, epoch: 1, next_seq: 2 };
    let missing = StoreError::NoRun { run };
    assert_eq!(world.store().claim(run, "host:1").await.unwrap_err(), missing);
    assert_eq!(world.store().append(&claim, vec![succeeded("a", 1)], None).await.unwrap_err(), missing);
    assert_eq!(world.store().release(&claim).await.unwrap_err(), missing);
    assert_eq!(world.store().journal(run).await.unwrap_err(), missing);
    assert_eq!(world.store().journal_after(run, 3).await.unwrap_err(), missing);
    assert_eq!(world.store().audit(run).await.unwrap_err(), missing);
    assert_eq!(world.store().run(run).await.unwrap(), None);
}

fn suspended(world: &World, after_ms: Option<i64>) -> Event {
    let until = after_ms.map(|ms| world.clock.at(ms));
    Event::Suspended { until, reason: "step `pause` waits".into() }
}

/// Lets go of a claimed run until `after_ms` from the clock's start.
async fn suspend(world: &World, claim: &Claim, after_ms: Option<i64>) {
    let event = suspended(world, after_ms);
    world.store().append(claim, vec![event], Some(RunState::Waiting)).await.unwrap();
}

fn request(number: u128, by: &str) -> Request {
    let at = farrier_model::time::Timestamp::from_millisecond(1_800_000_000_000).unwrap();
    Request {
        id: uuid::Uuid::from_u128(number),
        at,
        by: by.into(),
        ask: Ask::Cancel { undo: false, reason: None },
    }
}

async fn due(world: &mut World) -> Vec<String> {
    let due = world.store().due(10).await.unwrap();
    let titles = due.runs.iter().map(|row| row.title.to_string()).collect();
    world.saw(due);
    titles
}

/// A waiting run has no owner and no lease; it is found when its moment has come, the longest due first.
async fn a_suspended_run_is_a_row_with_a_moment(world: &mut World) {
    for (number, after) in [(1, Some(3_000)), (2, Some(1_000)), (3, None)] {
        let claim = world.create_and_claim(number).await;
        let two = vec![suspended(world, after), succeeded("a", 1)];
        let refused = world.store().append(&claim, two, None).await.unwrap_err();
        assert!(matches!(refused, StoreError::Invalid { .. }), "nothing follows it in its batch");
        suspend(world, &claim, after).await;
        let row = world.store().run(run_id(number)).await.unwrap().unwrap();
        assert_eq!((row.state, row.owner.as_ref(), row.lease_until), (RunState::Waiting, None, None));
        let late = world.store().append(&claim, vec![succeeded("a", 1)], None).await.unwrap_err();
        assert!(matches!(late, StoreError::Fenced { .. }), "{late}");
    }
    assert_eq!(due(world).await, [""; 0]);
    world.clock.advance_ms(5_000);
    assert_eq!(due(world).await, ["sweep 2", "sweep 1"]);
    let environment = world.store().run(run_id(1)).await.unwrap().unwrap().environment;
    for (names, found) in [
        (vec![environment.clone()], 2),
        (vec!["elsewhere".into(), environment], 2),
        (vec!["elsewhere".into()], 0),
        (Vec::new(), 0),
    ] {
        let due = world.store().due_in(Some(&names), 10).await.unwrap();
        assert_eq!(due.runs.len(), found, "{names:?}");
        world.saw(due);
    }
    let claim = world.store().claim(run_id(2), "host:2").await.unwrap();
    assert_eq!(due(world).await, ["sweep 1"], "who is claimed is not due");
    world.store().release(&claim).await.unwrap();
    assert_eq!(due(world).await, ["sweep 1", "sweep 2"], "who was let go without an end is");
    world.restart().await;
    world.create_and_claim(4).await;
    assert_eq!(due(world).await, ["sweep 1", "sweep 2"]);
    world.restart().await;
    assert_eq!(due(world).await, ["sweep 1", "sweep 2", "sweep 4"], "an owner that died is no owner");
    for number in 1..=4 {
        world.look(number).await;
    }
}

/// K16: what was asked while nobody worked on the run is found by whoever takes it up, and once.
async fn requests_wait_for_the_owner_and_make_a_waiting_run_due(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    suspend(world, &claim, None).await;
    world.store().request(run_id(1), request(7, "ada")).await.unwrap();
    world.store().request(run_id(1), request(7, "ada")).await.unwrap();
    world.store().request(run_id(1), request(8, "grace")).await.unwrap();
    assert_eq!(due(world).await, ["sweep 1"]);
    world.restart().await;
    let open = world.store().requests(run_id(1)).await.unwrap();
    assert_eq!(open.iter().map(|request| &*request.by).collect::<Vec<_>>(), ["ada", "grace"]);
    let claim = world.store().claim(run_id(1), "host:2").await.unwrap();
    let answer = Event::CancelRequested { by: "ada".into(), undo: false, reason: None };
    let batch = Batch::new(vec![answer], None).taking(vec![open[0].id]);
    world.store().append_batch(&claim, batch.clone()).await.unwrap();
    world.store().append_batch(&claim, batch).await.unwrap();
    let open = world.store().requests(run_id(1)).await.unwrap();
    assert_eq!(open.len(), 1, "one is answered, the other is still open");
    world.saw(open);
    world
        .store()
        .append(&claim, vec![finished(RunState::Cancelled)], Some(RunState::Cancelled))
        .await
        .unwrap();
    let late = world.store().request(run_id(1), request(9, "ada")).await.unwrap_err();
    assert!(matches!(late, StoreError::Final { .. }));
    world.saw((late, world.store().requests(run_id(1)).await.unwrap()));
}

async fn a_parked_run_that_is_asked_is_due(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    world.store().append(&claim, vec![parked("a guard asks")], None).await.unwrap();
    world.store().release(&claim).await.unwrap();
    assert_eq!(due(world).await, [""; 0], "a parked run waits for a person");
    world.store().request(run_id(1), request(1, "ada")).await.unwrap();
    assert_eq!(due(world).await, ["sweep 1"]);
}

async fn what_comes_while_a_run_lets_go_is_not_slept_over(world: &mut World) {
    let claim = world.create_and_claim(1).await;
    world.store().request(run_id(1), request(1, "ada")).await.unwrap();
    suspend(world, &claim, None).await;
    assert_eq!(due(world).await, ["sweep 1"], "it lets go without having seen the request");
    world.look(1).await;
}

fn lock_asked(lock: &str, node: Option<&str>, capacity: u32) -> Event {
    let node = node.map(NodeName::step);
    Event::LockAsked { lock: lock.into(), node, capacity, until: None }
}

async fn line(world: &mut World) -> Vec<(String, bool)> {
    let tickets = world.store().tickets(None).await.unwrap();
    let line = tickets.iter().map(|ticket| (ticket.run.to_string(), ticket.held_since.is_some())).collect();
    world.saw(tickets);
    line
}

/// First come, first served; asking twice keeps the place; numbers only grow.
async fn locks_are_lines_of_tickets(world: &mut World) {
    let mut claims = Vec::new();
    for number in 1..=3 {
        let claim = world.create_and_claim(number).await;
        for _ in 0..2 {
            world.store().append(&claim, vec![lock_asked("nodes", None, 1)], None).await.unwrap();
        }
        claims.push(claim);
        world.clock.advance_ms(10);
    }
    let of = |number| run_id(number).to_string();
    assert_eq!(line(world).await, [(of(1), true), (of(2), false), (of(3), false)]);
    suspend(world, &claims[1], None).await;
    suspend(world, &claims[2], None).await;
    assert_eq!(due(world).await, [""; 0]);
    let released = Event::LockReleased { lock: "nodes".into(), node: None };
    world.store().append(&claims[0], vec![released], None).await.unwrap();
    assert_eq!(line(world).await, [(of(2), true), (of(3), false)]);
    assert_eq!(due(world).await, ["sweep 2"], "who is next in line is due, and nobody else");
    world.store().append(&claims[0], vec![lock_asked("nodes", None, 1)], None).await.unwrap();
    assert_eq!(line(world).await, [(of(2), true), (of(3), false), (of(1), false)]);
    let numbers: Vec<i64> =
        world.store().tickets(None).await.unwrap().iter().map(|ticket| ticket.number).collect();
    assert_eq!(numbers, [2, 3, 4], "a place is never used again");
    // Nodes of one run stand in line for themselves; another lock is another line.
    let two = vec![
        lock_asked("rows", Some("a"), 2),
        lock_asked("rows", Some("b"), 2),
        lock_asked("rows", Some("c"), 2),
    ];
    world.store().append(&claims[0], two, None).await.unwrap();
    let own = world.store().tickets(Some(run_id(1))).await.unwrap();
    let held: Vec<bool> = own.iter().map(|ticket| ticket.held_since.is_some()).collect();
    assert_eq!(held, [false, true, true, false]);
    world.restart().await;
    line(world).await;
}

async fn a_lock_is_given_back_with_the_end_of_its_run(world: &mut World) {
    let first = world.create_and_claim(1).await;
    let second = world.create_and_claim(2).await;
    world.store().append(&first, vec![lock_asked("nodes", None, 1)], None).await.unwrap();
    world.store().append(&second, vec![lock_asked("nodes", None, 1)], None).await.unwrap();
    // The first ends before the second has let go: the lock that came meanwhile is not slept over.
    world
        .store()
        .append(&first, vec![finished(RunState::Succeeded)], Some(RunState::Succeeded))
        .await
        .unwrap();
    suspend(world, &second, None).await;
    assert_eq!(line(world).await, [(run_id(2).to_string(), true)]);
    assert_eq!(due(world).await, ["sweep 2"]);
    let second = world.store().claim(run_id(2), "host:2").await.unwrap();
    let taken = Event::LockTaken { lock: "nodes".into(), node: None, fence: 2 };
    world.store().append(&second, vec![taken], None).await.unwrap();
    suspend(world, &second, None).await;
    assert_eq!(due(world).await, [""; 0], "what it knows of does not wake it again");
    world.look(2).await;
}

async fn the_end_of_a_child_makes_its_parent_due(world: &mut World) {
    for (child, end) in [(2, finished(RunState::Succeeded)), (3, parked("step `a`"))] {
        world.clock.advance_ms(10);
        let mut new = new_run(child);
        new.parent = Some(run_id(1));
        world.store().create_run(new_run(1)).await.unwrap();
        world.store().create_run(new).await.unwrap();
        let parent = world.store().claim(run_id(1), "host:1").await.unwrap();
        let claim = world.store().claim(run_id(child), "host:1").await.unwrap();
        world.clock.advance_ms(10);
        suspend(world, &parent, None).await;
        assert!(!due(world).await.contains(&"sweep 1".to_owned()));
        world.store().append(&claim, vec![end], None).await.unwrap();
        world.store().release(&claim).await.unwrap();
        assert_eq!(due(world).await, ["sweep 1"]);
    }
    // All of this happens within one instant. What ended before the parent was taken up, it has seen.
    let parent = world.store().claim(run_id(1), "host:1").await.unwrap();
    suspend(world, &parent, None).await;
    assert_eq!(due(world).await, [""; 0], "what it knows of does not wake it again");
    // What ends while it is at work, it may not have seen.
    let mut new = new_run(4);
    new.parent = Some(run_id(1));
    world.store().create_run(new).await.unwrap();
    let child = world.store().claim(run_id(4), "host:1").await.unwrap();
    let parent = world.store().claim(run_id(1), "host:1").await.unwrap();
    world.store().append(&child, vec![finished(RunState::Succeeded)], None).await.unwrap();
    suspend(world, &parent, None).await;
    assert_eq!(due(world).await, ["sweep 1"]);
    world.look(1).await;
}

async fn one_run_per_key_is_alive(world: &mut World) {
    let keyed = |number, key: &str| {
        let mut new = new_run(number);
        new.live_key = Some(key.into());
        new
    };
    assert!(world.store().create_run(keyed(1, "a")).await.unwrap());
    assert!(world.store().create_run(keyed(2, "b")).await.unwrap());
    let refused = world.store().create_run(keyed(3, "a")).await.unwrap_err();
    assert_eq!(refused, StoreError::KeyTaken { run: run_id(1), key: "a".into() });
    assert_eq!(world.store().run(run_id(3)).await.unwrap(), None);
    world.saw(refused);
    let claim = world.store().claim(run_id(1), "host:1").await.unwrap();
    world.store().append(&claim, vec![finished(RunState::Failed)], Some(RunState::Failed)).await.unwrap();
    assert!(world.store().create_run(keyed(3, "a")).await.unwrap());
}

async fn a_saved_plan_is_carried_out_once(world: &mut World) {
    let planned = |number, digest: &str| {
        let mut new = new_run(number);
        if let Event::Created { plan, .. } = &mut new.created {
            *plan = Some(Box::new(BoundPlan { digest: Digest::of(digest), plan: Value::Null, run: None }));
        }
        new
    };
    assert!(world.store().create_run(planned(1, "x")).await.unwrap());
    let refused = world.store().create_run(planned(2, "x")).await.unwrap_err();
    assert_eq!(refused, StoreError::PlanUsed { run: run_id(1) });
    assert_eq!(world.store().run(run_id(2)).await.unwrap(), None, "nothing of it stays");
    world.restart().await;
    assert!(world.store().create_run(planned(2, "x")).await.is_err());
    assert!(world.store().create_run(planned(2, "y")).await.unwrap());
    world.look(2).await;
}

async fn executions_are_counted_over_time(world: &mut World) {
    let begun = world.clock.at(-1);
    let claim = world.create_and_claim(1).await;
    let events = vec![
        intent("boot", 1),
        intent("boot[a]", 1),
        intent("boot[b]", 1),
        intent("booted", 1),
        succeeded("x", 1),
    ];
    world.store().append(&claim, events, None).await.unwrap();
    world.clock.advance_ms(1_000);
    let later = world.clock.at(500);
    let claim = world.create_and_claim(2).await;
    world.store().append(&claim, vec![intent("boot[c]", 1)], None).await.unwrap();
    let step = Executed::Step { runbook: "sweep".into(), step: "boot".into() };
    let other = Executed::Step { runbook: "other".into(), step: "boot".into() };
    let runs = Executed::Runs { runbook: "sweep".into() };
    for (of, since, count) in
        [(&step, begun, 4), (&step, later, 1), (&other, begun, 0), (&runs, begun, 2), (&runs, later, 1)]
    {
        assert_eq!(world.store().executions(of, since).await.unwrap(), count, "{of:?} since {since}");
    }
    // A run that was taken back does not count, and neither does one that ended before it changed anything. Two go on.
    for (number, began, end, counts) in [
        (3, true, RunState::Undone, false),
        (4, false, RunState::Failed, false),
        (5, true, RunState::Failed, true),
        (6, false, RunState::Succeeded, false),
    ] {
        let before = world.store().executions(&runs, begun).await.unwrap();
        let claim = world.create_and_claim(number).await;
        assert_eq!(
            world.store().executions(&runs, begun).await.unwrap(),
            before + 1,
            "while {number} goes on"
        );
        let mut events = vec![finished(end)];
        if began {
            events.splice(..0, [intent("boot", 1), succeeded("boot", 1)]);
        }
        world.store().append(&claim, events, Some(end)).await.unwrap();
        let after = world.store().executions(&runs, begun).await.unwrap();
        assert_eq!(after, before + u64::from(counts), "{number} ended {end:?}");
    }
}
