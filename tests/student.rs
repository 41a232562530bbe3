//! Students: what is cut, that nothing is lost where nothing is, healing, and what is refused.

mod common;
mod scene;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use cogvx::export::ExportOptions;
use cogvx::pipeline::{Observer, Pipeline, Prompt, Stage};
use cogvx::rng::TorchGenerator;
use cogvx::stats::Meter;
use cogvx::student::{self, LayerChoice, Options, Report, Runs};
use cogvx_calibration::metrics::difference;
use ndarray::{ArrayD, IxDyn};

use common::{bundle_of, cogvx, entries, fixture, fresh_folder, pipeline, root, said};
use scene::{Scene, Tensors, read_tensors};

const TRANSFORMER: &str = "transformer/diffusion_pytorch_model.safetensors";

fn tensors(checkpoint: &Path) -> Tensors {
    read_tensors(&checkpoint.join(TRANSFORMER))
}

fn made(teacher: &Path, output: &Path, options: &Options) -> Report {
    student::make(teacher, output, options, &mut |_| {}).unwrap_or_else(|e| panic!("{}: {e}", teacher.display()))
}

fn runs(prompts: &[&str], steps: usize) -> Runs {
    let prompts = prompts.iter().map(|text| Prompt { text: text.to_string(), image: None }).collect();
    Runs { prompts, seed: 0, steps, guidance: 3.0, size: [None; 3] }
}

/// What the transformer of a checkpoint predicts of some numbers.
fn prediction(checkpoint: &Path) -> ArrayD<f32> {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(checkpoint, folder.path(), &ExportOptions::default());
    let pipeline = pipeline(&bundle);
    let request = pipeline.request("").expect("a model of the family");
    let frames = pipeline.dit.sample_grid()[0].next_multiple_of(pipeline.dit.patch_size_t.unwrap_or(1));
    let scale = pipeline.vae.spatial_compression_ratio();
    let sizes = [1, frames, pipeline.dit.in_channels, request.height / scale, request.width / scale];
    let numbers = |shape: &[usize], seed| {
        let numbers = TorchGenerator::new(seed).randn(shape.iter().product());
        ArrayD::from_shape_vec(IxDyn(shape), numbers).expect("as many")
    };
    let text = numbers(&[1, pipeline.dit.max_text_seq_length, pipeline.dit.text_embed_dim], 2);
    let mut transformer = pipeline.transformer().expect("a transformer");
    transformer.predict(&numbers(&sizes, 1), &text, 499).expect("a prediction")
}

fn relative(found: &ArrayD<f32>, expected: &ArrayD<f32>) -> f64 {
    let flat = |x: &ArrayD<f32>| x.iter().copied().collect::<Vec<_>>();
    difference(&flat(found), &flat(expected)).relative_l2
}

/// Bytes of one number.
fn size_of(dtype: &str) -> usize {
    if dtype == "F32" { 4 } else { 2 }
}

/// A tensor whose rows are `rows` of another's, none standing for zeros.
fn with_rows(
    (dtype, shape, bytes): &(String, Vec<usize>, Vec<u8>),
    rows: &[Option<usize>],
) -> (String, Vec<usize>, Vec<u8>) {
    let row = shape[1..].iter().product::<usize>() * size_of(dtype);
    let of = |at: &Option<usize>| at.map_or(vec![0; row], |at| bytes[at * row..][..row].to_vec());
    let shape = [&[rows.len()], &shape[1..]].concat();
    (dtype.clone(), shape, rows.iter().flat_map(of).collect())
}

/// The same of a matrix's columns.
fn with_columns(
    (dtype, shape, bytes): &(String, Vec<usize>, Vec<u8>),
    columns: &[Option<usize>],
) -> (String, Vec<usize>, Vec<u8>) {
    let size = size_of(dtype);
    let of = |row: &[u8], at: &Option<usize>| at.map_or(vec![0; size], |at| row[at * size..][..size].to_vec());
    let rows = bytes.chunks_exact(shape[1] * size);
    let bytes = rows.flat_map(|row| columns.iter().flat_map(|at| of(row, at)).collect::<Vec<_>>()).collect();
    (dtype.clone(), vec![shape[0], columns.len()], bytes)
}

