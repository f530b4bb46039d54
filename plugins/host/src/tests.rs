//! What the tests of several actions share: a target in a folder of its own, and what was done to scripted hosts.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use farrier_action::harness::{self, Case, Shown};
use farrier_action::{ActionRegistry, Binding, NodeInfo, Now, Planned, Probe, ReadCx, Targets, WriteCx};
use farrier_model::time::Timestamp;
use farrier_model::{Change, Failure, NodeName, RunId, Scope, Value, ids};

/// One target `nodes`.
pub(crate) struct World {
    folder: Arc<tempfile::TempDir>,
    config: Value,
    now: Now,
    targets: Arc<Targets>,
    registry: ActionRegistry,
}

impl World {
    /// This machine.
    pub(crate) fn local() -> World {
        World::new(r#"{"local": true, "scripts": "scripts"}"#, |_| ())
    }

    /// Scripted hosts, in the time of the runtime's clock.
    pub(crate) fn scripted(script: &str) -> World {
        World::new(r#"{"scripted": "hosts.yaml"}"#, |folder| {
            std::fs::write(folder.join("hosts.yaml"), script).unwrap();
        })
    }

    /// Any target; `prepare` fills its folder.
    pub(crate) fn new(config: &str, prepare: impl FnOnce(&Path)) -> World {
        let folder = tempfile::tempdir().unwrap();
        prepare(folder.path());
        let (began, start) = (tokio::time::Instant::now(), Timestamp::from_second(1_790_000_000).unwrap());
        let now = Now::from_fn(move || start + began.elapsed());
        World::of(Arc::new(folder), Value::from_json(config).unwrap(), now)
    }

    fn of(folder: Arc<tempfile::TempDir>, config: Value, now: Now) -> World {
        let mut registry = ActionRegistry::default();
        crate::register(&mut registry).unwrap();
        let binding = Binding { alias: "nodes".into(), kind: "host".into(), config: config.clone() };
        let targets = Targets::new(folder.path().into(), vec![binding], BTreeMap::new()).at(now.clone());
        World { folder, config, now, targets: Arc::new(targets), registry }
    }

    /// The same world as another process sees it.
    pub(crate) fn again(&self) -> World {
        World::of(self.folder.clone(), self.config.clone(), self.now.clone())
    }

    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.now.get()
    }

    fn cx(&self) -> ReadCx {
        let (run, node) = (RunId::at(0, [7; 10]), NodeName::step("case"));
        let effect_id = ids::effect_id(run, &node, "do");
        ReadCx::new(self.targets.clone(), Scope::default(), NodeInfo { run, node, attempt: 1, effect_id })
    }

    pub(crate) async fn plan(
        &self,
        action: &str,
        input: &serde_json::Value,
    ) -> Result<Planned<Value>, Failure> {
        self.registry.bind(action, &Value::of(input).unwrap())?.plan(&self.cx()).await
    }

    pub(crate) async fn apply(
        &self,
        action: &str,
        input: &serde_json::Value,
        changes: &[Change],
    ) -> Result<Value, Failure> {
        let action = self.registry.bind(action, &Value::of(input).unwrap())?;
        action.apply(&WriteCx::after_intent(self.cx()), changes).await
    }

    /// Applies, and drops that as soon as the condition holds, as a crash would.
    pub(crate) async fn apply_until(
        &self,
        action: &str,
        input: &serde_json::Value,
        changes: &[Change],
        condition: impl Fn() -> bool,
    ) {
        let wait = async {
            while !condition() {
                tokio::time::sleep(std::time::Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            outcome = self.apply(action, input, changes) => panic!("it ended by itself: {outcome:?}"),
            () = wait => {}
        }
    }

    pub(crate) async fn undo(
        &self,
        action: &str,
        input: &serde_json::Value,
        changes: &[Change],
    ) -> Result<(), Failure> {
        let action = self.registry.bind(action, &Value::of(input).unwrap())?;
        action.undo(&WriteCx::after_intent(self.cx()), changes).await
    }

    pub(crate) async fn probe(
        &self,
        action: &str,
        input: &serde_json::Value,
        changes: &[Change],
    ) -> Result<Probe, Failure> {
        self.registry.bind(action, &Value::of(input).unwrap())?.probe(&self.cx(), changes).await
    }

    /// Plans, and applies what was planned.
    pub(crate) async fn run(&self, action: &str, input: &serde_json::Value) -> Result<Value, Failure> {
        let plan = self.plan(action, input).await?;
        if plan.changes.is_empty() {
            return Ok(plan.output.unwrap());
        }
        self.apply(action, input, &plan.changes).await
    }

    /// The laws of actions, with what has become of the scripted hosts as the world.
    pub(crate) async fn prove(
        &self,
        action: &str,
        input: &serde_json::Value,
        bad_inputs: &[serde_json::Value],
    ) -> Result<Shown, Failure> {
        self.prove_with(action, input, bad_inputs, None).await
    }

    /// As [`World::prove`], with something that comes in between.
    pub(crate) async fn prove_with<'a>(
        &'a self,
        action: &'a str,
        input: &serde_json::Value,
        bad_inputs: &[serde_json::Value],
        disturb: Option<harness::Disturb<'a>>,
    ) -> Result<Shown, Failure> {
        let case = Case {
            registry: &self.registry,
            action,
            input: Value::of(input).unwrap(),
            targets: self.targets.clone(),
            scope: Scope::default(),
            observe: Box::new(|| Box::pin(async { self.observe(action) })),
            disturb,
            bad_inputs: bad_inputs.iter().map(|bad| Value::of(bad).unwrap()).collect(),
        };
        case.prove().await
    }

    /// Each part of each host's state, by the name that the action gives it.
    fn observe(&self, action: &str) -> harness::World {
        let mut world = harness::World::new();
        let state = self.state();
        for (host, state) in state["hosts"].as_object().into_iter().flatten() {
            let mut rest = state.clone();
            for (unit, service) in state["services"].as_object().unwrap() {
                world.insert(format!("{host}: service {unit}"), Value::of(service).unwrap());
            }
            for (path, file) in state["files"].as_object().unwrap() {
                world.insert(format!("{host}:{path}"), Value::of(file).unwrap());
            }
            rest.as_object_mut().unwrap().retain(|key, _| key != "services" && key != "files");
            // A host that nothing was asked of is not in the file; then it is as its script says.
            if action == "host.reboot" || action == "host.run" {
                world.insert(host.clone(), Value::of(&rest).unwrap());
            }
        }
        world
    }

    /// What is in `state.json`.
    pub(crate) fn state(&self) -> serde_json::Value {
        let text = std::fs::read_to_string(self.folder().join("hosts.state/state.json"));
        text.map_or(serde_json::Value::Null, |text| serde_json::from_str(&text).unwrap())
    }

    /// What was done, in short: the host, what, and on what.
    pub(crate) fn did(&self) -> Vec<String> {
        let text =
            std::fs::read_to_string(self.folder().join("hosts.state/commands.jsonl")).unwrap_or_default();
        text.lines()
            .map(|line| {
                let line: serde_json::Value = serde_json::from_str(line).unwrap();
                let words = |name: &str| match &line[name] {
                    serde_json::Value::String(text) => format!(" {text}"),
                    serde_json::Value::Array(words) => {
                        words.iter().map(|word| format!(" {}", word.as_str().unwrap())).collect()
                    }
                    _ => String::new(),
                };
                let host = line["host"].as_str().unwrap();
                let parts = ["did", "argv", "verb", "unit", "path"].map(words).concat();
                format!("{host}{}", parts.replacen(" run ", " ", 1))
            })
            .collect()
    }
}
