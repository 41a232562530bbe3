//! The tokenizer against transformers: goldens of `tests/fixtures/tokenizer.py` and `tests/fixtures/goldens.py`.

use std::path::Path;

use cogvx::tokenizer::Tokenizer;
use serde::Deserialize;

#[derive(Deserialize)]
struct Group {
    /// Checkpoint folder, relative to the repository's root.
    tokenizer: String,
    max_length: usize,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    text: String,
    ids: Vec<i64>,
}

/// Compares every case of a file; a checkpoint that is not there is named and skipped.
fn compare(goldens: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let path = root.join("tests/fixtures/goldens").join(goldens);
    let Ok(text) = std::fs::read_to_string(&path) else {
        println!("skipped: no {}", path.display());
        return;
    };
    let mut failures = Vec::new();
    for group in serde_json::from_str::<Vec<Group>>(&text).expect("goldens parse") {
        let folder = root.join(&group.tokenizer).join("tokenizer");
        if !folder.is_dir() {
            println!("skipped: no {}", folder.display());
            continue;
        }
        let tokenizer = Tokenizer::open(&folder).expect("a valid tokenizer");
        for Case { text, ids } in group.cases {
            let found = tokenizer.encode(&text, group.max_length).expect("a valid length");
            if found != ids {
                failures.push(format!("{} {text:?}:\nexpected {ids:?}\n   found {found:?}", group.tokenizer));
            }
        }
    }
    assert!(failures.is_empty(), "{} texts differ\n{}", failures.len(), failures.join("\n"));
}

#[test]
fn ids_of_every_kind_of_text_equal_transformers() {
    compare("tokenizer.json");
}

#[test]
fn ids_of_the_fixture_checkpoints_equal_transformers() {
    compare("tokens.json");
}
