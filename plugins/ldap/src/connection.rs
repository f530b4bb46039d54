//! A directory server: one multiplexed connection, opened again when it broke, and more for paged searches at once.
//!
//! **Rules.** Nothing is sent over a connection that others can read: `ldaps://`, StartTLS (required, not tried), a
//! socket file, or loopback. Certificates are always verified. Referrals are never followed. Every wait has an end.
//! An answer that is not whole is a failure.

use std::collections::HashSet;
use std::future::Future;
use std::net::IpAddr;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use farrier_action::{ConnectCx, Known, SecretRef};
use farrier_model::{Failure, FailureKind, Secret};
use ldap3::asn1::StructureTag;
use ldap3::controls::{Assertion, Control, ControlType, MakeCritical, PagedResults, RawControl};
use ldap3::{Ldap, LdapConnAsync, LdapConnSettings, LdapError, LdapResult, Mod, ResultEntry, SearchOptions};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use tokio::sync::{Mutex, Semaphore};
use url::{Host, Url};

use crate::directory::{Attribute, Directory, Each, Edit, Entry, Query, Refusal, Scope, WritableDirectory};
use crate::dn::Dn;
use crate::filter::Filter;

/// The Assertion control, RFC 4528.
const ASSERTION: &str = "1.3.6.1.1.12";

/// How many paged searches go on at once, each over a connection of its own.
const PAGED_AT_ONCE: usize = 4;

/// Where a server is and how to speak to it.
#[derive(Debug, Clone)]
pub(crate) struct Address {
    url: Url,
    start_tls: bool,
}

impl Address {
    /// Checks an address before anything is sent there.
    ///
    /// # Errors
    /// [`FailureKind::Input`] when it is no address, [`FailureKind::Denied`] when others could read along.
    pub(crate) fn parse(text: &str, start_tls: Option<bool>) -> Result<Address, Failure> {
        let input = |message: String| Failure::new(FailureKind::Input, message);
        let url = Url::parse(text).map_err(|error| input(format!("`{text}` is not an address: {error}")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(input("its address must not hold credentials; use `read_as` and `write_as`".into()));
        }
        let secure = match url.scheme() {
            "ldaps" | "ldapi" => {
                if start_tls == Some(true) {
                    return Err(input(format!(
                        "`start_tls` does not go with `{text}`, which is private already"
                    )));
                }
                return Ok(Address { url, start_tls: false });
            }
            "ldap" => is_loopback(&url),
            other => {
                return Err(input(format!("`{other}` in `{text}` is not a way to a directory")).help(
                    "use `ldaps://HOST`, `ldap://HOST` (with StartTLS), `ldapi://SOCKET` or `ldif:PATH`",
                ));
            }
        };
        let start_tls = start_tls.unwrap_or(!secure);
        if !start_tls && !secure {
            return Err(Failure::new(
                FailureKind::Denied,
                format!("`{text}` without StartTLS could be read and changed on its way; nothing was sent"),
            )
            .help("remove `start_tls: false`, or use `ldaps://`"));
        }
        Ok(Address { url, start_tls })
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.url.as_str().trim_end_matches('/'))
    }
}

fn is_loopback(url: &Url) -> bool {
    // The scheme is not one that the URL standard knows, so an address comes as a domain.
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => {
            name.eq_ignore_ascii_case("localhost")
                || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        }
        None => false,
    }
}

/// How to open a connection.
pub(crate) struct Settings {
    pub(crate) address: Address,
    pub(crate) bind: Option<(String, SecretRef)>,
    pub(crate) ca_file: Option<String>,
    pub(crate) connect_timeout: Duration,
    pub(crate) timeout: Duration,
    pub(crate) cx: ConnectCx,
}

/// One side of a target.
pub(crate) struct Connection {
    settings: Settings,
    tls: Option<Arc<rustls::ClientConfig>>,
    live: Mutex<Option<Ldap>>,
    /// Connections that no paged search uses now. OpenLDAP remembers one position in one paged search per connection,
    /// so that a second one at the same time would end both.
    idle: std::sync::Mutex<Vec<Ldap>>,
    paging: Semaphore,
    asserts: bool,
}

