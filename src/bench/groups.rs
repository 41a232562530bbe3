//! Nodes by what they are part of.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::NodeTime;

/// What a group of nodes took in one run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GroupTime {
    /// Of what: a kind of layer, or an operator.
    pub name: String,
    /// How many nodes.
    pub nodes: usize,
    /// How many layers they are part of.
    pub layers: usize,
    /// Seconds.
    pub seconds: f64,
    /// The operators whose kernels ran, the longest first.
    pub operators: Vec<String>,
}

/// Kinds of layers, by the ends of their paths.
const KINDS: [(&str, &[&str]); 13] = [
    ("attention q, k, v", &["attn1.to_q", "attn1.to_k", "attn1.to_v"]),
    ("attention out", &["attn1.to_out.0"]),
    ("feed-forward up", &["ff.net.0.proj"]),
    ("feed-forward down", &["ff.net.2"]),
    ("AdaLN", &["norm1.linear", "norm2.linear"]),
    ("T5 q, k, v", &["SelfAttention.q", "SelfAttention.k", "SelfAttention.v"]),
    ("T5 o", &["SelfAttention.o"]),
    ("T5 wi", &["DenseReluDense.wi_0", "DenseReluDense.wi_1"]),
    ("T5 wo", &["DenseReluDense.wo"]),
    ("VAE convolutions", &["conv1.conv", "conv2.conv"]),
    ("VAE upsampling", &["upsamplers.0", "upsamplers.0.conv"]),
    ("VAE shortcuts", &["conv_shortcut"]),
    // Products of queries, keys and values, and what is around them.
    (ATTENTION, &["attn1", "SelfAttention"]),
];

/// The kind that has no layers of weights.
const ATTENTION: &str = "attention itself";

/// What is of no kind.
const REST: &str = "all else";

/// Whether a group is a kind of layers that can be quantized.
pub(super) fn has_layers(name: &str) -> bool {
    ![ATTENTION, REST].contains(&name)
}

/// What the paths of the layers of a kind end with.
pub(super) fn ends_of(name: &str) -> Option<&'static [&'static str]> {
    KINDS.iter().find(|(kind, _)| *kind == name).map(|(_, ends)| *ends)
}

/// By the kind of layer: first those that can be quantized.
#[must_use]
pub fn by_kind(nodes: &[NodeTime]) -> Vec<GroupTime> {
    let nodes: Vec<_> = nodes.iter().flat_map(halved).collect();
    let mut groups = gather(&nodes, |node| kind_of(path(&node.name)).into());
    groups.sort_by_key(|group| KINDS.iter().position(|(name, _)| *name == group.name).unwrap_or(KINDS.len()));
    groups
}

/// The two layers of a feed-forward that is one node: both have as many weights, so either took half.
fn halved(node: &NodeTime) -> Vec<NodeTime> {
    if node.op != "FeedForward" {
        return vec![node.clone()];
    }
    let half = |layer| NodeTime {
        name: format!("{}.{layer}/{}", path(&node.name), node.op),
        seconds: node.seconds / 2.0,
        ..node.clone()
    };
    ["net.0.proj", "net.2"].map(half).into()
}

/// By operator, the longest first.
#[must_use]
pub fn by_operator(nodes: &[NodeTime]) -> Vec<GroupTime> {
    let mut groups = gather(nodes, |node| node.op.clone());
    groups.sort_by(|a, b| b.seconds.total_cmp(&a.seconds));
    groups
}

fn gather(nodes: &[NodeTime], name: impl Fn(&NodeTime) -> String) -> Vec<GroupTime> {
    let mut groups: BTreeMap<String, Vec<&NodeTime>> = BTreeMap::new();
    for node in nodes {
        groups.entry(name(node)).or_default().push(node);
    }
    let made = groups.into_iter().map(|(name, nodes)| {
        let mut operators: BTreeMap<&str, f64> = BTreeMap::new();
        for node in &nodes {
            *operators.entry(&node.op).or_default() += node.seconds;
        }
        let mut operators: Vec<_> = operators.into_iter().collect();
        operators.sort_by(|a, b| b.1.total_cmp(&a.1));
        let layers: BTreeSet<_> = nodes.iter().map(|node| path(&node.name)).collect();
        GroupTime {
            name,
            nodes: nodes.len(),
            layers: layers.len(),
            seconds: nodes.iter().map(|node| node.seconds).sum(),
            operators: operators.into_iter().map(|(op, _)| op.to_string()).collect(),
        }
    });
    made.collect()
}

/// The path of the layer that a node is part of.
fn path(name: &str) -> &str {
    name.rsplit_once('/').map_or("", |(path, _)| path)
}

/// The kind of a layer at `path`.
pub(crate) fn kind_of(path: &str) -> &'static str {
    let ends = |end: &str| path.strip_suffix(end).is_some_and(|rest| rest.ends_with('.'));
    KINDS.iter().find(|(_, paths)| paths.iter().any(|end| ends(end))).map_or(REST, |(name, _)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_are_grouped_by_the_layer_in_their_path() {
        let node = |name: &str, op: &str, seconds| NodeTime { name: name.into(), op: op.into(), seconds };
        let nodes = [
            node("transformer_blocks.0.attn1.to_q/Gemm", "Gemm", 2.0),
            node("transformer_blocks.1.attn1.to_v/Gemm", "Gemm", 3.0),
            node("transformer_blocks.1.attn1.to_v/Reshape", "Reshape", 0.5),
            node("transformer_blocks.1.attn1/MultiHeadAttention", "MultiHeadAttention", 1.0),
            node("encoder.block.0.layer.1.DenseReluDense.wi_1/Gemm", "Gemm", 1.5),
            node("transformer_blocks.1.norm1.linear/Gemm", "Gemm", 0.25),
            // No layer of the blocks' kind: its path only ends alike.
            node("other_norm1.linear/Gemm", "Gemm", 8.0),
            node("Shape", "Shape", 0.125),
            node("transformer_blocks.2.ff/FeedForward", "FeedForward", 5.0),
        ];
        let found: Vec<_> = by_kind(&nodes).into_iter().map(|g| (g.name, g.nodes, g.layers, g.seconds)).collect();
        let expected = [
            ("attention q, k, v", 3, 2, 5.5),
            ("feed-forward up", 1, 1, 2.5),
            ("feed-forward down", 1, 1, 2.5),
            ("AdaLN", 1, 1, 0.25),
            ("T5 wi", 1, 1, 1.5),
            ("attention itself", 1, 1, 1.0),
            (REST, 2, 2, 8.125),
        ];
        assert_eq!(found, expected.map(|(name, n, l, s)| (name.to_string(), n, l, s)));
        assert_eq!(by_kind(&nodes)[0].operators, ["Gemm", "Reshape"]);
        let operators: Vec<_> = by_operator(&nodes).into_iter().map(|g| (g.name, g.nodes)).collect();
        assert_eq!(operators[..2], [("Gemm".to_string(), 5), ("FeedForward".to_string(), 1)]);
    }
}
