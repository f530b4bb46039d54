//! The edges of a service: a stop in the middle of much, a disk without room, runs of others, and logs that machines read.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use farrier_testkit::{DEADLINE, wait_until};
use serde_json::{Value, json};

use crate::common::small_disk::{SmallDisk, fill};
use crate::service::{Serving, project, spawn};

/// Five commands at once, and one after each. The last two do not end by themselves and do not listen to a polite word.
fn five() -> String {
    let mut text =
        "runbook: five\nsummary: Five at once\nowner: tests\nrisk: destructive\ntargets: { here: host }\n\
                    inputs: { folder: { type: string } }\nsteps:\n"
            .to_owned();
    for number in 1..=5 {
        let end = if number <= 3 { "test -e \"$0/go\"" } else { "false" };
        let shell = format!("trap \"\" TERM; echo $$ > \"$0/at.{number}\"; until {end}; do sleep 0.02; done");
        text.push_str(&format!(
            "  at_{number}: {{ uses: host.run, needs: [], undo: none, with: {{ target: here, argv: [sh, -c, '{shell}', '${{ \
             inputs.folder }}'] }} }}\n  after_{number}: {{ uses: host.run, needs: [at_{number}], undo: none, with: {{ target: \
             here, argv: [touch, '${{ inputs.folder }}/after.{number}'] }} }}\n"
        ));
    }
    text
}

/// Guards T9: no new intents, leases released, nothing left running, and the next process goes on.
#[test]
fn a_stop_with_five_steps_at_work() {
    let project = project();
    project.write("runbooks/files/five.yaml", &five());
    project.environment(&json!({
        "place": { "kind": "files", "roots": { "out": "../out" } }, "here": { "kind": "host", "local": true },
    }));
    let mut serving = Serving::start_serving(project, &["--grace", "1s"]);
    let folder = serving.project.path(".").canonicalize().unwrap();
    let start = json!({ "environment": "test", "inputs": { "folder": folder } });
    let run =
        serving.post("/api/v1/runbooks/five/runs", "operator", &start).expect(201).json()["run"].clone();
    let run = run.as_str().unwrap().to_owned();
    let pids = || -> Vec<String> {
        let read = |number| serving.project.read(&format!("at.{number}")).trim().to_owned();
        (1..=5).map(read).filter(|pid| !pid.is_empty()).collect()
    };
    wait_until("five are at work", || pids().len() == 5);
    let children = pids();
    serving.signal("TERM");
    serving.until_said("stopping");
    serving.project.write("go", "");
    // It ends by itself, although two of them never would.
    assert_eq!(serving.end(), Some(0), "{}", serving.said());
    let lives = |pid: &String| {
        std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
    };
    wait_until("nothing is left running", || !children.iter().any(lives));
    let rows = serving.project.sqlite("data/farrier.db", "SELECT count(*) FROM run WHERE owner IS NOT NULL");
    assert_eq!(rows, ["0"], "leases are released");
    let intents = "SELECT count(*) FROM journal WHERE kind = 'intent'";
    assert_eq!(serving.project.sqlite("data/farrier.db", intents), ["5"], "nothing new begins");
    let logs = serving.project.farrier(&["logs", &run, "-o", "json"]).expect(0).json();
    let of = |view: &Value, state: &str| -> BTreeSet<String> {
        let steps = view["steps"].as_array().unwrap().iter().filter(|step| step["state"] == state);
        steps.map(|step| step["node"].as_str().unwrap().to_owned()).collect()
    };
    let view = serving.project.farrier(&["show", &run, "-o", "json"]).expect(0).json();
    let names =
        |numbers: &[u32]| numbers.iter().map(|number| format!("at_{number}")).collect::<BTreeSet<_>>();
    assert_eq!(of(&view, "succeeded"), names(&[1, 2, 3]), "outcomes within the grace are kept: {logs}");
    assert!((1..=5).all(|number| !folder.join(format!("after.{number}")).exists()));

    // The next one takes it up: what was cut off is for a person, and the rest goes on.
    let (child, address) = spawn(&serving.project, &[]);
    (serving.child, serving.address) = (child, address);
    let view = serving.until(&run, "parked");
    assert_eq!(of(&view, "in_doubt"), names(&[4, 5]), "{view}");
    for step in ["at_4", "at_5"] {
        let answer = json!({ "node": step, "applied": true, "reason": "it was only waiting" });
        serving.post(&format!("/api/v1/runs/{run}/resolve"), "operator", &answer).expect(200);
    }
    serving.until(&run, "succeeded");
    assert!((1..=5).all(|number| folder.join(format!("after.{number}")).exists()));
    serving.signal("TERM");
    assert_eq!(serving.end(), Some(0));
    serving.project.farrier(&["fsck"]).expect(0);
}

