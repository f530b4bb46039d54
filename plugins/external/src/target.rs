//! The target kind `external`: [`External`], and its entry in an environment.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farrier_action::text::Span;
use farrier_action::{ConnectCx, Known, SecretRef, TargetKind};
use farrier_model::{Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::runner::Order;
use crate::standin::StandIn;

/// The kind.
#[derive(Debug)]
pub struct External;

/// A program that speaks lines of JSON, pinned by its digest; or a file of scripted answers that stands in for one.
///
/// The program belongs to the superuser or to the account that Farrier runs as, nobody else can write to it, and no
/// symlink leads to it. What is executed is a copy that was compared with `sha256`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExternalConfig {
    /// The program's absolute path.
    #[serde(default)]
    program: Option<String>,
    /// The sha256 of the program, as `sha256sum` prints it.
    #[serde(default)]
    sha256: Option<String>,
    /// A file with scripted answers, from the folder of the environment file, in the place of a program.
    #[serde(default)]
    scripted: Option<String>,
    /// What is done about a step of which nobody knows whether it happened. The default is `once`: a person says.
    #[serde(default)]
    effect: DoubtClass,
    /// Whether the program answers `undo`.
    #[serde(default)]
    restores: bool,
    /// How long one answer may take. The default is `5m`.
    #[serde(default)]
    timeout: Option<Span>,
    /// How many bytes the program may say, in all. The default is 8 MiB.
    #[serde(default)]
    max_output: Option<u64>,
    /// How many bytes of memory it may occupy, with all that it starts. The default is 1 GiB.
    #[serde(default)]
    memory: Option<u64>,
    /// How many files each of its processes may have open. The default is 256.
    #[serde(default)]
    open_files: Option<u64>,
    /// How many processes and threads it may have at once, with all that it starts. The default is 256.
    #[serde(default)]
    processes: Option<u64>,
    /// Whether it may use the network, and the sockets of this machine.
    #[serde(default)]
    network: bool,
    /// Files and folders, by their absolute paths, that it may read besides the machine's own programs and libraries.
    #[serde(default)]
    reads: Vec<String>,
    /// Files and folders, by their absolute paths, that it may read and change.
    #[serde(default)]
    writes: Vec<String>,
    /// Whether it may read and change every file that Farrier's account may.
    #[serde(default)]
    unconfined: bool,
    /// What the program is told with every request: addresses, names. No secrets.
    #[serde(default)]
    #[schemars(with = "BTreeMap<String, serde_json::Value>")]
    settings: BTreeMap<String, Value>,
    /// Secrets that the program may ask for, by the names that it uses.
    #[serde(default)]
    secrets: BTreeMap<String, SecretRef>,
    /// Secrets that it may ask for only when it makes changes or brings back what was.
    #[serde(default)]
    write_secrets: BTreeMap<String, SecretRef>,
}

/// What may be done with a program's work in doubt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum DoubtClass {
    /// Nobody can tell: the run is parked, and a person says what happened.
    #[default]
    Once,
    /// It sets things to a state: it is planned and asked again.
    Repeatable,
    /// It remembers the effect id: it is asked again with the same one.
    Keyed,
    /// It answers `probe`.
    Probed,
}

/// A program, or what stands in for one.
#[derive(Debug)]
pub struct Plugin {
    pub(crate) way: Way,
    pub(crate) effect: DoubtClass,
    pub(crate) restores: bool,
}

#[derive(Debug)]
pub(crate) enum Way {
    Program(Box<Program>),
    StandIn(StandIn),
}

/// A pinned program and its share of the machine.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: String,
    sha256: String,
    pub(crate) timeout: Duration,
    pub(crate) max_output: usize,
    pub(crate) memory: u64,
    open_files: u64,
    pub(crate) processes: u64,
    network: bool,
    reads: Vec<String>,
    writes: Vec<String>,
    unconfined: bool,
    pub(crate) settings: Value,
    pub(crate) secrets: BTreeMap<String, SecretRef>,
    pub(crate) cx: ConnectCx,
    known: Arc<Mutex<Known>>,
}

impl Program {
    pub(crate) fn order(&self) -> Order {
        Order {
            program: self.path.clone(),
            sha256: self.sha256.clone(),
            memory: self.memory,
            open_files: self.open_files,
            processes: self.processes,
            // More than that would need several processors for all of its time.
            processor_seconds: self.timeout.as_secs().saturating_mul(4).max(1),
            network: self.network,
            reads: self.reads.clone(),
            writes: self.writes.clone(),
            unconfined: self.unconfined,
        }
    }

    /// The secrets that it has been told so far: it may have kept them.
    pub(crate) fn known(&self) -> Known {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn learn(&self, known: &Known) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).join(known);
    }
}

