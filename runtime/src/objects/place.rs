//! Where the objects of a volume are: a folder, or a prefix of an S3 bucket.
//!
//! Owns: the text of `--bucket` and of the setting that is made of it. Leaves to others: reaching the place.
//!
//! Invariants
//! - `parse(storage, place.setting(), volume)` is `place` again.
//! - No text made here holds a user name, a password or a key.

use std::fmt;
use std::path::{Path, PathBuf};

use url::{Host, Url, form_urlencoded};

use super::ObjectsError;

/// What a bucket behind the S3 protocol looks like, for messages.
pub(super) const EXPECTED: &str = "expected http(s)://HOST[:PORT]/BUCKET[/PREFIX], https://BUCKET.HOST[/PREFIX]?style=host \
                                   or s3://BUCKET[/PREFIX], and after a \"?\" region=, style=path|host, ca=/FILE.pem";
/// Stores that know no regions take this one.
const DEFAULT_REGION: &str = "us-east-1";

/// The place of one volume's objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A folder on this machine: `{bucket}/{volume}`.
    Folder(PathBuf),
    /// A prefix of a bucket behind the S3 protocol.
    S3(S3Place),
}

/// A prefix of a bucket behind the S3 protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct S3Place {
    /// Scheme, host and port.
    pub endpoint: String,
    /// Name of the bucket.
    pub bucket: String,
    /// Folder in the bucket, without slashes at its ends; ends with the volume's name.
    pub prefix: String,
    /// Region, for signatures.
    pub region: String,
    /// The bucket is part of the host name, not of the path.
    pub host_style: bool,
    /// File of CA certificates (PEM) to trust beside the system's.
    pub ca: Option<PathBuf>,
}

/// How the bucket is named in a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    Path,
    Host,
}

/// Who speaks the S3 protocol there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Server {
    /// AWS, or anything like it.
    S3,
    /// MinIO, which finds the bucket in the path unless it was told its domain.
    Minio,
}

impl Place {
    /// The place that a volume's settings describe: `storage` is "file", "s3" or "minio", `bucket` what `setting`
    /// returned when it was formatted (or what a person typed), `volume` its name.
    pub fn parse(storage: &str, bucket: &str, volume: &str) -> Result<Self, ObjectsError> {
        if volume.is_empty() || volume == "." || volume == ".." || volume.contains(['/', '\0']) {
            return Err(ObjectsError::Prefix(volume.to_owned()));
        }
        match storage {
            "file" => Ok(Self::Folder(Path::new(bucket).join(volume))),
            "s3" => S3Place::parse(Server::S3, bucket, volume).map(Self::S3),
            "minio" => S3Place::parse(Server::Minio, bucket, volume).map(Self::S3),
            other => Err(ObjectsError::Storage(other.to_owned())),
        }
    }

    /// The text of the bucket that a volume keeps among its settings.
    pub fn setting(&self) -> String {
        match self {
            Self::Folder(path) => path.parent().unwrap_or(path).display().to_string(),
            Self::S3(s3) => s3.setting(),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::S3(s3) => write!(f, "{}/{}", s3.bucket_url(), s3.prefix),
        }
    }
}

