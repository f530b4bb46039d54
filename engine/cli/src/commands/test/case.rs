//! One execution of a case: lives of a simulated process, one after the other, until nothing is left to happen.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farrier_action::{ActionRegistry, NodeInfo, Planned, ReadCx, WriteCx, rest};
use farrier_exec::driver::{ProceedAlways, Start, Unobserved, World};
use farrier_exec::{Driver, DriverError, Halt, Options, Plan, Run};
use farrier_model::event::{ParkCause, Trigger};
use farrier_model::time::Timestamp;
use farrier_model::{
    Ask, Digest, Effect, Event, Failure, NodeEvent, NodeName, NodeState, RunId, RunState, Scope, Text, Value,
};
use farrier_runbook::Bundle;
use farrier_runbook::graph::{Graph, Uses};
use farrier_runbook::inputs::{Given, check_inputs};
use farrier_runbook::testfile::{Call, EventAt, Test};
use farrier_store::{Fault, MemoryStore, RunFilter, RunRow, Store, StoreError};
use tokio::sync::{mpsc, watch};

mod happens;

use super::super::Problem;
use super::compare;
use super::hooks::{Between, Failing, Gate, Invariants, Place};
use super::sandbox::{Sandbox, Tree};
use super::simulated::{Held, Simulated, runtime};
use crate::render::plan::{Shown, draw};
use crate::render::style::Style;

/// When a case begins that does not say: 2026-01-01T00:00:00Z, in seconds.
const BEGINNING: i64 = 1_767_225_600;
/// Longer runs of takeovers are circles.
const MAX_DRIVES: u32 = 10_000;
/// A process that dies more often than this in one case never gets anywhere.
const MAX_LIVES: u32 = 100;

/// A case and what it is about.
pub(super) struct Case {
    pub(super) registry: Arc<ActionRegistry>,
    pub(super) file: std::path::PathBuf,
    pub(super) bundle: Arc<Bundle>,
    pub(super) test: Test,
    /// Write golden files instead of comparing with them.
    pub(super) update: bool,
}

/// What goes wrong on purpose.
#[derive(Debug, Clone, Default)]
pub(super) struct Trouble {
    /// The process dies at this write of its store.
    pub(super) crash: Option<(u64, Fault)>,
    /// A node fails.
    pub(super) failing: Option<Failing>,
    /// What nodes gave without any trouble, for whoever says after a crash what one in doubt has given.
    pub(super) gave: HashMap<NodeName, Value>,
}

impl Trouble {
    fn is_sweep(&self) -> bool {
        self.crash.is_some() || self.failing.is_some()
    }
}

/// What came of it.
#[derive(Debug, Default)]
pub(super) struct Came {
    /// Every difference between what is and what should be.
    pub(super) differences: Vec<String>,
    /// The state of the run; none when the case has no run.
    pub(super) state: Option<RunState>,
    /// The fault was met.
    pub(super) crashed: bool,
    /// Nodes that read or changed something, those of runs that it started after its own.
    pub(super) acted: Vec<Place>,
    /// What nodes gave.
    pub(super) gave: HashMap<NodeName, Value>,
    /// Nodes that failed.
    pub(super) failed: Vec<NodeName>,
    /// Nodes in doubt for which a person has answered.
    pub(super) answered: Vec<NodeName>,
    /// How often the store was written from the run's beginning to its end.
    pub(super) writes: u64,
}

/// What is left of a run after its process has died, and what is still to come.
struct Course<'a> {
    case: &'a Case,
    trouble: &'a Trouble,
    sandbox: Arc<Sandbox>,
    time: Simulated,
    begun: Timestamp,
    store: MemoryStore,
    between: Arc<Between>,
    broken: Arc<Mutex<Vec<String>>>,
    inputs: Value,
    /// Those at a time, in order.
    events: Vec<EventAt>,
    next: usize,
    /// Those after a step that have not happened.
    after: Vec<EventAt>,
    gate: Gate,
    injected: bool,
    differences: Vec<String>,
    /// Before the run: the world, and what would be done with it.
    before: Option<(Tree, Plan)>,
    drives: u32,
    came: Came,
}

/// Why a life ended.
enum End {
    Over,
    Died,
}

