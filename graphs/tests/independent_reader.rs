//! What cogvx writes, read back with the `onnx-protobuf` crate, which shares no code with it.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::path::Path;

use cogvx_graphs::config::{DitConfig, VaeConfig};
use cogvx_graphs::graph::Weight;
use cogvx_graphs::model::{dit, t5, vae};
use cogvx_graphs::onnx::{self, Placement, Port, Size, serialize};
use cogvx_graphs::op::Attribute;
use cogvx_graphs::pass::{self, Lower, Precision, Target};
use cogvx_graphs::{BuildError, DType, Dim, Graph, Value, VideoDims, Weights, dims};
use onnx_protobuf::{ModelProto, TensorProto, ValueInfoProto, tensor_shape_proto, type_proto};
use proptest::prelude::*;
use protobuf::Message as _;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use serde_json::json;

use common::{MODELS, Model, TARGETS, lowered, t5_config, text_encoder, wanted, written};

fn read(bytes: &[u8]) -> ModelProto {
    ModelProto::parse_from_bytes(bytes).expect("a protobuf message")
}

/// Name, element type and sizes.
fn port(value: &ValueInfoProto) -> (String, i32, Vec<String>) {
    let Some(type_proto::Value::TensorType(tensor)) = &value.type_.value else { panic!("{value:?}") };
    let sizes = tensor.shape.dim.iter().map(|dim| match &dim.value {
        Some(tensor_shape_proto::dimension::Value::DimValue(n)) => n.to_string(),
        Some(tensor_shape_proto::dimension::Value::DimParam(name)) => name.clone(),
        other => panic!("{other:?}"),
    });
    (value.name.clone(), tensor.elem_type, sizes.collect())
}

fn external(tensor: &TensorProto) -> BTreeMap<&str, &str> {
    tensor.external_data.iter().map(|entry| (entry.key.as_str(), entry.value.as_str())).collect()
}

/// ONNX Runtime takes the last node that nobody reads first: see `src/onnx/order.rs`.
#[test]
fn caches_are_cut_off_layer_by_layer() {
    let (_, next) = MODELS[3];
    let graph = lowered(next, Target::Cpu, DType::F32, DType::F32);
    let layers: Vec<_> = graph.outputs().iter().filter(|o| o.name != "sample").map(|o| o.name.clone()).collect();
    let model = read(&written(&graph, "next").bytes).graph;
    let last: Vec<_> = model.node.iter().rev().take(layers.len()).map(|node| node.output[0].clone()).collect();
    assert!(layers.len() > 5);
    assert_eq!(last, layers, "the first layer's cache comes last");
}

#[test]
fn nodes_are_named_by_the_modules_of_the_checkpoint() {
    for (name, model) in MODELS {
        // Every prefix of a tensor's name is a module.
        let keys: Vec<_> = wanted(model).into_iter().map(|(key, ..)| key).collect();
        let modules: BTreeSet<_> =
            keys.iter().flat_map(|key| key.match_indices('.').map(|(end, _)| &key[..end])).collect();
        let graph = read(&written(&lowered(model, Target::Cpu, DType::F32, DType::F32), name).bytes).graph;
        let mut names = BTreeSet::new();
        let mut outside = 0;
        for node in &graph.node {
            assert!(names.insert(&node.name), "{name}: two nodes are called `{}`", node.name);
            let Some((path, op)) = node.name.split_once('/') else {
                outside += 1;
                continue;
            };
            // `conv` stands between a causal convolution and its weights.
            assert!(modules.contains(path), "{name}: `{path}` is no module of the checkpoint");
            assert!(op == node.op_type || op.starts_with(&format!("{}_", node.op_type)), "{name}: {}", node.name);
        }
        assert!(outside * 4 < graph.node.len(), "{name}: {outside} of {} nodes have no module", graph.node.len());
    }
}

#[test]
fn every_value_is_made_before_it_is_read() {
    for (name, model) in MODELS {
        for (target_name, target, compute, stored) in TARGETS {
            let graph = read(&written(&lowered(model, target, compute, stored), name).bytes).graph;
            let mut known: BTreeSet<&str> = graph.input.iter().map(|v| v.name.as_str()).collect();
            known.extend(graph.initializer.iter().map(|t| t.name.as_str()));
            for node in &graph.node {
                for input in node.input.iter().filter(|input| !input.is_empty()) {
                    assert!(known.contains(input.as_str()), "{name} {target_name}: {} reads `{input}`", node.name);
                }
                for output in &node.output {
                    assert!(known.insert(output), "{name} {target_name}: two values are called `{output}`");
                }
            }
            let missing: Vec<_> = graph.output.iter().filter(|o| !known.contains(o.name.as_str())).collect();
            assert!(missing.is_empty(), "{name} {target_name}: {missing:?}");
        }
    }
}

