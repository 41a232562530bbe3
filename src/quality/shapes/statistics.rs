//! Medians and quantiles with numpy's interpolation.

/// Mean; of nothing, not a number.
pub(super) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "few values")]
    let count = values.len() as f64;
    values.sum::<f64>() / count
}

/// Floating point as far as [`quantile`] needs it; it rounds where numpy does, which keeps to the array's type.
pub(super) trait Real: Copy + PartialOrd + std::ops::Sub<Output = Self> + std::ops::Add<Output = Self> {
    fn times(self, factor: f64) -> Self;
}

impl Real for f64 {
    fn times(self, factor: f64) -> Self {
        self * factor
    }
}

impl Real for f32 {
    #[expect(clippy::cast_possible_truncation, reason = "numpy rounds the weight to the array's type")]
    fn times(self, factor: f64) -> Self {
        self * factor as f32
    }
}

/// The middle of the values, or the mean of the two in the middle (`numpy.median`).
///
/// # Panics
/// If there are none.
pub(super) fn median(mut values: Vec<f32>) -> f32 {
    let middle = values.len() / 2;
    values.sort_unstable_by(f32::total_cmp);
    if values.len() % 2 == 1 { values[middle] } else { f32::midpoint(values[middle - 1], values[middle]) }
}

/// The `q`-th quantile of values without NaN, linear between neighbours (`numpy.quantile`'s default).
///
/// # Panics
/// If there are no values.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "indices")]
pub(super) fn quantile<T: Real>(mut values: Vec<T>, q: f64) -> T {
    values.sort_unstable_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let last = values.len() - 1;
    let place = last as f64 * q;
    let below = (place as usize).min(last);
    let share = place - below as f64;
    let (a, b) = (values[below], values[(below + 1).min(last)]);
    // As numpy, from the nearer neighbour.
    if share >= 0.5 { b - (b - a).times(1.0 - share) } else { a + (b - a).times(share) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_numpys() {
        // numpy.quantile(v, q) of v = [3, 1, 4, 1, 5, 9, 2.5]
        let values = vec![3.0, 1.0, 4.0, 1.0, 5.0, 9.0, 2.5];
        for (q, expected) in [(0.0, 1.0), (0.01, 1.0), (0.3, 2.2), (0.5, 3.0), (0.9, 6.6), (0.99, 8.76), (1.0, 9.0)] {
            let found: f64 = quantile(values.clone(), q);
            assert!((found - expected).abs() < 1e-12, "{q}: expected {expected}, found {found}");
        }
        assert_eq!(quantile(vec![7.0_f32], 0.98).to_bits(), 7.0_f32.to_bits());
    }

    #[test]
    fn medians_are_numpys() {
        assert_eq!(median(vec![4.0, 1.0, 3.0]).to_bits(), 3.0_f32.to_bits());
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]).to_bits(), 2.5_f32.to_bits());
    }
}
