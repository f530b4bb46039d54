//! The manual's page of actions and targets, made from the registry: `site/manual/actions.md`.

use std::fmt::Write as _;

use farrier_model::spec::{ActionSpec, Catalog, Risk};
use serde_json::Value as Json;

use super::kind;

const HEAD: &str = "# Actions and targets

<!-- Made by `farrier actions --markdown`. Change the comments in plugins/ and make it again. -->

What steps can use (`uses:`), and the kinds of target that environments bind. `farrier actions NAME` prints the same for
one action.

Every action has an *effect*, which decides what happens when Farrier stops in the middle of it and starts again:

| effect | after a crash |
|---|---|
| `read` | it is done again |
| `repeatable` | it is planned again from the recorded inputs and done again |
| `keyed` | it is submitted again under the same key, which the target remembers |
| `probed` | the target is asked whether it happened |
| `once` | the run is parked until a person says whether it happened (`farrier resolve`) |

";

/// The whole page.
pub(super) fn page(catalog: &Catalog) -> String {
    let mut page = HEAD.to_owned();
    let mut plugin = "";
    for (name, spec) in &catalog.actions {
        let of = name.split('.').next().unwrap_or_default();
        if of != plugin {
            plugin = of;
            let _ = writeln!(page, "## {plugin}\n");
        }
        action(&mut page, spec);
    }
    page.push_str("## Targets\n\n");
    for (kind, spec) in &catalog.targets {
        let _ = writeln!(page, "### Target kind `{kind}`\n\n{}\n", description(&spec.config));
        table(&mut page, "setting", &spec.config);
    }
    page.truncate(page.trim_end().len());
    page.push('\n');
    page
}

fn action(page: &mut String, spec: &ActionSpec) {
    let _ = writeln!(page, "### {}\n\n{}\n", spec.name, description(&spec.input));
    let risk = match spec.risk {
        Risk::ReadOnly => "it changes nothing",
        Risk::Recoverable => "what it changes can be brought back",
        Risk::Destructive => "what it changes may be gone",
    };
    let undo = match (spec.risk, spec.restores) {
        (Risk::ReadOnly, _) => "",
        (_, true) => "; `undo: restore` reverses it",
        (_, false) => "; it cannot be reversed by `undo: restore`",
    };
    let undo = match spec.read_only_if {
        Some(field) => format!("{undo}. With `{field}: true` it changes nothing"),
        None => undo.to_owned(),
    };
    let deletes = if spec.deletes { " A step that uses it must say what it `needs`." } else { "" };
    let _ = writeln!(page, "Effect `{}`: {risk}{undo}.{deletes}\n", spec.effect.name());
    table(page, "with", &spec.input);
    table(page, "output", &spec.output);
    let _ = writeln!(page, "```yaml\n{}\n```\n", spec.example.trim_end());
}

fn description(schema: &Json) -> &str {
    schema["description"].as_str().unwrap_or_default()
}

/// The fields of a schema, those of inner objects under a path; nothing when there are none.
fn table(page: &mut String, title: &str, schema: &Json) {
    let mut rows = Vec::new();
    fields(schema, "", &mut rows);
    if rows.is_empty() {
        return;
    }
    let _ = writeln!(page, "| {title} | type | |\n|---|---|---|");
    for [name, kind, about] in rows {
        let _ = writeln!(page, "| `{name}` | {} | {} |", cell(&kind), cell(&about));
    }
    page.push('\n');
}

fn fields(schema: &Json, path: &str, rows: &mut Vec<[String; 3]>) {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(Json::as_str).collect();
    for (name, field) in schema["properties"].as_object().into_iter().flatten() {
        let optional = !required.contains(&name.as_str());
        let name = format!("{path}{name}");
        let mut about = description(field).to_owned();
        let choices = choices(field);
        if !choices.iter().all(|choice| about.contains(choice)) {
            let _ = write!(about, " One of {}.", choices.join(", "));
        }
        if let Some(default) = field.get("default").filter(|default| !default.is_null()) {
            let _ = write!(about, " Default: `{default}`.");
        }
        let kind = if choices.is_empty() { kind(field) } else { "choice".into() };
        rows.push([name.clone(), format!("{kind}{}", if optional { ", optional" } else { "" }), about]);
        inner(field, &name, rows);
    }
}

/// The fields of what a field holds: an object, items of a list, or values of a map.
fn inner(field: &Json, name: &str, rows: &mut Vec<[String; 3]>) {
    fields(field, &format!("{name}."), rows);
    fields(&field["items"], &format!("{name}[]."), rows);
    fields(&field["additionalProperties"], &format!("{name}.*."), rows);
    for choice in ["anyOf", "oneOf"] {
        for one in field[choice].as_array().into_iter().flatten() {
            inner(one, name, rows);
        }
    }
}

fn choices(field: &Json) -> Vec<String> {
    let from_enum = field["enum"].as_array().into_iter().flatten();
    let from_one_of = field["oneOf"].as_array().into_iter().flatten();
    let words = from_enum.chain(from_one_of.filter_map(|one| one.get("const")));
    words.filter_map(Json::as_str).map(|word| format!("`{word}`")).collect()
}

/// Text that may stand in a cell of a table.
fn cell(text: &str) -> String {
    text.replace('\n', " ").replace('|', "\\|").trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_of_the_manual_is_current() {
        let registry = crate::plugins::registry().unwrap();
        farrier_testkit::generated::is_current("site/manual/actions.md", &page(registry.catalog()));
    }

    #[test]
    fn fields_of_inner_objects_have_a_path() {
        let schema = serde_json::json!({
            "required": ["list"],
            "properties": {
                "list": { "type": "array", "description": "Some | more.", "items": { "type": "object",
                    "properties": { "name": { "type": "string" } } } },
                "word": { "oneOf": [{ "const": "kept" }, { "const": "joined" }], "default": "kept" },
            },
        });
        let mut text = String::new();
        table(&mut text, "with", &schema);
        let expected = "\
| with | type | |
|---|---|---|
| `list` | list of object | Some \\| more. |
| `list[].name` | string, optional |  |
| `word` | choice, optional | One of `kept`, `joined`. Default: `\"kept\"`. |

";
        assert_eq!(text, expected);
    }
}
