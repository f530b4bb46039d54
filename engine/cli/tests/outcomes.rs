//! Every way a run can end, with its exit code, what stays in the table, and the next command.

mod common;

use common::Project;
use serde_json::json;

const RUN: [&str; 5] = ["run", "ending", "--env", "test", "--yes"];
const TABLE: &str = "environments/tables.sqlite";
const NAMES: &str = "SELECT name FROM names ORDER BY name";

/// Twenty rows, of which the runbook keeps one; then a command that ends as `command` says.
fn project(guards: &str, on_failure: &str, command: &str) -> Project {
    let project = Project::new();
    project.write(
        "runbooks/ending.yaml",
        &format!(
            "runbook: ending\nsummary: Ends in many ways\nowner: tests\nrisk: destructive\n\
             targets: {{ tables: sql, here: host }}\n{guards}\
             steps:\n  table:\n    uses: sql.sync\n    undo: restore\n    with:\n      target: tables\n      table: names\n\
             \x20     key: [name]\n      rows_not_listed: delete\n      rows: [{{ name: n10 }}]\n\
             \x20 command:\n    uses: host.run\n    needs: [table]\n    undo: none\n{on_failure}    with:\n\
             \x20     target: here\n      argv: [{command}]\n"
        ),
    );
    let rows: Vec<String> = (10..30).map(|number| format!("('n{number}')")).collect();
    let schema = "CREATE TABLE names (name text NOT NULL PRIMARY KEY);\nINSERT INTO names VALUES ";
    project.write("environments/schema.sql", &format!("{schema}{};\n", rows.join(", ")));
    project.environment(&json!({
        "tables": { "kind": "sql", "url": "sqlite:tables.sqlite", "init": "schema.sql" },
        "here": { "kind": "host", "local": true },
    }));
    project
}

#[test]
fn ends_and_their_codes() {
    for (on_failure, command, code, state, says, left) in [
        ("", "'true'", 0, "succeeded", "ending succeeded: 20 changes made", 1),
        ("", "'false'", 10, "failed", "ending failed: 19 changes made", 1),
        ("    on_failure: undo\n", "'false'", 11, "undone", "ending failed and was undone", 20),
        ("    on_failure: continue\n", "'false'", 13, "degraded", "ending finished degraded", 1),
    ] {
        let project = project("", on_failure, command);
        let answer = project.farrier(&RUN).expect(code).says(says);
        answer.complains("next: farrier show");
        assert_eq!(project.sqlite(TABLE, NAMES).len(), left, "{state}");
        let view = project.show_last();
        assert_eq!(view["state"], state, "{view:#}");
        let run = project.last_run();
        assert_eq!(
            project.farrier(&["runs", "--state", state, "-o", "json"]).expect(0).json()[0]["id"],
            *run
        );
        project.farrier(&["resume", &run]).expect(64).complains("is over");
        project.farrier(&["fsck"]).expect(0);
    }
}

#[test]
fn a_guard_that_stops_ends_a_run_before_the_first_write() {
    let project = project("guards:\n  - { count: [delete], at_most: 5, otherwise: stop }\n", "", "'true'");
    let plan = project.farrier(&["plan", "ending", "--env", "test"]).expect(22);
    plan.says("beyond guard").says("(19 counted, limit 5)");
    project.farrier(&RUN).expect(22).says("ending failed: no changes");
    project.farrier(&[&RUN[..], &["--accept-guards"]].concat()).expect(22);
    assert_eq!(project.sqlite(TABLE, NAMES).len(), 20);
}

#[test]
fn a_guard_that_asks_parks_the_run_until_someone_accepts() {
    let guards = "guards:\n  - { count: [delete], at_most: 5, otherwise: ask }\n";
    let project = project(guards, "", "'true'");
    project.farrier(&["plan", "ending", "--env", "test"]).expect(22);
    let parked = project.farrier(&RUN).expect(12).says("ending waits for a person: no changes");
    let parked = parked.complains("farrier resume ").complains("--accept-guards --yes");
    let run = project.last_run();
    assert!(parked.err.contains(&format!("farrier resume {} --accept-guards --yes", &run[..13])), "{parked}");
    let shown = project.farrier(&["show", &run]).expect(0).says("parked in test");
    shown.complains("--accept-guards --yes");
    assert_eq!(project.show_last()["guard"], "count: [delete], at_most: 5");
    project.farrier(&["resume", &run, "--yes"]).expect(12);
    assert_eq!(project.sqlite(TABLE, NAMES).len(), 20, "`--yes` does not stand for a guard");
    project.farrier(&["resume", &run, "--yes", "--accept-guards"]).expect(0).says("20 changes made");
    assert_eq!(project.sqlite(TABLE, NAMES), ["n10"]);
    project
        .farrier(&["logs", &run])
        .expect(0)
        .says("tester at")
        .says("accepted the guard `count: [delete], at_most: 5`");
    project.farrier(&["fsck"]).expect(0);
}

#[test]
fn a_token_is_made_for_programs_too() {
    use sha2::Digest as _;
    let made = Project::new().farrier(&["token", "new", "-o", "json"]).expect(0).json();
    let (token, hash) = (made["token"].as_str().unwrap(), made["hash"].as_str().unwrap());
    assert_eq!(hash, format!("sha256:{}", hex::encode(sha2::Sha256::digest(token))));
}
