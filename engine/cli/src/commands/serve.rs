//! `farrier serve`: takes up whatever is due, answers requests, and goes on until it is told to stop.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use farrier_exec::{Observer, Options, RunUpdate};
use farrier_model::Event;
use farrier_project::{ProjectError, Watched, shown};
use farrier_runbook::service::{Service as Written, Telemetry, Tls, read_service};
use farrier_runbook::{At, Diagnostics};
use farrier_server::intake::Receiving;
use farrier_server::rights::Access;
use farrier_server::{
    AtStart, Certificates, Directory, Listeners, Notify, Policy, Service, Settings, configure_tls,
    open_socket,
};
use tokio::signal::unix::{SignalKind, signal};

use super::run::{listen, owner};
use super::runs::describe;
use super::{App, Problem};
use crate::client::{self, Plain};
use crate::directory::LdapDirectory;
use crate::exit::Exit;
use crate::telemetry::{Exporting, Spans};
use crate::{render, resting, stores};

/// The name of the service file, beside the project file.
const SERVICE_FILE: &str = "serve.yaml";

#[derive(Debug, Args)]
pub(super) struct Serve {
    /// The service file; `serve.yaml` beside `farrier.yaml` without it, if there is one.
    #[arg(long, value_name = "FILE", env = "FARRIER_CONFIG")]
    config: Option<PathBuf>,
    /// Only these environments, and what their schedules say; can be given several times. Without it (here or in the service
    /// file) all environments are served, and nothing starts by itself.
    #[arg(long, short, value_name = "NAME", env = "FARRIER_ENVIRONMENTS", value_delimiter = ',')]
    env: Vec<String>,
    /// Address and port of the API, such as `127.0.0.1:8440`. Port 0 takes a free one.
    #[arg(long, value_name = "ADDRESS", env = "FARRIER_LISTEN")]
    listen: Option<SocketAddr>,
    /// Runs at once; 64 without it.
    #[arg(long, value_name = "N")]
    runs: Option<usize>,
    /// Tasks of one run at once; 16 without it.
    #[arg(long, value_name = "N")]
    parallel: Option<usize>,
    /// How long what is at work may take to end when the service is told to stop.
    #[arg(long, default_value = "30s", value_name = "DURATION", value_parser = super::run::duration)]
    grace: std::time::Duration,
    /// End when nothing is due any more, as a timer unit wants it.
    #[arg(long)]
    until_idle: bool,
    /// Do not print what happens.
    #[arg(long, short)]
    quiet: bool,
}

/// The longest wait for a time that is sat out: a retry within it costs no second claim.
pub(super) const PATIENCE: std::time::Duration = std::time::Duration::from_secs(10);

