//! How a cluster is reached, and what is never done.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use farrier_action::{ActionRegistry, Binding, NodeInfo, ReadCx, Targets, WriteCx};
use farrier_model::{Failure, FailureKind, NodeName, RunId, Scope};
use farrier_testkit::slapd::{Options, Slapd};
use serde_json::{Value as Json, json};

use super::{registry, value};

fn cx(config: &Json, dir: &Path) -> ReadCx {
    let binding = Binding { alias: "cluster".into(), kind: "k8s".into(), config: value(config) };
    let targets = Arc::new(Targets::new(dir.to_owned(), vec![binding], BTreeMap::new()));
    let node =
        NodeInfo { run: RunId::at(0, [7; 10]), node: NodeName::step("s"), attempt: 1, effect_id: "e".into() };
    ReadCx::new(targets, Scope::default(), node)
}

async fn failure(registry: &ActionRegistry, config: &Json, dir: &Path) -> Failure {
    let input = value(&json!({ "target": "cluster", "kind": "Node", "name": "n" }));
    let failure = registry.bind("k8s.get", &input).unwrap().plan(&cx(config, dir)).await.unwrap_err();
    assert_eq!(failure.target.as_deref(), Some("cluster"));
    failure
}

#[tokio::test]
async fn what_is_not_safe_is_not_done() {
    let dir = tempfile::tempdir().unwrap();
    let kubeconfig = |cluster: Json| {
        json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "x",
            "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
            "clusters": [{ "name": "c", "cluster": cluster }],
            "users": [{ "name": "u", "user": { "token": "hunter2" } }],
        })
        .to_string()
    };
    let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
    write("plain.yaml", kubeconfig(json!({ "server": "http://cluster.example.org" })));
    write(
        "blind.yaml",
        kubeconfig(json!({ "server": "https://127.0.0.1:1", "insecure-skip-tls-verify": true })),
    );
    write("broken.yaml", "]".into());
    write("cluster.yaml", String::new());
    for (config, kind, reason) in [
        (
            json!({ "url": "http://cluster.example.org" }),
            FailureKind::Denied,
            "could be read and changed on its way",
        ),
        (json!({ "url": "http://127.0.0.1.example.org" }), FailureKind::Denied, "nothing was sent"),
        (json!({ "kubeconfig": "plain.yaml" }), FailureKind::Denied, "nothing was sent"),
        (
            json!({ "kubeconfig": "blind.yaml" }),
            FailureKind::Denied,
            "not to verify the server's certificate",
        ),
        (json!({ "kubeconfig": "broken.yaml" }), FailureKind::Input, "broken.yaml"),
        (json!({ "kubeconfig": "none.yaml" }), FailureKind::Input, "none.yaml"),
        (json!({ "kubeconfig": "plain.yaml", "context": "y" }), FailureKind::Input, "does not do"),
        (json!({ "url": "ftp://x" }), FailureKind::Input, "is not a way to a cluster"),
        (json!({}), FailureKind::Input, "exactly one of"),
        (json!({ "url": "https://x", "in_cluster": true }), FailureKind::Input, "exactly one of"),
        (
            json!({ "url": "https://x", "context": "y" }),
            FailureKind::Input,
            "`context` is for a `kubeconfig`",
        ),
        (json!({ "in_cluster": true }), FailureKind::Input, "this is no pod of a cluster"),
        (json!({ "url": "objects:none.yaml" }), FailureKind::Unreachable, "cannot read"),
        (json!({ "url": "https://x", "ca_file": "none.pem" }), FailureKind::Input, "none.pem"),
        (
            json!({ "url": "https://x", "read_as": { "token": { "env": "FARRIER_NONE" } } }),
            FailureKind::Denied,
            "FARRIER_NONE",
        ),
        (
            json!({ "url": "https://x", "read_as": { "client_certificate": "a.pem" } }),
            FailureKind::Input,
            "go together",
        ),
        (
            json!({ "url": "https://x", "verify": false }),
            FailureKind::Input,
            "its configuration does not fit",
        ),
        (json!({ "url": "https://127.0.0.1:1" }), FailureKind::Unreachable, "cannot read Node n"),
    ] {
        let failure = failure(&registry(), &config, dir.path()).await;
        assert_eq!(failure.kind, kind, "{config}: {failure}");
        assert!(failure.message.contains(reason), "{config}: {failure}");
        assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
    }
}

