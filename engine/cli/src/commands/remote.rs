//! What commands do when a service owns the store: the same, through the service.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use farrier_exec::driver::{Answer as Said, Confirm as _};
use farrier_exec::{Observer as _, ProgressUpdate, RunUpdate};
use farrier_model::time::Timestamp;
use farrier_model::{Event, FailureKind, RunId, RunState, Value};
use farrier_server::wire::{
    AnswerRequest, ApprovalView, CancelRequest, EntryView, PlanAnswer, ResolveRequest, ResumeRequest,
    RunView, SignalRequest, StartRequest, Started,
};

use super::plan::exit_of as exit_of_plan;
use super::run::{Answers, past, print_end};
use super::{App, Problem};
use crate::client::{Client, Heard};
use crate::exit::Exit;
use crate::interact::{Ask, read_line};
use crate::progress::Progress;
use crate::render;
use crate::render::Format;
use crate::render::plan::{Shown, draw};
use crate::render::style::Style;

/// How often a service that went away is looked for again.
const TRIES: u32 = 30;

/// A run through the service: planned, asked about, started with exactly that plan, and followed.
pub(super) async fn start(
    app: &App,
    client: &Client,
    (runbook, environment): (&str, &str),
    inputs: BTreeMap<String, Value>,
    answers: &Answers,
    ask: &Ask,
    detach: bool,
) -> Result<Exit, Problem> {
    let mut request = StartRequest { environment: environment.to_owned(), inputs, plan: None };
    let mut accepted = Vec::new();
    if !detach && !answers.yes {
        let answer: PlanAnswer = client.post(&format!("/api/v1/runbooks/{runbook}/plan"), &request).await?;
        if answer.plan.failure.is_some() {
            eprint!("{}", draw(&answer.plan, Style::stderr(), Shown { all: answers.all }));
            return Ok(exit_of_plan(&answer.plan, false));
        }
        match ask.confirm(&answer.plan).await {
            Said::Proceed { accepted: guards } => accepted = guards.iter().map(ToString::to_string).collect(),
            Said::Decline => {
                eprintln!("nothing was started");
                return Ok(Exit::Cancelled);
            }
        }
        request.plan = answer.saved;
    }
    let started: Started = client.post(&format!("/api/v1/runbooks/{runbook}/runs"), &request).await?;
    if detach {
        render::line(&started.run)?;
        eprintln!("next: farrier show {}", &started.run[..13]);
        return Ok(Exit::Ok);
    }
    if !answers.quiet {
        eprintln!("run {}", started.run);
    }
    follow(app, client, &started.run, 0, answers, &accepted).await
}

/// Lets a run go on, and follows it.
pub(super) async fn resume(
    app: &App,
    client: &Client,
    prefix: &str,
    answers: &Answers,
) -> Result<Exit, Problem> {
    let run = client.find(prefix).await?;
    if run.state.is_final() {
        return Err(Problem::Usage(format!(
            "run {} is over: it {}; start a new one with `farrier run {} --env {}`",
            run.id,
            past(run.state),
            run.runbook,
            run.environment
        )));
    }
    let path = format!("/api/v1/runs/{}/journal", run.id);
    let after = client.get::<Vec<EntryView>>(&path).await?.last().map_or(0, |entry| entry.seq);
    let view = client.run(&run.id).await?;
    if view.state == RunState::Parked {
        let accept = view.guard.clone().filter(|_| answers.accept_guards);
        let _: RunView =
            client.post(&format!("/api/v1/runs/{}/resume", run.id), &ResumeRequest { accept }).await?;
    } else if view.state == RunState::Waiting && !answers.waits_for(view.until.as_deref()) {
        return end(app, &view);
    }
    follow(app, client, &run.id, after, answers, &[]).await
}

