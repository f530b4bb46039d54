//! `files.archive`.

use std::sync::Arc;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value, ids};
use rustix::fs::fstatvfs;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::count::count_tree;
use crate::manifest::Manifest;
use crate::pack::Format;
use crate::place::{FilePlace, Segments, TreeName, TreePlace};
use crate::private::QUARANTINE;
use crate::quarantine::{Quarantine, open_tree};
use crate::store::{self, Added, Job, Record, final_folder, is_named, made_by, must_be_free};
use crate::strict::Identity;
use crate::target::{Files, FilesTarget};
use crate::usage::human;
use crate::walk::MAX_ENTRIES;
use crate::work::{Work, do_blocking, do_telling};

/// Takes a tree out of its place and stores it as a compressed tar archive.
///
/// First the tree is moved, as it is and in one step, into a private folder of its root, so that nobody meets it half
/// archived. Where the environment says where its root has `snapshots`, the step then waits for one that has the tree
/// there, and works with that. Then it is packed, read back and compared, and only then the archive gets its name, which must be free. A
/// step that was cut off goes on when it is tried again and never makes a second archive. Undo moves the tree back and
/// removes the archive that this step made. `files.delete_tree` deletes the tree for good.
///
/// The owner of a tree decides what lies in it, so nothing in it is trusted: no link is followed, no pipe, socket or
/// device opened, no other file system entered. Not stored, but listed in the archive's manifest, are sockets, files of
/// other owners that have other names as well, and what lies more than 256 folders deep or has a path of more than 4095
/// bytes. What grows or shrinks while it is read is cut off or filled up, and marked. Anything else that cannot be read
/// fails the step. Owners, modes and times (to the second) are stored; extended attributes and access lists are not.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Archive {
    /// The target with the folders.
    pub(crate) target: Target<FilesTarget>,
    /// The tree: a folder directly beneath a root, and whose it must be.
    source: Source,
    /// Files to be stored beside the tree, such as dumps of its databases; each is compared with its digest, if given.
    #[serde(default)]
    add: Vec<AddedFile>,
    /// Where the archive goes. Its name says how it is compressed: `.tgz` and `.tar.gz` by gzip, `.tar.zst` and `.tzst` by
    /// zstd.
    into: Into,
    /// A tree with more bytes of content fails the step.
    #[serde(default = "default_max_bytes")]
    max_bytes: u64,
    /// A tree with more entries fails the step; ten million at most.
    #[serde(default = "default_max_entries")]
    max_entries: u64,
}

fn default_max_bytes() -> u64 {
    1 << 40
}

fn default_max_entries() -> u64 {
    MAX_ENTRIES
}

/// A tree and its owner.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Source {
    /// The root, one of those that the environment names.
    root: String,
    /// The folder's name: one segment of small letters, digits, `-` and `_`, 63 at most.
    path: TreeName,
    /// The number of the account that owns it. A folder of another owner is refused: the name may have a new holder.
    owner: u32,
}

/// A file that another step made.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct AddedFile {
    /// The target it lies in, which must be this step's.
    #[serde(default)]
    target: Option<String>,
    /// The root.
    root: String,
    /// The path beneath it, as a list of segments.
    path: Segments,
    /// The digest that it must have.
    #[serde(default)]
    sha256: Option<String>,
    /// Its size; not compared, since the digest tells more.
    #[serde(default)]
    #[expect(dead_code, reason = "steps that make files say it beside the digest")]
    bytes: Option<u64>,
}

/// The archive's place.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Into {
    /// The root.
    root: String,
    /// The path beneath it, as a list of segments. Its folder must be there.
    path: Segments,
    /// What if something has that name: `fail`. No archive is ever overwritten.
    #[serde(default)]
    #[expect(
        dead_code,
        reason = "there is one answer, and writing it down is for the reader of the runbook"
    )]
    if_exists: IfExists,
}

/// What happens when the name is taken.
#[derive(Debug, Clone, Copy, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum IfExists {
    /// The step fails.
    #[default]
    Fail,
}

/// The archive that was made.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Archived {
    /// Where it lies.
    pub file: FilePlace,
    /// The SHA-256 of the compressed file.
    pub sha256: String,
    /// The size of the compressed file.
    pub bytes: u64,
    /// What it holds, in sum. The whole list is the last member of the archive, `_manifest.jsonl`.
    pub manifest: Manifest,
}

impl Archive {
    fn tree(&self) -> TreePlace {
        TreePlace { root: self.source.root.clone(), path: self.source.path.clone() }
    }

    fn into(&self) -> FilePlace {
        FilePlace { root: self.into.root.clone(), path: self.into.path.clone() }
    }

