//! Weights in few bits.

use cogvx_graphs::pass::Target;
use cogvx_graphs::quantized::LinearForm;

/// Rows of a weight, rounded. Values of four bits are two to a byte, the first in the lower half.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rounded {
    /// The values, row by row, each row on whole bytes.
    pub values: Vec<u8>,
    /// What a value is a multiple of: for each row, or for each block of each row.
    pub scales: Vec<f32>,
    /// The value that stands for zero in each block, in as many bits as values; empty where values are symmetric.
    pub zero_points: Vec<u8>,
}

/// Rows of `width` numbers of a weight, in the values of `form` on `target`.
#[must_use]
pub fn round(form: LinearForm, target: Target, rows: &[f32], width: usize) -> Rounded {
    match form {
        LinearForm::Blocks { bits, block, .. } if target == Target::TensorRt => {
            rows_to_signed_blocks(rows, width, bits, block)
        }
        LinearForm::Blocks { bits, block, symmetric } => rows_to_blocks(rows, width, bits, block, symmetric),
        LinearForm::PerToken | LinearForm::PerTensor { .. } | LinearForm::Float8 { .. } => rows_to_int8(rows, width),
    }
}

/// The numbers that the values of `form` for rows of `width` numbers stand for.
#[must_use]
pub fn restore(form: LinearForm, target: Target, rows: &[f32], width: usize) -> Vec<f32> {
    let rounded = round(form, target, rows, width);
    let (bits, block, middle) = match form {
        LinearForm::Blocks { bits, block, .. } => {
            (bits, block, if target == Target::TensorRt { 0 } else { 1 << (bits - 1) })
        }
        _ => (8, width, 0_u8),
    };
    let unpack = |bytes: &[u8]| -> Vec<u8> {
        if bits == 8 { bytes.to_vec() } else { bytes.iter().flat_map(|b| [b & 15, b >> 4]).collect() }
    };
    let (values, zeros) = (unpack(&rounded.values), unpack(&rounded.zero_points));
    let blocks = width.div_ceil(block);
    let (values_a_row, zeros_a_row) = (blocks * block, if bits == 4 { blocks.next_multiple_of(2) } else { blocks });
    let mut numbers = Vec::with_capacity(rows.len());
    for row in 0..rows.len() / width {
        for at in 0..width {
            let value = values[row * values_a_row + at];
            let value = if middle == 0 {
                f32::from(i8::from_le_bytes([value << (8 - bits)]) >> (8 - bits))
            } else {
                f32::from(value) - f32::from(zeros.get(row * zeros_a_row + at / block).copied().unwrap_or(middle))
            };
            numbers.push(value * rounded.scales[row * blocks + at / block]);
        }
    }
    numbers
}

/// Rows of `width` features, as `form` rounds them before it computes.
#[must_use]
pub fn restore_features(form: LinearForm, mut rows: Vec<f32>, width: usize) -> Vec<f32> {
    match form {
        LinearForm::PerToken => {
            for row in rows.chunks_exact_mut(width) {
                let scale = step(largest(row), 127.0);
                for x in row {
                    *x = f32::from(to_i8(*x / scale)) * scale;
                }
            }
        }
        LinearForm::PerTensor { scale, zero_point } => {
            let zero = f32::from(zero_point);
            for x in &mut rows {
                *x = (f32::from(to_u8(*x / scale + zero, 255.0)) - zero) * scale;
            }
        }
        LinearForm::Blocks { .. } | LinearForm::Float8 { .. } => {}
    }
    rows
}

/// Signed 8-bit values of rows of `width` numbers, with a scale for each row; -128 is not used.
#[must_use]
pub fn rows_to_int8(rows: &[f32], width: usize) -> Rounded {
    let mut rounded = Rounded::default();
    rounded.values.reserve(rows.len());
    for row in rows.chunks_exact(width) {
        let scale = step(largest(row), 127.0);
        let inverse = 1.0 / scale;
        rounded.values.extend(row.iter().map(|x| to_i8(x * inverse).to_le_bytes()[0]));
        rounded.scales.push(scale);
    }
    rounded
}

/// Unsigned values of 8 or 4 bits of rows of `width` numbers, with a scale for each `block` of a row. The last block of a row is
/// filled up with zeros.
///
/// # Panics
/// If `bits` is neither 8 nor 4.
#[must_use]
pub fn rows_to_blocks(rows: &[f32], width: usize, bits: u8, block: usize, symmetric: bool) -> Rounded {
    assert!(bits == 8 || bits == 4, "8 or 4 bits");
    let levels = f32::from(u8::MAX >> (8 - bits));
    let mut rounded = Rounded::default();
    let mut values = vec![0; block];
    for row in rows.chunks_exact(width) {
        let mut zero_points = vec![];
        for numbers in row.chunks(block) {
            let (scale, zero) =
                if symmetric { symmetric_step(numbers, levels) } else { step_and_zero(numbers, levels) };
            let inverse = 1.0 / scale;
            values.fill(to_u8(zero, levels));
            for (value, x) in values.iter_mut().zip(numbers) {
                *value = to_u8(x * inverse + zero, levels);
            }
            pack(&values, bits, &mut rounded.values);
            rounded.scales.push(scale);
            zero_points.push(to_u8(zero, levels));
        }
        if !symmetric {
            pack(&zero_points, bits, &mut rounded.zero_points);
        }
    }
    rounded
}

