//! `kill -9` of the real binary at any moment, then `farrier resume` until the run is over: nothing is lost, nothing
//! happens twice, and only a person decides about a command that may or may not have run.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fmt::Write as _;
use std::time::Duration;

use common::{Answer, Project, Started};
use farrier_testkit::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// Columns of steps that depend on each other from left to right: six rows of five.
const ROWS: usize = 6;
const ROUNDS: u64 = 25;

/// Thirty steps: per row a value, a table, an entry of the directory, a line in the ledger, and a remark on all of it.
fn runbook() -> String {
    let mut text = String::from(
        "runbook: mixed\nsummary: Writes everywhere\nowner: tests\nrisk: destructive\n\
         targets: { directory: ldap, tables: sql, here: host }\n\
         inputs:\n  ledger: { type: string }\nsteps:\n",
    );
    for row in 0..ROWS {
        // A row begins when the ledger of the one above is written, so that the effects are spread over the run.
        let after = if row == 0 { "[]".to_owned() } else { format!("[ledger_{}]", row - 1) };
        write!(
            text,
            "  value_{row}:\n    uses: data.let\n    needs: {after}\n    with: {{ value: 'value of {row}' }}\n\
             \x20 table_{row}:\n    uses: sql.sync\n    undo: none\n    with:\n      target: tables\n      table: t{row}\n\
             \x20     key: [name]\n      rows_not_listed: delete\n      rows:\n\
             \x20       - {{ name: new, value: '${{ steps.value_{row}.value }}' }}\n        - {{ name: kept, value: same }}\n\
             \x20 entry_{row}:\n    uses: ldap.modify\n    undo: none\n    needs: [table_{row}]\n    with:\n      target: directory\n\
             \x20     base: ou=people,dc=wikimedia,dc=org\n      rdn: [uid, p{row}]\n\
             \x20     set: {{ description: '${{ steps.value_{row}.value }}' }}\n\
             \x20 ledger_{row}:\n    uses: host.run\n    undo: none\n    needs: [entry_{row}]\n    with:\n      target: here\n\
             \x20     argv: [sh, -c, 'sleep 0.01; echo \"$1\" >> \"$0\"; sleep 0.01', '${{ inputs.ledger }}', 'ledger_{row}']\n\
             \x20 note_{row}:\n    uses: flow.note\n    needs: [ledger_{row}]\n    with: {{ message: 'row {row} is written' }}\n",
        )
        .unwrap();
    }
    text
}

fn project() -> Project {
    let project = Project::new();
    project.write("runbooks/mixed.yaml", &runbook());
    let mut schema = String::new();
    let mut ldif = String::from(
        "dn: dc=wikimedia,dc=org\nobjectClass: domain\ndc: wikimedia\n\n\
         dn: ou=people,dc=wikimedia,dc=org\nobjectClass: organizationalUnit\nou: people\n",
    );
    for row in 0..ROWS {
        writeln!(
            schema,
            "CREATE TABLE t{row} (name text NOT NULL PRIMARY KEY, value text);\n\
             INSERT INTO t{row} VALUES ('old', 'gone after the run'), ('kept', 'same');"
        )
        .unwrap();
        write!(
            ldif,
            "\ndn: uid=p{row},ou=people,dc=wikimedia,dc=org\nobjectClass: inetOrgPerson\nuid: p{row}\ncn: P\nsn: P\n\
             description: old\n"
        )
        .unwrap();
    }
    project.write("environments/schema.sql", &schema);
    project.write("environments/directory.ldif", &ldif);
    project.environment(&json!({
        "directory": { "kind": "ldap", "url": "ldif:directory.ldif" },
        "tables": { "kind": "sql", "url": "sqlite:tables.sqlite", "init": "schema.sql" },
        "here": { "kind": "host", "local": true },
    }));
    project
}

fn start(project: &Project) -> Started {
    let ledger = format!("ledger={}", project.path("ledger").display());
    Started::from(project.command(&["run", "mixed", "--env", "test", "--yes", "-i", &ledger]))
}

fn ledger(project: &Project) -> Vec<String> {
    project.read("ledger").lines().map(ToOwned::to_owned).collect()
}

fn holds_at_most_once(project: &Project) {
    let lines = ledger(project);
    let mut unique = lines.clone();
    unique.sort();
    unique.dedup();
    assert_eq!(unique.len(), lines.len(), "a line was written twice: {lines:?}");
}

