//! What a directory does, asked of the stand-in and of OpenLDAP. Whatever the stand-in promises is asserted here.

use std::collections::BTreeMap;

use super::Place;
use crate::compare::{VERSION, unchanged};
use crate::directory::{Attribute, Edit, Entry, Query, Scope, WritableDirectory, code, fetch};
use crate::dn::Dn;
use crate::filter::Filter;

const ALICE: &str = "uid=alice,ou=people,dc=wikimedia,dc=org";
const BOB: &str = "uid=bob,ou=people,dc=wikimedia,dc=org";
const ONE: &str = "cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org";
const ONE_USER: &str = "uid=tools.one,ou=people,ou=servicegroups,dc=wikimedia,dc=org";

#[tokio::test]
async fn files_behave_like_a_directory() {
    suite(&*Place::files().writer().await.directory).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_behaves_like_a_directory() {
    let place = Place::server();
    suite(&*place.writer().await.directory).await;
}

async fn suite(directory: &dyn WritableDirectory) {
    assert!(directory.asserts());
    filters_find(directory).await;
    scopes_and_limits(directory).await;
    attributes_come_as_asked(directory).await;
    refused_writes(directory).await;
    writes(directory).await;
    assertions(directory).await;
}

fn dn(text: &str) -> Dn {
    Dn::parse(text).unwrap()
}

fn filter(text: &str) -> Filter {
    Filter::parse(text, &BTreeMap::new()).unwrap()
}

fn attribute(name: &str, values: &[&str]) -> Attribute {
    Attribute { name: name.into(), values: values.iter().map(|value| value.as_bytes().to_vec()).collect() }
}

fn query(base: &str, scope: Scope, text: &str, attributes: &[&str]) -> Query {
    Query {
        base: dn(base),
        scope,
        filter: filter(text),
        attributes: attributes.iter().map(|name| (*name).to_owned()).collect(),
        size_limit: None,
        page_size: Some(3),
    }
}

async fn found(directory: &dyn WritableDirectory, query: &Query) -> Result<Vec<Entry>, Option<u32>> {
    let mut entries = Vec::new();
    directory
        .search(query, &mut |entry| {
            entries.push(entry);
            Ok(())
        })
        .await
        .map_err(|refusal| refusal.code)?;
    entries.sort_by_key(|entry| entry.dn.to_lowercase());
    Ok(entries)
}

/// The first part of each name found.
async fn names(directory: &dyn WritableDirectory, query: &Query) -> Vec<String> {
    let entries = found(directory, query).await.unwrap_or_else(|code| panic!("{}: {code:?}", query.filter));
    entries.iter().map(|entry| dn(&entry.dn).rdn().unwrap().to_string()).collect()
}

async fn values(directory: &dyn WritableDirectory, name: &str, attribute: &str) -> Vec<String> {
    let entries = found(directory, &query(name, Scope::Base, "(objectClass=*)", &[attribute])).await.unwrap();
    let mut values: Vec<String> =
        entries[0].values(attribute).iter().map(|value| String::from_utf8(value.clone()).unwrap()).collect();
    values.sort();
    values
}

async fn filters_find(directory: &dyn WritableDirectory) {
    let cases: &[(&str, &[&str])] = &[
        ("(uid=alice)", &["uid=alice"]),
        ("(UID=ALICE)", &["uid=alice"]),
        ("(userid=alice)", &["uid=alice"]),
        ("(cn=alice  example)", &["uid=alice"]),
        ("(cn=Böb)", &["uid=bob"]),
        ("(cn=BÖB)", &["uid=bob"]),
        ("(cn=b\\c3\\b6b)", &["uid=bob"]),
        ("(homeDirectory=/home/alice)", &["uid=alice"]),
        ("(homeDirectory=/HOME/alice)", &[]),
        ("(mail=robert@*)", &["uid=bob"]),
        ("(mail=*O*t@EXAMPLE*)", &["uid=bob"]),
        ("(mail=*@example.org)", &["uid=alice", "uid=bob"]),
        ("(mail=a*alice*)", &[]),
        ("(sshPublicKey=*)", &["uid=alice"]),
        ("(uidNumber>=100002)", &["uid=bob"]),
        ("(&(uidNumber>=51002)(uidNumber<=100001))", &["uid=alice", "uid=tools.two"]),
        ("(uidNumber=x)", &[]),
        ("(!(uidNumber=x))", &[]),
        ("(cn>=a)", &[]),
        ("(&(objectClass=posixAccount)(!(mail=*)))", &["uid=tools.one", "uid=tools.two"]),
        ("(|(uid=alice)(cn=tools.two))", &["uid=alice", "cn=tools.two", "uid=tools.two"]),
        ("(&(uid=alice)(|))", &[]),
        ("(&(uid=alice)(&))", &["uid=alice"]),
        ("(member=UID=Bob, OU=people,dc=wikimedia,dc=org)", &["cn=tools.one"]),
        ("(member=*bob*)", &[]),
        ("(memberOf=cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org)", &["uid=alice", "uid=bob"]),
        ("(memberOf=*)", &["uid=alice", "uid=bob", "uid=tools.one"]),
        ("(pwdPolicySubentry=cn=disabled,ou=ppolicies,dc=wikimedia,dc=org)", &["uid=tools.two"]),
        ("(pwdAccountLockedTime<=20261001120000Z)", &["uid=tools.two"]),
        ("(pwdAccountLockedTime>=20261001120001Z)", &[]),
        ("(cn=a \\28b\\29, c\\2a)", &["cn=a (b)\\, c*"]),
        ("(cn=*\\2a)", &["cn=a (b)\\, c*"]),
        ("(sudoUser=%tools.one)", &["cn=a (b)\\, c*"]),
        ("(cn:caseExactMatch:=Alice Example)", &["uid=alice"]),
        ("(cn:caseExactMatch:=alice example)", &[]),
        ("(objectClass=organizationalPerson)", &["uid=alice", "uid=bob", "uid=novaadmin"]),
        (
            "(objectClass=PERSON)",
            &["uid=alice", "uid=bob", "uid=novaadmin", "uid=tools.one", "uid=tools.two"],
        ),
    ];
    for (text, wanted) in cases {
        let mut wanted: Vec<&str> = wanted.to_vec();
        wanted.sort_unstable();
        let mut found = names(directory, &query("dc=wikimedia,dc=org", Scope::Sub, text, &["1.1"])).await;
        found.sort();
        assert_eq!(found, wanted, "{text}");
    }
    let nested = query("dc=wikimedia,dc=org", Scope::Sub, "(ou:dn:=servicegroups)", &["1.1"]);
    assert_eq!(names(directory, &nested).await.len(), 6);
}

async fn scopes_and_limits(directory: &dyn WritableDirectory) {
    let groups = |scope| query("ou=servicegroups,dc=wikimedia,dc=org", scope, "(objectClass=*)", &["1.1"]);
    assert_eq!(names(directory, &groups(Scope::Base)).await, ["ou=servicegroups"]);
    assert_eq!(names(directory, &groups(Scope::One)).await, ["cn=tools.one", "cn=tools.two", "ou=people"]);
    assert_eq!(
        names(directory, &groups(Scope::Sub)).await,
        ["cn=tools.one", "cn=tools.two", "ou=people", "ou=servicegroups", "uid=tools.one", "uid=tools.two"]
    );
    // The page size divides the answer, does not, or is larger; a limit of exactly the answer is no excess.
    for page_size in [None, Some(1), Some(2), Some(3), Some(6), Some(100)] {
        for size_limit in [None, Some(6), Some(7), Some(1000)] {
            let query = Query { size_limit, page_size, ..groups(Scope::Sub) };
            assert_eq!(
                found(directory, &query).await.map(|entries| entries.len()),
                Ok(6),
                "{page_size:?} {size_limit:?}"
            );
        }
        for size_limit in [Some(5), Some(1), Some(0)] {
            let query = Query { size_limit, page_size, ..groups(Scope::Sub) };
            let refused = found(directory, &query).await.map(|entries| entries.len());
            assert_eq!(refused, Err(Some(code::SIZE_LIMIT_EXCEEDED)), "{page_size:?} {size_limit:?}");
        }
    }
    let missing = query("ou=x,ou=servicegroups,dc=wikimedia,dc=org", Scope::Sub, "(cn=*)", &[]);
    let refusal = directory.search(&missing, &mut |_| Ok(())).await.unwrap_err();
    assert_eq!(refusal.code, Some(code::NO_SUCH_OBJECT));
    assert!(
        refusal.failure.message.contains("`ou=x,ou=servicegroups,dc=wikimedia,dc=org`"),
        "{}",
        refusal.failure
    );
    assert_eq!(
        refusal.failure.help.as_deref(),
        Some("the nearest entry that exists is `ou=servicegroups,dc=wikimedia,dc=org`")
    );
}

async fn attributes_come_as_asked(directory: &dyn WritableDirectory) {
    let two = "uid=tools.two,ou=people,ou=servicegroups,dc=wikimedia,dc=org";
    let ask = async |name: &str, attributes: &[&str]| {
        let entries =
            found(directory, &query(name, Scope::Base, "(objectClass=*)", attributes)).await.unwrap();
        let mut names: Vec<String> = entries[0].attributes.iter().map(|a| a.name.to_lowercase()).collect();
        names.sort();
        names
    };
    assert_eq!(ask(two, &["uid", "CN", "nosuch"]).await, ["cn", "uid"]);
    assert_eq!(ask(two, &["1.1"]).await, Vec::<String>::new());
    let user = ["cn", "gidnumber", "homedirectory", "loginshell", "objectclass", "sn", "uid", "uidnumber"];
    assert_eq!(ask(two, &["*"]).await, user);
    assert_eq!(
        ask(two, &["pwdAccountLockedTime", "pwdPolicySubentry"]).await,
        ["pwdaccountlockedtime", "pwdpolicysubentry"]
    );
    assert_eq!(
        ask(ALICE, &["memberOf", "entryUUID", "modifyTimestamp", "entryCSN"]).await,
        ["entrycsn", "entryuuid", "memberof", "modifytimestamp"]
    );
    assert_eq!(
        values(directory, ALICE, "memberOf").await,
        [
            "cn=tools,ou=projects,dc=wikimedia,dc=org",
            "cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org",
            "cn=tools.two,ou=servicegroups,dc=wikimedia,dc=org",
        ]
    );
    assert_eq!(values(directory, two, "pwdAccountLockedTime").await, ["20261001120000Z"]);
}

async fn refused_writes(directory: &dyn WritableDirectory) {
    let add = |name: &str, values: &[&str]| vec![Edit::Add(attribute(name, values))];
    let delete = |name: &str, values: &[&str]| vec![Edit::Delete(attribute(name, values))];
    let swap = |name: &str, old: &str, new: &str| {
        vec![Edit::Delete(attribute(name, &[old])), Edit::Add(attribute(name, &[new]))]
    };
    let member = |uid: &str| format!("uid={uid},ou=people,dc=wikimedia,dc=org");
    let edits: Vec<(&str, Vec<Edit>, u32)> = vec![
        (ALICE, delete("mail", &["nobody@example.org"]), code::NO_SUCH_ATTRIBUTE),
        (ALICE, delete("description", &["x"]), code::NO_SUCH_ATTRIBUTE),
        (ALICE, add("mail", &["ALICE@example.org"]), code::VALUE_EXISTS),
        (ALICE, add("loginShell", &["/bin/sh"]), code::CONSTRAINT_VIOLATION),
        (ALICE, add("uidNumber", &["7"]), code::CONSTRAINT_VIOLATION),
        (ALICE, swap("uidNumber", "100001", "many"), code::INVALID_SYNTAX),
        (ALICE, swap("uidNumber", "100001", "100002"), code::CONSTRAINT_VIOLATION),
        (ALICE, swap("cn", "Alice Example", "tools.two"), code::CONSTRAINT_VIOLATION),
        (ALICE, delete("sn", &["Example"]), code::OBJECT_CLASS_VIOLATION),
        (ALICE, delete("uidNumber", &["100001"]), code::OBJECT_CLASS_VIOLATION),
        (ALICE, swap("uid", "alice", "carol"), code::NAMING_VIOLATION),
        (ALICE, add("entryUUID", &["597ae2f6-16a6-1027-98f4-d28b5365dc14"]), code::CONSTRAINT_VIOLATION),
        (ONE, add("member", &["alice"]), code::INVALID_SYNTAX),
        (ONE, add("member", &["UID=Alice,ou=people, dc=wikimedia,dc=org"]), code::VALUE_EXISTS),
        (ONE, delete("member", &[&member("alice"), &member("bob")]), code::OBJECT_CLASS_VIOLATION),
        (ONE, swap("gidNumber", "51001", "51002"), code::CONSTRAINT_VIOLATION),
        ("uid=nobody,ou=people,dc=wikimedia,dc=org", add("mail", &["x@example.org"]), code::NO_SUCH_OBJECT),
        // All or nothing: the second part fails, so the first is not made.
        (
            ALICE,
            [add("description", &["new"]), delete("mail", &["nobody@example.org"])].concat(),
            code::NO_SUCH_ATTRIBUTE,
        ),
    ];
    for (name, edits, wanted) in &edits {
        let refusal = directory.modify(&dn(name), edits, None).await.expect_err(&format!("{edits:?}"));
        assert_eq!(refusal.code, Some(*wanted), "{name} {edits:?}: {}", refusal.failure);
    }
    assert_eq!(values(directory, ALICE, "description").await, Vec::<String>::new());

    let unit = |ou: &str| vec![attribute("objectClass", &["organizationalUnit"]), attribute("ou", &[ou])];
    let group = |gid: &str, member: &[&str]| {
        let mut attributes = vec![
            attribute("objectClass", &["groupOfNames", "posixGroup"]),
            attribute("cn", &["new"]),
            attribute("gidNumber", &[gid]),
        ];
        if !member.is_empty() {
            attributes.push(attribute("member", member));
        }
        attributes
    };
    let new_group = "cn=new,ou=servicegroups,dc=wikimedia,dc=org";
    for (name, attributes, wanted) in [
        ("ou=people,dc=wikimedia,dc=org", unit("people"), code::ENTRY_EXISTS),
        ("ou=x,ou=nowhere,dc=wikimedia,dc=org", unit("x"), code::NO_SUCH_OBJECT),
        ("ou=x,dc=wikimedia,dc=org", vec![attribute("ou", &["x"])], code::OBJECT_CLASS_VIOLATION),
        (new_group, group("51009", &[]), code::OBJECT_CLASS_VIOLATION),
        (new_group, group("51009", &["alice"]), code::INVALID_SYNTAX),
        (new_group, group("51009x", &[ALICE]), code::INVALID_SYNTAX),
        (new_group, group("51001", &[ALICE]), code::CONSTRAINT_VIOLATION),
    ] {
        let refusal = directory.add(&dn(name), &attributes).await.expect_err(&format!("{attributes:?}"));
        assert_eq!(refusal.code, Some(wanted), "{name} {attributes:?}: {}", refusal.failure);
    }
    for (name, wanted) in [
        ("ou=servicegroups,dc=wikimedia,dc=org", code::NOT_ON_NON_LEAF),
        ("cn=nothing,dc=wikimedia,dc=org", code::NO_SUCH_OBJECT),
    ] {
        assert_eq!(directory.delete(&dn(name), None).await.unwrap_err().code, Some(wanted), "{name}");
    }
}

async fn writes(directory: &dyn WritableDirectory) {
    let shell = [
        Edit::Delete(attribute("loginShell", &["/bin/bash"])),
        Edit::Add(attribute("loginShell", &["/bin/false"])),
    ];
    directory.modify(&dn(ALICE), &shell, None).await.unwrap();
    assert_eq!(values(directory, ALICE, "loginShell").await, ["/bin/false"]);

    // A value that differs in case alone can be set.
    let case =
        [Edit::Delete(attribute("cn", &["Alice Example"])), Edit::Add(attribute("cn", &["alice example"]))];
    directory.modify(&dn(ALICE), &case, None).await.unwrap();
    assert_eq!(values(directory, ALICE, "cn").await, ["alice example"]);

    let lock = [
        Edit::Add(attribute("pwdAccountLockedTime", &["20261122101530Z"])),
        Edit::Add(attribute("pwdPolicySubentry", &["cn=disabled,ou=ppolicies,dc=wikimedia,dc=org"])),
    ];
    directory.modify(&dn(ONE_USER), &lock, None).await.unwrap();
    assert_eq!(values(directory, ONE_USER, "pwdAccountLockedTime").await, ["20261122101530Z"]);

    // The tools are members of each other; memberOf follows the groups.
    let group = "cn=quoted \\\"x\\\"\\+y,ou=servicegroups,dc=wikimedia,dc=org";
    let attributes = [
        attribute("objectClass", &["groupOfNames", "posixGroup"]),
        attribute("cn", &["quoted \"x\"+y"]),
        attribute("gidNumber", &["51003"]),
        attribute("member", &[ONE_USER]),
    ];
    directory.add(&dn(group), &attributes).await.unwrap();
    let mut groups: Vec<Dn> =
        values(directory, ONE_USER, "memberOf").await.iter().map(|name| dn(name)).collect();
    groups.sort_by_key(Dn::key);
    assert_eq!(groups, [dn(group), dn("cn=tools.two,ou=servicegroups,dc=wikimedia,dc=org")]);
    directory.delete(&dn(group), None).await.unwrap();
    assert_eq!(values(directory, ONE_USER, "memberOf").await.len(), 1);
    assert_eq!(directory.delete(&dn(group), None).await.unwrap_err().code, Some(code::NO_SUCH_OBJECT));

    // What the name says is added to the entry.
    let unit = dn("ou=x,dc=wikimedia,dc=org");
    directory
        .add(&unit, &[attribute("objectClass", &["organizationalUnit"]), attribute("ou", &["y"])])
        .await
        .unwrap();
    assert_eq!(values(directory, "ou=x,dc=wikimedia,dc=org", "ou").await, ["x", "y"]);
    directory.delete(&unit, None).await.unwrap();

    // An account comes back locked, and with values that are not ASCII.
    let locked = "uid=tools.three,ou=people,ou=servicegroups,dc=wikimedia,dc=org";
    let attributes = [
        attribute("objectClass", &["person", "posixAccount"]),
        attribute("uid", &["tools.three"]),
        attribute("cn", &["tools.three"]),
        attribute("sn", &["Drei äöü 三"]),
        attribute("uidNumber", &["51004"]),
        attribute("gidNumber", &["51004"]),
        attribute("homeDirectory", &["/data/project/three"]),
        attribute("pwdAccountLockedTime", &["000001010000Z"]),
        attribute("pwdPolicySubentry", &["cn=disabled,ou=ppolicies,dc=wikimedia,dc=org"]),
    ];
    directory.add(&dn(locked), &attributes).await.unwrap();
    assert_eq!(values(directory, locked, "pwdAccountLockedTime").await, ["000001010000Z"]);
    assert_eq!(values(directory, locked, "sn").await, ["Drei äöü 三"]);
}

async fn assertions(directory: &dyn WritableDirectory) {
    let one = dn(ONE_USER);
    let version =
        || async { Filter::equal("entryCSN", values(directory, ONE_USER, "entryCSN").await.remove(0)) };
    let seen = version().await;
    let set = |old: &str, new: &str| {
        [Edit::Delete(attribute("loginShell", &[old])), Edit::Add(attribute("loginShell", &[new]))]
    };
    directory.modify(&one, &set("/bin/bash", "/bin/sh"), Some(&seen)).await.unwrap();
    for result in [
        directory.modify(&one, &set("/bin/sh", "/bin/bash"), Some(&seen)).await,
        directory.delete(&one, Some(&seen)).await,
        directory.modify(&one, &set("/bin/sh", "/bin/bash"), Some(&filter("(mail=*)"))).await,
    ] {
        assert_eq!(result.unwrap_err().code, Some(code::ASSERTION_FAILED));
    }
    assert_eq!(values(directory, ONE_USER, "loginShell").await, ["/bin/sh"]);
    directory.delete(&one, Some(&version().await)).await.unwrap();
    assert_eq!(found(directory, &Query::entry(&one, vec![])).await, Err(Some(code::NO_SUCH_OBJECT)));

    // What a group's members are told follows writes that are tied to what was read, and only those that happen.
    let group = dn("cn=tied,ou=servicegroups,dc=wikimedia,dc=org");
    let attributes = [
        attribute("objectClass", &["groupOfNames"]),
        attribute("cn", &["tied"]),
        attribute("member", &[ALICE]),
    ];
    directory.add(&group, &attributes).await.unwrap();
    let is_told = async |person: &str| {
        values(directory, person, "memberOf").await.iter().any(|name| name.starts_with("cn=tied,"))
    };
    let read = async || {
        let entry = fetch(directory, &group, vec![VERSION.to_owned()]).await.unwrap().unwrap();
        unchanged(directory, &entry, &group).unwrap()
    };
    let before = read().await;
    let members = [Edit::Add(attribute("member", &[BOB])), Edit::Delete(attribute("member", &[ALICE]))];
    directory.modify(&group, &members, Some(&before)).await.unwrap();
    assert!(is_told(BOB).await && !is_told(ALICE).await);
    let again = [Edit::Add(attribute("member", &[ALICE]))];
    for result in
        [directory.modify(&group, &again, Some(&before)).await, directory.delete(&group, Some(&before)).await]
    {
        assert_eq!(result.unwrap_err().code, Some(code::ASSERTION_FAILED));
    }
    assert!(is_told(BOB).await && !is_told(ALICE).await);
    directory.delete(&group, Some(&read().await)).await.unwrap();
    assert!(!is_told(BOB).await);
}
