//! Hosts behind SSH, as a [`Transport`].
//!
//! Read first: [`config`] (what an environment says, and what is made sure whatever it says), then [`wrapper`] (how a
//! command lives on the other side), then [`pool`] (connections).
//!
//! **Rule:** once a command may have been started, whatever goes wrong with the connection leaves it in doubt; before, it
//! is not.

pub(crate) mod config;
mod pool;
mod quote;
mod wrapper;

#[cfg(test)]
mod fleet_tests;
#[cfg(test)]
mod terminal_tests;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod word_tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind};
use openssh::{Session, Stdio};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use uuid::Uuid;

use self::config::Settings;
use self::pool::{Connection, Pool};
use self::wrapper::{Marked, State};
use crate::local::{no_folder, no_program};
use crate::transport::{Command, Ended, Finished, Transport};
use crate::words;

/// The longest line that Linux lets a shell be given.
const LONGEST_LINE: usize = 128 << 10;
/// How long the other side has, after the time limit, to end a command and say so.
const SLACK: Duration = Duration::from_secs(20);
/// How often a refused command is asked for again, with longer and longer pauses.
const TRIES: u32 = 5;

/// Many hosts.
#[derive(Debug)]
pub(crate) struct Ssh {
    pool: Arc<Pool>,
}

impl Ssh {
    pub(crate) fn new(settings: Settings) -> Result<Ssh, Failure> {
        Ok(Ssh { pool: Pool::of(settings)? })
    }
}

#[async_trait]
impl Transport for Ssh {
    async fn run(&self, host: &str, command: &Command<'_>) -> Result<Finished, Failure> {
        let mark = format!("farrier {}", Uuid::new_v4());
        let line = wrapper::command_line(command, &mark);
        if line.len() >= LONGEST_LINE {
            let shown = words::command_line(&command.argv);
            let message =
                format!("`{}` is too long for a command on another host", words::shortened(&shown, 100));
            return Err(Failure::new(FailureKind::Limit, message));
        }
        if command.stdin.is_some_and(|text| text.contains('\0')) {
            return Err(Failure::new(FailureKind::Input, "`stdin` contains a NUL character"));
        }
        let slot = self.pool.slot(host);
        let _place = slot.place().await?;
        let session = self.pool.session(host, &slot).await?;
        let mut child = start(host, &session, &line, command.read_only).await?;
        let (stdin, stdout, stderr) = (child.stdin().take(), child.stdout().take(), child.stderr().take());
        let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) = (stdin, stdout, stderr) else {
            return Err(Failure::new(
                FailureKind::Internal,
                "a command on another host has no input or output",
            ));
        };
        let begun = Instant::now();
        let mut said = (Marked::new(&mark, command.max_output), Marked::new(&mark, command.max_output));
        let mut input = command.stdin.unwrap_or_default().as_bytes();
        let limit = Duration::from_secs(wrapper::seconds(command.time_limit));
        let ended = {
            let hear =
                async { tokio::join!(listen(&mut stdout, &mut said.0), listen(&mut stderr, &mut said.1)) };
            let feed = async {
                while !input.is_empty() {
                    match stdin.write(input).await {
                        Ok(count @ 1..) => input = &input[count..],
                        // A script that ended early, or a connection that is gone: the outputs tell.
                        _ => break,
                    }
                }
                // Its end would end the command.
                std::future::pending::<()>().await;
            };
            tokio::select! {
                _ = hear => true,
                () = feed => false,
                () = tokio::time::sleep(limit + SLACK) => false,
            }
        };
        if !ended {
            let message =
                format!("the host `{host}` did not say that the command ended, long after its `time_limit`");
            return Err(in_doubt(Failure::new(FailureKind::Timeout, message), command.read_only));
        }
        let late = begun.elapsed() >= limit;
        if let (State::Over(code), State::Over(_)) = (said.0.state(), said.1.state()) {
            return judge(command, *code, said, late).map_err(|failure| on(host, failure));
        }
        if let State::Stopped(reason) = said.1.state() {
            return Err(on(
                host,
                match reason.as_str() {
                    "folder" => no_folder(command.cwd),
                    reason => Failure::new(FailureKind::Refused, words::shortened(reason, 300)),
                },
            ));
        }
        // The outputs are at their end, so asking for the status cuts nothing off any more.
        drop(stdin);
        let code = child.wait().await.ok().and_then(|status| status.code());
        match (said.1.state(), code) {
            // The account's shell ended in good order, and all that it said has arrived: our script never began.
            (State::Before, Some(code)) => {
                let before = said.1.before();
                let shown = words::last_of(&before);
                let message = format!("the account's shell ended with code {code}: {shown}");
                Err(on(host, Failure::new(FailureKind::Refused, message)))
            }
            _ => {
                let message = format!("the connection to the host `{host}` was cut");
                Err(in_doubt(Failure::new(FailureKind::Unreachable, message), command.read_only))
            }
        }
    }
}

