//! LoRAs merged into the transformer's weights: `W + scale * alpha/r * (B A)`, as diffusers' `fuse_lora` computes it.
//!
//! Source: `load_lora_adapter` of diffusers 0.42.1 for what is read, `LoraLayer` of PEFT 0.21.2 for what it adds. Sums are
//! `f32`, and a weight is rounded to the type it is stored in once, after all LoRAs.

mod adapter;
mod error;
mod pairs;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use cogvx_graphs::Weights;
use cogvx_graphs::weights::Tensor;
use ndarray::linalg::general_mat_mul;
use ndarray::{Array2, ArrayViewMut2, Axis, Slice};

use super::convert::decode;
use crate::bundle;
use adapter::Adapter;
pub use error::{LoraError, LoraProblem};
use pairs::{Pair, pairs};

/// A LoRA to merge into the transformer.
#[derive(Debug, Clone, PartialEq)]
pub struct Lora {
    /// A safetensors file as diffusers' `save_lora_weights` writes it.
    pub file: PathBuf,
    /// Factor of what it adds; 1 is as it was trained.
    pub scale: f64,
}

/// What is added to which weights of a component; nothing by default.
#[derive(Debug, Default)]
pub(super) struct Merges {
    /// Each LoRA's file.
    files: Vec<Weights>,
    /// By the name of the weight, in the order of the LoRAs.
    added: BTreeMap<String, Vec<Addend>>,
}

/// `factor * (b @ a)`, which is added to one weight.
#[derive(Debug)]
struct Addend {
    /// Which LoRA's.
    file: usize,
    /// `[r, in]`
    a: Tensor,
    /// `[out, r]`
    b: Tensor,
    rank: usize,
    factor: f64,
}

/// What `b @ a` of rank `rank` for `module` is multiplied by, according to `text`, PEFT's configuration in the metadata of
/// `file`; none where it says nothing of the transformer.
///
/// # Errors
/// It is no such configuration, or one of another rank.
pub fn scaling(text: &str, file: &Path, module: &str, rank: usize) -> Result<Option<f64>, LoraError> {
    let unfit = |problem| LoraError::Unfit { file: file.into(), problems: vec![problem] };
    Adapter::parse(text, file)?.map(|adapter| adapter.scaling(module, rank).map_err(unfit)).transpose()
}

impl Lora {
    /// How the manifest names it.
    pub(super) fn in_manifest(&self) -> bundle::Lora {
        let file = self.file.file_name().unwrap_or(self.file.as_os_str()).to_string_lossy().into_owned();
        bundle::Lora { file, scale: self.scale }
    }
}

impl Merges {
    /// Find what `loras` add to the weights `base`.
    ///
    /// # Errors
    /// All that does not fit in a file, at once.
    pub(super) fn open(loras: &[Lora], base: &Weights) -> Result<Self, LoraError> {
        let mut merges = Self::default();
        for lora in loras {
            let path = &lora.file;
            if !lora.scale.is_finite() {
                return Err(LoraError::Scale { file: path.clone(), found: lora.scale });
            }
            let weights = Weights::open_file(path)?;
            let (pairs, mut problems) = pairs(&weights);
            if pairs.is_empty() && problems.is_empty() {
                return Err(LoraError::Empty { file: path.clone() });
            }
            let adapter = Adapter::read(&weights, path)?;
            for pair in pairs {
                let checked = pair.check(base).and_then(|()| match &adapter {
                    Some(adapter) => adapter.scaling(&pair.module, pair.rank()).map_err(|problem| vec![problem]),
                    // Alpha is then each module's rank.
                    None => Ok(1.0),
                });
                match checked {
                    Ok(scaling) => merges.add(pair, lora.scale * scaling),
                    Err(found) => problems.extend(found),
                }
            }
            if !problems.is_empty() {
                return Err(LoraError::Unfit { file: path.clone(), problems });
            }
            merges.files.push(weights);
        }
        Ok(merges)
    }

    fn add(&mut self, pair: Pair, factor: f64) {
        let (file, rank) = (self.files.len(), pair.rank());
        let addend = Addend { file, a: pair.a, b: pair.b, rank, factor };
        self.added.entry(pair.module + ".weight").or_default().push(addend);
    }

    /// Whether something is added to the weight `name`.
    pub(super) fn touches(&self, name: &str) -> bool {
        self.added.contains_key(name)
    }

    /// What is added to `weight`, in memory; nothing to most.
    ///
    /// # Errors
    /// The file cannot be read, or has numbers that are not finite.
    pub(super) fn of(&self, weight: &Tensor) -> Result<Option<Delta>, LoraError> {
        let Some(addends) = self.added.get(&weight.name) else { return Ok(None) };
        let (rows, columns) = (weight.shape[0], weight.shape.iter().skip(1).product());
        let terms = addends.iter().map(|addend| {
            let weights = &self.files[addend.file];
            #[allow(clippy::cast_possible_truncation)] // Rounded as PyTorch does.
            let factor = addend.factor as f32;
            let a = matrix(weights, &addend.a, [addend.rank, columns])?;
            let b = matrix(weights, &addend.b, [rows, addend.rank])?;
            Ok(Term { a, b, factor })
        });
        Ok(Some(Delta { columns, terms: terms.collect::<Result<_, LoraError>>()? }))
    }
}

/// All numbers of `tensor`, which must be finite, as a matrix.
fn matrix(weights: &Weights, tensor: &Tensor, shape: [usize; 2]) -> Result<Array2<f32>, LoraError> {
    let mut numbers = vec![];
    decode(&weights.read(tensor)?, tensor.dtype, &mut numbers);
    match numbers.iter().find(|x| !x.is_finite()) {
        Some(&found) => {
            let file = weights.files()[tensor.file].path.clone();
            Err(LoraError::NotFinite { tensor: tensor.name.clone(), found, file })
        }
        None => Ok(Array2::from_shape_vec(shape, numbers).expect("shapes were checked against the weight's")),
    }
}

/// What is added to one weight.
pub(super) struct Delta {
    columns: usize,
    terms: Vec<Term>,
}

/// `factor * (b @ a)`
struct Term {
    /// `[r, in]`
    a: Array2<f32>,
    /// `[out, r]`
    b: Array2<f32>,
    factor: f32,
}

impl Delta {
    /// Add to `numbers`, which are the weight's from its element `at` on.
    pub(super) fn add(&self, mut at: usize, mut numbers: &mut [f32]) {
        while !numbers.is_empty() {
            let (row, column) = (at / self.columns, at % self.columns);
            // Part of a row, or as many rows as there are.
            let (height, width) = match numbers.len() / self.columns {
                rows if rows > 0 && column == 0 => (rows, self.columns),
                _ => (1, numbers.len().min(self.columns - column)),
            };
            let (part, rest) = numbers.split_at_mut(height * width);
            let mut part = ArrayViewMut2::from_shape((height, width), part).expect("as many numbers");
            for term in &self.terms {
                let b = term.b.slice_axis(Axis(0), Slice::from(row..row + height));
                let a = term.a.slice_axis(Axis(1), Slice::from(column..column + width));
                general_mat_mul(term.factor, &b, &a, 1.0, &mut part);
            }
            at += height * width;
            numbers = rest;
        }
    }
}
