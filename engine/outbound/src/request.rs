//! What is asked: [`Request`], in parts that are encoded one by one.

use std::fmt;
use std::fmt::Write as _;

use farrier_model::{Failure, FailureKind, Value};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::Url;

/// What is done to a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Method {
    /// Reads.
    Get,
    /// Makes something, or starts something; twice is two.
    Post,
    /// Sets to a state; twice is once.
    Put,
    /// Changes a part; twice may be two.
    Patch,
    /// Removes; twice is once.
    Delete,
}

impl Method {
    /// The word on the wire.
    pub fn name(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Post => "POST",
            Method::Put => "PUT",
            Method::Patch => "PATCH",
            Method::Delete => "DELETE",
        }
    }

    /// Whether HTTP itself says that doing it twice is the same as doing it once.
    pub fn is_idempotent(self) -> bool {
        matches!(self, Method::Get | Method::Put | Method::Delete)
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Parameters of a request, in order; a name may come several times.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(pub Vec<(String, String)>);

impl Query {
    /// Adds a parameter.
    pub fn with(mut self, name: impl Into<String>, value: impl Into<String>) -> Query {
        self.0.push((name.into(), value.into()));
        self
    }

    /// Adds the value under `name`: text, a number, a bool, or a list of these, which gives the name several times.
    /// Null gives nothing.
    ///
    /// # Errors
    /// [`FailureKind::Input`] when it is something else.
    pub fn add(&mut self, name: &str, value: &Value) -> Result<(), Failure> {
        let text = match value {
            Value::Null => return Ok(()),
            Value::List(items) => {
                for item in items.iter() {
                    if matches!(item, Value::List(_) | Value::Null) {
                        return Err(not_simple(name, item));
                    }
                    self.add(name, item)?;
                }
                return Ok(());
            }
            Value::Text(_) | Value::Bool(_) | Value::Int(_) | Value::Float(_) => value.to_string(),
            other => return Err(not_simple(name, other)),
        };
        self.0.push((name.to_owned(), text));
        Ok(())
    }

    /// Replaces every value of `name`.
    ///
    /// # Errors
    /// As [`Query::add`].
    pub fn set(&mut self, name: &str, value: &Value) -> Result<(), Failure> {
        self.0.retain(|(known, _)| known != name);
        self.add(name, value)
    }

    fn encoded(&self) -> String {
        let pairs: Vec<String> =
            self.0.iter().map(|(name, value)| format!("{}={}", encoded(name), encoded(value))).collect();
        pairs.join("&")
    }
}

fn not_simple(name: &str, value: &Value) -> Failure {
    Failure::new(
        FailureKind::Input,
        format!("`query.{name}`: expected text, a number, a bool or a list of these, found {}", value.kind()),
    )
}

/// One request. Where it goes is the endpoint's matter.
#[derive(Clone)]
pub struct Request {
    /// What to do.
    pub method: Method,
    /// Segments of the path, under that of the endpoint.
    pub path: Vec<String>,
    /// Parameters.
    pub query: Query,
    /// Headers, beside those of the endpoint.
    pub headers: Vec<(String, String)>,
    /// A body, with its media type.
    pub body: Option<(&'static str, Vec<u8>)>,
}

impl Request {
    /// A request without parameters, headers and body.
    ///
    /// # Errors
    /// [`FailureKind::Input`] when a segment of the path is none.
    pub fn new<S: AsRef<str>>(method: Method, path: impl IntoIterator<Item = S>) -> Result<Request, Failure> {
        let path = path.into_iter().map(|part| segment(part.as_ref())).collect::<Result<_, _>>()?;
        Ok(Request { method, path, query: Query::default(), headers: Vec::new(), body: None })
    }

    /// The same with parameters.
    #[must_use]
    pub fn query(self, query: Query) -> Request {
        Request { query, ..self }
    }

    /// The same with a header.
    #[must_use]
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Request {
        self.headers.push((name.into(), value.into()));
        self
    }

    /// The same with a tree as its body.
    #[must_use]
    pub fn json(self, tree: &Value) -> Request {
        Request { body: Some(("application/json", tree.to_json().into_bytes())), ..self }
    }

    /// The same with parameters as its body, for queries too long for an address.
    #[must_use]
    pub fn form(self, fields: &Query) -> Request {
        Request { body: Some(("application/x-www-form-urlencoded", fields.encoded().into_bytes())), ..self }
    }

    /// The whole address.
    pub fn url(&self, base: &Url) -> Url {
        let mut url = base.clone();
        let mut path = base.path().trim_end_matches('/').to_owned();
        for segment in &self.path {
            let _ = write!(path, "/{}", encoded(segment));
        }
        url.set_path(&path);
        url.set_query((!self.query.0.is_empty()).then(|| self.query.encoded()).as_deref());
        url
    }

    /// The path and the parameters, for people.
    pub fn shown_path(&self) -> String {
        let path: String = self.path.iter().map(|segment| format!("/{}", encoded(segment))).collect();
        if self.query.0.is_empty() { path } else { format!("{path}?{}", self.query.encoded()) }
    }
}

impl fmt::Debug for Request {
    /// Without headers and body: they may hold what is not for logs.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.method, self.shown_path())
    }
}

/// Checks one segment of a path: encoding keeps it from being two, and `..` has no encoding that all servers respect.
///
/// # Errors
/// [`FailureKind::Input`] when it is empty, `.` or `..`, or has a control character.
pub fn segment(text: &str) -> Result<String, Failure> {
    let problem = match text {
        "" => "is empty",
        "." | ".." => "would leave the path",
        _ if text.chars().any(char::is_control) => "has a control character",
        _ => return Ok(text.to_owned()),
    };
    Err(Failure::new(FailureKind::Input, format!("the path segment {text:?} {problem}")))
}

/// Percent-encodes everything but the unreserved characters of RFC 3986.
fn encoded(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                result.push(char::from(byte));
            }
            _ => {
                let _ = write!(result, "%{byte:02X}");
            }
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_value_reaches_out_of_its_place() {
        let base = Url::parse("https://example.org/api/v1/").unwrap();
        for (part, wanted) in [
            ("sal", "https://example.org/api/v1/sal"),
            ("a/../../b", "https://example.org/api/v1/a%2F..%2F..%2Fb"),
            ("a?b#c&d=e", "https://example.org/api/v1/a%3Fb%23c%26d%3De"),
            ("@evil.org", "https://example.org/api/v1/%40evil.org"),
            ("%2e%2e", "https://example.org/api/v1/%252e%252e"),
            ("\\", "https://example.org/api/v1/%5C"),
            ("ä ${x}", "https://example.org/api/v1/%C3%A4%20%24%7Bx%7D"),
            ("...", "https://example.org/api/v1/..."),
        ] {
            let request = Request::new(Method::Get, [part]).unwrap();
            assert_eq!(request.url(&base).as_str(), wanted, "{part}");
        }
        for bad in ["", ".", "..", "a\0", "a\r\nHost: b", "\u{7f}"] {
            let failure = Request::new(Method::Get, ["a", bad]).unwrap_err();
            assert_eq!(failure.kind, FailureKind::Input, "{bad:?}");
        }
    }

    #[test]
    fn parameters_stay_parameters() {
        let mut query = Query::default();
        for (name, value) in [("q", "a&b=c#d\r\nx: \"'\0"), ("n&", "1")] {
            query.add(name, &Value::text(value)).unwrap();
        }
        query.add("list", &Value::list(vec![Value::Int(1), Value::Bool(true)])).unwrap();
        query.add("none", &Value::Null).unwrap();
        let request = Request::new(Method::Get, ["a"]).unwrap().query(query);
        let url = request.url(&Url::parse("http://example.org").unwrap());
        let read: Vec<(String, String)> = url.query_pairs().into_owned().collect();
        let wanted = [("q", "a&b=c#d\r\nx: \"'\0"), ("n&", "1"), ("list", "1"), ("list", "true")];
        assert_eq!(read, wanted.map(|(name, value)| (name.to_owned(), value.to_owned())));
        assert_eq!(url.path(), "/a");
        let failure = Query::default().add("a", &Value::map([("b", Value::Int(1))])).unwrap_err();
        assert!(failure.message.ends_with("found map"), "{failure}");
    }
}
