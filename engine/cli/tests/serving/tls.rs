//! HTTPS: whom a client trusts, whom the service trusts by a certificate, and certificates that are replaced while it runs.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::Write as _;
use std::net::TcpStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use farrier_testkit::DEADLINE;
use rcgen::{BasicConstraints, Certificate, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use crate::common::{Answer, Project, Started};
use crate::service::{Answered, Serving, answer, project, request};

/// An authority, and what it signs.
struct Authority {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key.
struct Identity {
    certificate: Certificate,
    key: KeyPair,
}

impl Authority {
    fn new(name: &str) -> Authority {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap();
        Authority { certificate, issuer: Issuer::new(params, key) }
    }

    fn signs(&self, name: &str) -> Identity {
        self.signs_until(name, 2090)
    }

    fn signs_until(&self, name: &str, last_year: i32) -> Identity {
        let key = KeyPair::generate().unwrap();
        let names = vec!["localhost".to_owned(), "127.0.0.1".to_owned()];
        let mut params = CertificateParams::new(names).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(last_year, 12, 31);
        Identity { certificate: params.signed_by(&key, &self.issuer).unwrap(), key }
    }

    /// Its certificate in a file of the project.
    fn file(&self, project: &Project, name: &str) -> PathBuf {
        project.write(name, &self.certificate.pem());
        project.path(name)
    }
}

impl Identity {
    fn fingerprint(&self) -> String {
        format!("sha256:{}", hex::encode(Sha256::digest(self.certificate.der())))
    }

    fn write(&self, project: &Project) {
        project.write("tls/cert.pem", &self.certificate.pem());
        project.write("tls/key.pem", &self.key.serialize_pem());
    }
}

/// Everyone who has to do with a service over HTTPS.
struct Secure {
    serving: Serving,
    servers: Authority,
    clients: Authority,
    /// A person, `cert-viewer`.
    viewer: Identity,
    /// The sender of the receiver `mutual`.
    sender: Identity,
}

fn secure() -> Secure {
    let (project, servers, clients) = (project(), Authority::new("servers"), Authority::new("clients"));
    let (viewer, sender) = (clients.signs("viewer"), clients.signs("sender"));
    servers.signs("service").write(&project);
    let environment =
        project.read("environments/test.yaml").replacen('{', r#"{"receivers": ["main", "mutual"], "#, 1);
    project.write("environments/test.yaml", &environment);
    clients.file(&project, "tls/clients.pem");
    let more = format!(
        "  mutual: {{ certificates: ['{}'] }}\ntls: {{ certificate: tls/cert.pem, key: tls/key.pem, client_authorities: \
         tls/clients.pem }}\n",
        sender.fingerprint()
    );
    let serving = Serving::start_with(project, |file| {
        let receivers =
            file.replace("receivers: { main: ", "receivers:\n  main: ").replace("] } }\n", "] }\n");
        let person = format!(
            "users:\n  cert-viewer: {{ role: viewer, certificates: ['{}'] }}\n",
            viewer.fingerprint()
        );
        receivers.replacen("users:\n", &person, 1) + &more
    });
    Secure { serving, servers, clients, viewer, sender }
}

impl Secure {
    /// Asks over TLS; an error when there is none.
    fn ask(
        &self,
        trusted: &Authority,
        identity: Option<&Identity>,
        (method, path, token, body, more): (&str, &str, Option<&str>, Option<&str>, &str),
    ) -> Result<Answered, String> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(trusted.certificate.der().clone()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let chain: Vec<CertificateDer<'static>> = vec![identity.certificate.der().clone()];
                let key = PrivateKeyDer::Pkcs8(identity.key.serialize_der().into());
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let name = ServerName::try_from("localhost").unwrap();
        let connection = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
        let socket = TcpStream::connect(self.serving.address).unwrap();
        socket.set_read_timeout(Some(DEADLINE)).unwrap();
        let mut stream = rustls::StreamOwned::new(connection, socket);
        let text = request("localhost", method, path, token, body, more);
        stream.write_all(text.as_bytes()).and_then(|()| stream.flush()).map_err(|error| error.to_string())?;
        match answer(&mut stream) {
            answered if answered.status == 0 => Err("the other end said nothing".into()),
            answered => Ok(answered),
        }
    }

    fn get(&self, identity: Option<&Identity>, token: Option<&str>, path: &str) -> Result<Answered, String> {
        self.ask(&self.servers, identity, ("GET", path, token, None, ""))
    }

    /// Someone who trusts `trusted` is answered.
    fn trusts(&self, trusted: &Authority) -> Result<(), String> {
        self.ask(trusted, None, ("GET", "/healthz", None, None, ""))
            .map(|answered| assert_eq!(answered.status, 200))
    }
}

/// Guards "a token goes to nobody whose certificate was not verified": the command line refuses before it asks.
#[test]
fn the_command_line_verifies_the_service() {
    let secure = secure();
    let serving = &secure.serving;
    let ca = secure.servers.file(&serving.project, "ca.pem");
    let wrong = Authority::new("wrong").file(&serving.project, "wrong.pem");
    serving.project.write("empty.pem", "");
    let empty = serving.project.path("empty.pem");
    let run = |host: &str, ca: Option<&PathBuf>| -> Answer {
        let url = format!("https://{host}:{}", serving.address.port());
        let mut command = serving.project.command(&["--server", &url, "runs"]);
        command.env("FARRIER_TOKEN", serving.token("viewer")).env_remove("FARRIER_SERVER_CA");
        if let Some(ca) = ca {
            command.arg("--server-ca").arg(ca);
        }
        Started::from(command).end()
    };
    run("localhost", Some(&ca)).expect(0);
    run("127.0.0.1", Some(&ca)).expect(0);
    run("localhost", Some(&wrong)).expect(69).complains("invalid peer certificate");
    run("localhost", None).expect(69).complains("invalid peer certificate");
    run("localhost", Some(&empty)).expect(64).complains("holds no certificate");
    run("localhost", Some(&serving.project.path("missing.pem"))).expect(64).complains("cannot be used");
    // A name that is not in it.
    run("127.0.0.2", Some(&ca)).expect_one_of(&[69]);
    // One that was good once.
    secure.servers.signs_until("old", 2021).write(&serving.project);
    serving.signal("HUP");
    serving.until_said("the project was read again");
    run("localhost", Some(&ca)).expect(69).complains("expired");
}

/// Guards "no answer in the clear": whoever speaks HTTP to the port of HTTPS is told nothing, and keeps nobody from an answer.
#[test]
fn plain_http_gets_nothing_from_a_port_of_https() {
    let secure = secure();
    let token = secure.serving.token("admin");
    let answered = secure.serving.ask("GET", "/api/v1/runs", Some(token), None);
    assert_eq!(answered.status, 0, "{answered:?}");
    assert!(!answered.head.contains("HTTP"), "{answered:?}");
    secure.trusts(&secure.servers).unwrap();
}

/// Guards "a certificate is somebody, and nobody else": mapped by its fingerprint to a person or to one receiver.
#[test]
fn certificates_are_people_and_senders() {
    let secure = secure();
    let Secure { serving, clients, viewer, sender, .. } = &secure;
    let status =
        |identity, token, path: &str| secure.get(identity, token, path).map(|answered| answered.status);
    assert_eq!(status(Some(viewer), None, "/api/v1/runs"), Ok(200));
    let session = secure.get(Some(viewer), None, "/api/v1/session").unwrap().json();
    assert_eq!(
        (session["name"].as_str(), session["via"].as_str()),
        (Some("cert-viewer"), Some("certificate"))
    );
    assert_eq!(status(Some(viewer), None, "/api/v1/audit"), Ok(403));
    assert_eq!(status(None, None, "/api/v1/runs"), Ok(401));
    assert_eq!(status(None, Some(serving.token("viewer")), "/api/v1/runs"), Ok(200));
    // Whoever shows a token is known by it alone.
    assert_eq!(status(Some(viewer), Some("farrier_0"), "/api/v1/runs"), Ok(401));
    assert_eq!(status(Some(viewer), Some(serving.token("admin")), "/api/v1/audit"), Ok(200));
    // Signed by the right authority, and nobody.
    let stranger = clients.signs("stranger");
    assert_eq!(status(Some(&stranger), None, "/api/v1/runs"), Ok(401));
    assert_eq!(status(Some(&stranger), Some(serving.token("viewer")), "/api/v1/runs"), Ok(200));
    assert_eq!(status(Some(sender), None, "/api/v1/runs"), Ok(401));
    // Not signed by it, or not any more: not even a connection.
    let other = Authority::new("clients").signs("viewer");
    status(Some(&other), Some(serving.token("viewer")), "/api/v1/runs").unwrap_err();
    let expired = clients.signs_until("viewer", 2021);
    status(Some(&expired), Some(serving.token("viewer")), "/api/v1/runs").unwrap_err();

    let alerts =
        json!({ "version": "4", "groupKey": "g", "status": "firing", "receiver": "mutual", "alerts": [] })
            .to_string();
    let post = |identity, path: &str, more: &str| {
        let asked = ("POST", path, None, Some(&*alerts), more);
        secure.ask(&secure.servers, identity, asked).unwrap().status
    };
    assert_eq!(post(Some(sender), "/webhooks/alertmanager/mutual", ""), 200);
    assert_eq!(post(Some(sender), "/webhooks/alertmanager/main", ""), 401);
    assert_eq!(post(Some(viewer), "/webhooks/alertmanager/mutual", ""), 401);
    assert_eq!(post(Some(&stranger), "/webhooks/alertmanager/mutual", ""), 401);
    assert_eq!(post(None, "/webhooks/alertmanager/mutual", ""), 401);
    // A browser shows its certificate for pages of other sites, too.
    assert_eq!(post(Some(viewer), "/api/v1/logout", "Sec-Fetch-Site: cross-site\r\n"), 403);
    assert_eq!(post(Some(viewer), "/api/v1/logout", "Origin: null\r\n"), 403);
    assert_eq!(post(Some(viewer), "/api/v1/logout", ""), 200);
}

/// Guards "certificates are replaced whole": a file that cannot be used leaves those of before, and that is told.
#[test]
fn certificates_are_read_again() {
    let secure = secure();
    let Secure { serving, servers, .. } = &secure;
    let metric = || {
        let text = secure.get(None, Some(serving.token("viewer")), "/metrics").unwrap().body;
        let line =
            text.lines().find(|line| line.starts_with("farrier_service_stale_seconds ")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    let reload = || {
        let asked = ("POST", "/api/v1/reload", Some(serving.token("admin")), Some("{}"), "");
        secure.ask(servers, None, asked).unwrap()
    };
    assert!(metric() == 0.0);
    let next = Authority::new("next");
    let renewed = next.signs("service");
    // Half of a renewal: the new certificate with the old key; then no certificate at all.
    for half in [renewed.certificate.pem(), "-----BEGIN CERTIFICATE-----\nAAAA\n".into(), String::new()] {
        serving.project.write("tls/cert.pem", &half);
        let refused = reload().expect(409).json();
        let message = refused["error"]["message"].as_str().unwrap();
        assert!(message.contains("stay in use") && message.contains("tls/"), "{message}");
        secure.trusts(servers).unwrap();
        secure.trusts(&next).unwrap_err();
        let health = secure.get(None, None, "/healthz").unwrap().expect(200).json();
        assert!(health["notes"][0].as_str().unwrap().contains("certificates"), "{health}");
    }
    assert!(metric() > 0.0);
    // Rights are taken in all the same.
    let file = serving.project.read("serve.yaml").replace("  elsewhere: {", "  other: {");
    serving.project.write("serve.yaml", &file);
    reload().expect(409);
    let session = secure.get(None, Some(serving.token("elsewhere")), "/api/v1/session").unwrap().json();
    assert_eq!(session["name"], "other");

    // The whole renewal is noticed without a word from anybody.
    renewed.write(&serving.project);
    let begun = Instant::now();
    while secure.trusts(&next).is_err() {
        assert!(begun.elapsed() < DEADLINE, "the certificate is not taken in: {}", serving.said());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    secure.trusts(servers).unwrap_err();
    let text = secure.ask(&next, None, ("GET", "/healthz", None, None, "")).unwrap().json();
    assert_eq!(text["notes"], json!(null));
}
