//! The ledger of schedules on SQLite: decisions, runs and cursors are one, whoever races or dies.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use farrier_model::event::Trigger;
use farrier_model::time::Timestamp;
use farrier_model::{Digest, Event, RunId, RunState, Value};
use farrier_schedule::{
    Calendar, CatchUp, Decision, Due, Overlap, Pending, ScheduleId, Skip, Spec, Turn, What, verdicts,
};
use farrier_store::{
    Clock, Fire, Fired, Ledger, Mode, NewRun, NewSchedule, Notice, NoticeFilter, OpenOptions, Outbox,
    Retention, ScheduleRow, SqliteStore, Store, fsck, run_of,
};
use uuid::Uuid;

const START: i64 = 1_790_000_040_000;

/// A clock that tests move.
#[derive(Clone)]
struct Hands(Arc<AtomicI64>);

impl Hands {
    fn new() -> Hands {
        Hands(Arc::new(AtomicI64::new(START)))
    }

    fn clock(&self) -> Clock {
        let hands = self.clone();
        Clock::from_fn(move || hands.now())
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.0.load(Ordering::SeqCst)).unwrap()
    }

    fn pass(&self, seconds: i64) {
        self.0.fetch_add(seconds * 1000, Ordering::SeqCst);
    }
}

async fn open(dir: &Path, hands: &Hands) -> SqliteStore {
    let options = OpenOptions { mode: Mode::Owner, clock: hands.clock(), ..OpenOptions::default() };
    SqliteStore::open(dir, options).await.unwrap()
}

fn minutely() -> Spec {
    Spec::new(Due::Every(Duration::from_secs(60)))
}

fn wanted(runbook: &str, spec: Spec) -> NewSchedule {
    NewSchedule {
        id: ScheduleId::new("e", runbook, 1),
        environment: "e".into(),
        runbook: runbook.into(),
        spec,
    }
}

fn run(cluster: Uuid, schedule: &ScheduleRow, nominal: Timestamp) -> NewRun {
    let bundle = Digest::of("");
    NewRun {
        id: run_of(cluster, &schedule.id, nominal),
        runbook: schedule.runbook.clone(),
        bundle,
        environment: schedule.environment.clone(),
        title: "t".into(),
        parent: None,
        live_key: None,
        created: Event::Created {
            runbook: schedule.runbook.clone(),
            bundle,
            environment: schedule.environment.clone(),
            inputs: Value::Null,
            trigger: Trigger::Schedule { schedule: schedule.id.0.clone(), nominal },
            plan: None,
        },
    }
}

/// What a clock does with one schedule that may be due.
fn fire_of(cluster: Uuid, schedule: &ScheduleRow, now: Timestamp) -> Option<Fire> {
    let calendar = Calendar::new(&schedule.id, &schedule.spec).unwrap();
    let turn: Turn = verdicts(&Pending {
        spec: &schedule.spec,
        calendar: &calendar,
        cursor: schedule.cursor,
        now,
        jump: None,
        destructive: false,
        frozen: false,
    })?;
    let starts = turn.verdicts.iter().filter(|verdict| verdict.what == What::Start);
    let runs = starts.map(|verdict| (verdict.nominal, run(cluster, schedule, verdict.nominal))).collect();
    Some(Fire {
        schedule: schedule.id.clone(),
        spec: schedule.spec.clone(),
        spec_version: schedule.spec_version,
        cursor: schedule.cursor,
        turn,
        runs,
    })
}

/// Fires whatever is due, until nothing is.
async fn fire_all(store: &SqliteStore, hands: &Hands) -> Vec<Decision> {
    let cluster = store.cluster().await.unwrap();
    let mut all = Vec::new();
    loop {
        let rows = store.next_schedules(100).await.unwrap();
        let fires: Vec<Fire> = rows.iter().filter_map(|row| fire_of(cluster, row, hands.now())).collect();
        if fires.is_empty() {
            return all;
        }
        for fired in store.fire(fires).await.unwrap() {
            match fired {
                Fired::Done { decisions, .. } => {
                    all.extend(decisions.into_iter().map(|(_, decision)| decision));
                }
                Fired::Moved => panic!("nobody else is there"),
            }
        }
    }
}

