//! `ldap.modify`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::compare::{Way, set_all};
use crate::directory::fetch;
use crate::dn::{Dn, Rdn, named};
use crate::schema::same_attribute;
use crate::target::Ldap;
use crate::values::{Image, Wanted};

/// Sets attributes of one entry.
///
/// Every attribute in `set` has exactly the given values afterwards; all others are left alone. The old values are
/// deleted by name in the same request, so a value that changed since the plan is not overwritten.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Modify {
    /// The directory.
    target: Target<Ldap>,
    /// The entry above, or the entry itself when there is no `rdn`.
    base: Dn,
    /// The attribute and the value that name the entry under `base`, as in `[uid, alice]`; the value needs no escaping.
    #[serde(default)]
    rdn: Option<Rdn>,
    /// The attributes and the values they shall have: text, a whole number, a bool, `{base: …, rdn: […]}` for the name
    /// of an entry, a list of these, or null to remove the attribute.
    set: Wanted,
    /// Values that the entry must have before it is changed, in the same form; null for an attribute that must be
    /// absent. Anything else is an error and changes nothing.
    #[serde(default)]
    if_is: Option<Wanted>,
}

/// The entry.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Modified {
    /// Its name.
    dn: String,
}

impl Modify {
    fn check(&self) -> Result<(), Failure> {
        if self.set.0.0.is_empty() {
            return Err(Failure::new(FailureKind::Input, "`set` names no attribute"));
        }
        Ok(())
    }

    fn condition(&self) -> &[crate::directory::Attribute] {
        self.if_is.as_ref().map_or(&[], |wanted| &wanted.0.0)
    }
}

impl Action for Modify {
    const NAME: &'static str = "ldap.modify";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
disable:
  uses: ldap.modify
  with:
    target: directory
    base: ou=people,ou=servicegroups,dc=wikimedia,dc=org
    rdn: [uid, tools.example]
    set:
      pwdAccountLockedTime: 20261122101530Z
      pwdPolicySubentry: { base: \"ou=ppolicies,dc=wikimedia,dc=org\", rdn: [cn, disabled] }
    if_is: { loginShell: /bin/bash }
  undo: restore
";

    type Output = Modified;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Modified>, Failure> {
        self.check()?;
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&*reader.directory).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Modified, Failure> {
        let writer = cx.writer(&self.target).await?;
        set_all(&*writer.directory, changes, Way::Apply)
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        Ok(Modified { dn: named(&self.base, self.rdn.as_ref()).to_string() })
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let writer = cx.writer(&self.target).await?;
        set_all(&*writer.directory, changes, Way::Undo)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

impl Modify {
    async fn plan_in(
        &self,
        directory: &dyn crate::directory::Directory,
    ) -> Result<Planned<Modified>, Failure> {
        let dn = named(&self.base, self.rdn.as_ref());
        let output = Modified { dn: dn.to_string() };
        let names =
            self.set.0.0.iter().chain(self.condition()).map(|attribute| attribute.name.to_string()).collect();
        let entry = fetch(directory, &dn, names).await?.ok_or_else(|| {
            Failure::new(FailureKind::Refused, format!("there is no entry `{dn}` to modify"))
        })?;
        if self.set.0.differences(&entry).is_empty() {
            return Ok(Planned::known(output).considered(1));
        }
        let condition = Image(self.condition().to_vec());
        if let Some(attribute) = condition.differences(&entry).first() {
            let found = crate::values::shown(entry.values(attribute));
            return Err(Failure::new(
                FailureKind::Expectation,
                format!(
                    "`{attribute}` of `{dn}` is {found}, and `if_is` asks for another value; nothing was changed"
                ),
            ));
        }
        // What `if_is` compared is compared again before the write.
        let mut after = self.set.0.clone();
        let fixed =
            condition.0.into_iter().filter(|c| !after.names().any(|name| same_attribute(name, &c.name)));
        let fixed: Vec<_> = fixed.collect();
        after.0.extend(fixed);
        let before = Image::of(&entry, after.names());
        let change = Change {
            object: dn.to_string().into(),
            kind: ChangeKind::Update,
            before: before.to_value(),
            after: after.to_value(),
            fingerprint: None,
        };
        Ok(Planned::changes(vec![change], output).considered(1))
    }
}
