//! The pass that makes a graph tell what attention reads.

use std::collections::BTreeSet;

use cogvx_graphs::Value;
use cogvx_graphs::graph::{Graph, Node};
use cogvx_graphs::op::Op;
use cogvx_graphs::pass::Pass;

/// Adds two outputs for the attention of each of some blocks of the transformer: its queries and its keys, `[batch, tokens, width]`.
pub struct Attend {
    paths: BTreeSet<String>,
}

impl Attend {
    /// A pass for these blocks.
    #[must_use]
    pub fn new(blocks: &[usize]) -> Self {
        Self { paths: blocks.iter().map(|&block| path(block)).collect() }
    }

    /// Names of the outputs that tell the queries and the keys of a block.
    #[must_use]
    pub fn outputs(block: usize) -> [String; 2] {
        ["queries", "keys"].map(|what| format!("{}/{what}", path(block)))
    }
}

fn path(block: usize) -> String {
    format!("transformer_blocks.{block}.attn1")
}

impl Pass for Attend {
    fn name(&self) -> &'static str {
        "attend"
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        if let (Op::Attention { .. }, &[Some(q), Some(k), ..]) = (&node.op, inputs)
            && self.paths.contains(&node.path)
        {
            out.output(&format!("{}/queries", node.path), q);
            out.output(&format!("{}/keys", node.path), k);
        }
        None
    }
}
