//! Engines of TensorRT-RTX, built by its real libraries for a GPU that computes nothing (`tests/cuda/device.c`): what a graph becomes
//! is real, what would run is not. `COGVX_TENSORRT_PYTHON` names a Python with `onnxruntime-ep-nv-tensorrt-rtx-cu13`.

mod common;
mod played;

use std::path::Path;
use std::process::Command;

use cogvx::export::{ExportOptions, VideoShape};
use cogvx_graphs::DType;
use cogvx_graphs::pass::Target;
use serde_json::Value;

use common::{bundle_of, fixture, fresh_folder, said};
use played::{on_no_gpu, on_no_rtx_gpu};

/// `cogvx` on a machine with such a GPU, with a cache in `folder`.
fn cogvx(architecture: u32, folder: &Path) -> Option<Command> {
    let mut command = on_no_rtx_gpu(env!("CARGO_BIN_EXE_cogvx"), architecture)?;
    command.env("XDG_CACHE_HOME", folder);
    Some(command)
}

/// Exit code and output of `cogvx` there.
fn ran(architecture: u32, folder: &Path, bundle: &Path, arguments: &[&str]) -> Option<(Option<i32>, String)> {
    let mut command = cogvx(architecture, folder)?;
    let output = command.arg(arguments[0]).arg(bundle).args(&arguments[1..]).output().expect("cogvx starts");
    Some((output.status.code(), said(&output)))
}

/// The engines of a bundle as `cogvx compile` reports them.
fn compiled(architecture: u32, folder: &Path, bundle: &Path, shapes: &[&str]) -> Option<Vec<Value>> {
    let mut command = cogvx(architecture, folder)?;
    command.args(["compile", "--tensorrt-rtx", "--no-preflight", "--json"]).args(shapes).arg(bundle);
    let output = command.output().expect("cogvx starts");
    assert!(output.status.success(), "{}", said(&output));
    Some(serde_json::from_slice(&output.stdout).expect("JSON"))
}

/// Graph and whether it was built.
fn built(engines: &[Value]) -> Vec<(&str, bool)> {
    engines.iter().map(|e| (e["graph"].as_str().expect("a name"), e["built"].as_bool().expect("known"))).collect()
}

fn options(shapes: Option<VideoShape>) -> ExportOptions {
    ExportOptions { target: Target::TensorRt, precision: Some(DType::F16), shapes, ..ExportOptions::default() }
}

#[test]
fn engines_for_a_range_of_sizes_are_built_once_and_found_by_a_run() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &options(None));
    let shapes = ["--shapes", "9x32x48..25x64x96"];
    let Some(engines) = compiled(89, folder.path(), &bundle, &shapes) else { return };
    let graphs =
        ["text_encoder/model.onnx", "transformer/model.onnx", "vae_decoder/first.onnx", "vae_decoder/next.onnx"];
    assert_eq!(built(&engines), graphs.map(|graph| (graph, true)));
    for engine in &engines {
        let key = &engine["key"];
        assert_eq!((&key["provider"], &key["gpu"]["architecture"]), (&"tensorrt-rtx".into(), &"8.9".into()), "{key}");
        assert_eq!(key["options"]["nv_target_sm"], "sm89", "{key}");
        // Hashes of the three libraries, and ONNX Runtime's version.
        assert_eq!(key["libraries"].as_object().map(serde_json::Map::len), Some(4), "{key}");
        assert!(engine["bytes"].as_u64().is_some_and(|bytes| bytes > 10_000), "{engine}");
    }
    let again = compiled(89, folder.path(), &bundle, &shapes).expect("as before");
    assert_eq!(built(&again), graphs.map(|graph| (graph, false)));

    let listed = cogvx(89, folder.path()).expect("as before").args(["cache", "verify"]).output().expect("cogvx starts");
    let text = said(&listed);
    assert!(
        listed.status.success() && text.matches("fp16, tensorrt-rtx, any (8.9), driver any").count() == 4,
        "{text}"
    );

    // A run of a size in the range takes them and gets as far as it can: TensorRT-RTX asks the driver whether they are for this GPU.
    let output = folder.path().join("video.npy").display().to_string();
    let size = ["--frames", "13", "--height", "48", "--width", "64", "--steps", "1", "--output", &output];
    let run = [&["run", "--tensorrt-rtx", "--prompt", "a fox"], &size[..]].concat();
    let (code, text) = ran(89, folder.path(), &bundle, &run).expect("as before");
    assert_eq!(code, Some(2), "{text}");
    let refused = "Compiled model is not supported by execution provider: NvTensorRTRTXExecutionProvider";
    let engines = folder.path().join("cogvx/engines").display().to_string();
    let last = text.lines().last().unwrap_or_default();
    assert!(last.starts_with(&format!("error: cannot load `{engines}")) && last.ends_with(refused), "{text}");
    assert!(!text.contains("building"), "{text}");
}

