//! Who is at work on which run in this process, and how to make them look up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farrier_model::RunId;
use tokio::sync::Notify;

/// The runs that tasks of this process drive. A run is driven by one task at a time.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pokes(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    driven: Mutex<HashMap<RunId, Arc<Notify>>>,
    /// Something became due, or a task has ended.
    changed: Notify,
}

impl Pokes {
    /// Registers the caller as the one who drives `run`; nothing when somebody does already.
    pub(crate) fn enter(&self, run: RunId) -> Option<Entered> {
        let mut driven = self.driven();
        if driven.contains_key(&run) {
            return None;
        }
        let notify = Arc::new(Notify::new());
        driven.insert(run, notify.clone());
        Some(Entered { pokes: self.clone(), run, notify })
    }

    pub(crate) fn is_driven(&self, run: RunId) -> bool {
        self.driven().contains_key(&run)
    }

    pub(crate) fn count(&self) -> usize {
        self.driven().len()
    }

    /// Makes whoever drives `run` look up; otherwise somebody may take it up.
    pub(crate) fn poke(&self, run: RunId) {
        match self.driven().get(&run) {
            Some(notify) => notify.notify_one(),
            None => self.0.changed.notify_one(),
        }
    }

    /// Makes whoever takes up what is due look up.
    pub(crate) fn poke_due(&self) {
        self.0.changed.notify_one();
    }

    /// Makes everyone look up: a lock was given back.
    pub(crate) fn poke_all(&self) {
        for notify in self.driven().values() {
            notify.notify_one();
        }
        self.0.changed.notify_one();
    }

    /// Waits until something may have become due.
    pub(crate) async fn changed(&self) {
        self.0.changed.notified().await;
    }

    fn driven(&self) -> MutexGuard<'_, HashMap<RunId, Arc<Notify>>> {
        self.0.driven.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The right to drive a run in this process, until it is dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    pokes: Pokes,
    run: RunId,
    notify: Arc<Notify>,
}

impl Entered {
    /// Waits for a poke; one that came since the last wait counts.
    pub(crate) async fn poked(&self) {
        self.notify.notified().await;
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.pokes.driven().remove(&self.run);
        self.pokes.0.changed.notify_one();
    }
}
