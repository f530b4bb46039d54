//! The target kind `sql`: how an environment says which database, as whom, and how far to trust the network.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use farrier_action::duration::Wait;
use farrier_action::{ConnectCx, SecretRef, TargetKind};
use farrier_model::{Failure, FailureKind, Secret};
use schemars::JsonSchema;
use serde::Deserialize;
use sqlx::mysql::{MySql, MySqlConnectOptions, MySqlSslMode};
use sqlx::postgres::{PgConnectOptions, PgSslMode, Postgres};
use sqlx::sqlite::{Sqlite, SqliteConnectOptions};
use sqlx::{ConnectOptions as _, Connection as _};

use crate::database::{Database, Pool, Settings};
use crate::mariadb::SQL_MODE;

/// A statement waits no longer than this for a lock that someone else holds.
const LOCK_WAIT: Duration = Duration::from_secs(10);

/// The target kind `sql`.
pub struct Sql;

/// A SQL database: MariaDB (or MySQL), PostgreSQL or SQLite.
///
/// Planning connects with `read_as` and only ever opens transactions that the server keeps from writing; applying
/// connects with `write_as`. Values are sent in UTC.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SqlConfig {
    /// Which database: `mysql://USER@HOST:PORT/DATABASE`, `mysql://USER@localhost/DATABASE?socket=/run/mysqld/mysqld.sock`,
    /// `postgres://USER@HOST:PORT/DATABASE` or `sqlite:PATH`, relative to the environment file. It has no password.
    url: String,
    /// The password of the user in `url`.
    password: Option<SecretRef>,
    /// Another account for reading, so that plans need no right to write.
    read_as: Option<Account>,
    /// Another account for writing.
    write_as: Option<Account>,
    /// SQLite: a file of SQL statements that makes the database when it does not exist.
    init: Option<String>,
    /// How long to wait for a connection, such as `5s`. Default 10s.
    #[serde(default = "ten_seconds")]
    connect_timeout: Wait,
    /// How long one statement may take. Default 60s.
    #[serde(default = "one_minute")]
    statement_timeout: Wait,
    /// Whether connections are encrypted. Default `off_on_loopback`.
    #[serde(default)]
    tls: Tls,
    /// A PEM file with the authority that signed the server's certificate, relative to the environment file. Without
    /// it the machine's own authorities are trusted.
    tls_ca: Option<String>,
    /// Passwords that steps may give to accounts of the server, by the names that runbooks use.
    #[serde(default)]
    passwords: BTreeMap<String, SecretRef>,
    /// What records call this server; without it `HOST:PORT` of `url`.
    server_name: Option<String>,
    /// How many connections each side may hold. Default 4.
    #[serde(default = "four")]
    #[schemars(range(min = 1, max = 100))]
    max_connections: u32,
}

/// An account of a database.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Account {
    /// The user's name; without it the one in `url`.
    user: Option<String>,
    /// Where the password comes from.
    password: Option<SecretRef>,
}

/// Whether connections are encrypted. Certificates are always checked, and a host other than this machine is never
/// reached in the clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tls {
    /// Always, except through a unix socket.
    Required,
    /// On this machine (`localhost`, `127.0.0.1`, `::1`) only when the server offers it; elsewhere always.
    Preferred,
    /// On this machine never; elsewhere always.
    #[default]
    OffOnLoopback,
}

fn ten_seconds() -> Wait {
    Wait(Duration::from_secs(10))
}

fn one_minute() -> Wait {
    Wait(Duration::from_secs(60))
}

fn four() -> u32 {
    4
}

/// The side of a target that cannot write.
pub struct Reader(pub(crate) Arc<dyn Database>, pub(crate) Known);

/// The side of a target that can.
pub struct Writer(pub(crate) Arc<dyn Database>, pub(crate) Known);

/// What the environment says of the server, beside how to connect.
#[derive(Debug, Clone)]
pub(crate) struct Known {
    /// What records call it.
    pub(crate) name: String,
    /// Which server it is, whatever database the address names.
    pub(crate) place: String,
    passwords: BTreeMap<String, SecretRef>,
    cx: ConnectCx,
}

impl Known {
    fn of(config: &SqlConfig, cx: &ConnectCx) -> Known {
        let place = Place::parse(&config.url);
        let (name, place) = match &place {
            Ok(Place::Server { postgres, host, port, socket, .. }) => {
                let scheme = if *postgres { "postgres" } else { "mysql" };
                let place = match socket {
                    Some(socket) => format!("{scheme}://{host}?socket={socket}"),
                    None => format!("{scheme}://{host}:{port}"),
                };
                (format!("{host}:{port}"), place)
            }
            Ok(place) => (cx.alias.clone(), place.identity()),
            Err(_) => (cx.alias.clone(), String::new()),
        };
        let name = config.server_name.clone().unwrap_or(name);
        Known { name, place, passwords: config.passwords.clone(), cx: cx.clone() }
    }

