//! Resource quotas: who asks for more than is left is refused, and what is used is kept in their status.
//!
//! Counted are objects (`count/jobs.batch`, `pods`, `configmaps`, …) and what pods request and are limited to. A pod that has
//! ended uses nothing, and counts as an object all the same. Quotas with scopes, and resources of other kinds, are not judged.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::kinds::Kind;
use super::status::Refusal;
use super::world::{Key, World, at, is_deleting, text};

/// Resources that a pod names for each container.
const OF_PODS: [&str; 6] =
    ["cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];

/// Thousandths, so that `100m` is a whole number.
type Amounts = BTreeMap<String, i128>;

/// Refuses a new object for which a quota of its namespace has nothing left.
pub(crate) fn admit(world: &World, key: &Key, object: &Json) -> Result<(), Refusal> {
    let asked = used_by(key.kind(), object);
    for (quota, found) in world.named("ResourceQuota", &key.namespace) {
        let Some(hard) = hard(found) else { continue };
        let refuse = |detail: String| Refusal::forbidden(key.kind(), &key.name, &detail, &[]);
        let missing = missing(key.kind(), object, hard);
        if !missing.is_empty() {
            return Err(refuse(format!("failed quota: {}: must specify {}", quota.name, missing.join("; "))));
        }
        let used = used(world, &key.namespace);
        // Name, what is asked for, what is used and what is allowed, as texts.
        let mut over: Vec<[String; 4]> = hard
            .iter()
            .filter_map(|(name, limit)| {
                let (limit, asked) = (limit.as_str()?, *asked.get(name)?);
                let used = used.get(name).copied().unwrap_or_default();
                let over = asked > 0 && used + asked > amount(limit)?;
                over.then(|| [name.clone(), shown(name, asked), shown(name, used), limit.to_owned()])
            })
            .collect();
        over.sort_unstable();
        if !over.is_empty() {
            let list = |column: usize| {
                let each: Vec<String> =
                    over.iter().map(|row| format!("{}={}", row[0], row[column])).collect();
                each.join(",")
            };
            return Err(refuse(format!(
                "exceeded quota: {}, requested: {}, used: {}, limited: {}",
                quota.name,
                list(1),
                list(2),
                list(3)
            )));
        }
    }
    Ok(())
}

/// The quotas whose status is not what it should be, with what it should be.
pub(crate) fn statuses(world: &World) -> Vec<(Key, Json)> {
    let mut found = Vec::new();
    for (key, quota) in world.named("ResourceQuota", "") {
        let Some(hard) = hard(quota) else { continue };
        let used = used(world, &key.namespace);
        let known = |name: &str| {
            OF_PODS.contains(&name)
                || super::kinds::KINDS.iter().any(|kind| names_of(kind).iter().any(|own| own == name))
        };
        let used: Map<String, Json> = hard
            .keys()
            .filter(|name| known(name))
            .map(|name| (name.clone(), shown(name, used.get(name).copied().unwrap_or_default()).into()))
            .collect();
        let status = json!({ "hard": hard, "used": used });
        if quota.get("status") != Some(&status) {
            found.push((key.clone(), status));
        }
    }
    found
}

/// What a quota allows, if it is one that is judged.
fn hard(quota: &Json) -> Option<&Map<String, Json>> {
    let scoped = ["scopes", "scopeSelector"].iter().any(|field| at(quota, &["spec", field]).is_some());
    at(quota, &["spec", "hard"])?.as_object().filter(|_| !scoped && !is_deleting(quota))
}

fn used(world: &World, namespace: &str) -> Amounts {
    let mut sum = Amounts::new();
    for (key, object) in world.all().filter(|(key, _)| key.namespace == namespace) {
        for (name, amount) in used_by(key.kind(), object) {
            *sum.entry(name).or_default() += amount;
        }
    }
    sum
}

/// The names under which quotas count the objects of a kind.
fn names_of(kind: &Kind) -> Vec<String> {
    let mut names = vec![format!("count/{}", kind.resource())];
    if kind.group.is_empty() {
        names.push(kind.plural.to_owned());
    }
    names
}

fn used_by(kind: &Kind, object: &Json) -> Amounts {
    let mut amounts: Amounts = names_of(kind).into_iter().map(|name| (name, 1000)).collect();
    if kind.kind != "Pod" {
        return amounts;
    }
    if matches!(text(object, &["status", "phase"]), Some("Succeeded" | "Failed")) {
        amounts.remove(kind.plural);
        return amounts;
    }
    for name in OF_PODS {
        let of = |list: &str| {
            let containers = at(object, &["spec", list]).and_then(Json::as_array).into_iter().flatten();
            containers.map(|container| of_container(container, name).unwrap_or_default())
        };
        // Containers of the beginning run one after the other, before the rest.
        let most = of("initContainers").max().unwrap_or_default();
        amounts.insert(name.to_owned(), of("containers").sum::<i128>().max(most));
    }
    amounts
}

/// `requests.cpu` and `cpu` are the same; a limit is a request where there is none.
fn of_container(container: &Json, name: &str) -> Option<i128> {
    let (side, resource) = name.split_once('.').unwrap_or(("requests", name));
    let given = |side: &str| amount_of(at(container, &["resources", side, resource])?);
    given(side).or_else(|| given("limits").filter(|_| side == "requests"))
}

/// What a pod must say because a quota counts it.
fn missing(kind: &Kind, pod: &Json, hard: &Map<String, Json>) -> Vec<String> {
    if kind.kind != "Pod" {
        return Vec::new();
    }
    let containers = at(pod, &["spec", "containers"]).and_then(Json::as_array);
    let mut missing: Vec<String> = OF_PODS
        .iter()
        .filter(|name| hard.contains_key(**name))
        .filter_map(|name| {
            let silent = containers.into_iter().flatten().filter(|one| of_container(one, name).is_none());
            let silent: Vec<&str> = silent.filter_map(|one| text(one, &["name"])).collect();
            (!silent.is_empty()).then(|| format!("{name} for: {}", silent.join(",")))
        })
        .collect();
    missing.sort_unstable();
    missing
}

fn amount_of(value: &Json) -> Option<i128> {
    match value {
        Json::String(text) => amount(text),
        Json::Number(number) => amount(&number.to_string()),
        _ => None,
    }
}

/// A quantity such as `500m`, `2`, `1.5` or `8Gi`, in thousandths.
fn amount(text: &str) -> Option<i128> {
    let end = text.find(|letter: char| !letter.is_ascii_digit() && letter != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let factor: i128 = match unit {
        "m" => 1,
        "" => 1000,
        "k" => 1_000_000,
        "M" => 1_000_000_000,
        "G" => 1_000_000_000_000,
        "T" => 1_000_000_000_000_000,
        "Ki" => 1000 << 10,
        "Mi" => 1000 << 20,
        "Gi" => 1000 << 30,
        "Ti" => 1000 << 40,
        _ => return None,
    };
    let digits = |text: &str| if text.is_empty() { Some(0) } else { text.parse::<i128>().ok() };
    let part = &part[..part.len().min(9)];
    let scale = 10_i128.pow(part.len() as u32);
    Some(digits(whole)? * factor + digits(part)? * factor / scale)
}

/// As the server writes amounts: the largest unit that loses nothing.
fn shown(name: &str, amount: i128) -> String {
    if amount % 1000 != 0 {
        return format!("{amount}m");
    }
    let whole = amount / 1000;
    let unit = ["Ti", "Gi", "Mi", "Ki"].into_iter().zip([40, 30, 20, 10]);
    let unit = unit
        .into_iter()
        .find(|(_, bits)| name.ends_with("memory") && whole != 0 && whole % (1_i128 << bits) == 0);
    unit.map_or_else(|| whole.to_string(), |(unit, bits)| format!("{}{unit}", whole >> bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn amounts_are_read_and_shown() {
        for (text, name, expected) in [
            ("500m", "cpu", "500m"),
            ("1.5", "cpu", "1500m"),
            ("2", "pods", "2"),
            ("2000m", "limits.cpu", "2"),
            ("8Gi", "limits.memory", "8Gi"),
            ("1536Mi", "memory", "1536Mi"),
            ("1000", "memory", "1000"),
            ("1k", "pods", "1000"),
            ("0.5Gi", "memory", "512Mi"),
        ] {
            assert_eq!(shown(name, amount(text).unwrap()), expected, "{text}");
        }
        assert_eq!((amount("much"), amount("1Xi")), (None, None));
    }
}
