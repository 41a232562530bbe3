//! Attention in tile registers: strips of 32 queries, blocks of keys; the powers of scores become the left factor of the next product.

use cogvx_tiles::{SIDE, Sums, Tile, multiply, multiply_add};
use core::arch::x86_64::__m512;
use pulp::{NullaryFnOnce, Simd, x86::V4};

use super::{
    Attention, LINE,
    block::{FINE, power},
};
use crate::{
    Threads,
    parts::{Order, Parts, STEP, cut, turn},
    scratch::Pool,
    threads::each,
};

/// Of each number the first sixteen bits.
type Numbers = Parts<2>;

/// Panels of 32 keys whose scores are kept at a time.
const BLOCK: usize = 8;
/// Strips of queries that share a block of keys while it is in the second cache.
const STRIPS: usize = 8;
/// Heads that are packed at a time: what lies side by side of a token.
const HEADS: usize = 3;

static PACKED: Pool<Numbers> = Pool::new(NOTHING);

const NOTHING: Numbers = [[Tile::ZERO; 2]; 2];

/// Weight, bias and epsilon of a layer norm.
type Norm<'a> = (&'a [f32], &'a [f32], f32);

/// What tokens become.
#[derive(Clone, Copy)]
enum Kind<'a> {
    /// Rows of a left factor, normed, or else times this.
    Queries(Option<Norm<'a>>, f32),
    /// Columns, likewise.
    Keys(Option<Norm<'a>>),
    /// Rows of a right factor.
    Values,
}

impl Attention<'_> {
    /// As [`Attention::run`], with `factor` of the scores on queries, in their norm's weight and bias where there is one.
    #[allow(clippy::too_many_arguments)]
    pub(super) fn run_in_tiles(
        &self,
        simd: V4,
        (batch, factor): (usize, f32),
        norms: [Option<Norm<'_>>; 2],
        [q, k, v]: [&[f32]; 3],
        y: &mut [f32],
        threads: &dyn Threads,
    ) {
        let features = self.heads * self.width;
        let (asking, tokens) = (q.len() / batch / features, k.len() / batch / features);
        let steps = self.width.div_ceil(STEP);
        let group = HEADS.min(self.heads);
        let (strips, blocks) = (asking.div_ceil(SIDE), tokens.div_ceil(BLOCK * SIDE));
        let mut packed_q = PACKED.take(strips * group * steps);
        let [mut packed_k, mut packed_v] = [(); 2].map(|()| PACKED.take(blocks * BLOCK * group * steps));
        let kinds = [Kind::Queries(norms[0], factor), Kind::Keys(norms[1]), Kind::Values];
        let rows = strips.div_ceil(4 * threads.count()).clamp(1, STRIPS);
        let parts = q.chunks_exact(asking * features).zip(k.chunks_exact(tokens * features));
        let parts = parts.zip(v.chunks_exact(tokens * features)).zip(y.chunks_exact_mut(asking * features));
        for (((q, k), v), y) in parts {
            for first in (0..self.heads).step_by(group) {
                let heads = group.min(self.heads - first);
                let jobs = [(q, &mut packed_q, 1), (k, &mut packed_k, BLOCK), (v, &mut packed_v, BLOCK)];
                let jobs = jobs.into_iter().zip(kinds).flat_map(|((from, to, panels), kind)| {
                    let to = to.chunks_exact_mut(heads * panels * steps);
                    from.chunks(panels * SIDE * features).zip(to).map(move |(tokens, to)| {
                        let tokens = &tokens[first * self.width..];
                        Pack { simd, kind, width: self.width, tokens, features, heads, to }
                    })
                });
                each(threads, jobs, |_, job| simd.vectorize(job));
                let y = y.chunks_mut(rows * SIDE * features);
                let q = packed_q.chunks(rows * heads * steps);
                each(threads, y.zip(q), |_, (y, q)| {
                    let y = &mut y[first * self.width..];
                    let (k, v) = (&*packed_k, &*packed_v);
                    simd.vectorize(Task { simd, width: self.width, heads, features, tokens, q, k, v, y });
                });
            }
        }
    }
}

/// Tokens to be packed, of several heads: a strip of queries, or a block of keys or values.
struct Pack<'a> {
    simd: V4,
    kind: Kind<'a>,
    width: usize,
    /// Each of `features` numbers, of which the first belong to the heads.
    tokens: &'a [f32],
    features: usize,
    heads: usize,
    /// Of every head the panels of 32 tokens that there are: of queries and keys `[panels, steps]`, of values `[steps, panels]`.
    to: &'a mut [Numbers],
}

