//! Connections and transactions, the same for every database.
//!
//! Read first: [`Database`] (one side of a target), [`Session`] (one transaction), [`Fault`] (why a statement failed).
//! [`Driver`] is what an adapter adds to a sqlx driver.
//!
//! A session that ends in any way but a confirmed commit or rollback closes its connection, so the server undoes what
//! was open, and no half-read answer is ever met by the next session. Idle connections are asked whether they still
//! live before they are used again, so a server that restarted is no failure.

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind};
use futures_util::TryStreamExt;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use sqlx::ConnectOptions;
use sqlx::error::DatabaseError;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::dialect::Dialect;
use crate::value::{Cell, Param};

/// A connection that nobody needed for this long is closed rather than used again.
const IDLE: Duration = Duration::from_secs(300);
/// A connection that keeps more text of statements than this is closed after use rather than used again.
const KEPT: usize = 1 << 20;
/// The server stops a statement by itself; this much later we no longer wait for it to say so.
const GRACE: Duration = Duration::from_secs(5);
/// The limit of a session that takes its time: more than any timeout of a step.
const UNHURRIED: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why a statement failed, with what callers decide by.
#[derive(Debug)]
pub(crate) struct Fault {
    pub(crate) failure: Failure,
    /// The unique key that a row would have violated, in the server's words.
    pub(crate) duplicate: Option<String>,
    /// Nobody knows what became of the statement: the connection broke, or no answer came in time.
    pub(crate) unanswered: bool,
}

impl From<Failure> for Fault {
    fn from(failure: Failure) -> Fault {
        Fault { failure, duplicate: None, unanswered: false }
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Failure {
        fault.failure
    }
}

/// One row of an answer, only while it is being read.
pub(crate) trait Row {
    /// The names of the columns.
    fn names(&self) -> Vec<String>;
    /// One value.
    fn cell(&self, index: usize) -> Result<Cell<'_>, Failure>;
}

/// What [`Session::fetch`] calls for each row.
pub(crate) type EachRow<'a> = dyn FnMut(&dyn Row) -> Result<ControlFlow<()>, Failure> + Send + 'a;

/// One transaction. Dropping it without [`Session::commit`] undoes it.
#[async_trait]
pub(crate) trait Session: Send {
    /// What is particular to this database.
    fn dialect(&self) -> &'static dyn Dialect;
    /// Runs one statement; the number of rows it matched.
    async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<u64, Fault>;
    /// Runs one statement without parameters that no connection keeps: it may hold what nobody else is to see.
    async fn run(&mut self, sql: &str) -> Result<(), Fault>;
    /// From here on statements take as long as they need, and the connection is closed afterwards. For whoever has a
    /// limit of its own, such as the timeout of a step.
    async fn take_time(&mut self) -> Result<(), Fault>;
    /// Runs one statement and hands over its rows as they arrive.
    async fn fetch(&mut self, sql: &str, params: &[Param], each: &mut EachRow<'_>) -> Result<(), Fault>;
    /// Makes it last. When the answer is lost the failure is in doubt.
    async fn commit(self: Box<Self>) -> Result<(), Failure>;
    /// Undoes it.
    async fn rollback(self: Box<Self>);
}

/// One side of a target: it opens transactions as one account.
#[async_trait]
pub(crate) trait Database: Send + Sync {
    /// What is particular to this database.
    fn dialect(&self) -> &'static dyn Dialect;
    /// Opens a transaction that the server keeps from writing.
    async fn read(&self) -> Result<Box<dyn Session>, Failure>;
    /// Opens a transaction that may write.
    async fn write(&self) -> Result<Box<dyn Session>, Failure>;
}

/// What an adapter adds to a sqlx driver. The first three are the same words for each; sqlx ties them to a concrete
/// connection type.
pub(crate) trait Driver: sqlx::Database {
    /// The connection keeps statements for their next use.
    const KEEPS: bool;
    fn execute<'c>(
        connection: &'c mut Self::Connection,
        sql: &str,
        arguments: Self::Arguments,
    ) -> BoxFuture<'c, Result<u64, sqlx::Error>>;
    fn fetch<'c>(
        connection: &'c mut Self::Connection,
        sql: &str,
        arguments: Self::Arguments,
    ) -> BoxStream<'c, Result<Self::Row, sqlx::Error>>;
    /// Runs text without parameters, as it stands.
    fn run<'c>(connection: &'c mut Self::Connection, sql: &str) -> BoxFuture<'c, Result<(), sqlx::Error>>;

    fn dialect() -> &'static dyn Dialect;
    fn bind(arguments: &mut Self::Arguments, param: &Param) -> Result<(), sqlx::error::BoxDynError>;
    fn cell(row: &Self::Row, index: usize) -> Result<Cell<'_>, String>;
    fn names(row: &Self::Row) -> Vec<String>;
    /// Sorts a server's error into our kinds.
    fn fault(error: &dyn DatabaseError) -> Fault;
    /// Makes the next statement stop by itself after `limit`, where no server does that.
    fn limit(_: &mut Self::Connection, _limit: Duration) -> BoxFuture<'_, Result<(), sqlx::Error>> {
        Box::pin(async { Ok(()) })
    }
}

