//! The target kind `k8s`: [`Kubernetes`], and its entry in an environment.

use std::net::IpAddr;
use std::time::Duration;

use base64::Engine as _;
use farrier_action::duration::Wait;
use farrier_action::{ConnectCx, SecretRef, TargetKind};
use farrier_model::{Failure, FailureKind, Secret};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::cluster::Cluster;
use crate::standin::StandIn;

/// A Kubernetes cluster.
#[derive(Debug)]
pub struct Kubernetes;

/// A Kubernetes cluster, or YAML objects that stand in for one.
///
/// Exactly one of `url`, `kubeconfig` and `in_cluster` says where it is. Servers are reached with `https://` and their
/// certificates are always verified; plain `http://` is accepted only on this machine. `objects:PATH` is an embedded
/// cluster over a YAML file, or over every `*.yaml` in a folder; writes go back to the files.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct KubernetesConfig {
    /// `https://HOST:PORT`, or `objects:PATH` from the folder of the environment file.
    #[serde(default)]
    url: Option<String>,
    /// A kubeconfig file, from the folder of the environment file.
    #[serde(default)]
    kubeconfig: Option<String>,
    /// The context of the kubeconfig that reads. Left out, its current context.
    #[serde(default)]
    context: Option<String>,
    /// Farrier runs in the cluster itself and uses the service account of its pod.
    #[serde(default)]
    in_cluster: bool,
    /// Who reads. Left out with a `kubeconfig` or `in_cluster`, what these say.
    #[serde(default)]
    read_as: Option<Account>,
    /// Who writes. Without it, a server can only be read.
    #[serde(default)]
    write_as: Option<Account>,
    /// A file with the certificates (PEM) of the authorities to trust, instead of the system's or the kubeconfig's.
    #[serde(default)]
    ca_file: Option<String>,
    /// How long opening a connection may take. The default is `5s`.
    #[serde(default)]
    connect_timeout: Option<Wait>,
    /// How long one answer may take. The default is `30s`.
    #[serde(default)]
    timeout: Option<Wait>,
}

/// An account of a cluster: a token, or a client certificate with its key; `{}` is the account of the kubeconfig or
/// the pod.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Account {
    /// Another context of the kubeconfig.
    #[serde(default)]
    context: Option<String>,
    /// Where its bearer token is.
    #[serde(default)]
    token: Option<SecretRef>,
    /// A file with its certificate (PEM).
    #[serde(default)]
    client_certificate: Option<String>,
    /// Where the key of the certificate is (PEM).
    #[serde(default)]
    client_key: Option<SecretRef>,
}

/// The side that reads.
pub struct KubernetesReader {
    pub(crate) cluster: Cluster,
}

/// The side that writes.
pub struct KubernetesWriter {
    pub(crate) cluster: Cluster,
}

impl KubernetesConfig {
    fn objects_path(&self) -> Option<&str> {
        self.url.as_deref()?.strip_prefix("objects:")
    }

    async fn connect(&self, account: Option<&Account>, cx: &ConnectCx) -> Result<Cluster, Failure> {
        self.check()?;
        if let Some(path) = self.objects_path() {
            let standin = StandIn::open(&cx.path(path), cx.now.clone())?;
            return Ok(Cluster::new(standin.client(), Some(cx.now.clone())));
        }
        let mut config = self.place(account, cx).await?;
        learn(&config.auth_info, cx);
        secure(&config)?;
        if let Some(file) = &self.ca_file {
            let path = cx.path(file);
            std::fs::metadata(&path).map_err(|error| {
                input(format!("cannot read the certificates in {}: {error}", path.display()))
            })?;
            config.root_cert_file = Some(path);
        }
        if let Some(account) = account {
            account.put_into(&mut config.auth_info, cx).await?;
        }
        config.connect_timeout = Some(self.connect_timeout.map_or(Duration::from_secs(5), |wait| wait.0));
        config.read_timeout = Some(self.timeout.map_or(Duration::from_secs(30), |wait| wait.0));
        config.write_timeout = config.read_timeout;
        config.reset_reader_on_write = true;
        // Every wait is a step's own, with its own end.
        config.default_retry = false;
        let client = kube::Client::try_from(config)
            .map_err(|error| input(format!("cannot connect with this configuration: {error}")))?;
        Ok(Cluster::new(client, None))
    }

    fn check(&self) -> Result<(), Failure> {
        let places = [self.url.is_some(), self.kubeconfig.is_some(), self.in_cluster];
        if places.iter().filter(|place| **place).count() != 1 {
            return Err(input("exactly one of `url`, `kubeconfig` and `in_cluster` says where it is"));
        }
        let contexts =
            [&self.read_as, &self.write_as].into_iter().flatten().filter_map(|a| a.context.as_ref());
        if self.kubeconfig.is_none() && (self.context.is_some() || contexts.count() > 0) {
            return Err(input("`context` is for a `kubeconfig`"));
        }
        Ok(())
    }

