//! [`Service`]: the process that owns a store. It drives what is due, answers requests, takes in new files, and stops in order.
//!
//! `farrier serve` and `farrier demo` both build one and let it run. It is given everything it needs (a store, the project, who
//! may do what, where to listen), reads no configuration of its own, and ends when it is told to or when nothing is due any more.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use farrier_exec::{Driver, DriverError, Engine, Halt, Observer, Options, Post};
use farrier_model::Text;
use farrier_project::Watched;
use farrier_store::{Clock, Pruned, SqliteStore};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_cron_scheduler::{Job, JobScheduler, JobSchedulerError};

use crate::app::{App, Inner, Webhook};
use crate::clock::{Clockwork, of_sets};
use crate::guard;
use crate::launcher::Stored;
use crate::listen::{Listeners, Server};
use crate::live::{Live, Observers};
use crate::login::{Attempts, Directory};
use crate::metrics::Metrics;
use crate::notify::Notify;
use crate::people::People;
use crate::reloading::Reloading;
use crate::rights::Access;
use crate::routes;
use crate::tls::Certificates;

/// How often old runs are taken away.
const PRUNING: Duration = Duration::from_secs(60 * 60);
/// Connections at once, when nobody says.
const CONNECTIONS: usize = 1_000;
/// What is left of a stop beyond the grace of the steps.
const LAST_MOMENTS: Duration = Duration::from_millis(1_500);

/// Who may do what, as it is written now. Read anew at each reload.
#[derive(Clone, Default)]
pub struct Policy {
    /// People and senders.
    pub access: Access,
    /// Metrics are readable without a token.
    pub open_metrics: bool,
    /// Holds names and passwords of those who log in against a directory.
    pub directory: Option<Arc<dyn Directory>>,
    /// Certificate and key as the files hold them now, or what is wrong with them; none without TLS.
    pub tls: Option<Result<Arc<rustls::ServerConfig>, String>>,
    /// Files that are looked at besides the project's, since their change means that all this is to be read anew.
    pub files: Vec<std::path::PathBuf>,
    /// What only a start takes up, as it is written now, by its key in the file.
    pub at_start: AtStart,
}

/// Settings that a running service cannot take up, by their key in the service file, in whatever form tells them apart.
pub type AtStart = std::collections::BTreeMap<&'static str, String>;

/// Reads the policy anew.
pub type ReadPolicy = Arc<dyn Fn() -> Result<Policy, String> + Send + Sync>;

/// What a service is made of.
pub struct Settings {
    /// The store, owned by this process.
    pub store: SqliteStore,
    /// The project.
    pub sets: Watched,
    /// Who may do what at the start.
    pub policy: Policy,
    /// Reads it anew; without it, it stays as it is.
    pub read_policy: Option<ReadPolicy>,
    /// Where to listen.
    pub listeners: Listeners,
    /// Connections at once; 0 for the usual number.
    pub connections: usize,
    /// Settings of the driver: parallelism, grace, patience.
    pub options: Options,
    /// Runs at once.
    pub runs: usize,
    /// Runs of these environments are taken up; of all without them.
    pub only: Option<Vec<Text>>,
    /// End when nothing is due any more.
    pub until_idle: bool,
    /// Start what the schedules of the served environments say.
    pub schedules: bool,
    /// Look at the files on disk, and take them in when they change.
    pub watch_files: bool,
    /// Is told what happens, besides the service's own.
    pub observer: Arc<dyn Observer>,
    /// Takes alerts.
    pub webhook: Option<Arc<dyn Webhook>>,
    /// The way to the service manager.
    pub notify: Notify,
}

/// A service that is ready to run. See the module's page.
pub struct Service {
    app: App,
    server: Arc<Server>,
    listeners: Listeners,
    engine: Engine,
    until_idle: bool,
    schedules: bool,
    watch_files: bool,
    notify: Arc<Notify>,
    halt: watch::Receiver<Halt>,
    grace: Duration,
    stop: watch::Sender<bool>,
    reloads: mpsc::Receiver<oneshot::Sender<Result<bool, String>>>,
    read_policy: Option<ReadPolicy>,
    files: Vec<std::path::PathBuf>,
    at_start: AtStart,
    certificates: Option<Certificates>,
}

