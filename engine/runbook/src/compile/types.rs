//! Types of values: read from JSON Schemas of outputs, followed along dotted paths, carried through filters.
//!
//! The compiler only reports what is certain. [`Type::Any`] stands for "nothing is known" and fits everything.

use farrier_model::spec::MARK;
use farrier_model::{Text, Type};
use serde_json::Value as Json;

use super::scan::{Access, Filter};
use crate::yaml::{Node, NodeKind};

/// Schemas nest at most so deep before the rest counts as unknown; recursive ones end here.
const MAX_DEPTH: usize = 24;

/// How a sentence calls a type: `a list`, `text`.
pub(super) fn describe(kind: &Type) -> String {
    match kind {
        Type::Any => "any value".into(),
        Type::Bool => "true or false".into(),
        Type::Int => "a whole number".into(),
        Type::Float => "a number".into(),
        Type::Text => "text".into(),
        Type::List(inner) => match &**inner {
            Type::Text => "a list of texts".into(),
            Type::Record(_) | Type::Dict(_) => "a list of maps".into(),
            _ => "a list".into(),
        },
        Type::Record(_) | Type::Dict(_) => "a map".into(),
        Type::Optional(inner) => format!("{} or null", describe(inner)),
    }
}

/// Follows `$ref` within `root`.
pub(super) fn resolve<'s>(schema: &'s Json, root: &'s Json) -> &'s Json {
    let mut schema = schema;
    for _ in 0..MAX_DEPTH {
        let Some(reference) = schema.get("$ref").and_then(Json::as_str) else { return schema };
        let Some(target) = reference.strip_prefix('#').and_then(|pointer| root.pointer(pointer)) else {
            return schema;
        };
        schema = target;
    }
    schema
}

/// The type that a schema describes. `with` is the step's input, for `keys_of` marks; `input` is the schema of it.
pub(super) fn of_schema(schema: &Json, root: &Json, with: Option<&Node>, input: &Json, depth: usize) -> Type {
    if depth > MAX_DEPTH {
        return Type::Any;
    }
    let schema = resolve(schema, root);
    let of = |inner: &Json| of_schema(inner, root, with, input, depth + 1);
    if let Some(field) =
        schema.get(MARK).and_then(Json::as_str).and_then(|mark| mark.strip_prefix("keys_of:"))
    {
        let values = schema.get("additionalProperties").map_or(Type::Any, &of);
        return keys_of(field, with, input, values);
    }
    for union in ["anyOf", "oneOf"] {
        if let Some(branches) = schema.get(union).and_then(Json::as_array) {
            return of_union(branches.iter().map(|branch| (is_null(resolve(branch, root)), of(branch))));
        }
    }
    if schema.get("const").is_some() || schema.get("enum").is_some() {
        let constants: Vec<&Json> = match schema.get("enum").and_then(Json::as_array) {
            Some(values) => values.iter().collect(),
            None => schema.get("const").into_iter().collect(),
        };
        return of_union(constants.into_iter().map(|constant| (constant.is_null(), of_constant(constant))));
    }
    match schema.get("type") {
        Some(Json::String(name)) => of_named(name, schema, &of),
        Some(Json::Array(names)) => of_union(
            names.iter().filter_map(Json::as_str).map(|name| (name == "null", of_named(name, schema, &of))),
        ),
        _ if schema.get("properties").is_some() => of_named("object", schema, &of),
        _ => Type::Any,
    }
}

fn is_null(schema: &Json) -> bool {
    schema.get("type").and_then(Json::as_str) == Some("null")
        || schema.get("const").is_some_and(Json::is_null)
}

fn of_constant(constant: &Json) -> Type {
    match constant {
        Json::Bool(_) => Type::Bool,
        Json::String(_) => Type::Text,
        Json::Number(number) if number.is_f64() => Type::Float,
        Json::Number(_) => Type::Int,
        _ => Type::Any,
    }
}

fn of_union(branches: impl Iterator<Item = (bool, Type)>) -> Type {
    let mut nullable = false;
    let mut found: Option<Type> = None;
    for (null, kind) in branches {
        if null {
            nullable = true;
            continue;
        }
        found = Some(match found {
            None => kind,
            Some(known) if known == kind => known,
            Some(_) => Type::Any,
        });
    }
    match found.unwrap_or(Type::Any) {
        Type::Any => Type::Any,
        kind if nullable => Type::Optional(Box::new(kind)),
        kind => kind,
    }
}

fn of_named(name: &str, schema: &Json, of: &dyn Fn(&Json) -> Type) -> Type {
    match name {
        "boolean" => Type::Bool,
        "integer" => Type::Int,
        "number" => Type::Float,
        "string" => Type::Text,
        "array" => Type::List(Box::new(schema.get("items").map_or(Type::Any, of))),
        "object" => {
            match (schema.get("properties").and_then(Json::as_object), schema.get("additionalProperties")) {
                (Some(properties), None | Some(Json::Bool(false))) if !properties.is_empty() => Type::Record(
                    properties.iter().map(|(key, inner)| (key.as_str().into(), of(inner))).collect(),
                ),
                (None, Some(values @ Json::Object(_))) => Type::Dict(Box::new(of(values))),
                (None, Some(Json::Bool(false))) => Type::Record(Vec::new()),
                _ => Type::Dict(Box::new(Type::Any)),
            }
        }
        _ => Type::Any,
    }
}

