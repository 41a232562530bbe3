//! What to make: the configurations of a published model or of a checkpoint on disk.

use std::fs;
use std::path::{Path, PathBuf};

use cogvx_graphs::config::{DitConfig, PipelineIndex, T5Config, VaeConfig};
use cogvx_graphs::{DType, Weights};
use serde_json::Value;

use super::needs::{self, Need};
use super::{Model, Part, SynthError};
use crate::scheduler::SchedulerConfig;

/// Bytes of a weight file that transformers and diffusers do not exceed.
const SHARD: u64 = 5_000_000_000;
/// The same where `CogVideoX-5b` was saved.
const LARGE_SHARD: u64 = 10_000_000_000;

/// The configurations, with their fields as they will be written.
pub(crate) struct Recipe {
    pub index: Value,
    pub scheduler: Value,
    configs: [Value; 3],
    dtypes: [DType; 3],
    /// Largest weight file of each part.
    pub limits: [u64; 3],
    /// Where a tokenizer may be.
    pub tokenizer: Option<PathBuf>,
}

impl Recipe {
    /// Of `model`, with `layers` blocks in transformer and text encoder instead of its own.
    pub fn new(model: &Model, layers: Option<usize>) -> Result<Self, SynthError> {
        let mut recipe = match model {
            Model::Published(model) => Self {
                index: model.index(),
                scheduler: model.scheduler(),
                configs: [model.text_encoder(), model.transformer(), model.vae()],
                dtypes: [model.dtype(); 3],
                limits: [SHARD, if model.name() == "5b" { LARGE_SHARD } else { SHARD }, LARGE_SHARD],
                tokenizer: None,
            },
            Model::Like(checkpoint) => Self::like(checkpoint)?,
        };
        if let Some(layers) = layers {
            recipe.configs[Part::TextEncoder as usize]["num_layers"] = layers.into();
            recipe.configs[Part::Transformer as usize]["num_layers"] = layers.into();
        }
        Ok(recipe)
    }

    fn like(checkpoint: &Path) -> Result<Self, SynthError> {
        let index = checkpoint.join("model_index.json");
        PipelineIndex::from_json(&index)?;
        let scheduler = checkpoint.join("scheduler/scheduler_config.json");
        SchedulerConfig::open(&scheduler)?;
        let files = Part::ALL.map(|part| checkpoint.join(part.folder()).join("config.json"));
        // Each is a file of bounded size with sound fields, then.
        T5Config::from_json(&files[0])?;
        DitConfig::from_json(&files[1])?;
        VaeConfig::from_json(&files[2])?;
        let [text, transformer, vae] = files;
        let configs = [read_json(&text)?, read_json(&transformer)?, read_json(&vae)?];
        let dtypes = Part::ALL.map(|part| stored(checkpoint, part).unwrap_or_else(|| declared(&configs[0])));
        Ok(Self {
            index: read_json(&index)?,
            scheduler: read_json(&scheduler)?,
            configs,
            dtypes,
            limits: [SHARD, SHARD, LARGE_SHARD],
            tokenizer: Some(checkpoint.join("tokenizer")),
        })
    }

    /// Take the configuration in the file at `path`, which tells itself what it configures.
    pub fn replace(&mut self, path: &Path) -> Result<(), SynthError> {
        // Each of these reads a file of bounded size, and finds it sound or not.
        let config = DitConfig::from_json(path).map(|_| Part::Transformer);
        let config = config.or_else(|e| VaeConfig::from_json(path).map(|_| Part::Vae).map_err(|_| e));
        let part = config.or_else(|e| T5Config::from_json(path).map(|_| Part::TextEncoder).map_err(|_| e))?;
        self.configs[part as usize] = read_json(path)?;
        Ok(())
    }

    /// `config.json` of `part`.
    pub fn config(&self, part: Part) -> &Value {
        &self.configs[part as usize]
    }

    /// The type of the tensors of `part`.
    pub fn dtype(&self, part: Part) -> DType {
        self.dtypes[part as usize]
    }

    /// The tensors of `part`.
    pub fn needs(&self, part: Part) -> Result<Vec<Need>, SynthError> {
        let file = Path::new(part.folder()).join("config.json");
        let config = self.config(part).clone();
        match part {
            Part::TextEncoder => needs::text_encoder(&T5Config::from_value(&file, config)?),
            Part::Transformer => needs::transformer(&DitConfig::from_value(&file, config)?, &needs::nothing()),
            Part::Vae => needs::vae(&VaeConfig::from_value(&file, config)?),
        }
    }
}

/// The type of the first floating-point tensor, where the checkpoint has weights at all.
fn stored(checkpoint: &Path, part: Part) -> Option<DType> {
    let weights = Weights::open(&checkpoint.join(part.folder()), part.stem()).ok()?;
    weights.iter().map(|tensor| tensor.dtype).find(|dtype| dtype.is_float())
}

/// The type the text encoder's configuration names; diffusers' configurations name none.
fn declared(config: &Value) -> DType {
    let name = config.get("dtype").or_else(|| config.get("torch_dtype"));
    match name.and_then(Value::as_str) {
        Some("float32") => DType::F32,
        Some("bfloat16") => DType::BF16,
        _ => DType::F16,
    }
}

fn read_json(path: &Path) -> Result<Value, SynthError> {
    let bytes = fs::read(path).map_err(|source| SynthError::Io { path: path.into(), source })?;
    serde_json::from_slice(&bytes).map_err(|e| SynthError::Io { path: path.into(), source: e.into() })
}