/// What an event asks of whoever drives the run.
enum Then {
    Nothing,
    Drive { unpark: bool, accepted: Vec<Text> },
    Die,
}

impl Case {
    /// Executes the case once.
    pub(super) fn execute(&self, trouble: &Trouble) -> Result<Came, Problem> {
        let test = &self.test;
        let given = test
            .inputs
            .iter()
            .map(|(key, node)| (key.as_str().into(), Given::Value(node.to_value())))
            .collect();
        let inputs = match check_inputs(self.bundle.graph(), &given) {
            Ok(inputs) => inputs,
            Err(problems) => {
                let differences = problems.iter().map(|problem| format!("inputs: {problem}")).collect();
                return Ok(Came { differences, ..Came::default() });
            }
        };
        let sandbox = Arc::new(Sandbox::of(&self.registry, &self.file, test)?);
        let begun = test
            .start
            .as_ref()
            .map_or_else(|| Timestamp::from_second(BEGINNING).unwrap_or_default(), |start| start.0);
        let time = Simulated::starting(begun);
        let (after, mut events): (Vec<EventAt>, Vec<EventAt>) =
            test.events.iter().cloned().partition(|event| event.after.is_some());
        events.sort_by_key(|event| event.at.as_ref().map(|at| at.value));
        let looks = trouble.crash.is_some();
        let between = Between::of(&self.registry, &sandbox, test, trouble.failing.clone(), looks);
        let mut course = Course {
            case: self,
            trouble,
            sandbox,
            store: MemoryStore::new(time.clock()),
            time,
            begun,
            between: Arc::new(between),
            broken: Arc::default(),
            inputs,
            events,
            next: 0,
            after,
            gate: Gate::default(),
            injected: false,
            differences: Vec::new(),
            before: None,
            drives: 0,
            came: Came::default(),
        };
        for _ in 0..MAX_LIVES {
            let runtime = runtime()
                .map_err(|error| Problem::Other(anyhow::Error::new(error).context("cannot start")))?;
            course.time.begin(&runtime);
            let end = runtime.block_on(course.live());
            // Waits for what is at work in threads: nobody works on the world between two lives.
            drop(runtime);
            match end? {
                End::Over => {
                    let mut came = std::mem::take(&mut course.came);
                    came.differences = std::mem::take(&mut course.differences);
                    came.differences
                        .append(&mut course.broken.lock().unwrap_or_else(PoisonError::into_inner));
                    return Ok(came);
                }
                End::Died => course.store = course.store.restart(),
            }
        }
        course.differences.push(format!("the process died {MAX_LIVES} times, and the run is not over"));
        course.came.differences = course.differences;
        Ok(course.came)
    }
}

