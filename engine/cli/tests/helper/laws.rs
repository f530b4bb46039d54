//! The laws that all actions keep, for those whose files a helper makes and removes.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farrier_action::harness::{Case, Shown, World};
use farrier_action::{ActionRegistry, Binding, Targets, WriteCx};
use farrier_model::{Scope, Value};
use serde_json::json;

use crate::common::Project;
use crate::far::{helper_of, roots_file};

const TABLES: &str = "
CREATE TABLE account (mysql_username VARCHAR(255) PRIMARY KEY, password_hash VARCHAR(41));
CREATE TABLE server_databases (name text PRIMARY KEY);
INSERT INTO server_databases VALUES ('s1__links'), ('s1__maps');
CREATE TABLE \"s1__links.pages\" (id integer PRIMARY KEY, title text);
INSERT INTO \"s1__links.pages\" VALUES (1, 'a''b'), (2, NULL);
";

/// A database with two others in it, and a root behind a helper.
struct Site {
    project: Project,
    registry: ActionRegistry,
    targets: Arc<Targets>,
}

fn value(json: &serde_json::Value) -> Value {
    Value::from_json(&json.to_string()).unwrap()
}

impl Site {
    fn new() -> Site {
        let project = Project::new();
        fs::create_dir(project.path("staging")).unwrap();
        roots_file(&project, &[("staging", "staging")]);
        project.write("tables.sql", TABLES);
        let mut registry = ActionRegistry::default();
        farrier_plugin_files::register(&mut registry).unwrap();
        farrier_plugin_sql::register(&mut registry).unwrap();
        let database =
            json!({ "url": "sqlite:database.sqlite", "init": "tables.sql", "server_name": "db-1:3306" });
        let files = json!({ "via": { "helper": helper_of(&project) } });
        let bindings = [("db", "sql", database), ("homes", "files", files)];
        let bindings = bindings.map(|(alias, kind, config)| Binding {
            alias: alias.into(),
            kind: kind.into(),
            config: value(&config),
        });
        let targets = Targets::new(project.path(""), bindings.into(), BTreeMap::new());
        Site { project, registry, targets: Arc::new(targets) }
    }

    fn staging(&self, path: &str) -> PathBuf {
        self.project.path("staging").join(path)
    }

    /// From a thread of its own, since this one has a runtime.
    fn rows(&self, select: &str) -> Vec<String> {
        std::thread::scope(|scope| {
            scope.spawn(|| self.project.sqlite("database.sqlite", select)).join().unwrap()
        })
    }

    /// Files by their paths and rows by what changes call them.
    fn world(&self) -> World {
        let mut world = World::new();
        files(&self.staging(""), "staging", &mut world);
        for row in self.rows("SELECT mysql_username, password_hash FROM account") {
            let (name, hash) = row.split_once('\t').unwrap();
            // The file is part of what the change of its row makes.
            let file = world.remove(&format!("staging/{name}/my.cnf"));
            let both = Value::list(vec![Value::text(hash), file.unwrap_or(Value::Null)]);
            world.insert(format!("table account: mysql_username={name}"), both);
        }
        for name in self.rows("SELECT name FROM server_databases") {
            world.insert(format!("database {name}"), Value::Null);
        }
        world
    }

    /// Makes the database: it comes with its first use.
    async fn begin(&self) {
        let input = value(&json!({ "target": "db", "prefix": "s1__" }));
        let (case, listed) = (self.case("sql.list_databases", &input), "sql.list_databases");
        self.registry.bind(listed, &input).unwrap().plan(&case.read_cx()).await.unwrap();
        assert!(self.project.path("database.sqlite").exists());
    }

    /// Plans a step and applies what was planned.
    async fn make(&self, action: &str, input: &serde_json::Value) -> Value {
        let input = value(input);
        let (cx, bound) = (self.case(action, &input).read_cx(), self.registry.bind(action, &input).unwrap());
        let planned = bound.plan(&cx).await.unwrap();
        bound.apply(&WriteCx::after_intent(cx), &planned.changes).await.unwrap()
    }

