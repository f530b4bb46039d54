//! One program's life, seen from Farrier: started by a runner, asked one thing, given the secrets that it asks for, heard,
//! and ended.
//!
//! What can go wrong before an answer, and what follows: it cannot be started, or is refused by its runner (nothing was
//! begun); it says what is no line of the protocol, too much, or nothing; it takes too long; it ends badly after its
//! answer. Each of the latter leaves it open what a program has done that was to change something.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::OnceLock;
use std::time::Duration;

use farrier_action::{ConnectCx, Known, NodeInfo};
use farrier_model::{Failure, FailureKind, Value};
use farrier_plugin_host::group::Ending;
use farrier_plugin_host::marks::Marks;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use crate::runner;
use crate::target::Program;
use crate::wire::{Ask, Request, Said, for_people};

/// How long a program may take to end after its answer.
const END_GRACE: Duration = Duration::from_secs(5);
/// What is kept of the end of what a program says beside the protocol.
const TOLD: usize = 64 << 10;
/// What is shown of it.
const SHOWN: usize = 500;
/// Shorter secrets could not be told from other text.
const SHORTEST_SECRET: usize = 8;
/// Longer ones are no secrets but files.
const LONGEST_SECRET: usize = 16 << 10;
/// More requests for secrets than this are no conversation.
const MOST_SECRETS: usize = 100;

static RUNNER: OnceLock<PathBuf> = OnceLock::new();

/// Says which program runs programs, for processes that are not `farrier` itself; tests are such.
pub fn use_runner(program: PathBuf) {
    let _ = RUNNER.set(program);
}

/// Asks a program one thing. Dropping the future ends the program.
pub(crate) async fn ask(
    program: &Program,
    ask: Ask,
    input: &Value,
    changes: &[farrier_model::Change],
    node: &NodeInfo,
) -> Result<Said, Failure> {
    let request = Request {
        farrier: crate::wire::VERSION,
        ask,
        input,
        settings: &program.settings,
        changes,
        run: node.run,
        step: &node.node,
        attempt: node.attempt,
        effect: &node.effect_id,
    };
    let line = serde_json::to_string(&request)
        .map_err(|error| Failure::new(FailureKind::Internal, format!("no request: {error}")))?;
    let mut command = match RUNNER.get() {
        Some(runner) => Command::new(runner),
        None => Command::new("/proc/self/exe"),
    };
    if RUNNER.get().is_none() {
        command.arg(runner::COMMAND);
    }
    command.arg(program.order().word()?).current_dir("/").env_clear();
    command
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8");
    command.envs(Marks::of(node).variables()).stdin(Stdio::piped());
    let mut running = Ending::start(command).map_err(|error| {
        Failure::new(FailureKind::Refused, format!("cannot start the runner of `{}`: {error}", program.path))
    })?;
    let (Some(stdin), Some(stdout), Some(stderr)) = running.pipes() else {
        return Err(Failure::new(FailureKind::Internal, "the program has no pipes"));
    };
    let mut known = program.known();
    let mut told = Tail::default();
    let talk = async {
        let mut hearing = Hearing { program, ask, out: BufReader::new(stdout), heard: 0 };
        let talk = hearing.talk(line, stdin, &mut running, &mut known);
        tokio::select! {
            said = talk => said,
            never = told.listen(stderr) => match never {},
        }
    };
    let ended = tokio::time::timeout(program.timeout, talk).await;
    let ended = ended.unwrap_or_else(|_| {
        let limit = farrier_model::time::format_duration(program.timeout);
        Err(Trouble::new(FailureKind::Timeout, format!("did not end within {limit}")))
    });
    // Nobody decides what becomes of the step while the program may still be at work.
    let (said, status) = match ended {
        Ok((said, by_itself)) => {
            let status = running.finish().await.ok();
            let badly = by_itself && status.is_none_or(|status| !status.success());
            let trouble = || Trouble::with_status(FailureKind::Exit, "ended badly after its answer");
            (if badly { Err(trouble()) } else { Ok(said) }, status)
        }
        Err(trouble) => (Err(trouble), running.stop().await.ok()),
    };
    program.learn(&known);
    // Whatever came of it otherwise.
    let said = match status.and_then(|status| status.code()) {
        Some(runner::TOO_MANY) => {
            let why =
                format!("had more than {} processes and threads at once, and was ended", program.processes);
            Err(Trouble::new(FailureKind::Limit, why))
        }
        Some(runner::TOO_MUCH) => {
            let why = format!("used more than {} bytes of memory in all, and was ended", program.memory);
            Err(Trouble::new(FailureKind::Limit, why))
        }
        _ => said,
    };
    said.map_err(|trouble| {
        let status = status.filter(|_| trouble.tells_status);
        let status = status.map_or_else(String::new, |status| format!(" ({status})"));
        let told = told.text(&known);
        let told = if told.is_empty() { told } else { format!("; it said: {told}") };
        let message = known.text(&format!("`{}` {}{status}", program.path, trouble.why)) + &told;
        let failure = Failure::new(trouble.kind, message);
        if ask.changes_something() { failure.in_doubt() } else { failure }
    })
}

