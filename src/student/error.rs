//! Why no student was made.

use std::io;
use std::path::{Path, PathBuf};

use cogvx_graphs::config::ConfigError;
use cogvx_graphs::source::SourceError;
use cogvx_graphs::weights::WeightsError;
use cogvx_graphs::{BuildError, DType};

use super::shape::Shape;
use crate::bundle::BundleError;
use crate::export::ExportError;
use crate::pipeline::PipelineError;
use crate::runtime::RuntimeError;
use crate::scheduler::SchedulerError;
use crate::synth::SynthError;

/// Why no student was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum StudentError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Place(#[from] BundleError),
    #[error(transparent)]
    Export(Box<ExportError>),
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
    #[error("the sizes of a student: {0}")]
    Sizes(#[from] SynthError),
    #[error(
        "`{}`: expected a checkpoint, found {found}: make the student of the checkpoint that it was exported from",
        folder.display()
    )]
    Bundle { folder: PathBuf, found: &'static str },
    #[error("`{tensor}`: expected floating-point numbers, found {found} (`{}`)", file.display())]
    NotFloat { tensor: String, found: DType, file: PathBuf },
    #[error("`{}`: expected nothing there, found something: choose another output", output.display())]
    Exists { output: PathBuf },
    #[error("`--{option}`: expected {expected}, found {found}")]
    Size { option: &'static str, expected: String, found: usize },
    #[error("`--layer-map`: expected ascending layers of 0 to {last}, each at most once, found `{found}`")]
    LayerMap { last: usize, found: String },
    #[error(
        "expected a student smaller than its teacher, found the teacher's own {} layers, {} heads, feed-forwards of {} and time \
         embedding of {}: give `--layers`, `--layer-map`, `--heads`, `--ffn`, `--time-embed` or `--target-params`",
        .0.layers, .0.heads, .0.ffn, .0.time_embed
    )]
    Same(Shape),
    #[error("`--time-embed`: expected the teacher's {0}, which its offset embedding needs, found {1}")]
    Offset(usize, usize),
    #[error("`--target-params`: expected up to the teacher's {most}, found {found}")]
    Target { most: u64, found: u64 },
    #[error("{what}: the least squares have no solution: the model gave NaN, infinity or nothing but zeros")]
    Numbers { what: &'static str },
    #[error("`{}`: {problem}", path.display())]
    Recording { path: PathBuf, problem: String },
    #[error("expected prompts to run the teacher on, found none")]
    NoRuns,
    #[error("stopped")]
    Stopped,
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
}

impl StudentError {
    /// An I/O error at `path`, for `map_err`.
    pub(super) fn io(path: &Path) -> impl Fn(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path: path.clone(), source }
    }
}

impl From<ExportError> for StudentError {
    fn from(error: ExportError) -> Self {
        Self::Export(Box::new(error))
    }
}
