//! Quantized layers, in the forms that have kernels.

use super::{Attribute::Int, CONTRIB, Lower, Target, binary, conv_attributes, emit, gemm, producer, signed};
use crate::graph::{Constant, Graph};
use crate::op::Type;
use crate::quantized::{Bytes, LinearForm, QuantizedConv, QuantizedLinear, hadamard};
use crate::{DType, Dim, Value, dims};

/// GELU is nowhere further below zero.
const LEAST_GELU: f32 = 0.1701;

/// Where zero is among the `uint8` values of a token's features.
#[derive(Clone, Copy, PartialEq)]
enum Zero {
    /// In the middle; the least value is left unused.
    Middle,
    /// Nearer to the least, for what GELU makes: that reaches much further up than down, and steps are 1.8 times finer so. They
    /// are coarser only for a token whose greatest feature is below 0.7.
    Low,
}

impl Zero {
    /// For features, as they are and in rows.
    fn of(features: [Value<'_>; 2]) -> Self {
        if features.iter().any(|x| producer(*x, "FastGelu").is_some()) { Self::Low } else { Self::Middle }
    }

    /// The value that stands for zero.
    const fn value(self) -> u8 {
        match self {
            Self::Middle => 128,
            Self::Low => 32,
        }
    }

    /// How many values are above it.
    fn above(self) -> f32 {
        f32::from(u8::MAX - self.value())
    }
}

impl Lower {
    /// `parameters` are the weight's parts, then a bias if there is one.
    pub(super) fn quantized_linear<'g>(
        &mut self,
        x: Value<'g>,
        layer: &QuantizedLinear,
        parameters: &[Option<Value<'g>>],
        to: &Type,
    ) -> Value<'g> {
        let parts = layer.form.tensors(self.target, layer.features).len();
        let (weight, bias) = (&parameters[..parts], parameters.get(parts).copied().flatten());
        let flat = self.rows(x);
        let features = Dim::Fixed(layer.features[0]);
        let y = match layer.form {
            LinearForm::PerToken { rotation } => self.per_token(x, (flat, rotation), (weight, bias), layer),
            LinearForm::PerTensor { scale, zero_point } if self.target == Target::Cpu => {
                let (step, zero) = (flat.scalar(scale), byte(DType::U8, zero_point, flat));
                integer_product(quantize(flat, step, zero, None), [step, zero], weight, bias, layer)
            }
            LinearForm::PerTensor { scale, .. } => {
                let weight = dequantize(weight, &[("axis", 0)], flat.dtype());
                gemm(round_trip(flat, scale, DType::I8), &[Some(weight), bias], features)
            }
            LinearForm::Float8 { scale } => {
                let weight = dequantize(weight, &[("axis", 0)], flat.dtype());
                gemm(round_trip(flat, scale, DType::F8E4M3), &[Some(weight), bias], features)
            }
            LinearForm::Blocks { block, .. } if self.target == Target::TensorRt => {
                let weight = dequantize(weight, &[("axis", 1), ("block_size", signed(block))], flat.dtype());
                gemm(flat, &[Some(weight), bias], features)
            }
            LinearForm::Blocks { bits, block, .. } => blocks(flat, weight, bias, layer.features, bits, block),
        };
        self.reshape(y, &to.shape)
    }

    /// Each row divided by a scale of its own: `scale[row] * (values @ weight) + bias`.
    fn per_token<'g>(
        &mut self,
        x: Value<'g>,
        (flat, rotation): (Value<'g>, usize),
        (weight, bias): (&[Option<Value<'g>>], Option<Value<'g>>),
        layer: &QuantizedLinear,
    ) -> Value<'g> {
        let out = x.graph;
        let zero = Zero::of([x, flat]);
        let [values, steps] = if let Some(&made) = self.tokens.get(&(x.id(), rotation)) {
            made.map(|id| out.value(id))
        } else {
            let turned = if rotation == 1 { flat } else { self.turned(flat, rotation) };
            let made = self.quantize_tokens(turned, zero);
            self.tokens.insert((x.id(), rotation), made.map(Value::id));
            made
        };
        let zero = byte(DType::U8, zero.value(), flat);
        let y = integer_product(values, [flat.scalar(1.0), zero], weight, None, layer);
        let y = binary("Mul", 14, y, steps);
        bias.map_or(y, |bias| binary("Add", 14, y, bias))
    }