/// Ends a run as its owner would.
async fn end(store: &SqliteStore, run: RunId) {
    let claim = store.claim(run, "h:1").await.unwrap();
    let finished = Event::Finished { state: RunState::Succeeded, outputs: Value::Null, failure: None };
    store.append(&claim, vec![finished], None).await.unwrap();
}

async fn is_clean(store: &SqliteStore) {
    let report = fsck(store).await.unwrap();
    assert!(report.is_clean(), "{:?}", report.violations);
}

async fn schedule(store: &SqliteStore) -> ScheduleRow {
    store.schedules(true).await.unwrap().remove(0).0
}

/// T20: every minute for two hours, and the owner dies again and again, between and within its transactions.
#[tokio::test]
async fn t20_whoever_dies_each_due_time_has_one_decision_and_one_run() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let mut store = open(dir.path(), &hands).await;
    store.put_schedules(vec![wanted("r", Spec { overlap: Overlap::Allow, ..minutely() })]).await.unwrap();
    let cluster = store.cluster().await.unwrap();
    for second in (0..7_200).step_by(5) {
        hands.pass(5);
        let row = schedule(&store).await;
        if let Some(fire) = fire_of(cluster, &row, hands.now()) {
            // Every third time the caller dies before it hears the answer; what was sent may be done or not.
            if second % 15 == 0 {
                drop(tokio::time::timeout(Duration::from_micros(50), store.fire(vec![fire])).await);
            } else {
                store.fire(vec![fire]).await.unwrap();
            }
        }
        if second % 20 == 0 {
            store.close().await;
            store = open(dir.path(), &hands).await;
        }
    }
    fire_all(&store, &hands).await;
    let id = ScheduleId::new("e", "r", 1);
    let fires = store.fires(&id, 1_000).await.unwrap();
    let mut nominals: Vec<Timestamp> = fires.iter().map(|fire| fire.nominal).collect();
    nominals.dedup();
    assert_eq!((fires.len(), nominals.len()), (120, 120));
    assert!(
        fires
            .iter()
            .all(|fire| fire.decision == "run" && fire.run == Some(run_of(cluster, &id, fire.nominal)))
    );
    assert_eq!(store.runs(farrier_store::RunFilter::default()).await.unwrap().len(), 120);
    is_clean(&store).await;
}

/// T20b: nobody was there for three due times.
#[tokio::test]
async fn t20b_what_was_missed_is_recorded_by_its_policy() {
    for (catch_up, expected) in [
        (CatchUp::None, ["skipped", "skipped", "skipped"]),
        (CatchUp::Latest, ["coalesced", "coalesced", "run"]),
        (CatchUp::All, ["skipped", "run", "run"]),
    ] {
        let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
        let store = open(dir.path(), &hands).await;
        let spec = Spec {
            due: Due::Every(Duration::from_secs(600)),
            overlap: Overlap::Allow,
            catch_up,
            at_most: 2,
            ..minutely()
        };
        store.put_schedules(vec![wanted("r", spec)]).await.unwrap();
        store.close().await;
        hands.pass(1_950);
        let store = open(dir.path(), &hands).await;
        fire_all(&store, &hands).await;
        let mut fires = store.fires(&ScheduleId::new("e", "r", 1), 10).await.unwrap();
        fires.reverse();
        let decisions: Vec<&str> = fires.iter().map(|fire| fire.decision.as_str()).collect();
        assert_eq!(decisions, expected, "{catch_up:?}");
        is_clean(&store).await;
    }
}

