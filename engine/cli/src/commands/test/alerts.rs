//! Tests in files of alerts: an alert, and what must follow from it.

use std::path::Path;
use std::time::Instant;

use farrier_alert::Message;
use farrier_runbook::alerts::{AlertTest, AlertsRead};
use farrier_runbook::{Alerts, Compiled, route_alert};

use super::Problem;
use super::report::Outcome;

/// Executes the tests of every file.
pub(super) fn execute(
    alerts: &Alerts,
    compiled: &Compiled,
    wanted: impl Fn(&str, &str) -> bool,
) -> Result<Vec<Outcome>, Problem> {
    let mut outcomes = Vec::new();
    for file in &alerts.files {
        for (line, test) in file.tests.iter().filter(|(_, test)| wanted(&file.name, &test.name)) {
            let begun = Instant::now();
            let differences = differences(alerts, compiled, file, test)?;
            outcomes.push(Outcome {
                runbook: file.name.clone(),
                test: test.name.to_string(),
                place: format!("{}:{line}", file.path),
                passed: differences.is_empty(),
                crashes: 0,
                failures: 0,
                differences,
                took: begun.elapsed(),
            });
        }
    }
    Ok(outcomes)
}

fn differences(
    alerts: &Alerts,
    compiled: &Compiled,
    file: &AlertsRead,
    test: &AlertTest,
) -> Result<Vec<String>, Problem> {
    let body = match (&test.payload, test.message()) {
        (Some(payload), _) => {
            let path = Path::new(&file.path).parent().unwrap_or(Path::new(".")).join(&payload.value);
            std::fs::read(&path).map_err(|error| Problem::file(&path, error))?
        }
        (None, message) => message.unwrap_or_default().to_string().into_bytes(),
    };
    let message = match Message::read(&body) {
        Ok(message) => message,
        Err(error) => return Ok(vec![error.to_string()]),
    };
    let receiver = test.receiver.as_ref().map_or("", |receiver| &receiver.value);
    let mut came = Vec::new();
    for alert in &message.alerts {
        for route in alerts.routes.iter().filter(|route| route.takes(receiver, alert)) {
            if let Some(graph) = compiled.graphs.get(&route.runbook) {
                came.push((route.runbook.to_string(), route_alert(route, graph, alert)));
            }
        }
    }
    let mut differences = Vec::new();
    for at in 0..came.len().max(test.expect.len()) {
        match (came.get(at), test.expect.get(at)) {
            (Some((runbook, Ok((key, inputs)))), None) => {
                differences.push(format!("`{runbook}` is started as well, for `{key}` with {inputs}"));
            }
            (Some((runbook, Err(reason))), None) => {
                differences.push(format!("`{runbook}` is meant as well, and ignored: {reason}"));
            }
            (None, Some(expected)) => differences.push(format!("`{}` is not started", *expected.runbook)),
            (Some((runbook, _)), Some(expected)) if *runbook != *expected.runbook.value => {
                differences.push(format!("`{runbook}` is started, not `{}`", *expected.runbook));
            }
            (Some((runbook, Err(reason))), Some(expected)) => match &expected.ignored {
                Some(part) if reason.contains(part.as_str()) => {}
                Some(part) => differences.push(format!("the reason does not contain `{}`: {reason}", **part)),
                None => differences.push(format!("`{runbook}` is not started: {reason}")),
            },
            (Some((runbook, Ok((key, inputs)))), Some(expected)) => {
                if expected.ignored.is_some() {
                    differences.push(format!("`{runbook}` is started, for `{key}` with {inputs}"));
                }
                if let Some(wanted) = expected.key.as_ref().filter(|wanted| ***wanted != **key) {
                    differences.push(format!("the incident's key is `{key}`, not `{}`", **wanted));
                }
                for (name, wanted) in expected.inputs() {
                    let found = inputs.get(&name).cloned().unwrap_or_default();
                    if found != wanted {
                        differences.push(format!("the input `{name}` is `{found}`, not `{wanted}`"));
                    }
                }
            }
            (None, None) => {}
        }
    }
    Ok(differences)
}
