//! A step for every action that can come to know a secret, made of what the registry says: its example, on targets of the kinds that
//! it names. So an action that is added tomorrow is among them.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::common::Project;

/// The steps of one runbook, and the targets that they name.
pub(super) struct Steps {
    /// By name, which is the action's with `_` for the dot.
    pub(super) steps: Map<String, Value>,
    /// The kind of each target, by its alias.
    pub(super) targets: BTreeMap<String, String>,
}

/// What the binary says of an action.
struct Action {
    name: String,
    effect: String,
    input: Value,
    example: String,
}

impl Steps {
    /// All of them that `wanted` wants, told the name and the effect class.
    pub(super) fn of(project: &Project, wanted: impl Fn(&str, &str) -> bool) -> Steps {
        let kinds = kinds_with_secrets(project);
        let listed = project.farrier(&["actions", "-o", "json"]).expect(0).json();
        let mut made = Steps { steps: Map::new(), targets: BTreeMap::new() };
        for action in listed.as_array().unwrap() {
            let text = |field: &str| action[field].as_str().unwrap().to_owned();
            let action = Action {
                name: text("name"),
                effect: text("effect"),
                input: action["input"].clone(),
                example: text("example"),
            };
            if wanted(&action.name, &action.effect) {
                made.add(&action, &kinds);
            }
        }
        assert!(made.steps.len() > 1, "nothing was found");
        made
    }

    fn add(&mut self, action: &Action, kinds: &[String]) {
        let example: Value = serde_saphyr::from_str(&action.example).unwrap();
        let mut input = example.as_object().unwrap().values().next().unwrap()["with"].clone();
        without_references(&mut input);
        // Who waits for something that does not come has a second for it.
        let fields = input.as_object_mut().unwrap();
        for (name, value) in fields.iter_mut() {
            if ["within", "stuck_after"].contains(&name.as_str()) {
                *value = json!("1s");
            }
        }
        fields.retain(|name, _| !["every", "hold"].contains(&name.as_str()));
        let mut targets = BTreeMap::new();
        aliases(&action.input, &input, &mut targets);
        if !targets.values().any(|kind| kinds.contains(kind)) {
            return;
        }
        let mut step = json!({
            "uses": action.name, "with": input, "needs": [], "on_failure": "continue", "timeout": "TIMEOUT",
        });
        if action.effect != "read" {
            step["undo"] = json!("none");
        }
        self.steps.insert(action.name.replace('.', "_"), step);
        for (alias, kind) in targets {
            let before = self.targets.insert(alias.clone(), kind.clone());
            assert!(before.is_none_or(|before| before == kind), "`{alias}` is of two kinds");
        }
    }

    /// The runbook, in which every step may take so long.
    pub(super) fn runbook(&self, name: &str, timeout: &str) -> String {
        let runbook = json!({
            "runbook": name, "summary": "Asks everyone", "owner": "tests", "risk": "destructive", "targets": self.targets,
            "steps": self.steps,
        });
        runbook.to_string().replace("TIMEOUT", timeout)
    }

    /// An environment with all its targets; `place` says where those of a kind are.
    pub(super) fn environment(&self, place: impl Fn(&str, &str) -> Value) -> Value {
        let entries = self.targets.iter().map(|(alias, kind)| {
            let mut entry = place(kind, alias);
            entry["kind"] = json!(kind);
            (alias.clone(), entry)
        });
        Value::Object(entries.collect())
    }
}

/// The kinds of target in whose settings a secret can stand.
fn kinds_with_secrets(project: &Project) -> Vec<String> {
    fn refers_to_a_secret(schema: &Value) -> bool {
        match schema {
            // One of the ways to name one.
            Value::Object(fields) => {
                fields.get("properties").is_some_and(|properties| properties.get("credential").is_some())
                    || fields.values().any(refers_to_a_secret)
            }
            Value::Array(items) => items.iter().any(refers_to_a_secret),
            _ => false,
        }
    }
    fn kinds(schema: &Value, found: &mut Vec<String>) {
        let kind = schema.pointer("/if/properties/kind/const").and_then(Value::as_str);
        match (schema, kind) {
            (_, Some(kind)) if refers_to_a_secret(&schema["then"]) => found.push(kind.to_owned()),
            (Value::Object(fields), None) => fields.values().for_each(|inner| kinds(inner, found)),
            (Value::Array(items), None) => items.iter().for_each(|inner| kinds(inner, found)),
            _ => {}
        }
    }
    let schema = project.farrier(&["schema", "environment"]).expect(0).json();
    let mut found = Vec::new();
    kinds(&schema, &mut found);
    assert!(
        found.iter().any(|kind| kind == "ldap") && !found.iter().any(|kind| kind == "files"),
        "{found:?}"
    );
    found
}

/// The aliases in an input with the kinds that its schema gives them.
fn aliases(schema: &Value, input: &Value, found: &mut BTreeMap<String, String>) {
    let kind = schema["x-farrier"].as_str().and_then(|mark| mark.strip_prefix("target:"));
    match (input, kind) {
        (Value::String(alias), Some(kind)) => drop(found.insert(alias.clone(), kind.to_owned())),
        (Value::Object(fields), _) => {
            for (name, value) in fields {
                aliases(&schema["properties"][name], value, found);
                aliases(&schema["additionalProperties"], value, found);
            }
        }
        (Value::Array(items), _) => items.iter().for_each(|item| aliases(&schema["items"], item, found)),
        _ => {}
    }
    for word in ["anyOf", "oneOf", "allOf"] {
        for way in schema[word].as_array().into_iter().flatten() {
            aliases(way, input, found);
        }
    }
}

/// Examples use the outputs of steps that are not there: those are digests.
fn without_references(input: &mut Value) {
    match input {
        Value::String(text) if text.contains("${ steps.") => *text = "0".repeat(64),
        Value::Array(items) => items.iter_mut().for_each(without_references),
        Value::Object(fields) => fields.values_mut().for_each(without_references),
        _ => {}
    }
}
