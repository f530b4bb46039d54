//! MariaDB's databases. The server itself writes out definitions and values: texts in UTF-8, bytes as digits, floating
//! numbers with every digit that they have.

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind, Value};

use super::{Contents, Form, Part};
use crate::database::{Session, fetch_values};
use crate::server::grants::Grants;
use crate::value::{Cell, Param};

/// The adapter.
pub(crate) struct MariaContents;

/// What an account must be allowed to, to see all of a database.
const SEEING: [&str; 4] = ["SELECT", "SHOW VIEW", "TRIGGER", "EVENT"];

/// Ends a statement that has semicolons in it.
const END: &str = ";;";

fn param(text: &str) -> Param {
    Param::Text(text.into())
}

fn quoted(name: &str) -> String {
    format!("`{}`", name.replace('`', "``"))
}

/// The names in the first column.
async fn names(session: &mut dyn Session, sql: &str, database: &str) -> Result<Vec<String>, Failure> {
    let rows = fetch_values(session, sql, &[param(database)]).await?;
    Ok(rows.iter().map(|row| row[0].to_string()).collect())
}

/// One field of what `SHOW CREATE …` tells.
async fn definition(
    session: &mut dyn Session,
    what: &str,
    name: &str,
    fields: &[usize],
) -> Result<Vec<String>, Failure> {
    let rows = fetch_values(session, &format!("SHOW CREATE {what} {}", quoted(name)), &[]).await?;
    let row = rows.first();
    fields
        .iter()
        .map(|field| {
            let text = row.and_then(|row| row.get(*field)).and_then(Value::as_str);
            text.map(str::to_owned).ok_or_else(|| {
                let what = what.to_lowercase();
                Failure::new(
                    FailureKind::Denied,
                    format!("the definition of the {what} `{name}` is not shown to this account"),
                )
            })
        })
        .collect()
}

/// How a column is selected and written.
fn column(name: &str, data_type: &str) -> (String, Form) {
    let name = quoted(name);
    match data_type {
        "tinyint" | "smallint" | "mediumint" | "int" | "bigint" | "decimal" | "year" | "double" => {
            (format!("CAST({name} AS CHAR)"), Form::Plain)
        }
        // A single number as such is shown with six digits.
        "float" => (format!("CAST(CAST({name} AS DOUBLE) AS CHAR)"), Form::Plain),
        "bit" => (format!("CAST(CAST({name} AS UNSIGNED) AS CHAR)"), Form::Plain),
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" | "geometry" | "point"
        | "linestring" | "polygon" | "multipoint" | "multilinestring" | "multipolygon"
        | "geometrycollection" => (format!("HEX({name})"), Form::Hex),
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" | "enum" | "set" => {
            (format!("CONVERT({name} USING utf8mb4)"), Form::Text)
        }
        _ => (format!("CAST({name} AS CHAR)"), Form::Text),
    }
}

/// A statement with semicolons in it, under the mode that it was made with.
fn delimited(mode: &str, statement: &str) -> String {
    let mode: String = mode.chars().filter(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | ',')).collect();
    format!("SET SESSION sql_mode = '{mode}';\nDELIMITER {END}\n{statement} {END}\nDELIMITER ;")
}

#[async_trait]
impl Contents for MariaContents {
    async fn enter(&self, session: &mut dyn Session, database: &str) -> Result<(), Failure> {
        let mut grants = Grants::default();
        for line in fetch_values(session, "SHOW GRANTS", &[]).await? {
            grants.read(line.first().and_then(Value::as_str).unwrap_or_default())?;
        }
        if let Some(lacking) = SEEING.into_iter().find(|what| !grants.allow(database, &[what])) {
            return Err(Failure::new(
                FailureKind::Denied,
                format!("the account may not see all of `{database}`: it lacks {lacking}"),
            )
            .help(format!("what it may not see would be missing; grant it {} there", SEEING.join(", "))));
        }
        session.run(&format!("USE {}", quoted(database))).await?;
        session.run("SET SESSION sql_quote_show_create = 1, time_zone = '+00:00'").await?;
        Ok(())
    }

