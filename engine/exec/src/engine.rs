//! [`Engine`]: takes up whatever is due, and drives many runs at once.
//!
//! It asks the store what nobody works on and somebody should: queued runs, runs left behind, waiting runs whose moment has
//! come or for which something has come. It sleeps until the next moment, and is poked when something changes in this
//! process. It keeps nothing: everything it needs is in the store, so a new process goes on where the last one stopped.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farrier_model::event::ParkCause;
use farrier_model::time::Timestamp;
use farrier_model::{Event, RunId, RunState, Text};
use farrier_store::{Batch, Notice, RunRow};
use tokio::task::JoinSet;

use crate::driver::{Driver, DriverError, Ended, Halt, ProceedAlways, Start};

/// The longest sleep, so that a clock that jumped is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// How long to stay away from a run that could not be taken up.
const PAUSE: Duration = Duration::from_secs(5);
/// How long to wait when the store cannot answer.
const STORE_PAUSE: Duration = Duration::from_secs(1);
/// A run that its owner left behind although it was claimed so often may be what ended its owner.
const SUSPICIOUS: i64 = 3;
/// How long such a run is watched before the next one of its kind is taken up.
const WATCH: Duration = Duration::from_secs(2);

/// Finds what a stored run needs to be driven: its pinned runbooks and its environment.
#[async_trait]
pub trait Launcher: Send + Sync {
    /// What a run starts from; `created` is its first event.
    ///
    /// # Errors
    /// One sentence: why it cannot be driven here. The run is then parked with it.
    async fn start_of(&self, row: &RunRow, created: &Event) -> Result<Start, String>;
}

/// Drives what is due. See the module's page.
pub struct Engine {
    driver: Driver,
    launcher: Arc<dyn Launcher>,
    /// Runs at once.
    limit: usize,
    /// The environments whose runs are taken up; all without them.
    environments: Option<Vec<Text>>,
}

impl Engine {
    /// An engine on a driver's store, for at most `limit` runs at once.
    pub fn new(driver: Driver, launcher: Arc<dyn Launcher>, limit: usize) -> Engine {
        Engine { driver, launcher, limit: limit.max(1), environments: None }
    }

    /// The same for runs of these environments alone; those of others stay as they are.
    #[must_use]
    pub fn within(self, environments: Vec<Text>) -> Engine {
        Engine { environments: Some(environments), ..self }
    }

    /// Works until the process is to end, or, with `until_idle`, until nothing is due any more.
    ///
    /// # Errors
    /// The store can be written no more. Everything else that goes wrong with one run leaves the others alone.
    pub async fn run(&self, until_idle: bool) -> Result<(), DriverError> {
        let mut halt = self.driver.halt();
        let mut tasks: JoinSet<(RunId, Result<(), DriverError>)> = JoinSet::new();
        let mut away: HashMap<RunId, Timestamp> = HashMap::new();
        // Whoever is taken up claims only later, and a run that cannot be driven never enters the pokes.
        let mut taken: HashSet<RunId> = HashSet::new();
        let mut watched: Option<(RunId, Timestamp)> = None;
        loop {
            if *halt.borrow_and_update() != Halt::No {
                break;
            }
            let now = self.driver.clock().now();
            away.retain(|_, until| *until > now);
            watched = watched.filter(|(_, until)| *until > now);
            let mut next = None;
            let free = self.limit.saturating_sub(tasks.len());
            if free > 0 {
                match self
                    .driver
                    .store()
                    .due_in(
                        self.environments.as_deref(),
                        free + self.driver.pokes().count() + taken.len() + away.len(),
                    )
                    .await
                {
                    Ok(due) => {
                        next = due.next;
                        let mut free = free;
                        for row in due.runs {
                            if free == 0 {
                                break;
                            }
                            if self.driver.pokes().is_driven(row.id)
                                || taken.contains(&row.id)
                                || away.contains_key(&row.id)
                            {
                                continue;
                            }
                            if is_suspicious(&row) {
                                // One at a time: the run that ends this process must not take others with it until
                                // they are parked in its place.
                                if watched.is_some_and(|(id, _)| id != row.id) {
                                    continue;
                                }
                                watched = Some((row.id, now + WATCH));
                            }
                            free -= 1;
                            taken.insert(row.id);
                            self.take_up(&mut tasks, row);
                        }
                    }
                    Err(error) if error.is_fatal() => return Err(error.into()),
                    Err(error) => {
                        tracing::warn!(%error, "the store cannot say what is due");
                        next = Some(now + STORE_PAUSE);
                    }
                }
            }
            if until_idle && tasks.is_empty() && away.is_empty() {
                return Ok(());
            }
            let watched_until = watched.map(|(_, until)| until);
            let next = next.into_iter().chain(away.values().copied()).chain(watched_until).min();
            let pause = next.map_or(LONGEST_SLEEP, |next| {
                Duration::try_from(next.duration_since(now)).unwrap_or_default().min(LONGEST_SLEEP)
            });
            tokio::select! {
                _ = halt.changed() => {}
                Some(joined) = tasks.join_next() => {
                    // One whose driver panicked is left to the next process: here it would only panic again.
                    if let Ok((ended, _)) = &joined {
                        taken.remove(ended);
                        watched = watched.filter(|(run, _)| run != ended);
                    }
                    self.joined(joined, &mut away)?;
                }
                () = self.driver.pokes().changed() => {}
                () = tokio::time::sleep(pause.max(Duration::from_millis(1))) => {}
            }
        }
        // Each run lets go by itself, within the grace for what is at work.
        while let Some(joined) = tasks.join_next().await {
            self.joined(joined, &mut away)?;
        }
        Ok(())
    }

