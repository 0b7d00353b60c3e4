//! The asking end of the control socket.

use std::io::{BufRead, BufReader, Error, ErrorKind, Result, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::process::Pid;

use super::SocketPath;
use super::protocol::{Reply, Request, Status};

/// A connection to the process that has a volume mounted.
pub struct Connection {
    stream: BufReader<UnixStream>,
    pid: Pid,
}

impl Connection {
    /// Connects to the mount process of the store at `meta`; `None` if there is none.
    pub fn open(meta: &Path) -> Result<Option<Self>> {
        let stream = match SocketPath::of(meta).and_then(|socket| UnixStream::connect(&socket.path)) {
            Ok(stream) => stream,
            // Nobody listens on a socket file that a killed process left.
            Err(e)
                if matches!(
                    e.kind(),
                    ErrorKind::NotFound | ErrorKind::ConnectionRefused | ErrorKind::NotADirectory
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let pid = rustix::net::sockopt::socket_peercred(&stream)?.pid;
        Ok(Some(Self { stream: BufReader::new(stream), pid }))
    }

    /// The mount process.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Sends `request`; the replies follow by `next`.
    pub fn ask(&mut self, request: &Request) -> Result<()> {
        let mut line = serde_json::to_vec(request)?;
        line.push(b'\n');
        self.stream.get_mut().write_all(&line)
    }

    /// The next line of the answer; `UnexpectedEof` if the mount process is gone.
    pub fn next_reply(&mut self) -> Result<Reply> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Err(Error::new(ErrorKind::UnexpectedEof, "the mount process closed the control socket"));
        }
        Ok(serde_json::from_str(&line)?)
    }
}

/// The status of the mount of the store at `meta`; `None` if it is not mounted.
#[expect(clippy::wildcard_enum_match_arm, reason = "any other reply breaks the protocol")]
pub fn status_of(meta: &Path) -> Result<Option<Status>> {
    let Some(mut connection) = Connection::open(meta)? else { return Ok(None) };
    connection.ask(&Request::Status)?;
    match connection.next_reply()? {
        Reply::Status(status) => Ok(Some(*status)),
        Reply::Failed { text, .. } => Err(Error::other(text)),
        reply => Err(Error::other(format!("the mount process answered {reply:?}"))),
    }
}
