//! `http.get`.

use farrier_action::text::ItemExpr;
use farrier_action::{Action, Planned, ReadCx, Target};
use farrier_model::spec::Risk;
use farrier_model::{Effect, Failure, FailureKind, Value};
use farrier_outbound::{Method, Query, Request, Web};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::parts::{Answered, Headers, Params, Parts, Path, params_schema};
use crate::target::Http;

/// Reads something from a server.
///
/// A status that is not hoped for fails the step. With `pages`, the items of all pages are gathered, or the step
/// fails: part of them is never the answer.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Get {
    /// The server.
    target: Target<Http>,
    /// The path below that of the target, one text for each segment. A segment needs no encoding and never becomes two.
    #[serde(default)]
    path: Path,
    /// Parameters: text, numbers, bools, or a list of these, which gives the name several times.
    #[serde(default)]
    #[schemars(schema_with = "params_schema")]
    query: Params,
    /// Headers. A step may set `accept`, `accept-language`, `if-match`, `if-modified-since`, `if-none-match`,
    /// `if-unmodified-since`, `prefer`, `range` and `x-request-id`.
    #[serde(default)]
    headers: Headers,
    /// The statuses to hope for. Left out, those from 200 to 299.
    #[serde(default)]
    ok: Option<Vec<u16>>,
    /// How to go through an answer that comes in pages.
    #[serde(default)]
    pages: Option<Pages>,
}

/// How to go through an answer that comes in pages. In the expressions, `item` is one answer, with `status`, `headers`,
/// `json` and `text`.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Pages {
    /// The items of one page: a bare expression that gives a list, as in `item.json.results`.
    items: ItemExpr,
    /// Where the next page is: a bare expression that gives parameters to set (`item.json.continue`), the address of a
    /// page at the same place, or none after the last one. Left out, the `Link` header with `rel="next"` says so.
    #[serde(default)]
    next: Option<ItemExpr>,
    /// More pages than this are an error. The default is 100.
    #[serde(default = "a_hundred")]
    at_most: u32,
}

fn a_hundred() -> u32 {
    100
}

/// What the server said.
#[derive(Debug, Serialize, JsonSchema)]
pub(crate) struct Got {
    /// The status code; of the last page, where there are several.
    status: u16,
    /// The headers, by lower-case name.
    headers: std::collections::BTreeMap<String, String>,
    /// The body as a tree; none when it is not JSON.
    #[schemars(with = "serde_json::Value")]
    json: Value,
    /// The body as text.
    text: String,
    /// The items of all pages; empty without `pages`.
    #[schemars(with = "Vec<serde_json::Value>")]
    items: Vec<Value>,
}

impl Action for Get {
    const NAME: &'static str = "http.get";
    const EFFECT: Effect = Effect::Read;
    const RISK: Risk = Risk::ReadOnly;
    const EXAMPLE: &'static str = "\
repositories:
  uses: http.get
  with:
    target: registry
    path: [api, v2.0, projects, tools, repositories]
    query: { page_size: 100 }
    pages: { items: item.json }
";
    type Output = Got;

    async fn plan(&self, cx: &ReadCx) -> Result<Planned<Got>, Failure> {
        let parts = Parts {
            method: Method::Get,
            path: &self.path,
            query: &self.query,
            headers: &self.headers,
            json: None,
        };
        let request = parts.request()?;
        let reader = cx.reader(&self.target).await?;
        self.all(&*reader.web, request, cx)
            .await
            .map(Planned::known)
            .map_err(|failure| failure.at(self.target.alias()))
    }
}

impl Get {
    async fn all(&self, web: &dyn Web, mut request: Request, cx: &ReadCx) -> Result<Got, Failure> {
        let mut items = Vec::new();
        let mut asked = Vec::new();
        loop {
            let answer = web.send(&request).await?;
            let answer = Answered::judge(&request, answer, self.ok.as_deref())?;
            let next = match &self.pages {
                None => None,
                Some(pages) => {
                    let (found, next) = pages.page(&request, &answer, web, cx)?;
                    items.extend(found);
                    next
                }
            };
            let Some(next) = next else {
                let Answered { status, headers, json, text } = answer;
                return Ok(Got { status, headers, json, text, items });
            };
            let limit = self.pages.as_ref().map_or(1, |pages| pages.at_most);
            asked.push(request.shown_path());
            if asked.len() as u64 >= u64::from(limit) {
                return Err(Failure::new(FailureKind::Limit, format!("there are more than {limit} pages"))
                    .help("ask for larger pages, or raise `pages.at_most`"));
            }
            if asked.contains(&next.shown_path()) {
                return Err(Failure::new(
                    FailureKind::Refused,
                    format!("the pages go round in a circle: {} comes again", next.shown_path()),
                ));
            }
            request = next;
        }
    }
}

