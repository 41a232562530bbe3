//! Configurations that work and those that must be refused.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use super::*;

fn dit(changes: Value) -> Result<DitConfig, ConfigError> {
    DitConfig::from_value(Path::new("transformer/config.json"), merged("CogVideoXTransformer3DModel", changes))
}

fn vae(changes: Value) -> Result<VaeConfig, ConfigError> {
    VaeConfig::from_value(Path::new("vae/config.json"), merged("AutoencoderKLCogVideoX", changes))
}

fn t5(value: Value) -> Result<T5Config, ConfigError> {
    T5Config::from_value(Path::new("text_encoder/config.json"), value)
}

/// `changes` with the class name, unless they give one.
fn merged(class: &str, changes: Value) -> Value {
    let Value::Object(mut map) = changes else { return changes };
    map.entry("_class_name").or_insert(json!(class));
    Value::Object(map)
}

fn message<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> String {
    result.expect_err("refused").to_string()
}

fn v1_1_xxl() -> Value {
    json!({
        "architectures": ["T5EncoderModel"], "model_type": "t5", "d_model": 4096, "d_kv": 64, "d_ff": 10240,
        "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu_new",
        "is_gated_act": true, "layer_norm_epsilon": 1e-6, "vocab_size": 32128,
    })
}

#[test]
fn defaults_are_those_of_diffusers() {
    let dit = dit(json!({})).unwrap();
    assert_eq!((dit.num_attention_heads, dit.width(), dit.num_layers), (30, 1920, 30));
    assert_eq!((dit.sample_width, dit.sample_height, dit.sample_frames), (90, 60, 49));
    assert_eq!((dit.patch_size, dit.patch_size_t, dit.ofs_embed_dim), (2, None, None));
    assert_eq!((dit.max_text_seq_length, dit.patch_bias), (226, true));
    let vae = vae(json!({})).unwrap();
    assert_eq!(vae.block_out_channels, [128, 256, 256, 512]);
    assert_eq!((vae.spatial_compression_ratio(), vae.temporal_compression_ratio), (8, 4));
    assert!((vae.scaling_factor - 1.152_584_26).abs() < f64::EPSILON);
}

#[test]
fn every_config_survives_its_own_json() {
    let there = dit(json!({ "patch_size_t": 2, "ofs_embed_dim": 512, "use_rotary_positional_embeddings": true,
        "patch_bias": false, "norm_eps": 1e-5 }))
    .unwrap();
    assert_eq!(dit(serde_json::to_value(&there).unwrap()).unwrap(), there);
    let there = vae(json!({ "temporal_compression_ratio": 4.0, "latents_mean": vec![0.5; 16] })).unwrap();
    assert_eq!(vae(serde_json::to_value(&there).unwrap()).unwrap(), there);
    let there = t5(v1_1_xxl()).unwrap();
    assert_eq!(t5(serde_json::to_value(&there).unwrap()).unwrap(), there);
}

#[test]
fn the_ends_of_a_range_survive_their_own_json() {
    for epsilon in [1e-12, 1e-1] {
        let config = dit(json!({ "norm_eps": epsilon })).expect("in range");
        let value = serde_json::to_value(&config).expect("plain fields");
        assert_eq!(DitConfig::from_value(Path::new("config.json"), value).expect("in range"), config);
    }
}

#[test]
fn wrong_class_is_refused_with_expected_before_found() {
    assert_eq!(
        message(dit(json!({ "_class_name": "UNet2DConditionModel" }))),
        "`_class_name`: expected `CogVideoXTransformer3DModel`, found `UNet2DConditionModel` (`transformer/config.json`)"
    );
}

