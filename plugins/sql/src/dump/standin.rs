//! The stand-in's databases: tables of the file whose names begin with the database's and a dot.

use async_trait::async_trait;
use farrier_model::Failure;

use super::{Contents, Form, Part};
use crate::database::{Session, fetch_values};
use crate::value::{Cell, Param};

/// The adapter.
pub(crate) struct StandInContents;

/// What a database has of one type, in order: name and statement.
async fn objects(
    session: &mut dyn Session,
    database: &str,
    types: &str,
) -> Result<Vec<(String, String)>, Failure> {
    let sql = format!(
        "SELECT name, sql FROM sqlite_master WHERE type IN ({types}) AND sql IS NOT NULL \
         AND substr(tbl_name, 1, length(?) + 1) = ? || '.' ORDER BY type, name"
    );
    let database = Param::Text(database.into());
    let rows = fetch_values(session, &sql, &[database.clone(), database]).await?;
    Ok(rows.iter().map(|row| (row[0].to_string(), row[1].to_string())).collect())
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[async_trait]
impl Contents for StandInContents {
    async fn enter(&self, _: &mut dyn Session, _: &str) -> Result<(), Failure> {
        Ok(())
    }

    async fn tables(&self, session: &mut dyn Session, database: &str) -> Result<Vec<Part>, Failure> {
        let mut parts = Vec::new();
        for (name, create) in objects(session, database, "'table'").await? {
            let columns = fetch_values(
                session,
                "SELECT name FROM pragma_table_xinfo(?) WHERE hidden = 0 ORDER BY cid",
                &[Param::Text(name.as_str().into())],
            )
            .await?;
            let names: Vec<String> = columns.iter().map(|row| quoted(&row[0].to_string())).collect();
            // A literal of its own for each value; a line break is written apart, so that a row stays one line.
            let selected: Vec<String> = names
                .iter()
                .map(|name| format!("replace(quote({name}), char(10), ''' || char(10) || ''')"))
                .collect();
            let table = quoted(&name);
            parts.push(Part {
                create: format!("{create};"),
                insert: format!("INSERT INTO {table} ({}) VALUES", names.join(", ")),
                select: format!("SELECT {} FROM {table}", selected.join(", ")),
                count: format!("SELECT COUNT(*) FROM {table}"),
                columns: vec![Form::Plain; names.len()],
                name,
            });
        }
        Ok(parts)
    }

    async fn rest(&self, session: &mut dyn Session, database: &str) -> Result<Vec<String>, Failure> {
        let objects = objects(session, database, "'view', 'index', 'trigger'").await?;
        Ok(objects.into_iter().map(|(_, create)| format!("{create};")).collect())
    }

    fn frame(&self) -> (&'static str, &'static str) {
        ("PRAGMA foreign_keys = OFF;\nBEGIN;\n", "COMMIT;\n")
    }

    fn literal(&self, _: Form, cell: &Cell<'_>, out: &mut Vec<u8>) -> Result<(), Failure> {
        match cell {
            Cell::Text(text) => out.extend_from_slice(text.as_bytes()),
            _ => out.extend_from_slice(b"NULL"),
        }
        Ok(())
    }
}
