//! The command line, through the real binaries.

mod common;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use cogvx::bundle::{MANIFEST, Origin};
use insta::assert_snapshot;
use serde_json::Value;

use common::{cogvx, entries, fixture, fresh_folder, program, root, said};

/// What a command printed on standard output; it must succeed.
fn printed(command: &mut std::process::Command) -> String {
    let output = command.output().expect("the program starts");
    assert_eq!(output.status.code(), Some(0), "{command:?}\n{}", said(&output));
    String::from_utf8(output.stdout).expect("text")
}

/// All files below `folder`, by their relative paths.
fn files(folder: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(entries(&path));
        } else {
            let name = path.strip_prefix(folder).expect("below the folder").to_path_buf();
            found.insert(name, fs::read(&path).expect("a readable file"));
        }
    }
    found
}

fn copy_tree(from: &Path, to: &Path) {
    for (name, bytes) in files(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("a writable folder");
        fs::write(path, bytes).expect("a writable folder");
    }
}

fn export(checkpoint: &Path, bundle: &Path, arguments: &[&str]) -> String {
    printed(&mut exporting(checkpoint, bundle, arguments))
}

fn exporting(checkpoint: &Path, bundle: &Path, arguments: &[&str]) -> std::process::Command {
    let mut command = cogvx();
    command.arg("export").arg(checkpoint).arg("--output").arg(bundle).args(arguments);
    command
}

/// Make one frame of a bundle.
fn run(bundle: &Path, video: &Path) -> Vec<u8> {
    let size = ["--frames", "1", "--height", "16", "--width", "16", "--steps", "2", "--threads", "1"];
    printed(cogvx().arg("run").arg(bundle).args(["--prompt", "a boat"]).args(size).arg("--output").arg(video));
    fs::read(video).expect("a video")
}

#[test]
fn stats_tell_what_each_stage_took() {
    let folder = fresh_folder();
    let video = folder.path().join("video.npy");
    let arguments = ["--prompt", "a fox", "--frames", "9", "--steps", "2", "--threads", "1", "--vae-tiling"];
    let command = || {
        let mut command = cogvx();
        command.arg("run").arg(fixture("student")).args(arguments).arg("--output").arg(&video);
        command
    };
    let report: serde_json::Value =
        serde_json::from_str(&printed(command().arg("--stats=json"))).expect("nothing but JSON");
    assert_eq!((&report["frames"], &report["height"]), (&9.into(), &24.into()), "{report:#}");
    let stages = report["stages"].as_array().expect("a list");
    let counts: Vec<_> =
        stages.iter().map(|s| (s["stage"].as_str().unwrap_or_default(), s["count"].as_u64())).collect();
    assert_eq!(counts, [("text", Some(0)), ("denoise", Some(2)), ("decode", Some(9))]);
    for stage in stages {
        assert!(stage["seconds"].as_f64().is_some_and(|s| s > 0.0), "{stage}");
        let bytes = |field: &str| stage["memory"][field].as_u64();
        let total = bytes("anonymous").zip(bytes("mapped")).map(|(anonymous, mapped)| anonymous.max(mapped));
        assert!(!cfg!(target_os = "linux") || total.is_some_and(|least| bytes("total") >= Some(least)), "{stage}");
    }
    let table = printed(command().arg("--stats"));
    let names: Vec<_> = table.lines().skip(2).map(|line| line.split("  ").next().unwrap_or_default().trim()).collect();
    assert_eq!(names, ["text encoder", "transformer", "VAE decoder"], "{table}");
}

