//! The exported directory: graphs, weights and `cogvx.json`, complete or absent.

mod error;
mod files;
mod manifest;
mod place;
#[cfg(test)]
mod tests;
mod writer;

use std::path::{Path, PathBuf};

use cogvx_graphs::onnx::{self, Model};

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

    /// The graph `file` of `component`, such as `transformer/model.onnx`, read and checked: a runtime may be given it then.
    ///
    /// # Errors
    /// The manifest has no such graph, its file is not one that cogvx could have written, its external data lead out of the
    /// bundle or end too soon, or its opset, inputs or outputs are not those of the manifest.
    pub fn graph(&self, component: &str, file: &str) -> Result<Model, BundleError> {
        let listed = self.manifest.components.get(component).and_then(|c| c.graphs.iter().find(|g| g.file == file));
        let path = self.path(file);
        let listed = listed.ok_or_else(|| BundleError::NoGraph { path: path.clone(), component: component.into() })?;
        let model = onnx::open(&path)?;
        let differs = |what, expected: Option<String>, found: Option<String>| {
            let (expected, found) = (expected.unwrap_or("no more".into()), found.unwrap_or("no more".into()));
            if expected == found {
                return Ok(());
            }
            Err(BundleError::Graph { path: path.clone(), what, expected, found })
        };
        differs("opset", Some(listed.opset.to_string()), Some(model.opset.to_string()))?;
        for (what, listed, found) in
            [("inputs", &listed.inputs, &model.inputs), ("outputs", &listed.outputs, &model.outputs)]
        {
            let found: Vec<Port> = found.iter().map(Port::from).collect();
            for i in 0..listed.len().max(found.len()) {
                differs(what, listed.get(i).map(said), found.get(i).map(said))?;
            }
        }
        Ok(model)
    }

    /// Puts a verdict into the manifest; it is replaced at once.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn store_verdict(&mut self, verdict: serde_json::Value) -> Result<(), BundleError> {
        let manifest = Manifest { verdict: Some(verdict), ..self.manifest.clone() };
        manifest.write(&self.dir)?;
        self.manifest = manifest;
        Ok(())
    }

    /// What tells this bundle's contents from another's: a hash of names, sizes and recorded hashes of all files, and of samples
    /// of those that have a hash of their header only, so that 13 GB take a moment.
    ///
    /// # Errors
    /// For a file that cannot be read.
    pub fn fingerprint(&self) -> Result<String, BundleError> {
        let mut hasher = blake3::Hasher::new();
        for entry in &self.manifest.files {
            let hash = entry.blake3.as_ref().or(entry.header_blake3.as_ref()).map_or("", String::as_str);
            hasher.update(format!("{} {} {hash}\n", entry.path, entry.bytes).as_bytes());
            if entry.blake3.is_none() {
                files::sample(&self.path(&entry.path), &mut hasher)?;
            }
        }
        Ok(hasher.finalize().to_hex()[..32].to_string())
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

/// A port for messages: `x` f32[1, tokens].
fn said(port: &Port) -> String {
    let sizes = port.shape.iter().map(|dim| match dim {
        Dim::Fixed(n) => n.to_string(),
        Dim::Symbol(name) => name.escape_debug().to_string(),
    });
    format!("`{}` {}[{}]", port.name.escape_debug(), port.dtype, sizes.collect::<Vec<_>>().join(", "))
}