    /// Whether the environment has a password of this name.
    pub(crate) fn check_password(&self, name: &str) -> Result<&SecretRef, Failure> {
        self.passwords.get(name).ok_or_else(|| {
            Failure::new(FailureKind::Input, format!("the target has no password `{name}`")).help(format!(
                "name its source in the environment: `passwords: {{ {name}: {{ credential: … }} }}`"
            ))
        })
    }

    /// Reads a password at its source.
    pub(crate) async fn password(&self, name: &str) -> Result<Secret, Failure> {
        self.check_password(name)?.resolve(&self.cx).await
    }
}

impl TargetKind for Sql {
    const KIND: &'static str = "sql";
    type Config = SqlConfig;
    type Reader = Reader;
    type Writer = Writer;

    fn identity(config: &SqlConfig) -> String {
        match Place::parse(&config.url) {
            Ok(place) => place.identity(),
            // It will not connect either; what it is not is a secret's hiding place.
            Err(_) => "an address that cannot be read".into(),
        }
    }

    fn is_stand_in(config: &SqlConfig) -> bool {
        matches!(Place::parse(&config.url), Ok(Place::File(path)) if path.is_relative())
    }

    async fn reader(config: SqlConfig, cx: &ConnectCx) -> Result<Reader, Failure> {
        let (account, known) = (config.read_as.clone(), Known::of(&config, cx));
        open(config, account, cx, Side::Read).await.map(|database| Reader(database, known))
    }

    async fn writer(config: SqlConfig, cx: &ConnectCx) -> Result<Writer, Failure> {
        let (account, known) = (config.write_as.clone(), Known::of(&config, cx));
        open(config, account, cx, Side::Write).await.map(|database| Writer(database, known))
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    Read,
    Write,
}

/// A parsed `url`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Server {
        postgres: bool,
        user: Option<String>,
        host: String,
        port: u16,
        database: String,
        socket: Option<String>,
    },
    File(PathBuf),
}

impl Place {
    fn parse(url: &str) -> Result<Place, String> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() || path.starts_with(':') || path.contains('?') {
                return Err("the address must be `sqlite:PATH`; a database in memory would be another one for each side".into());
            }
            return Ok(Place::File(path.into()));
        }
        let (scheme, rest) =
            url.split_once("://").ok_or("the address must begin with mysql://, postgres:// or sqlite:")?;
        let postgres = match scheme {
            "mysql" | "mariadb" => false,
            "postgres" | "postgresql" => true,
            _ => return Err(format!("`{scheme}` is not a database; use mysql, postgres or sqlite")),
        };
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, database) =
            rest.split_once('/').ok_or("the address names no database after the host")?;
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        if user.is_some_and(|user| user.contains(':')) {
            return Err("the address contains a password; put a reference to it under `password`".into());
        }
        let (host, port) = match host.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((host, port)) => (host, port.strip_prefix(':')),
            None => host.split_once(':').map_or((host, None), |(host, port)| (host, Some(port))),
        };
        let port = match port {
            Some(port) => port.parse().map_err(|_| format!("`{port}` is not a port"))?,
            None if postgres => 5432,
            None => 3306,
        };
        let mut socket = None;
        for option in query.split('&').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("socket", path)) => socket = Some(decoded(path)?),
                _ => return Err(format!("the address has the option `{option}`; only `socket` is known")),
            }
        }
        if database.is_empty() || host.is_empty() && socket.is_none() {
            return Err("the address needs a host and a database".into());
        }
        let host = if host.is_empty() { "localhost" } else { host };
        Ok(Place::Server {
            postgres,
            user: user.map(decoded).transpose()?,
            host: host.to_owned(),
            port,
            database: decoded(database)?,
            socket,
        })
    }

    fn identity(&self) -> String {
        match self {
            Place::File(path) => format!("sqlite:{}", path.display()),
            Place::Server { postgres, host, port, database, socket, .. } => {
                let scheme = if *postgres { "postgres" } else { "mysql" };
                match socket {
                    Some(socket) => format!("{scheme}://{host}/{database}?socket={socket}"),
                    None => format!("{scheme}://{host}:{port}/{database}"),
                }
            }
        }
    }
}

