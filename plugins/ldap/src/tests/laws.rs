//! The laws of [`farrier_action::harness`], for every action, on files and on a server.

use farrier_action::WriteCx;
use farrier_action::harness::{Case, Shown};
use farrier_model::{FailureKind, Scope, Value};
use futures_util::FutureExt;

use super::{Place, json, registry};

struct Law {
    action: &'static str,
    input: &'static str,
    /// The change for a server; the same for the files.
    disturb: Option<(&'static str, &'static str, &'static str)>,
    bad: &'static [&'static str],
    /// The changes, as JSON of object, kind, before and after.
    changes: &'static [(&'static str, &'static str, &'static str, &'static str)],
    output: &'static str,
}

const MODIFY: Law = Law {
    action: "ldap.modify",
    input: r#"{"target": "directory", "base": "ou=people,dc=wikimedia,dc=org", "rdn": ["uid", "alice"],
        "set": {"loginShell": "/bin/false", "mail": ["alice@example.org", "a@example.org"], "sshPublicKey": null,
                "pwdAccountLockedTime": "20261122101530Z",
                "pwdPolicySubentry": {"base": "ou=ppolicies,dc=wikimedia,dc=org", "rdn": ["cn", "disabled"]}},
        "if_is": {"uidNumber": 100001, "loginShell": "/bin/bash", "description": null}}"#,
    disturb: Some((
        "dn: uid=alice,ou=people,dc=wikimedia,dc=org\nchangetype: modify\nreplace: loginShell\nloginShell: /bin/zsh\n",
        "loginShell: /bin/bash",
        "loginShell: /bin/zsh",
    )),
    bad: &[
        r#"{"target": "directory", "base": "ou=people,dc=wikimedia,dc=org", "set": {}}"#,
        r#"{"target": "directory", "base": "people", "set": {"loginShell": "/bin/sh"}}"#,
        r#"{"target": "directory", "base": "dc=org", "rdn": ["uid", "a\u0000"], "set": {"loginShell": "/bin/sh"}}"#,
        r#"{"target": "directory", "base": "dc=org", "rdn": ["uid", ""], "set": {"loginShell": "/bin/sh"}}"#,
        r#"{"target": "directory", "base": "dc=org", "set": {"userPassword": "x"}}"#,
        r#"{"target": "directory", "base": "dc=org", "set": {"a b": "x"}}"#,
        r#"{"target": "nowhere", "base": "dc=org", "set": {"loginShell": "x"}}"#,
        r#"{"target": "directory", "base": "dc=org", "put": {"loginShell": "x"}}"#,
    ],
    changes: &[(
        "uid=alice,ou=people,dc=wikimedia,dc=org",
        "update",
        r#"{"loginShell":"/bin/bash","mail":"alice@example.org","sshPublicKey":"ssh-ed25519 AAAA alice","pwdAccountLockedTime":null,"pwdPolicySubentry":null,"uidNumber":"100001","description":null}"#,
        r#"{"loginShell":"/bin/false","mail":["a@example.org","alice@example.org"],"sshPublicKey":null,"pwdAccountLockedTime":"20261122101530Z","pwdPolicySubentry":"cn=disabled,ou=ppolicies,dc=wikimedia,dc=org","uidNumber":"100001","description":null}"#,
    )],
    output: r#"{"dn":"uid=alice,ou=people,dc=wikimedia,dc=org"}"#,
};

