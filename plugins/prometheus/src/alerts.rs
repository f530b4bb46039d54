//! `alertmanager.alerts`.

use farrier_action::text::Literal;
use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api::{self, Filter};
use crate::matcher::Matcher;
use crate::promql::Params;
use crate::query::params_schema;
use crate::target::Alertmanager;

/// Lists the alerts that fire.
///
/// Silenced and inhibited ones are listed too, and say so: look at `silenced_by` before repairing what someone works on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Alerts {
    /// The Alertmanager.
    target: Target<Alertmanager>,
    /// Conditions on labels that must all hold, as in `alertname="NodeDown"` and `instance=~"$host(:.*)?"`, with `=`,
    /// `!=`, `=~` and `!~`; patterns fit whole values. `$name` stands for a value from `params`, as in
    /// `prometheus.query`. Left out, all alerts are listed.
    #[serde(default, rename = "match")]
    matchers: Vec<Literal>,
    /// The values of the parameters.
    #[serde(default)]
    #[schemars(schema_with = "params_schema")]
    params: Params,
    /// Whether to list silenced alerts. The default is yes.
    #[serde(default = "yes")]
    silenced: bool,
    /// Whether to list alerts that another one holds back. The default is yes.
    #[serde(default = "yes")]
    inhibited: bool,
}

fn yes() -> bool {
    true
}

/// The alerts that were found.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Found {
    /// How many there are.
    count: u64,
    /// The alerts, by fingerprint.
    alerts: Vec<Alert>,
}

/// An alert that fires.
#[derive(Debug, Serialize, JsonSchema)]
struct Alert {
    /// What tells it from others: made of its labels.
    fingerprint: String,
    /// Its labels.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    labels: Value,
    /// Its annotations.
    #[schemars(with = "std::collections::BTreeMap<String, String>")]
    annotations: Value,
    /// Since when it fires.
    starts_at: String,
    /// Until when it counts as firing unless it is reported again.
    ends_at: String,
    /// `active`, `suppressed` (silenced or inhibited) or `unprocessed`.
    state: String,
    /// The ids of the silences that cover it.
    silenced_by: Vec<String>,
    /// The fingerprints of the alerts that hold it back.
    inhibited_by: Vec<String>,
    /// Where its rule can be seen.
    generator_url: String,
}

impl Action for Alerts {
    const NAME: &'static str = "alertmanager.alerts";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
storm:
  uses: alertmanager.alerts
  with:
    target: alerts
    match: ['project=\"$project\"', 'severity=~\"critical|page\"']
    params: { project: tools }
  expect:
    - { that: result.count < 10, otherwise: too much is broken at once for a machine to judge }
";
    type Output = Found;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Found>, Failure> {
        let matchers = Matcher::all(&self.matchers, &self.params)?;
        let side = cx.reader(&self.target).await?;
        let filter = Filter { matchers: &matchers, silenced: self.silenced, inhibited: self.inhibited };
        let found =
            api::alerts(&*side.web, filter).await.map_err(|failure| failure.at(self.target.alias()))?;
        let mut alerts: Vec<Alert> = found
            .into_iter()
            .map(|alert| Alert {
                fingerprint: alert.fingerprint,
                labels: alert.labels,
                annotations: alert.annotations,
                starts_at: alert.starts_at,
                ends_at: alert.ends_at,
                state: alert.status.state,
                silenced_by: alert.status.silenced_by,
                inhibited_by: alert.status.inhibited_by,
                generator_url: alert.generator_url,
            })
            .collect();
        alerts.sort_by(|one, other| one.fingerprint.cmp(&other.fingerprint));
        Ok(Planned::known(Found { count: alerts.len() as u64, alerts }))
    }
}
