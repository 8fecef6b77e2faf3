//! Waits until a thread sleeps in the kernel, as it says in `/proc`: what wakes it is then not lost on one that has
//! yet to look.

use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use haypile_shm::sys;

use super::PATIENCE;

/// A thread that makes a call which waits.
pub struct Sleeper<T> {
    thread: JoinHandle<T>,
    number: i32,
}

impl<T: Send + 'static> Sleeper<T> {
    /// Starts it; it may sleep by then, or be on its way.
    pub fn start(call: impl FnOnce() -> T + Send + 'static) -> Sleeper<T> {
        let (say, said) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            say.send(sys::gettid()).unwrap();
            call()
        });
        Sleeper { thread, number: said.recv().unwrap() }
    }

    /// Starts it and waits until it sleeps.
    pub fn asleep(call: impl FnOnce() -> T + Send + 'static) -> Sleeper<T> {
        let sleeper = Sleeper::start(call);
        sleeper.wait();
        sleeper
    }

    /// Waits until it sleeps, again, or has ended.
    pub fn wait(&self) {
        wait_until_asleep(self.number);
    }

    /// Whether the call has ended.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// What the call gave.
    pub fn join(self) -> std::thread::Result<T> {
        self.thread.join()
    }
}

/// Does something on a thread of its own once the caller sleeps.
pub fn once_asleep<T: Send + 'static>(act: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    let caller = sys::gettid();
    std::thread::spawn(move || {
        wait_until_asleep(caller);
        act()
    })
}

fn wait_until_asleep(number: i32) {
    let start = Instant::now();
    // The state stands behind the name, which is in brackets and may hold anything. No file: it has ended.
    while let Ok(stat) = std::fs::read_to_string(format!("/proc/self/task/{number}/stat"))
        && !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('S'))
    {
        assert!(start.elapsed() < PATIENCE, "thread {number} never sleeps: {stat}");
        std::thread::yield_now();
    }
}
