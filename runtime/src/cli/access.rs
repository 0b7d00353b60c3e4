//! How a command reaches an object store: keys and addresses, from flags and from the environment.
//!
//! Owns: where keys come from, what flags add to the text of a bucket, keeping keys out of sight.
//! Leaves to others: what the text of a bucket means (`objects::Place`), the requests themselves (`objects`).
//!
//! Invariant: a secret stands neither among the arguments of a process that goes on, nor in anything that is printed.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, ValueEnum};
use kiseki_core::format::values::Volume;
use url::form_urlencoded;

use super::open::explain_objects;
use super::output::{Context, Failure, Outcome};
use super::place::absolute;
use crate::objects::{Credentials, Place};

/// The flags that other users must not see, and the variables that stand in for them.
const ACCESS_KEY: &str = "KISEKI_ACCESS_KEY";
const SECRET_KEY: &str = "KISEKI_SECRET_KEY";
const SECRETS: [(&str, &str); 2] = [("--access-key", ACCESS_KEY), ("--secret-key", SECRET_KEY)];

/// What `--help` says of keys.
pub(super) const KEYS_HELP: &str = "\
Keys of an S3 store are taken from --access-key and --secret-key, else from the environment: KISEKI_ACCESS_KEY and
KISEKI_SECRET_KEY, else AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; temporary keys have KISEKI_SESSION_TOKEN, or
AWS_SESSION_TOKEN, with them. --env-file names a file of such variables, a line NAME=VALUE each; it goes before the
environment. Prefer either to flags, which a shell remembers. Keys are never stored with the volume, logged or shown.";

/// Keys of an object store.
#[derive(Args)]
pub(super) struct Keys {
    /// Access key of an S3 store [env: KISEKI_ACCESS_KEY, or AWS_ACCESS_KEY_ID]
    #[arg(long, value_name = "KEY")]
    access_key: Option<String>,
    /// Secret key of an S3 store [env: KISEKI_SECRET_KEY, or AWS_SECRET_ACCESS_KEY]
    #[arg(long, value_name = "KEY")]
    secret_key: Option<String>,
    /// Take keys from the variables in this file
    #[arg(long, value_name = "FILE")]
    env_file: Option<PathBuf>,
}

/// Without the keys.
impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// The keys for `place`, which a folder has no use for.
    pub(super) fn of(&self, place: &Place) -> Outcome<Option<Credentials>> {
        match place {
            Place::Folder(_) => Ok(None),
            Place::S3(_) => {
                let variables = self.env_file.as_deref().map_or_else(|| Ok(BTreeMap::new()), variables_in)?;
                Credentials::resolve(self.access_key.clone(), self.secret_key.clone(), &variables)
                    .map_err(|error| Failure::new(format!("cannot reach the objects at {place}: {error}")))
            }
        }
    }
}

/// The variables that a file sets: a line `NAME=VALUE` each, the value perhaps in quotes; `#` begins a comment
/// (the simple form of systemd.exec(5), EnvironmentFile=).
fn variables_in(path: &Path) -> Outcome<BTreeMap<String, String>> {
    let text = std::fs::read_to_string(path).context(|| format!("read --env-file {}", path.display()))?;
    let mut variables = BTreeMap::new();
    for (at, line) in text.lines().map(str::trim).enumerate() {
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            // The line itself may be a secret.
            return Err(Failure::new(format!("line {} of --env-file {} is not NAME=VALUE", at + 1, path.display())));
        };
        let value = value.trim();
        let unquoted = ['"', '\''].iter().find_map(|quote| value.strip_prefix(*quote)?.strip_suffix(*quote));
        variables.insert(name.trim().into(), unquoted.unwrap_or(value).into());
    }
    Ok(variables)
}

/// Runs this command again in the same process without keys among its arguments, which every user of the machine can
/// read; its environment is for the same user only. Returns if there are none.
pub(super) fn hide_keys() -> Outcome<()> {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    let (kept, keys) = without_keys(arguments);
    if keys.is_empty() {
        return Ok(());
    }
    let mut command = Command::new("/proc/self/exe");
    if let Some(name) = name {
        command.arg0(name);
    }
    let error = command.args(kept).envs(keys).exec();
    Err(Failure::with_hint(
        format!("cannot take the keys out of the arguments of this process: {error}"),
        format!("Set {ACCESS_KEY} and {SECRET_KEY} instead."),
    ))
}

