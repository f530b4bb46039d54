//! `sql.grants`.

use std::collections::BTreeMap;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::account::{about, account_of, at, drift, everywhere};
use crate::database::Session;
use crate::server::grants::{ALL, ALL_ON_DATABASES, GRANT_OPTION, Grants, Scope};
use crate::server::{self, AccountName, Order, Server, database_name_error};
use crate::target::Sql;

/// Gives accounts of a MariaDB server the grants that they lack, and takes away those that are too much, when told so.
///
/// The grants of each account are compared with the wanted ones as sets: what is missing is granted, what is surplus is
/// named in the output or, with `surplus: revoke`, revoked. Databases are named by text that stands for itself. In a
/// pattern of the server's own, `_` stands for any character, so that `s1__%` would reach the databases of `s12`; here it
/// is escaped, and a grant that somebody once wrote without escaping is surplus.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SetGrants {
    /// The server.
    target: Target<Sql>,
    /// The names of the accounts. Each must exist when the grants are made.
    accounts: Vec<String>,
    /// The hosts that they may come from. Default `%`, all.
    #[serde(default = "everywhere")]
    host: String,
    /// What each of them is to have.
    #[schemars(length(min = 1))]
    grants: Vec<Wanted>,
    /// What happens to grants that are not listed.
    #[serde(default)]
    surplus: Surplus,
    /// A step before this one makes the accounts, so a plan may not find them yet. Default false.
    #[serde(default)]
    may_be_new: bool,
}

/// One grant: `privileges` on exactly one of `database`, `prefix`, `suffix` and `own`, or a `role`.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// What may be done, in the server's words: `SELECT`, `SHOW VIEW`, or `ALL PRIVILEGES`.
    #[serde(default)]
    privileges: Vec<String>,
    /// On the database of this name.
    database: Option<String>,
    /// On databases whose names begin with this.
    prefix: Option<String>,
    /// On databases whose names end in this.
    suffix: Option<String>,
    /// On databases whose names begin with the account's own name and then this, such as `__`.
    own: Option<String>,
    /// Membership in a role instead.
    role: Option<String>,
    /// The role is active after login.
    #[serde(default)]
    default: bool,
}

/// What happens to grants that are not listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Surplus {
    /// They stay, and the output names them.
    #[default]
    Keep,
    /// They are revoked.
    Revoke,
}

/// What `sql.grants` found and did.
#[derive(Debug, Serialize, JsonSchema)]
pub struct GrantsSet {
    /// How many accounts were looked at.
    accounts: usize,
    /// How many are changed.
    changed: usize,
    /// What accounts have beyond the wanted grants, as `ACCOUNT: PRIVILEGE on SCOPE`; empty when it is revoked.
    surplus: Vec<String>,
}

/// One account: what it has, and what it is to have.
struct Compared {
    held: Grants,
    after: Grants,
    surplus: Vec<String>,
}

