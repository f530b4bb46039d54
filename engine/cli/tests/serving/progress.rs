//! How far a step is, while it works: at a terminal's reader and at the API.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use serde_json::{Value, json};

use crate::common::Project;
use crate::service::{Ends, Serving};

const DRAINS: &str = "\
runbook: drains
summary: Empties a node whose pod does not end
owner: tests
risk: recoverable
targets: { cluster: k8s }
steps:
  drain:
    uses: k8s.drain
    needs: []
    with: { target: cluster, node: sick, stuck_after: 1h, unmanaged: evict }
    undo: none
";

/// A pod that ends and one that does not.
const CLUSTER: &str = "\
apiVersion: v1
kind: Node
metadata: { name: sick }
spec: { unschedulable: true }
---
apiVersion: v1
kind: Pod
metadata: { name: hangs, namespace: default, annotations: { stand-in.farrier.run/stuck: '' } }
spec: { nodeName: sick, containers: [{ name: main, image: example/main }] }
---
apiVersion: v1
kind: Pod
metadata: { name: ended, namespace: default }
spec: { nodeName: sick, terminationGracePeriodSeconds: 0, containers: [{ name: main, image: example/main }] }
";

fn project() -> Project {
    let project = Project::new();
    project.write("runbooks/files/drains.yaml", DRAINS);
    project.write("environments/world/cluster.yaml", CLUSTER);
    project.environment(&json!({ "cluster": { "kind": "k8s", "url": "objects:world/cluster.yaml" } }));
    project
}

/// The first line on standard error with `text` in it.
#[track_caller]
fn says(project: &Project, text: &str) -> String {
    let mut command = project.command(&["run", "drains", "--env", "test", "--yes"]);
    let mut child = Ends(command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap());
    let lines = BufReader::new(child.0.stderr.take().unwrap()).lines().map(Result::unwrap);
    let mut before = Vec::new();
    for line in lines {
        if line.contains(text) {
            return line;
        }
        before.push(line);
    }
    panic!("it ended and never said `{text}`: {before:#?}");
}

const TOLD: &str = "  drain: 1 of 2 pods gone; waiting for default/hangs";

#[test]
fn a_run_says_how_far_it_is() {
    assert_eq!(says(&project(), "pods gone"), TOLD);
}

#[test]
fn a_service_says_how_far_its_runs_are() {
    let serving = Serving::start_in(project(), "");
    let started = serving.post("/api/v1/runbooks/drains/runs", "operator", &json!({ "environment": "test" }));
    let run = started.expect(201).json()["run"].as_str().unwrap().to_owned();
    let stream = serving.events(&run, "", "");
    let mut lines = BufReader::new(stream).lines().map(Result::unwrap);
    lines.find(|line| line == "event: progress").expect("it says nothing");
    let frame: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
    let [data] = frame.as_slice() else { panic!("an id would be a place in the journal: {frame:?}") };
    let told: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    let text = told["text"].as_str().unwrap();
    assert_eq!((&told["node"], &told["total"]), (&json!("drain"), &json!(2)));
    assert!(text.starts_with("pods gone; waiting for default/"), "{text}");
    assert!(told["done"].as_u64().is_some_and(|done| done < 2), "one hangs: {told}");
    let journal = serving.get(&format!("/api/v1/runs/{run}/journal"), "viewer").expect(200);
    assert!(!journal.body.contains("waiting for"), "no journal has it");
}

#[test]
fn a_run_through_a_service_says_how_far_it_is() {
    let serving = Serving::start_in(project(), "");
    assert_eq!(says(&serving.project, "pods gone"), TOLD);
}
