//! Watches: a stream of changes, from a version on.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use farrier_model::time::Timestamp;
use futures_util::stream::{self, Stream};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use kube::client::Body;
use serde_json::{Value as Json, json};

use super::StandIn;
use super::read;
use super::request::{Request, Route};
use super::selector::Query;
use super::status::Refusal;
use super::world::{Key, World};

/// How often a watch looks whether time has moved the world; writes of this process wake it at once.
const LOOK: Duration = Duration::from_millis(200);

/// How long a watch goes on that does not say it.
const DEFAULT_END: u64 = 1800;

/// What a client watches.
pub(crate) struct Watch {
    kind: usize,
    namespace: String,
    name: Option<String>,
    query: Query,
    bookmarks: bool,
    until: Timestamp,
    revision: u64,
    /// The objects that the client knows to be chosen.
    known: BTreeSet<Key>,
    first: Vec<Json>,
    ended: bool,
}

/// Begins a watch.
pub(crate) fn begin(
    world: &World,
    route: &Route,
    request: &Request,
    now: Timestamp,
) -> Result<Watch, Refusal> {
    let query = read::query(route, request)?;
    let seconds = request.number("timeoutSeconds")?.filter(|seconds| *seconds > 0).unwrap_or(DEFAULT_END);
    let until =
        Timestamp::from_second(now.as_second().saturating_add(seconds as i64)).unwrap_or(Timestamp::MAX);
    let mut watch = Watch {
        kind: route.kind,
        namespace: route.namespace.clone(),
        name: route.name.clone(),
        query,
        bookmarks: request.flag("allowWatchBookmarks"),
        until,
        revision: world.revision,
        known: BTreeSet::new(),
        first: Vec::new(),
        ended: false,
    };
    match read::version(request)?.unwrap_or(0) {
        // From now on, and first what there is.
        0 => {
            for (key, object) in world.of_kind(route.kind, &route.namespace) {
                if watch.chooses(key, object) {
                    watch.known.insert(key.clone());
                    watch.first.push(json!({ "type": "ADDED", "object": **object }));
                }
            }
        }
        from if from > world.revision => return Err(Refusal::too_large_version(from, world.revision)),
        from => match world.at(from, route.kind, &route.namespace) {
            Some(objects) => {
                watch.known = objects
                    .iter()
                    .filter(|(key, object)| watch.chooses(key, object))
                    .map(|(key, _)| key.clone())
                    .collect();
                watch.revision = from;
            }
            // The real server opens the stream and says it there.
            None => {
                let message = format!("too old resource version: {from} ({})", world.floor);
                watch.first.push(json!({ "type": "ERROR", "object": Refusal::expired(message).to_json() }));
                watch.ended = true;
            }
        },
    }
    Ok(watch)
}

impl Watch {
    fn chooses(&self, key: &Key, object: &Json) -> bool {
        self.name.as_ref().is_none_or(|name| *name == key.name) && self.query.chooses(object)
    }

    /// What happened since the last look.
    fn look(&mut self, world: &World, now: Timestamp) -> Vec<Json> {
        let mut events = std::mem::take(&mut self.first);
        if self.ended {
            return events;
        }
        let Some(changes) = world.since(self.revision) else {
            let message = format!("too old resource version: {} ({})", self.revision, world.floor);
            events.push(json!({ "type": "ERROR", "object": Refusal::expired(message).to_json() }));
            self.ended = true;
            return events;
        };
        for change in changes {
            self.revision = change.revision;
            let here = self.namespace.is_empty() || change.key.namespace == self.namespace;
            if change.key.kind != self.kind || !here {
                continue;
            }
            let chosen = change.after.as_ref().is_some_and(|object| self.chooses(&change.key, object));
            let was = self.known.contains(&change.key);
            let (kind, object): (_, Option<&Arc<Json>>) = match (was, chosen) {
                (false, true) => ("ADDED", change.after.as_ref()),
                (true, true) => ("MODIFIED", change.after.as_ref()),
                (true, false) => ("DELETED", change.after.as_ref().or(change.before.as_ref())),
                (false, false) => continue,
            };
            if chosen {
                self.known.insert(change.key.clone());
            } else {
                self.known.remove(&change.key);
            }
            if let Some(object) = object {
                events.push(json!({ "type": kind, "object": **object }));
            }
        }
        self.revision = world.revision;
        if now >= self.until {
            self.ended = true;
            if self.bookmarks {
                let kind = &super::KINDS[self.kind];
                events.push(json!({
                    "type": "BOOKMARK",
                    "object": {
                        "kind": kind.kind, "apiVersion": kind.api_version(),
                        "metadata": { "resourceVersion": self.revision.to_string(), "creationTimestamp": null },
                    },
                }));
            }
        }
        events
    }
}

/// The events as lines.
pub(crate) fn body(standin: StandIn, watch: Watch) -> UnsyncBoxBody<Bytes, std::io::Error> {
    UnsyncBoxBody::new(StreamBody::new(lines(standin, watch)))
}

fn lines(
    standin: StandIn,
    watch: Watch,
) -> impl Stream<Item = Result<http_body::Frame<Bytes>, std::io::Error>> + Send {
    stream::unfold(Some((standin, watch)), |state| async move {
        let (standin, mut watch) = state?;
        loop {
            // Subscribed before looking, so that no change falls between.
            let mut changed = standin.changes();
            let (back, events) = standin.look(watch, Watch::look).await?;
            watch = back;
            if !events.is_empty() {
                let mut text = String::new();
                for event in events {
                    text.push_str(&event.to_string());
                    text.push('\n');
                }
                let frame = http_body::Frame::data(Bytes::from(text));
                let next = if watch.ended { None } else { Some((standin, watch)) };
                return Some((Ok(frame), next));
            }
            if watch.ended {
                return None;
            }
            let _ = tokio::time::timeout(LOOK, changed.changed()).await;
        }
    })
}

/// A body that is there at once.
pub(crate) fn whole(text: String) -> UnsyncBoxBody<Bytes, std::io::Error> {
    use http_body_util::BodyExt as _;
    UnsyncBoxBody::new(http_body_util::Full::new(Bytes::from(text)).map_err(|never| match never {}))
}

/// Unused bodies are read, so that a request is taken in whole.
pub(crate) async fn read_body(body: Body) -> Result<Vec<u8>, kube::Error> {
    Ok(body.collect_bytes().await?.to_vec())
}
