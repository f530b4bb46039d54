//! MariaDB: accounts in `mysql.global_priv`, grants as `SHOW GRANTS` tells them.

use std::collections::BTreeMap;

use async_trait::async_trait;
use farrier_model::{Failure, FailureKind, Value};

use super::grants::{Grants, Scope};
use super::{AccountName, AccountState, Hash, Order, Server, quietly};
use crate::database::{Fault, Session, fetch_values};
use crate::value::Param;

/// Names in one question.
const NAMES_AT_ONCE: usize = 1_000;

/// The adapter.
pub(crate) struct MariaServer;

#[async_trait]
impl Server for MariaServer {
    async fn accounts(
        &self,
        session: &mut dyn Session,
        wanted: Option<&[AccountName]>,
    ) -> Result<BTreeMap<AccountName, AccountState>, Failure> {
        // The binary collation makes names exact: `S1` is not `s1`.
        const SELECT: &str = "SELECT CAST(User AS CHAR), CAST(Host AS CHAR), \
             CAST(JSON_VALUE(Priv, '$.authentication_string') AS CHAR), \
             CAST(COALESCE(JSON_VALUE(Priv, '$.account_locked'), '0') AS CHAR), \
             CAST(COALESCE(JSON_VALUE(Priv, '$.max_user_connections'), 0) AS SIGNED) \
             FROM mysql.global_priv WHERE COALESCE(JSON_VALUE(Priv, '$.is_role'), '0') = '0'";
        let mut found = BTreeMap::new();
        let mut read = |rows: Vec<Vec<Value>>| {
            for row in rows {
                let text = |at: usize| row[at].as_str().unwrap_or_default();
                let name = AccountName { user: text(0).to_owned(), host: text(1).to_owned() };
                let limit = row[4].as_int().and_then(|limit| u32::try_from(limit).ok()).unwrap_or(0);
                let state = AccountState {
                    hash: Hash::stored(text(2)),
                    locked: matches!(text(3), "1" | "true"),
                    max_user_connections: limit,
                };
                if wanted.is_none_or(|wanted| wanted.binary_search(&name).is_ok()) {
                    found.insert(name, state);
                }
            }
        };
        match wanted {
            None => read(fetch_values(session, SELECT, &[]).await.map_err(unseen)?),
            Some(wanted) => {
                for names in wanted.chunks(NAMES_AT_ONCE) {
                    let places = vec!["?"; names.len()].join(", ");
                    let params: Vec<Param> =
                        names.iter().map(|name| Param::Text(name.user.as_str().into())).collect();
                    let sql = format!("{SELECT} AND User IN ({places})");
                    read(fetch_values(session, &sql, &params).await.map_err(unseen)?);
                }
            }
        }
        Ok(found)
    }

    async fn grants(&self, session: &mut dyn Session, name: &AccountName) -> Result<Option<Grants>, Failure> {
        let sql = format!("SHOW GRANTS FOR {}", name.quoted());
        let lines = match fetch_values(session, &sql, &[]).await {
            Ok(lines) => lines,
            Err(fault) if fault.failure.message.contains("no such grant defined for user") => {
                return Ok(None);
            }
            Err(fault) => return Err(unseen(fault)),
        };
        let mut grants = Grants::default();
        for line in &lines {
            let line = line.first().and_then(Value::as_str).unwrap_or_default();
            // Grants of its roles stand below its own.
            if line.contains(&format!("`{}`@`{}`", name.user, name.host)) {
                grants.read(line)?;
            }
        }
        Ok(Some(grants))
    }