#[test]
fn help_says_what_can_be_done() {
    for (name, arguments) in [
        ("help", &["--help"][..]),
        ("help_export", &["export", "--help"]),
        ("help_verify", &["verify", "--help"]),
        ("help_run", &["run", "--help"]),
        ("help_quality", &["quality", "--help"]),
        ("help_synth", &["synth", "--help"]),
        ("help_calibrate", &["calibrate", "--help"]),
        ("help_runtime", &["runtime", "--help"]),
        ("help_bench", &["bench", "--help"]),
        ("help_compile", &["compile", "--help"]),
        ("help_cache", &["cache", "--help"]),
        ("help_cache_gc", &["cache", "gc", "--help"]),
        ("help_plan", &["plan", "--help"]),
        ("help_inspect", &["inspect", "--help"]),
        ("help_report", &["report", "--help"]),
    ] {
        assert_snapshot!(name, printed(cogvx().args(arguments)));
    }
}

/// The report with sizes and the place blanked out, for they vary.
fn without_sizes(report: &str, folder: &Path) -> String {
    let report = report.replace(&folder.display().to_string(), "[folder]");
    let mut words: Vec<_> = report.split(' ').collect();
    for i in 1..words.len() {
        if ["B", "KiB", "MiB"].iter().any(|unit| words[i].starts_with(unit)) {
            words[i - 1] = "[n]";
        }
    }
    words.join(" ")
}

#[test]
fn export_reports_what_it_did() {
    let folder = fresh_folder();
    let folder = folder.path().canonicalize().expect("a folder");
    for (name, checkpoint, arguments) in [
        ("export_as_it_is", "2b-fp32", &["--weights", "copy"][..]),
        ("export_converted", "2b-fp16-sharded", &["--precision", "bf16", "--weights", "copy", "--overwrite"]),
        (
            "export_for_tensorrt_at_one_size",
            "2b-bf16",
            &["--target", "tensorrt", "--shapes", "9x24x40", "--weights", "copy", "--overwrite"],
        ),
        ("export_of_one_component", "2b-fp32", &["--components", "vae", "--weights", "copy", "--overwrite"]),
    ] {
        let report = export(&fixture(checkpoint), &folder.join("bundle"), arguments);
        assert_snapshot!(name, without_sizes(&report, &folder));
    }
}

#[test]
fn mistakes_are_errors_with_a_reason() {
    let folder = fresh_folder();
    let folder = folder.path().canonicalize().expect("a folder");
    let (checkpoint, bundle) = (fixture("2b-fp32"), folder.join("bundle"));
    export(&checkpoint, &bundle, &["--components", "vae"]);
    let mut all = String::new();
    for (bundle, arguments) in [
        ("bundle", &[][..]),
        ("new", &["--shapes", "8x32x32"]),
        ("new", &["--shapes", "9x30x32"]),
        ("new", &["--shapes", "9x32"]),
    ] {
        let mut command = cogvx();
        command.arg("export").arg(&checkpoint).arg("--output").arg(folder.join(bundle)).args(arguments);
        let output = command.output().expect("cogvx starts");
        assert_eq!((output.status.code(), output.stdout.len()), (Some(2), 0), "{}", said(&output));
        let reason = String::from_utf8_lossy(&output.stderr).replace(&folder.display().to_string(), "[folder]");
        let _ = writeln!(all, "{bundle} {}:\n{reason}", arguments.join(" "));
        assert!(!folder.join("new").exists(), "{arguments:?}");
    }
    assert_snapshot!(all);
}

#[test]
fn cogvx_export_is_cogvx_export_under_another_name() {
    let folder = fresh_folder();
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    let arguments = ["--target", "cuda", "--precision", "fp16"];
    export(&fixture("2b-fp32"), &one, &arguments);
    let mut alias = program(env!("CARGO_BIN_EXE_cogvx-export"));
    printed(alias.arg(fixture("2b-fp32")).arg("-o").arg(&other).args(arguments));
    assert_eq!(files(&one), files(&other));
}

