//! What `cogvx inspect` tells.

mod common;

use cogvx::blueprint::Blueprint;
use cogvx::export::Component;
use cogvx::inspect::Inspection;
use cogvx::synth::{Model, Options, Part, synthesize};
use insta::assert_snapshot;

use common::{cogvx, fixture, fresh_folder, root, said};

fn printed(arguments: &[&str]) -> String {
    let output = cogvx().current_dir(root()).args(arguments).output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{arguments:?}\n{}", said(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// Text encoder, transformer, VAE: `sum(p.numel() for p in model.parameters())` of diffusers 0.42.1 and transformers 5.23.0. Of the
/// student's transformer, whose feed-forwards diffusers takes for four times its width, the numbers of its tensors.
const FIXTURES: [(&str, [u64; 3]); 8] = [
    ("1.5-5b", [11_778, 75_280, 82_443]),
    ("1.5-i2v", [10_668, 87_372, 73_503]),
    ("2b-bf16", [9_014, 94_044, 134_976]),
    ("2b-fp16-sharded", [22_040, 120_744, 123_399]),
    ("2b-fp32", [14_436, 49_600, 157_579]),
    ("5b", [9_644, 97_848, 88_315]),
    ("5b-i2v", [7_792, 49_984, 116_047]),
    ("student", [6_462, 94_051, 83_753]),
];

/// The same of models made of the published configurations, and of two students.
const PUBLISHED: [(&str, [u64; 3]); 7] = [
    ("1.5-5b", [4_762_310_656, 5_570_676_352, 215_583_907]),
    ("1.5-5b-i2v", [4_762_310_656, 5_571_594_880, 215_583_907]),
    ("2b", [4_762_310_656, 1_693_783_872, 215_583_907]),
    ("5b", [4_762_310_656, 5_570_283_072, 215_583_907]),
    ("5b-i2v", [4_762_310_656, 5_570_479_680, 215_583_907]),
    ("student-0.5b", [4_762_310_656, 515_251_392, 215_583_907]),
    ("student-0.9b", [4_762_310_656, 852_560_832, 215_583_907]),
];

#[test]
fn parameters_are_those_that_torch_counts() {
    let fixtures = FIXTURES.map(|(name, expected)| (fixture(name).display().to_string(), expected));
    let published = PUBLISHED.map(|(name, expected)| (name.to_string(), expected));
    for (what, expected) in fixtures.into_iter().chain(published) {
        let name = &what;
        let blueprint = Blueprint::open(&what).unwrap_or_else(|e| panic!("{name}: {e}"));
        let [text, transformer, decoder, encoder] = Component::ALL.map(|component| blueprint.parameters(component));
        assert_eq!([text, transformer, decoder + encoder], expected, "{name}");
        // Stages are disjoint, and nothing is in none.
        let inspection = Inspection::new(&blueprint, [None; 3], 50).unwrap_or_else(|e| panic!("{name}: {e}"));
        for part in &inspection.components {
            let stages = part.stages.iter().filter(|row| row.depth == 0 && row.stage != "one block");
            assert_eq!(stages.map(|row| row.parameters).sum::<u64>(), part.parameters, "{name}: {}", part.component);
        }
    }
}

/// What docs/inspect.md counts by hand: 49 frames of 480x720 by 2B.
#[test]
fn operations_are_those_counted_by_hand() {
    let blueprint = Blueprint::open("2b").expect("a known model");
    let inspection = Inspection::new(&blueprint, [None; 3], 50).expect("the model's own size");
    assert_eq!((inspection.video.latents, inspection.video.tokens), ([13, 60, 90], [226, 17_550]));
    let (text, video, width) = (226, 17_550, 1920);
    let tokens = text + video;
    let row = |component: usize, stage: &str| {
        let rows = &inspection.components[component].stages;
        rows.iter().find(|row| row.stage == stage).unwrap_or_else(|| panic!("{stage}")).flops
    };
    assert_eq!(row(1, "text embedding"), 2 * text * 4096 * width);
    assert_eq!(row(1, "video embedding"), 2 * video * (16 * 2 * 2) * width);
    assert_eq!(row(1, "AdaLN"), 2 * 2 * 512 * 6 * width);
    assert_eq!(row(1, "queries, keys, values"), 3 * 2 * tokens * width * width);
    assert_eq!(row(1, "attention itself"), 2 * 2 * tokens * tokens * width);
    assert_eq!(row(1, "attention out"), 2 * tokens * width * width);
    assert_eq!(row(1, "feed-forward"), 2 * 2 * tokens * width * 4 * width);
    assert_eq!(row(1, "output head"), 2 * 512 * 2 * width + 2 * video * width * 64);
    let (inner, wide) = (4096, 10_240);
    let tokens = 226;
    assert_eq!(row(0, "attention"), 4 * 2 * tokens * 4096 * inner + 2 * 2 * tokens * tokens * inner);
    assert_eq!(row(0, "feed-forward"), 3 * 2 * tokens * 4096 * wide);
    assert_eq!(row(2, "first convolution"), 2 * 13 * 60 * 90 * 16 * 27 * 512);
}

#[test]
fn tables_are_as_they_were() {
    assert_snapshot!("inspect_2b", printed(&["inspect", "2b"]));
    assert_snapshot!("inspect_shapes", printed(&["inspect", "examples/shapes-model", "--frames", "9"]));
    assert_snapshot!("inspect_student", printed(&["inspect", "2b", "--vs", "student-0.5b"]));
}

#[test]
fn a_configuration_is_enough() {
    let of = |what: &str| {
        let blueprint = Blueprint::open(what).unwrap_or_else(|e| panic!("{what}: {e}"));
        Component::ALL.map(|component| blueprint.parameters(component))
    };
    let (shapes, published) = (of(&root().join("examples/shapes-model").display().to_string()), of("2b"));
    let config =
        |part: &str| of(&root().join(format!("examples/shapes-model/{part}/config.json")).display().to_string());
    assert_eq!(config("transformer"), [published[0], shapes[1], published[2], published[3]]);
    assert_eq!(config("vae"), [published[0], published[1], shapes[2], shapes[3]]);
    assert_eq!(config("text_encoder"), [shapes[0], published[1], published[2], published[3]]);
    let found = Blueprint::open(&root().join("Cargo.toml").display().to_string());
    assert!(found.is_err());
    // Of a checkpoint whose weights are not all there, the others are those of its configurations.
    let folder = fresh_folder();
    let options = Options { parts: vec![Part::Vae], ..Options::default() };
    let partial = folder.path().join("partial");
    synthesize(&Model::Like(fixture("2b-fp32")), &partial, &options, |_| {}).expect("a checkpoint");
    assert_eq!(of(&partial.display().to_string()), of(&fixture("2b-fp32").display().to_string()));
}
