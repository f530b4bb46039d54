//! Environments that keep their runs in a place of their own.

use serde_json::json;

use crate::common::Project;

/// Guards "a run is found wherever it is kept": commands that name a run look into the stores of all environments.
#[test]
fn runs_of_an_environment_with_its_own_store_are_found() {
    let project = Project::new();
    project.write(
        "runbooks/wait.yaml",
        "runbook: wait\nsummary: Waits\nowner: tests\nrisk: read_only\nsignals: [{ name: go, who: [tester], then: continue }]\nlocks: [{ name: door }]\n\
         steps:\n  pause: { uses: flow.wait, with: { signal: go } }\n",
    );
    project.write("environments/here.yaml", &json!({ "environment": "here" }).to_string());
    project.write(
        "environments/apart.yaml",
        &json!({ "environment": "apart", "store": { "sqlite": "elsewhere" } }).to_string(),
    );
    project.farrier(&["run", "wait", "--env", "apart", "--yes", "--patience", "0s"]).expect(15);
    let apart = project.last_run();
    assert!(project.path("environments/elsewhere/farrier.db").exists() && !project.path("data").exists());
    project.farrier(&["locks"]).expect(0).says("door");
    project.farrier(&["run", "wait", "--env", "here", "--yes", "--patience", "0s"]).expect(15);
    let here = project.last_run();
    let runs = project.farrier(&["runs", "-o", "json"]).expect(0).json();
    let ids: Vec<&str> = runs.as_array().unwrap().iter().map(|run| run["id"].as_str().unwrap()).collect();
    assert_eq!(ids, [&here, &apart], "newest first, over both stores");
    for run in [&here, &apart] {
        project.farrier(&["show", run]).expect(0).says("pause");
        project.farrier(&["logs", run]).expect(0).says("created");
        project.farrier(&["signal", run, "go"]).expect(0);
        project.farrier(&["resume", run]).expect(0).says("succeeded");
    }
    project.farrier(&["show", "0"]).expect(64).complains("several runs' ids begin with `0`");
    project.farrier(&["show", "ffff"]).expect(64).complains("no run's id begins with `ffff`");
}