impl S3Place {
    fn parse(server: Server, text: &str, volume: &str) -> Result<Self, ObjectsError> {
        let wrong = |problem: String| ObjectsError::Url { text: without_secrets(text), problem };
        if !volume.bytes().all(plain) {
            return Err(ObjectsError::Prefix(volume.to_owned()));
        }
        let url = Url::parse(text).map_err(|error| wrong(format!("is not a URL ({error})")))?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(ObjectsError::SecretInUrl { text: without_secrets(text) });
        }
        if url.fragment().is_some() {
            return Err(wrong("has a \"#\"".into()));
        }
        let options = Options::parse(&url).map_err(wrong)?;
        let is_http = match url.scheme() {
            "http" | "https" => true,
            "s3" => false,
            _ => return Err(wrong("has a scheme other than http, https and s3".into())),
        };
        let mut path = segments(text, &url).map_err(wrong)?;
        let (endpoint, bucket, region, style) = match is_http {
            true => Self::from_http(server, &url, &options, &mut path).map_err(wrong)?,
            false => Self::from_s3(server, &url, &options).map_err(wrong)?,
        };
        check_bucket(&bucket, style).map_err(wrong)?;
        if options.ca.is_some() && !endpoint.starts_with("https://") {
            return Err(wrong("has ca= without https".into()));
        }
        path.push(volume.to_owned());
        let host_style = style == Style::Host;
        Ok(Self { endpoint, bucket, prefix: path.join("/"), region, host_style, ca: options.ca })
    }

    /// Endpoint, bucket, region and style of an http(s) URL; takes the bucket off `path` if it is there.
    fn from_http(
        server: Server,
        url: &Url,
        options: &Options,
        path: &mut Vec<String>,
    ) -> Result<(String, String, String, Style), String> {
        let host = url.host_str().ok_or("names no host")?;
        let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
        let endpoint = |host: &str| format!("{}://{host}{port}", url.scheme());
        let mut first = || match path.is_empty() {
            true => Err(format!("names no bucket after {host}")),
            false => Ok(path.remove(0)),
        };
        if let Some(aws) = Aws::parse(host) {
            let region = match (aws.region, &options.region) {
                (Some(found), Some(asked)) if found != *asked => {
                    return Err(format!("names two regions, {found} and {asked}"));
                }
                (Some(found), _) => found,
                (None, asked) => asked.clone().unwrap_or_else(|| DEFAULT_REGION.into()),
            };
            let endpoint = endpoint(&aws_host(&region));
            return match (aws.bucket, options.style) {
                (Some(bucket), None | Some(Style::Host)) => Ok((endpoint, bucket, region, Style::Host)),
                (None, None | Some(Style::Path)) => Ok((endpoint, first()?, region, Style::Path)),
                (Some(bucket), Some(Style::Path)) => {
                    Err(format!("has style=path, but the bucket {bucket} is in the host name"))
                }
                (None, Some(Style::Host)) => Err("has style=host, but no bucket in the host name".into()),
            };
        }
        let region = options.region.clone().unwrap_or_else(|| DEFAULT_REGION.into());
        match options.style {
            None | Some(Style::Path) => Ok((endpoint(host), first()?, region, Style::Path)),
            Some(Style::Host) if server == Server::Minio => {
                Err("has style=host; with --storage minio the bucket is always in the path".into())
            }
            Some(Style::Host) => match (url.host(), host.split_once('.')) {
                (Some(Host::Domain(_)), Some((bucket, rest))) => {
                    Ok((endpoint(rest), bucket.to_owned(), region, Style::Host))
                }
                (_, _) => Err(format!("has style=host, but {host} does not begin with the name of a bucket and a dot")),
            },
        }
    }

    /// The same of `s3://BUCKET`.
    fn from_s3(server: Server, url: &Url, options: &Options) -> Result<(String, String, String, Style), String> {
        if server == Server::Minio {
            return Err("has the scheme \"s3\", which means AWS; with --storage minio name the server".into());
        }
        let bucket = url.host_str().ok_or("names no bucket")?;
        if url.port().is_some() {
            return Err("has a port after the name of a bucket".into());
        }
        let region = options.region.clone().unwrap_or_else(|| DEFAULT_REGION.into());
        // A certificate for *.s3.REGION.amazonaws.com does not cover a bucket with dots.
        let style = options.style.unwrap_or(if bucket.contains('.') { Style::Path } else { Style::Host });
        Ok((format!("https://{}", aws_host(&region)), bucket.to_owned(), region, style))
    }

    /// Scheme, host, port and bucket as they are in requests.
    fn bucket_url(&self) -> String {
        match (self.host_style, self.endpoint.split_once("://")) {
            (true, Some((scheme, host))) => format!("{scheme}://{}.{host}", self.bucket),
            (_, _) => format!("{}/{}", self.endpoint, self.bucket),
        }
    }

    fn setting(&self) -> String {
        let mut text = self.bucket_url();
        if let Some((folder, _)) = self.prefix.rsplit_once('/') {
            text = format!("{text}/{folder}");
        }
        let aws = self.endpoint.split_once("://").is_some_and(|(_, host)| Aws::parse(host).is_some());
        let mut query = form_urlencoded::Serializer::new(String::new());
        if !aws && self.region != DEFAULT_REGION {
            query.append_pair("region", &self.region);
        }
        if !aws && self.host_style {
            query.append_pair("style", "host");
        }
        if let Some(ca) = &self.ca {
            query.append_pair("ca", &ca.display().to_string());
        }
        match query.finish() {
            options if options.is_empty() => text,
            options => format!("{text}?{options}"),
        }
    }
}