impl Serve {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let root = app.workspace()?.root;
        let config = Config::find(&root, self.config.as_deref())?;
        let written = &config.written;
        let served = if self.env.is_empty() {
            written.environments.iter().map(|name| name.value.clone()).collect::<Vec<String>>()
        } else {
            self.env.clone()
        };
        // Nothing starts by itself in an environment that nobody has named.
        let starts = !served.is_empty();
        let sets = Watched::open(&root, app.registry.clone(), served.clone())?;
        if let Some(directory) = config.directory(&sets).map_err(Problem::Usage)? {
            directory.is_there().map_err(Problem::Usage)?;
        }
        let policy = config.policy(&sets).map_err(Problem::Usage)?;
        let dir = sets.current().data_dir.clone();
        let store = stores::own(&dir).await?;
        let options = Options {
            parallel: self.parallel.or(written.parallel.as_ref().map(|n| n.value as usize)).unwrap_or(16),
            patience: PATIENCE,
            resume_parked: false,
            owner: owner(),
            grace: self.grace,
            ..Options::default()
        };
        let exporting = config.exporting(app.spans.as_ref())?;
        let listeners = self.listeners(&config, &dir)?;
        if !self.quiet {
            eprintln!("taking up what is due in {}", store.file().display());
        }
        let alerts = Receiving::new(store.clone(), sets.clone());
        let keeping = tokio::spawn(alerts.clone().keep());
        let resting = tokio::spawn(resting::give_back(store.clone()));
        let reread = (root.clone(), self.config.clone(), sets.clone());
        let settings = Settings {
            policy,
            store,
            sets,
            read_policy: Some(Arc::new(move || {
                let config = Config::find(&reread.0, reread.1.as_deref());
                config.map_err(|problem| problem.to_string())?.policy(&reread.2)
            })),
            listeners,
            connections: written.connections.as_ref().map_or(0, |n| n.value as usize),
            options,
            runs: self.runs.or(written.runs.as_ref().map(|n| n.value as usize)).unwrap_or(64),
            only: starts.then(|| served.iter().map(|name| name.as_str().into()).collect()),
            until_idle: self.until_idle,
            schedules: starts,
            watch_files: !self.until_idle,
            observer: Arc::new(Lines { quiet: self.quiet, json: app.logs_json }),
            webhook: Some(alerts),
            notify: Notify::from_env(),
        };
        let service = Service::new(settings, listen(false));
        let hangups = tokio::spawn(reload_on_hangup(service.app()));
        let ended = service.run().await;
        hangups.abort();
        keeping.abort();
        resting.abort();
        if let Some(exporting) = exporting {
            exporting.end().await;
        }
        ended?;
        Ok(Exit::Ok)
    }

    fn listeners(&self, config: &Config, dir: &Path) -> Result<Listeners, Problem> {
        let socket = match open_socket(dir) {
            Ok(socket) => Some(socket),
            Err(error) => {
                eprintln!(
                    "warning: no socket in {}: {error}; other commands cannot reach the service",
                    dir.display()
                );
                None
            }
        };
        let address = self.listen.or_else(|| config.written.listen.as_ref()?.parse().ok());
        let Some(address) = address else { return Ok(Listeners { network: None, socket }) };
        let tls = config.tls().map_err(Problem::Usage)?.map(Certificates::new);
        if tls.is_none() && !address.ip().is_loopback() && !config.written.behind_proxy {
            return Err(Problem::Usage(format!(
                "tokens would travel to {address} in plain text; add `tls:` to the service file, or `behind_proxy: true`"
            )));
        }
        let bound = StdListener::bind(address).and_then(|listener| {
            listener.set_nonblocking(true)?;
            let local = listener.local_addr()?;
            Ok((tokio::net::TcpListener::from_std(listener)?, local))
        });
        let (listener, local) = bound.map_err(|error| {
            Problem::Other(anyhow::Error::new(error).context(format!("cannot listen on {address}")))
        })?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        eprintln!("listening on {scheme}://{local}");
        Ok(Listeners { network: Some((listener, tls)), socket })
    }
}

/// A service file with its place.
struct Config {
    /// The file, when there is one.
    file: Option<PathBuf>,
    written: Written,
    folder: PathBuf,
}

impl Config {
    /// The file that is named, or the one beside the project file; without either, nothing is said.
    fn find(root: &Path, named: Option<&Path>) -> Result<Config, Problem> {
        let beside = root.join(SERVICE_FILE);
        let path = match named {
            Some(path) => path,
            None if beside.is_file() => &beside,
            None => {
                return Ok(Config { file: None, written: Written::default(), folder: root.to_path_buf() });
            }
        };
        let bytes = std::fs::read(path).map_err(|error| Problem::file(path, error))?;
        let mut mistakes = Diagnostics::new();
        let file = mistakes.add_file(shown(path), &bytes);
        let written = read_service(file, &bytes, &mut mistakes);
        let written = written.ok_or_else(|| Problem::from(ProjectError::Mistakes(Box::new(mistakes))))?;
        Ok(Config {
            file: Some(path.to_path_buf()),
            written,
            folder: path.parent().unwrap_or(root).to_path_buf(),
        })
    }

    fn directory(&self, sets: &Watched) -> Result<Option<LdapDirectory>, String> {
        self.written.login.as_ref().map(|login| LdapDirectory::new(login, sets.clone())).transpose()
    }

    fn policy(&self, sets: &Watched) -> Result<Policy, String> {
        let directory = self.directory(sets)?.map(|directory| Arc::new(directory) as Arc<dyn Directory>);
        let tls = self.written.tls.as_ref();
        let named = tls
            .iter()
            .flat_map(|tls| [Some(&tls.certificate), Some(&tls.key), tls.client_authorities.as_ref()]);
        let files = named.flatten().map(|path| self.folder.join(path)).chain(self.file.clone()).collect();
        Ok(Policy {
            access: Access::of(&self.written),
            open_metrics: self.written.open_metrics,
            directory,
            tls: self.tls().transpose(),
            files,
            at_start: self.at_start(),
        })
    }

