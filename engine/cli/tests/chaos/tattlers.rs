//! Servers that speak far enough to be told a password, and then repeat it in the text of their refusal: as it is, in base64,
//! in an address, and as JSON has it.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use crate::secrets::CANARY;

/// One of them.
pub(crate) struct Tattler {
    pub(crate) port: u16,
    told: Arc<AtomicUsize>,
}

impl Tattler {
    fn new(speak: fn(&mut TcpStream) -> std::io::Result<bool>) -> Tattler {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let told = Arc::new(AtomicUsize::new(0));
        let count = told.clone();
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                let count = count.clone();
                thread::spawn(move || {
                    if speak(&mut stream).is_ok_and(|told| told) {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
        });
        Tattler { port, told }
    }

    /// How often it was told the password, and told it on.
    pub(crate) fn told(&self) -> usize {
        self.told.load(Ordering::Relaxed)
    }

    pub(crate) fn smtp() -> Tattler {
        Tattler::new(smtp)
    }

    pub(crate) fn postgres() -> Tattler {
        Tattler::new(postgres)
    }

    pub(crate) fn mysql() -> Tattler {
        Tattler::new(mysql)
    }

    pub(crate) fn ldap() -> Tattler {
        Tattler::new(ldap)
    }

    /// It answers with a stack of errors.
    pub(crate) fn web() -> Tattler {
        Tattler::new(|stream| http(stream, false, stack))
    }

    /// Its answer is long, and wherever it is cut, a password is.
    pub(crate) fn flooding_web() -> Tattler {
        Tattler::new(|stream| http(stream, false, flood))
    }

    /// It lets everybody read what it makes up, and nobody write.
    pub(crate) fn web_to_read() -> Tattler {
        Tattler::new(|stream| http(stream, true, stack))
    }
}

/// What such a server says of a password. Long enough before it that whoever shows the beginning alone cuts in the middle.
fn repeated(password: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let percent: String = password
        .bytes()
        .map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    let coded = STANDARD.encode(password);
    let pair = STANDARD.encode(format!("farrier:{password}"));
    let json = serde_json::to_string(password).unwrap().replace('/', "\\/");
    let json = json.replace('&', "\\u0026").replace('>', "\\u003e").replace('<', "\\u003c");
    format!("no {password} {coded} {pair} {percent} {json} {}{password}", "x".repeat(90))
}

fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = Vec::new();
    let mut byte = [0];
    while !line.ends_with(b"\n") {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim().to_owned())
}

fn smtp(stream: &mut TcpStream) -> std::io::Result<bool> {
    stream.write_all(b"220 here\r\n")?;
    line(stream)?;
    stream.write_all(b"250-here\r\n250 AUTH PLAIN\r\n")?;
    let told = line(stream)?;
    let word = told.rsplit(' ').next().unwrap_or_default().to_owned();
    let pair = STANDARD.decode(&word).unwrap_or_default();
    let password =
        String::from_utf8_lossy(pair.rsplit(|byte| *byte == 0).next().unwrap_or_default()).into_owned();
    stream.write_all(format!("535 {told} {}\r\n", repeated(&password)).as_bytes())?;
    Ok(password == CANARY)
}

fn postgres(stream: &mut TcpStream) -> std::io::Result<bool> {
    let mut length = [0; 4];
    loop {
        stream.read_exact(&mut length)?;
        let mut rest = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
        stream.read_exact(&mut rest)?;
        // A wish for a private connection; anything else is the greeting.
        if rest != 80_877_103_u32.to_be_bytes() {
            break;
        }
        stream.write_all(b"N")?;
    }
    // "The password, in clear".
    stream.write_all(&[b'R', 0, 0, 0, 8, 0, 0, 0, 3])?;
    let mut kind = [0];
    stream.read_exact(&mut kind)?;
    stream.read_exact(&mut length)?;
    let mut rest = vec![0; (u32::from_be_bytes(length) as usize).saturating_sub(4)];
    stream.read_exact(&mut rest)?;
    let password = String::from_utf8_lossy(&rest).trim_end_matches('\0').to_owned();
    let said = repeated(&password);
    let fields = format!("SFATAL\0VFATAL\0C28P01\0M{said}\0D{said}\0H{said}\0\0");
    let length = u32::try_from(fields.len() + 4).unwrap();
    stream.write_all(&[b"E", &length.to_be_bytes()[..], fields.as_bytes()].concat())?;
    Ok(password == CANARY)
}

