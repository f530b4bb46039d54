//! `ldap.delete`.

use std::collections::HashSet;

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::directory::{Directory, Entry, Query, Refusal, Scope, code, fetch};
use crate::dn::{Dn, Rdn, named};
use crate::filter::Filter;
use crate::restore::{add_all, delete_all, image, whole_entry};
use crate::schema::is_secret;
use crate::target::Ldap;
use crate::values::{Wanted, shown};

/// Deletes entries.
///
/// An entry that is not there is no change. Each is compared with what the plan saw and deleted only if nobody changed
/// it; where the directory knows the Assertion control (OpenLDAP does) that is one step, elsewhere a change in the
/// moment between can be lost. With `if_is`, an entry that is not so is an error, and nothing is deleted. Entries that have others under them are refused, unless those are listed too. Undo adds
/// the entries again with their attributes, and with a lock on the account, but without passwords, which are not
/// recorded.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delete {
    /// The directory.
    target: Target<Ldap>,
    /// The entries: `{ base: "ou=people,dc=example,dc=org", rdn: [uid, alice] }`.
    entries: Vec<Doomed>,
}

/// An entry to delete.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Doomed {
    /// The entry above, or the entry itself when there is no `rdn`.
    base: Dn,
    /// The attribute and the value that tell the entry from its neighbours.
    #[serde(default)]
    rdn: Option<Rdn>,
    /// Values that it must have to be deleted, in the form of `ldap.modify`; null for an attribute that must be absent.
    #[serde(default)]
    if_is: Option<Wanted>,
}

impl Doomed {
    fn dn(&self) -> Dn {
        named(&self.base, self.rdn.as_ref())
    }
}

/// What was deleted.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Deleted {
    /// The names of the entries that were there.
    deleted: Vec<String>,
}

impl Delete {
    /// The names, each once, what is under an entry before the entry.
    fn names(&self) -> Result<Vec<Dn>, Failure> {
        if self.entries.is_empty() {
            return Err(Failure::new(FailureKind::Input, "`entries` is empty"));
        }
        let mut seen = HashSet::new();
        let mut names: Vec<Dn> =
            self.entries.iter().map(Doomed::dn).filter(|dn| seen.insert(dn.key())).collect();
        names.sort_by_key(|dn| std::cmp::Reverse(dn.depth()));
        Ok(names)
    }

    /// Holds an entry against its conditions. What they compare is in the record, and is compared again before the write.
    fn judge(&self, dn: &Dn, entry: &Entry) -> Result<(), Failure> {
        let conditions = self.entries.iter().filter(|doomed| doomed.dn().key() == dn.key());
        for wanted in conditions.filter_map(|doomed| doomed.if_is.as_ref()) {
            if let Some(attribute) = wanted.0.differences(entry).first() {
                let found = shown(entry.values(attribute));
                return Err(Failure::new(
                    FailureKind::Expectation,
                    format!(
                        "`{attribute}` of `{dn}` is {found}, and `if_is` asks for another value; nothing was deleted"
                    ),
                ));
            }
        }
        Ok(())
    }

    async fn plan_in(&self, directory: &dyn Directory, names: Vec<Dn>) -> Result<Planned<Deleted>, Failure> {
        let listed: HashSet<String> = names.iter().map(Dn::key).collect();
        let mut changes = Vec::new();
        let mut notes = Vec::new();
        for dn in &names {
            let Some(entry) = fetch(directory, dn, whole_entry()).await? else { continue };
            self.judge(dn, &entry)?;
            if let Some(child) = other_child(directory, dn, &listed).await? {
                return Err(Failure::new(
                    FailureKind::Refused,
                    format!("`{dn}` has `{child}` under it, which is not to be deleted"),
                ));
            }
            for secret in entry.attributes.iter().filter(|attribute| is_secret(&attribute.name)) {
                notes.push(format!(
                    "`{}` of `{dn}` is not recorded, so undo cannot bring it back",
                    secret.name
                ));
            }
            changes.push(Change {
                object: dn.to_string().into(),
                kind: ChangeKind::Delete,
                before: image(&entry).to_value(),
                after: Value::Null,
                fingerprint: None,
            });
        }
        let output = deleted(&changes);
        let existing = changes.len();
        let mut planned = Planned::changes(changes, output).considered(existing);
        planned.notes = notes;
        Ok(planned)
    }
}

fn deleted(changes: &[Change]) -> Deleted {
    Deleted { deleted: changes.iter().map(|change| change.object.to_string()).collect() }
}

/// An entry directly under `dn` that is not listed.
async fn other_child(
    directory: &dyn Directory,
    dn: &Dn,
    listed: &HashSet<String>,
) -> Result<Option<String>, Failure> {
    let query = Query {
        base: dn.clone(),
        scope: Scope::One,
        filter: Filter::any(),
        attributes: vec!["1.1".into()],
        size_limit: None,
        page_size: Some(500),
    };
    let mut other = None;
    let answer = directory
        .search(&query, &mut |entry| {
            let known = Dn::parse(&entry.dn).is_ok_and(|child| listed.contains(&child.key()));
            if known {
                return Ok(());
            }
            other = Some(entry.dn);
            // One is enough: this ends the search.
            Err(Failure::new(FailureKind::Refused, "there are entries under it"))
        })
        .await;
    match (other, answer) {
        (Some(child), _) => Ok(Some(child)),
        (None, Ok(()) | Err(Refusal { code: Some(code::NO_SUCH_OBJECT), .. })) => Ok(None),
        (None, Err(refusal)) => Err(refusal.failure),
    }
}

impl Action for Delete {
    const NAME: &'static str = "ldap.delete";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Destructive;
    const DELETES: bool = true;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
delete_account:
  uses: ldap.delete
  needs: []
  with:
    target: directory
    entries:
      - { base: \"ou=people,ou=servicegroups,dc=wikimedia,dc=org\", rdn: [uid, tools.example] }
      - { base: \"ou=servicegroups,dc=wikimedia,dc=org\", rdn: [cn, tools.example] }
  undo: restore
";

    type Output = Deleted;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Deleted>, Failure> {
        let names = self.names()?;
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&*reader.directory, names).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Deleted, Failure> {
        let writer = cx.writer(&self.target).await?;
        delete_all(&*writer.directory, changes.iter(), |change| &change.before)
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        Ok(deleted(changes))
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let writer = cx.writer(&self.target).await?;
        // What stands above comes back first.
        add_all(&*writer.directory, changes.iter().rev(), |change| &change.before)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}
