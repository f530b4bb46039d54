//! [`Jobs`]: which schedules a project has, and what their runs start from.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use farrier_action::ActionRegistry;
use farrier_exec::driver::{Start, World};
use farrier_model::event::Trigger as Why;
use farrier_model::expr::Scope;
use farrier_model::spec::Risk;
use farrier_model::{Map, Text, Value};
use farrier_project::Set;
use farrier_runbook::graph::Trigger;
use farrier_runbook::inputs::{Given, check_inputs};
use farrier_runbook::{Bundle, Graph};
use farrier_schedule::ScheduleId;
use farrier_store::{NewSchedule, ScheduleRow};
use tokio::sync::watch;

/// The schedules of a project at one moment.
pub trait Jobs: Send + Sync {
    /// All of them.
    fn schedules(&self) -> Vec<NewSchedule>;

    /// What a run of a schedule starts from; none when the schedule is not among them.
    fn job(&self, schedule: &ScheduleRow) -> Option<Job>;

    /// The tasks that have to succeed again and again.
    fn watched(&self) -> Vec<Watch>;

    /// The environments in which things start by themselves and somebody can be told.
    fn told(&self) -> Vec<Text>;
}

/// What a scheduled run starts from.
#[derive(Debug, Clone)]
pub struct Job {
    /// The start, with any trigger; or, in one sentence, why there is none.
    pub start: Result<Start, String>,
    /// The runbook may destroy something.
    pub destructive: bool,
    /// The environment is frozen, and the runbook may write.
    pub frozen: bool,
}

/// A task that has to succeed again and again: `health.success_every` of a runbook with a schedule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Watch {
    /// The environment.
    pub environment: Text,
    /// The runbook.
    pub runbook: Text,
    /// Its first schedule: a person who pauses it knows that it does not run.
    pub schedule: ScheduleId,
    /// How often.
    pub success_every: Duration,
    /// Who hears of it otherwise.
    pub owner: Text,
}

/// The schedules of a set: each clock trigger of each runbook, in each served environment that has the runbook's targets.
struct OfSet {
    set: Arc<Set>,
    /// By environment: where, and whether it is frozen.
    worlds: BTreeMap<Text, (World, bool)>,
    /// Environments that know where people are.
    told: Vec<Text>,
    /// Environment, runbook.
    pairs: Vec<(Text, Text)>,
}

/// The schedules of a set. What a served environment has no targets for is left out.
pub fn of_set(set: Arc<Set>, registry: &ActionRegistry) -> Arc<dyn Jobs> {
    let (mut worlds, mut pairs, mut told) = (BTreeMap::new(), Vec::new(), Vec::new());
    for site in set.served() {
        let environment = Text::from(site.environment.name.as_str());
        worlds.insert(environment.clone(), (site.world(), site.environment.freeze));
        if !site.environment.notify.is_empty() {
            told.push(environment.clone());
        }
        for (runbook, bundle) in &set.bundles {
            if clock_triggers(bundle.graph()).next().is_none() {
                continue;
            }
            match site.check(bundle, registry) {
                Ok(()) => pairs.push((environment.clone(), runbook.clone())),
                Err(error) => tracing::debug!(%runbook, %environment, %error, "not scheduled there"),
            }
        }
    }
    Arc::new(OfSet { set, worlds, told, pairs })
}

/// The schedules of whatever set is current.
pub fn of_sets(
    mut sets: watch::Receiver<Arc<Set>>,
    registry: Arc<ActionRegistry>,
) -> watch::Receiver<Arc<dyn Jobs>> {
    let (now, jobs) = watch::channel(of_set(sets.borrow_and_update().clone(), &registry));
    tokio::spawn(async move {
        while sets.changed().await.is_ok() {
            let set = sets.borrow_and_update().clone();
            if now.send(of_set(set, &registry)).is_err() {
                return;
            }
        }
        // Whoever listens is told of nothing any more, and that is no change.
        now.closed().await;
    });
    jobs
}

fn clock_triggers(graph: &Graph) -> impl Iterator<Item = &Trigger> {
    graph.triggers.iter().filter(|trigger| matches!(trigger, Trigger::Clock { .. }))
}

impl OfSet {
    fn bundle(&self, runbook: &str) -> Option<&Arc<Bundle>> {
        self.set.bundle(runbook)
    }
}

impl Jobs for OfSet {
    fn schedules(&self) -> Vec<NewSchedule> {
        let mut schedules = Vec::new();
        for (environment, runbook) in &self.pairs {
            let Some(bundle) = self.bundle(runbook) else { continue };
            for (trigger, nth) in clock_triggers(bundle.graph()).zip(1..) {
                let Trigger::Clock { spec, .. } = trigger else { continue };
                schedules.push(NewSchedule {
                    id: ScheduleId::new(environment, runbook, nth),
                    environment: environment.clone(),
                    runbook: runbook.clone(),
                    spec: spec.clone(),
                });
            }
        }
        schedules
    }

    fn job(&self, schedule: &ScheduleRow) -> Option<Job> {
        let bundle = self.bundle(&schedule.runbook)?;
        let (world, freeze) = self.worlds.get(&schedule.environment)?;
        let of_it =
            |nth: &usize| ScheduleId::new(&schedule.environment, &schedule.runbook, *nth) == schedule.id;
        let count = clock_triggers(bundle.graph()).count();
        let nth = (1..=count).find(of_it)?;
        let Some(Trigger::Clock { inputs, .. }) = clock_triggers(bundle.graph()).nth(nth - 1) else {
            return None;
        };
        let start = inputs.eval(&Scope::new(Vec::new())).map_err(|error| error.message).and_then(|given| {
            let given = given.as_map().into_iter().flat_map(Map::iter);
            let given =
                given.map(|(name, value): (_, &Value)| (name.clone(), Given::Value(value.clone()))).collect();
            let inputs = check_inputs(bundle.graph(), &given).map_err(|problems| {
                problems.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            })?;
            let trigger = Why::Schedule { schedule: schedule.id.0.clone(), nominal: schedule.cursor };
            Ok(Start { bundle: bundle.clone(), world: world.clone(), inputs, trigger, plan: None })
        });
        let risk = bundle.graph().risk;
        Some(Job { start, destructive: risk == Risk::Destructive, frozen: *freeze && risk != Risk::ReadOnly })
    }

    fn watched(&self) -> Vec<Watch> {
        let watch = |(environment, runbook): &(Text, Text)| {
            let graph = self.bundle(runbook)?.graph();
            let health = graph.health?;
            Some(Watch {
                environment: environment.clone(),
                runbook: runbook.clone(),
                schedule: ScheduleId::new(environment, runbook, 1),
                success_every: health.success_every,
                owner: graph.owner.clone(),
            })
        };
        self.pairs.iter().filter_map(watch).collect()
    }

    fn told(&self) -> Vec<Text> {
        let has_schedule = |environment: &&Text| self.pairs.iter().any(|(other, _)| other == *environment);
        self.told.iter().filter(has_schedule).cloned().collect()
    }
}
