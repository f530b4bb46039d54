//! [`Arrival`]: one alert under one route, as it goes to the store.

use std::time::Duration;

use farrier_model::expr::{ExprError, Scope};
use farrier_model::time::{Timestamp, format_duration};
use farrier_model::{Digest, Text, Value};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::decide::{Decision, LATE};
use crate::payload::{Alert, Message, Status};
use crate::route::{Policy, Route};

/// The longest key of an incident, in characters.
const MAX_KEY: usize = 300;

/// One alert, and what follows from it as far as that does not depend on what is stored.
#[derive(Debug, Clone, PartialEq)]
pub struct Arrival {
    /// The same for every copy of the same piece of news, see [`dedup_key`].
    pub dedup: Digest,
    /// The name in the webhook's path.
    pub receiver: Text,
    /// The label `alertname`.
    pub alert: Text,
    /// The identity of its labels.
    pub fingerprint: Text,
    /// Whether it fires.
    pub status: Status,
    /// Since when it fires.
    pub starts_at: Option<Timestamp>,
    /// When it ended; none while it fires.
    pub ends_at: Option<Timestamp>,
    /// Labels and annotations as JSON, for people.
    pub body: String,
    /// Where it goes, or why nowhere.
    pub routed: Result<Routed, Ignored>,
}

/// Why an alert does nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ignored {
    /// The runbook that it would have started, if a route was found.
    pub runbook: Text,
    /// The reason, as a fragment.
    pub reason: String,
}

/// Where an alert goes.
#[derive(Debug, Clone, PartialEq)]
pub struct Routed {
    /// The environment.
    pub environment: Text,
    /// The runbook.
    pub runbook: Text,
    /// Together with these two, the incident's identity.
    pub key: Text,
    /// What counts for it.
    pub rule: Rule,
}

/// What counts for the runs of a route in an environment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rule {
    /// What the route says.
    pub policy: Policy,
    /// Who hears when the fuse blows: a name under `notify:` in the environment.
    pub owner: Text,
    /// The runbook may destroy.
    pub destructive: bool,
    /// The runbook may write.
    pub writes: bool,
    /// The environment lets nothing that writes start by itself.
    pub frozen: bool,
    /// Why the alert may only propose a run, whatever the route says.
    #[serde(default)]
    pub doubt: Option<String>,
}

impl Rule {
    /// The rule for an alert that began then and was received now: what an old message, or one from another time, would destroy is
    /// for a person to say.
    #[must_use]
    pub fn judging(self, began: Option<Timestamp>, now: Timestamp) -> Rule {
        let doubt = match began {
            _ if !self.destructive => None,
            None => Some("the alert does not say when it began".to_owned()),
            Some(began) => {
                let age = now.duration_since(began).unsigned_abs();
                let limit = self.policy.max_age;
                if began > now && age > LATE {
                    Some(format!("the alert begins {} from now", format_duration(whole_seconds(age))))
                } else if began <= now && age > limit {
                    let (age, limit) = (format_duration(whole_seconds(age)), format_duration(limit));
                    Some(format!("the alert began {age} ago, and `max_age` is {limit}"))
                } else {
                    None
                }
            }
        };
        Rule { doubt, ..self }
    }

    /// For people: what an alert does under this rule, and why only that.
    pub fn why(&self, decision: &Decision) -> String {
        match (decision, &self.doubt) {
            (Decision::Start { proposed: true }, Some(doubt)) => format!("{decision}: {doubt}"),
            _ => decision.to_string(),
        }
    }
}

fn whole_seconds(age: Duration) -> Duration {
    Duration::from_secs(age.as_secs())
}

impl Arrival {
    /// The arrival of `alert` before anything is known of where it goes.
    pub fn new(receiver: &str, message: &Message, alert: &Alert, routed: Result<Routed, Ignored>) -> Arrival {
        Arrival {
            dedup: dedup_key(receiver, &message.group_key, alert),
            receiver: receiver.into(),
            alert: alert.name().into(),
            fingerprint: alert.fingerprint.as_str().into(),
            status: alert.status,
            starts_at: alert.since(),
            ends_at: if alert.status == Status::Resolved { alert.ended() } else { None },
            body: json!({
                "labels": alert.labels,
                "annotations": alert.annotations,
                "starts_at": alert.starts_at,
                "generator_url": alert.generator_url,
            })
            .to_string(),
            routed,
        }
    }
}

/// The same for every copy of the same piece of news: what a second Alertmanager, a retry or a repeat sends again.
pub fn dedup_key(receiver: &str, group_key: &str, alert: &Alert) -> Digest {
    Digest::of_parts([receiver, group_key, &alert.fingerprint, alert.status.name(), &alert.starts_at])
}

