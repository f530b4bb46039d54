//! [`Plan`]: the result of a dry run, as people and programs see it.

use farrier_model::{Change, Failure, Fidelity, NodeState, PlannedRun, Text, Value};
use farrier_runbook::graph::{StepIndex, Uses};
use serde::{Deserialize, Serialize};

use crate::guard::{Counts, GuardFinding};
use crate::run::{NodeRef, Phase, Run};

/// The changes that each step of a run would make.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// The runbook.
    pub runbook: Text,
    /// The environment.
    pub environment: Text,
    /// The checked inputs.
    pub inputs: Value,
    /// The run that was planned, when somebody else is to carry the plan out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run: Option<PlannedRun>,
    /// Every step, in topological order, `finally` last.
    pub steps: Vec<PlanStep>,
    /// What the guards say.
    pub guards: Vec<GuardFinding>,
    /// The sum of all steps.
    pub summary: Counts,
    /// The runbook's outputs, as far as they are known; null when a step failed.
    pub outputs: Value,
    /// Why the plan is not complete: a read failed, or an `expect` did not hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<Failure>,
    /// Why the run would be over at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_early: Option<String>,
}

/// One step or item in a plan.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PlanStep {
    /// The step's id, or the item's key.
    pub id: Text,
    /// The action or runbook.
    pub uses: Text,
    /// What would happen.
    pub state: PlanStepState,
    /// How far to believe it.
    pub fidelity: Fidelity,
    /// What would change.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<Change>,
    /// How many of each kind.
    pub counts: Counts,
    /// Remarks of the action.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    /// It changes nothing because it only reads.
    pub read: bool,
    /// The items of a `for_each` step.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub items: Vec<PlanStep>,
    /// The plan of a child run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub child: Option<Box<Plan>>,
}

/// What would happen to a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "is", content = "why")]
pub enum PlanStepState {
    /// It was read, or is already as wanted.
    Done,
    /// It would make its changes.
    Changes,
    /// It would be skipped, and why.
    Skipped(Text),
    /// It cannot be planned before that step has run.
    After(Text),
    /// Whether it runs is known only after that step.
    MaybeAfter(Text),
    /// It would wait, and for what.
    Waits(Text),
    /// Its read or its check failed.
    Failed(Failure),
    /// It would not run, because of that node.
    Blocked(Text),
    /// It was not reached.
    NotReached,
}

impl Plan {
    /// The plan that `run` arrived at.
    pub fn of(run: &mut Run, guards: Vec<GuardFinding>) -> Plan {
        let order: Vec<StepIndex> = run.graph.order().to_vec();
        let steps: Vec<PlanStep> = order.iter().map(|step| plan_step(run, *step)).collect();
        let mut summary = Counts::default();
        for step in &steps {
            summary.add(step.counts);
        }
        let failure = run.first_failure.clone();
        let outputs = match (&run.graph.clone().outputs, &failure) {
            (Some(template), None) => {
                run.outputs_scope().ok().and_then(|scope| template.eval(&scope).ok()).unwrap_or_default()
            }
            _ => Value::Null,
        };
        Plan {
            runbook: run.graph.name.clone(),
            environment: run.environment.clone(),
            inputs: run.inputs.clone(),
            run: None,
            steps,
            guards,
            summary,
            outputs,
            failure,
            finished_early: run.finished_early.clone(),
        }
    }

    /// Whether everything that the run would do is known: nothing opaque, nothing deferred, nothing failed.
    pub fn is_certain(&self) -> bool {
        self.failure.is_none() && self.steps.iter().all(PlanStep::is_certain)
    }

    /// Whether the run would change nothing, for certain.
    pub fn is_empty(&self) -> bool {
        self.is_certain() && self.summary.total() == 0
    }

    /// The sum of all steps.
    pub fn counts(&self) -> Counts {
        self.summary
    }

    /// The first guard that does not let the changes pass.
    pub fn tripped(&self) -> Option<&GuardFinding> {
        self.guards.iter().find(|finding| !finding.passed)
    }
}

