//! What went wrong with a request, and what that means.
//!
//! Owns: the meaning of status codes, of S3's error codes and of the operating system's error numbers.
//! Leaves to others: counting and logging (`health`), trying again (`kiseki_core`).
//!
//! Invariant: a text holds of an S3 answer its code and its message only. The rest may hold the access key.

use std::time::Duration;
use std::{error, fmt, io};

use kiseki_core::env::StoreError;
use opendal::ErrorKind;
use rustix::io::Errno;

/// A message longer than this is cut: it may be any page of any proxy.
const MESSAGE_MAX: usize = 200;

/// Kinds of failures, as far as something depends on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// There is no such object.
    NotFound,
    /// The object ends before the range asked for does.
    Short,
    /// There is no such bucket. Nothing is known about the object.
    NoBucket,
    /// The keys are wrong.
    Keys,
    /// The keys may not do this.
    Denied,
    /// The clocks differ too much for signatures.
    ClockSkew,
    /// No space is left.
    Full,
    /// The store is asked too much.
    Throttled,
    /// No answer within the deadline.
    TimedOut,
    /// No connection.
    Unreachable,
    /// The store failed, or the connection did under way.
    Broken,
    /// The store does not understand the request, or we its answer.
    Refused,
}

impl Kind {
    pub(super) const COUNT: usize = Self::Refused as usize + 1;

    /// What it means to the client.
    pub(super) fn store_error(self) -> StoreError {
        match self {
            Self::NotFound => StoreError::NotFound,
            Self::Short => StoreError::Short,
            Self::Keys | Self::Denied => StoreError::Denied,
            Self::Full => StoreError::Full,
            // A bucket that vanished must not look like objects that are lost.
            Self::NoBucket
            | Self::ClockSkew
            | Self::Throttled
            | Self::TimedOut
            | Self::Unreachable
            | Self::Broken
            | Self::Refused => StoreError::Retry,
        }
    }

    /// Whether the same request may soon succeed.
    pub(super) fn is_passing(self) -> bool {
        match self {
            Self::Throttled | Self::TimedOut | Self::Unreachable | Self::Broken => true,
            Self::NotFound
            | Self::Short
            | Self::NoBucket
            | Self::Keys
            | Self::Denied
            | Self::ClockSkew
            | Self::Full
            | Self::Refused => false,
        }
    }

    /// What an answer with this status and this error code means.
    fn of_answer(status: u16, code: &str) -> Self {
        match (status, code) {
            (404, "NoSuchKey") => Self::NotFound,
            (_, "NoSuchBucket") => Self::NoBucket,
            (416, _) | (_, "InvalidRange") => Self::Short,
            (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "NotSignedUp" | "ExpiredToken" | "InvalidToken") => {
                Self::Keys
            }
            (_, "RequestTimeTooSkewed") => Self::ClockSkew,
            (507, _) | (_, "XMinioStorageFull" | "QuotaExceeded" | "XMinioAdminBucketQuotaExceeded") => Self::Full,
            (429 | 503, _) | (_, "SlowDown" | "TooManyRequests") => Self::Throttled,
            (403, _) => Self::Denied,
            (500.., _) | (408, _) | (_, "RequestTimeout" | "OperationAborted" | "BadDigest" | "IncompleteBody") => {
                Self::Broken
            }
            // Also a 404 that does not speak of the object: that page may be a proxy's.
            (_, _) => Self::Refused,
        }
    }

    /// What an error number means.
    pub(super) fn of_errno(errno: Errno) -> Self {
        match errno {
            Errno::NOSPC | Errno::DQUOT => Self::Full,
            Errno::ACCESS | Errno::PERM | Errno::ROFS => Self::Denied,
            _ => Self::Broken,
        }
    }
}

/// The beginning of a line of the log.
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotFound => "no such object",
            Self::Short => "the object is shorter than expected",
            Self::NoBucket => "the bucket is not there",
            Self::Keys => "the object store refuses the keys",
            Self::Denied => "the object store denies access",
            Self::ClockSkew => "the clocks of this machine and of the object store differ: set them right",
            Self::Full => "no space left in the object store",
            Self::Throttled => "the object store asks to slow down",
            Self::TimedOut => "the object store does not answer",
            Self::Unreachable => "the object store cannot be reached",
            Self::Broken => "the object store failed",
            Self::Refused => "the object store does not take the request",
        })
    }
}