impl Connection {
    /// Opens a connection.
    pub(crate) async fn open(settings: Settings) -> Result<Connection, Failure> {
        let tls = match settings.address.url.scheme() {
            "ldapi" => None,
            "ldap" if !settings.address.start_tls => None,
            _ => {
                let ca_file = settings.ca_file.as_ref().map(|file| settings.cx.path(file));
                Some(tls_config(ca_file.as_deref())?)
            }
        };
        let connection = Connection {
            settings,
            tls,
            live: Mutex::new(None),
            idle: std::sync::Mutex::default(),
            paging: Semaphore::new(PAGED_AT_ONCE),
            asserts: false,
        };
        let ldap = connection.connect().await?;
        let idle = std::sync::Mutex::new(vec![ldap.clone()]);
        Ok(Connection { live: Mutex::new(Some(ldap)), idle, ..connection })
    }

    /// Opens a connection to write with, and asks what the server can compare by itself.
    pub(crate) async fn open_to_write(settings: Settings) -> Result<Connection, Failure> {
        let connection = Connection::open(settings).await?;
        let mut asserts = false;
        connection
            .search(&Query::entry(&Dn::default(), vec!["supportedControl".into()]), &mut |root| {
                asserts = root.values("supportedControl").iter().any(|oid| oid == ASSERTION.as_bytes());
                Ok(())
            })
            .await
            .or_else(|refusal| match refusal.code {
                // A server that hides its root entry from us: go on without.
                Some(_) => Ok(()),
                None => Err(refusal.failure),
            })?;
        Ok(Connection { asserts, ..connection })
    }

    /// A handle on the connection, opened again when it broke, and whether it is a new one.
    async fn handle(&self) -> Result<(Ldap, bool), Failure> {
        let mut live = self.live.lock().await;
        if let Some(ldap) = live.as_mut()
            && !ldap.is_closed()
        {
            return Ok((ldap.clone(), false));
        }
        let ldap = self.connect().await?;
        *live = Some(ldap.clone());
        Ok((ldap, true))
    }

    /// A connection that no other paged search uses, and whether it is a new one.
    async fn take_idle(&self) -> Result<(Ldap, bool), Failure> {
        loop {
            let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
            let Some(mut ldap) = idle else { return Ok((self.connect().await?, true)) };
            if !ldap.is_closed() {
                return Ok((ldap, false));
            }
        }
    }

    /// A new connection for the account of this side.
    async fn connect(&self) -> Result<Ldap, Failure> {
        let mut ldap = self.dial().await?;
        if let Some((dn, password)) = &self.settings.bind {
            let password: Secret = password.resolve(&self.settings.cx).await?;
            accept(&self.bind(&mut ldap, dn, &password).await?, &format!("bind as `{dn}`"))?;
        }
        Ok(ldap)
    }

    async fn bind(&self, ldap: &mut Ldap, dn: &str, password: &Secret) -> Result<LdapResult, Failure> {
        if password.reveal().is_empty() {
            // RFC 4513 section 5.1.2: a name without a password is an anonymous bind that looks like success.
            return Err(Failure::new(FailureKind::Denied, format!("the password of `{dn}` is empty")));
        }
        let answer = ldap.with_timeout(self.settings.timeout).simple_bind(dn, password.reveal()).await;
        answer.map_err(|error| self.operation_failure(&error, &format!("bind as `{dn}`")).failure)
    }

    /// A new connection as nobody, private and verified as its address says.
    async fn dial(&self) -> Result<Ldap, Failure> {
        let Settings { address, connect_timeout, .. } = &self.settings;
        let mut settings =
            LdapConnSettings::new().set_conn_timeout(*connect_timeout).set_starttls(address.start_tls);
        if let Some(tls) = &self.tls {
            settings = settings.set_config(tls.clone());
        }
        let opening = LdapConnAsync::from_url_with_settings(settings, &address.url);
        // The library does not time the opening of a socket file.
        let (connection, ldap) = match tokio::time::timeout(*connect_timeout, opening).await {
            Err(_) | Ok(Err(LdapError::Timeout { .. })) => {
                let waited = farrier_model::time::format_duration(*connect_timeout);
                return Err(Failure::new(
                    FailureKind::Unreachable,
                    format!("`{address}` did not answer within {waited}"),
                ));
            }
            Ok(Err(error)) => return Err(self.connect_failure(&error)),
            Ok(Ok(pair)) => pair,
        };
        tokio::spawn(async move {
            if let Err(error) = connection.drive().await {
                tracing::debug!(%error, "a connection to a directory ended");
            }
        });
        Ok(ldap)
    }

