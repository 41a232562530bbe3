//! The tensors of a checkpoint: found by name, read in pieces, never trusted.

mod error;
mod header;
mod index;
pub(crate) mod json;
mod locate;
mod positioned;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

pub use error::{TensorProblem, WeightsError};

use crate::dtype::DType;
use crate::source::{SourceError, open_regular, resolve_inside, root_of};
use locate::{Located, locate};
use positioned::Bytes;
pub use positioned::read_exact_at;

/// The tensors of one component directory (`transformer/`, `vae/`, `text_encoder/`), found in `*.safetensors` and
/// shards; only headers are read.
#[derive(Debug)]
pub struct Weights {
    tensors: Vec<Tensor>,
    files: Vec<WeightFile>,
    /// One per file; none for synthetic weights.
    open: Vec<Bytes>,
}

/// Where one tensor is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// The checkpoint's name for it.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first; empty for a scalar.
    pub shape: Vec<usize>,
    /// Index into [`Weights::files`].
    pub file: usize,
    /// Absolute byte offset in the file.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// One safetensors file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightFile {
    /// Plain file name, as in the checkpoint directory.
    pub name: String,
    /// The path as given, for messages.
    pub path: PathBuf,
    /// The canonical target: what a hard link or an external-data reference must use.
    pub real: PathBuf,
    /// Size of the whole file.
    pub bytes: u64,
    /// Size of the header with its eight bytes of length: where the data begins.
    pub header_bytes: u64,
}

impl Weights {
    /// Finds the weights called `stem` (`diffusion_pytorch_model` or `model`) in the component directory `dir`.
    ///
    /// Looks for `<stem>.safetensors`, then `<stem>.safetensors.index.json` with shards, then the only variant such as
    /// `<stem>.fp16.safetensors`. Links may lead anywhere inside the checkpoint (the parent of `dir`) or, in a Hugging
    /// Face cache, inside the repository folder.
    ///
    /// # Errors
    /// When nothing usable is there, a link leads out of the checkpoint, a header is damaged or index and shards
    /// disagree; the message names file and tensor.
    pub fn open(dir: &Path, stem: &str) -> Result<Self, WeightsError> {
        let root = root_of(dir)?;
        resolve_inside(dir, &root)?;
        let mut weights = Self { tensors: Vec::new(), files: Vec::new(), open: Vec::new() };
        match locate(dir, stem)? {
            Located::Single(name) => weights.add(dir, &root, name)?,
            Located::Index(name) => weights.add_shards(dir, &root, &dir.join(name))?,
        }
        Ok(weights)
    }

    /// The tensors of the safetensors file at `path`, such as a LoRA's; it may lie anywhere.
    ///
    /// # Errors
    /// When it is not a regular file or its header is damaged.
    pub fn open_file(path: &Path) -> Result<Self, WeightsError> {
        let mut weights = Self { tensors: Vec::new(), files: Vec::new(), open: Vec::new() };
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
        weights.add_at(name, path.into(), path.into())?;
        Ok(weights)
    }

    /// The tensors of safetensors files in memory, by their names: the only one, or those that `index`, the text of a
    /// `.safetensors.index.json`, names.
    ///
    /// # Errors
    /// When a header is damaged, or index and shards disagree.
    pub fn from_memory(index: Option<&[u8]>, mut files: BTreeMap<String, Vec<u8>>) -> Result<Self, WeightsError> {
        let mut weights = Self { tensors: Vec::new(), files: Vec::new(), open: Vec::new() };
        let mut add = |weights: &mut Self, name: String| {
            let path = PathBuf::from(&name);
            let bytes = files.remove(&name).ok_or_else(|| SourceError::Missing { path: path.clone() })?;
            let length = bytes.len() as u64;
            weights.bind(name, path.clone(), path, Bytes::Memory(bytes), length)
        };
        match index {
            Some(json) => {
                let path = Path::new("index.json");
                weights.bind_shards(&index::parsed(json, path)?, Path::new(""), path, add)?;
            }
            None => add(&mut weights, "model.safetensors".into())?,
        }
        Ok(weights)
    }