/// The record whose keys are those of the input field `field`, which may be dotted.
fn keys_of(field: &str, with: Option<&Node>, input: &Json, values: Type) -> Type {
    let mut node = with;
    let mut schema = resolve(input, input);
    for part in field.split('.') {
        node = node.and_then(|node| node.get(part));
        schema = schema
            .get("properties")
            .and_then(|all| all.get(part))
            .map_or(&Json::Null, |next| resolve(next, input));
    }
    let Some(node) = node else { return Type::Dict(Box::new(values)) };
    // A column's value may name its type (`uidNumber: int`); a template for items names nothing.
    let marked = |schema: &Json| schema.get(MARK).is_some();
    let names_types =
        !marked(schema) && !schema.get("additionalProperties").is_some_and(|s| marked(resolve(s, input)));
    match &node.kind {
        NodeKind::Map(entries) => Type::Record(
            entries
                .iter()
                .map(|(key, value)| {
                    let named = match (&values, &value.kind) {
                        (Type::Any, NodeKind::Scalar(scalar)) if names_types => of_name(&scalar.text),
                        _ => values.clone(),
                    };
                    (key.text.clone(), named)
                })
                .collect(),
        ),
        NodeKind::List(items)
            if items.iter().all(|item| item.as_text().is_some_and(|text| !text.contains("${"))) =>
        {
            Type::Record(
                items.iter().filter_map(Node::as_text).map(|text| (text.clone(), values.clone())).collect(),
            )
        }
        _ => Type::Dict(Box::new(values)),
    }
}

/// The type that an author names in a column list: `int`, `optional string`, `list of string`.
fn of_name(name: &str) -> Type {
    if let Some(inner) = name.strip_prefix("optional ") {
        return match of_name(inner) {
            Type::Any => Type::Any,
            inner => Type::Optional(Box::new(inner)),
        };
    }
    if let Some(inner) = name.strip_prefix("list of ") {
        return Type::List(Box::new(of_name(inner)));
    }
    match name {
        "string" | "text" | "timestamp" | "generalized_time" | "dn" => Type::Text,
        "int" => Type::Int,
        "bool" => Type::Bool,
        "float" => Type::Float,
        _ => Type::Any,
    }
}

/// Where a path leaves the known shape.
#[derive(Debug, PartialEq)]
pub(super) struct Stray {
    /// Index of the access that does not fit.
    pub access: usize,
    /// The names that would fit there; empty when the value has no fields at all.
    pub known: Vec<Text>,
    /// The type that was reached before it.
    pub reached: Type,
}

/// The type at the end of a path.
pub(super) fn follow(start: &Type, path: &[Access]) -> Result<Type, Stray> {
    let mut kind = start;
    for (at, access) in path.iter().enumerate() {
        while let Type::Optional(inner) = kind {
            kind = inner;
        }
        let stray = |known: Vec<Text>| Stray { access: at, known, reached: kind.clone() };
        kind = match (kind, access) {
            (Type::Any, _)
            | (Type::Record(_), Access::Dynamic { .. })
            | (Type::Record(_) | Type::Dict(_), Access::Index { .. }) => return Ok(Type::Any),
            (Type::Record(fields), Access::Field { name, .. }) => {
                match fields.iter().find(|(field, _)| **field == **name) {
                    Some((_, inner)) => inner,
                    None => return Err(stray(fields.iter().map(|(field, _)| field.clone()).collect())),
                }
            }
            (Type::Dict(inner), Access::Field { .. } | Access::Dynamic { .. })
            | (Type::List(inner), Access::Index { .. } | Access::Dynamic { .. }) => inner,
            (Type::List(_) | Type::Text, Access::Slice { .. }) => kind,
            (Type::Text, Access::Index { .. } | Access::Dynamic { .. }) => return Ok(Type::Text),
            _ => return Err(stray(Vec::new())),
        };
    }
    Ok(kind.clone())
}

