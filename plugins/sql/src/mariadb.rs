//! MariaDB, and MySQL through the same protocol.
//!
//! What one must know: the plugin pins `sql_mode` to strict, so that a value that does not fit is an error and never
//! cut; the connection counts matched rows (`CLIENT_FOUND_ROWS`), not changed ones; and texts compare by collation,
//! where `a`, `A` and `a ` are mostly equal. Whether a column *holds exactly* a text is therefore asked of its bytes.

use std::borrow::Cow;

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind, Value};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::error::DatabaseError;
use sqlx::mysql::{MySql, MySqlArguments, MySqlDatabaseError, MySqlRow};
use sqlx::{Arguments as _, Column as _, Decode, Row as _, Type, TypeInfo as _, ValueRef as _};

use crate::column::{Column, Folding, Kind, TextLimits};
use crate::database::{Driver, Fault, Session, drive, fetch_values};
use crate::dialect::{Clock, Dialect, Lexicon};
use crate::dump::{Contents, MariaContents};
use crate::server::{MariaServer, Server};
use crate::table::{Table, TableName, UniqueKey};
use crate::value::{Cell, Param, base64_bytes, civil_text, parse_civil, zoned_text};

/// Strict, so that nothing is cut or replaced in silence; without the modes that change how SQL text is read.
pub(crate) const SQL_MODE: &str = "STRICT_ALL_TABLES,ERROR_FOR_DIVISION_BY_ZERO,NO_ENGINE_SUBSTITUTION";

/// The adapter.
pub(crate) struct MariaDb;

impl Driver for MySql {
    // A statement that is not kept is closed by a packet that nobody answers; the next one then waits for the
    // acknowledgement of that, 40 ms with the usual settings of TCP.
    drive!(keep: true);

