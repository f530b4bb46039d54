//! Editors and the checker agree: what the checker refuses for its shape, the published schema refuses, and what the
//! checker accepts, the schema accepts.

mod support;

use std::path::Path;

use farrier_runbook::{Diagnostics, codes, parse, schema};
use serde_json::Value as Json;
use support::{FileKind, catalog, diagnose};

struct Schemas {
    environment: jsonschema::Validator,
    project: jsonschema::Validator,
    tests: jsonschema::Validator,
}

fn schemas() -> Schemas {
    let catalog = catalog();
    let compile = |schema: Json| {
        jsonschema::draft202012::meta::validate(&schema).expect("a JSON Schema");
        jsonschema::validator_for(&schema).expect("a JSON Schema")
    };
    Schemas {
        environment: compile(schema::environment_schema(&catalog)),
        project: compile(schema::project_schema()),
        tests: compile(schema::tests_schema(&catalog)),
    }
}

impl Schemas {
    fn of(&self, kind: FileKind) -> Option<&jsonschema::Validator> {
        match kind {
            FileKind::Runbook => None,
            FileKind::Environment => Some(&self.environment),
            FileKind::Project => Some(&self.project),
            FileKind::Tests => Some(&self.tests),
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
        let Some(schema) = schemas.of(kind) else { continue };
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
        for block in page.split("\n```yaml right ").skip(1) {
            let (kind, rest) = block.split_once('\n').unwrap();
            let Some(schema) = schemas.of(FileKind::of(kind)) else { continue };
            let (text, _) = rest.split_once("\n```").unwrap();
            let json = json_of(text.as_bytes()).unwrap();
            looked_at += 1;
            if let Err(error) = schema.validate(&json) {
                panic!("{code}: {text}\n{error} at {}", error.instance_path());
            }
        }
    }
    assert!(looked_at > 10);
}
