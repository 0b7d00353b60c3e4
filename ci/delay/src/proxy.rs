//! The proxy: each request goes on to the server behind it, each answer comes back.
//!
//! Owns: forwarding, failing and delaying requests. Leaves to others: when to (`rules`), bandwidth (`pace`).
//!
//! Invariants
//! - Path, query, `Host` and every header that a signature can cover pass unchanged.
//! - Bodies are streamed: nothing is held but the frame that is under way.
//! - Where the server gives no answer, the client gets none: its connection is closed, as without the proxy.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full};
use hyper::body::Incoming;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderMap, HeaderName, TRANSFER_ENCODING, UPGRADE};
use hyper::http::uri::{Authority, Scheme};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::sleep;

use crate::pace::{Lane, Paced};
use crate::rules::{Control, Rules};

type Answer = Response<Either<Paced<Incoming>, Full<Bytes>>>;
type AnyError = Box<dyn std::error::Error + Send + Sync>;

/// Headers of one connection (RFC 9110, 7.6.1), not of the request.
const HOP_BY_HOP: [HeaderName; 4] = [CONNECTION, HeaderName::from_static("keep-alive"), TRANSFER_ENCODING, UPGRADE];

/// After a failed accept (out of file descriptors): others must end first.
const ACCEPT_RETRY: Duration = Duration::from_millis(10);

pub(crate) struct Proxy {
    to: Authority,
    control: Control,
    client: Client<HttpConnector, Paced<Incoming>>,
    up: Arc<Lane>,
    down: Arc<Lane>,
    /// Requests so far.
    count: AtomicU64,
}

impl Proxy {
    pub(crate) fn new(to: Authority, control: Control) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let (up, down) = (Arc::new(Lane::new()), Arc::new(Lane::new()));
        Self { to, control, client, up, down, count: AtomicU64::new(0) }
    }

    /// Serves every connection, until the process ends.
    pub(crate) async fn accept(self: Arc<Self>, listener: TcpListener) -> ! {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => drop(tokio::spawn(self.clone().connection(stream))),
                Err(error) => {
                    eprintln!("delay: cannot accept: {error}");
                    sleep(ACCEPT_RETRY).await;
                }
            }
        }
    }

    async fn connection(self: Arc<Self>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let service = service_fn(|request| self.answer(request));
        // An error ends this connection, and its client sees that.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<Answer, AnyError> {
        let rules = self.control.rules();
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let answer = match rules.fail {
            Some(fail) if number.is_multiple_of(fail.every) => self.refuse(request, &rules, fail.status).await?,
            Some(_) | None => self.forward(request, &rules).await?,
        };
        if !rules.latency.is_zero() {
            sleep(rules.latency).await;
        }
        Ok(answer)
    }

    async fn forward(&self, request: Request<Incoming>, rules: &Rules) -> Result<Answer, AnyError> {
        let (mut parts, body) = request.into_parts();
        let mut uri = parts.uri.into_parts();
        uri.scheme = Some(Scheme::HTTP);
        uri.authority = Some(self.to.clone());
        parts.uri = Uri::from_parts(uri)?;
        drop_hop_by_hop(&mut parts.headers);
        let body = Paced::new(body, &self.up, rules.bandwidth);
        let (mut parts, body) = self.client.request(Request::from_parts(parts, body)).await?.into_parts();
        drop_hop_by_hop(&mut parts.headers);
        Ok(Response::from_parts(parts, Either::Left(Paced::new(body, &self.down, rules.bandwidth))))
    }

    /// Answers with an error of S3. The body is taken first: a client that is still sending would not read an answer.
    async fn refuse(&self, request: Request<Incoming>, rules: &Rules, status: StatusCode) -> Result<Answer, AnyError> {
        let is_head = request.method() == Method::HEAD;
        let mut body = Paced::new(request.into_body(), &self.up, rules.bandwidth);
        while let Some(frame) = body.frame().await {
            frame?;
        }
        let (code, message) = match status {
            StatusCode::SERVICE_UNAVAILABLE => ("SlowDown", "Please reduce your request rate."),
            StatusCode::TOO_MANY_REQUESTS => ("TooManyRequests", "Please reduce your request rate."),
            StatusCode::FORBIDDEN => ("AccessDenied", "Access Denied."),
            _ => ("InternalError", "We encountered an internal error. Please try again."),
        };
        let text = format!(
            "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>{message}</Message></Error>"
        );
        let text = if is_head { String::new() } else { text };
        let answer = Response::builder().status(status).header(CONTENT_TYPE, "application/xml");
        Ok(answer.body(Either::Right(Full::from(text)))?)
    }
}

fn drop_hop_by_hop(headers: &mut HeaderMap) {
    for name in HOP_BY_HOP {
        headers.remove(name);
    }
}
