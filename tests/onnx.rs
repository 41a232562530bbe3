//! ONNX's own checker and ONNX Runtime's Python package accept every graph.

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use cogvx::bundle::WeightsMode;
use cogvx::export::{Component, ExportOptions, VideoShape};
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::DType;
use cogvx_graphs::pass::Target;

use common::{bundle_of, checkpoints, fresh_folder, graphs, made_up, root, said};

const PACKAGES: [&str; 3] = ["onnx==1.23.2", "onnxruntime==1.31.1", "numpy"];
const IMPORT: &str = "import onnx, onnxruntime, numpy; print(onnx.__version__, onnxruntime.__version__)";

fn python(packages: &Path) -> Command {
    let mut command = Command::new("python3");
    command.env("PYTHONPATH", packages);
    command
}

/// A folder with the packages, installed once into the target folder; or why there is none.
fn packages() -> &'static Result<PathBuf, String> {
    static PLACE: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    PLACE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("python-packages");
        let there = || {
            let output = python(&folder).args(["-c", IMPORT]).output();
            output.is_ok_and(|o| o.status.success() && String::from_utf8_lossy(&o.stdout).trim() == "1.23.2 1.31.1")
        };
        if !there() {
            let mut pip = Command::new("python3");
            pip.args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--upgrade", "--target"]);
            let output = pip.arg(&folder).args(PACKAGES).output().map_err(|e| format!("python3: {e}"))?;
            if !output.status.success() {
                return Err(format!("pip cannot install {PACKAGES:?}: {}", said(&output).trim()));
            }
            assert!(there(), "pip installed {PACKAGES:?} into {}, but they do not import", folder.display());
        }
        Ok(folder)
    })
}

/// Export every checkpoint with `options` and give all graphs to the checker. It refuses hard links, so weights are copied.
fn check(options: &ExportOptions, arguments: &[&str]) {
    let packages = match packages() {
        Ok(folder) => folder,
        Err(why) => return println!("skipped: {why}"),
    };
    let folders: Vec<_> = checkpoints().into_iter().map(|c| (c, fresh_folder())).collect();
    let files = folders.iter().flat_map(|(c, folder)| {
        let calibration = options.quantize.map(|_| made_up(&c.path, folder.path()));
        let options = ExportOptions { weights: WeightsMode::Copy, calibration, ..options.clone() };
        let mut graphs = graphs(&bundle_of(&c.path, folder.path(), &options).0);
        // Those have operators that no other program has.
        graphs.retain(|file| !file.ends_with("kernels.onnx"));
        graphs
    });
    let files: Vec<_> = files.collect();
    // Each half of the VAE has two.
    let per_checkpoint: usize =
        options.components.iter().map(|c| if c.name().starts_with("vae") { 2 } else { 1 }).sum();
    assert_eq!(files.len(), per_checkpoint * folders.len());
    let mut command = python(packages);
    let output = command.arg(root().join("tests/onnx_check.py")).args(arguments).args(&files).output();
    let output = output.expect("it ran before");
    assert!(output.status.success(), "{options:?}\n{}", said(&output));
    let passed = String::from_utf8_lossy(&output.stdout).lines().filter(|l| l.starts_with("ok ")).count();
    assert_eq!(passed, files.len(), "{}", said(&output));
}

#[test]
fn cpu_graphs_pass_the_checker_and_load_without_a_warning() {
    check(&ExportOptions::default(), &[]);
}

#[test]
fn cpu_graphs_of_16_bit_weights_pass_the_checker_and_load_without_a_warning() {
    check(&ExportOptions { precision: Some(DType::F16), ..Default::default() }, &[]);
    check(&ExportOptions { precision: Some(DType::BF16), ..Default::default() }, &[]);
}

#[test]
fn cpu_graphs_of_fixed_sizes_pass_the_checker_and_load_without_a_warning() {
    let shapes = Some(VideoShape { frames: 9, height: 32, width: 48 });
    check(&ExportOptions { shapes, ..Default::default() }, &[]);
}

#[test]
fn cuda_graphs_pass_the_checker() {
    for precision in [DType::F16, DType::BF16, DType::F32] {
        check(
            &ExportOptions { precision: Some(precision), target: Target::Cuda, ..Default::default() },
            &["--no-load"],
        );
    }
}

#[test]
fn tensorrt_graphs_pass_the_checker() {
    for precision in [DType::F16, DType::BF16, DType::F32] {
        let options = ExportOptions { precision: Some(precision), target: Target::TensorRt, ..Default::default() };
        check(&options, &["--no-load"]);
    }
}

/// Check the graphs of `target` in all its schemes.
fn check_quantized(target: Target, precisions: &[Option<DType>], arguments: &[&str]) {
    for scheme in Scheme::ALL.into_iter().filter(|scheme| scheme.runs_on(target)) {
        for &precision in precisions {
            let components = vec![Component::TextEncoder, Component::Transformer];
            let quantize = Some(scheme);
            check(&ExportOptions { target, precision, quantize, components, ..Default::default() }, arguments);
        }
    }
}

#[test]
fn quantized_cpu_graphs_pass_the_checker_and_load_without_a_warning() {
    check_quantized(Target::Cpu, &[None, Some(DType::F16)], &[]);
}

#[test]
fn quantized_graphs_for_gpus_pass_the_checker() {
    for target in [Target::Cuda, Target::TensorRt] {
        check_quantized(target, &[DType::F16, DType::BF16, DType::F32].map(Some), &["--no-load"]);
    }
}
