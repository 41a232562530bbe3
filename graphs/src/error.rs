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

/// Most problems shown: the wrong configuration makes thousands.
const SHOWN: usize = 20;

impl BuildError {
    /// Whether the weights are an adapter's rather than the model's.
    fn is_lora(&self) -> bool {
        self.problems.iter().any(|p| matches!(p, Problem::Unexpected { name, .. } if name.contains("lora_")))
    }
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.problems.len();
        let s = if n == 1 { "" } else { "s" };
        write!(f, "{n} problem{s} building `{}` from {}", self.component, self.folder.display())?;
        if self.is_lora() {
            write!(f, ", which has a LoRA: merge it into the whole model first")?;
        }
        self.problems.iter().take(SHOWN).try_for_each(|problem| write!(f, "\n  {problem}"))?;
        if n > SHOWN { write!(f, "\n  … and {} more", n - SHOWN) } else { Ok(()) }
    }
}

impl std::error::Error for BuildError {}
