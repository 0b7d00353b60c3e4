//! Who we are to an S3 store. Never written anywhere.

use std::fmt;

/// Keys of an S3 store.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Which key.
    pub access_key: String,
    /// Its secret.
    pub secret_key: String,
    /// Of temporary keys.
    pub session_token: Option<String>,
}

/// Without the keys.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}
