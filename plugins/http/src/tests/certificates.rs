//! `http.certificate`, on a TLS server and on routes.

use std::net::SocketAddr;
use std::sync::Arc;

use farrier_action::harness::{Case, World};
use farrier_action::{Binding, Now, Targets};
use farrier_model::time::Timestamp;
use farrier_model::{FailureKind, Scope, Value};
use farrier_testkit::eavesdropper::{self, Eavesdropper};
use futures_util::FutureExt as _;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::pki_types::PrivateKeyDer;
use tokio::net::TcpListener;

use super::{Place, TOKEN, json, plan, registry};

/// A TLS server with a certificate for 127.0.0.1 and `gateway.example.org`, signed by an authority in a file.
async fn tls_server(place: &Place, last_year: i32) -> SocketAddr {
    let authority_key = KeyPair::generate().unwrap();
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    authority.distinguished_name.push(DnType::CommonName, "Test authority");
    let authority_certificate = authority.self_signed(&authority_key).unwrap();
    std::fs::write(place.path("ca.pem"), authority_certificate.pem()).unwrap();
    let issuer = Issuer::new(authority, authority_key);
    let key = KeyPair::generate().unwrap();
    let names = vec!["gateway.example.org".to_owned(), "127.0.0.1".to_owned()];
    let mut params = CertificateParams::new(names).unwrap();
    params.distinguished_name.push(DnType::CommonName, "gateway");
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(last_year, 12, 31);
    let certificate = params.signed_by(&key, &issuer).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::Pkcs8(key.serialize_der().into()))
        .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let _ = acceptor.accept(stream).await;
        }
    });
    address
}

fn targets(place: &Place, config: Value, now: &str) -> Arc<Targets> {
    let now: Timestamp = now.parse().unwrap();
    let binding = Binding { alias: "feed".into(), kind: "http".into(), config };
    let targets = Targets::new(place.path(""), vec![binding], std::collections::BTreeMap::new());
    Arc::new(targets.at(Now::from_fn(move || now)))
}

