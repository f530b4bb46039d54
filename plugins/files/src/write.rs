//! `files.write`.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};

use farrier_action::text::FreeText;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, RenameFlags, Uid, fchmod, fchown, fstat, fsync, renameat_with,
    unlinkat,
};
use rustix::io::Errno;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::place::FilePlace;
use crate::private::{WRITING, make_private, remove};
use crate::store::final_folder;
use crate::strict::{LOOK, create_strict, failed, io_failed, kind_in_words, lock, open_strict};
use crate::target::{Files, FilesTarget};
use crate::walk::reopen;
use crate::work::{Work, do_blocking};

/// Writes one text file: its content, its mode and its owner.
///
/// The new file is prepared in a private folder and takes its place in one step, so nobody reads half of it. A file that
/// changed since it was planned is not replaced, and neither is a link, a folder or a file that is no text. Its former
/// content is recorded in the run, up to 1 MiB, and undo brings it back; so this is not for secrets.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Write {
    /// The target with the file.
    pub(crate) target: Target<FilesTarget>,
    /// The file: a root and a path beneath it. Its folder must be there.
    file: FilePlace,
    /// What it is to hold.
    content: FreeText,
    /// Its permissions in octal digits, such as `"0640"`. Left out, they stay as they are; a new file gets `0644`.
    #[serde(default)]
    mode: Option<String>,
    /// The numbers of its account and group. Left out, they stay as they are; a new file belongs to who writes it.
    #[serde(default)]
    owner: Option<Owner>,
}

/// Whose file it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Owner {
    /// The account's number.
    user: u32,
    /// The group's number.
    group: u32,
}

/// The file as it is now.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Written {
    /// Where it lies.
    pub file: FilePlace,
    /// The SHA-256 of its content.
    pub sha256: String,
}

/// A larger file is not replaced, because its content would have to be recorded.
const MAX_BYTES: u64 = 1 << 20;

/// What can be set and brought back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    content: String,
    mode: String,
    user: u32,
    group: u32,
}

/// A file that was read.
#[derive(Debug, Clone)]
struct Seen {
    state: State,
    /// Which file in which version; a rename does not change it.
    version: String,
}

impl Write {
    fn mode(&self) -> Result<Option<u32>, Failure> {
        let Some(text) = &self.mode else { return Ok(None) };
        match u32::from_str_radix(text, 8) {
            Ok(mode) if mode <= 0o777 && text.len() >= 3 && text.len() <= 4 => Ok(Some(mode)),
            _ => Err(Failure::new(
                FailureKind::Input,
                format!("`mode`: `{}` is not three or four octal digits such as `0644`", text.escape_debug()),
            )
            .help("setuid, setgid and sticky bits cannot be set")),
        }
    }

