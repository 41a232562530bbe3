//! States of runs to go on with.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::OnceLock;

use serde_json::json;

use crate::scene::Scene;
use crate::{Case, check, intact, refused};

const STATE: &str = "STATE";
const RUN: &str = "cogvx run CKPT -p fox --steps 1000 --scheduler dpm -o OUT.npy";

/// Put the state of a run that was killed there.
fn state(scene: &Scene) {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = MADE.get_or_init(|| {
        let scene = Scene::new("2b-fp32");
        let mut command = scene.command(&format!("{RUN} --save-state STATE"));
        let mut child = command.stderr(Stdio::piped()).spawn().expect("it starts");
        let mut lines = BufReader::new(child.stderr.take().expect("piped")).lines().map_while(Result::ok);
        assert!(lines.any(|line| line.starts_with("step 3/")), "steps are made");
        child.kill().and_then(|()| child.wait()).expect("a child");
        std::fs::read(scene.path(STATE)).expect("a state")
    });
    scene.write(STATE, bytes);
}

/// Change a field of the metadata.
fn metadata(scene: &Scene, key: &str, value: &str) {
    state(scene);
    scene.header(STATE, |header| header["__metadata__"][key] = value.into());
}

/// A state that is refused.
const fn resumed(name: &'static str, breaks: fn(&Scene), message: &'static str) -> Case {
    let line = "cogvx run CKPT -p fox --steps 1000 --scheduler dpm -o OUT.npy --resume STATE";
    Case { name, breaks, line, message }
}

#[test]
fn damaged_and_foreign_states_are_refused() {
    let cases = [
        resumed("no state", intact, "`STATE`: expected a file, found nothing"),
        resumed("a state that is a FIFO", |s| s.fifo(STATE), "`STATE`: expected a regular file, found a fifo"),
        resumed(
            "a text for a state",
            |s| s.write(STATE, "least: -1, greatest: 3"),
            "`STATE`: expected a header of at most 100000000 bytes, found 3251663202787878252",
        ),
        resumed("an empty state", |s| s.write(STATE, ""), "`STATE`: expected safetensors, found an empty file"),
        resumed(
            "a state cut short",
            |s| (state(s), s.bytes(STATE, |b| b.truncate(b.len() - 4))).0,
            "tensor `generator`: expected data to end by 6524, found 6528: the file is truncated (`STATE`)",
        ),
        resumed(
            "weights for a state",
            |s| drop(std::fs::copy(s.path("CKPT/text_encoder/model.safetensors"), s.path(STATE))),
            "`STATE`: expected the state of a run as `cogvx run --save-state` writes it: `__metadata__` `format` of \
             `cogvx-run`, found `pt`",
        ),
        resumed(
            "a state of another version",
            |s| metadata(s, "version", "1"),
            "`STATE`: expected the state of a run as `cogvx run --save-state` writes it: `__metadata__` `version` of \
             `2`, found `1`",
        ),
        resumed(
            "a state of another prompt",
            |s| metadata(s, "prompt", "a dog\n"),
            "`STATE`: expected the state of a run whose prompt is `fox`, found `a dog\\n`",
        ),
        resumed(
            "a state without a number of steps",
            |s| metadata(s, "done", "a few"),
            "`STATE`: expected the state of a run as `cogvx run --save-state` writes it: `__metadata__` `done` of a \
             whole number, found `a few`",
        ),
        resumed(
            "a state with another number of steps",
            |s| metadata(s, "done", "900"),
            "`STATE`: expected contents with the hash in its `__metadata__`, found others: the file is damaged",
        ),
        resumed(
            "a state with one bit changed",
            |s| (state(s), s.bytes(STATE, |b| *b.last_mut().expect("bytes") ^= 1)).0,
            "`STATE`: expected contents with the hash in its `__metadata__`, found others: the file is damaged",
        ),
        resumed(
            "a state without a hash",
            |s| metadata(s, "blake3", ""),
            "`STATE`: expected contents with the hash in its `__metadata__`, found others: the file is damaged",
        ),
        resumed(
            "latents of another shape",
            |s| (state(s), s.header(STATE, |h| h["latents"]["shape"] = json!([1, 4, 3, 4, 4]))).0,
            "`STATE`: `latents`: expected [1, 3, 4, 4, 4], found [1, 4, 3, 4, 4]",
        ),
        resumed(
            "another tensor",
            |s| {
                state(s);
                s.header(STATE, |h| {
                    let tensor = h.as_object_mut().and_then(|h| h.remove("generator"));
                    h["words"] = tensor.expect("a tensor");
                });
            },
            "`STATE`: `words`: expected no such tensor, found one",
        ),
        resumed(
            "a generator of another type",
            |s| {
                state(s);
                s.header(STATE, |h| (h["generator"]["dtype"], h["generator"]["shape"]) = (json!("F32"), json!([1248])));
            },
            "`STATE`: `generator`: expected i64 [624], found f32 [1248]",
        ),
        resumed(
            "a state of a run with other shortcuts",
            |s| metadata(s, "step_cache", "0.1"),
            "`STATE`: expected the state of a run whose step-cache is `0`, found `0.1`",
        ),
        refused(
            "a state where one is",
            "cogvx run CKPT -p fox -o OUT.npy --save-state STATE",
            state,
            "`STATE`: expected nothing there, found a file or folder: `--resume` goes on with a state",
        ),
        refused(
            "a state in the video's place",
            "cogvx run CKPT -p fox -o OUT.npy --save-state OUT.npy",
            intact,
            "`OUT.npy`: expected another file than the video's",
        ),
        refused(
            "a state in no folder",
            "cogvx run CKPT -p fox -o OUT.npy --save-state none/state",
            intact,
            "cannot write `none/state`: entity not found",
        ),
        refused(
            "a state to save and one to go on with",
            "cogvx run CKPT -p fox -o OUT.npy --save-state STATE --resume STATE",
            intact,
            "the argument '--save-state <FILE>' cannot be used with '--resume <FILE>'",
        ),
    ];
    check("2b-fp32", &cases);
}
