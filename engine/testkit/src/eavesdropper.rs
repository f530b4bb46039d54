//! Someone in a server's place, who hears what is said before a connection is private, and after, when it becomes so.
//!
//! ```no_run
//! use farrier_testkit::eavesdropper::{Certificate, Eavesdropper};
//!
//! // A server that is private from the first byte, with a certificate that is over.
//! let server = Eavesdropper::start(Certificate::Expired, |_| Ok(true), |_| Ok(()));
//! // … log in at server.port(), trusting server.ca_file() …
//! assert!(!server.heard().holds("the password"));
//! ```

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection};
use tempfile::TempDir;

use crate::or_panic;

/// What the server shows of itself to whoever trusts [`Eavesdropper::ca_file`] and means 127.0.0.1 or `localhost`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Certificate {
    /// Nothing is wrong with it.
    Good,
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYet,
    /// It is for another host.
    OtherHost,
    /// Another authority of the same name has signed it.
    OtherAuthority,
    /// It has signed itself.
    SelfSigned,
}

impl Certificate {
    /// All that must be refused.
    pub const BAD: [Certificate; 5] = [
        Certificate::Expired,
        Certificate::NotYet,
        Certificate::OtherHost,
        Certificate::OtherAuthority,
        Certificate::SelfSigned,
    ];
}

/// A connection, as those see it who speak on it.
pub trait Wire: Read + Write {}

impl<S: Read + Write> Wire for S {}

/// What was said, by all clients together.
#[derive(Debug, Clone, Default)]
pub struct Heard {
    /// What went over the network, as it was there.
    pub on_the_way: Vec<u8>,
    /// What was said in private.
    pub in_private: Vec<u8>,
}

impl Heard {
    /// Whether `text` was said, in the open or in private.
    pub fn holds(&self, text: &str) -> bool {
        [&self.on_the_way, &self.in_private].iter().any(|bytes| holds(bytes, text))
    }

    /// Whether `text` could be read by anyone on the way.
    pub fn holds_in_the_open(&self, text: &str) -> bool {
        holds(&self.on_the_way, text)
    }
}

fn holds(bytes: &[u8], text: &str) -> bool {
    bytes.windows(text.len()).any(|window| window == text.as_bytes())
}

/// The server; it listens as long as the test lives.
#[derive(Debug)]
pub struct Eavesdropper {
    port: u16,
    folder: TempDir,
    heard: Arc<Mutex<Heard>>,
}

impl Eavesdropper {
    /// Starts one. `before` speaks on each connection while anyone can listen, and says whether it is to become private;
    /// `after` speaks in private. What a client says afterwards is heard, and not answered.
    #[track_caller]
    pub fn start(
        certificate: Certificate,
        before: impl Fn(&mut dyn Wire) -> io::Result<bool> + Send + Sync + 'static,
        after: impl Fn(&mut dyn Wire) -> io::Result<()> + Send + Sync + 'static,
    ) -> Eavesdropper {
        let folder = crate::temp_dir();
        let (config, authority) = or_panic(identity(certificate), "cannot make a certificate");
        or_panic(std::fs::write(folder.path().join("ca.pem"), authority), "cannot keep a certificate");
        let listener = or_panic(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)), "no free port on 127.0.0.1");
        let port = or_panic(listener.local_addr(), "a listening socket has no address").port();
        let heard = Arc::<Mutex<Heard>>::default();
        let shared = Arc::new((config, before, after, Arc::clone(&heard)));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || {
                    let (config, before, after, heard) = &*shared;
                    // A client that goes away has said what it had to say.
                    drop(serve(stream, config, before, after, heard));
                });
            }
        });
        Eavesdropper { port, folder, heard }
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The certificate (PEM) of the authority that clients trust.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// What was said so far.
    pub fn heard(&self) -> Heard {
        lock(&self.heard).clone()
    }
}

fn serve(
    mut stream: TcpStream,
    config: &Arc<ServerConfig>,
    before: &impl Fn(&mut dyn Wire) -> io::Result<bool>,
    after: &impl Fn(&mut dyn Wire) -> io::Result<()>,
    heard: &Mutex<Heard>,
) -> Result<()> {
    let mut open = Line { stream: &mut stream, heard, place: |heard| &mut heard.on_the_way };
    if before(&mut open)? {
        let mut tls = ServerConnection::new(Arc::clone(config))?;
        let stream = rustls::Stream::new(&mut tls, &mut open);
        let mut private = Line { stream, heard, place: |heard| &mut heard.in_private };
        after(&mut private)?;
        io::copy(&mut private, &mut io::sink())?;
    } else {
        io::copy(&mut open, &mut io::sink())?;
    }
    Ok(())
}

/// Writes down what is read.
struct Line<'a, S> {
    stream: S,
    heard: &'a Mutex<Heard>,
    place: fn(&mut Heard) -> &mut Vec<u8>,
}

impl<S: Read> Read for Line<'_, S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.stream.read(buffer)?;
        (self.place)(&mut lock(self.heard)).extend_from_slice(&buffer[..count]);
        Ok(count)
    }
}

impl<S: Write> Write for Line<'_, S> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// What the server shows, and the authority (PEM) that clients trust.
fn identity(kind: Certificate) -> Result<(Arc<ServerConfig>, String)> {
    let authority = || -> Result<(String, Issuer<'static, KeyPair>)> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "farrier-testkit-ca");
        let certificate = params.self_signed(&key)?;
        Ok((certificate.pem(), Issuer::new(params, key)))
    };
    let (trusted, issuer) = authority()?;
    let names: &[&str] =
        if kind == Certificate::OtherHost { &["other.example.org"] } else { &["localhost", "127.0.0.1"] };
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    let (first, last) = match kind {
        Certificate::Expired => (2020, 2021),
        Certificate::NotYet => (2089, 2090),
        _ => (2020, 2090),
    };
    params.not_before = date_time_ymd(first, 1, 1);
    params.not_after = date_time_ymd(last, 1, 1);
    let key = KeyPair::generate()?;
    let certificate = match kind {
        Certificate::SelfSigned => params.self_signed(&key)?,
        Certificate::OtherAuthority => params.signed_by(&key, &authority()?.1)?,
        _ => params.signed_by(&key, &issuer)?,
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .context("no TLS")?
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            PrivateKeyDer::Pkcs8(key.serialize_der().into()),
        )?;
    Ok((Arc::new(config), trusted))
}

/// A panic elsewhere does not make what was heard unusable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_in_the_open_is_heard() {
        let server = Eavesdropper::start(Certificate::Good, |_| Ok(false), |_| Ok(()));
        let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, server.port())).unwrap();
        stream.write_all(b"a word").unwrap();
        crate::wait_until("it is heard", || server.heard().holds_in_the_open("a word"));
        assert!(server.heard().in_private.is_empty());
    }
}
