//! Where people who log in are known: an `ldap` target of an environment. It stands here because the service knows no plugins, and
//! plugins know no service.

use std::sync::Arc;

use async_trait::async_trait;
use farrier_action::Target;
use farrier_model::Secret;
use farrier_plugin_ldap::{Ldap, Login, Outcome};
use farrier_project::Watched;
use farrier_runbook::service;
use farrier_server::{Answer, Directory};

/// The directory of a service file's `login:`.
pub struct LdapDirectory {
    sets: Watched,
    environment: String,
    target: String,
    login: Login,
    /// The target as it was connected, of the set that it belongs to.
    connected: tokio::sync::Mutex<Option<(u64, Arc<farrier_action::Targets>)>>,
}

impl LdapDirectory {
    /// Checks what the file says.
    ///
    /// # Errors
    /// One sentence: what is wrong.
    pub fn new(written: &service::Login, sets: Watched) -> Result<LdapDirectory, String> {
        let (environment, target) = (written.environment.value.clone(), written.target.value.clone());
        let login = Login::new(
            &written.people,
            &written.person,
            written.name.as_deref().unwrap_or("uid"),
            &written.groups,
            written.member.as_deref().unwrap_or("member"),
        )
        .map_err(|failure| format!("in `login:`: {failure}"))?;
        Ok(LdapDirectory { sets, environment, target, login, connected: tokio::sync::Mutex::default() })
    }

    /// Checks that the environment has it. Not done when files are read again: rights come before the environments that they name.
    ///
    /// # Errors
    /// One sentence: what is missing.
    pub fn is_there(&self) -> Result<(), String> {
        let (environment, target) = (&self.environment, &self.target);
        let set = self.sets.current();
        let site = set
            .site(environment)
            .ok_or_else(|| format!("`login:` names the environment `{environment}`, which there is not"))?;
        match site.environment.targets.kind(target) {
            Some(("ldap", false)) => Ok(()),
            _ => Err(format!(
                "`login:` names `{target}`, which is no target of kind `ldap` in environment `{environment}`"
            )),
        }
    }

    /// The targets of the set of now. Kept until there is another set, so that connections are.
    async fn targets(&self) -> Result<Arc<farrier_action::Targets>, String> {
        let set = self.sets.current();
        let mut connected = self.connected.lock().await;
        if let Some((number, targets)) = &*connected
            && *number == set.number
        {
            return Ok(targets.clone());
        }
        let site = set
            .site(&self.environment)
            .ok_or_else(|| format!("there is no environment `{}` any more", self.environment))?;
        let targets = site.world().targets;
        *connected = Some((set.number, targets.clone()));
        Ok(targets)
    }
}

#[async_trait]
impl Directory for LdapDirectory {
    async fn check(&self, name: &str, password: &Secret) -> Result<Answer, String> {
        let reader = self.targets().await?.reader::<Ldap>(&Target::new(&*self.target)).await;
        let reader = reader.map_err(|failure| failure.to_string())?;
        match self.login.check(&reader, name, password).await {
            Ok(Outcome::Unknown) => Ok(Answer::Unknown),
            Ok(Outcome::Refused { name }) => Ok(Answer::Refused { name }),
            Ok(Outcome::Member { name, groups }) => Ok(Answer::Member { name, groups }),
            Err(failure) => Err(failure.to_string()),
        }
    }
}
