//! What comes back: [`Answer`].

use std::collections::BTreeMap;

use farrier_model::{Failure, FailureKind, Value};

use crate::request::Request;

/// How much of a refusal's text is repeated in an error.
const SHOWN: usize = 300;

/// What a server said.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The headers by lower-case name, those that set cookies left out; several of one name are joined by `, `.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
    /// The end of the body was left out because of the endpoint's `size_limit`.
    pub cut: bool,
}

impl Answer {
    /// Whether the status says that it worked.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }

    /// The body as text. Bytes that are not UTF-8 become `�`.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON; nothing when it is something else.
    pub fn json(&self) -> Option<Value> {
        if self.cut {
            return None;
        }
        std::str::from_utf8(&self.body).ok().and_then(|text| Value::from_json(text).ok())
    }
}

/// The failure behind a status that is none of those hoped for.
///
/// A server that breaks while it works on a request that writes may have done it: those are in doubt. One that turns a
/// request away before (429, 503) has not.
pub fn refused(request: &Request, answer: &Answer) -> Failure {
    let status = answer.status;
    let (kind, may_have_happened) = match status {
        401 | 403 | 407 => (FailureKind::Denied, false),
        409 | 423 | 425 | 429 => (FailureKind::Conflict, false),
        412 => (FailureKind::Drift, false),
        501 | 505 => (FailureKind::Refused, false),
        503 => (FailureKind::Unreachable, false),
        408 | 504 => (FailureKind::Timeout, true),
        500..=599 => (FailureKind::Unreachable, true),
        _ => (FailureKind::Refused, false),
    };
    let said = shortened(answer.text().trim());
    let colon = if said.is_empty() { "" } else { ": " };
    let mut failure = Failure::new(
        kind,
        format!("{} {} was answered with {status}{colon}{said}", request.method, request.shown_path()),
    );
    if may_have_happened && request.method != crate::Method::Get {
        failure = failure.in_doubt();
    }
    match (status, answer.headers.get("location"), answer.headers.get("retry-after")) {
        (300..=399, Some(place), _) => {
            failure.help(format!("redirects are not followed; the server points to {}", shortened(place)))
        }
        (412, ..) => failure.help("plan again: the resource is not the one that was read"),
        (429 | 503, _, Some(wait)) => {
            let failure = match seconds_to_wait(wait, answer.headers.get("date")) {
                Some(seconds) => failure.retry_after(seconds),
                None => failure,
            };
            failure.help(format!("the server asks to wait ({})", shortened(wait)))
        }
        _ => failure,
    }
}

/// What `Retry-After` means: seconds, or a moment on the server's own clock.
fn seconds_to_wait(wait: &str, date: Option<&String>) -> Option<u32> {
    if let Ok(seconds) = wait.trim().parse::<u64>() {
        return Some(u32::try_from(seconds).unwrap_or(u32::MAX));
    }
    let moment = |text: &str| jiff::fmt::rfc2822::parse(text.trim()).ok().map(|moment| moment.timestamp());
    let seconds = moment(wait)?.as_second() - moment(date?)?.as_second();
    Some(u32::try_from(seconds.max(0)).unwrap_or(u32::MAX))
}

/// The beginning of a text from outside, without what could move a terminal's cursor.
fn shortened(text: &str) -> String {
    let mut shown: String = text.chars().take(SHOWN).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Method;

    #[test]
    fn a_status_says_whether_it_may_have_happened() {
        for (method, status, kind, doubtful) in [
            (Method::Post, 400, FailureKind::Refused, false),
            (Method::Post, 401, FailureKind::Denied, false),
            (Method::Post, 404, FailureKind::Refused, false),
            (Method::Post, 409, FailureKind::Conflict, false),
            (Method::Put, 412, FailureKind::Drift, false),
            (Method::Post, 429, FailureKind::Conflict, false),
            (Method::Post, 500, FailureKind::Unreachable, true),
            (Method::Get, 500, FailureKind::Unreachable, false),
            (Method::Post, 503, FailureKind::Unreachable, false),
            (Method::Delete, 504, FailureKind::Timeout, true),
            (Method::Get, 302, FailureKind::Refused, false),
        ] {
            let request = Request::new(method, ["a"]).unwrap();
            let failure = refused(&request, &Answer { status, ..Answer::default() });
            assert_eq!((failure.kind, failure.in_doubt), (kind, doubtful), "{method} {status}");
        }
    }

    #[test]
    fn a_server_says_how_long_to_wait() {
        let now = "Wed, 21 Oct 2015 07:28:00 GMT";
        for (status, wait, seconds) in [
            (429, "7", Some(7)),
            (503, " 120 ", Some(120)),
            (503, "99999999999999", Some(u32::MAX)),
            (429, "Wed, 21 Oct 2015 07:29:30 GMT", Some(90)),
            (429, "Wed, 21 Oct 2015 07:00:00 GMT", Some(0)),
            (429, "-7", None),
            (429, "soon", None),
            (400, "7", None),
        ] {
            let headers = [("retry-after".to_owned(), wait.to_owned()), ("date".to_owned(), now.to_owned())];
            let answer = Answer { status, headers: BTreeMap::from(headers), ..Answer::default() };
            let failure = refused(&Request::new(Method::Get, ["a"]).unwrap(), &answer);
            assert_eq!(failure.retry_after_s, seconds, "{status} {wait}");
        }
    }

    #[test]
    fn a_refusal_is_repeated_in_part_and_without_control_characters() {
        let body = format!("no\x1b[2J\r\n{}", "x".repeat(1000)).into_bytes();
        let headers = BTreeMap::from([("location".to_owned(), "http://169.254.169.254/".to_owned())]);
        let answer = Answer { status: 302, body, headers, cut: false };
        let failure = refused(&Request::new(Method::Get, ["a b"]).unwrap(), &answer);
        assert!(failure.message.starts_with("GET /a%20b was answered with 302: no [2J  xxx"), "{failure}");
        assert!(failure.message.len() < 400);
        let help = failure.help.unwrap();
        assert_eq!(help, "redirects are not followed; the server points to http://169.254.169.254/");
    }
}
