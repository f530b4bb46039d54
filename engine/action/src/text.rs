//! Input fields whose text has a meaning of its own. Each marks its schema with `x-farrier` (see
//! [`farrier_model::spec`]), which tells the compiler how to check it.

use std::borrow::Cow;
use std::fmt;
use std::time::Duration;

use farrier_model::expr::Template;
use farrier_model::time::parse_duration;
use farrier_model::{Expr, ExprError, Failure, FailureKind, Scope, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Text for people, or one command argument: may mix text and `${ }`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Deserialize)]
#[serde(transparent)]
pub struct FreeText(pub String);

impl JsonSchema for FreeText {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "text".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-farrier": "text" })
    }
}

impl fmt::Display for FreeText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Text of another language, fixed by the author; `$name` stands for `params.name`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct Literal(pub String);

impl JsonSchema for Literal {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "literal".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-farrier": "literal" })
    }
}

/// A length of time as people write it: `90s`, `1h30m`, `40d`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span(pub Duration);

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Span, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text)
            .map(Span)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not a duration such as `90s` or `40d`")))
    }
}

impl JsonSchema for Span {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "duration".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "pattern": "^([0-9]+(ms|s|m|h|d|w))+$",
            "x-expected": "a duration such as `90s`, `1h30m` or `40d`",
        })
    }
}

/// The name of a signal that the runbook declares.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct SignalName(pub String);

impl JsonSchema for SignalName {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "signal".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-farrier": "signal" })
    }
}

/// The name of a runbook.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(transparent)]
pub struct RunbookName(pub String);

impl JsonSchema for RunbookName {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "runbook".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-farrier": "runbook" })
    }
}

/// A bare expression that the action evaluates for each item.
#[derive(Debug, Clone)]
pub struct ItemExpr(pub Expr);

impl ItemExpr {
    /// The value for one item.
    ///
    /// # Errors
    /// [`FailureKind::Input`] with the expression and what is wrong with it.
    pub fn eval(&self, scope: &Scope) -> Result<Value, Failure> {
        self.0.eval(scope).map_err(|error| expression_failure(&error, self.0.source()))
    }

    /// The truth value for one item.
    ///
    /// # Errors
    /// As [`ItemExpr::eval`], and when it is neither true nor false.
    pub fn eval_bool(&self, scope: &Scope) -> Result<bool, Failure> {
        match self.0.eval_bool(scope).map_err(|error| expression_failure(&error, self.0.source()))? {
            Some(flag) => Ok(flag),
            None => {
                Err(Failure::new(FailureKind::Internal, format!("`{}` is not known yet", self.0.source())))
            }
        }
    }
}

impl<'de> Deserialize<'de> for ItemExpr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ItemExpr, D::Error> {
        let source = String::deserialize(deserializer)?;
        Expr::parse(&source)
            .map(ItemExpr)
            .map_err(|error| D::Error::custom(format!("in `{source}`: {error}")))
    }
}

impl JsonSchema for ItemExpr {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "item_expression".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "x-farrier": "item_expression" })
    }
}

/// A tree whose `${ }` parts the action evaluates for each item.
#[derive(Debug, Clone)]
pub struct ItemTemplate(pub Template);

impl ItemTemplate {
    /// The value for one item.
    ///
    /// # Errors
    /// [`FailureKind::Input`] with what is wrong.
    pub fn eval(&self, scope: &Scope) -> Result<Value, Failure> {
        self.0.eval(scope).map_err(|error| Failure::new(FailureKind::Input, error.message))
    }
}

impl<'de> Deserialize<'de> for ItemTemplate {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ItemTemplate, D::Error> {
        let tree = Value::deserialize(deserializer)?;
        Template::parse(&tree).map(ItemTemplate).map_err(D::Error::custom)
    }
}

impl JsonSchema for ItemTemplate {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        "item_template".into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "x-farrier": "item_template" })
    }
}

fn expression_failure(error: &ExprError, source: &str) -> Failure {
    Failure::new(FailureKind::Input, format!("in `{source}`: {}", error.message))
}
