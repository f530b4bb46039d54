//! Measures `data.rows` on a large table with a join: `cargo run --release -p farrier-plugin-data --example large_table`.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use farrier_action::{ActionRegistry, NodeInfo, ReadCx, Targets};
use farrier_model::{NodeName, RunId, Scope, Text, Value};

const ITEMS: usize = 35_000;
const COLUMNS: usize = 6;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let accounts = accounts();
    let row = Value::map(
        [
            ("name", "${ account.cn }"),
            ("id", "${ account.uidNumber }"),
            ("home", "${ account.homeDirectory }"),
            ("maintainers", "${ group[account.cn].member | map('rdn') | join(' ') }"),
            ("tool", "${ account.cn | after('.') }"),
            ("title", "tool ${ account.cn }"),
        ]
        .map(|(column, cell)| (column, Value::text(cell))),
    );
    let group = Value::map([("in", accounts.clone()), ("key", Value::text("group.cn"))]);
    let input = Value::map([
        ("from", accounts),
        ("as", Value::text("account")),
        ("lookup", Value::map([("group", group)])),
        ("row", row),
    ]);
    let mut registry = ActionRegistry::default();
    farrier_plugin_data::register(&mut registry)?;

    let before = resident()?;
    let started = Instant::now();
    let planned = registry.bind("data.rows", &input)?.plan(&context()).await?;
    let took = started.elapsed();
    let bytes = resident()?.saturating_sub(before);

    let count = planned.output.as_ref().and_then(|output| output.get("count")).and_then(Value::as_int);
    if count != Some(ITEMS as i64) {
        return Err(format!("there are {count:?} rows instead of {ITEMS}").into());
    }
    println!("{ITEMS} rows of {COLUMNS}: {took:?}, {} bytes a cell", bytes / (ITEMS * COLUMNS));
    Ok(())
}

/// Entries as a directory search returns them, with one set of attribute names.
fn accounts() -> Value {
    let names: Arc<[Text]> = ["cn", "uidNumber", "homeDirectory", "member"].map(Text::from).into();
    let account = |number: usize| {
        let member = format!("uid=person{number},ou=people,dc=example,dc=org");
        Value::record(
            names.clone(),
            vec![
                Value::text(format!("tools.tool{number}")),
                Value::Int(50_000 + number as i64),
                Value::text(format!("/data/project/tool{number}")),
                Value::list(vec![Value::text(member)]),
            ],
        )
    };
    Value::list((0..ITEMS).map(account).collect())
}

fn context() -> ReadCx {
    let targets = Arc::new(Targets::new("/".into(), Vec::new(), [].into()));
    let node = NodeInfo {
        run: RunId::at(0, [0; 10]),
        node: NodeName::step("rows"),
        attempt: 1,
        effect_id: String::new(),
    };
    ReadCx::new(targets, Scope::default(), node)
}

/// Bytes of memory that this process holds.
fn resident() -> Result<usize, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line =
        status.lines().find(|line| line.starts_with("VmRSS")).ok_or("no VmRSS in /proc/self/status")?;
    let kilobytes: usize = line.split_whitespace().nth(1).ok_or("VmRSS has no number")?.parse()?;
    Ok(kilobytes * 1024)
}
