//! Where people are: `notify:` of the environments, as the current set has it.

use std::sync::Arc;

use farrier_exec::{EVERYBODY, Mailing, Recipients};
use farrier_project::{Site, Watched};
use farrier_runbook::environment::Contact;

/// The people of the project as it is now.
pub(crate) struct People(pub(crate) Watched);

impl Recipients for People {
    fn mailing(&self, environment: &str, to: &str) -> Result<Mailing, String> {
        let set = self.0.current();
        let site = set
            .site(environment)
            .ok_or_else(|| format!("there is no environment `{environment}` any more"))?;
        let known = &site.environment.notify;
        let contacts: Vec<&Contact> =
            if to == EVERYBODY { known.values().collect() } else { known.get(to).into_iter().collect() };
        let Some(first) = contacts.first() else {
            return Err(format!(
                "environment `{environment}` does not say where `{to}` is; add it under `notify:`"
            ));
        };
        let target = sender(site, first)?;
        let addresses = contacts.iter().map(|contact| contact.mail.clone()).collect();
        Ok(Mailing { targets: site.world().targets, target, addresses })
    }
}

/// The target that sends mail to a contact.
fn sender(site: &Arc<Site>, contact: &Contact) -> Result<String, String> {
    let bindings = &site.environment.targets.bindings;
    let mut senders =
        bindings.iter().filter(|binding| binding.kind == "mail").map(|binding| &binding.alias.value);
    let name = &site.environment.name;
    match (&contact.through, senders.next(), senders.next()) {
        (Some(through), ..) if bindings.iter().any(|b| b.kind == "mail" && b.alias.value == *through) => {
            Ok(through.clone())
        }
        (Some(through), ..) => {
            Err(format!("`{through}` is no target of kind `mail` in environment `{name}`"))
        }
        (None, Some(only), None) => Ok(only.clone()),
        (None, Some(_), Some(_)) => Err(format!(
            "environment `{name}` has several targets of kind `mail`; name one with `through:` under `notify:`"
        )),
        (None, None, _) => {
            Err(format!("environment `{name}` has no target of kind `mail`, so nobody can be told"))
        }
    }
}
