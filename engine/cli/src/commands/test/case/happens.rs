//! What happens to a run while a case goes on: people who ask something of it, and the world that changes.

use std::time::Duration;

use farrier_exec::driver::Start;
use farrier_exec::{Driver, DriverError, Refusal, Run};
use farrier_model::time::format_duration;
use farrier_model::{Ask, Digest, NodeName, NodeState, RunId, Subject};
use farrier_runbook::Node;
use farrier_runbook::testfile::{EventAt, Happens};
use farrier_store::Fault;

use super::super::compare;
use super::{Course, Then};

impl Course<'_> {
    /// The next event whose time has come, or whose step has succeeded while nobody drove the run.
    pub(super) async fn take_due(
        &mut self,
        start: &Start,
        id: RunId,
    ) -> Result<Option<EventAt>, DriverError> {
        if self.next_event().is_some_and(|at| at <= self.now()) {
            return Ok(self.take_next());
        }
        self.take_after(start, id).await
    }

    pub(super) fn take_next(&mut self) -> Option<EventAt> {
        let event = self.events.get(self.next).cloned()?;
        self.next += 1;
        Some(event)
    }

    /// The next event whose step has succeeded.
    pub(super) async fn take_after(
        &mut self,
        start: &Start,
        id: RunId,
    ) -> Result<Option<EventAt>, DriverError> {
        if self.after.is_empty() {
            return Ok(None);
        }
        let run = self.replay(id, start).await?;
        let succeeded = |event: &EventAt| {
            let step = event.after.as_ref().and_then(|step| run.find(&NodeName::step(step.as_str())));
            step.is_some_and(|step| run.node(step).state == NodeState::Succeeded)
        };
        Ok(self.after.iter().position(succeeded).map(|at| self.after.remove(at)))
    }

    /// An event happens.
    pub(super) async fn happen(
        &mut self,
        event: EventAt,
        driver: &Driver,
        start: &Start,
        id: RunId,
    ) -> Result<Then, DriverError> {
        let at = match (&event.at, &event.after) {
            (_, Some(step)) => format!("after `{}`", step.value),
            (at, None) => format!("at {}", format_duration(at.as_ref().map_or(Duration::ZERO, |at| at.0))),
        };
        match event.happens() {
            Some(Happens::Crash) => return Ok(Then::Die),
            Some(Happens::Act(call)) => {
                if let Err(failure) = self.act(call, start).await {
                    self.differences.push(format!("event {at}: `{}` failed: {failure}", *call.uses));
                }
                return Ok(Then::Nothing);
            }
            _ => {}
        }
        let by = event.by.clone().unwrap_or_else(|| "somebody".into());
        let run = self.replay(id, start).await?;
        let Some((ask, then)) = ask_of(&event, &run) else { return Ok(Then::Nothing) };
        let what = ask.as_ref().map_or_else(|| "resume".to_owned(), Ask::what);
        let answer = match &ask {
            Some(ask) => run.may(&by, ask, self.now()),
            None if run.parked.is_none() => Err(Refusal::Now("the run is not parked".into())),
            None => Ok(()),
        };
        let refusal = answer.err().map(|refusal| refusal.to_string());
        // A run that fails on purpose takes another way, where an event may make no sense.
        let strict = self.trouble.failing.is_none();
        match (&event.refused, refusal) {
            (Some(wanted), Some(found)) => {
                if strict && !found.contains(wanted.as_str()) {
                    let place = format!("event {at}: {what}: refused");
                    self.differences.push(compare::differ(&place, wanted, &found));
                }
                return Ok(Then::Nothing);
            }
            (Some(wanted), None) if strict => {
                self.differences.push(format!(
                    "event {at}: {what} by {by} was accepted; expected it to be refused with `{}`",
                    wanted.value
                ));
            }
            (None, Some(found)) => {
                if strict {
                    self.differences.push(format!("event {at}: {what} by {by} was refused: {found}"));
                }
                return Ok(Then::Nothing);
            }
            (_, None) => {}
        }
        if let Some(ask) = ask
            && let Err(error) = driver.ask(id, &by, ask).await
        {
            // They ask again when their first request never arrived.
            if matches!(self.trouble.crash, Some((_, Fault::CrashBefore))) {
                match event.after {
                    Some(_) => self.after.push(event),
                    None => self.next -= 1,
                }
            }
            return Err(error);
        }
        Ok(then)
    }
}

/// What an event asks of the run, and what has to follow.
fn ask_of(event: &EventAt, run: &Run) -> Option<(Option<Ask>, Then)> {
    let reason = event.reason.clone();
    let drive = || Then::Drive { unpark: false, accepted: Vec::new() };
    // A name that is none is refused by the run.
    let subject = |step: &str| step.parse().unwrap_or(Subject::Run);
    let digest = |subject: &Subject| {
        run.approvals.get(subject).map_or_else(|| Digest::of(""), |asked| asked.plan.digest)
    };
    let ask = match event.happens()? {
        Happens::Signal(name) => Ask::Signal { name: name.as_str().into(), reason },
        Happens::Approve(step) => {
            let subject = subject(step);
            Ask::Approve { digest: digest(&subject), subject, reason }
        }
        Happens::Reject(step) => {
            let subject = subject(step);
            Ask::Reject { digest: digest(&subject), subject, reason }
        }
        Happens::Cancel { undo } => Ask::Cancel { undo, reason },
        Happens::Resolve { step, applied, output } => Ask::Resolve {
            node: step.parse().unwrap_or_else(|_| NodeName::step(step.as_str())),
            applied,
            output: output.map(Node::to_value),
            reason: reason.unwrap_or_else(|| "they looked".into()),
        },
        Happens::Resume { accept_guard } => {
            let accepted = run.asking_guard.iter().filter(|_| accept_guard).cloned().collect();
            return Some((None, Then::Drive { unpark: true, accepted }));
        }
        Happens::Act(_) | Happens::Crash => return None,
    };
    Some((Some(ask), drive()))
}
