//! Alerts, incidents and their runs in one transaction, on SQLite: what opens, joins, is held, closes, and what a crash leaves.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use farrier_alert::{Arrival, Fuse, Ignored, Message, Policy, Rate, Routed, Rule};
use farrier_model::event::Trigger;
use farrier_model::time::Timestamp;
use farrier_model::{Ask, Digest, Event, RunId, RunState, Value};
use farrier_store::{
    Arriving, Clock, IncidentFilter, IncidentRow, Intake, NewRun, NoticeFilter, OpenOptions, Outbox, Outcome,
    Released, RunFilter, SqliteStore, Store, StoreError, Taken, fsck,
};
use serde_json::json;
use uuid::Uuid;

const START: i64 = 1_800_000_000_000;

/// A store with a clock of its own.
struct World {
    store: SqliteStore,
    now: Arc<AtomicI64>,
    policy: Policy,
    destructive: bool,
    frozen: bool,
    live_key: bool,
    _folder: Option<tempfile::TempDir>,
}

async fn open(folder: &Path, now: Arc<AtomicI64>) -> SqliteStore {
    let clock = Clock::from_fn(move || Timestamp::from_millisecond(now.load(Ordering::Relaxed)).unwrap());
    SqliteStore::open(folder, OpenOptions { clock, ..OpenOptions::default() }).await.unwrap()
}

impl World {
    async fn new() -> World {
        let folder = tempfile::tempdir().unwrap();
        let now = Arc::new(AtomicI64::new(START));
        World {
            store: open(folder.path(), now.clone()).await,
            now,
            policy: Policy {
                after_success: Duration::from_secs(3600),
                after_failure: Duration::from_secs(7200),
                max_active: 10_000,
                rate: Rate { burst: 10_000, every: Duration::from_secs(1) },
                fuse: Fuse { runs: 10_000, failures: 10_000, within: Duration::from_secs(600) },
                ..Policy::default()
            },
            destructive: false,
            frozen: false,
            live_key: false,
            _folder: Some(folder),
        }
    }

    fn pass(&self, seconds: i64) {
        self.now.fetch_add(seconds * 1000, Ordering::Relaxed);
    }

    #[expect(clippy::unused_self, reason = "reads as a question to the world")]
    fn at(&self, second: i64) -> String {
        Timestamp::from_millisecond(START + second * 1000).unwrap().to_string()
    }

    /// An alert of `instance` that began, and ended, so many seconds after the start.
    fn arriving(
        &self,
        receiver: &str,
        instance: &str,
        disk: &str,
        began: i64,
        ended: Option<i64>,
    ) -> Arriving {
        let body = json!({
            "groupKey": "g",
            "alerts": [{
                "status": if ended.is_some() { "resolved" } else { "firing" },
                "labels": { "alertname": "DiskFull", "instance": instance, "disk": disk },
                "startsAt": self.at(began),
                "endsAt": ended.map_or("0001-01-01T00:00:00Z".into(), |ended| self.at(ended)),
            }],
        });
        let message = Message::read(body.to_string().as_bytes()).unwrap();
        let rule = Rule {
            policy: self.policy.clone(),
            owner: "admins".into(),
            destructive: self.destructive,
            writes: true,
            frozen: self.frozen,
            doubt: None,
        };
        let routed =
            Routed { environment: "tools".into(), runbook: "disk".into(), key: instance.into(), rule };
        let bundle = Digest::of("texts");
        let run = NewRun {
            id: RunId(Uuid::nil()),
            runbook: "disk".into(),
            bundle,
            environment: "tools".into(),
            title: format!("clean {instance}").into(),
            parent: None,
            live_key: self.live_key.then(|| "one".into()),
            created: Event::Created {
                runbook: "disk".into(),
                bundle,
                environment: "tools".into(),
                inputs: Value::map([("node", Value::text(instance))]),
                trigger: Trigger::Alert { incident: "".into(), receiver: receiver.into(), proposed: false },
                plan: None,
            },
        };
        let arrival = Arrival::new(receiver, &message, &message.alerts[0], Ok(routed));
        Arriving { arrival, run: Some(run) }
    }

