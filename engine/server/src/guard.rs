//! The layer around all routes: who asks, whether they may, how much they may send; and what every answer carries.
//!
//! A request passes in this order: the table of routes must know it; whoever asks must be known and allowed; it must not come
//! from a page of another site; its body must be plain JSON within limits and arrive in time. Only then a handler sees it. What
//! changes something is recorded with its outcome, before the answer is sent.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::{FromRequestParts as _, MatchedPath, RawPathParams, Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use farrier_model::RunId;
use farrier_store::{RunRow, Store as _};
use futures_util::FutureExt as _;
use http::header::{
    AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE,
    HOST, ORIGIN, REFERRER_POLICY, TRANSFER_ENCODING, X_CONTENT_TYPE_OPTIONS, X_FRAME_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, Limited};

use crate::app::{App, NewAct};
use crate::error::{ApiError, ErrorCode};
use crate::listen::Peer;
use crate::rights::{Person, Rights, Role, Sender, Via};
use crate::routes::{self, Needs, Route};

/// The largest body. A saved plan of some ten thousand changes fits.
const BODY: usize = 8 * 1024 * 1024;
/// The largest webhook; Alertmanager's own limit of groups keeps it far below.
const WEBHOOK: usize = 2 * 1024 * 1024;
/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Who is at the keyboard, as the command line says over the socket.
pub const USER_HEADER: &str = "x-farrier-user";
/// In every answer, and in the log.
const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// What a handler says its answer was about, for the audit: the run that it created.
#[derive(Debug, Clone)]
pub(crate) struct About(pub(crate) String);

/// What the guard found out about a request.
enum Known {
    Nobody,
    Person(Arc<Person>),
    Sender(Arc<Sender>),
}

/// The layer.
pub(crate) async fn guard(State(app): State<App>, request: Request, next: Next) -> Response {
    let begun = Instant::now();
    let id = uuid::Uuid::now_v7().simple().to_string();
    let matched = request.extensions().get::<MatchedPath>().cloned();
    let route = matched.as_ref().and_then(|path| routes::find(request.method(), path.as_str()));
    let method = request.method().clone();
    let answered =
        AssertUnwindSafe(answer(&app, route, matched.is_some(), request, next)).catch_unwind().await;
    let mut response = answered.unwrap_or_else(|_| {
        tracing::error!(request_id = id, "answering a request panicked");
        ApiError::new(ErrorCode::Internal, "a defect kept this from being answered")
            .next("the service's log says more")
            .into_response()
    });
    let path = route.map_or("-", |route| route.path);
    let status = response.status().as_u16();
    tracing::debug!(request_id = id, %method, path, status, "answered");
    app.0.metrics.answered(path, status, begun.elapsed().as_secs_f64());
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, id);
    }
    harden(response.headers_mut());
    response
}

