//! PostgreSQL.
//!
//! What one must know: parameters have types, so values of a column are bound as text and cast to the column's type;
//! every value arrives in the binary format and is decoded here by the number of its type. Types without a decoder
//! are read through `::text`.

use std::borrow::Cow;

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind, Value};
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::error::DatabaseError;
use sqlx::postgres::types::Oid;
use sqlx::postgres::{PgArguments, PgDatabaseError, PgRow, PgTypeInfo, PgTypeKind, PgValueFormat, Postgres};
use sqlx::{Arguments as _, Column as _, Encode, Row as _, Type, TypeInfo as _, ValueRef as _};

use crate::column::{Column, Folding, Kind, TextLimits};
use crate::database::{Driver, Fault, Session, drive, fetch_values};
use crate::dialect::{Clock, Dialect, Lexicon};
use crate::table::{Table, TableName, UniqueKey};
use crate::value::{Cell, Param, base64_bytes, civil_text, zoned_text};

/// The adapter.
pub(crate) struct PostgreSql;

/// A null whose type the server finds out by itself.
struct Untyped;

impl Type<Postgres> for Untyped {
    fn type_info() -> PgTypeInfo {
        /// `unknown` in `pg_type`.
        const UNKNOWN: Oid = Oid(705);
        PgTypeInfo::with_oid(UNKNOWN)
    }
}

impl Encode<'_, Postgres> for Untyped {
    fn encode_by_ref(
        &self,
        _: &mut sqlx::postgres::PgArgumentBuffer,
    ) -> Result<sqlx::encode::IsNull, sqlx::error::BoxDynError> {
        Ok(sqlx::encode::IsNull::Yes)
    }
}

impl Driver for Postgres {
    drive!(keep: false);

    fn dialect() -> &'static dyn Dialect {
        &PostgreSql
    }

    fn bind(arguments: &mut PgArguments, param: &Param) -> Result<(), sqlx::error::BoxDynError> {
        match param {
            Param::Null => arguments.add(Untyped),
            Param::Bool(flag) => arguments.add(*flag),
            Param::Int(number) => arguments.add(*number),
            Param::Float(number) => arguments.add(*number),
            Param::Text(text) => arguments.add(text.to_string()),
            Param::Bytes(bytes) => arguments.add(bytes.clone()),
        }
    }

    fn names(row: &PgRow) -> Vec<String> {
        row.columns().iter().map(|column| column.name().to_owned()).collect()
    }

    fn cell(row: &PgRow, index: usize) -> Result<Cell<'_>, String> {
        let raw = row.try_get_raw(index).map_err(|error| error.to_string())?;
        if raw.is_null() {
            return Ok(Cell::Null);
        }
        let info = row.columns()[index].type_info();
        let bytes = raw.as_bytes().map_err(|error| error.to_string())?;
        if raw.format() == PgValueFormat::Text {
            return Ok(Cell::Text(Cow::Borrowed(raw.as_str().map_err(|error| error.to_string())?)));
        }
        decode(info, bytes)
    }

    fn fault(error: &dyn DatabaseError) -> Fault {
        let Some(error) = error.try_downcast_ref::<PgDatabaseError>() else {
            return Failure::new(FailureKind::Refused, error.message().to_owned()).into();
        };
        let message = error.message().to_owned();
        let new = |kind| Failure::new(kind, message.clone());
        match error.code() {
            "23505" => {
                let key = error.constraint().unwrap_or_default().to_owned();
                let detail = error.detail().map(|detail| format!(": {}", detail.trim_end_matches('.')));
                let failure = Failure::new(
                    FailureKind::Refused,
                    format!("the unique key `{key}` would be violated{}", detail.unwrap_or_default()),
                );
                Fault { duplicate: Some(key), ..failure.into() }
            }
            "40001" | "40P01" | "55P03" => new(FailureKind::Conflict).into(),
            "42501" | "28000" | "28P01" => new(FailureKind::Denied).into(),
            "57014" => new(FailureKind::Timeout).into(),
            "53300" | "57P03" => new(FailureKind::Unreachable).into(),
            "3D000" => new(FailureKind::Refused).into(),
            code if code.starts_with("57P") || code.starts_with("08") => Fault {
                failure: Failure::new(
                    FailureKind::Unreachable,
                    format!("the connection to the database was lost: {message}"),
                ),
                duplicate: None,
                unanswered: true,
            },
            "42883" | "42804" | "42846" => new(FailureKind::Refused)
                .help("PostgreSQL parameters have types: write `CAST($name AS …)` where the type matters")
                .into(),
            _ => new(FailureKind::Refused).into(),
        }
    }
}

