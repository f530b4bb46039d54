//! Debian's Prometheus and two of its Alertmanagers in a cluster, against the real service: whatever is sent twice, lost,
//! refused or cut off, a trouble has one incident and one run, and is closed when it is over.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::PathBuf;

use farrier_testkit::prometheus::{Alertmanager, Prometheus, Watch};
use farrier_testkit::proxy::{CutProxy, Direction};
use farrier_testkit::wait_until;
use serde_json::{Value, json};

use crate::common::Project;
use crate::common::small_disk::{SmallDisk, fill};
use crate::exporter;
use crate::service::Serving;

/// Says so to a feed, which counts, and then cures the node.
const CLEAN: &str = r#"runbook: clean
summary: Cleans a disk
owner: tests
risk: recoverable
targets: { place: files, feed: http }
inputs: { node: { type: host, pattern: "node-[0-9]+" } }
triggers:
  - alert:
      match: ['alertname="DiskFull"']
      per: alert.labels.instance | host
      inputs: { node: "${ alert.labels.instance | host }" }
      resolved: note
steps:
  tell: { uses: http.request, undo: none, with: { target: feed, path: [sal], json: { message: "${ inputs.node }" } } }
  clean:
    uses: files.write
    needs: [tell]
    undo: none
    with: { target: place, file: { root: out, path: ["${ inputs.node }"] }, content: clean }
"#;
const RULES: &str = "groups: [{ name: disk, rules: [{ alert: DiskFull, expr: disk_free == 0 }] }]\n";
const ROUTES: &str =
    "routes:\n  - { method: POST, path: [sal], answers: [{ status: 201, json: { ok: true } }] }\n";
const WEBHOOK: &str = "/webhooks/alertmanager/main";

fn project() -> Project {
    let project = Project::new();
    project.write("runbooks/clean.yaml", CLEAN);
    project.write("out/.keep", "");
    project.write("environments/world/routes.yaml", ROUTES);
    let environment = json!({
        "environment": "test", "receivers": ["main"],
        "targets": {
            "place": { "kind": "files", "roots": { "out": "../out" } },
            "feed": {
                "kind": "http", "url": "routes:world/routes.yaml", "idempotency_header": "Idempotency-Key", "write_as": {},
            },
        },
    });
    project.write("environments/test.yaml", &environment.to_string());
    project
}

/// A disk of node-7 that is full until the runbook has cleaned it, who looks at it, and who is told. Each Alertmanager has a
/// way of its own to the service.
struct Watchers {
    ways: [CutProxy; 2],
    cleaned: PathBuf,
    _servers: (Prometheus, Alertmanager, Alertmanager),
}

fn watchers(serving: &Serving) -> Watchers {
    let cleaned = serving.project.path("out/node-7");
    let metric = cleaned.clone();
    let exporter = exporter::serve(move || {
        let free = u8::from(metric.exists());
        format!("# TYPE disk_free gauge\ndisk_free{{instance=\"node-7:9100\"}} {free}\n")
    });
    let ways = [CutProxy::to(serving.address), CutProxy::to(serving.address)];
    // Nothing comes through before the test says so.
    for way in &ways {
        way.refuse(true);
    }
    let url = |way: &CutProxy| format!("http://{}{WEBHOOK}", way.address());
    let token = Some(serving.token("main"));
    let first = Alertmanager::posting(&url(&ways[0]), token, None);
    let second = Alertmanager::posting(&url(&ways[1]), token, Some(&first));
    let prometheus = Prometheus::watching(&Watch {
        target: &exporter.to_string(),
        rules: RULES,
        alertmanagers: &[&first, &second],
        ..Watch::default()
    });
    Watchers { ways, cleaned, _servers: (prometheus, first, second) }
}

fn incidents(serving: &Serving) -> Vec<Value> {
    let listed = serving.project.farrier(&["incidents", "--all", "-o", "json"]).expect(0).json();
    listed.as_array().unwrap().clone()
}

