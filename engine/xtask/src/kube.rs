//! A Kubernetes API server for the tests, built from Debian's source package and kept in `target/kube`.
//!
//! It is an old one (1.20), as that is what Debian has; all that the tests use of it is the same today, but for the
//! version of disruption budgets.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use farrier_testkit::find_program;
use farrier_testkit::kube::{KUBECONFIG_VARIABLE, KubeApi};

use crate::parts::{Counts, Outcome, Report};
use crate::{suite, tools};

/// Fetches and builds in the folder `$1`, as root where packages are missing. The package's own lists keep the machine's
/// as they are.
///
/// The reflect2 of its time reaches into the maps of Go's runtime and panics since Go 1.18, whose iterators are larger
/// ([release notes](https://github.com/modern-go/reflect2/releases/tag/v1.0.2)): Debian's own 1.0.2 takes its place.
const BUILD: &str = r#"
set -e
folder=$1
mkdir -p "$folder/lists/partial"
cd "$folder"
missing=
for program in /usr/lib/go-1.19/bin/go etcd make rsync dpkg-source xz; do
    command -v "$program" >/dev/null || missing=yes
done
reflect2=/usr/share/gocode/src/github.com/modern-go/reflect2
[ -d "$reflect2" ] || missing=yes
if [ -n "$missing" ]; then
    policy=/usr/sbin/policy-rc.d
    if [ ! -e "$policy" ]; then
        trap 'rm -f "$policy"' EXIT
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod 755 "$policy"
    fi
    apt-get update -q
    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
        golang-1.19-go golang-github-modern-go-reflect2-dev etcd-server make rsync dpkg-dev xz-utils
fi
cat /etc/apt/sources.list.d/debian.sources 2>/dev/null | sed 's/^Types: deb$/Types: deb-src/' >debian.sources
sed 's/^deb /deb-src /' /etc/apt/sources.list >debian.list 2>/dev/null || true
sources="$folder/debian.sources"
[ -s "$sources" ] || sources="$folder/debian.list"
apt="-o Dir::Etc::sourcelist=$sources -o Dir::Etc::sourceparts=/nonexistent -o Dir::State::lists=$folder/lists"
apt-get $apt -q update
apt-get $apt -q source --download-only kubernetes
rm -rf source
dpkg-source -x kubernetes_*.dsc source
cd source
rm -rf vendor/github.com/modern-go/reflect2
mkdir vendor/github.com/modern-go/reflect2
cp "$reflect2"/*.go "$reflect2"/*.s vendor/github.com/modern-go/reflect2/
mkdir -p .go/src/k8s.io home
ln -sfn ../../.. .go/src/k8s.io/kubernetes
export GOPATH=$PWD/.go PATH=/usr/lib/go-1.19/bin:$PATH CGO_ENABLED=0 HOME=$PWD/home
make WHAT=cmd/kube-apiserver
mv "$(readlink -f _output/bin)/kube-apiserver" "$folder/kube-apiserver"
cd "$folder"
chmod -R u+w source
rm -rf source lists kubernetes_*
"#;

/// The server, when it was built.
pub(crate) fn program(root: &Path) -> Option<PathBuf> {
    let program = root.join("target/kube/kube-apiserver");
    program.is_file().then_some(program)
}

/// Starts the server when it was built.
pub(crate) fn start(root: &Path) -> Result<Option<KubeApi>> {
    program(root)
        .map(|program| KubeApi::try_start(&program).context("cannot start the Kubernetes API server"))
        .transpose()
}

/// Builds the server when it is not there, and runs the tests that know how to use it.
pub(crate) fn test(root: &Path) -> Report {
    let mut report = Report::default();
    report.run("Kubernetes API server", || {
        if program(root).is_none() {
            build(root)?;
        }
        Ok(Outcome::Passed)
    });
    if report.failed() {
        return report;
    }
    let mut counts = Counts::default();
    report.run("tests of plugins/k8s", || {
        let server = start(root)?.context("it is not there")?;
        let mut command = tools::cargo(root, "test --package farrier-plugin-k8s --no-fail-fast");
        suite::run_tests(command.env(KUBECONFIG_VARIABLE, server.kubeconfig()), &mut counts)
    });
    report.count(counts);
    report
}

fn build(root: &Path) -> Result<()> {
    ensure!(
        find_program("apt-get").is_some(),
        "it is built from Debian's source package, and this is no Debian"
    );
    let mut command = Command::new("bash");
    command.args(["-c", BUILD, "build"]).arg(root.join("target/kube")).stdin(Stdio::null());
    tools::show(&mut command)
        .context("cannot build the Kubernetes API server; as root it installs what it needs")
}
