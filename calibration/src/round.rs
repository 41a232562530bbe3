//! Weights and features in few bits.

use std::borrow::Cow;

use cogvx_graphs::DType;
use cogvx_graphs::pass::Target;
use cogvx_graphs::quantized::LinearForm;
use cogvx_kernels::hadamard::rotate;
use half::{bf16, f16};

use crate::compensate::Compensation;
use crate::float8;

/// Rows of a weight, rounded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rounded {
    /// The values, row by row, each row on whole bytes; those of four bits are two to a byte, the first in the lower half.
    pub values: Vec<u8>,
    /// What a value is a multiple of: for each row, or for each block of each row.
    pub scales: Vec<f32>,
    /// The value that stands for zero in each block, packed as values are; empty where the graph says it for all.
    pub zero_points: Vec<u8>,
    /// The bias of each row, in steps of the products of values; empty where the layer adds a float one.
    pub bias: Vec<i32>,
}

/// The values a form has for weights.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Grid {
    /// Columns that share a scale.
    block: usize,
    levels: Levels,
    /// Whether a row is filled up to whole blocks.
    filled: bool,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Levels {
    /// From `-most` to `most`.
    Signed { bits: u8 },
    /// From 0 up, zero in the middle.
    Middle { bits: u8 },
    /// From 0 up, each block with its own zero.
    Shifted { bits: u8 },
    /// Eight-bit floating point.
    Float8,
}

impl Grid {
    fn of(form: LinearForm, target: Target, width: usize) -> Self {
        let (block, levels) = match form {
            LinearForm::Blocks { bits, block, .. } if target == Target::TensorRt => (block, Levels::Signed { bits }),
            LinearForm::Blocks { bits, block, symmetric: true } => (block, Levels::Middle { bits }),
            LinearForm::Blocks { bits, block, symmetric: false } => (block, Levels::Shifted { bits }),
            LinearForm::PerToken { .. } | LinearForm::PerTensor { .. } => (width, Levels::Signed { bits: 8 }),
            LinearForm::Float8 { .. } => (width, Levels::Float8),
        };
        Self { block, levels, filled: matches!(levels, Levels::Middle { .. } | Levels::Shifted { .. }) }
    }
}

impl Levels {
    fn bits(self) -> u8 {
        match self {
            Self::Signed { bits } | Self::Middle { bits } | Self::Shifted { bits } => bits,
            Self::Float8 => 8,
        }
    }

    /// Scale and zero point for these numbers.
    fn scale(self, numbers: &[f32]) -> (f32, f32) {
        let [below, above] = magnitudes(numbers);
        match self {
            Self::Signed { bits } => (step(below.max(above), signed_most(bits)), 0.0),
            Self::Middle { bits } => {
                // The number of largest magnitude becomes the value of which there is one more, 0: its sign is the scale's.
                let middle = f32::from(1_u8 << (bits - 1));
                let largest = below.max(above);
                let is_first_below =
                    || numbers.iter().find(|x| x.abs().total_cmp(&largest).is_eq()).is_some_and(|x| *x < 0.0);
                let is_below = below > above || below.total_cmp(&above).is_eq() && is_first_below();
                let sign = if is_below { 1.0 } else { -1.0 };
                (sign * step(largest, middle), middle)
            }
            Self::Shifted { bits } => {
                let most = unsigned_most(bits);
                let step = step(above + below, most);
                (step, (below / step).round().clamp(0.0, most))
            }
            Self::Float8 => (step(below.max(above), float8::MOST), 0.0),
        }
    }

    /// The value nearest to a number of scales beyond zero, as its byte, and what it stands for in scales.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
    fn value(self, scales: f32, zero: f32) -> (u8, f32) {
        match self {
            Self::Signed { bits } => {
                let value = scales.round_ties_even().clamp(-signed_most(bits), signed_most(bits));
                ((value as i8).to_le_bytes()[0] & (u8::MAX >> (8 - bits)), value)
            }
            Self::Middle { bits } | Self::Shifted { bits } => {
                let value = (scales + zero).round_ties_even().clamp(0.0, unsigned_most(bits));
                (value as u8, value - zero)
            }
            Self::Float8 => {
                let byte = float8::encode(scales);
                (byte, float8::decode(byte))
            }
        }
    }
}

/// Added to a number below 2^22, it leaves the number rounded to even in the lowest bits.
const ROUNDER: f32 = 12_582_912.0;

/// Numbers looked at together: so many as one instruction takes, a few times.
const LANES: usize = 16;