impl Course<'_> {
    fn now(&self) -> Timestamp {
        self.time.now()
    }

    fn moment(&self, event: &EventAt) -> Timestamp {
        self.begun + event.at.as_ref().map_or(Duration::ZERO, |at| at.0)
    }

    fn next_event(&self) -> Option<Timestamp> {
        self.events.get(self.next).map(|event| self.moment(event))
    }

    fn start(&self) -> Start {
        let world: World = self.sandbox.world(self.time.targets_now());
        Start {
            bundle: self.case.bundle.clone(),
            world,
            inputs: self.inputs.clone(),
            trigger: Trigger::Manual { by: "test".into() },
            plan: None,
        }
    }

    fn driver(&self, between: Arc<Between>, resume_parked: bool) -> Driver {
        // The sender is dropped: this process never wants its runs to stop.
        let (_stop, halt) = watch::channel(Halt::No);
        let options = Options {
            owner: "test".into(),
            takeovers: MAX_LIVES,
            patience: Duration::ZERO,
            resume_parked,
            interpose: Some(between),
            stillness: Some(Arc::new(Held)),
            witness: Some(Arc::new(Invariants::new(
                self.store.clone(),
                self.broken.clone(),
                self.gate.clone(),
            ))),
            ..Options::default()
        };
        Driver::new(
            self.case.registry.clone(),
            Arc::new(self.store.clone()),
            self.time.clock(),
            options,
            Arc::new(Unobserved),
            halt,
        )
    }

    /// A driver that nothing goes wrong with.
    fn undisturbed(&self) -> Driver {
        let between = Between::of(&self.case.registry, &self.sandbox, &self.case.test, None, false);
        self.driver(Arc::new(between), false)
    }

    /// One life of the process.
    async fn live(&mut self) -> Result<End, Problem> {
        let start = self.start();
        if !self.injected {
            self.injected = true;
            self.look_before(&start).await?;
            if self.case.test.expect.is_none() {
                return Ok(End::Over);
            }
            self.came.writes = self.store.writes();
            if let Some((nth, fault)) = self.trouble.crash {
                self.store.inject(nth, fault);
            }
        }
        let driver = self.driver(self.between.clone(), false);
        match self.go_on(&driver, &start).await {
            Ok(End::Over) => {
                // A fault that the run never met must not meet what looks at it.
                self.came.crashed = self.store.pending_faults() == 0;
                self.came.writes = self.store.writes() - self.came.writes;
                self.judge(&start).await?;
                Ok(End::Over)
            }
            Ok(End::Died) | Err(DriverError::Store(StoreError::Closed)) => Ok(End::Died),
            Err(error) => Err(error.into()),
        }
    }

    /// The plan, and the world before anything happens.
    async fn look_before(&mut self, start: &Start) -> Result<(), Problem> {
        if let Some(expected) = self.case.test.plan.as_ref().filter(|_| !self.trouble.is_sweep()) {
            let before = self.sandbox.tree();
            let plan = self.undisturbed().plan(start).await?;
            let after = self.sandbox.tree();
            self.differences.extend(compare::plan(expected, &plan));
            let written = self.sandbox.written(&before, &after);
            if !written.is_empty() {
                self.differences.push(format!("plan: it wrote to the world: {}", written.join(", ")));
            }
            if let Some(golden) = &expected.golden {
                let text = draw(&plan, Style::plain(), Shown { all: true });
                let text = without_notes(&self.sandbox.without_place(&text));
                let path = self.case.file.parent().unwrap_or(Path::new(".")).join(golden.as_str());
                if self.case.update {
                    write_golden(&path, &text)?;
                } else {
                    self.differences.extend(compare::golden(golden, &path, &text));
                }
            }
        }
        if self.trouble.failing.is_some() {
            let plan = self.undisturbed().plan(start).await?;
            self.before = Some((self.sandbox.tree(), plan));
        }
        Ok(())
    }

    async fn root(&self) -> Result<Option<RunRow>, DriverError> {
        let rows = self.store.runs(RunFilter::default()).await?;
        Ok(rows.into_iter().find(|row| row.parent.is_none()))
    }

    /// Runs that it has started, and that those have, the oldest first.
    async fn children(&self) -> Result<Vec<RunRow>, DriverError> {
        let mut rows = self.store.runs(RunFilter::default()).await?;
        rows.retain(|row| row.parent.is_some());
        rows.sort_by_key(|row| (row.created_at, row.id));
        Ok(rows)
    }

    /// Drives the run, lets things happen at their times, and lets time pass, until nothing is left.
    async fn go_on(&mut self, driver: &Driver, start: &Start) -> Result<End, DriverError> {
        let id = match self.root().await? {
            Some(row) => row.id,
            None => driver.enqueue(start).await?,
        };
        let mut accepted = Vec::new();
        let (mut wanted, mut unpark) = (false, false);
        loop {
            while let Some(event) = self.take_due(start, id).await? {
                match self.happen(event, driver, start, id).await? {
                    Then::Nothing => {}
                    Then::Die => return Ok(End::Died),
                    Then::Drive { unpark: also, accepted: more } => {
                        wanted = true;
                        unpark |= also;
                        accepted.extend(more);
                    }
                }
            }
            let due = self.store.due(1).await?;
            let state = self.root().await?.map(|row| row.state);
            let over = state.is_some_and(RunState::is_final);
            if !over && (wanted || !due.runs.is_empty()) {
                self.drives += 1;
                if self.drives > MAX_DRIVES {
                    self.differences
                        .push(format!("the run was taken up {MAX_DRIVES} times, and is not over"));
                    return Ok(End::Over);
                }
                let own;
                let driver = if unpark {
                    own = self.driver(self.between.clone(), true);
                    &own
                } else {
                    driver
                };
                if let End::Died = self.drive(driver, start, id, &accepted).await? {
                    return Ok(End::Died);
                }
                accepted.clear();
                (wanted, unpark) = (false, false);
                if self.trouble.crash.is_some() && self.answer_doubts(driver, start).await? {
                    (wanted, unpark) = (true, true);
                }
                continue;
            }
            let next = self.next_event().into_iter().chain(due.next.filter(|_| !over)).min();
            let Some(next) = next else { return Ok(End::Over) };
            let rest = Duration::try_from(next.duration_since(self.now())).unwrap_or_default();
            tokio::time::sleep(rest.max(Duration::from_millis(1))).await;
        }
    }

    /// Drives the run as far as it goes, while events go on happening.
    async fn drive(
        &mut self,
        driver: &Driver,
        start: &Start,
        id: RunId,
        accepted: &[Text],
    ) -> Result<End, DriverError> {
        let work = driver.resume(id, start, &ProceedAlways, accepted);
        tokio::pin!(work);
        // Without any event after a step, nobody has to wait at the gate.
        let (open, mut waiting) = mpsc::unbounded_channel();
        let _opened = self.gate.open(Some(open).filter(|_| !self.after.is_empty()));
        loop {
            let next = self.next_event();
            let event = async {
                match next {
                    Some(at) => {
                        let rest = Duration::try_from(at.duration_since(self.time.now())).unwrap_or_default();
                        tokio::time::sleep(rest).await;
                    }
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                ended = &mut work => return ended.map(|_| End::Over),
                Some(pass) = waiting.recv() => {
                    while let Some(event) = self.take_after(start, id).await? {
                        if let Then::Die = self.happen(event, driver, start, id).await? {
                            return Ok(End::Died);
                        }
                    }
                    // It may have gone.
                    pass.send(()).ok();
                }
                () = event => {
                    // What somebody asks for reaches the driver at work; a process that dies drops it where it stands.
                    let Some(event) = self.take_next() else { continue };
                    if let Then::Die = self.happen(event, driver, start, id).await? {
                        return Ok(End::Died);
                    }
                }
            }
        }
    }

    async fn replay(&self, id: RunId, start: &Start) -> Result<Run, DriverError> {
        let journal = self.store.journal(id).await?;
        let mut run = Run::replay(id, start.bundle.graph().clone(), &journal)
            .map_err(|source| DriverError::Replay { run: id, source })?;
        run.people = start.world.people.clone();
        Ok(run)
    }

    fn context(&self, start: &Start, name: &str) -> ReadCx {
        let node = NodeInfo {
            run: RunId(uuid::Uuid::nil()),
            node: NodeName::step(name),
            attempt: 1,
            effect_id: Digest::of(format!("{name} {} {}", self.next, self.after.len())).to_string()[..32]
                .to_owned(),
        };
        ReadCx::new(start.world.targets.clone(), Scope::new(Vec::new()), node)
    }

    /// Somebody else changes the world.
    async fn act(&self, call: &Call, start: &Start) -> Result<(), Failure> {
        let action = self.case.registry.bind(&call.uses, &call.input)?;
        let read = self.context(start, "event");
        rest::holding(Held::hold, async {
            let planned: Planned<Value> = action.plan(&read).await?;
            if !planned.changes.is_empty() {
                action.apply(&WriteCx::after_intent(read), &planned.changes).await?;
            }
            Ok(())
        })
        .await
    }

    /// An operator looks at what is in doubt after a crash, and says what became of it.
    async fn answer_doubts(&mut self, driver: &Driver, start: &Start) -> Result<bool, DriverError> {
        let mut answered = false;
        for row in self.store.runs(RunFilter::default()).await? {
            let Some(graph) = start.bundle.graphs.get(&row.runbook) else { continue };
            if row.state != RunState::Parked {
                continue;
            }
            let run = self.replay_of(row.id, graph).await?;
            if !run.parked.as_ref().is_some_and(|(_, cause)| *cause == ParkCause::InDoubt) {
                continue;
            }
            for node in run.nodes().filter(|node| run.node(*node).state == NodeState::InDoubt) {
                let node = run.name(node);
                let applied = self.between.happened(&node);
                let output =
                    self.trouble.gave.get(&node).filter(|output| applied && !output.is_null()).cloned();
                self.came.answered.push(node.clone());
                // Where the environment wants approvals, a second person has to say the same.
                for by in ["operator", "second operator"] {
                    let reason = "looked at the world after a crash".to_owned();
                    let ask = Ask::Resolve { node: node.clone(), applied, output: output.clone(), reason };
                    driver.ask(row.id, by, ask).await?;
                    if start.world.approvals.needed(start.bundle.graph().risk) == 0 {
                        break;
                    }
                }
                answered = true;
            }
        }
        Ok(answered)
    }

    async fn replay_of(&self, id: RunId, graph: &Arc<Graph>) -> Result<Run, DriverError> {
        let journal = self.store.journal(id).await?;
        Run::replay(id, graph.clone(), &journal).map_err(|source| DriverError::Replay { run: id, source })
    }

    /// Compares what came out with what was expected.
    async fn judge(&mut self, start: &Start) -> Result<(), Problem> {
        let Some(row) = self.root().await? else {
            self.differences.push("there is no run".into());
            return Ok(());
        };
        let journal = self.store.journal(row.id).await?;
        let run = self.replay(row.id, start).await?;
        self.came.state = Some(run.state);
        let failed = run.nodes().filter(|node| run.node(*node).state == NodeState::Failed);
        self.came.failed = failed.map(|node| run.name(node)).collect();
        let gave = run.nodes().filter_map(|node| Some((run.name(node), run.node(node).output.clone()?)));
        self.came.gave = gave.collect();
        self.came.acted = acted(&run, journal.iter().map(|entry| &entry.event));
        for child in self.children().await? {
            let Some(graph) = start.bundle.graphs.get(&child.runbook) else { continue };
            let (journal, run) =
                (self.store.journal(child.id).await?, self.replay_of(child.id, graph).await?);
            for place in acted(&run, journal.iter().map(|entry| &entry.event)) {
                if !self.came.acted.contains(&place) {
                    self.came.acted.push(place);
                }
            }
        }
        let report = farrier_store::fsck(&self.store).await?;
        self.differences.extend(report.violations.iter().map(|violation| format!("journal: {violation}")));
        if self.trouble.failing.is_some() {
            return self.judge_failure(&run, start).await;
        }
        let Some(expected) = &self.case.test.expect else { return Ok(()) };
        let ended =
            run.finished_at.map(|at| Duration::try_from(at.duration_since(self.begun)).unwrap_or_default());
        let journal: Vec<&Event> = journal.iter().map(|entry| &entry.event).collect();
        self.differences.extend(compare::run(expected, &run, &journal, ended));
        if let Some(settled) = &expected.settled {
            let plan = self.undisturbed().plan(start).await?;
            if plan.is_empty() != **settled {
                let counts = crate::render::plan::counts(plan.summary, Style::plain());
                self.differences
                    .push(format!("settled: expected {}, but planning again finds {counts}", **settled));
            }
        }
        for (at, check) in expected.world.iter().enumerate() {
            let Some(call) = &check.call else { continue };
            match self.look(call, start).await {
                Err(failure) => {
                    self.differences.push(format!("world: `{}` failed: {failure}", *check.uses));
                }
                Ok(result) => self.differences.extend(compare::world(at, check, &result)),
            }
        }
        if let Some(wanted) = &expected.mails {
            let sent = self.mails().await?;
            self.differences.extend(compare::mails(wanted, &sent));
        }
        Ok(())
    }

    /// What must be true of a run in which something failed on purpose.
    async fn judge_failure(&mut self, run: &Run, start: &Start) -> Result<(), Problem> {
        if !run.state.is_final() && run.state != RunState::Parked {
            let waits = run.suspended.as_ref().map_or_else(String::new, |(why, _)| format!(": {why}"));
            self.differences
                .push(format!("the run neither ended nor was parked; it is {}{waits}", run.state.name()));
        }
        // A step may leave a run that waits for a person to people.
        let left: Vec<RunId> = run
            .nodes()
            .filter(|node| run.graph.step(node.step).leaves_parked)
            .map(|node| run.id.child(&run.name(node)))
            .collect();
        for child in self.children().await? {
            let left = child.state == RunState::Parked && left.contains(&child.id);
            if run.state.is_final() && !child.state.is_final() && !left {
                let state = child.state.name();
                self.differences
                    .push(format!("the run ended, and its run of `{}` is {state}", child.runbook));
            }
        }
        let others = self.case.test.events.iter().any(|event| event.act.is_some());
        if run.state == RunState::Undone
            && !others
            && let Some((before, first)) = &self.before
        {
            let after = self.sandbox.tree();
            let written = self.sandbox.written(before, &after);
            if !written.is_empty() {
                // A file that was written again may say the same in another way; the plan tells.
                let again = self.undisturbed().plan(start).await?;
                let differences = first.differences(&again);
                if !differences.is_empty() {
                    self.differences.push(format!(
                        "the run was undone, and the world is not as before: {}",
                        differences.join("; ")
                    ));
                }
            }
        }
        Ok(())
    }

    async fn look(&self, call: &Call, start: &Start) -> Result<Value, Failure> {
        let action = self.case.registry.bind(&call.uses, &call.input)?;
        let read = self.context(start, "world").looking_once(true);
        let planned = rest::holding(Held::hold, action.plan(&read)).await?;
        Ok(planned.output.unwrap_or_default())
    }

    /// The mails that the stand-ins hold, in the order of sending: what the run that sent each says of it.
    async fn mails(&self) -> Result<Vec<Value>, Problem> {
        let mut written: HashMap<String, Value> = HashMap::new();
        for row in self.store.runs(RunFilter::default()).await? {
            for entry in self.store.journal(row.id).await? {
                if let Event::Node { event: NodeEvent::Intent { changes, effect_id, .. }, .. } = entry.event
                    && let Some(change) = changes.into_iter().next()
                {
                    written.insert(effect_id, change.after);
                }
            }
        }
        let mut sent = Vec::new();
        for binding in self.sandbox.bindings.bindings.iter().filter(|binding| binding.kind == "mail") {
            let folder = binding.config.get("url").and_then(Value::as_str).unwrap_or_default();
            let folder = self.sandbox.copy.join(folder.strip_prefix("folder:").unwrap_or(folder));
            let Ok(entries) = std::fs::read_dir(&folder) else { continue };
            let mut names: Vec<String> = entries
                .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
                .filter(|name| {
                    !name.starts_with('.')
                        && Path::new(name).extension().is_some_and(|extension| extension == "eml")
                })
                .collect();
            names.sort();
            for name in names {
                let effect = name.trim_end_matches(".eml").split_once('-').map_or("", |(_, effect)| effect);
                sent.push(written.get(effect).cloned().unwrap_or_else(|| Value::text(name.as_str())));
            }
        }
        Ok(sent)
    }
}

