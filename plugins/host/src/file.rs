//! `host.file`.

use std::collections::BTreeMap;

use farrier_action::duration::Length;
use farrier_action::text::Literal;
use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fan_out::{Pace, Share, fan_out, silent, telling};
use crate::hosts::Names;
use crate::marks::Marks;
use crate::target::{Choice, Host, HostTarget};
use crate::transport::RemoteFile;

/// The longest file, in bytes: plans and journals hold its content.
const LONGEST: usize = 256 << 10;

/// Gives a small text file its content, or removes it.
///
/// The file is replaced whole, and only if it is as the plan saw it. It must be a regular file, in a folder that only its
/// owner and root may change. Plans and journals hold the content, so it must not be secret.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct File {
    /// The machines.
    target: Target<HostTarget>,
    /// The name of a host, or a list of names. Left out where the target is a single machine.
    #[serde(default)]
    hosts: Option<Names>,
    /// A set of hosts, instead of `hosts`, as in `host.run`.
    #[serde(default)]
    select: Option<Literal>,
    /// Names, or lists of names, that `select` knows as `@NAME`, as in `host.run`.
    #[serde(default)]
    sets: BTreeMap<String, Names>,
    /// Hosts to leave out of the set.
    #[serde(default)]
    except: Option<Names>,
    /// The file, an absolute path without `..`.
    path: String,
    /// Its content, at most 256 KiB.
    #[serde(default)]
    content: Option<String>,
    /// Removes the file, instead of `content`.
    #[serde(default)]
    absent: bool,
    /// Who may read and write it, in octal digits such as `0640`. Left out, it stays as it is; for a new file `0644`.
    #[serde(default)]
    mode: Option<String>,
    /// Its owner. Left out, it stays as it is; for a new file the account that Farrier uses.
    #[serde(default)]
    owner: Option<String>,
    /// Its group, in the same way.
    #[serde(default)]
    group: Option<String>,
    /// How many hosts at once: a number or a share such as `30%`. The default is 32.
    #[serde(default)]
    batch: Option<Share>,
    /// The next batch begins only when all of the one before is done.
    #[serde(default)]
    whole_batches: bool,
    /// A pause after each host before the next takes its place; with `whole_batches`, between batches.
    #[serde(default)]
    pause: Option<Length>,
}

/// Where the file was written.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Written {
    /// The hosts where it changed.
    changed: Vec<String>,
}

