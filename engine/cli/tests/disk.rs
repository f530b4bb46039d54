//! Disks that fail: a sync that returns an error, a disk that is full, a database that goes away. Whatever happens, nothing
//! is promised that is not on disk, no effect begins without its intent, and the run can be finished afterwards.
//!
//! Guards T5, T6 and T7. With `FARRIER_CHAOS_MINUTES` set, fifty moments of failing syncs are tried instead of a few.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use common::small_disk::{SmallDisk, fill};
use common::{Answer, FARRIER, Project, Started};
use farrier_testkit::wait_until;
use serde_json::{Value, json};

const STEPS: usize = 6;

/// Steps after each other, each a line in a ledger. The first waits for `go` where there is a `wait`.
fn project() -> Project {
    let project = Project::new();
    let mut text = String::from(
        "runbook: lines\nsummary: Writes lines\nowner: tests\nrisk: destructive\ntargets: { here: host }\n\
         inputs:\n  ledger: { type: string }\nsteps:\n",
    );
    for step in 0..STEPS {
        let needs = if step == 0 { String::new() } else { format!("    needs: [line_{}]\n", step - 1) };
        let shell =
            "echo \"$1\" >> \"$0\"; while [ -e \"$0.wait\" ] && [ ! -e \"$0.go\" ]; do sleep 0.02; done";
        write!(
            text,
            "  line_{step}:\n    uses: host.run\n    undo: none\n{needs}    with:\n      target: here\n\
             \x20     argv: [sh, -c, '{shell}', '${{ inputs.ledger }}', line_{step}]\n"
        )
        .unwrap();
    }
    project.write("runbooks/lines.yaml", &text);
    project.environment(&json!({ "here": { "kind": "host", "local": true } }));
    project
}

fn arguments(project: &Project) -> Vec<String> {
    let ledger = format!("ledger={}", project.path("ledger").display());
    ["run", "lines", "--env", "test", "--yes", "-i", &ledger].map(ToOwned::to_owned).to_vec()
}

fn start(project: &Project) -> Started {
    let arguments = arguments(project);
    Started::from(project.command(&arguments.iter().map(String::as_str).collect::<Vec<_>>()))
}

fn ledger(project: &Project) -> Vec<String> {
    project.read("ledger").lines().map(ToOwned::to_owned).collect()
}

fn everything() -> Vec<String> {
    (0..STEPS).map(|step| format!("line_{step}")).collect()
}

fn state_of(project: &Project, run: &str) -> Value {
    project.farrier(&["show", run, "-o", "json"]).expect(0).json()
}

