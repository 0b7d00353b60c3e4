//! An S3 server in the process of a test (`s3s` on a folder), in which requests can be made to fail.
//!
//! Owns: the server, its faults, what it was asked, its objects as files.
//! Leaves to others: what a client makes of it.
//!
//! `ca.pem`, `server.pem` and `server.key` are good for `localhost`, `*.localhost` and 127.0.0.1 until 2126. Made with
//! `openssl req -x509` and `openssl x509 -req`; the CA's key was thrown away.

#![allow(dead_code, unreachable_pub, reason = "each test uses a part of it")]

use std::convert::Infallible;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Frame, Incoming};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use kiseki::objects::{Credentials, Place};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use s3s::auth::SimpleAuth;
use s3s::host::MultiDomain;
use s3s::service::{S3Service, S3ServiceBuilder};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio_rustls::TlsAcceptor;

/// The one bucket.
pub const BUCKET: &str = "kiseki";
pub const ACCESS_KEY: &str = "test-access-key";
pub const SECRET_KEY: &str = "test-secret-key";
/// File of the CA that the certificate of `start_tls` is from.
pub const CA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/s3server/ca.pem");

type Error = Box<dyn std::error::Error + Send + Sync>;
type AnyBody = UnsyncBoxBody<Bytes, Error>;

/// How the bodies of GETs end early.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cut {
    #[default]
    Whole,
    /// Half of the bytes are there, and the head says so.
    Short,
    /// The connection is closed after half of the bytes.
    Broken,
}

/// What goes wrong, from the next request on.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Every so many requests one is answered with 503 SlowDown; 0: none, 1: each.
    pub every_nth_503: u64,
    /// Seconds in the Retry-After of these.
    pub retry_after: Option<u64>,
    /// Requests are accepted, and answered only once this is false again.
    pub hang: bool,
    /// The same of puts and deletes alone.
    pub hang_writes: bool,
    /// A byte in the middle of what is put is another one when it arrives.
    pub flip_puts: bool,
    /// GETs of objects end early.
    pub cut_bodies: Cut,
    /// A byte in the middle of what a GET of an object returns is another one.
    pub flip: bool,
    /// Puts and deletes are answered with 403 AccessDenied.
    pub deny_writes: bool,
    /// All requests are answered with this status and this error code.
    pub refuse: Option<(u16, &'static str)>,
    /// Time before each answer.
    pub slow: Duration,
}

/// A request that came in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// "put", "get", "delete" or "list"; of anything else the method.
    pub verb: &'static str,
    pub host: String,
    pub path: String,
    pub query: String,
}

struct Shared {
    /// Of `S3Server::folder`.
    root: PathBuf,
    service: S3Service,
    faults: watch::Sender<Faults>,
    asked: Mutex<Vec<Asked>>,
    count: AtomicU64,
}

