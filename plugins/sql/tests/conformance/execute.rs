//! `sql.execute` on every database.

use farrier_action::harness::{Case, World as Objects};
use farrier_action::model::{ChangeKind, FailureKind, Fidelity, Scope, Value};
use serde_json::json;

use crate::world::{self, Kind, World, cases};

cases!(
    all: keeps_the_laws,
        wrong_numbers_of_rows_are_undone,
        mistakes_are_named,
        definitions_can_be_changed;
);

const DELETE: &str = "DELETE FROM tools WHERE name = $name";

async fn keeps_the_laws(world: World) {
    world.with_tools(&[("a", 1, None), ("b", 2, None)]).await;
    let input = json!({
        "target": "db", "sql": DELETE, "params": { "name": "a" }, "expect_rows": 1,
        "unless": "SELECT 1 FROM (SELECT COUNT(*) AS n FROM tools WHERE name = $name) AS present WHERE n = 0",
    });
    let bad = |key: &str, value: serde_json::Value| {
        let mut input = input.clone();
        input[key] = value;
        world::json(input)
    };
    let whole = || async {
        let text = world.tool_lines().await.join("\n");
        Objects::from([(format!("statement: {DELETE}"), Value::text(text))])
    };
    let case = Case {
        registry: &world.registry,
        action: "sql.execute",
        input: world::json(input.clone()),
        targets: world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(whole())),
        disturb: None,
        bad_inputs: vec![
            bad("sql", json!("COMMIT")),
            bad("sql", json!("DELETE FROM tools; DELETE FROM tools")),
            bad("sql", json!("DELETE FROM tools WHERE name = '$name'")),
            bad("unless", json!("DELETE FROM tools")),
            bad("expect_rows", json!({ "min": 2, "max": 1 })),
            bad("params", json!({})),
        ],
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(shown.output.get("rows_affected"), Some(&Value::Int(1)));
    assert_eq!(shown.plan.fidelity, Fidelity::Described);
    assert_eq!(shown.plan.changes[0].kind, ChangeKind::Run);
    assert_eq!(shown.plan.changes[0].after.get("params"), Some(&world::json(json!({ "name": "a" }))));
    // Done already: nothing to do, and the output says so.
    let plan = world.plan("sql.execute", input).await.unwrap();
    assert!(plan.changes.is_empty());
    assert_eq!(plan.output.unwrap().get("rows_affected"), Some(&Value::Int(0)));
}

async fn wrong_numbers_of_rows_are_undone(world: World) {
    world.with_tools(&[("a", 1, None), ("b", 2, None)]).await;
    for (expected, shown) in
        [(json!(1), "where 1 "), (json!({ "max": 1 }), "at most 1"), (json!({ "min": 3 }), "at least 3")]
    {
        let input = json!({ "target": "db", "sql": "UPDATE tools SET home = 'x'", "expect_rows": expected });
        let plan = world.plan("sql.execute", input.clone()).await.unwrap();
        let failure = world.apply("sql.execute", input, &plan.changes).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.contains("changed 2 rows") && failure.message.contains(shown), "{failure}");
        assert_eq!(world.tool_lines().await, ["a 1 NULL 7", "b 2 NULL 7"]);
    }
    // Rows that match count, also when they do not change.
    let input = json!({ "target": "db", "sql": "UPDATE tools SET updated = 7", "expect_rows": 2 });
    let plan = world.plan("sql.execute", input.clone()).await.unwrap();
    world.apply("sql.execute", input, &plan.changes).await.unwrap();
}

async fn mistakes_are_named(world: World) {
    world.with_tools(&[("a", 1, None), ("b", 2, None)]).await;
    for (sql, kind, expected) in [
        ("DELETE FROM nowhere", FailureKind::Refused, "nowhere"),
        ("UPDATE tools SET nothing = 1", FailureKind::Refused, "nothing"),
        ("INSERT INTO tools (name) VALUES ('a')", FailureKind::Refused, "unique key"),
        ("UPDATE tools SET id = 1", FailureKind::Refused, "id"),
        ("UPDATE tools SET name = NULL", FailureKind::Refused, "name"),
    ] {
        let input = json!({ "target": "db", "sql": sql });
        let plan = world.plan("sql.execute", input.clone()).await.unwrap();
        let failure = world.apply("sql.execute", input, &plan.changes).await.expect_err(sql);
        assert_eq!(failure.kind, kind, "{sql}: {failure}");
        assert!(failure.message.contains(expected) && !failure.in_doubt, "{sql}: {failure}");
        assert_eq!(world.tool_lines().await, ["a 1 NULL 7", "b 2 NULL 7"], "{sql}");
    }
}

async fn definitions_can_be_changed(world: World) {
    world.with_tools(&[]).await;
    let input = json!({ "target": "db", "sql": "ALTER TABLE tools ADD COLUMN note TEXT" });
    let plan = world.plan("sql.execute", input.clone()).await.unwrap();
    world.apply("sql.execute", input.clone(), &plan.changes).await.unwrap();
    world.exec("SELECT note FROM tools").await;
    let counted = json!({ "target": "db", "sql": "DROP TABLE tools", "expect_rows": 0 });
    let planned = world.plan("sql.execute", counted).await;
    assert_eq!(planned.is_err(), world.kind == Kind::MariaDb, "MariaDB commits definitions by itself");
}
