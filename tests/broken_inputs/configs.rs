//! Configuration files.

use serde_json::{Value, json};

use crate::{check, export};

const INDEX: &str = "CKPT/model_index.json";
const DIT: &str = "CKPT/transformer/config.json";
const VAE: &str = "CKPT/vae/config.json";
const T5: &str = "CKPT/text_encoder/config.json";

#[test]
fn configurations_that_cannot_be_honoured_are_refused() {
    let cases = [
        export("no config.json", |s| s.remove(DIT), "`CKPT/transformer/config.json`: expected a file, found nothing"),
        export(
            "an empty config.json",
            |s| s.write(VAE, b""),
            "`CKPT/vae/config.json`: expected JSON, found EOF while parsing a value at line 1 column 0",
        ),
        export(
            "a config.json cut short",
            |s| s.bytes(T5, |b| b.truncate(100)),
            "`CKPT/text_encoder/config.json`: expected JSON, found EOF while parsing an object at line 7 \
             column 8",
        ),
        export(
            "a list for an object",
            |s| s.write(DIT, "[]"),
            "`CKPT/transformer/config.json`: expected a JSON object",
        ),
        export(
            "a config.json that is a FIFO",
            |s| s.fifo(DIT),
            "`CKPT/transformer/config.json`: expected a regular file, found a fifo",
        ),
        export(
            "a config.json that is a directory",
            |s| (s.remove(T5), s.folder(T5)).0,
            "`CKPT/text_encoder/config.json`: expected a regular file, found a directory",
        ),
        export(
            "NaN, as Python writes it",
            |s| s.write(DIT, r#"{"norm_eps": NaN}"#),
            "`CKPT/transformer/config.json`: expected JSON, found expected value at line 1 column 14",
        ),
        export(
            "a number beyond float64",
            |s| s.write(DIT, r#"{"norm_eps": 1e999}"#),
            "`CKPT/transformer/config.json`: expected JSON, found number out of range at line 1 column 18",
        ),
        export(
            "a negative size",
            |s| s.set(DIT, "num_layers", -2),
            "`num_layers`: expected a whole number from 1 to 512, found `-2` (`CKPT/transformer/config.json`)",
        ),
        export(
            "two thousand million layers",
            |s| s.set(DIT, "num_layers", 2_000_000_000),
            "`num_layers`: expected a whole number from 1 to 512, found `2000000000` \
             (`CKPT/transformer/config.json`)",
        ),
        export(
            "more layers than weights",
            |s| s.set(T5, "num_layers", 3),
            "9 problems building `text_encoder` from CKPT/text_encoder\n\
             \x20 `encoder.block.2.layer.0.layer_norm.weight`: expected [20], not in checkpoint\n\
             \x20 `encoder.block.2.layer.0.SelfAttention.q.weight`: expected [24, 20], not in checkpoint\n\
             \x20 `encoder.block.2.layer.0.SelfAttention.k.weight`: expected [24, 20], not in checkpoint\n\
             \x20 `encoder.block.2.layer.0.SelfAttention.v.weight`: expected [24, 20], not in checkpoint\n\
             \x20 `encoder.block.2.layer.0.SelfAttention.o.weight`: expected [20, 24], not in checkpoint\n\
             \x20 `encoder.block.2.layer.1.layer_norm.weight`: expected [20], not in checkpoint\n\
             \x20 `encoder.block.2.layer.1.DenseReluDense.wi_0.weight`: expected [28, 20], not in checkpoint\n\
             \x20 `encoder.block.2.layer.1.DenseReluDense.wi_1.weight`: expected [28, 20], not in checkpoint\n\
             \x20 `encoder.block.2.layer.1.DenseReluDense.wo.weight`: expected [20, 28], not in checkpoint",
        ),
        export(
            "a fraction for a size",
            |s| s.set(DIT, "num_layers", 2.5),
            "`num_layers`: expected a whole number from 1 to 512, found `2.5` (`CKPT/transformer/config.json`)",
        ),
        export(
            "no patch",
            |s| s.set(DIT, "patch_size", 0),
            "`patch_size`: expected a whole number from 1 to 16, found `0` (`CKPT/transformer/config.json`)",
        ),
        export(
            "heads times width of an odd size",
            |s| s.set(DIT, "attention_head_dim", 15),
            "`attention_head_dim`: expected heads times width a multiple of 16 for sine positions, found `15` \
             (`CKPT/transformer/config.json`)",
        ),
        export(
            "heads times width unlike the weights",
            |s| s.set(DIT, "num_attention_heads", 1),
            "50 problems building `transformer` from CKPT/transformer\n\
             \x20 `time_embedding.linear_1.weight`: expected [24, 16], found [24, 32] \
             (diffusion_pytorch_model.safetensors)\n\
             \x20 `patch_embed.proj.weight`: expected [16, 4, 2, 2], found [32, 4, 2, 2] \
             (diffusion_pytorch_model.safetensors)\n\
             \x20 (and so on)\n\
             \x20 … and 30 more",
        ),
        export(
            "another class",
            |s| s.set(DIT, "_class_name", "FluxTransformer2DModel"),
            "`_class_name`: expected `CogVideoXTransformer3DModel`, found `FluxTransformer2DModel` \
             (`CKPT/transformer/config.json`)",
        ),
        export(
            "another text encoder",
            |s| s.set(T5, "model_type", "umt5"),
            "`model_type`: expected `t5`, found `umt5` (`CKPT/text_encoder/config.json`)",
        ),
        export(
            "another activation",
            |s| s.set(T5, "feed_forward_proj", "relu"),
            "`feed_forward_proj`: expected `gated-gelu`, found `relu` (`CKPT/text_encoder/config.json`)",
        ),
        export(
            "a quantized checkpoint",
            |s| s.set(DIT, "quantization_config", json!({"load_in_8bit": true})),
            "`quantization_config`: expected weights that are not quantized, found `{\"load_in_8bit\":true}` \
             (`CKPT/transformer/config.json`)",
        ),
        export(
            "groups that do not divide the channels",
            |s| s.set(VAE, "norm_num_groups", 3),
            "`norm_num_groups`: expected a divisor of every `block_out_channels`, found `3` \
             (`CKPT/vae/config.json`)",
        ),
        export(
            "no channels",
            |s| s.set(VAE, "block_out_channels", json!([])),
            "`block_out_channels`: expected 1 to 8 blocks, found `[]` (`CKPT/vae/config.json`)",
        ),
        export(
            "a scaling factor of 0",
            |s| s.set(VAE, "scaling_factor", 0.0),
            "`scaling_factor`: expected a number from 1e-6 to 1e6, found `0.0` (`CKPT/vae/config.json`)",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn parts_that_do_not_belong_together_are_refused() {
    let cases = [
        export(
            "a pipeline of another family",
            |s| s.set(INDEX, "_class_name", "StableDiffusionPipeline"),
            "`_class_name`: expected `CogVideoXPipeline` or `CogVideoXImageToVideoPipeline` or \
             `CogVideoXVideoToVideoPipeline`, found `StableDiffusionPipeline` (`CKPT/model_index.json`)",
        ),
        export("no model_index.json", |s| s.remove(INDEX), "`CKPT/model_index.json`: expected a file, found nothing"),
        export(
            "a component without a class",
            |s| s.set(INDEX, "vae", json!(["diffusers"])),
            "`vae`: expected a plain name with a library and a class, found `[\"diffusers\"]` \
             (`CKPT/model_index.json`)",
        ),
        export(
            "a component that is null",
            |s| s.set(INDEX, "text_encoder", json!([Value::Null, Value::Null])),
            "`text_encoder`: expected a library and a class, found `[null,null]` (`CKPT/model_index.json`)",
        ),
        export(
            "a component without a folder",
            |s| s.remove("CKPT/vae"),
            "`CKPT/model_index.json`: expected the directories of its components, not found: `vae`",
        ),
        export(
            "another text width than T5's",
            |s| s.set(DIT, "text_embed_dim", 24),
            "`CKPT/transformer/config.json`: expected `text_embed_dim` of 20 as in the text encoder's \
             `d_model`, found 24",
        ),
        export(
            "another number of channels than the VAE's",
            |s| s.set(DIT, "in_channels", 8),
            "`CKPT/transformer/config.json`: expected `in_channels` of 4 as in the VAE's `latent_channels`, \
             found 8",
        ),
        export(
            "another frame rate than the VAE's",
            |s| s.set(DIT, "temporal_compression_ratio", 8),
            "`CKPT/transformer/config.json`: expected `temporal_compression_ratio` of 4 as in the VAE, found 8",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn parts_of_other_members_of_the_family_are_refused() {
    let cases = [
        export(
            "patches in time and sine positions",
            |s| s.set(DIT, "patch_size_t", 2),
            "`CKPT/transformer/config.json`: not supported yet: patches in time without rotary positions",
        ),
        export(
            "an offset embedding that cannot be added to the timestep's",
            |s| s.set(DIT, "ofs_embed_dim", 512),
            "`CKPT/transformer/config.json`: expected `ofs_embed_dim` of 24 as in `time_embed_dim`, found 512",
        ),
        export(
            "an offset embedding without weights",
            |s| s.set(DIT, "ofs_embed_dim", 24),
            "4 problems building `transformer` from CKPT/transformer\n  \
             `ofs_embedding.linear_1.weight`: expected [24, 24], not in checkpoint\n  \
             `ofs_embedding.linear_1.bias`: expected [24], not in checkpoint\n  \
             `ofs_embedding.linear_2.weight`: expected [24, 24], not in checkpoint\n  \
             `ofs_embedding.linear_2.bias`: expected [24], not in checkpoint",
        ),
        export(
            "an image pipeline around a text model",
            |s| s.set(INDEX, "_class_name", "CogVideoXImageToVideoPipeline"),
            "`CKPT/transformer/config.json`: expected `in_channels` of 8 as in the VAE's `latent_channels` of noise and \
             image, found 4",
        ),
    ];
    check("2b-fp32", &cases);
}
