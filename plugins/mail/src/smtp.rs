//! A mail server: [`Server`].
//!
//! **When a mail is in doubt.** Until the end of its text is sent, a server has nothing to deliver: whatever goes wrong
//! before, the mail was not sent. When the server answers the end of the text, it has said yes or no. Only when that
//! answer does not come, nobody can tell.
//!
//! **Privacy.** The connection is made private here, before the library speaks on it: with `smtps://` at once, otherwise
//! with STARTTLS, where everything that the server said before is forgotten, and a byte too many ends it. So nobody on
//! the way can put words into the server's mouth.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use async_trait::async_trait;
use farrier_action::Known;
use farrier_model::{Failure, FailureKind, Secret};
use farrier_outbound::tls_config;
use lettre::transport::smtp::authentication::{Credentials, Mechanism};
use lettre::transport::smtp::client::{AsyncSmtpConnection, AsyncTokioStream};
use lettre::transport::smtp::commands::{Data, Mail, Rcpt};
use lettre::transport::smtp::extension::ClientId;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use url::Host;

use crate::letter::Letter;
use crate::target::Outbox;

/// What a server has to be told to speak to it.
pub(crate) struct Settings {
    pub(crate) address: Address,
    pub(crate) login: Option<(String, Secret)>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) timeout: Duration,
}

/// Where a server is, and how the connection becomes private.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Address {
    host: String,
    port: u16,
    privacy: Privacy,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Privacy {
    /// From the first byte.
    Tls,
    /// With STARTTLS.
    StartTls,
    /// On this machine alone.
    None,
}

impl Settings {
    /// Reads the address of a server.
    pub(crate) fn address(url: &str, start_tls: Option<bool>) -> Result<Address, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let parsed =
            url::Url::parse(url).map_err(|error| input(format!("`{url}` is not an address: {error}")))?;
        if !parsed.username().is_empty() || parsed.password().is_some() {
            // The address itself stays out of the message: it holds a password.
            return Err(input("`url` holds credentials".into()).help("use `login`"));
        }
        if !matches!(parsed.path(), "" | "/") || parsed.query().is_some() || parsed.fragment().is_some() {
            return Err(input(format!("`{url}` has more than a host and a port")));
        }
        // Hosts of kinds of address that the library does not know are not looked into.
        let host = parsed.host_str().filter(|host| !host.is_empty());
        let host = host.ok_or_else(|| input(format!("`{url}` names no host")))?;
        let host = Host::parse(host).map_err(|error| input(format!("`{url}` names no host: {error}")))?;
        let local = match &host {
            Host::Domain(name) => name == "localhost",
            Host::Ipv4(address) => address.is_loopback(),
            Host::Ipv6(address) => address.is_loopback(),
        };
        let (privacy, port) = match (parsed.scheme(), start_tls) {
            ("smtps", None) => (Privacy::Tls, 465),
            ("smtps", Some(_)) => {
                return Err(input("`start_tls` is for `smtp://`; `smtps://` is private at once".into()));
            }
            ("smtp", Some(true)) => (Privacy::StartTls, 587),
            ("smtp", None) if !local => (Privacy::StartTls, 587),
            ("smtp", _) if local => (Privacy::None, 25),
            ("smtp", _) => {
                return Err(Failure::new(
                    FailureKind::Denied,
                    format!("mail to `{url}` would cross the network in the clear"),
                )
                .help("remove `start_tls: false`, or use `smtps://`"));
            }
            _ => {
                return Err(input(format!(
                    "`{url}` is not an address of mail; expected `smtps://`, `smtp://` or `folder:`"
                )));
            }
        };
        let host = match host {
            Host::Domain(name) => name,
            Host::Ipv4(address) => address.to_string(),
            Host::Ipv6(address) => address.to_string(),
        };
        Ok(Address { host, port: parsed.port().unwrap_or(port), privacy })
    }
}

/// A mail server. Each mail has a connection of its own.
pub(crate) struct Server {
    settings: Settings,
    tls: Option<TlsConnector>,
    /// What the server is told and must not be quoted with.
    known: Known,
}

impl Server {
    pub(crate) fn new(settings: Settings) -> Result<Server, Failure> {
        let tls = match settings.address.privacy {
            Privacy::None => None,
            Privacy::Tls | Privacy::StartTls => {
                Some(TlsConnector::from(Arc::new(tls_config(settings.ca_file.as_deref(), None)?)))
            }
        };
        let mut known = Known::default();
        if let Some((_, password)) = &settings.login {
            known.learn(password);
        }
        Ok(Server { settings, tls, known })
    }

