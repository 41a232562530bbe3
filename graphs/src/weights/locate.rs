//! Which files of a component directory are its weights.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::error::WeightsError;
use super::json::shown;
use crate::source::SourceError;

/// Where the weights are: one file, or an index that lists shards.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Located {
    Single(String),
    Index(String),
}

/// Most directory entries looked at.
const MAX_ENTRIES: usize = 10_000;

/// Finds `<stem>.safetensors`, else `<stem>.safetensors.index.json`, else the only variant such as
/// `<stem>.fp16.safetensors` or `<stem>.safetensors.index.fp16.json`.
pub(super) fn locate(dir: &Path, stem: &str) -> Result<Located, WeightsError> {
    let names = names(dir)?;
    let single = format!("{stem}.safetensors");
    let index = format!("{stem}.safetensors.index.json");
    if names.contains(&single) {
        return Ok(Located::Single(single));
    }
    if names.contains(&index) {
        return Ok(Located::Index(index));
    }
    let variants: Vec<_> = names.iter().filter_map(|name| variant(name, stem)).collect();
    match variants.len() {
        0 => Err(nothing(dir, stem, &names)),
        1 => Ok(variants.into_iter().next().unwrap_or(Located::Single(single))),
        _ => {
            let variants = variants.into_iter().take(8).map(|(Located::Single(n) | Located::Index(n))| n).collect();
            Err(WeightsError::SeveralVariants { dir: dir.into(), variants })
        }
    }
}

fn names(dir: &Path) -> Result<BTreeSet<String>, WeightsError> {
    let failed = |source: std::io::Error| match source.kind() {
        std::io::ErrorKind::NotFound => SourceError::Missing { path: dir.into() },
        _ => SourceError::Io { path: dir.into(), source },
    };
    let mut names = BTreeSet::new();
    for entry in fs::read_dir(dir).map_err(failed)?.take(MAX_ENTRIES) {
        names.extend(entry.map_err(failed)?.file_name().into_string());
    }
    Ok(names)
}

fn variant(name: &str, stem: &str) -> Option<Located> {
    let rest = name.strip_prefix(stem)?;
    let word = |word: &str| !word.is_empty() && word.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
    if let Some(inner) = rest.strip_prefix(".safetensors.index.").and_then(|rest| rest.strip_suffix(".json")) {
        return word(inner).then(|| Located::Index(name.into()));
    }
    let inner = rest.strip_prefix('.')?.strip_suffix(".safetensors")?;
    word(inner).then(|| Located::Single(name.into()))
}

fn nothing(dir: &Path, stem: &str, names: &BTreeSet<String>) -> WeightsError {
    let shard = names.iter().find(|n| n.starts_with(&format!("{stem}-")) && n.ends_with(".safetensors"));
    if let Some(shard) = shard {
        return WeightsError::NoIndex { dir: dir.into(), stem: stem.into(), shard: shown(shard) };
    }
    let pickled = [".bin", ".bin.index.json", ".pt", ".pth", ".ckpt"];
    if let Some(file) = names.iter().find(|name| pickled.iter().any(|end| name.ends_with(end))) {
        return WeightsError::OnlyPickle { dir: dir.into(), file: shown(file) };
    }
    let found = names.iter().take(8).map(|name| shown(name)).collect();
    WeightsError::NotFound { dir: dir.into(), stem: stem.into(), found }
}
