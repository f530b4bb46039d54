//! [`Through`]: an action that a helper does when the environment says so, and this process otherwise.

use std::borrow::Cow;

use farrier_action::{Action, Planned, Probe, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::talk::odd;
use super::via::{Via, unanswered};
use super::wire::{self, Job, Phase, Probed, Step};
use crate::target::FilesTarget;
use crate::{Archive, CheckArchive, DeleteTree, Discard, Usage, Write};

/// An action that a helper does as a whole.
pub(crate) trait Privileged: Action {
    const JOB: fn(Step) -> Job;
    /// Where it works.
    fn target(&self) -> &Target<FilesTarget>;
}

macro_rules! privileged {
    ($($action:ident)*) => {$(
        impl Privileged for $action {
            const JOB: fn(Step) -> Job = Job::$action;
            fn target(&self) -> &Target<FilesTarget> {
                &self.target
            }
        }
    )*};
}

privileged! { Archive CheckArchive DeleteTree Discard Usage Write }

/// The action, and what the step says under `with`: a helper gets the same.
pub(crate) struct Through<A> {
    given: Value,
    action: A,
}

/// An output: made here, or told by a helper.
pub(crate) enum Told<O> {
    Here(O),
    There(Value),
}

impl<'de, A: Privileged> Deserialize<'de> for Through<A> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Through<A>, D::Error> {
        let given = Value::deserialize(deserializer)?;
        let action = given.read().map_err(D::Error::custom)?;
        Ok(Through { given, action })
    }
}

impl<A: JsonSchema> JsonSchema for Through<A> {
    fn inline_schema() -> bool {
        A::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        A::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        A::json_schema(generator)
    }
}

impl<O: Serialize> Serialize for Told<O> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Told::Here(output) => output.serialize(serializer),
            Told::There(output) => output.serialize(serializer),
        }
    }
}

impl<O: JsonSchema> JsonSchema for Told<O> {
    fn inline_schema() -> bool {
        O::inline_schema()
    }
    fn schema_name() -> Cow<'static, str> {
        O::schema_name()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        O::json_schema(generator)
    }
}

impl<A: Privileged> Through<A> {
    async fn ask<T: DeserializeOwned>(
        &self,
        via: &Via,
        cx: &ReadCx,
        phase: Phase,
        changes: &[Change],
    ) -> Result<T, Failure> {
        let node = cx.node();
        let job = A::JOB(Step {
            phase,
            input: self.given.clone(),
            changes: changes.to_vec(),
            run: node.run,
            node: node.node.clone(),
            attempt: node.attempt,
            effect: node.effect_id.clone(),
        });
        let heard = |told: wire::Told| cx.progress(told.done as usize, told.total as usize, || told.text);
        let answer = async { via.begin(job).await?.done_telling(heard).await };
        answer.await.map_err(|failure| failure.at(self.action.target().alias()))
    }
}

impl<A: Privileged> Action for Through<A> {
    const NAME: &'static str = A::NAME;
    const EFFECT: Effect = A::EFFECT;
    const RISK: Risk = A::RISK;
    const PURE: bool = A::PURE;
    const DELETES: bool = A::DELETES;
    const READ_ONLY_IF: Option<&'static str> = A::READ_ONLY_IF;
    const RESTORES: bool = A::RESTORES;
    const EXAMPLE: &'static str = A::EXAMPLE;

    type Output = Told<A::Output>;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Told<A::Output>>, Failure> {
        let files = cx.reader(self.action.target()).await?;
        let Some(via) = files.via() else {
            let Planned { changes, output, unknown, fidelity, considered, notes, wait } =
                self.action.plan(cx).await?;
            let output = output.map(Told::Here);
            return Ok(Planned { changes, output, unknown, fidelity, considered, notes, wait });
        };
        let wire::Planned { changes, output, unknown, fidelity, considered, notes } =
            self.ask(via, cx, Phase::Plan, &[]).await?;
        let unknown = unknown.iter().map(|name| field(name)).collect::<Result<_, _>>()?;
        let output = output.map(Told::There);
        Ok(Planned { changes, output, unknown, fidelity, considered, notes, wait: None })
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Told<A::Output>, Failure> {
        let files = cx.writer(self.action.target()).await?;
        let Some(via) = files.via() else { return self.action.apply(cx, changes).await.map(Told::Here) };
        self.ask(via, cx, Phase::Apply, changes).await.map(Told::There).map_err(unanswered)
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let files = cx.writer(self.action.target()).await?;
        let Some(via) = files.via() else { return self.action.undo(cx, changes).await };
        self.ask(via, cx, Phase::Undo, changes).await.map_err(unanswered)
    }

    async fn probe(&self, cx: &ReadCx, changes: &[Change]) -> Result<Probe, Failure> {
        let files = cx.reader(self.action.target()).await?;
        let Some(via) = files.via() else { return self.action.probe(cx, changes).await };
        Ok(match self.ask(via, cx, Phase::Probe, changes).await? {
            Probed::Applied => Probe::Applied,
            Probed::NotApplied => Probe::NotApplied,
            Probed::Unknown => Probe::Unknown,
        })
    }
}

/// The outputs that a plan may leave open.
fn field(name: &str) -> Result<&'static str, Failure> {
    let known = ["sha256", "bytes", "manifest", "deleted"];
    known.into_iter().find(|known| *known == name).ok_or_else(odd)
}
