//! What binds a run to a plan that somebody has read: the plan's digest, and for each node what it may do.

use std::collections::{BTreeMap, HashMap};

use farrier_model::{BoundPlan, Change, Digest, NodeName, Text, Value};
use serde_json::Value as Json;

use crate::plan::{Plan, PlanStep, PlanStepState};

/// How many differences are told one by one.
const SHOWN: usize = 20;

impl Plan {
    /// The plan as it is stored and approved, with its digest.
    ///
    /// # Errors
    /// Never for a plan that the engine made: all of it is data.
    pub fn bind(&self) -> Result<BoundPlan, serde_json::Error> {
        let json = serde_json::to_value(self)?;
        let digest = Digest::of(canonical(&json));
        let plan = Value::from_json(&canonical(&json))?;
        Ok(BoundPlan { digest, plan, run: self.run })
    }

    /// A plan that was stored.
    ///
    /// # Errors
    /// It is not a plan of this version.
    pub fn of_bound(bound: &BoundPlan) -> Result<Plan, String> {
        bound.plan.read::<Plan>().map_err(|error| error.to_string())
    }

    /// What differs between this plan, which somebody has read, and one that was made now: only what the run would do
    /// with the world counts. Empty when `now` would do exactly the same.
    pub fn differences(&self, now: &Plan) -> Vec<String> {
        let (read, now) = (expectations(self), expectations(now));
        let mut differences = Vec::new();
        for (node, expected) in &read {
            match now.get(node) {
                Some(found) if found == expected => {}
                Some(found) => differences.extend(differ(node, expected, found)),
                None => differences.push(format!("`{node}` {}, and is not part of it now", expected.says())),
            }
        }
        for (node, found) in now.iter().filter(|(node, _)| !read.contains_key(*node)) {
            differences.push(format!("`{node}` was not part of the plan, and now {}", found.says()));
        }
        if differences.len() > SHOWN {
            let more = differences.len() - SHOWN;
            differences.truncate(SHOWN);
            differences.push(format!("and {more} more"));
        }
        differences
    }
}

/// JSON with keys in order and nothing that could be written in two ways: equal data has equal text.
pub fn canonical(json: &Json) -> String {
    fn sorted(json: &Json) -> Json {
        match json {
            Json::Array(items) => Json::Array(items.iter().map(sorted).collect()),
            Json::Object(entries) => {
                let entries: BTreeMap<&String, &Json> = entries.iter().collect();
                Json::Object(entries.into_iter().map(|(key, value)| (key.clone(), sorted(value))).collect())
            }
            other => other.clone(),
        }
    }
    sorted(json).to_string()
}

/// What a node may do, in the plan that somebody has read.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Expected {
    /// Nothing.
    Nothing,
    /// Exactly these changes, in this order.
    Changes(Vec<Change>),
    /// A child run, bound to this plan.
    Child(Box<Plan>),
    /// It was not known then.
    Open,
    /// It waits for this.
    Waits(String),
}

impl Expected {
    fn of(step: &PlanStep) -> Expected {
        if let Some(child) = &step.child {
            return Expected::Child(child.clone());
        }
        match &step.state {
            PlanStepState::Done | PlanStepState::Skipped(_) | PlanStepState::Blocked(_) => Expected::Nothing,
            PlanStepState::Changes => Expected::Changes(
                // A fingerprint belongs to one moment; what the change is about are its images.
                step.changes.iter().map(|change| Change { fingerprint: None, ..change.clone() }).collect(),
            ),
            PlanStepState::Waits(what) => Expected::Waits(what.to_string()),
            PlanStepState::After(_)
            | PlanStepState::MaybeAfter(_)
            | PlanStepState::NotReached
            | PlanStepState::Failed(_) => Expected::Open,
        }
    }