/// A drawn plan without what actions remark: sizes and the like are those of this machine.
fn without_notes(text: &str) -> String {
    let kept = text.trim_end().lines().filter(|line| !line.trim_start().starts_with("note: "));
    kept.flat_map(|line| [line.trim_end(), "\n"]).collect()
}

fn write_golden(path: &Path, text: &str) -> Result<(), Problem> {
    std::fs::write(path, text).map_err(|source| Problem::Unwritable { path: path.to_path_buf(), source })
}

/// Nodes that read or changed something: those that can fail.
fn acted<'a>(run: &Run, journal: impl Iterator<Item = &'a Event>) -> Vec<Place> {
    let mut acted: Vec<Place> = Vec::new();
    for event in journal {
        let Event::Node { node, event, .. } = event else { continue };
        let Some(reference) = run.find(node) else { continue };
        let Uses::Action { effect, pure, .. } = &run.graph.step(reference.step).uses else { continue };
        let did = match event {
            NodeEvent::Intent { .. } => true,
            NodeEvent::Succeeded { .. } => *effect == Effect::Read && !pure,
            _ => false,
        };
        let place = Place { runbook: run.graph.name.clone(), node: node.clone() };
        if did && !acted.contains(&place) {
            acted.push(place);
        }
    }
    acted
}
