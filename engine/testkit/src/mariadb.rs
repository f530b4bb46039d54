//! A MariaDB server, and databases of their own for tests on it.
//!
//! ```no_run
//! use farrier_testkit::mariadb::MariaDb;
//!
//! let database = MariaDb::shared().fresh_database();
//! database.exec("CREATE TABLE tools (name VARCHAR(64) PRIMARY KEY)");
//! // … plan something at database.url() …
//! assert_eq!(database.writes(), Vec::<String>::new());
//! ```
//!
//! Tests share one server: `cargo xtask test` starts it and names it in `FARRIER_TEST_MARIADB_URL`; without that, each
//! test process starts one when it first needs it. A test that stops the server, or changes its settings, starts its
//! own with [`MariaDb::start`].

use std::ffi::OsString;
use std::path::Path;
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
pub const URL_VARIABLE: &str = "FARRIER_TEST_MARIADB_URL";

const PACKAGE: &str = "mariadb-server";
/// What the server's administrator is called, and the password too.
const ADMIN: &str = "farrier";
/// Run at each start: an administrator who comes by network, as the code under test does.
const ADMIN_SQL: &str = "CREATE OR REPLACE USER 'farrier'@'127.0.0.1' IDENTIFIED BY 'farrier';\n\
                         GRANT ALL PRIVILEGES ON *.* TO 'farrier'@'127.0.0.1' WITH GRANT OPTION;\n";

/// A MariaDB server: one that runs already, or one of our own that ends when the value is dropped.
#[derive(Debug)]
pub struct MariaDb {
    url: ServerUrl,
    // Before the folder, so that the server is gone when the folder goes.
    process: Option<Process>,
    folder: Option<TempDir>,
}

impl MariaDb {
    /// The server that tests share.
    #[track_caller]
    pub fn shared() -> &'static MariaDb {
        static SHARED: OnceLock<MariaDb> = OnceLock::new();
        SHARED.get_or_init(|| match std::env::var(URL_VARIABLE) {
            Ok(url) => {
                MariaDb { url: or_panic(ServerUrl::parse(&url), URL_VARIABLE), process: None, folder: None }
            }
            Err(_) => Self::start(),
        })
    }

    /// Starts a server of the caller's own; panics with its last words when it does not start.
    #[track_caller]
    pub fn start() -> Self {
        or_panic(Self::try_start(), "cannot start MariaDB")
    }

    /// Starts a server, or says why not.
    pub fn try_start() -> Result<Self> {
        let server = require_program("mariadbd", PACKAGE)?;
        require_program("mariadb", "mariadb-client")?;
        let version = process::run(Command::new(&server).arg("--version"), "")?;
        let account = Account::lent("mysql")?;
        let folder = crate::temp_dir();
        account.take(folder.path())?;
        let data = folder.path().join("data");
        template::copy("mariadb", &version, &data, |folder| make_data_folder(folder, &account))?;
        let start_sql = folder.path().join("start.sql");
        std::fs::write(&start_sql, ADMIN_SQL).context("cannot write `start.sql`")?;
        account.take(&start_sql)?;
        let (port, process) =
            on_a_free_port(|port| Ok((port, launch(&server, &account, folder.path(), port)?)))?;
        let url = ServerUrl {
            scheme: "mysql".to_owned(),
            user: ADMIN.to_owned(),
            password: ADMIN.to_owned(),
            host: "127.0.0.1".to_owned(),
            port,
        };
        Ok(MariaDb { url, process: Some(process), folder: Some(folder) })
    }

    /// `mysql://USER:PASSWORD@127.0.0.1:PORT`, as an administrator who may do everything.
    pub fn url(&self) -> String {
        self.url.to_string()
    }

    /// A new empty database with an administrator of its own, both gone when the value is dropped.
    #[track_caller]
    pub fn fresh_database(&self) -> Database {
        let name = crate::unique_name();
        let reader = format!("{name}_reader");
        let sql = format!(
            "CREATE DATABASE {name};
             CREATE USER {name}@'127.0.0.1' IDENTIFIED BY '{name}';
             GRANT ALL PRIVILEGES ON *.* TO {name}@'127.0.0.1' WITH GRANT OPTION;
             CREATE USER {reader}@'127.0.0.1' IDENTIFIED BY '{reader}';
             GRANT SELECT, SHOW VIEW ON {name}.* TO {reader}@'127.0.0.1';"
        );
        or_panic(client(&self.url, None, &sql), "cannot make a database");
        Database { server: self.url.clone(), name, reader, dialect: DIALECT }
    }

    /// The server's process id, while it runs and is our own.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Stops the server; connections break. What it holds stays, for [`MariaDb::start_again`].
    #[track_caller]
    pub fn stop(&mut self) {
        assert!(
            self.folder.is_some(),
            "a shared server cannot be stopped: start your own with `MariaDb::start()`"
        );
        if let Some(process) = self.process.take() {
            or_panic(process.stop("TERM"), "cannot stop MariaDB");
        }
    }

    /// Starts the stopped server again, with the same databases at the same address.
    #[track_caller]
    pub fn start_again(&mut self) {
        let (None, Some(folder)) = (&self.process, &self.folder) else { return };
        let started = require_program("mariadbd", PACKAGE)
            .and_then(|server| launch(&server, &Account::lent("mysql")?, folder.path(), self.url.port));
        self.process = Some(or_panic(started, "cannot start MariaDB again"));
    }
}

