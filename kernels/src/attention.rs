//! Softmax attention without the matrix of scores: a block of keys at a time, with a running sum (`FlashAttention`).
//!
//! Queries, keys and values of a few heads are first packed into panels of [`SIDE`] tokens, with what a product reads in one
//! step side by side; queries and keys get their head's layer norm on the way.
// Functions that are not inlined into `WithSimd::with_simd` would lack its instructions; sizes are far below 2^23.
#![allow(clippy::inline_always, clippy::cast_precision_loss)]

mod block;
mod pack;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiled;

use crate::{
    processor::Processor,
    threads::{Threads, each},
};
use block::{Keys, Rows, Scores};
use pack::{Kind, Pack};
use pulp::{Arch, Simd, WithSimd};
use std::{cell::RefCell, f32::consts::LOG2_E};

/// Tokens in a panel: queries that share keys while those are in L1; keys of three registers.
const SIDE: usize = 48;
/// Panels of keys whose scores are kept at a time.
const BLOCK: usize = 8;
/// Panels of queries that share a block of keys while it is in L2.
const ROWS: usize = 8;
/// Heads that are packed at a time.
const HEADS: usize = 3;
/// Floats in a cache line.
const LINE: usize = 16;

/// The layer norm of every head's queries or keys.
pub struct HeadNorm<'a> {
    /// `[head width]`
    pub weight: &'a [f32],
    /// `[head width]`
    pub bias: &'a [f32],
    /// What is added to the variance.
    pub epsilon: f32,
}

/// How much of each number products take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// All of it.
    Whole,
    /// Sixteen bits, where the processor is faster so: errors are 2^-17 of a number then.
    Sixteen,
}

/// Softmax attention of several heads.
pub struct Attention<'a> {
    /// How many heads there are.
    pub heads: usize,
    /// Features of a head.
    pub width: usize,
    /// What scores are multiplied with.
    pub scale: f32,
    /// Norms of queries and of keys.
    pub norms: Option<[HeadNorm<'a>; 2]>,
    /// Of queries with keys, and of powers of these with values.
    pub precision: Precision,
}

impl Attention<'_> {
    /// Attend with `q` `[batch, asking tokens, heads * width]` to `k` and `v` `[batch, tokens, heads * width]`; `y` is as `q`.
    ///
    /// # Panics
    /// When sizes do not fit each other, or there is nothing to attend to.
    pub fn run(&self, batch: usize, q: &[f32], k: &[f32], v: &[f32], y: &mut [f32], threads: &dyn Threads) {
        self.run_on(Processor::new(), batch, q, k, v, y, threads);
    }

    #[allow(clippy::too_many_arguments)]
    fn run_on(
        &self,
        processor: Processor,
        batch: usize,
        q: &[f32],
        k: &[f32],
        v: &[f32],
        y: &mut [f32],
        threads: &dyn Threads,
    ) {
        let features = self.heads * self.width;
        assert!(k.len() == v.len() && q.len() == y.len(), "as many values as keys, and answers as queries");
        assert!(k.len().is_multiple_of(batch * features) && q.len().is_multiple_of(batch * features));
        let (asking, tokens) = (q.len() / batch, k.len() / batch);
        assert!(tokens > 0, "no keys to attend to");
        let factor = self.scale * LOG2_E;
        let scaled = self.norms.as_ref().map(|[q, _]| {
            let scale = |x: &[f32]| x.iter().map(|x| x * factor).collect::<Vec<_>>();
            (scale(q.weight), scale(q.bias), q.epsilon)
        });
        let norms = [
            scaled.as_ref().map(|(weight, bias, epsilon)| (&weight[..], &bias[..], *epsilon)),
            self.norms.as_ref().map(|[_, k]| (k.weight, k.bias, k.epsilon)),
        ];
        let arch = processor.arch;
        #[cfg(target_arch = "x86_64")]
        if let (true, Precision::Sixteen, Arch::V4(simd)) = (processor.tiles, self.precision, arch) {
            return self.run_in_tiles(simd, (batch, factor), norms, [q, k, v], y, threads);
        }

        let (one, line) = (self.width * SIDE, self.width.next_multiple_of(LINE) * SIDE);
        let group = HEADS.min(self.heads);
        let (q_panels, k_panels) = ((asking / features).div_ceil(SIDE), (tokens / features).div_ceil(SIDE));
        let mut scratch = PACKED.take();
        let [packed_q, packed_k, packed_v] = &mut scratch;
        let packed_q = aligned(packed_q, q_panels * group * one);
        let packed_k = aligned(packed_k, k_panels * group * one);
        let packed_v = aligned(packed_v, k_panels * group * line);

        let kinds = [Kind::Transposed(norms[0], factor), Kind::Transposed(norms[1], 1.0), Kind::Plain];
        let rows = q_panels.div_ceil(4 * threads.count()).clamp(ROWS.min(2), ROWS);
        let parts = q.chunks_exact(asking).zip(k.chunks_exact(tokens)).zip(v.chunks_exact(tokens));
        for (((q, k), v), y) in parts.zip(y.chunks_exact_mut(asking)) {
            for first in (0..self.heads).step_by(group) {
                let heads = group.min(self.heads - first);
                let jobs = [(q, &mut *packed_q, one), (k, &mut *packed_k, one), (v, &mut *packed_v, line)];
                let jobs = jobs.into_iter().zip(kinds).flat_map(|((from, to, size), kind)| {
                    let panels = to.chunks_exact_mut(heads * size);
                    from.chunks(SIDE * features).zip(panels).map(move |(tokens, panels)| {
                        let tokens = &tokens[first * self.width..];
                        Pack { kind, width: self.width, tokens, features, panels, heads }
                    })
                });
                each(threads, jobs, |_, job| arch.dispatch(job));
                let y = y.chunks_mut(rows * SIDE * features);
                let q = packed_q.chunks(rows * heads * one);
                each(threads, y.zip(q), |_, (y, q)| {
                    let y = &mut y[first * self.width..];
                    let (k, v) = (&*packed_k, &*packed_v);
                    arch.dispatch(Task { width: self.width, heads, features, tokens: tokens / features, q, k, v, y });
                });
            }
        }
        PACKED.set(scratch);
    }
}

