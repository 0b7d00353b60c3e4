//! Where a request runs, and how it is refused.

use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use kiseki_core::client::Client;
use kiseki_core::env::Env;
use tokio::runtime::Handle;

use super::{Adapter, convert};
use crate::brief;

/// A reply that can be an error: all of them.
pub(super) trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty),* $(,)?) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyIoctl,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr,
);

impl<E: Env> Adapter<E> {
    /// Runs `work` on the client and replies with `answer`, or with the error.
    pub(super) fn serve<R, T, F>(
        &self,
        reply: R,
        work: impl FnOnce(Client<E>) -> F,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) where
        R: Refuse,
        T: Send,
        F: Future<Output = Result<T, kiseki_core::errno::Errno>> + Send + 'static,
    {
        let work = work(self.client.clone());
        self.run(async move {
            match work.await {
                Ok(value) => answer(reply, value),
                Err(errno) => reply.refuse(convert::errno(errno)),
            }
        });
    }

    /// Polls `request` here; if it has to wait, it goes on on the executor once it is woken.
    pub(super) fn run(&self, request: impl Future<Output = ()> + Send + 'static) {
        let mut request = Box::pin(request);
        let polled = brief::allowed(|| request.as_mut().poll(&mut Context::from_waker(Waker::noop())));
        if polled.is_pending() {
            Waiting::begin(request, self.executor.clone());
        }
    }
}

type BoxedRequest = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A request that waits. To hand it to the executor at once would wake a thread that has nothing to do yet.
struct Waiting {
    state: Mutex<State>,
    executor: Handle,
}

enum State {
    /// It is being polled, and may have been woken meanwhile.
    Polled {
        woken: bool,
    },
    Waits(BoxedRequest),
    /// The executor has it.
    Gone,
}

impl Waiting {
    /// Takes a request that was polled in vain: it is polled again, so nothing that its waker missed is lost.
    fn begin(mut request: BoxedRequest, executor: Handle) {
        let waiting = Arc::new(Self { state: Mutex::new(State::Polled { woken: false }), executor });
        let waker = Waker::from(Arc::clone(&waiting));
        if request.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return;
        }
        let mut state = waiting.state();
        if let State::Polled { woken: true } = *state {
            *state = State::Gone;
            drop(state);
            waiting.executor.spawn(request);
        } else {
            *state = State::Waits(request);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wake for Waiting {
    fn wake(self: Arc<Self>) {
        let mut state = self.state();
        match mem::replace(&mut *state, State::Gone) {
            State::Polled { .. } => *state = State::Polled { woken: true },
            State::Waits(request) => {
                drop(state);
                self.executor.spawn(request);
            }
            State::Gone => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::mpsc;
    use std::task::Poll;
    use std::time::Duration;

    use super::*;

    /// Completes when `polls` polls were made; each wakes it at once, or passes its waker on.
    fn request(polls: u32, at_once: bool, wakers: mpsc::Sender<Option<Waker>>) -> BoxedRequest {
        let mut left = polls;
        Box::pin(poll_fn(move |context| {
            left -= 1;
            if left == 0 {
                wakers.send(None).unwrap();
                return Poll::Ready(());
            }
            if at_once {
                context.waker().wake_by_ref();
            } else {
                wakers.send(Some(context.waker().clone())).unwrap();
            }
            Poll::Pending
        }))
    }

    #[test]
    fn a_request_goes_on_when_it_is_woken() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        for at_once in [true, false] {
            for polls in 1..4 {
                let (wakers, woken) = mpsc::channel();
                Waiting::begin(request(polls, at_once, wakers), runtime.handle().clone());
                // The last one says that it is done; until then nobody else keeps the request alive.
                while let Some(waker) = woken.recv_timeout(Duration::from_secs(60)).unwrap() {
                    waker.wake_by_ref();
                    waker.wake();
                }
            }
        }
    }
}
