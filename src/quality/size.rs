//! How much of a bundle its graphs read.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use cogvx_graphs::SourceError;
use cogvx_graphs::proto::{ModelProto, TensorProto};
use prost::Message as _;

use crate::bundle::Bundle;

/// Largest graph file read; protobuf's own limit.
const MOST: u64 = (1 << 31) - 1;

/// Why a bundle's size is not known.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum SizeError {
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file that is no graph.
    #[error("`{}`: expected an ONNX graph, found {found}", path.display())]
    Graph { path: PathBuf, found: String },
}

/// Bytes of each component: its graphs and what they read of weight files. A linked weight file may hold more than a graph
/// reads, and what several graphs of a component read counts once.
///
/// # Errors
/// A graph that is not one, or cannot be read.
pub fn bytes_needed(bundle: &Bundle) -> Result<BTreeMap<String, u64>, SizeError> {
    let mut needed = BTreeMap::new();
    for (name, component) in &bundle.manifest().components {
        let mut read = BTreeMap::<String, Vec<[u64; 2]>>::new();
        let mut bytes = 0;
        for graph in &component.graphs {
            let path = bundle.path(&graph.file);
            bytes += regions(&path, &mut read)?;
        }
        bytes += read.into_values().map(covered).sum::<u64>();
        needed.insert(name.clone(), bytes);
    }
    Ok(needed)
}

/// Adds what the graph at `path` reads of other files to `read`, as begins and ends; returns its own bytes.
fn regions(path: &Path, read: &mut BTreeMap<String, Vec<[u64; 2]>>) -> Result<u64, SizeError> {
    let wrong = |found: String| SizeError::Graph { path: path.into(), found };
    let opened = cogvx_graphs::source::open_regular(path)?;
    if opened.bytes > MOST {
        return Err(wrong(format!("{} bytes", opened.bytes)));
    }
    let mut bytes = vec![];
    let io = |source| SourceError::Io { path: path.into(), source };
    opened.file.take(MOST).read_to_end(&mut bytes).map_err(io)?;
    let model = ModelProto::decode(bytes.as_slice()).map_err(|e| wrong(e.to_string()))?;
    for tensor in model.graph.iter().flat_map(|graph| &graph.initializer).filter(|t| t.data_location == Some(1)) {
        let (file, region) = region(tensor).ok_or_else(|| {
            wrong(format!("no place of the numbers of `{}`", tensor.name.as_deref().unwrap_or_default()))
        })?;
        read.entry(file).or_default().push(region);
    }
    Ok(bytes.len() as u64)
}

/// The file that holds a tensor's numbers, where they begin and where they end.
fn region(tensor: &TensorProto) -> Option<(String, [u64; 2])> {
    let entry = |key: &str| tensor.external_data.iter().find(|e| e.key.as_deref() == Some(key))?.value.as_deref();
    let begin = entry("offset").map_or(Some(0), |offset| offset.parse().ok())?;
    let length: u64 = entry("length")?.parse().ok()?;
    Some((entry("location")?.into(), [begin, begin.checked_add(length)?]))
}

/// How many bytes the regions cover together.
fn covered(mut regions: Vec<[u64; 2]>) -> u64 {
    regions.sort_unstable();
    let (mut bytes, mut reached) = (0, 0);
    for [begin, end] in regions {
        bytes += end.saturating_sub(begin.max(reached));
        reached = reached.max(end);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_twice_counts_once() {
        assert_eq!(covered(vec![]), 0);
        assert_eq!(covered(vec![[10, 20], [0, 5], [15, 25], [0, 5], [12, 14]]), 20);
    }
}
