//! The exported directory: graphs, weights and `cogvx.json`, complete or absent.

mod error;
mod files;
mod manifest;
mod place;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};

pub use error::BundleError;
pub use manifest::{Component, Dim, FileEntry, Graph, Lora, MANIFEST, Manifest, Origin, Port, Shapes, Source, VERSION};
pub(crate) use place::Place;
pub use writer::{BundleFile, BundleWriter, LinkOutcome, WeightsMode};

/// An exported directory whose manifest has been checked.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
}

impl Bundle {
    /// Opens the bundle at `dir`: the manifest is sound and its files are there with their sizes.
    ///
    /// # Errors
    /// As [`Manifest::read`].
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        Ok(Self { dir: dir.to_path_buf(), manifest: Manifest::read(dir)? })
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The contents of `cogvx.json`.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Where the file listed as `path` is.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.join(path)
    }

    /// Checks the files again: presence and size; with `full`, every recorded hash too.
    ///
    /// Large linked or copied weights have a hash of their safetensors header only.
    ///
    /// # Errors
    /// For the first file that is not as recorded.
    pub fn check(&self, full: bool) -> Result<(), BundleError> {
        self.manifest.check_files(&self.dir)?;
        if full { self.manifest.check_hashes(&self.dir) } else { Ok(()) }
    }
}