/// The type after one filter. A stray path inside `attribute='…'` is the filter's mistake.
pub(super) fn through(kind: &Type, filter: &Filter) -> Result<Type, Stray> {
    let bare = match kind {
        Type::Optional(inner) => inner,
        other => other,
    };
    let item = match bare {
        Type::List(inner) => (**inner).clone(),
        _ => Type::Any,
    };
    Ok(match &*filter.name {
        "length" | "count" | "int" | "days" | "seconds" | "days_since" => Type::Int,
        "float" => Type::Float,
        "bool" => Type::Bool,
        "join" | "string" | "upper" | "lower" | "trim" | "title" | "capitalize" | "replace" | "to_json"
        | "human_bytes" | "rdn" | "host" | "after" | "before" | "duration" => Type::Text,
        "selectattr" | "rejectattr" => {
            if let Some(path) = &filter.positional {
                follow(&item, path)?;
            }
            Type::List(Box::new(item))
        }
        "map" => match &filter.attribute {
            Some(path) => Type::List(Box::new(follow(&item, path)?)),
            None => Type::List(Box::new(Type::Any)),
        },
        "sort" | "unique" => {
            if let Some(path) = &filter.attribute {
                follow(&item, path)?;
            }
            Type::List(Box::new(item))
        }
        "list" | "reverse" | "select" | "reject" => match bare {
            Type::List(_) => bare.clone(),
            _ => Type::Any,
        },
        "first" | "last" | "min" | "max" => item,
        "lines" | "split" => Type::List(Box::new(Type::Text)),
        _ => Type::Any,
    })
}

/// Whether a value of type `given` can never be what `wanted` asks for. Numbers and truth values fit text.
pub(super) fn never_fits(given: &Type, wanted: &Type) -> bool {
    match (given, wanted) {
        (Type::Optional(given), wanted) => never_fits(given, wanted),
        (given, Type::Optional(wanted)) => never_fits(given, wanted),
        (Type::Any, _)
        | (_, Type::Any)
        | (Type::Int, Type::Int | Type::Float)
        | (Type::Float, Type::Float)
        | (Type::Bool, Type::Bool)
        | (Type::Text, Type::Text)
        | (Type::Dict(_), Type::Record(_) | Type::Dict(_)) => false,
        (Type::List(given), Type::List(wanted)) => never_fits(given, wanted),
        (Type::Record(given), Type::Record(wanted)) => given
            .iter()
            .any(|(key, kind)| wanted.iter().any(|(other, wanted)| key == other && never_fits(kind, wanted))),
        (Type::Record(given), Type::Dict(wanted)) => given.iter().any(|(_, kind)| never_fits(kind, wanted)),
        _ => true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::scan;

    fn at(start: &Type, path: &str) -> Result<Type, Stray> {
        let chains = scan::chains(&format!("x{path}"));
        follow(start, &chains[0].path)
    }

    fn rows() -> Type {
        let schema = serde_json::json!({
            "type": "object",
            "properties": {
                "rows": { "type": "array", "items": { "$ref": "#/$defs/Row" } },
                "note": { "anyOf": [{ "type": "string" }, { "type": "null" }] },
                "mode": { "oneOf": [{ "const": "a" }, { "const": "b" }] },
                "size": { "type": ["integer", "null"] },
            },
            "$defs": { "Row": { "type": "object", "properties": {
                "name": { "type": "string" }, "parent": { "$ref": "#/$defs/Row" }
            } } },
        });
        of_schema(&schema, &schema, None, &Json::Null, 0)
    }

    #[test]
    fn schemas_become_types_and_paths_follow_them() {
        let rows = rows();
        assert_eq!(at(&rows, ".rows[0].name"), Ok(Type::Text));
        assert_eq!(at(&rows, ".rows[0].parent.parent.name"), Ok(Type::Text));
        let Ok(Type::List(row)) = at(&rows, ".rows[:20]") else { panic!("a part of a list is a list") };
        assert_eq!(at(&row, ".name[1:x['y']]"), Ok(Type::Text));
        assert_eq!(at(&rows, ".rows[1:][0].name"), Ok(Type::Text));
        assert_eq!(at(&rows, ".rows[{'a': 1}['a']].name"), Ok(Type::Text), "an index that is worked out");
        assert_eq!(at(&rows, ".rows[1:].name").unwrap_err().access, 2, "a list has no fields");
        assert_eq!(at(&rows, "[1:]").unwrap_err().access, 0, "a record has no parts");
        assert_eq!(at(&rows, ".note"), Ok(Type::Optional(Box::new(Type::Text))));
        assert_eq!(at(&rows, ".mode"), Ok(Type::Text));
        assert_eq!(at(&rows, ".size"), Ok(Type::Optional(Box::new(Type::Int))));
        let stray = at(&rows, ".rows[0].nam").unwrap_err();
        assert_eq!((stray.access, &*stray.known[0]), (2, "name"));
        assert_eq!(at(&rows, ".rows.name").unwrap_err().access, 1, "a list has no fields");
    }

    #[test]
    fn only_certain_mismatches_count() {
        let list = || Type::List(Box::new(Type::Any));
        for (given, wanted, never) in [
            (Type::Any, Type::Text, false),
            (Type::Optional(Box::new(Type::Text)), Type::Text, false),
            (list(), Type::Text, true),
            (Type::Int, Type::Float, false),
            (Type::Float, Type::Int, true),
            (Type::Int, Type::Text, true),
            (list(), Type::List(Box::new(Type::Text)), false),
            (Type::List(Box::new(Type::Int)), Type::List(Box::new(Type::Record(vec![]))), true),
        ] {
            assert_eq!(never_fits(&given, &wanted), never, "{given:?} as {wanted:?}");
        }
    }
}