/// The words of [`Driver`] that sqlx cannot express for all drivers at once.
macro_rules! drive {
    (keep: $keep:literal) => {
        const KEEPS: bool = $keep;

        fn execute<'c>(
            connection: &'c mut Self::Connection,
            sql: &str,
            arguments: Self::Arguments,
        ) -> BoxFuture<'c, Result<u64, sqlx::Error>> {
            let query = sqlx::query_with(sqlx::AssertSqlSafe(sql), arguments).persistent($keep);
            Box::pin(async move { query.execute(connection).await.map(|done| done.rows_affected()) })
        }
        fn fetch<'c>(
            connection: &'c mut Self::Connection,
            sql: &str,
            arguments: Self::Arguments,
        ) -> BoxStream<'c, Result<Self::Row, sqlx::Error>> {
            sqlx::query_with(sqlx::AssertSqlSafe(sql), arguments).persistent($keep).fetch(connection)
        }
        fn run<'c>(
            connection: &'c mut Self::Connection,
            sql: &str,
        ) -> BoxFuture<'c, Result<(), sqlx::Error>> {
            let script = sqlx::raw_sql(sqlx::AssertSqlSafe(sql));
            Box::pin(async move { script.execute(connection).await.map(|_| ()) })
        }
    };
}
pub(crate) use drive;

type Options<D> = <<D as sqlx::Database>::Connection as sqlx::Connection>::Options;

/// How to connect as one account.
pub(crate) struct Settings<D: Driver> {
    pub(crate) options: Options<D>,
    /// Used for good once the server has said that it has no TLS; only where the environment allows it.
    pub(crate) without_tls: Option<Options<D>>,
    /// Statements for each new connection.
    pub(crate) setup: Vec<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) statement_timeout: Duration,
    pub(crate) max_connections: u32,
}

/// A few connections as one account, opened when first needed.
pub(crate) struct Pool<D: Driver>(Arc<Shared<D>>);

struct Shared<D: Driver> {
    settings: Settings<D>,
    plain: std::sync::atomic::AtomicBool,
    permits: Arc<Semaphore>,
    idle: Mutex<Vec<Idle<D>>>,
}

/// A connection between two sessions.
struct Idle<D: Driver> {
    since: Instant,
    connection: D::Connection,
    kept: usize,
}

impl<D: Driver> Pool<D> {
    pub(crate) fn new(settings: Settings<D>) -> Pool<D> {
        let permits = Arc::new(Semaphore::new(settings.max_connections.max(1) as usize));
        Pool(Arc::new(Shared {
            settings,
            plain: std::sync::atomic::AtomicBool::new(false),
            permits,
            idle: Mutex::new(Vec::new()),
        }))
    }

    async fn begin(&self, sql: &str) -> Result<Box<dyn Session>, Failure> {
        let permit = self.0.permits.clone().acquire_owned().await.map_err(|_| {
            Failure::new(FailureKind::Internal, "the connections of this target were closed while in use")
        })?;
        let session = |connection, kept| {
            Box::new(Open::<D> {
                connection: Some(connection),
                kept,
                unhurried: false,
                shared: self.0.clone(),
                _permit: permit,
            })
        };
        while let Some(Idle { mut connection, kept, .. }) = self.reuse() {
            match self.open(&mut connection, sql).await {
                // It died of old age, of a restarted server, of a firewall; the next one may live.
                Err(fault) if fault.unanswered => {}
                outcome => {
                    outcome?;
                    return Ok(session(connection, kept));
                }
            }
        }
        let mut connection = self.connect().await?;
        self.open(&mut connection, sql).await?;
        Ok(session(connection, 0))
    }

    async fn open(&self, connection: &mut D::Connection, sql: &str) -> Result<(), Fault> {
        let limit = self.0.settings.statement_timeout;
        match tokio::time::timeout(limit + GRACE, D::run(connection, sql)).await {
            Ok(outcome) => outcome.map_err(fault::<D>),
            Err(_) => Err(Fault { failure: timeout(limit), duplicate: None, unanswered: true }),
        }
    }