impl Action for File {
    const NAME: &'static str = "host.file";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
maintenance:
  uses: host.file
  with:
    target: nodes
    select: tools-bastion-[14-15]
    path: /etc/motd
    content: 'This machine is started again at noon.'
  undo: restore
";
    type Output = Written;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Written>, Failure> {
        self.check()?;
        let host = cx.reader(&self.target).await?;
        let at_target = |failure: Failure| failure.at(self.target.alias());
        let choice = Choice::of(self.hosts.as_ref(), self.select.as_ref(), &self.sets, self.except.as_ref());
        let chosen = host.choose(choice).map_err(at_target)?;
        let marks = Marks::of(cx.node());
        let pace = Pace::new(chosen.len(), None, false, None, None)?;
        let read = async |at: usize| host.transport.read_file(&chosen[at], &self.path, LONGEST, &marks).await;
        let found = fan_out(&chosen, pace, read, Result::is_err, telling(cx, chosen.len())).await;
        let found: Vec<Option<RemoteFile>> =
            found.into_iter().flatten().collect::<Result<_, _>>().map_err(at_target)?;
        let (mut changes, mut changed) = (Vec::new(), Vec::new());
        for (name, before) in chosen.iter().zip(found) {
            let wanted = self.wanted(before.as_ref());
            if wanted != before {
                changes.push(self.change(host.named(name), before.as_ref(), wanted.as_ref()));
                changed.push(name.clone());
            }
        }
        Ok(Planned::changes(changes, Written { changed }).considered(chosen.len()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Written, Failure> {
        self.check()?;
        let host = cx.writer(&self.target).await?;
        let changed = self.make(&host, changes, false, cx).await?;
        Ok(Written { changed })
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let host = cx.writer(&self.target).await?;
        self.make(&host, changes, true, cx).await.map(drop)
    }
}

impl File {
    fn check(&self) -> Result<(), Failure> {
        let input = |message: String| Err(Failure::new(FailureKind::Input, message));
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        let parts = self.path.strip_prefix('/').is_some_and(|path| path.split('/').all(plain));
        if !parts || self.path.contains(char::is_control) || self.path.len() > 4000 {
            return input(format!("`path`: {:?} is not an absolute path without `..`", self.path));
        }
        match &self.content {
            None if !self.absent => return input("it needs `content` or `absent: true`".into()),
            Some(_) if self.absent => return input("`content` and `absent` exclude each other".into()),
            Some(content) if content.len() > LONGEST => {
                return input(format!("`content` is longer than {LONGEST} bytes"));
            }
            Some(content) if content.contains('\0') => return input("`content` has a NUL character".into()),
            _ => {}
        }
        if let Some(mode) = &self.mode {
            let octal = mode.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
            if !octal || !(3..=4).contains(&mode.len()) {
                return input(format!("`mode`: {mode:?} is not a mode such as `0640`"));
            }
        }
        let account = |name: &String| {
            let letters = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
            letters && !name.is_empty() && !name.starts_with('-')
        };
        for (field, name) in [("owner", &self.owner), ("group", &self.group)] {
            if name.as_ref().is_some_and(|name| !account(name)) {
                return input(format!("`{field}`: {name:?} is not the name of an account"));
            }
        }
        if self.owner.is_some() != self.group.is_some() {
            return input("`owner` and `group` are given together, or neither of them".into());
        }
        Pace::new(1, self.batch, self.whole_batches, self.pause, None).map(drop)
    }

    /// What the file will be, with what stays as it is.
    fn wanted(&self, before: Option<&RemoteFile>) -> Option<RemoteFile> {
        let content = self.content.clone()?;
        let field = |given: &Option<String>, old: fn(&RemoteFile) -> &String, new: &str| {
            given.clone().or_else(|| before.map(|file| old(file).clone())).unwrap_or_else(|| new.into())
        };
        let mode = field(&self.mode, |file| &file.mode, "0644");
        Some(RemoteFile {
            content,
            mode: format!("{mode:0>4}"),
            owner: field(&self.owner, |file| &file.owner, ""),
            group: field(&self.group, |file| &file.group, ""),
        })
    }

    fn object(&self, host: Option<&str>) -> String {
        host.map_or_else(|| self.path.clone(), |host| format!("{host}:{}", self.path))
    }

    fn change(&self, host: Option<&str>, before: Option<&RemoteFile>, wanted: Option<&RemoteFile>) -> Change {
        let kind = match (before, wanted) {
            (None, _) => ChangeKind::Create,
            (_, None) => ChangeKind::Delete,
            _ => ChangeKind::Update,
        };
        let host = host.map(|host| ("host", Value::text(host)));
        // The host is named on the side that is there.
        let side = |file: Option<&RemoteFile>| file.map_or(Value::Null, |file| stored(file, host.clone()));
        Change {
            object: self.object(host.as_ref().and_then(|(_, host)| host.as_str())).into(),
            kind,
            before: side(before),
            after: side(wanted),
            fingerprint: None,
        }
    }

    /// Makes changes, or undoes them, host by host. Gives the hosts where something was done.
    async fn make(
        &self,
        host: &Host,
        changes: &[Change],
        back: bool,
        cx: &WriteCx,
    ) -> Result<Vec<String>, Failure> {
        let not_planned = || Failure::new(FailureKind::Drift, "this is not what was planned");
        let mut hosts = Vec::new();
        for change in changes {
            let name = if host.named("").is_none() {
                crate::local::NAME
            } else {
                let of = |side: &Value| side.get("host").and_then(Value::as_str).map(str::to_owned);
                &of(&change.after).or_else(|| of(&change.before)).ok_or_else(not_planned)?
            };
            if *change.object != *self.object(host.named(name)) {
                return Err(not_planned());
            }
            hosts.push(name.to_owned());
        }
        let marks = Marks::of(cx.node());
        let pace = Pace::new(hosts.len(), self.batch, self.whole_batches, self.pause, None)?;
        // What is on the host now, if it is one side of the change or the other, and the side wanted.
        let look = async |at: usize| {
            let (name, change) = (&hosts[at], &changes[at]);
            let (from, to) = (read(&change.before), read(&change.after));
            let (from, to) = if back { (to, from) } else { (from, to) };
            let now = host.transport.read_file(name, &self.path, LONGEST, &marks).await?;
            if is(now.as_ref(), to.as_ref()) {
                return Ok(None);
            }
            if is(now.as_ref(), from.as_ref()) {
                return Ok(Some((now, to)));
            }
            Err(crate::posix::drift(name, &self.path))
        };
        // All are looked at before one is written, so that drift on one leaves all as they are.
        let looked =
            fan_out(&hosts, Pace::new(hosts.len(), None, false, None, None)?, look, Result::is_err, silent)
                .await;
        if let Some(failure) = looked.into_iter().flatten().find_map(Result::err) {
            return Err(failure.at(self.target.alias()));
        }
        let work = async |at: usize| match look(at).await? {
            None => Ok(()),
            Some((now, to)) => {
                let (now, to) = (now.as_ref(), to.as_ref());
                host.transport.write_file(&hosts[at], &self.path, now, to, &marks).await
            }
        };
        let outcomes = fan_out(&hosts, pace, work, Result::is_err, telling(cx, hosts.len())).await;
        let failed = outcomes.into_iter().flatten().find_map(Result::err);
        failed.map_or(Ok(hosts), |failure| Err(failure.at(self.target.alias())))
    }
}

/// Whether a file is as another, which may leave its owner open.
fn is(now: Option<&RemoteFile>, other: Option<&RemoteFile>) -> bool {
    match (now, other) {
        (None, None) => true,
        (Some(now), Some(other)) => {
            let owned = other.owner.is_empty() || (&now.owner, &now.group) == (&other.owner, &other.group);
            owned && (&now.content, &now.mode) == (&other.content, &other.mode)
        }
        _ => false,
    }
}

fn stored(file: &RemoteFile, host: Option<(&'static str, Value)>) -> Value {
    let fields = [
        ("content", Value::text(&*file.content)),
        ("mode", Value::text(&*file.mode)),
        ("owner", Value::text(&*file.owner)),
        ("group", Value::text(&*file.group)),
    ];
    Value::map(host.into_iter().chain(fields))
}

fn read(side: &Value) -> Option<RemoteFile> {
    let field = |name: &str| side.get(name).and_then(Value::as_str).map(str::to_owned);
    Some(RemoteFile {
        content: field("content")?,
        mode: field("mode")?,
        owner: field("owner")?,
        group: field("group")?,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use serde_json::json;

    use super::*;
    use crate::tests::World;

    fn input(path: &str, more: serde_json::Value) -> serde_json::Value {
        let mut input = json!({ "target": "nodes", "path": path });
        input.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        input
    }

    #[tokio::test]
    async fn it_keeps_the_laws_on_scripted_hosts() {
        let world = World::scripted("hosts: { 'a-[1-2]': { files: { /etc/motd: 'old' } } }");
        // Every host is in the state file from the start.
        let touch = json!({ "target": "nodes", "select": "@all", "path": "/x", "content": "x" });
        world.run("host.file", &touch).await.unwrap();
        let motd = |more| {
            let mut input = input("/etc/motd", more);
            input["select"] = json!("@all");
            input
        };
        let bad = [
            motd(json!({})),
            motd(json!({ "content": "x", "absent": true })),
            motd(json!({ "content": "x", "path": "etc/motd" })),
            motd(json!({ "content": "x", "path": "/etc/../motd" })),
            motd(json!({ "content": "x", "path": "/etc//motd" })),
            motd(json!({ "content": "x", "path": "/etc/a\nb" })),
            motd(json!({ "content": "x\u{0}" })),
            motd(json!({ "content": "x".repeat(LONGEST + 1) })),
            motd(json!({ "content": "x", "mode": "rw" })),
            motd(json!({ "content": "x", "mode": "0888" })),
            motd(json!({ "content": "x", "owner": "root" })),
            motd(json!({ "content": "x", "owner": "-R", "group": "root" })),
        ];
        let meddle = json!({ "target": "nodes", "hosts": "a-2", "path": "/etc/motd", "content": "other" });
        for wanted in [json!({ "content": "new\n", "mode": "600" }), json!({ "absent": true })] {
            let other = world.again();
            let shown = world
                .prove_with(
                    "host.file",
                    &motd(wanted),
                    &bad,
                    Some(Box::new(|| {
                        let (other, meddle) = (&other, &meddle);
                        Box::pin(async move { drop(other.run("host.file", meddle).await.unwrap()) })
                    })),
                )
                .await;
            let shown = shown.unwrap();
            assert_eq!(&*shown.plan.changes[0].object, "a-1:/etc/motd");
            let back = json!({ "target": "nodes", "select": "@all", "path": "/etc/motd", "content": "old" });
            world.run("host.file", &back).await.unwrap();
        }
    }

    /// A file of this machine, as the world of the laws.
    async fn prove(before: Option<&str>, wanted: serde_json::Value) -> String {
        let world = World::local();
        std::fs::set_permissions(world.folder(), std::fs::Permissions::from_mode(0o700)).unwrap();
        let path = world.folder().join("it's a 'file'");
        let name = path.to_str().unwrap();
        if let Some(content) = before {
            std::fs::write(&path, content).unwrap();
        }
        let shape = || std::fs::read_to_string(&path).ok().map(|text| (text, mode(&path)));
        let (input, first) = (input(name, wanted), shape());
        let plan = world.plan("host.file", &input).await.unwrap();
        assert_eq!(shape(), first, "planning writes nothing");
        world.apply("host.file", &input, &plan.changes).await.unwrap();
        let after = shape();
        assert!(world.plan("host.file", &input).await.unwrap().changes.is_empty());
        world.undo("host.file", &input, &plan.changes).await.unwrap();
        world.undo("host.file", &input, &plan.changes).await.unwrap();
        assert_eq!(shape(), first, "undo restores");
        std::fs::write(&path, "someone else's").unwrap();
        let failure = world.apply("host.file", &input, &plan.changes).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
        assert_eq!(shape().unwrap().0, "someone else's");
        assert_eq!(std::fs::read_dir(world.folder()).unwrap().count(), 1, "no other file is left");
        format!("{after:?}")
    }

    fn mode(path: &std::path::Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[tokio::test]
    async fn it_keeps_the_laws_on_this_machine() {
        let hostile = "$(id) `id` 'a' \"b\" \\\\ \n\t%s\n\n";
        let after = prove(None, json!({ "content": hostile, "mode": "0600" })).await;
        assert_eq!(after, format!("{:?}", Some((hostile, 0o600))));
        let after = prove(Some("old\n"), json!({ "content": hostile })).await;
        assert_eq!(after, format!("{:?}", Some((hostile, 0o644))));
        assert_eq!(prove(Some("old"), json!({ "content": "" })).await, format!("{:?}", Some(("", 0o644))));
        assert_eq!(prove(Some("old"), json!({ "absent": true })).await, "None");
    }

    #[tokio::test]
    async fn what_is_no_plain_file_in_a_private_folder_is_refused() {
        let world = World::local();
        let folder = world.folder();
        std::fs::create_dir(folder.join("open")).unwrap();
        std::fs::set_permissions(folder.join("open"), std::fs::Permissions::from_mode(0o777)).unwrap();
        symlink("/etc/passwd", folder.join("link")).unwrap();
        std::fs::write(folder.join("binary"), b"\xff\xfe").unwrap();
        std::fs::write(folder.join("large"), "x".repeat(LONGEST + 1)).unwrap();
        for (name, expected) in [
            ("link", "it is a symbolic link"),
            ("open", "it is not a regular file"),
            ("none/file", "there is no folder"),
            ("binary", "is not UTF-8 text"),
            ("large", "is longer than"),
            ("open/file", "anyone may write in the folder"),
        ] {
            let path = folder.join(name);
            let failure = world
                .run("host.file", &input(path.to_str().unwrap(), json!({ "content": "x" })))
                .await
                .unwrap_err();
            assert!(failure.message.contains(expected), "{name}: {failure}");
        }
        assert_eq!(std::fs::read_dir(folder.join("open")).unwrap().count(), 0);
    }
}