/// Undoes percent encoding.
fn decoded(text: &str) -> Result<String, String> {
    let wrong = || format!("`{text}` is not percent-encoded text");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digits = [rest.next().ok_or_else(wrong)?, rest.next().ok_or_else(wrong)?];
            let digits = std::str::from_utf8(&digits).map_err(|_| wrong())?;
            bytes.push(u8::from_str_radix(digits, 16).map_err(|_| wrong())?);
        } else {
            bytes.push(byte);
        }
    }
    String::from_utf8(bytes).map_err(|_| wrong())
}

async fn open(
    config: SqlConfig,
    account: Option<Account>,
    cx: &ConnectCx,
    side: Side,
) -> Result<Arc<dyn Database>, Failure> {
    let input = |message: String| Failure::new(FailureKind::Input, message);
    let place = Place::parse(&config.url).map_err(input)?;
    let Place::Server { postgres, user, host, port, database, socket } = place else {
        let Place::File(path) = place else { return Err(input("no address".into())) };
        return file(&config, &cx.path(path), cx, side).await;
    };
    let (other_user, other_password) =
        account.map_or((None, None), |account| (account.user, account.password));
    let user = other_user.or(user).ok_or_else(|| {
        input("the address names no user; write it before the host, as in `mysql://USER@HOST/…`".into())
    })?;
    let password = match other_password.as_ref().or(config.password.as_ref()) {
        Some(reference) => reference.resolve(cx).await?,
        None => Secret::default(),
    };
    let loopback =
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback());
    let encryption = match config.tls {
        _ if socket.is_some() => Encryption::Off,
        Tls::OffOnLoopback if loopback => Encryption::Off,
        Tls::Preferred if loopback => Encryption::WhenOffered,
        _ => Encryption::On,
    };
    let authority = config.tls_ca.as_ref().map(|path| cx.path(path));
    let limit = config.statement_timeout.0;
    let lock_wait = limit.min(LOCK_WAIT);

    if postgres {
        let mut options = PgConnectOptions::new_without_pgpass()
            .host(&host)
            .port(port)
            .username(&user)
            .password(password.reveal())
            .database(&database)
            .application_name("farrier")
            .disable_statement_logging();
        if let Some(socket) = socket {
            options = options.socket(socket);
        }
        if let Some(authority) = authority {
            options = options.ssl_root_cert(authority);
        }
        let mut setup = vec![
            format!("SET statement_timeout = {}", limit.as_millis()),
            format!("SET lock_timeout = {}", lock_wait.as_millis().max(1)),
        ];
        if side == Side::Read {
            setup.push("SET default_transaction_read_only = on".into());
        }
        let plain = options.clone().ssl_mode(PgSslMode::Disable);
        let (options, without_tls) = encryption.choose(options.ssl_mode(PgSslMode::VerifyFull), plain);
        return Ok(Arc::new(Pool::<Postgres>::new(settings(&config, options, without_tls, setup))));
    }

    let mut options = MySqlConnectOptions::new()
        .host(&host)
        .port(port)
        .username(&user)
        .password(password.reveal())
        .database(&database)
        .pipes_as_concat(false)
        .disable_statement_logging();
    if let Some(socket) = socket {
        options = options.socket(socket);
    }
    if let Some(authority) = authority {
        options = options.ssl_ca(authority);
    }
    let mut setup = vec![
        format!("SET SESSION sql_mode = '{SQL_MODE}'"),
        // MariaDB counts in seconds and stops any statement; the executable comment is nothing to MySQL.
        format!(
            "SET SESSION innodb_lock_wait_timeout = {0}, lock_wait_timeout = {0} /*M! , max_statement_time = {1} */",
            lock_wait.as_secs().max(1),
            limit.as_secs_f64()
        ),
    ];
    if side == Side::Read {
        setup.push("SET SESSION TRANSACTION READ ONLY".into());
    }
    let plain = options.clone().ssl_mode(MySqlSslMode::Disabled);
    let (options, without_tls) = encryption.choose(options.ssl_mode(MySqlSslMode::VerifyIdentity), plain);
    Ok(Arc::new(Pool::<MySql>::new(settings(&config, options, without_tls, setup))))
}

enum Encryption {
    On,
    WhenOffered,
    Off,
}

impl Encryption {
    /// The options to connect with, and those for a server without TLS.
    fn choose<O>(self, encrypted: O, plain: O) -> (O, Option<O>) {
        match self {
            Encryption::On => (encrypted, None),
            Encryption::WhenOffered => (encrypted, Some(plain)),
            Encryption::Off => (plain, None),
        }
    }
}

