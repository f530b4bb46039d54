//! The service that keeps the files with credentials (it knows whose homes there are, and removes files), and the one that
//! keeps the variables of tools.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};

/// Answers as long as the test lives.
pub(crate) struct Api {
    address: SocketAddr,
    state: Arc<State>,
}

struct State {
    /// Where the homes are.
    homes: PathBuf,
    /// Requests that write, as they came: method, path and body.
    written: Mutex<Vec<String>>,
    /// The variables of each tool.
    variables: Mutex<BTreeMap<String, Variables>>,
    manner: Mutex<Manner>,
}

/// Variables by name.
pub(crate) type Variables = BTreeMap<String, String>;

/// How variables are treated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Manner {
    #[default]
    Well,
    /// The service is away for one tool.
    RefusesWmLol,
    /// Nothing is set, and what came is repeated in the error.
    Echoes,
    /// What came is kept, and the connection ends without an answer.
    HangsUp,
    /// What came is kept, and no answer comes.
    Stalls,
    /// Everyone is sent elsewhere.
    Redirects,
}

/// A request as it came.
struct Request {
    method: String,
    path: Vec<String>,
    body: Value,
}

/// A status and what is said with it.
type Answer = (u16, Value);

impl Api {
    /// For the homes of tools, users and PAWS in a folder.
    pub(crate) fn start(homes: PathBuf) -> Api {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            homes,
            written: Mutex::default(),
            variables: Mutex::default(),
            manner: Mutex::default(),
        });
        let served = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = served.clone();
                thread::spawn(move || state.serve(stream));
            }
        });
        Api { address, state }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What a tool has for variables.
    pub(crate) fn variables(&self, tool: &str) -> Variables {
        self.state.variables.lock().unwrap().get(tool).cloned().unwrap_or_default()
    }

    /// Changes a tool's variables past everyone; nothing removes one.
    pub(crate) fn change(&self, tool: &str, name: &str, value: Option<&str>) {
        let mut all = self.state.variables.lock().unwrap();
        let variables = all.entry(tool.to_owned()).or_default();
        match value {
            Some(value) => drop(variables.insert(name.to_owned(), value.to_owned())),
            None => drop(variables.remove(name)),
        }
    }

    pub(crate) fn treat(&self, manner: Manner) {
        *self.state.manner.lock().unwrap() = manner;
    }

    /// Requests that wrote, or should have.
    pub(crate) fn written(&self) -> Vec<String> {
        self.state.written.lock().unwrap().clone()
    }
}

impl State {
    fn serve(&self, mut stream: TcpStream) -> Option<()> {
        let request = Request::read(&stream)?;
        if request.method != "GET" {
            let text = format!("{} /{} {}", request.method, request.path.join("/"), request.body);
            self.written.lock().unwrap().push(text);
        }
        let (status, body) = self.answer(&request)?;
        let body = body.to_string();
        let location = if status == 302 { "location: /elsewhere\r\n" } else { "" };
        let head = format!(
            "HTTP/1.1 {status} X\r\n{location}connection: close\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).ok()
    }

    /// Nothing when there is to be no answer.
    fn answer(&self, request: &Request) -> Option<Answer> {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        Some(match (&*request.method, &path[..]) {
            (_, ["envvars", "v1", "tool", tool, "envvars", name @ ..]) => {
                return self.variable(request, tool, name.first().copied());
            }
            ("GET", ["v1", "paws-uids"]) => {
                let folders = fs::read_dir(self.homes.join("paws_homes")).unwrap();
                let name = |entry: fs::DirEntry| entry.file_name().into_string().unwrap();
                let mut uids: Vec<String> = folders.map(|entry| name(entry.unwrap())).collect();
                // One folder is nobody's home, and one home is gone before anybody looks.
                uids.extend(["lost+found".into(), "4713".into()]);
                (200, json!({ "result": "ok", "detail": { "paws_uids": uids } }))
            }
            ("POST", ["v1", "delete-replica-cnf"]) => self.delete(&request.body),
            _ => (404, json!({ "detail": "there is no such thing here" })),
        })
    }

    fn variable(&self, request: &Request, tool: &str, name: Option<&str>) -> Option<Answer> {
        let manner = *self.manner.lock().unwrap();
        let sets = request.method == "POST";
        match manner {
            Manner::RefusesWmLol if tool == "wm-lol" => return Some((403, json!("not yours"))),
            Manner::Echoes if sets => return Some((500, json!({ "cannot": request.body }))),
            Manner::Redirects => return Some((302, Value::Null)),
            _ => {}
        }
        let mut all = self.variables.lock().unwrap();
        let variables = all.entry(tool.to_owned()).or_default();
        let answer = match (&*request.method, name) {
            ("GET", None) => {
                let list = variables.iter().map(|(name, value)| json!({ "name": name, "value": value }));
                json!({ "envvars": list.collect::<Vec<_>>(), "messages": {} })
            }
            ("POST", None) => {
                let [name, value] = ["name", "value"].map(|field| request.body[field].as_str().unwrap());
                variables.insert(name.to_owned(), value.to_owned());
                json!({ "envvar": request.body, "messages": {} })
            }
            ("DELETE", Some(name)) => match variables.remove(name) {
                Some(value) => json!({ "envvar": { "name": name, "value": value }, "messages": {} }),
                None => return Some((404, json!("there is no such variable"))),
            },
            _ => return Some((405, Value::Null)),
        };
        drop(all);
        if manner == Manner::Stalls && sets {
            thread::park();
        }
        (manner != Manner::HangsUp || !sets).then_some((200, answer))
    }

    /// Removes a file; one that is not there is an error.
    fn delete(&self, asked: &Value) -> Answer {
        let (Some(name), Some(kind)) = (asked["account_id"].as_str(), asked["account_type"].as_str()) else {
            return (400, json!({ "result": "error" }));
        };
        let file = match kind {
            "tool" => Path::new("homes").join(name.strip_prefix("tools.").unwrap()).join("replica.my.cnf"),
            "user" => Path::new("user_homes").join(name).join("replica.my.cnf"),
            "paws" => Path::new("paws_homes").join(name).join(".my.cnf"),
            _ => return (400, json!({ "result": "error" })),
        };
        match fs::remove_file(self.homes.join(file)) {
            Ok(()) => (200, json!({ "result": "ok", "detail": { "results": { "FileBackend": "deleted" } } })),
            Err(error) => (500, json!({ "result": "error", "detail": { "reason": error.to_string() } })),
        }
    }
}

impl Request {
    /// Nothing when the other side hangs up.
    fn read(stream: &TcpStream) -> Option<Request> {
        let mut reader = BufReader::new(stream);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok().filter(|count| *count > 0)?;
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let mut words = lines.first()?.split(' ');
        let (method, path) = (words.next()?.to_owned(), words.next()?);
        let path = path.split('/').skip(1).map(str::to_owned).collect();
        let length = lines.iter().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("content-length").then(|| value.parse::<usize>().unwrap())
        });
        let mut body = vec![0; length.unwrap_or_default()];
        reader.read_exact(&mut body).ok()?;
        let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).ok()? };
        Some(Request { method, path, body })
    }
}
