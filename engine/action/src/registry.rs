//! The registry: every action and target kind of a binary, typed where they are written and erased here.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::Arc;

use farrier_model::spec::Catalog;
use farrier_model::{ActionSpec, Change, Failure, FailureKind, TargetSpec, Value};
use futures_util::future::{BoxFuture, FutureExt};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema};

use crate::action::{Action, Planned, Probe};
use crate::context::{ReadCx, WriteCx};
use crate::target::TargetKind;

/// A name was registered twice.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is registered twice")]
pub struct RegistryError(pub String);

/// An action with its input read: what the driver calls.
pub trait BoundAction: Send + Sync {
    /// See [`Action::plan`].
    fn plan<'a>(&'a self, cx: &'a ReadCx) -> BoxFuture<'a, Result<Planned<Value>, Failure>>;
    /// See [`Action::apply`].
    fn apply<'a>(&'a self, cx: &'a WriteCx, changes: &'a [Change]) -> BoxFuture<'a, Result<Value, Failure>>;
    /// See [`Action::probe`].
    fn probe<'a>(&'a self, cx: &'a ReadCx, changes: &'a [Change]) -> BoxFuture<'a, Result<Probe, Failure>>;
    /// The output of an effect that a probe found done: what a plan returns now, with fields that a next effect would
    /// change as they are.
    fn output_now<'a>(&'a self, cx: &'a ReadCx) -> BoxFuture<'a, Result<Value, Failure>>;
    /// See [`Action::undo`].
    fn undo<'a>(&'a self, cx: &'a WriteCx, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Failure>>;
}

/// What leaves an action for journals and people leaves through here, without the secrets of its targets.
impl<A: Action> BoundAction for A {
    fn plan<'a>(&'a self, cx: &'a ReadCx) -> BoxFuture<'a, Result<Planned<Value>, Failure>> {
        async move {
            let planned =
                Action::plan(self, cx).await.and_then(|planned| planned.erase(&cx.node().node.step));
            let known = cx.known();
            planned
                .map(|planned| Planned {
                    notes: planned.notes.iter().map(|note| known.text(note)).collect(),
                    ..planned
                })
                .map_err(|failure| known.failure(failure))
        }
        .boxed()
    }
    fn apply<'a>(&'a self, cx: &'a WriteCx, changes: &'a [Change]) -> BoxFuture<'a, Result<Value, Failure>> {
        async move {
            let output = Action::apply(self, cx, changes).await.and_then(|output| {
                Value::of(&output).map_err(|error| {
                    Failure::new(FailureKind::Internal, format!("the output is not a value: {error}"))
                })
            });
            output.map_err(|failure| cx.known().failure(failure))
        }
        .boxed()
    }
    fn probe<'a>(&'a self, cx: &'a ReadCx, changes: &'a [Change]) -> BoxFuture<'a, Result<Probe, Failure>> {
        async move { Action::probe(self, cx, changes).await.map_err(|failure| cx.known().failure(failure)) }
            .boxed()
    }
    fn output_now<'a>(&'a self, cx: &'a ReadCx) -> BoxFuture<'a, Result<Value, Failure>> {
        async move {
            let output = Action::plan(self, cx).await.and_then(|planned| {
                let output = planned.output.map(|output| Value::of(&output)).transpose();
                output.map(Option::unwrap_or_default).map_err(|error| {
                    Failure::new(FailureKind::Internal, format!("the output is not a value: {error}"))
                })
            });
            output.map_err(|failure| cx.known().failure(failure))
        }
        .boxed()
    }
    fn undo<'a>(&'a self, cx: &'a WriteCx, changes: &'a [Change]) -> BoxFuture<'a, Result<(), Failure>> {
        async move { Action::undo(self, cx, changes).await.map_err(|failure| cx.known().failure(failure)) }
            .boxed()
    }
}

trait Bind: Send + Sync {
    fn bind(&self, input: &Value) -> Result<Box<dyn BoundAction>, Failure>;
}

struct Typed<A>(PhantomData<fn() -> A>);

impl<A: Action> Bind for Typed<A> {
    fn bind(&self, input: &Value) -> Result<Box<dyn BoundAction>, Failure> {
        let action: A = serde_path_to_error::deserialize(input.reader()).map_err(|error| {
            let path = error.path().to_string();
            let place = if path == "." { String::new() } else { format!("`{path}`: ") };
            Failure::new(FailureKind::Input, format!("{place}{}", error.into_inner()))
        })?;
        Ok(Box::new(action))
    }
}

