//! Passes: a graph rebuilt node by node through the ordinary builder.

pub mod fuse;
mod lower;
mod precision;

pub use lower::{Lower, Target};
pub use precision::Precision;

use crate::graph::{Graph, Node, Output, Source, Weight};
use crate::op::Type;
use crate::{DType, Problem, Value};

/// A choice made over a whole graph: precision, target, quantization.
pub trait Pass {
    /// Name for problem reports.
    fn name(&self) -> &'static str;

    /// Look at the graph that is to be rebuilt.
    fn begin(&mut self, _graph: &Graph) {}

    /// The type of the input that is value `id` of the old graph in the new one.
    fn input(&mut self, _id: usize, old: &Type, _state: bool) -> Type {
        old.clone()
    }

    /// A tensor of the checkpoint in the new graph.
    fn weight<'g>(&mut self, weight: &Weight, dtype: DType, out: &'g Graph) -> Value<'g> {
        out.weight(weight.clone(), dtype)
    }

    /// Rebuild `node` on the new `inputs`; `None` copies it unchanged.
    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>>;

    /// The value an output names in the new graph.
    fn output<'g>(&mut self, _output: &Output, value: Value<'g>) -> Value<'g> {
        value
    }
}

/// The graph that `pass` makes of `graph`; what no output depends on is left out.
///
/// # Errors
/// The problems met, each naming the layer.
///
/// # Panics
/// If the nodes are not in the order of their dependencies, which [`Graph`] sees to.
pub fn run(pass: &mut dyn Pass, graph: &Graph) -> Result<Graph, Vec<Problem>> {
    pass.begin(graph);
    let out = Graph::new();
    let live = graph.live();
    let (values, nodes) = (graph.values(), graph.nodes());
    let mut new: Vec<Option<Value<'_>>> = vec![None; values.len()];
    for (id, data) in values.iter().enumerate() {
        match &data.source {
            Source::Input { name, state } => {
                let r#type = pass.input(id, &data.r#type, *state);
                new[id] = Some(out.add_input(name, r#type, *state));
            }
            _ if !live[id] => {}
            Source::Weight(weight) => new[id] = Some(pass.weight(weight, data.r#type.dtype, &out)),
            Source::Constant(constant) => new[id] = Some(out.constant(constant.clone())),
            Source::Node { node, .. } => {
                let node = &nodes[*node];
                if new[id].is_some() {
                    continue; // A later output of a node already rebuilt.
                }
                let inputs: Vec<_> = node.inputs.iter().map(|i| i.and_then(|i| new[i])).collect();
                out.enter(node.path.clone());
                let rebuilt = pass.rewrite(node, &inputs, &out).unwrap_or_else(|| {
                    let ids: Vec<_> = inputs.iter().map(|v| v.map(Value::id)).collect();
                    out.add(node.op.clone(), &ids)
                });
                out.leave();
                for (&old, value) in node.outputs.iter().zip(rebuilt) {
                    new[old] = Some(value);
                }
            }
        }
    }
    for output in graph.outputs().iter() {
        let value = new[output.value].expect("an output is live, so it was rebuilt");
        let value = pass.output(output, value).id();
        out.push_output(Output { value, ..output.clone() });
    }
    let problems = out.take_problems();
    if problems.is_empty() { Ok(out) } else { Err(problems) }
}
