//! What `cogvx plan` predicts is what runs take, and `cogvx run --max-memory` does what it chooses.

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use cogvx::export::{Component, ExportOptions};
use cogvx::synth::{Model, Options, Part, Published, synthesize};
use cogvx_calibration::plan::Scheme;
use insta::assert_snapshot;
use serde_json::Value;

use common::{bundle_of, cogvx, fixture, fresh_folder, root, said};

/// What a command says; memory that is freed goes back to the system at once.
fn output(command: &mut Command) -> (Option<i32>, String) {
    let output = command.env("MALLOC_MMAP_THRESHOLD_", "65536").output().expect("the program starts");
    (output.status.code(), said(&output))
}

fn json(command: &mut Command) -> Value {
    let output = command.env("MALLOC_MMAP_THRESHOLD_", "65536").output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{command:?}\n{}", said(&output));
    serde_json::from_slice(&output.stdout).expect("nothing but JSON")
}

/// The options for a size, `frames`, `height` and `width`.
fn size([frames, height, width]: [usize; 3]) -> Vec<String> {
    [("--frames", frames), ("--height", height), ("--width", width)]
        .into_iter()
        .flat_map(|(option, n)| [option.to_string(), n.to_string()])
        .collect()
}

/// The stage's predicted memory when it is done the first way.
fn predicted(bundle: &Path, stage: &str, video: [usize; 3], more: &[&str]) -> u64 {
    let arguments = ["--guidance", "1", "--threads", "1", "--json"];
    let plan = json(cogvx().arg("plan").arg(bundle).args(size(video)).args(arguments).args(more));
    let stages = plan["stages"].as_array().expect("a list");
    let stage = stages.iter().find(|s| s["stage"] == stage).unwrap_or_else(|| panic!("{plan:#}"));
    stage["ways"][0]["memory"].as_u64().expect("bytes")
}

/// The most memory that no file backs in two runs of a component; none where the system does not tell.
fn measured(bundle: &Path, component: &str, video: [usize; 3], more: &[&str]) -> Option<u64> {
    let arguments = ["--component", component, "--repeat", "1", "--threads", "1", "--json"];
    let report = json(cogvx().arg("bench").arg(bundle).args(size(video)).args(arguments).args(more));
    report["timings"][0]["memory"]["anonymous"].as_u64()
}

/// A checkpoint of 2B with one part's weights and so many layers.
fn published(folder: &Path, part: Part, layers: usize) -> PathBuf {
    let output = folder.join(format!("{}-{layers}", part.folder()));
    let options = Options { layers: Some(layers), parts: vec![part], ..Options::default() };
    synthesize(&Model::Published(Published::B2), &output, &options, |_| {}).unwrap_or_else(|e| panic!("{e}"));
    output
}