/// Shows what happens until the run is over, parked, or waits for longer than the caller does.
async fn follow(
    app: &App,
    client: &Client,
    id: &str,
    mut after: i64,
    answers: &Answers,
    accepted: &[String],
) -> Result<Exit, Problem> {
    let progress = Arc::new(Progress::new(answers.quiet));
    let run: RunId = id.parse().unwrap_or(RunId(uuid::Uuid::nil()));
    let mut tries = 0;
    loop {
        let followed = client.follow(id, after, |heard| {
            let entry = match heard {
                Heard::Entry(entry) => entry,
                Heard::Progress(told) => {
                    let Ok(node) = told.node.parse() else { return false };
                    let told =
                        farrier_action::Progress { done: told.done, total: told.total, text: told.text };
                    let (runbook, depth, told) = ("", 0, Some(&told));
                    progress.progress(ProgressUpdate { run, runbook, depth, node: &node, progress: told });
                    return false;
                }
            };
            progress.update(RunUpdate {
                run,
                runbook: "",
                depth: 0,
                events: std::slice::from_ref(&entry.event),
            });
            match entry.event {
                Event::Finished { .. } | Event::Parked { .. } => true,
                Event::Suspended { until, .. } => !answers.waits_until(until),
                _ => false,
            }
        });
        match followed.await {
            Ok(last) => {
                if last > after {
                    tries = 0;
                }
                after = last;
            }
            Err(Problem::Gone(error)) if tries < TRIES => {
                tracing::info!(%error, "the service went away; it is looked for again");
            }
            Err(problem) => return Err(problem),
        }
        let view = match client.run(id).await {
            Ok(view) => view,
            Err(Problem::Gone(_)) if tries < TRIES => {
                tries += 1;
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            Err(problem) => return Err(problem),
        };
        match view.state {
            RunState::Parked => match &view.guard {
                Some(guard) if accepted.contains(guard) || answers.accept_guards => {
                    let request = ResumeRequest { accept: Some(guard.clone()) };
                    let _: RunView = client.post(&format!("/api/v1/runs/{id}/resume"), &request).await?;
                    continue;
                }
                _ => {}
            },
            RunState::Waiting if answers.waits_for(view.until.as_deref()) => continue,
            RunState::Queued | RunState::Running | RunState::Undoing => {
                tries += 1;
                if tries < TRIES {
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
            }
            _ => {}
        }
        progress.clear();
        return end(app, &view);
    }
}

impl Answers {
    /// Whether the caller stays until then.
    fn waits_until(&self, until: Option<Timestamp>) -> bool {
        until.is_some_and(|until| {
            Duration::try_from(until.duration_since(Timestamp::now())).unwrap_or_default() < self.patience
        })
    }

    fn waits_for(&self, until: Option<&str>) -> bool {
        self.waits_until(until.and_then(|until| until.parse().ok()))
    }
}

fn end(app: &App, view: &RunView) -> Result<Exit, Problem> {
    let changed = view.changed();
    if app.output == Format::Table {
        let failure = view.failure.as_ref().map(|failure| (failure.clone(), None));
        let waits = view.waits.clone().filter(|_| view.state == RunState::Waiting);
        let waits = waits.map(|waits| (waits, view.until.clone()));
        print_end(&super::run::End {
            runbook: &view.runbook,
            run: &view.id,
            state: view.state,
            changed,
            failure,
            parked: view.parked.clone(),
            waits,
            outputs: &view.outputs,
            asks: view.state == RunState::Parked && view.guard.is_some(),
        })?;
    } else {
        let mut short = serde_json::json!({
            "run": view.id, "state": view.state, "changed": changed, "outputs": view.outputs,
            "failure": view.failure, "parked": view.parked,
        });
        if let Some(waits) = view.waits.as_ref().filter(|_| view.state == RunState::Waiting) {
            short["waits"] = waits.as_str().into();
        }
        if let Some(until) = view.until.as_ref().filter(|_| view.state == RunState::Waiting) {
            short["until"] = until.as_str().into();
        }
        render::data(app.output, &short)?;
    }
    Ok(exit_of(view.state, view.kind))
}

/// How a run's end is told to scripts.
pub(super) fn exit_of(state: RunState, failure: Option<FailureKind>) -> Exit {
    match state {
        RunState::Succeeded => Exit::Ok,
        RunState::Degraded => Exit::Degraded,
        RunState::Undone => Exit::Undone,
        RunState::Cancelled => Exit::Cancelled,
        RunState::Failed => match failure {
            Some(FailureKind::Guard) => Exit::Guard,
            Some(FailureKind::Unreachable) => Exit::Unreachable,
            Some(FailureKind::Drift) => Exit::Drift,
            Some(FailureKind::Lock) => Exit::LockBusy,
            Some(FailureKind::Rejected) => Exit::NotApproved,
            _ => Exit::Failed,
        },
        RunState::Waiting => Exit::Waiting,
        RunState::Parked | RunState::Queued | RunState::Running | RunState::Undoing => Exit::Parked,
    }
}

/// Yes or no, after the plan was shown.
pub(super) async fn answer(
    client: &Client,
    prefix: &str,
    step: Option<&str>,
    digest: Option<&str>,
    (word, reason): (Word, Option<String>),
    all: bool,
) -> Result<Exit, Problem> {
    let run = client.find(prefix).await?;
    let view = client.run(&run.id).await?;
    let asked = choose(&view, step)?;
    if let Some(given) = digest
        && !(given.len() >= 8 && asked.digest.starts_with(&given.to_lowercase()))
    {
        return Err(Problem::Refused(farrier_exec::Refusal::Now(format!(
            "the run asks about plan {}, and not about {given}",
            asked.digest.get(..12).unwrap_or(&asked.digest)
        ))));
    }
    eprint!("{}", draw(&asked.plan, Style::stderr(), Shown { all }));
    eprintln!("plan {}", asked.digest);
    if let Word::Yes { sure: false } = word {
        if !std::io::stdin().is_terminal() {
            return Err(Problem::Usage(
                "nobody is here to ask; read the plan, then give `--yes --digest DIGEST`".into(),
            ));
        }
        let line = read_line("Approve exactly this? [y/N] ");
        if !line.is_some_and(|line| matches!(line.to_lowercase().as_str(), "y" | "yes")) {
            eprintln!("nothing was approved");
            return Ok(Exit::NotApproved);
        }
    }
    let request = AnswerRequest { subject: asked.subject.clone(), digest: asked.digest.clone(), reason };
    let path = |what: &str| format!("/api/v1/runs/{}/{what}", run.id);
    match word {
        Word::Yes { .. } => {
            let view: RunView = client.post(&path("approve"), &request).await?;
            let open = view.approvals.iter().find(|open| open.subject == asked.subject);
            match open.map_or(0, |open| (open.count as usize).saturating_sub(open.approved.len())) {
                0 => render::line("approved")?,
                missing => render::line(&format!("approved; {missing} more to come"))?,
            }
        }
        Word::No => {
            let _: RunView = client.post(&path("reject"), &request).await?;
            render::line("rejected")?;
        }
    }
    Ok(Exit::Ok)
}

/// What is answered.
pub(super) enum Word {
    /// Yes; `sure` when nobody needs to be asked again.
    Yes { sure: bool },
    /// No.
    No,
}

fn choose<'a>(view: &'a RunView, step: Option<&str>) -> Result<&'a ApprovalView, Problem> {
    let refused = |why: String| Err(Problem::Refused(farrier_exec::Refusal::Now(why)));
    match (step, view.approvals.as_slice()) {
        (Some(step), all) => match all.iter().find(|open| open.subject == step) {
            Some(open) => Ok(open),
            None => refused(format!("step `{step}` does not wait for an approval")),
        },
        (None, [only]) => Ok(only),
        (None, []) if view.state.is_final() => refused(format!("the run has ended: {}", view.state.name())),
        (None, []) => refused("the run does not wait for an approval".into()),
        (None, many) => {
            let names: Vec<String> = many.iter().map(|open| format!("`{}`", open.subject)).collect();
            Err(Problem::Usage(format!("name the step: {} wait", names.join(", "))))
        }
    }
}

