//! Someone writes in the moment between our comparing and our writing.

use async_trait::async_trait;
use farrier_model::{Change, ChangeKind, FailureKind, Value};

use super::{Place, json};
use crate::compare::{Way, set_all};
use crate::directory::{Attribute, Directory, Each, Edit, Query, Refusal, WritableDirectory};
use crate::dn::Dn;
use crate::filter::Filter;
use crate::restore::delete_all;

const ALICE: &str = "uid=alice,ou=people,dc=wikimedia,dc=org";
const ONE: &str = "cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org";
const BOB: &str = "uid=bob,ou=people,dc=wikimedia,dc=org";

/// A directory in which someone else is always a moment faster than we are.
struct Meddled<'a> {
    directory: &'a dyn WritableDirectory,
    asserts: bool,
    meddling: Vec<Edit>,
}

#[async_trait]
impl Directory for Meddled<'_> {
    async fn search(&self, query: &Query, each: &mut Each<'_>) -> Result<(), Refusal> {
        self.directory.search(query, each).await
    }

    async fn accepts(
        &self,
        dn: &Dn,
        password: &farrier_model::Secret,
    ) -> Result<bool, farrier_model::Failure> {
        self.directory.accepts(dn, password).await
    }
}

#[async_trait]
impl WritableDirectory for Meddled<'_> {
    fn asserts(&self) -> bool {
        self.asserts
    }

    async fn modify(&self, dn: &Dn, edits: &[Edit], only_if: Option<&Filter>) -> Result<(), Refusal> {
        assert_eq!(only_if.is_some(), self.asserts);
        self.directory.modify(dn, &self.meddling, None).await?;
        self.directory.modify(dn, edits, only_if).await
    }

    async fn add(&self, dn: &Dn, attributes: &[Attribute]) -> Result<(), Refusal> {
        self.directory.add(dn, attributes).await
    }

    async fn delete(&self, dn: &Dn, only_if: Option<&Filter>) -> Result<(), Refusal> {
        self.directory.modify(dn, &self.meddling, None).await?;
        self.directory.delete(dn, only_if).await
    }
}

fn one(name: &str, value: &str) -> Attribute {
    Attribute { name: name.into(), values: vec![value.as_bytes().to_vec()] }
}

fn change(object: &str, kind: ChangeKind, before: &str, after: &str) -> Change {
    Change { object: object.into(), kind, before: json(before), after: json(after), fingerprint: None }
}

async fn races(place: &Place) {
    let writer = place.writer().await;
    let directory = &*writer.directory;
    let shell = change(
        ALICE,
        ChangeKind::Update,
        r#"{"loginShell": "/bin/bash"}"#,
        r#"{"loginShell": "/bin/false"}"#,
    );
    let group = change(
        ONE,
        ChangeKind::Update,
        &format!(r#"{{"member": ["{ALICE}", "{BOB}"]}}"#),
        &format!(r#"{{"member": "{ALICE}"}}"#),
    );
    let swap =
        |old: &str, new: &str| vec![Edit::Delete(one("loginShell", old)), Edit::Add(one("loginShell", new))];
    let cases = [
        // The value itself: the old value is deleted by name, which needs no help from the server.
        (&shell, false, swap("/bin/bash", "/bin/zsh"), swap("/bin/zsh", "/bin/bash"), "loginShell: /bin/zsh"),
        (&shell, true, swap("/bin/bash", "/bin/zsh"), swap("/bin/zsh", "/bin/bash"), "loginShell: /bin/zsh"),
        // Another value of the same attribute: only the server can see that in one step.
        (
            &group,
            true,
            vec![Edit::Add(one("member", "uid=novaadmin,ou=people,dc=wikimedia,dc=org"))],
            vec![Edit::Delete(one("member", "uid=novaadmin,ou=people,dc=wikimedia,dc=org"))],
            "member: uid=novaadmin,ou=people,dc=wikimedia,dc=org",
        ),
    ];
    for (change, asserts, meddling, back, left) in cases {
        let before = place.world();
        let meddled = Meddled { directory, asserts, meddling };
        let failure = set_all(&meddled, std::slice::from_ref(change), Way::Apply).await.unwrap_err();
        assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
        let after = place.world();
        let lines = after[&*change.object].as_list().unwrap();
        assert!(lines.contains(&Value::text(left)), "what the other one wrote was overwritten: {lines:?}");
        directory.modify(&Dn::parse(&change.object).unwrap(), &back, None).await.unwrap();
        assert_eq!(place.world(), before, "a part of the change was made");
    }

    // An entry that someone changes is not deleted.
    let before = r#"{"objectClass": "sudoRole", "cn": "a (b), c*", "sudoUser": "%tools.one"}"#;
    let rule =
        change("cn=a (b)\\, c*,cn=tools,ou=projects,dc=wikimedia,dc=org", ChangeKind::Delete, before, "null");
    let meddled =
        Meddled { directory, asserts: true, meddling: vec![Edit::Add(one("sudoUser", "%tools.two"))] };
    let failure = delete_all(&meddled, [&rule].into_iter(), |change| &change.before).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Drift, "{failure}");
    assert!(place.world()[&*rule.object].to_json().contains("sudoUser: %tools.two"));
}

#[tokio::test]
async fn nothing_is_written_over_someone_faster_on_files() {
    races(&Place::files()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_written_over_someone_faster_on_a_server() {
    races(&Place::server()).await;
}
