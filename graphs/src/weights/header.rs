//! A safetensors header: eight bytes of length, then JSON.
//!
//! Format: <https://github.com/huggingface/safetensors#format>. The `safetensors` crate parses a header only together
//! with all of the data, takes the last of two equal keys and does not say which tensor is wrong; its reader is the
//! oracle in the tests instead.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::error::{TensorProblem, WeightsError};
use super::json::{Pairs, Short, parse, shown};
use super::positioned::Bytes;
use crate::dtype::DType;

/// The format's own limit.
const MAX_HEADER: u64 = 100_000_000;
/// Largest header whose metadata are kept: maps of short strings take many times their bytes.
const MAX_METADATA: u64 = 16 << 20;
const MAX_RANK: usize = 16;
pub(super) const MAX_NAME: usize = 1024;

/// One tensor; `begin..end` are absolute offsets in the file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub begin: u64,
    pub end: u64,
}

/// The tensors of one file in name order.
#[derive(Debug)]
pub(super) struct Header {
    pub entries: Vec<Entry>,
    /// Where the data begins.
    pub bytes: u64,
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Short<MAX_RANK>,
    data_offsets: (u64, u64),
}

/// Reads and checks the header of `file`, which is `bytes` long; `path` is for messages.
pub(super) fn read(file: &Bytes, bytes: u64, path: &Path) -> Result<Header, WeightsError> {
    let mut start = [0; 64];
    let start = &mut start[..usize::try_from(bytes.min(64)).unwrap_or(64)];
    file.read_exact_at(start, 0).map_err(|source| WeightsError::Io { file: path.into(), source })?;
    if let Some(found) = something_else(start) {
        return Err(WeightsError::NotSafetensors { file: path.into(), found });
    }
    let Some((length, _)) = start.split_first_chunk::<8>() else {
        return Err(WeightsError::Length { file: path.into(), expected: 8, found: bytes });
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(WeightsError::HeaderLength { file: path.into(), limit: MAX_HEADER, found: length });
    }
    let expected = length + 8;
    if expected > bytes {
        return Err(WeightsError::Length { file: path.into(), expected, found: bytes });
    }
    let mut json = vec![0; usize::try_from(length).unwrap_or(0)];
    file.read_exact_at(&mut json, 8).map_err(|source| WeightsError::Io { file: path.into(), source })?;
    entries(&json, bytes, path).map(|entries| Header { entries, bytes: expected })
}

/// The `__metadata__` of a file whose header was read before and ends at byte `end`.
pub(super) fn metadata(file: &Bytes, end: u64, path: &Path) -> Result<BTreeMap<String, String>, WeightsError> {
    #[derive(Deserialize)]
    struct Reserved {
        #[serde(default, rename = "__metadata__")]
        metadata: Option<BTreeMap<String, String>>,
    }
    if end > MAX_METADATA {
        return Err(WeightsError::HeaderLength { file: path.into(), limit: MAX_METADATA, found: end });
    }
    let mut json = vec![0; usize::try_from(end.saturating_sub(8)).unwrap_or(0)];
    file.read_exact_at(&mut json, 8).map_err(|source| WeightsError::Io { file: path.into(), source })?;
    let reserved: Reserved =
        parse(&json).map_err(|e| WeightsError::Json { file: path.into(), problem: format!("`__metadata__`: {e}") })?;
    Ok(reserved.metadata.unwrap_or_default())
}

/// What `start`, the beginning of a file, is when it is not safetensors.
fn something_else(start: &[u8]) -> Option<&'static str> {
    // A header length may happen to look like a magic number; then its JSON follows.
    if start.get(8) == Some(&b'{') {
        return None;
    }
    let known: [(&[u8], &str); 9] = [
        (b"version https://git-lfs", "a git-lfs pointer: run `git lfs pull`"),
        (b"PK\x03\x04", "a zip archive, perhaps a pickled PyTorch checkpoint: convert it to safetensors first"),
        (b"\x80\x02", "a pickle: convert it to safetensors first"),
        (b"\x80\x03", "a pickle: convert it to safetensors first"),
        (b"\x80\x04", "a pickle: convert it to safetensors first"),
        (b"\x80\x05", "a pickle: convert it to safetensors first"),
        (b"GGUF", "a GGUF file"),
        (b"<", "a web page, perhaps a failed download"),
        (b"{", "JSON without the eight bytes of length before it"),
    ];
    if start.is_empty() {
        return Some("an empty file");
    }
    known.iter().find(|(magic, _)| start.starts_with(magic)).map(|(_, name)| *name)
}

