//! Many real servers, each at its own address on loopback and with its own host key.

use farrier_model::Value;
use farrier_testkit::sshd::{Options, Sshd};
use serde_json::json;

use crate::tests::World;

/// A target whose hosts are these servers.
fn world(servers: &[(String, Sshd)]) -> World {
    world_with(servers, &json!({}))
}

fn world_with(servers: &[(String, Sshd)], more: &serde_json::Value) -> World {
    let mut ssh = json!({
        "known_hosts": "known_hosts", "config": "ssh_config", "key_exchange": ["curve25519-sha256"],
        "idle_close": "5s",
    });
    ssh.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    World::new(&json!({ "ssh": ssh }).to_string(), |folder| {
        let known: String = servers.iter().map(|(name, server)| server.known_hosts(name)).collect();
        std::fs::write(folder.join("known_hosts"), known).unwrap();
        let hosts: String = servers.iter().map(|(name, server)| server.client_config(name)).collect();
        std::fs::write(folder.join("ssh_config"), hosts).unwrap();
    })
}

/// One is down, one was installed anew and shows another key; the others are not held up, and nobody logs in where the key is
/// another one.
#[tokio::test]
async fn twenty_servers_answer_each_for_itself() {
    let start = |number: u32| {
        let address = Some(format!("127.0.0.{}", number + 1));
        (format!("worker-{number}"), Sshd::start(Options { address, ..Options::default() }))
    };
    let mut servers: Vec<(String, Sshd)> = (1..=20).map(start).collect();
    let world = world(&servers);
    servers[6].1.stop();
    servers[12].1.change_host_key();
    let input = |must: &str| {
        json!({
            "target": "nodes", "select": "worker-[1-20]", "argv": ["echo", "same"], "read_only": true,
            "batch": 5, "must_succeed": must,
        })
    };
    let output = world.run("host.run", &input("90%")).await.unwrap();
    assert_eq!(
        output.get("stdout"),
        Some(&Value::text("== worker-[1-6,8-12,14-20] (18)\nsame\n")),
        "those that said the same are one group"
    );
    assert_eq!(output.get("failed"), Some(&Value::of(&["worker-7", "worker-13"]).unwrap()));
    let results: Vec<(String, String)> =
        output.get("results").unwrap().as_list().unwrap().iter().map(of).collect();
    let expected = (1..=20).map(|number| {
        let state = match number {
            7 => "unreachable",
            13 => "failed",
            _ => "succeeded",
        };
        (format!("worker-{number}"), state.to_owned())
    });
    assert_eq!(results, expected.collect::<Vec<_>>());
    for (at, (name, server)) in servers.iter().enumerate() {
        assert_eq!(server.logins(), usize::from(at != 6 && at != 12), "{name}");
    }
    let groups = output.get("groups").unwrap().as_list().unwrap();
    let reasons: Vec<String> = groups.iter().map(|group| group.get("reason").unwrap().to_string()).collect();
    assert!(reasons.iter().any(|reason| reason.contains("Connection refused")), "{reasons:?}");
    assert!(reasons.iter().any(|reason| reason.contains("another host key")), "{reasons:?}");

    let failure = world.run("host.run", &input("95%")).await.unwrap_err();
    assert!(failure.message.starts_with("2 of 20 hosts failed; worker-7: "), "{failure}");
}

/// The jump host has a name, a port and a key of its own, and is itself among the hosts.
#[tokio::test]
async fn hosts_are_reached_through_another_one() {
    let start = |name: &str| (name.to_owned(), Sshd::start(Options::default()));
    let mut servers = vec![start("bastion-1"), start("worker-1")];
    let jump = json!({ "jump": "bastion-1" });
    let client =
        |host: &str| json!({ "target": "nodes", "hosts": host, "read_only": true, "argv": ["true"] });
    let through = world_with(&servers, &jump);
    through.run("host.run", &client("worker-1")).await.unwrap();
    assert_eq!((servers[0].1.logins(), servers[1].1.logins()), (1, 1));
    through.run("host.run", &client("bastion-1")).await.unwrap();
    assert_eq!((servers[0].1.logins(), servers[1].1.logins()), (2, 1));

    // Another key of the one between, of which the old one is known: nobody logs in anywhere.
    let knows_the_old = world_with(&servers, &jump);
    servers[0].1.change_host_key();
    let failure = knows_the_old.run("host.run", &client("worker-1")).await.unwrap_err();
    assert!(!failure.in_doubt, "{failure:?}");
    assert_eq!((servers[0].1.logins(), servers[1].1.logins()), (2, 1), "{failure}");

    // Without it the host is reached all the same, so it was the jump that was refused.
    world(&servers).run("host.run", &client("worker-1")).await.unwrap();
    assert_eq!(servers[1].1.logins(), 2);
}

fn of(result: &Value) -> (String, String) {
    let field = |name: &str| result.get(name).unwrap().to_string();
    (field("host"), field("state"))
}
