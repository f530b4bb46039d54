//! Sets of fields: which parts of an object a manager owns, in the form of `managedFields`.

use std::collections::BTreeSet;
use std::fmt;

use serde_json::{Map, Value as Json, json};

use super::lists::{By, Merge, atomic_map, item_key, list};

/// One step of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Step {
    /// A field of a map.
    Field(String),
    /// An item of a keyed list: its keys, as JSON text.
    Item(String),
    /// A value of a set, as JSON text.
    Value(String),
}

/// A path from the root of an object.
pub(crate) type Path = Vec<Step>;

/// A set of paths.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Fields(pub(crate) BTreeSet<Path>);

/// A path as messages write it.
pub(crate) struct Shown<'a>(pub(crate) &'a Path);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for step in self.0 {
            match step {
                Step::Field(name) => write!(f, ".{name}")?,
                Step::Value(value) => write!(f, "[={value}]")?,
                Step::Item(keys) => {
                    let keys: Map<String, Json> = serde_json::from_str(keys).unwrap_or_default();
                    let each: Vec<String> =
                        keys.iter().map(|(key, value)| format!("{key}={value}")).collect();
                    write!(f, "[{}]", each.join(","))?;
                }
            }
        }
        Ok(())
    }
}

/// The parts of an object that nobody owns: what names it, and what the server keeps.
const UNOWNED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "generateName"],
    &["metadata", "uid"],
    &["metadata", "resourceVersion"],
    &["metadata", "generation"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "deletionGracePeriodSeconds"],
    &["metadata", "managedFields"],
    &["metadata", "selfLink"],
];

/// A child of a container in the walk over an object.
enum Child<'a> {
    Owned(Step, &'a Json),
}

/// The children of a value that merges by parts; nothing when it is owned whole.
fn children<'a>(value: &'a Json, path: &[String]) -> Option<Vec<Child<'a>>> {
    match value {
        Json::Object(map) if !map.is_empty() && !atomic_map(path) => {
            Some(map.iter().map(|(key, value)| Child::Owned(Step::Field(key.clone()), value)).collect())
        }
        Json::Array(items) if !items.is_empty() => match list(path, By::Apply) {
            Merge::Atomic => None,
            Merge::Set => {
                Some(items.iter().map(|item| Child::Owned(Step::Value(item.to_string()), item)).collect())
            }
            Merge::Keyed(keys) => items
                .iter()
                .map(|item| {
                    let keys: Map<String, Json> = item_key(item, keys)?.into_iter().collect();
                    Some(Child::Owned(Step::Item(Json::Object(keys).to_string()), item))
                })
                .collect(),
        },
        _ => None,
    }
}

impl Fields {
    /// Every owned field of an object.
    pub(crate) fn of(object: &Json) -> Fields {
        let mut fields = Fields::default();
        fields.walk(object, &mut Vec::new(), &mut Vec::new());
        fields.0.retain(|path| !is_unowned(path));
        fields
    }

    fn walk(&mut self, value: &Json, path: &mut Path, names: &mut Vec<String>) {
        let Some(children) = children(value, names) else {
            if !path.is_empty() {
                self.0.insert(path.clone());
            }
            return;
        };
        for Child::Owned(step, child) in children {
            let field = if let Step::Field(name) = &step { Some(name.clone()) } else { None };
            let item = matches!(step, Step::Item(_));
            path.push(step);
            if item {
                self.0.insert(path.clone());
            }
            if let Some(name) = field {
                names.push(name);
                self.walk(child, path, names);
                names.pop();
            } else if item {
                self.walk(child, path, names);
            } else {
                self.0.insert(path.clone());
            }
            path.pop();
        }
    }

    /// The fields of `new` that are not in `old` or have other values there.
    pub(crate) fn changed(old: &Json, new: &Json) -> Fields {
        let mut all = Fields::of(new);
        all.0.retain(|path| match (value_at(old, path), value_at(new, path)) {
            (Some(before), Some(after)) => {
                // An item that is there in both is compared by its fields, each for itself.
                !matches!(path.last(), Some(Step::Item(_))) && before != after
            }
            _ => true,
        });
        all
    }