/// A running server. Dropping it ends it, with all its connections.
pub struct S3Server {
    shared: Arc<Shared>,
    /// Holds the bucket, and beside it what `s3s_fs` knows of the objects. Not shared: connections may outlive a test.
    folder: TempDir,
    address: SocketAddr,
    tls: bool,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl S3Server {
    /// On a free port of the loopback interface.
    pub fn start() -> Self {
        Self::run(false)
    }

    /// The same with TLS.
    pub fn start_tls() -> Self {
        Self::run(true)
    }

    fn run(tls: bool) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        fs::create_dir(folder.path().join(BUCKET)).expect("a bucket");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        listener.set_nonblocking(true).expect("a listener for tokio");
        let address = listener.local_addr().expect("its address");
        let service = {
            let mut builder = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder.path()).expect("a store"));
            builder.set_auth(SimpleAuth::from_single(ACCESS_KEY, SECRET_KEY));
            let port = address.port();
            let domains = [format!("127.0.0.1:{port}"), format!("localhost:{port}")];
            builder.set_host(MultiDomain::new(domains).expect("domains"));
            builder.build()
        };
        let shared = Arc::new(Shared {
            root: folder.path().to_owned(),
            service,
            faults: watch::Sender::default(),
            asked: Mutex::default(),
            count: AtomicU64::new(0),
        });
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                let runtime = runtime.expect("an executor");
                runtime.spawn(serve(shared, listener, tls.then(acceptor)));
                // Ends also when the server is dropped in a panic.
                let _ = runtime.block_on(stopped);
                // What still writes into the folder is waited for: it goes away next.
                runtime.shutdown_timeout(Duration::from_secs(5));
            }
        });
        Self { shared, folder, address, tls, stop: Some(stop), thread: Some(thread) }
    }

    /// Scheme, host and port.
    pub fn endpoint(&self) -> String {
        format!("{}://{}", if self.tls { "https" } else { "http" }, self.address)
    }

    /// Port of the loopback interface.
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// What `--bucket` takes.
    pub fn bucket_url(&self) -> String {
        format!("{}/{BUCKET}", self.endpoint())
    }

    /// The place of a volume in its bucket.
    pub fn place(&self, volume: &str) -> Place {
        Place::parse("s3", &self.bucket_url(), volume).expect("a place")
    }

    /// Keys that may do everything.
    pub fn credentials() -> Credentials {
        Credentials { access_key: ACCESS_KEY.into(), secret_key: SECRET_KEY.into(), session_token: None }
    }

    /// Changes what goes wrong.
    pub fn fault(&self, change: impl FnOnce(&mut Faults)) {
        self.shared.faults.send_modify(change);
    }

    /// Nothing goes wrong from here on.
    pub fn heal(&self) {
        self.fault(|faults| *faults = Faults::default());
    }

    /// All requests so far, those that were refused too.
    pub fn asked(&self) -> Vec<Asked> {
        self.shared.asked.lock().expect("the log").clone()
    }

    /// Number of requests so far.
    pub fn count(&self, verb: &str) -> usize {
        self.shared.asked.lock().expect("the log").iter().filter(|asked| asked.verb == verb).count()
    }

    /// The folder of the bucket.
    pub fn bucket(&self) -> PathBuf {
        self.folder.path().join(BUCKET)
    }

    /// The file of an object. `key` is the whole key: it begins with the name of the volume.
    pub fn object(&self, key: &str) -> PathBuf {
        self.bucket().join(key)
    }

    /// Whole keys of all objects, in order.
    pub fn keys(&self) -> Vec<String> {
        let (root, mut keys, mut left) = (self.bucket(), Vec::new(), vec![self.bucket()]);
        while let Some(folder) = left.pop() {
            // A folder may go away with its last object.
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.is_dir() {
                    left.push(path);
                } else {
                    keys.push(path.strip_prefix(&root).expect("below").to_str().expect("UTF-8").to_owned());
                }
            }
        }
        keys.sort();
        keys
    }

    /// Changes the bytes of an object behind the server's back.
    pub fn alter(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
        let mut bytes = fs::read(self.object(key)).expect("the object");
        change(&mut bytes);
        fs::write(self.object(key), bytes).expect("the object can be written");
    }

    /// Cuts an object off.
    pub fn truncate(&self, key: &str, len: usize) {
        self.alter(key, |bytes| bytes.truncate(len));
    }

    /// Removes an object behind the server's back.
    pub fn delete(&self, key: &str) {
        fs::remove_file(self.object(key)).expect("the object");
    }

    /// Exchanges two objects.
    pub fn swap(&self, one: &str, other: &str) {
        let bytes = [one, other].map(|key| fs::read(self.object(key)).expect("the object"));
        fs::write(self.object(one), &bytes[1]).expect("the object can be written");
        fs::write(self.object(other), &bytes[0]).expect("the object can be written");
    }

    /// Takes the bucket away, or brings it back.
    pub fn hide_bucket(&self, hidden: bool) {
        let away = self.folder.path().join("hidden-bucket");
        let moved = if hidden { fs::rename(self.bucket(), away) } else { fs::rename(away, self.bucket()) };
        moved.expect("the bucket moves");
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn acceptor() -> TlsAcceptor {
    let chain = CertificateDer::pem_slice_iter(include_bytes!("server.pem")).map(|cert| cert.expect("a certificate"));
    let key = PrivateKeyDer::from_pem_slice(include_bytes!("server.key")).expect("a key");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("protocol versions").with_no_client_auth().with_single_cert(chain.collect(), key);
    TlsAcceptor::from(Arc::new(config.expect("a certificate that fits the key")))
}

async fn serve(shared: Arc<Shared>, listener: std::net::TcpListener, tls: Option<TlsAcceptor>) {
    let listener = TcpListener::from_std(listener).expect("a listener");
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        stream.set_nodelay(true).expect("a TCP connection");
        let (shared, tls) = (Arc::clone(&shared), tls.clone());
        tokio::spawn(async move {
            match tls {
                None => connection(shared, stream).await,
                // A client that does not trust the certificate goes away here.
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        connection(shared, stream).await;
                    }
                }
            }
        });
    }
}

