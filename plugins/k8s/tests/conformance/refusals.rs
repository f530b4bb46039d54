//! What is wrong is refused in the same words.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, api::ApiResource};
use serde_json::json;

use crate::cluster::{deployment, from, pod, refused};
use crate::conformance;

conformance! {
    async fn names_must_be_names(cluster) {
        for name in ["UPPER", "a_b", "-a", "a..b", "a b"] {
            let map: ConfigMap = from(json!({ "metadata": { "name": name } }));
            let status = refused(cluster.maps().create(&PostParams::default(), &map).await);
            assert_eq!((status.code, &*status.reason), (422, "Invalid"), "{name}");
            let details = status.details.unwrap();
            assert_eq!(&*details.causes[0].field, "metadata.name");
            assert_eq!(&*details.causes[0].reason, "FieldValueInvalid");
            assert_eq!(&*details.kind, "ConfigMap");
            assert!(status.message.starts_with(&format!("ConfigMap {name:?} is invalid: metadata.name: Invalid value: {name:?}: ")), "{}", status.message);
        }
        let map: ConfigMap = from(json!({ "metadata": {} }));
        let status = refused(cluster.maps().create(&PostParams::default(), &map).await);
        assert_eq!(status.code, 422);
        assert!(status.message.contains("name or generateName is required"), "{}", status.message);
        let namespace: Namespace = from(json!({ "metadata": { "name": "with.dot" } }));
        assert_eq!(refused(cluster.namespaces().create(&PostParams::default(), &namespace).await).code, 422);
    }

    async fn labels_must_be_labels(cluster) {
        for (key, value) in [("a b", "x"), ("a", "x y"), ("UPPER.org/a/b", "x"), ("a", "-x")] {
            let map: ConfigMap = from(json!({ "metadata": { "name": "m", "labels": { key: value } } }));
            let status = refused(cluster.maps().create(&PostParams::default(), &map).await);
            assert_eq!((status.code, &*status.reason), (422, "Invalid"), "{key}={value}");
            assert!(status.details.unwrap().causes[0].field.starts_with("metadata.labels"));
        }
    }

    async fn what_is_needed_must_be_there(cluster) {
        let mut empty = pod("p", "n", json!({}));
        empty["spec"]["containers"] = json!([]);
        let empty: Pod = from(empty);
        let status = refused(cluster.pods().create(&PostParams::default(), &empty).await);
        assert_eq!(status.message, "Pod \"p\" is invalid: spec.containers: Required value");
        assert_eq!(&*status.details.unwrap().causes[0].reason, "FieldValueRequired");

        let mut other = deployment("d", 1);
        other["spec"]["selector"]["matchLabels"]["app"] = "other".into();
        let other: Deployment = from(other);
        let status = refused(cluster.of::<Deployment>().create(&PostParams::default(), &other).await);
        assert_eq!((status.code, &*status.reason), (422, "Invalid"));
        assert!(status.message.starts_with("Deployment.apps \"d\" is invalid: spec.template.metadata.labels: Invalid value:"), "{}", status.message);
        assert!(status.message.ends_with("`selector` does not match template `labels`"), "{}", status.message);
    }

    async fn selectors_of_workloads_stay(cluster) {
        let api = cluster.of::<Deployment>();
        let object: Deployment = from(deployment("d", 0));
        api.create(&PostParams::default(), &object).await.unwrap();
        let mut other = deployment("d", 0);
        other["spec"]["selector"]["matchLabels"]["app"] = "x".into();
        other["spec"]["template"]["metadata"]["labels"]["app"] = "x".into();
        let other: Deployment = from(other);
        let status = refused(api.replace("d", &PostParams::default(), &other).await);
        assert_eq!((status.code, &*status.reason), (422, "Invalid"));
        assert!(status.message.ends_with("field is immutable"), "{}", status.message);
    }

    async fn types_must_fit(cluster) {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("apps", "v1", "Deployment"));
        let api: Api<DynamicObject> =
            Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
        let mut wrong = deployment("d", 1);
        wrong["spec"]["replicas"] = "many".into();
        let wrong: DynamicObject = from(wrong);
        let status = refused(api.create(&PostParams::default(), &wrong).await);
        assert_eq!((status.code, &*status.reason), (400, "BadRequest"));
        assert!(status.message.starts_with("Deployment in version \"v1\" cannot be handled as a Deployment: "), "{}", status.message);
    }

    async fn unknown_fields_are_not_stored(cluster) {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("", "v1", "ConfigMap"));
        let api: Api<DynamicObject> =
            Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
        let object: DynamicObject =
            from(json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "dota": { "a": "b" } }));
        let stored = api.create(&PostParams::default(), &object).await.unwrap();
        assert_eq!(stored.data.get("dota"), None);
    }

    async fn unknown_paths_are_not_found(cluster) {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk("example.org", "v1", "Nothing"));
        let api: Api<DynamicObject> =
            Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
        let error = api.get("x").await.unwrap_err();
        assert!(matches!(&error, kube::Error::Api(status) if status.code == 404), "{error:?}");
    }

    async fn a_namespace_of_another_request_is_refused(cluster) {
        let map: ConfigMap = from(json!({ "metadata": { "name": "m", "namespace": "default" } }));
        let status = refused(cluster.maps().create(&PostParams::default(), &map).await);
        assert_eq!((status.code, &*status.reason), (400, "BadRequest"));
        assert_eq!(
            status.message,
            "the namespace of the provided object does not match the namespace sent on the request"
        );
    }
}
