//! [`ApiError`]: the one shape of every refusal, `{"error": {"code", "message", "next"}}`.

use axum::Json;
use axum::response::{IntoResponse, Response};
use farrier_exec::{DriverError, Refusal};
use farrier_project::ProjectError;
use farrier_runbook::InputProblem;
use farrier_store::StoreError;
use http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why something was refused: a closed set, which programs may rely on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is not of the form that is described.
    Malformed,
    /// No token, or one that is not known.
    Unauthenticated,
    /// Who asks may not do this.
    NotAllowed,
    /// The request was made by a page of another site.
    CrossSite,
    /// There is no such thing.
    NotFound,
    /// The path exists, but not with this method.
    WrongMethod,
    /// The request did not arrive in time.
    TooSlow,
    /// Another run is alive where there may be one.
    KeyTaken,
    /// Somebody else works on the run.
    Owned,
    /// The run does not accept this now.
    Refused,
    /// This person may not say this of this run.
    NotYours,
    /// The world, the runbook or the environment is not as the plan saw it.
    Drift,
    /// The plan has expired, or was carried out before.
    PlanGone,
    /// The body is larger than allowed.
    TooLarge,
    /// Not JSON, or encoded.
    UnsupportedType,
    /// Inputs are missing or wrong.
    InvalidInputs,
    /// The environment lacks what the runbook needs.
    MissingTargets,
    /// Too many at once.
    TooMany,
    /// Too many wrong names and passwords.
    TooManyAttempts,
    /// It cannot be done now, and may go better later.
    Unavailable,
    /// A defect, or the machine's trouble.
    Internal,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [ErrorCode; 21] = [
        ErrorCode::Malformed,
        ErrorCode::Unauthenticated,
        ErrorCode::NotAllowed,
        ErrorCode::CrossSite,
        ErrorCode::NotFound,
        ErrorCode::WrongMethod,
        ErrorCode::TooSlow,
        ErrorCode::KeyTaken,
        ErrorCode::Owned,
        ErrorCode::Refused,
        ErrorCode::NotYours,
        ErrorCode::Drift,
        ErrorCode::PlanGone,
        ErrorCode::TooLarge,
        ErrorCode::UnsupportedType,
        ErrorCode::InvalidInputs,
        ErrorCode::MissingTargets,
        ErrorCode::TooMany,
        ErrorCode::TooManyAttempts,
        ErrorCode::Unavailable,
        ErrorCode::Internal,
    ];

    /// The name in answers and in the audit.
    pub fn name(self) -> &'static str {
        match self {
            ErrorCode::Malformed => "malformed",
            ErrorCode::Unauthenticated => "unauthenticated",
            ErrorCode::NotAllowed => "not_allowed",
            ErrorCode::CrossSite => "cross_site",
            ErrorCode::NotFound => "not_found",
            ErrorCode::WrongMethod => "wrong_method",
            ErrorCode::TooSlow => "too_slow",
            ErrorCode::KeyTaken => "key_taken",
            ErrorCode::Owned => "owned",
            ErrorCode::Refused => "refused",
            ErrorCode::NotYours => "not_yours",
            ErrorCode::Drift => "drift",
            ErrorCode::PlanGone => "plan_gone",
            ErrorCode::TooLarge => "too_large",
            ErrorCode::UnsupportedType => "unsupported_type",
            ErrorCode::InvalidInputs => "invalid_inputs",
            ErrorCode::MissingTargets => "missing_targets",
            ErrorCode::TooMany => "too_many",
            ErrorCode::TooManyAttempts => "too_many_attempts",
            ErrorCode::Unavailable => "unavailable",
            ErrorCode::Internal => "internal",
        }
    }

    /// The HTTP status.
    pub fn status(self) -> StatusCode {
        match self {
            ErrorCode::Malformed => StatusCode::BAD_REQUEST,
            ErrorCode::Unauthenticated => StatusCode::UNAUTHORIZED,
            ErrorCode::NotAllowed | ErrorCode::CrossSite | ErrorCode::NotYours => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::WrongMethod => StatusCode::METHOD_NOT_ALLOWED,
            ErrorCode::TooSlow => StatusCode::REQUEST_TIMEOUT,
            ErrorCode::KeyTaken | ErrorCode::Owned | ErrorCode::Refused | ErrorCode::Drift => {
                StatusCode::CONFLICT
            }
            ErrorCode::PlanGone => StatusCode::GONE,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::UnsupportedType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ErrorCode::InvalidInputs | ErrorCode::MissingTargets => StatusCode::UNPROCESSABLE_ENTITY,
            ErrorCode::TooManyAttempts => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::TooMany | ErrorCode::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A refusal. Its text is a lower-case fragment, as all of Farrier's are.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// Which.
    pub code: ErrorCode,
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub next: Option<String>,
}

/// The body of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorBody {
    /// The refusal.
    pub error: ErrorDetail,
}

