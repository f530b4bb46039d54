//! A server that serves recorded routes over real connections, faults included.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use farrier_action::Now;
use farrier_outbound::{Answer, Method, Query, Request};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::standin::Routes;
use crate::standin::file::Fault;

/// Ends when dropped.
pub(super) struct Server {
    pub(super) address: SocketAddr,
    /// The heads of the requests as they came.
    pub(super) heads: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    pub(super) async fn start(routes: &Path, state: &Path) -> Server {
        let routes =
            Routes::open(routes.into(), state.into(), "Idempotency-Key", u64::MAX, Now::default()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = heads.clone();
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (routes, seen) = (routes.clone(), seen.clone());
                connections.spawn(async move { serve(stream, &routes, &seen).await });
            }
        });
        Server { address, heads, task }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}/base", self.address)
    }
}

async fn serve(mut stream: TcpStream, routes: &Routes, seen: &Mutex<Vec<String>>) {
    let mut bytes = Vec::new();
    loop {
        let end = loop {
            if let Some(at) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            // What does not begin with a method is a handshake.
            let came = stream.read_buf(&mut bytes).await.unwrap_or(0);
            if came == 0 || !bytes[0].is_ascii_uppercase() {
                return;
            }
        };
        let head = String::from_utf8(bytes[..end].to_vec()).unwrap();
        let (mut request, length) = read(&head);
        seen.lock().unwrap().push(head.clone());
        if request.path == ["echo"] {
            let status = if request.method == Method::Get { 200 } else { 500 };
            let answer = Answer { status, body: head.into_bytes(), ..Answer::default() };
            stream.write_all(&written(&answer, answer.body.len())).await.unwrap();
            return;
        }
        bytes.drain(..end + 4);
        while bytes.len() < length {
            if stream.read_buf(&mut bytes).await.unwrap_or(0) == 0 {
                return;
            }
        }
        let body: Vec<u8> = bytes.drain(..length).collect();
        request.body = (length > 0).then_some(("application/json", body));
        let (answer, fault) = routes.find(&request).await.unwrap();
        match fault {
            None => stream.write_all(&written(&answer, answer.body.len())).await.unwrap(),
            Some(Fault::Timeout) => std::future::pending().await,
            Some(Fault::Cut) => {
                let half = written(&answer, answer.body.len() / 2);
                stream.write_all(&half).await.unwrap();
                return;
            }
            Some(Fault::Lost | Fault::Unreachable) => return,
        }
    }
}

fn read(head: &str) -> (Request, usize) {
    let mut lines = head.split("\r\n");
    let mut words = lines.next().unwrap().split(' ');
    let method = match words.next().unwrap() {
        "GET" => Method::Get,
        "POST" => Method::Post,
        "PUT" => Method::Put,
        "PATCH" => Method::Patch,
        "DELETE" => Method::Delete,
        other => panic!("method {other}"),
    };
    let url = url::Url::parse(&format!("http://x{}", words.next().unwrap())).unwrap();
    let path = url.path().strip_prefix("/base").unwrap();
    let path: Vec<String> = path
        .split('/')
        .skip(1)
        .map(|part| {
            url::form_urlencoded::parse(format!("p={part}").as_bytes()).next().unwrap().1.into_owned()
        })
        .collect();
    let query = Query(url.query_pairs().into_owned().collect());
    let mut request = Request::new(method, path).unwrap().query(query);
    let mut length = 0;
    for line in lines {
        let (name, value) = line.split_once(": ").unwrap();
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.parse().unwrap(),
            "host" | "user-agent" | "content-type" | "authorization" => {}
            "accept" if value == "*/*" => {}
            name => request = request.header(name, value),
        }
    }
    (request, length)
}

fn written(answer: &Answer, sent: usize) -> Vec<u8> {
    let mut text = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n", answer.status, answer.body.len());
    for (name, value) in &answer.headers {
        text.push_str(&format!("{name}: {value}\r\n"));
    }
    text.push_str("set-cookie: session=hidden\r\n\r\n");
    let mut bytes = text.into_bytes();
    bytes.extend_from_slice(&answer.body[..sent]);
    bytes
}