    /// The `__metadata__` of [`Weights::files`]' number `file`, empty where there are none.
    ///
    /// # Errors
    /// When the header cannot be read again, or the metadata are not strings by name.
    pub fn metadata(&self, file: usize) -> Result<BTreeMap<String, String>, WeightsError> {
        match self.open.get(file).zip(self.files.get(file)) {
            Some((open, of)) => header::metadata(open, of.header_bytes, &of.path),
            None => Ok(BTreeMap::new()),
        }
    }

    /// Tensors of a fictitious `model.safetensors`, for building graphs without a checkpoint; reads give zeros.
    ///
    /// Shapes too large for memory are fine until read. Of two tensors with one name the first is kept.
    #[must_use]
    pub fn synthetic<N: Into<String>>(tensors: impl IntoIterator<Item = (N, DType, Vec<usize>)>) -> Self {
        let mut offset = 0_u64;
        let place = |(name, dtype, shape): (N, DType, Vec<usize>)| {
            let len = shape.iter().fold(dtype.size() as u64, |bytes, &dim| bytes.saturating_mul(dim as u64));
            let at = offset;
            offset = offset.saturating_add(len);
            Tensor { name: name.into(), dtype, shape, file: 0, offset: at, len }
        };
        let mut tensors: Vec<_> = tensors.into_iter().map(place).collect();
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        tensors.dedup_by(|later, earlier| later.name == earlier.name);
        let name = "model.safetensors".to_string();
        let path = PathBuf::from(&name);
        let file = WeightFile { name, real: path.clone(), path, bytes: offset, header_bytes: 0 };
        Self { tensors, files: vec![file], open: Vec::new() }
    }

