//! [`Transport`]: how an action reaches a machine. One for the machine Farrier runs on, one for SSH, and one for the
//! scripted hosts that stand in for machines.
//!
//! Only [`Transport::run`] differs between real machines. The rest is commands, the same for both, in [`crate::posix`];
//! scripted hosts answer it from their state.

use std::time::Duration;

use async_trait::async_trait;
use farrier_model::Failure;

use crate::capture::Capture;
use crate::marks::Marks;
use crate::posix;

/// One command.
#[derive(Debug)]
pub(crate) struct Command<'a> {
    /// The program and its arguments; not empty.
    pub(crate) argv: Vec<&'a str>,
    /// Variables besides the usual ones and the marks.
    pub(crate) env: Vec<(&'a str, &'a str)>,
    pub(crate) marks: &'a Marks,
    /// Absolute.
    pub(crate) cwd: &'a str,
    pub(crate) stdin: Option<&'a str>,
    /// Bytes kept of the beginning and of the end of each output.
    pub(crate) max_output: usize,
    /// After this time the machine itself ends the command, whether Farrier is still there or not.
    pub(crate) time_limit: Duration,
    /// It changes nothing, so it is never in doubt.
    pub(crate) read_only: bool,
}

impl<'a> Command<'a> {
    /// A small command of the plugin's own.
    pub(crate) fn new(argv: &[&'a str], marks: &'a Marks) -> Command<'a> {
        Command {
            argv: argv.to_vec(),
            env: Vec::new(),
            marks,
            cwd: "/",
            stdin: None,
            max_output: 64 << 10,
            time_limit: Duration::from_secs(60),
            read_only: false,
        }
    }

    /// The same, as one that changes nothing.
    pub(crate) fn reading(self) -> Command<'a> {
        Command { read_only: true, ..self }
    }
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Code(i32),
    Signal(i32),
    /// By its time limit.
    Late,
}

/// A command that ended.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) ended: Ended,
    pub(crate) stdout: Capture,
    pub(crate) stderr: Capture,
}

/// What is known of a machine without asking it for anything in particular.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    /// The kernel's random name for the time since it was started.
    pub(crate) boot_id: String,
    pub(crate) uptime: Duration,
    pub(crate) hostname: String,
    pub(crate) kernel: String,
    pub(crate) architecture: String,
    /// `ID` of `/etc/os-release`, such as `debian`.
    pub(crate) os: String,
    /// `VERSION_ID`, such as `12`.
    pub(crate) os_version: String,
    pub(crate) processors: u32,
    pub(crate) memory_bytes: u64,
}

/// A unit of the service manager.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Service {
    pub(crate) running: bool,
    /// Nothing for units that cannot be enabled or disabled, such as static ones.
    pub(crate) enabled: Option<bool>,
    /// Told apart from a stopped one: its last start or its work failed.
    pub(crate) failed: bool,
}

/// What can be done with a unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Start,
    Stop,
    Restart,
    Enable,
    Disable,
}

impl Verb {
    /// As the service manager says it.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Verb::Start => "start",
            Verb::Stop => "stop",
            Verb::Restart => "restart",
            Verb::Enable => "enable",
            Verb::Disable => "disable",
        }
    }
}

/// A small file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RemoteFile {
    pub(crate) content: String,
    /// Four octal digits.
    pub(crate) mode: String,
    pub(crate) owner: String,
    pub(crate) group: String,
}

/// How to reach machines. Called for many of them at once. Every failure that leaves open whether something was
/// changed is in doubt.
#[async_trait]
pub(crate) trait Transport: Send + Sync {
    /// Runs a command to its end. Dropping the future ends the command and what it started.
    async fn run(&self, host: &str, command: &Command<'_>) -> Result<Finished, Failure>;

    /// What can be said of a program before it is run.
    fn find_program(&self, _host: &str, _program: &str) -> Result<(), Failure> {
        Ok(())
    }

    async fn facts(&self, host: &str, marks: &Marks) -> Result<Facts, Failure> {
        posix::facts(self, host, marks).await
    }

    /// Nothing when there is no such unit.
    async fn service(&self, host: &str, unit: &str, marks: &Marks) -> Result<Option<Service>, Failure> {
        posix::service(self, host, unit, marks).await
    }

    async fn set_service(&self, host: &str, unit: &str, verb: Verb, marks: &Marks) -> Result<(), Failure> {
        posix::set_service(self, host, unit, verb, marks).await
    }

    /// Nothing when there is no such file; an error when it is no regular file or longer than `limit`.
    async fn read_file(
        &self,
        host: &str,
        path: &str,
        limit: usize,
        marks: &Marks,
    ) -> Result<Option<RemoteFile>, Failure> {
        posix::read_file(self, host, path, limit, marks).await
    }

    /// Replaces, makes or (with nothing wanted) removes a file, if it still is `before`; otherwise fails with drift.
    async fn write_file(
        &self,
        host: &str,
        path: &str,
        before: Option<&RemoteFile>,
        wanted: Option<&RemoteFile>,
        marks: &Marks,
    ) -> Result<(), Failure> {
        posix::write_file(self, host, path, before, wanted, marks).await
    }

    /// Asks the machine to start again, unless `boot_id` is over already. Returns before it does.
    async fn reboot(&self, host: &str, boot_id: &str, marks: &Marks) -> Result<(), Failure> {
        posix::reboot(self, host, boot_id, marks).await
    }
}
