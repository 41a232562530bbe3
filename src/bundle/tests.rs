//! Bundles that work, places that are refused, and damage found on reading.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use cogvx_graphs::DType;
use serde_json::json;
use tempfile::TempDir;

use super::place::Place;
use super::*;

/// A part of the message, and the damage.
type Case<'a> = (&'a str, &'a dyn Fn(&mut serde_json::Value));

fn temp() -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().canonicalize().unwrap();
    (dir, path)
}

/// A manifest for `graph.onnx`.
fn manifest() -> Manifest {
    let port = |name: &str| Port {
        name: name.into(),
        dtype: DType::F32,
        shape: vec![Dim::Fixed(1), Dim::Symbol("tokens".into())],
    };
    let graph = Graph { file: "vae/graph.onnx".into(), opset: 23, inputs: vec![port("x")], outputs: vec![port("y")] };
    Manifest {
        format_version: VERSION,
        cogvx: "0.1.0".into(),
        source: Source { name: "CogVideoX-2b".into(), class_name: "CogVideoXPipeline".into() },
        precision: "fp32".into(),
        accuracy: "fp32".into(),
        quantization: None,
        vae_quantization: None,
        target: "cpu".into(),
        shapes: Shapes { frames: Some(49), ..Shapes::default() },
        loras: Vec::new(),
        components: [("vae".into(), Component { graphs: vec![graph], weights: Vec::new() })].into(),
        config: [("vae".into(), json!({ "scaling_factor": 0.7 }))].into(),
        verdict: None,
        fp32_islands: [].into(),
        files: Vec::new(),
    }
}

/// Writes a bundle whose graph holds `graph`.
fn export(output: &Path, graph: &[u8], overwrite: bool) -> Result<PathBuf, BundleError> {
    let writer = BundleWriter::create(output, None, overwrite)?;
    writer.add_bytes("vae/graph.onnx", graph)?;
    writer.finish(manifest())
}

fn message<T>(result: Result<T, BundleError>) -> String {
    result.err().expect("refused").to_string()
}

/// Names in `dir`, hidden ones included.
fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A safetensors file of `bytes` bytes without tensors worth the name; sparse.
fn weights(path: &Path, bytes: u64) {
    let mut file = fs::File::create(path).unwrap();
    file.write_all(&[&2_u64.to_le_bytes()[..], b"{}"].concat()).unwrap();
    file.set_len(bytes).unwrap();
}

#[test]
fn a_verdict_is_kept_in_the_manifest() {
    let (_dir, parent) = temp();
    let output = export(&parent.join("out"), b"graph", false).unwrap();
    let before = names(&output);
    let mut bundle = Bundle::open(&output).unwrap();
    bundle.store_verdict(json!({ "layers": [1] })).unwrap();
    let again = Bundle::open(&output).unwrap();
    assert_eq!(again.manifest(), bundle.manifest());
    assert_eq!(again.manifest().verdict, Some(json!({ "layers": [1] })));
    assert_eq!(names(&output), before);
}

#[test]
fn bundle_reads_back_what_was_written() {
    let (_keep, dir) = temp();
    let output = dir.join("deep/er/out");
    assert_eq!(export(&output, b"onnx", false).unwrap(), output);
    let bundle = Bundle::open(&output).unwrap();
    bundle.check(true).unwrap();
    let hash = blake3::hash(b"onnx").to_hex().to_string();
    let entry = FileEntry {
        path: "vae/graph.onnx".into(),
        bytes: 4,
        blake3: Some(hash),
        header_blake3: None,
        origin: Origin::Written,
    };
    assert_eq!(bundle.manifest(), &Manifest { files: vec![entry], ..manifest() });
    assert_eq!(fs::read(bundle.path("vae/graph.onnx")).unwrap(), b"onnx");
    assert_eq!(names(output.parent().unwrap()), ["out"], "nothing is left beside it");
}

#[cfg(unix)]
#[test]
fn finished_bundle_is_as_readable_as_any_directory() {
    use std::os::unix::fs::PermissionsExt as _;
    let (_keep, dir) = temp();
    let output = export(&dir.join("out"), b"", false).unwrap();
    fs::create_dir(dir.join("plain")).unwrap();
    let mode = |path: &Path| path.metadata().unwrap().permissions().mode();
    assert_eq!(mode(&output), mode(&dir.join("plain")));
}

