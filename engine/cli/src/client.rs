//! The way to a service: through the socket in the data directory that it owns, or over the network with a token.
//!
//! While a service owns a store, commands that would write it ask the service instead. [`at`] finds out; whoever gets no client
//! opens the store.

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use farrier_server::wire::{EntryView, ProgressView, RunPage, RunSummary, RunView};
use farrier_server::{ErrorBody, SOCKET, USER_HEADER, through};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST};
use http::{Method, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use url::Url;

use crate::app::App;
use crate::logins;
use crate::problem::Problem;

/// The environment variable with the token for `--server`.
const TOKEN: &str = "FARRIER_TOKEN";
/// The largest answer that is read whole.
const LARGEST: usize = 256 * 1024 * 1024;

/// What is heard of a run that is followed.
pub enum Heard {
    /// Its journal has another entry.
    Entry(EntryView),
    /// One of its steps has come further.
    Progress(ProgressView),
}

/// Somebody to ask.
#[derive(Clone)]
pub struct Client {
    way: Way,
    user: String,
}

#[derive(Clone)]
enum Way {
    /// The directory, held open: the socket is reached through it, since addresses of sockets are short.
    Socket(Arc<std::fs::File>),
    Network {
        url: Url,
        token: Option<String>,
        tls: Option<tokio_rustls::TlsConnector>,
    },
}

/// Whoever is to be asked instead of opening the store in `dir`: the server that the command line names, or the service that
/// owns the store.
pub async fn at(app: &App, dir: &Path) -> Result<Option<Client>, Problem> {
    if let Some(client) = named(app)? {
        return Ok(Some(client));
    }
    let user = crate::app::user();
    if !dir.join(SOCKET).exists() {
        return Ok(None);
    }
    let held = std::fs::File::open(dir).map_err(|error| Problem::file(dir, error))?;
    // A socket that nobody listens on was left by a service that was killed.
    let is_open = UnixStream::connect(through(&held)).await.is_ok();
    Ok(is_open.then(|| Client { way: Way::Socket(Arc::new(held)), user }))
}

/// The server that the command line names, with a token for it.
pub fn named(app: &App) -> Result<Option<Client>, Problem> {
    let Some(url) = address(app)? else { return Ok(None) };
    let token = std::env::var(TOKEN).ok().filter(|token| !token.is_empty());
    let token = match token {
        Some(token) => token,
        None => match logins::find(&url).map_err(Problem::Other)? {
            Some(login) => login.token,
            None => {
                return Err(Problem::Usage(format!(
                    "`--server` needs a token in the variable {TOKEN}, or a login: `farrier --server {url} login`"
                )));
            }
        },
    };
    Client::with_token(app, url, token).map(Some)
}

/// The address of the server that the command line names, if a token may travel there.
pub fn address(app: &App) -> Result<Option<Url>, Problem> {
    app.server.as_deref().map(|text| private(text, "--server")).transpose()
}

/// An address on the way to which nobody reads along; `place` is where it is written.
pub fn private(text: &str, place: &str) -> Result<Url, Problem> {
    let usage = |message: String| Problem::Usage(message);
    let url =
        Url::parse(text).map_err(|error| usage(format!("`{place} {text}` is not an address: {error}")))?;
    let is_local = matches!(url.host(), Some(url::Host::Ipv4(ip)) if ip.is_loopback())
        || matches!(url.host(), Some(url::Host::Ipv6(ip)) if ip.is_loopback())
        || url.host_str() == Some("localhost");
    match url.scheme() {
        "https" => Ok(url),
        "http" if is_local => Ok(url),
        "http" => Err(usage(format!("`{place} {text}` would be reached in plain text; use `https://`"))),
        _ => Err(usage(format!("`{place} {text}` is neither `https://` nor `http://`"))),
    }
}

impl Client {
    /// A server, and a token for it.
    pub fn with_token(app: &App, url: Url, token: String) -> Result<Client, Problem> {
        Client::network(app, url, Some(token))
    }

    /// A server that is asked for a token.
    pub fn without_token(app: &App, url: Url) -> Result<Client, Problem> {
        Client::network(app, url, None)
    }

    fn network(app: &App, url: Url, token: Option<String>) -> Result<Client, Problem> {
        let tls = (url.scheme() == "https").then(|| connector(app.server_ca.as_deref())).transpose()?;
        Ok(Client { way: Way::Network { url, token, tls }, user: crate::app::user() })
    }

    /// Asks for something.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        let response = self.send(Method::GET, path, Bytes::new(), None).await?;
        read(response).await
    }

    /// Asks that something be done.
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, Problem> {
        let body = serde_json::to_vec(body).map_err(|error| Problem::Other(error.into()))?;
        let response = self.send(Method::POST, path, body.into(), None).await?;
        read(response).await
    }

    /// The one run whose id begins with `prefix`.
    pub async fn find(&self, prefix: &str) -> Result<RunSummary, Problem> {
        let prefix = prefix.to_lowercase();
        if !prefix.chars().all(|c| c.is_ascii_hexdigit() || c == '-') {
            return Err(Problem::NoRun(prefix));
        }
        let page: RunPage = self.get(&format!("/api/v1/runs?id={prefix}&limit=2")).await?;
        let mut runs = page.runs;
        match (runs.len(), runs.pop()) {
            (1, Some(run)) => Ok(run),
            (0, _) => Err(Problem::NoRun(prefix)),
            _ => Err(Problem::AmbiguousRun(prefix)),
        }
    }

    /// One run, whole.
    pub async fn run(&self, id: &str) -> Result<RunView, Problem> {
        self.get(&format!("/api/v1/runs/{id}")).await
    }

    /// Hands over what a run's journal holds after `after`, and what comes, with how far its steps are, until `each` says that it is enough or the stream
    /// ends. Gives the place of the last entry.
    pub async fn follow(
        &self,
        id: &str,
        after: i64,
        mut each: impl FnMut(Heard) -> bool,
    ) -> Result<i64, Problem> {
        let path = format!("/api/v1/runs/{id}/events?after={after}");
        let response = self.send(Method::GET, &path, Bytes::new(), Some("text/event-stream")).await?;
        if !response.status().is_success() {
            return read::<()>(response).await.map(|()| after);
        }
        let (mut body, mut text, mut last) = (response.into_body(), Vec::new(), after);
        while let Some(frame) = body.frame().await {
            let Ok(frame) = frame else { break };
            let Ok(data) = frame.into_data() else { continue };
            text.extend_from_slice(&data);
            while let Some(end) = text.windows(2).position(|two| two == b"\n\n") {
                let event: Vec<u8> = text.drain(..end + 2).collect();
                let event = String::from_utf8_lossy(&event);
                let Some(heard) = heard(&event)? else { continue };
                if let Heard::Entry(entry) = &heard {
                    last = entry.seq;
                }
                if each(heard) {
                    return Ok(last);
                }
            }
        }
        Ok(last)
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        accept: Option<&str>,
    ) -> Result<Response<Incoming>, Problem> {
        let mut request =
            Request::builder().method(method).uri(path).header(CONTENT_TYPE, "application/json");
        if let Some(accept) = accept {
            request = request.header(ACCEPT, accept);
        }
        match &self.way {
            Way::Socket(dir) => {
                request = request.header(HOST, "localhost").header(USER_HEADER, &self.user);
                let stream = UnixStream::connect(through(dir)).await.map_err(unreachable)?;
                exchange(stream, request, body).await
            }
            Way::Network { url, token, tls } => {
                let host = url.host_str().unwrap_or_default();
                let port = url.port_or_known_default().unwrap_or(443);
                request = request.header(HOST, format!("{host}:{port}"));
                if let Some(token) = token {
                    request = request.header(AUTHORIZATION, format!("Bearer {token}"));
                }
                let address = host.trim_start_matches('[').trim_end_matches(']');
                let stream = TcpStream::connect((address, port)).await.map_err(unreachable)?;
                let Some(tls) = tls else { return exchange(stream, request, body).await };
                let name = rustls::pki_types::ServerName::try_from(address.to_owned()).map_err(unexpected)?;
                let stream = tls.connect(name, stream).await.map_err(unreachable)?;
                exchange(stream, request, body).await
            }
        }
    }
}

