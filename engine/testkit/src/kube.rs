//! A real Kubernetes API server with its storage, etcd, and nothing else: no controllers, no scheduler, no kubelet.
//!
//! No current package has an API server, so it is built from Debian's source package by `cargo xtask kube`, once.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use tempfile::TempDir;

use crate::process::{self, Account, Launch, Process, on_a_free_port, require_program};

/// Names a kubeconfig to the tests: of the server that the chores start, or of any other.
pub const KUBECONFIG_VARIABLE: &str = "FARRIER_TEST_KUBECONFIG";

/// The token of an account, which may do everything.
const TOKEN: &str = "testkit";

/// The name of another one, which proves itself by a certificate and may do as much.
const CERTIFIED: &str = "certified";

/// An API server. Dropping it ends it and removes its folder.
#[derive(Debug)]
pub struct KubeApi {
    // Ended in this order.
    _server: Process,
    _storage: Process,
    kubeconfig: PathBuf,
    _folders: [TempDir; 2],
}

impl KubeApi {
    /// Starts the API server `program`, or says why not.
    pub fn try_start(program: &Path) -> Result<Self> {
        let etcd = require_program("etcd", "etcd-server")?;
        // A server that did not start has taken its folder with it, so each try has one of its own.
        let (storage_folder, storage_url, storage) = on_a_free_port(|port| {
            let folder = crate::temp_dir();
            let (url, process) = start_storage(&etcd, folder.path(), port)?;
            Ok((folder, url, process))
        })?;
        let (folder, port, server) = on_a_free_port(|port| {
            let folder = crate::temp_dir();
            make_certificates(folder.path())?;
            write(&folder.path().join("tokens"), &format!("{TOKEN},admin,1,system:masters\n"))?;
            let process = start_server(program, folder.path(), &storage_url, port)?;
            Ok((folder, port, process))
        })?;
        let kubeconfig = folder.path().join("kubeconfig");
        let authority = folder.path().join("ca.pem");
        write(
            &kubeconfig,
            &format!(
                "apiVersion: v1\nkind: Config\ncurrent-context: testkit\n\
                 clusters: [{{ name: testkit, cluster: {{ server: \"https://127.0.0.1:{port}\", certificate-authority: {authority} }} }}]\n\
                 users:\n  - {{ name: testkit, user: {{ token: {TOKEN} }} }}\n  \
                 - {{ name: {CERTIFIED}, user: {{ client-certificate: {client}.pem, client-key: {client}.key }} }}\n\
                 contexts:\n  - {{ name: testkit, context: {{ cluster: testkit, user: testkit }} }}\n  \
                 - {{ name: {CERTIFIED}, context: {{ cluster: testkit, user: {CERTIFIED} }} }}\n",
                authority = authority.display(),
                client = folder.path().join("client").display(),
            ),
        )?;
        Ok(KubeApi { _server: server, _storage: storage, kubeconfig, _folders: [storage_folder, folder] })
    }

    /// The kubeconfig: its current context is that of an account with a token, and `certified` that of one with a
    /// certificate. Both may do everything.
    pub fn kubeconfig(&self) -> &Path {
        &self.kubeconfig
    }
}

fn start_storage(etcd: &Path, folder: &Path, port: u16) -> Result<(String, Process)> {
    let clients = format!("http://127.0.0.1:{port}");
    let peers = format!("http://127.0.0.1:{}", crate::free_port());
    let mut command = vec![OsString::from(etcd), "--data-dir".into(), folder.join("data").into()];
    command
        .extend(["--listen-client-urls", &clients, "--advertise-client-urls", &clients].map(OsString::from));
    command
        .extend(["--listen-peer-urls", &peers, "--initial-advertise-peer-urls", &peers].map(OsString::from));
    command.extend(["--initial-cluster".to_owned(), format!("default={peers}")].map(OsString::from));
    let process = Process::start(&Launch {
        command,
        account: &Account::own(),
        folder,
        log: &folder.join("log"),
        sudden: "KILL",
        ready: "ready to serve client requests",
    })?;
    Ok((clients, process))
}

fn start_server(program: &Path, folder: &Path, storage_url: &str, port: u16) -> Result<Process> {
    let options = format!(
        "--etcd-servers={storage_url} --bind-address=127.0.0.1 --secure-port={port} --tls-cert-file=server.pem \
         --tls-private-key-file=server.key --token-auth-file=tokens --client-ca-file=ca.pem --authorization-mode=AlwaysAllow \
         --service-account-key-file=accounts.key --service-account-signing-key-file=accounts.key \
         --service-account-issuer=https://testkit.invalid --service-cluster-ip-range=10.0.0.0/24 --cert-dir=certs \
         --disable-admission-plugins=ServiceAccount"
    );
    let mut command = vec![OsString::from(program)];
    command.extend(options.split_whitespace().map(OsString::from));
    Process::start(&Launch {
        command,
        account: &Account::own(),
        folder,
        log: &folder.join("log"),
        sudden: "KILL",
        // Said when the last of its caches is filled.
        ready: "Caches are synced for crd-autoregister",
    })
}

/// A certificate authority of this server's own, and certificates signed by it: of the server, and of an account.
fn make_certificates(folder: &Path) -> Result<()> {
    let openssl = require_program("openssl", "openssl")?;
    let run = |options: &str| -> Result<()> {
        process::run(Command::new(&openssl).current_dir(folder).args(options.split(' ')), "")
            .map(drop)
            .context("cannot make a certificate")
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    for (name, about) in [
        ("server", "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"),
        ("client", "extendedKeyUsage=clientAuth\n"),
    ] {
        write(&folder.join(format!("{name}.ext")), &format!("basicConstraints=CA:FALSE\n{about}"))?;
    }
    run("genrsa -out accounts.key 2048")?;
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 30 -subj /CN=farrier-testkit-ca"))?;
    for (name, subject) in [("server", "/CN=localhost".to_owned()), ("client", format!("/CN={CERTIFIED}"))] {
        run(&format!("req {key} -keyout {name}.key -out {name}.csr -subj {subject}"))?;
        run(&format!(
            "x509 -req -in {name}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {name}.pem -days 30 -extfile {name}.ext"
        ))?;
    }
    Ok(())
}

fn write(file: &Path, text: &str) -> Result<()> {
    std::fs::write(file, text).with_context(|| format!("cannot write `{}`", file.display()))
}
