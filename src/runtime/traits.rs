//! What a session is told of the graph it loads.

pub use cogvx_graphs::cost::Layout;
use cogvx_graphs::onnx::{Model, Port};

/// What a session is told of the graph it loads.
#[derive(Clone, Copy, Debug, Default)]
pub struct Traits<'a> {
    /// How the processor keeps weights.
    pub layout: Layout,
    /// No node computes a size, so every node has its place on a GPU.
    pub fixed: bool,
    /// Most of it is convolutions, which want room to work in.
    pub convolves: bool,
    /// It runs again and again on the same places in memory.
    pub repeats: bool,
    /// Its inputs, which engines are built for.
    pub inputs: &'a [Port],
}

impl<'a> Traits<'a> {
    /// What can be read off a graph.
    #[must_use]
    pub fn of(model: &'a Model, layout: Layout) -> Self {
        let fixed = !model.nodes.iter().any(|node| node.op_type == "Shape");
        let products = |names: &[&str]| model.nodes.iter().filter(|n| names.contains(&n.op_type.as_str())).count();
        let convolves =
            products(&["Conv", "QLinearConv"]) > products(&["Gemm", "Linear", "MatMulNBits", "MatMulIntegerToFloat"]);
        Self { layout, fixed, convolves, repeats: false, inputs: &model.inputs }
    }
}

impl From<Layout> for Traits<'_> {
    fn from(layout: Layout) -> Self {
        Self { layout, ..Self::default() }
    }
}
