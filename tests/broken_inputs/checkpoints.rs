//! Tokenizer and scheduler, and the place of the output.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::scene::Scene;
use crate::{check, export, intact, refused};

const SPIECE: &str = "CKPT/tokenizer/spiece.model";
const TOKENS: &str = "CKPT/tokenizer/tokenizer_config.json";
const SCHEDULER: &str = "CKPT/scheduler/scheduler_config.json";

#[test]
fn damaged_tokenizers_and_schedulers_are_refused() {
    let cases = [
        export(
            "no spiece.model",
            |s| s.remove(SPIECE),
            "`CKPT/tokenizer`: expected `spiece.model` or `tokenizer.json`, found neither",
        ),
        export(
            "an empty spiece.model",
            |s| s.write(SPIECE, b""),
            "`CKPT/tokenizer/spiece.model`: expected more than 2 pieces, found 0",
        ),
        export(
            "a spiece.model of garbage",
            |s| s.write(SPIECE, [0xff; 999]),
            "`CKPT/tokenizer/spiece.model`: expected a SentencePiece model, failed to decode Protobuf \
             message: invalid varint",
        ),
        export(
            "a spiece.model cut short",
            |s| s.bytes(SPIECE, |b| b.truncate(4321)),
            "`CKPT/tokenizer/spiece.model`: expected a SentencePiece model, failed to decode Protobuf \
             message: SpmModel.normalizer: buffer underflow",
        ),
        export(
            "a spiece.model that is a FIFO",
            |s| s.fifo(SPIECE),
            "`CKPT/tokenizer/spiece.model`: expected a regular file, found a fifo",
        ),
        export(
            "a spiece.model that is a git-lfs pointer",
            |s| s.write(SPIECE, "version https://git-lfs.github.com/spec/v1\n"),
            "`CKPT/tokenizer/spiece.model`: expected a tokenizer's file, found a git-lfs pointer: run `git \
             lfs pull`",
        ),
        export(
            "a tokenizer_config.json cut short",
            |s| s.bytes(TOKENS, |b| b.truncate(99)),
            "`CKPT/tokenizer/tokenizer_config.json`: expected a JSON object, EOF while parsing a value at \
             line 6 column 4",
        ),
        export(
            "a tokenizer.json without a model",
            |s| s.write("CKPT/tokenizer/tokenizer.json", "{}"),
            "`CKPT/tokenizer/tokenizer.json`: expected a Unigram tokenizer, missing field `model` at line 1 \
             column 2",
        ),
        export(
            "a tokenizer file linked out of the checkpoint",
            |s| {
                s.write("secret", "something else");
                std::os::unix::fs::symlink("../../secret", s.path("CKPT/tokenizer/notes.txt")).expect("a link");
            },
            "`CKPT/tokenizer/notes.txt`: expected a link to a file inside `CKPT`, found `TMP/secret`",
        ),
        export(
            "no scheduler_config.json",
            |s| s.remove(SCHEDULER),
            "`CKPT/scheduler/scheduler_config.json`: expected a file, found nothing",
        ),
        export(
            "a scheduler_config.json cut short",
            |s| s.bytes(SCHEDULER, |b| b.truncate(40)),
            "`CKPT/scheduler/scheduler_config.json`: scheduler configuration: EOF while parsing a string at \
             line 2 column 38",
        ),
        export(
            "a scheduler_config.json that is a FIFO",
            |s| s.fifo(SCHEDULER),
            "`CKPT/scheduler/scheduler_config.json`: expected a regular file, found a fifo",
        ),
        export(
            "an unknown prediction type",
            |s| s.set(SCHEDULER, "prediction_type", "flow_prediction"),
            "`CKPT/scheduler/scheduler_config.json`: scheduler configuration: unknown variant \
             `flow_prediction`, expected one of `epsilon`, `sample`, `v_prediction` at line 1 column 246",
        ),
        export(
            "no training timesteps",
            |s| s.set(SCHEDULER, "num_train_timesteps", 0),
            "`CKPT/scheduler/scheduler_config.json`: scheduler setting `num_train_timesteps`: expected 1 to \
             100000, found 0",
        ),
        export(
            "variances of another number",
            |s| s.set(SCHEDULER, "trained_betas", json!([0.5])),
            "`CKPT/scheduler/scheduler_config.json`: scheduler setting `trained_betas`: expected 1000 values, \
             found 1",
        ),
        export(
            "an unknown scheduler",
            |s| s.set(SCHEDULER, "_class_name", "EulerDiscreteScheduler"),
            "`CKPT/scheduler/scheduler_config.json`: scheduler class: expected `CogVideoXDDIMScheduler` or \
             `CogVideoXDPMScheduler`, found `EulerDiscreteScheduler`; choose one of `ddim` and `dpm`",
        ),
    ];
    check("2b-fp32", &cases);
}

