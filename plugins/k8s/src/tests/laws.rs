//! The laws of [`farrier_action::harness`], for every action.

use farrier_model::{ChangeKind, Fidelity, Value};
use futures_util::{FutureExt as _, StreamExt as _};
use serde_json::{Value as Json, json};

use super::{Place, registry, value};

/// The target is added by the case; bad inputs need it themselves.
fn bad(input: Json) -> Value {
    let mut input = input;
    input["target"] = "cluster".into();
    value(&input)
}

fn of(change: &farrier_model::Change) -> (Json, Json) {
    (serde_json::to_value(&change.before).unwrap(), serde_json::to_value(&change.after).unwrap())
}

#[tokio::test]
async fn apply_makes_an_object() {
    for place in Place::all().await {
        let registry = registry();
        let manifest = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "m", "namespace": place.namespace, "labels": { "app": "x" } }, "data": { "a": "1" },
        });
        let mut case = place.case(&registry, "k8s.apply", &json!({ "manifest": manifest }), &["ConfigMap"]);
        case.disturb = Some(Box::new(|| {
            async {
                place.add("ConfigMap", json!({ "metadata": { "name": "m" }, "data": { "a": "mine" } })).await;
            }
            .boxed()
        }));
        case.bad_inputs = vec![
            bad(json!({ "manifest": { "apiVersion": "v1", "kind": "ConfigMap", "metadata": {} } })),
            bad(json!({ "manifest": { "kind": "ConfigMap", "metadata": { "name": "m" } } })),
            bad(
                json!({ "manifest": { "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" } } }),
            ),
            bad(
                json!({ "manifest": { "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "../m", "namespace": "x" } } }),
            ),
            bad(
                json!({ "manifest": { "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "m", "namespace": "x" } } }),
            ),
            bad(
                json!({ "manifest": { "apiVersion": "none.example.org/v1", "kind": "None", "metadata": { "name": "m" } } }),
            ),
            bad(json!({ "manifest": "text" })),
            bad(json!({ "manifests": {} })),
        ];
        let shown = case.prove().await.unwrap();
        assert_eq!(shown.plan.fidelity, Fidelity::Exact);
        let [change] = shown.plan.changes.as_slice() else { panic!() };
        assert_eq!(&*change.object, format!("ConfigMap {}/m", place.namespace));
        assert_eq!((change.kind, &change.before), (ChangeKind::Create, &Value::Null));
        assert_eq!(of(change).1["data"], json!({ "a": "1" }));
        let object = shown.output.get("object").unwrap();
        assert_eq!(object.get("name"), Some(&Value::text("m")));
        assert!(object.get("uid").unwrap().as_str().unwrap().len() == 36);
    }
}

#[tokio::test]
async fn apply_changes_what_the_manifest_names() {
    for place in Place::all().await {
        let map = json!({ "metadata": { "name": "m", "labels": { "keep": "it" } }, "data": { "a": "1", "other": "x" } });
        place.add("ConfigMap", map).await;
        let registry = registry();
        let manifest = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "m", "namespace": place.namespace }, "data": { "a": "2", "b": "3" },
        });
        let input = json!({ "manifest": manifest, "force": true });
        let mut case = place.case(&registry, "k8s.apply", &input, &["ConfigMap"]);
        case.disturb = Some(Box::new(|| {
            async {
                place.patch("ConfigMap", "m", json!({ "data": { "a": "9" } })).await;
            }
            .boxed()
        }));
        let shown = case.prove().await.unwrap();
        let [change] = shown.plan.changes.as_slice() else { panic!() };
        assert_eq!(change.kind, ChangeKind::Update);
        let (before, after) = of(change);
        assert_eq!(before, json!({ "data": { "a": "1", "b": null } }));
        assert_eq!(after, json!({ "data": { "a": "2", "b": "3" } }));
        assert!(change.fingerprint.is_some());
    }
}

