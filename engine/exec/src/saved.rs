//! [`SavedPlan`]: a plan in a file, to be read, handed on, and carried out once.
//!
//! The file is canonical JSON: whoever changes one byte of it has another file, and is told so. It binds to the texts of
//! the runbooks, to the environment and to what its targets are; it expires; the store remembers its digest when it is
//! carried out. Nothing in the file is ever executed: applying it plans again, and goes on only when that gives the same.

use std::collections::BTreeMap;
use std::time::Duration;

use farrier_model::time::Timestamp;
use farrier_model::{BoundPlan, Digest, PlannedRun, Text, Value};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bound::canonical;
use crate::plan::Plan;

/// What the file says it is. A new form gets a new number.
const FORMAT: &str = "farrier-plan/1";
/// How far the clocks of two machines may be apart.
const CLOCKS_APART: Duration = Duration::from_secs(60);

/// Whether a run of this id can be a new one: ids of child runs, and those that follow from a request, are of another form.
fn is_free(run: PlannedRun) -> bool {
    let moment = run.id.0.get_timestamp().map(|moment| moment.to_unix());
    let at = run.started_at.as_millisecond();
    run.id.0.get_version_num() == 7
        && moment.is_some_and(|(seconds, nanoseconds)| {
            i64::try_from(seconds)
                .is_ok_and(|seconds| seconds * 1000 + i64::from(nanoseconds / 1_000_000) == at)
        })
}

/// Whether all runs of a plan were planned in one moment.
fn same_moment(plan: &Plan, run: PlannedRun) -> bool {
    let steps = plan.steps.iter().flat_map(|step| std::iter::once(step).chain(&step.items));
    plan.run.is_none_or(|planned| planned.started_at == run.started_at)
        && steps.filter_map(|step| step.child.as_deref()).all(|child| same_moment(child, run))
}

/// A plan in a file. See the module's page.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SavedPlan {
    /// `farrier-plan/1`.
    pub format: String,
    /// Makes every plan another one, also when it says the same.
    pub id: Uuid,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it is too late to carry it out.
    pub expires_at: Timestamp,
    /// Who made it.
    pub by: String,
    /// The runbook.
    pub runbook: Text,
    /// Digest of the texts of the runbook and of those it can start.
    pub bundle: Digest,
    /// The environment.
    pub environment: Text,
    /// What each target was, by alias, without secrets.
    pub targets: BTreeMap<String, String>,
    /// What would be done.
    pub plan: Plan,
    /// Of everything above: what approvals name, and what is remembered when it is carried out.
    pub digest: Digest,
}

/// Why a file is no plan that can be carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SavedPlanError {
    /// It is something else, or only a part of a plan.
    #[error("it is not a whole plan: {0}")]
    NotAPlan(String),
    /// A version of Farrier wrote it that this one does not know.
    #[error("it has the form `{0}`, and this version reads `{FORMAT}`")]
    Format(String),
    /// What it says is not what its digest is of.
    #[error("it was changed after it was made: its digest is {written}, and that of its content {found}")]
    Changed {
        /// The digest that it names.
        written: String,
        /// The digest of what it says.
        found: String,
    },
}

impl SavedPlan {
    /// A plan made by `by` at `now`, good until `expires_at`.
    ///
    /// # Errors
    /// Never for a plan that the engine made: all of it is data.
    pub fn new(
        plan: Plan,
        bundle: Digest,
        targets: BTreeMap<String, String>,
        by: String,
        (now, expires_at): (Timestamp, Timestamp),
    ) -> Result<SavedPlan, serde_json::Error> {
        let mut saved = SavedPlan {
            format: FORMAT.into(),
            id: Uuid::new_v4(),
            created_at: now,
            expires_at,
            by,
            runbook: plan.runbook.clone(),
            bundle,
            environment: plan.environment.clone(),
            targets,
            plan,
            digest: Digest::of(""),
        };
        saved.digest = saved.content_digest()?;
        Ok(saved)
    }

    /// The file's text.
    ///
    /// # Errors
    /// As [`SavedPlan::new`].
    pub fn to_text(&self) -> Result<String, serde_json::Error> {
        Ok(format!("{}\n", canonical(&serde_json::to_value(self)?)))
    }

    /// Reads a file's text.
    ///
    /// # Errors
    /// It is not a plan, or not as it was written.
    pub fn read(text: &[u8]) -> Result<SavedPlan, SavedPlanError> {
        let not = |error: String| SavedPlanError::NotAPlan(error);
        let json: serde_json::Value = serde_json::from_slice(text).map_err(|error| not(error.to_string()))?;
        match json.get("format").and_then(serde_json::Value::as_str) {
            Some(FORMAT) => {}
            Some(other) => return Err(SavedPlanError::Format(other.to_owned())),
            None => return Err(not("it does not say its `format`".into())),
        }
        let saved: SavedPlan = serde_json::from_value(json).map_err(|error| not(error.to_string()))?;
        if !saved.plan.run.is_none_or(|run| {
            is_free(run) && run.started_at <= saved.created_at && same_moment(&saved.plan, run)
        }) {
            return Err(not("the run that it names is not one that was planned then".into()));
        }
        let found = saved.content_digest().map_err(|error| not(error.to_string()))?;
        // The same data in another spelling is another file: what people read is what the digest is of.
        let spelling = saved.to_text().map_err(|error| not(error.to_string()))?;
        if found != saved.digest || spelling.as_bytes() != text {
            let found = if found == saved.digest { Digest::of(text).to_string() } else { found.to_string() };
            return Err(SavedPlanError::Changed { written: saved.digest.to_string(), found });
        }
        Ok(saved)
    }

