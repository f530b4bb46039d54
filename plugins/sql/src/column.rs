//! How a value is stored in a column, and when two values are the same there.
//!
//! A wanted value is brought into the column's own form by [`Column::wanted`], a stored one by [`Column::value`];
//! both give the same [`Value`] exactly when the database would store the same. [`Column::holds`] compares without
//! making a value of the stored side, which is what keeps a comparison of a large table lean.
//!
//! The forms: whole numbers as int; truth values as bool; floating numbers as float (a single-precision column rounds
//! first); exact numbers as text without needless zeros; text as it stands; bytes as base64 text; dates and times as
//! ISO 8601 text at the column's precision.

use farrier_model::Value;

use crate::value::{
    Cell, base64_bytes, base64_text, civil_text, decimal_text, parse_civil, parse_zoned, rounded_decimal,
    zoned_text,
};

/// A column of a table.
#[derive(Debug, Clone)]
pub(crate) struct Column {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    /// The type in the database's own words, without a length.
    pub(crate) sql_type: String,
    pub(crate) nullable: bool,
    /// A row may be inserted without a value for it.
    pub(crate) has_default: bool,
    /// The database computes it; it cannot be written.
    pub(crate) generated: bool,
    pub(crate) folding: Folding,
    /// Character set and collation, where the database names them for the column.
    pub(crate) collation: Option<(String, String)>,
}

/// What a column stores.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Kind {
    Int {
        min: i64,
        max: i64,
    },
    Bool,
    Float {
        single: bool,
    },
    Decimal {
        digits: Option<usize>,
        scale: Option<usize>,
    },
    Text(TextLimits),
    Bytes {
        max: Option<usize>,
    },
    Date,
    Moment {
        zoned: bool,
        digits: u8,
        rounds: bool,
    },
    Json,
    Uuid,
    /// No type of its own: a number stays a number, text stays text (SQLite).
    Loose {
        numeric: bool,
    },
    /// Written and compared as the database's own text for it.
    Other,
}

/// What text fits.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct TextLimits {
    pub(crate) max_chars: Option<usize>,
    pub(crate) max_bytes: Option<usize>,
    /// Spaces at the end are not stored.
    pub(crate) trims: bool,
    /// No character beyond U+FFFF (MariaDB's `utf8mb3`).
    pub(crate) three_bytes: bool,
    /// No NUL character (PostgreSQL).
    pub(crate) no_nul: bool,
}

/// When the database holds two keys equal although they are spelled differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Folding {
    /// Letters of either case are equal.
    pub(crate) case: bool,
    /// Spaces at the end do not count.
    pub(crate) end_spaces: bool,
    /// Beyond ASCII only the server knows.
    pub(crate) beyond_ascii: bool,
}

impl Folding {
    pub(crate) const EXACT: Folding = Folding { case: false, end_spaces: false, beyond_ascii: false };

    /// The form in which equal ASCII texts are the same; nothing when only the server can tell.
    pub(crate) fn fold(self, text: &str) -> Option<String> {
        if self.beyond_ascii && !text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
            return None;
        }
        let text = if self.end_spaces { text.trim_end_matches(' ') } else { text };
        Some(if self.case { text.to_ascii_lowercase() } else { text.to_owned() })
    }
}

impl Column {
    /// A column with what most have.
    pub(crate) fn new(name: &str, kind: Kind, sql_type: &str) -> Column {
        Column {
            name: name.to_owned(),
            kind,
            sql_type: sql_type.to_owned(),
            nullable: true,
            has_default: true,
            generated: false,
            folding: Folding::EXACT,
            collation: None,
        }
    }