    fn says(&self) -> String {
        match self {
            Expected::Nothing => "was to change nothing".into(),
            Expected::Changes(changes) if changes.len() == 1 => "makes 1 change".into(),
            Expected::Changes(changes) => format!("makes {} changes", changes.len()),
            Expected::Child(plan) => format!("runs `{}`", plan.runbook),
            Expected::Open => "was not known".into(),
            Expected::Waits(what) => format!("waits {what}"),
        }
    }
}

fn expectations(plan: &Plan) -> BTreeMap<String, Expected> {
    let mut all = BTreeMap::new();
    for step in &plan.steps {
        if step.items.is_empty() {
            all.insert(step.id.to_string(), Expected::of(step));
        }
        for item in &step.items {
            all.insert(NodeName::item(step.id.clone(), item.id.clone()).to_string(), Expected::of(item));
        }
    }
    all
}

fn differ(node: &str, read: &Expected, found: &Expected) -> Vec<String> {
    match (read, found) {
        (Expected::Changes(read), Expected::Changes(found)) => differing_changes(node, read, found, &[]),
        (Expected::Nothing, Expected::Changes(found)) => differing_changes(node, &[], found, &[]),
        (Expected::Changes(read), Expected::Nothing) => differing_changes(node, read, &[], &[]),
        (Expected::Child(read), Expected::Child(found)) => {
            read.differences(found).into_iter().map(|difference| format!("`{node}`: {difference}")).collect()
        }
        (read, found) => vec![format!("`{node}` {}, and now {}", read.says(), found.says())],
    }
}

/// One sentence per object whose change is another one.
///
/// `own` is what the run itself has changed meanwhile: an object that is as it was read but for that has not changed.
pub(crate) fn differing_changes(
    node: &str,
    read: &[Change],
    found: &[Change],
    own: &[&Change],
) -> Vec<String> {
    let now: HashMap<&str, &Change> = found.iter().map(|change| (&*change.object, change)).collect();
    let then: HashMap<&str, &Change> = read.iter().map(|change| (&*change.object, change)).collect();
    let mut told = Vec::new();
    for change in read {
        let object = &change.object;
        match now.get(&**object) {
            None => told.push(format!(
                "`{node}`: `{object}` was to be changed ({}), and needs no change now",
                change.kind.name()
            )),
            Some(new) if new.kind != change.kind => told.push(format!(
                "`{node}`: `{object}` was a {}, and is a {} now",
                change.kind.name(),
                new.kind.name()
            )),
            Some(new) if new.before != change.before && !follows(change, new, own) => told.push(format!(
                "`{node}`: `{object}` was {}, and is {} now",
                short(&change.before),
                short(&new.before)
            )),
            Some(new) if new.after != change.after => told.push(format!(
                "`{node}`: `{object}` was to become {}, and now {}",
                short(&change.after),
                short(&new.after)
            )),
            Some(_) => {}
        }
    }
    for change in found.iter().filter(|change| !then.contains_key(&*change.object)) {
        told.push(format!(
            "`{node}`: `{}` would be changed now ({}), and was not part of the plan",
            change.object,
            change.kind.name()
        ));
    }
    told
}