const HEALS: &str = "runbook: heals\nsummary: Heals a node\nowner: tests\nrisk: read_only\ninputs: { node: { type: host, \
                     pattern: \"node-[0-9]+\" } }\ntriggers:\n  - alert: { match: ['alertname=\"Down\"'], per: \
                     alert.labels.instance, inputs: { node: \"${ alert.labels.instance }\" } }\nsteps:\n  one: { uses: \
                     data.let, with: { value: \"${ inputs.node }\" } }\n";
const TICKS: &str = "runbook: ticks\nsummary: Ticks\nowner: tests\nrisk: read_only\ntriggers:\n  - { every: 1s, overlap: allow, \
                     catch_up: all }\nsteps:\n  note: { uses: flow.note, with: { message: tick } }\n";

fn records(serving: &Serving) -> Vec<Value> {
    let answer = serving.project.farrier(&["schedules", "test/ticks", "--limit", "100000", "-o", "json"]);
    if answer.code == Some(0) { answer.json().as_array().unwrap().clone() } else { Vec::new() }
}

/// Guards T6 of a service: on a full disk it refuses what begins something, says so, loses nothing, and goes on once there is room.
#[test]
fn a_full_disk_refuses_and_goes_on_without_a_restart() {
    let project = project();
    project.write("runbooks/lifecycle/heals.yaml", HEALS);
    project.write("runbooks/lifecycle/ticks.yaml", TICKS);
    let environment = project.read("environments/test.yaml").replacen('{', r#"{"receivers": ["main"], "#, 1);
    project.write("environments/test.yaml", &environment);
    let Some(_mount) = SmallDisk::new(&project.path("data"), "8m") else { return };
    let mut serving = Serving::start_serving(project, &["--env", "test"]);
    let alert = |number: u32| {
        let body = json!({ "version": "4", "groupKey": "g", "receiver": "main", "alerts": [{ "status": "firing",
            "labels": { "alertname": "Down", "instance": format!("node-{number}") },
            "startsAt": "2026-08-20T10:00:00Z", "endsAt": "0001-01-01T00:00:00Z" }] });
        serving.post("/webhooks/alertmanager/main", "main", &body).status
    };
    assert_eq!(alert(0), 200);
    wait_until("a due time is decided", || !records(&serving).is_empty());

    let filler = serving.project.path("data/filler");
    fill(&filler);
    // The log may still have room in its last pages: some are taken, and then none.
    let begun = Instant::now();
    let mut taken = 1;
    while alert(taken) == 200 {
        taken += 1;
        fill(&filler);
        assert!(begun.elapsed() < DEADLINE && taken < 15, "the disk is not full");
    }
    assert_eq!(alert(taken), 503, "and it is to come again");
    let health = serving.ask("GET", "/healthz", None, None).expect(503).json();
    assert!(health["problems"].to_string().contains("full"), "{health}");
    serving.ask("GET", "/readyz", None, None).expect(503);
    assert!(serving.get("/metrics", "viewer").expect(200).body.contains("farrier_store_full 1\n"));
    let start = json!({ "environment": "test" });
    serving.post("/api/v1/runbooks/waits/runs", "operator", &start).expect(503);
    let decided = records(&serving).len();
    // Some due times come while nothing can be written.
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(records(&serving).len(), decided);

    std::fs::remove_file(&filler).unwrap();
    wait_until("there is room again", || serving.ask("GET", "/healthz", None, None).status == 200);
    // Alertmanager sends all of it again.
    for number in 0..=taken {
        assert_eq!(alert(number), 200);
    }
    wait_until("what was due meanwhile is decided", || records(&serving).len() > decided + 3);
    let runs = || -> Vec<Value> {
        let all = serving.get("/api/v1/runs?limit=500", "admin").expect(200).json()["runs"].clone();
        all.as_array().unwrap().iter().filter(|run| run["runbook"] == "heals").cloned().collect()
    };
    wait_until("all are healed", || {
        runs().len() == taken as usize + 1 && runs().iter().all(|run| run["state"] == "succeeded")
    });
    serving.signal("TERM");
    assert_eq!(serving.end(), Some(0));
    let mut records = records(&serving);
    records.reverse();
    let second = |record: &Value, key: &str| {
        record[key].as_str().map(|time| time.parse::<jiff::Timestamp>().unwrap().as_second())
    };
    let mut covered = None;
    for record in &records {
        let due = second(record, "due").unwrap();
        let first = second(record, "since").unwrap_or(due);
        assert!(covered.is_none_or(|covered| first == covered + 1), "after {covered:?} comes {record}");
        covered = Some(due);
    }
    let mut of_schedule: Vec<&str> = records.iter().filter_map(|record| record["run"].as_str()).collect();
    let all = of_schedule.len();
    of_schedule.sort_unstable();
    of_schedule.dedup();
    assert_eq!(of_schedule.len(), all, "each starts one run");
    serving.project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

/// Guards "a service does what belongs to its environments": runs of others stay as they are, whatever comes for them.
#[test]
fn runs_of_other_environments_stay_waiting() {
    let project = project();
    let other = project.read("environments/test.yaml").replace("\"test\"", "\"other\"");
    project.write("environments/other.yaml", &other);
    let mut serving = Serving::start_in(project, "");
    let started = serving.post("/api/v1/runbooks/waits/runs", "operator", &json!({ "environment": "other" }));
    let theirs = started.expect(201).json()["run"].as_str().unwrap().to_owned();
    serving.until(&theirs, "waiting");
    let ours = serving.waiting_run();
    serving.signal("TERM");
    assert_eq!(serving.end(), Some(0));

    (serving.child, serving.address) = spawn(&serving.project, &["--env", "test"]);
    // It is asked for, and will be done by whoever does it.
    serving.post(&format!("/api/v1/runs/{theirs}/cancel"), "operator", &json!({})).expect(202);
    serving.post(&format!("/api/v1/runs/{ours}/cancel"), "operator", &json!({})).expect(200);
    serving.until(&ours, "cancelled");
    let again = serving.waiting_run();
    serving.post(&format!("/api/v1/runs/{again}/cancel"), "operator", &json!({})).expect(200);
    serving.until(&again, "cancelled");
    serving.until(&theirs, "waiting");
    assert!(serving.get("/metrics", "viewer").expect(200).body.contains("farrier_queue_depth 0\n"));
    serving.signal("TERM");
    assert_eq!(serving.end(), Some(0));

    (serving.child, serving.address) = spawn(&serving.project, &[]);
    serving.until(&theirs, "cancelled");
}

/// Guards "a line of the log says what it is about": run, step and attempt, in whatever is logged while a step is at work.
#[test]
fn logs_say_which_run_step_and_attempt() {
    let project = project();
    project.write(
        "runbooks/files/twice.yaml",
        "runbook: twice\nsummary: Fails twice\nowner: tests\nrisk: read_only\nsteps:\n  one:\n    uses: data.let\n    with: { value: \
         1 }\n    expect: [{ that: result.value == 2, otherwise: it is one }]\n    retry: { attempts: 2, backoff: 1s..1s, on: [expectation] }\n",
    );
    let logged = |format: &str| {
        let args =
            ["--log-format", format, "--log", "farrier_exec=debug", "run", "twice", "--env", "test", "--yes"];
        project.farrier(&args).expect(10).err
    };
    let lines = logged("json");
    let run = project.show_last()["id"].as_str().unwrap().to_owned();
    let failed: Vec<Value> = lines
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .filter(|line| line["message"] == "attempt failed")
        .collect();
    assert_eq!(failed.len(), 2, "{lines}");
    for (line, attempt) in failed.iter().zip(1..) {
        let span = &line["span"];
        assert_eq!(
            (
                span["run_id"].as_str(),
                span["node"].as_str(),
                span["attempt"].as_i64(),
                span["doing"].as_str()
            ),
            (Some(&*run), Some("one"), Some(attempt), Some("plan")),
            "{line}"
        );
        assert_eq!(span["runbook"], "twice");
    }
    let text = logged("text");
    let run = project.show_last()["id"].as_str().unwrap().to_owned();
    let line = text.lines().find(|line| line.contains("attempt failed")).unwrap_or_else(|| panic!("{text}"));
    assert!(
        line.contains(&format!("run_id={run}")) && line.contains("node=one") && line.contains("attempt=1"),
        "{line}"
    );
}
