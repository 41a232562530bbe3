//! Calibration tables, `cogvx calibrate`, and schemes that a target cannot run.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::scene::Scene;
use crate::{Case, check, intact, refused};

const TABLE: &str = "TABLE";
/// The place that is read first.
const PLACE: &str = "transformer/transformer_blocks.0.attn1.to_q.weight";
const CALIBRATE: &str = "cogvx calibrate CKPT --output TABLE --samples 1 --steps 2 --ranges 2";

/// Put a sound table of the fixture there.
fn table(scene: &Scene) {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = MADE.get_or_init(|| {
        let scene = Scene::new("2b-fp32");
        let said = scene.run(CALIBRATE);
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        std::fs::read(scene.path(TABLE)).expect("a table")
    });
    scene.write(TABLE, bytes);
}

/// Change the numbers of a part of [`PLACE`].
fn numbers(scene: &Scene, part: &str, edit: impl Fn(&mut [[u8; 4]])) {
    table(scene);
    let mut range = 0..0;
    let mut text = 0;
    scene.header(TABLE, |header| {
        let ends = &header[format!("{PLACE}/{part}")]["data_offsets"];
        let end = |i: usize| usize::try_from(ends[i].as_u64().expect("a number")).expect("small");
        range = end(0)..end(1);
        text = header.to_string().len();
    });
    scene.bytes(TABLE, |bytes| edit(bytes[8 + text..][range.clone()].as_chunks_mut().0));
}

/// Change a field of the metadata.
fn metadata(scene: &Scene, key: &str, value: impl Into<Value>) {
    table(scene);
    scene.header(TABLE, |header| header["__metadata__"][key] = value.into());
}

/// Change a field of the metadata that is JSON itself.
fn metadata_json(scene: &Scene, key: &str, edit: impl FnOnce(&mut Value)) {
    table(scene);
    scene.header(TABLE, |header| {
        let mut value = serde_json::from_str(header["__metadata__"][key].as_str().expect("a text")).expect("JSON");
        edit(&mut value);
        header["__metadata__"][key] = value.to_string().into();
    });
}

/// Change the entry of a part of [`PLACE`] in the header.
fn entry(scene: &Scene, part: &str, edit: impl FnOnce(&mut Value)) {
    table(scene);
    scene.header(TABLE, |header| edit(&mut header[format!("{PLACE}/{part}")]));
}

/// A table that an export refuses.
const fn export(name: &'static str, breaks: fn(&Scene), message: &'static str) -> Case {
    let line = "cogvx-export CKPT -o OUT --components transformer --quantize int8 --calibration TABLE";
    Case { name, breaks, line, message }
}

