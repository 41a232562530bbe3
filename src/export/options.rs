//! What can be chosen about an export.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use cogvx_calibration::histogram::Clip;
use cogvx_calibration::plan::Scheme;
use cogvx_calibration::probe::Probe;
use cogvx_graphs::config::VaeConfig;
use cogvx_graphs::model::vae::Part;
use cogvx_graphs::pass::Target;
use cogvx_graphs::{DType, Weights};

use super::{ExportError, Lora};
use crate::bundle::WeightsMode;

/// The choices of an export.
#[derive(Debug, Clone)]
pub struct ExportOptions {
    /// Weights are stored in at most this precision, and GPUs compute in it; the checkpoint's own if absent.
    pub precision: Option<DType>,
    /// How the linear layers of the text encoder and the transformer are quantized, if at all.
    pub quantize: Option<Scheme>,
    /// Whether the convolutions of the VAE's decoder are quantized, too, whatever the scheme; without one nothing is.
    pub quantize_vae: bool,
    /// Which of the layers that can be quantized are.
    pub layers: LayerChoice,
    /// The table that `cogvx calibrate` made of the checkpoint, for quantization and for what `float16` does not hold.
    pub calibration: Option<PathBuf>,
    /// What features are cut off by, where they have one scale.
    pub observer: Clip,
    /// Make the graphs tell what their linear layers read, with so many rows of each, for calibration.
    pub observe: Option<usize>,
    /// Make the transformer's graph tell the queries and keys of these blocks.
    pub attend: Vec<usize>,
    /// Make the transformer's graph tell values, or leave blocks out of it, to see what they are worth.
    pub probe: Option<Probe>,
    /// Export so many of the first blocks of the text encoder and the transformer, as a model of its own for videos of any size: to
    /// measure what layers take.
    pub first_blocks: Option<NonZeroUsize>,
    /// Where quantizing pays, as it was measured: what the manifest keeps.
    pub verdict: Option<serde_json::Value>,
    /// Whether numbers that calibration saw overflow `float16`, where nothing can be done, are let through.
    pub allow_overflow: bool,
    /// The runtime the graphs are written for.
    pub target: Target,
    /// Whether weights are linked or copied.
    pub weights: WeightsMode,
    /// LoRAs to merge into the transformer; what several add, adds up.
    pub loras: Vec<Lora>,
    /// Sizes to fix the graphs to.
    pub shapes: Option<VideoShape>,
    /// What to export.
    pub components: Vec<Component>,
    /// Whether a bundle already there is replaced.
    pub overwrite: bool,
    /// Set from another thread, ends the export.
    pub stop: Arc<AtomicBool>,
}

/// Layers named by parts of `<component>/<weight>`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LayerChoice {
    /// All.
    #[default]
    All,
    /// Those whose names have one of these parts.
    Only(Vec<String>),
    /// Those whose names have none of these parts.
    AllBut(Vec<String>),
}

impl LayerChoice {
    /// Whether the layer `<component>/<weight>` is chosen.
    #[must_use]
    pub fn has(&self, layer: &str) -> bool {
        let named = |parts: &[String]| parts.iter().any(|part| layer.contains(part.as_str()));
        match self {
            Self::All => true,
            Self::Only(parts) => named(parts),
            Self::AllBut(parts) => !named(parts),
        }
    }
}

impl Default for ExportOptions {
    fn default() -> Self {
        Self {
            precision: None,
            quantize: None,
            quantize_vae: false,
            layers: LayerChoice::default(),
            calibration: None,
            observer: Clip::default(),
            observe: None,
            attend: vec![],
            probe: None,
            first_blocks: None,
            verdict: None,
            allow_overflow: false,
            target: Target::Cpu,
            weights: WeightsMode::Auto,
            loras: vec![],
            shapes: None,
            components: Component::ALL.to_vec(),
            overwrite: false,
            stop: Arc::default(),
        }
    }
}

