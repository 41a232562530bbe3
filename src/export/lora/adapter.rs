//! Ranks and alphas that a LoRA was trained with, from PEFT's configuration in the file's metadata.

use std::collections::BTreeMap;
use std::path::Path;

use cogvx_graphs::Weights;
use serde::Deserialize;
use serde_json::Value;

use super::error::{LoraError, LoraProblem};

/// The fields of PEFT's `LoraConfig` that decide how much is added.
#[derive(Debug, Deserialize)]
pub(super) struct Adapter {
    #[serde(rename = "transformer.r")]
    rank: usize,
    #[serde(rename = "transformer.lora_alpha")]
    alpha: f64,
    #[serde(rename = "transformer.rank_pattern", default)]
    ranks: Option<BTreeMap<String, usize>>,
    #[serde(rename = "transformer.alpha_pattern", default)]
    alphas: Option<BTreeMap<String, f64>>,
    #[serde(rename = "transformer.use_rslora", default)]
    by_root: bool,
    #[serde(rename = "transformer.use_dora", default)]
    dora: bool,
}

impl Adapter {
    /// The configuration in the file `weights`, if there is one; `path` is for messages.
    ///
    /// # Errors
    /// There is one that is incomplete, of a DoRA, or has patterns that are not names of modules.
    pub fn read(weights: &Weights, path: &Path) -> Result<Option<Self>, LoraError> {
        match weights.metadata(0)?.remove("lora_adapter_metadata") {
            Some(text) => Self::parse(&text, path),
            None => Ok(None),
        }
    }

    /// The configuration `text`, if it is one of the transformer.
    pub fn parse(text: &str, path: &Path) -> Result<Option<Self>, LoraError> {
        let wrong = |message| LoraError::Metadata { file: path.into(), message };
        let json: Value = serde_json::from_str(text).map_err(|e| wrong(format!("expected JSON, found {e:.200}")))?;
        let Value::Object(fields) = &json else { return Err(wrong("expected an object".into())) };
        if !fields.keys().any(|key| key.starts_with("transformer.")) {
            return Ok(None);
        }
        let adapter: Self = serde_json::from_value(json).map_err(|e| wrong(format!("{e:.200}")))?;
        if adapter.dora {
            return Err(wrong("`transformer.use_dora`: expected false, found true: DoRA is not supported".into()));
        }
        let patterns = adapter.ranks.iter().flat_map(BTreeMap::keys);
        match patterns.chain(adapter.alphas.iter().flat_map(BTreeMap::keys)).find(|key| plain(key).is_none()) {
            Some(key) => Err(wrong(format!("expected the names of modules as patterns, found {key:.200?}"))),
            None => Ok(Some(adapter)),
        }
    }

    /// What `b @ a` of rank `found` is multiplied by for `module`.
    ///
    /// # Errors
    /// The rank is another, or patterns disagree.
    pub fn scaling(&self, module: &str, found: usize) -> Result<f64, LoraProblem> {
        let ambiguous = |field| LoraProblem::Ambiguous { module: module.into(), field };
        let rank = named(self.ranks.as_ref(), module).map_err(|()| ambiguous("rank_pattern"))?;
        let alpha = named(self.alphas.as_ref(), module).map_err(|()| ambiguous("alpha_pattern"))?;
        let expected = rank.unwrap_or(self.rank);
        if found != expected {
            return Err(LoraProblem::Rank { module: module.into(), expected, found });
        }
        #[allow(clippy::cast_precision_loss)] // Ranks are small.
        let rank = found as f64;
        Ok(alpha.unwrap_or(self.alpha) / if self.by_root { rank.sqrt() } else { rank })
    }
}

/// A pattern that only names a module, as its name and whether that is the whole path. PEFT takes patterns as regular
/// expressions; its own tools and trainers write names.
fn plain(pattern: &str) -> Option<(String, bool)> {
    let (name, whole) = pattern.strip_prefix('^').map_or((pattern, false), |name| (name, true));
    let name = name.strip_suffix('$').unwrap_or(name).replace("\\.", ".");
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || "._".contains(c));
    is_name.then_some((name, whole))
}

/// The value for `module`, whose path a pattern may give from any name on; several must agree.
fn named<T: Copy + PartialEq>(patterns: Option<&BTreeMap<String, T>>, module: &str) -> Result<Option<T>, ()> {
    let matches = |pattern: &str| {
        plain(pattern).is_some_and(|(name, whole)| {
            let before = module.strip_suffix(name.as_str());
            before.is_some_and(|before| before.is_empty() || (!whole && before.ends_with('.')))
        })
    };
    let mut found = patterns.into_iter().flatten().filter(|(pattern, _)| matches(pattern)).map(|(_, value)| *value);
    let first = found.next();
    if found.all(|other| Some(other) == first) { Ok(first) } else { Err(()) }
}
