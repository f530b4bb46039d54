//! Spans as OTLP's JSON: numbers of 64 bits are text, ids are hexadecimal.

use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use super::Ended;

/// The kind of a span that is nobody's request.
const INTERNAL: u8 = 1;
const ERROR: u8 = 2;

/// The body of a request to `/v1/traces`.
pub(super) fn body(spans: &[Ended]) -> Value {
    let text = |key: &str, value: &str| json!({ "key": key, "value": { "stringValue": value } });
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            text("service.name", "farrier"),
            text("service.version", env!("CARGO_PKG_VERSION")),
        ] },
        "scopeSpans": [{ "scope": { "name": "farrier" }, "spans": spans.iter().map(span).collect::<Vec<Value>>() }],
    }] })
}

fn span(span: &Ended) -> Value {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let attributes = span
        .fields
        .iter()
        .map(|(name, value)| json!({ "key": format!("farrier.{name}"), "value": { "stringValue": value } }));
    let mut out = json!({
        "traceId": hex(&span.trace),
        "spanId": hex(&span.id),
        "name": span.name,
        "kind": INTERNAL,
        "startTimeUnixNano": nanoseconds(span.began),
        "endTimeUnixNano": nanoseconds(span.ended),
        "attributes": attributes.collect::<Vec<Value>>(),
    });
    if let Some(parent) = &span.parent {
        out["parentSpanId"] = hex(parent).into();
    }
    if let Some(failure) = &span.failure {
        out["status"] = json!({ "code": ERROR, "message": failure });
    }
    out
}

fn nanoseconds(time: SystemTime) -> String {
    time.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos().to_string()
}