/// Why there is no answer that counts, as a predicate of the program.
struct Trouble {
    kind: FailureKind,
    why: String,
    tells_status: bool,
}

impl Trouble {
    fn new(kind: FailureKind, why: impl Into<String>) -> Trouble {
        Trouble { kind, why: why.into(), tells_status: false }
    }

    fn with_status(kind: FailureKind, why: impl Into<String>) -> Trouble {
        Trouble { tells_status: true, ..Trouble::new(kind, why) }
    }
}

struct Hearing<'a> {
    program: &'a Program,
    ask: Ask,
    out: BufReader<ChildStdout>,
    heard: usize,
}

impl Hearing<'_> {
    /// From the request to the end of a program that has answered; and whether it ended by itself.
    async fn talk(
        &mut self,
        request: String,
        stdin: ChildStdin,
        running: &mut Ending,
        known: &mut Known,
    ) -> Result<(Said, bool), Trouble> {
        let (say, lines) = mpsc::unbounded_channel();
        let _ = say.send(request);
        // Saying and hearing go on side by side: neither waits for a pipe that the other has filled.
        let said = tokio::select! {
            said = self.answer(say, known) => said?,
            never = speak(stdin, lines) => match never {},
        };
        // Its input is closed now, which tells it that nothing more is wanted.
        let rest = async {
            if self.line().await?.is_some() {
                return Err(Trouble::new(FailureKind::Refused, "says more after its answer"));
            }
            running.over().await;
            Ok(())
        };
        match tokio::time::timeout(END_GRACE, rest).await {
            Ok(Ok(())) => Ok((said, true)),
            Err(_) => Ok((said, false)),
            Ok(Err(trouble)) => Err(trouble),
        }
    }

    async fn answer(
        &mut self,
        say: mpsc::UnboundedSender<String>,
        known: &mut Known,
    ) -> Result<Said, Trouble> {
        for _ in 0..=MOST_SECRETS {
            let Some(line) = self.line().await? else {
                return Err(Trouble::with_status(FailureKind::Exit, "ended without an answer"));
            };
            let unreadable = |error: &dyn std::fmt::Display| {
                let error = for_people(&error.to_string());
                Trouble::new(FailureKind::Refused, format!("says what is no line of the protocol: {error}"))
            };
            let value = Value::from_json(&line).map_err(|error| unreadable(&error))?;
            let said = match known.value(&value).read::<Said>() {
                Ok(Said::Secret(name)) => {
                    let secret = self.program.secret(&name).await?;
                    let told = serde_json::json!({ "secret": name, "value": secret.reveal() });
                    known.learn(&secret);
                    let _ = say.send(told.to_string());
                    continue;
                }
                Ok(said) => said,
                Err(error) => return Err(unreadable(&error)),
            };
            return Ok(said);
        }
        Err(Trouble::new(FailureKind::Refused, format!("asks for secrets more than {MOST_SECRETS} times")))
    }

    /// The next line; nothing at the end.
    async fn line(&mut self) -> Result<Option<String>, Trouble> {
        let left = self.program.max_output.saturating_sub(self.heard);
        let mut line = Vec::new();
        let read = (&mut self.out).take(left as u64 + 1).read_until(b'\n', &mut line).await;
        read.map_err(|error| Trouble::new(FailureKind::Unreachable, format!("cannot be heard: {error}")))?;
        self.heard += line.len();
        if self.heard > self.program.max_output {
            let most = self.program.max_output;
            return Err(Trouble::new(FailureKind::Limit, format!("says more than {most} bytes")));
        }
        if line.is_empty() {
            return Ok(None);
        }
        if line.pop() != Some(b'\n') {
            let asked = self.ask.name();
            let why = format!("ended in the middle of its answer to `{asked}`");
            return Err(Trouble::with_status(FailureKind::Exit, why));
        }
        let text = String::from_utf8(line);
        text.map(Some).map_err(|_| Trouble::new(FailureKind::Refused, "says what is no text"))
    }
}

