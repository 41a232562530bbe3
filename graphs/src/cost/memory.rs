//! Which tensors ONNX Runtime holds at once.
//!
//! Its sequential executor makes a buffer for each output of a node and gives it back after the last node that reads it; an output of
//! the graph is kept, and what the graph is fed with belongs to the caller until the run ends. Views have no buffers. Where it
//! knows beforehand that a buffer given back has the size of a new one it keeps the old one for it
//! (`onnxruntime/core/framework/allocation_planner.cc`, `FindReusableTensor`). It knows the sizes of what is made of weights alone;
//! those of all else are open, at least in the batch. So weights of one shape are widened in one buffer, which stays.

use std::collections::BTreeMap;

use super::arena::{Arena, Place};
use super::{CostError, Freed, Keep, Sizes};
use crate::graph::{Graph, Source};
use crate::onnx::order::{Entry, read_by};
use crate::op::Op;

/// The moment of a run at which most memory is held.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peak {
    /// Bytes of tensors and of what the kernel that runs takes for itself.
    pub bytes: u64,
    /// The node that runs then: its layer's path, a slash and the operator.
    pub at: String,
    /// What is held, the largest first.
    pub held: Vec<Held>,
}

impl Peak {
    /// An arena takes so many bytes for all but what the graph is fed with from outside: those not in use are gaps.
    pub(super) fn keep(&mut self, bytes: u64) {
        let is_fed = |held: &&Held| held.is_input && !held.what.ends_with(PAST);
        let fed: u64 = self.held.iter().filter(is_fed).map(|held| held.bytes).sum();
        self.hold("gaps between these", (fed + bytes).saturating_sub(self.bytes));
    }

    /// So many bytes are held, too.
    pub(super) fn hold(&mut self, what: &str, bytes: u64) {
        self.bytes += bytes;
        let held = Held { what: what.into(), is_input: false, is_output: false, bytes };
        let place = self.held.partition_point(|other| other.bytes > bytes);
        self.held.insert(place, held);
    }
}

/// Memory that is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The node that made it, an input's name, or the node that takes it for itself.
    pub what: String,
    /// Whether the graph is fed with it.
    pub is_input: bool,
    /// Whether the graph returns it.
    pub is_output: bool,
    /// Bytes.
    pub bytes: u64,
}

/// A buffer: of a value, or of the copy that is an output.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Buffer {
    Value(usize),
    Copy(usize),
}

/// The buffers of a graph's values.
struct Buffers {
    /// The value whose buffer each value has.
    owner: Vec<usize>,
    /// How often nodes read from the buffer of each owner, in all; and once more where it is fed or returned.
    uses: Vec<usize>,
}

impl Buffers {
    fn assign(graph: &Graph, order: &[Entry]) -> Self {
        let (nodes, values, outputs) = (graph.nodes(), graph.values(), graph.outputs());
        let mut reads = vec![0_usize; values.len()];
        let read = order.iter().flat_map(|&entry| read_by(graph, entry));
        for value in read.chain(graph.inputs().iter().copied()).chain(outputs.iter().map(|output| output.value)) {
            reads[value] += 1;
        }
        let mut owner: Vec<usize> = (0..values.len()).collect();
        let (mut uses, mut left) = (reads.clone(), reads.clone());
        // What is made while the graph is loaded is in no buffer of a run.
        let mut is_made = vec![false; values.len()];
        // Buffers given back whose sizes are known, the latest last.
        let mut free: Vec<usize> = vec![];
        let is_known = |value: usize| values[value].r#type.shape.iter().all(|dim| dim.fixed().is_some());
        for &entry in order {
            let Entry::Node(number) = entry else { continue };
            let node = &nodes[number];
            let is_view = matches!(&node.op, Op::Onnx(op) if op.is_view());
            for &made in &node.outputs {
                is_made[made] = true;
                let of = if outputs.iter().any(|output| output.value == made) {
                    None
                } else if is_view {
                    node.inputs[0].map(|input| owner[input])
                } else if is_known(made) {
                    let like = |&free: &usize| values[free].r#type == values[made].r#type;
                    free.iter().rposition(like).map(|place| free.remove(place))
                } else {
                    None
                };
                if let Some(of) = of {
                    owner[made] = of;
                    uses[of] += reads[made];
                    left[of] += reads[made];
                }
            }
            let read = node.inputs.iter().flatten().map(|&value| owner[value]);
            let read: Vec<_> = read.inspect(|&value| left[value] -= 1).collect();
            for value in read.into_iter().chain(node.outputs.iter().map(|&value| owner[value])) {
                if left[value] == 0 && is_made[value] && is_known(value) && !free.contains(&value) {
                    free.push(value);
                }
            }
        }
        Self { owner, uses }
    }
}

/// What happens to memory in a run.
enum Event {
    /// A buffer is made.
    Made(Buffer, u64),
    /// The entry at this place in the order runs.
    Runs(usize),
    /// A buffer is given back.
    Free(Buffer),
}

