//! What a graph costs: operations, bytes, and the most memory a run of it holds, worked out from the graph alone.
//!
//! The graph is the one that runs, after [`Lower`](crate::pass::Lower). Sizes it leaves open are given as [`Sizes`]. Nothing is
//! built in that was not read off the nodes but what ONNX Runtime's CPU kernels take for themselves (`kernels.rs`).

mod arena;
mod kernels;
mod made;
mod memory;
mod sizes;
mod streamed;
#[cfg(test)]
mod tests;

pub use memory::{Held, Peak};
pub use sizes::{Sizes, elements};

use std::collections::BTreeMap;

use crate::graph::{Graph, Node, Source};
use crate::onnx::order::{Entries, Entry};
use crate::op::Op;
use kernels::{Call, Known};
use made::Made;

/// Why the cost of a graph is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CostError {
    /// A size without a number.
    #[error("the size `{0}`: expected a number for it, found none")]
    Size(String),
    /// A node that no target runs as it is.
    #[error("`{0}`: expected a lowered graph, found an operation without ONNX form")]
    Form(String),
}

/// How ONNX Runtime keeps weights on a processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// Where they are mapped.
    #[default]
    Mapped,
    /// Copied in the order their kernels read them: products of integers need it.
    Packed,
    /// The same after they were widened to `float32`, with all else that is made of weights alone.
    Widened,
}

/// What ONNX Runtime keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Keep {
    /// How it keeps weights on a processor.
    pub weights: Layout,
    /// How long it keeps the memory of tensors that are done.
    pub freed: Freed,
    /// Whose kernels and whose memory it has.
    pub device: Device,
    /// Whether cogvx's own kernels multiply floats in tile registers.
    pub tiles: bool,
    /// How many blocks keep their weights where the graph runs, if not all do: see [`is_streamed`](crate::onnx::is_streamed).
    pub blocks: Option<usize>,
}

/// Where ONNX Runtime runs a graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Device {
    /// On a processor.
    #[default]
    Cpu,
    /// On a GPU.
    Cuda,
}

/// How long memory of tensors that are done waits, in an arena, for those to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Freed {
    /// It goes back to the system.
    #[default]
    GivenBack,
    /// To the end of the run: several graphs may be loaded, and one that does not run needs none.
    KeptInARun,
    /// As long as the graph is loaded.
    Kept,
}

/// Which sessions on a processor have arenas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arenas {
    /// Those that widen weights.
    Fewest,
    /// Those of quantized linear layers, too.
    #[default]
    Usual,
    /// All.
    All,
}

impl Freed {
    /// How long a session on CUDA keeps it. The VAE is two graphs, and either has an arena.
    #[must_use]
    pub fn on_cuda(convolves: bool) -> Self {
        if convolves { Self::KeptInARun } else { Self::Kept }
    }

    /// How long a session keeps it that keeps weights so, of a graph of convolutions or of linear layers.
    ///
    /// Memory fetched anew is cleared by the system first: an eighth of the time where linear layers are quantized and videos are
    /// small. Where they are not quantized it is next to nothing, and what widened weights take would be kept. Of convolutions it is
    /// a quarter, but much is kept.
    #[must_use]
    pub fn of(weights: Layout, convolves: bool, arenas: Arenas) -> Self {
        match (weights, arenas) {
            (Layout::Widened, _) => Self::Kept,
            (Layout::Packed, Arenas::Usual | Arenas::All) if !convolves => Self::Kept,
            (_, Arenas::All) => Self::KeptInARun,
            _ => Self::GivenBack,
        }
    }
}

/// What a graph costs.
#[derive(Clone, Debug, PartialEq)]
pub struct Cost {
    /// Every node that a run has, in the order that ONNX Runtime runs them.
    pub nodes: Vec<NodeCost>,
    /// The moment of a run at which most memory is held.
    pub peak: Peak,
    /// Bytes of all weights as the graph stores them, which are mapped; without those of blocks whose weights are streamed.
    pub weights: u64,
    /// How many blocks those are.
    pub streamed: usize,
    /// Bytes of the copies of weights that are made when the graph is loaded, and stay: none where they are used as they are mapped.
    pub packed: u64,
    /// Bytes that are kept after a run together with what the graph hands to the next one.
    pub left: u64,
}

