//! Who owns which field, and server-side apply.
//!
//! Each writer has a name, its field manager. An apply owns what it lists; a field that it listed before and lists no
//! longer is removed when nobody else owns it. A field with another value that someone else owns is a conflict, which
//! `force` takes over.

use farrier_model::time::Timestamp;
use serde_json::{Value as Json, json};

use super::fields::{Fields, Path, Shown, remove_at, value_at};
use super::lists::{By, Merge, atomic_map, item_key, list};
use super::status::{Cause, Refusal};
use super::world::{stamp, text};

/// What one manager owns by one kind of writing.
#[derive(Debug, Clone, PartialEq)]
struct Owner {
    manager: String,
    operation: String,
    api_version: String,
    subresource: String,
    time: Option<String>,
    fields: Fields,
}

fn owners(object: &Json) -> Vec<Owner> {
    let own = |entry: &Json, key: &str| text(entry, &[key]).unwrap_or_default().to_owned();
    object["metadata"]["managedFields"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|entry| Owner {
            manager: own(entry, "manager"),
            operation: own(entry, "operation"),
            api_version: own(entry, "apiVersion"),
            subresource: own(entry, "subresource"),
            time: text(entry, &["time"]).map(str::to_owned),
            fields: Fields::from_v1(&entry["fieldsV1"]),
        })
        .collect()
}

fn set_owners(object: &mut Json, owners: &[Owner]) {
    let entries: Vec<Json> = owners
        .iter()
        .filter(|owner| !owner.fields.0.is_empty())
        .map(|owner| {
            let mut entry = json!({
                "manager": owner.manager, "operation": owner.operation, "apiVersion": owner.api_version,
                "time": owner.time, "fieldsType": "FieldsV1", "fieldsV1": owner.fields.to_v1(),
            });
            if !owner.subresource.is_empty() {
                entry["subresource"] = owner.subresource.clone().into();
            }
            entry
        })
        .collect();
    if entries.is_empty() {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.shift_remove("managedFields");
        }
    } else {
        object["metadata"]["managedFields"] = entries.into();
    }
}

/// Who writes how.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Writer<'a> {
    pub(crate) manager: &'a str,
    pub(crate) api_version: &'a str,
    pub(crate) subresource: &'a str,
    pub(crate) now: Timestamp,
}

/// Notes the owner of what an update, a patch or a create changed.
pub(crate) fn record_update(old: &Json, new: &mut Json, writer: Writer<'_>) {
    let changed = Fields::changed(old, new);
    let mut owners = owners(old);
    let gone: Vec<Path> =
        Fields::of(old).0.into_iter().filter(|path| value_at(new, path).is_none()).collect();
    for owner in &mut owners {
        owner.fields.0.retain(|path| !gone.contains(path));
        owner.fields = std::mem::take(&mut owner.fields).without(&changed);
    }
    if !changed.0.is_empty() {
        let own = owners.iter_mut().find(|owner| {
            owner.manager == writer.manager
                && owner.operation == "Update"
                && owner.api_version == writer.api_version
                && owner.subresource == writer.subresource
        });
        let time = Some(stamp(writer.now));
        match own {
            Some(own) => {
                own.fields.0.extend(changed.0);
                own.time = time;
            }
            None => owners.push(Owner {
                manager: writer.manager.to_owned(),
                operation: "Update".into(),
                api_version: writer.api_version.to_owned(),
                subresource: writer.subresource.to_owned(),
                time,
                fields: changed,
            }),
        }
    }
    set_owners(new, &owners);
}

