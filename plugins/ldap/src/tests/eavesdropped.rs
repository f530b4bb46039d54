//! Someone in the server's place or on the way there: the password is not said before the connection is private, nor to
//! anyone who cannot show that he is the server, nor where a referral leads.

use std::io;
use std::net::TcpListener;

use farrier_action::TargetKind;
use farrier_model::{Failure, FailureKind};
use farrier_testkit::eavesdropper::{Certificate, Eavesdropper, Wire};

use super::{Place, json};
use crate::target::{Ldap, LdapConfig};

const PASSWORD: &str = "not for everyone";

/// An answer with a number, to a request of a kind (an application's tag), with a result.
fn answer(number: u8, tag: u8, code: u8) -> [u8; 14] {
    [0x30, 12, 2, 1, number, tag, 7, 0x0a, 1, code, 4, 0, 4, 0]
}

const EXTENDED: u8 = 0x78;
const BIND: u8 = 0x61;

/// Reads the wish for StartTLS, and answers it.
fn answers_start_tls(wire: &mut dyn Wire, with: &[u8]) -> io::Result<()> {
    let count = wire.read(&mut [0; 512])?;
    assert_ne!(count, 0, "the client asks for StartTLS first");
    wire.write_all(with)
}

/// Reads a bind, and says that it worked.
fn accepts(wire: &mut dyn Wire, number: u8) -> io::Result<()> {
    let count = wire.read(&mut [0; 512])?;
    if count > 0 { wire.write_all(&answer(number, BIND, 0)) } else { Ok(()) }
}

async fn log_in(server: &Eavesdropper, scheme: &str) -> Result<(), Failure> {
    let place = Place::files();
    let file = place.cx().path("password");
    std::fs::write(&file, PASSWORD).unwrap();
    std::fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let start_tls = if scheme == "ldap" { r#""start_tls": true,"# } else { "" };
    let config = json(&format!(
        r#"{{"url": "{scheme}://127.0.0.1:{}", {start_tls} "ca_file": "{}", "connect_timeout": "30s",
             "read_as": {{"dn": "cn=r", "password": {{"file": "password"}}}}}}"#,
        server.port(),
        server.ca_file().display(),
    ));
    Ldap::reader(config.read::<LdapConfig>().unwrap(), &place.cx()).await.map(drop)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_password_is_said_to_the_server_alone_and_in_private() {
    let private = |certificate| {
        let start_tls = Eavesdropper::start(
            certificate,
            |wire| answers_start_tls(wire, &answer(1, EXTENDED, 0)).map(|()| true),
            |wire| accepts(wire, 2),
        );
        let at_once = Eavesdropper::start(certificate, |_| Ok(true), |wire| accepts(wire, 1));
        [("ldap", start_tls), ("ldaps", at_once)]
    };
    for (scheme, server) in private(Certificate::Good) {
        log_in(&server, scheme).await.unwrap();
        let heard = server.heard();
        assert!(
            heard.holds(PASSWORD) && !heard.holds_in_the_open(PASSWORD),
            "{scheme}: whoever is trusted hears it"
        );
    }
    for certificate in Certificate::BAD {
        for (scheme, server) in private(certificate) {
            let failure = log_in(&server, scheme).await.expect_err(scheme);
            assert_eq!(failure.kind, FailureKind::Unreachable, "{certificate:?}: {failure}");
            assert!(failure.message.starts_with("no private connection to"), "{certificate:?}: {failure}");
            let heard = server.heard();
            assert!(!heard.on_the_way.is_empty(), "{certificate:?}: nobody came");
            assert_eq!(heard.in_private, [0; 0], "{certificate:?}: something was said to a stranger");
            assert!(!heard.holds(PASSWORD), "{certificate:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn someone_on_the_way_who_prevents_start_tls_hears_no_password() {
    let bind_accepted = answer(2, BIND, 0);
    let granted = answer(1, EXTENDED, 0);
    let cases: [(&str, Vec<u8>, bool); 5] = [
        // "Protocol error", as from a server that does not know the operation.
        ("refused", answer(1, EXTENDED, 2).to_vec(), false),
        ("taken out, and a bind accepted", [answer(1, EXTENDED, 2), bind_accepted].concat(), false),
        ("unavailable", answer(1, EXTENDED, 52).to_vec(), false),
        ("granted, and nothing private follows", granted.to_vec(), false),
        ("granted, with a word that would count as said in private", [granted, bind_accepted].concat(), true),
    ];
    for (what, said, private) in cases {
        // What comes in private refuses the password: whoever goes on has believed what came before.
        let server = Eavesdropper::start(
            Certificate::Good,
            move |wire| {
                answers_start_tls(wire, &said)?;
                // In the clear, everything that is asked for is granted.
                if !private {
                    accepts(wire, 2)?;
                }
                Ok(private)
            },
            |wire| {
                let count = wire.read(&mut [0; 512])?;
                if count > 0 { wire.write_all(&answer(2, BIND, 49)) } else { Ok(()) }
            },
        );
        log_in(&server, "ldap").await.expect_err(what);
        let heard = server.heard();
        assert!(!heard.on_the_way.is_empty(), "{what}: nobody came");
        assert!(!heard.holds_in_the_open(PASSWORD), "{what}");
    }
}

/// Whoever answers a bind with another address wants the password there.
#[tokio::test(flavor = "multi_thread")]
async fn a_password_does_not_follow_a_referral() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let address = format!("ldap://{}/", elsewhere.local_addr().unwrap());
    let server = Eavesdropper::start(
        Certificate::Good,
        |_| Ok(true),
        move |wire| {
            let _ = wire.read(&mut [0; 512])?;
            let length = u8::try_from(address.len()).unwrap();
            let referral = [&[0xa3, length + 2, 4, length], address.as_bytes()].concat();
            let mut referred = answer(1, BIND, 10);
            referred[1] += length + 4;
            referred[6] += length + 4;
            wire.write_all(&[&referred[..], &referral].concat())
        },
    );
    let failure = log_in(&server, "ldaps").await.expect_err("the bind is answered with a referral");
    assert!(failure.message.contains("referrals are not followed"), "{failure}");
    assert!(server.heard().holds(PASSWORD), "the server itself is told");
    assert_eq!(elsewhere.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock, "someone went there");
}
