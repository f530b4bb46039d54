//! The service file, `serve.yaml`: where `farrier serve` listens, and who may do what there.
//!
//! Read [`Service`] (what is written). It holds no secret: tokens are written as hashes, which `farrier token` makes, and keys
//! and passwords as references.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::at::At;
use crate::codes;
use crate::diagnostic::{Diagnostic, Diagnostics, FileId, quoted};
use crate::read::read;
use crate::yaml::parse;

/// What the service needs besides the project: where it listens, and who may do what.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Service {
    /// Address and port of the API, such as `127.0.0.1:8440`. Without it, only the socket in the data directory is open.
    pub listen: Option<At<String>>,
    /// Certificate and key; without them, only this machine can be listened on.
    pub tls: Option<Tls>,
    /// `true`: something before this service ends TLS, so that it may listen without.
    #[serde(default)]
    pub behind_proxy: bool,
    /// The environments in which things start by themselves or by request. Without any, those that keep their runs where
    /// the project does.
    #[serde(default)]
    pub environments: Vec<At<String>>,
    /// Who may do what, by name.
    #[serde(default)]
    pub users: BTreeMap<String, User>,
    /// Who sends alerts, by the name in the webhook's address: `/webhooks/alertmanager/NAME`.
    #[serde(default)]
    pub receivers: BTreeMap<String, Receiver>,
    /// Roles of those who log in with a name and a password.
    pub login: Option<Login>,
    /// Where the spans of runs and steps are sent.
    pub telemetry: Option<Telemetry>,
    /// Runs at once.
    #[schemars(range(min = 1, max = 10_000))]
    pub runs: Option<At<u32>>,
    /// Tasks of one run at once.
    #[schemars(range(min = 1, max = 1_000))]
    pub parallel: Option<At<u32>>,
    /// Connections at once; the one that has been idle longest makes room for a new one.
    #[schemars(range(min = 16, max = 100_000))]
    pub connections: Option<At<u32>>,
    /// `true`: metrics are readable without a token.
    #[serde(default)]
    pub open_metrics: bool,
}

/// Where certificate and key are. Relative paths start at the folder of this file.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tls {
    /// The certificate with its chain, PEM.
    pub certificate: String,
    /// Its key, PEM.
    pub key: String,
    /// Authorities whose client certificates are accepted, PEM.
    pub client_authorities: Option<String>,
}

/// A collector of OpenTelemetry.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Telemetry {
    /// Where it takes traces over HTTP as JSON, such as `http://127.0.0.1:4318/v1/traces`. `http://` is taken for this machine alone.
    pub traces: At<String>,
    /// A file with the authorities (PEM) to trust, from the folder of this file; the machine's without it.
    pub authorities: Option<String>,
}

/// What somebody may do. Each role may do what those before it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Look at runbooks and runs.
    Viewer,
    /// Plan and start runs, and say what becomes of them.
    Operator,
    /// Approve what others have asked for.
    Approver,
    /// Read who did what; everything.
    Admin,
}

/// A person or a program with tokens of its own.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct User {
    /// What they may do everywhere.
    pub role: Option<Role>,
    /// What they may do besides in single areas: folders below `runbooks/`, such as `lifecycle` or `lifecycle/tools`.
    #[serde(default)]
    pub areas: BTreeMap<String, Role>,
    /// The hashes of their tokens, as `farrier token` prints them.
    #[serde(default)]
    pub tokens: Vec<TokenHash>,
    /// The SHA-256 fingerprints of their client certificates, in the same form: `sha256:…`.
    #[serde(default)]
    pub certificates: Vec<TokenHash>,
}

/// A sender of alerts.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Receiver {
    /// The hashes of its tokens.
    #[serde(default)]
    pub tokens: Vec<TokenHash>,
    /// The SHA-256 fingerprints of its client certificates, in the same form: `sha256:…`.
    #[serde(default)]
    pub certificates: Vec<TokenHash>,
    /// The runbooks that its alerts may start; all, when left out.
    pub runbooks: Option<Vec<String>>,
}

/// `sha256:` and 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct TokenHash(
    #[schemars(extend("pattern" = "^sha256:[0-9a-f]{64}$", "x-expected" = "`sha256:` and 64 hexadecimal digits, as `farrier token` prints"))]
     String,
);

