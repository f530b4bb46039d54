//! The three ways to patch: JSON merge patch (RFC 7386), JSON patch (RFC 6902), and Kubernetes' strategic merge patch.

use serde_json::{Map, Value as Json};

use super::lists::{By, Merge, item_key, list};
use super::status::Refusal;

/// Merges as in RFC 7386.
pub(crate) fn merge(target: &mut Json, patch: &Json) {
    let Json::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Json::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return };
    for (key, value) in patch {
        if value.is_null() {
            map.shift_remove(key);
        } else {
            merge(map.entry(key.clone()).or_insert(Json::Null), value);
        }
    }
}

/// Makes the operations of RFC 6902.
pub(crate) fn operations(target: &mut Json, patch: Json) -> Result<(), Refusal> {
    let patch: json_patch::Patch = serde_json::from_value(patch)
        .map_err(|error| Refusal::bad_request(format!("error decoding patch: {error}")))?;
    json_patch::patch(target, &patch).map_err(|error| {
        let mut refusal = Refusal::bad_request("");
        refusal.code = 422;
        refusal.reason = "Invalid";
        refusal.message = format!("the server rejected our request due to an error in our request: {error}");
        refusal
    })
}

/// Merges lists by the keys of their items, with Kubernetes' directives.
pub(crate) fn strategic(target: &mut Json, patch: &Json) -> Result<(), Refusal> {
    merge_maps(target, patch, &mut Vec::new())
}

fn merge_maps(target: &mut Json, patch: &Json, path: &mut Vec<String>) -> Result<(), Refusal> {
    let Json::Object(patch) = patch else {
        *target = patch.clone();
        return Ok(());
    };
    if !target.is_object() {
        *target = Json::Object(Map::new());
    }
    let Some(map) = target.as_object_mut() else { return Ok(()) };
    match patch.get("$patch").and_then(Json::as_str) {
        None | Some("merge") => {}
        Some("replace") => map.clear(),
        Some("delete") => {
            map.clear();
            return Ok(());
        }
        Some(other) => return Err(Refusal::bad_request(format!("Unknown patch type: {other}"))),
    }
    if let Some(kept) = patch.get("$retainKeys").and_then(Json::as_array) {
        map.retain(|key, _| kept.iter().any(|kept| kept == key));
    }
    for (key, value) in patch {
        if let Some(name) = key.strip_prefix("$deleteFromPrimitiveList/") {
            let gone = value.as_array().map_or(&[][..], Vec::as_slice);
            if let Some(list) = map.get_mut(name).and_then(Json::as_array_mut) {
                list.retain(|item| !gone.contains(item));
            }
            continue;
        }
        if key.starts_with('$') {
            continue;
        }
        if value.is_null() {
            map.shift_remove(key);
            continue;
        }
        path.push(key.clone());
        let place = map.entry(key.clone()).or_insert(Json::Null);
        match value {
            Json::Array(items) => merge_lists(place, items, path)?,
            value => merge_maps(place, value, path)?,
        }
        path.pop();
    }
    Ok(())
}

fn merge_lists(target: &mut Json, patch: &[Json], path: &mut Vec<String>) -> Result<(), Refusal> {
    let mut items = target.as_array().cloned().unwrap_or_default();
    match list(path, By::Strategic) {
        Merge::Atomic => items = patch.to_vec(),
        Merge::Set => {
            for item in patch {
                if !items.contains(item) {
                    items.push(item.clone());
                }
            }
        }
        Merge::Keyed(keys) => {
            if patch.iter().any(|item| item.get("$patch").is_some_and(|directive| directive == "replace")) {
                items.clear();
            }
            for item in patch {
                let directive = item.get("$patch").and_then(Json::as_str);
                if directive == Some("replace") {
                    continue;
                }
                let Some(key) = item_key(item, keys) else {
                    return Err(Refusal::bad_request(format!(
                        "map: {item} does not contain declared merge key: {}",
                        keys.join(", ")
                    )));
                };
                let known = items.iter().position(|other| item_key(other, keys).as_ref() == Some(&key));
                match (known, directive) {
                    (known, Some("delete")) => {
                        if let Some(known) = known {
                            items.remove(known);
                        }
                    }
                    (Some(known), _) => merge_maps(&mut items[known], item, path)?,
                    (None, _) => {
                        let mut new = Json::Null;
                        merge_maps(&mut new, item, path)?;
                        items.push(new);
                    }
                }
            }
        }
    }
    *target = Json::Array(items);
    Ok(())
}
