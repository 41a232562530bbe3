//! What the published models say of themselves, and students of theirs.

use cogvx_graphs::DType;
use serde_json::{Value, json};

/// A member of the family that is known by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// `CogVideoX-2b`.
    B2,
    /// `CogVideoX-5b`.
    B5,
    /// `CogVideoX1.5-5B`.
    V15B5,
    /// `CogVideoX-5b-I2V`.
    B5Image,
    /// `CogVideoX1.5-5B-I2V`.
    V15B5Image,
    /// 2B with half the width: 30 blocks of 15 heads. Published by nobody; what a distilled model may look like.
    NarrowStudent,
    /// 2B with half the depth: 15 blocks of 30 heads. Published by nobody, too.
    ShallowStudent,
}

impl Published {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::B2, Self::B5, Self::V15B5, Self::B5Image, Self::V15B5Image, Self::NarrowStudent, Self::ShallowStudent];

    /// Its short name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::B2 => "2b",
            Self::B5 => "5b",
            Self::V15B5 => "1.5-5b",
            Self::B5Image => "5b-i2v",
            Self::V15B5Image => "1.5-5b-i2v",
            Self::NarrowStudent => "student-0.5b",
            Self::ShallowStudent => "student-0.9b",
        }
    }

    /// The type of all its tensors.
    #[must_use]
    pub const fn dtype(self) -> DType {
        if self.is_small() { DType::F16 } else { DType::BF16 }
    }

    /// 2B and its students.
    const fn is_small(self) -> bool {
        matches!(self, Self::B2 | Self::NarrowStudent | Self::ShallowStudent)
    }

    const fn is_image(self) -> bool {
        matches!(self, Self::B5Image | Self::V15B5Image)
    }

    const fn is_v15(self) -> bool {
        matches!(self, Self::V15B5 | Self::V15B5Image)
    }

    const fn scheduler_class(self) -> &'static str {
        if self.is_small() { "CogVideoXDDIMScheduler" } else { "CogVideoXDPMScheduler" }
    }

    /// `model_index.json`.
    pub(super) fn index(self) -> Value {
        let class = if self.is_image() { "CogVideoXImageToVideoPipeline" } else { "CogVideoXPipeline" };
        json!({
            "_class_name": class,
            "_diffusers_version": "0.32.0",
            "scheduler": ["diffusers", self.scheduler_class()],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "CogVideoXTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        })
    }

    /// `scheduler/scheduler_config.json`.
    pub(super) fn scheduler(self) -> Value {
        json!({
            "_class_name": self.scheduler_class(),
            "_diffusers_version": "0.32.0",
            "beta_end": 0.012, "beta_schedule": "scaled_linear", "beta_start": 0.000_85,
            "clip_sample": false, "clip_sample_range": 1.0, "num_train_timesteps": 1000,
            "prediction_type": "v_prediction", "rescale_betas_zero_snr": true, "sample_max_value": 1.0,
            "set_alpha_to_one": true, "snr_shift_scale": if self.is_small() { 3.0 } else { 1.0 },
            "steps_offset": 0, "timestep_spacing": "trailing", "trained_betas": null,
        })
    }

    /// `text_encoder/config.json`: T5 v1.1 XXL.
    pub(super) fn text_encoder(self) -> Value {
        json!({
            "architectures": ["T5EncoderModel"], "model_type": "t5",
            "d_ff": 10240, "d_kv": 64, "d_model": 4096, "num_heads": 64, "num_layers": 24, "vocab_size": 32128,
            "dense_act_fn": "gelu_new", "feed_forward_proj": "gated-gelu", "is_gated_act": true,
            "dropout_rate": 0.1, "classifier_dropout": 0.0, "initializer_factor": 1.0, "layer_norm_epsilon": 1e-6,
            "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
            "decoder_start_token_id": 0, "eos_token_id": 1, "pad_token_id": 0, "output_past": true,
            "is_encoder_decoder": true, "num_decoder_layers": 24, "tie_word_embeddings": false, "use_cache": true,
            "torch_dtype": if self.is_small() { "float16" } else { "bfloat16" },
            "transformers_version": "4.46.2",
        })
    }

    /// `transformer/config.json`.
    pub(super) fn transformer(self) -> Value {
        let small = self.is_small();
        let heads = match self {
            Self::NarrowStudent => 15,
            Self::B2 | Self::ShallowStudent => 30,
            _ => 48,
        };
        let layers = match self {
            Self::ShallowStudent => 15,
            Self::B2 | Self::NarrowStudent => 30,
            _ => 42,
        };
        let [frames, height, width] = match self {
            Self::V15B5 => [81, 96, 170],
            Self::V15B5Image => [81, 300, 300],
            _ => [49, 60, 90],
        };
        json!({
            "_class_name": "CogVideoXTransformer3DModel",
            "_diffusers_version": "0.32.0",
            "activation_fn": "gelu-approximate", "timestep_activation_fn": "silu", "attention_bias": true,
            "attention_head_dim": 64, "num_attention_heads": heads,
            "num_layers": layers, "dropout": 0.0, "flip_sin_to_cos": true, "freq_shift": 0,
            "in_channels": if self.is_image() { 32 } else { 16 }, "out_channels": 16,
            "max_text_seq_length": if self.is_v15() { 224 } else { 226 },
            "norm_elementwise_affine": true, "norm_eps": 1e-5,
            "ofs_embed_dim": matches!(self, Self::V15B5Image).then_some(512),
            "patch_bias": !self.is_v15(), "patch_size": 2, "patch_size_t": self.is_v15().then_some(2),
            "sample_frames": frames, "sample_height": height, "sample_width": width,
            "spatial_interpolation_scale": 1.875, "temporal_interpolation_scale": 1.0,
            "temporal_compression_ratio": 4, "text_embed_dim": 4096, "time_embed_dim": 512,
            "use_learned_positional_embeddings": matches!(self, Self::B5Image),
            "use_rotary_positional_embeddings": !small,
        })
    }

    /// `vae/config.json`.
    pub(super) fn vae(self) -> Value {
        let blocks = |name: &str| vec![name.to_string(); 4];
        json!({
            "_class_name": "AutoencoderKLCogVideoX",
            "_diffusers_version": "0.32.0",
            "act_fn": "silu", "block_out_channels": [128, 256, 256, 512],
            "down_block_types": blocks("CogVideoXDownBlock3D"), "up_block_types": blocks("CogVideoXUpBlock3D"),
            "force_upcast": true, "in_channels": 3, "invert_scale_latents": matches!(self, Self::V15B5Image),
            "latent_channels": 16, "latents_mean": null, "latents_std": null, "layers_per_block": 3,
            "norm_eps": 1e-6, "norm_num_groups": 32, "out_channels": 3,
            "sample_height": 480, "sample_width": 720,
            "scaling_factor": if self.is_small() { 1.152_584_26 } else { 0.7 }, "shift_factor": null,
            "temporal_compression_ratio": 4, "use_post_quant_conv": false, "use_quant_conv": false,
        })
    }
}
