//! Taking in new files: the project's, the service file, and the certificates.
//!
//! Each of the three is whole or left as it was: a mistake in one keeps it from nothing but itself. Who may do what comes first,
//! since rights that were taken away must not live on because a runbook has a mistake.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use farrier_project::Trouble;
use tokio::sync::{mpsc, oneshot};

use crate::app::App;
use crate::notify::Notify;
use crate::service::{AtStart, ReadPolicy};
use crate::tls::Certificates;

/// How often the files on disk are looked at.
const LOOK_AT_FILES: Duration = Duration::from_secs(2);

/// Takes in new files: when it is told to, and when they change.
pub(crate) struct Reloading {
    pub(crate) app: App,
    pub(crate) reloads: mpsc::Receiver<oneshot::Sender<Result<bool, String>>>,
    pub(crate) read_policy: Option<ReadPolicy>,
    /// What is looked at besides the project's files.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) at_start: AtStart,
    pub(crate) certificates: Option<Certificates>,
    pub(crate) watch_files: bool,
    pub(crate) notify: Arc<Notify>,
}

impl Reloading {
    pub(crate) async fn run(mut self) {
        let mut looks = tokio::time::interval(LOOK_AT_FILES);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut taken = self.stamp().await;
        let mut seen = taken;
        loop {
            tokio::select! {
                asked = self.reloads.recv() => {
                    let Some(reply) = asked else { return };
                    taken = self.stamp().await;
                    seen = taken;
                    let answer = self.reload().await;
                    let _ = reply.send(answer);
                }
                _ = looks.tick(), if self.watch_files => {
                    let now = self.stamp().await;
                    // Only once nothing has changed between two looks: files that are being written are left alone.
                    let is_still = now == seen;
                    seen = now;
                    if is_still && now != taken {
                        taken = now;
                        let _ = self.reload().await;
                    }
                }
            }
        }
    }

    async fn stamp(&self) -> (Option<farrier_model::Digest>, u64) {
        let (root, files) = (self.app.set().workspace.root.clone(), self.files.clone());
        let look = move || {
            let project = farrier_project::Workspace::find(&root).ok().map(|workspace| workspace.stamp());
            (project, stamp_of(&files))
        };
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    }

    async fn reload(&mut self) -> Result<bool, String> {
        self.notify.reloading();
        let answer = self.take_in().await;
        match &answer {
            Ok(true) => tracing::info!(set = self.app.set().number, "the project was read again"),
            Ok(false) => tracing::debug!("the project was read again, and nothing is new"),
            Err(mistakes) => {
                tracing::error!(mistakes, "the files have mistakes; the set of before stays in use");
            }
        }
        self.notify.send("READY=1");
        answer
    }

    async fn take_in(&mut self) -> Result<bool, String> {
        let rights = self.take_in_policy().await;
        self.app.set_trouble(rights.as_ref().err().cloned());
        let (sets, now) = (self.app.0.sets.clone(), self.app.now());
        let reloaded =
            tokio::task::spawn_blocking(move || sets.reload(now).map_err(|error| error.to_string()));
        let project = reloaded.await.map_err(|error| error.to_string())?;
        match (rights, project) {
            (Ok(()), project) => project,
            (Err(service), Ok(_)) => Err(service),
            (Err(service), Err(project)) => Err(format!("{service}\n{project}")),
        }
    }

    /// The service file and the certificates that it names.
    async fn take_in_policy(&mut self) -> Result<(), String> {
        let Some(read) = self.read_policy.clone() else { return Ok(()) };
        let mut policy =
            tokio::task::spawn_blocking(move || read()).await.map_err(|error| error.to_string())??;
        let (tls, at_start) = (policy.tls.take(), std::mem::take(&mut policy.at_start));
        self.files.clone_from(&policy.files);
        self.app.set_policy(policy);
        match (tls, &self.certificates) {
            (Some(Ok(config)), Some(certificates)) => certificates.replace(config),
            (Some(Err(wrong)), Some(_)) => {
                return Err(format!("{wrong}; the certificates of before stay in use"));
            }
            // Whether there is TLS is among what only a start takes up.
            (_, None) | (None, Some(_)) => {}
        }
        match changed(&self.at_start, &at_start) {
            None => Ok(()),
            Some(keys) => Err(format!(
                "only a start takes up a new {keys}; until then what was written before stays in use, everything else is taken up"
            )),
        }
    }
}

/// The keys whose settings differ, for people; none when all are as they were.
fn changed(before: &AtStart, now: &AtStart) -> Option<String> {
    let keys: Vec<String> = now
        .iter()
        .filter(|(key, written)| before.get(*key) != Some(written))
        .map(|(key, _)| format!("`{key}`"))
        .collect();
    let (last, others) = keys.split_last()?;
    Some(if others.is_empty() { last.clone() } else { format!("{} and {last}", others.join(", ")) })
}

impl App {
    /// What keeps the service file or the certificates on disk from being those in use.
    fn set_trouble(&self, text: Option<String>) {
        let mut trouble = self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        let since = trouble.as_ref().map_or_else(|| self.now(), |trouble| trouble.since);
        *trouble = text.map(|text| Trouble { text, since });
    }

    pub(crate) fn trouble(&self) -> Option<Trouble> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Different when a file was replaced or written, is gone, or can be read now.
fn stamp_of(files: &[PathBuf]) -> u64 {
    let mut hasher = DefaultHasher::new();
    for file in files {
        let metadata = std::fs::metadata(file).ok();
        let what = metadata
            .map(|file| (file.ino(), file.len(), file.mtime(), file.mtime_nsec(), file.mode(), file.uid()));
        what.hash(&mut hasher);
    }
    hasher.finish()
}
