//! Accounts, grants, dumps and the removal of databases: on MariaDB, and on the stand-in that does the same.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::sync::Arc;

use farrier_action::harness::{Case, World as Objects};
use farrier_action::model::{ChangeKind, FailureKind, Scope, Value};
use farrier_action::{Binding, Targets};
use serde_json::json;

use crate::world::{self, Kind, World, cases};

cases!(
    all: what_a_server_must_be_able_to;
    sqlite: accounts_keep_the_laws,
        locks_keep_the_laws,
        removed_accounts_come_back_with_their_grants,
        a_password_that_differs,
        accounts_in_every_state,
        grants_keep_the_laws,
        surplus_grants_keep_the_laws,
        a_pattern_without_escaping_is_surplus,
        accounts_are_listed,
        databases_are_listed_to_the_letter,
        credentials_keep_the_laws,
        credentials_that_are_there_count,
        a_dump_is_dropped_and_nothing_else,
        a_dump_is_removed_and_nothing_beside_it,
        a_dump_is_never_half_and_never_overwrites;
    mariadb: accounts_keep_the_laws,
        locks_keep_the_laws,
        removed_accounts_come_back_with_their_grants,
        a_password_that_differs,
        accounts_in_every_state,
        grants_keep_the_laws,
        surplus_grants_keep_the_laws,
        a_pattern_without_escaping_is_surplus,
        accounts_are_listed,
        databases_are_listed_to_the_letter,
        credentials_keep_the_laws,
        credentials_that_are_there_count,
        a_dump_is_dropped_and_nothing_else,
        a_dump_is_removed_and_nothing_beside_it,
        a_dump_is_never_half_and_never_overwrites,
        the_account_logs_in_with_its_password_and_no_other,
        a_dump_restores_every_row,
        what_cannot_be_seen_is_not_dumped;
);

/// What `PASSWORD('password')` and `PASSWORD('other')` are.
const HASH: &str = "*2470C0C06DEE42FD1618BB99005ADCA2EC9D1E19";
const OTHER: &str = "*EC0FEDE402B1B8F1F8D5C2C7C79F5D3C2B9A8E10";

/// A server with names that no other test has.
struct Site {
    world: World,
    /// Part of every name.
    own: String,
}

impl Site {
    async fn new(mut world: World) -> Site {
        farrier_plugin_files::register(&mut world.registry).unwrap();
        let own = match world.url() {
            Some(url) => url.rsplit_once('/').unwrap().1.to_owned(),
            None => "s1".to_owned(),
        };
        let folder = world.folder.path().to_owned();
        for root in ["staging", "elsewhere"] {
            fs::create_dir(folder.join(root)).unwrap();
            fs::set_permissions(folder.join(root), fs::Permissions::from_mode(0o700)).unwrap();
        }
        let mut config = world.config();
        config["passwords"] = json!({ "first": { "command": ["/bin/echo", "password"] } });
        config["server_name"] = json!("db-1:3306");
        let site = Site { world, own };
        site.sql(&format!(
            "CREATE TABLE account (mysql_username VARCHAR(255) PRIMARY KEY, password_hash VARCHAR(41)); \
             INSERT INTO account VALUES ('{}', '{}'), ('{}', '{}')",
            site.name("a"),
            HASH.to_lowercase(),
            site.name("b"),
            HASH
        ))
        .await;
        let files =
            json!({ "roots": { "staging": folder.join("staging"), "elsewhere": folder.join("elsewhere") } });
        let bindings = [("db", "sql", config), ("homes", "files", files)];
        let bindings = bindings.map(|(alias, kind, config)| Binding {
            alias: alias.into(),
            kind: kind.into(),
            config: world::json(config),
        });
        let Site { mut world, own } = site;
        world.targets = Arc::new(Targets::new(folder, bindings.into(), BTreeMap::new()));
        Site { world, own }
    }

    fn name(&self, last: &str) -> String {
        format!("{}_{last}", self.own)
    }

    async fn sql(&self, sql: &str) -> String {
        self.world.exec(sql).await
    }

    fn standin(&self) -> bool {
        self.world.kind == Kind::Sqlite
    }

    /// Makes an account behind the plugin's back.
    async fn account(&self, last: &str, hash: &str) {
        let name = self.name(last);
        let sql = if self.standin() {
            format!("{TABLES} INSERT INTO server_accounts (user, password_hash) VALUES ('{name}', '{hash}')")
        } else {
            format!("CREATE USER '{name}'@'%' IDENTIFIED BY PASSWORD '{hash}'")
        };
        self.sql(&sql).await;
    }

    /// Grants something behind the plugin's back.
    async fn grant(&self, last: &str, what: &str, on: &str) {
        let name = self.name(last);
        let sql = if self.standin() {
            format!(
                "INSERT INTO server_grants (user, granted_on, privilege) VALUES ('{name}', '{on}', '{what}')"
            )
        } else {
            format!("GRANT {what} ON {on} TO '{name}'@'%'")
        };
        self.sql(&sql).await;
    }

    async fn role(&self) -> String {
        let role = self.name("role");
        let sql = if self.standin() {
            format!("{TABLES} INSERT INTO server_accounts (user, host, is_role) VALUES ('{role}', '', 1)")
        } else {
            format!("CREATE ROLE {role}; GRANT {role} TO '{}'@'127.0.0.1' WITH ADMIN OPTION", self.own)
        };
        self.sql(&sql).await;
        role
    }

    /// What the accounts are and may do, by other means than the plugin's, in the plugin's words.
    async fn observe(&self) -> Objects {
        let mut objects = Objects::new();
        let accounts = if self.standin() {
            format!(
                "{TABLES} SELECT user || '@' || host, COALESCE(password_hash, ''), locked, max_user_connections \
                     FROM server_accounts WHERE is_role = 0"
            )
        } else {
            format!(
                "SELECT CONCAT(User, '@', Host), JSON_VALUE(Priv, '$.authentication_string'), \
                 COALESCE(JSON_VALUE(Priv, '$.account_locked'), 0), \
                 COALESCE(JSON_VALUE(Priv, '$.max_user_connections'), 0) FROM mysql.global_priv \
                 WHERE User LIKE '{}\\_%' AND COALESCE(JSON_VALUE(Priv, '$.is_role'), 0) = 0 AND Host = '%'",
                self.own.replace('_', "\\_")
            )
        };
        for line in self.sql(&accounts).await.lines().filter(|line| !line.is_empty()) {
            let (name, rest) = line.split_once('\t').unwrap();
            objects.insert(format!("account {name}"), Value::text(rest));
            let user = name.split_once('@').unwrap().0;
            let grants = if self.standin() {
                let sql = format!(
                    "SELECT granted_on, privilege FROM server_grants WHERE user = '{user}' ORDER BY granted_on, privilege"
                );
                self.sql(&sql).await
            } else {
                let lines = self.sql(&format!("SHOW GRANTS FOR '{user}'@'%'")).await;
                let mut lines: Vec<&str> = lines.lines().filter(|line| !line.contains("ON *.*")).collect();
                lines.sort_unstable();
                lines.join("\n")
            };
            if !grants.is_empty() {
                objects.insert(format!("grants of {name}"), Value::text(grants));
            }
        }
        objects
    }

