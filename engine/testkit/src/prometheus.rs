//! A Prometheus server that holds recorded samples, and an Alertmanager.
//!
//! ```no_run
//! use farrier_testkit::prometheus::{Alertmanager, Prometheus};
//!
//! let metrics = Prometheus::start("# TYPE up gauge\nup{job=\"api\"} 1 1795000000\n# EOF\n");
//! let alerts = Alertmanager::start();
//! alerts.post("/api/v2/alerts", r#"[{"labels": {"alertname": "Down"}}]"#);
//! // … ask metrics.url() and alerts.url() …
//! ```

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use crate::or_panic;
use crate::process::{self, Account, Launch, Process, on_a_free_port, require_program};

/// What a Prometheus looks at, and whom it tells.
#[derive(Debug, Clone, Copy, Default)]
pub struct Watch<'a> {
    /// Where the metrics are: `127.0.0.1:PORT`. Labels that they bring along, such as `instance`, stay.
    pub target: &'a str,
    /// A file of rules.
    pub rules: &'a str,
    /// Labels that every alert is sent with.
    pub external_labels: &'a [(&'a str, &'a str)],
    /// Who is told of alerts.
    pub alertmanagers: &'a [&'a Alertmanager],
}

/// A running Prometheus, ended when dropped.
#[derive(Debug)]
pub struct Prometheus {
    port: u16,
    // Before the folder, so that the server is gone when the folder goes.
    _process: Process,
    _folder: TempDir,
}

impl Prometheus {
    /// Starts a server that scrapes nothing and holds the samples of an OpenMetrics text, each with its time; panics
    /// with the server's last words when it does not start.
    #[track_caller]
    pub fn start(samples: &str) -> Self {
        or_panic(Self::try_start(samples), "cannot start Prometheus")
    }

    /// Starts a server, or says why not.
    pub fn try_start(samples: &str) -> Result<Self> {
        let server = require_program("prometheus", "prometheus")?;
        let tool = require_program("promtool", "prometheus")?;
        let folder = crate::temp_dir();
        let data = folder.path().join("data");
        std::fs::create_dir(&data).context("cannot make the data folder")?;
        std::fs::write(folder.path().join("prometheus.yml"), "scrape_configs: []\n")?;
        std::fs::write(folder.path().join("samples"), samples)?;
        let mut backfill = Command::new(tool);
        backfill.args(["tsdb", "create-blocks-from", "openmetrics", "--quiet"]);
        process::run(backfill.arg(folder.path().join("samples")).arg(&data), "")?;
        let (port, process) = on_a_free_port(|port| {
            let command = vec![
                server.clone().into(),
                "--config.file=prometheus.yml".into(),
                "--storage.tsdb.path=data".into(),
                OsString::from(format!("--web.listen-address=127.0.0.1:{port}")),
            ];
            Ok((port, launch(command, folder.path(), "Server is ready to receive web requests")?))
        })?;
        Ok(Prometheus { port, _process: process, _folder: folder })
    }

    /// Starts a server that looks at one target and evaluates rules, both every second; panics when it does not start.
    #[track_caller]
    pub fn watching(watch: &Watch<'_>) -> Self {
        or_panic(Self::try_watching(watch), "cannot start Prometheus")
    }

