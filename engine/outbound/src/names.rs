//! What a name stands for, when a connection is made: [`Checked`].
//!
//! A name is looked up once for each connection, and the addresses that pass are those that are connected to. So whoever
//! answers for the name cannot say one thing to the check and another to the connection.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use async_trait::async_trait;
use farrier_model::Failure;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::network::Networks;

/// Says which addresses a name has.
#[async_trait]
pub(crate) trait Names: Send + Sync {
    /// The addresses of `host`, with `port`.
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>>;
}

/// What this machine says: its files and its DNS servers.
pub(crate) struct System;

#[async_trait]
impl Names for System {
    async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
        Ok(tokio::net::lookup_host((host, port)).await?.collect())
    }
}

/// Resolves names to allowed addresses alone.
pub(crate) struct Checked {
    pub(crate) networks: Networks,
    pub(crate) names: Arc<dyn Names>,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (networks, names) = (self.networks.clone(), self.names.clone());
        Box::pin(async move {
            match networks.resolve_with(&*names, name.as_str(), 0).await {
                Ok(addresses) => Ok(Box::new(addresses.into_iter())
                    as Box<dyn Iterator<Item = SocketAddr> + Send>
                    as Addrs),
                Err(failure) => Err(Box::new(Refused(failure)) as Box<dyn std::error::Error + Send + Sync>),
            }
        })
    }
}

/// Carries a failure through the library.
#[derive(Debug)]
pub(crate) struct Refused(pub(crate) Failure);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Refused {}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use farrier_model::FailureKind;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;
    use crate::client::{Client, Web as _, tests::client_by};
    use crate::network::Network;
    use crate::request::{Method, Request};

    /// Stands for an address that may be connected to; the other one may not.
    const ALLOWED: &str = "127.0.0.2";
    const FORBIDDEN: &str = "127.0.0.1";

    /// A zone whose owner answers each question with the next of these, and the last one for ever.
    struct Zone {
        answers: Vec<Vec<&'static str>>,
        asked: AtomicUsize,
    }

    #[async_trait]
    impl Names for Zone {
        async fn addresses(&self, host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
            assert_eq!(host, "api.example.org");
            let asked = self.asked.fetch_add(1, Ordering::SeqCst);
            let answer = &self.answers[asked.min(self.answers.len() - 1)];
            Ok(answer.iter().map(|address| SocketAddr::new(address.parse().unwrap(), port)).collect())
        }
    }

    /// A server at one address. It says how many came, and answers as many requests on one connection as it is told.
    async fn server(at: SocketAddr, per_connection: usize) -> (SocketAddr, Arc<Mutex<usize>>) {
        let listener = TcpListener::bind(at).await.unwrap();
        let at = listener.local_addr().unwrap();
        let came = Arc::<Mutex<usize>>::default();
        let counted = came.clone();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                *counted.lock().unwrap() += 1;
                tokio::spawn(async move {
                    for _ in 0..per_connection {
                        let mut request = Vec::with_capacity(4096);
                        if stream.read_buf(&mut request).await.unwrap_or(0) == 0 {
                            return;
                        }
                        let host = format!("host: api.example.org:{}", at.port());
                        assert!(String::from_utf8_lossy(&request).to_lowercase().contains(&host));
                        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await;
                    }
                });
            }
        });
        (at, came)
    }

    fn client(zone: &Arc<Zone>, port: u16) -> Client {
        let networks =
            Networks::new(&[Network::parse(ALLOWED).unwrap()], &url::Host::Domain("api.example.org"));
        client_by(&format!("http://api.example.org:{port}"), networks, zone.clone())
    }

    fn zone(answers: &[&[&'static str]]) -> Arc<Zone> {
        let answers = answers.iter().map(|answer| answer.to_vec()).collect();
        Arc::new(Zone { answers, asked: AtomicUsize::new(0) })
    }

    fn at(address: &str, port: u16) -> SocketAddr {
        SocketAddr::new(address.parse().unwrap(), port)
    }

    #[tokio::test]
    async fn of_several_addresses_only_those_that_are_allowed_are_connected_to() {
        let (good, came) = server(at(ALLOWED, 0), 1).await;
        let (_, strayed) = server(at(FORBIDDEN, good.port()), 1).await;
        let request = Request::new(Method::Get, ["a"]).unwrap();
        for answer in [[FORBIDDEN, ALLOWED], [ALLOWED, FORBIDDEN]] {
            let answered = client(&zone(&[&answer]), good.port()).send(&request).await.unwrap();
            assert_eq!(answered.text(), "hi");
        }
        assert_eq!((*came.lock().unwrap(), *strayed.lock().unwrap()), (2, 0));

        // Nobody is there at the allowed address, and the other one is no way out.
        let (forbidden, strayed) = server(at(FORBIDDEN, 0), 1).await;
        let failure =
            client(&zone(&[&[ALLOWED, FORBIDDEN]]), forbidden.port()).send(&request).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
        assert_eq!(*strayed.lock().unwrap(), 0);
    }

    #[tokio::test]
    async fn a_name_that_changes_its_mind_leads_nowhere() {
        // Kept open, a connection goes on to where it was made.
        for per_connection in [1, 2] {
            let (good, came) = server(at(ALLOWED, 0), per_connection).await;
            let (_, strayed) = server(at(FORBIDDEN, good.port()), 1).await;
            let zone = zone(&[&[ALLOWED], &[FORBIDDEN]]);
            let client = client(&zone, good.port());
            let request = Request::new(Method::Get, ["a"]).unwrap();
            // Had the connection asked again after the check, it would be told the other address.
            assert_eq!(client.send(&request).await.unwrap().text(), "hi");
            assert_eq!(zone.asked.load(Ordering::SeqCst), 1, "one connection asks once");
            match client.send(&request).await {
                Ok(answer) => assert_eq!((answer.text().as_str(), per_connection), ("hi", 2)),
                Err(failure) => {
                    assert_eq!((failure.kind, per_connection), (FailureKind::Denied, 1), "{failure}");
                    let reason = "`api.example.org` resolves to 127.0.0.1, which is neither";
                    assert!(failure.message.starts_with(reason), "{failure}");
                }
            }
            assert_eq!((*came.lock().unwrap(), *strayed.lock().unwrap()), (1, 0));
        }
    }
}
