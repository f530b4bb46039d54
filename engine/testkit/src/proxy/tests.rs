//! Each fault on a server that answers lines.

use std::io::{BufRead, BufReader};

use super::*;

/// A server that answers each line with `done: LINE`, and keeps what it got.
struct Echo {
    address: SocketAddr,
    got: Arc<Mutex<String>>,
}

fn echo() -> Echo {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let echo = Echo { address: listener.local_addr().unwrap(), got: Arc::default() };
    let got = Arc::clone(&echo.got);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, got) = (client.unwrap(), Arc::clone(&got));
            std::thread::spawn(move || {
                let mut lines = BufReader::new(client.try_clone().unwrap());
                let mut line = String::new();
                while lines.read_line(&mut line).is_ok_and(|bytes| bytes > 0) {
                    lock(&got).push_str(&line);
                    let _ = write!(client, "done: {line}");
                    line.clear();
                }
            });
        }
    });
    echo
}

/// What comes back on a new connection, until it is closed or a whole line is there.
fn ask(address: SocketAddr, text: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    let _ = stream.write_all(text.as_bytes());
    let mut answer = String::new();
    let _ = BufReader::new(stream).read_line(&mut answer);
    answer
}

#[test]
fn without_faults_everything_passes() {
    let server = echo();
    let proxy = CutProxy::to(server.address);
    assert_eq!(ask(proxy.address(), "hello\n"), "done: hello\n");
    assert_eq!((proxy.forwarded(Direction::ToServer), proxy.forwarded(Direction::ToClient)), (6, 12));
    assert_eq!((proxy.connections(), proxy.cuts()), (1, 0));
}

#[test]
fn bytes_are_counted_in_each_direction() {
    let server = echo();
    let proxy = CutProxy::to(server.address);
    proxy.cut_after_bytes(Direction::ToClient, 7);
    assert_eq!(ask(proxy.address(), "hello\n"), "done: h");
    assert_eq!(ask(proxy.address(), "again\n"), "done: again\n");
    proxy.cut_after_bytes(Direction::ToServer, 3);
    assert_eq!(ask(proxy.address(), "never\n"), "");
    crate::wait_until("the bytes up to there", || *lock(&server.got) == "hello\nagain\nnev");
    assert_eq!(proxy.cuts(), 2);
}

#[test]
fn a_text_is_stopped_before_it_arrives_even_in_two_parts() {
    let server = echo();
    let proxy = CutProxy::to(server.address);
    proxy.cut_before(Direction::ToServer, "DELETE");
    assert_eq!(ask(proxy.address(), "SELECT\n"), "done: SELECT\n");
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    stream.write_all(b"x DEL").unwrap();
    crate::wait_until("the first part", || proxy.forwarded(Direction::ToServer) == 12);
    stream.write_all(b"ETE\n").unwrap();
    assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0);
    crate::wait_until("the part before", || *lock(&server.got) == "SELECT\nx DEL");
    assert_eq!(ask(proxy.address(), "DELETE\n"), "done: DELETE\n");
}

#[test]
fn a_lost_answer_leaves_the_request_done() {
    let server = echo();
    let proxy = CutProxy::to(server.address);
    proxy.lose_answer_to("UPDATE");
    assert_eq!(ask(proxy.address(), "UPDATE\n"), "");
    assert_eq!(*lock(&server.got), "UPDATE\n");
    crate::wait_until("the cut", || proxy.cuts() == 1);
    assert_eq!(ask(proxy.address(), "UPDATE\n"), "done: UPDATE\n");
}

#[test]
fn connections_are_cut_and_refused_on_command() {
    let server = echo();
    let proxy = CutProxy::to(server.address);
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    crate::wait_until("the connection", || proxy.connections() == 1);
    proxy.cut();
    assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0);
    proxy.refuse(true);
    assert_eq!(ask(proxy.address(), "hello\n"), "");
    proxy.heal();
    assert_eq!(ask(proxy.address(), "hello\n"), "done: hello\n");
    assert_eq!((proxy.connections(), proxy.cuts()), (2, 1));
}

#[test]
fn swallowed_answers_leave_the_connection_open() {
    let server = echo();
    let proxy = CutProxy::to(server.address);
    proxy.swallow_answers(true);
    let stream = TcpStream::connect(proxy.address()).unwrap();
    (&stream).write_all(b"one\n").unwrap();
    crate::wait_until("the request", || *lock(&server.got) == "one\n");
    stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    let nothing = (&stream).read(&mut [0; 10]).unwrap_err().kind();
    assert!(matches!(nothing, std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut));
    drop(stream);
    proxy.heal();
    assert_eq!(ask(proxy.address(), "two\n"), "done: two\n");
}

#[test]
fn a_delay_holds_bytes_back() {
    let server = echo();
    let proxy = CutProxy::to(server.address);
    let delay = Duration::from_millis(30);
    proxy.delay(Direction::ToServer, delay);
    let begun = std::time::Instant::now();
    assert_eq!(ask(proxy.address(), "hello\n"), "done: hello\n");
    assert!(begun.elapsed() >= delay);
}

#[test]
fn a_request_is_held_in_the_middle_until_it_may_go_on_or_its_connection_ends() {
    let server = echo();
    let proxy = CutProxy::to(server.address);
    let hold = || {
        let so_far = lock(&server.got).len();
        proxy.hold_after_bytes(Direction::ToServer, 3);
        let address = proxy.address();
        let asking = std::thread::spawn(move || ask(address, "hel\nlo\n"));
        crate::wait_until("a held connection", || proxy.held() == 1);
        assert_eq!(lock(&server.got).len(), so_far, "a line is not whole yet");
        asking
    };
    let asking = hold();
    proxy.heal();
    assert_eq!(asking.join().unwrap(), "done: hel\n");
    let asking = hold();
    proxy.cut();
    assert_eq!(asking.join().unwrap(), "");
    crate::wait_until("nobody waits", || proxy.held() == 0);
    assert_eq!(ask(proxy.address(), "again\n"), "done: again\n");
}

#[test]
fn a_url_keeps_everything_but_the_address() {
    let server = echo();
    let proxy = CutProxy::to_url(&format!("mysql://a:b@{}/tools?x=1", server.address));
    assert_eq!(proxy.url(), format!("mysql://a:b@{}/tools?x=1", proxy.address()));
    let proxy = CutProxy::to_url(&format!("ldap://{}", server.address));
    assert_eq!(proxy.url(), format!("ldap://{}", proxy.address()));
    assert_eq!(ask(proxy.address(), "hello\n"), "done: hello\n");
}

#[test]
fn a_dropped_proxy_ends_its_connections() {
    let server = echo();
    let proxy = CutProxy::to(server.address);
    let mut stream = TcpStream::connect(proxy.address()).unwrap();
    crate::wait_until("the connection", || proxy.connections() == 1);
    let address = proxy.address();
    drop(proxy);
    assert_eq!(stream.read(&mut [0; 10]).unwrap_or(0), 0);
    assert!(TcpStream::connect(address).is_err());
}
