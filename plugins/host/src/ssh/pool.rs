//! Connections: one for each host, opened when first needed, shared by its commands, and opened again when it broke.

use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::num::NonZeroUsize;
use std::ops::Deref;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use farrier_model::{Failure, FailureKind};
use openssh::{ControlPersist, KnownHosts, Session, SessionBuilder};
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::config::Settings;

/// A server under load turns new connections away before it has asked who is there (`MaxStartups`).
const TRIES: u32 = 4;

/// How the folders for sockets are named; the process id and something random follow.
const PREFIX: &str = "farrier-ssh-";

/// The connections of one configuration.
#[derive(Debug)]
pub(crate) struct Pool {
    settings: Settings,
    opening: Semaphore,
    hosts: Mutex<HashMap<String, Arc<Slot>>>,
    /// Private, and short: a socket's path has at most 108 bytes. The last to go, after what has its socket in it.
    folder: TempDir,
}

/// An open connection, shared by those who use it.
#[derive(Debug, Clone)]
pub(crate) struct Connection(Arc<Open>);

impl Deref for Connection {
    type Target = Session;
    fn deref(&self) -> &Session {
        &self.0.0
    }
}

/// Dropped, it is closed: `ssh` itself would keep it for as long as an idle one may stay.
#[derive(Debug)]
struct Open(Session);

impl Open {
    /// Orders `ssh` to end the connection. None when it is gone already.
    fn end(&self) -> Option<Ending> {
        // A hello and an order to end, in the words of OpenSSH's PROTOCOL.mux.
        let order: [u32; 6] = [8, 0x0000_0001, 4, 8, 0x1000_0005, 0];
        let bytes: Vec<u8> = order.iter().flat_map(|number| number.to_be_bytes()).collect();
        let mut socket = UnixStream::connect(self.0.control_socket()).ok()?;
        socket.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        socket.write_all(&bytes).ok()?;
        Some(Ending(socket))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        drop(self.end());
    }
}

/// An order to end that `ssh` may not have read yet. It would not read it any more when nobody were there for its answer.
struct Ending(UnixStream);

impl Drop for Ending {
    fn drop(&mut self) {
        // What it answers tells that it has read the order.
        let _ = self.0.read_exact(&mut [0; 24]);
    }
}

impl Drop for Pool {
    /// Ends all connections at once: one after the other, many hosts would take long to leave.
    fn drop(&mut self) {
        let hosts = self.hosts.get_mut().unwrap_or_else(PoisonError::into_inner);
        let connections: Vec<Connection> =
            hosts.values().filter_map(|slot| slot.session.try_lock().ok()?.clone()).collect();
        let ending: Vec<Ending> = connections.iter().filter_map(|connection| connection.0.end()).collect();
        drop(ending);
    }
}

/// One host.
#[derive(Debug)]
pub(crate) struct Slot {
    session: tokio::sync::Mutex<Option<Connection>>,
    commands: Semaphore,
}

impl Slot {
    /// A place for one command on this host's connection.
    pub(crate) async fn place(&self) -> Result<SemaphorePermit<'_>, Failure> {
        self.commands
            .acquire()
            .await
            .map_err(|_| Failure::new(FailureKind::Internal, "the connections are closed"))
    }
}

impl Pool {
    /// The pool for these settings: the reading and the writing side share one, and so do targets.
    pub(crate) fn of(settings: Settings) -> Result<Arc<Pool>, Failure> {
        static ALL: OnceLock<Mutex<HashMap<Settings, Weak<Pool>>>> = OnceLock::new();
        let mut all = ALL.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = all.get(&settings).and_then(Weak::upgrade) {
            return Ok(pool);
        }
        all.retain(|_, pool| pool.strong_count() > 0);
        let trouble = |error: std::io::Error| {
            Failure::new(
                FailureKind::Refused,
                format!("cannot make a private folder for SSH connections: {error}"),
            )
        };
        let above = short_folder();
        remove_old(&above);
        let folder = tempfile::Builder::new()
            .prefix(&format!("{PREFIX}{}-", std::process::id()))
            .permissions(std::fs::Permissions::from_mode(0o700))
            .tempdir_in(above)
            .map_err(trouble)?;
        let mut config = std::fs::OpenOptions::new();
        config.write(true).create_new(true).mode(0o600);
        config
            .open(folder.path().join("config"))
            .and_then(|mut file| file.write_all(settings.config.as_bytes()))
            .map_err(trouble)?;
        let opening = Semaphore::new(settings.opening);
        let pool = Arc::new(Pool { settings: settings.clone(), folder, opening, hosts: Mutex::default() });
        all.insert(settings, Arc::downgrade(&pool));
        Ok(pool)
    }

    pub(crate) fn slot(&self, host: &str) -> Arc<Slot> {
        let mut hosts = self.hosts.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = hosts.entry(host.to_owned()).or_insert_with(|| {
            Arc::new(Slot {
                session: tokio::sync::Mutex::default(),
                commands: Semaphore::new(self.settings.commands_per_host),
            })
        });
        slot.clone()
    }

