//! Measures `host.run` with many small commands beside a large heap, which makes a careless `fork` slow:
//! `cargo run --release -p farrier-plugin-host --example small_commands`.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use farrier_action::{ActionRegistry, Binding, NodeInfo, ReadCx, Targets};
use farrier_model::{NodeName, RunId, Scope, Value};
use futures_util::StreamExt;

const COMMANDS: u32 = 10_000;
const AT_ONCE: usize = 8;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let input = Value::from_json(r#"{"target": "here", "argv": ["/bin/true"], "read_only": true}"#)?;
    let config = Value::from_json(r#"{"local": true}"#)?;
    let binding = Binding { alias: "here".into(), kind: "host".into(), config };
    let targets = Arc::new(Targets::new("/".into(), vec![binding], BTreeMap::new()));
    let node = NodeInfo {
        run: RunId::at(0, [0; 10]),
        node: NodeName::step("true"),
        attempt: 1,
        effect_id: String::new(),
    };
    let context = Arc::new(ReadCx::new(targets, Scope::default(), node));
    let mut registry = ActionRegistry::default();
    farrier_plugin_host::register(&mut registry)?;
    let registry = Arc::new(registry);

    let ballast = vec![1_u8; 256 << 20];
    let started = Instant::now();
    let failures: Vec<String> = futures_util::stream::iter(0..COMMANDS)
        .map(|_| {
            let (registry, context, input) = (registry.clone(), context.clone(), input.clone());
            tokio::spawn(async move { registry.bind("host.run", &input)?.plan(&context).await.map(drop) })
        })
        .buffer_unordered(AT_ONCE)
        .filter_map(async |outcome| match outcome {
            Ok(Ok(())) => None,
            Ok(Err(failure)) => Some(failure.to_string()),
            Err(panic) => Some(panic.to_string()),
        })
        .collect()
        .await;
    let rate = f64::from(COMMANDS) / started.elapsed().as_secs_f64();
    if let Some(first) = failures.first() {
        return Err(format!("{} commands failed; the first: {first}", failures.len()).into());
    }
    println!("{rate:.0} commands a second, {AT_ONCE} at once, with {} MiB resident", ballast.len() >> 20);
    Ok(())
}
