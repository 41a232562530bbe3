//! What can be wrong with a component's weights.

use std::io;
use std::path::PathBuf;

use crate::source::SourceError;

/// Why weights cannot be used. Every message names the file, most name the tensor.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// A file could not be opened, or is not the checkpoint's own.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// The component directory holds no weights under any known name.
    #[error("`{}`: expected `{stem}.safetensors` or `{stem}.safetensors.index.json`, found {}", dir.display(), names(found))]
    NotFound {
        /// The component directory.
        dir: PathBuf,
        /// The expected file stem.
        stem: String,
        /// The first few names that are there.
        found: Vec<String>,
    },
    /// Only a pickled checkpoint is there; unpickling runs code, so cogvx never does.
    #[error("`{}`: expected safetensors, found only `{file}`: convert it to safetensors first", dir.display())]
    OnlyPickle {
        /// The component directory.
        dir: PathBuf,
        /// The pickled file.
        file: String,
    },
    /// Several variants, and none of them is the plain one.
    #[error("`{}`: expected one set of weights, found {}", dir.display(), names(variants))]
    SeveralVariants {
        /// The component directory.
        dir: PathBuf,
        /// The files to choose from.
        variants: Vec<String>,
    },
    /// Shards without the index that lists them.
    #[error("`{}`: expected `{stem}.safetensors.index.json` beside the shard `{shard}`, found none", dir.display())]
    NoIndex {
        /// The component directory.
        dir: PathBuf,
        /// The expected file stem.
        stem: String,
        /// One of the shards.
        shard: String,
    },
    /// A file that is not safetensors at all.
    #[error("`{}`: expected safetensors, found {found}", file.display())]
    NotSafetensors {
        /// The file.
        file: PathBuf,
        /// What it looks like, and what to do about it.
        found: &'static str,
    },
    /// The file ends before its contents do, or goes on after them.
    #[error("`{}`: expected {expected} bytes, found {found}", file.display())]
    Length {
        /// The file.
        file: PathBuf,
        /// Bytes the header asks for.
        expected: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// The header is longer than the format allows.
    #[error("`{}`: expected a header of at most {limit} bytes, found {found}", file.display())]
    HeaderLength {
        /// The file.
        file: PathBuf,
        /// Largest length accepted.
        limit: u64,
        /// Length the file states.
        found: u64,
    },
    /// The header or the index is not the JSON it should be.
    #[error("`{}`: {problem}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser says, with line and column.
        problem: String,
    },
    /// One tensor's entry in the header cannot be right.
    #[error("tensor `{tensor}`: {problem} (`{}`)", file.display())]
    Tensor {
        /// The tensor.
        tensor: String,
        /// What is wrong with it.
        problem: TensorProblem,
        /// The file.
        file: PathBuf,
    },
    /// `index.json` names something that is not a plain file name.
    #[error("`{}`: tensor `{tensor}`: expected the name of a safetensors file in the same directory, found `{found}`", index.display())]
    ShardName {
        /// The index.
        index: PathBuf,
        /// The tensor it places there.
        tensor: String,
        /// The name it gives.
        found: String,
    },
    /// `index.json` names a file that is not there.
    #[error("`{}`: names `{shard}`, which is not in `{}`", index.display(), dir.display())]
    MissingShard {
        /// The index.
        index: PathBuf,
        /// The shard it names.
        shard: String,
        /// The directory it should be in.
        dir: PathBuf,
    },
    /// More shards than any checkpoint has.
    #[error("`{}`: expected at most {limit} shards, found {found}", index.display())]
    TooManyShards {
        /// The index.
        index: PathBuf,
        /// Most accepted.
        limit: usize,
        /// How many it names.
        found: usize,
    },
    /// An index that is too large to be one.
    #[error("`{}`: expected at most {limit} bytes, found {found}", index.display())]
    IndexLength {
        /// The index.
        index: PathBuf,
        /// Most accepted.
        limit: u64,
        /// Its size.
        found: u64,
    },
    /// Index and shard disagree about where a tensor is.
    #[error("tensor `{tensor}`: expected in `{expected}`, found in `{found}` (`{}`)", index.display())]
    Misplaced {
        /// The tensor.
        tensor: String,
        /// The shard the index names.
        expected: String,
        /// The shard that holds it, or `no shard`.
        found: String,
        /// The index.
        index: PathBuf,
    },
    /// A shard holds a tensor that the index does not list.
    #[error("tensor `{tensor}`: in `{shard}`, not in `{}`", index.display())]
    NotIndexed {
        /// The tensor.
        tensor: String,
        /// The shard that holds it.
        shard: String,
        /// The index.
        index: PathBuf,
    },
    /// Two shards hold the same tensor.
    #[error("tensor `{tensor}`: expected in one shard, found in `{first}` and `{second}` (`{}`)", index.display())]
    InTwoShards {
        /// The tensor.
        tensor: String,
        /// One shard.
        first: String,
        /// The other.
        second: String,
        /// The index.
        index: PathBuf,
    },
    /// A read outside the tensor, or of a tensor that is not one of these weights.
    #[error("tensor `{tensor}`: expected a range within {len} bytes, found {at}..{end}")]
    Range {
        /// The tensor.
        tensor: String,
        /// Its length in bytes.
        len: u64,
        /// Start of the read.
        at: u64,
        /// End of the read.
        end: u64,
    },
    /// The tensor does not fit in memory.
    #[error("tensor `{tensor}`: no memory for {len} bytes (`{}`)", file.display())]
    Memory {
        /// The tensor.
        tensor: String,
        /// Its length in bytes.
        len: u64,
        /// The file.
        file: PathBuf,
    },
    /// Reading failed.
    #[error("`{}`: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
}

