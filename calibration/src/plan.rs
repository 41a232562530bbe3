//! Which layers are quantized, and how.

use std::collections::BTreeMap;
use std::path::Path;

use cogvx_graphs::graph::{Graph, Node, Source, ValueData, Weight, WeightPart};
use cogvx_graphs::op::Op;
use cogvx_graphs::pass::Target;
use cogvx_graphs::quantized::LinearForm;

use crate::balance::Balance;
use crate::convs::Convolution;
use crate::table::{Table, TableError};

/// A way to quantize, under the name it has on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `int8`: W8A8, weights and features; features by each token's largest magnitude.
    Int8,
    /// `int8-static`: W8A8; features by one scale for each layer, found by calibration.
    Int8Static,
    /// `int8-weight`: weights alone.
    Int8Weight,
    /// `int4-weight`: weights alone.
    Int4Weight,
    /// `fp8`: weights and features in E4M3; features by one scale for each layer, found by calibration.
    Fp8,
}

impl Scheme {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Int8, Self::Int8Static, Self::Int8Weight, Self::Int4Weight, Self::Fp8];

    /// The name on the command line and in manifests.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::Int8Static => "int8-static",
            Self::Int8Weight => "int8-weight",
            Self::Int4Weight => "int4-weight",
            Self::Fp8 => "fp8",
        }
    }

    /// Whether `target` has kernels for it.
    #[must_use]
    pub const fn runs_on(self, target: Target) -> bool {
        match self {
            Self::Int8 => matches!(target, Target::Cpu),
            Self::Int8Static => matches!(target, Target::Cpu | Target::TensorRt),
            Self::Int8Weight | Self::Int4Weight => true,
            Self::Fp8 => matches!(target, Target::TensorRt),
        }
    }

    /// Whether it needs a calibration table.
    #[must_use]
    pub const fn needs_table(self) -> bool {
        matches!(self, Self::Int8Static | Self::Fp8)
    }
}

/// How one layer is quantized.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// How it computes.
    pub form: LinearForm,
    /// How many features come out and go in.
    pub features: [usize; 2],
    /// What is done to the features where they are made; columns of the weight are multiplied by the factors.
    pub balance: Balance,
    /// Where in a calibration table it is told what the layer reads, before it is balanced.
    pub place: Option<String>,
    /// What each row of the weight, and the bias, is multiplied by; empty for ones.
    pub rows: Vec<f32>,
    /// What is added to the bias before `rows` multiply it; empty for zeros.
    pub bias: Vec<f32>,
}

impl Layer {
    /// Multiply row `index` of the weight by the layer's factors.
    pub fn scale_row(&self, index: usize, row: &mut [f32]) {
        row.iter_mut().zip(&self.balance.factors).for_each(|(x, s)| *x *= s);
        if let Some(factor) = self.rows.get(index) {
            for x in row {
                *x *= factor;
            }
        }
    }
}

/// The layers of one component that are quantized, by the name of their weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// What the graph is written for; it decides how weights lie.
    pub target: Target,
    /// By the name of the weight.
    pub layers: BTreeMap<String, Layer>,
    /// What is done to what norms make, by the value.
    pub norms: BTreeMap<usize, Balance>,
    /// Convolutions by the name of the weight; none unless [`crate::convs::find`] is asked for them.
    pub convs: BTreeMap<String, Convolution>,
}

/// Layers smaller than this in either direction stay as they are.
const SMALLEST: usize = 32;
/// Features that are mixed with each other by a rotation, at most: ONNX Runtime's own kernels take so many multiplications for each.
const MOST_MIXED: usize = 64;

impl Plan {
    /// Every linear layer of the blocks of `graph`; what embeds and what makes the output stays as it is.
    #[must_use]
    pub fn new(graph: &Graph, scheme: Scheme, target: Target) -> Self {
        let (values, nodes) = (graph.values(), graph.nodes());
        let mut layers = BTreeMap::new();
        for node in nodes.iter().filter(|node| node.op == Op::Linear) {
            let Some(Source::Weight(weight)) = node.inputs.get(1).copied().flatten().map(|w| &values[w].source) else {
                continue;
            };
            if let Some(features) = quantizable(weight) {
                layers.insert(
                    weight.name.clone(),
                    Layer {
                        form: form(scheme, target, features[1], Made::of(node.inputs[0], &values, &nodes)),
                        features,
                        balance: Balance::default(),
                        place: None,
                        rows: vec![],
                        bias: vec![],
                    },
                );
            }
        }
        Self { layers, ..Self::none(target) }
    }

    /// Nothing is quantized.
    #[must_use]
    pub const fn none(target: Target) -> Self {
        Self { target, layers: BTreeMap::new(), norms: BTreeMap::new(), convs: BTreeMap::new() }
    }

