//! Child runs: planned with their parent, started once, and driven by the task of the node that starts them.

use std::future::Future;
use std::sync::Arc;

use farrier_action::Planned;
use farrier_model::event::Trigger;
use farrier_model::time::Timestamp;
use farrier_model::{
    BoundPlan, Change, ChangeKind, Failure, FailureKind, Fidelity, NodeName, PlannedRun, RunId, RunState,
    Text, Value,
};
use farrier_runbook::graph::Bundle;
use farrier_runbook::inputs::{Given, check_inputs};
use farrier_store::StoreError;
use futures_util::future::BoxFuture;

use super::{Driver, DriverError, Ended, NeverAsked, Outcome, ProceedAlways, Start};
use crate::bound::Bound;
use crate::decide::{PlanReport, Report};
use crate::held;
use crate::plan::Plan;
use crate::run::Run;

/// Plans and runs the child runs of one run.
#[derive(Clone)]
pub(crate) struct Children {
    pub(super) driver: Driver,
    pub(super) start: Start,
    pub(super) depth: usize,
    pub(super) parent: RunId,
    /// The moment of a dry run, which is that of its children as well.
    pub(super) moment: Option<Timestamp>,
    /// The plan that the run carries out.
    pub(super) bound: Option<Arc<Bound>>,
}

impl Children {
    fn start_of(&self, runbook: &Text, inputs: &Value, trigger: Trigger) -> Result<Start, Failure> {
        let bundle = Bundle { root: runbook.clone(), ..(*self.start.bundle).clone() };
        let graph = bundle.graphs.get(runbook).ok_or_else(|| {
            Failure::new(
                FailureKind::Internal,
                format!("runbook `{runbook}` is not part of this run's bundle"),
            )
        })?;
        let given = inputs.as_map().into_iter().flat_map(farrier_model::Map::iter);
        let given = given.map(|(name, value)| (name.clone(), Given::Value(value.clone()))).collect();
        let inputs = check_inputs(graph, &given).map_err(|problems| {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Failure::new(FailureKind::Input, problems.join("; "))
        })?;
        Ok(Start { bundle: Arc::new(bundle), world: self.start.world.clone(), inputs, trigger, plan: None })
    }

