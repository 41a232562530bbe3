//! `AutoencoderKLCogVideoX`, the video autoencoder.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::fields::{ConfigError, Fields};

/// The configuration of diffusers' `AutoencoderKLCogVideoX`, with its defaults.
///
/// Source: `diffusers/models/autoencoders/autoencoder_kl_cogvideox.py`. Serializes to JSON that
/// [`VaeConfig::from_value`] reads back.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "_class_name", rename = "AutoencoderKLCogVideoX")]
#[expect(clippy::struct_excessive_bools, reason = "the fields of the file")]
pub struct VaeConfig {
    /// Channels of the video.
    pub in_channels: usize,
    /// Channels of the decoded video.
    pub out_channels: usize,
    /// Always `CogVideoXDownBlock3D`, once per entry of `block_out_channels`.
    pub down_block_types: Vec<String>,
    /// Always `CogVideoXUpBlock3D`, once per entry of `block_out_channels`.
    pub up_block_types: Vec<String>,
    /// Channels of each encoder block; the decoder's are these reversed.
    pub block_out_channels: Vec<usize>,
    /// Channels of the latent video.
    pub latent_channels: usize,
    /// Residual layers of an encoder block; a decoder block has one more.
    pub layers_per_block: usize,
    /// Always `silu`.
    pub act_fn: String,
    /// Epsilon of the group norms.
    pub norm_eps: f32,
    /// Groups of the group norms.
    pub norm_num_groups: usize,
    /// Video frames per latent frame, a power of two.
    pub temporal_compression_ratio: usize,
    /// Default height in pixels; tiles are half as high.
    pub sample_height: usize,
    /// Default width in pixels; tiles are half as wide.
    pub sample_width: usize,
    /// Factor from encoded latents to those the denoiser sees.
    pub scaling_factor: f64,
    /// Offset of latents; no pipeline uses it.
    pub shift_factor: Option<f64>,
    /// Mean of each latent channel; no pipeline uses it.
    pub latents_mean: Option<Vec<f64>>,
    /// Standard deviation of each latent channel; no pipeline uses it.
    pub latents_std: Option<Vec<f64>>,
    /// Decode in f32.
    pub force_upcast: bool,
    /// Always `false`.
    pub use_quant_conv: bool,
    /// Always `false`.
    pub use_post_quant_conv: bool,
    /// Image latents are divided by `scaling_factor` instead of multiplied, as in `CogVideoX1.5-5B-I2V`.
    pub invert_scale_latents: bool,
}

impl VaeConfig {
    /// Reads `vae/config.json`.
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

    /// Pixels per latent pixel along each side.
    #[must_use]
    pub fn spatial_compression_ratio(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }

    fn from_fields(f: &Fields) -> Result<Self, ConfigError> {
        f.is_class("AutoencoderKLCogVideoX")?;
        let channels = "a list of whole numbers from 1 to 16384";
        let block_out_channels = f.list("block_out_channels", vec![128, 256, 256, 512], channels, |item| {
            item.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| (1..=16_384).contains(n))
        })?;
        let blocks = block_out_channels.len();
        f.require("block_out_channels", "1 to 8 blocks", (1..=8).contains(&blocks))?;
        let latent_channels = f.size("latent_channels", 16, 1..=1024)?;
        let config = Self {
            in_channels: f.size("in_channels", 3, 1..=1024)?,
            out_channels: f.size("out_channels", 3, 1..=1024)?,
            down_block_types: block_types(f, "down_block_types", "CogVideoXDownBlock3D", blocks)?,
            up_block_types: block_types(f, "up_block_types", "CogVideoXUpBlock3D", blocks)?,
            block_out_channels,
            latent_channels,
            layers_per_block: f.size("layers_per_block", 3, 1..=64)?,
            act_fn: f.word("act_fn", &["silu"])?,
            norm_eps: f.epsilon("norm_eps", 1e-6)?,
            norm_num_groups: f.size("norm_num_groups", 32, 1..=16_384)?,
            temporal_compression_ratio: temporal_ratio(f, blocks)?,
            sample_height: f.size("sample_height", 480, 2..=65_536)?,
            sample_width: f.size("sample_width", 720, 2..=65_536)?,
            scaling_factor: f.number("scaling_factor", 1.152_584_26, 1e-6..=1e6)?,
            shift_factor: optional_number(f, "shift_factor")?,
            latents_mean: per_channel(f, "latents_mean", latent_channels)?,
            latents_std: per_channel(f, "latents_std", latent_channels)?,
            force_upcast: upcast(f)?,
            use_quant_conv: absent(f, "use_quant_conv")?,
            use_post_quant_conv: absent(f, "use_post_quant_conv")?,
            invert_scale_latents: f.flag("invert_scale_latents", false)?,
        };
        let grouped = config.block_out_channels.iter().all(|c| c.is_multiple_of(config.norm_num_groups));
        f.require("norm_num_groups", "a divisor of every `block_out_channels`", grouped)?;
        Ok(config)
    }
}

/// `blocks` times `known`; diffusers' default is four.
fn block_types(f: &Fields, field: &str, known: &str, blocks: usize) -> Result<Vec<String>, ConfigError> {
    let expected = format!("{blocks} times `{known}`");
    let item = |item: &Value| item.as_str().filter(|&name| name == known).map(String::from);
    let types = f.list(field, vec![known.to_string(); 4], &expected, item)?;
    f.require(field, &expected, types.len() == blocks)?;
    Ok(types)
}

/// diffusers calls this a float, so files may say `4.0`.
fn temporal_ratio(f: &Fields, blocks: usize) -> Result<usize, ConfigError> {
    // Time halves at the end of an encoder block, and the last block has no such end.
    let most = 1_u32 << (blocks - 1).min(7);
    let found = f.number("temporal_compression_ratio", 4.0, 1.0..=128.0)?;
    let ratio = (0..8).map(|level| 1_u32 << level).find(|&ratio| f64::from(ratio).total_cmp(&found).is_eq());
    let ratio = ratio.filter(|&ratio| ratio <= most).and_then(|ratio| usize::try_from(ratio).ok());
    ratio.ok_or_else(|| f.wrong("temporal_compression_ratio", format!("a power of two of at most {most}")))
}

fn optional_number(f: &Fields, field: &str) -> Result<Option<f64>, ConfigError> {
    f.value(field).map(|_| f.number(field, 0.0, -1e6..=1e6)).transpose()
}

fn per_channel(f: &Fields, field: &str, channels: usize) -> Result<Option<Vec<f64>>, ConfigError> {
    if f.value(field).is_none() {
        return Ok(None);
    }
    let expected = format!("{channels} numbers");
    let item = |item: &Value| item.as_f64().filter(|n| n.abs() <= 1e6);
    let list = f.list(field, Vec::new(), &expected, item)?;
    f.require(field, &expected, list.len() == channels)?;
    Ok(Some(list))
}

/// diffusers calls this flag a float.
fn upcast(f: &Fields) -> Result<bool, ConfigError> {
    match f.value("force_upcast").and_then(Value::as_f64) {
        Some(number) => Ok(number.abs() > 0.0),
        None => f.flag("force_upcast", true),
    }
}

/// diffusers builds these convolutions with the wrong number of channels, and no published model has them.
fn absent(f: &Fields, field: &str) -> Result<bool, ConfigError> {
    let flag = f.flag(field, false)?;
    f.require(field, "`false`", !flag)?;
    Ok(false)
}