/// The arguments without keys, and the variables that say the same.
fn without_keys(arguments: impl Iterator<Item = OsString>) -> (Vec<OsString>, Vec<(&'static str, OsString)>) {
    let (mut kept, mut keys) = (Vec::new(), Vec::new());
    let mut arguments = arguments.fuse();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            kept.push(argument);
            kept.extend(arguments.by_ref());
            break;
        }
        let secret = SECRETS.iter().find_map(|(flag, variable)| {
            let rest = argument.as_bytes().strip_prefix(flag.as_bytes())?;
            match rest.split_first() {
                None => Some((*variable, arguments.next()?)),
                Some((b'=', value)) => Some((*variable, OsString::from_vec(value.to_vec()))),
                Some(_) => None,
            }
        });
        match secret {
            Some(secret) => keys.push(secret),
            None => kept.push(argument),
        }
    }
    (kept, keys)
}

/// Kind of object store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Storage {
    /// A folder on this machine
    File,
    /// A bucket behind the S3 protocol, of AWS or of anyone else
    S3,
    /// A bucket of MinIO: S3 with the bucket in the path
    Minio,
}

impl Storage {
    /// As it is stored.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::File => "file",
            Self::S3 => "s3",
            Self::Minio => "minio",
        }
    }
}

/// Where the bucket's name is in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Style {
    /// http://HOST/BUCKET
    Path,
    /// http://BUCKET.HOST
    Host,
}

/// Settings of a bucket that are a part of its text.
#[derive(Debug, Args)]
pub(super) struct BucketArgs {
    /// Region of an S3 bucket [default: as its host name says, else us-east-1]
    #[arg(long)]
    region: Option<String>,
    /// Where an S3 request names the bucket [default: as the form of --bucket says]
    #[arg(long, value_enum)]
    style: Option<Style>,
    /// Trust the CA certificates in this file (PEM) too
    #[arg(long, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
}

impl BucketArgs {
    /// The place that `bucket` names.
    pub(super) fn place(&self, storage: Storage, bucket: &OsStr, volume: &str) -> Outcome<Place> {
        let text = match storage {
            Storage::File => {
                if self.region.is_some() || self.style.is_some() || self.ca_cert.is_some() {
                    let text = "--region, --style and --ca-cert are for a bucket: add --storage s3 or --storage minio";
                    return Err(Failure::Usage(text.into()));
                }
                folder(bucket)?
            }
            Storage::S3 | Storage::Minio => {
                let style = self.style.map(|style| match style {
                    Style::Path => "path",
                    Style::Host => "host",
                });
                let ca = self.ca_cert.as_deref().map(ca_path).transpose()?;
                let settings = [("region", self.region.as_deref()), ("style", style), ("ca", ca.as_deref())];
                with_settings(url(bucket)?, &settings)
            }
        };
        let parsed = Place::parse(storage.name(), &text, volume);
        parsed.map_err(|error| Failure::Usage(format!("--bucket: {error}")))
    }
}

/// The address at which a command reaches the objects of an existing volume, this time.
#[derive(Debug, Args)]
pub(super) struct Address {
    /// Reach the same objects at another address this time, for example through a proxy [default: as formatted]
    #[arg(long, value_name = "DIR|URL")]
    bucket: Option<OsString>,
    /// Trust the CA certificates in this file (PEM) too
    #[arg(long, value_name = "FILE")]
    ca_cert: Option<PathBuf>,
}

impl Address {
    /// Where the objects of `volume` are.
    pub(super) fn of(&self, volume: &Volume) -> Outcome<Place> {
        let parse = |text: &str| {
            Place::parse(&volume.storage, text, &volume.name).map_err(|error| explain_objects(&volume.name, error))
        };
        let formatted = parse(&volume.bucket)?;
        match formatted {
            Place::Folder(_) => {
                if self.ca_cert.is_some() {
                    return Err(Failure::Usage("--ca-cert: the objects of this volume are in a folder".into()));
                }
                self.bucket.as_deref().map_or(Ok(formatted), |bucket| parse(&folder(bucket)?))
            }
            Place::S3(formatted) => {
                let (mut place, region) = match self.bucket.as_deref().map(url).transpose()? {
                    None => (formatted.clone(), None),
                    Some(text) => match parse(text)? {
                        Place::S3(place) => (place, setting(text, "region")),
                        folder @ Place::Folder(_) => return Ok(folder),
                    },
                };
                // The same bucket: what the other address does not say is as it was formatted.
                place.region = region.unwrap_or(formatted.region);
                place.ca = place.ca.or(formatted.ca);
                if let Some(ca) = &self.ca_cert {
                    place.ca = Some(ca_path(ca)?.into());
                }
                Ok(Place::S3(place))
            }
        }
    }
}

