//! TLS: certificates are always verified, with the system's authorities or those of one file.

use std::path::Path;
use std::sync::Arc;

use farrier_model::{Failure, FailureKind, Secret};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// A certificate to show to the server, with its key.
#[derive(Debug)]
pub struct ClientIdentity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl ClientIdentity {
    /// From a file of certificates and the text of a key, both PEM.
    ///
    /// # Errors
    /// [`FailureKind::Denied`] when one of them cannot be read; the key is in no message.
    pub fn read(certificate: &Path, key: &Secret) -> Result<ClientIdentity, Failure> {
        let chain = certificates(certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key.reveal().as_bytes()).map_err(|_| {
            Failure::new(FailureKind::Denied, "the key of the client certificate is not a private key in PEM")
        })?;
        Ok(ClientIdentity { chain, key })
    }
}

/// The authorities to trust: those of `ca_file`, or the system's.
///
/// # Errors
/// [`FailureKind::Denied`] when the file cannot be used, [`FailureKind::Unreachable`] when the system has none.
pub fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, Failure> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = ca_file {
        for certificate in certificates(file)? {
            roots.add(certificate).map_err(|error| unusable(file, &error.to_string()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        if roots.is_empty() {
            return Err(Failure::new(
                FailureKind::Unreachable,
                "this machine trusts no certificate authority",
            )
            .help("install the system's CA certificates, or name a `ca_file`"));
        }
    }
    Ok(roots)
}

/// What a TLS client needs.
///
/// # Errors
/// As [`roots`], and when the client's certificate does not fit its key.
pub fn tls_config(ca_file: Option<&Path>, identity: Option<ClientIdentity>) -> Result<ClientConfig, Failure> {
    // The provider is named here, so that nothing depends on what else the process has installed.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(FailureKind::Internal, format!("no TLS: {error}")))?
        .with_root_certificates(roots(ca_file)?);
    match identity {
        None => Ok(builder.with_no_client_auth()),
        Some(ClientIdentity { chain, key }) => builder.with_client_auth_cert(chain, key).map_err(|error| {
            Failure::new(FailureKind::Denied, format!("the client certificate cannot be used: {error}"))
        }),
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let found: Vec<_> = CertificateDer::pem_file_iter(file)
        .and_then(Iterator::collect)
        .map_err(|error| unusable(file, &error.to_string()))?;
    if found.is_empty() {
        return Err(unusable(file, "it holds no certificate"));
    }
    Ok(found)
}

fn unusable(file: &Path, reason: &str) -> Failure {
    Failure::new(FailureKind::Denied, format!("cannot use the certificates in {}: {reason}", file.display()))
}
