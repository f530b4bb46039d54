//! The embedded cluster: a Kubernetes API over YAML objects, served to kube's own client in this process.
//!
//! Read first: [`StandIn`], then `world` (what the cluster holds), `write` (the way of every change) and `controllers`
//! (what moves by itself). `files` is about the files.
//!
//! It keeps versions, conflicts, owners of fields, finalizers, graceful deletion, evictions and disruption budgets as
//! the real server does, and it answers in the real server's words. It has no accounts, and no admission but resource quotas,
//! and it validates as much as keeps a runbook honest. One suite runs against it and against real servers.
//!
//! **Rules.** The files are the truth: each request sees what is in them now. Time comes from the caller alone; what
//! time moves (a pod's end, a job's) has happened when a request is answered. A request that is refused, or a dry run,
//! leaves nothing behind.

mod apply;
mod controllers;
mod cron_jobs;
mod delete;
mod fields;
mod files;
mod kinds;
mod lists;
mod meta;
mod patch;
mod quota;
mod read;
mod request;
mod selector;
mod status;
#[cfg(test)]
mod tests;
mod watch;
mod world;
mod write;

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use bytes::Bytes;
use farrier_action::Now;
use farrier_action::world_file;
use farrier_model::time::Timestamp;
use farrier_model::{Failure, FailureKind};
use http::Response;
use http_body_util::combinators::UnsyncBoxBody;
use kube::client::Body;
use serde_json::Value as Json;

pub(crate) use apply::merged;
use files::Files;
use kinds::KINDS;
pub(crate) use patch::merge as merge_patch;
use request::{Request, Route};
use status::Refusal;
use watch::Watch;
use world::{Key, World, at, text};
use write::Answer;

/// How long one process waits for another one's write.
const LOCK_WAIT: Duration = Duration::from_secs(30);

/// A cluster in a YAML file, or in all `*.yaml` files of a folder.
#[derive(Clone)]
pub(crate) struct StandIn {
    shared: Arc<Shared>,
    now: Now,
}

/// What all sides of one cluster in this process share.
struct Shared {
    path: PathBuf,
    loaded: Mutex<Option<(Files, World)>>,
    changed: tokio::sync::watch::Sender<u64>,
}

/// The clusters that are open in this process, by their path: both sides of a target see one world.
static OPEN: OnceLock<Mutex<HashMap<PathBuf, Weak<Shared>>>> = OnceLock::new();