/// Bytes of the values nearest to `numbers` divided by a scale and shifted by `zero`, without branches, so that the compiler
/// does several at once: the same as [`Levels::value`] one by one.
pub(crate) fn values(numbers: &[f32], inverse: f32, zero: f32, [least, most]: [f32; 2], mask: u8, out: &mut Vec<u8>) {
    let byte = |x: f32| {
        let value = x * inverse + zero;
        let value = if value.is_nan() { 0.0 } else { value };
        let value = if value < least { least } else { value };
        let value = if value > most { most } else { value };
        (value + ROUNDER).to_bits().to_le_bytes()[0] & mask
    };
    let (groups, rest) = numbers.as_chunks::<LANES>();
    out.reserve(numbers.len());
    for group in groups {
        out.extend_from_slice(&group.map(byte));
    }
    out.extend(rest.iter().map(|&x| byte(x)));
}

/// The largest magnitudes of the numbers below and above zero. NaN is left out.
fn magnitudes(numbers: &[f32]) -> [f32; 2] {
    [greatest(numbers, |x| -x), greatest(numbers, |x| x)]
}

/// The greatest of what `of` makes of the numbers, and zero. NaN is left out.
fn greatest(numbers: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    // Not `f32::max`, which takes longer: no comparison holds for NaN.
    let greater = |x: f32, most: f32| if x > most { x } else { most };
    let (groups, rest) = numbers.as_chunks::<LANES>();
    // Of each lane, for the compiler keeps the order in which floats are compared.
    let mut lanes = [0.0; LANES];
    for group in groups {
        lanes.iter_mut().zip(group).for_each(|(most, &x)| *most = greater(of(x), *most));
    }
    let lanes = lanes.iter().fold(0.0, |most, &x| greater(x, most));
    rest.iter().fold(lanes, |most, &x| greater(of(x), most))
}

fn signed_most(bits: u8) -> f32 {
    f32::from(i8::MAX >> (8 - bits))
}

fn unsigned_most(bits: u8) -> f32 {
    f32::from(u8::MAX >> (8 - bits))
}

/// A scale as elements of `stored` hold it: values are rounded by what they will be multiplied with.
fn held(scale: f32, stored: DType) -> f32 {
    let held = match stored {
        DType::F16 => f16::from_f32(scale).to_f32(),
        DType::BF16 => bf16::from_f32(scale).to_f32(),
        _ => scale,
    };
    // One too small for 16 bits is the least there is.
    if held == 0.0 { f16::from_bits(1).to_f32().copysign(scale) } else { held }
}

/// Round rows of `width` numbers of a weight to the values of `form` on `target`, with scales that are `stored`. With a
/// compensation, by features [`turned`] as the form says, the error of each column is made up for by the columns after it.
#[must_use]
pub fn round(
    (form, target, stored): (LinearForm, Target, DType),
    rows: &[f32],
    width: usize,
    compensation: Option<&Compensation>,
) -> Rounded {
    let mut rounded = Rounded::default();
    let rows = &*turned(form, rows, width);
    let grid = Grid::of(form, target, width);
    if compensation.is_none() && grid.levels != Levels::Float8 {
        round_alone((grid, stored), rows, width, &mut rounded);
        return rounded;
    }
    each((form, target, stored), rows, width, compensation, |grid, row| {
        rounded.scales.extend(row.grids.iter().map(|(scale, _)| scale));
        let bits = grid.levels.bits();
        pack(&row.values, bits, &mut rounded.values);
        if let Levels::Shifted { .. } = grid.levels {
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A value.
            let zeros: Vec<_> = row.grids.iter().map(|&(_, zero)| zero as u8).collect();
            pack(&zeros, bits, &mut rounded.zero_points);
        }
    });
    rounded
}

/// Round rows of `width` numbers whose errors nothing makes up for.
fn round_alone((grid, stored): (Grid, DType), rows: &[f32], width: usize, out: &mut Rounded) {
    let bits = grid.levels.bits();
    let (range, mask) = match grid.levels {
        Levels::Signed { .. } | Levels::Float8 => ([-signed_most(bits), signed_most(bits)], u8::MAX >> (8 - bits)),
        Levels::Middle { .. } | Levels::Shifted { .. } => ([0.0, unsigned_most(bits)], u8::MAX),
    };
    let mut row = vec![];
    let mut zeros = vec![];
    out.values.reserve(rows.len() * usize::from(bits) / 8);
    for numbers in rows.chunks_exact(width) {
        row.clear();
        zeros.clear();
        for (i, block) in numbers.chunks(grid.block).enumerate() {
            let (scale, zero) = grid.levels.scale(block);
            let scale = held(scale, stored);
            out.scales.push(scale);
            values(block, 1.0 / scale, zero, range, mask, &mut row);
            if grid.filled {
                row.resize((i + 1) * grid.block, grid.levels.value(0.0, zero).0);
            }
            if let Levels::Shifted { .. } = grid.levels {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A value.
                zeros.push(zero as u8);
            }
        }
        pack(&row, bits, &mut out.values);
        pack(&zeros, bits, &mut out.zero_points);
    }
}

