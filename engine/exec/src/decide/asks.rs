//! What people ask of a run: whether it may be granted, and what follows.

use farrier_model::expr::Template;
use farrier_model::time::Timestamp;
use farrier_model::{Ask, Digest, Event, NodeState, Request, Subject, Text, Value};
use farrier_runbook::authored::SignalThen;
use farrier_runbook::graph::Signal;

use super::{Decider, Step};
use crate::run::{ApprovalRun, NodeRef, Run};

/// Why a run does not accept what was asked of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// It makes no sense where the run stands.
    #[error("{0}")]
    Now(String),
    /// It is not for this person to ask.
    #[error("{0}")]
    Person(String),
}

/// Something that makes no sense where the run stands.
pub(super) fn now<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Now(why.into()))
}

/// Something that is not for this person.
pub(super) fn person<T>(why: impl Into<String>) -> Result<T, Refusal> {
    Err(Refusal::Person(why.into()))
}

impl Run {
    /// Whether `by` may ask this of the run now; the reason when not. The owner asks again when it takes a request in.
    ///
    /// # Errors
    /// One sentence: what stands against it, and what would help.
    pub fn may(&self, by: &str, ask: &Ask, at: Timestamp) -> Result<(), Refusal> {
        if self.state.is_final() {
            return now(format!("the run has ended: {}", self.state.name()));
        }
        match ask {
            Ask::Approve { subject, digest, .. } => {
                let asked = self.open_approval(subject, digest, at)?;
                if Some(by) == self.requested_by() {
                    return person(format!("{by} asked for this run, and somebody else has to approve it"));
                }
                self.is_among(by, &asked.who, "approve it")?;
                if asked.approved.iter().any(|known| known == by) {
                    return person(format!("{by} has approved it already, and another person has to"));
                }
                Ok(())
            }
            Ask::Reject { subject, digest, .. } => {
                let asked = self.open_approval(subject, digest, at)?;
                if Some(by) == self.requested_by() {
                    return person(format!("{by} asked for this run; `farrier cancel` takes it back"));
                }
                self.is_among(by, &asked.who, "reject it")
            }
            Ask::Signal { name, .. } => {
                let signal = self.signal(name)?;
                self.may_send(by, signal)?;
                if let Some(until) = signal.until
                    && self.has_begun(NodeRef::step(until))
                {
                    let step = &self.graph.step(until).id;
                    return now(format!("`{name}` is accepted until step `{step}` begins, and it has begun"));
                }
                if let Some(known) = self.signals.get(name) {
                    return now(format!("`{name}` has been sent already, by {}", known.by));
                }
                match signal.then {
                    SignalThen::Undo | SignalThen::Cancel => self.may_stop(),
                    SignalThen::Continue => Ok(()),
                }
            }
            Ask::Withdraw { .. } if self.writes_allowed => now("the run has begun to write, and goes on"),
            Ask::Cancel { .. } | Ask::Withdraw { .. } => self.may_stop(),
            Ask::Resume { accepted } => match (&self.parked, &self.memory.was_parked, accepted) {
                (None, None, _) => now("the run is not parked"),
                (_, _, Some(guard)) if self.asking_guard.as_ref() != Some(guard) => {
                    now(format!("no guard `{guard}` asks"))
                }
                _ => Ok(()),
            },
            Ask::Resolve { node, applied, output, reason } => {
                if reason.trim().is_empty() {
                    return now("say how you know");
                }
                self.word(by, node, *applied, output.as_ref()).map(drop)
            }
        }
    }

    fn may_stop(&self) -> Result<(), Refusal> {
        if self.is_committed() {
            return now("the run has passed its commit point and only goes forward");
        }
        if self.is_cancelled() {
            return now("the run is being cancelled already");
        }
        Ok(())
    }

    fn open_approval(
        &self,
        subject: &Subject,
        digest: &Digest,
        at: Timestamp,
    ) -> Result<&ApprovalRun, Refusal> {
        let asked = self.approvals.get(subject).ok_or_else(|| {
            Refusal::Now(match subject {
                Subject::Run => "the run does not wait for an approval".to_owned(),
                Subject::Node(node) => format!("step `{node}` does not wait for an approval"),
            })
        })?;
        if let Some((who, _)) = &asked.rejected {
            return now(format!("it was rejected by {who}"));
        }
        if asked.is_granted() {
            return now(format!("it was approved by {}", asked.approved.join(", ")));
        }
        if asked.expires.is_some_and(|expires| expires <= at) {
            return now("it is too late: the time for an answer is over");
        }
        if asked.plan.digest != *digest {
            return now(format!(
                "the answer is for plan {}, and the run asks about plan {}",
                digest.short(),
                asked.plan.digest.short()
            ));
        }
        Ok(asked)
    }

    fn signal(&self, name: &Text) -> Result<&Signal, Refusal> {
        self.graph.signals.iter().find(|signal| signal.name == *name).ok_or_else(|| {
            let known: Vec<String> =
                self.graph.signals.iter().map(|signal| format!("`{}`", signal.name)).collect();
            let known = if known.is_empty() { "none".into() } else { known.join(", ") };
            Refusal::Now(format!("`{}` accepts no signal `{name}`; it accepts: {known}", self.graph.name))
        })
    }