    /// The address, and what belongs to it.
    async fn place(&self, account: Option<&Account>, cx: &ConnectCx) -> Result<kube::Config, Failure> {
        if let Some(file) = &self.kubeconfig {
            let path = cx.path(file);
            let shown = path.display().to_string();
            let kubeconfig = Kubeconfig::read_from(&path)
                .map_err(|error| input(format!("cannot read the kubeconfig {shown}: {error}")))?;
            let context =
                account.and_then(|account| account.context.clone()).or_else(|| self.context.clone());
            let options = KubeConfigOptions { context, ..KubeConfigOptions::default() };
            return kube::Config::from_custom_kubeconfig(kubeconfig, &options)
                .await
                .map_err(|error| input(format!("the kubeconfig {shown} does not do: {error}")));
        }
        if self.in_cluster {
            return kube::Config::incluster()
                .map_err(|error| input(format!("this is no pod of a cluster: {error}")));
        }
        let url = self.url.as_deref().unwrap_or_default();
        let uri = url.parse().map_err(|error| input(format!("`{url}` is not an address: {error}")))?;
        Ok(kube::Config::new(uri))
    }
}

impl Account {
    async fn put_into(&self, auth: &mut AuthInfo, cx: &ConnectCx) -> Result<(), Failure> {
        if let Some(token) = &self.token {
            let token = token.resolve(cx).await?;
            *auth = own(&json!({ "token": token.reveal() }))?;
        }
        match (&self.client_certificate, &self.client_key) {
            (None, None) => {}
            (Some(certificate), Some(key)) => {
                let key = key.resolve(cx).await?;
                let key = base64::engine::general_purpose::STANDARD.encode(key.reveal());
                let certificate = cx.path(certificate);
                *auth = own(&json!({ "client-certificate": certificate, "client-key-data": key }))?;
            }
            _ => return Err(input("`client_certificate` and `client_key` go together")),
        }
        Ok(())
    }
}

/// What a kubeconfig says of an account is no secret of the environment, and yet none to be shown.
fn learn(account: &AuthInfo, cx: &ConnectCx) {
    let account = serde_json::to_value(account).unwrap_or_default();
    for field in ["token", "password"] {
        if let Some(secret) = account[field].as_str() {
            cx.known.learn(&Secret::new(secret));
        }
    }
}

/// An account by kube's own reader, whose types for secrets are not ours.
fn own(account: &serde_json::Value) -> Result<AuthInfo, Failure> {
    // The error could quote what it read.
    AuthInfo::deserialize(account)
        .map_err(|_| Failure::new(FailureKind::Internal, "the account cannot be handed to the client"))
}

/// Nothing is sent to a server that cannot prove who it is.
fn secure(config: &kube::Config) -> Result<(), Failure> {
    let denied = |message: String| Failure::new(FailureKind::Denied, message);
    if config.accept_invalid_certs {
        return Err(denied(
            "the kubeconfig says not to verify the server's certificate; nothing was sent".into(),
        )
        .help("remove `insecure-skip-tls-verify` and give the authority's certificate"));
    }
    let host = config.cluster_url.host().unwrap_or_default();
    match config.cluster_url.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if is_loopback(host) => Ok(()),
        Some("http") => Err(denied(format!(
            "`{}` could be read and changed on its way; nothing was sent",
            config.cluster_url
        ))
        .help("use `https://`")),
        _ => Err(input(format!("`{}` is not a way to a cluster", config.cluster_url))
            .help("use `https://HOST:PORT` or `objects:PATH`")),
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn input(message: impl Into<String>) -> Failure {
    Failure::new(FailureKind::Input, message)
}

impl TargetKind for Kubernetes {
    const KIND: &'static str = "k8s";
    type Config = KubernetesConfig;
    type Reader = KubernetesReader;
    type Writer = KubernetesWriter;

    fn identity(config: &KubernetesConfig) -> String {
        match (&config.url, &config.kubeconfig) {
            (Some(url), _) => url.trim_end_matches('/').to_owned(),
            (None, Some(file)) => {
                let context = config.context.as_deref().unwrap_or("its current context");
                format!("kubeconfig {file}, {context}")
            }
            (None, None) => "the cluster that Farrier runs in".into(),
        }
    }

    fn is_stand_in(config: &KubernetesConfig) -> bool {
        config.objects_path().is_some_and(|path| !path.starts_with('/'))
    }

    async fn reader(config: KubernetesConfig, cx: &ConnectCx) -> Result<KubernetesReader, Failure> {
        let cluster = config.connect(config.read_as.as_ref(), cx).await?;
        Ok(KubernetesReader { cluster })
    }

    async fn writer(config: KubernetesConfig, cx: &ConnectCx) -> Result<KubernetesWriter, Failure> {
        if config.objects_path().is_none() && config.write_as.is_none() {
            return Err(Failure::new(FailureKind::Denied, "it can only be read in this environment")
                .help("add `write_as` to the target, with an account that may write"));
        }
        let cluster = config.connect(config.write_as.as_ref(), cx).await?;
        Ok(KubernetesWriter { cluster })
    }
}