    fn wanted(&self, now: Option<&Seen>) -> Result<State, Failure> {
        if self.content.0.len() as u64 > MAX_BYTES {
            return Err(Failure::new(
                FailureKind::Input,
                format!("`content` is larger than {MAX_BYTES} bytes"),
            ));
        }
        let mode = self.mode()?.map(shown_mode);
        let kept_mode = now.map(|seen| seen.state.mode.clone());
        let owner = self.owner.map(|owner| (owner.user, owner.group));
        let kept_owner = now.map(|seen| (seen.state.user, seen.state.group));
        let own = || (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        let (user, group) = owner.or(kept_owner).unwrap_or_else(own);
        Ok(State {
            content: self.content.0.clone(),
            mode: mode.or(kept_mode).unwrap_or_else(|| shown_mode(0o644)),
            user,
            group,
        })
    }

    fn look(&self, files: &Files) -> Result<Planned<Written>, Failure> {
        let root = files.open(&self.file.root)?;
        let (folder, name) = final_folder(&root, &self.file)?;
        let now = read_file(&folder, name, &self.file)?;
        let wanted = self.wanted(now.as_ref())?;
        let output = Written {
            file: self.file.clone(),
            sha256: hex::encode(Sha256::digest(wanted.content.as_bytes())),
        };
        let count = usize::from(now.is_some());
        if now.as_ref().is_some_and(|seen| seen.state == wanted) {
            return Ok(Planned::known(output).considered(count));
        }
        let change = Change {
            object: self.file.to_string().into(),
            kind: if now.is_some() { ChangeKind::Update } else { ChangeKind::Create },
            before: now.as_ref().map_or(Ok(Value::Null), |seen| as_value(&seen.state))?,
            after: as_value(&wanted)?,
            fingerprint: now.map(|seen| seen.version.into()),
        };
        Ok(Planned::changes(vec![change], output).considered(count))
    }

    /// Brings the file from one state to another, comparing on the way. `version` is compared as well when known.
    fn bring(
        &self,
        work: &Work,
        files: &Files,
        effect: &str,
        from: Option<&State>,
        to: Option<&State>,
        version: Option<&str>,
    ) -> Result<(), Failure> {
        let root = files.open(&self.file.root)?;
        let (folder, name) = final_folder(&root, &self.file)?;
        let now = read_file(&folder, name, &self.file)?;
        if now.as_ref().map(|seen| &seen.state) == to {
            return Ok(());
        }
        let is_from = now.as_ref().map(|seen| &seen.state) == from
            && version.is_none_or(|version| now.as_ref().is_some_and(|seen| seen.version == version));
        if !is_from {
            return Err(self.drift());
        }
        let writing = make_private(&root, WRITING)?;
        lock(work, &writing, format_args!("the writing of files beneath `{}`", self.file.root))?;
        // Of an attempt that was cut off.
        remove(&writing, effect)?;
        work.point("before the new file")?;
        match (now, to) {
            (None, None) => {}
            (None, Some(to)) => {
                self.prepare(&writing, effect, to)?;
                work.point("new file is ready")?;
                renameat_with(&writing, effect, &folder, name, RenameFlags::NOREPLACE).map_err(|error| {
                    match error {
                        Errno::EXIST => self.drift(),
                        error => self.cannot("write", error),
                    }
                })?;
            }
            (Some(now), Some(to)) => {
                self.prepare(&writing, effect, to)?;
                work.point("new file is ready")?;
                self.swap(&writing, effect, &folder, name, &now, RenameFlags::EXCHANGE)?;
            }
            (Some(now), None) => {
                self.swap(&writing, effect, &folder, name, &now, RenameFlags::NOREPLACE)?;
            }
        }
        work.point("file is in place")?;
        fsync(&folder).map_err(|error| self.cannot("make durable", error))?;
        remove(&writing, effect)
    }

    /// Takes the file out of its place, in exchange for the new one or for nothing, and looks whether it is the one that
    /// was meant. If not, both go back.
    fn swap(
        &self,
        writing: &OwnedFd,
        effect: &str,
        folder: &OwnedFd,
        name: &str,
        meant: &Seen,
        how: RenameFlags,
    ) -> Result<(), Failure> {
        renameat_with(folder, name, writing, effect, how).map_err(|error| match error {
            Errno::NOENT => self.drift(),
            error => self.cannot("replace", error),
        })?;
        match read_file(writing, effect, &self.file) {
            Ok(Some(out)) if out.version == meant.version && out.state == meant.state => {
                match unlinkat(writing, effect, AtFlags::empty()) {
                    Ok(()) | Err(Errno::NOENT) => Ok(()),
                    Err(error) => Err(self.cannot("remove the former", error)),
                }
            }
            _ => {
                renameat_with(writing, effect, folder, name, how)
                    .map_err(|error| self.cannot("put back", error))?;
                Err(self.drift())
            }
        }
    }

    fn prepare(&self, writing: &OwnedFd, effect: &str, state: &State) -> Result<(), Failure> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        let file = create_strict(writing, effect, flags, Mode::RUSR | Mode::WUSR)
            .map_err(|error| self.cannot("prepare", error))?;
        let mut file = File::from(file);
        file.write_all(state.content.as_bytes())
            .map_err(|error| io_failed(format_args!("cannot write `{}`", self.file), &error))?;
        let mode = u32::from_str_radix(&state.mode, 8)
            .map_err(|_| Failure::new(FailureKind::Internal, format!("`{}` is no mode", state.mode)))?;
        // The owner first: giving a file away takes bits off its mode.
        fchown(&file, Some(Uid::from_raw(state.user)), Some(Gid::from_raw(state.group)))
            .and_then(|()| fchmod(&file, Mode::from_raw_mode(mode & 0o777)))
            .map_err(|error| self.cannot("set owner and mode of", error))?;
        file.sync_all().map_err(|error| io_failed(format_args!("cannot write `{}`", self.file), &error))
    }

