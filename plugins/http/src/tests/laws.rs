//! The laws of [`farrier_action::harness`].

use farrier_action::harness::Case;
use farrier_model::{ChangeKind, Scope};
use futures_util::FutureExt as _;

use super::{Place, json, registry};

const BAD_REQUESTS: [&str; 13] = [
    r#"{"target": "feed", "path": [".."], "json": 1}"#,
    r#"{"target": "feed", "path": [""], "json": 1}"#,
    r#"{"target": "feed", "path": ["a\u0000"]}"#,
    r#"{"target": "feed", "path": ["a\r\nHost: b"]}"#,
    r#"{"target": "feed", "path": "sal"}"#,
    r#"{"target": "feed", "query": {"a": {"b": 1}}}"#,
    r#"{"target": "feed", "headers": {"Host": "b"}}"#,
    r#"{"target": "feed", "headers": {"Authorization": "b"}}"#,
    r#"{"target": "feed", "headers": {"accept\r\nx": "b"}}"#,
    r#"{"target": "feed", "headers": {"accept": "a\r\nx: y"}}"#,
    r#"{"target": "feed", "method": "CONNECT"}"#,
    r#"{"target": "feed", "url": "http://example.org"}"#,
    r#"{"target": "nowhere"}"#,
];

async fn prove(server: bool) {
    let registry = registry();
    let with_key = [
        r#"{"target": "feed", "idempotency_key": ""}"#,
        r#"{"target": "feed", "idempotency_key": "a\r\nb: c"}"#,
    ];
    for (action, input, bad) in [
        (
            "http.request",
            r#"{"target": "feed", "path": ["sal"], "query": {"a": [1, "x&y"]}, "json": {"message": "${ x } \" \u0000"}}"#,
            [&BAD_REQUESTS[..], &with_key].concat(),
        ),
        (
            "http.delete",
            r#"{"target": "feed", "path": ["tools", "one"]}"#,
            vec![r#"{"target": "feed", "path": []}"#, r#"{"target": "feed", "path": [".."]}"#],
        ),
        (
            "http.send",
            r#"{"target": "feed", "path": ["sal"], "json": [1, null, "a"]}"#,
            BAD_REQUESTS.to_vec(),
        ),
        (
            "http.get",
            r#"{"target": "feed", "path": ["tools", "one"]}"#,
            BAD_REQUESTS.iter().copied().filter(|bad| !bad.contains("json")).collect(),
        ),
    ] {
        // A place for each: the effect ids of all cases are alike, and one key is for one request.
        let place = if server { Place::server().await } else { Place::routes() };
        let case = Case {
            registry: &registry,
            action,
            input: json(input),
            targets: place.targets(),
            scope: Scope::default(),
            observe: Box::new(|| async { place.world() }.boxed()),
            disturb: None,
            bad_inputs: bad.into_iter().map(json).collect(),
        };
        let shown = case.prove().await.unwrap_or_else(|failure| panic!("{action}: {failure}"));
        if action == "http.get" {
            assert!(shown.plan.changes.is_empty());
            continue;
        }
        let change = &shown.plan.changes[0];
        let wanted = if action == "http.delete" { ChangeKind::Delete } else { ChangeKind::Send };
        assert_eq!(change.kind, wanted);
        assert!(place.world().contains_key(&*change.object), "{}", change.object);
    }
}

#[tokio::test]
async fn the_laws_hold_on_routes() {
    prove(false).await;
}

#[tokio::test]
async fn the_laws_hold_on_a_server() {
    prove(true).await;
}