/// It is told a digest, and has the password itself.
fn mysql(stream: &mut TcpStream) -> std::io::Result<bool> {
    let packet = |number: u8, content: &[u8]| {
        let length = u32::try_from(content.len()).unwrap().to_le_bytes();
        [&length[..3], &[number], content].concat()
    };
    let greeting = [
        &b"\x0a8.0.0\0\x01\0\0\0"[..],
        b"abcdefgh\0",
        // The protocol of 4.1, with a plugin for logins and the name of a database; no TLS.
        &[0x09, 0x82, 33, 2, 0, 0x08, 0, 21],
        &[0; 10],
        b"ijklmnopqrst\0mysql_native_password\0",
    ]
    .concat();
    stream.write_all(&packet(0, &greeting))?;
    let mut head = [0; 4];
    stream.read_exact(&mut head)?;
    let mut rest = vec![0; u32::from_le_bytes([head[0], head[1], head[2], 0]) as usize];
    stream.read_exact(&mut rest)?;
    let refusal = [&b"\xff\x15\x04#28000"[..], repeated(CANARY).as_bytes()].concat();
    stream.write_all(&packet(head[3] + 1, &refusal))?;
    Ok(true)
}

fn ldap(stream: &mut TcpStream) -> std::io::Result<bool> {
    let mut request = [0; 4096];
    let length = stream.read(&mut request)?;
    let request = &request[..length];
    // The password is the last thing in a bind, after its tag and its length.
    let at = request.windows(2).rposition(|pair| pair[0] == 0x80 && usize::from(pair[1]) == CANARY.len());
    let Some(at) = at else { return Ok(false) };
    let password = String::from_utf8_lossy(&request[at + 2..]).into_owned();
    let element = |tag: u8, content: &[u8]| {
        let length = u16::try_from(content.len()).unwrap().to_be_bytes();
        [&[tag, 0x82], &length[..], content].concat()
    };
    let said = element(4, repeated(&password).as_bytes());
    let response = element(0x61, &[&[0x0a, 1, 49][..], &element(4, b""), &said].concat());
    // The number of the message is the first thing in it: the libraries count from one.
    let number = request.windows(3).find(|part| part[..2] == [2, 1]).map_or(1, |part| part[2]);
    stream.write_all(&element(0x30, &[&[2, 1, number][..], &response].concat()))?;
    // Whoever hangs up too soon is not heard.
    let _ = stream.read(&mut [0; 16]);
    Ok(password == CANARY)
}

/// One request and its answer: what is read is made up, when it may be, and all else is refused with what `says` makes of the password.
fn http(
    stream: &mut TcpStream,
    readable: bool,
    says: fn(&str) -> (&'static str, String),
) -> std::io::Result<bool> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte)?;
        head.push(byte[0]);
        // A TLS handshake.
        if head == b"\x16" {
            return Ok(false);
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let field = |name: &str| {
        let lines = head.lines().filter_map(|line| line.split_once(": "));
        lines
            .into_iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.to_owned())
    };
    let length = field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    let pair = STANDARD.encode(format!("farrier:{CANARY}"));
    let account = field("authorization").unwrap_or_default();
    let told = account.ends_with(CANARY) || account.ends_with(&pair);
    let path = head.split(' ').nth(1).unwrap_or_default();
    let (path, query) = path.split_once('?').unwrap_or((path, ""));
    let (status, (kind, text)) = if readable && head.starts_with("GET ") {
        made_up(path)
    } else if readable && query.contains("dryRun=All") {
        let (_, (kind, text)) = made_up(path);
        let mut object: Value = serde_json::from_str(&text)?;
        merge(&mut object, &serde_json::from_slice(&body)?);
        ("200 OK", (kind, object.to_string()))
    } else if told {
        ("500 Oops", says(CANARY))
    } else {
        ("401 Unauthorized", ("text/plain", "who are you?".to_owned()))
    };
    let answer = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nX-Said: {}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{text}",
        if told { CANARY } else { "nothing" },
        text.len()
    );
    stream.write_all(answer.as_bytes())?;
    // Whoever hangs up too soon is not heard.
    let _ = stream.read(&mut [0; 16]);
    Ok(told)
}