    fn cannot(&self, what: &str, error: Errno) -> Failure {
        failed(format_args!("cannot {what} `{}`", self.file), error)
    }

    fn drift(&self) -> Failure {
        Failure::new(
            FailureKind::Drift,
            format!("`{}` is not as the plan saw it; it was left alone", self.file),
        )
    }
}

fn shown_mode(mode: u32) -> String {
    format!("{mode:04o}")
}

/// Reads a text file without following anything; nothing when there is none.
fn read_file(folder: &OwnedFd, name: &str, file: &FilePlace) -> Result<Option<Seen>, Failure> {
    let cannot = |error| failed(format_args!("cannot read `{file}`"), error);
    let refused =
        |why: String| Failure::new(FailureKind::Refused, format!("`{file}` is not replaced: {why}"));
    let fd = match open_strict(folder, name, LOOK) {
        Ok(fd) => fd,
        Err(Errno::NOENT) => return Ok(None),
        Err(error) => return Err(cannot(error)),
    };
    let stat = fstat(&fd).map_err(cannot)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(refused(format!("it is {}, not a regular file", kind_in_words(&stat))));
    }
    if stat.st_size as u64 > MAX_BYTES {
        return Err(refused(format!(
            "it is larger than {MAX_BYTES} bytes, which are too many to be recorded"
        )));
    }
    if stat.st_mode & 0o7000 != 0 {
        return Err(refused("it has a setuid, setgid or sticky bit".into()));
    }
    let opened = reopen(fd.as_fd()).map_err(cannot)?;
    let mut bytes = Vec::new();
    File::from(opened)
        .take(MAX_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| io_failed(format_args!("cannot read `{file}`"), &error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(refused(format!(
            "it is larger than {MAX_BYTES} bytes, which are too many to be recorded"
        )));
    }
    let digest = hex::encode(Sha256::digest(&bytes));
    let content = String::from_utf8(bytes).map_err(|_| refused("it is no text".into()))?;
    let version =
        format!("{}:{}:{}.{:09}:{digest}", stat.st_dev, stat.st_ino, stat.st_mtime, stat.st_mtime_nsec);
    let state =
        State { content, mode: shown_mode(stat.st_mode & 0o7777), user: stat.st_uid, group: stat.st_gid };
    Ok(Some(Seen { state, version }))
}

fn as_value(state: &State) -> Result<Value, Failure> {
    Value::of(state)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("the file's state: {error}")))
}

fn as_state(value: &Value) -> Result<Option<State>, Failure> {
    match value {
        Value::Null => Ok(None),
        value => value.read().map(Some).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("the plan does not say how the file was: {error}"))
        }),
    }
}

impl Action for Write {
    const NAME: &'static str = "files.write";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
flag:
  uses: files.write
  with:
    target: homes
    file: { root: tool_homes, path: [example, k8s.disabled] }
    content: disabled for maintenance
    mode: \"0644\"
    owner: { user: 0, group: 0 }
  undo: restore
";
    type Output = Written;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Written>, Failure> {
        self.wanted(None)?;
        let files = cx.reader(&self.target).await?;
        let this = self.clone();
        do_blocking(move |_| this.look(&files)).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Written, Failure> {
        let files = cx.writer(&self.target).await?;
        let (this, changes, effect) = (self.clone(), changes.to_vec(), cx.node().effect_id.clone());
        do_blocking(move |work| {
            for change in &changes {
                let (from, to) = (as_state(&change.before)?, as_state(&change.after)?);
                this.bring(work, &files, &effect, from.as_ref(), to.as_ref(), change.fingerprint.as_deref())?;
            }
            let sha256 = hex::encode(Sha256::digest(this.content.0.as_bytes()));
            Ok(Written { file: this.file.clone(), sha256 })
        })
        .await
        .map_err(|failure| failure.at(self.target.alias()))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let files = cx.writer(&self.target).await?;
        let (this, changes, effect) = (self.clone(), changes.to_vec(), cx.node().effect_id.clone());
        do_blocking(move |work| {
            changes.iter().rev().try_for_each(|change| {
                let (before, after) = (as_state(&change.before)?, as_state(&change.after)?);
                this.bring(work, &files, &effect, after.as_ref(), before.as_ref(), None)
            })
        })
        .await
        .map_err(|failure| failure.at(self.target.alias()))
    }
}
