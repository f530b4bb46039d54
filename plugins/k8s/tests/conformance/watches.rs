//! Watches: what changes after a version, in order.

use futures_util::{StreamExt, TryStreamExt, pin_mut};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, WatchEvent, WatchParams};
use serde_json::json;

use crate::cluster::{Cluster, refused, version};
use crate::conformance;

/// The next events, as many as are wanted.
async fn events(
    cluster: &Cluster,
    params: &WatchParams,
    from: &str,
    count: usize,
) -> Vec<(&'static str, ConfigMap)> {
    let stream = cluster.maps().watch(params, from).await.unwrap();
    pin_mut!(stream);
    let mut events = Vec::new();
    while events.len() < count {
        match stream.try_next().await.unwrap() {
            Some(WatchEvent::Added(map)) => events.push(("added", map)),
            Some(WatchEvent::Modified(map)) => events.push(("modified", map)),
            Some(WatchEvent::Deleted(map)) => events.push(("deleted", map)),
            Some(WatchEvent::Bookmark(_)) => {}
            Some(WatchEvent::Error(error)) => panic!("{error:?}"),
            None => break,
        }
    }
    events
}

async fn now(cluster: &Cluster) -> String {
    cluster.maps().list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap()
}

conformance! {
    async fn changes_are_told_in_order(cluster) {
        let from = now(&cluster).await;
        let made = cluster.map("m", json!({ "a": "1" })).await;
        let patch = Patch::Merge(json!({ "data": { "a": "2" } }));
        let changed = cluster.maps().patch("m", &PatchParams::default(), &patch).await.unwrap();
        cluster.maps().delete("m", &DeleteParams::default()).await.unwrap();
        let params = WatchParams::default().fields("metadata.name=m");
        let seen = events(&cluster, &params, &from, 3).await;
        let kinds: Vec<&str> = seen.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, ["added", "modified", "deleted"]);
        assert_eq!((&seen[0].1, &seen[1].1), (&made, &changed));
        assert!(version(&seen[2].1.metadata) > version(&changed.metadata), "the deletion has a version");
        assert_eq!(seen[2].1.data, changed.data);
        let seen = events(&cluster, &params, &made.resource_version().unwrap(), 2).await;
        assert_eq!(seen.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(), ["modified", "deleted"]);
    }

    async fn labels_decide_what_is_seen(cluster) {
        let from = now(&cluster).await;
        cluster.map("m", json!({})).await;
        for value in [json!("x"), json!("x"), json!(null)] {
            let patch = Patch::Merge(json!({ "metadata": { "labels": { "app": value } }, "data": { "n": value.to_string() } }));
            cluster.maps().patch("m", &PatchParams::default(), &patch).await.unwrap();
            let patch = Patch::Merge(json!({ "data": { "more": "1" } }));
            cluster.maps().patch("m", &PatchParams::default(), &patch).await.unwrap();
        }
        let seen = events(&cluster, &WatchParams::default().labels("app=x"), &from, 3).await;
        let kinds: Vec<&str> = seen.iter().map(|(kind, _)| *kind).collect();
        assert_eq!(kinds, ["added", "modified", "deleted"]);
    }

    async fn a_watch_from_nowhere_begins_with_what_is(cluster) {
        let made = cluster.map("m", json!({})).await;
        let params = WatchParams::default().fields("metadata.name=m");
        let seen = events(&cluster, &params, "0", 1).await;
        assert_eq!(seen[0].0, "added");
        assert_eq!(seen[0].1, made);
    }

    async fn a_waiting_watch_is_woken(cluster) {
        let from = now(&cluster).await;
        let params = WatchParams::default().fields("metadata.name=m");
        let (seen, made) = tokio::join!(events(&cluster, &params, &from, 1), cluster.map("m", json!({})));
        assert_eq!(seen[0].1, made);
    }

    async fn a_watch_ends_in_time(cluster) {
        let from = now(&cluster).await;
        let stream = cluster.maps().watch(&WatchParams::default().timeout(1), &from).await.unwrap();
        let seen: Vec<_> = stream.collect().await;
        assert!(seen.iter().all(Result::is_ok), "{seen:?}");
    }

    async fn versions_must_be_versions(cluster) {
        let answer = cluster.maps().watch(&WatchParams::default(), "nonsense").await;
        assert!(refused(answer.map(|_| ())).code >= 400);
    }
}
