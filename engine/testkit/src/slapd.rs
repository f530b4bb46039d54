//! An OpenLDAP server with the schemas, overlays and base entries of a Toolforge directory.
//!
//! ```no_run
//! use farrier_testkit::slapd::{Options, Slapd};
//!
//! let directory = Slapd::start(Options { size_limit: Some(500), ..Options::default() });
//! directory.add_ldif("dn: cn=tools.example,ou=servicegroups,dc=wikimedia,dc=org\n…");
//! let before = directory.mark();
//! // … bind at directory.url() as directory.reader_dn, plan something …
//! assert_eq!(directory.writes_since(before), Vec::<String>::new());
//! ```
//!
//! Three accounts bind: the administrator, whom no limit or access rule touches; `uid=novaadmin`, who may write
//! everything and is subject to limits; and the reader, who may read everything but passwords. Without a bind,
//! everything but passwords can be read.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{self, Account, Launch, Process, on_a_free_port, require_program};
use crate::{certificates, or_panic};

/// The suffix of the directory.
pub const BASE_DN: &str = "dc=wikimedia,dc=org";

const ADMIN_DN: &str = "cn=admin,dc=wikimedia,dc=org";
const WRITER_DN: &str = "uid=novaadmin,ou=people,dc=wikimedia,dc=org";
const READER_DN: &str = "cn=proxyagent,ou=profile,dc=wikimedia,dc=org";
const PASSWORD: &str = "testkit";

/// The entries that every directory begins with.
const BASE_ENTRIES: &str = include_str!("../schema/base.ldif");
const POSIX_SCHEMA: &str = include_str!("../schema/farrier-posix.schema");
const TOOLFORGE_SCHEMA: &str = include_str!("../schema/farrier-toolforge.schema");

/// What a directory should be like.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Entries to begin with, beside the base entries, loaded offline: 35,000 take a few seconds. `memberOf` values
    /// are filled in from the groups, as the overlay would.
    pub entries: String,
    /// At most this many entries per search request; paged searches may fetch all, page by page. None: no limit. The
    /// administrator is not limited: bind as the reader or the writer.
    pub size_limit: Option<u32>,
    /// Offer StartTLS, and ldaps at [`Slapd::tls_url`], with a certificate for `localhost` and 127.0.0.1 signed by
    /// [`Slapd::ca_file`].
    pub tls: bool,
    /// Further lines for the end of the server's configuration, such as access rules of the database.
    pub configuration: String,
}

/// A running directory, ended when dropped.
#[derive(Debug)]
pub struct Slapd {
    /// The suffix, `dc=wikimedia,dc=org`.
    pub base_dn: String,
    /// The administrator.
    pub admin_dn: String,
    /// The administrator's password.
    pub admin_password: String,
    /// An account that may write everything and is subject to limits.
    pub writer_dn: String,
    /// The writer's password.
    pub writer_password: String,
    /// An account that may read everything but passwords.
    pub reader_dn: String,
    /// The reader's password.
    pub reader_password: String,
    ports: Ports,
    // Before the folder, so that the server is gone when the folder goes.
    process: Option<Process>,
    folder: TempDir,
}

#[derive(Debug, Clone, Copy)]
struct Ports {
    plain: u16,
    tls: Option<u16>,
}

/// A place in the operation log: what came before it is not looked at again.
#[derive(Debug, Clone, Copy)]
pub struct Mark(usize);

impl Slapd {
    /// Starts a directory; panics with the server's last words when it does not start.
    #[track_caller]
    pub fn start(options: Options) -> Self {
        or_panic(Self::try_start(&options), "cannot start slapd")
    }

    /// Starts a directory, or says why not.
    pub fn try_start(options: &Options) -> Result<Self> {
        require_program("slapd", "slapd")?;
        require_program("ldapmodify", "ldap-utils")?;
        let folder = crate::temp_dir();
        std::fs::create_dir(folder.path().join("database")).context("cannot make the database folder")?;
        write(&folder.path().join("farrier-posix.schema"), POSIX_SCHEMA)?;
        write(&folder.path().join("farrier-toolforge.schema"), TOOLFORGE_SCHEMA)?;
        write(&folder.path().join("slapd.conf"), &configuration(folder.path(), options))?;
        if options.tls {
            certificates::make(folder.path())?;
        }
        load(folder.path(), &with_member_of(&format!("{BASE_ENTRIES}\n{}", options.entries)))?;
        let (ports, process) = on_a_free_port(|plain| {
            let ports = Ports { plain, tls: options.tls.then(crate::free_port) };
            Ok((ports, launch(folder.path(), ports)?))
        })?;
        Ok(Slapd {
            base_dn: BASE_DN.to_owned(),
            admin_dn: ADMIN_DN.to_owned(),
            admin_password: PASSWORD.to_owned(),
            writer_dn: WRITER_DN.to_owned(),
            writer_password: PASSWORD.to_owned(),
            reader_dn: READER_DN.to_owned(),
            reader_password: PASSWORD.to_owned(),
            ports,
            process: Some(process),
            folder,
        })
    }

