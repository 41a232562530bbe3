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

impl Line {
    pub const ZERO: Self = Self([0.; 16]);
}

/// Buffers that nobody uses now.
pub struct Pool<T> {
    buffers: Mutex<Vec<Vec<T>>>,
    zero: T,
}

impl<T: Copy> Pool<T> {
    /// What buffers begin with is `zero`.
    pub const fn new(zero: T) -> Self {
        Self { buffers: Mutex::new(Vec::new()), zero }
    }

    /// A buffer of at least `len`, with whatever is in it.
    pub fn take(&self, len: usize) -> Scratch<'_, T> {
        let mut buffer = self.buffers.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default();
        if buffer.len() < len {
            buffer = vec![self.zero; len];
        }
        Scratch { pool: self, buffer }
    }
}

/// A buffer that goes back to its pool.
pub struct Scratch<'a, T> {
    pool: &'a Pool<T>,
    buffer: Vec<T>,
}

impl<T> Drop for Scratch<'_, T> {
    fn drop(&mut self) {
        self.pool.buffers.lock().unwrap_or_else(PoisonError::into_inner).push(take(&mut self.buffer));
    }
}

impl<T> Deref for Scratch<'_, T> {
    type Target = [T];

    fn deref(&self) -> &Self::Target {
        &self.buffer
    }
}

impl<T> DerefMut for Scratch<'_, T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.buffer
    }
}
