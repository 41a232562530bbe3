//! Weights in another precision.

use cogvx_graphs::DType;
use half::f16;
use half::slice::HalfFloatSliceExt as _;

/// Elements that are `f32` on the way, few enough for the nearest cache.
const TILE: usize = 256;

/// Puts elements of one floating-point type into `out` as another, rounded to nearest even.
pub(crate) fn convert(bytes: &[u8], from: DType, to: DType, out: &mut Vec<u8>) {
    out.resize(bytes.len() / from.size() * to.size(), 0);
    if from == to {
        out.copy_from_slice(bytes);
        return;
    }
    let mut tile = [0.0; TILE];
    for (out, bytes) in out.chunks_mut(TILE * to.size()).zip(bytes.chunks(TILE * from.size())) {
        let numbers = &mut tile[..bytes.len() / from.size()];
        widen(bytes, from, numbers);
        narrow(numbers, to, out);
    }
}

/// Puts elements into `numbers` as `f32`, which holds those of each type exactly.
pub(crate) fn decode(bytes: &[u8], from: DType, numbers: &mut Vec<f32>) {
    numbers.resize(bytes.len() / from.size(), 0.0);
    for (numbers, bytes) in numbers.chunks_mut(TILE).zip(bytes.chunks(TILE * from.size())) {
        widen(bytes, from, numbers);
    }
}

/// Puts numbers into `out` as elements of `to`, rounded to nearest even.
pub(crate) fn encode(numbers: &[f32], to: DType, out: &mut Vec<u8>) {
    out.resize(numbers.len() * to.size(), 0);
    for (out, numbers) in out.chunks_mut(TILE * to.size()).zip(numbers.chunks(TILE)) {
        narrow(numbers, to, out);
    }
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
        DType::BF16 => numbers
            .iter_mut()
            .zip(pairs)
            .for_each(|(x, pair)| *x = f32::from_bits(u32::from(u16::from_le_bytes(*pair)) << 16)),
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
        DType::BF16 => out.as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(pair, x)| *pair = bf16_of(*x)),
        _ => out.as_chunks_mut().0.iter_mut().zip(numbers).for_each(|(four, x)| *four = x.to_le_bytes()),
    }
}

/// `x` as `bf16`, without the branches of `half`'s, which keep the compiler from doing several at once.
fn bf16_of(x: f32) -> [u8; 2] {
    let bits = x.to_bits();
    let nan = bits & 0x7fff_ffff > 0x7f80_0000;
    // Half of the last place kept, or a little less where that place is even.
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // A NaN stays one whatever bits it loses.
    let kept = if nan { bits | 0x40_0000 } else { rounded };
    let [_, _, low, high] = kept.to_le_bytes();
    [low, high]
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn converted(bytes: &[u8], from: DType, to: DType) -> Vec<u8> {
        let mut out = vec![1; 3];
        convert(bytes, from, to, &mut out);
        out
    }

    #[test]
    fn every_half_converts_as_it_does_alone() {
        // Every bit pattern, more than once, and an end that is no whole tile.
        let all: Vec<u16> = (0..=u16::MAX).chain(0..=u16::MAX).chain(0..77).collect();
        let bytes: Vec<u8> = all.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        let same = |a: f32, b: f32| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan();
        let as_bf16 = converted(&bytes, DType::F16, DType::BF16);
        let as_f16 = converted(&bytes, DType::BF16, DType::F16);
        let as_f32 = converted(&bytes, DType::F16, DType::F32);
        assert_eq!([as_bf16.len(), as_f16.len(), as_f32.len()], [bytes.len(), bytes.len(), 2 * bytes.len()]);
        for (i, &bits) in all.iter().enumerate() {
            let (half, brain) = (f16::from_bits(bits).to_f32(), bf16::from_bits(bits).to_f32());
            let [a, b] = [&as_bf16, &as_f16].map(|bytes| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]));
            assert!(same(bf16::from_bits(a).to_f32(), bf16::from_f32(half).to_f32()), "{bits:04x}");
            assert!(same(f16::from_bits(b).to_f32(), f16::from_f32(brain).to_f32()), "{bits:04x}");
            let [a, b, c, d] = [0, 1, 2, 3].map(|k| as_f32[4 * i + k]);
            assert!(same(f32::from_le_bytes([a, b, c, d]), half), "{bits:04x}");
        }
        assert!(converted(&as_f32, DType::F32, DType::F32) == as_f32);
    }

    #[test]
    fn bf16_rounds_as_half_does() {
        // Every upper half with the lower halves where rounding turns.
        for upper in 0..=u16::MAX {
            for lower in [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff] {
                let x = f32::from_bits(u32::from(upper) << 16 | lower);
                assert_eq!(bf16_of(x), bf16::from_f32(x).to_le_bytes(), "{:08x}", x.to_bits());
            }
        }
    }

    #[test]
    fn decoding_and_encoding_is_converting() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let (mut numbers, mut out) = (vec![1.0; 3], vec![1; 3]);
        decode(&bytes, DType::F16, &mut numbers);
        encode(&numbers, DType::BF16, &mut out);
        assert!(out == converted(&bytes, DType::F16, DType::BF16));
    }
}
