//! One panel of queries against one block of keys.

use super::{BLOCK, LINE, SIDE};
use pulp::Simd;
use std::ops::Range;

/// Rows whose scores are kept at a time: with those of a block of keys, what L1 holds.
const PART: usize = 24;
/// Sums of powers between these keep what matters of every power.
pub const FINE: Range<f32> = 1e-12..1e12;
/// 2 to this power is still a normal number.
const LOWEST: f32 = -126.0;
/// More than this makes a sum that is not fine, and 2 to this power is still a number.
const HIGHEST: f32 = 127.0;
/// 2^x for x of 0 to 1 by its smallest relative error, 1.5e-7 in floats.
const EXP2: [f32; 6] = [0.999_999_94, 0.693_153_1, 0.240_153_61, 0.055_826_318, 0.008_989_342, 0.001_877_576_2];

/// Scores of a part of a panel of queries and a block of keys, by query.
pub type Scores = [[f32; BLOCK * SIDE]; PART];

/// A panel of queries on its way through the blocks of keys.
pub struct Rows<'a> {
    /// How many queries it has.
    pub count: usize,
    /// Its queries, `[width, SIDE]`.
    pub q: &'a [[f32; SIDE]],
    /// Sums of values, `[SIDE, width up to a line]`.
    pub y: &'a mut [f32],
    /// What each query's scores are taken relative to.
    pub reference: &'a mut [f32; SIDE],
    /// Sums of powers, in as many parts as a line has floats.
    pub sum: &'a mut [[f32; LINE]; SIDE],
}

/// A panel of keys.
#[derive(Clone, Copy)]
pub struct Keys<'a> {
    /// How many keys it has.
    pub count: usize,
    /// `[width, SIDE]`
    pub k: &'a [[f32; SIDE]],
    /// `[SIDE, width up to a line]`
    pub v: &'a [f32],
}

