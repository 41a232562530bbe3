//! `T5EncoderModel`, the text encoder.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::fields::{ConfigError, Fields};

/// The encoder half of `transformers`' `T5Config`.
///
/// Source: `transformers/models/t5/configuration_t5.py`. Serializes to JSON that [`T5Config::from_value`] reads back.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "_class_name", rename = "T5EncoderModel")]
pub struct T5Config {
    /// Width of the residual stream.
    pub d_model: usize,
    /// Width of one attention head; heads together need not equal `d_model`.
    pub d_kv: usize,
    /// Width inside the feed-forward layer.
    pub d_ff: usize,
    /// Encoder layers.
    pub num_layers: usize,
    /// Attention heads.
    pub num_heads: usize,
    /// Buckets of the relative position bias, half for each direction.
    pub relative_attention_num_buckets: usize,
    /// Distance from which on all positions share a bucket.
    pub relative_attention_max_distance: usize,
    /// Epsilon of every RMS norm.
    pub layer_norm_epsilon: f32,
    /// Rows of the token embedding.
    pub vocab_size: usize,
    /// Always `gated-gelu`: tanh-approximated GELU times a linear gate.
    pub feed_forward_proj: String,
}

impl T5Config {
    /// Reads `text_encoder/config.json`.
    ///
    /// # Errors
    /// When the file cannot be read or a field has a value cogvx cannot honour.
    pub fn from_json(path: &Path) -> Result<Self, ConfigError> {
        Self::from_fields(&Fields::read(path)?)
    }

    /// Reads the text of such a file; `file` is for messages.
    ///
    /// # Errors
    /// When it is not JSON or a field has a value cogvx cannot honour.
    pub fn from_slice(file: &Path, json: &[u8]) -> Result<Self, ConfigError> {
        Self::from_fields(&Fields::parse(file, json)?)
    }

    /// Reads the same fields from `value`; `file` is for messages.
    ///
    /// # Errors
    /// When a field has a value cogvx cannot honour.
    pub fn from_value(file: &Path, value: Value) -> Result<Self, ConfigError> {
        Self::from_fields(&Fields::new(file, value)?)
    }

    /// Width of all heads together.
    #[must_use]
    pub const fn inner(&self) -> usize {
        self.num_heads * self.d_kv
    }

    fn from_fields(f: &Fields) -> Result<Self, ConfigError> {
        is_encoder(f)?;
        is_gated_gelu(f)?;
        let config = Self {
            d_model: f.size("d_model", 512, 1..=65_536)?,
            d_kv: f.size("d_kv", 64, 1..=4096)?,
            d_ff: f.size("d_ff", 2048, 1..=1 << 20)?,
            num_layers: f.size("num_layers", 6, 1..=512)?,
            num_heads: f.size("num_heads", 8, 1..=4096)?,
            relative_attention_num_buckets: f.size("relative_attention_num_buckets", 32, 4..=65_536)?,
            relative_attention_max_distance: f.size("relative_attention_max_distance", 128, 2..=1 << 20)?,
            layer_norm_epsilon: f.epsilon("layer_norm_epsilon", 1e-6)?,
            vocab_size: f.size("vocab_size", 32_128, 1..=1 << 24)?,
            feed_forward_proj: "gated-gelu".into(),
        };
        let wide = config.inner() <= 65_536;
        f.require("num_heads", "heads times `d_kv` of at most 65536", wide)?;
        let buckets = config.relative_attention_num_buckets;
        f.require("relative_attention_num_buckets", "a multiple of 4", buckets.is_multiple_of(4))?;
        let far = config.relative_attention_max_distance > buckets / 4;
        f.require("relative_attention_max_distance", "more than a quarter of the buckets", far)?;
        Ok(config)
    }
}

/// Checks that the file describes a model with a T5 encoder. UMT5 and others differ inside.
fn is_encoder(f: &Fields) -> Result<(), ConfigError> {
    const KNOWN: [&str; 3] = ["T5EncoderModel", "T5ForConditionalGeneration", "T5Model"];
    f.is_plain()?;
    let model_type = f.value("model_type");
    f.require("model_type", "`t5`", model_type.is_none_or(|name| name == "t5"))?;
    let known = |name: &Value| name.as_str().is_some_and(|name| KNOWN.contains(&name));
    if let Some(class) = f.value("_class_name") {
        return f.require("_class_name", "`T5EncoderModel`", known(class));
    }
    if let Some(names) = f.value("architectures") {
        let any = names.as_array().is_some_and(|names| names.iter().any(known));
        return f.require("architectures", "`T5EncoderModel`", any);
    }
    f.require("architectures", "`T5EncoderModel`", model_type.is_some())
}

/// Checks that the feed-forward layer is gated with the tanh-approximated GELU.
///
/// `feed_forward_proj` decides; files also repeat its meaning in `dense_act_fn` and `is_gated_act`.
fn is_gated_gelu(f: &Fields) -> Result<(), ConfigError> {
    let act = f.value("dense_act_fn");
    let gated = f.value("is_gated_act");
    f.require("dense_act_fn", "`gelu_new`", act.is_none_or(|act| act == "gelu_new"))?;
    f.require("is_gated_act", "`true`", gated.is_none_or(|gated| gated == true))?;
    let holds = match f.value("feed_forward_proj") {
        Some(proj) => proj == "gated-gelu" || proj == "gated-gelu_new",
        None => act.is_some() && gated.is_some(),
    };
    f.require("feed_forward_proj", "`gated-gelu`", holds)
}
