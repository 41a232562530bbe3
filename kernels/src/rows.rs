//! What is done to each row of a tensor between two products: norms, residuals, GELU, rounding to bytes. A row is read once, stays in a
//! core's cache, and is written once.
//!
//! Guidance runs a transformer on two samples that are much alike and makes `c + (g - 1) (c - u)` of what it predicts for them, so the
//! rounding of either counts several times. Where layers are linear, one sample can be rounded as what it [differs](Rounding::differences)
//! from the other by: that is small, so its steps are, and the other's errors are in both.

mod map;
mod norms;

use pulp::Simd;

use crate::hadamard::rotate_row;

pub use map::{Map, map_rows};
pub use norms::{Stream, join_norms};

/// Rows of each sample that a task takes.
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
    /// Rows are turned by Hadamard's matrix of this order before, as [`rotate`](crate::hadamard::rotate) does it; 1 for not.
    pub rotation: usize,
    /// Whether all samples but the last become bytes as what they differ from it by, which is the same way for every row:
    /// [`OF_DIFFERENCES`].
    pub differences: bool,
}

/// How differences become bytes.
pub const OF_DIFFERENCES: Rounding = Rounding {
    zero: 128,
    both_sides: true,
    least: 127.0 * f32::MIN_POSITIVE,
    inverse: 1.0 / 127.0,
    rotation: 1,
    differences: false,
};

/// What a product of bytes still lacks: each row times its step, and a bias.
#[derive(Clone, Copy)]
pub struct Rescale<'a> {
    /// `[rows]`.
    pub steps: &'a [f32],
    /// `[features]`.
    pub bias: &'a [f32],
    /// Whether all samples but the last lack the last, which they are differences from, instead of the bias.
    pub differences: bool,
    /// What products of differences are too great by, `[features]`, if the product took another byte for zero than they have.
    pub excess: Option<&'a [f32]>,
}

/// What a block adds to its streams, as one sequence.
#[derive(Clone, Copy)]
pub struct Added<'a> {
    /// `[batch, tokens of all streams, width]`.
    pub y: &'a [f32],
    /// What `y` lacks, if it is a product of bytes.
    pub rescale: Option<Rescale<'a>>,
}

impl Added<'_> {
    /// Row `number`, where `last` is that of the last sample: this is it, if `last` is still to come.
    #[inline(always)]
    fn row(&self, number: usize, last: Option<&[f32]>, to: &mut [f32]) {
        let y = &self.y[number * to.len()..][..to.len()];
        let Some(Rescale { steps, bias, differences, excess }) = self.rescale else { return to.copy_from_slice(y) };
        let step = steps[number];
        match last.filter(|_| differences) {
            None => rescaled(y, step, bias, to),
            Some(last) => {
                rescaled(y, step, last, to);
                for (to, excess) in to.iter_mut().zip(excess.unwrap_or_default()) {
                    *to = (-step).mul_add(*excess, *to);
                }
            }
        }
    }
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