impl TokenHash {
    /// The 32 bytes.
    pub fn bytes(&self) -> Option<[u8; 32]> {
        let digits = self.0.strip_prefix("sha256:")?;
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(digits.get(at * 2..at * 2 + 2)?, 16).ok()?;
        }
        (digits.len() == 64).then_some(bytes)
    }
}

/// Names and passwords are held against a directory; groups there give roles here.
#[derive(Debug, Clone, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Login {
    /// The environment that has the directory.
    pub environment: At<String>,
    /// Its target of kind `ldap`.
    pub target: At<String>,
    /// The entry that all people are below, such as `ou=people,dc=example,dc=org`.
    pub people: At<String>,
    /// The filter that finds one of them: `(uid=$name)`, where `$name` stands for the name that was given. It has to find one
    /// entry for a name, and none for those who may not log in, such as `(&(uid=$name)(!(pwdAccountLockedTime=*)))`.
    pub person: At<String>,
    /// The attribute with a person's name, by which journals, approvals and the audit know them. The default is `uid`.
    pub name: Option<String>,
    /// The entry that groups are directly below.
    pub groups: At<String>,
    /// The attribute of a group that names its members: by their entries, or `memberUid` by their names. The default is `member`.
    pub member: Option<String>,
    /// What members of a group may do, by the group's `cn`.
    #[serde(default)]
    pub roles: BTreeMap<String, GroupRole>,
}

/// What members of a group may do.
#[derive(Debug, Clone, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupRole {
    /// Everywhere.
    pub role: Option<Role>,
    /// In single areas.
    #[serde(default)]
    pub areas: BTreeMap<String, Role>,
}

/// Reads a service file. Nothing is returned when something in it is wrong.
pub fn read_service(file: FileId, bytes: &[u8], out: &mut Diagnostics) -> Option<Service> {
    let node = parse(file, bytes, out)?;
    let service = read::<Service>(&node, out)?;
    if let Some(listen) = &service.listen {
        match listen.parse::<SocketAddr>() {
            Err(_) => out.push(
                Diagnostic::new(
                    codes::WRONG_FORM,
                    listen.span,
                    format!("{} is not an address with a port", quoted(listen)),
                )
                .help("write it as `127.0.0.1:8440` or `[::1]:8440`"),
            ),
            Ok(address) if !address.ip().is_loopback() && service.tls.is_none() && !service.behind_proxy => {
                out.push(
                    Diagnostic::new(
                        codes::REFUSED_VALUE,
                        listen.span,
                        format!("tokens would travel to {} in plain text", quoted(listen)),
                    )
                    .help("add `tls:`, or say `behind_proxy: true` when something before it ends TLS"),
                );
            }
            Ok(_) => {}
        }
    }
    (!out.has_errors_in(file)).then_some(service)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_text(text: &str) -> Result<Service, String> {
        let mut out = Diagnostics::new();
        let file = out.add_file("serve.yaml", text.as_bytes());
        read_service(file, text.as_bytes(), &mut out).ok_or_else(|| out.render(false))
    }

    #[test]
    fn a_file_is_read() {
        let hash = format!("sha256:{}", "0f".repeat(32));
        let text = format!(
            "listen: 127.0.0.1:8440\nenvironments: [demo]\nusers:\n  ada: {{ role: viewer, areas: {{ lifecycle: \
             approver }}, tokens: ['{hash}'] }}\nreceivers:\n  main: {{ tokens: ['{hash}'], runbooks: [a] }}\nruns: 8\n"
        );
        let service = read_text(&text).unwrap();
        assert_eq!(service.users["ada"].tokens[0].bytes(), Some([15; 32]));
        assert_eq!(service.users["ada"].areas["lifecycle"], Role::Approver);
        assert!(Role::Viewer < Role::Operator && Role::Approver < Role::Admin);
    }

    #[test]
    fn mistakes_have_places_and_help() {
        for (text, expected) in [
            ("listen: localhost\n", "serve.yaml:1:9"),
            ("listen: 0.0.0.0:80\n", "behind_proxy: true"),
            ("users: { ada: { tokens: [secret] } }\n", "farrier token"),
            ("users: { ada: { role: root } }\n", "viewer"),
            ("lissen: 127.0.0.1:1\n", "listen"),
        ] {
            let said = read_text(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
        read_text("listen: 0.0.0.0:80\nbehind_proxy: true\n").unwrap();
    }
}
