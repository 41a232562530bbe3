//! An ONNX model read back: bytes that anyone may have written become plain structs, or one error.
//!
//! Only what [`super::serialize`] writes is read. A file with any other field is refused rather than read in part: a runtime
//! would see what was not checked here.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

use prost::Message as _;

use super::{
    CONTRIB, DEFAULT, EXTERNAL, FLOAT, INT, INTS, IR_VERSION, NEWEST_OPSET, OLDEST_OPSET, Placement, STRING, wire,
};
use crate::DType;
use crate::op::Attribute;
use crate::pass::fuse::DOMAIN;
use crate::proto::{AttributeProto, DimensionProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto};
use crate::source::SourceError;
use crate::weights::json::shown;

/// Largest model file: weights are in files beside it, and the graphs of the published models have less than 4 MB.
pub const MAX_BYTES: u64 = 64 << 20;
/// Most axes of a tensor.
const MAX_RANK: usize = 16;

/// Why an ONNX file cannot be used.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum OnnxError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("`{}`: {source}", file.display())]
    Io { file: PathBuf, source: std::io::Error },
    /// Something in it is not as it must be.
    #[error("`{}`: {place}: expected {expected}, found {found}", file.display())]
    Wrong { file: PathBuf, place: String, expected: String, found: String },
}

/// A checked model: each value is defined once, before it is used.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// Opset of ONNX's own operators.
    pub opset: i64,
    /// Name of the graph.
    pub name: String,
    /// In an order in which they can run.
    pub nodes: Vec<Node>,
    /// Weights and constants.
    pub initializers: Vec<Initializer>,
    /// What the graph takes.
    pub inputs: Vec<Port>,
    /// What it gives.
    pub outputs: Vec<Port>,
}

/// One operation.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// Its name, such as `transformer_blocks.0.attn1/Attention`; may be empty.
    pub name: String,
    /// `""` for ONNX's own operators, `com.microsoft` or `cogvx`.
    pub domain: String,
    /// Operator type.
    pub op_type: String,
    /// Names of values; `""` where an optional input is left out.
    pub inputs: Vec<String>,
    /// Names of values; `""` where an optional output is not wanted.
    pub outputs: Vec<String>,
    /// In the order of the file.
    pub attributes: Vec<(String, Attribute)>,
}

/// A tensor of known value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Initializer {
    /// Its name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Size of each axis.
    pub shape: Vec<usize>,
    /// Where its elements are: as many bytes as type and shape say.
    pub placement: Placement,
}

impl Initializer {
    /// Whether each element lies at a multiple of its size where the file is mapped.
    #[must_use]
    pub fn is_aligned(&self) -> bool {
        match self.placement {
            Placement::Inline(_) => true,
            Placement::External { offset, .. } => offset.is_multiple_of(self.dtype.bytes(1)),
        }
    }
}

/// An input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Size of each axis.
    pub shape: Vec<Size>,
}

/// The size of one axis of an input or output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Size {
    /// A number.
    Fixed(u64),
    /// A name, or a formula over names: any size.
    Named(String),
}

