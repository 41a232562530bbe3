//! Products of bytes where the processor adds pairs of them in sixteen bits.
//!
//! ONNX Runtime makes the `int8` weights of such products `uint8`, which do not saturate, but not those that are inputs, as weights of
//! streamed blocks are.

use std::collections::HashSet;

use cogvx_graphs::DType;
use cogvx_graphs::onnx::{self, Initializer, Model, Placement};

/// What zero becomes.
const ZERO: u8 = 128;

/// `model`, whose first `kept` blocks are kept, with the weights of products of bytes in the streamed blocks as `uint8`; and the
/// names of these weights, each number of which is to be made [`ZERO`] greater as [`raise`] does.
pub(super) fn raised(model: &Model, kept: usize) -> (Model, HashSet<String>) {
    let mut model = model.clone();
    let blocks = onnx::blocks(&model);
    let zero = free_name(&model);
    let mut names = HashSet::new();
    for node in model.nodes.iter_mut().filter(|node| node.op_type == "MatMulIntegerToFloat") {
        let is_streamed = onnx::block(&node.name).is_some_and(|block| onnx::is_streamed(block, blocks, kept));
        let weight = model.initializers.iter_mut().find(|tensor| node.inputs.get(1) == Some(&tensor.name));
        let Some(weight) = weight.filter(|tensor| is_streamed && tensor.dtype == DType::I8) else { continue };
        // Features, weight, both their scales, both their zero points and a bias.
        node.inputs.resize(node.inputs.len().max(6), String::new());
        node.inputs[5].clone_from(&zero);
        weight.dtype = DType::U8;
        names.insert(weight.name.clone());
    }
    let placement = Placement::Inline(vec![ZERO]);
    model.initializers.push(Initializer { name: zero, dtype: DType::U8, shape: vec![], placement });
    (model, names)
}

/// Make `int8` numbers `uint8` ones that are [`ZERO`] greater.
pub(super) fn raise(numbers: &mut [u8]) {
    for number in numbers {
        *number ^= ZERO;
    }
}

/// A name that nothing in `model` has.
fn free_name(model: &Model) -> String {
    let mut name = "raised_zero".to_string();
    let made = || model.nodes.iter().flat_map(|node| &node.outputs);
    let given = || model.inputs.iter().map(|port| &port.name).chain(model.initializers.iter().map(|t| &t.name));
    while made().chain(given()).any(|other| *other == name) {
        name.push('_');
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use cogvx_graphs::onnx::Node;

    #[test]
    fn weights_of_streamed_products_get_a_zero_point() {
        let node = |block: usize| Node {
            name: format!("transformer_blocks.{block}.ff/MatMulIntegerToFloat"),
            domain: "com.microsoft".into(),
            op_type: "MatMulIntegerToFloat".into(),
            inputs: ["x", &format!("w{block}"), "s", "t", "z"].map(String::from).into(),
            outputs: vec![format!("y{block}")],
            attributes: vec![],
        };
        let weight = |block: usize| Initializer {
            name: format!("w{block}"),
            dtype: DType::I8,
            shape: vec![2, 2],
            placement: Placement::External { location: "weights".into(), offset: 0, length: 4 },
        };
        let (nodes, initializers) = (0..4).map(|block| (node(block), weight(block))).unzip();
        let model = Model { opset: 21, name: "m".into(), nodes, initializers, inputs: vec![], outputs: vec![] };
        let (raised, names) = raised(&model, 2);
        // The first two are kept, and the last.
        assert_eq!(names, ["w2".to_string()].into());
        for (block, (node, weight)) in raised.nodes.iter().zip(&raised.initializers).enumerate() {
            let is_raised = block == 2;
            assert_eq!(weight.dtype, if is_raised { DType::U8 } else { DType::I8 }, "{block}");
            assert_eq!(node.inputs.get(5).map(String::as_str), is_raised.then_some("raised_zero"), "{block}");
        }
        let zero = raised.initializers.last().expect("the zero point");
        assert_eq!((zero.name.as_str(), &zero.placement), ("raised_zero", &Placement::Inline(vec![128])));
    }

    #[test]
    fn numbers_become_greater_by_what_stands_for_zero() {
        let mut numbers = [-128_i8, -1, 0, 1, 127].map(i8::cast_unsigned);
        raise(&mut numbers);
        assert_eq!(numbers, [0, 127, 128, 129, 255]);
    }
}
