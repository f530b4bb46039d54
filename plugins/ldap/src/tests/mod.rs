//! The plugin against LDIF files and against a real OpenLDAP server: the same suites on both.

mod conformance;
mod eavesdropped;
mod faults;
mod laws;
mod login;
mod proxy;
mod races;
mod tls;
mod within;
mod world;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use farrier_action::harness::World;
use farrier_action::{ActionRegistry, Binding, ConnectCx, Now, TargetKind, Targets};
use farrier_model::{Effect, Value};
use farrier_testkit::TempDir;
use farrier_testkit::slapd::{Options, Slapd};

use crate::target::{Ldap, LdapConfig, LdapReader, LdapWriter};

/// Beside the entries that every directory of the test kit has: two people, two tools, and a name that needs escaping.
const ENTRIES: &str = include_str!("entries.ldif");

const FILES: [&str; 2] = ["a-base.ldif", "b-entries.ldif"];

/// A directory of one of the two kinds, with the same entries.
pub(super) struct Place {
    kind: Kind,
    folder: TempDir,
}

enum Kind {
    Files(PathBuf),
    Server(Box<Slapd>),
}

impl Place {
    /// LDIF files: what the server's base entries are, and the entries above.
    pub(super) fn files() -> Place {
        Place::files_with(ENTRIES)
    }

    pub(super) fn files_with(entries: &str) -> Place {
        let folder = farrier_testkit::TempDir::new().unwrap();
        let path = folder.path().join("directory");
        std::fs::create_dir(&path).unwrap();
        let base = include_str!("../../../../engine/testkit/schema/base.ldif");
        std::fs::write(path.join("a-base.ldif"), base).unwrap();
        std::fs::write(path.join("b-entries.ldif"), entries).unwrap();
        Place { kind: Kind::Files(path), folder }
    }

    pub(super) fn server() -> Place {
        // The test kit's directory keeps numbers unique; a Toolforge directory keeps names of accounts unique too.
        let configuration =
            "unique_uri ldap:///dc=wikimedia,dc=org?cn?sub?(objectClass=posixAccount)\n".to_owned();
        Place::server_with(Options { entries: ENTRIES.into(), configuration, ..Options::default() })
    }

    pub(super) fn server_with(options: Options) -> Place {
        Place {
            kind: Kind::Server(Box::new(start(options))),
            folder: farrier_testkit::TempDir::new().unwrap(),
        }
    }

    pub(super) fn slapd(&mut self) -> &mut Slapd {
        match &mut self.kind {
            Kind::Server(slapd) => slapd,
            Kind::Files(_) => panic!("this is no server"),
        }
    }

    /// The entry of an environment, without `kind`.
    pub(super) fn config(&self) -> Value {
        match &self.kind {
            Kind::Files(_) => Value::map([("url", Value::text("ldif:directory"))]),
            Kind::Server(slapd) => self.server_config(&slapd.url(), slapd),
        }
    }

    /// The same for the server at another address.
    pub(super) fn server_config(&self, url: &str, slapd: &Slapd) -> Value {
        let account = |dn: &str, password: &str| {
            let file = self.folder.path().join(password);
            std::fs::write(&file, password).unwrap();
            let mut permissions = std::fs::metadata(&file).unwrap().permissions();
            std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
            std::fs::set_permissions(&file, permissions).unwrap();
            Value::map([("dn", Value::text(dn)), ("password", Value::map([("file", Value::text(password))]))])
        };
        Value::map([
            ("url", Value::text(url)),
            ("read_as", account(&slapd.reader_dn, &slapd.reader_password)),
            ("write_as", account(&slapd.writer_dn, &slapd.writer_password)),
        ])
    }

    pub(super) fn cx(&self) -> ConnectCx {
        ConnectCx {
            alias: "directory".into(),
            base_dir: self.folder.path().to_owned(),
            now: Now::default(),
            known: farrier_action::SharedKnown::default(),
        }
    }

    pub(super) fn targets(&self) -> Arc<Targets> {
        self.targets_of(self.config())
    }

    pub(super) fn targets_of(&self, config: Value) -> Arc<Targets> {
        let binding = Binding { alias: "directory".into(), kind: "ldap".into(), config };
        Arc::new(Targets::new(self.folder.path().to_owned(), vec![binding], BTreeMap::new()))
    }

    pub(super) async fn reader(&self) -> LdapReader {
        Ldap::reader(self.config().read::<LdapConfig>().unwrap(), &self.cx()).await.unwrap()
    }

    pub(super) async fn writer(&self) -> LdapWriter {
        Ldap::writer(self.config().read::<LdapConfig>().unwrap(), &self.cx()).await.unwrap()
    }