#[test]
fn students_of_every_kind_export_and_run() {
    let folder = fresh_folder();
    let cases = [
        // Teacher, blocks, heads, feed-forwards, time embedding.
        ("student", Some(2), Some(4), Some(30), Some(8)),
        ("2b-fp32", Some(1), None, None, Some(24)),
        ("2b-fp32", None, Some(1), None, Some(10)),
        ("2b-fp16-sharded", Some(1), None, None, None),
        ("5b", Some(1), Some(2), None, None),
        ("1.5-5b", None, Some(1), None, Some(7)),
        ("1.5-i2v", None, None, Some(100), None),
        ("5b-i2v", Some(1), Some(1), Some(3), None),
    ];
    for (i, (teacher, layers, heads, ffn, time_embed)) in cases.into_iter().enumerate() {
        let output = folder.path().join(format!("student-{i}"));
        let layers = layers.map_or(LayerChoice::All, LayerChoice::Count);
        let report =
            made(&fixture(teacher), &output, &Options { layers, heads, ffn, time_embed, ..Options::default() });
        let found = prediction(&output);
        assert!(found.iter().all(|x| x.is_finite()), "{teacher}");
        let shape = report.student.shape;
        assert!(heads.is_none_or(|n| n == shape.heads) && ffn.is_none_or(|n| n == shape.ffn), "{teacher}: {shape:?}");
        let elements: usize = tensors(&output).values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
        assert_eq!(report.student.parameters, elements as u64, "{teacher}");
        assert!(report.student.parameters < report.teacher.parameters, "{teacher}");
    }
}

#[test]
fn feed_forward_channels_that_nobody_reads_are_the_ones_that_go() {
    let scene = Scene::new("2b-fp32");
    let teacher = scene.path("CKPT");
    let expected = tensors(&teacher);
    // After every channel one whose weight on the way out is zero.
    let twice = |n: usize| (0..2 * n).map(|i| Some(i / 2)).collect::<Vec<_>>();
    let with_zeros = |n: usize| (0..2 * n).map(|i| (i % 2 == 0).then_some(i / 2)).collect::<Vec<_>>();
    let mut inner = 0;
    scene.tensors(&format!("CKPT/{TRANSFORMER}"), |tensors| {
        for (name, tensor) in tensors {
            if name.contains("ff.net.0.proj") {
                *tensor = with_rows(tensor, &twice(tensor.1[0]));
            } else if name.ends_with("ff.net.2.weight") {
                inner = tensor.1[1];
                *tensor = with_columns(tensor, &with_zeros(inner));
            }
        }
    });
    let report = made(&teacher, &scene.path("OUT"), &Options { ffn: Some(inner), ..Options::default() });
    assert!(tensors(&scene.path("OUT")) == expected, "the weights that were there first");
    assert!(report.loads_in_diffusers);
    assert_eq!(report.layers, [0, 1]);
}

