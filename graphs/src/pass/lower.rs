//! From what the model means to the ONNX operators a target runs fast.

mod bfloat16;
mod few;
mod halves;
mod quantized;
mod upsampled;
mod winograd;

use std::collections::{HashMap, HashSet};
use std::rc::Rc;

use super::Pass;
use crate::dim::Monomial;
use crate::graph::{Constant, Graph, Node, Source};
use crate::onnx::block;
use crate::op::{Attribute, Binary, OnnxOp, Op, Reduction, Type};
use crate::{DType, Dim, Problem, Value, dims};

use Attribute::{Float, Int, Ints, Text};

/// The runtime a graph is written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Target {
    /// ONNX Runtime's CPU provider.
    Cpu,
    /// ONNX Runtime's CUDA provider.
    Cuda,
    /// TensorRT's ONNX parser, strongly typed.
    TensorRt,
}

impl Target {
    /// Whether ONNX Runtime's own operators (`com.microsoft`) may be used.
    fn has_contrib_operators(self) -> bool {
        !matches!(self, Self::TensorRt)
    }
}

const CONTRIB: &str = "com.microsoft";
const TO_THE_END: i64 = i64::MAX;

/// Writes every operation in `target`'s form.
pub struct Lower {
    target: Target,
    /// For each named size, a value that has it and on which axis.
    named: HashMap<Rc<str>, (usize, usize)>,
    /// Values looked at for named sizes.
    seen: usize,
    /// Sizes as `i64 [1]` tensors.
    sizes: HashMap<Dim, usize>,
    /// Shapes as `i64 [rank]` tensors; `None` is "whatever is left" (-1).
    shapes: HashMap<Vec<Option<Dim>>, usize>,
    /// For each value quantized by its tokens, and how it was turned, the values and the scales: layers that read the same share them.
    tokens: HashMap<(usize, usize), [usize; 2]>,
    /// For each upsampled value, what it was and the factors.
    upsampled: HashMap<usize, (usize, Vec<usize>)>,
    /// For each number of frames, how a convolution that makes them mixes them.
    mixings: HashMap<Dim, winograd::Mixing>,
    /// Values of the graph before that stand between the layers of a feed-forward and nowhere else.
    between: HashSet<usize>,
}

impl Lower {
    /// A lowering to `target`.
    #[must_use]
    pub fn new(target: Target) -> Self {
        Self {
            target,
            named: HashMap::new(),
            seen: 0,
            sizes: HashMap::new(),
            shapes: HashMap::new(),
            tokens: HashMap::new(),
            upsampled: HashMap::new(),
            mixings: HashMap::new(),
            between: HashSet::new(),
        }
    }

