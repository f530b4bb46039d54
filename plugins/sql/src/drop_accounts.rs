//! `sql.drop_accounts`.

use std::collections::BTreeMap;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, Effect, Failure};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::{AccountsSet, Differs, SetAccount, State, everywhere};
use crate::hashes::StoredHashes;
use crate::target::Sql;

/// Removes accounts of a MariaDB server.
///
/// Only accounts that are listed are removed, each by its exact name, and only as the plan saw it: one whose grants changed
/// meanwhile stays. What an account might do is recorded. When the step knows where the hash of its password is kept, undo
/// makes the account again with its grants; otherwise nothing brings it back. Databases are not touched.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DropAccounts {
    /// The server.
    target: Target<Sql>,
    /// The names of the accounts. None are none: no account is ever removed for not being listed.
    accounts: Vec<String>,
    /// The hosts that they may come from. Default `%`, all.
    #[serde(default = "everywhere")]
    host: String,
    /// Where the hashes of their passwords are kept, for undo.
    password_hashes: Option<StoredHashes>,
}

/// What `sql.drop_accounts` did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AccountsDropped {
    /// How many are removed.
    dropped: usize,
    /// How many were gone already.
    missing: usize,
}

impl From<AccountsSet> for AccountsDropped {
    fn from(set: AccountsSet) -> AccountsDropped {
        AccountsDropped { dropped: set.changed, missing: set.accounts - set.changed.min(set.accounts) }
    }
}

impl DropAccounts {
    /// The same as a wish for accounts that are not there.
    fn wish(&self) -> SetAccount {
        SetAccount {
            target: self.target.clone(),
            accounts: self.accounts.clone(),
            host: self.host.clone(),
            state: State::Absent,
            password: None,
            password_hashes: self.password_hashes.clone(),
            when_password_differs: Differs::Keep,
            max_user_connections: None,
            max_user_connections_of: BTreeMap::new(),
        }
    }
}

impl Action for DropAccounts {
    const NAME: &'static str = "sql.drop_accounts";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Destructive;
    const DELETES: bool = true;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
gone:
  uses: sql.drop_accounts
  needs: []
  with:
    target: replica
    accounts: [s52503]
  undo: none
";
    type Output = AccountsDropped;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<AccountsDropped>, Failure> {
        let planned = self.wish().plan(cx).await?;
        Ok(Planned {
            changes: planned.changes,
            output: planned.output.map(AccountsDropped::from),
            unknown: planned.unknown,
            fidelity: planned.fidelity,
            considered: planned.considered,
            notes: planned.notes,
            wait: planned.wait,
        })
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<AccountsDropped, Failure> {
        self.wish().apply(cx, changes).await.map(AccountsDropped::from)
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        self.wish().undo(cx, changes).await
    }
}