    async fn tables(&self, session: &mut dyn Session, database: &str) -> Result<Vec<Part>, Failure> {
        let tables = fetch_values(
            session,
            "SELECT CAST(table_name AS CHAR), CAST(table_type AS CHAR) FROM information_schema.tables \
             WHERE table_schema = ? AND table_type NOT IN ('VIEW', 'SYSTEM VIEW') ORDER BY table_name",
            &[param(database)],
        )
        .await?;
        let mut parts = Vec::new();
        for row in &tables {
            let (name, kind) = (row[0].to_string(), row[1].to_string());
            if !matches!(kind.as_str(), "BASE TABLE" | "SEQUENCE") {
                return Err(Failure::new(
                    FailureKind::Refused,
                    format!(
                        "`{database}`.`{name}` is a {}, which a dump would not hold in full",
                        kind.to_lowercase()
                    ),
                )
                .help("dump this database by hand"));
            }
            let create = definition(session, "TABLE", &name, &[1]).await?.concat();
            let columns = fetch_values(
                session,
                "SELECT CAST(column_name AS CHAR), CAST(data_type AS CHAR), is_generated = 'ALWAYS', column_key = 'PRI' \
                 FROM information_schema.columns WHERE table_schema = ? AND table_name = ? ORDER BY ordinal_position",
                &[param(database), param(&name)],
            )
            .await?;
            let stored: Vec<&Vec<Value>> = columns.iter().filter(|row| row[2].as_int() == Some(0)).collect();
            let (mut listed, mut selected, mut forms) = (Vec::new(), Vec::new(), Vec::new());
            for row in &stored {
                let column_name = row[0].to_string();
                let (select, form) = column(&column_name, &row[1].to_string());
                listed.push(quoted(&column_name));
                selected.push(select);
                forms.push(form);
            }
            // In the order of the key, so that the same rows give the same text.
            let key: Vec<String> = columns
                .iter()
                .filter(|row| row[3].as_int() == Some(1))
                .map(|row| quoted(&row[0].to_string()))
                .collect();
            let order = if key.is_empty() { String::new() } else { format!(" ORDER BY {}", key.join(", ")) };
            let table = quoted(&name);
            parts.push(Part {
                create: format!("{create};"),
                insert: format!("INSERT INTO {table} ({}) VALUES", listed.join(", ")),
                select: format!("SELECT {} FROM {table}{order}", selected.join(", ")),
                count: format!("SELECT COUNT(*) FROM {table}"),
                columns: forms,
                name,
            });
        }
        Ok(parts)
    }

    async fn rest(&self, session: &mut dyn Session, database: &str) -> Result<Vec<String>, Failure> {
        let mut statements = Vec::new();
        let routines = fetch_values(
            session,
            "SELECT CAST(routine_name AS CHAR), CAST(routine_type AS CHAR) FROM information_schema.routines \
             WHERE routine_schema = ? ORDER BY routine_type, routine_name",
            &[param(database)],
        )
        .await?;
        // Functions before the views that call them.
        for row in &routines {
            let fields = definition(session, &row[1].to_string(), &row[0].to_string(), &[1, 2]).await?;
            statements.push(delimited(&fields[0], &fields[1]));
        }
        let views = names(
            session,
            "SELECT CAST(table_name AS CHAR) FROM information_schema.views WHERE table_schema = ? ORDER BY table_name",
            database,
        )
        .await?;
        let mut waiting = Vec::new();
        for view in views {
            let create = definition(session, "VIEW", &view, &[1]).await?.concat();
            waiting.push((quoted(&view), create));
        }
        // A view comes after those that it names. Views cannot go in circles; if names mislead, the rest keeps its order.
        while !waiting.is_empty() {
            let free = waiting.iter().position(|(view, create)| {
                waiting.iter().all(|(other, _)| other == view || !create.contains(other.as_str()))
            });
            let (_, create) = waiting.remove(free.unwrap_or(0));
            statements.push(format!("{create};"));
        }
        let triggers = names(
            session,
            "SELECT CAST(trigger_name AS CHAR) FROM information_schema.triggers WHERE trigger_schema = ? \
             ORDER BY event_object_table, action_timing, event_manipulation, action_order",
            database,
        )
        .await?;
        for trigger in triggers {
            let fields = definition(session, "TRIGGER", &trigger, &[1, 2]).await?;
            statements.push(delimited(&fields[0], &fields[1]));
        }
        let events = names(
            session,
            "SELECT CAST(event_name AS CHAR) FROM information_schema.events WHERE event_schema = ? ORDER BY event_name",
            database,
        )
        .await?;
        for event in events {
            let fields = definition(session, "EVENT", &event, &[1, 3]).await?;
            statements.push(delimited(&fields[0], &fields[1]));
        }
        Ok(statements)
    }

    fn frame(&self) -> (&'static str, &'static str) {
        (
            "SET NAMES utf8mb4;\n\
             SET SESSION time_zone = '+00:00', foreign_key_checks = 0, unique_checks = 0, \
             sql_mode = 'NO_AUTO_VALUE_ON_ZERO';\n",
            "SET SESSION foreign_key_checks = 1, unique_checks = 1;\n",
        )
    }

    fn literal(&self, form: Form, cell: &Cell<'_>, out: &mut Vec<u8>) -> Result<(), Failure> {
        let text = match cell {
            Cell::Null => {
                out.extend_from_slice(b"NULL");
                return Ok(());
            }
            Cell::Text(text) | Cell::Decimal(text) => text.as_bytes(),
            other => {
                return Err(Failure::new(
                    FailureKind::Internal,
                    format!("a value of a dump came as {}, not as text", other.kind()),
                ));
            }
        };
        match form {
            Form::Plain => out.extend_from_slice(text),
            Form::Hex if text.is_empty() => out.extend_from_slice(b"''"),
            Form::Hex => {
                out.extend_from_slice(b"0x");
                out.extend_from_slice(text);
            }
            Form::Text => {
                out.push(b'\'');
                for byte in text {
                    match byte {
                        0 => out.extend_from_slice(b"\\0"),
                        b'\n' => out.extend_from_slice(b"\\n"),
                        b'\r' => out.extend_from_slice(b"\\r"),
                        0x1a => out.extend_from_slice(b"\\Z"),
                        b'\'' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
                        byte => out.push(*byte),
                    }
                }
                out.push(b'\'');
            }
        }
        Ok(())
    }
}
