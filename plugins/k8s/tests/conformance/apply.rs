//! Server-side apply: owners of fields.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, deployment, from, refused};
use crate::conformance;

async fn apply(cluster: &Cluster, manager: &str, data: Value, force: bool) -> Result<ConfigMap, kube::Error> {
    let mut params = PatchParams::apply(manager);
    params.force = force;
    let config =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "data": data });
    cluster.maps().patch("m", &params, &Patch::Apply(config)).await
}

fn owner<'a>(map: &'a ConfigMap, manager: &str) -> Option<&'a Value> {
    let entries = map.metadata.managed_fields.as_ref().unwrap();
    let entry = entries.iter().find(|entry| entry.manager.as_deref() == Some(manager))?;
    Some(&entry.fields_v1.as_ref().unwrap().0)
}

conformance! {
    async fn apply_makes_and_changes(cluster) {
        let made = apply(&cluster, "one", json!({ "a": "1" }), false).await.unwrap();
        assert!(made.uid().is_some());
        assert_eq!(owner(&made, "one"), Some(&json!({ "f:data": { "f:a": {} } })));
        let entry = &made.metadata.managed_fields.as_ref().unwrap()[0];
        assert_eq!(entry.operation.as_deref(), Some("Apply"));
        assert_eq!(entry.api_version.as_deref(), Some("v1"));
        let again = apply(&cluster, "one", json!({ "a": "1" }), false).await.unwrap();
        assert_eq!(again.resource_version(), made.resource_version(), "the same again changes nothing");
        let changed = apply(&cluster, "one", json!({ "a": "2", "b": "3" }), false).await.unwrap();
        assert_eq!(json!(changed.data), json!({ "a": "2", "b": "3" }));
    }

    async fn what_is_listed_no_longer_goes(cluster) {
        apply(&cluster, "one", json!({ "a": "1", "b": "2" }), false).await.unwrap();
        apply(&cluster, "two", json!({ "b": "2" }), false).await.unwrap();
        let after = apply(&cluster, "one", json!({}), false).await.unwrap();
        assert_eq!(json!(after.data), json!({ "b": "2" }), "`b` is still owned by another");
        let after = apply(&cluster, "two", json!({}), false).await.unwrap();
        assert!(after.data.is_none_or(|data| data.is_empty()));
    }

    async fn another_owner_is_a_conflict(cluster) {
        apply(&cluster, "one", json!({ "a": "1" }), false).await.unwrap();
        apply(&cluster, "two", json!({ "a": "1" }), false).await.expect("the same value is no conflict");
        let before = cluster.maps().get("m").await.unwrap();
        let status = refused(apply(&cluster, "three", json!({ "a": "3" }), false).await);
        assert_eq!((status.code, &*status.reason), (409, "Conflict"));
        assert!(status.message.starts_with("Apply failed with 2 conflicts: "), "{}", status.message);
        let causes = status.details.unwrap().causes;
        assert_eq!(causes.len(), 2);
        for manager in ["one", "two"] {
            let cause = causes.iter().find(|cause| cause.message.contains(&format!("conflict with \"{manager}\""))).unwrap();
            assert_eq!((&*cause.reason, &*cause.field), ("FieldManagerConflict", ".data.a"));
        }
        assert_eq!(cluster.maps().get("m").await.unwrap(), before, "nothing was overwritten");
        let taken = apply(&cluster, "three", json!({ "a": "3" }), true).await.unwrap();
        assert_eq!(json!(taken.data), json!({ "a": "3" }));
        assert_eq!((owner(&taken, "one"), owner(&taken, "two")), (None, None));
    }

    async fn updates_own_what_they_change(cluster) {
        apply(&cluster, "one", json!({ "a": "1", "b": "2" }), false).await.unwrap();
        let params = PatchParams { field_manager: Some("editor".into()), ..PatchParams::default() };
        let patch = Patch::Merge(json!({ "data": { "a": "9" } }));
        let edited = cluster.maps().patch("m", &params, &patch).await.unwrap();
        assert_eq!(owner(&edited, "editor"), Some(&json!({ "f:data": { "f:a": {} } })));
        assert_eq!(owner(&edited, "one"), Some(&json!({ "f:data": { "f:b": {} } })));
        let status = refused(apply(&cluster, "one", json!({ "a": "1", "b": "2" }), false).await);
        assert!(status.message.contains("conflict with \"editor\""), "{}", status.message);
        apply(&cluster, "one", json!({ "a": "1", "b": "2" }), true).await.unwrap();
    }

    async fn a_dry_apply_judges_and_stores_nothing(cluster) {
        let mut params = PatchParams::apply("one");
        params.dry_run = true;
        let config = |value: &str| {
            Patch::Apply(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "data": { "a": value } }))
        };
        let judged = cluster.maps().patch("m", &params, &config("1")).await.unwrap();
        assert_eq!(json!(judged.data), json!({ "a": "1" }));
        assert!(cluster.maps().get_opt("m").await.unwrap().is_none());
        let stored = apply(&cluster, "one", json!({ "a": "1" }), false).await.unwrap();
        cluster.maps().patch("m", &params, &config("2")).await.unwrap();
        params.field_manager = Some("two".into());
        assert_eq!(refused(cluster.maps().patch("m", &params, &config("2")).await).code, 409);
        assert_eq!(cluster.maps().get("m").await.unwrap(), stored);
    }

    async fn apply_compares_the_version(cluster) {
        let first = apply(&cluster, "one", json!({ "a": "1" }), false).await.unwrap();
        apply(&cluster, "one", json!({ "a": "2" }), false).await.unwrap();
        let config = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": { "name": "m", "resourceVersion": first.resource_version() }, "data": { "a": "3" },
        });
        let params = PatchParams::apply("one").force();
        let status = refused(cluster.maps().patch("m", &params, &Patch::Apply(config)).await);
        assert_eq!((status.code, &*status.reason), (409, "Conflict"));
        assert_eq!(json!(cluster.maps().get("m").await.unwrap().data), json!({ "a": "2" }));
    }

    async fn lists_are_owned_by_item(cluster) {
        let api = cluster.of::<Deployment>();
        let mut first = deployment("d", 0);
        first["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{ "name": "A", "value": "1" }]);
        api.patch("d", &PatchParams::apply("one"), &Patch::Apply(first.clone())).await.unwrap();
        let side = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
            "spec": { "template": { "spec": { "containers": [{ "name": "side", "image": "x" }] } } },
        });
        let both = api.patch("d", &PatchParams::apply("two"), &Patch::Apply(side)).await.unwrap();
        let names = |object: &Deployment| -> Vec<String> {
            let spec = object.spec.clone().unwrap().template.spec.unwrap();
            let mut names: Vec<String> = spec.containers.into_iter().map(|container| container.name).collect();
            names.sort();
            names
        };
        assert_eq!(names(&both), ["main", "side"]);
        first["spec"]["template"]["spec"]["containers"][0]["env"] = json!([{ "name": "B", "value": "2" }]);
        let after = api.patch("d", &PatchParams::apply("one"), &Patch::Apply(first.clone())).await.unwrap();
        assert_eq!(names(&after), ["main", "side"]);
        let containers = after.spec.unwrap().template.spec.unwrap().containers;
        let main = containers.iter().find(|container| container.name == "main").unwrap();
        let env: Vec<&str> = main.env.as_ref().unwrap().iter().map(|env| env.name.as_str()).collect();
        assert_eq!(env, ["B"]);
        let status = {
            let mut other = first;
            other["spec"]["replicas"] = 3.into();
            refused(api.patch("d", &PatchParams::apply("three"), &Patch::Apply(other)).await)
        };
        assert!(status.message.contains(".spec.replicas"), "{}", status.message);
    }

    async fn apply_says_what_it_cannot_do(cluster) {
        let config = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "dota": {} });
        let status = refused(cluster.maps().patch("m", &PatchParams::apply("one"), &Patch::Apply(config)).await);
        assert!(status.message.contains(".dota: field not declared in schema"), "{}", status.message);
        let map: ConfigMap = from(json!({ "metadata": { "name": "m" }, "data": { "a": "1" } }));
        cluster.maps().create(&PostParams::default(), &map).await.unwrap();
        let live = cluster.maps().get("m").await.unwrap();
        let mut config = serde_json::to_value(&live).unwrap();
        config["apiVersion"] = "v1".into();
        config["kind"] = "ConfigMap".into();
        let status = refused(cluster.maps().patch("m", &PatchParams::apply("one"), &Patch::Apply(config)).await);
        assert_eq!(status.code, 400);
        assert!(status.message.contains("managedFields must be nil"), "{}", status.message);
    }
}