/// What a node costs.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeCost {
    /// Path of the layer it belongs to: `transformer_blocks.0.attn1.to_q`.
    pub path: String,
    /// ONNX's name of its operator.
    pub op: &'static str,
    /// Operations of matrix products, convolutions and attention; a multiplication and an addition are two.
    pub flops: u64,
    /// Bytes it makes; none where its output is its input, seen otherwise.
    pub bytes: u64,
}

impl Cost {
    /// What the lowered `graph` costs in one run with these sizes, on so many threads.
    ///
    /// # Errors
    /// A size that has no number, or a graph that was not lowered.
    pub fn of(graph: &Graph, sizes: &Sizes, threads: usize, keep: Keep) -> Result<Self, CostError> {
        let (nodes, values) = (graph.nodes(), graph.values());
        let (live, threads) = (graph.live(), threads as u64);
        let layout = keep.weights;
        let mut made = if layout == Layout::Widened { Made::of_weights(graph) } else { Made::nothing(graph) };
        let mut order = Entries::in_file(graph).executed();
        order.retain(|&entry| !made.has_made(entry));
        let streamed = streamed::blocks(graph, keep.blocks);
        let mut costs = vec![];
        let mut scratch = vec![];
        let mut kept: BTreeMap<&str, u64> = BTreeMap::new();
        for entry in &order {
            let &Entry::Node(number) = entry else {
                scratch.push(vec![]);
                continue;
            };
            let node = &nodes[number];
            let call = call(graph, node, sizes)?;
            let reordered = call.packed().filter(|_| layout != Layout::Mapped);
            made.read(node, reordered);
            let bytes = if call.is_view() { 0 } else { call.outputs.iter().map(Known::bytes).sum() };
            costs.push(NodeCost { path: node.path.clone(), op: call.op.name, flops: call.flops(), bytes });
            scratch.push(call.scratch(keep.device, threads));
            // A feed-forward is two linear layers, which work in the same memory.
            let pool = if call.op.name == "FeedForward" { "Linear" } else { call.op.name };
            let most = kept.entry(pool).or_default();
            *most = call.kept(threads, keep.tiles).max(*most);
        }
        let weights = values.iter().enumerate().filter(|(id, _)| live[*id]).map(|(_, value)| match &value.source {
            Source::Weight(weight) => weight.stored.bytes(elements(&weight.shape)),
            _ => 0,
        });
        let weights = weights.sum::<u64>() - streamed.values().sum::<u64>();
        let mut run = memory::peak(graph, &order, &scratch, sizes)?;
        let mut left = 0;
        if keep.freed != Freed::GivenBack {
            let most;
            (most, left) = memory::kept(graph, &order, &scratch, sizes, keep)?;
            run.keep(most);
        }
        if let Some(bytes) = streamed.values().max() {
            run.hold("weights of one block", *bytes);
        }
        for (op, bytes) in kept.into_iter().filter(|(_, bytes)| *bytes > 0) {
            run.hold(&format!("what {op} works in"), bytes);
        }
        let (packed, loading) = made.kept(graph, sizes)?;
        // While a weight is arranged it is there twice.
        let peak = if loading.bytes > run.bytes { loading } else { run };
        Ok(Self { nodes: costs, peak, weights, streamed: streamed.len(), packed, left })
    }

    /// Operations of all nodes.
    #[must_use]
    pub fn flops(&self) -> u64 {
        self.nodes.iter().map(|node| node.flops).sum()
    }
}

/// A node with all its sizes.
fn call<'a>(graph: &Graph, node: &'a Node, sizes: &Sizes) -> Result<Call<'a>, CostError> {
    let Op::Onnx(op) = &node.op else {
        return Err(CostError::Form(format!("{}/{}", node.path, node.op.name())));
    };
    let values = graph.values();
    let known = |&id: &usize| -> Result<Known, CostError> {
        let r#type = &values[id].r#type;
        Ok(Known { shape: sizes.shape(r#type)?, dtype: r#type.dtype })
    };
    let inputs = node.inputs.iter().map(|input| input.as_ref().map(known).transpose()).collect::<Result<_, _>>()?;
    Ok(Call { op, inputs, outputs: node.outputs.iter().map(known).collect::<Result<_, _>>()? })
}
