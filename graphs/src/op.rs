//! The operations of a graph: what CogVideoX means, and what a target's ONNX says.

use std::borrow::Cow;

use crate::quantized::{Bytes, QuantizedConv, QuantizedLinear};
use crate::{DType, Dim};

/// Element type and sizes of a tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Type {
    /// Element type.
    pub dtype: DType,
    /// Size of each axis.
    pub shape: Vec<Dim>,
}

impl Type {
    /// A tensor of `dtype` with these axes.
    #[must_use]
    pub fn new(dtype: DType, shape: Vec<Dim>) -> Self {
        Self { dtype, shape }
    }
}

/// One operation.
///
/// Models are written in these; [`crate::pass::Lower`] turns each into a target's ONNX form ([`Op::Onnx`]), the only
/// kind that can be serialized.
#[derive(Clone, Debug, PartialEq)]
pub enum Op {
    /// Element-wise function of one tensor.
    Unary(Unary),
    /// Element-wise function of two tensors, broadcast as in numpy.
    Binary(Binary),
    /// Change of element type.
    Cast(DType),
    /// From here on the graph's compute precision is enough.
    Narrow,
    /// From here on the range of `float16` is not enough.
    Wide,
    /// The same elements, other axes.
    Reshape(Vec<Dim>),
    /// Axes in another order.
    Transpose(Vec<usize>),
    /// Tensors side by side along an axis.
    Concat(usize),
    /// `length` elements of an axis, from `start` on.
    Slice {
        /// The axis.
        axis: usize,
        /// First element.
        start: Dim,
        /// How many elements.
        length: Dim,
    },
    /// One number of all axes but the last, for each element of the last.
    OverRows(Reduction),
    /// The last `n` elements of an axis.
    Last {
        /// The axis.
        axis: usize,
        /// How many.
        n: usize,
    },
    /// Equal parts of an axis.
    Split {
        /// The axis.
        axis: usize,
        /// How many parts.
        parts: usize,
    },
    /// Rows of the first input, chosen along an axis by the second.
    Gather(usize),
    /// Nearest-neighbour upsampling by whole factors, one per axis.
    Upsample(Vec<usize>),
    /// A size as an `i64` tensor `[1]`.
    Size(Dim),
    /// `0, 1, ..., n - 1` as `i64`, `n` given by the `[1]` input and named by the [`Dim`].
    Range(Dim),
    /// `x @ weight.T (+ bias)`, weight `[out, in]` as PyTorch stores it.
    Linear,
    /// The same with a weight in few bits.
    QuantizedLinear(QuantizedLinear),
    /// Convolution over all axes but the first two; weight `[out, in, ...]`, bias `[out]`.
    Conv {
        /// Step of each spatial axis.
        strides: Vec<usize>,
        /// Zeros before and after each spatial axis.
        pads: Vec<[usize; 2]>,
    },
    /// Numbers become bytes.
    Quantize(Bytes),
    /// A convolution of bytes.
    QuantizedConv(QuantizedConv),
    /// Layer normalization over the last axis, then `* scale + shift`.
    LayerNorm {
        /// Added to the variance.
        epsilon: f32,
    },
    /// Root-mean-square normalization over the last axis, then `* scale`.
    RmsNorm {
        /// Added to the mean square.
        epsilon: f32,
    },
    /// Group normalization of `[batch, channels, ...]` without scale and shift.
    GroupNorm {
        /// Groups of channels.
        groups: usize,
        /// Added to the variance.
        epsilon: f32,
    },
    /// Multi-head scaled dot-product attention of `[batch, tokens, heads * head width]` queries, keys and values, with an
    /// optional additive bias `[1, heads, tokens, tokens]`.
    Attention {
        /// Number of heads.
        heads: usize,
        /// Factor of the scores before the softmax.
        scale: f32,
    },
    /// Rotary positions on `[batch, tokens, heads * head width]`: each pair of neighbours is turned by its angle, given as
    /// cosine and sine tables `[tokens, head width / 2]`.
    Rotary {
        /// Number of heads.
        heads: usize,
    },
    /// GELU, tanh approximation.
    Gelu,
    /// `x * sigmoid(x)`.
    Silu,
    /// A target's ONNX operation.
    Onnx(OnnxOp),
}

/// Element-wise functions of one tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Unary {
    Sin,
    Cos,
    Sigmoid,
}

/// One number made of many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Reduction {
    Least,
    Greatest,
}

/// Element-wise functions of two tensors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Mod,
    Min,
    Max,
}

/// An ONNX operation with everything its node proto needs.
#[derive(Clone, Debug, PartialEq)]
pub struct OnnxOp {
    /// `""` for ONNX's own operators.
    pub domain: &'static str,
    /// Operator type.
    pub name: &'static str,
    /// First opset of ONNX's own domain that knows this form.
    pub since: i64,
    /// Attributes in the order they are written.
    pub attributes: Vec<(&'static str, Attribute)>,
    /// Types of the outputs.
    pub outputs: Vec<Type>,
}

impl OnnxOp {
    /// Whether the output is the first input, seen with another shape.
    #[must_use]
    pub fn is_view(&self) -> bool {
        matches!(self.name, "Reshape" | "ExpandDims")
    }
}

/// Value of an ONNX attribute.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Attribute {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Text(Cow<'static, str>),
}

impl Op {
    /// Name for people: in printed graphs and problem reports.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unary(Unary::Sin) => "Sin",
            Self::Unary(Unary::Cos) => "Cos",
            Self::Unary(Unary::Sigmoid) => "Sigmoid",
            Self::Binary(Binary::Add) => "Add",
            Self::Binary(Binary::Sub) => "Sub",
            Self::Binary(Binary::Mul) => "Mul",
            Self::Binary(Binary::Div) => "Div",
            Self::Binary(Binary::Mod) => "Mod",
            Self::Binary(Binary::Min) => "Min",
            Self::Binary(Binary::Max) => "Max",
            Self::Cast(_) => "Cast",
            Self::Narrow => "Narrow",
            Self::Wide => "Wide",
            Self::Reshape(_) => "Reshape",
            Self::Transpose(_) => "Transpose",
            Self::Concat(_) => "Concat",
            Self::Slice { .. } => "Slice",
            Self::OverRows(Reduction::Least) => "Least",
            Self::OverRows(Reduction::Greatest) => "Greatest",
            Self::Last { .. } => "Last",
            Self::Split { .. } => "Split",
            Self::Gather(_) => "Gather",
            Self::Upsample(_) => "Upsample",
            Self::Size(_) => "Size",
            Self::Range(_) => "Range",
            Self::Linear => "Linear",
            Self::QuantizedLinear(_) => "QuantizedLinear",
            Self::Conv { .. } => "Conv",
            Self::Quantize(_) => "Quantize",
            Self::QuantizedConv(_) => "QuantizedConv",
            Self::LayerNorm { .. } => "LayerNorm",
            Self::RmsNorm { .. } => "RmsNorm",
            Self::GroupNorm { .. } => "GroupNorm",
            Self::Attention { .. } => "Attention",
            Self::Rotary { .. } => "Rotary",
            Self::Gelu => "Gelu",
            Self::Silu => "Silu",
            Self::Onnx(op) => op.name,
        }
    }
}