#[test]
fn values_that_cannot_be_honoured_name_the_field() {
    let huge = u64::MAX;
    let cases = [
        ("num_layers", json!({ "num_layers": 0 })),
        ("num_layers", json!({ "num_layers": -3 })),
        ("num_layers", json!({ "num_layers": 100_000 })),
        ("num_layers", json!({ "num_layers": 2.5 })),
        ("num_layers", json!({ "num_layers": null })),
        ("num_attention_heads", json!({ "num_attention_heads": huge })),
        ("num_attention_heads", json!({ "num_attention_heads": 4096, "attention_head_dim": 4096 })),
        ("attention_head_dim", json!({ "num_attention_heads": 3, "attention_head_dim": 5 })),
        ("attention_head_dim", json!({ "attention_head_dim": 40, "use_rotary_positional_embeddings": true })),
        ("patch_size", json!({ "patch_size": 0 })),
        ("patch_size", json!({ "patch_size": 17 })),
        ("patch_size_t", json!({ "patch_size_t": 0 })),
        ("norm_eps", json!({ "norm_eps": 0.0 })),
        ("norm_eps", json!({ "norm_eps": -1e-5 })),
        ("norm_eps", json!({ "norm_eps": "NaN" })),
        ("activation_fn", json!({ "activation_fn": "geglu" })),
        ("timestep_activation_fn", json!({ "timestep_activation_fn": "mish" })),
        ("attention_bias", json!({ "attention_bias": 1 })),
        ("temporal_compression_ratio", json!({ "temporal_compression_ratio": 3 })),
        ("spatial_interpolation_scale", json!({ "spatial_interpolation_scale": 0 })),
        ("use_learned_positional_embeddings", json!({ "use_learned_positional_embeddings": true })),
        ("quantization_config", json!({ "quantization_config": { "quant_method": "torchao" } })),
    ];
    for (field, changes) in cases {
        let message = message(dit(changes.clone()));
        assert!(message.starts_with(&format!("`{field}`: expected ")), "{changes}: {message}");
    }
    let cases = [
        ("act_fn", json!({ "act_fn": "relu" })),
        ("use_quant_conv", json!({ "use_quant_conv": true })),
        ("use_post_quant_conv", json!({ "use_post_quant_conv": true })),
        ("down_block_types", json!({ "down_block_types": ["DownEncoderBlock2D"] })),
        ("up_block_types", json!({ "up_block_types": ["CogVideoXUpBlock3D"] })),
        ("block_out_channels", json!({ "block_out_channels": [] })),
        ("block_out_channels", json!({ "block_out_channels": [128, 0, 256, 512] })),
        ("norm_num_groups", json!({ "norm_num_groups": 48 })),
        ("norm_num_groups", json!({ "norm_num_groups": 0 })),
        ("temporal_compression_ratio", json!({ "temporal_compression_ratio": 3 })),
        ("temporal_compression_ratio", json!({ "temporal_compression_ratio": 16 })),
        ("scaling_factor", json!({ "scaling_factor": 0 })),
        ("latents_std", json!({ "latents_std": [1.0] })),
    ];
    for (field, changes) in cases {
        let message = message(vae(changes.clone()));
        assert!(message.starts_with(&format!("`{field}`: expected ")), "{changes}: {message}");
    }
}

#[test]
fn t5_needs_the_gated_gelu_under_any_of_its_spellings() {
    let with = |field: &str, value: Value| {
        let mut config = v1_1_xxl();
        config[field] = value;
        config
    };
    assert!(t5(with("feed_forward_proj", json!("gated-gelu_new"))).is_ok());
    assert!(t5(with("feed_forward_proj", Value::Null)).is_ok(), "the two older fields say it");
    for (field, value) in [
        ("feed_forward_proj", json!("relu")),
        ("feed_forward_proj", json!("gated-silu")),
        ("dense_act_fn", json!("relu")),
        ("is_gated_act", json!(false)),
        ("model_type", json!("umt5")),
        ("architectures", json!(["CLIPTextModel"])),
        ("num_heads", json!(2000)),
        ("relative_attention_num_buckets", json!(30)),
    ] {
        let message = message(t5(with(field, value.clone())));
        assert!(message.starts_with(&format!("`{field}`: expected ")), "{field} {value}: {message}");
    }
    let plain = json!({ "model_type": "t5" });
    assert!(message(t5(plain)).starts_with("`feed_forward_proj`: expected `gated-gelu`, found nothing"));
}

