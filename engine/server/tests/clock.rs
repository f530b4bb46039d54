//! The clock's loop over a real store, in simulated time.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use farrier_action::{ActionRegistry, Targets};
use farrier_exec::driver::{Start, Unobserved, World};
use farrier_exec::{Driver, Halt, Options};
use farrier_model::event::Trigger;
use farrier_model::spec::Catalog;
use farrier_model::time::Timestamp;
use farrier_model::{Text, Value};
use farrier_runbook::{Bundle, compile_bundle};
use farrier_schedule::{Due, Overlap, ScheduleId, Spec};
use farrier_server::clock::{ClockObserver, Clockwork, Job, Jobs, Poker, Watch};
use farrier_store::{
    Alarm, AlarmKind, Clock, FireRow, Ledger, NewSchedule, OpenOptions, Outbox as _, ScheduleRow,
    SqliteStore, fsck,
};
use tokio::sync::watch;
use tokio::task::JoinHandle;

const START: i64 = 1_790_000_040_000;

/// One runbook under some schedules.
struct Minutely {
    bundle: Arc<Bundle>,
    spec: Spec,
    destructive: bool,
    success_every: Option<Duration>,
}

fn jobs(spec: Spec, change: impl FnOnce(&mut Minutely)) -> Arc<dyn Jobs> {
    let bundle = Arc::new(nothing());
    let mut jobs = Minutely { bundle, spec, destructive: false, success_every: None };
    change(&mut jobs);
    Arc::new(jobs)
}

/// A runbook of one step that has nothing to do; it is never driven here.
fn nothing() -> Bundle {
    let registry = registry();
    let text = "runbook: tick\nsummary: x\nowner: x\nrisk: read_only\n\
                steps:\n  a: { uses: flow.note, with: { message: x } }\n";
    let sources = BTreeMap::from([(Text::from("tick"), Text::from(text))]);
    let catalog: &Catalog = registry.catalog();
    compile_bundle("tick", &sources, catalog).map_err(|mistakes| mistakes.render(false)).unwrap()
}

fn registry() -> ActionRegistry {
    let mut registry = ActionRegistry::default();
    farrier_plugin_flow::register(&mut registry).unwrap();
    registry
}

impl Jobs for Minutely {
    fn schedules(&self) -> Vec<NewSchedule> {
        let (environment, runbook) = ("e".into(), "tick".into());
        vec![NewSchedule {
            id: ScheduleId::new("e", "tick", 1),
            environment,
            runbook,
            spec: self.spec.clone(),
        }]
    }

    fn job(&self, schedule: &ScheduleRow) -> Option<Job> {
        let targets = Arc::new(Targets::new(PathBuf::from("/"), Vec::new(), BTreeMap::new()));
        let start = Start {
            bundle: self.bundle.clone(),
            world: World::new("e", targets),
            inputs: Value::map::<&str>([]),
            trigger: Trigger::Schedule { schedule: schedule.id.0.clone(), nominal: schedule.cursor },
            plan: None,
        };
        Some(Job { start: Ok(start), destructive: self.destructive, frozen: false })
    }

    fn told(&self) -> Vec<Text> {
        vec!["e".into(), "f".into()]
    }

    fn watched(&self) -> Vec<Watch> {
        let watch = |success_every| Watch {
            environment: "e".into(),
            runbook: "tick".into(),
            schedule: ScheduleId::new("e", "tick", 1),
            success_every,
            owner: "owner".into(),
        };
        self.success_every.map(watch).into_iter().collect()
    }
}

#[derive(Default)]
struct Heard(Mutex<Vec<(bool, AlarmKind)>>);

impl ClockObserver for Heard {
    fn raised(&self, alarm: &Alarm) {
        self.0.lock().unwrap().push((true, alarm.kind));
    }

    fn cleared(&self, kind: AlarmKind, _: &str) {
        self.0.lock().unwrap().push((false, kind));
    }
}

struct Bench {
    store: SqliteStore,
    hands: Arc<AtomicI64>,
    poker: Poker,
    jobs: watch::Sender<Arc<dyn Jobs>>,
    heard: Arc<Heard>,
    halt: watch::Sender<Halt>,
    work: JoinHandle<Result<(), farrier_store::StoreError>>,
}

impl Bench {
    async fn new(dir: &Path, hands: &Arc<AtomicI64>, jobs: Arc<dyn Jobs>) -> Bench {
        let moved = hands.clone();
        let clock =
            Clock::from_fn(move || Timestamp::from_millisecond(moved.load(Ordering::SeqCst)).unwrap());
        let options = OpenOptions { clock: clock.clone(), ..OpenOptions::default() };
        let store = SqliteStore::open(dir, options).await.unwrap();
        let (halt, halted) = watch::channel(Halt::No);
        let driver = Driver::new(
            Arc::new(registry()),
            Arc::new(store.clone()),
            clock.clone(),
            Options::default(),
            Arc::new(Unobserved),
            halted.clone(),
        );
        let (jobs, known) = watch::channel(jobs);
        let heard = Arc::new(Heard::default());
        let clockwork = Clockwork::new(Arc::new(store.clone()), driver, clock, known, heard.clone(), halted);
        let poker = clockwork.poker();
        let work = tokio::spawn(clockwork.run(false));
        Bench { store, hands: hands.clone(), poker, jobs, heard, halt, work }
    }

    fn pass(&self, seconds: i64) {
        self.hands.fetch_add(seconds * 1000, Ordering::SeqCst);
        self.poker.poke();
    }

    async fn fires(&self) -> Vec<FireRow> {
        self.store.fires(&ScheduleId::new("e", "tick", 1), 10_000).await.unwrap()
    }

