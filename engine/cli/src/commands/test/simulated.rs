//! Time that stands still while something is at work, and jumps to the next moment when nothing is.
//!
//! Each life of the simulated process has a Tokio runtime of its own, on one thread, with paused time. Such a runtime
//! goes on to the next timer by itself as soon as nothing is left to do, except while a task of its blocking pool is at
//! work: that is what [`Held`] is.

use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farrier_action::Now;
use farrier_exec::Stillness;
use farrier_model::time::Timestamp;
use farrier_store::Clock;
use tokio::runtime::{Handle, Runtime};
use tokio::time::Instant;

/// How long an action may be at work, in real time, before simulated time goes on: one that waits for a timer of its own
/// would wait for ever.
const PATIENCE: Duration = Duration::from_secs(20);

/// The clock of a case.
#[derive(Clone)]
pub(super) struct Simulated(Arc<Mutex<Anchor>>);

struct Anchor {
    /// What it was when the present life began.
    base: Timestamp,
    life: Option<(Handle, Instant)>,
}

impl Simulated {
    pub(super) fn starting(at: Timestamp) -> Simulated {
        Simulated(Arc::new(Mutex::new(Anchor { base: at, life: None })))
    }

    /// The time now.
    pub(super) fn now(&self) -> Timestamp {
        let anchor = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        anchor.base + anchor.elapsed()
    }

    /// A new life, which begins when the last one ended.
    pub(super) fn begin(&self, runtime: &Runtime) {
        let mut anchor = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let elapsed = anchor.elapsed();
        anchor.base += elapsed;
        let _inside = runtime.enter();
        anchor.life = Some((runtime.handle().clone(), Instant::now()));
    }

    pub(super) fn clock(&self) -> Clock {
        let this = self.clone();
        Clock::from_fn(move || this.now())
    }

    pub(super) fn targets_now(&self) -> Now {
        let this = self.clone();
        Now::from_fn(move || this.now())
    }
}

impl Anchor {
    fn elapsed(&self) -> Duration {
        self.life.as_ref().map_or(Duration::ZERO, |(handle, since)| {
            // Threads of plugins have no runtime of their own to ask for the time.
            let _inside = handle.enter();
            since.elapsed()
        })
    }
}

/// A runtime for one life.
pub(super) fn runtime() -> std::io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build()
}

/// Holds the time of the runtime that it is asked in.
#[derive(Debug)]
pub(super) struct Held;

impl Held {
    pub(super) fn hold() -> Box<dyn Send> {
        let (held, released) = mpsc::channel::<()>();
        tokio::task::spawn_blocking(move || {
            // Ends when the sender is dropped.
            let _ = released.recv_timeout(PATIENCE);
        });
        Box::new(held)
    }
}

impl Stillness for Held {
    fn hold(&self) -> Box<dyn Send> {
        Held::hold()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn real_work_takes_no_simulated_time_and_waiting_takes_no_real_time() {
        let runtime = runtime().unwrap();
        let begun: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let time = Simulated::starting(begun);
        time.begin(&runtime);
        let day = Duration::from_secs(86_400);
        runtime.block_on(async {
            let timer = tokio::spawn(tokio::time::sleep(40 * day));
            let held = Held::hold();
            // Work of another thread, of which the runtime knows nothing.
            let (done, finished) = tokio::sync::oneshot::channel();
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(30));
                let _ = done.send(());
            });
            finished.await.unwrap();
            assert_eq!(time.now(), begun, "time stood still");
            drop(held);
            timer.await.unwrap();
            assert!(time.now() >= begun + 40 * day);
        });
        // The next life goes on where this one ended.
        let before = time.now();
        drop(runtime);
        let next = super::runtime().unwrap();
        time.begin(&next);
        assert_eq!(time.now(), before);
    }

    #[test]
    fn an_action_that_rests_lets_time_go_on() {
        let runtime = runtime().unwrap();
        let time = Simulated::starting(Timestamp::UNIX_EPOCH);
        time.begin(&runtime);
        let hour = Duration::from_secs(3600);
        runtime.block_on(farrier_action::rest::holding(Held::hold, farrier_action::rest::sleep(hour)));
        assert!(time.now() >= Timestamp::UNIX_EPOCH + hour);
    }
}
