//! The shipped runbook `updatetools` against the oracle: on the embedded stand-ins, and on real servers.
//!
//! Each case makes a world, lets its tables fall behind, plans, runs, and compares every byte of both tables with what
//! the oracle works out from the same LDIF text and files.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use farrier_action::{ActionRegistry, Binding, Targets};
use farrier_exec::driver::{ProceedAlways, Start, Unobserved, World as Site};
use farrier_exec::{Driver, Ended, Options, Plan};
use farrier_model::event::Trigger;
use farrier_model::{ChangeKind, RunState, Value};
use farrier_runbook::{Bundle, compile_bundle};
use farrier_store::{Clock, MemoryStore};
use farrier_testkit::mariadb::MariaDb;
use farrier_testkit::postgres::Postgres;
use farrier_testkit::slapd::{self, Slapd};
use farrier_toolforge::{Dialect, Differences, DriftCounts, Drifted, Tables, World, oracle};
use serde_json::json;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use support::{dump, same_tables, selects};
use tempfile::TempDir;

/// When the runs take place.
const NOW: i64 = 1_800_000_000;
/// When the old rows were written.
const BEFORE: i64 = 1_700_000_000;
const COUNTS: DriftCounts = DriftCounts { added: 4, changed: 12, removed: 3, renamed: 2 };

fn registry() -> Arc<ActionRegistry> {
    let mut registry = ActionRegistry::default();
    farrier_plugin_data::register(&mut registry).unwrap();
    farrier_plugin_files::register(&mut registry).unwrap();
    farrier_plugin_ldap::register(&mut registry).unwrap();
    farrier_plugin_sql::register(&mut registry).unwrap();
    Arc::new(registry)
}

fn runbook(registry: &ActionRegistry) -> Bundle {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../runbooks/directory/updatetools.yaml");
    let texts = [("updatetools".into(), fs::read_to_string(path).unwrap().into())].into();
    compile_bundle("updatetools", &texts, registry.catalog())
        .unwrap_or_else(|mistakes| panic!("the runbook does not compile:\n{}", mistakes.render(false)))
}

/// A world, and the targets that lead to it.
struct Rig {
    folder: TempDir,
    driver: Driver,
    start: Start,
}

impl Rig {
    /// Homes come from `world`; `directory` and `catalogue` are settings of those targets.
    fn new(
        world: &World,
        folder: TempDir,
        directory: serde_json::Value,
        catalogue: serde_json::Value,
    ) -> Rig {
        world.write_homes(&folder.path().join("homes")).unwrap();
        let registry = registry();
        let homes = json!({ "roots": { "tool_homes": "homes" } });
        let bindings =
            [("directory", "ldap", directory), ("homes", "files", homes), ("catalogue", "sql", catalogue)]
                .map(|(alias, kind, config)| Binding {
                    alias: alias.into(),
                    kind: kind.into(),
                    config: Value::from_json(&config.to_string()).unwrap(),
                });
        let targets = Targets::new(folder.path().to_owned(), bindings.into(), [].into());
        let (_, cancel) = tokio::sync::watch::channel(farrier_exec::Halt::No);
        let clock = Clock::from_fn(|| jiff::Timestamp::from_second(NOW).unwrap());
        let start = Start {
            bundle: Arc::new(runbook(&registry)),
            world: Site::new("test", Arc::new(targets)),
            inputs: Value::map([("project", Value::text("tools"))]),
            trigger: Trigger::Manual { by: "test".into() },
            plan: None,
        };
        let store = Arc::new(MemoryStore::new(clock.clone()));
        let driver = Driver::new(registry, store, clock, Options::default(), Arc::new(Unobserved), cancel);
        Rig { folder, driver, start }
    }

    /// On the embedded stand-ins: an LDIF file and a SQLite database.
    async fn embedded(world: &World, tables: &Tables) -> Rig {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("directory.ldif"), world.ldif()).unwrap();
        let catalogue = json!({ "url": "sqlite:tables.sqlite" });
        let rig = Rig::new(world, folder, json!({ "url": "ldif:directory.ldif" }), catalogue);
        let sql = Dialect::Sqlite.schema() + &tables.insert_sql(Dialect::Sqlite);
        let mut connection = rig.connect().await;
        sqlx::raw_sql(sqlx::AssertSqlSafe(sql)).execute(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        rig
    }

