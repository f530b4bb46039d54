//! The one table of routes: what there is, what it needs, and what answers. The router, the check of rights, the audit, the
//! description in OpenAPI and the test of every route with every role are made from it, so none of them can forget a route.

use axum::Router;
use axum::routing::{MethodRouter, get, post};
use http::Method;

use crate::api;
use crate::app::App;
use crate::rights::Role;

/// What a route needs of whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing: it says nothing that would help anybody.
    Nothing,
    /// To be somebody who is known.
    Anyone,
    /// This role in some area; what is answered is what they may see.
    Somewhere(Role),
    /// This role in the area of the runbook that the path names.
    Runbook(Role),
    /// This role in the area of the runbook whose run the path names.
    Run(Role),
    /// This role everywhere.
    Everywhere(Role),
    /// A token or certificate of the receiver that the path names.
    Receiver,
    /// As `Somewhere(Viewer)`, or nothing where the service file says `open_metrics`.
    Metrics,
}

/// One route.
pub struct Route {
    /// `GET` answers `HEAD` too.
    pub method: Method,
    /// The path, with the names of its parts in braces.
    pub path: &'static str,
    /// What it needs.
    pub needs: Needs,
    /// One line for the description.
    pub about: &'static str,
    handler: fn() -> MethodRouter<App>,
}

impl Route {
    /// Whether it changes something, or asks for it.
    pub fn changes(&self) -> bool {
        self.method != Method::GET
    }
}

macro_rules! table {
    ($($method:ident $path:literal, $needs:expr, $handler:path, $about:literal;)+) => {
        /// Every route.
        pub static TABLE: std::sync::LazyLock<Vec<Route>> = std::sync::LazyLock::new(|| vec![
            $(Route {
                method: table!(@method $method),
                path: $path,
                needs: $needs,
                about: $about,
                handler: || $method($handler),
            }),+
        ]);
    };
    (@method get) => { Method::GET };
    (@method post) => { Method::POST };
}

use Needs::{Anyone, Everywhere, Metrics, Nothing, Receiver, Run, Runbook, Somewhere};
use Role::{Admin, Approver, Operator, Viewer};

table! {
    get "/healthz", Nothing, api::health::healthz, "Whether the service can do its work";
    get "/readyz", Nothing, api::health::readyz, "Whether it accepts requests";
    get "/metrics", Metrics, api::health::metrics, "What it counts, for Prometheus";
    get "/api/v1/openapi.json", Nothing, api::health::openapi, "This description";
    get "/api/v1/session", Anyone, api::session::session, "Who you are here";
    post "/api/v1/login", Nothing, api::session::login, "A token for a name and a password";
    post "/api/v1/logout", Anyone, api::session::logout, "End the login whose token this is";
    get "/api/v1/runbooks", Somewhere(Viewer), api::runbooks::list, "The runbooks that you may see";
    get "/api/v1/runbooks/{runbook}", Runbook(Viewer), api::runbooks::show, "One runbook with its inputs and text";
    post "/api/v1/runbooks/{runbook}/plan", Runbook(Operator), api::runbooks::plan, "What it would change; nothing is written";
    post "/api/v1/runbooks/{runbook}/runs", Runbook(Operator), api::runbooks::start, "Start a run; an `Idempotency-Key` makes it once";
    post "/api/v1/runbooks/{runbook}/pause", Runbook(Operator), api::clock::pause, "Keep a schedule of it from starting runs";
    post "/api/v1/runbooks/{runbook}/unpause", Runbook(Operator), api::clock::unpause, "Let it start runs again";
    post "/api/v1/runbooks/{runbook}/unfuse", Runbook(Operator), api::incidents::unfuse, "Let alerts start it again";
    get "/api/v1/schedules", Somewhere(Viewer), api::clock::list, "What starts by itself, and what came of it last";
    get "/api/v1/incidents", Somewhere(Viewer), api::incidents::list, "What alerts have opened, newest first";
    get "/api/v1/runs", Somewhere(Viewer), api::runs::list, "Runs, newest first";
    get "/api/v1/runs/{run}", Run(Viewer), api::runs::show, "One run with its steps";
    get "/api/v1/runs/{run}/journal", Run(Viewer), api::runs::journal, "The journal of a run, from `after` on";
    get "/api/v1/runs/{run}/events", Run(Viewer), api::runs::events, "The journal as it grows, as server-sent events";
    post "/api/v1/runs/{run}/approve", Run(Approver), api::answers::approve, "Say yes to the plan that a run waits with";
    post "/api/v1/runs/{run}/reject", Run(Approver), api::answers::reject, "Say no to it";
    post "/api/v1/runs/{run}/signal", Run(Operator), api::answers::signal, "Send one of the runbook's signals";
    post "/api/v1/runs/{run}/cancel", Run(Operator), api::answers::cancel, "Stop a run";
    post "/api/v1/runs/{run}/resume", Run(Operator), api::answers::resume, "Let a parked run go on";
    post "/api/v1/runs/{run}/resolve", Run(Operator), api::answers::resolve, "Say whether a step in doubt happened";
    get "/api/v1/events", Somewhere(Viewer), api::runs::all_events, "What happens in all runs that you may see";
    get "/api/v1/locks", Somewhere(Viewer), api::runs::locks, "Who holds which lock, and who waits for it";
    get "/api/v1/audit", Everywhere(Admin), api::audit::list, "Who did what";
    post "/api/v1/reload", Everywhere(Admin), api::health::reload, "Read the project and the service file again";
    post "/webhooks/alertmanager/{receiver}", Receiver, api::webhook::receive, "Alerts from Alertmanager";
}

/// The router, without the layers that guard it.
pub(crate) fn router() -> Router<App> {
    TABLE.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handler)()))
}

/// The route of a request that the router has matched. `HEAD` is `GET` without a body.
pub(crate) fn find(method: &Method, path: &str) -> Option<&'static Route> {
    let method = if method == Method::HEAD { &Method::GET } else { method };
    TABLE.iter().find(|route| route.method == *method && route.path == path)
}
