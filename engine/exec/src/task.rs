//! Node tasks: carrying out one piece of [`Work`], with its timeout, its checks and its polling.
//!
//! A task touches the world and nothing else; it ends with one [`Report`]. A panic inside an action is a report too.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use farrier_action::{
    ActionRegistry, BoundAction, History, NodeInfo, Planned, Probe, Progress, ReadCx, Targets, WriteCx,
};
use farrier_model::expr::Template;
use farrier_model::{Change, Effect, Failure, FailureKind, Fidelity, NodeName, RunId, Scope, Value};
use farrier_runbook::graph::{Graph, Step, Undo, Uses, Verify};
use futures_util::FutureExt;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::decide::{PlanReport, Report, Work, WorkKind};
use crate::driver::{Children, Interpose, Observer, ProgressUpdate, StandIn, Stillness};
use crate::telling::telling;

/// What every task of a run shares.
pub(crate) struct TaskCx {
    pub(crate) run: RunId,
    pub(crate) graph: Arc<Graph>,
    pub(crate) registry: Arc<ActionRegistry>,
    pub(crate) targets: Arc<Targets>,
    pub(crate) interpose: Option<Arc<dyn Interpose>>,
    pub(crate) stillness: Option<Arc<dyn Stillness>>,
    pub(crate) observer: Arc<dyn Observer>,
    pub(crate) depth: usize,
    pub(crate) children: Children,
    pub(crate) history: Arc<dyn History>,
}

/// Carries out `work` to its report. What is logged on the way, by whomever, says of which run, step and attempt it is.
pub(crate) async fn perform(cx: Arc<TaskCx>, name: NodeName, work: Work) -> Report {
    // An error's span is there whatever is logged, so that a filter for a plugin does not take the names away.
    let span = tracing::error_span!(
        "step",
        run_id = %cx.run,
        runbook = %cx.graph.name,
        node = %name,
        attempt = work.attempt,
        doing = work.kind.name(),
    );
    let hear = |progress: Option<&Progress>| {
        let (runbook, depth) = (&*cx.graph.name, cx.depth);
        cx.observer.progress(ProgressUpdate { run: cx.run, runbook, depth, node: &name, progress });
    };
    telling(|told| attempt(&cx, &name, &work, told), hear).instrument(span).await
}

async fn attempt(cx: &TaskCx, name: &NodeName, work: &Work, told: watch::Sender<Option<Progress>>) -> Report {
    let graph = cx.graph.clone();
    let step = graph.step(work.node.step);
    let kind = work.kind.clone();
    let timeout = step.timeout;
    let task = Task { cx, step, name, work, told };
    let result = match timeout {
        // `verify` has its own limit, which may be longer than one attempt.
        Some(limit) if !matches!(kind, WorkKind::Verify(_)) => tokio::time::timeout(
            limit + step.verify.as_ref().map_or(Duration::ZERO, |verify| verify.within),
            task.guarded(),
        )
        .await
        .unwrap_or_else(|_| task.timed_out(limit)),
        _ => task.guarded().await,
    };
    if let Report::Applied(Err(failure)) | Report::Planned(Err(failure)) = &result {
        tracing::debug!(failure = %failure, "attempt failed");
    }
    result
}

struct Task<'a> {
    cx: &'a TaskCx,
    step: &'a Step,
    name: &'a NodeName,
    work: &'a Work,
    told: watch::Sender<Option<Progress>>,
}

