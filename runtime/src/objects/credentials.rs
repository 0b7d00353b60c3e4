//! Who we are to an S3 store.
//!
//! Owns: where the keys come from. Leaves to others: signing with them (OpenDAL).
//!
//! Invariant: keys are written nowhere, by no `Debug` and into no message.

use std::collections::BTreeMap;
use std::{env, fmt};

use super::ObjectsError;

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

/// Names of the variables that may hold a set of keys.
struct Names {
    access: &'static str,
    secret: &'static str,
    token: &'static str,
}

/// In order: the first set of which anything is there is used, whole.
const SETS: [Names; 2] = [
    Names { access: "KISEKI_ACCESS_KEY", secret: "KISEKI_SECRET_KEY", token: "KISEKI_SESSION_TOKEN" },
    Names { access: "AWS_ACCESS_KEY_ID", secret: "AWS_SECRET_ACCESS_KEY", token: "AWS_SESSION_TOKEN" },
];

impl Credentials {
    /// The keys in the environment: `KISEKI_ACCESS_KEY` and `KISEKI_SECRET_KEY` (and `KISEKI_SESSION_TOKEN`), or the
    /// same as AWS names them. `None` if there are none.
    pub fn from_env() -> Result<Option<Self>, ObjectsError> {
        Self::find(None, None, variable)
    }

    /// The keys given on the command line, or those in the environment, before which `variables` are looked at. A key
    /// that only half was given of there is completed from the `KISEKI_` variables: a secret is better not on a command
    /// line.
    pub fn resolve(
        access: Option<String>,
        secret: Option<String>,
        variables: &BTreeMap<String, String>,
    ) -> Result<Option<Self>, ObjectsError> {
        let given = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
        Self::find(access, secret, |name| given(name).or_else(|| variable(name)))
    }

    fn find(
        access: Option<String>,
        secret: Option<String>,
        variable: impl Fn(&str) -> Option<String>,
    ) -> Result<Option<Self>, ObjectsError> {
        let (access, secret) = (access.filter(|key| !key.is_empty()), secret.filter(|key| !key.is_empty()));
        if access.is_some() || secret.is_some() {
            let names = &SETS[0];
            let (access_flag, secret_flag) = (access.is_some(), secret.is_some());
            let session_token = variable(names.token);
            let access = access.or_else(|| variable(names.access));
            let secret = secret.or_else(|| variable(names.secret));
            return match (access, secret) {
                (Some(access_key), Some(secret_key)) => Ok(Some(Self { access_key, secret_key, session_token })),
                (_, _) if access_flag => Err(ObjectsError::HalfKeys {
                    given: "--access-key",
                    missing: "the secret key (--secret-key or KISEKI_SECRET_KEY)",
                }),
                (_, _) => {
                    debug_assert!(secret_flag);
                    Err(ObjectsError::HalfKeys {
                        given: "--secret-key",
                        missing: "the access key (--access-key or KISEKI_ACCESS_KEY)",
                    })
                }
            };
        }
        for names in &SETS {
            match (variable(names.access), variable(names.secret)) {
                (Some(access_key), Some(secret_key)) => {
                    return Ok(Some(Self { access_key, secret_key, session_token: variable(names.token) }));
                }
                (Some(_), None) => {
                    return Err(ObjectsError::HalfKeys { given: names.access, missing: names.secret });
                }
                (None, Some(_)) => {
                    return Err(ObjectsError::HalfKeys { given: names.secret, missing: names.access });
                }
                (None, None) => {}
            }
        }
        Ok(None)
    }

    /// `text` without any of the keys, should somebody have put one in.
    pub(super) fn hide(&self, text: &str) -> String {
        let mut text = text.to_owned();
        let token = self.session_token.as_deref().unwrap_or("");
        for secret in [&self.secret_key, token, &self.access_key] {
            // A key of a few letters would be found in every word.
            if secret.len() >= 4 {
                text = text.replace(secret, "***");
            }
        }
        text
    }
}

/// A variable that is set to something.
fn variable(name: &str) -> Option<String> {
    env::var(name).ok().filter(|value| !value.is_empty())
}

/// Without the keys.
impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Credentials")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Keys found with these flags and these variables, as "access/secret/token", or the error.
    fn find(flags: [&str; 2], variables: &[(&str, &str)]) -> String {
        let given = |flag: &str| (!flag.is_empty()).then(|| flag.to_owned());
        let variable = |name: &str| {
            let found = variables.iter().find(|(named, _)| *named == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        match Credentials::find(given(flags[0]), given(flags[1]), variable) {
            Ok(None) => "none".into(),
            Ok(Some(keys)) => {
                format!("{}/{}/{}", keys.access_key, keys.secret_key, keys.session_token.unwrap_or_default())
            }
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn keys_come_from_flags_then_our_variables_then_those_of_aws() {
        let ours = [("KISEKI_ACCESS_KEY", "ka"), ("KISEKI_SECRET_KEY", "ks")];
        let aws = [("AWS_ACCESS_KEY_ID", "aa"), ("AWS_SECRET_ACCESS_KEY", "as"), ("AWS_SESSION_TOKEN", "at")];
        let both = [ours.as_slice(), &aws].concat();
        assert_eq!(find(["", ""], &[]), "none");
        assert_eq!(find(["", ""], &ours), "ka/ks/");
        assert_eq!(find(["", ""], &aws), "aa/as/at");
        assert_eq!(find(["", ""], &both), "ka/ks/", "the token of another set does not fit");
        assert_eq!(find(["", ""], &[&ours[..], &[("KISEKI_SESSION_TOKEN", "kt")]].concat()), "ka/ks/kt");
        assert_eq!(find(["fa", "fs"], &both), "fa/fs/");
        assert_eq!(find(["fa", ""], &both), "fa/ks/");
        assert_eq!(find(["", "fs"], &both), "ka/fs/");
    }

    #[test]
    fn half_a_pair_is_an_error_that_names_the_other_half() {
        let cases = [
            (["", ""], ("KISEKI_ACCESS_KEY", "ka"), "KISEKI_SECRET_KEY is not"),
            (["", ""], ("KISEKI_SECRET_KEY", "ks"), "KISEKI_ACCESS_KEY is not"),
            (["", ""], ("AWS_ACCESS_KEY_ID", "aa"), "AWS_SECRET_ACCESS_KEY is not"),
            (["", ""], ("AWS_SECRET_ACCESS_KEY", "as"), "AWS_ACCESS_KEY_ID is not"),
            (["fa", ""], ("AWS_SECRET_ACCESS_KEY", "as"), "--secret-key or KISEKI_SECRET_KEY"),
            (["", "fs"], ("AWS_ACCESS_KEY_ID", "aa"), "--access-key or KISEKI_ACCESS_KEY"),
        ];
        for (flags, variable, expected) in cases {
            let found = find(flags, &[variable]);
            assert!(found.contains(expected), "{found}");
        }
    }

    #[test]
    fn keys_are_not_shown() {
        let keys = Credentials {
            access_key: "the-access".into(),
            secret_key: "the-secret".into(),
            session_token: Some("the-token".into()),
        };
        assert_eq!(format!("{keys:?}"), "Credentials");
        assert_eq!(keys.hide("no the-secret, the-token or the-access here"), "no ***, *** or *** here");
    }
}
