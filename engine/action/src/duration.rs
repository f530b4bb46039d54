//! Durations as inputs and settings have them.

use std::borrow::Cow;
use std::time::Duration;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A duration above zero such as `30s`: how long something may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait(pub Duration);

/// A duration such as `30s`, or none at all, `0s`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Length(pub Duration);

impl<'de> Deserialize<'de> for Wait {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Wait, D::Error> {
        let text = String::deserialize(deserializer)?;
        match farrier_model::time::parse_duration(&text) {
            Some(duration) if !duration.is_zero() => Ok(Wait(duration)),
            _ => Err(D::Error::custom(format!("`{text}` is not a duration above zero such as `30s`"))),
        }
    }
}

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Length, D::Error> {
        let text = String::deserialize(deserializer)?;
        farrier_model::time::parse_duration(&text)
            .map(Length)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not a duration such as `30s`")))
    }
}

fn schema() -> Schema {
    json_schema!({ "type": "string", "pattern": "^([0-9]+(w|d|h|m|s|ms))+$", "examples": ["30s"] })
}

impl JsonSchema for Wait {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema()
    }
}

impl JsonSchema for Length {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schema()
    }
}
