//! Checkpoints that work, and every kind of damage.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::path::Path;

use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use tempfile::TempDir;

use super::*;

/// What the index says, and parts of the message.
type Case<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

const STEM: &str = "model";

/// A checkpoint with an empty component directory `vae`.
fn checkpoint() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let component = dir.path().join("vae");
    fs::create_dir(&component).unwrap();
    (dir, component)
}

/// A safetensors file of f32 tensors as the `safetensors` crate writes it.
fn file(tensors: &[(&str, &[usize])]) -> Vec<u8> {
    let data: Vec<u8> = (0..=255).collect();
    let view =
        |shape: &[usize]| TensorView::new(Dtype::F32, shape.into(), &data[..4 * shape.iter().product::<usize>()]);
    let views: Vec<_> = tensors.iter().map(|(name, shape)| (*name, view(shape).unwrap())).collect();
    safetensors::serialize(views, None).unwrap()
}

/// A header, its length before it and `data` zeros after it.
fn raw(header: &str, data: usize) -> Vec<u8> {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    bytes
}

fn entry(dtype: &str, shape: &str, begin: u64, end: u64) -> String {
    format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{begin},{end}]}}"#)
}

/// The message for a component whose only file is `bytes`.
fn refusal(bytes: &[u8]) -> String {
    let (_keep, dir) = checkpoint();
    fs::write(dir.join("model.safetensors"), bytes).unwrap();
    let message = Weights::open(&dir, STEM).expect_err("refused").to_string();
    assert!(message.contains("model.safetensors"), "file visible: {message}");
    message
}

fn write_index(dir: &Path, map: &[(&str, &str)]) {
    let map: BTreeMap<_, _> = map.iter().copied().collect();
    let json = serde_json::json!({ "metadata": { "total_size": 1 }, "weight_map": map });
    fs::write(dir.join("model.safetensors.index.json"), json.to_string()).unwrap();
}

fn refused(dir: &Path) -> String {
    Weights::open(dir, STEM).expect_err("refused").to_string()
}

#[test]
fn tensors_are_those_the_safetensors_crate_finds() {
    let (_keep, dir) = checkpoint();
    let bytes = file(&[("b", &[2, 3]), ("a.weight", &[4]), ("scalar", &[]), ("empty", &[0, 7])]);
    fs::write(dir.join("model.safetensors"), &bytes).unwrap();
    let weights = Weights::open(&dir, STEM).unwrap();
    let theirs = SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(weights.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["a.weight", "b", "empty", "scalar"]);
    for tensor in weights.iter() {
        let view = theirs.tensor(&tensor.name).unwrap();
        assert_eq!((tensor.dtype, tensor.shape.as_slice()), (DType::F32, view.shape()));
        assert_eq!(weights.read(tensor).unwrap(), view.data(), "{}", tensor.name);
    }
    let b = weights.get("b").unwrap();
    let mut part = [0; 5];
    weights.read_into(b, 7, &mut part).unwrap();
    assert_eq!(part, theirs.tensor("b").unwrap().data()[7..12]);
    assert!(weights.get("c").is_none());
}

#[test]
fn reads_outside_a_tensor_are_refused() {
    let (_keep, dir) = checkpoint();
    fs::write(dir.join("model.safetensors"), file(&[("a", &[2])])).unwrap();
    let weights = Weights::open(&dir, STEM).unwrap();
    let a = weights.get("a").unwrap().clone();
    for (at, len) in [(1, 8), (8, 1), (u64::MAX, 1), (0, 9)] {
        let message = weights.read_into(&a, at, &mut vec![0; len]).expect_err("refused").to_string();
        assert!(message.starts_with("tensor `a`: expected a range within 8 bytes"), "{message}");
    }
    for foreign in [
        Tensor { file: 7, ..a.clone() },
        Tensor { len: u64::MAX, ..a.clone() },
        Tensor { offset: u64::MAX, ..a.clone() },
        Tensor { len: 1 << 50, ..a },
    ] {
        assert!(matches!(weights.read(&foreign), Err(WeightsError::Range { .. })));
    }
}

