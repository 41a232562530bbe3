//! `<stem>.safetensors.index.json`: which shard holds which tensor.

use std::collections::BTreeSet;
use std::path::Path;

use serde::Deserialize;

use super::error::{TensorProblem, WeightsError};
use super::header::MAX_NAME;
use super::json::{Pairs, parse, shown};
use super::positioned::read_exact_at;
use crate::source::open_regular;

const MAX_INDEX: u64 = 64 << 20;
/// Every shard stays open, and a process has about a thousand files.
const MAX_SHARDS: usize = 512;

/// The parsed index: `(tensor, shard number)` in name order.
pub(super) struct Index {
    pub shards: Vec<String>,
    pub tensors: Vec<(String, usize)>,
}

#[derive(Deserialize)]
struct File {
    weight_map: Pairs<String>,
}

/// Reads the index at `path` (`real` is where it is after links).
pub(super) fn read(path: &Path, real: &Path) -> Result<Index, WeightsError> {
    let opened = open_regular(real)?;
    if opened.bytes > MAX_INDEX {
        return Err(WeightsError::IndexLength { index: path.into(), limit: MAX_INDEX, found: opened.bytes });
    }
    let mut json = vec![0; usize::try_from(opened.bytes).unwrap_or(0)];
    read_exact_at(&opened.file, &mut json, 0).map_err(|source| WeightsError::Io { file: path.into(), source })?;
    parsed(&json, path)
}

/// The index in the text `json`; `path` is for messages.
pub(super) fn parsed(json: &[u8], path: &Path) -> Result<Index, WeightsError> {
    if json.starts_with(b"version https://git-lfs") {
        let found = "a git-lfs pointer: run `git lfs pull`";
        return Err(WeightsError::NotSafetensors { file: path.into(), found });
    }
    let bad_json = |problem| WeightsError::Json { file: path.into(), problem };
    let file: File = parse(json).map_err(bad_json)?;
    let map = file.weight_map.sorted();
    let map = map.map_err(|twice| bad_json(format!("tensor `{}` comes twice", shown(&twice))))?;
    number(map, path)
}

fn number(map: Vec<(String, String)>, path: &Path) -> Result<Index, WeightsError> {
    for (tensor, shard) in &map {
        if tensor.is_empty() || tensor.len() > MAX_NAME || tensor.contains(char::is_control) {
            let problem = TensorProblem::Name { limit: MAX_NAME };
            return Err(WeightsError::Tensor { tensor: shown(tensor), problem, file: path.into() });
        }
        if !plain(shard) {
            return Err(WeightsError::ShardName { index: path.into(), tensor: tensor.clone(), found: shown(shard) });
        }
    }
    let shards: BTreeSet<&str> = map.iter().map(|(_, shard)| shard.as_str()).collect();
    if shards.len() > MAX_SHARDS {
        return Err(WeightsError::TooManyShards { index: path.into(), limit: MAX_SHARDS, found: shards.len() });
    }
    let shards: Vec<String> = shards.into_iter().map(String::from).collect();
    let place = |(tensor, shard)| shards.binary_search(&shard).ok().map(|shard| (tensor, shard));
    let tensors = map.into_iter().filter_map(place).collect();
    Ok(Index { shards, tensors })
}

/// A file name and nothing else, on every system.
fn plain(name: &str) -> bool {
    let safe = !name.contains(|c: char| c.is_control() || matches!(c, '/' | '\\' | ':'));
    safe && name.len() <= 255 && name.strip_suffix(".safetensors").is_some_and(|stem| !stem.is_empty())
}