/// Reads a model of untrusted `bytes`; `file` is for messages. Nothing outside `bytes` is looked at: see
/// [`super::check_external`].
///
/// # Errors
/// Bytes that cogvx would not have written: the error names the part, what was expected and what was found.
pub fn read(file: &Path, bytes: &[u8]) -> Result<Model, OnnxError> {
    let check = Check(file);
    if bytes.is_empty() {
        return Err(check.wrong("the file", "an ONNX model", "an empty file"));
    }
    if bytes.len() as u64 > MAX_BYTES {
        return Err(check.wrong("the file", format!("at most {MAX_BYTES} bytes"), bytes.len()));
    }
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(check.wrong("the file", "an ONNX model", "a git-lfs pointer: run `git lfs pull`"));
    }
    wire::scan(bytes).map_err(|found| check.wrong("the file", "an ONNX model as cogvx writes it", found))?;
    let model = ModelProto::decode(bytes).map_err(|e| check.wrong("the file", "an ONNX model", e))?;
    let ir = model.ir_version;
    check.that(ir == Some(IR_VERSION), "IR version", IR_VERSION, ir.map_or("none".into(), |n| n.to_string()))?;
    let mut opsets = BTreeMap::new();
    for import in model.opset_import {
        let (domain, version) = (import.domain.unwrap_or_default(), import.version.unwrap_or_default());
        let known = match domain.as_str() {
            "" => OLDEST_OPSET..=NEWEST_OPSET,
            other => {
                let expected =
                    || check.wrong("opset", format!("one of ONNX, `{CONTRIB}` or `{DOMAIN}`"), quoted(other));
                let only = super::version(other).ok_or_else(expected)?;
                only..=only
            }
        };
        let expected = format!("version {} to {}", known.start(), known.end());
        check.that(known.contains(&version), &format!("opset of {}", named(&domain)), expected, version)?;
        let again = opsets.insert(domain, version).is_some();
        check.that(!again, "opset", "each domain once", "one twice")?;
    }
    let graph = model.graph.ok_or_else(|| check.wrong("the file", "a graph", "none"))?;
    check.graph(graph, &opsets)
}

/// What is read, for messages.
struct Check<'a>(&'a Path);

