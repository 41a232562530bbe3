//! What a tiny run shows of graphs that engines are to be built of. They are run on the processor here, whatever they are for.

mod common;

use cogvx::export::ExportOptions;
use cogvx::preflight::{Preflight, preflight};
use cogvx::quality::Fault;
use cogvx_graphs::DType;
use cogvx_graphs::pass::Target;

use common::{bundle_of, fixture, fresh_folder, pipeline, root, spoilt};

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