/// What is wrong with one tensor's header entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorProblem {
    /// Control characters, an empty or an endless name.
    #[error("expected a printable name of 1 to {limit} bytes")]
    Name {
        /// Longest accepted.
        limit: usize,
    },
    /// A type cogvx cannot compute with, or that does not exist.
    #[error("expected dtype f32, f16, bf16, i64, i32, u8, i8 or bool, found `{found}`")]
    Dtype {
        /// The header's word.
        found: String,
    },
    /// More dimensions than any weight has.
    #[error("expected at most {limit} dimensions, found more")]
    Rank {
        /// Most accepted.
        limit: usize,
    },
    /// The shape's product does not fit in 64 bits.
    #[error("expected a size below 2^63 bytes, found shape {shape:?}")]
    Overflow {
        /// The shape.
        shape: Vec<u64>,
    },
    /// The bytes of the shape and the bytes between the offsets differ.
    #[error("expected {expected} bytes for shape {shape:?}, found {found}")]
    Size {
        /// Bytes of shape times element size.
        expected: u64,
        /// Bytes between the offsets.
        found: u64,
        /// The shape.
        shape: Vec<u64>,
    },
    /// The end lies before the start.
    #[error("expected offsets in order, found {begin}..{end}")]
    Reversed {
        /// Start of the data.
        begin: u64,
        /// End of the data.
        end: u64,
    },
    /// The tensor does not begin where the one before it ends.
    #[error("expected data to begin at {expected}, found {found}: tensors overlap or leave a hole")]
    Gap {
        /// End of the tensor before.
        expected: u64,
        /// Start of this one.
        found: u64,
    },
    /// The data ends after the file does.
    #[error("expected data to end by {expected}, found {found}: the file is truncated")]
    PastEnd {
        /// Length of the data section.
        expected: u64,
        /// End of this tensor.
        found: u64,
    },
}

fn names(found: &[String]) -> String {
    if found.is_empty() {
        return "no files".into();
    }
    let quoted: Vec<_> = found.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}
