//! What an author writes about scripted hosts: [`Script`].

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use farrier_model::time::{Timestamp, parse_duration};
use farrier_model::{Failure, FailureKind};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::hosts;
use crate::transport::Service;

/// The whole file.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Script {
    /// By name or pattern (`worker-[1-80]`): each host has a state of its own.
    pub(crate) hosts: BTreeMap<String, HostScript>,
    /// Commands that every host knows besides its own.
    #[serde(default)]
    pub(crate) commands: Vec<CommandScript>,
}

/// One host, or several alike, before anything has happened.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct HostScript {
    pub(crate) os: String,
    pub(crate) os_version: String,
    pub(crate) kernel: String,
    pub(crate) architecture: String,
    pub(crate) processors: u32,
    pub(crate) memory_bytes: u64,
    /// When it was started.
    pub(crate) started: Option<Timestamp>,
    /// Why it cannot be reached.
    pub(crate) unreachable: Option<String>,
    /// How long it cannot be reached after it was told to start again.
    pub(crate) reboot_takes: Option<Length>,
    pub(crate) services: BTreeMap<String, ServiceScript>,
    /// Path to content.
    pub(crate) files: BTreeMap<String, String>,
    /// Anything else that commands ask for and change.
    pub(crate) vars: BTreeMap<String, String>,
    /// What starting again changes.
    pub(crate) on_boot: Then,
    pub(crate) commands: Vec<CommandScript>,
}

/// A command that a host knows. The first that fits is taken.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CommandScript {
    /// In an argument, `*` stands for any text; `...` at the end stands for any further arguments.
    pub(crate) argv: Vec<String>,
    /// Fits only while all of this holds.
    #[serde(default)]
    pub(crate) when: When,
    #[serde(default)]
    pub(crate) code: i32,
    /// `$host` is the host's name.
    #[serde(default)]
    pub(crate) stdout: String,
    #[serde(default)]
    pub(crate) stderr: String,
    /// What it changes.
    #[serde(default)]
    pub(crate) then: Option<Then>,
    /// How long it takes.
    #[serde(default)]
    pub(crate) takes: Option<Length>,
    /// It does its work, and the connection is cut before the answer comes.
    #[serde(default)]
    pub(crate) cut: bool,
}

/// A condition on the host's state.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct When {
    pub(crate) services: BTreeMap<String, ServiceScript>,
    /// `null`: there is no such file.
    pub(crate) files: BTreeMap<String, Option<String>>,
    pub(crate) vars: BTreeMap<String, String>,
}

/// A change of the host's state.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Then {
    pub(crate) services: BTreeMap<String, ServiceScript>,
    /// `null` removes the file.
    pub(crate) files: BTreeMap<String, Option<String>>,
    pub(crate) vars: BTreeMap<String, String>,
    /// From now on, or for [`Then::unreachable_for`], it cannot be reached, and this is why.
    pub(crate) unreachable: Option<String>,
    pub(crate) unreachable_for: Option<Length>,
    /// It starts again.
    pub(crate) reboot: bool,
}

/// A duration such as `30s`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Length(pub(crate) Duration);

impl<'de> Deserialize<'de> for Length {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Length, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_duration(&text)
            .map(Length)
            .ok_or_else(|| D::Error::custom(format!("`{text}` is not a duration such as `30s`")))
    }
}

/// `running`, `stopped` or `failed`, and `disabled` when it does not start with the machine.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServiceScript(pub(crate) Service);

impl<'de> Deserialize<'de> for ServiceScript {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ServiceScript, D::Error> {
        let text = String::deserialize(deserializer)?;
        let (state, enabled) = match text.split_once(' ') {
            None => (&*text, true),
            Some((state, "disabled")) => (state, false),
            Some(_) => ("", true),
        };
        let (running, failed) = match state {
            "running" => (true, false),
            "stopped" => (false, false),
            "failed" => (false, true),
            _ => {
                return Err(D::Error::custom(format!(
                    "`{text}` is not `running`, `stopped` or `failed`, with `disabled` after it or not"
                )));
            }
        };
        Ok(ServiceScript(Service { running, failed, enabled: Some(enabled) }))
    }
}

impl Script {
    /// Reads the file.
    pub(crate) fn read(path: &Path) -> Result<Script, Failure> {
        let shown = path.display();
        let text = std::fs::read_to_string(path).map_err(|error| {
            Failure::new(FailureKind::Input, format!("cannot read the scripted hosts in {shown}: {error}"))
        })?;
        let script: Script = serde_saphyr::from_str(&text)
            .map_err(|error| Failure::new(FailureKind::Input, format!("{shown}: {error}")))?;
        for pattern in script.hosts.keys() {
            hosts::expand(pattern)
                .map_err(|reason| Failure::new(FailureKind::Input, format!("{shown}: {reason}")))?;
        }
        Ok(script)
    }

    /// What the file says of a host; the first pattern that means it.
    pub(crate) fn host(&self, name: &str) -> Option<&HostScript> {
        self.hosts.get(name).or_else(|| {
            let means = |pattern: &str| {
                hosts::expand(pattern).is_ok_and(|names| names.iter().any(|known| known == name))
            };
            self.hosts.iter().find(|(pattern, _)| means(pattern)).map(|(_, host)| host)
        })
    }

    /// Every host, in the file's order.
    pub(crate) fn names(&self) -> Vec<String> {
        self.hosts.keys().filter_map(|pattern| hosts::expand(pattern).ok()).flatten().collect()
    }
}

impl CommandScript {
    pub(crate) fn fits(&self, argv: &[&str]) -> bool {
        let (wanted, any_rest) = match self.argv.split_last() {
            Some((last, before)) if last == "..." => (before, true),
            _ => (self.argv.as_slice(), false),
        };
        (argv.len() == wanted.len() || any_rest && argv.len() > wanted.len())
            && wanted.iter().zip(argv).all(|(pattern, argument)| glob(pattern, argument))
    }
}

/// Whether a text fits a pattern in which `*` stands for any text.
fn glob(pattern: &str, text: &str) -> bool {
    let Some((before, after)) = pattern.split_once('*') else { return pattern == text };
    let Some(rest) = text.strip_prefix(before) else { return false };
    if after.is_empty() {
        return true;
    }
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    ends.into_iter().any(|at| glob(after, &rest[at..]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_fit_by_argument() {
        for (pattern, argv, expected) in [
            ("ps -e", "ps -e", true),
            ("ps -e", "ps", false),
            ("ps", "ps -e", false),
            ("kill *", "kill 12", true),
            ("kill *", "kill 12 13", false),
            ("kill ...", "kill 12 13", true),
            ("kill ...", "kill", true),
            ("systemctl * exim*.service", "systemctl stop exim4.service", true),
            ("systemctl * exim*.service", "systemctl stop exim4", false),
            ("*", "anything", true),
            ("a*b*c", "axbxbc", true),
            ("a*b*c", "axc", false),
        ] {
            let command = CommandScript {
                argv: pattern.split(' ').map(str::to_owned).collect(),
                when: When::default(),
                code: 0,
                stdout: String::new(),
                stderr: String::new(),
                then: None,
                takes: None,
                cut: false,
            };
            assert_eq!(command.fits(&argv.split(' ').collect::<Vec<_>>()), expected, "{pattern}: {argv}");
        }
    }
}
