//! Where the targets of the steps are: servers that refuse, cut, garble and never answer, and a program.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::{fs, thread};

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::CANARY;
use crate::common::Project;

/// How a server treats whoever comes.
#[derive(Debug, Clone, Copy)]
pub(super) enum Manner {
    Refuses,
    HangsUp,
    Garbles,
    Cuts,
    /// What it was sent, with all headers, stands in the text of its error, as some servers for development do it.
    Echoes,
    NeverAnswers,
}

/// The port of such a server; it lives as long as the test.
pub(super) fn server(manner: Manner) -> u16 {
    if matches!(manner, Manner::Refuses) {
        return farrier_testkit::free_port();
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let treat = move |mut stream: TcpStream| match manner {
        Manner::HangsUp | Manner::Refuses => {}
        Manner::Garbles => drop(stream.write_all(b"\x16\x03 nothing that anyone speaks\r\n\r\n\0\0\0")),
        Manner::Cuts => {
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4000\r\n\r\nhalf of it");
        }
        Manner::Echoes => {
            let mut request = vec![0; 65_536];
            let length = stream.read(&mut request).unwrap_or(0);
            let head =
                format!("HTTP/1.1 500 Oops\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
            let _ = stream.write_all(&[head.as_bytes(), &request[..length]].concat());
        }
        Manner::NeverAnswers => while stream.read(&mut [0; 4096]).is_ok_and(|count| count > 0) {},
    };
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || treat(stream));
        }
    });
    port
}

/// The ports of the servers, by kind. Where two ports are named for a kind, half of its targets go to the second.
#[derive(Debug, Clone)]
pub(super) struct Places {
    pub(super) directory: String,
    /// Who reads there; nobody where it is empty.
    pub(super) reader: String,
    /// Where it is written, when elsewhere.
    pub(super) directory_to_write: Option<String>,
    pub(super) maria: u16,
    pub(super) postgres: u16,
    pub(super) web: u16,
    pub(super) mail: u16,
    /// What the program does: `tells`, `dies`, or `plans` and tells when it is to write.
    pub(super) program: &'static str,
}

impl Places {
    /// All of them at one server.
    pub(super) fn at(port: u16, program: &'static str) -> Places {
        Places {
            directory: format!("ldap://127.0.0.1:{port}"),
            reader: "cn=reader,dc=wikimedia,dc=org".into(),
            directory_to_write: None,
            maria: port,
            postgres: port,
            web: port,
            mail: port,
            program,
        }
    }

    /// The settings of a target, in which the secret stands wherever one can.
    pub(super) fn of(&self, project: &Project, kind: &str, alias: &str, secret: &Value) -> Value {
        let networks = json!(["127.0.0.0/8"]);
        let (bearer, basic) =
            (json!({ "bearer": secret }), json!({ "basic": { "user": "farrier", "password": secret } }));
        let reads = self.program != "plans";
        match kind {
            "ldap" => {
                let account = |dn: &str| json!({ "dn": dn, "password": secret });
                let mut target = json!({ "url": self.directory });
                if !self.reader.is_empty() {
                    target["read_as"] = account(&self.reader);
                }
                if let Some(url) = &self.directory_to_write {
                    target["write_as"] = account("cn=writer,dc=wikimedia,dc=org");
                    target["write_as"]["url"] = json!(url);
                }
                target
            }
            // Of those who write, one real server is enough.
            "sql" if alias == "catalogue" && reads => json!({
                "url": format!("postgres://farrier@127.0.0.1:{}/a", self.postgres), "password": secret,
            }),
            "sql" => json!({
                "url": format!("mysql://keeper@127.0.0.1:{}/a", self.maria), "password": secret,
                "passwords": { "theirs": secret },
            }),
            "http" => {
                let scheme = if alias == "gateway" { "https" } else { "http" };
                let mut target = json!({
                    "url": format!("{scheme}://127.0.0.1:{}/", self.web), "networks": networks,
                    "idempotency_header": "Idempotency-Key", "write_as": basic,
                });
                if reads {
                    target["read_as"] = bearer;
                }
                target
            }
            "prometheus" => json!({
                "url": format!("http://127.0.0.1:{}/", self.web), "networks": networks, "read_as": basic,
            }),
            "alertmanager" => {
                let mut target = json!({
                    "url": format!("http://127.0.0.1:{}/", self.web), "networks": networks, "write_as": basic,
                });
                if reads {
                    target["read_as"] = bearer;
                }
                target
            }
            "k8s" => {
                let token = json!({ "token": secret });
                let mut target =
                    json!({ "url": format!("http://127.0.0.1:{}", self.web), "write_as": token });
                if reads {
                    target["read_as"] = token;
                }
                target
            }
            "mail" => json!({
                "url": format!("smtp://127.0.0.1:{}", self.mail), "from": "farrier@example.org",
                "people": { "toolforge-admins": ["admins@example.org"] },
                "login": { "user": "farrier", "password": secret },
            }),
            "external" => {
                let program = project.path("tells.py");
                json!({
                    "program": program, "sha256": hex::encode(Sha256::digest(fs::read(&program).unwrap())),
                    "settings": { "how": self.program }, "secrets": { "token": secret },
                })
            }
            "files" => {
                let home = project.path("homes");
                let roots = ["tool_homes", "staging"].map(|root| (root.to_owned(), json!(home.join(root))));
                json!({ "roots": Value::Object(roots.into_iter().collect()) })
            }
            other => panic!(
                "no place for targets of kind `{other}`, which can hold a secret: say here where it is"
            ),
        }
    }
}

/// A program that asks for its secret, and says it in all its forms wherever it can.
const PROGRAM: &str = r#"#!/usr/bin/env python3
import base64, json, sys, urllib.parse

request = json.loads(sys.stdin.readline())
how = request["settings"]["how"]
if how == "plans" and request["ask"] == "plan":
    change = {"object": "it", "kind": "create", "before": None, "after": {"on": True}}
    print(json.dumps({"planned": {"changes": [change], "fidelity": "computed", "considered": 1}}), flush=True)
    sys.exit()
print(json.dumps({"secret": "token"}), flush=True)
secret = json.loads(sys.stdin.readline())["value"]
coded = base64.b64encode(secret.encode()).decode()
forms = " ".join([secret, coded, secret.encode().hex(), urllib.parse.quote(secret, safe=""), json.dumps(secret)])
sys.stderr.write("x" * 90 + forms + "\n")
if how == "dies":
    print(forms)
    sys.exit(3)
print(json.dumps({"failed": {"kind": "refused", "message": "no " + forms, "help": forms}}), flush=True)
"#;

/// What the targets need on this machine: the program, and files of credentials, which hold the secret as well.
pub(super) fn furnish(project: &Project) {
    project.write("tells.py", PROGRAM);
    fs::set_permissions(project.path("tells.py"), fs::Permissions::from_mode(0o755)).unwrap();
    project.write("homes/staging/.keep", "");
    let credentials = "homes/tool_homes/example/replica.my.cnf";
    project.write(credentials, &format!("[client]\nuser = s52503\npassword = {CANARY}\n"));
    fs::set_permissions(project.path(credentials), fs::Permissions::from_mode(0o600)).unwrap();
}
