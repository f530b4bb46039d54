//! What a case puts between the driver and the world, and what it looks at after every append.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use farrier_action::ActionRegistry;
use farrier_exec::{Interpose, Run, StandIn, Witness};
use farrier_model::{Effect, Failure, FailureKind, NodeName, Text};
use farrier_runbook::testfile::{self, Test};
use farrier_store::{MemoryStore, Store, check_run};
use tokio::sync::{mpsc, oneshot};

use super::sandbox::{Sandbox, Tree};

/// A node of the case's run, or of a run that it starts: runs of one runbook are not told apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) runbook: Text,
    pub(super) node: NodeName,
}

/// A node that fails on purpose.
#[derive(Debug, Clone)]
pub(super) struct Failing {
    pub(super) at: Place,
    /// Every time, and not just the first.
    pub(super) for_good: bool,
}

/// The case's word on what is not executed, and a ledger of what was.
pub(super) struct Between {
    registry: Arc<ActionRegistry>,
    sandbox: Arc<Sandbox>,
    stand_ins: HashMap<String, StandIn>,
    failing: Option<Failing>,
    has_failed: AtomicBool,
    /// Whether the ledger is kept.
    looks: bool,
    ledger: Mutex<HashMap<NodeName, Begun>>,
}

struct Begun {
    before: Tree,
    done: bool,
}

impl Between {
    pub(super) fn of(
        registry: &Arc<ActionRegistry>,
        sandbox: &Arc<Sandbox>,
        test: &Test,
        failing: Option<Failing>,
        looks: bool,
    ) -> Between {
        let stand_ins = test.actions.iter().map(|(name, stand_in)| {
            let stand_in = match stand_in {
                testfile::StandIn::Fail(message) => {
                    StandIn::Fail(Failure::new(FailureKind::Refused, message.to_string()))
                }
                testfile::StandIn::Output(output) => StandIn::Output(output.to_value()),
            };
            (name.to_string(), stand_in)
        });
        Between {
            registry: registry.clone(),
            sandbox: sandbox.clone(),
            stand_ins: stand_ins.collect(),
            failing,
            has_failed: AtomicBool::new(false),
            looks,
            ledger: Mutex::default(),
        }
    }

    /// Whether the last attempt at `node` changed the world, as far as a person who looks at it can tell.
    pub(super) fn happened(&self, node: &NodeName) -> bool {
        let ledger = self.ledger.lock().unwrap_or_else(PoisonError::into_inner);
        // What was never begun did not happen: the process died before it handed the work out.
        ledger.get(node).is_some_and(|begun| begun.done || begun.before != self.sandbox.tree())
    }

    fn reads(&self, action: &str) -> bool {
        self.registry.catalog().actions.get(action).is_some_and(|spec| spec.effect == Effect::Read)
    }
}

impl Interpose for Between {
    fn instead_of(&self, runbook: &str, node: &NodeName, action: &str, applies: bool) -> Option<StandIn> {
        if let Some(failing) = &self.failing
            && failing.at.node == *node
            && *failing.at.runbook == *runbook
            && applies != self.reads(action)
            && (failing.for_good || !self.has_failed.swap(true, Ordering::Relaxed))
        {
            let message = "it fails on purpose";
            return Some(StandIn::Fail(Failure::new(FailureKind::Unreachable, message)));
        }
        self.stand_ins
            .get(&node.to_string())
            .or_else(|| self.stand_ins.get(&*node.step))
            .or_else(|| self.stand_ins.get(action))
            .cloned()
    }

    fn begins(&self, node: &NodeName) {
        if self.looks {
            let begun = Begun { before: self.sandbox.tree(), done: false };
            self.ledger.lock().unwrap_or_else(PoisonError::into_inner).insert(node.clone(), begun);
        }
    }

    fn has_applied(&self, node: &NodeName) {
        if let Some(begun) = self.ledger.lock().unwrap_or_else(PoisonError::into_inner).get_mut(node) {
            begun.done = true;
        }
    }
}

/// Where a run stands still after each append, as long as there is somebody who lets it pass.
#[derive(Clone, Default)]
pub(super) struct Gate(Arc<Mutex<Option<Passes>>>);

