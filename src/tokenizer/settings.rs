//! Special and added tokens: `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
//!
//! Follows the order in which transformers 5.23 merges them (`transformers/tokenization_utils_base.py` and
//! `transformers/tokenization_utils_tokenizers.py`), since that order decides flags and ids.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::AddedToken;

use super::pieces::Pieces;
use super::{Read, TokenizerError};

/// The named tokens every tokenizer may have, in transformers' order.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// Most tokens in a list and fields in a file: T5 has some hundred, and each is looked for among the others.
const MAX_TOKENS: usize = 10_000;

/// An end of a text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Side {
    /// The start.
    Left,
    /// The end.
    #[default]
    Right,
}

/// What the files beside the vocabulary say.
pub(super) struct Settings {
    /// Number of `<extra_id_…>` sentinels.
    pub extra_ids: u64,
    /// Whether special tokens in a text are split like words.
    pub split_special_tokens: bool,
    /// Where long texts are cut.
    pub truncation: Side,
    /// Where short texts are filled.
    pub padding: Side,
    /// Named tokens: T5's seven, then those of the checkpoint.
    named: Vec<(String, AddedToken)>,
    /// Special tokens without a name.
    extra: Vec<AddedToken>,
    /// Added tokens by id; transformers adds them in this order but does not keep the ids.
    added: BTreeMap<u64, AddedToken>,
}

impl Settings {
    /// Reads those files of `dir` that `read` finds.
    pub(super) fn read(dir: &Path, pieces: &Pieces, read: Read<'_>) -> Result<Self, TokenizerError> {
        let object = |path: &Path| object(path, read);
        let config_path = dir.join("tokenizer_config.json");
        let at = |problem: String| TokenizerError::File { path: config_path.clone(), problem };
        let mut config = object(&config_path)?.unwrap_or_default();
        if config.get("extra_special_tokens").is_none_or(is_empty)
            && let Some(tokens) = config.remove("additional_special_tokens")
        {
            config.insert("extra_special_tokens".to_owned(), tokens);
        }
        let mut added = BTreeMap::new();
        if let Some(decoder) = config.get("added_tokens_decoder") {
            let decoder: BTreeMap<u64, Token> =
                parse(decoder).map_err(|e| at(format!("`added_tokens_decoder`: {e}")))?;
            added.extend(decoder.into_iter().map(|(id, token)| (id, token.plain())));
        } else {
            merge_map(object(&dir.join("special_tokens_map.json"))?, &mut config);
            let path = dir.join("added_tokens.json");
            merge_added(object(&path)?, &path, &config, &mut added)?;
            added.extend(pieces.added.iter().cloned());
        }
        Self::from_config(&config, pieces, added).map_err(at)
    }

    fn from_config(
        config: &Map<String, Value>,
        pieces: &Pieces,
        added: BTreeMap<u64, AddedToken>,
    ) -> Result<Self, String> {
        let extra_ids: u64 = field(config, "extra_ids")?.unwrap_or(100);
        if extra_ids > MAX_TOKENS as u64 {
            return Err(format!("`extra_ids`: expected at most {MAX_TOKENS}, found {extra_ids}"));
        }
        few("added tokens", added.len())?;
        let mut named = Vec::new();
        let others = config.keys().map(String::as_str).filter(|key| key.ends_with("_token") && !NAMED.contains(key));
        for name in NAMED.into_iter().chain(others) {
            let default = match name {
                "eos_token" => Some("</s>"),
                "unk_token" => Some("<unk>"),
                "pad_token" => Some("<pad>"),
                _ => None,
            };
            let found = match config.get(name) {
                Some(Value::Null) => None,
                Some(Value::String(_) | Value::Object(_)) => field::<Token>(config, name)?,
                // `add_eos_token: true` and the like are no tokens.
                Some(value) if NAMED.contains(&name) => {
                    return Err(format!("`{name}`: expected a token, found {value}"));
                }
                Some(_) => None,
                None => default.map(|text| Token::Text(text.to_owned())),
            };
            named.extend(found.map(|token| (name.to_owned(), token.special())));
        }
        for (_, token) in &mut named {
            if let Some(known) = added.values().find(|known| known.content == token.content) {
                *token = AddedToken { special: true, ..known.clone() };
            }
        }
        let extra = match config.get("extra_special_tokens") {
            Some(Value::Object(tokens)) => {
                for name in tokens.keys() {
                    named.extend(field::<Token>(tokens, name)?.map(|token| (name.clone(), token.special())));
                }
                sentinels(config, pieces, extra_ids)?
            }
            None => sentinels(config, pieces, extra_ids)?,
            Some(_) => tokens(config, "extra_special_tokens")?,
        };
        Ok(Self {
            extra_ids,
            split_special_tokens: field(config, "split_special_tokens")?.unwrap_or(false),
            truncation: field(config, "truncation_side")?.unwrap_or_default(),
            padding: field(config, "padding_side")?.unwrap_or_default(),
            named,
            extra,
            added,
        })
    }

    /// Text of a named token.
    pub(super) fn named(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(known, _)| known == name).map(|(_, token)| token.content.as_str())
    }

    /// Every added token once, in the order in which transformers adds them.
    pub(super) fn added_tokens(&self) -> Vec<AddedToken> {
        let mut tokens: Vec<AddedToken> = self.added.values().cloned().collect();
        for token in self.named.iter().map(|(_, token)| token).chain(&self.extra) {
            if !tokens.iter().any(|known| known.content == token.content) {
                tokens.push(token.clone());
            }
        }
        for token in &mut tokens {
            token.special |= self.named.iter().any(|(_, named)| named.content == token.content);
        }
        tokens
    }
}