const ADD: Law = Law {
    action: "ldap.add",
    input: r#"{"target": "directory", "base": "ou=servicegroups,dc=wikimedia,dc=org", "rdn": ["cn", "odd, name+x"],
        "attributes": {"objectClass": ["groupOfNames", "posixGroup"], "gidNumber": 51010,
                       "member": [{"base": "ou=people,dc=wikimedia,dc=org", "rdn": ["uid", "alice"]}]}}"#,
    disturb: Some((
        "dn: cn=odd\\, name\\+x,ou=servicegroups,dc=wikimedia,dc=org\nchangetype: add\nobjectClass: groupOfNames\ncn: odd, \
         name+x\nmember: uid=bob,ou=people,dc=wikimedia,dc=org\n",
        "# Tools",
        "dn: cn=odd\\, name\\+x,ou=servicegroups,dc=wikimedia,dc=org\nobjectClass: groupOfNames\ncn: odd, \
         name+x\nmember: uid=bob,ou=people,dc=wikimedia,dc=org\n\n# Tools",
    )),
    bad: &[
        r#"{"target": "directory", "base": "dc=wikimedia,dc=org", "rdn": ["ou", "x"], "attributes": {"ou": "x"}}"#,
        r#"{"target": "directory", "base": "dc=wikimedia,dc=org", "rdn": ["ou"], "attributes": {"objectClass": "x"}}"#,
        r#"{"target": "directory", "base": "dc=wikimedia,dc=org", "rdn": ["o u", "x"], "attributes": {"objectClass": "x"}}"#,
        r#"{"target": "directory", "base": "dc=org", "rdn": ["ou", "x"], "attributes": {"objectClass": "x", "l": null}}"#,
    ],
    changes: &[(
        "cn=odd\\, name\\+x,ou=servicegroups,dc=wikimedia,dc=org",
        "create",
        "null",
        r#"{"objectClass":["groupOfNames","posixGroup"],"gidNumber":"51010","member":"uid=alice,ou=people,dc=wikimedia,dc=org","cn":"odd, name+x"}"#,
    )],
    output: r#"{"dn":"cn=odd\\, name\\+x,ou=servicegroups,dc=wikimedia,dc=org"}"#,
};

const DELETE: Law = Law {
    action: "ldap.delete",
    input: r#"{"target": "directory", "entries": [
        {"base": "cn=tools,ou=projects,dc=wikimedia,dc=org"},
        {"base": "ou=people,ou=servicegroups,dc=wikimedia,dc=org", "rdn": ["uid", "tools.two"],
            "if_is": {"uidNumber": 51002, "pwdAccountLockedTime": "20261001120000Z"}},
        {"base": "cn=tools,ou=projects,dc=wikimedia,dc=org", "rdn": ["cn", "a (b), c*"]},
        {"base": "ou=people,ou=servicegroups,dc=wikimedia,dc=org", "rdn": ["uid", "gone"]}]}"#,
    disturb: Some((
        "dn: uid=tools.two,ou=people,ou=servicegroups,dc=wikimedia,dc=org\nchangetype: modify\nadd: gecos\ngecos: kept\n",
        "homeDirectory: /data/project/two",
        "homeDirectory: /data/project/two\ngecos: kept",
    )),
    bad: &[
        r#"{"target": "directory", "entries": []}"#,
        r#"{"target": "directory", "entries": [{"base": "x"}]}"#,
        r#"{"target": "directory", "entries": [{"base": "dc=x", "rdn": ["uid", "a", "b"]}]}"#,
        r#"{"target": "directory", "entries": [{"base": ""}]}"#,
    ],
    changes: &[
        (
            "uid=tools.two,ou=people,ou=servicegroups,dc=wikimedia,dc=org",
            "delete",
            r#"{"objectClass":["person","posixAccount","shadowAccount"],"cn":"tools.two","gidNumber":"51002","homeDirectory":"/data/project/two","loginShell":"/bin/bash","pwdAccountLockedTime":"20261001120000Z","pwdPolicySubentry":"cn=disabled,ou=ppolicies,dc=wikimedia,dc=org","sn":"tools.two","uid":"tools.two","uidNumber":"51002"}"#,
            "null",
        ),
        (
            "cn=a (b)\\, c*,cn=tools,ou=projects,dc=wikimedia,dc=org",
            "delete",
            r#"{"objectClass":"sudoRole","cn":"a (b), c*","sudoUser":"%tools.one"}"#,
            "null",
        ),
        (
            "cn=tools,ou=projects,dc=wikimedia,dc=org",
            "delete",
            r#"{"objectClass":"groupOfNames","cn":"tools","member":"uid=alice,ou=people,dc=wikimedia,dc=org"}"#,
            "null",
        ),
    ],
    output: r#"{"deleted":["uid=tools.two,ou=people,ou=servicegroups,dc=wikimedia,dc=org","cn=a (b)\\, c*,cn=tools,ou=projects,dc=wikimedia,dc=org","cn=tools,ou=projects,dc=wikimedia,dc=org"]}"#,
};

