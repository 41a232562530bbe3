//! The layer on a few rows: each weight is used so little that only reading it counts.

use core::array::from_fn;

use pulp::{Arch, Simd, WithSimd};

use super::{gelu::gelu, pack::Number};

/// How many rows are few.
pub const ROWS: usize = 4;

/// Some outputs of a few rows.
pub struct Dots<'a, T> {
    /// The layer's input `[rows, in]`.
    pub x: &'a [f32],
    /// Rows of the weights `[outputs, in]`.
    pub weights: &'a [T],
    /// These outputs' bias.
    pub bias: Option<&'a [f32]>,
    /// Whether GELU comes after.
    pub gelu: bool,
    /// These outputs of each row.
    pub y: Vec<&'a mut [f32]>,
}

impl<T: Number> Dots<'_, T> {
    pub fn run(self, arch: Arch) {
        arch.dispatch(self);
    }
}

impl<T: Number> WithSimd for Dots<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let features = self.x.len() / self.y.len();
        let mut wide = vec![0.; features];
        for (output, weights) in self.weights.chunks_exact(features).enumerate() {
            T::widen(weights, &mut wide);
            for (x, y) in self.x.chunks_exact(features).zip(&mut self.y) {
                let sum = dot(simd, x, &wide) + self.bias.map_or(0., |bias| bias[output]);
                y[output] = if self.gelu { gelu(sum) } else { sum };
            }
        }
    }
}

#[inline(always)]
fn dot<S: Simd>(simd: S, a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (S::as_simd_f32s(a), S::as_simd_f32s(b));
    let ((a, a_last), (b, b_last)) = (a.as_chunks::<4>(), b.as_chunks::<4>());
    let mut sums = [simd.splat_f32s(0.); 4];
    for (a, b) in a.iter().zip(b) {
        sums = from_fn(|i| simd.mul_add_f32s(a[i], b[i], sums[i]));
    }
    for (a, b) in a_last.iter().zip(b_last) {
        sums[0] = simd.mul_add_f32s(*a, *b, sums[0]);
    }
    let [a, b, c, d] = sums;
    let sum = simd.reduce_sum_f32s(simd.add_f32s(simd.add_f32s(a, b), simd.add_f32s(c, d)));
    a_rest.iter().zip(b_rest).fold(sum, |sum, (a, b)| a.mul_add(*b, sum))
}
