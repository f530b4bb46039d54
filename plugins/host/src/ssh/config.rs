//! Settings of hosts behind SSH, and the `ssh_config` that Farrier makes of them.
//!
//! Whatever matters for safety stands first in that file, where nothing that is included later can change it: host keys
//! come from the named file alone, are never learned, and nothing is forwarded or asked for at a terminal.

use std::path::{Path, PathBuf};
use std::time::Duration;

use farrier_action::ConnectCx;
use farrier_model::{Failure, FailureKind};
use schemars::JsonSchema;
use serde::Deserialize;

use farrier_action::duration::Length;

/// How hosts are reached.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SshConfig {
    /// The file with the host keys (or the `@cert-authority`) that are accepted, in the form of `known_hosts`. No other key is,
    /// and none is ever added.
    known_hosts: String,
    /// The account on the hosts. Left out, `config` or the system says.
    #[serde(default)]
    user: Option<String>,
    /// The file with the private key. Left out, the keys of `config` and of the running agent are tried.
    #[serde(default)]
    identity: Option<String>,
    /// The account for reading, when it is another one.
    #[serde(default)]
    read_as: Option<Account>,
    /// The account for writing, when it is another one.
    #[serde(default)]
    write_as: Option<Account>,
    /// The port of the hosts. The default is 22.
    #[serde(default)]
    port: Option<u16>,
    /// Added to the name of a host that has no dot.
    #[serde(default)]
    domain: Option<String>,
    /// The host to go through, `USER@HOST:PORT`; its key must be in `known_hosts`, too. Left out, its account is that of the hosts, and
    /// its port is what `config` says.
    #[serde(default)]
    jump: Option<String>,
    /// An `ssh_config` with whatever else is needed, such as `~/.ssh/config`.
    #[serde(default)]
    config: Option<String>,
    /// The key exchange methods to use, best first. OpenSSH's own first choice costs about 60 ms of this machine's time per
    /// host; `[curve25519-sha256]` costs next to none, and resists no quantum computer.
    #[serde(default)]
    key_exchange: Vec<String>,
    /// How long opening a connection may take. The default is `10s`.
    #[serde(default)]
    connect_timeout: Option<Length>,
    /// How many connections may be opened at once, at most 32. The default is 16; the server of a host behind many others may
    /// allow fewer (`MaxStartups`).
    #[serde(default)]
    opening: Option<u8>,
    /// How many commands may share the connection to one host. The default is 8; servers allow 10 (`MaxSessions`).
    #[serde(default)]
    commands_per_host: Option<u8>,
    /// After how long without a command a connection is closed. The default is `5m`.
    #[serde(default)]
    idle_close: Option<Length>,
}

/// An account on the hosts.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Account {
    /// Its name. Left out, as in `user`.
    #[serde(default)]
    user: Option<String>,
    /// The file with its private key. Left out, as in `identity`.
    #[serde(default)]
    identity: Option<String>,
}

/// Which side a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Read,
    Write,
}

/// Settings, checked.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Settings {
    /// The text of the `ssh_config`; two targets with the same text share their connections.
    pub(crate) config: String,
    pub(crate) domain: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) opening: usize,
    pub(crate) commands_per_host: usize,
    pub(crate) idle_close: Duration,
}

impl SshConfig {
    /// What tells places apart: where the keys come from, who logs in, and through what.
    pub(crate) fn identity(&self) -> String {
        let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
        let account =
            |account: &Option<Account>| account.as_ref().map_or("-".into(), |account| or(&account.user));
        format!(
            "user {} (read {}, write {}), port {}, domain {}, jump {}, config {}, known hosts {}",
            or(&self.user),
            account(&self.read_as),
            account(&self.write_as),
            self.port.map_or("-".into(), |port| port.to_string()),
            or(&self.domain),
            or(&self.jump),
            or(&self.config),
            self.known_hosts
        )
    }

