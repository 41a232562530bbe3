//! Exports of the VAE in eight bits, and the tables for them.

use std::sync::OnceLock;

use serde_json::Value;

use crate::scene::Scene;
use crate::{check, intact, refused};

const TABLE: &str = "TABLE";
const EXPORT: &str =
    "cogvx-export CKPT -o OUT --components vae-decoder --quantize int8 --quantize-vae --calibration TABLE";
/// What the first quantized convolution reads.
const VALUE: &str = "vae_decoder/decoder.mid_block.resnets.0.conv1.conv/Conv.input";

/// Put a table there that saw the VAE of the fixture.
fn table(scene: &Scene) {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    let bytes = MADE.get_or_init(|| {
        let scene = Scene::new("2b-fp32");
        let said = scene.run("cogvx calibrate CKPT --output TABLE --samples 1 --steps 1 --vae");
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        std::fs::read(scene.path(TABLE)).expect("a table")
    });
    scene.write(TABLE, bytes);
}

/// Change what the table says of [`VALUE`].
fn value(scene: &Scene, edit: impl FnOnce(&mut serde_json::Map<String, Value>)) {
    table(scene);
    scene.header(TABLE, |header| {
        let values = &mut header["__metadata__"]["values"];
        let mut inner: Value = serde_json::from_str(values.as_str().expect("a text")).expect("JSON");
        edit(inner.as_object_mut().expect("an object"));
        *values = inner.to_string().into();
    });
}

/// Put a table there that saw another VAE.
fn of_another_vae(scene: &Scene) {
    table(scene);
    scene.header(TABLE, |header| header["__metadata__"]["vae"] = "0123456789abcdef0123456789abcdef".into());
}

/// What is said of it.
const OF_ANOTHER_VAE: &str = "`TABLE`: expected a table of the VAE with the fingerprint \
                              811482c3e7e8ebfce1f1e54aa8b1a435, found one of \
                              0123456789abcdef0123456789abcdef: calibrate this checkpoint";

#[test]
fn tables_that_do_not_tell_of_the_vae_are_refused() {
    let cases = [
        refused(
            "no table",
            "cogvx-export CKPT -o OUT --quantize int8 --quantize-vae",
            intact,
            "`--quantize-vae`: expected `--calibration TABLE`, found none: make one with `cogvx calibrate --vae`",
        ),
        refused(
            "a table made without the VAE",
            EXPORT,
            |s| {
                let said = s.run("cogvx calibrate CKPT --output TABLE --samples 1 --steps 1");
                assert_eq!(said.code, Some(0), "{}", said.stderr);
                assert!(said.stdout.contains("the VAE was not seen"), "{}", said.stdout);
            },
            "`TABLE`: expected a table that saw the VAE's decoder, found one that did not: make one with \
             `cogvx calibrate --vae`",
        ),
        refused("a table of another VAE", EXPORT, of_another_vae, OF_ANOTHER_VAE),
        refused(
            "a convolution that the table does not know",
            EXPORT,
            |s| value(s, |values| drop(values.remove(VALUE))),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `values` of the least \
             and the greatest number of `vae_decoder/decoder.mid_block.resnets.0.conv1.conv/Conv.input`, not both zero, \
             found none",
        ),
        refused(
            "a convolution that read zeros alone",
            EXPORT,
            |s| value(s, |values| values[VALUE] = vec![0.0, 0.0].into()),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `values` of the least \
             and the greatest number of `vae_decoder/decoder.mid_block.resnets.0.conv1.conv/Conv.input`, not both zero, \
             found zeros alone",
        ),
        refused(
            "a least number above the greatest",
            EXPORT,
            |s| value(s, |values| values[VALUE] = vec![2.0, -1.0].into()),
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `values` of the least \
             and the greatest number of each value, found 2 and -1 of \
             `vae_decoder/decoder.mid_block.resnets.0.conv1.conv/Conv.input`",
        ),
        refused(
            "no number",
            EXPORT,
            |s| {
                value(s, |values| {
                    values.clear();
                    values.insert(VALUE.into(), vec![Value::Null, 1.0.into()].into());
                });
            },
            "`TABLE`: expected a calibration table as `cogvx calibrate` writes it: `__metadata__` `values` of JSON, found \
             invalid type: null, expected f32 at line 1 column 70",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn caches_that_fp16_does_not_hold_are_refused_unless_they_are_allowed() {
    let large = |s: &Scene| {
        value(s, |values| {
            let convs = values.iter_mut().filter(|(name, _)| name.starts_with("vae_decoder/decoder.up_blocks.0"));
            convs.for_each(|(_, bounds)| *bounds = vec![-1e5, 1.0].into());
        });
    };
    let line = "cogvx-export CKPT -o OUT --components vae-decoder --target cuda --precision fp16 --calibration TABLE";
    let cases = [
        refused(
            "a large cache",
            line,
            large,
            "`TABLE`: `vae_decoder/decoder.up_blocks.0.resnets.0.conv1.cache` reached 1e5, but fp16 ends at 65504: \
             export with `--precision bf16`, or `fp32`, or force it with `--allow-overflow`",
        ),
        refused("a table of another VAE", line, of_another_vae, OF_ANOTHER_VAE),
    ];
    check("2b-fp32", &cases);
    let scene = Scene::new("2b-fp32");
    large(&scene);
    let said = scene.run(&format!("{line} --allow-overflow"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    assert!(said.stdout.contains("values stay fp32, which fp16 would not hold"), "{}", said.stdout);
}

#[test]
fn targets_without_kernels_for_it_are_refused() {
    let cases = [
        refused(
            "the VAE for TensorRT",
            "cogvx-export CKPT -o OUT --target tensorrt --quantize int8-weight --quantize-vae",
            intact,
            "`--quantize-vae`: expected `--target cpu`, found `tensorrt`, for which no eight-bit 3D convolution is \
             known to be fast: leave it out, and `--precision fp16` has the VAE in 16 bits",
        ),
        refused(
            "the VAE alone",
            "cogvx-export CKPT -o OUT --quantize-vae",
            intact,
            "the following required arguments were not provided:\n\x20 --quantize <SCHEME>",
        ),
    ];
    check("2b-fp32", &cases);
}
