//! Every checkpoint of the repository gives the numbers that PyTorch gave.

mod common;

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use cogvx::bundle::WeightsMode;
use cogvx::export::{ExportOptions, VideoShape};
use cogvx::verify::{Limits, Reference, Row, verify};
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::DType;
use cogvx_graphs::pass::Target;
use serde_json::Value;

use common::{
    REFUSED, bundle_of, calibrated, checkpoints, cogvx, compare, edited, fixture, floats, fresh_folder, pipeline,
    references,
};
use common::{said, stem};

const FLOAT32: Limits = Limits { network: 1e-5, vae: 1e-4, latents: 1e-3, psnr: 60.0 };

/// The worst relative L2 below a prefix.
fn worst(rows: &[Row], prefix: &str) -> f64 {
    let rows = rows.iter().filter(|r| r.tensor.starts_with(prefix) && r.tensor != "pipeline/frames");
    rows.map(|r| r.relative_l2).fold(0.0, f64::max)
}

/// A line of the table of worst figures.
fn figures(what: &str, rows: &[Row]) -> String {
    let [text, transformer, vae, latents] =
        ["text_encoder/last", "transformer/", "vae_", "pipeline/latents"].map(|p| worst(rows, p));
    let frames = rows.iter().find(|r| r.tensor == "pipeline/frames");
    let psnr = frames.map_or("-".into(), |r| r.psnr.map_or("equal".into(), |psnr| format!("{psnr:.1} dB")));
    format!("{what:<32} {text:>9.2e} {transformer:>11.2e} {vae:>9.2e} {latents:>9.2e} {psnr:>9}")
}

fn header() -> String {
    format!("{:<32} {:>9} {:>11} {:>9} {:>9} {:>9}", "reference", "text", "transformer", "vae", "latents", "frames")
}

/// What is not equal, a line each.
fn differences(what: &str, rows: &[Row]) -> String {
    rows.iter().filter(|r| !r.equal).fold(String::new(), |mut text, r| {
        let _ =
            writeln!(text, "{what}: {}: relative L2 {:.2e}, PSNR {:?}, {}", r.tensor, r.relative_l2, r.psnr, r.limit);
        text
    })
}

#[test]
fn every_reference_is_reproduced_within_the_error_of_float32() {
    let (mut failures, mut table) = (String::new(), header());
    for checkpoint in checkpoints() {
        let folder = fresh_folder();
        let (bundle, _) = bundle_of(&checkpoint.path, folder.path(), &ExportOptions::default());
        let pipeline = pipeline(&bundle);
        assert_eq!(Limits::of(pipeline.bundle().manifest()), FLOAT32, "{}", checkpoint.name);
        for reference in references(&checkpoint) {
            let rows = compare(&pipeline, &reference);
            let _ = write!(table, "\n{}", figures(stem(&reference), &rows));
            failures += &differences(stem(&reference), &rows);
            let parts =
                ["text_encoder/input_ids", "text_encoder/last", "pipeline/frames", "transformer/", "vae_decoder/"];
            // Video to video has whole runs only; its networks are compared in the others.
            let parts = if stem(&reference).starts_with("v2v-") { &parts[..3] } else { &parts[..] };
            for part in parts {
                if !rows.iter().any(|r| r.tensor.starts_with(part)) {
                    let _ = writeln!(failures, "{}: nothing compared of `{part}`", stem(&reference));
                }
            }
        }
    }
    println!("{table}");
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn learned_positions_of_another_number_of_frames_are_refused() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("5b-i2v"), folder.path(), &ExportOptions::default());
    for refused in REFUSED {
        let reference = Reference::open(&fixture(&format!("references/{refused}.safetensors"))).expect("a reference");
        let error = verify(&pipeline(&bundle), &reference, |_| {}).expect_err("refused").to_string();
        assert!(error.contains("the size of the learned positions"), "{refused}: {error}");
    }
}

