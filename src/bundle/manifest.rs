//! `cogvx.json`: what a bundle holds.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use cogvx_graphs::{DType, onnx};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::BundleError;
use super::files;

/// The manifest's file name.
pub const MANIFEST: &str = "cogvx.json";
/// The format this build writes and reads.
pub const VERSION: u32 = 1;
const MAX_BYTES: u64 = 16 << 20;

/// The contents of `cogvx.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Always [`VERSION`].
    pub format_version: u32,
    /// The version of cogvx that wrote the bundle.
    pub cogvx: String,
    /// What was exported.
    pub source: Source,
    /// The precision asked for, such as `fp16`; `checkpoint` where none was.
    pub precision: String,
    /// The coarsest precision that arithmetic is done in or weights were converted to; `fp32` where neither was lowered.
    pub accuracy: String,
    /// How linear layers are quantized, such as `int8`, if any is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub quantization: Option<String>,
    /// Values that components computing in `float16` keep in `float32`, with their largest magnitudes in calibration.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub fp32_islands: BTreeMap<String, f32>,
    /// How the convolutions of the VAE's decoder are quantized, if they are: `int8-static`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vae_quantization: Option<String>,
    /// The target asked for, such as `cpu`.
    pub target: String,
    /// Sizes the graphs are fixed to.
    #[serde(default)]
    pub shapes: Shapes,
    /// LoRAs merged into the transformer.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub loras: Vec<Lora>,
    /// Components by name, such as `transformer`.
    pub components: BTreeMap<String, Component>,
    /// Whatever the runtime needs to know: component configurations as JSON, by name.
    #[serde(default)]
    pub config: BTreeMap<String, Value>,
    /// Where quantizing pays on some machine, as `cogvx bench --against --store` or `cogvx export --prefer speed` found it; this one
    /// names the `scheme`, too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Value>,
    /// Every file but `cogvx.json` itself, in path order; the writer fills this in.
    #[serde(default)]
    pub files: Vec<FileEntry>,
}

/// The exported checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Name of its directory.
    pub name: String,
    /// The pipeline class, such as `CogVideoXPipeline`.
    #[serde(rename = "_class_name")]
    pub class_name: String,
}

/// A LoRA merged into the transformer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Lora {
    /// Name of its file.
    pub file: String,
    /// Factor of what it added; 1 is as it was trained.
    pub scale: f64,
}

/// Sizes the graphs are fixed to; none is left free.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shapes {
    /// Video frames.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub frames: Option<u32>,
    /// Pixels from top to bottom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub height: Option<u32>,
    /// Pixels from left to right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<u32>,
}

/// One component.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Component {
    /// Its graphs.
    #[serde(default)]
    pub graphs: Vec<Graph>,
    /// Its weight files and whatever else it reads, as paths in the bundle.
    #[serde(default)]
    pub weights: Vec<String>,
}

impl Component {
    /// Whether one of its graphs is in this file of the bundle.
    #[must_use]
    pub fn has(&self, graph: &str) -> bool {
        self.graphs.iter().any(|known| known.file == graph)
    }
}

/// One ONNX file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Graph {
    /// Its path in the bundle.
    pub file: String,
    /// Version of the default operator set.
    pub opset: i64,
    /// What it takes.
    pub inputs: Vec<Port>,
    /// What it gives.
    pub outputs: Vec<Port>,
}

/// An input or output of a graph.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    /// Its name in the graph.
    pub name: String,
    /// Element type.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<Dim>,
}

impl From<&onnx::Port> for Port {
    fn from(port: &onnx::Port) -> Self {
        let dim = |size: &onnx::Size| match size {
            onnx::Size::Fixed(n) => Dim::Fixed(*n),
            onnx::Size::Named(name) => Dim::Symbol(name.clone()),
        };
        Self { name: port.name.clone(), dtype: port.dtype, shape: port.shape.iter().map(dim).collect() }
    }
}

/// One dimension.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Dim {
    /// A size.
    Fixed(u64),
    /// A name for any size.
    Symbol(String),
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileEntry {
    /// Its path in the bundle, with `/`.
    pub path: String,
    /// Its size.
    pub bytes: u64,
    /// Hash of its contents; none for large linked or copied files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<String>,
    /// Hash of its safetensors header, length included, where the contents have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header_blake3: Option<String>,
    /// How it came.
    pub origin: Origin,
}

/// How a file came into the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// Written by cogvx.
    Written,
    /// A hard link to the checkpoint's file.
    Linked,
    /// A copy of the checkpoint's file.
    Copied,
}

