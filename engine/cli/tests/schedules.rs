//! Schedules on the real binary: what is due starts, whoever kills the service; and what people see and say about it.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::time::Duration;

use common::{Project, Started};
use farrier_testkit::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const KILLS: usize = 12;

fn project(triggers: &str) -> Project {
    let project = Project::new();
    project.write(
        "runbooks/tick.yaml",
        &format!(
            "runbook: tick\nsummary: Ticks\nowner: tests\nrisk: read_only\ntriggers:\n{triggers}\
             steps:\n  note: {{ uses: flow.note, with: {{ message: tick }} }}\n"
        ),
    );
    project.environment(&json!({}));
    project
}

fn serve(project: &Project) -> Started {
    Started::from(project.command(&["serve", "--env", "test", "--quiet"]))
}

fn records(project: &Project) -> Vec<Value> {
    let answer = project.farrier(&["schedules", "test/tick", "--limit", "100000", "-o", "json"]);
    if answer.code == Some(0) { answer.json().as_array().unwrap().clone() } else { Vec::new() }
}

/// The real binary is killed at random again and again: each second has one record, each record its run, in no case two.
#[test]
fn a_killed_service_leaves_no_gap_and_no_double() {
    let project = project("  - { every: 1s, overlap: allow, catch_up: latest }\n");
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut before = 0;
    for round in 0..=KILLS {
        let service = serve(&project);
        // It has decided something since it began.
        wait_until("a due time is decided", || records(&project).len() > before);
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        std::thread::sleep(Duration::from_millis(random % 700));
        let signal = if round == KILLS { Signal::TERM } else { Signal::KILL };
        kill_process(Pid::from_raw(service.child.id().cast_signed()).unwrap(), signal).unwrap();
        let _ = service.end();
        before = records(&project).len();
    }
    let mut records = records(&project);
    records.reverse();
    let second = |record: &Value, key: &str| {
        record[key].as_str().map(|time| time.parse::<jiff::Timestamp>().unwrap().as_second())
    };
    let mut covered = None;
    let mut runs = Vec::new();
    for record in &records {
        let due = second(record, "due").unwrap();
        let first = second(record, "since").unwrap_or(due);
        assert!(covered.is_none_or(|covered| first == covered + 1), "after {covered:?} comes {record}");
        covered = Some(due);
        if record["decision"] == "run" {
            runs.push(record["run"].as_str().unwrap().to_owned());
        }
    }
    assert!(runs.len() > KILLS, "{} runs", runs.len());
    let mut unique = runs.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), runs.len());
    project.farrier(&["fsck"]).expect(0);
    // What the last one left queued is taken up, and everything ends well.
    project.farrier(&["serve", "--until-idle", "--quiet"]).expect(0);
    let listed = project.farrier(&["runs", "-o", "json", "--limit", "100000"]).expect(0).json();
    let listed = listed.as_array().unwrap();
    assert_eq!(listed.len(), runs.len());
    assert!(listed.iter().all(|run| run["state"] == "succeeded"));
    project.farrier(&["fsck"]).expect(0);
}

#[test]
fn people_see_what_comes_and_keep_it_from_coming() {
    let project = project(
        "  - { cron: \"30 2 * * *\", timezone: Europe/Berlin }\n  - { every: 2m, jitter: 10s, overlap: queue, catch_up: all }\n",
    );
    // From files alone.
    let next = project.farrier(&["next", "--for", "2d", "-o", "json"]).expect(0).json();
    let next = next.as_array().unwrap();
    let count = |schedule: &str| next.iter().filter(|coming| coming["schedule"] == schedule).count();
    assert_eq!((count("test/tick"), count("test/tick#2")), (2, 5));
    let last = next.iter().rfind(|coming| coming["schedule"] == "test/tick#2").unwrap();
    assert!(last["more"].as_u64().unwrap() > 1_400, "{last}");
    assert!(next.iter().all(|coming| coming.get("held").is_none()));
    project.farrier(&["next", "--env", "tset"]).expect(64);
    project
        .farrier(&["pause", "test/tick", "--reason", "too early"])
        .expect(64)
        .complains("no service has had");

    project.farrier(&["serve", "--env", "test", "--until-idle", "--quiet"]).expect(0);
    project.farrier(&["pause", "test/tick", "--reason", "the disk is being moved"]).expect(0);
    project.farrier(&["next"]).expect(0).says("the disk is being moved");
    project
        .farrier(&["schedules"])
        .expect(0)
        .says("the disk is being moved")
        .says("cron 30 2 * * * in Europe/Berlin");
    project.farrier(&["unpause", "test/tick"]).expect(0);
    project.farrier(&["unpause", "test/tick"]).expect(64).complains("is not paused");
    project.farrier(&["schedules"]).expect(0).says("test/tick#2");

    // An edit is an edit, and what is gone is retired.
    project.write(
        "runbooks/tick.yaml",
        &project
            .read("runbooks/tick.yaml")
            .replace("  - { every: 2m, jitter: 10s, overlap: queue, catch_up: all }\n", ""),
    );
    project.farrier(&["serve", "--env", "test", "--until-idle", "--quiet"]).expect(0);
    project.farrier(&["schedules", "--retired"]).expect(0).says("retired");
    project.farrier(&["fsck"]).expect(0);
}

#[test]
fn a_plan_is_made_as_if_it_were_later() {
    let project = Project::new();
    project.write(
        "runbooks/when.yaml",
        "runbook: when\nsummary: Tells the time\nowner: tests\nrisk: read_only\n\
         steps:\n  tell: { uses: data.let, with: { value: \"${ run.started_at }\" } }\noutputs: { at: \"${ steps.tell.value }\" }\n",
    );
    project.environment(&json!({}));
    let plan = ["plan", "when", "--env", "test", "--at", "2030-10-27T00:30:00Z", "-o", "json"];
    assert_eq!(project.farrier(&plan).expect(0).json()["outputs"]["at"], "2030-10-27T00:30:00Z");
    project.farrier(&["plan", "when", "--env", "test", "--at", "tomorrow"]).expect(64);
}
