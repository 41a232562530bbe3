//! Handles to values, and the operations that read like formulas.

use std::ops::{Add, Div, Mul, Sub};

use crate::graph::{Constant, Graph, Source};
use crate::op::{Binary, Op, Reduction, Type, Unary};
use crate::{DType, Dim};

/// A value of a graph: a handle, free to copy.
///
/// ```
/// use cogvx_graphs::{DType, Graph, dims};
/// let graph = Graph::new();
/// let x = graph.input("x", DType::F32, dims![2, 8]);
/// graph.output("y", (x * 0.5 + 1.0).silu());
/// assert_eq!(graph.nodes().len(), 3);
/// ```
#[derive(Clone, Copy)]
pub struct Value<'g> {
    pub(crate) graph: &'g Graph,
    pub(crate) id: usize,
}

impl<'g> Value<'g> {
    /// Element type and sizes.
    #[must_use]
    pub fn r#type(self) -> Type {
        self.graph.values()[self.id].r#type.clone()
    }

    /// Element type.
    #[must_use]
    pub fn dtype(self) -> DType {
        self.graph.values()[self.id].r#type.dtype
    }

    /// Sizes.
    #[must_use]
    pub fn shape(self) -> Vec<Dim> {
        self.r#type().shape
    }

    /// Size of one axis.
    #[must_use]
    pub fn dim(self, axis: usize) -> Dim {
        self.shape().get(axis).cloned().unwrap_or(Dim::Fixed(1))
    }

    /// Index in [`Graph::values`].
    #[must_use]
    pub fn id(self) -> usize {
        self.id
    }

    /// Where the value comes from.
    #[must_use]
    pub fn source(self) -> Source {
        self.graph.values()[self.id].source.clone()
    }

    fn unary(self, op: Op) -> Self {
        self.graph.apply(op, &[Some(self.id)])
    }

    fn with(self, op: Op, others: &[Value<'g>]) -> Self {
        let inputs: Vec<_> = std::iter::once(self).chain(others.iter().copied()).map(|v| Some(v.id)).collect();
        self.graph.apply(op, &inputs)
    }

    /// Sine.
    #[must_use]
    pub fn sin(self) -> Self {
        self.unary(Op::Unary(Unary::Sin))
    }

    /// Cosine.
    #[must_use]
    pub fn cos(self) -> Self {
        self.unary(Op::Unary(Unary::Cos))
    }

    /// `x * sigmoid(x)`.
    #[must_use]
    pub fn silu(self) -> Self {
        self.unary(Op::Silu)
    }

    /// GELU in its tanh approximation, `0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`.
    #[must_use]
    pub fn gelu(self) -> Self {
        self.unary(Op::Gelu)
    }

    /// Compute precision from here on.
    #[must_use]
    pub fn narrow(self) -> Self {
        self.unary(Op::Narrow)
    }

    /// A range beyond `float16`'s from here on.
    #[must_use]
    pub fn wide(self) -> Self {
        self.unary(Op::Wide)
    }

    /// Another element type.
    #[must_use]
    pub fn cast(self, dtype: DType) -> Self {
        if self.dtype() == dtype { self } else { self.unary(Op::Cast(dtype)) }
    }

    /// The same elements on other axes.
    #[must_use]
    pub fn reshape(self, to: Vec<Dim>) -> Self {
        if self.shape() == to { self } else { self.unary(Op::Reshape(to)) }
    }

    /// Axes in the order `order`.
    #[must_use]
    pub fn transpose<const N: usize>(self, order: [usize; N]) -> Self {
        self.unary(Op::Transpose(order.to_vec()))
    }

    /// `length` elements of `axis` from `start` on.
    #[must_use]
    pub fn slice(self, axis: usize, start: impl Into<Dim>, length: impl Into<Dim>) -> Self {
        self.unary(Op::Slice { axis, start: start.into(), length: length.into() })
    }

    /// The last `n` elements of `axis`.
    #[must_use]
    pub fn last(self, axis: usize, n: usize) -> Self {
        self.unary(Op::Last { axis, n })
    }

    /// The least or greatest element at each place of the last axis.
    #[must_use]
    pub fn over_rows(self, reduction: Reduction) -> Self {
        self.unary(Op::OverRows(reduction))
    }

    /// `count` evenly spaced rows of all axes but the last, `[count, features]`; rows repeat where there are fewer.
    #[must_use]
    pub fn sample_rows(self, count: usize) -> Self {
        let (shape, g) = (self.shape(), self.graph);
        let Some((features, front)) = shape.split_last() else { return self };
        let rows = Dim::product(front);
        let n = i64::try_from(count).unwrap_or(i64::MAX);
        let index = g.range(&Dim::Fixed(count), g.integers(&[1], &[n])) * g.size(&rows) / g.integers(&[1], &[n]);
        self.reshape(vec![rows, features.clone()]).gather(0, index)
    }

    /// `N` equal parts of `axis`.
    #[must_use]
    pub fn split<const N: usize>(self, axis: usize) -> [Self; N] {
        let parts = self.graph.add(Op::Split { axis, parts: N }, &[Some(self.id)]);
        std::array::from_fn(|i| parts[i.min(parts.len() - 1)])
    }

    /// Rows along `axis` chosen by the `i64` tensor `index`.
    #[must_use]
    pub fn gather(self, axis: usize, index: Value<'g>) -> Self {
        self.with(Op::Gather(axis), &[index])
    }

    /// Nearest-neighbour upsampling, one whole factor per axis.
    #[must_use]
    pub fn upsample<const N: usize>(self, factors: [usize; N]) -> Self {
        self.unary(Op::Upsample(factors.to_vec()))
    }

    /// `self @ weight.T (+ bias)`.
    #[must_use]
    pub fn linear(self, weight: Value<'g>, bias: Option<Value<'g>>) -> Self {
        let parameters: Vec<_> = std::iter::once(weight).chain(bias).collect();
        self.with(Op::Linear, &parameters)
    }

    /// Convolution over the axes after `[batch, channels]`.
    #[must_use]
    pub fn conv<const N: usize>(
        self,
        weight: Value<'g>,
        bias: Option<Value<'g>>,
        strides: [usize; N],
        pads: [[usize; 2]; N],
    ) -> Self {
        let parameters: Vec<_> = std::iter::once(weight).chain(bias).collect();
        self.with(Op::Conv { strides: strides.to_vec(), pads: pads.to_vec() }, &parameters)
    }

    /// Layer normalization over the last axis, then `* scale + shift`, both `[width]`.
    #[must_use]
    pub fn layer_norm(self, scale: Value<'g>, shift: Value<'g>, epsilon: f32) -> Self {
        self.with(Op::LayerNorm { epsilon }, &[scale, shift])
    }

    /// Root-mean-square normalization over the last axis, then `* scale`, `[width]`.
    #[must_use]
    pub fn rms_norm(self, scale: Value<'g>, epsilon: f32) -> Self {
        self.with(Op::RmsNorm { epsilon }, &[scale])
    }

    /// Group normalization of `[batch, channels, ...]`, without scale and shift.
    #[must_use]
    pub fn group_norm(self, groups: usize, epsilon: f32) -> Self {
        self.unary(Op::GroupNorm { groups, epsilon })
    }

    /// Attention of these queries, `[batch, tokens, heads * head width]`; see [`Op::Attention`].
    #[must_use]
    pub fn attention(
        self,
        key: Value<'g>,
        value: Value<'g>,
        bias: Option<Value<'g>>,
        heads: usize,
        scale: f32,
    ) -> Self {
        let others: Vec<_> = [key, value].into_iter().chain(bias).collect();
        self.with(Op::Attention { heads, scale }, &others)
    }

    /// Rotary positions on `[batch, tokens, heads * head width]`; see [`Op::Rotary`].
    #[must_use]
    pub fn rotary(self, cos: Value<'g>, sin: Value<'g>, heads: usize) -> Self {
        self.with(Op::Rotary { heads }, &[cos, sin])
    }

    /// Element-wise minimum with a number.
    #[must_use]
    pub fn min(self, bound: i64) -> Self {
        self.binary(Binary::Min, self.number(bound))
    }

    /// Element-wise maximum with a number.
    #[must_use]
    pub fn max(self, bound: i64) -> Self {
        self.binary(Binary::Max, self.number(bound))
    }

    /// Remainder of the division by a number.
    #[must_use]
    pub fn modulo(self, divisor: i64) -> Self {
        self.binary(Binary::Mod, self.number(divisor))
    }

    fn binary(self, op: Binary, other: Self) -> Self {
        self.with(Op::Binary(op), &[other])
    }

    /// A whole number of this value's element type.
    #[allow(clippy::cast_precision_loss)] // Graphs hold small whole numbers.
    fn number(self, n: i64) -> Self {
        if self.dtype() == DType::I64 { self.graph.integers(&[], &[n]) } else { self.scalar(n as f32) }
    }

    /// A number of this value's element type.
    #[allow(clippy::cast_possible_truncation)] // Formulas over integers use whole numbers.
    pub(crate) fn scalar(self, x: f32) -> Self {
        let bytes = match self.dtype() {
            DType::I64 => (x as i64).to_le_bytes().to_vec(),
            DType::F16 => half::f16::from_f32(x).to_le_bytes().to_vec(),
            DType::BF16 => half::bf16::from_f32(x).to_le_bytes().to_vec(),
            _ => x.to_le_bytes().to_vec(),
        };
        let dtype = self.dtype();
        self.graph.constant(Constant { dtype, shape: vec![], bytes })
    }
}

macro_rules! operator {
    ($trait:ident, $method:ident) => {
        impl<'g> $trait for Value<'g> {
            type Output = Value<'g>;
            fn $method(self, other: Value<'g>) -> Value<'g> {
                self.binary(Binary::$trait, other)
            }
        }
        impl<'g> $trait<f32> for Value<'g> {
            type Output = Value<'g>;
            fn $method(self, other: f32) -> Value<'g> {
                self.binary(Binary::$trait, self.scalar(other))
            }
        }
    };
}
operator!(Add, add);
operator!(Sub, sub);
operator!(Mul, mul);
operator!(Div, div);
