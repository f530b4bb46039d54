//! Names and passwords, held against files and against a real OpenLDAP: what one says, the other says.

use farrier_model::{FailureKind, Secret};
use farrier_testkit::slapd::Options;

use super::Place;
use crate::login::{Login, Outcome};
use crate::target::LdapReader;

const ENTRIES: &str = "\
dn: uid=carol,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: carol
cn: Carol
sn: Carol
userPassword: right horse (*)

dn: cn=Doe\\, Jane,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: jane
cn: Doe, Jane
sn: Doe
userPassword: jane's

dn: uid=silent,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: silent
cn: Silent
sn: Silent

dn: uid=locked,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: locked
cn: Locked
sn: Locked
userPassword: right
pwdAccountLockedTime: 000001010000Z
pwdPolicySubentry: cn=disabled,ou=ppolicies,dc=wikimedia,dc=org

dn: cn=twin,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: twin
cn: twin
sn: One
userPassword: right

dn: cn=other twin,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: twin
cn: other twin
sn: Two
userPassword: right

dn: cn=roots,ou=groups,dc=wikimedia,dc=org
objectClass: groupOfNames
cn: roots
member: uid=carol,ou=people,dc=wikimedia,dc=org
member: cn=Doe\\, Jane,ou=people,dc=wikimedia,dc=org

dn: cn=viewers,ou=groups,dc=wikimedia,dc=org
objectClass: groupOfNames
cn: viewers
member: uid=carol,ou=people,dc=wikimedia,dc=org

# Whoever may write their own group gives it a second name, and a group below it.
dn: cn=mine,ou=groups,dc=wikimedia,dc=org
objectClass: groupOfNames
cn: mine
cn: admins
member: cn=Doe\\, Jane,ou=people,dc=wikimedia,dc=org

dn: cn=admins,cn=mine,ou=groups,dc=wikimedia,dc=org
objectClass: groupOfNames
cn: admins
member: cn=Doe\\, Jane,ou=people,dc=wikimedia,dc=org
";

fn login() -> Login {
    let groups = "ou=groups,dc=wikimedia,dc=org";
    Login::new(
        "ou=people,dc=wikimedia,dc=org",
        "(&(objectClass=inetOrgPerson)(uid=$name))",
        "uid",
        groups,
        "member",
    )
    .unwrap()
}

async fn check(reader: &LdapReader, name: &str, password: &str) -> Outcome {
    let answer = login().check(reader, name, &Secret::new(password)).await;
    answer.unwrap_or_else(|failure| panic!("{name}: {failure}"))
}

async fn suite(reader: &LdapReader) {
    let member = |name: &str, groups: &[&str]| Outcome::Member {
        name: name.into(),
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
    };
    assert_eq!(check(reader, "carol", "right horse (*)").await, member("carol", &["roots", "viewers"]));
    // One person, however the name is typed.
    assert_eq!(check(reader, "CAROL", "right horse (*)").await, member("carol", &["roots", "viewers"]));
    assert_eq!(check(reader, "jane", "jane's").await, member("jane", &["mine", "roots"]));
    for (name, password) in [
        ("carol", "wrong"),
        ("carol", "right horse (*) "),
        ("carol", "Right horse (*)"),
        ("carol", "*"),
        ("silent", "right"),
        ("locked", "right"),
    ] {
        assert_eq!(check(reader, name, password).await, Outcome::Refused { name: name.into() }, "{password}");
    }
    let long = "x".repeat(2_000);
    for (name, password) in [
        ("nobody", "right"),
        ("carol", ""),
        ("carol", &*long),
        ("", "right"),
        (" carol", "right horse (*)"),
        ("carol\0", "right horse (*)"),
        ("car*", "right horse (*)"),
        ("*", "right horse (*)"),
        ("carol)(uid=*", "right horse (*)"),
        ("x)(|(uid=carol", "right horse (*)"),
        ("\\63arol", "right horse (*)"),
        ("carol,ou=people,dc=wikimedia,dc=org", "right horse (*)"),
        (&*long, "right"),
    ] {
        assert_eq!(check(reader, name, password).await, Outcome::Unknown, "{name:?}");
    }
    let failure = login().check(reader, "twin", &Secret::new("right")).await.unwrap_err();
    assert!(failure.message.contains("several entries are called `twin`"), "{failure}");
}

#[tokio::test]
async fn files_know_people() {
    suite(&Place::files_with(ENTRIES).reader().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_knows_people() {
    let mut place = Place::server_with(Options { entries: ENTRIES.into(), ..Options::default() });
    let reader = place.reader().await;
    suite(&reader).await;
    // A bind is a connection of its own: the one that searches is still the reader's.
    let log = place.slapd().log();
    assert!(log.contains("BIND dn=\"uid=carol,ou=people,dc=wikimedia,dc=org\""), "{log}");
    assert!(!log.contains("right horse"), "{log}");
    // A directory that is gone says nothing about a password.
    place.slapd().stop();
    let failure = login().check(&reader, "carol", &Secret::new("right horse (*)")).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
}

/// Guards "no password over a connection that is not verified": for those who log in as for accounts of the environment.
#[tokio::test(flavor = "multi_thread")]
async fn a_private_connection_is_demanded_of_each_login() {
    let place = Place::server_with(Options { entries: ENTRIES.into(), tls: true, ..Options::default() });
    let mut place = place;
    let (url, ca) = (place.slapd().url(), place.slapd().ca_file().display().to_string());
    let config = super::json(&format!(r#"{{"url": "{url}", "start_tls": true, "ca_file": "{ca}"}}"#));
    let reader = <crate::Ldap as farrier_action::TargetKind>::reader(config.read().unwrap(), &place.cx())
        .await
        .unwrap();
    let mark = place.slapd().mark();
    assert!(matches!(check(&reader, "carol", "right horse (*)").await, Outcome::Member { .. }));
    let log = place.slapd().log_since(mark);
    let bind = log.find("BIND dn=\"uid=carol").expect("nobody bound");
    assert!(log[..bind].contains("STARTTLS"), "{log}");
}

#[test]
fn what_a_service_file_says_is_checked() {
    let make = |person: &str, name: &str, groups: &str| Login::new("ou=p", person, name, groups, "member");
    make("(uid=$name)", "uid", "ou=g").unwrap();
    for (person, name, groups, expected) in [
        ("(uid=ada)", "uid", "ou=g", "has no `$name`"),
        ("(uid=$nome)", "uid", "ou=g", "`$nome` has no value"),
        ("uid=$name", "uid", "ou=g", "filter"),
        ("(uid=$name)", "u id", "ou=g", "not the name of an attribute"),
        ("(uid=$name)", "uid", "groups", "not the name of an entry"),
    ] {
        let failure = make(person, name, groups).unwrap_err();
        assert!(failure.message.contains(expected), "{failure}");
    }
}
