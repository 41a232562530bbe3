//! What can be wrong with a checkpoint or a model definition.

use std::fmt;
use std::path::PathBuf;

use crate::DType;

/// One thing wrong with a graph or the weights it binds.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)]
pub enum Problem {
    #[error("`{name}`: expected {expected:?}, not in checkpoint")]
    Missing { name: String, expected: Vec<usize> },
    #[error("`{name}`: expected {expected:?}, found {found:?} ({file})")]
    Shape { name: String, expected: Vec<usize>, found: Vec<usize>, file: String },
    #[error("`{name}`: expected floating-point numbers, found {found} ({file})")]
    NotFloat { name: String, found: DType, file: String },
    #[error("`{name}`: in checkpoint, not used by the model ({file})")]
    Unexpected { name: String, file: String },
    #[error("`{place}`: {message}")]
    Type { place: String, message: String },
}

/// Everything that kept a graph from being built.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BuildError {
    /// Component of the checkpoint: `transformer`.
    pub component: String,
    /// Folder its weights came from.
    pub folder: PathBuf,
    /// Each problem.
    pub problems: Vec<Problem>,
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.problems.len();
        let s = if n == 1 { "" } else { "s" };
        write!(f, "{n} problem{s} building `{}` from {}", self.component, self.folder.display())?;
        self.problems.iter().try_for_each(|problem| write!(f, "\n  {problem}"))
    }
}

impl std::error::Error for BuildError {}