const LEAVE: Law = Law {
    action: "ldap.members",
    input: r#"{"target": "directory", "groups_under": "ou=servicegroups,dc=wikimedia,dc=org",
        "remove": [{"base": "ou=people,ou=servicegroups,dc=wikimedia,dc=org", "rdn": ["uid", "tools.one"]},
                   "UID=bob, ou=people,dc=wikimedia,dc=org"]}"#,
    disturb: Some((
        "dn: cn=tools.two,ou=servicegroups,dc=wikimedia,dc=org\nchangetype: modify\nadd: member\nmember: \
         uid=bob,ou=people,dc=wikimedia,dc=org\n",
        "gidNumber: 51002\nmember: uid=alice",
        "gidNumber: 51002\nmember: uid=bob,ou=people,dc=wikimedia,dc=org\nmember: uid=alice",
    )),
    bad: &[
        r#"{"target": "directory", "remove": ["uid=a,dc=x"]}"#,
        r#"{"target": "directory", "groups_under": "dc=org", "group": {"base": "dc=org"}, "remove": ["uid=a,dc=x"]}"#,
        r#"{"target": "directory", "groups_under": "dc=org", "add": ["uid=a,dc=x"]}"#,
        r#"{"target": "directory", "groups_under": "dc=org", "remove": []}"#,
        r#"{"target": "directory", "groups_under": "dc=org", "remove": ["alice"]}"#,
        r#"{"target": "directory", "group": {"base": "dc=org"}, "add": ["uid=a,dc=x"], "remove": ["UID=a,dc=x"]}"#,
        r#"{"target": "directory", "groups_under": "dc=org", "attribute": "mem ber", "remove": ["uid=a,dc=x"]}"#,
        r#"{"target": "directory", "groups_under": "dc=org", "attribute": "memberUid", "remove": [{"base": "uid=a,dc=x"}]}"#,
        r#"{"target": "directory", "groups_under": "dc=org", "attribute": "userPassword", "remove": ["x"]}"#,
    ],
    changes: &[
        (
            "cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org",
            "update",
            r#"{"member":["uid=alice,ou=people,dc=wikimedia,dc=org","uid=bob,ou=people,dc=wikimedia,dc=org"]}"#,
            r#"{"member":"uid=alice,ou=people,dc=wikimedia,dc=org"}"#,
        ),
        (
            "cn=tools.two,ou=servicegroups,dc=wikimedia,dc=org",
            "update",
            r#"{"member":["uid=alice,ou=people,dc=wikimedia,dc=org","uid=tools.one,ou=people,ou=servicegroups,dc=wikimedia,dc=org"]}"#,
            r#"{"member":"uid=alice,ou=people,dc=wikimedia,dc=org"}"#,
        ),
    ],
    output: r#"{"groups":["cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org","cn=tools.two,ou=servicegroups,dc=wikimedia,dc=org"]}"#,
};

const JOIN: Law = Law {
    action: "ldap.members",
    input: r#"{"target": "directory", "group": {"base": "ou=projects,dc=wikimedia,dc=org", "rdn": ["cn", "tools"]},
        "add": [{"base": "ou=people,dc=wikimedia,dc=org", "rdn": ["uid", "bob"]}],
        "remove": [{"base": "ou=people,dc=wikimedia,dc=org", "rdn": ["uid", "alice"]}]}"#,
    disturb: Some((
        "dn: cn=tools,ou=projects,dc=wikimedia,dc=org\nchangetype: modify\nadd: member\nmember: \
         uid=novaadmin,ou=people,dc=wikimedia,dc=org\n",
        "cn: tools\nmember: uid=alice",
        "cn: tools\nmember: uid=novaadmin,ou=people,dc=wikimedia,dc=org\nmember: uid=alice",
    )),
    bad: &[],
    changes: &[(
        "cn=tools,ou=projects,dc=wikimedia,dc=org",
        "update",
        r#"{"member":"uid=alice,ou=people,dc=wikimedia,dc=org"}"#,
        r#"{"member":"uid=bob,ou=people,dc=wikimedia,dc=org"}"#,
    )],
    output: r#"{"groups":["cn=tools,ou=projects,dc=wikimedia,dc=org"]}"#,
};

