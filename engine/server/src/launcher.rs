//! Finds what stored runs need: their texts in the store, their environment in the set of now.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use farrier_exec::Launcher;
use farrier_exec::driver::Start;
use farrier_model::{Digest, Event};
use farrier_project::Watched;
use farrier_runbook::{Bundle, compile_bundle};
use farrier_store::{RunRow, SqliteStore, Store};

/// How many compiled sets of texts are kept.
const BUNDLES: usize = 64;

/// The launcher of the service. Cloning shares what was compiled.
#[derive(Clone)]
pub(crate) struct Stored(Arc<Shared>);

struct Shared {
    sets: Watched,
    store: SqliteStore,
    /// Compiled texts, by digest and runbook.
    bundles: Mutex<HashMap<(Digest, String), Arc<Bundle>>>,
}

#[async_trait]
impl Launcher for Stored {
    async fn start_of(&self, row: &RunRow, created: &Event) -> Result<Start, String> {
        let Event::Created { inputs, trigger, plan, .. } = created else {
            return Err("its journal does not begin with `created`".into());
        };
        let bundle = self.bundle(row).await?;
        let set = self.0.sets.current();
        let site = set.site(&row.environment).ok_or_else(|| {
            farrier_project::ProjectError::NoEnvironment {
                name: row.environment.to_string(),
                known: Vec::new(),
            }
            .to_string()
        })?;
        site.check(&bundle, self.0.sets.registry()).map_err(|problem| problem.to_string())?;
        let (inputs, trigger, plan) = (inputs.clone(), trigger.clone(), plan.clone());
        Ok(Start { bundle, world: site.world(), inputs, trigger, plan })
    }
}

impl Stored {
    pub(crate) fn new(sets: Watched, store: SqliteStore) -> Stored {
        Stored(Arc::new(Shared { sets, store, bundles: Mutex::default() }))
    }

    /// The texts that a run is pinned to, compiled.
    pub(crate) async fn bundle(&self, row: &RunRow) -> Result<Arc<Bundle>, String> {
        let set = self.0.sets.current();
        if let Some(bundle) = set.bundle(&row.runbook).filter(|bundle| bundle.digest == row.bundle) {
            return Ok(bundle.clone());
        }
        let key = (row.bundle, row.runbook.to_string());
        let known = self.0.bundles.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(bundle) = known {
            return Ok(bundle);
        }
        let stored = self.0.store.bundle(row.bundle).await.map_err(|error| error.to_string())?;
        let (_, sources) = stored.ok_or("the store has lost its texts")?;
        let catalog = self.0.sets.registry().catalog();
        let bundle = compile_bundle(&row.runbook, &sources, catalog).map_err(|mistakes| {
            format!("its runbook does not compile any more: {}", mistakes.render(false))
        })?;
        let bundle = Arc::new(bundle);
        let mut bundles = self.0.bundles.lock().unwrap_or_else(PoisonError::into_inner);
        if bundles.len() >= BUNDLES {
            bundles.clear();
        }
        bundles.insert(key, bundle.clone());
        Ok(bundle)
    }
}
