//! `model_index.json`: which pipeline a checkpoint is for, and of what it is made.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::fields::{ConfigError, Fields};

/// The pipelines cogvx can run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum PipelineClass {
    /// Text to video.
    #[serde(rename = "CogVideoXPipeline")]
    Text,
    /// A first frame and text to video.
    #[serde(rename = "CogVideoXImageToVideoPipeline")]
    Image,
    /// A video and text to video.
    #[serde(rename = "CogVideoXVideoToVideoPipeline")]
    Video,
}

impl PipelineClass {
    const ALL: [Self; 3] = [Self::Text, Self::Image, Self::Video];

    /// The class name in diffusers.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Text => "CogVideoXPipeline",
            Self::Image => "CogVideoXImageToVideoPipeline",
            Self::Video => "CogVideoXVideoToVideoPipeline",
        }
    }
}

impl fmt::Display for PipelineClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// One component of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Component {
    /// The Python library the class is from, such as `diffusers`.
    pub library: String,
    /// The class, such as `AutoencoderKLCogVideoX`.
    pub class: String,
}

/// The contents of `model_index.json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PipelineIndex {
    /// Which pipeline.
    pub class: PipelineClass,
    /// The diffusers version that saved it.
    pub diffusers_version: Option<String>,
    /// Components by directory name; those saved as `null` are left out.
    pub components: BTreeMap<String, Component>,
}

/// What every pipeline is made of.
const REQUIRED: [&str; 5] = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"];

impl PipelineIndex {
    /// Reads `model_index.json` and checks that the directories of its components exist beside it.
    ///
    /// # Errors
    /// When the file cannot be read, the pipeline is not one of [`PipelineClass`], a component is missing from the
    /// file or its directory from the checkpoint.
    pub fn from_json(path: &Path) -> Result<Self, ConfigError> {
        let index = Self::from_fields(&Fields::read(path)?)?;
        let checkpoint = path.parent().unwrap_or(Path::new(""));
        let missing = |name: &&String| !checkpoint.join(name).is_dir();
        let missing: Vec<_> = index.components.keys().filter(missing).map(|name| format!("`{name}`")).collect();
        if !missing.is_empty() {
            return Err(ConfigError::MissingComponents { file: path.into(), missing });
        }
        Ok(index)
    }

    /// Reads the text of such a file without looking for directories; `file` is for messages.
    ///
    /// # Errors
    /// When it is not JSON, the pipeline is not one of [`PipelineClass`] or a component is missing.
    pub fn from_slice(file: &Path, json: &[u8]) -> Result<Self, ConfigError> {
        Self::from_fields(&Fields::parse(file, json)?)
    }

    fn from_fields(f: &Fields) -> Result<Self, ConfigError> {
        let found = f.value("_class_name").and_then(Value::as_str);
        let class = PipelineClass::ALL.into_iter().find(|class| Some(class.name()) == found);
        let known = PipelineClass::ALL.map(|class| format!("`{class}`")).join(" or ");
        let class = class.ok_or_else(|| f.wrong("_class_name", known))?;
        let mut components = BTreeMap::new();
        for (name, value) in f.iter().filter(|(name, _)| !name.starts_with('_')) {
            components.extend(component(f, name, value)?.map(|component| (name.clone(), component)));
        }
        for name in REQUIRED {
            f.require(name, "a library and a class", components.contains_key(name))?;
        }
        let diffusers_version = f.value("_diffusers_version").and_then(Value::as_str).map(String::from);
        Ok(Self { class, diffusers_version, components })
    }
}

/// The component `name`, or none where the value is an option of the pipeline or a pair of nulls.
fn component(f: &Fields, name: &str, value: &Value) -> Result<Option<Component>, ConfigError> {
    let Value::Array(pair) = value else { return Ok(None) };
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let word = |text: &str| !text.is_empty() && text.len() <= 200 && text.chars().all(plain);
    let expected = "a plain name with a library and a class";
    match pair.as_slice() {
        [Value::Null, Value::Null] => Ok(None),
        [Value::String(library), Value::String(class)] => {
            let dotted = word(&library.replace('.', "_"));
            f.require(name, expected, word(name) && dotted && word(class))?;
            Ok(Some(Component { library: library.clone(), class: class.clone() }))
        }
        _ => Err(f.wrong(name, expected)),
    }
}