/// Starts the command on the connection. A server counts one that is over for a moment longer than we do: what it refuses
/// for that has not begun, and is asked for again.
async fn start(
    host: &str,
    session: &Connection,
    line: &str,
    read_only: bool,
) -> Result<openssh::Child<Connection>, Failure> {
    let mut tried = 0;
    loop {
        let begun = Session::to_raw_command(session.clone(), line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .await;
        match begun {
            Ok(child) => return Ok(child),
            Err(error) if tried < TRIES && refused(&error) => {
                tried += 1;
                tokio::time::sleep(Duration::from_millis(25 << tried)).await;
            }
            Err(error) => return Err(not_opened(host, &error, read_only)),
        }
    }
}

/// Reads an output until the command is over, or to its end.
async fn listen(pipe: &mut (impl AsyncRead + Unpin), output: &mut Marked) {
    let mut buffer = vec![0; 16 << 10];
    while !matches!(output.state(), State::Over(_) | State::Stopped(_)) {
        match pipe.read(&mut buffer).await {
            Ok(count @ 1..) => output.push(&buffer[..count]),
            _ => break,
        }
    }
    output.close();
}

/// What became of a command that ended.
fn judge(
    command: &Command<'_>,
    code: i32,
    (stdout, stderr): (Marked, Marked),
    late: bool,
) -> Result<Finished, Failure> {
    let (stdout, stderr) = (stdout.capture, stderr.capture);
    let name = command.argv[0];
    let said = if matches!(code, 126 | 127) { stderr.clone().text() } else { String::new() };
    let ended = match code {
        127 if said.starts_with("env: ") => return Err(no_program(name)),
        126 if said.starts_with("env: ") => {
            return Err(Failure::new(FailureKind::Denied, format!("cannot start `{name}`: {}", said.trim())));
        }
        // What `timeout` says when it has ended it with TERM, or with KILL when that is not obeyed.
        124 | 137 if late => Ended::Late,
        code => Ended::Code(code),
    };
    Ok(Finished { ended, stdout, stderr })
}

fn on(host: &str, failure: Failure) -> Failure {
    Failure { message: format!("on `{host}`: {}", failure.message), ..failure }
}

/// The server takes no further command on this connection now.
fn refused(error: &openssh::Error) -> bool {
    matches!(error, openssh::Error::SshMux(_)) && innermost(error).to_ascii_lowercase().contains("refused")
}

/// What the last error of the chain says.
fn innermost(error: &openssh::Error) -> String {
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        said = error.to_string();
        source = error.source();
    }
    said
}

/// The connection did not take the command.
fn not_opened(host: &str, error: &openssh::Error, read_only: bool) -> Failure {
    let said = innermost(error);
    if refused(error) {
        let message = format!("the host `{host}` takes no further command on this connection: {said}");
        return Failure::new(FailureKind::Conflict, message)
            .help("lower `ssh.commands_per_host`, or raise `MaxSessions` of its server");
    }
    // The request was on its way.
    in_doubt(
        Failure::new(
            FailureKind::Unreachable,
            format!("the connection to the host `{host}` was cut: {said}"),
        ),
        read_only,
    )
}

fn in_doubt(failure: Failure, read_only: bool) -> Failure {
    if read_only { failure } else { failure.in_doubt() }
}
