//! `farrier actions`: what steps can use.

mod markdown;

use clap::Args;
use farrier_model::spec::{ActionSpec, MARK, Risk};
use serde::Serialize;

use super::{App, Problem};
use crate::exit::Exit;
use crate::render::style::Style;
use crate::render::{self, table};

#[derive(Debug, Args)]
pub(super) struct Actions {
    /// One action, explained.
    #[arg(conflicts_with = "markdown")]
    name: Option<String>,
    /// Every action and target kind as a page of the manual.
    #[arg(long)]
    markdown: bool,
}

#[derive(Serialize)]
struct ActionView<'a> {
    name: &'a str,
    summary: &'a str,
    effect: &'static str,
    risk: Risk,
    deletes: bool,
    restores: bool,
    input: &'a serde_json::Value,
    output: &'a serde_json::Value,
    example: &'a str,
}

impl<'a> ActionView<'a> {
    fn of(spec: &'a ActionSpec) -> ActionView<'a> {
        ActionView {
            name: spec.name,
            summary: &spec.summary,
            effect: spec.effect.name(),
            risk: spec.risk,
            deletes: spec.deletes,
            restores: spec.restores,
            input: &spec.input,
            output: &spec.output,
            example: spec.example,
        }
    }
}

impl Actions {
    pub(super) fn run(&self, app: &App) -> Result<Exit, Problem> {
        if self.markdown {
            render::line(markdown::page(app.registry.catalog()).trim_end())?;
            return Ok(Exit::Ok);
        }
        let actions = &app.registry.catalog().actions;
        let Some(name) = &self.name else {
            let views: Vec<ActionView<'_>> = actions.values().map(ActionView::of).collect();
            if !render::data(app.output, &views)? {
                let rows: Vec<Vec<String>> = views
                    .iter()
                    .map(|view| vec![view.name.into(), view.effect.into(), view.summary.into()])
                    .collect();
                render::line(&table::draw(&["ACTION", "EFFECT", "WHAT IT DOES"], &rows))?;
                eprintln!("next: farrier actions NAME");
            }
            return Ok(Exit::Ok);
        };
        let spec = actions.get(name.as_str()).ok_or_else(|| {
            let known: Vec<String> = actions.keys().map(ToString::to_string).collect();
            let near = farrier_runbook::nearest(name, known.iter().map(String::as_str))
                .map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
            Problem::Usage(format!("there is no action `{name}`{near}"))
        })?;
        let view = ActionView::of(spec);
        if render::data(app.output, &view)? {
            return Ok(Exit::Ok);
        }
        let style = Style::stdout();
        render::line(&format!("{}  {}", style.bold(spec.name), spec.summary))?;
        render::line(&format!(
            "\neffect {}, {}, {}",
            spec.effect.name(),
            match spec.risk {
                Risk::ReadOnly => "changes nothing",
                Risk::Recoverable => "recoverable",
                Risk::Destructive => "destructive",
            },
            if spec.restores { "can be undone with `undo: restore`" } else { "has no restore" }
        ))?;
        render::line(&format!("\n{}", style.bold("with:")))?;
        fields(&spec.input, "  ")?;
        render::line(&format!("\n{}", style.bold("output:")))?;
        fields(&spec.output, "  ")?;
        render::line(&format!("\n{}\n{}", style.bold("example:"), spec.example.trim_end()))?;
        Ok(Exit::Ok)
    }
}

/// The fields of a schema, one line each.
fn fields(schema: &serde_json::Value, indent: &str) -> Result<(), Problem> {
    let required: Vec<&str> =
        schema["required"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str).collect();
    let Some(properties) = schema["properties"].as_object() else { return Ok(()) };
    for (name, field) in properties {
        let need = if required.contains(&name.as_str()) { "" } else { ", optional" };
        let about = field["description"].as_str().unwrap_or_default().replace('\n', " ");
        render::line(&format!("{indent}{name} ({}{need})  {about}", kind(field)))?;
    }
    Ok(())
}

fn kind(schema: &serde_json::Value) -> String {
    if let Some(mark) = schema[MARK].as_str() {
        return mark.replace([':', '_'], " ");
    }
    match &schema["type"] {
        serde_json::Value::String(kind) if kind == "array" => format!("list of {}", kind_of_items(schema)),
        serde_json::Value::String(kind) => kind.clone(),
        serde_json::Value::Array(kinds) => kinds
            .iter()
            .filter_map(serde_json::Value::as_str)
            .filter(|k| *k != "null")
            .collect::<Vec<_>>()
            .join(" or "),
        _ if schema["enum"].is_array() || schema["oneOf"].is_array() => "choice".into(),
        _ => "any".into(),
    }
}

fn kind_of_items(schema: &serde_json::Value) -> String {
    kind(&schema["items"])
}
