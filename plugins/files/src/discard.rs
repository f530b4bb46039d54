//! `files.discard`.

use std::collections::BTreeSet;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::deposit::{Receipt, in_place, made, take_away};
use crate::target::{Files, FilesTarget};
use crate::work::{Work, do_blocking};

/// Removes files that earlier steps made beneath a root and that are not needed any more, such as the dumps of databases that
/// an archive holds by now.
///
/// Each is named by its SHA-256, as the step that made it gave it: nothing else beneath the root can be removed. Planning and
/// applying read the file to its last byte; one that is not what was written stays, and fails the step. One that is gone is
/// done. Folders that were made for the file go with the last one in them.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Discard {
    /// The target with the files.
    pub(crate) target: Target<FilesTarget>,
    /// The root beneath which they were made.
    root: String,
    /// The SHA-256 of each.
    made_as: Vec<String>,
}

/// What `files.discard` removed.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Discarded {
    /// The places of those that were there and are removed.
    discarded: Vec<String>,
    /// The SHA-256 of those that were gone already.
    missing: Vec<String>,
}

impl Discard {
    fn look(&self, work: &Work, files: &Files) -> Result<Planned<Discarded>, Failure> {
        let (mut changes, mut output) =
            (Vec::new(), Discarded { discarded: Vec::new(), missing: Vec::new() });
        for (sha256, found) in self.found(work, files)? {
            let Some(receipt) = found else {
                output.missing.push(sha256);
                continue;
            };
            let place = receipt.shown();
            changes.push(Change {
                object: place.as_str().into(),
                kind: ChangeKind::Delete,
                before: Value::map([
                    ("bytes", Value::Int(i64::try_from(receipt.file.bytes).unwrap_or(i64::MAX))),
                    ("sha256", Value::text(sha256.as_str())),
                ]),
                after: Value::Null,
                fingerprint: Some(sha256.into()),
            });
            output.discarded.push(place);
        }
        let considered = changes.len();
        Ok(Planned::changes(changes, output).considered(considered))
    }

    /// Each digest with the file that has it.
    fn found(&self, work: &Work, files: &Files) -> Result<Vec<(String, Option<Receipt>)>, Failure> {
        let root = files.open(&self.root)?;
        let mut seen = BTreeSet::new();
        let mut found = Vec::new();
        for sha256 in &self.made_as {
            let sha256 = sha256.to_ascii_lowercase();
            // Two databases without anything in them may have the same dump.
            if seen.insert(sha256.clone()) {
                let receipt = made(work, &root, &self.root, &sha256)?.ok();
                if let Some(receipt) = &receipt
                    && !in_place(&root, receipt)?
                {
                    let message =
                        format!("`{}` is a copy of what was made; it was left alone", receipt.shown());
                    return Err(Failure::new(FailureKind::Drift, message));
                }
                found.push((sha256, receipt));
            }
        }
        Ok(found)
    }

    fn remove(&self, work: &Work, files: &Files, changes: &[Change]) -> Result<Discarded, Failure> {
        let root = files.open(&self.root)?;
        let mut output = Discarded { discarded: Vec::new(), missing: Vec::new() };
        // The first of them came with the folder that they share.
        for (sha256, found) in self.found(work, files)?.into_iter().rev() {
            let Some(receipt) = found else {
                output.missing.push(sha256);
                continue;
            };
            let place = receipt.shown();
            if !changes.iter().any(|change| *change.object == *place) {
                let message = format!("`{place}` was not there when the plan was made; it was left alone");
                return Err(Failure::new(FailureKind::Drift, message));
            }
            take_away(work, &root, receipt.effect(), &place)?;
            output.discarded.push(place);
        }
        Ok(output)
    }
}

impl Action for Discard {
    const NAME: &'static str = "files.discard";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Destructive;
    const DELETES: bool = true;
    const EXAMPLE: &'static str = "\
discard_dumps:
  uses: files.discard
  needs: [dump]
  with:
    target: homes
    root: staging
    made_as: [\"${ steps.dump.sha256 }\"]
  undo: none
";
    type Output = Discarded;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Discarded>, Failure> {
        let files = cx.reader(&self.target).await?;
        let this = self.clone();
        do_blocking(move |work| this.look(work, &files))
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Discarded, Failure> {
        let files = cx.writer(&self.target).await?;
        let (this, changes) = (self.clone(), changes.to_vec());
        do_blocking(move |work| this.remove(work, &files, &changes))
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}
