//! The directory that tests get: its schemas, overlays, limits, log and life.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::fmt::Write as _;
use std::net::TcpStream;

use farrier_testkit::slapd::{Options, Slapd};

const TOOL: &str = "dn: uid=alice,ou=people,dc=wikimedia,dc=org
objectClass: inetOrgPerson
objectClass: posixAccount
objectClass: ldapPublicKey
objectClass: wikimediaPerson
uid: alice
cn: Alice
sn: Alice
uidNumber: 100001
gidNumber: 500
homeDirectory: /home/alice
sshPublicKey: ssh-ed25519 AAAA alice

dn: uid=tools.example,ou=people,ou=servicegroups,dc=wikimedia,dc=org
objectClass: person
objectClass: posixAccount
objectClass: shadowAccount
uid: tools.example
cn: tools.example
sn: tools.example
uidNumber: 50001
gidNumber: 50001
homeDirectory: /data/project/example

dn: cn=tools.example,ou=servicegroups,dc=wikimedia,dc=org
objectClass: posixGroup
objectClass: groupOfNames
cn: tools.example
gidNumber: 50001
member: uid=alice,ou=people,dc=wikimedia,dc=org

dn: cn=runas-tools.example,ou=projects,dc=wikimedia,dc=org
objectClass: sudoRole
cn: runas-tools.example
sudoUser: %tools.example
sudoHost: ALL
sudoCommand: ALL
sudoOption: !authenticate
sudoRunAsUser: tools.example
";

/// Runs a client as a test's subject would, and returns whether it succeeded, with everything it said.
fn client(program: &str, arguments: &[&str], input: &str) -> (bool, String) {
    use std::io::Write;
    let mut child = std::process::Command::new(program)
        .args(arguments)
        .env("LDAPNOINIT", "1")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8_lossy(&said).into_owned())
}

