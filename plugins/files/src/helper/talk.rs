//! One helper's life, from the side of whoever asks.
//!
//! Its standard input stays open as long as its answer is waited for: a helper without a caller ends, on this machine and
//! behind SSH, also when Farrier is killed.

use std::fs::File;
use std::io::Write as _;
use std::process::Stdio;
use std::time::Duration;

use farrier_model::{Failure, FailureKind};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, BufReader};
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;

use super::listen::head;
use super::wire::{Answer, LONGEST_ANSWER, Told};

/// What is kept of what a helper says beside its answer.
const TOLD: u64 = 4 << 10;

/// A helper that was asked something.
pub(crate) struct Talk {
    /// For messages.
    shown: String,
    child: Option<Child>,
    /// What it says beside its answers.
    aside: Option<JoinHandle<String>>,
    /// Plain, since what is sent through it may be written by threads that wait.
    input: Option<File>,
    output: BufReader<Box<dyn AsyncRead + Send + Unpin>>,
}

impl Talk {
    /// Starts the helper with a command.
    pub(super) fn with_process(words: &[String]) -> Result<Talk, Failure> {
        let shown = words[0].clone();
        let mut command = Command::new(&shown);
        command.args(&words[1..]).env_clear().kill_on_drop(true);
        for name in ["PATH", "HOME", "SSH_AUTH_SOCK"] {
            command.envs(std::env::var_os(name).map(|value| (name, value)));
        }
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Nothing was begun, so nothing is in doubt.
        let not_started = |error: &dyn std::fmt::Display| {
            Failure::new(FailureKind::Input, format!("cannot start the files helper `{shown}`: {error}"))
        };
        let mut child = command.spawn().map_err(|error| not_started(&error))?;
        let (Some(stdin), Some(stdout), Some(stderr)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Err(Failure::new(FailureKind::Internal, "the files helper has no pipes"));
        };
        let input = stdin.into_owned_fd().map_err(|error| not_started(&error))?;
        let aside = tokio::spawn(async move {
            let mut text = Vec::new();
            let _ = stderr.take(TOLD).read_to_end(&mut text).await;
            String::from_utf8_lossy(&text).trim().to_owned()
        });
        Ok(Talk {
            shown,
            child: Some(child),
            aside: Some(aside),
            input: Some(input.into()),
            output: BufReader::new(Box::new(stdout)),
        })
    }