    fn dialect() -> &'static dyn Dialect {
        &MariaDb
    }

    fn bind(arguments: &mut MySqlArguments, param: &Param) -> Result<(), sqlx::error::BoxDynError> {
        match param {
            Param::Null => arguments.add(None::<String>),
            Param::Bool(flag) => arguments.add(*flag),
            Param::Int(number) => arguments.add(*number),
            Param::Float(number) => arguments.add(*number),
            Param::Text(text) => arguments.add(text.clone()),
            Param::Bytes(bytes) => arguments.add(bytes.clone()),
        }
    }

    fn names(row: &MySqlRow) -> Vec<String> {
        row.columns().iter().map(|column| column.name().to_owned()).collect()
    }

    fn cell(row: &MySqlRow, index: usize) -> Result<Cell<'_>, String> {
        let raw = row.try_get_raw(index).map_err(|error| error.to_string())?;
        if raw.is_null() {
            return Ok(Cell::Null);
        }
        let info = row.columns()[index].type_info();
        let name = info.name();
        let bytes = <&[u8] as Decode<MySql>>::decode(raw.clone()).map_err(|error| error.to_string())?;
        Ok(match name {
            "FLOAT" => Cell::Float(f64::from(f32::from_le_bytes(bytes.try_into().map_err(|_| cut())?))),
            "DOUBLE" => Cell::Float(f64::from_le_bytes(bytes.try_into().map_err(|_| cut())?)),
            "DECIMAL" => Cell::Decimal(Cow::Borrowed(std::str::from_utf8(bytes).map_err(|_| cut())?)),
            "BIT" => {
                let number = bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
                Cell::Int(i64::try_from(number).map_err(|_| too_large(number))?)
            }
            "YEAR" => Cell::Int(i64::from(u16::from_le_bytes(bytes.try_into().map_err(|_| cut())?))),
            // sqlx leaves the length in front of these.
            "DATE" | "DATETIME" | "TIMESTAMP" => {
                Cell::Text(Cow::Owned(date_text(bytes.get(1..).unwrap_or_default(), name)?))
            }
            "TIME" => Cell::Text(Cow::Owned(time_text(bytes.get(1..).unwrap_or_default())?)),
            "GEOMETRY" => return Err("its type is a geometry; select `ST_AsText(…)` of it".into()),
            _ if <u64 as Type<MySql>>::compatible(info) => {
                let number = <u64 as Decode<MySql>>::decode(raw).map_err(|error| error.to_string())?;
                Cell::Int(i64::try_from(number).map_err(|_| too_large(number))?)
            }
            _ if <i64 as Type<MySql>>::compatible(info) => {
                Cell::Int(<i64 as Decode<MySql>>::decode(raw).map_err(|error| error.to_string())?)
            }
            // Asked of the collation: the binary flag is also set on texts with a `_bin` collation.
            _ if <str as Type<MySql>>::compatible(info) || matches!(name, "JSON" | "SET" | "ENUM") => {
                Cell::Text(Cow::Borrowed(
                    std::str::from_utf8(bytes).map_err(|_| "it is not UTF-8".to_owned())?,
                ))
            }
            _ => Cell::Bytes(Cow::Borrowed(bytes)),
        })
    }

    fn fault(error: &dyn DatabaseError) -> Fault {
        let message = error.message().to_owned();
        let number = error.try_downcast_ref::<MySqlDatabaseError>().map_or(0, MySqlDatabaseError::number);
        let new = |kind, message: String| Failure::new(kind, message);
        match number {
            1062 | 1586 | 1022 | 1169 => {
                let key =
                    message.rsplit("for key").next().unwrap_or_default().trim().trim_matches('\'').to_owned();
                let failure =
                    new(FailureKind::Refused, format!("the unique key `{key}` would be violated: {message}"));
                Fault { duplicate: Some(key), ..failure.into() }
            }
            1205 | 1213 | 1020 | 3572 => new(FailureKind::Conflict, message).into(),
            1044 | 1045 | 1698 | 1142 | 1143 | 1227 | 1370 | 1820 | 1862 => {
                new(FailureKind::Denied, message).into()
            }
            1969 | 3024 | 1317 => new(FailureKind::Timeout, message).into(),
            1040 | 1203 | 1226 => new(FailureKind::Unreachable, message).into(),
            1053 | 1080 | 1152 | 1184 | 1927 | 2006 | 2013 => Fault {
                failure: new(
                    FailureKind::Unreachable,
                    format!("the connection to the database was lost: {message}"),
                ),
                duplicate: None,
                unanswered: true,
            },
            _ => new(FailureKind::Refused, message).into(),
        }
    }
}

fn cut() -> String {
    "the server sent an incomplete value".into()
}

fn too_large(number: u64) -> String {
    format!("the number {number} is larger than {}; select it as text: `CAST(… AS CHAR)`", i64::MAX)
}

/// A date or moment of the binary protocol. A date that no calendar has (`0000-00-00`) stays as the server writes it.
fn date_text(bytes: &[u8], kind: &str) -> Result<String, String> {
    let number = |at: usize| bytes.get(at).copied().map_or(0, i64::from);
    if !matches!(bytes.len(), 0 | 4 | 7 | 11) {
        return Err(cut());
    }
    let year = number(0) | number(1) << 8;
    let micros = number(7) | number(8) << 8 | number(9) << 16 | number(10) << 24;
    let date = jiff::civil::Date::new(year as i16, number(2) as i8, number(3) as i8);
    if kind == "DATE" {
        return Ok(date.map_or_else(
            |_| format!("{year:04}-{:02}-{:02}", number(2), number(3)),
            |date| date.to_string(),
        ));
    }
    let moment = date.and_then(|date| {
        jiff::civil::Time::new(number(4) as i8, number(5) as i8, number(6) as i8, micros as i32 * 1000)
            .map(|time| date.to_datetime(time))
    });
    match moment {
        Ok(moment) if kind == "TIMESTAMP" => {
            jiff::tz::Offset::UTC.to_timestamp(moment).map(zoned_text).map_err(|error| error.to_string())
        }
        Ok(moment) => Ok(civil_text(moment)),
        Err(_) => Ok(format!(
            "{year:04}-{:02}-{:02} {:02}:{:02}:{:02}",
            number(2),
            number(3),
            number(4),
            number(5),
            number(6)
        )),
    }
}

