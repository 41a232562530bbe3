//! The T5 tokenizer of a checkpoint: text to the ids that transformers' `T5Tokenizer` gives.
//!
//! Published checkpoints hold a `SentencePiece` file, `spiece.model`; newer ones may hold a `tokenizer.json`. Either is
//! read here and checked before the `tokenizers` crate sees it, since that crate trusts what it loads.

mod charsmap;
mod minimal;
mod pieces;
mod settings;

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use cogvx_graphs::source::{SourceError, open_regular};
use tokenizers::AddedToken;
use tokenizers::models::unigram::Unigram;
use tokenizers::pre_tokenizers::metaspace::{Metaspace, PrependScheme};
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::whitespace::WhitespaceSplit;

pub(crate) use minimal::minimal_spm;
use pieces::Pieces;
use settings::{Settings, Side};

/// Largest tokenizer file read, in bytes: published ones have less than 3 MB, and decoded pieces can take 40 times theirs.
const MAX_FILE: u64 = 16 << 20;
/// Id of the unknown piece: `T5Tokenizer` fixes it, whatever the file says.
const UNKNOWN: usize = 2;
/// The space marker of `SentencePiece`.
const SPACE: char = '▁';

/// Why a tokenizer could not be opened or used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TokenizerError {
    /// A file could not be opened.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A file could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The directory has neither kind of vocabulary.
    #[error("`{}`: expected `spiece.model` or `tokenizer.json`, found neither", .0.display())]
    NoVocabulary(PathBuf),
    /// A file does not hold what it should.
    #[error("`{}`: {problem}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, with what was expected and found.
        problem: String,
    },
    /// Every encoded text ends with the end token.
    #[error("token count: expected at least 1, found {0}")]
    Length(usize),
    /// The `tokenizers` crate refused a text.
    #[error("cannot tokenize the text: {0}")]
    Encode(String),
}

/// Gives the bytes of a file, or none where there is no such file.
type Read<'a> = &'a dyn Fn(&Path) -> Result<Option<Vec<u8>>, TokenizerError>;

/// Turns text into ids for the T5 encoder.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    end: u32,
    pad: u32,
    truncation: Side,
    padding: Side,
}

impl Tokenizer {
    /// Opens the tokenizer of a checkpoint from its `tokenizer/` directory.
    ///
    /// Reads `tokenizer.json` or else `spiece.model` (the order of transformers), and where present
    /// `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json`.
    ///
    /// # Errors
    /// A file that cannot be read, is larger than 16 MiB, or does not hold a Unigram vocabulary and its settings.
    pub fn open(dir: &Path) -> Result<Self, TokenizerError> {
        Self::from_files(dir, &read)
    }

