//! The order of nodes: in the file, and as ONNX Runtime runs them.

use std::collections::HashMap;

use crate::graph::{Graph, Source};

/// What becomes a node of the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Entry {
    /// The node of this number.
    Node(usize),
    /// The copy that is the output of this number: its value has another name.
    Copy(usize),
}

/// The nodes of a file in some order, and which reads from which.
pub(crate) struct Entries {
    order: Vec<Entry>,
    /// For each entry, the entries it reads from, by their places; each once, the first ones first.
    sources: Vec<Vec<usize>>,
    /// For each entry, whether another one reads from it.
    is_read: Vec<bool>,
}

impl Entries {
    /// What outputs of `graph` depend on, in the order of the file.
    ///
    /// First comes what is made of weights alone, last what nobody reads, in reverse order. ONNX Runtime takes the last node that
    /// nobody reads first, with all it depends on, and of what a node depends on again the last first. So a weight is widened just
    /// before it is used, and each cache of the VAE is cut off when its layer is done. In building order all weights would be
    /// widened at the start, and the padded input of every convolution would be kept until the end.
    pub fn in_file(graph: &Graph) -> Self {
        let built = Self::new(graph, Self::built(graph));
        let nodes = graph.nodes();
        let mut of_weights = vec![false; built.order.len()];
        for (place, entry) in built.order.iter().enumerate() {
            let Entry::Node(node) = *entry else { continue };
            let is_fed = |&id: &usize| matches!(graph.values()[id].source, Source::Input { .. });
            of_weights[place] = !nodes[node].inputs.iter().flatten().any(is_fed)
                && built.sources[place].iter().all(|&source| of_weights[source]);
        }
        let places = 0..built.order.len();
        let (leaves, inner): (Vec<_>, Vec<_>) = places.partition(|&place| !built.is_read[place]);
        let (first, then): (Vec<_>, Vec<_>) = inner.into_iter().partition(|&place| of_weights[place]);
        let order = first.into_iter().chain(then).chain(leaves.into_iter().rev());
        Self::new(graph, order.map(|place| built.order[place]).collect())
    }

    /// The nodes as they were built, then the copies.
    fn built(graph: &Graph) -> Vec<Entry> {
        let live = graph.live();
        let (nodes, outputs, values) = (graph.nodes(), graph.outputs(), graph.values());
        let nodes = (0..nodes.len()).filter(|&node| nodes[node].outputs.iter().any(|&value| live[value]));
        let copied = |&i: &usize| {
            let value = outputs[i].value;
            let is_made = matches!(values[value].source, Source::Node { .. });
            !is_made || outputs[..i].iter().any(|before| before.value == value)
        };
        let copies = (0..outputs.len()).filter(copied).map(Entry::Copy);
        nodes.map(Entry::Node).chain(copies).collect()
    }

    fn new(graph: &Graph, entries: Vec<Entry>) -> Self {
        let nodes = graph.nodes();
        let mut maker = HashMap::new();
        for (place, entry) in entries.iter().enumerate() {
            if let Entry::Node(node) = *entry {
                maker.extend(nodes[node].outputs.iter().map(|&value| (value, place)));
            }
        }
        let mut is_read = vec![false; entries.len()];
        let sources = entries.iter().map(|&entry| {
            let mut sources: Vec<_> =
                read_by(graph, entry).iter().filter_map(|value| maker.get(value).copied()).collect();
            for &source in &sources {
                is_read[source] = true;
            }
            sources.sort_unstable();
            sources.dedup();
            sources
        });
        let sources = sources.collect();
        Self { order: entries, sources, is_read }
    }

    /// The entries in this order.
    pub fn iter(&self) -> impl Iterator<Item = Entry> {
        self.order.iter().copied()
    }

    /// The entries in the order that ONNX Runtime runs them (`GraphViewer::GraphViewer` and `Graph::ReverseDFSFrom` of its
    /// `onnxruntime/core/graph`).
    pub fn executed(&self) -> Vec<Entry> {
        let mut order = vec![];
        let mut seen = vec![false; self.order.len()];
        // Each with whether all it reads from has been taken.
        let mut stack: Vec<_> =
            (0..self.order.len()).filter(|&place| !self.is_read[place]).map(|place| (place, false)).collect();
        while let Some((place, is_ready)) = stack.pop() {
            if is_ready {
                order.push(self.order[place]);
            } else if !std::mem::replace(&mut seen[place], true) {
                stack.push((place, true));
                stack
                    .extend(self.sources[place].iter().filter(|&&source| !seen[source]).map(|&source| (source, false)));
            }
        }
        order
    }
}

/// The values that an entry reads.
pub(crate) fn read_by(graph: &Graph, entry: Entry) -> Vec<usize> {
    match entry {
        Entry::Node(node) => graph.nodes()[node].inputs.iter().flatten().copied().collect(),
        Entry::Copy(output) => vec![graph.outputs()[output].value],
    }
}
