//! Balancing activations and weights (`SmoothQuant`, Xiao et al. 2023; AWQ, Lin et al. 2024).
//!
//! A feature that is large in all tokens costs the others their resolution. It is divided by a factor and its column of the
//! weight multiplied by it. The division is folded into what makes the features, so it costs nothing when the model runs:
//! into the scale and shift of the norm before, or into the rows of the linear layer before where only products and
//! averages are between.

use std::collections::BTreeMap;

use cogvx_graphs::graph::{Graph, Node, Source, WeightPart};
use cogvx_graphs::op::{Binary, Op};

use cogvx_graphs::pass::Target;
use cogvx_graphs::quantized::LinearForm;

use crate::histogram::Clip;
use crate::plan::{Layer, Plan};
use crate::round::{restore, restore_features};
use crate::scales::settled;
use crate::table::{Place, Table};

/// Strengths tried; 0 leaves all as it is.
const STRENGTHS: [f32; 8] = [0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9];
/// Tokens that a strength is judged by.
const ROWS: usize = 96;
/// Output features of each layer that a strength is judged by.
const OUTPUTS: usize = 96;

/// What makes the features that some layers read, where factors can be folded into it.
#[derive(Debug)]
enum Origin {
    /// Norms, by the value each makes.
    Norms(Vec<usize>),
    /// A quantized linear layer, by its weight.
    Rows(String),
}

/// Reads a weight `[out, in]` as `f32`.
pub type Read<'a, E> = dyn Fn(&str) -> Result<Vec<f32>, E> + 'a;

/// Balance the layers of `plan`, made for `graph`, by what `table` has seen at their places; then fix the scales of features
/// that have one, cutting off what `method` says.
///
/// # Errors
/// Those of `read`.
pub fn smooth<E>(plan: &mut Plan, graph: &Graph, (table, method): (&Table, Clip), read: &Read<'_, E>) -> Result<(), E> {
    for (layers, origin) in groups(plan, graph) {
        let place = layers.iter().find_map(|layer| plan.layers[layer].place.as_ref());
        let Some(place) = place.and_then(|place| table.places.get(place)) else { continue };
        let weights = layers.iter().map(|name| read(name)).collect::<Result<Vec<_>, E>>()?;
        let members: Vec<_> = layers.iter().map(|name| &plan.layers[name]).zip(&weights).collect();
        let Some(factors) = best(plan.target, &members, place, method) else { continue };
        let inverse: Vec<_> = factors.iter().map(|s| 1.0 / s).collect();
        match origin {
            Origin::Norms(norms) => plan.norms.extend(norms.into_iter().map(|norm| (norm, inverse.clone()))),
            Origin::Rows(name) => {
                if let Some(layer) = plan.layers.get_mut(&name) {
                    layer.rows.clone_from(&inverse);
                }
            }
        }
        for name in layers {
            if let Some(layer) = plan.layers.get_mut(&name) {
                layer.columns.clone_from(&factors);
            }
        }
    }
    for layer in plan.layers.values_mut() {
        if let Some(place) = layer.place.as_ref().and_then(|place| table.places.get(place)) {
            layer.form = settled(layer.form, plan.target, place, &layer.columns, method);
        }
    }
    Ok(())
}

/// The factors that lose least, if any lose less than none.
fn best(target: Target, members: &[(&Layer, &Vec<f32>)], place: &Place, method: Clip) -> Option<Vec<f32>> {
    let (width, magnitudes) = (place.width, place.magnitudes());
    let mut columns = vec![0.0_f32; width];
    for row in members.iter().flat_map(|(_, weight)| weight.chunks_exact(width)) {
        columns.iter_mut().zip(row).for_each(|(most, x)| *most = most.max(x.abs()));
    }
    let rows = spread(&place.rows, width, ROWS);
    let samples: Vec<_> = members.iter().map(|(layer, weight)| (*layer, spread(weight, width, OUTPUTS))).collect();
    let loss = |factors: &[f32]| {
        let of = |(layer, weight): &(&Layer, Vec<f32>)| {
            let form = settled(layer.form, target, place, factors, method);
            loss(form, target, &rows, weight, factors)
        };
        samples.iter().map(of).sum()
    };
    let none: f64 = loss(&vec![1.0; width]);
    let tried = STRENGTHS.map(|strength| {
        let factors = factors(&magnitudes, &columns, strength);
        (loss(&factors), factors)
    });
    let (least, factors) = tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0))?;
    (least < none).then_some(factors)
}

/// `max |x|^strength / max |w|^(1 - strength)` of each feature, their geometric mean 1.
fn factors(magnitudes: &[f32], columns: &[f32], strength: f32) -> Vec<f32> {
    let raw: Vec<_> = magnitudes
        .iter()
        .zip(columns)
        .map(|(&x, &w)| if x > 0.0 && w > 0.0 { strength * x.ln() - (1.0 - strength) * w.ln() } else { 0.0 })
        .collect();
    #[allow(clippy::cast_precision_loss)] // Far fewer than 2^24 features.
    let mean = raw.iter().sum::<f32>() / raw.len() as f32;
    // Nothing is made a thousand times smaller or larger: 16-bit norms must hold it.
    raw.iter().map(|log| (log - mean).clamp(-6.9, 6.9).exp()).collect()
}