/// Finishes the run as a person would, who looks at the ledger when asked.
fn finish(project: &Project) {
    let runs = project.farrier(&["runs", "-o", "json"]);
    let runs = if runs.code == Some(0) { runs.json() } else { json!([]) };
    let Some(run) = runs[0]["id"].as_str() else {
        assert!(ledger(project).is_empty(), "nothing happens without a run");
        start(project).end().expect(0);
        assert_eq!(ledger(project), everything());
        return;
    };
    for _ in 0..10 {
        let view = state_of(project, run);
        if view["state"] == "succeeded" {
            break;
        }
        if view["state"] == "parked" {
            for step in view["steps"].as_array().unwrap().iter().filter(|step| step["state"] == "in_doubt") {
                let node = step["node"].as_str().unwrap();
                let word = if ledger(project).iter().any(|line| line == node) {
                    "--applied"
                } else {
                    "--not-applied"
                };
                project.farrier(&["resolve", run, node, word, "--reason", "the ledger says so"]).expect(0);
            }
        }
        let resumed = project.farrier(&["resume", run, "--yes"]);
        assert!(matches!(resumed.code, Some(0 | 12)), "{resumed}");
    }
    assert_eq!(state_of(project, run)["state"], "succeeded");
    assert_eq!(ledger(project), everything(), "everything happened once");
    project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

/// The binary with the `nth` sync of each of its threads failing.
fn with_failing_sync(project: &Project, nth: usize) -> (Answer, String) {
    let trace = project.path(&format!("trace.{nth}"));
    let mut command = Command::new("strace");
    command.args(["-f", "-q", "-y", "--seccomp-bpf", "-e", "trace=fsync,fdatasync,execve", "-e"]);
    command.arg(format!("inject=fsync,fdatasync:error=EIO:when={nth}")).arg("-o").arg(&trace).arg(FARRIER);
    command.args(arguments(project)).current_dir(project.path("."));
    command.env("USER", "tester").env_remove("FARRIER_DATA_DIR").env_remove("FARRIER_LOG");
    let answer = Started::from(command).end();
    (answer, fs::read_to_string(trace).unwrap())
}

#[test]
fn after_a_failed_sync_nothing_begins_and_the_run_can_be_finished() {
    let (answer, trace) = with_failing_sync(&project(), 10_000);
    answer.expect(0);
    // All are made by the one thread that writes, or nearly.
    let syncs = trace.lines().filter(|line| line.contains("sync(")).count();
    let many = std::env::var_os("FARRIER_CHAOS_MINUTES").is_some();
    let moments: Vec<usize> =
        if many { (1..=50).collect() } else { (0..12).map(|part| 1 + part * syncs / 12).collect() };
    let mut in_the_middle = 0;
    for nth in moments {
        let project = project();
        let (answer, trace) = with_failing_sync(&project, nth);
        // SQLite does not look at the sync of a folder; the store makes one of its own that it looks at.
        let failed = trace.lines().position(|line| line.contains("(INJECTED)") && !line.contains("/data>)"));
        let Some(failed) = failed else {
            answer.expect(0);
            assert_eq!(ledger(&project), everything());
            continue;
        };
        let after = trace.lines().skip(failed).any(|line| line.contains("execve("));
        assert!(!after, "an effect began after sync {nth} had failed:\n{trace}");
        if answer.code == Some(0) {
            // The last syncs only tidy up: all of it was on disk before.
            assert_eq!(ledger(&project), everything(), "{nth}: {answer}");
            assert_eq!(state_of(&project, &project.last_run())["state"], "succeeded");
            continue;
        }
        let answer = answer.expect(75);
        answer.complains("farrier.db");
        in_the_middle += u32::from(!ledger(&project).is_empty());
        if project.path("data/farrier.db").exists() && !ledger(&project).is_empty() {
            let run = project.last_run();
            let resumed = project.farrier(&["--log", "info", "resume", &run, "--yes"]);
            resumed.complains("checking the store");
        }
        finish(&project);
    }
    assert!(in_the_middle >= 2, "too few of {syncs} failures in the middle of a run: {in_the_middle}");
}

#[test]
fn a_run_waits_for_room_and_goes_on_by_itself() {
    let project = project();
    let Some(_mount) = SmallDisk::new(&project.path("data"), "8m") else { return };
    project.write("ledger.wait", "");
    let started = start(&project);
    wait_until("the first command is at work", || ledger(&project).len() == 1);
    let (ballast, filler) = (project.path("data/farrier.ballast"), project.path("data/filler"));
    assert!(fs::metadata(&ballast).unwrap().blocks() > 0);
    // Whatever room the log still has in its last page is used up by one of these.
    fill(&filler);
    project.write("ledger.go", "");
    wait_until("the disk is found full, or all is written", || {
        fs::metadata(&ballast).unwrap().blocks() == 0 || ledger(&project).len() == STEPS
    });
    assert!(ledger(&project).len() < STEPS, "the disk was not full");
    let outcomes = || {
        let begun = ledger(&project).len();
        let logs = project.farrier(&["logs", &project.last_run(), "-o", "json"]).expect(0).json();
        let of = |kind: &str| {
            logs.as_array().unwrap().iter().filter(|entry| entry.to_string().contains(kind)).count()
        };
        (begun, of("\"succeeded\""))
    };
    wait_until("what has happened is recorded", || {
        let (begun, succeeded) = outcomes();
        begun == succeeded
    });
    fs::remove_file(&filler).unwrap();
    started.end().expect(0);
    assert_eq!(ledger(&project), everything());
    project.farrier(&["fsck"]).expect(0).says("everything is whole");

    fill(&filler);
    start(&project).end().expect(75).complains("farrier.db").complains("next: free room on that disk");
    assert_eq!(ledger(&project), everything(), "nothing began");
    fs::remove_file(&filler).unwrap();
}

/// Does something to a database file.
type Damage = fn(&Path);

#[test]
fn a_database_that_goes_away_ends_the_process_before_anything_is_promised() {
    let cases: [(Damage, &str); 3] = [
        (|database| fs::remove_file(database).unwrap(), "was deleted or moved away"),
        (
            |database| {
                fs::rename(database, database.with_extension("old")).unwrap();
                fs::copy(database.with_extension("old"), database).unwrap();
            },
            "was replaced by another file",
        ),
        (
            |database| fs::set_permissions(database, fs::Permissions::from_mode(0o400)).unwrap(),
            "was made read-only",
        ),
    ];
    for (damage, expected) in cases {
        let project = project();
        project.write("ledger.wait", "");
        let started = start(&project);
        wait_until("the first command is at work", || ledger(&project).len() == 1);
        start(&project).end().expect(73).complains("is in use by process");
        damage(&project.path("data/farrier.db"));
        project.write("ledger.go", "");
        started.end().expect(75).complains(expected);
        assert_eq!(ledger(&project), ["line_0"], "nothing begins after it");
    }
}

#[test]
fn a_directory_that_cannot_hold_runs_is_refused() {
    let project = project();
    project.write("data/letters", "dear");
    fs::set_permissions(project.path("data"), fs::Permissions::from_mode(0o755)).unwrap();
    start(&project).end().expect(74).complains("others can enter it");
    fs::remove_dir_all(project.path("data")).unwrap();
    project.write("data", "a file");
    start(&project).end().expect(74).complains("data");
    assert_eq!(ledger(&project), [""; 0]);
}
