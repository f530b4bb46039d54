//! The helper's side: hears one request, does it, answers, ends.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farrier_action::{
    Action, ActionRegistry, Binding, NodeInfo, Probe, Progress, ReadCx, TargetKind as _, Targets, WriteCx,
};
use farrier_confine::capabilities::OTHER_PEOPLES_FILES;
use farrier_confine::folders::{Confined, Left};
use farrier_model::{Failure, FailureKind, Scope, Value};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::listen::{Body, Heard, listen};
use super::roots::{self, Folders};
use super::wire::{Answer, Job, LONGEST_ANSWER, Phase, Planned, Probed, Request, Step, Told, VERSION};
use super::work;
use crate::target::Files;
use crate::{Archive, CheckArchive, DeleteTree, Discard, FilesTarget, Usage, Write as WriteFile};

/// How long the next word on progress waits after one was said.
const PAUSE: Duration = Duration::from_millis(250);

/// How the process ends when its caller has gone.
const LEFT_ALONE: i32 = 75;

/// A process that may work in the folders of its file, and in no others.
#[derive(Debug)]
pub struct Helper {
    folders: Folders,
}

impl Helper {
    /// Reads the file `roots` and gives up all that lies outside of its folders, every system call and every power that work
    /// with files does not need. This holds for the calling thread and those that it starts, so it is called before there are
    /// others.
    ///
    /// Its actions work beneath open folders and trust no name, so this is the second wall: a defect in them reaches no other
    /// file, starts no program and calls nobody. With `unconfined` the first wall is enough where the kernel has no Landlock.
    ///
    /// # Errors
    /// The file cannot be read or is not to be believed; a kernel that can confine refuses to, or cannot.
    pub fn prepare(roots: &Path, unconfined: bool) -> Result<Helper, Failure> {
        let folders = roots::read(roots)?;
        farrier_confine::privileges()?;
        let left = Left { writes: folders.all().collect(), ..Left::default() };
        match left.alone()? {
            Confined::Wholly => {}
            Confined::Partly => eprintln!("note: this kernel confines the helper's files, and not all else"),
            Confined::Not if unconfined => {
                eprintln!(
                    "note: this kernel has no Landlock, so the helper's folders are not all it could reach"
                );
            }
            Confined::Not => {
                let message = "this kernel has no Landlock, so a defect in the helper could reach every file";
                return Err(Failure::new(FailureKind::Refused, message)
                    .help("use Linux 5.13 or newer with Landlock on, or start it with `--unconfined`"));
            }
        }
        farrier_confine::capabilities::keep(OTHER_PEOPLES_FILES)?;
        farrier_confine::calls::only_files()?;
        Ok(Helper { folders })
    }

    /// Answers the one request on standard input.
    ///
    /// # Errors
    /// When there is nothing to answer: the request cannot be read.
    pub async fn serve(self) -> Result<(), Failure> {
        let out = Out::new(std::io::stdout());
        let answered = out.answered.clone();
        let heard = listen(std::io::stdin(), move || {
            if !answered.load(Ordering::SeqCst) {
                std::process::exit(LEFT_ALONE);
            }
        });
        converse(&self.folders, heard, &out).await
    }
}

/// Where answers go.
#[derive(Clone)]
pub(crate) struct Out {
    to: Arc<Mutex<dyn Write + Send>>,
    answered: Arc<AtomicBool>,
}

impl Out {
    pub(crate) fn new(to: impl Write + Send + 'static) -> Out {
        Out { to: Arc::new(Mutex::new(to)), answered: Arc::default() }
    }

    /// Says one thing; the last one unless more is to come.
    pub(crate) fn say<T: Serialize>(&self, answer: &Answer<T>) -> Result<(), Failure> {
        let internal =
            |error: serde_json::Error| Failure::new(FailureKind::Internal, format!("no answer: {error}"));
        let mut line = serde_json::to_string(answer).map_err(internal)?;
        line.push('\n');
        if line.len() > LONGEST_ANSWER {
            let message = format!("an answer of {} bytes is too long for the files helper", line.len());
            return Err(Failure::new(FailureKind::Limit, message).help("ask for less at a time"));
        }
        if let Answer::Done(_) | Answer::Failed(_) = answer {
            self.answered.store(true, Ordering::SeqCst);
        }
        let mut to = self.to.lock().unwrap_or_else(PoisonError::into_inner);
        to.write_all(line.as_bytes()).and_then(|()| to.flush()).map_err(|error| {
            Failure::new(FailureKind::Unreachable, format!("nobody took the answer: {error}"))
        })
    }

    pub(crate) fn done<T: Serialize>(&self, done: T) -> Result<(), Failure> {
        self.say(&Answer::Done(done))
    }
}

/// Hears a request, does it and says what came of it.
pub(crate) async fn converse(folders: &Folders, heard: Heard, out: &Out) -> Result<(), Failure> {
    let line = heard
        .request
        .await
        .map_err(|error| Failure::new(FailureKind::Internal, format!("reading ended early: {error}")))??;
    let worked = match read(&line) {
        Ok(job) => perform(folders, job, heard.body, out).await,
        Err(failure) => Err(failure),
    };
    match worked {
        Err(failure) if !out.answered.load(Ordering::SeqCst) => out.say::<()>(&Answer::Failed(failure)),
        worked => worked,
    }
}