/// A request that failed.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) kind: Kind,
    /// For a person; without keys.
    pub(super) text: String,
    /// How long the store asks to be left alone.
    pub(super) retry_after: Option<Duration>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// So that it can travel through OpenDAL as the source of an error.
impl error::Error for Failure {}

impl Failure {
    pub(super) fn new(kind: Kind, text: impl Into<String>) -> Self {
        Self { kind, text: text.into(), retry_after: None }
    }

    /// An HTTP answer other than success. `head` is the beginning of its body; `date` its Date.
    pub(super) fn of_answer(status: u16, head: &str, date: Option<&str>, retry_after: Option<Duration>) -> Self {
        let code = element(head, "Code").unwrap_or_default();
        let kind = Kind::of_answer(status, &code);
        let mut text = format!("HTTP status {status}");
        if !code.is_empty() {
            text = format!("{text}, {code}");
        }
        if let Some(message) = element(head, "Message") {
            text = format!("{text}: {message}");
        }
        if let (Kind::ClockSkew, Some(date)) = (kind, date) {
            text = format!("{text}; its clock says {date}");
        }
        Self { kind, text, retry_after }
    }

    /// An error of OpenDAL. At its root is one of ours (`of_answer`), one of the HTTP client or one of the system.
    pub(super) fn of_opendal(failure: &opendal::Error) -> Self {
        let mut cause: Option<&(dyn error::Error + 'static)> = Some(failure);
        while let Some(error) = cause {
            if let Some(ours) = error.downcast_ref::<Self>() {
                return ours.clone();
            }
            if let Some(http) = error.downcast_ref::<reqwest::Error>() {
                let kind = if http.is_connect() { Kind::Unreachable } else { Kind::Broken };
                return Self::new(kind, chain(http));
            }
            cause = error.source();
        }
        let kind = match (os_error(failure).map(Kind::of_errno), failure.kind()) {
            (Some(kind @ (Kind::Full | Kind::Denied)), _) => kind,
            (_, ErrorKind::NotFound) => Kind::NotFound,
            (_, ErrorKind::RangeNotSatisfied) => Kind::Short,
            (_, ErrorKind::PermissionDenied) => Kind::Denied,
            (_, _) => Kind::Broken,
        };
        Self::new(kind, failure.to_string())
    }
}

/// The error number at the root of `failure`, if the operating system gave one.
fn os_error(failure: &opendal::Error) -> Option<Errno> {
    let mut cause: Option<&(dyn error::Error + 'static)> = Some(failure);
    while let Some(error) = cause {
        if let Some(io_error) = error.downcast_ref::<io::Error>()
            && let Some(errno) = Errno::from_io_error(io_error)
        {
            return Some(errno);
        }
        cause = error.source();
    }
    None
}

/// An error and all that it comes from, each said once.
pub(super) fn chain(error: &(dyn error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// Contents of the first element of this name, fit for one line of a log.
fn element(xml: &str, name: &str) -> Option<String> {
    let (_, rest) = xml.split_once(&format!("<{name}>"))?;
    let (text, _) = rest.split_once("</")?;
    let plain = [("&lt;", "<"), ("&gt;", ">"), ("&quot;", "\""), ("&apos;", "'"), ("&#34;", "\""), ("&#39;", "'")];
    let text = plain.iter().fold(text.to_owned(), |text, (escape, meant)| text.replace(escape, meant));
    let line: String = text.replace("&amp;", "&").chars().filter(|c| !c.is_control()).take(MESSAGE_MAX).collect();
    Some(line).filter(|line| !line.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_os(errno: Errno, kind: ErrorKind) -> opendal::Error {
        opendal::Error::new(kind, "the text says nothing").set_source(io::Error::from(errno))
    }

    #[test]
    fn errors_are_classified_by_their_root_cause() {
        let ours = |kind| opendal::Error::new(ErrorKind::NotFound, "").set_source(Failure::new(kind, ""));
        let cases = [
            (from_os(Errno::NOSPC, ErrorKind::Unexpected), StoreError::Full),
            (from_os(Errno::DQUOT, ErrorKind::Unexpected), StoreError::Full),
            (from_os(Errno::ROFS, ErrorKind::Unexpected), StoreError::Denied),
            (from_os(Errno::ACCESS, ErrorKind::PermissionDenied), StoreError::Denied),
            (from_os(Errno::IO, ErrorKind::Unexpected), StoreError::Retry),
            (from_os(Errno::NOENT, ErrorKind::NotFound), StoreError::NotFound),
            (opendal::Error::new(ErrorKind::RangeNotSatisfied, ""), StoreError::Short),
            (opendal::Error::new(ErrorKind::RateLimited, ""), StoreError::Retry),
            (opendal::Error::new(ErrorKind::NotFound, ""), StoreError::NotFound),
            (ours(Kind::NoBucket), StoreError::Retry),
            (ours(Kind::Denied), StoreError::Denied),
        ];
        for (failure, expected) in cases {
            assert_eq!(Failure::of_opendal(&failure).kind.store_error(), expected, "{failure:?}");
        }
    }

    #[test]
    fn answers_are_classified_by_code_then_status() {
        let cases = [
            (404, "NoSuchKey", Kind::NotFound, StoreError::NotFound),
            (404, "NoSuchBucket", Kind::NoBucket, StoreError::Retry),
            (404, "", Kind::Refused, StoreError::Retry),
            (416, "InvalidRange", Kind::Short, StoreError::Short),
            (416, "", Kind::Short, StoreError::Short),
            (403, "AccessDenied", Kind::Denied, StoreError::Denied),
            (403, "", Kind::Denied, StoreError::Denied),
            (403, "InvalidAccessKeyId", Kind::Keys, StoreError::Denied),
            (403, "SignatureDoesNotMatch", Kind::Keys, StoreError::Denied),
            (400, "ExpiredToken", Kind::Keys, StoreError::Denied),
            (403, "RequestTimeTooSkewed", Kind::ClockSkew, StoreError::Retry),
            (507, "", Kind::Full, StoreError::Full),
            (507, "XMinioStorageFull", Kind::Full, StoreError::Full),
            (403, "QuotaExceeded", Kind::Full, StoreError::Full),
            (429, "", Kind::Throttled, StoreError::Retry),
            (503, "", Kind::Throttled, StoreError::Retry),
            (503, "SlowDownWrite", Kind::Throttled, StoreError::Retry),
            (400, "SlowDown", Kind::Throttled, StoreError::Retry),
            (500, "InternalError", Kind::Broken, StoreError::Retry),
            (502, "", Kind::Broken, StoreError::Retry),
            (400, "BadDigest", Kind::Broken, StoreError::Retry),
            (301, "PermanentRedirect", Kind::Refused, StoreError::Retry),
            (400, "AuthorizationHeaderMalformed", Kind::Refused, StoreError::Retry),
        ];
        for (status, code, kind, error) in cases {
            let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>m</Message></Error>");
            let found = Failure::of_answer(status, &body, None, None);
            assert_eq!((found.kind, found.kind.store_error()), (kind, error), "{status} {code}");
        }
    }

    #[test]
    fn text_of_an_answer_is_its_code_and_message_alone() {
        let body = "<Error><Code>SignatureDoesNotMatch</Code><Message>It &quot;differs&quot;.\n</Message>\
                    <AWSAccessKeyId>the-access</AWSAccessKeyId><StringToSign>AWS4 the-sign</StringToSign></Error>";
        let found = Failure::of_answer(403, body, None, None);
        assert_eq!(found.text, "HTTP status 403, SignatureDoesNotMatch: It \"differs\".");
        assert_eq!(Failure::of_answer(502, "<html>the-access</html>", None, None).text, "HTTP status 502");
        let long = format!("<Error><Code>Odd</Code><Message>{}</Message></Error>", "x".repeat(100_000));
        assert!(Failure::of_answer(400, &long, None, None).text.len() < 300);
        let skewed = "<Error><Code>RequestTimeTooSkewed</Code></Error>";
        let found = Failure::of_answer(403, skewed, Some("Sun, 22 Nov 2026 19:00:00 GMT"), None);
        assert!(found.text.ends_with("its clock says Sun, 22 Nov 2026 19:00:00 GMT"), "{found}");
    }
}
