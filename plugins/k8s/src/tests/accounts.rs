//! Who reads and who writes: every way to name an account, with one read and one write. The stand-in has no accounts, so
//! there it is seen what arrives; a server lets nobody in whom it does not know.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use farrier_action::{Binding, Targets, WriteCx};
use farrier_model::{FailureKind, Value};
use kube::config::Kubeconfig;
use serde_json::{Value as Json, json};

use super::gate::Gate;
use super::{Place, SERVER, registry, value};

/// Names the namespace to the process that is in a pod.
const IN_A_POD: &str = "FARRIER_TEST_IN_A_POD";

/// Reads the deployment `d`, and sets the number of its replicas.
async fn read_and_write(place: &Place, replicas: u32) {
    let registry = registry();
    let input = json!({ "kind": "Deployment", "namespace": place.namespace, "name": "d" });
    let shown = place.case(&registry, "k8s.get", &input, &[]).prove().await.unwrap();
    assert_eq!(shown.output.get("found"), Some(&Value::Bool(true)));
    let input = json!({ "namespace": place.namespace, "name": "d", "replicas": replicas });
    let case = place.case(&registry, "k8s.scale", &input, &[]);
    let bound = registry.bind(case.action, &case.input).unwrap();
    let plan = bound.plan(&case.read_cx()).await.unwrap();
    bound.apply(&WriteCx::after_intent(case.read_cx()), &plan.changes).await.unwrap();
}

async fn replicas(place: &Place) -> Json {
    place.api("Deployment").get("d").await.unwrap().data["spec"]["replicas"].clone()
}