/// What one event of a run's stream says. Only entries of the journal have ids; what else a newer service may send beside them is
/// nothing.
fn heard(event: &str) -> Result<Option<Heard>, Problem> {
    let Some(data) = event.lines().find_map(|line| line.strip_prefix("data: ")) else { return Ok(None) };
    let heard = if event.lines().any(|line| line.starts_with("id: ")) {
        Heard::Entry(serde_json::from_str(data).map_err(unexpected)?)
    } else if event.lines().any(|line| line == "event: progress") {
        Heard::Progress(serde_json::from_str(data).map_err(unexpected)?)
    } else {
        return Ok(None);
    };
    Ok(Some(heard))
}

/// Requests without a token, to somebody who is no service of ours.
pub struct Plain(Option<tokio_rustls::TlsConnector>);

impl Plain {
    /// Over TLS where the address says so.
    pub fn to(url: &Url, authorities: Option<&Path>) -> Result<Plain, Problem> {
        (url.scheme() == "https").then(|| connector(authorities)).transpose().map(Plain)
    }

    /// Posts JSON; the answer's body is not read.
    pub async fn post(&self, url: &Url, body: Bytes) -> Result<http::StatusCode, String> {
        let host = url.host_str().unwrap_or_default();
        let port = url.port_or_known_default().unwrap_or(443);
        let request = Request::builder().method(Method::POST).uri(url.path());
        let request = request.header(HOST, format!("{host}:{port}")).header(CONTENT_TYPE, "application/json");
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let stream = TcpStream::connect((address, port)).await.map_err(|error| error.to_string())?;
        let answered = match &self.0 {
            None => exchange(stream, request, body).await,
            Some(tls) => {
                let name = rustls::pki_types::ServerName::try_from(address.to_owned());
                let name = name.map_err(|error| error.to_string())?;
                let stream = tls.connect(name, stream).await.map_err(|error| error.to_string())?;
                exchange(stream, request, body).await
            }
        };
        answered.map(|response| response.status()).map_err(|problem| {
            std::error::Error::source(&problem).map_or_else(|| problem.to_string(), ToString::to_string)
        })
    }
}

