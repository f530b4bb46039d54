//! A TCP proxy on loopback that breaks connections on purpose: at a byte, at a text, at a command.
//!
//! ```no_run
//! use farrier_testkit::mariadb::MariaDb;
//! use farrier_testkit::proxy::CutProxy;
//!
//! let database = MariaDb::shared().fresh_database();
//! let proxy = CutProxy::to_url(&database.url());
//! // The server executes the statement, its client sees the connection end: was it applied?
//! proxy.lose_answer_to("UPDATE tools");
//! // … apply something at proxy.url() …
//! assert_eq!(proxy.cuts(), 1);
//! ```
//!
//! Faults that wait for a text or a byte count strike once, on whichever connection meets them first; later connections
//! pass, so that a retry can be seen to succeed. Texts are found only in connections without encryption.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::or_panic;

/// Which way bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to the server: requests.
    ToServer,
    /// From the server to the client: answers.
    ToClient,
}

/// A proxy in front of one server. Dropping it ends all its connections.
#[derive(Debug)]
pub struct CutProxy {
    address: SocketAddr,
    /// What [`CutProxy::url`] is made from: the text around the address.
    url_around: (String, String),
    shared: Arc<Mutex<Shared>>,
    acceptor: Option<JoinHandle<()>>,
}

/// What the proxy's threads and its owner both look at.
#[derive(Debug, Default)]
struct Shared {
    faults: Vec<Fault>,
    delays: [Duration; 2],
    held: usize,
    /// Grows each time all faults are taken back.
    healed: u64,
    refusing: bool,
    silent: bool,
    ended: bool,
    forwarded: [u64; 2],
    cuts: usize,
    connections: usize,
    live: Vec<(usize, TcpStream, TcpStream)>,
}

#[derive(Debug)]
enum Fault {
    /// Cut once this many more bytes went this way.
    AfterBytes { direction: Direction, left: u64 },
    /// Pass on this many more bytes, then wait.
    Hold { direction: Direction, left: u64 },
    /// Cut instead of passing on the bytes that complete this text.
    Before { direction: Direction, text: Vec<u8> },
    /// Pass on the request that holds this text, then cut instead of passing on its answer.
    LoseAnswer { text: Vec<u8> },
}

/// What to do with bytes that have just been read.
struct Verdict {
    /// How many of them to pass on.
    forward: usize,
    cut: bool,
    lose_answer: bool,
    hold: bool,
}

impl CutProxy {
    /// A proxy in front of the server that a URL names (`scheme://[user:password@]host:port[/…]`).
    #[track_caller]
    pub fn to_url(url: &str) -> Self {
        or_panic(Self::try_to_url(url), "cannot start the proxy")
    }

    /// A proxy in front of the server at `address`.
    #[track_caller]
    pub fn to(address: SocketAddr) -> Self {
        or_panic(Self::start(address, (String::new(), String::new())), "cannot start the proxy")
    }

    fn try_to_url(url: &str) -> Result<Self> {
        let start = url.find("://").with_context(|| format!("`{url}` is not a URL"))? + 3;
        let end = url[start..].find(['/', '?']).map_or(url.len(), |length| start + length);
        let start = url[start..end].rfind('@').map_or(start, |at| start + at + 1);
        let server = url[start..end]
            .to_socket_addrs()
            .with_context(|| format!("`{}` is not host:port", &url[start..end]))?
            .next()
            .with_context(|| format!("`{}` has no address", &url[start..end]))?;
        Self::start(server, (url[..start].to_owned(), url[end..].to_owned()))
    }