#[test]
fn two_exports_of_a_checkpoint_are_the_same_to_the_byte() {
    let folder = fresh_folder();
    for (i, arguments) in [
        &["--target", "cpu"][..],
        &["--target", "cpu", "--precision", "bf16"],
        &["--target", "tensorrt", "--precision", "fp16", "--shapes", "9x32x48"],
    ]
    .into_iter()
    .enumerate()
    {
        let [one, other] = ["one", "other"].map(|name| folder.path().join(format!("{name}{i}")));
        export(&fixture("2b-fp16-sharded"), &one, arguments);
        export(&fixture("2b-fp16-sharded"), &other, arguments);
        let (one, other) = (files(&one), files(&other));
        assert!(one.len() > 10, "{:?}", one.keys());
        let differ: Vec<_> =
            one.iter().filter(|(name, bytes)| other.get(*name) != Some(bytes)).map(|(n, _)| n).collect();
        assert!(differ.is_empty() && one.len() == other.len(), "{arguments:?}: {differ:?}");
    }
}

/// How many of the transformer's layers an export quantizes.
fn quantized(checkpoint: &Path, bundle: &Path, arguments: &[&str]) -> u64 {
    let arguments = [&["--components", "transformer", "--overwrite", "--json"], arguments].concat();
    let report: Value = serde_json::from_str(&export(checkpoint, bundle, &arguments)).expect("JSON");
    report["graphs"][0]["quantized"].as_u64().expect("a number")
}

#[test]
fn quantized_bundles_do_not_carry_the_float_weights_along() {
    let folder = fresh_folder();
    let bundle = folder.path().join("bundle");
    for mode in ["copy", "link"] {
        let arguments =
            ["--quantize", "int8", "--prefer", "size", "--weights", mode, "--components", "transformer", "--overwrite"];
        export(&root().join("examples/shapes-model"), &bundle, &arguments);
        let names: Vec<_> = files(&bundle.join("transformer")).into_keys().collect();
        assert_eq!(
            names,
            ["kernels.onnx", "model.onnx", "quantized.safetensors", "rewritten.safetensors"].map(PathBuf::from)
        );
    }
}

/// Of a model that starts from what `start` gives, layers are ranked and the worst left in float: in two steps and in one.
fn the_worst_layers_stay_float(checkpoint: &Path, start: &[&str]) {
    let folder = fresh_folder();
    let [ranking, one, other] = ["ranking.json", "one", "other"].map(|name| folder.path().join(name));
    let mut command = cogvx();
    command.arg("sensitivity").arg(checkpoint).args(["--quantize", "int8", "--output"]).arg(&ranking).args(start);
    assert!(printed(&mut command).contains("error of the latents"));
    let ranked: Value = serde_json::from_slice(&fs::read(&ranking).expect("a ranking")).expect("JSON");
    let budget = (0.7 * ranked["all"].as_f64().expect("a number")).to_string();
    let all = quantized(checkpoint, &one, &["--quantize", "int8", "--prefer", "size"]);
    let by_ranking = [
        "--quantize",
        "int8",
        "--prefer",
        "size",
        "--max-loss",
        &budget,
        "--sensitivity",
        &ranking.display().to_string(),
    ];
    let some = quantized(checkpoint, &one, &by_ranking);
    assert!((1..all).contains(&some), "{some} of {all}");
    let by_itself = [&["--quantize", "int8:auto", "--prefer", "size", "--max-loss", &budget], start].concat();
    assert_eq!(quantized(checkpoint, &other, &by_itself), some);
    assert_eq!(files(&one), files(&other));
}

#[test]
fn layers_that_lose_most_stay_float_by_a_ranking_or_by_themselves() {
    the_worst_layers_stay_float(&fixture("2b-fp32"), &[]);
}

#[test]
fn image_models_are_ranked_from_images() {
    let image = fixture("references/1.5-i2v-even-input.png").display().to_string();
    the_worst_layers_stay_float(&fixture("1.5-i2v"), &["--image", &image]);
}

