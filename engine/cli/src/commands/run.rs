//! `farrier run` and `farrier resume`: carry out a runbook.

use std::sync::Arc;

use clap::Args;
use farrier_exec::driver::Start;
use farrier_exec::{Driver, Ended, Options};
use farrier_model::event::Trigger;
use farrier_model::{FailureKind, RunState, Text};
use farrier_runbook::compile_bundle;
use farrier_store::{Clock, Mode, SqliteStore, Store};
use serde::Serialize;
use tokio::sync::watch;

use super::runs::find_run;
use super::{App, Choice, Problem};
use crate::exit::Exit;
use crate::interact::Ask;
use crate::progress::Progress;
use crate::project::Workspace;
use crate::render::plan::Shown;
use crate::render::style::Style;
use crate::render::{self, Format};

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    answers: Answers,
}

#[derive(Debug, Args)]
struct Answers {
    /// Make the changes without asking. Guards still stop.
    #[arg(long, short)]
    yes: bool,
    /// Let changes pass that a guard asks about.
    #[arg(long)]
    accept_guards: bool,
    /// Show every change and whole values.
    #[arg(long)]
    all: bool,
    /// Show failures and the result only.
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Debug, Args)]
pub(super) struct Resume {
    /// The run, by the beginning of its id.
    run: String,
    #[command(flatten)]
    answers: Answers,
    /// Tasks at once.
    #[arg(long, default_value_t = 16, value_name = "N")]
    parallel: usize,
}

/// Who is at the keyboard, for the journal.
pub(super) fn user() -> String {
    ["SUDO_USER", "USER", "LOGNAME"]
        .iter()
        .find_map(|name| std::env::var(name).ok().filter(|user| !user.is_empty()))
        .unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw()))
}

impl RunArgs {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let catalog = app.registry.catalog();
        let bundle = workspace.bundle(&self.choice.runbook, catalog)?;
        let site = workspace.site(&self.choice.env, catalog)?;
        site.check(&bundle, &app.registry)?;
        site.may_run(&bundle)?;
        let inputs = self.choice.inputs(bundle.graph())?;
        let store = workspace.store(Some(&site), Mode::Owner).await?;
        let start = Start {
            bundle: Arc::new(bundle),
            world: site.world(),
            inputs,
            trigger: Trigger::Manual { by: user() },
        };
        let session = Session::new(app, &store, &self.answers, self.choice.parallel);
        let ask = self.answers.ask(&start);
        let quiet = self.answers.quiet;
        let ended = session
            .driver
            .start(&start, &ask, |run| {
                if !quiet {
                    eprintln!("run {run}");
                }
            })
            .await;
        session.end(app, &start, ended?, store).await
    }
}

impl Resume {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let (store, start, row) = open_run(app, &workspace, &self.run).await?;
        if row.state.is_final() {
            return Err(Problem::Usage(format!(
                "run {} is over: it {}; start a new one with `farrier run {} --env {}`",
                row.id,
                past(row.state),
                row.runbook,
                row.environment
            )));
        }
        let accepted: Vec<Text> = if self.answers.accept_guards {
            let journal = store.journal(row.id).await?;
            let run = farrier_exec::Run::replay(row.id, start.bundle.graph().clone(), &journal)
                .map_err(|error| Problem::Other(error.into()))?;
            run.asking_guard.into_iter().collect()
        } else {
            Vec::new()
        };
        let session = Session::new(app, &store, &self.answers, self.parallel);
        let ask = self.answers.ask(&start);
        let ended = session.driver.resume(row.id, &start, &ask, &accepted).await;
        session.end(app, &start, ended?, store).await
    }
}

/// Opens the store and prepares a stored run: its pinned texts, compiled, in its own environment.
pub(super) async fn open_run(
    app: &App,
    workspace: &Workspace,
    id: &str,
) -> Result<(SqliteStore, Start, farrier_store::RunRow), Problem> {
    let store = workspace.store(None, Mode::Owner).await?;
    let row = find_run(&store, id).await?;
    let journal = store.journal(row.id).await?;
    let created = journal.first().map(|entry| entry.event.clone());
    let Some(farrier_model::Event::Created { bundle, inputs, trigger, .. }) = created else {
        return Err(Problem::Other(anyhow::anyhow!(
            "the journal of run {} does not begin with `created`",
            row.id
        )));
    };
    let (root, sources) = store
        .bundle(bundle)
        .await?
        .ok_or_else(|| Problem::Other(anyhow::anyhow!("the store has lost the texts of run {}", row.id)))?;
    let catalog = app.registry.catalog();
    let bundle =
        compile_bundle(&root, &sources, catalog).map_err(|mistakes| Problem::Mistakes(Box::new(mistakes)))?;
    let site = workspace.site(&row.environment, catalog)?;
    site.check(&bundle, &app.registry)?;
    let start = Start { bundle: Arc::new(bundle), world: site.world(), inputs, trigger };
    Ok((store, start, row))
}

