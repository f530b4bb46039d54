//! Connections: how many, from whom, and how long a slow one may take.
//!
//! A connection that sends nothing useful costs a task and a buffer, and is closed after [`HEADER_TIME`]. When there are as many
//! as are allowed, the oldest of those that have not sent a whole request makes room for the new one: whoever opens connections
//! and holds them pushes out their own.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use sha2::{Digest as _, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

use crate::metrics::Metrics;
use crate::tls::Certificates;

/// How long the head of a request may take to arrive, and a handshake; also how long an idle connection stays open.
const HEADER_TIME: Duration = Duration::from_secs(10);
/// The largest head of a request, and the buffer of a connection.
const BUFFER: usize = 16 * 1024;
/// Headers of one request.
const HEADERS: usize = 64;
/// How long answers that are being written may take once the service stops.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// The name of the socket in the data directory.
pub const SOCKET: &str = "farrier.sock";

/// Who is at the other end.
#[derive(Debug, Clone)]
pub(crate) enum Peer {
    /// A process of this machine, at the socket in the data directory.
    Socket { uid: u32 },
    /// Somebody on the network.
    Network { address: Option<SocketAddr>, certificate: Option<[u8; 32]> },
}

impl Default for Peer {
    /// Nobody who is known.
    fn default() -> Peer {
        Peer::Network { address: None, certificate: None }
    }
}

impl Peer {
    /// The SHA-256 of the client certificate that was checked.
    pub(crate) fn certificate(&self) -> Option<&[u8; 32]> {
        match self {
            Peer::Socket { .. } => None,
            Peer::Network { certificate, .. } => certificate.as_ref(),
        }
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Peer::Socket { uid } => write!(f, "uid {uid}"),
            Peer::Network { address: Some(address), .. } => write!(f, "{}", address.ip()),
            Peer::Network { address: None, .. } => f.write_str("unknown"),
        }
    }
}

/// Where the service listens.
#[derive(Default)]
pub struct Listeners {
    /// On the network; with TLS, or without.
    pub network: Option<(TcpListener, Option<Certificates>)>,
    /// In the data directory.
    pub socket: Option<UnixListener>,
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listeners").finish_non_exhaustive()
    }
}

/// Opens the socket in a data directory that this process owns. What a killed predecessor left there is taken away.
///
/// # Errors
/// The socket cannot be made.
pub fn open_socket(dir: &Path) -> std::io::Result<UnixListener> {
    let path = dir.join(SOCKET);
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    // Addresses of sockets are short; a path through an open directory always fits.
    let held = std::fs::File::open(dir)?;
    let listener = UnixListener::bind(through(&held))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// The way to the socket through an open directory.
pub fn through(dir: &std::fs::File) -> std::path::PathBuf {
    use std::os::fd::AsRawFd as _;
    format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()).into()
}

/// Everything that accepts.
pub(crate) struct Server {
    pub(crate) router: Router,
    pub(crate) metrics: Metrics,
    pub(crate) limit: usize,
    pub(crate) stopping: watch::Receiver<bool>,
    open: Mutex<Open>,
}

#[derive(Default)]
struct Open {
    last: u64,
    connections: BTreeMap<u64, Arc<Connection>>,
}

#[derive(Default)]
struct Connection {
    /// It has sent a whole head.
    has_asked: AtomicBool,
    make_room: Notify,
}

impl Server {
    pub(crate) fn new(
        router: Router,
        metrics: Metrics,
        limit: usize,
        stopping: watch::Receiver<bool>,
    ) -> Arc<Server> {
        Arc::new(Server { router, metrics, limit, stopping, open: Mutex::default() })
    }

