use prost::Message;
use tempfile::TempDir;

use super::pieces::{SpmModel, SpmNormalizer, SpmPiece, SpmTrainer};
use super::*;

fn piece(text: &str, score: f32, kind: i32) -> SpmPiece {
    SpmPiece { piece: Some(text.to_owned()), score: Some(score), kind: Some(kind) }
}

/// A vocabulary of T5's shape: three special pieces, then words and letters.
fn model() -> SpmModel {
    let mut pieces = vec![piece("<pad>", 0.0, 3), piece("</s>", 0.0, 3), piece("<unk>", 0.0, 2)];
    pieces.extend(["▁red", "▁", "r", "e", "d", "▁circle"].map(|text| piece(text, -2.0, 1)));
    SpmModel { pieces, trainer: None, normalizer: None }
}

fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = TempDir::new().expect("a temporary directory");
    for (name, bytes) in files {
        std::fs::write(dir.path().join(name), bytes).expect("a file");
    }
    dir
}

fn open(model: &SpmModel) -> Result<Tokenizer, TokenizerError> {
    Tokenizer::open(folder(&[("spiece.model", &model.encode_to_vec())]).path())
}

fn refusal(files: &[(&str, &[u8])]) -> String {
    Tokenizer::open(folder(files).path()).expect_err("refused").to_string()
}

#[test]
fn words_end_with_the_end_token_and_are_padded_or_cut() {
    let tokenizer = open(&model()).expect("valid");
    assert_eq!(tokenizer.encode("red circle", 5).expect("valid"), [3, 8, 1, 0, 0]);
    assert_eq!(tokenizer.encode("red circle", 2).expect("valid"), [3, 1]);
    assert_eq!(tokenizer.encode("red circle", 1).expect("valid"), [1]);
    assert_eq!(tokenizer.encode("", 2).expect("valid"), [1, 0]);
    assert_eq!(
        tokenizer.encode("red", 0).expect_err("refused").to_string(),
        "token count: expected at least 1, found 0"
    );
}

#[test]
fn sentinels_follow_the_pieces_in_falling_order() {
    let tokenizer = open(&model()).expect("valid");
    assert_eq!(tokenizer.vocabulary_size(), 9 + 100);
    assert_eq!(tokenizer.encode("<extra_id_99>red<extra_id_0>", 4).expect("valid"), [9, 3, 108, 1]);
}

#[test]
fn sides_of_the_configuration_are_kept() {
    let config = br#"{"padding_side": "left", "truncation_side": "left"}"#;
    let files: [(&str, &[u8]); 2] = [("spiece.model", &model().encode_to_vec()), ("tokenizer_config.json", config)];
    let tokenizer = Tokenizer::open(folder(&files).path()).expect("valid");
    assert_eq!(tokenizer.encode("red circle", 4).expect("valid"), [0, 3, 8, 1]);
    assert_eq!(tokenizer.encode("red circle", 2).expect("valid"), [8, 1]);
}

#[test]
fn tokenizer_json_is_read_without_a_sentencepiece_file() {
    let json = r#"{"model": {"type": "Unigram", "unk_id": 2,
        "vocab": [["<pad>", 0], ["</s>", 0], ["<unk>", 0], ["▁red", -1], ["▁a", -2]]}, "added_tokens": []}"#;
    let tokenizer = Tokenizer::open(folder(&[("tokenizer.json", json.as_bytes())]).path()).expect("valid");
    assert_eq!(tokenizer.encode("a red dog", 6).expect("valid"), [4, 3, 2, 1, 0, 0]);
}

#[test]
fn an_empty_folder_is_refused_by_name() {
    assert!(refusal(&[]).contains("expected `spiece.model` or `tokenizer.json`, found neither"));
}

