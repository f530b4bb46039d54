//! Projects in temporary folders, and the real binary run in them.
//!
//! Every answer of the binary is held against two rules whatever the test is about: no escape codes reach a pipe, and
//! no run ends in a panic.

#![allow(unreachable_pub, reason = "a module of test binaries")]
#![allow(dead_code, reason = "each test binary uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests may panic as tests do")]

pub mod small_disk;

use std::ffi::OsString;
use std::fs;
use std::io::Read;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::Instant;

use farrier_testkit::DEADLINE;
use farrier_testkit::clock::Clock;
use farrier_testkit::mariadb::Database;
use farrier_testkit::slapd::{self, Slapd};
use farrier_toolforge::{Differences, Tables, World, oracle};
use serde_json::{Value, json};
use sqlx::sqlite::{SqliteConnectOptions, SqliteRow};
use sqlx::{ConnectOptions as _, Connection as _, Row as _};
use tempfile::TempDir;

/// The binary under test.
pub const FARRIER: &str = env!("CARGO_BIN_EXE_farrier");

/// A project of a test's own; it goes when the value is dropped.
pub struct Project {
    folder: TempDir,
    /// More of the environment of everything that is started in it.
    variables: Vec<(String, OsString)>,
}

impl Project {
    /// A copy of what the repository ships: its runbooks, its demo and its project file.
    pub fn demo() -> Project {
        let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let project = Project { folder: farrier_testkit::temp_dir(), variables: Vec::new() };
        for part in ["runbooks", "environments", "alerts"] {
            copy(&repository.join(part), &project.path(part));
        }
        fs::copy(repository.join("farrier.yaml"), project.path("farrier.yaml")).unwrap();
        project
    }

    /// An empty project, whose runs are kept in `data`.
    pub fn new() -> Project {
        let project = Project { folder: farrier_testkit::temp_dir(), variables: Vec::new() };
        project.write(
            "farrier.yaml",
            "runbooks: [runbooks]\nenvironments: [environments/*.yaml]\ndata_dir: data\n",
        );
        project
    }

    pub fn path(&self, relative: &str) -> PathBuf {
        self.folder.path().join(relative)
    }

    pub fn write(&self, relative: &str, text: &str) {
        let path = self.path(relative);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn read(&self, relative: &str) -> String {
        fs::read_to_string(self.path(relative)).unwrap_or_default()
    }

    /// Keeps a password where an environment can name it; returns its reference.
    pub fn secret(&self, name: &str, password: &str) -> Value {
        let file = self.path(name);
        fs::write(&file, password).unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        json!({ "file": file })
    }

    /// Writes the environment `test` (JSON is YAML).
    pub fn environment(&self, targets: &Value) {
        let text = json!({ "environment": "test", "targets": targets }).to_string();
        self.write("environments/test.yaml", &text);
    }

    /// The binary, about to be run in the project.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(FARRIER);
        command.args(args).current_dir(self.folder.path()).env("USER", "tester");
        for name in ["NO_COLOR", "SUDO_USER", "FARRIER_LOG", "FARRIER_DATA_DIR", "RUST_LOG", "RUST_BACKTRACE"]
        {
            command.env_remove(name);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
    }

    /// From now on the binary goes by this clock.
    pub fn goes_by(&mut self, clock: &Clock) {
        self.variables = clock.variables();
    }

    /// Runs the binary to its end.
    #[track_caller]
    pub fn farrier(&self, args: &[&str]) -> Answer {
        Started::from(self.command(args)).end()
    }

    /// Runs the binary to its end for another person than the usual `tester`.
    #[track_caller]
    pub fn farrier_as(&self, user: &str, args: &[&str]) -> Answer {
        let mut command = self.command(args);
        command.env("USER", user);
        Started::from(command).end()
    }

    /// The rows that `select` gives on a SQLite database of the project: columns parted by tabs.
    pub fn sqlite(&self, relative: &str, select: &str) -> Vec<String> {
        let options = SqliteConnectOptions::new().filename(self.path(relative)).read_only(true);
        let select = sqlx::AssertSqlSafe(select.to_owned());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let rows = runtime.block_on(async {
            let mut connection = options.connect().await.unwrap();
            let rows = sqlx::query(select).fetch_all(&mut connection).await.unwrap();
            connection.close().await.unwrap();
            rows
        });
        let cell = |row: &SqliteRow, at: usize| match row.try_get::<String, _>(at) {
            Ok(text) => text,
            Err(_) => row.get::<Option<i64>, _>(at).map_or("NULL".into(), |number| number.to_string()),
        };
        rows.iter().map(|row| (0..row.len()).map(|at| cell(row, at)).collect::<Vec<_>>().join("\t")).collect()
    }

    /// Changes a SQLite database of the project, past everything that guards it.
    pub fn sqlite_do(&self, relative: &str, sql: &'static str) {
        let options = SqliteConnectOptions::new().filename(self.path(relative));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut connection = options.connect().await.unwrap();
            sqlx::raw_sql(sql).execute(&mut connection).await.unwrap();
            connection.close().await.unwrap();
        });
    }

    /// The newest run.
    #[track_caller]
    pub fn last_run(&self) -> String {
        let runs = self.farrier(&["runs", "-n", "1", "-o", "json"]).expect(0).json();
        runs[0]["id"].as_str().expect("there is a run").to_owned()
    }

    /// What `show` says of the newest run.
    #[track_caller]
    pub fn show_last(&self) -> Value {
        self.farrier(&["show", &self.last_run(), "-o", "json"]).expect(0).json()
    }
}