impl Service {
    /// Puts the parts together. Nothing begins until [`run`](Service::run). `halt` says when the process is to end.
    pub fn new(settings: Settings, halt: watch::Receiver<Halt>) -> Service {
        let Settings { store, sets, policy, read_policy, listeners, connections, options, runs, .. } =
            settings;
        let metrics = Metrics::new(env!("CARGO_PKG_VERSION"));
        let counted = metrics.clone();
        store.on_commit(move |took| counted.committed(took.as_secs_f64()));
        let live = Live::new();
        let observers: Vec<Arc<dyn Observer>> =
            vec![settings.observer, Arc::new(metrics.clone()), Arc::new(live.clone())];
        let grace = options.grace;
        let driver = Driver::new(
            sets.registry().clone(),
            Arc::new(store.clone()),
            Clock::system(),
            options,
            Arc::new(Observers(observers)),
            halt.clone(),
        );
        let launcher = Stored::new(sets.clone(), store.clone());
        let (stop, stopping) = watch::channel(false);
        let (reload, reloads) = mpsc::channel(4);
        let app = App(Arc::new(Inner {
            store,
            sets,
            driver: driver.clone(),
            launcher: launcher.clone(),
            clock: Clock::system(),
            live,
            metrics: metrics.clone(),
            webhook: settings.webhook,
            directory: std::sync::RwLock::default(),
            attempts: Attempts::default(),
            logging_in: Inner::logging_in(),
            only: settings.only.clone(),
            access: std::sync::RwLock::default(),
            open_metrics: AtomicBool::new(false),
            trouble: std::sync::Mutex::default(),
            logins: std::sync::Mutex::default(),
            streams: Inner::streams(),
            plans: Inner::plans(),
            stopping: stopping.clone(),
            reload,
        }));
        let (files, at_start) = (policy.files.clone(), policy.at_start.clone());
        let certificates = listeners.network.as_ref().and_then(|(_, certificates)| certificates.clone());
        app.set_policy(policy);
        let layer = axum::middleware::from_fn_with_state(app.clone(), guard::guard);
        let router = routes::router()
            .fallback(|| async { crate::error::ApiError::not_found("there is nothing at this path") })
            .layer(layer)
            .with_state(app.clone());
        let limit = if connections == 0 { CONNECTIONS } else { connections };
        let server = Server::new(router, metrics, limit, stopping);
        let engine = Engine::new(driver, Arc::new(launcher), runs);
        let engine = match settings.only {
            None => engine,
            Some(environments) => engine.within(environments),
        };
        Service {
            app,
            server,
            listeners,
            engine,
            until_idle: settings.until_idle,
            schedules: settings.schedules,
            watch_files: settings.watch_files,
            notify: Arc::new(settings.notify),
            halt,
            grace,
            stop,
            reloads,
            read_policy,
            files,
            at_start,
            certificates,
        }
    }

    /// What requests have at hand: to reload, to look at metrics, to start runs from within the process.
    pub fn app(&self) -> App {
        self.app.clone()
    }

