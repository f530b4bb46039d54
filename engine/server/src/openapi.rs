//! The description of the API in OpenAPI 3.1: paths from the table of routes, bodies from the types that are read and written.

use std::sync::LazyLock;

use http::Method;
use utoipa::OpenApi;
use utoipa::openapi::path::{
    HttpMethod, OperationBuilder, Parameter, ParameterBuilder, ParameterIn, PathItem,
};
use utoipa::openapi::request_body::RequestBodyBuilder;
use utoipa::openapi::response::ResponseBuilder;
use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{ContentBuilder, Ref, RefOr, Required, Schema};

use crate::error::{ErrorBody, ErrorCode, ErrorDetail};
use crate::routes::{Needs, Route, TABLE};
use crate::wire;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Farrier",
        description = "Plan, start and follow runs of runbooks.",
        version = "1",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    components(schemas(
        ErrorBody,
        ErrorDetail,
        ErrorCode,
        wire::RunSummary,
        wire::RunPage,
        wire::StepView,
        wire::ApprovalView,
        wire::RunView,
        wire::EntryView,
        wire::ProgressView,
        wire::RunbookSummary,
        wire::InputView,
        wire::RunbookView,
        wire::LockView,
        wire::ScheduleView,
        wire::FireView,
        wire::PauseRequest,
        wire::UnpauseRequest,
        wire::IncidentView,
        wire::UnfuseRequest,
        wire::Unfused,
        wire::ActView,
        wire::ActPage,
        wire::StartRequest,
        wire::PlanAnswer,
        wire::Started,
        wire::AnswerRequest,
        wire::SignalRequest,
        wire::CancelRequest,
        wire::ResumeRequest,
        wire::ResolveRequest,
        wire::LoginRequest,
        wire::LogoutView,
        wire::SessionView,
        wire::HealthView,
        wire::ReloadView,
    ))
)]
struct Description;

