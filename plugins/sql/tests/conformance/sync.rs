//! `sql.sync` on every database.

use farrier_action::harness::Case;
use farrier_action::model::{ChangeKind, FailureKind, Scope, Value};
use serde_json::json;

use crate::world::{self, Kind, World, cases};

cases!(
    all: keeps_the_laws,
        mistakes_in_the_input_are_named,
        a_missing_table_is_named,
        a_table_without_a_fitting_key_is_refused,
        nulls_and_empty_texts_differ,
        texts_are_stored_byte_for_byte,
        values_take_the_columns_form,
        ignored_columns_never_cause_a_write,
        columns_that_mark_the_time_of_writing,
        old_values_stay_when_the_wanted_is_null,
        only_the_rows_of_the_step_are_touched,
        unique_values_can_move_between_rows,
        a_circle_with_a_foreign_key_is_refused,
        collisions_of_unique_keys_are_planned_for,
        ten_thousand_rows_go_in_chunks,
        thirty_five_thousand_unchanged_rows,
        drift_changes_nothing_and_names_the_rows,
        applying_twice_is_once,
        undo_leaves_alone_what_is_back_already,
        a_composite_key,
        spellings_that_the_collation_holds_equal;
);

fn tools(rows: serde_json::Value) -> serde_json::Value {
    json!({ "target": "db", "table": "tools", "key": ["name"], "rows": rows, "rows_not_listed": "delete" })
}

fn with(mut input: serde_json::Value, key: &str, value: serde_json::Value) -> serde_json::Value {
    input[key] = value;
    input
}

async fn keeps_the_laws(world: World) {
    world.with_tools(&[("stays", 1, Some("/a")), ("differs", 2, Some("/b")), ("goes", 3, None)]).await;
    let wanted = tools(json!([
        { "name": "stays", "id": 1, "home": "/a" },
        { "name": "differs", "id": 2, "home": "/new" },
        { "name": "comes", "id": 4, "home": null },
    ]));
    let case = Case {
        registry: &world.registry,
        action: "sql.sync",
        input: world::json(wanted.clone()),
        targets: world.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| Box::pin(world.tools())),
        disturb: Some(Box::new(|| {
            Box::pin(async {
                world.exec("UPDATE tools SET home = '/elsewhere' WHERE name = 'differs'").await;
            })
        })),
        bad_inputs: vec![
            world::json(with(wanted.clone(), "key", json!([]))),
            world::json(with(wanted.clone(), "table", json!("tools; DROP TABLE tools"))),
            world::json(with(wanted.clone(), "rows", json!([{ "name": null, "id": 1, "home": "" }]))),
            world::json(with(wanted.clone(), "unknown", json!(1))),
        ],
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(
        shown.output,
        world::json(json!({ "inserted": 1, "updated": 1, "deleted": 1, "unchanged": 1 }))
    );
    assert_eq!(shown.plan.considered, Some(3));
    let kinds: Vec<_> = shown.plan.changes.iter().map(|change| (&*change.object, change.kind)).collect();
    assert_eq!(
        kinds,
        [
            ("table tools: name=goes", ChangeKind::Delete),
            ("table tools: name=differs", ChangeKind::Update),
            ("table tools: name=comes", ChangeKind::Create),
        ]
    );
    assert_eq!(shown.plan.changes[1].before.get("home"), Some(&Value::text("/b")));
    assert_eq!(shown.plan.changes[1].after.get("home"), Some(&Value::text("/new")));
}

