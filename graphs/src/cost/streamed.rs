//! Weights that come when their block runs.

use std::collections::BTreeMap;

use super::elements;
use crate::graph::{Graph, Source};
use crate::onnx::{block, is_streamed};

/// Bytes of the weights of each block whose weights do not stay, if those of the first `kept` ones do: of none where all stay.
pub(super) fn blocks(graph: &Graph, kept: Option<usize>) -> BTreeMap<usize, u64> {
    let (values, live) = (graph.values(), graph.live());
    let mut blocks: BTreeMap<usize, u64> = BTreeMap::new();
    let Some(kept) = kept else { return blocks };
    let mut counted = vec![false; values.len()];
    for node in graph.nodes().iter().filter(|node| node.outputs.iter().any(|&value| live[value])) {
        let Some(block) = block(&node.path) else { continue };
        let bytes = blocks.entry(block).or_default();
        for &value in node.inputs.iter().flatten() {
            if let Source::Weight(weight) = &values[value].source
                && !std::mem::replace(&mut counted[value], true)
            {
                *bytes += weight.stored.bytes(elements(&weight.shape));
            }
        }
    }
    let count = blocks.keys().max().map_or(0, |last| last + 1);
    blocks.retain(|&block, _| is_streamed(block, count, kept));
    blocks
}
