//! A tile of a product: rows by 32 outputs, its sums in registers.

use core::array::from_fn;

use pulp::Simd;

use super::gelu::gelu;
use crate::scratch::Line;

/// How many rows a tile has at most: 28 sums, two columns of weights, and a number to spare in 32 registers.
pub const ROWS: usize = 14;
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

/// Add the products of `x` (columns of rows) and `weights` (columns of outputs, in two lines each), `y.len()` rows at most [`ROWS`], to `y`,
/// whose rows hold at most [`OUTPUTS`] from `first` on.
#[inline(always)]
pub fn tile<S: Simd>(simd: S, x: &[Line], weights: &[Line], y: &mut [&mut [f32]], first: usize, finish: Finish) {
    // An odd row more is computed, and left.
    match y.len() {
        0..=2 => rows::<S, 2>(simd, x, weights, y, first, finish),
        3..=4 => rows::<S, 4>(simd, x, weights, y, first, finish),
        5..=6 => rows::<S, 6>(simd, x, weights, y, first, finish),
        7..=8 => rows::<S, 8>(simd, x, weights, y, first, finish),
        9..=10 => rows::<S, 10>(simd, x, weights, y, first, finish),
        11..=12 => rows::<S, 12>(simd, x, weights, y, first, finish),
        _ => rows::<S, ROWS>(simd, x, weights, y, first, finish),
    }
}

#[inline(always)]
fn rows<S: Simd, const R: usize>(
    simd: S,
    x: &[Line],
    weights: &[Line],
    y: &mut [&mut [f32]],
    first: usize,
    finish: Finish,
) {
    let mut sums = [[0.; OUTPUTS]; R];
    for lanes in 0..16 / S::F32_LANES {
        let products: [[S::f32s; 2]; R] = products(simd, x, weights, lanes);
        for (sums, products) in sums.iter_mut().zip(products) {
            for (half, product) in sums.as_chunks_mut::<16>().0.iter_mut().zip(products) {
                S::as_mut_simd_f32s(half).0[lanes] = product;
            }
        }
    }
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

/// The sums of one register's `lanes` of each sixteen outputs.
#[inline(always)]
fn products<S: Simd, const R: usize>(simd: S, x: &[Line], weights: &[Line], lanes: usize) -> [[S::f32s; 2]; R] {
    let mut sums = [[simd.splat_f32s(0.); 2]; R];
    for (x, [left, right]) in x.iter().zip(weights.as_chunks::<2>().0) {
        let [left, right] = [left, right].map(|column| S::as_simd_f32s(&column.0).0[lanes]);
        sums = from_fn(|row| {
            let x = simd.splat_f32s(x.0[row]);
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
