//! LoRAs merged at export give the numbers that diffusers gives with them fused.

mod common;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use cogvx::bundle::{self, Origin, WeightsMode};
use cogvx::export::{Component, ExportOptions, Lora, export};
use cogvx::verify::{Limits, Reference, Row};
use cogvx_graphs::DType;
use half::f16;
use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use common::{bundle_of, cogvx, compare, entries, fixture, fresh_folder, pipeline, said};

const REFERENCES: [&str; 2] = ["lora-2b-fp32-scaled", "lora-2b-fp32-unscaled"];
const METADATA: &str = "lora_adapter_metadata";
const TO_Q: &str = "transformer.transformer_blocks.0.attn1.to_q";

/// Changes a LoRA.
type Edit = fn(&mut File);

/// A safetensors file in memory.
struct File {
    tensors: BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

impl File {
    fn read(path: &Path) -> Self {
        let bytes = fs::read(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
        let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let tensor =
            |(name, t): (&str, TensorView)| (name.to_string(), (t.dtype(), t.shape().to_vec(), t.data().to_vec()));
        Self { tensors: tensors.iter().map(tensor).collect(), metadata: header.metadata().clone().unwrap_or_default() }
    }

    fn write(&self, path: &Path) {
        let views = self.tensors.iter().map(|(name, (dtype, shape, data))| {
            (name, TensorView::new(*dtype, shape.clone(), data).expect("as many bytes as the shape says"))
        });
        safetensors::serialize_to_file(views, Some(self.metadata.clone()), path).expect("a writable folder");
    }

    fn put(&mut self, name: &str, shape: &[usize], number: f32) {
        let data = number.to_le_bytes().repeat(shape.iter().product());
        self.tensors.insert(name.into(), (Dtype::F32, shape.to_vec(), data));
    }

    /// Every tensor called otherwise.
    fn rename(&mut self, name: impl Fn(&str) -> String) {
        self.tensors = std::mem::take(&mut self.tensors).into_iter().map(|(old, t)| (name(&old), t)).collect();
    }

    /// Fields of the adapter's configuration set.
    fn configure(&mut self, fields: &Value) {
        let mut config: Value = serde_json::from_str(&self.metadata[METADATA]).expect("JSON");
        for (field, value) in fields.as_object().expect("an object") {
            config[format!("transformer.{field}")] = value.clone();
        }
        self.metadata.insert(METADATA.into(), config.to_string());
    }
}

fn with(file: PathBuf, scale: f64) -> ExportOptions {
    ExportOptions { loras: vec![Lora { file, scale }], ..Default::default() }
}

/// The transformer of `2b-fp32`, exported alone.
fn rewritten(options: &ExportOptions) -> BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)> {
    let folder = fresh_folder();
    let options = ExportOptions { components: vec![Component::Transformer], ..options.clone() };
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &options);
    File::read(&bundle.join("transformer/rewritten.safetensors")).tensors
}

fn numbers(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|&b| f32::from_le_bytes(b)).collect()
}

fn differing(rows: &[Row]) -> Vec<&str> {
    rows.iter().filter(|r| !r.equal).map(|r| r.tensor.as_str()).collect()
}

