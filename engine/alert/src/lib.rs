//! Alertmanager's payload and matchers, routes from alerts to runbooks, and what an alert does. Pure: "now" is an argument.