/// T20e: two clocks race on one store, and a run takes longer than the time between two due times.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t20e_two_clocks_never_start_two_runs_that_overlap() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let store = open(dir.path(), &hands).await;
    let secondly = Spec { due: Due::Every(Duration::from_secs(1)), ..minutely() };
    store.put_schedules(vec![wanted("r", secondly)]).await.unwrap();
    let cluster = store.cluster().await.unwrap();
    let (mut going, mut ran, mut moved) = (None, 0, 0);
    for round in 0..10_000 {
        hands.pass(1);
        let row = store.next_schedules(1).await.unwrap().remove(0);
        let fire = fire_of(cluster, &row, hands.now()).unwrap();
        let (one, two) = tokio::join!(store.fire(vec![fire.clone()]), store.fire(vec![fire]));
        let answers = [one.unwrap().remove(0), two.unwrap().remove(0)];
        let mut decided = 0;
        for answer in answers {
            match answer {
                Fired::Moved => moved += 1,
                Fired::Done { decisions, .. } => {
                    decided += 1;
                    for (nominal, decision) in decisions {
                        match (going, decision) {
                            (None, Decision::Run { held: false, .. }) => {
                                going = Some(run_of(cluster, &row.id, nominal));
                                ran += 1;
                            }
                            (Some(run), Decision::Skipped(Skip::Overlap(other))) => assert_eq!(run, other),
                            (going, decision) => panic!("round {round}: {decision:?} beside {going:?}"),
                        }
                    }
                }
            }
        }
        assert_eq!(decided, 1, "round {round}");
        if round % 7 == 6
            && let Some(run) = going.take()
        {
            end(&store, run).await;
        }
    }
    assert!(ran > 1_000 && moved == 10_000, "{ran} runs, {moved} were too late");
    is_clean(&store).await;
}

#[tokio::test]
async fn a_run_that_waits_for_another_begins_when_that_has_ended() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let store = open(dir.path(), &hands).await;
    store.put_schedules(vec![wanted("r", Spec { overlap: Overlap::Queue, ..minutely() })]).await.unwrap();
    let cluster = store.cluster().await.unwrap();
    let mut nominals = Vec::new();
    for expected in ["run", "held", "coalesced"] {
        hands.pass(60);
        let nominal = schedule(&store).await.next_due.unwrap();
        let decision = fire_all(&store, &hands).await.remove(0);
        let is = match decision {
            Decision::Run { held: true, .. } => "held",
            Decision::Run { .. } => "run",
            Decision::Coalesced(into) => {
                assert_eq!(into, nominals[1]);
                "coalesced"
            }
            Decision::Skipped(why) => panic!("{why}"),
        };
        assert_eq!(is, expected);
        nominals.push(nominal);
    }
    let id = ScheduleId::new("e", "r", 1);
    let (first, second) = (run_of(cluster, &id, nominals[0]), run_of(cluster, &id, nominals[1]));
    let due = |due: farrier_store::Due| due.runs.iter().map(|row| row.id).collect::<Vec<_>>();
    assert_eq!(due(store.due(10).await.unwrap()), [first]);
    end(&store, first).await;
    assert_eq!(due(store.due(10).await.unwrap()), [second]);
    end(&store, second).await;
    is_clean(&store).await;
}

#[tokio::test]
async fn a_run_that_is_due_again_is_asked_to_end_first() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let store = open(dir.path(), &hands).await;
    store
        .put_schedules(vec![wanted("r", Spec { overlap: Overlap::CancelRunning, ..minutely() })])
        .await
        .unwrap();
    hands.pass(60);
    fire_all(&store, &hands).await;
    let first = store.due(10).await.unwrap().runs[0].id;
    hands.pass(60);
    let decision = fire_all(&store, &hands).await.remove(0);
    assert_eq!(decision, Decision::Run { held: true, cancel: vec![first] });
    let asked = store.requests(first).await.unwrap();
    assert_eq!((asked.len(), asked[0].by.as_str()), (1, "schedule e/r"));
    assert_eq!(store.due(10).await.unwrap().runs[0].id, first);
    end(&store, first).await;
    assert_ne!(store.due(10).await.unwrap().runs[0].id, first);
    is_clean(&store).await;
}

