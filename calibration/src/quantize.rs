//! The pass that quantizes the layers of a [`Plan`].

use std::collections::HashMap;

use cogvx_graphs::graph::{Graph, Node, Source, Weight, WeightPart};
use cogvx_graphs::op::{Op, Type};
use cogvx_graphs::pass::Pass;
use cogvx_graphs::quantized::{Bytes, PartType, QuantizedConv, QuantizedLinear};
use cogvx_graphs::{DType, Value};

use crate::balance::Balance;
use crate::convs::moved;
use crate::plan::Plan;

/// Replaces the layers that `plan` names. What is merely moved on its way to a convolution, or kept for the next run, is moved
/// as bytes. Goes before the passes that choose precision and target.
pub struct Quantize<'a> {
    plan: &'a Plan,
    /// Values that become bytes, and which.
    moved: HashMap<usize, Bytes>,
    /// By value and bytes: the value as bytes.
    bytes: HashMap<(usize, u32, u8), usize>,
}

impl<'a> Quantize<'a> {
    /// A pass over `graph` that follows `plan`.
    #[must_use]
    pub fn new(plan: &'a Plan, graph: &Graph) -> Self {
        Self { plan, moved: moved(graph, &plan.convs), bytes: HashMap::new() }
    }

    /// `x` as bytes, once.
    fn bytes_of(&mut self, x: Value<'_>, bytes: Bytes, out: &Graph) -> usize {
        if x.dtype() != DType::F32 {
            return x.id();
        }
        let key = (x.id(), bytes.step.to_bits(), bytes.zero_point);
        *self.bytes.entry(key).or_insert_with(|| out.add(Op::Quantize(bytes), &[Some(x.id())])[0].id())
    }

    /// The quantized form of a convolution, if it is planned.
    fn convolution<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        let (Op::Conv { strides, pads }, &[Some(x), Some(weight), ..]) = (&node.op, inputs) else { return None };
        let Source::Weight(weight) = weight.source() else { return None };
        let layer = self.plan.convs.get(&weight.name)?;
        let (strides, pads) = (strides.clone(), pads.clone());
        let conv = QuantizedConv { strides, pads, reads: layer.reads, makes: layer.makes };
        let parts = QuantizedConv::tensors(&layer.shape).map(|part| Some(weight_part(&weight, part, out)));
        let x = self.bytes_of(x, layer.reads, out);
        Some(out.add(Op::QuantizedConv(conv), &[&[Some(x)], &parts[..]].concat()))
    }
}

/// A norm that makes what `balance` says: of scale `s`, shift `b`, offsets `o` and factors `f` the scale is `s / f` and the shift
/// `(b - o) / f`.
fn balanced<'g>(node: &Node, balance: &Balance, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Vec<Value<'g>> {
    let constant = |numbers: &[f32]| out.floats(&[numbers.len()], numbers);
    let inverse = constant(&balance.inverse());
    let scale = inputs.get(1).copied().flatten().map(|scale| scale * inverse);
    let shift = inputs.get(2).copied().flatten().map(|shift| {
        let shift = if balance.offsets.is_empty() { shift } else { shift - constant(&balance.offsets) };
        shift * inverse
    });
    let inputs = [inputs[0], scale, shift].map(|input| input.map(Value::id));
    out.add(node.op.clone(), &inputs[..node.inputs.len()])
}

/// One tensor of a quantized weight.
fn weight_part(weight: &Weight, part: PartType, out: &Graph) -> usize {
    let weight = Weight { name: weight.name.clone(), part: part.part, stored: part.dtype, shape: part.shape };
    out.weight(weight, part.dtype).id()
}

impl Pass for Quantize<'_> {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn input(&mut self, id: usize, old: &Type, _: bool) -> Type {
        let dtype = if self.moved.contains_key(&id) { DType::U8 } else { old.dtype };
        Type::new(dtype, old.shape.clone())
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        if let Some(balance) = self.plan.norms.get(&node.outputs[0]) {
            return Some(balanced(node, balance, inputs, out));
        }
        if let Some(&bytes) = self.moved.get(&node.outputs[0]) {
            let inputs: Vec<_> = inputs.iter().map(|x| x.map(|x| self.bytes_of(x, bytes, out))).collect();
            return Some(out.add(node.op.clone(), &inputs));
        }
        if node.op != Op::Linear {
            return self.convolution(node, inputs, out);
        }
        let Source::Weight(weight) = inputs[1]?.source() else { return None };
        let layer = self.plan.layers.get(&weight.name).filter(|_| weight.part == WeightPart::Whole)?;
        let parts = layer.form.tensors(self.plan.target, layer.features);
        let parts = parts.into_iter().map(|part| Some(weight_part(&weight, part, out)));
        let constant = |numbers: &[f32]| (!numbers.is_empty()).then(|| out.floats(&[numbers.len()], numbers));
        let bias = inputs.get(2).copied().flatten().map(|bias| {
            let bias = constant(&layer.bias).map_or(bias, |more| bias + more);
            Some(constant(&layer.rows).map_or(bias, |factors| bias * factors).id())
        });
        let inputs: Vec<_> = [Some(inputs[0]?.id())].into_iter().chain(parts).chain(bias).collect();
        let op = Op::QuantizedLinear(QuantizedLinear { features: layer.features, form: layer.form });
        Some(out.add(op, &inputs))
    }
}