    fn format(&self) -> Result<Format, Failure> {
        let into = self.into();
        let (_, name) = into.split();
        Format::of_name(name).ok_or_else(|| {
            Failure::new(FailureKind::Input, format!("`into.path`: `{name}` does not end as an archive does"))
                .help("end it in `.tgz`, `.tar.gz`, `.tar.zst` or `.tzst`")
        })
    }

    /// What needs no look at the disk.
    fn check(&self) -> Result<Format, Failure> {
        let input = |message: String| Err(Failure::new(FailureKind::Input, message));
        for (position, added) in self.add.iter().enumerate() {
            if added.target.as_ref().is_some_and(|target| target != self.target.alias()) {
                return input(format!("`add[{position}].target`: files of `{}` only", self.target.alias()));
            }
            if added.sha256.as_ref().is_some_and(|digest| !is_digest(digest)) {
                return input(format!("`add[{position}].sha256` is not a SHA-256 in hexadecimal digits"));
            }
        }
        if self.max_entries == 0 || self.max_entries > MAX_ENTRIES {
            return input(format!("`max_entries` is {}, not 1 to {MAX_ENTRIES}", self.max_entries));
        }
        self.format()
    }

    /// The work as plain data.
    pub(crate) fn job(&self, files: &Files, effect: &str, planned: Identity) -> Result<Job, Failure> {
        let mut add = Vec::new();
        for added in &self.add {
            add.push(Added {
                root: files.open(&added.root)?,
                file: FilePlace { root: added.root.clone(), path: added.path.clone() },
                sha256: added.sha256.clone(),
            });
        }
        Ok(Job {
            effect: effect.to_owned(),
            tree: self.tree(),
            tree_root: files.open(&self.source.root)?,
            planned,
            into: self.into(),
            into_root: files.open(&self.into.root)?,
            format: self.format()?,
            add,
            snapshots: files.snapshots(&self.source.root)?,
            max_bytes: self.max_bytes,
            max_entries: self.max_entries,
        })
    }

    fn changes(&self, identity: Identity, format: Format) -> Vec<Change> {
        let (tree, into) = (self.tree(), self.into());
        let add =
            self.add.iter().map(|added| Value::text(format!("{}/{}", added.root, added.path))).collect();
        let mut after =
            vec![("of", Value::text(tree.to_string())), ("compressed", Value::text(format.name()))];
        if !self.add.is_empty() {
            after.push(("added", Value::list(add)));
        }
        vec![
            Change {
                object: tree.to_string().into(),
                kind: ChangeKind::Update,
                before: placed(&tree.root, identity),
                after: placed(QUARANTINE, identity),
                fingerprint: Some(fingerprint(identity)),
            },
            Change {
                object: into.to_string().into(),
                kind: ChangeKind::Create,
                before: Value::Null,
                after: Value::map(after),
                fingerprint: None,
            },
        ]
    }

    /// Reads the world; writes nothing.
    fn look(
        &self,
        work: &Work,
        files: &Files,
        effect: &str,
        format: Format,
    ) -> Result<Planned<Archived>, Failure> {
        let (tree, into) = (self.tree(), self.into());
        let tree_root = files.open(&tree.root)?;
        let into_root = files.open(&into.root)?;
        let mut notes = Vec::new();
        // Who only plans, on a machine of their own, need not be able to look into private folders.
        let made = visible(made_by(&into_root, effect), &mut notes)?.flatten();
        if let Some(record) = made
            && is_named(&into_root, &record)?
        {
            return Ok(Planned { notes, ..Planned::known(archived(record)) });
        }
        let taken = match visible(Quarantine::open(work, &tree_root, effect), &mut notes)?.flatten() {
            Some(quarantine) => quarantine.tree(&tree)?,
            None => None,
        };
        let was_taken = taken.is_some();
        let found = if was_taken { taken } else { open_tree(&tree_root, &tree)? };
        let Some((folder, identity)) = found else {
            return Err(Failure::new(FailureKind::Refused, format!("there is no `{tree}` to be archived"))
                .help("an archive of nothing would look like one of everything; was it archived by another run?"));
        };
        let owner = files.said_owner(&tree.root, &tree.path.0).unwrap_or(identity.owner);
        if owner != self.source.owner {
            let message = format!("`{tree}` belongs to {owner}, not to {}", self.source.owner);
            return Err(Failure::new(FailureKind::Refused, message));
        }
        let (parent, name) = final_folder(&into_root, &into)?;
        must_be_free(&parent, name, &into)
            .map_err(|failure| Failure { kind: FailureKind::Refused, ..failure })?;
        let size = count_tree(work, &folder, &tree.path.0, self.max_entries)?;
        notes.push(size.in_words(&tree.to_string()));
        if size.stored > self.max_bytes {
            let message = format!("`{tree}` holds {}, more than `max_bytes`", human(size.stored));
            return Err(Failure::new(FailureKind::Limit, message));
        }
        if let Ok(space) = fstatvfs(&parent) {
            let free = space.f_bavail.saturating_mul(space.f_frsize);
            if free < size.stored {
                notes.push(format!(
                    "`{}` has {} free, and the tree may need up to {} there",
                    into.root,
                    human(free),
                    human(size.stored)
                ));
            }
        }
        if let Some(snapshots) = files.snapshots(&tree.root)? {
            let at = snapshots.shown();
            let held = snapshots.holding(effect, &tree, identity)?.filter(|_| was_taken);
            notes.push(match held {
                Some(held) => format!("the archive will be made from the snapshot `{}` in {at}", held.name),
                None => format!("the archive will be made from a snapshot in {at}, a new one"),
            });
        }
        if was_taken {
            notes.push(format!("`{tree}` is already out of its place: an earlier attempt took it"));
        }
        let output = Archived {
            file: into,
            sha256: String::new(),
            bytes: 0,
            manifest: Manifest {
                entries: 0,
                files: 0,
                bytes: 0,
                members: String::new(),
                sha256: String::new(),
                not_stored: 0,
                changed: 0,
                first_not_stored: Vec::new(),
                snapshot: None,
            },
        };
        let planned = Planned::changes(self.changes(identity, format), output);
        Ok(Planned { notes, ..planned.unknown("sha256").unknown("bytes").unknown("manifest").considered(1) })
    }
}

