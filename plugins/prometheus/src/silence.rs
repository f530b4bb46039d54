//! `alertmanager.silence`.

use std::time::Duration;

use farrier_action::text::{FreeText, Literal};
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::time::{format_duration, parse_duration};
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::api;
use crate::matcher::{Matcher, shown, values};
use crate::promql::Params;
use crate::query::params_schema;
use crate::target::{Alertmanager, AlertmanagerSide};

/// Keeps alerts from notifying for a while. The alerts themselves go on.
///
/// The silence carries the step's effect id in its comment, so it is found again after a crash and made once. Undo ends
/// it; so does `alertmanager.expire`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Silence {
    /// The Alertmanager.
    target: Target<Alertmanager>,
    /// Conditions on labels that must all hold, as in `alertmanager.alerts`. At least one of them must not fit an alert
    /// without its label.
    #[serde(rename = "match")]
    matchers: Vec<Literal>,
    /// The values of the parameters.
    #[serde(default)]
    #[schemars(schema_with = "params_schema")]
    params: Params,
    /// How long, as in `1h`.
    #[serde(rename = "for")]
    length: String,
    /// Why.
    comment: FreeText,
    /// Who. The default is `farrier`.
    #[serde(default)]
    created_by: Option<FreeText>,
}

/// The silence.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Silenced {
    /// Its id.
    id: String,
    /// When it ends by itself.
    ends_at: String,
}

impl Silence {
    fn length(&self) -> Result<Duration, Failure> {
        parse_duration(&self.length).filter(|length| !length.is_zero()).ok_or_else(|| {
            Failure::new(
                FailureKind::Input,
                format!("`for`: {:?} is not a duration above zero such as `1h`", self.length),
            )
        })
    }

    fn matchers(&self) -> Result<Vec<Matcher>, Failure> {
        let mut matchers = Matcher::all(&self.matchers, &self.params)?;
        if matchers.iter().all(|matcher| matcher.fits("")) {
            return Err(Failure::new(
                FailureKind::Input,
                "`match` fits alerts without any of its labels, so the silence would cover far too much",
            ));
        }
        matchers.sort();
        Ok(matchers)
    }

    fn created_by(&self) -> &str {
        self.created_by.as_ref().map_or("farrier", |name| &name.0)
    }

    fn comment(&self, effect_id: &str) -> Result<String, Failure> {
        for (field, text) in [("comment", &self.comment.0[..]), ("created_by", self.created_by())] {
            if text.trim().is_empty() {
                return Err(Failure::new(FailureKind::Input, format!("`{field}` is empty")));
            }
            if text.contains('\0') {
                return Err(Failure::new(FailureKind::Input, format!("`{field}` contains a NUL character")));
            }
        }
        Ok(format!("{} {}", self.comment.0, mark(effect_id)))
    }

    fn change(&self, matchers: &[Matcher], length: Duration) -> Change {
        Change {
            object: format!("silence {}", shown(matchers)).into(),
            kind: ChangeKind::Create,
            before: Value::Null,
            after: Value::map([
                ("match", values(matchers)),
                ("for", Value::text(format_duration(length))),
                ("comment", Value::text(&*self.comment.0)),
                ("created_by", Value::text(self.created_by())),
            ]),
            fingerprint: None,
        }
    }

    /// The silence that this step made before, if it did, ended or not.
    async fn ours(&self, side: &AlertmanagerSide, effect_id: &str) -> Result<Option<api::Silence>, Failure> {
        let mark = mark(effect_id);
        let mut ours: Vec<api::Silence> = api::silences(&*side.web)
            .await?
            .into_iter()
            .filter(|silence| silence.comment.ends_with(&mark))
            .collect();
        // One that someone has edited since has left an ended one behind.
        ours.sort_by_key(api::Silence::has_ended);
        Ok(ours.into_iter().next())
    }
}

/// What a silence is found again by.
fn mark(effect_id: &str) -> String {
    format!("[farrier {effect_id}]")
}

impl Action for Silence {
    const NAME: &'static str = "alertmanager.silence";
    const EFFECT: Effect = Effect::Keyed;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
quiet:
  uses: alertmanager.silence
  with:
    target: alerts
    match: ['project=\"tools\"', 'instance=~\"$node(:.*)?\"']
    params: { node: tools-k8s-worker-nfs-12 }
    for: 1h
    comment: ${ run.title }
  undo: restore
";
    type Output = Silenced;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Silenced>, Failure> {
        let (matchers, length) = (self.matchers()?, self.length()?);
        self.comment("")?;
        let side = cx.reader(&self.target).await?;
        let ours = self
            .ours(&side, &cx.node().effect_id)
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        if let Some(ours) = ours.filter(|ours| !ours.has_ended()) {
            return Ok(Planned::known(Silenced { id: ours.id, ends_at: ours.ends_at }));
        }
        let later = Silenced { id: String::new(), ends_at: String::new() };
        Ok(Planned::changes(vec![self.change(&matchers, length)], later).unknown("id").unknown("ends_at"))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Silenced, Failure> {
        let (matchers, length) = (self.matchers()?, self.length()?);
        if *changes != [self.change(&matchers, length)] {
            return Err(Failure::new(FailureKind::Drift, "the silence is not the one that was planned"));
        }
        let comment = self.comment(&cx.node().effect_id)?;
        let side = cx.writer(&self.target).await?;
        let made = async {
            if let Some(ours) = self.ours(&side, &cx.node().effect_id).await? {
                let mut theirs = ours.matchers.clone();
                theirs.sort();
                if theirs != matchers {
                    return Err(Failure::new(
                        FailureKind::Drift,
                        format!("the silence {} of this step covers {} now", ours.id, shown(&theirs)),
                    )
                    .help("someone has changed it; look at it and end one of the two"));
                }
                return Ok(Silenced { id: ours.id, ends_at: ours.ends_at });
            }
            let now = side.now.get();
            let end = now.checked_add(length).map_err(|_| {
                Failure::new(FailureKind::Input, format!("`for`: {} is too long", self.length))
            })?;
            let id = api::make(&*side.web, &matchers, [now, end], self.created_by(), &comment).await?;
            Ok(Silenced { id, ends_at: end.to_string() })
        };
        made.await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn undo(&self, cx: &WriteCx, _: &[Change]) -> Result<(), Failure> {
        let side = cx.writer(&self.target).await?;
        let ended = async {
            match self.ours(&side, &cx.node().effect_id).await? {
                Some(ours) if !ours.has_ended() => api::end(&*side.web, &ours.id).await,
                _ => Ok(()),
            }
        };
        ended.await.map_err(|failure| failure.at(self.target.alias()))
    }
}