    fn connect_failure(&self, error: &LdapError) -> Failure {
        let address = &self.settings.address;
        match error {
            LdapError::LdapResult { result } if address.start_tls => Failure::new(
                FailureKind::Refused,
                format!("`{address}` does not offer StartTLS (LDAP result {}: {}); nothing else was sent", result.rc, result.text),
            )
            .help("use `ldaps://`, or switch StartTLS on at the server"),
            LdapError::Io { source } if source.get_ref().is_some_and(<dyn std::error::Error + Send + Sync>::is::<rustls::Error>) => {
                Failure::new(FailureKind::Unreachable, format!("no private connection to `{address}`: {source}"))
                    .help("name the authority that signed its certificate with `ca_file`, and the host as the certificate does")
            }
            LdapError::Io { source } => {
                Failure::new(FailureKind::Unreachable, format!("cannot connect to `{address}`: {source}"))
            }
            other => Failure::new(FailureKind::Unreachable, format!("cannot connect to `{address}`: {other}")),
        }
    }

    /// An operation got no answer.
    fn operation_failure(&self, error: &LdapError, doing: &str) -> Refusal {
        let address = &self.settings.address;
        let failure = match error {
            LdapError::Timeout { .. } => {
                let waited = farrier_model::time::format_duration(self.settings.timeout);
                Failure::new(FailureKind::Timeout, format!("cannot {doing}: no answer within {waited}"))
            }
            LdapError::FilterParsing | LdapError::AddNoValues => {
                Failure::new(FailureKind::Internal, format!("cannot {doing}: {error}"))
            }
            LdapError::Io { .. }
            | LdapError::OpSend { .. }
            | LdapError::ResultRecv { .. }
            | LdapError::IdScrubSend { .. }
            | LdapError::EndOfStream => Failure::new(
                FailureKind::Unreachable,
                format!("cannot {doing}: the connection to `{address}` broke"),
            ),
            other => Failure::new(FailureKind::Unreachable, format!("cannot {doing}: {other}")),
        };
        failure.into()
    }

    /// One request of a search: hands over its entries and returns the cookie of the next page, if there is one.
    async fn page(
        &self,
        (mut ldap, opened_now): (Ldap, bool),
        query: &Query,
        request: Request<'_>,
        each: &mut Each<'_>,
        doing: &str,
    ) -> Result<(Vec<u8>, usize), Interrupted> {
        ldap.with_timeout(self.settings.timeout);
        let seconds = i32::try_from(self.settings.timeout.as_secs()).unwrap_or(i32::MAX);
        ldap.with_search_options(SearchOptions::new().timelimit(seconds.max(1)));
        if let Some(size) = request.page_size {
            let size = i32::try_from(size).unwrap_or(i32::MAX);
            ldap.with_controls(PagedResults { size, cookie: request.cookie.to_vec() }.critical());
        }
        let scope = match query.scope {
            Scope::Base => ldap3::Scope::Base,
            Scope::One => ldap3::Scope::OneLevel,
            Scope::Sub => ldap3::Scope::Subtree,
        };
        // A connection that broke while nobody used it shows only now. Nothing was handed over yet, so asking again
        // over a new one is the same search.
        let broken = |error: LdapError, taken: usize| {
            let refusal = self.operation_failure(&error, doing);
            let ask_again = !opened_now && taken == 0 && refusal.failure.kind == FailureKind::Unreachable;
            Interrupted { refusal, ask_again }
        };
        let attributes = query.attributes.as_slice();
        let opening = ldap.streaming_search(request.base, scope, request.filter, attributes).await;
        let mut stream = match opening {
            Ok(stream) => stream,
            Err(error) => {
                self.live.lock().await.take();
                return Err(broken(error, 0));
            }
        };
        let mut taken = 0;
        let problem = loop {
            match stream.next().await {
                Ok(None) => break None,
                Ok(Some(found)) if found.is_ref() => {
                    break Some(Refusal::referral(doing, &ldap3::parse_refs(found.0)));
                }
                Ok(Some(found)) if found.is_intermediate() => {}
                Ok(Some(found)) => {
                    taken += 1;
                    if request.room.is_some_and(|room| taken > room) {
                        break Some(Refusal::of_code(
                            crate::directory::code::SIZE_LIMIT_EXCEEDED,
                            doing,
                            "",
                            "",
                        ));
                    }
                    let entry = read_entry(found).ok_or_else(|| {
                        Failure::new(
                            FailureKind::Refused,
                            format!("cannot {doing}: the answer is not an entry"),
                        )
                    });
                    if let Err(failure) = entry.and_then(&mut *each) {
                        break Some(failure.into());
                    }
                }
                Err(error) => {
                    abandon(&mut stream).await;
                    self.live.lock().await.take();
                    return Err(broken(error, taken));
                }
            }
        };
        if let Some(refusal) = problem {
            abandon(&mut stream).await;
            return Err(refusal.into());
        }
        let result = stream.finish().await;
        accept(&result, doing)?;
        if request.page_size.is_none() {
            return Ok((Vec::new(), taken));
        }
        let Some(cookie) = next_cookie(&result.ctrls) else {
            let failure = Failure::new(
                FailureKind::Refused,
                format!("cannot {doing}: the directory does not say whether there are more pages"),
            );
            return Err(Refusal::from(failure).into());
        };
        Ok((cookie, taken))
    }