/// A file that nobody else can read.
fn write(folder: &Path, name: &str, text: &str) -> String {
    let path = folder.join(name);
    std::fs::write(&path, text).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_side_of_a_target_names_its_own_account() {
    let mut place = Place::standin().await;
    place.deployment("d", 1).await;
    let gate = Gate::before(&mut place).await;
    let folder = tempfile::tempdir().unwrap();
    let token =
        |name: &str| json!({ "token": { "file": write(folder.path(), name, &format!("{name}-token\n")) } });
    place.reach(&json!({ "url": gate.url, "read_as": token("reader"), "write_as": token("writer") }));
    let registry = registry();
    let input = json!({ "namespace": place.namespace, "name": "d", "replicas": 3 });
    let case = place.case(&registry, "k8s.scale", &input, &[]);
    let bound = registry.bind(case.action, &case.input).unwrap();
    let plan = bound.plan(&case.read_cx()).await.unwrap();
    assert_eq!(gate.callers(), ["Bearer reader-token"]);
    bound.apply(&WriteCx::after_intent(case.read_cx()), &plan.changes).await.unwrap();
    assert_eq!(gate.callers(), ["Bearer writer-token"; 2], "it reads again, and writes");
}

/// What the tests are told of the server: its address, its authority, and the account with a certificate if there is one.
struct Server {
    url: String,
    authority: String,
    certified: Option<(String, String)>,
}

impl Server {
    fn known() -> Server {
        let kubeconfig = Kubeconfig::read_from(std::env::var(SERVER).unwrap()).unwrap();
        let cluster = kubeconfig.clusters[0].cluster.clone().unwrap();
        let certified = kubeconfig.auth_infos.iter().find_map(|named| {
            let account = named.auth_info.as_ref()?;
            Some((account.client_certificate.clone()?, account.client_key.clone()?))
        });
        Server { url: cluster.server.unwrap(), authority: cluster.certificate_authority.unwrap(), certified }
    }
}

/// A token of a new service account, as a pod of it has one.
async fn service_account(place: &Place) -> String {
    place.add("ServiceAccount", json!({ "metadata": { "name": "runner" } })).await;
    let path = format!("/api/v1/namespaces/{}/serviceaccounts/runner/token", place.namespace);
    let body = json!({ "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": { "audiences": [] } });
    let request = http::Request::post(path).header("content-type", "application/json");
    let answer: Json =
        place.client.request(request.body(body.to_string().into_bytes()).unwrap()).await.unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_lets_tokens_and_certificates_in() {
    let Some(mut place) = Place::server().await else {
        eprintln!("{SERVER} names no server, and the stand-in has no accounts");
        return;
    };
    let server = Server::known();
    place.deployment("d", 1).await;
    let folder = tempfile::tempdir().unwrap();
    let config = |read_as: Json, write_as: Json| json!({ "url": server.url, "ca_file": server.authority, "read_as": read_as, "write_as": write_as });
    let token = service_account(&place).await;
    let token = json!({ "token": { "file": write(folder.path(), "token", &token) } });
    place.reach(&config(token.clone(), token.clone()));
    read_and_write(&place, 2).await;
    assert_eq!(replicas(&place).await, 2);

    let wrong = json!({ "token": { "file": write(folder.path(), "wrong", "nobody") } });
    place.reach(&config(wrong, token.clone()));
    let failure = place.failure("k8s.get", json!({ "kind": "Node", "name": "n" })).await;
    assert_eq!(failure.kind, FailureKind::Denied, "{failure}");

    let Some((certificate, key)) = &server.certified else {
        eprintln!("no account of {SERVER} has a certificate in a file");
        return;
    };
    let certified = json!({ "client_certificate": certificate, "client_key": { "file": key } });
    place.reach(&config(certified.clone(), certified));
    read_and_write(&place, 3).await;
    // The certificate of one account, with the key of another, is nobody's.
    let foreign = Command::new("openssl")
        .args(["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .output()
        .unwrap();
    let foreign = write(folder.path(), "foreign.key", std::str::from_utf8(&foreign.stdout).unwrap());
    place.reach(&config(
        json!({ "client_certificate": certificate, "client_key": { "file": foreign } }),
        token,
    ));
    let failure = place.failure("k8s.get", json!({ "kind": "Node", "name": "n" })).await;
    assert_eq!(failure.kind, FailureKind::Input, "{failure}");
    assert_eq!(replicas(&place).await, 3);
}

/// Farrier in a pod: its account, and the way to the server, are where the cluster puts them for every pod. The files are
/// mounted for a process of this test alone.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_uses_its_service_account() {
    if let Ok(namespace) = std::env::var(IN_A_POD) {
        in_a_pod(namespace).await;
        return;
    }
    let Some(place) = Place::server().await else {
        eprintln!("{SERVER} names no server, and the stand-in has no accounts");
        return;
    };
    let server = Server::known();
    place.deployment("d", 1).await;
    let mount = tempfile::tempdir().unwrap();
    write(mount.path(), "token", &service_account(&place).await);
    write(mount.path(), "namespace", &place.namespace);
    write(mount.path(), "ca.crt", &std::fs::read_to_string(&server.authority).unwrap());
    let url: http::Uri = server.url.parse().unwrap();
    let script = "set -e; folder=/var/run/secrets/kubernetes.io/serviceaccount; mount -t tmpfs none /var/run\n\
                  mkdir -p $folder; cp \"$0\"/* $folder; exec \"$@\"";
    let output = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(mount.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", "tests::accounts::a_pod_uses_its_service_account"])
        .env_remove(SERVER)
        .env(IN_A_POD, &place.namespace)
        .env("KUBERNETES_SERVICE_HOST", url.host().unwrap())
        .env("KUBERNETES_SERVICE_PORT", url.port_u16().unwrap_or(443).to_string())
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&[output.stdout, output.stderr].concat()));
    assert_eq!(replicas(&place).await, 2);
}

async fn in_a_pod(namespace: String) {
    let config = value(&json!({ "in_cluster": true, "write_as": {} }));
    let binding = Binding { alias: "cluster".into(), kind: "k8s".into(), config };
    let targets = Arc::new(Targets::new("/".into(), vec![binding], BTreeMap::new()));
    let own = kube::Config::incluster().unwrap();
    assert_eq!(own.default_namespace, namespace);
    let place = Place::of(kube::Client::try_from(own).unwrap(), namespace, targets);
    read_and_write(&place, 2).await;
}