/// The binary at work.
pub struct Started {
    pub child: Child,
    words: String,
    out: JoinHandle<String>,
    err: JoinHandle<String>,
}

impl Started {
    #[track_caller]
    pub fn from(command: Command) -> Started {
        Started::typing(command, Stdio::null())
    }

    /// The same with something on its standard input.
    #[track_caller]
    pub fn typing(mut command: Command, input: Stdio) -> Started {
        let words = format!("{command:?}");
        let mut child = command
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{words}: {error}"));
        let out = drain(child.stdout.take().unwrap());
        let err = drain(child.stderr.take().unwrap());
        Started { child, words, out, err }
    }

    /// Waits for the end. A process that hangs is killed, and the test fails.
    #[track_caller]
    pub fn end(mut self) -> Answer {
        let begun = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            if begun.elapsed() > DEADLINE {
                let _ = self.child.kill();
                panic!("{} hangs:\n{}\n{}", self.words, self.out.join().unwrap(), self.err.join().unwrap());
            }
            std::thread::sleep(std::time::Duration::from_millis(2));
        };
        let (out, err) = (self.out.join().unwrap(), self.err.join().unwrap());
        let answer = Answer { code: status.code(), signal: status.signal(), out, err, words: self.words };
        assert!(!answer.out.contains('\u{1b}'), "escape codes in a pipe: {answer}");
        assert!(!answer.err.contains('\u{1b}'), "escape codes in a pipe: {answer}");
        assert!(!answer.err.contains("panicked"), "{answer}");
        answer
    }
}

fn drain(mut pipe: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        String::from_utf8(bytes).expect("the binary writes UTF-8")
    })
}

/// How the binary ended, and what it said.
#[derive(Debug)]
pub struct Answer {
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub out: String,
    pub err: String,
    words: String,
}

impl std::fmt::Display for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Answer { code, out, err, words, .. } = self;
        write!(f, "{words} ended with {code:?}\n--- output\n{out}\n--- errors\n{err}")
    }
}

impl Answer {
    /// It ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Answer {
        assert_eq!(self.code, Some(code), "{self}");
        self
    }

    /// It ended with one of `codes`.
    #[track_caller]
    pub fn expect_one_of(self, codes: &[i32]) -> Answer {
        assert!(self.code.is_some_and(|code| codes.contains(&code)), "{self}");
        self
    }

    /// It said `text` on standard output.
    #[track_caller]
    pub fn says(self, text: &str) -> Answer {
        assert!(self.out.contains(text), "`{text}` is missing: {self}");
        self
    }

    /// It said `text` on standard error.
    #[track_caller]
    pub fn complains(self, text: &str) -> Answer {
        assert!(self.err.contains(text), "`{text}` is missing: {self}");
        self
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self}"))
    }
}

/// A directory server that holds `world`, and gives its reader no more than `size_limit` entries per request.
pub fn directory(world: &World, size_limit: Option<u32>) -> Slapd {
    let entries = world.ldif_to_add();
    Slapd::start(slapd::Options { entries, size_limit, ..slapd::Options::default() })
}

/// What the tables must hold once they are brought up to date at `now`.
pub fn expected_tables(world: &World, now: i64) -> Tables {
    let homes = farrier_testkit::temp_dir();
    world.write_homes(homes.path()).unwrap();
    oracle::expected(&world.ldif(), homes.path(), &world.project, now).tables().unwrap()
}

