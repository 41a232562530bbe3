//! The convolutions of the VAE's decoder in eight bits.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use cogvx_graphs::graph::{Graph, Node, Source, ValueData, Weight, WeightPart};
use cogvx_graphs::op::Op;
use cogvx_graphs::quantized::Bytes;

use crate::round::{Rounded, largest, step, values};
use crate::table::{Table, TableError};

/// How one convolution is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Convolution {
    /// Sizes of its weight, `[out, in, frames, rows, columns]`.
    pub shape: Vec<usize>,
    /// The name of its bias.
    pub bias: String,
    /// What [`crate::values::ValueNames`] calls the numbers it makes.
    pub value: String,
    /// What it reads.
    pub reads: Bytes,
    /// What it makes.
    pub makes: Bytes,
}

/// Convolutions with fewer channels than this in either direction stay as they are.
const SMALLEST: usize = 16;
/// The largest magnitude of a weight's value.
const MOST: f32 = 127.0;
/// The largest bias, so that with it no sum of products leaves 32 bits.
const MOST_BIAS: f32 = 1_073_741_824.0;

/// What the table calls the numbers that the convolution reads which makes the numbers called `value`.
pub(crate) fn input_of(value: &str) -> String {
    format!("{value}.input")
}

/// The weight and the bias of a convolution that quantization pays for: one of the decoder's blocks. What comes before and after
/// the blocks has few channels, and what conditions the norms runs at the size of the latents.
pub(crate) fn quantizable<'a>(op: &Op, parameters: [&'a Source; 2]) -> Option<[&'a Weight; 2]> {
    let (Op::Conv { .. }, [Source::Weight(weight), Source::Weight(bias)]) = (op, parameters) else { return None };
    let inside = ["decoder.mid_block.", "decoder.up_blocks."].iter().any(|block| weight.name.starts_with(block));
    let conditions = [".conv_y.", ".conv_b."].iter().any(|name| weight.name.contains(name));
    let wide = weight.shape.len() == 5 && weight.shape[..2].iter().all(|&channels| channels >= SMALLEST);
    let whole = weight.part == WeightPart::Whole && bias.part == WeightPart::Whole;
    (inside && !conditions && wide && whole).then_some([weight, bias])
}

/// The same of a node of a graph with these values.
fn parameters<'a>(node: &Node, values: &'a [ValueData]) -> Option<[&'a Weight; 2]> {
    let &[Some(_), Some(weight), Some(bias)] = &node.inputs[..] else { return None };
    quantizable(&node.op, [weight, bias].map(|id| &values[id].source))
}

/// All convolutions of `graph` that quantization pays for, by the name of their weight; what they read and make is not known yet.
#[must_use]
pub fn find(graph: &Graph) -> BTreeMap<String, Convolution> {
    let values = graph.values();
    let unknown = Bytes { step: 1.0, zero_point: 0 };
    let nodes = graph.nodes();
    let found = nodes.iter().filter_map(|node| {
        let [weight, bias] = parameters(node, &values)?;
        let value = format!("{}/{}", node.path, node.op.name());
        let (shape, bias) = (weight.shape.clone(), bias.name.clone());
        Some((weight.name.clone(), Convolution { shape, bias, value, reads: unknown, makes: unknown }))
    });
    found.collect()
}

impl Convolution {
    /// Settle what it reads and makes, as a convolution of `component`, by `table`, which was read from `path`.
    ///
    /// # Errors
    /// The table does not tell, or has seen nothing but zeros.
    pub fn settle(&mut self, table: &Table, path: &Path, component: &str) -> Result<(), TableError> {
        let name = format!("{component}/{}", self.value);
        self.reads = bytes(table.value_of(path, &input_of(&name))?);
        self.makes = bytes(table.value_of(path, &name)?);
        Ok(())
    }

    /// Numbers of one output channel, and how many there are.
    #[must_use]
    pub fn width(&self) -> usize {
        self.shape[1..].iter().product()
    }

    /// Round the weights of some output channels, and their biases: each channel has a scale.
    #[must_use]
    pub fn round(&self, rows: &[f32], biases: &[f32]) -> Rounded {
        let mut rounded = Rounded::default();
        for (row, bias) in rows.chunks_exact(self.width()).zip(biases) {
            // Beside tiny weights a bias would have too many steps.
            let scale = step(largest(row), MOST).max(bias.abs() / (self.reads.step * MOST_BIAS));
            values(row, 1.0 / scale, 0.0, [-MOST, MOST], u8::MAX, &mut rounded.values);
            #[allow(clippy::cast_possible_truncation)] // Bounded by the scale; NaN becomes zero.
            rounded.bias.push((bias / (self.reads.step * scale)).round_ties_even() as i32);
            rounded.scales.push(scale);
            rounded.zero_points.push(0);
        }
        rounded
    }
}

/// Bytes from the least to the greatest number; zero is one of them.
fn bytes([least, greatest]: [f32; 2]) -> Bytes {
    let (least, greatest) = (least.min(0.0), greatest.max(0.0));
    let step = step(greatest - least, f32::from(u8::MAX));
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Clamped.
    let zero_point = (-least / step).round().clamp(0.0, 255.0) as u8;
    Bytes { step, zero_point }
}

