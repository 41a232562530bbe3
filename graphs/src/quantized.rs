//! Layers with weights in few bits: the forms that runtimes have kernels for, and the tensors each of them reads.

use crate::DType;
use crate::graph::WeightPart;
use crate::pass::Target;

/// How a linear layer computes with a quantized weight.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LinearForm {
    /// W8A8: `int8` weights with a scale for each output feature; the features of each token become `uint8` by their own
    /// largest magnitude while the graph runs.
    PerToken {
        /// Order of Hadamard's matrix that turns the features before they are rounded, and that turned the rows of the weight: the
        /// product is the same, and no feature is much larger than the others (`QuaRot`, Ashkboos et al. 2024). A power of two that
        /// divides the features, which are seen as `[order, features / order]`; 1 for not.
        rotation: usize,
    },
    /// W8A8: the same weights; all features become eight bits by one scale found beforehand.
    PerTensor {
        /// The step between two values.
        scale: f32,
        /// The value that stands for zero, of 0..=255; 128 is symmetric, the only choice on TensorRT.
        zero_point: u8,
    },
    /// Weights alone, in `bits` bits: each output feature's weights have a scale for every `block` of them.
    Blocks {
        /// 8 or 4.
        bits: u8,
        /// Input features that share a scale: a power of two.
        block: usize,
        /// Whether the values are symmetric around zero; else each block has its zero point.
        symmetric: bool,
    },
    /// FP8 (E4M3): weights with a scale for each output feature, features by one scale found beforehand.
    Float8 {
        /// What a feature is divided by.
        scale: f32,
    },
}

/// A linear layer with a quantized weight. Reads the features, the weight's parts as [`LinearForm::tensors`] lists them, and
/// a bias.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedLinear {
    /// How many features come out and go in.
    pub features: [usize; 2],
    /// How it computes.
    pub form: LinearForm,
}

/// Numbers as bytes: `round(x / step) + zero_point`, cut off at 0 and 255.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Bytes {
    /// The step between two values.
    pub step: f32,
    /// The value that stands for zero.
    pub zero_point: u8,
}

/// A convolution of bytes. Reads `u8` features, the weight as `i8` `[out, in, ...]`, its scales `[out]`, its zero points `[out]`, all
/// 0, and the bias as `i32` `[out]`, in steps of the features' times the weight's; the result is rounded to bytes, then `f32` again.
///
/// Convolutions that shared one zero would not load where a processor lacks VNNI: ONNX Runtime makes each weight and its zero points
/// `u8` there, and makes no tensor twice.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedConv {
    /// Step of each spatial axis.
    pub strides: Vec<usize>,
    /// Zeros before and after each spatial axis.
    pub pads: Vec<[usize; 2]>,
    /// What it reads.
    pub reads: Bytes,
    /// What it makes.
    pub makes: Bytes,
}

impl QuantizedConv {
    /// The tensors of a weight of `shape` with a bias, in the order they are read.
    #[must_use]
    pub fn tensors(shape: &[usize]) -> [PartType; 4] {
        let part = |part, dtype, shape: &[usize]| PartType { part, dtype, shape: shape.to_vec() };
        let out = &shape[..1];
        [
            part(WeightPart::Values, DType::I8, shape),
            part(WeightPart::Scales, DType::F32, out),
            part(WeightPart::ZeroPoints, DType::I8, out),
            part(WeightPart::Bias, DType::I32, out),
        ]
    }
}

/// One tensor a quantized weight consists of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PartType {
    /// What of the weight.
    pub part: WeightPart,
    /// Element type; scales take the precision of the graph's arithmetic.
    pub dtype: DType,
    /// Sizes.
    pub shape: Vec<usize>,
}

impl LinearForm {
    /// The tensors of a weight `[out, in]` in this form.
    #[must_use]
    pub fn tensors(self, target: Target, [out, input]: [usize; 2]) -> Vec<PartType> {
        let part = |part, dtype, shape: &[usize]| PartType { part, dtype, shape: shape.to_vec() };
        let values = |dtype, shape: &[usize]| part(WeightPart::Values, dtype, shape);
        let scales = |shape: &[usize]| part(WeightPart::Scales, DType::F32, shape);
        match self {
            // ONNX Runtime's fused product wants the weight transposed.
            Self::PerToken { .. } | Self::PerTensor { .. } if target == Target::Cpu => {
                vec![values(DType::I8, &[input, out]), scales(&[out])]
            }
            Self::PerToken { .. } | Self::PerTensor { .. } => vec![values(DType::I8, &[out, input]), scales(&[out])],
            Self::Float8 { .. } => vec![values(DType::F8E4M3, &[out, input]), scales(&[out])],
            Self::Blocks { bits, block, .. } if target == Target::TensorRt => {
                let dtype = if bits == 4 { DType::I4 } else { DType::I8 };
                vec![values(dtype, &[out, input]), scales(&[out, input.div_ceil(block)])]
            }
            Self::Blocks { bits, block, symmetric } => {
                let blocks = input.div_ceil(block);
                let bytes = |values: usize| (values * usize::from(bits)).div_ceil(8);
                let mut parts = vec![values(DType::U8, &[out, blocks, bytes(block)]), scales(&[out, blocks])];
                if !symmetric {
                    parts.push(part(WeightPart::ZeroPoints, DType::U8, &[out, bytes(blocks)]));
                }
                parts
            }
        }
    }

    /// Order of the matrix that turns features and the rows of the weight; 1 for none.
    #[must_use]
    pub const fn rotation(self) -> usize {
        if let Self::PerToken { rotation } = self { rotation } else { 1 }
    }

    /// Whether the form takes features of this type.
    pub(crate) fn accepts(self, dtype: DType) -> bool {
        match self {
            Self::PerToken { .. } => dtype == DType::F32,
            _ => dtype.is_float(),
        }
    }
}

/// Sylvester's Hadamard matrix over the root of its order, a power of two: `[order, order]`.
pub(crate) fn hadamard(order: usize) -> Vec<f32> {
    #[allow(clippy::cast_precision_loss)] // Orders are far below 2^24.
    let one = 1.0 / (order as f32).sqrt();
    let sign = |i: usize| if ((i / order) & (i % order)).count_ones().is_multiple_of(2) { one } else { -one };
    (0..order * order).map(sign).collect()
}
