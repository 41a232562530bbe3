//! PyTorch's linear layer, its weights read in place.
//!
//! A task takes as many outputs as have their weights (of some of the features) in a core's second cache, packed for the
//! products, and passes all rows by them (or as many as the third cache holds), which were packed before. So each weight is read from memory and packed once, and
//! nothing of them is kept.

mod dots;
mod gelu;
mod pack;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiled;

use core::{array::from_fn, mem::take};
use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use pulp::{Arch, Simd, WithSimd};

use self::{
    dots::Dots,
    pack::{Number, pack},
    tile::{Finish, OUTPUTS, tile},
};
use crate::{
    Threads,
    processor::Processor,
    scratch::{Line, Pool},
    threads::each,
};

/// How a product is cut, by what a processor's registers and caches hold.
#[derive(Clone, Copy)]
struct Cut {
    /// Rows of a tile.
    rows: usize,
    /// How many features are multiplied at a time: a tile's sums stay in registers meanwhile.
    features: usize,
    /// How many numbers of packed weights a task has: with a tile's rows they are in the second cache.
    weights: usize,
}

impl Cut {
    const fn of(arch: Arch) -> Self {
        match arch {
            #[cfg(target_arch = "x86_64")]
            Arch::V4(_) => Self { rows: tile::MOST_ROWS, features: 3840, weights: 3 << 16 },
            // What a tile reads is in the first cache, too.
            _ => Self { rows: 12, features: 192, weights: 1 << 16 },
        }
    }
}

/// How many numbers of packed rows there are at a time: with more of them they come from memory for each task, not from the third cache.
const AT_ONCE: usize = 6 << 20;
/// How many rows there are at a time: of what they make the third cache holds some, too.
const ROWS: usize = 1536;

static PACKED_ROWS: Pool<Line> = Pool::new(Line::ZERO);
static PACKED_WEIGHTS: Pool<Line> = Pool::new(Line::ZERO);

/// Weights `[out, in]` as the checkpoint has them.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// In fp16.
    F16(&'a [f16]),
    /// In bf16.
    BF16(&'a [bf16]),
}

/// `y = x weight^T + bias`, and GELU after it where asked.
pub struct Linear<'a> {
    /// `[out, in]`
    pub weight: Weights<'a>,
    /// `[out]`
    pub bias: Option<&'a [f32]>,
    /// `[out, in]`
    pub features: [usize; 2],
    /// Whether GELU, in its tanh form, comes after.
    pub gelu: bool,
}