#[tokio::test]
async fn a_patch_changes_some_fields() {
    for place in Place::all().await {
        place.deployment("d", 0).await;
        let registry = registry();
        let input = json!({
            "kind": "Deployment", "namespace": place.namespace, "name": "d", "lists": "strategic",
            "patch": {
                "metadata": { "labels": { "x": "y" } },
                "spec": { "template": { "spec": { "containers": [{ "name": "main", "env": [{ "name": "A", "value": "1" }] }] } } },
            },
        });
        let mut case = place.case(&registry, "k8s.patch", &input, &["Deployment"]);
        case.disturb = Some(Box::new(|| {
            async {
                place.patch("Deployment", "d", json!({ "metadata": { "labels": { "x": "other" } } })).await;
            }
            .boxed()
        }));
        let named = |patch: Json| {
            bad(json!({ "kind": "Deployment", "namespace": place.namespace, "name": "d", "patch": patch }))
        };
        case.bad_inputs = vec![
            named(json!({})),
            named(json!({ "metadata": { "name": "e" } })),
            named(json!({ "metadata": { "resourceVersion": "1" } })),
            named(json!({ "status": {} })),
            bad(
                json!({ "kind": "Secret", "namespace": "x", "name": "d", "patch": { "data": { "a": "b" } } }),
            ),
            bad(json!({ "kind": "Deployment", "name": "d", "patch": { "spec": {} } })),
            bad(json!({ "kind": "De ployment", "name": "d", "patch": { "spec": {} } })),
        ];
        let shown = case.prove().await.unwrap();
        assert_eq!(shown.plan.fidelity, Fidelity::Exact);
        let (before, after) = of(&shown.plan.changes[0]);
        assert_eq!(before["metadata"]["labels"], json!(null));
        assert_eq!(after["metadata"]["labels"], json!({ "x": "y" }));
        assert_eq!(after["spec"]["template"]["spec"]["containers"][0]["image"], "busybox");
    }
}

#[tokio::test]
async fn a_scale_sets_the_number() {
    for place in Place::all().await {
        place.deployment("d", 1).await;
        let registry = registry();
        let input = json!({ "namespace": place.namespace, "name": "d", "replicas": 0 });
        let mut case = place.case(&registry, "k8s.scale", &input, &["Deployment"]);
        case.disturb = Some(Box::new(|| {
            async {
                place.patch("Deployment", "d", json!({ "spec": { "replicas": 5 } })).await;
            }
            .boxed()
        }));
        case.bad_inputs = vec![
            bad(json!({ "namespace": "x", "name": "d", "replicas": -1 })),
            bad(json!({ "namespace": "x", "name": "d", "replicas": "many" })),
            bad(json!({ "namespace": "x/y", "name": "d", "replicas": 1 })),
            bad(json!({ "namespace": "x", "name": "", "replicas": 1 })),
        ];
        let shown = case.prove().await.unwrap();
        assert_eq!(
            of(&shown.plan.changes[0]),
            (json!({ "spec": { "replicas": 1 } }), json!({ "spec": { "replicas": 0 } }))
        );
        assert_eq!(shown.output, value(&json!({ "replicas": 0, "before": 1 })));
    }
}

#[tokio::test]
async fn a_node_is_cordoned_and_opened_again() {
    for place in Place::all().await {
        let node = place.node("n", json!({})).await;
        let registry = registry();
        let input = json!({ "node": node, "note": "run-1" });
        let mut case = place.case(&registry, "k8s.cordon", &input, &["Node"]);
        case.disturb = Some(Box::new(|| {
            async {
                let by = json!({ "metadata": { "annotations": { "farrier.run/cordoned-by": "someone" } }, "spec": { "unschedulable": true } });
                place.patch("Node", &node, by).await;
            }
            .boxed()
        }));
        case.bad_inputs = vec![bad(json!({ "node": "a/b" })), bad(json!({ "node": 7 })), bad(json!({}))];
        let shown = case.prove().await.unwrap();
        let (before, after) = of(&shown.plan.changes[0]);
        let note = |by: Json| json!({ "annotations": { "farrier.run/cordoned-by": by } });
        assert_eq!(before, json!({ "spec": { "unschedulable": null }, "metadata": note(json!(null)) }));
        assert_eq!(after, json!({ "spec": { "unschedulable": true }, "metadata": note(json!("run-1")) }));
        assert_eq!(shown.output, value(&json!({ "node": node, "unschedulable": true, "note": "run-1" })));

        // Someone else has cordoned it by now: neither takes it over nor opens it.
        for (action, input) in [
            ("k8s.cordon", json!({ "node": node, "note": "run-1" })),
            ("k8s.uncordon", json!({ "node": node, "only_if_note": "run-1" })),
        ] {
            let shown = place.case(&registry, action, &input, &["Node"]).prove().await.unwrap();
            assert_eq!(shown.plan.changes, [], "{action}");
            assert!(shown.plan.notes[0].contains("was cordoned by `someone`"), "{:?}", shown.plan.notes);
            assert_eq!(shown.output.get("note"), Some(&Value::text("someone")));
            assert_eq!(shown.output.get("unschedulable"), Some(&Value::Bool(true)));
        }
        let input = json!({ "node": node, "only_if_note": "someone" });
        let mut case = place.case(&registry, "k8s.uncordon", &input, &["Node"]);
        case.disturb = Some(Box::new(|| {
            async {
                let by = json!({ "metadata": { "annotations": { "farrier.run/cordoned-by": "another" } } });
                place.patch("Node", &node, by).await;
            }
            .boxed()
        }));
        let shown = case.prove().await.unwrap();
        assert_eq!(shown.output, value(&json!({ "node": node, "unschedulable": false, "note": "" })));
    }
}