#[test]
fn a_merged_lora_gives_the_numbers_of_diffusers() {
    let mut failures = String::new();
    for name in REFERENCES {
        let path = fixture(&format!("references/{name}.safetensors"));
        let reference = Reference::open(&path).expect("a reference");
        let [file, scale] = ["lora", "lora_scale"].map(|key| reference.text(key).expect("what LoRA it is of"));
        let scale: f64 = scale.parse().expect("a number");
        let folder = fresh_folder();
        let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &with(fixture(file), scale));
        let pipeline = pipeline(&bundle);
        let manifest = pipeline.bundle().manifest();
        assert_eq!(manifest.loras, [bundle::Lora { file: file.into(), scale }]);
        assert_eq!(Limits::of(manifest), Limits { network: 1e-5, vae: 1e-4, latents: 1e-3, psnr: 60.0 });
        let rows = compare(&pipeline, &path);
        for row in &rows {
            println!("{name} {:<36} relative L2 {:.2e} PSNR {:?}", row.tensor, row.relative_l2, row.psnr);
        }
        for part in ["transformer/sample", "pipeline/latents", "pipeline/frames"] {
            if !rows.iter().any(|r| r.tensor.starts_with(part)) {
                let _ = writeln!(failures, "{name}: nothing compared of `{part}`");
            }
        }
        if !differing(&rows).is_empty() {
            let _ = writeln!(failures, "{name}: {:?}", differing(&rows));
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn without_its_lora_a_reference_is_not_reproduced() {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &ExportOptions::default());
    let pipeline = pipeline(&bundle);
    assert_eq!(pipeline.bundle().manifest().loras, []);
    for name in REFERENCES {
        let rows = compare(&pipeline, &fixture(&format!("references/{name}.safetensors")));
        let differ = differing(&rows);
        assert!(["transformer/sample", "pipeline/frames"].iter().all(|t| differ.contains(t)), "{name}: {differ:?}");
    }
}

#[test]
fn only_the_weights_a_lora_changes_are_written() {
    let files = || -> Vec<_> {
        let checkpoint = fixture("2b-fp32");
        let folders = ["text_encoder", "transformer", "vae"].map(|folder| entries(&checkpoint.join(folder)));
        let paths = folders.into_iter().flatten().chain([fixture("lora.safetensors")]);
        paths.map(|path| fs::read(path).expect("a readable file")).collect()
    };
    let before = files();
    let folder = fresh_folder();
    let options = ExportOptions { weights: WeightsMode::Link, ..with(fixture("lora.safetensors"), 0.7) };
    let (bundle, report) = bundle_of(&fixture("2b-fp32"), folder.path(), &options);

    let mut expected: Vec<_> = File::read(&fixture("lora.safetensors")).tensors.into_keys().collect();
    expected.retain(|key| key.contains("lora_A"));
    let plain = |key: &String| key.replace("transformer.transformer_", "transformer_").replace("lora_A.", "");
    let expected: Vec<_> = expected.iter().map(plain).collect();
    let found = File::read(&bundle.join("transformer/rewritten.safetensors")).tensors;
    assert_eq!(found.keys().cloned().collect::<Vec<_>>(), expected);
    let merged: Vec<_> = report.graphs.iter().map(|g| (g.file.as_str(), g.merged, g.converted)).collect();
    assert!(merged.contains(&("transformer/model.onnx", 12, 0)), "{merged:?}");
    assert_eq!(merged.iter().map(|(_, merged, _)| merged).sum::<usize>(), 12, "{merged:?}");

    let manifest = bundle::Manifest::read(&bundle).expect("a bundle");
    let weights: Vec<_> = manifest.files.iter().filter(|f| f.path.ends_with(".safetensors")).collect();
    assert_eq!(weights.len(), 5, "{weights:?}");
    for file in weights {
        let expected = if file.path.contains("rewritten") { Origin::Written } else { Origin::Linked };
        assert_eq!(file.origin, expected, "{}", file.path);
    }
    assert!(files() == before, "the checkpoint or the LoRA was changed");
}

#[test]
fn several_loras_add_up() {
    let lora = |scale| Lora { file: fixture("lora.safetensors"), scale };
    let options = ExportOptions { loras: vec![lora(0.3), lora(0.4)], ..Default::default() };
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &options);
    let rows = compare(&pipeline(&bundle), &fixture("references/lora-2b-fp32-scaled.safetensors"));
    assert_eq!(differing(&rows), [""; 0]);
}

#[test]
fn the_same_lora_written_otherwise_gives_the_same_weights() {
    let expected = rewritten(&with(fixture("lora.safetensors"), 0.7));
    let folder = fresh_folder();
    let file = folder.path().join("lora.safetensors");
    let cases: [(&str, Edit); 4] = [
        ("diffusers' older names", |lora| {
            lora.rename(|key| key.replace("lora_A", "lora.down").replace("lora_B", "lora.up"));
        }),
        ("alpha / sqrt(r)", |lora| lora.configure(&json!({"use_rslora": true, "lora_alpha": 3}))),
        ("patterns", |lora| {
            lora.configure(&json!({
                "r": 9, "lora_alpha": 1.5,
                "rank_pattern": {"attn1.to_q": 4, "to_k": 4, "to_v": 4, "to_out.0": 4, "proj": 4, "net\\.2": 4},
                "alpha_pattern": {"to_q": 6, "to_k": 6, "to_v": 6, "to_out.0": 6, "ff.net.0.proj": 6,
                    "^transformer_blocks.0.ff.net.2": 6, "transformer_blocks\\.1\\.ff\\.net\\.2$": 6.0},
            }));
        }),
        ("patterns that name nothing", |lora| {
            lora.configure(&json!({"alpha_pattern": {"o_q": 1, "blocks.0.attn1.to_q": 1, "^to_k": 1, "net.0": 1}, "rank_pattern": null}));
        }),
    ];
    for (name, edit) in cases {
        let mut lora = File::read(&fixture("lora.safetensors"));
        edit(&mut lora);
        lora.write(&file);
        assert!(rewritten(&with(file.clone(), 0.7)) == expected, "{name}");
    }
}