    /// `ldap://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("ldap://127.0.0.1:{}", self.ports.plain)
    }

    /// `ldaps://127.0.0.1:PORT`, when [`Options::tls`] is set.
    pub fn tls_url(&self) -> Option<String> {
        self.ports.tls.map(|port| format!("ldaps://127.0.0.1:{port}"))
    }

    /// The certificate (PEM) that signed the server's.
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// `ldapi://…`: the same server through a socket file.
    pub fn ldapi_url(&self) -> String {
        ldapi_url(self.folder.path())
    }

    /// Adds entries as the administrator, with the overlays at work.
    #[track_caller]
    pub fn add_ldif(&self, ldif: &str) {
        or_panic(self.client("ldapmodify", &["-a"], ldif), "cannot add entries");
    }

    /// Makes the changes of an LDIF text (`changetype: …`) as the administrator.
    #[track_caller]
    pub fn change_ldif(&self, ldif: &str) {
        or_panic(self.client("ldapmodify", &[], ldif), "cannot make changes");
    }

    /// What a search of the whole tree finds, as LDIF without line folding, as the administrator. Operational
    /// attributes come when they are named.
    #[track_caller]
    pub fn search(&self, filter: &str, attributes: &[&str]) -> String {
        let options = [&["-LLL", "-o", "ldif-wrap=no", "-b", BASE_DN, filter], attributes].concat();
        or_panic(self.client("ldapsearch", &options, ""), "cannot search")
    }

    /// Every entry with every attribute, operational ones too: two equal dumps mean that nothing was written between.
    #[track_caller]
    pub fn dump(&self) -> String {
        let configuration = self.folder.path().join("slapd.conf");
        let dumped = require_program("slapcat", "slapd")
            .and_then(|slapcat| process::run(Command::new(slapcat).arg("-f").arg(configuration), ""));
        or_panic(dumped, "cannot dump the directory")
    }

    /// The operation log so far: one line per bind, search, write and result.
    pub fn log(&self) -> String {
        let log = std::fs::read(self.folder.path().join("log")).unwrap_or_default();
        String::from_utf8_lossy(&log).into_owned()
    }

    /// Where the operation log ends now.
    pub fn mark(&self) -> Mark {
        Mark(self.log().len())
    }

    /// The lines of the operation log since `mark`.
    pub fn log_since(&self, mark: Mark) -> String {
        self.log().get(mark.0..).unwrap_or_default().to_owned()
    }

    /// The writes that anyone asked for since `mark`, refused ones too: `ADD dn="…"`, `MOD …`, `DEL …`, `MODRDN …`,
    /// `PASSMOD …`. [`Slapd::add_ldif`] and [`Slapd::change_ldif`] count.
    pub fn writes_since(&self, mark: Mark) -> Vec<String> {
        let write = |line: &str| {
            let (_, operation) = line.split_once(" op=")?;
            let (_, what) = operation.split_once(' ')?;
            let writes = ["ADD dn=", "MOD dn=", "DEL dn=", "MODRDN dn=", "PASSMOD"];
            writes.iter().any(|word| what.starts_with(word)).then(|| what.to_owned())
        };
        self.log_since(mark).lines().filter_map(write).collect()
    }

    /// The server's process id, while it runs and is our own.
    pub fn process_id(&self) -> Option<u32> {
        self.process.as_ref().map(Process::id)
    }

    /// Stops the server; connections break. What it holds stays, for [`Slapd::start_again`].
    #[track_caller]
    pub fn stop(&mut self) {
        if let Some(process) = self.process.take() {
            or_panic(process.stop("TERM"), "cannot stop slapd");
        }
    }

    /// Starts the stopped server again, with the same entries at the same address.
    #[track_caller]
    pub fn start_again(&mut self) {
        if self.process.is_none() {
            self.process = Some(or_panic(launch(self.folder.path(), self.ports), "cannot start slapd again"));
        }
    }

    fn client(&self, program: &str, options: &[&str], input: &str) -> Result<String> {
        let mut command = Command::new(require_program(program, "ldap-utils")?);
        command.args(["-x", "-H", &self.ldapi_url(), "-D", ADMIN_DN, "-w", PASSWORD]).args(options);
        // A developer's own ldap.conf must not matter.
        process::run(command.env("LDAPNOINIT", "1"), input)
    }
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write `{}`", file.display()))
}

fn ldapi_url(folder: &Path) -> String {
    format!("ldapi://{}", folder.join("socket").display().to_string().replace('/', "%2F"))
}

