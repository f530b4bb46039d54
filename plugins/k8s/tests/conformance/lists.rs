//! Lists: order, selectors, pages.

use k8s_openapi::api::core::v1::{ConfigMap, Node, Pod};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::cluster::{Cluster, from, refused};
use crate::conformance;

fn labels(text: &str) -> ListParams {
    ListParams::default().labels(text)
}

fn fields(text: &str) -> ListParams {
    ListParams::default().fields(text)
}

async fn names(cluster: &Cluster, params: &ListParams) -> Vec<String> {
    cluster.pods().list(params).await.unwrap().items.iter().map(ResourceExt::name_any).collect()
}

conformance! {
    async fn labels_choose(cluster) {
        cluster.pod("a", "n1", json!({ "app": "web", "tier": "1" })).await;
        cluster.pod("b", "n1", json!({ "app": "web" })).await;
        cluster.pod("c", "n2", json!({ "app": "db", "example.org/x": "" })).await;
        for (selector, wanted) in [
            ("app=web", &["a", "b"][..]),
            ("app==web,tier", &["a"]),
            ("app=web,!tier", &["b"]),
            ("app!=web", &["c"]),
            ("tier!=1", &["b", "c"]),
            ("app in (web, db),tier notin (1)", &["b", "c"]),
            ("example.org/x=", &["c"]),
            ("app=none", &[]),
            ("", &["a", "b", "c"]),
        ] {
            assert_eq!(names(&cluster, &labels(selector)).await, wanted, "{selector}");
        }
        for selector in ["a b", "=x", "app in web", "app in (a", "a=b,,c"] {
            let status = refused(cluster.pods().list(&labels(selector)).await);
            assert_eq!((status.code, &*status.reason), (400, "BadRequest"), "{selector}");
        }
    }

    async fn fields_choose(cluster) {
        cluster.pod("a", "n1", json!({})).await;
        cluster.pod("b", "n1", json!({})).await;
        cluster.pod("c", "n2", json!({})).await;
        cluster.set_ready("b", true).await;
        for (selector, wanted) in [
            ("spec.nodeName=n1", &["a", "b"][..]),
            ("spec.nodeName!=n1", &["c"]),
            ("metadata.name=b", &["b"]),
            ("status.phase=Running,spec.nodeName=n1", &["b"]),
            ("status.phase=Pending", &["a", "c"]),
        ] {
            assert_eq!(names(&cluster, &fields(selector)).await, wanted, "{selector}");
        }
        let everywhere: Api<Pod> = Api::all(cluster.client.clone());
        let selector = format!("metadata.namespace={}", cluster.namespace);
        assert_eq!(everywhere.list(&fields(&selector)).await.unwrap().items.len(), 3);
        for selector in ["spec.containers=x", "metadata.labels.a=b"] {
            let status = refused(cluster.pods().list(&fields(selector)).await);
            assert_eq!((status.code, &*status.reason), (400, "BadRequest"), "{selector}");
            assert!(status.message.contains("field label not supported"), "{}", status.message);
        }
        assert_eq!(refused(cluster.pods().list(&fields("oops")).await).code, 400);
    }

    async fn pages_are_of_one_moment(cluster) {
        for name in ["a", "b", "c", "d", "e"] {
            cluster.map(name, json!({})).await;
        }
        let chosen = |name: &String| name.len() == 1;
        let mut params = ListParams::default().limit(2).labels("!none");
        let first = cluster.maps().list(&params).await.unwrap();
        assert_eq!(first.items.len(), 2);
        let version = first.metadata.resource_version.clone();
        let mut seen: Vec<String> = first.items.iter().map(ResourceExt::name_any).collect();
        params.continue_token = first.metadata.continue_;
        // What happens in between is not in the pages that follow.
        let map: ConfigMap = from(json!({ "metadata": { "name": "f" } }));
        cluster.maps().create(&kube::api::PostParams::default(), &map).await.unwrap();
        cluster.maps().delete("e", &kube::api::DeleteParams::default()).await.unwrap();
        while params.continue_token.is_some() {
            let page = cluster.maps().list(&params).await.unwrap();
            assert_eq!(page.metadata.resource_version, version);
            seen.extend(page.items.iter().map(ResourceExt::name_any));
            params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        }
        seen.retain(chosen);
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);
        params.continue_token = Some("bm9uc2Vuc2U".into());
        let status = refused(cluster.maps().list(&params).await);
        assert_eq!((status.code, &*status.reason), (400, "BadRequest"));
    }

    async fn lists_have_a_version(cluster) {
        let map = cluster.map("a", json!({})).await;
        let list = cluster.maps().list(&ListParams::default()).await.unwrap();
        let of_list: u64 = list.metadata.resource_version.unwrap().parse().unwrap();
        assert!(of_list >= crate::cluster::version(&map.metadata));
        let nodes: Api<Node> = cluster.nodes();
        let name = cluster.node().await;
        assert_eq!(nodes.list(&fields(&format!("metadata.name={name}"))).await.unwrap().items.len(), 1);
    }
}
