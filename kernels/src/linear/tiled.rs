//! The layer in tile registers: 32 rows by 32 outputs at a time, all numbers cut into parts of eight bits.

use cogvx_tiles::{SIDE, Sums, Tile, multiply, multiply_add};
use core::{array::from_fn, ops::Range};
use pulp::{NullaryFnOnce, x86::V4};

use super::{
    Part, bias,
    pack::Number,
    tile::{Finish, finish},
};
use crate::{
    Threads,
    parts::{Order, Parts, STEP, cut, turn},
    scratch::Pool,
    threads::each,
};

/// A strip of 32 rows, upper and lower ones: all that there is of `float32`.
type Rows = Parts<3>;

/// How many steps are multiplied by all of a task's outputs before the next ones: a strip's rows stay in the caches meanwhile.
const FIRST: usize = 12;
/// How many tiles of weights a task has: with a strip they are in the second cache.
const WEIGHTS: usize = 640;
/// How many steps are multiplied at a time, at most: with more, few outputs would share a strip.
const STEPS: usize = 30;

static ROWS: Pool<Rows> = Pool::new([[Tile::ZERO; 2]; 3]);
static PACKED_WEIGHTS: Pool<Tile> = Pool::new(Tile::ZERO);
static SUMS: Pool<Sums> = Pool::new(Sums::ZERO);

/// How a layer's features and outputs are cut.
#[derive(Clone, Copy)]
pub struct Cut {
    features: usize,
    /// In all.
    steps: usize,
    /// At a time.
    at_once: usize,
}

impl Cut {
    pub fn of(features: usize) -> Self {
        let steps = features.div_ceil(STEP);
        Self { features, steps, at_once: steps.div_ceil(steps.div_ceil(STEPS)) }
    }

    /// How many outputs a task has, where weights have so many parts.
    pub fn outputs(self, parts: usize) -> usize {
        SIDE * (WEIGHTS / (2 * parts * self.at_once)).max(1)
    }
}

/// `y = x weight^T + bias` where weights are sums of `W` parts.
pub fn run<'a, T: Number + 'a, const W: usize>(
    simd: V4,
    cut: Cut,
    x: &[f32],
    parts: impl Iterator<Item = Part<'a, T>>,
    gelu: bool,
    threads: &dyn Threads,
) {
    let strips = x.chunks(SIDE * cut.features);
    let mut rows = ROWS.take(strips.len() * cut.steps);
    let rows = &mut rows[..strips.len() * cut.steps];
    each(threads, strips.zip(rows.chunks_exact_mut(cut.steps)), |_, (x, rows)| {
        simd.vectorize(PackRows { simd, x, features: cut.features, rows });
    });
    each(threads, parts, |_, part| simd.vectorize(Block::<T, W> { simd, cut, rows, part, gelu }));
}

/// A strip, cut into parts.
struct PackRows<'a> {
    simd: V4,
    x: &'a [f32],
    features: usize,
    rows: &'a mut [Rows],
}

impl NullaryFnOnce for PackRows<'_> {
    type Output = ();

    #[inline(always)]
    fn call(self) {
        for (step, to) in self.rows.iter_mut().enumerate() {
            for half in 0..2 {
                cut_rows(self.simd, (self.x, self.features), 16 * half, step, (to, half));
            }
        }
    }
}

/// All rows of some outputs.
struct Block<'a, T, const W: usize> {
    simd: V4,
    cut: Cut,
    /// `[strips, steps]`
    rows: &'a [Rows],
    part: Part<'a, T>,
    gelu: bool,
}

impl<T: Number, const W: usize> NullaryFnOnce for Block<'_, T, W> {
    type Output = ();

    #[inline(always)]
    fn call(mut self) {
        let Cut { features, steps, at_once } = self.cut;
        let panels = self.part.outputs(features).div_ceil(SIDE);
        let mut packed = PACKED_WEIGHTS.take(panels * at_once * W * 2);
        let packed = packed.as_chunks_mut::<2>().0.as_chunks_mut::<W>().0;
        let mut all_sums = SUMS.take(self.rows.len() / steps * panels);
        for first in (0..steps).step_by(at_once) {
            let some = first..steps.min(first + at_once);
            self.pack(some.clone(), panels, packed);
            for (rows, sums) in self.rows.chunks_exact(steps).zip(all_sums.chunks_exact_mut(panels)) {
                let chunks = rows[some.clone()].chunks(FIRST).zip(packed.chunks(FIRST * panels));
                for (number, (rows, columns)) in chunks.enumerate() {
                    let multiply = if first + number == 0 { multiply::<3, W> } else { multiply_add::<3, W> };
                    multiply(rows, &columns[..rows.len() * panels], sums);
                }
            }
        }
        for (sums, y) in all_sums.chunks_exact(panels).zip(self.part.y.chunks_mut(SIDE)) {
            for (panel, sums) in sums.iter().enumerate() {
                let start = Some(bias(self.part.bias, panel * SIDE));
                finish(&sums.0, y, panel * SIDE, Finish { start, gelu: self.gelu });
            }
        }
    }
}

impl<T: Number, const W: usize> Block<'_, T, W> {
    /// Weights of some steps: of each of them that go together those of all panels.
    #[inline(always)]
    fn pack(&self, some: Range<usize>, panels: usize, packed: &mut [Parts<W>]) {
        // Along each row, for memory comes faster so.
        for panel in 0..panels {
            for half in 0..2 {
                for (number, step) in some.clone().enumerate() {
                    let chunk = number / FIRST * FIRST;
                    let to = &mut packed[chunk * panels + panel * FIRST.min(some.len() - chunk) + number - chunk];
                    let row = panel * SIDE + 16 * half;
                    cut_rows(self.simd, (self.part.weights, self.cut.features), row, step, (to, half));
                    turn(self.simd, to, half);
                }
            }
        }
    }
}

/// Cut sixteen rows of a matrix `[rows, features]` from `row` on, its last one again where it has fewer: of them one step, and zeros
/// after the last feature.
#[inline(always)]
fn cut_rows<T: Number, const P: usize>(
    simd: V4,
    (matrix, features): (&[T], usize),
    row: usize,
    step: usize,
    (to, half): (&mut Parts<P>, usize),
) {
    let last = matrix.len() / features - 1;
    let some = step * STEP..features.min((step + 1) * STEP);
    for line in 0..16 {
        let from = &matrix[(row + line).min(last) * features..][some.clone()];
        let mut whole = [T::default(); STEP];
        let from: &[T; STEP] = from.try_into().unwrap_or_else(|_| {
            whole[..from.len()].copy_from_slice(from);
            &whole
        });
        let [low, high]: [&[T; 16]; 2] = from_fn(|i| from[16 * i..].first_chunk().expect("a step"));
        cut(simd, [T::load(simd, low), T::load(simd, high)], Order::Rows, to, half, line);
    }
}
