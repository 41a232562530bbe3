//! A model cut into pieces that run one after the other, so that not all weights have to be where it runs.
//!
//! Transformer and text encoder are rows of blocks that are alike but for their weights. Each block in the middle becomes a piece whose
//! weights are inputs, and pieces that are alike become the same bytes: one session runs all of them. What comes before and after
//! stays as it is.

use std::collections::{HashMap, HashSet};

use prost::Message as _;

use super::read::Node;
use super::{
    CONTRIB, CONTRIB_VERSION, IR_VERSION, Initializer, Model, Placement, attribute, initializer, types::types,
};
use crate::DType;
use crate::proto::{
    DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorShapeProto, TensorTypeProto,
    TypeProto, ValueInfoProto,
};

/// A part of a model, and where its inputs come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Piece {
    /// An `.onnx` file. Of a streamed piece it has no weights and tells nothing of where it stood.
    pub bytes: Vec<u8>,
    /// Names of inputs, and what they are.
    pub inputs: Vec<(String, Feed)>,
    /// Names of outputs, and the values of the whole model that they are.
    pub outputs: Vec<(String, String)>,
    /// Which block it is, if its weights are inputs.
    pub streamed: Option<usize>,
}

/// What a piece is fed with.
#[derive(Clone, Debug, PartialEq)]
pub enum Feed {
    /// An input of the whole model, or an output of an earlier piece, by its name in the whole model.
    Value(String),
    /// A weight.
    Weight(Initializer),
}

/// Why a model cannot be cut.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum CutError {
    #[error("expected 3 to {most} blocks, found {found}")]
    Blocks { most: usize, found: usize },
    #[error("`{node}`: expected it to read what comes before it, found `{value}`")]
    Order { node: String, value: String },
    #[error("`{node}`: expected the type of what it makes, found none")]
    Type { node: String },
}

/// The block that a layer's or node's path names: 12 in `transformer_blocks.12.attn1.to_q/Gemm`.
#[must_use]
pub fn block(path: &str) -> Option<usize> {
    path.split('/').next()?.split('.').find_map(|part| part.parse().ok())
}

/// Which blocks have their weights streamed if so many are kept: all but the first of these and the last one, which is not like
/// the others.
#[must_use]
pub fn is_streamed(block: usize, blocks: usize, kept: usize) -> bool {
    block >= kept.max(1) && block + 1 < blocks
}

/// How many blocks a model has.
#[must_use]
pub fn blocks(model: &Model) -> usize {
    model.nodes.iter().filter_map(|node| block(&node.name)).max().map_or(0, |last| last.saturating_add(1))
}

/// Cut `model`: the first `kept` blocks, of which there is at least one, and all before them; each next block; and the last block
/// with all that is left.
///
/// # Errors
/// Fewer than three blocks, or more than nodes; nodes that do not follow one another block by block.
pub fn cut(model: &Model, kept: usize) -> Result<Vec<Piece>, CutError> {
    let blocks = blocks(model);
    let most = model.nodes.len();
    if !(3..=most).contains(&blocks) {
        return Err(CutError::Blocks { most, found: blocks });
    }
    let places = places(model)?;
    // What is the first block's or before it is in place 0, as are the other blocks that are kept.
    let first = kept.clamp(1, blocks - 1);
    let piece_of = |place: usize| (place + 1).saturating_sub(first).min(blocks - first);
    let mut read_by_others: HashSet<&str> = model.outputs.iter().map(|port| port.name.as_str()).collect();
    let maker: HashMap<&str, usize> = (model.nodes.iter().zip(&places))
        .flat_map(|(node, &place)| node.outputs.iter().map(move |name| (name.as_str(), piece_of(place))))
        .collect();
    for (node, &place) in model.nodes.iter().zip(&places) {
        let others = node.inputs.iter().filter(|name| maker.get(name.as_str()).is_some_and(|&m| m != piece_of(place)));
        read_by_others.extend(others.map(String::as_str));
    }
    let mut pieces: Vec<Vec<&Node>> = vec![vec![]; blocks - first + 1];
    for (node, &place) in model.nodes.iter().zip(&places) {
        pieces[piece_of(place)].push(node);
    }
    let initializers = model.initializers.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
    let cutter = Cutter { model, initializers, types: types(model), read_by_others };
    let cut = |(piece, nodes): (usize, Vec<&Node>)| {
        let block = (piece > 0).then(|| first + piece - 1).filter(|&block| is_streamed(block, blocks, first));
        if let Some(block) = block { cutter.streamed(&nodes, block) } else { cutter.whole(&nodes) }
    };
    pieces.into_iter().enumerate().map(cut).collect()
}

