//! The target kind `http`: [`Http`], and its entry in an environment.

use farrier_action::duration::Wait;
use farrier_action::{ConnectCx, Now, TargetKind};
use farrier_model::Failure;
use farrier_outbound::{Account, Endpoint, Network, Web};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::standin::Routes;

/// The header that carries the key of a request where the environment does not name one: the stand-in knows it.
pub(crate) const KEY_HEADER: &str = "Idempotency-Key";

/// A server that speaks HTTP.
#[derive(Debug)]
pub struct Http;

/// A server that speaks HTTP, or recorded routes that stand in for one.
///
/// Requests go below the path of `url` and nowhere else: redirects are not followed, no proxy is used, and of what the
/// host's name resolves to only public addresses are connected to, and those in `networks`. `routes:FILE` answers
/// from a file of recorded routes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct HttpConfig {
    /// `https://HOST/PATH`, `http://HOST/PATH`, or `routes:FILE`, from the folder of the environment file.
    url: String,
    /// Who reads. Without it, reading sends no credentials.
    #[serde(default)]
    read_as: Option<Account>,
    /// Who writes; `{}` writes without credentials. Without it, nothing is written.
    #[serde(default)]
    write_as: Option<Account>,
    /// The header in which the server takes the key of a request and remembers its answer, mostly `Idempotency-Key`.
    /// Without it, `http.request` sends no `POST` and no `PATCH`, since nobody could tell twice from once.
    #[serde(default)]
    idempotency_header: Option<String>,
    /// Addresses and networks that may be connected to although they are not public: `[10.0.0.0/8, "fd00::/8"]`. An
    /// address that stands in `url`, and `localhost` there, need no entry.
    #[serde(default)]
    networks: Vec<Network>,
    /// A file with the certificates (PEM) of the authorities to trust, instead of the system's.
    #[serde(default)]
    ca_file: Option<String>,
    /// How long opening a connection may take. The default is `5s`.
    #[serde(default)]
    connect_timeout: Option<Wait>,
    /// How long one request may take, with its answer. The default is `30s`.
    #[serde(default)]
    timeout: Option<Wait>,
    /// No answer may have more bytes than this. The default is 8 MiB.
    #[serde(default)]
    size_limit: Option<u64>,
    /// The file in which recorded routes keep the requests that came, from the folder of the environment file. Left
    /// out, it is `FILE.requests.jsonl` beside them.
    #[serde(default)]
    state: Option<String>,
}

/// The side that reads.
pub struct HttpReader {
    pub(crate) web: Box<dyn Web>,
    pub(crate) idempotency_header: Option<String>,
    pub(crate) place: Place,
    pub(crate) now: Now,
    /// Somebody on the way could read what is sent.
    pub(crate) in_the_clear: bool,
}

/// Where certificates are looked at.
pub(crate) enum Place {
    /// At a server.
    Server { endpoint: Box<Endpoint>, ca_file: Option<std::path::PathBuf> },
    /// In recorded routes.
    Routes(Routes),
}

/// The side that writes.
pub struct HttpWriter {
    pub(crate) web: Box<dyn Web>,
    pub(crate) idempotency_header: Option<String>,
    /// Somebody on the way could read what is sent.
    pub(crate) in_the_clear: bool,
}

impl HttpConfig {
    fn endpoint(&self) -> Endpoint {
        Endpoint {
            url: self.url.clone(),
            read_as: self.read_as.clone(),
            write_as: self.write_as.clone(),
            networks: self.networks.clone(),
            ca_file: self.ca_file.clone(),
            connect_timeout: self.connect_timeout,
            timeout: self.timeout,
            size_limit: self.size_limit,
            state: self.state.clone(),
        }
    }

    fn routes(&self, file: &str, cx: &ConnectCx) -> Result<Routes, Failure> {
        let state = self.state.as_ref().map_or_else(
            || {
                let mut path = cx.path(file).into_os_string();
                path.push(".requests.jsonl");
                path.into()
            },
            |state| cx.path(state),
        );
        Routes::open(
            cx.path(file),
            state,
            self.key_header(),
            self.size_limit.unwrap_or(8 << 20),
            cx.now.clone(),
        )
    }

    fn key_header(&self) -> &str {
        self.idempotency_header.as_deref().unwrap_or(KEY_HEADER)
    }

    /// The header with the key, where the server is known to heed it.
    fn honoured_header(&self) -> Option<String> {
        match self.endpoint().stand_in("routes") {
            Some(_) => Some(self.key_header().to_owned()),
            None => self.idempotency_header.clone(),
        }
    }
}

impl TargetKind for Http {
    const KIND: &'static str = "http";
    type Config = HttpConfig;
    type Reader = HttpReader;
    type Writer = HttpWriter;

    fn identity(config: &HttpConfig) -> String {
        config.endpoint().identity()
    }

    fn is_stand_in(config: &HttpConfig) -> bool {
        let relative = |path: &str| !path.starts_with('/');
        config.endpoint().stand_in("routes").is_some_and(relative)
            && config.state.as_deref().is_none_or(relative)
    }

    async fn reader(config: HttpConfig, cx: &ConnectCx) -> Result<HttpReader, Failure> {
        let endpoint = config.endpoint();
        let idempotency_header = config.honoured_header();
        let now = cx.now.clone();
        if let Some(file) = endpoint.stand_in("routes") {
            let routes = config.routes(file, cx)?;
            return Ok(HttpReader {
                web: Box::new(routes.clone()),
                idempotency_header,
                place: Place::Routes(routes),
                now,
                in_the_clear: false,
            });
        }
        let web = Box::new(endpoint.reader(cx).await?);
        let ca_file = endpoint.ca_file.as_ref().map(|file| cx.path(file));
        Ok(HttpReader {
            web,
            idempotency_header,
            in_the_clear: endpoint.is_in_the_clear()?,
            place: Place::Server { endpoint: Box::new(endpoint), ca_file },
            now,
        })
    }

    async fn writer(config: HttpConfig, cx: &ConnectCx) -> Result<HttpWriter, Failure> {
        let endpoint = config.endpoint();
        let idempotency_header = config.honoured_header();
        if let Some(file) = endpoint.stand_in("routes") {
            let web = Box::new(config.routes(file, cx)?);
            return Ok(HttpWriter { web, idempotency_header, in_the_clear: false });
        }
        let in_the_clear = endpoint.is_in_the_clear()?;
        Ok(HttpWriter { web: Box::new(endpoint.writer(cx).await?), idempotency_header, in_the_clear })
    }
}
