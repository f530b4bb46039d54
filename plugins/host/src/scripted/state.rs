//! What has become of scripted hosts: [`State`], kept in a file, and the record of every command.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use farrier_model::time::Timestamp;
use farrier_model::{Failure, FailureKind};
use serde::{Deserialize, Serialize};
use serde_json::json;
use uuid::Uuid;

use super::script::{HostScript, Then, When};
use crate::transport::{RemoteFile, Service};

/// When a host was started whose script does not say.
const STARTED: Timestamp = Timestamp::constant(1_767_225_600, 0);
/// How long a host is away when it starts again and its script does not say.
const REBOOT_SECONDS: i64 = 60;

/// Every host that something was asked of.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) hosts: BTreeMap<String, HostState>,
}

/// One host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct HostState {
    /// How often it was started.
    boots: u64,
    pub(crate) boot_id: String,
    pub(crate) started: Timestamp,
    unreachable: Option<String>,
    unreachable_until: Option<Timestamp>,
    #[serde(with = "stored_services")]
    pub(crate) services: BTreeMap<String, Service>,
    #[serde(with = "stored_files")]
    pub(crate) files: BTreeMap<String, RemoteFile>,
    vars: BTreeMap<String, String>,
}

impl HostState {
    /// The host before anything has happened.
    pub(crate) fn new(name: &str, script: &HostScript) -> HostState {
        HostState {
            boots: 1,
            boot_id: boot_id(name, 1),
            started: script.started.unwrap_or(STARTED),
            unreachable: script.unreachable.clone(),
            unreachable_until: None,
            services: script.services.iter().map(|(unit, service)| (unit.clone(), service.0)).collect(),
            files: script.files.iter().map(|(path, content)| (path.clone(), plain_file(content))).collect(),
            vars: script.vars.clone(),
        }
    }

    /// Why it cannot be reached.
    pub(crate) fn unreachable(&self, now: Timestamp) -> Option<&str> {
        let over = self.unreachable_until.is_some_and(|until| now >= until);
        self.unreachable.as_deref().filter(|_| !over)
    }

    pub(crate) fn fits(&self, when: &When) -> bool {
        let service = |unit: &String| self.services.get(unit);
        when.services.iter().all(|(unit, wanted)| service(unit) == Some(&wanted.0))
            && when.vars.iter().all(|(name, wanted)| self.vars.get(name) == Some(wanted))
            && when
                .files
                .iter()
                .all(|(path, wanted)| self.files.get(path).map(|file| &file.content) == wanted.as_ref())
    }

    pub(crate) fn apply(&mut self, name: &str, then: &Then, script: &HostScript, now: Timestamp) {
        self.services.extend(then.services.iter().map(|(unit, service)| (unit.clone(), service.0)));
        self.vars.extend(then.vars.clone());
        for (path, content) in &then.files {
            match content {
                None => drop(self.files.remove(path)),
                Some(content) => {
                    let file = self.files.entry(path.clone()).or_insert_with(|| plain_file(content));
                    file.content.clone_from(content);
                }
            }
        }
        if let Some(reason) = &then.unreachable {
            self.unreachable = Some(reason.clone());
            self.unreachable_until = then.unreachable_for.map(|length| later(now, length.0.as_secs() as i64));
        }
        if then.reboot {
            self.reboot(name, script, now);
        }
    }

    /// It is away for a while, and comes back with another boot id.
    pub(crate) fn reboot(&mut self, name: &str, script: &HostScript, now: Timestamp) {
        let seconds = script.reboot_takes.map_or(REBOOT_SECONDS, |length| length.0.as_secs() as i64);
        let back = later(now, seconds);
        self.boots += 1;
        self.boot_id = boot_id(name, self.boots);
        self.started = back;
        self.unreachable = Some("connection refused".into());
        self.unreachable_until = Some(back);
        for service in self.services.values_mut() {
            *service = Service { running: service.enabled != Some(false), failed: false, ..*service };
        }
        if !script.on_boot.reboot {
            self.apply(name, &script.on_boot, script, now);
        }
    }
}

fn later(now: Timestamp, seconds: i64) -> Timestamp {
    now.checked_add(jiff::SignedDuration::from_secs(seconds)).unwrap_or(now)
}

/// The same in every process, and different after each start.
fn boot_id(name: &str, boots: u64) -> String {
    Uuid::new_v5(&Uuid::NAMESPACE_DNS, format!("{name} {boots}").as_bytes()).to_string()
}