/// The block that each node belongs to. What names none belongs to the latest block that it reads from, and what is made of weights
/// alone to the first that reads it.
fn places(model: &Model) -> Result<Vec<usize>, CutError> {
    let fed: HashSet<&str> = model.inputs.iter().map(|port| port.name.as_str()).collect();
    let mut made: HashMap<&str, (usize, bool)> = fed.iter().map(|&name| (name, (0, true))).collect();
    let mut places = vec![];
    for node in &model.nodes {
        let read = node.inputs.iter().filter_map(|name| Some((name, *made.get(name.as_str())?)));
        let latest = read.clone().max_by_key(|(_, (place, _))| *place);
        let is_fed = read.clone().any(|(_, (_, is_fed))| is_fed);
        let own = block(&node.name);
        if let (Some(own), Some((value, (latest, _)))) = (own, latest)
            && latest > own
        {
            return Err(CutError::Order { node: node.name.clone(), value: value.clone() });
        }
        let place = own.or(latest.map(|(_, (latest, _))| latest)).unwrap_or(0);
        places.push((place, own.is_none() && !is_fed));
        made.extend(node.outputs.iter().map(|name| (name.as_str(), (place, is_fed))));
    }
    // Backwards, so that those who read are settled first.
    let mut reader: HashMap<&str, usize> = HashMap::new();
    for (node, (place, is_free)) in model.nodes.iter().zip(&mut places).rev() {
        if *is_free {
            let first = node.outputs.iter().filter_map(|name| reader.get(name.as_str())).min();
            *place = first.copied().unwrap_or(*place);
        }
        for name in &node.inputs {
            let first = reader.entry(name).or_insert(*place);
            *first = (*first).min(*place);
        }
    }
    Ok(places.into_iter().map(|(place, _)| place).collect())
}

struct Cutter<'a> {
    model: &'a Model,
    initializers: HashMap<&'a str, &'a Initializer>,
    types: HashMap<&'a str, DType>,
    /// Values that are read in another piece than they are made in, or are the model's outputs.
    read_by_others: HashSet<&'a str>,
}

