//! Balancing activations and weights (`SmoothQuant`, Xiao et al. 2023; AWQ, Lin et al. 2024; Outlier Suppression+, Wei et al. 2023).
//!
//! A feature that is large in all tokens costs the others their resolution. It is divided by a factor and its column of the weight
//! multiplied by it; where tokens are rounded one by one its mean is taken off before, which the bias makes up for. Both are folded
//! into what makes the features, so they cost nothing when the model runs: into the scale and shift of the norm before, or into the
//! rows and bias of the linear layer before where only products and averages are between.

use std::collections::BTreeMap;

use cogvx_graphs::graph::{Graph, Node, Source, WeightPart};
use cogvx_graphs::op::{Binary, Op};

use cogvx_graphs::pass::Target;
use cogvx_graphs::quantized::LinearForm;

use crate::balance::Balance;
use crate::descend::{MOST, Readers, descend};
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
    Rows {
        layer: String,
        /// Only averages are between, so that what is taken off here is taken off there.
        averaged: bool,
    },
}

/// Reads a weight `[out, in]` as `f32`.
pub type Read<'a, E> = dyn Fn(&str) -> Result<Vec<f32>, E> + 'a;

/// Balance the layers of `plan`, made for `graph`, by what `table` has seen at their places; then fix the scales of features
/// that have one, cutting off what `method` says.
///
/// # Errors
/// Those of `read`.
pub fn smooth<E>(plan: &mut Plan, graph: &Graph, (table, method): (&Table, Clip), read: &Read<'_, E>) -> Result<(), E> {
    for group in groups(plan, graph) {
        let layers = &group.layers;
        let place = layers.iter().find_map(|layer| plan.layers[layer].place.as_ref());
        let Some(place) = place.and_then(|place| table.places.get(place)) else { continue };
        let weights = layers.iter().map(|name| read(name)).collect::<Result<Vec<_>, E>>()?;
        let members: Vec<_> = layers.iter().map(|name| &plan.layers[name]).zip(&weights).collect();
        let Some(balance) = best(plan.target, &members, (place, group.shifts), method) else { continue };
        match group.origin {
            Origin::Norms(norms) => plan.norms.extend(norms.into_iter().map(|norm| (norm, balance.clone()))),
            Origin::Rows { layer, .. } => {
                if let Some(layer) = plan.layers.get_mut(&layer) {
                    layer.rows = balance.inverse();
                    let offsets = balance.offsets.iter().map(|offset| -offset);
                    layer.bias = sum(&layer.bias, offsets.collect());
                }
            }
        }
        for (name, weight) in layers.iter().zip(&weights) {
            if let Some(layer) = plan.layers.get_mut(name) {
                layer.bias = sum(&layer.bias, outputs(weight, &balance.offsets));
                layer.balance.clone_from(&balance);
            }
        }
    }
    for layer in plan.layers.values_mut() {
        if let Some(place) = layer.place.as_ref().and_then(|place| table.places.get(place)) {
            layer.form = settled(layer.form, plan.target, place, &layer.balance, method);
        }
    }
    Ok(())
}

/// Both added up; an empty one is of zeros.
fn sum(a: &[f32], mut b: Vec<f32>) -> Vec<f32> {
    if b.is_empty() {
        return a.to_vec();
    }
    b.iter_mut().zip(a).for_each(|(b, a)| *b += a);
    b
}

/// What a layer makes of one token's `features`; nothing of none.
fn outputs(weight: &[f32], features: &[f32]) -> Vec<f32> {
    let of = |row: &[f32]| row.iter().zip(features).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum::<f64>();
    #[allow(clippy::cast_possible_truncation)]
    if features.is_empty() { vec![] } else { weight.chunks_exact(features.len()).map(|row| of(row) as f32).collect() }
}

