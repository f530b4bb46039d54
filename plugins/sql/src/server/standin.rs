//! The stand-in on SQLite: a server's accounts, grants and databases in three tables of the file.
//!
//! ```text
//! server_accounts(user, host, password_hash, locked, max_user_connections, is_role)
//! server_grants(user, host, granted_on, privilege)
//! server_databases(name)
//! ```
//!
//! `granted_on` is written as MariaDB shows it: `` `%\_p`.* ``, `*.*`, `roles`, `default role`. The tables of a database have
//! its name and a dot before their own: `"s50014__links.pages"`. Tables that are not there are empty.

use std::collections::{BTreeMap, BTreeSet};

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind, Value};

use super::grants::{ALL, ALL_ON_DATABASES, GRANT_OPTION, Grants, Scope};
use super::{AccountName, AccountState, Hash, Order, Server};
use crate::database::{Fault, Session, fetch_values};
use crate::value::Param;

const TABLES: [&str; 3] = [
    "CREATE TABLE IF NOT EXISTS server_accounts (user text NOT NULL, host text NOT NULL DEFAULT '%', \
     password_hash text, locked integer NOT NULL DEFAULT 0, max_user_connections integer NOT NULL DEFAULT 0, \
     is_role integer NOT NULL DEFAULT 0, PRIMARY KEY (user, host))",
    "CREATE TABLE IF NOT EXISTS server_grants (user text NOT NULL, host text NOT NULL DEFAULT '%', \
     granted_on text NOT NULL, privilege text NOT NULL, PRIMARY KEY (user, host, granted_on, privilege))",
    "CREATE TABLE IF NOT EXISTS server_databases (name text NOT NULL PRIMARY KEY)",
];

/// The adapter.
pub(crate) struct StandInServer;

fn text(text: &str) -> Param {
    Param::Text(text.into())
}

/// Rows of one of the tables, none when there is no such table.
async fn rows(session: &mut dyn Session, sql: &str, params: &[Param]) -> Result<Vec<Vec<Value>>, Fault> {
    match fetch_values(session, sql, params).await {
        Err(fault) if fault.failure.message.contains("no such table: server_") => Ok(Vec::new()),
        other => other,
    }
}

impl StandInServer {
    async fn held(&self, session: &mut dyn Session, name: &AccountName) -> Result<Grants, Fault> {
        let rows = rows(
            session,
            "SELECT granted_on, privilege FROM server_grants WHERE user = ? AND host = ?",
            &[text(&name.user), text(&name.host)],
        )
        .await?;
        let mut grants = Grants::default();
        for row in rows {
            let cell = |at: usize| row[at].as_str().unwrap_or_default();
            grants.add(Scope::parse(cell(0)), [cell(1).to_owned()]);
        }
        Ok(grants)
    }

    async fn is(&self, session: &mut dyn Session, name: &AccountName, role: bool) -> Result<bool, Fault> {
        let found = rows(
            session,
            "SELECT 1 FROM server_accounts WHERE user = ? AND host = ? AND is_role = ?",
            &[text(&name.user), text(&name.host), Param::Int(i64::from(role))],
        )
        .await?;
        Ok(!found.is_empty())
    }

    /// Writes what an account may do on one scope.
    async fn keep(
        &self,
        session: &mut dyn Session,
        name: &AccountName,
        on: &Scope,
        held: &BTreeSet<String>,
    ) -> Result<(), Fault> {
        let (user, host, on) = (text(&name.user), text(&name.host), text(&on.to_string()));
        session
            .execute(
                "DELETE FROM server_grants WHERE user = ? AND host = ? AND granted_on = ?",
                &[user.clone(), host.clone(), on.clone()],
            )
            .await?;
        for privilege in held {
            session
                .execute(
                    "INSERT INTO server_grants (user, host, granted_on, privilege) VALUES (?, ?, ?, ?)",
                    &[user.clone(), host.clone(), on.clone(), text(privilege)],
                )
                .await?;
        }
        Ok(())
    }

    async fn update(
        &self,
        session: &mut dyn Session,
        name: &AccountName,
        set: &str,
        value: Param,
    ) -> Result<(), Fault> {
        let sql = format!("UPDATE server_accounts SET {set} = ? WHERE user = ? AND host = ? AND is_role = 0");
        let changed = session.execute(&sql, &[value, text(&name.user), text(&name.host)]).await?;
        if changed == 1 { Ok(()) } else { Err(refused("ALTER USER", name)) }
    }

