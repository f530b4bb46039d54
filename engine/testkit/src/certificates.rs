//! Certificates for servers that offer TLS: for `localhost` and 127.0.0.1, signed by an authority of their own.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};

use crate::process::{self, require_program};

/// A certificate authority of this directory's own, and a certificate of the server signed by it.
pub(crate) fn make(folder: &Path) -> Result<()> {
    let openssl = require_program("openssl", "openssl")?;
    let run = |options: &str| -> Result<()> {
        process::run(Command::new(&openssl).current_dir(folder).args(options.split(' ')), "")
            .map(drop)
            .context("cannot make a certificate")
    };
    let key = "-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes";
    std::fs::write(
        folder.join("server.ext"),
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n",
    )
    .context("cannot write the certificate's settings")?;
    run(&format!("req -x509 {key} -keyout ca.key -out ca.pem -days 30 -subj /CN=farrier-testkit-ca"))?;
    run(&format!("req {key} -keyout server.key -out server.csr -subj /CN=localhost"))?;
    run(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out server.pem -days 30 -extfile server.ext",
    )
}
