//! Checkpoints of random weights in the layout of the published ones, for benchmarks, capacity planning and tests.

pub(crate) mod needs;
mod published;
mod recipe;
mod shards;
mod values;

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use cogvx_graphs::config::{ConfigError, DitConfig};
use cogvx_graphs::source::{SourceError, open_regular};
use cogvx_graphs::{BuildError, DType};
use serde_json::Value;

pub use published::Published;
pub(crate) use recipe::Recipe;
use shards::Shards;

use crate::bundle::{BundleError, Place};
use crate::scheduler::SchedulerError;
use crate::tokenizer::{Tokenizer, TokenizerError, minimal_spm};

/// Why no checkpoint was made.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum SynthError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Scheduler(#[from] SchedulerError),
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    #[error(transparent)]
    Place(#[from] BundleError),
    #[error("`{}`: expected nothing there, found something: choose another output", output.display())]
    Exists { output: PathBuf },
    #[error("`{tensor}`: expected at most 2^44 numbers, found {found:?}")]
    Large { tensor: String, found: Vec<usize> },
    #[error("stopped")]
    Stopped,
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Whose configurations a checkpoint has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Model {
    /// A published model's.
    Published(Published),
    /// Those of the checkpoint in this folder, which may lack weights.
    Like(PathBuf),
}

/// A part with weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// The T5 encoder.
    TextEncoder,
    /// The diffusion transformer.
    Transformer,
    /// The VAE.
    Vae,
}

impl Part {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::TextEncoder, Self::Transformer, Self::Vae];

    /// Its folder in a checkpoint.
    #[must_use]
    pub const fn folder(self) -> &'static str {
        match self {
            Self::TextEncoder => "text_encoder",
            Self::Transformer => "transformer",
            Self::Vae => "vae",
        }
    }

    /// What its weight files begin with.
    const fn stem(self) -> &'static str {
        if matches!(self, Self::TextEncoder) { "model" } else { "diffusion_pytorch_model" }
    }
}

/// How to make a checkpoint.
#[derive(Clone, Debug)]
pub struct Options {
    /// Decides all numbers, with the names of the tensors.
    pub seed: u64,
    /// Blocks of the transformer and of the text encoder; the model's own number otherwise.
    pub layers: Option<usize>,
    /// Parts whose weights are written; configurations are always written for all.
    pub parts: Vec<Part>,
    /// The tokenizer to copy. Otherwise the model's, or one that knows ASCII only.
    pub tokenizer: Option<PathBuf>,
    /// Once set, work ends with [`SynthError::Stopped`].
    pub stop: Arc<AtomicBool>,
}

impl Default for Options {
    fn default() -> Self {
        Self { seed: 0, layers: None, parts: Part::ALL.to_vec(), tokenizer: None, stop: Arc::default() }
    }
}

impl Options {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }
}

/// The weights of one part.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PartReport {
    /// Folder in the checkpoint.
    pub folder: &'static str,
    /// Type of its tensors.
    pub dtype: DType,
    /// Numbers in them.
    pub parameters: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
    /// Files.
    pub files: usize,
}

/// What [`synthesize`] would write: each part of `options`, computed from shapes alone.
///
/// # Errors
/// Configurations that are not there or that no graph can be built from.
pub fn plan(model: &Model, options: &Options) -> Result<Vec<PartReport>, SynthError> {
    let recipe = Recipe::new(model, options.layers)?;
    Ok(planned(&recipe, options)?.into_iter().map(|(part, shards)| report(&recipe, part, &shards)).collect())
}

/// Numbers in the weights of a transformer with this configuration.
///
/// # Errors
/// A configuration that no graph can be built from.
pub(crate) fn transformer_parameters(config: &DitConfig) -> Result<u64, SynthError> {
    Ok(needs::transformer(config, &needs::nothing())?.iter().map(|need| need.elements).sum())
}