/// The balance that loses least, if any loses less than none; with offsets if there is a bias to make up for them.
fn best(
    target: Target,
    members: &[(&Layer, &Vec<f32>)],
    (place, shifts): (&Place, bool),
    method: Clip,
) -> Option<Balance> {
    let width = place.width;
    let (mut columns, mut squares) = (vec![0.0_f32; width], vec![0.0_f32; width]);
    for row in members.iter().flat_map(|(_, weight)| weight.chunks_exact(width)) {
        columns.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs()));
        squares.iter_mut().zip(row).for_each(|(sum, w)| *sum += w * w);
    }
    let rows = spread(&place.rows, width, ROWS);
    let samples: Vec<_> = members.iter().map(|(layer, weight)| (*layer, spread(weight, width, OUTPUTS))).collect();
    let loss = |balance: &Balance| -> f64 {
        let of = |(layer, weight): &(&Layer, Vec<f32>)| {
            let form = settled(layer.form, target, place, balance, method);
            loss(form, target, &rows, weight, balance)
        };
        samples.iter().map(of).sum()
    };
    let none = loss(&Balance { factors: vec![1.0; width], offsets: vec![] });
    let judged = |balance: Balance| (loss(&balance), balance);
    let mut tried = vec![];
    // Where features are not rounded token by token, nothing was gained by more than strengths.
    let by_token = members.iter().all(|(layer, _)| matches!(layer.form, LinearForm::PerToken { .. }));
    let means = (shifts && by_token).then(|| means(&place.rows, width));
    for offsets in [Some(vec![]), means].into_iter().flatten() {
        let magnitudes = place.magnitudes(&offsets);
        tried.extend(STRENGTHS.map(|strength| {
            judged(Balance { factors: factors(&magnitudes, &columns, strength), offsets: offsets.clone() })
        }));
    }
    let least = |tried: Vec<(f64, Balance)>| tried.into_iter().min_by(|a, b| a.0.total_cmp(&b.0));
    let mut found = least(tried)?;
    if by_token {
        let weights: Vec<_> = samples.iter().flat_map(|(_, weight)| weight).copied().collect();
        let count = members.iter().map(|(layer, _)| layer.features[0]).sum();
        // All read the same, so it was turned alike.
        let rotation = members.first().map_or(1, |(layer, _)| layer.form.rotation());
        let readers = Readers { rows: &weights, squares: &squares, count };
        let lower = judged(descend(&found.1, &place.rows, &readers, rotation));
        found = least(vec![found, lower])?;
    }
    (found.0 < none).then_some(found.1)
}

/// The mean of each feature.
fn means(rows: &[f32], width: usize) -> Vec<f32> {
    let mut means = vec![0.0_f64; width];
    for row in rows.chunks_exact(width) {
        means.iter_mut().zip(row).for_each(|(mean, x)| *mean += f64::from(*x));
    }
    #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation)] // Far fewer than 2^52 rows.
    means.iter().map(|sum| (sum / (rows.len() / width).max(1) as f64) as f32).collect()
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
    raw.iter().map(|log| (log - mean).clamp(-MOST, MOST).exp()).collect()
}

