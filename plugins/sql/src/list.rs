//! `sql.list_accounts` and `sql.list_databases`: what a server has, by names that stand for themselves.

use std::collections::BTreeMap;

use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::{at, everywhere};
use crate::hashes::StoredHashes;
use crate::server::{self, AccountName};
use crate::target::Sql;

/// Says which of the listed accounts a MariaDB server has, and how they are.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListAccounts {
    /// The server.
    target: Target<Sql>,
    /// The names of the accounts. Without any, the server is not asked.
    accounts: Vec<String>,
    /// The hosts that they may come from. Default `%`, all.
    #[serde(default = "everywhere")]
    host: String,
    /// Where the hashes of their passwords are kept; with it, `password_differs` is known.
    password_hashes: Option<StoredHashes>,
}

/// What `sql.list_accounts` found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AccountsListed {
    /// What records call the server: its `server_name` in the environment, or `HOST:PORT`.
    server: String,
    /// By name: `present` or `absent`.
    status: BTreeMap<String, &'static str>,
    /// How many are present.
    present: usize,
    /// Those that are not there.
    absent: Vec<String>,
    /// Those that cannot log in.
    locked: Vec<String>,
    /// Those that have another password than the recorded one.
    password_differs: Vec<String>,
}

impl Action for ListAccounts {
    const NAME: &'static str = "sql.list_accounts";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
there:
  uses: sql.list_accounts
  with:
    target: replica
    accounts: [s52503, u12903]
    password_hashes: { target: accounts, table: account, account: mysql_username, hash: password_hash }
";
    type Output = AccountsListed;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<AccountsListed>, Failure> {
        let listed = async {
            let mut names = self
                .accounts
                .iter()
                .map(|user| AccountName::new(user, &self.host))
                .collect::<Result<Vec<_>, _>>()?;
            names.sort();
            names.dedup();
            let reader = cx.reader(&self.target).await?;
            let server = server::of(&*reader.0)?;
            let hashes = match &self.password_hashes {
                Some(hashes) => {
                    let users: Vec<&str> = names.iter().map(|name| name.user.as_str()).collect();
                    hashes.read(cx, &users).await?
                }
                None => BTreeMap::new(),
            };
            // Without any name there is nothing to ask, and how the server is called is known while it is away.
            let states = if names.is_empty() {
                BTreeMap::new()
            } else {
                let mut session = reader.0.read().await?;
                let states = server.accounts(&mut *session, Some(&names)).await?;
                session.rollback().await;
                states
            };
            let mut listed = AccountsListed {
                server: reader.1.name.clone(),
                status: BTreeMap::new(),
                present: states.len(),
                absent: Vec::new(),
                locked: Vec::new(),
                password_differs: Vec::new(),
            };
            for name in names {
                let user = name.user.clone();
                let state = states.get(&name);
                listed.status.insert(user.clone(), if state.is_some() { "present" } else { "absent" });
                let Some(state) = state else {
                    listed.absent.push(user);
                    continue;
                };
                if state.locked {
                    listed.locked.push(user.clone());
                }
                if hashes.get(&user).is_some_and(|hash| state.hash.as_ref() != Some(hash)) {
                    listed.password_differs.push(user);
                }
            }
            Ok(Planned::known(listed))
        };
        listed.await.map_err(|failure| at(failure, self.target.alias()))
    }
}

/// Lists the databases of a MariaDB server whose names begin with a text.
///
/// The text stands for itself. In `SHOW DATABASES LIKE 's1__%'` each `_` stands for any character, so that the databases
/// of `s12` would be among those of `s1`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ListDatabases {
    /// The server.
    target: Target<Sql>,
    /// How the names begin, to the letter.
    prefix: String,
}

/// What `sql.list_databases` found.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DatabasesListed {
    /// Their names, in order.
    databases: Vec<String>,
    /// How many bytes the tables and indexes of each take, as the server estimates it.
    sizes: BTreeMap<String, u64>,
    /// The same of all together.
    bytes: u64,
}

impl Action for ListDatabases {
    const NAME: &'static str = "sql.list_databases";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
databases:
  uses: sql.list_databases
  with: { target: database, prefix: s52503__ }
";
    type Output = DatabasesListed;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<DatabasesListed>, Failure> {
        let listed = async {
            if self.prefix.is_empty() {
                return Err(Failure::new(
                    FailureKind::Input,
                    "`prefix` is empty, and would mean every database",
                ));
            }
            let reader = cx.reader(&self.target).await?;
            let server = server::of(&*reader.0)?;
            let mut session = reader.0.read().await?;
            let mut databases = server.databases(&mut *session).await?;
            databases.retain(|name| name.starts_with(&self.prefix));
            let sizes = server.sizes(&mut *session, &databases).await?;
            session.rollback().await;
            Ok(Planned::known(DatabasesListed { databases, bytes: sizes.values().sum(), sizes }))
        };
        listed.await.map_err(|failure| at(failure, self.target.alias()))
    }
}