    /// What is not read again while the service runs.
    fn at_start(&self) -> AtStart {
        let Written {
            listen, tls, behind_proxy, environments, telemetry, runs, parallel, connections, ..
        } = &self.written;
        let telemetry =
            telemetry.as_ref().map(|Telemetry { traces, authorities }| (&traces.value, authorities));
        let environments: Vec<&String> = environments.iter().map(|name| &name.value).collect();
        let number = |number: &Option<At<u32>>| format!("{:?}", number.as_ref().map(|number| number.value));
        AtStart::from([
            ("listen", format!("{:?}", listen.as_ref().map(|listen| &listen.value))),
            ("tls", tls.is_some().to_string()),
            ("behind_proxy", behind_proxy.to_string()),
            ("environments", format!("{environments:?}")),
            ("telemetry", format!("{telemetry:?}")),
            ("runs", number(runs)),
            ("parallel", number(parallel)),
            ("connections", number(connections)),
        ])
    }

    /// Begins to send spans, where the file says so. Read at a start only.
    fn exporting(&self, spans: Option<&Spans>) -> Result<Option<Exporting>, Problem> {
        let (Some(Telemetry { traces, authorities }), Some(spans)) = (&self.written.telemetry, spans) else {
            return Ok(None);
        };
        let url = client::private(traces, "telemetry.traces")?;
        let authorities = authorities.as_deref().map(|path| self.folder.join(path));
        let plain = Plain::to(&url, authorities.as_deref())?;
        Ok(Some(Exporting::begin(spans, url, plain)))
    }

    fn tls(&self) -> Result<Option<Arc<rustls::ServerConfig>>, String> {
        let Some(Tls { certificate, key, client_authorities }) = &self.written.tls else { return Ok(None) };
        let place = |path: &str| self.folder.join(path);
        let authorities = client_authorities.as_deref().map(place);
        configure_tls(&place(certificate), &place(key), authorities.as_deref()).map(Some)
    }
}

async fn reload_on_hangup(app: farrier_server::App) {
    let Ok(mut hangups) = signal(SignalKind::hangup()) else { return };
    while hangups.recv().await.is_some() {
        match app.reload().await {
            Ok(true) => eprintln!("the project was read again"),
            Ok(false) => eprintln!("the project was read again, and nothing is new"),
            Err(error) => eprintln!("the set of before stays in use: {error}"),
        }
    }
}

/// One line for each event that people care about.
pub(super) struct Lines {
    pub(super) quiet: bool,
    pub(super) json: bool,
}

impl Observer for Lines {
    fn update(&self, update: RunUpdate<'_>) {
        if self.quiet {
            return;
        }
        let short = &update.run.to_string()[..13];
        for event in update.events {
            let said = describe(event);
            if !self.json {
                eprintln!("{short} {}: {said}", update.runbook);
                continue;
            }
            let (node, attempt) = match event {
                Event::Node { node, attempt, .. } => (Some(node.to_string()), Some(*attempt)),
                _ => (None, None),
            };
            tracing::info!(run_id = %update.run, runbook = update.runbook, node, attempt, event = event.name(), said, "run");
        }
    }
}

#[derive(Debug, Args)]
pub(super) struct Token {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, clap::Subcommand)]
enum TokenCommand {
    /// Make a token. It is printed once; the service file gets its hash.
    New,
}

impl Token {
    pub(super) fn run(&self, app: &App) -> Result<Exit, Problem> {
        let TokenCommand::New = self.command;
        let token = farrier_server::rights::Token::new();
        let both = serde_json::json!({ "token": token.reveal(), "hash": token.hash() });
        if render::data(app.output, &both)? {
            return Ok(Exit::Ok);
        }
        render::line(token.reveal())?;
        eprintln!("it is shown only now; in the service file, under the user's or receiver's `tokens:`:");
        eprintln!("  - {}", token.hash());
        Ok(Exit::Ok)
    }
}