#[test]
fn heads_and_channels_that_nobody_reads_are_the_ones_that_go() {
    let scene = Scene::new("5b");
    let teacher = scene.path("CKPT");
    let (before, expected) = (prediction(&teacher), tensors(&teacher));
    let (heads, head) = (3, 16);
    let width = heads * head;
    // Every channel comes twice, so that norms see the same; the second one nobody reads.
    let twice = |parts: usize| {
        (0..parts).flat_map(|part| (0..2 * width).map(move |i| Some(part * width + i % width))).collect::<Vec<_>>()
    };
    let unread: Vec<_> = (0..2 * width).map(|i| (i < width).then_some(i)).collect();
    // Between the waves of the narrower model lie those that only the wider one has.
    let waves: Vec<_> = (0..2 * width).map(|i| (i % 2 == 0).then_some(i / 2)).collect();
    scene.tensors(&format!("CKPT/{TRANSFORMER}"), |tensors| {
        for (name, tensor) in tensors {
            let name = name.as_str();
            let any = |ends: &[&str]| ends.iter().any(|end| name.contains(end));
            if any(&["attn1.norm_", "time_embedding.linear_2", "linear_1.bias", "proj_out.bias", "ff.net.0.proj.bias"])
            {
            } else if any(&["time_embedding.linear_1.weight"]) {
                *tensor = with_columns(tensor, &waves);
            } else if any(&["proj_out.weight", "ff.net.0.proj.weight"]) {
                *tensor = with_columns(tensor, &unread);
            } else if any(&["norm1.linear", "norm2.linear"]) {
                *tensor = with_rows(tensor, &twice(6));
            } else if any(&["norm_out.linear"]) {
                *tensor = with_rows(tensor, &twice(2));
            } else {
                *tensor = with_rows(tensor, &twice(1));
                if any(&["to_q.weight", "to_k.weight", "to_v.weight", "to_out.0.weight"]) {
                    *tensor = with_columns(tensor, &unread);
                }
            }
        }
    });
    scene.set("CKPT/transformer/config.json", "num_attention_heads", 2 * heads);
    let whole = prediction(&teacher);
    assert!(relative(&whole, &before) < 1e-5, "twice as wide is the same: {}", relative(&whole, &before));
    let options = Options { heads: Some(heads), ffn: Some(4 * width), ..Options::default() };
    let report = made(&teacher, &scene.path("OUT"), &options);
    let found = tensors(&scene.path("OUT"));
    for (name, tensor) in &expected {
        let same = &found[name] == tensor || name.starts_with("time_embedding.linear_1");
        assert!(same, "{name}");
    }
    assert!(report.time_error < 0.01, "{}", report.time_error);
    let after = prediction(&scene.path("OUT"));
    assert!(relative(&after, &before) < 0.01, "{}", relative(&after, &before));
}

#[test]
fn a_block_that_does_nothing_is_the_one_that_measuring_drops() {
    let scene = Scene::new("2b-fp32");
    let teacher = scene.path("CKPT");
    let expected = tensors(&teacher);
    // A copy of the first block between both, with its gates closed.
    scene.tensors(&format!("CKPT/{TRANSFORMER}"), |tensors| {
        let of = |block: &str| {
            let prefix = format!("transformer_blocks.{block}.");
            expected.iter().filter(move |(name, _)| name.starts_with(&prefix))
        };
        let renamed =
            |name: &str, to: &str| format!("transformer_blocks.{to}.{}", &name["transformer_blocks.0.".len()..]);
        for (name, tensor) in of("1") {
            tensors.insert(renamed(name, "2"), tensor.clone());
        }
        for (name, tensor) in of("0") {
            let mut tensor = tensor.clone();
            if name.contains("norm1.linear") || name.contains("norm2.linear") {
                tensor.2.fill(0);
            }
            tensors.insert(renamed(name, "1"), tensor);
        }
    });
    scene.set("CKPT/transformer/config.json", "num_layers", 3);
    let options = Options { layers: LayerChoice::Count(2), runs: Some(runs(&["a boat"], 2)), ..Options::default() };
    let report = made(&teacher, &scene.path("OUT"), &options);
    assert_eq!(report.layers, [0, 2]);
    assert!(report.without[1] < 1e-6 && report.without[0] > 1e-3, "{:?}", report.without);
    assert!(tensors(&scene.path("OUT")) == expected);
}

#[test]
fn what_is_not_cut_is_linked_or_copied() {
    use std::os::unix::fs::MetadataExt as _;
    let scene = Scene::new("2b-fp32");
    for (name, mode, links) in [("linked", "link", 2), ("copied", "copy", 1)] {
        let said = scene.run(&format!("cogvx student CKPT --output {name} --layers 1 --weights {mode}"));
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let vae = scene.path(name).join("vae/diffusion_pytorch_model.safetensors");
        assert_eq!(fs::metadata(&vae).expect("there").nlink(), links, "{name}");
        scene.remove(name);
    }
    // The teacher is as it was.
    assert!(tensors(&scene.path("CKPT")) == tensors(&fixture("2b-fp32")));
}