impl Rows<'_> {
    /// Add what a block of keys gives.
    #[inline(always)]
    pub fn attend<S: Simd>(&mut self, simd: S, block: &[Keys], scores: &mut Scores) {
        for row in (0..self.count).step_by(PART) {
            let rows = row..self.count.min(row + PART);
            self.scores(simd, block, scores, rows.clone());
            if !self.powers(simd, block, scores, rows.clone()) {
                self.scores(simd, block, scores, rows.clone());
                self.settle(block, scores, rows.clone());
                self.powers(simd, block, scores, rows.clone());
            }
            self.values(simd, block, scores, rows);
        }
    }

    /// Scores relative to the references.
    #[inline(always)]
    fn scores<S: Simd>(&self, simd: S, block: &[Keys], scores: &mut Scores, rows: Range<usize>) {
        for (number, keys) in block.iter().enumerate() {
            // 24 sums in 32 registers, or 12 in 16.
            let at_once = if S::F32_LANES == 16 { 3 } else { 2 };
            for column in (0..keys.count).step_by(at_once * S::F32_LANES) {
                let registers = (keys.count - column).div_ceil(S::F32_LANES);
                let (keys, to) = ((keys, column), (&mut *scores, number * SIDE + column));
                match (registers.min(at_once), S::F32_LANES) {
                    (1, 16) => self.score_rows::<S, 1, 8>(simd, keys, to, rows.clone()),
                    (2, 16) => self.score_rows::<S, 2, 8>(simd, keys, to, rows.clone()),
                    (_, 16) => self.score_rows::<S, 3, 8>(simd, keys, to, rows.clone()),
                    (1, _) => self.score_rows::<S, 1, 6>(simd, keys, to, rows.clone()),
                    _ => self.score_rows::<S, 2, 6>(simd, keys, to, rows.clone()),
                }
            }
        }
    }

    /// Scores of `N` registers of a panel of keys, `R` queries at a time.
    #[inline(always)]
    fn score_rows<S: Simd, const N: usize, const R: usize>(
        &self,
        simd: S,
        (keys, column): (&Keys, usize),
        (scores, at): (&mut Scores, usize),
        rows: Range<usize>,
    ) {
        for (scores, row) in scores.as_chunks_mut().0.iter_mut().zip(rows.step_by(R)) {
            let reference: &[f32; R] = self.reference[row..].first_chunk().expect("a panel");
            score_tile::<S, N, R>(simd, (self.q, row, keys.k, column), reference, scores, at);
        }
    }

    /// Powers of the scores in their place, and their sums, unless a sum leaves what is fine: that asks for new references.
    #[inline(always)]
    fn powers<S: Simd>(&mut self, simd: S, block: &[Keys], scores: &mut Scores, rows: Range<usize>) -> bool {
        let count = block.iter().map(|keys| keys.count).sum::<usize>();
        let lines = count.next_multiple_of(LINE);
        let mut sums = [[0.0; LINE]; PART];
        let mut fine = true;
        for ((scores, sum), new) in scores.iter_mut().zip(&self.sum[rows.clone()]).zip(&mut sums) {
            scores[count..lines].fill(f32::NEG_INFINITY);
            *new = powers(simd, &mut scores[..lines], *sum);
            let all = new.as_chunks::<8>().0;
            let all: [f32; 8] = std::array::from_fn(|i| all[0][i] + all[1][i]);
            let all = all.iter().sum::<f32>();
            fine &= all.is_nan() || FINE.contains(&all);
        }
        if fine {
            self.sum[rows.clone()].copy_from_slice(&sums[..rows.len()]);
        }
        fine
    }

    /// Make each row's largest score what its scores are relative to.
    #[inline(always)]
    fn settle(&mut self, block: &[Keys], scores: &mut Scores, rows: Range<usize>) {
        let count = block.iter().map(|keys| keys.count).sum::<usize>();
        let width = self.y.len() / SIDE;
        for (row, scores) in rows.zip(scores) {
            let scores = &mut scores[..count];
            let most = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            // Less than before would make what was added before too large.
            let most = if self.sum[row].iter().all(|sum| *sum <= 0.0) { most } else { most.max(0.0) };
            for score in scores {
                *score -= most;
            }
            self.reference[row] += most;
            let factor = (-most).exp2();
            let y = &mut self.y[row * width..][..width];
            self.sum[row].iter_mut().chain(y).for_each(|sum| *sum *= factor);
        }
    }

    /// Add the values, each as often as its power says.
    #[inline(always)]
    fn values<S: Simd>(&mut self, simd: S, block: &[Keys], scores: &Scores, rows: Range<usize>) {
        let width = self.y.len() / SIDE;
        let registers = width / S::F32_LANES;
        // 24 sums in 32 registers, or 12 in 16.
        let parts = registers.div_ceil(if S::F32_LANES == 16 { 4 } else { 2 });
        for part in 0..parts {
            let (from, to) = (registers * part / parts, registers * (part + 1) / parts);
            for (scores, row) in scores.as_chunks().0.iter().zip(rows.clone().step_by(6)) {
                let (y, column) = (&mut self.y[row * width..][..6 * width], from * S::F32_LANES);
                match to - from {
                    1 => value_tile::<S, 1>(simd, block, scores, y, column),
                    2 => value_tile::<S, 2>(simd, block, scores, y, column),
                    3 => value_tile::<S, 3>(simd, block, scores, y, column),
                    _ => value_tile::<S, 4>(simd, block, scores, y, column),
                }
            }
        }
    }
}

/// Scores of `R` queries with `N` registers of keys.
#[inline(always)]
fn score_tile<S: Simd, const N: usize, const R: usize>(
    simd: S,
    (q, row, k, column): (&[[f32; SIDE]], usize, &[[f32; SIDE]], usize),
    reference: &[f32; R],
    scores: &mut [[f32; BLOCK * SIDE]; R],
    at: usize,
) {
    assert!(row + R <= SIDE && column + N * S::F32_LANES <= SIDE && at + N * S::F32_LANES <= BLOCK * SIDE);
    let mut sums = [[simd.splat_f32s(0.0); N]; R];
    for i in 0..R {
        sums[i] = [simd.splat_f32s(-reference[i]); N];
    }
    for (q, k) in q.iter().zip(k) {
        let k: [S::f32s; N] = load::<S, N>(&k[column..]);
        for i in 0..R {
            let q = simd.splat_f32s(q[row + i]);
            for j in 0..N {
                sums[i][j] = simd.mul_add_f32s(q, k[j], sums[i][j]);
            }
        }
    }
    for i in 0..R {
        store::<S, N>(&mut scores[i][at..], sums[i]);
    }
}

