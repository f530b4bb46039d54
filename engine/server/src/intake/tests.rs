//! Intake over a real store: what a body becomes, and what is refused.

use std::fs;
use std::path::Path;

use farrier_action::ActionRegistry;
use farrier_model::{Event, Value};
use farrier_store::{IncidentFilter, OpenOptions, RunFilter, SqliteStore, fsck};
use serde_json::json;

use super::*;

const CLEAN: &str = r#"runbook: clean
summary: Cleans a disk
owner: admins
risk: read_only
run_title: "clean ${ inputs.node }"
inputs: { node: { type: host, pattern: "node-[0-9]+" } }
steps:
  one: { uses: data.let, with: { value: "${ inputs.node }" } }
"#;

const DISK: &str = r#"alerts: disk
routes:
  - runbook: clean
    match: ['alertname=~"DiskFull|DiskSlow"']
    per: alert.labels.instance | host
    inputs: { node: "${ alert.labels.instance | host }" }
    limit: { burst: 1000, every: 1s }
    max_active: 1000
"#;

struct World {
    folder: tempfile::TempDir,
    set: Set,
    store: Arc<SqliteStore>,
    intake: Intake<SqliteStore>,
}

fn set(root: &Path) -> Set {
    let mut registry = ActionRegistry::default();
    farrier_plugin_data::register(&mut registry).unwrap();
    Set::load(root, &registry, &[], 1).unwrap()
}

async fn world() -> World {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    for name in ["runbooks", "alerts", "environments"] {
        fs::create_dir(root.join(name)).unwrap();
    }
    fs::write(
        root.join("farrier.yaml"),
        "runbooks: [runbooks]\nalerts: [alerts]\nenvironments: [environments]\n",
    )
    .unwrap();
    fs::write(root.join("environments/tools.yaml"), "environment: tools\nreceivers: [tools_runbooks]\n")
        .unwrap();
    fs::write(root.join("environments/apart.yaml"), "environment: apart\n").unwrap();
    fs::write(root.join("runbooks/clean.yaml"), CLEAN).unwrap();
    fs::write(root.join("alerts/disk.yaml"), DISK).unwrap();
    let set = set(root);
    let store = Arc::new(SqliteStore::open(&root.join("data"), OpenOptions::default()).await.unwrap());
    let intake = Intake::new(store.clone(), Clock::system());
    World { folder, set, store, intake }
}

impl World {
    async fn send(&self, body: &[u8]) -> Outcome {
        self.intake.handle("tools_runbooks", body, &self.set).await
    }

    async fn accepted(&self, body: &[u8]) -> Accepted {
        match self.send(body).await {
            Outcome::Accepted(accepted) => accepted,
            other => panic!("{other:?}"),
        }
    }

    async fn runs(&self) -> Vec<farrier_store::RunRow> {
        self.store.runs(RunFilter::default()).await.unwrap()
    }

    async fn is_whole(&self) {
        let report = fsck(&*self.store).await.unwrap();
        assert!(report.is_clean(), "{:?}", report.violations);
    }
}

fn body(alerts: &[(&str, &str)]) -> Vec<u8> {
    let alerts: Vec<_> = alerts
        .iter()
        .map(|(instance, note)| {
            json!({ "status": "firing", "labels": { "alertname": "DiskFull", "instance": instance, "note": note },
                    "startsAt": "2026-08-20T10:00:00Z", "endsAt": "0001-01-01T00:00:00Z" })
        })
        .collect();
    json!({ "version": "4", "groupKey": "g", "receiver": "tools_runbooks", "alerts": alerts })
        .to_string()
        .into()
}

/// A message that Alertmanager has sent, from `testdata/alerts`.
fn fixture(name: &str) -> Vec<u8> {
    fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/alerts").join(name)).unwrap()
}

#[tokio::test]
async fn an_alert_becomes_a_run_with_its_inputs() {
    let world = world().await;
    let accepted = world.accepted(&body(&[("node-1:9100", "x"), ("node-2:9100", "x")])).await;
    assert_eq!((accepted.alerts, accepted.decisions["started"], accepted.touched.len()), (2, 2, 2));
    let runs = world.runs().await;
    let mut titles: Vec<&str> = runs.iter().map(|run| &*run.title).collect();
    titles.sort_unstable();
    assert_eq!(titles, ["clean node-1", "clean node-2"]);
    let journal = world.store.journal(runs[0].id).await.unwrap();
    let Event::Created { inputs, bundle, environment, .. } = &journal[0].event else { panic!("{journal:?}") };
    assert!(inputs.get("node").and_then(Value::as_str).is_some_and(|node| node.starts_with("node-")));
    assert_eq!(&**environment, "tools");
    assert!(world.store.bundle(*bundle).await.unwrap().is_some(), "its texts are there before it");
    let accepted = world.accepted(&body(&[("node-1:9100", "x")])).await;
    assert_eq!(accepted.decisions["joined"], 1);
    world.is_whole().await;
}

