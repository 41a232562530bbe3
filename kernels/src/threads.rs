//! How work is shared among threads, whoever has them.

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
