//! Linear layers on CPUs whose large 16-bit weights are widened a part at a time.
//!
//! A widened part fits in memory that the allocator hands out again and that partly stays in a core's cache. The whole would be
//! fetched from the system, page by page, at each use.

use super::{Attribute::Int, cast, emit, gemm, producer, signed, slice};
use crate::graph::{Source, Weight, WeightPart};
use crate::op::Type;
use crate::{Dim, Value};

/// Bytes of a widened part.
const PART: usize = 4 << 20;

/// The weight and, if there is one, the bias of some of the output features.
pub(super) type Part<'g> = [Option<Value<'g>>; 2];

/// The parts of a linear layer's parameters; nothing if the weight is not widened where it is used, or small.
pub(super) fn of_widened<'g>(parameters: &[Option<Value<'g>>]) -> Vec<Part<'g>> {
    let (weight, bias) = (parameters[0], parameters.get(1).copied().flatten());
    weight.and_then(|weight| widened(weight, bias)).unwrap_or_default()
}

fn widened<'g>(weight: Value<'g>, bias: Option<Value<'g>>) -> Option<Vec<Part<'g>>> {
    let out = weight.graph;
    let narrow = out.value(producer(weight, "Cast")?.inputs[0]?);
    let Source::Weight(whole) = narrow.source() else { return None };
    let &[rows, columns] = &whole.shape[..] else { return None };
    let parts = (rows * columns * weight.dtype().size()).div_ceil(PART);
    if parts < 2 || whole.part != WeightPart::Whole {
        return None;
    }
    let part = |i: usize| {
        let (first, end) = (rows * i / parts, rows * (i + 1) / parts);
        let part = WeightPart::Rows { first, of: rows };
        let count = end - first;
        let rows = Weight { part, shape: vec![count, columns], ..whole.clone() };
        let weight = cast(out.weight(rows, narrow.dtype()), weight.dtype());
        let bias = bias.map(|bias| {
            let [first, last] = [first, end].map(|n| out.integers(&[1], &[signed(n)]));
            slice(bias, 0, first, last, Type::new(bias.dtype(), vec![Dim::Fixed(count)]))
        });
        [Some(weight), bias]
    };
    Some((0..parts).map(part).collect())
}

/// All parts' outputs side by side.
pub(super) fn linear<'g>(x: Value<'g>, parts: &[Part<'g>], out_features: Dim) -> Value<'g> {
    let outputs: Vec<_> = parts
        .iter()
        .map(|part| {
            let features = part[0].map_or(Dim::Fixed(0), |weight| weight.dim(0));
            Some(gemm(x, part, features))
        })
        .collect();
    let to = Type::new(x.dtype(), vec![x.dim(0), out_features]);
    emit("", "Concat", 13, vec![("axis", Int(1))], &outputs, vec![to], x.graph)[0]
}