    /// A write and its answer. When none comes, the write may have happened.
    async fn write<F>(&self, doing: &str, operation: impl FnOnce(Ldap) -> F) -> Result<(), Refusal>
    where
        F: Future<Output = Result<LdapResult, LdapError>>,
    {
        let (mut ldap, _) = self.handle().await?;
        ldap.with_timeout(self.settings.timeout);
        match operation(ldap).await {
            Ok(result) => accept(&result, doing),
            Err(error) => {
                self.live.lock().await.take();
                let mut refusal = self.operation_failure(&error, doing);
                if refusal.failure.kind != FailureKind::Internal {
                    refusal.failure.in_doubt = true;
                }
                Err(refusal)
            }
        }
    }
}

/// One request of a search.
#[derive(Clone, Copy)]
struct Request<'a> {
    base: &'a str,
    filter: &'a str,
    page_size: Option<usize>,
    cookie: &'a [u8],
    room: Option<usize>,
}

/// A search request that did not come to its end.
struct Interrupted {
    refusal: Refusal,
    ask_again: bool,
}

impl From<Refusal> for Interrupted {
    fn from(refusal: Refusal) -> Interrupted {
        Interrupted { refusal, ask_again: false }
    }
}

#[async_trait]
impl Directory for Connection {
    async fn search(&self, query: &Query, each: &mut Each<'_>) -> Result<(), Refusal> {
        let base = query.base.to_string();
        let filter = query.filter.to_string();
        let doing = describe(query);
        let mut cookie = Vec::new();
        let mut room = query.size_limit;
        let mut first = true;
        let paged = query.page_size.is_some();
        // The semaphore is never closed.
        let _turn = if paged { self.paging.acquire().await.ok() } else { None };
        let (mut ldap, mut opened_now) = if paged { self.take_idle().await? } else { self.handle().await? };
        loop {
            // One entry more than there is room for tells that there are more.
            let page_size =
                query.page_size.map(|size| size.min(room.map_or(usize::MAX, |room| room + 1)).max(1));
            let request = Request { base: &base, filter: &filter, page_size, cookie: &cookie, room };
            let answer = match self.page((ldap.clone(), opened_now), query, request, each, &doing).await {
                // A cookie belongs to the connection that gave it, so a later page cannot be asked for again.
                Err(Interrupted { ask_again: true, .. }) if first => {
                    (ldap, opened_now) = if paged {
                        // What broke one broke the others.
                        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
                        self.take_idle().await?
                    } else {
                        self.handle().await?
                    };
                    self.page((ldap.clone(), opened_now), query, request, each, &doing).await
                }
                answer => answer,
            };
            let (next, taken) = answer.map_err(|interrupted| interrupted.refusal)?;
            if next.is_empty() {
                if paged {
                    self.idle.lock().unwrap_or_else(PoisonError::into_inner).push(ldap);
                }
                return Ok(());
            }
            first = false;
            cookie = next;
            room = room.map(|room| room.saturating_sub(taken));
        }
    }

