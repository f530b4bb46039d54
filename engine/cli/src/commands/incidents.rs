//! `farrier incidents`, `farrier incident`, `farrier unfuse`: what alerts have done.

use clap::Args;
use farrier_model::time::Timestamp;
use farrier_server::wire::{UnfuseRequest, Unfused};
use farrier_store::{EventRow, FuseRow, IncidentFilter, IncidentRow, Intake, SqliteStore, Store, StoreError};
use serde::Serialize;

use super::{App, Problem, user};
use crate::client;
use crate::exit::Exit;
use crate::render::style::Style;
use crate::render::{self, table};
use crate::stores;

#[derive(Debug, Args)]
pub(super) struct Incidents {
    /// Closed ones as well.
    #[arg(long)]
    all: bool,
    /// Only those of this runbook.
    #[arg(long, value_name = "NAME")]
    runbook: Option<String>,
    /// Alerts that did nothing, with the reasons, instead.
    #[arg(long, conflicts_with_all = ["all", "runbook"])]
    ignored: bool,
    /// At most so many.
    #[arg(long, short = 'n', default_value_t = 50, value_name = "N")]
    limit: usize,
}

#[derive(Debug, Args)]
pub(super) struct Incident {
    /// The incident, by the beginning of its id.
    incident: String,
}

#[derive(Debug, Args)]
pub(super) struct Unfuse {
    /// The runbook that alerts do not start any more.
    runbook: String,
    /// In this environment only.
    #[arg(long, short, value_name = "NAME")]
    env: Option<String>,
    /// What happened, in your words; kept.
    #[arg(long)]
    reason: String,
}

#[derive(Serialize)]
struct IncidentView<'a> {
    #[serde(flatten)]
    row: &'a IncidentRow,
    runs: Vec<String>,
    events: &'a [EventRow],
}

impl Incidents {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let stores = stores::read_all(app, &app.workspace()?).await?;
        if self.ignored {
            return self.ignored(app, &stores).await;
        }
        let mut incidents = Vec::new();
        let mut fuses = Vec::new();
        for store in &stores {
            let filter = IncidentFilter {
                open: !self.all,
                runbook: self.runbook.as_deref().map(Into::into),
                limit: Some(self.limit),
                ..IncidentFilter::default()
            };
            incidents.extend(store.incidents(filter).await?);
            fuses.extend(store.fuses().await?);
        }
        if render::data(app.output, &incidents)? {
            return Ok(Exit::Ok);
        }
        for FuseRow { environment, runbook, blown_at, why, held } in fuses {
            let since = short_time(blown_at);
            let style = Style::stdout();
            render::line(&format!(
                "{} of `{runbook}` in {environment} blew at {since}: {why}; {} wait for `farrier unfuse {runbook}`",
                style.bad("the fuse"),
                render::many(held, "incident")
            ))?;
        }
        let rows: Vec<Vec<String>> = incidents
            .iter()
            .map(|incident| {
                let state = state_of(incident);
                let run = incident.run.map_or_else(String::new, |run| run.to_string()[..13].to_owned());
                vec![
                    incident.id.to_string()[..8].to_owned(),
                    state,
                    incident.runbook.to_string(),
                    incident.environment.to_string(),
                    plain(&incident.key),
                    plain(&incident.alert),
                    run,
                    short_time(incident.opened_at),
                ]
            })
            .collect();
        let heading = ["INCIDENT", "STATE", "RUNBOOK", "ENVIRONMENT", "KEY", "ALERT", "RUN", "OPENED (UTC)"];
        render::line(&table::draw(&heading, &rows))?;
        Ok(Exit::Ok)
    }

    async fn ignored(&self, app: &App, stores: &[SqliteStore]) -> Result<Exit, Problem> {
        let mut events = Vec::new();
        for store in stores {
            events.extend(store.events(None, self.limit).await?);
        }
        if render::data(app.output, &events)? {
            return Ok(Exit::Ok);
        }
        let rows: Vec<Vec<String>> = events
            .iter()
            .map(|event| {
                vec![
                    short_time(event.last_at),
                    event.receiver.to_string(),
                    plain(&event.alert),
                    event.status.clone(),
                    event.decision.clone(),
                    plain(&event.why),
                ]
            })
            .collect();
        render::line(&table::draw(&["AT (UTC)", "RECEIVER", "ALERT", "STATUS", "DID", "WHY"], &rows))?;
        Ok(Exit::Ok)
    }
}

