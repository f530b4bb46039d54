//! JSON Schema of every authored file, for editors. They are the schemas that [`crate::check_schema`] checks with,
//! refined where one part of a file decides about another: the input of a step by its action, the settings of a target
//! by its kind.

use std::collections::BTreeMap;

use farrier_model::spec::{Catalog, MARK};
use schemars::JsonSchema;
use serde_json::{Map, Value as Json, json};

use crate::alerts::AlertsFile;
use crate::authored::Runbook;
use crate::environment::{EnvironmentFile, GroupFile};
use crate::project::Project;
use crate::read::schema_of;
use crate::service::Service;
use crate::testfile::Tests;

/// What an expression looks like where the value is not text.
const WHOLE_EXPRESSION: &str = r"^\s*\$\{[\s\S]*\}\s*$";

/// The schema of runbooks.
pub fn runbook_schema(catalog: &Catalog) -> Json {
    refined((*schema_of::<Runbook>()).clone(), catalog)
}

/// The schema of environments.
pub fn environment_schema(catalog: &Catalog) -> Json {
    let mut schema = root::<EnvironmentFile>("Farrier environment");
    let mut definitions = Map::new();
    schema["properties"]["targets"]["additionalProperties"] = target_schema(catalog, &mut definitions);
    with_definitions(schema, definitions)
}

/// The schema of `NAME.test.yaml`.
pub fn tests_schema(catalog: &Catalog) -> Json {
    let mut schema = root::<Tests>("Tests of a Farrier runbook");
    let mut definitions = Map::new();
    let target = target_schema(catalog, &mut definitions);
    let test = &mut schema["properties"]["tests"]["items"]["properties"]["targets"];
    let about = test["description"].take();
    *test = json!({ "description": about, "type": "object", "additionalProperties": target });
    with_definitions(schema, definitions)
}

/// The schema of `serve.yaml`.
pub fn service_schema() -> Json {
    root::<Service>("Farrier service")
}

/// The schema of files of alert rules and routes.
pub fn alerts_schema() -> Json {
    root::<AlertsFile>("Farrier alerts")
}

/// The schema of `farrier.yaml`.
pub fn project_schema() -> Json {
    root::<Project>("Farrier project")
}

fn root<T: JsonSchema + 'static>(title: &str) -> Json {
    let mut schema = (*schema_of::<T>()).clone();
    schema["title"] = title.into();
    schema
}

fn with_definitions(mut schema: Json, definitions: Map<String, Json>) -> Json {
    if !definitions.is_empty() {
        if schema.get("$defs").is_none() {
            schema["$defs"] = json!({});
        }
        if let Some(Json::Object(all)) = schema.get_mut("$defs") {
            all.extend(definitions);
        }
    }
    schema
}

/// One entry under `targets:`.
fn target_schema(catalog: &Catalog, definitions: &mut Map<String, Json>) -> Json {
    let kinds: Vec<Json> = catalog
        .targets
        .values()
        .map(|spec| json!({ "const": spec.kind, "description": spec.summary }))
        .collect();
    let mut rules = vec![json!({
        "if": { "required": ["group"] },
        "then": with_field(&schema_of::<GroupFile>(), None),
        "else": { "required": ["kind"], "properties": { "kind": { "oneOf": kinds } } },
    })];
    for spec in catalog.targets.values() {
        let config = adopt(&spec.config, &format!("target.{}", spec.kind), definitions);
        rules.push(json!({
            "if": { "required": ["kind"], "properties": { "kind": { "const": spec.kind } } },
            "then": with_field(&config, Some("kind")),
        }));
    }
    json!({ "type": "object", "allOf": rules })
}

/// An object's schema that also allows one more field.
fn with_field(schema: &Json, field: Option<&str>) -> Json {
    let mut schema = schema.clone();
    if let Some(fields) = schema.as_object_mut() {
        let properties = fields.entry("properties").or_insert_with(|| json!({}));
        if let (Some(field), Some(properties)) = (field, properties.as_object_mut()) {
            properties.insert(field.into(), json!({}));
        }
        fields.shift_remove("$schema");
        fields.shift_remove("title");
    }
    schema
}

/// A plugin's schema as part of another one: its definitions move to `definitions`, under names that begin with
/// `prefix`, and its references follow.
fn adopt(schema: &Json, prefix: &str, definitions: &mut Map<String, Json>) -> Json {
    let mut schema = schema.clone();
    let own = schema.as_object_mut().and_then(|fields| fields.shift_remove("$defs"));
    if let Some(fields) = schema.as_object_mut() {
        fields.shift_remove("$schema");
    }
    rebase(&mut schema, prefix);
    for (name, mut definition) in own.as_ref().and_then(Json::as_object).cloned().unwrap_or_default() {
        rebase(&mut definition, prefix);
        definitions.insert(format!("{prefix}.{name}"), definition);
    }
    schema
}

