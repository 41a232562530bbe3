//! How weights and activations are distributed.

use std::collections::BTreeMap;

use cogvx_graphs::DType;
use half::{bf16, f16};

use crate::bench::kind_of;
use crate::blueprint::Blueprint;
use crate::export::Component;

/// Bytes that are read of each tensor.
const READ: u64 = 1 << 16;
/// Bins of a distribution.
pub(super) const BINS: usize = 48;
/// Powers of ten of the first and the last bin's ends.
pub(super) const POWERS: [f64; 2] = [-5.0, 3.0];

/// The share of numbers in each bin of magnitudes, evenly apart in their logarithms.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Spread {
    counts: Vec<u64>,
}

impl Spread {
    /// Count these numbers, too; zeros are left out, and what is beyond the ends counts in the outermost bins.
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Bounded.
    pub fn add(&mut self, numbers: impl Iterator<Item = f32>) {
        self.counts.resize(BINS, 0);
        let [from, to] = POWERS;
        for x in numbers.filter(|x| x.is_finite() && *x != 0.0) {
            let share = (f64::from(x.abs()).log10() - from) / (to - from);
            self.counts[((share * BINS as f64).max(0.0) as usize).min(BINS - 1)] += 1;
        }
    }

    /// The share of each bin.
    #[must_use]
    #[allow(clippy::cast_precision_loss)] // Shares.
    pub fn shares(&self) -> Vec<f64> {
        let all = self.counts.iter().sum::<u64>().max(1) as f64;
        self.counts.iter().map(|&count| count as f64 / all).collect()
    }
}

/// How the transformer's weights are distributed, by kind of layer, from the beginning of each tensor. Nothing of a bundle or of a
/// configuration, where there are none to read.
#[must_use]
pub fn weight_spreads(blueprint: &Blueprint) -> BTreeMap<String, Spread> {
    let weights = blueprint.weights(Component::Transformer);
    let mut spreads: BTreeMap<String, Spread> = BTreeMap::new();
    for tensor in weights.iter().filter(|tensor| tensor.shape.len() > 1 && tensor.dtype.is_float()) {
        let whole = tensor.dtype.size() as u64;
        let mut bytes = vec![0; usize::try_from(READ.min(tensor.len) / whole * whole).unwrap_or(0)];
        if weights.read_into(tensor, 0, &mut bytes).is_err() {
            return BTreeMap::new();
        }
        let path = tensor.name.rsplit_once('.').map_or("", |(path, _)| path);
        spreads.entry(kind_of(path).into()).or_default().add(numbers(&bytes, tensor.dtype));
    }
    // Where there are no files all numbers are zero.
    spreads.retain(|_, spread| spread.counts.iter().any(|&count| count > 0));
    spreads
}

fn numbers(bytes: &[u8], dtype: DType) -> impl Iterator<Item = f32> {
    bytes.chunks_exact(dtype.size()).map(move |b| match dtype {
        DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_counted_by_their_magnitudes() {
        let mut spread = Spread::default();
        spread.add([0.0, 1.0, -1.0, 1e-9, 1e9, f32::NAN].into_iter());
        let shares = spread.shares();
        assert_eq!(shares.len(), BINS);
        // 10^0 is five eighths of the way.
        let found = [shares[0], shares[BINS * 5 / 8], shares[BINS - 1]];
        assert_eq!(found.map(f64::to_bits), [0.25_f64, 0.5, 0.25].map(f64::to_bits));
    }
}