/// What can be said of a target without connecting to it.
type Described = fn(&Value) -> Result<(String, bool), Failure>;

/// Every action and target kind, by name. Built once, from one explicit list.
#[derive(Default)]
pub struct ActionRegistry {
    binders: BTreeMap<&'static str, Arc<dyn Bind>>,
    targets: BTreeMap<&'static str, Described>,
    catalog: Catalog,
}

impl ActionRegistry {
    /// Adds an action.
    ///
    /// # Errors
    /// When the name is taken.
    pub fn action<A: Action>(&mut self) -> Result<(), RegistryError> {
        let spec = ActionSpec {
            name: A::NAME,
            summary: summary(&schema_of::<A>()),
            effect: A::EFFECT,
            pure: A::PURE,
            risk: A::RISK,
            read_only_if: A::READ_ONLY_IF,
            deletes: A::DELETES,
            restores: A::RESTORES,
            input: schema_of::<A>().to_value(),
            output: Arc::new(schema_of::<A::Output>().to_value()),
            example: A::EXAMPLE,
        };
        if self.catalog.actions.insert(A::NAME, spec).is_some() {
            return Err(RegistryError(A::NAME.into()));
        }
        self.binders.insert(A::NAME, Arc::new(Typed::<A>(PhantomData)));
        Ok(())
    }

    /// Adds a target kind.
    ///
    /// # Errors
    /// When the kind is taken.
    pub fn target<K: TargetKind>(&mut self) -> Result<(), RegistryError> {
        let schema = schema_of::<K::Config>();
        let spec = TargetSpec { kind: K::KIND, summary: summary(&schema), config: schema.to_value() };
        if self.catalog.targets.insert(K::KIND, spec).is_some() {
            return Err(RegistryError(K::KIND.into()));
        }
        self.targets.insert(K::KIND, |config| {
            config
                .read::<K::Config>()
                .map(|config| (K::identity(&config), K::is_stand_in(&config)))
                .map_err(|error| Failure::new(FailureKind::Input, error.to_string()))
        });
        Ok(())
    }

    /// What the compiler may know of all of them.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Reads an input for an action.
    ///
    /// # Errors
    /// [`FailureKind::Input`] naming the field; [`FailureKind::Internal`] when there is no such action, which the
    /// compiler has ruled out.
    pub fn bind(&self, action: &str, input: &Value) -> Result<Box<dyn BoundAction>, Failure> {
        self.binders
            .get(action)
            .ok_or_else(|| Failure::new(FailureKind::Internal, format!("there is no action `{action}`")))?
            .bind(input)
    }

    /// What a target is, without secrets.
    ///
    /// # Errors
    /// [`FailureKind::Input`] when the kind is unknown or the configuration does not fit it.
    pub fn identity(&self, kind: &str, config: &Value) -> Result<String, Failure> {
        self.describe(kind, config).map(|(identity, _)| identity)
    }

    /// Whether a target is a stand-in, see [`TargetKind::is_stand_in`].
    ///
    /// # Errors
    /// As [`ActionRegistry::identity`].
    pub fn is_stand_in(&self, kind: &str, config: &Value) -> Result<bool, Failure> {
        self.describe(kind, config).map(|(_, stand_in)| stand_in)
    }

    fn describe(&self, kind: &str, config: &Value) -> Result<(String, bool), Failure> {
        let described = self
            .targets
            .get(kind)
            .ok_or_else(|| Failure::new(FailureKind::Input, format!("there is no target kind `{kind}`")))?;
        described(config)
    }
}

/// The JSON Schema of a type, subschemas inlined where they are not recursive.
fn schema_of<T: JsonSchema>() -> Schema {
    SchemaSettings::draft2020_12()
        .with(|settings| settings.inline_subschemas = true)
        .into_generator()
        .into_root_schema_for::<T>()
}

fn summary(schema: &Schema) -> String {
    let text = schema.get("description").and_then(|text| text.as_str()).unwrap_or_default();
    text.split("\n\n").next().unwrap_or_default().replace('\n', " ")
}
