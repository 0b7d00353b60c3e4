//! The proxy between real sockets: a client that writes HTTP by hand, and a server that says what it was asked.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::proxy::Proxy;
use crate::rules::{Control, Rules};

struct World {
    proxy: SocketAddr,
    /// Connections that the server was asked for.
    connections: Arc<AtomicU64>,
}

/// Says method, target, host and signature of a request, and how long its body was; then `answer` bytes of its own.
async fn tell(request: Request<Incoming>, answer: usize) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let header = |name: &str| request.headers().get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
    let mut text = format!("{} {} {} {}", request.method(), request.uri(), header("host"), header("authorization"));
    let len = request.into_body().collect().await?.to_bytes().len();
    text += &format!(" {len}\n");
    text += &"x".repeat(answer);
    Ok(Response::new(Full::from(text)))
}

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn proxy_to(server: SocketAddr, rules: &[(&str, &str)], control: Option<PathBuf>) -> SocketAddr {
    let mut all = Rules::default();
    rules.iter().for_each(|(name, value)| all.set(name, value).unwrap());
    let (listener, address) = listen().await;
    let proxy = Proxy::new(server.to_string().parse().unwrap(), Control::new(all, control));
    tokio::spawn(async { Arc::new(proxy).accept(listener).await });
    address
}

async fn start(rules: &[(&str, &str)], control: Option<PathBuf>, answer: usize) -> World {
    let (listener, address) = listen().await;
    let connections = Arc::new(AtomicU64::new(0));
    let count = connections.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let service = service_fn(move |request| tell(request, answer));
            tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    World { proxy: proxy_to(address, rules, control).await, connections }
}

struct Connection(TcpStream);

impl Connection {
    async fn open(to: SocketAddr) -> Self {
        Self(TcpStream::connect(to).await.unwrap())
    }

    async fn send(&mut self, method: &str, target: &str, body: &[u8]) {
        let head = format!(
            "{method} {target} HTTP/1.1\r\nHost: bucket.example\r\nAuthorization: signed\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.write_all(head.as_bytes()).await.unwrap();
        self.0.write_all(body).await.unwrap();
    }

    /// Status and body of an answer that names its length; none: the connection ended.
    async fn receive(&mut self) -> Option<(u16, String)> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            match self.0.read(&mut byte).await {
                Ok(1) => head.push(byte[0]),
                _ => return None,
            }
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let status = head.split(' ').nth(1)?.parse().ok()?;
        let len = head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).await.ok()?;
        Some((status, String::from_utf8(body).unwrap()))
    }

    async fn ask(&mut self, method: &str, target: &str, body: &[u8]) -> (u16, String) {
        self.send(method, target, body).await;
        self.receive().await.expect("an answer")
    }
}

#[tokio::test]
async fn what_is_signed_passes_unchanged_on_connections_that_are_kept() {
    let world = start(&[], None, 0).await;
    let mut client = Connection::open(world.proxy).await;
    for target in ["/b/a%2Fb%20c/%7Ex?list-type=2&prefix=a%2B", "/"] {
        let told = client.ask("PUT", target, b"12345").await;
        assert_eq!(told, (200, format!("PUT {target} bucket.example signed 5\n")));
    }
    assert_eq!(world.connections.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn latency_is_added_to_every_request() {
    let world = start(&[("latency", "15ms")], None, 0).await;
    let mut client = Connection::open(world.proxy).await;
    let begin = Instant::now();
    client.ask("GET", "/", b"").await;
    client.ask("GET", "/", b"").await;
    assert!(begin.elapsed() >= Duration::from_millis(30));
}

#[tokio::test]
async fn bandwidth_is_shared_by_connections_and_apart_for_each_direction() {
    // 1 MB/s: 2 * 20 kB take 40 ms, less what an idle lane lets through at once.
    let least = Duration::from_millis(35);
    for (sent, answer) in [(20_000, 0), (0, 20_000)] {
        let world = start(&[("bandwidth", "8M")], None, answer).await;
        let body = vec![b'x'; sent];
        let begin = Instant::now();
        let (mut a, mut b) = (Connection::open(world.proxy).await, Connection::open(world.proxy).await);
        let (a, b) = tokio::join!(a.ask("PUT", "/", &body), b.ask("PUT", "/", &body));
        assert!(begin.elapsed() >= least, "{sent} sent, {answer} answered in {:?}", begin.elapsed());
        assert!(a.1.len() > answer && a == b);
    }
}

#[tokio::test]
async fn every_second_request_fails_and_its_connection_goes_on() {
    let world = start(&[("fail", "every:2:503")], None, 0).await;
    let mut client = Connection::open(world.proxy).await;
    // More than fits into the sockets' buffers: an answer before the end of the body would not be read.
    let body = vec![b'x'; 8 << 20];
    for _ in 0..2 {
        let (status, text) = client.ask("PUT", "/", &body).await;
        assert_eq!((status, text.ends_with(&format!(" {}\n", body.len()))), (200, true));
        let (status, text) = client.ask("PUT", "/", &body).await;
        assert_eq!((status, text.contains("<Code>SlowDown</Code>")), (503, true));
    }
}

#[tokio::test]
async fn a_control_file_changes_rules_while_it_is_there() {
    let file = std::env::temp_dir().join(format!("delay-control-{}", std::process::id()));
    let world = start(&[("fail", "every:1:500")], Some(file.clone()), 0).await;
    let mut client = Connection::open(world.proxy).await;
    let mut status = Vec::new();
    for text in [None, Some("fail none\n"), Some("fail every:1:429\n"), Some("fail sometimes\n"), None] {
        match text {
            Some(text) => std::fs::write(&file, text).unwrap(),
            None => drop(std::fs::remove_file(&file)),
        }
        status.push(client.ask("GET", "/", b"").await.0);
    }
    assert_eq!(status, [500, 200, 429, 429, 500]);
}

#[tokio::test]
async fn bodies_are_not_held_back() {
    let (listener, address) = listen().await;
    let mut client = Connection::open(proxy_to(address, &[], None).await).await;
    // The first part of each body arrives before the second is sent, in both directions.
    client.0.write_all(b"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
    let (mut server, _) = listener.accept().await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\nab") {
        seen.push(server.read_u8().await.unwrap());
    }
    client.0.write_all(b"cd").await.unwrap();
    assert_eq!([server.read_u8().await.unwrap(), server.read_u8().await.unwrap()], *b"cd");
    server.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nef").await.unwrap();
    let mut seen = Vec::new();
    while !seen.ends_with(b"\r\n\r\nef") {
        seen.push(client.0.read_u8().await.unwrap());
    }
    server.write_all(b"gh").await.unwrap();
    assert_eq!([client.0.read_u8().await.unwrap(), client.0.read_u8().await.unwrap()], *b"gh");
}

#[tokio::test]
async fn no_server_no_answer() {
    // The listener is gone at once: nobody holds its port.
    let (_, address) = listen().await;
    let mut client = Connection::open(proxy_to(address, &[], None).await).await;
    client.send("GET", "/", b"").await;
    assert_eq!(client.receive().await, None);
}