    async fn connect(&self, hello: &ClientId) -> Result<AsyncSmtpConnection, Failure> {
        let Address { host, port, privacy } = &self.settings.address;
        let unreachable = |doing: &str, error: &dyn fmt::Display| {
            Failure::new(FailureKind::Unreachable, format!("cannot {doing}: {error}"))
        };
        let mut plain = TcpStream::connect((host.as_str(), *port))
            .await
            .map_err(|error| unreachable("connect", &error))?;
        let peer = plain.peer_addr().map_err(|error| unreachable("connect", &error))?;
        let stream: Box<dyn AsyncTokioStream> = match (&self.tls, privacy) {
            (Some(tls), Privacy::Tls | Privacy::StartTls) => {
                let mut greeting = Vec::new();
                if *privacy == Privacy::StartTls {
                    start_tls(&mut plain, hello).await?;
                    // The library waits for a greeting, which has come already.
                    greeting.extend_from_slice(b"220 private\r\n");
                }
                let name = ServerName::try_from(host.clone()).map_err(|_| {
                    Failure::new(FailureKind::Input, format!("`{host}` is not a host's name"))
                })?;
                let stream = tls
                    .connect(name, plain)
                    .await
                    .map_err(|error| unreachable("make the connection private", &error))?;
                Box::new(Private { greeting, stream, peer })
            }
            _ => Box::new(plain),
        };
        AsyncSmtpConnection::connect_with_transport(stream, hello)
            .await
            .map_err(|error| self.trouble("greeted", &error))
    }

    async fn send(&self, letter: &Letter, in_doubt: &AtomicBool) -> Result<(), Failure> {
        let hello = ClientId::Domain(letter.from.domain().to_owned());
        let mut connection = self.connect(&hello).await?;
        if let Some((user, password)) = &self.settings.login {
            let credentials = Credentials::new(user.clone(), password.reveal().to_owned());
            let mechanisms = [Mechanism::Plain, Mechanism::Login];
            if let Err(error) = connection.auth(&mechanisms, &credentials).await {
                let mut failure = self.trouble("logged in", &error);
                if error.status().is_some() || error.is_client() {
                    failure.kind = FailureKind::Denied;
                }
                return Err(failure);
            }
        }
        connection
            .command(Mail::new(Some(letter.from.clone()), Vec::new()))
            .await
            .map_err(|error| self.trouble(&format!("given the sender {}", letter.from), &error))?;
        for address in &letter.to {
            if let Err(error) = connection.command(Rcpt::new(address.clone(), Vec::new())).await {
                // Nobody gets it when one cannot: the run should not have to tell who has.
                connection.abort().await;
                return Err(self.trouble(&format!("given the recipient {address}"), &error));
            }
        }
        connection.command(Data).await.map_err(|error| self.trouble("about to be given the text", &error))?;
        in_doubt.store(true, Ordering::Relaxed);
        // The library ends the last line itself.
        let bytes = letter.bytes.strip_suffix(b"\r\n").unwrap_or(&letter.bytes);
        let answer = connection.message(bytes).await;
        // The server has said yes or no, or nothing.
        let said = match &answer {
            Ok(_) => true,
            Err(error) => error.status().is_some(),
        };
        in_doubt.store(!said, Ordering::Relaxed);
        answer.map_err(|error| self.trouble("given the text", &error))?;
        // It is sent; how the connection ends does not matter.
        let _ = connection.quit().await;
        Ok(())
    }
}

impl Server {
    /// What the server's refusal, or its silence, means.
    fn trouble(&self, when: &str, error: &lettre::transport::smtp::Error) -> Failure {
        let mut reason = error.to_string();
        let mut source = std::error::Error::source(error);
        while let Some(inner) = source {
            let inner_text = inner.to_string();
            if !reason.contains(&inner_text) {
                reason = format!("{reason}: {inner_text}");
            }
            source = inner.source();
        }
        // What a server says is shown on terminals. It may repeat what it was told.
        let reason = self.known.text(&reason);
        let reason: String = reason.chars().take(300).map(|c| if c.is_control() { ' ' } else { c }).collect();
        let kind = if error.is_permanent() {
            FailureKind::Refused
        } else if error.is_transient() {
            FailureKind::Conflict
        } else {
            FailureKind::Unreachable
        };
        let what =
            if kind == FailureKind::Unreachable { "went away or was not understood" } else { "refused" };
        Failure::new(kind, format!("the server {what} when {when}: {reason}"))
    }
}

#[async_trait]
impl Outbox for Server {
    async fn deliver(&self, letter: &Letter) -> Result<(), Failure> {
        let in_doubt = AtomicBool::new(false);
        let sent = match tokio::time::timeout(self.settings.timeout, self.send(letter, &in_doubt)).await {
            Ok(sent) => sent,
            Err(_) => Err(Failure::new(
                FailureKind::Timeout,
                "the server took longer than the target's timeout allows",
            )),
        };
        sent.map_err(|failure| if in_doubt.load(Ordering::Relaxed) { failure.in_doubt() } else { failure })
    }
}