    /// Checks them for one side, and makes the `ssh_config`.
    pub(crate) fn settings(&self, side: Side, cx: &ConnectCx) -> Result<Settings, Failure> {
        let account = match side {
            Side::Read => self.read_as.as_ref(),
            Side::Write => self.write_as.as_ref(),
        };
        let user = account.and_then(|account| account.user.as_ref()).or(self.user.as_ref());
        let identity = account.and_then(|account| account.identity.as_ref()).or(self.identity.as_ref());
        let known_hosts = path("known_hosts", &self.known_hosts, cx)?;
        if !known_hosts.is_file() {
            return Err(input(format!("`ssh.known_hosts`: there is no file {}", known_hosts.display())));
        }
        let mut lines = vec![
            format!("UserKnownHostsFile {}", quoted(&known_hosts)?),
            "GlobalKnownHostsFile none".into(),
            "KnownHostsCommand none".into(),
            "VerifyHostKeyDNS no".into(),
            "StrictHostKeyChecking yes".into(),
            "UpdateHostKeys no".into(),
            "BatchMode yes".into(),
            "ForwardAgent no".into(),
            "ForwardX11 no".into(),
            "ClearAllForwardings yes".into(),
            "PermitLocalCommand no".into(),
            "RequestTTY no".into(),
            "EscapeChar none".into(),
            "ServerAliveInterval 15".into(),
            "ServerAliveCountMax 3".into(),
        ];
        if let Some(user) = user {
            lines.push(format!("User {}", word("user", user)?));
        }
        if let Some(identity) = identity {
            lines.push(format!("IdentityFile {}", quoted(&path("identity", identity, cx)?)?));
            lines.push("IdentitiesOnly yes".into());
        }
        let jump = self.jump.as_deref().map(|jump| word("jump", jump)).transpose()?;
        if let Some(jump) = jump {
            // Not of the host to go through: it is reached with this same file, and would be sought behind itself.
            lines.push(format!("Host !{} *", host_of(jump)));
            lines.push(format!("ProxyJump {jump}"));
        }
        if let Some(port) = self.port {
            lines.push(format!("Port {port}"));
        }
        if jump.is_some() {
            lines.push("Match all".into());
        }
        if !self.key_exchange.is_empty() {
            let methods: Vec<&str> = self
                .key_exchange
                .iter()
                .map(|method| word("key_exchange", method))
                .collect::<Result<_, _>>()?;
            lines.push(format!("KexAlgorithms {}", methods.join(",")));
        }
        if let Some(config) = &self.config {
            let config = path("config", config, cx)?;
            if !config.is_file() {
                return Err(input(format!("`ssh.config`: there is no file {}", config.display())));
            }
            lines.push(format!("Include {}", quoted(&config)?));
        }
        if let Some(domain) = &self.domain {
            crate::hosts::check_name(domain)
                .map_err(|_| input(format!("`ssh.domain`: {domain:?} is no domain")))?;
        }
        let opening = usize::from(self.opening.unwrap_or(16));
        if !(1..=32).contains(&opening) {
            return Err(input("`ssh.opening` must be between 1 and 32".into()));
        }
        let commands_per_host = usize::from(self.commands_per_host.unwrap_or(8));
        if commands_per_host == 0 {
            return Err(input("`ssh.commands_per_host` must be at least 1".into()));
        }
        Ok(Settings {
            config: lines.join("\n") + "\n",
            domain: self.domain.clone(),
            connect_timeout: self.connect_timeout.map_or(Duration::from_secs(10), |wait| wait.0),
            opening,
            commands_per_host,
            idle_close: self.idle_close.map_or(Duration::from_secs(300), |wait| wait.0),
        })
    }
}

fn input(message: String) -> Failure {
    Failure::new(FailureKind::Input, message)
}

/// A path of the configuration; `~/` is the home of Farrier's account.
fn path(field: &str, path: &str, cx: &ConnectCx) -> Result<PathBuf, Failure> {
    match path.strip_prefix("~/") {
        None => Ok(cx.path(path)),
        Some(rest) => std::env::var_os("HOME")
            .map(|home| Path::new(&home).join(rest))
            .ok_or_else(|| input(format!("`ssh.{field}`: `{path}` needs the variable HOME"))),
    }
}

/// A path for `ssh_config`, which knows quotes and expands `%`, `$` and `~`.
fn quoted(path: &Path) -> Result<String, Failure> {
    let text = path.to_str().filter(|text| !text.contains(['"', '%', '$', '\\', '*', '?', '\n']));
    match text {
        Some(text) => Ok(format!("\"{text}\"")),
        None => Err(input(format!(
            "the path `{}` has letters that `ssh_config` reads in its own way",
            path.display()
        ))),
    }
}

