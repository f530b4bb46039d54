//! What happens when the database, the network or someone else gets in the way.

use std::os::unix::fs::PermissionsExt as _;

use farrier_action::model::FailureKind;
use farrier_testkit::proxy::{CutProxy, Direction};
use serde_json::json;

use crate::world::{self, Kind, World, cases};

cases!(
    all: a_server_that_is_down,
        a_lock_that_someone_holds,
        a_statement_that_takes_too_long;
    servers: a_wrong_password,
        a_deadlock,
        a_connection_cut_within_a_transaction,
        a_lost_answer_to_the_commit,
        a_commit_that_never_arrived,
        a_connection_that_died_while_idle,
        encryption_is_not_skipped,
        an_account_that_may_only_read;
    sqlite: a_database_made_from_a_script;
    mariadb: a_unix_socket;
);

fn wanted() -> serde_json::Value {
    json!({
        "target": "db", "table": "tools", "key": ["name"], "rows_not_listed": "delete", "chunk": 1,
        "rows": [{ "name": "a", "id": 1, "home": "/new" }, { "name": "b", "id": 2, "home": "/newer" }, { "name": "d", "id": 4, "home": "" }],
    })
}

const BEFORE: [&str; 3] = ["a 1 /a 7", "b 2 /b 7", "c 3 /c 7"];
const AFTER: [&str; 3] = ["a 1 /new 7", "b 2 /newer 7", "d 4  7"];

async fn with_rows(world: &World) {
    world.with_tools(&[("a", 1, Some("/a")), ("b", 2, Some("/b")), ("c", 3, Some("/c"))]).await;
}

/// The world behind a proxy.
async fn proxied(world: &mut World) -> CutProxy {
    let proxy = CutProxy::to_url(&world.url().unwrap());
    let config = world::config(&proxy.url());
    world.configure(json!({ "url": config["url"] }));
    with_rows(world).await;
    proxy
}

async fn a_server_that_is_down(mut world: World) {
    let down = match world.kind {
        Kind::Sqlite => json!({ "url": "sqlite:missing/folder.db", "init": "nothing.sql" }),
        Kind::MariaDb => json!({ "url": format!("mysql://a@127.0.0.1:{}/a", farrier_testkit::free_port()) }),
        Kind::Postgres => {
            json!({ "url": format!("postgres://a@127.0.0.1:{}/a", farrier_testkit::free_port()) })
        }
    };
    world.configure(down);
    let failure = world.plan("sql.sync", wanted()).await.unwrap_err();
    let expected = if world.kind == Kind::Sqlite { FailureKind::Input } else { FailureKind::Unreachable };
    assert_eq!(failure.kind, expected, "{failure}");
    assert_eq!(failure.target.as_deref(), Some("db"));
    assert!(!failure.in_doubt);
}

async fn a_wrong_password(mut world: World) {
    world.configure(json!({ "password": { "command": ["/bin/echo", "wrong"] } }));
    let failure = world.query("SELECT 1 AS a", json!({}), json!({ "a": "int" })).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied, "{failure}");
}

async fn a_lock_that_someone_holds(mut world: World) {
    world.configure(json!({ "statement_timeout": "1s" }));
    with_rows(&world).await;
    let plan = world.plan("sql.sync", wanted()).await.unwrap();
    let mut other = world.connect().await;
    other.run(world.pick("BEGIN IMMEDIATE", "BEGIN", "BEGIN")).await.unwrap();
    other.run("UPDATE tools SET updated = 7 WHERE name = 'b'").await.unwrap();
    let failure = world.apply("sql.sync", wanted(), &plan.changes).await.unwrap_err();
    // Both limits are one second here, and either may come first.
    assert!(matches!(failure.kind, FailureKind::Conflict | FailureKind::Timeout), "{failure}");
    assert!(failure.kind.may_pass() && !failure.in_doubt);
    other.run("COMMIT").await.unwrap();
    world.apply("sql.sync", wanted(), &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, AFTER);
}