#[test]
fn merged_weights_are_rounded_once() {
    let options = with(fixture("lora.safetensors"), 0.7);
    let (full, half) = (rewritten(&options), rewritten(&ExportOptions { precision: Some(DType::F16), ..options }));
    for (name, (_, shape, data)) in full {
        let expected: Vec<u8> = numbers(&data).into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
        assert!(half.get(&name) == Some(&(Dtype::F16, shape, expected)), "{name}");
    }
}

#[test]
fn convolutions_and_small_weights_are_merged_too() {
    let folder = fresh_folder();
    let file = folder.path().join("lora.safetensors");
    let mut lora = File { tensors: BTreeMap::new(), metadata: HashMap::new() };
    lora.put("transformer.patch_embed.proj.lora_A.weight", &[2, 4, 2, 2], 0.25);
    lora.put("transformer.patch_embed.proj.lora_B.weight", &[32, 2, 1, 1], 0.5);
    lora.put("transformer.proj_out.lora_A.weight", &[2, 32], 1.0);
    lora.put("transformer.proj_out.lora_B.weight", &[16, 2], -1.0);
    lora.write(&file);
    let original = File::read(&fixture("2b-fp32/transformer/diffusion_pytorch_model.safetensors")).tensors;
    let plus = |name: &str, more: f32| numbers(&original[name].2).into_iter().map(|x| x + more).collect::<Vec<_>>();

    let found = rewritten(&with(file.clone(), 2.0));
    assert_eq!(numbers(&found["patch_embed.proj.weight"].2), plus("patch_embed.proj.weight", 0.5));
    assert_eq!(numbers(&found["proj_out.weight"].2), plus("proj_out.weight", -4.0));

    // As fp16 it is small enough for the graph.
    let options = ExportOptions { precision: Some(DType::F16), ..with(file, 2.0) };
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), folder.path(), &options);
    let graph = fs::read(bundle.join("transformer/model.onnx")).expect("a graph");
    let expected: Vec<u8> =
        plus("proj_out.weight", -4.0).into_iter().flat_map(|x| f16::from_f32(x).to_le_bytes()).collect();
    assert!(graph.windows(expected.len()).any(|bytes| bytes == expected), "not in the graph");
    assert!(!File::read(&bundle.join("transformer/rewritten.safetensors")).tensors.contains_key("proj_out.weight"));
}

