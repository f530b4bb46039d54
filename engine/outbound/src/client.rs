//! [`Client`]: requests to one endpoint, over reqwest.

use std::error::Error as _;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farrier_action::Known;
use farrier_model::{Failure, FailureKind, Secret};
use reqwest::header::{HeaderName, HeaderValue};
use url::Url;

use crate::answer::Answer;
use crate::names::{Checked, Names, Refused};
use crate::network::Networks;
use crate::request::{Method, Request};
use crate::tls::{ClientIdentity, tls_config};

/// A place that answers requests: a server, or the stand-in for one.
#[async_trait]
pub trait Web: Send + Sync {
    /// Asks, and waits for the whole answer, whatever its status.
    ///
    /// A failure is in doubt when the request writes and may have arrived.
    async fn send(&self, request: &Request) -> Result<Answer, Failure>;

    /// The address of a request, for people.
    fn shown(&self, request: &Request) -> String;
}

/// What a client needs to know.
pub(crate) struct Settings {
    pub(crate) base: Url,
    pub(crate) networks: Networks,
    /// Who says what names stand for.
    pub(crate) names: Arc<dyn Names>,
    pub(crate) headers: Vec<(String, HeaderValue)>,
    pub(crate) secrets: Vec<Secret>,
    pub(crate) identity: Option<ClientIdentity>,
    pub(crate) ca_file: Option<PathBuf>,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) size_limit: u64,
    pub(crate) keep_alive: bool,
}

/// Requests to one endpoint.
pub struct Client {
    http: reqwest::Client,
    base: Url,
    headers: Vec<(String, HeaderValue)>,
    /// What must not come back in an answer.
    known: Known,
    size_limit: u64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Client({})", self.base)
    }
}

impl Client {
    pub(crate) fn new(settings: Settings) -> Result<Client, Failure> {
        let mut known = Known::default();
        for secret in &settings.secrets {
            known.learn(secret);
        }
        let tls = tls_config(settings.ca_file.as_deref(), settings.identity)?;
        let http = reqwest::Client::builder()
            .tls_backend_preconfigured(tls)
            .dns_resolver(Arc::new(Checked { networks: settings.networks, names: settings.names }))
            .redirect(reqwest::redirect::Policy::none())
            // The process's environment must not decide where requests go.
            .no_proxy()
            // What is tried again is the engine's decision, not the library's.
            .retry(reqwest::retry::never())
            .http1_only()
            .referer(false)
            .user_agent(concat!("farrier/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(settings.connect_timeout)
            .timeout(settings.timeout)
            // A request that writes must not go out on a connection that the server is just closing: nobody could tell
            // whether it arrived.
            .pool_max_idle_per_host(if settings.keep_alive { 8 } else { 0 })
            .build()
            .map_err(|error| Failure::new(FailureKind::Internal, format!("no HTTP client: {error}")))?;
        Ok(Client {
            http,
            base: settings.base,
            headers: settings.headers,
            known,
            size_limit: settings.size_limit,
        })
    }

    /// The endpoint's own address.
    pub fn base(&self) -> &Url {
        &self.base
    }

    fn prepared(&self, request: &Request) -> Result<reqwest::Request, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let method = match request.method {
            Method::Get => reqwest::Method::GET,
            Method::Post => reqwest::Method::POST,
            Method::Put => reqwest::Method::PUT,
            Method::Patch => reqwest::Method::PATCH,
            Method::Delete => reqwest::Method::DELETE,
        };
        let mut prepared = reqwest::Request::new(method, request.url(&self.base));
        if let Some((kind, body)) = &request.body {
            prepared.headers_mut().insert(reqwest::header::CONTENT_TYPE, HeaderValue::from_static(kind));
            *prepared.body_mut() = Some(body.clone().into());
        }
        for (name, value) in &request.headers {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| input(format!("{name:?} is not the name of a header")))?;
            let value = HeaderValue::from_str(value).map_err(|_| {
                input(format!("the value of the header `{name}` has characters that no header may have"))
            })?;
            prepared.headers_mut().insert(header, value);
        }
        // Last, so that no step speaks for the account.
        for (name, value) in &self.headers {
            let header = HeaderName::from_bytes(name.as_bytes())
                .map_err(|_| input(format!("{name:?} is not the name of a header")))?;
            prepared.headers_mut().insert(header, value.clone());
        }
        Ok(prepared)
    }