    /// An idle connection, the last one used first.
    fn reuse(&self) -> Option<Idle<D>> {
        let mut idle = lock(&self.0.idle);
        idle.retain(|idle| idle.since.elapsed() < IDLE);
        idle.pop()
    }

    async fn connect(&self) -> Result<D::Connection, Failure> {
        use std::sync::atomic::Ordering;
        let settings = &self.0.settings;
        let attempt = async {
            let plain = settings.without_tls.as_ref().filter(|_| self.0.plain.load(Ordering::Relaxed));
            let mut connection = match plain.unwrap_or(&settings.options).connect().await {
                Err(sqlx::Error::Tls(error)) if error.to_string() == "server does not support TLS" => {
                    let without = settings.without_tls.as_ref().ok_or(sqlx::Error::Tls(error))?;
                    self.0.plain.store(true, Ordering::Relaxed);
                    without.connect().await?
                }
                other => other?,
            };
            for statement in &settings.setup {
                D::run(&mut connection, statement).await?;
            }
            Ok::<_, sqlx::Error>(connection)
        };
        match tokio::time::timeout(settings.connect_timeout, attempt).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(connect_failure::<D>(error)),
            Err(_) => Err(Failure::new(
                FailureKind::Unreachable,
                format!(
                    "the database did not accept a connection within {}",
                    farrier_model::time::format_duration(settings.connect_timeout)
                ),
            )),
        }
    }
}

#[async_trait]
impl<D: Driver> Database for Pool<D> {
    fn dialect(&self) -> &'static dyn Dialect {
        D::dialect()
    }
    async fn read(&self) -> Result<Box<dyn Session>, Failure> {
        self.begin(D::dialect().begin_read()).await
    }
    async fn write(&self) -> Result<Box<dyn Session>, Failure> {
        self.begin(D::dialect().begin_write()).await
    }
}

struct Open<D: Driver> {
    /// Nothing once the connection cannot be used again.
    connection: Option<D::Connection>,
    /// How much text of statements the connection keeps, at most.
    kept: usize,
    /// Statements take as long as they need.
    unhurried: bool,
    shared: Arc<Shared<D>>,
    _permit: OwnedSemaphorePermit,
}

impl<D: Driver> Open<D> {
    /// Runs `work` within the statement timeout. A connection in an unknown state is dropped, which closes it.
    async fn within<T>(
        &mut self,
        work: impl AsyncFnOnce(&mut D::Connection) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let Some(mut connection) = self.connection.take() else {
            return Err(Failure::new(
                FailureKind::Unreachable,
                "the connection to the database was lost before",
            )
            .into());
        };
        let limit = if self.unhurried { UNHURRIED } else { self.shared.settings.statement_timeout };
        let limited = async {
            D::limit(&mut connection, limit).await.map_err(fault::<D>)?;
            work(&mut connection).await
        };
        match tokio::time::timeout(limit + GRACE, limited).await {
            Ok(outcome) => {
                if !matches!(&outcome, Err(fault) if fault.unanswered) {
                    self.connection = Some(connection);
                }
                outcome
            }
            Err(_) => Err(Fault { failure: timeout(limit), duplicate: None, unanswered: true }),
        }
    }

    fn arguments(params: &[Param]) -> Result<D::Arguments, Fault> {
        let mut arguments = D::Arguments::default();
        for param in params {
            D::bind(&mut arguments, param).map_err(|error| {
                Failure::new(FailureKind::Input, format!("a value cannot be sent to the database: {error}"))
            })?;
        }
        Ok(arguments)
    }

    fn give_back(mut self) {
        if let Some(connection) = self.connection.take()
            && self.kept <= KEPT
            && !self.unhurried
        {
            lock(&self.shared.idle).push(Idle { since: Instant::now(), connection, kept: self.kept });
        }
    }
}

