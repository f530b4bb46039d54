//! The service itself, over HTTP: a storm of alerts as two Alertmanagers send it, and what it costs when nothing happens.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use farrier_model::RunState;
use farrier_server::rights::Token;
use farrier_store::{IncidentFilter, Intake as _, OpenOptions, RunFilter, SqliteStore, Store as _};

use crate::intake::{GROUPS, PER_GROUP, message, project};
use crate::report::{Report, show, write};
use crate::serving::Serving;

/// Connections of each Alertmanager.
const CONNECTIONS: usize = 8;

/// Measures a storm.
pub fn measure(report: &mut Report, binary: &Path) -> Result<()> {
    let folder = tempfile::tempdir()?;
    project(folder.path())?;
    let token = Token::new();
    write(
        &folder.path().join("serve.yaml"),
        &format!("receivers: {{ tools: {{ tokens: ['{}'] }} }}\n", token.hash()),
    )?;

    let serving = Serving::start(binary, folder.path(), &[])?;
    let before = serving.resident()?;
    let begun = Instant::now();
    let mut senders = Vec::new();
    for _peer in 0..2 {
        for connection in 0..CONNECTIONS {
            let (address, token) = (serving.address, token.reveal().to_owned());
            senders.push(std::thread::spawn(move || {
                send(address, &token, (0..GROUPS).filter(|group| group % CONNECTIONS == connection))
            }));
        }
    }
    let mut times = Vec::new();
    for sender in senders {
        times.extend(sender.join().map_err(|_| anyhow!("a sender panicked"))??);
    }
    let answered = begun.elapsed();
    times.sort_unstable();

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let store = SqliteStore::open(&folder.path().join(".farrier"), OpenOptions::read_only()).await?;
        let done = RunFilter { states: vec![RunState::Succeeded], ..RunFilter::default() };
        while store.runs(done.clone()).await?.len() < GROUPS {
            ensure!(begun.elapsed() < Duration::from_secs(120), "the runs do not come to an end");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let runs = store.runs(RunFilter::default()).await?.len();
        let incidents = store.incidents(IncidentFilter::default()).await?.len();
        ensure!((runs, incidents) == (GROUPS, GROUPS), "{runs} runs for {incidents} incidents");
        anyhow::Ok(())
    })?;
    report.row(
        "`farrier serve`: storm of 10,000 alerts in 200 groups, everything twice, over HTTP: answer, p99",
        &show(times[times.len() * 99 / 100]),
        &show(times.last().copied().unwrap_or_default()),
        &format!("goal: below 1 s; all answered, with 200, in {}", show(answered)),
    );
    report.row(
        "the same: from the first alert to the end of the last of 200 runs",
        &show(begun.elapsed()),
        "",
        &format!(
            "{} alerts/s until then",
            (GROUPS * PER_GROUP * 2) as u128 * 1000 / begun.elapsed().as_millis()
        ),
    );
    report.row(
        "the same: the most memory of the process",
        &format!("{:.1} MB", serving.peak()? as f64 / 1e6),
        "",
        &format!("goal: below 300 MB; {:.1} MB before", before as f64 / 1e6),
    );
    Ok(())
}

/// Measures the service with the embedded world of the demo when nothing happens but what its clock starts.
pub fn idle(report: &mut Report, binary: &Path, time: Duration) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut copy = Command::new("cp");
    copy.arg("-r").args(["farrier.yaml", "runbooks", "environments", "alerts"].map(|name| root.join(name)));
    ensure!(copy.arg(folder.path()).status()?.success(), "the project cannot be copied");
    let serving = Serving::start(binary, folder.path(), &["--env", "demo"])?;
    std::thread::sleep(Duration::from_secs(10));
    let (used, begun) = (serving.processor()?, Instant::now());
    std::thread::sleep(time);
    let share = serving.processor()?.saturating_sub(used).as_secs_f64() / begun.elapsed().as_secs_f64();
    report.row(
        &format!("`farrier serve` with the environment of the demo, idle for {}: memory", show(time)),
        &format!("{:.1} MB", serving.resident()? as f64 / 1e6),
        &format!("{:.1} MB", serving.peak()? as f64 / 1e6),
        "goal: below 30 MB",
    );
    report.row("the same: processor time", &format!("{:.3} %", share * 100.0), "", "goal: about none");
    Ok(())
}

/// Sends the messages of these groups over one connection, and gives the time of each answer.
fn send(address: SocketAddr, token: &str, groups: impl Iterator<Item = usize>) -> Result<Vec<Duration>> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    let mut times = Vec::new();
    for group in groups {
        let body = message(group, (0..PER_GROUP).map(|disk| (group, disk)));
        let mut request = format!(
            "POST /webhooks/alertmanager/tools HTTP/1.1\r\nHost: farrier\r\nAuthorization: Bearer {token}\r\n\
             Content-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend(body);
        let asked = Instant::now();
        stream.write_all(&request)?;
        answer(&mut answers)?;
        times.push(asked.elapsed());
    }
    Ok(times)
}

/// Reads one answer, which has to be 200.
fn answer(stream: &mut BufReader<TcpStream>) -> Result<()> {
    let (mut status, mut length) = (String::new(), 0);
    stream.read_line(&mut status)?;
    loop {
        let mut line = String::new();
        stream.read_line(&mut line)?;
        let line = line.trim().to_ascii_lowercase();
        if line.is_empty() {
            break;
        }
        if let Some(number) = line.strip_prefix("content-length:") {
            length = number.trim().parse()?;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body)?;
    ensure!(status.contains(" 200 "), "{status}{}", String::from_utf8_lossy(&body));
    Ok(())
}
