//! The checkpoint that a student is made from.

use std::fs;
use std::path::{Path, PathBuf};

use cogvx_graphs::config::DitConfig;
use cogvx_graphs::model::dit;
use cogvx_graphs::weights::Tensor;
use cogvx_graphs::{DType, Dim, VideoDims, Weights};
use serde_json::Value;

use super::StudentError;
use super::shape::Shape;
use super::time::Linear;
use crate::bundle::Manifest;
use crate::export::convert::decode;
use crate::pipeline::is_bundle;
use crate::scheduler::SchedulerConfig;

/// What weight files of the transformer are called.
pub(super) const STEM: &str = "diffusion_pytorch_model";
/// Bytes of a tensor that are read at a time, or one row.
const BLOCK: usize = 1 << 20;

/// A checkpoint, found to be one that students can be made of.
pub(super) struct Teacher {
    pub folder: PathBuf,
    pub config: DitConfig,
    /// `transformer/config.json` as it is.
    pub json: Value,
    pub weights: Weights,
    pub shape: Shape,
    /// Timesteps it was trained on.
    pub timesteps: usize,
}

impl Teacher {
    pub fn open(folder: &Path) -> Result<Self, StudentError> {
        if is_bundle(folder) {
            let quantized = Manifest::read(folder).is_ok_and(|manifest| manifest.quantization.is_some());
            let found = if quantized { "a quantized bundle" } else { "a bundle" };
            return Err(StudentError::Bundle { folder: folder.into(), found });
        }
        let transformer = folder.join("transformer");
        let file = transformer.join("config.json");
        let config = DitConfig::from_json(&file)?;
        let json = fs::read(&file).map_err(StudentError::io(&file))?;
        let json = serde_json::from_slice(&json).map_err(|e| StudentError::io(&file)(e.into()))?;
        let timesteps = SchedulerConfig::open(&folder.join("scheduler/scheduler_config.json"))?.num_train_timesteps;
        let weights = Weights::open(&transformer, STEM)?;
        if let Some(tensor) = weights.iter().find(|tensor| !tensor.dtype.is_float()) {
            let file = weights.files()[tensor.file].path.clone();
            return Err(StudentError::NotFloat { tensor: tensor.name.clone(), found: tensor.dtype, file });
        }
        // All tensors are there, with their shapes, and no others.
        dit::build(&config, &weights, &VideoDims::dynamic(), &Dim::named("tokens"))?;
        let mut teacher = Self {
            folder: folder.into(),
            shape: Shape {
                layers: config.num_layers,
                heads: config.num_attention_heads,
                ffn: 0,
                time_embed: config.time_embed_dim,
            },
            config,
            json,
            weights,
            timesteps,
        };
        teacher.shape.ffn = (0..teacher.shape.layers).map(|layer| teacher.ffn(layer)).max().unwrap_or(0);
        Ok(teacher)
    }

    /// Width of the feed-forward of a block, which may be its own.
    pub fn ffn(&self, layer: usize) -> usize {
        self.tensor(&format!("transformer_blocks.{layer}.ff.net.2.weight")).shape[1]
    }

    /// A tensor that the graph was found to have.
    pub fn tensor(&self, name: &str) -> &Tensor {
        self.weights.get(name).expect("the graph was built from these weights")
    }

    /// Numbers in all weights.
    pub fn parameters(&self) -> u64 {
        self.weights.iter().map(|tensor| tensor.len / tensor.dtype.size() as u64).sum()
    }

    /// Whole rows of a matrix, a block after the other, with the number of the first one.
    pub fn rows(
        &self,
        tensor: &Tensor,
        mut block: impl FnMut(usize, &[u8]) -> Result<(), StudentError>,
    ) -> Result<(), StudentError> {
        let row = row_bytes(tensor);
        let size = (BLOCK / row.max(1)).max(1) * row;
        let mut bytes = vec![];
        for at in (0..tensor.len).step_by(size.max(1)) {
            let left = usize::try_from(tensor.len - at).unwrap_or(usize::MAX);
            bytes.resize(size.min(left), 0);
            self.weights.read_into(tensor, at, &mut bytes)?;
            block(usize::try_from(at).unwrap_or(usize::MAX) / row, &bytes)?;
        }
        Ok(())
    }

    /// All numbers of a small tensor.
    pub fn numbers(&self, name: &str) -> Result<Vec<f64>, StudentError> {
        let tensor = self.tensor(name);
        let mut numbers = vec![];
        decode(&self.weights.read(tensor)?, tensor.dtype, &mut numbers);
        Ok(numbers.into_iter().map(f64::from).collect())
    }

    /// The linear layer `path`, which must be small.
    pub fn linear(&self, path: &str) -> Result<Linear, StudentError> {
        let weight = format!("{path}.weight");
        let &[rows, columns] = &self.tensor(&weight).shape[..] else { unreachable!("a linear layer") };
        let weight = ndarray::Array2::from_shape_vec((rows, columns), self.numbers(&weight)?);
        let bias = self.numbers(&format!("{path}.bias"))?.into();
        Ok(Linear { weight: weight.expect("as many numbers as the shape has"), bias })
    }

    /// For each column of a weight its mean square, times the energy of what it reads.
    pub fn column_worth(&self, name: &str, energy: Option<&Vec<f64>>) -> Result<Vec<f64>, StudentError> {
        let tensor = self.tensor(name);
        let mut worth = vec![0.0; tensor.shape[1]];
        let mut numbers = vec![];
        self.rows(tensor, |_, bytes| {
            decode(bytes, tensor.dtype, &mut numbers);
            for row in numbers.chunks_exact(worth.len()) {
                worth.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x).powi(2));
            }
            Ok(())
        })?;
        if let Some(energy) = energy {
            worth.iter_mut().zip(energy).for_each(|(worth, energy)| *worth *= energy);
        }
        Ok(worth)
    }
}

/// Bytes of all that stands under one index of the first axis.
pub(super) fn row_bytes(tensor: &Tensor) -> usize {
    tensor.shape.iter().skip(1).product::<usize>() * tensor.dtype.size()
}

/// What a file of this type does to a number.
pub(super) fn rounding(dtype: DType) -> impl Fn(f64) -> f64 {
    #[allow(clippy::cast_possible_truncation)] // Rounded as the file's numbers are.
    move |x| {
        let (mut bytes, mut numbers) = (vec![], vec![]);
        crate::export::convert::encode(&[x as f32], dtype, &mut bytes);
        decode(&bytes, dtype, &mut numbers);
        f64::from(numbers[0])
    }
}
