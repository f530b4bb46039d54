//! [`Message`]: the payload of Alertmanager's webhook, version 4, read leniently.
//!
//! Fields that are not known are left alone, and those that are missing get the value that says the least, so that older
//! and newer Alertmanagers are understood. What is refused as a whole cannot be used however often it is sent again; an
//! alert that alone breaks a bound is kept, without what is too large, and says why it does nothing ([`Alert::flaw`]).

use std::collections::BTreeMap;

use farrier_model::Digest;
use farrier_model::time::Timestamp;
use serde::{Deserialize, Serialize};

/// The longest body that is read.
pub const MAX_BODY: usize = 2 * 1024 * 1024;
/// How deep its objects and lists may stand in each other. Alertmanager needs four.
pub const MAX_DEPTH: usize = 16;
/// The most alerts in one message.
pub const MAX_ALERTS: usize = 10_000;
/// The most labels, and the most annotations, of an alert.
const MAX_PAIRS: usize = 64;
/// The longest name of a label or annotation, in bytes.
const MAX_NAME: usize = 256;
/// The longest value of a label, in bytes.
const MAX_LABEL: usize = 2048;
/// The longest value of an annotation, in bytes.
const MAX_ANNOTATION: usize = 8192;

/// Why a body is refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadMessage {
    /// More than [`MAX_BODY`].
    #[error("the body has {0} bytes, and at most {MAX_BODY} are read")]
    TooLarge(usize),
    /// Not a message of this form.
    #[error("{0}")]
    Form(String),
}

/// Whether something fires.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    /// It does.
    Firing,
    /// It does no more.
    Resolved,
}

impl Status {
    /// As Alertmanager writes it.
    pub fn name(self) -> &'static str {
        match self {
            Status::Firing => "firing",
            Status::Resolved => "resolved",
        }
    }
}

/// One notification of a group of alerts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// The group's key: the route's matchers and the labels it groups by.
    pub group_key: String,
    /// How many alerts were left out because of `max_alerts`.
    pub truncated_alerts: u64,
    /// The receiver, as Alertmanager writes it: quoted for a regular expression.
    pub receiver: String,
    /// Where Alertmanager is.
    pub external_url: String,
    /// Why it was sent; newer versions say so.
    pub reason: Option<String>,
    /// The alerts.
    pub alerts: Vec<Alert>,
}

/// One alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alert {
    /// Whether it fires.
    pub status: Status,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Since when it fires, as it was written.
    pub starts_at: String,
    /// When it ended, as it was written; the year 1 while it fires.
    pub ends_at: String,
    /// Where its rule is.
    pub generator_url: String,
    /// The identity of its labels.
    pub fingerprint: String,
    /// Why it does nothing; then only a part of its labels and annotations is kept.
    pub flaw: Option<String>,
}

impl Alert {
    /// Since when it fires, when that can be read.
    pub fn since(&self) -> Option<Timestamp> {
        self.starts_at.parse().ok()
    }

    /// When it ended. None while it fires.
    pub fn ended(&self) -> Option<Timestamp> {
        self.ends_at.parse().ok().filter(|end: &Timestamp| end.as_second() > 0)
    }