/// Square error of the layer's outputs on `rows`, both quantized, features balanced.
fn loss(form: LinearForm, target: Target, rows: &[f32], weight: &[f32], balance: &Balance) -> f64 {
    let width = balance.factors.len();
    let balanced = balance.of(rows, width);
    let scaled: Vec<_> =
        weight.chunks_exact(width).flat_map(|row| row.iter().zip(&balance.factors).map(|(w, f)| w * f)).collect();
    let rounded = restore(form, target, &scaled, width);
    let features = restore_features(form, balanced.clone(), width);
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    let mut loss = 0.0;
    for (exact, rough) in balanced.chunks_exact(width).zip(features.chunks_exact(width)) {
        for (weight, rounded) in scaled.chunks_exact(width).zip(rounded.chunks_exact(width)) {
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

/// Layers that read the same value.
struct Group {
    layers: Vec<String>,
    /// What makes the value, where factors can be folded into it.
    origin: Origin,
    /// Whether offsets can be, too: there are biases to make up for them.
    shifts: bool,
}

fn groups(plan: &Plan, graph: &Graph) -> Vec<Group> {
    let nodes = graph.nodes();
    let look = Look::new(plan, graph, &nodes);
    let mut groups: BTreeMap<usize, Vec<&Node>> = BTreeMap::new();
    for node in nodes.iter().filter(|node| look.layer(node).is_some()) {
        if let Some(&Some(x)) = node.inputs.first() {
            groups.entry(x).or_default().push(node);
        }
    }
    let group = |(x, readers): (usize, Vec<&Node>)| {
        let origin = look.origin(x)?;
        let shifts = readers.iter().all(|node| is_biased(node)) && look.shifts(&origin);
        Some(Group { layers: readers.into_iter().filter_map(|node| look.layer(node)).collect(), origin, shifts })
    };
    groups.into_iter().filter_map(group).collect()
}

/// Whether a linear layer or a norm adds something in the end.
fn is_biased(node: &Node) -> bool {
    matches!(node.inputs.get(2), Some(Some(_)))
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
            Op::Attention { .. } => self.lone_layer(node.inputs[2]?, true),
            Op::Binary(Binary::Mul) => node.inputs.iter().flatten().find_map(|&factor| self.lone_layer(factor, false)),
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

    fn lone_layer(&self, x: usize, averaged: bool) -> Option<Origin> {
        let x = self.through_precision(x);
        let (node, lone) = (self.maker(x)?, self.readers[x].len() == 1);
        let layer = self.layer(node).filter(|_| lone)?;
        Some(Origin::Rows { layer, averaged: averaged && is_biased(node) })
    }

    /// Whether what `origin` makes can have something taken off.
    fn shifts(&self, origin: &Origin) -> bool {
        match origin {
            Origin::Norms(norms) => norms.iter().all(|&norm| self.maker(norm).is_some_and(is_biased)),
            Origin::Rows { averaged, .. } => *averaged,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round::tests::numbers;

    const WIDTH: usize = 64;

    /// Features of which some are large and some are far from zero.
    fn place() -> Place {
        let mut place = Place { width: WIDTH, ..Place::default() };
        let mut rows = numbers(128 * WIDTH);
        for row in rows.chunks_exact_mut(WIDTH) {
            for (j, x) in row.iter_mut().enumerate() {
                // Some have long tails, too.
                let x0 = if j % 3 == 0 { x.powi(5) / 256.0 } else { *x };
                *x = if j % 16 == 3 { 20.0 * x0 } else { x0 } + if j % 8 == 5 { 30.0 } else { 0.0 };
            }
            place.see(0, 1, row, row);
        }
        place.sample(&rows, 128);
        place
    }

    #[test]
    fn offsets_and_descent_lose_less_than_strengths_alone() {
        // Some features matter little.
        let even = numbers(48 * WIDTH);
        let weight: Vec<_> =
            even.iter().enumerate().map(|(i, w)| if (i % WIDTH).is_multiple_of(5) { 0.01 * w } else { *w }).collect();
        let columns: Vec<_> = (0..WIDTH)
            .map(|j| weight.iter().skip(j).step_by(WIDTH).fold(0.0_f32, |most, w| most.max(w.abs())))
            .collect();
        let place = place();
        let rows = spread(&place.rows, WIDTH, ROWS);
        let tensor = LinearForm::PerTensor { scale: 1.0, zero_point: 128 };
        let by_token = |rotation| LinearForm::PerToken { rotation };
        for (form, descends) in [(by_token(1), true), (by_token(16), true), (tensor, false)] {
            let balance = Balance::default();
            let layer = Layer { form, features: [48, WIDTH], balance, place: None, rows: vec![], bias: vec![] };
            let lost = |balance: &Balance| {
                let form = settled(layer.form, Target::Cpu, &place, balance, Clip::MinMax);
                loss(form, Target::Cpu, &rows, &weight, balance)
            };
            let found = |shifts| {
                best(Target::Cpu, &[(&layer, &weight)], (&place, shifts), Clip::MinMax).expect("a better balance")
            };
            let none = lost(&Balance { factors: vec![1.0; WIDTH], offsets: vec![] });
            let strengths = STRENGTHS.map(|strength| {
                lost(&Balance { factors: factors(&place.magnitudes(&[]), &columns, strength), offsets: vec![] })
            });
            let least = strengths.into_iter().fold(f64::INFINITY, f64::min);
            let (still, shifted) = (found(false), found(true));
            assert!(still.offsets.is_empty());
            println!("{form:?}: {none:.3} {least:.3} {:.3} {:.3}", lost(&still), lost(&shifted));
            assert!(least < none && lost(&still) <= least, "{form:?}");
            if descends {
                assert!(lost(&still) < 0.97 * least && lost(&shifted) < 0.8 * lost(&still));
            } else {
                assert_eq!(shifted, still);
            }
        }
    }
}
