//! `http.certificate`.

use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::time::Timestamp;
use farrier_model::{Effect, Failure, FailureKind};
use farrier_outbound::{Endpoint, Networks, roots};
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::target::{Http, Place};

/// Looks at the certificate that a server shows.
///
/// The certificate is read whether it is valid or not; `trusted` and `problem` say which. Nothing is sent to the
/// server but the handshake.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Certificate {
    /// The server.
    target: Target<Http>,
}

/// A server's certificate.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(crate) struct Shown {
    /// The end of its validity.
    pub(crate) not_after: String,
    /// The beginning of its validity.
    pub(crate) not_before: String,
    /// Whole days until `not_after`; below zero when that is past.
    pub(crate) days_left: i64,
    /// The names and addresses that it is for.
    pub(crate) names: Vec<String>,
    /// Whom it names as its holder.
    pub(crate) subject: String,
    /// Who signed it.
    pub(crate) issuer: String,
    /// Whether it is valid now, for this host and from an authority that is trusted.
    pub(crate) trusted: bool,
    /// Why it is not trusted.
    pub(crate) problem: Option<String>,
}

/// Whole days from `now` to `then`, rounded down.
pub(crate) fn days(now: Timestamp, then: Timestamp) -> i64 {
    (then.as_second() - now.as_second()).div_euclid(86_400)
}

impl Action for Certificate {
    const NAME: &'static str = "http.certificate";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
gateway:
  uses: http.certificate
  with: { target: gateway }
  expect:
    - { that: result.trusted and result.days_left >= 14, otherwise: the certificate has to be renewed }
";
    type Output = Shown;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Shown>, Failure> {
        let reader = cx.reader(&self.target).await?;
        let now = reader.now.get();
        let shown = match &reader.place {
            Place::Routes(routes) => routes.certificate(now),
            Place::Server { endpoint, ca_file } => look(endpoint, ca_file.as_deref(), now).await,
        };
        shown.map(Planned::known).map_err(|failure| failure.at(self.target.alias()))
    }
}

/// Shakes hands with the server, and reads what it showed.
async fn look(endpoint: &Endpoint, ca_file: Option<&Path>, now: Timestamp) -> Result<Shown, Failure> {
    let limit = |wait: Option<farrier_action::duration::Wait>, default| wait.map_or(default, |wait| wait.0);
    let whole = limit(endpoint.connect_timeout, Duration::from_secs(5))
        + limit(endpoint.timeout, Duration::from_secs(30));
    match tokio::time::timeout(whole, handshake(endpoint, ca_file)).await {
        Ok(seen) => read(seen?, now),
        Err(_) => {
            Err(Failure::new(FailureKind::Timeout, "the server did not finish the TLS handshake in time"))
        }
    }
}

/// What the handshake showed: the certificate, and why it is not to be trusted.
struct Seen {
    certificate: CertificateDer<'static>,
    problem: Option<String>,
}

async fn handshake(endpoint: &Endpoint, ca_file: Option<&Path>) -> Result<Seen, Failure> {
    let input = |message: String| Failure::new(FailureKind::Input, message);
    let url = url::Url::parse(&endpoint.url)
        .map_err(|error| input(format!("`{}` is not an address: {error}", endpoint.url)))?;
    let host = url.host().ok_or_else(|| input(format!("`{}` names no host", endpoint.url)))?;
    if url.scheme() != "https" {
        return Err(input(format!("`{}` shows no certificate; expected `https://`", endpoint.url)));
    }
    let networks = Networks::new(&endpoint.networks, &host);
    let (name, server) = match host {
        url::Host::Domain(name) => (
            name.to_owned(),
            ServerName::try_from(name.to_owned())
                .map_err(|_| input(format!("`{name}` is not a host's name")))?,
        ),
        url::Host::Ipv4(address) => (address.to_string(), ServerName::IpAddress(IpAddr::V4(address).into())),
        url::Host::Ipv6(address) => (address.to_string(), ServerName::IpAddress(IpAddr::V6(address).into())),
    };
    let addresses = networks.resolve(&name, url.port_or_known_default().unwrap_or(443)).await?;
    let stream = TcpStream::connect(&*addresses)
        .await
        .map_err(|error| Failure::new(FailureKind::Unreachable, format!("cannot connect: {error}")))?;
    let internal = |error: String| Failure::new(FailureKind::Internal, format!("no TLS: {error}"));
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let judge = WebPkiServerVerifier::builder_with_provider(Arc::new(roots(ca_file)?), provider.clone())
        .build()
        .map_err(|error| internal(error.to_string()))?;
    let looker = Arc::new(Looker { judge, seen: Mutex::new(None) });
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| internal(error.to_string()))?
        .dangerous()
        .with_custom_certificate_verifier(looker.clone())
        .with_no_client_auth();
    let shaken = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(server, stream).await;
    // A server that wants a certificate from us ends the handshake, but only after it has shown its own.
    let seen = looker.seen.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (seen, shaken) {
        (Some(seen), _) => Ok(seen),
        (None, Err(error)) => {
            Err(Failure::new(FailureKind::Unreachable, format!("the TLS handshake failed: {error}")))
        }
        (None, Ok(_)) => Err(Failure::new(FailureKind::Refused, "the server showed no certificate")),
    }
}

/// Keeps what the server shows and lets every certificate pass. Nothing is sent over the connection, so nobody is
/// trusted by that.
#[derive(Debug)]
struct Looker {
    judge: Arc<WebPkiServerVerifier>,
    seen: Mutex<Option<Seen>>,
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seen({:?})", self.problem)
    }
}

impl ServerCertVerifier for Looker {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let judged =
            self.judge.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        let problem = judged.err().map(|error| match error {
            rustls::Error::InvalidCertificate(reason) => reason.to_string(),
            other => other.to_string(),
        });
        let seen = Seen { certificate: end_entity.clone().into_owned(), problem };
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Some(seen);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.judge.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.judge.supported_verify_schemes()
    }
}

fn read(seen: Seen, now: Timestamp) -> Result<Shown, Failure> {
    let unreadable =
        |what: String| Failure::new(FailureKind::Refused, format!("the certificate cannot be read: {what}"));
    let (_, certificate) =
        X509Certificate::from_der(&seen.certificate).map_err(|error| unreadable(error.to_string()))?;
    let moment =
        |seconds: i64| Timestamp::from_second(seconds).map_err(|error| unreadable(error.to_string()));
    let validity = certificate.validity();
    let not_after = moment(validity.not_after.timestamp())?;
    let alternative =
        certificate.subject_alternative_name().map_err(|error| unreadable(error.to_string()))?;
    let names = alternative.map_or_else(Vec::new, |extension| {
        let name = |name: &GeneralName<'_>| match name {
            GeneralName::DNSName(name) => Some((*name).to_owned()),
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        };
        extension.value.general_names.iter().filter_map(name).collect()
    });
    Ok(Shown {
        not_after: not_after.to_string(),
        not_before: moment(validity.not_before.timestamp())?.to_string(),
        days_left: days(now, not_after),
        names,
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        trusted: seen.problem.is_none(),
        problem: seen.problem,
    })
}

fn address(bytes: &[u8]) -> Option<String> {
    <[u8; 4]>::try_from(bytes)
        .map(IpAddr::from)
        .or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from))
        .ok()
        .map(|address| address.to_string())
}