#[test]
fn layers_that_are_not_faster_stay_float_by_a_verdict() {
    let folder = fresh_folder();
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    let checkpoint = fixture("2b-fp32");
    let all = quantized(&checkpoint, &one, &["--quantize", "int8", "--prefer", "size"]);
    let mut bench = cogvx();
    bench.arg("bench").arg(&one).arg("--against").arg(&checkpoint).args(["--store", "--repeat", "1"]);
    assert!(printed(&mut bench).contains("feed-forward up"));
    // As it came out on this machine, then as if all but one kind of the two blocks' layers were to stay quantized.
    let arguments = ["--quantize", "int8", "--verdict", &one.display().to_string()];
    assert!(quantized(&checkpoint, &other, &arguments) <= all);
    let path = one.join("cogvx.json");
    let mut manifest: Value = serde_json::from_slice(&fs::read(&path).expect("a manifest")).expect("JSON");
    for row in manifest["verdict"]["layers"].as_array_mut().expect("a list") {
        row["verdict"] = if row["group"] == "feed-forward up" { "keep float" } else { "quantize" }.into();
    }
    fs::write(&path, manifest.to_string()).expect("a manifest");
    assert_eq!(quantized(&checkpoint, &other, &arguments), all - 2);
}

#[test]
fn layers_that_were_not_faster_on_this_machine_stay_float_in_one_step() {
    let folder = fresh_folder();
    let [all, fast, again] = ["all", "fast", "again"].map(|name| folder.path().join(name));
    // The second one has learned positions, of one size.
    for checkpoint in ["2b-fp32", "5b-i2v"].map(fixture) {
        quantized(&checkpoint, &all, &["--quantize", "int8", "--prefer", "size"]);
        // By default, as with `--prefer speed`.
        let arguments = ["--quantize", "int8", "--overwrite", "--components", "transformer"];
        let shown = export(&checkpoint, &fast, &arguments);
        let manifest = cogvx::bundle::Manifest::read(&fast).expect("a bundle");
        let verdict = manifest.verdict.expect("it keeps what was measured");
        let rows = verdict["layers"].as_array().expect("a list");
        let layers = ["attention q, k, v", "attention out", "feed-forward up", "feed-forward down"];
        for group in layers {
            let row = rows.iter().find(|row| row["group"] == group).unwrap_or_else(|| panic!("{group}: {verdict:#}"));
            assert!(["quantize", "keep float"].contains(&row["verdict"].as_str().expect("a word")), "{row:#}");
            assert!(shown.contains(group), "{shown}");
        }
        // However it came out here: what it says is what was done, as if those layers had been named.
        let kept = cogvx::bench::kept_float(&verdict).expect("a verdict");
        let kept = if kept.is_empty() { "none of them".to_string() } else { kept.join(",") };
        quantized(&checkpoint, &again, &["--quantize", "int8", "--prefer", "size", "--keep-float", &kept]);
        let graph = |bundle: &Path| fs::read(bundle.join("transformer/model.onnx")).expect("a graph");
        assert!(graph(&fast) == graph(&again), "{kept}");
        let by_verdict = ["--quantize", "int8", "--verdict", &fast.display().to_string()];
        quantized(&checkpoint, &again, &by_verdict);
        assert!(graph(&fast) == graph(&again), "{kept}");
        // Nothing is left of what was measured.
        assert_eq!(entries(folder.path()), [&again, &all, &fast].map(Clone::clone));
    }
}

#[test]
fn what_is_asked_for_to_save_memory_or_by_size_is_quantized_without_measuring() {
    let folder = fresh_folder();
    let checkpoint = fixture("2b-fp32");
    let bundle = folder.path().join("bundle");
    for arguments in [&["int8-weight"][..], &["int8", "--prefer", "size"]] {
        let arguments = [&["--quantize"], arguments, &["--components", "transformer", "--overwrite"]].concat();
        let output = exporting(&checkpoint, &bundle, &arguments).output().expect("cogvx starts");
        assert!(output.status.success() && !said(&output).contains("measur"), "{}", said(&output));
        assert_eq!(cogvx::bundle::Manifest::read(&bundle).expect("a bundle").verdict, None);
    }
}

