//! `sql.query` on every database.

use farrier_action::harness::Case;
use farrier_action::model::{FailureKind, Scope, Value};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use serde_json::json;

use crate::world::{self, Kind, World, cases};

cases!(
    all: keeps_the_laws,
        rows_come_back_typed,
        columns_are_checked,
        mistakes_are_named,
        the_server_refuses_to_write,
        too_many_rows_are_an_error,
        any_text_comes_back_as_it_went;
);

async fn keeps_the_laws(world: World) {
    world.with_tools(&[("a", 1, Some("/a")), ("b", 2, None)]).await;
    let input = json!({
        "target": "db", "sql": "SELECT name, id FROM tools WHERE id > $least ORDER BY id", "params": { "least": 0 },
        "columns": { "name": "string", "id": "int" },
    });
    let bad = |key: &str, value: serde_json::Value| {
        let mut input = input.clone();
        input[key] = value;
        world::json(input)
    };
    let case = Case {
        registry: &world.registry,
        action: "sql.query",
        input: world::json(input.clone()),
        targets: world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(world.tools())),
        disturb: None,
        bad_inputs: vec![
            bad("sql", json!("DELETE FROM tools")),
            bad("sql", json!("SELECT name, id FROM tools; DELETE FROM tools")),
            bad("sql", json!("SELECT name, id FROM tools WHERE name = '$least'")),
            bad("sql", json!("SELECT name, id FROM tools WHERE id > $most")),
            bad("columns", json!({ "name": "text" })),
            bad("columns", json!({})),
            bad("params", json!({ "least": { "a": 1 } })),
        ],
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(
        shown.output,
        world::json(json!({ "rows": [{ "name": "a", "id": 1 }, { "name": "b", "id": 2 }] }))
    );
}

async fn rows_come_back_typed(world: World) {
    world.with_tools(&[("a", 1, Some("/a")), ("b", 2, None)]).await;
    let rows = world
        .query(
            world.pick(
                "SELECT COUNT(*) AS n, SUM(id) AS total, AVG(id) AS mean, MAX(home) AS home, 1 AS yes, NULL AS absent, \
                 '2026-11-22 10:15:30' AS moment FROM tools",
                "SELECT COUNT(*) AS n, SUM(id) AS total, AVG(id) AS mean, MAX(home) AS home, 1 AS yes, NULL AS absent, \
                 TIMESTAMP'2026-11-22 10:15:30' AS moment FROM tools",
                "SELECT COUNT(*) AS n, SUM(id) AS total, AVG(id) AS mean, MAX(home) AS home, TRUE AS yes, NULL AS absent, \
                 TIMESTAMPTZ '2026-11-22 11:15:30+01' AS moment FROM tools",
            ),
            json!({}),
            json!({
                "moment": "timestamp", "n": "int", "total": "int", "mean": "float", "home": "optional string", "yes": "bool",
                "absent": "optional int",
            }),
        )
        .await
        .unwrap();
    let expected = json!([{
        "moment": "2026-11-22T10:15:30Z", "n": 2, "total": 3, "mean": 1.5, "home": "/a", "yes": true, "absent": null,
    }]);
    assert_eq!(rows, world::json(expected));
    let keys: Vec<_> = rows.as_list().unwrap()[0].as_map().unwrap().keys().map(ToString::to_string).collect();
    assert_eq!(keys[..2], ["moment", "n"], "columns keep the author's order");
    let some = world
        .query(
            "SELECT name FROM tools WHERE name IN ($names)",
            json!({ "names": ["b", "x"] }),
            json!({ "name": "string" }),
        )
        .await
        .unwrap();
    assert_eq!(some, world::json(json!([{ "name": "b" }])));
}

async fn columns_are_checked(world: World) {
    world.with_tools(&[("a", 1, Some("/a")), ("b", 2, None)]).await;
    for (sql, columns, expected) in [
        ("SELECT name FROM tools", json!({ "nam": "string" }), "no column `nam`"),
        ("SELECT id, id FROM tools", json!({ "id": "int" }), "several columns named `id`"),
        (
            "SELECT home FROM tools ORDER BY name",
            json!({ "home": "string" }),
            "column `home` of row 2 is null",
        ),
        (
            "SELECT name FROM tools",
            json!({ "name": "int" }),
            "column `name` of row 1 is text, not a whole number",
        ),
        (
            "SELECT id FROM tools",
            json!({ "id": "string" }),
            "column `id` of row 1 is a whole number, not text",
        ),
        ("SELECT id + 5 AS flag FROM tools", json!({ "flag": "bool" }), "column `flag` of row 1 is"),
    ] {
        let failure = world.query(sql, json!({}), columns).await.expect_err(sql);
        assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
        assert!(failure.message.contains(expected), "{sql}: {failure}");
    }
}

