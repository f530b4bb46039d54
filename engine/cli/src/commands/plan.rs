//! `farrier plan`: what a runbook would change.

use std::sync::Arc;

use clap::Args;
use farrier_exec::driver::{Start, Unobserved};
use farrier_exec::{Driver, Options, Plan};
use farrier_model::FailureKind;
use farrier_model::event::Trigger;
use farrier_store::{Clock, MemoryStore};
use tokio::sync::watch;

use super::run::user;
use super::{App, Choice, Problem};
use crate::exit::Exit;
use crate::render::plan::{Shown, draw};
use crate::render::style::Style;
use crate::render::{self, Format};

#[derive(Debug, Args)]
pub(super) struct PlanArgs {
    #[command(flatten)]
    choice: Choice,
    /// Show every change and whole values.
    #[arg(long)]
    all: bool,
    /// End with 2 when there are changes, with 3 when parts are known only while running.
    #[arg(long)]
    detailed_exitcode: bool,
}

impl PlanArgs {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let catalog = app.registry.catalog();
        let bundle = workspace.bundle(&self.choice.runbook, catalog)?;
        let site = workspace.site(&self.choice.env, catalog)?;
        site.check(&bundle, &app.registry)?;
        let inputs = self.choice.inputs(bundle.graph())?;
        let start = Start {
            bundle: Arc::new(bundle),
            world: site.world(),
            inputs,
            trigger: Trigger::Manual { by: user() },
        };
        let (_stop, cancel) = watch::channel(None);
        let options = Options { parallel: self.choice.parallel, ..Options::default() };
        // A plan keeps no journal, so the store is never written.
        let store = Arc::new(MemoryStore::default());
        let driver =
            Driver::new(app.registry.clone(), store, Clock::system(), options, Arc::new(Unobserved), cancel);
        let plan = driver.plan(&start).await?;
        if app.output == Format::Table {
            render::line(draw(&plan, Style::stdout(), Shown { all: self.all }).trim_end())?;
            if plan.failure.is_none() && !plan.is_empty() && plan.finished_early.is_none() {
                eprintln!(
                    "\nto make these changes: farrier run {} --env {}",
                    self.choice.runbook, self.choice.env
                );
            }
        } else {
            render::data(app.output, &plan)?;
        }
        Ok(exit_of(&plan, self.detailed_exitcode))
    }
}

fn exit_of(plan: &Plan, detailed: bool) -> Exit {
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