#[test]
fn predictions_are_within_15_percent_of_what_runs_take() {
    let folder = fresh_folder();
    let shapes = root().join("examples/shapes-model");
    let [transformer, vae] = [(Part::Transformer, 2), (Part::Vae, 1)].map(|(p, n)| published(folder.path(), p, n));
    let (decoder, blocks) = ("vae-decoder", "transformer");
    let [int8, int4] = [Scheme::Int8, Scheme::Int4Weight].map(Some);
    let (prepack, arena): (&[&str], &[&str]) = (&["--prepack"], &["--arena"]);
    let [small, wide, square] = [[17, 192, 256], [9, 64, 64], [9, 240, 240]];
    let cases: [(_, &PathBuf, _, _, _, &[&str]); 10] = [
        ("the shapes model's VAE", &shapes, None, decoder, small, &[]),
        ("the same, --arena", &shapes, None, decoder, small, arena),
        ("2B's VAE", &vae, None, decoder, wide, &[]),
        ("the same, --arena", &vae, None, decoder, wide, arena),
        ("two blocks of 2B", &transformer, None, blocks, square, &[]),
        ("the same, --arena", &transformer, None, blocks, square, arena),
        ("two blocks of 2B in int8", &transformer, int8, blocks, square, &[]),
        ("two blocks of 2B in int4", &transformer, int4, blocks, square, &[]),
        // What is mapped and what is kept, each in float and in eight bits.
        ("two blocks of 2B, prepacked", &transformer, None, blocks, square, prepack),
        ("two blocks of 2B in int8, prepacked", &transformer, int8, blocks, square, prepack),
    ];
    let mut wrong = vec![];
    for (i, (what, checkpoint, quantize, component, video, more)) in cases.into_iter().enumerate() {
        let components = vec![if component == decoder { Component::VaeDecoder } else { Component::Transformer }];
        let place = folder.path().join(i.to_string());
        fs::create_dir(&place).expect("a new folder");
        let (bundle, _) =
            bundle_of(checkpoint, &place, &ExportOptions { components, quantize, ..ExportOptions::default() });
        let stage = match component {
            "transformer" => "denoise",
            _ => "decode",
        };
        let Some(measured) = measured(&bundle, component, video, more) else {
            println!("skipped: this system does not tell a process its memory");
            return;
        };
        let predicted = predicted(&bundle, stage, video, more);
        #[allow(clippy::cast_precision_loss)] // A ratio.
        let ratio = predicted as f64 / measured as f64;
        let line = format!("{what}: predicted {predicted}, measured {measured}, {ratio:.3}");
        println!("{line}");
        if !(0.85..=1.15).contains(&ratio) {
            wrong.push(line);
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_plan_is_a_table() {
    let (code, table) = output(cogvx().args(["plan", "2b", "--threads", "1", "--plain-kernels"]));
    assert_eq!(code, Some(0), "{table}");
    assert_snapshot!("plan_of_2b", table);
    let limited = ["plan", "2b", "--threads", "1", "--max-memory", "6GB", "--held", "3", "--plain-kernels"];
    let (code, table) = output(cogvx().args(limited));
    assert_eq!(code, Some(0), "{table}");
    assert_snapshot!("plan_of_2b_in_6_gb", table);
}

#[test]
fn where_nothing_fits_the_least_is_told() {
    for (arguments, expected) in [
        (&["plan", "2b", "--max-memory", "1GB"][..], "error: `--max-memory`: expected at least "),
        (&["plan", "2b", "--max-memory", "much"], "error: invalid value 'much' for '--max-memory <BYTES>'"),
        (&["plan", "3b"], "error: `3b`: expected a checkpoint, a bundle, a `config.json`, or one of `2b`, "),
        (&["plan", "2b", "--height", "100"], "error: `--height`: expected a multiple of 16, found 100"),
        (&["plan", "2b", "--target", "cuda", "--quantize", "int8"], "error: `--quantize`: expected a scheme that "),
        (
            &["plan", "2b", "--target", "cuda", "--prepack"],
            "error: `--prepack`: expected graphs for `cpu`, found those",
        ),
        (&["plan", "5b-i2v", "--frames", "9"], "error: `--frames, height, width`: expected 49x480x720, the size of "),
    ] {
        let (code, said) = output(cogvx().args(arguments));
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert!(said.starts_with(expected), "{arguments:?}: {said}");
    }
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &ExportOptions::default());
    let (code, said) = output(cogvx().arg("plan").arg(&bundle).args(["--quantize", "int8"]));
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("expected a checkpoint for `--quantize`, found a bundle"), "{said}");
}

#[test]
fn a_bundle_is_planned_as_its_checkpoint_in_the_same_form() {
    let folder = fresh_folder();
    for (i, (name, quantize)) in
        [("student", None), ("2b-fp16-sharded", None), ("5b-i2v", None), ("student", Some(Scheme::Int4Weight))]
            .into_iter()
            .enumerate()
    {
        let place = folder.path().join(i.to_string());
        fs::create_dir(&place).expect("a new folder");
        let (bundle, _) = bundle_of(&fixture(name), &place, &ExportOptions { quantize, ..ExportOptions::default() });
        let form = quantize.map_or(vec![], |scheme| vec!["--quantize", scheme.name()]);
        let of = |what: &Path, form: &[&str]| {
            let plan = json(cogvx().arg("plan").arg(what).args(form).args(["--threads", "1", "--json"]));
            plan["stages"].as_array().expect("a list").clone()
        };
        assert_eq!(of(&bundle, &[]), of(&fixture(name), &form), "{name}");
    }
}

#[test]
fn a_run_within_a_limit_takes_the_ways_that_fit() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("student"), folder.path(), &ExportOptions::default());
    let video = folder.path().join("video.npy");
    let run = |more: &[&str]| {
        let arguments = ["--prompt", "a fox", "--steps", "1", "--threads", "1", "--height", "96", "--width", "96"];
        let _ = fs::remove_file(&video);
        let (code, said) =
            output(cogvx().arg("run").arg(&bundle).args(arguments).args(more).arg("--output").arg(&video));
        (code, said, fs::read(&video).ok())
    };
    let size = ["--height", "96", "--width", "96"];
    let plan = json(cogvx().arg("plan").arg(&bundle).args(["--threads", "1", "--json"]).args(size));
    let ways = |stage: &str, how: &str| {
        let stage =
            plan["stages"].as_array().and_then(|all| all.iter().find(|s| s["stage"] == stage)).expect("a stage");
        let way = stage["ways"].as_array().and_then(|all| all.iter().find(|w| w["how"] == how)).expect("a way");
        way["memory"].as_u64().expect("bytes")
    };
    let (whole, tiled) = (ways("decode", "whole"), ways("decode", "tiled"));
    assert!(tiled < whole, "{plan:#}");
    // Decoding whole frames is what takes most, so that a little less makes tiles.
    let limit = (whole - 1).to_string();
    let (code, said, limited) = run(&["--max-memory", &limit]);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("the VAE in tiles"), "{said}");
    assert_eq!(limited, run(&["--vae-tiling"]).2);
    assert_ne!(limited, run(&[]).2);
    // Weights that are kept are memory, too, and are not given up silently.
    let plan = cogvx().arg("plan").arg(&bundle).args(["--threads", "1", "--json", "--prepack"]).args(size).output();
    let plan: Value = serde_json::from_slice(&plan.expect("a plan").stdout).expect("nothing but JSON");
    let text = plan["stages"][0]["ways"][0]["memory"].as_u64().expect("bytes");
    assert!(text > ways("text", "plain"), "{plan:#}");
    let (code, said, _) = run(&["--prepack", "--max-memory", &(ways("text", "plain") + 1000).to_string()]);
    assert_eq!(code, Some(2), "{said}");
    assert!(
        said.contains("which the text encoder takes") && said.contains("without `--prepack` it takes less"),
        "{said}"
    );
    let (code, said, _) = run(&["--max-memory", "1MB"]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("`--max-memory`: expected at least"), "{said}");
}