async fn a_deadlock(world: World) {
    with_rows(&world).await;
    world.exec("CREATE TABLE weight (n INT PRIMARY KEY)").await;
    let plan = world.plan("sql.sync", wanted()).await.unwrap();
    let mut other = world.connect().await;
    if world.kind == Kind::Postgres {
        // The one who looks for the deadlock first is the one who gives way.
        other.run("SET deadlock_timeout = '60s'").await.unwrap();
    }
    other.run("BEGIN").await.unwrap();
    // InnoDB makes the lighter transaction give way.
    let numbers: Vec<String> = (0..1000).map(|n| format!("({n})")).collect();
    other.run(&format!("INSERT INTO weight VALUES {}", numbers.join(","))).await.unwrap();
    other.run("UPDATE tools SET updated = 8 WHERE name = 'b'").await.unwrap();
    let waiting = world.pick(
        "",
        "SELECT COUNT(*) FROM information_schema.processlist WHERE state = 'Updating' AND db = DATABASE()",
        "SELECT COUNT(*) FROM pg_locks WHERE NOT granted",
    );
    let world = std::sync::Arc::new(world);
    let applying = tokio::spawn({
        let (world, changes) = (world.clone(), plan.changes.clone());
        async move { world.apply("sql.sync", wanted(), &changes).await }
    });
    while !applying.is_finished() && world.exec(waiting).await.trim_end() == "0" {
        tokio::task::yield_now().await;
    }
    // It holds c and a, and waits for b.
    other.run("UPDATE tools SET updated = 8 WHERE name = 'a'").await.unwrap();
    let failure = applying.await.unwrap();
    let failure = failure.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Conflict, "{failure}");
    assert!(!failure.in_doubt && failure.message.to_lowercase().contains("deadlock"), "{failure}");
    other.run("ROLLBACK").await.unwrap();
    world.apply("sql.sync", wanted(), &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, AFTER);
}

async fn a_statement_that_takes_too_long(mut world: World) {
    world.configure(json!({ "statement_timeout": "200ms" }));
    world.exec("CREATE TABLE one (n INT PRIMARY KEY)").await;
    world.exec("INSERT INTO one VALUES (1)").await;
    let endless = world.pick(
        "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT MAX(i) AS a FROM n",
        "SELECT BENCHMARK(10000000000, SHA2('a', 512)) AS a FROM one",
        "SELECT CAST(COUNT(*) AS int) AS a FROM generate_series(1, 1000000000000)",
    );
    let failure = world.query(endless, json!({}), json!({ "a": "int" })).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Timeout, "{failure}");
    assert!(world.query("SELECT n FROM one", json!({}), json!({ "n": "int" })).await.is_ok());
}

async fn a_connection_cut_within_a_transaction(mut world: World) {
    let proxy = proxied(&mut world).await;
    let plan = world.plan("sql.sync", wanted()).await.unwrap();
    // The delete and an update were answered; the insert does not arrive.
    proxy.cut_before(Direction::ToServer, "INSERT INTO");
    let failure = world.apply("sql.sync", wanted(), &plan.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    assert!(!failure.in_doubt, "without a commit nothing happened");
    assert_eq!(proxy.cuts(), 1);
    assert_eq!(world.tool_lines().await, BEFORE);
    // The server may hold the dead transaction's locks for a moment; it lets go once it has seen the end.
    world.apply("sql.sync", wanted(), &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, AFTER);
}

async fn a_lost_answer_to_the_commit(mut world: World) {
    let proxy = proxied(&mut world).await;
    let plan = world.plan("sql.sync", wanted()).await.unwrap();
    proxy.lose_answer_to("COMMIT");
    let failure = world.apply("sql.sync", wanted(), &plan.changes).await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, true), "{failure}");
    assert_eq!(world.tool_lines().await, AFTER);
    let output = world.apply("sql.sync", wanted(), &plan.changes).await.unwrap();
    assert_eq!(Some(&output), plan.output.as_ref(), "again is done already");
    assert_eq!(world.tool_lines().await, AFTER);

    let input = json!({ "target": "db", "sql": "UPDATE tools SET updated = updated + 1" });
    let plan = world.plan("sql.execute", input.clone()).await.unwrap();
    proxy.lose_answer_to("COMMIT");
    let failure = world.apply("sql.execute", input, &plan.changes).await.unwrap_err();
    assert!(failure.in_doubt, "{failure}");
}

async fn a_commit_that_never_arrived(mut world: World) {
    let proxy = proxied(&mut world).await;
    let plan = world.plan("sql.sync", wanted()).await.unwrap();
    proxy.cut_before(Direction::ToServer, "COMMIT");
    let failure = world.apply("sql.sync", wanted(), &plan.changes).await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, true), "{failure}");
    world.apply("sql.sync", wanted(), &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, AFTER);
}