    async fn perform(&self, session: &mut dyn Session, order: &Order<'_>) -> Result<(), Fault> {
        let list = |what: &[&str]| what.join(", ");
        let sql = match order {
            Order::Create { name, hash, max_user_connections } => format!(
                "CREATE USER {} IDENTIFIED BY PASSWORD '{}' WITH MAX_USER_CONNECTIONS {max_user_connections}",
                name.quoted(),
                hash.reveal()
            ),
            Order::Password { name, hash } => {
                format!("ALTER USER {} IDENTIFIED BY PASSWORD '{}'", name.quoted(), hash.reveal())
            }
            Order::Limit { name, max_user_connections } => {
                format!("ALTER USER {} WITH MAX_USER_CONNECTIONS {max_user_connections}", name.quoted())
            }
            Order::Lock { name, locked } => {
                format!("ALTER USER {} ACCOUNT {}", name.quoted(), if *locked { "LOCK" } else { "UNLOCK" })
            }
            Order::Drop { name } => format!("DROP USER {}", name.quoted()),
            Order::Grant { name, on: Scope::Roles, what } => {
                return roles(session, "GRANT", "TO", name, what).await;
            }
            Order::Revoke { name, on: Scope::Roles, what } => {
                return roles(session, "REVOKE", "FROM", name, what).await;
            }
            Order::Grant { name, on: Scope::DefaultRole, what } => {
                format!(
                    "SET DEFAULT ROLE `{}` FOR {}",
                    what.first().copied().unwrap_or_default(),
                    name.quoted()
                )
            }
            Order::Revoke { name, on: Scope::DefaultRole, .. } => {
                format!("SET DEFAULT ROLE NONE FOR {}", name.quoted())
            }
            Order::Grant { name, on, what } => {
                format!("GRANT {} ON {} TO {}", list(what), on.quoted(), name.quoted())
            }
            Order::Revoke { name, on, what } => {
                format!("REVOKE {} ON {} FROM {}", list(what), on.quoted(), name.quoted())
            }
        };
        session.run(&sql).await.map_err(|fault| match order {
            Order::Create { hash, .. } | Order::Password { hash, .. } => quietly(fault, hash),
            _ => fault,
        })
    }

    async fn databases(&self, session: &mut dyn Session) -> Result<Vec<String>, Failure> {
        let rows = fetch_values(
            session,
            "SELECT CAST(schema_name AS CHAR) FROM information_schema.schemata WHERE schema_name NOT IN \
             ('mysql', 'information_schema', 'performance_schema', 'sys') ORDER BY schema_name",
            &[],
        )
        .await?;
        Ok(rows.iter().filter_map(|row| row[0].as_str().map(str::to_owned)).collect())
    }

    async fn sizes(
        &self,
        session: &mut dyn Session,
        names: &[String],
    ) -> Result<BTreeMap<String, u64>, Failure> {
        let mut sizes: BTreeMap<String, u64> = names.iter().map(|name| (name.clone(), 0)).collect();
        for names in names.chunks(NAMES_AT_ONCE) {
            // With the names the server looks into their folders alone. Views have no length.
            let marks = vec!["?"; names.len()].join(", ");
            let sql = format!(
                "SELECT CAST(table_schema AS CHAR), CAST(SUM(COALESCE(data_length + index_length, 0)) AS SIGNED) \
                 FROM information_schema.tables WHERE table_schema IN ({marks}) GROUP BY table_schema"
            );
            let params: Vec<Param> = names.iter().map(|name| Param::Text(name.as_str().into())).collect();
            let rows = fetch_values(session, &sql, &params).await?;
            sizes.extend(rows.iter().filter_map(|row| super::size(row)));
        }
        Ok(sizes)
    }

    async fn drop_database(&self, session: &mut dyn Session, name: &str) -> Result<(), Fault> {
        session.run(&format!("DROP DATABASE `{name}`")).await
    }
}

/// One statement for each role, because a statement has one.
async fn roles(
    session: &mut dyn Session,
    verb: &str,
    to: &str,
    name: &AccountName,
    what: &[&str],
) -> Result<(), Fault> {
    for role in what {
        // The option goes with the membership.
        let role = role.strip_suffix(" WITH ADMIN OPTION").unwrap_or(role);
        session.run(&format!("{verb} `{role}` {to} {}", name.quoted())).await?;
    }
    Ok(())
}

fn unseen(fault: Fault) -> Failure {
    let failure = fault.failure;
    match failure.kind {
        FailureKind::Denied => failure.help("the account of `read_as` needs SELECT on the database `mysql`"),
        _ => failure,
    }
}