fn holds_everything_once(project: &Project) {
    let expected: Vec<String> = (0..ROWS).map(|row| format!("ledger_{row}")).collect();
    assert_eq!(ledger(project), expected);
    for row in 0..ROWS {
        let rows =
            project.sqlite("environments/tables.sqlite", &format!("SELECT * FROM t{row} ORDER BY name"));
        assert_eq!(rows, ["kept\tsame".to_owned(), format!("new\tvalue of {row}")]);
    }
    let entries = project.read("environments/directory.ldif");
    for row in 0..ROWS {
        assert_eq!(entries.matches(&format!("description: value of {row}\n")).count(), 1, "{entries}");
    }
    assert!(!entries.contains("description: old"), "{entries}");
}

/// Small and good enough to spread moments; the seed makes a failure repeatable in kind, not in its instant.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// Ends the process with `kill -9` after so long, unless it is over before.
fn kill_after(mut started: Started, wait: Duration) -> Answer {
    // A moment, not a condition: the point is that it may be any.
    std::thread::sleep(wait);
    let _ = started.child.kill();
    started.end()
}

/// Waits until so many lines are in the ledger, or the process has ended before.
fn wait_for_lines(project: &Project, started: &mut Started, lines: usize) {
    wait_until("lines in the ledger, or the end of the run", || {
        ledger(project).len() >= lines || started.child.try_wait().unwrap().is_some()
    });
}

/// Answers for every step in doubt, as a person would after looking at the ledger.
fn resolve_doubts(project: &Project, run: &str, resolved: &mut [u32; 2]) {
    let view = project.farrier(&["show", run, "-o", "json"]).expect(0).json();
    let doubts: Vec<&Value> =
        view["steps"].as_array().unwrap().iter().filter(|step| step["state"] == "in_doubt").collect();
    assert!(!doubts.is_empty(), "it is parked for a doubt: {view:#}");
    for step in doubts {
        let node = step["node"].as_str().unwrap();
        assert!(node.starts_with("ledger_"), "only effects that happen once are in doubt: {view:#}");
        let applied = ledger(project).iter().any(|line| line == node);
        resolved[usize::from(applied)] += 1;
        let word = if applied { "--applied" } else { "--not-applied" };
        let said = project.farrier(&["resolve", run, node, word, "--reason", "the ledger says so"]).expect(0);
        said.complains("next: farrier resume");
    }
}

#[test]
fn kill_9_at_any_moment_neither_loses_nor_repeats_anything() {
    // How long a whole run takes here decides which moments are worth trying.
    let whole = project();
    let begun = std::time::Instant::now();
    start(&whole).end().expect(0);
    let length = u64::try_from(begun.elapsed().as_micros()).unwrap();
    holds_everything_once(&whole);

    let mut seed = 0x5eed_2026_u64;
    let (mut in_the_middle, mut resolved) = (0, [0, 0]);
    for round in 0..ROUNDS {
        let project = project();
        let mut started = start(&project);
        let died = if round % 2 == 0 {
            // One moment per slice of the run, so that all of it is covered.
            let slice = length / ROUNDS;
            kill_after(started, Duration::from_micros(slice * round + random(&mut seed) % slice))
        } else {
            // A moment close behind an effect, however fast or slow the machine is just now.
            wait_for_lines(&project, &mut started, usize::try_from(round / 2).unwrap() % (ROWS - 1) + 1);
            kill_after(started, Duration::from_micros(random(&mut seed) % 15_000))
        };
        let killed = died.signal == Some(9);
        assert!(killed || died.code == Some(0), "{died}");
        holds_at_most_once(&project);
        let Some(run) = stored_run(&project) else {
            // It died before the run was promised to anyone: nothing has happened, and it can be started.
            assert_eq!(ledger(&project), [""; 0]);
            start(&project).end().expect(0);
            holds_everything_once(&project);
            continue;
        };
        in_the_middle += u32::from(killed);
        let mut lives = 0;
        loop {
            let state = project.farrier(&["show", &run, "-o", "json"]).expect(0).json()["state"].clone();
            if state == "succeeded" {
                break;
            }
            lives += 1;
            assert!(lives < 20, "it does not come to an end: {state}");
            if state == "parked" {
                resolve_doubts(&project, &run, &mut resolved);
            }
            let resume = Started::from(project.command(&["resume", &run, "--yes"]));
            // The second life is cut short as well, sometimes.
            let answer = if lives == 1 && round % 2 == 0 {
                kill_after(resume, Duration::from_micros(random(&mut seed) % length))
            } else {
                resume.end()
            };
            assert!(answer.signal == Some(9) || matches!(answer.code, Some(0 | 12)), "{answer}");
            holds_at_most_once(&project);
        }
        holds_everything_once(&project);
        project.farrier(&["fsck"]).expect(0).says("everything is whole");
        project.farrier(&["resume", &run]).expect(64).complains("is over");
    }
    assert!(in_the_middle >= 5, "too few deaths within a run: {in_the_middle}");
    eprintln!(
        "{in_the_middle} killed within a run; doubts: {} not applied, {} applied",
        resolved[0], resolved[1]
    );
}