fn bundle(scene: &Scene) {
    let said = scene.run("cogvx-export CKPT -o OUT --weights copy");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
}

#[test]
fn outputs_that_would_destroy_something_are_refused() {
    let cases = [
        export("a file at the output", |s| s.write("OUT", b"mine"), "`OUT`: exists and is not a cogvx bundle"),
        export(
            "a folder of someone else's at the output",
            |s| (s.folder("OUT"), s.write("OUT/thesis.tex", b"mine")).0,
            "`OUT`: exists and is not a cogvx bundle",
        ),
        export("a bundle at the output", bundle, "`OUT`: expected no bundle there unless overwriting, found one"),
        refused(
            "a bundle with a foreign file at the output",
            "cogvx-export CKPT -o OUT --overwrite",
            |s| (bundle(s), s.write("OUT/transformer/notes.txt", b"mine")).0,
            "`OUT`: holds `transformer/notes.txt`, which is not part of the bundle: move it away first",
        ),
        refused(
            "an output in a component of the checkpoint",
            "cogvx-export CKPT -o CKPT/vae/onnx",
            intact,
            "`CKPT/vae/onnx`: expected an output outside the checkpoint `CKPT`",
        ),
        refused(
            "the checkpoint as the output",
            "cogvx-export CKPT -o CKPT",
            intact,
            "`CKPT`: expected an output outside the checkpoint `CKPT`",
        ),
        refused(
            "an output that holds the checkpoint",
            "cogvx-export CKPT -o . --overwrite",
            intact,
            "`TMP`: expected an output outside the checkpoint `CKPT`",
        ),
        refused(
            "an output below a file",
            "cogvx-export CKPT -o CKPT/model_index.json/out",
            intact,
            "`CKPT/model_index.json`: File exists (os error 17)",
        ),
        refused(
            "an output that climbs out of nowhere",
            "cogvx-export CKPT -o OUT/../../x",
            intact,
            "`OUT/../../x`: expected no `..` after a directory that does not exist",
        ),
        export(
            "a dangling link at the output",
            |s| std::os::unix::fs::symlink("gone", s.path("OUT")).expect("a link"),
            "`OUT`: exists and is not a cogvx bundle",
        ),
        refused(
            "an output whose parents are missing, of a broken checkpoint",
            "cogvx-export CKPT -o OUT/a/b/c",
            |s| s.write("CKPT/vae/diffusion_pytorch_model.safetensors", b""),
            "`CKPT/vae/diffusion_pytorch_model.safetensors`: expected safetensors, found an empty file",
        ),
        refused(
            "a checkpoint that is not there",
            "cogvx-export CKPT/none -o OUT",
            intact,
            "`CKPT/none/model_index.json`: expected a file, found nothing",
        ),
        refused(
            "a checkpoint that is a file",
            "cogvx-export CKPT/model_index.json -o OUT",
            intact,
            "`CKPT/model_index.json/model_index.json`: Not a directory (os error 20)",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn an_output_in_a_read_only_folder_is_refused() {
    let probe = Scene::new("2b-fp32");
    fs::set_permissions(probe.root(), fs::Permissions::from_mode(0o555)).expect("permissions");
    let is_root = fs::write(probe.path("OUT"), b"").is_ok();
    fs::set_permissions(probe.root(), fs::Permissions::from_mode(0o755)).expect("permissions");
    if is_root {
        eprintln!("skipped: this user may write to read-only folders");
        return;
    }
    let cases = [refused(
        "a read-only parent",
        "cogvx-export CKPT -o OUT/bundle",
        |s| {
            s.folder("OUT");
            fs::set_permissions(s.path("OUT"), fs::Permissions::from_mode(0o555)).expect("permissions");
        },
        "`OUT`: permission denied",
    )];
    check("2b-fp32", &cases);
}