/// The values of `graph` that are merely moved on their way to one of the convolutions `quantized`, or from it to the next run,
/// and so can be bytes: by value, those of the convolution.
pub(crate) fn moved(graph: &Graph, quantized: &BTreeMap<String, Convolution>) -> HashMap<usize, Bytes> {
    let (values, nodes, live) = (graph.values(), graph.nodes(), graph.live());
    let mut readers: Vec<Vec<usize>> = vec![vec![]; values.len()];
    for (at, node) in nodes.iter().enumerate().filter(|(_, node)| live[node.outputs[0]]) {
        node.inputs.iter().flatten().for_each(|&input| readers[input].push(at));
    }
    // What leaves the graph, and whether to come back.
    let outputs: HashMap<_, _> = graph.outputs().iter().map(|output| (output.value, output.state)).collect();
    let mut moved = HashMap::new();
    for (at, node) in nodes.iter().enumerate() {
        let Some([weight, _]) = parameters(node, &values) else { continue };
        let Some(&Convolution { reads, .. }) = quantized.get(&weight.name) else { continue };
        let mut pending: Vec<_> = node.inputs[0].into_iter().collect();
        while let Some(value) = pending.pop() {
            let others = || readers[value].iter().filter(|&&reader| reader != at).map(|&reader| &nodes[reader]);
            let only_kept = |node: &Node| {
                let made = node.outputs[0];
                moves(&node.op) && readers[made].is_empty() && outputs.get(&made) == Some(&true)
            };
            let fits = others().all(|node| moved.contains_key(&node.outputs[0]) || only_kept(node));
            if !fits || outputs.contains_key(&value) {
                continue;
            }
            match &values[value].source {
                Source::Input { state: true, .. } => {}
                Source::Node { node, .. } if moves(&nodes[*node].op) => {
                    let made_of = &nodes[*node].inputs;
                    let count = if matches!(nodes[*node].op, Op::Concat(_)) { made_of.len() } else { 1 };
                    pending.extend(made_of[..count].iter().flatten());
                }
                _ => continue,
            }
            moved.insert(value, reads);
            moved.extend(others().map(|node| (node.outputs[0], reads)));
        }
    }
    moved
}

/// Whether an operation makes the numbers of its inputs, or some of them, in other places.
fn moves(op: &Op) -> bool {
    matches!(op, Op::Concat(_) | Op::Slice { .. } | Op::Last { .. } | Op::Gather(_) | Op::Upsample(_))
}

#[cfg(test)]
mod tests {
    use super::*;
    use cogvx_graphs::{DType, Value, dims};

    #[test]
    fn bytes_reach_from_the_least_to_the_greatest_number_and_have_a_zero() {
        for (range, step, zero_point) in
            [([-1.0, 1.55], 0.01, 100), ([0.5, 2.55], 0.01, 0), ([-5.1, -1.0], 0.02, 255), ([0.0, 0.0], 1.0, 0)]
        {
            let found = bytes(range);
            assert!((found.step - step).abs() < 1e-6 && found.zero_point == zero_point, "{range:?}: {found:?}");
        }
    }

    /// A convolution of the past and `x`, which it keeps; `reads` may do more with what it reads.
    fn graph(reads: impl FnOnce(&Graph, Value<'_>)) -> Graph {
        let g = Graph::new();
        let x = g.input("x", DType::F32, dims![1, 16, 2, 4, 4]).silu();
        let past = g.state("past", dims![1, 16, 2, 4, 4]);
        let all = g.concat(2, &[past, x]);
        g.state_output("cache", all.last(2, 2));
        let name = "decoder.up_blocks.0.conv.";
        let weight = |name: String, shape: &[usize]| g.weight(Weight::whole(&name, DType::F32, shape), DType::F32);
        let parameters = [weight(format!("{name}weight"), &[16, 16, 3, 3, 3]), weight(format!("{name}bias"), &[16])];
        g.output("y", all.conv(parameters[0], Some(parameters[1]), [1; 3], [[0; 2], [1; 2], [1; 2]]));
        reads(&g, all);
        g
    }

    #[test]
    fn what_is_only_moved_is_bytes_unless_somebody_else_reads_it() {
        let names = |graph: &Graph| {
            let found = moved(graph, &find(graph));
            let (values, nodes) = (graph.values(), graph.nodes());
            let mut names: Vec<_> = found
                .keys()
                .map(|&id| match &values[id].source {
                    Source::Node { node, .. } => nodes[*node].op.name().to_string(),
                    Source::Input { name, .. } => name.clone(),
                    _ => "a parameter".into(),
                })
                .collect();
            names.sort();
            names
        };
        assert_eq!(names(&graph(|_, _| ())), ["Concat", "Last", "past"]);
        let nothing: [&str; 0] = [];
        assert_eq!(names(&graph(|g, all| g.output("other", all.silu()))), nothing);
        assert_eq!(names(&graph(|g, all| g.output("other", all.last(2, 1)))), nothing);
        assert_eq!(names(&graph(|g, all| g.output("other", all))), nothing);
    }
}
