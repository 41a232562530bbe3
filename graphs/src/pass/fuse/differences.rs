//! Bytes of what samples differ by.
//!
//! Guidance makes `c + (g - 1) (c - u)` of what is predicted for two samples of a batch that are much alike, so errors that both have
//! count once, and others several times. The rows of all samples but the last are rounded as what they differ from the last's by,
//! which is small, and what products make of that is added to the last's: `W c + W (u - c)`. Nothing is multiplied more often.

use std::collections::HashMap;

use crate::graph::{Graph, Node};
use crate::op::{Attribute, OnnxOp, Op};
use crate::pass::{self, Pass};
use crate::{Dim, Problem, Value};

use super::attribute;

/// The byte that stands for no difference.
const NONE: i64 = 128;

/// `graph` with differences wherever what rounds rows knows the samples, and all that reads their products can add them up.
///
/// # Errors
/// As [`pass::run`].
pub(super) fn differ(graph: &Graph) -> Result<Graph, Vec<Problem>> {
    pass::run(&mut Differ::of(graph), graph)
}

/// What changes.
#[derive(Default)]
struct Differ {
    /// What rounds differences, by the steps that it makes: samples and tokens, which is their shape.
    rounds: HashMap<usize, [Dim; 2]>,
    /// Products of differences that take another byte for zero than these have, by what they make: they have a last row for
    /// what that is too great by.
    longer: HashMap<usize, Dim>,
    /// What adds products up, by the first value that it makes, and whether they have such a row.
    sums: HashMap<usize, bool>,
}

impl Differ {
    fn of(graph: &Graph) -> Self {
        let nodes = graph.nodes();
        let mut readers: Vec<Vec<&Node>> = vec![vec![]; graph.values().len()];
        for node in nodes.iter() {
            node.inputs.iter().flatten().for_each(|&value| readers[value].push(node));
        }
        let mut found = Self::default();
        for node in nodes.iter() {
            found.consider(graph, node, &readers);
        }
        found
    }

    /// Whether `node` rounds rows that can be differences.
    fn consider(&mut self, graph: &Graph, node: &Node, readers: &[Vec<&Node>]) -> Option<()> {
        let (Op::Onnx(op), &[bytes, steps, ..]) = (&node.op, &node.outputs[..]) else { return None };
        let zero = attribute(op, "zero")?;
        let has_none = *zero == Attribute::Int(NONE);
        let samples = match op.name {
            "JoinNormsRounded" if has_none => {
                let tokens = |i: usize| node.inputs[i].map(|stream| graph.values()[stream].r#type.shape.clone());
                let (text, video) = (tokens(0)?, tokens(1)?);
                [text.first()?.clone(), text.get(1)? + video.get(1)?]
            }
            // What adds differences up knows the samples by them.
            "RoundRows" => self.rounds.get(&(*node.inputs.get(1)?)?)?.clone(),
            _ => return None,
        };
        let is_output = graph.outputs().iter().any(|output| [bytes, steps].contains(&output.value));
        let products: Vec<_> = readers[bytes].iter().map(|product| product.outputs[0]).collect();
        let sums: Option<Vec<_>> = products.iter().map(|&y| sum(&readers[y], y, steps)).collect();
        let sums = sums.filter(|sums| !sums.is_empty() && !is_output && readers[steps].len() == sums.len())?;
        self.rounds.insert(steps, samples);
        if !has_none {
            let rows = graph.values()[bytes].r#type.shape.first()?.clone();
            self.longer.extend(products.into_iter().chain([bytes]).map(|value| (value, &rows + &Dim::Fixed(1))));
        }
        self.sums.extend(sums.into_iter().map(|sum| (sum, !has_none)));
        Some(())
    }
}

/// The first value made of a product `y` and its `steps`, if that is all that either is read for.
fn sum(readers: &[&Node], y: usize, steps: usize) -> Option<usize> {
    let &[node] = readers else { return None };
    let (product, of_rows) = match node.op.name() {
        "RescaleRows" | "RoundRows" => (0, 1),
        "JoinNorms" | "JoinNormsRounded" => (6, 9),
        _ => return None,
    };
    let reads = |i: usize, value| node.inputs.get(i) == Some(&Some(value));
    (reads(product, y) && reads(of_rows, steps)).then_some(node.outputs[0])
}

impl Pass for Differ {
    fn name(&self) -> &'static str {
        "differences"
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        let Op::Onnx(op) = &node.op else { return None };
        let first = node.outputs[0];
        let (rounds, sum) = (node.outputs.get(1).and_then(|steps| self.rounds.get(steps)), self.sums.get(&first));
        let rows = self.longer.get(&first);
        if rounds.is_none() && sum.is_none() && rows.is_none() {
            return None;
        }
        let mut op: OnnxOp = op.clone();
        if let Some(samples) = rounds {
            op.attributes.push(("differences", Attribute::Int(1)));
            op.outputs[1].shape = samples.to_vec();
        }
        if let Some(&is_longer) = sum {
            op.attributes.push(("summed", Attribute::Int(1)));
            op.attributes.push(("excess", Attribute::Int(is_longer.into())));
        }
        if let Some(rows) = rows {
            op.outputs[0].shape[0] = rows.clone();
        }
        Some(out.add(Op::Onnx(op), &inputs.iter().map(|input| input.map(Value::id)).collect::<Vec<_>>()))
    }
}
