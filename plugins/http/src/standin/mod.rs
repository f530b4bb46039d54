//! Recorded routes: a server's answers in a YAML file, and the requests that came in another file.
//!
//! Read first: [`mod@file`] (what can be recorded), then [`Routes::send`].
//!
//! A request is answered by the first route that fits it. Answers of a route are given one after the other, and the last
//! one again and again. A request that carries a key is remembered: the same request under the same key gets the same
//! answer and counts once; another request under it is refused with 422, as servers with such keys do. Addresses,
//! statuses, timeouts and lost answers mean what they mean with a real server, and one suite runs against both.
//!
//! Where variables are kept, `variables` answers what no route fits.
//!
//! **Rule:** the file of requests is the truth about what happened. Nothing else is remembered. A `GET` is recorded only
//! where it counts, on a route with several answers, so looking changes nothing elsewhere.

pub(crate) mod file;
mod variables;

use std::path::{Path, PathBuf};

use async_trait::async_trait;
use farrier_action::Now;
use farrier_model::time::Timestamp;
use farrier_model::{Failure, FailureKind, Value};
use farrier_outbound::{Answer, Method, RecordFile, Request, Web};

use crate::certificate::{Shown, days};
use file::{Fault, RouteFile};

/// Recorded routes.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    path: PathBuf,
    requests: RecordFile,
    key_header: String,
    size_limit: u64,
    now: Now,
}

impl Routes {
    /// Reads the file once, so that mistakes in it show at once.
    pub(crate) fn open(
        path: PathBuf,
        state: PathBuf,
        key_header: &str,
        size_limit: u64,
        now: Now,
    ) -> Result<Routes, Failure> {
        RouteFile::read(&path)?;
        Ok(Routes {
            path,
            requests: RecordFile::new(state),
            key_header: key_header.to_ascii_lowercase(),
            size_limit,
            now,
        })
    }

    /// The certificate in the file.
    pub(crate) fn certificate(&self, now: Timestamp) -> Result<Shown, Failure> {
        let recorded = RouteFile::read(&self.path)?.certificate.ok_or_else(|| {
            Failure::new(FailureKind::Unreachable, format!("{} records no `certificate`", shown(&self.path)))
        })?;
        let days_left = days(now, recorded.not_after);
        let problem =
            recorded.problem.or_else(|| (now > recorded.not_after).then(|| "certificate expired".into()));
        Ok(Shown {
            not_after: recorded.not_after.to_string(),
            not_before: recorded.not_before.to_string(),
            days_left,
            names: recorded.names,
            subject: recorded.subject,
            issuer: recorded.issuer,
            trusted: problem.is_none(),
            problem,
        })
    }

    /// Records the request, and finds its answer and what goes wrong on the way.
    pub(crate) async fn find(&self, request: &Request) -> Result<(Answer, Option<Fault>), Failure> {
        let path = self.path.clone();
        let came = Came::of(request, &self.key_header);
        let at = self.now.get().to_string();
        self.requests
            .append(move |earlier| {
                let routes = RouteFile::read(&path)?;
                let (answer, fault, record, to_keep) = came.answered(&routes, earlier)?;
                if !to_keep {
                    return Ok((Vec::new(), (answer, fault)));
                }
                let mut record = vec![("at", Value::text(at))].into_iter().chain(record).collect::<Vec<_>>();
                if let Some(fault) = fault {
                    record.push(("fault", Value::text(fault.name())));
                }
                Ok((vec![Value::map(record)], (answer, fault)))
            })
            .await
    }
}

#[async_trait]
impl Web for Routes {
    async fn send(&self, request: &Request) -> Result<Answer, Failure> {
        let (mut answer, fault) = self.find(request).await?;
        let doing = format!("{} {}", request.method, request.shown_path());
        let doubtful = |failure: Failure| {
            if request.method == Method::Get { failure } else { failure.in_doubt() }
        };
        let too_large = answer.body.len() as u64 > self.size_limit;
        match fault {
            Some(Fault::Unreachable) => {
                Err(Failure::new(FailureKind::Unreachable, "cannot connect: connection refused (recorded)"))
            }
            Some(Fault::Timeout) => Err(doubtful(Failure::new(
                FailureKind::Timeout,
                format!("{doing} took longer than the target's timeout allows"),
            ))),
            Some(Fault::Lost | Fault::Cut) => Err(doubtful(Failure::new(
                FailureKind::Unreachable,
                format!("the answer to {doing} did not come whole: connection closed (recorded)"),
            ))),
            None if too_large && request.method == Method::Get => Err(Failure::new(
                FailureKind::Limit,
                format!("the answer to {doing} has more than {} bytes", self.size_limit),
            )
            .help("ask for less, or raise the target's `size_limit`")),
            None => {
                if too_large {
                    answer.body.truncate(self.size_limit as usize);
                    answer.cut = true;
                }
                Ok(answer)
            }
        }
    }