impl StandIn {
    /// Reads the files once, so that mistakes in them show at once.
    pub(crate) fn open(path: &Path, now: Now) -> Result<StandIn, Failure> {
        let path = path.canonicalize().map_err(|error| {
            Failure::new(FailureKind::Unreachable, format!("cannot read {}: {error}", path.display()))
        })?;
        let mut open = OPEN.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, shared| shared.strong_count() > 0);
        let shared = open.get(&path).and_then(Weak::upgrade).unwrap_or_else(|| {
            let changed = tokio::sync::watch::Sender::new(0);
            Arc::new(Shared { path: path.clone(), loaded: Mutex::default(), changed })
        });
        open.insert(path, Arc::downgrade(&shared));
        drop(open);
        shared.with_world(|_| Ok(((), false)))?;
        Ok(StandIn { shared, now })
    }

    /// kube's client for it.
    pub(crate) fn client(&self) -> kube::Client {
        let standin = self.clone();
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let standin = standin.clone();
            async move { Ok::<_, Infallible>(standin.serve(request).await) }
        });
        kube::Client::new(service, "default")
    }

    /// Told of every change from now on.
    fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.shared.changed.subscribe()
    }

    async fn serve(&self, request: http::Request<Body>) -> Response<UnsyncBoxBody<Bytes, std::io::Error>> {
        let (parts, body) = request.into_parts();
        let header = |name| parts.headers.get(name).and_then(|value: &http::HeaderValue| value.to_str().ok());
        let content_type = header(http::header::CONTENT_TYPE).unwrap_or("application/json").to_owned();
        let query = parts.uri.query().unwrap_or_default();
        let query = url::form_urlencoded::parse(query.as_bytes())
            .map(|(key, value)| (key.into_owned(), value.into_owned()))
            .collect();
        let body = watch::read_body(body).await.unwrap_or_default();
        let method = parts.method.as_str().to_owned();
        let path = parts.uri.path().to_owned();
        let request = Request { method, path, query, content_type, body };
        let standin = self.clone();
        let outcome = tokio::task::spawn_blocking(move || standin.answer(&request)).await;
        let outcome =
            outcome.unwrap_or_else(|error| Err(Refusal::internal(format!("the stand-in stopped: {error}"))));
        let (code, warnings, content, body) = match outcome {
            Ok(Reply::Json(answer)) => {
                (answer.code, answer.warnings, "application/json", watch::whole(answer.body.to_string()))
            }
            Ok(Reply::Text(text)) => (200, Vec::new(), "text/plain", watch::whole(text)),
            Ok(Reply::Watch(begun)) => {
                (200, Vec::new(), "application/json", watch::body(self.clone(), *begun))
            }
            Err(refusal) => {
                (refusal.code, Vec::new(), "application/json", watch::whole(refusal.to_json().to_string()))
            }
        };
        let mut response = Response::new(body);
        *response.status_mut() =
            http::StatusCode::from_u16(code).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
        response.headers_mut().insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static(content));
        for warning in warnings {
            if let Ok(warning) = http::HeaderValue::from_str(&format!("299 - {warning:?}")) {
                response.headers_mut().append(http::header::WARNING, warning);
            }
        }
        response
    }

    fn answer(&self, request: &Request) -> Result<Reply, Refusal> {
        let path: Vec<&str> = request.path.split('/').filter(|part| !part.is_empty()).collect();
        if matches!(path.as_slice(), ["healthz" | "livez" | "readyz"]) {
            return Ok(Reply::Text("ok".into()));
        }
        if let Some(found) = kinds::discovery(&path) {
            return if request.method == "GET" {
                Ok(Reply::Json(Answer::ok(found)))
            } else {
                Err(Refusal::method_not_allowed())
            };
        }
        let route = Route::parse(&path).ok_or_else(Refusal::no_such_resource)?;
        let now = self.now.get();
        let answer = self.shared.with_world(|world| {
            controllers::settle(world, now);
            let moved = !world.dirty.is_empty();
            if request.method == "GET" {
                return Ok((route_to(world, &route, request, now)?, moved));
            }
            let dry = is_dry(request, &route)?;
            let mut trial = world.clone();
            let mut reply = route_to(&mut trial, &route, request, now)?;
            if dry {
                as_not_stored(&mut reply, world, &route);
            }
            if dry || trial.revision == world.revision {
                return Ok((reply, moved));
            }
            controllers::settle(&mut trial, now);
            *world = trial;
            Ok((reply, true))
        });
        answer.map_err(|failure| match failure {
            Trouble::Refused(refusal) => refusal,
            Trouble::Failed(failure) => Refusal::internal(failure.to_string()),
        })
    }

    /// Lets a watch look at the world; nothing when the files cannot be read any more.
    async fn look(
        &self,
        mut watch: Watch,
        look: fn(&mut Watch, &World, Timestamp) -> Vec<Json>,
    ) -> Option<(Watch, Vec<Json>)> {
        let standin = self.clone();
        tokio::task::spawn_blocking(move || {
            let now = standin.now.get();
            let events = standin.shared.with_world::<_, Trouble>(|world| {
                controllers::settle(world, now);
                let moved = !world.dirty.is_empty();
                Ok((look(&mut watch, world, now), moved))
            });
            events.ok().map(|events| (watch, events))
        })
        .await
        .ok()?
    }
}

/// What a request gets.
enum Reply {
    Json(Answer),
    Text(String),
    Watch(Box<Watch>),
}

/// Why a request got nothing.
enum Trouble {
    Refused(Refusal),
    Failed(Failure),
}

impl From<Refusal> for Trouble {
    fn from(refusal: Refusal) -> Trouble {
        Trouble::Refused(refusal)
    }
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Trouble {
        Trouble::Failed(failure)
    }
}

impl Shared {
    /// Works on the world as it is in the files, and writes it back when `work` says that it changed.
    fn with_world<T, E: From<Failure>>(
        &self,
        work: impl FnOnce(&mut World) -> Result<(T, bool), E>,
    ) -> Result<T, E> {
        let mut loaded = self.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        let _lock = world_file::lock(&self.path, LOCK_WAIT)?;
        let (mut files, mut world) = match loaded.take() {
            Some((files, world)) if files.are_current(&self.path)? => (files, world),
            _ => Files::load(&self.path)?,
        };
        let before = world.revision;
        let (answer, changed) = match work(&mut world) {
            Ok(done) => done,
            // What time moved before the refusal is real all the same.
            Err(error) => {
                files.save(&mut world)?;
                *loaded = Some((files, world));
                return Err(error);
            }
        };
        if changed {
            // When that fails, the next request starts from the files again.
            files.save(&mut world)?;
        }
        let after = world.revision;
        *loaded = Some((files, world));
        drop(loaded);
        if after != before {
            self.changed.send_replace(after);
        }
        Ok(answer)
    }
}

