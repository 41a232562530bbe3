//! Eight-bit floating point E4M3 (Micikevicius et al. 2022): sign, four bits of exponent with bias 7, three of mantissa; no
//! infinities, one NaN.

/// The largest number.
pub const MOST: f32 = 448.0;
/// The NaN.
const NAN: u8 = 0x7f;

/// The number of a byte.
#[must_use]
pub fn decode(byte: u8) -> f32 {
    let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f32::from(byte & 7));
    if byte & 0x7f == NAN {
        return f32::NAN;
    }
    sign * if exponent == 0 { mantissa / 512.0 } else { (1.0 + mantissa / 8.0) * 2.0_f32.powi(exponent - 7) }
}

/// The nearest number's byte, ties to even; what is larger than [`MOST`] becomes it.
#[must_use]
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Within the range of eight bits.
pub fn encode(x: f32) -> u8 {
    let sign = if x.is_sign_negative() { 0x80 } else { 0 };
    if x.is_nan() {
        return NAN;
    }
    let magnitude = x.abs().min(MOST);
    // Below the least normal number, 2^-6, steps are as wide as just above it.
    let exponent = if magnitude < 0.015_625 { -6 } else { (magnitude.to_bits() >> 23).cast_signed() - 127 };
    let eighths = (magnitude * 2.0_f32.powi(3 - exponent)).round_ties_even() as i32;
    // 16 eighths are the next exponent's 8; fewer than 8 have none.
    let code = (exponent + 7) * 8 + eighths - 8;
    sign | code as u8
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)] // Codes have exact numbers.

    use super::*;

    #[test]
    fn every_byte_is_its_own_number() {
        for byte in 0..=u8::MAX {
            if byte & 0x7f != NAN {
                assert_eq!(encode(decode(byte)), byte, "{byte:02x} {}", decode(byte));
            }
        }
        assert!(decode(NAN).is_nan() && decode(encode(f32::NAN)).is_nan());
        assert_eq!([decode(1), decode(8), decode(0x7e)], [2.0_f32.powi(-9), 2.0_f32.powi(-6), MOST]);
    }

    #[test]
    fn numbers_go_to_the_nearest() {
        let all: Vec<f32> = (0..NAN).map(decode).collect();
        for i in 0..10_000_u16 {
            let x = f32::from(i) * 0.05;
            let nearest =
                all.iter().fold(f32::INFINITY, |best, y| if (y - x).abs() < (best - x).abs() { *y } else { best });
            let found = decode(encode(x));
            assert!((found - x).abs() <= (nearest - x).abs(), "{x}: {found} {nearest}");
        }
        assert_eq!(decode(encode(-1e9)), -MOST);
    }
}
