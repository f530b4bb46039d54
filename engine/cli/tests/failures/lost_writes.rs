//! A connection to a directory that ends at a write: before the request has arrived, or after it was carried out and before
//! the answer is through. The step is in doubt, the directory is asked what it holds, and each write has happened once
//! in the end. Undo is held to the same.

use std::collections::BTreeSet;

use farrier_testkit::proxy::{CutProxy, Direction};
use farrier_testkit::slapd::{Options, Slapd};
use farrier_testkit::wait_until;
use serde_json::json;

use crate::common::{Project, Started};

/// Where the connection ends.
#[derive(Debug, Clone, Copy)]
enum Fault {
    RequestLost,
    AnswerLost,
}

/// A step, and how its requests are told from those that read.
struct Write {
    action: &'static str,
    with: &'static str,
    /// Stands in the request of the step, and in none before it.
    done: Request,
    /// Stands in the request of its undo, and in none between the two.
    undone: Request,
}

/// How a request is known on the wire, and what the server calls it.
struct Request {
    text: &'static str,
    logged: &'static str,
}

/// The condition under which an entry is changed names this attribute; nothing that reads does.
const CONDITION: &str = "entryDN";

const WRITES: [Write; 4] = [
    Write {
        action: "ldap.add",
        with: "base: 'ou=servicegroups,dc=wikimedia,dc=org', rdn: [cn, tools.new], attributes: { objectClass: [groupOfNames, \
               posixGroup], gidNumber: 51009, description: a new one, member: 'uid=alice,ou=people,dc=wikimedia,dc=org' }",
        done: Request {
            text: "a new one",
            logged: "ADD dn=\"cn=tools.new,ou=servicegroups,dc=wikimedia,dc=org\"",
        },
        undone: Request {
            text: CONDITION,
            logged: "DEL dn=\"cn=tools.new,ou=servicegroups,dc=wikimedia,dc=org\"",
        },
    },
    Write {
        action: "ldap.modify",
        with: "base: 'uid=alice,ou=people,dc=wikimedia,dc=org', set: { description: after }, if_is: { description: before }",
        done: Request { text: CONDITION, logged: "MOD dn=\"uid=alice,ou=people,dc=wikimedia,dc=org\"" },
        undone: Request { text: CONDITION, logged: "MOD dn=\"uid=alice,ou=people,dc=wikimedia,dc=org\"" },
    },
    Write {
        action: "ldap.delete",
        with: "entries: [{ base: 'uid=carol,ou=people,dc=wikimedia,dc=org', if_is: { sn: Carol } }]",
        done: Request { text: CONDITION, logged: "DEL dn=\"uid=carol,ou=people,dc=wikimedia,dc=org\"" },
        undone: Request {
            text: "will be back",
            logged: "ADD dn=\"uid=carol,ou=people,dc=wikimedia,dc=org\"",
        },
    },
    Write {
        action: "ldap.members",
        with: "group: { base: 'cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org' }, add: ['uid=bob,ou=people,dc=wikimedia,dc=org']",
        done: Request {
            text: CONDITION,
            logged: "MOD dn=\"cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org\"",
        },
        undone: Request {
            text: CONDITION,
            logged: "MOD dn=\"cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org\"",
        },
    },
];

const ENTRIES: &str = "dn: uid=alice,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: alice
cn: Alice
sn: Alice
description: before

dn: uid=bob,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: bob
cn: Bob
sn: Bob

dn: uid=carol,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
uid: carol
cn: Carol
sn: Carol
description: will be back

dn: cn=tools.one,ou=servicegroups,dc=wikimedia,dc=org
objectClass: groupOfNames
objectClass: posixGroup
cn: tools.one
gidNumber: 51001
member: uid=alice,ou=people,dc=wikimedia,dc=org
";

/// The step, then one that waits until the test has seen it, and fails.
fn runbook(write: &Write, project: &Project) -> String {
    let (reached, go) = (project.path("reached"), project.path("go"));
    let wait =
        format!("touch {}; until [ -e {} ]; do sleep 0.02; done; exit 1", reached.display(), go.display());
    format!(
        "runbook: writes\nsummary: Writes\nowner: tests\nrisk: destructive\ntargets: {{ directory: ldap, here: host }}\n\
         steps:\n  write:\n    uses: {}\n    needs: []\n    undo: restore\n    with: {{ target: directory, {} }}\n  fails:\n    \
         uses: host.run\n    needs: [write]\n    undo: none\n    on_failure: undo\n    with: {{ target: here, argv: [sh, -c, '{wait}'] }}\n",
        write.action, write.with
    )
}

