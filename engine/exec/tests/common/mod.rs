//! A plugin of fakes over an in-memory world, with a ledger of every effect, and a way to die in the middle of one.
#![allow(unreachable_pub, reason = "a module of test binaries")]
#![allow(dead_code, reason = "each test binary uses a part")]

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, LazyLock, Mutex};

use farrier_action::model::spec::Risk;
use farrier_action::{
    Action, ActionRegistry, Binding, ConnectCx, Planned, Probe, ReadCx, Target, TargetKind, Targets, WriteCx,
};
use farrier_exec::driver::{Confirm, ProceedAlways, Start, World as Place};
use farrier_exec::{Driver, DriverError, Ended, Halt, Options};
use farrier_model::event::Trigger;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, RunId, Text, Value};
use farrier_runbook::Bundle;
use farrier_runbook::inputs::{Given, check_inputs};
use farrier_store::{Clock, MemoryStore, Store};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The world that fakes act on.
#[derive(Debug, Default)]
pub struct World {
    pub state: Mutex<State>,
    death: tokio::sync::Notify,
}

#[derive(Debug, Default, Clone)]
pub struct State {
    pub objects: BTreeMap<String, Value>,
    /// Every effect that happened, in order: `action object`.
    pub ledger: Vec<String>,
    /// Effect ids that keyed targets remember.
    pub keys: Vec<String>,
    /// How many attempts at an object fail before one passes; `undo OBJECT` stands for attempts at undoing it.
    pub failing: HashMap<String, u32>,
    /// How long those that fail ask to be left alone.
    pub retry_after_s: Option<u32>,
    /// Die at the n-th effect from now: before it (`false`) or after it (`true`).
    pub die_at_effect: Option<(u32, bool)>,
    /// The process died inside an effect; nothing answers any more.
    pub dead: bool,
    pub reads: u64,
}

static WORLDS: LazyLock<Mutex<HashMap<String, Arc<World>>>> = LazyLock::new(Mutex::default);

impl World {
    pub fn named(name: &str) -> Arc<World> {
        WORLDS.lock().unwrap().entry(name.to_owned()).or_default().clone()
    }

    pub fn forget(name: &str) {
        WORLDS.lock().unwrap().remove(name);
    }

    pub fn state(&self) -> State {
        self.state.lock().unwrap().clone()
    }

    /// Waits until the process has died inside an effect.
    pub async fn died(&self) {
        loop {
            let death = self.death.notified();
            if self.state.lock().unwrap().dead {
                return;
            }
            death.await;
        }
    }

    /// Performs `effect` once, unless the process is to die before it; never returns when it dies.
    async fn effect(&self, entry: String, effect: impl FnOnce(&mut State)) {
        let dead = {
            let mut state = self.state.lock().unwrap();
            let dies = match &mut state.die_at_effect {
                Some((nth, after)) => {
                    *nth -= 1;
                    (*nth == 0).then_some(*after)
                }
                None => None,
            };
            if dies != Some(false) && !state.dead {
                state.ledger.push(entry);
                effect(&mut state);
            }
            if dies.is_some() {
                state.die_at_effect = None;
                state.dead = true;
            }
            state.dead
        };
        if dead {
            self.death.notify_waiters();
            std::future::pending::<()>().await;
        }
        tokio::task::yield_now().await;
    }
}

pub struct Fake;

#[derive(Debug, Deserialize, JsonSchema)]
pub struct FakeConfig {
    world: String,
}

impl TargetKind for Fake {
    const KIND: &'static str = "fake";
    type Config = FakeConfig;
    type Reader = Arc<World>;
    type Writer = Arc<World>;
    fn identity(config: &FakeConfig) -> String {
        config.world.clone()
    }
    async fn reader(config: FakeConfig, _: &ConnectCx) -> Result<Arc<World>, Failure> {
        Ok(World::named(&config.world))
    }
    async fn writer(config: FakeConfig, _: &ConnectCx) -> Result<Arc<World>, Failure> {
        Ok(World::named(&config.world))
    }
}

fn any_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({})
}

/// Reads one object; null when it does not exist.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Read {
    target: Target<Fake>,
    object: String,
}

#[derive(Debug, Serialize, JsonSchema)]
pub struct Output {
    #[schemars(schema_with = "any_schema")]
    pub value: Value,
}

impl Action for Read {
    const NAME: &'static str = "fake.read";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "";
    type Output = Output;
    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Output>, Failure> {
        let world = cx.reader(&self.target).await?;
        let mut state = world.state.lock().unwrap();
        state.reads += 1;
        if let Some(left) = state.failing.get_mut(&self.object)
            && *left > 0
        {
            *left -= 1;
            return Err(
                Failure::new(FailureKind::Unreachable, "the world does not answer").at(self.target.alias())
            );
        }
        Ok(Planned::known(Output { value: state.objects.get(&self.object).cloned().unwrap_or_default() }))
    }
}

