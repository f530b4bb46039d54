//! A service in a project of its own, and HTTP to it without a client that would mend what a test wants to send.

#![allow(unreachable_pub, reason = "a module of a test binary")]
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::io::{Read, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use farrier_server::rights::Token;
use farrier_testkit::DEADLINE;
use serde_json::{Value, json};

use crate::common::{FARRIER, Project, Started};

/// A runbook that waits for a signal of anyone who may send it, in the area `lifecycle`.
const WAITS: &str = "runbook: waits\nsummary: Waits\nowner: tests\nrisk: read_only\nsignals: [{ name: go, who: [tester, \
                     grace], then: continue }]\nsteps:\n  pause: { uses: flow.wait, with: { signal: go } }\n";
/// One that writes a file, in the area `files`.
const WRITES: &str = "runbook: writes\nsummary: Writes a file\nowner: tests\nrisk: recoverable\ntargets: { place: files \
                      }\ninputs:\n  name: { type: path_segment }\nsteps:\n  file: { uses: files.write, needs: [], undo: \
                      restore, with: { target: place, file: { root: out, path: ['${ inputs.name }'] }, content: new } }\n";

/// A running service.
pub struct Serving {
    pub project: Project,
    pub address: SocketAddr,
    pub child: Child,
    /// Who may do what, by name.
    tokens: Vec<(&'static str, Token)>,
}

/// What was answered.
#[derive(Debug)]
pub struct Answered {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Answered {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    #[track_caller]
    pub fn expect(self, status: u16) -> Answered {
        assert_eq!(self.status, status, "{self:?}");
        self
    }
}

/// The names of those who have a token, with their rights in the service file.
pub const PEOPLE: [(&str, &str); 5] = [
    ("viewer", "role: viewer"),
    ("operator", "role: operator"),
    ("approver", "role: approver"),
    ("admin", "role: admin"),
    ("elsewhere", "areas: { files: admin }"),
];

/// A project with the runbooks above, and an environment `test`.
pub fn project() -> Project {
    let project = Project::new();
    project.write("runbooks/lifecycle/waits.yaml", WAITS);
    project.write("runbooks/files/writes.yaml", WRITES);
    project.write("out/.keep", "");
    project.environment(&json!({ "place": { "kind": "files", "roots": { "out": "../out" } } }));
    project
}

/// Ends a process of the test, whatever becomes of the test.
pub struct Ends(pub Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Serving {
    /// A service in such a project, on a free port.
    pub fn start() -> Serving {
        Serving::start_in(project(), "")
    }

    /// The same in a project of one's own, with more in its service file.
    pub fn start_in(project: Project, more: &str) -> Serving {
        Serving::start_with(project, |file| file.to_owned() + more)
    }

    /// The same with more on its command line.
    pub fn start_serving(project: Project, args: &[&str]) -> Serving {
        Serving::begin(project, ToOwned::to_owned, args)
    }

    /// The same with another service file, made of the usual one.
    pub fn start_with(project: Project, edit: impl FnOnce(&str) -> String) -> Serving {
        Serving::begin(project, edit, &[])
    }

    fn begin(project: Project, edit: impl FnOnce(&str) -> String, args: &[&str]) -> Serving {
        let tokens: Vec<(&str, Token)> =
            PEOPLE.iter().map(|(name, _)| (*name, Token::new())).chain([("main", Token::new())]).collect();
        let mut file = "users:\n".to_owned();
        for (name, rights) in PEOPLE {
            let (_, token) = tokens.iter().find(|(other, _)| *other == name).unwrap();
            file.push_str(&format!("  {name}: {{ {rights}, tokens: ['{}'] }}\n", token.hash()));
        }
        file.push_str(&format!(
            "receivers: {{ main: {{ tokens: ['{}'] }} }}\n",
            tokens[PEOPLE.len()].1.hash()
        ));
        project.write("serve.yaml", &edit(&file));
        let (child, address) = spawn(&project, args);
        Serving { project, address, child, tokens }
    }

    /// The token of somebody.
    pub fn token(&self, name: &str) -> &str {
        self.tokens.iter().find(|(other, _)| *other == name).unwrap().1.reveal()
    }

    /// Sends exactly these bytes and reads until the other end closes.
    pub fn raw(&self, bytes: &[u8]) -> Answered {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        // A server that has answered already may have closed its end.
        let _ = stream.write_all(bytes);
        answer(&mut stream)
    }

    pub fn ask(&self, method: &str, path: &str, token: Option<&str>, body: Option<&str>) -> Answered {
        self.ask_with(method, path, token, body, "")
    }

    /// The same with more headers, each ended by a line break.
    pub fn ask_with(
        &self,
        method: &str,
        path: &str,
        token: Option<&str>,
        body: Option<&str>,
        more: &str,
    ) -> Answered {
        self.raw(request(&self.address.to_string(), method, path, token, body, more).as_bytes())
    }

    pub fn get(&self, path: &str, who: &str) -> Answered {
        self.ask("GET", path, Some(self.token(who)), None)
    }

    pub fn post(&self, path: &str, who: &str, body: &Value) -> Answered {
        self.ask("POST", path, Some(self.token(who)), Some(&body.to_string()))
    }

    /// Starts a run of `waits`, and waits until it waits.
    pub fn waiting_run(&self) -> String {
        let started = self.post("/api/v1/runbooks/waits/runs", "operator", &json!({ "environment": "test" }));
        let run = started.expect(201).json()["run"].as_str().unwrap().to_owned();
        self.until(&run, "waiting");
        run
    }

    /// Waits until a run is in a state.
    #[track_caller]
    pub fn until(&self, run: &str, state: &str) -> Value {
        let begun = Instant::now();
        loop {
            let view = self.get(&format!("/api/v1/runs/{run}"), "admin").expect(200).json();
            if view["state"] == state {
                return view;
            }
            assert!(begun.elapsed() < DEADLINE, "{run} is not {state}: {view}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A good client is answered.
    #[track_caller]
    pub fn is_well(&self) {
        self.ask("GET", "/healthz", None, None).expect(200);
        self.get("/api/v1/runs", "viewer").expect(200);
    }

    /// How many runs there are.
    pub fn runs(&self) -> usize {
        self.get("/api/v1/runs?limit=500", "admin").expect(200).json()["runs"].as_array().unwrap().len()
    }

    /// The stream of a run's events, `after` a place in its journal (`?after=N`); `more` are further headers, a line each.
    pub fn events(&self, run: &str, after: &str, more: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        let head = format!(
            "GET /api/v1/runs/{run}/events{after} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer {}\r\n{more}\r\n",
            self.token("viewer")
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream
    }

    /// Ends it at once, wherever it is.
    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts it again at the address of before.
    pub fn start_again(&mut self) {
        let address = self.address.to_string();
        (self.child, self.address) = spawn(&self.project, &["--listen", &address]);
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let status = std::process::Command::new("kill").args([&format!("-{name}"), &pid]).status().unwrap();
        assert!(status.success());
    }

    /// Waits for its end; gives its exit code.
    #[track_caller]
    pub fn end(&mut self) -> Option<i32> {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            assert!(begun.elapsed() < DEADLINE, "the service does not end");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// What it has said until now.
    pub fn said(&self) -> String {
        self.project.read("serve.err")
    }

    /// Waits until it has said something.
    #[track_caller]
    pub fn until_said(&self, text: &str) {
        let begun = Instant::now();
        while !self.said().contains(text) {
            assert!(begun.elapsed() < DEADLINE, "it does not say `{text}`: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Starts the binary in a project, and waits until it listens.
pub fn spawn(project: &Project, more: &[&str]) -> (Child, SocketAddr) {
    let err = project.path("serve.err");
    let mut command = project.command(&["serve"]);
    if !more.contains(&"--listen") {
        command.args(["--listen", "127.0.0.1:0"]);
    }
    command
        .args(more)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&err).unwrap());
    let mut child = command.spawn().unwrap_or_else(|error| panic!("{FARRIER}: {error}"));
    let begun = Instant::now();
    loop {
        let said = std::fs::read_to_string(&err).unwrap_or_default();
        let listens = |line: &'_ str| {
            line.strip_prefix("listening on http").map(|rest| rest.rsplit('/').next().unwrap().to_owned())
        };
        if let Some(address) = said.lines().find_map(listens) {
            return (child, address.parse().unwrap());
        }
        let ended = child.try_wait().unwrap();
        assert!(ended.is_none() && begun.elapsed() < DEADLINE, "it does not listen: {ended:?} {said}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A request as it is sent, with more headers, each ended by a line break.
pub fn request(
    host: &str,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<&str>,
    more: &str,
) -> String {
    let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n{more}");
    if let Some(token) = token {
        request.push_str(&format!("Authorization: Bearer {token}\r\n"));
    }
    if let Some(body) = body {
        if !more.to_lowercase().contains("content-type") {
            request.push_str("Content-Type: application/json\r\n");
        }
        request.push_str(&format!("Content-Length: {}\r\n", body.len()));
    }
    request.push_str("\r\n");
    request.push_str(body.unwrap_or_default());
    request
}

/// What comes until the other end closes.
pub fn answer(stream: &mut impl Read) -> Answered {
    let mut bytes = Vec::new();
    // A connection that is reset after its answer has been sent is as good as closed.
    let _ = stream.read_to_end(&mut bytes);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((text.as_str(), ""));
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let body = if head.to_lowercase().contains("transfer-encoding: chunked") {
        unchunked(body)
    } else {
        body.to_owned()
    };
    Answered { status, head: head.to_owned(), body }
}

fn unchunked(body: &str) -> String {
    let (mut rest, mut whole) = (body, String::new());
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
        if size == 0 || more.len() < size {
            break;
        }
        whole.push_str(&more[..size]);
        rest = more[size..].strip_prefix("\r\n").unwrap_or_default();
    }
    whole
}

/// Runs the binary to its end in the project of a service, without network.
#[track_caller]
pub fn beside(serving: &Serving, user: &str, args: &[&str]) -> crate::common::Answer {
    let mut command = serving.project.command(args);
    command.env("USER", user);
    Started::from(command).end()
}
