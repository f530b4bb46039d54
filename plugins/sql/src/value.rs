//! Values on their way in and out: [`Cell`], one value as a driver hands it over, and [`Param`], one bound value.

use std::borrow::Cow;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use farrier_model::{Text, Value};
use jiff::Timestamp;
use jiff::civil::{Date, DateTime, Time};

/// One value of a row, borrowed from the row where it can be.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Cell<'r> {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    /// Text as it stands. Dates, times and timestamps are text too, written as [`civil_text`] and [`zoned_text`] do.
    Text(Cow<'r, str>),
    /// The digits of an exact number.
    Decimal(Cow<'r, str>),
    Bytes(Cow<'r, [u8]>),
}

impl Cell<'_> {
    /// The same as a value: decimals as text, bytes as base64 text.
    pub(crate) fn to_value(&self) -> Value {
        match self {
            Cell::Null => Value::Null,
            Cell::Bool(flag) => Value::Bool(*flag),
            Cell::Int(number) => Value::Int(*number),
            Cell::Float(number) => Value::Float(*number),
            Cell::Text(text) | Cell::Decimal(text) => Value::text(&**text),
            Cell::Bytes(bytes) => Value::text(base64_text(bytes)),
        }
    }

    /// What it is, as error messages call it.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Cell::Null => "null",
            Cell::Bool(_) => "a truth value",
            Cell::Int(_) => "a whole number",
            Cell::Float(_) => "a floating number",
            Cell::Text(_) => "text",
            Cell::Decimal(_) => "a decimal number",
            Cell::Bytes(_) => "bytes",
        }
    }
}

/// One value bound to a placeholder.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Param {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text(Text),
    Bytes(Vec<u8>),
}

impl Param {
    /// A plain value as a parameter; says what is wrong when it is a list or a map.
    pub(crate) fn of(value: &Value) -> Result<Param, String> {
        Ok(match value {
            Value::Null => Param::Null,
            Value::Bool(flag) => Param::Bool(*flag),
            Value::Int(number) => Param::Int(*number),
            Value::Float(number) => Param::Float(*number),
            Value::Text(text) => Param::Text(text.clone()),
            other => return Err(format!("{} cannot be a SQL value", other.kind())),
        })
    }
}

pub(crate) fn base64_text(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

pub(crate) fn base64_bytes(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

/// The digits of an exact number without what does not change it: `+`, leading zeros, zeros after the last digit of
/// the fraction. Nothing when it is not a number; `1e3` is one.
pub(crate) fn decimal_text(text: &str) -> Option<String> {
    let text = text.trim();
    let (mantissa, exponent) = match text.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok().filter(|e| e.abs() <= 400)?),
        None => (text, 0),
    };
    let (negative, digits) = match mantissa.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, mantissa.strip_prefix('+').unwrap_or(mantissa)),
    };
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if whole.is_empty() && fraction.is_empty()
        || !(whole.bytes().chain(fraction.bytes())).all(|b| b.is_ascii_digit())
    {
        return None;
    }
    let mut all: Vec<u8> = whole.bytes().chain(fraction.bytes()).collect();
    let mut point = whole.len() as i64 + i64::from(exponent);
    while point < 0 {
        all.insert(0, b'0');
        point += 1;
    }
    while (all.len() as i64) < point {
        all.push(b'0');
    }
    let all = String::from_utf8(all).ok()?;
    let (whole, fraction) = all.split_at(point as usize);
    let whole = match whole.trim_start_matches('0') {
        "" => "0",
        digits => digits,
    };
    let fraction = fraction.trim_end_matches('0');
    let sign = if negative && !(whole == "0" && fraction.is_empty()) { "-" } else { "" };
    Some(if fraction.is_empty() { format!("{sign}{whole}") } else { format!("{sign}{whole}.{fraction}") })
}

