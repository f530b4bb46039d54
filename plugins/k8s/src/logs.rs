//! `k8s.logs`.

use farrier_action::duration::Length;
use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind};
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::LogParams;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, is_missing, read_failure};
use crate::object::check_name;
use crate::target::Kubernetes;

/// Reads what a container of a pod has said.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Logs {
    /// The cluster.
    target: Target<Kubernetes>,
    /// The namespace.
    namespace: String,
    /// The pod.
    pod: String,
    /// The container, for pods of several.
    #[serde(default)]
    container: Option<String>,
    /// How many lines of the end. The default is 200.
    #[serde(default = "two_hundred")]
    lines: u32,
    /// Only what was said in this time until now.
    #[serde(default)]
    since: Option<Length>,
    /// What the container said before it was started the last time.
    #[serde(default)]
    previous: bool,
    /// How many bytes at most; of more, the end is kept. The default is 65536.
    #[serde(default = "limit")]
    max_output: u32,
}

fn two_hundred() -> u32 {
    200
}

fn limit() -> u32 {
    64 << 10
}

/// What was said.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Said {
    /// The lines.
    text: String,
    /// Whether the beginning was left out because it was longer than `max_output` allows.
    cut: bool,
}

impl Action for Logs {
    const NAME: &'static str = "k8s.logs";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
evidence:
  uses: k8s.logs
  with: { target: cluster, namespace: maintain-kubeusers, pod: maintain-kubeusers-0, lines: 50 }
";

    type Output = Said;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Said>, Failure> {
        check_name("namespace", &self.namespace)?;
        check_name("pod", &self.pod)?;
        if let Some(container) = &self.container {
            check_name("container", container)?;
        }
        let reader = cx.reader(&self.target).await?;
        let params = LogParams {
            container: self.container.clone(),
            tail_lines: Some(i64::from(self.lines)),
            since_seconds: self.since.map(|since| since.0.as_secs() as i64),
            previous: self.previous,
            ..LogParams::default()
        };
        let text = read(&reader.cluster, &self.namespace, &self.pod, &params)
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        let (text, cut) = end_of(text, self.max_output as usize);
        Ok(Planned::known(Said { text, cut }))
    }
}

/// What a pod said.
pub(crate) async fn read(
    cluster: &Cluster,
    namespace: &str,
    pod: &str,
    params: &LogParams,
) -> Result<String, Failure> {
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    api.logs(pod, params).await.map_err(|error| {
        if is_missing(&error) {
            return Failure::new(FailureKind::Refused, format!("there is no Pod {namespace}/{pod}"));
        }
        read_failure(&error, &format!("cannot read the log of Pod {namespace}/{pod}"))
    })
}

/// The end of a text, whole characters.
pub(crate) fn end_of(text: String, limit: usize) -> (String, bool) {
    if text.len() <= limit {
        return (text, false);
    }
    let mut start = text.len() - limit;
    while !text.is_char_boundary(start) {
        start += 1;
    }
    (text[start..].to_owned(), true)
}
