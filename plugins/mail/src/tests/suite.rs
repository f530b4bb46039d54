//! What a folder and Exim must do alike.

use farrier_action::WriteCx;
use farrier_action::harness::{Case, World};
use farrier_model::{ChangeKind, FailureKind, Fidelity, Scope, Value};
use farrier_testkit::exim::{Exim, PASSWORD, USER};
use futures_util::FutureExt as _;

use super::{PEOPLE, Place, json, registry, send, targets};

const BAD: [&str; 16] = [
    r#"{"target": "post", "to": [], "subject": "s", "text": "t"}"#,
    r#"{"target": "post", "to": ["nobody"], "subject": "s", "text": "t"}"#,
    r#"{"target": "post", "to": ["a@elsewhere.org"], "subject": "s", "text": "t"}"#,
    r#"{"target": "post", "to": ["a@example.org\r\nBcc: b@example.org"], "subject": "s", "text": "t"}"#,
    r#"{"target": "post", "to": ["a@example.org, b@example.org"], "subject": "s", "text": "t"}"#,
    r#"{"target": "post", "to": ["<a@example.org>"], "subject": "s", "text": "t"}"#,
    r#"{"target": "post", "to": ["a b@example.org"], "subject": "s", "text": "t"}"#,
    r#"{"target": "post", "to": ["a\u0000@example.org"], "subject": "s", "text": "t"}"#,
    r#"{"target": "post", "to": ["admins"], "cc": ["x@y@example.org"], "subject": "s", "text": "t"}"#,
    r#"{"target": "post", "to": ["admins"], "subject": "s\r\nBcc: b@example.org", "text": "t"}"#,
    r#"{"target": "post", "to": ["admins"], "subject": "s\u0000", "text": "t"}"#,
    r#"{"target": "post", "to": ["admins"], "subject": "", "text": "t"}"#,
    r#"{"target": "post", "to": ["admins"], "subject": "s", "text": "\u0000"}"#,
    r#"{"target": "post", "to": ["admins"], "subject": "s", "text": "t", "from": "boss@example.org"}"#,
    r#"{"target": "post", "to": "admins", "subject": "s", "text": "t"}"#,
    r#"{"target": "nowhere", "to": ["admins"], "subject": "s", "text": "t"}"#,
];

const MAIL: &str = r#"{"target": "post", "to": ["admins"], "cc": ["c@example.org"],
    "subject": "é \"x\" ${ y } =?utf-8?q?z?=", "text": "one\n.\nFrom two\r\nQUIT\n${ y }\n"}"#;

/// Headers and text without what a server adds, and lines ends made alike.
fn plain(mail: &str) -> String {
    let unix = mail.replace("\r\n", "\n");
    let start = unix.find("Message-ID:").unwrap();
    unix[start..].to_owned()
}