/// Go through a run of `order` and tell what happens.
fn walk(graph: &Graph, order: &[Entry], sizes: &Sizes, mut tell: impl FnMut(Event)) -> Result<(), CostError> {
    let (nodes, values, outputs) = (graph.nodes(), graph.values(), graph.outputs());
    let Buffers { owner, mut uses } = Buffers::assign(graph, order);
    for (place, &entry) in order.iter().enumerate() {
        let made = match entry {
            Entry::Copy(output) => vec![(Buffer::Copy(output), outputs[output].value)],
            Entry::Node(node) => {
                let made = nodes[node].outputs.iter().filter(|&&value| owner[value] == value);
                made.map(|&value| (Buffer::Value(value), value)).collect()
            }
        };
        for (buffer, value) in made {
            tell(Event::Made(buffer, sizes.bytes(&values[value].r#type)?));
        }
        tell(Event::Runs(place));
        let read = read_by(graph, entry).into_iter().map(|value| owner[value]);
        let read: Vec<_> = read.inspect(|&value| uses[value] -= 1).collect();
        let made = if let Entry::Node(node) = entry { nodes[node].outputs.clone() } else { vec![] };
        for value in read.into_iter().chain(made) {
            if uses[owner[value]] == 0 {
                tell(Event::Free(Buffer::Value(owner[value])));
            }
        }
    }
    Ok(())
}

/// Outputs that the next run is fed with, and what they are called there.
const CACHE: &str = ".cache";
const PAST: &str = ".past";
/// After so many runs an arena has found the memory that it needs.
const RUNS: usize = 3;

/// The most bytes that an arena takes for what runs of `order` make, the buffers `scratch` of each entry with them; and what is kept
/// after one together with what the next one is fed with.
pub(super) fn kept(
    graph: &Graph,
    order: &[Entry],
    scratch: &[Vec<u64>],
    sizes: &Sizes,
    keep: Keep,
) -> Result<(u64, u64), CostError> {
    let (mut arena, mut most, mut left) = (Arena::new(keep.device), 0, 0);
    let mut fed: Vec<Place> = vec![];
    for _ in 0..RUNS {
        let mut held = BTreeMap::new();
        walk(graph, order, sizes, |event| match event {
            Event::Made(buffer, bytes) => {
                held.insert(buffer, arena.take(bytes));
            }
            Event::Runs(entry) => {
                let own: Vec<_> = scratch[entry].iter().filter_map(|&bytes| arena.take(bytes)).collect();
                for place in own {
                    arena.give_back(place);
                }
            }
            Event::Free(buffer) => {
                if let Some(place) = held.remove(&buffer).flatten() {
                    arena.give_back(place);
                }
            }
        })?;
        most = most.max(arena.touched());
        if keep.freed == Freed::KeptInARun {
            arena.shrink();
            left = arena.touched();
        }
        for place in fed.drain(..) {
            arena.give_back(place);
        }
        for (buffer, place) in held {
            let Some(place) = place else { continue };
            let is_fed = |name: &str| name.ends_with(CACHE);
            let goes_on = match buffer {
                Buffer::Copy(output) => is_fed(&graph.outputs()[output].name),
                Buffer::Value(value) => graph.outputs().iter().any(|o| o.value == value && is_fed(&o.name)),
            };
            if goes_on { fed.push(place) } else { arena.give_back(place) }
        }
        if graph.inputs().iter().all(|&input| !is_past(graph, input)) {
            // Nothing of it is there any more when this graph runs again.
            for place in fed.drain(..) {
                arena.give_back(place);
            }
        }
    }
    Ok((most, left))
}

/// Whether an input is what a run before has left.
fn is_past(graph: &Graph, input: usize) -> bool {
    matches!(&graph.values()[input].source, Source::Input { name, .. } if name.ends_with(PAST))
}

/// The peak of a run of `order`, of which each entry takes the buffers `scratch` for itself while it runs.
pub(super) fn peak(graph: &Graph, order: &[Entry], scratch: &[Vec<u64>], sizes: &Sizes) -> Result<Peak, CostError> {
    let (nodes, values, outputs) = (graph.nodes(), graph.values(), graph.outputs());
    let is_kept = |value: usize| outputs.iter().any(|output| output.value == value);
    let scratch: Vec<u64> = scratch.iter().map(|own| own.iter().sum()).collect();

    let mut held = BTreeMap::new();
    for &input in graph.inputs().iter() {
        held.insert(Buffer::Value(input), sizes.bytes(&values[input].r#type)?);
    }
    let mut total: u64 = held.values().sum();
    let mut most = (total, None, held.clone());
    walk(graph, order, sizes, |event| match event {
        Event::Made(buffer, bytes) => {
            held.insert(buffer, bytes);
            total += bytes;
        }
        Event::Runs(place) => {
            if total + scratch[place] > most.0 {
                most = (total + scratch[place], Some(place), held.clone());
            }
        }
        Event::Free(buffer) => total -= held.remove(&buffer).unwrap_or(0),
    })?;

    let name = |entry: Entry| match entry {
        Entry::Node(node) => format!("{}/{}", nodes[node].path, nodes[node].op.name()),
        Entry::Copy(output) => format!("{}/Identity", outputs[output].name),
    };
    let (bytes, place, held) = most;
    let mut held: Vec<_> = held
        .into_iter()
        .map(|(buffer, bytes)| match buffer {
            Buffer::Copy(output) => Held { what: name(Entry::Copy(output)), is_input: false, is_output: true, bytes },
            Buffer::Value(value) => {
                let (what, is_input) = match &values[value].source {
                    Source::Input { name, .. } => (name.clone(), true),
                    Source::Weight(weight) => (weight.initializer(), false),
                    Source::Constant(_) => ("constant".into(), false),
                    Source::Node { node, .. } => (name(Entry::Node(*node)), false),
                };
                Held { what, is_input, is_output: !is_input && is_kept(value), bytes }
            }
        })
        .collect();
    let at = place.map_or(String::new(), |place| name(order[place]));
    if let Some(own) = place.map(|place| scratch[place]).filter(|&bytes| bytes > 0) {
        held.push(Held { what: format!("{at} itself"), is_input: false, is_output: false, bytes: own });
    }
    held.sort_by_key(|held| std::cmp::Reverse(held.bytes));
    Ok(Peak { bytes, at, held })
}