#[test]
fn both_readers_find_the_same() {
    for (name, model) in MODELS {
        for (target_name, target, compute, stored) in TARGETS {
            let bytes = written(&lowered(model, target, compute, stored), name).bytes;
            let ours = onnx::read(Path::new(name), &bytes).unwrap_or_else(|e| panic!("{target_name}: {e}"));
            let theirs = read(&bytes);
            assert_eq!((ours.name.as_str(), ours.opset), (name, theirs.opset_import[0].version));
            assert_eq!(ours.nodes.len(), theirs.graph.node.len());
            for (ours, theirs) in ours.nodes.iter().zip(&theirs.graph.node) {
                assert_eq!(
                    (&ours.name, &ours.domain, &ours.op_type, &ours.inputs, &ours.outputs),
                    (&theirs.name, &theirs.domain, &theirs.op_type, &theirs.input, &theirs.output)
                );
                assert_eq!(ours.attributes.len(), theirs.attribute.len());
                for ((key, value), theirs) in ours.attributes.iter().zip(&theirs.attribute) {
                    let same = match value {
                        Attribute::Int(i) => *i == theirs.i,
                        Attribute::Ints(ints) => *ints == theirs.ints,
                        Attribute::Float(f) => f.to_bits() == theirs.f.to_bits(),
                        Attribute::Text(text) => text.as_bytes() == theirs.s,
                    };
                    assert!(same && *key == theirs.name, "{name} {target_name}: {}: {key}", ours.name);
                }
            }
            assert_eq!(ours.initializers.len(), theirs.graph.initializer.len());
            for (ours, theirs) in ours.initializers.iter().zip(&theirs.graph.initializer) {
                let shape: Vec<_> = theirs.dims.iter().map(|&n| usize::try_from(n).expect("a size")).collect();
                assert_eq!((&ours.name, ours.dtype.onnx(), &ours.shape), (&theirs.name, theirs.data_type, &shape));
                match &ours.placement {
                    Placement::Inline(bytes) => assert_eq!(*bytes, theirs.raw_data),
                    Placement::External { location, offset, length } => {
                        let (offset, length) = (offset.to_string(), length.to_string());
                        let ours = [("location", location.as_str()), ("offset", &offset), ("length", &length)];
                        assert_eq!(external(theirs), ours.into());
                    }
                }
            }
            let sizes = |port: &Port| {
                let size = |size: &Size| match size {
                    Size::Fixed(n) => n.to_string(),
                    Size::Named(name) => name.clone(),
                };
                (port.name.clone(), port.dtype.onnx(), port.shape.iter().map(size).collect::<Vec<_>>())
            };
            assert!(ours.inputs.iter().map(sizes).eq(theirs.graph.input.iter().map(port)), "{name} {target_name}");
            assert!(ours.outputs.iter().map(sizes).eq(theirs.graph.output.iter().map(port)), "{name} {target_name}");
        }
    }
}

/// The transformer of `CogVideoX1.5-5B-I2V`, the largest that is published.
fn largest_transformer(weights: &Weights) -> Result<Graph, BuildError> {
    let config = json!({
        "_class_name": "CogVideoXTransformer3DModel", "num_attention_heads": 48, "num_layers": 42, "in_channels": 32,
        "patch_size_t": 2, "ofs_embed_dim": 512, "patch_bias": false, "use_rotary_positional_embeddings": true,
    });
    let config = DitConfig::from_value(Path::new("config.json"), config).expect("a correct configuration");
    dit::build(&config, weights, &VideoDims::dynamic(), &Dim::named("tokens"))
}

fn published_decoder(weights: &Weights) -> Result<Graph, BuildError> {
    let config = json!({ "_class_name": "AutoencoderKLCogVideoX" });
    let config = VaeConfig::from_value(Path::new("config.json"), config).expect("a correct configuration");
    vae::decoder(&config, weights, &VideoDims::dynamic(), vae::Part::First)
}

#[test]
fn the_largest_published_graphs_are_far_below_the_readers_limits() {
    let largest: [Model; 2] = [largest_transformer, published_decoder];
    for (model, (name, target, compute, stored)) in largest.into_iter().flat_map(|m| TARGETS.map(|t| (m, t))) {
        let bytes = written(&lowered(model, target, compute, stored), name).bytes;
        assert!(bytes.len() < 4 << 20, "{name}: {}", bytes.len());
        onnx::read(Path::new(name), &bytes).unwrap_or_else(|e| panic!("{e}"));
    }
}