    async fn connect(&self) -> SqliteConnection {
        let file = self.folder.path().join("tables.sqlite");
        let options = SqliteConnectOptions::new().filename(file).create_if_missing(true);
        options.connect().await.unwrap()
    }

    async fn plan(&self) -> Plan {
        self.driver.plan(&self.start).await.unwrap()
    }

    async fn run(&self) -> Ended {
        self.driver.start(&self.start, &ProceedAlways, |_| {}).await.unwrap()
    }

    /// Both tables of the embedded database.
    async fn sqlite(&self) -> (String, String) {
        let mut connection = self.connect().await;
        let mut texts = Vec::new();
        for select in selects(Dialect::Sqlite) {
            let rows = sqlx::query(sqlx::AssertSqlSafe(select)).fetch_all(&mut connection).await.unwrap();
            let line = |row: &sqlx::sqlite::SqliteRow| {
                let cells = (0..row.len()).map(|at| match row.try_get::<String, _>(at) {
                    Ok(text) => text,
                    Err(_) => row.get::<i64, _>(at).to_string(),
                });
                cells.collect::<Vec<_>>().join("\t")
            };
            texts.push(rows.iter().map(line).collect::<Vec<_>>().join("\n"));
        }
        let users = texts.pop().unwrap();
        (texts.pop().unwrap(), users)
    }
}

/// What the tables hold once the oracle had its way at `now`.
fn current(world: &World, now: i64) -> Tables {
    let homes = tempfile::tempdir().unwrap();
    world.write_homes(homes.path()).unwrap();
    oracle::expected(&world.ldif(), homes.path(), &world.project, now).tables().unwrap()
}

/// What a run at [`NOW`] must leave: rows that were right keep the time of their last change.
fn after(now: &Tables, drifted: &Drifted) -> Tables {
    let mut tables = now.clone();
    for row in &mut tables.tools {
        let written = drifted.tools.created.contains(&row.name) || drifted.tools.updated.contains(&row.name);
        row.updated = if written { NOW } else { BEFORE };
    }
    tables
}

/// The changes of a step, by the names in their objects.
fn planned(plan: &Plan, step: &str) -> Differences {
    let step = plan.steps.iter().find(|known| &*known.id == step).unwrap();
    let mut found = Differences::default();
    for change in &step.changes {
        let (_, name) =
            change.object.split_once("name=").unwrap_or_else(|| panic!("no name in `{}`", change.object));
        let list = match change.kind {
            ChangeKind::Create => &mut found.created,
            ChangeKind::Update => &mut found.updated,
            ChangeKind::Delete => &mut found.deleted,
            other => panic!("{other:?} in a table"),
        };
        list.push(name.to_owned());
    }
    for names in [&mut found.created, &mut found.updated, &mut found.deleted] {
        names.sort_unstable();
    }
    found
}

