//! `farrier plan --alert`: what each alert of a message would do, and the plan of the run that it would start.

use std::collections::BTreeSet;
use std::path::Path;

use farrier_alert::{Message, Status};
use farrier_exec::Plan;
use farrier_exec::driver::Start;
use farrier_model::event::Trigger;
use farrier_model::{Event, Value};
use farrier_project::Set;
use farrier_server::intake::{Routing, arrivals};
use farrier_store::Clock;
use serde::Serialize;

use super::incidents::plain;
use super::plan::{exit_of, make};
use super::{App, Problem};
use crate::exit::Exit;
use crate::render::plan::{Shown, draw};
use crate::render::style::Style;
use crate::render::{self, Format};

/// What is asked of the command.
pub(super) struct PlanAlert<'a> {
    /// The file with the message.
    pub(super) payload: &'a Path,
    /// The receiver; that of the message without it.
    pub(super) receiver: Option<&'a str>,
    /// The environment; without it, those that name the receiver.
    pub(super) environment: Option<&'a str>,
    /// Tasks at once.
    pub(super) parallel: usize,
    /// Show every change and whole values.
    pub(super) all: bool,
    /// See `farrier plan`.
    pub(super) detailed: bool,
}

#[derive(Serialize)]
struct View {
    alert: String,
    status: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    runbook: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    inputs: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ignored: Option<String>,
    /// Why it only proposes a run.
    #[serde(skip_serializing_if = "Option::is_none")]
    proposed: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Plan>,
}

impl PlanAlert<'_> {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let body = std::fs::read(self.payload).map_err(|error| Problem::file(self.payload, error))?;
        let message = Message::read(&body)
            .map_err(|error| Problem::Usage(format!("`{}`: {error}", self.payload.display())))?;
        let named: Vec<String> = self.environment.map(str::to_owned).into_iter().collect();
        let set = Set::load(&app.project, &app.registry, &named, 1)?;
        // Alertmanager quotes a receiver's name for a regular expression.
        let receiver = self.receiver.map_or_else(|| message.receiver.replace('\\', ""), str::to_owned);
        let routing = match self.environment.and_then(|name| set.site(name)) {
            Some(site) => Routing::within(&set, site),
            None => Routing::of(&set, &receiver),
        };
        if routing.is_empty() {
            return Err(Problem::Usage(format!(
                "no environment names the receiver `{}`; choose one with `--env`",
                plain(&receiver)
            )));
        }
        let mut views = Vec::new();
        let mut planned = BTreeSet::new();
        let mut exit = Exit::Ok;
        for arriving in arrivals(&routing, &receiver, &message, Clock::system().now()) {
            let arrival = arriving.arrival;
            let mut view = View {
                alert: plain(&arrival.alert),
                status: arrival.status.name(),
                runbook: String::new(),
                environment: None,
                key: None,
                inputs: None,
                ignored: None,
                proposed: None,
                plan: None,
            };
            match arrival.routed {
                Err(ignored) => {
                    view.runbook = ignored.runbook.to_string();
                    view.ignored = Some(plain(&ignored.reason));
                }
                Ok(routed) => {
                    view.runbook = routed.runbook.to_string();
                    view.environment = Some(routed.environment.to_string());
                    view.key = Some(plain(&routed.key));
                    view.proposed =
                        (arrival.status == Status::Firing).then(|| routed.rule.doubt.clone()).flatten();
                    let identity = (routed.environment.clone(), routed.runbook.clone(), routed.key.clone());
                    let created = arriving.run.map(|run| run.created);
                    let found = (set.bundle(&routed.runbook), set.site(&routed.environment));
                    if let (Some(Event::Created { inputs, .. }), (Some(bundle), Some(site))) =
                        (created, found)
                    {
                        view.inputs = Some(inputs.clone());
                        if planned.insert(identity) {
                            site.check(bundle, &app.registry)?;
                            let start = Start {
                                bundle: bundle.clone(),
                                world: site.world(),
                                inputs,
                                trigger: Trigger::Alert {
                                    incident: "".into(),
                                    receiver: receiver.as_str().into(),
                                    proposed: view.proposed.is_some(),
                                },
                                plan: None,
                            };
                            let plan = make(app, &set.workspace, site, &start, self.parallel).await?;
                            let ended = exit_of(&plan, self.detailed);
                            exit = if exit == Exit::Ok { ended } else { exit };
                            view.plan = Some(plan);
                        }
                    }
                }
            }
            views.push(view);
        }
        if app.output == Format::Table {
            for view in &views {
                self.show(view)?;
            }
        } else {
            render::data(app.output, &views)?;
        }
        Ok(exit)
    }

    fn show(&self, view: &View) -> Result<(), Problem> {
        let style = Style::stdout();
        let resolved = view.status == Status::Resolved.name();
        render::line(&format!("{} ({})", view.alert, view.status))?;
        if let Some(why) = &view.ignored {
            let to = if view.runbook.is_empty() { String::new() } else { format!("`{}`: ", view.runbook) };
            render::line(&format!("  {}: {to}{why}", style.warn("does nothing")))?;
            return Ok(());
        }
        let key = view.key.as_deref().unwrap_or_default();
        let key =
            if key.is_empty() { "one incident for all".to_owned() } else { format!("incident `{key}`") };
        let environment = view.environment.as_deref().unwrap_or_default();
        render::line(&format!("  `{}` in {environment}, {key}", view.runbook))?;
        if let Some(doubt) = &view.proposed {
            render::line(&format!(
                "  {}: {doubt}",
                style.warn("only proposes a run, which a person has to approve")
            ))?;
        }
        if let Some(inputs) = view.inputs.as_ref().and_then(Value::as_map) {
            for (name, value) in inputs.iter() {
                render::line(&format!("  {name} = {}", plain(&value.to_string())))?;
            }
        }
        match &view.plan {
            Some(plan) => {
                render::line("")?;
                render::line(draw(plan, style, Shown { all: self.all }).trim_end())?;
                render::line("")?;
            }
            None if resolved => {
                render::line("  closes the incident; a run that has not begun to write is cancelled")?;
            }
            None => render::line("  joins the incident of an alert above")?,
        }
        Ok(())
    }
}