#[tokio::test]
async fn an_object_is_deleted() {
    for place in Place::all().await {
        place.add("ConfigMap", json!({ "metadata": { "name": "m" }, "data": { "a": "1" } })).await;
        place.add("ConfigMap", json!({ "metadata": { "name": "other" } })).await;
        let registry = registry();
        let input = json!({
            "kind": "ConfigMap", "namespace": place.namespace, "name": "m", "missing": "ok", "gone_within": "1m",
        });
        let mut case = place.case(&registry, "k8s.delete", &input, &["ConfigMap"]);
        case.bad_inputs = vec![
            bad(json!({ "kind": "ConfigMap", "namespace": "x", "name": "m", "missing": "maybe" })),
            bad(json!({ "kind": "ConfigMap", "namespace": "x", "name": "a/../b" })),
            bad(json!({ "kind": "Node", "namespace": "x", "name": "m" })),
            bad(json!({ "kind": "ConfigMap", "namespace": "x", "name": "m", "grace": "soon" })),
        ];
        let shown = case.prove().await.unwrap();
        let [change] = shown.plan.changes.as_slice() else { panic!() };
        assert_eq!((change.kind, &change.after), (ChangeKind::Delete, &Value::Null));
        assert_eq!(of(change).0["data"], json!({ "a": "1" }));
        assert_eq!(shown.output.get("deleted"), Some(&Value::Bool(true)));
        let shown = case.prove().await.unwrap();
        assert_eq!((shown.plan.changes.len(), shown.output.get("deleted")), (0, Some(&Value::Bool(false))));
    }
}

#[tokio::test]
async fn a_restart_is_made_once() {
    for place in Place::all().await {
        place.deployment("d", 0).await;
        let registry = registry();
        let input = json!({ "namespace": place.namespace, "name": "d" });
        let mut case = place.case(&registry, "k8s.restart", &input, &["Deployment"]);
        case.bad_inputs = vec![
            bad(json!({ "kind": "Pod", "namespace": "x", "name": "d" })),
            bad(json!({ "namespace": "x" })),
        ];
        let shown = case.prove().await.unwrap();
        let (_, after) = of(&shown.plan.changes[0]);
        let annotations = &after["spec"]["template"]["metadata"]["annotations"];
        assert!(annotations["kubectl.kubernetes.io/restartedAt"].as_str().unwrap().ends_with('Z'));
        assert_eq!(annotations["farrier.run/restarted-by"], json!(case.read_cx().node().effect_id));
    }
}

