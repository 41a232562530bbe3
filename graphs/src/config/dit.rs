//! `CogVideoXTransformer3DModel`, the denoiser.

use std::path::Path;

use serde::Serialize;
use serde_json::Value;

use super::fields::{ConfigError, Fields};

/// The configuration of diffusers' `CogVideoXTransformer3DModel`, with its defaults.
///
/// Source: `diffusers/models/transformers/cogvideox_transformer_3d.py`. Dropout is not kept, because inference has
/// none. Serializes to JSON that [`DitConfig::from_value`] reads back.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "_class_name", rename = "CogVideoXTransformer3DModel")]
#[expect(clippy::struct_excessive_bools, reason = "the fields of the file")]
pub struct DitConfig {
    /// Attention heads.
    pub num_attention_heads: usize,
    /// Width of one head.
    pub attention_head_dim: usize,
    /// Channels of the latent video, the image condition's included.
    pub in_channels: usize,
    /// Channels of the prediction.
    pub out_channels: usize,
    /// Cosine before sine in the timestep embedding.
    pub flip_sin_to_cos: bool,
    /// Shift of the timestep frequencies, 0 or 1.
    pub freq_shift: usize,
    /// Width of the timestep embedding.
    pub time_embed_dim: usize,
    /// Width of the "ofs" embedding, which only `CogVideoX1.5-5B-I2V` has.
    pub ofs_embed_dim: Option<usize>,
    /// Width of the text encoder's output.
    pub text_embed_dim: usize,
    /// Expert blocks.
    pub num_layers: usize,
    /// Biases on the attention's query, key and value projections.
    pub attention_bias: bool,
    /// Default width in latent pixels.
    pub sample_width: usize,
    /// Default height in latent pixels.
    pub sample_height: usize,
    /// Default number of video frames: `(latent frames - 1) * temporal_compression_ratio + 1`.
    pub sample_frames: usize,
    /// Latent pixels along each side of a patch.
    pub patch_size: usize,
    /// Latent frames of a patch; none in CogVideoX 1.0, whose patches are flat.
    pub patch_size_t: Option<usize>,
    /// Video frames per latent frame.
    pub temporal_compression_ratio: usize,
    /// Text tokens.
    pub max_text_seq_length: usize,
    /// Always `gelu-approximate`.
    pub activation_fn: String,
    /// Always `silu`.
    pub timestep_activation_fn: String,
    /// Scale and shift in the layer norms.
    pub norm_elementwise_affine: bool,
    /// Epsilon of the layer norms.
    pub norm_eps: f32,
    /// Divisor of spatial positions in sine embeddings.
    pub spatial_interpolation_scale: f64,
    /// Divisor of temporal positions in sine embeddings.
    pub temporal_interpolation_scale: f64,
    /// Rotary positions in attention instead of an added embedding.
    pub use_rotary_positional_embeddings: bool,
    /// An added embedding read from the checkpoint, besides the rotary positions.
    pub use_learned_positional_embeddings: bool,
    /// Bias on the patch projection.
    pub patch_bias: bool,
}

impl DitConfig {
    /// Reads `transformer/config.json`.
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

    /// Patches `[frames, rows, columns]` of a video of the sample size, for models whose patches take one frame.
    #[must_use]
    pub fn sample_grid(&self) -> [usize; 3] {
        let frames = (self.sample_frames - 1) / self.temporal_compression_ratio + 1;
        [frames, self.sample_height / self.patch_size, self.sample_width / self.patch_size]
    }

    /// Width of the residual stream: all heads together.
    #[must_use]
    pub const fn width(&self) -> usize {
        self.num_attention_heads * self.attention_head_dim
    }

    fn from_fields(f: &Fields) -> Result<Self, ConfigError> {
        f.is_class("CogVideoXTransformer3DModel")?;
        let width = 1..=65_536;
        let config = Self {
            num_attention_heads: f.size("num_attention_heads", 30, 1..=4096)?,
            attention_head_dim: f.size("attention_head_dim", 64, 1..=4096)?,
            in_channels: f.size("in_channels", 16, 1..=4096)?,
            out_channels: f.size("out_channels", 16, 1..=4096)?,
            flip_sin_to_cos: f.flag("flip_sin_to_cos", true)?,
            freq_shift: f.size("freq_shift", 0, 0..=1)?,
            time_embed_dim: f.size("time_embed_dim", 512, width.clone())?,
            ofs_embed_dim: f.optional_size("ofs_embed_dim", 0..=65_536)?.filter(|&dim| dim > 0),
            text_embed_dim: f.size("text_embed_dim", 4096, width)?,
            num_layers: f.size("num_layers", 30, 1..=512)?,
            attention_bias: f.flag("attention_bias", true)?,
            sample_width: f.size("sample_width", 90, 1..=8192)?,
            sample_height: f.size("sample_height", 60, 1..=8192)?,
            sample_frames: f.size("sample_frames", 49, 1..=65_536)?,
            patch_size: f.size("patch_size", 2, 1..=16)?,
            patch_size_t: f.optional_size("patch_size_t", 1..=16)?,
            temporal_compression_ratio: f.size("temporal_compression_ratio", 4, 1..=64)?,
            max_text_seq_length: f.size("max_text_seq_length", 226, 1..=65_536)?,
            activation_fn: f.word("activation_fn", &["gelu-approximate"])?,
            timestep_activation_fn: f.word("timestep_activation_fn", &["silu"])?,
            norm_elementwise_affine: f.flag("norm_elementwise_affine", true)?,
            norm_eps: f.epsilon("norm_eps", 1e-5)?,
            spatial_interpolation_scale: f.number("spatial_interpolation_scale", 1.875, 1e-3..=1e3)?,
            temporal_interpolation_scale: f.number("temporal_interpolation_scale", 1.0, 1e-3..=1e3)?,
            use_rotary_positional_embeddings: f.flag("use_rotary_positional_embeddings", false)?,
            use_learned_positional_embeddings: f.flag("use_learned_positional_embeddings", false)?,
            patch_bias: f.flag("patch_bias", true)?,
        };
        config.check(f)?;
        Ok(config)
    }

    /// Checks what no single field can show.
    fn check(&self, f: &Fields) -> Result<(), ConfigError> {
        f.require("num_attention_heads", "heads times `attention_head_dim` of at most 65536", self.width() <= 65_536)?;
        let even = |dim: usize| dim.is_multiple_of(2) && dim > 2;
        f.require("attention_head_dim", "an even width of more than 2", even(self.width()))?;
        f.require("ofs_embed_dim", "an even number of more than 2", self.ofs_embed_dim.is_none_or(even))?;
        let ratio = self.temporal_compression_ratio.is_power_of_two();
        f.require("temporal_compression_ratio", "a power of two", ratio)?;
        f.require("sample_width", "at least one patch", self.sample_width >= self.patch_size)?;
        f.require("sample_height", "at least one patch", self.sample_height >= self.patch_size)?;
        if self.use_rotary_positional_embeddings {
            // A quarter of the channels rotates with time, three eighths with each of height and width.
            let split = self.attention_head_dim.is_multiple_of(16);
            return f.require("attention_head_dim", "a multiple of 16 for rotary positions", split);
        }
        let neither = "`false` without rotary positions: no published model is like that";
        f.require("use_learned_positional_embeddings", neither, !self.use_learned_positional_embeddings)?;
        let split = self.width().is_multiple_of(16);
        f.require("attention_head_dim", "heads times width a multiple of 16 for sine positions", split)
    }
}
