//! What people and programs see on standard output.

pub mod plan;
pub mod style;
pub mod table;

use anyhow::Context;
use serde::Serialize;

/// The form of the output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON document.
    Json,
    /// One JSON document per line.
    Jsonl,
    /// YAML.
    Yaml,
}

/// Prints `data` in a format for programs; returns false for [`Format::Table`], which the caller draws.
pub fn data<T: Serialize>(format: Format, data: &T) -> anyhow::Result<bool> {
    match format {
        Format::Table => return Ok(false),
        Format::Json => line(&serde_json::to_string_pretty(data)?)?,
        Format::Yaml => line(serde_saphyr::to_string(data).context("cannot write YAML")?.trim_end())?,
        Format::Jsonl => match serde_json::to_value(data)? {
            serde_json::Value::Array(items) => {
                for item in items {
                    line(&item.to_string())?;
                }
            }
            other => line(&other.to_string())?,
        },
    }
    Ok(true)
}

/// `1 run`, `2 runs`.
pub fn many(count: u64, one: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {one}s") }
}

/// `1 crash`, `2 crashes`.
pub fn many_of(count: u64, one: &str, several: &str) -> String {
    if count == 1 { format!("1 {one}") } else { format!("{count} {several}") }
}

/// Prints one line to standard output. A reader that went away (`| head`) ends the program quietly.
pub fn line(text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    match writeln!(out, "{text}") {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => other.context("cannot write to standard output"),
    }
}
