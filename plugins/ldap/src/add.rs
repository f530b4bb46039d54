//! `ldap.add`.

use farrier_action::{Action, Planned, ReadCx, Target, WriteCx};
use farrier_model::spec::Risk;
use farrier_model::{Change, ChangeKind, Effect, Failure, FailureKind};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::directory::{Directory, fetch};
use crate::dn::{Dn, Rdn};
use crate::restore::{add_all, delete_all};
use crate::schema::same_attribute;
use crate::target::Ldap;
use crate::values::{Image, Wanted, same_values};

/// Adds an entry.
///
/// An entry of that name that has the wanted attributes already is no change, whatever else it has; one with other
/// values is an error. Undo deletes the entry, as long as nobody has changed it.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Add {
    /// The directory.
    target: Target<Ldap>,
    /// The entry above.
    base: Dn,
    /// The attribute and the value that name the entry under `base`, as in `[cn, tools.example]`; the value needs no
    /// escaping, and the attribute need not be repeated in `attributes`.
    rdn: Rdn,
    /// The attributes and their values, `objectClass` among them: text, a whole number, a bool, `{base: …, rdn: […]}`
    /// for the name of an entry, or a list of these.
    attributes: Wanted,
}

/// The entry.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Added {
    /// Its name.
    dn: String,
}

impl Add {
    fn dn(&self) -> Dn {
        self.base.child(self.rdn.clone())
    }

    /// The attributes with those of the name.
    fn wanted(&self) -> Result<Image, Failure> {
        let mut image = self.attributes.0.clone();
        if !image.names().any(|name| same_attribute(name, "objectClass")) {
            return Err(Failure::new(FailureKind::Input, "`attributes` has no `objectClass`"));
        }
        if let Some(empty) = image.0.iter().find(|attribute| attribute.values.is_empty()) {
            return Err(Failure::new(
                FailureKind::Input,
                format!("`{}` has no value; leave it out", empty.name),
            ));
        }
        for (name, value) in self.rdn.parts() {
            let value = value.as_bytes().to_vec();
            match image.0.iter_mut().find(|attribute| same_attribute(&attribute.name, name)) {
                Some(attribute)
                    if attribute.values.iter().any(|known| {
                        same_values(name, std::slice::from_ref(known), std::slice::from_ref(&value))
                    }) => {}
                Some(attribute) => attribute.values.push(value),
                None => image.0.push(crate::directory::Attribute { name: name.into(), values: vec![value] }),
            }
        }
        Ok(image)
    }

    async fn plan_in(&self, directory: &dyn Directory, wanted: Image) -> Result<Planned<Added>, Failure> {
        let dn = self.dn();
        let output = Added { dn: dn.to_string() };
        let names = wanted.names().map(str::to_owned).collect();
        if let Some(entry) = fetch(directory, &dn, names).await? {
            let differences = wanted.differences(&entry);
            if differences.is_empty() {
                return Ok(Planned::known(output).considered(1));
            }
            let shown: Vec<String> = differences
                .iter()
                .map(|name| format!("`{name}` is {}", crate::values::shown(entry.values(name))))
                .collect();
            return Err(Failure::new(
                FailureKind::Refused,
                format!("`{dn}` exists with other values: {}", shown.join(", ")),
            )
            .help("use `ldap.modify` to change an entry that exists"));
        }
        let change = Change {
            object: dn.to_string().into(),
            kind: ChangeKind::Create,
            before: farrier_model::Value::Null,
            after: wanted.to_value(),
            fingerprint: None,
        };
        let mut planned = Planned::changes(vec![change], output).considered(0);
        if fetch(directory, &self.base, vec!["1.1".into()]).await?.is_none() {
            planned =
                planned.note(format!("`{}` does not exist yet; it must when this is applied", self.base));
        }
        Ok(planned)
    }
}

impl Action for Add {
    const NAME: &'static str = "ldap.add";
    const EFFECT: Effect = Effect::Repeatable;
    const RISK: Risk = Risk::Recoverable;
    const RESTORES: bool = true;
    const EXAMPLE: &'static str = "\
group:
  uses: ldap.add
  with:
    target: directory
    base: ou=servicegroups,dc=wikimedia,dc=org
    rdn: [cn, tools.example]
    attributes:
      objectClass: [groupOfNames, posixGroup]
      gidNumber: 51234
      member: { base: \"ou=people,dc=wikimedia,dc=org\", rdn: [uid, alice] }
  undo: restore
";

    type Output = Added;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Added>, Failure> {
        let wanted = self.wanted()?;
        let reader = cx.reader(&self.target).await?;
        self.plan_in(&*reader.directory, wanted).await.map_err(|failure| failure.at(self.target.alias()))
    }

    async fn apply(&self, cx: &WriteCx, changes: &[Change]) -> Result<Added, Failure> {
        let writer = cx.writer(&self.target).await?;
        add_all(&*writer.directory, changes.iter(), |change| &change.after)
            .await
            .map_err(|failure| failure.at(self.target.alias()))?;
        Ok(Added { dn: self.dn().to_string() })
    }

    async fn undo(&self, cx: &WriteCx, changes: &[Change]) -> Result<(), Failure> {
        let writer = cx.writer(&self.target).await?;
        delete_all(&*writer.directory, changes.iter().rev(), |change| &change.after)
            .await
            .map_err(|failure| failure.at(self.target.alias()))
    }
}