    fn firing(&self, instance: &str, began: i64) -> Arriving {
        self.arriving("in", instance, "a", began, None)
    }

    fn resolved(&self, instance: &str, began: i64, ended: i64) -> Arriving {
        self.arriving("in", instance, "a", began, Some(ended))
    }

    async fn take(&self, arriving: Vec<Arriving>) -> Taken {
        self.store.take(arriving).await.unwrap()
    }

    async fn one(&self, arriving: Arriving) -> Outcome {
        self.take(vec![arriving]).await.outcomes.remove(0)
    }

    async fn incidents(&self, open: bool) -> Vec<IncidentRow> {
        self.store.incidents(IncidentFilter { open, ..IncidentFilter::default() }).await.unwrap()
    }

    async fn runs(&self) -> usize {
        self.store.runs(RunFilter::default()).await.unwrap().len()
    }

    async fn finish(&self, run: RunId, state: RunState) {
        let claim = self.store.claim(run, "h:1").await.unwrap();
        let finished = Event::Finished { state, outputs: Value::Null, failure: None };
        self.store.append(&claim, vec![finished], None).await.unwrap();
    }

    async fn is_whole(&self) {
        let report = fsck(&self.store).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.violations);
    }
}

#[tokio::test]
async fn the_first_alert_starts_a_run_and_every_copy_joins() {
    let world = World::new().await;
    let first = world.one(world.firing("node-1", 0)).await;
    assert_eq!((first.decision, first.new), ("started", true));
    let run = first.run.unwrap();
    let journal = world.store.journal(run).await.unwrap();
    let Event::Created { trigger: Trigger::Alert { incident, receiver, proposed }, .. } = &journal[0].event
    else {
        panic!("{journal:?}")
    };
    assert_eq!(**incident, first.incident.unwrap().to_string());
    assert_eq!((&**receiver, *proposed), ("in", false));
    // A repeat, a second Prometheus whose clock differs, another receiver, another disk of the same machine.
    for copy in [
        world.firing("node-1", 0),
        world.firing("node-1", 3),
        world.arriving("other", "node-1", "a", 0, None),
        world.arriving("in", "node-1", "b", 0, None),
    ] {
        let outcome = world.one(copy).await;
        assert_eq!((outcome.decision, outcome.incident), ("joined", first.incident));
    }
    assert_eq!((world.runs().await, world.incidents(true).await.len()), (1, 1));
    let events = world.store.events(first.incident, 100).await.unwrap();
    assert_eq!(events.iter().map(|event| event.seen).collect::<Vec<_>>().iter().sum::<u64>(), 5);
    assert_eq!((events[0].decision.as_str(), events[0].seen), ("started", 2), "{events:?}");
    world.is_whole().await;
}

#[tokio::test]
async fn what_takes_no_route_is_kept_with_the_reason() {
    let world = World::new().await;
    let mut stray = world.firing("node-1", 0);
    stray.arrival.routed =
        Err(Ignored { runbook: "disk".into(), reason: "input `node`: `x` does not match".into() });
    let outcome = world.one(stray).await;
    assert_eq!((outcome.decision, outcome.run), ("ignored", None));
    assert_eq!(world.runs().await, 0);
    let events = world.store.events(None, 10).await.unwrap();
    assert_eq!(events[0].why, "input `node`: `x` does not match");
    assert!(events[0].body.contains("node-1"));
    world.is_whole().await;
}

