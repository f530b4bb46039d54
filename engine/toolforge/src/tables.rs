//! The tables `tools` and `users`: their definitions in three dialects, their rows, and tables that have fallen behind.

use std::fmt::Write as _;

use serde::Serialize;

use crate::random::Random;

/// A database's way of writing SQL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// MariaDB, the dialect of the real tables.
    MariaDb,
    /// SQLite, for the demo.
    Sqlite,
    /// PostgreSQL.
    Postgres,
}

impl Dialect {
    /// Every dialect.
    pub const ALL: [Dialect; 3] = [Dialect::MariaDb, Dialect::Sqlite, Dialect::Postgres];

    /// In file names.
    pub fn name(self) -> &'static str {
        match self {
            Dialect::MariaDb => "mariadb",
            Dialect::Sqlite => "sqlite",
            Dialect::Postgres => "postgres",
        }
    }

    /// The definitions of both tables.
    pub fn schema(self) -> String {
        let (name, text, after) = match self {
            Dialect::MariaDb => ("varchar(64)", "mediumtext", " ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"),
            Dialect::Sqlite => ("text", "text", ""),
            Dialect::Postgres => ("varchar(64)", "text", ""),
        };
        let number = if self == Dialect::MariaDb { "int" } else { "integer" };
        format!(
            "CREATE TABLE tools (\n  name {name} NOT NULL PRIMARY KEY,\n  id {number} NOT NULL UNIQUE,\n  \
             home {text} NOT NULL,\n  description {text},\n  toolinfo {text},\n  maintainers {text},\n  \
             updated {number} NOT NULL\n){after};\n\
             CREATE TABLE users (\n  name {name} NOT NULL PRIMARY KEY,\n  id {number} NOT NULL UNIQUE,\n  \
             wikitech {name} NOT NULL UNIQUE,\n  home {text} NOT NULL\n){after};\n"
        )
    }

    fn quote(self, text: &str) -> String {
        let text = text.replace('\'', "''");
        // Only MariaDB reads a backslash as the start of an escape.
        if self == Dialect::MariaDb {
            format!("'{}'", text.replace('\\', "\\\\"))
        } else {
            format!("'{text}'")
        }
    }

    fn quote_optional(self, text: Option<&String>) -> String {
        text.map_or_else(|| "NULL".into(), |text| self.quote(text))
    }
}

/// One row of `tools`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ToolRow {
    /// Without the project.
    pub name: String,
    /// `uidNumber`.
    pub id: i64,
    /// As the directory has it.
    pub home: String,
    /// `.description` in one line.
    pub description: Option<String>,
    /// `toolinfo.json` in one line.
    pub toolinfo: Option<String>,
    /// Names, with a space between.
    pub maintainers: Option<String>,
    /// When the row was last written, in unix seconds.
    pub updated: i64,
}

impl ToolRow {
    /// Whether both say the same about the tool, whenever they were written.
    pub fn same_content(&self, other: &ToolRow) -> bool {
        ToolRow { updated: 0, ..self.clone() } == ToolRow { updated: 0, ..other.clone() }
    }
}

/// One row of `users`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct UserRow {
    /// The shell name.
    pub name: String,
    /// `uidNumber`.
    pub id: i64,
    /// The wiki name.
    pub wikitech: String,
    /// As the directory has it.
    pub home: String,
}

/// The content of both tables.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Tables {
    /// By name.
    pub tools: Vec<ToolRow>,
    /// By name.
    pub users: Vec<UserRow>,
}

/// How far tables have fallen behind. Every number counts rows of each table, as far as it has so many.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DriftCounts {
    /// Rows that are missing.
    pub added: usize,
    /// Rows with old content.
    pub changed: usize,
    /// Rows of things that are gone.
    pub removed: usize,
    /// Rows under an old name whose number (and wiki name) the new name has now: the old row must go before the new
    /// one can come. Each counts as one created and one deleted.
    pub renamed: usize,
}

/// What bringing a table up to date changes, as sorted names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Differences {
    /// Missing in the table.
    pub created: Vec<String>,
    /// Different in the table.
    pub updated: Vec<String>,
    /// Only in the table.
    pub deleted: Vec<String>,
}

impl Differences {
    fn sort(mut self) -> Differences {
        for names in [&mut self.created, &mut self.updated, &mut self.deleted] {
            names.sort_unstable();
        }
        self
    }