impl ExportOptions {
    /// The target's name on the command line and in manifests.
    pub(crate) fn target_name(&self) -> &'static str {
        target_name(self.target)
    }

    /// Whether the target has kernels for the scheme, the scheme its table, and the table its use.
    pub(super) fn check_scheme(&self) -> Result<(), ExportError> {
        if self.quantize_vae && self.target != Target::Cpu {
            return Err(ExportError::VaeTarget { target: target_name(self.target) });
        }
        if self.quantize_vae && self.calibration.is_none() {
            return Err(ExportError::NoVaeTable);
        }
        let Some(scheme) = self.quantize else {
            let used = self.calibration.is_none() || self.target != Target::Cpu;
            return if used { Ok(()) } else { Err(ExportError::UnusedTable) };
        };
        let (target, name) = (target_name(self.target), scheme.name());
        if !scheme.runs_on(self.target) {
            let instead = if self.target == Target::TensorRt { Scheme::Int8Static } else { Scheme::Int8Weight };
            return Err(ExportError::Scheme { scheme: name, target, instead: instead.name() });
        }
        if scheme.needs_table() && self.calibration.is_none() {
            return Err(ExportError::NoTable { scheme: name });
        }
        Ok(())
    }

    /// The arithmetic of a component. ONNX Runtime's CPU kernels are `float32`: 16 bits are a way to store weights there.
    pub(crate) fn compute(&self, weights: &Weights) -> DType {
        if self.target == Target::Cpu {
            return DType::F32;
        }
        let bytes_of = |dtype| weights.iter().filter(|t| t.dtype == dtype).map(|t| t.len).sum::<u64>();
        let own = [DType::F32, DType::F16, DType::BF16].into_iter().max_by_key(|&dtype| bytes_of(dtype));
        self.precision.or(own).unwrap_or(DType::F32)
    }
}

/// The precision with the fewest bits of mantissa.
pub(super) fn coarsest(precisions: [DType; 3]) -> DType {
    [DType::BF16, DType::F16].into_iter().find(|p| precisions.contains(p)).unwrap_or(DType::F32)
}

/// The name of a precision on the command line and in manifests.
pub(super) fn precision_name(dtype: DType) -> &'static str {
    match dtype {
        DType::F16 => "fp16",
        DType::BF16 => "bf16",
        _ => "fp32",
    }
}

/// The name of a target on the command line and in manifests.
pub(super) fn target_name(target: Target) -> &'static str {
    match target {
        Target::Cpu => "cpu",
        Target::Cuda => "cuda",
        Target::TensorRt => "tensorrt",
    }
}

/// The graph of a text encoder or transformer, in operators that ONNX Runtime has.
pub(crate) const MODEL: &str = "model.onnx";
/// The same for processors, in operators that cogvx has kernels for where it has them.
pub(crate) const KERNELS: &str = "kernels.onnx";

/// A part of the pipeline that becomes graphs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Component {
    /// The T5 encoder.
    TextEncoder,
    /// The diffusion transformer.
    Transformer,
    /// The VAE's decoder.
    VaeDecoder,
    /// The VAE's encoder, for images and videos to start from.
    VaeEncoder,
}

impl Component {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::TextEncoder, Self::Transformer, Self::VaeDecoder, Self::VaeEncoder];

    /// Folder in the bundle.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::Transformer => "transformer",
            Self::VaeDecoder => "vae_decoder",
            Self::VaeEncoder => "vae_encoder",
        }
    }

    /// Folder in the checkpoint.
    #[must_use]
    pub fn checkpoint_folder(self) -> &'static str {
        if self.is_vae() { "vae" } else { self.name() }
    }

    fn is_vae(self) -> bool {
        matches!(self, Self::VaeDecoder | Self::VaeEncoder)
    }

    /// Weight files are called so: transformers' name or diffusers'.
    pub(crate) fn stem(self) -> &'static str {
        if self == Self::TextEncoder { "model" } else { "diffusion_pytorch_model" }
    }

    /// File names of the graphs, and which part of the video each is for.
    pub(super) fn graphs(self) -> &'static [(&'static str, Part)] {
        if self.is_vae() { &[("first.onnx", Part::First), ("next.onnx", Part::Next)] } else { &[(MODEL, Part::First)] }
    }
}

/// Frames, height and width of a video in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VideoShape {
    /// Frames.
    pub frames: usize,
    /// Rows.
    pub height: usize,
    /// Columns.
    pub width: usize,
}

impl VideoShape {
    /// Latent frames, rows and columns.
    pub(super) fn latents(self, vae: &VaeConfig, patch: usize) -> Result<[usize; 3], ExportError> {
        let (time, space) = (vae.temporal_compression_ratio, vae.spatial_compression_ratio());
        let wrong = |axis, expected, found: usize| Err(ExportError::Shape { axis, expected, found: found.to_string() });
        if self.frames == 0 || !(self.frames - 1).is_multiple_of(time) || self.frames > 65_536 {
            return wrong("frames", format!("{time}N + 1, at most 65536"), self.frames);
        }
        let unit = space * patch;
        for (axis, found) in [("height", self.height), ("width", self.width)] {
            if found == 0 || !found.is_multiple_of(unit) || found > 65_536 {
                return wrong(axis, format!("a multiple of {unit}, at most 65536"), found);
            }
        }
        Ok([(self.frames - 1) / time + 1, self.height / space, self.width / space])
    }
}
