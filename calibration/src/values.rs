//! Names for the values of a model, the same in whatever size and precision it is exported.

use std::collections::HashMap;

use cogvx_graphs::Value;
use cogvx_graphs::graph::Node;
use cogvx_graphs::op::{Binary, Op};

/// Names the values that a graph computes, node after node in the order of a pass: `<layer>/<operation>`, from the second of a
/// kind in a layer on with its number: `transformer_blocks.0.norm1/Mul.1`.
#[derive(Debug, Default)]
pub struct ValueNames {
    counts: HashMap<(String, &'static str), usize>,
}

impl ValueNames {
    /// The name of what `node`, of the model before any other pass, makes of `inputs`; nothing for integers and for numbers
    /// that are merely moved, or bounded by those it reads.
    pub fn of(&mut self, node: &Node, inputs: &[Option<Value<'_>>]) -> Option<String> {
        let float = inputs.first().copied().flatten().is_some_and(|x| x.dtype().is_float());
        let new = match node.op {
            Op::Linear | Op::Conv { .. } | Op::LayerNorm { .. } | Op::RmsNorm { .. } | Op::GroupNorm { .. } => true,
            Op::Binary(op) => !matches!(op, Binary::Min | Binary::Max | Binary::Mod),
            _ => false,
        };
        if !float || !new {
            return None;
        }
        let kind = node.op.name();
        let count = self.counts.entry((node.path.clone(), kind)).or_default();
        *count += 1;
        let number = if *count == 1 { String::new() } else { format!(".{}", *count - 1) };
        let layer = if node.path.is_empty() { String::new() } else { format!("{}/", node.path) };
        Some(format!("{layer}{kind}{number}"))
    }
}