#[test]
fn engines_of_one_size_are_built_for_each_architecture() {
    let folder = fresh_folder();
    let size = VideoShape { frames: 9, height: 32, width: 48 };
    let (bundle, _) = bundle_of(&fixture("1.5-i2v"), folder.path(), &options(Some(size)));
    for (architecture, target) in [(86, "sm86"), (120, "sm120")] {
        let Some(engines) = compiled(architecture, folder.path(), &bundle, &[]) else { return };
        let all = built(&engines);
        assert!(all.iter().all(|(_, built)| *built) && all.contains(&("vae_encoder/first.onnx", true)), "{all:?}");
        assert!(engines.iter().all(|engine| engine["key"]["options"]["nv_target_sm"] == target), "{engines:?}");
    }
}

#[test]
fn a_run_in_tiles_takes_no_engine_of_the_vae() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &options(None));
    let output = folder.path().join("video.npy").display().to_string();
    let run = ["run", "--tensorrt-rtx", "--prompt", "a fox", "--frames", "9", "--height", "16", "--width", "16"];
    let run = [&run[..], &["--steps", "1", "--vae-tiling", "--output", &output]].concat();
    let Some((_, text)) = ran(89, folder.path(), &bundle, &run) else { return };
    let built: Vec<_> = text.lines().filter(|line| line.contains(": building ")).collect();
    let expected = ["text_encoder", "transformer"]
        .map(|name| format!("`{name}/model.onnx` at 9x16x16: building the engine, which takes minutes"));
    assert_eq!(built, expected, "{text}");
}

#[test]
fn what_tensorrt_rtx_does_not_take_is_one_message() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &options(None));
    let compile = ["compile", "--tensorrt-rtx", "--no-preflight"];
    let Some((code, text)) = ran(90, folder.path(), &bundle, &compile) else { return };
    let expected = "error: `--tensorrt-rtx`: expected a GPU of compute capability 8.6, 8.9, 12.0 or newer, found a device that computes \
                    nothing (9.0): choose one with `--device N`, or leave the option out for TensorRT\n";
    assert_eq!((code, text.as_str()), (Some(2), expected));
    let (code, text) =
        ran(89, folder.path(), &bundle, &[&compile[..], &["--weight-stripped"]].concat()).expect("as before");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("'--tensorrt-rtx' cannot be used with '--weight-stripped'"), "{text}");
}

#[test]
fn without_its_package_the_message_has_the_command_that_installs_it() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &options(None));
    let Some(mut command) = on_no_gpu(common::cogvx()) else { return };
    // No `python3`, so no packages.
    command.env("PATH", folder.path()).env("FAKE_CUDA_ARCH", "89").env("XDG_CACHE_HOME", folder.path());
    let output = command.args(["compile", "--tensorrt-rtx", "--no-preflight"]).arg(bundle).output().expect("it starts");
    let text = said(&output);
    assert_eq!(output.status.code(), Some(2), "{text}");
    let expected = "error: the GPU: expected `libtensorrt_rtx.so.1`, `libtensorrt_onnxparser_rtx.so.1`, \
                    `libonnxruntime_providers_nv_tensorrt_rtx.so`, found none on the system or in Python's packages: `python3 -m pip \
                    install onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0`\n";
    assert_eq!(text, expected);
}
