//! The first look: a copy of the shipped project, seen as a person at a terminal and as a program see it.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fs;

use common::{FARRIER, Project, Started};
use farrier_testkit::wait_until;
use serde_json::{Value, json};

const PLAN: [&str; 4] = ["plan", "updatetools", "--env", "demo"];
const RUN: [&str; 5] = ["run", "updatetools", "--env", "demo", "--yes"];
const TABLES: &str = ".farrier/demo/toollabs_p.sqlite";

fn with<'a>(words: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [words, more].concat()
}

/// The changes of a step: `kind object`.
fn changes(plan: &Value, step: &str) -> Vec<String> {
    let steps = plan["steps"].as_array().unwrap();
    let step = steps.iter().find(|known| known["id"] == step || known["node"] == step).unwrap();
    let list = step["changes"].as_array().cloned().unwrap_or_default();
    let word = |change: &Value, key: &str| change[key].as_str().unwrap().to_owned();
    list.iter().map(|change| format!("{} {}", word(change, "kind"), word(change, "object"))).collect()
}

const TOOL_CHANGES: [&str; 6] = [
    "create table tools: name=lexeme-guide",
    "create table tools: name=zh-translit",
    "delete table tools: name=anagram-lab",
    "update table tools: name=citation-checker",
    "update table tools: name=edit-pulse",
    "update table tools: name=template-atlas",
];
const USER_CHANGES: [&str; 2] = ["create table users: name=sanna", "update table users: name=clara-w"];

fn holds_the_changes(view: &Value) {
    for (step, expected) in [("tools_table", &TOOL_CHANGES[..]), ("users_table", &USER_CHANGES[..])] {
        let mut found = changes(view, step);
        found.sort();
        assert_eq!(found, expected, "{step}");
    }
}

#[test]
fn a_plan_a_run_and_a_second_run() {
    let project = Project::demo();
    let plan = project.farrier(&PLAN).expect(0);
    let plan =
        plan.says("Plan of updatetools in demo, project=tools").says("2 to create, 3 to update, 1 to delete");
    let plan = plan.says("+ table tools: name=lexeme-guide").says("- table tools: name=anagram-lab");
    // An update shows what differs, old and new, and nothing else.
    let plan = plan
        .says("wikitech: \"Clara Weiss\" → ClaraWeiss")
        .says("Sum: 3 to create, 4 to update, 1 to delete");
    let update: Vec<&str> =
        plan.out.lines().skip_while(|line| !line.contains("name=edit-pulse")).skip(1).take(3).collect();
    assert!(update[0].contains("maintainers: hanna-l → \"hanna-l mai\""), "{update:?}");
    assert!(update[1].trim_start().starts_with("updated: "), "{update:?}");
    assert!(update[2].trim_start().starts_with("~ table tools: name=template-atlas"), "{update:?}");
    plan.complains("farrier run updatetools --env demo");

    // Counting the written rows is possible only after writing them: parts are known only while running.
    let detailed = with(&PLAN, &["--detailed-exitcode", "-o", "json"]);
    let plan = project.farrier(&detailed).expect(3).json();
    assert_eq!(plan["summary"]["create"], 3);
    holds_the_changes(&plan);
    let deferred = |step: &Value| step["state"] == json!({ "is": "after", "why": "tools_table" });
    assert!(plan["steps"].as_array().unwrap().iter().any(deferred), "{plan:#}");

    // Nobody is at the keyboard: without `--yes` nothing is written.
    let count = "SELECT COUNT(*) FROM tools";
    project.farrier(&RUN[..4]).expect(14).complains("--yes");
    assert_eq!(project.sqlite(TABLES, count), ["11"]);

    let run = project.farrier(&RUN).expect(0).says("updatetools succeeded: 8 changes made").says("tools: 12");
    run.complains("✓ tools_table: 6 changed").complains("next: farrier show");
    assert_eq!(project.sqlite(TABLES, count), ["12"]);
    let row = "SELECT maintainers FROM tools WHERE name = 'edit-pulse'";
    assert_eq!(project.sqlite(TABLES, row), ["hanna-l mai"]);
    assert_eq!(project.sqlite(TABLES, "SELECT name FROM tools WHERE name = 'anagram-lab'"), [""; 0]);
    holds_the_changes(&project.show_last());

    let before = fs::metadata(project.path(TABLES)).unwrap().modified().unwrap();
    project.farrier(&RUN).expect(0).says("updatetools succeeded: no changes");
    assert_eq!(
        fs::metadata(project.path(TABLES)).unwrap().modified().unwrap(),
        before,
        "nothing was written"
    );
    let plan = project.farrier(&with(&PLAN, &["--detailed-exitcode"])).expect(0);
    plan.says("No changes. The world is as the runbook wants it.");
}

