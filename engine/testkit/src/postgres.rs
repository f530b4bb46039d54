//! A PostgreSQL server, and databases of their own for tests on it.
//!
//! ```no_run
//! use farrier_testkit::postgres::Postgres;
//!
//! let database = Postgres::shared().fresh_database();
//! database.exec("CREATE TABLE tools (name text PRIMARY KEY)");
//! // … plan something at database.url() …
//! assert_eq!(database.writes(), Vec::<String>::new());
//! ```
//!
//! Tests share one server: `cargo xtask test` starts it and names it in `FARRIER_TEST_POSTGRES_URL`; without that, each
//! test process starts one when it first needs it. A test that stops the server, or changes its settings, starts its
//! own with [`Postgres::start`].

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};
use tempfile::TempDir;

pub use crate::database::Database;
use crate::database::Dialect;
use crate::process::{self, Account, Launch, Process, on_a_free_port, require_program};
use crate::server_url::ServerUrl;
use crate::{or_panic, template};

/// The environment variable that names a running server.
pub const URL_VARIABLE: &str = "FARRIER_TEST_POSTGRES_URL";

const PACKAGE: &str = "postgresql";
/// What the server's administrator is called, and the password too.
const ADMIN: &str = "farrier";

/// A PostgreSQL server: one that runs already, or one of our own that ends when the value is dropped.
#[derive(Debug)]
pub struct Postgres {
    url: ServerUrl,
    // Before the folder, so that the server is gone when the folder goes.
    process: Option<Process>,
    folder: Option<TempDir>,
}

impl Postgres {
    /// The server that tests share.
    #[track_caller]
    pub fn shared() -> &'static Postgres {
        static SHARED: OnceLock<Postgres> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var(URL_VARIABLE) {
            Ok(url) => {
                Postgres { url: or_panic(ServerUrl::parse(&url), URL_VARIABLE), process: None, folder: None }
            }
            Err(_) => Self::start(),
        })
    }

    /// Starts a server of the caller's own; panics with its last words when it does not start.
    #[track_caller]
    pub fn start() -> Self {
        or_panic(Self::try_start(), "cannot start PostgreSQL")
    }

    /// Starts a server, or says why not.
    pub fn try_start() -> Result<Self> {
        let server = server_program("postgres")?;
        let maker = server_program("initdb")?;
        require_program("psql", "postgresql-client")?;
        let version = process::run(Command::new(&server).arg("--version"), "")?;
        let account = Account::lent("postgres")?;
        let folder = crate::temp_dir();
        account.take(folder.path())?;
        template::copy("postgres", &version, &folder.path().join("data"), |folder| {
            make_data_folder(&maker, folder, &account)
        })?;
        let (port, process) =
            on_a_free_port(|port| Ok((port, launch(&server, &account, folder.path(), port)?)))?;
        let url = ServerUrl {
            scheme: "postgres".to_owned(),
            user: ADMIN.to_owned(),
            password: ADMIN.to_owned(),
            host: "127.0.0.1".to_owned(),
            port,
        };
        Ok(Postgres { url, process: Some(process), folder: Some(folder) })
    }

    /// `postgres://USER:PASSWORD@127.0.0.1:PORT`, as an administrator who may do everything.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// A new empty database with an administrator of its own, both gone when the value is dropped.
    #[track_caller]
    pub fn fresh_database(&self) -> Database {
        let name = crate::unique_name();
        let reader = format!("{name}_reader");
        let sql = format!(
            "CREATE ROLE {name} LOGIN SUPERUSER PASSWORD '{name}';
             CREATE ROLE {reader} LOGIN IN ROLE pg_read_all_data PASSWORD '{reader}';
             CREATE DATABASE {name} OWNER {name};"
        );
        or_panic(client(&self.url, None, &sql), "cannot make a database");
        Database { server: self.url.clone(), name, reader, dialect: DIALECT }
    }

    /// The server's process id, while it runs and is our own.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Stops the server; connections break. What it holds stays, for [`Postgres::start_again`].
    #[track_caller]
    pub fn stop(&mut self) {
        assert!(
            self.folder.is_some(),
            "a shared server cannot be stopped: start your own with `Postgres::start()`"
        );
        if let Some(process) = self.process.take() {
            or_panic(process.stop("INT"), "cannot stop PostgreSQL");
        }
    }

    /// Starts the stopped server again, with the same databases at the same address.
    #[track_caller]
    pub fn start_again(&mut self) {
        let (None, Some(folder)) = (&self.process, &self.folder) else { return };
        let started = server_program("postgres")
            .and_then(|server| launch(&server, &Account::lent("postgres")?, folder.path(), self.url.port));
        self.process = Some(or_panic(started, "cannot start PostgreSQL again"));
    }
}

