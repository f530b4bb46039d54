//! A cluster, whoever answers: kube's client, the kinds of object by their names, and failures in Farrier's words.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use farrier_action::Now;
use farrier_model::{Failure, FailureKind};
use kube::api::{ApiResource, DynamicObject};
use kube::core::GroupVersionKind;
use kube::core::response::Status;
use kube::{Api, Client, Discovery, discovery};

use crate::kinds;

/// One side of a target.
#[derive(Clone)]
pub(crate) struct Cluster {
    pub(crate) client: Client,
    now: Now,
    /// Kinds that the server was asked for.
    found: Arc<Mutex<BTreeMap<(String, String), Kind>>>,
}

/// A kind of object that the cluster has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Kind {
    pub(crate) resource: ApiResource,
    pub(crate) namespaced: bool,
}

impl Cluster {
    /// A cluster; its time, when it has one of its own.
    pub(crate) fn new(client: Client, now: Option<Now>) -> Cluster {
        Cluster { client, now: now.unwrap_or_default(), found: Arc::default() }
    }

    /// The time in the cluster.
    pub(crate) fn now(&self) -> farrier_model::time::Timestamp {
        self.now.get()
    }

    /// The kind of this name. Well-known ones need no `api_version`; the server is asked for others.
    pub(crate) async fn kind(&self, name: &str, api_version: Option<&str>) -> Result<Kind, Failure> {
        if let Some(known) = kinds::known(name, api_version) {
            return Ok(known);
        }
        let key = (name.to_owned(), api_version.unwrap_or_default().to_owned());
        let found = self.found.lock().unwrap_or_else(PoisonError::into_inner).get(&key).cloned();
        if let Some(found) = found {
            return Ok(found);
        }
        let kind = self.discover(name, api_version).await?;
        self.found.lock().unwrap_or_else(PoisonError::into_inner).insert(key, kind.clone());
        Ok(kind)
    }

    async fn discover(&self, name: &str, api_version: Option<&str>) -> Result<Kind, Failure> {
        let doing = || format!("cannot find the kind `{name}`");
        let of = |(resource, capabilities): (ApiResource, discovery::ApiCapabilities)| Kind {
            resource,
            namespaced: capabilities.scope == discovery::Scope::Namespaced,
        };
        if let Some(api_version) = api_version {
            let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
            let kind = GroupVersionKind::gvk(group, version, name);
            return match discovery::oneshot::pinned_kind(&self.client, &kind).await {
                Ok(found) => Ok(of(found)),
                Err(kube::Error::Discovery(_)) => Err(unknown_kind(name, Some(api_version))),
                Err(kube::Error::Api(status)) if status.code == 404 => {
                    Err(unknown_kind(name, Some(api_version)))
                }
                Err(error) => Err(read_failure(&error, &doing())),
            };
        }
        let all = Discovery::new(self.client.clone())
            .run()
            .await
            .map_err(|error| read_failure(&error, &doing()))?;
        let mut matching: Vec<Kind> = all
            .groups()
            .flat_map(discovery::ApiGroup::recommended_resources)
            .filter(|(resource, _)| resource.kind == name)
            .map(of)
            .collect();
        match (matching.pop(), matching.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) => Err(unknown_kind(name, None)),
            (Some(one), false) => {
                let versions: Vec<String> = matching
                    .iter()
                    .chain([&one])
                    .map(|kind| format!("`{}`", kind.resource.api_version))
                    .collect();
                Err(Failure::new(
                    FailureKind::Input,
                    format!("the cluster has several kinds `{name}`, of {}", versions.join(" and ")),
                )
                .help("say which with `api_version`"))
            }
        }
    }

    /// The objects of a kind; in all namespaces when none is given.
    pub(crate) fn api(&self, kind: &Kind, namespace: Option<&str>) -> Api<DynamicObject> {
        match namespace {
            Some(namespace) if kind.namespaced => {
                Api::namespaced_with(self.client.clone(), namespace, &kind.resource)
            }
            _ => Api::all_with(self.client.clone(), &kind.resource),
        }
    }
}

fn unknown_kind(name: &str, api_version: Option<&str>) -> Failure {
    let of = api_version.map(|version| format!(" of `{version}`")).unwrap_or_default();
    Failure::new(FailureKind::Input, format!("the cluster has no kind `{name}`{of}"))
}

/// What the server says of a request, when it is an answer at all.
pub(crate) fn status(error: &kube::Error) -> Option<&Status> {
    match error {
        kube::Error::Api(status) => Some(status),
        _ => None,
    }
}

/// Whether the answer is that there is no such object.
pub(crate) fn is_missing(error: &kube::Error) -> bool {
    status(error).is_some_and(|status| status.code == 404)
}

/// A read that failed.
pub(crate) fn read_failure(error: &kube::Error, doing: &str) -> Failure {
    let kind = match error {
        kube::Error::Api(status) => return of_status(status, doing),
        kube::Error::HyperError(_) | kube::Error::Service(_) | kube::Error::ReadEvents(_) => {
            FailureKind::Unreachable
        }
        kube::Error::Auth(_) => FailureKind::Denied,
        kube::Error::BuildRequest(_) => FailureKind::Input,
        _ => FailureKind::Refused,
    };
    Failure::new(kind, format!("{doing}: {}", chain(error)))
}

/// A write that failed: without an answer nobody knows whether it happened.
pub(crate) fn write_failure(error: &kube::Error, doing: &str) -> Failure {
    let failure = read_failure(error, doing);
    let unanswered = match error {
        kube::Error::Api(status) => status.code >= 500 && status.reason != "InternalError",
        _ => failure.kind == FailureKind::Unreachable,
    };
    if unanswered { failure.in_doubt() } else { failure }
}

/// Refusals that have nothing to do with who asks: of an object beyond a quota, of one that does not say what a quota counts, and
/// of anything in a namespace on its way out.
const OTHER_REFUSALS: [&str; 3] = ["exceeded quota: ", "failed quota: ", "being terminated"];

fn of_status(status: &Status, doing: &str) -> Failure {
    let kind = match status.code {
        // They are told in the words of permissions.
        403 if OTHER_REFUSALS.iter().any(|text| status.message.contains(text)) => FailureKind::Refused,
        401 | 403 => FailureKind::Denied,
        409 | 410 | 429 => FailureKind::Conflict,
        500.. if status.reason != "InternalError" && !status.reason.is_empty() => FailureKind::Unreachable,
        _ => FailureKind::Refused,
    };
    let message = if status.message.is_empty() { status.reason.clone() } else { status.message.clone() };
    Failure::new(kind, format!("{doing}: {message}"))
}

/// An error with its causes, each once.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        next = error.source();
    }
    text
}
