//! `updatetools` on OpenLDAP and MariaDB: the plan lists exactly what differs, the run makes exactly that, and the
//! second run writes nothing.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fs;

use common::{Project, directory, expected_tables, planned, rows, rows_of, same_rows, site};
use farrier_testkit::mariadb::MariaDb;
use farrier_toolforge::{Dialect, DriftCounts, World};
use serde_json::{Value, json};

/// When the old rows were written.
const BEFORE: i64 = 1_700_000_000;

#[test]
fn a_toolforge_of_3500_tools() {
    let world = World::generate(3_500, 11);
    let project = Project::demo();
    let now = expected_tables(&world, 0);
    let counts = DriftCounts { added: 40, changed: 300, removed: 8, renamed: 4 };
    let drifted = now.drifted(counts, 11, BEFORE);
    let database = MariaDb::shared().fresh_database();
    database.exec(&Dialect::MariaDb.schema());
    database.exec(&drifted.tables.insert_sql(Dialect::MariaDb));
    // No request gives more than 500 entries, so that everything comes in pages.
    let server = directory(&world, Some(500));
    site(&project, &world, &server, &server.url(), &database.url());
    let mark = server.mark();
    let before = server.dump();
    let tables_before = rows_of(&database);

    let plan =
        project.farrier(&["plan", "updatetools", "--env", "test", "--detailed-exitcode", "-o", "json"]);
    let plan = plan.expect(3).json();
    assert_eq!(planned(&plan, "tools_table"), drifted.tools);
    assert_eq!(planned(&plan, "users_table"), drifted.users);
    let total = drifted.tools.count() + drifted.users.count();
    let sum = |kind: &str| plan["summary"][kind].as_u64().unwrap();
    assert_eq!(sum("create") + sum("update") + sum("delete"), total as u64);
    assert_eq!(database.writes(), [""; 0], "a plan writes nothing");
    same_rows(&rows_of(&database), &tables_before, "after a plan");

    let run = ["run", "updatetools", "--env", "test", "--yes"];
    let ended = project.farrier(&run).expect(0).says(&format!("updatetools succeeded: {total} changes made"));
    ended.says(&format!("tools: {}", now.tools.len())).says(&format!("users: {}", now.users.len()));
    // Each row is what the oracle says; the time of the last change is the run's on the rows that were written alone.
    same_rows(&rows_of(&database), &rows(&now), "after the run");
    let started = farrier_started(&project.show_last());
    for line in database.exec("SELECT name, updated FROM tools").lines() {
        let (name, updated) = line.split_once('\t').unwrap();
        let is_in = |names: &Vec<String>| names.iter().any(|known| known == name);
        let written = is_in(&drifted.tools.created) || is_in(&drifted.tools.updated);
        assert_eq!(updated, (if written { started } else { BEFORE }).to_string(), "{name}");
    }
    let view = project.show_last();
    for (step, differences) in [("tools_table", &drifted.tools), ("users_table", &drifted.users)] {
        assert_eq!(&planned(&view, step), differences, "what `show` tells");
    }

    // The second time there is nothing to do, and nothing is asked of the servers that would write.
    let written = database.writes().len();
    assert!(written > 0, "the first run's statements are seen");
    project.farrier(&run).expect(0).says("updatetools succeeded: no changes");
    assert_eq!(database.writes()[written..], [""; 0]);
    project
        .farrier(&["plan", "updatetools", "--env", "test", "--detailed-exitcode"])
        .expect(0)
        .says("No changes.");
    assert_eq!(server.writes_since(mark), [""; 0]);
    assert!(server.dump() == before, "the directory is as it was");
    // Passwords stay where they are.
    let secrets = [server.reader_password.as_str(), password(&database.url())].map(str::to_owned);
    for command in
        [&["logs", &project.last_run(), "-o", "json"][..], &["show", &project.last_run(), "-o", "json"]]
    {
        let said = project.farrier(command).expect(0);
        assert!(secrets.iter().all(|secret| !said.out.contains(secret)), "a password is shown");
    }
    let stored = fs::read(project.path(".farrier/farrier.db")).unwrap();
    for secret in secrets {
        assert!(
            !stored.windows(secret.len()).any(|bytes| bytes == secret.as_bytes()),
            "a password is stored"
        );
    }
    project.farrier(&["fsck"]).expect(0).says("everything is whole");
}

fn password(url: &str) -> &str {
    let (_, rest) = url.split_once(':').unwrap();
    rest.split_once(':').unwrap().1.split_once('@').unwrap().0
}

/// When the run of a `show` began, in seconds since 1970.
fn farrier_started(view: &Value) -> i64 {
    let at: jiff::Timestamp = view["created_at"].as_str().unwrap().parse().unwrap();
    at.as_second()
}

/// An account that may only read is enough for a plan, and a run with it fails and changes nothing.
#[test]
fn reading_needs_no_right_to_write() {
    let world = World::generate(120, 12);
    let project = Project::demo();
    let now = expected_tables(&world, 0);
    let database = MariaDb::shared().fresh_database();
    database.exec(&Dialect::MariaDb.schema());
    let drifted = now.drifted(DriftCounts { added: 4, changed: 12, removed: 3, renamed: 2 }, 12, BEFORE);
    database.exec(&drifted.tables.insert_sql(Dialect::MariaDb));
    let server = directory(&world, None);
    site(&project, &world, &server, &server.url(), &database.reader_url());
    let plan = project.farrier(&["plan", "updatetools", "--env", "test", "-o", "json"]).expect(0).json();
    assert_eq!(planned(&plan, "tools_table"), drifted.tools);
    let before = rows_of(&database);
    let failed = project.farrier(&["run", "updatetools", "--env", "test", "--yes"]).expect(10);
    failed.says("catalogue").complains("✗ tools_table");
    same_rows(&rows_of(&database), &before, "after a run that may not write");
    assert_eq!(project.show_last()["state"], json!("failed"));
}