    /// A wanted value in the column's form, or why it does not fit.
    pub(crate) fn wanted(&self, value: &Value) -> Result<Value, String> {
        if value.is_null() {
            return if self.nullable {
                Ok(Value::Null)
            } else {
                Err(format!("`{}` is null, and the column must not be", self.name))
            };
        }
        let unfit = || {
            let shown = match value {
                Value::List(_) | Value::Map(_) => format!("a {}", value.kind()),
                other => format!("{} `{}`", other.kind(), short(&other.to_string())),
            };
            format!("`{}` is {shown}, which does not fit the column's type `{}`", self.name, self.sql_type)
        };
        Ok(match (&self.kind, value) {
            (_, Value::Unknown(_)) => return Err(unfit()),
            (Kind::Json, other) => Value::text(match other {
                Value::Text(text) => canonical_json(text).ok_or_else(unfit)?,
                other => canonical_json(&other.to_json()).ok_or_else(unfit)?,
            }),
            (_, Value::List(_) | Value::Map(_)) => return Err(unfit()),
            (Kind::Int { min, max }, value) => {
                let number = match value {
                    Value::Int(number) => Some(*number),
                    Value::Bool(flag) => Some(i64::from(*flag)),
                    Value::Float(number) => whole(*number),
                    Value::Text(text) => decimal_text(text).and_then(|digits| digits.parse().ok()),
                    _ => None,
                };
                Value::Int(number.filter(|number| (min..=max).contains(&number)).ok_or_else(unfit)?)
            }
            (Kind::Bool, value) => Value::Bool(match value {
                Value::Bool(flag) => *flag,
                Value::Int(0) => false,
                Value::Int(1) => true,
                Value::Text(text) if matches!(&**text, "true" | "false") => &**text == "true",
                _ => return Err(unfit()),
            }),
            (Kind::Float { single }, value) => {
                let number = match value {
                    Value::Int(number) => *number as f64,
                    Value::Float(number) => *number,
                    Value::Text(text) => text.trim().parse().map_err(|_| unfit())?,
                    _ => return Err(unfit()),
                };
                if !number.is_finite() {
                    return Err(unfit());
                }
                Value::Float(if *single { f64::from(number as f32) } else { number })
            }
            (Kind::Decimal { digits, scale }, value) => {
                let text = match value {
                    Value::Int(number) => number.to_string(),
                    Value::Float(number) => number.to_string(),
                    Value::Text(text) => text.to_string(),
                    _ => return Err(unfit()),
                };
                let exact = decimal_text(&text).ok_or_else(unfit)?;
                let rounded = scale.map_or(exact.clone(), |scale| rounded_decimal(&exact, scale));
                let whole_digits = rounded
                    .trim_start_matches('-')
                    .split('.')
                    .next()
                    .unwrap_or_default()
                    .trim_start_matches('0')
                    .len();
                if digits.is_some_and(|digits| whole_digits > digits.saturating_sub(scale.unwrap_or(0))) {
                    return Err(unfit());
                }
                Value::text(rounded)
            }
            (Kind::Text(limits), Value::Text(text)) => {
                let kept = if limits.trims { text.trim_end_matches(' ') } else { text };
                if let Some(reason) = limits.refusal(kept) {
                    return Err(format!("`{}` {reason}", self.name));
                }
                if kept.len() == text.len() { Value::Text(text.clone()) } else { Value::text(kept) }
            }
            (Kind::Text(limits), Value::Int(number)) => {
                let text = number.to_string();
                if let Some(reason) = limits.refusal(&text) {
                    return Err(format!("`{}` {reason}", self.name));
                }
                Value::text(text)
            }
            (Kind::Bytes { max }, Value::Text(text)) => {
                let bytes = base64_bytes(text).ok_or_else(|| {
                    format!("`{}` is not base64 text, and the column holds bytes", self.name)
                })?;
                if max.is_some_and(|max| bytes.len() > max) {
                    return Err(format!(
                        "`{}` has {} bytes, more than the column holds",
                        self.name,
                        bytes.len()
                    ));
                }
                Value::text(base64_text(&bytes))
            }
            (Kind::Date, Value::Text(text)) => {
                Value::text(parse_civil(text).ok_or_else(unfit)?.date().to_string())
            }
            (Kind::Moment { zoned, digits, rounds }, Value::Text(text)) => {
                Value::text(moment_text(text, *zoned, *digits, *rounds).ok_or_else(unfit)?)
            }
            (Kind::Uuid, Value::Text(text)) => Value::text(text.trim().to_ascii_lowercase()),
            (Kind::Loose { .. }, Value::Bool(flag)) => Value::Int(i64::from(*flag)),
            (Kind::Loose { numeric: true }, Value::Text(text)) => match loose_number(text) {
                Some(number) => number,
                None => value.clone(),
            },
            (Kind::Loose { numeric: true }, Value::Float(number)) => {
                whole(*number).map_or(value.clone(), Value::Int)
            }
            (Kind::Loose { .. }, other) => other.clone(),
            (Kind::Other, Value::Text(text)) => Value::Text(text.clone()),
            (Kind::Other, Value::Int(number)) => Value::text(number.to_string()),
            _ => return Err(unfit()),
        })
    }

