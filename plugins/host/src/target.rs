//! The target kind `host`.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use farrier_action::text::Literal;
use farrier_action::{ConnectCx, Now, TargetKind};
use farrier_model::{Change, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::host_file::HostSet;
use crate::hosts::{self, Groups, Names};
use crate::local::{self, Local};
use crate::scripted::Scripted;
use crate::ssh::Ssh;
use crate::ssh::config::{Side, SshConfig};
use crate::transport::Transport;

/// Machines to run commands on: the one that Farrier runs on, those that are reached by SSH, or scripted ones that stand in
/// for machines.
///
/// Exactly one of `local`, `ssh` and `scripted` is given.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// `true`: commands run on the machine that Farrier runs on, as its own user.
    #[serde(default)]
    local: bool,
    /// Hosts that are reached by SSH.
    #[serde(default)]
    ssh: Option<SshConfig>,
    /// A file with scripted hosts, from the folder of the environment file.
    #[serde(default)]
    scripted: Option<String>,
    /// With `scripted`: the folder for what has become of them, `state.json` and `commands.jsonl`. The default is
    /// beside the script, with `.state` for its ending.
    #[serde(default)]
    state: Option<String>,
    /// The hosts that runbooks may name, as a set such as `worker-[1-80], bastion-[1-2]`, or `{file: PATH}` for a file with
    /// one host or pattern on each line. `@all` stands for it.
    #[serde(default)]
    hosts: Option<HostSet>,
    /// Names for sets of hosts, written like `hosts`: `workers` is `@workers` where a set is written. Sets that are written
    /// here may build on those in files: `@all ! @broken`.
    #[serde(default)]
    groups: BTreeMap<String, HostSet>,
    /// The folder with the scripts that `host.script` may run by name, from the folder of the environment file.
    #[serde(default)]
    scripts: Option<String>,
}

/// The kind.
#[derive(Debug)]
pub struct HostTarget;

/// Machines, and how they are reached.
pub struct Host {
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) now: Now,
    /// The only one that there is, when a step need not name it.
    only: Option<String>,
    allowed: Option<HashSet<String>>,
    groups: Groups,
    scripts: Option<PathBuf>,
    local: bool,
}

impl fmt::Debug for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Host")
    }
}

impl TargetKind for HostTarget {
    const KIND: &'static str = "host";
    type Config = HostConfig;
    type Reader = Host;
    type Writer = Host;

    fn identity(config: &HostConfig) -> String {
        match (&config.scripted, &config.ssh) {
            (Some(path), _) => format!("host scripted in {path}"),
            (None, Some(ssh)) => format!("host ssh {}", ssh.identity()),
            (None, None) => "host local".into(),
        }
    }

    fn is_stand_in(config: &HostConfig) -> bool {
        let inside = |path: &String| !path.starts_with('/');
        !config.local
            && config.scripted.as_ref().is_some_and(inside)
            && config.state.as_ref().is_none_or(inside)
    }

    async fn reader(config: HostConfig, cx: &ConnectCx) -> Result<Host, Failure> {
        Host::new(config, Side::Read, cx)
    }

    async fn writer(config: HostConfig, cx: &ConnectCx) -> Result<Host, Failure> {
        Host::new(config, Side::Write, cx)
    }
}

/// Which hosts a step means.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Choice<'a> {
    pub(crate) hosts: Option<&'a Names>,
    pub(crate) select: Option<&'a Literal>,
    pub(crate) sets: Option<&'a BTreeMap<String, Names>>,
    pub(crate) except: Option<&'a Names>,
}

impl<'a> Choice<'a> {
    /// What the inputs of a step say.
    pub(crate) fn of(
        hosts: Option<&'a Names>,
        select: Option<&'a Literal>,
        sets: &'a BTreeMap<String, Names>,
        except: Option<&'a Names>,
    ) -> Choice<'a> {
        Choice { hosts, select, sets: Some(sets).filter(|sets| !sets.is_empty()), except }
    }
}

