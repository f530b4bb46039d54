//! What the store's tests share: events in short, and a clock that stands still until it is moved.
#![allow(unreachable_pub, reason = "a module of test binaries")]
#![allow(dead_code, reason = "each test binary uses its own part")]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use farrier_model::event::{ParkCause, Trigger};
use farrier_model::time::Timestamp;
use farrier_model::{Digest, Effect, Event, Failure, FailureKind, NodeEvent, RunId, RunState, Value};
use farrier_store::{Clock, NewRun};

/// Milliseconds since 1970, moved by the test alone.
#[derive(Clone)]
pub struct TestClock(Arc<AtomicI64>);

impl TestClock {
    pub fn new() -> TestClock {
        TestClock(Arc::new(AtomicI64::new(1_800_000_000_000)))
    }

    pub fn advance_ms(&self, ms: i64) {
        self.0.fetch_add(ms, Ordering::SeqCst);
    }

    /// So many milliseconds after the clock's start.
    #[expect(clippy::unused_self, reason = "reads as a question to the clock")]
    pub fn at(&self, ms: i64) -> Timestamp {
        Timestamp::from_millisecond(1_800_000_000_000 + ms).unwrap()
    }

    pub fn clock(&self) -> Clock {
        let now = self.0.clone();
        Clock::from_fn(move || Timestamp::from_millisecond(now.load(Ordering::SeqCst)).unwrap())
    }
}

pub fn run_id(number: u16) -> RunId {
    let [high, low] = number.to_be_bytes();
    RunId::at(1_800_000_000_000, [0, 0, 0, 0, 0, 0, 0, 0, high, low])
}

pub fn new_run(number: u16) -> NewRun {
    let bundle = Digest::of("bundle");
    NewRun {
        id: run_id(number),
        runbook: "sweep".into(),
        bundle,
        environment: "lab".into(),
        title: format!("sweep {number}").into(),
        parent: None,
        live_key: None,
        created: Event::Created {
            runbook: "sweep".into(),
            bundle,
            environment: "lab".into(),
            inputs: Value::Null,
            trigger: Trigger::Manual { by: "me".into() },
            plan: None,
        },
    }
}

pub fn node(step: &str, attempt: u32, event: NodeEvent) -> Event {
    Event::Node { node: step.parse().unwrap(), attempt, event }
}

pub fn intent(step: &str, attempt: u32) -> Event {
    let inputs = Value::map([("path", Value::text("a/b"))]);
    let event = NodeEvent::Intent {
        inputs,
        changes: Vec::new(),
        effect: Effect::Once,
        effect_id: format!("effect-{step}"),
    };
    node(step, attempt, event)
}

pub fn undo_intent(step: &str, attempt: u32) -> Event {
    node(step, attempt, NodeEvent::UndoIntent { effect_id: format!("undo-{step}") })
}

pub fn succeeded(step: &str, attempt: u32) -> Event {
    node(step, attempt, NodeEvent::Succeeded { output: Value::Int(7), changed: 0 })
}

pub fn large(step: &str, size: usize) -> Event {
    node(step, 1, NodeEvent::Succeeded { output: Value::text("tools ".repeat(size / 6)), changed: 0 })
}

pub fn failed(step: &str, attempt: u32, retry: bool) -> Event {
    let failure = Failure::new(FailureKind::Exit, "exit status 1");
    let retry_at = retry.then(|| Timestamp::from_millisecond(1_800_000_001_000).unwrap());
    node(step, attempt, NodeEvent::Failed { failure, retry_at, continued: false })
}

pub fn parked(reason: &str) -> Event {
    Event::Parked { reason: reason.into(), cause: ParkCause::InDoubt, guard: None, plan: None }
}

pub fn finished(state: RunState) -> Event {
    let failure = (state != RunState::Succeeded).then(|| Failure::new(FailureKind::Exit, "step `a` failed"));
    Event::Finished { state, outputs: Value::Null, failure }
}