#[test]
fn files_that_are_not_configs_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("config.json");
    assert!(message(DitConfig::from_json(&path)).contains("expected a file, found nothing"));
    let cases: [(Vec<u8>, &str); 8] = [
        (b"".to_vec(), "expected JSON, found EOF"),
        (b"[]".to_vec(), "expected a JSON object"),
        (b"{\"norm_eps\": NaN}".to_vec(), "line 1 column 14"),
        (b"{\"norm_eps\": 1e999}".to_vec(), "number out of range"),
        (b"\xff\xfe{}".to_vec(), "expected UTF-8"),
        ([b"{\"a\":".to_vec(), vec![b'['; 100_000]].concat(), "recursion limit"),
        (b"version https://git-lfs.github.com/spec/v1\n".to_vec(), "git lfs pull"),
        (vec![b' '; (16 << 20) + 1], "expected at most 16777216 bytes"),
    ];
    for (bytes, expected) in cases {
        fs::write(&path, bytes).unwrap();
        let message = message(DitConfig::from_json(&path));
        assert!(message.contains(expected) && message.contains("config.json"), "{expected}: {message}");
    }
    assert!(message(DitConfig::from_json(dir.path())).contains("expected a regular file, found a directory"));
}

fn index(changes: Value) -> Value {
    let mut index = json!({
        "_class_name": "CogVideoXPipeline", "_diffusers_version": "0.30.0",
        "scheduler": ["diffusers", "CogVideoXDDIMScheduler"], "text_encoder": ["transformers", "T5EncoderModel"],
        "tokenizer": ["transformers", "T5Tokenizer"], "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
        "vae": ["diffusers", "AutoencoderKLCogVideoX"],
    });
    if let (Value::Object(index), Value::Object(changes)) = (&mut index, changes) {
        index.extend(changes);
    }
    index
}

fn pipeline(changes: Value, directories: &[&str]) -> Result<PipelineIndex, ConfigError> {
    let dir = tempfile::tempdir().unwrap();
    for name in directories {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let path = dir.path().join("model_index.json");
    fs::write(&path, index(changes).to_string()).unwrap();
    PipelineIndex::from_json(&path)
}

const ALL: [&str; 5] = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"];

#[test]
fn pipeline_index_knows_its_class_and_components() {
    let found = pipeline(json!({ "_class_name": "CogVideoXImageToVideoPipeline", "safety": [null, null] }), &ALL);
    let found = found.unwrap();
    assert_eq!(found.class, PipelineClass::Image);
    assert_eq!(found.components.len(), 5);
    assert_eq!(found.components["vae"].class, "AutoencoderKLCogVideoX");
}

#[test]
fn unknown_pipeline_is_refused_by_name() {
    let message = message(pipeline(json!({ "_class_name": "CogVideoXFunControlPipeline" }), &ALL));
    assert!(message.contains("found `CogVideoXFunControlPipeline`"), "{message}");
}

#[test]
fn missing_component_directories_are_all_named() {
    let message = message(pipeline(json!({}), &["scheduler", "transformer", "vae"]));
    assert!(message.ends_with("not found: `text_encoder`, `tokenizer`"), "{message}");
}

#[test]
fn components_with_unsafe_names_or_values_are_refused() {
    for changes in [
        json!({ "../../etc": ["diffusers", "X"] }),
        json!({ "vae": ["diffusers"] }),
        json!({ "vae": "diffusers" }),
        json!({ "vae": [null, null] }),
        json!({ "x\u{1b}[2J": ["a", "b"] }),
    ] {
        let message = message(pipeline(changes.clone(), &ALL));
        assert!(message.contains("expected a") && !message.contains('\u{1b}'), "{changes}: {message}");
    }
}

#[test]
fn example_checkpoint_reads() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/shapes-model");
    if !root.is_dir() {
        eprintln!("skipped: examples/shapes-model is not here");
        return;
    }
    assert_eq!(PipelineIndex::from_json(&root.join("model_index.json")).unwrap().class, PipelineClass::Text);
    assert_eq!(T5Config::from_json(&root.join("text_encoder/config.json")).unwrap().inner(), 128);
    assert_eq!(DitConfig::from_json(&root.join("transformer/config.json")).unwrap().width(), 256);
    assert_eq!(VaeConfig::from_json(&root.join("vae/config.json")).unwrap().norm_num_groups, 8);
    for (dir, stem) in [("text_encoder", "model"), ("vae", "diffusion_pytorch_model")] {
        assert!(!crate::weights::Weights::open(&root.join(dir), stem).unwrap().is_empty());
    }
}
