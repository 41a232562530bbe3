//! A lowered graph as an ONNX model, and such a model read back.

mod cut;
mod external;
pub(crate) mod order;
mod read;
#[cfg(test)]
mod tests;
mod types;
mod wire;

use std::collections::{BTreeSet, HashMap, HashSet};

use prost::Message;

use crate::graph::{Graph, Source, Weight};
use crate::op::{Attribute, Op, Type};
use crate::pass::fuse;
use crate::proto::{
    AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, StringStringEntryProto,
    TensorProto, TensorShapeProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::{DType, Dim};

pub use cut::{CutError, Feed, Piece, block, blocks, cut, is_streamed};
pub use external::{check_external, open};
use order::{Entries, Entry};
pub use read::{Initializer, MAX_BYTES, Model, Node, OnnxError, Port, Size, read};
pub use types::types;

/// ONNX's file format version; runtimes refuse newer ones than they know.
const IR_VERSION: i64 = 10;
/// The oldest opset written; a graph takes a newer one only if one of its nodes needs it.
const OLDEST_OPSET: i64 = 21;
/// The newest opset that a node needs.
const NEWEST_OPSET: i64 = 23;
/// The domain of ONNX Runtime's own operators, and its opset.
const CONTRIB: &str = "com.microsoft";
const CONTRIB_VERSION: i64 = 1;
/// `AttributeProto.AttributeType`.
const FLOAT: i32 = 1;
const INT: i32 = 2;
const STRING: i32 = 3;
const INTS: i32 = 7;
/// `TensorProto.DataLocation`.
const DEFAULT: i32 = 0;
const EXTERNAL: i32 = 1;

/// Where the elements of a weight are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Placement {
    /// In the model file itself.
    Inline(Vec<u8>),
    /// In a file beside the model.
    External {
        /// Path relative to the model's folder.
        location: String,
        /// First byte.
        offset: u64,
        /// Bytes.
        length: u64,
    },
}

/// An ONNX model and what a manifest says of it.
#[derive(Clone, Debug)]
pub struct Serialized {
    /// The `.onnx` file.
    pub bytes: Vec<u8>,
    /// Opset of ONNX's own operators.
    pub opset: i64,
    /// Names and types of the inputs.
    pub inputs: Vec<(String, Type)>,
    /// Names and types of the outputs.
    pub outputs: Vec<(String, Type)>,
}

