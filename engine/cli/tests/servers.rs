//! `updatetools` on OpenLDAP and MariaDB: the plan lists exactly what differs, the run makes exactly that, and the
//! second run writes nothing.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod common;

use std::fs;

use common::{Project, directory, expected_tables, planned, site};
use farrier_testkit::mariadb::MariaDb;
use farrier_toolforge::{Dialect, DriftCounts, World};
use serde_json::{Value, json};

/// When the old rows were written.
const BEFORE: i64 = 1_700_000_000;

/// Every row as `id`, then texts in hexadecimal, then, for tools, the time of its last change.
const TOOLS: &str = "SELECT id, LOWER(HEX(name)), LOWER(HEX(home)), LOWER(HEX(description)), LOWER(HEX(toolinfo)), \
                     LOWER(HEX(maintainers)), updated FROM tools ORDER BY id";
const USERS: &str =
    "SELECT id, LOWER(HEX(name)), LOWER(HEX(wikitech)), LOWER(HEX(home)) FROM users ORDER BY id";

#[test]
fn a_toolforge_of_3500_tools() {
    let world = World::generate(3_500, 11);
    let project = Project::demo();
    let now = expected_tables(&world, 0);
    let counts = DriftCounts { added: 40, changed: 300, removed: 15, renamed: 5 };
    let drifted = now.drifted(counts, 11, BEFORE);
    let database = MariaDb::shared().fresh_database();
    database.exec(&Dialect::MariaDb.schema());
    database.exec(&drifted.tables.insert_sql(Dialect::MariaDb));
    // No request gives more than 500 entries, so that everything comes in pages.
    let server = directory(&world, Some(500));
    site(&project, &world, &server, &server.url(), &database.url());
    let mark = server.mark();
    let before = server.dump();
    let tables_before = database.exec(TOOLS) + &database.exec(USERS);

    let plan =
        project.farrier(&["plan", "updatetools", "--env", "test", "--detailed-exitcode", "-o", "json"]);
    let plan = plan.expect(3).json();
    assert_eq!(planned(&plan, "tools_table"), drifted.tools);
    assert_eq!(planned(&plan, "users_table"), drifted.users);
    let total = drifted.tools.count() + drifted.users.count();
    let sum = |kind: &str| plan["summary"][kind].as_u64().unwrap();
    assert_eq!(sum("create") + sum("update") + sum("delete"), total as u64);
    assert_eq!(database.writes(), [""; 0], "a plan writes nothing");
    assert!(database.exec(TOOLS) + &database.exec(USERS) == tables_before, "a plan changes nothing");

    let run = ["run", "updatetools", "--env", "test", "--yes"];
    let ended = project.farrier(&run).expect(0).says(&format!("updatetools succeeded: {total} changes made"));
    ended.says(&format!("tools: {}", now.tools.len())).says(&format!("users: {}", now.users.len()));
    // Each row is what the oracle says; the time of the last change is the run's on the rows that were written alone.
    let texts = |text: &Option<String>| text.as_deref().map_or("NULL".to_owned(), hex::encode);
    let found = database.exec(TOOLS);
    let found: Vec<&str> = found.lines().collect();
    let mut tools: Vec<_> = now.tools.iter().collect();
    tools.sort_by_key(|row| row.id);
    assert_eq!(found.len(), tools.len());
    let started = farrier_started(&project.show_last());
    for (found, row) in found.iter().zip(tools) {
        let written = drifted.tools.created.contains(&row.name) || drifted.tools.updated.contains(&row.name);
        let updated = if written { started } else { BEFORE };
        let (name, home) = (hex::encode(&row.name), hex::encode(&row.home));
        let [description, toolinfo, maintainers] =
            [&row.description, &row.toolinfo, &row.maintainers].map(texts);
        let expected =
            format!("{}\t{name}\t{home}\t{description}\t{toolinfo}\t{maintainers}\t{updated}", row.id);
        assert_eq!(*found, expected, "{}", row.name);
    }
    let mut users: Vec<_> = now.users.iter().collect();
    users.sort_by_key(|row| row.id);
    let expected: Vec<String> = users
        .iter()
        .map(|row| {
            let [name, wikitech, home] = [&row.name, &row.wikitech, &row.home].map(hex::encode);
            format!("{}\t{name}\t{wikitech}\t{home}", row.id)
        })
        .collect();
    assert_eq!(database.exec(USERS).lines().collect::<Vec<_>>(), expected);
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
    let before = database.exec(TOOLS);
    let failed = project.farrier(&["run", "updatetools", "--env", "test", "--yes"]).expect(10);
    failed.says("catalogue").complains("✗ tools_table");
    assert!(database.exec(TOOLS) == before);
    assert_eq!(project.show_last()["state"], json!("failed"));
}
