//! GELU in its tanh form.

use std::f32::consts::{FRAC_2_SQRT_PI, LN_2, LOG2_E, SQRT_2};

/// `x (1 + tanh u) / 2 = x / (1 + e^-2u)`, u = √(2/π) (x + 0.044715 x³)
#[inline(always)]
pub fn gelu(x: f32) -> f32 {
    const SCALE: f32 = -SQRT_2 * FRAC_2_SQRT_PI * LOG2_E;
    let u = x * (SCALE * 0.044_715 * x).mul_add(x, SCALE);
    x / (1. + exp2(u.clamp(-126., 126.)))
}

/// 2^t for t in -126..=126: that of the whole number next to t by its bits, times a Taylor series of what is left.
#[inline(always)]
fn exp2(t: f32) -> f32 {
    /// Floats of this size are whole, and the lowest bits count up from here.
    const WHOLE: f32 = 12_582_912.;
    let whole = t + WHOLE;
    let x = (t - (whole - WHOLE)) * LN_2;
    let mut series = 1. / 5040.;
    for factor in [1. / 720., 1. / 120., 1. / 24., 1. / 6., 0.5, 1., 1.] {
        series = x.mul_add(series, factor);
    }
    series * f32::from_bits((whole.to_bits() << 23).wrapping_add(1f32.to_bits()))
}

#[cfg(test)]
mod tests {
    use super::gelu;

    #[test]
    fn is_close_to_gelu_in_f64() {
        for step in -30_000i16..=30_000 {
            let x = f32::from(step) / 2500.;
            let wide = f64::from(x);
            let u = (2. / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            let expected = wide / (1. + (-2. * u).exp());
            let error = (f64::from(gelu(x)) - expected).abs();
            assert!(error <= 2e-7 || error <= 1e-6 * expected.abs(), "{x}: {} for {expected}", gelu(x));
        }
        assert!(gelu(f32::NAN).is_nan());
        assert_eq!([gelu(0.), gelu(1e30)].map(f32::to_bits), [0., 1e30].map(f32::to_bits));
        assert!(gelu(-1e4).abs() <= 1e-30);
    }
}