const DIALECT: &Dialect = &Dialect {
    run: client,
    statements: |database| {
        let (name, reader) = (&database.name, &database.reader);
        let log = database.exec(&format!(
            "SELECT CONVERT(argument USING utf8mb4) FROM mysql.general_log
             WHERE (user_host LIKE '{name}[%' OR user_host LIKE '{reader}[%') AND command_type IN ('Query', 'Execute')"
        ));
        log.lines().map(str::to_owned).collect()
    },
    drop: |database| {
        let (name, reader) = (&database.name, &database.reader);
        let sql = format!(
            "DROP DATABASE IF EXISTS {name};
             DROP USER IF EXISTS {name}@'127.0.0.1', {reader}@'127.0.0.1';"
        );
        // The server may be stopped; its folder goes with it then.
        let _ = client(&database.server, None, &sql);
    },
};

/// Runs SQL with the command-line client, outside the statement log.
fn client(server: &ServerUrl, database: Option<&str>, sql: &str) -> Result<String> {
    let mut command = Command::new(require_program("mariadb", "mariadb-client")?);
    command
        .args(["--no-defaults", "--batch", "--skip-column-names", "--default-character-set=utf8mb4"])
        .args(["--init-command=SET SESSION sql_log_off=1", "--protocol=tcp"])
        .arg(format!("--host={}", server.host))
        .arg(format!("--port={}", server.port))
        .arg(format!("--user={}", server.user))
        .args(database)
        .env("MYSQL_PWD", &server.password);
    process::run(&mut command, sql)
}

fn make_data_folder(folder: &Path, account: &Account) -> Result<()> {
    account.take(folder)?;
    let install = require_program("mariadb-install-db", PACKAGE)?;
    let mut command = account.command(&install);
    command
        .args([
            "--no-defaults",
            "--auth-root-authentication-method=normal",
            "--skip-test-db",
            "--skip-name-resolve",
        ])
        .args(["--innodb-log-file-size=8M", "--innodb-flush-log-at-trx-commit=0"])
        .arg(format!("--datadir={}", folder.display()))
        // The server's account need not be able to write to the caller's folder for temporary files.
        .env("TMPDIR", folder)
        .current_dir(folder);
    process::run(&mut command, "")?;
    Ok(())
}

fn launch(server: &Path, account: &Account, folder: &Path, port: u16) -> Result<Process> {
    let mut command = vec![OsString::from(server)];
    let settings = [
        "--no-defaults",
        "--bind-address=127.0.0.1",
        "--skip-name-resolve",
        "--character-set-server=utf8mb4",
        "--max-connections=500",
        // Nothing here has to survive the machine, so nothing waits for the disk.
        "--innodb-log-file-size=8M",
        "--innodb-buffer-pool-size=64M",
        "--innodb-flush-log-at-trx-commit=0",
        "--innodb-doublewrite=0",
        "--performance-schema=OFF",
        "--general-log=ON",
        "--log-output=TABLE",
    ];
    command.extend(settings.map(OsString::from));
    let folder_text = folder.display();
    command.extend([
        format!("--datadir={folder_text}/data").into(),
        format!("--tmpdir={folder_text}").into(),
        format!("--socket={folder_text}/socket").into(),
        format!("--pid-file={folder_text}/pid").into(),
        format!("--init-file={folder_text}/start.sql").into(),
        format!("--port={port}").into(),
    ]);
    let log = folder.join("log");
    Process::start(&Launch {
        command,
        account,
        folder,
        log: &log,
        sudden: "KILL",
        ready: "ready for connections",
    })
}