/// A server that repeats what it was told, and refuses.
fn tattler() -> (std::net::SocketAddr, std::thread::JoinHandle<String>) {
    use std::io::{BufRead as _, BufReader, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let heard = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let lines = BufReader::new(stream.try_clone().unwrap()).lines().map(Result::unwrap);
        let head: Vec<String> = lines.take_while(|line| !line.is_empty()).collect();
        let told =
            head.iter().find(|line| line.to_lowercase().starts_with("authorization:")).unwrap().clone();
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Forbidden", "code": 403,
            "message": format!("nobody is let in with {told}"),
        })
        .to_string();
        let head = "HTTP/1.1 403 Forbidden\r\ncontent-type: application/json\r\nconnection: close";
        write!(stream, "{head}\r\ncontent-length: {}\r\n\r\n{status}", status.len()).unwrap();
        told
    });
    (address, heard)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_repeats_a_token_is_not_quoted_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (address, heard) = tattler();
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "x",
        "contexts": [{ "name": "x", "context": { "cluster": "c", "user": "u" } }],
        "clusters": [{ "name": "c", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "u", "user": { "token": "hunter2-of-the-cluster" } }],
    });
    std::fs::write(dir.path().join("kubeconfig"), kubeconfig.to_string()).unwrap();
    let failure = failure(&registry(), &json!({ "kubeconfig": "kubeconfig" }), dir.path()).await;
    assert!(heard.join().unwrap().contains("hunter2-of-the-cluster"), "it was never told");
    assert!(failure.message.contains("nobody is let in with"), "{failure}");
    assert!(failure.message.contains("«secret»"), "{failure}");
    assert!(!format!("{failure:?}").contains("hunter2"), "{failure:?}");
}

#[tokio::test]
async fn without_a_writer_a_server_can_only_be_read() {
    let registry = registry();
    let dir = tempfile::tempdir().unwrap();
    let input = value(&json!({ "target": "cluster", "node": "n" }));
    let action = registry.bind("k8s.cordon", &input).unwrap();
    let write = WriteCx::after_intent(cx(&json!({ "url": "https://127.0.0.1:1" }), dir.path()));
    let change = farrier_model::Change {
        object: "Node n".into(),
        kind: farrier_model::ChangeKind::Update,
        before: farrier_model::Value::Null,
        after: farrier_model::Value::Null,
        fingerprint: None,
    };
    let failure = action.apply(&write, &[change]).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Denied);
    assert!(failure.message.contains("can only be read"), "{failure}");
}

#[test]
fn a_stand_in_is_told_from_a_server() {
    let registry = registry();
    for (config, identity, stand_in) in [
        (json!({ "url": "objects:a.yaml" }), "objects:a.yaml", true),
        (json!({ "url": "objects:/a.yaml" }), "objects:/a.yaml", false),
        (json!({ "url": "https://a.example.org:6443/" }), "https://a.example.org:6443", false),
        (json!({ "kubeconfig": "k", "context": "admin@tools" }), "kubeconfig k, admin@tools", false),
        (json!({ "in_cluster": true }), "the cluster that Farrier runs in", false),
    ] {
        assert_eq!(registry.identity("k8s", &value(&config)).unwrap(), identity);
        assert_eq!(registry.is_stand_in("k8s", &value(&config)).unwrap(), stand_in, "{config}");
    }
}

/// A certificate that nobody vouches for ends the connection before anything is sent. The server here speaks TLS and
/// then no HTTP, which is all that this needs.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_must_prove_itself() {
    let server = Slapd::start(Options { tls: true, ..Options::default() });
    let url = server.tls_url().unwrap().replace("ldaps:", "https:");
    let dir = tempfile::tempdir().unwrap();
    let unknown = failure(&registry(), &json!({ "url": url }), dir.path()).await;
    assert_eq!(unknown.kind, FailureKind::Unreachable, "{unknown}");
    assert!(unknown.message.contains("certificate"), "{unknown}");
    let known = json!({ "url": url, "ca_file": server.ca_file().to_str().unwrap(), "timeout": "5s" });
    let known = failure(&registry(), &known, dir.path()).await;
    assert!(!known.message.contains("certificate"), "{known}");
}
