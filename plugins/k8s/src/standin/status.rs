//! Refusals as the real server words them: a `Status` with a code, a reason, and causes that name fields.

use serde_json::{Value as Json, json};

use super::kinds::Kind;

/// A request that is refused.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    pub(crate) code: u16,
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) details: Json,
}

/// One thing wrong with an object.
#[derive(Debug, Clone)]
pub(crate) struct Cause {
    reason: &'static str,
    message: String,
    field: String,
}

impl Cause {
    /// A field that must be there.
    pub(crate) fn required(field: impl Into<String>, detail: &str) -> Cause {
        let message =
            if detail.is_empty() { "Required value".into() } else { format!("Required value: {detail}") };
        Cause { reason: "FieldValueRequired", message, field: field.into() }
    }

    /// A value that is not allowed.
    pub(crate) fn invalid(field: impl Into<String>, value: &Json, detail: &str) -> Cause {
        Cause {
            reason: "FieldValueInvalid",
            message: format!("Invalid value: {value}: {detail}"),
            field: field.into(),
        }
    }

    /// A change that is not allowed.
    pub(crate) fn forbidden(field: impl Into<String>, detail: &str) -> Cause {
        Cause { reason: "FieldValueForbidden", message: format!("Forbidden: {detail}"), field: field.into() }
    }

    /// A cause with a reason of its own.
    pub(crate) fn other(reason: &'static str, message: impl Into<String>, field: impl Into<String>) -> Cause {
        Cause { reason, message: message.into(), field: field.into() }
    }

    fn to_json(&self) -> Json {
        let mut cause = json!({ "reason": self.reason, "message": self.message });
        if !self.field.is_empty() {
            cause["field"] = self.field.clone().into();
        }
        cause
    }
}

impl Refusal {
    fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Refusal {
        Refusal { code, reason, message: message.into(), details: Json::Null }
    }

    fn about(mut self, kind: &Kind, name: &str) -> Refusal {
        self.details = json!({ "name": name, "kind": kind.plural });
        if !kind.group.is_empty() {
            self.details["group"] = kind.group.into();
        }
        self
    }

    fn causes(mut self, causes: &[Cause]) -> Refusal {
        if !self.details.is_object() {
            self.details = json!({});
        }
        self.details["causes"] = causes.iter().map(Cause::to_json).collect();
        self
    }

    /// There is no such object.
    pub(crate) fn not_found(kind: &Kind, name: &str) -> Refusal {
        Refusal::new(404, "NotFound", format!("{} \"{name}\" not found", kind.resource())).about(kind, name)
    }

    /// There is no such path.
    pub(crate) fn no_such_resource() -> Refusal {
        let mut refusal = Refusal::new(404, "NotFound", "the server could not find the requested resource");
        refusal.details = json!({});
        refusal
    }

    /// The path has no such method.
    pub(crate) fn method_not_allowed() -> Refusal {
        let text = "the server does not allow this method on the requested resource";
        let mut refusal = Refusal::new(405, "MethodNotAllowed", text);
        refusal.details = json!({});
        refusal
    }

    /// There is one already.
    pub(crate) fn already_exists(kind: &Kind, name: &str) -> Refusal {
        Refusal::new(409, "AlreadyExists", format!("{} \"{name}\" already exists", kind.resource()))
            .about(kind, name)
    }

    /// The object is not as the request expects.
    pub(crate) fn conflict(kind: &Kind, name: &str, detail: &str) -> Refusal {
        let message = format!("Operation cannot be fulfilled on {} \"{name}\": {detail}", kind.resource());
        Refusal::new(409, "Conflict", message).about(kind, name)
    }

    /// The object was changed since it was read.
    pub(crate) fn stale(kind: &Kind, name: &str) -> Refusal {
        let detail =
            "the object has been modified; please apply your changes to the latest version and try again";
        Refusal::conflict(kind, name, detail)
    }

    /// Others manage fields that are to be applied.
    pub(crate) fn apply_conflict(message: String, causes: &[Cause]) -> Refusal {
        Refusal::new(409, "Conflict", message).causes(causes)
    }

    /// The object is not valid.
    pub(crate) fn invalid(kind: &Kind, name: &str, causes: &[Cause]) -> Refusal {
        let each: Vec<String> =
            causes.iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect();
        let text = if each.len() == 1 { each[0].clone() } else { format!("[{}]", each.join(", ")) };
        let mut refusal =
            Refusal::new(422, "Invalid", format!("{} \"{name}\" is invalid: {text}", kind.with_group()))
                .about(kind, name)
                .causes(causes);
        refusal.details["kind"] = kind.kind.into();
        refusal
    }

    /// The request makes no sense.
    pub(crate) fn bad_request(message: impl Into<String>) -> Refusal {
        Refusal::new(400, "BadRequest", message)
    }

    /// The request may not be.
    pub(crate) fn forbidden(kind: &Kind, name: &str, detail: &str, causes: &[Cause]) -> Refusal {
        let message = format!("{} \"{name}\" is forbidden: {detail}", kind.resource());
        let refusal = Refusal::new(403, "Forbidden", message).about(kind, name);
        if causes.is_empty() { refusal } else { refusal.causes(causes) }
    }

    /// What the request continues is not remembered any more.
    pub(crate) fn expired(message: impl Into<String>) -> Refusal {
        Refusal::new(410, "Expired", message)
    }

    /// The version asked for does not exist yet.
    pub(crate) fn too_large_version(asked: u64, current: u64) -> Refusal {
        let mut refusal =
            Refusal::new(504, "Timeout", format!("Too large resource version: {asked}, current: {current}"))
                .causes(&[Cause::other("ResourceVersionTooLarge", "Too large resource version", "")]);
        refusal.details["retryAfterSeconds"] = 1.into();
        refusal
    }

    /// A disruption budget has nothing left.
    pub(crate) fn too_many_requests(message: &str, cause: String) -> Refusal {
        Refusal::new(429, "TooManyRequests", message).causes(&[Cause::other("DisruptionBudget", cause, "")])
    }

    /// The body is of a kind that the path does not take.
    pub(crate) fn media_type(given: &str, accepted: &str) -> Refusal {
        let message = format!(
            "the body of the request was in an unknown format - accepted media types include: {accepted} (was {given})"
        );
        Refusal::new(415, "UnsupportedMediaType", message)
    }

    /// Something that the server itself cannot do.
    pub(crate) fn internal(message: impl Into<String>) -> Refusal {
        let message = message.into();
        let mut refusal = Refusal::new(500, "InternalError", format!("Internal error occurred: {message}"));
        refusal.details = json!({ "causes": [{ "message": message }] });
        refusal
    }

    /// The body of the answer.
    pub(crate) fn to_json(&self) -> Json {
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason,
        });
        if !self.details.is_null() {
            status["details"] = self.details.clone();
        }
        status["code"] = self.code.into();
        status
    }
}
