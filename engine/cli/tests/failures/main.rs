//! What goes wrong with directories and databases: the error names the target and the step, no table holds a part of
//! anything, the run is what `show` says it is, and once the trouble is over the next run makes it right.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

#[path = "../common/mod.rs"]
mod common;

mod lost_writes;

use common::{Answer, Project, Started, directory, expected_tables, rows, rows_of, same_rows};
use farrier_testkit::mariadb::{Database, MariaDb};
use farrier_testkit::proxy::{CutProxy, Direction};
use farrier_testkit::slapd::{self, Slapd};
use farrier_testkit::wait_until;
use farrier_toolforge::{Dialect, DriftCounts, Drifted, Tables, World};
use sqlx::mysql::{MySqlConnectOptions, MySqlConnection};
use sqlx::{ConnectOptions as _, Connection as _, Executor as _};

const PLAN: [&str; 4] = ["plan", "updatetools", "--env", "test"];
const RUN: [&str; 5] = ["run", "updatetools", "--env", "test", "--yes"];
const COUNTS: DriftCounts = DriftCounts { added: 4, changed: 10, removed: 3, renamed: 2 };

/// A Toolforge whose tables have fallen behind, with a proxy before each server.
struct Stage {
    project: Project,
    world: World,
    server: Slapd,
    to_directory: CutProxy,
    database: Database,
    to_database: CutProxy,
    now: Tables,
    drifted: Drifted,
}

impl Stage {
    fn new() -> Stage {
        Stage::of(World::generate(60, 21), |_| {})
    }

    /// The tables follow from `world`, the directory from `world` as `change` makes it.
    fn of(mut world: World, change: impl FnOnce(&mut World)) -> Stage {
        let now = expected_tables(&world, 0);
        change(&mut world);
        // Pages of twenty entries.
        let server = directory(&world, Some(20));
        let to_directory = CutProxy::to_url(&server.url());
        let database = MariaDb::shared().fresh_database();
        let to_database = CutProxy::to_url(&database.url());
        let drifted = now.drifted(COUNTS, 21, 1_700_000_000);
        database.exec(&Dialect::MariaDb.schema());
        let stage = Stage {
            project: Project::demo(),
            world,
            server,
            to_directory,
            database,
            to_database,
            now,
            drifted,
        };
        stage.fall_behind();
        stage.lead_to(&stage.to_directory.url());
        stage
    }

    fn fall_behind(&self) {
        self.database.exec("DELETE FROM tools; DELETE FROM users");
        self.database.exec(&self.drifted.tables.insert_sql(Dialect::MariaDb));
    }

    fn lead_to(&self, directory: &str) {
        common::site(&self.project, &self.world, &self.server, directory, &self.to_database.url());
    }

    /// A statement of the database takes no longer than this.
    fn hurry(&self) {
        let text = self.project.read("environments/test.yaml");
        let hurried = text.replace("\"kind\":\"sql\"", "\"kind\":\"sql\",\"statement_timeout\":\"1s\"");
        assert_ne!(text, hurried);
        self.project.write("environments/test.yaml", &hurried);
    }

    /// Nothing stands in the way any more: a run makes the tables right, and another one has nothing to do.
    #[track_caller]
    fn recovers(&self) {
        self.project.farrier(&RUN).expect(0);
        same_rows(&rows_of(&self.database), &rows(&self.now), "once the trouble is over");
        self.project.farrier(&RUN).expect(0).says("no changes");
        self.project.farrier(&["fsck"]).expect(0);
    }

    #[track_caller]
    fn is_untouched(&self, when: &str) {
        same_rows(&rows_of(&self.database), &rows(&self.drifted.tables), when);
    }
}

/// What a failure must say, and where.
struct Said<'a> {
    code: i32,
    /// Any of these steps may be the first to notice.
    steps: &'a [&'a str],
    target: &'a str,
    texts: &'a [&'a str],
}