async fn mistakes_in_the_input_are_named(world: World) {
    world.with_tools(&[]).await;
    let row = |name: &str, id: i64| json!({ "name": name, "id": id, "home": "" });
    for (rows, expected) in [
        (json!("x"), "not a list"),
        (json!([1]), "row 1 is int"),
        (json!([{ "name": "a", "size": 1 }]), "has no column `size`"),
        (json!([row("a", 1), { "name": "b", "id": 2 }]), "row 2 has no column `home`"),
        (json!([{ "name": "a" }, row("b", 1)]), "row 2 has the column `id`"),
        (json!([{ "id": 1 }]), "no key column `name`"),
        (json!([row("a", 1), row("b", 2), row("a", 3)]), "rows 1 and 3 have the same key: name=a"),
        (json!([{ "name": "a", "id": "many", "home": "" }]), "row 1 (name=a): `id` is text `many`"),
        (json!([{ "name": "a", "id": [1], "home": "" }]), "`id` is a list"),
        (json!([{ "name": null }]), "`name`"),
    ] {
        let failure = world.plan("sql.sync", tools(rows.clone())).await.expect_err(&rows.to_string());
        assert_eq!(failure.kind, FailureKind::Input, "{failure}");
        assert!(failure.message.contains(expected), "{rows}: {failure}");
        assert_eq!(failure.target.as_deref(), Some("db"));
    }
    for (key, value, expected) in [
        ("ignore", json!(["sise"]), "no column `sise`"),
        ("ignore", json!(["name"]), "key column"),
        ("key", json!(["name", "name"]), "twice"),
        ("set_on_write", json!({ "home": "now" }), "`set_on_write`"),
        ("only_where", json!({ "id": "x" }), "`only_where`"),
        ("keep_old_when_null", json!(["name"]), "key column"),
    ] {
        let input = with(tools(json!([row("a", 1)])), key, value);
        let failure = world.plan("sql.sync", input).await.expect_err(key);
        assert!(failure.kind == FailureKind::Input && failure.message.contains(expected), "{key}: {failure}");
    }
}

async fn a_missing_table_is_named(world: World) {
    world.exec(world.pick("SELECT 1", "SELECT 1", "SELECT 1")).await;
    let failure = world.plan("sql.sync", tools(json!([]))).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.message.contains("`tools`"), "{failure}");
}

async fn a_table_without_a_fitting_key_is_refused(world: World) {
    world.exec("CREATE TABLE tools (name VARCHAR(64) NOT NULL, id INT)").await;
    let failure = world.plan("sql.sync", tools(json!([{ "name": "a", "id": 1 }]))).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.message.contains("not a primary or unique key"), "{failure}");
    if world.kind == Kind::MariaDb {
        world.exec("CREATE TABLE old (name VARCHAR(64) PRIMARY KEY) ENGINE=MyISAM").await;
        let failure = world
            .plan("sql.sync", with(tools(json!([{ "name": "a" }])), "table", json!("old")))
            .await
            .unwrap_err();
        assert!(failure.message.contains("MyISAM"), "{failure}");
    }
}

async fn nulls_and_empty_texts_differ(world: World) {
    world.with_tools(&[("null", 1, None), ("empty", 2, Some(""))]).await;
    let wanted = tools(json!([
        { "name": "null", "id": null, "home": "" },
        { "name": "empty", "id": 2, "home": null },
    ]));
    let plan = world.plan("sql.sync", wanted.clone()).await.unwrap();
    assert_eq!(plan.changes.len(), 2);
    world.sync(wanted.clone()).await.unwrap();
    assert_eq!(world.tool_lines().await, ["empty 2 NULL 7", "null NULL  7"]);
    world.undo("sql.sync", wanted, &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, ["empty 2  7", "null 1 NULL 7"]);
}

/// Texts that go wrong where SQL, collations or character sets are handled carelessly.
const TEXTS: [&str; 14] = [
    "plain",
    "under_score%percent",
    "x'; DROP TABLE tools; --",
    "back\\slash \\' \\\" \\0",
    "quote\"double`back",
    "$name ? :a @b",
    "four bytes 🐴 and 𝔘",
    "end space ",
    " begin space",
    "line\nbreak\ttab\rreturn",
    "Ünïcödé",
    "unicode",
    "ΣΑΣ",
    "zero\u{200d}width",
];

async fn texts_are_stored_byte_for_byte(world: World) {
    world.with_tools(&[]).await;
    let rows: Vec<_> = TEXTS
        .iter()
        .enumerate()
        .map(|(at, text)| json!({ "name": format!("t{at}"), "id": at, "home": text }))
        .collect();
    world.sync(tools(json!(rows))).await.unwrap();
    let stored = world
        .query("SELECT home FROM tools ORDER BY id", json!({}), json!({ "home": "string" }))
        .await
        .unwrap();
    let stored: Vec<_> =
        stored.as_list().unwrap().iter().map(|row| row.get("home").unwrap().to_string()).collect();
    assert_eq!(stored, TEXTS);
    // A change of nothing but case or an end space is a change.
    let changed: Vec<_> = TEXTS
        .iter()
        .enumerate()
        .map(|(at, text)| json!({ "name": format!("t{at}"), "id": at, "home": format!("{} ", text.to_uppercase()) }))
        .collect();
    let output = world.sync(tools(json!(changed))).await.unwrap();
    assert_eq!(output.get("updated"), Some(&Value::Int(TEXTS.len() as i64)));
    // Such texts as keys, as far as the collation tells them apart.
    let keys: Vec<_> = TEXTS
        .iter()
        .filter(|text| **text != "unicode")
        .enumerate()
        .map(|(at, text)| json!({ "name": text, "id": at, "home": "" }))
        .collect();
    world.sync(tools(json!(keys))).await.unwrap();
    let failure =
        world.plan("sql.sync", tools(json!([{ "name": "a".repeat(65), "id": 1, "home": "" }]))).await;
    if world.kind != Kind::Sqlite {
        assert!(failure.unwrap_err().message.contains("65 characters"));
    }
    // More than a 64 kB text column holds.
    let long = "🐴".repeat(100_000);
    world.sync(tools(json!([{ "name": "long", "id": 1, "home": long }]))).await.unwrap();
    // More in all than one packet to the server may have.
    let long: Vec<_> =
        (0..60).map(|at| json!({ "name": format!("l{at}"), "id": at, "home": long })).collect();
    world.sync(tools(json!(long))).await.unwrap();
}