#[test]
fn versions_and_domains_are_declared() {
    for (name, target, compute, stored) in TARGETS {
        let model = read(&written(&lowered(text_encoder, target, compute, stored), "text_encoder").bytes);
        assert_eq!(
            (model.ir_version, model.producer_name.as_str(), model.graph.name.as_str()),
            (10, "cogvx", "text_encoder")
        );
        let opsets: Vec<_> = model.opset_import.iter().map(|o| (o.domain.as_str(), o.version)).collect();
        let contrib = [("", 23), ("com.microsoft", 1)]; // RMSNormalization is of opset 23.
        assert_eq!(opsets, if target == Target::TensorRt { &contrib[..1] } else { &contrib[..] }, "{name}");
        let used: BTreeSet<_> = model.graph.node.iter().map(|n| n.domain.as_str()).collect();
        assert!(used.iter().all(|domain| opsets.iter().any(|(known, _)| known == domain)), "{name}: {used:?}");
    }
}

#[test]
fn inputs_and_outputs_have_their_types() {
    const FLOAT: i32 = 1;
    const INT64: i32 = 7;
    const FLOAT16: i32 = 10;
    let ports = |list: &[(&str, i32, &[&str])]| -> Vec<(String, i32, Vec<String>)> {
        list.iter().map(|(n, t, dims)| ((*n).into(), *t, dims.iter().map(|d| (*d).to_string()).collect())).collect()
    };
    for (name, model) in MODELS {
        let graph = read(&written(&lowered(model, Target::Cuda, DType::F16, DType::F16), name).bytes).graph;
        let inputs: Vec<_> = graph.input.iter().map(port).collect();
        let outputs: Vec<_> = graph.output.iter().map(port).collect();
        let video = ["batch", "3", "frames", "height", "width"];
        match name {
            "text_encoder" => {
                assert_eq!(inputs, ports(&[("input_ids", INT64, &["batch", "tokens"])]));
                assert_eq!(outputs, ports(&[("last_hidden_state", FLOAT, &["batch", "tokens", "6"])]));
            }
            "transformer" => {
                let latents = ["batch", "frames", "3", "height", "width"];
                let expected = ports(&[
                    ("hidden_states", FLOAT, &latents),
                    ("encoder_hidden_states", FLOAT, &["batch", "tokens", "6"]),
                    ("timestep", FLOAT, &["1"]),
                    ("positions", FLOAT, &["frames*height*width/4", "32"]),
                ]);
                assert_eq!(inputs, expected);
                assert_eq!(outputs, ports(&[("sample", FLOAT, &latents)]));
            }
            "vae_first" => {
                assert_eq!(inputs, ports(&[("latents", FLOAT, &video)]));
                let sample = outputs.iter().find(|(name, ..)| name == "sample").expect("frames");
                assert_eq!(
                    sample.2,
                    ["batch", "3", "double(frames)", "height*2", "width*2"].map(|d| match d {
                        "height*2" => "2*height".to_string(),
                        "width*2" => "2*width".to_string(),
                        other => other.to_string(),
                    })
                );
                // Caches, in the compute precision.
                assert!(outputs.iter().all(|(name, t, dims)| name == "sample" || (*t == FLOAT16 && dims[2] == "2")));
            }
            _ => {
                let pasts: BTreeSet<_> = inputs.iter().filter_map(|(n, ..)| n.strip_suffix(".past")).collect();
                let caches: BTreeSet<_> = outputs.iter().filter_map(|(n, ..)| n.strip_suffix(".cache")).collect();
                assert!(!pasts.is_empty());
                assert_eq!(pasts, caches, "each cache is fed to the next call");
                assert_eq!((pasts.len() + 1, caches.len() + 1), (inputs.len(), outputs.len()));
            }
        }
    }
}

