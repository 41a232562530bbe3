//! Which element type weights are stored in and arithmetic is done in.

use std::collections::HashMap;

use half::{bf16, f16};

use super::Pass;
use crate::graph::{Constant, Graph, Node, Output, Source, Weight, WeightPart};
use crate::op::{Op, Type};
use crate::{DType, Value};

/// Stores weights in 16 bits where asked to and computes in `compute`.
///
/// Models are written in `f32`. A node computes in the widest floating-point type among the values it reads; weights and
/// constants follow it through a `Cast`, so that a 16-bit checkpoint is used where it lies. Inputs and outputs stay `f32`.
pub struct Precision {
    compute: DType,
    stored: Option<DType>,
    casts: HashMap<(usize, DType), usize>,
}

impl Precision {
    /// Arithmetic in `compute`; weights stored as `stored`, or as the checkpoint has them, never in more bits than it has.
    #[must_use]
    pub fn new(compute: DType, stored: Option<DType>) -> Self {
        Self { compute, stored, casts: HashMap::new() }
    }

    /// Only `f16` lacks the range of `f32`.
    fn wide(&self) -> DType {
        if self.compute == DType::F16 { DType::F32 } else { self.compute }
    }

    fn cast<'g>(&mut self, value: Value<'g>, dtype: DType) -> Value<'g> {
        if !value.dtype().is_float() || value.dtype() == dtype {
            return value;
        }
        match value.source() {
            Source::Constant(constant) => return value.graph.constant(convert(&constant, dtype)),
            // Scales are made for the layer: they are stored as it reads them.
            Source::Weight(weight) if weight.part == WeightPart::Scales => {
                return value.graph.weight(Weight { stored: dtype, ..weight }, dtype);
            }
            _ => {}
        }
        let id = *self.casts.entry((value.id(), dtype)).or_insert_with(|| value.cast(dtype).id());
        value.graph.value(id)
    }
}

/// Whether a value is known before the graph runs and so follows its node's precision.
fn is_parameter(value: Value<'_>) -> bool {
    matches!(value.source(), Source::Weight(_) | Source::Constant(_))
}

impl Pass for Precision {
    fn name(&self) -> &'static str {
        "precision"
    }

    fn input(&mut self, _: usize, old: &Type, state: bool) -> Type {
        let dtype = if state && old.dtype.is_float() { self.compute } else { old.dtype };
        Type::new(dtype, old.shape.clone())
    }

    fn weight<'g>(&mut self, weight: &Weight, dtype: DType, out: &'g Graph) -> Value<'g> {
        match weight.part {
            WeightPart::Whole => {}
            _ => return out.weight(weight.clone(), dtype),
        }
        let stored = self.stored.filter(|s| s.size() <= weight.stored.size()).unwrap_or(weight.stored);
        out.weight(Weight { stored, ..weight.clone() }, stored)
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        let first = inputs.first().copied().flatten();
        match (&node.op, first) {
            (Op::Narrow, Some(x)) => return Some(vec![self.cast(x, self.compute)]),
            (Op::Wide, Some(x)) => return Some(vec![self.cast(x, self.wide())]),
            // Rows of an embedding are taken first and converted then: the table may be gigabytes.
            (Op::Gather(axis), Some(table)) if is_parameter(table) => {
                return Some(vec![self.cast(table.gather(*axis, inputs[1]?), self.compute)]);
            }
            (Op::Cast(_), _) => return None,
            _ => {}
        }
        let floats = inputs.iter().flatten().filter(|v| v.dtype().is_float() && !is_parameter(**v));
        let dtype = floats.map(|v| v.dtype()).max_by_key(|d| d.size()).unwrap_or(self.compute);
        let inputs: Vec<_> = inputs.iter().map(|v| v.map(|v| self.cast(v, dtype).id())).collect();
        Some(out.add(node.op.clone(), &inputs))
    }

    fn output<'g>(&mut self, output: &Output, value: Value<'g>) -> Value<'g> {
        self.cast(value, if output.state { self.compute } else { DType::F32 })
    }
}

fn convert(constant: &Constant, dtype: DType) -> Constant {
    let numbers = constant.bytes.chunks_exact(constant.dtype.size()).map(|b| match constant.dtype {
        DType::F16 => f16::from_le_bytes([b[0], b[1]]).to_f32(),
        DType::BF16 => bf16::from_le_bytes([b[0], b[1]]).to_f32(),
        _ => f32::from_le_bytes([b[0], b[1], b[2], b[3]]),
    });
    let bytes = match dtype {
        DType::F16 => numbers.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
        DType::BF16 => numbers.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
        _ => numbers.flat_map(f32::to_le_bytes).collect(),
    };
    Constant { dtype, shape: constant.shape.clone(), bytes }
}