impl Wanted {
    /// What it comes to for one account.
    fn resolve(&self, name: &AccountName) -> Result<Vec<(Scope, Vec<String>)>, Failure> {
        let wrong = |message: String| Err(Failure::new(FailureKind::Input, message));
        let plain =
            |text: &str| text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '$'));
        let places = [&self.database, &self.prefix, &self.suffix, &self.own];
        let places: Vec<&String> = places.into_iter().flatten().collect();
        if let Some(role) = &self.role {
            if !places.is_empty() || !self.privileges.is_empty() {
                return wrong(format!(
                    "the grant of the role `{role}` cannot have other parts than `default`"
                ));
            }
            AccountName::new(role, "%")?;
            let mut granted = vec![(Scope::Roles, vec![role.clone()])];
            if self.default {
                granted.push((Scope::DefaultRole, vec![role.clone()]));
            }
            return Ok(granted);
        }
        let [place] = places[..] else {
            return wrong(
                "a grant names exactly one of `database`, `prefix`, `suffix`, `own` and `role`".into(),
            );
        };
        if self.default {
            return wrong("`default` is for a role".into());
        }
        if place.is_empty() || place.len() > 64 || !plain(place) {
            return wrong(format!(
                "`{}` is no part of a database's name: letters, digits, `_`, `-` and `$`; `%` has no meaning here",
                place.escape_debug()
            ));
        }
        let scope = if let Some(database) = &self.database {
            if let Some(error) = database_name_error(database) {
                return wrong(error);
            }
            Scope::databases("", database, "")
        } else if let Some(suffix) = &self.suffix {
            Scope::databases("%", suffix, "")
        } else if let Some(own) = &self.own {
            Scope::databases("", &format!("{}{own}", name.user), "%")
        } else {
            Scope::databases("", place, "%")
        };
        if self.privileges.is_empty() {
            return wrong("a grant names no `privileges`".into());
        }
        let known = |what: &String| {
            let what = what.to_ascii_uppercase();
            let what = if what == "ALL" { ALL.to_owned() } else { what };
            if what == ALL || what == GRANT_OPTION || ALL_ON_DATABASES.contains(&what.as_str()) {
                Ok(what)
            } else {
                Err(Failure::new(
                    FailureKind::Input,
                    format!("`{}` cannot be granted on databases", what.escape_debug()),
                )
                .help(format!("what can: {ALL}, {}", ALL_ON_DATABASES.join(", "))))
            }
        };
        Ok(vec![(scope, self.privileges.iter().map(known).collect::<Result<_, _>>()?)])
    }
}

impl SetGrants {
    /// What each account is to have.
    fn wanted(&self) -> Result<BTreeMap<AccountName, Grants>, Failure> {
        if self.grants.is_empty() {
            return Err(Failure::new(FailureKind::Input, "`grants` names no grant"));
        }
        // Found also when no account is given.
        let example = AccountName { user: "account".into(), host: "%".into() };
        for wanted in &self.grants {
            wanted.resolve(&example)?;
        }
        let mut all = BTreeMap::new();
        for user in &self.accounts {
            let name = AccountName::new(user, &self.host)?;
            let mut grants = Grants::default();
            for (scope, what) in self
                .grants
                .iter()
                .map(|wanted| wanted.resolve(&name))
                .collect::<Result<Vec<_>, _>>()?
                .concat()
            {
                grants.add(scope, what);
            }
            all.insert(name, grants);
        }
        Ok(all)
    }

    async fn compare(
        &self,
        server: &dyn Server,
        session: &mut dyn Session,
        name: &AccountName,
        wanted: &Grants,
    ) -> Result<Compared, Failure> {
        let held = server.grants(session, name).await?;
        let Some(held) = held.or_else(|| self.may_be_new.then(Grants::default)) else {
            return Err(Failure::new(FailureKind::Refused, format!("there is no account `{name}`"))
                .help("make it in a step before this one, with `sql.account`"));
        };
        let mut surplus = Vec::new();
        let mut after = Grants::default();
        for (scope, what) in &held.0 {
            let wanted = wanted.on(scope);
            let all = wanted.contains(ALL);
            for what in what {
                if wanted.contains(what) || all && what != GRANT_OPTION {
                    after.add(scope.clone(), [what.clone()]);
                } else if self.surplus == Surplus::Keep {
                    after.add(scope.clone(), [what.clone()]);
                    surplus.push(format!("{}: {what} on {scope}", name.user));
                }
            }
        }
        for (scope, what) in &wanted.0 {
            // There is one default role at most.
            if *scope == Scope::DefaultRole {
                after.0.remove(scope);
            }
            after.add(scope.clone(), what.iter().cloned());
        }
        Ok(Compared { held, after, surplus })
    }

    fn change(name: &AccountName, compared: &Compared) -> Option<Change> {
        let scopes: Vec<&Scope> = compared
            .held
            .0
            .keys()
            .chain(compared.after.0.keys())
            .filter(|scope| compared.held.on(scope) != compared.after.on(scope))
            .collect::<std::collections::BTreeSet<_>>()
            .into_iter()
            .collect();
        (!scopes.is_empty()).then(|| Change {
            object: format!("grants of {name}").into(),
            kind: ChangeKind::Update,
            before: compared.held.shown(scopes.iter().copied()),
            after: compared.after.shown(scopes.iter().copied()),
            fingerprint: None,
        })
    }

