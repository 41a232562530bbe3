//! The pass that quantizes the layers of a [`Plan`].

use cogvx_graphs::graph::{Graph, Node, Source, Weight, WeightPart};
use cogvx_graphs::op::Op;
use cogvx_graphs::pass::Pass;
use cogvx_graphs::quantized::QuantizedLinear;
use cogvx_graphs::{DType, Value};

use crate::plan::Plan;

/// Replaces the linear layers that `plan` names. Goes before the passes that choose precision and target.
pub struct Quantize<'a> {
    plan: &'a Plan,
}

impl<'a> Quantize<'a> {
    /// A pass that follows `plan`.
    #[must_use]
    pub fn new(plan: &'a Plan) -> Self {
        Self { plan }
    }
}

impl Pass for Quantize<'_> {
    fn name(&self) -> &'static str {
        "quantize"
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        if let Some(factors) = self.plan.norms.get(&node.outputs[0]) {
            let factors = out.floats(&[factors.len()], factors);
            let parameters = inputs[1..].iter().map(|p| p.map(|p| (p * factors).id()));
            let inputs: Vec<_> = [inputs[0].map(Value::id)].into_iter().chain(parameters).collect();
            return Some(out.add(node.op.clone(), &inputs));
        }
        if node.op != Op::Linear {
            return None;
        }
        let Source::Weight(weight) = inputs[1]?.source() else { return None };
        let layer = self.plan.layers.get(&weight.name).filter(|_| weight.part == WeightPart::Whole)?;
        let parts = layer.form.tensors(self.plan.target, layer.features).into_iter().map(|part| {
            let dtype = if part.part == WeightPart::Scales { DType::F32 } else { part.dtype };
            let weight = Weight { name: weight.name.clone(), part: part.part, stored: part.dtype, shape: part.shape };
            Some(out.weight(weight, dtype).id())
        });
        let bias = inputs.get(2).copied().flatten().map(|bias| match &layer.rows[..] {
            [] => Some(bias.id()),
            rows => Some((bias * out.floats(&[rows.len()], rows)).id()),
        });
        let inputs: Vec<_> = [Some(inputs[0]?.id())].into_iter().chain(parts).chain(bias).collect();
        let op = Op::QuantizedLinear(QuantizedLinear { features: layer.features, form: layer.form });
        Some(out.add(op, &inputs))
    }
}