impl Pages {
    /// The items of a page, and the request for the next.
    fn page(
        &self,
        request: &Request,
        answer: &Answered,
        web: &dyn Web,
        cx: &ReadCx,
    ) -> Result<(Vec<Value>, Option<Request>), Failure> {
        let page = Value::of(answer)
            .map_err(|error| Failure::new(FailureKind::Internal, format!("no value: {error}")))?;
        let scope = cx.scope().with("item", page);
        let items = match self.items.eval(&scope)? {
            Value::List(items) => items.to_vec(),
            other => {
                return Err(Failure::new(
                    FailureKind::Refused,
                    format!("`pages.items` of {} is {}, not a list", request.shown_path(), other.kind()),
                ));
            }
        };
        let next = match &self.next {
            Some(next) => next.eval(&scope)?,
            None => {
                let link = answer.headers.get("link").and_then(|links| next_link(links));
                link.map_or(Value::Null, Value::text)
            }
        };
        let next = match next {
            Value::Null => None,
            Value::Text(address) if address.is_empty() => None,
            Value::Text(address) => Some(at_the_same_place(web, request, &address)?),
            Value::Map(params) => {
                let mut query = request.query.clone();
                for (name, value) in params.iter() {
                    query.set(name, value)?;
                }
                Some(Request { query, ..request.clone() })
            }
            other => {
                return Err(Failure::new(
                    FailureKind::Refused,
                    format!("`pages.next` is {}; expected parameters, an address, or none", other.kind()),
                ));
            }
        };
        Ok((items, next))
    }
}

/// The address of the next page in a `Link` header.
fn next_link(links: &str) -> Option<String> {
    let mut rest = links;
    while let Some(start) = rest.find('<') {
        let (address, after) = rest[start + 1..].split_once('>')?;
        let (params, others) = match after.find('<') {
            Some(at) => after.split_at(at),
            None => (after, ""),
        };
        let is_next = params.split([';', ',']).any(|param| {
            param.split_once('=').is_some_and(|(name, value)| {
                name.trim().eq_ignore_ascii_case("rel")
                    && value.trim().trim_matches('"').split(' ').any(|word| word == "next")
            })
        });
        if is_next {
            return Some(address.to_owned());
        }
        rest = others;
    }
    None
}

/// A request for an address that the server gave: the same scheme, host and port, below the target's path. A server
/// must not send us, with our credentials, to another one.
fn at_the_same_place(web: &dyn Web, request: &Request, address: &str) -> Result<Request, Failure> {
    let wrong = |reason: &str| {
        Failure::new(FailureKind::Refused, format!("the address of the next page, {address:?}, {reason}"))
    };
    let root = Request { path: Vec::new(), query: Query::default(), ..request.clone() };
    let parse = |request: &Request| {
        let shown = web.shown(request);
        url::Url::parse(shown.split_once(' ').map_or("", |(_, url)| url)).map_err(|_| wrong("has no base"))
    };
    let base = parse(&root)?;
    let next = parse(request)?.join(address).map_err(|_| wrong("is not one"))?;
    if next.origin() != base.origin() || !next.username().is_empty() || next.password().is_some() {
        return Err(wrong("leads to another server"));
    }
    let prefix = base.path().trim_end_matches('/');
    let below = next.path().strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let below = below.ok_or_else(|| wrong("leads out of the target's path"))?;
    let segments = below
        .split('/')
        .filter(|part| !part.is_empty())
        .map(|part| farrier_outbound::segment(&decoded(part)))
        .collect::<Result<_, _>>()?;
    let query = Query(next.query_pairs().into_owned().collect());
    Ok(Request { path: segments, query, ..request.clone() })
}

/// Undoes percent-encoding once.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &after[2..];
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_next_link_is_found_among_others() {
        for (links, wanted) in [
            ("<https://a/?p=2>; rel=\"next\", <https://a/?p=9>; rel=\"last\"", Some("https://a/?p=2")),
            ("</a?p=1>; rel=prev , </a?p=3>; title=\"x\"; rel=next", Some("/a?p=3")),
            ("<a>; rel=\"first next\"", Some("a")),
            ("<a>; rel=\"last\"", None),
            ("<a; rel=\"next\"", None),
            ("", None),
        ] {
            assert_eq!(next_link(links).as_deref(), wanted, "{links}");
        }
        assert_eq!(decoded("a%2Fb%c3%a4%zz%"), "a/bä%zz%");
    }
}