/// Write a checkpoint of random weights to the new folder `output`, in diffusers' layout.
///
/// Weights `[out, in, ...]` are uniform with a standard deviation of `1 / sqrt(in * ...)`, norms 1, biases and learned
/// positions small. `started` is told each folder before its weights are written. Memory is bounded by a block of 16 MiB.
///
/// # Errors
/// What is wrong with the configurations, the tokenizer or the place for the checkpoint; nothing is left there then.
pub fn synthesize(
    model: &Model,
    output: &Path,
    options: &Options,
    mut started: impl FnMut(&str),
) -> Result<Vec<PartReport>, SynthError> {
    if output.symlink_metadata().is_ok() {
        return Err(SynthError::Exists { output: output.into() });
    }
    let recipe = Recipe::new(model, options.layers)?;
    // Every configuration must be one that exports, whatever weights are asked for.
    let parts = planned(&recipe, options)?;
    let place = Place::new(output)?;
    if let Model::Like(checkpoint) = model {
        place.spares(checkpoint)?;
    }
    let _made = place.make_parents()?;
    let partial = place.partial()?;
    let root = partial.path();
    write_json(&root.join("model_index.json"), &recipe.index)?;
    make_folder(&root.join("scheduler"))?;
    write_json(&root.join("scheduler/scheduler_config.json"), &recipe.scheduler)?;
    write_tokenizer(&root.join("tokenizer"), options.tokenizer.as_deref(), recipe.tokenizer.as_deref())?;
    for part in Part::ALL {
        make_folder(&root.join(part.folder()))?;
        write_json(&root.join(part.folder()).join("config.json"), recipe.config(part))?;
    }
    let mut reports = vec![];
    for (part, shards) in &parts {
        started(part.folder());
        shards.write(&root.join(part.folder()), options)?;
        reports.push(report(&recipe, *part, shards));
    }
    place.put(partial)?;
    Ok(reports)
}

fn planned(recipe: &Recipe, options: &Options) -> Result<Vec<(Part, Shards)>, SynthError> {
    let mut planned = vec![];
    for part in Part::ALL {
        let needs = recipe.needs(part)?;
        if options.parts.contains(&part) {
            planned.push((part, Shards::plan(part.stem(), needs, recipe.dtype(part), recipe.limits[part as usize])));
        }
    }
    Ok(planned)
}

fn report(recipe: &Recipe, part: Part, shards: &Shards) -> PartReport {
    PartReport {
        folder: part.folder(),
        dtype: recipe.dtype(part),
        parameters: shards.parameters(),
        bytes: shards.bytes(),
        files: shards.count(),
    }
}

/// Files of a tokenizer that cogvx or transformers reads.
const TOKENIZER: [&str; 5] =
    ["spiece.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"];

/// Copy the tokenizer `asked` for, or else the model's `own` where it has one, or else make a small one.
fn write_tokenizer(to: &Path, asked: Option<&Path>, own: Option<&Path>) -> Result<(), SynthError> {
    make_folder(to)?;
    let there = |from: &&Path| TOKENIZER[..2].iter().any(|file| from.join(file).exists());
    let Some(from) = asked.or(own.filter(there)) else {
        let path = to.join("spiece.model");
        return fs::write(&path, minimal_spm()).map_err(|source| SynthError::Io { path, source });
    };
    // Reads each file that counts, so all are regular and of bounded size.
    Tokenizer::open(from)?;
    for file in TOKENIZER {
        match open_regular(&from.join(file)) {
            Ok(opened) => {
                let (path, mut bytes) = (to.join(file), vec![]);
                let read = opened.file.take(opened.bytes).read_to_end(&mut bytes);
                read.map_err(|source| SynthError::Io { path: from.join(file), source })?;
                fs::write(&path, bytes).map_err(|source| SynthError::Io { path, source })?;
            }
            Err(SourceError::Missing { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn make_folder(path: &Path) -> Result<(), SynthError> {
    fs::create_dir(path).map_err(|source| SynthError::Io { path: path.into(), source })
}

fn write_json(path: &Path, value: &Value) -> Result<(), SynthError> {
    fs::write(path, format!("{value:#}\n")).map_err(|source| SynthError::Io { path: path.into(), source })
}
