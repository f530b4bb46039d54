//! The names that a step's expressions see.

use farrier_model::expr::Scope;
use farrier_model::{Failure, FailureKind, NodeState, Text, Value};
use farrier_runbook::authored::SignalThen;
use farrier_runbook::graph::{Lock, StepIndex};

use crate::run::{NodeRef, NodeRun, Phase, Run};

impl Run {
    /// The scope of a node: `inputs`, `vars`, `run`, the outputs of the steps it reads, and the item.
    ///
    /// # Errors
    /// When a `vars` entry cannot be evaluated.
    pub(crate) fn scope(&mut self, reference: NodeRef) -> Result<Scope, Failure> {
        let graph = self.graph.clone();
        let step = graph.step(reference.step);
        let mut names = self.base_names()?;
        let outputs = step.reads.iter().map(|read| (graph.step(*read).id.clone(), self.output(*read)));
        names.push(("steps".into(), Value::map(outputs.collect::<Vec<_>>())));
        let scope = Scope::new(names);
        Ok(match (&step.for_each, reference.item) {
            (Some(for_each), Some(item)) => {
                let value = self
                    .step(reference.step)
                    .items
                    .as_ref()
                    .and_then(|items| items.values.get(item as usize));
                scope.with(for_each.as_name.clone(), value.cloned().unwrap_or_default())
            }
            _ => scope,
        })
    }

    /// The scope of the runbook's outputs: as a step that reads every step.
    pub(crate) fn outputs_scope(&mut self) -> Result<Scope, Failure> {
        let mut names = self.base_names()?;
        names.push(("steps".into(), self.outputs_so_far()));
        Ok(Scope::new(names))
    }

    /// The names that keys and locks of the whole run see: `inputs`, `vars`, `run` and `targets`.
    pub(crate) fn key_scope(&mut self) -> Result<Scope, Failure> {
        self.base_names().map(Scope::new)
    }

    /// The value of `one_run_per`, with the environment: no second live run of the runbook has the same.
    ///
    /// # Errors
    /// The expression cannot be evaluated.
    pub(crate) fn live_key(&mut self) -> Result<Option<Text>, Failure> {
        let Some(key) = self.graph.clone().one_run_per.clone() else { return Ok(None) };
        let scope = self.key_scope()?;
        let value = key.eval(&scope).map_err(|error| {
            Failure::new(FailureKind::Input, format!("in `one_run_per`: {}", error.message))
        })?;
        Ok(Some(format!("`{value}` in {}", self.environment).into()))
    }

    /// The name under which a lock is kept. Environments do not share locks.
    pub(crate) fn lock_name(&self, lock: &Lock, scope: &Scope) -> Result<Text, Failure> {
        let name = lock.name.eval(scope).map_err(|error| {
            Failure::new(FailureKind::Input, format!("in the name of a lock: {}", error.message))
        })?;
        Ok(format!("{}/{name}", self.environment).into())
    }

    /// What the run knows at this moment, for those who ask something of it: as a step that reads every step.
    pub(crate) fn present_scope(&self) -> Result<Scope, Failure> {
        let mut names = self.own_names();
        let vars = match &self.memory.vars {
            Some(vars) => vars.clone()?,
            None => self.eval_vars(names.clone())?,
        };
        names.push(("vars".into(), vars));
        names.push(("steps".into(), self.outputs_so_far()));
        Ok(Scope::new(names))
    }

    fn outputs_so_far(&self) -> Value {
        let of = |index| (self.graph.step(index).id.clone(), self.output(index));
        Value::map(self.graph.indices().map(of).collect::<Vec<_>>())
    }

    fn own_names(&self) -> Vec<(Text, Value)> {
        let run = Value::map([
            ("id", Value::text(self.id.to_string())),
            ("runbook", Value::text(self.graph.name.clone())),
            ("environment", Value::text(self.environment.clone())),
            ("started_at", Value::text(self.moment.to_string())),
            ("state", Value::text(self.provisional_state().name())),
            ("title", Value::text(self.title())),
            ("signal", Value::text(self.stopping_signal())),
        ]);
        vec![
            ("inputs".into(), self.inputs.clone()),
            ("run".into(), run),
            ("targets".into(), self.targets.clone()),
        ]
    }

