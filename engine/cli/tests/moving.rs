//! `farrier export`, `import`, `prune`, and `fsck --export`, on the real binary.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};

use common::{Project, Started};
use farrier_testkit::wait_until;
use serde_json::json;

fn project(retention: &str) -> Project {
    let project = Project::new();
    project.write(
        "farrier.yaml",
        &format!("runbooks: [runbooks]\nenvironments: [environments/*.yaml]\ndata_dir: data\n{retention}"),
    );
    project.write(
        "runbooks/note.yaml",
        "runbook: note\nsummary: Says something\nowner: tests\nrisk: read_only\ninputs:\n  text: { type: string }\nsteps:\n\
         \x20 say: { uses: flow.note, with: { message: '${ inputs.text }' } }\n",
    );
    project.environment(&json!({}));
    project
}

fn run(project: &Project, text: &str) {
    project.farrier(&["run", "note", "--env", "test", "--yes", "-i", &format!("text={text}")]).expect(0);
}

fn runs(project: &Project) -> Vec<String> {
    let runs = project.farrier(&["runs", "-o", "json"]).expect(0).json();
    runs.as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn runs_move_from_one_project_to_another() {
    let (from, to) = (project(""), project(""));
    run(&from, "one");
    run(&from, "two");
    let file = to.path("runs.jsonl").display().to_string();
    from.farrier(&["export", "--out", &file]).expect(0).complains("2 runs exported");
    let one = from.farrier(&["export", &runs(&from)[0]]).expect(0);
    assert_eq!(one.out.lines().count(), 1);
    assert!(to.read("runs.jsonl").contains(one.out.trim_end()), "the same line, whichever way");

    to.farrier(&["import", &file]).expect(0).complains("2 runs imported");
    to.farrier(&["import", &file]).expect(0).complains("0 runs imported; 2 stored already");
    assert_eq!(runs(&from), runs(&to));
    let logs = |project: &Project| project.farrier(&["logs", &runs(project)[0]]).expect(0).out;
    assert_eq!(logs(&from), logs(&to));
    to.farrier(&["fsck"]).expect(0).says("everything is whole");
    from.farrier(&["export", "0123"]).expect(64).complains("no run's id begins with");

    let other = project("");
    let changed = to.read("runs.jsonl").replacen("two", "too", 1);
    other.write("changed.jsonl", &changed);
    let refused = other.farrier(&["import", "changed.jsonl"]).expect(65);
    refused.complains("`changed.jsonl` line 2: run").complains("was changed after it had been exported");
    assert_eq!(runs(&other).len(), 1, "the line before it");
    other.farrier(&["fsck"]).expect(0);
}

#[test]
fn old_runs_are_taken_away() {
    let kept = project("");
    run(&kept, "one");
    kept.farrier(&["prune"]).expect(64).complains("it has no `retention:`");
    let project = project("retention: { keep: 90d, runbooks: { note: { keep: 0s, at_least: 1 } } }\n");
    for text in ["one", "two", "three"] {
        run(&project, text);
    }
    let newest = runs(&project).remove(0);
    let dry = project.farrier(&["prune", "--dry-run"]).expect(0).complains("2 runs would go");
    assert!(!dry.out.contains(&newest) && dry.out.lines().count() == 2, "{dry}");
    assert_eq!(runs(&project).len(), 3);
    project.farrier(&["prune"]).expect(0).says("2 runs gone, with");
    assert_eq!(runs(&project), [newest]);
    // The service does it when it starts.
    run(&project, "four");
    let newest = runs(&project).remove(0);
    let mut service = Started::from(project.command(&["serve", "-q"]));
    wait_until("the service has taken the older one away", || runs(&project) == [newest.clone()]);
    service.child.kill().unwrap();
    service.end();
    project.farrier(&["fsck"]).expect(0).says("everything is whole");
    project.farrier(&["prune"]).expect(0).says("0 runs gone");
}

/// Guards T8: a damaged page is found before anything starts, and what can be read is still written out.
#[test]
fn a_damaged_file_stops_the_start_and_gives_back_what_it_has() {
    let project = project("");
    for number in 0..30 {
        run(&project, &format!("{number} {}", "mark ".repeat(400)));
    }
    let path = project.path("data/farrier.db");
    let bytes = fs::read(&path).unwrap();
    let damaged = (bytes.len() / 4096 / 2..bytes.len() / 4096)
        .find(|page| {
            let page = &bytes[page * 4096..][..4096];
            page[0] == 13 && String::from_utf8_lossy(page).contains("mark mark")
        })
        .expect("a leaf of the journal");
    let mut file = fs::File::options().write(true).open(&path).unwrap();
    file.seek(SeekFrom::Start(damaged as u64 * 4096)).unwrap();
    file.write_all(&[0xff; 4096]).unwrap();
    drop(file);
    // As after a kill: a stop that was recorded as clean would be believed.
    project.sqlite_do("data/farrier.db", "UPDATE node SET stopped_at = NULL");
    let refused = project.farrier(&["run", "note", "--env", "test", "--yes", "-i", "text=x"]).expect(74);
    refused.complains("data/farrier.db").complains("is damaged");
    let out = project.farrier(&["fsck", "--export", "saved.jsonl"]).expect(74);
    out.complains("written to").complains("not exported: run");
    let saved = project.read("saved.jsonl").lines().count();
    assert!(saved > 20 && saved < 30, "{saved}");
    let fresh = self::project("");
    fresh.write("saved.jsonl", &project.read("saved.jsonl"));
    fresh.farrier(&["import", "saved.jsonl"]).expect(0).complains(&format!("{saved} runs imported"));
    fresh.farrier(&["fsck"]).expect(0).says("everything is whole");
}