#[tokio::test]
async fn a_paused_schedule_records_what_it_does_not_start() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let store = open(dir.path(), &hands).await;
    let id = ScheduleId::new("e", "r", 1);
    store.put_schedules(vec![wanted("r", minutely())]).await.unwrap();
    assert!(!store.pause(&ScheduleId::new("e", "other", 1), "ada", "why").await.unwrap());
    assert!(!store.unpause(&id).await.unwrap());
    assert!(store.pause(&id, "ada", "the disk is being moved").await.unwrap());
    assert!(store.pause(&id, "bob", "me too").await.unwrap());
    let paused = schedule(&store).await.paused.unwrap();
    assert_eq!(
        (paused.by.as_str(), paused.why.as_str(), paused.at),
        ("ada", "the disk is being moved", hands.now())
    );
    hands.pass(180);
    let decisions = fire_all(&store, &hands).await;
    assert_eq!(decisions, vec![Decision::Skipped(Skip::Paused); 3]);
    assert!(store.unpause(&id).await.unwrap());
    assert_eq!(fire_all(&store, &hands).await, []);
    hands.pass(60);
    assert!(matches!(fire_all(&store, &hands).await[..], [Decision::Run { .. }]));
    is_clean(&store).await;
}

#[tokio::test]
async fn an_edited_schedule_starts_nothing_for_the_time_before_and_a_retired_one_nothing_at_all() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let store = open(dir.path(), &hands).await;
    let synced = store.put_schedules(vec![wanted("a", minutely()), wanted("b", minutely())]).await.unwrap();
    assert_eq!((synced.added, synced.edited, synced.retired), (2, 0, 0));
    hands.pass(3600);
    let before = schedule(&store).await;
    let cluster = store.cluster().await.unwrap();
    let stale = fire_of(cluster, &before, hands.now()).unwrap();
    let often = Spec { due: Due::Every(Duration::from_secs(30)), ..minutely() };
    let synced = store.put_schedules(vec![wanted("a", often.clone())]).await.unwrap();
    assert_eq!((synced.added, synced.edited, synced.retired), (0, 1, 1));
    // Whoever saw it before is refused, and so is whoever fires what is not there any more.
    assert_eq!(store.fire(vec![stale]).await.unwrap(), [Fired::Moved]);
    let after = schedule(&store).await;
    assert_eq!((after.spec_version, after.cursor), (2, hands.now()));
    assert_eq!(fire_all(&store, &hands).await, []);
    hands.pass(30);
    assert_eq!(fire_all(&store, &hands).await.len(), 1);
    // The same again changes nothing; what comes back begins anew.
    assert!(!store.put_schedules(vec![wanted("a", often.clone())]).await.unwrap().is_change());
    let synced = store.put_schedules(vec![wanted("a", often), wanted("b", minutely())]).await.unwrap();
    assert_eq!((synced.added, synced.edited, synced.retired), (1, 0, 0));
    assert_eq!(fire_all(&store, &hands).await, []);
    is_clean(&store).await;
}

#[tokio::test]
async fn two_runs_with_one_key_are_not_alive_together() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let store = open(dir.path(), &hands).await;
    let spec = Spec { overlap: Overlap::Allow, catch_up: CatchUp::All, ..minutely() };
    store.put_schedules(vec![wanted("r", spec)]).await.unwrap();
    let cluster = store.cluster().await.unwrap();
    hands.pass(120);
    let mut fire = fire_of(cluster, &schedule(&store).await, hands.now()).unwrap();
    for (_, run) in &mut fire.runs {
        run.live_key = Some("the only one".into());
    }
    let Fired::Done { decisions, .. } = store.fire(vec![fire]).await.unwrap().remove(0) else { panic!() };
    assert!(matches!(decisions[0].1, Decision::Run { .. }));
    assert!(matches!(decisions[1].1, Decision::Skipped(Skip::KeyTaken(_))));
    is_clean(&store).await;
}