/// `digits`, as [`decimal_text`] writes it, with at most `scale` digits of fraction, rounded half away from zero as
/// MariaDB and PostgreSQL do.
pub(crate) fn rounded_decimal(digits: &str, scale: usize) -> String {
    let Some((whole, fraction)) = digits.split_once('.') else { return digits.to_owned() };
    if fraction.len() <= scale {
        return digits.to_owned();
    }
    let negative = whole.starts_with('-');
    let round_up = fraction.as_bytes()[scale] >= b'5';
    let mut kept: Vec<u8> =
        whole.trim_start_matches('-').bytes().chain(fraction.bytes().take(scale)).collect();
    if round_up {
        let mut at = kept.len();
        loop {
            if at == 0 {
                kept.insert(0, b'1');
                break;
            }
            at -= 1;
            if kept[at] == b'9' {
                kept[at] = b'0';
            } else {
                kept[at] += 1;
                break;
            }
        }
    }
    let split = kept.len() - scale;
    let text = String::from_utf8_lossy(&kept);
    let signed = format!("{}{}.{}", if negative { "-" } else { "" }, &text[..split], &text[split..]);
    decimal_text(signed.trim_end_matches('.')).unwrap_or(signed)
}

/// A date and time without a zone, as every database's value is shown: `2026-11-22T10:15:30`, with a fraction only
/// when there is one.
pub(crate) fn civil_text(moment: DateTime) -> String {
    moment.to_string()
}

/// A moment: `2026-11-22T10:15:30Z`.
pub(crate) fn zoned_text(moment: Timestamp) -> String {
    moment.to_string()
}

/// Reads `2026-11-22 10:15:30`, the same with `T`, a date alone, or a moment with a zone (taken at UTC).
pub(crate) fn parse_civil(text: &str) -> Option<DateTime> {
    if let Some(moment) = farrier_model::time::parse_timestamp(text) {
        return Some(jiff::tz::Offset::UTC.to_datetime(moment));
    }
    let text = text.trim();
    text.replacen(' ', "T", 1)
        .parse::<DateTime>()
        .ok()
        .or_else(|| text.parse::<Date>().ok().map(|date| date.to_datetime(Time::midnight())))
}

/// As [`parse_civil`]; text without a zone is taken as UTC.
pub(crate) fn parse_zoned(text: &str) -> Option<Timestamp> {
    farrier_model::time::parse_timestamp(text)
        .or_else(|| jiff::tz::Offset::UTC.to_timestamp(parse_civil(text)?).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_have_one_spelling() {
        for (text, expected) in [
            ("1.50", Some("1.5")),
            ("-0.00", Some("0")),
            ("+007", Some("7")),
            (".5", Some("0.5")),
            ("1e3", Some("1000")),
            ("12.5e-3", Some("0.0125")),
            ("-12.5e1", Some("-125")),
            ("", None),
            (".", None),
            ("1,5", None),
            ("NaN", None),
        ] {
            assert_eq!(decimal_text(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn decimals_round_half_away_from_zero() {
        for (text, scale, expected) in [
            ("1.005", 2, "1.01"),
            ("-1.005", 2, "-1.01"),
            ("9.99", 1, "10"),
            ("0.04", 1, "0"),
            ("2.5", 0, "3"),
            ("7", 2, "7"),
        ] {
            assert_eq!(rounded_decimal(text, scale), expected, "{text} to {scale}");
        }
    }

    #[test]
    fn moments_read_with_and_without_a_zone() {
        let civil = |text| parse_civil(text).map(civil_text);
        assert_eq!(civil("2026-11-22 10:15:30").as_deref(), Some("2026-11-22T10:15:30"));
        assert_eq!(civil("2026-11-22T10:15:30.250").as_deref(), Some("2026-11-22T10:15:30.25"));
        assert_eq!(civil("2026-11-22T12:15:30+02:00").as_deref(), Some("2026-11-22T10:15:30"));
        assert_eq!(civil("2026-11-22").as_deref(), Some("2026-11-22T00:00:00"));
        assert_eq!(civil("soon"), None);
        assert_eq!(
            parse_zoned("2026-11-22 10:15:30").map(zoned_text).as_deref(),
            Some("2026-11-22T10:15:30Z")
        );
    }
}