async fn values_take_the_columns_form(world: World) {
    world
        .exec(world.pick(
            "CREATE TABLE kinds (k INTEGER PRIMARY KEY, flag BOOLEAN, small SMALLINT, big BIGINT, ratio DOUBLE, price NUMERIC, \
             day DATE, moment DATETIME, raw BLOB, note TEXT)",
            "CREATE TABLE kinds (k INT PRIMARY KEY, flag TINYINT(1), small TINYINT UNSIGNED, big BIGINT UNSIGNED, ratio FLOAT, \
             price DECIMAL(8,2), day DATE, moment DATETIME, raw BLOB, note TEXT CHARACTER SET latin1, stamp TIMESTAMP(3) NULL, \
             fixed CHAR(5), year YEAR, span TIME(1), bits BIT(9), pick ENUM('a','b'), doc JSON)",
            "CREATE TABLE kinds (k INT PRIMARY KEY, flag BOOLEAN, small SMALLINT, big BIGINT, ratio REAL, price NUMERIC(8,2), \
             day DATE, moment TIMESTAMP(0), raw BYTEA, note TEXT, stamp TIMESTAMPTZ, fixed CHAR(5), doc JSONB, text_doc JSON, \
             id UUID, span INTERVAL, address INET, tags TEXT[])",
        ))
        .await;
    let mut row = json!({
        "k": "1", "flag": true, "small": 200, "big": "9007199254740993", "ratio": 0.1, "price": "12.50",
        "day": "2026-11-22", "moment": "2026-11-22 10:15:30", "raw": "AP8=", "note": "é",
    });
    let more = match world.kind {
        Kind::Sqlite => json!({}),
        Kind::MariaDb => json!({
            "stamp": "2026-11-22T11:15:30.1239+01:00", "fixed": "ab ", "year": 2026, "span": "-26:00:00.5", "bits": 257,
            "pick": "b", "doc": "{\"a\": 1}", "price": "12.499",
        }),
        Kind::Postgres => json!({
            "stamp": "2026-11-22T11:15:30.123456+01:00", "fixed": "ab", "doc": { "b": [1, null], "a": "x" },
            "text_doc": "{\"a\":  1}", "id": "A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11", "span": "1 day 02:00:00",
            "address": "192.0.2.0/24", "tags": "{a,\"b c\"}",
        }),
    };
    for (key, value) in more.as_object().unwrap() {
        row[key] = value.clone();
    }
    let nulls: serde_json::Map<String, serde_json::Value> = row
        .as_object()
        .unwrap()
        .keys()
        .map(|key| (key.clone(), if key == "k" { json!(2) } else { json!(null) }))
        .collect();
    let input = |rows: serde_json::Value| json!({ "target": "db", "table": "kinds", "key": ["k"], "rows": rows, "rows_not_listed": "delete" });
    world.sync(input(json!([row, nulls]))).await.unwrap();
    // Everything is exchanged, so every column is compared with its old value and set from a CASE.
    let (mut first, mut second) = (row.clone(), json!(nulls));
    first["k"] = json!(2);
    second["k"] = json!(1);
    let exchanged = input(json!([first, second]));
    let plan = world.plan("sql.sync", exchanged.clone()).await.unwrap();
    assert_eq!(plan.changes.len(), 2);
    world.sync(exchanged.clone()).await.unwrap();
    world.undo("sql.sync", exchanged, &plan.changes).await.unwrap();
    assert!(world.plan("sql.sync", input(json!([row, nulls]))).await.unwrap().changes.is_empty());
    // Deleted and brought back, with every column.
    let plan = world.plan("sql.sync", input(json!([]))).await.unwrap();
    assert_eq!(plan.changes.len(), 2);
    world.sync(input(json!([]))).await.unwrap();
    world.undo("sql.sync", input(json!([])), &plan.changes).await.unwrap();
    assert!(world.plan("sql.sync", input(json!([row, nulls]))).await.unwrap().changes.is_empty());
    if world.kind != Kind::Sqlite {
        row["small"] = json!(100_000);
        let failure = world.plan("sql.sync", input(json!([row]))).await.unwrap_err();
        assert!(failure.message.contains("`small` is int `100000`"), "{failure}");
    }
    if world.kind == Kind::MariaDb {
        world.exec("UPDATE kinds SET big = 18446744073709551615").await;
        let failure = world.plan("sql.sync", input(json!([nulls]))).await.unwrap_err();
        assert!(failure.kind == FailureKind::Refused && failure.message.contains("`big`"), "{failure}");
    }
}

