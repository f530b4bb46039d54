//! Where a server keeps the variables of one owner: [`Shelf`].
//!
//! A list of `{name, value}` is read from the path, one is set by a `POST` to it, and removed by a `DELETE` below it.
//!
//! **Rule:** the server knows secrets, so no failure and no output repeats anything that it says but the status.

use std::collections::BTreeMap;

use farrier_model::{Failure, FailureKind, Secret, Value};
use farrier_outbound::{Answer, Method, Request, Web, refused};

use crate::parts::Path;

/// The variables of one owner.
pub(crate) struct Shelf<'a> {
    pub(crate) web: &'a dyn Web,
    pub(crate) path: &'a Path,
    /// The field of the answer that has the list.
    pub(crate) list: &'a str,
}

/// Variables by name.
pub(crate) type Kept = BTreeMap<String, Secret>;

impl Shelf<'_> {
    fn request(&self, method: Method, more: Option<&str>) -> Result<Request, Failure> {
        Request::new(method, self.path.iter().map(|part| part.0.as_str()).chain(more))
    }

    /// Everything that is kept.
    ///
    /// # Errors
    /// The server cannot be asked, or says something else than which variables there are.
    pub(crate) async fn read(&self) -> Result<Kept, Failure> {
        let request = self.request(Method::Get, None)?;
        let answer = self.web.send(&request).await?;
        self.read_from(&request, &answer)
    }

    /// The same; an owner whom the server does not know has nothing.
    ///
    /// # Errors
    /// As [`Shelf::read`].
    pub(crate) async fn read_if_known(&self) -> Result<Kept, Failure> {
        let request = self.request(Method::Get, None)?;
        let answer = self.web.send(&request).await?;
        if answer.status == 404 { Ok(Kept::new()) } else { self.read_from(&request, &answer) }
    }

    fn read_from(&self, request: &Request, answer: &Answer) -> Result<Kept, Failure> {
        if !answer.is_success() {
            return Err(silent(request, answer));
        }
        variables(answer, self.list).ok_or_else(|| {
            let message = format!(
                "{} {} was not answered with a list of variables in `{}`",
                request.method,
                request.shown_path(),
                self.list
            );
            Failure::new(FailureKind::Refused, message)
        })
    }

    /// Sets one. A server that replaces none (409) is made to let go of the old one first; when that is all that happens,
    /// the variable is missing, and is set the next time.
    ///
    /// # Errors
    /// The server cannot be asked, or does not do it.
    pub(crate) async fn set(&self, name: &str, value: &Secret) -> Result<(), Failure> {
        let mut request = self.request(Method::Post, None)?;
        let body = serde_json::json!({ "name": name, "value": value.reveal() }).to_string();
        request.body = Some(("application/json", body.into_bytes()));
        let mut answer = self.web.send(&request).await?;
        if answer.status == 409 {
            self.remove(name).await?;
            answer = self.web.send(&request).await?;
        }
        if answer.is_success() { Ok(()) } else { Err(silent(&request, &answer)) }
    }

    /// Removes one; it may be gone already.
    ///
    /// # Errors
    /// The server cannot be asked, or does not do it.
    pub(crate) async fn remove(&self, name: &str) -> Result<(), Failure> {
        let request = self.request(Method::Delete, Some(name))?;
        let answer = self.web.send(&request).await?;
        if answer.is_success() || answer.status == 404 { Ok(()) } else { Err(silent(&request, &answer)) }
    }
}

/// The failure behind a status, without a word of the server's.
fn silent(request: &Request, answer: &Answer) -> Failure {
    refused(request, &Answer { status: answer.status, ..Answer::default() })
}

/// The variables in an answer; nothing when any part of it is something else, or a name comes twice.
fn variables(answer: &Answer, list: &str) -> Option<Kept> {
    let body = answer.json()?;
    let mut kept = Kept::new();
    for item in body.get(list)?.as_list()? {
        let text = |field: &str| item.get(field).and_then(Value::as_str).map(str::to_owned);
        if kept.insert(text("name")?, Secret::new(text("value")?)).is_some() {
            return None;
        }
    }
    Some(kept)
}

/// What a variable may be called, where it becomes one of the environment.
///
/// # Errors
/// [`FailureKind::Input`] when it is something else.
pub(crate) fn check_name(name: &str) -> Result<(), Failure> {
    let fits = |byte: u8| byte == b'_' || byte.is_ascii_alphanumeric();
    if name.len() <= 200
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && !name.is_empty()
        && name.bytes().all(fits)
    {
        return Ok(());
    }
    let message = format!(
        "{name:?} is no name of a variable; it has letters, digits and `_`, and begins with no digit"
    );
    Err(Failure::new(FailureKind::Input, message))
}

/// Whether what is secret may be sent.
///
/// # Errors
/// [`FailureKind::Denied`] when somebody on the way could read it.
pub(crate) fn check_way(in_the_clear: bool) -> Result<(), Failure> {
    if !in_the_clear {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Denied, "variables would cross the network in the clear")
        .help("use `https://`"))
}
