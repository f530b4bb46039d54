//! Recorded alerts, and silences that are kept in a file. It speaks as much of Alertmanager's API as the actions need,
//! and one suite runs against it and against a real one. It inhibits nothing and notifies nobody.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use farrier_action::Now;
use farrier_model::time::{Timestamp, parse_timestamp};
use farrier_model::{Failure, FailureKind, Value};
use farrier_outbound::{Answer, Method, RecordFile, Request, Web};
use serde::Deserialize;

use super::read;
use crate::matcher::Matcher;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AlertFile {
    #[serde(default)]
    alerts: Vec<RecordedAlert>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordedAlert {
    labels: BTreeMap<String, String>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    /// Since when it fires; left out, since ever.
    #[serde(default)]
    starts_at: Option<Timestamp>,
    /// When it is resolved; left out, never.
    #[serde(default)]
    ends_at: Option<Timestamp>,
    #[serde(default)]
    generator_url: String,
}

/// Recorded alerts.
#[derive(Debug)]
pub(crate) struct RecordedAlerts {
    path: PathBuf,
    silences: RecordFile,
    now: Now,
}

/// A silence as the file of silences gives it.
#[derive(Debug, Clone)]
struct Kept {
    /// The record that made it.
    made: Value,
    ended_at: Option<Timestamp>,
}

impl RecordedAlerts {
    /// Reads the file once, so that mistakes in it show at once.
    pub(crate) fn open(path: PathBuf, state: PathBuf, now: Now) -> Result<RecordedAlerts, Failure> {
        read::<AlertFile>(&path)?;
        Ok(RecordedAlerts { path, silences: RecordFile::new(state), now })
    }

    async fn answer(&self, request: &Request) -> Result<Answer, Failure> {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        let now = self.now.get();
        Ok(match (request.method, path.as_slice()) {
            (Method::Get, ["api", "v2", "alerts"]) => {
                let file: AlertFile = read(&self.path)?;
                let silences = kept(&self.silences.read().await?);
                match alerts(&file, &silences, &request.query.0, now) {
                    Ok(alerts) => ok(&alerts),
                    Err(failure) => told(400, &failure.message),
                }
            }
            (Method::Get, ["api", "v2", "silences"]) => {
                let silences = kept(&self.silences.read().await?);
                ok(&Value::list(silences.iter().map(|silence| silence.shown(now)).collect()))
            }
            (Method::Get, ["api", "v2", "silence", id]) => {
                let silences = kept(&self.silences.read().await?);
                silences
                    .iter()
                    .find(|silence| silence.id() == *id)
                    .map_or_else(|| told(404, ""), |silence| ok(&silence.shown(now)))
            }
            (Method::Post, ["api", "v2", "silences"]) => {
                let body =
                    request.body.as_ref().map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned());
                let body = body.and_then(|text| Value::from_json(&text).ok()).unwrap_or_default();
                if let Err(failure) = check(&body, now) {
                    return Ok(told(400, &failure.message));
                }
                self.silences
                    .append(move |records| {
                        let id = format!("00000000-0000-4000-8000-{:012x}", kept(records).len() + 1);
                        let fields = body.as_map().into_iter().flat_map(farrier_model::Map::iter);
                        let made = Value::map(
                            [("id".into(), Value::text(id.as_str()))]
                                .into_iter()
                                .chain(fields.map(|(name, value)| (name.clone(), value.clone()))),
                        );
                        let answer = ok(&Value::map([("silenceID", Value::text(id))]));
                        Ok((vec![Value::map([("made", made)])], answer))
                    })
                    .await?
            }
            (Method::Delete, ["api", "v2", "silence", id]) => {
                let id = (*id).to_owned();
                self.silences
                    .append(move |records| {
                        let silences = kept(records);
                        let Some(silence) = silences.iter().find(|silence| silence.id() == id) else {
                            return Ok((Vec::new(), told(404, "")));
                        };
                        if silence.state(now) == "expired" {
                            let text = format!("\"silence {id} already expired\"");
                            return Ok((Vec::new(), told(500, &text)));
                        }
                        let record =
                            Value::map([("ended", Value::text(id)), ("at", Value::text(now.to_string()))]);
                        Ok((vec![record], told(200, "")))
                    })
                    .await?
            }
            _ => told(404, ""),
        })
    }
}

#[async_trait]
impl Web for RecordedAlerts {
    async fn send(&self, request: &Request) -> Result<Answer, Failure> {
        self.answer(request).await
    }

    fn shown(&self, request: &Request) -> String {
        format!("{request:?}")
    }
}

impl Kept {
    fn id(&self) -> &str {
        self.made.get("id").and_then(Value::as_str).unwrap_or_default()
    }

    fn time(&self, name: &str) -> Option<Timestamp> {
        self.made.get(name).and_then(Value::as_str).and_then(parse_timestamp)
    }

    fn ends_at(&self) -> Timestamp {
        self.ended_at.or_else(|| self.time("endsAt")).unwrap_or(Timestamp::MIN)
    }

