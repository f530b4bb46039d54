//! `farrier next`, `schedules`, `pause` and `unpause`: what starts by itself, when, and why not.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Args;
use farrier_model::time::Timestamp;
use farrier_project::Set;
use farrier_schedule::{Calendar, ScheduleId, Spec};
use farrier_server::clock::of_set;
use farrier_server::wire::{PauseRequest, ScheduleView, UnpauseRequest};
use farrier_store::{Clock, FireRow, Ledger as _, NewSchedule, ScheduleRow, StoreError};
use serde::Serialize;

use super::{App, Problem, user};
use crate::client;
use crate::exit::Exit;
use crate::render::{self, table};
use crate::stores;

/// How many due times of one schedule are listed one by one.
const EACH: usize = 5;

#[derive(Debug, Args)]
pub(super) struct Next {
    /// How far to look ahead.
    #[arg(long = "for", default_value = "7d", value_name = "DURATION", value_parser = super::run::duration)]
    ahead: Duration,
    /// Only what starts in this environment; may be given several times.
    #[arg(long, short, value_name = "NAME")]
    env: Vec<String>,
    /// Every due time, also of schedules that are due often.
    #[arg(long)]
    all: bool,
}

#[derive(Serialize)]
struct Coming {
    /// When it starts, jitter included.
    start: String,
    /// The due time itself, which names the run.
    due: String,
    schedule: String,
    when: String,
    /// Why nothing will start, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    held: Option<String>,
    /// How many more there are of this schedule that are not listed.
    #[serde(skip_serializing_if = "Option::is_none")]
    more: Option<usize>,
}

impl Next {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let set = Set::load(&app.project, &app.registry, &self.env, 1)?;
        let now = Clock::system().now();
        let until = now.checked_add(self.ahead).unwrap_or(Timestamp::MAX);
        let stored = stored(app).await?;
        let mut coming = Vec::new();
        for schedule in of_set(set.clone().into(), &app.registry).schedules() {
            let frozen = set.site(&schedule.environment).is_some_and(|site| site.environment.freeze);
            let paused = stored.get(&schedule.id).and_then(|(row, _)| row.paused.as_ref());
            let held = match paused {
                Some(paused) => Some(format!("paused by {}: {}", paused.by, paused.why)),
                None => frozen.then(|| format!("{} is frozen", schedule.environment)),
            };
            coming.extend(self.of(&schedule, held, now, until)?);
        }
        coming.sort_by_key(|(at, _)| *at);
        let coming: Vec<Coming> = coming.into_iter().map(|(_, coming)| coming).collect();
        if render::data(app.output, &coming)? {
            return Ok(Exit::Ok);
        }
        let rows: Vec<Vec<String>> = coming
            .into_iter()
            .map(|coming| {
                let more = coming.more.map(|more| format!("and {more} more like this"));
                let notes = [coming.held, more].into_iter().flatten().collect::<Vec<_>>().join("; ");
                vec![coming.start[..19].replace('T', " "), coming.schedule, coming.when, notes]
            })
            .collect();
        render::line(&table::draw(&["START (UTC)", "SCHEDULE", "WHEN", ""], &rows))?;
        Ok(Exit::Ok)
    }

    fn of(
        &self,
        schedule: &NewSchedule,
        held: Option<String>,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<Vec<(Timestamp, Coming)>, Problem> {
        let calendar = Calendar::new(&schedule.id, &schedule.spec)
            .map_err(|error| Problem::Usage(format!("{}: {error}", schedule.id)))?;
        let mut listed = Vec::new();
        let mut more = 0;
        let mut from = now.checked_sub(calendar.delay()).unwrap_or(now);
        while let Some(due) = calendar.next(from) {
            let start = calendar.start_of(due).unwrap_or(due);
            if start > until {
                break;
            }
            from = due;
            if listed.len() >= EACH && !self.all {
                more += 1;
                continue;
            }
            let (due, when) = (due.to_string(), schedule.spec.due.to_string());
            let (held, schedule) = (held.clone(), schedule.id.to_string());
            listed.push((start, Coming { start: start.to_string(), due, schedule, when, held, more: None }));
        }
        if let Some((_, last)) = listed.last_mut() {
            last.more = (more > 0).then_some(more);
        }
        Ok(listed)
    }
}

#[derive(Debug, Args)]
pub(super) struct Schedules {
    /// The records of one schedule, newest first.
    schedule: Option<String>,
    /// At most so many records.
    #[arg(long, default_value_t = 20, value_name = "N")]
    limit: usize,
    /// Also those that the project has no more.
    #[arg(long)]
    retired: bool,
}

