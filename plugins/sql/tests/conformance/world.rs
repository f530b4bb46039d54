//! What a case works with: [`World`], one empty database with the plugin before it and another way in behind it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use farrier_action::harness::World as Objects;
use farrier_action::model::{Change, Failure, NodeName, RunId, Scope, Value, ids};
use farrier_action::{ActionRegistry, Binding, NodeInfo, Planned, ReadCx, Targets, WriteCx};
use farrier_testkit::{mariadb, postgres};
use sqlx::mysql::MySqlConnection;
use sqlx::postgres::PgConnection;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{AssertSqlSafe, Column as _, ConnectOptions as _, Connection as _, Row as _, ValueRef as _};

/// Declares cases: each becomes one test per database that it is for.
macro_rules! cases {
    (
        all: $($all:ident),+;
        $(servers: $($server:ident),+;)?
        $(sqlite: $($sqlite:ident),+;)?
        $(mariadb: $($mariadb:ident),+;)?
        $(postgres: $($postgres:ident),+;)?
    ) => {
        $crate::world::cases!(@ sqlite, Sqlite: $($all),+ $($(, $sqlite)+)?);
        $crate::world::cases!(@ mariadb, MariaDb: $($all),+ $($(, $server)+)? $($(, $mariadb)+)?);
        $crate::world::cases!(@ postgres, Postgres: $($all),+ $($(, $server)+)? $($(, $postgres)+)?);
    };
    (@ $module:ident, $kind:ident: $($name:ident),+) => {
        mod $module { $( #[test] fn $name() { $crate::world::run($crate::world::Kind::$kind, super::$name); } )+ }
    };
}
pub(crate) use cases;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Sqlite,
    MariaDb,
    Postgres,
}

pub(crate) fn run<F: Future<Output = ()>>(kind: Kind, case: impl FnOnce(World) -> F) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let world = World::new(kind);
    runtime.block_on(case(world));
}

enum Server {
    Sqlite(PathBuf),
    MariaDb(mariadb::Database),
    Postgres(postgres::Database),
}

pub(crate) struct World {
    pub(crate) kind: Kind,
    pub(crate) registry: ActionRegistry,
    pub(crate) targets: Arc<Targets>,
    pub(crate) folder: tempfile::TempDir,
    server: Server,
}

/// Text of JSON as a value.
pub(crate) fn json(value: serde_json::Value) -> Value {
    Value::from_json(&value.to_string()).unwrap()
}

pub(crate) fn registry() -> ActionRegistry {
    let mut registry = ActionRegistry::default();
    farrier_plugin_sql::register(&mut registry).unwrap();
    registry
}

pub(crate) fn targets(folder: &std::path::Path, config: serde_json::Value) -> Arc<Targets> {
    let binding = Binding { alias: "db".into(), kind: "sql".into(), config: json(config) };
    Arc::new(Targets::new(folder.to_owned(), vec![binding], BTreeMap::new()))
}

/// `scheme://user:password@rest` as the plugin wants it: the password apart.
pub(crate) fn config(url: &str) -> serde_json::Value {
    let (scheme, rest) = url.split_once("://").unwrap();
    let (who, place) = rest.split_once('@').unwrap();
    let (user, password) = who.split_once(':').unwrap();
    serde_json::json!({
        "url": format!("{scheme}://{user}@{place}"),
        "password": { "command": ["/bin/echo", password] },
    })
}

impl World {
    pub(crate) fn new(kind: Kind) -> World {
        let folder = tempfile::tempdir().unwrap();
        let server = match kind {
            Kind::Sqlite => Server::Sqlite(folder.path().join("test.db")),
            Kind::MariaDb => Server::MariaDb(mariadb::MariaDb::shared().fresh_database()),
            Kind::Postgres => Server::Postgres(postgres::Postgres::shared().fresh_database()),
        };
        let mut world = World {
            kind,
            registry: registry(),
            targets: targets(folder.path(), serde_json::json!({})),
            folder,
            server,
        };
        world.configure(serde_json::json!({}));
        world
    }

