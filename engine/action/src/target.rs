//! Targets: how a plugin connects to the world.
//!
//! A runbook names targets by alias; the environment binds each alias to a kind and a configuration. A kind has two
//! sides, [`TargetKind::Reader`] and [`TargetKind::Writer`], connected apart and with credentials of their own.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use farrier_model::time::Timestamp;
use farrier_model::{Failure, FailureKind, Value};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use tokio::sync::OnceCell;

use crate::known::{Known, SharedKnown};

/// One kind of target: `ldap`, `sql`, `files`, …
///
/// Connections are shared by all steps of a process, so both sides must be usable from many tasks at once. A
/// connection that broke reconnects on its next use.
pub trait TargetKind: Send + Sync + 'static {
    /// The name in `targets:` and in environments.
    const KIND: &'static str;
    /// Its entry in an environment, without `kind`.
    type Config: DeserializeOwned + JsonSchema + Send + Sync + 'static;
    /// The side that cannot write.
    type Reader: Send + Sync + 'static;
    /// The side that can.
    type Writer: Send + Sync + 'static;

    /// What the target is, without secrets: two configurations with one identity are the same place.
    fn identity(config: &Self::Config) -> String;

    /// Whether it is a stand-in that lives in files of its own: tests of runbooks use no others, on copies.
    fn is_stand_in(_config: &Self::Config) -> bool {
        false
    }

    /// Connects the reading side.
    fn reader(
        config: Self::Config,
        cx: &ConnectCx,
    ) -> impl Future<Output = Result<Self::Reader, Failure>> + Send;

    /// Connects the writing side.
    fn writer(
        config: Self::Config,
        cx: &ConnectCx,
    ) -> impl Future<Output = Result<Self::Writer, Failure>> + Send;
}

/// Where a stand-in gets the time from: the machine's clock, or the simulated one of a test.
#[derive(Clone)]
pub struct Now(Arc<dyn Fn() -> Timestamp + Send + Sync>);

impl Now {
    /// A clock of one's own.
    pub fn from_fn(now: impl Fn() -> Timestamp + Send + Sync + 'static) -> Now {
        Now(Arc::new(now))
    }

    /// The time.
    pub fn get(&self) -> Timestamp {
        (self.0)()
    }
}

impl Default for Now {
    fn default() -> Now {
        Now::from_fn(Timestamp::now)
    }
}

impl fmt::Debug for Now {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Now")
    }
}

/// What a connecting target may know of its surroundings.
#[derive(Debug, Clone)]
pub struct ConnectCx {
    /// The alias, for messages.
    pub alias: String,
    /// Relative paths in the configuration start here: the folder of the environment file.
    pub base_dir: PathBuf,
    /// The time, for stand-ins whose world has one.
    pub now: Now,
    /// What must not come back: every secret that [`SecretRef::resolve`](crate::SecretRef::resolve) reads here.
    pub known: SharedKnown,
}

impl ConnectCx {
    /// A path of the configuration, from [`ConnectCx::base_dir`] when relative.
    pub fn path(&self, path: impl AsRef<Path>) -> PathBuf {
        self.base_dir.join(path)
    }
}

/// The name of a target of one kind, as a field of an action's input.
pub struct Target<K> {
    alias: String,
    kind: PhantomData<fn() -> K>,
}

impl<K> Target<K> {
    /// A reference by alias.
    pub fn new(alias: impl Into<String>) -> Target<K> {
        Target { alias: alias.into(), kind: PhantomData }
    }

    /// The alias.
    pub fn alias(&self) -> &str {
        &self.alias
    }
}

impl<K> Clone for Target<K> {
    fn clone(&self) -> Target<K> {
        Target::new(self.alias.clone())
    }
}

impl<K> fmt::Debug for Target<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Target({})", self.alias)
    }
}

impl<'de, K> Deserialize<'de> for Target<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Target<K>, D::Error> {
        String::deserialize(deserializer).map(Target::new)
    }
}

impl<K: TargetKind> JsonSchema for Target<K> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("{}_target", K::KIND).into()
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({ "type": "string", "x-farrier": format!("target:{}", K::KIND) })
    }
}

/// One alias of an environment.
#[derive(Debug, Clone)]
pub struct Binding {
    /// The name that runbooks use.
    pub alias: String,
    /// The kind.
    pub kind: String,
    /// The configuration, checked against the kind's schema.
    pub config: Value,
}

