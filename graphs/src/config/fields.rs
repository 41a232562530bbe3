//! Typed, bounded access to the fields of a configuration file.

use std::io::{self, Read as _};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::source::{SourceError, open_regular};
use crate::weights::json::{parse, shown};

/// Largest configuration file read.
const MAX_BYTES: u64 = 16 << 20;

/// Why a configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// Reading failed.
    #[error("`{}`: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The operating system's word.
        source: io::Error,
    },
    /// The file is too large to be a configuration.
    #[error("`{}`: expected at most {limit} bytes, found {found}", file.display())]
    TooLarge {
        /// The file.
        file: PathBuf,
        /// Most accepted.
        limit: u64,
        /// Its size.
        found: u64,
    },
    /// The file is not JSON.
    #[error("`{}`: {problem}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// What the parser says, with line and column.
        problem: String,
    },
    /// One field has a value cogvx cannot honour.
    #[error("`{field}`: expected {expected}, found {found} (`{}`)", file.display())]
    Field {
        /// The file.
        file: PathBuf,
        /// The field, as written there.
        field: String,
        /// Values that work.
        expected: String,
        /// The value as JSON.
        found: String,
    },
    /// Component directories that `model_index.json` promises are not there.
    #[error("`{}`: expected the directories of its components, not found: {}", file.display(), missing.join(", "))]
    MissingComponents {
        /// `model_index.json`.
        file: PathBuf,
        /// The directories.
        missing: Vec<String>,
    },
}

/// The fields of one JSON object.
pub(super) struct Fields<'a> {
    file: &'a Path,
    map: Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub fn read(file: &'a Path) -> Result<Self, ConfigError> {
        let opened = open_regular(file)?;
        let mut bytes = Vec::new();
        let read = opened.file.take(MAX_BYTES + 1).read_to_end(&mut bytes);
        read.map_err(|source| ConfigError::Io { file: file.into(), source })?;
        if bytes.len() as u64 > MAX_BYTES {
            let found = opened.bytes.max(bytes.len() as u64);
            return Err(ConfigError::TooLarge { file: file.into(), limit: MAX_BYTES, found });
        }
        Self::parse(file, &bytes)
    }

    /// The fields of the text `bytes`; `file` is for messages.
    pub fn parse(file: &'a Path, bytes: &[u8]) -> Result<Self, ConfigError> {
        if bytes.starts_with(b"version https://git-lfs") {
            let problem = "expected JSON, found a git-lfs pointer: run `git lfs pull`".into();
            return Err(ConfigError::Json { file: file.into(), problem });
        }
        let value = parse(bytes).map_err(|problem| ConfigError::Json { file: file.into(), problem })?;
        Self::new(file, value)
    }

    pub fn new(file: &'a Path, value: Value) -> Result<Self, ConfigError> {
        match value {
            Value::Object(map) => Ok(Self { file, map }),
            _ => Err(ConfigError::Json { file: file.into(), problem: "expected a JSON object".into() }),
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.map.iter()
    }

    /// The value of `field`; Python's `None` is like a field left out.
    pub fn value(&self, field: &str) -> Option<&Value> {
        self.map.get(field).filter(|value| !value.is_null())
    }

    /// The error for `field`, whose value is not the `expected` one.
    pub fn wrong(&self, field: &str, expected: impl Into<String>) -> ConfigError {
        let found = match self.map.get(field) {
            None => "nothing".into(),
            Some(Value::String(text)) => format!("`{}`", shown(text)),
            Some(other) => format!("`{}`", shown(&other.to_string())),
        };
        ConfigError::Field { file: self.file.into(), field: shown(field), expected: expected.into(), found }
    }

    pub fn require(&self, field: &str, expected: &str, holds: bool) -> Result<(), ConfigError> {
        if holds { Ok(()) } else { Err(self.wrong(field, expected)) }
    }

    /// A whole number within `range`, or `default` where the field is absent.
    pub fn size(&self, field: &str, default: usize, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        if self.map.contains_key(field) {
            let expected = || self.wrong(field, whole(&range));
            self.optional_size(field, range.clone())?.ok_or_else(expected)
        } else {
            Ok(default)
        }
    }

    /// A whole number within `range`, or none where the field is absent or null.
    pub fn optional_size(&self, field: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.value(field) else { return Ok(None) };
        let found = value.as_u64().and_then(|n| usize::try_from(n).ok()).filter(|n| range.contains(n));
        found.map(Some).ok_or_else(|| self.wrong(field, whole(&range)))
    }

    /// A finite number within `range`, or `default` where the field is absent.
    pub fn number(&self, field: &str, default: f64, range: RangeInclusive<f64>) -> Result<f64, ConfigError> {
        let Some(value) = self.map.get(field) else { return Ok(default) };
        let expected = || format!("a number from {:e} to {:e}", range.start(), range.end());
        value.as_f64().filter(|n| range.contains(n)).ok_or_else(|| self.wrong(field, expected()))
    }

    /// An epsilon, as the `f32` it is in an ONNX attribute; the range is of `f32` too, so that what is written is read back.
    #[expect(clippy::cast_possible_truncation, reason = "the range keeps it a normal f32")]
    pub fn epsilon(&self, field: &str, default: f64) -> Result<f32, ConfigError> {
        let found = self.map.get(field).map_or(Some(default), Value::as_f64).map(|eps| eps as f32);
        let found = found.filter(|eps| (1e-12..=1e-1).contains(eps));
        found.ok_or_else(|| self.wrong(field, "a number from 1e-12 to 1e-1"))
    }

    pub fn flag(&self, field: &str, default: bool) -> Result<bool, ConfigError> {
        let Some(value) = self.map.get(field) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.wrong(field, "`true` or `false`"))
    }

    /// One of the `known` words, the first of them where the field is absent.
    pub fn word(&self, field: &str, known: &[&str]) -> Result<String, ConfigError> {
        let found = match self.map.get(field) {
            None => known.first().copied(),
            Some(value) => value.as_str().filter(|word| known.contains(word)),
        };
        found.map(String::from).ok_or_else(|| self.wrong(field, one_of(known)))
    }

    /// A list read item by item, or `default` where the field is absent.
    pub fn list<T>(
        &self,
        field: &str,
        default: Vec<T>,
        expected: &str,
        item: impl Fn(&Value) -> Option<T>,
    ) -> Result<Vec<T>, ConfigError> {
        let Some(value) = self.map.get(field) else { return Ok(default) };
        let items = value.as_array().and_then(|items| items.iter().map(item).collect());
        items.ok_or_else(|| self.wrong(field, expected))
    }

    /// Checks the class the file says it is of, and that its weights are not quantized by another library.
    pub fn is_class(&self, class: &str) -> Result<(), ConfigError> {
        let found = self.value("_class_name").and_then(Value::as_str);
        self.require("_class_name", &format!("`{class}`"), found == Some(class))?;
        self.is_plain()
    }

    /// Checks that the weights are not quantized by another library.
    pub fn is_plain(&self) -> Result<(), ConfigError> {
        let expected = "weights that are not quantized";
        self.require("quantization_config", expected, self.value("quantization_config").is_none())
    }
}

fn whole(range: &RangeInclusive<usize>) -> String {
    format!("a whole number from {} to {}", range.start(), range.end())
}

fn one_of(known: &[&str]) -> String {
    let quoted: Vec<_> = known.iter().map(|word| format!("`{word}`")).collect();
    quoted.join(" or ")
}
