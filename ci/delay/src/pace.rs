//! Bandwidth: bodies whose bytes pass at a given rate, shared by all of them.
//!
//! Owns: when a frame may pass. Leaves to others: what the rate is (`rules`).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::time::{Instant, Sleep, sleep_until};

/// What an idle lane may send at once, as time: more than a timer's grain (1 ms), or the rate would not be reached.
const CREDIT: Duration = Duration::from_millis(4);

/// One direction: bytes leave it one after another.
pub(crate) struct Lane {
    /// When everything that was let in has left.
    free: Mutex<Instant>,
}

impl Lane {
    pub(crate) fn new() -> Self {
        Self { free: Mutex::new(Instant::now()) }
    }

    /// Lets `len` bytes in; they have passed at the instant returned.
    pub(crate) fn pass(&self, len: usize, bytes_per_second: u64, now: Instant) -> Instant {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(CREDIT).unwrap_or(now);
        *free = (*free).max(earliest) + Duration::from_secs_f64(len as f64 / bytes_per_second as f64);
        *free
    }
}

/// A body whose frames wait for their lane.
pub(crate) struct Paced<B> {
    body: B,
    lane: Arc<Lane>,
    bytes_per_second: Option<u64>,
    /// The frame that is on its way, and until when.
    under_way: Option<(Frame<Bytes>, Pin<Box<Sleep>>)>,
}

impl<B> Paced<B> {
    pub(crate) fn new(body: B, lane: &Arc<Lane>, bytes_per_second: Option<u64>) -> Self {
        Self { body, lane: lane.clone(), bytes_per_second, under_way: None }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Paced<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        if this.under_way.is_none() {
            let Poll::Ready(next) = Pin::new(&mut this.body).poll_frame(cx) else { return Poll::Pending };
            let Some(Ok(frame)) = next else { return Poll::Ready(next) };
            let (Some(data), Some(rate)) = (frame.data_ref(), this.bytes_per_second) else {
                return Poll::Ready(Some(Ok(frame)));
            };
            let end = this.lane.pass(data.len(), rate, Instant::now());
            this.under_way = Some((frame, Box::pin(sleep_until(end))));
        }
        let passed = this.under_way.take_if(|(_, sleep)| sleep.as_mut().poll(cx).is_ready());
        passed.map_or(Poll::Pending, |(frame, _)| Poll::Ready(Some(Ok(frame))))
    }

    fn is_end_stream(&self) -> bool {
        self.under_way.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let mut hint = self.body.size_hint();
        let held = self.under_way.as_ref().and_then(|(frame, _)| frame.data_ref()).map_or(0, |data| data.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + held);
        }
        hint.set_lower(hint.lower() + held);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_leave_at_the_rate_whoever_sends_them() {
        let lane = Lane::new();
        let now = Instant::now() + Duration::from_secs(1);
        let ms = Duration::from_millis;
        // 1 byte a millisecond; the lane was idle before.
        assert_eq!(lane.pass(10, 1000, now), now + ms(10) - CREDIT);
        assert_eq!(lane.pass(10, 1000, now), now + ms(20) - CREDIT);
        assert_eq!(lane.pass(10, 1000, now + ms(5)), now + ms(30) - CREDIT);
        // Idle time beyond the credit is not saved up.
        assert_eq!(lane.pass(10, 1000, now + ms(500)), now + ms(510) - CREDIT);
    }
}
