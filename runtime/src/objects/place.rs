//! Where the objects of a volume are: a folder, or a prefix of an S3 bucket.
//!
//! Owns: the text of `--bucket` and of the setting that is made of it. Leaves to others: reaching the place.

use std::fmt;
use std::path::{Path, PathBuf};

use super::ObjectsError;

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

impl Place {
    /// The place that a volume's settings describe: `storage` is "file", "s3" or "minio", `bucket` what `setting`
    /// returned when it was formatted (or what a person typed), `volume` its name.
    pub fn parse(storage: &str, bucket: &str, volume: &str) -> Result<Self, ObjectsError> {
        if volume.is_empty() || volume == "." || volume == ".." || volume.contains(['/', '\0']) {
            return Err(ObjectsError::Prefix(volume.to_owned()));
        }
        match storage {
            "file" => Ok(Self::Folder(Path::new(bucket).join(volume))),
            other => Err(ObjectsError::Storage(other.to_owned())),
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "{}", path.display()),
            Self::S3(s3) => write!(f, "{}/{}/{}", s3.endpoint, s3.bucket, s3.prefix),
        }
    }
}