    /// Remember which values have named sizes, so that the sizes can be asked for at run time.
    fn look_for_names(&mut self, out: &Graph) {
        for (id, value) in out.values().iter().enumerate().skip(self.seen) {
            for (axis, name) in value.r#type.shape.iter().enumerate().filter_map(|(i, d)| Some((i, d.name()?))) {
                self.named.entry(name.clone()).or_insert((id, axis));
            }
        }
        self.seen = out.values().len();
    }

    /// A size as an `i64` tensor `[1]`.
    fn size<'g>(&mut self, dim: &Dim, out: &'g Graph) -> Value<'g> {
        if let Some(&id) = self.sizes.get(dim) {
            return out.value(id);
        }
        let value = match dim {
            Dim::Fixed(n) => out.integers(&[1], &[signed(*n)]),
            Dim::Symbol(_) if dim.name().is_some() => self.measure(dim, out),
            Dim::Symbol(Monomial { numerator, denominator, names }) => {
                let product =
                    names.iter().map(|name| self.size(&Dim::named(name), out)).reduce(|a, b| binary("Mul", 7, a, b));
                let mut value = product.unwrap_or_else(|| out.integers(&[1], &[1]));
                if *numerator != 1 {
                    value = binary("Mul", 7, value, out.integers(&[1], &[signed(*numerator)]));
                }
                if *denominator != 1 {
                    value = binary("Div", 7, value, out.integers(&[1], &[signed(*denominator)]));
                }
                value
            }
        };
        self.sizes.insert(dim.clone(), value.id());
        value
    }

    /// Read a named size off a tensor that has it.
    fn measure<'g>(&mut self, dim: &Dim, out: &'g Graph) -> Value<'g> {
        self.look_for_names(out);
        let Some(&(id, axis)) = dim.name().and_then(|name| self.named.get(name)) else {
            let (place, message) = (out.path(), format!("no tensor has the size `{dim}`"));
            out.problem(Problem::Type { place, message });
            return out.integers(&[1], &[1]);
        };
        let range = vec![("start", Int(signed(axis))), ("end", Int(signed(axis) + 1))];
        emit("", "Shape", 15, range, &[Some(out.value(id))], vec![Type::new(DType::I64, dims![1])], out)[0]
    }

    /// A shape as an `i64` tensor; at most one size is left for ONNX to infer.
    fn shape<'g>(&mut self, to: &[Dim], out: &'g Graph) -> Value<'g> {
        // Leave the most complicated size to be inferred; it costs the most to compute.
        let inferred = (0..to.len()).filter(|&i| to[i].fixed().is_none()).max_by_key(|&i| to[i].to_string().len());
        let key: Vec<_> = to.iter().enumerate().map(|(i, d)| (Some(i) != inferred).then(|| d.clone())).collect();
        if let Some(&id) = self.shapes.get(&key) {
            return out.value(id);
        }
        let number = |d: &Option<Dim>| d.as_ref().map_or(Some(-1), |d| d.fixed().map(signed));
        let value = if let Some(numbers) = key.iter().map(number).collect::<Option<Vec<_>>>() {
            out.integers(&[numbers.len()], &numbers)
        } else {
            let minus_one = out.integers(&[1], &[-1]);
            let parts: Vec<_> = key.iter().map(|d| Some(d.as_ref().map_or(minus_one, |d| self.size(d, out)))).collect();
            let r#type = Type::new(DType::I64, dims![to.len()]);
            emit("", "Concat", 13, vec![("axis", Int(0))], &parts, vec![r#type], out)[0]
        };
        self.shapes.insert(key, value.id());
        value
    }

    fn reshape<'g>(&mut self, x: Value<'g>, to: &[Dim]) -> Value<'g> {
        let out = x.graph;
        // A reshape of a reshape is one reshape.
        let x = producer(x, "Reshape").and_then(|node| node.inputs[0]).map_or(x, |id| out.value(id));
        if x.shape() == to { x } else { self.seen_as(x, to) }
    }

    fn seen_as<'g>(&mut self, x: Value<'g>, to: &[Dim]) -> Value<'g> {
        let shape = self.shape(to, x.graph);
        emit("", "Reshape", 14, vec![], &[Some(x), Some(shape)], vec![Type::new(x.dtype(), to.to_vec())], x.graph)[0]
    }

    fn upsample<'g>(&mut self, x: Value<'g>, factors: &[usize], to: &[Dim]) -> Value<'g> {
        if self.lacks_kernels(x.dtype()) {
            return self.repeated(x, factors, to);
        }
        // ONNX Runtime's Resize is fast on four axes and slow on five: the leading axes, unchanged, count as one.
        let leading = factors.iter().take_while(|&&f| f == 1).count().min(factors.len().saturating_sub(2));
        let folded = |dims: &[Dim]| {
            let (front, back) = dims.split_at(leading);
            [vec![Dim::Fixed(1), Dim::product(front)], back.to_vec()].concat()
        };
        let input = self.reshape(x, &folded(&x.shape()));
        let scales: Vec<_> = [1, 1].iter().chain(&factors[leading..]).map(|&f| small(f)).collect();
        let scales = x.graph.floats(&[scales.len()], &scales);
        let attributes = vec![
            ("coordinate_transformation_mode", Text("asymmetric".into())),
            ("mode", Text("nearest".into())),
            ("nearest_mode", Text("floor".into())),
        ];
        let r#type = Type::new(x.dtype(), folded(to));
        let resized = emit("", "Resize", 19, attributes, &[Some(input), None, Some(scales)], vec![r#type], x.graph)[0];
        self.reshape(resized, to)
    }

    /// `Gemm` reads PyTorch's `[out, in]` weights as they lie; it wants two axes, and reshapes are free.
    fn linear<'g>(&mut self, x: Value<'g>, rest: &[Option<Value<'g>>], to: &Type) -> Value<'g> {
        let flat = self.rows(x);
        let out_features = to.shape.last().cloned().unwrap_or(Dim::Fixed(1));
        let mut parameters = rest.to_vec();
        let gains_little = flat.dim(0).fixed() == Some(1) || block(&x.graph.path()).is_none();
        if self.target == Target::Cpu && gains_little {
            parameters[0] = parameters[0].map(|weight| self.left_alone(weight));
        }
        let y = gemm(flat, &parameters, out_features);
        self.reshape(y, &to.shape)
    }

    /// A weight that is not copied when the graph is loaded, however weights are kept: one row gains nothing by it, and the few layers
    /// outside of blocks would take as much memory for little.
    ///
    /// ONNX Runtime folds no operator of its own, and kernels arrange only what is known. `ExpandDims` gives its input another shape;
    /// it takes no `bfloat16`.
    fn left_alone<'g>(&mut self, weight: Value<'g>) -> Value<'g> {
        let out = weight.graph;
        let stored = producer(weight, "Cast").and_then(|node| node.inputs[0]).map_or(weight, |id| out.value(id));
        if stored.dtype() == DType::BF16 {
            return weight;
        }
        let first = out.constant(Constant { dtype: DType::I32, shape: vec![], bytes: vec![0; 4] });
        let shape = [vec![Dim::Fixed(1)], stored.shape()].concat();
        let r#type = Type::new(stored.dtype(), shape);
        let seen = emit(CONTRIB, "ExpandDims", 1, vec![], &[Some(stored), Some(first)], vec![r#type], out)[0];
        self.reshape(cast(seen, weight.dtype()), &weight.shape())
    }

    /// `com.microsoft.FastGelu` adds a bias by itself.
    fn fast_gelu<'g>(&mut self, x: Value<'g>) -> Value<'g> {
        let out = x.graph;
        let emit = |inputs: &[Option<Value<'g>>], to| emit(CONTRIB, "FastGelu", 1, vec![], inputs, vec![to], out)[0];
        let flat = producer(x, "Reshape").and_then(|node| node.inputs[0]).map_or(x, |id| out.value(id));
        let sum =
            producer(flat, "Add").map(|node| [node.inputs[0], node.inputs[1]].map(|id| id.map(|id| out.value(id))));
        if let Some([Some(y), Some(bias)]) = sum
            && (y.shape().len(), bias.shape().len()) == (2, 1)
        {
            let y = emit(&[Some(y), Some(bias)], y.r#type());
            return self.reshape(y, &x.shape());
        }
        emit(&[Some(x)], x.r#type())
    }

    /// All axes but the last as one: `[rows, features]`.
    fn rows<'g>(&mut self, x: Value<'g>) -> Value<'g> {
        let last = x.shape().len() - 1;
        self.reshape(x, &[Dim::product(&x.shape()[..last]), x.dim(last)])
    }

    fn group_norm<'g>(&mut self, x: Value<'g>, groups: usize, epsilon: f32) -> Value<'g> {
        let (out, shape) = (x.graph, x.shape());
        let elements = &Dim::product(&shape[1..]) / groups;
        let grouped = self.reshape(x, &[shape[0].clone(), Dim::Fixed(groups), elements]);
        if self.lacks_kernels(x.dtype()) {
            return self.reshape(bfloat16::normalized(grouped, epsilon), &shape);
        }
        let (ones, zeros) = (vec![1.0; groups], vec![0.0; groups]);
        let parameters =
            [out.floats(&[groups], &ones), out.floats(&[groups], &zeros)].map(|p| Some(cast(p, x.dtype())));
        let inputs = [Some(grouped), parameters[0], parameters[1]];
        let y = emit(
            "",
            "InstanceNormalization",
            6,
            vec![("epsilon", Float(epsilon))],
            &inputs,
            vec![grouped.r#type()],
            out,
        )[0];
        self.reshape(y, &shape)
    }

    /// The fused form: CPU keeps `O(tokens)` memory and CUDA picks cuDNN's kernel for `com.microsoft.MultiHeadAttention`
    /// only; TensorRT knows ONNX's own `Attention`, but has kernels for it only in 16 bits and for some widths of heads.
    fn attention<'g>(
        &mut self,
        inputs: &[Option<Value<'g>>],
        heads: usize,
        scale: f32,
        to: Type,
        out: &'g Graph,
    ) -> Value<'g> {
        let (qkv, bias) = (&inputs[..3], inputs.get(3).copied().flatten());
        if self.target.has_contrib_operators() {
            let attributes = vec![("num_heads", Int(signed(heads))), ("scale", Float(scale))];
            let mut inputs = qkv.to_vec();
            if bias.is_some() {
                inputs.extend([None, None, bias]);
            }
            return emit(CONTRIB, "MultiHeadAttention", 1, attributes, &inputs, vec![to], out)[0];
        }
        let &[Some(q), Some(k), Some(v)] = qkv else { unreachable!("attention was inferred from all three") };
        let has_kernel = to.dtype.size() == 2 && q.dim(2).fixed().is_some_and(|w| (w / heads).is_multiple_of(16));
        if !has_kernel {
            return self.primitive_attention([q, k, v], bias, heads, scale, &to);
        }
        let heads = Int(signed(heads));
        let attributes = vec![("kv_num_heads", heads.clone()), ("q_num_heads", heads), ("scale", Float(scale))];
        let inputs: Vec<_> = qkv.iter().copied().chain(bias.map(Some)).collect();
        emit("", "Attention", 23, attributes, &inputs, vec![to], out)[0]
    }

    /// The fused form; TensorRT wants its tables once for each sample.
    fn rotary<'g>(&mut self, x: Value<'g>, tables: &[Option<Value<'g>>], heads: usize) -> Value<'g> {
        let (out, to) = (x.graph, x.r#type());
        let heads = Int(signed(heads));
        if self.target.has_contrib_operators() {
            let first = out.integers(&[1], &[0]);
            let inputs = [&[Some(x), Some(first)], tables].concat();
            return emit(
                CONTRIB,
                "RotaryEmbedding",
                1,
                vec![("interleaved", Int(1)), ("num_heads", heads)],
                &inputs,
                vec![to],
                out,
            )[0];
        }
        let mut inputs = vec![Some(x)];
        for table in tables.iter().flatten() {
            let shape = [&[x.dim(0)], table.shape().as_slice()].concat();
            let sizes: Vec<_> = shape.iter().map(|d| Some(self.size(d, out))).collect();
            let sizes =
                emit("", "Concat", 13, vec![("axis", Int(0))], &sizes, vec![Type::new(DType::I64, dims![3])], out)[0];
            let r#type = Type::new(table.dtype(), shape);
            inputs.push(Some(emit("", "Expand", 13, vec![], &[Some(*table), Some(sizes)], vec![r#type], out)[0]));
        }
        emit("", "RotaryEmbedding", 23, vec![("interleaved", Int(1)), ("num_heads", heads)], &inputs, vec![to], out)[0]
    }

    /// `softmax(scale q @ k.T + bias) @ v`, head by head.
    fn primitive_attention<'g>(
        &mut self,
        [q, k, v]: [Value<'g>; 3],
        bias: Option<Value<'g>>,
        heads: usize,
        scale: f32,
        to: &Type,
    ) -> Value<'g> {
        let mut split = |x: Value<'g>, order: [usize; 4]| {
            let [batch, tokens, width] = [0, 1, 2].map(|axis| x.dim(axis));
            transpose(self.reshape(x, &[batch, tokens, heads.into(), &width / heads]), order)
        };
        let (q, k, v) = (split(q, [0, 2, 1, 3]), split(k, [0, 2, 3, 1]), split(v, [0, 2, 1, 3]));
        let q = if scale.total_cmp(&1.0).is_eq() { q } else { binary("Mul", 14, q, q.scalar(scale)) };
        let mut scores = matmul(q, k);
        if let Some(bias) = bias {
            scores = binary("Add", 14, scores, bias);
        }
        let weights =
            emit("", "Softmax", 13, vec![("axis", Int(-1))], &[Some(scores)], vec![scores.r#type()], q.graph)[0];
        self.reshape(transpose(matmul(weights, v), [0, 2, 1, 3]), &to.shape)
    }

    fn slice<'g>(&mut self, x: Value<'g>, axis: usize, start: &Dim, length: &Dim, to: Type) -> Value<'g> {
        let out = x.graph;
        let first = self.size(start, out);
        let end = start + length;
        let last = if end == x.dim(axis) { out.integers(&[1], &[TO_THE_END]) } else { self.size(&end, out) };
        slice(x, axis, first, last, to)
    }
}

impl Pass for Lower {
    fn name(&self) -> &'static str {
        "lower"
    }

    fn begin(&mut self, graph: &Graph) {
        self.between = halves::between(graph);
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        self.look_for_names(out);
        let ids: Vec<_> = inputs.iter().map(|v| v.map(Value::id)).collect();
        let types: Vec<Type> = {
            let values = out.values();
            let inputs: Vec<_> = ids.iter().map(|i| i.map(|i| &values[i].r#type)).collect();
            crate::infer::infer(&node.op, &inputs).ok()?
        };
        let one = |name, since, attributes| Some(emit("", name, since, attributes, inputs, types.clone(), out));
        let contrib = |name, attributes| Some(emit(CONTRIB, name, 1, attributes, inputs, types.clone(), out));
        let x = inputs.first().copied().flatten();
        match &node.op {
            Op::Onnx(_) | Op::Narrow | Op::Wide => None,
            Op::Unary(_) | Op::Binary(Binary::Mod | Binary::Min | Binary::Max) => one(node.op.name(), 13, vec![]),
            Op::Binary(Binary::Add | Binary::Sub | Binary::Mul | Binary::Div) => one(node.op.name(), 14, vec![]),
            Op::Cast(dtype) => one("Cast", 19, vec![("to", Int(dtype.onnx().into()))]),
            Op::Reshape(to) => Some(vec![self.reshape(x?, to)]),
            Op::Transpose(order) => one("Transpose", 13, vec![("perm", ints(order))]),
            Op::Concat(axis) => one("Concat", 13, vec![("axis", Int(signed(*axis)))]),
            Op::Slice { axis, start, length } => Some(vec![self.slice(x?, *axis, start, length, types[0].clone())]),
            Op::Last { axis, n } => {
                let (first, last) = (out.integers(&[1], &[-signed(*n)]), out.integers(&[1], &[TO_THE_END]));
                Some(vec![slice(x?, *axis, first, last, types[0].clone())])
            }
            Op::OverRows(reduction) => {
                let name = if *reduction == Reduction::Least { "ReduceMin" } else { "ReduceMax" };
                let (flat, axes) = (self.rows(x?), out.integers(&[1], &[0]));
                Some(emit("", name, 18, vec![("keepdims", Int(0))], &[Some(flat), Some(axes)], types, out))
            }
            Op::Split { axis, parts } => {
                one("Split", 18, vec![("axis", Int(signed(*axis))), ("num_outputs", Int(signed(*parts)))])
            }
            Op::Gather(axis) => one("Gather", 13, vec![("axis", Int(signed(*axis)))]),
            Op::Upsample(factors) => {
                let y = self.upsample(x?, factors, &types[0].shape);
                self.upsampled.insert(y.id(), (x?.id(), factors.clone()));
                Some(vec![y])
            }
            Op::Size(dim) => Some(vec![self.size(dim, out)]),
            Op::Range(Dim::Fixed(n)) => {
                let numbers: Vec<_> = (0..signed(*n)).collect();
                Some(vec![out.integers(&[*n], &numbers)])
            }
            Op::Range(_) => {
                let limit = self.reshape(x?, &[]);
                let (start, step) = (out.integers(&[], &[0]), out.integers(&[], &[1]));
                Some(emit("", "Range", 11, vec![], &[Some(start), Some(limit), Some(step)], types, out))
            }
            Op::Linear => {
                let halves = self.in_halves(node, inputs, &types[0]);
                Some(vec![match halves {
                    Some(y) => y,
                    None => self.linear(x?, &inputs[1..], &types[0]),
                }])
            }
            Op::QuantizedLinear(layer) => Some(vec![self.quantized_linear(x?, layer, &inputs[1..], &types[0])]),
            Op::Conv { strides, pads } => {
                let to = &types[0];
                let faster = self.conv_of_upsampled(inputs, strides, pads, to);
                let faster = faster.or_else(|| self.conv_of_few_features(inputs, strides, pads, to));
                if let Some(y) = faster.or_else(|| self.conv_over_time(inputs, strides, pads, to)) {
                    return Some(vec![y]);
                }
                let since = if types[0].dtype == DType::BF16 { 22 } else { 11 };
                one("Conv", since, conv_attributes(strides, pads))
            }
            Op::Quantize(bytes) => Some(vec![quantized::to_bytes(x?, *bytes)]),
            Op::QuantizedConv(layer) => Some(vec![quantized::convolution(layer, inputs, &types[0].shape, out)]),
            Op::LayerNorm { epsilon } => {
                one("LayerNormalization", 17, vec![("axis", Int(-1)), ("epsilon", Float(*epsilon))])
            }
            Op::RmsNorm { epsilon } => {
                one("RMSNormalization", 23, vec![("axis", Int(-1)), ("epsilon", Float(*epsilon))])
            }
            Op::GroupNorm { groups, epsilon } => Some(vec![self.group_norm(x?, *groups, *epsilon)]),
            Op::Attention { heads, scale } => Some(vec![self.attention(inputs, *heads, *scale, types[0].clone(), out)]),
            Op::Rotary { heads } => Some(vec![self.rotary(x?, &inputs[1..], *heads)]),
            Op::Gelu if self.target.has_contrib_operators() => Some(vec![self.fast_gelu(x?)]),
            Op::Gelu => one("Gelu", 20, vec![("approximate", Text("tanh".into()))]),
            Op::Silu if self.target.has_contrib_operators() => contrib("QuickGelu", vec![("alpha", Float(1.0))]),
            Op::Silu => {
                let sigmoid = emit("", "Sigmoid", 13, vec![], inputs, types, out)[0];
                Some(vec![binary("Mul", 14, x?, sigmoid)])
            }
        }
    }
}

fn emit<'g>(
    domain: &'static str,
    name: &'static str,
    since: i64,
    attributes: Vec<(&'static str, Attribute)>,
    inputs: &[Option<Value<'g>>],
    outputs: Vec<Type>,
    out: &'g Graph,
) -> Vec<Value<'g>> {
    // TensorRT takes an absent input at the end for a mistake.
    let present = inputs.iter().rposition(Option::is_some).map_or(0, |last| last + 1);
    let inputs: Vec<_> = inputs[..present].iter().map(|v| v.map(Value::id)).collect();
    out.add(Op::Onnx(OnnxOp { domain, name, since, attributes, outputs }), &inputs)
}

/// `x @ weight.T (+ bias)` of two axes each.
fn gemm<'g>(x: Value<'g>, parameters: &[Option<Value<'g>>], out_features: Dim) -> Value<'g> {
    let inputs: Vec<_> = std::iter::once(Some(x)).chain(parameters.iter().copied()).collect();
    let r#type = Type::new(x.dtype(), vec![x.dim(0), out_features]);
    emit("", "Gemm", 13, vec![("transB", Int(1))], &inputs, vec![r#type], x.graph)[0]
}

/// An element-wise operator; `b` has the shape of `a` or broadcasts to it.
fn binary<'g>(name: &'static str, since: i64, a: Value<'g>, b: Value<'g>) -> Value<'g> {
    emit("", name, since, vec![], &[Some(a), Some(b)], vec![a.r#type()], a.graph)[0]
}

fn cast(x: Value<'_>, dtype: DType) -> Value<'_> {
    if x.dtype() == dtype {
        return x;
    }
    let r#type = Type::new(dtype, x.shape());
    emit("", "Cast", 19, vec![("to", Int(dtype.onnx().into()))], &[Some(x)], vec![r#type], x.graph)[0]
}

fn transpose(x: Value<'_>, order: [usize; 4]) -> Value<'_> {
    let r#type = Type::new(x.dtype(), order.map(|axis| x.dim(axis)).to_vec());
    emit("", "Transpose", 13, vec![("perm", ints(&order))], &[Some(x)], vec![r#type], x.graph)[0]
}

/// Matrix products over the last two of four axes.
fn matmul<'g>(a: Value<'g>, b: Value<'g>) -> Value<'g> {
    let r#type = Type::new(a.dtype(), [a.dim(0), a.dim(1), a.dim(2), b.dim(3)].to_vec());
    emit("", "MatMul", 13, vec![], &[Some(a), Some(b)], vec![r#type], a.graph)[0]
}

fn slice<'g>(x: Value<'g>, axis: usize, start: Value<'g>, end: Value<'g>, to: Type) -> Value<'g> {
    let axes = x.graph.integers(&[1], &[signed(axis)]);
    emit("", "Slice", 13, vec![], &[Some(x), Some(start), Some(end), Some(axes)], vec![to], x.graph)[0]
}

/// The node that made `x`, if it is ONNX's `name`.
fn producer(x: Value<'_>, name: &str) -> Option<Node> {
    let Source::Node { node, .. } = x.source() else { return None };
    let node = x.graph.nodes()[node].clone();
    (node.op.name() == name).then_some(node)
}

fn conv_attributes(strides: &[usize], pads: &[[usize; 2]]) -> Vec<(&'static str, Attribute)> {
    let pads: Vec<_> = [0, 1].iter().flat_map(|&side| pads.iter().map(move |pad| pad[side])).collect();
    vec![("pads", ints(&pads)), ("strides", ints(strides))]
}

fn ints(numbers: &[usize]) -> Attribute {
    Ints(numbers.iter().map(|&n| signed(n)).collect())
}

fn signed(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

#[allow(clippy::cast_precision_loss)] // Upsampling factors are small.
fn small(n: usize) -> f32 {
    n as f32
}