pub(super) async fn signal(
    client: &Client,
    prefix: &str,
    name: &str,
    reason: Option<String>,
) -> Result<Exit, Problem> {
    let run = client.find(prefix).await?;
    let request = SignalRequest { name: name.to_owned(), reason };
    let _: RunView = client.post(&format!("/api/v1/runs/{}/signal", run.id), &request).await?;
    render::line(&format!("signal `{name}` was accepted"))?;
    Ok(Exit::Ok)
}

pub(super) async fn cancel(
    client: &Client,
    prefix: &str,
    undo: bool,
    reason: Option<String>,
) -> Result<Exit, Problem> {
    let run = client.find(prefix).await?;
    let path = format!("/api/v1/runs/{}/cancel", run.id);
    let mut view: RunView = client.post(&path, &CancelRequest { undo, reason }).await?;
    // The wish is in the journal; what is at work may take a while to end.
    let mut after = 0;
    while !view.state.is_final() && !matches!(view.state, RunState::Parked | RunState::Waiting) {
        after = client
            .follow(&run.id, after, |heard| {
                let Heard::Entry(entry) = heard else { return false };
                matches!(entry.event, Event::Finished { .. } | Event::Parked { .. } | Event::Suspended { .. })
            })
            .await?;
        view = client.run(&run.id).await?;
    }
    let why = view.parked.iter().chain(&view.waits).next().filter(|_| !view.state.is_final());
    let why = why.map_or_else(String::new, |why| format!(": {why}"));
    render::line(&format!("run {} {}{why}", run.id, past(view.state)))?;
    Ok(match view.state {
        state if state.is_final() => Exit::Ok,
        RunState::Waiting => Exit::Waiting,
        _ => Exit::Parked,
    })
}

pub(super) async fn resolve(
    client: &Client,
    prefix: &str,
    request: &ResolveRequest,
) -> Result<Exit, Problem> {
    let run = client.find(prefix).await?;
    let ResolveRequest { node, applied, .. } = request;
    let view: RunView = client.post(&format!("/api/v1/runs/{}/resolve", run.id), request).await?;
    let word = if *applied { "applied" } else { "not applied" };
    let is_open =
        view.steps.iter().any(|step| step.node == *node && step.state == farrier_model::NodeState::InDoubt);
    if is_open {
        render::line(&format!("recorded: step `{node}` was {word}; another person has to say the same"))?;
    } else {
        render::line(&format!("step `{node}` counts as {word}"))?;
    }
    Ok(Exit::Ok)
}
