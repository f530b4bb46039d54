//! Alerts at the command line: files of alerts are checked and tested, Prometheus takes their rules, a message shows what it
//! would do, and what came in can be looked at.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::process::Command;
use std::sync::Arc;

use common::Project;
use farrier_action::ActionRegistry;
use farrier_project::Set;
use farrier_server::intake::{Intake, Outcome};
use farrier_store::{Clock, OpenOptions, SqliteStore};
use serde_json::json;

const CLEAN: &str = "runbook: clean
summary: Cleans a disk
owner: admins
risk: read_only
inputs: { node: { type: host, pattern: \"node-[0-9]+\" } }
steps:
  one: { uses: data.let, with: { value: \"${ inputs.node }\" } }
";

const DISK: &str = r#"alerts: disk
rules:
  - alert: DiskFull
    expr: node_filesystem_avail_bytes{mountpoint="/"} < 1e9
    for: 5m
    labels: { severity: warning }
    annotations: { summary: "{{ $labels.instance }} has less than 1 GB left" }
routes:
  - runbook: clean
    per: alert.labels.instance | host
    inputs: { node: "${ alert.labels.instance | host }" }
tests:
  - name: a full disk is cleaned
    labels: { instance: "node-7:9100" }
    expect: [{ runbook: clean, key: node-7, inputs: { node: node-7 } }]
  - name: a name that is none of ours is left alone
    labels: { instance: "db-1;reboot" }
    expect: [{ runbook: clean, ignored: is not a host name }]
  - name: other alerts are not meant
    labels: { alertname: DiskFullSoon, instance: "node-7:9100" }
    expect: []
  - name: a whole message
    payload: first.json
    expect: [{ runbook: clean, key: node-41 }, { runbook: clean, key: node-42 }]
"#;

fn project() -> Project {
    let project = Project::new();
    let first = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/alerts/first.json");
    for folder in ["runbooks", "alerts", "environments"] {
        std::fs::create_dir_all(project.path(folder)).unwrap();
    }
    project.write("farrier.yaml", "runbooks: [runbooks]\nalerts: [alerts]\nenvironments: [environments]\n");
    project.write("runbooks/clean.yaml", CLEAN);
    project.write("alerts/disk.yaml", DISK);
    project.write("alerts/first.json", &std::fs::read_to_string(first).unwrap());
    project.write("environments/tools.yaml", "environment: tools\nreceivers: [tools_runbooks]\n");
    project
}

#[test]
fn files_of_alerts_are_checked_and_tested() {
    let project = project();
    project.farrier(&["check"]).expect(0).says("4 tests").says("1 file of alerts: no mistakes");
    project
        .farrier(&["test"])
        .expect(0)
        .says("passed  disk: a full disk is cleaned")
        .says("4 passed, 0 failed");
    project.write("alerts/disk.yaml", &DISK.replace("key: node-7", "key: node-8"));
    project.farrier(&["test", "full disk"]).expect(30).says("the incident's key is `node-7`, not `node-8`");
    project.write("alerts/disk.yaml", &DISK.replace("runbook: clean\n", "runbook: claen\n"));
    project.farrier(&["check"]).expect(65).says("unknown runbook `claen`").says("did you mean `clean`?");
}

#[test]
fn prometheus_takes_the_rules() {
    let project = project();
    let rules = project.farrier(&["alerts", "--rules"]).expect(0).out;
    project.write("rules.yaml", &rules);
    let checked = Command::new("promtool")
        .args(["check", "rules"])
        .arg(project.path("rules.yaml"))
        .output()
        .expect("promtool of prometheus");
    let said =
        String::from_utf8_lossy(&checked.stdout).into_owned() + &String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && said.contains("1 rules found"), "{said}\n{rules}");
    project.farrier(&["alerts"]).expect(0).says(r#"alertname=~"DiskFull""#).says("clean");
}

/// The rules that are shipped, tried on made-up series by Prometheus' own program.
#[test]
fn the_shipped_rules_fire_when_they_should() {
    let project = Project::demo();
    let rules = project.farrier(&["alerts", "--rules"]).expect(0).out;
    project.write("rules.yaml", &rules);
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/prometheus");
    for case in std::fs::read_dir(cases).unwrap() {
        project.write("cases.yaml", &std::fs::read_to_string(case.unwrap().path()).unwrap());
        let tried = Command::new("promtool")
            .args(["test", "rules"])
            .arg(project.path("cases.yaml"))
            .output()
            .unwrap();
        let said =
            String::from_utf8_lossy(&tried.stdout).into_owned() + &String::from_utf8_lossy(&tried.stderr);
        assert!(tried.status.success(), "{said}");
    }
}

#[test]
fn a_message_shows_what_it_would_do_and_does_nothing() {
    let project = project();
    let shown = project.farrier(&["plan", "--alert", "alerts/first.json"]).expect(0);
    let shown = shown.says("`clean` in tools, incident `node-41`").says("node = node-42");
    assert!(!shown.out.contains("joins"), "{}", shown.out);
    let views = project
        .farrier(&["plan", "--alert", "alerts/first.json", "-e", "tools", "-o", "json"])
        .expect(0)
        .json();
    assert_eq!(views[0]["key"], "node-41");
    assert!(views[1]["plan"].is_object(), "{views}");
    let other = ["plan", "--alert", "alerts/first.json", "--receiver", "other"];
    project.farrier(&other).expect(64).complains("no environment names the receiver `other`");
    project.write("alerts/bad.json", "{}");
    project.farrier(&["plan", "--alert", "alerts/bad.json"]).expect(64).complains("no list `alerts`");
    assert!(!project.path(".farrier").exists(), "nothing was stored");
    project.farrier(&["plan"]).expect(64);
}

/// Guards "an old message destroys nothing by itself": it proposes, and says why, before and after it came in.
#[test]
fn old_alerts_only_propose_what_destroys() {
    let project = project();
    project.write("runbooks/clean.yaml", &CLEAN.replace("read_only", "destructive"));
    let shown = project.farrier(&["plan", "--alert", "alerts/first.json"]).expect(0);
    shown.says("only proposes a run").says("ago, and `max_age` is 1d");
    let views = project.farrier(&["plan", "--alert", "alerts/first.json", "-o", "json"]).expect(0).json();
    assert!(views[0]["proposed"].as_str().unwrap().starts_with("the alert began"), "{views}");

    let now = jiff::Timestamp::now();
    let message = |instance: &str, hours: i64| {
        let began = now + jiff::SignedDuration::from_hours(hours);
        json!({ "groupKey": "g", "alerts": [{ "status": "firing", "startsAt": began.to_string(),
                "labels": { "alertname": "DiskFull", "instance": instance } }] })
    };
    for (instance, hours, expected) in [
        ("node-1", -1, "starts a run"),
        ("node-2", -25, "proposes a run: the alert began 1d1h"),
        ("node-3", 1, "proposes a run: the alert begins"),
    ] {
        send(&project, &message(instance, hours));
        let incidents = project.farrier(&["incidents", "-o", "json"]).expect(0).json();
        let incidents = incidents.as_array().unwrap();
        let incident = incidents.iter().find(|incident| incident["key"] == instance).unwrap();
        project.farrier(&["incident", incident["id"].as_str().unwrap()]).expect(0).says(expected);
    }
    // A route that says so takes older ones.
    project.write("alerts/disk.yaml", &DISK.replace("    per:", "    max_age: 100d\n    per:"));
    send(&project, &message("node-4", -24 * 30));
    let listed = project.farrier(&["incidents", "-o", "json"]).expect(0).json();
    let fourth = listed.as_array().unwrap().iter().find(|incident| incident["key"] == "node-4").unwrap();
    let shown = project.farrier(&["incident", fourth["id"].as_str().unwrap()]).expect(0);
    shown.says("starts a run");
    project.write("alerts/disk.yaml", &DISK.replace("    per:", "    max_age: 0s\n    per:"));
    project.farrier(&["check"]).expect(65);
}

/// Sends a message to the intake of the project's store.
fn send(project: &Project, body: &serde_json::Value) {
    let mut registry = ActionRegistry::default();
    farrier_plugin_data::register(&mut registry).unwrap();
    let set = Set::load(&project.path("."), &registry, &[], 1).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(&set.data_dir, OpenOptions::default()).await.unwrap();
        let intake = Intake::new(Arc::new(store.clone()), Clock::system());
        let outcome = intake.handle("tools_runbooks", body.to_string().as_bytes(), &set).await;
        assert!(matches!(outcome, Outcome::Accepted(_)), "{outcome:?}");
        store.close().await;
    });
}

#[test]
fn what_came_in_runs_and_can_be_looked_at() {
    let project = project();
    let message = |status: &str, instance: &str, ended: &str| {
        json!({ "groupKey": "g", "alerts": [{ "status": status, "startsAt": "2026-08-20T10:00:00Z", "endsAt": ended,
                "labels": { "alertname": "DiskFull", "instance": instance } }] })
    };
    let zero = "0001-01-01T00:00:00Z";
    send(&project, &message("firing", "node-7:9100", zero));
    send(&project, &message("firing", "db-1\u{202e}", zero));
    project.farrier(&["incidents"]).expect(0).says("open").says("node-7");
    let listed = project.farrier(&["incidents", "-o", "json"]).expect(0).json();
    let id = listed[0]["id"].as_str().unwrap().to_owned();
    let ignored = project.farrier(&["incidents", "--ignored"]).expect(0).says("is not a host name");
    assert!(!ignored.out.contains('\u{202e}'), "what turns text around is spelled out");
    project.farrier(&["serve", "--until-idle"]).expect(0);
    project.farrier(&["incident", &id[..8]]).expect(0).says("succeeded").says("starts a run");
    send(&project, &message("resolved", "node-7:9100", "2026-08-20T10:30:00Z"));
    project.farrier(&["incident", &id[..8]]).expect(0).says("closed").says("resolved");
    assert_eq!(project.farrier(&["incidents", "-o", "json"]).expect(0).json(), json!([]));
    project.farrier(&["incidents", "--all"]).expect(0).says("closed");
    project.farrier(&["incident", "zz"]).expect(64).complains("no incident");
    project
        .farrier(&["unfuse", "clean", "--reason", "x"])
        .expect(64)
        .complains("no fuse of `clean` has blown");
    project.farrier(&["fsck"]).expect(0).says("everything is whole");
}
