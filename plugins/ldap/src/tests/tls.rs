//! Private connections: what is verified, and that nothing is sent before it is.

use std::net::{IpAddr, TcpListener, UdpSocket};

use farrier_action::TargetKind;
use farrier_model::{Failure, FailureKind, Value};
use farrier_testkit::slapd::{Options, Slapd};

use super::proxy::Proxy;
use super::{Place, json, start};
use crate::directory::Query;
use crate::dn::Dn;
use crate::target::{Ldap, LdapConfig};

fn private() -> Slapd {
    start(Options { tls: true, ..Options::default() })
}

/// Opens the reading side as an account and reads the base entry.
async fn read(
    place: &Place,
    slapd: &Slapd,
    url: &str,
    start_tls: Option<bool>,
    ca_file: Option<&str>,
) -> Result<(), Failure> {
    let mut config: Vec<(String, Value)> = place
        .server_config(url, slapd)
        .as_map()
        .unwrap()
        .iter()
        .map(|(key, value)| (key.to_string(), value.clone()))
        .collect();
    config.extend(start_tls.map(|flag| ("start_tls".to_owned(), Value::Bool(flag))));
    config.extend(ca_file.map(|file| ("ca_file".to_owned(), Value::text(file))));
    let reader = Ldap::reader(Value::map(config).read::<LdapConfig>().unwrap(), &place.cx()).await?;
    let mut found = 0;
    let query = Query::entry(&Dn::parse("dc=wikimedia,dc=org").unwrap(), vec!["dc".into()]);
    let mut each = |_| {
        found += 1;
        Ok(())
    };
    reader.directory.search(&query, &mut each).await?;
    assert_eq!(found, 1);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificates_are_verified_before_anyone_binds() {
    let (place, slapd, other) = (Place::files(), private(), private());
    let wrong_ca = other.ca_file().display().to_string();
    let ca = slapd.ca_file().display().to_string();
    let plain = slapd.url();
    let ldaps = slapd.tls_url().unwrap();
    let elsewhere = Proxy::before(&plain, "127.0.0.2", &[]);

    for (url, start_tls, ca_file) in [(&plain, Some(true), &ca), (&ldaps, None, &ca), (&plain, None, &ca)] {
        read(&place, &slapd, url, start_tls, Some(ca_file))
            .await
            .unwrap_or_else(|failure| panic!("{url}: {failure}"));
    }
    let log = slapd.log();
    assert_eq!(log.matches("STARTTLS").count(), 1, "{log}");

    let mark = slapd.mark();
    let refused = [
        (&plain, Some(true), Some(&*wrong_ca)),
        (&ldaps, None, Some(&*wrong_ca)),
        // The system's authorities did not sign it either.
        (&plain, Some(true), None),
        (&ldaps, None, None),
        // The certificate is not for this address.
        (&elsewhere.url(), Some(true), Some(&*ca)),
    ];
    for (url, start_tls, ca_file) in refused {
        let failure = read(&place, &slapd, url, start_tls, ca_file).await.expect_err(url);
        assert_eq!(failure.kind, FailureKind::Unreachable, "{url}: {failure}");
    }
    let failure = read(&place, &slapd, &plain, Some(true), Some(&wrong_ca)).await.unwrap_err();
    assert!(failure.message.contains("no private connection to `ldap://127.0.0.1:"), "{failure}");
    let log = slapd.log_since(mark);
    assert!(!log.contains("BIND"), "someone bound over a connection that was not verified:\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn start_tls_is_required_and_not_just_tried() {
    let (place, slapd, other) = (Place::files(), start(Options::default()), private());
    let ca = other.ca_file().display().to_string();
    let mark = slapd.mark();
    let failure = read(&place, &slapd, &slapd.url(), Some(true), Some(&ca)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Refused, "{failure}");
    assert!(failure.message.contains("does not offer StartTLS"), "{failure}");
    assert!(!slapd.log_since(mark).contains("BIND"));
}

/// A bind answer with message id 2, as an attacker on the way would put it behind the answer to StartTLS.
const FORGED_BIND: [u8; 14] = [0x30, 0x0c, 2, 1, 2, 0x61, 7, 0x0a, 1, 0, 4, 0, 4, 0];

#[tokio::test(flavor = "multi_thread")]
async fn what_came_before_tls_is_not_believed() {
    let (place, slapd) = (Place::files(), private());
    let proxy = Proxy::before(&slapd.url(), "127.0.0.1", &FORGED_BIND);
    let ca = slapd.ca_file().display().to_string();
    let password = place.cx().path("testkit");
    std::fs::write(&password, "wrong").unwrap();
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let config = json(&format!(
        r#"{{"url": "{}", "start_tls": true, "ca_file": "{ca}", "read_as": {{"dn": "{}", "password": {{"file": "testkit"}}}}}}"#,
        proxy.url(),
        slapd.reader_dn,
    ));
    let failure =
        Ldap::reader(config.read().unwrap(), &place.cx()).await.err().expect("the password is wrong");
    assert!(matches!(failure.kind, FailureKind::Denied | FailureKind::Unreachable), "{failure}");
}

#[tokio::test]
async fn nothing_is_sent_over_a_network_in_the_clear() {
    // An address of this machine that is not loopback; no packet is sent to find it.
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    let own = socket.connect("192.0.2.1:9").and_then(|()| socket.local_addr()).map(|address| address.ip());
    let address: IpAddr = own.unwrap_or_else(|_| "192.0.2.1".parse().unwrap());
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("ldap://{address}:{}", listener.local_addr().unwrap().port());
    let cx = farrier_action::ConnectCx {
        alias: "directory".into(),
        base_dir: "/".into(),
        now: farrier_action::Now::default(),
        known: farrier_action::SharedKnown::default(),
    };
    for account in ["", r#", "read_as": {"dn": "cn=r", "password": {"env": "HOME"}}"#] {
        let config = json(&format!(r#"{{"url": "{url}", "start_tls": false{account}}}"#));
        let failure = Ldap::reader(config.read().unwrap(), &cx).await.err().expect("in the clear");
        assert_eq!(failure.kind, FailureKind::Denied, "{failure}");
        assert!(failure.message.contains("nothing was sent"), "{failure}");
    }
    assert_eq!(listener.accept().unwrap_err().kind(), std::io::ErrorKind::WouldBlock, "someone connected");
}