#[test]
fn streamed_file_is_hashed_on_the_way() {
    let (_keep, dir) = temp();
    let writer = BundleWriter::create(&dir.join("out"), None, false).unwrap();
    let mut file = writer.create_file("vae/graph.onnx").unwrap();
    for block in 0..40_u8 {
        file.write_all(&vec![block; 100_000]).unwrap();
    }
    assert_eq!(file.bytes(), 4_000_000);
    file.finish().unwrap();
    let output = writer.finish(manifest()).unwrap();
    Bundle::open(&output).unwrap().check(true).unwrap();
}

#[test]
fn dropped_writer_leaves_nothing() {
    let (_keep, dir) = temp();
    let writer = BundleWriter::create(&dir.join("out"), None, false).unwrap();
    writer.add_bytes("a/b", b"x").unwrap();
    assert_eq!(names(&dir).len(), 1);
    drop(writer);
    assert!(names(&dir).is_empty());
    // Nor does one that fails to finish.
    let writer = BundleWriter::create(&dir.join("out"), None, false).unwrap();
    writer.create_file("vae/graph.onnx").unwrap().write_all(b"x").unwrap();
    assert_eq!(message(writer.finish(manifest())), "`vae/graph.onnx`: begun and not finished");
    let writer = BundleWriter::create(&dir.join("out"), None, false).unwrap();
    assert!(message(writer.finish(manifest())).starts_with("`vae/graph.onnx`: named by `vae`, not among the files"));
    assert!(names(&dir).is_empty());
}

