//! The target kind `host`.

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
    pub(crate) except: Option<&'a Names>,
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
        let mut chosen = match (choice.hosts, choice.select) {
            (None, None) => vec![self.only.clone().ok_or_else(|| {
                input("it does not say which hosts".into())
                    .help("name them in `hosts`, or write a set in `select`")
            })?],
            (Some(names), None) => {
                let mut unique = HashSet::new();
                names.0.iter().filter(|name| unique.insert(*name)).cloned().collect()
            }
            (None, Some(text)) => hosts::select(&text.0, &self.groups)
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
    use super::*;

    fn host(json: &str) -> Result<Host, Failure> {
        let cx = ConnectCx {
            alias: "here".into(),
            base_dir: "/nowhere".into(),
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
        let cx = ConnectCx {
            alias: "here".into(),
            base_dir: folder.path().into(),
            now: Now::default(),
            known: farrier_action::SharedKnown::default(),
        };
        let new = |json: &str| Host::new(Value::from_json(json).unwrap().read().unwrap(), Side::Read, &cx);
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
