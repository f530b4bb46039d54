//! `farrier approve`, `reject`, `signal`, `cancel` and `resolve`: what people tell a run. Their word goes into the journal
//! at once; the run goes on when it is taken up.

use std::io::IsTerminal;
use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use farrier_exec::driver::{ProceedAlways, Start, Unobserved};
use farrier_exec::{Attested, Halt, Options, Refusal, Run};
use farrier_model::{Ask, Digest, Event, NodeName, Subject, Text, Value};
use farrier_runbook::Diagnostics;
use farrier_server::wire::ResolveRequest;
use farrier_store::{Clock, RunRow, SqliteStore, Store};
use tokio::sync::watch;

use super::remote::{self, Word};
use super::run::{driver, open_run, past};
use super::runs::stored_plan;
use super::{App, Problem, user};
use crate::client::{self, Client};
use crate::exit::Exit;
use crate::interact::read_line;
use crate::render;
use crate::render::plan::{Shown, draw};
use crate::render::style::Style;
use crate::stores;

/// The service to ask about a run: the one that is named, or that owns the run's store.
async fn service(app: &App, run: &str) -> Result<Option<Client>, Problem> {
    match client::named(app)? {
        Some(client) => Ok(Some(client)),
        None => stores::service_of(app, &app.workspace()?, run).await,
    }
}

/// A stored run that somebody wants something of.
struct Asked {
    store: SqliteStore,
    start: Start,
    row: RunRow,
    run: Run,
}

impl Asked {
    async fn open(app: &App, id: &str) -> Result<Asked, Problem> {
        let workspace = app.workspace()?;
        let (store, start, row) = open_run(app, &workspace, id).await?;
        let journal = store.journal(row.id).await?;
        let mut run = Run::replay(row.id, start.bundle.graph().clone(), &journal)
            .map_err(|error| Problem::Other(error.into()))?;
        run.people = start.world.people.clone();
        Ok(Asked { store, start, row, run })
    }

    fn short(&self) -> String {
        self.row.id.to_string()[..13].to_owned()
    }

    /// Puts `ask` into the journal, or says why the run does not accept it. Gives the run as it is then.
    async fn tell(self, app: &App, ask: Ask) -> Result<(Run, String), Problem> {
        let by = user();
        self.run.may(&by, &ask, Clock::system().now()).map_err(Problem::Refused)?;
        let (_stop, halt) = watch::channel(Halt::No);
        let driver = driver(app, &self.store, Options::default(), Arc::new(Unobserved), halt);
        driver.ask(self.row.id, &by, ask).await?;
        let (run, events) = driver.answer(self.row.id, &self.start).await?;
        let short = self.short();
        self.store.close().await;
        // The owner judges again: something may have happened in between.
        for event in events {
            if let Event::RequestRefused { why, .. } = event {
                return Err(Problem::Refused(Refusal::Now(why)));
            }
        }
        Ok((run, short))
    }
}

#[derive(Debug, Args)]
pub(super) struct Approve {
    #[command(flatten)]
    answer: Answer,
    /// Do not ask whether you are sure. Give the digest of the plan that you have read.
    #[arg(long, short, requires = "digest")]
    yes: bool,
}

#[derive(Debug, Args)]
pub(super) struct Reject {
    #[command(flatten)]
    answer: Answer,
}

#[derive(Debug, Args)]
struct Answer {
    /// The run, by the beginning of its id.
    run: String,
    /// The step that waits; `-` for the whole run. Not needed when only one approval is open.
    step: Option<Subject>,
    /// The digest of the plan that you have read, or its beginning.
    #[arg(long)]
    digest: Option<String>,
    /// In your words; kept in the journal.
    #[arg(long)]
    reason: Option<String>,
    /// Show every change and whole values.
    #[arg(long)]
    all: bool,
}

impl Answer {
    /// The same through a service.
    async fn tell(&self, client: &Client, word: Word) -> Result<Exit, Problem> {
        let step = self.step.as_ref().map(ToString::to_string);
        let digest = self.digest.as_deref();
        let said = (word, self.reason.clone());
        remote::answer(client, &self.run, step.as_deref(), digest, said, self.all).await
    }

