//! Who may do what: people, receivers of alerts, and the tokens by which they are known.
//!
//! Read first: [`Person`] (somebody, as the service knows them) and [`Access`] (all who are known). Nobody may do anything that
//! is not written down; what each route needs stands in the one table of routes.
//!
//! A token is 32 random bytes. Only its SHA-256 is kept, so the file with the hashes opens nothing; guessing is hopeless, so a
//! slow hash would add nothing but load.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use farrier_runbook::service::{GroupRole, Receiver, Service, TokenHash, User};
use sha2::{Digest as _, Sha256};
use subtle::{Choice, ConstantTimeEq as _};

pub use farrier_runbook::service::Role;

/// The beginning of every token, by which people and scanners know what they have found.
const PREFIX: &str = "farrier_";

/// The way somebody came in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// The socket in the data directory.
    Socket,
    /// A token of the service file.
    Token,
    /// A name and a password, exchanged for a token of some hours.
    Login,
    /// A client certificate.
    Certificate,
}

impl Via {
    /// As the audit writes it.
    pub fn name(self) -> &'static str {
        match self {
            Via::Socket => "socket",
            Via::Token => "token",
            Via::Login => "login",
            Via::Certificate => "certificate",
        }
    }
}

/// What somebody may do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rights {
    everywhere: Option<Role>,
    areas: BTreeMap<String, Role>,
}

impl Rights {
    /// A role everywhere.
    pub fn everywhere(role: Role) -> Rights {
        Rights { everywhere: Some(role), areas: BTreeMap::new() }
    }

    fn of(role: Option<Role>, areas: &BTreeMap<String, Role>) -> Rights {
        let areas = areas.iter().map(|(area, role)| (area.trim_matches('/').to_owned(), *role)).collect();
        Rights { everywhere: role, areas }
    }

    /// The greater of both, in each place.
    fn and(&mut self, other: &Rights) {
        self.everywhere = self.everywhere.max(other.everywhere);
        for (area, role) in &other.areas {
            let mine = self.areas.entry(area.clone()).or_insert(*role);
            *mine = (*mine).max(*role);
        }
    }

    /// What they may do in an area; none for what is in no area any more, such as runs of a runbook that is gone.
    pub fn role_in(&self, area: Option<&str>) -> Option<Role> {
        let below = |grant: &str, area: &str| {
            area == grant || area.strip_prefix(grant).is_some_and(|rest| rest.starts_with('/'))
        };
        let granted = self.areas.iter().filter(|(grant, _)| area.is_some_and(|area| below(grant, area)));
        granted.map(|(_, role)| Some(*role)).max().flatten().max(self.everywhere)
    }

    /// The most they may do anywhere.
    pub fn most(&self) -> Option<Role> {
        self.areas.values().copied().max().max(self.everywhere)
    }
}

/// Somebody, as the service knows them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Person {
    /// Their name: in journals, approvals and the audit.
    pub name: String,
    /// What they may do.
    pub rights: Rights,
    /// The way they came in.
    pub via: Via,
}

/// A sender of alerts, as the service knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sender {
    /// The receiver that it sends to.
    pub receiver: String,
    /// The runbooks that it may start; none for all.
    pub runbooks: Option<Vec<String>>,
    /// The way it came in.
    pub via: Via,
}

impl Sender {
    /// Whether its alerts may start this runbook.
    pub fn may_start(&self, runbook: &str) -> bool {
        self.runbooks.as_ref().is_none_or(|allowed| allowed.iter().any(|name| name == runbook))
    }
}

/// All who are known. Replaced as a whole when the service file changes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Access {
    people: Vec<([u8; 32], Via, Arc<Person>)>,
    senders: Vec<([u8; 32], Via, Arc<Sender>)>,
    groups: BTreeMap<String, Rights>,
}

impl Access {
    /// What a service file says.
    pub fn of(service: &Service) -> Access {
        let mut access = Access::default();
        for (name, user) in &service.users {
            access.add_user(name, user);
        }
        for (name, receiver) in &service.receivers {
            access.add_receiver(name, receiver);
        }
        for (group, GroupRole { role, areas }) in service.login.iter().flat_map(|login| &login.roles) {
            access.groups.insert(group.clone(), Rights::of(*role, areas));
        }
        access
    }