/// From the root, without detours.
fn is_absolute(path: &str) -> bool {
    let mut parts = path.strip_prefix('/').into_iter().flat_map(|rest| rest.split('/')).peekable();
    !path.contains('\0') && parts.peek().is_some() && parts.all(|part| !matches!(part, "" | "." | ".."))
}

fn input(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Input, message)
}

impl ExternalConfig {
    fn plugin(self, secrets: BTreeMap<String, SecretRef>, cx: &ConnectCx) -> Result<Plugin, Failure> {
        let (effect, restores) = (self.effect, self.restores);
        let way = match (&self.program, &self.sha256, &self.scripted) {
            (Some(_), Some(_), None) => Way::Program(Box::new(self.pinned(secrets, cx)?)),
            (None, None, Some(path)) => Way::StandIn(StandIn::open(&cx.path(path), cx)?),
            (Some(_), None, None) => {
                return Err(input("it has no `sha256`").help("`sha256sum PROGRAM` prints it"));
            }
            _ => {
                return Err(input("it must have either `program` with `sha256`, or `scripted`"));
            }
        };
        Ok(Plugin { way, effect, restores })
    }

    fn pinned(self, secrets: BTreeMap<String, SecretRef>, cx: &ConnectCx) -> Result<Program, Failure> {
        let (path, sha256) = (self.program.unwrap_or_default(), self.sha256.unwrap_or_default());
        let said = self.reads.iter().map(|path| ("reads", path));
        let said = said.chain(self.writes.iter().map(|path| ("writes", path)));
        if let Some((field, path)) =
            [("program", &path)].into_iter().chain(said).find(|(_, path)| !is_absolute(path))
        {
            return Err(input(format!("`{field}`: {path:?} is not an absolute path")));
        }
        if self.unconfined && !(self.reads.is_empty() && self.writes.is_empty()) {
            return Err(input(
                "with `unconfined`, `reads` and `writes` would change nothing; leave them out",
            ));
        }
        let digit = |letter: u8| letter.is_ascii_digit() || (b'a'..=b'f').contains(&letter);
        if sha256.len() != 64 || !sha256.bytes().all(digit) {
            return Err(input(format!("`sha256`: {sha256:?} is not 64 digits from `0` to `f`"))
                .help("`sha256sum PROGRAM` prints it"));
        }
        let timeout = self.timeout.map_or(Duration::from_secs(300), |span| span.0);
        if timeout.is_zero() {
            return Err(input("`timeout` must not be nothing"));
        }
        let within = |field: &str, value: Option<u64>, default: u64, range: std::ops::RangeInclusive<u64>| {
            let value = value.unwrap_or(default);
            let (least, most) = (range.start(), range.end());
            if range.contains(&value) {
                return Ok(value);
            }
            Err(input(format!("`{field}` must be from {least} to {most}")))
        };
        let max_output = within("max_output", self.max_output, 8 << 20, 1..=1 << 30)?;
        Ok(Program {
            path,
            sha256,
            timeout,
            max_output: usize::try_from(max_output).unwrap_or(usize::MAX),
            memory: within("memory", self.memory, 1 << 30, 16 << 20..=1 << 50)?,
            open_files: within("open_files", self.open_files, 256, 16..=1 << 20)?,
            processes: within("processes", self.processes, 256, 1..=1 << 16)?,
            network: self.network,
            reads: self.reads,
            writes: self.writes,
            unconfined: self.unconfined,
            settings: Value::map(self.settings),
            secrets,
            cx: cx.clone(),
            known: Arc::default(),
        })
    }
}

impl TargetKind for External {
    const KIND: &'static str = "external";
    type Config = ExternalConfig;
    type Reader = Plugin;
    type Writer = Plugin;

    fn identity(config: &ExternalConfig) -> String {
        if let Some(path) = &config.scripted {
            return format!("external scripted in {path}");
        }
        let or_nothing = |text: &Option<String>| text.clone().unwrap_or_default();
        let settings = Value::map(config.settings.clone()).to_json();
        format!("external {} sha256 {} {settings}", or_nothing(&config.program), or_nothing(&config.sha256))
    }

    fn is_stand_in(config: &ExternalConfig) -> bool {
        config.scripted.as_ref().is_some_and(|path| !path.starts_with('/'))
    }

    async fn reader(mut config: ExternalConfig, cx: &ConnectCx) -> Result<Plugin, Failure> {
        let secrets = std::mem::take(&mut config.secrets);
        config.plugin(secrets, cx)
    }

    async fn writer(mut config: ExternalConfig, cx: &ConnectCx) -> Result<Plugin, Failure> {
        let mut secrets = std::mem::take(&mut config.secrets);
        secrets.append(&mut config.write_secrets);
        config.plugin(secrets, cx)
    }
}
