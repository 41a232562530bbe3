//! How work is shared among threads, whoever has them.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Runs tasks that do not depend on each other.
pub trait Threads {
    /// Call `task` with each number below `tasks`, once.
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync));

    /// How many threads there are.
    fn count(&self) -> usize;
}

/// The thread that asks, alone.
pub struct Serial;

impl Threads for Serial {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }

    fn count(&self) -> usize {
        1
    }
}

/// So many threads, the one that asks and others that are started for each run; each takes the next task that is left.
pub struct Scoped(pub usize);

impl Threads for Scoped {
    fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        let next = AtomicUsize::new(0);
        let work = || {
            std::iter::repeat_with(|| next.fetch_add(1, Relaxed)).take_while(|number| *number < tasks).for_each(task);
        };
        std::thread::scope(|scope| {
            (1..self.0).for_each(|_| drop(scope.spawn(work)));
            work();
        });
    }

    fn count(&self) -> usize {
        self.0
    }
}

/// Call `work` with each part and its number.
pub fn each<T: Send>(threads: &dyn Threads, parts: impl IntoIterator<Item = T>, work: impl Fn(usize, T) + Sync) {
    let parts: Vec<_> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
    threads.run(parts.len(), &|number| {
        let part = parts[number].lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(part) = part {
            work(number, part);
        }
    });
}
