//! The shipped answer to workers whose processes hang, end to end: a real Prometheus counts, its shipped rule fires, a real
//! Alertmanager tells the real service, and the shipped runbook drains and reboots the worker, looking at both again.
//!
//! Waits of minutes are cut to seconds; nothing else in the shipped files is changed.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farrier_testkit::exim::Exim;
use farrier_testkit::prometheus::{Alertmanager, Prometheus, Watch};
use farrier_testkit::wait_until;
use serde_json::{Value, json};

use crate::common::Project;
use crate::exporter;
use crate::service::Serving;

const NODE: &str = "tools-k8s-worker-nfs-12";
const RUNBOOK: &str = "worker-d-processes";
const CLUSTER: &str = "environments/worker/cluster.yaml";

fn shipped(file: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(file);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The text with every one of these replaced; a text that is not there any more is an error of the test.
fn with(text: &str, replacements: &[(&str, &str)]) -> String {
    let replace = |text: String, (from, to): &(&str, &str)| {
        assert!(text.contains(from), "`{from}` is not in {text}");
        text.replace(from, to)
    };
    replacements.iter().fold(text.to_owned(), replace)
}

struct Site {
    serving: Serving,
    /// Whether processes of the sick node hang at all.
    hangs: Arc<AtomicBool>,
    _servers: (Prometheus, Alertmanager),
}

/// The worker's world with real servers where people look, and `post` to send mail. Whether processes hang is what the
/// scripted host says of itself, as long as it `hangs` at all.
fn site(on_boot: &str, post: &Value, hangs: bool) -> Site {
    let project = Project::new();
    project.write(
        "farrier.yaml",
        "runbooks: [runbooks]\nalerts: [alerts]\nenvironments: [environments/*.yaml]\ndata_dir: data\n",
    );
    let quick = [
        ("pod_grace: 30s", "pod_grace: 1s"),
        ("stuck_after: 5m", "stuck_after: 2s"),
        ("within: 10m, every: 10s, hold: 1m", "within: 10m, every: 1s, hold: 1s"),
        ("within: 20m\n      every: 30s\n      hold: 5m", "within: 20s\n      every: 1s\n      hold: 3s"),
    ];
    let runbook = "runbooks/kubernetes/worker-d-processes.yaml";
    project.write(runbook, &with(&shipped(runbook), &quick));
    let alerts = "alerts/worker-d-processes.yaml";
    project.write(alerts, &with(&shipped(alerts), &[("for: 15m", "for: 2s")]));
    for file in ["firing.json", "resolved.json"] {
        let file = format!("alerts/worker-d-processes/{file}");
        project.write(&file, &shipped(&file));
    }
    for file in ["cluster.yaml", "checker.yaml", "cloud.yaml", "feed.yaml"] {
        let file = format!("environments/worker/{file}");
        project.write(&file, &shipped(&file));
    }
    let hosts = "environments/worker/hosts.yaml";
    let boots = [("reboot_takes: 2m", "reboot_takes: 2s"), ("stuck: \"no\"", on_boot)];
    project.write(hosts, &with(&shipped(hosts), &boots));

    let state = project.path("environments/worker/hosts.state/state.json");
    let hangs = Arc::new(AtomicBool::new(hangs));
    let exporter = exporter::serve({
        let hangs = hangs.clone();
        move || metrics(&state, hangs.load(Ordering::SeqCst))
    });
    // The service has to be there before Alertmanager, which it is to ask; so the environment comes in two parts.
    project.environment(&json!({}));
    let serving = Serving::start_in(project, "");
    let url = format!("http://{}/webhooks/alertmanager/main", serving.address);
    let alertmanager = Alertmanager::posting(&url, Some(serving.token("main")), None);
    let rules = serving.project.farrier(&["alerts", "--rules"]).expect(0).out;
    let prometheus = Prometheus::watching(&Watch {
        target: &exporter.to_string(),
        rules: &rules,
        external_labels: &[("project", "tools")],
        alertmanagers: &[&alertmanager],
    });
    let real = |kind: &str, url: String| json!({ "kind": kind, "url": url, "networks": ["127.0.0.0/8"] });
    let mut alerts = real("alertmanager", alertmanager.url());
    alerts["write_as"] = json!({});
    let environment = json!({
        "environment": "worker",
        "targets": {
            "cluster": { "kind": "k8s", "url": "objects:worker/cluster.yaml" },
            "metrics": real("prometheus", prometheus.url()),
            "alerts": alerts,
            "checker": { "kind": "http", "url": "routes:worker/checker.yaml" },
            "nodes": { "kind": "host", "scripted": "worker/hosts.yaml", "state": "worker/hosts.state" },
            "cloud": { "kind": "http", "url": "routes:worker/cloud.yaml", "write_as": {} },
            "feed": {
                "kind": "http", "url": "routes:worker/feed.yaml", "write_as": {},
                "idempotency_header": "Idempotency-Key",
            },
            "post": post,
        },
        "receivers": ["main"],
        "notify": {
            "toolforge-admins": { "mail": "toolforge-admins@example.org" },
            "toolforge-roots": { "mail": "toolforge-roots@example.org" },
        },
    });
    serving.project.write("environments/test.yaml", &environment.to_string());
    serving.post("/api/v1/reload", "admin", &json!({})).expect(200);
    Site { serving, hangs, _servers: (prometheus, alertmanager) }
}

/// What the workers' exporter counts, from what the scripted host has become.
fn metrics(state: &Path, hangs: bool) -> String {
    let state = std::fs::read_to_string(state).unwrap_or_default();
    let state: Value = serde_json::from_str(&state).unwrap_or_default();
    let cured = state["hosts"][NODE]["vars"]["stuck"] == "no";
    let stuck = if cured || !hangs { 0 } else { 12 };
    format!(
        "# TYPE prometheus_k8s_nfs_stuck_total_procs gauge\n\
         prometheus_k8s_nfs_stuck_total_procs{{instance=\"{NODE}\"}} {stuck}\n\
         prometheus_k8s_nfs_stuck_total_procs{{instance=\"tools-k8s-worker-nfs-11\"}} 0\n\
         # TYPE prometheus_k8s_nfs_stuck_procs_per_tool gauge\n\
         prometheus_k8s_nfs_stuck_procs_per_tool{{instance=\"{NODE}\",tool=\"tool-stub-sorter\"}} {stuck}\n"
    )
}

fn mail_folder() -> Value {
    let people = json!({ "toolforge-roots": ["toolforge-roots@example.org"] });
    json!({ "kind": "mail", "url": "folder:../mail", "from": "farrier@example.org", "people": people })
}

impl Site {
    fn incidents(&self) -> Vec<Value> {
        let listed = self.serving.project.farrier(&["incidents", "--all", "-o", "json"]).expect(0).json();
        listed.as_array().unwrap().clone()
    }

    /// The only run of the runbook, once it is over.
    fn ended(&self) -> Value {
        let runs = || {
            let runs = self.serving.project.farrier(&["runs", "--runbook", RUNBOOK, "-o", "json"]);
            runs.expect(0).json()
        };
        wait_until("the end of a run", || {
            runs()[0]["state"].as_str().is_some_and(|state| {
                ["succeeded", "degraded", "failed", "cancelled", "parked"].contains(&state)
            })
        });
        assert_eq!(runs().as_array().unwrap().len(), 1, "{}", runs());
        self.serving.project.show_last()
    }
}

#[track_caller]
fn states(view: &Value, wanted: &[(&str, &str)]) {
    for (step, state) in wanted {
        let steps = view["steps"].as_array().unwrap();
        let step = steps.iter().find(|known| known["node"] == *step).unwrap();
        assert_eq!(step["state"], *state, "{step:#}");
    }
}

#[test]
fn a_worker_that_hangs_is_rebooted_proved_well_and_takes_pods_again() {
    let site = site("stuck: \"no\"", &mail_folder(), true);
    let view = site.ended();
    assert_eq!(view["state"], "succeeded", "{view:#}");
    states(&view, &[("drain", "succeeded"), ("reboot", "succeeded"), ("cured", "succeeded")]);
    states(&view, &[("uncordon", "succeeded"), ("tell", "succeeded"), ("hand_over", "skipped")]);
    states(&view, &[("quiet", "succeeded"), ("loud", "succeeded")]);
    let cluster = site.serving.project.read(CLUSTER);
    assert!(!cluster.contains("unschedulable: true"), "{cluster}");
    assert!(!cluster.contains("dumps-reader"), "what hung there is gone: {cluster}");
    let hosts: Value =
        serde_json::from_str(&site.serving.project.read("environments/worker/hosts.state/state.json"))
            .unwrap();
    assert_eq!(hosts["hosts"][NODE]["boots"], 2, "it was started again once");

    // Prometheus sees it too, Alertmanager says that it is over, and the incident closes.
    wait_until("the end of the incident", || site.incidents()[0]["closed_at"].is_string());
    assert_eq!(site.incidents().len(), 1);
    assert_eq!(site.incidents()[0]["key"], NODE);
    assert!(!site.serving.project.path("mail").exists(), "nobody has to do anything");
    site.serving.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

#[test]
fn a_worker_that_a_reboot_does_not_cure_stays_cordoned_and_people_get_the_evidence() {
    let exim = Exim::start();
    let people = json!({ "toolforge-roots": ["toolforge-roots@example.org"] });
    let post = json!({
        "kind": "mail", "url": format!("smtp://127.0.0.1:{}", exim.port()), "from": "farrier@example.org",
        "people": people,
    });
    let site = site("stuck: \"yes\"", &post, true);
    let view = site.ended();
    assert_eq!(view["state"], "failed", "{view:#}");
    states(&view, &[("reboot", "succeeded"), ("cured", "failed"), ("uncordon", "blocked")]);
    let cluster = site.serving.project.read(CLUSTER);
    assert_eq!(cluster.matches("unschedulable: true").count(), 1, "{cluster}");
    let run = view["id"].as_str().unwrap();
    assert!(cluster.contains(run), "the node says who has cordoned it: {cluster}");

    // One mail is the runbook's own, with what was seen; the other says that a run has failed, and how it is looked at.
    // Long lines come in parts that end with `=`.
    let mails: Vec<String> = exim.mails(2).iter().map(|mail| mail.replace("=\n", "")).collect();
    assert!(mails.iter().all(|mail| mail.contains("toolforge-roots@example.org")), "{mails:?}");
    let evidence = mails.iter().find(|mail| mail.contains("nfs-12 needs a person")).unwrap();
    for seen in ["read-dumps.py", "tool-stub-sorter", "dumps-reader", "Stuck processes: 12", run] {
        assert!(evidence.contains(seen), "`{seen}` is not in {evidence}");
    }
    let notice = mails.iter().find(|mail| mail.contains("[farrier]")).unwrap();
    assert!(notice.contains("is not known to be without stuck processes"), "{notice}");
    assert_eq!(mails.len(), 2);

    // It fires still, and nothing is tried again.
    let incidents = site.incidents();
    assert_eq!(incidents.len(), 1);
    assert!(incidents[0]["closed_at"].is_null(), "{incidents:?}");
    site.serving.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

/// Another run works on a node of the cluster, so this one stands in line; when its turn would come, nothing hangs any more.
const HOLDER: &str = "runbook: holder
summary: Works on another node of the cluster
owner: tests
risk: read_only
locks: [{ name: nodes of tools }]
steps: { works: { uses: flow.wait, with: { for: 1h } } }
";

#[test]
fn a_worker_that_is_well_again_before_its_turn_comes_is_left_alone() {
    let site = site("stuck: \"no\"", &mail_folder(), false);
    site.serving.project.write("runbooks/kubernetes/holder.yaml", HOLDER);
    site.serving.post("/api/v1/reload", "admin", &json!({})).expect(200);
    let start = json!({ "environment": "worker" });
    let holder = site.serving.post("/api/v1/runbooks/holder/runs", "operator", &start).expect(201).json();
    let holder = holder["run"].as_str().unwrap();
    site.serving.until(holder, "waiting");

    site.hangs.store(true, Ordering::SeqCst);
    let locks = || site.serving.project.farrier(&["locks"]).expect(0).out;
    wait_until("the run stands in line", || locks().contains(NODE));
    site.hangs.store(false, Ordering::SeqCst);
    let view = site.ended();
    assert_eq!(view["state"], "cancelled", "{view:#}");
    let begun = view["steps"].as_array().unwrap().iter().filter(|step| step["state"] != "pending");
    assert_eq!(begun.count(), 0, "{view:#}");
    assert_eq!(site.serving.project.read(CLUSTER), shipped(CLUSTER), "nothing was touched");
    assert!(!site.serving.project.path("mail").exists(), "nobody has to do anything");
    wait_until("the end of the incident", || site.incidents()[0]["closed_at"].is_string());
    site.serving.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

/// One budget for all reboots: one that the host was told, two by its cloud. The fourth within the hour is a person's to decide.
#[test]
fn after_three_reboots_of_either_kind_in_an_hour_the_fourth_waits_for_a_person() {
    let project = Project::demo();
    let runbook = format!("runbooks/kubernetes/{RUNBOOK}.yaml");
    let quick = [
        // Otherwise the second one would be stopped by a limit of its own.
        ("rate: power_cycle, at_most: 1", "rate: power_cycle, at_most: 3"),
        ("pod_grace: 30s", "pod_grace: 1s"),
        ("stuck_after: 5m", "stuck_after: 1s"),
        ("back_within: 15m", "back_within: 10s"),
        ("attempts: 60, backoff: 15s..15s", "attempts: 1, backoff: 1s..1s"),
        ("within: 10m, every: 10s, hold: 1m", "within: 10m, every: 1s, hold: 0s"),
        ("within: 20m\n      every: 30s\n      hold: 5m", "within: 1s\n      every: 1s\n      hold: 0s"),
    ];
    project.write(&runbook, &with(&project.read(&runbook), &quick));
    let hosts = "environments/worker/hosts.yaml";
    project.write(hosts, &with(&project.read(hosts), &[("reboot_takes: 2m", "reboot_takes: 1s")]));
    // It hangs, and no reboot cures it.
    let stuck = r#"queries: [{ query: 'sum(prometheus_k8s_nfs_stuck_total_procs{instance=~"tools-k8s-worker-nfs-12(:.*)?"})', series: [{ values: [{ value: 1 }] }] }, { query: sum(prometheus_k8s_nfs_stuck_total_procs) by (instance) > 0, series: [] }, { query: 'topk(10, sum by (tool) (prometheus_k8s_nfs_stuck_procs_per_tool{instance=~"tools-k8s-worker-nfs-12(:.*)?"}))', series: [] }]"#;
    project.write(
        "environments/worker/cured.yaml",
        &format!("start: 2026-08-20T10:00:00Z\nevery: 15s\n{stuck}\n"),
    );
    let environment = "environments/worker.yaml";
    let plain = project.read(environment);
    let run = |power_cycle: &str| {
        let node = format!("node={NODE}");
        project.farrier(&["run", RUNBOOK, "--env", "worker", "--yes", "-i", &node, "-i", power_cycle])
    };
    let counted =
        |ran: &crate::common::Answer| ran.to_string().contains("rate: [reboot, power_cycle], at_most: 3");

    let ran = run("power_cycle=false").expect(10);
    assert!(ran.to_string().contains("✓ reboot"), "{ran}");
    let mute = [
        (
            "scripted: worker/hosts.yaml, state: worker/hosts.state",
            "scripted: worker/hosts-mute.yaml, state: worker/mute.state",
        ),
        ("\n  feed:", "\n  cloud: { kind: http, url: \"routes:worker/cloud.yaml\", write_as: {} }\n  feed:"),
    ];
    project.write(environment, &with(&plain, &mute));
    for _ in 0..2 {
        let ran = run("power_cycle=true").expect(69);
        assert!(ran.to_string().contains("✓ power_cycle"), "{ran}");
    }

    project.write(environment, &plain);
    let before = project.read("environments/worker/hosts.state/state.json");
    let ran = run("power_cycle=false").expect(12);
    assert!(counted(&ran) && ran.to_string().contains("4 counted, limit 3"), "{ran}");
    assert_eq!(project.read("environments/worker/hosts.state/state.json"), before);
    let told =
        project.sqlite(".farrier/farrier.db", "SELECT occasion FROM outbox ORDER BY rowid DESC LIMIT 1");
    assert_eq!(told, ["guard"]);
}
