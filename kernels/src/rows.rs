//! What is done to each row of a tensor between two products: norms, residuals, GELU, rounding to bytes. A row is read once, stays in a
//! core's cache, and is written once.

use pulp::Simd;

use crate::gelu::gelu;
use crate::threads::{Threads, each};

/// Rows that a task takes.
const ROWS: usize = 16;
/// Added to a number below 2^22, it brings its whole part, rounded to even, into its last bits.
const ROUNDING: f32 = 12_582_912.0;

/// How numbers become bytes: `round(x / step) + zero`, with a step for each row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Rounding {
    /// The byte that stands for zero.
    pub zero: u8,
    /// Whether the least of a row counts as its greatest does.
    pub both_sides: bool,
    /// A row's reach is at least this.
    pub least: f32,
    /// A row's reach times this is its step.
    pub inverse: f32,
}

/// What a product of bytes still lacks: each row times its step, and a bias.
#[derive(Clone, Copy)]
pub struct Rescale<'a> {
    /// `[rows]`.
    pub steps: &'a [f32],
    /// `[features]`.
    pub bias: &'a [f32],
}

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

/// What a block adds to its streams, as one sequence.
#[derive(Clone, Copy)]
pub struct Added<'a> {
    /// `[batch, tokens of all streams, width]`.
    pub y: &'a [f32],
    /// What `y` lacks, if it is a product of bytes.
    pub rescale: Option<Rescale<'a>>,
}

/// Where rows go, and as what.
pub enum Out<'a> {
    /// As they are.
    Floats(&'a mut [f32]),
    /// As bytes, and the step of each row.
    Bytes {
        /// `[rows, width]`.
        values: &'a mut [u8],
        /// `[rows]`.
        steps: &'a mut [f32],
        /// How they become bytes.
        rounding: Rounding,
    },
}

/// A piece of an [`Out`].
enum Piece<'a> {
    Floats(&'a mut [f32]),
    Bytes(&'a mut [u8], &'a mut [f32], Rounding),
}

impl<'a> Out<'a> {
    /// Pieces of so many rows.
    fn pieces(self, rows: usize, width: usize) -> Vec<Piece<'a>> {
        match self {
            Self::Floats(y) => y.chunks_mut(rows * width).map(Piece::Floats).collect(),
            Self::Bytes { values, steps, rounding } => {
                let pieces = values.chunks_mut(rows * width).zip(steps.chunks_mut(rows));
                pieces.map(|(values, steps)| Piece::Bytes(values, steps, rounding)).collect()
            }
        }
    }
}

impl Piece<'_> {
    /// Row `number` of the piece is `row`.
    #[inline(always)]
    fn put<S: Simd>(&mut self, simd: S, number: usize, row: &[f32]) {
        let at = number * row.len()..(number + 1) * row.len();
        match self {
            Self::Floats(y) => y[at].copy_from_slice(row),
            Self::Bytes(values, steps, rounding) => steps[number] = round(simd, row, *rounding, &mut values[at]),
        }
    }
}