/// TLS as the machine trusts it, or as the authorities in a file do. There is no way to trust anyone.
fn connector(authorities: Option<&Path>) -> Result<tokio_rustls::TlsConnector, Problem> {
    let mut roots = rustls::RootCertStore::empty();
    match authorities {
        None => drop(roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs)),
        Some(file) => {
            let unusable = |error: &dyn std::fmt::Display| {
                Problem::Usage(format!("`--server-ca {}` cannot be used: {error}", file.display()))
            };
            let read = CertificateDer::pem_file_iter(file).map_err(|error| unusable(&error))?;
            for authority in read {
                let authority = authority.map_err(|error| unusable(&error))?;
                roots.add(authority).map_err(|error| unusable(&error))?;
            }
            if roots.is_empty() {
                return Err(unusable(&"it holds no certificate"));
            }
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unexpected)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(tokio_rustls::TlsConnector::from(Arc::new(config)))
}

async fn exchange<S>(
    stream: S,
    request: http::request::Builder,
    body: Bytes,
) -> Result<Response<Incoming>, Problem>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = request.body(Full::new(body)).map_err(unexpected)?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(unreachable)?;
    // It ends with the answer's body.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(unreachable)
}

async fn read<T: DeserializeOwned>(response: Response<Incoming>) -> Result<T, Problem> {
    let status = response.status();
    let body = http_body_util::Limited::new(response.into_body(), LARGEST).collect().await;
    let body =
        body.map_err(|error| Problem::Other(anyhow::anyhow!("the answer ended early: {error}")))?.to_bytes();
    if status.is_success() {
        return serde_json::from_slice(&body).map_err(unexpected);
    }
    match serde_json::from_slice::<ErrorBody>(&body) {
        Ok(ErrorBody { error }) => Err(Problem::Service(Box::new(error))),
        Err(_) => Err(Problem::Other(anyhow::anyhow!("the service answered {status}"))),
    }
}

fn unreachable(error: impl Into<anyhow::Error>) -> Problem {
    Problem::Gone(error.into())
}

fn unexpected(error: impl Into<anyhow::Error>) -> Problem {
    Problem::Other(error.into().context("the service answered what this version does not understand"))
}

#[cfg(test)]
mod tests {
    use farrier_model::Event;

    use super::*;

    #[test]
    fn what_a_newer_service_sends_beside_the_journal_is_passed_over() {
        let entry = EntryView {
            seq: 7,
            epoch: 1,
            at: "2026-01-01T00:00:00Z".into(),
            event: Event::UndoStarted { reason: "a step failed".into() },
        };
        let data = serde_json::to_string(&entry).unwrap();
        let told = heard(&format!("id: 7\nevent: undo_started\ndata: {data}\n\n")).unwrap();
        assert!(matches!(told, Some(Heard::Entry(told)) if told.seq == 7 && told.event == entry.event));
        let progress = r#"{"node":"drain","done":1,"total":2,"text":"pods"}"#;
        let told = heard(&format!("event: progress\ndata: {progress}\n\n"));
        assert!(matches!(told, Ok(Some(Heard::Progress(told))) if told.node == "drain"));
        assert!(heard("event: weather\ndata: {\"rain\": true}\n\n").unwrap().is_none());
        assert!(heard(": nothing, only to keep the connection\n\n").unwrap().is_none());
    }
}
