//! What comes before the first session with operators.

use cogvx_graphs::proto::{
    GraphProto, ModelProto, OperatorSetIdProto, TensorProto, TensorShapeProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};
use ort::environment::Environment;
use ort::logging::LogLevel;
use ort::session::Session;
use prost::Message;

use super::domain;

/// Make `environment` know the operators' domain. ONNX Runtime enters it into a list of the process when the first session that
/// has it is made, and nothing guards the list: of two first sessions at once, one would fail.
pub(in crate::runtime) fn announce(environment: &Environment) -> ort::Result<()> {
    // The least graph that it takes: a constant.
    let name = Some("zero".to_string());
    let r#type = TypeProto {
        tensor_type: Some(TensorTypeProto { elem_type: Some(1), shape: Some(TensorShapeProto::default()) }),
    };
    let zero =
        TensorProto { name: name.clone(), data_type: Some(1), raw_data: Some(vec![0; 4]), ..TensorProto::default() };
    let graph = GraphProto {
        name: name.clone(),
        initializer: vec![zero],
        output: vec![ValueInfoProto { name, r#type: Some(r#type) }],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetIdProto { domain: None, version: Some(21) }];
    let model = ModelProto { ir_version: Some(10), graph: Some(graph), opset_import, ..ModelProto::default() };
    let builder = Session::builder(environment)?.with_intra_threads(1)?.with_operators(domain(1)?)?;
    builder.with_log_level(LogLevel::Fatal)?.commit_from_memory(&model.encode_to_vec()).map(drop)
}
