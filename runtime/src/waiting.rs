//! When tasks go to the executor: those of a request when it is answered, those that wait when they are woken.
//!
//! To hand a task over wakes a thread. That takes 40 us where processors are idle, to have it do what often is done at once,
//! or to have it wait; where they are not, it takes the processor of the one who answers.

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
    /// What becomes of tasks that are spawned on this thread, if they do not go to the executor at once.
    static HELD: RefCell<Option<Held>> = const { RefCell::new(None) };
}

/// Tasks in the order in which they were spawned.
struct Held {
    tasks: VecDeque<BoxedTask>,
    /// They begin on this thread.
    here: bool,
}

/// Has `task` run on `executor`, unless that is within `later` or `here`.
pub(crate) fn spawn(executor: &Handle, task: impl Future<Output = ()> + Send + 'static) {
    if HELD.with_borrow(Option::is_some) {
        let task: BoxedTask = Box::pin(task);
        HELD.with_borrow_mut(|held| held.as_mut().expect("it is there").tasks.push_back(task));
    } else {
        drop(executor.spawn(task));
    }
}

/// Does `work`; what it spawns goes to the executor when it is done. A thread that is woken may take the processor at once,
/// and keep whoever waits for the answer waiting.
pub(crate) fn later<T>(executor: &Handle, work: impl FnOnce() -> T) -> T {
    let _end = hold(executor, false);
    work()
}

/// Does `work`; what it spawns, and what that spawns, begins after it and before this returns, on a thread that may wait.
pub(crate) fn here(executor: &Handle, work: impl FnOnce()) {
    if !brief::is_allowed() || HELD.with_borrow(|held| held.as_ref().is_some_and(|held| held.here)) {
        return work();
    }
    let _end = hold(executor, true);
    work();
    while let Some(task) = HELD.with_borrow_mut(|held| held.as_mut().and_then(|held| held.tasks.pop_front())) {
        Waiting::begin(task, executor.clone());
    }
}

fn hold(executor: &Handle, here: bool) -> End<'_> {
    End { executor, outer: HELD.replace(Some(Held { tasks: VecDeque::new(), here })) }
}

/// The end of `later` and of `here`, also by a panic, which must not take others' tasks along.
struct End<'a> {
    executor: &'a Handle,
    outer: Option<Held>,
}

impl Drop for End<'_> {
    fn drop(&mut self) {
        for task in HELD.replace(self.outer.take()).into_iter().flat_map(|held| held.tasks) {
            drop(self.executor.spawn(task));
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
