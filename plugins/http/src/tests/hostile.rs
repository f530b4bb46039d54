//! Servers, names and secrets that mean no good.

use farrier_model::{FailureKind, Value};

use super::{Place, TOKEN, apply, json, plan};

#[tokio::test]
async fn what_is_no_place_for_requests_is_refused() {
    let place = Place::routes();
    for url in [
        "file:///etc/passwd",
        "unix:/run/docker.sock",
        "gopher://example.org",
        "https://user:hunter2@example.org",
        "https://example.org/?a=b",
        "not an address",
    ] {
        let config = Value::map([("url", Value::text(url))]);
        let failure =
            plan(&place.targets_of(config), "http.get", r#"{"target": "feed"}"#).await.expect_err(url);
        assert_eq!(failure.kind, FailureKind::Input, "{url}: {failure}");
        assert!(!format!("{failure:?}").contains("hunter2"));
    }
}

#[tokio::test]
async fn credentials_stay_off_plain_lines() {
    let place = Place::server().await;
    let config = Value::map([
        ("url", Value::text("http://example.org")),
        ("read_as", json(r#"{"bearer": {"file": "token"}}"#)),
    ]);
    let failure = plan(&place.targets_of(config), "http.get", r#"{"target": "feed"}"#).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied);
    assert_eq!(failure.message, "credentials would cross the network in the clear");
}

#[tokio::test]
async fn a_server_that_is_not_there_leaves_no_doubt() {
    let place = Place::server().await;
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let config = json(&format!(
        r#"{{"url": "http://{closed}/", "write_as": {{}}, "idempotency_header": "Idempotency-Key"}}"#
    ));
    let failure =
        apply(&place.targets_of(config), "http.request", r#"{"target": "feed"}"#, "E").await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, false), "{failure}");
    assert!(failure.message.starts_with("cannot connect: "), "{failure}");
}

#[tokio::test]
async fn a_server_without_keys_gets_nothing_that_must_not_come_twice() {
    let place = Place::server().await;
    let config = json(&format!(r#"{{"url": "{}", "write_as": {{}}}}"#, place.server.as_ref().unwrap().url()));
    let targets = place.targets_of(config);
    for method in ["POST", "PATCH"] {
        let input = format!(r#"{{"target": "feed", "path": ["sal"], "method": "{method}"}}"#);
        let failure = plan(&targets, "http.request", &input).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Input, "{failure}");
        assert!(failure.help.unwrap().contains("`http.send`"));
    }
    apply(&targets, "http.request", r#"{"target": "feed", "path": ["tools", "one"], "method": "PUT"}"#, "E")
        .await
        .unwrap();
    apply(&targets, "http.delete", r#"{"target": "feed", "path": ["tools", "one"]}"#, "E").await.unwrap();
    apply(&targets, "http.send", r#"{"target": "feed", "path": ["sal"]}"#, "E").await.unwrap();
    assert!(place.requests().iter().all(|request| request.get("key").is_none()));
}

/// The token goes to the server, and nowhere else.
#[tokio::test]
async fn secrets_are_never_shown() {
    let place = Place::server().await;
    let targets = place.targets();
    let input = r#"{"target": "feed", "path": ["broken"], "json": {"a": 1}}"#;
    let planned = plan(&targets, "http.request", input).await.unwrap();
    let failure = apply(&targets, "http.request", input, "E").await.unwrap_err();
    let shown = format!("{planned:?} {failure:?} {failure} {targets:?} {:?}", place.requests());
    assert!(!shown.contains(TOKEN), "{shown}");
    let heads = place.server.as_ref().unwrap().heads.lock().unwrap().clone();
    assert!(heads.iter().any(|head| head.contains(&format!("authorization: Bearer {TOKEN}"))), "{heads:?}");
    // A server that repeats what it was sent does not bring the token back.
    let echo = r#"{"target": "feed", "path": ["echo"]}"#;
    let failure = apply(&targets, "http.send", echo, "E").await.unwrap_err();
    assert!(failure.message.contains("Bearer «secret»"), "{failure}");
    let reads = place.targets_of(
        place.config(r#"{"read_as": {"basic": {"user": "reader", "password": {"file": "token"}}}}"#),
    );
    let text = plan(&reads, "http.get", echo).await.unwrap().output.unwrap().to_json();
    assert!(text.contains("Basic cmVhZGVyO«secret»") && !text.contains(TOKEN), "{text}");
    let bad = place.path("token");
    std::fs::write(&bad, format!("{TOKEN}\r\nx: y")).unwrap();
    let failure =
        apply(&place.targets_of(place_config(&place)), "http.request", input, "E").await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied, "{failure}");
    assert!(!format!("{failure:?}").contains(TOKEN));
}

fn place_config(place: &Place) -> Value {
    json(&format!(
        r#"{{"url": "{}", "write_as": {{"bearer": {{"file": "token"}}}}, "idempotency_header": "Idempotency-Key"}}"#,
        place.server.as_ref().unwrap().url()
    ))
}

#[test]
fn mistakes_in_routes_show_when_they_are_opened() {
    for (text, reason) in [
        ("routes: [{ answers: [] }]", "route 1 has no answers"),
        ("routes: [{ answers: [{ json: 1, text: a }] }]", "route 1 has an answer with both"),
        ("routes: [{ answers: [{ state: 200 }] }]", "state"),
        ("route: []", "route"),
    ] {
        let place = Place::routes();
        std::fs::write(place.path("routes.yaml"), text).unwrap();
        let failure = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(plan(&place.targets(), "http.get", r#"{"target": "feed"}"#))
            .unwrap_err();
        assert_eq!(failure.kind, FailureKind::Input, "{failure}");
        assert!(failure.message.contains(reason), "{failure}");
    }
}
