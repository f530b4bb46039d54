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

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }
}

/// A running Alertmanager, ended when dropped. It notifies nobody.
#[derive(Debug)]
pub struct Alertmanager {
    port: u16,
    // Before the folder, so that the server is gone when the folder goes.
    _process: Process,
    _folder: TempDir,
}

impl Alertmanager {
    /// Starts a server; panics with its last words when it does not start.
    #[track_caller]
    pub fn start() -> Self {
        or_panic(Self::try_start(), "cannot start Alertmanager")
    }

    /// Starts a server, or says why not.
    pub fn try_start() -> Result<Self> {
        let server = require_program("prometheus-alertmanager", "prometheus-alertmanager")?;
        let folder = crate::temp_dir();
        std::fs::write(
            folder.path().join("alertmanager.yml"),
            "route: { receiver: nobody }\nreceivers: [{ name: nobody }]\n",
        )?;
        let (port, process) = on_a_free_port(|port| {
            let command = vec![
                server.clone().into(),
                "--config.file=alertmanager.yml".into(),
                "--storage.path=data".into(),
                "--cluster.listen-address=".into(),
                OsString::from(format!("--web.listen-address=127.0.0.1:{port}")),
            ];
            Ok((port, launch(command, folder.path(), "Listening on")?))
        })?;
        Ok(Alertmanager { port, _process: process, _folder: folder })
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