#[test]
fn without_a_runtime_all_layers_are_quantized_and_that_is_told() {
    let folder = fresh_folder();
    let checkpoint = fixture("2b-fp32");
    let [sized, bundle] = ["sized", "bundle"].map(|name| folder.path().join(name));
    let arguments = ["--quantize", "int8", "--components", "transformer"];
    export(&checkpoint, &sized, &[&arguments[..], &["--prefer", "size"]].concat());
    // Neither a library nor a Python to install one with.
    let nowhere = |command: &mut std::process::Command| {
        command.env("PATH", folder.path()).env("XDG_CACHE_HOME", folder.path().join("cache"));
        command.env_remove("ORT_DYLIB_PATH").output().expect("cogvx starts")
    };
    let output = nowhere(&mut exporting(&checkpoint, &bundle, &arguments));
    let expected = "not measured which layers are faster quantized, so all are, as by `--prefer size`: ONNX Runtime 1.31.1 was not \
                    found (`cogvx runtime` installs it)";
    assert!(output.status.success() && said(&output).lines().any(|line| line == expected), "{}", said(&output));
    assert_eq!(files(&bundle), files(&sized));
    // Who asks for it is told that it cannot be had.
    let asked = [&arguments[..], &["--prefer", "speed", "--overwrite"]].concat();
    let output = nowhere(&mut exporting(&checkpoint, &bundle, &asked));
    assert_eq!(output.status.code(), Some(2));
    assert!(
        said(&output).contains("error: ONNX Runtime 1.31.1 was not found, and pip could not install it"),
        "{}",
        said(&output)
    );
    assert_eq!(entries(folder.path()), [bundle, sized]);
}

#[cfg(unix)]
fn inode(path: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt as _;
    let metadata = fs::metadata(path).expect("a file");
    (metadata.dev(), metadata.ino())
}

#[cfg(unix)]
#[test]
fn linked_weights_are_the_files_of_the_checkpoint() {
    let folder = fresh_folder();
    let [checkpoint, bundle] = ["checkpoint", "bundle"].map(|name| folder.path().join(name));
    copy_tree(&fixture("2b-fp16-sharded"), &checkpoint);
    export(&checkpoint, &bundle, &["--weights", "link"]);
    let manifest = cogvx::bundle::Manifest::read(&bundle).expect("a bundle");
    let linked: Vec<_> = manifest.files.iter().filter(|f| f.origin == Origin::Linked).map(|f| &f.path).collect();
    assert_eq!(linked.len(), 10, "four shards twice and the VAE twice: {linked:?}");
    for path in linked {
        let original = checkpoint.join(path.replace("vae_decoder/", "vae/").replace("vae_encoder/", "vae/"));
        assert_eq!(inode(&bundle.join(path)), inode(&original), "{path}");
    }
}

#[cfg(unix)]
#[test]
fn a_bundle_of_copies_works_after_the_checkpoint_is_gone() {
    let folder = fresh_folder();
    let [checkpoint, bundle] = ["checkpoint", "bundle"].map(|name| folder.path().join(name));
    copy_tree(&fixture("2b-fp32"), &checkpoint);
    export(&checkpoint, &bundle, &["--weights", "copy"]);
    let weights = "transformer/diffusion_pytorch_model.safetensors";
    assert_ne!(inode(&bundle.join(weights)), inode(&checkpoint.join(weights)));
    let before = run(&checkpoint, &folder.path().join("before.npy"));
    fs::remove_dir_all(&checkpoint).expect("a folder");
    assert_eq!(run(&bundle, &folder.path().join("after.npy")), before);
}

