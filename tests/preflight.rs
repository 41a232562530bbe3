//! What a tiny run shows of graphs that engines are to be built of. They are run on the processor here, whatever they are for.

mod common;

use cogvx::export::{ExportOptions, VideoShape};
use cogvx::preflight::{Preflight, preflight};
use cogvx::quality::Fault;
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::DType;
use cogvx_graphs::pass::Target;

use common::{bundle_of, cogvx, fixture, fresh_folder, pipeline, root, said, spoilt};

/// The look at what comes of a checkpoint for `target`, compared with its float graphs for the processor.
fn looked(checkpoint: &std::path::Path, reference: &std::path::Path, target: Target) -> Preflight {
    let [folder, plain] = [fresh_folder(), fresh_folder()];
    let options = ExportOptions { target, precision: Some(DType::F16), ..ExportOptions::default() };
    let (bundle, _) = bundle_of(checkpoint, folder.path(), &options);
    let (plain, _) = bundle_of(reference, plain.path(), &ExportOptions::default());
    preflight(&pipeline(&bundle), Some(&pipeline(&plain))).expect("a tiny run")
}

#[test]
fn sound_graphs_of_every_target_pass() {
    let shapes = root().join("examples/shapes-model");
    for checkpoint in [shapes, fixture("5b"), fixture("1.5-i2v"), fixture("5b-i2v")] {
        for target in [Target::Cpu, Target::Cuda, Target::TensorRt] {
            let found = looked(&checkpoint, &checkpoint, target);
            let problems = found.problems();
            assert!(problems.is_empty(), "{} {target:?}: {problems:?}", checkpoint.display());
            assert!(found.latent_error.is_some_and(|error| error < 0.05), "{found:?}");
        }
    }
}

#[test]
fn broken_graphs_are_found_before_anything_is_built_of_them() {
    let good = fixture("2b-fp32");
    let transformer = "transformer/diffusion_pytorch_model.safetensors";
    let vae = "vae/diffusion_pytorch_model.safetensors";
    let folder = fresh_folder();
    let black = |name: &str, x: f32| match name {
        "decoder.conv_out.conv.weight" => 0.0,
        "decoder.conv_out.conv.bias" => -2.0,
        _ => x,
    };
    let bad = spoilt("2b-fp32", &folder.path().join("black"), vae, black);
    assert_eq!(looked(&bad, &good, Target::TensorRt).faults, [Fault::Black]);
    // Without a reference, too.
    let (bundle, _) = bundle_of(&bad, folder.path(), &ExportOptions::default());
    let alone = preflight(&pipeline(&bundle), None).expect("a tiny run");
    assert_eq!((alone.problems(), alone.latent_error), (vec!["black video".to_string()], None));
    // What is finite and looks like a video, but is not this model's.
    let twice = |name: &str, x: f32| if name.ends_with("proj_out.weight") { 2.0 * x } else { x };
    let bad = spoilt("2b-fp32", &folder.path().join("twice"), transformer, twice);
    let found = looked(&bad, &good, Target::Cuda);
    assert_eq!(found.faults, []);
    assert!(found.problems()[0].starts_with("latents: expected a relative error of at most 5e-2, found "), "{found:?}");
}

/// Exit code and output of `cogvx` with these arguments.
fn ran(arguments: &[&str]) -> (Option<i32>, String) {
    let output = cogvx().args(arguments).output().expect("cogvx starts");
    (output.status.code(), said(&output))
}

#[test]
fn compile_looks_before_it_builds() {
    let folder = fresh_folder();
    let path = |name: &str| folder.path().join(name).display().to_string();
    let tensorrt = ExportOptions { target: Target::TensorRt, precision: Some(DType::F16), ..ExportOptions::default() };
    let exported = |name: &str, checkpoint: &std::path::Path, options: &ExportOptions| {
        cogvx::export::export(checkpoint, &folder.path().join(name), options, |_| {}).expect("a sound checkpoint");
        path(name)
    };
    let plain = exported("plain", &fixture("2b-fp32"), &ExportOptions::default());
    let (code, text) = ran(&["compile", &plain]);
    assert_eq!(code, Some(2), "{text}");
    assert!(
        text.ends_with(
            "expected a bundle exported with `--target tensorrt`, found one for `cpu`, which runs as it is\n"
        ),
        "{text}"
    );

    let good = exported("good", &fixture("2b-fp32"), &tensorrt);
    let (_, text) = ran(&["compile", &good, "--against", &plain, "--cache", &path("engines")]);
    // What follows depends on the machine.
    assert!(text.starts_with("preflight at 17x64x64: nothing is broken, latents "), "{text}");

    let nan = |name: &str, x: f32| if name.ends_with("proj_out.bias") { f32::NAN } else { x };
    let bad = spoilt("2b-fp32", &folder.path().join("nan"), "transformer/diffusion_pytorch_model.safetensors", nan);
    let bad = exported("bad", &bad, &ExportOptions { precision: None, ..tensorrt.clone() });
    let (code, text) = ran(&["compile", &bad, "--cache", &path("engines")]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("17x64x64: NaN or infinity from the transformer\nno engine was built: "), "{text}");
    assert!(!folder.path().join("engines").exists());
}