#[test]
fn vocabularies_that_make_no_sense_are_refused() {
    let charsmap = |bytes: &[u8]| Some(SpmNormalizer { precompiled_charsmap: Some(bytes.to_vec()) });
    let mut cases = Vec::new();
    for (bytes, wanted) in [
        (&b"abc"[..], "expected a size"),
        (&[255; 8], "expected an array of 4 to 4 bytes, found 4294967295"),
        (&[4, 0, 0, 0, 0, 0, 0, 0], "expected positions below 1, found 1"),
        (&[0, 0, 0, 0], "expected an array"),
    ] {
        cases.push((SpmModel { normalizer: charsmap(bytes), ..model() }, wanted));
    }
    for (index, bad, wanted) in [
        (3, piece("", 0.0, 1), "piece 3: expected text, found none"),
        (4, piece("x", f32::NAN, 1), "piece 4 `x`: expected a finite score, found NaN"),
        (5, piece("▁red", 0.0, 1), "piece 5 `▁red`: expected once, found twice"),
    ] {
        let mut model = model();
        model.pieces[index] = bad;
        cases.push((model, wanted));
    }
    cases.push((SpmModel { pieces: vec![piece("a", 0.0, 1)], ..model() }, "expected more than 2 pieces, found 1"));
    let bpe = Some(SpmTrainer { model_type: Some(2) });
    cases.push((SpmModel { trainer: bpe, ..model() }, "expected a Unigram model (type 1), found type 2"));
    for (model, wanted) in cases {
        let message = open(&model).expect_err(wanted).to_string();
        assert!(message.contains(wanted) && message.contains("spiece.model"), "expected {wanted:?}, found {message:?}");
    }
}