/// `models--owner--name/snapshots/<revision>` of links to `blobs/<hash>`, as `huggingface_hub` lays files out.
#[cfg(unix)]
fn hugging_face_cache(checkpoint: &Path, folder: &Path) -> PathBuf {
    let repository = folder.join("models--zai-org--CogVideoX-2b");
    let (blobs, snapshot) = (repository.join("blobs"), repository.join("snapshots/1137dacf"));
    fs::create_dir_all(&blobs).expect("a writable folder");
    for (i, (name, bytes)) in files(checkpoint).into_iter().enumerate() {
        let (hash, link) = (format!("{i:040x}"), snapshot.join(&name));
        fs::write(blobs.join(&hash), bytes).expect("a writable folder");
        fs::create_dir_all(link.parent().expect("a folder")).expect("a writable folder");
        let up = "../".repeat(name.components().count() + 1);
        std::os::unix::fs::symlink(format!("{up}blobs/{hash}"), link).expect("a writable folder");
    }
    snapshot
}

#[cfg(unix)]
#[test]
fn a_hugging_face_cache_exports_with_links_and_runs() {
    let folder = fresh_folder();
    for checkpoint in ["2b-fp16-sharded", "2b-bf16"] {
        let snapshot = hugging_face_cache(&fixture(checkpoint), &folder.path().join(checkpoint));
        let bundle = folder.path().join(format!("{checkpoint}.bundle"));
        export(&snapshot, &bundle, &["--weights", "link"]);
        let shard = entries(&snapshot.join("transformer"))
            .into_iter()
            .find(|p| p.extension().is_some_and(|e| e == "safetensors"));
        let shard = shard.expect("weights");
        let linked = bundle.join("transformer").join(shard.file_name().expect("a file"));
        assert!(!linked.is_symlink() && linked.is_file(), "{checkpoint}");
        assert_eq!(inode(&linked), inode(&shard), "{checkpoint}");
        let video = run(&bundle, &folder.path().join("cached.npy"));
        assert_eq!(video, run(&fixture(checkpoint), &folder.path().join("plain.npy")), "{checkpoint}");
        assert_eq!(video, run(&snapshot, &folder.path().join("snapshot.npy")), "{checkpoint}");
        // Nothing stays beside what was exported for the occasion.
        let beside = entries(snapshot.parent().expect("a folder"));
        assert_eq!(beside, [snapshot], "{checkpoint}");
    }
}

#[test]
fn a_failed_export_leaves_nothing_behind() {
    let folder = fresh_folder();
    let checkpoint = folder.path().join("checkpoint");
    copy_tree(&fixture("2b-fp32"), &checkpoint);
    let weights = checkpoint.join("vae/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&weights).expect("weights");
    fs::write(&weights, &bytes[..bytes.len() - 1]).expect("a writable folder");
    let output = cogvx()
        .arg("export")
        .arg(&checkpoint)
        .arg("-o")
        .arg(folder.path().join("bundle"))
        .output()
        .expect("cogvx starts");
    assert_eq!(output.status.code(), Some(2), "{}", said(&output));
    assert!(said(&output).contains("vae/diffusion_pytorch_model.safetensors"), "{}", said(&output));
    assert_eq!(entries(folder.path()), [checkpoint]);
}

#[test]
fn the_manifest_names_every_file_of_the_bundle() {
    let folder = fresh_folder();
    let bundle = folder.path().join("bundle");
    export(&root().join("examples/shapes-model"), &bundle, &[]);
    let manifest = cogvx::bundle::Manifest::read(&bundle).expect("a bundle");
    let listed: Vec<_> = manifest.files.iter().map(|f| PathBuf::from(&f.path)).collect();
    let found: Vec<_> = files(&bundle).into_keys().filter(|name| name != Path::new(MANIFEST)).collect();
    assert_eq!(listed.iter().collect::<std::collections::BTreeSet<_>>(), found.iter().collect());
}

#[test]
fn runtime_shows_the_library_that_starts() {
    let output = cogvx().args(["runtime", "--json"]).output().expect("cogvx starts");
    let json: serde_json::Value =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&output)));
    assert_eq!(json["version"], cogvx::runtime::VERSION);
    assert!(json["library"].as_str().is_some_and(|path| Path::new(path).is_file()), "{json}");
    let missing = cogvx().arg("runtime").env("ORT_DYLIB_PATH", "nowhere.so").output().expect("cogvx starts");
    assert_eq!(missing.status.code(), Some(2), "{}", said(&missing));
    assert_eq!(said(&missing).trim(), "error: `ORT_DYLIB_PATH`: expected a file, found nothing at `nowhere.so`");
}

