//! Get and list: selectors, pages, versions.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use serde_json::{Value as Json, json};

use super::request::{Request, Route};
use super::selector::Query;
use super::status::Refusal;
use super::world::{Key, World, text};
use super::write::Answer;

/// `GET` on an object.
pub(crate) fn get(world: &World, route: &Route) -> Result<Answer, Refusal> {
    let name = route.name.as_deref().unwrap_or_default();
    let key = Key::new(route.kind, &route.namespace, name);
    let object = world.get(&key).ok_or_else(|| Refusal::not_found(route.kind(), name))?;
    Ok(Answer::ok((**object).clone()))
}

/// The selectors of a request.
pub(crate) fn query(route: &Route, request: &Request) -> Result<Query, Refusal> {
    Query::parse(route.kind(), request.parameter("labelSelector"), request.parameter("fieldSelector"))
}

/// `GET` on a collection.
pub(crate) fn list(world: &World, route: &Route, request: &Request) -> Result<Answer, Refusal> {
    let kind = route.kind();
    let query = query(route, request)?;
    let limit = request.number("limit")?.filter(|limit| *limit > 0);
    let asked = version(request)?;
    let (objects, revision, after): (BTreeMap<Key, Arc<Json>>, u64, Option<Key>) = match request
        .parameter("continue")
    {
        Some(token) => {
            if asked.is_some_and(|asked| asked > 0) {
                return Err(Refusal::bad_request(
                    "specifying resource version is not allowed when using continue",
                ));
            }
            let (revision, key) = read_token(token, route).ok_or_else(|| {
                Refusal::bad_request("continue key is not valid: the token was not made by this server")
            })?;
            let objects = world.at(revision, route.kind, &route.namespace).ok_or_else(|| {
                Refusal::expired(
                    "The provided continue parameter is too old to display a consistent list result. \
                         You can start a new list without the continue parameter.",
                )
            })?;
            (objects, revision, Some(key))
        }
        None => {
            if let Some(asked) = asked.filter(|asked| *asked > world.revision) {
                return Err(Refusal::too_large_version(asked, world.revision));
            }
            let exact = request.parameter("resourceVersionMatch") == Some("Exact");
            let revision = asked.filter(|_| exact).unwrap_or(world.revision);
            let objects = world.at(revision, route.kind, &route.namespace).ok_or_else(|| {
                Refusal::expired(format!("The resourceVersion for the provided list is too old: {revision}"))
            })?;
            (objects, revision, None)
        }
    };
    let mut metadata = json!({ "resourceVersion": revision.to_string() });
    let mut items = Vec::new();
    let mut rest = objects
        .iter()
        .filter(|(key, object)| after.as_ref().is_none_or(|after| *key > after) && query.chooses(object));
    for (key, object) in rest.by_ref() {
        let mut item = (**object).clone();
        if let Some(map) = item.as_object_mut() {
            // A list says once what its items are.
            map.shift_remove("apiVersion");
            map.shift_remove("kind");
        }
        items.push(item);
        if limit == Some(items.len() as u64) {
            let left = rest.count();
            if left > 0 {
                metadata["continue"] = token(revision, key).into();
                metadata["remainingItemCount"] = left.into();
            }
            break;
        }
    }
    Ok(Answer::ok(json!({
        "kind": format!("{}List", kind.kind), "apiVersion": kind.api_version(), "metadata": metadata, "items": items,
    })))
}

/// The version that a request names.
pub(crate) fn version(request: &Request) -> Result<Option<u64>, Refusal> {
    request
        .parameter("resourceVersion")
        .map(|text| {
            text.parse().map_err(|_| {
                Refusal::bad_request(format!("invalid resource version \"{text}\": must be a number"))
            })
        })
        .transpose()
}

fn token(revision: u64, key: &Key) -> String {
    let token = json!({ "v": "meta.k8s.io/v1", "rv": revision, "ns": key.namespace, "start": key.name });
    BASE64.encode(token.to_string())
}

fn read_token(token: &str, route: &Route) -> Option<(u64, Key)> {
    let token: Json = serde_json::from_slice(&BASE64.decode(token).ok()?).ok()?;
    let key = Key::new(route.kind, text(&token, &["ns"])?, text(&token, &["start"])?);
    Some((token.get("rv")?.as_u64()?, key))
}