    /// The same in a thread of this process: all of it but the process.
    #[cfg(test)]
    pub(super) fn with_thread(folders: super::roots::Folders) -> Talk {
        use super::listen::listen;
        use super::serve::{Out, converse};

        let (asked, input) = std::io::pipe().unwrap();
        let (output, answers) = std::io::pipe().unwrap();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let _ = runtime.block_on(converse(&folders, listen(asked, || {}), &Out::new(answers)));
        });
        let output = tokio::net::unix::pipe::Receiver::from_owned_fd(output.into()).unwrap();
        Talk {
            shown: "here".into(),
            child: None,
            aside: None,
            input: Some(File::from(std::os::fd::OwnedFd::from(input))),
            output: BufReader::new(Box::new(output)),
        }
    }

    /// Sends bytes. A helper that does not take them all may have said why, so that is no error yet.
    pub(super) async fn say(&mut self, bytes: Vec<u8>) -> Result<(), Failure> {
        let Some(mut input) = self.input.take() else { return Ok(()) };
        let sent = tokio::task::spawn_blocking(move || {
            let _ = input.write_all(&bytes);
            input
        });
        let ended = |error| Failure::new(FailureKind::Internal, format!("sending ended early: {error}"));
        self.input = Some(sent.await.map_err(ended)?);
        Ok(())
    }

    /// Sends a frame of a body.
    pub(crate) async fn say_frame(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.say([&head(bytes.len()), bytes].concat()).await
    }

    /// Lends what the helper reads from, to be sent a body. The helper ends when all that reads from it is gone, so the
    /// lent one is a second handle on the same.
    pub(crate) fn lend(&self) -> Result<File, Failure> {
        let lent = self.input.as_ref().map(File::try_clone).transpose();
        let none =
            |why: String| Failure::new(FailureKind::Internal, format!("no way to the files helper: {why}"));
        lent.map_err(|error| none(error.to_string()))?.ok_or_else(|| none("it is closed".into()))
    }

    /// The next answer.
    pub(crate) async fn hear<T: DeserializeOwned>(&mut self) -> Result<Answer<T>, Failure> {
        let mut line = String::new();
        let read = (&mut self.output).take(LONGEST_ANSWER as u64 + 1).read_line(&mut line).await;
        if read.is_ok() && line.ends_with('\n') {
            return serde_json::from_str(&line).map_err(|error| {
                // Where, and not what: an answer can hold a secret.
                let place = error.column();
                self.gone(format_args!("gave an answer that cannot be read, from its byte {place} on"))
            });
        }
        if line.len() > LONGEST_ANSWER {
            return Err(self.gone(format_args!("says more than {LONGEST_ANSWER} bytes")));
        }
        if let Some(child) = &mut self.child {
            let _ = tokio::time::timeout(Duration::from_secs(5), child.wait()).await;
        }
        let aside = match self.aside.take() {
            Some(aside) => {
                tokio::time::timeout(Duration::from_secs(1), aside).await.ok().and_then(Result::ok)
            }
            None => None,
        };
        Err(match aside.filter(|said| !said.is_empty()) {
            Some(said) => self.gone(format_args!("gave no answer: {said}")),
            None => self.gone(format_args!("gave no answer")),
        })
    }

    /// The one answer.
    pub(crate) async fn done<T: DeserializeOwned>(&mut self) -> Result<T, Failure> {
        self.done_telling(|_| {}).await
    }

    /// The same; `heard` is told how far the helper has come until then.
    pub(crate) async fn done_telling<T: DeserializeOwned>(
        &mut self,
        heard: impl Fn(Told),
    ) -> Result<T, Failure> {
        loop {
            match self.hear().await? {
                Answer::Progress(told) => heard(told),
                Answer::Done(done) => return Ok(done),
                Answer::Failed(failure) => return Err(failure),
                Answer::Ready {} | Answer::Part(_) => return Err(odd()),
            }
        }
    }

    fn gone(&self, why: std::fmt::Arguments<'_>) -> Failure {
        Failure::new(FailureKind::Unreachable, format!("the files helper `{}` {why}", self.shown))
    }
}

/// It makes no sense, and so nobody knows what was done.
pub(crate) fn odd() -> Failure {
    let message = "the files helper answered something else than it was asked";
    Failure::new(FailureKind::Refused, message).in_doubt()
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(words: &[&str]) -> Result<u32, Failure> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        let mut talk = Talk::with_process(&words)?;
        talk.say(b"{}\n".to_vec()).await?;
        talk.done().await
    }

    #[tokio::test]
    async fn a_helper_that_does_not_answer_is_told_of() {
        for (words, expected) in [
            (&["/nowhere/farrier"][..], "cannot start the files helper `/nowhere/farrier`"),
            (&["false"], "gave no answer"),
            (&["sh", "-c", "echo it is forbidden >&2; exit 1"], "gave no answer: it is forbidden"),
            (&["sh", "-c", "printf half"], "gave no answer"),
            (&["sh", "-c", "echo '{\"done\": \"secret\"}'"], "cannot be read, from its byte"),
        ] {
            let failure = asked(words).await.unwrap_err();
            assert!(failure.message.contains(expected), "{words:?}: {failure}");
            assert!(!failure.message.contains("secret"), "{failure}");
        }
        for answer in ["{\"part\": 1}", "{\"ready\": {}}"] {
            let failure = asked(&["sh", "-c", &format!("echo '{answer}'")]).await.unwrap_err();
            assert!(failure.in_doubt, "{failure}");
        }
        // What it has said is its answer, whether or not it took all that it was told.
        assert_eq!(asked(&["sh", "-c", "exec <&-; echo '{\"done\": 7}'"]).await.unwrap(), 7);
    }
}