fn plain_file(content: &str) -> RemoteFile {
    RemoteFile {
        content: content.to_owned(),
        mode: "0644".into(),
        owner: "root".into(),
        group: "root".into(),
    }
}

/// `state.json` and `commands.jsonl` in one folder.
#[derive(Debug)]
pub(crate) struct Store {
    folder: PathBuf,
}

impl Store {
    pub(crate) fn new(folder: PathBuf) -> Store {
        Store { folder }
    }

    /// What is there now. A missing file is the state before anything has happened; a broken one is an error.
    pub(crate) fn read(&self) -> Result<State, Failure> {
        let path = self.folder.join("state.json");
        match std::fs::read_to_string(&path) {
            Ok(text) => serde_json::from_str(&text).map_err(|error| {
                Failure::new(FailureKind::Refused, format!("{} is broken: {error}", path.display()))
            }),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(State::default()),
            Err(error) => Err(trouble("read", &path, &error)),
        }
    }

    /// Changes the state while no other process, and no other side of this one, does. The change is on disk before
    /// this returns, whole or not at all.
    pub(crate) fn change<T>(
        &self,
        change: impl FnOnce(&mut State) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let _lock = self.lock()?;
        let mut state = self.read()?;
        let outcome = change(&mut state)?;
        let path = self.folder.join("state.json");
        let written = || -> std::io::Result<()> {
            let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
            serde_json::to_writer_pretty(&mut file, &state)?;
            file.write_all(b"\n")?;
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            File::open(&self.folder)?.sync_all()
        };
        written().map_err(|error| trouble("write", &path, &error))?;
        Ok(outcome)
    }

    /// Adds a line to the record.
    pub(crate) fn record(&self, line: &serde_json::Value) -> Result<(), Failure> {
        let _lock = self.lock()?;
        let path = self.folder.join("commands.jsonl");
        let written = || -> std::io::Result<()> {
            let mut file = OpenOptions::new().append(true).create(true).open(&path)?;
            file.write_all(format!("{line}\n").as_bytes())?;
            file.sync_all()
        };
        written().map_err(|error| trouble("write", &path, &error))
    }

    fn lock(&self) -> Result<File, Failure> {
        std::fs::create_dir_all(&self.folder).map_err(|error| trouble("make", &self.folder, &error))?;
        let lock = File::open(&self.folder).map_err(|error| trouble("open", &self.folder, &error))?;
        // Held for as long as a file is written, so waiting for it is short.
        lock.lock().map_err(|error| trouble("lock", &self.folder, &error))?;
        Ok(lock)
    }
}

fn trouble(doing: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(FailureKind::Refused, format!("cannot {doing} {}: {error}", path.display()))
}

/// Services as words in the state file, the same as in a script.
mod stored_services {
    use serde::{Deserializer, Serializer};

    use super::{BTreeMap, Deserialize as _, Service};
    use crate::scripted::script::ServiceScript;

    pub(super) fn serialize<S: Serializer>(
        services: &BTreeMap<String, Service>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(services.iter().map(|(unit, service)| {
            let state = match service {
                Service { running: true, .. } => "running",
                Service { failed: true, .. } => "failed",
                _ => "stopped",
            };
            (unit, format!("{state}{}", if service.enabled == Some(false) { " disabled" } else { "" }))
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, Service>, D::Error> {
        let services = BTreeMap::<String, ServiceScript>::deserialize(deserializer)?;
        Ok(services.into_iter().map(|(unit, service)| (unit, service.0)).collect())
    }
}

/// Files with their content, mode, owner and group.
mod stored_files {
    use serde::{Deserializer, Serializer};

    use super::{BTreeMap, Deserialize as _, RemoteFile, json};

    pub(super) fn serialize<S: Serializer>(
        files: &BTreeMap<String, RemoteFile>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(
            files.iter().map(|(path, file)| (path, json!([file.mode, file.owner, file.group, file.content]))),
        )
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<BTreeMap<String, RemoteFile>, D::Error> {
        let files = BTreeMap::<String, [String; 4]>::deserialize(deserializer)?;
        Ok(files
            .into_iter()
            .map(|(path, [mode, owner, group, content])| (path, RemoteFile { content, mode, owner, group }))
            .collect())
    }
}
