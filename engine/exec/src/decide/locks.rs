//! Locks: asked for in the order of their names, held by the whole run from before its first read to its end, or by one
//! node while it makes its changes.

use farrier_model::{Event, Failure, FailureKind, NodeName, Text};
use farrier_runbook::graph::{Lock, OnFailure};
use farrier_store::Ticket;

use super::{Decider, Step};
use crate::run::{NodeRef, Phase};

impl Decider<'_> {
    /// Whether the run holds all its locks. Asks for the next one; a run that stops needs none.
    pub(super) fn hold_run_locks(&mut self) -> Step<bool> {
        if self.run.graph.locks.is_empty() || self.run.stopping() || self.run.memory.finally_open {
            return Ok(true);
        }
        let names = match self.run_locks() {
            Ok(names) => names,
            Err(failure) => {
                self.stop_with(failure);
                return Ok(true);
            }
        };
        for (name, lock) in names {
            match self.run.locks.get(&(name.clone(), None)) {
                Some(known) if known.fence.is_some() => {}
                Some(known) => {
                    if known.until.is_some_and(|until| until <= self.now) {
                        let failure = not_free(&name);
                        self.emit(Event::LockReleased { lock: name, node: None })?;
                        self.stop_with(failure);
                        return Ok(true);
                    }
                    return Ok(false);
                }
                None => {
                    self.ask_for(name, None, &lock)?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// The locks of the whole run in the order in which they are taken: runs that want the same locks do not wait for each
    /// other in a circle.
    fn run_locks(&mut self) -> Result<Vec<(Text, Lock)>, Failure> {
        let graph = self.run.graph.clone();
        let scope = self.run.key_scope()?;
        let mut names = graph
            .locks
            .iter()
            .map(|lock| Ok((self.run.lock_name(lock, &scope)?, lock.clone())))
            .collect::<Result<Vec<_>, Failure>>()?;
        names.sort_by(|(a, _), (b, _)| a.cmp(b));
        names.dedup_by(|(a, _), (b, _)| a == b);
        Ok(names)
    }

    fn ask_for(&mut self, lock: Text, node: Option<NodeName>, spec: &Lock) -> Step {
        let until = spec.wait.map(|wait| self.now + wait);
        self.decision.tickets = true;
        self.emit(Event::LockAsked { lock, node, capacity: spec.capacity, until })
    }

    pub(super) fn stop_with(&mut self, failure: Failure) {
        if self.run.stop.is_none() {
            self.run.stop = Some(OnFailure::Stop);
            self.run.first_failure = Some(failure);
        }
    }

    /// Whether a node holds the lock of its step, or needs none. Asks for it.
    pub(super) fn holds_lock(&mut self, node: NodeRef) -> Step<Result<bool, Failure>> {
        let graph = self.run.graph.clone();
        let Some(lock) = &graph.step(node.step).lock else { return Ok(Ok(true)) };
        let name = self.run.scope(node).and_then(|scope| self.run.lock_name(lock, &scope));
        let name = match name {
            Ok(name) => name,
            Err(failure) => return Ok(Err(failure)),
        };
        let of = Some(self.run.name(node));
        match self.run.locks.get(&(name.clone(), of.clone())) {
            Some(known) if known.fence.is_some() => Ok(Ok(true)),
            Some(known) => {
                if known.until.is_some_and(|until| until <= self.now) {
                    let failure = not_free(&name);
                    self.emit(Event::LockReleased { lock: name, node: of })?;
                    return Ok(Err(failure));
                }
                if let Some(until) = known.until {
                    self.run.memory.timers.insert((until, node));
                }
                Ok(Ok(false))
            }
            None => {
                self.ask_for(name, of, lock)?;
                Ok(Ok(false))
            }
        }
    }

    /// A node that stood in line: it goes on, gives up, or stands there longer.
    pub(super) fn look_at_locked(&mut self, node: NodeRef) -> Step {
        match self.holds_lock(node)? {
            Ok(false) => Ok(()),
            Ok(true) => {
                self.run.node_mut(node).phase = Phase::Idle;
                self.start(node)
            }
            Err(failure) => {
                self.run.node_mut(node).phase = Phase::Idle;
                self.fail(node, failure, true)
            }
        }
    }

    /// What the store says of the lines that the run stands in.
    pub(super) fn tickets(&mut self, tickets: &[Ticket]) -> Step {
        for ticket in tickets.iter().filter(|ticket| ticket.held_since.is_some()) {
            let key = (ticket.lock.clone(), ticket.node.clone());
            if self.run.locks.get(&key).is_none_or(|known| known.fence.is_some()) {
                continue;
            }
            let (lock, node) = key;
            self.emit(Event::LockTaken { lock, node, fence: ticket.number })?;
            if let Some(node) = ticket.node.as_ref().and_then(|name| self.run.find(name)) {
                if ticket.held_since != Some(ticket.asked_at) {
                    // What was planned before the wait is planned again.
                    self.run.node_mut(node).planned = None;
                }
                self.run.memory.dirty.insert(node);
            }
        }
        Ok(())
    }

    /// Gives the lock of a node back once its changes are made, or will not be.
    pub(super) fn release_lock(&mut self, node: NodeRef) -> Step {
        if self.run.locks.is_empty() || self.run.graph.step(node.step).lock.is_none() {
            return Ok(());
        }
        let of = Some(self.run.name(node));
        let held: Vec<Text> =
            self.run.locks.keys().filter(|(_, node)| *node == of).map(|(lock, _)| lock.clone()).collect();
        // Another node of this run may be the next in line.
        self.decision.tickets |= !held.is_empty();
        for lock in held {
            self.emit(Event::LockReleased { lock, node: of.clone() })?;
        }
        Ok(())
    }
}

fn not_free(lock: &str) -> Failure {
    Failure::new(FailureKind::Lock, format!("lock `{lock}` was not free in time"))
        .help("`farrier locks` shows who holds it")
}