    /// A world over given targets, without another way in.
    pub(crate) fn over(
        kind: Kind,
        registry: ActionRegistry,
        targets: Arc<Targets>,
        folder: tempfile::TempDir,
    ) -> World {
        let server = Server::Sqlite(folder.path().join("none.db"));
        World { kind, registry, targets, folder, server }
    }

    /// The server's address with its password; nothing for a file.
    pub(crate) fn url(&self) -> Option<String> {
        match &self.server {
            Server::Sqlite(_) => None,
            Server::MariaDb(database) | Server::Postgres(database) => Some(database.url()),
        }
    }

    pub(crate) fn config(&self) -> serde_json::Value {
        match (&self.server, self.url()) {
            (Server::Sqlite(_), _) => {
                std::fs::write(self.folder.path().join("init.sql"), "").unwrap();
                serde_json::json!({ "url": "sqlite:test.db", "init": "init.sql" })
            }
            (_, url) => config(&url.unwrap()),
        }
    }

    /// Connects anew, with further settings.
    pub(crate) fn configure(&mut self, more: serde_json::Value) {
        let mut config = self.config();
        for (key, value) in more.as_object().unwrap() {
            config[key] = value.clone();
        }
        self.targets = targets(self.folder.path(), config);
    }

    /// Another way into the database.
    pub(crate) async fn connect(&self) -> Raw {
        match &self.server {
            Server::Sqlite(path) => {
                let options = SqliteConnectOptions::new().filename(path).create_if_missing(true);
                Raw::Sqlite(options.connect().await.unwrap())
            }
            Server::MariaDb(database) => {
                Raw::MariaDb(MySqlConnection::connect(&database.url()).await.unwrap())
            }
            Server::Postgres(database) => {
                Raw::Postgres(PgConnection::connect(&database.url()).await.unwrap())
            }
        }
    }

    /// Runs statements behind the plugin's back; rows with tabs between columns.
    pub(crate) async fn exec(&self, sql: &str) -> String {
        match &self.server {
            Server::Sqlite(_) => self.connect().await.rows(sql).await,
            Server::MariaDb(database) | Server::Postgres(database) => database.exec(sql),
        }
    }

