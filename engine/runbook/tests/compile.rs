//! What the compiler promises beyond its messages: bundles, long chains, linear work.

mod support;

use std::collections::BTreeMap;

use farrier_model::Text;
use farrier_runbook::graph::Need;
use farrier_runbook::{Source, codes, compile, compile_bundle, render_graph};
use support::{catalog, sources};

fn fixture(name: &str) -> Vec<Source> {
    let path = format!("{}/../../testdata/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    let file = path.rsplit('/').next().unwrap_or_default();
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    sources(file, &text)
}

#[test]
fn a_bundle_holds_every_runbook_that_can_start() {
    let compiled = compile(&fixture("valid/parent_and_child"), &catalog());
    let bundle = compiled.bundle("parent").unwrap();
    assert_eq!(bundle.graphs.keys().map(|name| &**name).collect::<Vec<_>>(), ["child", "parent"]);
    assert_eq!(compiled.bundle("child").unwrap().graphs.len(), 1);
    assert!(compiled.bundle("nobody").is_none());

    let again = compile_bundle("parent", &bundle.sources, &catalog()).unwrap();
    assert_eq!(again.digest, bundle.digest, "the pinned texts give the same bundle");
    let only_parent: BTreeMap<Text, Text> = bundle
        .sources
        .iter()
        .filter(|(name, _)| &***name == "parent")
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect();
    let problems = compile_bundle("parent", &only_parent, &catalog()).unwrap_err();
    assert_eq!(problems.sorted()[0].code, codes::UNKNOWN_RUNBOOK);
    assert!(compile_bundle("nobody", &bundle.sources, &catalog()).unwrap_err().has_errors());
}

/// What a rate counts is not started, so a run goes on without that text, and whatever has become of it.
#[test]
fn a_bundle_compiles_without_the_runbooks_that_its_rates_count() {
    let counting = |name: &str, counted: &str| {
        Source {
        path: format!("{name}.yaml"),
        text: format!(
            "runbook: {name}\nsummary: Counts another\nowner: me\nrisk: read_only\nguards:\n  - {{ rate: {counted}, \
             at_most: 3, within: 24h, otherwise: ask }}\nsteps:\n  one: {{ uses: flow.note, with: {{ message: one }} }}\n"
        )
        .into(),
    }
    };
    let compiled = compile(&[counting("a", "b"), counting("b", "a"), counting("c", "nobody")], &catalog());
    let codes: Vec<&str> =
        compiled.diagnostics.sorted().iter().map(|diagnostic| diagnostic.code.as_str()).collect();
    assert_eq!(codes, [codes::UNKNOWN_STEP.as_str()], "a name that nothing has is still a mistake");
    let bundle = compiled.bundle("a").unwrap();
    assert_eq!(bundle.sources.len(), 1);
    assert_eq!(compile_bundle("a", &bundle.sources, &catalog()).unwrap().digest, bundle.digest);
}

#[test]
fn a_runbook_above_a_wrong_one_has_no_bundle() {
    let compiled = compile(&fixture("invalid/child_has_errors"), &catalog());
    for name in ["a", "b", "c"] {
        assert!(compiled.bundle(name).is_none(), "{name}");
    }
    let codes: Vec<&str> =
        compiled.diagnostics.sorted().iter().map(|diagnostic| diagnostic.code.as_str()).collect();
    assert_eq!(codes, ["E0309", "E0309", "E0306"]);
}

#[test]
fn a_step_that_says_that_it_changes_nothing_is_not_destructive() {
    let mut catalog = catalog();
    let mut spec = catalog.actions["files.delete_tree"].clone();
    (spec.name, spec.deletes, spec.read_only_if) = ("host.run", false, Some("read_only"));
    spec.input =
        serde_json::json!({ "type": "object", "properties": { "read_only": { "type": "boolean" } } });
    catalog.actions.insert(spec.name, spec);
    for (with, expected) in [
        ("{ read_only: true }", &[][..]),
        ("{ read_only: false }", &[codes::UNDO_MISSING, codes::RISK_ABOVE_CEILING]),
        ("{}", &[codes::UNDO_MISSING, codes::RISK_ABOVE_CEILING]),
        // What becomes true only in a run is not said.
        ("{ read_only: \"${ inputs.careful }\" }", &[codes::UNDO_MISSING, codes::RISK_ABOVE_CEILING]),
    ] {
        let text = format!(
            "runbook: look\nsummary: Look\nowner: me\nrisk: recoverable\n\
             inputs: {{ careful: {{ type: bool, default: true }} }}\n\
             steps:\n  look:\n    uses: host.run\n    with: {with}\n"
        );
        let found = compile(&sources("look.yaml", &text), &catalog).diagnostics;
        let codes: Vec<_> = found
            .sorted()
            .iter()
            .filter(|d| d.severity == farrier_runbook::Severity::Error)
            .map(|d| d.code)
            .collect();
        assert_eq!(codes, expected, "{with}");
    }
}

#[test]
fn drafts_lack_only_actions_and_kinds_of_target() {
    let mut catalog = catalog();
    // The drafts mean the real action of this name, which takes another input.
    catalog.actions.remove("files.delete_tree");
    let compiled = compile(&fixture("graphs/drafts"), &catalog);
    let others: Vec<_> = compiled
        .diagnostics
        .sorted()
        .into_iter()
        .filter(|diagnostic| {
            !matches!(
                diagnostic.code,
                codes::UNKNOWN_ACTION
                    | codes::UNKNOWN_TARGET_KIND
                    | codes::CHILD_HAS_ERRORS
                    | codes::UNKNOWN_RUNBOOK
            )
        })
        .map(|diagnostic| (diagnostic.code, diagnostic.message.clone()))
        .collect();
    assert!(others.is_empty(), "{others:?}\n{}", compiled.diagnostics.render(false));
}

/// Steps of which each needs the one before, or all need one, or one needs all.
fn many(steps: usize, needs: impl Fn(usize) -> Option<String>) -> String {
    let lines = (0..steps).map(|at| {
        let needs = needs(at).map(|needs| format!(", needs: [{needs}]")).unwrap_or_default();
        format!("  s{at}: {{ uses: flow.note, with: {{ message: x }}{needs} }}\n")
    });
    let head = "runbook: many\nsummary: s\nowner: o\nrisk: read_only\nsteps:\n".to_owned();
    std::iter::once(head).chain(lines).collect()
}

#[test]
fn long_chains_and_wide_fans_compile() {
    let steps = 12_000;
    for (shape, text) in [
        ("chain", many(steps, |at| (at + 1 < steps).then(|| format!("s{}", at + 1)))),
        ("fan out", many(steps, |at| (at > 0).then(|| "s0".to_owned()))),
        (
            "fan in",
            many(steps, |at| {
                (at + 1 == steps).then(|| (0..at).map(|at| format!("s{at}")).collect::<Vec<_>>().join(", "))
            }),
        ),
    ] {
        let compiled = compile(&[Source { path: "many.yaml".into(), text: text.into() }], &catalog());
        assert!(compiled.diagnostics.is_empty(), "{shape}: {}", compiled.diagnostics.render(false));
        let graph = &compiled.graphs["many"];
        assert_eq!(graph.order().len(), steps, "{shape}");
        let mut done = vec![false; steps];
        for index in graph.order() {
            assert!(graph.needs(*index).all(|(on, _)| done[on.index()]), "{shape}");
            done[index.index()] = true;
        }
    }
    let ring = many(steps, |at| Some(format!("s{}", (at + 1) % steps)));
    let compiled = compile(&[Source { path: "many.yaml".into(), text: ring.into() }], &catalog());
    let sorted = compiled.diagnostics.sorted();
    assert_eq!((sorted.len(), sorted[0].code), (1, codes::CYCLE));
    assert!(sorted[0].message.len() < 300, "a long way is told in short: {}", sorted[0].message);
}

#[test]
fn reading_a_step_needs_it_and_finally_only_waits() {
    let compiled = compile(&fixture("valid/every_key"), &catalog());
    let graph = &compiled.graphs["every_key"];
    let needs = |id: &str| {
        let mut needs: Vec<(String, Need)> = graph
            .needs(graph.find(id).unwrap())
            .map(|(on, need)| (graph.step(on).id.to_string(), need))
            .collect();
        needs.sort_by(|a, b| a.0.cmp(&b.0));
        needs
    };
    assert_eq!(needs("table"), [("evidence".into(), Need::Finished), ("rows".into(), Need::Succeeded)]);
    assert_eq!(needs("tell"), [("each_replica".into(), Need::Finished), ("table".into(), Need::Finished)]);
}

#[test]
fn what_the_compiler_advises_for_absent_outputs_works_in_a_run() {
    use farrier_model::{Expr, Scope, Value};
    // A step that did not run has null for its output.
    let scope = Scope::new(vec![("steps".into(), Value::map([("a", Value::Null)]))]);
    for (source, expected) in [
        ("steps.a.rows | default([]) | length", Value::Int(0)),
        ("steps.a.rows is defined", Value::Bool(false)),
        ("steps.a.rows if steps.a.rows is defined else 'none'", Value::text("none")),
    ] {
        assert_eq!(Expr::parse(source).unwrap().eval(&scope).unwrap(), expected, "{source}");
    }
}

#[test]
fn graphs_are_drawn() {
    let compiled = compile(&fixture("valid/order_is_of_the_file"), &catalog());
    let graph = &compiled.graphs["order_is_of_the_file"];
    insta::assert_snapshot!("drawn_dot", render_graph::to_dot(graph));
    insta::assert_snapshot!("drawn_mermaid", render_graph::to_mermaid(graph));
    insta::assert_snapshot!("drawn_svg", render_graph::to_svg(graph));
}