/// What a route answers.
enum Answers {
    One(&'static str),
    Many(&'static str),
    Events,
    Text,
    Any,
}

/// What a route takes and answers, by the names of types. The test below holds it against the table.
fn bodies(route: &Route) -> (Option<&'static str>, Answers) {
    use Answers::{Any, Events, Many, One, Text};
    match (route.method.as_str(), route.path) {
        ("GET", "/healthz" | "/readyz") => (None, One("HealthView")),
        ("GET", "/metrics") => (None, Text),
        ("GET", "/api/v1/session") => (None, One("SessionView")),
        ("POST", "/api/v1/logout") => (None, One("LogoutView")),
        ("POST", "/api/v1/login") => (Some("LoginRequest"), One("SessionView")),
        ("GET", "/api/v1/runbooks") => (None, Many("RunbookSummary")),
        ("GET", "/api/v1/runbooks/{runbook}") => (None, One("RunbookView")),
        ("POST", "/api/v1/runbooks/{runbook}/plan") => (Some("StartRequest"), One("PlanAnswer")),
        ("POST", "/api/v1/runbooks/{runbook}/runs") => (Some("StartRequest"), One("Started")),
        ("POST", "/api/v1/runbooks/{runbook}/pause") => (Some("PauseRequest"), One("ScheduleView")),
        ("POST", "/api/v1/runbooks/{runbook}/unpause") => (Some("UnpauseRequest"), One("ScheduleView")),
        ("POST", "/api/v1/runbooks/{runbook}/unfuse") => (Some("UnfuseRequest"), One("Unfused")),
        ("GET", "/api/v1/schedules") => (None, Many("ScheduleView")),
        ("GET", "/api/v1/incidents") => (None, Many("IncidentView")),
        ("GET", "/api/v1/runs") => (None, One("RunPage")),
        ("GET", "/api/v1/runs/{run}") => (None, One("RunView")),
        ("GET", "/api/v1/runs/{run}/journal") => (None, Many("EntryView")),
        ("GET", "/api/v1/runs/{run}/events" | "/api/v1/events") => (None, Events),
        ("POST", "/api/v1/runs/{run}/approve" | "/api/v1/runs/{run}/reject") => {
            (Some("AnswerRequest"), One("RunView"))
        }
        ("POST", "/api/v1/runs/{run}/signal") => (Some("SignalRequest"), One("RunView")),
        ("POST", "/api/v1/runs/{run}/cancel") => (Some("CancelRequest"), One("RunView")),
        ("POST", "/api/v1/runs/{run}/resume") => (Some("ResumeRequest"), One("RunView")),
        ("POST", "/api/v1/runs/{run}/resolve") => (Some("ResolveRequest"), One("RunView")),
        ("GET", "/api/v1/locks") => (None, Many("LockView")),
        ("GET", "/api/v1/audit") => (None, One("ActPage")),
        ("POST", "/api/v1/reload") => (None, One("ReloadView")),
        _ => (None, Any),
    }
}

/// What may stand after `?`, with what it is for.
fn queries(route: &Route) -> &'static [(&'static str, &'static str)] {
    match (route.method.as_str(), route.path) {
        ("GET", "/api/v1/runs") => &[
            ("runbook", "Only runs of this runbook."),
            ("environment", "Only runs in this environment."),
            ("state", "Only runs in these states, with commas between them."),
            ("parent", "Only runs that this run started."),
            ("id", "Only runs whose id begins so."),
            ("before", "What the page before gave as `next`."),
            ("limit", "At most so many, up to 500; 50 without it."),
        ],
        ("GET", "/api/v1/runs/{run}/journal") => {
            &[("after", "Only what follows this place."), ("limit", "At most so many.")]
        }
        ("GET", "/api/v1/runs/{run}/events") => {
            &[("after", "Only what follows this place; `Last-Event-ID` counts more.")]
        }
        ("GET", "/api/v1/incidents") => &[
            ("runbook", "Only those of this runbook."),
            ("open", "`true`: only those that are open."),
            ("limit", "At most so many, up to 500; 50 without it."),
        ],
        ("GET", "/api/v1/audit") => &[
            ("who", "Only what they did."),
            ("object", "Only what was about this run or runbook."),
            ("before", "What the page before gave as `next`."),
            ("limit", "At most so many, up to 500; 50 without it."),
        ],
        _ => &[],
    }
}

fn needs(route: &Route) -> String {
    match route.needs {
        Needs::Nothing => "Needs no token.".into(),
        Needs::Anyone => "Needs a token.".into(),
        Needs::Somewhere(role) => format!("Needs the role `{}` in some area.", name(role)),
        Needs::Runbook(role) => format!("Needs the role `{}` in the area of the runbook.", name(role)),
        Needs::Run(role) => format!("Needs the role `{}` in the area of the run's runbook.", name(role)),
        Needs::Everywhere(role) => format!("Needs the role `{}` everywhere.", name(role)),
        Needs::Receiver => "Needs a token or certificate of the receiver.".into(),
        Needs::Metrics => "Needs the role `viewer` in some area, unless metrics are open.".into(),
    }
}

fn name(role: crate::rights::Role) -> String {
    format!("{role:?}").to_lowercase()
}

fn reference(name: &str) -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(name))
}

fn text_schema() -> RefOr<Schema> {
    RefOr::T(Schema::Object(ObjectBuilder::new().schema_type(Type::String).build()))
}

fn parameter(name: &str, place: ParameterIn, about: &str) -> Parameter {
    let required = if place == ParameterIn::Path { Required::True } else { Required::False };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(about))
        .schema(Some(text_schema()))
        .build()
}