    /// A stored value in the column's form.
    pub(crate) fn value(&self, cell: &Cell<'_>) -> Value {
        match (&self.kind, cell) {
            (Kind::Decimal { .. } | Kind::Loose { numeric: true }, Cell::Decimal(text)) => {
                Value::text(decimal_text(text).unwrap_or_else(|| text.to_string()))
            }
            (Kind::Text(TextLimits { trims: true, .. }), Cell::Text(text)) => {
                Value::text(text.trim_end_matches(' '))
            }
            (Kind::Json, Cell::Text(text)) => {
                Value::text(canonical_json(text).unwrap_or_else(|| text.to_string()))
            }
            (Kind::Loose { numeric: true }, Cell::Float(number)) => {
                whole(*number).map_or(Value::Float(*number), Value::Int)
            }
            (Kind::Bool, Cell::Int(number @ (0 | 1))) => Value::Bool(*number == 1),
            (Kind::Float { .. }, Cell::Int(number)) => Value::Float(*number as f64),
            (_, cell) => cell.to_value(),
        }
    }

    /// Whether the stored value is this one, which has the column's form.
    pub(crate) fn holds(&self, cell: &Cell<'_>, value: &Value) -> bool {
        match (cell, value) {
            (Cell::Null, Value::Null) => true,
            (Cell::Null, _) | (_, Value::Null) => false,
            (Cell::Int(stored), Value::Int(wanted)) => stored == wanted,
            (Cell::Text(stored), Value::Text(wanted)) => match &self.kind {
                Kind::Text(TextLimits { trims: false, .. })
                | Kind::Other
                | Kind::Loose { numeric: false } => **stored == **wanted,
                _ => self.value(cell) == *value,
            },
            _ => self.value(cell) == *value,
        }
    }
}

impl TextLimits {
    fn refusal(&self, text: &str) -> Option<String> {
        if self.no_nul && text.contains('\0') {
            return Some("contains a NUL character, which the database cannot store".into());
        }
        if self.three_bytes && text.chars().any(|character| character > '\u{ffff}') {
            return Some(
                "contains a character of four bytes, which the column's character set cannot store; convert the \
                 column to utf8mb4"
                    .into(),
            );
        }
        if let Some(max) = self.max_chars
            && text.len() > max
            && text.chars().count() > max
        {
            return Some(format!("has {} characters, and the column holds {max}", text.chars().count()));
        }
        match self.max_bytes {
            Some(max) if text.len() > max => {
                Some(format!("has {} bytes, and the column holds {max}", text.len()))
            }
            _ => None,
        }
    }
}

fn whole(number: f64) -> Option<i64> {
    (number.fract() == 0.0 && number.abs() < 9.0e15).then_some(number as i64)
}

/// What SQLite makes of text in a numeric column.
fn loose_number(text: &str) -> Option<Value> {
    let digits = decimal_text(text)?;
    match digits.parse::<i64>() {
        Ok(number) => Some(Value::Int(number)),
        Err(_) => digits.parse::<f64>().ok().map(Value::Float),
    }
}

/// JSON text with sorted keys and no spaces.
fn canonical_json(text: &str) -> Option<String> {
    fn sorted(value: serde_json::Value) -> serde_json::Value {
        match value {
            serde_json::Value::Object(entries) => {
                let mut entries: Vec<_> =
                    entries.into_iter().map(|(key, value)| (key, sorted(value))).collect();
                entries.sort_by(|a, b| a.0.cmp(&b.0));
                serde_json::Value::Object(entries.into_iter().collect())
            }
            serde_json::Value::Array(items) => {
                serde_json::Value::Array(items.into_iter().map(sorted).collect())
            }
            other => other,
        }
    }
    Some(sorted(serde_json::from_str(text).ok()?).to_string())
}

/// A moment in the column's form: its zone, its precision.
fn moment_text(text: &str, zoned: bool, digits: u8, rounds: bool) -> Option<String> {
    let mode = if rounds { jiff::RoundMode::HalfExpand } else { jiff::RoundMode::Trunc };
    let (unit, step) = match digits {
        0 => (jiff::Unit::Second, 1),
        1 => (jiff::Unit::Millisecond, 100),
        2 => (jiff::Unit::Millisecond, 10),
        3 => (jiff::Unit::Millisecond, 1),
        4 => (jiff::Unit::Microsecond, 100),
        5 => (jiff::Unit::Microsecond, 10),
        _ => (jiff::Unit::Microsecond, 1),
    };
    if zoned {
        let round = jiff::TimestampRound::new().smallest(unit).increment(step).mode(mode);
        Some(zoned_text(parse_zoned(text)?.round(round).ok()?))
    } else {
        let round = jiff::civil::DateTimeRound::new().smallest(unit).increment(step).mode(mode);
        Some(civil_text(parse_civil(text)?.round(round).ok()?))
    }
}

