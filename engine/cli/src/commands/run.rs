//! `farrier run` and `farrier resume`: carry out a runbook.

use std::sync::Arc;

use clap::Args;
use farrier_exec::driver::Start;
use farrier_exec::{Driver, Ended, Halt, Observer, Options};
use farrier_model::event::Trigger;
use farrier_model::spec::Risk;
use farrier_model::time::parse_duration;
use farrier_model::{Event, RunState, Text, Value};
use farrier_runbook::compile_bundle;
use farrier_store::{Clock, RunRow, SqliteStore, Store};
use serde::Serialize;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::{App, Choice, Problem, remote, user};
use crate::client;
use crate::exit::Exit;
use crate::interact::Ask;
use crate::progress::Progress;
use crate::render::plan::Shown;
use crate::render::style::Style;
use crate::render::{self, Format};
use crate::stores;
use farrier_project::Workspace;

#[derive(Debug, Args)]
pub(super) struct RunArgs {
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    answers: Answers,
    /// Only put the run on disk, and leave it to `farrier serve`. Nobody is asked before it writes.
    #[arg(long, conflicts_with_all = ["accept_guards", "quiet"])]
    detach: bool,
}

#[derive(Debug, Args)]
pub(super) struct Answers {
    /// Make the changes without asking. Guards still stop.
    #[arg(long, short)]
    pub(super) yes: bool,
    /// Let changes pass that a guard asks about.
    #[arg(long)]
    pub(super) accept_guards: bool,
    /// Show every change and whole values.
    #[arg(long)]
    pub(super) all: bool,
    /// Show failures and the result only.
    #[arg(long, short)]
    pub(super) quiet: bool,
    /// How long to stay when the run waits for a time; a longer wait leaves it to be resumed.
    #[arg(long, default_value = "15m", value_name = "DURATION", value_parser = duration)]
    pub(super) patience: Duration,
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text).ok_or_else(|| format!("`{text}` is not a duration such as `90s` or `2h`"))
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

impl RunArgs {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let catalog = app.registry.catalog();
        let bundle = workspace.bundle(&self.choice.runbook, catalog)?;
        let site = workspace.site(&self.choice.env, catalog)?;
        site.check(&bundle, &app.registry)?;
        let inputs = self.choice.inputs(bundle.graph())?;
        if let Some(client) = client::at(app, &workspace.data_dir(Some(&site))?).await? {
            let graph = bundle.graph();
            let ask = self.answers.ask_of(graph.risk);
            let given = self.choice.given()?;
            let place = (&*graph.name, &*self.choice.env);
            return remote::start(app, &client, place, given, &self.answers, &ask, self.detach).await;
        }
        let store = stores::own_of(&workspace, Some(&site)).await?;
        let start = Start {
            bundle: Arc::new(bundle),
            world: site.world(),
            inputs,
            trigger: Trigger::Manual { by: user() },
            plan: None,
        };
        let session = Session::new(app, &store, &self.answers, self.choice.parallel);
        if self.detach {
            let run = session.driver.enqueue(&start).await?;
            store.close().await;
            render::line(&run.to_string())?;
            eprintln!("next: farrier serve");
            return Ok(Exit::Ok);
        }
        session.begin(app, &start, &self.answers, store).await
    }
}

impl Resume {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(client) = client::named(app)? {
            return remote::resume(app, &client, &self.run, &self.answers).await;
        }
        let workspace = app.workspace()?;
        if let Some(client) = stores::service_of(app, &workspace, &self.run).await? {
            return remote::resume(app, &client, &self.run, &self.answers).await;
        }
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
    let (store, row) = stores::find_own(app, workspace, id).await?;
    let start = start_of(app, workspace, &store, &row).await?;
    Ok((store, start, row))
}

/// What a stored run starts from.
pub(super) async fn start_of(
    app: &App,
    workspace: &Workspace,
    store: &SqliteStore,
    row: &RunRow,
) -> Result<Start, Problem> {
    let created = store.journal(row.id).await?.into_iter().next().map(|entry| entry.event);
    let Some(Event::Created { bundle, inputs, trigger, plan, .. }) = created else {
        return Err(Problem::Other(anyhow::anyhow!(
            "the journal of run {} does not begin with `created`",
            row.id
        )));
    };
    let (_, sources) = store
        .bundle(bundle)
        .await?
        .ok_or_else(|| Problem::Other(anyhow::anyhow!("the store has lost the texts of run {}", row.id)))?;
    let catalog = app.registry.catalog();
    // A child run shares its parent's texts; its root is its own runbook.
    let bundle = compile_bundle(&row.runbook, &sources, catalog)
        .map_err(|mistakes| Problem::Mistakes(Box::new(mistakes)))?;
    let site = workspace.site(&row.environment, catalog)?;
    site.check(&bundle, &app.registry)?;
    Ok(Start { bundle: Arc::new(bundle), world: site.world(), inputs, trigger, plan })
}

impl Answers {
    pub(super) fn ask(&self, start: &Start) -> Ask {
        self.ask_of(start.bundle.graph().risk)
    }

    pub(super) fn ask_of(&self, risk: Risk) -> Ask {
        Ask {
            yes: self.yes,
            accept_guards: self.accept_guards,
            risk,
            shown: Shown { all: self.all },
            quiet: self.quiet,
        }
    }
}

/// Who owns the runs of this process, for people.
pub(super) fn owner() -> String {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{} at {host}, process {}", user(), std::process::id())
}

/// A driver for the runs of a store.
pub(super) fn driver(
    app: &App,
    store: &SqliteStore,
    options: Options,
    observer: Arc<dyn Observer>,
    halt: watch::Receiver<Halt>,
) -> Driver {
    let options = Options { owner: owner(), ..options };
    Driver::new(app.registry.clone(), Arc::new(store.clone()), Clock::system(), options, observer, halt)
}