/// The special tokens that hold where the configuration lists none: those of the vocabulary file and the sentinels.
fn sentinels(config: &Map<String, Value>, pieces: &Pieces, extra_ids: u64) -> Result<Vec<AddedToken>, String> {
    let name = "additional_special_tokens";
    let mut special = if pieces.lacks_extra_ids { pieces.special.clone() } else { tokens(config, name)? };
    let known = special.iter().filter(|token| token.content.contains("<extra_id_")).count() as u64;
    if known == 0 {
        special.extend((0..extra_ids).map(|i| AddedToken::from(format!("<extra_id_{i}>"), true)));
    } else if extra_ids > 0 && known != extra_ids {
        return Err(format!("`{name}`: expected {extra_ids} `<extra_id_…>` tokens, found {known}"));
    }
    Ok(special)
}

/// A token as the JSON files write it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    /// Its text: a special token.
    Text(String),
    /// Its text and flags.
    Flags(Flags),
}

#[expect(clippy::struct_excessive_bools, reason = "the file's own flags")]
#[derive(Deserialize)]
struct Flags {
    content: String,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    #[serde(default)]
    single_word: bool,
    normalized: Option<bool>,
    #[serde(default)]
    special: bool,
}

impl Token {
    /// With the flags as written.
    fn plain(self) -> AddedToken {
        match self {
            Self::Text(text) => AddedToken::from(text, true),
            Self::Flags(Flags { content, lstrip, rstrip, single_word, normalized, special }) => {
                AddedToken { content, lstrip, rstrip, single_word, normalized: normalized.unwrap_or(!special), special }
            }
        }
    }

    /// As a special token.
    fn special(self) -> AddedToken {
        match self {
            Self::Flags(flags) => Self::Flags(Flags { special: true, ..flags }).plain(),
            text @ Self::Text(_) => text.plain(),
        }
    }
}

/// Merges `special_tokens_map.json` into the configuration: it wins, except that lists of extra tokens are joined.
fn merge_map(map: Option<Map<String, Value>>, config: &mut Map<String, Value>) {
    for (key, value) in map.unwrap_or_default() {
        match (key.as_str(), config.get_mut(&key), value) {
            ("extra_special_tokens", Some(Value::Array(known)), Value::Array(more)) => {
                for token in more {
                    if !known.contains(&token) {
                        known.push(token);
                    }
                }
            }
            (_, _, value) => {
                config.insert(key, value);
            }
        }
    }
}

/// Reads `added_tokens.json`, a map from text to id.
fn merge_added(
    tokens: Option<Map<String, Value>>,
    path: &Path,
    config: &Map<String, Value>,
    added: &mut BTreeMap<u64, AddedToken>,
) -> Result<(), TokenizerError> {
    let text = |value: &Value| {
        let object = value.get("content").and_then(Value::as_str);
        value.as_str().or(object).map(str::to_owned)
    };
    let mut special: Vec<String> = NAMED.iter().filter_map(|name| config.get(*name).and_then(text)).collect();
    if let Some(Value::Array(tokens)) = config.get("extra_special_tokens") {
        special.extend(tokens.iter().filter_map(text));
    }
    for (content, id) in tokens.unwrap_or_default() {
        let id = id.as_u64().ok_or_else(|| TokenizerError::File {
            path: path.to_owned(),
            problem: format!("`{content}`: expected an id, found {id}"),
        })?;
        let is_special = special.contains(&content);
        added.insert(id, AddedToken::from(content, is_special));
    }
    Ok(())
}

/// The JSON object in a file, or `None` if there is no such file.
fn object(path: &Path, read: Read<'_>) -> Result<Option<Map<String, Value>>, TokenizerError> {
    let Some(bytes) = read(path)? else { return Ok(None) };
    let parsed = serde_json::from_slice(&bytes);
    let named = |e: serde_json::Error| TokenizerError::File {
        path: path.to_owned(),
        problem: format!("expected a JSON object, {e}"),
    };
    let map: Map<String, Value> = parsed.map_err(named)?;
    let lists = map.iter().filter_map(|(name, value)| Some((name.as_str(), value.as_array()?.len())));
    let counts = lists.chain([("the file", map.len())]);
    let too_many = |problem| TokenizerError::File { path: path.to_owned(), problem };
    counts.into_iter().try_for_each(|(name, count)| few(name, count)).map_err(too_many)?;
    Ok(Some(map))
}

fn few(name: &str, found: usize) -> Result<(), String> {
    if found <= MAX_TOKENS { Ok(()) } else { Err(format!("{name}: expected at most {MAX_TOKENS}, found {found}")) }
}

fn parse<T: serde::de::DeserializeOwned>(value: &Value) -> Result<T, String> {
    T::deserialize(value).map_err(|e| e.to_string())
}

/// A field, unless it is missing or null.
fn field<T: serde::de::DeserializeOwned>(config: &Map<String, Value>, name: &str) -> Result<Option<T>, String> {
    let value = config.get(name).filter(|value| !value.is_null());
    value.map(parse).transpose().map_err(|e| format!("`{name}`: {e}"))
}

/// A list of tokens; empty if it is missing or null.
fn tokens(config: &Map<String, Value>, name: &str) -> Result<Vec<AddedToken>, String> {
    let tokens = field::<Vec<Token>>(config, name)?.unwrap_or_default();
    Ok(tokens.into_iter().map(Token::plain).collect())
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        _ => false,
    }
}
