//! The pass that makes a graph tell what its layers read, and how large its values become.

use std::collections::BTreeMap;

use cogvx_graphs::graph::{Graph, Node, Source};
use cogvx_graphs::op::{Op, Reduction};
use cogvx_graphs::pass::Pass;
use cogvx_graphs::{Dim, Value};

use crate::convs;
use crate::plan::quantizable;
use crate::values::ValueNames;

/// Adds outputs to a graph: for each place where quantizable layers read, the least and greatest number of each feature and
/// some rows; the least and greatest number of each value that [`ValueNames`] names; and those of what quantizable convolutions
/// read, as `<name of the value they make>.input`. Layers that read the same share a place, named by the weight of the first.
#[derive(Debug, Default)]
pub struct Observe {
    /// Rows taken at each place in each run.
    rows: usize,
    /// By value observed: the place's name.
    places: BTreeMap<usize, String>,
    layers: BTreeMap<String, String>,
    names: ValueNames,
}

/// What an observed output holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The least number of each feature, `[features]`.
    Least,
    /// The greatest number of each feature, `[features]`.
    Greatest,
    /// Evenly spaced rows, `[rows, features]`.
    Rows,
    /// The least of all numbers of a value, `[1]`.
    Minimum,
    /// The greatest of all numbers of a value, `[1]`.
    Maximum,
}

impl Seen {
    /// What is told of a place.
    const OF_PLACE: [Self; 3] = [Self::Least, Self::Greatest, Self::Rows];
    /// What is told of a value.
    const OF_VALUE: [Self; 2] = [Self::Minimum, Self::Maximum];

    fn suffix(self) -> &'static str {
        match self {
            Self::Least => "/least",
            Self::Greatest => "/greatest",
            Self::Rows => "/rows",
            Self::Minimum => "/minimum",
            Self::Maximum => "/maximum",
        }
    }

    /// The name of the output that tells this of `place`.
    #[must_use]
    pub fn output_of(self, place: &str) -> String {
        format!("{place}{}", self.suffix())
    }

    /// The place or value and what is told of it, if `output` is one that [`Observe`] added.
    #[must_use]
    pub fn of_output(output: &str) -> Option<(&str, Self)> {
        Self::OF_PLACE
            .into_iter()
            .chain(Self::OF_VALUE)
            .find_map(|seen| Some((output.strip_suffix(seen.suffix())?, seen)))
    }
}

impl Observe {
    /// A pass that takes `rows` rows at each place.
    #[must_use]
    pub fn new(rows: usize) -> Self {
        Self { rows, ..Self::default() }
    }

    /// By weight of a layer: the place it reads from.
    #[must_use]
    pub fn layers(&self) -> &BTreeMap<String, String> {
        &self.layers
    }
}

impl Pass for Observe {
    fn name(&self) -> &'static str {
        "observe"
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        if let &[Some(x), Some(weight), ..] = inputs {
            self.observe_place(node, [x, weight], out);
        }
        let name = self.names.of(node, inputs)?;
        observe_input(&name, node, inputs, out);
        let inputs: Vec<_> = inputs.iter().map(|input| input.map(Value::id)).collect();
        let made = out.add(node.op.clone(), &inputs);
        observe_value(&name, made[0], out);
        Some(made)
    }
}

impl Observe {
    /// Tell what a linear layer reads, unless another one was found to read the same.
    fn observe_place(&mut self, node: &Node, [x, weight]: [Value<'_>; 2], out: &Graph) {
        let Source::Weight(weight) = weight.source() else { return };
        if node.op != Op::Linear || quantizable(&weight).is_none() {
            return;
        }
        if let Some(place) = self.places.get(&x.id()) {
            self.layers.insert(weight.name, place.clone());
            return;
        }
        // A single row, as of the time embedding, is all rows.
        let front = x.shape().len() - 1;
        let rows = Dim::product(&x.shape()[..front]).fixed().map_or(self.rows, |n| n.min(self.rows));
        for seen in Seen::OF_PLACE {
            let told = match seen {
                Seen::Least => x.over_rows(Reduction::Least),
                Seen::Greatest => x.over_rows(Reduction::Greatest),
                _ => x.sample_rows(rows),
            };
            out.output(&seen.output_of(&weight.name), told);
        }
        self.places.insert(x.id(), weight.name.clone());
        self.layers.insert(weight.name.clone(), weight.name);
    }
}

/// Tell the least and the greatest number that a quantizable convolution reads; it makes the value `name`.
fn observe_input(name: &str, node: &Node, inputs: &[Option<Value<'_>>], out: &Graph) {
    let &[Some(x), Some(weight), Some(bias)] = inputs else { return };
    if convs::quantizable(&node.op, [&weight.source(), &bias.source()]).is_some() {
        observe_value(&convs::input_of(name), x, out);
    }
}

/// Tell the least and the greatest number of `value`.
fn observe_value(name: &str, value: Value<'_>, out: &Graph) {
    let all = value.reshape(vec![Dim::product(&value.shape()), Dim::Fixed(1)]);
    for (seen, reduction) in Seen::OF_VALUE.into_iter().zip([Reduction::Least, Reduction::Greatest]) {
        out.output(&seen.output_of(name), all.over_rows(reduction));
    }
}
