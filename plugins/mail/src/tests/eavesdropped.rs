//! Someone in the mail server's place or on the way there: no login is said before the connection is private, nor to anyone
//! who cannot show that he is the server.

use std::io;

use farrier_model::FailureKind;
use farrier_testkit::eavesdropper::{Certificate, Eavesdropper, Wire};

use super::{Place, send};

const PASSWORD: &str = "not for everyone";
/// `farrier` and the password, as SMTP says them.
const LOGIN: &str = "AGZhcnJpZXIAbm90IGZvciBldmVyeW9uZQ==";

/// Waits for each of the lines' beginnings, and gives the answer beside it; an empty one is given at once.
fn speaks(wire: &mut dyn Wire, script: &[(&str, &str)]) -> io::Result<()> {
    for (awaited, answer) in script {
        if !awaited.is_empty() {
            let mut line = Vec::new();
            let mut byte = [0];
            while !line.ends_with(b"\n") {
                wire.read_exact(&mut byte)?;
                line.push(byte[0]);
            }
            let line = String::from_utf8_lossy(&line);
            if !line.starts_with(awaited) {
                return Err(io::Error::other(format!("`{line}` in place of {awaited}")));
            }
        }
        wire.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Beginnings of lines that are waited for, and their answers.
type Script = Vec<(&'static str, &'static str)>;

const OFFERED: [(&str, &str); 2] = [("", "220 here\r\n"), ("EHLO ", "250-here\r\n250 STARTTLS\r\n")];
const GRANTED: (&str, &str) = ("STARTTLS", "220 go\r\n");
/// Where logins are welcome.
const WELCOME: [(&str, &str); 2] =
    [("EHLO ", "250-here\r\n250 AUTH PLAIN LOGIN\r\n"), ("AUTH ", "535 no\r\n")];

async fn log_in(server: &Eavesdropper, scheme: &str) -> farrier_model::Failure {
    let start_tls = if scheme == "smtp" { r#""start_tls": true,"# } else { "" };
    let place = Place::with(&format!(
        r#""url": "{scheme}://127.0.0.1:{}", {start_tls} "ca_file": "{}",
           "login": {{"user": "farrier", "password": {{"file": "password"}}}}"#,
        server.port(),
        server.ca_file().display()
    ));
    place.secret(PASSWORD);
    let mail = r#"{"target": "post", "to": ["admins"], "subject": "s", "text": "t"}"#;
    send(&place.targets, mail).await.expect_err(scheme)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_is_said_to_the_server_alone_and_in_private() {
    let private = |certificate| {
        let start_tls = Eavesdropper::start(
            certificate,
            |wire| speaks(wire, &OFFERED).and_then(|()| speaks(wire, &[GRANTED])).map(|()| true),
            |wire| speaks(wire, &WELCOME),
        );
        let greeted = |wire: &mut dyn Wire| {
            speaks(wire, &OFFERED[..1])?;
            speaks(wire, &WELCOME)
        };
        let at_once = Eavesdropper::start(certificate, |_| Ok(true), greeted);
        [("smtp", start_tls), ("smtps", at_once)]
    };
    for (scheme, server) in private(Certificate::Good) {
        let failure = log_in(&server, scheme).await;
        assert_eq!(failure.kind, FailureKind::Denied, "{failure}");
        let heard = server.heard();
        assert!(
            heard.holds(LOGIN) && !heard.holds_in_the_open(LOGIN),
            "{scheme}: whoever is trusted hears it"
        );
    }
    for certificate in Certificate::BAD {
        for (scheme, server) in private(certificate) {
            let failure = log_in(&server, scheme).await;
            assert_eq!(failure.kind, FailureKind::Unreachable, "{certificate:?}: {failure}");
            assert!(failure.message.contains("make the connection private"), "{certificate:?}: {failure}");
            let heard = server.heard();
            assert!(!heard.on_the_way.is_empty(), "{certificate:?}: nobody came");
            assert_eq!(heard.in_private, [0; 0], "{certificate:?}: something was said to a stranger");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn someone_on_the_way_who_prevents_start_tls_hears_no_login() {
    let taken_out = [("", "220 here\r\n"), ("EHLO ", "250-here\r\n250 AUTH PLAIN LOGIN\r\n")];
    let refused = [OFFERED[0], OFFERED[1], ("STARTTLS", "454 no\r\n")];
    let forged = ("STARTTLS", "220 go\r\n250 AUTH PLAIN LOGIN\r\n");
    let cases: [(&str, Script, bool); 4] = [
        ("taken out", taken_out.to_vec(), false),
        ("refused", refused.to_vec(), false),
        ("granted, and nothing private follows", [&OFFERED[..], &[GRANTED]].concat(), true),
        (
            "granted, with a word that would count as said in private",
            [&OFFERED[..], &[forged]].concat(),
            true,
        ),
    ];
    for (what, script, granted) in cases {
        let server = Eavesdropper::start(
            Certificate::Good,
            move |wire| {
                speaks(wire, &script)?;
                // In the clear, every login is welcome.
                if !granted {
                    speaks(wire, &WELCOME)?;
                } else if wire.read(&mut [0; 512])? > 0 {
                    wire.write_all(b"250 AUTH PLAIN LOGIN\r\n")?;
                }
                Ok(false)
            },
            |_| Ok(()),
        );
        log_in(&server, "smtp").await;
        let heard = server.heard();
        assert!(heard.holds_in_the_open("EHLO "), "{what}: nobody came");
        assert!(!heard.holds(LOGIN) && !heard.holds(PASSWORD), "{what}");
    }
}
