//! What is done to each row of a product by itself.

use pulp::Simd;

use super::{Added, Out, ROWS, Rescale};
use crate::gelu::gelu;
use crate::threads::{Threads, each};

/// What is done to each number of a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Map {
    /// Nothing.
    Keep,
    /// GELU, tanh approximation.
    Gelu,
}

/// Rows of `x` `[samples, tokens, features]`, times their steps plus a bias where they lack that, mapped, to `out`.
///
/// # Panics
/// Slices of other sizes than these.
pub fn map_rows(
    x: &[f32],
    [samples, features]: [usize; 2],
    rescale: Option<Rescale<'_>>,
    map: Map,
    out: Out<'_>,
    threads: &dyn Threads,
) {
    let tokens = x.len() / (samples * features).max(1);
    let of_samples = out.pieces(tokens.max(1), features).into_iter();
    let mut of_samples: Vec<_> = of_samples.map(|out| out.pieces(ROWS, features).into_iter()).collect();
    // Tasks are runs of tokens, in all samples.
    let pieces = (0..tokens).step_by(ROWS).map(|start| {
        let out = of_samples.iter_mut().filter_map(Iterator::next).collect();
        let rows = start..tokens.min(start + ROWS);
        MapRows { added: Added { y: x, rescale }, rows, tokens, features, map, out }
    });
    each(threads, pieces, |_, piece| pulp::Arch::new().dispatch(piece));
}

/// Some tokens.
struct MapRows<'a, 'b> {
    added: Added<'a>,
    rows: std::ops::Range<usize>,
    /// All tokens of a sample.
    tokens: usize,
    features: usize,
    map: Map,
    /// Of each sample.
    out: Vec<Out<'b>>,
}

impl pulp::WithSimd for MapRows<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { added, rows, tokens, features, map, mut out } = self;
        let samples = out.len();
        let [mut row, mut last, mut last_product] = [0; 3].map(|_| vec![0.0; features]);
        for (i, token) in rows.enumerate() {
            for (sample, out) in out.iter_mut().enumerate().rev() {
                let is_last = sample + 1 == samples;
                added.row(sample * tokens + token, (!is_last).then_some(&last_product), &mut row);
                if is_last && samples > 1 {
                    last_product.copy_from_slice(&row);
                }
                if map == Map::Gelu {
                    for x in &mut row {
                        *x = gelu(*x);
                    }
                }
                out.put(simd, i, &mut row, (!is_last).then_some(&last));
                if is_last {
                    // It is no difference, and turned as the others will be.
                    std::mem::swap(&mut row, &mut last);
                }
            }
        }
    }
}