    async fn plan(&self, action: &str, input: serde_json::Value) -> farrier_action::Planned<Value> {
        self.world.plan(action, input).await.unwrap()
    }

    /// Plans, applies, and finds nothing left to do.
    async fn make(&self, action: &str, input: serde_json::Value) -> Value {
        let plan = self.plan(action, input.clone()).await;
        if plan.changes.is_empty() {
            return plan.output.unwrap();
        }
        let output = self.world.apply(action, input.clone(), &plan.changes).await.unwrap();
        assert!(self.plan(action, input).await.changes.is_empty());
        output
    }
}

const TABLES: &str = "CREATE TABLE IF NOT EXISTS server_accounts (user text NOT NULL, host text NOT NULL DEFAULT '%', \
     password_hash text, locked integer NOT NULL DEFAULT 0, max_user_connections integer NOT NULL DEFAULT 0, \
     is_role integer NOT NULL DEFAULT 0, PRIMARY KEY (user, host)); \
     CREATE TABLE IF NOT EXISTS server_grants (user text NOT NULL, host text NOT NULL DEFAULT '%', \
     granted_on text NOT NULL, privilege text NOT NULL, PRIMARY KEY (user, host, granted_on, privilege)); \
     CREATE TABLE IF NOT EXISTS server_databases (name text NOT NULL PRIMARY KEY);";

fn hashes() -> serde_json::Value {
    json!({ "target": "db", "table": "account", "account": "mysql_username", "hash": "password_hash" })
}

async fn what_a_server_must_be_able_to(world: World) {
    let input = json!({ "target": "db", "prefix": "s1__" });
    let plan = world.plan("sql.list_databases", input).await;
    match world.kind {
        Kind::Postgres => {
            let failure = plan.unwrap_err();
            assert_eq!(failure.kind, FailureKind::Refused);
            assert!(failure.message.contains("PostgreSQL"), "{failure}");
        }
        _ => assert_eq!(
            plan.unwrap().output.unwrap(),
            world::json(json!({ "databases": [], "sizes": {}, "bytes": 0 }))
        ),
    }
    let everything = json!({ "target": "db", "prefix": "" });
    assert_eq!(world.plan("sql.list_databases", everything).await.unwrap_err().kind, FailureKind::Input);
}

async fn accounts_keep_the_laws(world: World) {
    let site = Site::new(world).await;
    let (a, b) = (site.name("a"), site.name("b"));
    site.account("b", HASH).await;
    let input = json!({
        "target": "db", "accounts": [a, b], "state": "present", "password_hashes": hashes(),
        "max_user_connections": 10, "max_user_connections_of": { b.clone(): 40 },
    });
    let bad = |key: &str, value: serde_json::Value| {
        let mut input = input.clone();
        input[key] = value;
        world::json(input)
    };
    let case = Case {
        registry: &site.world.registry,
        action: "sql.account",
        input: world::json(input.clone()),
        targets: site.world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(site.observe())),
        disturb: Some(Box::new(|| Box::pin(site.account("a", OTHER)))),
        bad_inputs: vec![
            bad("accounts", json!(["a'b"])),
            bad("accounts", json!(["a%"])),
            bad("host", json!("' OR 1")),
            bad("password", json!("first")),
            bad("password_hashes", json!(null)),
            bad(
                "password_hashes",
                json!({ "target": "db", "table": "account", "account": "a`b", "hash": "c" }),
            ),
            bad("state", json!("absent")),
        ],
    };
    let shown = case.prove().await.unwrap();
    let changes: Vec<String> = shown.plan.changes.iter().map(|change| format!("{change:?}")).collect();
    assert_eq!(changes.len(), 2, "{changes:?}");
    assert!(changes.iter().all(|change| !change.contains("2470")), "a hash is in the plan: {changes:?}");
    assert_eq!(shown.plan.changes[0].kind, ChangeKind::Create);
    assert_eq!(shown.plan.changes[1].after.get("max_user_connections"), Some(&Value::Int(40)));
    assert_eq!(shown.output.get("changed"), Some(&Value::Int(2)));

    // An account whose hash nobody has cannot be made, and says so before anything is done.
    let unknown = json!({
        "target": "db", "accounts": [site.name("z")], "state": "present", "password_hashes": hashes(),
    });
    let failure = site.world.plan("sql.account", unknown).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.message.contains("there is no password"), "{failure}");
}

async fn locks_keep_the_laws(world: World) {
    let site = Site::new(world).await;
    site.account("a", HASH).await;
    let a = site.name("a");
    let case = Case {
        registry: &site.world.registry,
        action: "sql.account",
        input: world::json(json!({ "target": "db", "accounts": [a], "state": "locked" })),
        targets: site.world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(site.observe())),
        disturb: None,
        bad_inputs: Vec::new(),
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(shown.plan.changes[0].before.get("locked"), Some(&Value::Bool(false)));
    // Present means present: the lock of somebody else stays.
    site.make("sql.account", json!({ "target": "db", "accounts": [a], "state": "locked" })).await;
    let present = json!({ "target": "db", "accounts": [a], "state": "present", "password_hashes": hashes() });
    assert!(site.plan("sql.account", present).await.changes.is_empty());
    site.make("sql.account", json!({ "target": "db", "accounts": [a], "state": "unlocked" })).await;
    assert!(site.observe().await[&format!("account {a}@%")].to_string().contains("\t0\t"));
}