#[test]
fn external_data_lies_where_the_safetensors_header_says() {
    let folder = tempfile::tempdir().expect("a new folder");
    let component = folder.path().join("text_encoder");
    std::fs::create_dir(&component).expect("a new folder");
    let data: Vec<_> = wanted(text_encoder)
        .into_iter()
        .enumerate()
        .map(|(i, (name, _, shape))| {
            let value = i8::try_from(i).map_or(0.0, f32::from);
            (
                name,
                vec![value; shape.iter().product()].into_iter().flat_map(f32::to_le_bytes).collect::<Vec<_>>(),
                shape,
            )
        })
        .collect();
    let views = data.iter().map(|(name, bytes, shape)| {
        (name, TensorView::new(safetensors::Dtype::F32, shape.clone(), bytes).expect("as many bytes as elements"))
    });
    let file = component.join("model.safetensors");
    safetensors::serialize_to_file(views, None, &file).expect("a writable folder");

    let weights = Weights::open(&component, "model").expect("a correct checkpoint");
    let graph = t5::build(&t5_config(), &weights, &Dim::named("tokens")).expect("weights that fit");
    let graph = pass::run(&mut Precision::new(DType::F32, None), &graph).expect("a correct graph");
    let graph = pass::run(&mut Lower::new(Target::Cpu), &graph).expect("a correct graph");
    let place = |weight: &Weight| -> Result<Placement, Infallible> {
        let tensor = weights.get(&weight.name).expect("bound when the graph was built");
        let location = weights.files()[tensor.file].name.clone();
        Ok(Placement::External { location, offset: tensor.offset, length: tensor.len })
    };
    let model = read(&serialize(&graph, "text_encoder", place).expect("cannot fail").bytes);

    let bytes = std::fs::read(&file).expect("written above");
    let theirs = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let outside: Vec<_> = model.graph.initializer.iter().filter(|t| !t.external_data.is_empty()).collect();
    assert_eq!(outside.len(), data.len());
    for tensor in outside {
        let place = external(tensor);
        assert_eq!((place.len(), place["location"]), (3, "model.safetensors"));
        let [offset, length] = ["offset", "length"].map(|key| place[key].parse::<usize>().expect("a number"));
        let expected = theirs.tensor(&tensor.name).unwrap_or_else(|e| panic!("`{}`: {e}", tensor.name));
        assert_eq!(&bytes[offset..offset + length], expected.data(), "{}", tensor.name);
        assert_eq!(
            tensor.dims.iter().map(|&n| n.unsigned_abs()).collect::<Vec<_>>(),
            expected.shape().iter().map(|&n| n as u64).collect::<Vec<_>>(),
            "{}",
            tensor.name
        );
        assert_eq!((tensor.data_type, tensor.raw_data.len()), (1, 0), "{}", tensor.name);
    }
    assert!(Path::new(&file).is_file());
}

/// One step of a made-up graph on `[batch, width]` values.
#[derive(Clone, Debug)]
enum Step {
    Add(usize, usize),
    Scale(usize, f32),
    Silu(usize),
    Linear(usize),
    Flip(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (any::<usize>(), any::<usize>()).prop_map(|(a, b)| Step::Add(a, b)),
        (any::<usize>(), -4.0_f32..4.0).prop_map(|(a, x)| Step::Scale(a, x)),
        any::<usize>().prop_map(Step::Silu),
        any::<usize>().prop_map(Step::Linear),
        any::<usize>().prop_map(Step::Flip),
    ];
    proptest::collection::vec(step, 1..20)
}

proptest! {
    #[test]
    fn any_graph_reads_back_as_it_was_built(steps in steps(), width in 1_usize..5) {
        let graph = Graph::new();
        let mut values: Vec<Value<'_>> = vec![graph.input("x", DType::F32, dims![&Dim::named("batch"), width])];
        for (i, step) in steps.iter().enumerate() {
            let at = |n: usize| values[n % values.len()];
            values.push(match *step {
                Step::Add(a, b) => at(a) + at(b),
                Step::Scale(a, x) => at(a) * x,
                Step::Silu(a) => at(a).silu(),
                Step::Linear(a) => {
                    let name = format!("layers.{i}.weight");
                    let weight = Weight::whole(&name, DType::F32, &[width, width]);
                    at(a).linear(graph.weight(weight, DType::F32), None)
                }
                Step::Flip(a) => at(a).reshape(dims![width, &Dim::named("batch")]).reshape(dims![&Dim::named("batch"), width]),
            });
        }
        graph.output("y", values[values.len() - 1]);
        let lowered = pass::run(&mut Lower::new(Target::TensorRt), &graph).expect("a correct graph");
        let model = read(&written(&lowered, "any").bytes);

        let live = lowered.live();
        let nodes = lowered.nodes();
        let ours: Vec<_> = nodes.iter().filter(|n| n.outputs.iter().any(|&v| live[v])).map(|n| n.op.name()).collect();
        let theirs: Vec<_> = model.graph.node.iter().map(|n| n.op_type.as_str()).collect();
        // An output that is an input, or is needed under two names, is copied.
        let copies = theirs.len() - ours.len();
        prop_assert!(copies <= 1);
        prop_assert_eq!(&theirs[..ours.len()], &ours[..]);
        prop_assert!(theirs[ours.len()..].iter().all(|op| *op == "Identity"));
        prop_assert_eq!(model.graph.input.iter().map(port).collect::<Vec<_>>(),
            vec![("x".to_string(), 1, vec!["batch".to_string(), width.to_string()])]);
        prop_assert_eq!(port(&model.graph.output[0]).2, vec!["batch".to_string(), width.to_string()]);
        let names: BTreeSet<_> = model.graph.node.iter().flat_map(|n| &n.output).collect();
        prop_assert_eq!(names.len(), model.graph.node.iter().map(|n| n.output.len()).sum::<usize>());
    }
}