    /// Whether `by` is one of `who`, or in one of the environment's groups of that name. Nobody named means anybody.
    fn is_among(&self, by: &str, who: &[Text], what: &str) -> Result<(), Refusal> {
        let in_group = |name: &Text| {
            self.people.get(name).is_some_and(|group| group.iter().any(|member| **member == *by))
        };
        if who.is_empty() || who.iter().any(|name| **name == *by || in_group(name)) {
            return Ok(());
        }
        person(format!("{by} may not {what}: that is for {}", who.join(", ")))
    }

    /// Whether `by` may send the signal. What an expression gives are people: a name out of the world is never a group. One
    /// that cannot be told yet, or is wrong, names nobody.
    fn may_send(&self, by: &str, signal: &Signal) -> Result<(), Refusal> {
        let scope = self.present_scope().unwrap_or_default();
        let (mut named, mut people, mut untold) = (Vec::new(), Vec::new(), Vec::new());
        for who in &signal.who {
            match who {
                Template::Const(name) => named.extend(name.as_str().map(Text::from)),
                Template::Expr(expr) => match expr.eval(&scope) {
                    Ok(Value::Null) => {}
                    Ok(Value::Text(name)) => people.push(name),
                    Ok(Value::List(names)) => {
                        people.extend(names.iter().filter_map(Value::as_str).map(Text::from));
                    }
                    _ => untold.push(expr.source().trim()),
                },
                _ => {}
            }
        }
        if people.iter().any(|name| **name == *by) {
            return Ok(());
        }
        if !named.is_empty() || signal.who.is_empty() {
            match self.is_among(by, &named, "send it") {
                Err(_) if !people.is_empty() || !untold.is_empty() => {}
                answer => return answer,
            }
        }
        named.append(&mut people);
        let of = if named.is_empty() { "nobody".into() } else { named.join(", ") };
        let more = untold.first().map(|source| format!("; whom `{source}` names is not known now"));
        person(format!("{by} may not send it: that is for {of}{}", more.unwrap_or_default()))
    }

    fn has_begun(&self, node: NodeRef) -> bool {
        let begun = |state: NodeState| !matches!(state, NodeState::Pending | NodeState::Blocked);
        begun(self.node(node).state)
            || self
                .step(node.step)
                .items
                .as_ref()
                .is_some_and(|items| items.nodes.iter().any(|item| begun(item.state)))
    }
}

impl Decider<'_> {
    pub(super) fn request(&mut self, request: Request) -> Step {
        self.decision.taken.push(request.id);
        let Request { by, ask, .. } = request;
        if let Err(refusal) = self.run.may(&by, &ask, self.now) {
            return self.emit(Event::RequestRefused { by, what: ask.what(), why: refusal.to_string() });
        }
        match ask {
            Ask::Approve { subject, digest, reason } => {
                self.emit(Event::Approved { subject: subject.clone(), by, digest, reason })?;
                self.look_again(&subject);
                Ok(())
            }
            Ask::Reject { subject, digest, reason } => {
                self.emit(Event::Rejected { subject: subject.clone(), by, digest, reason })?;
                self.look_again(&subject);
                Ok(())
            }
            Ask::Signal { name, reason } => {
                let then = self.run.graph.signals.iter().find(|s| s.name == name).map(|s| s.then);
                let received =
                    Event::SignalReceived { name: name.clone(), by: by.clone(), reason: reason.clone() };
                self.emit(received)?;
                let why = Some(match reason {
                    Some(reason) => format!("signal `{name}`: {reason}"),
                    None => format!("signal `{name}`"),
                });
                match then {
                    Some(SignalThen::Undo) => self.cancel(by, true, why),
                    Some(SignalThen::Cancel) => self.cancel(by, false, why),
                    Some(SignalThen::Continue) | None => {
                        self.look_at_waiting();
                        Ok(())
                    }
                }
            }
            Ask::Cancel { undo, reason } => self.cancel(by, undo, reason),
            Ask::Withdraw { reason } => self.cancel(by, false, Some(reason)),
            Ask::Resume { accepted } => {
                self.run.memory.unparked = true;
                self.emit(Event::Resumed { by, accepted })
            }
            Ask::Resolve { node, applied, output, reason } => {
                let word = self.run.word(&by, &node, applied, output.as_ref());
                // It has been judged above.
                word.map_or(Ok(()), |word| self.attest(word, reason))
            }
        }
    }

    fn look_again(&mut self, subject: &Subject) {
        if let Subject::Node(name) = subject
            && let Some(node) = self.run.find(name)
        {
            self.run.memory.dirty.insert(node);
        }
    }

    /// Somebody wants the run to stop. What is at work ends; what waits does not come to pass.
    pub(super) fn cancel(&mut self, by: String, undo: bool, reason: Option<String>) -> Step {
        if self.run.is_committed() {
            let what = Ask::Cancel { undo, reason }.what();
            let why = "the run has passed its commit point and only goes forward".into();
            return self.emit(Event::RequestRefused { by, what, why });
        }
        self.run.memory.unparked = true;
        self.emit(Event::CancelRequested { by, undo, reason })?;
        let nodes: Vec<NodeRef> = self.run.nodes().collect();
        for node in nodes {
            let child =
                matches!(self.run.graph.step(node.step).uses, farrier_runbook::graph::Uses::Runbook { .. });
            let state = self.run.node(node).state;
            if child && matches!(state, NodeState::Running | NodeState::Waiting) {
                self.decision.cancel.push(self.run.name(node));
            }
        }
        self.look_at_waiting();
        Ok(())
    }
}