impl Said<'_> {
    /// It is said of a plan, which ends with 1 whatever could not be read: the step stands beside its failure.
    #[track_caller]
    fn of_plan(&self, answer: Answer) {
        let answer = answer.expect(1).says("The plan is not complete:");
        let named =
            |line: &str| line.contains(": target `") && self.steps.iter().any(|step| line.contains(step));
        assert!(answer.out.lines().any(named), "no line names step and target: {answer}");
        self.holds(&answer.out, &answer);
    }

    /// It is said of a run, at once and later.
    #[track_caller]
    fn of_run(&self, project: &Project, answer: Answer) {
        let answer = answer.expect(self.code).says("updatetools failed: ");
        let noticed: Vec<&&str> =
            self.steps.iter().filter(|step| answer.err.contains(&format!("✗ {step}: "))).collect();
        assert!(!noticed.is_empty(), "no step is named: {answer}");
        self.holds(&answer.out, &answer);
        let view = project.show_last();
        assert_eq!(view["state"], "failed", "{view:#}");
        for step in noticed {
            let step =
                view["steps"].as_array().unwrap().iter().find(|known| known["node"] == **step).unwrap();
            assert_eq!(step["state"], "failed", "{view:#}");
            self.holds(step["failure"].as_str().unwrap(), &answer);
        }
        self.holds(view["failure"].as_str().unwrap(), &answer);
    }

    #[track_caller]
    fn holds(&self, text: &str, answer: &Answer) {
        let target = format!("target `{}`", self.target);
        for part in self.texts.iter().copied().chain([target.as_str()]) {
            assert!(text.contains(part), "`{part}` is missing in `{text}`: {answer}");
        }
    }
}

const DIRECTORY_STEPS: [&str; 3] = ["accounts", "groups", "members"];

#[test]
fn a_directory_that_is_down() {
    let mut stage = Stage::new();
    stage.server.stop();
    let said = Said { code: 69, steps: &DIRECTORY_STEPS, target: "directory", texts: &["ldap://127.0.0.1:"] };
    // Through the proxy a connection is made and ends; without it none is made.
    for url in [stage.to_directory.url(), stage.server.url()] {
        stage.lead_to(&url);
        said.of_plan(stage.project.farrier(&PLAN));
        said.of_run(&stage.project, stage.project.farrier(&RUN));
        stage.is_untouched("while the directory is down");
    }
    stage.server.start_again();
    stage.recovers();
}

#[test]
fn a_directory_that_is_empty() {
    let stage = Stage::new();
    let empty = Slapd::start(slapd::Options::default());
    let text = stage.project.read("environments/test.yaml").replace(&stage.to_directory.url(), &empty.url());
    stage.project.write("environments/test.yaml", &text);
    stage.project.secret("reader.secret", &empty.reader_password);
    let plan = stage.project.farrier(&PLAN).expect(1).says("The plan is not complete:");
    let plan = plan.says("nothing was changed");
    assert!(DIRECTORY_STEPS.iter().any(|step| plan.out.contains(&format!("{step} "))), "{plan}");
    stage.project.farrier(&RUN).expect(10).says("updatetools failed: no changes").says("nothing was changed");
    assert_eq!(stage.project.show_last()["state"], "failed");
    stage.is_untouched("when the directory is empty");
    stage.lead_to(&stage.to_directory.url());
    stage.recovers();
}

#[test]
fn a_limit_of_the_directory() {
    let stage = Stage::new();
    let limits =
        format!("limits dn.exact={} size.soft=5 size.hard=5 size.prtotal=12\n", stage.server.reader_dn);
    let options = slapd::Options {
        entries: stage.world.ldif_to_add(),
        configuration: limits,
        ..slapd::Options::default()
    };
    let strict = Slapd::start(options);
    let text = stage.project.read("environments/test.yaml").replace(&stage.to_directory.url(), &strict.url());
    stage.project.write("environments/test.yaml", &text);
    stage.project.secret("reader.secret", &strict.reader_password);
    let said = Said { code: 10, steps: &DIRECTORY_STEPS, target: "directory", texts: &["limit"] };
    said.of_plan(stage.project.farrier(&PLAN));
    said.of_run(&stage.project, stage.project.farrier(&RUN));
    stage.is_untouched("when the directory gives a part");
    stage.lead_to(&stage.to_directory.url());
    stage.recovers();
}

#[test]
fn a_second_page_that_does_not_come() {
    let stage = Stage::new();
    // The entry of a tool that stands on a later page.
    let entry =
        format!("uid={}.{},ou=people,ou=servicegroups", stage.world.project, stage.world.tools[50].name);
    let said =
        Said { code: 69, steps: &DIRECTORY_STEPS, target: "directory", texts: &["the connection", "broke"] };
    stage.to_directory.cut_before(Direction::ToClient, &entry);
    said.of_plan(stage.project.farrier(&PLAN));
    stage.to_directory.cut_before(Direction::ToClient, &entry);
    said.of_run(&stage.project, stage.project.farrier(&RUN));
    assert_eq!(stage.to_directory.cuts(), 2);
    stage.is_untouched("without the second page");
    stage.recovers();
}