/// What may follow the "?".
#[derive(Default)]
struct Options {
    region: Option<String>,
    style: Option<Style>,
    ca: Option<PathBuf>,
}

impl Options {
    fn parse(url: &Url) -> Result<Self, String> {
        let mut options = Self::default();
        for (name, value) in url.query_pairs() {
            let twice = match &*name {
                "region" if value.is_empty() || !value.bytes().all(plain) => {
                    return Err("has a region= that is not the name of a region".into());
                }
                "region" => options.region.replace(value.into_owned()).is_some(),
                "style" => match &*value {
                    "path" => options.style.replace(Style::Path).is_some(),
                    "host" => options.style.replace(Style::Host).is_some(),
                    _ => return Err("has a style= that is neither path nor host".into()),
                },
                "ca" if !value.starts_with('/') => {
                    return Err("has a ca= that is not the absolute path of a file".into());
                }
                "ca" => options.ca.replace(PathBuf::from(&*value)).is_some(),
                // Its value could be a key.
                other => return Err(format!("has the unknown option {other}=")),
            };
            if twice {
                return Err(format!("has {name}= twice"));
            }
        }
        Ok(options)
    }
}

/// A host name of AWS.
struct Aws {
    bucket: Option<String>,
    /// The oldest name, s3.amazonaws.com, has none.
    region: Option<String>,
}

impl Aws {
    /// `[BUCKET.]s3[.REGION].amazonaws.com[.cn]`
    fn parse(host: &str) -> Option<Self> {
        let name = host.strip_suffix(".cn").unwrap_or(host).strip_suffix(".amazonaws.com")?;
        let labels: Vec<&str> = name.split('.').collect();
        // From the right: a bucket may be called s3.
        let at = labels.iter().rposition(|label| *label == "s3")?;
        let region = match &labels[at + 1..] {
            [] => None,
            [region] => Some((*region).to_owned()),
            _ => return None,
        };
        Some(Self { bucket: (at > 0).then(|| labels[..at].join(".")), region })
    }
}

fn aws_host(region: &str) -> String {
    let country = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("s3.{region}.amazonaws.com{country}")
}

/// The parts of the path, all of them plain names.
fn segments(text: &str, url: &Url) -> Result<Vec<String>, String> {
    // The parser has resolved these; to S3 they would be names.
    if text.split(['?', '#']).next().unwrap_or(text).split('/').any(|name| name == "." || name == "..") {
        return Err("has a \".\" or \"..\" in its path".into());
    }
    let path = url.path().trim_matches('/');
    if path.is_empty() {
        return Ok(Vec::new());
    }
    let names = path.split('/').map(|name| match name {
        "" => Err("has two slashes in a row in its path".into()),
        _ if name.bytes().all(plain) => Ok(name.to_owned()),
        _ => Err("has something else than letters, digits, \".\", \"-\" and \"_\" in its path".into()),
    });
    names.collect()
}

/// What is the same in a URL, in a signature and on every server.
fn plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"._-".contains(&byte)
}

fn check_bucket(bucket: &str, style: Style) -> Result<(), String> {
    let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    if bucket.len() < 3 || bucket.len() > 63 || !edge(bucket.chars().next()) || !edge(bucket.chars().last()) {
        return Err(format!(
            "names the bucket \"{bucket}\"; a bucket has 3 to 63 letters, digits, dots and inner dashes"
        ));
    }
    if style == Style::Host && bucket.contains('.') {
        return Err(format!("has the bucket \"{bucket}\" in the host name, where it may have no dots: use style=path"));
    }
    if bucket.ends_with("--x-s3") {
        return Err(
            "names a directory bucket, which lists its objects in no order: use a general purpose bucket".into()
        );
    }
    Ok(())
}

