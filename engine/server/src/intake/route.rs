//! Which runbooks an alert means in which environment, and with what inputs.

use std::sync::Arc;

use farrier_alert::{Alert, Arrival, Ignored, Message, Route, Routed, Rule, Status, incident_key, scope};
use farrier_exec::driver::{Start, World, new_run};
use farrier_model::event::Trigger;
use farrier_model::spec::Risk;
use farrier_model::time::Timestamp;
use farrier_model::{RunId, Text};
use farrier_project::{Set, Site};
use farrier_runbook::{Bundle, route_alert};
use farrier_store::{Arriving, NewRun};

/// The routes and environments that count for a receiver.
pub struct Routing<'s> {
    set: &'s Set,
    sites: Vec<(&'s Arc<Site>, World)>,
    /// The runbooks that the sender may start; none for all.
    allowed: Option<Vec<String>>,
}

impl<'s> Routing<'s> {
    /// Those of the served environments that name the receiver.
    pub fn of(set: &'s Set, receiver: &str) -> Routing<'s> {
        let named = |site: &&Arc<Site>| site.environment.receivers.iter().any(|name| name == receiver);
        let sites = set.served().filter(named).map(|site| (site, site.world())).collect();
        Routing { set, sites, allowed: None }
    }

    /// That of one environment, whatever receivers it names.
    pub fn within(set: &'s Set, site: &'s Arc<Site>) -> Routing<'s> {
        Routing { set, sites: vec![(site, site.world())], allowed: None }
    }

    /// The same for a sender whose alerts may start these runbooks only.
    #[must_use]
    pub fn only(self, allowed: Option<&[String]>) -> Routing<'s> {
        Routing { allowed: allowed.map(<[String]>::to_vec), ..self }
    }

    fn may_start(&self, runbook: &str) -> bool {
        self.allowed.as_ref().is_none_or(|allowed| allowed.iter().any(|name| name == runbook))
    }

    /// Whether nobody takes alerts of this receiver.
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty()
    }

    /// A runbook with all it can start.
    pub(super) fn bundle(&self, name: &str) -> Option<&Arc<Bundle>> {
        self.set.bundle(name)
    }
}

/// What every alert of a message means, in the message's order: one for each route it takes in each environment, or one
/// that says why it takes none.
pub fn arrivals(routing: &Routing<'_>, receiver: &str, message: &Message, now: Timestamp) -> Vec<Arriving> {
    let mut arriving = Vec::with_capacity(message.alerts.len());
    for alert in &message.alerts {
        let before = arriving.len();
        for route in routing.set.alerts.routes.iter().filter(|route| route.takes(receiver, alert)) {
            let Some(bundle) = routing.bundle(&route.runbook) else { continue };
            for (site, world) in &routing.sites {
                let found = if routing.may_start(&route.runbook) {
                    lead(route, bundle, site, world, receiver, alert, now)
                } else {
                    Err(format!("the receiver `{receiver}` may not start `{}`", route.runbook))
                };
                let (routed, run) = match found {
                    Ok((routed, run)) => (Ok(routed), run),
                    Err(reason) => (Err(Ignored { runbook: route.runbook.clone(), reason }), None),
                };
                arriving.push(Arriving { arrival: Arrival::new(receiver, message, alert, routed), run });
            }
        }
        if arriving.len() == before {
            let reason = alert.flaw.clone().unwrap_or_else(|| "no route takes it".into());
            let ignored = Err(Ignored { runbook: "".into(), reason });
            arriving.push(Arriving { arrival: Arrival::new(receiver, message, alert, ignored), run: None });
        }
    }
    arriving
}

/// Where one alert goes under one route in one environment, and the run that would follow.
fn lead(
    route: &Arc<Route>,
    bundle: &Arc<Bundle>,
    site: &Site,
    world: &World,
    receiver: &str,
    alert: &Alert,
    now: Timestamp,
) -> Result<(Routed, Option<NewRun>), String> {
    let graph = bundle.graph();
    let environment: Text = site.environment.name.as_str().into();
    let rule = Rule {
        policy: route.policy.clone(),
        owner: graph.escalate.as_ref().map_or_else(|| graph.owner.clone(), |escalate| escalate.to.clone()),
        destructive: graph.risk == Risk::Destructive,
        writes: graph.risk != Risk::ReadOnly,
        frozen: site.environment.freeze,
        doubt: None,
    }
    .judging(alert.since(), now);
    let routed = |key| Routed { environment: environment.clone(), runbook: route.runbook.clone(), key, rule };
    if alert.status == Status::Resolved {
        if let Some(flaw) = &alert.flaw {
            return Err(flaw.clone());
        }
        // What it would tell a run does not matter any more.
        return Ok((routed(incident_key(route, &scope(alert))?), None));
    }
    let (key, inputs) = route_alert(route, graph, alert)?;
    for graph in bundle.graphs.values() {
        for (alias, used) in &graph.targets {
            if !used.is_met_by(site.environment.targets.kind(alias)) {
                return Err(format!("environment `{environment}` has no `{alias}` of kind `{}`", used.kind));
            }
        }
    }
    let start = Start {
        bundle: bundle.clone(),
        world: world.clone(),
        inputs,
        // The incident is the store's to fill in.
        trigger: Trigger::Alert { incident: "".into(), receiver: receiver.into(), proposed: false },
        plan: None,
    };
    let run = new_run(RunId(uuid::Uuid::nil()), &start, None, now).map_err(|error| error.to_string())?;
    Ok((routed(key), Some(run)))
}