    async fn obey(&self, session: &mut dyn Session, order: &Order<'_>) -> Result<(), Fault> {
        match order {
            Order::Create { name, hash, max_user_connections } => {
                if self.is(session, name, false).await? {
                    return Err(refused("CREATE USER", name));
                }
                session
                    .execute(
                        "INSERT INTO server_accounts (user, host, password_hash, max_user_connections) VALUES (?, ?, ?, ?)",
                        &[
                            text(&name.user),
                            text(&name.host),
                            text(hash.reveal()),
                            Param::Int(i64::from(*max_user_connections)),
                        ],
                    )
                    .await?;
                Ok(())
            }
            Order::Password { name, hash } => {
                self.update(session, name, "password_hash", text(hash.reveal())).await
            }
            Order::Limit { name, max_user_connections } => {
                let limit = Param::Int(i64::from(*max_user_connections));
                self.update(session, name, "max_user_connections", limit).await
            }
            Order::Lock { name, locked } => {
                self.update(session, name, "locked", Param::Int(i64::from(*locked))).await
            }
            Order::Drop { name } => {
                let params = [text(&name.user), text(&name.host)];
                let sql = "DELETE FROM server_accounts WHERE user = ? AND host = ? AND is_role = 0";
                if session.execute(sql, &params).await? == 0 {
                    return Err(refused("DROP USER", name));
                }
                session.execute("DELETE FROM server_grants WHERE user = ? AND host = ?", &params).await?;
                Ok(())
            }
            Order::Grant { name, on, what } => {
                if !self.is(session, name, false).await? {
                    return Err(said(FailureKind::Refused, "can't find any matching row in the user table"));
                }
                if matches!(on, Scope::Roles | Scope::DefaultRole) {
                    for role in what {
                        let role_name = AccountName { user: (*role).to_owned(), host: String::new() };
                        if !self.is(session, &role_name, true).await? {
                            return Err(said(
                                FailureKind::Refused,
                                &format!("invalid role specification `{role}`"),
                            ));
                        }
                    }
                }
                let mut grants = self.held(session, name).await?;
                if **on == Scope::DefaultRole {
                    grants.0.remove(on);
                }
                grants.add((*on).clone(), what.iter().map(|what| (*what).to_owned()));
                self.keep(session, name, on, &grants.on(on)).await
            }
            Order::Revoke { name, on, what } => {
                let mut held = self.held(session, name).await?.on(on);
                if held.is_empty() {
                    let there = format!(
                        "there is no such grant defined for user '{}' on host '{}'",
                        name.user, name.host
                    );
                    return Err(said(FailureKind::Refused, &there));
                }
                if held.contains(ALL) && !what.contains(&ALL) {
                    held.remove(ALL);
                    held.extend(ALL_ON_DATABASES.map(str::to_owned));
                }
                held.retain(|held| {
                    !what.contains(&held.as_str()) && (!what.contains(&ALL) || held == GRANT_OPTION)
                });
                self.keep(session, name, on, &held).await
            }
        }
    }
}

#[async_trait]
impl Server for StandInServer {
    async fn accounts(
        &self,
        session: &mut dyn Session,
        wanted: Option<&[AccountName]>,
    ) -> Result<BTreeMap<AccountName, AccountState>, Failure> {
        let rows = rows(
            session,
            "SELECT user, host, password_hash, locked, max_user_connections FROM server_accounts WHERE is_role = 0",
            &[],
        )
        .await?;
        let found = rows.iter().map(|row| {
            let text = |at: usize| row[at].as_str().unwrap_or_default();
            let number = |at: usize| row[at].as_int().unwrap_or(0);
            let state = AccountState {
                hash: Hash::stored(text(2)),
                locked: number(3) != 0,
                max_user_connections: u32::try_from(number(4)).unwrap_or(0),
            };
            (AccountName { user: text(0).to_owned(), host: text(1).to_owned() }, state)
        });
        Ok(found.filter(|(name, _)| wanted.is_none_or(|wanted| wanted.binary_search(name).is_ok())).collect())
    }

    async fn grants(&self, session: &mut dyn Session, name: &AccountName) -> Result<Option<Grants>, Failure> {
        if !self.is(session, name, false).await? {
            return Ok(None);
        }
        Ok(Some(self.held(session, name).await?))
    }

    async fn perform(&self, session: &mut dyn Session, order: &Order<'_>) -> Result<(), Fault> {
        for table in TABLES {
            session.run(table).await?;
        }
        self.obey(session, order).await?;
        // As on the server, where such statements commit by themselves.
        session.run("COMMIT").await?;
        session.run("BEGIN IMMEDIATE").await
    }

    async fn databases(&self, session: &mut dyn Session) -> Result<Vec<String>, Failure> {
        let rows = rows(session, "SELECT name FROM server_databases ORDER BY name", &[]).await?;
        Ok(rows.iter().filter_map(|row| row[0].as_str().map(str::to_owned)).collect())
    }

    async fn sizes(
        &self,
        session: &mut dyn Session,
        names: &[String],
    ) -> Result<BTreeMap<String, u64>, Failure> {
        let mut sizes: BTreeMap<String, u64> = names.iter().map(|name| (name.clone(), 0)).collect();
        for name in names {
            let sql = "SELECT ?, SUM(pgsize) FROM dbstat WHERE name IN \
                 (SELECT name FROM sqlite_master WHERE substr(tbl_name, 1, length(?) + 1) = ? || '.')";
            let rows = rows(session, sql, &[text(name), text(name), text(name)]).await?;
            sizes.extend(rows.iter().filter_map(|row| super::size(row)));
        }
        Ok(sizes)
    }

    async fn drop_database(&self, session: &mut dyn Session, name: &str) -> Result<(), Fault> {
        let tables = fetch_values(
            session,
            "SELECT name, type FROM sqlite_master WHERE type IN ('table', 'view') AND substr(name, 1, length(?) + 1) = ? || '.' \
             ORDER BY type DESC",
            &[text(name), text(name)],
        )
        .await?;
        for row in tables {
            let (table, kind) = (row[0].as_str().unwrap_or_default(), row[1].as_str().unwrap_or_default());
            session.run(&format!("DROP {kind} \"{}\"", table.replace('"', "\"\""))).await?;
        }
        session.execute("DELETE FROM server_databases WHERE name = ?", &[text(name)]).await?;
        session.run("COMMIT").await?;
        session.run("BEGIN IMMEDIATE").await
    }
}

fn said(kind: FailureKind, message: &str) -> Fault {
    Failure::new(kind, message).into()
}

fn refused(operation: &str, name: &AccountName) -> Fault {
    said(FailureKind::Refused, &format!("operation {operation} failed for {}", name.quoted()))
}