/// Reads one value of the binary format. Numbers are those of `pg_type`, which never change.
fn decode<'r>(info: &PgTypeInfo, bytes: &'r [u8]) -> Result<Cell<'r>, String> {
    let text = |bytes: &'r [u8]| {
        std::str::from_utf8(bytes)
            .map(|text| Cell::Text(Cow::Borrowed(text)))
            .map_err(|_| "it is not UTF-8".to_owned())
    };
    Ok(match info.oid().map_or(0, |oid| oid.0) {
        16 => Cell::Bool(bytes == [1]),
        17 => Cell::Bytes(Cow::Borrowed(bytes)),
        20 => Cell::Int(i64::from_be_bytes(exact(bytes)?)),
        21 => Cell::Int(i64::from(i16::from_be_bytes(exact(bytes)?))),
        23 => Cell::Int(i64::from(i32::from_be_bytes(exact(bytes)?))),
        26 => Cell::Int(i64::from(u32::from_be_bytes(exact(bytes)?))),
        700 => Cell::Float(f64::from(f32::from_be_bytes(exact(bytes)?))),
        701 => Cell::Float(f64::from_be_bytes(exact(bytes)?)),
        1082 => Cell::Text(Cow::Owned(date(i64::from(i32::from_be_bytes(exact(bytes)?)))?)),
        1083 => Cell::Text(Cow::Owned(time(i64::from_be_bytes(exact(bytes)?))?)),
        1114 => Cell::Text(Cow::Owned(moment(i64::from_be_bytes(exact(bytes)?), false)?)),
        1184 => Cell::Text(Cow::Owned(moment(i64::from_be_bytes(exact(bytes)?), true)?)),
        1700 => Cell::Decimal(Cow::Owned(numeric(bytes)?)),
        2278 => Cell::Null,
        2950 => Cell::Text(Cow::Owned(uuid(bytes)?)),
        3802 => match bytes.split_first() {
            Some((1, json)) => text(json)?,
            _ => return Err("it is JSON in an unknown format".into()),
        },
        18 | 19 | 25 | 114 | 142 | 705 | 1042 | 1043 => text(bytes)?,
        _ if matches!(info.kind(), PgTypeKind::Enum(_)) => text(bytes)?,
        _ => match info.kind() {
            PgTypeKind::Domain(inner) => decode(inner, bytes)?,
            _ => return Err(format!("its type is `{}`; select it as text: `CAST(… AS text)`", info.name())),
        },
    })
}

fn exact<const N: usize>(bytes: &[u8]) -> Result<[u8; N], String> {
    bytes.try_into().map_err(|_| "the server sent an incomplete value".to_owned())
}

/// PostgreSQL counts from the year 2000.
const EPOCH: jiff::civil::Date = jiff::civil::date(2000, 1, 1);

fn date(days: i64) -> Result<String, String> {
    match days as i32 {
        i32::MAX => Ok("infinity".into()),
        i32::MIN => Ok("-infinity".into()),
        _ => EPOCH
            .checked_add(jiff::Span::new().days(days))
            .map(|date| date.to_string())
            .map_err(|e| e.to_string()),
    }
}

fn time(micros: i64) -> Result<String, String> {
    let time = jiff::civil::Time::midnight().checked_add(jiff::SignedDuration::from_micros(micros));
    time.map(|time| time.to_string()).map_err(|error| error.to_string())
}

fn moment(micros: i64, zoned: bool) -> Result<String, String> {
    match micros {
        i64::MAX => return Ok("infinity".into()),
        i64::MIN => return Ok("-infinity".into()),
        _ => {}
    }
    let moment = EPOCH
        .to_datetime(jiff::civil::Time::midnight())
        .checked_add(jiff::SignedDuration::from_micros(micros))
        .map_err(|error| error.to_string())?;
    if zoned {
        jiff::tz::Offset::UTC.to_timestamp(moment).map(zoned_text).map_err(|error| error.to_string())
    } else {
        Ok(civil_text(moment))
    }
}

fn uuid(bytes: &[u8]) -> Result<String, String> {
    let hex = format!("{:032x}", u128::from_be_bytes(exact(bytes)?));
    Ok(format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]))
}

