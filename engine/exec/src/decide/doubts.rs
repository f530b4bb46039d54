//! A person's word on a step in doubt: whether it happened, and what it gave.

use farrier_model::{Event, NodeEvent, NodeName, NodeState, Value};

use super::asks::{Refusal, now, person};
use super::{Decider, Step};
use crate::run::{Attested, Run};

impl Run {
    /// The word of `by` on a step in doubt, its output read as the step's.
    ///
    /// Whoever confirms what others have said may leave the output out. It is theirs then.
    pub(super) fn word(
        &self,
        by: &str,
        node: &NodeName,
        applied: bool,
        output: Option<&Value>,
    ) -> Result<Attested, Refusal> {
        let found = self.find(node).ok_or_else(|| Refusal::Now(format!("the run has no step `{node}`")))?;
        let state = self.node(found).state;
        // A run that was left by its owner has not looked at what is in doubt yet.
        if !matches!(state, NodeState::InDoubt | NodeState::Running) {
            return now(format!("step `{node}` is {}, not in doubt", state.name()));
        }
        let same = |said: &&Attested| said.node == *node && said.applied == applied;
        let (mine, others): (Vec<&Attested>, Vec<&Attested>) =
            self.attested.iter().filter(same).partition(|said| said.by == by);
        let output = match (applied, output) {
            (false, Some(_)) => {
                return now(format!("what did not happen gave nothing: step `{node}` has no output"));
            }
            (false, None) => Value::Null,
            (true, None) if others.iter().any(|other| other.output != others[0].output) => {
                return now(format!("others disagree on what step `{node}` gave; say what it was"));
            }
            (true, output) => {
                let said =
                    output.or(others.first().map(|other| &other.output).filter(|output| !output.is_null()));
                self.graph.step(found.step).said_output(said).map_err(Refusal::Now)?
            }
        };
        if mine.iter().any(|said| said.output == output) {
            return person(format!("{by} has said so already, and another person has to confirm it"));
        }
        Ok(Attested { node: node.clone(), applied, output, by: by.to_owned() })
    }
}

impl Decider<'_> {
    /// Takes a word in. Where the environment wants approvals for such a run, another person has to say the same.
    pub(super) fn attest(&mut self, word: Attested, reason: String) -> Step {
        let Some(node) = self.run.find(&word.node) else { return Ok(()) };
        if self.run.node(node).state == NodeState::Running {
            let reason = "its owner stopped before it recorded an outcome".into();
            let attempt = self.run.node(node).attempt;
            self.emit_node(node, attempt, NodeEvent::InDoubt { reason })?;
        }
        let confirmed = self.run.approvals_needed == 0
            || self.run.attested.iter().any(|other| other.by != word.by && other.says_what(&word));
        let Attested { node: name, applied, output, by } = word;
        if !confirmed {
            let output = Some(output).filter(|output| !output.is_null());
            return self.emit(Event::Attested { node: name, applied, output, by, reason });
        }
        self.run.memory.unparked = true;
        let gave =
            if output.is_null() { String::new() } else { format!(" (it gave {})", shortened(&output)) };
        let by = format!("{by}: {reason}{gave}");
        let run_node = self.run.node(node);
        let (attempt, changed) = (run_node.attempt, run_node.effects.len() as u64);
        let spec = self.run.graph.step(node.step);
        // What they say that it gave is judged as if the action had said it.
        let judged = !output.is_null() && (spec.verify.is_some() || !spec.expect.is_empty());
        self.emit(Event::Resumed { by: by.clone(), accepted: None })?;
        self.run.memory.dirty.insert(node);
        match (applied, judged) {
            (true, true) => self.emit_node(node, attempt, NodeEvent::Applied { output }),
            (true, false) => {
                self.emit_node(node, attempt, NodeEvent::Succeeded { output, changed })?;
                self.release_lock(node)
            }
            (false, _) => self.emit_node(node, attempt, NodeEvent::NotApplied { by }),
        }
    }
}

/// An output in a line of the journal; the step has all of it.
fn shortened(output: &Value) -> String {
    const SHOWN: usize = 200;
    let text = output.to_string();
    if text.chars().count() <= SHOWN { text } else { text.chars().take(SHOWN).chain(['…']).collect() }
}