macro_rules! writing_action {
    ($(#[$doc:meta])* $name:ident, $action:literal, $effect:expr, $risk:expr, $restores:literal) => {
        $(#[$doc])*
        #[derive(Debug, Deserialize, JsonSchema)]
        #[serde(deny_unknown_fields)]
        pub struct $name {
            target: Target<Fake>,
            object: String,
            #[serde(default)]
            #[schemars(schema_with = "any_schema")]
            value: Value,
            #[serde(default)]
            fail: bool,
        }

        impl Action for $name {
            const NAME: &'static str = $action;
            const EFFECT: Effect = $effect;
            const RISK: Risk = $risk;
            const RESTORES: bool = $restores;
            const EXAMPLE: &'static str = "";
            type Output = Output;

            async fn plan(&self, cx: &ReadCx) -> Result<Planned<Output>, Failure> {
                let world = cx.reader(&self.target).await?;
                let before = world.state.lock().unwrap().objects.get(&self.object).cloned().unwrap_or_default();
                let output = Output { value: self.value.clone() };
                // Nobody can see whether a `once` effect has happened.
                if before == self.value && $effect != Effect::Once {
                    return Ok(Planned::known(output).considered(1));
                }
                let kind = match (before.is_null(), self.value.is_null()) {
                    (true, _) => ChangeKind::Create,
                    (_, true) => ChangeKind::Delete,
                    _ => ChangeKind::Update,
                };
                let change = Change {
                    object: self.object.as_str().into(),
                    kind,
                    before,
                    after: self.value.clone(),
                    fingerprint: None,
                };
                Ok(Planned::changes(vec![change], output).considered(1))
            }

            async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Output, Failure> {
                let world = cx.writer(&self.target).await?;
                let entry = format!("{} {}", $action, self.object);
                {
                    let mut state = world.state.lock().unwrap();
                    if let Some(left) = state.failing.get_mut(&self.object)
                        && *left > 0
                    {
                        *left -= 1;
                        let failure = Failure::new(FailureKind::Conflict, "somebody else is at it");
                        return Err(Failure { retry_after_s: state.retry_after_s, ..failure });
                    }
                    if self.fail {
                        return Err(Failure::new(FailureKind::Refused, "it was refused"));
                    }
                    let key = cx.node().effect_id.clone();
                    if $effect == Effect::Keyed {
                        if state.keys.contains(&key) {
                            return Ok(Output { value: self.value.clone() });
                        }
                    } else if $effect == Effect::Repeatable {
                        let now = state.objects.get(&self.object).cloned().unwrap_or_default();
                        if now != changes[0].before {
                            return Err(Failure::new(FailureKind::Drift, format!("`{}` is {now} now", self.object)));
                        }
                    }
                }
                let (object, value, key) = (self.object.clone(), self.value.clone(), cx.node().effect_id.clone());
                world.effect(entry, move |state| {
                    state.keys.push(key);
                    state.objects.insert(object, value);
                }).await;
                Ok(Output { value: self.value.clone() })
            }

            async fn probe(&self, cx: &ReadCx, changes: &[Change]) -> Result<Probe, Failure> {
                let world = cx.reader(&self.target).await?;
                let now = world.state.lock().unwrap().objects.get(&self.object).cloned().unwrap_or_default();
                Ok(if now == changes[0].after { Probe::Applied } else { Probe::NotApplied })
            }

            async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
                let world = cx.writer(&self.target).await?;
                for change in changes {
                    if let Some(left) = world.state.lock().unwrap().failing.get_mut(&format!("undo {}", change.object))
                        && *left > 0
                    {
                        *left -= 1;
                        return Err(Failure::new(FailureKind::Refused, "it cannot be taken back"));
                    }
                    let now = world.state.lock().unwrap().objects.get(&*change.object).cloned().unwrap_or_default();
                    if now == change.before {
                        continue;
                    }
                    let (object, before) = (change.object.to_string(), change.before.clone());
                    world.effect(format!("undo {} {}", $action, change.object), move |state| {
                        if before.is_null() { state.objects.remove(&object); } else { state.objects.insert(object, before); }
                    }).await;
                }
                Ok(())
            }
        }
    };
}

writing_action!(
    /// Sets one object.
    Set, "fake.set", Effect::Repeatable, Risk::Recoverable, true);
writing_action!(
    /// Sets one object under a key.
    Keyed, "fake.keyed", Effect::Keyed, Risk::Recoverable, true);
writing_action!(
    /// Sets one object; can be asked whether it did.
    Probed, "fake.probed", Effect::Probed, Risk::Recoverable, true);
writing_action!(
    /// Sets one object, and nobody can tell later.
    Once, "fake.once", Effect::Once, Risk::Destructive, false);

/// Does nothing, with any input.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Noop {
    #[serde(default)]
    #[schemars(schema_with = "any_schema")]
    value: Value,
}

