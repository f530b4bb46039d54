//! Creating, reading and replacing objects.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod, Secret};
use kube::api::{DynamicObject, PostParams};
use kube::core::GroupVersionKind;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cluster::{deployment, from, pod, refused, version};
use crate::conformance;

fn dry() -> PostParams {
    PostParams { dry_run: true, ..PostParams::default() }
}

conformance! {
    async fn a_new_object_gets_an_identity(cluster) {
        let map = cluster.map("first", json!({ "a": "1" })).await;
        assert_eq!(map.namespace().as_deref(), Some(&*cluster.namespace));
        assert_eq!(map.uid().unwrap().len(), 36);
        assert!(version(&map.metadata) > 0);
        assert!(map.creation_timestamp().is_some());
        let read = cluster.maps().get("first").await.unwrap();
        assert_eq!(read, map);
        let second = cluster.map("second", json!({})).await;
        assert!(version(&second.metadata) > version(&map.metadata), "versions grow over all objects");
        assert_ne!(second.uid(), map.uid());
    }

    async fn a_name_is_taken_once(cluster) {
        cluster.map("taken", json!({})).await;
        let again: ConfigMap = from(json!({ "metadata": { "name": "taken" } }));
        let status = refused(cluster.maps().create(&PostParams::default(), &again).await);
        assert_eq!((status.code, &*status.reason), (409, "AlreadyExists"));
        assert_eq!(status.message, "configmaps \"taken\" already exists");
        let details = status.details.unwrap();
        assert_eq!((&*details.name, &*details.kind), ("taken", "configmaps"));
    }

    async fn names_are_generated(cluster) {
        let base: ConfigMap = from(json!({ "metadata": { "generateName": "made-" } }));
        let one = cluster.maps().create(&PostParams::default(), &base).await.unwrap();
        let two = cluster.maps().create(&PostParams::default(), &base).await.unwrap();
        assert!(one.name_any().starts_with("made-") && one.name_any().len() == 10, "{}", one.name_any());
        assert_ne!(one.name_any(), two.name_any());
    }

    async fn a_missing_object_is_not_found(cluster) {
        let status = refused(cluster.maps().get("none").await);
        assert_eq!((status.code, &*status.reason), (404, "NotFound"));
        assert_eq!(status.message, "configmaps \"none\" not found");
        let status = refused(cluster.of::<Deployment>().get("none").await);
        assert_eq!(status.message, "deployments.apps \"none\" not found");
        let details = status.details.unwrap();
        assert_eq!((&*details.name, &*details.kind, &*details.group), ("none", "deployments", "apps"));
    }

    async fn a_namespace_must_be_there(cluster) {
        let api: Api<ConfigMap> = Api::namespaced(cluster.client.clone(), "farrier-none");
        let map: ConfigMap = from(json!({ "metadata": { "name": "x" } }));
        let status = refused(api.create(&PostParams::default(), &map).await);
        assert_eq!((status.code, &*status.message), (404, "namespaces \"farrier-none\" not found"));
    }

    async fn replacing_needs_the_version_that_was_read(cluster) {
        let first = cluster.map("m", json!({ "a": "1" })).await;
        let mut mine = first.clone();
        mine.data.as_mut().unwrap().insert("a".into(), "2".into());
        let second = cluster.maps().replace("m", &PostParams::default(), &mine).await.unwrap();
        assert!(version(&second.metadata) > version(&first.metadata));
        assert_eq!(second.uid(), first.uid());
        assert_eq!(second.creation_timestamp(), first.creation_timestamp());

        let status = refused(cluster.maps().replace("m", &PostParams::default(), &mine).await);
        assert_eq!((status.code, &*status.reason), (409, "Conflict"));
        assert_eq!(
            status.message,
            "Operation cannot be fulfilled on configmaps \"m\": the object has been modified; please apply your changes \
             to the latest version and try again"
        );
        assert_eq!(cluster.maps().get("m").await.unwrap(), second, "nothing was overwritten");

        // Without a version, the last writer wins.
        mine.metadata.resource_version = None;
        mine.data = Some([("b".to_owned(), "3".to_owned())].into());
        let third = cluster.maps().replace("m", &PostParams::default(), &mine).await.unwrap();
        assert_eq!(third.data, mine.data);

        let mut other = third.clone();
        other.metadata.uid = Some("00000000-0000-0000-0000-000000000000".into());
        let status = refused(cluster.maps().replace("m", &PostParams::default(), &other).await);
        assert_eq!((status.code, &*status.reason), (409, "Conflict"));
        assert!(status.message.contains("Precondition failed: UID in precondition"), "{}", status.message);
    }

    async fn replacing_with_the_same_changes_nothing(cluster) {
        let first = cluster.map("m", json!({ "a": "1" })).await;
        let same = cluster.maps().replace("m", &PostParams::default(), &first).await.unwrap();
        assert_eq!(same.resource_version(), first.resource_version());
    }

    async fn replacing_what_is_missing_is_refused(cluster) {
        let map: ConfigMap = from(json!({ "metadata": { "name": "none" } }));
        assert_eq!(refused(cluster.maps().replace("none", &PostParams::default(), &map).await).code, 404);
        let map: ConfigMap = from(json!({ "metadata": { "name": "other" } }));
        let status = refused(cluster.maps().replace("none", &PostParams::default(), &map).await);
        assert_eq!((status.code, &*status.reason), (400, "BadRequest"));
    }

    async fn a_dry_run_judges_and_stores_nothing(cluster) {
        let map: ConfigMap = from(json!({ "metadata": { "name": "dry" }, "data": { "a": "1" } }));
        let judged = cluster.maps().create(&dry(), &map).await.unwrap();
        assert_eq!(judged.data, map.data);
        assert!(judged.uid().is_some());
        assert_eq!(judged.resource_version(), None);
        assert!(cluster.maps().get_opt("dry").await.unwrap().is_none());

        let stored = cluster.map("dry", json!({ "a": "1" })).await;
        assert_eq!(refused(cluster.maps().create(&dry(), &map).await).code, 409);
        let mut other = stored.clone();
        other.data = Some([("a".to_owned(), "2".to_owned())].into());
        let judged = cluster.maps().replace("dry", &dry(), &other).await.unwrap();
        assert_eq!(judged.data, other.data);
        assert_eq!(cluster.maps().get("dry").await.unwrap(), stored);
        other.metadata.resource_version = Some("1".into());
        assert_eq!(refused(cluster.maps().replace("dry", &dry(), &other).await).code, 409);
    }

    async fn generations_count_changes_of_the_spec(cluster) {
        let api = cluster.of::<Deployment>();
        let first: Deployment = from(deployment("d", 0));
        let first = api.create(&PostParams::default(), &first).await.unwrap();
        assert_eq!(first.metadata.generation, Some(1));
        let mut labelled = api.get("d").await.unwrap();
        labelled.metadata.resource_version = None;
        labelled.labels_mut().insert("x".into(), "y".into());
        let labelled = api.replace("d", &PostParams::default(), &labelled).await.unwrap();
        assert_eq!(labelled.metadata.generation, Some(1));
        let mut paused = labelled.clone();
        paused.metadata.resource_version = None;
        paused.spec.as_mut().unwrap().paused = Some(true);
        let paused = api.replace("d", &PostParams::default(), &paused).await.unwrap();
        assert_eq!(paused.metadata.generation, Some(2));
    }

    async fn status_and_spec_are_written_apart(cluster) {
        let node = cluster.node().await;
        let pod = cluster.pod("p", &node, json!({})).await;
        assert_eq!(pod.status.as_ref().unwrap().phase.as_deref(), Some("Pending"));
        let mut both = pod.clone();
        both.metadata.resource_version = None;
        both.status.as_mut().unwrap().phase = Some("Running".into());
        both.labels_mut().insert("a".into(), "b".into());
        let stored = cluster.pods().replace("p", &PostParams::default(), &both).await.unwrap();
        assert_eq!(stored.status.as_ref().unwrap().phase.as_deref(), Some("Pending"), "the status is not written here");
        assert_eq!(stored.labels()["a"], "b");

        let mut both = stored.clone();
        both.status.as_mut().unwrap().phase = Some("Running".into());
        both.spec.as_mut().unwrap().containers[0].image = Some("other".into());
        let stored = cluster.pods().replace_status("p", &PostParams::default(), &both).await.unwrap();
        assert_eq!(stored.status.as_ref().unwrap().phase.as_deref(), Some("Running"));
        assert_eq!(stored.spec.as_ref().unwrap().containers[0].image.as_deref(), Some("busybox"));
        let read = cluster.pods().get_status("p").await.unwrap();
        assert_eq!(read.status.as_ref().unwrap().phase.as_deref(), Some("Running"));
    }

    async fn a_node_is_made_with_its_status(cluster) {
        let name = cluster.node().await;
        let ready = json!({ "status": { "conditions": [{ "type": "Ready", "status": "True" }] } });
        let patch = kube::api::Patch::Strategic(ready);
        let node: Node =
            cluster.nodes().patch_status(&name, &kube::api::PatchParams::default(), &patch).await.unwrap();
        assert_eq!(node.status.unwrap().conditions.unwrap()[0].status, "True");
        cluster.nodes().cordon(&name).await.unwrap();
        assert_eq!(cluster.nodes().get(&name).await.unwrap().spec.unwrap().unschedulable, Some(true));
        cluster.nodes().uncordon(&name).await.unwrap();
        assert_ne!(cluster.nodes().get(&name).await.unwrap().spec.unwrap().unschedulable, Some(true));
    }

    async fn a_scale_is_the_number_of_replicas(cluster) {
        let api = cluster.of::<Deployment>();
        let object: Deployment = from(deployment("d", 0));
        api.create(&PostParams::default(), &object).await.unwrap();
        let scale = api.get_scale("d").await.unwrap();
        assert_eq!(scale.spec.unwrap_or_default().replicas.unwrap_or(0), 0);
        let patch = kube::api::Patch::Merge(json!({ "spec": { "replicas": 1 } }));
        let scale = api.patch_scale("d", &kube::api::PatchParams::default(), &patch).await.unwrap();
        assert_eq!(scale.spec.unwrap().replicas, Some(1));
        let scaled = api.get("d").await.unwrap();
        assert_eq!(scaled.spec.unwrap().replicas, Some(1));
        assert_eq!(scaled.metadata.generation, Some(2));
        let patch = kube::api::Patch::Merge(json!({ "spec": { "replicas": -1 } }));
        let status = refused(api.patch_scale("d", &kube::api::PatchParams::default(), &patch).await);
        assert_eq!((status.code, &*status.reason), (422, "Invalid"));
    }

    async fn secrets_keep_text_as_bytes(cluster) {
        let secret: Secret =
            from(json!({ "metadata": { "name": "s" }, "stringData": { "a": "plain" }, "data": { "b": "Yg==" } }));
        let stored = cluster.of::<Secret>().create(&PostParams::default(), &secret).await.unwrap();
        let data = stored.data.unwrap();
        assert_eq!((&*data["a"].0, &*data["b"].0), (&b"plain"[..], &b"b"[..]));
        assert_eq!(stored.string_data, None);
        assert_eq!(stored.type_.as_deref(), Some("Opaque"));
    }

    async fn kinds_are_discovered(cluster) {
        for (group, version, kind) in
            [("", "v1", "Pod"), ("apps", "v1", "Deployment"), ("batch", "v1", "Job"), ("rbac.authorization.k8s.io", "v1", "Role")]
        {
            let wanted = GroupVersionKind::gvk(group, version, kind);
            let (resource, capabilities) =
                kube::discovery::oneshot::pinned_kind(&cluster.client, &wanted).await.unwrap();
            assert_eq!(capabilities.scope, kube::discovery::Scope::Namespaced);
            let api: Api<DynamicObject> =
                Api::namespaced_with(cluster.client.clone(), &cluster.namespace, &resource);
            assert_eq!(api.list(&kube::api::ListParams::default()).await.unwrap().items.len(), 0, "{kind}");
        }
        let wanted = GroupVersionKind::gvk("", "v1", "Node");
        let (resource, capabilities) =
            kube::discovery::oneshot::pinned_kind(&cluster.client, &wanted).await.unwrap();
        assert_eq!((&*resource.plural, capabilities.scope), ("nodes", kube::discovery::Scope::Cluster));
        assert!(capabilities.subresources.iter().any(|(resource, _)| resource.plural == "status"));
        let all = kube::Discovery::new(cluster.client.clone()).run().await.unwrap();
        assert!(all.has_group("apps") && all.has_group("policy"));
        assert!(cluster.client.apiserver_version().await.unwrap().major == "1");
    }

    async fn pods_keep_what_they_run(cluster) {
        let stored = cluster.pod("p", "nowhere", json!({})).await;
        let mut other: Pod = from(pod("p", "elsewhere", json!({})));
        other.spec.as_mut().unwrap().containers[0].command = Some(vec!["true".into()]);
        let status = refused(cluster.pods().replace("p", &PostParams::default(), &other).await);
        assert_eq!((status.code, &*status.reason), (422, "Invalid"));
        assert!(status.message.contains("pod updates may not change fields other than"), "{}", status.message);
        assert_eq!(cluster.pods().get("p").await.unwrap().spec, stored.spec);
    }
}
