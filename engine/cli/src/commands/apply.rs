//! `farrier apply`: carry out a saved plan, exactly as it was read, or not at all.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use farrier_exec::driver::Start;
use farrier_exec::{Plan, SavedPlan};
use farrier_model::event::Trigger;
use farrier_model::{Map, Value};
use farrier_runbook::Bundle;
use farrier_runbook::inputs::{Given, check_inputs};
use farrier_store::Clock;

use super::plan::{exit_of, write_plan};
use super::run::{Answers, Session};
use super::{App, Problem, user};
use crate::exit::Exit;
use crate::render;
use crate::render::plan::{Shown, draw};
use crate::render::style::Style;
use crate::stores;
use farrier_project::{Site, Workspace, shown};

#[derive(Debug, Args)]
pub(super) struct Apply {
    /// The file that `farrier plan --out` wrote.
    file: PathBuf,
    #[command(flatten)]
    answers: Answers,
    /// Make a new plan for the same runbook, environment and inputs, write it over the file, and change nothing.
    #[arg(long, conflicts_with = "yes")]
    replan: bool,
    /// How long a new plan is good.
    #[arg(long, default_value = "24h", value_name = "DURATION", value_parser = super::run::duration)]
    expires: Duration,
    /// Tasks at once.
    #[arg(long, default_value_t = 16, value_name = "N")]
    parallel: usize,
}

/// Whether a text is read as the name of a runbook of the project, and not as a path.
fn is_name(text: &str) -> bool {
    !text.contains('/') && Path::new(text).extension().is_none_or(|extension| extension != "yaml")
}

/// The inputs that a plan names, held against the runbook as those of every run are.
fn inputs_of(bundle: &Bundle, saved: &SavedPlan) -> Result<Value, Vec<String>> {
    let given = saved.plan.inputs.as_map().into_iter().flat_map(Map::iter);
    let given = given.map(|(name, value)| (name.clone(), Given::Value(value.clone()))).collect();
    check_inputs(bundle.graph(), &given)
        .map_err(|problems| problems.iter().map(ToString::to_string).collect())
}

impl Apply {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let bytes = std::fs::read(&self.file).map_err(|error| Problem::file(&self.file, error))?;
        let saved = SavedPlan::read(&bytes)
            .map_err(|error| Problem::BadPlan { file: shown(&self.file), reason: error.to_string() })?;
        let now = Clock::system().now();
        if let Some(reason) = saved.is_out_of_date(now).filter(|_| !self.replan) {
            return Err(Problem::PlanGone { reason });
        }
        let bad = |reason: String| Problem::BadPlan { file: shown(&self.file), reason };
        // A path would lead to a runbook that the file brings along.
        if !is_name(&saved.runbook) {
            return Err(bad(format!("`{}` is not the name of a runbook", saved.runbook)));
        }
        let workspace = app.workspace()?;
        let catalog = app.registry.catalog();
        let bundle = workspace.bundle(&saved.runbook, catalog)?;
        let site = workspace.site(&saved.environment, catalog)?;
        site.check(&bundle, &app.registry)?;
        let inputs = inputs_of(&bundle, &saved);
        let mut start = Start {
            world: site.world(),
            inputs: Value::Null,
            trigger: Trigger::Manual { by: user() },
            plan: None,
            bundle: Arc::new(bundle),
        };
        if self.replan {
            start.inputs = inputs.map_err(|problems| Problem::Inputs {
                runbook: saved.runbook.to_string(),
                problems,
                known: start.bundle.graph().inputs.iter().map(|input| input.name.to_string()).collect(),
            })?;
            return self.replan(app, &workspace, &site, &start, &saved).await;
        }
        check_binding(app, &site, &start, &saved)?;
        // The texts are those that the plan was made of, so a plan that was made has inputs that they allow.
        start.inputs = inputs.map_err(|problems| {
            bad(format!("its inputs are not those of `{}`: {}", saved.runbook, problems.join("; ")))
        })?;
        let store = stores::own_of(&workspace, Some(&site)).await?;
        let session = Session::new(app, &store, &self.answers, self.parallel);
        let plan = match saved.plan.run {
            Some(planned) => session.driver.plan_as(&start, planned).await?,
            None => session.driver.plan(&start).await?,
        };
        let drifted = |differences: Vec<String>| Problem::Drift { differences };
        if let Some(failure) = &plan.failure
            && saved.plan.failure.is_none()
        {
            eprint!("{}", draw(&plan, Style::stderr(), Shown { all: false }));
            eprintln!("the plan cannot be made again: {failure}");
            store.close().await;
            return Ok(exit_of(&plan, false));
        }
        let differences = saved.plan.differences(&plan);
        if !differences.is_empty() {
            store.close().await;
            return Err(drifted(differences));
        }
        start.plan = Some(Box::new(saved.bind().map_err(|error| Problem::Other(error.into()))?));
        session.begin(app, &start, &self.answers, store).await
    }

    async fn replan(
        &self,
        app: &App,
        workspace: &Workspace,
        site: &Site,
        start: &Start,
        saved: &SavedPlan,
    ) -> Result<Exit, Problem> {
        let plan: Plan = super::plan::make_to_keep(app, workspace, site, start, self.parallel).await?;
        render::line(draw(&plan, Style::stdout(), Shown { all: false }).trim_end())?;
        for difference in saved.plan.differences(&plan) {
            eprintln!("changed: {difference}");
        }
        if plan.failure.is_some() {
            return Ok(exit_of(&plan, false));
        }
        let new = write_plan(app, site, start, plan.clone(), &self.file, self.expires)?;
        eprintln!("plan {} replaces {} in {}", new.digest.short(), saved.digest.short(), shown(&self.file));
        Ok(exit_of(&plan, false))
    }
}

/// The plan was made of these texts, for these targets.
fn check_binding(app: &App, site: &Site, start: &Start, saved: &SavedPlan) -> Result<(), Problem> {
    let mut differences = Vec::new();
    if start.bundle.digest != saved.bundle {
        differences.push(format!(
            "runbook `{}`, or one that it starts, was changed after the plan was made (texts {} then, {} now)",
            saved.runbook,
            saved.bundle.short(),
            start.bundle.digest.short()
        ));
    }
    let now = site.identities(&start.bundle, &app.registry)?;
    for (alias, then) in &saved.targets {
        match now.get(alias) {
            Some(identity) if identity == then => {}
            Some(identity) => {
                differences.push(format!("target `{alias}` was {then}, and is {identity} now"));
            }
            None => differences.push(format!("target `{alias}` was {then}, and is not used now")),
        }
    }
    for (alias, identity) in now.iter().filter(|(alias, _)| !saved.targets.contains_key(*alias)) {
        differences.push(format!("target `{alias}` was not used, and is {identity} now"));
    }
    if differences.is_empty() { Ok(()) } else { Err(Problem::Drift { differences }) }
}