#[tokio::test]
async fn a_resolution_withdraws_the_run_and_the_incident_closes_with_it() {
    let world = World::new().await;
    let run = world.one(world.firing("node-1", 0)).await.run.unwrap();
    world.pass(10);
    let outcome = world.one(world.resolved("node-1", 0, 9)).await;
    assert_eq!((outcome.decision, outcome.stops), ("cancels", Some(run)));
    world.one(world.resolved("node-1", 0, 9)).await;
    let requests = world.store.requests(run).await.unwrap();
    assert!(matches!(requests.as_slice(), [one] if matches!(one.ask, Ask::Withdraw { .. })), "{requests:?}");
    assert_eq!(world.incidents(true).await.len(), 1, "its run is alive");
    world.finish(run, RunState::Cancelled).await;
    let incident = &world.incidents(false).await[0];
    assert!(incident.closed_at.is_some() && incident.resolved_at.is_some());
    // The copy of a slower Alertmanager.
    assert_eq!(world.one(world.firing("node-1", 0)).await.decision, "late");
    world.is_whole().await;
    // It fires anew: a run that was withdrawn is no reason to wait.
    world.pass(10);
    assert_eq!(world.one(world.firing("node-1", 15)).await.decision, "started");
    assert_eq!((world.runs().await, world.incidents(false).await.len()), (2, 2));
    world.is_whole().await;
}

#[tokio::test]
async fn a_run_that_writes_is_not_withdrawn() {
    let world = World::new().await;
    let run = world.one(world.firing("node-1", 0)).await.run.unwrap();
    let claim = world.store.claim(run, "h:1").await.unwrap();
    world
        .store
        .append(&claim, vec![Event::WritesAllowed { creates: 1, updates: 0, deletes: 0 }], None)
        .await
        .unwrap();
    let outcome = world.one(world.resolved("node-1", 0, 5)).await;
    assert_eq!((outcome.decision, outcome.stops), ("noted", None));
    assert!(world.store.requests(run).await.unwrap().is_empty());
    let finished = Event::Finished { state: RunState::Succeeded, outputs: Value::Null, failure: None };
    world.store.append(&claim, vec![finished], None).await.unwrap();
    assert_eq!(world.incidents(true).await.len(), 0);
    world.is_whole().await;
}

#[tokio::test]
async fn an_incident_lasts_until_none_of_its_alerts_fires() {
    let world = World::new().await;
    let both = vec![world.firing("node-1", 0), world.arriving("in", "node-1", "b", 0, None)];
    let taken = world.take(both).await;
    assert_eq!(taken.outcomes.iter().map(|one| one.decision).collect::<Vec<_>>(), ["started", "joined"]);
    world.finish(taken.outcomes[0].run.unwrap(), RunState::Succeeded).await;
    world.pass(60);
    assert_eq!(
        world.one(world.resolved("node-1", 0, 50)).await.why,
        "other alerts of the incident still fire"
    );
    assert_eq!(world.one(world.arriving("in", "node-1", "b", 0, Some(55))).await.decision, "closed");
    assert_eq!(world.incidents(true).await.len(), 0);
    // Before its alert came: nothing is open.
    assert_eq!(world.one(world.resolved("node-2", 0, 50)).await.decision, "noted");
    assert_eq!(world.one(world.firing("node-2", 0)).await.decision, "late");
    world.is_whole().await;
}

#[tokio::test]
async fn after_a_run_the_incident_cools_down_and_goes_on_by_itself() {
    let world = World::new().await;
    let run = world.one(world.firing("node-1", 0)).await.run.unwrap();
    world.finish(run, RunState::Failed).await;
    world.pass(15);
    assert_eq!(
        world.one(world.firing("node-1", 0)).await.decision,
        "joined",
        "the other Alertmanager's copy"
    );
    world.pass(4 * 60);
    assert_eq!(world.one(world.firing("node-1", 1)).await.decision, "cooling");
    assert_eq!(world.store.start_held(100, &[]).await.unwrap().runs, []);
    world.pass(7200);
    let released = world.store.start_held(100, &["tools".into()]).await.unwrap();
    assert_eq!((released.runs.len(), released.held), (0, 1), "frozen");
    let released = world.store.start_held(100, &[]).await.unwrap();
    assert_eq!((released.runs.len(), released.held), (1, 0));
    let incident = &world.incidents(true).await[0];
    assert_eq!((incident.runs, incident.run, &incident.held), (2, Some(released.runs[0]), &None));
    assert_eq!(world.store.incident_runs(incident.id).await.unwrap(), [run, released.runs[0]]);
    world.is_whole().await;
}