    fn state(&self, now: Timestamp) -> &'static str {
        if self.ends_at() <= now {
            "expired"
        } else if self.time("startsAt").is_some_and(|start| start > now) {
            "pending"
        } else {
            "active"
        }
    }

    fn matchers(&self) -> Vec<Matcher> {
        self.made.get("matchers").and_then(|matchers| matchers.read().ok()).unwrap_or_default()
    }

    fn shown(&self, now: Timestamp) -> Value {
        let fields = self.made.as_map().into_iter().flat_map(farrier_model::Map::iter);
        let fields = fields.filter(|(name, _)| &***name != "endsAt");
        Value::map(fields.map(|(name, value)| (name.clone(), value.clone())).chain([
            ("endsAt".into(), Value::text(self.ends_at().to_string())),
            ("status".into(), Value::map([("state", Value::text(self.state(now)))])),
        ]))
    }

    fn covers(&self, labels: &BTreeMap<String, String>) -> bool {
        fit(&self.matchers(), labels)
    }
}

fn fit(matchers: &[Matcher], labels: &BTreeMap<String, String>) -> bool {
    matchers.iter().all(|matcher| matcher.fits(labels.get(&matcher.name).map_or("", String::as_str)))
}

fn kept(records: &[Value]) -> Vec<Kept> {
    let mut silences: Vec<Kept> = Vec::new();
    for record in records {
        if let Some(made) = record.get("made") {
            silences.push(Kept { made: made.clone(), ended_at: None });
        }
        let ended = record.get("ended").and_then(Value::as_str);
        let at = record.get("at").and_then(Value::as_str).and_then(parse_timestamp);
        if let Some(silence) = silences.iter_mut().find(|silence| Some(silence.id()) == ended) {
            silence.ended_at = at;
        }
    }
    silences
}

/// What a server refuses.
fn check(body: &Value, now: Timestamp) -> Result<(), Failure> {
    let wrong = |what: &str| Failure::new(FailureKind::Refused, format!("\"silence invalid: {what}\""));
    let text = |name| body.get(name).and_then(Value::as_str);
    let time = |name| text(name).and_then(parse_timestamp).ok_or_else(|| wrong(name));
    let matchers: Vec<Matcher> =
        body.get("matchers").and_then(|matchers| matchers.read().ok()).ok_or_else(|| wrong("matchers"))?;
    if matchers.iter().all(|matcher| matcher.fits("")) {
        return Err(wrong("at least one matcher must not match the empty string"));
    }
    let (start, end) = (time("startsAt")?, time("endsAt")?);
    if end <= start {
        return Err(wrong("end time must not be before start time"));
    }
    if end <= now {
        return Err(wrong("end time can't be in the past"));
    }
    if text("comment").is_none_or(str::is_empty) || text("createdBy").is_none() {
        return Err(wrong("comment missing"));
    }
    Ok(())
}

fn alerts(
    file: &AlertFile,
    silences: &[Kept],
    query: &[(String, String)],
    now: Timestamp,
) -> Result<Value, Failure> {
    let filters: Vec<Matcher> = query
        .iter()
        .filter(|(name, _)| name == "filter")
        .map(|(_, text)| Matcher::parse(text))
        .collect::<Result<_, _>>()?;
    let wanted = |name: &str| !query.iter().any(|(known, value)| known == name && value == "false");
    let mut found = Vec::new();
    for alert in &file.alerts {
        let fires =
            alert.starts_at.is_none_or(|start| start <= now) && alert.ends_at.is_none_or(|end| end > now);
        if !fires || !fit(&filters, &alert.labels) {
            continue;
        }
        let silenced_by: Vec<Value> = silences
            .iter()
            .filter(|silence| silence.state(now) == "active" && silence.covers(&alert.labels))
            .map(|silence| Value::text(silence.id()))
            .collect();
        if !silenced_by.is_empty() && !wanted("silenced") {
            continue;
        }
        let state = if silenced_by.is_empty() { "active" } else { "suppressed" };
        let map = |texts: &BTreeMap<String, String>| {
            Value::map(texts.iter().map(|(name, value)| (name.as_str(), Value::text(value.as_str()))))
        };
        // A server moves the end of an alert that still fires.
        let end = alert.ends_at.or_else(|| now.checked_add(std::time::Duration::from_secs(300)).ok());
        found.push(Value::map([
            ("fingerprint", Value::text(fingerprint(&alert.labels))),
            ("labels", map(&alert.labels)),
            ("annotations", map(&alert.annotations)),
            ("startsAt", Value::text(alert.starts_at.unwrap_or(Timestamp::UNIX_EPOCH).to_string())),
            ("endsAt", Value::text(end.unwrap_or(now).to_string())),
            ("generatorURL", Value::text(alert.generator_url.as_str())),
            (
                "status",
                Value::map([
                    ("state", Value::text(state)),
                    ("silencedBy", Value::list(silenced_by)),
                    ("inhibitedBy", Value::list(Vec::new())),
                ]),
            ),
        ]));
    }
    Ok(Value::list(found))
}

/// FNV-1a over the sorted labels, as Prometheus makes it.
fn fingerprint(labels: &BTreeMap<String, String>) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let mut add = |byte: u8| hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    for (name, value) in labels {
        name.bytes().for_each(&mut add);
        add(0xff);
        value.bytes().for_each(&mut add);
        add(0xff);
    }
    format!("{hash:016x}")
}

fn ok(value: &Value) -> Answer {
    Answer { status: 200, body: value.to_json().into_bytes(), ..Answer::default() }
}

fn told(status: u16, text: &str) -> Answer {
    Answer { status, body: text.as_bytes().to_vec(), ..Answer::default() }
}
