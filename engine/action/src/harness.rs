//! The laws that every action keeps, as one check that every plugin's tests call.
//!
//! 1. `plan` writes nothing.
//! 2. `apply` changes the planned objects and no others.
//! 3. A `plan` after `apply` has no changes (unless the plan only describes, or the effect is `once`).
//! 4. `undo` brings the world back, and may be called twice.
//! 5. An object that changed between plan and apply is not overwritten: `apply` fails with `drift`.
//! 6. Bad input is a typed error, before anything is touched.

use std::collections::BTreeMap;
use std::sync::Arc;

use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind, Fidelity, NodeName, RunId, Scope, Value, ids};
use futures_util::future::BoxFuture;

use crate::action::Planned;
use crate::context::{NodeInfo, ReadCx, WriteCx};
use crate::registry::ActionRegistry;
use crate::target::Targets;

/// Everything in the world that the action could touch: object name, in the words of `Change::object`, to content.
pub type World = BTreeMap<String, Value>;

/// A function that reads or disturbs the world behind the action's back.
pub type Observe<'a> = Box<dyn Fn() -> BoxFuture<'a, World> + 'a>;
/// See [`Observe`].
pub type Disturb<'a> = Box<dyn Fn() -> BoxFuture<'a, ()> + 'a>;

/// One action on one world.
pub struct Case<'a> {
    /// Holds the action.
    pub registry: &'a ActionRegistry,
    /// Its name.
    pub action: &'a str,
    /// Its input.
    pub input: Value,
    /// The targets that the input names.
    pub targets: Arc<Targets>,
    /// Names for item expressions.
    pub scope: Scope,
    /// Reads the world by other means than the plugin.
    pub observe: Observe<'a>,
    /// Changes one of the objects that the input would change, to something else; nothing for actions that only read.
    pub disturb: Option<Disturb<'a>>,
    /// Inputs that must be refused.
    pub bad_inputs: Vec<Value>,
}

/// What a case showed, for further assertions.
#[derive(Debug)]
pub struct Shown {
    /// The first plan.
    pub plan: Planned<Value>,
    /// The output: of apply, or of the plan when there was nothing to apply.
    pub output: Value,
}

impl Case<'_> {
    /// A context for a node called `case`.
    pub fn read_cx(&self) -> ReadCx {
        let run = RunId::at(0, [7; 10]);
        let node = NodeName::step("case");
        let effect_id = ids::effect_id(run, &node, "do");
        ReadCx::new(self.targets.clone(), self.scope.clone(), NodeInfo { run, node, attempt: 1, effect_id })
    }

    /// Proves the laws.
    ///
    /// # Panics
    /// When a law is broken, saying which.
    ///
    /// # Errors
    /// When a call that must succeed fails.
    pub async fn prove(&self) -> Result<Shown, Failure> {
        let spec = &self.registry.catalog().actions[self.action];
        for bad in &self.bad_inputs {
            self.prove_bad_input(bad).await;
        }
        let action = self.registry.bind(self.action, &self.input)?;
        let cx = self.read_cx();
        let before = (self.observe)().await;
        let plan = action.plan(&cx).await?;
        assert_eq!((self.observe)().await, before, "law 1: `{}` wrote while planning", self.action);
        if plan.changes.is_empty() {
            let output = plan.output.clone().unwrap_or_default();
            return Ok(Shown { plan, output });
        }
        assert_ne!(spec.effect, Effect::Read, "`{}` says it only reads, and plans changes", self.action);
        assert_ne!(spec.risk, Risk::ReadOnly, "`{}` says it only reads, and plans changes", self.action);

        let write = WriteCx::after_intent(cx.clone());
        let output = action.apply(&write, &plan.changes).await?;
        let after = (self.observe)().await;
        let planned: Vec<&str> = plan.changes.iter().map(|change| &*change.object).collect();
        for object in differing(&before, &after) {
            assert!(
                planned.contains(&&*object),
                "law 2: `{}` changed `{object}`, planned were {planned:?}",
                self.action
            );
        }
        if plan.fidelity != Fidelity::Described && spec.effect != Effect::Once {
            let again = action.plan(&cx).await?;
            assert!(
                again.changes.is_empty(),
                "law 3: after apply, `{}` still plans {:?}",
                self.action,
                again.changes
            );
        }
        if spec.restores {
            action.undo(&write, &plan.changes).await?;
            assert_eq!((self.observe)().await, before, "law 4: undo of `{}` did not restore", self.action);
            action.undo(&write, &plan.changes).await?;
            assert_eq!((self.observe)().await, before, "law 4: undo of `{}` cannot be repeated", self.action);
            if let Some(disturb) = &self.disturb {
                disturb().await;
                let disturbed = (self.observe)().await;
                assert_ne!(disturbed, before, "the case's `disturb` disturbs nothing");
                let Err(failure) = action.apply(&write, &plan.changes).await else {
                    panic!("law 5: apply of `{}` did not notice the drift", self.action);
                };
                assert_eq!(failure.kind, FailureKind::Drift, "law 5: {failure}");
                assert_eq!((self.observe)().await, disturbed, "law 5: `{}` wrote over drift", self.action);
            }
        }
        Ok(Shown { plan, output })
    }

    async fn prove_bad_input(&self, bad: &Value) {
        let before = (self.observe)().await;
        let failure = match self.registry.bind(self.action, bad) {
            Err(failure) => failure,
            Ok(action) => match action.plan(&self.read_cx()).await {
                Err(failure) => failure,
                Ok(plan) => panic!("law 6: `{}` accepted {bad} and planned {:?}", self.action, plan.changes),
            },
        };
        assert_eq!(failure.kind, FailureKind::Input, "law 6: {bad} failed with {failure}");
        assert_eq!((self.observe)().await, before, "law 6: bad input touched the world");
    }
}

fn differing(before: &World, after: &World) -> Vec<String> {
    let mut names: Vec<String> = before.keys().chain(after.keys()).cloned().collect();
    names.sort();
    names.dedup();
    names.retain(|name| before.get(name) != after.get(name));
    names
}
