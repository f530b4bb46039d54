//! Small words of test files that are text with a meaning: lengths of time, moments, conditions.

use std::borrow::Cow;
use std::time::Duration;

use farrier_model::expr::Expr;
use farrier_model::time::{Timestamp, format_duration, parse_duration, parse_timestamp};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::Deserialize;

/// A length of time since the case began, such as `12d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(try_from = "String")]
pub struct Length(pub Duration);

impl TryFrom<String> for Length {
    type Error = String;
    fn try_from(text: String) -> Result<Length, String> {
        let length = parse_duration(&text)
            .ok_or_else(|| format!("`{text}` is not a duration such as `90s`, `5m`, `1h30m` or `40d`"))?;
        if length > MAX_LENGTH {
            return Err(format!(
                "`{text}` is too long: a case lasts {} at most",
                format_duration(MAX_LENGTH)
            ));
        }
        Ok(Length(length))
    }
}

/// Ten years: beyond that, clocks and calendars are tested, not runbooks.
const MAX_LENGTH: Duration = Duration::from_secs(3650 * 86_400);

/// A moment, such as `2026-01-01T00:00:00Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Moment(pub Timestamp);

impl TryFrom<String> for Moment {
    type Error = String;
    fn try_from(text: String) -> Result<Moment, String> {
        parse_timestamp(&text)
            .map(Moment)
            .ok_or_else(|| format!("`{text}` is not a time; write it as `2026-01-01T00:00:00Z`"))
    }
}

/// A bare expression that must be true of `result`.
#[derive(Debug, Clone, Deserialize)]
#[serde(try_from = "String")]
pub struct Condition(pub Expr);

impl TryFrom<String> for Condition {
    type Error = String;
    fn try_from(text: String) -> Result<Condition, String> {
        let expr = Expr::parse(&text).map_err(|error| error.message)?;
        let other = expr
            .references()
            .iter()
            .find(|name| name.split(['.', '[']).next().is_none_or(|root| root != "result"));
        match other {
            None => Ok(Condition(expr)),
            Some(name) => Err(format!("there is no name `{name}` here; `result` is what was read")),
        }
    }
}

macro_rules! text_schema {
    ($($name:ident: $about:literal),+) => {
        $(impl JsonSchema for $name {
            fn inline_schema() -> bool {
                true
            }
            fn schema_name() -> Cow<'static, str> {
                stringify!($name).into()
            }
            fn json_schema(_: &mut SchemaGenerator) -> Schema {
                json_schema!({ "type": "string", "description": $about })
            }
        })+
    };
}

text_schema! {
    Length: "A length of time since the case began, such as `12d`.",
    Moment: "A moment, such as `2026-01-01T00:00:00Z`.",
    Condition: "A bare expression that must be true of `result`."
}