/// Whether what an object is now follows from what was read of it by what the run itself has changed on it.
fn follows(read: &Change, found: &Change, own: &[&Change]) -> bool {
    let fields = |value: &Value| -> Option<BTreeMap<Text, Value>> {
        Some(value.as_map()?.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
    };
    let (Some(mut then), Some(now)) = (fields(&read.before), fields(&found.before)) else { return false };
    for change in own.iter().filter(|change| change.object == read.object) {
        let (Some(before), Some(after)) = (fields(&change.before), fields(&change.after)) else {
            return false;
        };
        for (name, value) in after {
            let was = before.get(&name).cloned().unwrap_or_default();
            if then.get(&name).cloned().unwrap_or_default() != was {
                return false;
            }
            if value.is_null() {
                then.remove(&name);
            } else {
                then.insert(name, value);
            }
        }
    }
    then == now
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 80 {
        text
    } else {
        format!("{}…", text.chars().take(79).collect::<String>())
    }
}

/// The plan that a run is bound to, by node.
#[derive(Debug, Clone)]
pub(crate) struct Bound {
    pub(crate) plan: Plan,
    nodes: BTreeMap<String, Expected>,
}

impl Bound {
    pub(crate) fn of(bound: &BoundPlan) -> Result<Bound, String> {
        let plan = Plan::of_bound(bound)?;
        let nodes = expectations(&plan);
        Ok(Bound { plan, nodes })
    }

    /// Why `changes` are not what was read, when they are not. A node that was not known then may do what it finds.
    /// `own` is what the run itself has changed before.
    pub(crate) fn departure(&self, node: &NodeName, changes: &[Change], own: &[&Change]) -> Option<String> {
        let name = node.to_string();
        let differences = match self.nodes.get(&name) {
            Some(Expected::Changes(read)) => {
                let found: Vec<Change> =
                    changes.iter().map(|change| Change { fingerprint: None, ..change.clone() }).collect();
                differing_changes(&name, read, &found, own)
            }
            Some(Expected::Nothing) => differing_changes(&name, &[], changes, own),
            Some(Expected::Child(_) | Expected::Open | Expected::Waits(_)) | None => Vec::new(),
        };
        (!differences.is_empty()).then(|| differences.join("; "))
    }

    /// The part that binds the child run of `node`.
    pub(crate) fn child(&self, node: &NodeName) -> Option<&Plan> {
        match self.nodes.get(&node.to_string()) {
            Some(Expected::Child(plan)) => Some(plan),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_data_has_equal_text() {
        let one: Json = serde_json::from_str(r#"{"b": [1, {"d": 2, "c": null}], "a": "ü"}"#).unwrap();
        let other: Json = serde_json::from_str(r#"{ "a":"\u00fc", "b":[1,{"c":null,"d":2}] }"#).unwrap();
        assert_eq!(canonical(&one), canonical(&other));
        assert_eq!(canonical(&one), r#"{"a":"ü","b":[1,{"c":null,"d":2}]}"#);
    }

    #[test]
    fn what_the_run_itself_changed_is_no_departure_and_anything_else_is() {
        let value = |json: &str| Value::from_json(&json.replace('\'', "\"")).unwrap();
        let change = |before: &str, after: &str| Change {
            object: "uid=a".into(),
            kind: farrier_model::ChangeKind::Delete,
            before: value(before),
            after: value(after),
            fingerprint: None,
        };
        let read = change("{'cn': 'a', 'locked': '2026', 'note': 'x'}", "null");
        let own = change("{'locked': '2026', 'note': 'x'}", "{'locked': '1970', 'note': null}");
        let told = |now: &str, own: &[&Change]| {
            differing_changes("n", std::slice::from_ref(&read), &[change(now, "null")], own)
        };
        let none: [String; 0] = [];
        assert_eq!(told("{'locked': '1970', 'cn': 'a'}", &[&own]), none);
        for now in [
            "{'cn': 'b', 'locked': '1970'}",
            "{'cn': 'a', 'locked': '1970', 'shell': 's'}",
            "{'cn': 'a'}",
            "null",
        ] {
            assert_eq!(told(now, &[&own]).len(), 1, "{now}");
        }
        assert_eq!(told("{'locked': '1970', 'cn': 'a'}", &[]).len(), 1, "somebody else's change");
        // What the run changed was not what was read.
        let later = change("{'locked': '2027', 'note': 'x'}", "{'locked': '1970', 'note': null}");
        assert_eq!(told("{'locked': '1970', 'cn': 'a'}", &[&later]).len(), 1);
        let elsewhere = Change { object: "uid=b".into(), ..own.clone() };
        assert_eq!(told("{'locked': '1970', 'cn': 'a'}", &[&elsewhere]).len(), 1);
    }
}