    /// `[rows, features]`, each row as `[order, features / order]` multiplied by Hadamard's matrix.
    fn turned<'g>(&mut self, flat: Value<'g>, order: usize) -> Value<'g> {
        let matrix = flat.graph.floats(&[order, order], &hadamard(order));
        // Not merged with the reshape that made rows: `fuse` takes it back to these.
        let seen = self.seen_as(flat, &[flat.dim(0), Dim::Fixed(order), &flat.dim(1) / order]);
        let product = emit("", "MatMul", 13, vec![], &[Some(matrix), Some(seen)], vec![seen.r#type()], flat.graph)[0];
        self.reshape(product, &flat.shape())
    }

    /// `uint8` values of `[rows, features]` and the scales `[rows, 1]` they are multiples of.
    fn quantize_tokens<'g>(&mut self, flat: Value<'g>, zero: Zero) -> [Value<'g>; 2] {
        let out = flat.graph;
        let rows = flat.dim(0);
        let axes = out.integers(&[1], &[1]);
        let column = Type::new(flat.dtype(), dims![&rows, 1]);
        let reduce = |name| {
            emit("", name, 18, vec![("keepdims", Int(1))], &[Some(flat), Some(axes)], vec![column.clone()], out)[0]
        };
        let mut magnitudes = vec![Some(reduce("ReduceMax"))];
        match zero {
            Zero::Low => {
                let reach = LEAST_GELU / f32::from(zero.value());
                magnitudes.push(Some(flat.scalar(reach * zero.above())));
            }
            Zero::Middle => {
                let least = emit("", "Neg", 13, vec![], &[Some(reduce("ReduceMin"))], vec![column.clone()], out)[0];
                // A row of zeros has a scale, too.
                magnitudes.extend([least, flat.scalar(f32::MIN_POSITIVE * zero.above())].map(Some));
            }
        }
        let magnitude = emit("", "Max", 13, vec![], &magnitudes, vec![column.clone()], out)[0];
        let steps = binary("Mul", 14, magnitude, flat.scalar(1.0 / zero.above()));
        let step_of_row = self.reshape(steps, std::slice::from_ref(&rows));
        let sizes = self.size(&rows, out);
        let zeros = Type::new(DType::U8, vec![rows]);
        let zero = byte(DType::U8, zero.value(), flat);
        let zeros = emit("", "Expand", 13, vec![], &[Some(zero), Some(sizes)], vec![zeros], out)[0];
        [quantize(flat, step_of_row, zeros, Some(0)), steps]
    }
}

/// `x` as bytes.
pub(super) fn to_bytes(x: Value<'_>, bytes: Bytes) -> Value<'_> {
    let [step, zero] = constants(bytes, x.graph);
    quantize(x, step, zero, None)
}

/// `QLinearConv`, and the numbers that its bytes stand for.
pub(super) fn convolution<'g>(
    layer: &QuantizedConv,
    inputs: &[Option<Value<'g>>],
    shape: &[Dim],
    out: &'g Graph,
) -> Value<'g> {
    let &[x, weight, scales, zeros, bias] = inputs else { unreachable!("a quantized convolution reads five tensors") };
    let ([step, zero], [step_made, zero_made]) = (constants(layer.reads, out), constants(layer.makes, out));
    let parameters = [step, zero].map(Some).into_iter().chain([weight, scales, zeros]);
    let inputs: Vec<_> = [x].into_iter().chain(parameters).chain([Some(step_made), Some(zero_made), bias]).collect();
    let to = Type::new(DType::U8, shape.to_vec());
    let made = emit("", "QLinearConv", 10, conv_attributes(&layer.strides, &layer.pads), &inputs, vec![to], out)[0];
    dequantize(&[Some(made), Some(step_made), Some(zero_made)], &[], DType::F32)
}

/// Step and zero point.
fn constants(bytes: Bytes, out: &Graph) -> [Value<'_>; 2] {
    let zero = Constant { dtype: DType::U8, shape: vec![], bytes: vec![bytes.zero_point] };
    [out.floats(&[], &[bytes.step]), out.constant(zero)]
}

