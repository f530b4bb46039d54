//! The target kind `ldap`: [`Ldap`], and its entry in an environment.

use std::time::Duration;

use farrier_action::duration::Wait;
use farrier_action::{ConnectCx, SecretRef, TargetKind};
use farrier_model::{Failure, FailureKind};
use schemars::JsonSchema;
use serde::Deserialize;

use crate::connection::{Address, Connection, Settings};
use crate::directory::{Directory, WritableDirectory};
use crate::dn::Dn;
use crate::standin::LdifDirectory;
use crate::within::Within;

/// An LDAP directory.
#[derive(Debug)]
pub struct Ldap;

/// A directory server, or LDIF files that stand in for one.
///
/// A server is reached with `ldaps://`, or with `ldap://` and StartTLS; plain `ldap://` is accepted only on this
/// machine, and certificates are always verified. `ldif:PATH` is an embedded directory over a file, or over every
/// `*.ldif` in a folder; writes go back to the files.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LdapConfig {
    /// `ldaps://HOST`, `ldap://HOST`, `ldapi://SOCKET` (the path with `%2F` for `/`), or `ldif:PATH`, from the folder
    /// of the environment file.
    url: String,
    /// Who reads. Without it, reading is anonymous.
    #[serde(default)]
    read_as: Option<Reader>,
    /// Who writes. Without it, a server can only be read.
    #[serde(default)]
    write_as: Option<Writer>,
    /// The entry at the head of the part that may be reached, as in `ou=people,dc=example,dc=org`: no step reads or writes an
    /// entry that is not at or under it.
    #[serde(default)]
    base: Option<Dn>,
    /// A file with the certificates (PEM) of the authorities to trust, instead of the system's.
    #[serde(default)]
    ca_file: Option<String>,
    /// Whether `ldap://` must become private with StartTLS. The default is yes, except on this machine; `false` is
    /// refused elsewhere.
    #[serde(default)]
    start_tls: Option<bool>,
    /// How long opening a connection may take. The default is `5s`.
    #[serde(default)]
    connect_timeout: Option<Wait>,
    /// How long one answer may take. The default is `30s`.
    #[serde(default)]
    timeout: Option<Wait>,
    /// No `ldap.search` may find more entries than this.
    #[serde(default)]
    size_limit: Option<usize>,
}

/// An account that reads.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Reader {
    /// The account's entry.
    dn: String,
    /// Where its password is.
    password: SecretRef,
}

/// An account that writes.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Writer {
    /// The server that takes writes, when it is another one.
    #[serde(default)]
    url: Option<String>,
    /// The account's entry.
    dn: String,
    /// Where its password is.
    password: SecretRef,
}

/// The side that reads.
pub struct LdapReader {
    pub(crate) directory: Box<dyn Directory>,
    pub(crate) size_limit: Option<usize>,
}

/// The side that writes.
pub struct LdapWriter {
    pub(crate) directory: Box<dyn WritableDirectory>,
}

impl LdapConfig {
    fn ldif_path(&self) -> Option<&str> {
        self.url.strip_prefix("ldif:")
    }

    fn standin(&self, path: &str, cx: &ConnectCx) -> Result<LdifDirectory, Failure> {
        if self.write_as.as_ref().is_some_and(|writer| writer.url.is_some()) {
            return Err(Failure::new(
                FailureKind::Input,
                "LDIF files are their own writing side; remove `write_as.url`",
            ));
        }
        LdifDirectory::open(&cx.path(path), self.timeout())
    }

    /// What of a directory may be read.
    fn to_read(&self, directory: impl Directory + 'static) -> Box<dyn Directory> {
        match self.base.clone() {
            Some(base) => Box::new(Within { directory, base }),
            None => Box::new(directory),
        }
    }

    /// What of a directory may be written.
    fn to_write(&self, directory: impl WritableDirectory + 'static) -> Box<dyn WritableDirectory> {
        match self.base.clone() {
            Some(base) => Box::new(Within { directory, base }),
            None => Box::new(directory),
        }
    }

    fn timeout(&self) -> Duration {
        self.timeout.map_or(Duration::from_secs(30), |wait| wait.0)
    }

    fn settings(
        &self,
        url: &str,
        bind: Option<(&String, &SecretRef)>,
        cx: &ConnectCx,
    ) -> Result<Settings, Failure> {
        if let Some((dn, _)) = bind {
            Dn::parse(dn).map_err(|error| Failure::new(FailureKind::Input, error.to_string()))?;
        }
        Ok(Settings {
            address: Address::parse(url, self.start_tls)?,
            bind: bind.map(|(dn, password)| (dn.clone(), password.clone())),
            ca_file: self.ca_file.clone(),
            connect_timeout: self.connect_timeout.map_or(Duration::from_secs(5), |wait| wait.0),
            timeout: self.timeout(),
            cx: cx.clone(),
        })
    }
}

impl TargetKind for Ldap {
    const KIND: &'static str = "ldap";
    type Config = LdapConfig;
    type Reader = LdapReader;
    type Writer = LdapWriter;

    fn identity(config: &LdapConfig) -> String {
        let reads = config.url.trim_end_matches('/');
        match config.write_as.as_ref().and_then(|writer| writer.url.as_deref()) {
            Some(url) if url.trim_end_matches('/') != reads => {
                format!("{reads}, written at {}", url.trim_end_matches('/'))
            }
            _ => reads.to_owned(),
        }
    }

    fn is_stand_in(config: &LdapConfig) -> bool {
        config.ldif_path().is_some_and(|path| !path.starts_with('/'))
    }

    async fn reader(config: LdapConfig, cx: &ConnectCx) -> Result<LdapReader, Failure> {
        let size_limit = config.size_limit;
        if let Some(path) = config.ldif_path() {
            return Ok(LdapReader { directory: config.to_read(config.standin(path, cx)?), size_limit });
        }
        let bind = config.read_as.as_ref().map(|reader| (&reader.dn, &reader.password));
        let settings = config.settings(&config.url, bind, cx)?;
        Ok(LdapReader { directory: config.to_read(Connection::open(settings).await?), size_limit })
    }

    async fn writer(config: LdapConfig, cx: &ConnectCx) -> Result<LdapWriter, Failure> {
        if let Some(path) = config.ldif_path() {
            return Ok(LdapWriter { directory: config.to_write(config.standin(path, cx)?) });
        }
        let Some(writer) = &config.write_as else {
            return Err(Failure::new(FailureKind::Denied, "it can only be read in this environment")
                .help("add `write_as` to the target, with an account that may write"));
        };
        let url = writer.url.as_deref().unwrap_or(&config.url);
        let settings = config.settings(url, Some((&writer.dn, &writer.password)), cx)?;
        Ok(LdapWriter { directory: config.to_write(Connection::open_to_write(settings).await?) })
    }
}
