//! Running a check of a volume, for a command or on its behalf.

use kiseki_core::client::check::{CheckError, CheckProgress, CheckSummary};
use kiseki_core::errno::Errno;
use kiseki_core::meta;
use tokio::runtime::Handle;

use super::protocol::{Checked, Finding, Progress};
use super::{ServiceError, Stop, view};

/// How many keys go by between two progress reports.
const KEYS_PER_REPORT: u64 = 1000;

/// Takes progress of the core.
pub(crate) type OnProgress<'a> = &'a mut (dyn FnMut(CheckProgress) + Send);
/// Takes findings of the core.
pub(crate) type OnFinding<'a> = &'a mut (dyn FnMut(meta::Finding) + Send);

/// Runs `check` and blocks until it is done or `stop` is set.
pub(crate) fn run(
    handle: &Handle,
    stop: &Stop,
    progress: &(dyn Fn(Progress) + Sync),
    found: &(dyn Fn(Finding) + Sync),
    check: impl AsyncFnOnce(OnProgress<'_>, OnFinding<'_>) -> Result<CheckSummary, CheckError>,
) -> Result<Checked, ServiceError> {
    let mut next_report = 0;
    let mut report = |at: CheckProgress| {
        if at.slices_total > 0 || at.keys >= next_report {
            next_report = at.keys + KEYS_PER_REPORT;
            progress(view::progress(at));
        }
    };
    let mut report_finding = |finding: meta::Finding| found(view::finding(finding));
    handle.block_on(async {
        tokio::select! {
            checked = check(&mut report, &mut report_finding) => match checked {
                Ok(summary) => Ok(view::checked(summary)),
                Err(e) => Err(ServiceError { errno: Errno::EIO.0, text: e.to_string() }),
            },
            () = stop.wait() => Err(stopped()),
        }
    })
}

/// The answer to a request that the end of the mount cuts short.
pub(crate) fn stopped() -> ServiceError {
    ServiceError { errno: Errno::EINTR.0, text: "the volume is being unmounted".into() }
}