    /// The text for this database.
    pub(crate) fn pick<'t>(&self, sqlite: &'t str, mariadb: &'t str, postgres: &'t str) -> &'t str {
        match self.kind {
            Kind::Sqlite => sqlite,
            Kind::MariaDb => mariadb,
            Kind::Postgres => postgres,
        }
    }

    /// The table that most cases use.
    pub(crate) async fn with_tools(&self, rows: &[(&str, i64, Option<&str>)]) {
        self.exec(self.pick(
            "CREATE TABLE tools (name VARCHAR(64) NOT NULL PRIMARY KEY, id INT UNIQUE, home TEXT, updated INT NOT NULL DEFAULT 7)",
            "CREATE TABLE tools (name VARCHAR(64) NOT NULL PRIMARY KEY, id INT UNIQUE, home MEDIUMTEXT, \
             updated INT NOT NULL DEFAULT 7) DEFAULT CHARSET utf8mb4",
            "CREATE TABLE tools (name VARCHAR(64) NOT NULL PRIMARY KEY, id INT UNIQUE, home TEXT, updated INT NOT NULL DEFAULT 7)",
        ))
        .await;
        for (name, id, home) in rows {
            let home = home.map_or("NULL".to_owned(), |home| format!("'{home}'"));
            self.exec(&format!("INSERT INTO tools (name, id, home) VALUES ('{name}', {id}, {home})")).await;
        }
    }

    /// The rows of `tools` by the names that plans use.
    pub(crate) async fn tools(&self) -> Objects {
        let rows = self.exec("SELECT name, id, home, updated FROM tools ORDER BY name").await;
        rows.lines()
            .filter(|line| !line.is_empty())
            .map(|line| {
                let name = line.split('\t').next().unwrap();
                (format!("table tools: name={name}"), Value::text(line))
            })
            .collect()
    }

    /// The rows of `tools`, columns separated by spaces.
    pub(crate) async fn tool_lines(&self) -> Vec<String> {
        self.tools().await.values().map(|line| line.as_str().unwrap().replace('\t', " ")).collect()
    }

    pub(crate) fn cx(&self) -> ReadCx {
        let run = RunId::at(0, [7; 10]);
        let node = NodeName::step("case");
        let effect_id = ids::effect_id(run, &node, "do");
        ReadCx::new(self.targets.clone(), Scope::default(), NodeInfo { run, node, attempt: 1, effect_id })
    }

    pub(crate) async fn plan(
        &self,
        action: &str,
        input: serde_json::Value,
    ) -> Result<Planned<Value>, Failure> {
        self.registry.bind(action, &json(input))?.plan(&self.cx()).await
    }

    pub(crate) async fn apply(
        &self,
        action: &str,
        input: serde_json::Value,
        changes: &[Change],
    ) -> Result<Value, Failure> {
        self.registry.bind(action, &json(input))?.apply(&WriteCx::after_intent(self.cx()), changes).await
    }

    pub(crate) async fn undo(
        &self,
        action: &str,
        input: serde_json::Value,
        changes: &[Change],
    ) -> Result<(), Failure> {
        self.registry.bind(action, &json(input))?.undo(&WriteCx::after_intent(self.cx()), changes).await
    }

    /// Plans and applies; the output.
    pub(crate) async fn sync(&self, input: serde_json::Value) -> Result<Value, Failure> {
        let plan = self.plan("sql.sync", input.clone()).await?;
        if plan.changes.is_empty() {
            return Ok(plan.output.unwrap());
        }
        let output = self.apply("sql.sync", input.clone(), &plan.changes).await?;
        assert_eq!(Some(&output), plan.output.as_ref(), "the plan foretells the output");
        let again = self.plan("sql.sync", input).await?;
        assert!(again.changes.is_empty(), "still to do: {:?}", again.changes);
        Ok(output)
    }

    /// The rows of a query.
    pub(crate) async fn query(
        &self,
        sql: &str,
        params: serde_json::Value,
        columns: serde_json::Value,
    ) -> Result<Value, Failure> {
        let input = serde_json::json!({ "target": "db", "sql": sql, "params": params, "columns": columns });
        let plan = self.plan("sql.query", input).await?;
        Ok(plan.output.unwrap().get("rows").unwrap().clone())
    }

    /// What the plugin's accounts did, where the server keeps a record: statements that write.
    pub(crate) fn writes(&self) -> Vec<String> {
        match &self.server {
            Server::Sqlite(_) => Vec::new(),
            Server::MariaDb(database) | Server::Postgres(database) => database.writes(),
        }
    }
}

/// A connection of the test's own.
pub(crate) enum Raw {
    Sqlite(SqliteConnection),
    MariaDb(MySqlConnection),
    Postgres(PgConnection),
}

impl Raw {
    pub(crate) async fn run(&mut self, sql: &str) -> Result<(), sqlx::Error> {
        let script = sqlx::raw_sql(AssertSqlSafe(sql));
        match self {
            Raw::Sqlite(connection) => script.execute(connection).await.map(|_| ()),
            Raw::MariaDb(connection) => script.execute(connection).await.map(|_| ()),
            Raw::Postgres(connection) => script.execute(connection).await.map(|_| ()),
        }
    }

    async fn rows(mut self, sql: &str) -> String {
        let Raw::Sqlite(connection) = &mut self else { panic!("only SQLite has no client of its own here") };
        let rows = sqlx::raw_sql(AssertSqlSafe(sql)).fetch_all(&mut *connection).await.expect(sql);
        let cell = |row: &sqlx::sqlite::SqliteRow, at: usize| {
            if row.try_get_raw(at).unwrap().is_null() {
                "NULL".to_owned()
            } else {
                row.get_unchecked::<String, _>(at)
            }
        };
        let lines = rows.iter().map(|row| {
            row.columns().iter().map(|column| cell(row, column.ordinal())).collect::<Vec<_>>().join("\t")
        });
        let text = lines.collect::<Vec<_>>().join("\n");
        if let Raw::Sqlite(connection) = self {
            connection.close().await.unwrap();
        }
        text
    }
}
