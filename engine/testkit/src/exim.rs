//! A mail server that puts every mail into a folder.
//!
//! ```no_run
//! use farrier_testkit::exim::Exim;
//!
//! let server = Exim::start();
//! // … send something to someone@example.org at server.port() …
//! for mail in server.mails(1) {
//!     println!("{mail}");
//! }
//! ```
//!
//! It takes mail for `example.org`: none for `refused@example.org`, and for `later@example.org` it asks to come again.
//! It offers STARTTLS with a certificate for `localhost`, signed by [`Exim::ca_file`], and knows one user.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{Account, Launch, Process, on_a_free_port, require_program};
use crate::{certificates, or_panic};

/// The user that may log in.
pub const USER: &str = "farrier";
/// The user's password.
pub const PASSWORD: &str = "testkit-secret";

/// A running mail server, ended when dropped.
#[derive(Debug)]
pub struct Exim {
    port: u16,
    // Before the folder, so that the server is gone when the folder goes.
    _process: Process,
    folder: TempDir,
}

impl Exim {
    /// Starts a server; panics with its last words when it does not start.
    #[track_caller]
    pub fn start() -> Self {
        or_panic(Self::try_start(), "cannot start exim")
    }

    /// Starts a server, or says why not.
    pub fn try_start() -> Result<Self> {
        let server = require_program("exim4", "exim4-daemon-light")?;
        let account = Account::lent("Debian-exim")?;
        let folder = crate::temp_dir();
        certificates::make(folder.path())?;
        account.take(folder.path())?;
        // The supervisor opens the log before the server does.
        std::fs::write(folder.path().join("mainlog"), "").context("cannot make the log")?;
        for name in ["server.pem", "server.key", "mainlog"] {
            account.take(&folder.path().join(name))?;
        }
        let (port, process) = on_a_free_port(|port| {
            let configuration = folder.path().join("exim.conf");
            std::fs::write(&configuration, self::configuration(folder.path(), port))
                .context("cannot write the configuration")?;
            let command =
                vec![server.clone().into(), OsString::from("-C"), configuration.into(), "-bdf".into()];
            let process = Process::start(&Launch {
                command,
                account: &account,
                folder: folder.path(),
                log: &folder.path().join("mainlog"),
                sudden: "KILL",
                ready: "daemon started",
            })?;
            Ok((port, process))
        })?;
        Ok(Exim { port, _process: process, folder })
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate (PEM) that signed the server's.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Waits until `count` mails have come, and gives their texts in no particular order.
    #[track_caller]
    pub fn mails(&self, count: usize) -> Vec<String> {
        let mut mails = Vec::new();
        crate::wait_until("the mails are delivered", || {
            let new = std::fs::read_dir(self.folder.path().join("mail/new")).into_iter().flatten().flatten();
            mails = new.filter_map(|file| std::fs::read_to_string(file.path()).ok()).collect();
            mails.len() >= count
        });
        mails
    }

    /// What the server has written down: a line for each mail taken, refused and delivered.
    pub fn log(&self) -> String {
        ["mainlog", "rejectlog"]
            .map(|name| std::fs::read_to_string(self.folder.path().join(name)).unwrap_or_default())
            .concat()
    }
}

fn configuration(folder: &Path, port: u16) -> String {
    let folder = folder.display();
    format!(
        "primary_hostname = mail.example.org
spool_directory = {folder}/spool
log_file_path = {folder}/%slog
pid_file_path = {folder}/pid
notifier_socket =
keep_environment =
local_interfaces = 127.0.0.1
daemon_smtp_ports = {port}
# Everything runs as the one account that the daemon runs as.
deliver_drop_privilege = true
host_lookup =
tls_advertise_hosts = *
tls_certificate = {folder}/server.pem
tls_privatekey = {folder}/server.key
auth_advertise_hosts = ${{if eq{{$tls_in_cipher}}{{}}{{}}{{*}}}}
acl_smtp_rcpt = check_recipient
acl_smtp_data = accept

begin acl
check_recipient:
  deny   local_parts = refused
         message = no such person
  defer  local_parts = later
         message = come again later
  accept domains = example.org
  deny   message = relay not permitted

begin routers
all:
  driver = accept
  transport = folder

begin transports
folder:
  driver = appendfile
  directory = {folder}/mail
  create_directory
  maildir_format
  envelope_to_add
  return_path_add

begin authenticators
plain:
  driver = plaintext
  public_name = PLAIN
  server_prompts = :
  server_condition = ${{if and{{{{eq{{$auth2}}{{{USER}}}}}{{eq{{$auth3}}{{{PASSWORD}}}}}}}}}
  server_set_id = $auth2
"
    )
}
