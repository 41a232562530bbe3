//! Printed graphs of models with one layer of everything, and what holds of all graphs.

mod common;

use std::fmt::Write as _;

use cogvx_graphs::graph::{Graph, Source};
use cogvx_graphs::op::{Attribute, Op};
use cogvx_graphs::pass::Target;
use cogvx_graphs::{DType, Weights};
use insta::assert_snapshot;
use protobuf::Message as _;

use common::{MODELS, Model, TARGETS, built, lowered, text_encoder, transformer, transformer_of_fixed_size};
use common::{vae_first, vae_next, wanted, written};

/// The nodes below a module path, without the lines of other modules.
fn module(graph: &Graph, path: &str) -> String {
    let (mut inside, mut text) = (false, String::new());
    for line in graph.to_string().lines() {
        if let Some(place) = line.strip_suffix(':').filter(|_| !line.starts_with(' ')) {
            inside = place.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'));
        } else if !line.starts_with(' ') {
            inside = false;
        }
        if inside {
            let _ = writeln!(text, "{line}");
        }
    }
    assert!(!text.is_empty(), "no module `{path}`");
    text
}

#[test]
fn text_encoder_as_written() {
    assert_snapshot!(built(text_encoder));
}

#[test]
fn transformer_as_written() {
    assert_snapshot!(built(transformer));
}

#[test]
fn first_part_of_the_decoder_as_written() {
    assert_snapshot!(built(vae_first));
}

#[test]
fn next_part_of_the_decoder_as_written() {
    let graph = built(vae_next);
    let text = graph.to_string();
    let ends: Vec<_> = text.lines().filter(|line| line.starts_with("in ") || line.starts_with("out ")).collect();
    let modules = ["decoder.conv_in", "decoder.mid_block.resnets.0", "decoder.up_blocks.0.upsamplers.0"];
    assert_snapshot!(modules.map(|path| module(&graph, path)).concat() + &ends.join("\n"));
}

#[test]
fn text_encoder_on_every_target() {
    for (name, target, compute, stored) in TARGETS {
        let graph = lowered(text_encoder, target, compute, stored);
        let text = if name == "cpu_fp32" { graph.to_string() } else { module(&graph, "encoder.block") };
        assert_snapshot!(format!("text_encoder_{name}"), text);
    }
}

#[test]
fn transformer_on_every_target() {
    for (name, target, compute, stored) in TARGETS {
        let graph = lowered(transformer, target, compute, stored);
        let text = if name == "cpu_fp32" { graph.to_string() } else { module(&graph, "transformer_blocks.0.attn1") };
        assert_snapshot!(format!("transformer_{name}"), text);
    }
}

#[test]
fn decoder_on_every_target() {
    for (name, target, compute, stored) in TARGETS {
        let graph = lowered(vae_first, target, compute, stored);
        assert_snapshot!(format!("decoder_{name}"), module(&graph, "decoder.up_blocks.1.resnets.0"));
    }
}

/// What every lowered graph of every model is held to; `rule` says what is wrong.
fn every_lowered_graph(rule: impl Fn(Target, &Graph) -> Vec<String>) {
    let fixed: (&str, Model) = ("fixed transformer", transformer_of_fixed_size);
    let mut failures = vec![];
    for (model_name, model) in MODELS.into_iter().chain([fixed]) {
        for (name, target, compute, stored) in TARGETS {
            let wrong = rule(target, &lowered(model, target, compute, stored));
            failures.extend(wrong.into_iter().map(|problem| format!("{model_name} {name}: {problem}")));
        }
    }
    assert!(failures.is_empty(), "\n{}", failures.join("\n"));
}

#[test]
fn a_transformer_of_fixed_size_never_asks_for_a_size() {
    for (name, target, compute, stored) in TARGETS {
        let graph = lowered(transformer_of_fixed_size, target, compute, stored);
        let sizes = |op: &str| graph.nodes().iter().filter(|n| n.op.name() == op).count();
        // The batch is open, and every reshape leaves it to be inferred.
        assert_eq!([sizes("Shape"), sizes("Gather"), sizes("Range")], [0; 3], "{name}");
        assert!(sizes("Reshape") > 0, "{name}");
    }
}

#[test]
fn tensorrt_graphs_have_only_operators_of_onnx() {
    let contrib = |graph: &Graph| -> Vec<String> {
        let nodes = graph.nodes();
        let foreign = nodes.iter().filter(|n| matches!(&n.op, Op::Onnx(op) if !op.domain.is_empty()));
        foreign.map(|n| format!("{}/{}", n.path, n.op.name())).collect()
    };
    every_lowered_graph(|target, graph| if target == Target::TensorRt { contrib(graph) } else { vec![] });
    assert!(!contrib(&lowered(transformer, Target::Cpu, DType::F32, DType::F32)).is_empty());
}

