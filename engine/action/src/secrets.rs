//! Where secrets come from. A configuration holds a reference; the secret is read at the moment of use and kept only
//! in the connection that needs it.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::process::Stdio;

use farrier_model::{Failure, FailureKind, Secret};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::target::ConnectCx;

/// A reference to a secret. Exactly one key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum SecretRef {
    /// The value of an environment variable of the Farrier process.
    Env(String),
    /// The content of a file, without its last line break. Refused when others can read the file.
    File(String),
    /// A systemd credential (`LoadCredential=`) of the service.
    Credential(String),
    /// The standard output of a command, without its last line break; an argument list with an absolute program.
    Command(Vec<String>),
}

impl SecretRef {
    /// Reads the secret. From then on it is kept out of every failure and note of actions on the same targets.
    ///
    /// # Errors
    /// [`FailureKind::Denied`], naming the reference and never its content.
    pub async fn resolve(&self, cx: &ConnectCx) -> Result<Secret, Failure> {
        let secret = self.read(cx).await?;
        cx.known.learn(&secret);
        Ok(secret)
    }

    async fn read(&self, cx: &ConnectCx) -> Result<Secret, Failure> {
        let fail = |message: String| Failure::new(FailureKind::Denied, message).at(&cx.alias);
        match self {
            SecretRef::Env(name) => std::env::var(name)
                .map(Secret::new)
                .map_err(|_| fail(format!("the environment variable `{name}` with its secret is not set"))),
            SecretRef::File(path) => read_private(&cx.path(path)).map_err(fail),
            SecretRef::Credential(name) => {
                let folder = std::env::var("CREDENTIALS_DIRECTORY").map_err(|_| {
                    fail(format!(
                        "credential `{name}`: this process was not started by systemd with credentials"
                    ))
                })?;
                if name.contains('/') || name.starts_with('.') {
                    return Err(fail(format!("`{name}` is not the name of a credential")));
                }
                read_private(&std::path::Path::new(&folder).join(name)).map_err(fail)
            }
            SecretRef::Command(argv) => {
                let [program, arguments @ ..] = argv.as_slice() else {
                    return Err(fail("the command for its secret is empty".into()));
                };
                if !program.starts_with('/') {
                    return Err(fail(format!(
                        "the command `{program}` for its secret must be an absolute path"
                    )));
                }
                let output = tokio::process::Command::new(program)
                    .args(arguments)
                    .stdin(Stdio::null())
                    .stderr(Stdio::null())
                    .kill_on_drop(true)
                    .output()
                    .await
                    .map_err(|error| fail(format!("cannot run `{program}` for its secret: {error}")))?;
                if !output.status.success() {
                    return Err(fail(format!(
                        "`{program}`, which gives its secret, ended with {}",
                        output.status
                    )));
                }
                String::from_utf8(output.stdout)
                    .map(|text| Secret::new(text.trim_end_matches(['\n', '\r'])))
                    .map_err(|_| fail(format!("the output of `{program}` is not UTF-8")))
            }
        }
    }
}

fn read_private(path: &std::path::Path) -> Result<Secret, String> {
    let shown = path.display();
    let metadata =
        std::fs::metadata(path).map_err(|error| format!("cannot read the secret file {shown}: {error}"))?;
    if metadata.permissions().mode() & 0o077 != 0 && metadata.uid() != 0
        || metadata.permissions().mode() & 0o007 != 0
    {
        return Err(format!("the secret file {shown} can be read by others; run `chmod 600 {shown}`"));
    }
    std::fs::read_to_string(path)
        .map(|text| Secret::new(text.trim_end_matches(['\n', '\r'])))
        .map_err(|error| format!("cannot read the secret file {shown}: {error}"))
}
