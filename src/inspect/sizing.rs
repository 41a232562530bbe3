//! How large a model is in each precision, and which GPUs hold it.

use cogvx_calibration::plan::Scheme;
use cogvx_graphs::DType;
use cogvx_graphs::pass::Target;
use serde::Serialize;

use crate::blueprint::{Blueprint, Form};
use crate::pipeline::Stage::{self, Decode, Denoise, Text};
use crate::plan::{Plan, PlanError, Weights, Wish};
use crate::runtime::{CpuOptions, Kernels};

/// Memory of GPUs that are sold, in GiB.
const GPUS: [u64; 10] = [8, 12, 16, 24, 32, 40, 48, 80, 96, 141];
/// Of a GPU's memory, what its driver and libraries leave; an estimate.
const LEFT: f64 = 0.92;

/// What a model takes in one precision.
#[derive(Clone, Debug, Serialize)]
pub struct Sizing {
    /// `fp32`, `fp16`, `bf16`, `int8-weight`, `int4-weight`.
    pub precision: &'static str,
    /// Bytes of weights: of the text encoder, the transformer, the VAE's decoder.
    pub weights: [u64; 3],
    /// The most bytes of a stage on a GPU, with its weights, predicted.
    pub peak: u64,
    /// The same with guidance one after the other and the VAE in tiles.
    pub least: u64,
}

/// What a model takes in each precision. A bundle has one.
///
/// # Errors
/// A size that cannot be.
pub fn sizings(blueprint: Blueprint, size: [Option<usize>; 3]) -> Result<Vec<Sizing>, PlanError> {
    if blueprint.is_bundle() {
        return Ok(vec![]);
    }
    let half = if blueprint.stores(DType::BF16) { (DType::BF16, "bf16") } else { (DType::F16, "fp16") };
    let forms = [
        (DType::F32, None, "fp32"),
        (half.0, None, half.1),
        (half.0, Some(Scheme::Int8Weight), "int8-weight"),
        (half.0, Some(Scheme::Int4Weight), "int4-weight"),
    ];
    let wish = Wish {
        size,
        guided: true,
        sequential_guidance: false,
        vae_tiling: false,
        from_video: false,
        threads: 1,
        cpu: CpuOptions { kernels: Kernels::Plain, ..CpuOptions::default() },
        weights: Weights::Kept,
    };
    let mut blueprint = blueprint.widened();
    let mut sizings = vec![];
    for (dtype, quantize, precision) in forms {
        let form = Form { target: Target::Cuda, precision: Some(dtype), quantize, ..blueprint.form() };
        blueprint = blueprint.in_form(form)?;
        let plan = Plan::of(&blueprint, &wish, None)?;
        let first = plan.stages.iter().map(|stage| stage.ways[0].memory).max().unwrap_or(0);
        let least = plan.stages.iter().map(|stage| stage.ways.iter().map(|way| way.memory).min().unwrap_or(0)).max();
        let weights = |stage: Stage| plan.stages.iter().find(|s| s.stage == stage).map_or(0, |s| s.ways[0].weights);
        let weights = [Text, Denoise, Decode].map(weights);
        sizings.push(Sizing { precision, weights, peak: first, least: least.unwrap_or(0) });
    }
    Ok(sizings)
}

/// The smallest GPU that holds so many bytes, in GiB of its memory.
#[must_use]
#[allow(clippy::cast_precision_loss)] // An estimate.
pub fn gpu(bytes: u64) -> Option<u64> {
    GPUS.into_iter().find(|&gib| bytes as f64 <= LEFT * (gib << 30) as f64)
}
