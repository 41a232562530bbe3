//! What one node costs, by its operator.

use super::Device;
use super::sizes::elements;
use crate::DType;
use crate::op::{Attribute, OnnxOp};

/// Shape and element type of a tensor of which all sizes are known.
pub(super) struct Known {
    pub shape: Vec<usize>,
    pub dtype: DType,
}

impl Known {
    pub fn elements(&self) -> u64 {
        elements(&self.shape)
    }

    pub fn bytes(&self) -> u64 {
        self.dtype.bytes(self.elements())
    }

    fn axis(&self, axis: usize) -> u64 {
        self.shape.get(axis).map_or(1, |&n| n as u64)
    }

    fn last(&self) -> u64 {
        self.axis(self.shape.len().saturating_sub(1))
    }
}

/// A node with all it reads and makes.
pub(super) struct Call<'a> {
    pub op: &'a OnnxOp,
    /// Absent optional inputs are `None`.
    pub inputs: Vec<Option<Known>>,
    pub outputs: Vec<Known>,
}

/// Elements of the working buffer that ONNX Runtime's convolutions have for each thread: 128 by 128.
const CONV_BLOCK: u64 = 128 * 128;
/// What fused attention takes of the second-level cache, at most, for each thread.
const ATTENTION_BLOCK: u64 = 2 << 20;

/// Numbers of rows that cogvx's linear layer takes at a time, and rows (`kernels/src/linear.rs`, `at_once`).
const AT_ONCE: [u64; 2] = [6 << 20, 1536];
/// Rows of its tiles in vectors, and of those in tile registers.
const TILES: [u64; 2] = [14, 32];
/// Weights that cogvx's linear layer has packed at a time, in bytes.
const PANEL: u64 = 3 << 18;
/// Heads that cogvx's attention has packed at a time.
const ATTENTION_HEADS: u64 = 3;

/// How many of so many rows of `features` it takes at a time.
fn at_once(rows: u64, features: u64) -> u64 {
    let most = (AT_ONCE[0] / features.max(1)).clamp(TILES[0], AT_ONCE[1]);
    rows.div_ceil(rows.div_ceil(most).max(1))
}

/// Bytes of what it takes at a time, packed: sixteen floats for each feature of a tile, or in tile registers three times sixteen bits.
fn packed(rows: u64, features: u64, tiles: bool) -> u64 {
    let rows = at_once(rows, features);
    let [bytes, most] = if tiles { [6 * TILES[1], TILES[1]] } else { [64, TILES[0]] };
    bytes * rows.div_ceil(most) * features
}

