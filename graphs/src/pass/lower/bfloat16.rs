//! Forms for CUDA's `bfloat16`, for which ONNX Runtime lacks kernels that it has for other types.
//!
//! A `Conv` of `bfloat16` takes opset 22, and in opset 22 `InstanceNormalization` is a new operator that has no CUDA kernel in
//! any type; `Resize` has none for `bfloat16` in any opset. Graphs for TensorRT have these forms, too: in `bfloat16` CUDA is where
//! they are tried before an engine is built, for the processor has no such kernels at all.

use super::{Lower, Target, binary, cast, emit};
use crate::op::Type;
use crate::{DType, Dim, Value};

impl Lower {
    /// Whether the target computes `dtype` in these forms.
    pub(super) fn lacks_kernels(&self, dtype: DType) -> bool {
        self.target != Target::Cpu && dtype == DType::BF16
    }

    /// Nearest-neighbour upsampling: each axis gets a neighbour of one element, which is repeated.
    pub(super) fn repeated<'g>(&mut self, x: Value<'g>, factors: &[usize], to: &[Dim]) -> Value<'g> {
        let out = x.graph;
        let (mut split, mut repeats, mut repeated) = (vec![], vec![], vec![]);
        for (dim, &factor) in x.shape().iter().zip(factors) {
            split.push(dim.clone());
            repeats.push(1);
            repeated.push(dim.clone());
            if factor > 1 {
                split.push(Dim::Fixed(1));
                repeats.push(super::signed(factor));
                repeated.push(Dim::Fixed(factor));
            }
        }
        let split = self.reshape(x, &split);
        // Sizes of one leave an axis as it is, so that open sizes need not be asked for.
        let repeats = out.integers(&[repeats.len()], &repeats);
        let r#type = Type::new(x.dtype(), repeated);
        let repeated = emit("", "Expand", 13, vec![], &[Some(split), Some(repeats)], vec![r#type], out)[0];
        self.reshape(repeated, to)
    }
}

/// The last axis with a mean of 0 and a variance of 1, computed in `float32`.
pub(super) fn normalized(x: Value<'_>, epsilon: f32) -> Value<'_> {
    let (out, wide) = (x.graph, cast(x, DType::F32));
    let centred = binary("Sub", 14, wide, mean(wide));
    let variance = mean(binary("Mul", 14, centred, centred));
    let variance = binary("Add", 14, variance, out.floats(&[], &[epsilon]));
    let deviation = emit("", "Sqrt", 13, vec![], &[Some(variance)], vec![variance.r#type()], out)[0];
    cast(binary("Div", 14, centred, deviation), x.dtype())
}

/// The mean of the last axis, which stays with one element.
fn mean(x: Value<'_>) -> Value<'_> {
    let mut r#type = x.r#type();
    if let Some(last) = r#type.shape.last_mut() {
        *last = Dim::Fixed(1);
    }
    let axis = x.graph.integers(&[1], &[-1]);
    emit("", "ReduceMean", 18, vec![], &[Some(x), Some(axis)], vec![r#type], x.graph)[0]
}