impl Incident {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let (store, incident) = find(app, &self.incident).await?;
        let runs = store.incident_runs(incident.id).await?;
        let events = store.events(Some(incident.id), 1000).await?;
        let view = IncidentView {
            row: &incident,
            runs: runs.iter().map(ToString::to_string).collect(),
            events: &events,
        };
        if render::data(app.output, &view)? {
            return Ok(Exit::Ok);
        }
        let key = plain(&incident.key);
        render::line(&format!("incident {}", incident.id))?;
        render::line(&format!(
            "  `{}` in {}, {}: {}",
            incident.runbook,
            incident.environment,
            if key.is_empty() { "one for all".to_owned() } else { format!("`{key}`") },
            state_of(&incident)
        ))?;
        render::line(&format!(
            "  opened {} by {} from {}",
            short_time(incident.opened_at),
            plain(&incident.alert),
            incident.receiver
        ))?;
        for (what, at) in [("resolved", incident.resolved_at), ("closed", incident.closed_at)] {
            if let Some(at) = at {
                render::line(&format!("  {what} {}", short_time(at)))?;
            }
        }
        if let Some(why) = &incident.held_why {
            let until =
                incident.held_until.map_or_else(String::new, |at| format!(", until {}", short_time(at)));
            render::line(&format!("  no run yet: {}{until}", plain(why)))?;
        }
        for run in runs {
            let row = store.run(run).await?;
            let state = row.map_or("taken away after its time", |row| row.state.name());
            render::line(&format!("  run {}: {state}", &run.to_string()[..13]))?;
        }
        let rows: Vec<Vec<String>> = events
            .iter()
            .map(|event| {
                vec![
                    short_time(event.first_at),
                    event.seen.to_string(),
                    plain(&event.alert),
                    event.status.clone(),
                    event.decision.clone(),
                    plain(&event.why),
                ]
            })
            .collect();
        render::line("")?;
        render::line(&table::draw(&["FIRST (UTC)", "SEEN", "ALERT", "STATUS", "DID", "WHY"], &rows))?;
        Ok(Exit::Ok)
    }
}

impl Unfuse {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let workspace = app.workspace()?;
        let mut mended = 0;
        for dir in workspace.data_dirs(app.registry.catalog())? {
            let blown = match stores::read(&dir).await {
                Ok(store) => store.fuses().await?,
                Err(Problem::Store(StoreError::Missing { .. } | StoreError::OlderSchema { .. })) => continue,
                Err(problem) => return Err(problem),
            };
            if blown.iter().any(|fuse| *fuse.runbook == *self.runbook) {
                if let Some(client) = client::at(app, &dir).await? {
                    let request =
                        UnfuseRequest { environment: self.env.clone(), reason: self.reason.clone() };
                    let path = format!("/api/v1/runbooks/{}/unfuse", self.runbook);
                    mended += client.post::<Unfused>(&path, &request).await?.mended;
                    continue;
                }
                let store = stores::own(&dir).await?;
                mended += store.unfuse(self.env.as_deref(), &self.runbook, &user(), &self.reason).await?;
                store.close().await;
            }
        }
        if mended == 0 {
            return Err(Problem::Usage(format!("no fuse of `{}` has blown", self.runbook)));
        }
        render::line(&format!("alerts start `{}` again", self.runbook))?;
        eprintln!("what was held starts with `farrier serve`; see `farrier incidents`");
        Ok(Exit::Ok)
    }
}

/// The one incident whose id begins so.
async fn find(app: &App, prefix: &str) -> Result<(SqliteStore, IncidentRow), Problem> {
    let mut found = Vec::new();
    for store in stores::read_all(app, &app.workspace()?).await? {
        let filter = IncidentFilter {
            id_prefix: Some(prefix.to_owned()),
            limit: Some(2),
            ..IncidentFilter::default()
        };
        found.extend(store.incidents(filter).await?.into_iter().map(|row| (store.clone(), row)));
    }
    match (found.len(), found.pop()) {
        (1, Some(one)) => Ok(one),
        (0, _) => Err(Problem::Usage(format!(
            "no incident's id begins with `{prefix}`; `farrier incidents --all` lists them"
        ))),
        _ => Err(Problem::Usage(format!("several incidents' ids begin with `{prefix}`; give more of it"))),
    }
}

fn state_of(incident: &IncidentRow) -> String {
    match (&incident.closed_at, &incident.resolved_at, &incident.held) {
        (Some(_), ..) => "closed".into(),
        (None, Some(_), _) => "resolved, its run goes on".into(),
        (None, None, Some(held)) => format!("held: {held}"),
        (None, None, None) => "open".into(),
    }
}

fn short_time(at: Timestamp) -> String {
    let text = at.to_string();
    text.get(..19).unwrap_or(&text).replace('T', " ")
}

/// What came from outside, without anything that moves the cursor or turns the text around.
pub(super) fn plain(text: &str) -> String {
    let is_plain = |c: char| {
        !c.is_control()
            && !matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if is_plain(c) { c.to_string() } else { c.escape_default().to_string() }).collect()
}