impl Answers {
    fn ask(&self, start: &Start) -> Ask {
        Ask {
            yes: self.yes,
            accept_guards: self.accept_guards,
            risk: start.bundle.graph().risk,
            shown: Shown { all: self.all },
            quiet: self.quiet,
        }
    }
}

/// One run at a terminal.
struct Session {
    driver: Driver,
    progress: Arc<Progress>,
}

impl Session {
    fn new(app: &App, store: &SqliteStore, answers: &Answers, parallel: usize) -> Session {
        let (stop, cancel) = watch::channel(None);
        tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                eprintln!(
                    "stopping: what is at work finishes, nothing new begins; press Ctrl-C again to leave at once"
                );
                let _ = stop.send(Some(user()));
            }
            if tokio::signal::ctrl_c().await.is_ok() {
                std::process::exit(i32::from(Exit::Cancelled.code()));
            }
        });
        let progress = Arc::new(Progress::new(answers.quiet));
        let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
        let options = Options {
            parallel,
            owner: format!("{} at {host}, process {}", user(), std::process::id()),
            ..Options::default()
        };
        let driver = Driver::new(
            app.registry.clone(),
            Arc::new(store.clone()),
            Clock::system(),
            options,
            progress.clone(),
            cancel,
        );
        Session { driver, progress }
    }

    async fn end(&self, app: &App, start: &Start, ended: Ended, store: SqliteStore) -> Result<Exit, Problem> {
        self.progress.clear();
        let exit = exit_of(&ended);
        if app.output == Format::Table {
            print_end(start, &ended)?;
        } else {
            render::data(app.output, &EndedView::of(&ended))?;
        }
        store.close().await;
        Ok(exit)
    }
}

#[derive(Serialize)]
struct EndedView<'a> {
    run: String,
    state: RunState,
    changed: u64,
    outputs: &'a farrier_model::Value,
    failure: &'a Option<farrier_model::Failure>,
    parked: &'a Option<String>,
}

impl EndedView<'_> {
    fn of(ended: &Ended) -> EndedView<'_> {
        EndedView {
            run: ended.run.to_string(),
            state: ended.state,
            changed: ended.changed,
            outputs: &ended.outputs,
            failure: &ended.failure,
            parked: &ended.parked,
        }
    }
}

/// What a state means for a run that is over.
pub(super) fn past(state: RunState) -> &'static str {
    match state {
        RunState::Succeeded => "succeeded",
        RunState::Degraded => "finished degraded",
        RunState::Failed => "failed",
        RunState::Undone => "failed and was undone",
        RunState::Cancelled => "was cancelled",
        RunState::Parked => "waits for a person",
        RunState::Queued | RunState::Running | RunState::Waiting | RunState::Undoing => "is not over",
    }
}

fn print_end(start: &Start, ended: &Ended) -> Result<(), Problem> {
    let style = Style::stdout();
    let name = &start.bundle.root;
    let changed = match ended.changed {
        0 => "no changes".to_owned(),
        1 => "1 change made".to_owned(),
        many => format!("{many} changes made"),
    };
    let verdict = match ended.state {
        RunState::Succeeded => style.good("succeeded"),
        RunState::Degraded | RunState::Parked | RunState::Cancelled | RunState::Undone => {
            style.warn(past(ended.state))
        }
        _ => style.bad(past(ended.state)),
    };
    render::line(&format!("{name} {verdict}: {changed}"))?;
    if let Some(failure) = &ended.failure {
        render::line(&format!("  {failure}"))?;
        if let Some(help) = &failure.help {
            render::line(&format!("  {help}"))?;
        }
    }
    if let Some(parked) = &ended.parked {
        render::line(&format!("  {parked}"))?;
    }
    if let Some(outputs) = ended.outputs.as_map() {
        for (key, value) in outputs.iter() {
            render::line(&format!("  {key}: {value}"))?;
        }
    }
    let short = &ended.run.to_string()[..13];
    match ended.state {
        RunState::Parked if ended.guard.is_some() => {
            eprintln!("next: farrier show {short}; then `farrier resume {short} --accept-guards --yes`");
        }
        _ => eprintln!("next: farrier show {short}"),
    }
    Ok(())
}

fn exit_of(ended: &Ended) -> Exit {
    match ended.state {
        RunState::Succeeded => Exit::Ok,
        RunState::Degraded => Exit::Degraded,
        RunState::Undone => Exit::Undone,
        RunState::Cancelled => Exit::Cancelled,
        RunState::Failed => match &ended.failure {
            Some(failure) if failure.kind == FailureKind::Guard => Exit::Guard,
            Some(failure) if failure.kind == FailureKind::Unreachable => Exit::Unreachable,
            _ => Exit::Failed,
        },
        RunState::Parked | RunState::Queued | RunState::Running | RunState::Waiting | RunState::Undoing => {
            Exit::Parked
        }
    }
}
