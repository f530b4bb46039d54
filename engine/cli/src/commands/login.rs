//! `farrier login` and `farrier logout`: a token for a name and a password of the directory that a service trusts.

use std::io::{BufRead as _, IsTerminal as _};

use clap::Args;
use farrier_model::Secret;
use farrier_server::wire::{LoginRequest, LogoutView, SessionView};

use super::{App, Problem};
use crate::client::{self, Client};
use crate::exit::Exit;
use crate::interact;
use crate::logins;

#[derive(Debug, Args)]
pub(super) struct Login {
    /// The name; who is at the keyboard, when left out.
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

impl Login {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let url = client::address(app)?.ok_or_else(nowhere)?;
        let name = self.user.clone().unwrap_or_else(super::user);
        let password = password(&format!("Password of {name} at {url}: "))?;
        let asked = LoginRequest { name, password: password.reveal().to_owned() };
        let session: SessionView =
            Client::without_token(app, url.clone())?.post("/api/v1/login", &asked).await?;
        let (Some(token), Some(expires)) = (session.token, session.expires) else {
            return Err(Problem::Other(anyhow::anyhow!("the service answered without a token")));
        };
        let file = logins::keep(&url, &session.name, &token, &expires).map_err(Problem::Other)?;
        eprintln!(
            "logged in as {} ({}) until {expires}; the token is in {}",
            session.name,
            session.role,
            file.display()
        );
        Ok(Exit::Ok)
    }
}

#[derive(Debug, Args)]
pub(super) struct Logout {}

impl Logout {
    pub(super) async fn run(&self, app: &App) -> Result<Exit, Problem> {
        let url = client::address(app)?.ok_or_else(nowhere)?;
        let Some(login) = logins::find(&url).map_err(Problem::Other)? else {
            eprintln!("there is no login at {url}");
            return Ok(Exit::Ok);
        };
        let ended: Result<LogoutView, Problem> = Client::with_token(app, url.clone(), login.token)?
            .post("/api/v1/logout", &serde_json::json!({}))
            .await;
        logins::forget(&url).map_err(Problem::Other)?;
        match ended {
            // A token that is not known any more has ended before.
            Ok(_) => {}
            Err(Problem::Service(error)) if error.code == farrier_server::ErrorCode::Unauthenticated => {}
            Err(problem) => return Err(problem),
        }
        eprintln!("logged out at {url}");
        Ok(Exit::Ok)
    }
}

fn nowhere() -> Problem {
    Problem::Usage("say where: `farrier --server https://HOST login`".into())
}

/// Reads a password: from the terminal, which does not show it, or as the first line of standard input.
fn password(question: &str) -> Result<Secret, Problem> {
    let read = if std::io::stdin().is_terminal() {
        interact::read_hidden(question)
    } else {
        let mut line = String::new();
        std::io::stdin().lock().read_line(&mut line).map(|_| Some(line))
    };
    let line =
        read.map_err(|error| Problem::Other(anyhow::Error::new(error).context("cannot read the password")))?;
    let line = line.as_deref().map(|line| line.trim_end_matches(['\n', '\r'])).unwrap_or_default();
    if line.is_empty() {
        return Err(Problem::Usage("there is no password; nothing was sent".into()));
    }
    Ok(Secret::new(line))
}