    fn add_user(&mut self, name: &str, User { role, areas, tokens, certificates }: &User) {
        for (hashes, via) in [(tokens, Via::Token), (certificates, Via::Certificate)] {
            let rights = Rights::of(*role, areas);
            let person = Arc::new(Person { name: name.to_owned(), rights, via });
            let hashes = hashes.iter().filter_map(TokenHash::bytes);
            self.people.extend(hashes.map(|hash| (hash, via, person.clone())));
        }
    }

    fn add_receiver(&mut self, name: &str, Receiver { tokens, certificates, runbooks }: &Receiver) {
        for (hashes, via) in [(tokens, Via::Token), (certificates, Via::Certificate)] {
            let (receiver, runbooks) = (name.to_owned(), runbooks.clone());
            let sender = Arc::new(Sender { receiver, runbooks, via });
            let hashes = hashes.iter().filter_map(TokenHash::bytes);
            self.senders.extend(hashes.map(|hash| (hash, via, sender.clone())));
        }
    }

    /// Whose token it is.
    pub fn person(&self, token: &str) -> Option<Arc<Person>> {
        self.person_by(Via::Token, &hash(token.as_bytes()))
    }

    /// Whose certificate it is (by the SHA-256 of its DER form).
    pub fn person_of_certificate(&self, fingerprint: &[u8; 32]) -> Option<Arc<Person>> {
        self.person_by(Via::Certificate, fingerprint)
    }

    fn person_by(&self, via: Via, hash: &[u8; 32]) -> Option<Arc<Person>> {
        let known = self.people.iter().filter(|(_, by, _)| *by == via);
        find(known.map(|(known, _, person)| (known, person)), hash)
    }

    /// Whose token it is, for this receiver alone.
    pub fn sender(&self, receiver: &str, token: &str) -> Option<Arc<Sender>> {
        self.sender_by(receiver, Via::Token, &hash(token.as_bytes()))
    }

    /// Whose certificate it is (by the SHA-256 of its DER form), for this receiver alone.
    pub fn sender_of_certificate(&self, receiver: &str, fingerprint: &[u8; 32]) -> Option<Arc<Sender>> {
        self.sender_by(receiver, Via::Certificate, fingerprint)
    }

    fn sender_by(&self, receiver: &str, via: Via, hash: &[u8; 32]) -> Option<Arc<Sender>> {
        let of_receiver =
            self.senders.iter().filter(|(_, by, sender)| *by == via && sender.receiver == receiver);
        find(of_receiver.map(|(known, _, sender)| (known, sender)), hash)
    }

    /// What members of these groups may do; nothing when no group gives a role.
    pub fn rights_of_groups<'a>(&self, groups: impl IntoIterator<Item = &'a str>) -> Option<Rights> {
        let mut rights = Rights::default();
        for group in groups {
            if let Some(granted) = self.groups.get(group) {
                rights.and(granted);
            }
        }
        rights.most().is_some().then_some(rights)
    }
}

/// Looks at every entry, so that the time it takes says nothing.
fn find<'a, T: Clone + 'a>(
    entries: impl Iterator<Item = (&'a [u8; 32], &'a T)>,
    hash: &[u8; 32],
) -> Option<T> {
    let mut found = None;
    for (known, entry) in entries {
        let is_it: Choice = known.ct_eq(hash);
        if bool::from(is_it) {
            found = Some(entry.clone());
        }
    }
    found
}

fn hash(bytes: &[u8]) -> [u8; 32] {
    Sha256::digest(bytes).into()
}

/// A new token with its hash.
#[derive(Clone)]
pub struct Token {
    text: String,
}

impl Token {
    /// A token that nobody has seen.
    pub fn new() -> Token {
        let random = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
        // Each carries 122 random bits: 366 in all.
        let digits: String = random.iter().map(|part| part.simple().to_string()).collect();
        Token { text: format!("{PREFIX}{digits}") }
    }

