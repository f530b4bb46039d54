//! A run that fails and takes back what it did, killed meanwhile.

use std::fmt::Write as _;

use crate::blows::{Blow, count, strike};
use crate::common::Project;
use crate::form::Form;
use crate::world::{
    append, args, head, holds_at_most_once, is_there, journal, ledger, project, resume_to_the_end, show,
    stored_run, words,
};

const STEPS: usize = 20;

/// Twenty steps in a line, entries of the directory and commands by turns; then one that fails.
fn runbook() -> String {
    let mut text = head("undoing", "directory: ldap, here: host");
    text.push_str("steps:\n");
    for step in 0..STEPS {
        let needs = if step == 0 { "[]".to_owned() } else { format!("[s{}]", step - 1) };
        if step % 2 == 0 {
            write!(
                text,
                "  s{step}:\n    uses: ldap.modify\n    undo: restore\n    needs: {needs}\n    with:\n\
                 \x20     target: directory\n      base: ou=people,dc=wikimedia,dc=org\n      rdn: [uid, p{step}]\n\
                 \x20     set: {{ description: new }}\n"
            )
        } else {
            let (make, take) = (format!("do {step}"), format!("undo {step}"));
            write!(
                text,
                "  s{step}:\n    uses: host.run\n    needs: {needs}\n\
                 \x20   with: {{ target: here, argv: {}, unless: {} }}\n    undo:\n      uses: host.run\n\
                 \x20     with: {{ target: here, argv: {}, unless: {} }}\n",
                append(&make),
                is_there(&make),
                append(&take),
                is_there(&take),
            )
        }
        .unwrap();
    }
    let last = STEPS - 1;
    write!(
        text,
        "  bad:\n    uses: host.run\n    needs: [s{last}]\n    undo: none\n    on_failure: undo\n\
         \x20   with: {{ target: here, argv: ['false'], unless: ['false'] }}\n"
    )
    .unwrap();
    text
}

fn world() -> Project {
    let project = project(STEPS);
    project.write("runbooks/undoing.yaml", &runbook());
    project
}

fn holds_nothing(project: &Project, run: &str, when: &str) {
    let done = (0..STEPS).filter(|step| step % 2 == 1).map(|step| format!("do {step}"));
    let undone = (0..STEPS).rev().filter(|step| step % 2 == 1).map(|step| format!("undo {step}"));
    assert_eq!(ledger(project), done.chain(undone).collect::<Vec<_>>(), "{when}");
    let entries = project.read("environments/world/directory.ldif");
    assert_eq!(entries.matches("description: old").count(), STEPS, "{when}: {entries}");
    let undone: Vec<String> =
        journal(project, run).into_iter().filter(|kind| kind.starts_with("undo_done ")).collect();
    let expected: Vec<String> = (0..STEPS).rev().map(|step| format!("undo_done s{step}")).collect();
    assert_eq!(undone, expected, "{when}: each once, the last first");
    project.farrier(&["fsck"]).expect(0);
}

/// G6 on the real binary.
#[test]
fn g6_killed_while_undoing_everything_is_taken_back_once_and_in_order() {
    let mut form = Form::of(3);
    let whole = world();
    let commits = count(&whole, &args(&words(&whole, "undoing")), "fsync", 11);
    holds_nothing(&whole, &stored_run(&whole).unwrap(), "undisturbed");
    let (mut tried, mut while_undoing) = (0, 0);
    // An outcome shares its commit with the intent after it, going forward as going back.
    let turn = commits * 6 / 10;
    for nth in form.points(9, commits - turn) {
        if form.is_over() {
            break;
        }
        let when = format!("killed at commit {} of {commits}", turn + nth);
        let project = world();
        let died = strike(&project, &args(&words(&project, "undoing")), Blow::Call("fsync", turn + nth));
        assert!(died.signal == Some(9) || died.code == Some(11), "{when}: {died}");
        holds_at_most_once(&project, &when);
        let run = stored_run(&project).unwrap();
        tried += 1;
        while_undoing += u32::from(show(&project, &run)["state"] == "undoing");
        let mut second = (form.random(2) == 0).then(|| Blow::Call("fsync", 3 + form.random(12) as usize));
        let end = resume_to_the_end(&project, &run, ToOwned::to_owned, |args| match second.take() {
            Some(blow) => strike(&project, args, blow),
            None => project.farrier(args),
        });
        assert_eq!(end["state"], "undone", "{when}: {end:#}");
        holds_nothing(&project, &run, &when);
    }
    eprintln!("killed {tried} times, {while_undoing} times while undoing");
    assert!(form.is_over() || while_undoing >= 4, "too few deaths while undoing: {while_undoing} of {tried}");
}
