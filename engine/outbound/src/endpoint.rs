//! What an environment says of a place that is reached by HTTP: [`Endpoint`].

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use farrier_action::duration::Wait;
use farrier_action::{ConnectCx, SecretRef};
use farrier_model::{Failure, FailureKind, Secret};
use schemars::JsonSchema;
use serde::Deserialize;
use url::Url;

use crate::client::{Client, Settings};
use crate::names::System;
use crate::network::{Network, Networks};
use crate::tls::ClientIdentity;

/// A server that is reached by HTTP, or the stand-in for one.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Endpoint {
    /// `https://HOST/PATH` or `http://HOST/PATH`; requests go below this path. Or the stand-in of this kind.
    pub url: String,
    /// Who reads. Without it, reading sends no credentials.
    #[serde(default)]
    pub read_as: Option<Account>,
    /// Who writes; `{}` writes without credentials. Without it, nothing is written.
    #[serde(default)]
    pub write_as: Option<Account>,
    /// Addresses and networks that may be connected to although they are not public: `[10.0.0.0/8, "fd00::/8"]`. An
    /// address that stands in `url`, and `localhost` there, need no entry.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// A file with the certificates (PEM) of the authorities to trust, instead of the system's.
    #[serde(default)]
    pub ca_file: Option<String>,
    /// How long opening a connection may take. The default is `5s`.
    #[serde(default)]
    pub connect_timeout: Option<Wait>,
    /// How long one request may take, with its answer. The default is `30s`.
    #[serde(default)]
    pub timeout: Option<Wait>,
    /// No answer may have more bytes than this. The default is 8 MiB.
    #[serde(default)]
    pub size_limit: Option<u64>,
    /// The file in which a stand-in remembers what was written, from the folder of the environment file. Left out, it
    /// lies beside the stand-in's own file.
    #[serde(default)]
    pub state: Option<String>,
}

/// Credentials of one side.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// A bearer token.
    #[serde(default)]
    bearer: Option<SecretRef>,
    /// A user with a password.
    #[serde(default)]
    basic: Option<Credentials>,
    /// A header of any name whose value is secret.
    #[serde(default)]
    header: Option<SecretHeader>,
    /// A certificate of the client's own.
    #[serde(default)]
    certificate: Option<ClientCertificate>,
}

/// Headers, and the secrets in them.
type SecretHeaders = (Vec<(String, reqwest::header::HeaderValue)>, Vec<Secret>);

/// A user with a password.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Credentials {
    /// The user's name.
    user: String,
    /// Where the password is.
    password: SecretRef,
}

/// A header whose value is secret.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct SecretHeader {
    /// Its name.
    name: String,
    /// Where its value is.
    value: SecretRef,
}

/// A certificate of the client's own.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct ClientCertificate {
    /// The file with the certificate, and those between it and its authority (PEM).
    file: String,
    /// Where its private key (PEM) is.
    key: SecretRef,
}

impl Endpoint {
    /// What stands behind `scheme:` in the address, when this is a stand-in of that kind.
    pub fn stand_in(&self, scheme: &str) -> Option<&str> {
        self.url.strip_prefix(scheme)?.strip_prefix(':')
    }

    /// The place, without credentials.
    pub fn identity(&self) -> String {
        self.url.trim_end_matches('/').to_owned()
    }

    /// A client that reads.
    ///
    /// # Errors
    /// [`FailureKind::Input`] when the address is none, [`FailureKind::Denied`] when credentials cannot be had.
    pub async fn reader(&self, cx: &ConnectCx) -> Result<Client, Failure> {
        self.client(self.read_as.as_ref(), true, cx).await
    }

    /// A client that writes.
    ///
    /// # Errors
    /// As [`Endpoint::reader`], and [`FailureKind::Denied`] when the environment names no one who writes.
    pub async fn writer(&self, cx: &ConnectCx) -> Result<Client, Failure> {
        self.client(Some(self.account_to_write()?), false, cx).await
    }

    /// Who writes.
    ///
    /// # Errors
    /// [`FailureKind::Denied`] when the environment names no one.
    pub fn account_to_write(&self) -> Result<&Account, Failure> {
        self.write_as.as_ref().ok_or_else(|| {
            Failure::new(FailureKind::Denied, "it can only be read in this environment").help(
                "add `write_as` to the target, with an account that may write, or `write_as: {}` to write without one",
            )
        })
    }

    /// Whether somebody on the way could read what is sent.
    ///
    /// # Errors
    /// [`FailureKind::Input`] when the address is none.
    pub fn is_in_the_clear(&self) -> Result<bool, Failure> {
        self.base().map(|base| is_in_the_clear(&base))
    }