/// The object after an apply of `config` to `live`, which is null when there is none.
pub(crate) fn apply(live: &Json, config: &Json, force: bool, writer: Writer<'_>) -> Result<Json, Refusal> {
    let mut owners = owners(live);
    let wanted = Fields::of(config);
    let mut merged = if live.is_null() { config.clone() } else { live.clone() };
    if !live.is_null() {
        merge(&mut merged, config, &mut Vec::new());
    }
    let is_own = |owner: &Owner| {
        owner.manager == writer.manager
            && owner.operation == "Apply"
            && owner.subresource == writer.subresource
    };
    let before = owners.iter().find(|owner| is_own(owner)).map(|owner| owner.fields.clone());
    let changed = Fields::changed(live, &merged);

    let mut conflicts: Vec<(String, String, Path)> = Vec::new();
    for owner in owners.iter().filter(|owner| !is_own(owner)) {
        for path in owner.fields.0.iter().filter(|path| changed.0.contains(*path)) {
            let mut with = format!("\"{}\"", owner.manager);
            if !owner.subresource.is_empty() {
                with = format!("{with} with subresource \"{}\"", owner.subresource);
            }
            conflicts.push((with, format!(" using {}", owner.api_version), path.clone()));
        }
    }
    if !conflicts.is_empty() && !force {
        return Err(conflict(&conflicts));
    }
    for owner in owners.iter_mut().filter(|owner| !is_own(owner)) {
        owner.fields = std::mem::take(&mut owner.fields).without(&changed);
    }

    // What this manager had listed and lists no longer goes, unless someone else owns it too.
    let mut dropped: Vec<Path> =
        before.unwrap_or_default().0.into_iter().filter(|path| !wanted.0.contains(path)).collect();
    dropped.retain(|path| {
        let others = |owner: &Owner| !is_own(owner) && owner.fields.0.iter().any(|own| own.starts_with(path));
        !owners.iter().any(others) && !wanted.0.iter().any(|own| own.starts_with(path))
    });
    // An item goes before its fields: those include what it is found by.
    for path in &dropped {
        remove_at(&mut merged, path);
    }

    let time = Some(stamp(writer.now));
    match owners.iter_mut().find(|owner| is_own(owner)) {
        Some(own) => {
            if own.fields != wanted || own.api_version != writer.api_version {
                own.time = time;
            }
            own.fields = wanted;
            writer.api_version.clone_into(&mut own.api_version);
        }
        None => owners.insert(
            0,
            Owner {
                manager: writer.manager.to_owned(),
                operation: "Apply".into(),
                api_version: writer.api_version.to_owned(),
                subresource: writer.subresource.to_owned(),
                time,
                fields: wanted,
            },
        ),
    }
    set_owners(&mut merged, &owners);
    Ok(merged)
}

fn conflict(conflicts: &[(String, String, Path)]) -> Refusal {
    let causes: Vec<Cause> = conflicts
        .iter()
        .map(|(with, using, path)| {
            Cause::other(
                "FieldManagerConflict",
                format!("conflict with {with}{using}"),
                Shown(path).to_string(),
            )
        })
        .collect();
    let mut text = Vec::new();
    let mut owners: Vec<(&str, &str)> =
        conflicts.iter().map(|(with, using, _)| (with.as_str(), using.as_str())).collect();
    owners.sort_unstable();
    owners.dedup();
    for (with, using) in owners {
        let fields: Vec<String> = conflicts
            .iter()
            .filter(|(other, version, _)| other == with && version == using)
            .map(|(_, _, path)| Shown(path).to_string())
            .collect();
        text.push(match fields.as_slice() {
            [one] => format!("conflict with {with}{using}: {one}"),
            many => format!("conflicts with {with}{using}:\n- {}", many.join("\n- ")),
        });
    }
    let count = conflicts.len();
    let plural = if count == 1 { "" } else { "s" };
    Refusal::apply_conflict(
        format!("Apply failed with {count} conflict{plural}: {}", text.join("\n")),
        &causes,
    )
}

/// What an apply of `config` gives, owners aside.
pub(crate) fn merged(live: &Json, config: &Json) -> Json {
    let mut merged = live.clone();
    merge(&mut merged, config, &mut Vec::new());
    merged
}

/// Merges as the schema says: maps by field, keyed lists by item, sets by value, the rest whole.
fn merge(target: &mut Json, config: &Json, path: &mut Vec<String>) {
    match (target, config) {
        (Json::Object(map), Json::Object(config)) if !atomic_map(path) => {
            for (key, value) in config {
                path.push(key.clone());
                match map.get_mut(key) {
                    Some(place) => merge(place, value, path),
                    None => {
                        map.insert(key.clone(), value.clone());
                    }
                }
                path.pop();
            }
        }
        (Json::Array(items), Json::Array(config)) => match list(path, By::Apply) {
            Merge::Atomic => items.clone_from(config),
            Merge::Set => {
                for value in config {
                    if !items.contains(value) {
                        items.push(value.clone());
                    }
                }
            }
            // What cannot be told apart is one thing.
            Merge::Keyed(keys) if config.iter().any(|item| item_key(item, keys).is_none()) => {
                items.clone_from(config);
            }
            Merge::Keyed(keys) => {
                for value in config {
                    let key = item_key(value, keys);
                    let known = key.as_ref().and_then(|key| {
                        items.iter().position(|item| item_key(item, keys).as_ref() == Some(key))
                    });
                    match known {
                        Some(known) => merge(&mut items[known], value, path),
                        None => items.push(value.clone()),
                    }
                }
            }
        },
        (target, config) => *target = config.clone(),
    }
}