    fn case<'a>(&'a self, action: &'a str, input: &Value) -> Case<'a> {
        Case {
            registry: &self.registry,
            action,
            input: input.clone(),
            targets: self.targets.clone(),
            scope: Scope::default(),
            observe: Box::new(|| Box::pin(async { self.world() })),
            disturb: None,
            bad_inputs: Vec::new(),
        }
    }

    async fn prove(&self, action: &str, input: serde_json::Value, bad: &[serde_json::Value]) -> Shown {
        let mut case = self.case(action, &value(&input));
        case.bad_inputs = bad.iter().map(value).collect();
        case.prove().await.unwrap()
    }
}

/// What lies beneath a folder, without Farrier's own.
fn files(folder: &Path, name: &str, world: &mut World) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let shown = format!("{name}/{}", entry.file_name().to_string_lossy());
        if entry.file_name() == ".farrier-private" {
            continue;
        }
        if entry.path().is_dir() {
            files(&entry.path(), &shown, world);
        } else {
            let text = hex::encode(fs::read(entry.path()).unwrap());
            world.insert(shown, Value::text(text));
        }
    }
}

#[tokio::test]
async fn what_a_helper_makes_for_databases_keeps_the_laws() {
    let site = Site::new();
    site.begin().await;
    let dump = |path: serde_json::Value| {
        json!({ "target": "db", "database": "s1__links",
                "into": { "target": "homes", "root": "staging", "path": path } })
    };
    let bad =
        [dump(json!(["..", "a.sql"])), dump(json!(["a.txt"])), dump(json!([".farrier-private", "a.sql"]))];
    let input = dump(json!(["tools.a", "links.sql.zst"]));
    let shown = site.prove("sql.dump", input.clone(), &bad).await;
    assert_eq!(shown.output.get("rows"), Some(&Value::Int(2)));
    assert!(!site.staging("tools.a").exists(), "it was undone at last");
    let dumped = site.make("sql.dump", &input).await;
    assert!(site.staging("tools.a/links.sql.zst").exists());
    let sha256 = dumped.get("sha256").unwrap().to_string();

    let drop = |sha256: &str| {
        json!({ "target": "db", "databases": ["s1__links"], "dumped_as": [sha256],
                "dumps": { "target": "homes", "root": "staging" } })
    };
    let shown = site.prove("sql.drop_databases", drop(&sha256), &[drop("x")]).await;
    assert_eq!(shown.plan.changes.len(), 1);
    let left = site.rows("SELECT name FROM server_databases");
    assert_eq!(left, ["s1__maps"]);

    let discard = |sha256: &str| json!({ "target": "homes", "root": "staging", "made_as": [sha256] });
    site.prove("files.discard", discard(&sha256), &[discard("x")]).await;
    assert!(!site.staging("tools.a").exists(), "the folder was made for the file");
}

#[tokio::test]
async fn credentials_behind_a_helper_keep_the_laws() {
    let site = Site::new();
    site.begin().await;
    for name in ["one", "two"] {
        fs::create_dir(site.staging(name)).unwrap();
    }
    let input = |names: &[&str], file: &str| {
        let accounts: Vec<_> =
            names.iter().map(|name| json!({ "name": name, "file": [name, file] })).collect();
        json!({ "target": "db", "table": "account", "account": "mysql_username", "hash": "password_hash",
                "files": "homes", "root": "staging", "accounts": accounts })
    };
    let bad = [input(&["one"], ".."), input(&["o'ne"], "my.cnf")];
    let shown = site.prove("sql.credentials", input(&["one", "two", "three"], "my.cnf"), &bad).await;
    assert_eq!(shown.output, value(&json!({ "added": ["one", "two"], "skipped": ["three"] })));
    assert!(!site.staging("one/my.cnf").exists(), "it was undone at last");
    site.make("sql.credentials", &input(&["one", "two", "three"], "my.cnf")).await;
    assert!(fs::read_to_string(site.staging("one/my.cnf")).unwrap().contains("password = "));
}
