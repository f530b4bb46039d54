//! Every file of `testdata/valid` compiles without a word; the snapshot is the graph.

mod support;

use std::fmt::Write as _;
use std::path::Path;

use farrier_runbook::graph::Graph;
use farrier_runbook::{compile, render_graph};
use support::{catalog, sources};

fn shown(graph: &Graph) -> Result<String, std::fmt::Error> {
    let mut text = render_graph::to_text(graph);
    writeln!(text, "risk {:?}", graph.risk)?;
    if let Some(key) = &graph.one_run_per {
        writeln!(text, "one run per {key:?}")?;
    }
    for lock in &graph.locks {
        writeln!(text, "{lock:?}")?;
    }
    for signal in &graph.signals {
        writeln!(text, "{signal:?}")?;
    }
    for input in &graph.inputs {
        let pattern = input.pattern.as_ref().map(regex::Regex::as_str);
        let bounds = (input.min, input.max);
        writeln!(
            text,
            "input {} {:?} default {:?} {pattern:?} {bounds:?}",
            input.name, input.kind, input.default
        )?;
    }
    for (name, template) in &graph.vars {
        writeln!(text, "var {name} {template:?}")?;
    }
    for trigger in &graph.triggers {
        writeln!(text, "trigger {trigger:?}")?;
    }
    for guard in &graph.guards {
        writeln!(text, "guard {guard:?}")?;
    }
    writeln!(text, "outputs {:?}", graph.outputs)?;
    for index in graph.indices() {
        let step = graph.step(index);
        let reads: Vec<&str> = step.reads.iter().map(|read| &*graph.step(*read).id).collect();
        writeln!(text, "step {} reads {reads:?}\n  with {:?}", step.id, step.with)?;
        writeln!(text, "  undo {:?}, on failure {:?}, retry {:?}", step.undo, step.on_failure, step.retry)?;
        for line in [
            step.condition.as_ref().map(|condition| format!("if {condition:?}")),
            step.for_each.as_ref().map(|for_each| format!("{for_each:?}")),
            step.verify.as_ref().map(|verify| format!("{verify:?}")),
            step.default_output.as_ref().map(|output| format!("default {output:?}")),
            (!step.expect.is_empty()).then(|| format!("expect {:?}", step.expect)),
            (!step.guards.is_empty()).then(|| format!("guards {:?}", step.guards)),
            step.lock.as_ref().map(|lock| format!("{lock:?}")),
        ]
        .into_iter()
        .flatten()
        {
            writeln!(text, "  {line}")?;
        }
    }
    Ok(text)
}

fn compiles(path: &Path) -> datatest_stable::Result<()> {
    let name = path.file_name().and_then(|name| name.to_str()).ok_or("a name in UTF-8")?;
    let compiled = compile(&sources(name, &std::fs::read_to_string(path)?), &catalog());
    assert!(compiled.diagnostics.is_empty(), "{}", compiled.diagnostics.render(false));
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let graphs: Vec<String> = compiled.graphs.values().map(|graph| shown(graph)).collect::<Result<_, _>>()?;
    settings.bind(|| {
        insta::assert_snapshot!(format!("valid_{}", name.trim_end_matches(".yaml")), graphs.join("\n"));
    });
    Ok(())
}

datatest_stable::harness! {
    { test = compiles, root = "../../testdata/valid", pattern = r"^[^/]*\.yaml$" },
}
