//! GELU, tanh approximation, in vectors (diffusers `models/activations.py`, `GELU(approximate="tanh")`).

/// Added to a number below 2^22 and taken off again, it rounds it; the number is in its last bits meanwhile.
const ROUNDING: f32 = 12_582_912.0;

/// `e^x`, to a relative error of 2e-7, for numbers from -87 to 88; beyond those what it is there.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    // Comparisons, unlike `clamp`, are one instruction and keep NaN.
    let x = if x < -87.0 { -87.0 } else { x };
    let x = if x > 88.0 { 88.0 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUNDING);
    let n = shifted - ROUNDING;
    // ln 2 in two parts: the first has so few bits that its product with n is exact.
    let r = n.mul_add(-0.693_359_4, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let terms: [f32; 6] = [1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
    let y = terms.into_iter().fold(1.0_f32 / 720.0, |sum, term| sum.mul_add(r, term));
    // Times 2^n.
    f32::from_bits(y.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`, which is `x / (1 + e^(-2 ...))`.
#[inline(always)]
pub(crate) fn gelu(x: f32) -> f32 {
    let u = x * (x * x).mul_add(-2.0 * 0.797_884_6 * 0.044_715, -2.0 * 0.797_884_6);
    x / (1.0 + exp(u))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gelu_is_that_of_exact_arithmetic() {
        for i in -200_000..=200_000_i32 {
            let x = f64::from(i) * 1e-4;
            let exact = 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh());
            #[allow(clippy::cast_possible_truncation)]
            let found = f64::from(gelu(x as f32));
            assert!((found - exact).abs() <= 1e-6 + 1e-6 * exact.abs(), "{x}: {found}, {exact}");
        }
        assert!(gelu(f32::NAN).is_nan());
    }
}
