//! Runbooks: what there is, what one would change, and starting it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use farrier_exec::SavedPlan;
use farrier_exec::driver::Start;
use farrier_model::event::Trigger;
use farrier_model::{Event, RunId, Text, Value};
use farrier_project::{Set, Site};
use farrier_runbook::inputs::{Given, check_inputs};
use farrier_runbook::{Bundle, nearest};
use farrier_store::Store as _;
use http::{HeaderMap, StatusCode};
use uuid::Uuid;

use super::Caller;
use crate::app::App;
use crate::error::{ApiError, ErrorCode};
use crate::guard::About;
use crate::rights::Role;
use crate::wire::{PlanAnswer, RunbookSummary, RunbookView, StartRequest, Started};

/// How long a plan that was made for a caller can be carried out.
const PLAN_HOURS: u64 = 24;
/// The header under which starting a run twice starts it once.
pub(crate) const IDEMPOTENCY_KEY: &str = "idempotency-key";
/// The longest such key.
const KEY_LEN: usize = 200;

pub(crate) async fn list(State(app): State<App>, Extension(person): Caller) -> Json<Vec<RunbookSummary>> {
    let set = app.set();
    let all = set.bundles.iter().filter_map(|(name, bundle)| {
        let area = app.area(name);
        let may = person.rights.role_in(area.as_deref()) >= Some(Role::Viewer);
        may.then(|| RunbookSummary::of(bundle.graph(), area.as_deref().unwrap_or_default()))
    });
    Json(all.collect())
}

pub(crate) async fn show(
    State(app): State<App>,
    Path(runbook): Path<String>,
) -> Result<Json<RunbookView>, ApiError> {
    let set = app.set();
    let bundle = bundle_of(&set, &runbook)?;
    let registry = app.0.sets.registry();
    let fit = set.served().filter(|site| site.check(bundle, registry).is_ok());
    let environments = fit.map(|site| site.environment.name.clone()).collect();
    Ok(Json(RunbookView::of(bundle, &app.area(&runbook).unwrap_or_default(), environments)))
}

pub(crate) async fn plan(
    State(app): State<App>,
    Extension(person): Caller,
    Path(runbook): Path<String>,
    super::Json(request): super::Json<StartRequest>,
) -> Result<Json<PlanAnswer>, ApiError> {
    app.still_open()?;
    let set = app.set();
    let (start, site) = start_of(&app, &set, &person.name, &runbook, &request)?;
    let Ok(_few) = app.0.plans.acquire().await else {
        return Err(ApiError::new(ErrorCode::Unavailable, "the service is stopping"));
    };
    let plan = app.0.driver.plan_as(&start, app.0.driver.next_run()).await?;
    let saved = match plan.failure {
        Some(_) => None,
        None => {
            let targets = site.identities(&start.bundle, app.0.sets.registry())?;
            let now = app.now();
            let until = now + Duration::from_secs(PLAN_HOURS * 3600);
            let saved =
                SavedPlan::new(plan.clone(), start.bundle.digest, targets, person.name.clone(), (now, until));
            Some(saved.and_then(|saved| saved.to_text()).map_err(unwritable)?)
        }
    };
    Ok(Json(PlanAnswer { plan, saved }))
}

pub(crate) async fn start(
    State(app): State<App>,
    Extension(person): Caller,
    Path(runbook): Path<String>,
    headers: HeaderMap,
    super::Json(request): super::Json<StartRequest>,
) -> Result<Response, ApiError> {
    app.still_open()?;
    let key = idempotency_key(&headers)?;
    let set = app.set();
    let (mut start, site) = start_of(&app, &set, &person.name, &runbook, &request)?;
    if let Some(text) = &request.plan {
        let saved = bind(&app, text, &start, &site)?;
        start.plan = Some(Box::new(saved.bind().map_err(unwritable)?));
    }
    let (run, created) = match key {
        None => (app.0.driver.enqueue(&start).await?, true),
        Some(key) => {
            // A plan names its run, under which it is found again just as well.
            let planned = start.plan.as_ref().and_then(|plan| plan.run).map(|planned| planned.id);
            let run = planned.unwrap_or_else(|| keyed(&person.name, &runbook, key));
            let created = app.0.driver.enqueue_as(run, &start).await?;
            if !created {
                same_request(&app, run, &start).await?;
            }
            (run, created)
        }
    };
    let status = if created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = (status, Json(Started { run: run.to_string(), created })).into_response();
    response.extensions_mut().insert(About(run.to_string()));
    Ok(response)
}

impl App {
    /// Starts a run from within the process, in the name of `by`. It is on disk when this returns.
    ///
    /// # Errors
    /// As for a request: no such runbook or environment, inputs that are missing, a store that refuses.
    pub async fn start(&self, by: &str, runbook: &str, environment: &str) -> Result<RunId, ApiError> {
        let request = StartRequest { environment: environment.to_owned(), ..StartRequest::default() };
        let (start, _) = start_of(self, &self.set(), by, runbook, &request)?;
        Ok(self.0.driver.enqueue(&start).await?)
    }
}