/// A table and nothing after it: all of the plan is known.
#[test]
fn a_plan_that_is_certain_ends_with_2_and_then_with_0() {
    let project = Project::demo();
    let only_users: String = project.read("runbooks/directory/updatetools.yaml");
    let (kept, _) = only_users.split_once("  # --- asked again").unwrap();
    project
        .write("runbooks/directory/certain.yaml", &kept.replace("runbook: updatetools", "runbook: certain"));
    let plan = ["plan", "certain", "--env", "demo", "--detailed-exitcode"];
    project.farrier(&plan).expect(2);
    project.farrier(&["run", "certain", "--env", "demo", "--yes", "--quiet"]).expect(0);
    project.farrier(&plan).expect(0);
}

#[test]
fn what_is_stored_about_runs() {
    let project = Project::demo();
    project.farrier(&["runs"]).expect(74).complains("start a run there first");
    project.farrier(&RUN).expect(0);
    project.farrier(&RUN[..4]).expect(0);
    let runs = project.farrier(&["runs"]).expect(0).says("RUN").says("ENVIRONMENT");
    assert_eq!(runs.out.lines().count(), 3, "{runs}");
    let listed = project.farrier(&["runs", "-o", "jsonl", "--state", "succeeded"]).expect(0);
    let listed: Vec<Value> = listed.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(listed.len(), 2);
    assert!(listed[0]["created_at"].as_str() >= listed[1]["created_at"].as_str(), "newest first");
    project.farrier(&["runs", "--state", "succeded"]).expect(64).complains("`succeded` is not a state");

    // Any beginning of the id that fits one run will do.
    let first = listed[1]["id"].as_str().unwrap();
    let shown = project.farrier(&["show", &first[..20]]).expect(0).says(first).says("succeeded in demo");
    shown
        .says("tools_table      succeeded, 6 changed")
        .says("update table tools: name=edit-pulse")
        .says("users: 11");
    let view = project.farrier(&["show", first, "-o", "json"]).expect(0).json();
    assert_eq!((&view["state"], &view["outputs"]["tools"]), (&json!("succeeded"), &json!(12)));
    let yaml = project.farrier(&["show", first, "-o", "yaml"]).expect(0);
    yaml.says("state: succeeded");

    let log = project.farrier(&["logs", first]).expect(0).says("created to run updatetools in demo");
    let log = log.says("writes allowed: 3 to create, 4 to update, 1 to delete").says("finished: succeeded");
    let at = |text: &str| log.out.find(text).unwrap_or_else(|| panic!("`{text}` is missing: {log}"));
    assert!(at("writes allowed") < at("tools_table: intent"), "{log}");
    assert!(at("tools_table: intent") < at("tools_table: succeeded"), "{log}");
    let journal = project.farrier(&["logs", first, "-o", "json"]).expect(0).json();
    assert_eq!(journal.as_array().unwrap().len(), log.out.lines().count());

    let whole = project.farrier(&["fsck"]).expect(0).says("2 runs, ").says("everything is whole");
    assert!(whole.err.is_empty(), "{whole}");
    let report = project.farrier(&["fsck", "-o", "json"]).expect(0).json();
    assert_eq!((&report["runs"], &report["violations"]), (&json!(2), &json!([])));
    project.farrier(&["resume", first]).expect(64).complains("is over: it succeeded; start a new one with");
    let resolve = ["resolve", first, "tools_table", "--applied", "--reason", "I looked"];
    project.farrier(&resolve).expect(64).complains("the run has ended: succeeded");
    project.farrier(&["show", "zzz"]).expect(64).complains("`farrier runs` lists them");
    project.farrier(&["show", "0"]).expect(64).complains("several runs");
}