impl Task<'_> {
    async fn guarded(&self) -> Report {
        AssertUnwindSafe(self.run()).catch_unwind().await.unwrap_or_else(|panic| {
            let message = panic
                .downcast_ref::<String>()
                .cloned()
                .or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string))
                .unwrap_or_default();
            let failure = Failure::new(FailureKind::Internal, format!("the action panicked: {message}"));
            self.failed(if matches!(self.work.kind, WorkKind::Apply(_)) {
                failure.in_doubt()
            } else {
                failure
            })
        })
    }

    fn timed_out(&self, limit: Duration) -> Report {
        let text = farrier_model::time::format_duration(limit);
        let failure =
            Failure::new(FailureKind::Timeout, format!("it took longer than its `timeout` of {text}"));
        let effect = match &self.step.uses {
            Uses::Action { effect, .. } => *effect,
            Uses::Runbook { .. } => Effect::Keyed,
        };
        // A repeatable effect that was cut off can simply be tried again; any other may have happened.
        let doubtful = matches!(self.work.kind, WorkKind::Apply(_)) && effect != Effect::Repeatable;
        self.failed(if doubtful { failure.in_doubt() } else { failure })
    }

    fn failed(&self, failure: Failure) -> Report {
        match self.work.kind {
            WorkKind::Plan { .. } => Report::Planned(Err(failure)),
            WorkKind::Apply(_) => Report::Applied(Err(failure)),
            WorkKind::Verify(_) => Report::Verified(Err(failure)),
            WorkKind::Probe(_) => Report::Probed(Err(failure)),
            WorkKind::Rehearse => Report::Rehearsed(Err(failure)),
            WorkKind::Undo { .. } => Report::Undone(Err(failure)),
        }
    }

    async fn run(&self) -> Report {
        let inputs = &self.work.inputs;
        if matches!(self.work.kind, WorkKind::Rehearse) {
            return Report::Rehearsed(self.cx.children.rehearse(self.cx.run, self.name).await);
        }
        if let Some(report) = self.interposed() {
            return report;
        }
        match (&self.step.uses, &self.work.kind) {
            (Uses::Runbook { name }, WorkKind::Plan { .. }) => {
                Report::Planned(self.cx.children.plan(name, inputs, self.name).await)
            }
            (Uses::Runbook { name }, WorkKind::Apply(_)) => {
                self.cx.children.run(name, inputs, self.cx.run, self.name, self.work.bound.clone()).await
            }
            (Uses::Runbook { .. }, WorkKind::Verify(output)) => {
                Report::Verified(self.expect(output).map(|finish| (output.clone(), finish)))
            }
            (_, WorkKind::Rehearse) => {
                self.failed(Failure::new(FailureKind::Internal, "it was answered above"))
            }
            (Uses::Runbook { .. }, WorkKind::Probe(_)) => Report::Probed(Ok((Probe::Unknown, Value::Null))),
            (Uses::Action { name, .. }, WorkKind::Plan { look_once }) => {
                Report::Planned(match self.bind(name, inputs) {
                    Ok(action) => self.plan(&*action, *look_once).await,
                    Err(failure) => Err(failure),
                })
            }
            (Uses::Action { name, .. }, WorkKind::Apply(planned)) => {
                Report::Applied(match self.bind(name, inputs) {
                    Ok(action) => {
                        let cx = WriteCx::after_intent(self.read_cx());
                        let interpose = self.cx.interpose.as_ref();
                        interpose.inspect(|interpose| interpose.begins(self.name));
                        let applied = self.still(action.apply(&cx, &planned.changes)).await;
                        if applied.is_ok() {
                            interpose.inspect(|interpose| interpose.has_applied(self.name));
                        }
                        applied
                    }
                    Err(failure) => Err(failure),
                })
            }
            (Uses::Action { name, .. }, WorkKind::Verify(output)) => {
                Report::Verified(match self.bind(name, inputs) {
                    Ok(action) => self.verify_applied(&*action, output).await,
                    Err(failure) => Err(failure),
                })
            }
            (Uses::Action { name, .. }, WorkKind::Probe(planned)) => {
                Report::Probed(match self.bind(name, inputs) {
                    Ok(action) => self.still(self.probe(&*action, &planned.changes)).await,
                    Err(failure) => Err(failure),
                })
            }
            (_, WorkKind::Undo { changes, output }) => Report::Undone(self.undo(changes, output).await),
        }
    }

    /// What a test wants to happen instead of the action.
    fn interposed(&self) -> Option<Report> {
        let Uses::Action { name, effect, .. } = &self.step.uses else { return None };
        let applies = matches!(self.work.kind, WorkKind::Apply(_));
        if !applies && !matches!(self.work.kind, WorkKind::Plan { .. }) {
            return None;
        }
        let instead =
            self.cx.interpose.as_ref()?.instead_of(&self.cx.graph.name, self.name, name, applies)?;
        match (instead, &self.work.kind) {
            (StandIn::Output(output), WorkKind::Plan { .. }) => {
                Some(Report::Planned(self.expect(&output).map(|finish| PlanReport {
                    planned: Arc::new(Planned::known(output)),
                    child: None,
                    finish,
                })))
            }
            (StandIn::Fail(failure), WorkKind::Plan { .. }) if *effect == Effect::Read => {
                Some(Report::Planned(Err(failure)))
            }
            (StandIn::Fail(failure), WorkKind::Apply(_)) => Some(Report::Applied(Err(failure))),
            _ => None,
        }
    }

    /// Waits for the world; simulated time stands still meanwhile.
    async fn still<T>(&self, call: impl Future<Output = T>) -> T {
        match &self.cx.stillness {
            Some(stillness) => {
                let stillness = stillness.clone();
                farrier_action::rest::holding(move || stillness.hold(), call).await
            }
            None => call.await,
        }
    }

    fn bind(&self, action: &str, inputs: &Value) -> Result<Box<dyn BoundAction>, Failure> {
        self.cx.registry.bind(action, inputs)
    }

    fn read_cx(&self) -> ReadCx {
        let node = NodeInfo {
            run: self.cx.run,
            node: self.name.clone(),
            attempt: self.work.attempt,
            effect_id: self.work.effect_id.clone(),
        };
        ReadCx::new(self.cx.targets.clone(), self.work.scope.clone(), node)
            .with_history(self.cx.history.clone())
            .telling(self.told.clone())
    }

    async fn plan(&self, action: &dyn BoundAction, look_once: bool) -> Result<PlanReport, Failure> {
        let cx = self.read_cx().looking_once(look_once);
        let mut planned = self.still(action.plan(&cx)).await?;
        let mut finish = None;
        let finished = planned.changes.is_empty() && planned.fidelity < Fidelity::Described;
        if finished {
            let output = planned.output.clone().unwrap_or_default();
            finish = self.expect(&output)?;
            if let Some(verify) = &self.step.verify
                && finish.is_none()
            {
                if look_once {
                    if !self.holds(verify, &output)? {
                        let within = farrier_model::time::format_duration(verify.within);
                        planned =
                            planned.note(format!("waits up to {within} until `{}`", verify.that.source()));
                        planned.fidelity = Fidelity::Deferred;
                        planned.output = None;
                    }
                } else {
                    let seen = self.poll(verify, Some(output), action, &cx).await?;
                    planned.output = Some(seen);
                }
            }
        }
        Ok(PlanReport { planned: Arc::new(planned), child: None, finish })
    }

    async fn verify_applied(
        &self,
        action: &dyn BoundAction,
        output: &Value,
    ) -> Result<(Value, Option<String>), Failure> {
        let finish = self.expect(output)?;
        if finish.is_some() {
            return Ok((output.clone(), finish));
        }
        let seen = match &self.step.verify {
            Some(verify) => self.poll(verify, None, action, &self.read_cx()).await?,
            None => output.clone(),
        };
        Ok((seen, None))
    }

    /// Checks `expect`. The reason, when one of them says that the run is over and well.
    fn expect(&self, output: &Value) -> Result<Option<String>, Failure> {
        if self.step.expect.is_empty() {
            return Ok(None);
        }
        let scope = self.work.scope.with("result", output.clone());
        for expectation in &self.step.expect {
            let held = expectation.that.eval_bool(&scope).map_err(|error| {
                Failure::new(
                    FailureKind::Input,
                    format!("in `expect: {}`: {}", expectation.that.source(), error.message),
                )
            })?;
            if held == Some(true) {
                continue;
            }
            let reason = otherwise(expectation.otherwise.as_ref(), &scope)
                .unwrap_or_else(|| format!("`{}` does not hold", expectation.that.source()));
            if expectation.then_finish {
                return Ok(Some(reason));
            }
            return Err(Failure::new(FailureKind::Expectation, reason));
        }
        Ok(None)
    }

    fn holds(&self, verify: &Verify, output: &Value) -> Result<bool, Failure> {
        let scope = self.work.scope.with("result", output.clone());
        let held = verify.that.eval_bool(&scope).map_err(|error| {
            Failure::new(
                FailureKind::Input,
                format!("in `verify: {}`: {}", verify.that.source(), error.message),
            )
        })?;
        Ok(held == Some(true))
    }

    /// Looks again every so often until the condition has held long enough. A look that fails counts as "not yet":
    /// a node that reboots is unreachable for a while.
    async fn poll(
        &self,
        verify: &Verify,
        first: Option<Value>,
        action: &dyn BoundAction,
        cx: &ReadCx,
    ) -> Result<Value, Failure> {
        let begun = Instant::now();
        let mut held_since: Option<Instant> = None;
        let mut look = first;
        loop {
            let mut trouble = None;
            let output = match look.take() {
                Some(output) => Some(output),
                None => match self.still(action.plan(cx)).await {
                    Ok(planned) => planned.output,
                    Err(failure) if failure.kind.may_pass() => {
                        trouble = Some(failure);
                        None
                    }
                    Err(failure) => return Err(failure),
                },
            };
            let held = match &output {
                Some(output) => self.holds(verify, output)?,
                None => false,
            };
            if held {
                let since = *held_since.get_or_insert_with(Instant::now);
                if since.elapsed() >= verify.hold {
                    return Ok(output.unwrap_or_default());
                }
            } else {
                held_since = None;
            }
            if begun.elapsed() >= verify.within {
                let scope = self.work.scope.with("result", output.unwrap_or_default());
                let within = farrier_model::time::format_duration(verify.within);
                let reason = otherwise(verify.otherwise.as_ref(), &scope)
                    .unwrap_or_else(|| format!("`{}` did not become true", verify.that.source()));
                let last =
                    trouble.map_or_else(String::new, |failure| format!("; the last look failed: {failure}"));
                return Err(Failure::new(
                    FailureKind::Verification,
                    format!("{reason} (within {within}{last})"),
                ));
            }
            let rest = verify.within.saturating_sub(begun.elapsed());
            tokio::time::sleep(verify.every.min(rest).max(Duration::from_millis(1))).await;
        }
    }

    async fn probe(&self, action: &dyn BoundAction, changes: &[Change]) -> Result<(Probe, Value), Failure> {
        let cx = self.read_cx();
        match action.probe(&cx, changes).await? {
            Probe::Applied => Ok((Probe::Applied, action.output_now(&cx).await?)),
            other => Ok((other, Value::Null)),
        }
    }

    async fn undo(&self, changes: &[Change], output: &Value) -> Result<(), Failure> {
        match (&self.step.undo, &self.step.uses) {
            (Undo::None, _) => Ok(()),
            (Undo::Restore, Uses::Action { name, .. }) => {
                let action = self.bind(name, &self.work.inputs)?;
                self.still(action.undo(&WriteCx::after_intent(self.read_cx()), changes)).await
            }
            (Undo::Restore, Uses::Runbook { name }) => Err(Failure::new(
                FailureKind::Internal,
                format!("a run of `{name}` cannot be restored as a whole"),
            )),
            (Undo::Action { name, with, .. }, _) => {
                let scope = self.work.scope.with("result", output.clone());
                let inputs = with.eval(&scope).map_err(|error| {
                    Failure::new(FailureKind::Input, format!("in `undo.with`: {}", error.message))
                })?;
                let action = self.bind(name, &inputs)?;
                let planned: Planned<Value> = self.still(action.plan(&self.read_cx())).await?;
                if !planned.changes.is_empty() {
                    let cx = WriteCx::after_intent(self.read_cx());
                    self.still(action.apply(&cx, &planned.changes)).await?;
                }
                Ok(())
            }
        }
    }
}

fn otherwise(text: Option<&Template>, scope: &Scope) -> Option<String> {
    text.map(|text| text.eval(scope).map_or_else(|error| error.message, |value| value.to_string()))
}
