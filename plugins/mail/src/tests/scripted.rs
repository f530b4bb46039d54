//! Servers that break off, and servers that lie.

use farrier_model::{Failure, FailureKind};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::{Place, send};

const MAIL: &str = r#"{"target": "post", "to": ["a@example.org"], "subject": "s", "text": "t"}"#;

/// A server that greets, and answers what ends with the given text in the given way, one after the other; then it ends
/// the connection. `never` answers nothing and keeps it open.
async fn server(script: &'static [(&'static str, &'static str)]) -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.write_all(b"220 hello\r\n").await.unwrap();
        let mut heard = String::new();
        for (end, answer) in script {
            let mut command = String::new();
            while !command.ends_with(end) {
                let mut bytes = [0; 1024];
                let read = stream.read(&mut bytes).await.unwrap_or(0);
                if read == 0 {
                    return heard + &command;
                }
                command.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
            }
            heard.push_str(&command);
            if *answer == "never" {
                std::future::pending::<()>().await;
            }
            if stream.write_all(answer.as_bytes()).await.is_err() {
                break;
            }
        }
        heard
    });
    (port, task)
}

async fn fail(script: &'static [(&'static str, &'static str)], settings: &str) -> (Failure, Option<String>) {
    let (port, task) = server(script).await;
    let place = Place::with(&format!(r#""url": "smtp://localhost:{port}"{settings}"#));
    let failure = send(&place.targets, MAIL).await.unwrap_err();
    let heard = if script.iter().any(|(_, answer)| *answer == "never") {
        task.abort();
        None
    } else {
        Some(task.await.unwrap())
    };
    (failure, heard)
}

const OK: &str = "250 ok\r\n";

#[tokio::test]
async fn only_a_lost_answer_to_the_whole_text_is_in_doubt() {
    type Script = &'static [(&'static str, &'static str)];
    let cases: [(Script, &str, FailureKind, bool); 8] = [
        (&[], "", FailureKind::Unreachable, false),
        (&[("\r\n", OK)], "", FailureKind::Unreachable, false),
        (&[("\r\n", OK), ("\r\n", OK), ("\r\n", OK)], "", FailureKind::Unreachable, false),
        (
            &[("\r\n", OK), ("\r\n", OK), ("\r\n", OK), ("\r\n", "554 no\r\n"), ("\r\n", OK)],
            "",
            FailureKind::Refused,
            false,
        ),
        (
            &[
                ("\r\n", OK),
                ("\r\n", OK),
                ("\r\n", OK),
                ("\r\n", "354 go\r\n"),
                ("\r\n.\r\n", "552 too long\r\n"),
            ],
            "",
            FailureKind::Refused,
            false,
        ),
        (
            &[
                ("\r\n", OK),
                ("\r\n", OK),
                ("\r\n", OK),
                ("\r\n", "354 go\r\n"),
                ("\r\n.\r\n", "451 later\r\n"),
            ],
            "",
            FailureKind::Conflict,
            false,
        ),
        (
            &[("\r\n", OK), ("\r\n", OK), ("\r\n", OK), ("\r\n", "354 go\r\n"), ("\r\n.\r\n", "")],
            "",
            FailureKind::Unreachable,
            true,
        ),
        (
            &[("\r\n", OK), ("\r\n", OK), ("\r\n", OK), ("\r\n", "354 go\r\n"), ("\r\n.\r\n", "never")],
            // Long enough to come this far on a machine that is busy.
            r#", "timeout": "4s""#,
            FailureKind::Timeout,
            true,
        ),
    ];
    for (script, settings, kind, doubtful) in cases {
        let (failure, _) = fail(script, settings).await;
        assert_eq!((failure.kind, failure.in_doubt), (kind, doubtful), "{script:?}: {failure}");
        assert_eq!(failure.target.as_deref(), Some("post"));
    }
    let (failure, _) = fail(&[("\r\n", "never")], r#", "timeout": "500ms""#).await;
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Timeout, false), "{failure}");
    // Nothing listens.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let place = Place::with(&format!(r#""url": "smtp://127.0.0.1:{closed}""#));
    let failure = send(&place.targets, MAIL).await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, false), "{failure}");
}

#[tokio::test]
async fn a_line_that_is_not_made_private_is_not_used() {
    // Any file of authorities will do; the machine may have none.
    let authority = farrier_testkit::exim::Exim::start();
    let private = format!(r#", "start_tls": true, "ca_file": "{}""#, authority.ca_file().display());
    type Script = &'static [(&'static str, &'static str)];
    let cases: [(Script, FailureKind, &str); 6] = [
        // Someone on the way takes the offer out.
        (&[("\r\n", "250-hello\r\n250 SIZE 10\r\n")], FailureKind::Denied, "does not offer STARTTLS"),
        // Someone on the way puts words behind the answer.
        (
            &[("\r\n", "250-hello\r\n250 STARTTLS\r\n"), ("\r\n", "220 go\r\n250 all is well\r\n")],
            FailureKind::Denied,
            "there was more in the server's answer",
        ),
        (
            &[("\r\n", "250-hello\r\n250 STARTTLS\r\n"), ("\r\n", "454 no\r\n")],
            FailureKind::Conflict,
            "454 no",
        ),
        (
            &[("\r\n", "250 STARTTLS\r\n"), ("\r\n", "220 go\r\n")],
            FailureKind::Unreachable,
            "make the connection private",
        ),
        (&[("\r\n", "550 \x1b[2J no\r\n")], FailureKind::Refused, "550  [2J no"),
        (&[("\r\n", "250-hello\r\n")], FailureKind::Unreachable, "went away before STARTTLS"),
    ];
    for (script, kind, reason) in cases {
        let (failure, heard) = fail(script, &private).await;
        assert_eq!((failure.kind, failure.in_doubt), (kind, false), "{script:?}: {failure}");
        assert!(failure.message.contains(reason), "{failure}");
        assert!(!heard.unwrap().contains("MAIL FROM"));
    }
}
