//! `sql.account`.

use std::collections::BTreeMap;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::database::{Fault, Session};
use crate::hashes::StoredHashes;
use crate::server::grants::{Grants, Scope};
use crate::server::{self, AccountName, AccountState, Hash, Order, Server};
use crate::target::{Known, Sql};

/// Makes, locks or unlocks accounts of a MariaDB server.
///
/// Accounts are compared as they are, so a step that finds everything as wanted changes nothing. A password is named, never
/// written: as one of the target's `passwords` in the environment, or as a column of a table that keeps the hashes of
/// many. It is read at the moment of use, hashed here, and stands in no plan, no journal and no message. An account that has
/// another password than the wanted one keeps it, and is named in the output, unless `when_password_differs` says `set`.
///
/// Undo removes accounts that the step made, if they are as it made them, and takes back locks and limits. What it cannot
/// bring back is a replaced password. To remove accounts there is `sql.drop_accounts`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetAccount {
    /// The server.
    pub(crate) target: Target<Sql>,
    /// The names of the accounts.
    pub(crate) accounts: Vec<String>,
    /// The hosts that they may come from. Default `%`, all.
    #[serde(default = "everywhere")]
    pub(crate) host: String,
    /// How they are to be.
    pub(crate) state: State,
    /// The password of an account that is made: its name under the target's `passwords`.
    pub(crate) password: Option<String>,
    /// The same for many accounts: where the hashes of their passwords are kept.
    pub(crate) password_hashes: Option<StoredHashes>,
    /// What happens to an account that has another password.
    #[serde(default)]
    pub(crate) when_password_differs: Differs,
    /// How many connections each may hold at a time; 0 for as many as the server allows. Left out, it is not looked at.
    pub(crate) max_user_connections: Option<u32>,
    /// Another number for some of them, by name.
    #[serde(default)]
    pub(crate) max_user_connections_of: BTreeMap<String, u32>,
}

pub(crate) fn everywhere() -> String {
    "%".into()
}

/// How an account is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It exists. Whether it is locked stays as it is, so that nobody's lock is lifted by the way.
    Present,
    /// It exists and cannot log in. One that does not exist is not made.
    Locked,
    /// It exists and can log in. One that does not exist is not made.
    Unlocked,
    /// It does not exist; the way of `sql.drop_accounts`.
    #[serde(skip)]
    #[schemars(skip)]
    Absent,
}

/// What happens to an account that has another password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Differs {
    /// It keeps it, and the output names it.
    #[default]
    Keep,
    /// It gets the wanted one. Undo cannot bring back the former.
    Set,
}

/// What `sql.account` found and did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct AccountsSet {
    /// How many accounts were looked at.
    pub(crate) accounts: usize,
    /// How many are changed.
    pub(crate) changed: usize,
    /// Those that have another password than the wanted one.
    password_differs: Vec<String>,
    /// Those that do not exist, of those that are to be locked or unlocked.
    missing: Vec<String>,
}

/// The passwords that this step knows, by account.
#[derive(Default)]
struct Passwords(BTreeMap<AccountName, Hash>);

