//! [`sleep`]: how an action rests between two looks at the world.
//!
//! In a test of a runbook, simulated time stands still while an action is at work, because the world that it works on is
//! real. Resting is no work: time passes then, or nobody would ever wake up.

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// What holds time still until it is dropped.
type Held = Box<dyn Send>;

/// One call of an action, during which time stands still unless it rests.
struct Still {
    hold: Box<dyn Fn() -> Held + Send + Sync>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    held: Option<Held>,
    /// How many parts of the call rest.
    resting: usize,
}

tokio::task_local! {
    static STILL: Arc<Still>;
}

/// Awaits `call` while time stands still, except where it rests. For whoever executes actions.
pub async fn holding<T>(
    hold: impl Fn() -> Box<dyn Send> + Send + Sync + 'static,
    call: impl Future<Output = T>,
) -> T {
    let held = Some(hold());
    let still = Still { hold: Box::new(hold), state: Mutex::new(State { held, resting: 0 }) };
    STILL.scope(Arc::new(still), call).await
}

/// Rests, as `tokio::time::sleep` does; simulated time passes meanwhile.
pub async fn sleep(duration: Duration) {
    let _resting = STILL.try_with(|still| Resting::of(still.clone())).ok();
    tokio::time::sleep(duration).await;
}

struct Resting(Arc<Still>);

impl Resting {
    fn of(still: Arc<Still>) -> Resting {
        let mut state = still.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.resting += 1;
        state.held = None;
        drop(state);
        Resting(still)
    }
}

impl Drop for Resting {
    fn drop(&mut self) {
        let mut state = self.0.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.resting -= 1;
        if state.resting == 0 {
            state.held = Some((self.0.hold)());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    static HELD: AtomicUsize = AtomicUsize::new(0);

    struct Counted;

    impl Drop for Counted {
        fn drop(&mut self) {
            HELD.fetch_sub(1, Ordering::SeqCst);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn time_is_held_except_while_resting() {
        let hold = || {
            HELD.fetch_add(1, Ordering::SeqCst);
            Box::new(Counted) as Box<dyn Send>
        };
        holding(hold, async {
            assert_eq!(HELD.load(Ordering::SeqCst), 1);
            let look = async {
                tokio::time::sleep(Duration::from_secs(1)).await;
                HELD.load(Ordering::SeqCst)
            };
            let (held, ()) = tokio::join!(look, sleep(Duration::from_secs(2)));
            assert_eq!(held, 0, "it rests");
            assert_eq!(HELD.load(Ordering::SeqCst), 1);
        })
        .await;
        assert_eq!(HELD.load(Ordering::SeqCst), 0);
    }
}