/// The numbers that the values of `form` for rows of `width` numbers stand for.
#[must_use]
pub fn restore(form: LinearForm, target: Target, rows: &[f32], width: usize) -> Vec<f32> {
    let mut numbers = Vec::with_capacity(rows.len());
    let rows = &*turned(form, rows, width);
    each((form, target, DType::F32), rows, width, None, |_, row| numbers.extend_from_slice(&row.numbers));
    // It is its own inverse.
    rotate(&mut numbers, width, form.rotation());
    numbers
}

/// Rows of `width` features or weights, as `form` turns them before they are rounded.
#[must_use]
pub fn turned(form: LinearForm, rows: &[f32], width: usize) -> Cow<'_, [f32]> {
    let mut rows = Cow::Borrowed(rows);
    if form.rotation() > 1 {
        rotate(rows.to_mut(), width, form.rotation());
    }
    rows
}

/// A rounded row.
struct Row {
    /// Values as bytes.
    values: Vec<u8>,
    /// What they stand for.
    numbers: Vec<f32>,
    /// Scale and zero point of each block.
    grids: Vec<(f32, f32)>,
}

fn each(
    (form, target, stored): (LinearForm, Target, DType),
    rows: &[f32],
    width: usize,
    compensation: Option<&Compensation>,
    mut take: impl FnMut(Grid, &Row),
) {
    let grid = Grid::of(form, target, width);
    let mut row = Row { values: vec![], numbers: vec![], grids: vec![] };
    for numbers in rows.chunks_exact(width) {
        row.values.clear();
        row.numbers.clear();
        row.grids.clear();
        let mut compensating = compensation.map(Compensation::start);
        for (i, block) in numbers.chunks(grid.block).enumerate() {
            let (scale, zero) = grid.levels.scale(block);
            let scale = held(scale, stored);
            let inverse = 1.0 / scale;
            row.grids.push((scale, zero));
            for (j, &x) in block.iter().enumerate() {
                let column = i * grid.block + j;
                let wanted = x + compensating.as_ref().map_or(0.0, |c| c.correction(column));
                let (value, stands_for) = grid.levels.value(wanted * inverse, zero);
                let number = stands_for * scale;
                if let Some(compensating) = &mut compensating {
                    compensating.made(column, number - x);
                }
                row.values.push(value);
                row.numbers.push(number);
            }
            if grid.filled {
                row.values.resize((i + 1) * grid.block, grid.levels.value(0.0, zero).0);
            }
        }
        take(grid, &row);
    }
}

/// Rows of `width` features, as `form` rounds them before it computes.
#[must_use]
pub fn restore_features(form: LinearForm, mut rows: Vec<f32>, width: usize) -> Vec<f32> {
    match form {
        LinearForm::PerToken { rotation } => {
            rotate(&mut rows, width, rotation);
            for row in rows.chunks_exact_mut(width) {
                let scale = step(largest(row), signed_most(8));
                for x in row {
                    *x = Levels::Signed { bits: 8 }.value(*x / scale, 0.0).1 * scale;
                }
            }
            rotate(&mut rows, width, rotation);
        }
        LinearForm::PerTensor { scale, zero_point } => {
            for x in &mut rows {
                *x = Levels::Shifted { bits: 8 }.value(*x / scale, zero_point.into()).1 * scale;
            }
        }
        LinearForm::Float8 { scale } => {
            for x in &mut rows {
                *x = Levels::Float8.value(*x / scale, 0.0).1 * scale;
            }
        }
        LinearForm::Blocks { .. } => {}
    }
    rows
}

/// The largest magnitude.
pub(crate) fn largest(numbers: &[f32]) -> f32 {
    let [below, above] = magnitudes(numbers);
    below.max(above)
}

/// A scale that reaches `magnitude` with `values`; 1 where all is zero.
pub(crate) fn step(magnitude: f32, values: f32) -> f32 {
    let step = magnitude / values;
    if step.is_normal() { step } else { 1.0 }
}