/// `x / step + zero` as bytes; the step.
#[inline(always)]
fn round<S: Simd>(simd: S, x: &[f32], rounding: Rounding, bytes: &mut [u8]) -> f32 {
    let (whole, rest) = S::as_simd_f32s(x);
    let (mut most, mut least) = (simd.splat_f32s(f32::MIN), simd.splat_f32s(f32::MAX));
    // Not a number as soon as one is none, or infinite: comparisons would lose it.
    let (none, mut spoilt) = (simd.splat_f32s(0.0), simd.splat_f32s(0.0));
    for &x in whole {
        most = simd.max_f32s(most, x);
        least = simd.min_f32s(least, x);
        spoilt = simd.mul_add_f32s(x, none, spoilt);
    }
    let most = rest.iter().copied().fold(simd.reduce_max_f32s(most), f32::max);
    let least = rest.iter().copied().fold(simd.reduce_min_f32s(least), f32::min);
    let spoilt = simd.reduce_sum_f32s(spoilt) + rest.iter().map(|x| x * 0.0).sum::<f32>();
    let reach = if rounding.both_sides { most.max(-least) } else { most };
    let step = reach.max(rounding.least) * rounding.inverse + spoilt;
    let (factor, zero) = (1.0 / step, f32::from(rounding.zero));
    for (byte, &x) in bytes.iter_mut().zip(x) {
        // Comparisons, unlike `clamp`, are one instruction.
        let y = x.mul_add(factor, zero);
        let y = if y < 0.0 { 0.0 } else { y };
        let y = if y > 255.0 { 255.0 } else { y };
        #[allow(clippy::cast_possible_truncation)] // The last eight bits are the byte.
        let last = (y + ROUNDING).to_bits() as u8;
        *byte = last;
    }
    step
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

/// `y * step + bias`.
#[inline(always)]
fn rescaled(y: &[f32], step: f32, bias: &[f32], to: &mut [f32]) {
    for ((to, y), bias) in to.iter_mut().zip(y).zip(bias) {
        *to = y.mul_add(step, *bias);
    }
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
    let batch = streams.iter().map(|stream| stream.x.len() / (stream.tokens * width).max(1)).max().unwrap_or(0);
    // Tasks are runs of rows of one stream and one sample.
    let mut residuals: Vec<_> = residuals.iter_mut().map(|residual| residual.chunks_mut(width)).collect();
    let mut pieces = vec![];
    let mut rows = out.pieces(1, width).into_iter();
    for sample in 0..batch {
        let mut first = sample * tokens;
        for (number, stream) in streams.iter().enumerate() {
            for start in (0..stream.tokens).step_by(ROWS) {
                let count = ROWS.min(stream.tokens - start);
                let x = &stream.x[(sample * stream.tokens + start) * width..][..count * width];
                let residual: Vec<_> = residuals.get_mut(number).map_or(vec![], |rows| rows.take(count).collect());
                pieces.push((stream, x, first + start, residual, rows.by_ref().take(count).collect::<Vec<_>>()));
            }
            first += stream.tokens;
        }
    }
    each(threads, pieces, |_, (stream, x, first, residual, out)| {
        pulp::Arch::new().dispatch(JoinNorms { stream, x, first, added, residual, out, width, epsilon });
    });
}

/// Some rows of one stream and one sample.
struct JoinNorms<'a, 'b> {
    stream: &'a Stream<'a>,
    x: &'a [f32],
    /// Where the first row is among those of all streams and samples.
    first: usize,
    added: Option<Added<'a>>,
    residual: Vec<&'b mut [f32]>,
    out: Vec<Piece<'b>>,
    width: usize,
    epsilon: f32,
}

impl pulp::WithSimd for JoinNorms<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { stream, x, first, added, mut residual, mut out, width, epsilon } = self;
        let (mut row, mut y) = (vec![0.0; width], vec![0.0; width]);
        for (i, x) in x.chunks(width).enumerate() {
            row.copy_from_slice(x);
            if let Some(added) = added {
                added.row(first + i, &mut y);
                for ((x, y), gate) in row.iter_mut().zip(&y).zip(stream.gate) {
                    *x = y.mul_add(*gate, *x);
                }
                residual[i].copy_from_slice(&row);
            }
            norm(simd, &mut row, stream.scale, stream.shift, epsilon);
            out[i].put(simd, 0, &row);
        }
    }
}

impl Added<'_> {
    #[inline(always)]
    fn row(&self, number: usize, to: &mut [f32]) {
        let y = &self.y[number * to.len()..][..to.len()];
        match self.rescale {
            Some(rescale) => rescaled(y, rescale.steps[number], rescale.bias, to),
            None => to.copy_from_slice(y),
        }
    }
}

/// What is done to each number of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Nothing.
    Keep,
    /// GELU, tanh approximation.
    Gelu,
}

/// Rows of `x` `[rows, features]`, times their steps plus a bias where they lack that, mapped, to `out`.
///
/// # Panics
/// Slices of other sizes than these.
pub fn map_rows(
    x: &[f32],
    features: usize,
    rescale: Option<Rescale<'_>>,
    map: Map,
    out: Out<'_>,
    threads: &dyn Threads,
) {
    let pieces = x.chunks(ROWS * features).zip(out.pieces(ROWS, features));
    each(threads, pieces, |number, (y, out)| {
        let added = Added { y, rescale: rescale.map(|rescale| rescale.from(number * ROWS)) };
        pulp::Arch::new().dispatch(MapRows { added, features, map, out });
    });
}

impl Rescale<'_> {
    /// For the rows from this one on.
    fn from(self, row: usize) -> Self {
        Self { steps: &self.steps[row..], ..self }
    }
}

/// Some rows.
struct MapRows<'a, 'b> {
    added: Added<'a>,
    features: usize,
    map: Map,
    out: Piece<'b>,
}

