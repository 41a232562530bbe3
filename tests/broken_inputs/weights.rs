//! Weight files: headers, shards, tensors.

use serde_json::json;

use crate::scene::{Scene, safetensors};
use crate::{check, export, refused};

const DIT: &str = "CKPT/transformer/diffusion_pytorch_model.safetensors";
const VAE: &str = "CKPT/vae/diffusion_pytorch_model.safetensors";
const T5: &str = "CKPT/text_encoder/model.safetensors";
const INDEX: &str = "CKPT/transformer/diffusion_pytorch_model.safetensors.index.json";
const SHARD: &str = "CKPT/transformer/diffusion_pytorch_model-00002-of-00004.safetensors";

/// Give the file another header length.
fn length(scene: &Scene, length: u64) {
    scene.bytes(DIT, |b| b[..8].copy_from_slice(&length.to_le_bytes()));
}

/// Replace the file by one with this header and eight bytes of data.
fn header(scene: &Scene, header: &str) {
    scene.write(DIT, safetensors(header, &[0; 8]));
}

#[test]
fn damaged_safetensors_headers_are_refused() {
    let cases = [
        export(
            "header length 0",
            |s| length(s, 0),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: header: expected JSON, found EOF while \
             parsing a value at line 1 column 0",
        ),
        export(
            "header length beyond the file",
            |s| length(s, 10_000_000),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: expected 10000008 bytes, found 204640",
        ),
        export(
            "header length 2^64 - 1",
            |s| length(s, u64::MAX),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: expected a header of at most 100000000 \
             bytes, found 18446744073709551615",
        ),
        export(
            "header length of more than 100 MB",
            |s| length(s, 100_000_001),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: expected a header of at most 100000000 \
             bytes, found 100000001",
        ),
        export(
            "a dimension of more than 64 bits",
            |s| header(s, r#"{"a": {"dtype": "F32", "shape": [99999999999999999999], "data_offsets": [0, 8]}}"#),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: header: expected JSON, found `a`: invalid type: \
             floating point `1e+20`, expected u64 at line 1 column 53",
        ),
        export(
            "a hundred thousand axes",
            |s| {
                let shape = vec!["1"; 100_000].join(",");
                header(s, &format!(r#"{{"a": {{"dtype": "F32", "shape": [{shape}], "data_offsets": [0, 8]}}}}"#));
            },
            "tensor `a`: expected at most 16 dimensions, found more \
             (`CKPT/transformer/diffusion_pytorch_model.safetensors`)",
        ),
        export(
            "shorter than a header length",
            |s| s.write(DIT, b"\x10\0\0\0"),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: expected 8 bytes, found 4",
        ),
        export(
            "header cut short",
            |s| s.bytes(DIT, |b| b.truncate(1000)),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: expected 6240 bytes, found 1000",
        ),
        export(
            "data cut short",
            |s| s.bytes(DIT, |b| b.truncate(b.len() - 1)),
            "tensor `transformer_blocks.1.norm2.norm.weight`: expected data to end by 198399, found 198400: \
             the file is truncated (`CKPT/transformer/diffusion_pytorch_model.safetensors`)",
        ),
        export(
            "data after the last tensor",
            |s| s.bytes(DIT, |b| b.push(0)),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: expected 204640 bytes, found 204641",
        ),
        export(
            "header not UTF-8",
            |s| s.bytes(DIT, |b| b[20] = 0xff),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: header: expected UTF-8, found invalid \
             utf-8 sequence of 1 bytes from index 12",
        ),
        export(
            "header not JSON",
            |s| header(s, "{'a': 1}"),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: header: expected JSON, found key must be \
             a string at line 1 column 2",
        ),
        export(
            "header a list",
            |s| header(s, "[1, 2]"),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: header: expected JSON, found invalid \
             type: sequence, expected an object at line 1 column 0",
        ),
        export(
            "header nested 10000 deep",
            |s| header(s, &format!("{{\"__metadata__\": {}", "[".repeat(10_000))),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: header: expected JSON, found EOF while \
             parsing a list at line 1 column 10017",
        ),
        export(
            "a tensor twice in a header",
            |s| {
                let entry = r#""a.weight": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}"#;
                header(s, &format!("{{{entry}, {entry}}}"));
            },
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: header: `a.weight` comes twice",
        ),
        export(
            "offsets in reverse",
            |s| header(s, r#"{"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 0]}}"#),
            "tensor `a`: expected offsets in order, found 8..0 \
             (`CKPT/transformer/diffusion_pytorch_model.safetensors`)",
        ),
        export(
            "tensors that overlap",
            |s| s.header(DIT, |h| h["norm_final.weight"]["data_offsets"] = json!([64, 192])),
            "tensor `norm_final.weight`: expected data to begin at 128, found 64: tensors overlap or leave a \
             hole (`CKPT/transformer/diffusion_pytorch_model.safetensors`)",
        ),
        export(
            "a hole before a tensor",
            |s| header(s, r#"{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 8]}}"#),
            "tensor `a`: expected data to begin at 0, found 4: tensors overlap or leave a hole \
             (`CKPT/transformer/diffusion_pytorch_model.safetensors`)",
        ),
        export(
            "a tensor past the end",
            |s| header(s, r#"{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}"#),
            "tensor `a`: expected data to end by 8, found 16: the file is truncated \
             (`CKPT/transformer/diffusion_pytorch_model.safetensors`)",
        ),
        export(
            "a shape too large for 64 bits",
            |s| header(s, r#"{"a": {"dtype": "F32", "shape": [4294967296, 4294967296], "data_offsets": [0, 8]}}"#),
            "tensor `a`: expected a size below 2^63 bytes, found shape [4294967296, 4294967296] \
             (`CKPT/transformer/diffusion_pytorch_model.safetensors`)",
        ),
        export(
            "a shape that disagrees with its bytes",
            |s| s.header(DIT, |h| h["norm_final.weight"]["dtype"] = "F16".into()),
            "tensor `norm_final.weight`: expected 64 bytes for shape [32], found 128 \
             (`CKPT/transformer/diffusion_pytorch_model.safetensors`)",
        ),
        export(
            "an unknown dtype",
            |s| s.header(DIT, |h| h["norm_final.weight"]["dtype"] = "F4".into()),
            "tensor `norm_final.weight`: expected dtype f32, f16, bf16, i64, i32, u8, i8 or bool, found `F4` \
             (`CKPT/transformer/diffusion_pytorch_model.safetensors`)",
        ),
        export(
            "a negative dimension",
            |s| s.header(DIT, |h| h["norm_final.bias"]["shape"] = json!([-32])),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: header: expected JSON, found \
             `norm_final.bias`: invalid value: integer `-32`, expected u64 at line 1 column 100",
        ),
        export(
            "a control character in a name",
            |s| header(s, r#"{"a\u001b[2J": {}}"#),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: header: expected JSON, found \
             `a\\u{1b}[2J`: missing field `dtype` at line 1 column 17",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn what_is_no_safetensors_file_is_told_by_its_kind() {
    let cases = [
        export(
            "an empty file",
            |s| s.write(DIT, b""),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: expected safetensors, found an empty file",
        ),
        export(
            "a pickle",
            |s| s.write(T5, b"\x80\x02}q\0X\x06\0\0\0weight"),
            "`CKPT/text_encoder/model.safetensors`: expected safetensors, found a pickle: convert it to \
             safetensors first",
        ),
        export(
            "a zip of a pickle",
            |s| s.write(T5, b"PK\x03\x04\0\0\x08\x08\0\0archive/data.pkl"),
            "`CKPT/text_encoder/model.safetensors`: expected safetensors, found a zip archive, perhaps a \
             pickled PyTorch checkpoint: convert it to safetensors first",
        ),
        export(
            "a git-lfs pointer",
            |s| s.write(VAE, "version https://git-lfs.github.com/spec/v1\noid sha256:1\nsize 9\n"),
            "`CKPT/vae/diffusion_pytorch_model.safetensors`: expected safetensors, found a git-lfs pointer: \
             run `git lfs pull`",
        ),
        export(
            "a web page",
            |s| s.write(VAE, "<!DOCTYPE html><title>404</title>"),
            "`CKPT/vae/diffusion_pytorch_model.safetensors`: expected safetensors, found a web page, perhaps \
             a failed download",
        ),
        export(
            "a directory",
            |s| (s.remove(VAE), s.folder(VAE)).0,
            "`CKPT/vae/diffusion_pytorch_model.safetensors`: expected a regular file, found a directory",
        ),
        export(
            "a FIFO",
            |s| s.fifo(DIT),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: expected a regular file, found a fifo",
        ),
        export(
            "a link out of the checkpoint",
            |s| {
                std::fs::rename(s.path(DIT), s.path("elsewhere.safetensors")).expect("moved");
                std::os::unix::fs::symlink("../../elsewhere.safetensors", s.path(DIT)).expect("a link");
            },
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: expected a link to a file inside `CKPT`, \
             found `TMP/elsewhere.safetensors`",
        ),
        export(
            "no weights",
            |s| s.remove(DIT),
            "`CKPT/transformer`: expected `diffusion_pytorch_model.safetensors` or \
             `diffusion_pytorch_model.safetensors.index.json`, found `config.json`",
        ),
        export(
            "a pickle only",
            |s| (s.remove(T5), s.write("CKPT/text_encoder/pytorch_model.bin", b"")).0,
            "`CKPT/text_encoder`: expected safetensors, found only `pytorch_model.bin`: convert it to \
             safetensors first",
        ),
    ];
    check("2b-fp32", &cases);
}

#[test]
fn shards_that_disagree_with_their_index_are_refused() {
    const TENSOR: &str = "norm_final.bias";
    let cases = [
        export(
            "a shard cut short",
            |s| s.bytes(SHARD, |b| b.truncate(b.len() / 2)),
            "tensor `transformer_blocks.1.attn1.to_v.weight`: expected data to end by 36876, found 37408: the \
             file is truncated (`CKPT/transformer/diffusion_pytorch_model-00002-of-00004.safetensors`)",
        ),
        export(
            "a missing shard",
            |s| s.remove(SHARD),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`: names \
             `diffusion_pytorch_model-00002-of-00004.safetensors`, which is not in `CKPT/transformer`",
        ),
        export(
            "a missing index",
            |s| s.remove(INDEX),
            "`CKPT/transformer`: expected `diffusion_pytorch_model.safetensors.index.json` beside the shard \
             `diffusion_pytorch_model-00001-of-00004.safetensors`, found none",
        ),
        export(
            "an index that is not JSON",
            |s| s.bytes(INDEX, |b| b.truncate(100)),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`: expected JSON, found \
             `norm_final.bias`: EOF while parsing a string at line 6 column 34",
        ),
        export(
            "an index without a map",
            |s| s.write(INDEX, "{}"),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`: expected JSON, found missing \
             field `weight_map` at line 1 column 2",
        ),
        export(
            "an index that is a FIFO",
            |s| s.fifo(INDEX),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`: expected a regular file, \
             found a fifo",
        ),
        export(
            "a shard in the parent",
            |s| s.json(INDEX, |j| j["weight_map"][TENSOR] = "../x".into()),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`: tensor `norm_final.bias`: \
             expected the name of a safetensors file in the same directory, found `../x`",
        ),
        export(
            "a shard below the parent",
            |s| s.json(INDEX, |j| j["weight_map"][TENSOR] = "../vae/x.safetensors".into()),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`: tensor `norm_final.bias`: \
             expected the name of a safetensors file in the same directory, found `../vae/x.safetensors`",
        ),
        export(
            "an absolute shard",
            |s| s.json(INDEX, |j| j["weight_map"][TENSOR] = "/etc/x.safetensors".into()),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`: tensor `norm_final.bias`: \
             expected the name of a safetensors file in the same directory, found `/etc/x.safetensors`",
        ),
        export(
            "a shard that is a directory",
            |s| (s.remove(SHARD), s.folder(SHARD)).0,
            "`CKPT/transformer/diffusion_pytorch_model-00002-of-00004.safetensors`: expected a regular file, \
             found a directory",
        ),
        export(
            "a shard that is a FIFO",
            |s| s.fifo(SHARD),
            "`CKPT/transformer/diffusion_pytorch_model-00002-of-00004.safetensors`: expected a regular file, \
             found a fifo",
        ),
        export(
            "a tensor in another shard than indexed",
            |s| {
                let shard = "diffusion_pytorch_model-00001-of-00004.safetensors";
                s.json(INDEX, |j| j["weight_map"][TENSOR] = shard.into());
            },
            "tensor `norm_final.bias`: expected in `diffusion_pytorch_model-00001-of-00004.safetensors`, \
             found in `diffusion_pytorch_model-00004-of-00004.safetensors` \
             (`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`)",
        ),
        export(
            "a tensor in two shards",
            |s| {
                s.tensors(SHARD, |t| t.insert(TENSOR.into(), ("F16".into(), vec![1], vec![0; 2])).map_or((), drop));
            },
            "tensor `norm_final.bias`: expected in one shard, found in \
             `diffusion_pytorch_model-00002-of-00004.safetensors` and \
             `diffusion_pytorch_model-00004-of-00004.safetensors` \
             (`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`)",
        ),
        export(
            "an indexed tensor in no shard",
            |s| s.json(INDEX, |j| j["weight_map"]["x"] = j["weight_map"][TENSOR].clone()),
            "tensor `x`: expected in `diffusion_pytorch_model-00004-of-00004.safetensors`, found in `no \
             shard` (`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`)",
        ),
        export(
            "a tensor that is not indexed",
            |s| s.json(INDEX, |j| drop(j["weight_map"].as_object_mut().map(|m| m.remove(TENSOR)))),
            "tensor `norm_final.bias`: in `diffusion_pytorch_model-00004-of-00004.safetensors`, not in \
             `CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`",
        ),
        export(
            "a tensor twice in the index",
            |s| {
                s.bytes(INDEX, |b| {
                    let text = String::from_utf8_lossy(b).replacen(
                        "{\n    \"norm",
                        "{\n    \"norm_final.bias\": \"x\",\n    \"norm",
                        1,
                    );
                    *b = text.into_bytes();
                });
            },
            "`CKPT/transformer/diffusion_pytorch_model.safetensors.index.json`: tensor `norm_final.bias` \
             comes twice",
        ),
    ];
    check("2b-fp16-sharded", &cases);
}

#[test]
fn learned_positions_that_contradict_the_configuration_are_refused() {
    const FLAG: &str = "use_learned_positional_embeddings";
    const CONFIG: &str = "CKPT/transformer/config.json";
    let cases = [
        export(
            "positions in the weights only",
            |s| s.set(CONFIG, FLAG, false),
            "1 problem building `transformer` from CKPT/transformer\n\
             \x20 `patch_embed.pos_embedding`: in checkpoint, not used by the model \
             (diffusion_pytorch_model.safetensors)",
        ),
        export(
            "learned positions without rotary ones",
            |s| s.set(CONFIG, "use_rotary_positional_embeddings", false),
            "`use_learned_positional_embeddings`: expected `false` without rotary positions: no published model is \
             like that, found `true` (`CKPT/transformer/config.json`)",
        ),
    ];
    check("5b-i2v", &cases);
    let cases = [export(
        "positions in the configuration only",
        |s| s.set(CONFIG, FLAG, true),
        "1 problem building `transformer` from CKPT/transformer\n\
             \x20 `patch_embed.pos_embedding`: expected [1, 56, 48], not in checkpoint",
    )];
    check("5b", &cases);
}

#[test]
fn tensors_that_do_not_fit_the_model_are_all_named() {
    let cases = [
        export(
            "a missing tensor",
            |s| s.tensors(DIT, |t| drop(t.remove("proj_out.bias"))),
            "1 problem building `transformer` from CKPT/transformer\n\
             \x20 `proj_out.bias`: expected [16], not in checkpoint",
        ),
        export(
            "a tensor too many",
            |s| s.tensors(VAE, |t| drop(t.insert("decoder.extra.weight".into(), ("F32".into(), vec![1], vec![0; 4])))),
            "1 problem building `vae` from CKPT/vae\n\
             \x20 `decoder.extra.weight`: in checkpoint, not used by the model \
             (diffusion_pytorch_model.safetensors)",
        ),
        export(
            "missing, renamed and misshapen tensors",
            |s| {
                s.tensors(DIT, |t| {
                    t.remove("patch_embed.proj.bias");
                    let renamed = t.remove("norm_final.weight").expect("there");
                    t.insert("norm_last.weight".into(), renamed);
                    t.get_mut("transformer_blocks.1.norm1.linear.bias").expect("there").1.push(1);
                });
            },
            "4 problems building `transformer` from CKPT/transformer\n\
             \x20 `patch_embed.proj.bias`: expected [32], not in checkpoint\n\
             \x20 `transformer_blocks.1.norm1.linear.bias`: expected [192], found [192, 1] \
             (diffusion_pytorch_model.safetensors)\n\
             \x20 `norm_final.weight`: expected [32], not in checkpoint\n\
             \x20 `norm_last.weight`: in checkpoint, not used by the model (diffusion_pytorch_model.safetensors)",
        ),
        export(
            "whole numbers for weights",
            |s| s.tensors(T5, |t| t.get_mut("encoder.final_layer_norm.weight").expect("there").0 = "I32".into()),
            "1 problem building `text_encoder` from CKPT/text_encoder\n\
             \x20 `encoder.final_layer_norm.weight`: expected floating-point numbers, found i32 (model.safetensors)",
        ),
        export(
            "a scalar for a vector",
            |s| {
                s.tensors(T5, |t| {
                    drop(t.insert("encoder.final_layer_norm.weight".into(), ("F32".into(), vec![], vec![0; 4])));
                });
            },
            "1 problem building `text_encoder` from CKPT/text_encoder\n\
             \x20 `encoder.final_layer_norm.weight`: expected [20], found [] (model.safetensors)",
        ),
        export(
            "a vector without elements",
            |s| {
                s.tensors(T5, |t| {
                    drop(t.insert("encoder.final_layer_norm.weight".into(), ("F32".into(), vec![0], vec![])));
                });
            },
            "1 problem building `text_encoder` from CKPT/text_encoder\n\
             \x20 `encoder.final_layer_norm.weight`: expected [20], found [0] (model.safetensors)",
        ),
        export(
            "a LoRA in place of the transformer",
            |s| {
                s.tensors(DIT, |t| {
                    t.clear();
                    for side in ["A", "B"] {
                        let name = format!("transformer.transformer_blocks.0.attn1.to_q.lora_{side}.weight");
                        t.insert(name, ("F32".into(), vec![1, 1], vec![0; 4]));
                    }
                });
            },
            "66 problems building `transformer` from CKPT/transformer, which has a LoRA: merge it into the \
             whole model first\n\
             \x20 `time_embedding.linear_1.weight`: expected [24, 32], not in checkpoint\n\
             \x20 `time_embedding.linear_1.bias`: expected [24], not in checkpoint\n\
             \x20 (and so on)\n\
             \x20 … and 46 more",
        ),
        export(
            "a file without tensors",
            |s| s.tensors(DIT, std::collections::BTreeMap::clear),
            "64 problems building `transformer` from CKPT/transformer\n\
             \x20 `time_embedding.linear_1.weight`: expected [24, 32], not in checkpoint\n\
             \x20 `time_embedding.linear_1.bias`: expected [24], not in checkpoint\n\
             \x20 (and so on)\n\
             \x20 … and 44 more",
        ),
    ];
    check("2b-fp32", &cases);
}

/// Make a number of a tensor larger than fp16 holds.
fn enlarge(scene: &Scene, tensor: &str) {
    scene.tensors(DIT, |tensors| {
        let (_, _, bytes) = tensors.get_mut(tensor).expect("a tensor of the fixture");
        bytes[..4].copy_from_slice(&7e4_f32.to_le_bytes());
    });
}

#[test]
fn weights_that_fp16_does_not_hold_are_refused() {
    let line = "cogvx-export CKPT -o OUT --components transformer --precision fp16";
    let cases = [
        refused(
            "a large weight, beside the graph",
            line,
            |s| enlarge(s, "transformer_blocks.0.attn1.to_v.weight"),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: `transformer_blocks.0.attn1.to_v.weight`: \
             expected numbers that fp16 holds, at most 65504, found larger ones: export with `--precision \
             bf16`, or `fp32`",
        ),
        refused(
            "a large bias, in the graph",
            line,
            |s| enlarge(s, "transformer_blocks.0.attn1.to_v.bias"),
            "`CKPT/transformer/diffusion_pytorch_model.safetensors`: `transformer_blocks.0.attn1.to_v.bias`: \
             expected numbers that fp16 holds, at most 65504, found larger ones: export with `--precision \
             bf16`, or `fp32`",
        ),
    ];
    check("2b-fp32", &cases);
}