#[tokio::test]
async fn what_is_scarce_goes_to_the_important_and_the_rest_follows() {
    let mut world = World::new().await;
    world.policy.rate = Rate { burst: 1, every: Duration::from_secs(10) };
    let low = world.firing("node-1", 0);
    world.policy.priority = 5;
    let high = world.firing("node-2", 0);
    world.policy.priority = 0;
    let taken = world.take(vec![low, high, world.firing("node-3", 0)]).await;
    assert_eq!(
        taken.outcomes.iter().map(|one| one.decision).collect::<Vec<_>>(),
        ["held", "started", "held"]
    );
    assert_eq!(world.store.start_held(100, &[]).await.unwrap().runs.len(), 0);
    world.pass(10);
    assert_eq!(world.store.start_held(100, &[]).await.unwrap().runs.len(), 1);
    // What has resolved meanwhile does not start any more.
    let held = world.incidents(true).await.into_iter().find(|incident| incident.held.is_some()).unwrap();
    assert_eq!(world.one(world.resolved(&held.key, 0, 5)).await.decision, "closed");
    world.pass(60);
    assert_eq!(world.store.start_held(100, &[]).await.unwrap().runs.len(), 0);
    assert_eq!(world.runs().await, 2);
    world.is_whole().await;
}

#[tokio::test]
async fn a_key_that_another_run_has_is_waited_for() {
    let mut world = World::new().await;
    world.live_key = true;
    let run = world.one(world.firing("node-1", 0)).await.run.unwrap();
    let outcome = world.one(world.firing("node-2", 0)).await;
    assert_eq!((outcome.decision, outcome.run), ("held", None));
    assert!(outcome.why.contains(&run.to_string()), "{}", outcome.why);
    world.finish(run, RunState::Succeeded).await;
    assert_eq!(world.store.start_held(100, &[]).await.unwrap().runs.len(), 1);
    world.is_whole().await;
}

/// It is asked for every few seconds, for as long as a service lives.
#[tokio::test]
async fn asking_in_vain_for_what_is_held_writes_nothing() {
    let world = World::new().await;
    let commits = || world.store.counts().commits;
    let none = commits();
    assert_eq!(world.store.start_held(100, &[]).await.unwrap(), Released::default());
    assert_eq!(commits(), none);

    let run = world.one(world.firing("node-1", 0)).await.run.unwrap();
    world.finish(run, RunState::Succeeded).await;
    assert_eq!(world.one(world.firing("node-1", 60)).await.decision, "cooling");
    let one = commits();
    let released = world.store.start_held(100, &[]).await.unwrap();
    assert_eq!((released.held, released.runs.len(), commits()), (1, 0, one));
    world.pass(3600);
    let released = world.store.start_held(100, &[]).await.unwrap();
    assert_eq!((released.held, released.runs.len(), commits()), (0, 1, one + 1));
}

