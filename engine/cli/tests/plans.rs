//! Saved plans: one process makes the file, people read it, another process carries it out, exactly and once. Whatever
//! else the file has become meanwhile, or the world, is told and changes nothing.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use common::{Answer, Project, Started};
use farrier_model::Digest;
use farrier_testkit::slapd::{self, Slapd};
use serde_json::{Value, json};

const PLAN: [&str; 8] = ["plan", "letters", "--env", "test", "-i", "text=abc", "--out", "saved"];
const APPLY: [&str; 3] = ["apply", "saved", "--yes"];

/// Two files with the same text, the second after the first.
const LETTERS: &str = "runbook: letters
summary: Write two files
owner: tests
risk: recoverable
targets: { place: files }
inputs:
  text: { type: string, pattern: \"[a-z]+\" }
steps:
  first:
    uses: files.write
    with: { target: place, file: { root: out, path: [first] }, content: \"${ inputs.text }\" }
    undo: restore
  second:
    uses: files.write
    needs: [first]
    with: { target: place, file: { root: out, path: [second] }, content: \"${ inputs.text }\" }
    undo: restore
";

fn project() -> Project {
    let project = Project::new();
    project.write("runbooks/letters.yaml", LETTERS);
    for folder in ["out", "elsewhere"] {
        fs::create_dir(project.path(folder)).unwrap();
    }
    bind(&project, "out");
    project
}

/// Says where the target `place` of the environment is.
fn bind(project: &Project, folder: &str) {
    project.environment(&json!({ "place": { "kind": "files", "roots": { "out": format!("../{folder}") } } }));
}

/// What lies in the folder that runs write to: name and content.
fn written(project: &Project) -> Vec<(String, String)> {
    let mut files: Vec<(String, String)> = fs::read_dir(project.path("out"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter(|entry| entry.file_type().unwrap().is_file())
        .map(|entry| {
            let content = fs::read_to_string(entry.path()).unwrap();
            (entry.file_name().into_string().unwrap(), content)
        })
        .collect();
    files.sort();
    files
}

fn both(text: &str) -> Vec<(String, String)> {
    ["first", "second"].map(|name| (name.to_owned(), text.to_owned())).to_vec()
}

/// No run was begun, so nothing can have been changed.
#[track_caller]
fn nothing_happened(project: &Project) {
    assert_eq!(written(project), []);
    let runs = project.farrier(&["runs", "-o", "json"]);
    // No store, or one without a run.
    assert!(runs.code == Some(74) || runs.json() == json!([]), "{runs}");
}

fn saved(project: &Project) -> Value {
    serde_json::from_str(&project.read("saved")).unwrap()
}

/// JSON in the one form that plans have: keys in order, no white space.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let mut fields: Vec<_> = fields.iter().collect();
            fields.sort_by_key(|(key, _)| *key);
            let fields: Vec<String> =
                fields.iter().map(|(key, value)| format!("{}:{}", json!(key), canonical(value))).collect();
            format!("{{{}}}", fields.join(","))
        }
        Value::Array(items) => {
            format!("[{}]", items.iter().map(canonical).collect::<Vec<_>>().join(","))
        }
        other => other.to_string(),
    }
}

/// Changes the file as somebody would who knows how its digest is made.
fn forge(project: &Project, edit: impl FnOnce(&mut Value)) {
    let mut plan = saved(project);
    edit(&mut plan);
    plan.as_object_mut().unwrap().remove("digest");
    plan["digest"] = json!(Digest::of(canonical(&plan)).to_string());
    project.write("saved", &format!("{}\n", canonical(&plan)));
}

#[test]
fn a_saved_plan_makes_exactly_its_changes_once() {
    let project = project();
    let plan = project.farrier(&PLAN).expect(0).says("2 to create");
    let digest = saved(&project)["digest"].as_str().unwrap().to_owned();
    let plan = plan.complains(&format!("plan {digest} saved in saved, good until "));
    plan.complains("to make exactly these changes: farrier apply saved");
    nothing_happened(&project);

    let mode = fs::metadata(project.path("saved")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600, "a plan shows what lies in systems, so it is for its owner");
    let text = project.read("saved");
    assert_eq!(text, format!("{}\n", canonical(&saved(&project))));

    let applied = project.farrier_as("grace", &APPLY).expect(0).says("letters succeeded: 2 changes made");
    applied.complains("2 to create");
    assert_eq!(written(&project), both("abc"));
    assert_eq!(project.read("saved"), text, "applying leaves the file alone");
    let run = project.last_run();
    project.farrier(&["show", &run]).expect(0).says(&format!("carries out saved plan {digest}"));
    assert_eq!(project.show_last()["plan"], *digest);
    // Who applies it is who asked for the run, whoever made the file.
    let journal = project.farrier(&["logs", &run, "-o", "json"]).expect(0).json();
    assert_eq!(journal[0]["event"]["created"]["trigger"]["manual"]["by"], "grace", "{journal:#}");

    // Used is used, also where it would be true again.
    for name in ["first", "second"] {
        fs::remove_file(project.path("out").join(name)).unwrap();
    }
    let again = project.farrier(&APPLY).expect(21);
    let again = again.complains(&format!("this plan was carried out before, by run {run}"));
    again.complains("--replan");
    assert_eq!(written(&project), []);
    assert_eq!(project.farrier(&["runs", "-o", "json"]).json().as_array().unwrap().len(), 1);
    project.farrier(&["fsck"]).expect(0);
}

#[test]
fn without_a_yes_it_asks_and_changes_nothing() {
    let project = project();
    project.farrier(&PLAN).expect(0);
    project.farrier(&["apply", "saved"]).expect(14).complains("nobody is here to ask");
    assert_eq!(written(&project), []);
}

#[test]
fn of_two_at_once_one_carries_it_out() {
    let project = project();
    project.farrier(&PLAN).expect(0);
    let both_at_once = [(); 2].map(|()| Started::from(project.command(&APPLY)));
    let codes = both_at_once.map(|started| {
        let answer = started.end();
        // The second one meets the first at work, its changes in the world, or its name in the store.
        assert!(matches!(answer.code, Some(0 | 20 | 21 | 73)), "{answer}");
        answer.code
    });
    assert_eq!(codes.iter().filter(|code| **code == Some(0)).count(), 1, "{codes:?}");
    assert_eq!(written(&project), both("abc"));
    assert_eq!(project.farrier(&["runs", "-o", "json"]).json().as_array().unwrap().len(), 1);
}

#[test]
fn whoever_changes_the_file_has_no_plan_any_more() {
    let project = project();
    project.farrier(&PLAN).expect(0);
    let text = project.read("saved");
    let refused = |bytes: &[u8], why: &str| {
        fs::write(project.path("saved"), bytes).unwrap();
        let answer =
            project.farrier(&APPLY).expect(65).complains("`saved` cannot be applied: ").complains(why);
        answer.complains("make a new one with `farrier plan … --out FILE`");
    };
    let by = "\"by\":\"tester\",";
    let moved = format!("{{{by}{}", text.replacen(by, "", 1).trim_start_matches('{'));
    let (not_whole, changed) = ("it is not a whole plan", "it was changed after it was made: its digest is ");
    for (edited, why) in [
        (text.replace("abc", "abd"), changed),
        (text.replace("tester", "mallory"), changed),
        (text.replace("\"kind\":\"create\"", "\"kind\":\"delete\""), changed),
        (text.replace("\"expires_at\":\"20", "\"expires_at\":\"21"), changed),
        (text.replace("\"digest\":\"", "\"digest\":\"0"), not_whole),
        (text.replacen(':', ": ", 1), changed),
        (format!(" {text}"), changed),
        (format!("{text}\n"), changed),
        (text.trim_end().to_owned(), changed),
        (moved, changed),
        // Said twice: readers of JSON do not agree on which of the two counts.
        (text.replacen('{', &format!("{{{by}"), 1), changed),
        (text.replace("abc", "\\u0061bc"), changed),
        (text.replacen('{', "{\"also\":1,", 1), not_whole),
        (text.replacen("\"id\":", "\"it\":", 1), not_whole),
        (
            text.replace("farrier-plan/1", "farrier-plan/2"),
            "it has the form `farrier-plan/2`, and this version reads",
        ),
        (text.replace("\"format\":\"farrier-plan/1\",", ""), "it does not say its `format`"),
        (format!("{text}{text}"), not_whole),
        (String::new(), not_whole),
        ("\n".into(), not_whole),
        ("null".into(), not_whole),
        ("[]".into(), not_whole),
        ("runbook: letters\n".into(), not_whole),
        ("{".repeat(100_000), not_whole),
        ("[".repeat(100_000), not_whole),
    ] {
        assert_ne!(edited, text, "the edit for `{why}` changes something");
        refused(edited.as_bytes(), why);
    }
    refused(b"\xff\xfe\x00", not_whole);
    for part in 1..20 {
        refused(&text.as_bytes()[..text.len() * part / 20], not_whole);
    }
    nothing_happened(&project);
    // Put back as it was, it is a plan again.
    project.write("saved", &text);
    project.farrier(&APPLY).expect(0);
}

#[test]
fn a_file_that_cannot_be_read_is_told() {
    let project = project();
    project.farrier(&APPLY).expect(1).complains("cannot read saved");
    project.farrier(&["apply", "out", "--yes"]).expect(1).complains("cannot read out");
    project.farrier(&["apply"]).expect(64);
}

/// What is done to a saved plan.
type Forge = &'static dyn Fn(&mut Value);

/// Nothing in the file is carried out: what is planned now decides, and has to be the same.
#[test]
fn a_digest_made_anew_does_not_help() {
    let forgeries: [(&str, Forge, i32, &str); 13] = [
        (
            "another text",
            &|plan| plan["plan"]["steps"][0]["changes"][0]["after"]["content"] = json!("evil"),
            20,
            "`first`: `out/first` was to become ",
        ),
        (
            "another object",
            &|plan| plan["plan"]["steps"][0]["changes"][0]["object"] = json!("out/.bashrc"),
            20,
            "`first`: `out/.bashrc` was to be changed (create), and needs no change now",
        ),
        (
            "another kind of change",
            &|plan| plan["plan"]["steps"][0]["changes"][0]["kind"] = json!("delete"),
            20,
            "`first`: `out/first` was a delete, and is a create now",
        ),
        (
            "a change hidden from readers",
            &|plan| {
                plan["plan"]["steps"][1].as_object_mut().unwrap().remove("changes");
                plan["plan"]["steps"][1]["state"] = json!({ "is": "done" });
            },
            20,
            "`second`: `out/second` would be changed now (create), and was not part of the plan",
        ),
        (
            "a change said to be unknown",
            &|plan| plan["plan"]["steps"][1]["state"] = json!({ "is": "after", "why": "first" }),
            20,
            "`second` was not known, and now makes 1 change",
        ),
        (
            "a step more",
            &|plan| {
                let mut step = plan["plan"]["steps"][0].clone();
                step["id"] = json!("third");
                plan["plan"]["steps"].as_array_mut().unwrap().push(step);
            },
            20,
            "`third` makes 1 change, and is not part of it now",
        ),
        (
            "other inputs",
            &|plan| plan["plan"]["inputs"]["text"] = json!("evil"),
            20,
            "`first`: `out/first` was to become ",
        ),
        (
            "inputs that the runbook does not allow, with the changes that they would make",
            &|plan| {
                let text = canonical(plan).replace("\"abc\"", "\"../../x\"");
                *plan = serde_json::from_str(&text).unwrap();
            },
            65,
            "`saved` cannot be applied: its inputs are not those of `letters`: input `text`: ",
        ),
        (
            "another runbook's texts",
            &|plan| plan["bundle"] = json!(Digest::of("").to_string()),
            20,
            "runbook `letters`, or one that it starts, was changed after the plan was made",
        ),
        (
            "another target",
            &|plan| plan["targets"]["place"] = json!("files out=/etc"),
            20,
            "target `place` was files out=/etc, and is files out=../out now",
        ),
        (
            "a later moment",
            &|plan| plan["plan"]["run"]["started_at"] = json!("2099-01-01T00:00:00Z"),
            65,
            "the run that it names is not one that was planned then",
        ),
        (
            "made tomorrow",
            &|plan| {
                plan["plan"].as_object_mut().unwrap().remove("run");
                plan["created_at"] = json!("2099-01-01T00:00:00Z");
                plan["expires_at"] = json!("2099-01-02T00:00:00Z");
            },
            21,
            "it says that it was made at 2099-01-01T00:00:00Z, which is yet to come",
        ),
        (
            "no target",
            &|plan| plan["targets"] = json!({}),
            20,
            "target `place` was not used, and is files out=../out now",
        ),
    ];
    for (what, edit, code, why) in forgeries {
        let project = project();
        project.farrier(&PLAN).expect(0);
        forge(&project, edit);
        let answer = project.farrier(&APPLY);
        assert_eq!(answer.code, Some(code), "{what}: {answer}");
        assert!(answer.err.contains(why), "{what}: `{why}` is missing: {answer}");
        nothing_happened(&project);
    }
}

/// A runbook outside the project is none, however the file names it.
#[test]
fn a_plan_brings_no_runbook_with_it() {
    let project = project();
    let evil = LETTERS.replace("runbook: letters", "runbook: evil");
    project.write("runbooks/evil.yaml", &evil);
    let plan: Vec<&str> = PLAN.iter().map(|word| if *word == "letters" { "evil" } else { word }).collect();
    project.farrier(&plan).expect(0);
    // Its texts are right in every byte; only the place is another one.
    fs::rename(project.path("runbooks/evil.yaml"), project.path("evil.yaml")).unwrap();
    project.farrier(&APPLY).expect(64).complains("there is no runbook `evil`");
    for path in ["evil.yaml", "./evil.yaml", "runbooks/../evil.yaml"] {
        forge(&project, |plan| plan["runbook"] = json!(path));
        project.farrier(&APPLY).expect(65).complains(&format!("`{path}` is not the name of a runbook"));
    }
    nothing_happened(&project);
}

#[test]
fn a_plan_expires() {
    let project = project();
    project.farrier(&[&PLAN[..], &["--expires", "0s"]].concat()).expect(0);
    let made = saved(&project);
    assert_eq!(made["created_at"], made["expires_at"]);
    let answer = project.farrier(&APPLY).expect(21);
    let answer = answer.complains("the plan cannot be applied: it expired at ");
    answer.complains("`farrier apply FILE --replan` makes a new plan");
    nothing_happened(&project);
    project.farrier(&["apply", "saved", "--replan", "--expires", "1h"]).expect(0);
    project.farrier(&APPLY).expect(0);
    assert_eq!(written(&project), both("abc"));
    project.farrier(&[&PLAN[..], &["--expires", "soon"]].concat()).expect(64).complains("is not a duration");
}

#[test]
fn a_plan_is_for_these_texts_and_these_targets() {
    let project = project();
    project.farrier(&PLAN).expect(0);
    let refused = |why: &str| {
        let answer = project.farrier(&APPLY).expect(20);
        let answer = answer.complains("the plan is not true any more; nothing was changed:");
        answer.complains(why).complains("--replan");
    };
    // A comment does nothing, and is still another text than the one that was read.
    project.write("runbooks/letters.yaml", &format!("{LETTERS}# one more line\n"));
    refused("runbook `letters`, or one that it starts, was changed after the plan was made (texts ");
    project.write("runbooks/letters.yaml", LETTERS);
    bind(&project, "elsewhere");
    refused("target `place` was files out=../out, and is files out=../elsewhere now");
    bind(&project, "out");
    fs::remove_file(project.path("environments/test.yaml")).unwrap();
    project.farrier(&APPLY).expect(64).complains("there is no environment `test`");
    nothing_happened(&project);
    assert_eq!(fs::read_dir(project.path("elsewhere")).unwrap().count(), 0);
}

#[test]
fn a_plan_of_another_project_is_not_carried_out() {
    let project = project();
    project.farrier(&PLAN).expect(0);
    let other = self::project();
    fs::copy(project.path("saved"), other.path("saved")).unwrap();
    fs::remove_file(other.path("runbooks/letters.yaml")).unwrap();
    other.farrier(&APPLY).expect(64).complains("there is no runbook `letters`");
    other.write("runbooks/letters.yaml", &LETTERS.replace("[second]", "[another]"));
    other.farrier(&APPLY).expect(20).complains("was changed after the plan was made");
    nothing_happened(&other);
    nothing_happened(&project);
}

#[test]
fn a_world_that_has_moved_on_is_told_and_planned_again() {
    let project = project();
    project.farrier(&PLAN).expect(0);
    let before = project.read("saved");
    project.write("out/second", "somebody else's");
    let drifted = project.farrier(&APPLY).expect(20);
    drifted.complains("`second`: `out/second` was a create, and is a update now").complains("--replan");
    assert_eq!(written(&project), [("second".to_owned(), "somebody else's".to_owned())]);

    let new = project.farrier(&["apply", "saved", "--replan"]).expect(0).says("1 to create, 1 to update");
    let new = new.complains("changed: `second`: `out/second` was a create, and is a update now");
    let digest = |text: &str| {
        serde_json::from_str::<Value>(text).unwrap()["digest"].as_str().unwrap()[..12].to_owned()
    };
    new.complains(&format!("plan {} replaces {} in saved", digest(&project.read("saved")), digest(&before)));
    assert_eq!(written(&project).len(), 1, "a new plan changes nothing but its file");
    let mode = fs::metadata(project.path("saved")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    // The one that was replaced is as untrue as before.
    project.write("old", &before);
    project.farrier(&["apply", "old", "--yes"]).expect(20);
    project.write("out/second", "changed once more");
    let drifted = project.farrier(&APPLY).expect(20);
    drifted.complains("somebody else's").complains("changed once more");
    project.farrier(&["apply", "saved", "--replan"]).expect(0);
    project.farrier(&APPLY).expect(0).says("2 changes made");
    assert_eq!(written(&project), both("abc"));
    project.farrier(&["apply", "saved", "--replan", "--yes"]).expect(64);
}

#[test]
fn a_plan_made_again_for_texts_that_changed_is_for_the_new_ones() {
    let project = project();
    project.farrier(&PLAN).expect(0);
    project.write("runbooks/letters.yaml", &LETTERS.replace("[second]", "[another]"));
    let new = project.farrier(&["apply", "saved", "--replan"]).expect(0);
    new.complains("`out/second` was to be changed (create), and needs no change now");
    project.farrier(&APPLY).expect(0);
    assert_eq!(written(&project)[0], ("another".to_owned(), "abc".to_owned()));

    // Inputs that the new text does not allow are told as any others.
    project.write("runbooks/letters.yaml", &LETTERS.replace("[a-z]+", "[0-9]+"));
    let refused = project.farrier(&["apply", "saved", "--replan"]).expect(64);
    refused.complains("input `text`: `abc` does not match `[0-9]+`");
}

#[test]
fn guards_stand_whatever_the_file_says_of_them() {
    let project = project();
    let guard = "guards:\n  - { count: [create], at_most: 1, otherwise: ask }\nsteps:";
    project.write("runbooks/letters.yaml", &LETTERS.replacen("steps:", guard, 1));
    project.farrier(&PLAN).expect(22);
    forge(&project, |plan| {
        plan["plan"]["guards"] = json!([]);
        plan["plan"]["summary"]["create"] = json!(0);
    });
    project.farrier(&APPLY).expect(12).says("2 changes, more than the limit of 1");
    assert_eq!(written(&project), []);
    let run = project.last_run();
    project.farrier(&["resume", &run, "--yes", "--accept-guards"]).expect(0);
    assert_eq!(written(&project), both("abc"));
}

#[test]
fn what_is_no_whole_plan_is_not_saved() {
    let project = project();
    project.write("out/first/in the way", "");
    let answer = project.farrier(&PLAN);
    assert_ne!(answer.code, Some(0), "{answer}");
    answer.complains("not saved, since the plan is not whole: ");
    assert!(!project.path("saved").exists());
    let nowhere: Vec<&str> =
        PLAN.iter().map(|word| if *word == "saved" { "no/such/folder" } else { word }).collect();
    fs::remove_dir_all(project.path("out/first")).unwrap();
    project.farrier(&nowhere).expect(1).complains("cannot write no/such/folder");
}

/// What was read binds the run to its end, also over a wait and in the runs that it starts.
#[test]
fn a_plan_binds_what_comes_after_a_wait_and_child_runs() {
    let waiting = "runbook: waiting
summary: Write a file, wait, and run another runbook
owner: tests
risk: recoverable
targets: { place: files }
signals: [{ name: go_on, who: [tester], then: continue }]
steps:
  before:
    uses: files.write
    with: { target: place, file: { root: out, path: [before] }, content: x }
    undo: restore
  pause: { uses: flow.wait, needs: [before], with: { for: 1d, signal: go_on } }
  call: { uses: runbook.letters, needs: [pause], with: { text: abc }, undo: none }
";
    for moved in [false, true] {
        let project = project();
        project.write("runbooks/waiting.yaml", waiting);
        let plan = project.farrier(&["plan", "waiting", "--env", "test", "--out", "saved"]).expect(0);
        let plan = plan.says("for 1d, or until signal `go_on`");

        // The text of a runbook that it starts counts as its own.
        project.write("runbooks/letters.yaml", &LETTERS.replace("[second]", "[another]"));
        project.farrier(&APPLY).expect(20).complains("runbook `waiting`, or one that it starts, was changed");
        project.write("runbooks/letters.yaml", LETTERS);

        project.farrier(&[&APPLY[..], &["--patience", "0s"]].concat()).expect(15);
        assert_eq!(written(&project), [("before".to_owned(), "x".to_owned())], "{plan}");
        let run = project.last_run();
        // The run keeps to the texts that it began with.
        project.write("runbooks/letters.yaml", &LETTERS.replace("[second]", "[another]"));
        if moved {
            project.write("out/second", "somebody else's");
        }
        project.farrier(&["signal", &run, "go_on"]).expect(0);
        let ended = project.farrier(&["resume", &run, "--yes"]).expect(if moved { 10 } else { 0 });
        let second = project.read("out/second");
        if moved {
            ended.says("`out/second` was a create, and is a update now");
            assert_eq!(second, "somebody else's");
            assert!(!project.path("out/first").exists(), "a run that is bound as a whole does no half of it");
        } else {
            assert_eq!((second.as_str(), project.read("out/first").as_str()), ("abc", "abc"));
        }
        project.farrier(&["fsck"]).expect(0);
    }
}

/// Which run it is, and when it began, is in what was read: so it is what is written.
#[test]
fn what_a_plan_says_of_its_run_is_true() {
    let dated = |name: &str, more: &str| {
        format!(
            "runbook: {name}
summary: Write who it is
owner: tests
risk: recoverable
targets: {{ place: files }}
steps:
  write:
    uses: files.write
    with: {{ target: place, file: {{ root: out, path: [{name}] }}, content: \"${{ run.id ~ ' ' ~ run.started_at }}\" }}
    undo: restore
{more}"
        )
    };
    let project = project();
    project.write(
        "runbooks/outer.yaml",
        &dated("outer", "  call: { uses: runbook.inner, needs: [write], undo: none }\n"),
    );
    project.write("runbooks/inner.yaml", &dated("inner", ""));
    project.farrier(&["plan", "outer", "--env", "test", "--out", "saved"]).expect(0).says("2 to create");
    let plan = saved(&project)["plan"].clone();
    let said = |step: &Value| step["changes"][0]["after"]["content"].as_str().unwrap().to_owned();
    let outer = said(&plan["steps"][0]);
    let inner = said(&plan["steps"][1]["child"]["steps"][0]);
    let run = &plan["run"];
    assert_eq!(outer, format!("{} {}", run["id"].as_str().unwrap(), run["started_at"].as_str().unwrap()));
    assert_ne!(inner, outer);

    project.farrier(&APPLY).expect(0);
    assert_eq!((project.read("out/outer"), project.read("out/inner")), (outer, inner));
    let runs = project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let ids: Vec<&str> = runs.as_array().unwrap().iter().map(|row| row["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&run["id"].as_str().unwrap()), "{ids:?}");
    for name in ["outer", "inner"] {
        fs::remove_file(project.path("out").join(name)).unwrap();
    }
    project.farrier(&APPLY).expect(21).complains("this plan was carried out before, by run ");
    project.farrier(&["fsck"]).expect(0);
}

/// All bytes of all files below a folder.
fn every_byte(folder: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            bytes.extend(every_byte(&path));
        } else {
            bytes.extend(fs::read(&path).unwrap());
        }
    }
    bytes
}

/// The password that planning and applying used is in no file and no output.
#[test]
fn a_plan_holds_no_secret() {
    let server = Slapd::start(slapd::Options::default());
    let project = project();
    project.write(
        "runbooks/counted.yaml",
        "runbook: counted
summary: Write how many units the directory has
owner: tests
risk: recoverable
targets: { directory: ldap, place: files }
steps:
  units:
    uses: ldap.search
    with:
      target: directory
      base: dc=wikimedia,dc=org
      filter: (objectClass=organizationalUnit)
      attributes: { ou: string }
  written:
    uses: files.write
    with:
      target: place
      file: { root: out, path: [units] }
      content: \"${ steps.units.entries | length } units\"
    undo: restore
",
    );
    project.environment(&json!({
        "directory": {
            "kind": "ldap", "url": server.url(),
            "read_as": { "dn": server.reader_dn, "password": { "env": "CANARY" } },
        },
        "place": { "kind": "files", "roots": { "out": "../out" } },
    }));
    let run = |args: &[&str]| -> Answer {
        let mut command = project.command(args);
        command.env("CANARY", &server.reader_password).env("FARRIER_LOG", "debug");
        let answer = Started::from(command).end();
        assert!(!answer.out.contains(&server.reader_password), "{answer}");
        assert!(!answer.err.contains(&server.reader_password), "{answer}");
        answer
    };
    run(&["plan", "counted", "--env", "test", "--out", "saved", "-o", "json"]).expect(0);
    // Without the secret there is no plan, so it was really used.
    project.farrier(&["plan", "counted", "--env", "test"]).expect(1).says("CANARY");
    run(&APPLY).expect(0);
    run(&["logs", &project.last_run(), "-o", "json"]).expect(0);
    assert_eq!(written(&project).len(), 1);
    for (place, bytes) in [
        ("the plan", project.read("saved").into_bytes()),
        ("the data folder", every_byte(&project.path("data"))),
    ] {
        let found =
            bytes.windows(server.reader_password.len()).any(|part| part == server.reader_password.as_bytes());
        assert!(!found, "the password is in {place}");
    }
}
