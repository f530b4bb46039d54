//! [`Watched`]: the set of now, which a reload replaces as a whole or not at all.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use farrier_action::ActionRegistry;
use farrier_model::time::Timestamp;
use tokio::sync::watch;

use crate::{ProjectError, Set};

/// Why the files on disk are not the set that is in use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trouble {
    /// Every mistake with its place, as people read it.
    pub text: String,
    /// Since when.
    pub since: Timestamp,
}

/// The set of now. Cloning shares it.
#[derive(Clone)]
pub struct Watched(Arc<Shared>);

struct Shared {
    root: PathBuf,
    registry: Arc<ActionRegistry>,
    served: Vec<String>,
    sets: watch::Sender<Arc<Set>>,
    /// Held while a set is made, so that sets follow each other by number.
    reloading: Mutex<Reloads>,
}

#[derive(Default)]
struct Reloads {
    trouble: Option<Trouble>,
    failures: u64,
}

impl Watched {
    /// The project around `root` as it is now; `served` as in [`Set::load`].
    ///
    /// # Errors
    /// As [`Set::load`]: a service does not begin with a broken project.
    pub fn open(
        root: &std::path::Path,
        registry: Arc<ActionRegistry>,
        served: Vec<String>,
    ) -> Result<Watched, ProjectError> {
        let set = Set::load(root, &registry, &served, 1)?;
        let root = set.workspace.root.clone();
        let sets = watch::Sender::new(Arc::new(set));
        Ok(Watched(Arc::new(Shared { root, registry, served, sets, reloading: Mutex::default() })))
    }

    /// The set of now. Whoever works on one question holds on to the answer.
    pub fn current(&self) -> Arc<Set> {
        self.0.sets.borrow().clone()
    }

    /// Is told of every new set.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Set>> {
        self.0.sets.subscribe()
    }

    /// What every set is compiled against.
    pub fn registry(&self) -> &Arc<ActionRegistry> {
        &self.0.registry
    }

    /// Reads all files again, which takes a moment of a thread. True when there is a new set; false when the texts are those
    /// of the set in use.
    ///
    /// # Errors
    /// As [`Set::load`], and a set whose runs would be kept elsewhere. The old set stays in use, and
    /// [`trouble`](Watched::trouble) says why until a reload succeeds.
    pub fn reload(&self, now: Timestamp) -> Result<bool, ProjectError> {
        let mut reloads = self.reloads();
        let old = self.current();
        let loaded = Set::load(&self.0.root, &self.0.registry, &self.0.served, old.number + 1);
        let made = loaded.and_then(|set| {
            if set.data_dir == old.data_dir {
                return Ok(set);
            }
            Err(ProjectError::NotYet(format!(
                "runs would be kept in {}, and this process keeps them in {}; start it again",
                set.data_dir.display(),
                old.data_dir.display()
            )))
        });
        match made {
            Ok(set) => {
                reloads.trouble = None;
                let is_new = set.digest != old.digest;
                if is_new {
                    self.0.sets.send_replace(Arc::new(set));
                }
                Ok(is_new)
            }
            Err(error) => {
                let since = reloads.trouble.as_ref().map_or(now, |trouble| trouble.since);
                reloads.trouble = Some(Trouble { text: said(&error), since });
                reloads.failures += 1;
                Err(error)
            }
        }
    }

    /// What is wrong with the files on disk, when they could not replace the set in use.
    pub fn trouble(&self) -> Option<Trouble> {
        self.reloads().trouble.clone()
    }

    /// How many reloads have failed.
    pub fn failures(&self) -> u64 {
        self.reloads().failures
    }

    fn reloads(&self) -> MutexGuard<'_, Reloads> {
        self.0.reloading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An error with its causes, in one text.
fn said(error: &ProjectError) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text
}
