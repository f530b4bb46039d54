//! The ways to patch.

use k8s_openapi::api::apps::v1::Deployment;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{deployment, from, refused};
use crate::conformance;

fn merge(value: Value) -> Patch<Value> {
    Patch::Merge(value)
}

conformance! {
    async fn a_merge_patch_sets_and_removes(cluster) {
        cluster.map("m", json!({ "a": "1", "b": "2" })).await;
        let patch = merge(json!({ "data": { "a": null, "c": "3" }, "metadata": { "labels": { "x": "y" } } }));
        let map = cluster.maps().patch("m", &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(json!(map.data), json!({ "b": "2", "c": "3" }));
        assert_eq!(map.labels()["x"], "y");
        let again = cluster.maps().patch("m", &PatchParams::default(), &patch).await.unwrap();
        assert_eq!(again.resource_version(), map.resource_version(), "nothing changed");
        assert_eq!(refused(cluster.maps().patch("none", &PatchParams::default(), &patch).await).code, 404);
    }

    async fn a_patch_can_name_the_version(cluster) {
        let first = cluster.map("m", json!({ "a": "1" })).await;
        let version = first.resource_version().unwrap();
        let patch = |value: &str| {
            merge(json!({ "metadata": { "resourceVersion": version, "uid": first.uid() }, "data": { "a": value } }))
        };
        cluster.maps().patch("m", &PatchParams::default(), &patch("2")).await.unwrap();
        let status = refused(cluster.maps().patch("m", &PatchParams::default(), &patch("3")).await);
        assert_eq!((status.code, &*status.reason), (409, "Conflict"));
        assert_eq!(json!(cluster.maps().get("m").await.unwrap().data), json!({ "a": "2" }));
        let patch = merge(json!({ "metadata": { "uid": "00000000-0000-0000-0000-000000000000" }, "data": {} }));
        let status = refused(cluster.maps().patch("m", &PatchParams::default(), &patch).await);
        assert_eq!((status.code, &*status.reason), (422, "Invalid"));
        assert!(status.message.contains("metadata.uid"), "{}", status.message);
    }

    async fn a_dry_patch_stores_nothing(cluster) {
        let first = cluster.map("m", json!({ "a": "1" })).await;
        let params = PatchParams { dry_run: true, ..PatchParams::default() };
        let judged =
            cluster.maps().patch("m", &params, &merge(json!({ "data": { "a": "2" } }))).await.unwrap();
        assert_eq!(json!(judged.data), json!({ "a": "2" }));
        assert_eq!(cluster.maps().get("m").await.unwrap(), first);
    }

    async fn a_json_patch_tests_and_edits(cluster) {
        cluster.map("m", json!({ "a": "1", "b": "2" })).await;
        let patch = |value: Value| Patch::<()>::Json(serde_json::from_value(value).unwrap());
        let map = cluster
            .maps()
            .patch("m", &PatchParams::default(), &patch(json!([
                { "op": "test", "path": "/data/a", "value": "1" },
                { "op": "replace", "path": "/data/a", "value": "9" },
                { "op": "remove", "path": "/data/b" },
            ])))
            .await
            .unwrap();
        assert_eq!(json!(map.data), json!({ "a": "9" }));
        let failing = patch(json!([
            { "op": "replace", "path": "/data/a", "value": "0" },
            { "op": "test", "path": "/data/a", "value": "1" },
        ]));
        let status = refused(cluster.maps().patch("m", &PatchParams::default(), &failing).await);
        assert_eq!(status.code, 422);
        assert_eq!(json!(cluster.maps().get("m").await.unwrap().data), json!({ "a": "9" }));
    }

    async fn a_strategic_patch_merges_lists_by_key(cluster) {
        let api = cluster.of::<Deployment>();
        let mut object = deployment("d", 0);
        object["spec"]["template"]["spec"]["containers"] = json!([
            { "name": "one", "image": "a", "env": [{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }] },
            { "name": "two", "image": "b", "args": ["x", "y"] },
        ]);
        let object: Deployment = from(object);
        api.create(&PostParams::default(), &object).await.unwrap();
        let patch = Patch::Strategic(json!({ "spec": { "template": { "spec": { "containers": [
            { "name": "two", "args": ["z"] },
            { "name": "one", "env": [{ "name": "B", "$patch": "delete" }, { "name": "C", "value": "3" }] },
            { "name": "three", "image": "c" },
        ] } } } }));
        let patched = api.patch("d", &PatchParams::default(), &patch).await.unwrap();
        let containers = patched.spec.unwrap().template.spec.unwrap().containers;
        let one = containers.iter().find(|container| container.name == "one").unwrap();
        let mut env: Vec<&str> = one.env.as_ref().unwrap().iter().map(|env| env.name.as_str()).collect();
        env.sort_unstable();
        assert_eq!((one.image.as_deref(), env), (Some("a"), vec!["A", "C"]));
        let two = containers.iter().find(|container| container.name == "two").unwrap();
        assert_eq!((two.image.as_deref(), two.args.clone()), (Some("b"), Some(vec!["z".to_owned()])));
        assert!(containers.iter().any(|container| container.name == "three"));
    }

    async fn conditions_merge_by_key_and_taints_do_not(cluster) {
        let node = cluster.node().await;
        let params = PatchParams::default();
        let patch = |key: &str| {
            Patch::Strategic(json!({ "spec": { "taints": [{ "key": key, "effect": "NoSchedule" }] } }))
        };
        cluster.nodes().patch(&node, &params, &patch("a.example.org/x")).await.unwrap();
        let stored = cluster.nodes().patch(&node, &params, &patch("b.example.org/x")).await.unwrap();
        let taints = stored.spec.unwrap().taints.unwrap();
        assert_eq!(taints.len(), 1, "they are replaced whole: {taints:?}");
        let patch = |kind: &str, status: &str| {
            Patch::Strategic(json!({ "status": { "conditions": [{ "type": kind, "status": status }] } }))
        };
        cluster.nodes().patch_status(&node, &params, &patch("Ready", "True")).await.unwrap();
        cluster.nodes().patch_status(&node, &params, &patch("Sick", "False")).await.unwrap();
        let stored = cluster.nodes().patch_status(&node, &params, &patch("Ready", "False")).await.unwrap();
        let conditions = stored.status.unwrap().conditions.unwrap();
        let is = |kind: &str| conditions.iter().find(|condition| condition.type_ == kind).unwrap().status.clone();
        assert_eq!((is("Ready"), is("Sick")), ("False".into(), "False".into()));
    }
}