    /// A connection that works now.
    pub(crate) async fn session(&self, host: &str, slot: &Slot) -> Result<Connection, Failure> {
        let mut known = slot.session.lock().await;
        if let Some(session) = known.as_ref() {
            if session.check().await.is_ok() {
                return Ok(session.clone());
            }
            *known = None;
        }
        let _place = self
            .opening
            .acquire()
            .await
            .map_err(|_| Failure::new(FailureKind::Internal, "the connections are closed"))?;
        let mut tried = 1;
        loop {
            match self.open(host).await {
                Ok(session) => return Ok(known.insert(Connection(Arc::new(Open(session)))).clone()),
                Err(Trouble { turned_away: true, .. }) if tried < TRIES => {
                    tokio::time::sleep(Duration::from_millis(200 << tried)).await;
                    tried += 1;
                }
                Err(trouble) => return Err(trouble.failure),
            }
        }
    }

    async fn open(&self, host: &str) -> Result<Session, Trouble> {
        let address = match &self.settings.domain {
            Some(domain) if !host.contains('.') => format!("{host}.{domain}"),
            _ => host.to_owned(),
        };
        let idle = usize::try_from(self.settings.idle_close.as_secs()).ok().and_then(NonZeroUsize::new);
        let mut builder = SessionBuilder::default();
        builder
            .known_hosts_check(KnownHosts::Strict)
            .config_file(self.folder.path().join("config"))
            .control_directory(self.folder.path())
            .control_persist(ControlPersist::IdleFor(idle.unwrap_or(NonZeroUsize::MIN)))
            .connect_timeout(self.settings.connect_timeout.max(Duration::from_secs(1)));
        // `ssh` itself watches over the time until the other side answers, and nobody over what comes then.
        let patience = self.settings.connect_timeout * 3 + Duration::from_secs(5);
        match tokio::time::timeout(patience, builder.connect_mux(&address)).await {
            Ok(Ok(session)) => Ok(session),
            Ok(Err(error)) => Err(Trouble::of(host, &error)),
            Err(_) => Err(Trouble::new(host, "it does not go on", FailureKind::Unreachable)),
        }
    }
}

/// Why there is no connection.
struct Trouble {
    failure: Failure,
    turned_away: bool,
}

impl Trouble {
    fn new(host: &str, reason: &str, kind: FailureKind) -> Trouble {
        let failure = Failure::new(kind, format!("cannot reach the host `{host}`: {reason}"));
        Trouble { failure, turned_away: false }
    }

    fn of(host: &str, error: &openssh::Error) -> Trouble {
        let said = super::innermost(error);
        if said.contains("REMOTE HOST IDENTIFICATION HAS CHANGED") {
            let mut trouble = Trouble::new(
                host,
                "it shows another host key than the one in `known_hosts`",
                FailureKind::Denied,
            );
            trouble.failure = trouble.failure.help(
                "someone may be in between; when the host was installed anew, replace its line in the file of \
                 `ssh.known_hosts`",
            );
            return trouble;
        }
        if said.contains("Host key verification failed") || said.contains("host key is known") {
            let mut trouble = Trouble::new(host, "its host key is not in `known_hosts`", FailureKind::Denied);
            trouble.failure =
                trouble.failure.help("add it to the file of `ssh.known_hosts`, from a source you trust");
            return trouble;
        }
        let kind =
            if said.contains("Permission denied") { FailureKind::Denied } else { FailureKind::Unreachable };
        let lines: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        let shown = lines[lines.len().saturating_sub(2)..].join("; ");
        let turned_away = kind == FailureKind::Unreachable && said.contains("kex_exchange_identification");
        Trouble { turned_away, ..Trouble::new(host, &crate::words::shortened(&shown, 300), kind) }
    }
}

/// The user's own folder for such things, or memory that all share, or the folder for temporary files. A disk would have
/// some files to make and to forget for each connection.
fn short_folder() -> PathBuf {
    const LONGEST: usize = 40;
    let usable =
        |folder: &PathBuf| folder.is_absolute() && folder.is_dir() && folder.as_os_str().len() <= LONGEST;
    let own = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    own.filter(usable).or_else(shared_memory).unwrap_or_else(|| PathBuf::from("/tmp"))
}

/// Where Linux has it, and all may write without touching what is another's.
fn shared_memory() -> Option<PathBuf> {
    let folder = PathBuf::from("/dev/shm");
    let found = folder.symlink_metadata().ok()?;
    (found.is_dir() && found.mode() & 0o7777 == 0o1777).then_some(folder)
}

/// Removes what processes that are gone have left: a killed one could not do it.
fn remove_old(above: &Path) {
    for entry in std::fs::read_dir(above).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let owner =
            name.to_str().and_then(|name| name.strip_prefix(PREFIX)?.split('-').next()?.parse::<u32>().ok());
        let own =
            |found: std::fs::Metadata| found.is_dir() && found.uid() == rustix::process::geteuid().as_raw();
        if let Some(owner) = owner
            && !Path::new(&format!("/proc/{owner}")).exists()
            && entry.path().symlink_metadata().is_ok_and(own)
        {
            // Their connections close by themselves when they are idle.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