async fn removed_accounts_come_back_with_their_grants(world: World) {
    let site = Site::new(world).await;
    let role = site.role().await;
    site.account("a", HASH).await;
    let a = site.name("a");
    site.make(
        "sql.grants",
        json!({ "target": "db", "accounts": [a], "grants": [
            { "privileges": ["SELECT", "SHOW VIEW"], "suffix": "_p" },
            { "privileges": ["ALL"], "own": "__" },
            { "role": role, "default": true },
        ] }),
    )
    .await;
    let input = json!({ "target": "db", "accounts": [a, site.name("z")], "password_hashes": hashes() });
    let case = Case {
        registry: &site.world.registry,
        action: "sql.drop_accounts",
        input: world::json(input),
        targets: site.world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| {
            Box::pin(async {
                // One change covers the account with what it may do.
                let objects = site.observe().await;
                let all = objects.iter().map(|(name, value)| format!("{name}: {value}")).collect::<Vec<_>>();
                Objects::from([(format!("account {}@%", site.name("a")), Value::text(all.join("\n")))])
            })
        }),
        disturb: Some(Box::new(|| Box::pin(site.grant("a", "SELECT", "`meta`.*")))),
        bad_inputs: Vec::new(),
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(shown.plan.changes.len(), 1);
    assert_eq!(shown.plan.changes[0].kind, ChangeKind::Delete);
    // Without a known password it cannot come back.
    let input = json!({ "target": "db", "accounts": [a] });
    let plan = site.plan("sql.drop_accounts", input.clone()).await;
    site.world.apply("sql.drop_accounts", input.clone(), &plan.changes).await.unwrap();
    let failure = site.world.undo("sql.drop_accounts", input, &plan.changes).await.unwrap_err();
    assert!(failure.message.contains("recorded nowhere"), "{failure}");
}

async fn a_password_that_differs(world: World) {
    let site = Site::new(world).await;
    site.account("a", OTHER).await;
    let a = site.name("a");
    let mut input =
        json!({ "target": "db", "accounts": [a], "state": "present", "password_hashes": hashes() });
    let plan = site.plan("sql.account", input.clone()).await;
    assert!(plan.changes.is_empty());
    assert_eq!(plan.output.unwrap().get("password_differs"), Some(&world::json(json!([a]))));
    input["when_password_differs"] = json!("set");
    let plan = site.plan("sql.account", input.clone()).await;
    assert_eq!(
        plan.changes[0].after.get("password"),
        Some(&Value::text("as recorded in account.password_hash of db"))
    );
    site.make("sql.account", input.clone()).await;
    assert!(site.observe().await[&format!("account {a}@%")].to_string().starts_with(HASH));
    let failure = site.world.undo("sql.account", input, &plan.changes).await.unwrap_err();
    assert!(failure.message.contains("cannot be brought back"), "{failure}");
    // A hash that is none costs a message with the account's name, and shows nothing.
    site.sql("UPDATE account SET password_hash = 'in the clear'").await;
    let input = json!({ "target": "db", "accounts": [a], "state": "present", "password_hashes": hashes() });
    let failure = site.world.plan("sql.account", input).await.unwrap_err();
    // The name without its beginning, which is the password of these tests, too.
    assert!(failure.message.contains("_a` has no hash"), "{failure}");
    assert!(!failure.message.contains("clear"), "{failure}");
}

async fn accounts_in_every_state(world: World) {
    let site = Site::new(world).await;
    let (a, gone) = (site.name("a"), site.name("gone"));
    // None are none.
    for state in ["present", "locked", "unlocked"] {
        let input = json!({ "target": "db", "accounts": [], "state": state, "password_hashes": hashes() });
        assert!(site.plan("sql.account", input).await.changes.is_empty());
    }
    assert!(
        site.plan("sql.drop_accounts", json!({ "target": "db", "accounts": [] })).await.changes.is_empty()
    );
    let output =
        site.make("sql.account", json!({ "target": "db", "accounts": [gone], "state": "locked" })).await;
    assert_eq!(output.get("missing"), Some(&world::json(json!([gone]))));
    // A password of the environment, by its name.
    let input = json!({ "target": "db", "accounts": [a], "state": "present", "password": "first" });
    site.make("sql.account", input.clone()).await;
    assert!(site.observe().await[&format!("account {a}@%")].to_string().starts_with(HASH));
    let mut unknown = input;
    unknown["password"] = json!("second");
    let failure = site.world.plan("sql.account", unknown).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Input);
    assert!(failure.message.contains("`second`"), "{failure}");
    assert!(failure.help.is_some(), "what to do");
}

async fn grants_keep_the_laws(world: World) {
    let site = Site::new(world).await;
    let role = site.role().await;
    site.account("a", HASH).await;
    site.account("b", HASH).await;
    let on = format!("`{}\\_a\\_\\_%`.*", site.own.replace('_', "\\_"));
    site.grant("a", "SELECT", &on).await;
    let (a, b) = (site.name("a"), site.name("b"));
    let input = json!({
        "target": "db", "accounts": [a, b],
        "grants": [
            { "privileges": ["SELECT", "SHOW VIEW"], "suffix": "_p" },
            { "privileges": ["ALL PRIVILEGES"], "own": "__" },
            { "role": role, "default": true },
        ],
    });
    let bad = |grants: serde_json::Value| {
        let mut input = input.clone();
        input["grants"] = grants;
        world::json(input)
    };
    let case = Case {
        registry: &site.world.registry,
        action: "sql.grants",
        input: world::json(input.clone()),
        targets: site.world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(site.observe())),
        disturb: Some(Box::new(|| Box::pin(site.grant("b", "INSERT", r"`%\_p`.*")))),
        bad_inputs: vec![
            bad(json!([])),
            bad(json!([{ "privileges": ["SELECT"], "prefix": "%" }])),
            bad(json!([{ "privileges": ["SELECT, INSERT"], "own": "__" }])),
            bad(json!([{ "privileges": ["SELECT"], "own": "`.* TO x; --" }])),
            bad(json!([{ "role": "a` TO b" }])),
        ],
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(shown.plan.changes.len(), 2);
    assert_eq!(shown.plan.changes[0].before.get(&on), Some(&Value::text("SELECT")));
    assert_eq!(shown.plan.changes[0].after.get(&on), Some(&Value::text("ALL PRIVILEGES")));
    assert_eq!(shown.plan.changes[1].after.get(r"`%\_p`.*"), Some(&Value::text("SELECT, SHOW VIEW")));

    let failure = site
        .world
        .plan(
            "sql.grants",
            json!({ "target": "db", "accounts": [site.name("z")], "grants": input["grants"] }),
        )
        .await
        .unwrap_err();
    assert!(failure.message.contains("there is no account"), "{failure}");
}