#[test]
fn damaged_tables_are_refused() {
    let cases = [
        export("no table", intact, "`TABLE`: expected a file, found nothing"),
        export("a table that is a FIFO", |s| s.fifo(TABLE), "`TABLE`: expected a regular file, found a fifo"),
        export(
            "a text for a table",
            |s| s.write(TABLE, "least: -1, greatest: 3"),
            "`TABLE`: expected a header of at most 100000000 bytes, found 3251663202787878252",
        ),
        export(
            "a git-lfs pointer for a table",
            |s| s.write(TABLE, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n"),
            "`TABLE`: expected safetensors, found a git-lfs pointer: run `git lfs pull`",
        ),
        export(
            "a table cut short",
            |s| (table(s), s.bytes(TABLE, |b| b.truncate(b.len() - 4))).0,
            "tensor `transformer/transformer_blocks.1.ff.net.2.weight/rows`: expected data to end by 195580, \
             found 195584: the file is truncated (`TABLE`)",
        ),
        export(
            "weights for a table",
            |s| drop(std::fs::copy(s.path("CKPT/text_encoder/model.safetensors"), s.path(TABLE))),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `format` \
             of `cogvx-calibration`, found `pt`",
        ),
        export(
            "a table of another version",
            |s| metadata(s, "version", "1"),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `version` \
             of `2`, found `1`",
        ),
        export(
            "a table of another checkpoint",
            |s| metadata(s, "checkpoint", "0123456789abcdef0123456789abcdef"),
            "`TABLE`: expected a table of the checkpoint with the fingerprint \
             32560a8a984573746551dad285cb7586, found one of 0123456789abcdef0123456789abcdef: calibrate this \
             checkpoint",
        ),
        export(
            "a table without metadata",
            |s| {
                table(s);
                s.header(TABLE, |h| h["__metadata__"] = json!({"format": "cogvx-calibration", "version": "2"}));
            },
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `layers` \
             of a text, found none",
        ),
        export(
            "a table whose layers are no JSON",
            |s| metadata(s, "layers", "{"),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `layers` \
             of JSON, found EOF while parsing an object at line 1 column 1",
        ),
        export(
            "values that are no numbers",
            |s| metadata(s, "values", "{\"a\": [0, null]}"),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `values` \
             of JSON, found invalid type: null, expected f32 at line 1 column 14",
        ),
        export(
            "a value whose least number is its greatest",
            |s| metadata(s, "values", "{\"a\": [1, -1]}"),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `values` \
             of the least and the greatest number of each value, found 1 and -1 of `a`",
        ),
        refused(
            "a table that lacks a value, for fp16",
            "cogvx-export CKPT -o OUT --components transformer --target cuda --precision fp16 --calibration TABLE",
            |s| metadata(s, "values", "{\"transformer/a\": [0, 1]}"),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `values` \
             of the least and the greatest number of `transformer/Mul`, found none",
        ),
        export(
            "a table without layers",
            |s| metadata(s, "layers", "{}"),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `layers` \
             of at least one layer, found none",
        ),
        export(
            "a layer whose place is missing",
            |s| metadata_json(s, "layers", |l| l[PLACE] = "nowhere".into()),
            "`TABLE`: `nowhere/least`: expected f32 [step ranges, features], found none",
        ),
        export(
            "a layer that no layer of the table is",
            |s| metadata_json(s, "layers", |l| drop(l.as_object_mut().expect("an object").remove(PLACE))),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `layers` \
             of the place of `transformer/transformer_blocks.0.attn1.to_q.weight`, found none",
        ),
        export(
            "a layer at a place of another width",
            |s| {
                metadata_json(s, "layers", |l| {
                    l[PLACE] = "transformer/transformer_blocks.0.ff.net.2.weight".into();
                });
            },
            "`TABLE`: `transformer/transformer_blocks.0.ff.net.2.weight/least`: expected the 32 features \
             that `transformer/transformer_blocks.0.attn1.to_q.weight` reads, found 128",
        ),
        export(
            "a missing tensor of a table",
            |s| {
                table(s);
                s.header(TABLE, |h| {
                    let entry = h[format!("{PLACE}/least")].take();
                    h.as_object_mut().expect("an object").remove(&format!("{PLACE}/least"));
                    h["other"] = entry;
                });
            },
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/least`: expected f32 [step ranges, \
             features], found none",
        ),
        export(
            "ranges of another rank",
            |s| entry(s, "least", |e| e["shape"] = json!([64])),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/least`: expected f32 [step ranges, \
             features], found f32 [64]",
        ),
        export(
            "ranges of another type",
            |s| entry(s, "least", |e| e["dtype"] = "I32".into()),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/least`: expected f32 [step ranges, \
             features], found i32 [2, 32]",
        ),
        export(
            "more step ranges than there can be",
            |s| {
                table(s);
                let wide = "transformer/transformer_blocks.0.ff.net.2.weight/least";
                s.header(TABLE, |header| header[wide]["shape"] = json!([128, 2]));
            },
            "`TABLE`: `transformer/transformer_blocks.0.ff.net.2.weight/least`: expected at most 64 step \
             ranges, found 128",
        ),
        export(
            "fewer features in one of the ranges",
            |s| entry(s, "greatest", |e| e["shape"] = json!([4, 16])),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/greatest`: expected as many \
             numbers as `least`, found [16, 16, 16, 16]",
        ),
        export(
            "rows of another width",
            |s| entry(s, "rows", |e| e["shape"] = json!([64, 16])),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/rows`: expected f32 [rows, 32] of \
             at most 4096 rows, found [64, 16]",
        ),
        export(
            "a histogram of another length",
            |s| entry(s, "histogram", |e| e["shape"] = json!([2, 1024])),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/histogram`: expected i64 [2048], \
             found i64 [2, 1024]",
        ),
        export(
            "a range with NaN",
            |s| numbers(s, "least", |n| n[3] = f32::NAN.to_le_bytes()),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/least`: expected finite numbers, \
             found NaN",
        ),
        export(
            "a range with infinity",
            |s| numbers(s, "greatest", |n| n[3] = f32::INFINITY.to_le_bytes()),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/greatest`: expected finite \
             numbers, found inf",
        ),
        export(
            "ranges where nothing was seen",
            |s| numbers(s, "least", |n| n.fill(f32::NAN.to_le_bytes())),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/least`: expected at least one step \
             range that was seen, found none",
        ),
        export(
            "a least number above the greatest",
            |s| numbers(s, "least", |n| n[3] = 1e9_f32.to_le_bytes()),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/least`: expected numbers not \
             greater than `greatest`, found a greater one",
        ),
        export(
            "ranges of zeros",
            |s| {
                numbers(s, "least", |n| n.fill([0; 4]));
                let kept = std::fs::read(s.path(TABLE)).expect("there");
                numbers(s, "greatest", |n| n.fill([0; 4]));
                // Both: the first change was made to the sound table, as was the second.
                let second = std::fs::read(s.path(TABLE)).expect("there");
                let both: Vec<_> = kept.iter().zip(&second).map(|(a, b)| a & b).collect();
                s.write(TABLE, both);
            },
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/greatest`: expected a place where \
             not all is zero, found zeros alone",
        ),
        export(
            "rows with NaN",
            |s| numbers(s, "rows", |n| n[3] = f32::NAN.to_le_bytes()),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/rows`: expected finite numbers, \
             found NaN",
        ),
        export(
            "a count below zero",
            |s| numbers(s, "histogram", |n| n[1] = [255; 4]),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/histogram`: expected counts, found \
             negative or huge ones",
        ),
        export(
            "bins of no width",
            |s| metadata(s, "histograms", "{}"),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/histogram`: expected bins of a \
             width in `__metadata__` `histograms`, found none",
        ),
        export(
            "a huge count of tokens",
            |s| metadata_json(s, "seen", |j| j[PLACE] = u64::MAX.into()),
            "`TABLE`: `transformer/transformer_blocks.0.attn1.to_q.weight/rows`: expected a count of tokens \
             in `__metadata__` `seen`, found 18446744073709551615",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn schemes_that_cannot_be_are_refused_with_one_that_can() {
    let cases = [
        refused(
            "int8 on CUDA",
            "cogvx-export CKPT -o OUT --target cuda --quantize int8",
            intact,
            "`--quantize`: expected a scheme that `--target cuda` has kernels for, such as `int8-weight`, \
             found `int8`",
        ),
        refused(
            "int8-static on CUDA",
            "cogvx-export CKPT -o OUT --target cuda --quantize int8-static",
            intact,
            "`--quantize`: expected a scheme that `--target cuda` has kernels for, such as `int8-weight`, \
             found `int8-static`",
        ),
        refused(
            "fp8 on CUDA",
            "cogvx-export CKPT -o OUT --target cuda --quantize fp8",
            intact,
            "`--quantize`: expected a scheme that `--target cuda` has kernels for, such as `int8-weight`, \
             found `fp8`",
        ),
        refused(
            "fp8 on the CPU",
            "cogvx-export CKPT -o OUT --quantize fp8",
            intact,
            "`--quantize`: expected a scheme that `--target cpu` has kernels for, such as `int8-weight`, \
             found `fp8`",
        ),
        refused(
            "int8 on TensorRT",
            "cogvx-export CKPT -o OUT --target tensorrt --quantize int8",
            intact,
            "`--quantize`: expected a scheme that `--target tensorrt` has kernels for, such as \
             `int8-static`, found `int8`",
        ),
        refused(
            "int8-static without a table",
            "cogvx-export CKPT -o OUT --quantize int8-static",
            intact,
            "`--quantize int8-static`: expected `--calibration TABLE`, found none: make one with `cogvx \
             calibrate`, or quantize to `int8-weight`",
        ),
        refused(
            "fp8 without a table",
            "cogvx-export CKPT -o OUT --target tensorrt --quantize fp8",
            intact,
            "`--quantize fp8`: expected `--calibration TABLE`, found none: make one with `cogvx calibrate`, \
             or quantize to `int8-weight`",
        ),
        refused(
            "an unknown scheme",
            "cogvx-export CKPT -o OUT --quantize int3",
            intact,
            "invalid value 'int3' for '--quantize <SCHEME>'\n\
             \x20 [possible values: int8, int8-static, int8-weight, int4-weight, fp8]",
        ),
        refused(
            "layers chosen by themselves without a limit",
            "cogvx-export CKPT -o OUT --quantize int8:auto",
            intact,
            "`--quantize int8:auto`: expected `--max-loss X`, found none",
        ),
        refused(
            "a limit of what is lost, and nothing to choose by",
            "cogvx-export CKPT -o OUT --quantize int8 --max-loss 0.1",
            intact,
            "`--max-loss`: expected `--sensitivity FILE` or `--quantize int8:auto`, found neither",
        ),
        refused(
            "a verdict of a float bundle",
            "cogvx-export CKPT -o OUT --quantize int8 --verdict BUNDLE",
            |s| assert_eq!(s.run("cogvx-export CKPT -o BUNDLE").code, Some(0)),
            "`BUNDLE`: expected a bundle in `int8`, found `float`",
        ),
        refused(
            "a verdict for another target",
            "cogvx-export CKPT -o OUT --quantize int8-weight --target cuda --verdict BUNDLE",
            |s| assert_eq!(s.run("cogvx-export CKPT -o BUNDLE --quantize int8-weight").code, Some(0)),
            "`BUNDLE`: expected a bundle for the target `cuda`, found `cpu`",
        ),
        refused(
            "a bundle without a verdict",
            "cogvx-export CKPT -o OUT --quantize int8 --verdict BUNDLE",
            |s| assert_eq!(s.run("cogvx-export CKPT -o BUNDLE --quantize int8 --prefer size").code, Some(0)),
            "`BUNDLE`: expected a verdict, found none: `cogvx bench BUNDLE --against FLOAT --store` makes one",
        ),
        refused(
            "speed on a machine of another kind",
            "cogvx-export CKPT -o OUT --quantize int8-weight --target cuda --prefer speed",
            intact,
            "`--prefer speed`: expected the target `cpu`, which is measured here, found `cuda`: on a machine with a GPU \
             `cogvx bench BUNDLE --against FLOAT --store` measures, and `--verdict BUNDLE` takes what it finds",
        ),
        refused(
            "speed, and a verdict of before",
            "cogvx-export CKPT -o OUT --quantize int8 --prefer speed --verdict BUNDLE",
            intact,
            "the argument '--prefer <PREFER>' cannot be used with '--verdict <BUNDLE>'",
        ),
        refused(
            "a verdict that is none",
            "cogvx-export CKPT -o OUT --quantize int8 --verdict BUNDLE",
            |s| {
                assert_eq!(s.run("cogvx-export CKPT -o BUNDLE --quantize int8 --prefer size").code, Some(0));
                s.set("BUNDLE/cogvx.json", "verdict", json!({"layers": [{"group": "x", "verdict": "keep float"}]}));
            },
            "`BUNDLE`: `verdict`: expected a kind of layer, found `x`",
        ),
        refused(
            "a table without a scheme",
            "cogvx-export CKPT -o OUT --calibration TABLE",
            table,
            "`--calibration`: expected `--quantize`, or a `--target` that computes in fp16, found neither: the \
             table would not be used",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn calibrations_that_cannot_be_are_refused() {
    let cases = [
        refused(
            "a bundle for a checkpoint",
            "cogvx calibrate BUNDLE --output TABLE",
            |s| assert_eq!(s.run("cogvx-export CKPT -o BUNDLE").code, Some(0)),
            "`BUNDLE`: expected a checkpoint, found a bundle: calibrate the checkpoint that it was exported \
             from",
        ),
        refused(
            "no checkpoint",
            "cogvx calibrate OUT --output TABLE",
            intact,
            "`OUT/text_encoder`: expected a file, found nothing",
        ),
        refused(
            "no file of prompts",
            "cogvx calibrate CKPT --output TABLE --prompts prompts.txt",
            intact,
            "`prompts.txt`: expected a file, found nothing",
        ),
        refused(
            "a file without prompts",
            "cogvx calibrate CKPT --output TABLE --prompts prompts.txt",
            |s| s.write("prompts.txt", "\n \n"),
            "`prompts.txt`: expected a prompt a line, found none",
        ),
        refused(
            "prompts that are no text",
            "cogvx calibrate CKPT --output TABLE --prompts prompts.txt",
            |s| s.write("prompts.txt", [0xff, 0xfe, 0]),
            "`prompts.txt`: stream did not contain valid UTF-8",
        ),
        refused(
            "no prompt",
            "cogvx calibrate CKPT --output TABLE --samples 0",
            intact,
            "invalid value '0' for '--samples <SAMPLES>': 0 is not in 1..18446744073709551615",
        ),
        refused(
            "no step",
            "cogvx calibrate CKPT --output TABLE --steps 0",
            intact,
            "steps: expected 1 to 1000 (the model's training timesteps), found 0",
        ),
        refused(
            "a size no video has",
            "cogvx calibrate CKPT --output TABLE --height 40",
            intact,
            "`--height`: expected a multiple of 16, at most 65536, found 40",
        ),
        refused(
            "a table that is there",
            CALIBRATE,
            table,
            "`TABLE`: expected nothing there, found a file: `--resume` goes on with it",
        ),
        refused(
            "another file to go on with",
            "cogvx calibrate CKPT --output TABLE --resume",
            |s| s.write(TABLE, "a letter to my aunt"),
            "`TABLE`: expected a header of at most 100000000 bytes, found 8243122736238174305",
        ),
        refused(
            "a table of another checkpoint to go on with",
            "cogvx calibrate CKPT --output TABLE --resume",
            |s| metadata(s, "checkpoint", "0123456789abcdef0123456789abcdef"),
            "`TABLE`: expected a table of the checkpoint with the fingerprint \
             32560a8a984573746551dad285cb7586, found one of 0123456789abcdef0123456789abcdef: calibrate this \
             checkpoint",
        ),
        refused(
            "other step ranges",
            "cogvx calibrate CKPT --output TABLE --resume --ranges 3",
            table,
            "`--ranges`: expected 2 as in `TABLE`, found 3",
        ),
        refused(
            "a table of another checkpoint to merge",
            "cogvx calibrate CKPT --output OUT --merge TABLE",
            |s| metadata(s, "checkpoint", "0123456789abcdef0123456789abcdef"),
            "`TABLE`: expected a table of the checkpoint with the fingerprint \
             32560a8a984573746551dad285cb7586, found one of 0123456789abcdef0123456789abcdef: calibrate this \
             checkpoint",
        ),
        refused(
            "a table twice",
            "cogvx calibrate CKPT --output OUT --merge TABLE --merge TABLE",
            table,
            "`TABLE`: expected other runs, found `A golden retriever runs along a sandy beach at sunset, \
             waves rolling in behind it.` with seed 0 in both",
        ),
        refused(
            "tables of other step ranges",
            "cogvx calibrate CKPT --output OUT --merge TABLE --merge more.safetensors",
            |s| {
                table(s);
                let said = s.run("cogvx calibrate CKPT --output more.safetensors --samples 1 --steps 2 --ranges 1");
                assert_eq!(said.code, Some(0), "{}", said.stderr);
            },
            "`more.safetensors`: expected 2 step ranges, found 1",
        ),
        refused(
            "tables to merge and prompts",
            "cogvx calibrate CKPT --output OUT --merge TABLE --steps 2",
            table,
            "the argument '--merge <TABLE>' cannot be used with '--steps <STEPS>'",
        ),
        refused(
            "a missing LoRA",
            "cogvx calibrate CKPT --output OUT --lora lora.safetensors",
            intact,
            "`lora.safetensors`: expected a file, found nothing",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn images_that_are_missing_or_in_vain_are_told() {
    const MISSING: &str = "`--image`: expected an image: this is an image-to-video model, found none";
    let cases = [
        refused("no image", "cogvx calibrate CKPT --output TABLE", intact, MISSING),
        refused("no image to rank by", "cogvx sensitivity CKPT --quantize int8 --output OUT", intact, MISSING),
        refused("no image to heal by", "cogvx student CKPT --output OUT --ffn 100 --heal", intact, MISSING),
        refused("no image for targets", "cogvx student CKPT --dump-targets OUT", intact, MISSING),
        refused("no image to compare", "cogvx quality CKPT --against CKPT", intact, MISSING),
        refused(
            "no image for layers that are chosen",
            "cogvx-export CKPT -o OUT --quantize int8:auto --max-loss 1",
            intact,
            MISSING,
        ),
        refused(
            "an image that is not there",
            "cogvx calibrate CKPT --output TABLE --image in.png",
            intact,
            "`in.png`: expected a file, found nothing",
        ),
        refused(
            "a line without an image",
            "cogvx calibrate CKPT --output TABLE --prompts PROMPTS",
            |s| {
                let from = crate::scene::fixtures().join("references/5b-i2v-plain-input.png");
                let line = json!({"prompt": "a fox", "image": from.display().to_string()});
                s.write("PROMPTS", format!("{line}\n{{\"prompt\": \"a boat\"}}\n"));
            },
            MISSING,
        ),
        refused(
            "a line with a field of another command",
            "cogvx calibrate CKPT --output TABLE --prompts PROMPTS",
            |s| s.write("PROMPTS", "{\"prompt\": \"a fox\", \"seed\": 3}\n"),
            "`PROMPTS`, line 1: expected a JSON object of `prompt` and `image`, found unknown field `seed`, expected \
             `prompt` or `image` at column 26",
        ),
        refused(
            "an image where nothing is run",
            "cogvx-export CKPT -o OUT --quantize int8 --image in.png",
            intact,
            "`--image`: expected `--quantize int8:auto`, which runs the model, found `in.png` without it",
        ),
    ];
    check("5b-i2v", &cases);
    let cases = [refused(
        "an image for a model of text alone",
        "cogvx calibrate CKPT --output TABLE --image in.png",
        |s| {
            let from = crate::scene::fixtures().join("references/5b-i2v-plain-input.png");
            s.write("in.png", std::fs::read(from).expect("an image"));
        },
        "`--image`: expected none: this is not an image-to-video model, found an image",
    )];
    check("2b-fp32", &cases);
}
