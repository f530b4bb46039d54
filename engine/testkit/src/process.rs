//! A server process under a supervisor that ends it when the test process is gone.
//!
//! The supervisor is a shell of a few lines. It starts the server, then reads its standard input, a pipe whose other
//! end only this process holds. A line on it is an order to stop with a named signal; the end of it, which is all that
//! remains after a crash or `kill -9` of the test process, means: end the server now and remove its folder.
//! `setpriv --pdeathsig` covers the supervisor's own death the same way.

use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, anyhow, bail, ensure};

use crate::DEADLINE;

/// $1 log file, $2 folder to remove at the end, $3 signal for a sudden end; the rest is the server's command line.
const SUPERVISOR: &str = r#"
trap '' HUP
log=$1 folder=$2 sudden=$3
shift 3
"$@" </dev/null >>"$log" 2>&1 &
server=$!
echo "$server"
# The shell would say `Killed` where the tests' own output goes.
exec 2>/dev/null
if read -r signal; then keep=yes; else signal=$sudden keep=no; fi
kill -s "$signal" "$server"
wait "$server"
status=$?
if [ "$keep" = no ]; then rm -rf -- "$folder"; fi
exit "$status"
"#;

/// How to start one server.
pub(crate) struct Launch<'a> {
    /// The program and its arguments.
    pub(crate) command: Vec<OsString>,
    /// The account to run as, when the caller is root; see [`Account`].
    pub(crate) account: &'a Account,
    /// The folder that goes with the server; the working directory too.
    pub(crate) folder: &'a Path,
    /// Where standard output and error of the server go, added to the end.
    pub(crate) log: &'a Path,
    /// The signal that ends the server when nothing of its data is wanted any more.
    pub(crate) sudden: &'static str,
    /// The text in the log that says it accepts connections.
    pub(crate) ready: &'static str,
}

/// A running server and its supervisor. Dropping it ends both and removes the folder.
#[derive(Debug)]
pub(crate) struct Process {
    supervisor: Child,
    server: u32,
}

impl Process {
    /// Starts the server and waits until its log says that it is ready.
    pub(crate) fn start(launch: &Launch<'_>) -> Result<Self> {
        let already_logged = std::fs::metadata(launch.log).map_or(0, |metadata| metadata.len());
        let program = launch.command.first().context("no program named")?.to_string_lossy().into_owned();
        let mut supervisor = Command::new("/bin/sh")
            .args(["-c", SUPERVISOR, "farrier-testkit"])
            .arg(launch.log)
            .arg(launch.folder)
            .arg(launch.sudden)
            .args(["setpriv", "--pdeathsig", "KILL"])
            .args(launch.account.setpriv_options())
            .arg("--")
            .args(&launch.command)
            .current_dir(launch.folder)
            // Its own group: Ctrl-C at a terminal must not end the supervisor before the server.
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start /bin/sh")?;
        let mut first_line = String::new();
        if let Some(output) = supervisor.stdout.take() {
            BufReader::new(output).read_line(&mut first_line).context("cannot read from the supervisor")?;
        }
        let server = first_line.trim().parse().with_context(|| format!("`{program}` did not start"))?;
        let process = Process { supervisor, server };
        let logged = || {
            let text = std::fs::read(launch.log).unwrap_or_default();
            String::from_utf8_lossy(text.get(already_logged as usize..).unwrap_or_default()).into_owned()
        };
        let settled = crate::waited(DEADLINE, || logged().contains(launch.ready) || !process.is_running());
        let said = logged();
        if said.contains(launch.ready) {
            return Ok(process);
        }
        let trouble = if settled { "ended at once" } else { "did not become ready" };
        Err(anyhow!("`{program}` {trouble}; it said:\n{}", last_lines(&said, 30)))
    }

    /// The server's process id.
    pub(crate) fn id(&self) -> u32 {
        self.server
    }

    /// Whether the server still runs. A server that ended stays a zombie until its supervisor is told to stop.
    pub(crate) fn is_running(&self) -> bool {
        is_running(self.server)
    }