    fn shown(&self, request: &Request) -> String {
        // The name of a host that can never exist, so that addresses look alike.
        format!("{} http://{}.invalid{}", request.method, self.stem(), request.shown_path())
    }
}

impl Routes {
    fn stem(&self) -> String {
        let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
        stem.chars().map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' }).collect()
    }
}

/// A request as it is looked up and recorded.
struct Came {
    method: Method,
    path: Vec<String>,
    query: Vec<(String, String)>,
    headers: Vec<(String, String)>,
    body: Value,
    key: Option<String>,
}

type Record = Vec<(&'static str, Value)>;

impl Came {
    fn of(request: &Request, key_header: &str) -> Came {
        let mut headers: Vec<(String, String)> =
            request.headers.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect();
        let key = headers.iter().position(|(name, _)| *name == key_header).map(|at| headers.remove(at).1);
        let body = request.body.as_ref().map_or(Value::Null, |(_, bytes)| {
            let text = String::from_utf8_lossy(bytes);
            Value::from_json(&text).unwrap_or_else(|_| Value::text(text.into_owned()))
        });
        Came {
            method: request.method,
            path: request.path.clone(),
            query: request.query.0.clone(),
            headers,
            body,
            key,
        }
    }

    /// What makes two requests under one key the same.
    fn fields(&self) -> Record {
        let pairs = |pairs: &[(String, String)]| {
            Value::list(
                pairs
                    .iter()
                    .map(|(name, value)| {
                        Value::list(vec![Value::text(name.as_str()), Value::text(value.as_str())])
                    })
                    .collect(),
            )
        };
        vec![
            ("method", Value::text(self.method.name())),
            ("path", Value::list(self.path.iter().map(|part| Value::text(part.as_str())).collect())),
            ("query", pairs(&self.query)),
            ("headers", pairs(&self.headers)),
            ("body", self.body.clone()),
        ]
    }

    /// The answer, what goes wrong on the way, the record, and whether to keep that.
    fn answered(
        &self,
        routes: &RouteFile,
        earlier: &[Value],
    ) -> Result<(Answer, Option<Fault>, Record, bool), Failure> {
        let mut record = self.fields();
        record.extend(self.key.as_ref().map(|key| ("key", Value::text(key.as_str()))));
        let known = self.key.as_ref().and_then(|key| {
            earlier.iter().find(|record| {
                // What never arrived is not remembered.
                record.get("key").and_then(Value::as_str) == Some(key)
                    && record.get("fault").and_then(Value::as_str) != Some(Fault::Unreachable.name())
                    && record.get("status").is_some()
            })
        });
        if let Some(known) = known {
            let same = self.fields().iter().all(|(name, value)| known.get(name) == Some(value));
            record.push(("repeated", Value::Bool(true)));
            let place =
                |name| known.get(name).and_then(Value::as_int).and_then(|at| usize::try_from(at).ok());
            let recorded = place("route").zip(place("answer"));
            let answer =
                match recorded.and_then(|(route, answer)| routes.routes.get(route)?.answers.get(answer)) {
                    Some(answer) if same => answer.answer(),
                    _ => Answer {
                        status: 422,
                        body: b"the key was used for another request".to_vec(),
                        ..Answer::default()
                    },
                };
            return Ok((answer, None, record, true));
        }
        let count = |route: usize| {
            let of_route = |record: &&Value| {
                record.get("route").and_then(Value::as_int) == Some(route as i64)
                    && record.get("repeated").is_none()
            };
            earlier.iter().filter(of_route).count()
        };
        let found = routes
            .routes
            .iter()
            .enumerate()
            .find(|(_, route)| route.fits(self.method, &self.path, &self.query, earlier));
        let Some((number, route)) = found else {
            let here =
                |shelves: &variables::Shelves| shelves.answer(self.method, &self.path, &self.body, earlier);
            if let Some(answer) = routes.variables.iter().find_map(here) {
                record.push((variables::KEPT, Value::Bool(true)));
                record.push(("status", Value::Int(i64::from(answer.status))));
                return Ok((answer, None, record, self.method != Method::Get));
            }
            return Ok((
                Answer { status: 404, body: b"no recorded route".to_vec(), ..Answer::default() },
                None,
                record,
                self.method != Method::Get,
            ));
        };
        let at = count(number).min(route.answers.len().saturating_sub(1));
        let Some(recorded) = route.answers.get(at) else {
            return Err(Failure::new(FailureKind::Input, format!("route {} has no answers", number + 1)));
        };
        record.push(("route", Value::Int(number as i64)));
        record.push(("answer", Value::Int(at as i64)));
        record.push(("status", Value::Int(i64::from(recorded.status))));
        let counts = self.method != Method::Get || route.answers.len() > 1;
        Ok((recorded.answer(), recorded.fault, record, counts))
    }
}

fn shown(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}