/// Signed values of 8 or 4 bits of rows of `width` numbers, with a positive scale for each `block` of a row; the least value is
/// not used. Blocks must fill rows.
#[must_use]
pub fn rows_to_signed_blocks(rows: &[f32], width: usize, bits: u8, block: usize) -> Rounded {
    debug_assert!(width.is_multiple_of(block), "blocks fill rows");
    let most = f32::from(i8::MAX >> (8 - bits));
    let mut rounded = Rounded::default();
    for numbers in rows.chunks_exact(block) {
        let scale = step(largest(numbers), most);
        let inverse = 1.0 / scale;
        let byte = |x: &f32| to_i8((x * inverse).clamp(-most, most)).to_le_bytes()[0] & (u8::MAX >> (8 - bits));
        pack(&numbers.iter().map(byte).collect::<Vec<_>>(), bits, &mut rounded.values);
        rounded.scales.push(scale);
    }
    rounded
}

/// The largest magnitude.
fn largest(numbers: &[f32]) -> f32 {
    numbers.iter().fold(0.0, |largest: f32, x| largest.max(x.abs()))
}

/// A scale that reaches `magnitude` with `values`; 1 where all is zero.
fn step(magnitude: f32, values: f32) -> f32 {
    let step = magnitude / values;
    if step.is_normal() { step } else { 1.0 }
}

/// The number of largest magnitude becomes the value of which there is one more, 0: its sign is the scale's.
fn symmetric_step(numbers: &[f32], levels: f32) -> (f32, f32) {
    let middle = levels.mul_add(0.5, 0.5);
    let extreme = numbers.iter().fold(0.0_f32, |extreme, &x| if x.abs() > extreme.abs() { x } else { extreme });
    (-extreme.signum() * step(extreme.abs(), middle), middle)
}

/// From the least to the greatest number, zero among them.
fn step_and_zero(numbers: &[f32], levels: f32) -> (f32, f32) {
    let (least, greatest) = numbers.iter().fold((0.0_f32, 0.0_f32), |(a, b), &x| (a.min(x), b.max(x)));
    let step = step(greatest - least, levels);
    (step, (-least / step).round().clamp(0.0, levels))
}

#[allow(clippy::cast_possible_truncation)] // Clamped.
fn to_i8(x: f32) -> i8 {
    x.round_ties_even().clamp(-127.0, 127.0) as i8
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
fn to_u8(x: f32, levels: f32) -> u8 {
    x.round_ties_even().clamp(0.0, levels) as u8
}

/// Values of `bits` bits as bytes; an odd last one stands alone.
fn pack(values: &[u8], bits: u8, out: &mut Vec<u8>) {
    if bits == 8 {
        out.extend_from_slice(values);
    } else {
        out.extend(values.chunks(2).map(|pair| pair[0] | pair.get(1).map_or(0, |high| high << 4)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Uneven numbers of both signs, the same each time.
    fn numbers(n: usize) -> Vec<f32> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(i16::from_le_bytes([state.to_le_bytes()[2], state.to_le_bytes()[3]])) / 8192.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn unpack(bytes: &[u8], bits: u8) -> Vec<u8> {
        if bits == 8 { bytes.to_vec() } else { bytes.iter().flat_map(|b| [b & 15, b >> 4]).collect() }
    }

    #[test]
    fn int8_rows_are_within_half_a_step() {
        let rows = numbers(5 * 33);
        let rounded = rows_to_int8(&rows, 33);
        for (i, x) in rows.iter().enumerate() {
            let (scale, value) = (rounded.scales[i / 33], i8::from_le_bytes([rounded.values[i]]));
            assert!((f32::from(value) * scale - x).abs() <= 0.5001 * scale, "{i}");
        }
    }

    #[test]
    fn blocks_are_within_half_a_step_and_the_last_one_is_filled_with_zero() {
        // 40 numbers are two blocks and a half.
        let rows = numbers(3 * 40);
        for bits in [8, 4] {
            for symmetric in [true, false] {
                let rounded = rows_to_blocks(&rows, 40, bits, 16, symmetric);
                let (values, zeros) = (unpack(&rounded.values, bits), unpack(&rounded.zero_points, bits));
                // Three blocks a row; zero points of a row fill whole bytes.
                let zeros_a_row = if bits == 4 { 4 } else { 3 };
                for row in 0..3 {
                    for at in 0..48 {
                        let scale = rounded.scales[row * 3 + at / 16];
                        let zero = match zeros.get(row * zeros_a_row + at / 16) {
                            Some(&zero) => f32::from(zero),
                            None => f32::from(1_u8 << (bits - 1)),
                        };
                        let found = (f32::from(values[row * 48 + at]) - zero) * scale;
                        let expected = if at < 40 { rows[row * 40 + at] } else { 0.0 };
                        // Symmetric values have one more on the side of the largest magnitude than on the other.
                        let most = if symmetric { 1.0 } else { 0.5001 };
                        assert!((found - expected).abs() <= most * scale.abs(), "{bits} {symmetric} {row} {at}");
                    }
                }
            }
        }
    }

    #[test]
    fn signed_blocks_are_within_half_a_step() {
        let rows = numbers(2 * 64);
        for bits in [8, 4] {
            let rounded = rows_to_signed_blocks(&rows, 64, bits, 32);
            for (i, (value, x)) in unpack(&rounded.values, bits).into_iter().zip(&rows).enumerate() {
                let value = i8::from_le_bytes([value << (8 - bits)]) >> (8 - bits);
                let scale = rounded.scales[i / 32];
                assert!((f32::from(value) * scale - x).abs() <= 0.5001 * scale, "{bits} {i}");
            }
        }
    }

    #[test]
    fn rows_of_zeros_stay_zero() {
        let zeros = [0.0; 32];
        assert_eq!(rows_to_int8(&zeros, 32), Rounded { values: vec![0; 32], scales: vec![1.0], zero_points: vec![] });
        let blocks = rows_to_blocks(&zeros, 32, 4, 32, false);
        assert_eq!((blocks.values, blocks.zero_points), (vec![0; 16], vec![0]));
    }
}
