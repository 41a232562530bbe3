//! The compiled normalization rules of a `SentencePiece` file: a double array over UTF-8 bytes, then replacement texts.
//!
//! The reader in `tokenizers` indexes the array by what it finds in it, so every state is checked once before use.

use tokenizers::normalizers::Precompiled;

/// Set in a unit that has an end of a rule behind it.
const HAS_LEAF: u32 = 1 << 8;
/// Bits of a unit that hold its label; the top bit marks the end of a rule.
const LABEL: u32 = (1 << 31) | 0xff;
/// Bits of an end of a rule that hold the position of its replacement.
const VALUE: u32 = (1 << 31) - 1;

/// Loads checked rules.
pub(super) fn load(bytes: &[u8]) -> Result<Precompiled, String> {
    check(bytes).map_err(|problem| format!("`precompiled_charsmap`: {problem}"))?;
    Precompiled::from(bytes).map_err(|e| format!("`precompiled_charsmap`: {e}"))
}

fn check(bytes: &[u8]) -> Result<(), String> {
    let (size, rest) = bytes.split_first_chunk().ok_or("expected a size, found the end")?;
    let size = u32::from_le_bytes(*size) as usize;
    if size == 0 || !size.is_multiple_of(4) || size > rest.len() {
        return Err(format!("expected an array of 4 to {} bytes, found {size}", rest.len()));
    }
    let (array, texts) = rest.split_at(size);
    let (words, _) = array.as_chunks();
    let units: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
    let texts = std::str::from_utf8(texts).map_err(|e| format!("expected UTF-8 texts, {e}"))?;
    walk(&units, texts)
}

/// Visits every state that some text can reach, and every unit the reader would look at from there.
fn walk(units: &[u32], texts: &str) -> Result<(), String> {
    let outside = |at: usize| format!("expected positions below {}, found {at}", units.len());
    let start = offset(units[0]);
    let mut seen = vec![false; units.len()];
    let mut open = vec![start];
    *seen.get_mut(start).ok_or_else(|| outside(start))? = true;
    while let Some(state) = open.pop() {
        for byte in 1..=255_u8 {
            let at = state ^ usize::from(byte);
            let unit = *units.get(at).ok_or_else(|| outside(at))?;
            if unit & LABEL != u32::from(byte) {
                continue;
            }
            let next = at ^ offset(unit);
            let end = *units.get(next).ok_or_else(|| outside(next))?;
            if unit & HAS_LEAF != 0 && !texts.is_char_boundary((end & VALUE) as usize) {
                return Err(format!("expected a text within {} bytes, found one at {}", texts.len(), end & VALUE));
            }
            if !std::mem::replace(&mut seen[next], true) {
                open.push(next);
            }
        }
    }
    Ok(())
}

/// Distance from a unit to its children, as Darts-clone packs it.
fn offset(unit: u32) -> usize {
    ((unit >> 10) as usize) << ((unit & (1 << 9)) >> 6)
}

/// Decodes standard base64, as `tokenizer.json` stores the rules.
pub(super) fn from_base64(text: &str) -> Result<Vec<u8>, String> {
    let digit = |c: u8| match c {
        b'A'..=b'Z' => Some(c - b'A'),
        b'a'..=b'z' => Some(c - b'a' + 26),
        b'0'..=b'9' => Some(c - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3);
    let (mut bits, mut count) = (0_u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let value =
            digit(c).ok_or_else(|| format!("`precompiled_charsmap`: expected base64, found {:?}", c as char))?;
        bits = (bits << 6 | u32::from(value)) & 0x3fff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count & 0xff) as u8);
        }
    }
    Ok(bytes)
}
