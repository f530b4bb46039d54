//! The world ledger: effects of every class leave one line each, so that one that happened twice is seen.
//!
//! Commands append to the file `ledger` themselves; the server's stand-in keeps a line for every request that counted;
//! files and entries of the directory are states, and hold what the last write put there.

use std::fmt::Write as _;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::common::{Answer, Project};

/// Where the requests are.
const REQUESTS: &str = "environments/world/routes.yaml.requests.jsonl";

/// A project whose environment `test` has a directory of so many people, a server, a folder and this machine.
pub(crate) fn project(people: usize) -> Project {
    let project = Project::new();
    let mut ldif = String::from(
        "dn: dc=wikimedia,dc=org\nobjectClass: domain\ndc: wikimedia\n\n\
         dn: ou=people,dc=wikimedia,dc=org\nobjectClass: organizationalUnit\nou: people\n",
    );
    for person in 0..people {
        let entry = "objectClass: inetOrgPerson\ncn: P\nsn: P\ndescription: old\n";
        write!(ldif, "\ndn: uid=p{person},ou=people,dc=wikimedia,dc=org\nuid: p{person}\n{entry}").unwrap();
    }
    project.write("environments/world/directory.ldif", &ldif);
    project.write(
        "environments/world/routes.yaml",
        "routes:\n  - method: POST\n    path: [sal]\n    answers: [{ status: 201, json: { id: 7 } }]\n",
    );
    project.write("notes/.keep", "");
    project.write("ledger", "");
    project.environment(&json!({
        "directory": { "kind": "ldap", "url": "ldif:world/directory.ldif" },
        "feed": {
            "kind": "http", "url": "routes:world/routes.yaml", "idempotency_header": "Idempotency-Key",
            "write_as": {},
        },
        "notes": { "kind": "files", "roots": { "notes": "../notes" } },
        "here": { "kind": "host", "local": true },
    }));
    project
}

/// The head of a runbook of such a project.
pub(crate) fn head(name: &str, targets: &str) -> String {
    format!(
        "runbook: {name}\nsummary: Chaos\nowner: tests\nrisk: destructive\ntargets: {{ {targets} }}\n\
         inputs:\n  ledger: {{ type: string }}\n"
    )
}

/// A command that appends `line` to the ledger.
pub(crate) fn append(line: &str) -> String {
    format!("[sh, -c, 'echo \"$1\" >> \"$0\"', '${{ inputs.ledger }}', '{line}']")
}

/// A command that tells whether `line` is in the ledger.
pub(crate) fn is_there(line: &str) -> String {
    format!("[grep, -qx, '{line}', '${{ inputs.ledger }}']")
}

/// The words that start `runbook` in the project.
pub(crate) fn words(project: &Project, runbook: &str) -> Vec<String> {
    let ledger = format!("ledger={}", project.path("ledger").display());
    ["run", runbook, "--env", "test", "--yes", "-i", &ledger].map(ToOwned::to_owned).to_vec()
}

/// Borrowed.
pub(crate) fn args(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

/// The lines that commands wrote, in their order.
pub(crate) fn ledger(project: &Project) -> Vec<String> {
    project.read("ledger").lines().map(ToOwned::to_owned).collect()
}

/// The messages that the server took, in their order. What came again under its key, and counted once, is left out.
pub(crate) fn requests(project: &Project) -> Vec<String> {
    let text = project.read(REQUESTS);
    let requests = text.lines().filter_map(|line| Value::from_str(line).ok());
    let counted = requests.filter(|request| request["repeated"] != true);
    counted.filter_map(|request| Some(request["body"]["message"].as_str()?.to_owned())).collect()
}

/// No command and no request happened twice.
#[track_caller]
pub(crate) fn holds_at_most_once(project: &Project, when: &str) {
    for lines in [ledger(project), requests(project)] {
        let mut unique = lines.clone();
        unique.sort();
        unique.dedup();
        assert_eq!(unique.len(), lines.len(), "{when}: something happened twice: {lines:?}");
    }
}

/// The run that a killed process had put on disk, if it came that far.
pub(crate) fn stored_run(project: &Project) -> Option<String> {
    let runs = project.farrier(&["runs", "-o", "json"]);
    if runs.code == Some(74) {
        // It died before it had made all the tables; whoever comes next makes the rest.
        assert!(
            runs.err.contains("holds no farrier data yet") || runs.err.contains("has schema version"),
            "{runs}"
        );
        return None;
    }
    let runs = runs.expect(0).json();
    let runs = runs.as_array().unwrap();
    assert!(runs.len() <= 1, "one run was started: {runs:?}");
    runs.first().map(|run| run["id"].as_str().unwrap().to_owned())
}

/// What `show` says.
pub(crate) fn show(project: &Project, run: &str) -> Value {
    project.farrier(&["show", run, "-o", "json"]).expect(0).json()
}

/// A run's journal: for events of nodes `kind node`, for others the kind.
pub(crate) fn journal(project: &Project, run: &str) -> Vec<String> {
    let entries = project.farrier(&["logs", run, "-o", "json"]).expect(0).json();
    let kind = |event: &Value| match event {
        Value::String(kind) => kind.clone(),
        Value::Object(fields) => fields.keys().next().cloned().unwrap_or_default(),
        other => panic!("an event of an unknown form: {other}"),
    };
    let entries = entries.as_array().unwrap().iter();
    let name = |entry: &Value| {
        let event = &entry["event"];
        match event.get("node") {
            Some(node) => format!("{} {}", kind(&node["event"]), node["node"].as_str().unwrap()),
            None => kind(event),
        }
    };
    entries.map(name).collect()
}

/// Answers for every step in doubt, as a person would after looking at the ledger. Steps are named as their lines.
pub(crate) fn resolve_doubts(project: &Project, run: &str, line: impl Fn(&str) -> String) {
    let view = show(project, run);
    if view["parked"].as_str().is_some_and(|reason| reason.contains("its owner died")) {
        // Its steps are not what it is parked for; resumed, it decides about them by itself.
        return;
    }
    let doubts = view["steps"].as_array().unwrap().iter().filter(|step| step["state"] == "in_doubt");
    for step in doubts {
        let node = step["node"].as_str().unwrap();
        // What Farrier may try again by itself it leaves to a person after five times.
        let tried_enough = step["attempt"].as_u64().is_some_and(|attempt| attempt > 5);
        assert!(node.starts_with("once") || tried_enough, "this needs no person: {view:#}");
        let line = line(node);
        let applied = ledger(project).contains(&line) || requests(project).contains(&line);
        let word = if applied { "--applied" } else { "--not-applied" };
        project.farrier(&["resolve", run, node, word, "--reason", "the ledger says so"]).expect(0);
    }
}

/// Resumes a run until it is over, as an operator would; every life but the last may be cut short by `blow`.
pub(crate) fn resume_to_the_end(
    project: &Project,
    run: &str,
    line: impl Fn(&str) -> String,
    mut life: impl FnMut(&[&str]) -> Answer,
) -> Value {
    for _ in 0..30 {
        let view = show(project, run);
        match view["state"].as_str().unwrap() {
            "parked" => resolve_doubts(project, run, &line),
            "queued" | "running" | "undoing" | "waiting" => {}
            _ => return view,
        }
        life(&["resume", run, "--yes"]);
        holds_at_most_once(project, "resumed");
    }
    panic!("run {run} does not come to an end: {:#}", show(project, run));
}
