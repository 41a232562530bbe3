use std::path::{Path, PathBuf};

use crate::bundle::BundleError;

/// Why an engine is not had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum EnginesError {
    #[error("no folder for engines: set `HOME`, or name one with `--cache`")]
    NoFolder,
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("`--hardware-compatible`: expected a GPU of compute capability 8.0 or newer, found {0}")]
    Architecture(String),
    #[error("`--weight-stripped`, `--hardware-compatible`: expected TensorRT, found TensorRT-RTX, which takes neither")]
    Form,
    /// The builder failed; what it had written is gone.
    #[error("{0}")]
    Build(String),
    #[error("`{}`: expected an engine, found that the builder wrote none", .0.display())]
    Nothing(PathBuf),
    #[error("interrupted")]
    Interrupted,
}

impl EnginesError {
    /// What makes an I/O error at `path` one of these.
    pub(super) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
