//! Objects behind the S3 protocol, through OpenDAL's `s3` service.
//!
//! Owns: setting OpenDAL up, the calls and their deadlines, the probe.
//! Leaves to others: HTTP (`http`), what a failure means (`failure`), how many at once (`pace`), trying again
//! (`kiseki_core`).
//!
//! Invariants
//! - An acknowledged put is durable: there is no barrier. (MinIO keeps that with MINIO_FS_OSYNC=on only.)
//! - Every attempt has a deadline of its own, from when it may start; past it, its connection is closed.
//! - The store verifies every body against a checksum (CRC32C) before it takes it.
//! - Reads never wait for writes: each has a window of its own.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::TryStreamExt;
use kiseki_core::env::{ObjectPage, StoreError};
use opendal::options::ListOptions;
use opendal::{Buffer, HttpTransporter, Operator};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::failure::{Failure, Kind};
use super::health::{Health, Verb};
use super::http::{self, Watched};
use super::pace::{Outcome, Pace};
use super::{Access, Credentials, GETS_MAX, ObjectsError, PUTS_MAX, Place, S3Place};

/// An attempt that takes longer has failed, however long the caller would wait.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(60);
/// Keys in a page of a list: S3 gives no more.
const PAGE_MAX: usize = 1000;
/// A person waits for a probe.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);
const PROBE_PAUSES: [Duration; 3] = [Duration::from_millis(200), Duration::from_millis(600), Duration::from_secs(2)];
/// Beginning of the keys of objects that a probe puts and deletes. They are never listed.
const PROBE: &str = ".probe-";

/// The objects of one volume, under a prefix of a bucket.
pub(super) struct S3 {
    operator: Operator,
    place: String,
    access: Access,
    /// Of callers; an attempt has `ATTEMPT_TIMEOUT` if that is less.
    timeout: Duration,
    puts: Arc<Pace>,
    gets: Arc<Pace>,
    health: Arc<Health>,
}

impl S3 {
    pub(super) fn open(
        place: &S3Place,
        keys: Option<&Credentials>,
        access: Access,
        timeout: Duration,
        health: Arc<Health>,
    ) -> Result<Arc<Self>, ObjectsError> {
        let shown = Place::S3(place.clone()).to_string();
        let keys = keys.ok_or_else(|| ObjectsError::NoKeys { place: shown.clone() })?;
        let mut builder = opendal::services::S3::default()
            .disable_config_load()
            .disable_ec2_metadata()
            .access_key_id(&keys.access_key)
            .secret_access_key(&keys.secret_key)
            .endpoint(&guarded(&place.endpoint, &place.bucket))
            .region(&place.region)
            .bucket(&place.bucket)
            .root(&format!("/{}/", place.prefix))
            .checksum_algorithm("crc32c");
        if let Some(token) = &keys.session_token {
            builder = builder.session_token(token);
        }
        if place.host_style {
            builder = builder.enable_virtual_host_style();
        }
        let operator = Operator::new(builder)?;
        let transport = Watched::new(http::client(place)?, Arc::new(keys.clone()));
        let context = operator.context().clone().with_http_transport(HttpTransporter::new(transport));
        Ok(Arc::new(Self {
            operator: operator.with_context(context),
            place: shown,
            access,
            timeout,
            puts: Pace::new(PUTS_MAX),
            gets: Pace::new(GETS_MAX),
            health,
        }))
    }

    pub(super) async fn put(&self, key: &str, body: Vec<Bytes>) -> Result<(), StoreError> {
        self.check_writable()?;
        let body = Buffer::from(body);
        let len = body.len() as u64;
        let put = self.attempt(&self.puts, async { self.operator.write(key, body).await.map(drop) }).await;
        self.health.note(Verb::Put, key, len, put)
    }

    pub(super) async fn get(&self, key: &str, range: Range<u64>) -> Result<Bytes, StoreError> {
        let len = range.end.saturating_sub(range.start);
        if len == 0 {
            return Ok(Bytes::new());
        }
        let got = self.attempt(&self.gets, async {
            // The one copy: out of the connection's buffers, while they are in the processor's caches.
            let mut bytes = BytesMut::with_capacity(len as usize);
            self.operator.reader(key).await?.read_into(&mut bytes, range).await?;
            Ok(bytes.freeze())
        });
        let got = match got.await {
            Ok(bytes) if (bytes.len() as u64) < len => {
                Err(Failure::new(Kind::Short, format!("{} bytes instead of {len}", bytes.len())))
            }
            got => got,
        };
        self.health.note(Verb::Get, key, len, got)
    }

    pub(super) async fn delete(&self, key: &str) -> Result<(), StoreError> {
        self.check_writable()?;
        let deleted = match self.attempt(&self.puts, self.operator.delete(key)).await {
            Err(Failure { kind: Kind::NotFound, .. }) => Ok(()),
            deleted => deleted,
        };
        self.health.note(Verb::Delete, key, 0, deleted)
    }

    pub(super) async fn list(&self, prefix: &str, after: Option<&str>) -> Result<ObjectPage, StoreError> {
        let page = self.attempt(&self.gets, self.page(prefix, after, PAGE_MAX)).await.and_then(|page| {
            // What goes on after the last key would miss keys.
            match page.keys.is_sorted_by(|a, b| a < b) {
                true => Ok(page),
                false => Err(Failure::new(Kind::Refused, "it does not list keys in order")),
            }
        });
        self.health.note(Verb::List, prefix, 0, page)
    }