async fn ignored_columns_never_cause_a_write(world: World) {
    world.with_tools(&[("a", 1, Some("/a")), ("b", 2, Some("/b"))]).await;
    let input = |home: &str| {
        let rows = json!([
            { "name": "a", "id": 1, "home": "/a", "updated": 100 },
            { "name": "b", "id": 2, "home": home, "updated": 100 },
            { "name": "c", "id": 3, "home": "/c", "updated": 100 },
        ]);
        with(tools(rows), "ignore", json!(["updated"]))
    };
    let first = world.plan("sql.sync", input("/new")).await.unwrap();
    world.sync(input("/new")).await.unwrap();
    assert_eq!(world.tool_lines().await, ["a 1 /a 7", "b 2 /new 100", "c 3 /c 100"]);
    // A touch of the ignored column in the meantime is no drift.
    world.exec("UPDATE tools SET updated = 55").await;
    world.undo("sql.sync", input("/new"), &first.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, ["a 1 /a 55", "b 2 /b 7"]);
}

async fn columns_that_mark_the_time_of_writing(world: World) {
    world.with_tools(&[("a", 1, Some("/a")), ("b", 2, Some("/b"))]).await;
    let input = with(
        tools(json!([
            { "name": "a", "id": 1, "home": "/a" },
            { "name": "b", "id": 2, "home": "/new" },
            { "name": "c", "id": 3, "home": "/c" },
        ])),
        "set_on_write",
        json!({ "updated": "unix_time" }),
    );
    let plan = world.plan("sql.sync", input.clone()).await.unwrap();
    world.sync(input.clone()).await.unwrap();
    let updated = world
        .query("SELECT updated FROM tools ORDER BY name", json!({}), json!({ "updated": "int" }))
        .await
        .unwrap();
    let updated: Vec<i64> =
        updated.as_list().unwrap().iter().map(|row| row.get("updated").unwrap().as_int().unwrap()).collect();
    assert_eq!(updated[0], 7);
    assert!(updated[1] > 1_600_000_000 && updated[2] > 1_600_000_000, "{updated:?}");
    world.undo("sql.sync", input, &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, ["a 1 /a 7", "b 2 /b 7"]);

    let moment = world.pick("TEXT", "DATETIME", "TIMESTAMPTZ");
    world.exec(&format!("CREATE TABLE seen (k INT PRIMARY KEY, at {moment} NOT NULL)")).await;
    let input = json!({ "target": "db", "table": "seen", "key": ["k"], "rows": [{ "k": 1 }], "set_on_write": { "at": "now" } });
    world.sync(input).await.unwrap();
    let at = world.query("SELECT at FROM seen", json!({}), json!({ "at": "timestamp" })).await.unwrap();
    assert!(at.as_list().unwrap()[0].get("at").unwrap().as_str().unwrap().starts_with("20"));
    // Nothing tells what a new row's column should be.
    let failure = world
        .plan("sql.sync", json!({ "target": "db", "table": "seen", "key": ["k"], "rows": [{ "k": 2 }] }))
        .await
        .unwrap_err();
    assert!(
        failure.kind == FailureKind::Input && failure.message.contains("`at` has no default"),
        "{failure}"
    );
}

