//! `prometheus.query`.

use farrier_action::text::Literal;
use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::time::{Timestamp, parse_timestamp};
use farrier_model::{Effect, Failure, FailureKind, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::metrics::{Metrics, Sample, number_schema};
use crate::promql::{Params, render};
use crate::target::Prometheus;

/// Asks Prometheus a question in PromQL.
///
/// A series that is absent gives no sample and no value: none, never zero. Write `result.value is not none and
/// result.value == 0` where a condition must not hold because nothing is measured any more.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[expect(clippy::struct_field_names, reason = "`query` is the word for PromQL in every tool")]
pub(crate) struct Query {
    /// The server.
    target: Target<Prometheus>,
    /// A query in PromQL. `$name` stands for a value from `params`: inside of a string it is part of that string, and
    /// behind `=~` and `!~` no pattern; outside of strings text becomes a string, and a number or a duration stands for
    /// itself. A dollar sign is `$$`.
    query: Literal,
    /// The values of the query's parameters: text, numbers, and behind `=~` lists of these. Empty text is refused, since
    /// it also fits series without the label.
    #[serde(default)]
    #[schemars(schema_with = "params_schema")]
    params: Params,
    /// Samples from before this time do not count, as if they did not exist. Prometheus looks back five minutes for a
    /// sample, so without this an answer may be from before the change that it is to prove.
    #[serde(default)]
    not_older_than: Option<String>,
}

/// Values by name.
pub(crate) fn params_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "object", "additionalProperties": true })
}

/// What Prometheus knows.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Known {
    /// The value, when there is exactly one sample and it is a finite number; otherwise none.
    #[schemars(schema_with = "number_schema")]
    pub(crate) value: Value,
    /// How many samples there are.
    pub(crate) count: u64,
    /// The samples.
    pub(crate) samples: Vec<Sample>,
}

impl Known {
    pub(crate) fn new(samples: Vec<Sample>) -> Known {
        let value = match samples.as_slice() {
            [one] => one.value.clone(),
            _ => Value::Null,
        };
        Known { value, count: samples.len() as u64, samples }
    }
}

/// A query with its parameters in it, and the time from which samples count.
pub(crate) struct Question {
    query: String,
    oldest: Option<Timestamp>,
}

impl Question {
    pub(crate) fn new(query: &Literal, params: &Params, oldest: Option<&str>) -> Result<Question, Failure> {
        let time = |text: &str| {
            parse_timestamp(text).ok_or_else(|| {
                Failure::new(FailureKind::Input, format!("`not_older_than`: {text:?} is not a time"))
            })
        };
        Ok(Question { query: render(&query.0, params)?, oldest: oldest.map(time).transpose()? })
    }

    pub(crate) async fn ask(&self, metrics: &dyn Metrics) -> Result<Known, Failure> {
        metrics.ask(&self.query, self.oldest).await.map(Known::new)
    }
}

impl Action for Query {
    const NAME: &'static str = "prometheus.query";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
still_stuck:
  uses: prometheus.query
  with:
    target: metrics
    query: sum(prometheus_k8s_nfs_stuck_total_procs{instance=~\"$node(:.*)?\"})
    params: { node: tools-k8s-worker-nfs-12 }
  expect:
    - { that: result.value is not none and result.value > 0, otherwise: the alert no longer holds, then: finish }
";
    type Output = Known;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Known>, Failure> {
        let question = Question::new(&self.query, &self.params, self.not_older_than.as_deref())?;
        let reader = cx.reader(&self.target).await?;
        question
            .ask(&*reader.metrics)
            .await
            .map(Planned::known)
            .map_err(|failure| failure.at(self.target.alias()))
    }
}