    /// Everything in the directory, without asking the plugin.
    pub(super) fn world(&self) -> World {
        let text = match &self.kind {
            Kind::Files(path) => {
                FILES.map(|file| std::fs::read_to_string(path.join(file)).unwrap()).join("\n\n")
            }
            Kind::Server(slapd) => {
                slapd.search("(objectClass=*)", &["*", "pwdAccountLockedTime", "pwdPolicySubentry"])
            }
        };
        let unfolded = text.replace("\n ", "");
        let mut world = World::new();
        for record in unfolded.split("\n\n") {
            let mut lines: Vec<&str> =
                record.lines().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
            if lines.is_empty() {
                continue;
            }
            let name = lines.remove(0);
            lines.sort_unstable();
            // OpenLDAP writes what must be escaped in hex.
            let name =
                name.strip_prefix("dn: ").unwrap_or(name).replace("\\2C", "\\,").replace("\\2B", "\\+");
            world.insert(name, Value::list(lines.into_iter().map(Value::text).collect()));
        }
        world
    }

    /// Changes an entry behind the plugin's back: the server takes the LDIF change, in the files `from` becomes `to`.
    pub(super) fn disturb(&self, ldif: &str, from: &str, to: &str) {
        match &self.kind {
            Kind::Files(path) => {
                let read = |file: &str| std::fs::read_to_string(path.join(file)).unwrap();
                let file = FILES.into_iter().find(|file| read(file).contains(from)).expect(from);
                std::fs::write(path.join(file), read(file).replacen(from, to, 1)).unwrap();
            }
            Kind::Server(slapd) => slapd.change_ldif(ldif),
        }
    }
}

/// A server that accepts connections: it says that it is starting a moment before it listens.
pub(super) fn start(options: Options) -> Slapd {
    let slapd = Slapd::start(options);
    wait_for(&slapd);
    slapd
}

pub(super) fn wait_for(slapd: &Slapd) {
    for url in [Some(slapd.url()), slapd.tls_url()].into_iter().flatten() {
        let address = url.split("//").nth(1).unwrap().to_owned();
        farrier_testkit::wait_until("the server listens", || std::net::TcpStream::connect(&address).is_ok());
    }
}

pub(super) fn registry() -> ActionRegistry {
    let mut registry = ActionRegistry::default();
    crate::register(&mut registry).unwrap();
    registry
}

pub(super) fn json(text: &str) -> Value {
    Value::from_json(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

#[test]
fn every_action_is_registered_once_and_its_example_is_a_step() {
    let mut registry = registry();
    let names: Vec<&str> = registry.catalog().actions.keys().copied().collect();
    assert_eq!(names, ["ldap.add", "ldap.delete", "ldap.members", "ldap.modify", "ldap.search"]);
    for spec in registry.catalog().actions.values() {
        assert!(!spec.summary.is_empty(), "{}", spec.name);
        let step: Value = serde_saphyr::from_str(spec.example).unwrap();
        let (_, step) = step.as_map().unwrap().iter().next().unwrap();
        assert_eq!(step.get("uses").and_then(Value::as_str), Some(spec.name));
        assert!(spec.effect == Effect::Read || step.get("undo").is_some(), "{}", spec.name);
        if let Err(failure) = registry.bind(spec.name, step.get("with").unwrap()) {
            panic!("the example of {}: {failure}", spec.name);
        }
    }
    let search = &registry.catalog().actions["ldap.search"];
    assert_eq!(
        search.output.pointer("/properties/entries/items/x-farrier"),
        Some(&"keys_of:attributes".into())
    );
    assert_eq!(search.input.pointer("/properties/filter/x-farrier"), Some(&"literal".into()));
    assert_eq!(search.input.pointer("/properties/target/x-farrier"), Some(&"target:ldap".into()));
    assert!(crate::register(&mut registry).is_err());
}

#[test]
fn an_identity_is_the_places_and_no_account() {
    let identity = |json: &str| registry().identity("ldap", &self::json(json)).unwrap();
    let account = r#"{"dn": "cn=r", "password": {"env": "SECRET_NAME"}}"#;
    assert_eq!(identity(&format!(r#"{{"url": "ldaps://a/", "read_as": {account}}}"#)), "ldaps://a");
    let writer = r#"{"url": "ldaps://b", "dn": "cn=w", "password": {"env": "SECRET_NAME"}}"#;
    assert_eq!(
        identity(&format!(r#"{{"url": "ldaps://a", "write_as": {writer}}}"#)),
        "ldaps://a, written at ldaps://b"
    );
    for bad in
        [r#"{"url": "ldaps://a", "verify": false}"#, r#"{"url": "ldaps://a", "timeout": "soon"}"#, "{}"]
    {
        assert!(registry().identity("ldap", &self::json(bad)).is_err(), "{bad}");
    }
}
