//! The command line: its grammar, the way to each command, and the problems they can meet.

mod actions;
mod alerts;
mod answer;
mod apply;
mod audit;
mod check;
mod demo;
mod explain;
mod export;
mod files_helper;
mod fsck;
mod graph;
mod incidents;
mod locks;
mod login;
mod plan;
mod plan_alert;
mod prune;
mod remote;
mod run;
mod runs;
mod schedules;
mod schema;
mod serve;
mod test;
mod unpack;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use clap::{Args, CommandFactory, Parser, Subcommand};
use farrier_model::Value;
use farrier_runbook::Graph;
use farrier_runbook::inputs::{Given, check_inputs};

use crate::app::{App, user};
use crate::exit::Exit;
use crate::plugins;
use crate::problem::Problem;
use crate::render::{self, Format};
use crate::telemetry::Spans;

/// Plan, run and inspect runbooks: declarative maintenance with a true dry run and runs that survive crashes.
#[derive(Debug, Parser)]
#[command(name = "farrier", version, propagate_version = true, arg_required_else_help = true)]
pub struct Cli {
    /// The project's folder; its `farrier.yaml` is looked for here and above.
    #[arg(long, short = 'C', global = true, default_value = ".", value_name = "FOLDER")]
    project: PathBuf,
    /// Form of the output.
    #[arg(long, short, global = true, default_value = "table", value_enum)]
    output: Format,
    /// What to log to standard error, such as `info` or `farrier_exec=debug`; also `FARRIER_LOG`.
    #[arg(long, global = true, value_name = "FILTER")]
    pub log: Option<String>,
    /// Ask this service instead of opening the store here; its token is taken from `FARRIER_TOKEN`.
    #[arg(long, global = true, value_name = "URL", env = "FARRIER_SERVER")]
    server: Option<String>,
    /// The authorities (PEM) that the service's certificate is checked against, instead of the machine's.
    #[arg(long, global = true, value_name = "FILE", env = "FARRIER_SERVER_CA")]
    server_ca: Option<PathBuf>,
    /// Form of the log.
    #[arg(long, global = true, default_value = "text", value_enum)]
    pub log_format: LogFormat,
    #[command(subcommand)]
    command: Command,
}

impl Cli {
    /// Whether the process is a service.
    pub fn serves(&self) -> bool {
        matches!(self.command, Command::Serve(_))
    }

