//! A whole Toolforge, nasty details included: files and a server answer the searches of real runbooks alike.

use farrier_action::{ActionRegistry, NodeInfo, ReadCx};
use farrier_model::{NodeName, RunId, Scope, Value};
use farrier_testkit::slapd::Options;
use farrier_toolforge::World;

use super::{Place, json, registry};

const TOOLS: usize = 60;

const SEARCHES: [&str; 6] = [
    r#"{"target": "directory", "base": "ou=people,ou=servicegroups,dc=wikimedia,dc=org",
        "filter": "(&(objectClass=posixAccount)(cn=$project.*))", "params": {"project": "tools"},
        "attributes": {"cn": "string", "uidNumber": "int", "homeDirectory": "string"}}"#,
    r#"{"target": "directory", "base": "ou=servicegroups,dc=wikimedia,dc=org", "scope": "one",
        "filter": "(&(objectClass=posixGroup)(cn=$project.*))", "params": {"project": "tools"},
        "attributes": {"cn": "string", "gidNumber": "int", "member": "list of dn"}}"#,
    r#"{"target": "directory", "base": "ou=people,dc=wikimedia,dc=org",
        "filter": "(&(objectClass=posixAccount)(uid=*))",
        "attributes": {"uid": "string", "cn": "list of string", "mail": "optional list of string", "uidNumber": "int",
                       "memberOf": "list of dn", "sshPublicKey": "list of string"}}"#,
    r#"{"target": "directory", "base": "dc=wikimedia,dc=org",
        "filter": "(|(pwdAccountLockedTime=*)(pwdPolicySubentry=cn=disabled,ou=ppolicies,dc=wikimedia,dc=org))",
        "attributes": {"uid": "string", "pwdAccountLockedTime": "optional generalized_time", "pwdPolicySubentry": "optional dn"}}"#,
    r#"{"target": "directory", "base": "dc=wikimedia,dc=org", "filter": "(objectClass=sudoRole)",
        "attributes": {"cn": "string", "sudoUser": "list of string"}}"#,
    r#"{"target": "directory", "base": "dc=wikimedia,dc=org", "filter": "(!(uidNumber<=50010))", "page_size": 7,
        "attributes": {"objectClass": "list of string"}}"#,
];

async fn answer(registry: &ActionRegistry, place: &Place, input: &str) -> Vec<Value> {
    let node =
        NodeInfo { run: RunId::at(0, [7; 10]), node: NodeName::step("s"), attempt: 1, effect_id: "e".into() };
    let cx = ReadCx::new(place.targets(), Scope::default(), node);
    let plan = registry.bind("ldap.search", &json(input)).unwrap().plan(&cx).await;
    let output = plan.unwrap_or_else(|failure| panic!("{input}: {failure}")).output.unwrap();
    let sorted = |value: &Value| match value.as_list() {
        // Values have no order.
        Some(items) => {
            let mut items = items.to_vec();
            items.sort_by_key(Value::to_json);
            Value::list(items)
        }
        None => value.clone(),
    };
    let mut rows: Vec<Value> = output
        .get("entries")
        .unwrap()
        .as_list()
        .unwrap()
        .iter()
        .map(|row| Value::map(row.as_map().unwrap().iter().map(|(key, value)| (key.clone(), sorted(value)))))
        .collect();
    rows.sort_by_key(Value::to_json);
    rows
}

#[tokio::test(flavor = "multi_thread")]
async fn files_and_a_server_answer_alike() {
    let world = World::generate(TOOLS, 7);
    let files = Place::files_with(&world.ldif_to_add());
    let server = Place::server_with(Options { entries: world.ldif_to_add(), ..Options::default() });
    let registry = registry();
    for input in SEARCHES {
        let (from_files, from_server) =
            (answer(&registry, &files, input).await, answer(&registry, &server, input).await);
        assert!(!from_files.is_empty(), "nothing was found: {input}");
        for (one, other) in from_files.iter().zip(&from_server) {
            assert_eq!(one, other, "{input}");
        }
        assert_eq!(from_files.len(), from_server.len(), "{input}");
    }
}
