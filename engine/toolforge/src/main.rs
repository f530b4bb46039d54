//! Writes a Toolforge to a folder: `cargo run -p farrier-toolforge -- --tools 3500 --out DIR`.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, bail};
use clap::Parser;
use farrier_toolforge::{Dialect, DriftCounts, World, oracle};

/// When the current rows were written: the tables of a world are the same on every day.
const UPDATED: i64 = 1_700_000_000;

/// Writes a Toolforge: its directory as LDIF, its tool homes, the tables that describe it, and what they must become.
#[derive(Parser)]
struct Options {
    /// How many tools.
    #[arg(long, default_value_t = 3500)]
    tools: usize,
    /// Another number gives another world of the same size.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// A folder that does not exist yet.
    #[arg(long)]
    out: PathBuf,
    /// Rows that the drifted tables lack.
    #[arg(long, default_value_t = 5)]
    added: usize,
    /// Rows of the drifted tables with old content.
    #[arg(long, default_value_t = 20)]
    changed: usize,
    /// Rows of the drifted tables whose tool or user is gone.
    #[arg(long, default_value_t = 5)]
    removed: usize,
    /// Rows of the drifted tables under an old name.
    #[arg(long, default_value_t = 0)]
    renamed: usize,
}

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    let out = &options.out;
    if out.exists() {
        bail!("`{}` exists; name a folder that does not", out.display());
    }
    let world = World::generate(options.tools, options.seed);
    let homes = out.join("homes");
    world.write_homes(&homes).with_context(|| format!("writing homes below `{}`", homes.display()))?;
    let ldif = world.ldif();
    let current = oracle::expected(&ldif, &homes, &world.project, UPDATED).tables()?;
    let counts = DriftCounts {
        added: options.added,
        changed: options.changed,
        removed: options.removed,
        renamed: options.renamed,
    };
    let drifted = current.drifted(counts, options.seed, UPDATED - 3600);
    let write = |name: &str, text: &str| {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| format!("writing `{}`", path.display()))
    };
    write("directory.ldif", &ldif)?;
    for dialect in Dialect::ALL {
        let name = dialect.name();
        write(&format!("schema.{name}.sql"), &dialect.schema())?;
        write(&format!("current.{name}.sql"), &current.insert_sql(dialect))?;
        write(&format!("drifted.{name}.sql"), &drifted.tables.insert_sql(dialect))?;
    }
    write("expected.json", &serde_json::to_string(&current)?)?;
    let differences = serde_json::json!({ "tools": drifted.tools, "users": drifted.users });
    write("differences.json", &serde_json::to_string_pretty(&differences)?)?;
    println!("{} tools and {} users in {}", current.tools.len(), current.users.len(), out.display());
    Ok(())
}