async fn surplus_grants_keep_the_laws(world: World) {
    let site = Site::new(world).await;
    site.account("a", HASH).await;
    let a = site.name("a");
    site.grant("a", "ALL PRIVILEGES", "`meta`.*").await;
    site.grant("a", "SELECT", "`other`.*").await;
    let input = json!({
        "target": "db", "accounts": [a], "surplus": "revoke",
        "grants": [{ "privileges": ["SELECT"], "database": "meta" }],
    });
    let case = Case {
        registry: &site.world.registry,
        action: "sql.grants",
        input: world::json(input.clone()),
        targets: site.world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(site.observe())),
        disturb: None,
        bad_inputs: Vec::new(),
    };
    let shown = case.prove().await.unwrap();
    let change = &shown.plan.changes[0];
    assert_eq!(change.before, world::json(json!({ "`meta`.*": "ALL PRIVILEGES", "`other`.*": "SELECT" })));
    assert_eq!(change.after, world::json(json!({ "`meta`.*": "SELECT", "`other`.*": null })));
    // Kept unless told otherwise, and told.
    let mut keep = input;
    keep["surplus"] = json!("keep");
    let plan = site.plan("sql.grants", keep).await;
    assert!(plan.changes.is_empty(), "{:?}", plan.changes);
    let surplus = plan.output.unwrap().get("surplus").unwrap().to_string();
    assert!(surplus.contains("SELECT on `other`.*"), "{surplus}");
}

/// `s1__%` in a grant reaches the databases of `s12`: here each `_` stands for itself.
async fn a_pattern_without_escaping_is_surplus(world: World) {
    let site = Site::new(world).await;
    site.account("a", HASH).await;
    let a = site.name("a");
    let unescaped = format!("`{a}__%`.*");
    site.grant("a", "SELECT", &unescaped).await;
    let input = json!({
        "target": "db", "accounts": [a], "surplus": "revoke", "grants": [{ "privileges": ["SELECT"], "own": "__" }],
    });
    let plan = site.plan("sql.grants", input.clone()).await;
    let escaped = format!("`{}\\_\\_%`.*", a.replace('_', "\\_"));
    let change = &plan.changes[0];
    assert_eq!(change.before, world::json(json!({ unescaped.clone(): "SELECT", escaped.clone(): null })));
    assert_eq!(change.after, world::json(json!({ unescaped.clone(): null, escaped.clone(): "SELECT" })));
    site.make("sql.grants", input).await;
    if site.standin() {
        return;
    }
    // The server agrees about what may be read: the account's own database and not its neighbour's.
    let neighbour = format!("{}x__data", &a[..a.len()]);
    site.sql(&format!(
        "CREATE DATABASE `{a}__data`; CREATE TABLE `{a}__data`.t (x int); CREATE DATABASE `{neighbour}`; \
         CREATE TABLE `{neighbour}`.t (x int)"
    ))
    .await;
    let url = site.world.url().unwrap();
    let place = url.split_once('@').unwrap().1.split_once('/').unwrap().0;
    use sqlx::Connection as _;
    let mut own =
        sqlx::mysql::MySqlConnection::connect(&format!("mysql://{a}:password@{place}/")).await.unwrap();
    let read = |database: &str| sqlx::AssertSqlSafe(format!("SELECT * FROM `{database}`.t"));
    sqlx::raw_sql(read(&format!("{a}__data"))).execute(&mut own).await.unwrap();
    let error = sqlx::raw_sql(read(&neighbour)).execute(&mut own).await.unwrap_err();
    assert!(error.to_string().contains("denied"), "{error}");
    site.sql(&format!("DROP DATABASE `{a}__data`; DROP DATABASE `{neighbour}`; DROP USER '{a}'@'%'")).await;
}

fn credentials(site: &Site, lasts: &[&str]) -> serde_json::Value {
    let accounts: Vec<serde_json::Value> = lasts
        .iter()
        .map(|last| json!({ "name": site.name(last), "file": [last, "replica.my.cnf"] }))
        .collect();
    json!({
        "target": "db", "table": "account", "account": "mysql_username", "hash": "password_hash",
        "files": "homes", "root": "staging", "accounts": accounts,
    })
}

/// The rows and the files, and whether they agree.
async fn observe_credentials(site: &Site) -> Objects {
    let mut objects = Objects::new();
    let rows = site.sql("SELECT mysql_username, password_hash FROM account ORDER BY mysql_username").await;
    for line in rows.lines() {
        let (name, hash) = line.split_once('\t').unwrap();
        let last = name.strip_prefix(&format!("{}_", site.own)).unwrap();
        let path = site.world.folder.path().join("staging").join(last).join("replica.my.cnf");
        let text = fs::read_to_string(path).unwrap_or_default();
        objects
            .insert(format!("table account: mysql_username={name}"), Value::text(format!("{hash} {text}")));
    }
    objects
}

async fn credentials_keep_the_laws(world: World) {
    let site = Site::new(world).await;
    let staging = site.world.folder.path().join("staging");
    for last in ["a", "c", "d"] {
        fs::create_dir(staging.join(last)).unwrap();
    }
    let input = credentials(&site, &["a", "c", "d", "e"]);
    let bad = |key: &str, value: serde_json::Value| {
        let mut input = input.clone();
        input["accounts"][1][key] = value;
        world::json(input)
    };
    let case = Case {
        registry: &site.world.registry,
        action: "sql.credentials",
        input: world::json(input.clone()),
        targets: site.world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(observe_credentials(&site))),
        disturb: Some(Box::new(|| {
            let sql = format!("INSERT INTO account VALUES ('{}', '{HASH}')", site.name("c"));
            Box::pin(async { drop(site.sql(&{ sql }).await) })
        })),
        bad_inputs: vec![
            bad("name", json!("a'b")),
            bad("file", json!(["..", "x"])),
            bad("file", json!([".farrier-private", "x"])),
            bad("row", json!({ "a`b": 1 })),
            bad("row", json!({ "password_hash": "x" })),
        ],
    };
    let shown = case.prove().await.unwrap();
    let names = |lasts: &[&str]| lasts.iter().map(|last| site.name(last)).collect::<Vec<_>>();
    assert_eq!(shown.output, world::json(json!({ "added": names(&["c", "d"]), "skipped": names(&["e"]) })));
    assert!(!format!("{:?}", shown.plan.changes).contains('*'), "{:?}", shown.plan.changes);
}