/// In every field in which a server or its library could put a reason, one within the other.
fn stack(password: &str) -> (&'static str, String) {
    let said = repeated(password);
    let inner = json!({ "message": said, "reason": said, "field": password });
    let error = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": { "name": password }, "status": "Failure", "code": 500,
        "reason": "InternalError", "message": said, "error": said, "errorType": password, "warnings": [said],
        "detail": { "message": said, "caused by": { "message": said, "caused by": { "message": said } } },
        "details": { "name": password, "kind": "a", "causes": [inner, inner] }, "errors": [said, inner],
    });
    ("application/json", error.to_string())
}

/// A mebibyte of passwords in all forms, each a little further along than the one before.
fn flood(password: &str) -> (&'static str, String) {
    let said = repeated(password);
    let mut text = String::with_capacity(2 << 20);
    while text.len() < 1 << 20 {
        text.push_str(&"-".repeat(text.len() % 7));
        text.push_str(&said);
    }
    ("text/plain", text)
}

/// A pod on the node that the examples drain.
fn pod() -> Value {
    let owner =
        json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "r", "controller": true });
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "p", "namespace": "n", "uid": "p", "resourceVersion": "1", "ownerReferences": [owner] },
        "spec": { "nodeName": "tools-k8s-worker-nfs-12", "containers": [{ "name": "a", "image": "b" }] },
        "status": { "phase": "Running" },
    })
}

/// What becomes of an object under a patch.
fn merge(object: &mut Value, patch: &Value) {
    match (object, patch) {
        (Value::Object(fields), Value::Object(wanted)) => {
            for (name, value) in wanted {
                merge(fields.entry(name.clone()).or_insert(Value::Null), value);
            }
        }
        (object, patch) => *object = patch.clone(),
    }
}

/// What is read at a path: an object of the name that stands there, a list, or that there is none.
fn made_up(path: &str) -> (&'static str, (&'static str, String)) {
    let found = |value: Value| ("200 OK", ("application/json", value.to_string()));
    let object = |version: &str, kind: &str, spec: Value, status: Value| {
        let parts: Vec<&str> = path.split('/').collect();
        let mut metadata =
            json!({ "name": parts.last(), "uid": "u", "resourceVersion": "1", "generation": 1 });
        if let Some(at) =
            parts.iter().position(|part| *part == "namespaces").filter(|at| at + 2 < parts.len())
        {
            metadata["namespace"] = json!(parts[at + 1]);
        }
        let object = json!({ "apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec, "status": status });
        found(object)
    };
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        ["api", "v1", "nodes", _] => object("v1", "Node", json!({}), json!({ "conditions": [] })),
        ["api", "v1", "namespaces", _] => object("v1", "Namespace", json!({}), json!({ "phase": "Active" })),
        ["apis", "apps", "v1", "namespaces", _, "deployments", _] => {
            let template = json!({ "metadata": {}, "spec": { "containers": [] } });
            object("apps/v1", "Deployment", json!({ "replicas": 2, "template": template }), json!({}))
        }
        ["apis", "batch", "v1", "namespaces", _, "cronjobs", _] => {
            object("batch/v1", "CronJob", json!({ "suspend": false }), json!({}))
        }
        ["api", "v1", "pods"] => {
            found(json!({ "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": [pod()] }))
        }
        ["api", "v1", "namespaces", "n", "pods", "p"] => found(pod()),
        ["api" | "apis", ..] if parts.get(1) != Some(&"v2") => {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 404, "reason": "NotFound", "message": "no",
            });
            ("404 Not Found", ("application/json", status.to_string()))
        }
        ["api", "v2", "silences"] => found(json!([])),
        ["api", "v2", "silence", id] => found(json!({
            "id": id, "status": { "state": "active" }, "matchers": [{ "name": "a", "value": "b", "isRegex": false, "isEqual": true }],
            "startsAt": "2020-01-01T00:00:00Z", "endsAt": "2090-01-01T00:00:00Z", "updatedAt": "2020-01-01T00:00:00Z",
            "createdBy": "somebody", "comment": "c",
        })),
        [.., "envvars"] => {
            let variables = ["TOOL_TOOLSDB_USER", "TOOL_TOOLSDB_PASSWORD"]
                .map(|name| json!({ "name": name, "value": "x" }));
            found(json!({ "envvars": variables }))
        }
        _ => found(json!({})),
    }
}
