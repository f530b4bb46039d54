//! SQLite: a file, for demos, tests and small services.
//!
//! What one must know: a column takes values of any type, so a stored value may have another type than the column
//! declares; it then differs from every wanted one. Reading connections have `query_only` switched on.

use std::borrow::Cow;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind, Value};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::error::DatabaseError;
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqliteRow};
use sqlx::{Arguments as _, Column as _, Decode, Row as _, TypeInfo as _, ValueRef as _};

use crate::column::{Column, Folding, Kind, TextLimits};
use crate::database::{Driver, Fault, Session, drive, fetch_values};
use crate::dialect::{Clock, Dialect, Lexicon};
use crate::dump::{Contents, StandInContents};
use crate::server::{Server, StandInServer};
use crate::table::{Table, TableName, UniqueKey};
use crate::value::{Cell, Param, base64_bytes};

/// The adapter.
pub(crate) struct SqliteFile;

impl Driver for Sqlite {
    drive!(keep: false);

    fn dialect() -> &'static dyn Dialect {
        &SqliteFile
    }

    fn bind(arguments: &mut SqliteArguments, param: &Param) -> Result<(), sqlx::error::BoxDynError> {
        match param {
            Param::Null => arguments.add(None::<String>),
            Param::Bool(flag) => arguments.add(i64::from(*flag)),
            Param::Int(number) => arguments.add(*number),
            Param::Float(number) => arguments.add(*number),
            Param::Text(text) => arguments.add(text.to_string()),
            Param::Bytes(bytes) => arguments.add(bytes.clone()),
        }
    }

    fn limit(connection: &mut SqliteConnection, limit: Duration) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        /// Instructions of SQLite's machine between two looks at the clock.
        const INSTRUCTIONS: i32 = 10_000;
        Box::pin(async move {
            let deadline = Instant::now() + limit;
            connection
                .lock_handle()
                .await?
                .set_progress_handler(INSTRUCTIONS, move || Instant::now() < deadline);
            Ok(())
        })
    }

    fn names(row: &SqliteRow) -> Vec<String> {
        row.columns().iter().map(|column| column.name().to_owned()).collect()
    }

    fn cell(row: &SqliteRow, index: usize) -> Result<Cell<'_>, String> {
        let raw = row.try_get_raw(index).map_err(|error| error.to_string())?;
        if raw.is_null() {
            return Ok(Cell::Null);
        }
        let kind = raw.type_info().name().to_owned();
        let wrong = |error: sqlx::error::BoxDynError| error.to_string();
        Ok(match kind.as_str() {
            "INTEGER" => Cell::Int(<i64 as Decode<Sqlite>>::decode(raw).map_err(wrong)?),
            "REAL" => Cell::Float(<f64 as Decode<Sqlite>>::decode(raw).map_err(wrong)?),
            "TEXT" => Cell::Text(Cow::Borrowed(<&str as Decode<Sqlite>>::decode(raw).map_err(wrong)?)),
            "BLOB" => Cell::Bytes(Cow::Borrowed(<&[u8] as Decode<Sqlite>>::decode(raw).map_err(wrong)?)),
            other => return Err(format!("its type `{other}` is not known")),
        })
    }

    fn fault(error: &dyn DatabaseError) -> Fault {
        let message = error.message().to_owned();
        let code: i32 = error.code().and_then(|code| code.parse().ok()).unwrap_or(0);
        let new = |kind| Failure::new(kind, message.clone());
        match (code & 0xff, code) {
            (_, 2067 | 1555) => {
                let columns = message.rsplit(": ").next().unwrap_or_default().to_owned();
                let failure = Failure::new(
                    FailureKind::Refused,
                    format!("the unique key of `{columns}` would be violated"),
                );
                Fault { duplicate: Some(columns), ..failure.into() }
            }
            (5 | 6, _) => new(FailureKind::Conflict).into(),
            (3 | 23, _) => new(FailureKind::Denied).into(),
            (9, _) => new(FailureKind::Timeout).into(),
            (10 | 11 | 13 | 14 | 26, _) => new(FailureKind::Unreachable).into(),
            _ => new(FailureKind::Refused).into(),
        }
    }
}

static LEXICON: Lexicon = Lexicon {
    quotes: &['\'', '"', '`'],
    backslash: &[],
    e_strings: false,
    brackets: true,
    hash_comments: false,
    nested_comments: false,
    dollar_quotes: false,
    raw_placeholders: &['?', ':', '@'],
};