/// Asks the server to make the connection private. Reads byte by byte, so that nothing that belongs to TLS is taken.
async fn start_tls(stream: &mut TcpStream, hello: &ClientId) -> Result<(), Failure> {
    let offered = reply(stream, None, "220").await.map(drop);
    offered?;
    let lines = reply(stream, Some(&format!("EHLO {hello}\r\n")), "250").await?;
    if !lines
        .iter()
        .any(|line| line.get(4..).is_some_and(|word| word.trim().eq_ignore_ascii_case("STARTTLS")))
    {
        return Err(Failure::new(
            FailureKind::Denied,
            "the server does not offer STARTTLS, so mail would cross the network in the clear",
        ));
    }
    reply(stream, Some("STARTTLS\r\n"), "220").await?;
    // Someone on the way could add words that would count as said in private.
    let mut more = [0];
    match stream.try_read(&mut more) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
        Ok(0) => Err(Failure::new(
            FailureKind::Unreachable,
            "cannot make the connection private: the server went away",
        )),
        _ => Err(Failure::new(
            FailureKind::Denied,
            "there was more in the server's answer to STARTTLS than its end",
        )),
    }
}

/// The lines of one reply with this code.
async fn reply(stream: &mut TcpStream, command: Option<&str>, code: &str) -> Result<Vec<String>, Failure> {
    const LONGEST: usize = 16 << 10;
    let gone = |error: &dyn fmt::Display| {
        Failure::new(FailureKind::Unreachable, format!("the server went away before STARTTLS: {error}"))
    };
    if let Some(command) = command {
        stream.write_all(command.as_bytes()).await.map_err(|error| gone(&error))?;
    }
    let mut text = Vec::new();
    let mut start = 0;
    loop {
        let byte = stream.read_u8().await.map_err(|error| gone(&error))?;
        text.push(byte);
        if text.len() > LONGEST {
            return Err(gone(&"its answer does not end"));
        }
        if byte != b'\n' {
            continue;
        }
        let is_last = text.get(start + 3).is_none_or(|sign| *sign != b'-');
        if is_last {
            break;
        }
        start = text.len();
    }
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.iter().all(|line| line.starts_with(code)) {
        return Ok(lines);
    }
    let said: String = text.chars().take(200).map(|c| if c.is_control() { ' ' } else { c }).collect();
    let kind = if text.starts_with('4') { FailureKind::Conflict } else { FailureKind::Refused };
    Err(Failure::new(kind, format!("the server refused before STARTTLS: {}", said.trim())))
}

/// A private connection, with a greeting in front.
struct Private<S> {
    greeting: Vec<u8>,
    stream: S,
    peer: SocketAddr,
}

impl<S> fmt::Debug for Private<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Private({})", self.peer)
    }
}

impl<S: AsyncRead + AsyncWrite + Send + Sync + Unpin> AsyncTokioStream for Private<S> {
    fn peer_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.peer)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Private<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.greeting.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, to);
        }
        let length = self.greeting.len().min(to.remaining());
        to.put_slice(&self.greeting[..length]);
        self.greeting.drain(..length);
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Private<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, from)
    }
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mail_never_crosses_the_network_in_the_clear() {
        let address = |host: &str, port, privacy| Ok(Address { host: host.into(), port, privacy });
        for (url, start_tls, wanted) in [
            ("smtps://mail.example.org", None, address("mail.example.org", 465, Privacy::Tls)),
            ("smtps://mail.example.org:1465/", None, address("mail.example.org", 1465, Privacy::Tls)),
            ("smtps://mail.example.org", Some(false), Err(FailureKind::Input)),
            ("smtp://mail.example.org", None, address("mail.example.org", 587, Privacy::StartTls)),
            ("smtp://mail.example.org:25", Some(true), address("mail.example.org", 25, Privacy::StartTls)),
            ("smtp://mail.example.org", Some(false), Err(FailureKind::Denied)),
            ("smtp://localhost:2525", None, address("localhost", 2525, Privacy::None)),
            ("smtp://localhost:2525", Some(true), address("localhost", 2525, Privacy::StartTls)),
            ("smtp://[::1]", None, address("::1", 25, Privacy::None)),
            ("smtp://127.0.0.1", Some(false), address("127.0.0.1", 25, Privacy::None)),
            ("smtp://10.0.0.1", None, address("10.0.0.1", 587, Privacy::StartTls)),
            ("smtp://user:hunter2@mail.example.org", None, Err(FailureKind::Input)),
            ("smtp://mail.example.org/path", None, Err(FailureKind::Input)),
            ("smtp://", None, Err(FailureKind::Input)),
            ("http://mail.example.org", None, Err(FailureKind::Input)),
            ("mail.example.org", None, Err(FailureKind::Input)),
        ] {
            let found = Settings::address(url, start_tls).map_err(|failure| {
                assert!(!format!("{failure:?}").contains("hunter2"));
                failure.kind
            });
            assert_eq!(found, wanted, "{url} {start_tls:?}");
        }
    }
}