/// The run that the killed process had put on disk, if it came that far.
fn stored_run(project: &Project) -> Option<String> {
    let runs = project.farrier(&["runs", "-o", "json"]);
    if runs.code == Some(74) {
        assert!(runs.err.contains("holds no farrier data yet"), "{runs}");
        return None;
    }
    let runs = runs.expect(0).json();
    let runs = runs.as_array().unwrap();
    assert!(runs.len() <= 1, "one run was started: {runs:?}");
    runs.first().map(|run| run["id"].as_str().unwrap().to_owned())
}

/// Killed while the command of a `once` step is at work: parked, and each answer has its consequence.
#[test]
fn a_command_in_doubt_waits_for_a_person() {
    for applied in [true, false] {
        let project = project();
        let command = "echo \"$1\" >> \"$0\"; sleep 600";
        let text = runbook().replacen("sleep 0.01; echo \"$1\" >> \"$0\"; sleep 0.01", command, 1);
        project.write("runbooks/mixed.yaml", &text);
        let mut started = start(&project);
        wait_until("the command has written its line", || !ledger(&project).is_empty());
        started.child.kill().unwrap();
        assert_eq!(started.end().signal, Some(9));
        let run = project.last_run();
        let parked =
            project.farrier(&["resume", &run, "--yes"]).expect(12).says("ledger_0").says("farrier resolve");
        parked.complains("next: farrier show");
        let shown = project.farrier(&["show", &run]).expect(0).says("parked").says("in_doubt");
        shown.complains("--applied --reason").complains("--not-applied");
        assert_eq!(ledger(&project), ["ledger_0"], "nothing was guessed");
        // Without an answer it stays parked.
        project.farrier(&["resume", &run, "--yes"]).expect(12);
        let words = ["resolve", &run, "ledger_0"];
        project.farrier(&words).expect(64).complains("--reason");
        project.farrier(&[&words[..], &["--reason", "x"]].concat()).expect(64).complains("--applied");
        project
            .farrier(&["resolve", &run, "ledgr_0", "--applied", "--reason", "x"])
            .expect(64)
            .complains("no step `ledgr_0`");
        if applied {
            project
                .farrier(&[&words[..], &["--applied", "--reason", "the line is there"]].concat())
                .expect(0);
            project.farrier(&["resume", &run, "--yes"]).expect(0);
            holds_everything_once(&project);
        } else {
            // Said against the facts, and believed: the command is tried again, and waits again.
            project.farrier(&[&words[..], &["--not-applied", "--reason", "a test"]].concat()).expect(0);
            let mut again = Started::from(project.command(&["resume", &run, "--yes"]));
            wait_until("the command has run again", || ledger(&project).len() == 2);
            again.child.kill().unwrap();
            again.end();
            // The next owner ends what that one left asleep.
            project.farrier(&["resume", &run, "--yes"]).expect(12).complains("it outlived its Farrier");
        }
        project.farrier(&["logs", &run]).expect(0).says("tester");
        project.farrier(&["fsck"]).expect(0);
    }
}

#[test]
fn ctrl_c_cancels_after_what_is_at_work() {
    let project = project();
    let slow = "touch \"$0.begun\"; while [ ! -e \"$0.go\" ]; do sleep 0.02; done; echo \"$1\" >> \"$0\"";
    let text = runbook().replacen("sleep 0.01; echo \"$1\" >> \"$0\"; sleep 0.01", slow, 1);
    project.write("runbooks/mixed.yaml", &text);
    let started = start(&project);
    wait_until("the first command is at work", || project.path("ledger.begun").exists());
    let process = Pid::from_raw(i32::try_from(started.child.id()).unwrap()).unwrap();
    kill_process(process, Signal::INT).unwrap();
    wait_until("the request to stop is recorded", || {
        let logs = project.farrier(&["logs", &project.last_run()]);
        logs.out.contains("cancel requested by tester")
    });
    project.write("ledger.go", "");
    let ended = started.end().expect(14).says("mixed was cancelled").complains("press Ctrl-C again");
    assert!(ended.err.contains("what is at work finishes"), "{ended}");
    assert_eq!(ledger(&project), ["ledger_0"], "what was at work finished, and nothing began after it");
    let view = project.show_last();
    assert_eq!(view["state"], "cancelled");
    let state = |node: &str| {
        view["steps"].as_array().unwrap().iter().find(|step| step["node"] == node).unwrap()["state"].clone()
    };
    assert_eq!(state("ledger_0"), "succeeded");
    assert_ne!(state("ledger_1"), "succeeded");
    project.farrier(&["resume", &project.last_run()]).expect(64).complains("was cancelled");
    project.farrier(&["fsck"]).expect(0);
}