    /// The label `alertname`; empty without one.
    pub fn name(&self) -> &str {
        self.labels.get("alertname").map_or("", String::as_str)
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenMessage {
    version: Option<String>,
    #[serde(default)]
    group_key: String,
    #[serde(default)]
    truncated_alerts: u64,
    status: Option<String>,
    #[serde(default)]
    receiver: String,
    #[serde(default, rename = "externalURL")]
    external_url: String,
    #[serde(rename = "notification_reason")]
    reason: Option<String>,
    alerts: Option<Vec<WrittenAlert>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WrittenAlert {
    status: Option<String>,
    #[serde(default)]
    labels: Option<BTreeMap<String, String>>,
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(default)]
    starts_at: String,
    #[serde(default)]
    ends_at: String,
    #[serde(default, rename = "generatorURL")]
    generator_url: String,
    #[serde(default)]
    fingerprint: String,
}

impl Message {
    /// Reads a body.
    ///
    /// # Errors
    /// It is too large, too deep, no JSON, of another version, or has no list of alerts.
    pub fn read(body: &[u8]) -> Result<Message, BadMessage> {
        let form = |message: String| Err(BadMessage::Form(message));
        if body.len() > MAX_BODY {
            return Err(BadMessage::TooLarge(body.len()));
        }
        // Before anything that recurses sees it.
        if deeper_than(body, MAX_DEPTH) {
            return form(format!("the body is nested deeper than {MAX_DEPTH}"));
        }
        let written: WrittenMessage = match serde_json::from_slice(body) {
            Ok(written) => written,
            Err(error) => return form(format!("the body is not a message of Alertmanager: {error}")),
        };
        if let Some(version) = written.version.as_deref().filter(|version| *version != "4") {
            let version: String = version.chars().take(20).collect();
            return form(format!(
                "the message has version `{}`; version 4 is understood",
                version.escape_debug()
            ));
        }
        let Some(alerts) = written.alerts else {
            return form("the message has no list `alerts`; a custom `payload` is not understood".into());
        };
        if alerts.len() > MAX_ALERTS {
            return form(format!(
                "the message has {} alerts, and at most {MAX_ALERTS} are read; set `max_alerts` in Alertmanager",
                alerts.len()
            ));
        }
        let whole = written.status;
        Ok(Message {
            group_key: written.group_key,
            truncated_alerts: written.truncated_alerts,
            receiver: written.receiver,
            external_url: written.external_url,
            reason: written.reason,
            alerts: alerts.into_iter().map(|alert| read_alert(alert, whole.as_deref())).collect(),
        })
    }
}

fn read_alert(written: WrittenAlert, whole: Option<&str>) -> Alert {
    let mut flaw = None;
    let status = match written.status.as_deref().or(whole) {
        Some("resolved") => Status::Resolved,
        Some("firing") | None => Status::Firing,
        Some(_) => {
            flaw = Some("its status is neither `firing` nor `resolved`".to_owned());
            Status::Firing
        }
    };
    let (labels, few) = bounded(written.labels.unwrap_or_default(), "label", MAX_LABEL);
    let (annotations, short) = bounded(written.annotations.unwrap_or_default(), "annotation", MAX_ANNOTATION);
    let mut alert = Alert {
        status,
        labels,
        annotations,
        starts_at: cut(written.starts_at, 64),
        ends_at: cut(written.ends_at, 64),
        generator_url: cut(written.generator_url, MAX_ANNOTATION),
        fingerprint: cut(written.fingerprint, 64),
        flaw: flaw.or(few).or(short),
    };
    // Alertmanager's are hexadecimal; anything else is not looked at.
    if alert.fingerprint.is_empty() || !alert.fingerprint.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        let parts = alert.labels.iter().flat_map(|(name, value)| [name.as_str(), value.as_str()]);
        alert.fingerprint = Digest::of_parts(parts).to_string().chars().take(16).collect();
    }
    alert
}

/// The pairs within the bounds, and what is wrong with the others.
fn bounded(
    pairs: BTreeMap<String, String>,
    what: &str,
    longest: usize,
) -> (BTreeMap<String, String>, Option<String>) {
    let many = (pairs.len() > MAX_PAIRS)
        .then(|| format!("it has {} {what}s, and at most {MAX_PAIRS} are read", pairs.len()));
    let mut flaw = many;
    let mut kept = BTreeMap::new();
    for (name, value) in pairs {
        let wrong = if name.len() > MAX_NAME {
            Some(format!("the name of a {what} is longer than {MAX_NAME} bytes"))
        } else if value.len() > longest {
            let length = value.len();
            Some(format!(
                "the {what} `{}` has {length} bytes, and at most {longest} are read",
                name.escape_debug()
            ))
        } else {
            None
        };
        match wrong {
            Some(wrong) => flaw = flaw.or(Some(wrong)),
            None if kept.len() < MAX_PAIRS => {
                kept.insert(name, value);
            }
            None => {}
        }
    }
    (kept, flaw)
}

fn cut(mut text: String, longest: usize) -> String {
    if text.len() > longest {
        let end = (0..=longest).rev().find(|end| text.is_char_boundary(*end)).unwrap_or_default();
        text.truncate(end);
    }
    text
}

/// Whether JSON is nested deeper than `most`. Looks at brackets outside of texts only, and needs no stack.
fn deeper_than(body: &[u8], most: usize) -> bool {
    let (mut depth, mut in_text, mut escaped) = (0_usize, false, false);
    for byte in body {
        match (in_text, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_text = !in_text,
            (false, b'{' | b'[') => {
                depth += 1;
                if depth > most {
                    return true;
                }
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(body: &str) -> String {
        match Message::read(body.as_bytes()) {
            Err(BadMessage::Form(message)) => message,
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn what_is_missing_is_filled_in_and_what_is_unknown_is_left_alone() {
        let message =
            Message::read(br#"{"alerts":[{"labels":{"a":"b"},"new":{"deep":[1]}}],"routeLabels":{}}"#)
                .unwrap();
        let alert = &message.alerts[0];
        assert_eq!((alert.status, alert.flaw.as_deref()), (Status::Firing, None));
        assert_eq!(alert.fingerprint.len(), 16);
        assert_eq!(message.group_key, "");
        let resolved = Message::read(br#"{"status":"resolved","alerts":[{"labels":null}]}"#).unwrap();
        assert_eq!(resolved.alerts[0].status, Status::Resolved);
    }

    #[test]
    fn what_can_never_be_used_is_refused() {
        assert!(form("").contains("not a message"));
        assert!(form("[]").contains("not a message"));
        assert!(form("{}").contains("no list `alerts`"));
        assert!(form(r#"{"version":"5","alerts":[]}"#).contains("version `5`"));
        assert!(form(r#"{"alerts":[{"labels":{"a":1}}]}"#).contains("not a message"));
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(form(&deep).contains("nested deeper"));
        let inner = format!(r#"{{"alerts":[],"x":{}1{}}}"#, "[".repeat(15), "]".repeat(15));
        Message::read(inner.as_bytes()).unwrap();
        let too_large = vec![b' '; MAX_BODY + 1];
        assert_eq!(Message::read(&too_large), Err(BadMessage::TooLarge(MAX_BODY + 1)));
        let many = format!(r#"{{"alerts":[{}]}}"#, vec!["{}"; MAX_ALERTS + 1].join(","));
        assert!(form(&many).contains("max_alerts"));
    }

    #[test]
    fn brackets_in_texts_are_no_depth() {
        let body = format!(r#"{{"alerts":[{{"labels":{{"a":"{}\" ["}}}}]}}"#, "{[".repeat(500));
        let message = Message::read(body.as_bytes()).unwrap();
        assert!(message.alerts[0].labels["a"].ends_with("\" ["));
    }

    #[test]
    fn an_alert_out_of_bounds_does_nothing_and_the_others_are_read() {
        let body = format!(
            r#"{{"alerts":[{{"labels":{{"alertname":"A","x":"{}"}}}},{{"labels":{{"alertname":"B"}}}},{{"status":"odd"}}]}}"#,
            "{{".repeat(500_000)
        );
        let message = Message::read(body.as_bytes()).unwrap();
        let [large, fine, odd] = message.alerts.as_slice() else { panic!() };
        assert_eq!(large.flaw.as_deref(), Some("the label `x` has 1000000 bytes, and at most 2048 are read"));
        assert_eq!(large.labels.len(), 1);
        assert_eq!((fine.name(), fine.flaw.as_deref()), ("B", None));
        assert!(odd.flaw.is_some());
    }

    #[test]
    fn the_zero_time_of_go_is_no_end() {
        let body = br#"{"alerts":[{"endsAt":"0001-01-01T00:00:00Z","startsAt":"2026-08-20T10:00:00.123Z"}]}"#;
        let alert = Message::read(body).unwrap().alerts.remove(0);
        assert_eq!(alert.ended(), None);
        assert!(alert.since().is_some());
    }
}