    /// Forget all tensors but those whose names `keep` takes, as if the files had no others.
    pub fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.tensors.retain(|tensor| keep(&tensor.name));
    }

    /// The tensor called `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tensor> {
        let found = self.tensors.binary_search_by(|tensor| tensor.name.as_str().cmp(name));
        found.ok().map(|place| &self.tensors[place])
    }

    /// All tensors in name order.
    #[must_use]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Tensor> {
        self.tensors.iter()
    }

    /// How many tensors there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    /// True for a checkpoint without tensors.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    /// The files; [`Tensor::file`] counts these.
    #[must_use]
    pub fn files(&self) -> &[WeightFile] {
        &self.files
    }

    /// All bytes of `tensor`, little-endian as in the file.
    ///
    /// # Errors
    /// When `tensor` is not of these weights, memory is short, or the file changed or cannot be read.
    pub fn read(&self, tensor: &Tensor) -> Result<Vec<u8>, WeightsError> {
        self.check(tensor, 0, tensor.len)?;
        let mut bytes = Vec::new();
        let len = usize::try_from(tensor.len).unwrap_or(usize::MAX);
        bytes.try_reserve_exact(len).map_err(|_| WeightsError::Memory {
            tensor: tensor.name.clone(),
            len: tensor.len,
            file: self.files[tensor.file].path.clone(),
        })?;
        bytes.resize(len, 0);
        self.read_into(tensor, 0, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `buf` with the bytes of `tensor` from its byte `at` on, for conversion in bounded blocks.
    ///
    /// # Errors
    /// When the range leaves the tensor, `tensor` is not of these weights, or the file changed or cannot be read.
    pub fn read_into(&self, tensor: &Tensor, at: u64, buf: &mut [u8]) -> Result<(), WeightsError> {
        self.check(tensor, at, buf.len() as u64)?;
        let Some(bytes) = self.open.get(tensor.file) else {
            buf.fill(0);
            return Ok(());
        };
        let start = tensor.offset + at;
        bytes.read_exact_at(buf, start).map_err(|source| {
            let path = self.files[tensor.file].path.clone();
            match source.kind() {
                io::ErrorKind::UnexpectedEof => {
                    WeightsError::Length { file: path, expected: self.files[tensor.file].bytes, found: bytes.len() }
                }
                _ => WeightsError::Io { file: path, source },
            }
        })
    }

    /// Checks that `at..at + len` lies in `tensor` and `tensor` in its file.
    fn check(&self, tensor: &Tensor, at: u64, len: u64) -> Result<(), WeightsError> {
        let end = at.saturating_add(len);
        let file_end = tensor.offset.checked_add(tensor.len);
        let in_file = self.files.get(tensor.file).zip(file_end).is_some_and(|(file, end)| end <= file.bytes);
        if in_file && end <= tensor.len {
            return Ok(());
        }
        Err(WeightsError::Range { tensor: tensor.name.clone(), len: tensor.len, at, end })
    }

    /// Adds the tensors of the file `name`, unsorted across files.
    fn add(&mut self, dir: &Path, root: &Path, name: String) -> Result<(), WeightsError> {
        let path = dir.join(&name);
        let real = resolve_inside(&path, root)?;
        self.add_at(name, path, real)
    }

    /// Adds the tensors of the file at `real`, which messages call `path`.
    fn add_at(&mut self, name: String, path: PathBuf, real: PathBuf) -> Result<(), WeightsError> {
        let opened = open_regular(&real).map_err(|error| as_given(error, &path))?;
        self.bind(name, path, real, Bytes::File(opened.file), opened.bytes)
    }

    /// Adds the tensors that the header of `content`, `bytes` long, names.
    fn bind(
        &mut self,
        name: String,
        path: PathBuf,
        real: PathBuf,
        content: Bytes,
        bytes: u64,
    ) -> Result<(), WeightsError> {
        let header = header::read(&content, bytes, &path)?;
        let file = self.files.len();
        self.tensors.extend(header.entries.into_iter().map(|entry| Tensor {
            name: entry.name,
            dtype: entry.dtype,
            shape: entry.shape,
            file,
            offset: entry.begin,
            len: entry.end - entry.begin,
        }));
        self.files.push(WeightFile { name, path, real, bytes, header_bytes: header.bytes });
        self.open.push(content);
        Ok(())
    }

    /// Adds every shard that the index at `path` names, and checks that both agree.
    fn add_shards(&mut self, dir: &Path, root: &Path, path: &Path) -> Result<(), WeightsError> {
        let real = resolve_inside(path, root)?;
        let index = index::read(path, &real)?;
        self.bind_shards(&index, dir, path, |weights, shard| weights.add(dir, root, shard))
    }

    /// Adds the shards of the index, which is at `path` in `dir`, with `add`, and checks that all agree.
    fn bind_shards(
        &mut self,
        index: &index::Index,
        dir: &Path,
        path: &Path,
        mut add: impl FnMut(&mut Self, String) -> Result<(), WeightsError>,
    ) -> Result<(), WeightsError> {
        for shard in &index.shards {
            add(self, shard.clone()).map_err(|error| match error {
                WeightsError::Source(SourceError::Missing { .. }) => {
                    WeightsError::MissingShard { index: path.into(), shard: shard.clone(), dir: dir.into() }
                }
                other => other,
            })?;
        }
        self.tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let shard = |file: usize| index.shards.get(file).cloned().unwrap_or_default();
        if let Some([a, b]) = self
            .tensors
            .windows(2)
            .find_map(|pair| <&[Tensor; 2]>::try_from(pair).ok().filter(|[a, b]| a.name == b.name))
        {
            let (tensor, first, second) = (a.name.clone(), shard(a.file), shard(b.file));
            return Err(WeightsError::InTwoShards { tensor, first, second, index: path.into() });
        }
        for (name, place) in &index.tensors {
            let found = self.get(name).map(|tensor| tensor.file);
            if found != Some(*place) {
                let (tensor, expected) = (name.clone(), shard(*place));
                let found = found.map_or_else(|| "no shard".to_string(), shard);
                return Err(WeightsError::Misplaced { tensor, expected, found, index: path.into() });
            }
        }
        let indexed = |tensor: &&Tensor| index.tensors.binary_search_by(|(name, _)| name.cmp(&tensor.name)).is_err();
        if let Some(extra) = self.tensors.iter().find(indexed) {
            let (tensor, shard) = (extra.name.clone(), shard(extra.file));
            return Err(WeightsError::NotIndexed { tensor, shard, index: path.into() });
        }
        Ok(())
    }
}

/// `error` about the path the user knows, not about the target of its link.
fn as_given(error: SourceError, given: &Path) -> SourceError {
    let given = given.to_path_buf();
    match error {
        SourceError::Missing { .. } => SourceError::Missing { path: given },
        SourceError::NotAFile { kind, .. } => SourceError::NotAFile { path: given, kind },
        SourceError::Io { source, .. } => SourceError::Io { path: given, source },
        escapes @ SourceError::Escapes { .. } => escapes,
    }
}
