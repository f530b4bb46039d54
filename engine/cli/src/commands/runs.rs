//! `farrier runs`, `farrier show` and `farrier logs`: what is stored about runs. They only read, also while another
//! process works.

use clap::Args;
use farrier_exec::{Plan, Run};
use farrier_model::{BoundPlan, Event, FailureKind, NodeEvent, NodeState, RunState, Subject};
use farrier_runbook::compile_bundle;
use farrier_server::wire::{EntryView, RunPage, RunSummary, RunView, describe_wait};
use farrier_store::{RunFilter, RunRow, SqliteStore, Store};

use super::run::past;
use super::{App, Problem};
use crate::client;
use crate::exit::Exit;
use crate::render::style::Style;
use crate::render::{self, Format, table};
use crate::stores;

#[derive(Debug, Args)]
pub(super) struct Runs {
    /// Only runs of this runbook.
    #[arg(long)]
    runbook: Option<String>,
    /// Only runs in this state.
    #[arg(long, value_parser = parse_state)]
    state: Option<RunState>,
    /// At most so many.
    #[arg(long, short = 'n', default_value_t = 20)]
    limit: usize,
}

fn parse_state(text: &str) -> Result<RunState, String> {
    RunState::from_name(text).ok_or_else(|| format!("`{text}` is not a state of a run"))
}

impl Runs {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(client) = client::named(app)? {
            return Runs::list(app, &client.get::<RunPage>(&self.query()).await?.runs);
        }
        let stores = stores::read_all(app, &app.workspace()?).await?;
        let filter = RunFilter {
            runbook: self.runbook.as_deref().map(Into::into),
            states: self.state.into_iter().collect(),
            limit: Some(self.limit),
            ..RunFilter::default()
        };
        let mut rows = Vec::new();
        for store in stores {
            rows.extend(store.runs(filter.clone()).await?);
        }
        rows.sort_by_key(|row| std::cmp::Reverse((row.created_at, row.id)));
        rows.truncate(self.limit);
        let views: Vec<RunSummary> = rows.iter().map(RunSummary::of).collect();
        Runs::list(app, &views)
    }

    fn query(&self) -> String {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        query.append_pair("limit", &self.limit.to_string());
        if let Some(runbook) = &self.runbook {
            query.append_pair("runbook", runbook);
        }
        if let Some(state) = self.state {
            query.append_pair("state", state.name());
        }
        format!("/api/v1/runs?{}", query.finish())
    }

    fn list(app: &App, views: &[RunSummary]) -> Result<Exit, Problem> {
        if render::data(app.output, &views)? {
            return Ok(Exit::Ok);
        }
        let lines: Vec<Vec<String>> = views
            .iter()
            .map(|view| {
                vec![
                    view.id[..13].to_owned(),
                    view.state.name().to_owned(),
                    view.created_at[..19].replace('T', " "),
                    view.environment.clone(),
                    view.title.clone(),
                    view.reason.clone().unwrap_or_default(),
                ]
            })
            .collect();
        render::line(&table::draw(
            &["RUN", "STATE", "STARTED (UTC)", "ENVIRONMENT", "TITLE", "REASON"],
            &lines,
        ))?;
        Ok(Exit::Ok)
    }
}

#[derive(Debug, Args)]
pub(super) struct Show {
    /// The run, by the beginning of its id.
    run: String,
    /// Show every change.
    #[arg(long)]
    all: bool,
}

/// A plan from a journal.
pub(super) fn stored_plan(plan: &BoundPlan) -> Result<Plan, Problem> {
    Plan::of_bound(plan).map_err(unreadable_plan)
}

fn unreadable_plan(error: String) -> Problem {
    Problem::Other(anyhow::anyhow!("a stored plan cannot be read: {error}"))
}