/// What was decided, and whether it had an incident, a run, a run to stop, and was new.
type Told = (&'static str, bool, bool, bool, bool);

fn told(outcomes: &[Outcome]) -> Vec<Told> {
    outcomes
        .iter()
        .map(|one| (one.decision, one.incident.is_some(), one.run.is_some(), one.stops.is_some(), one.new))
        .collect()
}

/// Alerts that are taken in together are decided in memory. They must do what they do when each is written before the next.
#[tokio::test]
async fn alerts_taken_together_do_what_they_do_one_after_the_other() {
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..20_u64 {
        let (mut together, mut apart) = (World::new().await, World::new().await);
        for world in [&mut together, &mut apart] {
            world.live_key = seed % 3 == 0;
            world.policy.max_active = if seed % 4 == 1 { 2 } else { 10_000 };
            world.destructive = seed % 5 == 2;
            world.policy.fuse.runs = if world.destructive { 1 } else { 10_000 };
            // Late copies are what has ended some time ago.
            world.pass(3600);
        }
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut below = |end: i64| {
            // Marsaglia's xorshift.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state % end.unsigned_abs()).cast_signed()
        };
        for _ in 0..4 {
            let alerts: Vec<_> = (0..12)
                .map(|_| {
                    let (node, disk) = (format!("node-{}", below(3)), format!("disk-{}", below(2)));
                    let began = 600 * below(6);
                    let ended = (below(3) == 0).then(|| began + 300 + 600 * below(3));
                    (node, disk, began, ended)
                })
                .collect();
            let all = |world: &World| {
                let alert = |(node, disk, began, ended): &(String, String, i64, Option<i64>)| {
                    world.arriving("in", node, disk, *began, *ended)
                };
                alerts.iter().map(alert).collect::<Vec<_>>()
            };
            let at_once = together.take(all(&together)).await.outcomes;
            let mut in_turn = Vec::new();
            for alert in all(&apart) {
                in_turn.push(apart.one(alert).await);
            }
            assert_eq!(told(&at_once), told(&in_turn), "seed {seed}: {alerts:?}");
            seen.extend(at_once.iter().map(|one| one.decision));
            // Runs end, so that incidents close, cool down, and open again.
            let ends = below(2) == 0;
            for world in [&together, &apart] {
                let runs = world.store.runs(RunFilter::default()).await.unwrap();
                let mut alive: Vec<_> = runs.iter().filter(|run| !run.state.is_final()).collect();
                alive.sort_by_key(|run| run.title.clone());
                for run in alive.iter().filter(|_| ends) {
                    world.finish(run.id, RunState::Succeeded).await;
                }
                world.pass(100);
            }
            assert_eq!(summary(&together).await, summary(&apart).await, "seed {seed}");
        }
        together.is_whole().await;
        apart.is_whole().await;
    }
    let all = ["cancels", "closed", "cooling", "fused", "held", "joined", "late", "noted", "started"];
    assert!(all.iter().all(|decision| seen.contains(decision)), "only {seen:?} came up");
}

/// Incidents and how often their news came, in an order that does not depend on ids.
async fn summary(world: &World) -> Vec<String> {
    let mut lines = Vec::new();
    for incident in world.incidents(false).await {
        let IncidentRow { key, runs, held, resolved_at, closed_at, .. } = &incident;
        let mut events: Vec<_> = world.store.events(Some(incident.id), 1000).await.unwrap();
        events.sort_by_key(|event| (event.body.clone(), event.status.clone(), event.last_at));
        let events: Vec<_> =
            events.iter().map(|event| (&event.status, event.seen, &event.decision)).collect();
        lines.push(format!("{key} {runs} {held:?} {resolved_at:?} {closed_at:?} {events:?}"));
    }
    lines.sort();
    lines
}

/// T21 at the store: 10,000 alerts in 200 groups, everything twice.
#[tokio::test]
async fn a_storm_makes_one_run_for_each_incident() {
    let world = World::new().await;
    let mut requests = Vec::new();
    for group in 0..200 {
        for _ in 0..2 {
            let alerts = (0..50)
                .map(|disk| world.arriving("in", &format!("node-{group}"), &format!("disk-{disk}"), 0, None));
            requests.push(alerts.collect::<Vec<_>>());
        }
    }
    let answers = requests.into_iter().map(|request| {
        let store = world.store.clone();
        tokio::spawn(async move { store.take(request).await.unwrap() })
    });
    let mut started = 0;
    for answer in answers.collect::<Vec<_>>() {
        let taken = answer.await.unwrap();
        assert!(taken.blown.is_empty());
        started += taken.outcomes.iter().filter(|outcome| outcome.decision == "started").count();
    }
    assert_eq!((started, world.runs().await, world.incidents(true).await.len()), (200, 200, 200));
    world.is_whole().await;
}

#[tokio::test]
async fn the_fuse_blows_once_and_a_person_mends_it() {
    let mut world = World::new().await;
    world.destructive = true;
    world.policy.fuse = Fuse { runs: 3, failures: 100, within: Duration::from_secs(600) };
    let mut blown = 0;
    for node in 0..20 {
        blown += world.take(vec![world.firing(&format!("node-{node}"), 0)]).await.blown.len();
    }
    assert_eq!((blown, world.runs().await, world.incidents(true).await.len()), (1, 3, 20));
    let notices = world.store.notices(NoticeFilter::default()).await.unwrap();
    assert_eq!(notices.len(), 1, "people hear of it once");
    assert_eq!((&*notices[0].notice.to, &*notices[0].notice.occasion), ("admins", "fuse"));
    let fuses = world.store.fuses().await.unwrap();
    assert_eq!((fuses.len(), fuses[0].held, &*fuses[0].runbook), (1, 17, "disk"));
    world.pass(3600);
    assert_eq!(world.store.start_held(100, &[]).await.unwrap().runs.len(), 0, "time does not mend it");
    assert_eq!(world.store.unfuse(None, "disk", "ada", "one switch was down").await.unwrap(), 1);
    assert_eq!(world.store.unfuse(None, "disk", "ada", "again").await.unwrap(), 0);
    let released = world.store.start_held(100, &[]).await.unwrap();
    assert_eq!((released.runs.len(), released.blown.len()), (3, 1), "and it blows again");
    world.is_whole().await;
}

#[tokio::test]
async fn failures_blow_the_fuse_too() {
    let mut world = World::new().await;
    world.policy.fuse.failures = 2;
    for node in 0..2 {
        let run = world.one(world.firing(&format!("node-{node}"), 0)).await.run.unwrap();
        world.finish(run, RunState::Failed).await;
    }
    let outcome = world.one(world.firing("node-9", 0)).await;
    assert_eq!(outcome.decision, "fused");
    assert!(outcome.why.contains("did not succeed"), "{}", outcome.why);
    world.is_whole().await;
}

/// K2: committed, and killed before anybody was told.
#[tokio::test]
async fn a_request_whose_answer_was_lost_may_come_again() {
    let folder = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let mut world = World::new().await;
    world.store = open(folder.path(), now.clone()).await;
    let request = || vec![world.firing("node-1", 0), world.firing("node-2", 0)];
    // Nobody waits for the answer.
    let mut asked = Box::pin(world.store.take(request()));
    let _ = futures_poll(&mut asked).await;
    drop(asked);
    let again = request();
    world.store.close().await;
    let store = open(folder.path(), now).await;
    let taken = store.take(again).await.unwrap();
    assert!(taken.outcomes.iter().all(|outcome| matches!(outcome.decision, "joined" | "started")));
    assert_eq!(store.runs(RunFilter::default()).await.unwrap().len(), 2);
    assert!(fsck(&store).await.unwrap().is_clean());
}

/// Lets a future begin.
async fn futures_poll<F: Future + Unpin>(future: &mut F) -> bool {
    std::future::poll_fn(|cx| std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(cx).is_ready()))
        .await
}