    /// The tokenizer of such files in memory, by their names.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn from_memory(files: &BTreeMap<String, Vec<u8>>) -> Result<Self, TokenizerError> {
        Self::from_files(Path::new(""), &|path| Ok(path.to_str().and_then(|name| files.get(name)).cloned()))
    }

    fn from_files(dir: &Path, read: Read<'_>) -> Result<Self, TokenizerError> {
        let (json, spm) = (dir.join("tokenizer.json"), dir.join("spiece.model"));
        let (path, bytes) = match read(&json)? {
            None => (spm.clone(), read(&spm)?),
            found => (json, found),
        };
        let Some(bytes) = bytes else { return Err(TokenizerError::NoVocabulary(dir.to_owned())) };
        let is_json = path.extension().is_some_and(|extension| extension == "json");
        let pieces = if is_json { Pieces::from_json(&bytes) } else { Pieces::from_spm(&bytes) };
        let pieces = pieces.map_err(|problem| TokenizerError::File { path: path.clone(), problem })?;
        let settings = Settings::read(dir, &pieces, read)?;
        Self::build(pieces, &settings).map_err(|problem| TokenizerError::File { path, problem })
    }

    fn build(pieces: Pieces, settings: &Settings) -> Result<Self, String> {
        let mut vocabulary = pieces.scored;
        if pieces.lacks_extra_ids {
            let extra = (0..settings.extra_ids).rev().map(|i| (format!("<extra_id_{i}>"), 0.0));
            vocabulary.extend(extra);
        }
        let added = settings.added_tokens();
        // A token that normalizes to nothing would be found between any two bytes, and the crate would panic.
        let is_lost = |token: &&AddedToken| {
            let text = pieces.charsmap.as_ref().map(|charsmap| charsmap.normalize_string(&token.content));
            token.normalized && text.is_some_and(|text| text.is_empty())
        };
        if let Some(token) = added.iter().find(is_lost) {
            return Err(format!("added token {:?}: expected text, found none after normalization", token.content));
        }
        let model = Unigram::from(vocabulary, Some(UNKNOWN), false).map_err(|e| e.to_string())?;
        let mut inner = tokenizers::Tokenizer::new(model);
        inner.with_normalizer(pieces.charsmap).map_err(|e| e.to_string())?;
        let words = Metaspace::new(SPACE, PrependScheme::Always, true);
        inner.with_pre_tokenizer(Some(Sequence::new(vec![WhitespaceSplit.into(), words.into()])));
        inner.add_tokens(added).map_err(|e| e.to_string())?;
        inner.set_encode_special_tokens(settings.split_special_tokens);
        let id = |name: &str| {
            let token = settings.named(name).ok_or(format!("expected a `{name}`, found none"))?;
            inner.token_to_id(token).ok_or(format!("`{name}`: expected a piece, found `{token}`"))
        };
        let (end, pad) = (id("eos_token")?, id("pad_token")?);
        Ok(Self { end, pad, truncation: settings.truncation, padding: settings.padding, inner })
    }

    /// How many ids the whole text has, the end token among them.
    ///
    /// # Errors
    /// A text that the `tokenizers` crate refuses.
    pub fn count(&self, text: &str) -> Result<usize, TokenizerError> {
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        Ok(encoding.len() + 1)
    }

    /// The ids of `text`: exactly `max_length` of them.
    ///
    /// As transformers gives with `padding="max_length", truncation=True, add_special_tokens=True`: a long text is cut
    /// to make room for the end token, a short one is padded.
    ///
    /// # Errors
    /// A `max_length` of 0.
    pub fn encode(&self, text: &str, max_length: usize) -> Result<Vec<i64>, TokenizerError> {
        let room = max_length.checked_sub(1).ok_or(TokenizerError::Length(max_length))?;
        let encoding = self.inner.encode_fast(text, false).map_err(|e| TokenizerError::Encode(e.to_string()))?;
        let ids = encoding.get_ids();
        let surplus = ids.len().saturating_sub(room);
        let kept = match self.truncation {
            Side::Right => &ids[..ids.len() - surplus],
            Side::Left => &ids[surplus..],
        };
        let padding = std::iter::repeat_n(self.pad, room - kept.len());
        let text = kept.iter().copied().chain([self.end]);
        let whole: Vec<u32> = match self.padding {
            Side::Right => text.chain(padding).collect(),
            Side::Left => padding.chain(text).collect(),
        };
        Ok(whole.into_iter().map(i64::from).collect())
    }

    /// The piece of text that an id stands for, with `▁` for a space before it.
    #[must_use]
    pub fn piece(&self, id: i64) -> Option<String> {
        u32::try_from(id).ok().and_then(|id| self.inner.id_to_token(id))
    }

    /// Number of ids, extra ids and added tokens included. The model may have more rows.
    #[must_use]
    pub fn vocabulary_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// Id that fills up short texts.
    #[must_use]
    pub fn pad_id(&self) -> i64 {
        i64::from(self.pad)
    }
}

/// The bytes of a file, or `None` if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>, TokenizerError> {
    let failed = |source| TokenizerError::Read { path: path.to_owned(), source };
    let file = match open_regular(path) {
        Ok(opened) => opened.file,
        Err(SourceError::Missing { .. }) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE {
        let problem = format!("expected at most {MAX_FILE} bytes, found more");
        return Err(TokenizerError::File { path: path.to_owned(), problem });
    }
    if bytes.starts_with(b"version https://git-lfs") {
        let problem = "expected a tokenizer's file, found a git-lfs pointer: run `git lfs pull`".into();
        return Err(TokenizerError::File { path: path.to_owned(), problem });
    }
    Ok(Some(bytes))
}

#[cfg(test)]
mod tests;