#[test]
fn entries_added_online_and_offline_look_the_same() {
    let offline = Slapd::start(Options { entries: TOOL.to_owned(), ..Options::default() });
    let online = Slapd::start(Options::default());
    online.add_ldif(TOOL);
    let attributes = ["*", "memberOf"];
    let lines = |directory: &Slapd| {
        let mut lines: Vec<String> =
            directory.search("(objectClass=*)", &attributes).lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(lines(&offline), lines(&online));
    let alice = online.search("(uid=alice)", &["memberOf"]);
    assert!(alice.contains("memberOf: cn=tools.example,ou=servicegroups,dc=wikimedia,dc=org"), "{alice}");
}

#[test]
fn numbers_are_unique_and_the_password_policy_can_lock() {
    let directory = Slapd::start(Options { entries: TOOL.to_owned(), ..Options::default() });
    let twin = TOOL.split("\n\n").nth(1).unwrap().replace("tools.example", "tools.twin");
    let (added, said) = client(
        "ldapadd",
        &["-x", "-H", &directory.url(), "-D", &directory.writer_dn, "-w", &directory.writer_password],
        &twin,
    );
    assert!(!added && said.contains("non-unique"), "{said}");
    directory.change_ldif(
        "dn: uid=tools.example,ou=people,ou=servicegroups,dc=wikimedia,dc=org\nchangetype: modify\n\
         add: pwdAccountLockedTime\npwdAccountLockedTime: 20260101000000Z\n-\nadd: pwdPolicySubentry\n\
         pwdPolicySubentry: cn=disabled,ou=ppolicies,dc=wikimedia,dc=org\n",
    );
    let locked = directory.search("(pwdAccountLockedTime=*)", &["pwdAccountLockedTime", "pwdPolicySubentry"]);
    assert!(locked.contains("pwdAccountLockedTime: 20260101000000Z"), "{locked}");
    assert!(!directory.search("(uid=tools.example)", &[]).contains("pwdAccountLockedTime"), "operational");
}

#[test]
fn the_log_tells_writes_from_reads() {
    let directory = Slapd::start(Options { entries: TOOL.to_owned(), ..Options::default() });
    let start = directory.mark();
    let dump = directory.dump();
    directory.search("(uid=alice)", &["mail"]);
    assert_eq!(directory.writes_since(start), Vec::<String>::new());
    assert_eq!(directory.dump(), dump);
    assert!(directory.log_since(start).contains("filter=\"(uid=alice)\""), "{}", directory.log());

    directory.change_ldif(
        "dn: uid=alice,ou=people,dc=wikimedia,dc=org\nchangetype: modify\nadd: mail\nmail: alice@example.org\n",
    );
    directory.change_ldif("dn: cn=runas-tools.example,ou=projects,dc=wikimedia,dc=org\nchangetype: delete\n");
    assert_eq!(
        directory.writes_since(start),
        [
            "MOD dn=\"uid=alice,ou=people,dc=wikimedia,dc=org\"",
            "DEL dn=\"cn=runas-tools.example,ou=projects,dc=wikimedia,dc=org\""
        ]
    );
    assert_ne!(directory.dump(), dump);
}

#[test]
fn the_reader_reads_and_does_not_write() {
    let directory = Slapd::start(Options { entries: TOOL.to_owned(), ..Options::default() });
    let bind = ["-x", "-H", &directory.url(), "-D", &directory.reader_dn, "-w", &directory.reader_password]
        .map(str::to_owned);
    let bind: Vec<&str> = bind.iter().map(String::as_str).collect();
    let (_, said) =
        client("ldapsearch", &[&bind[..], &["-b", &directory.base_dn, "(uid=novaadmin)"]].concat(), "");
    assert!(said.contains("sn: novaadmin") && !said.contains("userPassword"), "{said}");
    let change =
        "dn: uid=alice,ou=people,dc=wikimedia,dc=org\nchangetype: modify\nadd: mail\nmail: a@example.org\n";
    let (changed, said) = client("ldapmodify", &bind, change);
    assert!(!changed && said.contains("Insufficient access"), "{said}");
}

#[test]
fn thousands_of_entries_meet_the_size_limit_and_come_by_pages() {
    let mut entries = String::new();
    for number in 0..3_500 {
        let _ = write!(
            entries,
            "dn: uid=tools.t{number},ou=people,ou=servicegroups,dc=wikimedia,dc=org\nobjectClass: person\n\
             objectClass: posixAccount\nuid: tools.t{number}\ncn: tools.t{number}\nsn: tools.t{number}\n\
             uidNumber: {0}\ngidNumber: {0}\nhomeDirectory: /data/project/t{number}\n\n",
            50_000 + number
        );
    }
    let directory = Slapd::start(Options { entries, size_limit: Some(500), ..Options::default() });
    let (url, reader, password) = (directory.url(), &directory.reader_dn, &directory.reader_password);
    let search = |extra: &[&str]| {
        let common = ["-x", "-LLL", "-H", &url, "-D", reader, "-w", password, "-b", &directory.base_dn];
        client("ldapsearch", &[&common[..], extra, &["(cn=tools.*)", "cn"]].concat(), "")
    };
    let (complete, said) = search(&[]);
    assert!(!complete && said.contains("Size limit exceeded"), "{said}");
    assert_eq!(said.matches("\ncn: ").count(), 500);
    let (complete, said) = search(&["-E", "pr=400/noprompt"]);
    assert!(complete, "{said}");
    assert_eq!(said.matches("\ncn: ").count(), 3_500);
}

#[test]
fn encrypted_connections_are_trusted_through_the_ca_file_only() {
    let directory = Slapd::start(Options { tls: true, ..Options::default() });
    let ca = directory.ca_file();
    let who_am_i = |url: &str, start_tls: Option<&str>, ca: &str| {
        let output = std::process::Command::new("ldapwhoami")
            .args(["-x", "-H", url])
            .args(start_tls)
            .env("LDAPTLS_CACERT", ca)
            .output()
            .unwrap();
        assert!(output.status.success() || !output.stderr.is_empty());
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
    };
    let trusted = ca.to_str().unwrap();
    assert_eq!(who_am_i(&directory.tls_url().unwrap(), None, trusted), "anonymous");
    let refused = who_am_i(&directory.tls_url().unwrap(), None, "/dev/null");
    assert!(refused.contains("Can't contact"), "{refused}");
    assert_eq!(who_am_i(&directory.url(), Some("-ZZ"), trusted), "anonymous");
    assert!(Slapd::start(Options::default()).tls_url().is_none());
}

#[test]
fn a_stopped_directory_refuses_connections_and_keeps_its_entries() {
    let mut directory = Slapd::start(Options::default());
    directory.add_ldif(TOOL);
    let address = directory.url().replace("ldap://", "");
    directory.stop();
    assert!(TcpStream::connect(&address).is_err());
    directory.start_again();
    assert_eq!(directory.url(), format!("ldap://{address}"));
    assert!(directory.search("(uid=alice)", &[]).contains("sn: Alice"));
}

#[test]
fn a_wrong_configuration_is_reported_with_the_servers_own_words() {
    let options = Options { configuration: "no_such_setting 1\n".to_owned(), ..Options::default() };
    let error = format!("{:#}", Slapd::try_start(&options).unwrap_err());
    assert!(error.contains("no_such_setting"), "{error}");
}