    fn start(server: SocketAddr, url_around: (String, String)) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("no free port on 127.0.0.1")?;
        let address = listener.local_addr().context("a listening socket has no address")?;
        let shared = Arc::new(Mutex::new(Shared::default()));
        let acceptor = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || accept(&listener, server, &shared)
        });
        Ok(CutProxy { address, url_around, shared, acceptor: Some(acceptor) })
    }

    /// Where the proxy listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The URL given to [`CutProxy::to_url`] with the proxy's address in place of the server's.
    pub fn url(&self) -> String {
        format!("{}{}{}", self.url_around.0, self.address, self.url_around.1)
    }

    /// Cuts the connection once `bytes` more have gone in `direction`; the bytes up to there are passed on.
    pub fn cut_after_bytes(&self, direction: Direction, bytes: u64) {
        self.shared().faults.push(Fault::AfterBytes { direction, left: bytes });
    }

    /// Passes `bytes` more on in `direction`, and holds back what comes after them on that connection until it ends or
    /// [`CutProxy::heal`] is called: the other side has a part, and waits for the rest.
    pub fn hold_after_bytes(&self, direction: Direction, bytes: u64) {
        self.shared().faults.push(Fault::Hold { direction, left: bytes });
    }

    /// How many connections are held in the middle at this moment.
    pub fn held(&self) -> usize {
        self.shared().held
    }

    /// Cuts the connection when `text` comes by in `direction`: the other side never sees the end of it.
    pub fn cut_before(&self, direction: Direction, text: &str) {
        self.shared().faults.push(Fault::Before { direction, text: text.into() });
    }

    /// Passes the request that holds `text` on to the server, waits for its answer, and cuts the connection in place
    /// of passing that on: the server has acted, and its client cannot know.
    pub fn lose_answer_to(&self, text: &str) {
        self.shared().faults.push(Fault::LoseAnswer { text: text.into() });
    }

    /// Cuts all connections now. New ones are accepted.
    pub fn cut(&self) {
        let mut shared = self.shared();
        shared.cuts += shared.live.len();
        shared.live.drain(..).for_each(|(_, client, server)| close(&client, &server));
    }

    /// Whether answers are swallowed: requests reach the server, nothing comes back, connections stay open. Turning
    /// this off does not bring back what was swallowed.
    pub fn swallow_answers(&self, swallow: bool) {
        self.shared().silent = swallow;
    }

    /// Whether new connections are closed as soon as they are made.
    pub fn refuse(&self, refuse: bool) {
        self.shared().refusing = refuse;
    }

    /// Holds everything that goes in `direction` back for `delay` from now on.
    pub fn delay(&self, direction: Direction, delay: Duration) {
        self.shared().delays[direction as usize] = delay;
    }

    /// Takes back every fault that has not struck, and every delay.
    pub fn heal(&self) {
        let mut shared = self.shared();
        shared.faults.clear();
        shared.delays = [Duration::ZERO; 2];
        shared.refusing = false;
        shared.silent = false;
        shared.healed += 1;
    }

    /// How many bytes have been passed on in `direction`, over all connections.
    pub fn forwarded(&self, direction: Direction) -> u64 {
        self.shared().forwarded[direction as usize]
    }

    /// How many connections the proxy itself has cut.
    pub fn cuts(&self) -> usize {
        self.shared().cuts
    }

    /// How many connections were ever made through the proxy.
    pub fn connections(&self) -> usize {
        self.shared().connections
    }

    fn shared(&self) -> MutexGuard<'_, Shared> {
        lock(&self.shared)
    }
}

