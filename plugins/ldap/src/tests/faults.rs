//! What goes wrong: a server that is down, limits, answers that stop in the middle, referrals, accounts, files.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::File;

use farrier_action::harness::Case;
use farrier_action::{TargetKind, WriteCx};
use farrier_model::{Failure, FailureKind, Scope, Value};
use farrier_testkit::proxy::{CutProxy, Direction};
use farrier_testkit::slapd::Options;

use super::proxy::Proxy;
use super::{Place, json, registry};
use crate::directory::{Attribute, Edit, Query, Scope as SearchScope};
use crate::dn::Dn;
use crate::filter::Filter;
use crate::target::{Ldap, LdapConfig, LdapReader};

const PEOPLE: &str = "ou=people,dc=wikimedia,dc=org";

/// People in a number that makes several pages.
fn crowd(count: usize) -> String {
    let mut ldif = String::new();
    for number in 0..count {
        let _ = write!(
            ldif,
            "dn: uid=user{number},{PEOPLE}\nobjectClass: inetOrgPerson\nuid: user{number}\ncn: User {number}\nsn: User\n\n"
        );
    }
    ldif
}

fn search(page_size: Option<usize>, size_limit: Option<usize>) -> Query {
    Query {
        base: Dn::parse(PEOPLE).unwrap(),
        scope: SearchScope::One,
        filter: Filter::parse("(uid=user*)", &BTreeMap::new()).unwrap(),
        attributes: vec!["uid".into()],
        size_limit,
        page_size,
    }
}

async fn count(reader: &LdapReader, query: &Query) -> Result<usize, Failure> {
    let mut count = 0;
    let mut each = |_| {
        count += 1;
        Ok(())
    };
    reader.directory.search(query, &mut each).await?;
    Ok(count)
}

async fn reader_at(place: &Place, config: Value) -> Result<LdapReader, Failure> {
    Ldap::reader(config.read::<LdapConfig>().unwrap(), &place.cx()).await
}

