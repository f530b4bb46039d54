//! What recorded routes and a server must do alike.

use farrier_model::{FailureKind, Value};

use super::{Place, apply, json, plan};

async fn reading(place: &Place) {
    let targets = place.targets();
    let get = |input: &'static str| {
        let targets = targets.clone();
        async move { plan(&targets, "http.get", input).await }
    };
    let failure = get(r#"{"target": "feed", "path": ["health"]}"#).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    assert_eq!(failure.message, "GET /health was answered with 503: starting");
    assert_eq!(failure.help.as_deref(), Some("the server asks to wait (5)"));
    assert_eq!(failure.target.as_deref(), Some("feed"));
    assert!(!failure.in_doubt);
    let output = get(r#"{"target": "feed", "path": ["health"]}"#).await.unwrap().output.unwrap();
    assert_eq!(output.get("json"), Some(&json(r#"{"ok": true}"#)));

    let output =
        get(r#"{"target": "feed", "path": ["tools", "a/../b?c#d ${x}"]}"#).await.unwrap().output.unwrap();
    assert_eq!(output.get("json"), Some(&json(r#"{"name": "tool", "n": 1.5, "tags": ["a", "b"]}"#)));
    assert_eq!(output.get("headers").unwrap().get("etag"), Some(&Value::text("\"v1\"")));
    assert_eq!(output.get("headers").unwrap().get("set-cookie"), None);

    let output = get(r#"{"target": "feed", "path": ["text"]}"#).await.unwrap().output.unwrap();
    assert_eq!(
        (output.get("json"), output.get("text")),
        (Some(&Value::Null), Some(&Value::text("plain ünicode")))
    );
    let output =
        get(r#"{"target": "feed", "path": ["gone"], "ok": [200, 404]}"#).await.unwrap().output.unwrap();
    assert_eq!(output.get("status"), Some(&Value::Int(404)));

    for (input, kind, reason) in [
        (r#"{"target": "feed", "path": ["gone"]}"#, FailureKind::Refused, "answered with 404: no such thing"),
        (r#"{"target": "feed", "path": ["text"], "ok": [404]}"#, FailureKind::Refused, "answered with 200"),
        (r#"{"target": "feed", "path": ["moved"]}"#, FailureKind::Refused, "answered with 302"),
        (
            r#"{"target": "feed", "path": ["cut"]}"#,
            FailureKind::Unreachable,
            "the answer to GET /cut did not come whole",
        ),
        (r#"{"target": "feed", "path": ["nothing", "here"]}"#, FailureKind::Refused, "answered with 404"),
        (
            r#"{"target": "feed", "path": ["astray"], "pages": {"items": "item.json.items", "next": "item.json.next"}}"#,
            FailureKind::Refused,
            "leads to another server",
        ),
        (
            r#"{"target": "feed", "path": ["upwards"], "pages": {"items": "item.json.items", "next": "item.json.next"}}"#,
            FailureKind::Refused,
            "leads out of the target's path",
        ),
        (
            r#"{"target": "feed", "path": ["circle"], "pages": {"items": "item.json.items", "next": "item.json.next"}}"#,
            FailureKind::Refused,
            "go round in a circle",
        ),
        (
            r#"{"target": "feed", "path": ["pages"], "pages": {"items": "item.json.items", "next": "item.json.next", "at_most": 2}}"#,
            FailureKind::Limit,
            "more than 2 pages",
        ),
        (
            r#"{"target": "feed", "path": ["text"], "pages": {"items": "item.text"}}"#,
            FailureKind::Refused,
            "is text, not a list",
        ),
        (
            r#"{"target": "feed", "path": ["text"], "pages": {"items": "item.nothing.at.all"}}"#,
            FailureKind::Input,
            "in `item.nothing.at.all`",
        ),
    ] {
        // The base of a server has a path that `..` leaves; that of routes is the root, above which is nothing.
        if input.contains("upwards") && place.server.is_none() {
            continue;
        }
        let failure = plan(&targets, "http.get", input).await.expect_err(input);
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(reason), "{failure}");
    }

    for (input, items) in [
        (
            r#"{"target": "feed", "path": ["pages"], "pages": {"items": "item.json.items", "next": "item.json.next"}}"#,
            "[1, 2, 3, 4]",
        ),
        (r#"{"target": "feed", "path": ["linked"], "pages": {"items": "item.json"}}"#, r#"["a", "b", "c"]"#),
        (r#"{"target": "feed", "path": ["text"]}"#, "[]"),
    ] {
        let output = plan(&targets, "http.get", input).await.unwrap().output.unwrap();
        assert_eq!(output.get("items"), Some(&json(items)), "{input}");
    }

    let small = place.targets_of(place.config(r#"{"size_limit": 20}"#));
    let failure = plan(&small, "http.get", r#"{"target": "feed", "path": ["long"]}"#).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Limit);
    assert_eq!(failure.message, "the answer to GET /long has more than 20 bytes");

    let hasty = place.targets_of(place.config(r#"{"timeout": "300ms"}"#));
    let failure = plan(&hasty, "http.get", r#"{"target": "feed", "path": ["slow"]}"#).await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Timeout, false), "{failure}");
    assert_eq!(failure.message, "GET /slow took longer than the target's timeout allows");
}

#[tokio::test]
async fn routes_are_read() {
    reading(&Place::routes()).await;
}

#[tokio::test]
async fn a_server_is_read() {
    reading(&Place::server().await).await;
}

async fn writing(place: &Place) {
    let targets = place.targets();
    let post = r#"{"target": "feed", "path": ["sal"], "json": {"message": "a"}}"#;
    let failure =
        plan(&targets, "http.get", r#"{"target": "feed", "path": ["entries", "7"]}"#).await.unwrap_err();
    assert!(failure.message.contains("404"), "{failure}");

    // Once for each key, however often it is sent.
    let first = apply(&targets, "http.request", post, "EFFECT1").await.unwrap();
    assert_eq!(
        (first.get("status"), first.get("json")),
        (Some(&Value::Int(201)), Some(&json(r#"{"id": 7}"#)))
    );
    assert_eq!(apply(&targets, "http.request", post, "EFFECT1").await.unwrap(), first);
    let second = apply(&targets, "http.request", post, "EFFECT2").await.unwrap();
    assert_eq!(second.get("json"), Some(&json(r#"{"id": 8}"#)));
    let keys: Vec<Value> = place
        .requests()
        .iter()
        .map(|request| {
            Value::list(vec![
                request.get("key").unwrap().clone(),
                request.get("repeated").is_some().into_value(),
            ])
        })
        .collect();
    assert_eq!(Value::list(keys), json(r#"[["EFFECT1", false], ["EFFECT1", true], ["EFFECT2", false]]"#));
    plan(&targets, "http.get", r#"{"target": "feed", "path": ["entries", "7"]}"#).await.unwrap();

    // The author's key, used again for something else.
    let keyed = r#"{"target": "feed", "path": ["sal"], "idempotency_key": "mine", "json": 1}"#;
    apply(&targets, "http.request", keyed, "EFFECT3").await.unwrap();
    let other = r#"{"target": "feed", "path": ["sal"], "idempotency_key": "mine", "json": 2}"#;
    let failure = apply(&targets, "http.request", other, "EFFECT4").await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Refused, false), "{failure}");
    assert!(failure.message.contains("422"), "{failure}");

    // An answer that is lost leaves a doubt, and the same key takes it away.
    let lossy = r#"{"target": "feed", "path": ["lossy"], "json": 1}"#;
    let failure = apply(&targets, "http.request", lossy, "EFFECT5").await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, true), "{failure}");
    assert!(failure.message.starts_with("the answer to POST /lossy did not come whole"), "{failure}");
    let answer = apply(&targets, "http.request", lossy, "EFFECT5").await.unwrap();
    assert_eq!(answer.get("json"), Some(&json(r#"{"id": 1}"#)));

    for (action, input, kind, doubtful) in [
        ("http.request", r#"{"target": "feed", "path": ["broken"]}"#, FailureKind::Unreachable, true),
        ("http.request", r#"{"target": "feed", "path": ["busy"]}"#, FailureKind::Conflict, false),
        ("http.send", r#"{"target": "feed", "path": ["lossy"]}"#, FailureKind::Unreachable, true),
        ("http.send", r#"{"target": "feed", "path": ["nowhere"]}"#, FailureKind::Refused, false),
        (
            "http.request",
            r#"{"target": "feed", "path": ["tools", "one"], "method": "PATCH", "headers": {"If-Match": "\"v1\""}}"#,
            FailureKind::Drift,
            false,
        ),
    ] {
        let failure = apply(&targets, action, input, input).await.expect_err(input);
        assert_eq!((failure.kind, failure.in_doubt), (kind, doubtful), "{failure}");
    }

    // A long report of success is a success.
    let small = place.targets_of(place.config(r#"{"size_limit": 20}"#));
    let answer =
        apply(&small, "http.request", r#"{"target": "feed", "path": ["wordy"]}"#, "EFFECT6").await.unwrap();
    assert_eq!(answer.get("text"), Some(&Value::text("01234567890123456789")));

    // Without an account to write, nothing is.
    if place.server.is_some() {
        let config = place.config(r#"{"write_as": null}"#);
        let failure = apply(&place.targets_of(config), "http.request", post, "EFFECT7").await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Denied, "{failure}");
    }
}

trait IntoValue {
    fn into_value(self) -> Value;
}

impl IntoValue for bool {
    fn into_value(self) -> Value {
        Value::Bool(self)
    }
}

#[tokio::test]
async fn routes_are_written() {
    writing(&Place::routes()).await;
}

#[tokio::test]
async fn a_server_is_written() {
    writing(&Place::server().await).await;
}

/// What happened is in the file, so another process sees it.
#[tokio::test]
async fn routes_remember_across_processes() {
    let place = Place::routes();
    let post = r#"{"target": "feed", "path": ["sal"], "json": {"message": "a"}}"#;
    let first = apply(&place.targets(), "http.request", post, "EFFECT1").await.unwrap();
    assert_eq!(apply(&place.targets(), "http.request", post, "EFFECT1").await.unwrap(), first);
    assert_eq!(place.world().len(), 1);
    std::fs::remove_file(place.path(super::STATE)).unwrap();
    assert!(place.world().is_empty());
}