async fn brings_up_to_date(rig: &Rig, drifted: &Drifted, expected: &Tables) {
    let plan = rig.plan().await;
    assert_eq!(plan.failure, None);
    assert_eq!(planned(&plan, "tools_table"), drifted.tools);
    assert_eq!(planned(&plan, "users_table"), drifted.users);
    let ended = rig.run().await;
    assert_eq!(ended.state, RunState::Succeeded, "{:?} {:?}", ended.failure, ended.parked);
    assert_eq!(ended.changed, (drifted.tools.count() + drifted.users.count()) as u64);
    assert_eq!(ended.outputs.get("tools"), Some(&Value::Int(expected.tools.len() as i64)));
    let again = rig.plan().await;
    assert!(again.is_empty(), "a second run has nothing to do: {:?} {:?}", again.summary, again.failure);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn drifted_tables_are_brought_up_to_date_and_nothing_else_is_written() {
    for seed in 1..=4 {
        let world = World::generate(150, seed);
        let now = current(&world, NOW);
        let drifted = now.drifted(COUNTS, seed, BEFORE);
        let rig = Rig::embedded(&world, &drifted.tables).await;
        brings_up_to_date(&rig, &drifted, &now).await;
        same_tables(&rig.sqlite().await, &dump(&after(&now, &drifted)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn empty_tables_are_filled() {
    let world = World::generate(60, 9);
    let rig = Rig::embedded(&world, &Tables::default()).await;
    assert_eq!(rig.run().await.state, RunState::Succeeded);
    same_tables(&rig.sqlite().await, &dump(&current(&world, NOW)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deleted_tool_disappears_and_its_name_stays_among_maintainers() {
    let mut world = World::generate(60, 2);
    let old = current(&world, BEFORE);
    let removed = world.tools[11].name.clone();
    world.tools[12].members = Some(vec![farrier_toolforge::Member::Tool(removed.clone())]);
    world.remove_tool(&removed).unwrap();
    let rig = Rig::embedded(&world, &old).await;
    assert_eq!(rig.run().await.state, RunState::Succeeded);
    let mut expected = current(&world, BEFORE);
    expected
        .tools
        .iter_mut()
        .filter(|row| row.name == world.tools[11].name)
        .for_each(|row| row.updated = NOW);
    same_tables(&rig.sqlite().await, &dump(&expected));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_right_is_refused_and_the_tables_stay_as_they_are() {
    let good = World::generate(60, 3);
    let old = current(&good, BEFORE).drifted(COUNTS, 3, BEFORE).tables;
    type Break = fn(&mut World);
    let cases: [(&str, Break, &str); 3] = [
        (
            "two tools with one number",
            |world| assert!(world.duplicate_number().is_some()),
            "the same uidNumber",
        ),
        ("no tools", |world| world.tools.clear(), "no tools"),
        (
            "no members",
            |world| world.people.iter_mut().for_each(|person| person.in_project = false),
            "no members",
        ),
    ];
    for (name, break_it, message) in cases {
        let mut world = good.clone();
        break_it(&mut world);
        let rig = Rig::embedded(&world, &old).await;
        let failure = rig.plan().await.failure.unwrap_or_else(|| panic!("{name} is planned"));
        assert!(failure.to_string().contains(message), "{name}: {failure}");
        assert_eq!(rig.run().await.state, RunState::Failed, "{name}");
        same_tables(&rig.sqlite().await, &dump(&old));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_directory_that_lost_many_tools_waits_for_a_person() {
    let mut world = World::generate(200, 5);
    let old = current(&world, BEFORE);
    world.tools.truncate(100);
    let rig = Rig::embedded(&world, &old).await;
    let plan = rig.plan().await;
    assert!(plan.tripped().is_some(), "{:?}", plan.guards);
    let ended = rig.run().await;
    assert_eq!(ended.state, RunState::Parked);
    same_tables(&rig.sqlite().await, &dump(&old));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn homes_that_are_not_mounted_do_not_empty_the_texts() {
    let world = World::generate(60, 6);
    let old = current(&world, BEFORE);
    let rig = Rig::embedded(&world, &old).await;
    fs::remove_dir_all(rig.folder.path().join("homes")).unwrap();
    assert_eq!(rig.run().await.state, RunState::Failed, "the folder of the homes is gone");
    fs::create_dir(rig.folder.path().join("homes")).unwrap();
    let ended = rig.run().await;
    assert_eq!(ended.state, RunState::Failed, "it is there and empty");
    assert!(ended.failure.unwrap().to_string().contains("mounted"));
    same_tables(&rig.sqlite().await, &dump(&old));
}

/// The settings for `scheme://USER:PASSWORD@HOST/NAME`: addresses hold no passwords.
fn with_password_file(folder: &Path, url: &str) -> serde_json::Value {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (account, place) = rest.split_once('@').unwrap();
    let (user, password) = account.split_once(':').unwrap();
    json!({ "url": format!("{scheme}://{user}@{place}"), "password": { "file": secret(folder, "database", password) } })
}

fn secret(folder: &Path, name: &str, password: &str) -> String {
    let file = folder.join(name);
    fs::write(&file, password).unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    file.display().to_string()
}

/// A directory server that gives no more than 100 entries per request, so that everything comes in pages.
fn directory(world: &World, folder: &Path) -> (Slapd, serde_json::Value) {
    let options =
        slapd::Options { entries: world.ldif_to_add(), size_limit: Some(100), ..slapd::Options::default() };
    let server = Slapd::start(options);
    let password = json!({ "file": secret(folder, "directory", &server.reader_password) });
    let settings =
        json!({ "url": server.url(), "read_as": { "dn": server.reader_dn, "password": password } });
    (server, settings)
}

async fn on_real_servers(dialect: Dialect, url: &str, exec: impl Fn(&str) -> String) {
    let world = World::generate(450, 7);
    let now = current(&world, NOW);
    let drifted = now.drifted(COUNTS, 7, BEFORE);
    exec(&dialect.schema());
    exec(&drifted.tables.insert_sql(dialect));
    let folder = tempfile::tempdir().unwrap();
    let (server, directory) = directory(&world, folder.path());
    let catalogue = with_password_file(folder.path(), url);
    let rig = Rig::new(&world, folder, directory, catalogue);
    let mark = server.mark();
    brings_up_to_date(&rig, &drifted, &now).await;
    let [tools, users] = selects(dialect).map(|select| exec(&select).trim_end().to_owned());
    same_tables(&(tools, users), &dump(&after(&now, &drifted)));
    assert_eq!(server.writes_since(mark), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openldap_and_mariadb() {
    let database = MariaDb::shared().fresh_database();
    on_real_servers(Dialect::MariaDb, &database.url(), |sql| database.exec(sql)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn openldap_and_postgresql() {
    let database = Postgres::shared().fresh_database();
    on_real_servers(Dialect::Postgres, &database.url(), |sql| database.exec(sql)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plan_writes_nothing_to_the_database() {
    let world = World::generate(80, 8);
    let database = MariaDb::shared().fresh_database();
    let now = current(&world, NOW);
    database.exec(&Dialect::MariaDb.schema());
    database.exec(&now.drifted(COUNTS, 8, BEFORE).tables.insert_sql(Dialect::MariaDb));
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("directory.ldif"), world.ldif()).unwrap();
    // The account may only read: a plan that wrote would fail.
    let catalogue = with_password_file(folder.path(), &database.reader_url());
    let rig = Rig::new(&world, folder, json!({ "url": "ldif:directory.ldif" }), catalogue);
    let plan = rig.plan().await;
    assert_eq!(plan.failure, None);
    assert!(plan.summary.total() > 0);
    assert_eq!(database.writes(), Vec::<String>::new());
}

/// What the world holds is nasty on purpose; this says that the runs above met it.
#[test]
fn the_worlds_hold_what_the_oracle_has_rules_for() {
    let world = World::generate(150, 1);
    let tables = current(&world, NOW);
    let any = |what: &str, found: bool| assert!(found, "no row with {what}");
    let tools = || tables.tools.iter();
    any("an unread description", tools().any(|row| row.description.as_deref() == Some("")));
    any(
        "broken JSON",
        tools().any(|row| row.toolinfo.as_deref().is_some_and(|text| text.ends_with("no end"))),
    );
    any(
        "a nested tool",
        tools().any(|row| row.maintainers.as_deref().is_some_and(|text| text.contains("tools."))),
    );
    any("no maintainers", tools().any(|row| row.maintainers.as_deref() == Some("")));
    any(
        "a text beyond 64 KiB",
        tools().any(|row| row.toolinfo.as_ref().is_some_and(|text| text.len() > 65_536)),
    );
    any(
        "SQL in its text",
        tools().any(|row| row.description.as_deref().is_some_and(|text| text.contains("DROP TABLE"))),
    );
}
