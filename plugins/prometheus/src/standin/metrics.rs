//! Recorded queries. This is no PromQL engine: it knows the queries in its file, by their text, and how each series of
//! their answers changes over time. A query that is not in the file is an error and never an empty answer.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use farrier_action::Now;
use farrier_model::time::{Timestamp, parse_duration, parse_timestamp};
use farrier_model::{Failure, FailureKind, Value};
use serde::Deserialize;

use super::read;
use crate::metrics::{Metrics, Sample};
use crate::promql::squeezed;

/// A whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SeriesFile {
    /// Where times such as `20m` count from.
    #[serde(default)]
    start: Option<Timestamp>,
    /// How far apart samples are; left out, there is one at every moment.
    #[serde(default)]
    every: Option<String>,
    queries: Vec<RecordedQuery>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RecordedQuery {
    /// The text with the values of its parameters; blanks do not matter.
    query: String,
    #[serde(default)]
    series: Vec<Series>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Series {
    #[serde(default)]
    labels: BTreeMap<String, String>,
    /// From each time on the value is this, until the next.
    values: Vec<Step>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Step {
    /// A time, or a duration since `start`; left out, since ever.
    #[serde(default)]
    at: Option<String>,
    /// A number, or null: the series is absent.
    value: Option<Number>,
}

/// `5`, `0.5`, `NaN`, `+Inf`.
#[derive(Debug)]
struct Number(String);

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Number, D::Error> {
        match Value::deserialize(deserializer)? {
            Value::Int(number) => Ok(Number(number.to_string())),
            Value::Float(number) if number.is_nan() => Ok(Number("NaN".into())),
            Value::Float(number) if number.is_infinite() => {
                Ok(Number(if number > 0.0 { "+Inf" } else { "-Inf" }.into()))
            }
            Value::Float(number) => Ok(Number(number.to_string())),
            Value::Text(text) if text.parse::<f64>().is_ok() => Ok(Number(text.to_string())),
            other => Err(serde::de::Error::custom(format!("`value`: {other} is not a number"))),
        }
    }
}

/// Recorded queries.
#[derive(Debug)]
pub(crate) struct RecordedMetrics {
    path: PathBuf,
    now: Now,
}

impl RecordedMetrics {
    /// Reads the file once, so that mistakes in it show at once.
    pub(crate) fn open(path: PathBuf, now: Now) -> Result<RecordedMetrics, Failure> {
        let recorded = RecordedMetrics { path, now };
        let file = recorded.load()?;
        for query in &file.queries {
            for series in &query.series {
                recorded.steps(&file, series)?;
            }
        }
        recorded.sampled_at(&file, Timestamp::UNIX_EPOCH)?;
        Ok(recorded)
    }

    fn load(&self) -> Result<SeriesFile, Failure> {
        read(&self.path)
    }

    fn wrong(&self, what: String) -> Failure {
        Failure::new(FailureKind::Input, format!("{}: {what}", self.path.display()))
    }

    /// The values of a series with the times from which they hold, in order.
    fn steps<'s>(
        &self,
        file: &SeriesFile,
        series: &'s Series,
    ) -> Result<Vec<(Timestamp, Option<&'s str>)>, Failure> {
        let mut steps = Vec::new();
        for step in &series.values {
            let at = match &step.at {
                None => Timestamp::MIN,
                Some(text) => self.time(file, text)?,
            };
            if steps.last().is_some_and(|(earlier, _)| *earlier >= at) {
                return Err(self.wrong("the times of a series must grow".into()));
            }
            steps.push((at, step.value.as_ref().map(|number| number.0.as_str())));
        }
        Ok(steps)
    }

    fn time(&self, file: &SeriesFile, text: &str) -> Result<Timestamp, Failure> {
        if let Some(time) = parse_timestamp(text) {
            return Ok(time);
        }
        let since = parse_duration(text)
            .ok_or_else(|| self.wrong(format!("`{text}` is neither a time nor a duration")))?;
        let start = file
            .start
            .ok_or_else(|| self.wrong(format!("`{text}` counts from `start`, which is missing")))?;
        start.checked_add(since).map_err(|error| self.wrong(error.to_string()))
    }

    /// When the last sample was taken.
    fn sampled_at(&self, file: &SeriesFile, now: Timestamp) -> Result<Timestamp, Failure> {
        let Some(every) = &file.every else { return Ok(now) };
        let every = parse_duration(every)
            .and_then(|every| i64::try_from(every.as_millis()).ok())
            .filter(|every| *every > 0)
            .ok_or_else(|| self.wrong(format!("`every`: `{every}` is not a duration above zero")))?;
        let since = now.as_millisecond() - file.start.map_or(0, Timestamp::as_millisecond);
        Timestamp::from_millisecond(now.as_millisecond() - since.rem_euclid(every))
            .map_err(|error| self.wrong(error.to_string()))
    }
}

#[async_trait]
impl Metrics for RecordedMetrics {
    async fn ask(&self, query: &str, not_older_than: Option<Timestamp>) -> Result<Vec<Sample>, Failure> {
        let file = self.load()?;
        let wanted = squeezed(query);
        let found = file.queries.iter().find(|known| squeezed(&known.query) == wanted).ok_or_else(|| {
            let known: Vec<String> = file.queries.iter().map(|known| format!("`{}`", known.query)).collect();
            Failure::new(FailureKind::Refused, format!("the query `{query}` is not recorded"))
                .help(format!("recorded are {}", known.join(", ")))
        })?;
        let now = self.now.get();
        let sampled = self.sampled_at(&file, now)?;
        let mut samples = Vec::new();
        for series in &found.series {
            let steps = self.steps(&file, series)?;
            let value = steps.iter().rev().find(|(from, _)| *from <= sampled).and_then(|(_, value)| *value);
            if let Some(value) = value
                && not_older_than.is_none_or(|oldest| sampled >= oldest)
            {
                let labels =
                    series.labels.iter().map(|(name, value)| (name.as_str(), Value::text(value.as_str())));
                samples.push(Sample::new(Value::map(labels), value, now));
            }
        }
        Ok(samples)
    }
}