    async fn exchange(&self, request: &Request, prepared: reqwest::Request) -> Result<Answer, Failure> {
        let mut response = self.http.execute(prepared).await.map_err(|error| trouble(request, error))?;
        let mut answer = Answer { status: response.status().as_u16(), ..Answer::default() };
        for name in response.headers().keys() {
            if *name == reqwest::header::SET_COOKIE {
                continue;
            }
            let values: Vec<String> = response
                .headers()
                .get_all(name)
                .iter()
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .collect();
            answer.headers.insert(name.as_str().to_owned(), values.join(", "));
        }
        let limit = usize::try_from(self.size_limit).unwrap_or(usize::MAX);
        let enough = limit.saturating_add(self.known.longest());
        while let Some(piece) = response.chunk().await.map_err(|error| trouble(request, error))? {
            answer.body.extend_from_slice(&piece);
            if answer.body.len() <= limit {
                continue;
            }
            if request.method == Method::Get {
                return Err(Failure::new(
                    FailureKind::Limit,
                    format!(
                        "the answer to {} {} has more than {} bytes",
                        request.method,
                        request.shown_path(),
                        self.size_limit
                    ),
                )
                .help("ask for less, or raise the target's `size_limit`"));
            }
            // The status says what became of it; too long a report does not undo that.
            answer.cut = true;
            if answer.body.len() >= enough {
                break;
            }
        }
        self.hide_secrets(&mut answer);
        Ok(answer)
    }

    /// A server that repeats what it was asked would carry our credentials into outputs, errors and journals. They are looked
    /// for before the answer is cut, so that none is there in part.
    fn hide_secrets(&self, answer: &mut Answer) {
        for value in answer.headers.values_mut() {
            *value = self.known.text(value);
        }
        let limit = usize::try_from(self.size_limit).unwrap_or(usize::MAX);
        answer.body = self.known.within(&answer.body, 0..limit).into_owned();
    }
}

#[async_trait]
impl Web for Client {
    async fn send(&self, request: &Request) -> Result<Answer, Failure> {
        let prepared = self.prepared(request)?;
        self.exchange(request, prepared).await
    }

    fn shown(&self, request: &Request) -> String {
        format!("{} {}", request.method, request.url(&self.base))
    }
}

