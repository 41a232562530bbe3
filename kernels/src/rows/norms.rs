//! Norms of several streams side by side.

use pulp::Simd;

use super::{Added, Out, ROWS};
use crate::threads::{Threads, each};

/// A part of each sample's tokens, with its own modulation.
pub struct Stream<'a> {
    /// `[batch, tokens, width]`.
    pub x: &'a [f32],
    /// Tokens of a sample.
    pub tokens: usize,
    /// What the norm is multiplied by, `[width]`.
    pub scale: &'a [f32],
    /// What is added then, `[width]`.
    pub shift: &'a [f32],
    /// What the block's output is multiplied by before it is added to `x`, `[width]`.
    pub gate: &'a [f32],
}

/// CogVideoX's `CogVideoXLayerNormZero` (diffusers `models/normalization.py`) on all streams of a sample side by side, after the
/// block before has been added: `x + gate * y` goes to `residuals`, one for each stream, and its norm, times `scale`, plus `shift`,
/// to `out` `[batch * tokens of all streams, width]`. Without `added` nothing goes to `residuals`.
///
/// # Panics
/// Slices of other sizes than these.
pub fn join_norms(
    streams: &[Stream<'_>],
    added: Option<Added<'_>>,
    residuals: &mut [&mut [f32]],
    out: Out<'_>,
    (width, epsilon): (usize, f32),
    threads: &dyn Threads,
) {
    let tokens: usize = streams.iter().map(|stream| stream.tokens).sum();
    let mut samples: Vec<_> =
        out.pieces(tokens.max(1), width).into_iter().map(|out| out.pieces(1, width).into_iter()).collect();
    let mut residuals = residuals.iter_mut();
    // Tasks are runs of tokens of one stream, in all samples.
    let (mut pieces, mut first) = (vec![], 0);
    for stream in streams {
        let residual = added.and_then(|_| residuals.next());
        let of_samples = residual.map_or(vec![], |all| all.chunks_mut((stream.tokens * width).max(1)).collect());
        let mut residual: Vec<_> = of_samples.into_iter().map(|sample| sample.chunks_mut(width)).collect();
        for start in (0..stream.tokens).step_by(ROWS) {
            let count = ROWS.min(stream.tokens - start);
            let residual: Vec<Vec<_>> = residual.iter_mut().map(|rows| rows.by_ref().take(count).collect()).collect();
            let out: Vec<Vec<_>> = samples.iter_mut().map(|rows| rows.by_ref().take(count).collect()).collect();
            pieces.push(JoinNorms { stream, start, first, tokens, added, residual, out, width, epsilon });
        }
        first += stream.tokens;
    }
    each(threads, pieces, |_, piece| pulp::Arch::new().dispatch(piece));
}

/// Some tokens of one stream.
struct JoinNorms<'a, 'b> {
    stream: &'a Stream<'a>,
    /// The first of them.
    start: usize,
    /// Where the stream begins among all.
    first: usize,
    /// Tokens of all streams.
    tokens: usize,
    added: Option<Added<'a>>,
    /// Of each sample, rows; none if nothing is added.
    residual: Vec<Vec<&'b mut [f32]>>,
    /// Of each sample, rows.
    out: Vec<Vec<Out<'b>>>,
    width: usize,
    epsilon: f32,
}

impl pulp::WithSimd for JoinNorms<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { stream, start, first, tokens, added, mut residual, mut out, width, epsilon } = self;
        let [mut row, mut y, mut last, mut last_y] = [0; 4].map(|_| vec![0.0; width]);
        let samples = out.len();
        for i in 0..out.first().map_or(0, Vec::len) {
            for sample in (0..samples).rev() {
                let is_last = sample + 1 == samples;
                let token = start + i;
                row.copy_from_slice(&stream.x[(sample * stream.tokens + token) * width..][..width]);
                if let Some(added) = added {
                    added.row(sample * tokens + first + token, (!is_last).then_some(&last_y), &mut y);
                    for ((x, y), gate) in row.iter_mut().zip(&y).zip(stream.gate) {
                        *x = y.mul_add(*gate, *x);
                    }
                    residual[sample][i].copy_from_slice(&row);
                }
                norm(simd, &mut row, stream.scale, stream.shift, epsilon);
                out[sample][i].put(simd, 0, &mut row, (!is_last).then_some(&last));
                if is_last {
                    // It is no difference, and turned as the others will be.
                    std::mem::swap(&mut row, &mut last);
                    std::mem::swap(&mut y, &mut last_y);
                }
            }
        }
    }
}

/// Sum of a row, or of the squares of what its numbers are above `mean`.
#[inline(always)]
fn sum<S: Simd>(simd: S, x: &[f32], mean: Option<f32>) -> f32 {
    let (whole, rest) = S::as_simd_f32s(x);
    let zero = simd.splat_f32s(0.0);
    // Several sums, so that none waits for the one before.
    let mut sums = [zero; 4];
    let middle = simd.splat_f32s(mean.unwrap_or(0.0));
    let (fours, few) = whole.as_chunks::<4>();
    for four in fours.iter().map(|four| &four[..]).chain([few]) {
        for (sum, &x) in sums.iter_mut().zip(four) {
            let above = simd.sub_f32s(x, middle);
            *sum = if mean.is_some() { simd.mul_add_f32s(above, above, *sum) } else { simd.add_f32s(*sum, x) };
        }
    }
    let of_rest = rest.iter().map(|x| mean.map_or(*x, |mean| (x - mean) * (x - mean)));
    sums.iter().map(|&sum| simd.reduce_sum_f32s(sum)).chain(of_rest).sum()
}

/// Layer norm of `row` in place, times `scale`, plus `shift`.
#[inline(always)]
#[allow(clippy::cast_precision_loss)] // Widths are far below 2^24.
fn norm<S: Simd>(simd: S, row: &mut [f32], scale: &[f32], shift: &[f32], epsilon: f32) {
    let n = row.len() as f32;
    let mean = sum(simd, row, None) / n;
    let variance = sum(simd, row, Some(mean)) / n;
    let factor = 1.0 / (variance + epsilon).sqrt();
    for ((x, scale), shift) in row.iter_mut().zip(scale).zip(shift) {
        *x = ((*x - mean) * factor).mul_add(*scale, *shift);
    }
}