    /// Ends the server with `signal` and waits for it; its folder stays.
    pub(crate) fn stop(mut self, signal: &str) -> Result<()> {
        if let Some(mut orders) = self.supervisor.stdin.take() {
            writeln!(orders, "{signal}").context("the supervisor is gone")?;
        }
        self.supervisor.wait().context("cannot wait for the supervisor")?;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        drop(self.supervisor.stdin.take());
        let _ = self.supervisor.wait();
    }
}

/// Whether process `id` exists and has not ended.
pub(crate) fn is_running(id: u32) -> bool {
    // The state follows the name, which is in parentheses and may hold anything.
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// The account a server runs as. Database servers refuse root, so a root caller lends them their package's account.
#[derive(Debug, Clone)]
pub(crate) struct Account(Option<AccountIds>);

#[derive(Debug, Clone)]
struct AccountIds {
    user: u32,
    group: u32,
}

impl Account {
    /// The caller's own account.
    pub(crate) fn own() -> Self {
        Account(None)
    }

    /// The account `name` when the caller is root, else the caller's own.
    pub(crate) fn lent(name: &str) -> Result<Self> {
        if !running_as_root()? {
            return Ok(Account(None));
        }
        let accounts = std::fs::read_to_string("/etc/passwd").context("cannot read /etc/passwd")?;
        let ids = accounts.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next() == Some(name)).then_some(())?;
            Some(AccountIds { user: fields.nth(1)?.parse().ok()?, group: fields.next()?.parse().ok()? })
        });
        let ids = ids.with_context(|| format!("no account `{name}`: is the server's package installed?"))?;
        Ok(Account(Some(ids)))
    }

    /// Gives `path` to the account, when it is not the caller's own.
    pub(crate) fn take(&self, path: &Path) -> Result<()> {
        match &self.0 {
            Some(ids) => chown(path, Some(ids.user), Some(ids.group))
                .with_context(|| format!("cannot change the owner of `{}`", path.display())),
            None => Ok(()),
        }
    }

    /// A command that runs `program` as this account.
    pub(crate) fn command(&self, program: &Path) -> Command {
        let mut command;
        if self.0.is_some() {
            command = Command::new("setpriv");
            command.args(self.setpriv_options()).arg("--").arg(program);
        } else {
            command = Command::new(program);
        }
        command
    }

    fn setpriv_options(&self) -> Vec<String> {
        match &self.0 {
            Some(ids) => {
                vec![
                    format!("--reuid={}", ids.user),
                    format!("--regid={}", ids.group),
                    "--clear-groups".to_owned(),
                ]
            }
            None => Vec::new(),
        }
    }
}

/// Whether this process runs as root.
pub(crate) fn running_as_root() -> Result<bool> {
    Ok(std::fs::metadata("/proc/self").context("cannot read /proc/self")?.uid() == 0)
}

/// Where `program` is: on the `PATH`, or where Debian keeps servers, which an ordinary account's `PATH` leaves out.
pub fn find_program(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/usr/local/sbin", "/sbin", "/usr/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|folder| folder.join(program)).find(|file| file.is_file())
}

/// Where `program` is, or an error that names the package to install.
pub(crate) fn require_program(program: &str, package: &str) -> Result<PathBuf> {
    find_program(program).with_context(|| {
        format!("`{program}` is not installed; `cargo xtask test` installs it, or: apt-get install {package}")
    })
}

