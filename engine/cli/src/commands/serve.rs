//! `farrier serve`: takes up whatever is due, and goes on until it is told to stop.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use clap::Args;
use farrier_exec::driver::Start;
use farrier_exec::{Engine, Launcher, Observer, Options, RunUpdate};
use farrier_model::{Digest, Event};
use farrier_runbook::{Bundle, compile_bundle};
use farrier_server::clock::{Clockwork, Unwatched, of_set};
use farrier_store::{Clock, Pruned, Retention, RunRow, SqliteStore, Store};

use super::run::{driver, listen};
use super::runs::describe;
use super::{App, Problem};
use crate::exit::Exit;
use crate::stores;
use farrier_project::{Set, Workspace};
use tokio::sync::watch;

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// Runs at once.
    #[arg(long, default_value_t = 64, value_name = "N")]
    runs: usize,
    /// Also start what is due by the schedules of this environment; may be given several times.
    #[arg(long, short, value_name = "NAME")]
    env: Vec<String>,
    /// Tasks of one run at once.
    #[arg(long, default_value_t = 16, value_name = "N")]
    parallel: usize,
    /// End when nothing is due any more, as a timer unit wants it.
    #[arg(long)]
    until_idle: bool,
    /// Do not print what happens.
    #[arg(long, short)]
    quiet: bool,
}

/// The longest wait for a time that is sat out: a retry within it costs no second claim.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

impl Serve {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let set = match self.env.as_slice() {
            [] => None,
            env => Some(Arc::new(Set::load(&app.project, &app.registry, env, 1)?)),
        };
        let store = match &set {
            Some(set) => stores::own(&set.data_dir).await?,
            None => stores::own_of(&workspace, None).await?,
        };
        let options = Options {
            parallel: self.parallel,
            patience: PATIENCE,
            resume_parked: false,
            ..Options::default()
        };
        let pruning =
            workspace.retention().map(|retention| tokio::spawn(prune_hourly(store.clone(), retention)));
        let halt = listen(false);
        let driver = driver(app, &store, options, Arc::new(Lines { quiet: self.quiet }), halt.clone());
        let launcher =
            Stored { app: app.clone(), workspace, store: store.clone(), bundles: Mutex::default() };
        if !self.quiet {
            eprintln!("taking up what is due in {}", store.file().display());
        }
        let clockwork = set.map(|set| {
            let (sets, jobs) = watch::channel(of_set(set, &app.registry));
            let ledger = Arc::new(store.clone());
            let observer = Arc::new(Unwatched);
            (sets, Clockwork::new(ledger, driver.clone(), Clock::system(), jobs, observer, halt))
        });
        let engine = Engine::new(driver, Arc::new(launcher), self.runs);
        let ended = match clockwork {
            None => engine.run(self.until_idle).await,
            Some((_sets, clockwork)) if self.until_idle => match clockwork.run(true).await {
                Ok(()) => engine.run(true).await,
                Err(error) => Err(error.into()),
            },
            Some((_sets, clockwork)) => {
                tokio::try_join!(engine.run(false), async { Ok(clockwork.run(false).await?) }).map(|_| ())
            }
        };
        if let Some(pruning) = pruning {
            pruning.abort();
        }
        store.close().await;
        ended?;
        Ok(Exit::Ok)
    }
}

/// Takes away what is over, at the start and every hour.
async fn prune_hourly(store: SqliteStore, retention: Retention) {
    let mut hour = tokio::time::interval(std::time::Duration::from_secs(60 * 60));
    loop {
        hour.tick().await;
        match store.prune(&retention).await {
            Ok(pruned) if pruned == Pruned::default() => {}
            Ok(pruned) => tracing::info!("{}", super::prune::describe(&pruned)),
            // The next hour tries again; whatever ends the store ends it for the engine too.
            Err(error) => tracing::warn!(%error, "old runs were not taken away"),
        }
    }
}

/// Finds what stored runs need: their texts in the store, their environment in the project.
struct Stored {
    app: App,
    workspace: Workspace,
    store: SqliteStore,
    /// Compiled texts, by digest and runbook.
    bundles: Mutex<HashMap<(Digest, String), Arc<Bundle>>>,
}

/// How many compiled sets of texts are kept.
const BUNDLES: usize = 64;

#[async_trait]
impl Launcher for Stored {
    async fn start_of(&self, row: &RunRow, created: &Event) -> Result<Start, String> {
        let Event::Created { inputs, trigger, plan, .. } = created else {
            return Err("its journal does not begin with `created`".into());
        };
        let bundle = self.bundle(row).await?;
        let catalog = self.app.registry.catalog();
        let site = self.workspace.site(&row.environment, catalog).map_err(|problem| problem.to_string())?;
        site.check(&bundle, &self.app.registry).map_err(|problem| problem.to_string())?;
        let (inputs, trigger, plan) = (inputs.clone(), trigger.clone(), plan.clone());
        Ok(Start { bundle, world: site.world(), inputs, trigger, plan })
    }
}

impl Stored {
    async fn bundle(&self, row: &RunRow) -> Result<Arc<Bundle>, String> {
        let key = (row.bundle, row.runbook.to_string());
        let known = |bundles: &Mutex<HashMap<_, Arc<Bundle>>>| {
            bundles.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
        };
        if let Some(bundle) = known(&self.bundles) {
            return Ok(bundle);
        }
        let stored = self.store.bundle(row.bundle).await.map_err(|error| error.to_string())?;
        let (_, sources) = stored.ok_or("the store has lost its texts")?;
        let bundle =
            compile_bundle(&row.runbook, &sources, self.app.registry.catalog()).map_err(|mistakes| {
                format!("its runbook does not compile any more: {}", mistakes.render(false))
            })?;
        let bundle = Arc::new(bundle);
        let mut bundles = self.bundles.lock().unwrap_or_else(PoisonError::into_inner);
        if bundles.len() >= BUNDLES {
            bundles.clear();
        }
        bundles.insert(key, bundle.clone());
        Ok(bundle)
    }
}

/// One line for each event that people care about.
struct Lines {
    quiet: bool,
}

impl Observer for Lines {
    fn update(&self, update: RunUpdate<'_>) {
        if self.quiet {
            return;
        }
        let short = &update.run.to_string()[..13];
        for event in update.events {
            eprintln!("{short} {}: {}", update.runbook, describe(event));
        }
    }
}
