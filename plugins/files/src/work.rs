//! Long work with files, in a thread of its own that can be told to stop.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farrier_action::ReadCx;
use farrier_model::{Failure, FailureKind};

/// So many things are done between two words on how far it is.
const SOME: u64 = 1 << 10;

/// The hand on the brake of one piece of work.
pub(crate) struct Work {
    stopped: Arc<AtomicBool>,
    /// Whom it tells how far it has come.
    told: Option<ReadCx>,
    #[cfg(test)]
    hook: Option<faults::Hook>,
}

/// Sets the brake when nobody waits for the result any more: the step was cancelled or took too long.
struct StopOnDrop(Arc<AtomicBool>);

impl Drop for StopOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Work {
    fn new(stopped: Arc<AtomicBool>, told: Option<ReadCx>) -> Work {
        Work {
            stopped,
            told,
            #[cfg(test)]
            hook: faults::EVERYWHERE.get().cloned(),
        }
    }

    /// Fails when the work is to stop.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.stopped.load(Ordering::Relaxed) {
            return Err(Failure::new(FailureKind::Timeout, "it was told to stop"));
        }
        Ok(())
    }

    /// Says how far it has come, see [`ReadCx::progress`].
    pub(crate) fn tell(&self, done: u64, total: u64, text: impl FnOnce() -> String) {
        if let Some(told) = &self.told {
            told.progress(done as usize, total as usize, text);
        }
    }

    /// The same of things that are many: every now and then.
    pub(crate) fn tell_of_many(&self, done: u64, total: u64, text: impl FnOnce() -> String) {
        if done.is_multiple_of(SOME) {
            self.tell(done, total, text);
        }
    }

    /// A place between two steps where a crash leaves something different behind. Tests crash at each of them.
    pub(crate) fn point(&self, name: &'static str) -> Result<(), Failure> {
        #[cfg(test)]
        if let Some(hook) = &self.hook {
            hook(name)?;
        }
        let _ = name;
        self.check()
    }
}

/// Does the work in a thread that may wait for disks.
pub(crate) async fn do_blocking<T: Send + 'static>(
    work: impl FnOnce(&Work) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    in_a_thread(None, work).await
}

/// The same for a step that tells how far it has come.
pub(crate) async fn do_telling<T: Send + 'static>(
    cx: &ReadCx,
    work: impl FnOnce(&Work) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    in_a_thread(Some(cx.clone()), work).await
}

async fn in_a_thread<T: Send + 'static>(
    told: Option<ReadCx>,
    work: impl FnOnce(&Work) -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    let stop = StopOnDrop(Arc::default());
    let stopped = stop.0.clone();
    let result = tokio::task::spawn_blocking(move || work(&Work::new(stopped, told))).await;
    drop(stop);
    result.unwrap_or_else(|error| {
        Err(Failure::new(FailureKind::Internal, format!("work with files ended early: {error}")).in_doubt())
    })
}

#[cfg(test)]
pub(crate) mod faults {
    //! Crashes at chosen points.

    use std::sync::OnceLock;
    use std::sync::atomic::AtomicUsize;

    use super::{Arc, Failure, FailureKind, Ordering, Work};

    pub(crate) type Hook = Arc<dyn Fn(&'static str) -> Result<(), Failure> + Send + Sync>;

    /// Of all work of this process: only processes that are there to be killed set it.
    pub(crate) static EVERYWHERE: OnceLock<Hook> = OnceLock::new();

    impl Work {
        /// Work with a hook at its points.
        pub(crate) fn hooked(hook: Hook) -> Work {
            Work { stopped: Arc::default(), told: None, hook: Some(hook) }
        }

        /// Work that ends at its `nth` point, counted from 0, as if the process had died there.
        pub(crate) fn dying_at(nth: usize) -> Work {
            let count = AtomicUsize::new(0);
            Work::hooked(Arc::new(move |name| {
                if count.fetch_add(1, Ordering::Relaxed) < nth {
                    return Ok(());
                }
                Err(Failure::new(FailureKind::Internal, format!("died at `{name}`")))
            }))
        }
    }
}