impl NullaryFnOnce for Pack<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, kind, width, tokens, features, heads, to } = self;
        let steps = width.div_ceil(STEP);
        let panels = tokens.len().div_ceil(SIDE * features);
        let (size, line) = (panels * steps, steps * STEP);
        // Zeros where there are no tokens, or no features of a head.
        let mut rows = vec![0.0; SIDE * heads * line];
        for (panel, tokens) in tokens.chunks(SIDE * features).enumerate() {
            if tokens.len() < SIDE * features {
                rows.fill(0.0);
            }
            // All of them at once: they come from as many pages of memory.
            for (row, token) in rows.chunks_exact_mut(heads * line).zip(tokens.chunks(features)) {
                for (row, token) in row.chunks_exact_mut(line).zip(token.chunks_exact(width)) {
                    row[..width].copy_from_slice(token);
                }
            }
            for (head, to) in to.chunks_exact_mut(size).take(heads).enumerate() {
                let rows = rows.chunks_exact_mut(heads * line).map(|row| &mut row[head * line..][..line]);
                match kind {
                    Kind::Queries(norm, factor) => {
                        let to = &mut to[panel * steps..][..steps];
                        left(simd, rows, width, (norm, factor), to);
                    }
                    Kind::Keys(norm) => {
                        let to = &mut to[panel * steps..][..steps];
                        left(simd, rows, width, (norm, 1.0), to);
                        for to in to {
                            turn(simd, to, 0);
                            turn(simd, to, 1);
                        }
                    }
                    Kind::Values => right(simd, rows, to.iter_mut().skip(panel).step_by(panels)),
                }
            }
        }
    }
}

/// 32 rows of a left factor, by their features.
#[inline(always)]
fn left<'a>(
    simd: V4,
    rows: impl Iterator<Item = &'a mut [f32]>,
    width: usize,
    (norm, factor): (Option<Norm<'_>>, f32),
    to: &mut [Numbers],
) {
    for (i, row) in rows.enumerate() {
        if let Some(norm) = norm {
            normalise(simd, &mut row[..width], norm);
        } else {
            for x in &mut *row {
                *x *= factor;
            }
        }
        for (step, to) in row.as_chunks::<STEP>().0.iter().zip(&mut *to) {
            cut(simd, halves(step), Order::Rows, to, i / 16, i % 16);
        }
    }
}

/// 32 rows of a right factor, by their features.
#[inline(always)]
fn right<'a>(simd: V4, mut rows: impl Iterator<Item = &'a mut [f32]>, to: impl Iterator<Item = &'a mut Numbers>) {
    let mut to: Vec<_> = to.collect();
    let mut line = 0;
    while let (Some(row), Some(next)) = (rows.next(), rows.next()) {
        let steps = row.as_chunks::<STEP>().0.iter().zip(next.as_chunks::<STEP>().0);
        for ((row, next), to) in steps.zip(&mut to) {
            let (row, next) = (halves(row), halves(next));
            for half in 0..2 {
                cut(simd, [row[half], next[half]], Order::Pairs, to, half, line);
            }
        }
        line += 1;
    }
}

#[inline(always)]
fn halves(step: &[f32; STEP]) -> [__m512; 2] {
    bytemuck::cast(*step)
}

/// Layer norm of one token.
#[inline(always)]
fn normalise(simd: V4, row: &mut [f32], (weight, bias, epsilon): Norm<'_>) {
    let part = 1.0 / row.len() as f32;
    let (lines, rest) = row.as_chunks::<LINE>();
    let mut sums = simd.splat_f32x16(0.0);
    for line in lines {
        sums = simd.add_f32x16(sums, bytemuck::cast(*line));
    }
    let mean = part * (simd.reduce_sum_f32s(sums) + rest.iter().sum::<f32>());
    let mut squares = simd.splat_f32x16(0.0);
    for line in lines {
        let x = simd.sub_f32x16(bytemuck::cast(*line), simd.splat_f32x16(mean));
        squares = simd.mul_add_f32x16(x, x, squares);
    }
    let rest = rest.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>();
    let variance = part * (simd.reduce_sum_f32s(squares) + rest);
    let factor = 1.0 / (variance + epsilon).sqrt();
    for ((x, weight), bias) in row.iter_mut().zip(weight).zip(bias) {
        *x = ((*x - mean) * factor).mul_add(*weight, *bias);
    }
}

/// Some strips of queries, of several heads.
struct Task<'a> {
    simd: V4,
    width: usize,
    heads: usize,
    features: usize,
    tokens: usize,
    q: &'a [Numbers],
    k: &'a [Numbers],
    v: &'a [Numbers],
    y: &'a mut [f32],
}

/// A strip of queries on its way through the blocks of keys.
struct Strip {
    /// What each query's scores are taken relative to.
    references: [f32; SIDE],
    /// Sums of powers, in as many parts as a register has floats.
    totals: [[f32; LINE]; SIDE],
    /// Sums of values, by 32 features.
    sums: Vec<Sums>,
}

