//! A run of fifty steps of every effect class, killed at every commit, before every write of the store and in between.

use std::fmt::Write as _;
use std::time::Duration;

use crate::blows::{Blow, count, strike};
use crate::common::Project;
use crate::form::Form;
use crate::world::{
    append, args, head, holds_at_most_once, is_there, ledger, project, requests, resume_to_the_end,
    stored_run, words,
};

const ROWS: usize = 8;

/// Per row a value, a file, an entry of the directory, a request under a key, a command that can be asked whether it is
/// done, and one that cannot.
fn runbook() -> String {
    let mut text = head("mixed", "directory: ldap, feed: http, notes: files, here: host");
    text.push_str("steps:\n");
    for row in 0..ROWS {
        let after = if row == 0 { "[]".to_owned() } else { format!("[once_{}]", row - 1) };
        let value = format!("${{ steps.value_{row}.value }}");
        let (probed, once) = (append(&format!("probed_{row}")), append(&format!("once_{row}")));
        let unless = is_there(&format!("probed_{row}"));
        write!(
            text,
            "  value_{row}: {{ uses: data.let, needs: {after}, with: {{ value: 'value of {row}' }} }}\n\
             \x20 file_{row}:\n    uses: files.write\n    undo: none\n\
             \x20   with: {{ target: notes, file: {{ root: notes, path: [note_{row}] }}, content: '{value}' }}\n\
             \x20 entry_{row}:\n    uses: ldap.modify\n    undo: none\n    needs: [file_{row}]\n    with:\n\
             \x20     target: directory\n      base: ou=people,dc=wikimedia,dc=org\n      rdn: [uid, p{row}]\n\
             \x20     set: {{ description: '{value}' }}\n\
             \x20 keyed_{row}:\n    uses: http.request\n    undo: none\n    needs: [entry_{row}]\n\
             \x20   with: {{ target: feed, method: POST, path: [sal], json: {{ message: keyed_{row} }} }}\n\
             \x20 probed_{row}:\n    uses: host.run\n    undo: none\n    needs: [keyed_{row}]\n\
             \x20   with: {{ target: here, argv: {probed}, unless: {unless} }}\n\
             \x20 once_{row}:\n    uses: host.run\n    undo: none\n    needs: [probed_{row}]\n\
             \x20   with: {{ target: here, argv: {once} }}\n",
        )
        .unwrap();
    }
    text.push_str("  half: { uses: flow.note, needs: [once_3], with: { message: half of it is done } }\n");
    text.push_str("  all: { uses: flow.note, needs: [once_7], with: { message: all of it is done } }\n");
    text
}

pub(crate) fn world() -> Project {
    let project = project(ROWS);
    project.write("runbooks/mixed.yaml", &runbook());
    project
}

fn holds_everything_once(project: &Project, when: &str) {
    let lines: Vec<String> =
        (0..ROWS).flat_map(|row| [format!("probed_{row}"), format!("once_{row}")]).collect();
    assert_eq!(ledger(project), lines, "{when}");
    let keyed: Vec<String> = (0..ROWS).map(|row| format!("keyed_{row}")).collect();
    assert_eq!(requests(project), keyed, "{when}");
    let entries = project.read("environments/world/directory.ldif");
    for row in 0..ROWS {
        assert_eq!(project.read(&format!("notes/note_{row}")), format!("value of {row}"), "{when}");
        assert_eq!(
            entries.matches(&format!("description: value of {row}\n")).count(),
            1,
            "{when}: {entries}"
        );
    }
}

/// Kills a run so, resumes it to its end, and holds it against the ledger. Whether it died within the run.
fn survives(blow: Blow, second: Option<Blow>) -> bool {
    let when = format!("{blow:?}");
    let project = world();
    let words = words(&project, "mixed");
    let died = strike(&project, &args(&words), blow);
    let killed = died.signal == Some(9);
    assert!(killed || died.code == Some(0), "{when}: {died}");
    holds_at_most_once(&project, &when);
    let Some(run) = stored_run(&project) else {
        // It died before the run was promised to anyone, so nothing has happened and it can be started.
        assert!(!died.err.contains("run 0"), "{when}: the id was printed and the run is lost: {died}");
        assert_eq!((ledger(&project).len(), requests(&project).len()), (0, 0), "{when}");
        project.farrier(&args(&words)).expect(0);
        holds_everything_once(&project, &when);
        return false;
    };
    let mut second = second;
    let end = resume_to_the_end(&project, &run, ToOwned::to_owned, |args| match second.take() {
        Some(blow) => strike(&project, args, blow),
        None => {
            let answer = project.farrier(args);
            assert!(matches!(answer.code, Some(0 | 12)), "{when}: {answer}");
            answer
        }
    });
    assert_eq!(end["state"], "succeeded", "{when}: {end:#}");
    holds_everything_once(&project, &when);
    project.farrier(&["fsck"]).expect(0).says("everything is whole");
    killed
}

/// G2 and G3 on the real binary.
#[test]
fn g2_g3_a_run_of_fifty_steps_killed_at_its_commits_has_every_effect_once() {
    let mut form = Form::of(1);
    let whole = world();
    let words = words(&whole, "mixed");
    let commits = count(&whole, &args(&words), "fsync", 0);
    holds_everything_once(&whole, "undisturbed");
    assert!(commits > 80, "only {commits} commits: the sweep would prove little");

    let mut tried = (0, 0);
    for nth in form.points(18, commits) {
        if form.is_over() {
            break;
        }
        let second = form.random(3) == 0;
        let second = second.then(|| Blow::Call("fsync", 2 + form.random(commits as u64) as usize));
        tried.0 += 1;
        tried.1 += u32::from(survives(Blow::Call("fsync", nth), second));
    }
    eprintln!("killed at {} of {commits} commits, {} times within the run", tried.0, tried.1);
    assert!(form.is_over() || tried.1 >= 12, "too few deaths within a run: {tried:?}");
}

/// The same between commits: before a page is written, and behind an effect that has happened.
#[test]
fn killed_between_its_commits_a_run_has_every_effect_once() {
    let mut form = Form::of(2);
    let whole = world();
    let begun = std::time::Instant::now();
    let words = words(&whole, "mixed");
    let writes = count(&whole, &args(&words), "pwrite64", 0);
    let length = u64::try_from(begun.elapsed().as_micros()).unwrap();
    let mut tried = (0, 0);
    for round in 0..form.count(8, 400) {
        if form.is_over() {
            break;
        }
        let blow = match round % 2 {
            0 => Blow::Call("pwrite64", 1 + form.random(writes as u64) as usize),
            _ => Blow::After(Duration::from_micros(length / 5 + form.random(length))),
        };
        tried.0 += 1;
        tried.1 += u32::from(survives(blow, None));
    }
    eprintln!("killed {} times between commits, {} times within the run", tried.0, tried.1);
}