impl Linear<'_> {
    /// `y [rows, out]` of `x [rows, in]`.
    ///
    /// # Panics
    ///
    /// If a slice is not as long as its shape says.
    pub fn run(&self, x: &[f32], y: &mut [f32], threads: &dyn Threads) {
        self.run_on(Processor::new(), x, y, threads);
    }

    fn run_on(&self, processor: Processor, x: &[f32], y: &mut [f32], threads: &dyn Threads) {
        let [outputs, features] = self.features;
        let rows = y.len() / outputs;
        assert_eq!((x.len(), y.len()), (rows * features, rows * outputs), "{rows} rows of {:?}", self.features);
        let rows = at_once(processor, rows, features);
        for (x, y) in x.chunks(rows * features).zip(y.chunks_mut(rows * outputs)) {
            match self.weight {
                Weights::F32(weights) => self.multiply::<_, 3>(processor, weights, x, y, threads),
                Weights::F16(weights) => self.multiply::<_, 2>(processor, weights, x, y, threads),
                Weights::BF16(weights) => self.multiply::<_, 1>(processor, weights, x, y, threads),
            }
        }
    }

    /// With weights that are sums of `W` times eight bits.
    fn multiply<T: Number, const W: usize>(
        &self,
        processor: Processor,
        weights: &[T],
        x: &[f32],
        y: &mut [f32],
        threads: &dyn Threads,
    ) {
        let ([outputs, features], arch) = (self.features, processor.arch);
        let rows = y.len() / outputs;
        assert_eq!(weights.len(), outputs * features, "weights of {:?}", self.features);
        assert!(self.bias.is_none_or(|bias| bias.len() == outputs), "a bias of {outputs}");
        let few = rows <= dots::ROWS;
        #[cfg(target_arch = "x86_64")]
        if let (false, true, Arch::V4(simd)) = (few, processor.tiles, arch) {
            let cut = tiled::Cut::of(features);
            let parts = self.parts(weights, y, cut.outputs(W), threads);
            return tiled::run::<T, W>(simd, cut, x, parts, self.gelu, threads);
        }

        let cut = Cut::of(arch);
        let features_at_once = features.div_ceil(features.div_ceil(cut.features));
        let width = OUTPUTS * (cut.weights / OUTPUTS / features_at_once).max(1);
        let parts = self.parts(weights, y, width, threads);
        if few {
            each(threads, parts, |_, Part { y, weights, bias }| {
                Dots { x, weights, bias, gelu: self.gelu, y }.run(arch);
            });
            return;
        }

        let mut packed = PACKED_ROWS.take(rows.div_ceil(cut.rows) * features);
        let tiles = x.chunks(cut.rows * features).zip(packed.chunks_exact_mut(features));
        each(threads, tiles, |_, (x, packed)| pack::<f32, 1>(arch, sixteen(x, features, 0..features), packed, 0));
        each(threads, parts, |_, part| {
            let (rows, gelu) = (cut.rows, self.gelu);
            arch.dispatch(Block { arch, x: &packed, part, gelu, features, features_at_once, rows });
        });
    }

    /// Outputs cut into about as many for each task, for each thread as many.
    fn parts<'a, T>(
        &'a self,
        weights: &'a [T],
        y: &'a mut [f32],
        width: usize,
        threads: &dyn Threads,
    ) -> impl Iterator<Item = Part<'a, T>> {
        let [outputs, features] = self.features;
        let panels = outputs.div_ceil(OUTPUTS);
        let tasks = panels.div_ceil(width / OUTPUTS).next_multiple_of(threads.count());
        let width = panels.div_ceil(tasks) * OUTPUTS;
        let parts = columns(y, outputs, width).into_iter().zip(weights.chunks(width * features)).enumerate();
        parts.map(move |(number, (y, weights))| {
            let bias = self.bias.map(|bias| &bias[number * width..][..weights.len() / features]);
            Part { weights, bias, y }
        })
    }
}

/// Some outputs of all rows.
struct Part<'a, T> {
    /// Rows of the weights `[outputs, in]`.
    weights: &'a [T],
    bias: Option<&'a [f32]>,
    /// These outputs of each row.
    y: Vec<&'a mut [f32]>,
}

impl<T> Part<'_, T> {
    fn outputs(&self, features: usize) -> usize {
        self.weights.len() / features
    }
}

/// `y [rows, out]` of `x [rows, in]`: what `down` makes of what `up` makes. In between is memory for some rows alone.
///
/// # Panics
///
/// If layers do not fit each other, or a slice is not as long as its shape says.
pub fn feed_forward(up: &Linear<'_>, down: &Linear<'_>, x: &[f32], y: &mut [f32], threads: &dyn Threads) {
    static INNER: Mutex<Vec<f32>> = Mutex::new(Vec::new());
    let ([inner, features], [outputs, read]) = (up.features, down.features);
    assert_eq!(inner, read, "layers of {:?} and {:?}", up.features, down.features);
    let rows = y.len() / outputs;
    assert_eq!((x.len(), y.len()), (rows * features, rows * outputs), "{rows} rows");
    let rows = at_once(Processor::new(), rows, inner);
    // Whoever else works meanwhile fetches memory of its own.
    let mut made = take(&mut *INNER.lock().unwrap_or_else(PoisonError::into_inner));
    for (x, y) in x.chunks(rows * features).zip(y.chunks_mut(rows * outputs)) {
        made.resize(y.len() / outputs * inner, 0.0);
        up.run(x, &mut made, threads);
        down.run(&made, y, threads);
    }
    *INNER.lock().unwrap_or_else(PoisonError::into_inner) = made;
}

