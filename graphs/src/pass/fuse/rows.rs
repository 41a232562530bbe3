//! What is done to each row of a product of bytes, and rows rounded to bytes.

use super::{Fused, Plain, inputs, native};
use crate::graph::{Node, Source};
use crate::op::Attribute::{self, Float, Int};
use crate::op::Op;
use crate::quantized::hadamard;

/// A product of bytes, and what it lacks: values `[rows, features]`, `[rows, 1]`, `[features]`.
#[derive(Clone, Copy)]
pub(super) struct Product {
    pub y: usize,
    pub steps: usize,
    pub bias: usize,
}

/// Rows rounded to bytes, each with a step of its own.
pub(super) struct Rounded {
    /// What is rounded, `[rows, features]`.
    pub x: usize,
    /// What it becomes: bytes, and steps `[rows, 1]`.
    pub made: [usize; 2],
    /// How often that is read for it.
    pub reads: usize,
    /// How.
    pub attributes: Vec<(&'static str, Attribute)>,
}

impl Plain<'_> {
    /// A product of bytes times its steps, of which nothing else is made.
    fn stepped(&self, value: usize) -> Option<[usize; 2]> {
        let [y, steps] = inputs(self.only(value, "Mul")?)?;
        self.only(y, "MatMulIntegerToFloat").map(|_| [y, steps])
    }

    /// A whole product of bytes, which `node` adds the bias to.
    pub(super) fn product(&self, node: &Node) -> Option<Product> {
        let [y, bias] = inputs(node)?;
        let [y, steps] = self.stepped(y)?;
        (self.rank(bias) == 1).then_some(Product { y, steps, bias })
    }

    pub(super) fn rescaled(&self, add: &Node) -> Option<Fused> {
        Some(self.rescaled_as(self.product(add)?, add, false))
    }

    /// `FastGelu` adds the bias by itself.
    pub(super) fn rescaled_gelu(&self, gelu: &Node) -> Option<Fused> {
        Some(self.rescaled_as(self.product(gelu)?, gelu, true))
    }

    fn rescaled_as(&self, Product { y, steps, bias }: Product, last: &Node, gelu: bool) -> Fused {
        let (to, path) = (last.outputs[0], last.path.clone());
        let op = native("RescaleRows", vec![("gelu", Int(gelu.into()))], vec![self.r#type(to)]);
        Fused { op, inputs: [y, steps, bias].map(Some).to_vec(), outputs: vec![to], path }
    }

    pub(super) fn rounded(&self, node: &Node) -> Option<Fused> {
        let Rounded { x, made, reads, mut attributes } = self.rounding(node)?;
        let gelu = self.made_by(x, "FastGelu").filter(|_| self.readers[x] == reads);
        let product = gelu.and_then(|node| self.product(node));
        attributes.push(("gelu", Int(product.is_some().into())));
        let inputs = product.map_or(vec![x], |Product { y, steps, bias }| vec![y, steps, bias]);
        let op = native("RoundRows", attributes, made.map(|value| self.r#type(value)).to_vec());
        Some(Fused {
            op,
            inputs: inputs.into_iter().map(Some).collect(),
            outputs: made.to_vec(),
            path: node.path.clone(),
        })
    }

    /// Rows rounded as `Lower` does it for quantized layers.
    pub(super) fn rounding(&self, node: &Node) -> Option<Rounded> {
        let [x, of_rows, zeros] = inputs(node)?;
        let steps = self.made_by(of_rows, "Reshape")?.inputs[0]?;
        let [reach, inverse] = inputs(self.made_by(steps, "Mul")?)?;
        let (mut least, mut both_sides, mut greatest) = (f32::MIN, false, false);
        for &input in &self.made_by(reach, "Max")?.inputs {
            let input = input?;
            let of_x = |value, name| self.made_by(value, name).is_some_and(|node| node.inputs[0] == Some(x));
            if let Some(number) = self.number(input) {
                least = least.max(number);
            } else if let Some(negative) = self.made_by(input, "Neg") {
                both_sides = of_x(negative.inputs[0]?, "ReduceMin");
                both_sides.then_some(())?;
            } else {
                greatest = of_x(input, "ReduceMax");
                greatest.then_some(())?;
            }
        }
        let Source::Constant(zero) = &self.values[self.made_by(zeros, "Expand")?.inputs[0]?].source else {
            return None;
        };
        let [zero] = zero.bytes[..] else { return None };
        let by_row = matches!(&node.op, Op::Onnx(op) if op.attributes == [("axis", Int(0))]);
        if !greatest || !by_row || self.rank(x) != 2 {
            return None;
        }
        let (x, rotation, reads) = match self.turned(x) {
            Some((turned, order)) => (turned, order, 1),
            // The greatest, the least, and all of it.
            None => (x, 1, if both_sides { 3 } else { 2 }),
        };
        let attributes = vec![
            ("rotation", Int(rotation)),
            ("zero", Int(zero.into())),
            ("both_sides", Int(both_sides.into())),
            ("least", Float(least)),
            ("inverse", Float(self.number(inverse)?)),
        ];
        Some(Rounded { x, made: [node.outputs[0], steps], reads, attributes })
    }

    /// What was turned, and the order of the matrix that did it.
    fn turned(&self, x: usize) -> Option<(usize, i64)> {
        let [matrix, seen] = inputs(self.only(self.made_by(x, "Reshape")?.inputs[0]?, "MatMul")?)?;
        let Source::Constant(matrix) = &self.values[matrix].source else { return None };
        let &[order, _] = &matrix.shape[..] else { return None };
        let is_hadamard = order.is_power_of_two()
            && matrix.bytes.iter().copied().eq(hadamard(order).into_iter().flat_map(f32::to_le_bytes));
        let turned = self.only(seen, "Reshape")?.inputs[0]?;
        is_hadamard.then_some((turned, i64::try_from(order).ok()?))
    }
}