    /// How many rows a run writes.
    pub fn count(&self) -> usize {
        self.created.len() + self.updated.len() + self.deleted.len()
    }
}

/// Tables that have fallen behind.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drifted {
    /// What they hold.
    pub tables: Tables,
    /// What brings `tools` up to date.
    pub tools: Differences,
    /// What brings `users` up to date.
    pub users: Differences,
}

impl Tables {
    /// INSERT statements for every row.
    pub fn insert_sql(&self, dialect: Dialect) -> String {
        let mut sql = String::new();
        let tools = self.tools.iter().map(|row| {
            format!(
                "({}, {}, {}, {}, {}, {}, {})",
                dialect.quote(&row.name),
                row.id,
                dialect.quote(&row.home),
                dialect.quote_optional(row.description.as_ref()),
                dialect.quote_optional(row.toolinfo.as_ref()),
                dialect.quote_optional(row.maintainers.as_ref()),
                row.updated
            )
        });
        insert(
            &mut sql,
            "tools (name, id, home, description, toolinfo, maintainers, updated)",
            tools.collect(),
        );
        let users = self.users.iter().map(|row| {
            format!(
                "({}, {}, {}, {})",
                dialect.quote(&row.name),
                row.id,
                dialect.quote(&row.wikitech),
                dialect.quote(&row.home)
            )
        });
        insert(&mut sql, "users (name, id, wikitech, home)", users.collect());
        sql
    }

    /// These tables as they were some time ago: `counts` rows differ, and the lists say which. Old rows bear the
    /// time `updated`. Among the changed rows are some that differ only in case or in a space at the end, or have
    /// NULL where there is a text now.
    pub fn drifted(&self, counts: DriftCounts, seed: u64, updated: i64) -> Drifted {
        let mut random = Random::new(seed ^ 0x0064_7269_6674);
        let mut tables = self.clone();
        for row in &mut tables.tools {
            row.updated = updated;
        }
        let mut tools = Differences::default();
        let top = self.tools.iter().map(|row| row.id).max().unwrap_or(0) + 10_000;
        drift(
            &mut tables.tools,
            counts,
            &mut random,
            &mut tools,
            |row| &mut row.name,
            age_tool,
            |at| ToolRow {
                name: format!("gone-tool-{at}"),
                id: top + at as i64,
                home: format!("/data/project/gone-tool-{at}"),
                description: Some("was here once".into()),
                toolinfo: None,
                maintainers: Some("somebody".into()),
                updated,
            },
        );
        let mut users = Differences::default();
        let top = self.users.iter().map(|row| row.id).max().unwrap_or(0) + 10_000;
        drift(
            &mut tables.users,
            counts,
            &mut random,
            &mut users,
            |row| &mut row.name,
            |row, at| {
                if at % 2 == 0 { row.home.push_str("-old") } else { row.wikitech.push_str(" (old name)") }
            },
            |at| UserRow {
                name: format!("gone-user-{at}"),
                id: top + at as i64,
                wikitech: format!("Gone User {at}"),
                home: format!("/home/gone-user-{at}"),
            },
        );
        Drifted { tables, tools: tools.sort(), users: users.sort() }
    }
}

fn age_tool(row: &mut ToolRow, at: usize) {
    let description = row.description.clone().unwrap_or_default();
    match at % 5 {
        0 => row.description = Some(format!("{description} ")),
        1 => row.description = None,
        2 => row.maintainers = Some(format!("{} somebody", row.maintainers.clone().unwrap_or_default())),
        3 if description != description.to_uppercase() => row.description = Some(description.to_uppercase()),
        _ => row.toolinfo = Some("{\"old\": true}".into()),
    }
}