/// Ctrl-C, once and twice, and the wish of whoever started this process that it ends.
pub(super) fn listen(cancels: bool) -> watch::Receiver<Halt> {
    let (stop, halt) = watch::channel(Halt::No);
    tokio::spawn(async move {
        let (Ok(mut interrupt), Ok(mut terminate)) =
            (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
        else {
            return;
        };
        let cancel = tokio::select! {
            _ = interrupt.recv() => cancels,
            _ = terminate.recv() => false,
        };
        if cancel {
            eprintln!(
                "stopping: what is at work finishes, nothing new begins; press Ctrl-C again to leave at once"
            );
            let _ = stop.send(Halt::Cancel { by: user() });
        } else {
            eprintln!("stopping: what is at work may finish, and runs go on when they are taken up again");
            let _ = stop.send(Halt::LetGo);
        }
        interrupt.recv().await;
        std::process::exit(i32::from(Exit::Cancelled.code()));
    });
    halt
}

/// One run at a terminal.
pub(super) struct Session {
    pub(super) driver: Driver,
    progress: Arc<Progress>,
}

impl Session {
    pub(super) fn new(app: &App, store: &SqliteStore, answers: &Answers, parallel: usize) -> Session {
        let progress = Arc::new(Progress::new(answers.quiet));
        let options = Options { parallel, patience: answers.patience, ..Options::default() };
        let driver = driver(app, store, options, progress.clone(), listen(true));
        Session { driver, progress }
    }

    /// Starts a run, names it and sees it to its end.
    pub(super) async fn begin(
        &self,
        app: &App,
        start: &Start,
        answers: &Answers,
        store: SqliteStore,
    ) -> Result<Exit, Problem> {
        let ask = answers.ask(start);
        let named = |run| {
            if !answers.quiet {
                eprintln!("run {run}");
            }
        };
        let ended = self.driver.start(start, &ask, named).await;
        self.end(app, start, ended?, store).await
    }

    async fn end(&self, app: &App, start: &Start, ended: Ended, store: SqliteStore) -> Result<Exit, Problem> {
        self.progress.clear();
        let exit = remote::exit_of(ended.state, ended.failure.as_ref().map(|failure| failure.kind));
        if app.output == Format::Table {
            print_end(&End {
                runbook: &start.bundle.root,
                run: &ended.run.to_string(),
                state: ended.state,
                changed: ended.changed,
                failure: ended.failure.as_ref().map(|failure| (failure.to_string(), failure.help.clone())),
                parked: ended.parked.clone(),
                waits: ended.waits.clone().map(|(reason, until)| (reason, until.map(|at| at.to_string()))),
                outputs: &ended.outputs,
                asks: ended.guard.is_some(),
            })?;
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
    #[serde(skip_serializing_if = "Option::is_none")]
    waits: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    until: Option<String>,
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
            waits: ended.waits.as_ref().map(|(reason, _)| reason.as_str()),
            until: ended.waits.as_ref().and_then(|(_, until)| until.map(|until| until.to_string())),
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
        RunState::Waiting => "waits",
        RunState::Queued | RunState::Running | RunState::Undoing => "is not over",
    }
}

/// How a run ended, or why it stopped for now, as it is told to people.
pub(super) struct End<'a> {
    pub(super) runbook: &'a str,
    pub(super) run: &'a str,
    pub(super) state: RunState,
    pub(super) changed: u64,
    /// With its help.
    pub(super) failure: Option<(String, Option<String>)>,
    pub(super) parked: Option<String>,
    /// What it waits for, and until when.
    pub(super) waits: Option<(String, Option<String>)>,
    pub(super) outputs: &'a Value,
    /// A guard asks.
    pub(super) asks: bool,
}

pub(super) fn print_end(end: &End<'_>) -> Result<(), Problem> {
    let style = Style::stdout();
    let name = end.runbook;
    let changed = match end.changed {
        0 => "no changes".to_owned(),
        1 => "1 change made".to_owned(),
        many => format!("{many} changes made"),
    };
    let verdict = match end.state {
        RunState::Succeeded => style.good("succeeded"),
        RunState::Degraded
        | RunState::Parked
        | RunState::Cancelled
        | RunState::Undone
        | RunState::Waiting => style.warn(past(end.state)),
        _ => style.bad(past(end.state)),
    };
    render::line(&format!("{name} {verdict}: {changed}"))?;
    if let Some((failure, help)) = &end.failure {
        render::line(&format!("  {failure}"))?;
        if let Some(help) = help {
            render::line(&format!("  {help}"))?;
        }
    }
    if let Some(parked) = &end.parked {
        render::line(&format!("  {parked}"))?;
    }
    if let Some((waits, until)) = &end.waits {
        let until = until.as_ref().map_or_else(String::new, |until| format!(" (due {until})"));
        render::line(&format!("  {waits}{until}"))?;
    }
    if let Some(outputs) = end.outputs.as_map() {
        for (key, value) in outputs.iter() {
            render::line(&format!("  {key}: {value}"))?;
        }
    }
    let short = &end.run[..13];
    match end.state {
        RunState::Parked if end.asks => {
            eprintln!("next: farrier show {short}; then `farrier resume {short} --accept-guards --yes`");
        }
        RunState::Waiting => eprintln!(
            "next: `farrier show {short}` says what it waits for; then `farrier resume {short}`, or let `farrier serve` take it up"
        ),
        _ => eprintln!("next: farrier show {short}"),
    }
    Ok(())
}
