//! Pillow's Lanczos resize of 8-bit images, to the bit: no crate rounds where Pillow does, and a model's input should not
//! depend on who resized it (Pillow 13, `src/libImaging/Resample.c`).

/// Lobes of the filter.
const LOBES: f64 = 3.0;
/// Bits after the point of a weight.
const PRECISION: u32 = 22;

/// Bytes `[height, width, 3]` resized from one `[height, width]` to another.
///
/// # Panics
/// If there are not `height * width * 3` bytes.
#[must_use]
pub fn resize(pixels: &[u8], from: [usize; 2], to: [usize; 2]) -> Vec<u8> {
    let [rows, columns] = from;
    assert_eq!(pixels.len(), rows * columns * 3, "three bytes a pixel");
    let [new_rows, new_columns] = to;
    // Whichever axis loses clearly more goes first.
    let lost_rows = rows.saturating_sub(new_rows);
    if lost_rows > 0 && lost_rows > 2 * columns.saturating_sub(new_columns) {
        let shorter = vertically(pixels, from, new_rows);
        return horizontally(&shorter, [new_rows, columns], new_columns);
    }
    let narrower = horizontally(pixels, from, new_columns);
    vertically(&narrower, [rows, new_columns], new_rows)
}

fn horizontally(pixels: &[u8], [rows, columns]: [usize; 2], to: usize) -> Vec<u8> {
    if columns == to {
        return pixels.to_vec();
    }
    let windows = windows(columns, to);
    let mut out = Vec::with_capacity(rows * to * 3);
    for row in pixels.chunks_exact(columns * 3) {
        for window in &windows {
            out.extend((0..3).map(|channel| window.sum(|i| row[i * 3 + channel])));
        }
    }
    out
}

fn vertically(pixels: &[u8], [rows, columns]: [usize; 2], to: usize) -> Vec<u8> {
    if rows == to {
        return pixels.to_vec();
    }
    let stride = columns * 3;
    let mut out = Vec::with_capacity(to * stride);
    for window in windows(rows, to) {
        out.extend((0..stride).map(|x| window.sum(|i| pixels[i * stride + x])));
    }
    out
}

/// The elements one result is made of.
struct Window {
    first: usize,
    /// Fixed-point weights of the elements from `first` on.
    weights: Vec<i64>,
}

impl Window {
    fn sum(&self, pixel: impl Fn(usize) -> u8) -> u8 {
        let products = self.weights.iter().enumerate().map(|(i, weight)| weight * i64::from(pixel(self.first + i)));
        let sum = (1 << (PRECISION - 1)) + products.sum::<i64>();
        u8::try_from((sum >> PRECISION).clamp(0, 255)).unwrap_or(u8::MAX)
    }
}

/// Window of each of `to` results from `from` elements.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "sides of images"
)]
fn windows(from: usize, to: usize) -> Vec<Window> {
    let scale = from as f64 / to as f64;
    let stretch = scale.max(1.0);
    let support = LOBES * stretch;
    let window = |result: usize| {
        let centre = (result as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(from);
        let weights: Vec<_> = (first..end).map(|i| lanczos((i as f64 - centre + 0.5) / stretch)).collect();
        let total: f64 = weights.iter().sum();
        let fixed = |weight: f64| (weight / total * f64::from(1 << PRECISION)).round() as i64;
        Window { first, weights: weights.into_iter().map(fixed).collect() }
    };
    (0..to).map(window).collect()
}

fn lanczos(x: f64) -> f64 {
    let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * std::f64::consts::PI).sin() / (x * std::f64::consts::PI) };
    if (-LOBES..LOBES).contains(&x) { sinc(x) * sinc(x / LOBES) } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::resize;

    #[test]
    fn a_flat_image_stays_flat_and_the_same_size_is_a_copy() {
        assert_eq!(resize(&[77; 5 * 7 * 3], [5, 7], [3, 11]), vec![77; 3 * 11 * 3]);
        let ramp: Vec<u8> = (0..5 * 7 * 3).collect();
        assert_eq!(resize(&ramp, [5, 7], [5, 7]), ramp);
    }
}