/// The host of `USER@HOST:PORT`.
fn host_of(jump: &str) -> &str {
    let host = jump.rsplit_once('@').map_or(jump, |(_, host)| host);
    host.split_once(':').map_or(host, |(host, _)| host)
}

/// One word of `ssh_config`.
fn word<'a>(field: &str, text: &'a str) -> Result<&'a str, Failure> {
    let letters = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.@:+".contains(&byte));
    if letters && !text.is_empty() && !text.starts_with('-') {
        return Ok(text);
    }
    Err(input(format!("`ssh.{field}`: {text:?} has letters that do not belong there")))
}

#[cfg(test)]
mod tests {
    use farrier_action::Now;
    use farrier_model::Value;

    use super::*;

    fn settings(json: &str) -> Result<Settings, Failure> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("known hosts"), "").unwrap();
        let cx = ConnectCx {
            alias: "nodes".into(),
            base_dir: folder.path().into(),
            now: Now::default(),
            known: farrier_action::SharedKnown::default(),
        };
        let config: SshConfig = Value::from_json(json).unwrap().read().unwrap();
        config.settings(Side::Write, &cx)
    }

    #[test]
    fn what_matters_comes_first() {
        let made = settings(
            r#"{"known_hosts": "known hosts", "user": "a", "write_as": {"user": "w", "identity": "/k"}, "jump": "j:22",
                "key_exchange": ["curve25519-sha256", "b"], "config": "known hosts"}"#,
        )
        .unwrap();
        let config = made.config;
        for line in [
            "StrictHostKeyChecking yes",
            "GlobalKnownHostsFile none",
            "BatchMode yes",
            "ForwardAgent no",
            "User w",
            "IdentityFile \"/k\"",
            "IdentitiesOnly yes",
            "ProxyJump j:22",
            "KexAlgorithms curve25519-sha256,b",
        ] {
            assert!(config.lines().any(|found| found == line), "{line} is not in\n{config}");
        }
        let last = config.lines().last().unwrap();
        assert!(last.starts_with("Include \"") && last.ends_with("/known hosts\""), "{last}");
    }

    #[test]
    fn the_host_to_go_through_is_not_sought_behind_itself() {
        for jump in ["bastion", "root@bastion", "bastion:2222", "root@bastion:2222"] {
            let json = format!(r#"{{"known_hosts": "known hosts", "port": 23, "jump": "{jump}"}}"#);
            let config = settings(&json).unwrap().config;
            let block = format!("\nHost !bastion *\nProxyJump {jump}\nPort 23\nMatch all\n");
            assert!(config.contains(&block), "{config}");
        }
        let config = settings(r#"{"known_hosts": "known hosts", "port": 23}"#).unwrap().config;
        assert!(config.ends_with("\nPort 23\n"), "{config}");
    }

    #[test]
    fn mistakes_are_found() {
        for (json, expected) in [
            (r#"{"known_hosts": "none"}"#, "there is no file"),
            (r#"{"known_hosts": "known hosts", "config": "none"}"#, "there is no file"),
            (r#"{"known_hosts": "known hosts", "user": "a b"}"#, "`ssh.user`"),
            (r#"{"known_hosts": "known hosts", "user": "a\nProxyCommand x"}"#, "`ssh.user`"),
            (r#"{"known_hosts": "known hosts", "jump": "-oProxyCommand=x"}"#, "`ssh.jump`"),
            (r#"{"known_hosts": "known hosts", "identity": "a\"b"}"#, "in its own way"),
            (r#"{"known_hosts": "known hosts", "key_exchange": ["a,b"]}"#, "`ssh.key_exchange`"),
            (r#"{"known_hosts": "known hosts", "opening": 64}"#, "between 1 and 32"),
            (r#"{"known_hosts": "known hosts", "domain": ".x"}"#, "`ssh.domain`"),
        ] {
            let failure = settings(json).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Input);
            assert!(failure.message.contains(expected), "{json}: {failure}");
        }
        assert!(Value::from_json(r#"{"user": "a"}"#).unwrap().read::<SshConfig>().is_err(), "no known hosts");
    }
}