impl Show {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(client) = client::named(app)? {
            let run = client.find(&self.run).await?;
            return self.tell(app, &client.run(&run.id).await?);
        }
        let (store, row) = stores::find(app, &app.workspace()?, &self.run).await?;
        let run = replay(app, &store, &row).await?;
        let view = RunView::of(&row, &run).map_err(unreadable_plan)?;
        self.tell(app, &view)
    }

    fn tell(&self, app: &App, view: &RunView) -> Result<Exit, Problem> {
        if render::data(app.output, view)? {
            return Ok(Exit::Ok);
        }
        self.draw(view)
    }

    fn draw(&self, view: &RunView) -> Result<Exit, Problem> {
        let style = Style::stdout();
        render::line(&format!("{} {}", style.bold(&view.title), view.id))?;
        let finished = view.finished_at.as_deref().map_or(String::new(), |at| format!(", ended {at}"));
        let state = if view.state.is_final() { past(view.state) } else { view.state.name() };
        render::line(&format!("  {state} in {}; started {}{finished}", view.environment, view.created_at))?;
        for reason in view.failure.iter().chain(&view.parked) {
            render::line(&format!("  {}", style.bad(reason)))?;
        }
        if let Some(waits) = &view.waits {
            let until = view.until.as_ref().map_or_else(String::new, |until| format!(" (due {until})"));
            render::line(&format!("  {}", style.warn(&format!("{waits}{until}"))))?;
        }
        if let Some(plan) = &view.plan {
            render::line(&format!("  carries out saved plan {plan}"))?;
        }
        render::line("")?;
        let width = view.steps.iter().map(|step| step.node.chars().count()).max().unwrap_or(0);
        for step in &view.steps {
            let state = match step.state {
                NodeState::Succeeded => style.good("succeeded"),
                // Nothing was overwritten: another thing than a step that failed at its work.
                NodeState::Failed if step.kind == Some(FailureKind::Drift) => style.warn("drift"),
                NodeState::Failed | NodeState::InDoubt => style.bad(step.state.name()),
                NodeState::Pending | NodeState::Skipped | NodeState::Blocked => style.dim(step.state.name()),
                other => style.warn(other.name()),
            };
            let mut line = format!("  {:width$}  {state}", step.node);
            if step.changed > 0 {
                line.push_str(&format!(", {} changed", step.changed));
            }
            if step.attempt > 1 {
                line.push_str(&format!(", attempt {}", step.attempt));
            }
            for reason in step.failure.iter().chain(&step.reason) {
                line.push_str(&format!(": {reason}"));
            }
            render::line(&line)?;
            let shown = if self.all { usize::MAX } else { 6 };
            for change in step.changes.iter().take(shown) {
                render::line(&format!("      {} {}", change.kind.name(), change.object))?;
            }
            if step.changes.len() > shown {
                render::line(&format!(
                    "      … and {} more (all of them with --all)",
                    step.changes.len() - shown
                ))?;
            }
        }
        if let Some(outputs) = view.outputs.as_map() {
            render::line("")?;
            for (key, value) in outputs.iter() {
                render::line(&format!("  {key}: {value}"))?;
            }
        }
        let shown = crate::render::plan::Shown { all: self.all };
        if let Some(asks) = &view.asks {
            render::line("\nThe guard asks about:")?;
            render::line(crate::render::plan::draw(asks, style, shown).trim_end())?;
        }
        for asked in &view.approvals {
            let of =
                if asked.who.is_empty() { String::new() } else { format!(" of {}", asked.who.join(", ")) };
            let given = if asked.approved.is_empty() {
                String::new()
            } else {
                format!("; given by {}", asked.approved.join(", "))
            };
            let subject =
                if asked.subject == "-" { "the run".into() } else { format!("`{}`", asked.subject) };
            render::line(&format!(
                "\nApproval of {subject}: {} needed{of}{given}. Plan {}:",
                asked.count, asked.digest
            ))?;
            render::line(crate::render::plan::draw(&asked.plan, style, shown).trim_end())?;
        }
        let short = &view.id[..13];
        if let Some(asked) = view.approvals.first() {
            eprintln!("next: farrier approve {short} '{0}', or farrier reject {short} '{0}'", asked.subject);
            return Ok(Exit::Ok);
        }
        let in_doubt = view.steps.iter().find(|step| step.state == NodeState::InDoubt);
        match (view.state, in_doubt) {
            (RunState::Parked, Some(step)) => {
                let gave: String = step.must_say.iter().map(|field| format!(" --result {field}=…")).collect();
                eprintln!(
                    "next: look at the target of `{0}`, then `farrier resolve {short} '{0}' --applied{gave} --reason …` or \
                     `--not-applied`",
                    step.node
                );
            }
            (RunState::Parked, None) if view.guard.is_some() => {
                eprintln!("next: farrier resume {short} --accept-guards --yes");
            }
            (RunState::Parked, None) => eprintln!("next: farrier resume {short}"),
            (RunState::Waiting, _) => {
                eprintln!("next: when it is due, farrier resume {short}, or let `farrier serve` take it up");
            }
            (state, _) if !state.is_final() => {
                eprintln!("next: if nothing works on it any more, farrier resume {short}");
            }
            _ => {}
        }
        Ok(Exit::Ok)
    }
}