impl Fault {
    /// What the journal says of the step.
    fn tells(self) -> &'static [&'static str] {
        match self {
            Fault::RequestLost => &[
                "intent",
                "in_doubt",
                "intent",
                "succeeded",
                "undo_intent",
                "undo_failed",
                "undo_intent",
                "undo_done",
            ],
            // What it found was as it should be.
            Fault::AnswerLost => {
                &["intent", "in_doubt", "succeeded", "undo_intent", "undo_failed", "undo_intent", "undo_done"]
            }
        }
    }

    fn strikes(self, proxy: &CutProxy, request: &Request) {
        match self {
            Fault::RequestLost => proxy.cut_before(Direction::ToServer, request.text),
            Fault::AnswerLost => proxy.lose_answer_to(request.text),
        }
    }
}

/// The entries, in which neither they nor their values have an order.
fn world(server: &Slapd) -> BTreeSet<Vec<String>> {
    let entry = |text: &str| {
        let mut lines: Vec<String> = text.lines().map(ToOwned::to_owned).collect();
        lines.sort_unstable();
        lines
    };
    server.search("(objectClass=*)", &["*"]).split("\n\n").map(entry).collect()
}

/// The kinds of event in a run's journal that tell of its step.
fn told(project: &Project) -> Vec<String> {
    let entries = project.farrier(&["logs", &project.last_run(), "-o", "json"]).expect(0).json();
    let entries = entries.as_array().unwrap().iter();
    let of_step = entries.filter_map(|entry| {
        let node = &entry["event"]["node"];
        let kind = match &node["event"] {
            serde_json::Value::String(kind) => kind,
            event => event.as_object()?.keys().next()?,
        };
        (node["node"] == "write").then(|| kind.clone())
    });
    of_step.collect()
}

fn happens_once(fault: Fault) {
    let server = Slapd::start(Options { entries: ENTRIES.to_owned(), ..Options::default() });
    let proxy = CutProxy::to_url(&server.url());
    let before = world(&server);
    for write in &WRITES {
        let when = format!("{fault:?}, {}", write.action);
        let project = Project::new();
        project.write("runbooks/writes.yaml", &runbook(write, &project));
        let account =
            |dn: &str, password: &str| json!({ "dn": dn, "password": project.secret(dn, password) });
        project.environment(&json!({
            "directory": {
                "kind": "ldap", "url": proxy.url(),
                "read_as": account(&server.reader_dn, &server.reader_password),
                "write_as": account(&server.writer_dn, &server.writer_password),
            },
            "here": { "kind": "host", "local": true },
        }));
        let (mark, cuts) = (server.mark(), proxy.cuts());
        fault.strikes(&proxy, &write.done);
        let mut run = Started::from(project.command(&["run", "writes", "--env", "test", "--yes"]));
        wait_until("the step has succeeded, or the run is over", || {
            project.path("reached").exists() || run.child.try_wait().unwrap().is_some()
        });
        assert!(project.path("reached").exists(), "{when}: {}", run.end());
        assert_eq!(proxy.cuts(), cuts + 1, "{when}");
        assert_eq!(server.writes_since(mark), [write.done.logged], "{when}: once at the server");
        assert_ne!(world(&server), before, "{when}: it is there");

        // The step after it fails: what it did is taken back, and that is cut too.
        fault.strikes(&proxy, &write.undone);
        project.write("go", "");
        let parked = run.end().expect(12);
        assert_eq!(proxy.cuts(), cuts + 2, "{when}: {parked}");
        project.farrier(&["resume", &project.last_run(), "--yes"]).expect(11);
        assert_eq!(server.writes_since(mark), [write.done.logged, write.undone.logged], "{when}: once each");
        assert_eq!(world(&server), before, "{when}: it is gone");
        assert_eq!(told(&project), fault.tells(), "{when}");
    }
}

#[test]
fn a_write_that_does_not_arrive_happens_once() {
    happens_once(Fault::RequestLost);
}

#[test]
fn a_write_whose_answer_is_lost_happens_once() {
    happens_once(Fault::AnswerLost);
}