async fn old_values_stay_when_the_wanted_is_null(world: World) {
    world.with_tools(&[("a", 1, Some("/a")), ("b", 2, Some("/b"))]).await;
    let input = with(
        tools(json!([
            { "name": "a", "id": 1, "home": null },
            { "name": "b", "id": 20, "home": null },
            { "name": "c", "id": 3, "home": null },
        ])),
        "keep_old_when_null",
        json!(["home"]),
    );
    world.sync(input).await.unwrap();
    assert_eq!(world.tool_lines().await, ["a 1 /a 7", "b 20 /b 7", "c 3 NULL 7"]);
}

async fn only_the_rows_of_the_step_are_touched(world: World) {
    world.exec("CREATE TABLE member (realm VARCHAR(20) NOT NULL, name VARCHAR(20) NOT NULL, n INT, PRIMARY KEY (realm, name))").await;
    world.exec("INSERT INTO member VALUES ('tools', 'a', 1), ('tools', 'b', 2), ('beta', 'a', 3), ('beta', 'z', 4)").await;
    let input = json!({
        "target": "db", "table": "member", "key": ["name"], "only_where": { "realm": "tools" }, "rows_not_listed": "delete",
        "rows": [{ "name": "a", "n": 10 }, { "name": "c", "n": 30 }],
    });
    let plan = world.plan("sql.sync", input.clone()).await.unwrap();
    assert_eq!(plan.considered, Some(2));
    world.sync(input.clone()).await.unwrap();
    let rows = world.exec("SELECT realm, name, n FROM member ORDER BY realm, name").await;
    assert_eq!(rows.trim_end(), "beta\ta\t3\nbeta\tz\t4\ntools\ta\t10\ntools\tc\t30");
    world.undo("sql.sync", input, &plan.changes).await.unwrap();
    let rows = world.exec("SELECT realm, name, n FROM member ORDER BY realm, name").await;
    assert_eq!(rows.trim_end(), "beta\ta\t3\nbeta\tz\t4\ntools\ta\t1\ntools\tb\t2");

    // The key is unique beyond the scope: a row that another step owns is in the way.
    world.with_tools(&[("a", 1, Some("/other"))]).await;
    let input = with(tools(json!([{ "name": "a", "id": 2 }])), "only_where", json!({ "home": "/mine" }));
    let failure = world.plan("sql.sync", input).await.unwrap_err();
    assert!(
        failure.kind == FailureKind::Refused && failure.message.contains("outside `only_where`"),
        "{failure}"
    );
    let input = with(
        tools(json!([{ "name": "b", "id": 2, "home": "/x" }])),
        "only_where",
        json!({ "home": "/mine" }),
    );
    let failure = world.plan("sql.sync", input).await.unwrap_err();
    assert!(failure.message.contains("not the value that `only_where` says"), "{failure}");
}

async fn unique_values_can_move_between_rows(world: World) {
    world
        .with_tools(&[
            ("a", 1, None),
            ("b", 2, None),
            ("c", 3, None),
            ("d", 4, None),
            ("e", 5, None),
            ("f", 6, None),
        ])
        .await;
    // a and b exchange; c takes d's, d takes a free one; e goes, f takes e's; g takes f's.
    let input = tools(json!([
        { "name": "a", "id": 2 }, { "name": "b", "id": 1 }, { "name": "c", "id": 4 }, { "name": "d", "id": 40 },
        { "name": "f", "id": 5 }, { "name": "g", "id": 6 },
    ]));
    world.exec("UPDATE tools SET home = '/kept', updated = 9 WHERE name = 'a'").await;
    let before = world.tool_lines().await;
    let plan = world.plan("sql.sync", input.clone()).await.unwrap();
    world.sync(input.clone()).await.unwrap();
    assert_eq!(
        world.tool_lines().await,
        ["a 2 /kept 9", "b 1 NULL 7", "c 4 NULL 7", "d 40 NULL 7", "f 5 NULL 7", "g 6 NULL 7"]
    );
    world.undo("sql.sync", input, &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, before);
}

async fn a_circle_with_a_foreign_key_is_refused(world: World) {
    world.with_tools(&[("a", 1, None), ("b", 2, None)]).await;
    world
        .exec(
            "CREATE TABLE uses (tool VARCHAR(64) NOT NULL, \
             CONSTRAINT uses_tool FOREIGN KEY (tool) REFERENCES tools (name) ON DELETE CASCADE)",
        )
        .await;
    world.exec("INSERT INTO uses VALUES ('a')").await;
    let failure = world
        .plan("sql.sync", tools(json!([{ "name": "a", "id": 2 }, { "name": "b", "id": 1 }])))
        .await
        .unwrap_err();
    assert!(failure.kind == FailureKind::Refused && failure.message.contains("exchange"), "{failure}");
    // Without a circle the foreign key is in nobody's way.
    world.sync(tools(json!([{ "name": "a", "id": 2 }, { "name": "b", "id": 3 }]))).await.unwrap();
    assert_eq!(world.exec("SELECT tool FROM uses").await.trim_end(), "a");
}