/// Checks every entry of the header `json` against a file of `bytes` bytes.
fn entries(json: &[u8], bytes: u64, path: &Path) -> Result<Vec<Entry>, WeightsError> {
    let bad_json = |problem| WeightsError::Json { file: path.into(), problem };
    let data_start = 8 + json.len() as u64;
    let raw: Pairs<Info> = parse(json).map_err(|e| bad_json(format!("header: {e}")))?;
    let raw = raw.sorted().map_err(|twice| bad_json(format!("header: `{}` comes twice", shown(&twice))))?;
    let mut found = Vec::with_capacity(raw.len());
    for (name, info) in raw {
        let wrong = |problem| WeightsError::Tensor { tensor: shown(&name), problem, file: path.into() };
        if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
            return Err(wrong(TensorProblem::Name { limit: MAX_NAME }));
        }
        let (dtype, shape) = info.checked().map_err(wrong)?;
        let (begin, end) = info.data_offsets;
        found.push(Entry { name, dtype, shape, begin, end });
    }
    covers(&mut found, data_start, bytes, path)?;
    found.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(found)
}

impl Info {
    /// Type and shape, when they agree with the offsets.
    fn checked(&self) -> Result<(DType, Vec<usize>), TensorProblem> {
        let dtype = DType::from_safetensors(&self.dtype)
            .ok_or_else(|| TensorProblem::Dtype { found: shown(&self.dtype).chars().take(40).collect() })?;
        if self.shape.0.len() > MAX_RANK {
            return Err(TensorProblem::Rank { limit: MAX_RANK });
        }
        let shape = &self.shape.0;
        let overflow = || TensorProblem::Overflow { shape: shape.clone() };
        let dims: Result<Vec<usize>, _> = shape.iter().map(|&dim| usize::try_from(dim)).collect();
        let bytes_of = |smallest: u64| {
            let mut dims = shape.iter().map(|&dim| dim.max(smallest));
            dims.try_fold(dtype.size() as u64, u64::checked_mul).filter(|&bytes| i64::try_from(bytes).is_ok())
        };
        // With its zeros taken for ones a shape still has to be one that could exist.
        bytes_of(1).ok_or_else(overflow)?;
        let expected = bytes_of(0).ok_or_else(overflow)?;
        let (begin, end) = self.data_offsets;
        let found = end.checked_sub(begin).ok_or(TensorProblem::Reversed { begin, end })?;
        if found != expected {
            return Err(TensorProblem::Size { expected, found, shape: shape.clone() });
        }
        Ok((dtype, dims.map_err(|_| overflow())?))
    }
}

/// Checks that the tensors fill the data section without overlap or hole, and makes their offsets absolute.
fn covers(entries: &mut [Entry], data_start: u64, bytes: u64, path: &Path) -> Result<(), WeightsError> {
    entries.sort_by_key(|entry| (entry.begin, entry.end));
    let room = bytes - data_start;
    let mut expected = 0;
    for entry in &mut *entries {
        let wrong = |problem| WeightsError::Tensor { tensor: entry.name.clone(), problem, file: path.into() };
        if entry.begin != expected {
            return Err(wrong(TensorProblem::Gap { expected, found: entry.begin }));
        }
        if entry.end > room {
            return Err(wrong(TensorProblem::PastEnd { expected: room, found: entry.end }));
        }
        expected = entry.end;
        entry.begin += data_start;
        entry.end += data_start;
    }
    if expected != room {
        return Err(WeightsError::Length { file: path.into(), expected: data_start + expected, found: bytes });
    }
    Ok(())
}
