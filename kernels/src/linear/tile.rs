//! A tile of a product: rows by 32 outputs, its sums in registers.

use core::array::from_fn;

use pulp::Simd;

use super::gelu::gelu;
use crate::scratch::Line;

/// How many rows a tile has at most.
pub const MOST_ROWS: usize = 14;
/// How many outputs a tile has.
pub const OUTPUTS: usize = 32;

/// What a tile's sums are added to, and what comes after.
#[derive(Clone, Copy)]
pub struct Finish {
    /// The bias of the tile's outputs; `None` where sums of earlier features are in place already.
    pub start: Option<[f32; OUTPUTS]>,
    /// Whether GELU comes after.
    pub gelu: bool,
}

/// Add the products of `x` (columns of rows) and `weights` (columns of outputs: both lines of each side by side where a register
/// is a line, else all left ones and then all right ones), `y.len()` rows at most [`MOST_ROWS`], to `y`, whose rows hold at most
/// [`OUTPUTS`] from `first` on.
#[inline(always)]
pub fn tile<S: Simd>(simd: S, x: &[Line], weights: &[Line], y: &mut [&mut [f32]], first: usize, finish: Finish) {
    // An odd row more is computed, and left.
    if S::F32_LANES == 16 {
        // 28 sums, two columns of weights, and a number to spare in 32 registers.
        match y.len() {
            0..=2 => rows::<S, 2, 0>(simd, x, weights, y, first, finish),
            3..=4 => rows::<S, 4, 0>(simd, x, weights, y, first, finish),
            5..=6 => rows::<S, 6, 0>(simd, x, weights, y, first, finish),
            7..=8 => rows::<S, 8, 0>(simd, x, weights, y, first, finish),
            9..=10 => rows::<S, 10, 0>(simd, x, weights, y, first, finish),
            11..=12 => rows::<S, 12, 0>(simd, x, weights, y, first, finish),
            _ => rows::<S, MOST_ROWS, 0>(simd, x, weights, y, first, finish),
        }
    } else {
        // 12 sums in 16 registers.
        let (above, below) = y.split_at_mut(y.len().min(6));
        match above.len() {
            0..=2 => rows::<S, 2, 0>(simd, x, weights, above, first, finish),
            3..=4 => rows::<S, 4, 0>(simd, x, weights, above, first, finish),
            _ => rows::<S, 6, 0>(simd, x, weights, above, first, finish),
        }
        match below.len() {
            0 => {}
            1..=2 => rows::<S, 2, 6>(simd, x, weights, below, first, finish),
            3..=4 => rows::<S, 4, 6>(simd, x, weights, below, first, finish),
            _ => rows::<S, 6, 6>(simd, x, weights, below, first, finish),
        }
    }
}

/// `R` rows of a tile, from `ROW` on.
#[inline(always)]
fn rows<S: Simd, const R: usize, const ROW: usize>(
    simd: S,
    x: &[Line],
    weights: &[Line],
    y: &mut [&mut [f32]],
    first: usize,
    finish: Finish,
) {
    let mut sums = [[0.; OUTPUTS]; R];
    for pair in 0..OUTPUTS / 2 / S::F32_LANES {
        let products: [[S::f32s; 2]; R] = if S::F32_LANES == 16 {
            products::<S, R, ROW, 2>(simd, x, weights, 0)
        } else {
            let pairs = 8 / S::F32_LANES;
            let half = weights.len() / 2;
            products::<S, R, ROW, 1>(simd, x, &weights[pair / pairs * half..][..half], 2 * (pair % pairs))
        };
        for (sums, products) in sums.iter_mut().zip(products) {
            for (i, product) in products.into_iter().enumerate() {
                S::as_mut_simd_f32s(sums).0[2 * pair + i] = product;
            }
        }
    }
    self::finish(&sums, y, first, finish);
}

/// Store `sums` in rows `y`, which hold at most [`OUTPUTS`] from `first` on.
#[inline(always)]
pub fn finish(sums: &[[f32; OUTPUTS]], y: &mut [&mut [f32]], first: usize, finish: Finish) {
    for (sums, y) in sums.iter().zip(y) {
        let width = OUTPUTS.min(y.len() - first);
        let y = &mut y[first..][..width];
        if let Ok(y) = y.try_into() {
            store(sums, y, finish);
        } else {
            let mut whole = [0.; OUTPUTS];
            whole[..width].copy_from_slice(y);
            store(sums, &mut whole, finish);
            y.copy_from_slice(&whole[..width]);
        }
    }
}

/// The sums of two registers' outputs: the first of `N` = 2 lines, or of one line from this register on.
#[inline(always)]
fn products<S: Simd, const R: usize, const ROW: usize, const N: usize>(
    simd: S,
    x: &[Line],
    weights: &[Line],
    register: usize,
) -> [[S::f32s; 2]; R] {
    let mut sums = [[simd.splat_f32s(0.); 2]; R];
    for (x, weights) in x.iter().zip(weights.as_chunks::<N>().0) {
        let left = S::as_simd_f32s(&weights[0].0).0[register];
        let right = S::as_simd_f32s(&weights[N - 1].0).0[if N == 1 { register + 1 } else { register }];
        sums = from_fn(|row| {
            let x = simd.splat_f32s(x.0[ROW + row]);
            [simd.mul_add_f32s(x, left, sums[row][0]), simd.mul_add_f32s(x, right, sums[row][1])]
        });
    }
    sums
}

#[inline(always)]
fn store(sums: &[f32; OUTPUTS], y: &mut [f32; OUTPUTS], finish: Finish) {
    let start = finish.start.unwrap_or(*y);
    for output in 0..OUTPUTS {
        y[output] = sums[output] + start[output];
    }
    if finish.gelu {
        for y in y {
            *y = gelu(*y);
        }
    }
}