#[test]
fn run_says_where_the_video_is_not_what_was_asked_for() {
    let folder = fresh_folder();
    let video = folder.path().join("fox.npy");
    let long = "a fox ".repeat(40);
    let mut command = cogvx();
    command.arg("run").arg(fixture("2b-fp32")).args(["--prompt", &long, "--frames", "13", "--steps", "1", "--output"]);
    let output = command.arg(&video).output().expect("cogvx starts");
    assert!(output.status.success(), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("tokens, the model takes 12: the rest is cut off"), "{text}");
    assert!(text.contains("warning: asked for 13 frames, the model decodes 16"), "{text}");
    assert!(said(&output).contains("16 frames of 32x32"), "{}", said(&output));
}

/// A file of prompts in `folder`.
fn prompts(folder: &Path, lines: &[serde_json::Value]) -> PathBuf {
    let path = folder.join("prompts.jsonl");
    let text = lines.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n\n");
    fs::write(&path, text).expect("a writable folder");
    path
}

#[test]
fn a_batch_makes_the_videos_that_its_lines_make_alone_and_tells_what_failed() {
    use serde_json::json;
    let folder = fresh_folder();
    let output = folder.path().join("videos");
    let lines = [
        json!({"prompt": "a boat", "frames": 1, "height": 16, "width": 16, "output": "boat.npy"}),
        json!({"prompt": "a boat", "height": 17}),
        json!({"prompt": "A fox, running!", "seed": 3, "guidance": 1}),
        json!({"prompt": "a fox", "width": 16, "output": "odd.mp4", "fps": -1.0}),
    ];
    let lines = prompts(folder.path(), &lines);
    let command = || {
        let mut command = cogvx();
        command.arg("run").arg(fixture("2b-fp32")).args(["--steps", "2", "--threads", "1", "--format", "npy"]);
        command.arg("--prompts").arg(&lines).arg("--output").arg(&output);
        command
    };
    let made = command().output().expect("cogvx starts");
    assert_eq!(made.status.code(), Some(1), "{}", said(&made));
    let shown = String::from_utf8_lossy(&made.stdout).replace(&output.display().to_string(), "OUT");
    assert_snapshot!("batch", shown);
    let videos: Vec<_> = files(&output).into_keys().collect();
    assert_eq!(videos, [Path::new("003-a-fox-running.npy"), Path::new("boat.npy")]);
    assert_eq!(
        fs::read(output.join("boat.npy")).expect("a video"),
        run(&fixture("2b-fp32"), &folder.path().join("boat.npy"))
    );
    let fox = folder.path().join("fox.npy");
    let alone = ["--prompt", "A fox, running!", "--seed", "3", "--guidance", "1", "--steps", "2", "--threads", "1"];
    printed(cogvx().arg("run").arg(fixture("2b-fp32")).args(alone).arg("--output").arg(&fox));
    assert_eq!(fs::read(output.join("003-a-fox-running.npy")).expect("a video"), fs::read(fox).expect("a video"));

    let report = command().arg("--stats=json").output().expect("cogvx starts");
    assert_eq!(report.status.code(), Some(1), "{}", said(&report));
    let report: serde_json::Value = serde_json::from_slice(&report.stdout).expect("nothing but JSON");
    let errors: Vec<_> = report["videos"].as_array().expect("a list").iter().map(|v| v["error"].is_string()).collect();
    assert_eq!(errors, [false, true, false, true], "{report:#}");
    let counts: Vec<_> = report["stages"].as_array().expect("a list").iter().map(|s| s["count"].as_u64()).collect();
    assert_eq!(counts, [Some(2), Some(4), Some(10)], "prompts, steps, frames: {report:#}");
}
