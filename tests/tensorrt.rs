//! TensorRT parses and compiles every graph; no GPU is needed. `COGVX_TENSORRT_PYTHON` names a Python with the wheels that
//! `tests/tensorrt_check.py` asks for.

mod common;

use std::path::PathBuf;
use std::process::Command;

use cogvx::export::{Component, ExportOptions, VideoShape};
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::DType;
use cogvx_graphs::pass::Target;

use common::{bundle_of, checkpoints, fresh_folder, graphs, made_up, root, said};

/// The script's word for "cannot run here".
const SKIPPED: i32 = 77;

/// Sizes of an engine that takes more than one.
const RANGES: [&str; 4] = ["batch=1:2:2", "tokens=8:16:32", "height=4:8:16", "width=6:12:24"];

/// Why a test does not run here.
struct Skipped(String);

/// Compile `files`, with the script's `arguments`.
fn compile(files: &[PathBuf], arguments: &[&str]) -> Result<(), Skipped> {
    let python = std::env::var_os("COGVX_TENSORRT_PYTHON").unwrap_or("python3".into());
    let mut command = Command::new(&python);
    command.arg(root().join("tests/tensorrt_check.py")).arg("--build").args(arguments).args(files);
    let output = command.output().map_err(|e| Skipped(format!("skipped: {}: {e}", python.display())))?;
    if output.status.code() == Some(SKIPPED) {
        return Err(Skipped(said(&output)));
    }
    println!("{arguments:?}\n{}", said(&output));
    assert!(output.status.success(), "{arguments:?}\n{}", said(&output));
    let passed = String::from_utf8_lossy(&output.stdout).lines().filter(|l| l.starts_with("ok ")).count();
    assert_eq!(passed, files.len(), "{}", said(&output));
    Ok(())
}

/// Export every checkpoint in each precision and hand all graphs to `compile`.
fn each_precision(shapes: Option<VideoShape>, compile: impl Fn(&[PathBuf]) -> Result<(), Skipped>) {
    for precision in [DType::F16, DType::BF16, DType::F32] {
        let options =
            ExportOptions { precision: Some(precision), target: Target::TensorRt, shapes, ..Default::default() };
        let folders: Vec<_> = checkpoints().into_iter().map(|c| (c, fresh_folder())).collect();
        let files: Vec<_> =
            folders.iter().flat_map(|(c, folder)| graphs(&bundle_of(&c.path, folder.path(), &options).0)).collect();
        if let Err(Skipped(why)) = compile(&files) {
            return println!("{}", why.trim());
        }
    }
}

#[test]
fn graphs_of_any_size_compile_for_a_range_of_sizes() {
    each_precision(None, |files| {
        let (first, rest): (Vec<_>, Vec<_>) = files.iter().cloned().partition(|file| file.ends_with("first.onnx"));
        let ranges: Vec<_> = RANGES.iter().flat_map(|range| ["--dim", range]).collect();
        // Models with patches of two latent frames take even numbers of them.
        compile(&rest, &[&ranges[..], &["--dim", "frames=2:4:6"]].concat())?;
        // TensorRT finds no engine for both an image and a video: their frames double in another way.
        compile(&first, &[&ranges[..], &["--dim", "frames=2:3:3"]].concat())
    });
}

#[test]
fn the_decoder_of_any_size_compiles_for_an_image() {
    each_precision(None, |files| {
        let first: Vec<_> = files.iter().filter(|file| file.ends_with("first.onnx")).cloned().collect();
        compile(&first, &["--dim", "frames=1"])
    });
}

#[test]
fn graphs_of_fixed_sizes_compile() {
    each_precision(Some(VideoShape { frames: 9, height: 32, width: 48 }), |files| compile(files, &[]));
}

/// Hand the quantized graphs of the checkpoints named, or of all, to `compile`, one scheme after the other.
fn each_scheme(
    names: Option<&[&str]>,
    precision: DType,
    shapes: Option<VideoShape>,
    compile: impl Fn(&[PathBuf]) -> Result<(), Skipped>,
) {
    let checkpoints: Vec<_> = checkpoints().into_iter().map(|c| (c, fresh_folder())).collect();
    let chosen = checkpoints.iter().filter(|(c, _)| names.is_none_or(|names| names.contains(&c.name.as_str())));
    let chosen: Vec<_> = chosen.map(|(c, folder)| (c, folder, made_up(&c.path, folder.path()))).collect();
    for scheme in Scheme::ALL.into_iter().filter(|scheme| scheme.runs_on(Target::TensorRt)) {
        let files = chosen.iter().flat_map(|(c, folder, table)| {
            let mut components = vec![Component::Transformer];
            // The text encoders of the others are too narrow to be quantized.
            components.extend((c.name == "shapes").then_some(Component::TextEncoder));
            let options = ExportOptions {
                precision: Some(precision),
                target: Target::TensorRt,
                quantize: Some(scheme),
                calibration: Some(table.clone()),
                shapes,
                components,
                ..Default::default()
            };
            graphs(&bundle_of(&c.path, &folder.path().join(scheme.name()), &options).0)
        });
        if let Err(Skipped(why)) = compile(&files.collect::<Vec<_>>()) {
            return println!("{}", why.trim());
        }
    }
}

#[test]
fn quantized_graphs_compile() {
    let shapes = Some(VideoShape { frames: 9, height: 32, width: 48 });
    each_scheme(None, DType::F16, shapes, |files| compile(files, &[]));
    for precision in [DType::BF16, DType::F32] {
        each_scheme(Some(&["2b-fp32", "1.5-5b", "shapes"]), precision, shapes, |files| compile(files, &[]));
    }
}

#[test]
fn quantized_graphs_of_any_size_compile_for_a_range_of_sizes() {
    each_scheme(Some(&["2b-fp32", "1.5-i2v", "shapes"]), DType::F16, None, |files| {
        let ranges: Vec<_> = RANGES.iter().flat_map(|range| ["--dim", range]).collect();
        compile(files, &[&ranges[..], &["--dim", "frames=2:4:6"]].concat())
    });
}