    async fn accepts(&self, dn: &Dn, password: &Secret) -> Result<bool, Failure> {
        use crate::directory::code::{
            CONSTRAINT_VIOLATION, INAPPROPRIATE_AUTHENTICATION, INVALID_CREDENTIALS, NO_SUCH_OBJECT,
            UNWILLING,
        };
        let name = dn.to_string();
        let mut ldap = self.dial().await?;
        let answer = self.bind(&mut ldap, &name, password).await;
        // Whatever came of it, nobody stays bound.
        let _ = ldap.unbind().await;
        // This password is no secret of the environment, whose own are kept out of what is said anyway.
        let mut known = Known::default();
        known.learn(password);
        let result = answer.map_err(|failure| known.failure(failure))?;
        match result.rc {
            // Wrong, without a password, locked or expired: each server has its own way to say no.
            INVALID_CREDENTIALS
            | INAPPROPRIATE_AUTHENTICATION
            | NO_SUCH_OBJECT
            | UNWILLING
            | CONSTRAINT_VIOLATION => Ok(false),
            _ => accept(&result, &format!("bind as `{name}`"))
                .map(|()| true)
                .map_err(|refusal| known.failure(refusal.failure)),
        }
    }
}

#[async_trait]
impl WritableDirectory for Connection {
    fn asserts(&self) -> bool {
        self.asserts
    }

    async fn modify(&self, dn: &Dn, edits: &[Edit], only_if: Option<&Filter>) -> Result<(), Refusal> {
        let set = |attribute: &Attribute| attribute.values.iter().cloned().collect::<HashSet<Vec<u8>>>();
        let mods: Vec<Mod<Vec<u8>>> = edits
            .iter()
            .map(|edit| match edit {
                Edit::Add(attribute) => Mod::Add(attribute.name.as_bytes().to_vec(), set(attribute)),
                Edit::Delete(attribute) => Mod::Delete(attribute.name.as_bytes().to_vec(), set(attribute)),
            })
            .collect();
        let name = dn.to_string();
        let control = only_if.map(assertion);
        self.write(&format!("modify `{name}`"), |mut ldap| async move {
            if let Some(control) = control {
                ldap.with_controls(vec![control]);
            }
            ldap.modify(&name, mods).await
        })
        .await
    }

    async fn add(&self, dn: &Dn, attributes: &[Attribute]) -> Result<(), Refusal> {
        let name = dn.to_string();
        let attributes: Vec<(Vec<u8>, HashSet<Vec<u8>>)> = attributes
            .iter()
            .map(|attribute| (attribute.name.as_bytes().to_vec(), attribute.values.iter().cloned().collect()))
            .collect();
        self.write(&format!("add `{name}`"), |mut ldap| async move { ldap.add(&name, attributes).await })
            .await
    }

    async fn delete(&self, dn: &Dn, only_if: Option<&Filter>) -> Result<(), Refusal> {
        let name = dn.to_string();
        let control = only_if.map(assertion);
        self.write(&format!("delete `{name}`"), |mut ldap| async move {
            if let Some(control) = control {
                ldap.with_controls(vec![control]);
            }
            ldap.delete(&name).await
        })
        .await
    }
}

/// A search in words, for failures.
pub(crate) fn describe(query: &Query) -> String {
    match query.scope {
        Scope::Base => format!("read `{}`", query.base),
        Scope::One | Scope::Sub => format!("search under `{}`", query.base),
    }
}

fn assertion(filter: &Filter) -> RawControl {
    let mut control: RawControl = Assertion::new(filter.to_string());
    // A server that would ignore it must refuse instead.
    control.crit = true;
    control
}

fn accept(result: &LdapResult, doing: &str) -> Result<(), Refusal> {
    if !result.refs.is_empty() || result.rc == 10 {
        return Err(Refusal::referral(doing, &result.refs));
    }
    match result.rc {
        0 => Ok(()),
        code => Err(Refusal::of_code(code, doing, &result.text, &result.matched)),
    }
}