fn read(line: &str) -> Result<Job, Failure> {
    /// What requests of all versions have.
    #[derive(Deserialize)]
    struct Any {
        version: u32,
    }
    let input = |message: String| Failure::new(FailureKind::Input, message);
    let none = |error: &serde_json::Error| input(format!("this is no request to a files helper: {error}"));
    let Any { version } = serde_json::from_str(line).map_err(|error| none(&error))?;
    if version != VERSION {
        return Err(input(format!("the helper speaks version {VERSION}, and the request version {version}"))
            .help("install the same version of Farrier on both sides"));
    }
    let request: Request = serde_json::from_str(line).map_err(|error| none(&error))?;
    Ok(request.job)
}

async fn perform(folders: &Folders, job: Job, body: Body, out: &Out) -> Result<(), Failure> {
    let files = Arc::new(Files::over(folders));
    match job {
        Job::Usage(step) => act::<Usage>(folders, step, out).await,
        Job::Write(step) => act::<WriteFile>(folders, step, out).await,
        Job::Archive(step) => act::<Archive>(folders, step, out).await,
        Job::CheckArchive(step) => act::<CheckArchive>(folders, step, out).await,
        Job::DeleteTree(step) => act::<DeleteTree>(folders, step, out).await,
        Job::Discard(step) => act::<Discard>(folders, step, out).await,
        Job::ReadMany(wanted) => work::read_many(&files, wanted, body, out).await,
        Job::Deposited(making) => out.done(making.deposited(files).await?),
        Job::Deposit(making) => work::deposit(files, making, body, out).await,
        Job::Withdraw(making) => out.done(making.withdraw(files).await?),
        Job::WithDigest(wanted) => out.done(crate::deposit::find(files, wanted.root, wanted.sha256).await?),
        Job::LookAtSecrets(places) => out.done(work::look_at_secrets(files, places).await?),
        Job::MakeSecret(wanted) => out.done(wanted.place.make(files, wanted.effect, wanted.content.0).await?),
        Job::RemoveSecret(wanted) => out.done(work::remove_secret(files, wanted).await?),
    }
}

async fn act<A: Action>(folders: &Folders, step: Step, out: &Out) -> Result<(), Failure> {
    let input =
        |error: &dyn std::fmt::Display| Failure::new(FailureKind::Input, format!("`{}`: {error}", A::NAME));
    let action: A = step.input.read().map_err(|error| input(&error))?;
    let alias = step.input.get("target").and_then(Value::as_str).unwrap_or("files").to_owned();
    let (told, latest) = watch::channel(None);
    let cx = context(folders, alias, &step)?.telling(told);
    let value = |output: &A::Output| {
        Value::of(output).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("the output is not a value: {error}"))
        })
    };
    let worked = async {
        match step.phase {
            Phase::Plan => {
                let planned = action.plan(&cx).await?;
                out.done(Planned {
                    output: planned.output.as_ref().map(value).transpose()?,
                    changes: planned.changes,
                    unknown: planned.unknown.into_iter().map(str::to_owned).collect(),
                    fidelity: planned.fidelity,
                    considered: planned.considered,
                    notes: planned.notes,
                })
            }
            Phase::Apply => out.done(value(&action.apply(&WriteCx::after_intent(cx), &step.changes).await?)?),
            Phase::Undo => out.done(action.undo(&WriteCx::after_intent(cx), &step.changes).await?),
            Phase::Probe => out.done(match action.probe(&cx, &step.changes).await? {
                Probe::Applied => Probed::Applied,
                Probe::NotApplied => Probed::NotApplied,
                Probe::Unknown => Probed::Unknown,
            }),
        }
    };
    tokio::select! {
        biased;
        worked = worked => worked,
        never = pass_on(latest, out) => never,
    }
}

/// Says how far the work has come, a few times a second at most, and does not end.
async fn pass_on(mut latest: watch::Receiver<Option<Progress>>, out: &Out) -> Result<(), Failure> {
    while latest.changed().await.is_ok() {
        let progress = latest.borrow_and_update().clone();
        if let Some(Progress { done, total, text }) = progress {
            out.say::<()>(&Answer::Progress(Told { done, total, text }))?;
        }
        tokio::time::sleep(PAUSE).await;
    }
    std::future::pending().await
}

/// A world of these roots alone.
fn context(folders: &Folders, alias: String, step: &Step) -> Result<ReadCx, Failure> {
    let mut registry = ActionRegistry::default();
    registry
        .target::<FilesTarget>()
        .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
    let value = |folders: &BTreeMap<String, String>| {
        let folders =
            folders.iter().map(|(name, folder)| (name.as_str().into(), Value::text(folder.as_str())));
        Value::map(folders.collect::<Vec<(farrier_model::Text, Value)>>())
    };
    let config = Value::map([("roots", value(&folders.roots)), ("snapshots", value(&folders.snapshots))]);
    let binding = Binding { alias, kind: FilesTarget::KIND.into(), config };
    let targets = Targets::new("/".into(), vec![binding], BTreeMap::new());
    let node = NodeInfo {
        run: step.run,
        node: step.node.clone(),
        attempt: step.attempt,
        effect_id: step.effect.clone(),
    };
    Ok(ReadCx::new(Arc::new(targets), Scope::default(), node))
}