/// The beginning of a long text, for messages.
pub(crate) fn short(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(kind: Kind) -> Column {
        Column { nullable: false, ..Column::new("c", kind, "type") }
    }

    #[test]
    fn wanted_values_take_the_form_the_database_would_store() {
        let text = |max| Kind::Text(TextLimits { max_chars: Some(max), ..TextLimits::default() });
        let tiny = || Kind::Int { min: -128, max: 127 };
        let money = || Kind::Decimal { digits: Some(5), scale: Some(2) };
        let moment = |zoned, digits, rounds| Kind::Moment { zoned, digits, rounds };
        for (kind, wanted, expected) in [
            (tiny(), Value::Bool(true), Some(Value::Int(1))),
            (tiny(), Value::text("12"), Some(Value::Int(12))),
            (tiny(), Value::Float(3.0), Some(Value::Int(3))),
            (tiny(), Value::Float(3.5), None),
            (tiny(), Value::Int(128), None),
            (tiny(), Value::text("x"), None),
            (tiny(), Value::Null, None),
            (Kind::Bool, Value::Int(1), Some(Value::Bool(true))),
            (Kind::Bool, Value::Int(2), None),
            (Kind::Float { single: true }, Value::Float(0.1), Some(Value::Float(f64::from(0.1_f32)))),
            (Kind::Float { single: false }, Value::Int(2), Some(Value::Float(2.0))),
            (money(), Value::text("1.005"), Some(Value::text("1.01"))),
            (money(), Value::Int(1000), None),
            (money(), Value::text("999.99"), Some(Value::text("999.99"))),
            (text(3), Value::text("äöü"), Some(Value::text("äöü"))),
            (text(3), Value::text("abcd"), None),
            (text(3), Value::Int(42), Some(Value::text("42"))),
            (text(3), Value::Bool(true), None),
            (text(9), Value::list(vec![]), None),
            (Kind::Bytes { max: None }, Value::text("AAE="), Some(Value::text("AAE="))),
            (Kind::Bytes { max: None }, Value::text("?"), None),
            (Kind::Date, Value::text("2026-11-22"), Some(Value::text("2026-11-22"))),
            (
                moment(true, 0, false),
                Value::text("2026-11-22T10:15:30.9Z"),
                Some(Value::text("2026-11-22T10:15:30Z")),
            ),
            (
                moment(false, 6, true),
                Value::text("2026-11-22 10:15:30"),
                Some(Value::text("2026-11-22T10:15:30")),
            ),
            (
                moment(true, 0, true),
                Value::text("2026-11-22T10:15:30.9Z"),
                Some(Value::text("2026-11-22T10:15:31Z")),
            ),
            (
                Kind::Json,
                Value::map([("b", Value::Int(1)), ("a", Value::Null)]),
                Some(Value::text(r#"{"a":null,"b":1}"#)),
            ),
            (Kind::Loose { numeric: true }, Value::text("1.50"), Some(Value::Float(1.5))),
            (Kind::Loose { numeric: false }, Value::text("1.50"), Some(Value::text("1.50"))),
        ] {
            assert_eq!(column(kind.clone()).wanted(&wanted).ok(), expected, "{wanted:?} as {kind:?}");
        }
    }

    #[test]
    fn stored_values_compare_in_the_columns_form() {
        let decimal = Kind::Decimal { digits: None, scale: None };
        let char_column = Kind::Text(TextLimits { trims: true, ..TextLimits::default() });
        for (kind, cell, wanted, expected) in [
            (decimal.clone(), Cell::Decimal("1.50".into()), Value::text("1.5"), true),
            (decimal, Cell::Null, Value::text("0"), false),
            (char_column, Cell::Text("a  ".into()), Value::text("a"), true),
            (Kind::Text(TextLimits::default()), Cell::Text("".into()), Value::Null, false),
            (Kind::Text(TextLimits::default()), Cell::Text("a ".into()), Value::text("a"), false),
            (Kind::Bytes { max: None }, Cell::Bytes(vec![0, 1].into()), Value::text("AAE="), true),
            (Kind::Json, Cell::Text(r#"{"a": 1}"#.into()), Value::text(r#"{"a":1}"#), true),
            (Kind::Bool, Cell::Int(1), Value::Bool(true), true),
        ] {
            assert_eq!(column(kind).holds(&cell, &wanted), expected, "{cell:?} and {wanted:?}");
        }
    }
}