impl Check<'_> {
    fn wrong(&self, place: &str, expected: impl Display, found: impl Display) -> OnnxError {
        let (expected, found) = (expected.to_string(), found.to_string());
        OnnxError::Wrong { file: self.0.into(), place: place.into(), expected, found }
    }

    fn that(&self, holds: bool, place: &str, expected: impl Display, found: impl Display) -> Result<(), OnnxError> {
        if holds { Ok(()) } else { Err(self.wrong(place, expected, found)) }
    }

    fn graph(&self, graph: GraphProto, opsets: &BTreeMap<String, i64>) -> Result<Model, OnnxError> {
        let opset = opsets.get("").copied();
        let opset = opset.ok_or_else(|| self.wrong("opset", format!("{OLDEST_OPSET} to {NEWEST_OPSET}"), "none"))?;
        let name = graph.name.unwrap_or_default();
        let inputs = graph.input.into_iter().map(|p| self.port("input", p)).collect::<Result<Vec<_>, _>>()?;
        let outputs = graph.output.into_iter().map(|p| self.port("output", p)).collect::<Result<Vec<_>, _>>()?;
        let initializers = graph.initializer.into_iter().map(|t| self.initializer(t)).collect::<Result<Vec<_>, _>>()?;
        let nodes = graph.node.into_iter().map(|n| self.node(n, opsets)).collect::<Result<Vec<_>, _>>()?;
        let model = Model { opset, name, nodes, initializers, inputs, outputs };
        self.order(&model)?;
        Ok(model)
    }

    /// Checks that each value is defined once, and before it is used; so there are no cycles.
    fn order(&self, model: &Model) -> Result<(), OnnxError> {
        let sources = model.inputs.iter().map(|p| &p.name).chain(model.initializers.iter().map(|t| &t.name));
        let nodes = model.nodes.iter().enumerate();
        let results = nodes.flat_map(|(i, node)| node.outputs.iter().map(move |name| (name, i + 1)));
        let results = results.filter(|(name, _)| !name.is_empty());
        // By the number of the node that defines it, from 1 on.
        let mut defined: HashMap<&str, usize> = HashMap::new();
        for (name, by) in sources.map(|name| (name, 0)).chain(results) {
            let again = defined.insert(name, by).is_some();
            self.that(!again, &format!("value {}", quoted(name)), "one definition", "a second one")?;
        }
        let used = |place: &str, name: &str, by: usize| {
            let found = match defined.get(name) {
                Some(&definition) if definition < by => return Ok(()),
                Some(_) => format!("{}, which a later node gives or the node itself", quoted(name)),
                None => format!("{}, which nothing gives", quoted(name)),
            };
            Err(self.wrong(place, "a value that is there by then", found))
        };
        for (i, node) in model.nodes.iter().enumerate() {
            let place = format!("input of node {} {}", i + 1, quoted(&node.name));
            node.inputs.iter().filter(|name| !name.is_empty()).try_for_each(|name| used(&place, name, i + 1))?;
        }
        let mut given = HashSet::new();
        for Port { name, .. } in &model.outputs {
            used("output", name, usize::MAX)?;
            self.that(given.insert(name), &format!("output {}", quoted(name)), "one of that name", "two")?;
        }
        Ok(())
    }

    fn port(&self, kind: &str, proto: ValueInfoProto) -> Result<Port, OnnxError> {
        let name = self.name(kind, proto.name)?;
        let place = format!("{kind} {}", quoted(&name));
        let tensor = proto.r#type.and_then(|t| t.tensor_type).unwrap_or_default();
        let dtype = self.dtype(&place, tensor.elem_type)?;
        let dims = tensor.shape.ok_or_else(|| self.wrong(&place, "a shape", "none"))?.dim;
        self.that(dims.len() <= MAX_RANK, &place, format!("at most {MAX_RANK} axes"), dims.len())?;
        let size = |dim: DimensionProto| match (dim.dim_value, dim.dim_param) {
            (Some(n), None) => u64::try_from(n).map(Size::Fixed).map_err(|_| self.wrong(&place, "a size", n)),
            (None, Some(name)) if !name.is_empty() => Ok(Size::Named(name)),
            _ => Err(self.wrong(&place, "a number or a name for each axis", "neither or both")),
        };
        let shape = dims.into_iter().map(size).collect::<Result<_, _>>()?;
        Ok(Port { name, dtype, shape })
    }

    fn node(&self, proto: NodeProto, opsets: &BTreeMap<String, i64>) -> Result<Node, OnnxError> {
        let (name, domain) = (proto.name.unwrap_or_default(), proto.domain.unwrap_or_default());
        let place = format!("node {}", quoted(&name));
        let known = opsets.contains_key(&domain);
        self.that(known, &place, "a domain among the opsets", quoted(&domain))?;
        let op_type = self.name(&format!("operator of {place}"), proto.op_type)?;
        let mut attributes: Vec<(String, Attribute)> = Vec::with_capacity(proto.attribute.len());
        let mut names = HashSet::new();
        for attribute in proto.attribute {
            let (name, value) = self.attribute(&place, attribute)?;
            self.that(names.insert(name.clone()), &place, "each attribute once", format!("{} twice", quoted(&name)))?;
            attributes.push((name, value));
        }
        Ok(Node { name, domain, op_type, inputs: proto.input, outputs: proto.output, attributes })
    }

    fn attribute(&self, place: &str, proto: AttributeProto) -> Result<(String, Attribute), OnnxError> {
        let name = self.name(&format!("attribute of {place}"), proto.name)?;
        let value = match (proto.kind, proto.f, proto.i, proto.s, proto.ints) {
            (Some(FLOAT), Some(f), None, None, ints) if ints.is_empty() => Some(Attribute::Float(f)),
            (Some(INT), None, Some(i), None, ints) if ints.is_empty() => Some(Attribute::Int(i)),
            (Some(STRING), None, None, Some(s), ints) if ints.is_empty() => {
                String::from_utf8(s).ok().map(|text| Attribute::Text(text.into()))
            }
            (Some(INTS), None, None, None, ints) => Some(Attribute::Ints(ints)),
            _ => None,
        };
        let place = format!("attribute {} of {place}", quoted(&name));
        let value =
            value.ok_or_else(|| self.wrong(&place, "a number, numbers or a text of its type", "another type"))?;
        Ok((name, value))
    }

    fn initializer(&self, proto: TensorProto) -> Result<Initializer, OnnxError> {
        let name = self.name("initializer", proto.name)?;
        let place = format!("initializer {}", quoted(&name));
        let dtype = self.dtype(&place, proto.data_type)?;
        self.that(proto.dims.len() <= MAX_RANK, &place, format!("at most {MAX_RANK} axes"), proto.dims.len())?;
        let sizes: Result<Vec<usize>, _> = proto.dims.iter().map(|&n| usize::try_from(n)).collect();
        let shape = sizes.map_err(|_| self.wrong(&place, "sizes of at least 0", format!("{:?}", proto.dims)))?;
        // With its zeros taken for ones a shape still has to be one that could exist.
        let bytes_of = |smallest: usize| {
            let elements = shape.iter().try_fold(1_u64, |product, &n| product.checked_mul(n.max(smallest) as u64));
            // The widest element has eight bytes.
            elements.filter(|&n| n <= i64::MAX.unsigned_abs() / 8).map(|n| dtype.bytes(n))
        };
        let bytes = bytes_of(1).and(bytes_of(0));
        let bytes = bytes.ok_or_else(|| self.wrong(&place, "less than 2^63 bytes", format!("{shape:?}")))?;
        let expected = format!("{bytes} bytes for {shape:?}");
        let placement = match (proto.data_location.unwrap_or(DEFAULT), proto.raw_data) {
            (DEFAULT, raw) if proto.external_data.is_empty() => {
                let raw = raw.unwrap_or_default();
                self.that(raw.len() as u64 == bytes, &place, expected, raw.len())?;
                Placement::Inline(raw)
            }
            (EXTERNAL, None) => {
                let entries = proto.external_data.into_iter();
                let pairs = entries.map(|e| (e.key.unwrap_or_default(), e.value.unwrap_or_default()));
                let (location, offset, length) = self.external(&place, pairs)?;
                self.that(length == bytes, &place, expected, length)?;
                Placement::External { location, offset, length }
            }
            _ => return Err(self.wrong(&place, "its data in the file or beside it", "both or another place")),
        };
        Ok(Initializer { name, dtype, shape, placement })
    }

    /// Location, offset and length: these keys and no others, each once.
    fn external(
        &self,
        place: &str,
        pairs: impl Iterator<Item = (String, String)>,
    ) -> Result<(String, u64, u64), OnnxError> {
        let mut values: BTreeMap<String, String> = BTreeMap::new();
        for (key, value) in pairs {
            let known = ["location", "offset", "length"].contains(&key.as_str());
            self.that(known, place, "external data of `location`, `offset` and `length`", quoted(&key))?;
            let twice = format!("{} twice", quoted(&key));
            self.that(values.insert(key, value).is_none(), place, "each key of external data once", twice)?;
        }
        let mut take = |key: &str| {
            let value = values.remove(key);
            value.ok_or_else(|| self.wrong(place, format!("external data with a `{key}`"), "none"))
        };
        let (location, offset, length) = (take("location")?, take("offset")?, take("length")?);
        // As in a manifest. ONNX Runtime takes `*/_ORT_MEM_ADDR_/*` for its own memory, and the offset for an address.
        let odd = |c: char| c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|');
        let plain = |part: &str| !part.is_empty() && part != "." && part != "..";
        let inside = location.len() <= 1024 && !location.contains(odd) && location.split('/').all(plain);
        self.that(inside, place, "external data in a plain relative path", quoted(&location))?;
        let number = |key: &str, text: &str| {
            let found = Some(text).filter(|text| text.bytes().all(|b| b.is_ascii_digit()));
            let found = found.and_then(|text| text.parse::<u64>().ok()).filter(|&n| i64::try_from(n).is_ok());
            found.ok_or_else(|| self.wrong(place, format!("a `{key}` from 0 to 2^63 - 1"), quoted(text)))
        };
        Ok((location, number("offset", &offset)?, number("length", &length)?))
    }

    fn dtype(&self, place: &str, code: Option<i32>) -> Result<DType, OnnxError> {
        let found = code.and_then(DType::from_onnx);
        found.ok_or_else(|| self.wrong(place, "an element type cogvx writes", code.unwrap_or_default()))
    }

    fn name(&self, place: &str, name: Option<String>) -> Result<String, OnnxError> {
        name.filter(|name| !name.is_empty()).ok_or_else(|| self.wrong(place, "a name", "none"))
    }
}

/// A domain, for messages.
fn named(domain: &str) -> &str {
    if domain.is_empty() { "ONNX" } else { domain }
}

fn quoted(text: &str) -> String {
    format!("`{}`", shown(text))
}
