//! Runs that wait for a time, a signal, people or a lock: what is typed, what is shown, and how it ends. Every command is a
//! process of its own, so nothing is kept but what is on disk.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fs;

use common::{Answer, Project, Started};
use farrier_testkit::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// A project with the runbook `NAME`, given without its first lines, and the environment `test`.
fn project(name: &str, rest: &str) -> Project {
    let project = Project::new();
    add(&project, name, rest);
    fs::create_dir(project.path("out")).unwrap();
    environment(&project, &json!({}));
    project
}

fn add(project: &Project, name: &str, rest: &str) {
    let head = format!("runbook: {name}\nsummary: Waits\nowner: tests\n");
    let risk = if rest.contains("risk:") { "" } else { "risk: recoverable\n" };
    let targets = "targets: { place: files, here: host }\n";
    // An unused target is no mistake, but only a hint.
    project.write(&format!("runbooks/{name}.yaml"), &format!("{head}{risk}{targets}{rest}"));
}

/// Writes the environment with a few more keys.
fn environment(project: &Project, more: &Value) {
    let mut environment = json!({
        "environment": "test",
        "targets": {
            "place": { "kind": "files", "roots": { "out": "../out" } },
            "here": { "kind": "host", "local": true },
        },
        "people": { "roots": ["ada", "grace", "tester"] },
    });
    for (key, value) in more.as_object().unwrap() {
        environment[key] = value.clone();
    }
    project.write("environments/test.yaml", &environment.to_string());
}

/// A step that writes a file of this name.
fn writes(name: &str, needs: &str, more: &str) -> String {
    format!(
        "  {name}:\n    uses: files.write\n    needs: [{needs}]\n    undo: restore\n{more}    with: {{ target: place, file: {{ \
         root: out, path: [{name}] }}, content: new }}\n"
    )
}