fn next_cookie(controls: &[Control]) -> Option<Vec<u8>> {
    controls.iter().find_map(|control| match control {
        Control(Some(ControlType::PagedResults), raw) if raw.val.is_some() => {
            Some(raw.parse::<PagedResults>().cookie)
        }
        _ => None,
    })
}

/// Tells the server to stop, so that the rest of an unwanted answer does not fill the connection.
async fn abandon<'a>(stream: &mut ldap3::SearchStream<'a, String, &'a [String]>) {
    let ldap = stream.ldap_handle();
    let id = ldap.last_id();
    let _ = ldap.abandon(id).await;
    stream.finish().await;
}

/// An entry of the protocol's answer; nothing when it is malformed.
fn read_entry(found: ResultEntry) -> Option<Entry> {
    let mut parts = found.0.expect_constructed()?.into_iter();
    let dn = String::from_utf8(parts.next()?.expect_primitive()?).ok()?;
    let mut attributes = Vec::new();
    for attribute in parts.next()?.expect_constructed()? {
        let mut halves = attribute.expect_constructed()?.into_iter();
        let name = String::from_utf8(halves.next()?.expect_primitive()?).ok()?.into();
        let values = halves.next()?.expect_constructed()?.into_iter().map(StructureTag::expect_primitive);
        attributes.push(Attribute { name, values: values.collect::<Option<_>>()? });
    }
    Some(Entry { dn, attributes })
}

/// Trusts the authorities in `ca_file`, or the system's. There is no way to trust anyone.
fn tls_config(ca_file: Option<&Path>) -> Result<Arc<rustls::ClientConfig>, Failure> {
    let mut roots = rustls::RootCertStore::empty();
    if let Some(file) = ca_file {
        let shown = file.display();
        let fail = |reason: String| {
            Failure::new(FailureKind::Input, format!("cannot use `ca_file` {shown}: {reason}"))
        };
        for certificate in CertificateDer::pem_file_iter(file).map_err(|error| fail(error.to_string()))? {
            let certificate = certificate.map_err(|error| fail(error.to_string()))?;
            roots.add(certificate).map_err(|error| fail(error.to_string()))?;
        }
        if roots.is_empty() {
            return Err(fail("it holds no certificate".into()));
        }
    } else {
        let system = rustls_native_certs::load_native_certs();
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            return Err(Failure::new(
                FailureKind::Unreachable,
                "this machine trusts no certificate authority",
            )
            .help("install the system's CA certificates, or name a `ca_file`"));
        }
    }
    // The provider is named here, so that nothing depends on what else the process has installed.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| Failure::new(FailureKind::Internal, format!("no TLS: {error}")))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_others_could_read_are_refused() {
        for (url, start_tls, wanted) in [
            ("ldaps://ldap.example.org", None, Ok(false)),
            ("ldap://ldap.example.org", None, Ok(true)),
            ("ldap://ldap.example.org", Some(true), Ok(true)),
            ("ldap://ldap.example.org", Some(false), Err(FailureKind::Denied)),
            ("ldap://10.0.0.1", Some(false), Err(FailureKind::Denied)),
            ("ldap://127.0.0.1:3389", None, Ok(false)),
            ("ldap://127.0.0.1", Some(true), Ok(true)),
            ("ldap://[::1]:389", None, Ok(false)),
            ("ldap://localhost", None, Ok(false)),
            ("ldap://localhost.example.org", Some(false), Err(FailureKind::Denied)),
            ("ldap://127.0.0.1.example.org", Some(false), Err(FailureKind::Denied)),
            ("ldapi://%2Frun%2Fldapi", None, Ok(false)),
            ("ldaps://ldap.example.org", Some(true), Err(FailureKind::Input)),
            ("http://ldap.example.org", None, Err(FailureKind::Input)),
            ("ldap.example.org", None, Err(FailureKind::Input)),
            ("ldaps://user:secret@ldap.example.org", None, Err(FailureKind::Input)),
        ] {
            let address = Address::parse(url, start_tls);
            assert_eq!(address.map(|a| a.start_tls).map_err(|f| f.kind), wanted, "{url} {start_tls:?}");
        }
    }
}
