//! `farrier demo`: the service on an embedded Toolforge of twelve tools, with everything that a first look needs.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use clap::Args;
use farrier_exec::Options;
use farrier_model::time::Timestamp;
use farrier_project::Watched;
use farrier_runbook::Diagnostics;
use farrier_runbook::service::read_service;
use farrier_server::intake::Receiving;
use farrier_server::rights::{Access, Token};
use farrier_server::{Listeners, Notify, Policy, Service, Settings, open_socket};

use super::run::{listen, owner};
use super::serve::{Lines, PATIENCE};
use super::{App, Problem};
use crate::exit::Exit;
use crate::stores;
use crate::{render, resting};

/// The environment that needs no server.
const ENVIRONMENT: &str = "demo";
/// The runbook that the demo is about, and the receiver of alerts that may start it.
const RUNBOOK: &str = "updatetools";
const RECEIVER: &str = "demo";
/// Where it listens when nobody says and the port is free.
const PORT: u16 = 8440;

/// Serve the demo: updatetools every two minutes, an API, metrics, and a webhook to try.
#[derive(Debug, Args)]
pub(super) struct Demo {
    /// Address and port; 127.0.0.1:8440 without it, or a free port when that is taken.
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<SocketAddr>,
}

impl Demo {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let root = app.workspace()?.root;
        let sets = Watched::open(&root, app.registry.clone(), vec![ENVIRONMENT.to_owned()])?;
        let dir = sets.current().data_dir.clone();
        let store = stores::own(&dir).await?;
        let (person, sender) = (Token::new(), Token::new());
        let (listener, address) = self.bind()?;
        let alerts = Receiving::new(store.clone(), sets.clone());
        let keeping = tokio::spawn(alerts.clone().keep());
        let resting = tokio::spawn(resting::give_back(store.clone()));
        let settings = Settings {
            store,
            sets,
            policy: policy(&person, &sender)?,
            read_policy: None,
            listeners: Listeners { network: Some((listener, None)), socket: open_socket(&dir).ok() },
            connections: 0,
            options: Options {
                patience: PATIENCE,
                resume_parked: false,
                owner: owner(),
                ..Options::default()
            },
            runs: 16,
            only: Some(vec![ENVIRONMENT.into()]),
            until_idle: false,
            schedules: true,
            watch_files: true,
            observer: Arc::new(Lines { quiet: false, json: app.logs_json }),
            webhook: Some(alerts),
            notify: Notify::from_env(),
        };
        let service = Service::new(settings, listen(false));
        let first = service.app().start("demo", RUNBOOK, ENVIRONMENT).await.map_err(|error| {
            Problem::Other(anyhow::anyhow!("the first run of {RUNBOOK} cannot be started: {error}"))
        })?;
        render::line(&welcome(address, &person, &sender, &first.to_string()[..13]))?;
        let ended = service.run().await;
        keeping.abort();
        resting.abort();
        ended?;
        Ok(Exit::Ok)
    }

    fn bind(&self) -> Result<(tokio::net::TcpListener, SocketAddr), Problem> {
        let here = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let bound = match self.listen {
            Some(address) => std::net::TcpListener::bind(address),
            None => std::net::TcpListener::bind(here(PORT)).or_else(|_| std::net::TcpListener::bind(here(0))),
        };
        let listener = bound.and_then(|listener| {
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((tokio::net::TcpListener::from_std(listener)?, address))
        });
        listener.map_err(|error| Problem::Other(anyhow::Error::new(error).context("cannot listen")))
    }
}

/// One person who may do everything, and one sender of alerts.
fn policy(person: &Token, sender: &Token) -> Result<Policy, Problem> {
    let text = format!(
        "users: {{ demo: {{ role: admin, tokens: ['{}'] }} }}\n\
         receivers: {{ {RECEIVER}: {{ tokens: ['{}'], runbooks: [{RUNBOOK}] }} }}\n",
        person.hash(),
        sender.hash()
    );
    let mut mistakes = Diagnostics::new();
    let file = mistakes.add_file("demo", text.as_bytes());
    let written = read_service(file, text.as_bytes(), &mut mistakes)
        .ok_or_else(|| Problem::Other(anyhow::anyhow!("{}", mistakes.render(false))))?;
    Ok(Policy { access: Access::of(&written), open_metrics: true, ..Policy::default() })
}

fn welcome(address: SocketAddr, person: &Token, sender: &Token, run: &str) -> String {
    let (person, sender, now) = (person.reveal(), sender.reveal(), Timestamp::now());
    let alert = format!(
        r#"{{"version":"4","groupKey":"demo","status":"firing","receiver":"{RECEIVER}","alerts":[{{"status":"firing","labels":{{"alertname":"ToolsListStale","project":"tools"}},"startsAt":"{now}"}}]}}"#
    );
    format!(
        "Farrier serves a made-up Toolforge of twelve tools. The runbook `{RUNBOOK}` runs now (run {run}) and every two\n\
         minutes; it keeps two public tables like the directory. Ctrl-C ends the service, and nothing is lost.\n\
         \n\
         runs      http://{address}/api/v1/runs   (with the token below)\n\
         metrics   http://{address}/metrics\n\
         \n\
         Post an alert, as Alertmanager does; its route starts the same runbook:\n\
         \n\
         curl -s -H 'Authorization: Bearer {sender}' -H 'Content-Type: application/json' -d '{alert}' http://{address}/webhooks/alertmanager/{RECEIVER}\n\
         \n\
         See what came of it, newest first:\n\
         \n\
         curl -s -H 'Authorization: Bearer {person}' 'http://{address}/api/v1/runs?limit=3'\n\
         \n\
         In another terminal: `farrier runs`, `farrier show {run}`, `farrier incidents`, `farrier next --env {ENVIRONMENT}`\n"
    )
}