    fn try_watching(watch: &Watch<'_>) -> Result<Self> {
        let server = require_program("prometheus", "prometheus")?;
        let folder = crate::temp_dir();
        let told: Vec<String> =
            watch.alertmanagers.iter().map(|one| format!("\"127.0.0.1:{}\"", one.port)).collect();
        let labels: Vec<String> =
            watch.external_labels.iter().map(|(name, value)| format!("{name}: \"{value}\"")).collect();
        std::fs::write(folder.path().join("rules.yml"), watch.rules)?;
        std::fs::write(
            folder.path().join("prometheus.yml"),
            format!(
                "global: {{ scrape_interval: 1s, evaluation_interval: 1s, external_labels: {{ {} }} }}\n\
                 rule_files: [rules.yml]\n\
                 alerting: {{ alertmanagers: [{{ static_configs: [{{ targets: [{}] }}] }}] }}\n\
                 scrape_configs: [{{ job_name: test, honor_labels: true, static_configs: [{{ targets: [\"{}\"] }}] }}]\n",
                labels.join(", "),
                told.join(", "),
                watch.target,
            ),
        )?;
        let (port, process) = on_a_free_port(|port| {
            let command = vec![
                server.clone().into(),
                "--config.file=prometheus.yml".into(),
                "--storage.tsdb.path=data".into(),
                OsString::from(format!("--web.listen-address=127.0.0.1:{port}")),
            ];
            Ok((port, launch(command, folder.path(), "Server is ready to receive web requests")?))
        })?;
        Ok(Prometheus { port, _process: process, _folder: folder })
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// A running Alertmanager, ended when dropped.
#[derive(Debug)]
pub struct Alertmanager {
    port: u16,
    /// Where others of its cluster reach it.
    cluster: Option<u16>,
    // Before the folder, so that the server is gone when the folder goes.
    _process: Process,
    _folder: TempDir,
}

impl Alertmanager {
    /// Starts a server that notifies nobody; panics with its last words when it does not start.
    #[track_caller]
    pub fn start() -> Self {
        or_panic(Self::try_start(), "cannot start Alertmanager")
    }

    /// Starts a server that posts to a webhook, with a bearer token if there is one, a second after something has changed; as a
    /// member of the cluster of `peer`, if there is one. Panics when it does not start.
    #[track_caller]
    pub fn posting(webhook: &str, token: Option<&str>, peer: Option<&Alertmanager>) -> Self {
        let authorization = token.map_or_else(String::new, |token| {
            format!(", http_config: {{ authorization: {{ credentials: \"{token}\" }} }}")
        });
        let config = format!(
            "route: {{ receiver: webhook, group_by: [alertname], group_wait: 1s, group_interval: 1s, repeat_interval: 1h }}\n\
             receivers: [{{ name: webhook, webhook_configs: [{{ url: \"{webhook}\", send_resolved: true{authorization} }}] }}]\n"
        );
        let started = on_a_free_port(|cluster| {
            let mut more = vec![OsString::from(format!("--cluster.listen-address=127.0.0.1:{cluster}"))];
            more.push("--cluster.peer-timeout=1s".into());
            more.push("--cluster.settle-timeout=1s".into());
            more.push("--cluster.gossip-interval=50ms".into());
            if let Some(port) = peer.and_then(|peer| peer.cluster) {
                more.push(OsString::from(format!("--cluster.peer=127.0.0.1:{port}")));
            }
            Self::with(&config, Some(cluster), more)
        });
        or_panic(started, "cannot start Alertmanager")
    }

    /// Starts a server, or says why not.
    pub fn try_start() -> Result<Self> {
        let config = "route: { receiver: nobody }\nreceivers: [{ name: nobody }]\n";
        Self::with(config, None, vec!["--cluster.listen-address=".into()])
    }

    fn with(config: &str, cluster: Option<u16>, more: Vec<OsString>) -> Result<Self> {
        let server = require_program("prometheus-alertmanager", "prometheus-alertmanager")?;
        let folder = crate::temp_dir();
        std::fs::write(folder.path().join("alertmanager.yml"), config)?;
        let (port, process) = on_a_free_port(|port| {
            let mut command = vec![
                server.clone().into(),
                "--config.file=alertmanager.yml".into(),
                "--storage.path=data".into(),
                OsString::from(format!("--web.listen-address=127.0.0.1:{port}")),
            ];
            command.extend(more.iter().cloned());
            Ok((port, launch(command, folder.path(), "Listening on")?))
        })?;
        Ok(Alertmanager { port, cluster, _process: process, _folder: folder })
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// What the server says to a `GET`.
    #[track_caller]
    pub fn get(&self, path: &str) -> String {
        or_panic(ask(self.port, "GET", path, ""), "cannot ask Alertmanager")
    }

    /// What the server says to a `POST` of JSON.
    #[track_caller]
    pub fn post(&self, path: &str, json: &str) -> String {
        or_panic(ask(self.port, "POST", path, json), "cannot tell Alertmanager")
    }
}

fn launch(command: Vec<OsString>, folder: &Path, ready: &'static str) -> Result<Process> {
    Process::start(&Launch {
        command,
        account: &Account::own(),
        folder,
        log: &folder.join("log"),
        sudden: "KILL",
        ready,
    })
}

/// One request; the connection ends with the answer, so no length has to be counted.
fn ask(port: u16, method: &str, path: &str, body: &str) -> Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("cannot connect")?;
    write!(
        stream,
        "{method} {path} HTTP/1.0\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    ensure!(head.split(' ').nth(1).is_some_and(|status| status.starts_with('2')), "{answer}");
    Ok(body.to_owned())
}