#[test]
fn a_damaged_store_is_reported_and_ends_with_74() {
    let project = Project::demo();
    project.farrier(&RUN).expect(0);
    let run = project.last_run();
    let database = fs::read_dir(project.path(".farrier")).unwrap().map(|entry| entry.unwrap().path());
    let database = database.into_iter().find(|path| path.extension().is_some_and(|it| it == "db")).unwrap();
    let bytes = fs::read(&database).unwrap();
    // Everything after the first page is noise.
    let noise: Vec<u8> =
        bytes.iter().enumerate().map(|(at, byte)| if at < 4096 { *byte } else { 0xa5 }).collect();
    fs::write(&database, noise).unwrap();
    for suffix in ["-wal", "-shm"] {
        let _ = fs::remove_file(format!("{}{suffix}", database.display()));
    }
    for command in [&["fsck"][..], &["show", &run], &RUN] {
        project.farrier(command).expect(74).complains("error:");
    }
}

/// The first process died before it had made the tables: there is nothing to read, and the next one makes them.
#[test]
fn a_store_that_was_never_finished_is_begun_again() {
    let project = Project::demo();
    project.write(".farrier/farrier.lock", "");
    project.write(".farrier/farrier.db", "");
    for command in ["runs", "fsck"] {
        project.farrier(&[command]).expect(74).complains("start a run there first");
    }
    project.farrier(&RUN).expect(0);
    project.farrier(&["fsck"]).expect(0).says("1 run, ");
}

#[test]
fn what_runbooks_and_actions_are() {
    let project = Project::demo();
    project.farrier(&["--version"]).expect(0).says(concat!("farrier ", env!("CARGO_PKG_VERSION")));
    project.farrier(&["--help"]).expect(0).says("Usage: farrier");
    project.farrier(&["check"]).expect(0).says("5 environments, 4 files of alerts: no mistakes");
    assert_eq!(project.farrier(&["check", "-o", "json"]).expect(0).json(), json!([]));
    let tests = project.farrier(&["test", "-o", "json"]).expect(0).json();
    assert!(
        tests.as_array().unwrap().len() >= 8
            && tests.as_array().unwrap().iter().all(|test| test["passed"] == true)
    );
    project.farrier(&["test", "homes that are not mounted"]).expect(0).says("1 passed, 0 failed");
    project.farrier(&["test", "no such test"]).expect(64).complains("no test fits");

    project
        .farrier(&["graph", "updatetools"])
        .expect(0)
        .says("tools_table      sql.sync         after tool_rows");
    for (form, text) in [("dot", "digraph"), ("mermaid", "flowchart"), ("svg", "<svg")] {
        project.farrier(&["graph", "updatetools", "--form", form]).expect(0).says(text).says("tools_table");
    }
    let listed = project.farrier(&["actions"]).expect(0).says("WHAT IT DOES");
    let listed = listed.says("sql.sync").says("ldap.search").says("files.read_many").says("host.run");
    listed.complains("next: farrier actions NAME");
    let sync = project.farrier(&["actions", "sql.sync"]).expect(0).says("rows_not_listed").says("example:");
    sync.says("effect repeatable");
    for action in project.farrier(&["actions", "-o", "json"]).expect(0).json().as_array().unwrap() {
        let name = action["name"].as_str().unwrap();
        let one = project.farrier(&["actions", name, "-o", "json"]).expect(0).json();
        assert_eq!(&one, action, "{name}");
    }
    for kind in ["runbook", "environment", "project", "tests"] {
        let schema = project.farrier(&["schema", kind]).expect(0).json();
        assert_eq!(schema["type"], "object", "{kind}");
    }
    project.farrier(&["explain", "e0302"]).expect(0).says("# E0302");
    for shell in ["bash", "zsh", "fish"] {
        project.farrier(&["completions", shell]).expect(0).says("resolve");
    }
}