/// Something in a private folder, or a remark that it could not be looked at.
fn visible<T>(found: Result<T, Failure>, notes: &mut Vec<String>) -> Result<Option<T>, Failure> {
    match found {
        Err(failure) if failure.kind == FailureKind::Denied || !rustix::process::geteuid().is_root() => {
            notes.push(format!("{failure}: whether this step was begun before is not known"));
            Ok(None)
        }
        other => other.map(Some),
    }
}

pub(crate) fn is_digest(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn archived(record: Record) -> Archived {
    let Record { archive, sha256, bytes, manifest, .. } = record;
    Archived { file: archive, sha256, bytes, manifest }
}

fn placed(place: &str, identity: Identity) -> Value {
    Value::map([("in", Value::text(place)), ("owner", Value::Int(identity.owner.into()))])
}

/// Which folder it is: what apply compares with.
pub(crate) fn fingerprint(identity: Identity) -> farrier_model::Text {
    format!("{}:{}:{}", identity.device, identity.inode, identity.owner).into()
}

/// Reads back what [`fingerprint`] wrote.
pub(crate) fn planned_identity(changes: &[Change], object: &str) -> Result<Identity, Failure> {
    let fingerprint = changes
        .iter()
        .find(|change| &*change.object == object)
        .and_then(|change| change.fingerprint.as_deref());
    let mut numbers = fingerprint.unwrap_or_default().split(':').map(str::parse::<u64>);
    match (numbers.next(), numbers.next(), numbers.next(), numbers.next()) {
        (Some(Ok(device)), Some(Ok(inode)), Some(Ok(owner)), None) => {
            Ok(Identity { device, inode, owner: owner as u32 })
        }
        _ => Err(Failure::new(
            FailureKind::Internal,
            format!("the plan does not say which folder `{object}` is"),
        )),
    }
}

impl Action for Archive {
    const NAME: &'static str = "files.archive";
    const EFFECT: Effect = Effect::Keyed;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
archive:
  uses: files.archive
  with:
    target: homes
    source: { root: tool_homes, path: [example], owner: 52503 }
    add:
      - { root: staging, path: [tools.example, s52503__data.sql.zst] }
    into: { root: archives, path: [example.tgz], if_exists: fail }
  timeout: 12h
  undo: restore
";
    type Output = Archived;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Archived>, Failure> {
        let format = self.check()?;
        let files = cx.reader(&self.target).await?;
        let (this, effect) = (self.clone(), effect_of(cx));
        do_blocking(move |work| this.look(work, &files, &effect, format))
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Archived, Failure> {
        let files = cx.writer(&self.target).await?;
        let planned = planned_identity(changes, &self.tree().to_string())?;
        let (this, effect) = (self.clone(), effect_of(cx));
        do_telling(cx, move |work| store::make(work, &this.job(&files, &effect, planned)?))
            .await
            .map(archived)
            .map_err(|failure| failure.at(self.target.alias()))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let files: Arc<Files> = cx.writer(&self.target).await?;
        let planned = planned_identity(changes, &self.tree().to_string())?;
        let (this, effect) = (Archive { add: Vec::new(), ..self.clone() }, effect_of(cx));
        do_blocking(move |work| store::unmake(work, &this.job(&files, &effect, planned)?))
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

/// The id of what the step does, which undoing needs as well: it has an id of its own.
fn effect_of(cx: &ReadCx) -> String {
    ids::effect_id(cx.node().run, &cx.node().node, "do")
}
