//! What the compiler knows of actions and targets: plain data that plugins hand over, so that the language needs no
//! plugin to check a runbook.
//!
//! Input and output schemas are JSON Schema made from the plugin's Rust types. The extension keyword `x-farrier`
//! says how a text field relates to expressions:
//!
//! | value | meaning |
//! |---|---|
//! | `target:KIND` | names one of the runbook's targets, of that kind |
//! | `text` | text for people or one argument: may mix text and `${ }` |
//! | `literal` | text of another language: `$name` parameters from the sibling `params`, `${` is an error |
//! | `item_expression` | a bare expression that the action evaluates for each item |
//! | `item_template` | a tree whose `${ }` parts the action evaluates for each item |
//! | `runbook` | names this runbook, or one that it starts |
//! | `signal` | names one of the runbook's signals |
//! | `keys_of:FIELD` | (outputs) a map whose keys are those of the input field `FIELD` |
//!
//! Any other text field takes a constant or one whole `${ }`.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::change::Effect;
use crate::value::Text;

/// The keyword under which the marks in the table above stand in a schema.
pub const MARK: &str = "x-farrier";

/// The worst that an action or a runbook may do. Ordered: a runbook's `risk` is a ceiling for its steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    /// Changes nothing.
    ReadOnly,
    /// What it changes can be brought back from what Farrier recorded.
    Recoverable,
    /// What it changes may be gone.
    Destructive,
}

/// One action, as the compiler and the manual see it.
#[derive(Debug, Clone)]
pub struct ActionSpec {
    /// `plugin.verb`.
    pub name: &'static str,
    /// The first paragraph of its documentation.
    pub summary: String,
    /// What may be done with it in doubt.
    pub effect: Effect,
    /// Depends on its inputs alone and touches no target, so it also runs in plans below steps with changes.
    pub pure: bool,
    /// The worst it can do.
    pub risk: Risk,
    /// A field of the input: a step that says `true` there changes nothing.
    pub read_only_if: Option<&'static str>,
    /// Its purpose is to delete; such a step must say what it needs.
    pub deletes: bool,
    /// It can bring back the state before it: `undo: restore` is allowed.
    pub restores: bool,
    /// JSON Schema of `with`.
    pub input: serde_json::Value,
    /// JSON Schema of the output. Every step with the action shares it.
    pub output: Arc<serde_json::Value>,
    /// An example step in YAML, for the manual.
    pub example: &'static str,
}

/// One kind of target, as the compiler sees it.
#[derive(Debug, Clone)]
pub struct TargetSpec {
    /// `ldap`, `sql`, `files`, …
    pub kind: &'static str,
    /// The first paragraph of its documentation.
    pub summary: String,
    /// JSON Schema of its entry in an environment, without `kind`.
    pub config: serde_json::Value,
}

/// Every action and target kind there is. The compiler's only view of plugins.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// By name, so listings are alphabetical.
    pub actions: BTreeMap<&'static str, ActionSpec>,
    /// By kind.
    pub targets: BTreeMap<&'static str, TargetSpec>,
}

/// The type of a value, for checking references before anything runs.
#[derive(Debug, Clone, PartialEq)]
pub enum Type {
    /// Nothing is known; every use is allowed.
    Any,
    /// A truth value.
    Bool,
    /// A whole number.
    Int,
    /// A number.
    Float,
    /// Text.
    Text,
    /// A list of one type.
    List(Box<Type>),
    /// A map with exactly these keys.
    Record(Vec<(Text, Type)>),
    /// A map with any keys and one type of value.
    Dict(Box<Type>),
    /// That type or null.
    Optional(Box<Type>),
}
