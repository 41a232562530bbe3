//! Measures of difference between tensors and between frames.

/// How far `found` is from `expected`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Difference {
    /// Largest absolute difference.
    pub max_abs: f64,
    /// `|found - expected| / |expected|` in the Euclidean norm; 0 if both are zero.
    pub relative_l2: f64,
    /// Cosine of the angle between them; 1 if both are zero.
    pub cosine: f64,
}

/// Compare two tensors of equally many elements. NaN anywhere makes every figure NaN.
///
/// # Panics
/// If the lengths differ.
#[must_use]
pub fn difference(found: &[f32], expected: &[f32]) -> Difference {
    assert_eq!(found.len(), expected.len(), "tensors of the same shape");
    let (mut max_abs, mut error, mut dot, mut norm, mut expected_norm) = (0.0_f64, 0.0, 0.0, 0.0, 0.0);
    for (&a, &b) in found.iter().zip(expected) {
        let (a, b) = (f64::from(a), f64::from(b));
        let d = (a - b).abs();
        // `f64::max` would pass over NaN.
        max_abs = if d > max_abs || d.is_nan() { d } else { max_abs };
        error += d * d;
        dot += a * b;
        norm += a * a;
        expected_norm += b * b;
    }
    if norm == 0.0 && expected_norm == 0.0 {
        return Difference { max_abs, relative_l2: 0.0, cosine: 1.0 };
    }
    let relative_l2 = (error / expected_norm).sqrt();
    Difference { max_abs, relative_l2, cosine: dot / (norm * expected_norm).sqrt() }
}

/// Peak signal-to-noise ratio in dB of values in 0..1; infinite if they are equal.
///
/// # Panics
/// If the lengths differ.
#[must_use]
#[allow(clippy::cast_precision_loss)] // Far fewer than 2^52 values.
pub fn psnr(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len(), "frames of the same shape");
    let square = |(&a, &b): (&f32, &f32)| (f64::from(a) - f64::from(b)).powi(2);
    let mean = found.iter().zip(expected).map(square).sum::<f64>() / found.len() as f64;
    -10.0 * mean.log10()
}

/// Side of the window of [`ssim`] and its standard deviation (Wang et al. 2004).
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;

/// Structural similarity of two frames `[height, width, channels]` in 0..1: Gaussian windows of 11, averaged over the positions
/// where the window fits and over channels (Wang et al. 2004). Frames smaller than the window have none.
///
/// # Panics
/// If a frame has not `height * width * channels` values.
#[must_use]
#[allow(clippy::cast_precision_loss)] // Far fewer than 2^52 positions.
pub fn ssim(found: &[f32], expected: &[f32], [height, width, channels]: [usize; 3]) -> Option<f64> {
    assert!([found.len(), expected.len()] == [height * width * channels; 2], "frames of the same shape");
    if height < WINDOW || width < WINDOW {
        return None;
    }
    let (c1, c2) = (0.01_f64.powi(2), 0.03_f64.powi(2));
    let mut sum = 0.0;
    for channel in 0..channels {
        let plane = |f: fn(f64, f64) -> f64| -> Vec<f64> {
            let pixels = found.iter().zip(expected).skip(channel).step_by(channels);
            blur(&pixels.map(|(&a, &b)| f(a.into(), b.into())).collect::<Vec<_>>(), height, width)
        };
        let (a, b) = (plane(|a, _| a), plane(|_, b| b));
        let (aa, bb, ab) = (plane(|a, _| a * a), plane(|_, b| b * b), plane(|a, b| a * b));
        for i in 0..a.len() {
            let (var_a, var_b, cov) = (aa[i] - a[i] * a[i], bb[i] - b[i] * b[i], ab[i] - a[i] * b[i]);
            sum +=
                (2.0 * a[i] * b[i] + c1) * (2.0 * cov + c2) / ((a[i] * a[i] + b[i] * b[i] + c1) * (var_a + var_b + c2));
        }
    }
    let positions = (height - WINDOW + 1) * (width - WINDOW + 1) * channels;
    Some(sum / positions as f64)
}

/// Gaussian means of every window that fits into the plane.
#[allow(clippy::cast_precision_loss)] // Window positions are small.
fn blur(plane: &[f64], height: usize, width: usize) -> Vec<f64> {
    let weight = |i: usize| (-(i as f64 - (WINDOW / 2) as f64).powi(2) / (2.0 * SIGMA * SIGMA)).exp();
    let total: f64 = (0..WINDOW).map(weight).sum();
    let kernel: Vec<_> = (0..WINDOW).map(|i| weight(i) / total).collect();
    let mean = |values: &mut dyn Iterator<Item = f64>| values.zip(&kernel).map(|(v, k)| v * k).sum::<f64>();
    let out_width = width - WINDOW + 1;
    let rows: Vec<f64> = (0..height * out_width)
        .map(|i| mean(&mut plane[i / out_width * width + i % out_width..].iter().copied()))
        .collect();
    (0..(height - WINDOW + 1) * out_width).map(|i| mean(&mut rows[i..].iter().step_by(out_width).copied())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn differences_are_those_of_the_definitions() {
        let d = difference(&[3.0, 4.0], &[3.0, 0.0]);
        assert_eq!((d.max_abs, d.relative_l2), (4.0, 4.0 / 3.0));
        assert!((d.cosine - 0.6).abs() < 1e-12);
        assert!(difference(&[f32::NAN, 0.0], &[1.0, 0.0]).max_abs.is_nan());
    }

    #[test]
    fn psnr_of_a_hundredth_is_forty_decibels() {
        assert!((psnr(&[0.51; 7], &[0.5; 7]) - 40.0).abs() < 1e-4);
        assert!(psnr(&[0.5], &[0.5]).is_infinite());
    }

    #[test]
    fn ssim_is_one_for_equal_frames_and_follows_its_formula_for_flat_ones() {
        let size = [12, 13, 3];
        let ramp: Vec<f32> = (0..12 * 13 * 3_u16).map(|i| f32::from(i % 17) / 17.0).collect();
        assert!((ssim(&ramp, &ramp, size).unwrap() - 1.0).abs() < 1e-12);
        // Flat frames have no variance: only the luminance term is left.
        let (a, b) = (vec![0.2_f32; 12 * 13 * 3], vec![0.6_f32; 12 * 13 * 3]);
        let luminance = (2.0 * 0.12 + 1e-4) / (0.04 + 0.36 + 1e-4);
        assert!((ssim(&a, &b, size).unwrap() - luminance).abs() < 1e-6);
        assert_eq!(ssim(&[0.0; 30], &[0.0; 30], [5, 2, 3]), None);
    }
}