#[tokio::test]
async fn the_laws_hold() {
    let place = Place::with(r#""url": "folder:mails""#);
    let registry = registry();
    let case = Case {
        registry: &registry,
        action: "mail.send",
        input: json(MAIL),
        targets: place.targets.clone(),
        scope: Scope::default(),
        observe: Box::new(|| {
            let mails = place.mails();
            async move {
                let object = "mail to a@example.org, b@example.org: é \"x\" ${ y } =?utf-8?q?z?=";
                mails.into_iter().map(|(_, text)| (object.to_owned(), Value::text(text))).collect::<World>()
            }
            .boxed()
        }),
        disturb: None,
        bad_inputs: BAD.map(json).to_vec(),
    };
    let shown = case.prove().await.unwrap();
    assert_eq!(shown.plan.fidelity, Fidelity::Described);
    let change = &shown.plan.changes[0];
    assert_eq!(change.kind, ChangeKind::Send);
    assert_eq!(
        change.after.to_json(),
        r#"{"from":"farrier@example.org","to":["a@example.org","b@example.org"],"cc":["c@example.org"],"subject":"é \"x\" ${ y } =?utf-8?q?z?=","text":"one\n.\nFrom two\r\nQUIT\n${ y }\n"}"#
    );
    // Another mail than the planned one is not sent.
    let cx = case.read_cx();
    let other = registry.bind("mail.send", &json(&MAIL.replace("one", "two"))).unwrap();
    let failure = other.apply(&WriteCx::after_intent(cx), &shown.plan.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift);
    assert_eq!(place.mails().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_and_a_server_get_the_same_mail() {
    let place = Place::with(r#""url": "folder:mails""#);
    let output = send(&place.targets, MAIL).await.unwrap();
    assert_eq!(
        output.to_json(),
        r#"{"message_id":"<EFFECT@example.org>","to":["a@example.org","b@example.org","c@example.org"]}"#
    );
    let server = Exim::start();
    for (url, settings) in [
        ("smtp://localhost", String::new()),
        ("smtp://localhost", format!(r#", "start_tls": true, "ca_file": "{}""#, server.ca_file().display())),
    ] {
        let real = Place::with(&format!(r#""url": "{url}:{}"{settings}"#, server.port()));
        assert_eq!(send(&real.targets, MAIL).await.unwrap(), output);
    }
    // Exim delivers each mail to each of its three recipients.
    let mails = tokio::task::spawn_blocking(move || (server.mails(6), server)).await.unwrap().0;
    let recorded = plain(&place.mails()[0].1);
    for mail in &mails {
        assert_eq!(plain(mail), recorded);
        assert!(mail.contains("Return-path: <farrier@example.org>"), "{mail}");
    }
    let to =
        |address: &str| mails.iter().filter(|mail| mail.contains(&format!("Envelope-to: {address}"))).count();
    assert_eq!((to("a@example.org"), to("b@example.org"), to("c@example.org")), (2, 2, 2));
    assert!(recorded.contains("Message-ID: <EFFECT@example.org>\n"), "{recorded}");
    assert!(recorded.contains("Date: Sun, 22 Nov 2026 10:00:00 +0000\n"), "{recorded}");
    let (_, text) = recorded.split_once("\n\n").unwrap();
    assert_eq!(text.trim_end(), "one\n.\nFrom two\nQUIT\n${ y }");
}

/// Who is refused, and that then nobody gets anything.
#[tokio::test(flavor = "multi_thread")]
async fn refusals_send_nothing() {
    let to = |address: &str| {
        format!(r#"{{"target": "post", "to": ["a@example.org", "{address}"], "subject": "s", "text": "t"}}"#)
    };
    let place = Place::with(r#""url": "folder:mails", "refuse": ["refused@example.org"]"#);
    let server = Exim::start();
    let real = Place::with(&format!(r#""url": "smtp://127.0.0.1:{}""#, server.port()));
    for targets in [&place.targets, &real.targets] {
        let failure = send(targets, &to("refused@example.org")).await.unwrap_err();
        assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Refused, false), "{failure}");
        assert!(failure.message.contains("refused@example.org"), "{failure}");
        assert!(failure.message.contains("no such person"), "{failure}");
    }
    let failure = send(&real.targets, &to("later@example.org")).await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Conflict, false), "{failure}");
    // The next mail arrives, and is the only one.
    send(&real.targets, &to("b@example.org")).await.unwrap();
    send(&place.targets, &to("b@example.org")).await.unwrap();
    let (mails, server) = tokio::task::spawn_blocking(move || (server.mails(2), server)).await.unwrap();
    assert_eq!((mails.len(), place.mails().len()), (2, 1));
    assert_eq!(server.log().matches(" <= ").count(), 1, "{}", server.log());
    let all = Place::with(r#""url": "folder:mails", "refuse": ["*"]"#);
    assert_eq!(send(&all.targets, &to("b@example.org")).await.unwrap_err().kind, FailureKind::Refused);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_login_crosses_private_lines_alone_and_is_never_shown() {
    let server = Exim::start();
    let settings = format!(
        r#""url": "smtp://localhost:{}", "start_tls": true, "ca_file": "{}",
           "login": {{"user": "{USER}", "password": {{"file": "password"}}}}"#,
        server.port(),
        server.ca_file().display()
    );
    let place = Place::with(&settings);
    place.secret(PASSWORD);
    let mail = r#"{"target": "post", "to": ["admins"], "subject": "s", "text": "t"}"#;
    send(&place.targets, mail).await.unwrap();
    assert!(server.log().contains("A=plain:farrier"), "{}", server.log());

    let place = Place::with(&settings);
    place.secret("another-secret");
    let failure = send(&place.targets, mail).await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Denied, false), "{failure}");
    let shown = format!("{failure:?} {:?}", place.targets);
    assert!(!shown.contains("another-secret") && !shown.contains("YW5vdGhlci1zZWNyZXQ"), "{shown}");

    // Without the authority that signed its certificate.
    let other = Exim::start();
    let place = Place::with(
        &settings.replace(&server.ca_file().display().to_string(), &other.ca_file().display().to_string()),
    );
    place.secret(PASSWORD);
    let failure = send(&place.targets, mail).await.unwrap_err();
    assert!(failure.message.starts_with("cannot make the connection private"), "{failure}");
}

#[tokio::test]
async fn mistakes_in_the_environment_show_in_a_plan() {
    for (settings, people, kind) in [
        (r#""url": "smtp://mail.example.org", "start_tls": false"#, PEOPLE, FailureKind::Denied),
        (r#""url": "ftp://mail.example.org""#, PEOPLE, FailureKind::Input),
        (r#""url": "folder:mails""#, r#""from": "farrier""#, FailureKind::Input),
        (r#""url": "folder:mails""#, r#""from": "a@b.org\r\nBcc: c@d.org""#, FailureKind::Input),
        (r#""url": "folder:mails""#, r#""from": "a@b.org", "people": {"x": []}"#, FailureKind::Input),
        (r#""url": "folder:mails""#, r#""from": "a@b.org", "people": {"x": ["y"]}"#, FailureKind::Input),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let config = json(&format!("{{{settings}, {people}}}"));
        let binding = farrier_action::Binding { alias: "post".into(), kind: "mail".into(), config };
        let targets = std::sync::Arc::new(farrier_action::Targets::new(
            folder.path().to_owned(),
            vec![binding],
            std::collections::BTreeMap::new(),
        ));
        let mail = r#"{"target": "post", "to": ["admins"], "subject": "s", "text": "t"}"#;
        assert_eq!(send(&targets, mail).await.unwrap_err().kind, kind, "{settings}");
    }
}

/// Mails are files, so another process sees them and goes on counting; one that was sent twice is there twice.
#[tokio::test]
async fn a_folder_keeps_what_was_sent() {
    let place = Place::with(r#""url": "folder:mails""#);
    let mail = r#"{"target": "post", "to": ["admins"], "subject": "s", "text": "t"}"#;
    for _ in 0..2 {
        let again = targets(place.folder.path().to_owned(), r#""url": "folder:mails""#);
        send(&again, mail).await.unwrap();
    }
    let names: Vec<String> = place.mails().into_iter().map(|(name, _)| name).collect();
    assert_eq!(names, ["0001-EFFECT.eml", "0002-EFFECT.eml"]);
    let (first, second) = (&place.mails()[0].1, &place.mails()[1].1);
    assert_eq!(first, second);
}
