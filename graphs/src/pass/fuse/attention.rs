//! Attention, with the norms of queries and keys where these come right before.

use super::{Fused, Plain, attribute, inputs, native};
use crate::graph::Node;
use crate::op::{Attribute, OnnxOp, Op};

impl Plain<'_> {
    pub(super) fn attention(&self, node: &Node, op: &OnnxOp) -> Option<Fused> {
        let [q, k, v] = inputs(node)?;
        let [heads, scale] = ["num_heads", "scale"].map(|name| attribute(op, name).cloned());
        let mut attributes = vec![("heads", heads?), ("scale", scale?)];
        if self.is_quantized() {
            // What it reads was rounded to eight bits, and what it makes will be.
            attributes.push(("bits", Attribute::Int(16)));
        }
        let normed = self.head_norm(q).zip(self.head_norm(k)).filter(|(q, k)| q.epsilon == k.epsilon);
        let inputs = match normed {
            Some((q, k)) => {
                attributes.push(("epsilon", q.epsilon));
                vec![q.x, k.x, v, q.weight, q.bias, k.weight, k.bias]
            }
            None => vec![q, k, v],
        };
        let op = native("FlashAttention", attributes, vec![self.r#type(node.outputs[0])]);
        Some(Fused {
            op,
            inputs: inputs.into_iter().map(Some).collect(),
            outputs: vec![node.outputs[0]],
            path: node.path.clone(),
        })
    }

    /// Whether linear layers round features to bytes.
    fn is_quantized(&self) -> bool {
        self.nodes.iter().any(|node| node.op.name() == "MatMulIntegerToFloat")
    }

    /// The norm of each head, seen as `[batch, tokens, heads, width]`, that made `value` `[batch, tokens, heads * width]`.
    fn head_norm(&self, value: usize) -> Option<HeadNorm> {
        let whole = self.only(value, "Reshape")?;
        let norm = self.only(whole.inputs[0]?, "LayerNormalization")?;
        let [heads, weight, bias] = inputs(norm)?;
        let x = self.only(heads, "Reshape")?.inputs[0]?;
        let Op::Onnx(op) = &norm.op else { return None };
        let fits = self.rank(heads) == 4 && self.rank(weight) == 1 && self.rank(value) == 3;
        fits.then_some(HeadNorm { x, weight, bias, epsilon: attribute(op, "epsilon")?.clone() })
    }
}

struct HeadNorm {
    x: usize,
    weight: usize,
    bias: usize,
    epsilon: Attribute,
}