    async fn look(&self, cx: &ReadCx) -> Result<Planned<GrantsSet>, Failure> {
        let wanted = self.wanted()?;
        let reader = cx.reader(&self.target).await?;
        let server = server::of(&*reader.0)?;
        let mut session = reader.0.read().await?;
        let mut output = GrantsSet { accounts: wanted.len(), changed: 0, surplus: Vec::new() };
        let mut changes = Vec::new();
        for (name, wanted) in &wanted {
            let mut compared = self.compare(server, &mut *session, name, wanted).await?;
            changes.extend(Self::change(name, &compared));
            output.surplus.append(&mut compared.surplus);
        }
        session.rollback().await;
        output.changed = changes.len();
        let considered = wanted.len();
        Ok(Planned::changes(changes, output).considered(considered))
    }
}

/// Brings the grants of one account on some scopes from one state to another, if they are in either. Only looks whether
/// they are, unless it is to `act`.
async fn bring(
    server: &dyn Server,
    session: &mut dyn Session,
    name: &AccountName,
    (from, to): (&Value, &Value),
    act: bool,
) -> Result<(), Failure> {
    let Some(held) = server.grants(session, name).await? else { return Err(drift(name)) };
    let mut orders = Vec::new();
    for (scope, to) in to.as_map().into_iter().flat_map(farrier_model::Map::iter) {
        let from = from.get(scope).cloned().unwrap_or_default();
        let scope = Scope::parse(scope);
        let now = held.shown([&scope]);
        let now = now.get(&scope.to_string()).cloned().unwrap_or_default();
        if now == *to {
            continue;
        }
        if now != from {
            return Err(Failure::new(
                FailureKind::Drift,
                format!("what `{name}` may do on {scope} is not as the plan saw it; it was left alone"),
            ));
        }
        orders.push((scope, now, to.clone()));
    }
    if !act {
        return Ok(());
    }
    let perform = async |session: &mut dyn Session, order: Order<'_>| {
        server.perform(session, &order).await.map_err(|fault| about(name, fault))
    };
    // What is taken first, because taking everything would take a part that was just given.
    for (on, now, to) in &orders {
        let (now, to) = (set(now), set(to));
        let replaced = *on == Scope::DefaultRole && !to.is_empty() || to.contains(&ALL);
        let gone: Vec<&str> = now.iter().filter(|what| !to.contains(what)).copied().collect();
        let gone: Vec<&str> =
            if replaced { gone.into_iter().filter(|what| *what == GRANT_OPTION).collect() } else { gone };
        if !gone.is_empty() {
            perform(session, Order::Revoke { name, on, what: gone }).await?;
        }
    }
    for (on, now, to) in &orders {
        let (now, to) = (set(now), set(to));
        let new: Vec<&str> = to.iter().filter(|what| !now.contains(what)).copied().collect();
        if !new.is_empty() {
            perform(session, Order::Grant { name, on, what: new }).await?;
        }
    }
    Ok(())
}

/// The parts of what [`Grants::shown`] shows of one scope.
fn set(shown: &Value) -> Vec<&str> {
    // Columns in brackets have commas of their own.
    let text = shown.as_str().unwrap_or_default();
    let mut parts = Vec::new();
    let (mut depth, mut from) = (0_usize, 0);
    for (at, c) in text.char_indices() {
        match c {
            '(' => depth += 1,
            ')' => depth = depth.saturating_sub(1),
            ',' if depth == 0 => {
                parts.push(text[from..at].trim());
                from = at + 1;
            }
            _ => {}
        }
    }
    parts.push(text[from..].trim());
    parts.retain(|part| !part.is_empty());
    parts
}

