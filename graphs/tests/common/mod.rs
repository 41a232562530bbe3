//! Models with one layer of everything, and weights that fit them.

#![allow(dead_code)] // Each test program uses a part.

use std::path::Path;

use cogvx_graphs::config::{DitConfig, T5Config, VaeConfig};
use cogvx_graphs::model::{dit, t5, vae};
use cogvx_graphs::onnx::{Placement, Serialized, serialize};
use cogvx_graphs::pass::{self, Lower, Precision, Target};
use cogvx_graphs::{BuildError, DType, Dim, Graph, Problem, VideoDims, Weights};
use serde_json::{Value, json};

/// A model as a function of its weights.
pub type Model = fn(&Weights) -> Result<Graph, BuildError>;

pub fn t5_config() -> T5Config {
    let value = json!({
        "architectures": ["T5EncoderModel"], "d_model": 6, "d_kv": 16, "d_ff": 10, "num_layers": 1, "num_heads": 2,
        "vocab_size": 50, "relative_attention_num_buckets": 8, "relative_attention_max_distance": 16,
        "feed_forward_proj": "gated-gelu",
    });
    T5Config::from_value(Path::new("config.json"), value).expect("a correct configuration")
}

pub fn dit_config() -> DitConfig {
    let value = json!({
        "_class_name": "CogVideoXTransformer3DModel", "num_attention_heads": 2, "attention_head_dim": 16,
        "in_channels": 3, "out_channels": 3, "time_embed_dim": 8, "text_embed_dim": 6, "num_layers": 1,
        "attention_bias": true, "max_text_seq_length": 5,
    });
    DitConfig::from_value(Path::new("config.json"), value).expect("a correct configuration")
}

/// Two blocks, of which the first doubles time and space.
pub fn vae_config() -> VaeConfig {
    let blocks = |name: &str| -> Value { json!([name, name]) };
    let value = json!({
        "_class_name": "AutoencoderKLCogVideoX", "block_out_channels": [4, 8], "latent_channels": 3,
        "layers_per_block": 1, "norm_num_groups": 2, "temporal_compression_ratio": 2,
        "down_block_types": blocks("CogVideoXDownBlock3D"), "up_block_types": blocks("CogVideoXUpBlock3D"),
    });
    VaeConfig::from_value(Path::new("config.json"), value).expect("a correct configuration")
}

pub fn text_encoder(weights: &Weights) -> Result<Graph, BuildError> {
    t5::build(&t5_config(), weights, &Dim::named("tokens"))
}

pub fn transformer(weights: &Weights) -> Result<Graph, BuildError> {
    dit::build(&dit_config(), weights, &VideoDims::dynamic(), &Dim::named("tokens"))
}

/// The transformer for 3 latent frames of 4 x 6.
pub fn transformer_of_fixed_size(weights: &Weights) -> Result<Graph, BuildError> {
    dit::build(&dit_config(), weights, &VideoDims::fixed(3, 4, 6), &Dim::Fixed(5))
}

pub fn vae_first(weights: &Weights) -> Result<Graph, BuildError> {
    vae::decoder(&vae_config(), weights, &VideoDims::dynamic(), vae::Part::First)
}

pub fn vae_next(weights: &Weights) -> Result<Graph, BuildError> {
    let two = VideoDims { frames: Dim::Fixed(2), ..VideoDims::dynamic() };
    vae::decoder(&vae_config(), weights, &two, vae::Part::Next)
}

/// All models that take any size.
pub const MODELS: [(&str, Model); 4] =
    [("text_encoder", text_encoder), ("transformer", transformer), ("vae_first", vae_first), ("vae_next", vae_next)];

/// Every target with a precision it is made for.
pub const TARGETS: [(&str, Target, DType, DType); 7] = [
    ("cpu_fp32", Target::Cpu, DType::F32, DType::F32),
    ("cpu_fp16_weights", Target::Cpu, DType::F32, DType::F16),
    ("cuda_fp16", Target::Cuda, DType::F16, DType::F16),
    ("cuda_bf16", Target::Cuda, DType::BF16, DType::BF16),
    ("tensorrt_fp16", Target::TensorRt, DType::F16, DType::F16),
    ("tensorrt_bf16", Target::TensorRt, DType::BF16, DType::BF16),
    ("tensorrt_fp32", Target::TensorRt, DType::F32, DType::F32),
];

/// The tensors `model` asks for: what it misses in an empty checkpoint.
pub fn wanted(model: Model) -> Vec<(String, DType, Vec<usize>)> {
    let nothing = Weights::synthetic(Vec::<(String, DType, Vec<usize>)>::new());
    let Err(error) = model(&nothing) else { panic!("a model without weights") };
    let missing = error.problems.into_iter().map(|problem| match problem {
        Problem::Missing { name, expected } => (name, DType::F32, expected),
        other => panic!("{other}"),
    });
    missing.collect()
}

/// `model` with `f32` weights that fit.
pub fn built(model: Model) -> Graph {
    model(&Weights::synthetic(wanted(model))).unwrap_or_else(|e| panic!("{e}"))
}

/// `model` after precision and lowering.
pub fn lowered(model: Model, target: Target, compute: DType, stored: DType) -> Graph {
    let precise = pass::run(&mut Precision::new(compute, Some(stored)), &built(model));
    let lowered = precise.and_then(|graph| pass::run(&mut Lower::new(target), &graph));
    lowered.unwrap_or_else(|problems| panic!("{problems:?}"))
}

/// The ONNX model of a lowered graph whose weights lie in `weights.bin`.
pub fn written(graph: &Graph, name: &str) -> Serialized {
    let mut end = 0;
    let place = |weight: &cogvx_graphs::graph::Weight| -> Result<Placement, std::convert::Infallible> {
        let length = (weight.shape.iter().product::<usize>() * weight.stored.size()) as u64;
        let offset = end;
        end += length;
        Ok(Placement::External { location: "weights.bin".into(), offset, length })
    };
    serialize(graph, name, place).expect("cannot fail")
}
