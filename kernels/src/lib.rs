//! What the processor computes with cogvx's own kernels: on plain slices, in vectors as wide as the processor has them.
//!
//! Between the products of a transformer lie many small operations, each of which reads and writes all of a tensor; here what
//! belongs together is done while it is in a core's cache.

// What is dispatched to vectors is compiled for them only where it is inlined.
#![allow(clippy::inline_always)]

pub mod attention;
mod gelu;
pub mod hadamard;
pub mod linear;
#[cfg(target_arch = "x86_64")]
mod parts;
mod processor;
pub mod rows;
mod scratch;
pub mod threads;
#[cfg(target_arch = "x86_64")]
mod transpose;

pub use threads::{Scoped, Serial, Threads};

/// Whether the processor has tile registers, in which large products are made.
#[must_use]
pub fn has_tiles() -> bool {
    cogvx_tiles::available()
}

/// Whether the processor has the vectors that these kernels were measured to pay with: AVX-512, and AVX2 for a model whose large
/// products are quantized, which are not theirs.
#[must_use]
pub fn pays(quantized: bool) -> bool {
    #[cfg(target_arch = "x86_64")]
    return match pulp::Arch::new() {
        pulp::Arch::V4(_) => true,
        pulp::Arch::V3(_) => quantized,
        _ => false,
    };
    #[cfg(not(target_arch = "x86_64"))]
    {
        _ = quantized;
        false
    }
}
