//! Operations of a lowered graph that cogvx has kernels of its own for, on processors (`cogvx-kernels`), put in the place of those that
//! any ONNX Runtime has.
//!
//! What is matched is what [`Lower`](super::Lower) writes; what is not matched stays. Nothing is computed otherwise but for the order of
//! roundings, and for what is rounded to bytes ([`differences`]).

mod attention;
mod differences;
mod linear;
mod norms;
mod rows;

use crate::graph::{Graph, Node, Source, ValueData};
use crate::op::{Attribute, OnnxOp, Op, Type};
use crate::pass::Pass;
use crate::{Problem, Value, pass};

/// The domain of these operators.
pub const DOMAIN: &str = "cogvx";
/// The version of the domain.
pub const VERSION: i64 = 1;

/// `graph` with cogvx's operators where it has what they do; none where it has nothing of that.
///
/// # Errors
/// Those of the builder, which a lowered graph does not have.
pub fn fuse(graph: &Graph) -> Result<Option<Graph>, Vec<Problem>> {
    let (nodes, values) = (graph.nodes(), graph.values());
    let plain = Plain { nodes: &nodes, values: &values, readers: readers(graph) };
    let out = Graph::new();
    let mut new: Vec<Option<Value<'_>>> = vec![None; values.len()];
    let mut is_fused = false;
    for (id, data) in values.iter().enumerate() {
        let node = match &data.source {
            Source::Input { name, state } => {
                new[id] = Some(out.add_input(name, data.r#type.clone(), *state));
                continue;
            }
            Source::Weight(weight) => {
                new[id] = Some(out.weight(weight.clone(), data.r#type.dtype));
                continue;
            }
            Source::Constant(constant) => {
                new[id] = Some(out.constant(constant.clone()));
                continue;
            }
            // Its other outputs came with the first.
            Source::Node { output: 1.., .. } => continue,
            Source::Node { node, .. } => &nodes[*node],
        };
        let fused = plain.fused(node);
        is_fused |= fused.is_some();
        let fused = fused.unwrap_or_else(|| Fused {
            op: node.op.clone(),
            inputs: node.inputs.clone(),
            outputs: node.outputs.clone(),
            path: node.path.clone(),
        });
        let inputs: Vec<_> = fused.inputs.iter().map(|input| input.and_then(|id| new[id]).map(Value::id)).collect();
        out.enter(fused.path);
        let made = out.add(fused.op, &inputs);
        out.leave();
        // What reads an older value after this reads the new one: so a residual that was added before is left out.
        for (old, value) in fused.outputs.into_iter().zip(made) {
            new[old] = Some(value);
        }
    }
    for output in graph.outputs().iter() {
        let Some(value) = new[output.value] else { continue };
        out.push_output(crate::graph::Output { value: value.id(), ..output.clone() });
    }
    let problems = out.take_problems();
    if !problems.is_empty() {
        return Err(problems);
    }
    // Without what nobody reads any more.
    if is_fused { differences::differ(&pass::run(&mut Copy, &out)?).map(Some) } else { Ok(None) }
}

/// Leaves all as it is.
struct Copy;

impl Pass for Copy {
    fn name(&self) -> &'static str {
        "copy"
    }

    fn rewrite<'g>(&mut self, _: &Node, _: &[Option<Value<'g>>], _: &'g Graph) -> Option<Vec<Value<'g>>> {
        None
    }
}

/// A node that stands for several.
struct Fused {
    op: Op,
    /// Values of the plain graph.
    inputs: Vec<Option<usize>>,
    /// Values of the plain graph that its outputs are.
    outputs: Vec<usize>,
    /// The layer that a profile is to count it to.
    path: String,
}

/// How often each value is read.
fn readers(graph: &Graph) -> Vec<usize> {
    let (nodes, live) = (graph.nodes(), graph.live());
    let mut readers = vec![0; live.len()];
    let alive = nodes.iter().filter(|node| node.outputs.iter().any(|&value| live[value]));
    let read = alive.flat_map(|node| node.inputs.iter().flatten().copied());
    for value in read.chain(graph.outputs().iter().map(|output| output.value)) {
        readers[value] += 1;
    }
    readers
}

/// A graph as it was lowered.
struct Plain<'a> {
    nodes: &'a [Node],
    values: &'a [ValueData],
    /// How often each value is read.
    readers: Vec<usize>,
}

impl<'a> Plain<'a> {
    /// What stands for `node` and those before it.
    fn fused(&self, node: &'a Node) -> Option<Fused> {
        let Op::Onnx(op) = &node.op else { return None };
        match op.name {
            "Gemm" => self.linear(node, node.outputs[0], false),
            "FastGelu" => self.linear_gelu(node).or_else(|| self.rescaled_gelu(node)),
            "MultiHeadAttention" => self.attention(node, op),
            "Concat" => self.joined(node).or_else(|| self.feed_forward(node)),
            "QuantizeLinear" => self.joined_rounded(node).or_else(|| self.rounded(node)),
            "Add" => self.rescaled(node),
            _ => None,
        }
    }

    /// The node that made `value`, if it is ONNX's `name`.
    fn made_by(&self, value: usize, name: &str) -> Option<&'a Node> {
        let Source::Node { node, .. } = self.values[value].source else { return None };
        Some(&self.nodes[node]).filter(|node| node.op.name() == name)
    }

    /// The same where nothing else reads it.
    fn only(&self, value: usize, name: &str) -> Option<&'a Node> {
        self.made_by(value, name).filter(|_| self.readers[value] == 1)
    }

    fn r#type(&self, value: usize) -> Type {
        self.values[value].r#type.clone()
    }

    fn rank(&self, value: usize) -> usize {
        self.values[value].r#type.shape.len()
    }

    /// The one number of a constant.
    fn number(&self, value: usize) -> Option<f32> {
        let Source::Constant(constant) = &self.values[value].source else { return None };
        let bytes = constant.bytes.as_slice().try_into().ok();
        bytes.filter(|_| constant.dtype == crate::DType::F32).map(f32::from_le_bytes)
    }
}

/// The inputs of a node that has exactly so many.
fn inputs<const N: usize>(node: &Node) -> Option<[usize; N]> {
    let all: Option<Vec<usize>> = node.inputs.iter().copied().collect();
    all?.try_into().ok()
}

fn attribute<'a>(op: &'a OnnxOp, name: &str) -> Option<&'a Attribute> {
    op.attributes.iter().find(|(key, _)| *key == name).map(|(_, value)| value)
}

/// One of cogvx's operators.
fn native(name: &'static str, attributes: Vec<(&'static str, Attribute)>, outputs: Vec<Type>) -> Op {
    Op::Onnx(OnnxOp { domain: DOMAIN, name, since: VERSION, attributes, outputs })
}
