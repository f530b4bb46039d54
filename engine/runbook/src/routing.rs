//! From an alert to what a run would be told: pure, and the same for the service, for `farrier plan --alert` and for tests.

use std::collections::BTreeMap;

use farrier_alert::{Alert, Route, incident_key, scope};
use farrier_model::expr::Template;
use farrier_model::{Text, Value};

use crate::graph::{Graph, InputKind};
use crate::inputs::{Given, check_inputs};

/// What follows from an alert under a route: the incident's key, and the inputs of a run.
///
/// # Errors
/// Why nothing follows: the alert is out of bounds, or its labels do not fit the key or the inputs.
pub fn route_alert(route: &Route, graph: &Graph, alert: &Alert) -> Result<(Text, Value), String> {
    if let Some(flaw) = &alert.flaw {
        return Err(flaw.clone());
    }
    let scope = scope(alert);
    let key = incident_key(route, &scope)?;
    let Template::Map(entries) = &route.inputs else {
        return Err("the route's inputs are no map".into());
    };
    let mut given = BTreeMap::new();
    for (name, template) in entries {
        let value = template.eval(&scope).map_err(|error| format!("input `{name}`: {}", error.message))?;
        let kind = graph.inputs.iter().find(|spec| spec.name == *name).map(|spec| &spec.kind);
        // Labels are texts; numbers in them are read by the declared type, as on a command line.
        let value = match (kind, value) {
            (Some(InputKind::Int | InputKind::Bool), Value::Text(text)) => Given::Text(text.to_string()),
            (_, value) => Given::Value(value),
        };
        given.insert(name.clone(), value);
    }
    match check_inputs(graph, &given) {
        Ok(inputs) => Ok((key, inputs)),
        Err(problems) => {
            let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
            Err(problems.join("; "))
        }
    }
}
