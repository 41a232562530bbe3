//! Why a checkpoint was not exported.

use std::path::PathBuf;

use cogvx_calibration::table::TableError;
use cogvx_graphs::config::ConfigError;
use cogvx_graphs::source::SourceError;
use cogvx_graphs::weights::WeightsError;
use cogvx_graphs::{BuildError, Problem};

use super::LoraError;
use crate::bundle::BundleError;
use crate::calibrate::FingerprintError;
use crate::scheduler::SchedulerError;
use crate::tokenizer::TokenizerError;

/// Why a checkpoint was not exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ExportError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    #[error(transparent)]
    Lora(#[from] LoraError),
    #[error(transparent)]
    Table(#[from] TableError),
    #[error(transparent)]
    Fingerprint(#[from] FingerprintError),
    /// A model of the family that cogvx cannot export yet.
    #[error("`{}`: not supported yet: {feature}", file.display())]
    Unsupported { file: PathBuf, feature: &'static str },
    /// Parts that do not belong together.
    #[error("`{}`: expected `{field}` of {expected} as in {with}, found {found}", file.display())]
    Mismatch { file: PathBuf, field: &'static str, expected: usize, with: &'static str, found: usize },
    /// Sizes the model cannot have.
    #[error("`--shapes`: expected {axis} of {expected}, found {found}")]
    Shape { axis: &'static str, expected: String, found: String },
    /// A scheme the target has no kernels for.
    #[error(
        "`--quantize`: expected a scheme that `--target {target}` has kernels for, such as `{instead}`, found `{scheme}`"
    )]
    Scheme { scheme: &'static str, target: &'static str, instead: &'static str },
    /// A scheme with scales of features, which only calibration tells.
    #[error(
        "`--quantize {scheme}`: expected `--calibration TABLE`, found none: make one with `cogvx calibrate`, or quantize to `int8-weight`"
    )]
    NoTable { scheme: &'static str },
    /// A table that nothing would be done with.
    #[error(
        "`--calibration`: expected `--quantize`, or a `--target` that computes in fp16, found neither: the table would not be used"
    )]
    UnusedTable,
    /// Numbers handed from run to run that `float16` does not hold.
    #[error(
        "`{}`: `{value}` reached {magnitude:e}, but fp16 ends at 65504: export with `--precision bf16`, or `fp32`, or force it with `--allow-overflow`", table.display()
    )]
    Overflow { table: PathBuf, value: String, magnitude: f32 },
    /// A weight that `float16` does not hold.
    #[error("`{}`: `{tensor}`: expected numbers that fp16 holds, at most 65504, found larger ones: export with `--precision bf16`, or `fp32`", file.display())]
    WeightRange { file: PathBuf, tensor: String },
    /// GPUs have no fast kernels for the VAE in eight bits.
    #[error(
        "`--quantize-vae`: expected `--target cpu`, found `{target}`, for which no eight-bit 3D convolution is known to be fast: \
         leave it out, and `--precision fp16` has the VAE in 16 bits"
    )]
    VaeTarget { target: &'static str },
    /// The VAE's scales are those of a table.
    #[error("`--quantize-vae`: expected `--calibration TABLE`, found none: make one with `cogvx calibrate --vae`")]
    NoVaeTable,
    /// A defect of cogvx: a pass made a graph that does not fit together.
    #[error("cannot lower `{graph}`: {problem}")]
    Lower { graph: String, problem: Problem },
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}