fn settings<D: crate::database::Driver>(
    config: &SqlConfig,
    options: <<D as sqlx::Database>::Connection as sqlx::Connection>::Options,
    without_tls: Option<<<D as sqlx::Database>::Connection as sqlx::Connection>::Options>,
    setup: Vec<String>,
) -> Settings<D> {
    Settings {
        options,
        without_tls,
        setup,
        connect_timeout: config.connect_timeout.0,
        statement_timeout: config.statement_timeout.0,
        max_connections: config.max_connections,
    }
}

async fn file(
    config: &SqlConfig,
    path: &Path,
    cx: &ConnectCx,
    side: Side,
) -> Result<Arc<dyn Database>, Failure> {
    if !tokio::fs::try_exists(path).await.unwrap_or(false) {
        let Some(script) = &config.init else {
            return Err(Failure::new(
                FailureKind::Unreachable,
                format!("there is no SQLite database {}", path.display()),
            )
            .help("name a file of SQL statements under `init`, and it is made from them"));
        };
        create(path, &cx.path(script)).await?;
    }
    let limit = config.statement_timeout.0;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(false)
        .foreign_keys(true)
        .busy_timeout(limit.min(LOCK_WAIT))
        .disable_statement_logging();
    let setup = match side {
        Side::Read => vec!["PRAGMA query_only = ON".to_owned()],
        Side::Write => Vec::new(),
    };
    Ok(Arc::new(Pool::<Sqlite>::new(settings(config, options, None, setup))))
}

/// Makes a database from a script: beside its place, then moved there whole, so that neither a crash nor another
/// process doing the same leaves half a database.
async fn create(path: &Path, script: &Path) -> Result<(), Failure> {
    let fail = |message: String| Failure::new(FailureKind::Input, message);
    let statements = tokio::fs::read_to_string(script)
        .await
        .map_err(|error| fail(format!("cannot read the `init` script {}: {error}", script.display())))?;
    if let Some(folder) = path.parent() {
        // New folders are their owner's alone: a database may hold what others must not read, and one of the folders
        // may be where runs are kept, which is refused when others can enter it.
        tokio::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .await
            .map_err(|error| fail(format!("cannot make the folder {}: {error}", folder.display())))?;
    }
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let nonce = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    let draft = path.with_file_name(format!(".{name}.{}.{nonce}", std::process::id()));
    let made = async {
        let options =
            SqliteConnectOptions::new().filename(&draft).create_if_missing(true).disable_statement_logging();
        let mut connection = options.connect().await?;
        sqlx::raw_sql(sqlx::AssertSqlSafe(statements)).execute(&mut connection).await?;
        connection.close().await
    }
    .await;
    let placed = match made {
        Ok(()) => match tokio::fs::hard_link(&draft, path).await {
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                Err(fail(format!("cannot make the SQLite database {}: {error}", path.display())))
            }
            _ => Ok(()),
        },
        Err(error) => Err(fail(format!("the `init` script {} failed: {error}", script.display()))),
    };
    // What is left of a failed attempt is of no use to anyone.
    let _ = tokio::fs::remove_file(&draft).await;
    placed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(url: &str) -> String {
        Place::parse(url).map_or_else(|error| error, |place| place.identity())
    }

    #[test]
    fn addresses_read_and_name_no_user() {
        for (url, expected) in [
            ("mysql://tools@db.example.org/toollabs_p", "mysql://db.example.org:3306/toollabs_p"),
            ("mysql://t%40x@[::1]:3307/a", "mysql://::1:3307/a"),
            (
                "mysql://root@localhost/a?socket=/run/mysqld/mysqld.sock",
                "mysql://localhost/a?socket=/run/mysqld/mysqld.sock",
            ),
            ("postgres://me@pg/a", "postgres://pg:5432/a"),
            ("sqlite:demo/tools.db", "sqlite:demo/tools.db"),
        ] {
            assert_eq!(identity(url), expected);
        }
    }

    #[test]
    fn wrong_addresses_say_what_is_wrong() {
        for (url, expected) in [
            ("mysql://me:secret@db/a", "password"),
            ("mysql://me@db", "database"),
            ("mysql://me@db/", "database"),
            ("mysql://me@db:x/a", "port"),
            ("mysql://me@db/a?ssl-mode=disabled", "ssl-mode"),
            ("oracle://db/a", "oracle"),
            ("db/a", "mysql://"),
            ("sqlite:", "PATH"),
            ("sqlite::memory:", "memory"),
        ] {
            let message = Place::parse(url).expect_err(url);
            assert!(message.contains(expected), "{url}: {message}");
            assert!(!message.contains("secret"), "{message}");
        }
    }
}