    fn take_up(&self, tasks: &mut JoinSet<(RunId, Result<(), DriverError>)>, row: RunRow) {
        let (driver, launcher) = (self.driver.clone(), self.launcher.clone());
        tasks.spawn(async move {
            let id = row.id;
            (id, drive(&driver, &*launcher, row).await.map(|_| ()))
        });
    }

    fn joined(
        &self,
        joined: Result<(RunId, Result<(), DriverError>), tokio::task::JoinError>,
        away: &mut HashMap<RunId, Timestamp>,
    ) -> Result<(), DriverError> {
        let (run, result) = match joined {
            Ok(ended) => ended,
            Err(panic) => {
                tracing::error!(%panic, "driving a run panicked");
                return Ok(());
            }
        };
        match result {
            Ok(()) | Err(DriverError::LetGo(_) | DriverError::Driven(_)) => Ok(()),
            Err(DriverError::Store(error)) if error.is_fatal() => Err(error.into()),
            Err(error) => {
                tracing::error!(run_id = %run, %error, "the run could not be driven");
                away.insert(run, self.driver.clock().now() + PAUSE);
                Ok(())
            }
        }
    }
}

fn is_suspicious(row: &RunRow) -> bool {
    row.owner.is_some() && row.epoch >= SUSPICIOUS
}

/// Drives one run as far as it goes; one that cannot be driven here is parked with the reason.
async fn drive(driver: &Driver, launcher: &dyn Launcher, row: RunRow) -> Result<Option<Ended>, DriverError> {
    let journal = driver.store().journal_after(row.id, 0).await?;
    let created = journal.first().map(|entry| entry.event.clone());
    let start = match &created {
        Some(created) => launcher.start_of(&row, created).await,
        None => Err("its journal is empty".into()),
    };
    match start {
        Ok(start) => driver.resume(row.id, &start, &ProceedAlways, &[]).await.map(Some),
        Err(reason) => {
            let claim = driver.store().claim(row.id, "engine").await?;
            let reason = format!("it cannot be driven: {reason}");
            let notice = Notice {
                id: uuid::Uuid::now_v7(),
                run: Some(row.id),
                environment: row.environment.clone(),
                to: crate::post::EVERYBODY.into(),
                occasion: "parked".into(),
                subject: format!("{} in {}: it waits for a person", row.title, row.environment),
                body: format!("{reason}\n\nLook: farrier show {}\n", &row.id.to_string()[..13]),
            };
            let parked = Event::Parked { reason, cause: ParkCause::Unready, guard: None, plan: None };
            let batch = Batch::new(vec![parked], Some(RunState::Parked)).telling(vec![notice]);
            driver.store().append_surely(&claim, batch).await?;
            driver.store().release(&claim).await?;
            Ok(None)
        }
    }
}