#[tokio::test]
async fn records_go_with_their_age_and_leave_no_gap() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let store = open(dir.path(), &hands).await;
    let daily = Spec { due: Due::Every(Duration::from_secs(86_400)), overlap: Overlap::Allow, ..minutely() };
    store.put_schedules(vec![wanted("r", daily)]).await.unwrap();
    for _ in 0..100 {
        hands.pass(86_400);
        fire_all(&store, &hands).await;
        let due = store.due(1).await.unwrap().runs;
        end(&store, due[0].id).await;
    }
    let keep = farrier_store::Keep { keep: Duration::from_secs(86_400), at_least: 5 };
    let retention = Retention { others: Some(keep), ..Retention::default() };
    let pruned = store.prune(&retention).await.unwrap();
    assert_eq!(pruned.runs, 95);
    let left = store.fires(&ScheduleId::new("e", "r", 1), 1_000).await.unwrap().len();
    assert!((89..=91).contains(&left), "{left}");
    is_clean(&store).await;
    hands.pass(86_400);
    fire_all(&store, &hands).await;
    is_clean(&store).await;
}

/// I6 and I7 bite.
#[tokio::test]
async fn fsck_finds_a_gap_and_a_lost_run() {
    use sqlx::ConnectOptions as _;
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let store = open(dir.path(), &hands).await;
    let file = store.file().to_path_buf();
    store.put_schedules(vec![wanted("r", Spec { overlap: Overlap::Allow, ..minutely() })]).await.unwrap();
    for _ in 0..5 {
        hands.pass(60);
        fire_all(&store, &hands).await;
    }
    is_clean(&store).await;
    store.close().await;
    let mut raw = sqlx::sqlite::SqliteConnectOptions::new().filename(file).connect().await.unwrap();
    for sql in [
        "DELETE FROM fire WHERE nominal = (SELECT min(nominal) + 120000 FROM fire)",
        "UPDATE fire SET run_id = 'cafe' WHERE nominal = (SELECT max(nominal) FROM fire)",
    ] {
        sqlx::query(sql).execute(&mut raw).await.unwrap();
    }
    sqlx::Connection::close(raw).await.unwrap();
    let store = open(dir.path(), &hands).await;
    let found = fsck(&store).await.unwrap().violations;
    assert!(found.iter().any(|violation| violation.invariant == "I6"), "{found:?}");
    assert!(found.iter().any(|violation| violation.invariant == "I7"), "{found:?}");
}

fn tell() -> Notice {
    Notice {
        id: Uuid::now_v7(),
        run: None,
        environment: "e".into(),
        to: "owner".into(),
        occasion: "overdue".into(),
        subject: "r in e is overdue".into(),
        body: String::new(),
    }
}

#[tokio::test]
async fn alarms_are_raised_once_and_taken_back() {
    use farrier_store::AlarmKind::{ClockBack, Overdue};
    let (dir, hands) = (tempfile::tempdir().unwrap(), Hands::new());
    let store = open(dir.path(), &hands).await;
    assert!(store.raise(Overdue, "e/r", "no success for 10m", vec![tell()]).await.unwrap());
    assert!(!store.raise(Overdue, "e/r", "no success for 20m", vec![tell()]).await.unwrap());
    assert!(store.raise(ClockBack, "clock", "it went back", Vec::new()).await.unwrap());
    let told = store.notices(NoticeFilter::default()).await.unwrap();
    assert_eq!(told.len(), 1, "an alarm is told once");
    let alarms = store.alarms().await.unwrap();
    assert_eq!(
        (alarms.len(), alarms[0].kind, alarms[0].message.as_str()),
        (2, Overdue, "no success for 10m")
    );
    assert!(store.clear(Overdue, "e/r").await.unwrap() && !store.clear(Overdue, "e/r").await.unwrap());
    assert_eq!(store.seen_at().await.unwrap(), None);
    store.see().await.unwrap();
    assert_eq!(store.seen_at().await.unwrap(), Some(hands.now()));
}