async fn collisions_of_unique_keys_are_planned_for(world: World) {
    world.with_tools(&[("a", 1, None), ("b", 2, None)]).await;
    let both = tools(json!([{ "name": "x", "id": 9 }, { "name": "y", "id": 8 }, { "name": "z", "id": "9" }]));
    let failure = world.plan("sql.sync", both).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Input);
    assert!(failure.message.contains("rows 1 (name=x) and 3 (name=z) both have id=9"), "{failure}");
    // An existing row that stays has the value.
    let kept = with(tools(json!([{ "name": "x", "id": 2 }])), "rows_not_listed", json!("keep"));
    let failure = world.plan("sql.sync", kept.clone()).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.message.contains("row 1 (name=x) cannot get id=2: the existing row name=b"), "{failure}");
    // One that goes does not matter, and neither do nulls.
    world
        .sync(tools(
            json!([{ "name": "x", "id": 2 }, { "name": "n1", "id": null }, { "name": "n2", "id": null }]),
        ))
        .await
        .unwrap();
}

async fn ten_thousand_rows_go_in_chunks(world: World) {
    world.with_tools(&[("old", 0, None)]).await;
    let rows = |home: &str| -> Vec<serde_json::Value> {
        (1..=10_000)
            .map(|at| json!({ "name": format!("tool-{at}"), "id": at, "home": if at % 4 == 0 { format!("{home}{at}") } else { "/same".into() } }))
            .collect()
    };
    let output = world.sync(tools(json!(rows("/a")))).await.unwrap();
    assert_eq!(
        output,
        world::json(json!({ "inserted": 10_000, "updated": 0, "deleted": 1, "unchanged": 0 }))
    );
    let output = world.sync(tools(json!(rows("/b")))).await.unwrap();
    assert_eq!(
        output,
        world::json(json!({ "inserted": 0, "updated": 2_500, "deleted": 0, "unchanged": 7_500 }))
    );
    let gone = tools(json!([]));
    let plan = world.plan("sql.sync", gone.clone()).await.unwrap();
    assert_eq!(plan.changes.len(), 10_000);
    assert_eq!(plan.notes, ["the list of wanted rows is empty"]);
    world.sync(gone.clone()).await.unwrap();
    assert_eq!(world.exec("SELECT COUNT(*) FROM tools").await.trim_end(), "0");
    world.undo("sql.sync", gone, &plan.changes).await.unwrap();
    assert!(world.plan("sql.sync", tools(json!(rows("/b")))).await.unwrap().changes.is_empty());
    if world.kind != Kind::Sqlite {
        let inserts = world.writes().iter().filter(|sql| sql.contains("INSERT INTO")).count();
        assert!(inserts < 200, "{inserts} inserts: rows go many at a time");
    }
}

async fn thirty_five_thousand_unchanged_rows(world: World) {
    world.with_tools(&[]).await;
    let rows: Vec<_> = (0..35_000)
        .map(|at| json!({ "name": format!("tool-{at}"), "id": at, "home": format!("/data/{at}") }))
        .collect();
    let input = with(tools(json!(rows)), "chunk", json!(5000));
    world.sync(input.clone()).await.unwrap();
    let wrote = world.writes().len();
    let plan = world.plan("sql.sync", input).await.unwrap();
    assert_eq!((plan.changes.len(), plan.considered), (0, Some(35_000)));
    assert_eq!(world.writes().len(), wrote, "a plan writes nothing");
}

