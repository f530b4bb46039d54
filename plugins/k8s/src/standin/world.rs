//! What the cluster holds: objects by name, one counter for all changes, and the last changes for those who watch.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use farrier_model::time::Timestamp;
use serde_json::Value as Json;

use super::kinds::{KINDS, Kind};

/// How long changes are remembered: what a real server's storage keeps by default.
const REMEMBERED: i64 = 300;

/// How many changes are remembered at most.
const REMEMBERED_AT_MOST: usize = 20_000;

/// The name of an object. Ordered as lists are.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Key {
    /// Its kind, as a number in [`KINDS`].
    pub(crate) kind: usize,
    /// Empty for kinds without namespaces.
    pub(crate) namespace: String,
    /// The name.
    pub(crate) name: String,
}

impl Key {
    /// A name.
    pub(crate) fn new(kind: usize, namespace: &str, name: &str) -> Key {
        Key { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// A namespace itself.
    pub(crate) fn namespace(name: &str) -> Key {
        Key::new(Kind::index("Namespace"), "", name)
    }

    /// Its kind.
    pub(crate) fn kind(&self) -> &'static Kind {
        &KINDS[self.kind]
    }
}

/// One change.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub(crate) revision: u64,
    at: Timestamp,
    pub(crate) key: Key,
    pub(crate) before: Option<Arc<Json>>,
    /// The object; its last state when it was deleted.
    pub(crate) after: Option<Arc<Json>>,
}

/// The cluster.
#[derive(Debug, Clone, Default)]
pub(crate) struct World {
    objects: BTreeMap<Key, Arc<Json>>,
    pub(crate) revision: u64,
    /// What happened up to this revision is not remembered.
    pub(crate) floor: u64,
    log: VecDeque<Event>,
    /// What changed since the world was last saved.
    pub(crate) dirty: BTreeSet<Key>,
}

impl World {
    /// An object.
    pub(crate) fn get(&self, key: &Key) -> Option<&Arc<Json>> {
        self.objects.get(key)
    }

    /// All objects of a kind, in one namespace or all, by name.
    pub(crate) fn of_kind(&self, kind: usize, namespace: &str) -> impl Iterator<Item = (&Key, &Arc<Json>)> {
        let all = namespace.is_empty();
        let from = Key::new(kind, namespace, "");
        let namespace = namespace.to_owned();
        self.objects
            .range(from..)
            .take_while(move |(key, _)| key.kind == kind && (all || key.namespace == namespace))
    }

    /// The objects of the kind of this name.
    pub(crate) fn named(&self, kind: &str, namespace: &str) -> impl Iterator<Item = (&Key, &Arc<Json>)> {
        self.of_kind(Kind::index(kind), namespace)
    }

    /// Every object.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&Key, &Arc<Json>)> {
        self.objects.iter()
    }

    /// Takes an object from a file, without counting it as a change.
    pub(crate) fn load(&mut self, key: Key, object: Json) {
        self.objects.insert(key, Arc::new(object));
    }

    /// Stores an object under the next revision.
    pub(crate) fn put(&mut self, key: &Key, mut object: Json, now: Timestamp) -> Arc<Json> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = self.revision.to_string().into();
        let object = Arc::new(object);
        let before = self.objects.insert(key.clone(), object.clone());
        self.remember(key, before, Some(object.clone()), now);
        object
    }

    /// Removes an object; returns its last state.
    pub(crate) fn remove(&mut self, key: &Key, now: Timestamp) -> Option<Arc<Json>> {
        let before = self.objects.remove(key)?;
        self.revision += 1;
        let mut last = (*before).clone();
        last["metadata"]["resourceVersion"] = self.revision.to_string().into();
        self.remember(key, Some(Arc::new(last)), None, now);
        Some(before)
    }

    fn remember(&mut self, key: &Key, before: Option<Arc<Json>>, after: Option<Arc<Json>>, now: Timestamp) {
        self.dirty.insert(key.clone());
        self.log.push_back(Event { revision: self.revision, at: now, key: key.clone(), before, after });
    }

    /// Forgets changes that are too old.
    pub(crate) fn compact(&mut self, now: Timestamp) {
        while let Some(event) = self.log.front()
            && (self.log.len() > REMEMBERED_AT_MOST
                || now.as_second().saturating_sub(event.at.as_second()) > REMEMBERED)
        {
            self.floor = event.revision;
            self.log.pop_front();
        }
    }

    /// The changes after a revision; nothing when some are not remembered any more.
    pub(crate) fn since(&self, revision: u64) -> Option<impl Iterator<Item = &Event>> {
        (revision >= self.floor).then(|| {
            let from = self.log.partition_point(|event| event.revision <= revision);
            self.log.range(from..)
        })
    }

    /// The objects of a kind as they were at a revision; nothing when that is not remembered any more.
    pub(crate) fn at(&self, revision: u64, kind: usize, namespace: &str) -> Option<BTreeMap<Key, Arc<Json>>> {
        let mut objects: BTreeMap<Key, Arc<Json>> =
            self.of_kind(kind, namespace).map(|(key, object)| (key.clone(), object.clone())).collect();
        let events: Vec<&Event> = self.since(revision)?.collect();
        for event in events.into_iter().rev().filter(|event| {
            event.key.kind == kind && (namespace.is_empty() || event.key.namespace == namespace)
        }) {
            match &event.before {
                Some(before) => objects.insert(event.key.clone(), before.clone()),
                None => objects.remove(&event.key),
            };
        }
        Some(objects)
    }
}

/// Text at a path of an object.
pub(crate) fn text<'a>(object: &'a Json, path: &[&str]) -> Option<&'a str> {
    at(object, path)?.as_str()
}

/// A value at a path of an object.
pub(crate) fn at<'a>(object: &'a Json, path: &[&str]) -> Option<&'a Json> {
    path.iter().try_fold(object, |object, key| object.get(key))
}

/// Whether an object is on its way out.
pub(crate) fn is_deleting(object: &Json) -> bool {
    at(object, &["metadata", "deletionTimestamp"]).is_some()
}

/// The texts of a list at a path.
pub(crate) fn texts<'a>(object: &'a Json, path: &[&str]) -> Vec<&'a str> {
    at(object, path).and_then(Json::as_array).into_iter().flatten().filter_map(Json::as_str).collect()
}

/// A time as objects hold it: whole seconds.
pub(crate) fn stamp(time: Timestamp) -> String {
    let seconds = Timestamp::from_second(time.as_second()).unwrap_or(time);
    seconds.to_string()
}

/// The time at a path.
pub(crate) fn time_at(object: &Json, path: &[&str]) -> Option<Timestamp> {
    text(object, path)?.parse().ok()
}
