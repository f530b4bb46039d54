//! The log: on standard error, at the level that was asked for, and without secrets.
//!
//! **Rule:** no line has a secret that this process was told. What Farrier itself logs has none; but the libraries that it speaks
//! with log what a server says, and a server may repeat a password.

use std::io::{self, Write};

use tracing_subscriber::filter::{EnvFilter, LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, fmt};

use crate::commands::LogFormat;
use crate::render::style::Style;
use crate::telemetry::Spans;

/// Starts the log, and what keeps the spans of runs for telemetry.
pub fn start(filter: Option<&str>, format: LogFormat, spans: Option<Spans>) {
    let filter = filter.map(str::to_owned).or_else(|| std::env::var("FARRIER_LOG").ok());
    let log = match format {
        LogFormat::Json => {
            let filter = EnvFilter::new(filter.unwrap_or_else(|| "info".into()));
            let lines = fmt::layer().json().flatten_event(true).with_writer(clean);
            Some(lines.with_filter(filter).boxed())
        }
        LogFormat::Text => filter.map(|filter| {
            let lines = fmt::layer().with_writer(clean).with_ansi(Style::stderr().has_colour());
            lines.with_filter(EnvFilter::new(filter)).boxed()
        }),
    };
    if log.is_none() && spans.is_none() {
        return;
    }
    let of_runs = Targets::new().with_target("farrier_exec", LevelFilter::DEBUG);
    let spans = spans.map(|spans| spans.with_filter(of_runs));
    let _ = tracing_subscriber::registry().with(log).with(spans).try_init();
}

fn clean() -> Clean<io::Stderr> {
    Clean(io::stderr())
}

/// Writes lines without secrets. A line comes in one piece, so none is cut.
struct Clean<W>(W);

impl<W: Write> Write for Clean<W> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.write_all(&farrier_action::told().without(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

#[cfg(test)]
mod tests {
    use farrier_action::SharedKnown;
    use farrier_model::Secret;

    use super::*;

    #[test]
    fn a_line_has_no_secret() {
        SharedKnown::default().learn(&Secret::new("a-word-for-the-log"));
        let mut lines = Vec::new();
        Clean(&mut lines).write_all(b"they said \"a-word-for-the-log\"\n").unwrap();
        assert_eq!(String::from_utf8(lines).unwrap(), "they said \"\u{ab}secret\u{bb}\"\n");
    }
}
