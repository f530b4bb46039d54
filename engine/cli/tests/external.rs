//! Programs of other people, on the real binary, which is their runner as well.

#![expect(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use common::{Project, Started};
use farrier_testkit::wait_until;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

/// A project with a program, and a runbook that sets a flag and then does something else.
fn project(program: &str, last: &str) -> (Project, Value) {
    let project = Project::new();
    project.write("flags.py", program);
    fs::set_permissions(project.path("flags.py"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(project.path("flags")).unwrap();
    let runbook = format!(
        "runbook: flag
summary: Set a flag
owner: testers
risk: destructive
targets: {{ flags: external }}
steps:
  flag:
    uses: external.run
    with: {{ target: flags, input: {{ name: maintenance, value: \"on\" }} }}
    undo: restore
{last}"
    );
    project.write("runbooks/flag.yaml", &runbook);
    let target = json!({
        "kind": "external", "program": project.path("flags.py"), "sha256": hex::encode(Sha256::digest(program)),
        "restores": true, "settings": { "folder": project.path("flags") }, "writes": [project.path("flags").parent()],
    });
    project.environment(&json!({ "flags": target }));
    (project, target)
}

fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../site/examples/flags.py");
    fs::read_to_string(path).unwrap()
}

#[test]
fn a_flag_is_planned_set_and_left_alone() {
    let (project, _) = project(&example(), "");
    project.farrier(&["plan", "flag", "--env", "test"]).expect(0).says("flag maintenance");
    assert!(!project.path("flags/maintenance").exists(), "a plan writes nothing");
    project.farrier(&["run", "flag", "--env", "test", "--yes"]).expect(0);
    assert_eq!(project.read("flags/maintenance"), "on");
    project.farrier(&["plan", "flag", "--env", "test"]).expect(0).says("no changes");
}

#[test]
fn a_flag_is_taken_back_when_a_later_step_fails() {
    let fails = "  last:
    uses: host.run
    needs: [flag]
    with: { target: here, argv: ['false'] }
    on_failure: undo
    undo: none
";
    let (project, target) = project(&example(), fails);
    let runbook =
        project.read("runbooks/flag.yaml").replace("flags: external }", "flags: external, here: host }");
    project.write("runbooks/flag.yaml", &runbook);
    project.environment(&json!({ "flags": target, "here": { "kind": "host", "local": true } }));
    fs::write(project.path("flags/maintenance"), "off").unwrap();
    let run = project.farrier(&["run", "flag", "--env", "test", "--yes"]);
    assert_eq!(run.code, Some(11), "{run}");
    assert_eq!(project.read("flags/maintenance"), "off");
}

#[test]
fn another_program_is_not_run() {
    let (project, _) = project(&example(), "");
    project.write("flags.py", &format!("{}\n# one line more\n", example()));
    let plan = project.farrier(&["plan", "flag", "--env", "test"]);
    assert_ne!(plan.code, Some(0));
    assert!(format!("{plan}").contains("the environment says"), "{plan}");
}

/// Farrier is killed while the program is at work: the program ends, and the step is in doubt as the environment says.
#[test]
fn a_killed_farrier_leaves_no_program_and_a_doubt() {
    let slow = example().replace(
        "def apply(request):\n",
        "def apply(request):\n    import time\n    at_work = request['settings']['folder'] + '/../at-work'\n    \
         if not os.path.exists(at_work):\n        write(at_work, str(os.getpid()))\n        time.sleep(600)\n",
    );
    for effect in ["once", "probed"] {
        let (project, mut target) = project(&slow, "");
        target["effect"] = json!(effect);
        project.environment(&json!({ "flags": target }));
        let mut started = Started::from(project.command(&["run", "flag", "--env", "test", "--yes"]));
        wait_until("the program is at work, or it failed", || {
            project.path("at-work").exists() || started.child.try_wait().unwrap().is_some()
        });
        let _ = started.child.kill();
        let killed = started.end();
        assert_eq!(killed.signal, Some(9), "{killed}");
        let stat = format!("/proc/{}/stat", project.read("at-work"));
        wait_until("the program is over", || {
            !fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z "))
        });
        let run = project.last_run();
        let resumed = project.farrier(&["resume", &run, "--yes"]);
        if effect == "once" {
            resumed.expect(12).says("farrier resolve");
            assert!(!project.path("flags/maintenance").exists(), "nothing was guessed");
        } else {
            resumed.expect(0);
            assert_eq!(project.read("flags/maintenance"), "on");
        }
    }
}
