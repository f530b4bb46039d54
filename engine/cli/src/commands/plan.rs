//! `farrier plan`: what a runbook would change.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use farrier_exec::driver::{Start, Unobserved};
use farrier_exec::{Driver, Halt, Options, Plan, SavedPlan};
use farrier_model::FailureKind;
use farrier_model::event::Trigger;
use farrier_model::time::{Timestamp, parse_timestamp};
use farrier_store::{Clock, MemoryStore, Store, StoreError};
use tokio::sync::watch;

use super::plan_alert::PlanAlert;
use super::{App, Choice, Problem, user};
use crate::exit::Exit;
use crate::render::plan::{Shown, draw};
use crate::render::style::Style;
use crate::render::{self, Format};
use crate::stores;
use farrier_project::{Site, Workspace, shown};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    /// Name of a runbook, or the path of its file.
    #[arg(required_unless_present = "alert")]
    runbook: Option<String>,
    /// The environment. There is no default.
    #[arg(long, short, value_name = "NAME", required_unless_present = "alert")]
    env: Option<String>,
    /// An input of the runbook; lists as `a,b,c` or JSON.
    #[arg(long = "input", short, value_name = "KEY=VALUE")]
    inputs: Vec<String>,
    /// Tasks at once.
    #[arg(long, default_value_t = 16, value_name = "N")]
    parallel: usize,
    /// Show instead what a message of Alertmanager in this file would do, and the plans of the runs that it would start.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["runbook", "inputs", "out"])]
    alert: Option<PathBuf>,
    /// The receiver that the message comes in under; that of the message itself without it.
    #[arg(long, value_name = "NAME", requires = "alert")]
    receiver: Option<String>,
    /// Show every change and whole values.
    #[arg(long)]
    all: bool,
    /// Save the plan, to be carried out later with `farrier apply`: exactly as it is, once, and before it expires.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// How long the saved plan is good.
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = super::run::duration)]
    expires: Duration,
    /// Plan as if the run began at this moment, such as `2026-10-25T03:00:00Z`; what targets answer is of now.
    #[arg(long, value_name = "TIME", value_parser = moment, conflicts_with = "out")]
    at: Option<Timestamp>,
    /// End with 2 when there are changes, with 3 when parts are known only while running.
    #[arg(long)]
    detailed_exitcode: bool,
}

impl PlanArgs {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(payload) = &self.alert {
            let wanted = PlanAlert {
                payload,
                receiver: self.receiver.as_deref(),
                environment: self.env.as_deref(),
                parallel: self.parallel,
                all: self.all,
                detailed: self.detailed_exitcode,
            };
            return wanted.run(app).await;
        }
        let choice = Choice {
            runbook: self.runbook.clone().unwrap_or_default(),
            env: self.env.clone().unwrap_or_default(),
            inputs: self.inputs.clone(),
            parallel: self.parallel,
        };
        let workspace = app.workspace()?;
        let catalog = app.registry.catalog();
        let bundle = workspace.bundle(&choice.runbook, catalog)?;
        let site = workspace.site(&choice.env, catalog)?;
        site.check(&bundle, &app.registry)?;
        let inputs = choice.inputs(bundle.graph())?;
        let start = Start {
            bundle: Arc::new(bundle),
            world: site.world(),
            inputs,
            trigger: Trigger::Manual { by: user() },
            plan: None,
        };
        let clock = self.at.map_or_else(Clock::system, |at| Clock::from_fn(move || at));
        let plan = if self.out.is_some() {
            make_to_keep(app, &workspace, &site, &start, choice.parallel).await?
        } else {
            let (driver, _halt) = driver(app, &workspace, &site, choice.parallel, clock).await?;
            driver.plan(&start).await?
        };
        if let Some(out) = &self.out {
            if let Some(failure) = &plan.failure {
                eprintln!("not saved, since the plan is not whole: {failure}");
            } else {
                let saved = write_plan(app, &site, &start, plan.clone(), out, self.expires)?;
                eprintln!("plan {} saved in {}, good until {}", saved.digest, shown(out), saved.expires_at);
            }
        }
        if app.output == Format::Table {
            render::line(draw(&plan, Style::stdout(), Shown { all: self.all }).trim_end())?;
            if let Some(out) = &self.out {
                if plan.failure.is_none() {
                    eprintln!("\nto make exactly these changes: farrier apply {}", shown(out));
                }
            } else if plan.failure.is_none() && !plan.is_empty() && plan.finished_early.is_none() {
                eprintln!("\nto make these changes: farrier run {} --env {}", choice.runbook, choice.env);
            }
        } else {
            render::data(app.output, &plan)?;
        }
        Ok(exit_of(&plan, self.detailed_exitcode))
    }
}

