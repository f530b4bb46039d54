//! `external.run`.

use farrier_action::{Action, NodeInfo, Planned, Probe, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure, FailureKind, Fidelity, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::talk;
use crate::target::{DoubtClass, External, Plugin, Way};
use crate::wire::{Ask, Plan, Probed, Said, for_people};

/// Asks a program of the environment to plan something and to do it. The program speaks lines of JSON; the manual's page
/// on programs describes them.
///
/// The program says what would change, and is asked to make exactly these changes. What happens after a crash in the middle
/// is the environment's word (`effect`): as a rule a person decides. `undo: restore` needs a program that can bring back what
/// was, and an environment that says so (`restores`). A step that says `read_only: true` only asks for a plan and uses its
/// output; changes in that plan are an error.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Run {
    /// The program.
    target: Target<External>,
    /// What the program is told; it says what it expects.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    input: Value,
    /// The author's word that nothing is to be changed.
    #[serde(default)]
    read_only: bool,
}

/// What the program answered.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Answered {
    /// Its output.
    #[schemars(with = "serde_json::Value")]
    value: Value,
}

impl Action for Run {
    const NAME: &'static str = "external.run";
    const EFFECT: Effect = Effect::Probed;
    const RISK: Risk = Risk::Destructive;
    const READ_ONLY_IF: Option<&'static str> = Some("read_only");
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
flag:
  uses: external.run
  with:
    target: flags
    input: { name: maintenance, value: on, because: '${ run.title }' }
  timeout: 2m
  undo: restore
";
    type Output = Answered;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Answered>, Failure> {
        let plugin = cx.reader(&self.target).await?;
        let plan = match self.ask(&plugin, Ask::Plan, &[], cx.node()).await? {
            Said::Planned(plan) => *plan,
            other => return Err(self.odd(Ask::Plan, &other)),
        };
        self.judged(&plugin, plan).map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Answered, Failure> {
        let plugin = cx.writer(&self.target).await?;
        match self.ask(&plugin, Ask::Apply, changes, cx.node()).await? {
            Said::Applied(applied) => Ok(Answered { value: applied.output }),
            other => Err(self.odd(Ask::Apply, &other).in_doubt()),
        }
    }

    async fn probe(&self, cx: &ReadCx, changes: &[Change]) -> Result<Probe, Failure> {
        let plugin = cx.reader(&self.target).await?;
        match plugin.effect {
            DoubtClass::Once => Ok(Probe::Unknown),
            // It goes again either way: set to the same state, or under the same effect id.
            DoubtClass::Repeatable | DoubtClass::Keyed => Ok(Probe::NotApplied),
            DoubtClass::Probed => match self.ask(&plugin, Ask::Probe, changes, cx.node()).await? {
                Said::Probed(Probed::Applied) => Ok(Probe::Applied),
                Said::Probed(Probed::NotApplied) => Ok(Probe::NotApplied),
                Said::Probed(Probed::Unknown) => Ok(Probe::Unknown),
                other => Err(self.odd(Ask::Probe, &other)),
            },
        }
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let plugin = cx.writer(&self.target).await?;
        if !plugin.restores {
            return Err(Failure::new(FailureKind::Input, "this program cannot bring back what was")
                .at(self.target.alias())
                .help("a program that answers `undo` is given `restores: true` in the environment"));
        }
        match self.ask(&plugin, Ask::Undo, changes, cx.node()).await? {
            Said::Undone(_) => Ok(()),
            other => Err(self.odd(Ask::Undo, &other).in_doubt()),
        }
    }
}

impl Run {
    async fn ask(
        &self,
        plugin: &Plugin,
        ask: Ask,
        changes: &[Change],
        node: &NodeInfo,
    ) -> Result<Said, Failure> {
        let said = match &plugin.way {
            Way::Program(program) => talk::ask(program, ask, &self.input, changes, node).await,
            Way::StandIn(stand_in) => stand_in.answer(ask, &self.input, changes),
        };
        let said = said.and_then(|said| match said {
            Said::Failed(failed) => {
                // A failure of our own words may be anything; without doubt only where it could not have begun.
                let odd = || {
                    let odd = Failure::new(
                        FailureKind::Refused,
                        "the program failed with a reason that is not its own",
                    );
                    if ask.changes_something() { odd.in_doubt() } else { odd }
                };
                Err(failed.failure().unwrap_or_else(odd))
            }
            said => Ok(said),
        });
        said.map_err(|failure| failure.at(self.target.alias()))
    }

    fn odd(&self, ask: Ask, said: &Said) -> Failure {
        let (asked, answered) = (ask.name(), said.name());
        Failure::new(
            FailureKind::Refused,
            format!("the program was asked to `{asked}` and answered `{answered}`"),
        )
        .at(self.target.alias())
    }

    /// A plan that can be shown, counted and held to.
    fn judged(&self, plugin: &Plugin, plan: Plan) -> Result<Planned<Answered>, Failure> {
        let refused = |message: String| Failure::new(FailureKind::Refused, message);
        let mut objects = std::collections::HashSet::new();
        for change in &plan.changes {
            let object = &*change.object;
            if object.is_empty() || object.chars().any(char::is_control) {
                return Err(refused(format!("the program plans to change {object:?}, which names nothing")));
            }
            if !objects.insert(object) {
                return Err(refused(format!("the program plans to change `{object}` twice")));
            }
        }
        if self.read_only && !plan.changes.is_empty() {
            return Err(refused(format!(
                "the step says `read_only: true`, and the program would change `{}`",
                plan.changes[0].object
            ))
            .help("leave `read_only` out where the program may make changes"));
        }
        let known = plan.output.is_some() || plan.changes.is_empty();
        let planned = Planned {
            fidelity: plan.fidelity.unwrap_or(Fidelity::Described),
            considered: plan.considered,
            notes: plan.notes.iter().map(|note| for_people(note)).collect(),
            ..Planned::changes(plan.changes, Answered { value: plan.output.unwrap_or_default() })
        };
        if planned.fidelity == Fidelity::Deferred {
            return Err(refused("the program calls its plan `deferred`, which is Farrier's own word".into()));
        }
        let planned = if known { planned } else { planned.unknown("value") };
        Ok(if plugin.restores || planned.changes.is_empty() {
            planned
        } else {
            planned.note("the program cannot bring back what was: `undo: restore` would fail")
        })
    }
}
