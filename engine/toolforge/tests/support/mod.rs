//! What the tests share: tables as text, byte for byte.

use farrier_toolforge::{Dialect, Tables};

/// Both tables as the statements of [`selects`] show them: one line per row by number, texts in hexadecimal, columns
/// parted by tabs.
pub(crate) fn dump(tables: &Tables) -> (String, String) {
    let hex = |text: &str| hex::encode(text);
    let optional = |text: &Option<String>| text.as_deref().map_or("NULL".into(), hex);
    let mut tools: Vec<_> = tables.tools.iter().collect();
    tools.sort_by_key(|row| row.id);
    let tools = tools.iter().map(|row| {
        let (name, home) = (hex(&row.name), hex(&row.home));
        let texts =
            [optional(&row.description), optional(&row.toolinfo), optional(&row.maintainers)].join("\t");
        format!("{}\t{name}\t{home}\t{texts}\t{}", row.id, row.updated)
    });
    let mut users: Vec<_> = tables.users.iter().collect();
    users.sort_by_key(|row| row.id);
    let users = users
        .iter()
        .map(|row| format!("{}\t{}\t{}\t{}", row.id, hex(&row.name), hex(&row.wikitech), hex(&row.home)));
    (tools.collect::<Vec<_>>().join("\n"), users.collect::<Vec<_>>().join("\n"))
}

/// The statements whose rows [`dump`] describes, for `tools` and for `users`.
pub(crate) fn selects(dialect: Dialect) -> [String; 2] {
    let hex = |name: &str| match dialect {
        Dialect::MariaDb => format!("LOWER(HEX({name}))"),
        Dialect::Sqlite => format!("CASE WHEN {name} IS NULL THEN 'NULL' ELSE lower(hex({name})) END"),
        Dialect::Postgres => format!("encode(convert_to({name}, 'UTF8'), 'hex')"),
    };
    let columns = |names: &[&str]| names.iter().map(|name| hex(name)).collect::<Vec<_>>().join(", ");
    let texts = columns(&["name", "home", "description", "toolinfo", "maintainers"]);
    [
        format!("SELECT id, {texts}, updated FROM tools ORDER BY id"),
        format!("SELECT id, {} FROM users ORDER BY id", columns(&["name", "wikitech", "home"])),
    ]
}

/// Compares what two tables hold, and names the first row that differs.
#[track_caller]
pub(crate) fn same_tables(found: &(String, String), expected: &(String, String)) {
    for (table, found, expected) in [("tools", &found.0, &expected.0), ("users", &found.1, &expected.1)] {
        let (mut found, mut expected) = (found.lines(), expected.lines());
        loop {
            let (one, other) = (found.next(), expected.next());
            assert_eq!(one, other, "in `{table}`: a row found and a row expected");
            if one.is_none() {
                break;
            }
        }
    }
}