    /// Without those of another set.
    pub(crate) fn without(mut self, other: &Fields) -> Fields {
        self.0.retain(|path| !other.0.contains(path));
        self
    }

    /// Reads the form of `managedFields`.
    pub(crate) fn from_v1(value: &Json) -> Fields {
        let mut fields = Fields::default();
        fields.read_v1(value, &mut Vec::new());
        fields
    }

    fn read_v1(&mut self, value: &Json, path: &mut Path) {
        let Some(map) = value.as_object() else { return };
        let own = map.contains_key(".");
        if (own || map.is_empty()) && !path.is_empty() {
            self.0.insert(path.clone());
        }
        for (key, value) in map {
            let step = match key.split_once(':') {
                Some(("f", name)) => Step::Field(name.to_owned()),
                Some(("k", keys)) => Step::Item(keys.to_owned()),
                Some(("v", value)) => Step::Value(value.to_owned()),
                _ => continue,
            };
            path.push(step);
            self.read_v1(value, path);
            path.pop();
        }
    }

    /// The form of `managedFields`.
    pub(crate) fn to_v1(&self) -> Json {
        let mut root = json!({});
        for path in &self.0 {
            let mut place = &mut root;
            for step in path {
                let key = match step {
                    Step::Field(name) => format!("f:{name}"),
                    Step::Item(keys) => format!("k:{keys}"),
                    Step::Value(value) => format!("v:{value}"),
                };
                place = &mut place[key];
                if place.is_null() {
                    *place = json!({});
                }
            }
            if matches!(path.last(), Some(Step::Item(_)))
                && let Some(map) = place.as_object_mut()
            {
                map.insert(".".into(), json!({}));
            }
        }
        root
    }
}

fn is_unowned(path: &Path) -> bool {
    UNOWNED.iter().any(|unowned| {
        path.len() >= unowned.len()
            && unowned
                .iter()
                .zip(path)
                .all(|(name, step)| matches!(step, Step::Field(field) if field == name))
    })
}

/// The value at a path.
pub(crate) fn value_at<'a>(object: &'a Json, path: &[Step]) -> Option<&'a Json> {
    path.iter().try_fold(object, |value, step| match step {
        Step::Field(name) => value.get(name),
        Step::Item(keys) => {
            let keys: Map<String, Json> = serde_json::from_str(keys).ok()?;
            value.as_array()?.iter().find(|item| has_keys(item, &keys))
        }
        Step::Value(wanted) => value.as_array()?.iter().find(|item| item.to_string() == *wanted),
    })
}

fn has_keys(item: &Json, keys: &Map<String, Json>) -> bool {
    keys.iter().all(|(key, wanted)| {
        item.get(key).map_or(key == "protocol" && wanted == "TCP", |value| value == wanted)
    })
}

/// Removes what is at a path, and the maps and lists that become empty by it.
pub(crate) fn remove_at(object: &mut Json, path: &[Step]) {
    let Some((step, rest)) = path.split_first() else { return };
    match (step, object) {
        (Step::Field(name), Json::Object(map)) => {
            if rest.is_empty() {
                map.shift_remove(name);
            } else if let Some(child) = map.get_mut(name) {
                remove_at(child, rest);
                if child.as_object().is_some_and(Map::is_empty) || child.as_array().is_some_and(Vec::is_empty)
                {
                    map.shift_remove(name);
                }
            }
        }
        (Step::Item(keys), Json::Array(items)) => {
            let keys: Map<String, Json> = serde_json::from_str(keys).unwrap_or_default();
            let Some(at) = items.iter().position(|item| has_keys(item, &keys)) else { return };
            if rest.is_empty() {
                items.remove(at);
            } else {
                remove_at(&mut items[at], rest);
            }
        }
        (Step::Value(value), Json::Array(items)) => items.retain(|item| *value != item.to_string().as_str()),
        _ => {}
    }
}