/// A broken LoRA: what breaks it, its scale, and its message where the file's path is `LORA`.
type Broken = (Edit, f64, &'static str);

const BROKEN: [Broken; 19] = [
    (
        |lora| lora.rename(|key| key.replacen("transformer.", "", 1)),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer_blocks.0.attn1.to_k.lora_A.weight`: expected a name that begins \
         with `transformer.` (and 23 more like it)",
    ),
    (
        |lora| drop(lora.tensors.remove(&format!("{TO_Q}.lora_B.weight"))),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer_blocks.0.attn1.to_q`: expected `lora_A` and `lora_B`, found \
         only `lora_A`",
    ),
    (
        |lora| drop(lora.tensors.remove(&format!("{TO_Q}.lora_A.weight"))),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer_blocks.0.attn1.to_q`: expected `lora_A` and `lora_B`, found \
         only `lora_B`",
    ),
    (
        |lora| lora.put(&format!("{TO_Q}.lora_B.weight"), &[32, 5], 0.0),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer.transformer_blocks.0.attn1.to_q.lora_B.weight`: expected \
         [32, 4], found [32, 5]",
    ),
    (
        |lora| {
            let four = json!({"to_k": 4, "to_v": 4, "to_out.0": 4, "ff.net.0.proj": 4, "net.2": 4});
            lora.configure(&json!({"r": 8, "rank_pattern": four}));
        },
        1.0,
        "2 problems merging the LoRA `LORA`\n  `transformer_blocks.0.attn1.to_q`: expected rank 8 as in \
         `lora_adapter_metadata`, found 4\n  `transformer_blocks.1.attn1.to_q`: expected rank 8 as in \
         `lora_adapter_metadata`, found 4",
    ),
    (
        |lora| lora.rename(|key| key.replace("blocks.1.attn1.to_k", "blocks.7.attn1.to_k")),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer_blocks.7.attn1.to_k`: expected a module of the transformer, \
         found none of that name",
    ),
    (
        |lora| lora.rename(|key| key.replace("lora_A", "lora_down").replace("lora_B", "lora_up")),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer.transformer_blocks.0.attn1.to_k.lora_down.weight`: expected \
         `lora_A` and `lora_B`, found kohya's names, which diffusers does not read either (and 23 more like it)",
    ),
    (
        |lora| lora.put(&format!("{TO_Q}.alpha"), &[], 4.0),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer.transformer_blocks.0.attn1.to_q.alpha`: expected alpha in \
         `lora_adapter_metadata`, found a tensor, which diffusers does not read either",
    ),
    (
        |lora| lora.put(&format!("{TO_Q}.dora_scale"), &[32, 1], 1.0),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer.transformer_blocks.0.attn1.to_q.dora_scale`: a DoRA's \
         magnitudes, which are not supported: expected a LoRA without",
    ),
    (
        |lora| lora.configure(&json!({"use_dora": true})),
        1.0,
        "`LORA`: `__metadata__` `lora_adapter_metadata`: `transformer.use_dora`: expected false, found true: DoRA is not \
         supported",
    ),
    (
        |lora| lora.put(&format!("{TO_Q}.lora_B.bias"), &[32], 1.0),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer.transformer_blocks.0.attn1.to_q.lora_B.bias`: expected a name \
         that ends with `.lora_A.weight` or `.lora_B.weight`",
    ),
    (|_| (), f64::NAN, "`LORA`: expected a finite scale, found NaN"),
    (|_| (), f64::INFINITY, "`LORA`: expected a finite scale, found inf"),
    (
        |lora| lora.put(&format!("{TO_Q}.lora_A.weight"), &[4, 32], f32::NAN),
        1.0,
        "tensor `transformer.transformer_blocks.0.attn1.to_q.lora_A.weight`: expected finite numbers, found NaN (`LORA`)",
    ),
    (|lora| lora.tensors.clear(), 1.0, "`LORA`: expected the tensors of a LoRA, found none"),
    (
        |lora| drop(lora.metadata.insert(METADATA.into(), r#"{"transformer.r": 4}"#.into())),
        1.0,
        "`LORA`: `__metadata__` `lora_adapter_metadata`: missing field `transformer.lora_alpha`",
    ),
    (
        |lora| lora.configure(&json!({"alpha_pattern": {"to_(q|k)": 3}})),
        1.0,
        "`LORA`: `__metadata__` `lora_adapter_metadata`: expected the names of modules as patterns, found \"to_(q|k)\"",
    ),
    (
        |lora| lora.configure(&json!({"alpha_pattern": {"to_q": 3, "0.attn1.to_q": 5}})),
        1.0,
        "1 problem merging the LoRA `LORA`\n  `transformer_blocks.0.attn1.to_q`: expected one value in `alpha_pattern`, \
         found patterns that disagree",
    ),
    (
        |lora| {
            lora.put("transformer.norm_final.lora_A.weight", &[4, 32], 0.0);
            lora.put("transformer.norm_final.lora_B.weight", &[32, 4], 0.0);
            lora.put(&format!("{TO_Q}.lora_A.weight"), &[0, 32], 0.0);
            lora.put(&format!("{TO_Q}.lora_B.weight"), &[32, 0], 0.0);
        },
        1.0,
        "3 problems merging the LoRA `LORA`\n  `norm_final`: expected a module whose weight is a matrix, found [32]\n  \
         `transformer.transformer_blocks.0.attn1.to_q.lora_A.weight`: expected [1, 32], found [0, 32]\n  \
         `transformer.transformer_blocks.0.attn1.to_q.lora_B.weight`: expected [32, 1], found [32, 0]",
    ),
];

/// What export says about the LoRA at `file`; it must leave nothing behind.
fn refusal(checkpoint: &str, file: &Path, scale: f64) -> String {
    let folder = fresh_folder();
    let result = export(&fixture(checkpoint), &folder.path().join("bundle"), &with(file.into(), scale), |_| {});
    match result {
        Ok(_) => String::new(),
        Err(error) => {
            assert!(entries(folder.path()).is_empty(), "{error}");
            error.to_string().replace(&file.display().to_string(), "LORA")
        }
    }
}

#[test]
fn broken_loras_are_refused_with_all_that_is_wrong() {
    let folder = fresh_folder();
    let file = folder.path().join("lora.safetensors");
    let mut failures = String::new();
    for (i, (breaks, scale, expected)) in BROKEN.into_iter().enumerate() {
        let mut lora = File::read(&fixture("lora.safetensors"));
        breaks(&mut lora);
        lora.write(&file);
        let found = refusal("2b-fp32", &file, scale);
        if found != expected {
            let _ = writeln!(failures, "case {i}\nexpected: {expected}\n   found: {found}");
        }
    }
    assert!(failures.is_empty(), "\n{failures}");
}

#[test]
fn a_lora_of_another_model_or_no_lora_at_all_is_refused() {
    let other = refusal("5b", &fixture("lora.safetensors"), 1.0);
    assert!(other.starts_with("24 problems merging the LoRA `LORA`\n"), "{other}");
    assert!(other.contains("0.attn1.to_q.lora_A.weight`: expected [4, 48], found [4, 32]"), "{other}");
    assert!(other.ends_with("\n  … and 4 more"), "{other}");

    let model = fixture("2b-fp32/transformer/diffusion_pytorch_model.safetensors");
    let model = refusal("2b-fp32", &model, 1.0);
    assert!(model.contains("`norm_final.bias`: expected a name that begins with `transformer.` (and "), "{model}");

    let folder = fresh_folder();
    let file = folder.path().join("lora.safetensors");
    assert_eq!(refusal("2b-fp32", &file, 1.0), "`LORA`: expected a file, found nothing");
    for (bytes, expected) in [
        (&b""[..], "`LORA`: expected safetensors, found an empty file"),
        (b"PK\x03\x04", "`LORA`: expected safetensors, found a zip archive"),
        (b"garbage!garbage!", "`LORA`: expected a header of at most "),
    ] {
        fs::write(&file, bytes).expect("a writable folder");
        let found = refusal("2b-fp32", &file, 1.0);
        assert!(found.starts_with(expected), "{found}");
    }
    let found = refusal("2b-fp32", folder.path(), 1.0);
    assert_eq!(found, "`LORA`: expected a regular file, found a directory");
}

#[test]
fn the_command_takes_several_loras_and_their_scales() {
    let folder = fresh_folder();
    let run = |arguments: &[&str], bundle: &str| {
        let mut command = cogvx();
        command.arg("export").arg(fixture("2b-fp32")).args(arguments).arg("-o").arg(folder.path().join(bundle));
        command.output().expect("cogvx starts")
    };
    let [scaled, plain] =
        ["lora", "lora-no-alpha"].map(|name| fixture(&format!("{name}.safetensors")).display().to_string());
    let scaled = format!("{scaled}:0.7");
    let output = run(&["--lora", &scaled, "--lora", &plain], "bundle");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(said(&output).contains("LoRA merged into 12 weights"), "{}", said(&output));
    let manifest = bundle::Manifest::read(&folder.path().join("bundle")).expect("a bundle");
    let lora = |file: &str, scale| bundle::Lora { file: file.into(), scale };
    assert_eq!(manifest.loras, [lora("lora.safetensors", 0.7), lora("lora-no-alpha.safetensors", 1.0)]);

    let wrong = format!("{plain}:much");
    let nan = format!("{plain}:nan");
    for (arguments, expected) in [
        (&["--lora", &wrong][..], format!("error: `--lora`: expected a number after `{plain}:`, found `much`\n")),
        (&["--lora", &nan], format!("error: `{plain}`: expected a finite scale, found NaN\n")),
        (
            &["--lora", &plain, "--components", "text-encoder"],
            "error: `--lora`: expected `transformer` among the components to export, found it left out\n".into(),
        ),
    ] {
        let output = run(arguments, "new");
        assert_eq!(output.status.code(), Some(2), "{}", said(&output));
        assert_eq!(String::from_utf8_lossy(&output.stderr), expected);
        assert_eq!(entries(folder.path()).len(), 1, "{arguments:?}");
    }
}
