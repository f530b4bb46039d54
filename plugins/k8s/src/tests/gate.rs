//! A cluster behind a connection that can be cut: plain HTTP on loopback before whichever cluster a [`Place`] is in. The
//! stand-in has no socket of its own, and what goes to a real server is encrypted, where no text can be waited for.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use farrier_testkit::proxy::CutProxy;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::json;
use tokio::task::JoinHandle;

use super::Place;

/// The way to a cluster: what passes it is counted, and what is before it can be cut.
pub(crate) struct Gate {
    pub(crate) proxy: CutProxy,
    pub(crate) url: String,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Default)]
struct Shared {
    /// The writes that the cluster took and stored.
    writes: Mutex<Vec<String>>,
    /// How whoever asked has named itself, for every request.
    callers: Mutex<Vec<String>>,
    /// The method of the next request whose answer is replaced.
    times_out: Mutex<Option<http::Method>>,
}

impl Gate {
    /// Has the actions reach the cluster of `place` through a gate.
    pub(crate) async fn before(place: &mut Place) -> Gate {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = CutProxy::to(listener.local_addr().unwrap());
        let url = format!("http://{}", proxy.address());
        place.reach(&json!({ "url": url, "write_as": {} }));
        let (shared, client) = (Arc::new(Shared::default()), place.client.clone());
        let accepting = tokio::spawn({
            let shared = shared.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (shared, client) = (shared.clone(), client.clone());
                    let service = hyper::service::service_fn(move |request| {
                        pass(shared.clone(), client.clone(), request)
                    });
                    let serving = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service);
                    tokio::spawn(serving);
                }
            }
        });
        Gate { proxy, url, shared, accepting }
    }

    /// The writes that the cluster took and stored: method and path.
    pub(crate) fn writes(&self) -> Vec<String> {
        self.shared.writes.lock().unwrap().clone()
    }

    /// How those named themselves who asked since the last time.
    pub(crate) fn callers(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.callers.lock().unwrap())
    }

    /// The next request of this method is passed on, and answered as by a server that does not know what became of it.
    pub(crate) fn time_out(&self, method: http::Method) {
        *self.shared.times_out.lock().unwrap() = Some(method);
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn pass(
    shared: Arc<Shared>,
    client: kube::Client,
    request: http::Request<Incoming>,
) -> Result<http::Response<Full<Bytes>>, kube::Error> {
    let (mut parts, body) = request.into_parts();
    // The cluster's own client says where it is, and who asks.
    parts.headers.remove(http::header::HOST);
    let caller = parts.headers.remove(http::header::AUTHORIZATION);
    let caller = caller.map(|caller| caller.to_str().unwrap().to_owned()).unwrap_or_default();
    shared.callers.lock().unwrap().push(caller);
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    parts.uri = path.parse().unwrap();
    let method = parts.method.clone();
    let body = body.collect().await.unwrap().to_bytes();
    let answer = client.send(http::Request::from_parts(parts, Body::from(body.to_vec()))).await?;
    let (mut parts, body) = answer.into_parts();
    let body = body.collect().await?.to_bytes();
    if method != http::Method::GET && parts.status.is_success() && !path.contains("dryRun=All") {
        shared
            .writes
            .lock()
            .unwrap()
            .push(format!("{method} {}", path.split('?').next().unwrap_or_default()));
    }
    let times_out = shared.times_out.lock().unwrap().take_if(|waited| *waited == method).is_some();
    if times_out {
        parts.status = http::StatusCode::GATEWAY_TIMEOUT;
        let message = "Timeout: request did not complete within the allotted duration";
        let status = json!({
            "apiVersion": "v1", "kind": "Status", "status": "Failure", "reason": "Timeout", "code": 504, "message": message,
        });
        return Ok(http::Response::from_parts(bare(parts), Full::new(status.to_string().into())));
    }
    Ok(http::Response::from_parts(bare(parts), Full::new(body)))
}

/// A head without what was said of the body as it came.
fn bare(mut parts: http::response::Parts) -> http::response::Parts {
    for name in [http::header::CONTENT_LENGTH, http::header::TRANSFER_ENCODING] {
        parts.headers.remove(name);
    }
    parts.version = http::Version::HTTP_11;
    parts
}