fn unwritable(error: serde_json::Error) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the plan cannot be written: {error}"))
}

fn bundle_of<'a>(set: &'a Set, runbook: &str) -> Result<&'a Arc<Bundle>, ApiError> {
    set.bundle(runbook).ok_or_else(|| {
        let error = ApiError::not_found(format!("there is no runbook `{runbook}`"));
        match nearest(runbook, set.bundles.keys().map(|name| &**name)) {
            Some(near) => error.next(format!("did you mean `{near}`?")),
            None => error,
        }
    })
}

/// What a run for this request starts from, checked as the command line checks it.
fn start_of(
    app: &App,
    set: &Set,
    by: &str,
    runbook: &str,
    request: &StartRequest,
) -> Result<(Start, Arc<Site>), ApiError> {
    let bundle = bundle_of(set, runbook)?.clone();
    let name = request.environment.as_str();
    let site = set.served().find(|site| site.environment.name == name).cloned().ok_or_else(|| {
        let known: Vec<&str> = set.served.iter().map(|name| &**name).collect();
        ApiError::not_found(format!("environment `{name}` is not served here"))
            .next(format!("there are: {}", known.join(", ")))
    })?;
    site.check(&bundle, app.0.sets.registry())?;
    let given: BTreeMap<Text, Given> = request
        .inputs
        .iter()
        .map(|(name, value)| {
            let given = match value.as_str() {
                Some(text) => Given::Text(text.to_owned()),
                None => Given::Value(value.clone()),
            };
            (Text::from(name.as_str()), given)
        })
        .collect();
    let inputs: Value =
        check_inputs(bundle.graph(), &given).map_err(|problems| ApiError::inputs(runbook, &problems))?;
    let world = site.world();
    let trigger = Trigger::Manual { by: by.to_owned() };
    Ok((Start { bundle, world, inputs, trigger, plan: None }, site))
}

/// A saved plan that fits what is to be started. Whether the world is still as it saw it is found out by the run.
fn bind(app: &App, text: &str, start: &Start, site: &Site) -> Result<SavedPlan, ApiError> {
    let saved = SavedPlan::read(text.as_bytes()).map_err(|error| {
        ApiError::new(ErrorCode::Malformed, format!("the plan cannot be carried out: {error}"))
    })?;
    if let Some(reason) = saved.is_out_of_date(app.now()) {
        return Err(ApiError::new(ErrorCode::PlanGone, format!("the plan cannot be carried out: {reason}"))
            .next("make a new plan"));
    }
    let mut differences = Vec::new();
    if *saved.runbook != *start.bundle.root || saved.environment != start.world.environment {
        differences.push("it is of another runbook or environment".to_owned());
    }
    if saved.bundle != start.bundle.digest {
        differences.push("the runbook, or one that it starts, was changed after it was made".to_owned());
    }
    if saved.targets != site.identities(&start.bundle, app.0.sets.registry())? {
        differences.push("its targets are other ones now".to_owned());
    }
    if saved.plan.inputs != start.inputs {
        differences.push("it was made with other inputs".to_owned());
    }
    if differences.is_empty() {
        return Ok(saved);
    }
    let said = differences.join("; ");
    Err(ApiError::new(ErrorCode::Drift, format!("the plan is not true any more: {said}"))
        .next("make a new plan"))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(key) = headers.get(IDEMPOTENCY_KEY) else { return Ok(None) };
    match key.to_str() {
        Ok(key) if !key.is_empty() && key.len() <= KEY_LEN => Ok(Some(key)),
        _ => Err(ApiError::new(
            ErrorCode::Malformed,
            format!("the idempotency key is not 1 to {KEY_LEN} printable characters"),
        )),
    }
}

/// The id of the run that a person starts under a key: two persons with the same key start two runs.
fn keyed(by: &str, runbook: &str, key: &str) -> RunId {
    RunId(Uuid::new_v5(&Uuid::NAMESPACE_URL, format!("farrier:run:{by}\n{runbook}\n{key}").as_bytes()))
}

/// A key is good for one request: under it, another one is a mistake of the caller.
async fn same_request(app: &App, run: RunId, start: &Start) -> Result<(), ApiError> {
    let first = app.0.store.journal(run).await?.into_iter().next().map(|entry| entry.event);
    match first {
        Some(Event::Created { inputs, environment, .. })
            if inputs == start.inputs && environment == start.world.environment =>
        {
            Ok(())
        }
        _ => Err(ApiError::new(
            ErrorCode::Refused,
            format!("the idempotency key was used for run {run}, which differs"),
        )
        .next("use a new key for another request")),
    }
}