#[tokio::test]
async fn what_can_never_be_used_is_refused_and_the_rest_is_not() {
    let world = world().await;
    assert!(matches!(world.send(b"[").await, Outcome::Bad(_)));
    assert!(matches!(world.send(b"{}").await, Outcome::Bad(_)));
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(matches!(world.send(deep.as_bytes()).await, Outcome::Bad(_)));
    assert!(matches!(world.send(&vec![b' '; 3 * 1024 * 1024]).await, Outcome::TooLarge(_)));
    let unknown = world.intake.handle("other", &body(&[("node-1", "")]), &world.set).await;
    assert!(matches!(unknown, Outcome::Unknown(_)), "{unknown:?}");
    assert!(world.runs().await.is_empty());
    assert_eq!(world.intake.counts.refused.load(Ordering::Relaxed), 5);
}

/// T24: what a label holds reaches a run as it is, or not at all.
#[tokio::test]
async fn hostile_labels_are_data_or_ignored() {
    let world = world().await;
    let large = "{{".repeat(500_000);
    for hostile in [
        "{{7*7}}",
        "${7*7}",
        "{% raw %}",
        "${jndi:ldap://x}",
        "{{ secrets.x }}",
        "a\0b",
        "a\u{202e}b",
        "; rm -rf /",
        "db-1",
        "",
        &large,
    ] {
        let accepted = world.accepted(&body(&[(hostile, "x")])).await;
        assert_eq!(accepted.decisions.get("ignored"), Some(&1), "{hostile:?}");
    }
    assert!(world.runs().await.is_empty());
    // In a label that feeds nothing, all but the large one are kept as they are.
    for (number, hostile) in ["{{7*7}}", "${7*7}", "a\0b", "a\u{202e}b"].into_iter().enumerate() {
        let accepted = world.accepted(&body(&[(&format!("node-{number}"), hostile)])).await;
        assert_eq!(accepted.decisions.get("started"), Some(&1));
    }
    let incidents = world.store.incidents(IncidentFilter::default()).await.unwrap();
    let mut notes = Vec::new();
    for incident in &incidents {
        let event = world.store.events(Some(incident.id), 1).await.unwrap().remove(0);
        let body: serde_json::Value = serde_json::from_str(&event.body).unwrap();
        notes.push(body["labels"]["note"].as_str().unwrap().to_owned());
    }
    notes.sort_unstable();
    assert_eq!(notes, ["${7*7}", "a\0b", "a\u{202e}b", "{{7*7}}"]);
    let ignored = world.store.events(None, 100).await.unwrap();
    assert!(ignored.iter().any(|event| event.why.contains("does not match `node-[0-9]+`")));
    assert!(ignored.iter().any(|event| event.why.contains("1000000 bytes")));
    world.is_whole().await;
}

#[tokio::test]
async fn messages_of_several_alertmanagers_are_understood() {
    let world = world().await;
    let decisions = |accepted: Accepted| {
        accepted
            .decisions
            .into_iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect::<Vec<_>>()
            .join(", ")
    };
    for (name, expected) in [
        ("first.json", "started 2"),
        ("repeat.json", "joined 2"),
        ("newer_fields.json", "joined 1"),
        ("truncated.json", "started 1"),
        ("hostile.json", "ignored 4"),
        ("resolved.json", "cancels 2"),
    ] {
        assert_eq!(decisions(world.accepted(&fixture(name)).await), expected, "{name}");
    }
    world.is_whole().await;
}

#[tokio::test]
async fn two_alertmanagers_that_send_the_same_make_one_run() {
    let world = world().await;
    let request = body(&[("node-1:9100", "x")]);
    let both = tokio::join!(world.accepted(&request), world.accepted(&request));
    let started = |accepted: &Accepted| accepted.decisions.get("started").copied().unwrap_or_default();
    assert_eq!(started(&both.0) + started(&both.1), 1);
    assert_eq!(world.runs().await.len(), 1);
}

#[tokio::test]
async fn what_cannot_be_stored_is_to_come_again() {
    let world = world().await;
    (*world.store).clone().close().await;
    assert!(matches!(world.send(&body(&[("node-1", "x")])).await, Outcome::Busy(_)));
    assert_eq!(world.intake.counts.busy.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn too_many_requests_at_once_are_to_come_again() {
    let world = world().await;
    let held = world.intake.permits.acquire_many(AT_ONCE as u32).await.unwrap();
    assert!(matches!(world.send(&body(&[("node-1", "x")])).await, Outcome::Busy(_)));
    drop(held);
    world.accepted(&body(&[("node-1", "x")])).await;
}

#[tokio::test]
async fn a_frozen_environment_keeps_what_writes_for_later() {
    let mut world = world().await;
    let root = world.folder.path().to_path_buf();
    fs::write(root.join("runbooks/clean.yaml"), CLEAN.replace("read_only", "recoverable")).unwrap();
    let tools = root.join("environments/tools.yaml");
    fs::write(&tools, "environment: tools\nreceivers: [tools_runbooks]\nfreeze: true\n").unwrap();
    world.set = set(&root);
    assert_eq!(world.accepted(&body(&[("node-1", "x")])).await.decisions["held"], 1);
    assert!(world.intake.tick(&world.set).await.unwrap().runs.is_empty());
    fs::write(&tools, "environment: tools\nreceivers: [tools_runbooks]\n").unwrap();
    world.set = set(&root);
    assert_eq!(world.intake.tick(&world.set).await.unwrap().runs.len(), 1);
    world.is_whole().await;
}
