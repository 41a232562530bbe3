//! Floating-point numbers as the bytes of one type or another.

use cogvx_graphs::DType;
use half::{bf16, f16};

/// Elements as `f32`, which holds those of each type exactly.
pub(super) fn decode(bytes: &[u8], from: DType) -> Vec<f32> {
    let numbers = bytes.chunks_exact(from.size()).map(|b| match (from, b) {
        (DType::F16, &[a, b]) => f16::from_le_bytes([a, b]).to_f32(),
        (DType::BF16, &[a, b]) => bf16::from_le_bytes([a, b]).to_f32(),
        (_, &[a, b, c, d]) => f32::from_le_bytes([a, b, c, d]),
        _ => 0.0,
    });
    numbers.collect()
}

/// Numbers as elements of `to`, rounded to nearest even.
pub(super) fn encode(numbers: &[f32], to: DType) -> Vec<u8> {
    match to {
        DType::F16 => numbers.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => numbers.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => numbers.iter().flat_map(|x| x.to_le_bytes()).collect(),
    }
}
