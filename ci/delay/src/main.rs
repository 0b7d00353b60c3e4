//! A reverse proxy in front of an S3 server that adds latency, limits bandwidth and fails requests.
//!
//!   delay --listen 127.0.0.1:0 --to http://127.0.0.1:9000 [--latency 50ms] [--bandwidth 1G] [--fail every:2:503]
//!         [--control FILE]
//!
//! `--latency` is added to each request once, `--bandwidth` (bits a second; k, M, G) is shared by the bodies of all
//! requests in each direction, `--fail every:N:STATUS` answers every Nth request with an S3 error of that status.
//! `--control FILE` overrides them while it runs: lines like `latency 50ms`, `bandwidth 100M`, `fail every:2:503`, or
//! `latency none`; what the file does not name is as on the command line, also once the file is gone. It is read at
//! each request, so replace it by rename. Prints the URL it listens on.

mod pace;
mod proxy;
mod rules;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use hyper::Uri;
use tokio::net::TcpListener;

use proxy::Proxy;
use rules::{Control, Rules};

struct Args {
    listen: SocketAddr,
    to: Uri,
    rules: Rules,
    control: Option<PathBuf>,
}

fn parse(mut words: impl Iterator<Item = String>) -> Result<Args, String> {
    let (mut listen, mut to, mut rules, mut control) = (None, None, Rules::default(), None);
    while let Some(word) = words.next() {
        let value = words.next().ok_or(format!("{word} needs a value"))?;
        match word.as_str() {
            "--listen" => listen = Some(value.parse().map_err(|_| format!("{value} is not ADDRESS:PORT"))?),
            "--to" => to = Some(value.parse::<Uri>().map_err(|error| format!("{value}: {error}"))?),
            "--control" => control = Some(value.into()),
            "--latency" | "--bandwidth" | "--fail" => rules.set(&word[2..], &value)?,
            _ => return Err(format!("unknown argument {word}")),
        }
    }
    let (Some(listen), Some(to)) = (listen, to) else { return Err("--listen and --to are needed".into()) };
    if to.scheme_str() != Some("http") || to.authority().is_none() || to.path() != "/" {
        return Err(format!("--to is http://HOST:PORT, not {to}"));
    }
    Ok(Args { listen, to, rules, control })
}

#[tokio::main]
async fn main() -> ExitCode {
    match parse(std::env::args().skip(1)) {
        Ok(args) => match serve(args).await {
            Ok(()) => ExitCode::SUCCESS,
            Err(text) => fail(&text, 1),
        },
        Err(text) => fail(&text, 2),
    }
}

fn fail(text: &str, code: u8) -> ExitCode {
    eprintln!("delay: {text}");
    ExitCode::from(code)
}

async fn serve(args: Args) -> Result<(), String> {
    let text = |error: std::io::Error| format!("cannot listen on {}: {error}", args.listen);
    let listener = TcpListener::bind(args.listen).await.map_err(text)?;
    println!("http://{}", listener.local_addr().map_err(text)?);
    let authority = args.to.into_parts().authority.ok_or("--to names no host")?;
    let control = Control::new(args.rules, args.control);
    Arc::new(Proxy::new(authority, control)).accept(listener).await
}