fn drift<R>(
    rows: &mut Vec<R>,
    counts: DriftCounts,
    random: &mut Random,
    differences: &mut Differences,
    name: impl Fn(&mut R) -> &mut String,
    age: impl Fn(&mut R, usize),
    gone: impl Fn(usize) -> R,
) {
    let mut chosen = random.distinct(counts.added + counts.changed + counts.renamed, rows.len());
    // The three uses must not each get one part of the alphabet.
    for at in (1..chosen.len()).rev() {
        chosen.swap(at, random.below(at + 1));
    }
    let (changed, rest) = chosen.split_at(counts.changed.min(chosen.len()));
    let (renamed, added) = rest.split_at(counts.renamed.min(rest.len()));
    for (at, row) in changed.iter().enumerate() {
        age(&mut rows[*row], at);
        differences.updated.push(name(&mut rows[*row]).clone());
    }
    for row in renamed {
        let name = name(&mut rows[*row]);
        differences.created.push(name.clone());
        name.push_str("-before");
        differences.deleted.push(name.clone());
    }
    let mut added = added.to_vec();
    added.sort_unstable();
    for row in added.into_iter().rev() {
        differences.created.push(name(&mut rows.remove(row)).clone());
    }
    for at in 0..counts.removed {
        let mut row = gone(at);
        differences.deleted.push(name(&mut row).clone());
        rows.push(row);
    }
}

fn insert(sql: &mut String, into: &str, rows: Vec<String>) {
    for rows in rows.chunks(200) {
        let _ = writeln!(sql, "INSERT INTO {into} VALUES\n  {};", rows.join(",\n  "));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn tables(rows: i64) -> Tables {
        Tables {
            tools: (0..rows)
                .map(|id| ToolRow {
                    name: format!("tool{id}"),
                    id,
                    home: format!("/data/project/tool{id}"),
                    description: Some(format!("what tool {id} does")),
                    toolinfo: Some(String::new()),
                    maintainers: Some("a b".into()),
                    updated: 900,
                })
                .collect(),
            users: (0..rows)
                .map(|id| UserRow {
                    name: format!("user{id}"),
                    id,
                    wikitech: format!("User {id}"),
                    home: format!("/home/user{id}"),
                })
                .collect(),
        }
    }

    #[test]
    fn the_lists_are_the_real_differences() {
        for (rows, counts) in [
            (40, DriftCounts { added: 3, changed: 12, removed: 2, renamed: 4 }),
            (40, DriftCounts::default()),
            (5, DriftCounts { added: 9, changed: 3, removed: 1, renamed: 1 }),
            (0, DriftCounts { removed: 2, ..DriftCounts::default() }),
        ] {
            let now = tables(rows);
            let drifted = now.drifted(counts, 4, 100);
            let old: BTreeMap<_, _> = drifted.tables.tools.iter().map(|row| (&row.name, row)).collect();
            let new: BTreeMap<_, _> = now.tools.iter().map(|row| (&row.name, row)).collect();
            let created: Vec<_> =
                new.keys().filter(|name| !old.contains_key(*name)).map(|name| (*name).clone()).collect();
            let deleted: Vec<_> =
                old.keys().filter(|name| !new.contains_key(*name)).map(|name| (*name).clone()).collect();
            let updated: Vec<_> = new
                .iter()
                .filter(|(name, row)| old.get(*name).is_some_and(|before| !before.same_content(row)))
                .map(|(name, _)| (*name).clone())
                .collect();
            assert_eq!(drifted.tools, Differences { created, updated, deleted }, "{counts:?}");
            if rows == 40 {
                assert_eq!(
                    drifted.tools.count(),
                    counts.added + counts.changed + counts.removed + 2 * counts.renamed
                );
                assert_eq!(drifted.users.count(), drifted.tools.count());
            }
            let ids: std::collections::BTreeSet<_> = drifted.tables.tools.iter().map(|row| row.id).collect();
            assert_eq!(ids.len(), drifted.tables.tools.len(), "an old table has unique numbers too");
        }
    }

    #[test]
    fn texts_are_quoted_for_each_dialect() {
        assert_eq!(Dialect::MariaDb.quote("it's a \\ "), "'it''s a \\\\ '");
        assert_eq!(Dialect::Sqlite.quote("it's a \\ "), "'it''s a \\ '");
        assert_eq!(Dialect::Postgres.quote_optional(None), "NULL");
    }

    #[test]
    fn every_dialect_has_the_columns_of_both_tables() {
        for dialect in Dialect::ALL {
            let schema = dialect.schema();
            assert_eq!(schema.matches("CREATE TABLE").count(), 2);
            assert_eq!(schema.matches("UNIQUE").count(), 3);
            assert_eq!(schema.matches("PRIMARY KEY").count(), 2);
            let nullable =
                schema.lines().filter(|line| line.starts_with("  ") && !line.contains("NOT NULL")).count();
            assert_eq!(nullable, 3, "{schema}");
        }
    }
}