impl Host {
    fn new(config: HostConfig, side: Side, cx: &ConnectCx) -> Result<Host, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let mut all = None;
        let transport: Arc<dyn Transport> = match (config.local, &config.ssh, &config.scripted) {
            (true, None, None) => {
                all = Some(vec![local::NAME.to_owned()]);
                Arc::new(Local::default())
            }
            (false, Some(ssh), None) => Arc::new(Ssh::new(ssh.settings(side, cx)?)?),
            (false, None, Some(path)) => {
                let state = config.state.as_ref().map(|path| cx.path(path));
                let scripted = Scripted::open(&cx.path(path), state, cx.now.clone())?;
                all = Some(scripted.names());
                Arc::new(scripted)
            }
            _ => {
                return Err(input("it must have exactly one of `local: true`, `ssh` and `scripted`".into())
                    .help("write `local: true` for the machine that Farrier runs on"));
            }
        };
        if let Some(set) = &config.hosts {
            let known: Groups = all.iter().map(|all| ("all".to_owned(), all.clone())).collect();
            all = Some(set.hosts("hosts", &known, cx)?);
        }
        let mut groups: Groups = all.iter().map(|all| ("all".to_owned(), all.clone())).collect();
        let mut named = Groups::new();
        // Those in files depend on nothing.
        let (kept, written): (Vec<_>, Vec<_>) = config.groups.iter().partition(|(_, set)| set.is_kept());
        for (at, &(name, set)) in kept.iter().chain(&written).enumerate() {
            if at == kept.len() {
                groups.append(&mut named);
            }
            let field = format!("groups.{name}");
            if name == "all" || hosts::check_name(name).is_err() {
                return Err(input(format!("`{field}`: `{name}` cannot name a group of hosts")));
            }
            named.insert(name.clone(), set.hosts(&field, &groups, cx)?);
        }
        groups.extend(named);
        Ok(Host {
            transport,
            now: cx.now.clone(),
            only: all
                .as_ref()
                .and_then(|all| if let [only] = all.as_slice() { Some(only.clone()) } else { None }),
            allowed: all.map(|all| all.into_iter().collect()),
            groups,
            scripts: config.scripts.map(|folder| cx.path(folder)),
            local: config.local,
        })
    }

    /// The hosts that a step means, in order, each once. None at all is an error, and so is one that the environment
    /// does not allow.
    pub(crate) fn choose(&self, choice: Choice<'_>) -> Result<Vec<String>, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        if choice.sets.is_some() && choice.select.is_none() {
            return Err(input("`sets` are for `select`, which is missing".into()));
        }
        let mut chosen = match (choice.hosts, choice.select) {
            (None, None) => vec![self.only.clone().ok_or_else(|| {
                input("it does not say which hosts".into())
                    .help("name them in `hosts`, or write a set in `select`")
            })?],
            (Some(names), None) => {
                let mut unique = HashSet::new();
                names.0.iter().filter(|name| unique.insert(*name)).cloned().collect()
            }
            (None, Some(text)) => hosts::select(&text.0, &*self.groups_and(choice.sets)?)
                .map_err(|reason| hosts::wrong_set("select", &text.0, &reason))?,
            (Some(_), Some(_)) => return Err(input("`hosts` and `select` exclude each other".into())),
        };
        if let Some(except) = choice.except {
            chosen.retain(|host| !except.0.contains(host));
        }
        if chosen.is_empty() {
            return Err(input("no host is selected".into())
                .help("an empty selection is an error; leave the step out with `if` when that is expected"));
        }
        let foreign = |host: &&String| self.allowed.as_ref().is_some_and(|allowed| !allowed.contains(*host));
        let foreign: Vec<&String> = chosen.iter().filter(foreign).collect();
        if !foreign.is_empty() {
            let shown = crate::words::shortened(&hosts::fold(&foreign), 200);
            return Err(input(format!("this environment does not have the hosts `{shown}`"))
                .help("only the hosts of the target's `hosts` in the environment file can be named"));
        }
        Ok(chosen)
    }

    /// The groups of the environment, and the sets of a step.
    fn groups_and(&self, sets: Option<&BTreeMap<String, Names>>) -> Result<Cow<'_, Groups>, Failure> {
        let Some(sets) = sets else { return Ok(Cow::Borrowed(&self.groups)) };
        let mut groups = self.groups.clone();
        for (name, names) in sets {
            let wrong = |reason: String| Failure::new(FailureKind::Input, format!("`sets`: {reason}"));
            if name == "all" || hosts::check_name(name).is_err() {
                return Err(wrong(format!("`{name}` cannot name a set of hosts")));
            }
            if groups.contains_key(name) {
                return Err(wrong(format!("this environment has a group `@{name}` of its own")));
            }
            let mut set = Vec::new();
            hosts::join(&mut set, names.0.clone()).map_err(|reason| wrong(format!("`{name}`: {reason}")))?;
            groups.insert(name.clone(), set);
        }
        Ok(Cow::Owned(groups))
    }

    /// The host's name in objects and changes; none for the machine that Farrier runs on.
    pub(crate) fn named<'a>(&self, name: &'a str) -> Option<&'a str> {
        (!self.local).then_some(name)
    }

    /// The host that a change is about.
    pub(crate) fn of_change(&self, change: &Change) -> Option<String> {
        if self.local {
            return Some(local::NAME.to_owned());
        }
        change.after.get("host").and_then(Value::as_str).map(str::to_owned)
    }

    /// A script of the project's, by its path below the environment's `scripts` folder.
    pub(crate) fn script(&self, path: &str) -> Result<String, Failure> {
        const LONGEST: u64 = 64 << 10;
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let folder = self.scripts.as_ref().ok_or_else(|| {
            input("this environment has no folder for scripts".into())
                .help("add `scripts: FOLDER` to the target in the environment file")
        })?;
        let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && !part.contains('\0');
        if !path.split('/').all(plain) {
            return Err(input(format!("`file`: {path:?} is not a path below the folder for scripts")));
        }
        let unreadable = |error: std::io::Error| input(format!("cannot read the script `{path}`: {error}"));
        let real = folder.join(path).canonicalize().map_err(unreadable)?;
        if !real.starts_with(folder.canonicalize().map_err(unreadable)?) {
            return Err(input(format!("the script `{path}` leads out of the folder for scripts")));
        }
        if real.metadata().map_err(unreadable)?.len() > LONGEST {
            return Err(input(format!("the script `{path}` is longer than {LONGEST} bytes")));
        }
        std::fs::read_to_string(real).map_err(unreadable)
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn host(json: &str) -> Result<Host, Failure> {
        host_in(Path::new("/nowhere"), json)
    }

    fn host_in(folder: &Path, json: &str) -> Result<Host, Failure> {
        let cx = ConnectCx {
            alias: "here".into(),
            base_dir: folder.into(),
            now: Now::default(),
            known: farrier_action::SharedKnown::default(),
        };
        Host::new(Value::from_json(json).unwrap().read().unwrap(), Side::Read, &cx)
    }

    fn names(names: &[&str]) -> Names {
        Names(names.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn exactly_one_way_is_accepted() {
        assert!(host(r#"{"local": true}"#).is_ok());
        for config in [r"{}", r#"{"local": false}"#, r#"{"local": true, "scripted": "a.yaml"}"#] {
            let failure = host(config).unwrap_err();
            assert!(failure.help.unwrap().contains("local: true"), "{config}");
        }
        assert!(Value::from_json(r#"{"lokal": true}"#).unwrap().read::<HostConfig>().is_err());
    }

    #[test]
    fn only_scripted_hosts_of_the_environment_are_stand_ins() {
        for (config, expected) in [
            (r#"{"local": true}"#, false),
            (r#"{"scripted": "hosts.yaml"}"#, true),
            (r#"{"scripted": "/etc/hosts.yaml"}"#, false),
            (r#"{"scripted": "hosts.yaml", "state": "/tmp/x"}"#, false),
            (r#"{"scripted": "hosts.yaml", "state": "../x"}"#, true),
        ] {
            let config = Value::from_json(config).unwrap().read().unwrap();
            assert_eq!(HostTarget::is_stand_in(&config), expected, "{config:?}");
        }
    }

    #[test]
    fn this_machine_has_one_name() {
        let host = host(r#"{"local": true}"#).unwrap();
        assert_eq!(host.choose(Choice::default()).unwrap(), ["localhost"]);
        let named = names(&["localhost"]);
        assert_eq!(host.choose(Choice { hosts: Some(&named), ..Choice::default() }).unwrap(), ["localhost"]);
        let other = names(&["worker-1", "worker-2"]);
        let failure = host.choose(Choice { hosts: Some(&other), ..Choice::default() }).unwrap_err();
        assert_eq!(failure.message, "this environment does not have the hosts `worker-[1-2]`");
    }

    #[test]
    fn sets_in_files_join_in_with_the_others() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("known"), "").unwrap();
        std::fs::write(folder.path().join("all"), "w-[1-5]\n").unwrap();
        std::fs::write(folder.path().join("broken"), "w-2 # its disk\nw-4\n").unwrap();
        let new = |json: &str| host_in(folder.path(), json);
        let config = |groups: &str| {
            format!(
                r#"{{"ssh": {{"known_hosts": "known"}}, "hosts": {{"file": "all"}}, "groups": {{{groups}}}}}"#
            )
        };
        let host = new(&config(r#""broken": {"file": "broken"}, "able": "@all ! @broken""#)).unwrap();
        let chosen = |select: &str| {
            let select = Literal(select.into());
            host.choose(Choice { select: Some(&select), ..Choice::default() }).unwrap()
        };
        assert_eq!(chosen("@able"), ["w-1", "w-3", "w-5"]);
        assert_eq!(chosen("@broken & w-[1-3]"), ["w-2"]);
        assert_eq!(chosen("@all ^ @able"), ["w-2", "w-4"]);
        std::fs::write(folder.path().join("broken"), "w-2\nw 4\n").unwrap();
        let failure = new(&config(r#""broken": {"file": "broken"}"#)).unwrap_err();
        assert!(failure.message.starts_with("`groups.broken`: broken:2:1: "), "{failure}");
        std::fs::write(folder.path().join("all"), "# none\n").unwrap();
        assert_eq!(new(&config("")).unwrap_err().message, "`hosts`: all: it names no host");
        assert!(Value::from_json(r#"{"hosts": {"folder": "all"}}"#).unwrap().read::<HostConfig>().is_err());
    }

    #[test]
    fn sets_of_a_step_are_like_groups() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("known"), "").unwrap();
        let config = r#"{"ssh": {"known_hosts": "known"}, "hosts": "w-[1-5]", "groups": {"old": "w-[1-2]"}}"#;
        let host = host_in(folder.path(), config).unwrap();
        let set = |name: &str, hosts: &[&str]| (name.to_owned(), names(hosts));
        let choose = |select: Option<&str>, sets: &[(String, Names)]| {
            let (select, sets) = (select.map(|text| Literal(text.into())), sets.iter().cloned().collect());
            host.choose(Choice::of(None, select.as_ref(), &sets, None)).map_err(|failure| failure.message)
        };
        let found = [set("nodes", &["w-4", "w-2", "w-3", "w-4"]), set("broken", &["w-3"]), set("none", &[])];
        let chosen = |select: &str| choose(Some(select), &found).unwrap();
        assert_eq!(chosen("@nodes ! @broken"), ["w-4", "w-2"]);
        assert_eq!(chosen("@nodes & @old, w-5"), ["w-2", "w-5"]);
        assert_eq!(chosen("@all ! @nodes"), ["w-1", "w-5"]);
        assert_eq!(chosen("@nodes ! @none"), ["w-4", "w-2", "w-3"], "nothing is left out");
        for (select, sets, reason) in [
            (Some("@none"), &found[..], "no host is selected"),
            (Some("@none ! @broken"), &found, "left of `!` there is no host"),
            (Some("@others"), &found, "there is no group `@others`"),
            (Some("@foreign"), &[set("foreign", &["w-9"])], "does not have the hosts `w-9`"),
            (Some("@old"), &[set("old", &["w-3"])], "`sets`: this environment has a group `@old` of its own"),
            (Some("@all"), &[set("all", &["w-3"])], "`sets`: `all` cannot name a set"),
            (Some("w-1"), &[set("a b", &["w-3"])], "`sets`: `a b` cannot name a set"),
            (None, &found, "`sets` are for `select`, which is missing"),
        ] {
            let failure = choose(select, sets).unwrap_err();
            assert!(failure.contains(reason), "{select:?}: {failure}");
        }
    }

    #[test]
    fn an_empty_selection_is_an_error() {
        let host = host(r#"{"local": true, "hosts": "localhost"}"#).unwrap();
        let (none, all) = (names(&[]), Literal("@all".into()));
        let failure = host.choose(Choice { hosts: Some(&none), ..Choice::default() }).unwrap_err();
        assert_eq!((failure.kind, &*failure.message), (FailureKind::Input, "no host is selected"));
        let except = names(&["localhost"]);
        let choice = Choice { select: Some(&all), except: Some(&except), ..Choice::default() };
        assert_eq!(host.choose(choice).unwrap_err().message, "no host is selected");
    }
}