/// `N` registers of six queries' sums of values.
#[inline(always)]
fn value_tile<S: Simd, const N: usize>(
    simd: S,
    block: &[Keys],
    scores: &[[f32; BLOCK * SIDE]; 6],
    y: &mut [f32],
    column: usize,
) {
    let width = y.len() / 6;
    let mut sums = [[simd.splat_f32s(0.0); N]; 6];
    for i in 0..6 {
        sums[i] = load::<S, N>(&y[i * width + column..]);
    }
    for (number, keys) in block.iter().enumerate() {
        let scores: [&[f32]; 6] = std::array::from_fn(|i| &scores[i][number * SIDE..][..keys.count]);
        for (key, v) in keys.v.chunks_exact(width).take(keys.count).enumerate() {
            let v: [S::f32s; N] = load::<S, N>(&v[column..]);
            for i in 0..6 {
                let score = simd.splat_f32s(scores[i][key]);
                for j in 0..N {
                    sums[i][j] = simd.mul_add_f32s(score, v[j], sums[i][j]);
                }
            }
        }
    }
    for i in 0..6 {
        store::<S, N>(&mut y[i * width + column..], sums[i]);
    }
}

/// The first `N` registers.
#[inline(always)]
fn load<S: Simd, const N: usize>(from: &[f32]) -> [S::f32s; N] {
    *S::as_simd_f32s(from).0.first_chunk().expect("as many registers")
}

/// The first `N` registers.
#[inline(always)]
fn store<S: Simd, const N: usize>(to: &mut [f32], registers: [S::f32s; N]) {
    *S::as_mut_simd_f32s(to).0.first_chunk_mut().expect("as many registers") = registers;
}

/// Make 2^score of each score, and add them to a sum.
#[inline(always)]
fn powers<S: Simd>(simd: S, scores: &mut [f32], mut sum: [f32; LINE]) -> [f32; LINE] {
    let (scores, _) = scores.as_chunks_mut::<LINE>();
    #[cfg(target_arch = "x86_64")]
    if let Some(simd) = (&simd as &dyn std::any::Any).downcast_ref::<pulp::x86::V4>() {
        let simd = *simd;
        let mut total = bytemuck::cast(sum);
        for scores in scores {
            let power = bytemuck::cast(power(simd, bytemuck::cast(*scores)));
            total = simd.add_f32x16(total, power);
            *scores = bytemuck::cast(power);
        }
        return bytemuck::cast(total);
    }
    let _ = simd;
    for scores in scores {
        for (score, sum) in scores.iter_mut().zip(&mut sum) {
            *score = if S::F32_LANES > 1 { exp2(*score, f32::mul_add) } else { exp2(*score, |a, b, c| a * b + c) };
            *sum += *score;
        }
    }
    sum
}

/// 2^x of each score.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
pub fn power(simd: pulp::x86::V4, scores: std::arch::x86_64::__m512) -> std::arch::x86_64::__m512 {
    /// What is left of a number above the whole one below it, as an instruction asks for it.
    const FLOOR: i32 = 0b1001;
    // A number that is not one stays so: it is the second.
    let x = simd.max_f32x16(simd.splat_f32x16(LOWEST), bytemuck::cast(scores));
    let rest = bytemuck::cast(simd.avx512dq._mm512_reduce_ps::<FLOOR>(bytemuck::cast(x)));
    let mut power = simd.splat_f32x16(EXP2[5]);
    for factor in EXP2[..5].iter().rev() {
        power = simd.mul_add_f32x16(power, rest, simd.splat_f32x16(*factor));
    }
    simd.avx512f._mm512_scalef_ps(bytemuck::cast(power), bytemuck::cast(x))
}

/// 2^x for the compiler to make vectors of.
#[inline(always)]
fn exp2(x: f32, mul_add: impl Fn(f32, f32, f32) -> f32) -> f32 {
    /// Added to a number, this leaves its whole part in the lowest bits.
    const WHOLE: f32 = 12_582_912.0;
    let x = if x < LOWEST { LOWEST } else { x };
    let x = if x > HIGHEST { HIGHEST } else { x };
    let whole = x - 0.5 + WHOLE;
    let rest = x - (whole - WHOLE);
    let power = EXP2.iter().rev().fold(0.0, |sum, factor| mul_add(sum, rest, *factor));
    f32::from_bits((whole.to_bits() << 23).wrapping_add(power.to_bits()))
}
