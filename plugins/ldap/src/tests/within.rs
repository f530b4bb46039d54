//! A target that reaches a part of its directory and no further, whatever a step asks for.

use farrier_action::harness::Case;
use farrier_action::{TargetKind, WriteCx};
use farrier_model::{Change, ChangeKind, Failure, FailureKind, Scope, Secret, Value};

use super::{Place, json, registry};
use crate::directory::{Attribute, Edit};
use crate::dn::Dn;
use crate::target::{Ldap, LdapConfig};

const OUTSIDE: &str = "uid=tools.one,ou=people,ou=servicegroups,dc=wikimedia,dc=org";

/// Every action, at an entry outside.
const STEPS: [(&str, &str); 8] = [
    (
        "ldap.search",
        r#""base": "dc=wikimedia,dc=org", "filter": "(uid=alice)", "attributes": {"uid": "string"}"#,
    ),
    (
        "ldap.search",
        r#""base": "uid=tools.one,ou=people,ou=servicegroups,dc=wikimedia,dc=org", "scope": "base",
           "filter": "(objectClass=*)", "attributes": {"uid": "string"}"#,
    ),
    (
        "ldap.add",
        r#""base": "ou=servicegroups,dc=wikimedia,dc=org", "rdn": ["cn", "tools.new"],
           "attributes": {"objectClass": ["groupOfNames"], "member": "uid=alice,ou=people,dc=wikimedia,dc=org"}"#,
    ),
    (
        "ldap.modify",
        r#""base": "ou=people,ou=servicegroups,dc=wikimedia,dc=org", "rdn": ["uid", "tools.one"],
           "set": {"loginShell": "/bin/false"}"#,
    ),
    // A name that begins as the one that may be reached.
    (
        "ldap.modify",
        r#""base": "uid=eve,ou=people2,dc=wikimedia,dc=org", "set": {"loginShell": "/bin/false"}"#,
    ),
    (
        "ldap.delete",
        r#""entries": [{"base": "uid=alice,ou=people,dc=wikimedia,dc=org"},
                       {"base": "uid=tools.one,ou=people,ou=servicegroups,dc=wikimedia,dc=org"}]"#,
    ),
    (
        "ldap.members",
        r#""group": {"base": "cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org"},
           "remove": ["uid=bob,ou=people,dc=wikimedia,dc=org"]"#,
    ),
    (
        "ldap.members",
        r#""groups_under": "dc=wikimedia,dc=org", "remove": ["uid=bob,ou=people,dc=wikimedia,dc=org"]"#,
    ),
];

/// The target's settings, with an end to its reach. Case and spaces mean nothing in names.
fn pinned(place: &Place) -> Value {
    let config = place.config();
    let known = config.as_map().unwrap().iter().map(|(key, value)| (key.to_string(), value.clone()));
    Value::map(known.chain([("base".to_owned(), Value::text("OU=People, dc=Wikimedia,dc=org"))]))
}

fn is_denied(failure: &Failure, what: &str) {
    assert_eq!(failure.kind, FailureKind::Denied, "{what}: {failure}");
    assert!(
        failure.message.contains("is not at or under `ou=People,dc=Wikimedia,dc=org`"),
        "{what}: {failure}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn no_step_comes_past_the_base_of_its_target() {
    for place in [Place::files(), Place::server()] {
        let registry = registry();
        let targets = place.targets_of(pinned(&place));
        let before = place.world();
        let case = |action, input: &str| Case {
            registry: &registry,
            action,
            input: json(&format!(r#"{{"target": "directory", {input}}}"#)),
            targets: targets.clone(),
            scope: Scope::default(),
            observe: Box::new(|| unreachable!()),
            disturb: None,
            bad_inputs: vec![],
        };
        for (action, input) in STEPS {
            let case = case(action, input);
            let bound = registry.bind(action, &case.input).unwrap();
            let failure = bound.plan(&case.read_cx()).await.expect_err(input);
            is_denied(&failure, input);
            assert_eq!(failure.target.as_deref(), Some("directory"), "{failure}");
        }

        // What was planned when the target reached further is not written either, nor taken back.
        let shell = |shell: &str| json(&format!(r#"{{"loginShell": "{shell}"}}"#));
        let changes = [Change {
            object: OUTSIDE.into(),
            kind: ChangeKind::Update,
            before: shell("/bin/bash"),
            after: shell("/bin/false"),
            fingerprint: None,
        }];
        let case = case("ldap.modify", STEPS[3].1);
        let bound = registry.bind("ldap.modify", &case.input).unwrap();
        let write = WriteCx::after_intent(case.read_cx());
        is_denied(&bound.apply(&write, &changes).await.unwrap_err(), "apply");
        is_denied(&bound.undo(&write, &changes).await.unwrap_err(), "undo");
        assert_eq!(place.world(), before, "nothing was written");
    }
}

/// Each request is held against the base by itself, also where an action would have looked at the entry before.
#[tokio::test(flavor = "multi_thread")]
async fn no_request_comes_past_the_base_of_its_target() {
    for place in [Place::files(), Place::server()] {
        let before = place.world();
        let config = || pinned(&place).read::<LdapConfig>().unwrap();
        let writer = Ldap::writer(config(), &place.cx()).await.unwrap();
        let reader = Ldap::reader(config(), &place.cx()).await.unwrap();
        let outside = Dn::parse(OUTSIDE).unwrap();
        let shell = Attribute { name: "description".into(), values: vec![b"theirs".to_vec()] };
        let edits = [Edit::Add(shell.clone())];
        let refused = [
            (
                "modify",
                writer.directory.modify(&outside, &edits, None).await.map_err(|refusal| refusal.failure),
            ),
            ("delete", writer.directory.delete(&outside, None).await.map_err(|refusal| refusal.failure)),
            ("add", writer.directory.add(&outside, &[shell]).await.map_err(|refusal| refusal.failure)),
            ("accepts", reader.directory.accepts(&outside, &Secret::new("a word")).await.map(drop)),
        ];
        for (what, answer) in refused {
            is_denied(&answer.expect_err(what), what);
        }
        assert_eq!(place.world(), before, "nothing was written");

        // Within it all is as ever, at its head as well.
        let alice = Dn::parse("uid=alice,ou=people,dc=wikimedia,dc=org").unwrap();
        writer.directory.modify(&alice, &edits, None).await.unwrap();
        for dn in [alice, Dn::parse("ou=people,dc=wikimedia,dc=org").unwrap()] {
            let entry = crate::directory::fetch(&*reader.directory, &dn, vec!["objectClass".into()]).await;
            assert!(entry.unwrap().is_some(), "{dn}");
        }
        assert_ne!(place.world(), before);
    }
}
