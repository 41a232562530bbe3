//! The pass that keeps in `float32` what `float16` would not hold, by what calibration saw.

use std::collections::{BTreeMap, HashMap};

use cogvx_graphs::Value;
use cogvx_graphs::graph::{Graph, Node, Output, Source};
use cogvx_graphs::op::Op;
use cogvx_graphs::pass::Pass;

use crate::values::ValueNames;

/// Magnitudes from here on are not left to `float16`: a quarter of its largest number, for what other prompts may bring.
pub const LARGEST: f32 = 65_504.0 / 4.0;

/// Marks what is larger than [`LARGEST`], with what makes it and what reads it first, as wide: it is computed in `float32`
/// where the rest is in `float16`. What comes of it and is small again, is narrow again, unless the model wanted it wide.
///
/// Goes first: names are those of the model's own nodes.
#[derive(Debug)]
pub struct Islands<'a> {
    /// The least and the greatest number of each value.
    bounds: &'a BTreeMap<String, [f32; 2]>,
    /// What the bounds' names begin with.
    component: &'a str,
    names: ValueNames,
    /// By value of the new graph.
    states: HashMap<usize, State>,
    found: BTreeMap<String, f32>,
    unknown: Option<String>,
    caches: BTreeMap<String, f32>,
}

/// What is known of a value.
#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// The largest magnitude, where it is too large for `float16`.
    large: Option<f32>,
    /// Whether the model itself wants it wide.
    wide: bool,
}

impl<'a> Islands<'a> {
    /// A pass for a graph of `component`, whose values kept within `bounds`.
    #[must_use]
    pub fn new(bounds: &'a BTreeMap<String, [f32; 2]>, component: &'a str) -> Self {
        Self {
            bounds,
            component,
            names: ValueNames::default(),
            states: HashMap::new(),
            found: BTreeMap::new(),
            unknown: None,
            caches: BTreeMap::new(),
        }
    }

    /// The values too large for `float16`, with their largest magnitudes.
    #[must_use]
    pub fn found(&self) -> &BTreeMap<String, f32> {
        &self.found
    }

    /// A value that there are no bounds of, if there is one: they are of another model.
    #[must_use]
    pub fn unknown(&self) -> Option<&str> {
        self.unknown.as_deref()
    }

    /// Caches handed from run to run that are too large for `float16`, which they are kept in: that would overflow.
    #[must_use]
    pub fn caches(&self) -> &BTreeMap<String, f32> {
        &self.caches
    }

    /// The largest magnitude of a value, where it is too large.
    fn large(&mut self, name: &str) -> Option<f32> {
        let full = format!("{}/{name}", self.component);
        let Some([least, greatest]) = self.bounds.get(&full) else {
            self.unknown.get_or_insert(full);
            return None;
        };
        let magnitude = greatest.max(-least);
        if magnitude <= LARGEST {
            return None;
        }
        self.found.insert(full, magnitude);
        Some(magnitude)
    }
}

impl Pass for Islands<'_> {
    fn name(&self) -> &'static str {
        "islands"
    }

    fn rewrite<'g>(&mut self, node: &Node, inputs: &[Option<Value<'g>>], out: &'g Graph) -> Option<Vec<Value<'g>>> {
        // Weights and constants follow whatever the node computes in.
        let reads = |value: &&Value<'g>| !matches!(value.source(), Source::Weight(_) | Source::Constant(_));
        let read: Vec<_> = inputs.iter().flatten().filter(reads).copied().collect();
        let state = |value: &Value<'g>| self.states.get(&value.id()).copied().unwrap_or_default();
        let large_input = read.iter().filter_map(|value| state(value).large).reduce(f32::max);
        let wide = match node.op {
            Op::Wide => true,
            Op::Narrow => false,
            _ => read.iter().any(|value| state(value).wide),
        };
        // Moving numbers does not change their size.
        let large = match self.names.of(node, inputs) {
            Some(name) => self.large(&name),
            None => large_input,
        };
        let ids = |inputs: &[Option<Value<'g>>]| inputs.iter().map(|v| v.map(Value::id)).collect::<Vec<_>>();
        let made = match node.op {
            Op::Narrow if large.is_some() => vec![inputs[0]?],
            _ if large.is_some() && large_input.is_none() && !wide => {
                let is_read = |v: Value<'g>| read.iter().any(|read| read.id() == v.id());
                let widened = inputs.iter().map(|v| v.map(|v| if is_read(v) { v.wide() } else { v }));
                out.add(node.op.clone(), &ids(&widened.collect::<Vec<_>>()))
            }
            _ => {
                let made = out.add(node.op.clone(), &ids(inputs));
                let small_again = large.is_none() && large_input.is_some() && !wide;
                if small_again { made.into_iter().map(Value::narrow).collect() } else { made }
            }
        };
        self.states.extend(made.iter().map(|value| (value.id(), State { large, wide })));
        Some(made)
    }

    fn output<'g>(&mut self, output: &Output, value: Value<'g>) -> Value<'g> {
        let large = self.states.get(&value.id()).and_then(|state| state.large).filter(|_| output.state);
        self.caches.extend(large.map(|large| (output.name.clone(), large)));
        value
    }
}