/// Write a lowered graph; `place` says where the elements of each weight are.
///
/// # Errors
/// Those of `place`.
///
/// # Panics
/// If the graph was not lowered: a node without ONNX form is a defect of cogvx.
pub fn serialize<E>(
    graph: &Graph,
    name: &str,
    mut place: impl FnMut(&Weight) -> Result<Placement, E>,
) -> Result<Serialized, E> {
    let live = graph.live();
    let (values, nodes) = (graph.values(), graph.nodes());
    let mut names = Names::new(graph);
    let mut made = HashMap::new();
    let mut proto = GraphProto { name: Some(name.into()), ..GraphProto::default() };
    let (mut opset, mut others) = (OLDEST_OPSET, BTreeSet::new());

    for (id, value) in values.iter().enumerate().filter(|(id, _)| live[*id]) {
        match &value.source {
            Source::Weight(weight) => {
                let value_name = names.assign(id, &weight.initializer());
                proto.initializer.push(initializer(value_name, weight.stored, &weight.shape, place(weight)?));
            }
            Source::Constant(c) => {
                let value_name = names.assign(id, "constant");
                proto.initializer.push(initializer(value_name, c.dtype, &c.shape, Placement::Inline(c.bytes.clone())));
            }
            Source::Input { .. } | Source::Node { .. } => {}
        }
    }
    // Names are given as the nodes were built; where they stand is another matter.
    for (number, node) in nodes.iter().enumerate().filter(|(_, n)| n.outputs.iter().any(|&v| live[v])) {
        let Op::Onnx(op) = &node.op else { panic!("`{}/{}` was not lowered", node.path, node.op.name()) };
        let node_name =
            names.fresh(&if node.path.is_empty() { op.name.into() } else { format!("{}/{}", node.path, op.name) });
        for (i, &value) in node.outputs.iter().enumerate() {
            names.assign(value, &if node.outputs.len() == 1 { node_name.clone() } else { format!("{node_name}/{i}") });
        }
        if op.domain.is_empty() {
            opset = opset.max(op.since);
        } else {
            others.insert(op.domain);
        }
        let node = NodeProto {
            input: node.inputs.iter().map(|v| v.map_or(String::new(), |v| names.of(v))).collect(),
            output: node.outputs.iter().map(|&v| names.of(v)).collect(),
            name: Some(node_name),
            op_type: Some(op.name.into()),
            attribute: op.attributes.iter().map(|(name, value)| attribute(name, value)).collect(),
            domain: (!op.domain.is_empty()).then(|| op.domain.into()),
        };
        made.insert(Entry::Node(number), node);
    }
    for (number, output) in graph.outputs().iter().enumerate() {
        if names.of(output.value) == output.name {
            continue;
        }
        let copy = NodeProto {
            input: vec![names.of(output.value)],
            output: vec![output.name.clone()],
            name: Some(names.fresh(&format!("{}/Identity", output.name))),
            op_type: Some("Identity".into()),
            ..NodeProto::default()
        };
        made.insert(Entry::Copy(number), copy);
    }
    proto.node = Entries::in_file(graph).iter().filter_map(|entry| made.remove(&entry)).collect();

    let inputs: Vec<_> = graph.inputs().iter().map(|&v| (names.of(v), values[v].r#type.clone())).collect();
    let outputs: Vec<_> = graph.outputs().iter().map(|o| (o.name.clone(), values[o.value].r#type.clone())).collect();
    proto.input = inputs.iter().map(value_info).collect();
    proto.output = outputs.iter().map(value_info).collect();
    let others = others.into_iter().map(|domain| (domain, version(domain).unwrap_or_default()));
    let domains = [("", opset)].into_iter().chain(others);
    let model = ModelProto {
        ir_version: Some(IR_VERSION),
        producer_name: Some("cogvx".into()),
        producer_version: Some(env!("CARGO_PKG_VERSION").into()),
        graph: Some(proto),
        opset_import: domains
            .map(|(domain, version)| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) })
            .collect(),
    };
    Ok(Serialized { bytes: model.encode_to_vec(), opset, inputs, outputs })
}

/// The version of a domain other than ONNX's own that graphs are written in; none of others.
fn version(domain: &str) -> Option<i64> {
    match domain {
        CONTRIB => Some(CONTRIB_VERSION),
        fuse::DOMAIN => Some(fuse::VERSION),
        _ => None,
    }
}

/// Unique names of values and nodes.
struct Names {
    of_value: HashMap<usize, String>,
    taken: HashSet<String>,
    counts: HashMap<String, usize>,
}

impl Names {
    /// Inputs and outputs have their names from the start.
    fn new(graph: &Graph) -> Self {
        let mut of_value = HashMap::new();
        for output in graph.outputs().iter() {
            if matches!(graph.values()[output.value].source, Source::Node { .. }) {
                of_value.entry(output.value).or_insert_with(|| output.name.clone());
            }
        }
        for &id in graph.inputs().iter() {
            if let Source::Input { name, .. } = &graph.values()[id].source {
                of_value.insert(id, name.clone());
            }
        }
        let outputs = graph.outputs().iter().map(|o| o.name.clone()).collect::<Vec<_>>();
        let taken = of_value.values().cloned().chain(outputs).collect();
        Self { of_value, taken, counts: HashMap::new() }
    }

    fn fresh(&mut self, wanted: &str) -> String {
        let count = self.counts.entry(wanted.into()).or_insert(0);
        loop {
            let name = if *count == 0 { wanted.to_string() } else { format!("{wanted}_{count}") };
            *count += 1;
            if self.taken.insert(name.clone()) {
                return name;
            }
        }
    }

    fn assign(&mut self, value: usize, wanted: &str) -> String {
        if let Some(name) = self.of_value.get(&value) {
            return name.clone();
        }
        let name = self.fresh(wanted);
        self.of_value.insert(value, name.clone());
        name
    }

    fn of(&self, value: usize) -> String {
        self.of_value.get(&value).cloned().unwrap_or_default()
    }
}

fn initializer(name: String, dtype: DType, shape: &[usize], placement: Placement) -> TensorProto {
    let mut tensor = TensorProto {
        dims: shape.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect(),
        data_type: Some(dtype.onnx()),
        name: Some(name),
        ..TensorProto::default()
    };
    match placement {
        Placement::Inline(bytes) => tensor.raw_data = Some(bytes),
        Placement::External { location, offset, length } => {
            tensor.data_location = Some(EXTERNAL);
            tensor.external_data =
                [("location", location), ("offset", offset.to_string()), ("length", length.to_string())]
                    .map(|(key, value)| StringStringEntryProto { key: Some(key.into()), value: Some(value) })
                    .into();
        }
    }
    tensor
}

fn attribute(name: &str, value: &Attribute) -> AttributeProto {
    let mut proto = AttributeProto { name: Some(name.into()), ..AttributeProto::default() };
    proto.kind = Some(match value {
        Attribute::Float(f) => {
            proto.f = Some(*f);
            FLOAT
        }
        Attribute::Int(i) => {
            proto.i = Some(*i);
            INT
        }
        Attribute::Text(s) => {
            proto.s = Some(s.as_bytes().to_vec());
            STRING
        }
        Attribute::Ints(ints) => {
            proto.ints.clone_from(ints);
            INTS
        }
    });
    proto
}

fn value_info((name, r#type): &(String, Type)) -> ValueInfoProto {
    let dim = r#type.shape.iter().map(|d| match d {
        Dim::Fixed(n) => DimensionProto { dim_value: i64::try_from(*n).ok(), dim_param: None },
        Dim::Symbol(_) => DimensionProto { dim_value: None, dim_param: Some(d.to_string()) },
    });
    let tensor =
        TensorTypeProto { elem_type: Some(r#type.dtype.onnx()), shape: Some(TensorShapeProto { dim: dim.collect() }) };
    ValueInfoProto { name: Some(name.clone()), r#type: Some(TypeProto { tensor_type: Some(tensor) }) }
}
