//! Editors and the checker agree: what the checker refuses for its shape, the published schema refuses, and what the
//! checker accepts, the schema accepts.

mod support;

use std::path::Path;

use farrier_runbook::{Diagnostics, codes, parse, schema};
use serde_json::Value as Json;
use support::{FileKind, catalog, diagnose, examples};

struct Schemas {
    runbook: jsonschema::Validator,
    environment: jsonschema::Validator,
    project: jsonschema::Validator,
    tests: jsonschema::Validator,
    alerts: jsonschema::Validator,
}

fn schemas() -> Schemas {
    let catalog = catalog();
    let compile = |schema: Json| {
        if let Err(error) = jsonschema::draft202012::meta::validate(&schema) {
            panic!("{error} at {}", error.instance_path());
        }
        jsonschema::validator_for(&schema).unwrap_or_else(|error| panic!("{error}"))
    };
    Schemas {
        runbook: compile(schema::runbook_schema(&catalog)),
        environment: compile(schema::environment_schema(&catalog)),
        project: compile(schema::project_schema()),
        tests: compile(schema::tests_schema(&catalog)),
        alerts: compile(schema::alerts_schema()),
    }
}

impl Schemas {
    fn of(&self, kind: FileKind) -> &jsonschema::Validator {
        match kind {
            FileKind::Runbook => &self.runbook,
            FileKind::Environment => &self.environment,
            FileKind::Project => &self.project,
            FileKind::Tests => &self.tests,
            FileKind::Alerts => &self.alerts,
        }
    }
}

/// The file as an editor sees it.
fn json_of(bytes: &[u8]) -> Option<Json> {
    let mut out = Diagnostics::new();
    let file = out.add_file("file.yaml", bytes);
    let node = parse(file, bytes, &mut out)?;
    serde_json::to_value(node.to_value()).ok()
}

#[test]
fn what_is_refused_for_its_shape_is_refused_by_the_schema() {
    let (catalog, schemas) = (catalog(), schemas());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/invalid");
    let mut looked_at = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let kind = FileKind::of(name);
        let schema = schemas.of(kind);
        let bytes = std::fs::read(&path).unwrap();
        let Some(json) = json_of(&bytes) else { continue };
        let out = diagnose(kind, name, &bytes, &catalog);
        if out.sorted().iter().any(|diagnostic| diagnostic.code.as_str().starts_with("E02")) {
            looked_at += 1;
            assert!(!schema.is_valid(&json), "{name} is refused by the checker and not by the schema");
        }
    }
    assert!(looked_at > 10);
}

#[test]
fn what_is_accepted_is_accepted_by_the_schema() {
    let schemas = schemas();
    let mut looked_at = 0;
    for (code, page) in codes::ALL {
        for example in examples(page).into_iter().filter(|example| !example.wrong) {
            let schema = schemas.of(example.kind);
            let json = json_of(example.text.as_bytes()).unwrap();
            looked_at += 1;
            if let Err(error) = schema.validate(&json) {
                panic!("{code}: {}\n{error} at {}", example.text, error.instance_path());
            }
        }
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../testdata/valid");
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "yaml") {
            let name = path.file_name().unwrap().to_str().unwrap();
            let json = json_of(&std::fs::read(&path).unwrap()).unwrap();
            if let Err(error) = schemas.of(FileKind::of(name)).validate(&json) {
                panic!("{name}: {error} at {}", error.instance_path());
            }
        }
    }
    assert!(looked_at > 10);
}

/// The steps of `text`, which is what stands under `steps:`, in a runbook that is otherwise right.
fn runbook_with(steps: &str) -> Json {
    let text = format!(
        "runbook: r\nsummary: s\nowner: o\nrisk: recoverable\ntargets: {{ d: ldap, t: sql }}\nsteps:\n{steps}"
    );
    json_of(text.as_bytes()).unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn the_input_of_a_step_is_refined_by_its_action() {
    let schemas = schemas();
    for (accepted, steps) in [
        (true, "  a: { uses: flow.note, with: { message: hello } }"),
        (true, "  a: { uses: flow.note, with: { message: 'hello ${ inputs.x }' } }"),
        (false, "  a: { uses: flow.note, with: { mesage: hello } }"),
        (false, "  a: { uses: flow.note, with: {} }"),
        (false, "  a: { uses: flow.note }"),
        (false, "  a: { uses: flow.not, with: { message: hello } }"),
        (true, "  a: { uses: runbook.other, with: { anything: [1] } }"),
        (
            true,
            "  a: { uses: data.rows, with: { from: '${ inputs.x }', as: x, row: { a: '${ x }', b: [1] } } }",
        ),
        (false, "  a: { uses: data.rows, with: { from: text, as: x, row: {} } }"),
        (
            true,
            "  a: { uses: ldap.search, with: { target: d, base: b, filter: f, attributes: { a: string }, limit: 5 } }",
        ),
        (
            true,
            "  a: { uses: ldap.search, with: { target: d, base: b, filter: f, attributes: {}, limit: '${ inputs.n }' } }",
        ),
        (
            false,
            "  a: { uses: ldap.search, with: { target: d, base: b, filter: f, attributes: {}, limit: five } }",
        ),
        (
            false,
            "  a: { uses: ldap.search, with: { target: d, base: b, filter: f, attributes: {}, scope: deep } }",
        ),
        (
            true,
            "  a: { uses: ldap.search, with: { target: d, base: b, filter: f, attributes: {}, scope: subtree } }",
        ),
        (
            true,
            "  a: { uses: sql.sync, with: { target: t, table: x, key: [a], rows: '${ inputs.rows }' }, undo: restore }",
        ),
        (false, "  a: { uses: sql.sync, with: { target: t, table: x, key: a, rows: [] }, undo: restor }"),
    ] {
        let json = runbook_with(steps);
        let verdict = schemas.runbook.validate(&json);
        assert_eq!(verdict.is_ok(), accepted, "{steps}\n{verdict:?}");
    }
}