    /// What is asked, shown; and the digest that the answer is for.
    fn subject(&self, asked: &Asked) -> Result<(Subject, Digest), Problem> {
        let open: Vec<_> = asked.run.approvals.iter().filter(|(_, approval)| approval.is_open()).collect();
        let (subject, approval) = match (&self.step, open.as_slice()) {
            (Some(step), _) => {
                let approval = asked.run.approvals.get(step).ok_or_else(|| {
                    Problem::Refused(Refusal::Now(format!("step `{step}` does not wait for an approval")))
                })?;
                (step.clone(), approval)
            }
            (None, [(subject, approval)]) => ((*subject).clone(), *approval),
            (None, []) => {
                let state = asked.row.state;
                return Err(Problem::Refused(Refusal::Now(if state.is_final() {
                    format!("the run has ended: {}", state.name())
                } else {
                    "the run does not wait for an approval".into()
                })));
            }
            (None, many) => {
                let names: Vec<String> = many.iter().map(|(subject, _)| format!("`{subject}`")).collect();
                return Err(Problem::Usage(format!("name the step: {} wait", names.join(", "))));
            }
        };
        let digest = approval.plan.digest;
        if let Some(given) = &self.digest
            && !(given.len() >= 8 && digest.to_string().starts_with(&given.to_lowercase()))
        {
            return Err(Problem::Refused(Refusal::Now(format!(
                "the run asks about plan {}, and not about {given}",
                digest.short()
            ))));
        }
        eprint!("{}", draw(&stored_plan(&approval.plan)?, Style::stderr(), Shown { all: self.all }));
        eprintln!("plan {digest}");
        Ok((subject, digest))
    }
}

impl Approve {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(client) = service(app, &self.answer.run).await? {
            return self.answer.tell(&client, Word::Yes { sure: self.yes }).await;
        }
        let asked = Asked::open(app, &self.answer.run).await?;
        let (subject, digest) = self.answer.subject(&asked)?;
        if !self.yes {
            if !std::io::stdin().is_terminal() {
                return Err(Problem::Usage(
                    "nobody is here to ask; read the plan, then give `--yes --digest DIGEST`".into(),
                ));
            }
            let answer = read_line("Approve exactly this? [y/N] ");
            if !answer.is_some_and(|line| matches!(line.to_lowercase().as_str(), "y" | "yes")) {
                eprintln!("nothing was approved");
                return Ok(Exit::NotApproved);
            }
        }
        let reason = self.answer.reason.clone();
        let (run, short) = asked.tell(app, Ask::Approve { subject: subject.clone(), digest, reason }).await?;
        let approval = &run.approvals[&subject];
        let missing = (approval.count as usize).saturating_sub(approval.approved.len());
        if missing > 0 {
            render::line(&format!("approved; {missing} more to come"))?;
        } else {
            render::line("approved")?;
            eprintln!("next: farrier resume {short}");
        }
        Ok(Exit::Ok)
    }
}

impl Reject {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(client) = service(app, &self.answer.run).await? {
            return self.answer.tell(&client, Word::No).await;
        }
        let asked = Asked::open(app, &self.answer.run).await?;
        let (subject, digest) = self.answer.subject(&asked)?;
        let reason = self.answer.reason.clone();
        let (_, short) = asked.tell(app, Ask::Reject { subject, digest, reason }).await?;
        render::line("rejected")?;
        eprintln!("next: farrier resume {short}, which ends it");
        Ok(Exit::Ok)
    }
}

#[derive(Debug, Args)]
pub(super) struct Signal {
    /// The run, by the beginning of its id.
    run: String,
    /// One of the runbook's signals.
    #[arg(value_name = "SIGNAL")]
    name: String,
    /// In your words; kept in the journal.
    #[arg(long)]
    reason: Option<String>,
}

impl Signal {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(client) = service(app, &self.run).await? {
            return remote::signal(&client, &self.run, &self.name, self.reason.clone()).await;
        }
        let asked = Asked::open(app, &self.run).await?;
        let ask = Ask::Signal { name: self.name.as_str().into(), reason: self.reason.clone() };
        let (_, short) = asked.tell(app, ask).await?;
        render::line(&format!("signal `{}` was accepted", self.name))?;
        eprintln!("next: farrier resume {short}");
        Ok(Exit::Ok)
    }
}

#[derive(Debug, Args)]
pub(super) struct Cancel {
    /// The run, by the beginning of its id.
    run: String,
    /// Undo what was done, the last step first.
    #[arg(long)]
    undo: bool,
    /// In your words; kept in the journal.
    #[arg(long)]
    reason: Option<String>,
}