/// Some panels of queries, of several heads.
struct Task<'a> {
    width: usize,
    heads: usize,
    features: usize,
    tokens: usize,
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    y: &'a mut [f32],
}

impl WithSimd for Task<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { width, heads, features, tokens, q, k, v, y } = self;
        let (one, line) = (width * SIDE, width.next_multiple_of(LINE) * SIDE);
        let panels = y.len().div_ceil(SIDE * features);
        let mut scratch = SUMS.take();
        let [scores, sums] = &mut scratch;
        let scores: &mut Scores =
            aligned(scores, size_of::<Scores>() / size_of::<f32>()).as_chunks_mut().0.try_into().unwrap();
        let sums = aligned(sums, panels * line);
        let mut references = vec![[0.0; SIDE]; panels];
        let mut totals = vec![[[0.0; LINE]; SIDE]; panels];
        for head in 0..heads {
            sums.fill(0.0);
            references.fill([0.0; SIDE]);
            totals.fill([[0.0; LINE]; SIDE]);
            let keys: Vec<_> = k
                .chunks_exact(heads * one)
                .zip(v.chunks_exact(heads * line))
                .zip((0..tokens).step_by(SIDE))
                .map(|((k, v), start)| Keys {
                    count: SIDE.min(tokens - start),
                    k: k[head * one..][..one].as_chunks().0,
                    v: &v[head * line..][..line],
                })
                .collect();
            for block in keys.chunks(BLOCK) {
                for panel in 0..panels {
                    Rows {
                        count: SIDE.min(y.len().div_ceil(features) - panel * SIDE),
                        q: q[(panel * heads + head) * one..][..one].as_chunks().0,
                        y: &mut sums[panel * line..][..line],
                        reference: &mut references[panel],
                        sum: &mut totals[panel],
                    }
                    .attend(simd, block, scores);
                }
            }
            let totals = totals.as_flattened();
            for ((y, sums), total) in y.chunks_mut(features).zip(sums.chunks_exact(line / SIDE)).zip(totals) {
                let factor = 1.0 / total.iter().sum::<f32>();
                for (y, sum) in y[head * width..][..width].iter_mut().zip(sums) {
                    *y = sum * factor;
                }
            }
        }
        SUMS.set(scratch);
    }
}

thread_local! {
    /// Packed queries, keys and values, kept for the next call: fresh memory costs.
    static PACKED: RefCell<[Vec<f32>; 3]> = const { RefCell::new([const { Vec::new() }; 3]) };
    /// Scores and sums, likewise.
    static SUMS: RefCell<[Vec<f32>; 2]> = const { RefCell::new([const { Vec::new() }; 2]) };
}

/// So many floats, from where a cache line starts.
fn aligned(scratch: &mut Vec<f32>, count: usize) -> &mut [f32] {
    scratch.resize(count + LINE, 0.0);
    let start = scratch.as_ptr().align_offset(4 * LINE).min(LINE);
    &mut scratch[start..][..count]
}
