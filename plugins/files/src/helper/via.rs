//! Farrier's side: how a helper is reached and asked.

use farrier_action::ConnectCx;
use farrier_model::{Failure, FailureKind};
use schemars::JsonSchema;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::talk::Talk;
use super::wire::{Job, LONGEST_REQUEST, Request, VERSION};

/// How the helper is reached: by `helper` on this machine, by `ssh` on another one.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ViaConfig {
    /// The program, `farrier` itself as a rule, which is called with `files-helper`; or the whole command as a list of
    /// arguments, as in `[sudo, -n, /usr/bin/farrier, files-helper]`. With `ssh`, on that host; there the default is
    /// `farrier`.
    #[serde(default)]
    helper: Option<Words>,
    /// The host with the disk.
    #[serde(default)]
    ssh: Option<String>,
    /// With `ssh`: the file with the only host keys that are accepted, from the folder of the environment file.
    #[serde(default)]
    known_hosts: Option<String>,
    /// With `ssh`: the account there.
    #[serde(default)]
    user: Option<String>,
    /// With `ssh`: the file with the private key, from the folder of the environment file. Left out, an agent is asked.
    #[serde(default)]
    identity: Option<String>,
    /// With `ssh`: the port.
    #[serde(default)]
    port: Option<u16>,
}

/// A program, or a command.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(untagged)]
enum Words {
    Program(String),
    Command(Vec<String>),
}

/// A way to a helper.
#[derive(Debug)]
pub(crate) enum Via {
    /// The command that starts it.
    Command(Vec<String>),
    /// In this process, with these roots: all of the way but the process.
    #[cfg(test)]
    Here(super::roots::Folders),
}

impl ViaConfig {
    /// What an environment says, checked.
    pub(crate) fn way(&self, cx: &ConnectCx) -> Result<Via, Failure> {
        #[cfg(test)]
        if let Some(Words::Program(program)) = &self.helper
            && let Some(folder) = program.strip_prefix("here:")
        {
            let roots = ["tool_homes homes", "archives archives", "staging staging", "gone nowhere"];
            let named = |folders: &[&str]| -> std::collections::BTreeMap<_, _> {
                let folders = folders.iter().filter_map(|folder| folder.split_once(' '));
                folders.map(|(name, at)| (name.to_owned(), format!("{folder}/{at}"))).collect()
            };
            let mut snapshots = named(&["tool_homes snapshots"]);
            snapshots.retain(|_, at| std::path::Path::new(at).is_dir());
            return Ok(Via::Here(super::roots::Folders { roots: named(&roots), snapshots }));
        }
        let input = |message: &str| Err(Failure::new(FailureKind::Input, message));
        let words = match &self.helper {
            None => vec!["farrier".into(), "files-helper".into()],
            Some(Words::Program(program)) => vec![program.clone(), "files-helper".into()],
            Some(Words::Command(words)) => words.clone(),
        };
        if words.first().is_none_or(String::is_empty) {
            return input("`via.helper` names no program");
        }
        let Some(host) = &self.ssh else {
            let ours = [&self.known_hosts, &self.user, &self.identity];
            if self.helper.is_none() || ours.into_iter().any(Option::is_some) || self.port.is_some() {
                return input("`via` needs `helper` on this machine, or `ssh` for another one");
            }
            return Ok(Via::Command(words));
        };
        // Each becomes a word of a shell there, or of ssh here.
        let plain = |text: &str| {
            !text.is_empty()
                && !text.starts_with('-')
                && text.chars().all(|c| c.is_ascii_alphanumeric() || "-_./:=@%".contains(c))
        };
        let remote = words.iter().all(|word| plain(word.trim_start_matches('-')));
        if !plain(host) || !self.user.as_deref().is_none_or(plain) || !remote || !plain(&words[0]) {
            return input("`via`: host, user and helper are plain words here, without quotes and blanks");
        }
        let Some(known_hosts) = &self.known_hosts else {
            return input("`via.ssh` needs `known_hosts`: no host key is ever learned");
        };
        let mut ssh: Vec<String> = ["ssh", "-T", "-F", "none"].map(str::to_owned).to_vec();
        let file = |path: &str| cx.path(path).display().to_string();
        let option = |ssh: &mut Vec<String>, text: String| ssh.extend(["-o".to_owned(), text]);
        for text in [
            "BatchMode=yes",
            "StrictHostKeyChecking=yes",
            "GlobalKnownHostsFile=none",
            "UpdateHostKeys=no",
            "ForwardAgent=no",
            "ClearAllForwardings=yes",
            "ConnectTimeout=10",
            "ServerAliveInterval=15",
        ] {
            option(&mut ssh, text.into());
        }
        option(&mut ssh, format!("UserKnownHostsFile=\"{}\"", file(known_hosts)));
        if let Some(identity) = &self.identity {
            option(&mut ssh, "IdentitiesOnly=yes".into());
            ssh.extend(["-i".into(), file(identity)]);
        }
        if let Some(user) = &self.user {
            ssh.extend(["-l".into(), user.clone()]);
        }
        if let Some(port) = self.port {
            ssh.extend(["-p".into(), port.to_string()]);
        }
        ssh.extend(["--".into(), host.clone()]);
        ssh.extend(words);
        Ok(Via::Command(ssh))
    }