#[derive(Serialize)]
struct View {
    schedule: String,
    when: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    last: Option<Record>,
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_by: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_because: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_at: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    retired_at: Option<String>,
}

/// What became of a due time.
#[derive(Serialize)]
struct Record {
    due: String,
    /// The first due time that it stands for, when it stands for several.
    #[serde(skip_serializing_if = "Option::is_none")]
    since: Option<String>,
    decision: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    run: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    into: Option<String>,
    decided_at: String,
}

impl Record {
    fn of(fire: FireRow) -> Record {
        Record {
            due: fire.nominal.to_string(),
            since: fire.since.map(|since| since.to_string()),
            decision: fire.decision,
            reason: fire.reason,
            run: fire.run.map(|run| run.to_string()),
            into: fire.into.map(|into| into.to_string()),
            decided_at: fire.decided_at.to_string(),
        }
    }

    /// In words.
    fn what(&self) -> String {
        let mut what = match &self.reason {
            Some(reason) => format!("{}: {reason}", self.decision),
            None => self.decision.clone(),
        };
        if let Some(run) = &self.run {
            what = format!("{what} {}", &run[..13]);
        }
        match &self.into {
            Some(into) => format!("{what} into {}", seconds(into)),
            None => what,
        }
    }
}

fn seconds(time: &str) -> String {
    time[..19].replace('T', " ")
}

impl Schedules {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(schedule) = &self.schedule {
            return self.records(app, schedule).await;
        }
        let mut known = stored(app).await?;
        let mut views: BTreeMap<ScheduleId, View> = BTreeMap::new();
        match Set::load(&app.project, &app.registry, &[], 1) {
            Ok(set) => {
                for schedule in of_set(set.into(), &app.registry).schedules() {
                    let stored = known.remove(&schedule.id);
                    views.insert(schedule.id.clone(), view(&schedule.id, &schedule.spec, stored));
                }
            }
            Err(error) => eprintln!("only what the store knows, since the project has a mistake: {error}"),
        }
        for (id, stored) in known {
            if self.retired || stored.0.retired_at.is_none() {
                let spec = stored.0.spec.clone();
                views.insert(id.clone(), view(&id, &spec, Some(stored)));
            }
        }
        let views: Vec<View> = views.into_values().collect();
        if render::data(app.output, &views)? {
            return Ok(Exit::Ok);
        }
        let rows: Vec<Vec<String>> = views
            .into_iter()
            .map(|view| {
                let last = view
                    .last
                    .map_or_else(|| "-".to_owned(), |last| format!("{} {}", seconds(&last.due), last.what()));
                let next = view.next.map_or_else(|| "-".to_owned(), |next| seconds(&next));
                let note = match (view.retired_at, view.paused_by, view.paused_because) {
                    (Some(at), ..) => format!("retired {}", seconds(&at)),
                    (None, Some(by), Some(why)) => format!("{by}: {why}"),
                    _ => String::new(),
                };
                vec![view.schedule, view.when, last, next, note]
            })
            .collect();
        render::line(&table::draw(&["SCHEDULE", "WHEN", "LAST (UTC)", "NEXT (UTC)", "PAUSED BY"], &rows))?;
        Ok(Exit::Ok)
    }

    async fn records(&self, app: &App, schedule: &str) -> Result<Exit, Problem> {
        let id = ScheduleId(schedule.into());
        for store in stores::read_all(app, &app.workspace()?).await? {
            if store.schedule(&id).await?.is_none() {
                continue;
            }
            let fires = store.fires(&id, self.limit).await?;
            let records: Vec<Record> = fires.into_iter().map(Record::of).collect();
            if render::data(app.output, &records)? {
                return Ok(Exit::Ok);
            }
            let rows: Vec<Vec<String>> = records
                .iter()
                .map(|record| {
                    let due = match &record.since {
                        Some(since) => format!("{} to {}", seconds(since), seconds(&record.due)),
                        None => seconds(&record.due),
                    };
                    vec![due, record.what(), seconds(&record.decided_at)]
                })
                .collect();
            render::line(&table::draw(&["DUE (UTC)", "DECISION", "DECIDED (UTC)"], &rows))?;
            return Ok(Exit::Ok);
        }
        Err(unknown(schedule))
    }
}

