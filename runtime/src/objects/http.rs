//! HTTP to an S3 store, between OpenDAL and reqwest.
//!
//! Owns: the HTTP client (TLS, proxies, connections), and what of an answer is more than its body.
//! Leaves to others: signing and the requests themselves (OpenDAL), what a failure means (`failure`).
//!
//! Invariants
//! - An answer other than success comes back as an error with a `Failure` at its root.
//! - Nothing follows a redirect: signed requests are for the place that was named.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use http::header::{CONTENT_LENGTH, DATE, HeaderMap, HeaderName, RANGE, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use opendal::raw::oio::ReadStream;
use opendal::{Buffer, ErrorKind, HttpBody, HttpTransport};
use opendal_http_transport_reqwest::ReqwestTransport;
use url::Url;

use super::failure::{Failure, Kind, chain};
use super::{Credentials, GETS_MAX, ObjectsError, PUTS_MAX, S3Place};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Servers close idle connections after 20 s or more; ours go first, so that no request meets a closing one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);
const KEEPALIVE: Duration = Duration::from_secs(30);
/// More of an error's body is not read: S3's are a few hundred bytes.
const ERROR_BODY_MAX: usize = 16 << 10;

/// The client of one store.
pub(super) fn client(place: &S3Place) -> Result<reqwest::Client, ObjectsError> {
    // Fails if there is one already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = reqwest::Client::builder()
        .user_agent(concat!("kiseki/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .tcp_nodelay(true)
        .tcp_keepalive(KEEPALIVE)
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(PUTS_MAX + GETS_MAX)
        .redirect(reqwest::redirect::Policy::none())
        .referer(false);
    if is_loopback(&place.endpoint) {
        // The proxies of the environment are for the way out.
        builder = builder.no_proxy();
        // Names below localhost are this machine (RFC 6761, 6.3), which not every resolver knows.
        for name in [url_host(&place.endpoint), format!("{}.{}", place.bucket, url_host(&place.endpoint))] {
            if name.ends_with(".localhost") {
                builder = builder.resolve(&name, (Ipv4Addr::LOCALHOST, 0).into());
            }
        }
    }
    if !place.endpoint.starts_with("https:") {
        // A machine without any CA certificates can still speak to a store without TLS.
        builder = builder.tls_certs_only([]);
    }
    if let Some(path) = &place.ca {
        let failed = |problem: String| ObjectsError::Ca { path: path.clone(), problem };
        let pem = std::fs::read(path).map_err(|error| failed(error.to_string()))?;
        let certificates = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| failed(chain(&error)))?;
        if certificates.is_empty() {
            return Err(failed("there is none in it".into()));
        }
        builder = builder.tls_certs_merge(certificates);
    }
    builder.build().map_err(|error| ObjectsError::Setup(chain(&error)))
}

fn url_host(endpoint: &str) -> String {
    Url::parse(endpoint).ok().and_then(|url| url.host_str().map(str::to_owned)).unwrap_or_default()
}

fn is_loopback(endpoint: &str) -> bool {
    let host = url_host(endpoint);
    let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
    host == "localhost" || host.ends_with(".localhost") || address.is_ok_and(|address| address.is_loopback())
}

/// Sees every request and every answer.
pub(super) struct Watched {
    inner: ReqwestTransport,
    /// To keep out of texts.
    keys: Arc<Credentials>,
}

impl Watched {
    pub(super) fn new(client: reqwest::Client, keys: Arc<Credentials>) -> Self {
        Self { inner: ReqwestTransport::new(client), keys }
    }
}

impl HttpTransport for Watched {
    async fn fetch(&self, request: Request<Buffer>) -> opendal::Result<Response<HttpBody>> {
        let wanted = wanted(request.headers());
        let response = self.inner.fetch(request).await?;
        let failure = match (response.status(), wanted) {
            (status, None) if status.is_success() => return Ok(response),
            (status, Some(wanted)) if status.is_success() => match check_range(status, response.headers(), &wanted) {
                Ok(()) => return Ok(response),
                Err(failure) => failure,
            },
            (_, _) => self.read_failure(response).await,
        };
        // Its kind is for OpenDAL only; who classifies looks at the source.
        Err(opendal::Error::new(ErrorKind::Unexpected, failure.text.clone()).set_source(failure))
    }
}

impl Watched {
    async fn read_failure(&self, response: Response<HttpBody>) -> Failure {
        let (parts, mut body) = response.into_parts();
        let mut head: Vec<u8> = Vec::new();
        // What cannot be read of it is not needed: the status is known.
        while let Ok(part) = body.read().await {
            if part.is_empty() || head.len() >= ERROR_BODY_MAX {
                break;
            }
            head.extend_from_slice(&part.to_bytes());
        }
        head.truncate(ERROR_BODY_MAX);
        let mut failure = Failure::of_answer(
            parts.status.as_u16(),
            &String::from_utf8_lossy(&head),
            text(&parts.headers, DATE),
            // Seconds; the other form, a date, says nothing to a clock that differs.
            text(&parts.headers, RETRY_AFTER).and_then(|text| text.trim().parse().ok()).map(Duration::from_secs),
        );
        failure.text = self.keys.hide(&failure.text);
        failure
    }
}

/// The range that a request asks for: `bytes=FIRST-LAST`.
fn wanted(headers: &HeaderMap) -> Option<Range<u64>> {
    let (first, last) = text(headers, RANGE)?.strip_prefix("bytes=")?.split_once('-')?;
    Some(first.parse().ok()?..last.parse::<u64>().ok()? + 1)
}

/// Whether an answer holds what was asked for, as far as its head says.
fn check_range(status: StatusCode, headers: &HeaderMap, wanted: &Range<u64>) -> Result<(), Failure> {
    if status != StatusCode::PARTIAL_CONTENT && wanted.start != 0 {
        return Err(Failure::new(Kind::Refused, "it does not answer with the range that was asked for"));
    }
    let Some(found) = text(headers, CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok()) else {
        // Its end is noticed when it comes.
        return Ok(());
    };
    let len = wanted.end - wanted.start;
    match found {
        found if found == len => Ok(()),
        found if found < len => Err(Failure::new(Kind::Short, format!("{found} bytes instead of {len}"))),
        found => Err(Failure::new(Kind::Refused, format!("it answers with {found} bytes instead of {len}"))),
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_known() {
        let cases = [
            ("http://127.0.0.1:9000", true),
            ("http://127.8.8.8", true),
            ("https://[::1]:9000", true),
            ("http://localhost:1", true),
            ("http://minio.localhost", true),
            ("http://localhost.example", false),
            ("http://10.0.0.1:9000", false),
            ("https://s3.us-east-1.amazonaws.com", false),
        ];
        for (endpoint, expected) in cases {
            assert_eq!(is_loopback(endpoint), expected, "{endpoint}");
        }
    }

    #[test]
    fn heads_of_answers_tell_short_from_wrong() {
        let cases = [
            (206, Some(100), 0..100, None),
            (200, Some(100), 0..100, None),
            (206, None, 0..100, None),
            (206, Some(99), 0..100, Some(Kind::Short)),
            (206, Some(1), 7..9, Some(Kind::Short)),
            (206, Some(101), 0..100, Some(Kind::Refused)),
            (200, Some(100), 1..101, Some(Kind::Refused)),
        ];
        for (status, len, wanted, expected) in cases {
            let mut headers = HeaderMap::new();
            if let Some(len) = len {
                headers.insert(CONTENT_LENGTH, http::HeaderValue::from(len));
            }
            let status = StatusCode::from_u16(status).expect("a status");
            let found = check_range(status, &headers, &wanted).err().map(|failure| failure.kind);
            assert_eq!(found, expected, "{status} {len:?} {wanted:?}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(RANGE, http::HeaderValue::from_static("bytes=5-9"));
        assert_eq!(wanted(&headers), Some(5..10));
    }
}
