//! Colours for numbers.

/// Colours from the least to the greatest number, evenly apart: those of matplotlib's "viridis".
const COLOURS: [[f32; 3]; 6] = [
    [68.0, 1.0, 84.0],
    [65.0, 68.0, 135.0],
    [42.0, 120.0, 142.0],
    [34.0, 168.0, 132.0],
    [122.0, 209.0, 81.0],
    [253.0, 231.0, 37.0],
];

/// The colour of a number between `low` and `high`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)] // Bounded.
pub(super) fn colour(x: f32, [low, high]: [f32; 2]) -> [u8; 3] {
    let share = ((x - low) / (high - low).max(f32::MIN_POSITIVE)).clamp(0.0, 1.0);
    let share = if share.is_finite() { share } else { 0.0 };
    let place = share * (COLOURS.len() - 1) as f32;
    let first = (place as usize).min(COLOURS.len() - 2);
    let rest = place - first as f32;
    [0, 1, 2].map(|i| (COLOURS[first][i] * (1.0 - rest) + COLOURS[first + 1][i] * rest).round() as u8)
}

/// The least and the greatest of the finite numbers.
pub(super) fn bounds(numbers: impl Iterator<Item = f32>) -> [f32; 2] {
    numbers
        .filter(|x| x.is_finite())
        .fold([f32::INFINITY, f32::NEG_INFINITY], |[low, high], x| [low.min(x), high.max(x)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_have_the_first_and_the_last_colour() {
        assert_eq!(colour(-1.0, [-1.0, 3.0]), [68, 1, 84]);
        assert_eq!(colour(3.0, [-1.0, 3.0]), [253, 231, 37]);
        assert_eq!(colour(9.0, [-1.0, 3.0]), [253, 231, 37]);
        assert_eq!(colour(f32::NAN, [0.0, 1.0]), [68, 1, 84]);
        let found = bounds([2.0, f32::NAN, -1.0, f32::INFINITY].into_iter());
        assert_eq!(found.map(f32::to_bits), [-1.0_f32, 2.0].map(f32::to_bits));
    }
}
