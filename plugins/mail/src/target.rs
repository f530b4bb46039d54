//! The target kind `mail`: [`Mail`], and its entry in an environment.

use std::collections::BTreeMap;
use std::time::Duration;

use async_trait::async_trait;
use farrier_action::duration::Wait;
use farrier_action::{ConnectCx, Now, SecretRef, TargetKind};
use farrier_model::{Failure, FailureKind};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::folder::Folder;
use crate::letter::{Letter, People, parse_address};
use crate::smtp::{Server, Settings};

/// A way to send mail.
#[derive(Debug)]
pub struct Mail;

/// A mail server, or a folder that stands in for one.
///
/// A server is reached with `smtps://`, or with `smtp://` and STARTTLS; plain `smtp://` is accepted only on this
/// machine, and certificates are always verified. `folder:PATH` puts each mail as a file into a folder.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MailConfig {
    /// `smtps://HOST`, `smtp://HOST:PORT`, or `folder:PATH`, from the folder of the environment file.
    url: String,
    /// The address that mails come from.
    from: String,
    /// Addresses by the names that runbooks use.
    #[serde(default)]
    people: BTreeMap<String, Vec<String>>,
    /// Domains and addresses that mail may go to; those in `people` need no entry. Left out, mail may go to any.
    #[serde(default)]
    only_to: Option<Vec<String>>,
    /// Who sends, when the server wants to know.
    #[serde(default)]
    login: Option<Login>,
    /// A file with the certificates (PEM) of the authorities to trust, instead of the system's.
    #[serde(default)]
    ca_file: Option<String>,
    /// Whether `smtp://` must become private with STARTTLS. The default is yes, except on this machine; `false` is
    /// refused elsewhere.
    #[serde(default)]
    start_tls: Option<bool>,
    /// How long sending one mail may take. The default is `60s`.
    #[serde(default)]
    timeout: Option<Wait>,
    /// Addresses that a folder refuses, as a server refuses an unknown one.
    #[serde(default)]
    refuse: Vec<String>,
}

/// A user of the mail server.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Login {
    /// The user's name.
    user: String,
    /// Where the password is.
    password: SecretRef,
}

/// Takes mail.
#[async_trait]
pub(crate) trait Outbox: Send + Sync {
    /// Sends one mail to all of its addresses or to none. A failure is in doubt when it may have been sent.
    async fn deliver(&self, letter: &Letter) -> Result<(), Failure>;
}

/// What can be known of mails without sending any.
pub struct MailReader {
    pub(crate) people: People,
}

/// The side that sends.
pub struct MailWriter {
    pub(crate) people: People,
    pub(crate) outbox: Box<dyn Outbox>,
    pub(crate) now: Now,
}

impl MailConfig {
    fn people(&self) -> Result<People, Failure> {
        let mut names = BTreeMap::new();
        for (name, addresses) in &self.people {
            let addresses: Vec<_> = addresses
                .iter()
                .map(|address| parse_address(&format!("people.{name}"), address))
                .collect::<Result<_, _>>()?;
            if addresses.is_empty() || name.contains('@') {
                return Err(Failure::new(
                    FailureKind::Input,
                    format!("`people.{name}`: a name without `@` stands for at least one address"),
                ));
            }
            names.insert(name.clone(), addresses);
        }
        Ok(People { from: parse_address("from", &self.from)?, names, only_to: self.only_to.clone() })
    }
}

impl TargetKind for Mail {
    const KIND: &'static str = "mail";
    type Config = MailConfig;
    type Reader = MailReader;
    type Writer = MailWriter;

    fn identity(config: &MailConfig) -> String {
        format!("{} as {}", config.url.trim_end_matches('/'), config.from)
    }

    fn is_stand_in(config: &MailConfig) -> bool {
        config.url.strip_prefix("folder:").is_some_and(|path| !path.starts_with('/'))
    }

    async fn reader(config: MailConfig, _: &ConnectCx) -> Result<MailReader, Failure> {
        if !config.url.starts_with("folder:") {
            // A wrong address shows in a plan already.
            Settings::address(&config.url, config.start_tls)?;
        }
        Ok(MailReader { people: config.people()? })
    }

    async fn writer(config: MailConfig, cx: &ConnectCx) -> Result<MailWriter, Failure> {
        let people = config.people()?;
        let outbox: Box<dyn Outbox> = match config.url.strip_prefix("folder:") {
            Some(path) => Box::new(Folder::new(cx.path(path), config.refuse.clone())),
            None => {
                if !config.refuse.is_empty() {
                    return Err(Failure::new(
                        FailureKind::Input,
                        "`refuse` is for a folder; a server decides itself",
                    ));
                }
                let login = match &config.login {
                    Some(login) => Some((login.user.clone(), login.password.resolve(cx).await?)),
                    None => None,
                };
                Box::new(Server::new(Settings {
                    address: Settings::address(&config.url, config.start_tls)?,
                    login,
                    ca_file: config.ca_file.as_ref().map(|file| cx.path(file)),
                    timeout: config.timeout.map_or(Duration::from_secs(60), |wait| wait.0),
                })?)
            }
        };
        Ok(MailWriter { people, outbox, now: cx.now.clone() })
    }
}