async fn drift_changes_nothing_and_names_the_rows(world: World) {
    for (meanwhile, object) in [
        ("UPDATE tools SET home = '/x' WHERE name = 'differs'", "name=differs"),
        ("UPDATE tools SET id = NULL WHERE name = 'differs'", "name=differs"),
        ("UPDATE tools SET home = '/x' WHERE name = 'goes'", "name=goes"),
        ("DELETE FROM tools WHERE name = 'differs'", "name=differs"),
        ("INSERT INTO tools (name, id) VALUES ('comes', 99)", "name=comes"),
    ] {
        world.with_tools(&[("differs", 2, Some("/b")), ("goes", 3, Some("/c"))]).await;
        let input = tools(json!([
            { "name": "differs", "id": 2, "home": "/new" },
            { "name": "comes", "id": 4, "home": "/d" },
        ]));
        let plan = world.plan("sql.sync", input.clone()).await.unwrap();
        world.exec(meanwhile).await;
        let before = world.tools().await;
        let failure = world.apply("sql.sync", input, &plan.changes).await.expect_err(meanwhile);
        assert_eq!(failure.kind, FailureKind::Drift, "{meanwhile}: {failure}");
        assert!(failure.message.contains(object), "{meanwhile}: {failure}");
        assert!(!failure.in_doubt);
        assert_eq!(world.tools().await, before, "{meanwhile}");
        world.exec("DROP TABLE tools").await;
    }
    // A unique value that someone took in the meantime.
    world.with_tools(&[("a", 1, None)]).await;
    let input = tools(json!([{ "name": "a", "id": 1 }, { "name": "b", "id": 2 }]));
    let plan = world.plan("sql.sync", input.clone()).await.unwrap();
    world.exec("INSERT INTO tools (name, id) VALUES ('thief', 2)").await;
    let failure = world.apply("sql.sync", input, &plan.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.message.contains("id"), "names the key: {failure}");
}

async fn applying_twice_is_once(world: World) {
    world.with_tools(&[("differs", 2, Some("/b")), ("goes", 3, None)]).await;
    let input = tools(
        json!([{ "name": "differs", "id": 2, "home": "/new" }, { "name": "comes", "id": 4, "home": null }]),
    );
    let plan = world.plan("sql.sync", input.clone()).await.unwrap();
    let once = world.apply("sql.sync", input.clone(), &plan.changes).await.unwrap();
    let lines = world.tool_lines().await;
    assert_eq!(world.apply("sql.sync", input.clone(), &plan.changes).await.unwrap(), once);
    assert_eq!(world.tool_lines().await, lines);
    // Half done is not done.
    world.exec("DELETE FROM tools WHERE name = 'comes'").await;
    let failure = world.apply("sql.sync", input, &plan.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift);
}

async fn undo_leaves_alone_what_is_back_already(world: World) {
    world.with_tools(&[("differs", 2, Some("/b")), ("goes", 3, None)]).await;
    let before = world.tool_lines().await;
    let input = tools(
        json!([{ "name": "differs", "id": 2, "home": "/new" }, { "name": "comes", "id": 4, "home": null }]),
    );
    let plan = world.plan("sql.sync", input.clone()).await.unwrap();
    world.apply("sql.sync", input.clone(), &plan.changes).await.unwrap();
    world.exec("DELETE FROM tools WHERE name = 'comes'").await;
    world.exec("INSERT INTO tools (name, id) VALUES ('goes', 3)").await;
    world.undo("sql.sync", input.clone(), &plan.changes).await.unwrap();
    assert_eq!(world.tool_lines().await, before);
    // What someone else made of a row is not overwritten.
    world.apply("sql.sync", input.clone(), &plan.changes).await.unwrap();
    world.exec("UPDATE tools SET home = '/third' WHERE name = 'differs'").await;
    let third = world.tool_lines().await;
    let failure = world.undo("sql.sync", input, &plan.changes).await.unwrap_err();
    assert!(failure.kind == FailureKind::Drift && failure.message.contains("name=differs"), "{failure}");
    assert_eq!(world.tool_lines().await, third);
}

async fn a_composite_key(world: World) {
    world.exec("CREATE TABLE grid (x INT NOT NULL, y VARCHAR(9) NOT NULL, v INT, PRIMARY KEY (x, y))").await;
    world.exec("INSERT INTO grid VALUES (1, '1', 0), (11, '', 0), (1, '2', 0)").await;
    let input = json!({
        "target": "db", "table": "grid", "key": ["x", "y"], "rows_not_listed": "delete",
        "rows": [{ "v": 5, "x": 1, "y": "1" }, { "v": 6, "x": 11, "y": "" }, { "v": 7, "x": 1, "y": "3" }],
    });
    let plan = world.plan("sql.sync", input.clone()).await.unwrap();
    assert_eq!(&*plan.changes[0].object, "table grid: x=1, y=2");
    world.sync(input.clone()).await.unwrap();
    assert_eq!(
        world.exec("SELECT x, y, v FROM grid ORDER BY v").await.trim_end(),
        "1\t1\t5\n11\t\t6\n1\t3\t7"
    );
    // A list of few rows looks its rows up by key.
    let one =
        json!({ "target": "db", "table": "grid", "key": ["x", "y"], "rows": [{ "x": 1, "y": "3", "v": 8 }] });
    let plan = world.plan("sql.sync", one.clone()).await.unwrap();
    assert_eq!(plan.considered, Some(1));
    world.sync(one).await.unwrap();
}