    /// The token itself, to be shown once.
    pub fn reveal(&self) -> &str {
        &self.text
    }

    /// What the service file holds: `sha256:…`.
    pub fn hash(&self) -> String {
        Token::hash_of(&self.text)
    }

    /// The hash of what somebody presents as a token.
    pub(crate) fn hash_of(text: &str) -> String {
        let digits: String = hash(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{digits}")
    }
}

impl Default for Token {
    fn default() -> Token {
        Token::new()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn service(text: &str) -> Service {
        let mut out = farrier_runbook::Diagnostics::new();
        let file = out.add_file("serve.yaml", text.as_bytes());
        match farrier_runbook::service::read_service(file, text.as_bytes(), &mut out) {
            Some(service) => service,
            None => panic!("{}", out.render(false)),
        }
    }

    #[test]
    fn areas_cover_what_is_below_them_and_nothing_beside() {
        let rights = Rights::of(
            Some(Role::Viewer),
            &BTreeMap::from([
                ("lifecycle".into(), Role::Operator),
                ("lifecycle/deep".into(), Role::Approver),
            ]),
        );
        for (area, expected) in [
            (Some("lifecycle"), Role::Operator),
            (Some("lifecycle/other"), Role::Operator),
            (Some("lifecycle/deep"), Role::Approver),
            (Some("lifecycle-old"), Role::Viewer),
            (Some(""), Role::Viewer),
            (None, Role::Viewer),
        ] {
            assert_eq!(rights.role_in(area), Some(expected), "{area:?}");
        }
        assert_eq!(rights.most(), Some(Role::Approver));
        let only = Rights::of(None, &BTreeMap::from([("web".into(), Role::Admin)]));
        assert_eq!(only.role_in(None), None);
        assert_eq!(only.role_in(Some("lifecycle")), None);
    }

    #[test]
    fn tokens_are_known_by_their_hash_and_each_to_its_own() {
        let (ada, main, spare) = (Token::new(), Token::new(), Token::new());
        let access = Access::of(&service(&format!(
            "users: {{ ada: {{ role: operator, tokens: ['{}'] }} }}\nreceivers:\n  main: {{ tokens: ['{}'], runbooks: \
             [one] }}\n  spare: {{ tokens: ['{}'] }}\n",
            ada.hash(),
            main.hash(),
            spare.hash()
        )));
        assert_eq!(access.person(ada.reveal()).unwrap().name, "ada");
        for wrong in ["", "x", main.reveal(), &ada.hash(), &ada.reveal()[1..]] {
            assert!(access.person(wrong).is_none(), "{wrong}");
        }
        let sender = access.sender("main", main.reveal()).unwrap();
        assert!(sender.may_start("one") && !sender.may_start("two"));
        assert!(access.sender("spare", main.reveal()).is_none(), "a token is good for one receiver");
        assert!(access.sender("main", ada.reveal()).is_none(), "a person is no receiver");
        assert!(access.sender("spare", spare.reveal()).unwrap().may_start("two"));
    }

    #[test]
    fn groups_add_up() {
        let access = Access::of(&service(
            "login:\n  environment: e\n  target: d\n  people: w\n  person: x\n  groups: y\n  roles:\n    all: { role: viewer }\n    \
             roots: { areas: { lifecycle: approver } }\n",
        ));
        let rights = access.rights_of_groups(["all", "roots", "other"]).unwrap();
        assert_eq!(rights.role_in(Some("lifecycle")), Some(Role::Approver));
        assert_eq!(rights.role_in(Some("web")), Some(Role::Viewer));
        assert_eq!(access.rights_of_groups(["other"]), None);
    }

    #[test]
    fn a_token_does_not_show_itself() {
        let token = Token::new();
        assert!(token.reveal().starts_with(PREFIX) && token.reveal().len() > 90);
        assert_eq!(format!("{token:?}"), "Token(…)");
        assert_ne!(token.reveal(), Token::new().reveal());
    }
}