/// A time of the binary protocol: hours may exceed a day.
fn time_text(bytes: &[u8]) -> Result<String, String> {
    if bytes.is_empty() {
        return Ok("00:00:00".into());
    }
    let (&[negative, d0, d1, d2, d3, hour, minute, second], micros) =
        bytes.split_first_chunk::<8>().ok_or_else(cut)?;
    let hours = u64::from(u32::from_le_bytes([d0, d1, d2, d3])) * 24 + u64::from(hour);
    let sign = if negative == 1 { "-" } else { "" };
    let fraction = match micros.try_into().map(u32::from_le_bytes) {
        Ok(micros) if micros > 0 => format!(".{}", format!("{micros:06}").trim_end_matches('0')),
        _ => String::new(),
    };
    Ok(format!("{sign}{hours:02}:{minute:02}:{second:02}{fraction}"))
}

static LEXICON: Lexicon = Lexicon {
    quotes: &['\'', '"', '`'],
    backslash: &['\'', '"'],
    e_strings: false,
    brackets: false,
    hash_comments: true,
    nested_comments: false,
    dollar_quotes: false,
    raw_placeholders: &['?'],
};

#[async_trait]
impl Dialect for MariaDb {
    fn name(&self) -> &'static str {
        "MariaDB"
    }
    fn lexicon(&self) -> &'static Lexicon {
        &LEXICON
    }
    fn quote_mark(&self) -> char {
        '`'
    }
    fn placeholder(&self, _number: usize) -> String {
        "?".into()
    }
    fn begin_read(&self) -> &'static str {
        "START TRANSACTION WITH CONSISTENT SNAPSHOT, READ ONLY"
    }
    fn begin_write(&self) -> &'static str {
        "START TRANSACTION READ WRITE"
    }
    fn max_params(&self) -> usize {
        60_000
    }
    fn max_rows(&self) -> usize {
        500
    }

    fn same(&self, column: &Column, placeholder: String) -> String {
        let name = self.quoted(&column.name);
        match column.kind {
            // Bytes, because a collation would let `a` pass for `A` and `a `.
            Kind::Text(_) | Kind::Other | Kind::Uuid => format!(
                "CAST(CONVERT({name} USING utf8mb4) AS BINARY) <=> CAST(CONVERT({placeholder} USING utf8mb4) AS BINARY)"
            ),
            _ => format!("{name} <=> {placeholder}"),
        }
    }

    fn param(&self, column: &Column, value: &Value) -> Result<Param, Failure> {
        Ok(match (&column.kind, value) {
            (Kind::Bytes { .. }, Value::Text(text)) => Param::Bytes(base64_bytes(text).unwrap_or_default()),
            (Kind::Moment { .. }, Value::Text(text)) => match parse_civil(text) {
                Some(moment) => Param::Text(civil_text(moment).replacen('T', " ", 1).into()),
                None => Param::Text(text.clone()),
            },
            _ => Param::of(value).map_err(|reason| Failure::new(FailureKind::Internal, reason))?,
        })
    }

    fn clock(&self, clock: Clock) -> &'static str {
        match clock {
            Clock::Now => "UTC_TIMESTAMP()",
            Clock::UnixTime => "UNIX_TIMESTAMP()",
        }
    }

    fn commits_by_itself(&self, word: &str) -> bool {
        !matches!(word, "INSERT" | "UPDATE" | "DELETE" | "REPLACE" | "WITH" | "SELECT" | "CALL" | "DO")
    }

    fn without_limit(&self) -> Option<&'static str> {
        Some("SET SESSION lock_wait_timeout = 60 /*M! , max_statement_time = 0 */")
    }
    fn server(&self) -> Option<&'static dyn Server> {
        Some(&MariaServer)
    }
    fn contents(&self) -> Option<&'static dyn Contents> {
        Some(&MariaContents)
    }

    fn sort_key(&self, column: &Column, placeholder: String) -> Option<String> {
        let (charset, collation) = column.collation.as_ref()?;
        Some(format!("HEX(WEIGHT_STRING(CONVERT({placeholder} USING {charset}) COLLATE {collation}))"))
    }

    async fn describe(&self, session: &mut dyn Session, name: &TableName) -> Result<Table, Failure> {
        let scope = [
            name.schema.as_deref().map_or(Param::Null, |schema| Param::Text(schema.into())),
            Param::Text(name.table.as_str().into()),
        ];
        let engine = fetch_values(
            session,
            "SELECT t.engine, e.transactions, t.table_type FROM information_schema.tables t \
             LEFT JOIN information_schema.engines e ON e.engine = t.engine \
             WHERE t.table_schema = COALESCE(?, DATABASE()) AND t.table_name = ?",
            &scope,
        )
        .await?;
        let Some(engine) = engine.first() else { return Err(Table::missing(name)) };
        if engine[1].as_str() == Some("NO") {
            return Err(Failure::new(
                FailureKind::Refused,
                format!("table `{name}` uses the engine {}, which has no transactions", engine[0]),
            )
            .help("convert it with `ALTER TABLE … ENGINE=InnoDB`; without a transaction readers would see half a change"));
        }
        let columns = fetch_values(
            session,
            "SELECT column_name, data_type, column_type, is_nullable, column_default IS NOT NULL, extra, \
             CAST(character_maximum_length AS CHAR), CAST(character_octet_length AS CHAR), \
             CAST(numeric_precision AS CHAR), CAST(numeric_scale AS CHAR), CAST(datetime_precision AS CHAR), \
             character_set_name, collation_name \
             FROM information_schema.columns \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? ORDER BY ordinal_position",
            &scope,
        )
        .await?;
        let columns: Vec<Column> = columns.iter().map(|row| column(row)).collect();
        let keys = fetch_values(
            session,
            "SELECT index_name, column_name, sub_part IS NOT NULL FROM information_schema.statistics \
             WHERE table_schema = COALESCE(?, DATABASE()) AND table_name = ? AND non_unique = 0 \
             ORDER BY index_name = 'PRIMARY' DESC, index_name, seq_in_index",
            &scope,
        )
        .await?;
        let mut unique: Vec<(UniqueKey, bool)> = Vec::new();
        for row in &keys {
            let (key, column) = (text(&row[0]), text(&row[1]));
            if unique.last().is_none_or(|(last, _)| last.name != key) {
                unique.push((UniqueKey { name: key.to_owned(), columns: Vec::new() }, true));
            }
            if let Some((last, whole)) = unique.last_mut() {
                match columns.iter().position(|known| known.name == column) {
                    Some(at) if row[2].as_int() == Some(0) => last.columns.push(at),
                    _ => *whole = false,
                }
            }
        }
        let unique = unique.into_iter().filter(|(_, whole)| *whole).map(|(key, _)| key).collect();
        Ok(Table { name: name.clone(), columns, unique })
    }

    async fn referenced_by(
        &self,
        session: &mut dyn Session,
        table: &Table,
    ) -> Result<Option<String>, Failure> {
        let rows = fetch_values(
            session,
            "SELECT constraint_name FROM information_schema.key_column_usage \
             WHERE referenced_table_schema = COALESCE(?, DATABASE()) AND referenced_table_name = ? LIMIT 1",
            &[
                table.name.schema.as_deref().map_or(Param::Null, |schema| Param::Text(schema.into())),
                Param::Text(table.name.table.as_str().into()),
            ],
        )
        .await?;
        Ok(rows.first().map(|row| row[0].to_string()))
    }
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn column(row: &[Value]) -> Column {
    let (data_type, column_type, extra) = (text(&row[1]), text(&row[2]), text(&row[5]));
    let number = |at: usize| row[at].as_str().and_then(|digits| digits.parse::<usize>().ok());
    let unsigned = column_type.contains("unsigned");
    let int = |bits: u32| {
        if unsigned {
            Kind::Int { min: 0, max: if bits == 64 { i64::MAX } else { (1_i64 << bits) - 1 } }
        } else {
            Kind::Int { min: -1_i64 << (bits - 1), max: i64::MAX >> (64 - bits) }
        }
    };
    let limits = || TextLimits {
        max_chars: number(6).filter(|_| matches!(data_type, "char" | "varchar")),
        max_bytes: number(7).filter(|_| data_type.ends_with("text")),
        trims: data_type == "char",
        three_bytes: matches!(row[11].as_str(), Some("utf8mb3" | "utf8" | "ucs2")),
        no_nul: false,
    };
    let digits = number(10).unwrap_or(0) as u8;
    let kind = match data_type {
        "tinyint" => int(8),
        "smallint" => int(16),
        "mediumint" => int(24),
        "int" => int(32),
        "bigint" => int(64),
        "bit" => Kind::Int { min: 0, max: i64::MAX >> (63 - number(8).unwrap_or(1).min(63)) },
        "year" => Kind::Int { min: 0, max: 2155 },
        "float" => Kind::Float { single: true },
        "double" => Kind::Float { single: false },
        "decimal" => Kind::Decimal { digits: number(8), scale: number(9) },
        "char" | "varchar" | "tinytext" | "text" | "mediumtext" | "longtext" | "enum" | "set" => {
            Kind::Text(limits())
        }
        "binary" | "varbinary" | "tinyblob" | "blob" | "mediumblob" | "longblob" => {
            Kind::Bytes { max: number(7) }
        }
        "date" => Kind::Date,
        "datetime" => Kind::Moment { zoned: false, digits, rounds: false },
        "timestamp" => Kind::Moment { zoned: true, digits, rounds: false },
        "uuid" => Kind::Uuid,
        _ => Kind::Other,
    };
    let collation = text(&row[12]).to_owned();
    let folding = if matches!(kind, Kind::Text(_)) && !collation.is_empty() {
        let pads = !collation.contains("nopad") && !collation.contains("_0900_") && collation != "binary";
        if collation.ends_with("_bin") {
            Folding { case: false, end_spaces: pads, beyond_ascii: false }
        } else {
            let case = !collation.contains("_cs");
            Folding { case, end_spaces: pads, beyond_ascii: true }
        }
    } else {
        Folding::EXACT
    };
    let generated = extra.contains("GENERATED") && !extra.contains("DEFAULT_GENERATED");
    Column {
        nullable: row[3].as_str() == Some("YES"),
        has_default: row[4].as_int() == Some(1)
            || row[3].as_str() == Some("YES")
            || extra.contains("auto_increment")
            || generated,
        generated,
        folding,
        collation: row[11].as_str().map(|charset| (charset.to_owned(), collation)),
        ..Column::new(text(&row[0]), kind, column_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_of_the_binary_protocol() {
        for (bytes, kind, expected) in [
            (&[0xea, 0x07, 11, 22][..], "DATE", "2026-11-22"),
            (&[], "DATE", "0000-00-00"),
            (&[0xea, 0x07, 11, 22, 10, 15, 30], "DATETIME", "2026-11-22T10:15:30"),
            (&[0xea, 0x07, 11, 22, 10, 15, 30, 0x90, 0xd0, 3, 0], "TIMESTAMP", "2026-11-22T10:15:30.25Z"),
            (&[], "DATETIME", "0000-00-00 00:00:00"),
        ] {
            assert_eq!(date_text(bytes, kind).as_deref(), Ok(expected), "{bytes:?}");
        }
        assert_eq!(time_text(&[1, 2, 0, 0, 0, 3, 4, 5]).as_deref(), Ok("-51:04:05"));
        assert_eq!(time_text(&[]).as_deref(), Ok("00:00:00"));
        assert_eq!(time_text(&[0, 0, 0, 0, 0, 1, 2, 3, 0x20, 0xa1, 7, 0]).as_deref(), Ok("01:02:03.5"));
    }
}