    /// Accepts until the service stops, then lets answers that are under way go out.
    pub(crate) async fn serve(self: Arc<Server>, listeners: Listeners) {
        let mut connections = JoinSet::new();
        let mut stopping = self.stopping.clone();
        let Listeners { network, socket } = listeners;
        let tls = network.as_ref().and_then(|(_, tls)| tls.clone());
        let network = network.map(|(listener, _)| listener);
        loop {
            tokio::select! {
                () = stopped(&mut stopping) => break,
                accepted = accept_network(network.as_ref()) => match accepted {
                    Ok((stream, address)) => {
                        let _ = stream.set_nodelay(true);
                        let tls = tls.as_ref().map(|tls| TlsAcceptor::from(tls.current()));
                        if let Some((id, connection)) = self.admit() {
                            connections.spawn(self.clone().network(id, connection, stream, address, tls));
                        }
                    }
                    Err(error) => pause(&error).await,
                },
                accepted = accept_socket(socket.as_ref()) => match accepted {
                    Ok(stream) => {
                        if let (Some(uid), Some((id, connection))) = (allowed(&stream), self.admit()) {
                            connections.spawn(self.clone().connection(id, connection, stream, Peer::Socket { uid }));
                        }
                    }
                    Err(error) => pause(&error).await,
                },
                Some(_) = connections.join_next() => {}
            }
        }
        drop((network, socket));
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WORDS, all).await;
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection; none when all are taken by others that have asked for something.
    fn admit(&self) -> Option<(u64, Arc<Connection>)> {
        let mut open = self.open();
        if open.connections.len() >= self.limit {
            let silent = open.connections.iter().find(|(_, one)| !one.has_asked.load(Ordering::Relaxed));
            let (id, silent) = silent.map(|(id, one)| (*id, one.clone()))?;
            silent.make_room.notify_one();
            open.connections.remove(&id);
        }
        open.last += 1;
        let (id, connection) = (open.last, Arc::new(Connection::default()));
        open.connections.insert(id, connection.clone());
        self.metrics.connections(open.connections.len());
        Some((id, connection))
    }

    async fn network(
        self: Arc<Server>,
        id: u64,
        connection: Arc<Connection>,
        stream: tokio::net::TcpStream,
        address: SocketAddr,
        tls: Option<TlsAcceptor>,
    ) {
        let Some(tls) = tls else {
            let peer = Peer::Network { address: Some(address), certificate: None };
            return self.connection(id, connection, stream, peer).await;
        };
        let shaken = tokio::select! {
            shaken = tokio::time::timeout(HEADER_TIME, tls.accept(stream)) => shaken.ok().and_then(Result::ok),
            () = connection.make_room.notified() => None,
        };
        let Some(stream) = shaken else { return self.forget(id) };
        let certificates = stream.get_ref().1.peer_certificates();
        let certificate = certificates.and_then(|all| all.first()).map(|first| Sha256::digest(first).into());
        let peer = Peer::Network { address: Some(address), certificate };
        self.connection(id, connection, stream, peer).await;
    }

    async fn connection<S>(self: Arc<Server>, id: u64, connection: Arc<Connection>, stream: S, peer: Peer)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (router, asks) = (self.router.clone(), connection.clone());
        let service = hyper::service::service_fn(move |request: http::Request<Incoming>| {
            asks.has_asked.store(true, Ordering::Relaxed);
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(peer.clone());
            router.clone().oneshot(request)
        });
        let mut served = std::pin::pin!(
            http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEADER_TIME)
                .max_headers(HEADERS)
                .max_buf_size(BUFFER)
                .serve_connection(TokioIo::new(stream), service)
        );
        let mut stopping = self.stopping.clone();
        tokio::select! {
            // Whatever ends a connection concerns its other end only.
            _ = served.as_mut() => {}
            () = connection.make_room.notified() => {}
            () = stopped(&mut stopping) => {
                served.as_mut().graceful_shutdown();
                let _ = served.await;
            }
        }
        self.forget(id);
    }

    fn forget(&self, id: u64) {
        let mut open = self.open();
        open.connections.remove(&id);
        self.metrics.connections(open.connections.len());
    }
}

async fn accept_network(
    listener: Option<&TcpListener>,
) -> std::io::Result<(tokio::net::TcpStream, SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

async fn accept_socket(listener: Option<&UnixListener>) -> std::io::Result<tokio::net::UnixStream> {
    match listener {
        Some(listener) => listener.accept().await.map(|(stream, _)| stream),
        None => std::future::pending().await,
    }
}

/// The user at the other end, when it is the one of this process, or root.
fn allowed(stream: &tokio::net::UnixStream) -> Option<u32> {
    let uid = stream.peer_cred().ok()?.uid();
    (uid == 0 || uid == rustix::process::geteuid().as_raw()).then_some(uid)
}

/// Waits until the service stops.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

/// No more files, for instance: it goes better when some connection has ended.
async fn pause(error: &std::io::Error) {
    tracing::warn!(%error, "a connection could not be accepted");
    tokio::time::sleep(Duration::from_millis(50)).await;
}
