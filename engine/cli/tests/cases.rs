//! `farrier test` as people use it: what it finds, how it says so, and that it finds what is wrong.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fs;

use common::Project;

#[test]
fn the_shipped_lifecycle_of_forty_days_survives_crashes_and_failures() {
    let project = Project::demo();
    let report = project.path("junit.xml");
    let args = ["test", "tool-lifecycle", "--sweep", "failures,crashes", "--tries", "4", "--junit"];
    let output = project.command(&[&args[..], &[report.to_str().unwrap()]].concat()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("10 passed, 0 failed"), "{out}{err}");
    let swept = out.lines().filter(|line| line.contains(" crashes, ") && line.contains(" failures)"));
    assert!(swept.count() >= 4, "{out}");
    let junit = fs::read_to_string(&report).unwrap();
    assert_eq!(junit.matches("<testcase ").count(), 10, "{junit}");
    assert!(junit.contains("tool-lifecycle.test.yaml\" line=\"4\""), "{junit}");
}

/// Items whose list is known are planned before their step may begin, and are in no journal until it does.
#[test]
fn items_that_wait_for_a_write_are_no_breach_of_the_journal() {
    let project = Project::new();
    let reads: String = (0..12)
        .map(|at| {
            let value = if at == 0 { "x".into() } else { format!("${{ steps.read_{}.value }}", at - 1) };
            format!("  read_{at}: {{ uses: data.let, with: {{ value: \"{value}\" }} }}\n")
        })
        .collect();
    let runbook = "runbook: waiting_items
summary: Items that are known before they can begin
owner: testers
risk: recoverable
targets: { files: files }
steps:
  written:
    uses: files.write
    needs: []
    with: { target: files, file: { root: here, path: [one] }, content: one, mode: \"0600\" }
    undo: restore
  looked:
    uses: data.let
    needs: [written]
    for_each: { in: \"${ ['a', 'b', 'c'] }\", as: letter, key: letter }
    with: { value: \"${ letter }\" }
";
    project.write("runbooks/waiting_items.yaml", &format!("{runbook}{reads}"));
    project.write(
        "runbooks/waiting_items.test.yaml",
        "tests:
  - name: all begin
    environment: ../environments/test.yaml
    expect: { state: succeeded, steps: { looked: succeeded } }
",
    );
    project.environment(&serde_json::json!({ "files": { "kind": "files", "roots": { "here": "world" } } }));
    fs::create_dir_all(project.path("environments/world")).unwrap();
    project.farrier(&["test", "waiting_items"]).expect(0).says("1 passed, 0 failed");
}

/// Golden plans are among what they compare with.
#[test]
fn every_shipped_runbook_does_what_its_tests_say() {
    let project = Project::demo();
    let folders = fs::read_dir(project.path("runbooks")).unwrap().map(|entry| entry.unwrap().path());
    let files = folders.flat_map(|folder| fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()));
    let mut runbooks: Vec<String> = files
        .filter_map(|file| Some(file.file_name()?.to_str()?.strip_suffix(".test.yaml")?.to_owned()))
        // One runbook's tests may be in several files.
        .filter(|name| !name.contains('.'))
        .collect();
    runbooks.sort_unstable();
    assert!(runbooks.len() >= 10, "{runbooks:?}");
    // One after the other: all together they take longer than a command is waited for on a busy machine.
    for runbook in runbooks {
        let tests = project.farrier(&["test", &runbook]).expect(0);
        assert!(tests.out.ends_with(" passed, 0 failed\n"), "{runbook}: {}", tests.out);
    }
}

/// Every crash and every failure of these is quickly through; those of `tool-delete` take minutes.
#[test]
fn disabling_and_marking_a_tool_survives_every_crash_and_every_failure() {
    let project = Project::demo();
    for case in ["all three attributes", "an active tool is disabled and due", "a disabled tool is as before"]
    {
        let tests = project.farrier(&["test", case, "--sweep", "failures,crashes"]).expect(0);
        tests.says("1 passed, 0 failed");
    }
}

/// A runbook of which a full sweep takes long: each of its cases, with a few places of each kind of trouble.
#[track_caller]
fn survives_some(runbook: &str, tries: &str) {
    let project = Project::demo();
    let args = ["test", runbook, "--sweep", "failures,crashes", "--tries", tries];
    // As long as it takes: it is hundreds of runs, and more than the usual patience on a busy machine.
    let output = project.command(&args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    let swept = out.lines().filter(|line| line.contains(" crashes, ") && line.contains(" failures)")).count();
    assert!(output.status.success() && swept >= 3 && out.ends_with(" passed, 0 failed\n"), "{out}{err}");
}

#[test]
fn archiving_and_deleting_tools_survives_crashes_and_failures() {
    survives_some("tools-archive-and-delete", "2");
}

#[test]
fn draining_and_rebooting_a_worker_survives_crashes_and_failures() {
    survives_some("worker-d-processes", "2");
}

#[test]
fn making_database_accounts_survives_crashes_and_failures() {
    survives_some("maintain-dbusers-populate", "2");
}

#[test]
fn keeping_database_accounts_survives_crashes_and_failures() {
    survives_some("harvest-replicas", "2");
}

#[test]
fn deleting_database_accounts_survives_crashes_and_failures() {
    survives_some("maintain-dbusers-delete", "2");
}

#[test]
fn removing_the_accounts_of_all_who_are_gone_survives_crashes_and_failures() {
    survives_some("maintain-dbusers-gone", "1");
}

#[test]
fn publishing_the_list_of_tools_survives_crashes_and_failures() {
    survives_some("updatetools", "2");
}

/// A command whose connection is cut after it has done its work: only a person can tell.
const DOUBTFUL: &str = "runbook: doubtful
summary: Runs a command that may or may not have happened
owner: testers
risk: destructive
targets: { nodes: host }
steps:
  touch:
    uses: host.run
    needs: []
    with: { target: nodes, hosts: a, argv: [make, it, so] }
    undo: none
  look:
    uses: flow.note
    needs: [touch]
    with: { message: it was made }
";

#[test]
fn a_case_can_answer_for_a_step_in_doubt() {
    let project = Project::demo();
    project.write("runbooks/doubtful.yaml", DOUBTFUL);
    let hosts = "hosts: { a: { commands: [{ argv: [make, it, so], cut: true }] } }\n";
    project.write("environments/doubt/hosts.yaml", hosts);
    let environment = "environment: doubt\ntargets:\n  nodes: { kind: host, scripted: doubt/hosts.yaml, state: \
                       doubt/hosts.state }\n";
    project.write("environments/doubt.yaml", environment);
    let case = |name: &str, answer: &str, expect: &str| {
        format!(
            "  - name: {name}\n    environment: ../environments/doubt.yaml\n    events:\n      - {{ at: 1h, resolve: touch, \
             {answer}, by: ada, reason: I have looked }}\n    \
             expect: {expect}\n"
        )
    };
    let text = format!(
        "tests:\n{}{}",
        case("it was made", "applied: true", "{ state: succeeded, steps: { look: succeeded } }"),
        case(
            "it is tried again, and is in doubt again",
            "applied: false",
            "{ state: parked, steps: { look: pending } }"
        ),
    );
    project.write("runbooks/doubtful.test.yaml", &text);
    project.farrier(&["test", "doubtful"]).expect(0).says("2 passed, 0 failed");
    project.write("runbooks/doubtful.test.yaml", &text.replace("applied: true", "applied: false"));
    project.farrier(&["test", "doubtful"]).expect(30).says("1 passed, 1 failed");
}

/// A runbook that writes at its end, whatever came before.
const AT_THE_END: &str = "runbook: at_the_end
summary: Change an account, wait, and write at the end
owner: testers
risk: recoverable
targets: { directory: ldap }
signals:
  - { name: back, who: [], then: undo }
steps:
  name:
    uses: ldap.modify
    with:
      target: directory
      base: ou=people,ou=servicegroups,dc=wikimedia,dc=org
      rdn: [uid, tools.wm-lol]
      set: { sn: locked }
    undo: restore
  grace:
    uses: flow.wait
    needs: [name]
    with: { for: 1d }
  later:
    uses: ldap.search
    needs: [grace]
    with: { target: directory, base: \"dc=wikimedia,dc=org\", filter: (uid=tools.wm-lol), attributes: { uid: string } }
finally:
  shell:
    uses: ldap.modify
    with:
      target: directory
      base: ou=people,ou=servicegroups,dc=wikimedia,dc=org
      rdn: [uid, tools.wm-lol]
      set: { loginShell: \"${ '/bin/back' if run.signal == 'back' and not steps.later.entries | default([]) else '/bin/done' }\" }
    undo: none
";

#[test]
fn what_was_under_way_in_finally_goes_on_after_a_crash() {
    let project = Project::demo();
    project.write("runbooks/at_the_end.yaml", AT_THE_END);
    let look = |shell: &str| {
        format!(
            "      world:\n        - uses: ldap.search\n          with: {{ target: directory, base: \"dc=wikimedia,dc=org\", \
             filter: (uid=tools.wm-lol), attributes: {{ loginShell: string }} }}\n          \
             that: result.entries[0].loginShell == '{shell}'\n"
        )
    };
    let environment = "    environment: ../environments/lifecycle.yaml\n";
    let text = format!(
        "tests:\n  - name: at its end\n{environment}    expect:\n      state: succeeded\n{}  \
         - name: taken back\n{environment}    events: [{{ at: 1h, signal: back, by: ada }}]\n    \
         expect:\n      state: undone\n{}",
        look("/bin/done"),
        look("/bin/back")
    );
    project.write("runbooks/at_the_end.test.yaml", &text);
    let tests = project.farrier(&["test", "at_the_end", "--sweep", "failures,crashes"]).expect(0);
    tests.says("2 passed, 0 failed");
}

/// A runbook that disables an account and forgets how to take that back.
const FORGETFUL: &str = "runbook: forgetful
summary: Lock an account and wait
owner: testers
risk: recoverable
targets: { directory: ldap }
signals:
  - { name: back, who: [], then: undo }
steps:
  lock:
    uses: ldap.modify
    with:
      target: directory
      base: ou=people,ou=servicegroups,dc=wikimedia,dc=org
      rdn: [uid, tools.wm-lol]
      set: { loginShell: /bin/false }
    undo: none
  name:
    uses: ldap.modify
    needs: [lock]
    with:
      target: directory
      base: ou=people,ou=servicegroups,dc=wikimedia,dc=org
      rdn: [uid, tools.wm-lol]
      set: { sn: locked }
    undo: restore
    on_failure: undo
";

#[test]
fn a_sweep_finds_what_undo_forgets() {
    let project = Project::demo();
    project.write("runbooks/forgetful.yaml", FORGETFUL);
    project.write(
        "runbooks/forgetful.test.yaml",
        "tests:
  - name: locks it
    environment: ../environments/lifecycle.yaml
    expect: { state: succeeded, settled: true }
",
    );
    project.farrier(&["test", "forgetful"]).expect(0).says("1 passed");
    let found = project.farrier(&["test", "forgetful", "--sweep", "failures"]).expect(30);
    let found = found.says("forgetful.test.yaml:2").says("with `name` failing for good: the run was undone");
    found.says("the world is not as before: `lock`");
}

/// One that starts the forgetful one, and takes back what it did itself when that fails.
const OUTER: &str = "runbook: outer
summary: Mark an account and start the other one
owner: testers
risk: recoverable
targets: { directory: ldap }
steps:
  mark:
    uses: ldap.modify
    with:
      target: directory
      base: ou=people,ou=servicegroups,dc=wikimedia,dc=org
      rdn: [uid, tools.wm-lol]
      set: { sn: marked }
    undo: restore
  inner: { uses: runbook.forgetful, needs: [mark], undo: none, on_failure: undo }
";

/// Nodes of runs that a run starts fail as well; `--tries` bounds those, too.
#[test]
fn a_sweep_fails_what_is_in_runs_that_are_started() {
    let project = Project::demo();
    project.write("runbooks/forgetful.yaml", FORGETFUL);
    project.write("runbooks/outer.yaml", OUTER);
    project.write(
        "runbooks/outer.test.yaml",
        "tests:
  - name: marks and locks it
    environment: ../environments/lifecycle.yaml
    expect: { state: succeeded }
",
    );
    let sweep = ["test", "outer", "--sweep", "failures"];
    let found = project.farrier(&sweep).expect(30).says("with `name` of `forgetful` failing for good");
    found.says("the run was undone, and the world is not as before");
    // What the other one does is the middle and the end of three.
    project.farrier(&[&sweep[..], &["--tries", "1"]].concat()).expect(30).says("with `name` of `forgetful`");
    project.write("runbooks/forgetful.yaml", &FORGETFUL.replace("undo: none", "undo: restore"));
    project.farrier(&sweep).expect(0).says("(6 failures)");
    project.farrier(&[&sweep[..], &["--tries", "2"]].concat()).expect(0).says("(4 failures)");
}

#[test]
fn what_differs_is_told_with_both_sides_and_its_place() {
    let project = Project::demo();
    let case = |name: &str, rest: &str| {
        format!(
            "  - name: {name}\n    environment: ../../environments/lifecycle.yaml\n    inputs: {{ tool: wm-lol }}\n{rest}"
        )
    };
    let cases = [
        case("too early", "    expect: { state: succeeded, at: 39d, order: [delete, disable], mails: [] }\n"),
        case("refused", "    events: [{ at: 1d, signal: delete_now, by: mallory }]\n    expect: { state: succeeded }\n"),
        case(
            "a look <&>",
            "    expect:
      state: succeeded
      world:
        - uses: ldap.search
          with: { target: directory, base: \"dc=wikimedia,dc=org\", filter: (uid=bogdan), attributes: { uid: string } }
          that: result.entries | length == 0
          otherwise: he is still there
",
        ),
        case("a plan", "    plan: { golden: tool-lifecycle.plan.txt }\n"),
    ];
    project.write("runbooks/lifecycle/tool-lifecycle.test.yaml", &format!("tests:\n{}", cases.concat()));
    let plan = "runbooks/lifecycle/tool-lifecycle.plan.txt";
    let golden = project.read(plan);
    project.write(plan, &golden.replace("1 to send", "2 to send"));
    let report = project.path("junit.xml");
    let args = ["test", "tool-lifecycle", "--junit", report.to_str().unwrap()];
    let found = project.farrier(&args).expect(30);
    let found = found
        .says("tool-lifecycle.test.yaml:2")
        .says("at: expected the end after 39d; it ended after 41d")
        .says("order: expected delete, disable, found disable, delete")
        .says("mail 1: expected no more, found `tools.wm-lol is disabled`")
        .says("event at 1d: signal `delete_now` by mallory was refused: mallory may not send it")
        .says("he is still there; found {\"entries\"")
        .says("plan: tool-lifecycle.plan.txt: expected (-), found (+)");
    found.says("0 passed, 4 failed");
    let junit = fs::read_to_string(&report).unwrap();
    assert!(junit.contains("name=\"a look &lt;&amp;&gt;\""), "{junit}");
    let json = project.farrier(&["test", "tool-lifecycle", "-o", "json"]).expect(30).json();
    assert_eq!(json[0]["passed"], false);
    assert!(json[0]["place"].as_str().unwrap().ends_with("tool-lifecycle.test.yaml:2"), "{json:#}");

    project.farrier(&["test", "a plan", "--update"]).expect(0);
    assert_eq!(project.read(plan), golden);
}

#[test]
fn mistakes_in_events_are_found_before_anything_runs() {
    let project = Project::demo();
    project.write(
        "runbooks/lifecycle/tool-lifecycle.test.yaml",
        "tests:
  - name: wrong in many ways
    environment: ../../environments/lifecycle.yaml
    inputs: { tool: wm-lol }
    events:
      - { at: 1d, signal: reenabel }
      - { at: 1d, crash: true, cancel: true }
      - { at: 1d, do: { uses: ldap.search, with: { target: directory, bas: x } } }
    expect:
      state: succeeded
      order: [disabel]
      world: [{ uses: ldap.serch, that: result.entries }, { uses: ldap.modify, that: result.x }]
",
    );
    let found = project.farrier(&["check"]).expect(65);
    for code in ["E0907", "E0908"] {
        assert!(found.out.contains(code), "{code}: {found}");
    }
    project.farrier(&["test"]).expect(65);

    let look = "world: [{ uses: ldap.search, that: resul.x }]";
    let text = format!("tests:\n  - name: looks elsewhere\n    expect: {{ state: succeeded, {look} }}\n");
    project.write("runbooks/lifecycle/tool-lifecycle.test.yaml", &text);
    project.farrier(&["check"]).expect(65).says("there is no name `resul.x` here");
}

#[test]
fn a_run_becomes_a_case_that_passes() {
    let project = Project::demo();
    project.farrier(&["run", "updatetools", "--env", "demo", "--yes"]).expect(0);
    let runs = project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let run = runs[0]["id"].as_str().or(runs[0]["run"].as_str()).unwrap().to_owned();
    let case = project.farrier(&["test", "--record", &run[..13]]).expect(0);
    assert!(case.out.contains("tools_table: succeeded"), "{}", case.out);
    project.write("runbooks/directory/updatetools.test.yaml", &case.out);
    project.farrier(&["test", "updatetools"]).expect(0).says("1 passed, 0 failed");
}

#[test]
fn a_run_that_people_answered_becomes_a_case() {
    let project = Project::demo();
    project.write("runbooks/at_the_end.yaml", AT_THE_END);
    project.farrier(&["run", "at_the_end", "--env", "lifecycle", "--yes"]).expect(15);
    let runs = project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let run = runs[0]["id"].as_str().unwrap()[..13].to_owned();
    project.farrier_as("ada", &["signal", &run, "back", "--reason", "people use it"]).expect(0);
    project.farrier(&["resume", &run]);
    let case = project.farrier(&["test", "--record", &run]).expect(0).says("signal: back");
    project.write("runbooks/at_the_end.test.yaml", &case.out);
    project.farrier(&["test", "at_the_end"]).expect(0).says("1 passed, 0 failed");
}