    /// Works until the process is to end, or until nothing is due any more. Then: nothing new is accepted, what is at work may
    /// end within its grace, leases are released, and the store is closed.
    ///
    /// # Errors
    /// The store can be written no more.
    pub async fn run(self) -> Result<(), DriverError> {
        let Service { app, server, listeners, engine, notify, halt, grace, stop, .. } = self;
        let serving = tokio::spawn(server.serve(listeners));
        let housekeeping = match housekeeping(&app).await {
            Ok(scheduler) => Some(scheduler),
            Err(error) => {
                tracing::error!(%error, "housekeeping cannot be done");
                None
            }
        };
        let reloading = Reloading {
            app: app.clone(),
            reloads: self.reloads,
            read_policy: self.read_policy,
            files: self.files,
            at_start: self.at_start,
            certificates: self.certificates,
            watch_files: self.watch_files,
            notify: notify.clone(),
        };
        let mut helpers = tokio::task::JoinSet::new();
        helpers.spawn(reloading.run());
        helpers.spawn(tell_people(app.clone(), halt.clone()));
        helpers.spawn(watchdog(app.clone(), notify.clone()));
        helpers.spawn(announce_stop(halt.clone(), stop.clone(), notify.clone()));
        notify.send("READY=1");
        let mut halted = halt.clone();
        let last_moment = async move {
            let _ = halted.wait_for(|halt| *halt != Halt::No).await;
            tokio::time::sleep(grace + LAST_MOMENTS).await;
        };
        let clockwork = self.schedules.then(|| clockwork(&app, halt.clone()));
        let until_idle = self.until_idle;
        let work = async move {
            match clockwork {
                None => engine.run(until_idle).await,
                Some(clockwork) if until_idle => {
                    clockwork.run(true).await?;
                    engine.run(true).await
                }
                Some(clockwork) => {
                    let clock = async { Ok(clockwork.run(false).await?) };
                    tokio::try_join!(engine.run(false), clock).map(|_| ())
                }
            }
        };
        let ended = tokio::select! {
            ended = work => ended,
            // Each run keeps to its grace; this is for one that hangs beyond it.
            () = last_moment => {
                tracing::error!("some runs did not let go in time; the next process finds out what came of them");
                Ok(())
            }
        };
        stop.send_replace(true);
        notify.send("STOPPING=1");
        let _ = serving.await;
        helpers.shutdown().await;
        if let Some(mut scheduler) = housekeeping {
            let _ = scheduler.shutdown().await;
        }
        app.0.store.clone().close().await;
        ended
    }
}

/// The clock over the schedules of whatever set is current.
fn clockwork(app: &App, halt: watch::Receiver<Halt>) -> Clockwork {
    let inner = &app.0;
    let jobs = of_sets(inner.sets.subscribe(), inner.sets.registry().clone());
    let (ledger, metrics) = (Arc::new(inner.store.clone()), Arc::new(inner.metrics.clone()));
    Clockwork::new(ledger, inner.driver.clone(), inner.clock.clone(), jobs, metrics, halt)
}

/// Sends what people are to hear. When the store fails, the engine ends the process.
async fn tell_people(app: App, halt: watch::Receiver<Halt>) {
    let inner = &app.0;
    let people = Arc::new(People(inner.sets.clone()));
    let post =
        Post::new(inner.sets.registry().clone(), Arc::new(inner.store.clone()), people, inner.clock.clone());
    if let Err(error) = post.run(halt).await {
        tracing::error!(%error, "people are told nothing any more");
    }
}

/// The API closes as soon as the process is to end, while runs still let go.
async fn announce_stop(mut halt: watch::Receiver<Halt>, stop: watch::Sender<bool>, notify: Arc<Notify>) {
    if halt.wait_for(|halt| *halt != Halt::No).await.is_ok() {
        notify.send("STOPPING=1");
        stop.send_replace(true);
    }
    std::future::pending::<()>().await;
}

/// Tells the service manager that this process lives, as long as its store answers.
async fn watchdog(app: App, notify: Arc<Notify>) {
    let Some(every) = notify.watchdog() else { return };
    let mut tick = tokio::time::interval(every);
    loop {
        tick.tick().await;
        if app.0.store.fatal().is_none() && app.0.store.live_states().await.is_ok() {
            notify.send("WATCHDOG=1");
        }
    }
}

/// What has to be done now and then, and may be late.
async fn housekeeping(app: &App) -> Result<JobScheduler, JobSchedulerError> {
    let scheduler = JobScheduler::new().await?;
    let first = app.clone();
    tokio::spawn(async move { prune(&first).await });
    let pruned = app.clone();
    let pruning = Job::new_repeated_async(PRUNING, move |_, _| {
        let app = pruned.clone();
        Box::pin(async move { prune(&app).await })
    })?;
    scheduler.add(pruning).await?;
    scheduler.start().await?;
    Ok(scheduler)
}

/// Takes away runs whose time is over.
async fn prune(app: &App) {
    let Some(retention) = app.set().workspace.retention() else { return };
    match app.0.store.prune(&retention).await {
        Ok(pruned) if pruned == Pruned::default() => {}
        Ok(Pruned { runs, entries, blobs, texts }) => {
            tracing::info!(runs, entries, blobs, texts, "old runs were taken away");
        }
        // The next hour tries again; whatever ends the store ends it for the engine too.
        Err(error) => tracing::warn!(%error, "old runs were not taken away"),
    }
}
