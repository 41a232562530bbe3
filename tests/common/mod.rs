//! What the tests of the whole program share: the checkpoints, their references, exports and Python.

#![allow(dead_code)] // Each test program uses a part.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use cogvx::bundle::Bundle;
use cogvx::calibrate::{Keep, fingerprint, observe, save, vae_fingerprint};
use cogvx::export::{ExportOptions, Report, export};
use cogvx::picture;
use cogvx::pipeline::Pipeline;
use cogvx::rng::TorchGenerator;
use cogvx::runtime::{Device, Runtime};
use cogvx::verify::{Reference, Row, verify};
use cogvx_calibration::table::{Place, Run, Table};
use cogvx_graphs::Weights;
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

/// A checkpoint of the repository.
pub struct Checkpoint {
    /// What its references begin with: `2b-fp32`.
    pub name: String,
    pub path: PathBuf,
}

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

pub fn fixture(name: &str) -> PathBuf {
    root().join("tests/fixtures").join(name)
}

pub fn entries(folder: &Path) -> Vec<PathBuf> {
    let read = fs::read_dir(folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let mut paths: Vec<_> = read.map(|entry| entry.expect("a readable folder").path()).collect();
    paths.sort();
    paths
}

/// All checkpoints.
pub fn checkpoints() -> Vec<Checkpoint> {
    let name = |path: &Path| path.file_name().and_then(|n| n.to_str()).unwrap_or_default().to_string();
    let fixtures =
        entries(&root().join("tests/fixtures")).into_iter().map(|path| Checkpoint { name: name(&path), path });
    let shapes = Checkpoint { name: "shapes".into(), path: root().join("examples/shapes-model") };
    let all: Vec<_> = fixtures.filter(|c| c.path.join("model_index.json").is_file()).chain([shapes]).collect();
    assert!(all.len() >= 8, "expected the fixtures and the shapes model, found {}", all.len());
    all
}

/// References of what cogvx refuses: diffusers gives a model of learned positions sine positions where the number of frames
/// is not the learned one.
pub const REFUSED: [&str; 1] = ["5b-i2v-other"];

/// References made from `checkpoint`, those of video to video among them.
pub fn references(checkpoint: &Checkpoint) -> Vec<PathBuf> {
    let mut all = entries(&fixture("references"));
    // Of `5b` and `5b-i2v`, the longer name takes what begins with both.
    let others: Vec<_> =
        checkpoints().into_iter().map(|c| c.name).filter(|n| n.len() > checkpoint.name.len()).collect();
    let of = |name: &str, checkpoint: &str| name.strip_prefix(checkpoint).is_some_and(|case| case.starts_with('-'));
    all.retain(|path| {
        let name = stem(path).strip_prefix("v2v-").unwrap_or(stem(path));
        let is_reference = path.extension().is_some_and(|e| e == "safetensors") && !REFUSED.contains(&stem(path));
        is_reference && of(name, &checkpoint.name) && !others.iter().any(|other| of(name, other))
    });
    assert!(!all.is_empty(), "no references of {}", checkpoint.name);
    all
}

pub fn stem(path: &Path) -> &str {
    path.file_stem().and_then(|s| s.to_str()).unwrap_or_default()
}

/// A folder of the test's own, where weights of the repository can be linked.
pub fn fresh_folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).expect("a new folder")
}

/// Export to `folder/bundle`.
pub fn bundle_of(checkpoint: &Path, folder: &Path, options: &ExportOptions) -> (PathBuf, Report) {
    let bundle = folder.join("bundle");
    let report = export(checkpoint, &bundle, options, |_| {});
    (bundle, report.unwrap_or_else(|e| panic!("{}: {e}", checkpoint.display())))
}

/// A bundle ready to run on one thread.
pub fn pipeline(bundle: &Path) -> Pipeline {
    let runtime = Runtime::start(Device::Cpu, 1).expect("ONNX Runtime starts");
    Pipeline::open(Bundle::open(bundle).expect("a sound bundle"), runtime).expect("a sound bundle")
}

/// What `cogvx verify` finds.
pub fn compare(pipeline: &Pipeline, reference: &Path) -> Vec<Row> {
    let reference = Reference::open(reference).expect("a readable reference");
    verify(pipeline, &reference, |_| {}).unwrap_or_else(|e| panic!("{e}"))
}

/// Write the reference `from` with other bytes: `edit` gives those of a tensor, or `None` to leave the tensor out.
pub fn edited(from: &Path, to: &Path, edit: impl Fn(&str, &[u8]) -> Option<Vec<u8>>) {
    let bytes = fs::read(from).expect("a readable reference");
    let (_, header) = SafeTensors::read_metadata(&bytes).expect("a safetensors file");
    let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let kept: Vec<_> = tensors
        .iter()
        .filter_map(|(name, t)| Some((name.to_string(), t.dtype(), t.shape().to_vec(), edit(name, t.data())?)))
        .collect();
    let views = kept.iter().map(|(name, dtype, shape, data)| {
        (name.as_str(), TensorView::new(*dtype, shape.clone(), data).expect("as many bytes as before"))
    });
    safetensors::serialize_to_file(views, header.metadata().clone(), to).expect("a writable folder");
}