    /// Keys under `prefix` and after `after`: at most `max`, and what the probe puts left out.
    async fn page(&self, prefix: &str, after: Option<&str>, max: usize) -> opendal::Result<ObjectPage> {
        let path = if prefix.is_empty() { "/" } else { prefix };
        let options = ListOptions {
            recursive: true,
            limit: Some(max),
            start_after: after.map(str::to_owned),
            ..ListOptions::default()
        };
        let mut lister = self.operator.lister_options(path, options).await?;
        let (mut seen, mut keys) = (0, Vec::new());
        let mut next = None;
        while seen < max {
            let Some(entry) = lister.try_next().await? else {
                return Ok(ObjectPage { keys, next: None });
            };
            seen += 1;
            let key = entry.path().to_owned();
            next = Some(key.clone());
            // Some tools put an object for a folder.
            if !key.ends_with('/') && !key.starts_with(PROBE) {
                keys.push(key);
            }
        }
        Ok(ObjectPage { keys, next })
    }

    /// How many puts and how many gets may be under way.
    pub(super) fn windows(&self) -> (usize, usize) {
        (self.puts.allowed(), self.gets.allowed())
    }

    /// Whether the place can be used as it was opened. Waits no longer than a person would.
    pub(super) async fn probe(&self) -> Result<(), ObjectsError> {
        let deadline = Instant::now() + PROBE_TIMEOUT;
        self.insist("list", deadline, || self.page("", None, 1)).await?;
        match self.access {
            Access::Read => Ok(()),
            Access::Create | Access::Write => {
                let key = format!("{PROBE}{}", uuid::Uuid::new_v4());
                self.insist("put", deadline, || self.operator.write(&key, "probe")).await?;
                self.insist("delete", deadline, || self.operator.delete(&key)).await
            }
        }
    }

    /// Some object, if there is any.
    pub(super) async fn any_key(&self) -> Result<Option<String>, ObjectsError> {
        let deadline = Instant::now() + PROBE_TIMEOUT;
        let page = self.insist("list", deadline, || self.page("", None, PAGE_MAX)).await?;
        Ok(page.keys.into_iter().next())
    }

    /// Makes a request, a few times if need be.
    async fn insist<T, R: Future<Output = opendal::Result<T>>>(
        &self,
        verb: &'static str,
        deadline: Instant,
        request: impl Fn() -> R,
    ) -> Result<T, ObjectsError> {
        let mut pauses = PROBE_PAUSES.into_iter();
        let mut last = None;
        loop {
            let failure = match timeout_at(deadline, request()).await {
                Ok(Ok(value)) => return Ok(value),
                Ok(Err(error)) => Failure::of_opendal(&error),
                // What went wrong before says more than that time is up.
                Err(_) => last.take().unwrap_or_else(|| {
                    Failure::new(Kind::TimedOut, format!("no answer within {} s", PROBE_TIMEOUT.as_secs()))
                }),
            };
            match pauses.next() {
                Some(pause) if failure.kind.is_passing() && Instant::now() + pause < deadline => sleep(pause).await,
                _ => return Err(self.explain(verb, failure)),
            }
            last = Some(failure);
        }
    }

    fn explain(&self, verb: &'static str, failure: Failure) -> ObjectsError {
        let (place, text) = (self.place.clone(), failure.text);
        match failure.kind {
            Kind::NoBucket => ObjectsError::NoBucket { place },
            Kind::Keys => ObjectsError::Keys { place, text },
            Kind::Denied => ObjectsError::Denied { place, verb, text },
            Kind::ClockSkew => ObjectsError::ClockSkew { place, text },
            Kind::Full => ObjectsError::Full { place, text },
            Kind::Unreachable => ObjectsError::Unreachable { place, cause: text },
            Kind::NotFound | Kind::Short | Kind::Throttled | Kind::TimedOut | Kind::Broken | Kind::Refused => {
                ObjectsError::Failing { place, verb, text }
            }
        }
    }

    /// Waits for a place in the window, then makes the request.
    async fn attempt<T>(
        &self,
        pace: &Arc<Pace>,
        request: impl Future<Output = opendal::Result<T>>,
    ) -> Result<T, Failure> {
        let Ok(pass) = timeout(self.timeout, pace.enter()).await else {
            let text = format!("{} other requests are under way or wait", pace.allowed());
            return Err(Failure::new(Kind::TimedOut, text));
        };
        let limit = self.timeout.min(ATTEMPT_TIMEOUT);
        let result = match timeout(limit, request).await {
            Ok(result) => result.map_err(|error| Failure::of_opendal(&error)),
            Err(_) => Err(Failure::new(Kind::TimedOut, format!("no answer within {limit:?}"))),
        };
        pass.end(match &result {
            Ok(_) => Outcome::Fine,
            Err(failure) => match failure.kind {
                Kind::NotFound | Kind::Short => Outcome::Fine,
                Kind::Throttled | Kind::TimedOut => Outcome::Refused(failure.retry_after),
                Kind::NoBucket
                | Kind::Keys
                | Kind::Denied
                | Kind::ClockSkew
                | Kind::Full
                | Kind::Unreachable
                | Kind::Broken
                | Kind::Refused => Outcome::Unknown,
            },
        });
        result
    }

    fn check_writable(&self) -> Result<(), StoreError> {
        match self.access {
            Access::Create | Access::Write => Ok(()),
            Access::Read => Err(StoreError::Denied),
        }
    }
}

/// The endpoint as OpenDAL leaves it alone: it cuts the name of the bucket off a host that begins with it, whether or
/// not the bucket is also in the path. It does not recognise an escaped one, and unescapes it afterwards.
fn guarded(endpoint: &str, bucket: &str) -> String {
    match endpoint.split_once("://") {
        Some((scheme, host)) if host.starts_with(&format!("{bucket}.")) => {
            let (first, rest) = host.split_at(1);
            format!("{scheme}://%{:02X}{rest}", first.as_bytes()[0])
        }
        _ => endpoint.to_owned(),
    }
}