async fn credentials_that_are_there_count(world: World) {
    let site = Site::new(world).await;
    let staging = site.world.folder.path().join("staging");
    for last in ["c", "d"] {
        fs::create_dir(staging.join(last)).unwrap();
    }
    let (c, d) = (site.name("c"), site.name("d"));
    let file = staging.join("c/replica.my.cnf");
    fs::write(&file, format!("[client]\nuser='{c}'\npassword = 'password'\n")).unwrap();
    site.make("sql.credentials", credentials(&site, &["c"])).await;
    let stored = site.sql(&format!("SELECT password_hash FROM account WHERE mysql_username = '{c}'")).await;
    assert_eq!(stored.trim().to_uppercase(), HASH, "the password that is in the file");
    // A new one has sixteen letters and digits, is for its owner alone to read, and the table has its hash.
    site.make("sql.credentials", credentials(&site, &["c", "d"])).await;
    let made = staging.join("d/replica.my.cnf");
    assert_eq!(fs::metadata(&made).unwrap().permissions().mode() & 0o777, 0o440);
    let text = fs::read_to_string(&made).unwrap();
    let password = text.lines().last().unwrap().strip_prefix("password = ").unwrap();
    assert!(password.len() == 16 && password.chars().all(|c| c.is_ascii_alphanumeric()), "{text}");
    // The server takes that hash for the password.
    let listed = json!({ "target": "db", "accounts": [d], "state": "present", "password_hashes": hashes() });
    site.make("sql.account", listed).await;
    if let Some(url) = site.world.url() {
        use sqlx::Connection as _;
        let place = url.split_once('@').unwrap().1.split_once('/').unwrap().0;
        sqlx::mysql::MySqlConnection::connect(&format!("mysql://{d}:{password}@{place}/")).await.unwrap();
    }
    // Somebody else's file, or a link, is neither read as ours nor overwritten, and shows nothing of itself.
    fs::create_dir(staging.join("f")).unwrap();
    let foreign = staging.join("f/replica.my.cnf");
    fs::write(&foreign, "[client]\nuser=other\npassword=canary\n").unwrap();
    let failure = site.world.plan("sql.credentials", credentials(&site, &["f"])).await.unwrap_err();
    assert!(failure.message.contains("not overwritten") && !failure.message.contains("canary"), "{failure}");
    fs::remove_file(&foreign).unwrap();
    symlink(&made, &foreign).unwrap();
    let failure = site.world.plan("sql.credentials", credentials(&site, &["f"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
}

async fn accounts_are_listed(world: World) {
    let site = Site::new(world).await;
    let (a, b, c) = (site.name("a"), site.name("b"), site.name("c"));
    site.account("a", HASH).await;
    site.account("b", OTHER).await;
    site.make("sql.account", json!({ "target": "db", "accounts": [b], "state": "locked" })).await;
    let input =
        json!({ "target": "db", "accounts": [a, b, c, a.to_uppercase()], "password_hashes": hashes() });
    let output = site.plan("sql.list_accounts", input).await.output.unwrap();
    assert_eq!(
        output,
        world::json(json!({
            "server": "db-1:3306",
            "status": { a.clone(): "present", b.clone(): "present", c.clone(): "absent", a.to_uppercase(): "absent" },
            "present": 2, "absent": [a.to_uppercase(), c], "locked": [b], "password_differs": [b],
        }))
    );
}

/// A database with rows that need care, behind the plugin's back.
async fn make_database(site: &Site, name: &str) {
    let sql = if site.standin() {
        format!(
            "{TABLES} INSERT INTO server_databases VALUES ('{name}');
             CREATE TABLE \"{name}.pages\" (id integer PRIMARY KEY, title text, body blob);
             INSERT INTO \"{name}.pages\" VALUES (1, 'a''b' || char(10) || '(c),', x'00ff'), (2, NULL, NULL), (3, 'ü', 1.5);
             CREATE INDEX \"{name}.by_title\" ON \"{name}.pages\" (title)"
        )
    } else {
        format!(
            r"CREATE DATABASE `{name}`; USE `{name}`;
              CREATE TABLE pages (id int PRIMARY KEY, title text, body blob);
              INSERT INTO pages VALUES (1, 'a''b\n(c),', x'00ff'), (2, NULL, NULL), (3, 'ü', '');"
        )
    };
    site.sql(&sql).await;
}

async fn databases_are_listed_to_the_letter(world: World) {
    let site = Site::new(world).await;
    let mine = site.name("1__links");
    let other = site.name("12_links");
    for name in [&mine, &other] {
        make_database(&site, name).await;
    }
    let input = json!({ "target": "db", "prefix": site.name("1__") });
    let output = site.plan("sql.list_databases", input).await.output.unwrap();
    assert_eq!(output.get("databases"), Some(&world::json(json!([mine]))));
    // A table takes a page at least, and those of the other database are not counted.
    let bytes = |output: &Value| output.get("bytes").and_then(Value::as_int).unwrap();
    let both = json!({ "target": "db", "prefix": site.name("1") });
    let both = site.plan("sql.list_databases", both).await.output.unwrap();
    assert!(bytes(&output) >= 1024 && bytes(&output) < bytes(&both), "{output:?}, {both:?}");
    let size = output.get("sizes").and_then(|sizes| sizes.get(&mine)).and_then(Value::as_int);
    assert_eq!(size, Some(bytes(&output)), "{output:?}");
    if !site.standin() {
        site.sql(&format!("DROP DATABASE `{mine}`; DROP DATABASE `{other}`")).await;
    }
}

fn dump_input(database: &str, path: &[&str]) -> serde_json::Value {
    json!({ "target": "db", "database": database, "into": { "target": "homes", "root": "staging", "path": path } })
}

async fn a_dump_is_dropped_and_nothing_else(world: World) {
    let site = Site::new(world).await;
    let (mine, other) = (site.name("1__links"), site.name("12_links"));
    for name in [&mine, &other] {
        make_database(&site, name).await;
    }
    let staging = site.world.folder.path().join("staging");
    let path = staging.join("tools.a").join("links.sql.zst");
    let input = dump_input(&mine, &["tools.a", "links.sql.zst"]);
    let case = Case {
        registry: &site.world.registry,
        action: "sql.dump",
        input: world::json(input.clone()),
        targets: site.world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| {
            Box::pin(async {
                let there = fs::read(&path).map(|bytes| bytes.len() as i64);
                let folder = path.parent().unwrap().exists();
                let mut objects = Objects::new();
                if let Ok(size) = there {
                    objects.insert("staging/tools.a/links.sql.zst".into(), Value::Int(size));
                } else if folder {
                    objects.insert("staging/tools.a".into(), Value::Null);
                }
                objects
            })
        }),
        disturb: None,
        bad_inputs: vec![
            world::json(dump_input("mysql", &["a.sql"])),
            world::json(dump_input("a`b", &["a.sql"])),
            world::json(dump_input(&mine, &["a.txt"])),
            world::json(dump_input(&mine, &["..", "a.sql"])),
            world::json(dump_input(&mine, &[".farrier-private", "a.sql"])),
        ],
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(shown.output.get("tables"), Some(&Value::Int(1)));
    assert_eq!(shown.output.get("rows"), Some(&Value::Int(3)));
    let failure = site.world.plan("sql.dump", dump_input("nothing", &["a.sql"])).await.unwrap_err();
    assert!(failure.message.contains("there is no database `nothing`"), "{failure}");

    let dumped = site.make("sql.dump", input.clone()).await;
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let sha256 = dumped.get("sha256").unwrap().to_string();
    let bytes = fs::read(&path).unwrap();
    use sha2::Digest as _;
    assert_eq!(hex::encode(sha2::Sha256::digest(&bytes)), sha256);
    let file = dumped.get("file").unwrap();
    assert_eq!(file.get("target"), Some(&Value::text("homes")), "as `files.archive` takes it");

    let drop = |databases: serde_json::Value, digests: serde_json::Value| {
        json!({ "target": "db", "databases": databases, "dumped_as": digests,
                "dumps": { "target": "homes", "root": "staging" } })
    };
    let refused = async |input: serde_json::Value, part: &str| {
        let failure = site.world.plan("sql.drop_databases", input).await.unwrap_err();
        assert!(failure.message.contains(part), "`{part}` is not in: {failure}");
        failure.kind
    };
    refused(drop(json!([mine]), json!([])), "each database needs one").await;
    refused(drop(json!([mine, mine]), json!([sha256, sha256])), "twice").await;
    refused(drop(json!(["mysql"]), json!([sha256])), "the server's own").await;
    refused(drop(json!([mine]), json!(["0".repeat(64)])), "no file beneath").await;
    refused(drop(json!([mine]), json!(["x"])), "not a SHA-256").await;
    refused(drop(json!([other]), json!([sha256])), "is one of").await;

    // A file that is another one by now proves nothing.
    let mut flipped = bytes.clone();
    flipped[10] ^= 1;
    fs::write(&path, &flipped).unwrap();
    assert_eq!(
        refused(drop(json!([mine]), json!([sha256])), "is not what was written").await,
        FailureKind::Drift
    );
    fs::remove_file(&path).unwrap();
    refused(drop(json!([mine]), json!([sha256])), "not there any more").await;
    fs::write(&path, &bytes).unwrap();

    // A row that came after the dump keeps the database.
    let input = drop(json!([mine]), json!([sha256]));
    let plan = site.plan("sql.drop_databases", input.clone()).await;
    assert_eq!(plan.changes.len(), 1);
    let table = if site.standin() { format!("\"{mine}.pages\"") } else { format!("`{mine}`.pages") };
    site.sql(&format!("INSERT INTO {table} (id) VALUES (4)")).await;
    let failure = site.world.apply("sql.drop_databases", input.clone(), &plan.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    site.sql(&format!("DELETE FROM {table} WHERE id = 4")).await;

    let output = site.make("sql.drop_databases", input.clone()).await;
    assert_eq!(output.get("dropped"), Some(&world::json(json!([mine]))));
    let listed = site.plan("sql.list_databases", json!({ "target": "db", "prefix": site.name("1") })).await;
    assert_eq!(
        listed.output.unwrap().get("databases"),
        Some(&world::json(json!([other]))),
        "the other one stays"
    );
    let again = site.plan("sql.drop_databases", input).await;
    assert_eq!(again.output.unwrap().get("missing"), Some(&world::json(json!([mine]))));
    // A copy in its place is not what the step made.
    fs::copy(&path, staging.join("copy")).unwrap();
    fs::rename(staging.join("copy"), &path).unwrap();
    let discard = |root: &str, digest: &str| json!({ "target": "homes", "root": root, "made_as": [digest] });
    let failure = site.world.plan("files.discard", discard("staging", &sha256)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert!(path.exists());
    if !site.standin() {
        site.sql(&format!("DROP DATABASE `{other}`")).await;
    }
}

async fn a_dump_is_removed_and_nothing_beside_it(world: World) {
    let site = Site::new(world).await;
    let database = site.name("1__links");
    make_database(&site, &database).await;
    let dumped = site.make("sql.dump", dump_input(&database, &["tools.b", "a", "links.sql"])).await;
    let sha256 = dumped.get("sha256").unwrap().to_string();
    let staging = site.world.folder.path().join("staging").join("tools.b");
    fs::write(staging.join("beside"), "somebody else's").unwrap();
    let dump = staging.join("a").join("links.sql");
    let input = |digests: &[&str]| json!({ "target": "homes", "root": "staging", "made_as": digests });
    let nothing = "0".repeat(64);
    let case = Case {
        registry: &site.world.registry,
        action: "files.discard",
        input: world::json(input(&[&sha256, &nothing, &sha256])),
        targets: site.world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| {
            Box::pin(async {
                let size = fs::read(&dump).map(|bytes| bytes.len() as i64);
                Objects::from_iter(size.map(|size| ("staging/tools.b/a/links.sql".into(), Value::Int(size))))
            })
        }),
        disturb: Some(Box::new(|| {
            Box::pin(async {
                let mut changed = fs::read(&dump).unwrap();
                changed[0] ^= 1;
                fs::write(&dump, changed).unwrap();
            })
        })),
        bad_inputs: vec![
            world::json(input(&["x"])),
            world::json(json!({ "target": "homes", "root": "nothing", "made_as": [sha256] })),
            world::json(json!({ "target": "homes", "root": "staging", "made_as": [sha256], "more": 1 })),
        ],
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(shown.plan.changes.len(), 1);
    assert_eq!(shown.output.get("missing"), Some(&world::json(json!([nothing]))));
    assert!(!staging.join("a").exists(), "the folder was made for the file");
    assert_eq!(fs::read_to_string(staging.join("beside")).unwrap(), "somebody else's");
    if !site.standin() {
        site.sql(&format!("DROP DATABASE `{database}`")).await;
    }
}

async fn a_dump_is_never_half_and_never_overwrites(world: World) {
    let site = Site::new(world).await;
    let name = site.name("1__links");
    make_database(&site, &name).await;
    let folder = site.world.folder.path();
    let (staging, elsewhere) = (folder.join("staging"), folder.join("elsewhere"));
    fs::write(staging.join("taken.sql"), "precious").unwrap();
    let failure = site.world.plan("sql.dump", dump_input(&name, &["taken.sql"])).await.unwrap_err();
    assert!(failure.message.contains("exists already"), "{failure}");
    // A link under the name, and one on the way.
    symlink(elsewhere.join("victim"), staging.join("link.sql")).unwrap();
    assert!(site.world.plan("sql.dump", dump_input(&name, &["link.sql"])).await.is_err());
    symlink(&elsewhere, staging.join("way")).unwrap();
    let failure = site.world.plan("sql.dump", dump_input(&name, &["way", "a.sql"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    // Taken between plan and apply.
    let input = dump_input(&name, &["new.sql"]);
    let plan = site.plan("sql.dump", input.clone()).await;
    symlink(elsewhere.join("victim"), staging.join("new.sql")).unwrap();
    let failure = site.world.apply("sql.dump", input.clone(), &plan.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert!(!elsewhere.join("victim").exists());
    fs::remove_file(staging.join("new.sql")).unwrap();
    // A database that goes while it is dumped leaves no file under the name.
    let gone = if site.standin() {
        format!("ALTER TABLE \"{name}.pages\" RENAME TO \"kept\"; DELETE FROM server_databases")
    } else {
        format!("DROP DATABASE `{name}`")
    };
    site.sql(&gone).await;
    assert!(site.world.apply("sql.dump", input.clone(), &plan.changes).await.is_err());
    assert!(!staging.join("new.sql").exists());
    // The same step, tried again, makes it; and again, makes no other.
    let back = if site.standin() {
        format!(
            "ALTER TABLE \"kept\" RENAME TO \"{name}.pages\"; INSERT INTO server_databases VALUES ('{name}')"
        )
    } else {
        format!(
            "CREATE DATABASE `{name}`; CREATE TABLE `{name}`.t (x int); INSERT INTO `{name}`.t VALUES (1)"
        )
    };
    site.sql(&back).await;
    let first = site.world.apply("sql.dump", input.clone(), &plan.changes).await.unwrap();
    let text = fs::read_to_string(staging.join("new.sql")).unwrap();
    assert!(text.trim_end().lines().last().unwrap().starts_with("-- end of dump: 1 tables, "), "{text}");
    let second = site.world.apply("sql.dump", input, &plan.changes).await.unwrap();
    assert_eq!(first, second);
    if site.standin() {
        // What was dumped makes the same table again.
        site.sql(&format!("ALTER TABLE \"{name}.pages\" RENAME TO former; DROP INDEX \"{name}.by_title\""))
            .await;
        site.sql(&text).await;
        let rows = |table: &str| format!("SELECT id, quote(title), quote(body) FROM \"{table}\" ORDER BY id");
        assert_eq!(site.sql(&rows("former")).await, site.sql(&rows(&format!("{name}.pages"))).await);
    } else {
        site.sql(&format!("DROP DATABASE `{name}`")).await;
    }
}

async fn the_account_logs_in_with_its_password_and_no_other(world: World) {
    use sqlx::Connection as _;
    use sqlx::mysql::MySqlConnection;
    let site = Site::new(world).await;
    let a = site.name("a");
    let url = site.world.url().unwrap();
    let place = url.split_once('@').unwrap().1.split_once('/').unwrap().0.to_owned();
    let login = async |password: &str| {
        MySqlConnection::connect(&format!("mysql://{a}:{password}@{place}/")).await.map(|_| ()).is_ok()
    };
    let input = json!({ "target": "db", "accounts": [a], "state": "present", "password": "first" });
    site.make("sql.account", input).await;
    assert!(login("password").await && !login("other").await && !login("").await);
    site.make("sql.account", json!({ "target": "db", "accounts": [a], "state": "locked" })).await;
    assert!(!login("password").await, "it is locked");
    site.make("sql.account", json!({ "target": "db", "accounts": [a], "state": "unlocked" })).await;
    assert!(login("password").await);
    // The server's own record of statements has the hash, and never the password.
    let said = site.world.writes().join("\n");
    assert!(said.contains("CREATE USER") && !said.contains("'password'"), "{said}");
    site.make("sql.drop_accounts", json!({ "target": "db", "accounts": [a] })).await;
    assert!(!login("password").await);
}

/// Everything that a tool's database may hold, made again in a fresh database and compared row by row.
async fn a_dump_restores_every_row(world: World) {
    let site = Site::new(world).await;
    let (name, again) = (site.name("1__data"), site.name("1__again"));
    site.sql(&format!(
        r#"CREATE DATABASE `{name}`; USE `{name}`;
        CREATE TABLE kinds (
          id bigint unsigned AUTO_INCREMENT PRIMARY KEY, tiny tinyint, small smallint, medium mediumint, flag bit(12),
          price decimal(20,6), single float, twice double, born date, at datetime(6), stamp timestamp(3) NULL, t time(2),
          y year, c char(5), v varchar(300) CHARACTER SET latin1, bin binary(4), vb varbinary(300), txt longtext,
          bl longblob, e enum('a','b''c'), s set('x','y'), j json, u uuid, ip inet6, p point,
          gen int GENERATED ALWAYS AS (tiny + 1) STORED, virt int AS (tiny + 2) VIRTUAL, hidden int INVISIBLE
        ) ENGINE=InnoDB DEFAULT CHARSET utf8mb4 COMMENT='it''s; `odd`';
        SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO';
        INSERT INTO kinds (id, tiny, small, medium, flag, price, single, twice, born, at, stamp, t, y, c, v, bin, vb, txt, bl, e, s, j, u, ip, p, hidden) VALUES
          (0, -128, -32768, 8388607, b'101010101010', -12345678901234.567891, 3.4028235e38, 1.7976931348623157e308, '2026-11-26',
           '2026-11-26 10:11:12.123456', '2026-11-26 10:11:12.5', '-838:59:59.99', 2026, 'ä', 'é\\''\n\r\0\Z"%_', x'00ff1a0a', x'', '', x'0027225c0a0d1a', 'b''c', 'x,y', '{{"a":[1,2]}}',
           '123e4567-e89b-12d3-a456-426614174000', '2001:db8::1', ST_GeomFromText('POINT(1.5 -2)', 4326), 7),
          (18446744073709551615, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL),
          (5, 1, 1, 1, 0, 0.1, 0.1, 0.1, '0000-00-00', '0000-00-00 00:00:00', '1970-01-01 00:00:01', '00:00:00', 0, '', '', x'00000000', x'ff', REPEAT('🦊\n(', 1000), REPEAT(x'00ff', 5000), 'a', '', 'null', NULL, NULL, NULL, NULL),
          (6, 1, 1, 1, 0, 0.1, 16777217, 0.30000000000000004, NULL, NULL, NULL, NULL, 1999, '  x', 'x  ', NULL, NULL, '-- table `kinds`: 3 rows\n', NULL, NULL, NULL, NULL, NULL, NULL, NULL, NULL);
        CREATE TABLE parent (k int PRIMARY KEY) ENGINE=InnoDB;
        CREATE TABLE child (k int, CONSTRAINT a_child FOREIGN KEY (k) REFERENCES parent (k)) ENGINE=InnoDB;
        INSERT INTO parent VALUES (1), (2); INSERT INTO child VALUES (1), (2), (2), (NULL);
        CREATE TABLE nothing (x int);
        CREATE TABLE many (k int PRIMARY KEY, v varchar(20)); INSERT INTO many SELECT seq, CONCAT('row ', seq) FROM seq_1_to_2500;
        CREATE TABLE `odd ``name` (`a ``b` int); INSERT INTO `odd ``name` VALUES (1);
        CREATE SEQUENCE counter START WITH 10 INCREMENT BY 5; SELECT NEXTVAL(counter);
        CREATE FUNCTION twice(x int) RETURNS int DETERMINISTIC RETURN x * 2;
        CREATE VIEW z_view AS SELECT k FROM parent;
        CREATE VIEW a_view AS SELECT k, twice(k) AS k2 FROM z_view;
        DELIMITER //
        CREATE PROCEDURE fill() BEGIN INSERT INTO nothing VALUES (1); SELECT 'INSERT INTO'; END //
        CREATE TRIGGER on_parent BEFORE INSERT ON parent FOR EACH ROW BEGIN SET NEW.k = NEW.k; SET @x = '; (1)'; END //
        CREATE EVENT tick ON SCHEDULE EVERY 1 DAY DISABLE DO BEGIN DELETE FROM nothing; END //
        DELIMITER ;
        "#,
    ))
    .await;
    let output = site.make("sql.dump", dump_input(&name, &["d", "data.sql.zst"])).await;
    assert_eq!(output.get("rows"), Some(&Value::Int(4 + 2 + 4 + 2500 + 1 + 1)));
    let bytes = fs::read(site.world.folder.path().join("staging/d/data.sql.zst")).unwrap();
    let text = String::from_utf8(zstd::stream::decode_all(&*bytes).unwrap()).unwrap();
    site.sql(&format!("CREATE DATABASE `{again}`; USE `{again}`;\n{text}")).await;

    let tables = ["kinds", "parent", "child", "nothing", "many", "odd ``name"];
    for table in tables {
        let sum = async |database: &str| {
            let line = site.sql(&format!("CHECKSUM TABLE `{database}`.`{table}` EXTENDED")).await;
            line.split('\t').nth(1).unwrap().trim().to_owned()
        };
        assert_eq!(sum(&name).await, sum(&again).await, "{table}");
        let shown =
            async |database: &str| site.sql(&format!("SHOW CREATE TABLE `{database}`.`{table}`")).await;
        assert_eq!(shown(&name).await, shown(&again).await);
    }
    let differing = site
        .sql(&format!(
            "SELECT COUNT(*) FROM (SELECT *, hidden FROM `{name}`.kinds EXCEPT SELECT *, hidden FROM `{again}`.kinds) d"
        ))
        .await;
    assert_eq!(differing.trim(), "0");
    // The numbers that the server holds ready are not given twice.
    let next = site.sql(&format!("SELECT NEXTVAL(`{again}`.counter)")).await;
    assert_eq!(next.trim(), "5010");
    assert_eq!(site.sql(&format!("SELECT * FROM `{again}`.a_view ORDER BY k")).await, "1\t2\n2\t4\n");
    site.sql(&format!("DROP DATABASE `{name}`; DROP DATABASE `{again}`")).await;
}

async fn what_cannot_be_seen_is_not_dumped(world: World) {
    let site = Site::new(world).await;
    let name = site.name("1__links");
    make_database(&site, &name).await;
    let url = site.world.url().unwrap();
    let place = url.split_once('@').unwrap().1;
    let reader = site.name("viewer");
    site.sql(&format!(
        "CREATE USER '{reader}'@'127.0.0.1' IDENTIFIED BY 'canary-1'; GRANT SELECT, SHOW VIEW ON `{name}`.* TO '{reader}'@'127.0.0.1'"
    ))
    .await;
    let config = world::config(&format!("mysql://{reader}:canary-1@{place}"));
    // Its own database is not one that it may enter.
    let config = json!({ "url": config["url"].as_str().unwrap().rsplit_once('/').unwrap().0.to_owned() + "/" + &name,
                         "password": config["password"] });
    let folder = site.world.folder.path().to_owned();
    let bindings = [
        ("db", "sql", config),
        ("homes", "files", json!({ "roots": { "staging": folder.join("staging") } })),
    ];
    let bindings = bindings.map(|(alias, kind, config)| Binding {
        alias: alias.into(),
        kind: kind.into(),
        config: world::json(config),
    });
    let Site { mut world, own } = site;
    world.targets = Arc::new(Targets::new(folder, bindings.into(), BTreeMap::new()));
    let site = Site { world, own };
    let failure = site.world.plan("sql.dump", dump_input(&name, &["a.sql"])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied, "{failure}");
    assert!(failure.message.contains("lacks TRIGGER"), "{failure}");
    assert!(!format!("{failure:?}").contains("canary-1"));
    site.sql(&format!("GRANT TRIGGER, EVENT ON `{name}`.* TO '{reader}'@'127.0.0.1'")).await;
    // An account that may not read the list of accounts is told what it needs.
    let failure =
        site.world.plan("sql.list_accounts", json!({ "target": "db", "accounts": ["a"] })).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied);
    assert!(failure.help.unwrap().contains("`mysql`"));
    site.sql(&format!("DROP DATABASE `{name}`; DROP USER '{reader}'@'127.0.0.1'")).await;
}