#[test]
fn damaged_headers_are_refused_and_say_why() {
    let one = |entry: String| format!(r#"{{"t":{entry}}}"#);
    let two = |a: String, b: String| format!(r#"{{"s":{a},"t":{b}}}"#);
    let f32s = |begin, end| entry("F32", "[1]", begin, end);
    let deep = format!(r#"{{"t":{{"x":{}"#, "[".repeat(100_000));
    let many: Vec<_> = (0..=200_000).map(|n| format!(r#""{n}":{}"#, entry("F32", "[0]", 0, 0))).collect();
    let many = format!("{{{}}}", many.join(","));
    let ranks = format!("[{}1]", "1,".repeat(1000));
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("found an empty file", vec![]),
        ("expected 8 bytes, found 3", vec![0, 0, 0]),
        ("expected JSON, found EOF", raw("", 0)),
        ("expected JSON, found EOF", raw("{", 0)),
        ("expected 1008 bytes, found 10", [&1000_u64.to_le_bytes()[..], b"{}"].concat()),
        ("at most 100000000 bytes, found 18446744073709551615", vec![255; 64]),
        ("at most 100000000 bytes, found 100000001", [&100_000_001_u64.to_le_bytes()[..], b"{}"].concat()),
        ("expected UTF-8", [&4_u64.to_le_bytes()[..], b"{\"\xff}"].concat()),
        ("expected an object", raw("[1]", 0)),
        ("EOF while parsing a list", raw(&deep, 0)),
        ("`t` comes twice", raw(&format!(r#"{{"t":{0},"t":{0}}}"#, f32s(0, 4)), 4)),
        ("`__metadata__` a second time", raw(r#"{"__metadata__":{},"__metadata__":{}}"#, 0)),
        ("more than 200000 entries", raw(&many, 0)),
        ("duplicate field `dtype`", raw(r#"{"t":{"dtype":"F32","dtype":"F16"}}"#, 0)),
        ("`t`: missing field", raw(r#"{"t":{"dtype":"F32","shape":[1]}}"#, 0)),
        ("`t`: invalid value", raw(&one(entry("F32", "[-1]", 0, 4)), 4)),
        ("`t`: invalid type", raw(&one(entry("F32", "[1.5]", 0, 4)), 4)),
        ("tensor `t`: expected offsets in order, found 4..0", raw(&one(f32s(4, 0)), 4)),
        ("tensor `t`: expected data to begin at 4, found 2", raw(&two(f32s(0, 4), f32s(2, 6)), 6)),
        ("tensor `t`: expected data to begin at 4, found 5", raw(&two(f32s(0, 4), f32s(5, 9)), 9)),
        ("tensor `t`: expected data to begin at 0, found 4", raw(&one(f32s(4, 8)), 8)),
        ("tensor `t`: expected data to end by 3, found 4", raw(&one(f32s(0, 4)), 3)),
        ("bytes, found", raw(&one(f32s(0, 4)), 5)),
        ("tensor `t`: expected 8 bytes for shape [2], found 4", raw(&one(entry("F32", "[2]", 0, 4)), 4)),
        ("below 2^63 bytes, found shape", raw(&one(entry("F32", "[4294967296,4294967296]", 0, 4)), 4)),
        ("below 2^63 bytes, found shape", raw(&one(entry("F32", "[0,18446744073709551615]", 0, 0)), 0)),
        ("tensor `t`: expected at most 16 dimensions", raw(&one(entry("F32", &ranks, 0, 4)), 4)),
        ("tensor `t`: expected dtype f32, f16", raw(&one(entry("F64", "[1]", 0, 8)), 8)),
        ("found `F8_E4M3`", raw(&one(entry("F8_E4M3", "[1]", 0, 1)), 1)),
        ("found `nonsense`", raw(&one(entry("nonsense", "[1]", 0, 1)), 1)),
        ("expected a printable name", raw(&format!(r#"{{"\u001b[2J":{}}}"#, f32s(0, 4)), 4)),
        ("expected a printable name", raw(&format!(r#"{{"":{}}}"#, f32s(0, 4)), 4)),
        ("run `git lfs pull`", b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n".to_vec()),
        ("a zip archive", b"PK\x03\x04\x00\x00\x00\x00\x00\x00\x08\x08".to_vec()),
        ("a pickle", b"\x80\x02}q\x00X\x05\x00\x00\x00hello".to_vec()),
        ("a web page", b"<!DOCTYPE html><html>".to_vec()),
        ("without the eight bytes", br#"{"t":1}"#.to_vec()),
    ];
    for (expected, bytes) in cases {
        let message = refusal(&bytes);
        assert!(message.contains(expected), "expected `{expected}`\n   found `{message}`");
        assert!(!message.contains('\u{1b}') && message.len() < 1000, "{message}");
    }
}

#[test]
fn whatever_the_safetensors_crate_refuses_is_refused() {
    use proptest::prelude::*;
    let (_keep, dir) = checkpoint();
    let path = dir.join("model.safetensors");
    let good = file(&[("a", &[2, 3]), ("b", &[4]), ("c", &[])]);
    let mutation = proptest::collection::vec((0..good.len(), any::<u8>()), 1..4);
    proptest!(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) }, |(changes in mutation, cut in 0..good.len())| {
        let mut bytes = good.clone();
        for (at, value) in changes {
            bytes[at] = value;
        }
        if cut % 4 == 0 {
            bytes.truncate(cut);
        }
        fs::write(&path, &bytes).unwrap();
        if let Ok(weights) = Weights::open(&dir, STEM) {
            let theirs = SafeTensors::deserialize(&bytes);
            prop_assert!(theirs.is_ok(), "{:?}", theirs.err());
            for tensor in weights.iter() {
                prop_assert_eq!(weights.read(tensor).unwrap(), theirs.as_ref().unwrap().tensor(&tensor.name).unwrap().data());
            }
        }
    });
}

#[test]
fn every_usable_dtype_is_read() {
    let names = [("F32", 4), ("F16", 2), ("BF16", 2), ("I64", 8), ("I32", 4), ("U8", 1), ("I8", 1), ("BOOL", 1)];
    for (name, size) in names {
        let (_keep, dir) = checkpoint();
        let header = format!(r#"{{"__metadata__":{{"format":"pt"}},"t":{}}}   "#, entry(name, "[3]", 0, 3 * size));
        fs::write(dir.join("model.safetensors"), raw(&header, 3 * usize::try_from(size).unwrap())).unwrap();
        let weights = Weights::open(&dir, STEM).unwrap();
        assert_eq!(weights.get("t").unwrap().dtype.safetensors(), name);
    }
}

#[test]
fn file_that_shrinks_gives_an_error_and_no_signal() {
    let (_keep, dir) = checkpoint();
    let path = dir.join("model.safetensors");
    fs::write(&path, file(&[("a", &[8])])).unwrap();
    let weights = Weights::open(&dir, STEM).unwrap();
    fs::File::options().write(true).open(&path).unwrap().set_len(20).unwrap();
    let message = weights.read(weights.get("a").unwrap()).expect_err("refused").to_string();
    assert!(message.ends_with("bytes, found 20"), "{message}");
}

#[test]
fn shards_are_found_through_the_index() {
    let (_keep, dir) = checkpoint();
    fs::write(dir.join("model-00001-of-00002.safetensors"), file(&[("a", &[2]), ("c", &[1])])).unwrap();
    fs::write(dir.join("model-00002-of-00002.safetensors"), file(&[("b", &[3])])).unwrap();
    let (one, two) = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors");
    write_index(&dir, &[("a", one), ("c", one), ("b", two)]);
    let weights = Weights::open(&dir, STEM).unwrap();
    let places: HashMap<_, _> =
        weights.iter().map(|t| (t.name.as_str(), weights.files()[t.file].name.as_str())).collect();
    assert_eq!(places, HashMap::from([("a", one), ("b", two), ("c", one)]));
}

#[test]
fn index_that_disagrees_with_the_shards_names_tensor_and_shard() {
    let one = "1.safetensors";
    let two = "2.safetensors";
    let cases: [Case; 5] = [
        (&[("a", one), ("b", two), ("x", two)], &["tensor `x`", "expected in `2.safetensors`", "found in `no shard`"]),
        (&[("a", two), ("b", two), ("extra", one)], &["tensor `a`", "expected in `2.safetensors`", "found in `1.saf"]),
        (&[("a", one), ("b", two)], &["tensor `extra`", "in `1.safetensors`, not in"]),
        (&[("a", one), ("b", "missing.safetensors")], &["names `missing.safetensors`", "index.json"]),
        (&[("a", one), ("b", two), ("extra", "again.safetensors")], &["tensor `extra`", "again.saf", "1.saf"]),
    ];
    for (map, expected) in cases {
        let (_keep, dir) = checkpoint();
        fs::write(dir.join(one), file(&[("a", &[2]), ("extra", &[1])])).unwrap();
        fs::write(dir.join(two), file(&[("b", &[3])])).unwrap();
        fs::write(dir.join("again.safetensors"), file(&[("extra", &[1])])).unwrap();
        write_index(&dir, map);
        let message = refused(&dir);
        assert!(expected.iter().all(|part| message.contains(part)), "{expected:?}: {message}");
    }
}

#[test]
fn shard_names_that_are_paths_are_refused() {
    let (keep, dir) = checkpoint();
    fs::write(keep.path().join("x.safetensors"), file(&[("a", &[1])])).unwrap();
    for name in [
        "../x.safetensors",
        "/x.safetensors",
        "a\\x.safetensors",
        "c:x.safetensors",
        "..",
        "",
        ".safetensors",
        "x.bin",
        "x\0.safetensors",
        "sub/x.safetensors",
    ] {
        write_index(&dir, &[("a", name)]);
        let message = refused(&dir);
        assert!(message.contains("expected the name of a safetensors file"), "{name}: {message}");
    }
}

#[test]
fn damaged_indexes_are_refused() {
    let (_keep, dir) = checkpoint();
    let many: BTreeMap<_, _> = (0..600).map(|n| (format!("t{n}"), format!("{n}.safetensors"))).collect();
    let cases = [
        ("", "found EOF"),
        ("{}", "missing field `weight_map`"),
        (r#"{"weight_map":{"a":1}}"#, "`a`: invalid type"),
        (r#"{"weight_map":{"a":"x.safetensors","a":"y.safetensors"}}"#, "tensor `a` comes twice"),
        ("version https://git-lfs.github.com/spec/v1", "run `git lfs pull`"),
        (&serde_json::json!({ "weight_map": many }).to_string(), "expected at most 512 shards, found 600"),
    ];
    for (json, expected) in cases {
        fs::write(dir.join("model.safetensors.index.json"), json).unwrap();
        let message = refused(&dir);
        assert!(message.contains(expected) && message.contains("index.json"), "{expected}: {message}");
    }
    let huge = fs::File::create(dir.join("model.safetensors.index.json")).unwrap();
    huge.set_len(1 << 40).unwrap();
    assert!(refused(&dir).contains("expected at most 67108864 bytes, found 1099511627776"));
}

#[test]
fn what_stands_instead_of_weights_is_named() {
    let cases: [(&[&str], &str); 5] = [
        (&[], "found no files"),
        (&["pytorch_lora_weights.safetensors"], "found `pytorch_lora_weights.safetensors`"),
        (&["model.bin"], "found only `model.bin`: convert it to safetensors first"),
        (&["model-00001-of-00002.safetensors"], "expected `model.safetensors.index.json` beside the shard"),
        (&["model.fp16.safetensors", "model.bf16.safetensors"], "expected one set of weights, found `model.bf16"),
    ];
    for (names, expected) in cases {
        let (_keep, dir) = checkpoint();
        for name in names {
            fs::write(dir.join(name), file(&[("a", &[1])])).unwrap();
        }
        let message = refused(&dir);
        assert!(message.contains(expected), "{expected}: {message}");
    }
    assert!(refused(Path::new("/nonexistent/vae")).contains("expected a file, found nothing"));
}

#[test]
fn only_variant_is_used_and_the_plain_file_wins() {
    let (_keep, dir) = checkpoint();
    fs::write(dir.join("model.fp16.safetensors"), file(&[("a", &[1])])).unwrap();
    assert_eq!(Weights::open(&dir, STEM).unwrap().files()[0].name, "model.fp16.safetensors");
    fs::write(dir.join("model.safetensors"), file(&[("a", &[1])])).unwrap();
    assert_eq!(Weights::open(&dir, STEM).unwrap().files()[0].name, "model.safetensors");
}

#[test]
fn directory_in_place_of_the_file_is_refused() {
    let (_keep, dir) = checkpoint();
    fs::create_dir(dir.join("model.safetensors")).unwrap();
    assert!(refused(&dir).contains("expected a regular file, found a directory"));
}

#[cfg(unix)]
mod links {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn fifo_in_place_of_the_file_is_refused_at_once() {
        let (_keep, dir) = checkpoint();
        let made = std::process::Command::new("mkfifo").arg(dir.join("model.safetensors")).status();
        if !made.is_ok_and(|status| status.success()) {
            eprintln!("skipped: no `mkfifo` here");
            return;
        }
        assert!(refused(&dir).contains("expected a regular file, found a fifo"));
    }

    #[test]
    fn hugging_face_cache_links_are_followed() {
        let cache = tempfile::tempdir().unwrap();
        let repo = cache.path().join("models--owner--name");
        let dir = repo.join("snapshots/0123/vae");
        fs::create_dir_all(&dir).unwrap();
        fs::create_dir(repo.join("blobs")).unwrap();
        fs::write(repo.join("blobs/abcd"), file(&[("a", &[1])])).unwrap();
        symlink("../../../blobs/abcd", dir.join("model.safetensors")).unwrap();
        let weights = Weights::open(&dir, STEM).unwrap();
        let found = &weights.files()[0];
        assert_eq!(found.name, "model.safetensors");
        assert_eq!(found.real, repo.canonicalize().unwrap().join("blobs/abcd"));
        // A link to the snapshot is as good.
        let short = cache.path().join("short");
        symlink(repo.join("snapshots/0123"), &short).unwrap();
        assert!(Weights::open(&short.join("vae"), STEM).is_ok());
    }

    #[test]
    fn links_out_of_the_checkpoint_are_refused_naming_both_ends() {
        let outside = tempfile::tempdir().unwrap();
        let secret = outside.path().join("secret.safetensors");
        fs::write(&secret, file(&[("a", &[1])])).unwrap();
        let (_keep, dir) = checkpoint();
        symlink(&secret, dir.join("model.safetensors")).unwrap();
        let message = refused(&dir);
        assert!(message.contains("vae/model.safetensors") && message.contains("secret.safetensors"), "{message}");
        // Nor may the component be a link outside, or a shard, or the index.
        let (keep, dir) = checkpoint();
        symlink(outside.path(), keep.path().join("transformer")).unwrap();
        assert!(refused(&keep.path().join("transformer")).contains("expected a link to a file inside"));
        write_index(&dir, &[("a", "1.safetensors")]);
        symlink(&secret, dir.join("1.safetensors")).unwrap();
        assert!(refused(&dir).contains("expected a link to a file inside"));
    }

    #[test]
    fn links_inside_the_checkpoint_are_followed_and_dangling_ones_named() {
        let (keep, dir) = checkpoint();
        fs::write(keep.path().join("shared.safetensors"), file(&[("a", &[1])])).unwrap();
        symlink("../shared.safetensors", dir.join("model.safetensors")).unwrap();
        assert!(Weights::open(&dir, STEM).is_ok());
        fs::remove_file(keep.path().join("shared.safetensors")).unwrap();
        assert!(refused(&dir).contains("model.safetensors`: expected a file, found nothing"));
    }
}

#[test]
fn synthetic_weights_have_shapes_and_zeros() {
    let weights = Weights::synthetic(vec![("b", DType::F16, vec![2, 3]), ("a", DType::F32, vec![usize::MAX, 9])]);
    assert_eq!(weights.files()[0].name, "model.safetensors");
    let b = weights.get("b").unwrap();
    assert_eq!(b.len, 12);
    assert_eq!(weights.read(b).unwrap(), [0; 12]);
    assert_eq!(weights.get("a").unwrap().len, u64::MAX);
    assert!(weights.read(weights.get("a").unwrap()).is_err());
}

#[test]
fn a_single_file_may_lie_anywhere_and_has_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("lora.safetensors");
    let header = format!(r#"{{"__metadata__":{{"format":"pt"}},"a":{}}}"#, entry("F32", "[2]", 0, 8));
    fs::write(&path, raw(&header, 8)).unwrap();
    let weights = Weights::open_file(&path).unwrap();
    assert_eq!(weights.read(weights.get("a").unwrap()).unwrap(), [0; 8]);
    assert_eq!(weights.metadata(0).unwrap(), BTreeMap::from([("format".into(), "pt".into())]));
    assert_eq!(weights.metadata(1).unwrap(), BTreeMap::new());

    fs::write(&path, raw(&header.replace(r#""pt""#, "7"), 8)).unwrap();
    let message = Weights::open_file(&path).unwrap().metadata(0).expect_err("refused").to_string();
    assert!(message.contains("lora.safetensors`: `__metadata__`: ") && message.contains("string"), "{message}");
    let message = Weights::open_file(dir.path()).expect_err("refused").to_string();
    assert!(message.ends_with("`: expected a regular file, found a directory"), "{message}");
}
