//! Real databases take the tables' definitions and rows, and hold every byte of them.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod support;

use farrier_testkit::mariadb::MariaDb;
use farrier_testkit::postgres::Postgres;
use farrier_toolforge::{Dialect, DriftCounts, Tables, World, oracle};
use support::{dump, same_tables, selects};

fn tables() -> Tables {
    let world = World::generate(80, 4);
    let homes = tempfile::tempdir().unwrap();
    world.write_homes(homes.path()).unwrap();
    let current =
        oracle::expected(&world.ldif(), homes.path(), &world.project, 1_700_000_000).tables().unwrap();
    current.drifted(DriftCounts { added: 4, changed: 10, removed: 3, renamed: 2 }, 4, 1_600_000_000).tables
}

fn check(dialect: Dialect, exec: impl Fn(&str) -> String) {
    let tables = tables();
    exec(&dialect.schema());
    exec(&tables.insert_sql(dialect));
    let [tools, users] = selects(dialect).map(|select| exec(&select).trim_end().to_owned());
    same_tables(&(tools, users), &dump(&tables));
}

#[test]
fn mariadb_holds_the_rows() {
    let database = MariaDb::shared().fresh_database();
    check(Dialect::MariaDb, |sql| database.exec(sql));
}

#[test]
fn postgresql_holds_the_rows() {
    let database = Postgres::shared().fresh_database();
    check(Dialect::Postgres, |sql| database.exec(sql));
}
