//! Where a request runs, and how it is refused.

use std::future::Future;
use std::task::{Context, Waker};

use fuser::{
    Errno, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
};
use kiseki_core::client::Client;
use kiseki_core::env::Env;

use super::{Adapter, convert};
use crate::brief;
use crate::waiting::{self, Waiting};

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
        let _turn = self.turns.begin();
        self.load.note();
        let mut request = Box::pin(request);
        let poll = || request.as_mut().poll(&mut Context::from_waker(Waker::noop()));
        let polled = brief::allowed(|| waiting::later(&self.executor, poll));
        if polled.is_pending() {
            Waiting::begin(request, self.executor.clone());
        }
    }
}