impl Action for SetGrants {
    const NAME: &'static str = "sql.grants";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
grants:
  uses: sql.grants
  with:
    target: database
    accounts: [s52503]
    grants:
      - { privileges: [SELECT, SHOW VIEW], suffix: _p }
      - { privileges: [ALL PRIVILEGES], own: __ }
  undo: restore
";
    type Output = GrantsSet;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<GrantsSet>, Failure> {
        self.look(cx).await.map_err(|failure| at(failure, self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<GrantsSet, Failure> {
        let done = async {
            let wanted = self.wanted()?;
            let writer = cx.writer(&self.target).await?;
            let server = server::of(&*writer.0)?;
            let mut session = writer.0.write().await?;
            // All are compared before the first is changed, because each change lasts at once.
            for act in [false, true] {
                for change in changes {
                    let name = account_of(change, "grants of ")?;
                    bring(server, &mut *session, &name, (&change.before, &change.after), act).await?;
                }
            }
            let mut output =
                GrantsSet { accounts: wanted.len(), changed: changes.len(), surplus: Vec::new() };
            for (name, wanted) in &wanted {
                let mut compared = self.compare(server, &mut *session, name, wanted).await?;
                output.surplus.append(&mut compared.surplus);
            }
            session.rollback().await;
            Ok(output)
        };
        done.await.map_err(|failure| at(failure, self.target.alias()))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let done = async {
            let writer = cx.writer(&self.target).await?;
            let server = server::of(&*writer.0)?;
            let mut session = writer.0.write().await?;
            for change in changes.iter().rev() {
                let name = account_of(change, "grants of ")?;
                // An account that is gone has no grants to be taken.
                if server.grants(&mut *session, &name).await?.is_none()
                    && change.before.as_map().is_none_or(|map| map.iter().all(|(_, held)| held.is_null()))
                {
                    continue;
                }
                bring(server, &mut *session, &name, (&change.after, &change.before), true).await?;
            }
            session.rollback().await;
            Ok(())
        };
        done.await.map_err(|failure| at(failure, self.target.alias()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_has_one_place_and_its_text_stands_for_itself() {
        let name = AccountName::new("s1", "%").unwrap();
        let resolved = |json: &str| {
            let wanted: Wanted = Value::from_json(json).unwrap().read().map_err(|error| error.to_string())?;
            let granted = wanted.resolve(&name).map_err(|failure| failure.message)?;
            Ok::<String, String>(
                granted
                    .iter()
                    .map(|(scope, what)| format!("{} on {scope}", what.join(" ")))
                    .collect::<Vec<_>>()
                    .join(", "),
            )
        };
        for (json, expected) in [
            (r#"{"privileges":["select"],"suffix":"_p"}"#, r"SELECT on `%\_p`.*"),
            (r#"{"privileges":["ALL"],"own":"__"}"#, r"ALL PRIVILEGES on `s1\_\_%`.*"),
            (r#"{"privileges":["INSERT","SELECT"],"database":"meta_p"}"#, r"INSERT SELECT on `meta\_p`.*"),
            (r#"{"privileges":["INSERT"],"prefix":"x_"}"#, r"INSERT on `x\_%`.*"),
            (r#"{"role":"labsdbuser","default":true}"#, "labsdbuser on roles, labsdbuser on default role"),
        ] {
            assert_eq!(resolved(json).as_deref(), Ok(expected), "{json}");
        }
        for wrong in [
            "{}",
            r#"{"privileges":["SELECT"]}"#,
            r#"{"privileges":["SELECT"],"suffix":"_p","own":"__"}"#,
            r#"{"privileges":["SELECT"],"prefix":"%"}"#,
            r#"{"privileges":["SELECT"],"prefix":""}"#,
            r#"{"privileges":["SELECT"],"database":"mysql"}"#,
            r#"{"privileges":["SELECT"],"own":"`"}"#,
            r#"{"privileges":["SUPER"],"own":"__"}"#,
            r#"{"privileges":[],"own":"__"}"#,
            r#"{"role":"a","own":"__"}"#,
            r#"{"role":"a`b"}"#,
            r#"{"privileges":["SELECT"],"pattern":"s1__%"}"#,
        ] {
            assert!(resolved(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn columns_keep_their_commas() {
        assert_eq!(
            set(&Value::text("INSERT, SELECT (`a`, `b`), UPDATE")),
            ["INSERT", "SELECT (`a`, `b`)", "UPDATE"]
        );
        assert!(set(&Value::Null).is_empty());
    }
}