async fn replay(app: &App, store: &SqliteStore, row: &RunRow) -> Result<Run, Problem> {
    let journal = store.journal(row.id).await?;
    let Some(Event::Created { bundle, .. }) = journal.first().map(|entry| &entry.event) else {
        return Err(Problem::Other(anyhow::anyhow!(
            "the journal of run {} does not begin with `created`",
            row.id
        )));
    };
    let (_, sources) = store
        .bundle(*bundle)
        .await?
        .ok_or_else(|| Problem::Other(anyhow::anyhow!("the store has lost the texts of run {}", row.id)))?;
    let bundle = compile_bundle(&row.runbook, &sources, app.registry.catalog())
        .map_err(|mistakes| Problem::Mistakes(Box::new(mistakes)))?;
    Run::replay(row.id, bundle.graph().clone(), &journal).map_err(|error| Problem::Other(error.into()))
}

#[derive(Debug, Args)]
pub(super) struct Logs {
    /// The run, by the beginning of its id.
    run: String,
}

impl Logs {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let journal: Vec<EntryView> = if let Some(client) = client::named(app)? {
            let run = client.find(&self.run).await?;
            client.get(&format!("/api/v1/runs/{}/journal", run.id)).await?
        } else {
            let (store, row) = stores::find(app, &app.workspace()?, &self.run).await?;
            store.journal(row.id).await?.into_iter().map(EntryView::from).collect()
        };
        if app.output != Format::Table {
            render::data(app.output, &journal)?;
            return Ok(Exit::Ok);
        }
        for entry in journal {
            let at = entry.at;
            let what = describe(&entry.event);
            render::line(&format!("{:>5}  {at:<30}  {what}", entry.seq))?;
        }
        Ok(Exit::Ok)
    }
}

fn said(reason: Option<&String>) -> String {
    reason.map_or_else(String::new, |reason| format!(": {reason}"))
}

fn of_what(subject: &Subject) -> String {
    match subject {
        Subject::Run => "the run".into(),
        Subject::Node(node) => node.to_string(),
    }
}

fn by_node(node: Option<&farrier_model::NodeName>) -> String {
    node.map_or_else(String::new, |node| format!(" by {node}"))
}