fn launch(folder: &Path, ports: Ports) -> Result<Process> {
    let mut addresses = format!("ldap://127.0.0.1:{} {}", ports.plain, ldapi_url(folder));
    if let Some(port) = ports.tls {
        let _ = write!(addresses, " ldaps://127.0.0.1:{port}");
    }
    let mut command = vec![OsString::from(require_program("slapd", "slapd")?), "-f".into()];
    command.push(folder.join("slapd.conf").into());
    // A debug level keeps it in the foreground and sends the operation log to standard error.
    command.extend(["-h", &addresses, "-d", "stats"].map(OsString::from));
    Process::start(&Launch {
        command,
        account: &Account::own(),
        folder,
        log: &folder.join("log"),
        sudden: "KILL",
        ready: "slapd starting",
    })
}

fn configuration(folder: &Path, options: &Options) -> String {
    let folder = folder.display();
    let size_limit = options.size_limit.map_or_else(
        || "sizelimit unlimited".to_owned(),
        |limit| format!("sizelimit size.soft={limit} size.hard={limit} size.prtotal=unlimited"),
    );
    let tls = if options.tls {
        format!(
            "TLSCACertificateFile {folder}/ca.pem\nTLSCertificateFile {folder}/server.pem\n\
             TLSCertificateKeyFile {folder}/server.key\n"
        )
    } else {
        String::new()
    };
    format!(
        "include /etc/ldap/schema/core.schema
include /etc/ldap/schema/cosine.schema
include /etc/ldap/schema/inetorgperson.schema
include {folder}/farrier-posix.schema
include {folder}/farrier-toolforge.schema
modulepath /usr/lib/ldap
moduleload back_mdb
moduleload memberof
moduleload ppolicy
moduleload unique
pidfile {folder}/slapd.pid
argsfile {folder}/slapd.args
threads 4
{size_limit}
{tls}
database mdb
suffix {BASE_DN}
rootdn {ADMIN_DN}
rootpw {PASSWORD}
directory {folder}/database
maxsize 1073741824
dbnosync
index objectClass,uid,cn,member,memberOf,uidNumber,gidNumber eq
overlay memberof
overlay ppolicy
overlay unique
unique_uri ldap:///{BASE_DN}?uidNumber?sub?(objectClass=posixAccount)
unique_uri ldap:///{BASE_DN}?gidNumber?sub?(objectClass=posixGroup)
access to attrs=userPassword by dn.exact={WRITER_DN} write by anonymous auth by * none
access to * by dn.exact={WRITER_DN} write by * read
{}
",
        options.configuration
    )
}

/// Loads entries into the empty database without a server.
fn load(folder: &Path, ldif: &str) -> Result<()> {
    let slapadd = require_program("slapadd", "slapd")?;
    let configuration = folder.join("slapd.conf");
    process::run(Command::new(slapadd).arg("-q").arg("-f").arg(configuration).args(["-b", BASE_DN]), ldif)
        .context("cannot load the entries")?;
    Ok(())
}

/// The entries with the `memberOf` values that the overlay would have kept, had they been added through the server.
fn with_member_of(ldif: &str) -> String {
    let unfolded = ldif.replace("\r\n", "\n").replace("\n ", "");
    let name_of = |entry: &str| {
        let line = entry.lines().find(|line| !line.starts_with('#'))?;
        line.get(..3).filter(|start| start.eq_ignore_ascii_case("dn:"))?;
        Some(line[3..].trim().to_owned())
    };
    let entries =
        || unfolded.split("\n\n").map(|entry| entry.trim_matches('\n')).filter(|entry| !entry.is_empty());
    let mut groups_of: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for entry in entries() {
        let is_group =
            entry.lines().any(|line| line.to_lowercase().replace(' ', "") == "objectclass:groupofnames");
        let Some(group) = name_of(entry).filter(|_| is_group) else { continue };
        for member in entry.lines().filter_map(|line| line.strip_prefix("member: ")) {
            groups_of.entry(member.trim().to_lowercase()).or_default().push(group.clone());
        }
    }
    let mut completed = String::with_capacity(unfolded.len() * 2);
    for entry in
        unfolded.split("\n\n").map(|entry| entry.trim_matches('\n')).filter(|entry| !entry.is_empty())
    {
        completed.push_str(entry);
        completed.push('\n');
        for group in
            name_of(entry).and_then(|name| groups_of.remove(&name.to_lowercase())).unwrap_or_default()
        {
            let _ = writeln!(completed, "memberOf: {group}");
        }
        completed.push('\n');
    }
    completed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn member_of_follows_from_the_groups_even_across_folded_lines() {
        let ldif = "dn: uid=a,dc=x\nuid: a\n\n# a group\nDN: cn=g,\n dc=x\nobjectClass: groupOfNames\nmember: UID=a,dc=x\n\
                    member: uid=gone,dc=x\n\n\ndn: cn=h,dc=x\nobjectclass:groupofnames\nmember: uid=a,dc=x\n";
        let completed = with_member_of(ldif);
        assert!(
            completed.starts_with("dn: uid=a,dc=x\nuid: a\nmemberOf: cn=g,dc=x\nmemberOf: cn=h,dc=x\n\n"),
            "{completed}"
        );
        assert_eq!(completed.matches("memberOf").count(), 2, "{completed}");
    }
}