/// Asks to pass, one at a time.
pub(super) type Passes = mpsc::UnboundedSender<oneshot::Sender<()>>;

/// Somebody lets runs pass until this is dropped.
pub(super) struct Opened(Gate);

impl Gate {
    /// Those who ask are sent to `passes`; without it, everybody passes.
    pub(super) fn open(&self, passes: Option<Passes>) -> Opened {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = passes;
        Opened(self.clone())
    }

    async fn pass(&self) {
        let passes = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let (pass, passed) = oneshot::channel();
        if passes.is_some_and(|passes| passes.send(pass).is_ok()) {
            // Whoever lets it pass may be gone: then there is nothing to wait for.
            passed.await.ok();
        }
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Checks after every append that the run is what its journal says, and that the journal keeps the rules.
pub(super) struct Invariants {
    store: MemoryStore,
    broken: Arc<Mutex<Vec<String>>>,
    gate: Gate,
}

impl Invariants {
    pub(super) fn new(store: MemoryStore, broken: Arc<Mutex<Vec<String>>>, gate: Gate) -> Invariants {
        Invariants { store, broken, gate }
    }

    fn breaks(&self, message: String) {
        let mut broken = self.broken.lock().unwrap_or_else(PoisonError::into_inner);
        // What follows from the first ones says nothing new.
        if broken.len() < 3 {
            broken.push(message);
        }
    }
}

#[async_trait]
impl Witness for Invariants {
    async fn appended(&self, run: &Run) {
        self.look(run).await;
        self.gate.pass().await;
    }
}

impl Invariants {
    async fn look(&self, run: &Run) {
        // A store that has died meanwhile is found by whoever writes next.
        let (Ok(journal), Ok(Some(row))) = (self.store.journal(run.id).await, self.store.run(run.id).await)
        else {
            return;
        };
        let Some(last) = journal.last() else { return };
        let event = match &last.event {
            farrier_model::Event::Node { node, event, .. } => format!("`{}` of `{node}`", event.name()),
            event => format!("`{}`", event.name()),
        };
        let place = format!("after event {} ({event}) of `{}`", last.seq, run.graph.name);
        for violation in check_run(&row, &journal) {
            self.breaks(format!("journal: {place}: {violation}"));
        }
        match Run::replay(run.id, run.graph.clone(), &journal) {
            Err(error) => self.breaks(format!("journal: {place}: it cannot be replayed: {error}")),
            Ok(again) => {
                let (live, again) = (shown(run), shown(&again));
                for ((name, live), (_, again)) in live.iter().zip(&again) {
                    if live != again {
                        self.breaks(format!(
                            "journal: {place}: {name} is {live}, and replayed from the journal {again}"
                        ));
                    }
                }
                if live.len() != again.len() {
                    self.breaks(format!(
                        "journal: {place}: there are {} facts, and {} replayed from the journal",
                        live.len(),
                        again.len()
                    ));
                }
            }
        }
    }
}

/// Everything that people are shown of a run.
fn shown(run: &Run) -> Vec<(String, String)> {
    let mut facts = vec![
        ("its state".to_owned(), run.state.name().to_owned()),
        ("its outputs".to_owned(), run.outputs.to_json()),
        ("its failure".to_owned(), format!("{:?}", run.failure)),
        ("what parked it".to_owned(), format!("{:?}", run.parked)),
        ("what it waits for".to_owned(), format!("{:?}", run.suspended)),
        ("the number of changes".to_owned(), run.changed().to_string()),
        ("its locks".to_owned(), format!("{:?}", run.locks)),
        ("its signals".to_owned(), format!("{:?}", run.signals)),
    ];
    for node in run.journaled_nodes() {
        let name = run.name(node);
        let node = run.node(node);
        let fact = format!(
            "{} (attempt {}, changed {}, output {}, failure {:?}, again at {:?}, waits for {:?}, reason {:?})",
            node.state.name(),
            node.attempt,
            node.changed,
            node.output.as_ref().map_or_else(|| "none".to_owned(), farrier_model::Value::to_json),
            node.failure.as_ref().map(ToString::to_string),
            node.retry_at,
            node.wait,
            node.reason,
        );
        facts.push((format!("`{name}`"), fact));
    }
    facts
}
