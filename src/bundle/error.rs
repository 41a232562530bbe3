//! What can be wrong with a bundle or with writing one.

use std::io;
use std::path::{Path, PathBuf};

use cogvx_graphs::onnx::OnnxError;

/// Why a bundle cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// The operating system refused.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The file or directory.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
    /// No `cogvx.json` there.
    #[error("`{}`: expected a cogvx bundle, found no `cogvx.json`", dir.display())]
    NotABundle {
        /// The directory.
        dir: PathBuf,
    },
    /// `cogvx.json` is not what it should be.
    #[error("`{}`: {problem}", path.display())]
    Manifest {
        /// `cogvx.json`.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// The bundle is of another version of the format.
    #[error("`{}`: expected format version {expected}, found {found}: export it again", path.display())]
    Version {
        /// `cogvx.json`.
        path: PathBuf,
        /// The version this build reads.
        expected: u32,
        /// The version in the file.
        found: String,
    },
    /// A path in a bundle that is absolute, climbs, or would not be the same file on every system.
    #[error("`{path}`: expected a plain relative path (`{}`)", bundle.display())]
    UnsafePath {
        /// The path.
        path: String,
        /// The bundle or its manifest.
        bundle: PathBuf,
    },
    /// The same path twice.
    #[error("`{path}`: expected once, found twice (`{}`)", bundle.display())]
    Duplicate {
        /// The path.
        path: String,
        /// The bundle or its manifest.
        bundle: PathBuf,
    },
    /// A component names a file that the bundle does not list.
    #[error("`{path}`: named by `{component}`, not among the files (`{}`)", bundle.display())]
    Unlisted {
        /// The path.
        path: String,
        /// The component.
        component: String,
        /// The bundle or its manifest.
        bundle: PathBuf,
    },
    /// A component lacks a graph that it is run by.
    #[error("`{}`: expected among the graphs of `{component}` in `cogvx.json`, found none", path.display())]
    NoGraph {
        /// The graph's file.
        path: PathBuf,
        /// The component.
        component: String,
    },
    /// A graph that no cogvx wrote.
    #[error(transparent)]
    Onnx(#[from] OnnxError),
    /// A graph that is not what `cogvx.json` says it is.
    #[error("`{}`: {what}: expected {expected} as in `cogvx.json`, found {found}", path.display())]
    Graph {
        /// The graph's file.
        path: PathBuf,
        /// `opset`, `inputs` or `outputs`.
        what: &'static str,
        /// According to the manifest.
        expected: String,
        /// In the graph.
        found: String,
    },
    /// A listed file is not there.
    #[error("`{}`: listed in `cogvx.json`, not there", path.display())]
    MissingFile {
        /// The file.
        path: PathBuf,
    },
    /// Something other than a regular file, or a link out of the bundle.
    #[error("`{}`: expected a regular file, found {found}", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
        /// What is there.
        found: &'static str,
    },
    /// A file has another size than recorded.
    #[error("`{}`: expected {expected} bytes, found {found}", path.display())]
    Size {
        /// The file.
        path: PathBuf,
        /// The recorded size.
        expected: u64,
        /// The size on disk.
        found: u64,
    },
    /// A file has other contents than recorded.
    #[error("`{}`: expected blake3 {expected}, found {found}", path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// The recorded hash.
        expected: String,
        /// The hash of what is on disk.
        found: String,
    },
    /// The output climbs out of a directory that does not exist.
    #[error("`{}`: expected no `..` after a directory that does not exist", output.display())]
    Climbs {
        /// The output.
        output: PathBuf,
    },
    /// The output is a bundle and may not be replaced.
    #[error("`{}`: expected no bundle there unless overwriting, found one", output.display())]
    Exists {
        /// The output.
        output: PathBuf,
    },
    /// The output is something that cogvx did not make.
    #[error("`{}`: exists and is not a cogvx bundle", output.display())]
    NotOurs {
        /// The output.
        output: PathBuf,
    },
    /// The output is a bundle, with a file in it that replacing would destroy.
    #[error("`{}`: holds `{file}`, which is not part of the bundle: move it away first", output.display())]
    Foreign {
        /// The output.
        output: PathBuf,
        /// The file.
        file: String,
    },
    /// The output would destroy or clutter the checkpoint.
    #[error("`{}`: expected an output outside the checkpoint `{}`", output.display(), checkpoint.display())]
    InsideCheckpoint {
        /// The output.
        output: PathBuf,
        /// The checkpoint.
        checkpoint: PathBuf,
    },
    /// A file could not be linked and copying was not wanted.
    #[error("`{}`: cannot be linked to `{path}`: {reason}", from.display())]
    CannotLink {
        /// The file to link to.
        from: PathBuf,
        /// The path in the bundle.
        path: String,
        /// The refusal.
        reason: io::Error,
    },
    /// Stopped by [`BundleWriter::until`](super::BundleWriter::until)'s flag.
    #[error("interrupted")]
    Interrupted,
    /// A file was begun and never finished.
    #[error("`{path}`: begun and not finished")]
    Unfinished {
        /// The path in the bundle.
        path: String,
    },
}

impl BundleError {
    /// An I/O error at `path`, for `map_err`.
    pub(super) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}
