//! `--prepack` and `--arena`: weights are widened and arranged once, when a graph is loaded, memory is kept, and nothing else changes.

mod common;

use std::collections::BTreeSet;
use std::path::Path;

use cogvx::bench::{Part, Settings, time};
use cogvx::bundle::Bundle;
use cogvx::export::{Component, ExportOptions};
use cogvx::pipeline::Pipeline;
use cogvx::rng::TorchGenerator;
use cogvx::runtime::{CpuOptions, Kernels, Runtime, Setup};
use cogvx_calibration::metrics::difference;
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::onnx::open;
use ndarray::ArrayD;

use common::{bundle_of, checkpoints, cogvx, entries, fixture, fresh_folder, said};

fn pipeline(bundle: &Path, prepack: bool) -> Pipeline {
    let runtime =
        Runtime::start(Setup::Cpu(CpuOptions { prepack, kernels: Kernels::Plain, ..CpuOptions::default() }), 1)
            .expect("ONNX Runtime starts");
    Pipeline::open(Bundle::open(bundle).expect("a sound bundle"), runtime).expect("a sound bundle")
}

/// Names of the nodes that ran, those that cannot be told apart as one.
fn ran(pipeline: &Pipeline, part: Part) -> BTreeSet<String> {
    let settings = Settings { size: [Some(9), None, None], repeat: 1, profile: true };
    let settings = if pipeline.takes_image() { Settings { size: [None; 3], ..settings } } else { settings };
    let timing = time(pipeline, part, settings, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    timing.nodes.into_iter().map(|node| node.name).collect()
}

/// Names of a graph's nodes that read nothing but weights, and what is made of them.
fn of_weights(graph: &Path) -> BTreeSet<String> {
    let model = open(graph).unwrap_or_else(|e| panic!("{e}"));
    let mut known: BTreeSet<_> = model.initializers.iter().map(|tensor| tensor.name.clone()).collect();
    known.insert(String::new());
    let mut names = BTreeSet::new();
    // ONNX Runtime does not know of its own operators that they always make the same.
    for node in model.nodes.iter().filter(|node| node.domain.is_empty()) {
        if node.inputs.iter().all(|input| known.contains(input)) {
            known.extend(node.outputs.iter().cloned());
            names.insert(node.name.clone());
        }
    }
    names
}

/// Embeddings of a prompt, and what the transformer makes of noise with them.
fn outputs(pipeline: &Pipeline) -> [Vec<f32>; 2] {
    let ids = pipeline.tokenize(&["a red circle moving left"]).expect("a short text");
    let text = pipeline.encode(&ids).expect("a text encoder");
    let request = pipeline.request("").expect("a model of the family");
    let scale = pipeline.vae.spatial_compression_ratio();
    let frames = (request.frames - 1) / pipeline.vae.temporal_compression_ratio + 1;
    let frames = frames.next_multiple_of(pipeline.dit.patch_size_t.unwrap_or(1));
    let shape = [1, frames, pipeline.dit.in_channels, request.height / scale, request.width / scale];
    let noise = TorchGenerator::new(7).randn(shape.iter().product());
    let latents = ArrayD::from_shape_vec(shape.to_vec(), noise).expect("as many numbers");
    let predicted = pipeline.transformer().expect("a transformer").predict(&latents, &text, 400);
    [text, predicted.expect("a prediction")].map(|array| array.into_raw_vec_and_offset().0)
}

#[test]
fn only_what_is_made_of_weights_is_gone_and_the_numbers_are_the_same() {
    let cpu = Scheme::ALL.into_iter().filter(|scheme| scheme.runs_on(ExportOptions::default().target));
    let schemes: Vec<_> = cpu.filter(|scheme| !scheme.needs_table()).map(Some).collect();
    let (mut gone, mut wrong) = (0, vec![]);
    for checkpoint in checkpoints() {
        // What weights are stored in differs between checkpoints, the forms of quantized layers do not.
        let forms = if checkpoint.name == "2b-fp16-sharded" { schemes.as_slice() } else { &[] };
        for &quantize in [None].iter().chain(forms) {
            let folder = fresh_folder();
            let components = vec![Component::TextEncoder, Component::Transformer];
            let options = ExportOptions { components, quantize, ..ExportOptions::default() };
            let (bundle, _) = bundle_of(&checkpoint.path, folder.path(), &options);
            let (plain, packed) = (pipeline(&bundle, false), pipeline(&bundle, true));
            for part in [Part::TextEncoder, Part::Transformer] {
                let what = format!("{} {} {quantize:?}", checkpoint.name, part.name());
                let (before, after) = (ran(&plain, part), ran(&packed, part));
                let weights = of_weights(&bundle.join(part.name()).join("model.onnx"));
                let expected: BTreeSet<_> = before.difference(&weights).cloned().collect();
                assert!(weights.is_subset(&before), "{what}: {:?}", weights.difference(&before));
                assert_eq!(after, expected, "{what}");
                gone += weights.len();
            }
            for (name, (found, expected)) in
                ["text encoder", "transformer"].iter().zip(outputs(&packed).into_iter().zip(outputs(&plain)))
            {
                let error = difference(&found, &expected).relative_l2;
                println!("{} {quantize:?} {name}: {error:.1e}", checkpoint.name);
                if error > 1e-5 || error.is_nan() {
                    wrong.push(format!("{} {quantize:?} {name}: {error:.1e}", checkpoint.name));
                }
            }
        }
    }
    assert!(gone > 100, "{gone} nodes");
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn graphs_of_convolutions_are_left_as_they_are() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp16-sharded"), folder.path(), &ExportOptions::default());
    let [plain, packed] = [false, true].map(|prepack| ran(&pipeline(&bundle, prepack), Part::VaeDecoder));
    assert!(plain.iter().any(|name| name.ends_with("/Cast")), "{plain:?}");
    assert_eq!(plain, packed);
}

#[test]
fn videos_of_a_batch_are_those_of_single_runs() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp16-sharded"), folder.path(), &ExportOptions::default());
    let run = |more: &[&str], output: &Path| {
        let mut command = cogvx();
        command.arg("run").arg(&bundle).args(["--steps", "2", "--threads", "1", "--prepack"]).args(more);
        let ran = command.arg("--output").arg(output).output().expect("cogvx runs");
        assert_eq!(ran.status.code(), Some(0), "{}", said(&ran));
    };
    let single = folder.path().join("single.npy");
    run(&["--prompt", "a fox", "--seed", "3"], &single);
    let prompts = folder.path().join("prompts.jsonl");
    std::fs::write(&prompts, "{\"prompt\": \"an owl\"}\n{\"prompt\": \"a fox\", \"seed\": 3}\n").expect("a folder");
    let videos = folder.path().join("videos");
    run(&["--format", "npy", "--prompts", prompts.to_str().expect("a plain path")], &videos);
    let made = entries(&videos);
    assert_eq!(made.len(), 2, "{made:?}");
    let [single, second] = [&single, &made[1]].map(|path| std::fs::read(path).expect("a video"));
    assert_eq!(single, second);
}

#[test]
fn kept_memory_changes_no_number() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp16-sharded"), folder.path(), &ExportOptions::default());
    let run = |more: &[&str], name: &str| {
        let output = folder.path().join(name);
        let mut command = cogvx();
        command.arg("run").arg(&bundle).args(["--prompt", "a fox", "--steps", "2", "--frames", "17"]).args(more);
        let ran = command.arg("--output").arg(&output).output().expect("cogvx runs");
        (ran.status.code(), said(&ran), std::fs::read(output).ok())
    };
    let (_, _, plain) = run(&[], "plain.npy");
    // Without an arena ONNX Runtime would refuse to shrink it.
    let (code, said, kept) = run(&["--arena"], "kept.npy");
    assert_eq!(code, Some(0), "{said}");
    assert!(plain.is_some());
    assert_eq!(kept, plain);
    let (code, said, kept) = run(&["--arena", "--max-memory", "8GB"], "limited.npy");
    assert_eq!((code, kept), (Some(0), plain), "{said}");
    let (code, said, video) = run(&["--arena", "--max-memory", "1MB"], "none.npy");
    assert_eq!((code, video), (Some(2), None));
    assert!(said.contains("found 1000000: without `--arena` it takes less"), "{said}");
}
