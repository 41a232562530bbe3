//! Weights in another precision, on all cores.

use cogvx_graphs::DType;
use half::slice::HalfFloatSliceExt as _;
use half::{bf16, f16};
use rayon::iter::{IndexedParallelIterator as _, ParallelIterator as _};
use rayon::slice::{ParallelSlice as _, ParallelSliceMut as _};

/// Elements a thread converts at a time.
const SPAN: usize = 1 << 16;
/// Elements that are `f32` on the way, few enough for the nearest cache.
const TILE: usize = 256;

/// Elements of one floating-point type as another, rounded to nearest even.
pub(super) fn convert(bytes: &[u8], from: DType, to: DType) -> Vec<u8> {
    if from == to {
        return bytes.to_vec();
    }
    let mut out = vec![0; bytes.len() / from.size() * to.size()];
    let spans = out.par_chunks_mut(SPAN * to.size()).zip(bytes.par_chunks(SPAN * from.size()));
    spans.for_each(|(out, bytes)| {
        let mut tile = [0.0; TILE];
        for (out, bytes) in out.chunks_mut(TILE * to.size()).zip(bytes.chunks(TILE * from.size())) {
            let numbers = &mut tile[..bytes.len() / from.size()];
            widen(bytes, from, numbers);
            narrow(numbers, to, out);
        }
    });
    out
}

/// Elements as `f32`, which holds those of each type exactly.
pub(super) fn decode(bytes: &[u8], from: DType) -> Vec<f32> {
    let bytes = convert(bytes, from, DType::F32);
    bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect()
}

/// Numbers as elements of `to`, rounded to nearest even.
pub(super) fn encode(numbers: &[f32], to: DType) -> Vec<u8> {
    let bytes: Vec<u8> = numbers.iter().flat_map(|x| x.to_le_bytes()).collect();
    convert(&bytes, DType::F32, to)
}

/// At most [`TILE`] elements as `f32`.
fn widen(bytes: &[u8], from: DType, numbers: &mut [f32]) {
    let n = numbers.len();
    let pairs = bytes.as_chunks::<2>().0;
    match from {
        DType::F16 => {
            let mut tile = [f16::ZERO; TILE];
            tile.iter_mut().zip(pairs).for_each(|(x, pair)| *x = f16::from_le_bytes(*pair));
            tile[..n].convert_to_f32_slice(numbers);
        }
        DType::BF16 => {
            let mut tile = [bf16::ZERO; TILE];
            tile.iter_mut().zip(pairs).for_each(|(x, pair)| *x = bf16::from_le_bytes(*pair));
            tile[..n].convert_to_f32_slice(numbers);
        }
        _ => numbers.iter_mut().zip(bytes.as_chunks().0).for_each(|(x, four)| *x = f32::from_le_bytes(*four)),
    }
}

/// At most [`TILE`] numbers as elements of `to`.
fn narrow(numbers: &[f32], to: DType, out: &mut [u8]) {
    let n = numbers.len();
    match to {
        DType::F16 => {
            let mut tile = [f16::ZERO; TILE];
            tile[..n].convert_from_f32_slice(numbers);
            out.as_chunks_mut().0.iter_mut().zip(tile).for_each(|(pair, x)| *pair = x.to_le_bytes());
        }
        DType::BF16 => {
            let mut tile = [bf16::ZERO; TILE];
            tile[..n].convert_from_f32_slice(numbers);
            out.as_chunks_mut().0.iter_mut().zip(tile).for_each(|(pair, x)| *pair = x.to_le_bytes());
        }
        _ => out.as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(four, x)| *four = x.to_le_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_converts_as_it_does_alone() {
        // Every bit pattern, more than once, and an end that is no whole tile.
        let all: Vec<u16> = (0..=u16::MAX).chain(0..=u16::MAX).chain(0..77).collect();
        let bytes: Vec<u8> = all.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        let as_bf16 = convert(&bytes, DType::F16, DType::BF16);
        let as_f16 = convert(&bytes, DType::BF16, DType::F16);
        let as_f32 = convert(&bytes, DType::F16, DType::F32);
        assert_eq!([as_bf16.len(), as_f16.len(), as_f32.len()], [bytes.len(), bytes.len(), 2 * bytes.len()]);
        for (i, &bits) in all.iter().enumerate() {
            let (half, brain) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
            let [a, b] = [&as_bf16, &as_f16].map(|bytes| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
            assert!(same(bf16::from_bits(a).to_f32(), bf16::from_f32(half).to_f32()), "{bits:04x}");
            assert!(same(f16::from_bits(b).to_f32(), f16::from_f32(brain).to_f32()), "{bits:04x}");
            let [a, b, c, d] = [0, 1, 2, 3].map(|k| as_f32[4 * i + k]);
            assert!(same(f32::from_le_bytes([a, b, c, d]), half), "{bits:04x}");
        }
        assert!(convert(&as_f32, DType::F32, DType::F32) == as_f32);
    }
}