fn moment(text: &str) -> Result<Timestamp, String> {
    parse_timestamp(text).ok_or_else(|| format!("`{text}` is not a time such as `2026-10-25T03:00:00Z`"))
}

/// A dry run. What the store knows of earlier runs is read for guards over a rate; nothing is written.
pub(super) async fn make(
    app: &App,
    workspace: &Workspace,
    site: &Site,
    start: &Start,
    parallel: usize,
) -> Result<Plan, Problem> {
    let (driver, _halt) = driver(app, workspace, site, parallel, Clock::system()).await?;
    Ok(driver.plan(start).await?)
}

/// The same of the run that will carry the plan out, for a plan that is kept until then.
pub(super) async fn make_to_keep(
    app: &App,
    workspace: &Workspace,
    site: &Site,
    start: &Start,
    parallel: usize,
) -> Result<Plan, Problem> {
    let (driver, _halt) = driver(app, workspace, site, parallel, Clock::system()).await?;
    Ok(driver.plan_as(start, driver.next_run()).await?)
}

async fn driver(
    app: &App,
    workspace: &Workspace,
    site: &Site,
    parallel: usize,
    clock: Clock,
) -> Result<(Driver, watch::Sender<Halt>), Problem> {
    let (stop, halt) = watch::channel(Halt::No);
    let options = Options { parallel, ..Options::default() };
    let store: Arc<dyn Store> = match stores::read_of(workspace, Some(site)).await {
        Ok(store) => Arc::new(store),
        // Nothing has run there yet.
        Err(Problem::Store(StoreError::Missing { .. } | StoreError::OlderSchema { .. })) => {
            Arc::new(MemoryStore::default())
        }
        Err(problem) => return Err(problem),
    };
    let driver = Driver::new(app.registry.clone(), store, clock, options, Arc::new(Unobserved), halt);
    Ok((driver, stop))
}

/// Saves a plan: whole or not at all, readable by its owner alone.
pub(super) fn write_plan(
    app: &App,
    site: &Site,
    start: &Start,
    plan: Plan,
    out: &Path,
    good_for: Duration,
) -> Result<SavedPlan, Problem> {
    let targets = site.identities(&start.bundle, &app.registry)?;
    let now = Clock::system().now();
    let saved = SavedPlan::new(plan, start.bundle.digest, targets, user(), (now, now + good_for))
        .map_err(|error| Problem::Other(error.into()))?;
    let text = saved.to_text().map_err(|error| Problem::Other(error.into()))?;
    let folder = out.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let write = || -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(folder)?;
        file.write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist(out).map_err(|error| error.error)?;
        Ok(())
    };
    write().map_err(|error| Problem::Unwritable { path: out.to_path_buf(), source: error })?;
    Ok(saved)
}

pub(super) fn exit_of(plan: &Plan, detailed: bool) -> Exit {
    match &plan.failure {
        Some(failure) if failure.kind == FailureKind::Guard => return Exit::Guard,
        Some(_) => return Exit::Error,
        None => {}
    }
    if plan.tripped().is_some() {
        return Exit::Guard;
    }
    match (detailed, plan.is_certain(), plan.summary.total()) {
        (false, ..) | (true, true, 0) => Exit::Ok,
        (true, true, _) => Exit::PlanChanges,
        (true, false, _) => Exit::PlanUnknown,
    }
}