/// `numeric`: groups of four decimal digits.
fn numeric(bytes: &[u8]) -> Result<String, String> {
    let short = |at: usize| bytes.get(at..at + 2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]));
    let incomplete = || "the server sent an incomplete value".to_owned();
    let (Some(count), Some(weight), Some(sign), Some(scale)) = (short(0), short(2), short(4), short(6))
    else {
        return Err(incomplete());
    };
    match sign {
        0xC000 => return Ok("NaN".into()),
        0xD000 => return Ok("Infinity".into()),
        0xF000 => return Ok("-Infinity".into()),
        _ => {}
    }
    let weight = i32::from(weight as i16);
    let group = |index: i32| -> Result<String, String> {
        let inside = (0..i32::from(count)).contains(&index);
        let group = if inside { short(8 + index as usize * 2).ok_or_else(incomplete)? } else { 0 };
        Ok(format!("{group:04}"))
    };
    let mut digits = String::new();
    for index in 0..=weight {
        digits.push_str(&group(index)?);
    }
    let whole = match digits.trim_start_matches('0') {
        "" => "0",
        whole => whole,
    };
    let mut fraction = String::new();
    let mut index = weight + 1;
    if weight < 0 {
        fraction.push_str(&"0000".repeat((-weight - 1) as usize));
        index = 0;
    }
    while fraction.len() < usize::from(scale) {
        fraction.push_str(&group(index)?);
        index += 1;
    }
    fraction.truncate(usize::from(scale));
    let sign = if sign == 0x4000 { "-" } else { "" };
    Ok(if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

static LEXICON: Lexicon = Lexicon {
    quotes: &['\'', '"'],
    backslash: &[],
    e_strings: true,
    brackets: false,
    hash_comments: false,
    nested_comments: true,
    dollar_quotes: true,
    raw_placeholders: &[],
};

#[async_trait]
impl Dialect for PostgreSql {
    fn name(&self) -> &'static str {
        "PostgreSQL"
    }
    fn lexicon(&self) -> &'static Lexicon {
        &LEXICON
    }
    fn quote_mark(&self) -> char {
        '"'
    }
    fn placeholder(&self, number: usize) -> String {
        format!("${number}")
    }
    fn begin_read(&self) -> &'static str {
        "BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY"
    }
    fn begin_write(&self) -> &'static str {
        "BEGIN READ WRITE"
    }
    fn max_params(&self) -> usize {
        60_000
    }
    fn max_rows(&self) -> usize {
        500
    }
    /// Lets an identity column be restored; means nothing for other columns.
    fn insert_clause(&self) -> &'static str {
        " OVERRIDING SYSTEM VALUE"
    }

    fn selected(&self, column: &Column) -> String {
        let name = self.quoted(&column.name);
        match column.kind {
            Kind::Other => format!("CAST({name} AS text)"),
            _ => name,
        }
    }

    fn typed(&self, column: &Column, placeholder: String) -> String {
        format!("CAST({placeholder} AS {})", column.sql_type)
    }

    fn same(&self, column: &Column, placeholder: String) -> String {
        let name = self.quoted(&column.name);
        match column.kind {
            // Not every type has an equality of its own (`json`, `point`), but each has a text.
            Kind::Other => format!("CAST({name} AS text) IS NOT DISTINCT FROM CAST({placeholder} AS text)"),
            Kind::Text(_) => format!(
                "CAST({name} AS text) COLLATE \"C\" IS NOT DISTINCT FROM CAST({} AS text) COLLATE \"C\"",
                self.typed(column, placeholder)
            ),
            _ => format!("{name} IS NOT DISTINCT FROM {}", self.typed(column, placeholder)),
        }
    }

    fn param(&self, column: &Column, value: &Value) -> Result<Param, Failure> {
        Ok(match (&column.kind, value) {
            (Kind::Bytes { .. }, Value::Text(text)) => Param::Bytes(base64_bytes(text).unwrap_or_default()),
            _ => Param::of(value).map_err(|reason| Failure::new(FailureKind::Internal, reason))?,
        })
    }

    fn clock(&self, clock: Clock) -> &'static str {
        match clock {
            Clock::Now => "(CURRENT_TIMESTAMP AT TIME ZONE 'UTC')",
            Clock::UnixTime => "CAST(EXTRACT(EPOCH FROM CURRENT_TIMESTAMP) AS bigint)",
        }
    }

    fn commits_by_itself(&self, _word: &str) -> bool {
        false
    }

    async fn describe(&self, session: &mut dyn Session, name: &TableName) -> Result<Table, Failure> {
        let quoted = self.quoted_table(name);
        let known = [Param::Text(quoted.as_str().into())];
        // A name in lower case would otherwise not find a table that was made without quotes.
        let columns = fetch_values(
            session,
            "SELECT a.attname, t.typname, CAST(t.typtype AS text), a.atttypmod, a.attnotnull, \
             a.atthasdef OR a.attidentity <> '', a.attgenerated <> '', format_type(a.atttypid, -1) \
             FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid \
             WHERE a.attrelid = to_regclass($1) AND a.attnum > 0 AND NOT a.attisdropped ORDER BY a.attnum",
            &known,
        )
        .await?;
        if columns.is_empty() {
            return Err(Table::missing(name));
        }
        let columns: Vec<Column> = columns.iter().map(|row| column(row)).collect();
        let keys = fetch_values(
            session,
            "SELECT c.relname, a.attname FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid \
             CROSS JOIN LATERAL unnest(CAST(i.indkey AS int2[])) WITH ORDINALITY AS k(attnum, position) \
             JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.attnum \
             WHERE i.indrelid = to_regclass($1) AND i.indisunique AND i.indisvalid AND i.indpred IS NULL \
             AND i.indexprs IS NULL AND k.position <= i.indnkeyatts \
             ORDER BY i.indisprimary DESC, c.relname, k.position",
            &known,
        )
        .await?;
        let mut unique: Vec<UniqueKey> = Vec::new();
        for row in &keys {
            let (key, column) = (row[0].to_string(), row[1].to_string());
            if unique.last().is_none_or(|last| last.name != key) {
                unique.push(UniqueKey { name: key, columns: Vec::new() });
            }
            if let (Some(last), Some(at)) =
                (unique.last_mut(), columns.iter().position(|known| known.name == column))
            {
                last.columns.push(at);
            }
        }
        Ok(Table { name: name.clone(), columns, unique })
    }

    async fn referenced_by(
        &self,
        session: &mut dyn Session,
        table: &Table,
    ) -> Result<Option<String>, Failure> {
        let rows = fetch_values(
            session,
            "SELECT conname FROM pg_constraint WHERE contype = 'f' AND confrelid = to_regclass($1) LIMIT 1",
            &[Param::Text(self.quoted_table(&table.name).into())],
        )
        .await?;
        Ok(rows.first().map(|row| row[0].to_string()))
    }
}