#[test]
fn sizes_that_no_engine_takes_are_refused_before_anything_runs() {
    let folder = fresh_folder();
    let exported = |name: &str, shapes: Option<VideoShape>| {
        let path = folder.path().join(name);
        let options =
            ExportOptions { target: Target::TensorRt, precision: Some(DType::F16), shapes, ..ExportOptions::default() };
        cogvx::export::export(&fixture("2b-fp32"), &path, &options, |_| {}).expect("a sound checkpoint");
        path.display().to_string()
    };
    let open = exported("open", None);
    let fixed = exported("fixed", Some(VideoShape { frames: 9, height: 32, width: 48 }));
    for (bundle, shapes, expected) in [
        (
            &open,
            "17x32x48..9x32x48",
            "expected a range from the least frames, rows and columns to the greatest, found `17x32x48..9x32x48`",
        ),
        (
            &open,
            "9x32x48,9x64x48..17x32x48",
            "expected a range from the least frames, rows and columns to the greatest, found `9x64x48..17x32x48`",
        ),
        (
            &open,
            "1x32x48..9x32x48",
            "expected a range from 5 frames on, found `1x32x48..9x32x48`: one frame has an engine of its own",
        ),
        (&open, "9x32x48..", "expected FRAMESxHEIGHTxWIDTH such as 49x480x720, found ``"),
        (
            &fixed,
            "9x32x48..17x32x48",
            "expected one size, that of the bundle's graphs, found the range 9x32x48..17x32x48",
        ),
    ] {
        let (code, text) = ran(&["compile", bundle, "--shapes", shapes, "--cache", &format!("{open}.engines")]);
        assert_eq!((code, text), (Some(2), format!("error: `--shapes`: {expected}\n")), "{shapes}");
    }
}

#[test]
fn quantized_graphs_in_bf16_cannot_be_tried() {
    let folder = fresh_folder();
    let bundle = folder.path().join("bundle");
    let options = ExportOptions {
        target: Target::TensorRt,
        precision: Some(DType::BF16),
        quantize: Some(Scheme::Int8Weight),
        ..ExportOptions::default()
    };
    cogvx::export::export(&root().join("examples/shapes-model"), &bundle, &options, |_| {})
        .expect("a sound checkpoint");
    let bundle = bundle.display().to_string();
    let (code, text) = ran(&["compile", &bundle]);
    let expected = "quantized graphs in bf16 run nowhere but in TensorRT, so no tiny video can be made of them: export with \
                    `--precision fp16`, or give `--no-preflight`";
    assert_eq!((code, text), (Some(2), format!("error: `{bundle}`: {expected}\n")));
}

#[test]
fn the_cache_tells_what_is_damaged_and_clears_it_away() {
    let folder = fresh_folder();
    let cache = folder.path().join("engines");
    let engine = cache.join("0123456789abcdef0123456789abcdef");
    std::fs::create_dir_all(&engine).expect("a folder");
    std::fs::write(engine.join("engine"), "half an engine").expect("a file");
    std::fs::write(cache.join("notes.txt"), "not an engine").expect("a file");
    let cache = cache.display().to_string();
    let (code, text) = ran(&["cache", "ls", "--cache", &cache]);
    assert!(code == Some(0) && text.contains("damaged: it has no `entry.json`"), "{text}");
    let (code, text) = ran(&["cache", "verify", "--cache", &cache, "--json"]);
    assert!(code == Some(1) && text.contains("\"damaged\": \"it has no `entry.json`\""), "{text}");
    let (code, text) = ran(&["cache", "gc", "--cache", &cache]);
    assert_eq!((code, text.as_str()), (Some(0), "0123456789abcdef0123456789abcdef\n1 removed: 14 B\n"));
    assert!(!engine.exists() && std::path::Path::new(&cache).join("notes.txt").exists());
    assert_eq!(ran(&["cache", "verify", "--cache", &cache]).0, Some(0));
}
