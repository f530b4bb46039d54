//! Programs for the tests: Python scripts, pinned, in a folder of their own.

#![allow(dead_code, unreachable_pub, reason = "each test file uses some of it")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farrier_action::{ActionRegistry, Binding, NodeInfo, Planned, ReadCx, Targets, WriteCx};
use farrier_model::{Change, Failure, NodeName, RunId, Scope, Value};
use serde_json::{Value as Json, json};
use sha2::{Digest as _, Sha256};

/// A folder with a program in it, and what an environment says of it.
pub struct Place {
    pub folder: tempfile::TempDir,
    pub config: Json,
    pub registry: ActionRegistry,
}

/// What every script of these tests begins with.
const HEAD: &str = "\
#!/usr/bin/python3 -I
import json, os, sys, time
request = json.loads(sys.stdin.readline())
folder = request['settings']['folder']
def say(line):
    print(json.dumps(line), flush=True)
def note(name, text):
    with open(folder + '/' + name, 'a') as file:
        file.write(str(text) + '\\n')
def planned(output=None, **more):
    say({'planned': {'changes': [], 'output': output, **more}})
";

impl Place {
    /// A program that reads its request and then does as the script says.
    pub fn script(script: &str) -> Place {
        Place::program(&format!("{HEAD}{script}"))
    }

    pub fn program(text: &str) -> Place {
        farrier_plugin_external::use_runner(env!("CARGO_BIN_EXE_farrier-plugin-runner").into());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("program");
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        let config = json!({
            "program": path, "sha256": hex::encode(Sha256::digest(text)), "timeout": "60s",
            "settings": { "folder": folder.path() }, "writes": [folder.path()],
        });
        let mut registry = ActionRegistry::default();
        farrier_plugin_external::register(&mut registry).unwrap();
        Place { folder, config, registry }
    }

    pub fn with(mut self, field: &str, value: Json) -> Place {
        self.config[field] = value;
        self
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub fn targets(&self) -> Arc<Targets> {
        let config = Value::from_json(&self.config.to_string()).unwrap();
        let binding = Binding { alias: "flags".into(), kind: "external".into(), config };
        Arc::new(Targets::new(self.folder.path().into(), vec![binding], BTreeMap::new()))
    }

    pub fn cx(&self) -> ReadCx {
        let node = NodeInfo {
            run: RunId::at(0, [7; 10]),
            node: NodeName::step("flag"),
            attempt: 1,
            effect_id: "effect".into(),
        };
        ReadCx::new(self.targets(), Scope::default(), node)
    }

    pub fn input(input: Json) -> Value {
        Value::from_json(&json!({ "target": "flags", "input": input }).to_string()).unwrap()
    }

    pub async fn plan(&self) -> Result<Planned<Value>, Failure> {
        self.registry.bind("external.run", &Place::input(json!({})))?.plan(&self.cx()).await
    }

    pub async fn apply(&self) -> Result<Value, Failure> {
        let change = json!({ "object": "it", "kind": "run", "after": 1 }).to_string();
        let changes: Vec<Change> = vec![serde_json::from_str(&change).unwrap()];
        let cx = WriteCx::after_intent(self.cx());
        self.registry.bind("external.run", &Place::input(json!({})))?.apply(&cx, &changes).await
    }
}

/// Whether a process still does anything; one that nobody has waited for is over.
pub fn lives(pid: &str) -> bool {
    let stat = fs::read_to_string(format!("/proc/{}/stat", pid.trim())).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, state)| !state.starts_with(['Z', 'X']))
}

/// The program of the manual.
pub fn example() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../site/examples/flags.py");
    fs::read_to_string(path).unwrap()
}