#[test]
fn mistakes_are_shown_all_at_once_at_their_places() {
    let project = Project::demo();
    let text = project.read("runbooks/directory/updatetools.yaml");
    let wrong = text
        .replace("uses: sql.sync", "uses: sql.synk")
        .replace("steps.groups.entries", "steps.group.entries");
    project.write("runbooks/directory/updatetools.yaml", &wrong);
    let found = project.farrier(&["check"]).expect(65).says("sql.sync");
    let is_wrong = |line: &str| line.contains("sql.synk") || line.contains("steps.group.entries");
    let places: Vec<usize> =
        wrong.lines().enumerate().filter(|(_, line)| is_wrong(line)).map(|(at, _)| at + 1).collect();
    assert_eq!(places.len(), 3);
    for line in places {
        assert!(found.out.contains(&format!("updatetools.yaml:{line}:")), "line {line}: {found}");
    }
    let listed = project.farrier(&["check", "-o", "json"]).expect(65).json();
    assert!(listed.as_array().unwrap().len() >= 3, "{listed:#}");
    project.farrier(&PLAN).expect(65).complains("updatetools.yaml:").complains("farrier explain CODE");
    // Tests whose expectation does not hold.
    project.write("runbooks/directory/updatetools.yaml", &text);
    let tests = project.read("runbooks/directory/updatetools.test.yaml");
    project.write("runbooks/directory/updatetools.test.yaml", &tests.replacen("tools: 12", "tools: 13", 1));
    project.farrier(&["test"]).expect(30).says("FAILED").says("13").says(", 1 failed");
}

#[test]
fn wrong_words_get_the_right_ones() {
    let project = Project::demo();
    let elsewhere = farrier_testkit::temp_dir();
    let nowhere = elsewhere.path().to_str().unwrap();
    for (words, code, texts) in [
        (
            &["plan", "updatetool", "--env", "demo"][..],
            64,
            &["no runbook `updatetool`", "did you mean `updatetools`?"][..],
        ),
        (&["plan", "updatetools", "--env", "dem"], 64, &["no environment `dem`", "did you mean `demo`?"]),
        (&["plan", "updatetools", "--env", "production"], 64, &["there are: dbusers, demo"]),
        (&["plan", "updatetools"], 64, &["--env <NAME>"]),
        (&["pln", "updatetools"], 64, &["'plan'"]),
        (
            &["plan", "updatetools", "--env", "demo", "-i", "projct=x"],
            64,
            &["`projct`", "there are: project"],
        ),
        (
            &["plan", "updatetools", "--env", "demo", "-i", "project=X9"],
            64,
            &["`X9` does not match `[a-z]+`"],
        ),
        (&["plan", "updatetools", "--env", "demo", "-i", "project"], 64, &["KEY=VALUE"]),
        (
            &["plan", "updatetools", "--env", "demo", "-i", "project=a", "-i", "project=b"],
            64,
            &["given twice"],
        ),
        (&["actions", "sql.synk"], 64, &["did you mean `sql.sync`?"]),
        (&["explain", "E9999"], 64, &["no error code `E9999`", "`E0302`"]),
        (&["schema", "runbok"], 64, &["runbook"]),
        (&["-C", nowhere, "runs"], 64, &["no `farrier.yaml`", "-C"]),
        (&["check", "absent.yaml"], 1, &["cannot read absent.yaml", "No such file"]),
    ] {
        let mut answer = project.farrier(words).expect(code);
        for text in texts {
            answer = answer.complains(text);
        }
        assert!(answer.out.is_empty(), "errors are not results: {answer}");
    }
}

#[test]
fn an_environment_without_what_the_runbook_needs_is_invalid() {
    let project = Project::demo();
    let demo = project.read("environments/demo.yaml");
    let (kept, rest) = demo.split_once("  homes:").unwrap();
    let (_, rest) = rest.split_once("  catalogue:").unwrap();
    project.write("environments/demo.yaml", &format!("{kept}  catalogue:{rest}"));
    project
        .farrier(&PLAN)
        .expect(65)
        .complains("`homes` (of kind `files`), which `updatetools` uses, is missing");
    // A server that nothing listens for.
    let url = format!("ldap://127.0.0.1:{}", farrier_testkit::free_port());
    project.write("environments/demo.yaml", &demo.replace("ldif:demo/directory.ldif", &url));
    project.farrier(&PLAN).expect(1).says("ldap.search      failed: target `directory`: cannot connect");
}