fn with(config: &Value, key: &str, value: Value) -> Value {
    let mut entries: BTreeMap<String, Value> =
        config.as_map().unwrap().iter().map(|(key, value)| (key.to_string(), value.clone())).collect();
    entries.insert(key.to_owned(), value);
    Value::map(entries)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_down_is_unreachable_and_comes_back() {
    let mut place = Place::server_with(Options { entries: crowd(20), ..Options::default() });
    let reader = place.reader().await;
    assert_eq!(count(&reader, &search(Some(7), None)).await, Ok(20));
    let config = place.config();

    place.slapd().stop();
    let failure = count(&reader, &search(Some(7), None)).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    let failure = reader_at(&place, config).await.err().expect("nobody listens");
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    assert!(failure.message.starts_with("cannot connect to `ldap://127.0.0.1:"), "{failure}");

    place.slapd().start_again();
    super::wait_for(place.slapd());
    assert_eq!(count(&reader, &search(Some(7), None)).await, Ok(20), "the same reader connects again");
}

/// OpenLDAP remembers one position per connection: searches that took turns on one would end each other.
#[tokio::test(flavor = "multi_thread")]
async fn many_paged_searches_at_once_each_get_everything() {
    let place = Place::server_with(Options { entries: crowd(60), size_limit: Some(5), ..Options::default() });
    let reader = std::sync::Arc::new(place.reader().await);
    let searches: Vec<_> = (1..=12)
        .map(|number| {
            let reader = reader.clone();
            tokio::spawn(async move { count(&reader, &search(Some(number % 5 + 1), None)).await })
        })
        .collect();
    for found in searches {
        assert_eq!(found.await.unwrap(), Ok(60));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_limit_of_the_server_is_an_error_and_never_a_part() {
    let limits = "limits dn.exact=cn=proxyagent,ou=profile,dc=wikimedia,dc=org size.soft=5 size.hard=5 size.prtotal=12\n";
    let options = Options { entries: crowd(20), configuration: limits.into(), ..Options::default() };
    let place = Place::server_with(options);
    let reader = place.reader().await;
    for query in [search(None, None), search(Some(4), None), search(Some(500), None)] {
        let failure = count(&reader, &query).await.expect_err("the limit is 5 in one answer, 12 in pages");
        assert_eq!(failure.kind, FailureKind::Limit, "{failure}");
    }

    // Per request only, as on production servers: pages get everything.
    let place = Place::server_with(Options { entries: crowd(20), size_limit: Some(5), ..Options::default() });
    let reader = place.reader().await;
    assert_eq!(
        count(&reader, &search(None, None)).await.map_err(|failure| failure.kind),
        Err(FailureKind::Limit)
    );
    assert_eq!(count(&reader, &search(Some(4), None)).await, Ok(20));
    // The environment's own limit holds for every search.
    let registry = registry();
    let input = json(
        r#"{"target": "directory", "base": "dc=wikimedia,dc=org", "filter": "(uid=user*)", "attributes": {"uid": "string"}, "size_limit": 100}"#,
    );
    let case = Case {
        registry: &registry,
        action: "ldap.search",
        input: input.clone(),
        targets: place.targets_of(with(&place.config(), "size_limit", Value::Int(19))),
        scope: Scope::default(),
        observe: Box::new(|| unreachable!()),
        disturb: None,
        bad_inputs: vec![],
    };
    let failure = registry.bind("ldap.search", &input).unwrap().plan(&case.read_cx()).await.unwrap_err();
    assert_eq!((failure.kind, failure.target.as_deref()), (FailureKind::Limit, Some("directory")));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_stops_anywhere_is_an_error() {
    let mut place = Place::server_with(Options { entries: crowd(30), ..Options::default() });
    let proxy = Proxy::before(&place.slapd().url(), "127.0.0.1", &[]);
    let config = with(&place.config(), "url", Value::text(proxy.url()));
    let reader = reader_at(&place, config.clone()).await.unwrap();
    assert_eq!(count(&reader, &search(Some(10), None)).await, Ok(30));
    let whole = proxy.passed();

    for cut in (0..whole).step_by(whole / 40) {
        proxy.limit(cut);
        let answer = match reader_at(&place, config.clone()).await {
            Ok(reader) => count(&reader, &search(Some(10), None)).await,
            Err(failure) => Err(failure),
        };
        let failure = answer.expect_err("an answer was cut off and taken for whole");
        assert_eq!(failure.kind, FailureKind::Unreachable, "after {cut} of {whole} bytes: {failure}");
    }
    proxy.limit(usize::MAX);
    assert_eq!(count(&reader, &search(Some(10), None)).await, Ok(30));
}

/// The connection ends when the first page is whole and nothing of the second one has come. What came is no answer, and whoever asks
/// again begins at the beginning.
#[tokio::test(flavor = "multi_thread")]
async fn a_first_page_without_the_second_is_no_answer() {
    let mut place = Place::server_with(Options { entries: crowd(501), ..Options::default() });
    let proxy = CutProxy::to_url(&place.slapd().url());
    let config = with(&place.config(), "url", Value::text(proxy.url()));
    let reader = reader_at(&place, config.clone()).await.unwrap();

    proxy.cut_before(Direction::ToClient, "uid=user500,");
    let mut seen = 0;
    let mut each = |_| {
        seen += 1;
        Ok(())
    };
    let query = search(Some(500), None);
    let failure: Failure = reader.directory.search(&query, &mut each).await.unwrap_err().into();
    assert_eq!((failure.kind, seen, proxy.cuts()), (FailureKind::Unreachable, 500, 1), "{failure}");
    assert_eq!(count(&reader, &query).await, Ok(501), "the same reader, over another connection");

    // A step has all of it or nothing.
    let registry = registry();
    let input = json(
        r#"{"target": "directory", "base": "ou=people,dc=wikimedia,dc=org", "filter": "(uid=user*)", "attributes": {"uid": "string"}}"#,
    );
    let case = Case {
        registry: &registry,
        action: "ldap.search",
        input: input.clone(),
        targets: place.targets_of(config),
        scope: Scope::default(),
        observe: Box::new(|| unreachable!()),
        disturb: None,
        bad_inputs: vec![],
    };
    let action = registry.bind("ldap.search", &input).unwrap();
    proxy.cut_before(Direction::ToClient, "uid=user500,");
    let failure = action.plan(&case.read_cx()).await.unwrap_err();
    assert_eq!((failure.kind, proxy.cuts()), (FailureKind::Unreachable, 2), "{failure}");
    assert!(failure.kind.may_pass(), "`retry` asks again");
    let found = action.plan(&case.read_cx()).await.unwrap().output.unwrap();
    assert_eq!(found.get("entries").and_then(Value::as_list).map(<[Value]>::len), Some(501));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_whose_answer_is_lost_is_in_doubt_and_can_be_repeated() {
    let mut place = Place::server();
    let proxy = Proxy::before(&place.slapd().url(), "127.0.0.1", &[]);
    let config = with(&place.config(), "url", Value::text(proxy.url()));
    let registry = registry();
    let input = json(
        r#"{"target": "directory", "base": "ou=people,dc=wikimedia,dc=org", "rdn": ["uid", "alice"], "set": {"loginShell": "/bin/false"}}"#,
    );
    let action = registry.bind("ldap.modify", &input).unwrap();
    let case = Case {
        registry: &registry,
        action: "ldap.modify",
        input,
        targets: place.targets_of(config.clone()),
        scope: Scope::default(),
        observe: Box::new(|| unreachable!()),
        disturb: None,
        bad_inputs: vec![],
    };
    let plan = action.plan(&case.read_cx()).await.unwrap();
    let write = WriteCx::after_intent(case.read_cx());

    // Learn how much the server says on a connection before it answers the write, then let it say no more.
    let quiet = Ldap::writer(config.read::<LdapConfig>().unwrap(), &place.cx()).await.unwrap();
    let names = vec!["loginShell".to_owned(), crate::compare::VERSION.to_owned()];
    crate::directory::fetch(&*quiet.directory, &Dn::parse(&plan.changes[0].object).unwrap(), names)
        .await
        .unwrap();
    proxy.limit(proxy.passed());
    let failure = action.apply(&write, &plan.changes).await.unwrap_err();
    assert_eq!((failure.kind, failure.in_doubt), (FailureKind::Unreachable, true), "{failure}");
    assert!(
        place.slapd().search("(uid=alice)", &["loginShell"]).contains("/bin/false"),
        "the write did happen"
    );

    proxy.limit(usize::MAX);
    let mark = place.slapd().mark();
    action.apply(&write, &plan.changes).await.unwrap();
    assert_eq!(place.slapd().writes_since(mark), Vec::<String>::new(), "a finished effect is not repeated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_says_nothing_ends_in_a_timeout() {
    let mut place = Place::server();
    let config = with(&place.config(), "url", Value::text(Proxy::silent().url()));
    let config = with(&config, "timeout", Value::text("50ms"));
    let failure = reader_at(&place, config.clone()).await.err().expect("nobody answers the bind");
    assert_eq!(failure.kind, FailureKind::Timeout, "{failure}");
    // Before StartTLS is through, the time for connecting counts.
    let config = with(&with(&config, "start_tls", Value::Bool(true)), "connect_timeout", Value::text("50ms"));
    let failure = reader_at(&place, config).await.err().expect("nobody answers StartTLS");
    assert_eq!(failure.kind, FailureKind::Unreachable, "{failure}");
    assert!(failure.message.ends_with("did not answer within 50ms"), "{failure}");
    let _ = place.slapd();
}

#[tokio::test(flavor = "multi_thread")]
async fn referrals_are_not_followed() {
    let mut place = Place::server_with(Options { entries: crowd(3), ..Options::default() });
    place.slapd().add_ldif(
        "dn: ou=elsewhere,ou=people,dc=wikimedia,dc=org\nobjectClass: referral\nobjectClass: extensibleObject\nou: \
         elsewhere\nref: ldap://other.example.org/ou=elsewhere,dc=example,dc=org\n",
    );
    let reader = place.reader().await;
    let failure = count(&reader, &search(Some(10), None)).await.expect_err("part of the answer is elsewhere");
    assert_eq!(failure.kind, FailureKind::Refused);
    assert!(failure.message.contains("refers to `ldap://other.example.org/"), "{failure}");
    let writer = place.writer().await;
    let below = Dn::parse("uid=x,ou=elsewhere,ou=people,dc=wikimedia,dc=org").unwrap();
    let edit = [Edit::Add(Attribute { name: "mail".into(), values: vec![b"x@example.org".to_vec()] })];
    let refusal = writer.directory.modify(&below, &edit, None).await.unwrap_err();
    assert!(refusal.failure.message.contains("referrals are not followed"), "{}", refusal.failure);
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_matter() {
    let mut place = Place::server_with(Options { entries: crowd(3), ..Options::default() });
    let url = place.slapd().url();
    let password = place.cx().path("wrong");
    std::fs::write(&password, "not-the-password").unwrap();
    std::fs::set_permissions(&password, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let account = |dn: &str, file: &str| format!(r#"{{"dn": "{dn}", "password": {{"file": "{file}"}}}}"#);
    let reader_dn = place.slapd().reader_dn.clone();

    let config = json(&format!(r#"{{"url": "{url}", "read_as": {}}}"#, account(&reader_dn, "wrong")));
    let failure = reader_at(&place, config.clone()).await.err().expect("the password is wrong");
    assert_eq!(failure.kind, FailureKind::Denied);
    assert!(
        failure.message.contains(&reader_dn) && !failure.message.contains("not-the-password"),
        "{failure}"
    );
    let failure =
        Ldap::writer(config.read().unwrap(), &place.cx()).await.err().expect("there is no `write_as`");
    assert_eq!(failure.kind, FailureKind::Denied);
    assert!(failure.message.contains("can only be read"), "{failure}");

    // A name without a password would be an anonymous bind that looks like success.
    std::fs::write(&password, "").unwrap();
    let failure = reader_at(&place, config).await.err().expect("the password is empty");
    assert_eq!(failure.kind, FailureKind::Denied);

    // Anonymous reading is allowed, and so is a socket file.
    let ldapi = place.slapd().ldapi_url();
    for url in [url, ldapi] {
        let anonymous = reader_at(&place, json(&format!(r#"{{"url": "{url}"}}"#))).await.unwrap();
        assert_eq!(count(&anonymous, &search(Some(2), None)).await, Ok(3), "{url}");
    }

    // An account without the right to write is denied, and nothing is written.
    let config = place.config();
    let config = with(&config, "write_as", config.get("read_as").unwrap().clone());
    let writer = Ldap::writer(config.read().unwrap(), &place.cx()).await.unwrap();
    let dn = Dn::parse(&format!("uid=user1,{PEOPLE}")).unwrap();
    assert_eq!(writer.directory.delete(&dn, None).await.unwrap_err().failure.kind, FailureKind::Denied);
}

#[tokio::test]
async fn mistakes_in_files_name_their_place() {
    let folder = farrier_testkit::TempDir::new().unwrap();
    let open = async |url: &str| {
        let cx = farrier_action::ConnectCx {
            alias: "directory".into(),
            base_dir: folder.path().to_owned(),
            now: farrier_action::Now::default(),
            known: farrier_action::SharedKnown::default(),
        };
        Ldap::reader(json(&format!(r#"{{"url": "{url}"}}"#)).read().unwrap(), &cx).await.err().unwrap()
    };
    let failure = open("ldif:missing.ldif").await;
    assert_eq!(failure.kind, FailureKind::Unreachable);
    assert!(failure.message.contains("missing.ldif"), "{failure}");
    std::fs::create_dir(folder.path().join("empty")).unwrap();
    assert!(open("ldif:empty").await.message.contains("there is no `*.ldif`"));
    std::fs::write(folder.path().join("a.ldif"), "dn: dc=x\ndc: x\n\n# twice\ndn: DC=X\ndc: x\n").unwrap();
    let failure = open("ldif:a.ldif").await;
    assert_eq!(failure.kind, FailureKind::Input);
    assert!(failure.message.ends_with("a.ldif, line 5: `dc=x` is there twice"), "{failure}");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_to_the_same_files_do_not_lose_each_others_changes() {
    let place = Place::files();
    let (one, two, reader) = (place.writer().await, place.writer().await, place.reader().await);
    let dn = |uid: &str| Dn::parse(&format!("uid={uid},{PEOPLE}")).unwrap();
    let edit = |number: usize| {
        [Edit::Add(Attribute { name: "mail".into(), values: vec![format!("m{number}@x").into_bytes()] })]
    };
    let write = async |writer: &crate::target::LdapWriter, uid: &str| {
        for number in 0..25 {
            writer.directory.modify(&dn(uid), &edit(number), None).await.unwrap();
        }
    };
    tokio::join!(write(&one, "alice"), write(&two, "bob"));
    for (uid, count) in [("alice", 26), ("bob", 27)] {
        let entry = crate::directory::fetch(&*reader.directory, &dn(uid), vec!["mail".into()])
            .await
            .unwrap()
            .unwrap();
        assert_eq!(entry.values("mail").len(), count, "{uid}");
    }
    // Comments and the other records of the file are as they were.
    let text = std::fs::read_to_string(place.cx().path("directory/b-entries.ldif")).unwrap();
    assert!(text.starts_with("# People\ndn: uid=alice,") && text.contains("\n# Tools\ndn: cn=tools.one,"));
    let left: Vec<_> = std::fs::read_dir(place.cx().path("directory"))
        .unwrap()
        .map(|item| item.unwrap().file_name())
        .collect();
    assert_eq!(left.len(), 2, "temporary files were left: {left:?}");
}

#[tokio::test]
async fn files_that_another_process_writes_to_are_busy() {
    let place = Place::files();
    let config = with(&place.config(), "timeout", Value::text("20ms"));
    let writer = Ldap::writer(config.read().unwrap(), &place.cx()).await.unwrap();
    let dn = Dn::parse(&format!("uid=alice,{PEOPLE}")).unwrap();
    let held = File::open(place.cx().path("directory")).unwrap();
    held.lock().unwrap();
    assert_eq!(writer.directory.delete(&dn, None).await.unwrap_err().failure.kind, FailureKind::Conflict);
    drop(held);
    writer.directory.delete(&dn, None).await.unwrap();
}