const SEARCH: Law = Law {
    action: "ldap.search",
    input: r#"{"target": "directory", "base": "ou=people,ou=servicegroups,dc=wikimedia,dc=org",
        "filter": "(&(objectClass=posixAccount)(cn=$project.*)(uidNumber>=$least))",
        "params": {"project": "tools", "least": 51001}, "page_size": 1,
        "attributes": {"cn": "string", "uidNumber": "int", "pwdAccountLockedTime": "optional generalized_time",
                       "pwdPolicySubentry": "optional dn", "memberOf": "list of dn"}}"#,
    disturb: None,
    bad: &[
        r#"{"target": "directory", "base": "dc=org", "filter": "(cn=$x)", "attributes": {"cn": "string"}}"#,
        r#"{"target": "directory", "base": "dc=org", "filter": "(cn=$x)", "params": {"x": "a\u0000"}, "attributes": {"cn": "string"}}"#,
        r#"{"target": "directory", "base": "dc=org", "filter": "(cn=$x)", "params": {"x": null}, "attributes": {"cn": "string"}}"#,
        r#"{"target": "directory", "base": "dc=org", "filter": "cn=a", "attributes": {"cn": "string"}}"#,
        r#"{"target": "directory", "base": "dc=org", "filter": "(cn=a)", "attributes": {"cn": "text"}}"#,
        r#"{"target": "directory", "base": "dc=org", "filter": "(cn=a)", "attributes": {}}"#,
        r#"{"target": "directory", "base": "dc=org", "filter": "(cn=a)", "attributes": {"cn": "string"}, "page_size": 0}"#,
        r#"{"target": "directory", "base": "dc=org", "filter": "(cn=a)", "attributes": {"cn": "string"}, "scope": "all"}"#,
    ],
    changes: &[],
    output: r#"{"entries":[{"dn":"uid=tools.one,ou=people,ou=servicegroups,dc=wikimedia,dc=org","cn":"tools.one","uidNumber":51001,"pwdAccountLockedTime":null,"pwdPolicySubentry":null,"memberOf":["cn=tools.two,ou=servicegroups,dc=wikimedia,dc=org"]},{"dn":"uid=tools.two,ou=people,ou=servicegroups,dc=wikimedia,dc=org","cn":"tools.two","uidNumber":51002,"pwdAccountLockedTime":"2026-10-01T12:00:00Z","pwdPolicySubentry":"cn=disabled,ou=ppolicies,dc=wikimedia,dc=org","memberOf":[]}]}"#,
};

async fn prove(law: &Law, place: &Place) -> Shown {
    let registry = registry();
    let case = Case {
        registry: &registry,
        action: law.action,
        input: json(law.input),
        targets: place.targets(),
        scope: Scope::default(),
        observe: Box::new(|| async { place.world() }.boxed()),
        disturb: law.disturb.map(|(ldif, from, to)| -> Box<dyn Fn() -> _> {
            Box::new(move || async move { place.disturb(ldif, from, to) }.boxed())
        }),
        bad_inputs: law.bad.iter().map(|bad| json(bad)).collect(),
    };
    let shown = case.prove().await.unwrap_or_else(|failure| panic!("{}: {failure}", law.action));
    let changes: Vec<(String, &str, String, String)> = shown
        .plan
        .changes
        .iter()
        .map(|change| {
            (change.object.to_string(), change.kind.name(), change.before.to_json(), change.after.to_json())
        })
        .collect();
    let wanted: Vec<_> = law
        .changes
        .iter()
        .map(|(o, k, b, a)| ((*o).to_owned(), *k, (*b).to_owned(), (*a).to_owned()))
        .collect();
    assert_eq!(changes, wanted, "{}", law.action);
    assert_eq!(shown.output.to_json(), law.output, "{}", law.action);
    shown
}

