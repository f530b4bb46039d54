//! `prometheus.wait`.

use std::time::Duration;

use farrier_action::text::{ItemExpr, Literal};
use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::time::{format_duration, parse_duration};
use farrier_model::{Effect, Failure, FailureKind, Fidelity, Value};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::promql::Params;
use crate::query::{Known, Question, params_schema};
use crate::target::Prometheus;

/// Waits until the answer to a question in PromQL is as wanted.
///
/// A plan that is only shown looks once and says what it would wait for. A question that fails because the server
/// cannot be reached counts as "not yet"; a query that is wrong fails at once.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wait {
    /// The server.
    target: Target<Prometheus>,
    /// A query in PromQL, as in `prometheus.query`.
    query: Literal,
    /// The values of the query's parameters.
    #[serde(default)]
    #[schemars(schema_with = "params_schema")]
    params: Params,
    /// Samples from before this time do not count, as if they did not exist.
    #[serde(default)]
    not_older_than: Option<String>,
    /// What to wait for: a bare expression in which `item` is the answer, as in
    /// `item.value is not none and item.value == 0`.
    until: ItemExpr,
    /// How long to wait at most, as in `15m`.
    within: String,
    /// How long to pause between two looks. The default is `30s`.
    #[serde(default)]
    every: Option<String>,
    /// How long it must go on holding. Left out, once is enough.
    #[serde(default)]
    hold: Option<String>,
}

/// How long, how often, and how long it must hold.
struct Pace {
    within: Duration,
    every: Duration,
    hold: Duration,
}

impl Wait {
    fn pace(&self) -> Result<Pace, Failure> {
        let read = |field: &str, text: &str| {
            parse_duration(text).ok_or_else(|| {
                Failure::new(
                    FailureKind::Input,
                    format!("`{field}`: {text:?} is not a duration such as `5m`"),
                )
            })
        };
        let optional =
            |field, text: &Option<String>| text.as_deref().map(|text| read(field, text)).transpose();
        let pace = Pace {
            within: read("within", &self.within)?,
            every: optional("every", &self.every)?.unwrap_or(Duration::from_secs(30)),
            hold: optional("hold", &self.hold)?.unwrap_or_default(),
        };
        if pace.every.is_zero() {
            return Err(Failure::new(FailureKind::Input, "`every` is 0s; leave the server time to answer"));
        }
        if pace.hold > pace.within {
            return Err(Failure::new(
                FailureKind::Input,
                "`hold` is longer than `within`, so it can never be met",
            ));
        }
        Ok(pace)
    }

    fn holds(&self, known: &Known, cx: &ReadCx) -> Result<bool, Failure> {
        let value = Value::of(known)
            .map_err(|error| Failure::new(FailureKind::Internal, format!("no value: {error}")))?;
        self.until.eval_bool(&cx.scope().with("item", value))
    }

    async fn wait(&self, question: &Question, metrics: &dyn Metrics, cx: &ReadCx) -> Result<Known, Failure> {
        let pace = self.pace()?;
        let begun = Instant::now();
        let mut held_since: Option<Instant> = None;
        loop {
            let last = match question.ask(metrics).await {
                Ok(known) => {
                    if self.holds(&known, cx)? {
                        let since = *held_since.get_or_insert_with(Instant::now);
                        if since.elapsed() >= pace.hold {
                            return Ok(known);
                        }
                        "it has not held long enough".to_owned()
                    } else {
                        held_since = None;
                        match known.samples.as_slice() {
                            [] => "the answer was empty".to_owned(),
                            [one] => format!("the value was {}", one.text),
                            several => format!("there were {} samples", several.len()),
                        }
                    }
                }
                Err(failure) if failure.kind.may_pass() => {
                    held_since = None;
                    failure.message
                }
                Err(failure) => return Err(failure),
            };
            if begun.elapsed() >= pace.within {
                return Err(Failure::new(
                    FailureKind::Verification,
                    format!(
                        "`{}` did not become true within {} ({last})",
                        self.until.0.source(),
                        format_duration(pace.within)
                    ),
                ));
            }
            let rest = pace.within.saturating_sub(begun.elapsed());
            farrier_action::rest::sleep(pace.every.min(rest).max(Duration::from_millis(1))).await;
        }
    }
}

impl Action for Wait {
    const NAME: &'static str = "prometheus.wait";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
cured:
  uses: prometheus.wait
  with:
    target: metrics
    query: sum(up{job=\"$job\"})
    params: { job: jobs-api }
    until: item.value is not none and item.value >= 1
    within: 15m
    every: 30s
    hold: 5m
";
    type Output = Known;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Known>, Failure> {
        let pace = self.pace()?;
        let question = Question::new(&self.query, &self.params, self.not_older_than.as_deref())?;
        let reader = cx.reader(&self.target).await?;
        let here = |failure: Failure| failure.at(self.target.alias());
        if !cx.looks_once() {
            return self.wait(&question, &*reader.metrics, cx).await.map(Planned::known).map_err(here);
        }
        let known = question.ask(&*reader.metrics).await.map_err(here)?;
        if self.holds(&known, cx)? {
            return Ok(Planned::known(known));
        }
        let mut planned = Planned::described(Vec::new()).note(format!(
            "waits up to {} until `{}`",
            format_duration(pace.within),
            self.until.0.source()
        ));
        planned.fidelity = Fidelity::Deferred;
        Ok(planned)
    }
}
