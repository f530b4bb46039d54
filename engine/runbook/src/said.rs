//! What a person says that a step gave, when nobody recorded it: held against the step's output before it counts.

use std::sync::Arc;

use farrier_model::{Text, Value};
use serde_json::{Value as Json, json};

use crate::diagnostic::{Diagnostics, FileId, Span};
use crate::graph::Step;
use crate::read::{NoHooks, check_schema, constant};
use crate::yaml::{Key, Node, NodeKind, Scalar};

/// The output of a node of a step, as far as others rely on it.
#[derive(Debug, Clone, Default)]
pub struct Gives {
    /// The JSON Schema of it, when the step uses an action.
    pub schema: Option<Arc<Json>>,
    /// Its fields, when the step uses a runbook that could be read.
    pub names: Option<Vec<Text>>,
    /// Fields that are read as if they were always there, each with whoever reads it: a step, or `outputs`.
    pub read: Vec<(Text, Text)>,
}

impl Step {
    /// What a person has to say of the output when the effect counts as made: fields, each with whoever reads it. Nothing is
    /// known of single items.
    pub fn must_be_said(&self) -> &[(Text, Text)] {
        if self.for_each.is_some() { &[] } else { &self.gives.read }
    }

    /// The output that a person says, each value as the type of its field; text stands for whatever it can be read as.
    ///
    /// # Errors
    /// One sentence: fields that others read and that are missing, fields that there are not, values that are something else.
    pub fn said_output(&self, said: Option<&Value>) -> Result<Value, String> {
        let known = said.and_then(Value::as_map);
        if said.is_some() && known.is_none() {
            return Err(format!("the output of step `{}` is a map of its fields", self.id));
        }
        let is_said = |field: &Text| known.is_some_and(|known| known.get(field).is_some());
        let mut missing: Vec<(&Text, Vec<String>)> = Vec::new();
        for (field, reader) in self.must_be_said().iter().filter(|(field, _)| !is_said(field)) {
            let reader =
                if &**reader == OUTPUTS { "the run's outputs".into() } else { format!("step `{reader}`") };
            match missing.iter_mut().find(|(name, _)| *name == field) {
                Some((_, readers)) => readers.push(reader),
                None => missing.push((field, vec![reader])),
            }
        }
        if !missing.is_empty() {
            let missing: Vec<String> = missing
                .into_iter()
                .map(|(field, readers)| {
                    let verb = if matches!(readers.as_slice(), [one] if one.starts_with("step")) {
                        "reads"
                    } else {
                        "read"
                    };
                    format!("`{field}`, which {} {verb}", readers.join(" and "))
                })
                .collect();
            return Err(format!("say what step `{}` gave, too: {}", self.id, missing.join("; ")));
        }
        let Some(said) = said else { return Ok(Value::Null) };
        let Some(schema) = self.gives.as_said() else { return Ok(said.clone()) };
        // Text is what it is where text is wanted, and otherwise what it would be without quotes.
        read_as(&schema, said, false)
            .or_else(|_| read_as(&schema, said, true))
            .map_err(|wrong| format!("the output of step `{}`: {wrong}", self.id))
    }
}

/// Who reads an output that the outputs of the runbook read.
pub(crate) const OUTPUTS: &str = "outputs";

impl Gives {
    /// The schema with every field optional and no others.
    fn as_said(&self) -> Option<Json> {
        if let Some(names) = &self.names {
            let fields: serde_json::Map<String, Json> =
                names.iter().map(|name| (name.to_string(), Json::Bool(true))).collect();
            return Some(json!({ "type": "object", "properties": fields, "additionalProperties": false }));
        }
        let mut schema = (**self.schema.as_ref()?).clone();
        if let Some(schema) = schema.as_object_mut()
            && schema.contains_key("properties")
        {
            schema.insert("required".into(), Json::Array(Vec::new()));
            schema.entry("additionalProperties").or_insert(Json::Bool(false));
        }
        Some(schema)
    }
}

fn read_as(schema: &Json, said: &Value, plain: bool) -> Result<Value, String> {
    let mut out = Diagnostics::new();
    let file = out.add_file("output", b"");
    match check_schema(&node(said, plain, file), schema, &mut NoHooks, &mut out).and_then(constant) {
        Some(value) => Ok(value),
        None => Err(out
            .sorted()
            .into_iter()
            .map(|wrong| match &wrong.expected {
                Some(expected) => format!("{}; expected {expected}", wrong.message),
                None => wrong.message.clone(),
            })
            .collect::<Vec<_>>()
            .join("; ")),
    }
}

/// A value as a tree, as if somebody had written it.
fn node(value: &Value, plain: bool, file: FileId) -> Node {
    let span = Span::new(file, 0..0);
    let scalar = |text: Text, plain: bool| NodeKind::Scalar(Scalar::of(text, plain));
    let kind = match value {
        Value::Null | Value::Unknown(_) => scalar("~".into(), true),
        Value::Bool(flag) => scalar(flag.to_string().into(), true),
        Value::Int(number) => scalar(number.to_string().into(), true),
        Value::Float(number) => scalar(number.to_string().into(), true),
        // Text that is there is not "nothing".
        Value::Text(text) => scalar(text.clone(), plain && !Scalar::of(text.clone(), true).is_null()),
        Value::List(items) => NodeKind::List(items.iter().map(|item| node(item, plain, file)).collect()),
        Value::Map(map) => NodeKind::Map(
            map.iter()
                .map(|(key, value)| (Key { text: key.clone(), span }, node(value, plain, file)))
                .collect(),
        ),
    };
    Node { span, kind }
}
