//! The service that keeps the files with credentials: it knows whose homes there are, and removes files.

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
        let state = Arc::new(State { homes, written: Mutex::default() });
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
        let (status, body) = self.answer(&request);
        let body = body.to_string();
        let head =
            format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all(&[head.as_bytes(), body.as_bytes()].concat()).ok()
    }

    fn answer(&self, request: &Request) -> Answer {
        let path: Vec<&str> = request.path.iter().map(String::as_str).collect();
        match (&*request.method, &path[..]) {
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
        }
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