#[test]
fn a_bundle_of_fixed_sizes_makes_the_same_video() {
    let (mut failures, folder) = (String::new(), fresh_folder());
    for (checkpoint, case, [frames, height, width]) in [
        ("2b-fp32", "plain", [9, 32, 32]),
        ("2b-fp16-sharded", "four", [13, 32, 48]),
        ("2b-fp16-sharded", "one", [1, 48, 64]),
        ("2b-bf16", "ddim", [17, 16, 24]),
        ("5b", "wide", [5, 32, 96]),
        ("1.5-5b", "padded", [9, 32, 56]),
        ("1.5-i2v", "padded", [9, 24, 40]),
    ] {
        let name = format!("{checkpoint}-{case}");
        let options =
            ExportOptions { shapes: Some(VideoShape { frames, height, width }), overwrite: true, ..Default::default() };
        let (bundle, _) = bundle_of(&fixture(checkpoint), folder.path(), &options);
        // The tensors of single components have other sizes.
        let part = folder.path().join("reference.safetensors");
        edited(&fixture(&format!("references/{name}.safetensors")), &part, |tensor, data| {
            ["text_encoder/", "pipeline/"].iter().any(|p| tensor.starts_with(p)).then(|| data.to_vec())
        });
        let image = fixture(&format!("references/{name}-input.png"));
        if image.is_file() {
            fs::copy(image, folder.path().join("reference-input.png")).expect("copied");
        }
        let rows = compare(&pipeline(&bundle), &part);
        println!("{}", figures(&name, &rows));
        failures += &differences(&name, &rows);
        if !rows.iter().any(|r| r.tensor == "pipeline/frames") {
            let _ = writeln!(failures, "{name}: no frames compared");
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn copied_weights_give_the_same_numbers() {
    let folder = fresh_folder();
    let options = ExportOptions { weights: WeightsMode::Copy, ..Default::default() };
    let (bundle, report) = bundle_of(&fixture("2b-fp16-sharded"), folder.path(), &options);
    assert_eq!(report.linked, 0);
    let rows = compare(&pipeline(&bundle), &fixture("references/2b-fp16-sharded-dpm.safetensors"));
    assert_eq!(differences("copied", &rows), "");
}

#[test]
fn weights_stored_in_16_bits_stay_within_the_limits_of_their_precision() {
    let (mut failures, mut table) = (String::new(), header());
    for (checkpoint, case, precision, exact) in [
        ("2b-fp32", "plain", DType::F16, false),
        ("2b-fp32", "plain", DType::BF16, false),
        ("2b-fp16-sharded", "four", DType::BF16, false),
        ("2b-fp16-sharded", "four", DType::F16, true),
        ("2b-bf16", "plain", DType::F16, false),
        ("2b-bf16", "plain", DType::BF16, true),
        ("2b-bf16", "plain", DType::F32, true),
    ] {
        let folder = fresh_folder();
        let options = ExportOptions { precision: Some(precision), ..Default::default() };
        let (bundle, report) = bundle_of(&fixture(checkpoint), folder.path(), &options);
        let pipeline = pipeline(&bundle);
        let manifest = pipeline.bundle().manifest();
        let what = format!("{checkpoint} as {precision}");
        if (manifest.accuracy == "fp32") != exact {
            let _ = writeln!(failures, "{what}: expected exact {exact}, found {}", manifest.accuracy);
        }
        if report.graphs.iter().any(|g| (g.converted == 0) != exact) {
            let _ = writeln!(failures, "{what}: not all weights converted: {:?}", report.graphs);
        }
        if (Limits::of(manifest) == FLOAT32) != exact {
            let _ = writeln!(failures, "{what}: wrong limits {:?}", Limits::of(manifest));
        }
        let rows = compare(&pipeline, &fixture(&format!("references/{checkpoint}-{case}.safetensors")));
        let _ = write!(table, "\n{}", figures(&what, &rows));
        failures += &differences(&what, &rows);
        // The eight significant bits of a bf16 fit into the eleven of an f16.
        let rounded = !exact && checkpoint != "2b-bf16";
        if (worst(&rows, "transformer/") > 1e-5) != rounded {
            let _ = writeln!(failures, "{what}: expected rounded weights: {rounded}");
        }
    }
    println!("{table}");
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn quantized_weights_stay_within_the_limits_of_their_scheme() {
    let (mut failures, mut figures_of_all) = (String::new(), header());
    let folder = fresh_folder();
    for (name, reference) in [("2b-fp32", "2b-fp32-plain"), ("5b", "5b-plain")] {
        let checkpoint = fixture(name);
        let table = calibrated(&checkpoint, folder.path());
        for scheme in Scheme::ALL.into_iter().filter(|scheme| scheme.runs_on(Target::Cpu)) {
            let folder = fresh_folder();
            let options =
                ExportOptions { quantize: Some(scheme), calibration: Some(table.clone()), ..ExportOptions::default() };
            let (bundle, _) = bundle_of(&checkpoint, folder.path(), &options);
            let rows = compare(&pipeline(&bundle), &fixture(&format!("references/{reference}.safetensors")));
            let what = format!("{name} {}", scheme.name());
            let _ = write!(figures_of_all, "\n{}", figures(&what, &rows));
            failures += &differences(&what, &rows);
            if worst(&rows, "transformer/") < 1e-3 {
                let _ = writeln!(failures, "{what}: as exact as float");
            }
        }
    }
    println!("{figures_of_all}");
    assert!(failures.is_empty(), "\n{failures}");
}

/// Changes the bytes of one tensor.
type Edit = fn(&[u8]) -> Vec<u8>;

/// A reference with a tensor changed, and the tensors that then must differ.
const PERTURBED: [(&str, Edit, &[&str]); 6] = [
    ("text_encoder/last_hidden_state", |b| floats(b, |x| x * 1.0001), &["text_encoder/last_hidden_state"]),
    ("transformer/sample", |b| floats(b, |x| x + 1e-3), &["transformer/sample"]),
    ("vae_decoder/sample", |b| floats(b, |x| x * 1.001), &["vae_decoder/sample"]),
    ("pipeline/noise", |b| floats(b, |x| x * 1.0001), &["pipeline/noise"]),
    ("pipeline/frames", |b| floats(b, |x| x * 0.99), &["pipeline/frames"]),
    // The prompts swapped: neither are the ids those of the text nor the embeddings those of the ids.
    (
        "text_encoder/input_ids",
        |b| [&b[b.len() / 2..], &b[..b.len() / 2]].concat(),
        &["text_encoder/input_ids", "text_encoder/last_hidden_state"],
    ),
];

#[test]
fn a_changed_reference_is_reported_tensor_by_tensor() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &ExportOptions::default());
    let (pipeline, changed) = (pipeline(&bundle), folder.path().join("changed.safetensors"));
    let mut failures = String::new();
    for (tensor, change, expected) in PERTURBED {
        edited(&fixture("references/2b-fp32-plain.safetensors"), &changed, |name, data| {
            Some(if name == tensor { change(data) } else { data.to_vec() })
        });
        let rows = compare(&pipeline, &changed);
        let found: Vec<_> = rows.iter().filter(|r| !r.equal).map(|r| r.tensor.as_str()).collect();
        if found != expected {
            let _ = writeln!(failures, "{tensor} changed: expected {expected:?}, found {found:?}");
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

fn verify_json(bundle: &Path, reference: &Path) -> (Option<i32>, Value) {
    let mut command = cogvx();
    command.arg("verify").arg(bundle).arg("--reference").arg(reference).args(["--json", "--threads", "1"]);
    let output = command.output().expect("cogvx starts");
    let json = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}:\n{}", said(&output)));
    (output.status.code(), json)
}

#[test]
fn verify_answers_in_json_and_with_its_exit_code() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-bf16"), folder.path(), &ExportOptions::default());
    let reference = fixture("references/2b-bf16-even.safetensors");
    let (code, json) = verify_json(&bundle, &reference);
    assert_eq!((code, &json["equal"]), (Some(0), &Value::Bool(true)), "{json:#}");
    assert_eq!(json["limits"], serde_json::json!({"network": 1e-5, "vae": 1e-4, "latents": 1e-3, "psnr": 60.0}));
    let rows = json["tensors"].as_array().expect("a list");
    assert!(rows.len() > 5, "{json:#}");
    for row in rows {
        assert!(row["tensor"].is_string() && row["limit"].is_string() && row["equal"].is_boolean(), "{row}");
        assert!(row["shape"].as_array().is_some_and(|s| s.iter().all(Value::is_u64)), "{row}");
        assert!(["max_abs", "relative_l2", "cosine"].iter().all(|field| row[field].is_f64()), "{row}");
        let has_quality = row["psnr"].is_f64() && row["ssim"].is_f64();
        assert_eq!(has_quality, row["tensor"] == "pipeline/frames", "{row}");
    }

    let changed = folder.path().join("changed.safetensors");
    edited(&reference, &changed, |name, data| {
        Some(if name == "transformer/sample" { floats(data, |x| -x) } else { data.to_vec() })
    });
    let (code, json) = verify_json(&bundle, &changed);
    assert_eq!((code, &json["equal"]), (Some(1), &Value::Bool(false)), "{json:#}");

    fs::remove_file(&changed).expect("written above");
    let output = cogvx().arg("verify").arg(&bundle).arg("--reference").arg(&changed).output().expect("cogvx starts");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
}