#[tokio::test]
async fn objects_are_read() {
    for place in Place::all().await {
        let node = place.node("n", json!({ "unschedulable": true })).await;
        place.pod("p", &node, json!({})).await;
        place.add("Secret", json!({ "metadata": { "name": "s" }, "stringData": { "key": "hunter2" } })).await;
        let registry = registry();
        let mut case =
            place.case(&registry, "k8s.get", &json!({ "kind": "Node", "name": node }), &["Node", "Pod"]);
        case.bad_inputs = vec![
            bad(json!({ "kind": "Node", "name": "n", "namespace": "x" })),
            bad(json!({ "kind": "Pod", "name": "n" })),
            bad(json!({ "kind": "Nothing", "name": "n" })),
            bad(json!({ "kind": "Node", "name": "n?watch=1" })),
            bad(json!({ "kind": "Node", "name": "" })),
        ];
        let object = case.prove().await.unwrap().output.get("object").unwrap().clone();
        let field = |name: &str| object.get(name).unwrap().clone();
        assert_eq!((field("ready"), field("unschedulable")), (Value::Bool(true), Value::Bool(true)));
        assert_eq!((field("name"), field("namespace")), (Value::text(&*node), Value::text("")));

        let input = json!({ "kind": "Pod", "namespace": place.namespace, "name": "none", "missing": "ok" });
        let output = place.case(&registry, "k8s.get", &input, &[]).prove().await.unwrap().output;
        assert_eq!(output, value(&json!({ "found": false, "object": null })));

        let input = json!({ "kind": "Secret", "namespace": place.namespace, "name": "s" });
        let output = place.case(&registry, "k8s.get", &input, &[]).prove().await.unwrap().output.to_json();
        assert!(output.contains("\"key\":null") && !output.contains("aHVudGVyMg"), "{output}");

        let input = json!({ "kind": "Pod", "namespace": place.namespace, "selector": { "app": ["x", "y"] }, "fields": { "spec.nodeName": node } });
        let mut case = place.case(&registry, "k8s.list", &input, &["Node", "Pod"]);
        let selector = |selector: Json| bad(json!({ "kind": "Pod", "selector": selector }));
        case.bad_inputs = vec![
            selector(json!({ "app": true })),
            selector(json!({ "app": "x,tier=y" })),
            selector(json!({ "app,b": "x" })),
            selector(json!({ "app": [] })),
            selector(json!({ "a b": null })),
            bad(json!({ "kind": "Pod", "fields": { "metadata.name": "x,spec.nodeName=y" } })),
            bad(json!({ "kind": "Node", "namespace": "x" })),
        ];
        let items = case.prove().await.unwrap().output.get("items").unwrap().clone();
        let [pod] = items.as_list().unwrap() else { panic!("{items:?}") };
        assert_eq!(pod.get("node"), Some(&Value::text(&*node)));
        assert_eq!(pod.get("phase"), Some(&Value::text("Running")));
        assert_eq!(pod.get("ready"), Some(&Value::Bool(true)));
        place.api("Node").delete(&node, &kube::api::DeleteParams::default()).await.unwrap();
    }
}

#[tokio::test]
async fn many_pages_are_one_list() {
    let name = |number: u32| format!("m{number:04}");
    let maps = (0..1_203).map(|number| {
        format!(
            "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: {}, labels: {{ in: pages }} }}\n",
            name(number)
        )
    });
    let mut places = vec![("default".to_owned(), Place::standin_of(&maps.collect::<String>()).await)];
    if let Some(server) = Place::server().await {
        let made = (0..1_203).map(|number| {
            server.add(
                "ConfigMap",
                json!({ "metadata": { "name": name(number), "labels": { "in": "pages" } } }),
            )
        });
        futures_util::stream::iter(made).buffer_unordered(32).collect::<Vec<_>>().await;
        places.push((server.namespace.clone(), server));
    }
    for (namespace, place) in places {
        let registry = registry();
        let list = async |at_most: u32| {
            // A server with controllers has a map of its own in each namespace.
            let selector = json!({ "in": "pages" });
            let input = json!({ "kind": "ConfigMap", "namespace": namespace, "selector": selector, "at_most": at_most });
            place.case(&registry, "k8s.list", &input, &[]).prove().await
        };
        let output = list(1_203).await.unwrap().output;
        let items = output.get("items").unwrap().as_list().unwrap();
        let names: Vec<String> = items.iter().map(|item| item.get("name").unwrap().to_string()).collect();
        assert_eq!(names, (0..1_203).map(name).collect::<Vec<_>>());
        assert_eq!(list(1_202).await.unwrap_err().kind, farrier_model::FailureKind::Limit);
    }
}

/// The steps of runbooks that were written before the actions.
#[test]
fn drafts_are_accepted() {
    let registry = registry();
    for (action, input) in [
        ("k8s.list", json!({ "kind": "Pod", "namespace": "tool-example" })),
        ("k8s.list", json!({ "kind": "Node", "selector": { "kubernetes.wmcloud.org/nfs-mounted": "true" } })),
        ("k8s.delete", json!({ "kind": "Namespace", "name": "tool-example", "missing": "ok" })),
        ("k8s.cordon", json!({ "node": "worker", "note": "run" })),
        ("k8s.uncordon", json!({ "node": "worker", "only_if_note": "run" })),
        ("k8s.get", json!({ "kind": "Node", "name": "worker" })),
        (
            "k8s.drain",
            json!({ "node": "worker", "pod_grace": "30s", "stuck_after": "10m", "when_stuck": "force_delete" }),
        ),
    ] {
        registry.bind(action, &bad(input)).map(|_| ()).unwrap();
    }
    let outputs = |action: &str| registry.catalog().actions[action].output.clone();
    assert_eq!(outputs("k8s.get")["properties"]["object"]["properties"]["ready"]["type"], "boolean");
    assert_eq!(outputs("k8s.list")["properties"]["items"]["items"]["properties"]["name"]["type"], "string");
}
