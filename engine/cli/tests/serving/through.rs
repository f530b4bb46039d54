//! Commands beside a service that owns the store: the same words, through its socket, or over the network.

use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::common::Started;
use crate::service::{Serving, beside};

/// Guards "commands work beside a service": nothing fails because the store is busy.
#[test]
fn commands_go_through_the_socket() {
    let serving = Serving::start();
    let mode = std::fs::metadata(serving.project.path("data/farrier.sock")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let tell = |args: &[&str]| beside(&serving, "tester", args);
    let ran = tell(&["run", "writes", "--env", "test", "-i", "name=a", "--yes"]).expect(0);
    ran.says("writes succeeded: 1 change made");
    assert_eq!(serving.project.read("out/a"), "new");
    let again =
        tell(&["run", "writes", "--env", "test", "-i", "name=a", "--yes", "-o", "json"]).expect(0).json();
    assert_eq!((&again["state"], &again["changed"]), (&json!("succeeded"), &json!(0)));
    tell(&["run", "writes", "--env", "test", "-i", "name=../a", "--yes"])
        .expect(64)
        .complains("is not one component of a path");

    let detached = tell(&["run", "waits", "--env", "test", "--detach"]).expect(0);
    let run = detached.out.trim().to_owned();
    serving.until(&run, "waiting");
    tell(&["resume", &run, "--yes"]).expect(15).says("waits for signal `go`");
    beside(&serving, "eve", &["signal", &run, "go"]).expect(77).complains("eve may not send it");
    tell(&["signal", &run, "stop"]).expect(64);
    tell(&["signal", &run, "go"]).expect(0).says("signal `go` was accepted");
    serving.until(&run, "succeeded");
    tell(&["cancel", &run]).expect(64).complains("has ended");
    tell(&["cancel", "ffff"]).expect(64).complains("no run's id begins with");

    let detached = tell(&["run", "waits", "--env", "test", "--detach"]).expect(0);
    let run = detached.out.trim().to_owned();
    serving.until(&run, "waiting");
    tell(&["cancel", &run, "--reason", "enough"]).expect(0).says("was cancelled");
    tell(&["show", &run]).expect(0).says("was cancelled");
    // What was done over the socket bears the name of who is at the keyboard.
    let audit = tell(&["audit", "-o", "json"]).expect(0).json();
    let eve = audit.as_array().unwrap().iter().find(|act| act["who"] == "eve").unwrap();
    assert_eq!((&eve["via"], &eve["outcome"]), (&json!("socket"), &json!("not_yours")));
}

#[test]
fn an_approval_is_given_through_the_socket() {
    let serving = Serving::start();
    let environment = json!({
        "environment": "test", "approvals": { "recoverable": 2 },
        "targets": { "place": { "kind": "files", "roots": { "out": "../out" } } },
    });
    serving.project.write("environments/test.yaml", &environment.to_string());
    serving.post("/api/v1/reload", "admin", &json!({})).expect(200);
    let ran =
        beside(&serving, "tester", &["run", "writes", "--env", "test", "-i", "name=b", "--yes"]).expect(15);
    ran.says("waits for 2 more to approve its plan");
    let run = serving.project.last_run();
    let digest = serving.until(&run, "waiting")["approvals"][0]["digest"].as_str().unwrap().to_owned();
    let yes = ["approve", &run, "--yes", "--digest", &digest];
    beside(&serving, "tester", &yes).expect(77).complains("somebody else has to approve it");
    beside(&serving, "ada", &["approve", &run]).expect(64).complains("nobody is here to ask");
    beside(&serving, "ada", &["approve", &run, "--yes", "--digest", "0123456789"]).expect(64);
    beside(&serving, "ada", &yes).expect(0).says("approved; 1 more to come");
    beside(&serving, "ada", &yes).expect(77).complains("has approved it already");
    beside(&serving, "grace", &yes).expect(0).says("approved");
    serving.until(&run, "succeeded");
    assert_eq!(serving.project.read("out/b"), "new");
}

/// Over the network it is the token that says who somebody is.
#[test]
fn commands_go_to_a_named_server() {
    let serving = Serving::start();
    let server = format!("http://{}", serving.address);
    let tell = |who: Option<&str>, args: &[&str]| {
        let mut command = serving.project.command(args);
        command.args(["--server", &server]);
        if let Some(who) = who {
            command.env("FARRIER_TOKEN", serving.token(who));
        }
        Started::from(command).end()
    };
    let run = serving.waiting_run();
    tell(None, &["runs"]).expect(64).complains("FARRIER_TOKEN");
    tell(Some("viewer"), &["runs"]).expect(0).says("waits");
    tell(Some("viewer"), &["show", &run]).expect(0).says("waits for signal `go`");
    tell(Some("viewer"), &["logs", &run]).expect(0).says("created to run waits");
    tell(Some("viewer"), &["locks"]).expect(0);
    tell(Some("viewer"), &["cancel", &run]).expect(77).complains("this needs the role `operator` here");
    tell(Some("elsewhere"), &["show", &run]).expect(64);
    tell(Some("viewer"), &["audit"]).expect(77);
    tell(Some("admin"), &["audit"]).expect(0).says("not_allowed");
    tell(Some("operator"), &["cancel", &run]).expect(0);
    let mut gone = serving.project.command(&["runs", "--server", "http://127.0.0.1:1"]);
    gone.env("FARRIER_TOKEN", "x");
    Started::from(gone).end().expect(69).complains("cannot be reached");
    let mut plain = serving.project.command(&["runs", "--server", "http://farrier.example"]);
    plain.env("FARRIER_TOKEN", "x");
    Started::from(plain).end().expect(64).complains("in plain text");
}

/// Guards "the same key starts one run", also when the request is sent again.
#[test]
fn an_idempotency_key_starts_one_run() {
    let serving = Serving::start();
    let start = |who: &str, key: &str, name: &str| {
        let body = json!({ "environment": "test", "inputs": { "name": name } }).to_string();
        let more = format!("Idempotency-Key: {key}\r\n");
        serving.ask_with("POST", "/api/v1/runbooks/writes/runs", Some(serving.token(who)), Some(&body), &more)
    };
    let first = start("operator", "k", "a").expect(201).json();
    let again = start("operator", "k", "a").expect(200).json();
    assert_eq!(first["run"], again["run"]);
    start("operator", "k", "b").expect(409);
    start("approver", "k", "a").expect(201);
    start("operator", "", "a").expect(400);
    assert_eq!(serving.runs(), 2);
}

/// Guards "what was read is what happens", over the API: a run is bound to the plan that came with it.
#[test]
fn a_plan_from_the_service_binds_its_run() {
    let serving = Serving::start();
    let path = "/api/v1/runbooks/writes";
    let request = json!({ "environment": "test", "inputs": { "name": "a" } });
    let plan = serving.post(&format!("{path}/plan"), "operator", &request).expect(200).json();
    assert_eq!(plan["plan"]["summary"]["create"], 1);
    let saved = plan["saved"].as_str().unwrap();
    let with = |inputs: &str, saved: &str| json!({ "environment": "test", "inputs": { "name": inputs }, "plan": saved });
    serving.post(&format!("{path}/runs"), "operator", &with("b", saved)).expect(409);
    serving.post(&format!("{path}/runs"), "operator", &with("a", &saved.replace("new", "old"))).expect(400);
    serving.project.write("out/a", "somebody was quicker");
    let run = serving.post(&format!("{path}/runs"), "operator", &with("a", saved)).expect(201).json();
    let view = serving.until(run["run"].as_str().unwrap(), "failed");
    assert_eq!(view["kind"], "drift");
    assert_eq!(serving.project.read("out/a"), "somebody was quicker");
    serving.post(&format!("{path}/runs"), "operator", &with("a", saved)).expect(410);
}