#[tokio::test]
async fn what_is_old_is_forgotten_and_what_is_open_is_not() {
    let world = World::new().await;
    let run = world.one(world.firing("node-1", 0)).await.run.unwrap();
    world.finish(run, RunState::Succeeded).await;
    world.one(world.resolved("node-1", 0, 1)).await;
    world.one(world.firing("node-2", 0)).await;
    world.pass(100 * 86_400);
    let before = Timestamp::from_millisecond(START + 50 * 86_400_000).unwrap();
    assert_eq!(world.store.forget(before).await.unwrap(), 3, "two events and an incident");
    let left = world.incidents(false).await;
    assert_eq!((left.len(), &*left[0].key), (1, "node-2"));
    assert_eq!(world.store.events(Some(left[0].id), 10).await.unwrap().len(), 1);
    world.is_whole().await;
}

#[tokio::test]
async fn a_store_for_reading_takes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let now = Arc::new(AtomicI64::new(START));
    let owner = open(folder.path(), now).await;
    let reader = SqliteStore::open(folder.path(), OpenOptions::read_only()).await.unwrap();
    assert_eq!(reader.take(Vec::new()).await, Err(StoreError::ReadOnly));
    assert_eq!(reader.incidents(IncidentFilter::default()).await.unwrap(), []);
    owner.close().await;
}
