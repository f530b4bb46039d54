//! The target kind `host`.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use farrier_action::{ConnectCx, TargetKind};
use farrier_model::{Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::Deserialize;

/// Where programs without a slash are looked for, and the `PATH` of every command.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A machine to run commands on: in this version the one that Farrier runs on.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HostConfig {
    /// `true`: commands run on the machine that Farrier runs on, as its own user.
    #[serde(default)]
    local: bool,
    /// Reserved for machines that are reached by SSH.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    ssh: Option<Value>,
}

/// The kind.
#[derive(Debug)]
pub struct HostTarget;

/// A machine.
#[derive(Debug, Default)]
pub struct Host {
    /// Programs by the name that runbooks use, found once.
    programs: Mutex<HashMap<String, PathBuf>>,
}

impl TargetKind for HostTarget {
    const KIND: &'static str = "host";
    type Config = HostConfig;
    type Reader = Host;
    type Writer = Host;

    fn identity(config: &HostConfig) -> String {
        match &config.ssh {
            None => "host local".into(),
            Some(ssh) => format!("host {ssh}"),
        }
    }

    async fn reader(config: HostConfig, _: &ConnectCx) -> Result<Host, Failure> {
        Host::new(&config)
    }

    async fn writer(config: HostConfig, _: &ConnectCx) -> Result<Host, Failure> {
        Host::new(&config)
    }
}

impl Host {
    fn new(config: &HostConfig) -> Result<Host, Failure> {
        if config.ssh.is_some() || !config.local {
            return Err(Failure::new(
                FailureKind::Input,
                "this version runs commands on its own machine only",
            )
            .help("write `local: true` for this target, and run Farrier on the machine"));
        }
        Ok(Host::default())
    }

    /// The absolute path of a program. With a name to search for, starting a process would cost a copy of Farrier's
    /// page tables instead of microseconds.
    pub(crate) fn program(&self, name: &str) -> Result<PathBuf, Failure> {
        if name.starts_with('/') {
            return Ok(name.into());
        }
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = programs.get(name) {
            return Ok(path.clone());
        }
        let path = PATH.split(':').map(|folder| Path::new(folder).join(name)).find(|path| is_program(path));
        let path = path.ok_or_else(|| {
            Failure::new(FailureKind::Refused, format!("there is no program `{name}` on this machine")).help(
                format!("it is looked for in {PATH}; a program elsewhere is written with its absolute path"),
            )
        })?;
        programs.insert(name.to_owned(), path.clone());
        Ok(path)
    }

    /// Forgets where a program was, since it is not there any more.
    pub(crate) fn forget(&self, name: &str) {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_accepted() {
        let host = |json: &str| Host::new(&Value::from_json(json).unwrap().read().unwrap());
        assert!(host(r#"{"local": true}"#).is_ok());
        for config in [
            r"{}",
            r#"{"local": false}"#,
            r#"{"local": true, "ssh": "tools-nfs"}"#,
            r#"{"ssh": {"host": "a"}}"#,
        ] {
            let failure = host(config).unwrap_err();
            assert!(failure.help.unwrap().contains("local: true"), "{config}");
        }
        assert!(Value::from_json(r#"{"lokal": true}"#).unwrap().read::<HostConfig>().is_err());
    }

    #[test]
    fn programs_are_found_once() {
        let host = Host::default();
        let found = host.program("true").unwrap();
        assert!(found.is_absolute() && found.ends_with("true"));
        assert_eq!(host.program("true").unwrap(), found);
        assert_eq!(host.program("/opt/x").unwrap(), Path::new("/opt/x"));
        let failure = host.program("no-such-program").unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.contains("no-such-program") && failure.help.unwrap().contains("/usr/bin"));
    }
}
