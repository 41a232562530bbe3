//! The types of all values of a model.

use std::collections::HashMap;

use super::{Model, Node};
use crate::DType;
use crate::op::Attribute;

/// The element type of every value of `model` by its name; of those left out whose node has an attribute cogvx does not write.
#[must_use]
pub fn types(model: &Model) -> HashMap<&str, DType> {
    let ports = model.inputs.iter().map(|port| (port.name.as_str(), port.dtype));
    let initializers = model.initializers.iter().map(|tensor| (tensor.name.as_str(), tensor.dtype));
    let mut types: HashMap<_, _> = ports.chain(initializers).collect();
    for node in &model.nodes {
        let read = |place: usize| node.inputs.get(place).and_then(|name| types.get(name.as_str()).copied());
        let made = match node.op_type.as_str() {
            "Shape" => Some(DType::I64),
            "Cast" => said(node, "to"),
            "MatMulIntegerToFloat" => Some(DType::F32),
            // As wide as the step it is multiplied by.
            "DequantizeLinear" => read(1),
            // Of the type of the zero point; of the values that it chooses between.
            "QuantizeLinear" | "OneHot" => read(2),
            _ => read(0),
        };
        if let Some(made) = made {
            types.extend(node.outputs.iter().map(|output| (output.as_str(), made)));
        }
    }
    types
}

/// The type that an attribute names.
fn said(node: &Node, attribute: &str) -> Option<DType> {
    let value = node.attributes.iter().find(|(name, _)| name == attribute);
    match value? {
        (_, Attribute::Int(code)) => DType::from_onnx(i32::try_from(*code).ok()?),
        _ => None,
    }
}