fn is_dry(request: &Request, route: &Route) -> Result<bool, Refusal> {
    let options = match (request.method.as_str(), route.subresource.as_deref()) {
        ("DELETE", _) => options_body(request)?,
        ("POST", Some("eviction")) => request.json()?.get("deleteOptions").cloned().unwrap_or_default(),
        _ => Json::Null,
    };
    request.dry_run(Some(&options))
}

fn options_body(request: &Request) -> Result<Json, Refusal> {
    if request.body.iter().all(u8::is_ascii_whitespace) { Ok(Json::Null) } else { request.json() }
}

fn route_to(world: &mut World, route: &Route, request: &Request, now: Timestamp) -> Result<Reply, Refusal> {
    let subresource = route.subresource.as_deref();
    let answer = match (request.method.as_str(), &route.name, subresource) {
        ("GET", None, None) if request.flag("watch") => {
            return watch::begin(world, route, request, now).map(|watch| Reply::Watch(Box::new(watch)));
        }
        ("GET", None, None) => read::list(world, route, request)?,
        ("POST", None, None) => write::create(world, route, request, now)?,
        ("DELETE", None, None) => {
            let options = delete::Options::read(request, &options_body(request)?)?;
            delete::delete_many(world, route, request, &options, now)?
        }
        ("GET", Some(name), Some("log")) => return log(world, route, name, request).map(Reply::Text),
        ("POST", Some(_), Some("eviction")) => {
            let eviction = request.json()?;
            let options =
                delete::Options::read(request, eviction.get("deleteOptions").unwrap_or(&Json::Null))?;
            delete::evict(world, route, &options, now)?
        }
        ("GET" | "PUT" | "PATCH", Some(_), Some("scale")) => write::scale(world, route, request, now)?,
        ("GET", Some(_), None | Some("status")) => read::get(world, route)?,
        ("PUT", Some(_), None | Some("status" | "finalize")) => write::update(world, route, request, now)?,
        ("PATCH", Some(_), None | Some("status")) => write::patch(world, route, request, now)?,
        ("DELETE", Some(_), None) => {
            let options = delete::Options::read(request, &options_body(request)?)?;
            delete::delete(world, route, &options, now)?
        }
        _ => return Err(Refusal::method_not_allowed()),
    };
    Ok(Reply::Json(answer))
}

/// A dry run gives no new version.
fn as_not_stored(reply: &mut Reply, world: &World, route: &Route) {
    let Reply::Json(answer) = reply else { return };
    let Some(metadata) =
        answer.body.get_mut("metadata").and_then(Json::as_object_mut).filter(|map| map.contains_key("name"))
    else {
        return;
    };
    let key = Key::new(route.kind, &route.namespace, route.name.as_deref().unwrap_or_default());
    match world.get(&key).and_then(|object| object["metadata"].get("resourceVersion").cloned()) {
        Some(version) => metadata.insert("resourceVersion".into(), version),
        None => metadata.shift_remove("resourceVersion"),
    };
}

/// What a pod said: its annotation says it.
fn log(world: &World, route: &Route, name: &str, request: &Request) -> Result<String, Refusal> {
    let key = Key::new(route.kind, &route.namespace, name);
    let pod = world.get(&key).ok_or_else(|| Refusal::not_found(route.kind(), name))?;
    let containers: Vec<&str> = at(pod, &["spec", "containers"])
        .and_then(Json::as_array)
        .into_iter()
        .flatten()
        .filter_map(|container| text(container, &["name"]))
        .collect();
    let container = match (request.parameter("container"), containers.as_slice()) {
        (Some(name), all) if all.contains(&name) => name,
        (Some(other), _) => {
            return Err(Refusal::bad_request(format!("container {other} is not valid for pod {name}")));
        }
        (None, [one]) => one,
        (None, all) => {
            return Err(Refusal::bad_request(format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                all.join(" ")
            )));
        }
    };
    if text(pod, &["status", "phase"]) == Some("Pending") {
        return Err(Refusal::bad_request(format!(
            "container \"{container}\" in pod \"{name}\" is waiting to start: ContainerCreating"
        )));
    }
    let log = text(pod, &["metadata", "annotations", controllers::LOG]).unwrap_or_default();
    let lines: Vec<&str> = log.lines().collect();
    let kept = request.number("tailLines")?.map_or(lines.len(), |tail| lines.len().min(tail as usize));
    let mut text: String = lines[lines.len() - kept..].iter().map(|line| format!("{line}\n")).collect();
    if let Some(limit) = request.number("limitBytes")? {
        let mut end = text.len().min(limit as usize);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        text.truncate(end);
    }
    Ok(text)
}