/// One event in a sentence.
pub(super) fn describe(event: &Event) -> String {
    match event {
        Event::Created { runbook, environment, .. } => format!("created to run {runbook} in {environment}"),
        Event::Claimed { owner } => format!("claimed by {owner}"),
        Event::WritesAllowed { creates, updates, deletes } => {
            format!("writes allowed: {creates} to create, {updates} to update, {deletes} to delete")
        }
        Event::Node { node, attempt, event } => {
            let detail = match event {
                NodeEvent::Expanded { keys } => format!("{} items", keys.len()),
                NodeEvent::Skipped { reason } => reason.to_string(),
                NodeEvent::Blocked { by } => format!("by {by}"),
                NodeEvent::Intent { changes, effect, .. } => {
                    format!(
                        "attempt {attempt}, {}, {}",
                        render::many(changes.len() as u64, "change"),
                        effect.name()
                    )
                }
                NodeEvent::Succeeded { changed, .. } if *changed > 0 => format!("{changed} changed"),
                NodeEvent::Failed { failure, retry_at, .. } => {
                    let again = retry_at.map_or_else(String::new, |at| format!(", again at {at}"));
                    format!("attempt {attempt}: {failure}{again}")
                }
                NodeEvent::WaitBegan { wait } => describe_wait(wait),
                NodeEvent::InDoubt { reason } => reason.clone(),
                NodeEvent::NotApplied { by } => format!("according to {by}"),
                NodeEvent::UndoFailed { failure } => failure.to_string(),
                NodeEvent::Applied { .. }
                | NodeEvent::Succeeded { .. }
                | NodeEvent::UndoIntent { .. }
                | NodeEvent::UndoDone => String::new(),
            };
            let name = event.name().replace('_', " ");
            if detail.is_empty() { format!("{node}: {name}") } else { format!("{node}: {name}: {detail}") }
        }
        Event::FinishedEarly { node, reason } => format!("{node}: finished early: {reason}"),
        Event::UndoStarted { reason } => format!("undo started: {reason}"),
        Event::CancelRequested { by, undo, reason } => {
            let undo = if *undo { ", with undo" } else { "" };
            format!("cancel requested by {by}{undo}{}", said(reason.as_ref()))
        }
        Event::Suspended { until, reason } => {
            let until = until.map_or_else(String::new, |until| format!(", due {until}"));
            format!("suspended: {reason}{until}")
        }
        Event::LockAsked { lock, node, .. } => format!("lock `{lock}` asked for{}", by_node(node.as_ref())),
        Event::LockTaken { lock, node, fence } => {
            format!("lock `{lock}` taken{} (number {fence})", by_node(node.as_ref()))
        }
        Event::LockReleased { lock, node } => format!("lock `{lock}` given back{}", by_node(node.as_ref())),
        Event::ApprovalAsked { subject, who, count, expires, plan } => {
            let of = if who.is_empty() { String::new() } else { format!(" of {}", who.join(", ")) };
            let until = expires.map_or_else(String::new, |until| format!(", until {until}"));
            let wanted = render::many(u64::from(*count), "approval");
            format!("{}: {wanted}{of} asked for, of plan {}{until}", of_what(subject), plan.digest.short())
        }
        Event::Approved { subject, by, digest, reason } => {
            format!("{}: {by} approved plan {}{}", of_what(subject), digest.short(), said(reason.as_ref()))
        }
        Event::Rejected { subject, by, digest, reason } => {
            format!("{}: {by} rejected plan {}{}", of_what(subject), digest.short(), said(reason.as_ref()))
        }
        Event::SignalReceived { name, by, reason } => {
            format!("signal `{name}` from {by}{}", said(reason.as_ref()))
        }
        Event::Attested { node, applied, output, by, reason } => {
            let word = if *applied { "applied" } else { "not applied" };
            let gave = output.as_ref().map_or_else(String::new, |output| format!(", and gave {output}"));
            format!("{node}: {word}{gave}, says {by}: {reason}; another person has to confirm it")
        }
        Event::RequestRefused { by, what, why } => format!("{by} wanted to {what}, refused: {why}"),
        Event::Parked { reason, .. } => format!("parked: {reason}"),
        Event::Resumed { by, accepted } => match accepted {
            Some(guard) => format!("resumed by {by}, who accepted the guard `{guard}`"),
            None => format!("resumed by {by}"),
        },
        Event::Finished { state, failure, .. } => match failure {
            Some(failure) => format!("finished: {}: {failure}", state.name()),
            None => format!("finished: {}", state.name()),
        },
    }
}