/// Wherever an answer of the directory is cut, it is asked again or the run fails: never is a part taken for the whole.
#[test]
fn answers_of_the_directory_cut_anywhere() {
    let stage = Stage::new();
    stage.project.farrier(&PLAN).expect(0);
    let whole = stage.to_directory.forwarded(Direction::ToClient);
    for part in 1..8 {
        stage.fall_behind();
        stage.to_directory.cut_after_bytes(Direction::ToClient, whole * part / 8);
        let answer = stage.project.farrier(&RUN);
        match answer.code {
            Some(0) => same_rows(&rows_of(&stage.database), &rows(&stage.now), "after asking again"),
            Some(69) => stage.is_untouched("after a part of the answers"),
            _ => panic!("{answer}"),
        }
        stage.to_directory.heal();
    }
    stage.recovers();
}

const TABLE_STEPS: [&str; 2] = ["tools_table", "users_table"];

#[test]
fn a_database_that_is_down() {
    let stage = Stage::new();
    stage.to_database.refuse(true);
    let said = Said { code: 69, steps: &TABLE_STEPS, target: "catalogue", texts: &[] };
    said.of_plan(stage.project.farrier(&PLAN));
    said.of_run(&stage.project, stage.project.farrier(&RUN));
    stage.is_untouched("while the database is down");
    stage.to_database.heal();
    stage.recovers();
}

/// Planning finds it before anything is written, also when only one of the tables is wrong.
#[test]
fn a_table_that_is_not_as_the_runbook_knows_it() {
    for (sql, undo, step, text) in [
        ("RENAME TABLE users TO people", "RENAME TABLE people TO users", "users_table", "users"),
        (
            "ALTER TABLE tools RENAME COLUMN toolinfo TO info",
            "ALTER TABLE tools RENAME COLUMN info TO toolinfo",
            "tools_table",
            "toolinfo",
        ),
    ] {
        let stage = Stage::new();
        stage.database.exec(sql);
        let said = Said { code: 10, steps: &[step], target: "catalogue", texts: &[text] };
        said.of_plan(stage.project.farrier(&PLAN));
        said.of_run(&stage.project, stage.project.farrier(&RUN));
        stage.database.exec(undo);
        stage.is_untouched(sql);
        stage.recovers();
    }
}

/// Found by planning, before the database has to refuse it.
#[test]
fn two_rows_that_the_database_holds_to_be_the_same() {
    let stage = Stage::of(World::generate(60, 21), |world| {
        let mut members = world.people.iter_mut().filter(|person| person.in_project);
        let (one, other) = (members.next().unwrap(), members.next().unwrap());
        one.wiki_name.clone_from(&other.wiki_name);
    });
    let texts = &["both have wikitech=", "unique key"];
    let said = Said { code: 10, steps: &["users_table"], target: "catalogue", texts };
    said.of_plan(stage.project.farrier(&PLAN));
    said.of_run(&stage.project, stage.project.farrier(&RUN));
    stage.is_untouched("when two rows would be the same");
}

/// What planning cannot know: that table stays as it was, and the other one is right.
#[test]
fn a_row_that_the_database_refuses() {
    let stage = Stage::new();
    let name = stage.drifted.users.created.last().unwrap();
    let check = format!("ALTER TABLE users ADD CONSTRAINT not_welcome CHECK (name <> '{name}')");
    stage.database.exec(&check);
    stage.project.farrier(&PLAN).expect(0);
    let said = Said { code: 10, steps: &["users_table"], target: "catalogue", texts: &["not_welcome"] };
    let answer = stage.project.farrier(&RUN).complains("✓ tools_table: ");
    said.of_run(&stage.project, answer);
    let [_, old_users] = rows(&stage.drifted.tables);
    let [new_tools, _] = rows(&stage.now);
    same_rows(&rows_of(&stage.database), &[new_tools, old_users], "when one table is refused");
    stage.database.exec("ALTER TABLE users DROP CONSTRAINT not_welcome");
    stage.recovers();
}

/// Someone else at the database.
struct Other {
    runtime: tokio::runtime::Runtime,
    connection: MySqlConnection,
}

