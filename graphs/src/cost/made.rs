//! What a session makes of weights when it loads a graph, and keeps.

use super::{CostError, Held, Peak, Sizes, elements};
use crate::graph::{Graph, Node, Source};
use crate::onnx::order::Entry;
use crate::op::Op;

/// The copies of weights.
pub(super) struct Made {
    /// Nodes that read nothing but weights and constants, and so ran when the graph was loaded.
    nodes: Vec<bool>,
    /// What these made.
    values: Vec<bool>,
    /// Of each value whether a node reads it, and how many read it in an order of their own.
    read: Vec<bool>,
    reordered: Vec<usize>,
}

impl Made {
    /// Nothing is made but what kernels arrange.
    pub fn nothing(graph: &Graph) -> Self {
        let values = vec![false; graph.values().len()];
        let reordered = vec![0; values.len()];
        Self { nodes: vec![false; graph.nodes().len()], read: values.clone(), reordered, values }
    }

    /// All that can be made of weights alone is.
    pub fn of_weights(graph: &Graph) -> Self {
        let mut made = Self::nothing(graph);
        for (number, node) in graph.nodes().iter().enumerate() {
            let is_known = |&id: &usize| {
                made.values[id] || matches!(graph.values()[id].source, Source::Weight(_) | Source::Constant(_))
            };
            // Of its own operators ONNX Runtime does not know that they always make the same.
            let is_its_own = matches!(&node.op, Op::Onnx(op) if !op.domain.is_empty());
            if !is_its_own && node.inputs.iter().flatten().all(is_known) {
                made.nodes[number] = true;
                for &value in &node.outputs {
                    made.values[value] = true;
                }
            }
        }
        made
    }

    /// Whether a run has no such node.
    pub fn has_made(&self, entry: Entry) -> bool {
        matches!(entry, Entry::Node(number) if self.nodes[number])
    }

    /// A run has this node, whose kernel arranges this input.
    pub fn read(&mut self, node: &Node, reordered: Option<usize>) {
        for (i, &value) in node.inputs.iter().enumerate() {
            let Some(value) = value else { continue };
            self.read[value] = true;
            self.reordered[value] += usize::from(reordered == Some(i));
        }
    }

    /// Bytes that stay, and the moment of loading at which most is held beside them.
    pub fn kept(&self, graph: &Graph, sizes: &Sizes) -> Result<(u64, Peak), CostError> {
        let (mut kept, mut loading) = (0, Peak::default());
        for (id, value) in graph.values().iter().enumerate().filter(|(id, _)| self.read[*id]) {
            let bytes = match &value.source {
                Source::Weight(weight) if self.reordered[id] > 0 => weight.stored.bytes(elements(&weight.shape)),
                Source::Node { .. } if self.values[id] => sizes.bytes(&value.r#type)?,
                _ => continue,
            };
            kept += bytes;
            if self.reordered[id] == 0 || !self.values[id] {
                // A weight as it is stored is mapped.
                continue;
            }
            // The second kernel arranges it again, and finds only then that it is there.
            let copies = if self.reordered[id] > 1 { 2 } else { 1 };
            if copies * bytes > loading.bytes {
                let what = "a weight before it is arranged".into();
                let held = vec![Held { what, is_input: false, is_output: false, bytes: copies * bytes }];
                loading = Peak { bytes: copies * bytes, at: "loading".into(), held };
            }
        }
        Ok((kept, loading))
    }
}