/// A step that waits until the test lets it go.
const WAITING: &str = "
runbook: waiting
summary: Waits for a file
owner: tests
risk: destructive
targets: { here: host }
inputs:
  folder: { type: string }
steps:
  wait:
    uses: host.run
    with:
      target: here
      argv: [sh, -c, 'touch \"$0/started\"; while [ ! -e \"$0/go\" ]; do sleep 0.02; done', '${ inputs.folder }']
    undo: none
";

#[test]
fn one_process_owns_the_runs_and_others_may_look() {
    let project = Project::new();
    project.write("runbooks/waiting.yaml", WAITING);
    project.environment(&json!({ "here": { "kind": "host", "local": true } }));
    let folder = format!("folder={}", project.path("").display());
    let run = ["run", "waiting", "--env", "test", "--yes", "-i", &folder];
    let first = Started::from(project.command(&run));
    wait_until("the step is at work", || project.path("started").exists());
    let owner = format!("{}", first.child.id());
    project
        .farrier(&run)
        .expect(73)
        .complains(&owner)
        .complains("`farrier runs` and `farrier show` work meanwhile");
    assert_eq!(project.show_last()["state"], "running");
    project.farrier(&["runs"]).expect(0).says("running");
    project.farrier(&["fsck"]).expect(0).says("1 run, ");
    project.farrier(&["logs", &project.last_run()]).expect(0).says("wait: intent");
    project.farrier(&["resume", &project.last_run()]).expect(73);
    project.write("go", "");
    first.end().expect(0).says("waiting succeeded: 1 change made");
    assert_eq!(project.show_last()["state"], "succeeded");
}

#[test]
fn the_data_directory_can_be_named_and_must_be_usable() {
    let project = Project::demo();
    let mut run = project.command(&RUN);
    run.env("FARRIER_DATA_DIR", project.path("elsewhere"));
    Started::from(run).end().expect(0);
    project.farrier(&["runs"]).expect(74);
    let mut runs = project.command(&["runs"]);
    runs.env("FARRIER_DATA_DIR", project.path("elsewhere"));
    Started::from(runs).end().expect(0).says("succeeded");
    let mut run = project.command(&RUN);
    run.env("FARRIER_DATA_DIR", project.path("farrier.yaml"));
    Started::from(run).end().expect(74).complains("farrier.yaml` cannot be used");
}

/// On a terminal there are colours, unless `NO_COLOR` says no.
#[test]
fn colours_are_for_terminals_that_want_them() {
    let project = Project::demo();
    let on_terminal = |settings: &[(&str, &str)]| {
        let mut command = std::process::Command::new("script");
        let words = format!("'{FARRIER}' {}", PLAN.join(" "));
        command.args(["-qec", &words, "/dev/null"]).current_dir(project.path("")).env("TERM", "xterm");
        command.env_remove("NO_COLOR").envs(settings.iter().copied());
        let output = command.output().expect("the program `script` is there (package bsdutils)");
        String::from_utf8(output.stdout).unwrap()
    };
    let coloured = on_terminal(&[]);
    assert!(coloured.contains("\u{1b}[32m") && coloured.contains("Plan of"), "{coloured:?}");
    for settings in [("NO_COLOR", "1"), ("TERM", "dumb")] {
        let plain = on_terminal(&[settings]);
        assert!(!plain.contains('\u{1b}') && plain.contains("Plan of"), "{settings:?}: {plain:?}");
    }
}

/// `farrier … | head` ends quietly.
#[test]
fn a_reader_that_goes_away_is_no_error() {
    let project = Project::demo();
    for words in ["schema runbook", "completions bash", "actions -o json"] {
        let mut command = std::process::Command::new("bash");
        let line = format!("set -o pipefail; '{FARRIER}' {words} | head -c 1");
        command.args(["-c", &line]).current_dir(project.path(""));
        let answer = Started::from(command).end();
        assert_eq!(answer.err, "", "{answer}");
    }
}
