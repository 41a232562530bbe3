//! Safetensors files of bounded size, as transformers and diffusers cut them.

use std::fs::File;
use std::io::Write as _;
use std::path::Path;

use cogvx_graphs::DType;
use serde_json::{Map, Value, json};

use super::needs::Need;
use super::values::Values;
use super::{Options, SynthError};

/// Elements written at a time.
const BLOCK: u64 = 1 << 22;

/// The weight files of a component.
pub(super) struct Shards {
    stem: &'static str,
    dtype: DType,
    /// Tensors of each file, in name order.
    files: Vec<Vec<Need>>,
}

impl Shards {
    /// Cut `needs` into files of at most `limit` bytes, or of one larger tensor.
    pub fn plan(stem: &'static str, needs: Vec<Need>, dtype: DType, limit: u64) -> Self {
        let mut files = vec![vec![]];
        let mut room = limit;
        for need in needs {
            let bytes = need.elements * dtype.size() as u64;
            if bytes > room && !files.last().is_none_or(Vec::is_empty) {
                files.push(vec![]);
                room = limit;
            }
            room = room.saturating_sub(bytes);
            files.last_mut().expect("one at least").push(need);
        }
        for tensors in &mut files {
            tensors.sort_by(|a, b| a.name.cmp(&b.name));
        }
        Self { stem, dtype, files }
    }

    /// How many files have tensors.
    pub fn count(&self) -> usize {
        self.files.len()
    }

    /// Numbers in all tensors.
    pub fn parameters(&self) -> u64 {
        self.files.iter().flatten().map(|tensor| tensor.elements).sum()
    }

    /// Bytes of all tensors.
    pub fn bytes(&self) -> u64 {
        self.parameters() * self.dtype.size() as u64
    }

    /// Write the files into `folder`.
    pub fn write(&self, folder: &Path, options: &Options) -> Result<(), SynthError> {
        let mut places = Map::new();
        for (i, tensors) in self.files.iter().enumerate() {
            let name = self.name(i);
            places.extend(tensors.iter().map(|tensor| (tensor.name.clone(), name.as_str().into())));
            self.write_file(&folder.join(name), tensors, options)?;
        }
        if self.files.len() > 1 {
            let index = json!({ "metadata": { "total_size": self.bytes() }, "weight_map": places });
            super::write_json(&folder.join(format!("{}.safetensors.index.json", self.stem)), &index)?;
        }
        Ok(())
    }

    fn name(&self, i: usize) -> String {
        match self.files.len() {
            1 => format!("{}.safetensors", self.stem),
            n => format!("{}-{:05}-of-{n:05}.safetensors", self.stem, i + 1),
        }
    }

    fn write_file(&self, path: &Path, tensors: &[Need], options: &Options) -> Result<(), SynthError> {
        let io = |source| SynthError::Io { path: path.into(), source };
        let mut file = File::create_new(path).map_err(io)?;
        file.write_all(&self.header(tensors)).map_err(io)?;
        let mut block = vec![];
        for tensor in tensors {
            let values = Values::new(options.seed, tensor, self.dtype);
            let mut at = 0;
            while at < tensor.elements {
                if options.stopped() {
                    return Err(SynthError::Stopped);
                }
                let elements = BLOCK.min(tensor.elements - at);
                // At most a block: no more than 16 MiB.
                block.resize(usize::try_from(elements).unwrap_or(0) * self.dtype.size(), 0);
                values.fill(at, &mut block);
                file.write_all(&block).map_err(io)?;
                at += elements;
            }
        }
        Ok(())
    }

    /// Length and JSON; data begins at a multiple of eight bytes.
    fn header(&self, tensors: &[Need]) -> Vec<u8> {
        let mut header = Map::from_iter([("__metadata__".to_string(), json!({ "format": "pt" }))]);
        let mut end = 0;
        for tensor in tensors {
            let begin = end;
            end += tensor.elements * self.dtype.size() as u64;
            let entry =
                json!({ "dtype": self.dtype.safetensors(), "shape": tensor.shape, "data_offsets": [begin, end] });
            header.insert(tensor.name.clone(), entry);
        }
        let mut text = Value::Object(header).to_string().into_bytes();
        text.resize(text.len().next_multiple_of(8), b' ');
        [(text.len() as u64).to_le_bytes().to_vec(), text].concat()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shard_is_as_full_as_the_limit_allows() {
        let need = |name: &str, elements| Need { name: name.into(), shape: vec![1], elements };
        let needs = vec![need("d", 30), need("c", 20), need("b", 1), need("a", 200), need("e", 1)];
        let shards = Shards::plan("model", needs, DType::F16, 100);
        let names: Vec<Vec<_>> = shards.files.iter().map(|f| f.iter().map(|t| t.name.as_str()).collect()).collect();
        assert_eq!(names, [vec!["c", "d"], vec!["b"], vec!["a"], vec!["e"]]);
        assert_eq!(shards.name(2), "model-00003-of-00004.safetensors");
        assert_eq!((shards.parameters(), shards.bytes()), (252, 504));
    }
}