impl Manifest {
    /// Reads and checks `cogvx.json` of the bundle at `dir`: version, paths, and that the files have their sizes.
    ///
    /// # Errors
    /// When there is no bundle, it is of another version, a path is unsafe or a file missing or changed in size.
    pub fn read(dir: &Path) -> Result<Self, BundleError> {
        let manifest = Self::parse(dir)?;
        manifest.check_paths(&dir.join(MANIFEST))?;
        manifest.check_files(dir)?;
        Ok(manifest)
    }

    /// Reads the text of a `cogvx.json` and checks it without looking at any file; `path` is for messages.
    ///
    /// # Errors
    /// When it is no manifest, of another version, or a path in it is unsafe.
    pub fn from_json(path: &Path, bytes: &[u8]) -> Result<Self, BundleError> {
        let manifest = Self::from_slice(path, bytes)?;
        manifest.check_paths(path)?;
        Ok(manifest)
    }

    /// Reads `cogvx.json` without looking at the files it lists.
    pub(super) fn parse(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join(MANIFEST);
        if path.symlink_metadata().is_err() {
            return Err(BundleError::NotABundle { dir: dir.into() });
        }
        Self::from_slice(&path, &files::read_small(&path, MAX_BYTES)?)
    }

    /// Reads a manifest of untrusted `bytes`; `path` is for messages. Its paths are not checked yet.
    fn from_slice(path: &Path, bytes: &[u8]) -> Result<Self, BundleError> {
        let wrong = |problem| BundleError::Manifest { path: path.into(), problem };
        let value: Value = serde_json::from_slice(bytes).map_err(|e| wrong(format!("expected JSON, found {e}")))?;
        let found = value.get("format_version");
        if found != Some(&Value::from(VERSION)) {
            let found = found.map_or("none".into(), |found| found.to_string().chars().take(40).collect());
            return Err(BundleError::Version { path: path.into(), expected: VERSION, found });
        }
        serde_json::from_value(value).map_err(|e| wrong(format!("expected a manifest, found {e:.200}")))
    }

    /// Writes `cogvx.json` of the bundle at `dir`, beside it first.
    pub(super) fn write(&self, dir: &Path) -> Result<(), BundleError> {
        let at = dir.join(MANIFEST);
        let json = serde_json::to_string_pretty(self)
            .map_err(|e| BundleError::Manifest { path: at.clone(), problem: e.to_string() })?;
        let beside = dir.join(".cogvx.json");
        fs::write(&beside, json + "\n").map_err(BundleError::io(&beside))?;
        fs::rename(&beside, &at).map_err(BundleError::io(&at))?;
        Ok(())
    }

    /// Checks that all paths are plain and every file a component names is listed once.
    pub(super) fn check_paths(&self, bundle: &Path) -> Result<(), BundleError> {
        let mut listed = BTreeSet::new();
        for FileEntry { path, .. } in &self.files {
            files::check_plain(path, bundle)?;
            if !listed.insert(path.as_str()) {
                return Err(BundleError::Duplicate { path: path.clone(), bundle: bundle.into() });
            }
        }
        for (component, contents) in &self.components {
            let graphs = contents.graphs.iter().map(|graph| &graph.file);
            if let Some(path) = graphs.chain(&contents.weights).find(|path| !listed.contains(path.as_str())) {
                let (path, component) = (path.clone(), component.clone());
                return Err(BundleError::Unlisted { path, component, bundle: bundle.into() });
            }
        }
        Ok(())
    }

    /// Checks that every file is there, regular, inside `dir` and of its size.
    pub(super) fn check_files(&self, dir: &Path) -> Result<(), BundleError> {
        let root = dir.canonicalize().map_err(BundleError::io(dir))?;
        self.files.iter().try_for_each(|entry| files::check_size(&dir.join(&entry.path), &root, entry.bytes))
    }

    /// Checks every recorded hash.
    pub(super) fn check_hashes(&self, dir: &Path) -> Result<(), BundleError> {
        for entry in &self.files {
            let path = dir.join(&entry.path);
            let same = |expected: &String, found: String| {
                if *expected == found {
                    return Ok(());
                }
                Err(BundleError::Hash { path: path.clone(), expected: expected.clone(), found })
            };
            if let Some(expected) = &entry.blake3 {
                same(expected, files::hash(&path)?)?;
            }
            if let Some(expected) = &entry.header_blake3 {
                same(expected, files::header_hash(&path)?.unwrap_or_else(|| "no header".into()))?;
            }
        }
        Ok(())
    }
}
