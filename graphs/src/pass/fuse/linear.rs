//! Linear layers that read the checkpoint's weights in whatever precision they are stored.

use super::{Fused, Plain, inputs, native};
use crate::graph::{Node, Source};
use crate::op::Attribute::Int;

impl Plain<'_> {
    /// `Gemm` of a weight of the checkpoint; what it makes, after GELU if so, is value `to`.
    pub(super) fn linear(&self, gemm: &Node, to: usize, gelu: bool) -> Option<Fused> {
        let weight = self.stored(gemm.inputs[1]?)?;
        let mut inputs = gemm.inputs.clone();
        inputs[1] = Some(weight);
        let op = native("Linear", vec![("gelu", Int(gelu.into()))], vec![self.r#type(to)]);
        Some(Fused { op, inputs, outputs: vec![to], path: gemm.path.clone() })
    }

    /// The same with GELU after it.
    pub(super) fn linear_gelu(&self, gelu: &Node) -> Option<Fused> {
        let [x] = inputs(gelu)?;
        self.linear(self.only(x, "Gemm")?, gelu.outputs[0], true)
    }

    /// Both halves of a feed-forward's rows, which `Lower` has one after the other.
    pub(super) fn feed_forward(&self, concat: &Node) -> Option<Fused> {
        let [first, second] = inputs(concat)?.map(|value| self.half(value));
        let (first, second) = (first?, second?);
        let split = self.made_by(first.x, "Split")?;
        if split.outputs != [first.x, second.x] || first.parameters != second.parameters {
            return None;
        }
        let [up, up_bias, down, down_bias] = first.parameters;
        let inputs = vec![split.inputs[0], self.stored(up), Some(up_bias), self.stored(down), Some(down_bias)];
        if inputs.contains(&None) || self.r#type(inputs[1]?).dtype != self.r#type(inputs[3]?).dtype {
            return None;
        }
        let to = concat.outputs[0];
        let op = native("FeedForward", vec![], vec![self.r#type(to)]);
        Some(Fused { op, inputs, outputs: vec![to], path: first.path })
    }

    /// What makes these rows of a feed-forward's output.
    fn half(&self, value: usize) -> Option<Half> {
        let [inner, down, down_bias] = inputs(self.only(value, "Gemm")?)?;
        let gelu = self.only(inner, "FastGelu")?;
        let [made] = inputs(gelu)?;
        let [x, up, up_bias] = inputs(self.only(made, "Gemm")?)?;
        Some(Half { x, parameters: [up, up_bias, down, down_bias], path: gelu.path.clone() })
    }

    /// The weight of which `value` is another precision or, in between, another shape.
    fn stored(&self, value: usize) -> Option<usize> {
        let mut stored = value;
        while let Some(node) = ["Cast", "Reshape", "ExpandDims"].iter().find_map(|name| self.made_by(stored, name)) {
            stored = node.inputs[0]?;
        }
        let is_weight = matches!(self.values[stored].source, Source::Weight(_));
        let is_alike = self.r#type(stored).shape == self.r#type(value).shape;
        (is_weight && is_alike).then_some(stored)
    }
}

/// A part of a feed-forward's rows.
struct Half {
    x: usize,
    /// Weights and biases of both layers.
    parameters: [usize; 4],
    path: String,
}
