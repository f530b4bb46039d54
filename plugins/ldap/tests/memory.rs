//! What a large answer costs. A test program of its own, since the memory of a process is measured.

#![expect(clippy::unwrap_used, reason = "a test program, helpers included")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use farrier_action::{ActionRegistry, Binding, NodeInfo, ReadCx, Targets};
use farrier_model::{NodeName, RunId, Scope, Value};
use farrier_testkit::slapd::{Options, Slapd};

const ENTRIES: usize = 35_000;
const BYTES: usize = 25_000_000;

/// Memory of this process that is in use, in bytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
}

fn people() -> String {
    let mut ldif = String::new();
    for number in 0..ENTRIES {
        let _ = write!(
            ldif,
            "dn: uid=user{number},ou=people,dc=wikimedia,dc=org\nobjectClass: inetOrgPerson\nobjectClass: posixAccount\n\
             uid: user{number}\ncn: User {number}\nsn: User {number}\nuidNumber: {}\ngidNumber: 500\n\
             homeDirectory: /home/user{number}\nloginShell: /bin/bash\n\n",
            100_000 + number
        );
    }
    for group in 0..20 {
        let _ = write!(
            ldif,
            "dn: cn=group{group},ou=groups,dc=wikimedia,dc=org\nobjectClass: groupOfNames\ncn: group{group}\n"
        );
        for number in 0..2_000 {
            let _ = writeln!(ldif, "member: uid=user{number},ou=people,dc=wikimedia,dc=org");
        }
        ldif.push('\n');
    }
    ldif
}

async fn search(targets: &Arc<Targets>, input: &str) -> Value {
    let mut registry = ActionRegistry::default();
    farrier_plugin_ldap::register(&mut registry).unwrap();
    let node = NodeInfo {
        run: RunId::at(0, [7; 10]),
        node: NodeName::step("search"),
        attempt: 1,
        effect_id: "effect".into(),
    };
    let cx = ReadCx::new(targets.clone(), Scope::default(), node);
    let action = registry.bind("ldap.search", &Value::from_json(input).unwrap()).unwrap();
    action.plan(&cx).await.unwrap().output.unwrap().get("entries").unwrap().clone()
}

#[tokio::test]
async fn a_large_answer_is_small_in_memory() {
    let entries = people();
    let directory = Slapd::start(Options { entries, ..Options::default() });
    let address = directory.url().trim_start_matches("ldap://").to_owned();
    farrier_testkit::wait_until("the server listens", || std::net::TcpStream::connect(&address).is_ok());
    let config = Value::map([("url", Value::text(directory.url()))]);
    let binding = Binding { alias: "directory".into(), kind: "ldap".into(), config };
    let targets = Arc::new(Targets::new("/".into(), vec![binding], BTreeMap::new()));
    // Connections, page buffers and the like are there before.
    let warm = r#"{"target": "directory", "base": "ou=people,dc=wikimedia,dc=org", "filter": "(uid=user1*)",
        "attributes": {"uid": "string"}}"#;
    search(&targets, warm).await;

    let before = resident();
    let found = search(
        &targets,
        r#"{"target": "directory", "base": "ou=people,dc=wikimedia,dc=org", "filter": "(uid=user*)",
            "attributes": {"uid": "string", "uidNumber": "int", "homeDirectory": "string", "loginShell": "string"}}"#,
    )
    .await;
    let grown = resident().saturating_sub(before);
    assert_eq!(found.as_list().map(<[Value]>::len), Some(ENTRIES));
    println!("{ENTRIES} entries: {} kB, {} bytes each", grown / 1000, grown / ENTRIES);
    assert!(grown <= BYTES, "{grown} bytes");

    let before = resident();
    let groups = search(
        &targets,
        r#"{"target": "directory", "base": "ou=groups,dc=wikimedia,dc=org", "filter": "(objectClass=groupOfNames)",
            "attributes": {"cn": "string", "member": "list of dn"}}"#,
    )
    .await;
    let grown = resident().saturating_sub(before);
    let members: usize = groups
        .as_list()
        .unwrap()
        .iter()
        .map(|group| group.get("member").unwrap().as_list().unwrap().len())
        .sum();
    assert_eq!(members, 40_000);
    println!("{members} members: {} kB, {} bytes each", grown / 1000, grown / members);
    assert!(grown <= BYTES, "{grown} bytes");
}
