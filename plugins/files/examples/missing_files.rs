//! Measures `files.read_many` on many folders without the wanted files, which is what most homes of tools are:
//! `cargo run --release -p farrier-plugin-files --example missing_files`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use farrier_action::{ActionRegistry, Binding, NodeInfo, ReadCx, Targets};
use farrier_model::{Map, NodeName, RunId, Scope, Value};

const FOLDERS: usize = 35_000;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    for number in 0..FOLDERS {
        std::fs::create_dir_all(dir.path().join(format!("homes/tool{number}")))?;
    }
    let input = Value::from_json(
        r#"{"target": "homes", "root": "tool_homes", "as": "account", "key": "account", "folder": ["${ account }"],
            "read": {"description": ".description", "toolinfo": ["toolinfo.json", "public_html/toolinfo.json"]}}"#,
    )?;
    let items = Value::list((0..FOLDERS).map(|number| Value::text(format!("tool{number}"))).collect());
    let input = input.as_map().into_iter().flat_map(Map::iter);
    let input =
        Value::map(input.map(|(key, value)| (key.clone(), value.clone())).chain([("items".into(), items)]));

    let config = Value::from_json(r#"{"roots": {"tool_homes": "homes"}}"#)?;
    let binding = Binding { alias: "homes".into(), kind: "files".into(), config };
    let targets = Arc::new(Targets::new(dir.path().to_owned(), vec![binding], BTreeMap::new()));
    let node = NodeInfo {
        run: RunId::at(0, [0; 10]),
        node: NodeName::step("homes"),
        attempt: 1,
        effect_id: String::new(),
    };
    let mut registry = ActionRegistry::default();
    farrier_plugin_files::register(&mut registry)?;

    let started = Instant::now();
    let planned =
        registry.bind("files.read_many", &input)?.plan(&ReadCx::new(targets, Scope::default(), node)).await?;
    let took = started.elapsed();

    let found = planned.output.as_ref().and_then(|output| output.get("folders")).and_then(Value::as_int);
    if found != Some(FOLDERS as i64) {
        return Err(format!("{found:?} folders were found instead of {FOLDERS}").into());
    }
    println!("{FOLDERS} folders, {} opens of missing files: {took:?}", FOLDERS * 3);
    Ok(())
}
