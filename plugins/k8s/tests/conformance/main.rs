//! One suite for every Kubernetes API: the embedded cluster always, and a real server when `FARRIER_TEST_KUBECONFIG`
//! names a kubeconfig for one. It speaks through kube's client alone.
//!
//! An API server with its storage is enough: the tests set the status of nodes and pods themselves, and expect of
//! controllers neither that they run nor that they do not. Each test has a namespace of its own with a random name.

#![expect(clippy::unwrap_used, reason = "a test program, helpers included")]

mod apply;
mod cluster;
mod deletion;
mod lists;
mod objects;
mod patches;
mod refusals;
mod watches;

/// Runs a test on every cluster there is.
macro_rules! conformance {
    ($($(#[$doc:meta])* async fn $name:ident($cluster:ident) $body:block)+) => {$(
        $(#[$doc])*
        #[tokio::test]
        async fn $name() {
            for $cluster in crate::cluster::all(stringify!($name)).await {
                println!("on {}", $cluster.name);
                $body
                $cluster.remove().await;
            }
        }
    )+};
}
pub(crate) use conformance;

/// Says which clusters the suite runs on, past the capture of output: a server that is not there must be seen.
#[test]
fn the_clusters_that_are_tested() {
    use std::io::Write as _;
    let text = match std::env::var(cluster::VARIABLE) {
        Ok(file) => format!("conformance: on the stand-in, and on the server of {file}\n"),
        Err(_) => format!("conformance: on the stand-in ONLY: {} is not set\n", cluster::VARIABLE),
    };
    std::io::stderr().write_all(text.as_bytes()).unwrap();
}