fn view(id: &ScheduleId, spec: &Spec, stored: Option<(ScheduleRow, Option<FireRow>)>) -> View {
    let (row, last) = stored.map_or((None, None), |(row, last)| (Some(row), last));
    let paused = row.as_ref().and_then(|row| row.paused.clone());
    let retired_at = row.as_ref().and_then(|row| row.retired_at);
    View {
        schedule: id.to_string(),
        when: spec.due.to_string(),
        last: last.map(Record::of),
        next: row.and_then(|row| row.next_due).filter(|_| retired_at.is_none()).map(|next| next.to_string()),
        paused_by: paused.as_ref().map(|paused| paused.by.clone()),
        paused_because: paused.as_ref().map(|paused| paused.why.clone()),
        paused_at: paused.map(|paused| paused.at.to_string()),
        retired_at: retired_at.map(|at| at.to_string()),
    }
}

/// What the stores of the project know of schedules; nothing when nothing has run yet.
async fn stored(app: &App) -> Result<BTreeMap<ScheduleId, (ScheduleRow, Option<FireRow>)>, Problem> {
    let mut known = BTreeMap::new();
    let stores = match stores::read_all(app, &app.workspace()?).await {
        Ok(stores) => stores,
        Err(Problem::Store(StoreError::Missing { .. } | StoreError::OlderSchema { .. })) => Vec::new(),
        Err(problem) => return Err(problem),
    };
    for store in stores {
        for (row, last) in store.schedules(true).await? {
            known.insert(row.id.clone(), (row, last));
        }
    }
    Ok(known)
}

fn unknown(schedule: &str) -> Problem {
    Problem::Usage(format!(
        "no service has had a schedule `{schedule}` yet; `farrier schedules` lists them as `environment/runbook`"
    ))
}

#[derive(Debug, Args)]
pub(super) struct Pause {
    /// The schedule: `environment/runbook`, with `#2` for the second clock trigger of the runbook.
    schedule: String,
    /// Why, for those who find it paused.
    #[arg(long, value_name = "TEXT")]
    reason: String,
}

#[derive(Debug, Args)]
pub(super) struct Unpause {
    /// The schedule: `environment/runbook`, with `#2` for the second clock trigger of the runbook.
    schedule: String,
}

/// Where the service takes a word about a schedule: the path names its runbook.
fn route(id: &ScheduleId, verb: &str) -> String {
    let runbook = id.0.split_once('/').map_or(&*id.0, |(_, runbook)| runbook);
    let runbook = runbook.split_once('#').map_or(runbook, |(runbook, _)| runbook);
    format!("/api/v1/runbooks/{runbook}/{verb}")
}

impl Pause {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let id = ScheduleId(self.schedule.as_str().into());
        for dir in app.workspace()?.data_dirs(app.registry.catalog())? {
            if !dir.exists() {
                continue;
            }
            if let Some(client) = client::at(app, &dir).await? {
                let request = PauseRequest { schedule: id.to_string(), reason: self.reason.clone() };
                let _: ScheduleView = client.post(&route(&id, "pause"), &request).await?;
                eprintln!("{id} starts nothing until `farrier unpause {id}`");
                return Ok(Exit::Ok);
            }
            let store = stores::own(&dir).await?;
            let paused = store.pause(&id, &user(), &self.reason).await;
            store.close().await;
            if paused? {
                eprintln!("{id} starts nothing until `farrier unpause {id}`");
                return Ok(Exit::Ok);
            }
        }
        Err(unknown(&self.schedule))
    }
}

impl Unpause {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let id = ScheduleId(self.schedule.as_str().into());
        let mut known = false;
        for dir in app.workspace()?.data_dirs(app.registry.catalog())? {
            if !dir.exists() {
                continue;
            }
            if let Some(client) = client::at(app, &dir).await? {
                let request = UnpauseRequest { schedule: id.to_string() };
                let _: ScheduleView = client.post(&route(&id, "unpause"), &request).await?;
                eprintln!("{id} starts runs again");
                return Ok(Exit::Ok);
            }
            let store = stores::own(&dir).await?;
            let found = store.schedule(&id).await;
            let unpaused = store.unpause(&id).await;
            store.close().await;
            known |= found?.is_some();
            if unpaused? {
                eprintln!("{id} starts runs again");
                return Ok(Exit::Ok);
            }
        }
        if known {
            Err(Problem::Usage(format!("the schedule `{id}` is not paused")))
        } else {
            Err(unknown(&self.schedule))
        }
    }
}