/// How many of so many rows of `features` are multiplied at a time: parts of one size, in whole tiles.
fn at_once(processor: Processor, rows: usize, features: usize) -> usize {
    let tile = if processor.tiles { OUTPUTS } else { Cut::of(processor.arch).rows };
    let most = (AT_ONCE / features).clamp(tile, ROWS);
    rows.div_ceil(rows.div_ceil(most).max(1)).next_multiple_of(tile)
}

/// `y [rows, outputs]` in blocks of `width` outputs, each by its rows.
fn columns(y: &mut [f32], outputs: usize, width: usize) -> Vec<Vec<&mut [f32]>> {
    let rows = y.len() / outputs;
    let mut blocks: Vec<_> = (0..outputs.div_ceil(width)).map(|_| Vec::with_capacity(rows)).collect();
    for row in y.chunks_exact_mut(outputs) {
        for (block, part) in blocks.iter_mut().zip(row.chunks_mut(width)) {
            block.push(part);
        }
    }
    blocks
}

/// The first sixteen rows of a matrix `[rows, features]`, of them some features; its last row again where it has fewer.
fn sixteen<T>(matrix: &[T], features: usize, some: core::ops::Range<usize>) -> [&[T]; 16] {
    let last = matrix.len() / features - 1;
    from_fn(|row| &matrix[row.min(last) * features..][some.clone()])
}

/// All rows of some outputs.
struct Block<'a, T> {
    arch: Arch,
    /// The layer's input, packed: `[tiles, in, 16]`.
    x: &'a [Line],
    part: Part<'a, T>,
    gelu: bool,
    features: usize,
    features_at_once: usize,
    /// Of a tile.
    rows: usize,
}

impl<T: Number> WithSimd for Block<'_, T> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let panels = self.part.outputs(self.features).div_ceil(OUTPUTS);
        let mut packed = PACKED_WEIGHTS.take(panels * 2 * self.features_at_once);
        for first in (0..self.features).step_by(self.features_at_once) {
            let some = first..self.features.min(first + self.features_at_once);
            let halves = self.part.weights.chunks(16 * self.features);
            for (number, weights) in halves.enumerate() {
                let weights = sixteen(weights, self.features, some.clone());
                if S::F32_LANES == 16 {
                    let packed = &mut packed[number / 2 * 2 * some.len()..][..2 * some.len()];
                    pack::<T, 2>(self.arch, weights, packed, number % 2);
                } else {
                    let packed = &mut packed[number * some.len()..][..some.len()];
                    pack::<T, 1>(self.arch, weights, packed, 0);
                }
            }
            let tiles = self.x.chunks_exact(self.features).zip(self.part.y.chunks_mut(self.rows));
            for (x, y) in tiles {
                for (panel, weights) in packed.chunks_exact(2 * some.len()).take(panels).enumerate() {
                    let output = panel * OUTPUTS;
                    let start = (first == 0).then(|| bias(self.part.bias, output));
                    let finish = Finish { start, gelu: self.gelu && some.end == self.features };
                    tile(simd, &x[some.clone()], weights, y, output, finish);
                }
            }
        }
    }
}

/// The bias of the outputs from `first` on.
fn bias(bias: Option<&[f32]>, first: usize) -> [f32; OUTPUTS] {
    let mut start = [0.; OUTPUTS];
    if let Some(bias) = bias {
        let bias = &bias[first..];
        let count = bias.len().min(OUTPUTS);
        start[..count].copy_from_slice(&bias[..count]);
    }
    start
}

#[cfg(test)]
mod tests;