async fn look(targets: &Arc<Targets>) -> Value {
    plan(targets, "http.certificate", r#"{"target": "feed"}"#).await.unwrap().output.unwrap()
}

#[tokio::test]
async fn a_servers_certificate_is_read_whether_valid_or_not() {
    let place = Place::routes();
    let address = tls_server(&place, 2090).await;
    let config = json(&format!(r#"{{"url": "https://{address}", "ca_file": "ca.pem"}}"#));
    let seen = look(&targets(&place, config, "2090-12-29T23:00:00Z")).await;
    assert_eq!(
        seen.to_json(),
        r#"{"not_after":"2090-12-31T00:00:00Z","not_before":"2020-01-01T00:00:00Z","days_left":1,"names":["gateway.example.org","127.0.0.1"],"subject":"CN=gateway","issuer":"CN=Test authority","trusted":true,"problem":null}"#
    );

    let expired = tls_server(&place, 2021).await;
    let config = json(&format!(r#"{{"url": "https://{expired}", "ca_file": "ca.pem"}}"#));
    let seen = look(&targets(&place, config, "2022-01-01T01:00:00Z")).await;
    assert_eq!(
        (seen.get("days_left"), seen.get("trusted")),
        (Some(&Value::Int(-2)), Some(&Value::Bool(false)))
    );
    assert!(seen.get("problem").unwrap().as_str().unwrap().contains("expired"), "{seen}");

    // Another name than those in it.
    let config = json(&format!(r#"{{"url": "https://localhost:{}", "ca_file": "ca.pem"}}"#, expired.port()));
    let seen = look(&targets(&place, config, "2022-01-01T01:00:00Z")).await;
    assert_eq!(seen.get("trusted"), Some(&Value::Bool(false)));

    // What is read over such a connection is not.
    let config = json(&format!(r#"{{"url": "https://{expired}", "ca_file": "ca.pem"}}"#));
    let failure = plan(&targets(&place, config, "2022-01-01T01:00:00Z"), "http.get", r#"{"target": "feed"}"#)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    assert!(failure.message.contains("expired"), "{failure}");
}

#[tokio::test]
async fn what_shows_no_certificate_says_so() {
    let place = Place::server().await;
    let address = place.server.as_ref().unwrap().address;
    for (url, kind, reason) in [
        (format!("http://{address}"), FailureKind::Input, "expected `https://`"),
        (format!("https://{address}"), FailureKind::Unreachable, "the TLS handshake failed"),
        ("https://127.0.0.1:1".into(), FailureKind::Unreachable, "cannot connect"),
    ] {
        // Any file of certificates will do; the machine may have none.
        tls_server(&place, 2090).await;
        let config = json(&format!(r#"{{"url": "{url}", "ca_file": "ca.pem"}}"#));
        let targets = targets(&place, config, "2026-01-01T00:00:00Z");
        let failure = plan(&targets, "http.certificate", r#"{"target": "feed"}"#).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(reason), "{failure}");
    }
}

#[tokio::test]
async fn recorded_certificates_age_with_the_world() {
    let place = Place::routes();
    let config = json(r#"{"url": "routes:routes.yaml"}"#);
    let seen = look(&targets(&place, config.clone(), "2026-12-01T12:00:00Z")).await;
    assert_eq!(
        (seen.get("days_left"), seen.get("trusted")),
        (Some(&Value::Int(29)), Some(&Value::Bool(true)))
    );
    let seen = look(&targets(&place, config, "2027-01-01T00:00:01Z")).await;
    assert_eq!(
        (seen.get("days_left"), seen.get("trusted")),
        (Some(&Value::Int(-2)), Some(&Value::Bool(false)))
    );
    assert_eq!(seen.get("problem"), Some(&Value::text("certificate expired")));
}

const BAD: [&str; 5] = [
    "{}",
    r#"{"target": "nowhere"}"#,
    r#"{"target": 7}"#,
    r#"{"target": "feed", "host": "another.example.org"}"#,
    r#"{"target": "feed", "path": ["a"]}"#,
];

/// The world is what a server was told in private, and what is recorded of requests. Neither has anything of this action, for
/// which an account is named, too.
#[tokio::test(flavor = "multi_thread")]
async fn the_laws_hold_and_nothing_is_said_but_the_handshake() {
    use eavesdropper::Certificate::{Expired, Good};
    let place = Place::routes();
    let servers = [Good, Expired].map(|kind| Eavesdropper::start(kind, |_| Ok(true), |_| Ok(())));
    let account = place.config("{}").get("write_as").unwrap().to_json();
    let at_server = |server: &Eavesdropper| {
        let (port, ca_file) = (server.port(), server.ca_file());
        let ca_file = ca_file.display();
        format!(r#"{{"url": "https://127.0.0.1:{port}", "ca_file": "{ca_file}", "read_as": {account}}}"#)
    };
    let [good, expired] = &servers;
    for (config, trusted) in [
        (r#"{"url": "routes:routes.yaml"}"#.to_owned(), true),
        (at_server(good), true),
        (at_server(expired), false),
    ] {
        let registry = registry();
        let observe = || {
            let mut world: World = place.world();
            for (number, server) in servers.iter().enumerate() {
                let heard = server.heard();
                assert!(!heard.holds(TOKEN));
                world.insert(format!("server {number}"), Value::text(format!("{:?}", heard.in_private)));
            }
            world
        };
        let case = Case {
            registry: &registry,
            action: "http.certificate",
            input: json(r#"{"target": "feed"}"#),
            targets: targets(&place, json(&config), "2026-12-01T12:00:00Z"),
            scope: Scope::default(),
            observe: Box::new(|| async { observe() }.boxed()),
            disturb: None,
            bad_inputs: BAD.map(json).to_vec(),
        };
        let shown = case.prove().await.unwrap();
        assert!(shown.plan.changes.is_empty());
        assert_eq!(shown.output.get("trusted"), Some(&Value::Bool(trusted)), "{}", shown.output);
    }
    assert!(servers.iter().all(|server| !server.heard().on_the_way.is_empty()), "a server was not asked");
}