/// Square error of the layer's outputs on `rows`, both quantized, features divided by `factors`.
fn loss(form: LinearForm, target: Target, rows: &[f32], weight: &[f32], factors: &[f32]) -> f64 {
    let width = factors.len();
    let by = |numbers: &[f32], factor: fn(f32, f32) -> f32| -> Vec<f32> {
        let scaled = numbers.chunks_exact(width).flat_map(|row| row.iter().zip(factors).map(|(&x, &s)| factor(x, s)));
        scaled.collect()
    };
    let features = restore_features(form, by(rows, |x, s| x / s), width);
    let rounded = restore(form, target, &by(weight, |w, s| w * s), width);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let mut loss = 0.0;
    for (exact, rough) in rows.chunks_exact(width).zip(features.chunks_exact(width)) {
        for (weight, rounded) in weight.chunks_exact(width).zip(rounded.chunks_exact(width)) {
            loss += f64::from(dot(exact, weight) - dot(rough, rounded)).powi(2);
        }
    }
    loss
}

/// At most `most` rows, evenly spaced.
pub(crate) fn spread(numbers: &[f32], width: usize, most: usize) -> Vec<f32> {
    let rows = numbers.len() / width;
    let step = rows.div_ceil(most).max(1);
    numbers.chunks_exact(width).step_by(step).flatten().copied().collect()
}

/// Layers that read the same value, with what makes it, where factors can be folded into that.
fn groups(plan: &Plan, graph: &Graph) -> Vec<(Vec<String>, Origin)> {
    let nodes = graph.nodes();
    let look = Look::new(plan, graph, &nodes);
    let mut groups: BTreeMap<usize, Vec<String>> = BTreeMap::new();
    for node in nodes.iter() {
        if let (Some(name), Some(&Some(x))) = (look.layer(node), node.inputs.first()) {
            groups.entry(x).or_default().push(name);
        }
    }
    groups.into_iter().filter_map(|(x, layers)| Some((layers, look.origin(x)?))).collect()
}

/// A graph being looked at.
struct Look<'a> {
    plan: &'a Plan,
    graph: &'a Graph,
    nodes: &'a [Node],
    /// For each value, the nodes that read it; an output of the graph is read by one more.
    readers: Vec<Vec<usize>>,
}

impl<'a> Look<'a> {
    fn new(plan: &'a Plan, graph: &'a Graph, nodes: &'a [Node]) -> Self {
        let mut readers = vec![vec![]; graph.values().len()];
        for (i, node) in nodes.iter().enumerate() {
            node.inputs.iter().flatten().for_each(|&v| readers[v].push(i));
        }
        graph.outputs().iter().for_each(|output| readers[output.value].push(usize::MAX));
        Self { plan, graph, nodes, readers }
    }

    /// The weight of a layer of the plan.
    fn layer(&self, node: &Node) -> Option<String> {
        let weight = (node.op == Op::Linear).then(|| node.inputs.get(1).copied().flatten()).flatten()?;
        let Source::Weight(weight) = &self.graph.values()[weight].source else { return None };
        let planned = weight.part == WeightPart::Whole && self.plan.layers.contains_key(&weight.name);
        planned.then(|| weight.name.clone())
    }

    /// The node that makes `value`.
    fn maker(&self, value: usize) -> Option<&'a Node> {
        match self.graph.values()[value].source {
            Source::Node { node, .. } => Some(&self.nodes[node]),
            _ => None,
        }
    }

    /// What makes the features `x`, all of whose readers are layers of the plan.
    fn origin(&self, x: usize) -> Option<Origin> {
        let all = self.readers[x].iter().all(|&i| self.nodes.get(i).is_some_and(|node| self.layer(node).is_some()));
        if !all {
            return None;
        }
        let x = self.through_precision(x);
        let node = self.maker(x)?;
        match &node.op {
            Op::LayerNorm { .. } | Op::RmsNorm { .. } => Some(Origin::Norms(vec![x])),
            // Text and video side by side, each with a norm of its own.
            Op::Concat(_) => {
                let parts: Option<Vec<_>> = node.inputs.iter().map(|part| self.lone_norm((*part)?)).collect();
                parts.map(Origin::Norms)
            }
            // Averages of values: what makes the values.
            Op::Attention { .. } => self.lone_layer(node.inputs[2]?),
            Op::Binary(Binary::Mul) => node.inputs.iter().flatten().find_map(|&factor| self.lone_layer(factor)),
            _ => None,
        }
    }

    /// The value before changes of precision that nothing else reads.
    fn through_precision(&self, mut x: usize) -> usize {
        while let Some(node) = self.maker(x).filter(|node| matches!(node.op, Op::Narrow | Op::Wide | Op::Cast(_))) {
            let Some(before) = node.inputs[0].filter(|&before| self.readers[before].len() == 1) else { break };
            x = before;
        }
        x
    }

    fn lone_norm(&self, x: usize) -> Option<usize> {
        let x = self.through_precision(x);
        let lone = self.readers[x].len() == 1;
        let norm = matches!(self.maker(x)?.op, Op::LayerNorm { .. } | Op::RmsNorm { .. });
        (lone && norm).then_some(x)
    }

    fn lone_layer(&self, x: usize) -> Option<Origin> {
        let x = self.through_precision(x);
        let lone = self.readers[x].len() == 1;
        self.layer(self.maker(x)?).filter(|_| lone).map(Origin::Rows)
    }
}