/// Writes the homes of `world`, once, and an environment `test` that leads to a directory (as the reader of `server`, at
/// `directory`) and to a database (its address with user and password).
pub fn site(project: &Project, world: &World, server: &Slapd, directory: &str, database: &str) {
    if !project.path("homes").exists() {
        world.write_homes(&project.path("homes")).unwrap();
    }
    let (scheme, rest) = database.split_once("://").unwrap();
    let (account, place) = rest.split_once('@').unwrap();
    let (user, password) = account.split_once(':').unwrap();
    let reader = project.secret("reader.secret", &server.reader_password);
    project.environment(&json!({
        "directory": {
            "kind": "ldap", "url": directory, "read_as": { "dn": server.reader_dn, "password": reader },
        },
        "homes": { "kind": "files", "roots": { "tool_homes": "../homes" } },
        "catalogue": {
            "kind": "sql", "url": format!("{scheme}://{user}@{place}"),
            "password": project.secret("database.secret", password),
        },
    }));
}

/// The statements whose rows [`rows`] describes: numbers, then texts in hexadecimal, without the time of the last change.
pub const SELECTS: [&str; 2] = [
    "SELECT id, LOWER(HEX(name)), LOWER(HEX(home)), LOWER(HEX(description)), LOWER(HEX(toolinfo)), \
     LOWER(HEX(maintainers)) FROM tools ORDER BY id",
    "SELECT id, LOWER(HEX(name)), LOWER(HEX(wikitech)), LOWER(HEX(home)) FROM users ORDER BY id",
];

/// What the tables `tools` and `users` hold.
pub fn rows(tables: &Tables) -> [Vec<String>; 2] {
    let optional = |text: &Option<String>| text.as_deref().map_or("NULL".to_owned(), hex::encode);
    let mut tools: Vec<_> = tables.tools.iter().collect();
    tools.sort_by_key(|row| row.id);
    let tools = tools.into_iter().map(|row| {
        let [name, home] = [&row.name, &row.home].map(hex::encode);
        let texts = [&row.description, &row.toolinfo, &row.maintainers].map(optional).join("\t");
        format!("{}\t{name}\t{home}\t{texts}", row.id)
    });
    let mut users: Vec<_> = tables.users.iter().collect();
    users.sort_by_key(|row| row.id);
    let users = users.into_iter().map(|row| {
        let [name, wikitech, home] = [&row.name, &row.wikitech, &row.home].map(hex::encode);
        format!("{}\t{name}\t{wikitech}\t{home}", row.id)
    });
    [tools.collect(), users.collect()]
}

/// What the tables of a database hold, in the form of [`rows`].
pub fn rows_of(database: &Database) -> [Vec<String>; 2] {
    SELECTS.map(|select| database.exec(select).lines().map(ToOwned::to_owned).collect())
}

/// Compares what two tables hold, and names the first row that differs.
#[track_caller]
pub fn same_rows(found: &[Vec<String>; 2], expected: &[Vec<String>; 2], when: &str) {
    for (table, (found, expected)) in ["tools", "users"].iter().zip(found.iter().zip(expected)) {
        for (one, other) in found.iter().zip(expected) {
            assert_eq!(one, other, "a row of `{table}`, {when}");
        }
        assert_eq!(found.len(), expected.len(), "rows of `{table}`, {when}");
    }
}

/// The changes of a step in a plan or in what `show` says of a run, by the names in their objects.
#[track_caller]
pub fn planned(view: &Value, step: &str) -> Differences {
    let steps = view["steps"].as_array().unwrap();
    let step = steps.iter().find(|known| known["id"] == step || known["node"] == step).unwrap();
    let mut found = Differences::default();
    for change in step["changes"].as_array().into_iter().flatten() {
        let (_, name) = change["object"].as_str().unwrap().split_once("name=").unwrap();
        let list = match change["kind"].as_str().unwrap() {
            "create" => &mut found.created,
            "update" => &mut found.updated,
            "delete" => &mut found.deleted,
            other => panic!("`{other}` in a table"),
        };
        list.push(name.to_owned());
    }
    for names in [&mut found.created, &mut found.updated, &mut found.deleted] {
        names.sort_unstable();
    }
    found
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            copy(&source, &target);
        } else if kind.is_symlink() {
            std::os::unix::fs::symlink(fs::read_link(source).unwrap(), target).unwrap();
        } else {
            fs::copy(source, target).unwrap();
        }
    }
}
