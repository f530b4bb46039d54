//! [`StandIn`]: scripted answers in the place of a program, for runbook tests and demos.
//!
//! The file says, for inputs, what they change and what comes out. The objects that are changed have a state, which is kept
//! beside the file and compared before it is changed, as a good program does it: so a plan after an apply finds nothing to
//! do, drift is drift, undo brings back, and a probe can tell. A real program has no say in a stand-in.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use farrier_action::ConnectCx;
use farrier_model::{Change, Failure, FailureKind, Fidelity, Value};
use rustix::fs::{FlockOperation, flock};
use serde::Deserialize;

use crate::wire::{Applied, Ask, Plan, Probed, Said, Undone};

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Script {
    /// The first that fits is the answer.
    answers: Vec<Scripted>,
}

/// One answer.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Scripted {
    /// What the step's input must hold; it may hold more.
    #[serde(default)]
    input: BTreeMap<String, Value>,
    /// What is changed where nothing has changed it before.
    #[serde(default)]
    changes: Vec<Change>,
    #[serde(default)]
    output: Value,
    /// It fails instead.
    #[serde(default)]
    fails: Option<Failure>,
}

/// Scripted answers, and what has become of their objects.
#[derive(Debug)]
pub(crate) struct StandIn {
    script: Script,
    /// Object to state; objects that nobody has changed are not in it.
    state: PathBuf,
}

type State = BTreeMap<String, Value>;

impl StandIn {
    pub(crate) fn open(path: &Path, _cx: &ConnectCx) -> Result<StandIn, Failure> {
        let shown = path.display();
        let wrong = |error: &dyn std::fmt::Display| {
            Failure::new(FailureKind::Input, format!("cannot read the scripted answers in {shown}: {error}"))
        };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
        // As in runbooks, `on` and `off` are words.
        let options = serde_saphyr::options! { strict_booleans: true };
        let script: Script =
            serde_saphyr::from_str_with_options(&text, options).map_err(|error| wrong(&error))?;
        let mut state = path.as_os_str().to_owned();
        state.push(".state.json");
        Ok(StandIn { script, state: state.into() })
    }

    pub(crate) fn answer(&self, ask: Ask, input: &Value, changes: &[Change]) -> Result<Said, Failure> {
        let fits = |scripted: &&Scripted| {
            scripted.input.iter().all(|(name, wanted)| input.get(name) == Some(wanted))
        };
        let scripted = self.script.answers.iter().find(fits).ok_or_else(|| {
            Failure::new(FailureKind::Input, format!("no scripted answer fits the input {}", input.to_json()))
        })?;
        if let Some(failure) = &scripted.fails {
            return Err(failure.clone());
        }
        self.locked(|state| {
            let at = |change: &Change| state.get(&*change.object).unwrap_or(&change.before).clone();
            match ask {
                Ask::Plan => {
                    let changes: Vec<Change> = scripted
                        .changes
                        .iter()
                        .map(|change| Change { before: at(change), ..change.clone() })
                        .filter(|change| change.before != change.after)
                        .collect();
                    let plan = Plan {
                        changes,
                        output: Some(scripted.output.clone()),
                        fidelity: Some(Fidelity::Computed),
                        considered: Some(scripted.changes.len() as u64),
                        notes: Vec::new(),
                    };
                    Ok((Said::Planned(Box::new(plan)), None))
                }
                Ask::Probe => {
                    let is =
                        |of: fn(&Change) -> &Value| changes.iter().all(|change| at(change) == *of(change));
                    let probed = match (is(|change| &change.after), is(|change| &change.before)) {
                        (true, _) => Probed::Applied,
                        (_, true) => Probed::NotApplied,
                        _ => Probed::Unknown,
                    };
                    Ok((Said::Probed(probed), None))
                }
                Ask::Apply => {
                    let next = moved(state, changes, |change| (&change.before, &change.after))?;
                    Ok((Said::Applied(Applied { output: scripted.output.clone() }), Some(next)))
                }
                Ask::Undo => {
                    let next = moved(state, changes, |change| (&change.after, &change.before))?;
                    Ok((Said::Undone(Undone {}), Some(next)))
                }
            }
        })
    }

    /// Works on the state while nobody else does, in this process or another one.
    fn locked(
        &self,
        work: impl FnOnce(&State) -> Result<(Said, Option<State>), Failure>,
    ) -> Result<Said, Failure> {
        let broken = |error: &dyn std::fmt::Display| {
            let shown = self.state.display();
            Failure::new(FailureKind::Unreachable, format!("the stand-in's state in {shown}: {error}"))
        };
        let folder = self.state.parent().unwrap_or(Path::new("/"));
        let lock = File::open(folder).map_err(|error| broken(&error))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| broken(&error))?;
        let state: State = match std::fs::read_to_string(&self.state) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| broken(&error))?,
            Err(error) if error.kind() == ErrorKind::NotFound => State::new(),
            Err(error) => return Err(broken(&error)),
        };
        let (said, next) = work(&state)?;
        if let Some(next) = next {
            let text = serde_json::to_string(&next).map_err(|error| broken(&error))?;
            replace(&self.state, text.as_bytes()).map_err(|error| broken(&error))?;
        }
        Ok(said)
    }
}

/// The state after every object went from one value to the other; those that are there already stay.
fn moved(
    state: &State,
    changes: &[Change],
    way: impl Fn(&Change) -> (&Value, &Value),
) -> Result<State, Failure> {
    let mut next = state.clone();
    for change in changes {
        let (from, to) = way(change);
        let now = state.get(&*change.object).unwrap_or(&change.before);
        if now != from && now != to {
            let message = format!("`{}` is not as it was", change.object);
            return Err(Failure::new(FailureKind::Drift, message));
        }
        next.insert((*change.object).to_owned(), to.clone());
    }
    Ok(next)
}

fn replace(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).open(&next)?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&next, path)?;
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}