    fn base_names(&mut self) -> Result<Vec<(Text, Value)>, Failure> {
        let mut names = self.own_names();
        if self.memory.vars.is_none() {
            let vars = self.eval_vars(names.clone());
            self.memory.vars = Some(vars);
        }
        let vars = self.memory.vars.clone().unwrap_or(Ok(Value::Null))?;
        names.push(("vars".into(), vars));
        Ok(names)
    }

    fn eval_vars(&self, names: Vec<(Text, Value)>) -> Result<Value, Failure> {
        let mut vars: Vec<(Text, Value)> = Vec::new();
        for (name, template) in &self.graph.vars {
            let mut names = names.clone();
            names.push(("vars".into(), Value::map(vars.clone())));
            let value = template.eval(&Scope::new(names)).map_err(|error| {
                Failure::new(FailureKind::Input, format!("in `vars.{name}`: {}", error.message))
            })?;
            vars.push((name.clone(), value));
        }
        Ok(Value::map(vars))
    }

    /// The signal that stops the run; empty when none does.
    pub(crate) fn stopping_signal(&self) -> Text {
        let stops = |name: &Text| {
            let of = self.graph.signals.iter().find(|signal| signal.name == *name);
            of.is_some_and(|signal| signal.then != SignalThen::Continue)
        };
        self.signals.keys().find(|name| stops(name)).cloned().unwrap_or_default()
    }

    /// The run's title: `run_title` of the runbook, or its name.
    pub fn title(&self) -> String {
        let names = vec![("inputs".into(), self.inputs.clone())];
        match &self.graph.run_title {
            Some(title) => match title.eval(&Scope::new(names)) {
                Ok(title) => title.to_string(),
                Err(_) => self.graph.name.to_string(),
            },
            None => self.graph.name.to_string(),
        }
    }

    /// What a step gives to those that read it, as far as it is known.
    pub(crate) fn output(&self, index: StepIndex) -> Value {
        let step = self.graph.step(index);
        let step_run = self.step(index);
        let node = &step_run.node;
        let default = || step.default_output.clone().unwrap_or_default();
        match node.state {
            // Each item says for itself how it ended, and what the others gave is not lost with those that failed.
            NodeState::Failed if step_run.items.as_ref().is_some_and(|items| items.journaled) => {}
            NodeState::Skipped | NodeState::Failed | NodeState::Blocked => return default(),
            NodeState::Pending if matches!(node.phase, Phase::WouldSkip) => return default(),
            _ => {}
        }
        // What a stopped run did not come to, it never will.
        let over = self.memory.finally_open && !step.finally;
        if step.for_each.is_some() {
            return match &step_run.items {
                Some(items) => {
                    let keys: std::sync::Arc<[Text]> = ["key", "state", "output"].map(Text::from).into();
                    let rows = items.keys.iter().zip(&items.nodes).map(|(key, item)| {
                        let cells = vec![
                            Value::Text(key.clone()),
                            Value::text(item.state.name()),
                            node_output(item, &step.id, step.default_output.as_ref(), over),
                        ];
                        Value::record(keys.clone(), cells)
                    });
                    Value::map([("items", Value::list(rows.collect()))])
                }
                None if over => default(),
                None => Value::Unknown(step.id.clone()),
            };
        }
        node_output(node, &step.id, step.default_output.as_ref(), over)
    }
}

fn node_output(node: &NodeRun, step: &Text, default: Option<&Value>, over: bool) -> Value {
    if let Some(output) = &node.output {
        return output.clone();
    }
    if over {
        return default.cloned().unwrap_or_default();
    }
    match (&node.state, &node.planned) {
        (NodeState::Skipped | NodeState::Failed | NodeState::Blocked, _) => {
            default.cloned().unwrap_or_default()
        }
        (_, Some(planned)) => planned.planned.output.clone().unwrap_or_else(|| Value::Unknown(step.clone())),
        _ => Value::Unknown(step.clone()),
    }
}