fn column(row: &[Value]) -> Column {
    let type_name = row[1].as_str().unwrap_or_default();
    let modifier = row[3].as_int().unwrap_or(-1);
    let moment =
        |zoned| Kind::Moment { zoned, digits: if modifier < 0 { 6 } else { modifier as u8 }, rounds: true };
    let kind = match type_name {
        "int2" => Kind::Int { min: i64::from(i16::MIN), max: i64::from(i16::MAX) },
        "int4" => Kind::Int { min: i64::from(i32::MIN), max: i64::from(i32::MAX) },
        "int8" => Kind::Int { min: i64::MIN, max: i64::MAX },
        "bool" => Kind::Bool,
        "float4" => Kind::Float { single: true },
        "float8" => Kind::Float { single: false },
        "numeric" if modifier < 0 => Kind::Decimal { digits: None, scale: None },
        "numeric" => Kind::Decimal {
            digits: Some(((modifier - 4) >> 16) as usize & 0xffff),
            scale: Some((modifier - 4) as usize & 0x7ff),
        },
        "text" | "varchar" | "bpchar" | "name" => Kind::Text(TextLimits {
            max_chars: (modifier > 4).then_some((modifier - 4) as usize),
            trims: type_name == "bpchar",
            no_nul: true,
            ..TextLimits::default()
        }),
        "bytea" => Kind::Bytes { max: None },
        "date" => Kind::Date,
        "timestamp" => moment(false),
        "timestamptz" => moment(true),
        "jsonb" => Kind::Json,
        "uuid" => Kind::Uuid,
        _ => Kind::Other,
    };
    let nullable = row[4].as_bool() == Some(false);
    Column {
        nullable,
        has_default: nullable || row[5].as_bool() == Some(true),
        generated: row[6].as_bool() == Some(true),
        folding: Folding::EXACT,
        ..Column::new(row[0].as_str().unwrap_or_default(), kind, row[7].as_str().unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_the_binary_format() {
        let numeric_of = |weight: i16, sign: u16, scale: u16, groups: &[u16]| {
            let mut bytes = Vec::new();
            for part in [groups.len() as u16, weight as u16, sign, scale].iter().chain(groups) {
                bytes.extend(part.to_be_bytes());
            }
            numeric(&bytes).unwrap()
        };
        assert_eq!(numeric_of(0, 0, 2, &[12, 3400]), "12.34");
        assert_eq!(numeric_of(1, 0x4000, 0, &[1, 2]), "-10002");
        assert_eq!(numeric_of(-1, 0, 4, &[5]), "0.0005");
        assert_eq!(numeric_of(-2, 0, 8, &[1234]), "0.00001234");
        assert_eq!(numeric_of(0, 0, 0, &[]), "0");
        assert_eq!(numeric_of(2, 0, 3, &[1]), "100000000.000");
        assert_eq!(numeric_of(0, 0xC000, 0, &[]), "NaN");
        assert!(numeric(&[0, 1]).is_err());
    }

    #[test]
    fn moments_of_the_binary_format() {
        assert_eq!(moment(0, true).as_deref(), Ok("2000-01-01T00:00:00Z"));
        assert_eq!(moment(-1_500_000, false).as_deref(), Ok("1999-12-31T23:59:58.5"));
        assert_eq!(moment(i64::MAX, true).as_deref(), Ok("infinity"));
        assert_eq!(date(-1).as_deref(), Ok("1999-12-31"));
        assert_eq!(time(3_600_000_000).as_deref(), Ok("01:00:00"));
    }
}