/// Runs a command that must succeed, with `input` on its standard input, and returns what it printed.
pub(crate) fn run(command: &mut Command, input: &str) -> Result<String> {
    let output = run_any(command, input)?;
    let name = Path::new(command.get_program())
        .file_name()
        .unwrap_or(OsStr::new("?"))
        .to_string_lossy()
        .into_owned();
    ensure!(
        output.status.success(),
        "`{name}` failed ({}): {}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim(),
        last_lines(&String::from_utf8_lossy(&output.stdout), 10),
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn run_any(command: &mut Command, input: &str) -> Result<Output> {
    let name = command.get_program().to_string_lossy().into_owned();
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{name}`"))?;
    let Some(mut stdin) = child.stdin.take() else { bail!("`{name}` has no standard input") };
    // Written beside the reading of its output, so that neither side waits for a full pipe.
    let output = std::thread::scope(|scope| {
        scope.spawn(move || {
            // A program that stops reading early says why on its own.
            let _ = stdin.write_all(input.as_bytes());
        });
        child.wait_with_output()
    });
    output.with_context(|| format!("cannot wait for `{name}`"))
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

/// Tries `start` with several free ports: another process can take one between its choice and its use.
pub(crate) fn on_a_free_port<T>(mut start: impl FnMut(u16) -> Result<T>) -> Result<T> {
    let mut last = anyhow!("never tried");
    for _ in 0..4 {
        match start(crate::free_port()) {
            Ok(started) => return Ok(started),
            Err(error) => last = error,
        }
    }
    Err(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sleeper<'a>(folder: &'a Path, log: &'a Path, account: &'a Account) -> Launch<'a> {
        Launch {
            command: ["sh", "-c", "echo ready; exec sleep 1000"].map(OsString::from).to_vec(),
            account,
            folder,
            log,
            sudden: "KILL",
            ready: "ready",
        }
    }

    #[test]
    fn dropping_a_process_ends_the_server_and_removes_its_folder() {
        let folder = crate::temp_dir();
        let log = folder.path().join("log");
        let process = Process::start(&sleeper(folder.path(), &log, &Account::own())).unwrap();
        let server = process.id();
        assert!(process.is_running());
        drop(process);
        assert!(!is_running(server));
        assert!(!folder.path().exists());
    }

    #[test]
    fn stopping_keeps_the_folder() {
        let folder = crate::temp_dir();
        let log = folder.path().join("log");
        let process = Process::start(&sleeper(folder.path(), &log, &Account::own())).unwrap();
        let server = process.id();
        process.stop("TERM").unwrap();
        assert!(!is_running(server));
        assert!(log.exists());
    }

    #[test]
    fn a_server_that_ends_at_once_is_reported_with_its_last_words() {
        let folder = crate::temp_dir();
        let log = folder.path().join("log");
        let account = Account::own();
        let mut launch = sleeper(folder.path(), &log, &account);
        launch.command = ["sh", "-c", "echo no such port >&2; exit 3"].map(OsString::from).to_vec();
        let error = Process::start(&launch).unwrap_err().to_string();
        assert!(error.contains("`sh` ended at once") && error.contains("no such port"), "{error}");
    }

    #[test]
    fn a_panicking_test_ends_its_server() {
        let folder = crate::temp_dir();
        let log = folder.path().join("log");
        let process = Process::start(&sleeper(folder.path(), &log, &Account::own())).unwrap();
        let server = process.id();
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            assert!(!process.is_running(), "as a failing test does");
        }));
        assert!(panicked.is_err());
        assert!(!is_running(server));
    }

    #[test]
    fn the_death_of_the_supervisor_takes_the_server_along() {
        let folder = crate::temp_dir();
        let log = folder.path().join("log");
        let mut process = Process::start(&sleeper(folder.path(), &log, &Account::own())).unwrap();
        let server = process.id();
        process.supervisor.kill().unwrap();
        crate::wait_until("the server to end", || !is_running(server));
    }

    #[test]
    fn a_failing_command_is_reported_with_its_error_output() {
        let error =
            run(Command::new("sh").args(["-c", "cat >&2; exit 4"]), "the reason").unwrap_err().to_string();
        assert!(error.contains("`sh` failed") && error.contains("the reason"), "{error}");
        assert_eq!(run(&mut Command::new("cat"), "as given").unwrap(), "as given");
    }

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = require_program("no-such-server", "no-such-package").unwrap_err().to_string();
        assert!(error.contains("apt-get install no-such-package"), "{error}");
    }
}
