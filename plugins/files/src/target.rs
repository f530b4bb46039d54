//! The target kind `files`.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use farrier_action::{ConnectCx, TargetKind};
use farrier_model::{Failure, FailureKind};
use rustix::fs::{Mode, OFlags, open};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::pool;

/// Folders of this machine (local or mounted), under names that runbooks use.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct FilesConfig {
    /// Each root's name and folder. A relative folder starts at the environment's file.
    roots: BTreeMap<String, String>,
    /// Reserved for reaching the folders through another host.
    #[serde(default)]
    #[schemars(with = "serde_json::Value")]
    via: Option<farrier_model::Value>,
}

/// The kind.
#[derive(Debug)]
pub struct FilesTarget;

/// A connected `files` target.
#[derive(Debug)]
pub struct Files {
    roots: BTreeMap<String, PathBuf>,
    /// Threads that were given up while the kernel kept them waiting for a file.
    hanging: Arc<AtomicUsize>,
}

impl TargetKind for FilesTarget {
    const KIND: &'static str = "files";
    type Config = FilesConfig;
    type Reader = Files;
    type Writer = Files;

    fn identity(config: &FilesConfig) -> String {
        let roots: Vec<String> =
            config.roots.iter().map(|(name, folder)| format!("{name}={folder}")).collect();
        format!("files {}", roots.join(" "))
    }

    /// Folders of the environment's own are as good as a stand-in: there is no server behind them.
    fn is_stand_in(config: &FilesConfig) -> bool {
        config.roots.values().all(|folder| !folder.starts_with('/'))
    }

    async fn reader(config: FilesConfig, cx: &ConnectCx) -> Result<Files, Failure> {
        Files::new(config, cx)
    }

    async fn writer(config: FilesConfig, cx: &ConnectCx) -> Result<Files, Failure> {
        Files::new(config, cx)
    }
}

impl Files {
    fn new(config: FilesConfig, cx: &ConnectCx) -> Result<Files, Failure> {
        if config.via.is_some() {
            return Err(Failure::new(
                FailureKind::Input,
                "this version reaches folders of its own machine only",
            )
            .help("remove `via`, and mount the folders where Farrier runs or run Farrier where they are"));
        }
        let roots = config.roots.into_iter().map(|(name, folder)| (name, cx.path(folder))).collect();
        Ok(Files { roots, hanging: Arc::default() })
    }

    /// Opens a root, anew for each step: what is mounted there may change while Farrier runs.
    pub(crate) async fn root(&self, name: &str, timeout: Duration) -> Result<OwnedFd, Failure> {
        let path = self.roots.get(name).ok_or_else(|| {
            let known: Vec<String> = self.roots.keys().map(|name| format!("`{name}`")).collect();
            Failure::new(
                FailureKind::Input,
                format!("there is no root `{name}`; there is {}", known.join(", ")),
            )
            .help("name it under `roots:` of this target in the environment file")
        })?;
        let shown = path.display().to_string();
        let path = path.clone();
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = pool::answer_within(timeout, &self.hanging, move || open(path, flags, Mode::empty()));
        let error = match opened.await? {
            Some(Ok(root)) => return Ok(root),
            Some(Err(error)) => error,
            None => {
                let message = format!("the root `{name}` ({shown}) did not answer within {timeout:?}");
                return Err(Failure::new(FailureKind::Unreachable, message));
            }
        };
        let kind = match error {
            rustix::io::Errno::ACCESS | rustix::io::Errno::PERM => FailureKind::Denied,
            _ => FailureKind::Unreachable,
        };
        Err(Failure::new(kind, format!("cannot open the root `{name}` ({shown}): {error}")))
    }

    pub(crate) fn hanging(&self) -> &Arc<AtomicUsize> {
        &self.hanging
    }
}