impl PlanStep {
    fn is_certain(&self) -> bool {
        let itself = match &self.state {
            PlanStepState::Skipped(_) | PlanStepState::Blocked(_) | PlanStepState::NotReached => true,
            PlanStepState::Done | PlanStepState::Changes => self.fidelity < Fidelity::Described,
            PlanStepState::After(_)
            | PlanStepState::MaybeAfter(_)
            | PlanStepState::Waits(_)
            | PlanStepState::Failed(_) => false,
        };
        itself
            && self.items.iter().all(PlanStep::is_certain)
            && self.child.as_ref().is_none_or(|child| child.is_certain())
    }
}

fn plan_step(run: &Run, step: StepIndex) -> PlanStep {
    let mut shown = plan_node(run, NodeRef::step(step), run.graph.step(step).id.clone());
    let step_run = run.step(step);
    let Some(items) = &step_run.items else { return shown };
    shown.items = (0..items.keys.len())
        .map(|at| plan_node(run, NodeRef { step, item: Some(at as u32) }, items.keys[at].clone()))
        .collect();
    for item in &shown.items {
        shown.counts.add(item.counts);
    }
    if !step_run.node.state.is_settled() {
        let changes = shown.items.iter().any(|item| item.state == PlanStepState::Changes);
        let open = shown
            .items
            .iter()
            .find(|item| matches!(item.state, PlanStepState::After(_) | PlanStepState::MaybeAfter(_)));
        shown.state = match (changes, open) {
            (false, Some(open)) => open.state.clone(),
            // Its list is known, and nothing is in it; what else is known of the step itself comes first.
            _ if shown.items.is_empty() && shown.state != PlanStepState::NotReached => shown.state,
            (true, _) => PlanStepState::Changes,
            (false, None) => PlanStepState::Done,
        };
    }
    shown.fidelity = shown.items.iter().map(|item| item.fidelity).max().unwrap_or(Fidelity::Computed);
    shown
}

fn plan_node(run: &Run, node: NodeRef, id: Text) -> PlanStep {
    let spec = run.graph.step(node.step);
    let (uses, read) = match &spec.uses {
        Uses::Action { name, effect, .. } => (name.clone(), *effect == farrier_model::Effect::Read),
        Uses::Runbook { name } => (format!("runbook.{name}").into(), false),
    };
    let run_node = run.node(node);
    let mut shown = PlanStep {
        id,
        uses,
        state: PlanStepState::NotReached,
        fidelity: Fidelity::Computed,
        changes: Vec::new(),
        counts: Counts::default(),
        notes: Vec::new(),
        read,
        items: Vec::new(),
        child: None,
    };
    let reason = || run_node.reason.clone().unwrap_or_default();
    match (run_node.state, &run_node.phase, &run_node.planned) {
        (NodeState::Succeeded, ..) => {
            shown.state = PlanStepState::Done;
            shown.notes = run.memory.notes.get(&node).cloned().unwrap_or_default();
        }
        (NodeState::Skipped, ..) => shown.state = PlanStepState::Skipped(reason()),
        (NodeState::Blocked, ..) => shown.state = PlanStepState::Blocked(reason()),
        (NodeState::Failed | NodeState::Retryable, ..) => {
            if let Some(failure) = run_node.failure.clone() {
                shown.state = PlanStepState::Failed(failure);
            }
        }
        (_, Phase::WouldSkip, _) => {
            let condition =
                spec.condition.as_ref().map_or_else(String::new, |c| format!("`{}` is false", c.source()));
            shown.state = PlanStepState::Skipped(condition.into());
        }
        (_, Phase::Deferred { after, maybe }, _) => {
            shown.fidelity = Fidelity::Deferred;
            shown.state = if *maybe {
                PlanStepState::MaybeAfter(after.clone())
            } else {
                PlanStepState::After(after.clone())
            };
        }
        (_, _, Some(planned)) => {
            shown.fidelity = planned.planned.fidelity;
            shown.changes.clone_from(&planned.planned.changes);
            shown.notes.clone_from(&planned.planned.notes);
            shown.counts = planned.counts();
            if let Some(child) = &planned.child {
                shown.changes.clear();
                shown.child = Some(Box::new((**child).clone()));
            }
            shown.state = if let Some(wait) = &planned.planned.wait {
                PlanStepState::Waits(wait.describe().into())
            } else if shown.counts.total() > 0 || planned.planned.fidelity == Fidelity::Described {
                PlanStepState::Changes
            } else {
                PlanStepState::Done
            };
        }
        _ => {}
    }
    shown
}