    /// Why it cannot be carried out at `now`: it is too late, or too early for what it says of itself.
    pub fn is_out_of_date(&self, now: Timestamp) -> Option<String> {
        if self.expires_at <= now {
            return Some(format!("it expired at {}", self.expires_at));
        }
        // Its moment is what its steps take for the time, and nobody's time of grace ends earlier by it.
        (self.created_at > now + CLOCKS_APART)
            .then(|| format!("it says that it was made at {}, which is yet to come", self.created_at))
    }

    /// The plan as a run is bound to it.
    ///
    /// # Errors
    /// As [`SavedPlan::new`].
    pub fn bind(&self) -> Result<BoundPlan, serde_json::Error> {
        let plan = Value::from_json(&canonical(&serde_json::to_value(&self.plan)?))?;
        Ok(BoundPlan { digest: self.digest, plan, run: self.plan.run })
    }

    fn content_digest(&self) -> Result<Digest, serde_json::Error> {
        let mut json = serde_json::to_value(self)?;
        if let Some(fields) = json.as_object_mut() {
            fields.remove("digest");
        }
        Ok(Digest::of(canonical(&json)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guard::Counts;
    use farrier_model::{NodeName, RunId};

    fn planned(second: i64) -> PlannedRun {
        let started_at = Timestamp::from_second(second).unwrap();
        PlannedRun { id: RunId::at(started_at.as_millisecond(), [7; 10]), started_at }
    }

    fn saved() -> SavedPlan {
        let plan = Plan {
            runbook: "r".into(),
            environment: "lab".into(),
            inputs: Value::map([("size", Value::Int(3)), ("share", Value::Float(0.1))]),
            run: Some(planned(1000)),
            steps: Vec::new(),
            guards: Vec::new(),
            summary: Counts::default(),
            outputs: Value::Null,
            failure: None,
            finished_early: None,
        };
        let at = |second| Timestamp::from_second(second).unwrap();
        let targets = BTreeMap::from([("directory".to_owned(), "ldap://a".to_owned())]);
        SavedPlan::new(plan, Digest::of("texts"), targets, "ada".into(), (at(1000), at(2000))).unwrap()
    }

    #[test]
    fn it_reads_back_as_it_was_written() {
        let saved = saved();
        assert_eq!(SavedPlan::read(saved.to_text().unwrap().as_bytes()), Ok(saved));
    }

    #[test]
    fn every_changed_byte_is_noticed() {
        let text = saved().to_text().unwrap();
        for at in 0..text.len() {
            for with in [b'0', b' ', b'"', b'}'] {
                let mut bytes = text.clone().into_bytes();
                if bytes[at] == with {
                    continue;
                }
                bytes[at] = with;
                assert!(SavedPlan::read(&bytes).is_err(), "byte {at} as {:?}: {text}", with as char);
            }
            assert!(SavedPlan::read(&text.as_bytes()[..at]).is_err(), "cut at {at}");
        }
        assert!(matches!(
            SavedPlan::read(format!(" {text}").as_bytes()),
            Err(SavedPlanError::Changed { .. })
        ));
    }

    #[test]
    fn the_run_is_a_new_one_of_the_plans_moment() {
        let id = planned(1000).id;
        for (run, allowed) in [
            (None, true),
            (Some(planned(1000)), true),
            (Some(planned(999)), true),
            // Its steps would take the future for the present.
            (Some(planned(1001)), false),
            (Some(PlannedRun { id, started_at: planned(999).started_at }), false),
            // Somebody's child, whose parent would take this run for it.
            (Some(PlannedRun { id: id.child(&NodeName::step("call")), ..planned(1000) }), false),
            (Some(PlannedRun { id: RunId::NONE, ..planned(1000) }), false),
        ] {
            let mut saved = saved();
            saved.plan.run = run;
            saved.digest = saved.content_digest().unwrap();
            let read = SavedPlan::read(saved.to_text().unwrap().as_bytes());
            assert_eq!(read.is_ok(), allowed, "{run:?}: {read:?}");
        }
        let at = |second| Timestamp::from_second(second).unwrap();
        assert_eq!(saved().is_out_of_date(at(1999)), None);
        assert!(saved().is_out_of_date(at(2000)).unwrap().contains("it expired"));
        assert_eq!(saved().is_out_of_date(at(950)), None, "clocks are a little apart");
        assert!(saved().is_out_of_date(at(900)).unwrap().contains("yet to come"));
    }

    #[test]
    fn two_plans_that_say_the_same_are_two() {
        assert_ne!(saved().digest, saved().digest);
    }
}