/// What was refused, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ErrorDetail {
    /// For programs.
    pub code: ErrorCode,
    /// For people.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

impl ApiError {
    /// A refusal without advice.
    pub fn new(code: ErrorCode, message: impl Into<String>) -> ApiError {
        ApiError { code, message: message.into(), next: None }
    }

    /// The same, with advice.
    #[must_use]
    pub fn next(self, next: impl Into<String>) -> ApiError {
        ApiError { next: Some(next.into()), ..self }
    }

    /// There is nothing at this path, or nothing that this person may see.
    pub fn not_found(what: impl Into<String>) -> ApiError {
        ApiError::new(ErrorCode::NotFound, what)
    }

    /// Inputs that do not fit.
    pub fn inputs(runbook: &str, problems: &[InputProblem]) -> ApiError {
        let said: Vec<String> = problems.iter().map(ToString::to_string).collect();
        let helps: Vec<&str> = problems.iter().filter_map(|problem| problem.help.as_deref()).collect();
        let error =
            ApiError::new(ErrorCode::InvalidInputs, format!("inputs of `{runbook}`: {}", said.join("; ")));
        if helps.is_empty() { error } else { error.next(helps.join("; ")) }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = self.code.status();
        let detail = ErrorDetail { code: self.code, message: self.message, next: self.next };
        let mut response = (status, Json(ErrorBody { error: detail })).into_response();
        if status == StatusCode::UNAUTHORIZED {
            response
                .headers_mut()
                .insert(http::header::WWW_AUTHENTICATE, http::HeaderValue::from_static("Bearer"));
        }
        // For the audit and the metrics, which see responses only.
        response.extensions_mut().insert(self.code);
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> ApiError {
        let message = error.to_string();
        match error {
            StoreError::NoRun { .. } => ApiError::new(ErrorCode::NotFound, message),
            StoreError::Final { .. } => ApiError::new(ErrorCode::Refused, message),
            StoreError::KeyTaken { run, .. } => {
                ApiError::new(ErrorCode::KeyTaken, message).next(format!("look at run {run}"))
            }
            StoreError::PlanUsed { .. } => {
                ApiError::new(ErrorCode::PlanGone, message).next("make a new plan")
            }
            StoreError::Owned { .. } | StoreError::Busy { .. } | StoreError::Fenced { .. } => {
                ApiError::new(ErrorCode::Owned, message)
            }
            StoreError::Full { .. } | StoreError::Unavailable { .. } | StoreError::Ambiguous { .. } => {
                ApiError::new(ErrorCode::Unavailable, message)
            }
            StoreError::Closed | StoreError::Fatal { .. } => {
                ApiError::new(ErrorCode::Unavailable, "the store can be written no more")
            }
            _ => {
                tracing::error!(error = message, "the store answered with an error");
                ApiError::new(ErrorCode::Internal, "the store answered with an error")
                    .next("the service's log says more")
            }
        }
    }
}

impl From<DriverError> for ApiError {
    fn from(error: DriverError) -> ApiError {
        match error {
            DriverError::Store(error) => error.into(),
            DriverError::Inputs { .. } => ApiError::new(ErrorCode::InvalidInputs, error.to_string()),
            DriverError::NoRun(_) => ApiError::new(ErrorCode::NotFound, error.to_string()),
            DriverError::Driven(_) | DriverError::LetGo(_) | DriverError::Fenced(_) => {
                ApiError::new(ErrorCode::Owned, error.to_string())
            }
            DriverError::Replay { .. } => {
                tracing::error!(%error, "a run cannot be replayed");
                ApiError::new(ErrorCode::Internal, error.to_string())
            }
        }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        match refusal {
            Refusal::Now(why) => ApiError::new(ErrorCode::Refused, why),
            Refusal::Person(why) => ApiError::new(ErrorCode::NotYours, why),
        }
    }
}

impl From<ProjectError> for ApiError {
    fn from(error: ProjectError) -> ApiError {
        let code = match &error {
            ProjectError::NoRunbook { .. } | ProjectError::NoEnvironment { .. } => ErrorCode::NotFound,
            ProjectError::Targets { .. } => ErrorCode::MissingTargets,
            _ => ErrorCode::Unavailable,
        };
        let next = error.help();
        let error = ApiError::new(code, error.to_string());
        match next {
            Some(next) => error.next(next),
            None => error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_answers() {
        for code in ErrorCode::ALL {
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
            assert!(code.status().is_client_error() || code.status().is_server_error());
        }
    }
}
