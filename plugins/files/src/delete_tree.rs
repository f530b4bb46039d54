//! `files.delete_tree`.

use farrier_action::{Action, Planned, Probe, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::archive::{fingerprint, is_digest, planned_identity};
use crate::count::count_tree;
use crate::place::{Segments, TreePlace};
use crate::quarantine::{Quarantine, same};
use crate::remove::{Deletion, Standing, archived_as, delete, standing};
use crate::strict::{FOLDER, failed, open_strict};
use crate::target::{Files, FilesTarget};
use crate::walk::MAX_ENTRIES;
use crate::work::{Work, do_blocking, do_telling};

/// Deletes a tree that `files.archive` took out of its place.
///
/// Immediately before the first file goes, the archive is read from disk and its digest compared; without it nothing is
/// deleted. A deletion that was cut off goes on when it is tried again. What cannot be deleted, such as an immutable
/// file, fails the step with its path, after everything else is gone. Something that has taken the tree's place in the
/// meantime is never touched, and fails the step.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteTree {
    /// The target with the tree.
    pub(crate) target: Target<FilesTarget>,
    /// The tree's place, before it was archived.
    tree: TreePlace,
    /// The SHA-256 of its archive, from `files.archive` or better from `files.check_archive`.
    archived_as: String,
    /// Files and folders of the tree that may be immutable or append-only (`chattr +i`, `+a`), and are deleted all the
    /// same: each a path, as a list of segments. One that is not there is no error.
    #[serde(default)]
    clear_immutable: Vec<Segments>,
}

/// What was deleted.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeletedTree {
    /// The tree's place.
    pub tree: String,
    /// How many entries went, in the attempt that came to the end. Zero when all was gone before.
    pub deleted: u64,
}

impl DeleteTree {
    fn check(&self) -> Result<String, Failure> {
        if is_digest(&self.archived_as) {
            return Ok(self.archived_as.to_ascii_lowercase());
        }
        let message = "`archived_as` is not a SHA-256 in hexadecimal digits";
        Err(Failure::new(FailureKind::Input, message)
            .help("give the `sha256` of the step that archived the tree"))
    }

    fn look(&self, work: &Work, files: &Files, sha256: &str) -> Result<Planned<DeletedTree>, Failure> {
        let root = files.open(&self.tree.root)?;
        let record = archived_as(&root, &self.tree, sha256)?;
        let output = DeletedTree { tree: self.tree.to_string(), deleted: 0 };
        if standing(work, &root, &self.tree, &record)? == Standing::Gone {
            return Ok(Planned::known(output));
        }
        let mut notes = Vec::new();
        if let Some(quarantine) = Quarantine::open(work, &root, &record.effect)? {
            let left = open_strict(&quarantine.folder, ".", FOLDER)
                .map_err(|error| failed("cannot look into the quarantine", error))?;
            let mut size = count_tree(work, &left, ".", MAX_ENTRIES)?;
            // The quarantine's own folder is no part of the tree.
            size.folders = size.folders.saturating_sub(1);
            notes.push(size.in_words(&self.tree.to_string()));
            if quarantine.is_deleting()? {
                notes.push("an earlier attempt has deleted a part of it".into());
            }
        }
        if record.manifest.not_stored > 0 {
            let first = record.manifest.first_not_stored.first();
            let first = first.map(|first| format!("; the first: `{}`: {}", first.path, first.why));
            notes.push(format!(
                "{} of its entries are not in the archive{}",
                record.manifest.not_stored,
                first.unwrap_or_default()
            ));
        }
        if record.manifest.changed > 0 {
            notes.push(format!("{} files changed while they were archived", record.manifest.changed));
        }
        let change = Change {
            object: self.tree.to_string().into(),
            kind: ChangeKind::Delete,
            before: Value::map([
                ("in", Value::text(crate::private::QUARANTINE)),
                ("owner", Value::Int(record.identity.owner.into())),
                ("archive", Value::text(record.archive.to_string())),
                ("sha256", Value::text(sha256)),
            ]),
            after: Value::Null,
            fingerprint: Some(fingerprint(record.identity)),
        };
        let planned = Planned::changes(vec![change], output).unknown("deleted").considered(1);
        Ok(Planned { notes, ..planned })
    }

    /// The work as plain data.
    pub(crate) fn job(&self, files: &Files, changes: &[Change]) -> Result<Deletion, Failure> {
        let tree_root = files.open(&self.tree.root)?;
        let record = archived_as(&tree_root, &self.tree, &self.check()?)?;
        let planned = planned_identity(changes, &self.tree.to_string())?;
        same(&self.tree, record.identity, planned)?;
        let archive_root = files.open(&record.archive.root)?;
        let (tree, clear_immutable) = (self.tree.clone(), self.clear_immutable.clone());
        Ok(Deletion { tree, tree_root, archive_root, record, clear_immutable })
    }
}

impl Action for DeleteTree {
    const NAME: &'static str = "files.delete_tree";
    const EFFECT: Effect = Effect::Probed;
    const RISK: Risk = Risk::Destructive;
    const DELETES: bool = true;
    const EXAMPLE: &'static str = "\
delete_home:
  uses: files.delete_tree
  needs: [checked]
  with:
    target: homes
    tree: { root: tool_homes, path: [example] }
    archived_as: ${ steps.checked.sha256 }
    clear_immutable: [[replica.my.cnf]]
  retry: { attempts: 10, backoff: 5s..15m }
  undo: none
";
    type Output = DeletedTree;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<DeletedTree>, Failure> {
        let sha256 = self.check()?;
        let files = cx.reader(&self.target).await?;
        let this = self.clone();
        do_blocking(move |work| this.look(work, &files, &sha256))
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<DeletedTree, Failure> {
        let files = cx.writer(&self.target).await?;
        let (this, changes) = (self.clone(), changes.to_vec());
        let deleted = do_telling(cx, move |work| delete(work, &this.job(&files, &changes)?))
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        Ok(DeletedTree { tree: self.tree.to_string(), deleted })
    }

    async fn probe(&self, cx: &ReadCx, _changes: &[Change]) -> Result<Probe, Failure> {
        let sha256 = self.check()?;
        let files = cx.reader(&self.target).await?;
        let this = self.clone();
        let standing = do_blocking(move |work| {
            let root = files.open(&this.tree.root)?;
            let record = archived_as(&root, &this.tree, &sha256)?;
            standing(work, &root, &this.tree, &record)
        });
        match standing.await.map_err(|failure| failure.at(self.target.alias()))? {
            Standing::Gone => Ok(Probe::Applied),
            // A part may be gone; deleting the rest is what applying again does.
            Standing::Left => Ok(Probe::NotApplied),
        }
    }
}