/// What every answer carries, unless its handler knows better.
fn harden(headers: &mut HeaderMap) {
    let fixed = [
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (X_FRAME_OPTIONS, "DENY"),
        (REFERRER_POLICY, "no-referrer"),
        (CACHE_CONTROL, "no-store"),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
        (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    ];
    for (name, value) in fixed {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
}

async fn answer(
    app: &App,
    route: Option<&'static Route>,
    is_path: bool,
    request: Request,
    next: Next,
) -> Response {
    let Some(route) = route else {
        return if is_path {
            ApiError::new(ErrorCode::WrongMethod, format!("`{}` is not for this path", request.method()))
                .next("/api/v1/openapi.json lists what there is")
        } else {
            ApiError::not_found("there is nothing at this path")
                .next("/api/v1/openapi.json lists what there is")
        }
        .into_response();
    };
    let (mut parts, body) = request.into_parts();
    let params = path_params(&mut parts).await;
    let peer = parts.extensions.get::<Peer>().cloned().unwrap_or_default();
    let object = params.first().map(|(_, value)| value.clone()).unwrap_or_default();
    let known = identify(app, route, &peer, &parts.headers, &params);
    let judged = match &known {
        Ok(known) => judge(app, route, known, &params).await,
        Err(error) => Err(error.clone()),
    };
    let checked = judged.and_then(|row| {
        if route.changes() {
            same_site(&parts.headers)?;
        }
        plain(&parts.headers, route)?;
        Ok(row)
    });
    let response = match checked {
        Err(error) => error.into_response(),
        Ok(row) => match take_body(body, &parts.headers, route).await {
            Err(error) => error.into_response(),
            Ok(body) => {
                match &known {
                    Ok(Known::Person(person)) => drop(parts.extensions.insert(person.clone())),
                    Ok(Known::Sender(sender)) => drop(parts.extensions.insert(sender.clone())),
                    _ => {}
                }
                if let Some(row) = row {
                    parts.extensions.insert(Arc::new(row));
                }
                next.run(Request::from_parts(parts, body)).await
            }
        },
    };
    if let Ok(known) = known {
        let code = response.extensions().get::<ErrorCode>().copied();
        let about = response.extensions().get::<About>().map_or(object, |about| about.0.clone());
        record(app, route, &known, &peer, (&about, code)).await;
    }
    response
}

async fn path_params(parts: &mut http::request::Parts) -> Vec<(String, String)> {
    match RawPathParams::from_request_parts(parts, &()).await {
        Ok(params) => params.iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        // Not UTF-8 once decoded: nothing has such a name.
        Err(_) => Vec::new(),
    }
}

/// Who asks.
fn identify(
    app: &App,
    route: &Route,
    peer: &Peer,
    headers: &HeaderMap,
    params: &[(String, String)],
) -> Result<Known, ApiError> {
    let unknown = |message: &str| {
        Err(ApiError::new(ErrorCode::Unauthenticated, message).next("send `Authorization: Bearer TOKEN`"))
    };
    let token = headers.get(AUTHORIZATION).map(|value| {
        let value = value.to_str().unwrap_or_default();
        value
            .split_once(' ')
            .filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"))
            .map(|(_, token)| token.trim())
    });
    match (route.needs, token) {
        (Needs::Nothing, _) => Ok(Known::Nobody),
        (Needs::Metrics, None) if app.0.open_metrics.load(Ordering::Relaxed) => Ok(Known::Nobody),
        (Needs::Receiver, token) => {
            let receiver = params.first().map(|(_, value)| value.as_str()).unwrap_or_default();
            let access = app.access();
            let by_certificate =
                peer.certificate().and_then(|print| access.sender_of_certificate(receiver, print));
            let by_token = token.flatten().and_then(|token| access.sender(receiver, token));
            match by_token.or(by_certificate) {
                Some(sender) => Ok(Known::Sender(sender)),
                None => unknown("this is no token of this receiver"),
            }
        }
        (_, None) => match peer {
            Peer::Socket { uid } => Ok(Known::Person(Arc::new(at_the_socket(*uid, headers)))),
            Peer::Network { .. } => {
                let shown = peer.certificate().and_then(|print| app.access().person_of_certificate(print));
                shown.map_or_else(|| unknown("there is no token"), |person| Ok(Known::Person(person)))
            }
        },
        (_, Some(None)) => unknown("the `Authorization` header is not of the form `Bearer TOKEN`"),
        (_, Some(Some(token))) => match app.access().person(token).or_else(|| app.logged_in(token)) {
            Some(person) => Ok(Known::Person(person)),
            None => unknown("the token is not known, or not any more"),
        },
    }
}

/// Whoever can open the socket can read and write the store itself, so they may do everything and say who they are.
fn at_the_socket(uid: u32, headers: &HeaderMap) -> Person {
    let named =
        headers.get(USER_HEADER).and_then(|value| value.to_str().ok()).filter(|name| !name.is_empty());
    let name = named.map_or_else(|| format!("uid {uid}"), ToOwned::to_owned);
    Person { name, rights: Rights::everywhere(Role::Admin), via: Via::Socket }
}

/// Whether they may; the run that the path names, if it names one.
async fn judge(
    app: &App,
    route: &Route,
    known: &Known,
    params: &[(String, String)],
) -> Result<Option<RunRow>, ApiError> {
    let person = match (known, route.needs) {
        (_, Needs::Nothing) | (Known::Sender(_), Needs::Receiver) | (Known::Nobody, Needs::Metrics) => {
            return Ok(None);
        }
        (Known::Person(person), _) => person,
        (Known::Nobody | Known::Sender(_), _) => {
            return Err(ApiError::new(ErrorCode::Unauthenticated, "there is no token"));
        }
    };
    let named = params.first().map(|(_, value)| value.as_str()).unwrap_or_default();
    let (role, has, row) = match route.needs {
        Needs::Nothing | Needs::Receiver => {
            return Err(ApiError::new(ErrorCode::NotAllowed, "this is for senders"));
        }
        Needs::Anyone => return Ok(None),
        Needs::Metrics => (Role::Viewer, person.rights.most(), None),
        Needs::Somewhere(role) => (role, person.rights.most(), None),
        Needs::Everywhere(role) => (role, person.rights.role_in(None), None),
        Needs::Runbook(role) => (role, person.rights.role_in(app.area(named).as_deref()), None),
        Needs::Run(role) => {
            let row = find_run(app, named).await?;
            let role_here = match &row {
                Some(row) => person.rights.role_in(app.area(&row.runbook).as_deref()),
                // Nobody learns which runs there are.
                None => person.rights.most(),
            };
            if row.is_none() && role_here >= Some(role) {
                return Err(ApiError::not_found(format!("there is no run `{}`", short(named))));
            }
            (role, role_here, row)
        }
    };
    if has >= Some(role) {
        return Ok(row);
    }
    let wanted = format!("{role:?}").to_lowercase();
    let has = has.map_or("nothing".to_owned(), |has| format!("{has:?}").to_lowercase());
    Err(ApiError::new(
        ErrorCode::NotAllowed,
        format!("this needs the role `{wanted}` here, and {} has `{has}`", person.name),
    )
    .next("the service file says who may do what"))
}

async fn find_run(app: &App, named: &str) -> Result<Option<RunRow>, ApiError> {
    // Only the one spelling that is printed: no braces, no upper case, nothing encoded.
    match named.parse::<RunId>() {
        Ok(run) if run.to_string() == named => Ok(app.0.store.run(run).await?),
        _ => Ok(None),
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

/// Refuses what a browser sends for a page of another site.
fn same_site(headers: &HeaderMap) -> Result<(), ApiError> {
    let refused = || {
        Err(ApiError::new(ErrorCode::CrossSite, "a page of another site sent this")
            .next("send it from a program, or from a page of this service"))
    };
    if let Some(site) = headers.get("sec-fetch-site")
        && site != "same-origin"
        && site != "none"
    {
        return refused();
    }
    if let Some(origin) = headers.get(ORIGIN) {
        let origin = origin.to_str().unwrap_or_default();
        let host = headers.get(HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
        let is_own = origin.split_once("://").is_some_and(|(_, place)| !host.is_empty() && place == host);
        if !is_own {
            return refused();
        }
    }
    Ok(())
}

/// Refuses what is encoded, too large by its own word, or not JSON.
fn plain(headers: &HeaderMap, route: &Route) -> Result<(), ApiError> {
    if headers.contains_key(CONTENT_ENCODING) {
        return Err(ApiError::new(ErrorCode::UnsupportedType, "the body is encoded").next("send it as it is"));
    }
    let length = match headers.get(CONTENT_LENGTH) {
        Some(length) => length.to_str().ok().and_then(|length| length.parse::<u64>().ok()),
        None => Some(0),
    };
    let Some(length) = length else {
        return Err(ApiError::new(ErrorCode::Malformed, "the length of the body is not a number"));
    };
    if length > limit(route) as u64 {
        return Err(too_large(route));
    }
    let has_body = length > 0 || headers.contains_key(TRANSFER_ENCODING);
    if has_body && route.changes() {
        let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            return Err(ApiError::new(
                ErrorCode::UnsupportedType,
                format!("the body is `{}`, not JSON", short(kind)),
            )
            .next("send `Content-Type: application/json`"));
        }
    }
    Ok(())
}

fn limit(route: &Route) -> usize {
    if route.needs == Needs::Receiver { WEBHOOK } else { BODY }
}

fn too_large(route: &Route) -> ApiError {
    ApiError::new(ErrorCode::TooLarge, format!("the body is larger than {} bytes", limit(route)))
}

/// The whole body, in time and within limits. Reading routes have none.
async fn take_body(body: Body, headers: &HeaderMap, route: &Route) -> Result<Body, ApiError> {
    let is_empty = headers.get(CONTENT_LENGTH).is_none() && headers.get(TRANSFER_ENCODING).is_none();
    if is_empty || !route.changes() {
        return Ok(Body::empty());
    }
    let read = Limited::new(body, limit(route)).collect();
    match tokio::time::timeout(BODY_TIME, read).await {
        Err(_) => Err(ApiError::new(ErrorCode::TooSlow, "the body did not arrive in time")),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(too_large(route)),
        Ok(Err(_)) => Err(ApiError::new(ErrorCode::Malformed, "the body ended early")),
        Ok(Ok(collected)) => Ok(Body::from(collected.to_bytes())),
    }
}

/// Records what changed something, and what somebody known was refused.
async fn record(
    app: &App,
    route: &Route,
    known: &Known,
    peer: &Peer,
    (object, code): (&str, Option<ErrorCode>),
) {
    let is_worth = match known {
        Known::Nobody => false,
        // Alerts are events in the store already.
        Known::Sender(_) => code == Some(ErrorCode::NotAllowed),
        Known::Person(_) => route.changes() || code == Some(ErrorCode::NotAllowed),
    };
    if !is_worth {
        return;
    }
    let (who, via) = match known {
        Known::Person(person) => (person.name.as_str(), person.via),
        Known::Sender(sender) => (sender.receiver.as_str(), sender.via),
        Known::Nobody => return,
    };
    let what = format!("{} {}", route.method, route.path);
    let outcome = code.map_or("ok", ErrorCode::name);
    let detail = peer.to_string();
    let act = NewAct { who, via, what: &what, object: &short(object), outcome, detail: &detail };
    if let Err(error) = app.record(act).await {
        tracing::error!(%error, who, what, "an act could not be recorded");
    }
}