    /// Find the place of each layer, of a `component`, in `table`, which was read from `path`.
    ///
    /// # Errors
    /// The table does not tell of a layer, or of other features than it reads.
    pub fn place(&mut self, table: &Table, path: &Path, component: &str) -> Result<(), TableError> {
        for (name, layer) in &mut self.layers {
            let place = table.place_of(path, &format!("{component}/{name}"), layer.features[1])?;
            layer.place = Some(place.to_string());
        }
        Ok(())
    }
}

/// `[out, in]` of a weight that quantization pays for.
pub(crate) fn quantizable(weight: &Weight) -> Option<[usize; 2]> {
    let &[out, input] = &weight.shape[..] else { return None };
    // Blocks of the transformer and of T5.
    let inside = weight.name.starts_with("transformer_blocks.") || weight.name.starts_with("encoder.block.");
    let whole = weight.part == WeightPart::Whole;
    (inside && whole && out >= SMALLEST && input >= SMALLEST).then_some([out, input])
}

/// What makes a layer's features.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    /// One row a sample: the time embedding.
    Once,
    /// Norms, side by side or alone: `AdaLN` and trained scales make some features many times larger than the others.
    ByNorms,
    /// Anything else.
    Otherwise,
}

impl Made {
    fn of(value: Option<usize>, values: &[ValueData], nodes: &[Node]) -> Self {
        match value {
            Some(value) if values[value].r#type.shape.len() == 2 => Self::Once,
            Some(value) if is_normed(value, values, nodes) => Self::ByNorms,
            _ => Self::Otherwise,
        }
    }
}

fn is_normed(value: usize, values: &[ValueData], nodes: &[Node]) -> bool {
    let Source::Node { node, .. } = values[value].source else { return false };
    let node = &nodes[node];
    match node.op {
        Op::LayerNorm { .. } | Op::RmsNorm { .. } => true,
        Op::Concat(_) | Op::Narrow | Op::Wide | Op::Cast(_) => {
            node.inputs.iter().all(|input| input.is_some_and(|input| is_normed(input, values, nodes)))
        }
        _ => false,
    }
}

/// The order to turn `input` features by: what is large is spread over so many.
fn rotation(input: usize) -> usize {
    1 << input.trailing_zeros().min(MOST_MIXED.ilog2())
}

fn form(scheme: Scheme, target: Target, input: usize, made: Made) -> LinearForm {
    let (bits, block): (u8, u32) = match scheme {
        // A row takes as long as its weights take to be read, and its errors are those of all tokens.
        Scheme::Int8 if made == Made::Once => (8, 128),
        // What attention and GELU make is even enough, and GELU's zero better where it is.
        Scheme::Int8 => {
            return LinearForm::PerToken { rotation: if made == Made::ByNorms { rotation(input) } else { 1 } };
        }
        // Scales come from the table.
        Scheme::Int8Static => return LinearForm::PerTensor { scale: 1.0, zero_point: 128 },
        Scheme::Fp8 => return LinearForm::Float8 { scale: 1.0 },
        Scheme::Int8Weight => (8, 128),
        Scheme::Int4Weight => (4, 64),
    };
    if target == Target::TensorRt {
        // Whole blocks, and no zero points.
        let block = 1 << input.trailing_zeros().min(block.ilog2());
        return LinearForm::Blocks { bits, block, symmetric: true };
    }
    LinearForm::Blocks { bits, block: block as usize, symmetric: bits == 8 }
}

#[cfg(test)]
mod tests {
    use cogvx_graphs::{DType, dims};

    use super::*;

    #[test]
    fn int8_layers_are_quantized_by_what_makes_their_features() {
        let graph = Graph::new();
        let (embedding, tokens) =
            (graph.input("embedding", DType::F32, dims![2, 96]), graph.input("tokens", DType::F32, dims![2, 3, 96]));
        let [scale, shift] = [1.0, 0.0].map(|x| graph.floats(&[96], &[x; 96]));
        let all =
            [("once", embedding.silu()), ("normed", tokens.layer_norm(scale, shift, 1e-5)), ("other", tokens.gelu())];
        for (name, x) in all {
            let name = format!("transformer_blocks.0.{name}.weight");
            let weight = Weight { name, part: WeightPart::Whole, stored: DType::F32, shape: vec![32, 96] };
            graph.output("y", x.linear(graph.weight(weight, DType::F32), None));
        }
        let plan = Plan::new(&graph, Scheme::Int8, Target::Cpu);
        let form = |name: &str| plan.layers[&format!("transformer_blocks.0.{name}.weight")].form;
        assert_eq!(form("once"), LinearForm::Blocks { bits: 8, block: 128, symmetric: true });
        assert_eq!(form("normed"), LinearForm::PerToken { rotation: 32 });
        assert_eq!(form("other"), LinearForm::PerToken { rotation: 1 });
    }
}