/// Values of `bits` bits as bytes; an odd last one stands alone.
fn pack(values: &[u8], bits: u8, out: &mut Vec<u8>) {
    if bits == 8 {
        out.extend_from_slice(values);
    } else {
        let (pairs, last) = values.as_chunks::<2>();
        out.extend(pairs.iter().map(|[low, high]| low | high << 4));
        out.extend(last);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Uneven numbers of both signs, the same each time.
    pub(crate) fn numbers(n: usize) -> Vec<f32> {
        let mut state = 1_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            f32::from(i16::from_le_bytes([state.to_le_bytes()[2], state.to_le_bytes()[3]])) / 8192.0
        };
        (0..n).map(|_| next()).collect()
    }

    /// Every form on the targets it has a layout of its own for.
    fn forms() -> Vec<(LinearForm, Target)> {
        let blocks = |bits, symmetric| LinearForm::Blocks { bits, block: 16, symmetric };
        vec![
            (LinearForm::PerToken { rotation: 1 }, Target::Cpu),
            (blocks(8, true), Target::Cpu),
            (blocks(8, false), Target::Cpu),
            (blocks(4, true), Target::Cpu),
            (blocks(4, false), Target::Cpu),
            (blocks(8, true), Target::TensorRt),
            (blocks(4, true), Target::TensorRt),
        ]
    }

    #[test]
    fn numbers_are_within_half_a_step() {
        let rows = numbers(3 * 48);
        for (form, target) in forms() {
            let rounded = round((form, target, DType::F32), &rows, 48, None);
            let restored = restore(form, target, &rows, 48);
            let block = 48 * 3 / rounded.scales.len();
            for (i, (x, y)) in rows.iter().zip(&restored).enumerate() {
                // Values with zero in the middle have one less on the side of the smaller magnitude.
                let most = if matches!(form, LinearForm::Blocks { symmetric: true, .. }) { 1.0 } else { 0.5001 };
                let scale = rounded.scales[i / block].abs();
                assert!((x - y).abs() <= most * scale, "{form:?} {target:?} {i}: {x} {y} {scale}");
            }
        }
    }

    /// As [`round`], value by value.
    fn round_one_by_one(form: LinearForm, target: Target, rows: &[f32], width: usize) -> Rounded {
        let mut rounded = Rounded::default();
        each((form, target, DType::F32), rows, width, None, |grid, row| {
            let bits = grid.levels.bits();
            rounded.scales.extend(row.grids.iter().map(|(scale, _)| scale));
            pack(&row.values, bits, &mut rounded.values);
            if let Levels::Shifted { .. } = grid.levels {
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // A value.
                pack(
                    &row.grids.iter().map(|&(_, zero)| zero as u8).collect::<Vec<_>>(),
                    bits,
                    &mut rounded.zero_points,
                );
            }
        });
        rounded
    }

    #[test]
    fn many_at_once_round_as_each_alone() {
        let width = 48;
        let mut rows = numbers(16 * width);
        // Halves of steps, both signs of the largest magnitude in either order, numbers that are none, and tiny ones.
        for (i, x) in rows[..width].iter_mut().enumerate() {
            *x = if i == 0 { 127.0 } else { f32::from(u8::try_from(i).unwrap_or(0)) - 20.5 };
        }
        (rows[width + 3], rows[width + 9]) = (8.0, -8.0);
        (rows[2 * width + 3], rows[2 * width + 9]) = (-8.0, 8.0);
        let odd = [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::from_bits(0x7fc0_1234), -0.0, 1e-40];
        rows[3 * width..][..7].copy_from_slice(&odd);
        rows[4 * width..][..width].fill(-0.0);
        rows[5 * width..][..width].iter_mut().for_each(|x| *x *= 1e-41);
        rows[6 * width..][..width].iter_mut().for_each(|x| *x = x.abs());
        rows[7 * width..][..width].iter_mut().for_each(|x| *x = -x.abs() * 1e30);
        for (form, target) in forms() {
            let (fast, slow) =
                (round((form, target, DType::F32), &rows, width, None), round_one_by_one(form, target, &rows, width));
            assert_eq!(fast.values, slow.values, "{form:?} {target:?}");
            assert_eq!([&fast.zero_points], [&slow.zero_points], "{form:?} {target:?}");
            let bits = |scales: &[f32]| scales.iter().map(|s| s.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&fast.scales), bits(&slow.scales), "{form:?} {target:?}");
        }
    }

    #[test]
    fn what_is_turned_before_it_is_rounded_loses_less_to_a_large_feature() {
        let mut rows = numbers(3 * 96);
        rows.iter_mut().step_by(96).for_each(|x| *x = 60.0);
        let lost = |rotation| {
            let form = LinearForm::PerToken { rotation };
            let [weight, features] = [restore(form, Target::Cpu, &rows, 96), restore_features(form, rows.clone(), 96)];
            // Both are rounded alike.
            assert!(weight.iter().zip(&features).all(|(a, b)| (a - b).abs() < 1e-5));
            rows.iter().zip(&weight).map(|(x, y)| (x - y).powi(2)).sum::<f32>()
        };
        assert!(lost(32) < 0.1 * lost(1), "{} {}", lost(32), lost(1));
        // What is stored is what was turned.
        let form = LinearForm::PerToken { rotation: 32 };
        let (rounded, turned) = (round((form, Target::Cpu, DType::F32), &rows, 96, None), turned(form, &rows, 96));
        for (i, x) in turned.iter().enumerate() {
            let y = f32::from(i8::from_le_bytes([rounded.values[i]])) * rounded.scales[i / 96];
            assert!((x - y).abs() <= 0.5001 * rounded.scales[i / 96], "{i}: {x} {y}");
        }
    }

    #[test]
    fn scales_are_of_the_extremes() {
        let scale = |levels: Levels, numbers: &[f32]| levels.scale(numbers);
        let (signed, middle, shifted) =
            (Levels::Signed { bits: 8 }, Levels::Middle { bits: 8 }, Levels::Shifted { bits: 8 });
        assert_eq!(scale(signed, &[1.0, f32::NAN, -254.0]), (2.0, 0.0));
        assert_eq!(scale(middle, &[1.0, -256.0, 256.0]), (2.0, 128.0));
        assert_eq!(scale(middle, &[1.0, 256.0, -256.0]), (-2.0, 128.0));
        assert_eq!(scale(middle, &[0.0, -0.0]), (-1.0, 128.0));
        assert_eq!(scale(shifted, &[-10.0, 500.0]), (2.0, 5.0));
        assert_eq!(scale(shifted, &[1.0, 510.0]), (2.0, 0.0));
        assert_eq!(scale(shifted, &[-510.0]), (2.0, 255.0));
    }

    #[test]
    fn values_are_multiples_of_the_scales_that_are_stored() {
        // Scales near the end of what `f16` holds, where it is coarse.
        let rows: Vec<_> = numbers(3 * 48).iter().map(|x| x * 1e-5).collect();
        let form = LinearForm::Blocks { bits: 8, block: 16, symmetric: true };
        for stored in [DType::F16, DType::BF16] {
            let rounded = round((form, Target::TensorRt, stored), &rows, 48, None);
            for (i, x) in rows.iter().enumerate() {
                let scale = rounded.scales[i / 16];
                assert!((scale - held(scale, stored)).abs() < f32::MIN_POSITIVE, "{stored}: {scale}");
                let y = f32::from(i8::from_le_bytes([rounded.values[i]])) * scale;
                // The largest may be cut off by what the scale was rounded down.
                let rest = if rounded.values[i] == 127 || rounded.values[i] == 129 { 127.0 * 2e-8 } else { 0.0 };
                assert!((x - y).abs() <= 0.5001 * scale + rest, "{stored} {i}: {x} {y} {scale}");
            }
        }
    }

    #[test]
    fn rows_are_filled_up_to_whole_blocks_of_zero() {
        // Two blocks and a half: 48 values of four bits are 24 bytes, three zero points two bytes.
        let form = LinearForm::Blocks { bits: 4, block: 16, symmetric: false };
        let rounded = round((form, Target::Cpu, DType::F32), &numbers(40), 40, None);
        assert_eq!([rounded.values.len(), rounded.scales.len(), rounded.zero_points.len()], [24, 3, 2]);
        let zero = rounded.zero_points[1] & 15;
        assert_eq!(rounded.values[20..], [zero | zero << 4; 4]);
    }

    #[test]
    fn rows_of_zeros_stay_zero() {
        for (form, target) in forms() {
            assert_eq!(restore(form, target, &[0.0; 48], 48), [0.0; 48], "{form:?} {target:?}");
        }
        let rounded = round((LinearForm::PerToken { rotation: 1 }, Target::Cpu, DType::F32), &[0.0; 32], 32, None);
        assert_eq!(rounded, Rounded { values: vec![0; 32], scales: vec![1.0], ..Rounded::default() });
    }
}