#[async_trait]
impl Dialect for SqliteFile {
    fn name(&self) -> &'static str {
        "SQLite"
    }
    fn lexicon(&self) -> &'static Lexicon {
        &LEXICON
    }
    fn quote_mark(&self) -> char {
        '"'
    }
    fn placeholder(&self, _number: usize) -> String {
        "?".into()
    }
    fn begin_read(&self) -> &'static str {
        "BEGIN"
    }
    /// Takes the write lock at once, so that two writers wait for each other instead of failing half-way.
    fn begin_write(&self) -> &'static str {
        "BEGIN IMMEDIATE"
    }
    fn max_params(&self) -> usize {
        32_000
    }
    /// An expression may be 1,000 deep, and each row adds one.
    fn max_rows(&self) -> usize {
        400
    }

    fn same(&self, column: &Column, placeholder: String) -> String {
        format!("{} IS {placeholder} COLLATE BINARY", self.quoted(&column.name))
    }

    fn param(&self, column: &Column, value: &Value) -> Result<Param, Failure> {
        Ok(match (&column.kind, value) {
            (Kind::Bytes { .. }, Value::Text(text)) => Param::Bytes(base64_bytes(text).unwrap_or_default()),
            _ => Param::of(value).map_err(|reason| Failure::new(FailureKind::Internal, reason))?,
        })
    }

    fn clock(&self, clock: Clock) -> &'static str {
        match clock {
            Clock::Now => "CURRENT_TIMESTAMP",
            Clock::UnixTime => "CAST(strftime('%s', 'now') AS INTEGER)",
        }
    }

    fn server(&self) -> Option<&'static dyn Server> {
        Some(&StandInServer)
    }
    fn contents(&self) -> Option<&'static dyn Contents> {
        Some(&StandInContents)
    }

    fn commits_by_itself(&self, _word: &str) -> bool {
        false
    }

    async fn describe(&self, session: &mut dyn Session, name: &TableName) -> Result<Table, Failure> {
        let schema = Param::Text(name.schema.as_deref().unwrap_or("main").into());
        let table = Param::Text(name.table.as_str().into());
        let columns = fetch_values(
            session,
            "SELECT name, type, \"notnull\", dflt_value IS NOT NULL, pk, hidden FROM pragma_table_xinfo(?, ?) ORDER BY cid",
            &[table.clone(), schema.clone()],
        )
        .await?;
        if columns.is_empty() {
            return Err(Table::missing(name));
        }
        let mut primary: Vec<(i64, usize)> = columns
            .iter()
            .enumerate()
            .filter_map(|(at, row)| row[4].as_int().filter(|place| *place > 0).map(|place| (place, at)))
            .collect();
        primary.sort_unstable();
        let row_id =
            primary.len() == 1 && columns[primary[0].1][1].to_string().eq_ignore_ascii_case("integer");
        let mut columns: Vec<Column> = columns
            .iter()
            .map(|row| {
                let mut column = column(row);
                column.has_default |= row_id && row[4].as_int() == Some(1);
                column
            })
            .collect();
        let mut unique = Vec::new();
        if !primary.is_empty() {
            let columns = primary.iter().map(|(_, at)| *at).collect();
            unique.push(UniqueKey { name: "PRIMARY KEY".into(), columns });
        }
        let keys = fetch_values(
            session,
            "SELECT l.name, x.name, x.coll, l.origin FROM pragma_index_list(?, ?) l, pragma_index_xinfo(l.name, ?) x \
             WHERE l.\"unique\" = 1 AND l.partial = 0 AND x.key = 1 ORDER BY l.seq, x.seqno",
            &[table, schema.clone(), schema],
        )
        .await?;
        let mut found: Vec<(UniqueKey, bool)> = Vec::new();
        for row in &keys {
            let key = row[0].to_string();
            if found.last().is_none_or(|(last, _)| last.name != key) {
                let keep = row[3].as_str() != Some("pk");
                found.push((UniqueKey { name: key, columns: Vec::new() }, keep));
            }
            if let Some((last, keep)) = found.last_mut() {
                match columns.iter().position(|known| Some(&*known.name) == row[1].as_str()) {
                    Some(at) => {
                        last.columns.push(at);
                        columns[at].folding = match row[2].as_str() {
                            Some("NOCASE") => Folding { case: true, ..columns[at].folding },
                            Some("RTRIM") => Folding { end_spaces: true, ..columns[at].folding },
                            _ => columns[at].folding,
                        };
                    }
                    None => *keep = false,
                }
            }
        }
        unique.extend(found.into_iter().filter(|(_, keep)| *keep).map(|(key, _)| key));
        Ok(Table { name: name.clone(), columns, unique })
    }

    async fn referenced_by(
        &self,
        session: &mut dyn Session,
        table: &Table,
    ) -> Result<Option<String>, Failure> {
        let rows = fetch_values(
            session,
            "SELECT m.name FROM sqlite_master m, pragma_foreign_key_list(m.name) f \
             WHERE m.type = 'table' AND f.\"table\" = ? COLLATE NOCASE LIMIT 1",
            &[Param::Text(table.name.table.as_str().into())],
        )
        .await?;
        Ok(rows.first().map(|row| format!("a foreign key of {}", row[0])))
    }
}

/// The affinity rules of SQLite, in its order.
fn column(row: &[Value]) -> Column {
    let declared = row[1].as_str().unwrap_or_default();
    let upper = declared.to_ascii_uppercase();
    let has = |words: &[&str]| words.iter().any(|word| upper.contains(word));
    let kind = if has(&["INT"]) {
        Kind::Int { min: i64::MIN, max: i64::MAX }
    } else if has(&["CHAR", "CLOB", "TEXT"]) {
        Kind::Text(TextLimits::default())
    } else if has(&["BLOB"]) {
        Kind::Bytes { max: None }
    } else if upper.is_empty() {
        Kind::Loose { numeric: false }
    } else if has(&["REAL", "FLOA", "DOUB"]) {
        Kind::Float { single: false }
    } else {
        Kind::Loose { numeric: true }
    };
    let nullable = row[2].as_int() == Some(0);
    let hidden = row[5].as_int().unwrap_or(0);
    Column {
        nullable,
        has_default: nullable || row[3].as_int() == Some(1),
        generated: hidden >= 2,
        ..Column::new(
            row[0].as_str().unwrap_or_default(),
            kind,
            if declared.is_empty() { "any" } else { declared },
        )
    }
}
