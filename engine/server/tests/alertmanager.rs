//! Debian's Prometheus and two of its Alertmanagers in a cluster, against intake behind a small listener: a rule fires, one
//! run follows though the first answers are 503 and everything comes from both, it runs, the metric recovers, the incident
//! closes.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Bytes;
use axum::extract::{Path as InPath, State};
use axum::http::StatusCode;
use axum::routing::{get, post};
use farrier_action::ActionRegistry;
use farrier_exec::driver::{ProceedAlways, Start, Unobserved};
use farrier_exec::{Driver, Halt, Options};
use farrier_model::{Event, RunState};
use farrier_project::Set;
use farrier_server::intake::{Intake, Outcome};
use farrier_store::{
    Clock, IncidentFilter, IncidentRow, Intake as _, OpenOptions, RunFilter, SqliteStore, Store as _, fsck,
};
use farrier_testkit::prometheus::{Alertmanager, Prometheus, Watch};

const CLEAN: &str = r#"runbook: clean
summary: Cleans a disk
owner: admins
risk: read_only
inputs: { node: { type: host, pattern: "127[.]0[.]0[.]1" } }
triggers:
  - alert:
      match: ['alertname="DiskFull"']
      per: alert.labels.instance | host
      inputs: { node: "${ alert.labels.instance | host }" }
steps:
  one: { uses: data.let, with: { value: "${ inputs.node }" } }
"#;

const RULES: &str = "groups: [{ name: disk, rules: [{ alert: DiskFull, expr: disk_free == 0 }] }]\n";

struct Service {
    intake: Intake<SqliteStore>,
    set: Set,
    full: AtomicBool,
    /// So many requests are answered with 503, as by a service that cannot write.
    out: AtomicU64,
    /// The answer to the first request that was stored is lost.
    loses: AtomicBool,
    asked: AtomicU64,
}

async fn metrics(State(service): State<Arc<Service>>) -> String {
    format!("# TYPE disk_free gauge\ndisk_free {}\n", u8::from(!service.full.load(Ordering::Relaxed)))
}

async fn webhook(
    State(service): State<Arc<Service>>,
    InPath(receiver): InPath<String>,
    body: Bytes,
) -> StatusCode {
    service.asked.fetch_add(1, Ordering::Relaxed);
    if service.out.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
        return StatusCode::SERVICE_UNAVAILABLE;
    }
    match service.intake.handle(&receiver, &body, &service.set).await {
        Outcome::Accepted(_) if service.loses.swap(false, Ordering::Relaxed) => StatusCode::BAD_GATEWAY,
        Outcome::Accepted(_) => StatusCode::OK,
        Outcome::Busy(_) => StatusCode::SERVICE_UNAVAILABLE,
        other => panic!("{other:?}"),
    }
}

fn registry() -> Arc<ActionRegistry> {
    let mut registry = ActionRegistry::default();
    farrier_plugin_data::register(&mut registry).unwrap();
    Arc::new(registry)
}

fn project(root: &Path) -> Set {
    for folder in ["runbooks", "environments"] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    fs::write(root.join("farrier.yaml"), "runbooks: [runbooks]\nenvironments: [environments]\n").unwrap();
    fs::write(root.join("environments/tools.yaml"), "environment: tools\nreceivers: [tools]\n").unwrap();
    fs::write(root.join("runbooks/clean.yaml"), CLEAN).unwrap();
    Set::load(root, &registry(), &[], 1).unwrap()
}

async fn incidents(store: &SqliteStore, open: bool) -> Vec<IncidentRow> {
    store.incidents(IncidentFilter { open, ..IncidentFilter::default() }).await.unwrap()
}

/// Waits until something holds; the end of patience is an error and not a measurement.
async fn until<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(begun.elapsed() < Duration::from_secs(180), "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_alert_starts_one_run_and_closes_with_it() {
    let folder = tempfile::tempdir().unwrap();
    let set = project(folder.path());
    let store = SqliteStore::open(&folder.path().join("data"), OpenOptions::default()).await.unwrap();
    let service = Arc::new(Service {
        intake: Intake::new(Arc::new(store.clone()), Clock::system()),
        set,
        full: AtomicBool::new(true),
        out: AtomicU64::new(3),
        loses: AtomicBool::new(true),
        asked: AtomicU64::new(0),
    });
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let app = Router::new()
        .route("/metrics", get(metrics))
        .route("/webhooks/alertmanager/{receiver}", post(webhook))
        .with_state(service.clone());
    let serving = tokio::spawn(async move { axum::serve(listener, app).await });
    let url = format!("http://{address}/webhooks/alertmanager/tools");
    let servers = tokio::task::spawn_blocking(move || {
        let first = Alertmanager::posting(&url, None, None);
        let second = Alertmanager::posting(&url, None, Some(&first));
        let prometheus = Prometheus::watching(&Watch {
            target: &address,
            rules: RULES,
            alertmanagers: &[&first, &second],
            ..Watch::default()
        });
        (prometheus, first, second)
    });
    let servers = servers.await.unwrap();

    let opened = until("an incident", async || incidents(&store, true).await.pop()).await;
    assert_eq!((&*opened.key, &*opened.alert), ("127.0.0.1", "DiskFull"));
    assert!(service.asked.load(Ordering::Relaxed) > 3, "the first answers were 503");
    let run = opened.run.unwrap();
    let created = store.journal(run).await.unwrap().remove(0).event;
    let Event::Created { inputs, trigger, .. } = created else { panic!("{created:?}") };
    let site = service.set.site("tools").unwrap();
    let bundle = service.set.bundle("clean").unwrap().clone();
    let start = Start { bundle, world: site.world(), inputs, trigger, plan: None };
    let (_stop, halt) = tokio::sync::watch::channel(Halt::No);
    let observer = Arc::new(Unobserved);
    let driver =
        Driver::new(registry(), Arc::new(store.clone()), Clock::system(), Options::default(), observer, halt);
    let ended = driver.resume(run, &start, &ProceedAlways, &[]).await.unwrap();
    assert_eq!(ended.state, RunState::Succeeded);

    // The answer that was lost is asked for again, and changes nothing.
    let seen = async || {
        let events = store.events(Some(opened.id), 10).await.unwrap();
        events.iter().any(|event| event.seen > 1).then_some(())
    };
    until("a second copy", seen).await;
    service.full.store(false, Ordering::Relaxed);
    let closed =
        async || incidents(&store, false).await.pop().filter(|incident| incident.closed_at.is_some());
    let closed = until("the end of the incident", closed).await;
    assert_eq!((closed.id, closed.runs), (opened.id, 1));
    assert_eq!(store.runs(RunFilter::default()).await.unwrap().len(), 1, "one run, from two Alertmanagers");
    let report = fsck(&store).await.unwrap();
    assert!(report.is_clean() && report.succeeded == 1, "{:?}", report.violations);
    serving.abort();
    drop(tokio::task::spawn_blocking(move || drop(servers)).await);
}
