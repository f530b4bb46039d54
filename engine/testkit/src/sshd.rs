//! An OpenSSH server on loopback, with host keys, a client key and a `known_hosts` of its own.
//!
//! ```no_run
//! use farrier_testkit::sshd::{Options, Sshd};
//!
//! let host = Sshd::start(Options::default());
//! let known_hosts = host.known_hosts("worker-1");
//! let config = host.client_config("worker-1");
//! // … `ssh -F config worker-1`, with that line in `known_hosts` …
//! host.cut();
//! ```
//!
//! Whoever runs the tests logs in as themselves, with the key at [`Sshd::identity`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::or_panic;
use crate::process::{self, Account, Launch, Process, on_a_free_port, require_program};

/// What a server should be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The program that reads the client's command line, instead of the account's own shell: `dash`, `bash`.
    pub shell: Option<String>,
    /// The address on loopback that it listens at, instead of 127.0.0.1.
    pub address: Option<String>,
    /// Further lines for the server's configuration, such as `MaxSessions 3`.
    pub configuration: String,
}

impl Options {
    fn address(&self) -> &str {
        self.address.as_deref().unwrap_or("127.0.0.1")
    }
}

/// A running server, ended when dropped.
#[derive(Debug)]
pub struct Sshd {
    address: String,
    port: u16,
    // Before the folder, so that the server is gone when the folder goes.
    process: Option<Process>,
    folder: TempDir,
}

impl Sshd {
    /// Starts a server; panics with its last words when it does not start.
    #[track_caller]
    pub fn start(options: Options) -> Sshd {
        or_panic(Sshd::try_start(&options), "cannot start sshd")
    }

    /// Starts a server, or says why not.
    pub fn try_start(options: &Options) -> Result<Sshd> {
        require_program("sshd", "openssh-server")?;
        require_program("ssh", "openssh-client")?;
        if process::running_as_root()? {
            // Root's server insists on this empty folder, which the service's unit makes otherwise.
            std::fs::create_dir_all("/run/sshd").context("cannot make `/run/sshd`")?;
        }
        let folder = crate::temp_dir();
        make_key(&folder.path().join("host_key"))?;
        make_key(&folder.path().join("client_key"))?;
        std::fs::copy(folder.path().join("client_key.pub"), folder.path().join("authorized_keys"))
            .context("cannot copy the client's key")?;
        std::fs::write(folder.path().join("sshd_config"), configuration(folder.path(), options))
            .context("cannot write `sshd_config`")?;
        let (port, process) = on_a_free_port(|port| Ok((port, launch(folder.path(), port)?)))?;
        Ok(Sshd { address: options.address().to_owned(), port, process: Some(process), folder })
    }

    /// The port at its address.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The client's private key.
    pub fn identity(&self) -> PathBuf {
        self.folder.path().join("client_key")
    }

    /// A line for `known_hosts` that names this server's host key for `name`.
    #[track_caller]
    pub fn known_hosts(&self, name: &str) -> String {
        let key = std::fs::read_to_string(self.folder.path().join("host_key.pub"));
        format!("{name} {}", or_panic(key, "the host key is gone"))
    }

    /// A section for `ssh_config` that leads `name` to this server.
    pub fn client_config(&self, name: &str) -> String {
        format!(
            "Host {name}\n    HostName {}\n    Port {}\n    HostKeyAlias {name}\n    IdentityFile {}\n    \
             IdentitiesOnly yes\n",
            self.address,
            self.port,
            self.identity().display()
        )
    }

    /// What the server has said so far.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// How often a client was let in.
    pub fn logins(&self) -> usize {
        self.log().lines().filter(|line| line.starts_with("Accepted publickey ")).count()
    }

    /// Ends every connection at once, as a machine that loses its power does; the server goes on listening. What was run
    /// goes on, too.
    #[track_caller]
    pub fn cut(&self) {
        let Some(server) = self.process.as_ref().map(Process::id) else { return };
        for id in sessions(server) {
            // One that has ended by itself meanwhile is gone as well.
            let _ = Command::new("kill").args(["-s", "KILL", &id.to_string()]).output();
        }
    }

    /// Gives the server another host key, as a machine that was installed anew has; known only after it is started again.
    #[track_caller]
    pub fn change_host_key(&mut self) {
        self.stop();
        for file in ["host_key", "host_key.pub"] {
            or_panic(std::fs::remove_file(self.folder.path().join(file)), "cannot remove the host key");
        }
        or_panic(make_key(&self.folder.path().join("host_key")), "cannot make another host key");
        self.start_again();
    }

    /// Stops the server, and ends its connections.
    #[track_caller]
    pub fn stop(&mut self) {
        self.cut();
        if let Some(process) = self.process.take() {
            or_panic(process.stop("TERM"), "cannot stop sshd");
        }
    }

    /// Starts the stopped server again at the same address.
    #[track_caller]
    pub fn start_again(&mut self) {
        if self.process.is_none() {
            self.process = Some(or_panic(launch(self.folder.path(), self.port), "cannot start sshd again"));
        }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        self.cut();
    }
}

/// The server's own processes for its connections: one or two each, never what clients run.
fn sessions(server: u32) -> Vec<u32> {
    let mut all: Vec<(u32, u32)> = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
        let Some((name, rest)) = stat.rsplit_once(") ") else { continue };
        let parent = rest.split(' ').nth(1).and_then(|parent| parent.parse().ok());
        if let Some(parent) = parent.filter(|_| name.ends_with("(sshd") || name.ends_with("(sshd-session")) {
            all.push((id, parent));
        }
    }
    let mut found = vec![server];
    let mut at = 0;
    while let Some(parent) = found.get(at).copied() {
        found.extend(all.iter().filter(|(_, of)| *of == parent).map(|(id, _)| *id));
        at += 1;
    }
    found.split_off(1)
}

fn make_key(path: &Path) -> Result<()> {
    let mut command = Command::new(require_program("ssh-keygen", "openssh-client")?);
    command.args(["-q", "-t", "ed25519", "-N", "", "-C", "farrier-testkit", "-f"]).arg(path);
    process::run(&mut command, "").map(drop).context("cannot make a key")
}

fn launch(folder: &Path, port: u16) -> Result<Process> {
    let mut command = vec![OsString::from(require_program("sshd", "openssh-server")?)];
    command.extend(["-D", "-e", "-p", &port.to_string(), "-f"].map(OsString::from));
    command.push(folder.join("sshd_config").into());
    Process::start(&Launch {
        command,
        account: &Account::own(),
        folder,
        log: &folder.join("log"),
        sudden: "KILL",
        ready: "Server listening on",
    })
}

/// With `SHLVL` set, bash takes itself for an inner shell and leaves the account's start-up files alone, which may do
/// anything and take long.
fn configuration(folder: &Path, options: &Options) -> String {
    let folder = folder.display();
    let shell = options
        .shell
        .as_ref()
        .map(|shell| format!("ForceCommand exec {shell} -c \"$SSH_ORIGINAL_COMMAND\"\n"))
        .unwrap_or_default();
    format!(
        "ListenAddress {}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxStartups 200
SetEnv SHLVL=2
LogLevel VERBOSE
{shell}{}
",
        options.address(),
        options.configuration
    )
}