#[tokio::test]
async fn the_laws_hold_on_files() {
    for law in [&MODIFY, &ADD, &DELETE, &LEAVE, &JOIN, &SEARCH] {
        prove(law, &Place::files()).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_laws_hold_on_a_server() {
    for law in [&MODIFY, &ADD, &DELETE, &LEAVE, &JOIN, &SEARCH] {
        prove(law, &Place::server()).await;
    }
}

/// Plans that must fail, and their reasons.
async fn refused(place: &Place) {
    let registry = registry();
    let people = "ou=people,dc=wikimedia,dc=org";
    let cases = [
        (
            "ldap.modify",
            format!(r#"{{"target": "directory", "base": "{people}", "rdn": ["uid", "nobody"], "set": {{"loginShell": "x"}}}}"#),
            FailureKind::Refused,
            "there is no entry `uid=nobody,ou=people,dc=wikimedia,dc=org`",
        ),
        (
            "ldap.modify",
            format!(
                r#"{{"target": "directory", "base": "{people}", "rdn": ["uid", "alice"], "set": {{"loginShell": "/bin/false"}},
                    "if_is": {{"mail": null}}}}"#
            ),
            FailureKind::Expectation,
            "`mail` of `uid=alice,ou=people,dc=wikimedia,dc=org` is alice@example.org",
        ),
        (
            "ldap.add",
            format!(
                r#"{{"target": "directory", "base": "{people}", "rdn": ["uid", "alice"],
                    "attributes": {{"objectClass": ["person", "inetOrgPerson", "posixAccount", "ldapPublicKey"], "loginShell": "/bin/zsh", "sn": "Example"}}}}"#
            ),
            FailureKind::Refused,
            "exists with other values: `loginShell` is /bin/bash",
        ),
        (
            "ldap.delete",
            r#"{"target": "directory", "entries": [{"base": "cn=tools,ou=projects,dc=wikimedia,dc=org"}]}"#.into(),
            FailureKind::Refused,
            "has `cn=a (b)",
        ),
        (
            "ldap.delete",
            r#"{"target": "directory", "entries": [
                {"base": "ou=people,ou=servicegroups,dc=wikimedia,dc=org", "rdn": ["uid", "tools.two"], "if_is": {"uidNumber": 51003}}]}"#
                .into(),
            FailureKind::Expectation,
            "`uidNumber` of `uid=tools.two,ou=people,ou=servicegroups,dc=wikimedia,dc=org` is 51002",
        ),
        (
            "ldap.delete",
            r#"{"target": "directory", "entries": [
                {"base": "ou=people,ou=servicegroups,dc=wikimedia,dc=org", "rdn": ["uid", "tools.two"], "if_is": {"pwdPolicySubentry": null}}]}"#
                .into(),
            FailureKind::Expectation,
            "`pwdPolicySubentry` of `uid=tools.two,ou=people,ou=servicegroups,dc=wikimedia,dc=org` is cn=disabled",
        ),
        (
            "ldap.members",
            r#"{"target": "directory", "groups_under": "dc=wikimedia,dc=org", "remove": ["uid=alice,ou=people,dc=wikimedia,dc=org"]}"#
                .into(),
            FailureKind::Refused,
            "`cn=tools,ou=projects,dc=wikimedia,dc=org` would have no member left",
        ),
        (
            "ldap.members",
            r#"{"target": "directory", "group": {"base": "cn=none,dc=wikimedia,dc=org"}, "add": ["uid=alice,ou=people,dc=wikimedia,dc=org"]}"#
                .into(),
            FailureKind::Refused,
            "there is no group `cn=none,dc=wikimedia,dc=org`",
        ),
        (
            "ldap.search",
            r#"{"target": "directory", "base": "ou=none,dc=wikimedia,dc=org", "filter": "(cn=*)", "attributes": {"cn": "string"}}"#
                .into(),
            FailureKind::Refused,
            "cannot search under `ou=none,dc=wikimedia,dc=org`: there is no such entry",
        ),
        (
            "ldap.search",
            format!(r#"{{"target": "directory", "base": "{people}", "filter": "(uid=bob)", "attributes": {{"mail": "string"}}}}"#),
            FailureKind::Refused,
            "in the entry `uid=bob,ou=people,dc=wikimedia,dc=org`: `mail` has 2 values",
        ),
        (
            "ldap.search",
            format!(
                r#"{{"target": "directory", "base": "{people}", "filter": "(uid=*)", "attributes": {{"uid": "string"}}, "size_limit": 2}}"#
            ),
            FailureKind::Limit,
            "more entries than the size limit allows",
        ),
    ];
    let before = place.world();
    let case = |action: &'static str| Case {
        registry: &registry,
        action,
        input: Value::Null,
        targets: place.targets(),
        scope: Scope::default(),
        observe: Box::new(|| async { place.world() }.boxed()),
        disturb: None,
        bad_inputs: vec![],
    };
    for (action, input, kind, reason) in cases {
        let cx = case(action).read_cx();
        let failure = registry.bind(action, &json(&input)).unwrap().plan(&cx).await.expect_err(&input);
        assert_eq!(failure.kind, kind, "{failure}");
        assert!(failure.message.contains(reason), "{failure}");
        assert_eq!(failure.target.as_deref(), Some("directory"));
        assert!(!failure.message.contains("`directory`"), "{failure}");
    }

    // What is as wanted already is no change.
    for (action, input) in [
        ("ldap.modify", format!(r#"{{"target": "directory", "base": "{people}", "rdn": ["uid", "alice"], "set": {{"loginShell": "/bin/bash", "description": null}}, "if_is": {{"mail": null}}}}"#)),
        ("ldap.add", format!(r#"{{"target": "directory", "base": "{people}", "rdn": ["uid", "alice"], "attributes": {{"objectClass": ["posixAccount", "person", "inetOrgPerson", "ldapPublicKey"]}}}}"#)),
        ("ldap.delete", r#"{"target": "directory", "entries": [{"base": "cn=none,dc=wikimedia,dc=org"}]}"#.into()),
        ("ldap.members", r#"{"target": "directory", "groups_under": "dc=wikimedia,dc=org", "remove": ["uid=x,dc=org"]}"#.into()),
        ("ldap.members", r#"{"target": "directory", "group": {"base": "cn=tools,ou=projects,dc=wikimedia,dc=org"}, "add": ["UID=Alice,ou=people,dc=wikimedia,dc=org"]}"#.into()),
    ] {
        let plan = registry.bind(action, &json(&input)).unwrap().plan(&case(action).read_cx()).await.unwrap();
        assert_eq!(plan.changes, [], "{input}");
    }

    assert_eq!(place.world(), before);
}

#[tokio::test]
async fn refusals_say_why_on_files() {
    refused(&Place::files()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_say_why_on_a_server() {
    refused(&Place::server()).await;
}

/// Drift on the second object leaves the first alone; an interrupted apply goes on where it stopped.
async fn several_objects(place: &Place) {
    let registry = registry();
    let case = Case {
        registry: &registry,
        action: "ldap.members",
        input: json(LEAVE.input),
        targets: place.targets(),
        scope: Scope::default(),
        observe: Box::new(|| async { place.world() }.boxed()),
        disturb: None,
        bad_inputs: vec![],
    };
    let action = registry.bind(case.action, &case.input).unwrap();
    let cx = case.read_cx();
    let plan = action.plan(&cx).await.unwrap();
    let write = WriteCx::after_intent(cx);
    assert_eq!(plan.considered, Some(2));

    // The process died after the first of two writes.
    action.apply(&write, &plan.changes[..1]).await.unwrap();
    action.apply(&write, &plan.changes).await.unwrap();
    let done = place.world();
    action.undo(&write, &plan.changes).await.unwrap();

    let (ldif, from, to) = LEAVE.disturb.unwrap();
    place.disturb(ldif, from, to);
    let disturbed = place.world();
    let failure = action.apply(&write, &plan.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift);
    assert!(failure.message.contains("`member` of `cn=tools.two,"), "{failure}");
    assert_eq!(place.world(), disturbed, "the first group was changed although the second had drifted");
    assert_ne!(disturbed, done);
}

#[tokio::test]
async fn drift_on_one_object_stops_all_on_files() {
    several_objects(&Place::files()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn drift_on_one_object_stops_all_on_a_server() {
    several_objects(&Place::server()).await;
}

/// What `if_is` names must hold when the change is made, and does not matter when it is taken back.
async fn conditions(place: &Place) {
    let registry = registry();
    let input = json(
        r#"{"target": "directory", "base": "ou=people,dc=wikimedia,dc=org", "rdn": ["uid", "alice"],
            "set": {"loginShell": "/bin/false"}, "if_is": {"mail": "alice@example.org"}}"#,
    );
    let case = Case {
        registry: &registry,
        action: "ldap.modify",
        input,
        targets: place.targets(),
        scope: Scope::default(),
        observe: Box::new(|| async { place.world() }.boxed()),
        disturb: None,
        bad_inputs: vec![],
    };
    let action = registry.bind(case.action, &case.input).unwrap();
    let plan = action.plan(&case.read_cx()).await.unwrap();
    let write = WriteCx::after_intent(case.read_cx());
    let mail = |old: &str, new: &str| {
        let ldif = format!(
            "dn: uid=alice,ou=people,dc=wikimedia,dc=org\nchangetype: modify\nreplace: mail\nmail: {new}@example.org\n"
        );
        place.disturb(&ldif, &format!("mail: {old}@example.org"), &format!("mail: {new}@example.org"));
    };
    mail("alice", "moved");
    let failure = action.apply(&write, &plan.changes).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert!(failure.message.contains("`mail` of `uid=alice,"), "{failure}");

    mail("moved", "alice");
    let before = place.world();
    action.apply(&write, &plan.changes).await.unwrap();
    mail("alice", "moved");
    action.apply(&write, &plan.changes).await.expect("it is done already, whatever the condition says now");
    action.undo(&write, &plan.changes).await.expect("the condition is not part of what is taken back");
    mail("moved", "alice");
    assert_eq!(place.world(), before);
}

#[tokio::test]
async fn conditions_hold_when_a_change_is_made_on_files() {
    conditions(&Place::files()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_hold_when_a_change_is_made_on_a_server() {
    conditions(&Place::server()).await;
}

/// Deleting an entry with a password says what undo cannot bring back, and records nothing of it.
async fn passwords(place: &Place) {
    let registry = registry();
    let input = json(
        r#"{"target": "directory", "entries": [{"base": "uid=novaadmin,ou=people,dc=wikimedia,dc=org"}]}"#,
    );
    let case = Case {
        registry: &registry,
        action: "ldap.delete",
        input,
        targets: place.targets(),
        scope: Scope::default(),
        observe: Box::new(|| async { place.world() }.boxed()),
        disturb: None,
        bad_inputs: vec![],
    };
    let action = registry.bind(case.action, &case.input).unwrap();
    let plan = action.plan(&case.read_cx()).await.unwrap();
    assert!(plan.changes[0].before.get("userPassword").is_none(), "{:?}", plan.changes);
    assert!(!plan.changes[0].before.to_json().contains("testkit"));
    let note = "`userPassword` of `uid=novaadmin,ou=people,dc=wikimedia,dc=org` is not recorded, so undo cannot bring it back";
    assert_eq!(plan.notes, [note]);
    let write = WriteCx::after_intent(case.read_cx());
    action.apply(&write, &plan.changes).await.unwrap();
    action.undo(&write, &plan.changes).await.unwrap();
    let mut world = place.world();
    let restored = world.remove("uid=novaadmin,ou=people,dc=wikimedia,dc=org").unwrap();
    assert!(
        restored.to_json().contains("sn: novaadmin") && !restored.to_json().contains("userPassword"),
        "{restored}"
    );
}

#[tokio::test]
async fn passwords_are_not_recorded() {
    passwords(&Place::files()).await;
}
