//! What can be wrong with a LoRA.

use std::fmt;
use std::path::{Path, PathBuf};

use cogvx_graphs::DType;
use cogvx_graphs::weights::WeightsError;

/// Why a LoRA was not merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum LoraError {
    #[error(transparent)]
    Weights(#[from] WeightsError),
    #[error("`--lora`: expected `transformer` among the components to export, found it left out")]
    NoTransformer,
    #[error("`{}`: expected a finite scale, found {found}", file.display())]
    Scale { file: PathBuf, found: f64 },
    #[error("`{}`: expected the tensors of a LoRA, found none", file.display())]
    Empty { file: PathBuf },
    #[error("`{}`: `__metadata__` `lora_adapter_metadata`: {message}", file.display())]
    Metadata { file: PathBuf, message: String },
    #[error("tensor `{tensor}`: expected finite numbers, found {found} (`{}`)", file.display())]
    NotFinite { tensor: String, found: f32, file: PathBuf },
    /// Everything that does not fit.
    #[error("{}", unfit(file, problems))]
    Unfit { file: PathBuf, problems: Vec<LoraProblem> },
}

/// One thing wrong with a LoRA.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum LoraProblem {
    /// Tensors of a kind that is not read, the first by name.
    #[error("`{key}`: {expected}{}", others(*more))]
    Key { key: String, expected: &'static str, more: usize },
    #[error("`{module}`: expected `{half}` once, found two layouts of it")]
    Twice { module: String, half: &'static str },
    #[error("`{module}`: expected `lora_A` and `lora_B`, found only `{found}`")]
    Half { module: String, found: &'static str },
    #[error("`{module}`: expected a module of the transformer, found none of that name")]
    Unknown { module: String },
    #[error("`{module}`: expected a module whose weight is a matrix, found {found:?}")]
    NotAMatrix { module: String, found: Vec<usize> },
    #[error("`{tensor}`: expected {expected:?}, found {found:?}")]
    Shape { tensor: String, expected: Vec<usize>, found: Vec<usize> },
    #[error("`{tensor}`: expected floating-point numbers, found {found}")]
    NotFloat { tensor: String, found: DType },
    #[error("`{module}`: expected rank {expected} as in `lora_adapter_metadata`, found {found}")]
    Rank { module: String, expected: usize, found: usize },
    #[error("`{module}`: expected one value in `{field}`, found patterns that disagree")]
    Ambiguous { module: String, field: &'static str },
}

/// Most problems shown: the LoRA of another model makes hundreds.
const SHOWN: usize = 20;

fn unfit(file: &Path, problems: &[LoraProblem]) -> String {
    use fmt::Write as _;
    let n = problems.len();
    let s = if n == 1 { "" } else { "s" };
    let mut text = format!("{n} problem{s} merging the LoRA `{}`", file.display());
    for problem in problems.iter().take(SHOWN) {
        let _ = write!(text, "\n  {problem}");
    }
    if n > SHOWN {
        let _ = write!(text, "\n  … and {} more", n - SHOWN);
    }
    text
}

fn others(more: usize) -> String {
    if more == 0 { String::new() } else { format!(" (and {more} more like it)") }
}