impl Call<'_> {
    fn input(&self, i: usize) -> Option<&Known> {
        self.inputs.get(i)?.as_ref()
    }

    fn made(&self) -> u64 {
        self.outputs.first().map_or(0, Known::elements)
    }

    /// Floating-point (or integer) operations of matrix products, convolutions and attention, a multiplication and an addition
    /// being two. All else is counted as nothing: it is bound by memory.
    pub fn flops(&self) -> u64 {
        // Each output element is a sum of so many products.
        let products = match self.op.name {
            "Gemm" | "Linear" | "MatMul" | "MatMulIntegerToFloat" | "MatMulNBits" => {
                self.input(0).map_or(0, Known::last)
            }
            "Conv" => self.per_channel(1),
            "QLinearConv" => self.per_channel(3),
            // Each row meets each weight of both layers.
            "FeedForward" => {
                return 2
                    * self.rows()
                    * [1, 3].iter().filter_map(|&i| self.input(i)).map(Known::elements).sum::<u64>();
            }
            "MultiHeadAttention" | "Attention" => return self.attention(),
            // Queries may come as rows, so what is made tells their number: with every key twice a product as wide as a head.
            "FlashAttention" => 2 * self.input(2).map_or(0, |v| v.axis(1)),
            _ => 0,
        };
        2 * self.made() * products
    }

    /// Elements of a weight `[out, ...]` for each of its output channels.
    fn per_channel(&self, weight: usize) -> u64 {
        self.input(weight).map_or(0, |w| w.elements() / w.axis(0).max(1))
    }

    /// Scores, and what the values add up to by them.
    fn attention(&self) -> u64 {
        let [Some(q), Some(k), Some(v)] = [0, 1, 2].map(|i| self.input(i)) else { return 0 };
        2 * q.axis(0) * q.axis(1) * k.axis(1) * (q.last() + v.last())
    }

    /// Bytes of each buffer that ONNX Runtime's kernel takes while it runs, beside what it reads and makes. Of CUDA's only those that
    /// do not depend on the GPU are known.
    pub fn scratch(&self, device: Device, threads: u64) -> Vec<u64> {
        match self.op.name {
            // The weight in as many bits as what it is multiplied by.
            "MatMulNBits" if device == Device::Cuda => {
                let [Some(x), Some(y)] = [self.input(0), self.outputs.first()] else { return vec![] };
                vec![x.dtype.bytes(x.last() * y.last())]
            }
            _ if device == Device::Cuda => vec![],
            // Queries, keys and values are brought head by head.
            "MultiHeadAttention" => {
                let rest = if self.input(5).is_some() { self.scores() } else { threads * ATTENTION_BLOCK };
                (0..3).filter_map(|i| self.input(i)).map(Known::bytes).chain([rest]).collect()
            }
            // `ExpandThenGemm` where there are fewer pixels than channels, else blocks of it for each thread.
            "Conv" => {
                let pixels = self.outputs.first().map_or(0, |y| elements(y.shape.get(2..).unwrap_or_default()));
                let channels = self.outputs.first().map_or(0, |y| y.axis(1));
                let pointwise = self.input(1).is_some_and(|w| elements(w.shape.get(2..).unwrap_or_default()) == 1);
                let numbers = match (pointwise, channels > pixels) {
                    (true, _) => 0,
                    (_, true) => pixels * self.per_channel(1),
                    _ => threads * CONV_BLOCK,
                };
                vec![4 * numbers]
            }
            // Pixels by channels, before and after; sums in 32 bits; and every pixel's neighbourhood.
            "QLinearConv" => {
                let x = self.input(0).map_or(0, Known::elements);
                let y = self.outputs.first();
                let neighbourhoods = y.map_or(0, |y| y.elements() / y.axis(1).max(1)) * self.per_channel(3);
                vec![x, self.made(), 4 * self.made(), neighbourhoods]
            }
            // A half of each sum with the bias waits for the other half.
            "FastGelu" if self.input(1).is_some() => vec![4 * self.made()],
            // Features in eight bits, with a scale for each block.
            "MatMulNBits" => vec![self.input(0).map_or(0, Known::elements) * 5 / 4],
            _ => vec![],
        }
    }

    /// Bytes that cogvx's own kernel works in, and keeps for those of its kind that come after.
    pub fn kept(&self, threads: u64, tiles: bool) -> u64 {
        match self.op.name {
            // Rows of what is multiplied, and the weights that each thread is at.
            "Linear" => packed(self.rows(), self.input(0).map_or(0, Known::last), tiles) + threads * PANEL,
            // What is between them, too.
            "FeedForward" => {
                let inner = self.input(1).map_or(0, |weight| weight.axis(0));
                let rows = at_once(self.rows(), inner);
                packed(rows, inner, tiles) + threads * PANEL + 4 * rows * inner
            }
            // Queries, keys and values of a few heads of one sample.
            "FlashAttention" => {
                let heads = self.op.attributes.iter().find(|(name, _)| *name == "heads");
                let Some((_, Attribute::Int(heads))) = heads else { return 0 };
                let all = (0..3).filter_map(|i| self.input(i)).map(Known::bytes).sum::<u64>();
                let batch = self.input(2).map_or(1, |v| v.axis(0)).max(1);
                all / batch * ATTENTION_HEADS / heads.unsigned_abs().max(ATTENTION_HEADS)
            }
            _ => 0,
        }
    }

    fn rows(&self) -> u64 {
        self.input(0).map_or(0, |x| x.axis(0))
    }

    /// Scores of all heads, where they are kept as a whole.
    fn scores(&self) -> u64 {
        let [Some(q), Some(k), Some(bias)] = [0, 1, 5].map(|i| self.input(i)) else { return 0 };
        4 * q.axis(0) * bias.axis(1) * q.axis(1) * k.axis(1)
    }

    /// Input that the kernel copies when the graph is loaded, if weights are brought in the order that kernels read them.
    pub fn packed(&self) -> Option<usize> {
        match self.op.name {
            "Gemm" | "MatMul" | "MatMulIntegerToFloat" | "MatMulNBits" => Some(1),
            "QLinearConv" => Some(3),
            _ => None,
        }
    }

    /// Whether the output is the input, seen with another shape.
    pub fn is_view(&self) -> bool {
        self.op.is_view()
    }
}