    /// The address, when it is one that credentials may go to.
    fn base(&self) -> Result<Url, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let url = Url::parse(&self.url)
            .map_err(|error| input(format!("`{}` is not an address: {error}", self.url)))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(input(format!(
                "`{}:` is none of the kinds of address that can be reached; expected `https://` or `http://`",
                url.scheme()
            )));
        }
        if !url.username().is_empty() || url.password().is_some() {
            // The address itself stays out of the message: it holds a password.
            return Err(input("`url` holds credentials".into()).help("use `read_as` and `write_as`"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(input(format!("`{}` ends in parameters, which belong to steps", self.url)));
        }
        Ok(url)
    }

    async fn client(
        &self,
        account: Option<&Account>,
        keep_alive: bool,
        cx: &ConnectCx,
    ) -> Result<Client, Failure> {
        let base = self.base()?;
        let anyone = Account::default();
        let account = account.unwrap_or(&anyone);
        if is_in_the_clear(&base) && account.is_someone() {
            return Err(Failure::new(
                FailureKind::Denied,
                "credentials would cross the network in the clear",
            )
            .help("use `https://`"));
        }
        let host = base
            .host()
            .ok_or_else(|| Failure::new(FailureKind::Input, format!("`{}` names no host", self.url)))?;
        let networks = Networks::new(&self.networks, &host);
        let (headers, secrets) = account.headers(cx).await?;
        Client::new(Settings {
            networks,
            names: Arc::new(System),
            headers,
            secrets,
            identity: account.identity(cx).await?,
            ca_file: self.ca_file.as_ref().map(|file| cx.path(file)),
            connect_timeout: self.connect_timeout.map_or(Duration::from_secs(5), |wait| wait.0),
            timeout: self.timeout.map_or(Duration::from_secs(30), |wait| wait.0),
            size_limit: self.size_limit.unwrap_or(8 << 20),
            keep_alive,
            base,
        })
    }
}

/// No TLS, and not this machine.
fn is_in_the_clear(base: &Url) -> bool {
    let local = match base.host() {
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        Some(url::Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => false,
    };
    base.scheme() == "http" && !local
}

impl Account {
    fn is_someone(&self) -> bool {
        self.bearer.is_some() || self.basic.is_some() || self.header.is_some() || self.certificate.is_some()
    }

    /// The headers that say who asks, their values marked so that nothing prints them; and the secrets in them.
    async fn headers(&self, cx: &ConnectCx) -> Result<SecretHeaders, Failure> {
        if self.bearer.is_some() && self.basic.is_some() {
            return Err(Failure::new(FailureKind::Input, "`bearer` and `basic` exclude each other"));
        }
        let mut headers: BTreeMap<String, String> = BTreeMap::new();
        let mut secrets: Vec<Secret> = Vec::new();
        if let Some(token) = &self.bearer {
            let token = token.resolve(cx).await?;
            headers.insert("authorization".into(), format!("Bearer {}", token.reveal()));
            secrets.push(token);
        }
        if let Some(Credentials { user, password }) = &self.basic {
            if user.contains(':') {
                return Err(Failure::new(FailureKind::Input, "the user of `basic` has a colon in its name"));
            }
            let password = password.resolve(cx).await?;
            let pair = BASE64.encode(format!("{user}:{}", password.reveal()));
            headers.insert("authorization".into(), format!("Basic {pair}"));
            secrets.push(password);
        }
        if let Some(SecretHeader { name, value }) = &self.header {
            let value = value.resolve(cx).await?;
            headers.insert(name.to_ascii_lowercase(), value.reveal().to_owned());
            secrets.push(value);
        }
        let headers = headers
            .into_iter()
            .map(|(name, value)| {
                let mut value = reqwest::header::HeaderValue::from_str(&value).map_err(|_| {
                    Failure::new(
                        FailureKind::Denied,
                        format!("the secret for the header `{name}` has characters that no header may have"),
                    )
                })?;
                value.set_sensitive(true);
                Ok((name, value))
            })
            .collect::<Result<_, Failure>>()?;
        Ok((headers, secrets))
    }

    async fn identity(&self, cx: &ConnectCx) -> Result<Option<ClientIdentity>, Failure> {
        match &self.certificate {
            None => Ok(None),
            Some(ClientCertificate { file, key }) => {
                ClientIdentity::read(&cx.path(file), &key.resolve(cx).await?).map(Some)
            }
        }
    }
}
