//! A person's word on a step in doubt, with what the step gave: later steps read it, so it is asked for before anything is
//! recorded. By hand, where two have to say so, and through the API.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use farrier_testkit::wait_until;
use serde_json::{Value, json};

use crate::common::{Project, Started};
use crate::service::{self, Serving};

/// Writes a line and goes on for as long as it is let; then a file holds what it printed.
fn project() -> Project {
    let project = service::project();
    let ledger = project.path("ledger");
    project.write(
        "runbooks/files/asks.yaml",
        &format!(
            "runbook: asks\nsummary: Asks\nowner: tests\nrisk: destructive\ntargets: {{ here: host, place: files }}\nsteps:\n  \
             command:\n    uses: host.run\n    needs: []\n    undo: none\n    with: {{ target: here, argv: [sh, -c, 'echo begun >> \
             \"$0\"; while :; do sleep 0.02; done', '{}'] }}\n  tell:\n    uses: files.write\n    undo: restore\n    with: {{ \
             target: place, file: {{ root: out, path: [told] }}, content: '${{ steps.command.stdout }}' }}\n",
            ledger.display()
        ),
    );
    environment(&project, &json!({}));
    project
}

fn environment(project: &Project, approvals: &Value) {
    let targets = json!({
        "place": { "kind": "files", "roots": { "out": "../out" } }, "here": { "kind": "host", "local": true },
    });
    let environment = json!({ "environment": "test", "targets": targets, "approvals": approvals });
    project.write("environments/test.yaml", &environment.to_string());
}

/// A process dies while the command is at work, and the next one parks the run.
fn parked(project: &Project, words: &[&str]) -> String {
    let mut started = Started::from(project.command(words));
    wait_until("the command is at work", || project.read("ledger") == "begun\n");
    started.child.kill().unwrap();
    started.end();
    let run = project.last_run();
    project.farrier(&["resume", &run, "--yes"]).expect(12).says("farrier resolve");
    run
}

fn show(project: &Project, run: &str) -> Value {
    project.farrier(&["show", run, "-o", "json"]).expect(0).json()
}

#[test]
fn what_later_steps_read_is_said_or_nothing_is_recorded() {
    let project = project();
    let run = parked(&project, &["run", "asks", "--env", "test", "--yes"]);
    project.farrier(&["show", &run]).expect(0).complains("'command' --applied --result stdout=… --reason …");
    assert_eq!(show(&project, &run)["steps"][0]["must_say"], json!(["stdout"]));
    let logs = || project.farrier(&["logs", &run, "-o", "json"]).expect(0).json();
    let before = logs();
    let resolve = |more: &[&str]| {
        project.farrier(&[&["resolve", &run, "command", "--reason", "I looked"][..], more].concat())
    };
    resolve(&["--applied"])
        .expect(64)
        .complains("say what step `command` gave, too: `stdout`, which step `tell` reads");
    resolve(&["--applied", "--result", "stdot=x"]).expect(64).complains("`stdout`");
    resolve(&["--applied", "--result", "stdout=x", "--result", "stdot=x"]).expect(64).complains("`stdot`");
    resolve(&["--applied", "--result", "stdout"]).expect(64).complains("FIELD=VALUE");
    resolve(&["--applied", "--result", "stdout=x", "--result", "stdout=y"]).expect(64).complains("twice");
    resolve(&["--not-applied", "--result", "stdout=x"]).expect(64).complains("--not-applied");
    project.write("gave.yaml", "[stdout]\n");
    resolve(&["--applied", "--result-file", "gave.yaml"]).expect(64).complains("no map of fields");
    project.write("gave.yaml", "stdout: [a]\n");
    resolve(&["--applied", "--result-file", "gave.yaml"])
        .expect(64)
        .complains("the output of step `command`");
    assert_eq!(logs(), before, "nothing is recorded");

    project.write("gave.yaml", "stdout: from the file\nstderr: ''\n");
    resolve(&["--applied", "--result-file", "gave.yaml", "--result", "stdout=three birds"])
        .expect(0)
        .says("step `command` counts as applied");
    project.farrier(&["resume", &run, "--yes"]).expect(0);
    assert_eq!(project.read("out/told"), "three birds");
    assert_eq!(project.read("ledger"), "begun\n");
    project.farrier(&["logs", &run]).expect(0).says("tester: I looked (it gave").says("three birds");
    project.farrier(&["fsck"]).expect(0);
}

#[test]
fn two_say_the_same_of_what_it_gave() {
    let project = project();
    environment(&project, &json!({ "destructive": 1 }));
    project.farrier(&["run", "asks", "--env", "test", "--yes", "--patience", "0s"]).expect(15);
    let run = project.last_run();
    let digest = show(&project, &run)["approvals"][0]["digest"].as_str().unwrap().to_owned();
    project.farrier_as("ada", &["approve", &run, "--yes", "--digest", &digest]).expect(0);
    let run = parked(&project, &["resume", &run, "--yes"]);
    let says = |user: &str, more: &[&str]| {
        project.farrier_as(
            user,
            &[&["resolve", &run, "command", "--applied", "--reason", "I looked"][..], more].concat(),
        )
    };
    says("ada", &[]).expect(64).complains("`stdout`");
    says("ada", &["--result", "stdout=two"]).expect(0).says("another person has to say the same");
    says("ada", &["--result", "stdout=two"]).expect(77);
    project.farrier(&["logs", &run]).expect(0).says("applied, and gave {\"stdout\":\"two\"}, says ada");
    // That is not the same, so a third one decides, who has to say which it was.
    says("grace", &["--result", "stdout=three"]).expect(0).says("another person has to say the same");
    says("mia", &[]).expect(64).complains("others disagree on what step `command` gave");
    says("mia", &["--result", "stdout=three"]).expect(0).says("step `command` counts as applied");
    project.farrier(&["resume", &run, "--yes"]).expect(0);
    assert_eq!(project.read("out/told"), "three");
    project.farrier(&["fsck"]).expect(0);
}

#[test]
fn the_api_wants_the_same() {
    let project = project();
    let run = parked(&project, &["run", "asks", "--env", "test", "--yes"]);
    let serving = Serving::start_in(project, "");
    let view = serving.until(&run, "parked");
    assert_eq!(view["steps"][0]["must_say"], json!(["stdout"]));
    let path = format!("/api/v1/runs/{run}/resolve");
    let word = |output: &Value| json!({ "node": "command", "applied": true, "reason": "I looked", "output": output });
    let refused = serving.post(&path, "operator", &word(&Value::Null));
    assert!(
        refused.status >= 400 && refused.body.contains("`stdout`, which step `tell` reads"),
        "{refused:?}"
    );
    for wrong in [json!({ "stdout": ["x"] }), json!({ "stdout": "x", "other": 1 }), json!("x")] {
        let refused = serving.post(&path, "operator", &word(&wrong));
        assert!((400..500).contains(&refused.status), "{wrong}: {refused:?}");
    }
    serving.post(&path, "viewer", &word(&json!({ "stdout": "x" }))).expect(403);
    assert_eq!(serving.until(&run, "parked")["steps"][0]["state"], "in_doubt");
    serving.post(&path, "operator", &word(&json!({ "stdout": "seen" }))).expect(200);
    let view = serving.until(&run, "succeeded");
    assert!(view["steps"][0].get("must_say").is_none(), "{view}");
    assert_eq!(serving.project.read("out/told"), "seen");
}
