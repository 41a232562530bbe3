//! Amounts of memory: `--max-memory`, `--gpu-memory`, `--max-size`.

/// Units and what they are in bytes.
const UNITS: [(&str, f64); 9] = [
    ("kib", 1024.0),
    ("mib", 1_048_576.0),
    ("gib", 1_073_741_824.0),
    ("tib", 1_099_511_627_776.0),
    ("kb", 1e3),
    ("mb", 1e6),
    ("gb", 1e9),
    ("tb", 1e12),
    ("b", 1.0),
];

/// Reads bytes such as `8GB`, `7.5 GiB` and `500000000`.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Checked to be a number of bytes.
pub(super) fn parse(text: &str) -> Result<u64, String> {
    let lower = text.trim().to_lowercase();
    let unit = UNITS.iter().find_map(|(unit, factor)| Some((lower.strip_suffix(unit)?, *factor)));
    let (number, factor) = unit.unwrap_or((&lower, 1.0));
    let plain = number.trim_end().chars().all(|c| c.is_ascii_digit() || c == '.');
    let bytes = number.trim_end().parse::<f64>().ok().filter(|_| plain).map(|n| n * factor);
    bytes
        .filter(|bytes| (1.0..9e18).contains(bytes))
        .map(|bytes| bytes as u64)
        .ok_or_else(|| "expected bytes, such as 8GB or 7.5GiB".into())
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn units_are_decimal_or_binary() {
        for (text, bytes) in [
            ("8GB", 8_000_000_000),
            ("7.5GiB", 8_053_063_680),
            ("500 mb", 500_000_000),
            ("1TiB", 1 << 40),
            ("2kb", 2000),
            ("123456", 123_456),
            ("9b", 9),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
        for text in ["", "GB", "-1GB", "eight", "8 apples", "1e5", "inf", "0", "99999999999TB", "1.2.3GB"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
