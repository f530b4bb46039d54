//! A proxy between the plugin and a server that breaks connections on purpose.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Passes bytes on, until a connection has had as many from the server as it may.
pub(super) struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    upstream: Option<String>,
    /// Bytes from the server that one connection may get.
    limit: AtomicUsize,
    /// Bytes from the server that the latest connection got.
    passed: AtomicUsize,
    /// What is put behind the server's first answer on each connection.
    injected: Vec<u8>,
}

impl Proxy {
    /// Before `upstream` (`ldap://127.0.0.1:PORT`), listening at `ip`.
    pub(super) fn before(upstream: &str, ip: &str, injected: &[u8]) -> Proxy {
        Proxy::start(Some(upstream.trim_start_matches("ldap://").to_owned()), ip, injected)
    }

    /// Accepts connections and never says anything.
    pub(super) fn silent() -> Proxy {
        Proxy::start(None, "127.0.0.1", &[])
    }

    fn start(upstream: Option<String>, ip: &str, injected: &[u8]) -> Proxy {
        let listener = TcpListener::bind((ip.parse::<IpAddr>().unwrap(), 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            upstream,
            limit: AtomicUsize::new(usize::MAX),
            passed: AtomicUsize::new(0),
            injected: injected.to_vec(),
        });
        let serving = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let serving = serving.clone();
                std::thread::spawn(move || serving.serve(&client));
            }
        });
        Proxy { address, shared }
    }

    pub(super) fn url(&self) -> String {
        format!("ldap://{}", self.address)
    }

    /// How many bytes from the server each connection may get, those it had included.
    pub(super) fn limit(&self, bytes: usize) {
        self.shared.limit.store(bytes, Ordering::SeqCst);
    }

    /// How many bytes from the server the latest connection got.
    pub(super) fn passed(&self) -> usize {
        self.shared.passed.load(Ordering::SeqCst)
    }
}

impl Shared {
    fn serve(&self, client: &TcpStream) {
        let Some(upstream) = &self.upstream else {
            // Read until the client gives up.
            let _ = std::io::copy(&mut &*client, &mut std::io::sink());
            return;
        };
        let Ok(server) = TcpStream::connect(upstream) else { return };
        self.passed.store(0, Ordering::SeqCst);
        let (from_client, to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut &from_client, &mut &to_server);
            let _ = to_server.shutdown(Shutdown::Write);
        });
        let mut buffer = [0; 4096];
        let mut first = true;
        loop {
            let count = match (&server).read(&mut buffer) {
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            };
            let room = self.limit.load(Ordering::SeqCst).saturating_sub(self.passed.load(Ordering::SeqCst));
            let mut answer = buffer[..count.min(room)].to_vec();
            if std::mem::take(&mut first) {
                answer.extend(&self.injected);
            }
            self.passed.fetch_add(count.min(room), Ordering::SeqCst);
            match (&mut &*client).write_all(&answer) {
                Err(error) if error.kind() != ErrorKind::Interrupted => break,
                _ if count > room => break,
                _ => {}
            }
        }
        let _ = client.shutdown(Shutdown::Both);
        let _ = server.shutdown(Shutdown::Both);
    }
}