/// The names of the files that runs wrote.
fn files(project: &Project) -> Vec<String> {
    let entries = fs::read_dir(project.path("out")).unwrap().map(|entry| entry.unwrap());
    let mut names: Vec<String> = entries
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| entry.file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Starts a run that stays no moment longer than it has something to do.
fn start(project: &Project, name: &str) -> Answer {
    project.farrier(&["run", name, "--env", "test", "--yes", "--patience", "0s"])
}

fn resume(project: &Project, run: &str) -> Answer {
    project.farrier(&["resume", run, "--yes", "--patience", "0s"])
}

fn show(project: &Project, run: &str) -> Value {
    project.farrier(&["show", run, "-o", "json"]).expect(0).json()
}

fn serve(project: &Project) -> Answer {
    project.farrier(&["serve", "--until-idle"])
}

/// The runs there are, the oldest first.
fn runs(project: &Project) -> Vec<(String, String)> {
    let rows = project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let text = |row: &Value, key: &str| row[key].as_str().unwrap().to_owned();
    rows.as_array().unwrap().iter().rev().map(|row| (text(row, "id"), text(row, "state"))).collect()
}

fn approve(project: &Project, user: &str, run: &str, digest: &str) -> Answer {
    project.farrier_as(user, &["approve", run, "--yes", "--digest", digest])
}

fn digest(project: &Project, run: &str) -> String {
    show(project, run)["approvals"][0]["digest"].as_str().unwrap().to_owned()
}

#[track_caller]
fn whole(project: &Project) {
    project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

// Approvals

fn approved(with: &str) -> Project {
    let steps = [
        writes("first", "", ""),
        format!("  sure:\n    uses: flow.approval\n    needs: [first]\n    with: {with}\n"),
        writes("second", "sure", ""),
    ];
    project("asked", &format!("steps:\n{}", steps.concat()))
}

#[test]
fn two_of_a_group_approve_what_they_have_read() {
    let project = approved("{ who: [roots], count: 2, within: 3d }");
    let waits = start(&project, "asked").expect(15).says("asked waits: 1 change made");
    let waits = waits.says("step `sure` waits for approval").complains("next: `farrier show ");
    let run = project.last_run();
    assert!(waits.err.contains(&format!("farrier show {}", &run[..13])), "{waits}");
    assert_eq!(files(&project), ["first"]);

    let shown = project
        .farrier(&["show", &run])
        .expect(0)
        .says("waiting in test")
        .says("Approval of `sure`: 2 needed of roots.");
    let shown = shown.says("second").says("1 to create");
    shown.complains(&format!("next: farrier approve {0} 'sure', or farrier reject {0} 'sure'", &run[..13]));
    let view = show(&project, &run);
    let asked = &view["approvals"][0];
    assert_eq!((asked["subject"].clone(), asked["count"].clone()), (json!("sure"), json!(2)), "{view:#}");
    assert_eq!(asked["plan"]["summary"]["create"], 1, "{view:#}");
    assert!(asked["expires"].is_string(), "{view:#}");
    let digest = asked["digest"].as_str().unwrap();

    // Nobody says yes to something else than what they name, by accident, or for somebody else.
    let refused = approve(&project, "ada", &run, &"0".repeat(64)).expect(64);
    refused.complains(&format!("refused: the run asks about plan {}, and not about 000", &digest[..12]));
    approve(&project, "ada", &run, &digest[..7]).expect(64).complains("the run asks about plan");
    project.farrier_as("ada", &["approve", &run]).expect(64).complains("give `--yes --digest DIGEST`");
    project.farrier_as("ada", &["approve", &run, "--yes"]).expect(64).complains("--digest");
    approve(&project, "tester", &run, digest)
        .expect(77)
        .complains("tester asked for this run, and somebody else has to approve it");
    approve(&project, "mallory", &run, digest)
        .expect(77)
        .complains("mallory may not approve it: that is for roots");
    project
        .farrier_as("mallory", &["reject", &run])
        .expect(77)
        .complains("mallory may not reject it: that is for roots");
    project.farrier_as("tester", &["reject", &run]).expect(77).complains("`farrier cancel` takes it back");
    let other =
        project.farrier_as("ada", &["approve", &run, "first", "--yes", "--digest", digest]).expect(64);
    other.complains("step `first` does not wait for an approval");

    approve(&project, "ada", &run, &digest[..12]).expect(0).says("approved; 1 more to come");
    approve(&project, "ada", &run, digest).expect(77).complains("ada has approved it already");
    resume(&project, &run).expect(15);
    serve(&project).expect(0);
    project.farrier(&["show", &run]).expect(0).says("given by ada");
    assert_eq!(files(&project), ["first"], "one of two is not enough");

    let by_grace = ["approve", &run, "sure", "--yes", "--digest", digest, "--reason", "as talked about"];
    let given = project.farrier_as("grace", &by_grace).expect(0).says("approved\n");
    given.complains(&format!("next: farrier resume {}", &run[..13]));
    let late = ["approve", &run, "sure", "--yes", "--digest", digest];
    project.farrier_as("grace", &late).expect(64).complains("it was approved by ada, grace");
    approve(&project, "grace", &run, digest).expect(64).complains("the run does not wait for an approval");
    resume(&project, &run).expect(0).says("asked succeeded: 2 changes made");
    assert_eq!(files(&project), ["first", "second"]);
    let logs =
        project.farrier(&["logs", &run]).expect(0).says("sure: 2 approvals of roots asked for, of plan");
    logs.says("sure: grace approved plan ").says(": as talked about");
    project.farrier_as("grace", &late).expect(64).complains("the run has ended");
    approve(&project, "grace", &run, digest).expect(64);
    whole(&project);
}

#[test]
fn a_no_ends_the_run() {
    let project = approved("{ who: [ada] }");
    start(&project, "asked").expect(15);
    let run = project.last_run();
    let said = project
        .farrier_as("ada", &["reject", &run, "--reason", "not on a Friday"])
        .expect(0)
        .says("rejected");
    said.complains(&format!("next: farrier resume {}, which ends it", &run[..13]));
    approve(&project, "ada", &run, &"0".repeat(64)).expect(64);
    resume(&project, &run).expect(24).says("ada rejected it: not on a Friday");
    assert_eq!(files(&project), ["first"], "what was done before stays, as the step's `on_failure` says");
    assert_eq!(show(&project, &run)["state"], "failed");
    whole(&project);
}

#[test]
fn no_answer_in_time_ends_the_run() {
    let project = approved("{ who: [ada], within: 1s }");
    start(&project, "asked").expect(15);
    let run = project.last_run();
    let digest = digest(&project, &run);
    wait_until("the time for an answer is over", || {
        approve(&project, "ada", &run, &digest[..7]);
        let answer = approve(&project, "mallory", &run, &digest).expect_one_of(&[64, 77]);
        answer.err.contains("it is too late: the time for an answer is over")
    });
    serve(&project).expect(0).complains("nobody approved it until ");
    assert_eq!(show(&project, &run)["state"], "failed");
    resume(&project, &run).expect(64).complains("is over");
    assert_eq!(files(&project), ["first"]);
}

#[test]
fn a_world_that_moves_after_the_yes_is_not_overwritten() {
    let project = approved("{ who: [ada] }");
    start(&project, "asked").expect(15);
    let run = project.last_run();
    approve(&project, "ada", &run, &digest(&project, &run)).expect(0);
    project.write("out/second", "somebody else's");
    let ended = resume(&project, &run).expect(20);
    ended.says("`out/second` was a create, and is a update now");
    assert_eq!(project.read("out/second"), "somebody else's");
    whole(&project);
}

#[test]
fn an_environment_wants_approvals_before_the_first_write() {
    let project = project("plain", &format!("steps:\n{}", writes("first", "", "")));
    environment(&project, &json!({ "approvals": { "recoverable": 1 } }));
    let waits = start(&project, "plain").expect(15).says("plain waits: no changes");
    waits.says("waits for 1 more to approve its plan");
    let run = project.last_run();
    assert_eq!(files(&project), [""; 0]);
    project.farrier(&["show", &run]).expect(0).says("Approval of the run: 1 needed.").complains("'-'");
    let first = digest(&project, &run);
    approve(&project, "tester", &run, &first).expect(77);
    // Anybody else may; the world has moved meanwhile, and what they said yes to would not happen: they are asked again.
    project.write("out/first", "somebody else's");
    approve(&project, "anybody", &run, &first).expect(0);
    resume(&project, &run).expect(15);
    assert_eq!(project.read("out/first"), "somebody else's");
    let second = digest(&project, &run);
    assert_ne!(first, second);
    approve(&project, "anybody", &run, &first).expect(64).complains("the run asks about plan");
    project.farrier_as("anybody", &["approve", &run, "-", "--yes", "--digest", &second]).expect(0);
    // Whoever takes it up is not asked again.
    serve(&project).expect(0);
    assert_eq!(project.read("out/first"), "new");
    assert_eq!(show(&project, &run)["state"], "succeeded");

    // Nor is somebody without a terminal, who would lose what others have approved.
    fs::remove_file(project.path("out/first")).unwrap();
    start(&project, "plain").expect(15);
    let run = project.last_run();
    approve(&project, "ada", &run, &digest(&project, &run)).expect(0);
    project.farrier(&["resume", &run]).expect(0).says("plain succeeded: 1 change made");
    let logs = project.farrier(&["logs", &run]).expect(0).says("the run: 1 approval asked for, of plan ");
    logs.says("the run: ada approved plan ");

    // What a person has read in a file is approved like everything else.
    fs::remove_file(project.path("out/first")).unwrap();
    project.farrier(&["plan", "plain", "--env", "test", "--out", "saved"]).expect(0);
    project.farrier(&["apply", "saved", "--yes"]).expect(15);
    let run = project.last_run();
    project.farrier_as("ada", &["reject", &run, "-"]).expect(0);
    resume(&project, &run).expect(24);
    assert_eq!(files(&project), [""; 0]);
    whole(&project);
}

// Waiting for a time, and signals

const FORTY_DAYS: &str = "signals:
  - { name: go_on, who: [ada], until: last, then: continue }
  - { name: reenable, who: [roots], until: last, then: undo }
  - { name: leave, who: [roots], until: last, then: cancel }
";

fn graceful() -> Project {
    let steps = [
        writes("first", "", ""),
        "  grace: { uses: flow.wait, needs: [first], with: { for: 40d, signal: go_on } }\n".to_owned(),
        writes("last", "grace", "    commit_point: true\n"),
        "  after: { uses: flow.wait, needs: [last], with: { for: 40d } }\n".to_owned(),
    ];
    project("graceful", &format!("{FORTY_DAYS}steps:\n{}", steps.concat()))
}

#[test]
fn a_wait_of_forty_days_is_shown_and_not_woken_early() {
    let project = graceful();
    project
        .farrier(&["plan", "graceful", "--env", "test"])
        .expect(0)
        .says("for 40d, or until signal `go_on`");
    start(&project, "graceful")
        .expect(15)
        .says("graceful waits: 1 change made")
        .says("step `grace` waits until ");
    let run = project.last_run();
    let view = show(&project, &run);
    let until = view["until"].as_str().unwrap();
    let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_second();
    let length = at(until) - at(view["created_at"].as_str().unwrap());
    assert!((40 * 86_400..40 * 86_400 + 600).contains(&length), "{length} s");
    let shown = project.farrier(&["show", &run]).expect(0).says("waiting in test");
    let shown = shown.says(&format!("step `grace` waits until {until} or signal `go_on` (due {until})"));
    shown.complains("when it is due, farrier resume ");
    let journal = project.farrier(&["logs", &run]).expect(0).out;
    for _ in 0..2 {
        serve(&project).expect(0);
    }
    assert_eq!(project.farrier(&["logs", &run]).out, journal, "nobody touches a run that is not due");
    // A person may look in, and finds the same.
    resume(&project, &run).expect(15).says(until);
    assert_eq!(show(&project, &run)["until"], *until);
    assert_eq!(files(&project), ["first"]);
    whole(&project);
}

#[test]
fn a_short_wait_is_sat_out() {
    let steps =
        ["  pause: { uses: flow.wait, with: { for: 1s } }\n".to_owned(), writes("first", "pause", "")];
    let project = project("short", &format!("steps:\n{}", steps.concat()));
    project.farrier(&["run", "short", "--env", "test", "--yes"]).expect(0);
    assert_eq!(files(&project), ["first"]);
    let logs = project.farrier(&["logs", &project.last_run()]).expect(0);
    assert!(!logs.out.contains("suspended"), "{logs}");
}

#[test]
fn signals_do_what_the_runbook_says() {
    // Who, what and when.
    let project = graceful();
    start(&project, "graceful").expect(15);
    let run = project.last_run();
    let signal =
        |user: &str, name: &str| project.farrier_as(user, &["signal", &run, name, "--reason", "because"]);
    signal("mallory", "go_on").expect(77).complains("mallory may not send it: that is for ada");
    signal("ada", "stop").expect(64).complains("it accepts: `go_on`, `reenable`, `leave`");
    project.farrier(&["signal", "ffff", "go_on"]).expect(64).complains("no run's id begins with `ffff`");
    let sent = signal("ada", "go_on").expect(0).says("signal `go_on` was accepted");
    sent.complains(&format!("next: farrier resume {}", &run[..13]));
    signal("ada", "go_on").expect(64).complains("`go_on` has been sent already, by ada");
    serve(&project).expect(0);
    assert_eq!(files(&project), ["first", "last"]);
    // From the commit point on, the run goes forward only.
    signal("grace", "reenable")
        .expect(64)
        .complains("`reenable` is accepted until step `last` begins, and it has begun");
    for words in [&["cancel", &run][..], &["cancel", &run, "--undo"]] {
        project.farrier(words).expect(64).complains("has passed its commit point and only goes forward");
    }
    assert_eq!(show(&project, &run)["state"], "waiting");
    project.farrier(&["logs", &run]).expect(0).says("signal `go_on` from ada: because");
    whole(&project);

    for (name, state, code, left) in
        [("reenable", "undone", 11, &[][..]), ("leave", "cancelled", 14, &["first"])]
    {
        let project = graceful();
        start(&project, "graceful").expect(15);
        let run = project.last_run();
        project.farrier_as("grace", &["signal", &run, name]).expect(0);
        resume(&project, &run).expect(code);
        assert_eq!(show(&project, &run)["state"], state);
        assert_eq!(files(&project), left);
        project.farrier_as("grace", &["signal", &run, name]).expect(64).complains("the run has ended");
        whole(&project);
    }
}

#[test]
fn a_waiting_run_is_cancelled_with_and_without_undo() {
    for (undo, state, left) in [(None, "cancelled", &["first"][..]), (Some("--undo"), "undone", &[])] {
        let project = graceful();
        start(&project, "graceful").expect(15);
        let run = project.last_run();
        let mut words = vec!["cancel", &run, "--reason", "a mistake"];
        words.extend(undo);
        project.farrier_as("ada", &words).expect(0).says(&format!("run {run} "));
        assert_eq!(
            (show(&project, &run)["state"].clone(), files(&project)),
            (json!(state), left.iter().map(ToString::to_string).collect())
        );
        project.farrier(&["logs", &run]).expect(0).says("cancel requested by ada").says(": a mistake");
        project.farrier_as("ada", &words).expect(64).complains("the run has ended");
        whole(&project);
    }
}

// Locks, and one run at a time

/// Holds `nodes` until somebody says `done`.
fn holding(lock: &str) -> String {
    format!(
        "inputs: {{ name: {{ type: path_segment, default: x }} }}
run_title: hold for ${{ inputs.name }}
{lock}signals: [{{ name: done, who: [tester], then: continue }}]
steps:
  first:
    uses: files.write
    undo: restore
    with: {{ target: place, file: {{ root: out, path: [\"${{ inputs.name }}\"] }}, content: new }}
  hold: {{ uses: flow.wait, needs: [first], with: {{ signal: done }} }}
"
    )
}

fn start_with(project: &Project, name: &str, input: &str) -> Answer {
    let input = format!("name={input}");
    project.farrier(&["run", name, "--env", "test", "--yes", "--patience", "0s", "-i", &input])
}

#[test]
fn a_lock_is_held_by_one_and_waited_for_in_line() {
    let project = project("holds", &holding("locks: [{ name: nodes }]\n"));
    start_with(&project, "holds", "a").expect(15);
    let enqueue = |name: &str| {
        let words = ["run", "holds", "--env", "test", "--detach", "-i", &format!("name={name}")];
        let answer = project.farrier(&words).expect(0).complains("next: farrier serve");
        let run = answer.out.trim().to_owned();
        assert_eq!(show(&project, &run)["state"], "queued");
        // Each is in line before the next one comes.
        serve(&project).expect(0);
        run
    };
    let (b, c) = (enqueue("b"), enqueue("c"));
    assert_eq!(files(&project), ["a"], "who waits for a lock does nothing yet");
    let shown = project.farrier(&["show", &b]).expect(0).says("waits for lock `test/nodes`");
    shown.complains("next: ");
    let a = runs(&project)[0].0.clone();

    let line = |expected: &[(&str, &str)]| {
        let locks = project.farrier(&["locks", "-o", "json"]).expect(0).json();
        let found: Vec<(&str, &str)> = locks
            .as_array()
            .unwrap()
            .iter()
            .map(|ticket| (ticket["state"].as_str().unwrap(), ticket["run"].as_str().unwrap()))
            .collect();
        assert_eq!(found, expected, "{locks:#}");
        locks
    };
    let locks = line(&[("holds", &a), ("waits", &b), ("waits", &c)]);
    assert_eq!(locks[0]["lock"], "test/nodes");
    assert_eq!(locks[1]["title"], "hold for b");
    assert_eq!(locks[0]["capacity"], 1);
    let table = project.farrier(&["locks"]).expect(0).says("LOCK").says("test/nodes").says("hold for c");
    assert_eq!(table.out.lines().count(), 4, "{table}");

    // Everyone in turn, and one who gives up leaves the line.
    project.farrier(&["cancel", &b]).expect(0);
    line(&[("holds", &a), ("waits", &c)]);
    project.farrier(&["signal", &a, "done"]).expect(0);
    serve(&project).expect(0);
    assert_eq!(files(&project), ["a", "c"]);
    line(&[("holds", &c)]);
    project.farrier(&["signal", &c, "done"]).expect(0);
    serve(&project).expect(0);
    line(&[]);
    let states: Vec<String> = runs(&project).into_iter().map(|(_, state)| state).collect();
    assert_eq!(states, ["succeeded", "cancelled", "succeeded"]);
    whole(&project);
}

#[test]
fn as_many_hold_a_lock_as_it_has_places() {
    let project =
        project("holds", &holding("locks: [{ name: \"nodes of ${ inputs.name }\", capacity: 2 }]\n"));
    for _ in 0..3 {
        start_with(&project, "holds", "a").expect(15);
    }
    start_with(&project, "holds", "b").expect(15).says("step `hold` waits for signal `done`");
    let locks = project.farrier(&["locks", "-o", "json"]).expect(0).json();
    let states: Vec<(&str, &str)> = locks
        .as_array()
        .unwrap()
        .iter()
        .map(|ticket| (ticket["lock"].as_str().unwrap(), ticket["state"].as_str().unwrap()))
        .collect();
    let (a, b) = ("test/nodes of a", "test/nodes of b");
    assert_eq!(states, [(a, "holds"), (a, "holds"), (a, "waits"), (b, "holds")]);
}

#[test]
fn a_lock_that_is_not_free_in_time_ends_the_run() {
    let project = project("holds", &holding("locks: [{ name: nodes, wait: 1s }]\n"));
    start_with(&project, "holds", "a").expect(15);
    start_with(&project, "holds", "b").expect(15).says("waits for lock `test/nodes`");
    let b = project.last_run();
    wait_until("the second one gives up", || {
        let answer = resume(&project, &b).expect_one_of(&[15, 23]);
        answer.code == Some(23)
            && answer
                .says("lock `test/nodes` was not free in time")
                .out
                .contains("`farrier locks` shows who holds it")
    });
    assert_eq!(files(&project), ["a"]);
    assert_eq!(project.farrier(&["locks", "-o", "json"]).json().as_array().unwrap().len(), 1);
    whole(&project);
}

#[test]
fn one_run_per_key_is_alive() {
    let project = project("holds", &holding("one_run_per: inputs.name\n"));
    start_with(&project, "holds", "a").expect(15);
    let a = project.last_run();
    start_with(&project, "holds", "b").expect(15);
    let refused = start_with(&project, "holds", "a").expect(23);
    let refused = refused.complains(&format!("run {a} of the same runbook is still alive for `a` in test"));
    refused.complains(&format!("farrier show {}", &a[..13]));
    let words = ["run", "holds", "--env", "test", "--detach", "-i", "name=a"];
    project.farrier(&words).expect(23);
    assert_eq!(runs(&project).len(), 2, "a run that may not be is none");
    project.farrier(&["cancel", &a]).expect(0);
    start_with(&project, "holds", "a").expect(15);
    whole(&project);
}

// Rates

#[test]
fn the_fourth_within_a_day_asks_a_person() {
    let guards = "guards: [{ rate: first, at_most: 3, within: 24h, otherwise: ask }]\n";
    let input = "inputs: { name: { type: path_segment } }\n";
    let step = "steps:
  first:
    uses: files.write
    undo: restore
    with: { target: place, file: { root: out, path: [\"${ inputs.name }\"] }, content: new }
";
    let project = project("often", &format!("{input}{guards}{step}"));
    for name in ["a", "b", "c"] {
        start_with(&project, "often", name).expect(0);
    }
    // Without changes nothing is executed, so nothing counts.
    start_with(&project, "often", "a").expect(0);
    project.farrier(&["plan", "often", "--env", "test", "-i", "name=d"]).expect(22).says("rate: first");
    let parked = start_with(&project, "often", "d").expect(12);
    let parked = parked.says("4 executions, more than the limit of 3").complains("--accept-guards --yes");
    assert_eq!(files(&project), ["a", "b", "c"], "{parked}");
    let run = project.last_run();
    let shown = project.farrier(&["show", &run]).expect(0).says("The guard asks about:").says("out/d");
    shown.says("1 to create").complains("--accept-guards --yes");
    let view = show(&project, &run);
    assert_eq!(view["asks"]["steps"][0]["changes"][0]["object"], "out/d", "{view:#}");
    assert_eq!(view["asks"]["summary"]["create"], 1);

    resume(&project, &run).expect(12);
    serve(&project).expect(0);
    assert_eq!(files(&project).len(), 3, "neither a yes nor a service accepts a guard");
    project.farrier_as("ada", &["resume", &run, "--yes", "--accept-guards"]).expect(0);
    assert_eq!(files(&project), ["a", "b", "c", "d"]);
    project
        .farrier(&["logs", &run])
        .expect(0)
        .says("resumed by ada")
        .says("who accepted the guard `rate: first");
    // It counts as well.
    start_with(&project, "often", "e").expect(12).says("5 executions");
    whole(&project);
}

// Serving

/// Writes a line, waits until somebody lets it go on, and writes another one.
fn slow(project: &Project) {
    let script = "echo begun >> \"$0\"; while [ ! -e \"$0.go\" ]; do sleep 0.02; done; echo done >> \"$0\"";
    let ledger = project.path("ledger");
    let step = format!(
        "  command:\n    uses: host.run\n    undo: none\n    with: {{ target: here, argv: [sh, -c, '{script}', '{}'] }}\n",
        ledger.display()
    );
    add(project, "slow", &format!("risk: destructive\nsteps:\n{step}{}", writes("first", "command", "")));
}

fn terminate(started: &Started) {
    let process = Pid::from_raw(i32::try_from(started.child.id()).unwrap()).unwrap();
    kill_process(process, Signal::TERM).unwrap();
}

#[test]
fn serving_takes_up_what_was_left_and_ends_when_idle() {
    let steps =
        [writes("first", "", ""), "  pause: { uses: flow.wait, needs: [first], with: { for: 1h } }\n".into()];
    let project = project("pauses", &format!("steps:\n{}", steps.concat()));
    add(&project, "plain", &format!("steps:\n{}", writes("second", "", "")));
    let ids: Vec<String> = ["pauses", "plain"]
        .iter()
        .map(|name| {
            let words = ["run", name, "--env", "test", "--detach"];
            project.farrier(&words).expect(0).out.trim().to_owned()
        })
        .collect();
    assert_eq!(files(&project), [""; 0], "nothing begins before somebody serves");
    let served = serve(&project).expect(0).complains("taking up what is due in ");
    served.complains(&format!("{} plain: finished: succeeded", &ids[1][..13]));
    assert_eq!(files(&project), ["first", "second"]);
    assert_eq!(
        runs(&project).into_iter().map(|(_, state)| state).collect::<Vec<_>>(),
        ["waiting", "succeeded"],
        "idle is when nothing is due, not when everything is over"
    );
    let quiet = project.farrier(&["serve", "--until-idle", "--quiet"]).expect(0);
    assert_eq!((quiet.out.as_str(), quiet.err.as_str()), ("", ""));
    project.farrier(&["run", "plain", "--env", "test", "--detach", "--quiet"]).expect(64);
    whole(&project);
}

#[test]
fn a_service_that_is_told_to_end_lets_go() {
    let project = project("plain", &format!("steps:\n{}", writes("second", "", "")));
    slow(&project);
    let run = project.farrier(&["run", "slow", "--env", "test", "--detach"]).expect(0).out.trim().to_owned();
    let serving = Started::from(project.command(&["serve"]));
    wait_until("the command is at work", || project.read("ledger") == "begun\n");

    // One process works there. Another service is told which one; other commands go through it, or read.
    let busy = project.farrier(&["serve"]).expect(73);
    let busy = busy.complains(&format!("is in use by process {}", serving.child.id()));
    busy.complains("wait for that process to end; `farrier runs` and `farrier show` work meanwhile");
    project.farrier(&["signal", &run, "x"]).expect(64);
    project.farrier(&["approve", &run]).expect(64).complains("does not wait for an approval");
    assert_eq!(show(&project, &run)["state"], "running");
    project.farrier(&["plan", "plain", "--env", "test"]).expect(0);
    project.farrier(&["locks"]).expect(0);
    project.farrier(&["logs", &run]).expect(0);

    terminate(&serving);
    wait_until("it takes no more words", || project.farrier(&["signal", &run, "x"]).code != Some(64));
    // What is at work may end; what follows waits for the next process.
    project.write("ledger.go", "");
    serving.end().expect(0).complains("runs go on when they are taken up again");
    assert_eq!(project.read("ledger"), "begun\ndone\n");
    assert_eq!(files(&project), [""; 0]);
    let view = show(&project, &run);
    assert_eq!(
        (view["state"].clone(), view["steps"][0]["state"].clone()),
        (json!("waiting"), json!("succeeded"))
    );
    serve(&project).expect(0);
    assert_eq!(files(&project), ["first"]);
    assert_eq!(project.read("ledger"), "begun\ndone\n", "what was done is not done again");
    assert_eq!(show(&project, &run)["state"], "succeeded");
    whole(&project);
}

#[test]
fn a_run_at_a_terminal_that_is_told_to_end_is_left_on_disk() {
    let steps =
        ["  pause: { uses: flow.wait, with: { for: 10m } }\n".to_owned(), writes("first", "pause", "")];
    let project = project("pauses", &format!("steps:\n{}", steps.concat()));
    let running = Started::from(project.command(&["run", "pauses", "--env", "test", "--yes"]));
    wait_until("it sits the wait out", || {
        let runs = project.farrier(&["runs", "-o", "json"]);
        runs.code == Some(0)
            && runs.json().as_array().is_some_and(|runs| !runs.is_empty())
            && project.farrier(&["logs", &project.last_run()]).out.contains("wait began")
    });
    terminate(&running);
    running.end().expect(15).complains("runs go on when they are taken up again");
    let run = project.last_run();
    assert_eq!(show(&project, &run)["state"], "waiting");
    // It is looked at again, and its moment is as far away as before.
    serve(&project).expect(0);
    assert_eq!(show(&project, &run)["state"], "waiting");
    assert!(show(&project, &run)["waits"].as_str().unwrap().starts_with("step `pause` waits until "));
    project.farrier(&["cancel", &run]).expect(0);
    whole(&project);
}

#[test]
fn what_cannot_be_served_waits_for_a_person_and_holds_up_nobody() {
    let project = project("plain", &format!("steps:\n{}", writes("first", "", "")));
    add(&project, "other", &format!("steps:\n{}", writes("second", "", "")));
    let detach = |name: &str, env: &str| {
        project.farrier(&["run", name, "--env", env, "--detach"]).expect(0).out.trim().to_owned()
    };
    let text = project.read("environments/test.yaml");
    project.write("environments/gone.yaml", &text.replace("\"test\"", "\"gone\""));
    let (lost, cancelled, fine) = (detach("plain", "gone"), detach("plain", "test"), detach("other", "test"));
    fs::remove_file(project.path("environments/gone.yaml")).unwrap();
    project.farrier(&["cancel", &cancelled]).expect(0).says("was cancelled");
    serve(&project).expect(0);
    assert_eq!(files(&project), ["second"]);
    assert_eq!(show(&project, &fine)["state"], "succeeded");
    let view = show(&project, &lost);
    assert_eq!(view["parked"], "it cannot be driven: there is no environment `gone`", "{view:#}");
    serve(&project).expect(0);
    project.write("environments/gone.yaml", &text.replace("\"test\"", "\"gone\""));
    resume(&project, &lost).expect(0);
    assert_eq!(files(&project), ["first", "second"]);
    whole(&project);
}

#[test]
fn a_service_that_was_killed_leaves_its_runs_to_the_next() {
    let project = project("plain", &format!("steps:\n{}", writes("second", "", "")));
    slow(&project);
    let run = project.farrier(&["run", "slow", "--env", "test", "--detach"]).expect(0).out.trim().to_owned();
    let mut serving = Started::from(project.command(&["serve"]));
    wait_until("the command is at work", || project.read("ledger") == "begun\n");
    serving.child.kill().unwrap();
    assert_eq!(serving.end().signal, Some(9));
    // The command was given no inverse and no probe: a person has to look.
    serve(&project).expect(0);
    assert_eq!(show(&project, &run)["state"], "parked");
    serve(&project).expect(0);
    assert_eq!(project.read("ledger"), "begun\n", "nothing was guessed");
    project.farrier(&["resolve", &run, "command", "--applied", "--reason", "seen"]).expect(0);
    serve(&project).expect(0);
    assert_eq!(show(&project, &run)["state"], "succeeded");
    whole(&project);
}

/// Where an environment wants approvals, one person's word on a step in doubt is not enough either.
#[test]
fn two_persons_resolve_a_doubt_where_approvals_are_wanted() {
    let project = project("plain", &format!("steps:\n{}", writes("second", "", "")));
    slow(&project);
    environment(&project, &json!({ "approvals": { "destructive": 1 } }));
    start(&project, "slow").expect(15);
    let run = project.last_run();
    approve(&project, "ada", &run, &digest(&project, &run)).expect(0);
    let mut running = Started::from(project.command(&["resume", &run, "--yes"]));
    wait_until("the command is at work", || project.read("ledger") == "begun\n");
    running.child.kill().unwrap();
    running.end();
    resume(&project, &run).expect(12);

    let says = |user: &str, word: &str| {
        project.farrier_as(user, &["resolve", &run, "command", word, "--reason", "I looked"])
    };
    project
        .farrier(&["resolve", &run, "command", "--applied", "--reason", " "])
        .expect(64)
        .complains("say how you know");
    project
        .farrier(&["resolve", &run, "first", "--applied", "--reason", "x"])
        .expect(64)
        .complains("not in doubt");
    let first = says("tester", "--applied").expect(0);
    first.says("recorded: step `command` was applied; another person has to say the same");
    says("tester", "--applied").expect(77).complains("another person has to confirm it");
    says("ada", "--not-applied").expect(0).says("another person has to say the same");
    resume(&project, &run).expect(12);
    assert_eq!(files(&project), [""; 0]);
    says("grace", "--applied").expect(0).says("step `command` counts as applied");
    resume(&project, &run).expect(0);
    assert_eq!(files(&project), ["first"]);
    assert_eq!(project.read("ledger"), "begun\n");
    project.farrier(&["logs", &run]).expect(0).says("applied, says tester: I looked");
    whole(&project);
}