impl Action for Noop {
    const NAME: &'static str = "fake.noop";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const PURE: bool = true;
    const EXAMPLE: &'static str = "";
    type Output = Output;
    async fn plan(&self, _: &ReadCx) -> Result<Planned<Output>, Failure> {
        Ok(Planned::known(Output { value: self.value.clone() }))
    }
}

pub fn registry() -> Arc<ActionRegistry> {
    let mut registry = ActionRegistry::default();
    registry.target::<Fake>().unwrap();
    registry.action::<Read>().unwrap();
    registry.action::<Set>().unwrap();
    registry.action::<Keyed>().unwrap();
    registry.action::<Probed>().unwrap();
    registry.action::<Once>().unwrap();
    registry.action::<Noop>().unwrap();
    farrier_plugin_flow::register(&mut registry).unwrap();
    Arc::new(registry)
}

/// Compiles runbooks given as name and text; the first is the root.
pub fn bundle(registry: &ActionRegistry, runbooks: &[(&str, String)]) -> Arc<Bundle> {
    let sources =
        runbooks.iter().map(|(name, text)| (Text::from(*name), Text::from(text.as_str()))).collect();
    match farrier_runbook::compile_bundle(runbooks[0].0, &sources, registry.catalog()) {
        Ok(bundle) => Arc::new(bundle),
        Err(diagnostics) => panic!("{}", diagnostics.render(false)),
    }
}

/// A runbook around `steps`, with the target `world`.
pub fn runbook(name: &str, risk: &str, rest: &str) -> (String, String) {
    let text = format!(
        "runbook: {name}\nsummary: a test\nowner: testers\nrisk: {risk}\ntargets: {{ world: fake }}\n{rest}"
    );
    (name.to_owned(), text)
}

pub struct Bench {
    pub registry: Arc<ActionRegistry>,
    pub store: MemoryStore,
    pub world: Arc<World>,
    pub name: String,
    pub options: Options,
    pub clock: Clock,
}

/// A clock that moves with Tokio's time, so that a paused runtime simulates days.
fn simulated_clock() -> Clock {
    let begun = tokio::time::Instant::now();
    let base = farrier_model::time::Timestamp::now();
    Clock::from_fn(move || base + (tokio::time::Instant::now() - begun))
}

impl Bench {
    pub fn new(name: &str) -> Bench {
        World::forget(name);
        let clock = simulated_clock();
        Bench {
            registry: registry(),
            store: MemoryStore::new(clock.clone()).slow(20),
            clock,
            world: World::named(name),
            name: name.to_owned(),
            options: Options { owner: "test".into(), ..Options::default() },
        }
    }

    pub fn start(&self, runbooks: &[(String, String)], inputs: Value) -> Start {
        let texts: Vec<(&str, String)> =
            runbooks.iter().map(|(name, text)| (name.as_str(), text.clone())).collect();
        let bundle = bundle(&self.registry, &texts);
        let given = inputs.as_map().unwrap().iter();
        let given = given.map(|(name, value)| (name.clone(), Given::Value(value.clone()))).collect();
        let inputs = check_inputs(bundle.graph(), &given).unwrap();
        let binding = Binding {
            alias: "world".into(),
            kind: "fake".into(),
            config: Value::map([("world", Value::text(self.name.as_str()))]),
        };
        Start {
            bundle,
            world: Place::new(
                "test",
                Arc::new(Targets::new(PathBuf::from("/"), vec![binding], BTreeMap::new())),
            ),
            inputs,
            trigger: Trigger::Manual { by: "tester".into() },
            plan: None,
        }
    }

    pub fn driver(&self) -> Driver {
        let (_, cancel) = tokio::sync::watch::channel(Halt::No);
        Driver::new(
            self.registry.clone(),
            Arc::new(self.store.clone()),
            self.clock.clone(),
            self.options.clone(),
            Arc::new(farrier_exec::driver::Unobserved),
            cancel,
        )
    }

    pub async fn run(&self, start: &Start) -> Result<Ended, DriverError> {
        self.driver().start(start, &ProceedAlways, |_| {}).await
    }

    pub async fn run_with(&self, start: &Start, confirm: &dyn Confirm) -> Result<Ended, DriverError> {
        self.driver().start(start, confirm, |_| {}).await
    }

    /// The kinds of a run's events, nodes as `kind node`.
    pub async fn journal(&self, run: RunId) -> Vec<String> {
        let entries = self.store.journal(run).await.unwrap();
        entries
            .iter()
            .map(|entry| match &entry.event {
                farrier_model::Event::Node { node, event, .. } => format!("{} {node}", event.name()),
                event => event.name().to_owned(),
            })
            .collect()
    }
}
