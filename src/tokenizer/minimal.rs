//! A vocabulary of single characters, for checkpoints without a tokenizer of their own.

use prost::Message as _;

use super::SPACE;
use super::pieces::{SpmModel, SpmPiece};

/// `SentencePiece.Type` of ordinary pieces.
const NORMAL: i32 = 1;
/// The unknown piece.
const UNKNOWN: i32 = 2;
/// Control pieces.
const CONTROL: i32 = 3;

/// A `spiece.model` with T5's special pieces, the space and the visible characters of ASCII.
pub(crate) fn minimal_spm() -> Vec<u8> {
    let special = [("<pad>", CONTROL), ("</s>", CONTROL), ("<unk>", UNKNOWN)];
    let special = special.map(|(piece, kind)| (piece.to_owned(), kind, 0.0));
    let characters = std::iter::once(SPACE).chain('!'..='~').map(|c| (c.to_string(), NORMAL, -4.0));
    let piece = |(piece, kind, score)| SpmPiece { piece: Some(piece), score: Some(score), kind: Some(kind) };
    let pieces = special.into_iter().chain(characters).map(piece).collect();
    SpmModel { pieces, trainer: None, normalizer: None }.encode_to_vec()
}

#[cfg(test)]
mod tests {
    use crate::tokenizer::Tokenizer;

    #[test]
    fn ascii_text_has_no_unknown_pieces() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("spiece.model"), super::minimal_spm()).unwrap();
        let tokenizer = Tokenizer::open(dir.path()).unwrap();
        let text: String = ('!'..='~').collect();
        let ids = tokenizer.encode(&format!("a {text}"), 128).unwrap();
        assert!(!ids.contains(&2), "{ids:?}");
        assert_eq!(tokenizer.encode("a b", 6).unwrap(), [3, 68, 3, 69, 1, 0]);
        assert_eq!(tokenizer.encode("é", 4).unwrap(), [3, 2, 1, 0]);
        assert_eq!(tokenizer.vocabulary_size(), 198);
    }
}