impl Other {
    fn at(database: &Database) -> Other {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let options: MySqlConnectOptions = database.url().parse().unwrap();
        let connection = runtime.block_on(options.connect()).unwrap();
        Other { runtime, connection }
    }

    #[track_caller]
    fn run(&mut self, sql: &str) {
        self.runtime.block_on(self.connection.execute(sqlx::AssertSqlSafe(sql.to_owned()))).unwrap();
    }

    fn leave(self) {
        self.runtime.block_on(self.connection.close()).unwrap();
    }
}

#[test]
fn a_lock_that_someone_holds() {
    let stage = Stage::new();
    stage.hurry();
    let mut other = Other::at(&stage.database);
    other.run("BEGIN");
    other.run("UPDATE tools SET updated = updated + 1");
    let said = Said { code: 10, steps: &["tools_table"], target: "catalogue", texts: &[] };
    // Reading is not held up.
    stage.project.farrier(&PLAN).expect(0);
    said.of_run(&stage.project, stage.project.farrier(&RUN));
    other.run("ROLLBACK");
    other.leave();
    let [tools, _] = rows_of(&stage.database);
    assert_eq!(tools, rows(&stage.drifted.tables)[0], "not a part of the table was written");
    stage.recovers();
}

#[test]
fn a_deadlock() {
    let stage = Stage::new();
    let (first, second) = (&stage.drifted.tools.deleted[0], &stage.drifted.tools.updated[0]);
    stage.database.exec("CREATE TABLE weight (n INT PRIMARY KEY)");
    let mut other = Other::at(&stage.database);
    other.run("BEGIN");
    // InnoDB makes the lighter transaction give way.
    let numbers: Vec<String> = (0..1000).map(|n| format!("({n})")).collect();
    other.run(&format!("INSERT INTO weight VALUES {}", numbers.join(",")));
    other.run(&format!("UPDATE tools SET updated = 8 WHERE name = '{second}'"));
    let mut started = Started::from(stage.project.command(&RUN));
    // The run has deleted rows and waits for the one that is held.
    let waiting = format!(
        "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'Updating' AND db = '{}'",
        stage.database.name()
    );
    wait_until("the run waits for the lock", || {
        stage.database.exec(&waiting).trim() != "0" || started.child.try_wait().unwrap().is_some()
    });
    other.run(&format!("UPDATE tools SET updated = 8 WHERE name = '{first}'"));
    let said = Said { code: 10, steps: &["tools_table"], target: "catalogue", texts: &["eadlock"] };
    said.of_run(&stage.project, started.end());
    other.run("ROLLBACK");
    other.leave();
    let [tools, _] = rows_of(&stage.database);
    assert_eq!(tools, rows(&stage.drifted.tables)[0], "not a part of the table was written");
    stage.recovers();
}

#[test]
fn a_connection_that_is_cut_within_a_transaction() {
    let stage = Stage::new();
    // The deletes and updates of this table were answered; this row does not arrive.
    let row = stage.drifted.tools.created.last().unwrap();
    stage.to_database.cut_before(Direction::ToServer, row);
    let said = Said { code: 69, steps: &["tools_table"], target: "catalogue", texts: &[] };
    said.of_run(&stage.project, stage.project.farrier(&RUN));
    assert_eq!(stage.to_database.cuts(), 1);
    let [tools, _] = rows_of(&stage.database);
    assert_eq!(tools, rows(&stage.drifted.tables)[0], "not a part of the table was written");
    stage.recovers();
}

/// Wherever the connection to the database is cut: each table is the old one or the new one, and the next run is right.
#[test]
fn requests_to_the_database_cut_anywhere() {
    let stage = Stage::new();
    let before = stage.to_database.forwarded(Direction::ToServer);
    stage.project.farrier(&RUN).expect(0);
    let whole = stage.to_database.forwarded(Direction::ToServer) - before;
    for part in 1..12 {
        stage.fall_behind();
        stage.to_database.cut_after_bytes(Direction::ToServer, whole * part / 12);
        let answer = stage.project.farrier(&RUN);
        assert!(matches!(answer.code, Some(0 | 10 | 12 | 69)), "{answer}");
        stage.to_database.heal();
        let old_and_new = rows(&stage.drifted.tables).into_iter().zip(rows(&stage.now));
        for (found, (old, new)) in rows_of(&stage.database).into_iter().zip(old_and_new) {
            assert!(found == old || found == new, "a part of a table was written, cut {part}: {answer}");
        }
        stage.recovers();
    }
}