    /// Whether it stays and waits for work.
    pub fn stays(&self) -> bool {
        matches!(self.command, Command::Serve(_) | Command::Demo(_))
    }
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One object of JSON for each line.
    Json,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Find every mistake in runbooks, their tests and environments, without running anything.
    Check(check::Check),
    /// Show what a runbook would change. Writes nothing.
    Plan(plan::PlanArgs),
    /// Show what a runbook would change, ask, and make exactly those changes.
    Run(run::RunArgs),
    /// Carry out a saved plan: exactly as it was read, or not at all.
    Apply(apply::Apply),
    /// Go on with a run that was interrupted, waits or is parked.
    Resume(run::Resume),
    /// Say yes to the plan that a run waits with.
    Approve(answer::Approve),
    /// Say no to the plan that a run waits with.
    Reject(answer::Reject),
    /// Send a run one of its runbook's signals.
    Signal(answer::Signal),
    /// Stop a run, and with `--undo` take back what it did.
    Cancel(answer::Cancel),
    /// Say whether a step in doubt has happened, after looking at its target.
    Resolve(answer::Resolve),
    /// Take up whatever is due: queued runs, waiting runs whose time has come, runs left behind.
    Serve(serve::Serve),
    /// Serve the demo: a made-up Toolforge on its schedule, an API, metrics, and a webhook to try.
    Demo(demo::Demo),
    /// List runs, newest first.
    Runs(runs::Runs),
    /// Show one run: its steps, what they changed, why it ended.
    Show(runs::Show),
    /// Print the journal of a run.
    Logs(runs::Logs),
    /// List what starts by itself in the coming days.
    Next(schedules::Next),
    /// Show every schedule: its last due time and what became of it, its next, and who paused it.
    Schedules(schedules::Schedules),
    /// Keep a schedule from starting anything; its due times are recorded as skipped.
    Pause(schedules::Pause),
    /// Let a paused schedule start runs again.
    Unpause(schedules::Unpause),
    /// Show who holds which lock, and who waits for it.
    Locks(locks::Locks),
    /// List what alerts have opened, newest first.
    Incidents(incidents::Incidents),
    /// Show one incident: its alerts, what each did, its runs.
    Incident(incidents::Incident),
    /// Let alerts start a runbook again whose fuse has blown.
    Unfuse(incidents::Unfuse),
    /// List the routes from alerts to runbooks, or print the rules for Prometheus.
    Alerts(alerts::AlertsArgs),
    /// Draw the steps of a runbook.
    Graph(graph::GraphArgs),
    /// Run the tests beside the runbooks, on stand-ins.
    Test(test::TestArgs),
    /// List actions, or explain one.
    Actions(actions::Actions),
    /// Explain an error code.
    Explain(explain::Explain),
    /// Print the JSON Schema of a kind of file, for editors.
    Schema(schema::SchemaArgs),
    /// Check that stored runs are whole and keep the journal's rules.
    Fsck(fsck::Fsck),
    /// Write runs with their journals to a file, one line of JSON each.
    Export(export::Export),
    /// Take runs from a file that `export` has written.
    Import(export::Import),
    /// Show who did what through the service.
    Audit(audit::Audit),
    /// Make tokens for the service file.
    Token(serve::Token),
    /// Log in to the service of `--server` with a name and a password.
    Login(login::Login),
    /// End that login.
    Logout(login::Logout),
    /// Take away finished runs whose time is over, as `retention:` in farrier.yaml says.
    Prune(prune::Prune),
    Unpack(unpack::Unpack),
    FilesHelper(files_helper::FilesHelper),
    /// Start a program of a target of kind `external`; Farrier itself calls this.
    #[command(hide = true)]
    PluginRunner {
        /// What Farrier says.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Print the completion script for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// The arguments that choose a runbook, its environment and its inputs.
#[derive(Debug, Args)]
pub struct Choice {
    /// Name of a runbook, or the path of its file.
    runbook: String,
    /// The environment. There is no default.
    #[arg(long, short, value_name = "NAME")]
    env: String,
    /// An input of the runbook; lists as `a,b,c` or JSON.
    #[arg(long = "input", short, value_name = "KEY=VALUE")]
    inputs: Vec<String>,
    /// Tasks at once.
    #[arg(long, default_value_t = 16, value_name = "N")]
    parallel: usize,
}

impl Choice {
    /// The inputs as they were typed, for a service to check.
    fn given(&self) -> Result<BTreeMap<String, Value>, Problem> {
        let mut given = BTreeMap::new();
        for pair in &self.inputs {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Problem::Usage(format!("`--input {pair}` is not of the form KEY=VALUE")))?;
            given.insert(key.to_owned(), Value::text(value));
        }
        Ok(given)
    }

    fn inputs(&self, graph: &Graph) -> Result<Value, Problem> {
        let mut given = BTreeMap::new();
        for pair in &self.inputs {
            let (key, value) = pair
                .split_once('=')
                .ok_or_else(|| Problem::Usage(format!("`--input {pair}` is not of the form KEY=VALUE")))?;
            if given.insert(key.into(), Given::Text(value.into())).is_some() {
                return Err(Problem::Usage(format!("the input `{key}` is given twice")));
            }
        }
        check_inputs(graph, &given).map_err(|problems| Problem::Inputs {
            runbook: graph.name.to_string(),
            problems: problems.iter().map(ToString::to_string).collect(),
            known: graph.inputs.iter().map(|input| input.name.to_string()).collect(),
        })
    }
}

/// Runs the chosen command.
pub fn dispatch(cli: Cli, spans: Option<Spans>) -> Result<Exit, Problem> {
    if let Command::Completions { shell } = cli.command {
        // Made whole first: the generator would panic when its reader goes away, as in `| head`.
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "farrier", &mut script);
        render::line(String::from_utf8_lossy(&script).trim_end())?;
        return Ok(Exit::Ok);
    }
    let registry = Arc::new(plugins::registry().map_err(|error| Problem::Other(error.into()))?);
    let app = App {
        registry,
        output: cli.output,
        project: cli.project,
        logs_json: cli.log_format == LogFormat::Json,
        server: cli.server,
        server_ca: cli.server_ca,
        spans,
    };
    match cli.command {
        Command::Check(command) => command.run(&app),
        Command::Plan(command) => block_on(command.run(&app)),
        Command::Run(command) => block_on(command.run(&app)),
        Command::Apply(command) => block_on(command.run(&app)),
        Command::Resume(command) => block_on(command.run(&app)),
        Command::Approve(command) => block_on(command.run(&app)),
        Command::Reject(command) => block_on(command.run(&app)),
        Command::Signal(command) => block_on(command.run(&app)),
        Command::Cancel(command) => block_on(command.run(&app)),
        Command::Serve(command) => block_on(command.run(&app)),
        Command::Demo(command) => block_on(command.run(&app)),
        Command::Next(command) => block_on(command.run(&app)),
        Command::Schedules(command) => block_on(command.run(&app)),
        Command::Pause(command) => block_on(command.run(&app)),
        Command::Unpause(command) => block_on(command.run(&app)),
        Command::Locks(command) => block_on(command.run(&app)),
        Command::Resolve(command) => block_on(command.run(&app)),
        Command::Runs(command) => block_on(command.run(&app)),
        Command::Show(command) => block_on(command.run(&app)),
        Command::Logs(command) => block_on(command.run(&app)),
        Command::Incidents(command) => block_on(command.run(&app)),
        Command::Incident(command) => block_on(command.run(&app)),
        Command::Unfuse(command) => block_on(command.run(&app)),
        Command::Alerts(command) => command.run(&app),
        Command::Graph(command) => command.run(&app),
        Command::Test(command) => command.run(&app),
        Command::Actions(command) => command.run(&app),
        Command::Explain(command) => command.run(&app),
        Command::Schema(command) => command.run(&app),
        Command::Fsck(command) => block_on(command.run(&app)),
        Command::Export(command) => block_on(command.run(&app)),
        Command::Import(command) => block_on(command.run(&app)),
        Command::Audit(command) => block_on(command.run(&app)),
        Command::Token(command) => command.run(&app),
        Command::Login(command) => block_on(command.run(&app)),
        Command::Logout(command) => block_on(command.run(&app)),
        Command::Prune(command) => block_on(command.run(&app)),
        Command::Unpack(command) => block_on(command.run()),
        Command::FilesHelper(command) => command.run(),
        // It stands for the program, down to its exit code.
        Command::PluginRunner { words } => std::process::exit(farrier_plugin_external::runner::main(&words)),
        Command::Completions { .. } => Ok(Exit::Ok),
    }
}

/// How long what hangs outside of this program may keep it from ending.
const LAST_MOMENT: std::time::Duration = std::time::Duration::from_secs(1);

fn block_on<T>(future: impl Future<Output = Result<T, Problem>>) -> Result<T, Problem> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|error| Problem::Other(anyhow::Error::new(error).context("cannot start")))?;
    let result = runtime.block_on(future);
    // Tasks are dropped, and with them commands that are still at work; a file system that hangs is not waited for.
    runtime.shutdown_timeout(LAST_MOMENT);
    result
}