/// `text` without what could be a password: everything between the scheme and the last "@", and the query.
fn without_secrets(text: &str) -> String {
    let (scheme, rest) = text.split_once("://").map_or(("", text), |(scheme, rest)| (scheme, rest));
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    let rest = rest.split_once('?').map_or(rest, |(rest, _)| rest);
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Endpoint, bucket, prefix, region and style, or the error.
    fn show(storage: &str, bucket: &str) -> String {
        match Place::parse(storage, bucket, "vol") {
            Ok(Place::S3(place)) => {
                let style = if place.host_style { "host" } else { "path" };
                let ca = place.ca.as_ref().map(|ca| format!(" ca {}", ca.display())).unwrap_or_default();
                format!("{} {} {} {} {style}{ca}", place.endpoint, place.bucket, place.prefix, place.region)
            }
            Ok(Place::Folder(path)) => path.display().to_string(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn buckets_of_all_styles() {
        // Storage, text, what it means, the setting if it is another text, how it is shown.
        let cases = [
            ("file", "/srv/objects", "/srv/objects/vol", "", "/srv/objects/vol"),
            (
                "minio",
                "http://127.0.0.1:9000/kiseki",
                "http://127.0.0.1:9000 kiseki vol us-east-1 path",
                "",
                "http://127.0.0.1:9000/kiseki/vol",
            ),
            (
                "minio",
                "HTTPS://Store.example:443/kiseki/a/b/?region=eu-1",
                "https://store.example kiseki a/b/vol eu-1 path",
                "https://store.example/kiseki/a/b?region=eu-1",
                "https://store.example/kiseki/a/b/vol",
            ),
            (
                "minio",
                "https://[::1]:9000/kiseki?ca=/etc/my%20ca.pem",
                "https://[::1]:9000 kiseki vol us-east-1 path ca /etc/my ca.pem",
                "https://[::1]:9000/kiseki?ca=%2Fetc%2Fmy+ca.pem",
                "https://[::1]:9000/kiseki/vol",
            ),
            (
                "s3",
                "https://kiseki.store.example:8443/a?style=host&region=eu-1",
                "https://store.example:8443 kiseki a/vol eu-1 host",
                "https://kiseki.store.example:8443/a?region=eu-1&style=host",
                "https://kiseki.store.example:8443/a/vol",
            ),
            (
                "s3",
                "https://kiseki.s3.eu-central-1.amazonaws.com",
                "https://s3.eu-central-1.amazonaws.com kiseki vol eu-central-1 host",
                "",
                "https://kiseki.s3.eu-central-1.amazonaws.com/vol",
            ),
            (
                "s3",
                "https://s3.eu-central-1.amazonaws.com/kiseki/p",
                "https://s3.eu-central-1.amazonaws.com kiseki p/vol eu-central-1 path",
                "",
                "https://s3.eu-central-1.amazonaws.com/kiseki/p/vol",
            ),
            (
                "s3",
                "https://kiseki.s3.amazonaws.com?region=eu-west-1",
                "https://s3.eu-west-1.amazonaws.com kiseki vol eu-west-1 host",
                "https://kiseki.s3.eu-west-1.amazonaws.com",
                "https://kiseki.s3.eu-west-1.amazonaws.com/vol",
            ),
            (
                "s3",
                "s3://kiseki/p",
                "https://s3.us-east-1.amazonaws.com kiseki p/vol us-east-1 host",
                "https://kiseki.s3.us-east-1.amazonaws.com/p",
                "https://kiseki.s3.us-east-1.amazonaws.com/p/vol",
            ),
            (
                "s3",
                "s3://ki.seki?region=cn-north-1",
                "https://s3.cn-north-1.amazonaws.com.cn ki.seki vol cn-north-1 path",
                "https://s3.cn-north-1.amazonaws.com.cn/ki.seki",
                "https://s3.cn-north-1.amazonaws.com.cn/ki.seki/vol",
            ),
        ];
        for (storage, text, meaning, setting, shown) in cases {
            assert_eq!(show(storage, text), meaning, "{text}");
            let place = Place::parse(storage, text, "vol").expect("a place");
            assert_eq!(place.setting(), if setting.is_empty() { text } else { setting }, "{text}");
            assert_eq!(Place::parse(storage, &place.setting(), "vol").expect("a place"), place, "{text}");
            assert_eq!(place.to_string(), shown, "{text}");
        }
    }

    #[test]
    fn errors_name_the_part_and_what_is_expected() {
        let cases = [
            ("s3", "kiseki", "is not a URL"),
            ("s3", "/srv/objects", "is not a URL"),
            ("s3", "ftp://host/kiseki", "a scheme other than"),
            ("s3", "http://host:x/kiseki", "is not a URL (invalid port number)"),
            ("minio", "http://127.0.0.1:9000", "names no bucket after 127.0.0.1"),
            ("minio", "http://127.0.0.1:9000/", "names no bucket"),
            ("minio", "http://127.0.0.1:9000/ki", "a bucket has 3 to 63"),
            ("minio", "http://127.0.0.1:9000/-kiseki", "a bucket has 3 to 63"),
            ("minio", "http://host/kiseki?style=host", "always in the path"),
            ("minio", "s3://kiseki", "name the server"),
            ("s3", "https://127.0.0.1/kiseki?style=host", "does not begin with the name of a bucket"),
            ("s3", "https://localhost?style=host", "does not begin with the name of a bucket"),
            ("s3", "https://s3.eu-west-1.amazonaws.com/kiseki?style=host", "no bucket in the host name"),
            ("s3", "https://kiseki.s3.eu-west-1.amazonaws.com?style=path", "kiseki is in the host name"),
            ("s3", "https://ki.seki.s3.eu-west-1.amazonaws.com", "no dots: use style=path"),
            (
                "s3",
                "https://kiseki.s3.eu-west-1.amazonaws.com?region=eu-west-2",
                "two regions, eu-west-1 and eu-west-2",
            ),
            ("s3", "s3://kiseki--use1-az4--x-s3", "directory bucket"),
            ("s3", "http://host/kiseki//p", "two slashes"),
            ("s3", "s3://kiseki/a/../b", "\".\" or \"..\""),
            ("s3", "http://host/kiseki/p%20q", "something else than letters"),
            ("s3", "http://host/kiseki#p", "a \"#\""),
            ("s3", "http://host/kiseki?style=dns", "neither path nor host"),
            ("s3", "http://host/kiseki?region=", "not the name of a region"),
            ("s3", "http://host/kiseki?region=a&region=b", "region= twice"),
            ("s3", "https://host/kiseki?ca=ca.pem", "absolute path"),
            ("s3", "http://host/kiseki?ca=/ca.pem", "ca= without https"),
            ("s3", "http://host/kiseki?secret=hush", "unknown option secret="),
        ];
        for (storage, text, expected) in cases {
            let found = show(storage, text);
            assert!(found.contains(expected), "{text}: {found}");
            assert!(found.contains("http(s)://HOST[:PORT]/BUCKET[/PREFIX]"), "{text}: {found}");
            assert!(!found.contains("hush"), "{found}");
        }
        assert!(show("gcs", "gs://kiseki").contains("there is no storage \"gcs\""));
    }

    #[test]
    fn keys_in_a_url_are_refused_and_not_repeated() {
        let texts = [
            "http://user:hush@host/kiseki",
            "https://hush@host/kiseki",
            "s3://user:hush@kiseki",
            "http://user:hush@host:x/kiseki",
            "user:hush@host/kiseki",
            "http://user:hush@",
        ];
        for text in texts {
            let found = show("s3", text);
            assert!(!found.contains("hush"), "{found}");
        }
        assert!(show("s3", texts[0]).contains("KISEKI_SECRET_KEY"));
        assert!(show("s3", texts[0]).contains("\"http://host/kiseki\""));
    }

    #[test]
    fn volumes_are_plain_names() {
        for volume in ["", ".", "..", "a/b", "a\0"] {
            assert!(matches!(Place::parse("file", "/srv", volume), Err(ObjectsError::Prefix(_))), "{volume}");
        }
        assert!(matches!(Place::parse("s3", "s3://kiseki", "a b"), Err(ObjectsError::Prefix(_))));
    }
}