async fn a_connection_that_died_while_idle(mut world: World) {
    let proxy = proxied(&mut world).await;
    let plan = world.plan("sql.sync", wanted()).await.unwrap();
    proxy.cut();
    assert_eq!(world.plan("sql.sync", wanted()).await.unwrap().changes, plan.changes);
    proxy.refuse(true);
    proxy.cut();
    let failure = world.plan("sql.sync", wanted()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    proxy.heal();
    world.apply("sql.sync", wanted(), &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, AFTER);
}

async fn encryption_is_not_skipped(mut world: World) {
    // The test servers have no TLS.
    world.configure(json!({ "tls": "required" }));
    let ask = async |world: &World| world.query("SELECT 1 AS a", json!({}), json!({ "a": "int" })).await;
    let failure = ask(&world).await.unwrap_err();
    assert!(failure.kind == FailureKind::Unreachable && failure.message.contains("TLS"), "{failure}");
    for loose in ["preferred", "off_on_loopback"] {
        world.configure(json!({ "tls": loose }));
        ask(&world).await.unwrap();
    }
    // Elsewhere no setting allows plain text. `0.0.0.0` reaches this machine and is not its loopback address.
    let elsewhere = world.config()["url"].as_str().unwrap().replace("127.0.0.1", "0.0.0.0");
    for loose in ["preferred", "off_on_loopback"] {
        world.configure(json!({ "tls": loose, "url": elsewhere }));
        let failure = ask(&world).await.unwrap_err();
        assert!(
            failure.kind == FailureKind::Unreachable && failure.message.contains("TLS"),
            "{loose}: {failure}"
        );
    }
}

async fn an_account_that_may_only_read(mut world: World) {
    let url = world.url().unwrap();
    with_rows(&world).await;
    let name = url.rsplit('/').next().unwrap().to_owned();
    let reader = format!("{name}_reader");
    world.configure(
        json!({ "read_as": { "user": reader, "password": { "command": ["/bin/echo", reader] } } }),
    );
    let plan = world.plan("sql.sync", wanted()).await.unwrap();
    world.apply("sql.sync", wanted(), &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, AFTER);
    world.configure(
        json!({ "write_as": { "user": reader, "password": { "command": ["/bin/echo", reader] } } }),
    );
    let input = json!({ "target": "db", "sql": "DELETE FROM tools" });
    let plan = world.plan("sql.execute", input.clone()).await.unwrap();
    let failure = world.apply("sql.execute", input, &plan.changes).await.unwrap_err();
    assert!(matches!(failure.kind, FailureKind::Denied | FailureKind::Refused), "{failure}");
    assert_eq!(world.tool_lines().await, AFTER);
}

async fn a_database_made_from_a_script(mut world: World) {
    let folder = world.folder.path().to_owned();
    let config = |init: &str| json!({ "url": "sqlite:demo.db", "init": init });
    std::fs::write(folder.join("bad.sql"), "CREATE TABLE a (n INT); NONSENSE").unwrap();
    std::fs::write(
        folder.join("good.sql"),
        "CREATE TABLE a (n INT PRIMARY KEY); INSERT INTO a VALUES (1), (2);",
    )
    .unwrap();
    world.targets = world::targets(&folder, config("bad.sql"));
    let ask = async |world: &World| world.query("SELECT n FROM a", json!({}), json!({ "n": "int" })).await;
    let failure = ask(&world).await.unwrap_err();
    assert!(failure.kind == FailureKind::Input && failure.message.contains("bad.sql"), "{failure}");
    world.targets = world::targets(world.folder.path(), config("absent.sql"));
    assert!(ask(&world).await.unwrap_err().message.contains("absent.sql"));
    world.targets = world::targets(world.folder.path(), json!({ "url": "sqlite:demo.db" }));
    assert!(ask(&world).await.unwrap_err().message.contains("no SQLite database"));
    // Folders on the way become their owner's alone.
    let deep = json!({ "url": "sqlite:runs/demo/demo.db", "init": "good.sql" });
    world.targets = world::targets(world.folder.path(), deep);
    assert_eq!(ask(&world).await.unwrap().as_list().unwrap().len(), 2);
    for made in ["runs", "runs/demo"] {
        let mode = std::fs::metadata(folder.join(made)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700, "{made}");
    }
    // Many at once make one database.
    let many: Vec<_> = (0..8)
        .map(|_| {
            let targets = world::targets(world.folder.path(), config("good.sql"));
            let registry = world::registry();
            let folder = tempfile::tempdir().unwrap();
            let world = World::over(Kind::Sqlite, registry, targets, folder);
            tokio::spawn(
                async move { world.query("SELECT n FROM a", json!({}), json!({ "n": "int" })).await },
            )
        })
        .collect();
    for one in many {
        assert_eq!(one.await.unwrap().unwrap().as_list().unwrap().len(), 2);
    }
    let left: Vec<_> = std::fs::read_dir(world.folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "drafts were left behind: {left:?}");
}

async fn a_unix_socket(mut world: World) {
    let socket = world.exec("SELECT @@socket").await.trim_end().to_owned();
    let url = world.url().unwrap();
    let name = url.rsplit('/').next().unwrap();
    let user = format!("{name}_socket");
    world
        .exec(&format!("CREATE USER {user}@localhost IDENTIFIED BY 'p'; GRANT ALL PRIVILEGES ON {name}.* TO {user}@localhost"))
        .await;
    world.configure(json!({
        "url": format!("mysql://{user}@localhost/{name}?socket={socket}"),
        "password": { "command": ["/bin/echo", "p"] },
        "tls": "required",
        "connect_timeout": "5s",
    }));
    world.query("SELECT 1 AS a", json!({}), json!({ "a": "int" })).await.unwrap();
    world.exec(&format!("DROP USER {user}@localhost")).await;
}