impl pulp::WithSimd for MapRows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { added, features, map, mut out } = self;
        let mut row = vec![0.0; features];
        for number in 0..added.y.len() / features {
            added.row(number, &mut row);
            if map == Map::Gelu {
                for x in &mut row {
                    *x = gelu(*x);
                }
            }
            out.put(simd, number, &row);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Serial;

    /// Numbers from -1 to 1 that look random.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let next = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(f32::from(u16::try_from(*state >> 16).unwrap_or(0)) / 32_768.0 - 1.0)
        };
        let mut state = seed;
        (0..count).map_while(|_| next(&mut state)).collect()
    }

    const ROUNDING: Rounding = Rounding { zero: 128, both_sides: true, least: 1e-30, inverse: 1.0 / 127.0 };

    fn bytes(
        x: &[f32],
        features: usize,
        rescale: Option<Rescale<'_>>,
        map: Map,
        rounding: Rounding,
    ) -> (Vec<u8>, Vec<f32>) {
        let (mut values, mut steps) = (vec![0; x.len()], vec![0.0; x.len() / features]);
        let out = Out::Bytes { values: &mut values, steps: &mut steps, rounding };
        map_rows(x, features, rescale, map, out, &Serial);
        (values, steps)
    }

    #[test]
    fn bytes_times_their_steps_are_what_they_were() {
        for features in [1, 15, 16, 67] {
            let x = numbers(35 * features, 7);
            let (values, steps) = bytes(&x, features, None, Map::Keep, ROUNDING);
            for (i, (&byte, &x)) in values.iter().zip(&x).enumerate() {
                let step = steps[i / features];
                assert!(((f32::from(byte) - 128.0) * step - x).abs() <= 0.5001 * step, "{i} of {features}");
            }
            let greatest = x[..features].iter().fold(0.0_f32, |most, x| most.max(x.abs()));
            assert!((steps[0] * 127.0 - greatest).abs() <= 1e-6);
        }
    }

    #[test]
    fn a_low_zero_looks_at_the_greatest_alone() {
        let rounding = Rounding { zero: 32, both_sides: false, least: 0.5, inverse: 1.0 / 223.0 };
        let (values, steps) = bytes(&[-0.1, 0.2, 2.23, 0.0, -0.1, 0.1], 3, None, Map::Keep, rounding);
        assert!((steps[0] - 0.01).abs() < 1e-6 && (steps[1] - 0.5 / 223.0).abs() < 1e-6);
        assert_eq!(values[..3], [22, 52, 255]);
    }

    #[test]
    fn what_is_not_finite_spoils_its_row_and_no_other() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for place in [40, 71] {
                let mut x = numbers(3 * 36, 1);
                x[place] = bad;
                let (_, steps) = bytes(&x, 36, None, Map::Keep, ROUNDING);
                assert!(steps[0].is_finite() && steps[1].is_nan() && steps[2].is_finite());
            }
        }
    }

    #[test]
    fn products_of_bytes_get_steps_bias_and_gelu() {
        let (rows, features) = (35, 21);
        let (x, steps, bias) = (numbers(rows * features, 3), numbers(rows, 4), numbers(features, 5));
        let rescale = Some(Rescale { steps: &steps, bias: &bias });
        let mut y = vec![0.0; x.len()];
        map_rows(&x, features, rescale, Map::Gelu, Out::Floats(&mut y), &Serial);
        for (i, y) in y.iter().enumerate() {
            let expected = gelu(x[i] * steps[i / features] + bias[i % features]);
            assert!((y - expected).abs() <= 1e-6, "{i}: {y}, {expected}");
        }
    }

    #[test]
    fn norms_of_all_streams_stand_side_by_side_after_what_was_added() {
        let (batch, tokens, width, epsilon) = (2, [3, 35], 37, 1e-5);
        let x = tokens.map(|n| numbers(batch * n * width, 10 + u32::try_from(n).unwrap_or(0)));
        let all: usize = tokens.iter().sum();
        let (y, steps, bias) = (numbers(batch * all * width, 20), numbers(batch * all, 21), numbers(width, 22));
        let modulation: Vec<_> = (30..36).map(|seed| numbers(width, seed)).collect();
        let streams: Vec<_> = (0..2)
            .map(|i| {
                let [scale, shift, gate] = [0, 1, 2].map(|j| &modulation[3 * i + j][..]);
                Stream { x: &x[i], tokens: tokens[i], scale, shift, gate }
            })
            .collect();
        for added in [false, true] {
            let [mut text, mut video] = tokens.map(|n| vec![0.0; batch * n * width]);
            let mut out = vec![0.0; batch * all * width];
            let of_block = Added { y: &y, rescale: Some(Rescale { steps: &steps, bias: &bias }) };
            let residuals: &mut [&mut [f32]] = if added { &mut [&mut text, &mut video] } else { &mut [] };
            join_norms(
                &streams,
                added.then_some(of_block),
                residuals,
                Out::Floats(&mut out),
                (width, epsilon),
                &Serial,
            );
            for sample in 0..batch {
                for token in 0..all {
                    let (stream, own) = if token < tokens[0] { (0, token) } else { (1, token - tokens[0]) };
                    let (row, of_x) = (sample * all + token, (sample * tokens[stream] + own) * width);
                    let sum = |i: usize| {
                        let added_here = (y[row * width + i] * steps[row] + bias[i]) * streams[stream].gate[i];
                        f64::from(x[stream][of_x + i]) + if added { f64::from(added_here) } else { 0.0 }
                    };
                    let mean = (0..width).map(sum).sum::<f64>() / 37.0;
                    let variance = (0..width).map(|i| (sum(i) - mean).powi(2)).sum::<f64>() / 37.0;
                    for i in 0..width {
                        let normal = (sum(i) - mean) / (variance + f64::from(epsilon)).sqrt();
                        let Stream { scale, shift, .. } = streams[stream];
                        let expected = normal * f64::from(scale[i]) + f64::from(shift[i]);
                        let found = f64::from(out[row * width + i]);
                        assert!((found - expected).abs() < 1e-5, "{sample} {token} {i}: {found}, {expected}");
                        let residual = [&text, &video][stream][of_x + i];
                        assert!(!added || (f64::from(residual) - sum(i)).abs() < 1e-6);
                    }
                }
            }
        }
    }
}