impl Out<'_> {
    /// Pieces of so many rows.
    fn pieces(self, rows: usize, width: usize) -> Vec<Self> {
        match self {
            Self::Floats(y) => y.chunks_mut(rows * width).map(Self::Floats).collect(),
            Self::Bytes { values, steps, rounding } => {
                let pieces = values.chunks_mut(rows * width).zip(steps.chunks_mut(rows));
                pieces.map(|(values, steps)| Self::Bytes { values, steps, rounding }).collect()
            }
        }
    }

    /// Row `number` of the piece is `row`, where `last` is what the last sample's became. It becomes what is rounded, if it is.
    #[inline(always)]
    fn put<S: Simd>(&mut self, simd: S, number: usize, row: &mut [f32], last: Option<&[f32]>) {
        let at = number * row.len()..(number + 1) * row.len();
        match self {
            Self::Floats(y) => y[at].copy_from_slice(row),
            Self::Bytes { values, steps, rounding } => {
                let mut rounding = *rounding;
                rotate_row(row, rounding.rotation);
                if let Some(last) = last.filter(|_| rounding.differences) {
                    for (x, last) in row.iter_mut().zip(last) {
                        *x -= last;
                    }
                    rounding = OF_DIFFERENCES;
                }
                steps[number] = round(simd, row, rounding, &mut values[at]);
            }
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

/// `y * step + bias`.
#[inline(always)]
fn rescaled(y: &[f32], step: f32, bias: &[f32], to: &mut [f32]) {
    for ((to, y), bias) in to.iter_mut().zip(y).zip(bias) {
        *to = y.mul_add(step, *bias);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Serial;
    use crate::gelu::gelu;
    use crate::hadamard::rotate;

    /// Numbers from -1 to 1 that look random.
    fn numbers(count: usize, seed: u32) -> Vec<f32> {
        let next = |state: &mut u32| {
            *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            Some(f32::from(u16::try_from(*state >> 16).unwrap_or(0)) / 32_768.0 - 1.0)
        };
        let mut state = seed;
        (0..count).map_while(|_| next(&mut state)).collect()
    }

    const ROUNDING: Rounding =
        Rounding { zero: 128, both_sides: true, least: 1e-30, inverse: 1.0 / 127.0, rotation: 1, differences: false };

    fn bytes(
        x: &[f32],
        features: usize,
        rescale: Option<Rescale<'_>>,
        map: Map,
        rounding: Rounding,
    ) -> (Vec<u8>, Vec<f32>) {
        let (mut values, mut steps) = (vec![0; x.len()], vec![0.0; x.len() / features]);
        let out = Out::Bytes { values: &mut values, steps: &mut steps, rounding };
        map_rows(x, [1, features], rescale, map, out, &Serial);
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

    /// Numbers that bytes and their steps stand for.
    fn numbers_of(values: &[u8], steps: &[f32], zero: impl Fn(usize) -> f32, features: usize) -> Vec<f32> {
        values.iter().enumerate().map(|(i, &byte)| (f32::from(byte) - zero(i)) * steps[i / features]).collect()
    }

    #[test]
    fn samples_are_rounded_and_summed_as_what_they_differ_from_the_last_by() {
        let (samples, tokens, features) = (3, 35, 21);
        let (rows, of_sample) = (samples * tokens, tokens * features);
        let base = numbers(of_sample, 1);
        let apart = numbers(samples * of_sample, 2);
        let x: Vec<_> = (0..rows * features)
            .map(|i| base[i % of_sample] + if i < (samples - 1) * of_sample { 0.01 * apart[i] } else { 0.0 })
            .collect();
        for zero in [128, 32] {
            let rounding = Rounding { zero, differences: true, ..ROUNDING };
            let (mut values, mut steps) = (vec![0; x.len()], vec![0.0; rows]);
            let out = Out::Bytes { values: &mut values, steps: &mut steps, rounding };
            map_rows(&x, [samples, features], None, Map::Keep, out, &Serial);
            let alone = bytes(&x[2 * of_sample..], features, None, Map::Keep, rounding);
            assert_eq!((&values[2 * of_sample..], &steps[2 * tokens..]), (&alone.0[..], &alone.1[..]));
            let found =
                numbers_of(&values, &steps, |i| if i < 2 * of_sample { 128.0 } else { f32::from(zero) }, features);
            for (i, found) in found.iter().enumerate().take(2 * of_sample) {
                let expected = x[i] - x[2 * of_sample + i % of_sample];
                // The difference of two numbers is rounded, too.
                assert!((found - expected).abs() <= 0.5001 * steps[i / features] + 1e-7, "{i}: {found}, {expected}");
                assert!(steps[i / features] < 0.011 / 127.0, "row {}: {}", i / features, steps[i / features]);
            }

            // A product by the identity with the zero of the last sample, which is what it takes for all.
            let product: Vec<_> = values.iter().map(|&byte| f32::from(byte) - f32::from(zero)).collect();
            let (bias, excess) = (numbers(features, 3), vec![128.0 - f32::from(zero); features]);
            let excess = Some(&excess[..]).filter(|_| zero != 128);
            let rescale = Rescale { steps: &steps, bias: &bias, differences: true, excess };
            let mut y = vec![0.0; x.len()];
            map_rows(&product, [samples, features], Some(rescale), Map::Gelu, Out::Floats(&mut y), &Serial);
            for (i, y) in y.iter().enumerate() {
                let last = found[2 * of_sample + i % of_sample] + bias[i % features];
                let expected = gelu(if i < 2 * of_sample { last + found[i] } else { last });
                assert!((y - expected).abs() <= 1e-5, "{i}: {y}, {expected}");
            }
        }
    }

    #[test]
    fn what_is_not_finite_spoils_the_row_of_every_sample_that_is_its_difference() {
        let mut x = numbers(2 * 3 * 36, 1);
        x[3 * 36 + 40] = f32::INFINITY;
        let (mut values, mut steps) = (vec![0; x.len()], vec![0.0; 6]);
        let rounding = Rounding { differences: true, ..ROUNDING };
        let out = Out::Bytes { values: &mut values, steps: &mut steps, rounding };
        map_rows(&x, [2, 36], None, Map::Keep, out, &Serial);
        assert_eq!([1, 4].map(|row| steps[row].is_nan()), [true; 2]);
        assert!([0, 2, 3, 5].iter().all(|&row| steps[row].is_finite()));
    }

    #[test]
    fn a_low_zero_looks_at_the_greatest_alone() {
        let rounding =
            Rounding { zero: 32, both_sides: false, least: 0.5, inverse: 1.0 / 223.0, rotation: 1, differences: false };
        let (values, steps) = bytes(&[-0.1, 0.2, 2.23, 0.0, -0.1, 0.1], 3, None, Map::Keep, rounding);
        assert!((steps[0] - 0.01).abs() < 1e-6 && (steps[1] - 0.5 / 223.0).abs() < 1e-6);
        assert_eq!(values[..3], [22, 52, 255]);
    }

    #[test]
    fn rows_are_turned_before_they_are_rounded() {
        let x = numbers(2 * 5 * 48, 7);
        let mut turned = x.clone();
        rotate(&mut turned, 48, 16);
        let [found, expected] = [(&x, 16), (&turned, 1)].map(|(x, rotation)| {
            let (mut values, mut steps) = (vec![0; x.len()], vec![0.0; 10]);
            let rounding = Rounding { rotation, differences: true, ..ROUNDING };
            let out = Out::Bytes { values: &mut values, steps: &mut steps, rounding };
            map_rows(x, [2, 48], None, Map::Keep, out, &Serial);
            (values, steps)
        });
        assert_eq!(found, expected);
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
        let rescale = Some(Rescale { steps: &steps, bias: &bias, differences: false, excess: None });
        let mut y = vec![0.0; x.len()];
        map_rows(&x, [1, features], rescale, Map::Gelu, Out::Floats(&mut y), &Serial);
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
        let mut norms = vec![];
        for added in [false, true] {
            let [mut text, mut video] = tokens.map(|n| vec![0.0; batch * n * width]);
            let mut out = vec![0.0; batch * all * width];
            let of_block = Added {
                y: &y,
                rescale: Some(Rescale { steps: &steps, bias: &bias, differences: false, excess: None }),
            };
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
            norms = out;
        }

        // The same as bytes, of differences from the last sample, and what was added so.
        let last_product = |i: usize| y[all * width + i] * steps[all + i / width] + bias[i % width];
        let differences: Vec<_> = (0..y.len())
            .map(|i| match (i < all * width, steps[i / width]) {
                (true, step) => ((y[i] * step + bias[i % width]) - last_product(i)) / step + 3.0,
                (false, _) => y[i],
            })
            .collect();
        let excess = vec![3.0; width];
        let rescale = Rescale { steps: &steps, bias: &bias, differences: true, excess: Some(&excess) };
        let (mut values, mut of_rows) = (vec![0; y.len()], vec![0.0; batch * all]);
        let out = Out::Bytes {
            values: &mut values,
            steps: &mut of_rows,
            rounding: Rounding { differences: true, ..ROUNDING },
        };
        let [mut text, mut video] = tokens.map(|n| vec![0.0; batch * n * width]);
        let added = Added { y: &differences, rescale: Some(rescale) };
        join_norms(&streams, Some(added), &mut [&mut text, &mut video], out, (width, epsilon), &Serial);
        for (i, found) in numbers_of(&values, &of_rows, |_| 128.0, width).into_iter().enumerate() {
            let expected = norms[i] - if i < all * width { norms[all * width + i] } else { 0.0 };
            assert!((found - expected).abs() <= 0.51 * of_rows[i / width] + 1e-4, "{i}: {found}, {expected}");
        }
    }
}