#[test]
fn truncated_and_garbled_files_are_refused_by_name() {
    let bytes = model().encode_to_vec();
    for garbled in [&b""[..], b"garbage", &[0xff; 64], &bytes[..bytes.len() - 1]] {
        let message = refusal(&[("spiece.model", garbled)]);
        assert!(message.contains("spiece.model`: expected"), "{message}");
    }
    for (name, text, wanted) in [
        ("tokenizer_config.json", "[1]", "expected a JSON object"),
        ("tokenizer_config.json", r#"{"extra_ids": 1e9}"#, "`extra_ids`: "),
        ("tokenizer_config.json", r#"{"extra_ids": 10001}"#, "`extra_ids`: expected at most 10000, found 10001"),
        ("tokenizer_config.json", r#"{"pad_token": 3}"#, "`pad_token`: expected a token, found 3"),
        ("tokenizer_config.json", r#"{"pad_token": null}"#, "expected a `pad_token`, found none"),
        ("tokenizer_config.json", r#"{"added_tokens_decoder": {"x": {}}}"#, "`added_tokens_decoder`: "),
        ("tokenizer_config.json", r#"{"padding_side": "up"}"#, "unknown variant `up`, expected `left` or `right`"),
        ("added_tokens.json", r#"{"<x>": -1}"#, "`<x>`: expected an id, found -1"),
        ("special_tokens_map.json", "{", "expected a JSON object"),
        ("tokenizer.json", r#"{"model": {"type": "BPE", "vocab": []}, "added_tokens": []}"#, "found `BPE`"),
        ("tokenizer.json", "{}", "missing field `model`"),
    ] {
        let message = refusal(&[("spiece.model", &bytes), (name, text.as_bytes())]);
        assert!(message.contains(wanted), "{name} {text}: expected {wanted:?}, found {message:?}");
    }
}

/// Rules that map U+0001 to nothing.
fn rules() -> Vec<u8> {
    let mut units = [0_u32; 768];
    units[0] = 256 << 10; // the root, with children at 256 + byte
    units[257] = 1 | 1 << 8 | 0x301 << 10; // byte 1, with the end of a rule at 512: the text at 0
    let array: Vec<u8> = units.iter().flat_map(|unit| unit.to_le_bytes()).collect();
    let size = u32::try_from(array.len()).expect("small").to_le_bytes();
    [&size[..], &array, b"\0"].concat()
}

#[test]
fn added_tokens_that_normalize_to_nothing_are_refused() {
    let normalizer = Some(SpmNormalizer { precompiled_charsmap: Some(rules()) });
    let bytes = SpmModel { normalizer, ..model() }.encode_to_vec();
    let tokenizer = Tokenizer::open(folder(&[("spiece.model", &bytes)]).path()).expect("valid rules");
    assert_eq!(tokenizer.encode("r\u{1}ed", 3).expect("valid"), [3, 1, 0]);
    let message = refusal(&[("spiece.model", &bytes), ("added_tokens.json", br#"{"\u0001": 9}"#)]);
    assert!(message.ends_with(r#"added token "\u{1}": expected text, found none after normalization"#), "{message}");
}

#[test]
fn base64_is_decoded_with_and_without_padding() {
    for (text, bytes) in [("", &b""[..]), ("Zg==", b"f"), ("Zm8=", b"fo"), ("Zm9v", b"foo"), ("Zm9vYmE", b"fooba")] {
        assert_eq!(charsmap::from_base64(text).as_deref(), Ok(bytes));
    }
    assert!(charsmap::from_base64("Zm 9").is_err());
}

#[test]
fn a_prompt_of_a_hundred_thousand_tokens_is_cut_in_no_time() {
    let tokenizer = open(&model()).expect("valid");
    let since = std::time::Instant::now();
    // Words, and one word without end; NUL is a character like any other.
    for text in ["red ".repeat(100_000), "red".repeat(100_000), "\0".repeat(100_000), "\u{1f3c0}".repeat(100_000)] {
        assert!(tokenizer.count(&text).expect("counted") > 1);
        assert_eq!(tokenizer.encode(&text, 226).expect("cut").len(), 226);
    }
    assert_eq!(tokenizer.count(&"red ".repeat(100_000)).expect("counted"), 100_001);
    assert!(since.elapsed().as_secs() < 20, "{:?}", since.elapsed());
}

#[test]
fn nul_is_a_character_like_any_other() {
    let mut model = model();
    model.pieces.push(piece("\0", -1.0, 1));
    let tokenizer = open(&model).expect("valid");
    assert_eq!(tokenizer.encode("red\0", 4).expect("valid"), [3, 9, 1, 0]);
    assert_eq!(open(&self::model()).expect("valid").encode("red\0", 4).expect("valid"), [3, 2, 1, 0]);
}

#[test]
fn as_many_tokens_as_are_allowed_take_no_time_and_more_are_refused() {
    let bytes = model().encode_to_vec();
    let settings = |count: usize| {
        let decoder = (0..count).map(|i| (i.to_string(), serde_json::json!({ "content": format!("<{i}>") })));
        let decoder: serde_json::Map<_, _> = decoder.collect();
        serde_json::json!({ "added_tokens_decoder": decoder, "extra_ids": count }).to_string()
    };
    let since = std::time::Instant::now();
    Tokenizer::open(folder(&[("spiece.model", &bytes), ("tokenizer_config.json", settings(10_000).as_bytes())]).path())
        .expect("valid");
    assert!(since.elapsed().as_secs() < 20, "{:?}", since.elapsed());
    let tokens = vec!["a"; 10_001];
    for (name, json, found) in [
        ("tokenizer_config.json", serde_json::json!({ "extra_special_tokens": tokens }), "extra_special_tokens"),
        (
            "special_tokens_map.json",
            serde_json::json!({ "additional_special_tokens": tokens }),
            "additional_special_tokens",
        ),
    ] {
        let message = refusal(&[("spiece.model", &bytes), (name, json.to_string().as_bytes())]);
        assert!(message.ends_with(&format!("{name}`: {found}: expected at most 10000, found 10001")), "{message}");
    }
    let message = refusal(&[("spiece.model", &bytes), ("tokenizer_config.json", settings(10_001).as_bytes())]);
    assert!(message.contains("expected at most 10000, found 10001"), "{message}");
}

#[test]
fn a_file_of_a_terabyte_is_refused_without_reading_it_all() {
    let dir = folder(&[("spiece.model", b"")]);
    let file = std::fs::OpenOptions::new().write(true).open(dir.path().join("spiece.model")).expect("there");
    file.set_len(1 << 40).expect("a sparse file");
    let message = Tokenizer::open(dir.path()).expect_err("refused").to_string();
    assert!(message.ends_with("spiece.model`: expected at most 16777216 bytes, found more"), "{message}");
}
