//! The pass that makes a graph tell what its linear layers read.

use std::collections::BTreeMap;

use cogvx_graphs::graph::{Graph, Node, Source};
use cogvx_graphs::op::{Op, Reduction};
use cogvx_graphs::pass::Pass;
use cogvx_graphs::{Dim, Value};

use crate::plan::quantizable;

/// Adds outputs to a graph: for each place where quantizable layers read, the least and greatest number of each feature and
/// some rows. Layers that read the same share a place, named by the weight of the first.
#[derive(Debug, Default)]
pub struct Observe {
    /// Rows taken at each place in each run.
    rows: usize,
    /// By value observed: the place's name.
    places: BTreeMap<usize, String>,
    layers: BTreeMap<String, String>,
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
}

impl Seen {
    const ALL: [Self; 3] = [Self::Least, Self::Greatest, Self::Rows];

    fn suffix(self) -> &'static str {
        match self {
            Self::Least => "/least",
            Self::Greatest => "/greatest",
            Self::Rows => "/rows",
        }
    }

    /// The place and what is told of it, if `output` is one that [`Observe`] added.
    #[must_use]
    pub fn of_output(output: &str) -> Option<(&str, Self)> {
        Self::ALL.into_iter().find_map(|seen| Some((output.strip_suffix(seen.suffix())?, seen)))
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
        let &[Some(x), Some(weight), ..] = inputs else { return None };
        let Source::Weight(weight) = weight.source() else { return None };
        if node.op != Op::Linear || quantizable(&weight).is_none() {
            return None;
        }
        if let Some(place) = self.places.get(&x.id()) {
            self.layers.insert(weight.name, place.clone());
            return None;
        }
        // A single row, as of the time embedding, is all rows.
        let front = x.shape().len() - 1;
        let rows = Dim::product(&x.shape()[..front]).fixed().map_or(self.rows, |n| n.min(self.rows));
        for seen in Seen::ALL {
            let told = match seen {
                Seen::Least => x.over_rows(Reduction::Least),
                Seen::Greatest => x.over_rows(Reduction::Greatest),
                Seen::Rows => x.sample_rows(rows),
            };
            out.output(&format!("{}{}", weight.name, seen.suffix()), told);
        }
        self.places.insert(x.id(), weight.name.clone());
        self.layers.insert(weight.name.clone(), weight.name);
        None
    }
}