/// So many requests to the webhook were answered with this status since the service began.
fn answered(serving: &Serving, status: u16) -> u64 {
    let metrics = serving.get("/metrics", "viewer").expect(200).body;
    let counted = metrics.lines().filter(|line| {
        line.starts_with("farrier_http_answers_total{")
            && line.contains("/webhooks/")
            && line.contains(&format!("status=\"{status}\""))
    });
    counted.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

/// The one incident is closed, one run cured it, and the world was told of it once.
#[track_caller]
fn one_run_and_closed(serving: &Serving, watchers: &Watchers) {
    wait_until("the end of the incident", || {
        incidents(serving).first().is_some_and(|incident| incident["closed_at"].is_string())
    });
    let incidents = incidents(serving);
    assert_eq!(incidents.len(), 1, "{incidents:?}");
    assert_eq!((&incidents[0]["key"], &incidents[0]["alert"]), (&json!("node-7"), &json!("DiskFull")));
    let runs = serving.project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let states: Vec<&Value> = runs.as_array().unwrap().iter().map(|run| &run["state"]).collect();
    assert_eq!(states, ["succeeded"], "{runs}");
    assert!(watchers.cleaned.exists());
    let requests = serving.project.read("environments/world/routes.yaml.requests.jsonl");
    let counted = requests.lines().filter(|line| !line.contains("\"repeated\":true")).count();
    assert_eq!(counted, 1, "{requests}");
    let refused: Vec<u16> = (400..500).filter(|status| answered(serving, *status) > 0).collect();
    assert_eq!(refused, [0; 0], "Alertmanager does not send again what was refused");
    serving.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

#[test]
fn two_alertmanagers_send_the_same_and_one_run_cures_it() {
    let serving = Serving::start_in(project(), "");
    let watchers = watchers(&serving);
    // The first hears no answers, so its peer does not know that it has sent the group and sends it too.
    watchers.ways[0].swallow_answers(true);
    for way in &watchers.ways {
        way.refuse(false);
    }
    wait_until("a message from each", || {
        answered(&serving, 200) >= 2 && watchers.ways.iter().all(|way| way.forwarded(Direction::ToServer) > 0)
    });
    watchers.ways[0].heal();
    watchers.ways[0].cut();
    one_run_and_closed(&serving, &watchers);
    let incident = incidents(&serving)[0]["id"].as_str().unwrap().to_owned();
    let view = serving.project.farrier(&["incident", &incident[..13], "-o", "json"]).expect(0).json();
    let decisions: Vec<&Value> =
        view["events"].as_array().unwrap().iter().map(|event| &event["decision"]).collect();
    assert_eq!(decisions.iter().filter(|decision| **decision == "started").count(), 1, "{view}");
    assert!(decisions.contains(&&json!("closed")), "{view}");
}

/// T23: a disk that is full, a death in the middle of a message, and one between what is stored and its answer.
#[test]
fn t23_a_service_that_is_full_killed_and_killed_again_loses_no_alert_and_runs_once() {
    let project = project();
    let Some(_disk) = SmallDisk::new(&project.path("data"), "12m") else { return };
    let mut serving = Serving::start_in(project, "");
    let watchers = watchers(&serving);
    let filler = serving.project.path("data/filler");
    let all = |what: &dyn Fn(&CutProxy)| watchers.ways.iter().for_each(what);

    fill(&filler);
    all(&|way| way.refuse(false));
    wait_until("answers that say to come again", || answered(&serving, 503) >= 3);
    assert_eq!(answered(&serving, 200), 0);
    assert!(incidents(&serving).is_empty(), "nothing is promised on a full disk");

    // The head of a request and a part of its body are with the service when it dies.
    all(&|way| way.hold_after_bytes(Direction::ToServer, 600));
    wait_until("a message in the middle", || watchers.ways.iter().any(|way| way.held() > 0));
    std::fs::remove_file(&filler).unwrap();
    serving.kill();
    assert!(incidents(&serving).is_empty(), "half a message is none");

    // All of it is with the service, and nobody hears its answer.
    all(&|way| {
        way.heal();
        way.swallow_answers(true);
    });
    serving.start_again();
    wait_until("an incident", || !incidents(&serving).is_empty());
    serving.kill();
    let before = incidents(&serving);
    serving.start_again();
    all(&|way| {
        way.heal();
        way.cut();
    });
    one_run_and_closed(&serving, &watchers);
    assert_eq!(incidents(&serving)[0]["id"], before[0]["id"]);
}
