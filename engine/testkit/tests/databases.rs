//! The databases that tests get: their own on a shared server, with their own statement log.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::net::TcpStream;
use std::process::Command;

use farrier_testkit::mariadb::{self, MariaDb};
use farrier_testkit::postgres::{self, Postgres};

/// Runs SQL through a database's own URL, as a test's subject would.
fn run_as_subject(url: &str, sql: &str) -> Result<String, String> {
    let (_, rest) = url.split_once("://").unwrap();
    let (who, place) = rest.rsplit_once('@').unwrap();
    let (user, password) = who.split_once(':').unwrap();
    let (address, database) = place.split_once('/').unwrap();
    let (host, port) = address.split_once(':').unwrap();
    let mut command;
    if url.starts_with("mysql://") {
        command = Command::new("mariadb");
        command.args([
            "--no-defaults",
            "--protocol=tcp",
            "-N",
            "-h",
            host,
            "-P",
            port,
            "-u",
            user,
            "-e",
            sql,
            database,
        ]);
        command.env("MYSQL_PWD", password);
    } else {
        command = Command::new("psql");
        command.args(["-X", "-q", "-t", "-A", "-d", url, "-c", sql]);
    }
    let output = command.output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

#[test]
fn mariadb_databases_are_apart_and_log_their_own_statements() {
    let server = MariaDb::shared();
    let (one, other) = (server.fresh_database(), server.fresh_database());
    one.exec(
        "CREATE TABLE tools (name VARCHAR(64) PRIMARY KEY, note TEXT); INSERT INTO tools VALUES ('a', NULL);",
    );
    assert_eq!(one.exec("SELECT * FROM tools"), "a\tNULL\n");
    assert!(other.try_exec("SELECT * FROM tools").is_err());
    assert_eq!(one.statements(), Vec::<String>::new(), "helpers are not logged");

    assert_eq!(run_as_subject(&one.url(), "SELECT name FROM tools").unwrap(), "a\n");
    assert_eq!(run_as_subject(&one.reader_url(), "SELECT name FROM tools").unwrap(), "a\n");
    assert_eq!(one.writes(), Vec::<String>::new());
    assert!(one.statements().contains(&"SELECT name FROM tools".to_owned()), "{:?}", one.statements());

    run_as_subject(&one.url(), "DELETE FROM tools").unwrap();
    let refused = run_as_subject(&one.reader_url(), "INSERT INTO tools VALUES ('b', '')").unwrap_err();
    assert!(refused.contains("denied"), "{refused}");
    assert_eq!(one.writes(), ["DELETE FROM tools", "INSERT INTO tools VALUES ('b', '')"]);
    assert_eq!(other.statements(), Vec::<String>::new());
}

#[test]
fn postgres_databases_are_apart_and_log_their_own_statements() {
    let server = Postgres::shared();
    let (one, other) = (server.fresh_database(), server.fresh_database());
    one.exec("CREATE TABLE tools (name text PRIMARY KEY, note text); INSERT INTO tools VALUES ('a', NULL);");
    assert_eq!(one.exec("SELECT * FROM tools"), "a\tNULL\n");
    assert!(other.try_exec("SELECT * FROM tools").is_err());
    assert_eq!(one.statements(), Vec::<String>::new(), "helpers are not logged");

    assert_eq!(run_as_subject(&one.url(), "SELECT name\nFROM tools").unwrap(), "a\n");
    assert_eq!(run_as_subject(&one.reader_url(), "SELECT name FROM tools").unwrap(), "a\n");
    assert_eq!(one.statements(), ["SELECT name\nFROM tools", "SELECT name FROM tools"]);
    assert_eq!(one.writes(), Vec::<String>::new());

    run_as_subject(&one.url(), "DELETE FROM tools").unwrap();
    let refused = run_as_subject(&one.reader_url(), "INSERT INTO tools VALUES ('b', '')").unwrap_err();
    assert!(refused.contains("denied"), "{refused}");
    assert_eq!(one.writes(), ["DELETE FROM tools", "INSERT INTO tools VALUES ('b', '')"]);
    assert_eq!(other.statements(), Vec::<String>::new());
}

#[test]
fn a_dropped_database_is_gone_with_its_users() {
    let (maria, postgres) = (MariaDb::shared().fresh_database(), Postgres::shared().fresh_database());
    let (maria_name, postgres_name) = (maria.name().to_owned(), postgres.name().to_owned());
    // A connection that is still open, as a pool leaves it, must not keep it.
    let mut open = Command::new("psql")
        .args(["-X", "-q", "-d", &postgres.url()])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    farrier_testkit::wait_until("the open connection", || {
        postgres.exec(&format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{postgres_name}'"))
            == "1\n"
    });
    drop((maria, postgres));
    drop(open.stdin.take());
    open.wait().unwrap();
    let left = MariaDb::shared().fresh_database();
    assert_eq!(left.exec(&format!("SHOW DATABASES LIKE '{maria_name}'")), "");
    assert_eq!(left.exec(&format!("SELECT user FROM mysql.user WHERE user LIKE '{maria_name}%'")), "");
    let left = Postgres::shared().fresh_database();
    assert_eq!(left.exec(&format!("SELECT rolname FROM pg_roles WHERE rolname LIKE '{postgres_name}%'")), "");
}

#[test]
fn stopped_servers_refuse_connections_and_keep_their_rows() {
    let (mut maria, mut postgres) = (MariaDb::start(), Postgres::start());
    let (maria_database, postgres_database): (mariadb::Database, postgres::Database) =
        (maria.fresh_database(), postgres.fresh_database());
    maria_database.exec("CREATE TABLE t (n INT); INSERT INTO t VALUES (7)");
    postgres_database.exec("CREATE TABLE t (n int); INSERT INTO t VALUES (7)");
    maria.stop();
    postgres.stop();
    for url in [maria.url(), postgres.url()] {
        let address = url.rsplit_once('@').unwrap().1.to_owned();
        assert!(TcpStream::connect(&address).is_err(), "{url}");
    }
    maria.start_again();
    postgres.start_again();
    assert_eq!(maria_database.exec("SELECT n FROM t"), "7\n");
    assert_eq!(postgres_database.exec("SELECT n FROM t"), "7\n");
}