async fn spellings_that_the_collation_holds_equal(world: World) {
    world
        .exec(world.pick(
            "CREATE TABLE people (name TEXT NOT NULL PRIMARY KEY COLLATE NOCASE, n INT, nick TEXT UNIQUE COLLATE NOCASE)",
            "CREATE TABLE people (name VARCHAR(64) PRIMARY KEY, n INT, nick VARCHAR(64) UNIQUE) DEFAULT CHARSET utf8mb4",
            "CREATE TABLE people (name VARCHAR(64) PRIMARY KEY, n INT, nick VARCHAR(64) UNIQUE)",
        ))
        .await;
    world.exec("INSERT INTO people VALUES ('Foo', 1, 'f'), ('bar', 2, 'b'), ('José', 3, 'j')").await;
    let input = |rows: serde_json::Value, others: &str| json!({ "target": "db", "table": "people", "key": ["name"], "rows": rows, "rows_not_listed": others });
    let names =
        || async { world.exec("SELECT name FROM people ORDER BY n").await.trim_end().replace('\n', " ") };
    // Two wanted rows cannot both be stored.
    let two =
        input(json!([{ "name": "x", "n": 1, "nick": null }, { "name": "X", "n": 2, "nick": null }]), "keep");
    let planned = world.plan("sql.sync", two).await;
    if world.kind == Kind::Postgres {
        assert_eq!(planned.unwrap().changes.len(), 2);
        return;
    }
    let failure = planned.unwrap_err();
    assert!(failure.kind == FailureKind::Input && failure.message.contains("name=x and name=X"), "{failure}");
    let nicks = input(
        json!([{ "name": "x", "n": 1, "nick": "same" }, { "name": "y", "n": 2, "nick": "SAME" }]),
        "keep",
    );
    let failure = world.plan("sql.sync", nicks).await.unwrap_err();
    assert!(
        failure.kind == FailureKind::Input && failure.message.contains("both have nick=SAME"),
        "{failure}"
    );
    // A wanted and an existing row are one row, spelled anew.
    for others in ["keep", "delete"] {
        let input = input(
            json!([{ "name": "foo", "n": 1, "nick": "F" }, { "name": "bar", "n": 2, "nick": "b" }, { "name": "José", "n": 3, "nick": "j" }]),
            others,
        );
        let plan = world.plan("sql.sync", input.clone()).await.unwrap();
        let changes: Vec<_> = plan.changes.iter().map(|change| (&*change.object, change.kind)).collect();
        assert_eq!(changes, [("table people: name=Foo", ChangeKind::Update)]);
        world.sync(input.clone()).await.unwrap();
        assert_eq!(names().await, "foo bar José");
        world.undo("sql.sync", input, &plan.changes).await.unwrap();
        assert_eq!(names().await, "Foo bar José");
    }
    if world.kind == Kind::MariaDb {
        // Beyond ASCII the server is asked, also about end spaces.
        for wanted in ["jose", "JOSÉ ", "Jose "] {
            let input = input(json!([{ "name": wanted, "n": 3, "nick": "j" }]), "keep");
            let plan = world.plan("sql.sync", input.clone()).await.unwrap();
            assert_eq!(
                plan.changes.iter().map(|change| change.kind).collect::<Vec<_>>(),
                [ChangeKind::Update],
                "{wanted}"
            );
            world.sync(input).await.unwrap();
        }
        let two = input(
            json!([{ "name": "Straße", "n": 1, "nick": null }, { "name": "ÑU", "n": 2, "nick": null }, { "name": "nu", "n": 3, "nick": null }]),
            "keep",
        );
        let failure = world.plan("sql.sync", two).await.unwrap_err();
        assert!(
            failure.kind == FailureKind::Input && failure.message.contains("name=ÑU and name=nu"),
            "{failure}"
        );
        let taken = input(json!([{ "name": "new", "n": 9, "nick": "J\u{301}" }]), "keep");
        let planned = world.plan("sql.sync", taken).await;
        assert!(planned.is_ok() || planned.unwrap_err().message.contains("nick"), "no other failure");
    }
}