const DIALECT: &Dialect = &Dialect {
    run: client,
    statements: |database| {
        // The server tells where its log is, so this works for a shared server too.
        let log = database.exec("SHOW farrier.log");
        let log = or_panic(
            std::fs::read(log.trim()).with_context(|| format!("cannot read `{}`", log.trim())),
            "cannot read the statement log",
        );
        logged_statements(&String::from_utf8_lossy(&log), &database.name)
    },
    drop: |database| {
        let (name, reader) = (&database.name, &database.reader);
        // The server may be stopped; its folder goes with it then.
        let _ = client(&database.server, None, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE);"));
        let _ = client(&database.server, None, &format!("DROP ROLE IF EXISTS {name}, {reader};"));
    },
};

/// The statements that the log holds for `database`. A line of the log begins with the database's name and `|`; the
/// further lines of a statement begin with a tab.
fn logged_statements(log: &str, database: &str) -> Vec<String> {
    let mut statements: Vec<String> = Vec::new();
    let mut within = false;
    for line in log.lines() {
        if let (true, Some(more), Some(statement)) = (within, line.strip_prefix('\t'), statements.last_mut())
        {
            statement.push('\n');
            statement.push_str(more);
            continue;
        }
        let message = line.strip_prefix(database).and_then(|rest| rest.strip_prefix("|LOG:  "));
        let statement = message.and_then(|message| {
            message.strip_prefix("statement: ").or_else(|| {
                // `execute NAME: TEXT`, as drivers with prepared statements send it.
                message.strip_prefix("execute ").and_then(|rest| rest.split_once(": ")).map(|(_, text)| text)
            })
        });
        within = statement.is_some();
        statements.extend(statement.map(str::to_owned));
    }
    statements
}

/// Runs SQL with the command-line client, outside the statement log.
fn client(server: &ServerUrl, database: Option<&str>, sql: &str) -> Result<String> {
    let mut command = Command::new(require_program("psql", "postgresql-client")?);
    command
        .args(["--no-psqlrc", "--quiet", "--no-align", "--tuples-only", "--no-password"])
        .args(["--set=ON_ERROR_STOP=1", "--pset=null=NULL", "--field-separator=\t"])
        .arg(format!("--host={}", server.host))
        .arg(format!("--port={}", server.port))
        .arg(format!("--username={}", server.user))
        .arg(format!("--dbname={}", database.unwrap_or("postgres")))
        .env("PGPASSWORD", &server.password)
        .env("PGOPTIONS", "-c log_statement=none -c client_min_messages=warning");
    process::run(&mut command, sql)
}

/// Debian keeps the server's programs off the `PATH`, by version: the newest one.
fn server_program(program: &str) -> Result<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<(u32, PathBuf)> = versions
        .filter_map(|version| {
            let number = version.file_name().to_str()?.parse().ok()?;
            Some((number, version.path().join("bin").join(program)))
        })
        .filter(|(_, file)| file.is_file())
        .collect();
    found.sort();
    match found.pop() {
        Some((_, file)) => Ok(file),
        None => require_program(program, PACKAGE),
    }
}

fn make_data_folder(maker: &Path, folder: &Path, account: &Account) -> Result<()> {
    account.take(folder)?;
    let password_file = folder.with_file_name("password");
    std::fs::write(&password_file, ADMIN).context("cannot write the password file")?;
    account.take(&password_file)?;
    let mut command = account.command(maker);
    command
        .args(["--no-sync", "--locale=C.UTF-8", "--encoding=UTF8", "--auth=scram-sha-256"])
        .arg(format!("--username={ADMIN}"))
        .arg(format!("--pwfile={}", password_file.display()))
        .arg(format!("--pgdata={}", folder.display()))
        .current_dir(folder);
    process::run(&mut command, "")?;
    Ok(())
}

fn launch(server: &Path, account: &Account, folder: &Path, port: u16) -> Result<Process> {
    let log = folder.join("log");
    let mut command = vec![OsString::from(server), "-D".into(), folder.join("data").into()];
    let settings = [
        "listen_addresses=127.0.0.1".to_owned(),
        format!("port={port}"),
        format!("unix_socket_directories={}", folder.display()),
        "max_connections=300".to_owned(),
        // Nothing here has to survive the machine, so nothing waits for the disk.
        "fsync=off".to_owned(),
        "synchronous_commit=off".to_owned(),
        "full_page_writes=off".to_owned(),
        "log_statement=all".to_owned(),
        "log_line_prefix=%d|".to_owned(),
        format!("farrier.log={}", log.display()),
    ];
    command.extend(settings.into_iter().flat_map(|setting| ["-c".into(), setting.into()]));
    Process::start(&Launch {
        command,
        account,
        folder,
        log: &log,
        // An immediate shutdown: a kill would leave its children and shared memory for a moment.
        sudden: "QUIT",
        ready: "database system is ready to accept connections",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statements_are_read_from_the_log_of_one_database() {
        let log = "|LOG:  database system is ready\na|LOG:  statement: select 1\nb|LOG:  statement: drop table t\n\
                   a|LOG:  execute <unnamed>: insert into t\n\t values ($1)\na|DETAIL:  parameters: $1 = '2'\n\
                   a|ERROR:  no such table\n\tat line 1\na|STATEMENT:  insert into t\n";
        assert_eq!(logged_statements(log, "a"), ["select 1", "insert into t\n values ($1)"]);
    }
}
