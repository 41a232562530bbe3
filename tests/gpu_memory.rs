//! What is planned of a GPU's memory is what ONNX Runtime's CUDA provider asks it for, and weights that are streamed take less: on a
//! GPU that computes nothing, but whose memory is counted.

mod common;
mod played;

use std::fs;
use std::path::{Path, PathBuf};

use cogvx::export::{Component, ExportOptions, VideoShape};
use cogvx::synth::{Model, Options, Part, Published, synthesize};
use cogvx_graphs::pass::Target;
use serde_json::Value;

use common::{bundle_of, cogvx, fresh_folder, program, root, said};
use played::on_no_gpu;

const SIZE: VideoShape = VideoShape { frames: 9, height: 240, width: 240 };

/// What a command took of the GPU.
struct Taken {
    /// The most bytes at once.
    most: u64,
    /// Bytes that were copied to it.
    up: u64,
    /// What the command said.
    said: String,
    /// Whether it succeeded.
    is_done: bool,
}

/// Run a command of cogvx; none without the provider.
fn taken(arguments: &[&str]) -> Option<Taken> {
    let folder = fresh_folder();
    let log = folder.path().join("log");
    let mut command = on_no_gpu(program(env!("CARGO_BIN_EXE_cogvx")))?;
    let output = command.env("FAKE_CUDA_LOG", &log).args(arguments).output().expect("cogvx runs");
    let lines = fs::read_to_string(&log).unwrap_or_default();
    let bytes = |what: &str| -> Vec<u64> {
        let lines = lines.lines().filter_map(|line| line.strip_prefix(what)?.trim().parse().ok());
        lines.collect()
    };
    let (most, up) = (bytes("used 0 ").into_iter().max().unwrap_or(0), bytes("copy 1 ").iter().sum());
    Some(Taken { most, up, said: said(&output), is_done: output.status.success() })
}

/// A bundle for CUDA of 2B with one part's weights, of so many layers.
fn bundle(folder: &Path, part: Part, layers: usize) -> PathBuf {
    let checkpoint = folder.join("checkpoint");
    let options = Options { layers: Some(layers), parts: vec![part], ..Options::default() };
    synthesize(&Model::Published(Published::B2), &checkpoint, &options, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    let component = if part == Part::Vae { Component::VaeDecoder } else { Component::Transformer };
    let (target, shapes, components) = (Target::Cuda, Some(SIZE), vec![component]);
    bundle_of(&checkpoint, folder, &ExportOptions { target, shapes, components, ..ExportOptions::default() }).0
}

/// The first way of a stage as it is planned.
fn planned(bundle: &Path, stage: &str, more: &[&str]) -> Value {
    let mut command = cogvx();
    let output = command.arg("plan").arg(bundle).args(["--guidance", "1", "--json"]).args(more).output();
    let plan: Value = serde_json::from_slice(&output.expect("cogvx runs").stdout).expect("nothing but JSON");
    let stages = plan["stages"].as_array().expect("a list");
    stages.iter().find(|s| s["stage"] == stage).unwrap_or_else(|| panic!("{plan:#}"))["ways"][0].clone()
}

#[test]
fn the_provider_asks_for_what_was_planned() {
    let [transformer, vae] = [fresh_folder(), fresh_folder()];
    let [blocks, decoder] =
        [(&transformer, Part::Transformer, 5), (&vae, Part::Vae, 1)].map(|(f, part, n)| bundle(f.path(), part, n));
    let streamed: &[&str] = &["--weight-streaming"];
    let mut weights = vec![];
    for (bundle, component, stage, more) in [
        (&blocks, "transformer", "denoise", &[][..]),
        (&blocks, "transformer", "denoise", streamed),
        (&decoder, "vae-decoder", "decode", &[]),
    ] {
        let path = bundle.display().to_string();
        let arguments = ["bench", &path, "--component", component, "--repeat", "1", "--threads", "1"];
        let Some(taken) = taken(&[&arguments, more].concat()) else { return };
        assert!(taken.is_done, "{}", taken.said);
        let way = planned(bundle, stage, more);
        let predicted = way["memory"].as_u64().expect("bytes");
        #[allow(clippy::cast_precision_loss)] // A ratio.
        let ratio = predicted as f64 / taken.most as f64;
        println!("{component} {more:?}: predicted {predicted}, asked for {}, {ratio:.3}", taken.most);
        assert!((0.85..=1.15).contains(&ratio), "{component} {more:?}: {predicted} of {}", taken.most);
        weights.push((way["weights"].as_u64().expect("bytes"), taken));
    }
    let [(all, whole), (kept, streamed), _] = &weights[..] else { unreachable!("three cases") };
    // In each of two runs the weights of three blocks go up that went up once.
    let more = streamed.up - (whole.up - (all - kept));
    let expected = 2 * (all - kept);
    assert!(more.abs_diff(expected) < expected / 100, "{more} bytes more went up, expected {expected}");
    assert!(streamed.most + (all - kept) / 2 < whole.most, "{} and {}", streamed.most, whole.most);
}

#[test]
fn a_run_within_a_limit_streams_as_many_blocks_as_it_takes() {
    let folder = fresh_folder();
    let options = ExportOptions { target: Target::Cuda, ..ExportOptions::default() };
    let (bundle, _) = bundle_of(&root().join("examples/shapes-model"), folder.path(), &options);
    let [bundle, video] = [bundle, folder.path().join("video.npy")].map(|path| path.display().to_string());
    let run = ["run", &bundle, "--prompt", "a red circle moving left", "--output", &video, "--steps", "2"];
    let size = ["--frames", "1", "--height", "16", "--width", "16", "--threads", "1"];
    let taken = |more: &[&str]| taken(&[&run[..], &size, more].concat());
    let Some(whole) = taken(&[]) else { return };
    assert!(whole.is_done, "{}", whole.said);
    let [mut before, mut up] = [whole.most, whole.up];
    for (limit, blocks) in [("13MB", 2), ("11MB", 3), ("8MB", 4)] {
        let taken = taken(&["--max-memory", limit]).expect("as before");
        let expected = format!("with weights of {blocks} blocks of the transformer");
        assert!(taken.is_done && taken.said.contains(&expected), "{limit}: {}", taken.said);
        assert!(taken.most < before && taken.up > up, "{limit}: {} bytes, {} went up", taken.most, taken.up);
        (before, up) = (taken.most, taken.up);
    }
    // Kernels that are recorded need their weights where they were.
    let recorded = taken(&["--max-memory", "10MB", "--cuda-graph"]).expect("as before");
    assert!(recorded.said.contains("error: `--cuda-graph`: expected memory for all weights"), "{}", recorded.said);
}