impl SetAccount {
    /// What needs no server.
    fn names(&self) -> Result<Vec<AccountName>, Failure> {
        let input = |message: &str| Err(Failure::new(FailureKind::Input, message));
        if self.password.is_some() && self.password_hashes.is_some() {
            return input("`password` and `password_hashes` exclude each other");
        }
        if self.password.is_some() && self.accounts.len() > 1 {
            return input("`password` is for one account; give many theirs by `password_hashes`");
        }
        if self.state == State::Present && self.password.is_none() && self.password_hashes.is_none() {
            return input("an account that is made needs `password` or `password_hashes`");
        }
        let mut names = self
            .accounts
            .iter()
            .map(|user| AccountName::new(user, &self.host))
            .collect::<Result<Vec<_>, _>>()?;
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn limit(&self, name: &AccountName) -> Option<u32> {
        self.max_user_connections_of.get(&name.user).copied().or(self.max_user_connections)
    }

    async fn passwords(
        &self,
        cx: &ReadCx,
        known: &Known,
        names: &[AccountName],
    ) -> Result<Passwords, Failure> {
        let mut passwords = Passwords::default();
        if let (Some(password), [name]) = (&self.password, names) {
            let hash = Hash::of(&known.password(password).await?);
            passwords.0.insert(name.clone(), hash);
        }
        if let Some(hashes) = &self.password_hashes {
            let users: Vec<&str> = names.iter().map(|name| name.user.as_str()).collect();
            let mut found = hashes.read(cx, &users).await?;
            passwords.0 = names
                .iter()
                .filter_map(|name| found.remove(&name.user).map(|hash| (name.clone(), hash)))
                .collect();
        }
        Ok(passwords)
    }

    /// How the password is told: where it comes from.
    fn source(&self) -> Value {
        match (&self.password, &self.password_hashes) {
            (Some(name), _) => Value::text(format!("`{name}` of the environment")),
            (None, Some(hashes)) => Value::text(format!("as recorded in {hashes}")),
            (None, None) => Value::Null,
        }
    }

    /// The change that an account needs, if any.
    fn compare(
        &self,
        name: &AccountName,
        state: Option<&AccountState>,
        passwords: &Passwords,
    ) -> Result<Option<Change>, Failure> {
        let object = format!("account {name}");
        let Some(state) = state else {
            if self.state != State::Present {
                return Ok(None);
            }
            if !passwords.0.contains_key(name) {
                let source = self.source();
                return Err(Failure::new(
                    FailureKind::Refused,
                    format!("there is no password for the account `{name}`, which is to be made ({source})"),
                ));
            }
            let mut after = vec![("password", self.source())];
            after.push(("max_user_connections", Value::Int(self.limit(name).unwrap_or(0).into())));
            return Ok(Some(Change {
                object: object.into(),
                kind: ChangeKind::Create,
                before: Value::Null,
                after: Value::map(after),
                fingerprint: None,
            }));
        };
        let (mut before, mut after) = (Vec::new(), Vec::new());
        match self.state {
            State::Absent => {
                return Ok(Some(Change {
                    object: object.into(),
                    kind: ChangeKind::Delete,
                    before: Value::map([
                        ("locked", Value::Bool(state.locked)),
                        ("max_user_connections", Value::Int(state.max_user_connections.into())),
                    ]),
                    after: Value::Null,
                    fingerprint: None,
                }));
            }
            State::Locked | State::Unlocked => {
                let wanted = self.state == State::Locked;
                if state.locked != wanted {
                    before.push(("locked", Value::Bool(state.locked)));
                    after.push(("locked", Value::Bool(wanted)));
                }
            }
            State::Present => {}
        }
        if self.when_password_differs == Differs::Set && passwords.differ(name, state) {
            before.push(("password", Value::text("another")));
            after.push(("password", self.source()));
        }
        if let Some(limit) = self.limit(name)
            && limit != state.max_user_connections
        {
            before.push(("max_user_connections", Value::Int(state.max_user_connections.into())));
            after.push(("max_user_connections", Value::Int(limit.into())));
        }
        if before.is_empty() {
            return Ok(None);
        }
        Ok(Some(Change {
            object: object.into(),
            kind: ChangeKind::Update,
            before: Value::map(before),
            after: Value::map(after),
            fingerprint: None,
        }))
    }

    async fn look(&self, cx: &ReadCx) -> Result<Planned<AccountsSet>, Failure> {
        let names = self.names()?;
        let reader = cx.reader(&self.target).await?;
        if let Some(password) = &self.password {
            reader.1.check_password(password)?;
        }
        let server = server::of(&*reader.0)?;
        let passwords = self.passwords(cx, &reader.1, &names).await?;
        let mut session = reader.0.read().await?;
        let states = server.accounts(&mut *session, Some(&names)).await?;
        let mut changes = Vec::new();
        let mut output = AccountsSet {
            accounts: names.len(),
            changed: 0,
            password_differs: Vec::new(),
            missing: Vec::new(),
        };
        for name in &names {
            let state = states.get(name);
            if let Some(mut change) = self.compare(name, state, &passwords)? {
                if change.kind == ChangeKind::Delete {
                    let grants = server.grants(&mut *session, name).await?.unwrap_or_default();
                    change.before = with_grants(&change.before, &grants);
                }
                changes.push(change);
            }
            match state {
                Some(state)
                    if passwords.differ(name, state) && self.when_password_differs == Differs::Keep =>
                {
                    output.password_differs.push(name.user.clone());
                }
                None if matches!(self.state, State::Locked | State::Unlocked) => {
                    output.missing.push(name.user.clone());
                }
                _ => {}
            }
        }
        session.rollback().await;
        output.changed = changes.len();
        let considered = states.len();
        Ok(Planned::changes(changes, output).considered(considered))
    }

    /// Brings one account to how a change wants it, if it still is as the plan saw it. Only looks whether it is, unless
    /// it is to `act`.
    async fn bring(
        &self,
        server: &dyn Server,
        session: &mut dyn Session,
        name: &AccountName,
        change: &Change,
        (passwords, act): (&Passwords, bool),
    ) -> Result<(), Failure> {
        let states = server.accounts(session, Some(std::slice::from_ref(name))).await?;
        let state = states.get(name);
        // Compared again with what is wanted: what is done already is not done twice.
        let Some(now) = self.compare(name, state, passwords)? else { return Ok(()) };
        let mut now_before = now.before.clone();
        if now.kind == ChangeKind::Delete {
            let grants = server.grants(session, name).await?.unwrap_or_default();
            now_before = with_grants(&now.before, &grants);
        }
        if now.kind != change.kind || !still(&now_before, &change.before) {
            return Err(drift(name));
        }
        if !act {
            return Ok(());
        }
        let hash = passwords.0.get(name);
        match now.kind {
            ChangeKind::Create => {
                let hash = hash.ok_or_else(|| drift(name))?;
                let max_user_connections = self.limit(name).unwrap_or(0);
                perform(server, session, name, &Order::Create { name, hash, max_user_connections }).await
            }
            ChangeKind::Delete => perform(server, session, name, &Order::Drop { name }).await,
            _ => {
                let wants = |field: &str| now.after.get(field).is_some();
                if wants("locked") {
                    let locked = self.state == State::Locked;
                    perform(server, session, name, &Order::Lock { name, locked }).await?;
                }
                if wants("max_user_connections") {
                    let max_user_connections = self.limit(name).unwrap_or(0);
                    perform(server, session, name, &Order::Limit { name, max_user_connections }).await?;
                }
                match hash {
                    Some(hash) if wants("password") => {
                        perform(server, session, name, &Order::Password { name, hash }).await
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Takes one change back.
    async fn take_back(
        &self,
        server: &dyn Server,
        session: &mut dyn Session,
        name: &AccountName,
        change: &Change,
        passwords: &Passwords,
    ) -> Result<(), Failure> {
        let states = server.accounts(session, Some(std::slice::from_ref(name))).await?;
        let state = states.get(name);
        match (change.kind, state) {
            (ChangeKind::Create, None) | (ChangeKind::Delete, Some(_)) => Ok(()),
            (ChangeKind::Create, Some(state)) => {
                let limit = change.after.get("max_user_connections").and_then(Value::as_int);
                if state.locked || Some(i64::from(state.max_user_connections)) != limit {
                    return Err(drift(name));
                }
                perform(server, session, name, &Order::Drop { name }).await
            }
            (ChangeKind::Delete, None) => {
                let Some(hash) = passwords.0.get(name) else {
                    return Err(Failure::new(
                        FailureKind::Refused,
                        format!(
                            "the account `{name}` cannot be brought back: its password is recorded nowhere"
                        ),
                    )
                    .help("name where its hash is kept under `password_hashes`"));
                };
                let limit = change.before.get("max_user_connections").and_then(Value::as_int).unwrap_or(0);
                let max_user_connections = u32::try_from(limit).unwrap_or(0);
                perform(server, session, name, &Order::Create { name, hash, max_user_connections }).await?;
                for (scope, what) in recorded_grants(&change.before) {
                    let what: Vec<&str> = what.iter().map(String::as_str).collect();
                    perform(server, session, name, &Order::Grant { name, on: &scope, what }).await?;
                }
                match change.before.get("locked").and_then(Value::as_bool) {
                    Some(true) => perform(server, session, name, &Order::Lock { name, locked: true }).await,
                    _ => Ok(()),
                }
            }
            (_, None) => Err(drift(name)),
            (_, Some(state)) => {
                if change.after.get("password").is_some() {
                    return Err(Failure::new(
                        FailureKind::Refused,
                        format!(
                            "the former password of `{name}` is recorded nowhere and cannot be brought back"
                        ),
                    ));
                }
                let both = |field: &str| change.before.get(field).zip(change.after.get(field));
                if let Some((before, after)) = both("locked") {
                    let now = Value::Bool(state.locked);
                    let locked = before.as_bool().unwrap_or(false);
                    if now == *after {
                        perform(server, session, name, &Order::Lock { name, locked }).await?;
                    } else if now != *before {
                        return Err(drift(name));
                    }
                }
                if let Some((before, after)) = both("max_user_connections") {
                    let now = Value::Int(state.max_user_connections.into());
                    let limit = before.as_int().and_then(|limit| u32::try_from(limit).ok()).unwrap_or(0);
                    if now == *after {
                        perform(server, session, name, &Order::Limit { name, max_user_connections: limit })
                            .await?;
                    } else if now != *before {
                        return Err(drift(name));
                    }
                }
                Ok(())
            }
        }
    }
}

impl Passwords {
    /// Whether an account has another password than the one that is known.
    fn differ(&self, name: &AccountName, state: &AccountState) -> bool {
        self.0.get(name).is_some_and(|hash| state.hash.as_ref() != Some(hash))
    }
}

async fn perform(
    server: &dyn Server,
    session: &mut dyn Session,
    name: &AccountName,
    order: &Order<'_>,
) -> Result<(), Failure> {
    server.perform(session, order).await.map_err(|fault| about(name, fault))
}

/// What went wrong with one account among many. Statements about accounts last at once, so one without an answer may have
/// happened.
pub(crate) fn about(name: &AccountName, fault: Fault) -> Failure {
    let mut failure = fault.failure;
    failure.message = format!("account `{name}`: {}", failure.message);
    if fault.unanswered { failure.in_doubt() } else { failure }
}

pub(crate) fn drift(name: &AccountName) -> Failure {
    Failure::new(
        FailureKind::Drift,
        format!("the account `{name}` is not as the plan saw it; it was left alone"),
    )
}

/// Whether every planned value is still there.
fn still(now: &Value, planned: &Value) -> bool {
    match (now.as_map(), planned.as_map()) {
        (Some(now), Some(planned)) => {
            planned.iter().all(|(field, value)| now.get(field).is_none_or(|now| now == value))
        }
        _ => now.is_null() && planned.is_null(),
    }
}

/// What is recorded of an account that goes: its grants as well.
fn with_grants(before: &Value, grants: &Grants) -> Value {
    let mut fields: Vec<(String, Value)> = before
        .as_map()
        .map(|map| map.iter().map(|(field, value)| (field.to_string(), value.clone())).collect())
        .unwrap_or_default();
    fields.push(("grants".into(), grants.shown(grants.0.keys())));
    Value::map(fields)
}

/// Reads back what [`with_grants`] wrote.
fn recorded_grants(before: &Value) -> Vec<(Scope, Vec<String>)> {
    let Some(grants) = before.get("grants").and_then(Value::as_map) else { return Vec::new() };
    grants
        .iter()
        .map(|(scope, what)| {
            let what = what.as_str().unwrap_or_default();
            (Scope::parse(scope), what.split(", ").map(str::to_owned).collect())
        })
        .collect()
}

/// The account that a change is about.
pub(crate) fn account_of(change: &Change, prefix: &str) -> Result<AccountName, Failure> {
    let name = change.object.strip_prefix(prefix).and_then(|name| name.rsplit_once('@'));
    match name {
        Some((user, host)) => AccountName::new(user, host),
        None => Err(Failure::new(FailureKind::Internal, format!("`{}` is no account", change.object))),
    }
}

impl Action for SetAccount {
    const NAME: &'static str = "sql.account";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
account:
  uses: sql.account
  with:
    target: replica
    accounts: [s52503]
    state: present
    password_hashes: { target: accounts, table: account, account: mysql_username, hash: password_hash }
    max_user_connections: 10
  undo: restore
";
    type Output = AccountsSet;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<AccountsSet>, Failure> {
        self.look(cx).await.map_err(|failure| at(failure, self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<AccountsSet, Failure> {
        let done = async {
            let names = self.names()?;
            let writer = cx.writer(&self.target).await?;
            let server = server::of(&*writer.0)?;
            let passwords = self.passwords(cx, &writer.1, &names).await?;
            let mut session = writer.0.write().await?;
            // All are compared before the first is changed, because each change lasts at once.
            for act in [false, true] {
                for change in changes {
                    let name = account_of(change, "account ")?;
                    self.bring(server, &mut *session, &name, change, (&passwords, act)).await?;
                }
            }
            let states = server.accounts(&mut *session, Some(&names)).await?;
            session.rollback().await;
            let keeps = self.when_password_differs == Differs::Keep;
            let users = |which: &dyn Fn(&AccountName) -> bool| {
                names.iter().filter(|name| which(name)).map(|name| name.user.clone()).collect()
            };
            Ok(AccountsSet {
                accounts: names.len(),
                changed: changes.len(),
                password_differs: users(&|name| {
                    keeps && states.get(name).is_some_and(|state| passwords.differ(name, state))
                }),
                missing: users(&|name| {
                    matches!(self.state, State::Locked | State::Unlocked) && !states.contains_key(name)
                }),
            })
        };
        done.await.map_err(|failure| at(failure, self.target.alias()))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let done = async {
            let names = self.names()?;
            let writer = cx.writer(&self.target).await?;
            let server = server::of(&*writer.0)?;
            let passwords = self.passwords(cx, &writer.1, &names).await?;
            let mut session = writer.0.write().await?;
            for change in changes.iter().rev() {
                let name = account_of(change, "account ")?;
                self.take_back(server, &mut *session, &name, change, &passwords).await?;
            }
            session.rollback().await;
            Ok(())
        };
        done.await.map_err(|failure| at(failure, self.target.alias()))
    }
}

/// Names the target, unless another one is at fault.
pub(crate) fn at(failure: Failure, alias: &str) -> Failure {
    if failure.target.is_some() { failure } else { failure.at(alias) }
}