/// The numbers of an `f32` tensor changed.
pub fn floats(bytes: &[u8], change: impl Fn(f32) -> f32) -> Vec<u8> {
    let (numbers, _) = bytes.as_chunks::<4>();
    numbers.iter().flat_map(|&b| change(f32::from_le_bytes(b)).to_le_bytes()).collect()
}

/// A copy of a fixture in which `edit` has changed the numbers of some tensors of a weight file.
pub fn spoilt(fixture_name: &str, to: &Path, file: &str, edit: impl Fn(&str, f32) -> f32) -> PathBuf {
    let from = fixture(fixture_name);
    let mut folders = vec![from.clone()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder) {
            let target = to.join(path.strip_prefix(&from).expect("below the fixture"));
            if path.is_dir() {
                fs::create_dir_all(&target).expect("a folder");
                folders.push(path);
            } else if !target.exists() {
                fs::create_dir_all(target.parent().expect("a folder")).expect("a folder");
                fs::copy(&path, &target).expect("a copy");
            }
        }
    }
    let target = to.join(file);
    fs::remove_file(&target).expect("a copy");
    edited(&from.join(file), &target, |name, bytes| Some(floats(bytes, |x| edit(name, x))));
    to.into()
}

/// The real binary, without a terminal.
pub fn cogvx() -> Command {
    program(env!("CARGO_BIN_EXE_cogvx"))
}

pub fn program(path: &str) -> Command {
    let mut command = Command::new(path);
    command.env("COLUMNS", "100").stdin(Stdio::null());
    command
}

/// All that a command printed, but for what only the first command of a machine says.
pub fn said(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let text = format!("{out}{err}");
    text.split_inclusive('\n').filter(|line| !line.starts_with("installing ONNX Runtime ")).collect()
}

/// All ONNX files of a bundle.
pub fn graphs(bundle: &Path) -> Vec<PathBuf> {
    let manifest = Bundle::open(bundle).expect("a sound bundle").manifest().clone();
    manifest.components.values().flat_map(|c| &c.graphs).map(|g| bundle.join(&g.file)).collect()
}

/// Calibrate `checkpoint`, its VAE too, with two short runs; returns the table's path in `folder`.
pub fn calibrated(checkpoint: &Path, folder: &Path) -> PathBuf {
    let (observed, mut table) = observed(checkpoint);
    let pipeline = pipeline(&observed.path().join("bundle"));
    for (prompt, seed) in [("a red circle moving left", 0), ("a green square moving up", 1)] {
        let request = pipeline.request(prompt).expect("a model of the family");
        let size = [request.frames, request.height, request.width];
        let image = pipeline.takes_image().then(|| root().join("docs/red-circle.png"));
        let hash = image.as_deref().map(|path| picture::hash(path).expect("an image"));
        let run = Run { prompt: prompt.into(), seed, steps: 4, guidance: 3.0, size, vae: true, image: hash };
        let keep = Keep { ranges: 2, rows: 128 };
        observe(&pipeline, &mut table, (&run, image.as_deref()), keep, |_, _| {}).expect("a run");
    }
    saved(&table, folder)
}

/// A table of `checkpoint` with numbers made up, for graphs that are not run; returns its path in `folder`.
pub fn made_up(checkpoint: &Path, folder: &Path) -> PathBuf {
    let (_, mut table) = observed(checkpoint);
    for (component, stem) in [("text_encoder", "model"), ("transformer", "diffusion_pytorch_model")] {
        let weights = Weights::open(&checkpoint.join(component), stem).expect("sound weights");
        let places = table.layers.values().filter_map(|place| place.strip_prefix(component)?.strip_prefix('/'));
        for place in places {
            let width = weights.get(place).expect("a weight").shape[1];
            let mut made = Place { width, ..Place::default() };
            made.see(0, 1, &vec![-2.0; width], &vec![3.0; width]);
            made.sample(&TorchGenerator::new(1).randn(4 * width), 4);
            table.places.insert(format!("{component}/{place}"), made);
        }
    }
    table.ranges = 1;
    saved(&table, folder)
}

/// An export that shows what layers read, and an empty table for it.
fn observed(checkpoint: &Path) -> (TempDir, Table) {
    let folder = fresh_folder();
    let (_, report) =
        bundle_of(checkpoint, folder.path(), &ExportOptions { observe: Some(16), ..ExportOptions::default() });
    let vae = Some(vae_fingerprint(checkpoint).expect("a checkpoint"));
    let checkpoint = fingerprint(checkpoint, &[]).expect("a checkpoint");
    (folder, Table { checkpoint, vae, ranges: 2, layers: report.observed, ..Table::default() })
}

fn saved(table: &Table, folder: &Path) -> PathBuf {
    let path = folder.join("table.safetensors");
    save(table, &path).expect("a writable folder");
    path
}
