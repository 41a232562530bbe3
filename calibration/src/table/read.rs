//! Reading a place of a table, which anyone may have written.

use std::collections::BTreeMap;
use std::path::Path;

use cogvx_graphs::{DType, Weights};

use super::{MOST_COUNTED, MOST_RANGES, MOST_ROWS, Place, TableError};
use crate::histogram::{BINS, Histogram};

/// The place `name` of a table, all of it checked.
pub(super) fn read_place(
    path: &Path,
    file: &Weights,
    name: &str,
    widths: &BTreeMap<String, f32>,
    seen: &BTreeMap<String, u64>,
) -> Result<Place, TableError> {
    let wrong = |part: &str, expected: &str, found: String| TableError::Tensor {
        path: path.into(),
        name: format!("{name}/{part}"),
        expected: expected.into(),
        found,
    };
    let read = |part: &str, dtype: DType, rank: usize, expected: &str| -> Result<(Vec<usize>, Vec<u8>), TableError> {
        let tensor = file.get(&format!("{name}/{part}")).ok_or_else(|| wrong(part, expected, "none".into()))?;
        if tensor.dtype != dtype || tensor.shape.len() != rank || tensor.len == 0 {
            return Err(wrong(part, expected, format!("{} {:?}", tensor.dtype, tensor.shape)));
        }
        Ok((tensor.shape.clone(), file.read(tensor)?))
    };
    let bounds = |part: &str| -> Result<Vec<Vec<f32>>, TableError> {
        let (shape, bytes) = read(part, DType::F32, 2, "f32 [step ranges, features]")?;
        if shape[0] > MOST_RANGES {
            return Err(wrong(part, &format!("at most {MOST_RANGES} step ranges"), shape[0].to_string()));
        }
        let rows = bytes.chunks_exact(4 * shape[1]).map(|row| {
            let row: Vec<f32> = row.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
            // A range without steps.
            if row.iter().all(|x| x.is_nan()) { vec![] } else { row }
        });
        let rows: Vec<_> = rows.collect();
        if rows.iter().all(Vec::is_empty) {
            return Err(wrong(part, "at least one step range that was seen", "none".into()));
        }
        if let Some(x) = rows.iter().flatten().find(|x| !x.is_finite()) {
            return Err(wrong(part, "finite numbers", x.to_string()));
        }
        Ok(rows)
    };
    let (least, greatest) = (bounds("least")?, bounds("greatest")?);
    let width = least.iter().map(Vec::len).max().unwrap_or(0);
    let lengths = |rows: &[Vec<f32>]| rows.iter().map(Vec::len).collect::<Vec<_>>();
    if lengths(&least) != lengths(&greatest) {
        return Err(wrong("greatest", "as many numbers as `least`", format!("{:?}", lengths(&greatest))));
    }
    if least.iter().flatten().zip(greatest.iter().flatten()).any(|(a, b)| a > b) {
        return Err(wrong("least", "numbers not greater than `greatest`", "a greater one".into()));
    }
    if least.iter().chain(&greatest).flatten().all(|&x| x == 0.0) {
        return Err(wrong("greatest", "a place where not all is zero", "zeros alone".into()));
    }
    let (shape, bytes) = read("histogram", DType::I64, 1, &format!("i64 [{BINS}]"))?;
    if shape != [BINS] {
        return Err(wrong("histogram", &format!("i64 [{BINS}]"), format!("{shape:?}")));
    }
    let counts: Vec<_> = bytes.as_chunks().0.iter().map(|eight| u64::from_le_bytes(*eight)).collect();
    if counts.iter().any(|&count| count > MOST_COUNTED) {
        return Err(wrong("histogram", "counts", "negative or huge ones".into()));
    }
    let bin = widths.get(name).copied();
    let Some(bin) = bin.filter(|bin| bin.is_finite() && *bin >= 0.0) else {
        let found = bin.map_or("none".into(), |bin| bin.to_string());
        return Err(wrong("histogram", "bins of a width in `__metadata__` `histograms`", found));
    };
    let (shape, bytes) = read("rows", DType::F32, 2, "f32 [rows, features]")?;
    if shape[1] != width || shape[0] > MOST_ROWS {
        let expected = format!("f32 [rows, {width}] of at most {MOST_ROWS} rows");
        return Err(wrong("rows", &expected, format!("{shape:?}")));
    }
    let rows: Vec<_> = bytes.as_chunks().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
    if let Some(x) = rows.iter().find(|x| !x.is_finite()) {
        return Err(wrong("rows", "finite numbers", x.to_string()));
    }
    let seen = seen.get(name).copied().unwrap_or(0);
    if seen > MOST_COUNTED {
        return Err(wrong("rows", "a count of tokens in `__metadata__` `seen`", seen.to_string()));
    }
    Ok(Place { width, least, greatest, histogram: Histogram { width: bin, counts }, rows, seen })
}