#[test]
fn files_are_small_and_of_versions_that_runtimes_know() {
    every_lowered_graph(|_, graph| {
        let model = written(graph, "model");
        let read = onnx_protobuf::ModelProto::parse_from_bytes(&model.bytes).expect("a protobuf message");
        let mut wrong = vec![];
        if read.ir_version != 10 || model.opset > 23 || model.opset < 21 {
            wrong.push(format!("IR {}, opset {}", read.ir_version, model.opset));
        }
        if model.bytes.len() > 128 << 10 {
            wrong.push(format!("{} bytes", model.bytes.len()));
        }
        let large = read.graph.initializer.iter().filter(|t| t.raw_data.len() > 1024);
        wrong.extend(large.map(|t| format!("{} bytes of `{}` are in the file", t.raw_data.len(), t.name)));
        wrong
    });
}

#[test]
fn linear_layers_read_weights_as_pytorch_stores_them() {
    every_lowered_graph(|_, graph| {
        let (values, nodes) = (graph.values(), graph.nodes());
        let mut wrong = vec![];
        let mut gemms = 0;
        for node in nodes.iter() {
            let Op::Onnx(op) = &node.op else { continue };
            if op.name != "Gemm" {
                continue;
            }
            gemms += 1;
            let place = || format!("{}/{}", node.path, op.name);
            if op.attributes != [("transB", Attribute::Int(1))] {
                wrong.push(format!("{}: {:?}", place(), op.attributes));
            }
            let mut weight = node.inputs[1].expect("Gemm has weights");
            // On the CPU, a 16-bit weight is converted on its way, and one for a single row is not to be copied at loading.
            let on_the_way = ["Reshape", "Cast", "ExpandDims"];
            while let Source::Node { node, .. } = values[weight].source {
                if !on_the_way.contains(&nodes[node].op.name()) {
                    wrong.push(format!("{}: weights made by {}", place(), nodes[node].op.name()));
                    break;
                }
                weight = nodes[node].inputs[0].expect("each has an input");
            }
            let out = op.outputs[0].shape[1].fixed();
            match &values[weight].source {
                Source::Weight(w) if w.shape.len() == 2 && Some(w.shape[0]) == out => {}
                other => wrong.push(format!("{}: {other:?}", place())),
            }
        }
        let is_decoder = graph.outputs().iter().any(|o| o.state);
        if (gemms == 0) != is_decoder {
            wrong.push(format!("{gemms} linear layers"));
        }
        wrong
    });
}

#[test]
fn on_the_cpu_and_in_float32_nothing_is_converted() {
    for (name, model) in MODELS {
        let graph = lowered(model, Target::Cpu, DType::F32, DType::F32);
        assert_eq!(graph.nodes().iter().filter(|n| n.op.name() == "Cast").count(), 0, "{name}");
    }
}

#[test]
fn a_missing_weight_is_named_with_its_shape() {
    let mut tensors = wanted(text_encoder);
    tensors.retain(|(name, ..)| name != "encoder.block.0.layer.1.DenseReluDense.wo.weight");
    let error = text_encoder(&Weights::synthetic(tensors)).err().expect("a missing weight");
    let expected = [
        "1 problem building `text_encoder` from ",
        "  `encoder.block.0.layer.1.DenseReluDense.wo.weight`: expected [6, 10], not in checkpoint",
    ];
    assert_eq!(error.to_string(), expected.join("\n"));
}

#[test]
fn all_problems_of_a_checkpoint_are_listed_together() {
    let mut tensors = wanted(transformer);
    tensors.retain(|(name, ..)| name != "proj_out.bias");
    for (name, dtype, shape) in &mut tensors {
        match name.as_str() {
            "transformer_blocks.0.norm1.linear.weight" => shape[1] = 4,
            "transformer_blocks.0.attn1.norm_q.weight" => *dtype = DType::I64,
            _ => {}
        }
    }
    tensors.push(("proj_foo.weight".into(), DType::F32, vec![3, 2]));
    tensors.push(("patch_embed.pos_embedding".into(), DType::F32, vec![1, 7, 32])); // The one that may be there.
    let error = transformer(&Weights::synthetic(tensors)).err().expect("a checkpoint that does not fit");
    let expected = [
        "4 problems building `transformer` from ",
        "  `transformer_blocks.0.norm1.linear.weight`: expected [192, 8], found [192, 4] (model.safetensors)",
        "  `transformer_blocks.0.attn1.norm_q.weight`: expected floating-point numbers, found i64 (model.safetensors)",
        "  `proj_out.bias`: expected [12], not in checkpoint",
        "  `proj_foo.weight`: in checkpoint, not used by the model (model.safetensors)",
    ];
    assert_eq!(error.to_string(), expected.join("\n"));
}

#[test]
fn the_embedding_of_the_text_encoder_has_either_of_its_names() {
    for (kept, dropped) in [("encoder.embed_tokens.weight", "shared.weight"), ("shared.weight", "none")] {
        let mut tensors = wanted(text_encoder);
        tensors
            .retain(|(name, ..)| name != dropped && name != "encoder.embed_tokens.weight" && name != "shared.weight");
        tensors.push((kept.into(), DType::F32, vec![50, 6]));
        let graph = text_encoder(&Weights::synthetic(tensors)).unwrap_or_else(|e| panic!("{kept}: {e}"));
        assert!(graph.to_string().contains(kept), "{kept}");
    }
}
