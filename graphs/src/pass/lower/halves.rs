//! A feed-forward as two of half the rows each, one after the other.
//!
//! Between its layers features are four times as wide as before and after them, and no kernel of GELU works in place: most memory
//! of a transformer is held there. Of half the rows that is half as much.

use std::collections::HashSet;

use super::{Attribute::Int, CONTRIB, Lower, Target, emit, gemm, producer};
use crate::graph::{Graph, Node, Source};
use crate::op::{Op, Type};
use crate::{Dim, Value};

/// Values between the two layers of a feed-forward that nothing else reads, and what they are made of neither.
pub(super) fn between(graph: &Graph) -> HashSet<usize> {
    let (nodes, values, live) = (graph.nodes(), graph.values(), graph.live());
    let mut reads = vec![0_usize; values.len()];
    let of_nodes = nodes.iter().filter(|node| node.outputs.iter().any(|&made| live[made]));
    let of_nodes = of_nodes.flat_map(|node| node.inputs.iter().flatten().copied());
    for read in of_nodes.chain(graph.outputs().iter().map(|output| output.value)) {
        reads[read] += 1;
    }
    let is_linear = |value: usize| match values[value].source {
        Source::Node { node, .. } => matches!(nodes[node].op, Op::Linear),
        _ => false,
    };
    let gelus = nodes.iter().filter(|node| matches!(node.op, Op::Gelu));
    let alone = gelus.filter_map(|node| Some((node.inputs[0]?, node.outputs[0])));
    alone.filter(|&(x, y)| is_linear(x) && reads[x] == 1 && reads[y] == 1).map(|(_, y)| y).collect()
}

impl Lower {
    /// What the second layer `node` of a feed-forward makes, with both layers by halves; none where there is no such first layer, and
    /// on GPUs, where kernels want all rows at once.
    pub(super) fn in_halves<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], to: &Type) -> Option<Value<'g>> {
        if self.target != Target::Cpu || !self.between.contains(&node.inputs[0]?) {
            return None;
        }
        let y = inputs[0]?;
        let out = y.graph;
        let gelu = producer(y, "FastGelu").filter(|gelu| gelu.inputs.len() == 1)?;
        let x = out.value(gelu.inputs[0]?);
        let x = producer(x, "Reshape").and_then(|node| node.inputs[0]).map_or(x, |id| out.value(id));
        let first = producer(x, "Gemm")?;
        let parameters: Vec<_> = first.inputs[1..].iter().map(|input| input.map(|id| out.value(id))).collect();
        let (read, inner) = (out.value(first.inputs[0]?), x.dim(1));
        let parts = match read.dim(0) {
            Dim::Fixed(0 | 1) => return None,
            Dim::Fixed(n) => [n.div_ceil(2), n / 2].map(Dim::Fixed),
            n @ Dim::Symbol(_) => {
                [format!("groups({n}, 2)"), format!("{n} - groups({n}, 2)")].map(|name| Dim::named(&name))
            }
        };
        let types = parts.map(|rows| Type::new(read.dtype(), vec![rows, read.dim(1)]));
        let halves = vec![("axis", Int(0)), ("num_outputs", Int(2))];
        let halves = emit("", "Split", 18, halves, &[Some(read)], types.to_vec(), out);
        let features = to.shape.last().cloned()?;
        let made: Vec<_> = halves
            .into_iter()
            .map(|half| {
                // Each where it was, so that a profile tells what each layer takes.
                out.enter(first.path.clone());
                let wide = gemm(half, &parameters, inner.clone());
                out.leave();
                out.enter(gelu.path.clone());
                let wide = emit(CONTRIB, "FastGelu", 1, vec![], &[Some(wide)], vec![wide.r#type()], out)[0];
                out.leave();
                Some(gemm(wide, &inputs[1..], features.clone()))
            })
            .collect();
        let whole = Type::new(to.dtype, vec![read.dim(0), features]);
        let whole = emit("", "Concat", 13, vec![("axis", Int(0))], &made, vec![whole], out)[0];
        Some(self.reshape(whole, &to.shape))
    }
}