/// The targets of one environment, connected on first use.
pub struct Targets {
    base_dir: PathBuf,
    now: Now,
    known: SharedKnown,
    slots: BTreeMap<String, Slot>,
    groups: BTreeMap<String, Vec<String>>,
}

struct Slot {
    binding: Binding,
    reader: OnceCell<Arc<dyn Any + Send + Sync>>,
    writer: OnceCell<Arc<dyn Any + Send + Sync>>,
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map()
            .entries(self.slots.values().map(|slot| (&slot.binding.alias, &slot.binding.kind)))
            .finish()
    }
}

impl Targets {
    /// The targets of an environment whose file lies in `base_dir`; `groups` are aliases that stand for several.
    pub fn new(base_dir: PathBuf, bindings: Vec<Binding>, groups: BTreeMap<String, Vec<String>>) -> Targets {
        let slots = bindings
            .into_iter()
            .map(|binding| {
                (binding.alias.clone(), Slot { binding, reader: OnceCell::new(), writer: OnceCell::new() })
            })
            .collect();
        Targets { base_dir, now: Now::default(), known: SharedKnown::default(), slots, groups }
    }

    /// The same targets in a world whose time is `now`.
    #[must_use]
    pub fn at(self, now: Now) -> Targets {
        Targets { now, ..self }
    }

    /// The secrets that targets were connected with so far.
    pub(crate) fn known(&self) -> Arc<Known> {
        self.known.now()
    }

    /// The members of a group, in the environment's order.
    pub fn group(&self, alias: &str) -> Option<&[String]> {
        self.groups.get(alias).map(Vec::as_slice)
    }

    /// Every binding, by alias.
    pub fn bindings(&self) -> impl Iterator<Item = &Binding> {
        self.slots.values().map(|slot| &slot.binding)
    }

    /// Every group, by alias.
    pub fn groups(&self) -> impl Iterator<Item = (&String, &Vec<String>)> {
        self.groups.iter()
    }

    /// The reading side of a target, connected on first use and then shared.
    ///
    /// # Errors
    /// The target does not exist here, is of another kind, or cannot be reached.
    pub async fn reader<K: TargetKind>(&self, target: &Target<K>) -> Result<Arc<K::Reader>, Failure> {
        let (slot, config, cx) = self.prepare::<K>(target)?;
        let side = slot
            .reader
            .get_or_try_init(|| async move {
                K::reader(config, &cx).await.map(|side| Arc::new(side) as Arc<dyn Any + Send + Sync>)
            })
            .await
            .map_err(|failure| failure.at(target.alias()))?;
        downcast(side.clone(), target.alias())
    }

    pub(crate) async fn writer<K: TargetKind>(&self, target: &Target<K>) -> Result<Arc<K::Writer>, Failure> {
        let (slot, config, cx) = self.prepare::<K>(target)?;
        let side = slot
            .writer
            .get_or_try_init(|| async move {
                K::writer(config, &cx).await.map(|side| Arc::new(side) as Arc<dyn Any + Send + Sync>)
            })
            .await
            .map_err(|failure| failure.at(target.alias()))?;
        downcast(side.clone(), target.alias())
    }

    fn prepare<K: TargetKind>(&self, target: &Target<K>) -> Result<(&Slot, K::Config, ConnectCx), Failure> {
        let alias = target.alias();
        let slot = self.slots.get(alias).ok_or_else(|| {
            Failure::new(FailureKind::Input, format!("there is no target `{alias}` in this environment"))
                .help("bind it under `targets:` in the environment file")
        })?;
        if slot.binding.kind != K::KIND {
            return Err(Failure::new(
                FailureKind::Input,
                format!(
                    "target `{alias}` is of kind `{}`, and this step needs `{}`",
                    slot.binding.kind,
                    K::KIND
                ),
            ));
        }
        let config = slot.binding.config.read::<K::Config>().map_err(|error| {
            Failure::new(FailureKind::Input, format!("its configuration does not fit: {error}")).at(alias)
        })?;
        Ok((
            slot,
            config,
            ConnectCx {
                alias: alias.to_owned(),
                base_dir: self.base_dir.clone(),
                now: self.now.clone(),
                known: self.known.clone(),
            },
        ))
    }
}

fn downcast<T: Send + Sync + 'static>(
    side: Arc<dyn Any + Send + Sync>,
    alias: &str,
) -> Result<Arc<T>, Failure> {
    side.downcast::<T>().map_err(|_| {
        Failure::new(FailureKind::Internal, format!("target `{alias}` was connected as another kind"))
    })
}
