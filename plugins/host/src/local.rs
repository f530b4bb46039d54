//! The machine that Farrier runs on, as a [`Transport`].

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind};

use crate::capture::Capture;
use crate::process::{self, Spec};
use crate::transport::{Command, Ended, Finished, Transport};
use crate::words;

/// Where programs without a slash are looked for, and the `PATH` of every command.
pub(crate) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The one host there is.
pub(crate) const NAME: &str = "localhost";

/// This machine.
#[derive(Debug, Default)]
pub(crate) struct Local {
    /// Programs by the name that runbooks use, found once.
    programs: Mutex<HashMap<String, PathBuf>>,
}

#[async_trait]
impl Transport for Local {
    async fn run(&self, _host: &str, command: &Command<'_>) -> Result<Finished, Failure> {
        let name = command.argv[0];
        let own: Vec<(&str, String)> = ["HOME", "USER", "LOGNAME"]
            .into_iter()
            .filter_map(|name| Some((name, std::env::var(name).ok()?)))
            .collect();
        let mut env = vec![("PATH", PATH), ("LANG", "C.UTF-8")];
        env.extend(own.iter().map(|(name, value)| (*name, value.as_str())));
        env.extend(command.marks.variables());
        env.extend(command.env.iter().copied());
        let spec = Spec {
            program: self.program(name)?,
            arguments: command.argv[1..].to_vec(),
            env,
            cwd: Path::new(command.cwd),
            stdin: command.stdin,
            max_output: command.max_output,
        };
        // Dropped by the timeout, the command is ended with all it started.
        match tokio::time::timeout(command.time_limit, process::run(spec)).await {
            Ok(Ok(finished)) => Ok(finished),
            Ok(Err(error)) => {
                self.forget(name);
                Err(not_started(command, &error))
            }
            Err(_) => Ok(Finished { ended: Ended::Late, stdout: Capture::new(0), stderr: Capture::new(0) }),
        }
    }

    fn find_program(&self, _host: &str, program: &str) -> Result<(), Failure> {
        self.program(program).map(drop)
    }
}

impl Local {
    /// The absolute path of a program. With a name to search for, starting a process would cost a copy of Farrier's
    /// page tables instead of microseconds.
    fn program(&self, name: &str) -> Result<PathBuf, Failure> {
        if name.starts_with('/') {
            return Ok(name.into());
        }
        let mut programs = self.programs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(path) = programs.get(name) {
            return Ok(path.clone());
        }
        let path = PATH.split(':').map(|folder| Path::new(folder).join(name)).find(|path| is_program(path));
        let path = path.ok_or_else(|| no_program(name))?;
        programs.insert(name.to_owned(), path.clone());
        Ok(path)
    }

    /// Forgets where a program was, since it is not there any more.
    fn forget(&self, name: &str) {
        self.programs.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
    }
}

/// There is no such program on a machine.
pub(crate) fn no_program(name: &str) -> Failure {
    Failure::new(FailureKind::Refused, format!("there is no program `{name}` on this machine"))
        .help(format!("it is looked for in {PATH}; a program elsewhere is written with its absolute path"))
}

/// There is no such folder on a machine.
pub(crate) fn no_folder(folder: &str) -> Failure {
    Failure::new(FailureKind::Refused, format!("there is no folder `{folder}` to run in"))
}

fn is_program(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn not_started(command: &Command<'_>, error: &std::io::Error) -> Failure {
    use std::io::ErrorKind as Io;
    if !Path::new(command.cwd).is_dir() {
        return no_folder(command.cwd);
    }
    let kind = match error.kind() {
        Io::PermissionDenied => FailureKind::Denied,
        Io::ArgumentListTooLong | Io::OutOfMemory => FailureKind::Limit,
        // Someone is just writing the program, or there are too many processes.
        Io::ExecutableFileBusy | Io::WouldBlock => FailureKind::Conflict,
        _ => FailureKind::Refused,
    };
    Failure::new(kind, format!("cannot start `{}`: {error}", words::command_line(&command.argv)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_once() {
        let host = Local::default();
        let found = host.program("true").unwrap();
        assert!(found.is_absolute() && found.ends_with("true"));
        assert_eq!(host.program("true").unwrap(), found);
        assert_eq!(host.program("/opt/x").unwrap(), Path::new("/opt/x"));
        let failure = host.program("no-such-program").unwrap_err();
        assert_eq!(failure.kind, FailureKind::Refused);
        assert!(failure.message.contains("no-such-program") && failure.help.unwrap().contains("/usr/bin"));
    }
}
