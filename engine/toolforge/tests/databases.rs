//! Real databases take the tables' definitions and rows, and hold every byte of them.

use farrier_testkit::mariadb::MariaDb;
use farrier_testkit::postgres::Postgres;
use farrier_toolforge::{Dialect, DriftCounts, Drifted, World, oracle};

fn drifted() -> Drifted {
    let world = World::generate(80, 4);
    let homes = tempfile::tempdir().unwrap();
    world.write_homes(homes.path()).unwrap();
    let current =
        oracle::expected(&world.ldif(), homes.path(), &world.project, 1_700_000_000).tables().unwrap();
    current.drifted(DriftCounts { added: 4, changed: 10, removed: 3, renamed: 2 }, 4, 1_600_000_000)
}

/// One line per row: `id`, then each text in hexadecimal.
fn expected_dump(drifted: &Drifted) -> (String, String) {
    let hex = |text: &str| text.bytes().map(|byte| format!("{byte:02x}")).collect::<String>();
    let optional = |text: &Option<String>| text.as_deref().map_or("NULL".into(), hex);
    let mut tools: Vec<_> = drifted.tables.tools.iter().collect();
    tools.sort_by_key(|row| row.id);
    let tools = tools.iter().map(|row| {
        let texts = [
            hex(&row.name),
            hex(&row.home),
            optional(&row.description),
            optional(&row.toolinfo),
            optional(&row.maintainers),
        ];
        format!("{}\t{}\t{}\n", row.id, texts.join("\t"), row.updated)
    });
    let mut users: Vec<_> = drifted.tables.users.iter().collect();
    users.sort_by_key(|row| row.id);
    let users = users
        .iter()
        .map(|row| format!("{}\t{}\t{}\t{}\n", row.id, hex(&row.name), hex(&row.wikitech), hex(&row.home)));
    (tools.collect(), users.collect())
}

fn check(dialect: Dialect, exec: impl Fn(&str) -> String, hex: impl Fn(&str) -> String) {
    let drifted = drifted();
    exec(&dialect.schema());
    exec(&drifted.tables.insert_sql(dialect));
    let columns = |names: &[&str]| names.iter().map(|name| hex(name)).collect::<Vec<_>>().join(", ");
    let texts = columns(&["name", "home", "description", "toolinfo", "maintainers"]);
    let tools = exec(&format!("SELECT id, {texts}, updated FROM tools ORDER BY id"));
    let users =
        exec(&format!("SELECT id, {} FROM users ORDER BY id", columns(&["name", "wikitech", "home"])));
    let (expected_tools, expected_users) = expected_dump(&drifted);
    assert_eq!(tools.trim_end(), expected_tools.trim_end());
    assert_eq!(users.trim_end(), expected_users.trim_end());
}

#[test]
fn mariadb_holds_the_rows() {
    let database = MariaDb::shared().fresh_database();
    check(Dialect::MariaDb, |sql| database.exec(sql), |name| format!("LOWER(HEX({name}))"));
}

#[test]
fn postgresql_holds_the_rows() {
    let database = Postgres::shared().fresh_database();
    check(
        Dialect::Postgres,
        |sql| database.exec(sql),
        |name| format!("encode(convert_to({name}, 'UTF8'), 'hex')"),
    );
}