#[async_trait]
impl<D: Driver> Session for Open<D> {
    fn dialect(&self) -> &'static dyn Dialect {
        D::dialect()
    }

    async fn execute(&mut self, sql: &str, params: &[Param]) -> Result<u64, Fault> {
        let arguments = Self::arguments(params)?;
        self.kept += if D::KEEPS { sql.len() } else { 0 };
        self.within(async |connection| D::execute(connection, sql, arguments).await.map_err(fault::<D>)).await
    }

    async fn run(&mut self, sql: &str) -> Result<(), Fault> {
        self.within(async |connection| D::run(connection, sql).await.map_err(fault::<D>)).await
    }

    async fn take_time(&mut self) -> Result<(), Fault> {
        self.unhurried = true;
        match D::dialect().without_limit() {
            Some(sql) => self.run(sql).await,
            None => Ok(()),
        }
    }

    async fn fetch(&mut self, sql: &str, params: &[Param], each: &mut EachRow<'_>) -> Result<(), Fault> {
        let arguments = Self::arguments(params)?;
        self.kept += if D::KEEPS { sql.len() } else { 0 };
        self.within(async |connection| {
            let mut rows = D::fetch(connection, sql, arguments);
            while let Some(row) = rows.try_next().await.map_err(fault::<D>)? {
                if each(&Fetched::<D>(row))?.is_break() {
                    break;
                }
            }
            Ok(())
        })
        .await
    }

    async fn commit(mut self: Box<Self>) -> Result<(), Failure> {
        match self.within(async |connection| D::run(connection, "COMMIT").await.map_err(fault::<D>)).await {
            Ok(()) => {
                self.give_back();
                Ok(())
            }
            Err(fault) if fault.unanswered => {
                let mut failure = fault.failure;
                failure.message =
                    format!("{}; whether the changes were committed is not known", failure.message);
                Err(failure.in_doubt())
            }
            Err(fault) => {
                self.rollback().await;
                Err(fault.failure)
            }
        }
    }

    async fn rollback(mut self: Box<Self>) {
        if self
            .within(async |connection| D::run(connection, "ROLLBACK").await.map_err(fault::<D>))
            .await
            .is_ok()
        {
            self.give_back();
        }
    }
}

/// A server's row behind [`Row`].
struct Fetched<D: Driver>(D::Row);

impl<D: Driver> Row for Fetched<D> {
    fn names(&self) -> Vec<String> {
        D::names(&self.0)
    }
    fn cell(&self, index: usize) -> Result<Cell<'_>, Failure> {
        D::cell(&self.0, index).map_err(|reason| {
            let name = D::names(&self.0).get(index).cloned().unwrap_or_default();
            Failure::new(FailureKind::Refused, format!("column `{name}` cannot be read: {reason}"))
        })
    }
}

/// The rows of a small answer, as values.
pub(crate) async fn fetch_values(
    session: &mut dyn Session,
    sql: &str,
    params: &[Param],
) -> Result<Vec<Vec<farrier_model::Value>>, Fault> {
    let mut rows = Vec::new();
    session
        .fetch(sql, params, &mut |row| {
            let width = row.names().len();
            rows.push(
                (0..width)
                    .map(|index| row.cell(index).map(|cell| cell.to_value()))
                    .collect::<Result<_, _>>()?,
            );
            Ok(ControlFlow::Continue(()))
        })
        .await?;
    Ok(rows)
}

fn timeout(limit: Duration) -> Failure {
    let limit = farrier_model::time::format_duration(limit);
    Failure::new(FailureKind::Timeout, format!("the statement took longer than {limit}"))
        .help("raise `statement_timeout` of the target in the environment, or make the statement smaller")
}

/// Sorts any sqlx error.
fn fault<D: Driver>(error: sqlx::Error) -> Fault {
    let lost = |message: String| Fault {
        failure: Failure::new(FailureKind::Unreachable, message),
        duplicate: None,
        unanswered: true,
    };
    match error {
        sqlx::Error::Database(error) => D::fault(&*error),
        sqlx::Error::Io(error) => lost(format!("the connection to the database was lost: {error}")),
        sqlx::Error::Tls(error) => lost(format!("the encrypted connection to the database broke: {error}")),
        sqlx::Error::WorkerCrashed => lost("the connection to the database was lost".into()),
        sqlx::Error::Protocol(reason) => {
            lost(format!("the database gave an answer that makes no sense: {reason}"))
        }
        sqlx::Error::Encode(error) => {
            Failure::new(FailureKind::Input, format!("a value cannot be sent to the database: {error}"))
                .into()
        }
        other => Failure::new(FailureKind::Refused, other.to_string()).into(),
    }
}

fn connect_failure<D: Driver>(error: sqlx::Error) -> Failure {
    match error {
        sqlx::Error::Io(error) => {
            Failure::new(FailureKind::Unreachable, format!("cannot connect to the database: {error}"))
        }
        sqlx::Error::Tls(error) => Failure::new(
            FailureKind::Unreachable,
            format!("no encrypted connection to the database: {error}"),
        )
        .help("the server's certificate must be valid for the host in `url`; give its authority as `tls_ca`"),
        sqlx::Error::Configuration(error) => Failure::new(FailureKind::Input, error.to_string()),
        other => fault::<D>(other).failure,
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
