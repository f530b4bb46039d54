//! Writing only over what the plan saw.
//!
//! A recorded change holds the parts of an object that it touches, before and after, and the object's uid. A write
//! reads the object again, compares these parts, and sends a patch that is tied to the version just read. Others may
//! change other parts of the object all the time (a kubelet reports, a controller counts): then it reads and compares
//! anew. The parts themselves are never overwritten with anything but what they should be.

use farrier_model::{Change, ChangeKind, Failure, FailureKind, Value};
use kube::api::{DynamicObject, Patch, PatchParams};
use serde_json::Value as Json;

use crate::cluster::{Cluster, status, write_failure};
use crate::object::{Named, deviations, from_value, tied_patch, to_json, to_value, uid};

/// The name under which Farrier owns fields.
pub(crate) const MANAGER: &str = "farrier";

/// How often a write is tried again because something else of the object changed meanwhile.
const TRIES: usize = 10;

/// From `before` to `after`, or back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Apply,
    Undo,
}

/// An update of some parts of an object.
pub(crate) fn update(
    named: &Named,
    object: &DynamicObject,
    before: &Json,
    after: &Json,
) -> Result<Change, Failure> {
    Ok(Change {
        object: named.title().into(),
        kind: ChangeKind::Update,
        before: to_value(before)?,
        after: to_value(after)?,
        fingerprint: Some(uid(object).into()),
    })
}

/// Makes an update, or takes it back. An object that is as wanted already is left alone.
pub(crate) async fn set(cluster: &Cluster, named: &Named, change: &Change, way: Way) -> Result<(), Failure> {
    let (from, to) = match way {
        Way::Apply => (from_value(&change.before)?, from_value(&change.after)?),
        Way::Undo => (from_value(&change.after)?, from_value(&change.before)?),
    };
    for _ in 0..TRIES {
        let live = named.find(cluster).await?.ok_or_else(|| gone(named))?;
        same_object(named, &live, change)?;
        let now = to_json(&live)?;
        if deviations(&to, &now).is_empty() {
            return Ok(());
        }
        let different = deviations(&from, &now);
        if !different.is_empty() {
            return Err(drifted(named, &different));
        }
        let params = PatchParams { field_manager: Some(MANAGER.into()), ..PatchParams::default() };
        let patch = Patch::Merge(tied_patch(&to, &live));
        match named.api(cluster).patch(&named.name, &params, &patch).await {
            Ok(_) => return Ok(()),
            Err(error) if status(&error).is_some_and(|status| status.code == 409) => {}
            Err(error) if status(&error).is_some_and(|status| status.code == 404) => return Err(gone(named)),
            Err(error) => return Err(write_failure(&error, &format!("cannot change {}", named.title()))),
        }
    }
    Err(Failure::new(
        FailureKind::Conflict,
        format!("{} changes so often that no write came between; nothing was changed", named.title()),
    ))
}

/// Whether the object is still the one of the plan, and not another of its name.
pub(crate) fn same_object(named: &Named, live: &DynamicObject, change: &Change) -> Result<(), Failure> {
    match &change.fingerprint {
        Some(planned) if **planned != *uid(live) => Err(Failure::new(
            FailureKind::Drift,
            format!(
                "{} is another object of that name since the plan was made; nothing was changed",
                named.title()
            ),
        )
        .help("plan again")),
        _ => Ok(()),
    }
}

/// The one change that such a step has.
pub(crate) fn only(changes: &[Change]) -> Result<&Change, Failure> {
    match changes {
        [change] => Ok(change),
        _ => Err(Failure::new(FailureKind::Internal, "the recorded changes are not those of one object")),
    }
}

/// The object is gone since the plan.
pub(crate) fn gone(named: &Named) -> Failure {
    Failure::new(
        FailureKind::Drift,
        format!("{} is gone since the plan was made; nothing was changed", named.title()),
    )
    .help("plan again")
}

/// The object is not as planned.
pub(crate) fn drifted(named: &Named, paths: &[String]) -> Failure {
    Failure::new(
        FailureKind::Drift,
        format!(
            "`{}` of {} is not as the plan saw it; nothing was overwritten",
            paths.join("`, `"),
            named.title()
        ),
    )
    .help("look at the object and plan again")
}

/// What a change would leave, for plans.
pub(crate) fn field(change: &Value, path: &[&str]) -> Value {
    path.iter().try_fold(change, |value, key| value.get(key)).cloned().unwrap_or_default()
}