/// To eight bits and back, for TensorRT to fuse into the product.
fn round_trip(flat: Value<'_>, scale: f32, dtype: DType) -> Value<'_> {
    let (step, zero) = (flat.scalar(scale), byte(dtype, 0, flat));
    dequantize(&[Some(quantize(flat, step, zero, None)), Some(step)], &[], flat.dtype())
}

/// `com.microsoft.MatMulIntegerToFloat`, ONNX Runtime's fused product of integers.
fn integer_product<'g>(
    values: Value<'g>,
    [step, zero]: [Value<'g>; 2],
    weight: &[Option<Value<'g>>],
    bias: Option<Value<'g>>,
    layer: &QuantizedLinear,
) -> Value<'g> {
    let &[weight, scales] = weight else { unreachable!("an int8 weight has two parts") };
    let mut inputs = vec![Some(values), weight, Some(step), scales, Some(zero)];
    if bias.is_some() {
        inputs.extend([None, bias]);
    }
    let to = Type::new(step.dtype(), dims![&values.dim(0), layer.features[0]]);
    emit(CONTRIB, "MatMulIntegerToFloat", 1, vec![], &inputs, vec![to], values.graph)[0]
}

/// `com.microsoft.MatMulNBits`: the weight is widened block by block.
fn blocks<'g>(
    flat: Value<'g>,
    weight: &[Option<Value<'g>>],
    bias: Option<Value<'g>>,
    [out, input]: [usize; 2],
    bits: u8,
    block: usize,
) -> Value<'g> {
    let attributes = vec![
        ("K", Int(signed(input))),
        ("N", Int(signed(out))),
        // CPUs may round each block of features to 8 bits with a scale of its own.
        ("accuracy_level", Int(4)),
        ("bits", Int(bits.into())),
        ("block_size", Int(signed(block))),
    ];
    let mut inputs = [&[Some(flat)], weight].concat();
    if bias.is_some() {
        inputs.resize(5, None);
        inputs.push(bias);
    }
    let to = Type::new(flat.dtype(), dims![&flat.dim(0), out]);
    emit(CONTRIB, "MatMulNBits", 1, attributes, &inputs, vec![to], flat.graph)[0]
}

fn quantize<'g>(x: Value<'g>, step: Value<'g>, zero: Value<'g>, axis: Option<i64>) -> Value<'g> {
    let attributes = axis.map(|axis| ("axis", Int(axis))).into_iter().collect();
    let to = Type::new(zero.dtype(), x.shape());
    emit("", "QuantizeLinear", 21, attributes, &[Some(x), Some(step), Some(zero)], vec![to], x.graph)[0]
}

/// The numbers that values and scales stand for.
fn dequantize<'g>(parts: &[Option<Value<'g>>], attributes: &[(&'static str, i64)], to: DType) -> Value<'g> {
    let values = parts[0].expect("a quantized weight has values");
    let attributes = attributes.iter().map(|&(name, n)| (name, Int(n))).collect();
    let to = Type::new(to, values.shape());
    emit("", "DequantizeLinear", 21, attributes, parts, vec![to], values.graph)[0]
}

fn byte(dtype: DType, value: u8, like: Value<'_>) -> Value<'_> {
    like.graph.constant(Constant { dtype, shape: vec![], bytes: vec![value] })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{Source, Weight};
    use crate::op::Op;
    use crate::pass;

    #[test]
    fn zero_is_low_for_what_gelu_makes_whatever_its_shape_and_in_the_middle_for_all_else() {
        for (rank, gelu) in [(2, true), (3, true), (2, false), (3, false)] {
            let graph = Graph::new();
            let shape = [dims![2, 3, 4], dims![6, 4]][3 - rank].clone();
            let x = graph.input("x", DType::F32, shape);
            let x = if gelu { x.gelu() } else { x + x };
            let form = LinearForm::PerToken { rotation: 1 };
            let parts = form.tensors(Target::Cpu, [5, 4]).into_iter().map(|part| {
                let weight = Weight { name: "w".into(), part: part.part, stored: part.dtype, shape: part.shape };
                Some(graph.weight(weight, part.dtype).id())
            });
            let inputs: Vec<_> = [Some(x.id())].into_iter().chain(parts).collect();
            let layer = QuantizedLinear { features: [5, 4], form };
            graph.output("y", graph.add(Op::QuantizedLinear(layer), &inputs)[0]);
            let lowered = pass::run(&mut Lower::new(Target::Cpu), &graph).expect("a sound graph");
            let (nodes, values) = (lowered.nodes(), lowered.values());
            let product = nodes.iter().find(|node| node.op.name() == "MatMulIntegerToFloat").expect("a product");
            let Source::Constant(zero) = &values[product.inputs[4].expect("a zero")].source else { panic!("computed") };
            assert_eq!(zero.bytes, [if gelu { 32 } else { 128 }], "rank {rank}");
        }
    }

    #[test]
    fn gelu_reaches_no_further_below_zero() {
        let gelu = |x: f64| 0.5 * x * (1.0 + (0.797_884_560_802_865_4 * (x + 0.044_715 * x.powi(3))).tanh());
        let least = (-100_000..=0).map(|i| gelu(f64::from(i) * 1e-4)).fold(0.0, f64::min);
        assert!(-least < f64::from(LEAST_GELU) && -least > f64::from(LEAST_GELU) - 1e-3, "{least}");
    }
}
