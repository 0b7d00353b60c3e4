//! Tasks that begin on the thread that has them to do, and go on on the executor once they are woken.
//!
//! To hand a task to the executor at once wakes a thread, which takes 40 us where processors are idle, to have it do what
//! often is done at once, or to have it wait.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::future::Future;
use std::mem;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Wake, Waker};

use tokio::runtime::Handle;

use crate::brief;

type BoxedTask = Pin<Box<dyn Future<Output = ()> + Send>>;

thread_local! {
    /// What is to begin on this thread, in the order in which it was spawned.
    static HERE: RefCell<Option<VecDeque<BoxedTask>>> = const { RefCell::new(None) };
}

/// Has `task` run on `executor`, or begin on this thread if that is within `here`.
pub(crate) fn spawn(executor: &Handle, task: impl Future<Output = ()> + Send + 'static) {
    if HERE.with_borrow(Option::is_some) {
        let task: BoxedTask = Box::pin(task);
        HERE.with_borrow_mut(|here| here.get_or_insert_default().push_back(task));
    } else {
        drop(executor.spawn(task));
    }
}

/// Does `work`; what it spawns, and what that spawns, begins after it and before this returns, on a thread that may wait.
pub(crate) fn here(executor: &Handle, work: impl FnOnce()) {
    if !brief::is_allowed() || HERE.with_borrow(Option::is_some) {
        return work();
    }
    HERE.set(Some(VecDeque::new()));
    let _end = End(executor);
    work();
    while let Some(task) = HERE.with_borrow_mut(|here| here.as_mut().and_then(VecDeque::pop_front)) {
        Waiting::begin(task, executor.clone());
    }
}

/// The end of `here`, also by a panic, which must not take others' tasks along.
struct End<'a>(&'a Handle);

impl Drop for End<'_> {
    fn drop(&mut self) {
        for task in HERE.take().into_iter().flatten() {
            drop(self.0.spawn(task));
        }
    }
}

/// A task that waits.
pub(crate) struct Waiting {
    state: Mutex<State>,
    executor: Handle,
}

enum State {
    /// It is being polled, and may have been woken meanwhile.
    Polled {
        woken: bool,
    },
    Waits(BoxedTask),
    /// The executor has it.
    Gone,
}

impl Waiting {
    /// Polls a task here; what its waker missed in earlier polls is not lost.
    pub(crate) fn begin(mut task: BoxedTask, executor: Handle) {
        let waiting = Arc::new(Self { state: Mutex::new(State::Polled { woken: false }), executor });
        let waker = Waker::from(Arc::clone(&waiting));
        if task.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            return;
        }
        let mut state = waiting.state();
        if let State::Polled { woken: true } = *state {
            *state = State::Gone;
            drop(state);
            waiting.executor.spawn(task);
        } else {
            *state = State::Waits(task);
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
            State::Waits(task) => {
                drop(state);
                self.executor.spawn(task);
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
    use std::thread;
    use std::time::Duration;

    use super::*;

    /// Completes when `polls` polls were made; each wakes it at once, or passes its waker on.
    fn task(polls: u32, at_once: bool, wakers: mpsc::Sender<Option<Waker>>) -> BoxedTask {
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
    fn a_task_goes_on_when_it_is_woken() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        for at_once in [true, false] {
            for polls in 1..4 {
                let (wakers, woken) = mpsc::channel();
                Waiting::begin(task(polls, at_once, wakers), runtime.handle().clone());
                // The last one says that it is done; until then nobody else keeps the task alive.
                while let Some(waker) = woken.recv_timeout(Duration::from_secs(60)).unwrap() {
                    waker.wake_by_ref();
                    waker.wake();
                }
            }
        }
    }

    #[test]
    fn what_is_spawned_here_begins_here_where_the_thread_may_wait() {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).build().unwrap();
        let order = |allowed: bool| {
            let (done, all) = mpsc::channel();
            let executor = runtime.handle().clone();
            let work = || {
                here(runtime.handle(), || {
                    let ours = thread::current().id();
                    let of = done.clone();
                    spawn(&executor.clone(), async move {
                        let inner = of.clone();
                        spawn(
                            &executor,
                            async move { inner.send(("second", thread::current().id() == ours)).unwrap() },
                        );
                        of.send(("first", thread::current().id() == ours)).unwrap();
                    });
                    done.send(("work", true)).unwrap();
                });
                done.send(("returned", true)).unwrap();
            };
            if allowed {
                brief::allowed(work)
            } else {
                work()
            }
            (0..4).map(|_| all.recv_timeout(Duration::from_secs(60)).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(order(true), [("work", true), ("first", true), ("second", true), ("returned", true)]);
        let elsewhere = order(false);
        assert!(elsewhere.contains(&("first", false)) && elsewhere.contains(&("second", false)), "{elsewhere:?}");
    }
}
