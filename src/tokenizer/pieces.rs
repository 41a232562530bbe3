//! The vocabulary: from a `SentencePiece` file or from a `tokenizer.json`.

use std::collections::HashSet;

use prost::Message;
use serde::Deserialize;
use tokenizers::AddedToken;
use tokenizers::normalizers::Precompiled;

use super::{UNKNOWN, charsmap};

/// What transformers takes from either file.
pub(super) struct Pieces {
    /// Pieces and their log probabilities; the position is the id.
    pub scored: Vec<(String, f64)>,
    /// The normalizer, where the file has one.
    pub charsmap: Option<Precompiled>,
    /// Control and user-defined pieces, as added tokens.
    pub special: Vec<AddedToken>,
    /// Whether `<extra_id_…>` pieces have to be appended: a `tokenizer.json` holds them already.
    pub lacks_extra_ids: bool,
    /// Added tokens with their ids; a `tokenizer.json` only.
    pub added: Vec<(u64, AddedToken)>,
}

/// `ModelProto` of `sentencepiece_model.proto`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SpmModel {
    #[prost(message, repeated, tag = "1")]
    pub pieces: Vec<SpmPiece>,
    #[prost(message, optional, tag = "2")]
    pub trainer: Option<SpmTrainer>,
    #[prost(message, optional, tag = "3")]
    pub normalizer: Option<SpmNormalizer>,
}

/// One piece.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SpmPiece {
    #[prost(string, optional, tag = "1")]
    pub piece: Option<String>,
    #[prost(float, optional, tag = "2")]
    pub score: Option<f32>,
    #[prost(int32, optional, tag = "3")]
    pub kind: Option<i32>,
}

/// `TrainerSpec`: which algorithm the pieces are for.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SpmTrainer {
    #[prost(int32, optional, tag = "3")]
    pub model_type: Option<i32>,
}

/// `NormalizerSpec`: the compiled normalization rules.
#[derive(Clone, PartialEq, Message)]
pub(super) struct SpmNormalizer {
    #[prost(bytes = "vec", optional, tag = "2")]
    pub precompiled_charsmap: Option<Vec<u8>>,
}

/// `SentencePiece.Type` of control pieces such as `</s>`.
const CONTROL: i32 = 3;
/// `SentencePiece.Type` of user-defined pieces.
const USER_DEFINED: i32 = 4;
/// `TrainerSpec.ModelType` of Unigram vocabularies, the default.
const UNIGRAM: i32 = 1;

/// A `tokenizer.json`, as far as transformers' `T5Tokenizer` uses it.
#[derive(Deserialize)]
struct JsonFile {
    model: JsonModel,
    #[serde(default)]
    normalizer: Option<JsonNormalizer>,
    added_tokens: Vec<JsonAdded>,
}

#[derive(Deserialize)]
struct JsonModel {
    #[serde(rename = "type")]
    kind: Option<String>,
    vocab: Vec<(String, f64)>,
}

#[derive(Deserialize)]
struct JsonNormalizer {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    normalizers: Vec<JsonNormalizer>,
    precompiled_charsmap: Option<String>,
}

#[derive(Deserialize)]
struct JsonAdded {
    id: u64,
    #[serde(flatten)]
    token: AddedToken,
}

impl Pieces {
    /// Reads a `spiece.model`.
    pub(super) fn from_spm(bytes: &[u8]) -> Result<Self, String> {
        let model = SpmModel::decode(bytes).map_err(|e| format!("expected a SentencePiece model, {e}"))?;
        let model_type = model.trainer.and_then(|trainer| trainer.model_type).unwrap_or(UNIGRAM);
        if model_type != UNIGRAM {
            return Err(format!("expected a Unigram model (type {UNIGRAM}), found type {model_type}"));
        }
        let special = model.pieces.iter().filter_map(|piece| {
            let kind = piece.kind.filter(|&kind| kind == CONTROL || kind == USER_DEFINED)?;
            Some(AddedToken::from(piece.piece.clone()?, kind == CONTROL).normalized(false))
        });
        let special = special.collect();
        let scored: Vec<(String, f64)> = model
            .pieces
            .into_iter()
            .map(|piece| (piece.piece.unwrap_or_default(), f64::from(piece.score.unwrap_or_default())))
            .collect();
        check(&scored)?;
        let charsmap = model.normalizer.and_then(|normalizer| normalizer.precompiled_charsmap);
        let charsmap = charsmap.filter(|bytes| !bytes.is_empty()).map(|bytes| charsmap::load(&bytes)).transpose()?;
        Ok(Self { scored, charsmap, special, lacks_extra_ids: true, added: Vec::new() })
    }

    /// Reads a `tokenizer.json`.
    pub(super) fn from_json(bytes: &[u8]) -> Result<Self, String> {
        let file: JsonFile = serde_json::from_slice(bytes).map_err(|e| format!("expected a Unigram tokenizer, {e}"))?;
        if let Some(kind) = file.model.kind.filter(|kind| kind != "Unigram") {
            return Err(format!("expected a `Unigram` model, found `{kind}`"));
        }
        check(&file.model.vocab)?;
        let steps = file.normalizer.into_iter().flat_map(|normalizer| {
            if normalizer.kind.as_deref() == Some("Sequence") { normalizer.normalizers } else { vec![normalizer] }
        });
        let text =
            steps.filter(|step| step.kind.as_deref() == Some("Precompiled")).find_map(|s| s.precompiled_charsmap);
        let charsmap = text.map(|text| charsmap::from_base64(&text).and_then(|b| charsmap::load(&b))).transpose()?;
        let added = file.added_tokens.into_iter().map(|added| (added.id, added.token)).collect();
        Ok(Self { scored: file.model.vocab, charsmap, special: Vec::new(), lacks_extra_ids: false, added })
    }
}

/// Refuses vocabularies on which the Unigram search would fail or be meaningless.
fn check(scored: &[(String, f64)]) -> Result<(), String> {
    if scored.len() <= UNKNOWN {
        return Err(format!("expected more than {UNKNOWN} pieces, found {}", scored.len()));
    }
    let mut seen = HashSet::with_capacity(scored.len());
    for (id, (piece, score)) in scored.iter().enumerate() {
        if piece.is_empty() {
            return Err(format!("piece {id}: expected text, found none"));
        }
        if !score.is_finite() {
            return Err(format!("piece {id} `{piece}`: expected a finite score, found {score}"));
        }
        if !seen.insert(piece) {
            return Err(format!("piece {id} `{piece}`: expected once, found twice"));
        }
    }
    Ok(())
}