/// The names that a route's expressions see: `alert`, with the labels as plain values.
pub fn scope(alert: &Alert) -> Scope {
    let pairs = |pairs: &std::collections::BTreeMap<String, String>| {
        Value::map(pairs.iter().map(|(name, value)| (name.as_str(), Value::text(value.as_str()))))
    };
    let alert = Value::map([
        ("labels", pairs(&alert.labels)),
        ("annotations", pairs(&alert.annotations)),
        ("status", Value::text(alert.status.name())),
        ("starts_at", Value::text(alert.starts_at.as_str())),
        ("ends_at", Value::text(alert.ends_at.as_str())),
        ("fingerprint", Value::text(alert.fingerprint.as_str())),
        ("generator_url", Value::text(alert.generator_url.as_str())),
    ]);
    Scope::new(vec![("alert".into(), alert)])
}

/// The incident's key: the value of `per`, as text that people can read and type.
///
/// # Errors
/// The expression cannot be evaluated, or its value is no key.
pub fn incident_key(route: &Route, scope: &Scope) -> Result<Text, String> {
    let Some(per) = &route.per else { return Ok(Text::from("")) };
    let value = per.eval(scope).map_err(|error: ExprError| format!("`per`: {}", error.message))?;
    let text = match &value {
        Value::Text(text) => text.clone(),
        Value::Int(_) | Value::Bool(_) => value.to_string().into(),
        other => return Err(format!("`per` is a {}, not a text", other.kind())),
    };
    if text.is_empty() {
        return Err("`per` is empty: the alert does not say what it is about".into());
    }
    if text.chars().count() > MAX_KEY {
        return Err(format!("`per` is longer than {MAX_KEY} characters"));
    }
    if text.chars().any(char::is_control) {
        return Err("`per` has control characters".into());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use farrier_model::Expr;
    use farrier_model::expr::Template;

    fn route(per: &str) -> Route {
        Route {
            runbook: "r".into(),
            matchers: Vec::new(),
            receivers: Vec::new(),
            per: Some(Expr::parse(per).unwrap()),
            inputs: Template::Map(Vec::new()),
            policy: Policy::default(),
        }
    }

    fn alert(instance: &str) -> (Message, Alert) {
        let body = json!({ "groupKey": "g", "alerts": [{ "labels": { "instance": instance }, "startsAt": "2026-08-20T10:00:00Z" }] });
        let message = Message::read(body.to_string().as_bytes()).unwrap();
        let alert = message.alerts[0].clone();
        (message, alert)
    }

    #[test]
    fn a_key_is_a_text_that_people_can_type() {
        let key = |instance: &str, per: &str| incident_key(&route(per), &scope(&alert(instance).1));
        assert_eq!(key("node-1:9100", "alert.labels.instance | host").as_deref(), Ok("node-1"));
        for (instance, per, why) in [
            ("", "alert.labels.instance", "empty"),
            ("a\0b", "alert.labels.instance", "control characters"),
            (&"x".repeat(301), "alert.labels.instance", "longer than 300"),
            ("x", "alert.labels", "a map"),
            ("x", "alert.labels.other", "per"),
        ] {
            assert!(key(instance, per).unwrap_err().contains(why), "{instance} {per}");
        }
    }

    /// T24: what looks like a template in a label is the label.
    #[test]
    fn labels_are_never_evaluated() {
        for hostile in
            ["{{7*7}}", "${7*7}", "{% raw %}", "${jndi:ldap://x}", "{{ secrets.x }}", "a\u{202e}b", "$(id)"]
        {
            let key = incident_key(&route("alert.labels.instance"), &scope(&alert(hostile).1));
            assert_eq!(key.as_deref(), Ok(hostile));
            let template = Template::parse_text("x ${ alert.labels.instance } y").unwrap();
            let value = template.eval(&scope(&alert(hostile).1)).unwrap();
            assert_eq!(value.as_str(), Some(format!("x {hostile} y").as_str()));
        }
    }

    #[test]
    fn copies_have_the_same_key_and_news_another() {
        let (message, first) = alert("a");
        let key = |alert: &Alert| dedup_key("in", &message.group_key, alert);
        assert_eq!(key(&first), key(&first.clone()));
        let mut other = first.clone();
        other.status = Status::Resolved;
        assert_ne!(key(&first), key(&other));
        let mut later = first.clone();
        later.starts_at = "2026-08-20T11:00:00Z".into();
        assert_ne!(key(&first), key(&later));
        assert_ne!(key(&first), dedup_key("other", &message.group_key, &first));
        let mut repeat = first.clone();
        repeat.annotations.insert("value".into(), "13".into());
        assert_eq!(key(&first), key(&repeat));
    }
}