enum Never {}

/// Writes lines until its future is dropped, which closes the pipe. A program that does not read is heard all the same.
async fn speak(mut stdin: ChildStdin, mut lines: mpsc::UnboundedReceiver<String>) -> Never {
    while let Some(line) = lines.recv().await {
        let _ = stdin.write_all(format!("{line}\n").as_bytes()).await;
        let _ = stdin.flush().await;
    }
    std::future::pending().await
}

/// The end of what a program says on standard error.
#[derive(Default)]
struct Tail {
    text: Vec<u8>,
    /// There was more before it.
    cut: bool,
}

impl Tail {
    async fn listen(&mut self, mut pipe: impl AsyncRead + Unpin) -> Never {
        // As much as a pipe holds.
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = pipe.read(&mut buffer).await {
            self.text.extend_from_slice(&buffer[..count]);
            if self.text.len() > 2 * TOLD {
                self.text.drain(..self.text.len() - TOLD);
                self.cut = true;
            }
        }
        std::future::pending().await
    }

    /// Without secrets: these are looked for before it is cut to what is shown, and where it was cut already, what may be the
    /// end of one is left out. Blank space and secrets in it take no room in what is shown, so that place can be near.
    fn text(&self, known: &Known) -> String {
        let start = if self.cut { known.longest() } else { 0 };
        let clean = known.within(&self.text, start..self.text.len());
        let clean = String::from_utf8_lossy(&clean);
        let clean = clean.trim();
        let start = clean.char_indices().rev().nth(SHOWN - 1).map_or(0, |(at, _)| at);
        for_people(&clean[start..])
    }
}

impl Program {
    async fn secret(&self, name: &str) -> Result<farrier_model::Secret, Trouble> {
        let name = for_people(name);
        let Some(reference) = self.secrets.get(&name) else {
            return Err(Trouble::new(
                FailureKind::Denied,
                format!("asks for the secret `{name}`, which the environment does not give it here"),
            ));
        };
        let cx: &ConnectCx = &self.cx;
        let secret = reference.resolve(cx).await;
        let secret = secret.map_err(|failure| {
            Trouble::new(failure.kind, format!("asks for the secret `{name}`: {}", failure.message))
        })?;
        let length = secret.reveal().len();
        if !(SHORTEST_SECRET..=LONGEST_SECRET).contains(&length) {
            return Err(Trouble::new(
                FailureKind::Denied,
                format!(
                    "asks for the secret `{name}`, which has not {SHORTEST_SECRET} to {LONGEST_SECRET} bytes and \
                     could not be kept out of what it says"
                ),
            ));
        }
        Ok(secret)
    }
}