/// Collects latents.
struct Nothing;

impl Observer for Nothing {
    fn stage(&mut self, _: Stage) {}

    fn frames(&mut self, _: ArrayD<f32>, _: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

fn latents(checkpoint: &Path, prompt: &str, seed: u64) -> ArrayD<f32> {
    let folder = fresh_folder();
    let (bundle, _) = bundle_of(checkpoint, folder.path(), &ExportOptions::default());
    let pipeline: Pipeline = pipeline(&bundle);
    let mut request = pipeline.request(prompt).expect("a model of the family");
    (request.seed, request.steps, request.guidance) = (seed, 10, 3.0);
    pipeline.latents(&request, &mut Nothing).expect("latents")
}

#[test]
fn healing_brings_a_student_nearer_to_its_teacher_on_prompts_that_it_has_not_seen() {
    let folder = fresh_folder();
    let teacher = root().join("examples/shapes-model");
    let prompts = fs::read_to_string(teacher.join("prompts.txt")).expect("prompts");
    let prompts: Vec<_> = prompts.lines().take(6).collect();
    let options = |heal| Options {
        ffn: Some(384),
        time_embed: Some(32),
        runs: Some(runs(&prompts, 6)).filter(|_| heal),
        heal,
        threads: 1,
        ..Options::default()
    };
    let [cut, healed] = [("cut", false), ("healed", true)].map(|(name, heal)| {
        let output = folder.path().join(name);
        (made(&teacher, &output, &options(heal)), output)
    });
    let [before, after] = healed.0.healed.expect("it was healed");
    assert!(after < 0.5 * before, "{before} {after}");
    let unseen = "a red circle moving left";
    assert!(!prompts.contains(&unseen));
    let expected = latents(&teacher, unseen, 100);
    let [cut, healed] = [cut, healed].map(|(_, path)| relative(&latents(&path, unseen, 100), &expected));
    assert!(healed < 0.5 * cut, "{cut} {healed}");
}

#[test]
fn a_quarter_of_the_time_embedding_is_nearly_all_of_it() {
    let folder = fresh_folder();
    let teacher = root().join("examples/shapes-model");
    let output = folder.path().join("student");
    let report = made(&teacher, &output, &Options { time_embed: Some(32), ..Options::default() });
    assert!(report.time_error < 0.08, "{}", report.time_error);
    let error = relative(&prediction(&output), &prediction(&teacher));
    assert!(error < 0.02, "{error}");
}

#[test]
fn targets_are_what_the_teacher_predicts() {
    let scene = Scene::new("2b-fp32");
    let said = scene.run("cogvx student CKPT --dump-targets targets --samples 2 --steps 3 --features 0,1");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(scene.path("targets/index.json")).expect("an index")).expect("JSON");
    assert_eq!((&index["format"], index["runs"].as_array().map(Vec::len)), (&"cogvx-targets".into(), Some(2)));
    let run = read_tensors(&scene.path("targets/run-001.safetensors"));
    let names: Vec<_> = run.keys().map(String::as_str).collect();
    let blocks = ["block.0.text", "block.0.video", "block.1.video"];
    assert_eq!(names, [&blocks[..], &["latents", "prediction", "text", "timesteps"]].concat());
    let numbers = |name: &str, step: usize| {
        let (_, shape, bytes) = &run[name];
        let shape = if name == "text" { shape } else { &shape[1..] };
        let all: Vec<_> = bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        let size = shape.iter().product::<usize>();
        ArrayD::from_shape_vec(IxDyn(shape), all[step * size..][..size].to_vec()).expect("as many")
    };
    let (bundle, _) = bundle_of(&scene.path("CKPT"), scene.root(), &ExportOptions::default());
    let pipeline = pipeline(&bundle);
    let latents = numbers("latents", 2);
    let latents = ndarray::stack(ndarray::Axis(0), &[latents.view(), latents.view()]).expect("two");
    let timestep = i64::from_le_bytes(run["timesteps"].2.as_chunks::<8>().0[2]);
    let mut transformer = pipeline.transformer().expect("a transformer");
    let found = transformer.predict(&latents, &numbers("text", 0), timestep).expect("a prediction");
    assert!(relative(&found, &numbers("prediction", 2)) < 1e-5);
}

#[test]
fn sizes_come_near_to_what_is_asked_for() {
    let scene = Scene::new("2b-fp32");
    let said = scene.run("cogvx student CKPT --target-params 30K --json");
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let json: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
    let (options, chosen) = (&json["sizes"]["options"], json["sizes"]["chosen"].as_u64().expect("a number"));
    let shape = &options[usize::try_from(chosen).expect("small")]["shape"];
    let said = scene.run("cogvx student CKPT --target-params 30K --output OUT --json");
    let json: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
    assert_eq!(&json["student"]["student"]["shape"], shape);
    // diffusers takes those that are listed unless asked for others; of half the feed-forwards there are as many.
    let loads = |json: &serde_json::Value| {
        let options = json["sizes"]["options"].as_array().expect("a list").iter();
        options.map(|costs| costs["loads_in_diffusers"].as_bool().expect("a boolean")).collect::<Vec<_>>()
    };
    assert!(loads(&json).iter().all(|&loads| loads), "{json:#}");
    let said = scene.run("cogvx student CKPT --target-params 25K --ffn free --json");
    let json: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
    let found = loads(&json);
    assert!(found.contains(&true) && found.contains(&false), "{json:#}");
    for costs in json["sizes"]["options"].as_array().expect("a list") {
        let [ffn, heads] = ["ffn", "heads"].map(|name| costs["shape"][name].as_u64().expect("a number"));
        // Of a teacher of two heads and feed-forwards of 128.
        assert_eq!(ffn, if costs["loads_in_diffusers"] == true { 64 * heads } else { 32 * heads }, "{costs:#}");
    }
    let said = scene.run("cogvx student CKPT --target-params 25K --ffn free");
    assert!(said.stdout.contains("cogvx only") && said.stdout.contains("predicted speed"), "{}", said.stdout);
}

#[test]
fn what_makes_no_sense_is_refused_in_a_line() {
    let scene = Scene::new("2b-fp32");
    let refused = |command: &str, expected: &str| {
        let before = scene.names();
        let said = scene.run(&format!("cogvx student {command}"));
        assert_eq!(said.code, Some(2), "{command}: {}", said.stderr);
        let line = said.stderr.lines().find(|line| line.starts_with("error: ")).unwrap_or_default();
        assert_eq!(line, format!("error: {expected}"), "{command}");
        assert_eq!(scene.names(), before, "{command}");
    };
    let same = "expected a student smaller than its teacher, found the teacher's own 2 layers, 2 heads, feed-forwards of 128 and \
                time embedding of 24: give `--layers`, `--layer-map`, `--heads`, `--ffn`, `--time-embed` or `--target-params`";
    refused("CKPT --output OUT", same);
    refused("CKPT --output OUT --heads 2 --layers 2", same);
    refused("CKPT --output OUT --heads 3", "`--heads`: expected 1 to 2, the teacher's, found 3");
    refused("CKPT --output OUT --heads 0", "`--heads`: expected 1 to 2, the teacher's, found 0");
    refused("CKPT --output OUT --layers 3", "`--layers`: expected 1 to 2, the teacher's, found 3");
    refused("CKPT --output OUT --layers 0", "`--layers`: expected 1 to 2, the teacher's, found 0");
    refused("CKPT --output OUT --ffn 129", "`--ffn`: expected 1 to 128, the teacher's, found 129");
    let alone = "`--ffn free`: expected `--target-params`, too, which says how large the student is to be";
    refused("CKPT --output OUT --ffn free", alone);
    refused("CKPT --output OUT --time-embed 25", "`--time-embed`: expected 1 to 24, the teacher's, found 25");
    for map in ["0,0", "1,0", "2", "0,1,2"] {
        let expected = format!("`--layer-map`: expected ascending layers of 0 to 1, each at most once, found `{map}`");
        refused(&format!("CKPT --output OUT --layer-map {map}"), &expected);
    }
    refused(
        "CKPT --target-params 1B",
        &format!(
            "`--target-params`: expected up to the teacher's {}, found 1000000000",
            parameters(&scene.path("CKPT"))
        ),
    );
    scene.folder("OUT");
    refused("CKPT --output OUT --layers 1", "`OUT`: expected nothing there, found something: choose another output");
    scene.remove("OUT");
    for (quantize, found) in [("", "a bundle"), (" --quantize int8-weight", "a quantized bundle")] {
        let said = scene.run(&format!("cogvx-export CKPT --output BUNDLE --overwrite{quantize}"));
        assert_eq!(said.code, Some(0), "{}", said.stderr);
        let expected = format!(
            "`BUNDLE`: expected a checkpoint, found {found}: make the student of the checkpoint that it was exported from"
        );
        refused("BUNDLE --output OUT --layers 1", &expected);
    }
    scene.tensors(&format!("CKPT/{TRANSFORMER}"), |tensors| {
        let (dtype, shape, bytes) = tensors.get_mut("proj_out.weight").expect("there");
        *dtype = "I8".into();
        bytes.truncate(shape.iter().product());
    });
    let expected = format!("`proj_out.weight`: expected floating-point numbers, found i8 (`CKPT/{TRANSFORMER}`)");
    refused("CKPT --output OUT --layers 1", &expected);
}

fn parameters(checkpoint: &Path) -> usize {
    tensors(checkpoint).values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum()
}

#[test]
fn image_models_are_run_from_images() {
    let scene = Scene::new("1.5-i2v");
    let image = scene::fixtures().join("references/1.5-i2v-even-input.png");
    fs::copy(image, scene.path("in.png")).expect("copied");
    let runs = "--image in.png --samples 2 --steps 3";
    let said = scene.run(&format!("cogvx student CKPT --output healed --ffn 150 --heal --json {runs}"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let report: serde_json::Value = serde_json::from_str(&said.stdout).expect("JSON");
    let [before, after] = [0, 1].map(|i| report["student"]["healed"][i].as_f64().expect("a number"));
    assert!(after < 0.5 * before, "{before} {after}");

    let said = scene.run(&format!("cogvx student CKPT --dump-targets targets {runs}"));
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let run = read_tensors(&scene.path("targets/run-001.safetensors"));
    let numbers = |name: &str, step: usize| {
        let (_, shape, bytes) = &run[name];
        let shape = if ["text", "image_latents"].contains(&name) { shape } else { &shape[1..] };
        let all: Vec<_> = bytes.as_chunks::<4>().0.iter().map(|x| f32::from_le_bytes(*x)).collect();
        let size = shape.iter().product::<usize>();
        ArrayD::from_shape_vec(IxDyn(shape), all[step * size..][..size].to_vec()).expect("as many")
    };
    // What the teacher predicts of latents, image and text as they were written.
    let (bundle, _) = bundle_of(&scene.path("CKPT"), scene.root(), &ExportOptions::default());
    let pipeline = pipeline(&bundle);
    let image = numbers("image_latents", 0);
    assert!(image.iter().any(|&x| x != 0.0));
    let latents = ndarray::concatenate![ndarray::Axis(1), numbers("latents", 2), image];
    let latents = ndarray::stack(ndarray::Axis(0), &[latents.view(), latents.view()]).expect("two");
    let timestep = i64::from_le_bytes(run["timesteps"].2.as_chunks::<8>().0[2]);
    let mut transformer = pipeline.transformer().expect("a transformer");
    let found = transformer.predict(&latents, &numbers("text", 0), timestep).expect("a prediction");
    assert!(relative(&found, &numbers("prediction", 2)) < 1e-5);

    let said = scene.run("cogvx student CKPT --output OUT --ffn 100 --time-embed 3");
    assert!(said.stderr.contains("which its offset embedding needs, found 3"), "{}", said.stderr);
    assert!(!scene.path("OUT").exists());
}

#[test]
fn an_interrupted_student_leaves_nothing() {
    let folder = fresh_folder();
    let options = Options { layers: LayerChoice::Count(1), ..Options::default() };
    let stop = options.stop.clone();
    let output = folder.path().join("new/student");
    let mut told = |_: &str| stop.store(true, std::sync::atomic::Ordering::SeqCst);
    let error = student::make(&fixture("2b-fp32"), &output, &options, &mut told).expect_err("it was stopped");
    assert!(matches!(error, student::StudentError::Stopped), "{error}");
    assert!(entries(folder.path()).is_empty());
}

#[test]
fn memory_does_not_grow_with_the_teacher() {
    let Some(mut meter) = Meter::start() else {
        println!("skipped: no `RssAnon` in /proc/self/status on this system");
        return;
    };
    let folder = fresh_folder();
    let synth = |layers: usize| {
        let output = folder.path().join(format!("teacher-{layers}"));
        let parts = vec![cogvx::synth::Part::Transformer];
        let options = cogvx::synth::Options { layers: Some(layers), parts, ..Default::default() };
        let model = cogvx::synth::Model::Published(cogvx::synth::Published::B2);
        cogvx::synth::synthesize(&model, &output, &options, |_| {}).unwrap_or_else(|e| panic!("{e}"));
        output
    };
    let mut peaks = BTreeMap::new();
    for layers in [1, 3] {
        let teacher = synth(layers);
        let before = meter.lap();
        let options = Options { heads: Some(15), time_embed: Some(64), ..Options::default() };
        made(&teacher, &folder.path().join(format!("student-{layers}")), &options);
        let peak = meter.lap();
        println!("{layers} layers: {} MB, before {} MB", peak.anonymous >> 20, before.anonymous >> 20);
        peaks.insert(layers, peak.anonymous);
    }
    // Three layers have 340 MB of weights.
    assert!(peaks[&3] < peaks[&1] + (16 << 20), "{peaks:?}");
    assert!(peaks[&3] < 200 << 20, "{peaks:?}");
}

fn copied(from: &Path, to: &Path) {
    fs::create_dir(to).expect("a new folder");
    for path in entries(from) {
        let target = to.join(path.file_name().expect("a name"));
        if path.is_dir() { copied(&path, &target) } else { fs::copy(&path, &target).map(drop).expect("a copy") }
    }
}

#[test]
fn the_committed_student_is_diffusers_own_shape_and_shows_what_is_asked_for() {
    let folder = fresh_folder();
    let (teacher, student) = (root().join("examples/shapes-model"), folder.path().join("student"));
    copied(&teacher, &student);
    fs::remove_dir_all(student.join("transformer")).expect("a copy");
    copied(&root().join("examples/shapes-student/transformer"), &student.join("transformer"));
    let sizes = |checkpoint| tensors(checkpoint).values().map(|(_, shape, _)| shape.iter().product::<usize>()).sum();
    let [own, theirs]: [usize; 2] = [&student, &teacher].map(|checkpoint| sizes(checkpoint));
    assert!(2 * own < theirs, "{own} of {theirs}");
    for (name, (dtype, shape, _)) in tensors(&student) {
        assert_eq!(dtype, "F16", "{name}");
        if name.ends_with("ff.net.2.weight") {
            assert_eq!(shape[1], 4 * shape[0], "{name}");
        }
    }
    let mut command = cogvx();
    command.arg("quality").arg(&student).arg("--against").arg(&teacher).arg("--prompts");
    command.arg(teacher.join("quality-prompts.txt")).args(["--samples", "3", "--seed", "100", "--guidance", "3"]);
    let output = command.args(["--threads", "1", "--json"]).output().expect("cogvx starts");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(report["summary"]["accuracy"]["all"], 1.0, "{:#}", report["summary"]);
}
