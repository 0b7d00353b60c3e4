//! Why an object store was not opened, or cannot be used: for a person.
//!
//! Every text says what failed, on which place, and what to do. None holds a key.

use std::io;
use std::path::PathBuf;

/// Why an object store was not opened or cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ObjectsError {
    /// `--storage` names none that is built in.
    #[error("there is no storage \"{0}\"; use \"file\", \"s3\" or \"minio\"")]
    Storage(String),
    /// The prefix is not one plain name.
    #[error("\"{0}\" cannot be a folder in the bucket")]
    Prefix(String),
    /// The text of a bucket behind the S3 protocol is wrong.
    #[error("the bucket \"{text}\" {problem}; {}", super::place::EXPECTED)]
    Url {
        /// The text, without what could be a password.
        text: String,
        /// Which part of it, and how.
        problem: String,
    },
    /// The text of a bucket holds keys, which would end up in the metadata.
    #[error(
        "the bucket \"{text}\" holds a user name or a password, which must not be stored; give the keys with \
         --access-key and --secret-key, or in KISEKI_ACCESS_KEY and KISEKI_SECRET_KEY"
    )]
    SecretInUrl {
        /// The text, without them.
        text: String,
    },
    /// Half a pair of keys.
    #[error("{given} is given, but {missing} is not; give both")]
    HalfKeys {
        /// The half that is there.
        given: &'static str,
        /// Where the other half may be given.
        missing: &'static str,
    },
    /// An S3 store, and no keys.
    #[error(
        "{place} needs keys, and none are given; use --access-key and --secret-key, or set KISEKI_ACCESS_KEY and \
         KISEKI_SECRET_KEY (or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
    )]
    NoKeys {
        /// The store.
        place: String,
    },
    /// The file that `ca=` names.
    #[error("cannot use the CA certificates in {}: {problem}; ca= names a file of certificates in PEM form", .path.display())]
    Ca {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The bucket is absent.
    #[error("there is no bucket for {place}; make the bucket first (kiseki does not make buckets), or check its name")]
    NoBucket {
        /// The store.
        place: String,
    },
    /// The store does not know the keys, or they do not fit.
    #[error("{place} refuses the keys ({text}); check the access key, the secret key and the region")]
    Keys {
        /// The store.
        place: String,
        /// Code and message of its answer.
        text: String,
    },
    /// The keys may not do this.
    #[error(
        "{place} denies access: the keys may not {verb} there ({text}); let them get, put, delete and list objects"
    )]
    Denied {
        /// The store.
        place: String,
        /// What was tried.
        verb: &'static str,
        /// Code and message of its answer.
        text: String,
    },
    /// The store's clock and ours differ too much for signatures.
    #[error("the clock of this machine and the one of {place} differ too much ({text}); set the clocks right")]
    ClockSkew {
        /// The store.
        place: String,
        /// Code and message of its answer, and its time.
        text: String,
    },
    /// The store is full.
    #[error("{place} is full ({text}); make room there")]
    Full {
        /// The store.
        place: String,
        /// Code and message of its answer.
        text: String,
    },
    /// No connection.
    #[error("cannot reach {place}: {cause}; is the address right, and does the server run?")]
    Unreachable {
        /// The store.
        place: String,
        /// From the connection down to the operating system.
        cause: String,
    },
    /// It answers, but not as hoped.
    #[error("{place} fails to {verb}: {text}; check its address, its region and its log")]
    Failing {
        /// The store.
        place: String,
        /// What was tried.
        verb: &'static str,
        /// What the store said.
        text: String,
    },
    /// The folder is absent.
    #[error("there is no folder {}", .0.display())]
    Missing(PathBuf),
    /// Something else is in its place.
    #[error("{} is not a folder", .0.display())]
    NotAFolder(PathBuf),
    /// The operating system failed.
    #[error("cannot use {}: {error}", .path.display())]
    Io {
        /// The folder.
        path: PathBuf,
        /// What failed.
        error: io::Error,
    },
    /// OpenDAL or the HTTP client refused.
    #[error("cannot set up the object store: {0}")]
    Setup(String),
}

impl From<opendal::Error> for ObjectsError {
    fn from(error: opendal::Error) -> Self {
        Self::Setup(error.to_string())
    }
}