/// What went wrong, without the address: that is the environment's, and a query may hold what is not for logs.
fn trouble(request: &Request, error: reqwest::Error) -> Failure {
    let error = error.without_url();
    let mut source = error.source();
    let mut reason = error.to_string();
    while let Some(inner) = source {
        if let Some(Refused(failure)) = inner.downcast_ref() {
            return failure.clone();
        }
        reason = inner.to_string();
        source = inner.source();
    }
    let doing = format!("{} {}", request.method, request.shown_path());
    let not_sent = error.is_connect() || error.is_builder();
    let kind = if error.is_timeout() { FailureKind::Timeout } else { FailureKind::Unreachable };
    let message = match kind {
        FailureKind::Timeout => format!("{doing} took longer than the target's timeout allows"),
        _ if not_sent => format!("cannot connect: {reason}"),
        _ => format!("the answer to {doing} did not come whole: {reason}"),
    };
    let failure = Failure::new(kind, message);
    if not_sent || request.method == Method::Get { failure } else { failure.in_doubt() }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::names::System;
    use crate::network::Network;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    fn client(base: &str, networks: Networks) -> Client {
        client_with(base, networks, Vec::new(), 100)
    }

    fn client_with(base: &str, networks: Networks, secrets: Vec<Secret>, size_limit: u64) -> Client {
        client_of(base, networks, Arc::new(System), secrets, size_limit)
    }

    /// With names that somebody else answers for.
    pub(crate) fn client_by(base: &str, networks: Networks, names: Arc<dyn Names>) -> Client {
        client_of(base, networks, names, Vec::new(), 100)
    }

    fn client_of(
        base: &str,
        networks: Networks,
        names: Arc<dyn Names>,
        secrets: Vec<Secret>,
        size_limit: u64,
    ) -> Client {
        // Any authority will do; the machine may have none.
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = rcgen::CertificateParams::default().self_signed(&key).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let ca_file = folder.path().join("ca.pem");
        std::fs::write(&ca_file, certificate.pem()).unwrap();
        Client::new(Settings {
            base: Url::parse(base).unwrap(),
            networks,
            names,
            headers: Vec::new(),
            secrets,
            identity: None,
            ca_file: Some(ca_file),
            connect_timeout: Duration::from_secs(30),
            timeout: Duration::from_secs(30),
            size_limit,
            keep_alive: true,
        })
        .unwrap()
    }

    /// Wherever the answer is cut, no part of a secret is left before the cut.
    #[tokio::test]
    async fn a_secret_is_hidden_before_an_answer_is_cut() {
        const SECRET: &str = "Canary+/7~?&=Kanarienvogel>>";
        let coded = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, SECRET);
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let echo = format!("told {SECRET} and {SECRET} in {coded} more");
        let length = echo.len();
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
                let head =
                    format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n");
                stream.write_all(head.as_bytes()).await.unwrap();
                // In pieces, so that a cut is between two of them as well.
                for piece in echo.as_bytes().chunks(7) {
                    if stream.write_all(piece).await.is_err() {
                        break;
                    }
                    let _ = stream.flush().await;
                    tokio::task::yield_now().await;
                }
            }
        });
        let loopback = Network::parse("127.0.0.0/8").unwrap();
        for limit in 0..=length + 1 {
            let networks = Networks::new(&[loopback], &url::Host::Domain("example.org"));
            let client = client_with(&base, networks, vec![Secret::new(SECRET)], limit as u64);
            let answer = client.send(&Request::new(Method::Post, ["a"]).unwrap()).await.unwrap();
            assert_eq!(answer.cut, limit < length);
            for piece in SECRET.as_bytes().windows(3).chain(coded.as_bytes().windows(3)) {
                let found = answer.body.windows(3).any(|window| window == piece);
                let whole = "told  and  in  more«secret»";
                let ours = whole.as_bytes().windows(3).any(|window| window == piece);
                assert!(ours || !found, "cut at {limit}: {}", answer.text());
            }
        }
    }

    /// Set in the process that is started with proxies in its environment: where the server is.
    const CHILD: &str = "FARRIER_TEST_OF_PROXIES";

    /// The environment of the process says where requests are to go through, and they do not.
    #[tokio::test]
    async fn a_proxy_of_the_process_is_not_used() {
        let loopback = Network::parse("127.0.0.0/8").unwrap();
        if let Ok(base) = std::env::var(CHILD) {
            let client = client(&base, Networks::new(&[loopback], &url::Host::Domain("localhost")));
            let answer = client.send(&Request::new(Method::Get, ["a"]).unwrap()).await.unwrap();
            assert_eq!(answer.text(), "server");
            return;
        }
        let serve = |text: &'static str| async move {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            tokio::spawn(async move {
                loop {
                    let (mut stream, _) = listener.accept().await.unwrap();
                    let _ = stream.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
                    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len());
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
            address
        };
        let (server, proxy) = (serve("server").await, serve("proxy").await);
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "client::tests::a_proxy_of_the_process_is_not_used"]).env(CHILD, server);
        for name in ["HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"] {
            child.env(name, &proxy).env(name.to_lowercase(), &proxy);
        }
        let ended = child.env_remove("NO_PROXY").env_remove("no_proxy").output().await.unwrap();
        let said = String::from_utf8_lossy(&ended.stdout);
        assert!(ended.status.success() && said.contains("1 passed"), "{said}");
    }

    /// The name is the environment's, the address is whoever's zone it is; only the environment's networks count.
    #[tokio::test]
    async fn a_name_that_resolves_to_a_private_address_is_not_connected_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://localhost:{}", listener.local_addr().unwrap().port());
        let server = tokio::spawn(async move {
            let mut heads = Vec::new();
            let (mut stream, _) = listener.accept().await.unwrap();
            let _ = stream.read_buf(&mut heads).await.unwrap();
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").await.unwrap();
            (heads, listener)
        });
        let request = Request::new(Method::Get, ["a"]).unwrap();
        let failure = client(&base, Networks::default()).send(&request).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Denied, "{failure}");
        assert!(failure.message.starts_with("`localhost` resolves to "), "{failure}");
        assert!(failure.message.ends_with("which is neither a public address nor listed in `networks`"));

        let loopback = Network::parse("127.0.0.0/8").unwrap();
        let networks = Networks::new(&[loopback], &url::Host::Domain("example.org"));
        let answer = client(&base, networks).send(&request).await.unwrap();
        assert_eq!((answer.status, answer.text()), (200, "hi".to_owned()));
        // The refused request never reached the server.
        let (heads, _listener) = server.await.unwrap();
        assert!(heads.starts_with(b"GET /a HTTP/1.1\r\n"), "{}", String::from_utf8_lossy(&heads));
    }
}