    /// For the identity of the target.
    pub(crate) fn shown(&self) -> String {
        match (&self.ssh, &self.helper) {
            (Some(host), _) => format!("ssh {host}"),
            (None, Some(Words::Program(program))) => program.clone(),
            (None, Some(Words::Command(words))) => words.join(" "),
            (None, None) => "nothing".into(),
        }
    }
}

impl Via {
    /// Asks what has one answer. Dropping the future ends the helper.
    pub(crate) async fn ask<T: DeserializeOwned>(&self, job: Job) -> Result<T, Failure> {
        self.begin(job).await?.done().await
    }

    /// The same for what changes something: without an answer it may be done.
    pub(crate) async fn tell<T: DeserializeOwned>(&self, job: Job) -> Result<T, Failure> {
        self.ask(job).await.map_err(unanswered)
    }

    /// Starts a helper and says what is wanted.
    pub(crate) async fn begin(&self, job: Job) -> Result<Talk, Failure> {
        let mut line = serde_json::to_string(&Request { version: VERSION, job })
            .map_err(|error| Failure::new(FailureKind::Internal, format!("no request: {error}")))?;
        if line.len() >= LONGEST_REQUEST {
            return Err(Failure::new(FailureKind::Limit, "the step is too long for the files helper"));
        }
        line.push('\n');
        let mut talk = match self {
            Via::Command(words) => Talk::with_process(words)?,
            #[cfg(test)]
            Via::Here(folders) => Talk::with_thread(folders.clone()),
        };
        talk.say(line.into_bytes()).await?;
        Ok(talk)
    }
}

/// A helper that has gone without an answer may have done its work.
pub(crate) fn unanswered(failure: Failure) -> Failure {
    if failure.kind == FailureKind::Unreachable { failure.in_doubt() } else { failure }
}

#[cfg(test)]
mod tests {
    use farrier_action::Now;
    use farrier_model::Value;

    use super::*;

    fn way(json: &str) -> Result<Via, Failure> {
        let cx = ConnectCx {
            alias: "homes".into(),
            base_dir: "/env".into(),
            now: Now::default(),
            known: farrier_action::SharedKnown::default(),
        };
        Value::from_json(&json.replace('\'', "\"")).unwrap().read::<ViaConfig>().unwrap().way(&cx)
    }

    fn words(json: &str) -> Vec<String> {
        match way(json).unwrap() {
            Via::Command(words) => words,
            Via::Here(_) => unreachable!(),
        }
    }

    #[test]
    fn environments_say_how_it_is_started() {
        assert_eq!(words("{'helper': '/usr/bin/farrier'}"), ["/usr/bin/farrier", "files-helper"]);
        let sudo = "{'helper': ['sudo', '-n', '/usr/bin/farrier', 'files-helper']}";
        assert_eq!(words(sudo), ["sudo", "-n", "/usr/bin/farrier", "files-helper"]);
        let ssh = words("{'ssh': 'nfs-1', 'known_hosts': 'known', 'user': 'root', 'identity': 'key'}");
        assert!(ssh.ends_with(&["--", "nfs-1", "farrier", "files-helper"].map(String::from)), "{ssh:?}");
        for wanted in ["StrictHostKeyChecking=yes", "UserKnownHostsFile=\"/env/known\"", "/env/key", "root"] {
            assert!(ssh.iter().any(|word| word == wanted), "{wanted}: {ssh:?}");
        }
    }

    #[test]
    fn what_could_be_read_as_something_else_is_refused() {
        for bad in [
            "{}",
            "{'helper': []}",
            "{'helper': ''}",
            "{'user': 'root', 'helper': 'x'}",
            "{'ssh': 'nfs-1'}",
            "{'ssh': '-oProxyCommand=x', 'known_hosts': 'k'}",
            "{'ssh': 'nfs-1', 'known_hosts': 'k', 'user': 'a b'}",
            "{'ssh': 'nfs-1', 'known_hosts': 'k', 'helper': ['farrier', '; reboot']}",
            "{'ssh': 'nfs-1', 'known_hosts': 'k', 'helper': ['-x']}",
        ] {
            assert_eq!(way(bad).unwrap_err().kind, FailureKind::Input, "{bad}");
        }
    }
}