async fn mistakes_are_named(world: World) {
    world.with_tools(&[]).await;
    for (sql, expected) in [
        ("SELECT name FROM nowhere", "nowhere"),
        ("SELECT absent AS name FROM tools", "absent"),
        ("SELECT FROM WHERE", "syntax"),
    ] {
        let failure = world.query(sql, json!({}), json!({ "name": "string" })).await.expect_err(sql);
        assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
        assert!(failure.message.contains(expected), "{failure}");
        assert_eq!(failure.target.as_deref(), Some("db"));
    }
    // A failed statement leaves a usable target.
    assert!(world.query("SELECT name FROM tools", json!({}), json!({ "name": "string" })).await.is_ok());
}

async fn the_server_refuses_to_write(world: World) {
    world.with_tools(&[("a", 1, None)]).await;
    if world.kind == Kind::MariaDb {
        let wipe =
            "CREATE FUNCTION wipe() RETURNS INT MODIFIES SQL DATA BEGIN DELETE FROM tools; RETURN 1; END";
        world.connect().await.run(wipe).await.unwrap();
    }
    let sql = world.pick(
        "WITH a AS (SELECT 1) DELETE FROM tools",
        "SELECT wipe() AS name",
        "WITH gone AS (DELETE FROM tools RETURNING name) SELECT name FROM gone",
    );
    let failure = world.query(sql, json!({}), json!({ "name": "string" })).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    assert_eq!(world.tool_lines().await, ["a 1 NULL 7"]);
    // The same statement as the writing account would do it.
    let input = json!({ "target": "db", "sql": sql });
    let plan = world.plan("sql.execute", input.clone()).await.unwrap();
    world.apply("sql.execute", input, &plan.changes).await.unwrap();
    assert!(world.tool_lines().await.is_empty());
}

async fn too_many_rows_are_an_error(world: World) {
    world.with_tools(&[("a", 1, None), ("b", 2, None), ("c", 3, None)]).await;
    let input = |most: u64| json!({ "target": "db", "sql": "SELECT name FROM tools", "columns": { "name": "string" }, "max_rows": most });
    assert!(world.plan("sql.query", input(3)).await.is_ok());
    let failure = world.plan("sql.query", input(2)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Limit);
    assert!(world.plan("sql.query", input(3)).await.is_ok());
}

/// Whatever a value is, it stays a value: through a bound parameter, a written row, and a comparison.
async fn any_text_comes_back_as_it_went(world: World) {
    world.with_tools(&[]).await;
    let postgres = world.kind == Kind::Postgres;
    let texts = proptest::collection::vec(
        prop_oneof![
            any::<String>(),
            "['\"`\\\\;$?:@%_ \\-#*/a\n]{0,12}",
            Just("' OR '1'='1".to_owned()),
            Just("\\'; DROP TABLE tools; -- ".to_owned()),
        ],
        1..20,
    );
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut trees = Vec::new();
    for _ in 0..20 {
        trees.push(texts.new_tree(&mut runner).unwrap().current());
    }
    for (round, texts) in trees.into_iter().enumerate() {
        let texts: Vec<String> =
            texts.into_iter().map(|text| if postgres { text.replace('\0', "") } else { text }).collect();
        let echoed =
            world.query("SELECT $v AS v", json!({ "v": texts[0] }), json!({ "v": "string" })).await.unwrap();
        assert_eq!(echoed.as_list().unwrap()[0].get("v"), Some(&Value::text(&*texts[0])));
        let rows: Vec<_> = texts
            .iter()
            .enumerate()
            .map(|(at, text)| json!({ "name": format!("{round}-{at}"), "id": at, "home": text }))
            .collect();
        let input = json!({ "target": "db", "table": "tools", "key": ["name"], "rows": rows, "rows_not_listed": "delete" });
        world.sync(input).await.unwrap();
        let stored = world
            .query("SELECT home FROM tools ORDER BY id", json!({}), json!({ "home": "string" }))
            .await
            .unwrap();
        let stored: Vec<String> =
            stored.as_list().unwrap().iter().map(|row| row.get("home").unwrap().to_string()).collect();
        assert_eq!(stored, texts);
    }
}