impl Cancel {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(client) = service(app, &self.run).await? {
            return remote::cancel(&client, &self.run, self.undo, self.reason.clone()).await;
        }
        let asked = Asked::open(app, &self.run).await?;
        let by = user();
        let ask = Ask::Cancel { undo: self.undo, reason: self.reason.clone() };
        asked.run.may(&by, &ask, Clock::system().now()).map_err(Problem::Refused)?;
        let (_stop, halt) = watch::channel(Halt::No);
        let options = Options { resume_parked: false, ..Options::default() };
        let driver = driver(app, &asked.store, options, Arc::new(Unobserved), halt);
        driver.ask(asked.row.id, &by, ask).await?;
        let ended = driver.resume(asked.row.id, &asked.start, &ProceedAlways, &[]).await?;
        asked.store.close().await;
        let why = ended.parked.iter().chain(ended.waits.iter().map(|(reason, _)| reason)).next();
        let why = why.map_or_else(String::new, |why| format!(": {why}"));
        render::line(&format!("run {} {}{why}", ended.run, past(ended.state)))?;
        Ok(match ended.state {
            state if state.is_final() => Exit::Ok,
            farrier_model::RunState::Waiting => Exit::Waiting,
            _ => Exit::Parked,
        })
    }
}

#[derive(Debug, Args)]
pub(super) struct Resolve {
    /// The run, by the beginning of its id.
    run: String,
    /// The step, or `step[item]`.
    node: NodeName,
    /// Its effect happened: it counts as succeeded and is not repeated.
    #[arg(long, conflicts_with = "not_applied", required_unless_present = "not_applied")]
    applied: bool,
    /// Its effect did not happen: it will be tried again.
    #[arg(long)]
    not_applied: bool,
    /// What it gave: a field of the step's output, which later steps read. May be given several times.
    #[arg(long, value_name = "FIELD=VALUE", conflicts_with = "not_applied")]
    result: Vec<String>,
    /// The same from a file: a map in YAML or JSON. What `--result` says counts before it.
    #[arg(long, value_name = "FILE", conflicts_with = "not_applied")]
    result_file: Option<PathBuf>,
    /// How you know; kept in the journal.
    #[arg(long)]
    reason: String,
}

impl Resolve {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        if let Some(client) = service(app, &self.run).await? {
            let (node, reason) = (self.node.to_string(), self.reason.clone());
            let request = ResolveRequest { node, applied: self.applied, output: self.output()?, reason };
            return remote::resolve(&client, &self.run, &request).await;
        }
        let asked = Asked::open(app, &self.run).await?;
        if asked.run.find(&self.node).is_none() {
            return Err(Problem::Usage(format!("run {} has no step `{}`", asked.row.id, self.node)));
        }
        let (node, applied, output) = (self.node.clone(), self.applied, self.output()?);
        let ask = Ask::Resolve { node, applied, output, reason: self.reason.clone() };
        let (run, short) = asked.tell(app, ask).await?;
        let word = if applied { "applied" } else { "not applied" };
        let mine = |said: &Attested| said.node == self.node && said.applied == applied && said.by == user();
        if run.attested.iter().any(mine)
            && run
                .find(&self.node)
                .is_some_and(|node| run.node(node).state == farrier_model::NodeState::InDoubt)
        {
            render::line(&format!(
                "recorded: step `{}` was {word}; another person has to say the same",
                self.node
            ))?;
            return Ok(Exit::Ok);
        }
        render::line(&format!("step `{}` counts as {word}", self.node))?;
        eprintln!("next: farrier resume {short}");
        Ok(Exit::Ok)
    }

    /// What they say that it gave, as it was typed: whoever judges it knows the types.
    fn output(&self) -> Result<Option<Value>, Problem> {
        let mut fields: Vec<(Text, Value)> = Vec::new();
        for pair in &self.result {
            let Some((field, value)) = pair.split_once('=') else {
                return Err(Problem::Usage(format!("`--result {pair}` is not of the form FIELD=VALUE")));
            };
            if fields.iter().any(|(known, _)| **known == *field) {
                return Err(Problem::Usage(format!("the field `{field}` is given twice")));
            }
            fields.push((field.into(), Value::text(value)));
        }
        if let Some(path) = &self.result_file {
            let bytes = std::fs::read(path).map_err(|source| Problem::file(path, source))?;
            let mut wrong = Diagnostics::new();
            let file = wrong.add_file(path.display().to_string(), &bytes);
            let node = farrier_runbook::parse(file, &bytes, &mut wrong);
            let Some(node) = node.filter(|_| !wrong.has_errors()) else {
                return Err(Problem::Mistakes(Box::new(wrong)));
            };
            let value = node.to_value();
            let Some(map) = value.as_map() else {
                return Err(Problem::Usage(format!("{} holds no map of fields", path.display())));
            };
            for (field, value) in map.iter() {
                if !fields.iter().any(|(known, _)| known == field) {
                    fields.push((field.clone(), value.clone()));
                }
            }
        }
        Ok((!fields.is_empty()).then(|| Value::map(fields)))
    }
}