async fn connection(shared: Arc<Shared>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
    let service = hyper::service::service_fn(move |request| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.answer(request).await) }
    });
    // Clients come and go.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

impl Shared {
    async fn answer(&self, request: Request<Incoming>) -> Response<AnyBody> {
        let asked = Asked::of(&request);
        let verb = asked.verb;
        let bucket_gone = !self.root.join(BUCKET).is_dir()
            || (asked.host.starts_with("127.0.0.1") && asked.path.split('/').nth(1) != Some(BUCKET));
        self.asked.lock().expect("the log").push(asked);
        let number = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let mut changes = self.faults.subscribe();
        let is_write = matches!(verb, "put" | "delete");
        let hangs = |faults: &Faults| faults.hang || (is_write && faults.hang_writes);
        let faults = changes.wait_for(|faults| !hangs(faults)).await.expect("the server is there").clone();
        tokio::time::sleep(faults.slow).await;
        let refusal = if faults.every_nth_503 > 0 && number.is_multiple_of(faults.every_nth_503) {
            Some((503, "SlowDown"))
        } else if faults.deny_writes && is_write {
            Some((403, "AccessDenied"))
        } else if bucket_gone {
            Some((404, "NoSuchBucket"))
        } else {
            faults.refuse
        };
        if let Some((status, code)) = refusal {
            // The body is read first, or the client would find its connection closed.
            let _ = request.into_body().collect().await;
            return refuse(status, code, faults.retry_after);
        }
        let (head, body) = request.into_parts();
        let body = match faults.flip_puts && verb == "put" {
            false => s3s::Body::from(body),
            true => {
                let mut bytes = body.collect().await.map(|whole| whole.to_bytes().to_vec()).unwrap_or_default();
                let half = bytes.len() / 2;
                bytes[half] ^= 1;
                s3s::Body::from(Bytes::from(bytes))
            }
        };
        let answer = match self.service.call(Request::from_parts(head, body)).await {
            Ok(answer) => answer,
            Err(error) => return refuse(500, &format!("{error:?}"), None),
        };
        let (parts, body) = answer.into_parts();
        if verb != "get" || !parts.status.is_success() || (faults.cut_bodies == Cut::Whole && !faults.flip) {
            return Response::from_parts(parts, body.boxed_unsync());
        }
        let mut bytes = body.collect().await.map(|whole| whole.to_bytes().to_vec()).unwrap_or_default();
        let half = bytes.len() / 2;
        if faults.flip {
            bytes[half] ^= 1;
        }
        let mut answer = Response::from_parts(parts, ());
        let broken = match faults.cut_bodies {
            Cut::Whole => false,
            Cut::Short => {
                bytes.truncate(half);
                answer.headers_mut().insert("content-length", half.into());
                false
            }
            Cut::Broken => {
                bytes.truncate(half);
                true
            }
        };
        answer.map(|()| Ending { bytes: Some(bytes.into()), broken }.boxed_unsync())
    }
}

/// An error as S3 words it, with all that a client should not repeat.
fn refuse(status: u16, code: &str, retry_after: Option<u64>) -> Response<AnyBody> {
    let xml = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>No, says the test.</Message>\
         <AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId><StringToSign>{SECRET_KEY}</StringToSign></Error>"
    );
    let body = Full::new(Bytes::from(xml)).map_err(|never| match never {}).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = status.try_into().expect("a status");
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert("retry-after", seconds.into());
    }
    answer
}

impl Asked {
    fn of(request: &Request<Incoming>) -> Self {
        let (uri, method) = (request.uri(), request.method().as_str());
        let query = uri.query().unwrap_or_default();
        let verb = match method {
            "PUT" => "put",
            "DELETE" => "delete",
            "GET" if query.contains("list-type=") => "list",
            "GET" => "get",
            "HEAD" => "HEAD",
            _ => "other",
        };
        let host = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
        Self { verb, host: host.into(), path: uri.path().into(), query: query.into() }
    }
}

/// Some bytes, and then an end or a broken connection.
struct Ending {
    bytes: Option<Bytes>,
    broken: bool,
}

impl Body for Ending {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.bytes.take() {
            Some(bytes) => Poll::Ready(Some(Ok(Frame::data(bytes)))),
            None if self.broken => {
                // Once the bytes are on their way.
                self.broken = false;
                cx.waker().wake_by_ref();
                Poll::Ready(Some(Err("the test breaks the connection".into())))
            }
            None => Poll::Ready(None),
        }
    }
}
