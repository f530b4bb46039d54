//! The helper's side: reads one request, does it, answers, ends.

use std::collections::BTreeMap;
use std::io::{BufRead as _, Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use farrier_action::{
    Action, ActionRegistry, Binding, NodeInfo, Probe, ReadCx, TargetKind as _, Targets, WriteCx,
};
use farrier_model::{Failure, FailureKind, Scope, Value};

use super::confine::{Confined, confine};
use super::roots;
use super::wire::{Answer, LONGEST_REQUEST, Phase, Probed, Request, VERSION, Verb};
use crate::{Archive, CheckArchive, DeleteTree, FilesTarget, Usage, Write};

/// How the process ends when its caller has gone, or says more than one thing.
const LEFT_ALONE: i32 = 75;

/// A process that may work in the folders of its file, and in no others.
#[derive(Debug)]
pub struct Helper {
    roots: BTreeMap<String, String>,
}

impl Helper {
    /// Reads the file `roots` and gives up all that lies outside of its folders. This holds for the calling thread and those
    /// that it starts, so it is called before there are others.
    ///
    /// # Errors
    /// The file cannot be read or is not to be believed; a kernel that can confine refuses to.
    pub fn prepare(roots: &Path) -> Result<Helper, Failure> {
        let roots = roots::read(roots)?;
        match confine(&roots)? {
            Confined::Wholly => {}
            Confined::Partly => eprintln!("note: this kernel confines the helper's files, and not all else"),
            Confined::Not => eprintln!("note: this kernel has no Landlock, so the helper is not confined"),
        }
        Ok(Helper { roots })
    }

    /// Answers the one request on standard input.
    ///
    /// # Errors
    /// When there is nothing to answer: the request cannot be read.
    pub async fn serve(self) -> Result<(), Failure> {
        serve(&self.roots).await
    }
}

async fn serve(roots: &BTreeMap<String, String>) -> Result<(), Failure> {
    let line = tokio::task::spawn_blocking(read_request)
        .await
        .map_err(|error| Failure::new(FailureKind::Internal, format!("reading ended early: {error}")))??;
    // From here on standard input says only one thing, its end: that nobody waits for the answer.
    let answered = Arc::new(AtomicBool::new(false));
    let done = answered.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().lock().read(&mut [0]);
        if !done.load(Ordering::SeqCst) {
            std::process::exit(LEFT_ALONE);
        }
    });
    let answer = answer_line(roots, &line).await;
    answered.store(true, Ordering::SeqCst);
    let mut out = std::io::stdout().lock();
    writeln!(out, "{answer}")
        .and_then(|()| out.flush())
        .map_err(|error| Failure::new(FailureKind::Unreachable, format!("nobody took the answer: {error}")))
}

fn read_request() -> Result<String, Failure> {
    let input = |message: String| Failure::new(FailureKind::Input, message);
    let mut line = Vec::new();
    // Unbuffered beyond the line: the lock's buffer is the process's own.
    std::io::stdin()
        .lock()
        .take(LONGEST_REQUEST as u64 + 1)
        .read_until(b'\n', &mut line)
        .map_err(|error| input(format!("cannot read the request: {error}")))?;
    if line.last() != Some(&b'\n') {
        return Err(input(format!("the request is not a line of at most {LONGEST_REQUEST} bytes")));
    }
    String::from_utf8(line).map_err(|_| input("the request is no text".into()))
}

/// The answer to a request, as lines of JSON.
pub(crate) async fn answer_line(roots: &BTreeMap<String, String>, line: &str) -> String {
    let answer = match serde_json::from_str::<Request>(line) {
        Ok(request) => answer(roots, request).await.unwrap_or_else(Answer::Failed),
        Err(error) => {
            let message = format!("this is no request to a files helper: {error}");
            Answer::Failed(Failure::new(FailureKind::Input, message))
        }
    };
    serde_json::to_string(&answer).unwrap_or_else(|_| "{}".into())
}

async fn answer(roots: &BTreeMap<String, String>, request: Request) -> Result<Answer, Failure> {
    if request.version != VERSION {
        let message =
            format!("the helper speaks version {VERSION}, and the request version {}", request.version);
        return Err(Failure::new(FailureKind::Input, message)
            .help("install the same version of Farrier on both sides"));
    }
    match request.verb {
        Verb::Usage => act::<Usage>(roots, request).await,
        Verb::Write => act::<Write>(roots, request).await,
        Verb::Archive => act::<Archive>(roots, request).await,
        Verb::CheckArchive => act::<CheckArchive>(roots, request).await,
        Verb::DeleteTree => act::<DeleteTree>(roots, request).await,
    }
}

async fn act<A: Action>(roots: &BTreeMap<String, String>, request: Request) -> Result<Answer, Failure> {
    let input =
        |error: &dyn std::fmt::Display| Failure::new(FailureKind::Input, format!("`{}`: {error}", A::NAME));
    let action: A = request.input.read().map_err(|error| input(&error))?;
    let alias = request.input.get("target").and_then(Value::as_str).unwrap_or("files").to_owned();
    let cx = context(roots, alias, &request)?;
    let value = |output: &A::Output| {
        Value::of(output).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("the output is not a value: {error}"))
        })
    };
    Ok(match request.phase {
        Phase::Plan => {
            let planned = action.plan(&cx).await?;
            Answer::Planned {
                output: planned.output.as_ref().map(value).transpose()?,
                changes: planned.changes,
                unknown: planned.unknown.into_iter().map(str::to_owned).collect(),
                fidelity: planned.fidelity,
                considered: planned.considered,
                notes: planned.notes,
            }
        }
        Phase::Apply => {
            Answer::Applied(value(&action.apply(&WriteCx::after_intent(cx), &request.changes).await?)?)
        }
        Phase::Undo => {
            action.undo(&WriteCx::after_intent(cx), &request.changes).await?;
            Answer::Undone {}
        }
        Phase::Probe => Answer::Probed(match action.probe(&cx, &request.changes).await? {
            Probe::Applied => Probed::Applied,
            Probe::NotApplied => Probed::NotApplied,
            Probe::Unknown => Probed::Unknown,
        }),
    })
}

/// A world of these roots alone.
fn context(roots: &BTreeMap<String, String>, alias: String, request: &Request) -> Result<ReadCx, Failure> {
    let mut registry = ActionRegistry::default();
    registry
        .target::<FilesTarget>()
        .map_err(|error| Failure::new(FailureKind::Internal, error.to_string()))?;
    let folders = roots.iter().map(|(name, folder)| (name.as_str().into(), Value::text(folder.as_str())));
    let config = Value::map([("roots", Value::map(folders.collect::<Vec<(farrier_model::Text, Value)>>()))]);
    let binding = Binding { alias, kind: FilesTarget::KIND.into(), config };
    let targets = Targets::new("/".into(), vec![binding], BTreeMap::new());
    let node = NodeInfo {
        run: request.run,
        node: request.node.clone(),
        attempt: request.attempt,
        effect_id: request.effect.clone(),
    };
    Ok(ReadCx::new(Arc::new(targets), Scope::default(), node))
}
