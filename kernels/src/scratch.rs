//! Memory to work in, kept between calls: that of a fresh allocation is slow to touch first.

use std::{
    mem::take,
    ops::{Deref, DerefMut},
    sync::{Mutex, PoisonError},
};

/// Sixteen numbers in a cache line of their own.
#[derive(Clone, Copy)]
#[repr(align(64))]
pub struct Line(pub [f32; 16]);

/// Buffers that nobody uses now.
pub struct Pool(Mutex<Vec<Vec<Line>>>);

impl Pool {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    /// A buffer of at least `len`, with whatever is in it.
    pub fn take(&self, len: usize) -> Scratch<'_> {
        let mut buffer = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        if buffer.len() < len {
            buffer = vec![Line([0.; 16]); len];
        }
        Scratch { pool: self, buffer }
    }
}

/// A buffer that goes back to its pool.
pub struct Scratch<'a> {
    pool: &'a Pool,
    buffer: Vec<Line>,
}

impl Drop for Scratch<'_> {
    fn drop(&mut self) {
        self.pool.0.lock().unwrap_or_else(PoisonError::into_inner).push(take(&mut self.buffer));
    }
}

impl Deref for Scratch<'_> {
    type Target = [Line];

    fn deref(&self) -> &Self::Target {
        &self.buffer
    }
}

impl DerefMut for Scratch<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.buffer
    }
}
