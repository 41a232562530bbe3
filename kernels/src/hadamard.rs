//! Rotation by Hadamard's matrix, which spreads what is large in one number over many.

/// Turn each row of `width` numbers: seen as `[order, width / order]`, it is multiplied by Sylvester's Hadamard matrix of that
/// order over the root of it, which keeps lengths and is its own inverse. An order of 1 leaves all as it is.
///
/// # Panics
/// An order that is no power of two, or does not divide `width`.
pub fn rotate(rows: &mut [f32], width: usize, order: usize) {
    assert!(fits(width, order), "{width} numbers cannot be turned by an order of {order}");
    if order > 1 {
        pulp::Arch::new().dispatch(|| rows.chunks_exact_mut(width).for_each(|row| rotate_row(row, order)));
    }
}

/// Whether rows of `width` numbers can be turned by a matrix of this order.
#[must_use]
pub const fn fits(width: usize, order: usize) -> bool {
    order.is_power_of_two() && width.is_multiple_of(order)
}

/// One row that fits, in code for the processor's vectors.
#[inline(always)]
pub(crate) fn rotate_row(row: &mut [f32], order: usize) {
    if order == 1 {
        return;
    }
    let mut half = row.len() / order;
    while half < row.len() {
        for pair in row.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
    #[allow(clippy::cast_precision_loss)] // Orders are far below 2^24.
    let factor = 1.0 / (order as f32).sqrt();
    for x in row {
        *x *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_the_product_with_the_matrix() {
        for (width, order) in [(1, 1), (6, 2), (64, 64), (96, 32), (1920, 64)] {
            let apart = width / order;
            let row: Vec<f32> = (0..width).map(|i| f32::from(u8::try_from(i * 37 % 101).unwrap_or(0)) - 50.0).collect();
            let mut turned = [&row[..], &row].concat();
            rotate(&mut turned, width, order);
            for (i, found) in turned.iter().enumerate() {
                let (i, rest) = (i % width / apart, i % apart);
                let sign = |j: usize| if (i & j).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
                let sum: f64 = (0..order).map(|j| sign(j) * f64::from(row[j * apart + rest])).sum();
                let expected = sum / f64::from(u32::try_from(order).unwrap_or(1)).sqrt();
                assert!((f64::from(*found) - expected).abs() < 1e-3, "{width} {order} {i}: {found} {expected}");
            }
            rotate(&mut turned, width, order);
            assert!(turned.iter().zip(row.iter().cycle()).all(|(a, b)| (a - b).abs() < 1e-3));
        }
    }

    #[test]
    #[should_panic(expected = "cannot be turned")]
    fn refuses_what_does_not_divide_a_row() {
        rotate(&mut [0.0; 6], 6, 4);
    }
}
