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
mod tests;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind};
use openssh::{Session, Stdio};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;
use uuid::Uuid;

use self::config::Settings;
use self::pool::Pool;
use self::wrapper::Marked;
use crate::local::{no_folder, no_program};
use crate::transport::{Command, Ended, Finished, Transport};
use crate::words;

/// The longest line that Linux lets a shell be given.
const LONGEST_LINE: usize = 128 << 10;
/// How long the other side has, after the time limit, to end a command and say so.
const SLACK: Duration = Duration::from_secs(20);
/// How long an output may be silent, after the command is over, until it is no longer waited for.
const OUTPUT_GRACE: Duration = Duration::from_secs(2);

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
        let mut child = Session::to_raw_command(session, line)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .await
            .map_err(|error| not_opened(host, &error, command.read_only))?;
        let (stdin, stdout, stderr) = (child.stdin().take(), child.stdout().take(), child.stderr().take());
        let (Some(mut stdin), Some(mut stdout), Some(mut stderr)) = (stdin, stdout, stderr) else {
            return Err(Failure::new(
                FailureKind::Internal,
                "a command on another host has no input or output",
            ));
        };
        let begun = Instant::now();
        let mut said = (Marked::new(&mark, command.max_output), Marked::new(&mark, command.max_output));
        let mut buffers = (vec![0; 16 << 10], vec![0; 16 << 10]);
        let mut open = (true, true);
        let mut input = command.stdin.unwrap_or_default().as_bytes();
        let mut status = None;
        let limit = Duration::from_secs(wrapper::seconds(command.time_limit));
        let wait = child.wait();
        tokio::pin!(wait);
        // The end of `stdin` would end the command, so it is kept until the command is over.
        while status.is_none() || open.0 || open.1 {
            let patience = match &status {
                None => (begun + limit + SLACK).saturating_duration_since(Instant::now()),
                Some(_) => OUTPUT_GRACE,
            };
            tokio::select! {
                read = stdout.read(&mut buffers.0), if open.0 => match read {
                    Ok(count @ 1..) => said.0.push(&buffers.0[..count]),
                    _ => open.0 = false,
                },
                read = stderr.read(&mut buffers.1), if open.1 => match read {
                    Ok(count @ 1..) => said.1.push(&buffers.1[..count]),
                    _ => open.1 = false,
                },
                written = stdin.write(input), if !input.is_empty() => match written {
                    Ok(count) => input = &input[count..],
                    Err(_) => input = &[],
                },
                ended = &mut wait, if status.is_none() => status = Some(ended),
                () = tokio::time::sleep(patience) => break,
            }
        }
        drop(stdin);
        match status {
            None => Err(in_doubt(
                Failure::new(
                    FailureKind::Timeout,
                    format!(
                        "the host `{host}` did not say that the command ended, long after its `time_limit`"
                    ),
                ),
                command.read_only,
            )),
            Some(status) => judge(host, command, status, said, begun.elapsed() >= limit),
        }
    }
}

/// What became of a command whose end was reported, or whose connection is gone.
fn judge(
    host: &str,
    command: &Command<'_>,
    status: Result<std::process::ExitStatus, openssh::Error>,
    (stdout, stderr): (Marked, Marked),
    late: bool,
) -> Result<Finished, Failure> {
    let code = match status {
        Ok(status) => status.code(),
        // What the library makes of this code.
        Err(openssh::Error::Remote(error)) if error.kind() == std::io::ErrorKind::NotFound => Some(127),
        Err(_) => None,
    };
    let Some(code) = code else {
        let failure =
            Failure::new(FailureKind::Unreachable, format!("the connection to the host `{host}` was cut"));
        return Err(in_doubt(failure, command.read_only));
    };
    let at = |failure: Failure| Failure { message: format!("on `{host}`: {}", failure.message), ..failure };
    if let Some(reason) = stderr.not_started() {
        return Err(at(match reason.as_str() {
            "folder" => no_folder(command.cwd),
            "" => Failure::new(
                FailureKind::Refused,
                format!("its shell ended with code {code} and said nothing"),
            ),
            reason => Failure::new(FailureKind::Refused, words::shortened(reason, 300)),
        }));
    }
    let (stdout, stderr) = (stdout.capture, stderr.capture);
    let name = command.argv[0];
    let last = if matches!(code, 126 | 127) { stderr.clone().text() } else { String::new() };
    let ended = match code {
        127 if last.starts_with("env: ") => return Err(at(no_program(name))),
        126 if last.starts_with("env: ") => {
            let message = format!("cannot start `{name}`: {}", last.trim());
            return Err(at(Failure::new(FailureKind::Denied, message)));
        }
        // By the signals that end it: TERM, or KILL when it does not obey.
        143 | 137 if late => Ended::Late,
        code => Ended::Code(code),
    };
    Ok(Finished { ended, stdout, stderr })
}

/// The connection did not take the command.
fn not_opened(host: &str, error: &openssh::Error, read_only: bool) -> Failure {
    let refused = matches!(error, openssh::Error::SshMux(_));
    let mut said = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        said = error.to_string();
        source = error.source();
    }
    if refused && (said.contains("refused") || said.contains("Refused")) {
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