fn operation(route: &Route) -> utoipa::openapi::path::Operation {
    let (takes, answers) = bodies(route);
    let (kind, schema) = match answers {
        Answers::One(name) => ("application/json", Some(reference(name))),
        Answers::Many(name) => {
            let list = ArrayBuilder::new().items(reference(name)).build();
            ("application/json", Some(RefOr::T(Schema::Array(list))))
        }
        Answers::Events => ("text/event-stream", Some(text_schema())),
        Answers::Text => ("text/plain", Some(text_schema())),
        Answers::Any => ("application/json", None),
    };
    let content = |schema: Option<RefOr<Schema>>| ContentBuilder::new().schema(schema).build();
    let failed = ResponseBuilder::new()
        .description("Refused, and why")
        .content("application/json", content(Some(reference("ErrorBody"))))
        .build();
    let answered = ResponseBuilder::new().description("As asked").content(kind, content(schema)).build();
    let mut operation = OperationBuilder::new()
        .summary(Some(route.about))
        .description(Some(needs(route)))
        .response("2XX", answered)
        .response("default", failed);
    for part in route.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
        operation = operation.parameter(parameter(part, ParameterIn::Path, "A part of the path."));
    }
    for (name, about) in queries(route) {
        operation = operation.parameter(parameter(name, ParameterIn::Query, about));
    }
    if let Some(name) = takes {
        let body = RequestBodyBuilder::new().content("application/json", content(Some(reference(name))));
        operation = operation.request_body(Some(body.required(Some(Required::True)).build()));
    }
    if route.path.ends_with("/runs") && route.method == Method::POST {
        operation = operation.parameter(parameter(
            crate::api::runbooks::IDEMPOTENCY_KEY,
            ParameterIn::Header,
            "Starting twice under the same key starts once.",
        ));
    }
    if route.needs != Needs::Nothing {
        operation = operation.security(SecurityRequirement::new("token", Vec::<String>::new()));
    }
    operation.build()
}

static TEXT: LazyLock<String> = LazyLock::new(|| {
    let mut description = Description::openapi();
    for route in TABLE.iter() {
        let method = if route.method == Method::POST { HttpMethod::Post } else { HttpMethod::Get };
        let item = PathItem::new(method, operation(route));
        match description.paths.paths.get_mut(route.path) {
            Some(known) => known.merge_operations(item),
            None => drop(description.paths.paths.insert(route.path.to_owned(), item)),
        }
    }
    let token = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    if let Some(components) = &mut description.components {
        components.add_security_scheme("token", SecurityScheme::Http(token));
    }
    let mut text = description.to_pretty_json().unwrap_or_default();
    text.push('\n');
    text
});

/// The description, as JSON.
pub fn text() -> &'static str {
    &TEXT
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_published_description_is_current() {
        farrier_testkit::generated::is_current("site/schema/openapi.json", text());
    }

    #[test]
    fn every_route_says_what_it_takes_and_answers() {
        let description: serde_json::Value = serde_json::from_str(text()).unwrap();
        let schemas = description["components"]["schemas"].as_object().unwrap();
        for route in TABLE.iter() {
            let operation = &description["paths"][route.path][route.method.as_str().to_lowercase()];
            assert!(operation["summary"].is_string(), "{}", route.path);
            let (takes, answers) = bodies(route);
            let answers = match answers {
                Answers::One(name) | Answers::Many(name) => Some(name),
                Answers::Events | Answers::Text => None,
                // Intake answers, and this page itself.
                Answers::Any => {
                    assert!(
                        ["/webhooks/alertmanager/{receiver}", "/api/v1/openapi.json"].contains(&route.path),
                        "{}",
                        route.path
                    );
                    None
                }
            };
            for name in takes.into_iter().chain(answers) {
                assert!(schemas.contains_key(name), "{name}");
            }
            let takes_nothing = ["/api/v1/logout", "/api/v1/reload", "/webhooks/alertmanager/{receiver}"];
            assert!(
                !route.changes() || takes.is_some() || takes_nothing.contains(&route.path),
                "{}",
                route.path
            );
        }
        for reference in text().split("#/components/schemas/").skip(1) {
            let name = reference.split('"').next().unwrap();
            assert!(schemas.contains_key(name), "{name} is meant and not described");
        }
    }
}
