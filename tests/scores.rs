//! The shapes model's scorer in Rust, against the answers of the one in Python.

mod common;

use std::collections::BTreeMap;

use cogvx::quality::shapes::{Scorer, Seen, Wanted};
use serde::Deserialize;

use common::fixture;

#[derive(Deserialize)]
struct Goldens {
    videos: BTreeMap<String, Video>,
    prompts: BTreeMap<String, [Option<String>; 3]>,
}

#[derive(Deserialize)]
struct Video {
    frames: usize,
    height: usize,
    width: usize,
    score: Score,
}

#[derive(Deserialize)]
struct Score {
    colour: Option<String>,
    shape: Option<String>,
    direction: Option<String>,
    iou: f64,
    travel: f64,
}

fn goldens() -> Goldens {
    let text = std::fs::read_to_string(fixture("goldens/scores.json")).expect("the goldens are committed");
    serde_json::from_str(&text).expect("the goldens' fields")
}

#[test]
fn videos_show_what_the_models_own_scorer_sees() {
    let videos = goldens().videos;
    assert!(videos.len() >= 30, "{}", videos.len());
    for (name, Video { frames, height, width, score }) in videos {
        let image = image::open(fixture(&format!("goldens/scores/{name}.png"))).expect("an image").into_rgb8();
        assert_eq!(image.len(), frames * height * width * 3, "{name}");
        let mut scorer = Scorer::new(height, width);
        image.chunks_exact(height * width * 3).for_each(|frame| scorer.frame(frame));
        let Seen { colour, shape, direction, iou, travel } = scorer.finish();
        let expected = [&score.colour, &score.shape, &score.direction].map(Option::as_deref);
        assert_eq!([colour, shape, direction], expected, "{name}");
        // numpy adds in another order.
        assert!((iou - score.iou).abs() < 1e-12, "{name}: expected {}, found {iou}", score.iou);
        assert!((travel - score.travel).abs() < 1e-12, "{name}: expected {}, found {travel}", score.travel);
    }
}

#[test]
fn prompts_ask_for_what_the_models_own_scorer_reads() {
    for (prompt, expected) in goldens().prompts {
        let found = Wanted::of(&prompt).map(|w| [w.colour, w.shape, w.direction]);
        let expected = expected.each_ref().map(Option::as_deref);
        let whole = expected.iter().all(Option::is_some).then(|| expected.map(Option::unwrap_or_default));
        assert_eq!(found, whole, "{prompt}");
    }
}