/// A folder as it is stored.
fn folder(text: &OsStr) -> Outcome<String> {
    if text.as_bytes().windows(3).any(|part| part == b"://") {
        let text = "--bucket is a URL: add --storage s3 or --storage minio";
        return Err(Failure::Usage(text.into()));
    }
    let path = absolute(Path::new(text))?;
    match path.to_str() {
        Some(path) => Ok(path.into()),
        None => Err(Failure::Usage(format!("the bucket '{}' is not UTF-8", path.display()))),
    }
}

fn url(text: &OsStr) -> Outcome<&str> {
    text.to_str().ok_or_else(|| Failure::Usage(format!("the bucket '{}' is not UTF-8", text.display())))
}

/// A file of certificates as it is stored: it must be found from everywhere.
fn ca_path(path: &Path) -> Outcome<String> {
    let absolute = path.canonicalize();
    let absolute =
        absolute.map_err(|error| Failure::new(format!("cannot read --ca-cert {}: {error}", path.display())))?;
    match absolute.to_str() {
        Some(path) => Ok(path.into()),
        None => Err(Failure::Usage(format!("--ca-cert: the path '{}' is not UTF-8", absolute.display()))),
    }
}

/// The value of a query parameter.
fn setting(text: &str, name: &str) -> Option<String> {
    let (_, query) = text.split_once('?')?;
    form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

/// The URL with query parameters set; `None` leaves one as it is.
fn with_settings(text: &str, settings: &[(&str, Option<&str>)]) -> String {
    let (base, query) = text.split_once('?').unwrap_or((text, ""));
    let mut merged = form_urlencoded::Serializer::new(String::new());
    for (key, value) in form_urlencoded::parse(query.as_bytes()) {
        if !settings.iter().any(|(name, new)| *name == key && new.is_some()) {
            merged.append_pair(&key, &value);
        }
    }
    for (name, value) in settings {
        if let Some(value) = value {
            merged.append_pair(name, value);
        }
    }
    let merged = merged.finish();
    if merged.is_empty() { base.into() } else { format!("{base}?{merged}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_leave_the_arguments() {
        type Pairs<'a> = &'a [(&'a str, &'a str)];
        let cases: &[(&[&str], &[&str], Pairs<'_>)] = &[
            (&["status", "m"], &["status", "m"], &[]),
            (
                &["mount", "--access-key", "a", "m", "--secret-key=s=1", "-d"],
                &["mount", "m", "-d"],
                &[(ACCESS_KEY, "a"), (SECRET_KEY, "s=1")],
            ),
            (&["mount", "--", "--secret-key", "s"], &["mount", "--", "--secret-key", "s"], &[]),
            (&["mount", "--secret-keys=s"], &["mount", "--secret-keys=s"], &[]),
        ];
        for (given, kept, keys) in cases {
            let (found, variables) = without_keys(given.iter().map(OsString::from));
            assert_eq!(found, *kept, "{given:?}");
            let variables: Vec<_> = variables.iter().map(|(name, value)| (*name, value.to_str().unwrap())).collect();
            assert_eq!(variables, *keys, "{given:?}");
        }
    }

    #[test]
    fn variables_are_read_from_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("env");
        std::fs::write(&file, "# keys\n\nKISEKI_ACCESS_KEY=a=b\n KISEKI_SECRET_KEY = \"s t\" \n;x\nQ='\n").unwrap();
        let found = variables_in(&file).unwrap();
        let expected = [("KISEKI_ACCESS_KEY", "a=b"), ("KISEKI_SECRET_KEY", "s t"), ("Q", "'")];
        assert_eq!(found, BTreeMap::from(expected.map(|(name, value)| (name.into(), value.into()))));
        std::fs::write(&file, "A=1\nsecret\n").unwrap();
        let error = variables_in(&file).unwrap_err().to_string();
        assert!(error.contains("line 2") && !error.contains("secret"), "{error}");
        assert!(variables_in(&dir.path().join("none")).is_err());
    }

    #[test]
    fn flags_become_a_part_of_the_bucket() {
        let cases: &[(&str, [Option<&str>; 2], &str)] = &[
            ("http://h/b", [None, None], "http://h/b"),
            ("http://h/b", [Some("eu-1"), Some("path")], "http://h/b?region=eu-1&style=path"),
            ("http://h/b?region=us-2&ca=%2Fa+b", [Some("eu-1"), None], "http://h/b?ca=%2Fa+b&region=eu-1"),
            ("http://h/b?region=us-2", [None, Some("host")], "http://h/b?region=us-2&style=host"),
        ];
        for (text, [region, style], expected) in cases {
            assert_eq!(with_settings(text, &[("region", *region), ("style", *style)]), *expected, "{text}");
        }
        assert_eq!(setting("http://h/b?style=path&region=eu-1", "region").as_deref(), Some("eu-1"));
        assert_eq!(setting("http://h/b", "region"), None);
    }
}