fn rebase(schema: &mut Json, prefix: &str) {
    match schema {
        Json::Object(fields) => {
            for (name, field) in fields.iter_mut() {
                match field {
                    Json::String(target) if name == "$ref" => {
                        if let Some(own) = target.strip_prefix("#/$defs/") {
                            *target = format!("#/$defs/{prefix}.{own}");
                        }
                    }
                    _ => rebase(field, prefix),
                }
            }
        }
        Json::Array(items) => items.iter_mut().for_each(|item| rebase(item, prefix)),
        _ => {}
    }
}

/// Allows a whole `${ … }` wherever a value stands.
fn with_expressions(schema: &Json) -> Json {
    let Some(fields) = schema.as_object() else { return schema.clone() };
    let mark = fields.get(MARK).and_then(Json::as_str).unwrap_or_default();
    if matches!(mark, "text" | "literal" | "item_expression" | "item_template") || mark.starts_with("target:")
    {
        return schema.clone();
    }
    let inner = |name: &str, field: &Json| match (name, field) {
        ("properties" | "$defs", Json::Object(parts)) => {
            Json::Object(parts.iter().map(|(name, part)| (name.clone(), with_expressions(part))).collect())
        }
        ("items" | "additionalProperties", part) => with_expressions(part),
        ("prefixItems", Json::Array(parts)) => Json::Array(parts.iter().map(with_expressions).collect()),
        _ => field.clone(),
    };
    let typed: Map<String, Json> =
        fields.iter().map(|(name, field)| (name.clone(), inner(name, field))).collect();
    let constrains =
        ["type", "enum", "const", "oneOf", "anyOf", "$ref"].iter().any(|name| typed.contains_key(*name));
    let only_text = typed.get("type").is_some_and(|name| name == "string")
        && !typed.contains_key("pattern")
        && !typed.contains_key("enum");
    if !constrains || only_text {
        return Json::Object(typed);
    }
    let mut outer = Map::new();
    let mut typed = typed;
    for name in ["description", "default", MARK] {
        if let Some(field) = typed.shift_remove(name) {
            outer.insert(name.into(), field);
        }
    }
    outer.insert("anyOf".into(), json!([typed, { "type": "string", "pattern": WHOLE_EXPRESSION }]));
    Json::Object(outer)
}

/// Adds to the schema of a step what each action takes.
fn refine_step(step: &mut Json, catalog: &Catalog, definitions: &mut Map<String, Json>) {
    let names: BTreeMap<&str, &str> =
        catalog.actions.values().map(|spec| (spec.name, &*spec.summary)).collect();
    let mut uses: Vec<Json> =
        names.iter().map(|(name, about)| json!({ "const": name, "description": about })).collect();
    uses.push(json!({ "type": "string", "pattern": r"^runbook\.[a-z0-9][a-z0-9_-]*$", "description": "Another runbook, as a child run." }));
    let about = step["properties"]["uses"]["description"].take();
    step["properties"]["uses"] = json!({ "description": about, "anyOf": uses });
    let rules: Vec<Json> = catalog
        .actions
        .values()
        .map(|spec| {
            let prefix = format!("action.{}", spec.name);
            let mut input = adopt(&spec.input, &prefix, definitions);
            let required = input.get("required").and_then(Json::as_array).is_some_and(|names| !names.is_empty());
            // `with:` itself is written out; the values in it may be expressions.
            if let Some(Json::Object(properties)) = input.get_mut("properties") {
                for property in properties.values_mut() {
                    *property = with_expressions(property);
                }
            }
            if let Some(fields) = input.as_object_mut() {
                fields.shift_remove("title");
            }
            definitions.insert(prefix.clone(), input);
            let mut then = json!({ "properties": { "with": { "$ref": format!("#/$defs/{prefix}") } } });
            if required {
                then["required"] = json!(["with"]);
            }
            json!({ "if": { "required": ["uses"], "properties": { "uses": { "const": spec.name } } }, "then": then })
        })
        .collect();
    step["allOf"] = Json::Array(rules);
}

fn refined(mut schema: Json, catalog: &Catalog) -> Json {
    schema["title"] = "Farrier runbook".into();
    let mut definitions = Map::new();
    let mut step = schema["properties"]["steps"]["additionalProperties"].clone();
    refine_step(&mut step, catalog, &mut definitions);
    definitions.insert("step".into(), step);
    for part in ["steps", "finally"] {
        schema["properties"][part]["additionalProperties"] = json!({ "$ref": "#/$defs/step" });
    }
    // Definitions that a schema of ours brought stay where they are.
    with_definitions(schema, definitions)
}