#[test]
fn only_free_places_and_bundles_are_written_to() {
    let (_keep, dir) = temp();
    let output = dir.join("out");
    fs::create_dir(&output).unwrap();
    export(&output, b"into an empty directory", false).unwrap();
    assert!(message(export(&output, b"", false)).contains("expected no bundle there unless overwriting"));
    export(&output, b"over a bundle", true).unwrap();
    assert_eq!(fs::read(output.join("vae/graph.onnx")).unwrap(), b"over a bundle");
    assert_eq!(names(&dir), ["out"]);

    let other = dir.join("photos");
    fs::create_dir(&other).unwrap();
    for json in [None, Some("{}"), Some("not json"), Some(r#"{"format_version":1}"#)] {
        fs::write(other.join("holiday.png"), b"x").unwrap();
        if let Some(json) = json {
            fs::write(other.join(MANIFEST), json).unwrap();
        }
        assert!(message(export(&other, b"", true)).ends_with("photos`: exists and is not a cogvx bundle"));
    }
    let file = dir.join("file");
    fs::write(&file, b"x").unwrap();
    assert!(message(export(&file, b"", true)).ends_with("exists and is not a cogvx bundle"));
    assert!(other.join("holiday.png").exists() && file.exists());
}

#[test]
fn replacing_destroys_nothing_but_the_bundle_and_its_caches() {
    let (_keep, dir) = temp();
    let output = dir.join("out");
    export(&output, b"1", false).unwrap();
    fs::create_dir(output.join("cache")).unwrap();
    fs::write(output.join("cache/engine"), b"x").unwrap();
    export(&output, b"2", true).unwrap();
    for foreign in ["notes.txt", "vae/notes.txt", "videos/cat.mp4"] {
        fs::create_dir_all(output.join(foreign).parent().unwrap()).unwrap();
        fs::write(output.join(foreign), b"x").unwrap();
        let message = message(export(&output, b"3", true));
        let named = foreign.strip_suffix("/cat.mp4").unwrap_or(foreign);
        assert!(message.contains(&format!("holds `{named}`, which is not part")), "{message}");
        fs::remove_file(output.join(foreign)).unwrap();
    }
    assert_eq!(fs::read(output.join("vae/graph.onnx")).unwrap(), b"2");
}

#[test]
fn what_appears_while_writing_is_not_replaced() {
    let (_keep, dir) = temp();
    let output = dir.join("out");
    let writer = BundleWriter::create(&output, None, true).unwrap();
    writer.add_bytes("vae/graph.onnx", b"x").unwrap();
    fs::create_dir(&output).unwrap();
    fs::write(output.join("mine"), b"x").unwrap();
    assert!(message(writer.finish(manifest())).ends_with("exists and is not a cogvx bundle"));
    assert_eq!(names(&dir), ["out"]);
}

#[test]
fn systems_without_exchange_replace_in_two_steps() {
    let (_keep, dir) = temp();
    let output = export(&dir.join("out"), b"old", false).unwrap();
    let place = Place::new(&output).unwrap();
    let partial = place.partial().unwrap();
    fs::write(partial.path().join("new"), b"").unwrap();
    place.put_in_two_steps(partial, &output).unwrap();
    assert_eq!(names(&output), ["new"]);
    assert_eq!(names(&dir), ["out"]);
}

#[test]
fn failed_second_step_brings_the_old_bundle_back() {
    let (_keep, dir) = temp();
    let output = export(&dir.join("out"), b"old", false).unwrap();
    let place = Place::new(&output).unwrap();
    let partial = place.partial().unwrap();
    fs::remove_dir(partial.path()).unwrap();
    assert!(place.put_in_two_steps(partial, &output).is_err());
    Bundle::open(&output).unwrap().check(true).unwrap();
}

#[test]
fn checkpoint_is_neither_entered_nor_swallowed() {
    let (_keep, dir) = temp();
    let checkpoint = dir.join("CogVideoX-2b");
    fs::create_dir_all(checkpoint.join("vae")).unwrap();
    for output in [checkpoint.clone(), checkpoint.join("vae/deep/onnx"), checkpoint.join("transformer"), dir.clone()] {
        let message = message(BundleWriter::create(&output, Some(&checkpoint), true));
        assert!(message.contains("expected an output outside the checkpoint"), "{}: {message}", output.display());
    }
    assert_eq!(names(&checkpoint), ["vae"]);
    assert!(names(&checkpoint.join("vae")).is_empty());
    let climbing = checkpoint.join("new/../vae/onnx");
    assert!(message(BundleWriter::create(&climbing, Some(&checkpoint), true)).contains("expected no `..` after"));
    assert_eq!(names(&checkpoint), ["vae"]);
    assert!(BundleWriter::create(&checkpoint.join("onnx"), Some(&checkpoint), false).is_ok());
}

#[test]
fn unsafe_paths_are_refused() {
    let (_keep, dir) = temp();
    let writer = BundleWriter::create(&dir.join("out"), None, false).unwrap();
    for path in ["", "/etc/passwd", "../x", "a/../../x", "a//b", "./a", "a/", "c:\\x", "a\\b", "a\0", "a\nb", MANIFEST]
    {
        assert!(message(writer.add_bytes(path, b"")).contains("expected a plain relative path"), "{path:?}");
        assert!(message(writer.add_link(path, Path::new("Cargo.toml"))).contains("expected a plain relative path"));
    }
    writer.add_bytes("a", b"").unwrap();
    assert!(message(writer.add_bytes("a", b"")).starts_with("`a`: expected once, found twice"));
    assert!(names(writer.partial()) == ["a"]);
}

#[test]
fn damaged_bundles_are_refused() {
    let damage = |edit: &dyn Fn(&mut serde_json::Value)| {
        let (keep, dir) = temp();
        let output = export(&dir.join("out"), b"onnx", false).unwrap();
        let mut value = serde_json::from_slice(&fs::read(output.join(MANIFEST)).unwrap()).unwrap();
        edit(&mut value);
        fs::write(output.join(MANIFEST), value.to_string()).unwrap();
        fs::write(keep.path().join("escape"), b"onnx").unwrap();
        message(Bundle::open(&output))
    };
    let second = |v: &mut serde_json::Value| v["files"] = json!([v["files"][0], v["files"][0]]);
    let cases: [Case; 11] = [
        ("expected format version 1, found 2: export it again", &|v| v["format_version"] = json!(2)),
        ("expected format version 1, found none", &|v| *v = json!([])),
        ("expected a manifest, found missing field", &|v| *v = json!({ "format_version": 1 })),
        ("`../escape`: expected a plain relative path", &|v| v["files"][0]["path"] = json!("../escape")),
        ("`/etc/passwd`: expected a plain relative path", &|v| v["files"][0]["path"] = json!("/etc/passwd")),
        ("`vae/graph.onnx`: expected once, found twice", &second),
        ("`other.onnx`: named by `vae`", &|v| v["components"]["vae"]["graphs"][0]["file"] = json!("other.onnx")),
        ("`../escape`: named by `vae`", &|v| v["components"]["vae"]["weights"] = json!(["../escape"])),
        ("expected 5 bytes, found 4", &|v| v["files"][0]["bytes"] = json!(5)),
        ("expected a manifest, found invalid value", &|v| v["files"][0]["bytes"] = json!(-1)),
        ("expected a manifest, found unknown variant", &|v| v["files"][0]["origin"] = json!("stolen")),
    ];
    for (expected, edit) in cases {
        let message = damage(edit);
        assert!(message.contains(expected), "expected `{expected}`\n   found `{message}`");
    }
}

#[test]
fn missing_and_changed_files_are_found() {
    let (_keep, dir) = temp();
    let output = export(&dir.join("out"), b"onnx", false).unwrap();
    let bundle = Bundle::open(&output).unwrap();
    fs::write(output.join("vae/graph.onnx"), b"ONNX").unwrap();
    bundle.check(false).unwrap();
    assert!(message(bundle.check(true)).contains("expected blake3 "));
    fs::write(output.join("vae/graph.onnx"), b"x").unwrap();
    assert!(message(bundle.check(false)).ends_with("expected 4 bytes, found 1"));
    fs::remove_file(output.join("vae/graph.onnx")).unwrap();
    assert!(message(Bundle::open(&output)).ends_with("graph.onnx`: listed in `cogvx.json`, not there"));
    fs::create_dir(output.join("vae/graph.onnx")).unwrap();
    assert!(message(Bundle::open(&output)).ends_with("expected a regular file, found a directory"));
    assert!(message(Bundle::open(&dir)).ends_with("expected a cogvx bundle, found no `cogvx.json`"));
    fs::write(output.join(MANIFEST), vec![b' '; (16 << 20) + 1]).unwrap();
    assert!(message(Bundle::open(&output)).ends_with("expected at most 16777216 bytes, found more"));
    fs::write(output.join(MANIFEST), "[".repeat(100_000)).unwrap();
    assert!(message(Bundle::open(&output)).contains("recursion limit"));
}

#[test]
fn linked_weights_take_no_time_and_no_space() {
    let (_keep, dir) = temp();
    let source = dir.join("model.safetensors");
    weights(&source, 13 << 30);
    let start = Instant::now();
    let writer = BundleWriter::create(&dir.join("out"), None, false).unwrap();
    writer.add_bytes("vae/graph.onnx", b"x").unwrap();
    assert_eq!(writer.add_weights("vae/model.safetensors", &source, WeightsMode::Link).unwrap(), Origin::Linked);
    let mut manifest = manifest();
    manifest.components.get_mut("vae").unwrap().weights = vec!["vae/model.safetensors".into()];
    let output = writer.finish(manifest).unwrap();
    let bundle = Bundle::open(&output).unwrap();
    bundle.check(true).unwrap();
    assert!(start.elapsed() < Duration::from_secs(1), "took {:?}", start.elapsed());
    let entry = &bundle.manifest().files[1];
    let header = blake3::hash(&[&2_u64.to_le_bytes()[..], b"{}"].concat()).to_hex().to_string();
    assert_eq!((&entry.blake3, &entry.header_blake3), (&None, &Some(header)));
    fs::OpenOptions::new().write(true).open(&source).unwrap().write_all(&[3]).unwrap();
    assert!(message(bundle.check(true)).contains("model.safetensors`: expected blake3 "));
}

#[cfg(unix)]
#[test]
fn link_is_to_the_target_and_copy_is_a_file_of_its_own() {
    use std::os::unix::fs::MetadataExt as _;
    let (_keep, dir) = temp();
    fs::create_dir(dir.join("blobs")).unwrap();
    let blob = dir.join("blobs/abcd");
    weights(&blob, 100);
    let snapshot = dir.join("model.safetensors");
    std::os::unix::fs::symlink("blobs/abcd", &snapshot).unwrap();
    let writer = BundleWriter::create(&dir.join("out"), None, false).unwrap();
    assert_eq!(writer.add_weights("auto", &snapshot, WeightsMode::Auto).unwrap(), Origin::Linked);
    assert_eq!(writer.add_weights("copy", &snapshot, WeightsMode::Copy).unwrap(), Origin::Copied);
    let inode = |path: PathBuf| path.symlink_metadata().unwrap().ino();
    assert_eq!(inode(writer.partial().join("auto")), inode(blob.clone()));
    assert_ne!(inode(writer.partial().join("copy")), inode(blob.clone()));
    assert_eq!(fs::read(writer.partial().join("copy")).unwrap(), fs::read(blob).unwrap());
    for wrong in [dir.join("blobs"), dir.join("absent")] {
        assert!(writer.add_weights("wrong", &wrong, WeightsMode::Auto).is_err());
    }
}

#[cfg(unix)]
#[test]
fn other_file_system_is_copied_from_unless_linking_is_demanded() {
    use std::os::unix::fs::MetadataExt as _;
    let (_keep, dir) = temp();
    let device = |path: &Path| path.metadata().ok().map(|metadata| metadata.dev());
    let elsewhere = Path::new("/dev/shm");
    let Some(other) = device(elsewhere).filter(|other| Some(*other) != device(&dir)) else {
        eprintln!("skipped: no second file system at /dev/shm");
        return;
    };
    let Ok(there) = tempfile::tempdir_in(elsewhere) else {
        eprintln!("skipped: device {other} cannot be written");
        return;
    };
    let source = there.path().join("model.safetensors");
    weights(&source, 100);
    let writer = BundleWriter::create(&dir.join("out"), None, false).unwrap();
    let message = message(writer.add_weights("w", &source, WeightsMode::Link));
    assert!(message.contains("model.safetensors`: cannot be linked to `w`"), "{message}");
    assert_eq!(writer.add_weights("w", &source, WeightsMode::Auto).unwrap(), Origin::Copied);
}

#[cfg(unix)]
#[test]
fn links_out_of_a_bundle_are_refused_and_output_links_followed() {
    use std::os::unix::fs::symlink;
    let (_keep, dir) = temp();
    let output = export(&dir.join("out"), b"onnx", false).unwrap();
    symlink(&output, dir.join("latest")).unwrap();
    export(&dir.join("latest"), b"ONNX", true).unwrap();
    assert!(dir.join("latest").is_symlink());
    assert_eq!(fs::read(output.join("vae/graph.onnx")).unwrap(), b"ONNX");
    fs::rename(output.join("vae/graph.onnx"), dir.join("elsewhere")).unwrap();
    symlink(dir.join("elsewhere"), output.join("vae/graph.onnx")).unwrap();
    assert!(message(Bundle::open(&output)).ends_with("found a link out of the bundle"));
    symlink(dir.join("nowhere"), dir.join("dangling")).unwrap();
    assert!(export(&dir.join("dangling"), b"", true).is_err());
}

#[test]
fn leavings_of_killed_runs_are_removed_after_a_day() {
    let (_keep, dir) = temp();
    let day = Duration::from_hours(24);
    for (name, age) in [(".out.partial-old", 2 * day), (".out.partial-new", day / 2), (".other.partial-old", 2 * day)] {
        fs::create_dir(dir.join(name)).unwrap();
        fs::write(dir.join(name).join("x"), b"x").unwrap();
        let opened = fs::File::open(dir.join(name)).unwrap();
        if opened.set_modified(SystemTime::now() - age).is_err() {
            eprintln!("skipped: times of directories cannot be set here");
            return;
        }
    }
    export(&dir.join("out"), b"", false).unwrap();
    assert_eq!(names(&dir), [".other.partial-old", ".out.partial-new", "out"]);
}

#[test]
fn unwritable_parent_is_an_error_that_names_it() {
    let (_keep, dir) = temp();
    fs::write(dir.join("file"), b"x").unwrap();
    assert!(message(export(&dir.join("file/out"), b"", false)).contains("file"));
    if cfg!(target_os = "linux") {
        assert!(message(export(Path::new("/proc/out"), b"", false)).starts_with("`/proc"));
    }
    let locked = dir.join("locked");
    fs::create_dir(&locked).unwrap();
    let mut permissions = locked.metadata().unwrap().permissions();
    permissions.set_readonly(true);
    fs::set_permissions(&locked, permissions).unwrap();
    if fs::write(locked.join("x"), b"").is_ok() {
        eprintln!("skipped: this user may write everywhere");
        return;
    }
    assert!(message(export(&locked.join("out"), b"", false)).contains("locked"));
}
