//! Checkpoints of random weights are what they stand for.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use cogvx::export::{self, ExportOptions};
use cogvx::synth::{Model, Options, Part, Published, SynthError, plan, synthesize};
use cogvx_graphs::{DType, Weights};

use common::{bundle_of, cogvx, entries, fixture, fresh_folder, said};

/// Type and shape of each tensor of `part`.
fn tensors(checkpoint: &Path, part: Part) -> BTreeMap<String, (DType, Vec<usize>)> {
    let stem = if part == Part::TextEncoder { "model" } else { "diffusion_pytorch_model" };
    let weights = Weights::open(&checkpoint.join(part.folder()), stem).unwrap_or_else(|e| panic!("{e}"));
    weights.iter().map(|t| (t.name.clone(), (t.dtype, t.shape.clone()))).collect()
}

/// A checkpoint like the fixture `name`.
fn like(name: &str, folder: &Path, seed: u64) -> PathBuf {
    let output = folder.join(format!("{name}-{seed}"));
    let options = Options { seed, ..Options::default() };
    synthesize(&Model::Like(fixture(name)), &output, &options, |_| {}).unwrap_or_else(|e| panic!("{name}: {e}"));
    output
}

fn transformer_bytes(checkpoint: &Path) -> Vec<u8> {
    fs::read(checkpoint.join("transformer/diffusion_pytorch_model.safetensors")).expect("one weight file")
}

#[test]
fn tensors_are_those_of_the_checkpoint_it_is_like() {
    let folder = fresh_folder();
    for name in ["2b-fp32", "2b-bf16", "2b-fp16-sharded", "5b", "5b-i2v", "1.5-5b", "1.5-i2v"] {
        let output = like(name, folder.path(), 0);
        for part in Part::ALL {
            assert_eq!(tensors(&output, part), tensors(&fixture(name), part), "{name}: {}", part.folder());
        }
        for file in ["model_index.json", "scheduler/scheduler_config.json", "vae/config.json"] {
            let json = |checkpoint: &Path| -> serde_json::Value {
                serde_json::from_slice(&fs::read(checkpoint.join(file)).expect("a file")).expect("JSON")
            };
            assert_eq!(json(&output), json(&fixture(name)), "{name}: {file}");
        }
    }
}

#[test]
fn it_exports_and_runs() {
    let folder = fresh_folder();
    let checkpoint = like("2b-fp16-sharded", folder.path(), 3);
    let (bundle, _) = bundle_of(&checkpoint, folder.path(), &ExportOptions::default());
    let video = folder.path().join("video.npy");
    let size = ["--frames", "1", "--height", "16", "--width", "16", "--steps", "1", "--threads", "1"];
    let mut run = cogvx();
    run.arg("run").arg(bundle).args(["--prompt", "a boat"]).args(size).arg("--output").arg(&video);
    let output = run.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(video.is_file());
}

#[test]
fn same_seed_same_bytes_and_other_seed_others() {
    let [one, two] = [fresh_folder(), fresh_folder()];
    let first = transformer_bytes(&like("2b-bf16", one.path(), 7));
    assert!(first == transformer_bytes(&like("2b-bf16", two.path(), 7)), "the same seed");
    let other = transformer_bytes(&like("2b-bf16", one.path(), 8));
    assert_eq!(first.len(), other.len());
    assert!(first != other, "another seed");
}

#[test]
fn a_published_model_of_one_layer_exports_without_a_tokenizer_of_its_own() {
    let folder = fresh_folder();
    let checkpoint = folder.path().join("2b");
    let output = cogvx()
        .args(["synth", "--config", "2b", "--layers", "1", "--components", "transformer", "--json", "--output"])
        .arg(&checkpoint)
        .output()
        .expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report[0]["dtype"], "f16");

    let found = tensors(&checkpoint, Part::Transformer);
    assert_eq!(found["transformer_blocks.0.attn1.to_q.weight"], (DType::F16, vec![1920, 1920]));
    assert_eq!(found["patch_embed.text_proj.weight"], (DType::F16, vec![1920, 4096]));
    assert!(!found.keys().any(|name| name.starts_with("transformer_blocks.1.")));
    let options = ExportOptions { components: vec![export::Component::Transformer], ..ExportOptions::default() };
    let (_, report) = bundle_of(&checkpoint, folder.path(), &options);
    assert_eq!(report.graphs.len(), 1);
}

#[test]
fn named_models_have_the_parameters_they_are_known_for() {
    // T5 v1.1 XXL's encoder is 9,524,621,312 bytes of 16-bit numbers.
    const T5: u64 = 4_762_310_656;
    const VAE: u64 = 215_583_907;
    for (model, transformer, files) in [
        (Published::B2, 1_693_783_872, [2, 1, 1]),
        (Published::B5, 5_570_283_072, [2, 2, 1]),
        (Published::V15B5, 5_570_676_352, [2, 3, 1]),
        (Published::B5Image, 5_625_087_552, [2, 3, 1]),
        (Published::V15B5Image, 5_571_594_880, [2, 3, 1]),
        (Published::NarrowStudent, 515_251_392, [2, 1, 1]),
        (Published::ShallowStudent, 852_560_832, [2, 1, 1]),
    ] {
        let plan = plan(&Model::Published(model), &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let found: Vec<_> = plan.iter().map(|part| (part.parameters, part.files)).collect();
        let expected: Vec<_> = [T5, transformer, VAE].into_iter().zip(files).collect();
        assert_eq!(found, expected, "{}", model.name());
    }
}

#[test]
fn what_exists_is_left_alone() {
    let folder = fresh_folder();
    let kept = folder.path().join("kept");
    fs::write(folder.path().join("kept"), "mine").expect("a writable folder");
    let model = Model::Like(fixture("2b-fp32"));
    let error = synthesize(&model, &kept, &Options::default(), |_| {}).expect_err("something is there");
    assert!(matches!(error, SynthError::Exists { .. }), "{error}");
    assert!(error.to_string().contains("expected nothing there"), "{error}");
    assert_eq!(fs::read_to_string(&kept).expect("a file"), "mine");
    let inside = fixture("2b-fp32").join("vae/new");
    assert!(synthesize(&model, &inside, &Options::default(), |_| {}).is_err());
    assert!(!inside.exists());
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let folder = fresh_folder();
    let options = Options::default();
    let stop = options.stop.clone();
    let model = Model::Like(fixture("2b-fp32"));
    let output = folder.path().join("new/checkpoint");
    let error = synthesize(&model, &output, &options, |part| stop.store(part == "vae", Ordering::SeqCst));
    assert!(matches!(error, Err(SynthError::Stopped)), "{error:?}");
    assert_eq!(entries(folder.path()), Vec::<PathBuf>::new());
}

#[test]
fn configurations_that_make_no_sense_are_refused_by_name() {
    let folder = fresh_folder();
    let output = folder.path().join("checkpoint");
    for (arguments, expected) in [
        (&["--config", "7b"][..], "7b/model_index.json"),
        (&["--config", "2b", "--layers", "0"], "`num_layers`: expected"),
        (&["--config", "2b", "--layers", "1000000"], "`num_layers`: expected"),
        (&["--config", "2b", "--layers", "1", "--tokenizer", "nowhere"], "nowhere"),
    ] {
        let run = cogvx().arg("synth").args(arguments).arg("--output").arg(&output).output().expect("a program");
        assert_eq!(run.status.code(), Some(2), "{arguments:?}: {}", said(&run));
        assert!(said(&run).contains(expected), "{arguments:?}: {}", said(&run));
        assert_eq!(entries(folder.path()), Vec::<PathBuf>::new());
    }
}