    /// The plan of what is left of the run `id` once `passed` is passed.
    pub(crate) fn rehearse<'a>(
        &'a self,
        id: RunId,
        passed: &'a NodeName,
    ) -> BoxFuture<'a, Result<Box<BoundPlan>, Failure>> {
        Box::pin(async move {
            let wrong = |error: String| {
                Failure::new(FailureKind::Internal, format!("the rest of the run cannot be planned: {error}"))
            };
            let driver = &self.driver;
            let journal = driver.store.journal(id).await.map_err(|error| wrong(error.to_string()))?;
            let mut run = Run::replay(id, self.start.bundle.graph().clone(), &journal)
                .map_err(|error| wrong(error.to_string()))?;
            run.rehearse(passed);
            let outcome = driver
                .drive(&mut run, &self.start, None, &NeverAsked, self.depth)
                .await
                .map_err(|error| wrong(error.to_string()))?;
            let plan = match outcome {
                Outcome::Barrier(plan) => *plan,
                Outcome::Over => Plan::of(&mut run, Vec::new()),
            };
            plan.bind().map(Box::new).map_err(|error| wrong(error.to_string()))
        })
    }

    /// The dry run of a child, as the plan of the step that starts it.
    pub(crate) fn plan<'a>(
        &'a self,
        runbook: &'a Text,
        inputs: &'a Value,
        node: &'a NodeName,
    ) -> BoxFuture<'a, Result<PlanReport, Failure>> {
        Box::pin(async move {
            let by = self.start.trigger.by().map(ToOwned::to_owned);
            let trigger = Trigger::Parent { run: self.parent, node: node.clone(), by };
            let start = self.start_of(runbook, inputs, trigger)?;
            let id = if self.parent == RunId::NONE { RunId::NONE } else { self.parent.child(node) };
            // What was read of it; otherwise it will begin when its step does.
            let read = self.bound.as_ref().and_then(|bound| bound.child(node)?.run);
            let started_at = read.map(|planned| planned.started_at).or(self.moment);
            let started_at = started_at.unwrap_or_else(|| self.driver.clock.now());
            let plan = self.driver.plan_as(&start, PlannedRun { id, started_at }).await.map_err(|error| {
                Failure::new(FailureKind::Internal, format!("runbook `{runbook}`: {error}"))
            })?;
            if let Some(failure) = &plan.failure {
                let message = format!("runbook `{runbook}`: {}", failure.message);
                return Err(Failure { message, ..failure.clone() });
            }
            let planned = if plan.is_empty() {
                Planned::known(plan.outputs.clone())
            } else {
                let fidelity = if plan.is_certain() { Fidelity::Computed } else { Fidelity::Deferred };
                let change = Change {
                    object: format!("run of {runbook}").into(),
                    kind: ChangeKind::Run,
                    before: Value::Null,
                    after: start.inputs.clone(),
                    fingerprint: None,
                };
                Planned { fidelity, output: None, ..Planned::changes(vec![change], Value::Null) }
            };
            Ok(PlanReport { planned: Arc::new(planned), child: Some(Arc::new(plan)), finish: None })
        })
    }

    /// Starts a child, or takes up one that was started before, and waits for its end.
    pub(crate) fn run<'a>(
        &'a self,
        runbook: &'a Text,
        inputs: &'a Value,
        parent: RunId,
        node: &'a NodeName,
        bound: Option<BoundPlan>,
    ) -> impl Future<Output = Report> + Send + 'a {
        let id = parent.child(node);
        Box::pin(async move {
            let by = self.start.trigger.by().map(ToOwned::to_owned);
            let trigger = Trigger::Parent { run: parent, node: node.clone(), by };
            let start = match self.start_of(runbook, inputs, trigger) {
                Ok(start) => Start { plan: bound.map(Box::new), ..start },
                Err(failure) => return Report::Applied(Err(failure)),
            };
            match self.run_to_end(id, parent, &start).await {
                Ok(Some(ended)) => report(runbook, ended),
                Ok(None) => Report::ChildWaits { run: id, at: None },
                Err(DriverError::Store(error @ StoreError::KeyTaken { .. })) => {
                    let message = format!("runbook `{runbook}`: {error}");
                    Report::Applied(Err(Failure::new(FailureKind::Conflict, message)))
                }
                Err(error) => {
                    let mut message = format!("child run {id} of `{runbook}`: {error}");
                    let mut cause = std::error::Error::source(&error);
                    while let Some(source) = cause {
                        message = format!("{message}: {source}");
                        cause = source.source();
                    }
                    Report::Applied(Err(Failure::new(FailureKind::Internal, message).in_doubt()))
                }
            }
        })
    }

    /// The child's end, or where it waits; nothing when another task of this process is at work on it.
    async fn run_to_end(
        &self,
        id: RunId,
        parent: RunId,
        start: &Start,
    ) -> Result<Option<Ended>, DriverError> {
        loop {
            match self.try_to_end(id, parent, start).await {
                // Its parent is under way, and waits for room with it.
                Err(DriverError::Store(StoreError::Full { .. })) => tokio::time::sleep(held::AGAIN).await,
                ended => return ended,
            }
        }
    }

    async fn try_to_end(
        &self,
        id: RunId,
        parent: RunId,
        start: &Start,
    ) -> Result<Option<Ended>, DriverError> {
        self.driver.create(id, start, Some(parent)).await?;
        let Some(entered) = self.driver.pokes.enter(id) else { return Ok(None) };
        let row = self.driver.store.run(id).await?;
        let rests = row.is_some_and(|row| {
            let parked = row.state == RunState::Parked && !self.driver.options.resume_parked;
            row.state.is_final() || parked
        });
        let asked = !self.driver.store.requests(id).await?.is_empty();
        if rests && !asked {
            let journal = self.driver.store.journal(id).await?;
            let run = Run::replay(id, start.bundle.graph().clone(), &journal)
                .map_err(|source| DriverError::Replay { run: id, source })?;
            return Ok(Some(Ended::of(&run)));
        }
        self.driver.resume_at(id, start, &ProceedAlways, &[], self.depth + 1, entered).await.map(Some)
    }
}

/// What a child's end means for the step that started it.
fn report(runbook: &Text, ended: Ended) -> Report {
    match ended.state {
        RunState::Succeeded => Report::Applied(Ok(ended.outputs)),
        RunState::Waiting => {
            Report::ChildWaits { run: ended.run, at: ended.waits.and_then(|(_, until)| until) }
        }
        RunState::Parked => {
            let why = ended.parked.unwrap_or_default();
            Report::ChildParked(format!("child run {} of `{runbook}` waits for a person: {why}", ended.run))
        }
        state => {
            let why = ended.failure.map_or_else(String::new, |failure| format!(": {failure}"));
            let message = format!("child run {} of `{runbook}` ended {}{why}", ended.run, state.name());
            Report::Applied(Err(Failure::new(FailureKind::Child, message)))
        }
    }
}