    /// Waits until the condition holds; the loop is poked meanwhile.
    async fn until(&self, what: &str, condition: impl AsyncFn(&Bench) -> bool) {
        for _ in 0..6_000 {
            if condition(self).await {
                return;
            }
            self.poker.poke();
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("waited in vain: {what}");
    }

    async fn end(self) {
        let report = fsck(&self.store).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.violations);
        self.halt.send(Halt::LetGo).unwrap();
        self.work.await.unwrap().unwrap();
        self.store.close().await;
    }
}

fn minutely() -> Spec {
    Spec { overlap: Overlap::Allow, ..Spec::new(Due::Every(Duration::from_secs(60))) }
}

fn hands() -> Arc<AtomicI64> {
    Arc::new(AtomicI64::new(START))
}

#[tokio::test]
async fn what_is_due_starts_and_an_edit_counts_at_once() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), hands());
    let bench = Bench::new(dir.path(), &hands, jobs(minutely(), |_| {})).await;
    bench
        .until("the schedule is known", async |bench| !bench.store.schedules(false).await.unwrap().is_empty())
        .await;
    for minute in 1..=5 {
        bench.pass(60);
        bench.until("a run starts", async |bench| bench.fires().await.len() == minute).await;
    }
    assert!(bench.fires().await.iter().all(|fire| fire.decision == "run"));
    let often = Spec { due: Due::Every(Duration::from_secs(10)), ..minutely() };
    bench.jobs.send(jobs(often, |_| {})).unwrap();
    bench
        .until("the edit is stored", async |bench| {
            bench.store.schedules(false).await.unwrap()[0].0.spec_version == 2
        })
        .await;
    bench.pass(10);
    bench.until("it is due sooner", async |bench| bench.fires().await.len() == 6).await;
    bench.end().await;
}

#[tokio::test]
async fn a_clock_that_jumps_while_nobody_is_there_stops_what_destroys() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), hands());
    let destructive = || jobs(minutely(), |jobs| jobs.destructive = true);
    let bench = Bench::new(dir.path(), &hands, destructive()).await;
    bench.until("the time is noted", async |bench| bench.store.seen_at().await.unwrap().is_some()).await;
    bench.end().await;
    hands.fetch_add(3 * 86_400_000, Ordering::SeqCst);
    let bench = Bench::new(dir.path(), &hands, destructive()).await;
    bench
        .until("it is decided", async |bench| {
            let (row, _) = bench.store.schedules(false).await.unwrap().remove(0);
            row.cursor.as_millisecond() == START / 60_000 * 60_000 + 3 * 86_400_000
        })
        .await;
    let (row, _) = bench.store.schedules(false).await.unwrap().remove(0);
    assert_eq!(row.paused.unwrap().by, "farrier");
    assert!(bench.fires().await.iter().all(|fire| fire.decision == "skipped"));
    assert!(bench.heard.0.lock().unwrap().contains(&(true, AlarmKind::ClockJumped)));
    // Whoever can be told is told, once, with the alarm.
    let told = bench.store.notices(farrier_store::NoticeFilter::default()).await.unwrap();
    let mut told: Vec<(&str, &str, &str)> =
        told.iter().map(|row| (&*row.notice.environment, &*row.notice.to, &*row.notice.occasion)).collect();
    told.sort_unstable();
    assert_eq!(told, [("e", "*", "clock_jumped"), ("f", "*", "clock_jumped")]);
    bench.end().await;
}

#[tokio::test]
async fn a_clock_that_goes_back_fires_nothing_twice() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), hands());
    let bench = Bench::new(dir.path(), &hands, jobs(minutely(), |_| {})).await;
    bench
        .until("the schedule is known", async |bench| !bench.store.schedules(false).await.unwrap().is_empty())
        .await;
    bench.pass(60);
    bench.until("a run starts", async |bench| bench.fires().await.len() == 1).await;
    bench.pass(-600);
    let told = async |bench: &Bench| bench.heard.0.lock().unwrap().contains(&(true, AlarmKind::ClockBack));
    bench.until("the alarm", told).await;
    assert_eq!(bench.fires().await.len(), 1);
    bench.pass(660);
    bench.until("the next run", async |bench| bench.fires().await.len() == 2).await;
    assert!(bench.heard.0.lock().unwrap().contains(&(false, AlarmKind::ClockBack)));
    let told = bench.store.notices(farrier_store::NoticeFilter::default()).await.unwrap();
    assert_eq!(told.iter().filter(|row| &*row.notice.occasion == "clock_back").count(), 2);
    bench.end().await;
}

#[tokio::test]
async fn a_task_that_does_not_succeed_rings() {
    let (dir, hands) = (tempfile::tempdir().unwrap(), hands());
    let watched = jobs(minutely(), |jobs| jobs.success_every = Some(Duration::from_secs(300)));
    let bench = Bench::new(dir.path(), &hands, watched).await;
    bench
        .until("the schedule is known", async |bench| !bench.store.schedules(false).await.unwrap().is_empty())
        .await;
    bench.pass(290);
    bench.until("runs start", async |bench| !bench.fires().await.is_empty()).await;
    assert!(bench.store.alarms().await.unwrap().is_empty());
    bench.pass(30);
    bench.until("the alarm", async |bench| !bench.store.alarms().await.unwrap().is_empty()).await;
    // A person who pauses it knows.
    bench.store.pause(&ScheduleId::new("e", "tick", 1), "ada", "why").await.unwrap();
    bench.pass(20);
    bench.until("no alarm", async |bench| bench.store.alarms().await.unwrap().is_empty()).await;
    assert_eq!(*bench.heard.0.lock().unwrap(), [(true, AlarmKind::Overdue), (false, AlarmKind::Overdue)]);
    bench.end().await;
}