impl<'a> Cutter<'a> {
    /// A piece with its weights, and with the names it had.
    fn whole(&self, nodes: &[&'a Node]) -> Result<Piece, CutError> {
        self.piece(nodes, None, |_| false, str::to_string)
    }

    /// A piece whose weights are inputs. Names are numbers, so that it is the same as others.
    fn streamed(&self, nodes: &[&'a Node], block: usize) -> Result<Piece, CutError> {
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        for name in nodes.iter().flat_map(|node| node.inputs.iter().chain(&node.outputs)) {
            let next = numbers.len();
            numbers.entry(name).or_insert(next);
        }
        // Sizes and axes are read while a graph is loaded, and scalars are the same in each block.
        let is_weight = |tensor: &Initializer| {
            let is_small = matches!(&tensor.placement, Placement::Inline(_)) && tensor.shape.is_empty();
            tensor.dtype != DType::I64 && !is_small
        };
        self.piece(nodes, Some(block), is_weight, |name| numbers.get(name).map_or(String::new(), usize::to_string))
    }

    fn piece(
        &self,
        nodes: &[&'a Node],
        streamed: Option<usize>,
        is_fed: impl Fn(&Initializer) -> bool,
        renamed: impl Fn(&str) -> String,
    ) -> Result<Piece, CutError> {
        let made: HashSet<&str> = nodes.iter().flat_map(|node| node.outputs.iter().map(String::as_str)).collect();
        let name_of = |name: &str| if name.is_empty() { String::new() } else { renamed(name) };
        let mut graph = GraphProto { name: Some(self.model.name.clone()), ..GraphProto::default() };
        let (mut inputs, mut outputs, mut seen) = (vec![], vec![], HashSet::new());
        for node in nodes {
            for name in node.inputs.iter().map(String::as_str) {
                if name.is_empty() || made.contains(name) || !seen.insert(name) {
                    continue;
                }
                let feed = match self.initializers.get(name) {
                    Some(tensor) if !is_fed(tensor) => {
                        let Initializer { dtype, shape, placement, .. } = tensor;
                        graph.initializer.push(initializer(name_of(name), *dtype, shape, placement.clone()));
                        continue;
                    }
                    Some(&tensor) => Feed::Weight(tensor.clone()),
                    None => Feed::Value(name.into()),
                };
                let shape = if let Feed::Weight(weight) = &feed { Some(&weight.shape[..]) } else { None };
                graph.input.push(self.port(node, name, name_of(name), shape)?);
                inputs.push((name_of(name), feed));
            }
            for name in node.outputs.iter().filter(|name| self.read_by_others.contains(name.as_str())) {
                graph.output.push(self.port(node, name, name_of(name), None)?);
                outputs.push((name_of(name), name.clone()));
            }
            let proto = NodeProto {
                input: node.inputs.iter().map(|name| name_of(name)).collect(),
                output: node.outputs.iter().map(|name| name_of(name)).collect(),
                name: Some(streamed.map_or(node.name.clone(), |block| unnumbered(&node.name, block))),
                op_type: Some(node.op_type.clone()),
                attribute: node.attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
                domain: (!node.domain.is_empty()).then(|| node.domain.clone()),
            };
            graph.node.push(proto);
        }
        let domains = [("", self.model.opset), (CONTRIB, CONTRIB_VERSION)];
        let import =
            |(domain, version): (&str, _)| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
        let model = ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("cogvx".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            graph: Some(graph),
            opset_import: domains.into_iter().map(import).collect(),
        };
        Ok(Piece { bytes: model.encode_to_vec(), inputs, outputs, streamed })
    }

    /// An input or output, of any size unless that is known.
    fn port(
        &self,
        node: &Node,
        name: &str,
        renamed: String,
        shape: Option<&[usize]>,
    ) -> Result<ValueInfoProto, CutError> {
        let dtype = self.types.get(name).ok_or_else(|| CutError::Type { node: node.name.clone() })?;
        let dim = |&n: &usize| DimensionProto { dim_value: i64::try_from(n).ok(), dim_param: None };
        let shape = shape.map(|shape| TensorShapeProto { dim: shape.iter().map(dim).collect() });
        let tensor = TensorTypeProto { elem_type: Some(dtype.onnx()), shape };
        Ok(ValueInfoProto { name: Some(renamed), r#type: Some(TypeProto { tensor_type: Some(tensor) }) })
    }
}

/// `transformer_blocks.12.ff/Gemm` as `transformer_blocks.*.ff/Gemm`, `transformer_blocks.12/Add` as `transformer_blocks.*/Add`.
fn unnumbered(name: &str, block: usize) -> String {
    let (path, operator) = name.split_once('/').unwrap_or((name, ""));
    let number = block.to_string();
    let mut parts: Vec<&str> = path.split('.').collect();
    if let Some(part) = parts.iter_mut().find(|part| **part == number) {
        *part = "*";
    }
    format!("{}/{operator}", parts.join("."))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_names_its_block() {
        for (path, expected) in [
            ("transformer_blocks.12.attn1.to_q/Gemm", Some(12)),
            ("transformer_blocks.3.attn1.to_out.0/Gemm_1", Some(3)),
            ("encoder.block.0.layer.1.DenseReluDense.wo/MatMul", Some(0)),
            ("encoder.final_layer_norm/RMSNormalization", None),
            ("patch_embed.proj/Conv_3", None),
            ("Identity", None),
            ("", None),
        ] {
            assert_eq!(block(path), expected, "{path}");
        }
    }

    #[test]
    fn the_first_blocks_and_the_last_are_kept() {
        let streamed = |kept| (0..6).filter(|&b| is_streamed(b, 6, kept)).collect::<Vec<_>>();
        assert_eq!(streamed(0), [1, 2, 3, 4]);
        assert_eq!(streamed(1), [1, 2, 3, 4]);
        assert_eq!(streamed(3), [3, 4]);
        assert!(streamed(5).is_empty() && streamed(9).is_empty());
    }
}