impl NullaryFnOnce for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        let Self { simd, width, heads, features, tokens, q, k, v, y } = self;
        let steps = width.div_ceil(STEP);
        let mut scores = vec![Sums::ZERO; BLOCK];
        let mut powers = vec![NOTHING; BLOCK];
        let new = || Strip { references: [0.0; SIDE], totals: [[0.0; LINE]; SIDE], sums: vec![Sums::ZERO; steps] };
        for head in 0..heads {
            let mut strips: Vec<Strip> = (0..y.len()).step_by(SIDE * features).map(|_| new()).collect();
            let blocks = k.chunks_exact(heads * BLOCK * steps).zip(v.chunks_exact(heads * BLOCK * steps));
            for ((k, v), first) in blocks.zip((0..tokens).step_by(BLOCK * SIDE)) {
                let count = (BLOCK * SIDE).min(tokens - first);
                let panels = count.div_ceil(SIDE);
                let size = panels * steps;
                let (k, v) = (&k[head * size..][..size], &v[head * size..][..size]);
                let (scores, powers) = (&mut scores[..panels], &mut powers[..panels]);
                for (strip, q) in strips.iter_mut().zip(q.chunks_exact(heads * steps)) {
                    strip.attend(simd, &q[head * steps..][..steps], (k, v, count), scores, powers);
                }
            }
            for (strip, y) in strips.iter().zip(y.chunks_mut(SIDE * features)) {
                for (row, y) in y.chunks_mut(features).enumerate() {
                    let factor = 1.0 / strip.totals[row].iter().sum::<f32>();
                    let y = &mut y[head * width..][..width];
                    for (y, sums) in y.chunks_mut(SIDE).zip(&strip.sums) {
                        let mut line = sums.0[row];
                        for sum in &mut line {
                            *sum *= factor;
                        }
                        y.copy_from_slice(&line[..y.len()]);
                    }
                }
            }
        }
    }
}

impl Strip {
    /// Add what a block of `count` keys gives.
    #[inline(always)]
    fn attend(
        &mut self,
        simd: V4,
        q: &[Numbers],
        (k, v, count): (&[Numbers], &[Numbers], usize),
        scores: &mut [Sums],
        powers: &mut [Numbers],
    ) {
        multiply(q, k, scores);
        if let Some(last) = scores.get_mut(count / SIDE) {
            for scores in &mut last.0 {
                // There are no more keys.
                scores[count % SIDE..].fill(f32::NEG_INFINITY);
            }
        }
        if !self.powers(simd, scores, powers) {
            self.settle(scores, count);
            self.powers(simd, scores, powers);
        }
        multiply_add(powers, v, &mut self.sums);
    }

    /// Powers of the scores, and their sums, unless a sum leaves what is fine: that asks for new references.
    #[inline(always)]
    fn powers(&mut self, simd: V4, scores: &[Sums], powers: &mut [Numbers]) -> bool {
        let mut totals = self.totals;
        for (scores, powers) in scores.iter().zip(powers) {
            let lines = scores.0.iter().zip(&self.references).zip(&mut totals);
            for (line, ((scores, reference), total)) in lines.enumerate() {
                let ([low, high], reference) = (halves(scores), bytemuck::cast(simd.splat_f32x16(*reference)));
                let [low, high] = [
                    power(simd, simd.avx512f._mm512_sub_ps(low, reference)),
                    power(simd, simd.avx512f._mm512_sub_ps(high, reference)),
                ];
                let sum = simd.add_f32x16(bytemuck::cast(low), bytemuck::cast(high));
                *total = bytemuck::cast(simd.add_f32x16(bytemuck::cast(*total), sum));
                cut(simd, [low, high], Order::Rows, powers, line / 16, line % 16);
            }
        }
        let fine = totals.iter().all(|total| {
            let all = simd.reduce_sum_f32s(bytemuck::cast(*total));
            all.is_nan() || FINE.contains(&all)
        });
        if fine {
            self.totals = totals;
        }
        fine
    }

    /// Make each row's largest score what its scores are relative to.
    #[inline(always)]
    fn settle(&mut self, scores: &[Sums], count: usize) {
        for row in 0..SIDE {
            let of_row = scores.iter().flat_map(|scores| &scores.0[row]).take(count);
            let most = of_row.fold(f32::NEG_INFINITY, |most, score| most.max(*score)) - self.references[row];
            // Less than before would make what was added before too large.
            let most = if self.totals[row].iter().all(|sum| *sum <= 0.0) { most } else { most.max(0.0) };
            self.references[row] += most;
            let factor = (-most).exp2();
            let sums = self.sums.iter_mut().flat_map(|sums| &mut sums.0[row]);
            self.totals[row].iter_mut().chain(sums).for_each(|sum| *sum *= factor);
        }
    }
}
