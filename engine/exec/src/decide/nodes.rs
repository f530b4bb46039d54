//! One node at a time: whether it may start, whether it runs at all, and which items it has.

use farrier_model::{Failure, FailureKind, NodeEvent, NodeState, Scope, Text, Value};
use farrier_runbook::graph::{OnFailure, OnItemFailure, StepIndex};

use super::{Decider, Step, lost_failure};
use crate::run::{Items, NodeRef, Phase};

impl Decider<'_> {
    pub(super) fn look(&mut self, node: NodeRef) -> Step {
        let run_node = self.run.node(node);
        if matches!(run_node.phase, Phase::Busy | Phase::Reading | Phase::Queued | Phase::Rests)
            || self.run.memory.letting_go
        {
            return Ok(());
        }
        if matches!(run_node.phase, Phase::Locked) {
            return if self.run.stopping() { Ok(()) } else { self.look_at_locked(node) };
        }
        match run_node.state {
            // Its timer looks again when the pause is over.
            NodeState::Retryable if run_node.retry_at.is_some_and(|at| at > self.now) => Ok(()),
            NodeState::InDoubt => self.in_doubt(node),
            NodeState::Waiting if run_node.wait.is_some() => self.check_wait(node),
            NodeState::Waiting => self.start(node),
            // What failed below steps with changes is planned again when those are made, and not over and over until then.
            NodeState::Pending
                if matches!(run_node.phase, Phase::Deferred { .. }) && !self.is_firm(node.step) =>
            {
                Ok(())
            }
            NodeState::Pending | NodeState::Retryable => {
                if node.item.is_some() {
                    self.look_at_pending_item(node)
                } else {
                    self.look_at_pending_step(node.step)
                }
            }
            _ => Ok(()),
        }
    }

    pub(super) fn look_at_pending_step(&mut self, step: StepIndex) -> Step {
        let node = NodeRef::step(step);
        let graph = self.run.graph.clone();
        let spec = graph.step(step);
        if !spec.finally && self.run.stopping() {
            return Ok(());
        }
        let real = if spec.finally {
            self.run.memory.finally_open && self.finally_needs_settled(step)
        } else {
            self.run.step(step).unsettled == 0
        };
        let provisional = self.provisional_allowed() && self.run.step(step).unplanned == 0;
        if !real && !provisional {
            return Ok(());
        }
        if self.run.step(step).items.as_ref().is_some_and(|items| items.journaled) && real {
            return self.look_at_items(step);
        }
        if real {
            if !spec.finally {
                for (on, need) in graph.needs(step) {
                    if !self.run.need_met(on, need) {
                        let by = self.run.name(NodeRef::step(on));
                        let attempt = self.run.node(node).attempt;
                        return self.emit_node(node, attempt, NodeEvent::Blocked { by });
                    }
                }
            }
            if spec.requires_clean && self.run.continued_failures > 0 && !self.limits.plan_only {
                let guard: Text = format!("{}: requires_clean", spec.id).into();
                if !self.run.accepted.contains(&guard) {
                    let reason =
                        format!("step `{}` requires that no earlier step failed, and one did", spec.id);
                    return self.park_at_guard(reason, guard);
                }
            }
        }
        let scope = match self.run.scope(node) {
            Ok(scope) => scope,
            Err(failure) => return self.fail(node, failure, real),
        };
        // One that has begun goes on: what a step of `finally` reads of the run may have changed between its attempts.
        let begun = self.run.node(node).state == NodeState::Retryable;
        if let Some(condition) = spec.condition.as_ref().filter(|_| !begun) {
            match condition.eval_bool(&scope) {
                Ok(Some(true)) => {}
                Ok(Some(false)) if real => {
                    let reason = format!("`{}` is false", condition.source()).into();
                    return self.emit_node(node, 0, NodeEvent::Skipped { reason });
                }
                Ok(Some(false)) => {
                    self.run.node_mut(node).phase = Phase::WouldSkip;
                    self.run.count_planned(step);
                    return Ok(());
                }
                Ok(None) => {
                    self.defer(node, None, true);
                    return Ok(());
                }
                Err(error) => {
                    let message = format!("in `if: {}`: {}", condition.source(), error.message);
                    return self.fail(node, Failure::new(FailureKind::Input, message), real);
                }
            }
        }
        if spec.for_each.is_some() { self.expand(step, &scope, real) } else { self.start(node) }
    }

    pub(super) fn provisional_allowed(&self) -> bool {
        !self.run.writes_allowed && !self.run.stopping()
    }

    /// A step of `finally` waits only for other steps of `finally`.
    pub(super) fn finally_needs_settled(&self, step: StepIndex) -> bool {
        let graph = &self.run.graph;
        graph
            .needs(step)
            .filter(|(on, _)| graph.step(*on).finally)
            .all(|(on, _)| self.run.step(on).node.state.is_settled())
    }

    pub(super) fn expand(&mut self, step: StepIndex, scope: &Scope, real: bool) -> Step {
        let node = NodeRef::step(step);
        let items = match self.items_of(step, scope) {
            Ok(Some(items)) => items,
            Ok(None) => {
                self.defer(node, None, false);
                return Ok(());
            }
            Err(failure) => return self.fail(node, failure, real),
        };
        let keys = items.keys.clone();
        let run_step = &mut self.run.steps[step.index()];
        let same = run_step.items.as_ref().is_some_and(|known| known.keys == keys);
        if same {
            if let Some(known) = &mut run_step.items {
                known.values = items.values;
            }
        } else {
            run_step.items = Some(items);
        }
        if real {
            self.emit_node(node, 0, NodeEvent::Expanded { keys: keys.clone() })?;
        }
        self.run.memory.dirty.extend((0..keys.len()).map(|item| NodeRef { step, item: Some(item as u32) }));
        if keys.is_empty() {
            if real {
                return self.emit_node(node, 0, NodeEvent::Succeeded { output: Value::Null, changed: 0 });
            }
            self.run.count_planned(step);
        }
        Ok(())
    }

    /// The items of a step; nothing when they are not known yet.
    pub(super) fn items_of(&self, step: StepIndex, scope: &Scope) -> Result<Option<Items>, Failure> {
        let spec = self.run.graph.step(step);
        let Some(for_each) = &spec.for_each else { return Ok(None) };
        let wrong = |message: String| Failure::new(FailureKind::Input, message);
        let list =
            for_each.items.eval(scope).map_err(|e| wrong(format!("in `for_each.in`: {}", e.message)))?;
        let values: Vec<Value> = match &list {
            Value::Unknown(_) => return Ok(None),
            Value::List(items) => items.to_vec(),
            other => return Err(wrong(format!("`for_each.in` is {}, not a list", other.kind()))),
        };
        let mut items = Items { unsettled: values.len(), ..Items::default() };
        for (at, value) in values.iter().enumerate() {
            let key = for_each
                .key
                .eval(&scope.with(for_each.as_name.clone(), value.clone()))
                .map_err(|e| wrong(format!("in `for_each.key` of item {at}: {}", e.message)))?;
            let key: Text = match key {
                Value::Unknown(_) => return Ok(None),
                Value::Text(text) => text,
                Value::Int(number) => number.to_string().into(),
                other => {
                    return Err(wrong(format!(
                        "the key of item {at} is {}, not text or a number",
                        other.kind()
                    )));
                }
            };
            if items.by_key.insert(key.clone(), at as u32).is_some() {
                return Err(wrong(format!("two items have the key `{key}`")));
            }
            items.keys.push(key);
        }
        items.nodes = vec![crate::run::NodeRun::default(); values.len()];
        items.values = values;
        Ok(Some(items))
    }

    pub(super) fn look_at_pending_item(&mut self, node: NodeRef) -> Step {
        let graph = self.run.graph.clone();
        let spec = graph.step(node.step);
        if self.run.stopping() && !(spec.finally && self.run.memory.finally_open) {
            return Ok(());
        }
        let Some(items) = &self.run.step(node.step).items else { return Ok(()) };
        if items.values.is_empty() {
            // After a replay the keys are known from the journal and the values are rendered again from it.
            let scope = match self.run.scope(NodeRef::step(node.step)) {
                Ok(scope) => scope,
                Err(failure) => return self.fail(node, failure, true),
            };
            match self.items_of(node.step, &scope) {
                Ok(Some(fresh)) => {
                    if let Some(items) = &mut self.run.steps[node.step.index()].items {
                        if fresh.keys != items.keys {
                            let message = "the items are not those that the journal recorded";
                            return self.fail(node, Failure::new(FailureKind::Internal, message), true);
                        }
                        items.values = fresh.values;
                    }
                }
                Ok(None) => return Ok(()),
                Err(failure) => return self.fail(node, failure, true),
            }
        }
        self.start(node)
    }

    /// A step with items: stop the rest after a failure if asked, and conclude when all are settled.
    pub(super) fn look_at_items(&mut self, step: StepIndex) -> Step {
        let graph = self.run.graph.clone();
        let spec = graph.step(step);
        let Some(items) = &self.run.step(step).items else { return Ok(()) };
        let failed: Vec<(Text, Failure)> = items
            .keys
            .iter()
            .zip(&items.nodes)
            .filter(|(_, node)| node.state == NodeState::Failed)
            .map(|(key, node)| (key.clone(), node.failure.clone().unwrap_or_else(lost_failure)))
            .collect();
        let stop = spec.for_each.as_ref().is_some_and(|each| each.on_item_failure == OnItemFailure::Stop);
        if stop && let Some((first, _)) = failed.first() {
            let by = self.run.name(NodeRef { step, item: items.by_key.get(first).copied() });
            let waiting: Vec<NodeRef> = (0..items.nodes.len())
                .filter(|at| {
                    let node = &items.nodes[*at];
                    node.state == NodeState::Pending && !matches!(node.phase, Phase::Busy | Phase::Reading)
                })
                .map(|at| NodeRef { step, item: Some(at as u32) })
                .collect();
            for node in waiting {
                self.emit_node(node, 0, NodeEvent::Blocked { by: by.clone() })?;
            }
        }
        let Some(items) = &self.run.step(step).items else { return Ok(()) };
        if items.unsettled > 0 {
            return Ok(());
        }
        let total = items.nodes.len();
        let node = NodeRef::step(step);
        match failed.first() {
            None => self.emit_node(node, 0, NodeEvent::Succeeded { output: Value::Null, changed: 0 }),
            Some((key, first)) => {
                let message = format!("{} of {total} items failed; first `{key}`: {first}", failed.len());
                let failure = Failure { message, in_doubt: false, target: None, ..first.clone() };
                let continued = spec.on_failure == OnFailure::Continue;
                self.emit_node(node, 0, NodeEvent::Failed { failure, retry_at: None, continued })
            }
        }
    }

    /// Whether everything the node depends on is settled for real.
    pub(super) fn is_firm(&self, step: StepIndex) -> bool {
        let spec = self.run.graph.step(step);
        if spec.finally {
            // One that was under way when its process died had the whole run before it then, and has now.
            self.run.memory.finally_open || self.has_begun(step)
        } else {
            self.run.step(step).unsettled == 0
        }
    }

    fn has_begun(&self, step: StepIndex) -> bool {
        let step = self.run.step(step);
        let items = step.items.iter().flat_map(|items| &items.nodes);
        items.chain([&step.node]).any(|node| node.state != NodeState::Pending)
    }

    pub(super) fn defer(&mut self, node: NodeRef, after: Option<Text>, maybe: bool) {
        let after = after.unwrap_or_else(|| self.first_open_need(node.step));
        self.run.node_mut(node).phase = Phase::Deferred { after, maybe };
        self.count_planned_node(node);
    }

    pub(super) fn first_open_need(&self, step: StepIndex) -> Text {
        let graph = &self.run.graph;
        let mut open: Vec<StepIndex> = graph
            .needs(step)
            .map(|(on, _)| on)
            .filter(|on| !self.run.step(*on).node.state.is_settled())
            .collect();
        open.sort();
        open.first().map_or_else(|| graph.step(step).id.clone(), |on| graph.step(*on).id.clone())
    }

    pub(super) fn count_planned_node(&mut self, node: NodeRef) {
        if node.item.is_some() {
            let all = self.run.step(node.step).items.as_ref().is_some_and(|items| {
                items.nodes.iter().all(|node| {
                    node.state.is_settled()
                        || node.planned.is_some()
                        || matches!(node.phase, Phase::Deferred { .. })
                })
            });
            if !all {
                return;
            }
        }
        self.run.count_planned(node.step);
    }
}
