//! A file of tensors that PyTorch computed, and the settings it computed them with.

use std::collections::HashMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use cogvx_graphs::source::{SourceError, open_regular};
use ndarray::{ArrayD, IxDyn};
use safetensors::{Dtype, SafeTensors};

use crate::picture;
use crate::pipeline::{Pipeline, Request, Start};
use crate::scheduler::Kind;

/// Why a reference cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum ReferenceError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("`{}`: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("`{}`: expected a safetensors file: {message}", path.display())]
    Format { path: PathBuf, message: String },
    #[error("`{}`: expected the tensor `{name}`, found none", path.display())]
    Missing { path: PathBuf, name: String },
    #[error("`{}`: `{name}`: expected {expected}, found {found}", path.display())]
    Tensor { path: PathBuf, name: String, expected: &'static str, found: String },
    #[error("`{}`: expected `text_encoder/`, `transformer/`, `vae_decoder/` or `pipeline/` tensors, found none", .0.display())]
    Empty(PathBuf),
    #[error("`{}`: `__metadata__` `{key}`: expected {expected}, found `{found}`", path.display())]
    Setting { path: PathBuf, key: &'static str, expected: &'static str, found: String },
}

/// A reference file in memory.
pub struct Reference {
    path: PathBuf,
    bytes: Vec<u8>,
    settings: HashMap<String, String>,
}

impl Reference {
    /// Read a reference.
    ///
    /// # Errors
    /// No file, or not a safetensors file.
    pub fn open(path: &Path) -> Result<Self, ReferenceError> {
        let mut bytes = vec![];
        let read = open_regular(path)?.file.read_to_end(&mut bytes);
        read.map_err(|source| ReferenceError::Read { path: path.into(), source })?;
        let format =
            |e: safetensors::SafeTensorError| ReferenceError::Format { path: path.into(), message: e.to_string() };
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(format)?;
        SafeTensors::deserialize(&bytes).map_err(format)?;
        let settings = header.metadata().clone().unwrap_or_default();
        Ok(Self { path: path.into(), bytes, settings })
    }

    fn tensors(&self) -> SafeTensors<'_> {
        SafeTensors::deserialize(&self.bytes).expect("checked when it was opened")
    }

    /// Names of the tensors.
    pub fn names(&self) -> impl Iterator<Item = String> {
        self.tensors().names().into_iter().map(String::from).collect::<Vec<_>>().into_iter()
    }

    /// Whether there is a tensor `name`.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.tensors().tensor(name).is_ok()
    }

    /// The setting `key`.
    #[must_use]
    pub fn text(&self, key: &str) -> Option<&str> {
        self.settings.get(key).map(String::as_str)
    }

    pub(super) fn empty(&self) -> ReferenceError {
        ReferenceError::Empty(self.path.clone())
    }

    /// The error for the tensor `name`, whose shape does not fit.
    pub(super) fn wrong(&self, name: &str, expected: &'static str, shape: &[usize]) -> ReferenceError {
        ReferenceError::Tensor { path: self.path.clone(), name: name.into(), expected, found: format!("{shape:?}") }
    }

    fn elements<T, const N: usize>(
        &self,
        name: &str,
        (dtype, expected): (Dtype, &'static str),
        read: fn([u8; N]) -> T,
    ) -> Result<ArrayD<T>, ReferenceError> {
        let tensors = self.tensors();
        let missing = |_| ReferenceError::Missing { path: self.path.clone(), name: name.into() };
        let tensor = tensors.tensor(name).map_err(missing)?;
        if tensor.dtype() != dtype || tensor.shape().is_empty() {
            let found = format!("{:?} {:?}", tensor.dtype(), tensor.shape());
            return Err(ReferenceError::Tensor { path: self.path.clone(), name: name.into(), expected, found });
        }
        let (chunks, _) = tensor.data().as_chunks::<N>();
        let values = chunks.iter().map(|&bytes| read(bytes)).collect();
        Ok(ArrayD::from_shape_vec(IxDyn(tensor.shape()), values).expect("checked when it was opened"))
    }

    /// The `f32` tensor `name`.
    ///
    /// # Errors
    /// No such tensor, or one of another type.
    pub fn floats(&self, name: &str) -> Result<ArrayD<f32>, ReferenceError> {
        self.elements(name, (Dtype::F32, "an F32 tensor"), f32::from_le_bytes)
    }

    /// The `i64` tensor `name`.
    ///
    /// # Errors
    /// No such tensor, or one of another type.
    pub fn integers(&self, name: &str) -> Result<ArrayD<i64>, ReferenceError> {
        self.elements(name, (Dtype::I64, "an I64 tensor"), i64::from_le_bytes)
    }

    /// The run the `pipeline/*` tensors are of; settings left out are the pipeline's defaults.
    pub(super) fn request(&self, pipeline: &Pipeline) -> Result<Request, super::VerifyError> {
        let mut request = pipeline.request(self.text("prompt").unwrap_or_default())?;
        request.negative_prompt = self.text("negative_prompt").unwrap_or_default().into();
        self.set("seed", "a whole number", &mut request.seed)?;
        self.set("steps", "a whole number", &mut request.steps)?;
        self.set("guidance", "a number", &mut request.guidance)?;
        self.set("frames", "a whole number", &mut request.frames)?;
        self.set("height", "a whole number", &mut request.height)?;
        self.set("width", "a whole number", &mut request.width)?;
        let setting = |key, expected, found: &str| ReferenceError::Setting {
            path: self.path.clone(),
            key,
            expected,
            found: found.into(),
        };
        request.dynamic_cfg = self.flag("dynamic")?;
        request.vae_tiling = self.is_tiled()?;
        request.scheduler = match self.text("scheduler") {
            None => request.scheduler,
            Some("ddim") => Kind::Ddim,
            Some("dpm") => Kind::Dpm,
            Some(other) => return Err(setting("scheduler", "`ddim` or `dpm`", other).into()),
        };
        let beside = |ending: &str| {
            let stem = self.path.file_stem().unwrap_or_default().to_string_lossy();
            self.path.with_file_name(format!("{stem}-input.{ending}"))
        };
        let size = [request.height, request.width];
        if self.text("image") == Some("True") {
            request.start = Start::Image(picture::image(&beside("png"), size)?);
        } else if self.text("video") == Some("True") {
            let mut strength = 0.8;
            self.set("strength", "a number", &mut strength)?;
            request.start = Start::Video { frames: picture::video(&beside("npy"), size)?, strength };
        }
        Ok(request)
    }

    /// Whether the VAE worked in tiles.
    ///
    /// # Errors
    /// A setting that is neither true nor false.
    pub fn is_tiled(&self) -> Result<bool, ReferenceError> {
        self.flag("vae_tiling")
    }

    /// Whether the setting `key` is Python's `True`.
    fn flag(&self, key: &'static str) -> Result<bool, ReferenceError> {
        match self.text(key).unwrap_or("False") {
            "True" | "true" => Ok(true),
            "False" | "false" => Ok(false),
            found => {
                let (path, expected) = (self.path.clone(), "`True` or `False`");
                Err(ReferenceError::Setting { path, key, expected, found: found.into() })
            }
        }
    }

    fn set<T: std::str::FromStr>(
        &self,
        key: &'static str,
        expected: &'static str,
        value: &mut T,
    ) -> Result<(), ReferenceError> {
        if let Some(text) = self.text(key) {
            let setting = || ReferenceError::Setting { path: self.path.clone(), key, expected, found: text.into() };
            *value = text.parse().map_err(|_| setting())?;
        }
        Ok(())
    }
}