impl Drop for CutProxy {
    fn drop(&mut self) {
        self.shared().ended = true;
        self.cut();
        // Wakes the acceptor, which then sees that it is over.
        let _ = TcpStream::connect(self.address);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

impl Shared {
    /// What to do with `bytes` read in `direction`, of which the last `seen.len() - bytes` bytes before are also in
    /// `seen`. A fault that strikes is taken off the list.
    fn judge(&mut self, direction: Direction, seen: &[u8], bytes: usize) -> Verdict {
        let mut verdict = Verdict { forward: bytes, cut: false, lose_answer: false, hold: false };
        let mut struck = None;
        for (index, fault) in self.faults.iter_mut().enumerate() {
            match fault {
                Fault::AfterBytes { direction: way, left } if *way == direction => {
                    if *left <= bytes as u64 {
                        (verdict.forward, verdict.cut) = (*left as usize, true);
                        struck = Some(index);
                    }
                    *left = left.saturating_sub(bytes as u64);
                }
                Fault::Hold { direction: way, left } if *way == direction => {
                    if *left <= bytes as u64 {
                        (verdict.forward, verdict.hold) = (*left as usize, true);
                        struck = Some(index);
                    }
                    *left = left.saturating_sub(bytes as u64);
                }
                Fault::Before { direction: way, text } if *way == direction && holds(seen, text) => {
                    (verdict.forward, verdict.cut) = (0, true);
                    struck = Some(index);
                }
                Fault::LoseAnswer { text } if direction == Direction::ToServer && holds(seen, text) => {
                    verdict.lose_answer = true;
                    struck = Some(index);
                }
                _ => {}
            }
            if struck.is_some() {
                break;
            }
        }
        if let Some(index) = struck {
            self.faults.remove(index);
        }
        verdict
    }

    /// The length of the longest text that a fault looks for.
    fn longest_text(&self) -> usize {
        let lengths = self.faults.iter().map(|fault| match fault {
            Fault::AfterBytes { .. } | Fault::Hold { .. } => 0,
            Fault::Before { text, .. } | Fault::LoseAnswer { text } => text.len(),
        });
        lengths.max().unwrap_or(0)
    }

    /// Ends connection `number`, as the proxy's own deed when `cut`.
    fn end(&mut self, number: usize, cut: bool) {
        if let Some(index) = self.live.iter().position(|(other, ..)| *other == number) {
            let (_, client, server) = self.live.swap_remove(index);
            close(&client, &server);
            self.cuts += usize::from(cut);
        }
    }
}

fn accept(listener: &TcpListener, server: SocketAddr, shared: &Arc<Mutex<Shared>>) {
    for client in listener.incoming() {
        let Ok(client) = client else { continue };
        if lock(shared).ended {
            return;
        }
        if lock(shared).refusing {
            continue;
        }
        // A server that is down looks to the client like a proxy that closes at once.
        let Ok(server) = TcpStream::connect(server) else { continue };
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let copies = (client.try_clone(), server.try_clone(), client.try_clone(), server.try_clone());
        let (Ok(client_copy), Ok(server_copy), Ok(client_kept), Ok(server_kept)) = copies else { continue };
        let number = {
            let mut locked = lock(shared);
            locked.connections += 1;
            let number = locked.connections;
            locked.live.push((number, client_kept, server_kept));
            number
        };
        let answer_lost = Arc::new(Mutex::new(false));
        for (direction, from, to) in
            [(Direction::ToServer, client, server), (Direction::ToClient, server_copy, client_copy)]
        {
            let (shared, answer_lost) = (Arc::clone(shared), Arc::clone(&answer_lost));
            std::thread::spawn(move || {
                let cut = carry((number, direction), from, to, &shared, &answer_lost);
                lock(&shared).end(number, cut);
            });
        }
    }
}

/// Passes the bytes of a connection on in a direction until one side ends or a fault strikes; true for a fault.
fn carry(
    (number, direction): (usize, Direction),
    mut from: TcpStream,
    mut to: TcpStream,
    shared: &Mutex<Shared>,
    answer_lost: &Mutex<bool>,
) -> bool {
    let mut buffer = vec![0; 64 * 1024];
    // The end of what went before, so that a text is found across two reads.
    let mut before = Vec::new();
    loop {
        let Ok(bytes @ 1..) = from.read(&mut buffer) else { return false };
        let delay = lock(shared).delays[direction as usize];
        std::thread::sleep(delay);
        if direction == Direction::ToClient && *lock(answer_lost) {
            return true;
        }
        let seen = [&before[..], &buffer[..bytes]].concat();
        let (verdict, swallow) = {
            let mut locked = lock(shared);
            let swallow = locked.silent && direction == Direction::ToClient;
            let verdict = locked.judge(direction, &seen, bytes);
            if !swallow {
                locked.forwarded[direction as usize] += verdict.forward as u64;
            }
            let keep = locked.longest_text().saturating_sub(1).min(seen.len());
            before = seen[seen.len() - keep..].to_vec();
            (verdict, swallow)
        };
        // Before the request is passed on: its answer can come at once.
        *lock(answer_lost) |= verdict.lose_answer;
        if !swallow && to.write_all(&buffer[..verdict.forward]).is_err() {
            return false;
        }
        if verdict.hold && !(wait(number, shared) && to.write_all(&buffer[verdict.forward..bytes]).is_ok()) {
            return false;
        }
        if verdict.cut {
            return true;
        }
    }
}

/// Waits until all faults are taken back; false when connection `number` ended before.
fn wait(number: usize, shared: &Mutex<Shared>) -> bool {
    let healed = {
        let mut locked = lock(shared);
        locked.held += 1;
        locked.healed
    };
    let goes_on = loop {
        std::thread::sleep(Duration::from_millis(5));
        let locked = lock(shared);
        if locked.healed != healed {
            break true;
        }
        if !locked.live.iter().any(|(live, ..)| *live == number) {
            break false;
        }
    };
    lock(shared).held -= 1;
    goes_on
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    !text.is_empty() && bytes.windows(text.len()).any(|window| window == text)
}

fn close(client: &TcpStream, server: &TcpStream) {
    let _ = (client.shutdown(Shutdown::Both), server.shutdown(Shutdown::Both));
}

/// A panic elsewhere does not make the state unusable: every change to it is one step.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
