//! A graph as text: one line a node, made to be read and compared.

use std::fmt;

use crate::graph::{Constant, Graph, Source};
use crate::op::{Attribute, Op, Type};
use crate::quantized::{Bytes, QuantizedConv};
use crate::{DType, Dim};

/// Constants of up to this many elements are printed in full.
const SHORT: usize = 8;

impl fmt::Display for Type {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shape: Vec<_> = self.shape.iter().map(Dim::to_string).collect();
        write!(f, "{}[{}]", self.dtype, shape.join(", "))
    }
}

/// What the outputs depend on, in building order, under the module paths; weights by their checkpoint names.
impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let live = self.live();
        let (values, nodes) = (self.values(), self.nodes());
        let mut names: Vec<String> = vec![String::new(); values.len()];
        for &id in self.inputs().iter() {
            if let Source::Input { name, .. } = &values[id].source {
                names[id].clone_from(name);
                writeln!(f, "in  {name}: {}", values[id].r#type)?;
            }
        }
        let mut count = 0;
        for (id, value) in values.iter().enumerate() {
            match &value.source {
                Source::Weight(w) if w.stored == value.r#type.dtype => names[id] = w.initializer(),
                Source::Weight(w) => names[id] = format!("{}:{}", w.initializer(), w.stored),
                Source::Constant(c) => names[id] = constant(c),
                Source::Node { .. } if live[id] => {
                    names[id] = format!("%{count}");
                    count += 1;
                }
                _ => {}
            }
        }
        let mut path = None;
        for node in nodes.iter().filter(|n| n.outputs.iter().any(|&v| live[v])) {
            if path != Some(&node.path) {
                writeln!(f, "{}:", if node.path.is_empty() { "(root)" } else { &node.path })?;
                path = Some(&node.path);
            }
            let inputs: Vec<_> = node.inputs.iter().map(|i| i.map_or("-", |i| &names[i])).collect();
            let outputs: Vec<_> = node.outputs.iter().filter(|&&v| live[v]).map(|&v| names[v].as_str()).collect();
            let r#type = &values[node.outputs[0]].r#type;
            writeln!(
                f,
                "    {} = {}({}){} : {type}",
                outputs.join(", "),
                node.op.name(),
                inputs.join(", "),
                details(&node.op)
            )?;
        }
        for output in self.outputs().iter() {
            writeln!(f, "out {}: {} = {}", output.name, values[output.value].r#type, names[output.value])?;
        }
        Ok(())
    }
}

fn constant(c: &Constant) -> String {
    let elements: usize = c.shape.iter().product();
    let r#type = Type::new(c.dtype, c.shape.iter().map(|&n| Dim::Fixed(n)).collect());
    if elements > SHORT {
        return format!("<{type}>");
    }
    let numbers: Vec<_> = c.bytes.chunks_exact(c.dtype.size()).map(|b| number(c.dtype, b)).collect();
    if c.shape.is_empty() { numbers.concat() } else { format!("[{}]", numbers.join(" ")) }
}

fn number(dtype: DType, bytes: &[u8]) -> String {
    fn exactly<const N: usize>(bytes: &[u8]) -> [u8; N] {
        bytes.try_into().expect("chunks of the type's size")
    }
    match dtype {
        DType::F32 => f32::from_le_bytes(exactly(bytes)).to_string(),
        DType::F16 => half::f16::from_le_bytes(exactly(bytes)).to_string(),
        DType::BF16 => half::bf16::from_le_bytes(exactly(bytes)).to_string(),
        DType::I64 if bytes == i64::MAX.to_le_bytes() => "end".into(),
        DType::I64 => i64::from_le_bytes(exactly(bytes)).to_string(),
        DType::U8 | DType::Bool => bytes[0].to_string(),
        DType::I8 => i8::from_le_bytes(exactly(bytes)).to_string(),
        DType::I32 => i32::from_le_bytes(exactly(bytes)).to_string(),
        DType::I4 | DType::F8E4M3 => format!("{bytes:?}"),
    }
}

/// What the operation's name leaves open.
fn details(op: &Op) -> String {
    match op {
        Op::Cast(to) => format!(" to {to}"),
        Op::QuantizedLinear(layer) => format!(" {:?}", layer.form),
        Op::Quantize(Bytes { step, zero_point }) => format!(" step {step} zero {zero_point}"),
        Op::QuantizedConv(QuantizedConv { strides, pads, reads, makes }) => {
            format!(" strides {strides:?} pads {pads:?} {reads:?} {makes:?}")
        }
        Op::Transpose(order) => format!(" {order:?}"),
        Op::Concat(axis) | Op::Gather(axis) => format!(" axis {axis}"),
        Op::Slice { axis, start, length } => format!(" axis {axis} from {start}, {length}"),
        Op::Last { axis, n } => format!(" axis {axis}, {n}"),
        Op::Split { axis, parts } => format!(" axis {axis} in {parts}"),
        Op::Upsample(factors) => format!(" by {factors:?}"),
        Op::Size(dim) => format!(" {dim}"),
        Op::Conv { strides, pads } => format!(" strides {strides:?} pads {pads:?}"),
        Op::LayerNorm { epsilon } | Op::RmsNorm { epsilon } => format!(" epsilon {epsilon:e}"),
        Op::GroupNorm { groups, epsilon } => format!(" {groups} groups epsilon {epsilon:e}"),
        Op::Rotary { heads } => format!(" {heads} heads"),
        Op::Attention { heads, scale } => format!(" {heads} heads scale {scale}"),
        Op::Onnx(op) => {
            op.attributes.iter().fold(String::new(), |text, (name, value)| text + " " + name + "=" + &attribute(value))
        }
        _ => String::new(),
    }
}

fn attribute(value: &Attribute) -> String {
    match value {
        Attribute::Int(i) => i.to_string(),
        Attribute::Ints(ints) => format!("{ints:?}"),
        Attribute::Float(x) => x.to_string(),
        Attribute::Text(s) => s.to_string(),
    }
}
