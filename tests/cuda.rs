//! Graphs for CUDA, without a GPU: every node has a kernel in ONNX Runtime's CUDA provider, and where that provider's library is
//! installed (`cogvx runtime --device cuda`) the library itself says so, on a CUDA that computes nothing (`tests/cuda/device.c`).

mod common;
mod played;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use cogvx::export::{Component, ExportOptions, VideoShape};
use cogvx::runtime::{CudaOptions, Device, Input, Layout, Runtime, Setup, Traits};
use cogvx_calibration::plan::Scheme;
use cogvx_graphs::model::step::{self, Step};
use cogvx_graphs::onnx::{self, Model, Node, open, serialize, types};
use cogvx_graphs::pass::{self, Lower, Target};
use cogvx_graphs::{DType, Graph, dims};
use ndarray::{ArrayD, IxDyn};
use tempfile::TempDir;

use common::{Checkpoint, bundle_of, checkpoints, fixture, fresh_folder, graphs, program, root, said};
use played::{on_no_gpu, without_gpu};

/// A size that every fixture can be exported for.
const FIXED: VideoShape = VideoShape { frames: 9, height: 32, width: 48 };

/// Every export for CUDA that graphs differ in: precisions, open and fixed sizes, schemes of quantization.
fn exports(checkpoint: &Checkpoint) -> Vec<(String, ExportOptions)> {
    let precisions = [("fp16", DType::F16), ("bf16", DType::BF16), ("fp32", DType::F32)];
    let schemes = Scheme::ALL.into_iter().filter(|scheme| scheme.runs_on(Target::Cuda));
    let forms: Vec<_> = [None].into_iter().chain(schemes.map(Some)).collect();
    let mut all = vec![];
    for (name, precision) in precisions {
        for shapes in [None, Some(FIXED)] {
            for &quantize in &forms {
                let sizes = if shapes.is_some() { "fixed" } else { "open" };
                let scheme = quantize.map_or("float", Scheme::name);
                let mut options = ExportOptions { target: Target::Cuda, shapes, quantize, ..ExportOptions::default() };
                options.precision = Some(precision);
                if quantize.is_some() {
                    // The VAE stays as it is.
                    options.components = vec![Component::TextEncoder, Component::Transformer];
                }
                all.push((format!("{} {name} {sizes} {scheme}", checkpoint.name), options));
            }
        }
    }
    all
}

/// Each graph of the exports that are `wanted` by their names, with what it is called.
fn each_graph(wanted: impl Fn(&str) -> bool, mut look: impl FnMut(&str, &Path)) -> usize {
    let mut seen = 0;
    for checkpoint in checkpoints() {
        for (name, options) in exports(&checkpoint).into_iter().filter(|(name, _)| wanted(name)) {
            let folder = fresh_folder();
            let (bundle, _) = bundle_of(&checkpoint.path, folder.path(), &options);
            for path in graphs(&bundle) {
                let file = path.strip_prefix(&bundle).unwrap_or(&path);
                look(&format!("{name} {}", file.display()), &path);
                seen += 1;
            }
        }
    }
    seen
}

/// The graphs between two predictions, of every kind.
fn steps() -> Vec<(String, Vec<u8>)> {
    let kinds = [[false, false], [true, false], [false, true], [true, true]];
    let all = kinds.into_iter().flat_map(|kind| [0, 4].map(|image_channels| (kind, image_channels)));
    all.map(|([guided, stochastic], image_channels)| {
        let step = Step { latents: [1, 3, 4, 2, 6], image_channels, guided, stochastic };
        let lowered = pass::run(&mut Lower::new(Target::Cuda), &step::build(&step)).expect("a sound graph");
        let model = serialize(&lowered, "step", |_| Err("no weights")).expect("no weights");
        (format!("{step:?}"), model.bytes)
    })
    .collect()
}

/// What ONNX Runtime's CUDA provider has: `tests/cuda/kernels.tsv`.
struct Kernels {
    /// The versions of ONNX's operators.
    versions: BTreeMap<String, Vec<i64>>,
    /// Operator, version and types, such as `Gemm 13 f16,f16,f16>f16`.
    kernels: BTreeSet<String>,
}

impl Kernels {
    fn read() -> Self {
        let path = root().join("tests/cuda/kernels.tsv");
        let text = fs::read_to_string(&path).unwrap_or_default();
        let mut kernels = Self { versions: BTreeMap::new(), kernels: BTreeSet::new() };
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.split('\t').collect::<Vec<_>>()[..] {
                ["versions", op, versions] => {
                    let versions = versions.split(',').map(|v| v.parse().expect("a version")).collect();
                    kernels.versions.insert(op.into(), versions);
                }
                ["kernel", op, version, types] => drop(kernels.kernels.insert(format!("{op} {version} {types}"))),
                _ => panic!("{}: `{line}`", path.display()),
            }
        }
        kernels
    }

    /// An operator in the version that a graph of this opset means, with its types.
    fn wanted(&self, node: &Node, opset: i64, types: &HashMap<&str, DType>) -> String {
        let version = if node.domain.is_empty() {
            let versions = self.versions.get(&node.op_type).map(Vec::as_slice).unwrap_or_default();
            versions.iter().copied().filter(|&v| v <= opset).max().unwrap_or(0)
        } else {
            1
        };
        let op =
            if node.domain.is_empty() { node.op_type.clone() } else { format!("{}.{}", node.domain, node.op_type) };
        format!("{op} {version} {}", signature(node, types))
    }
}

/// Types of a node's inputs and of its first output: `f16,-,f16>f16`.
fn signature(node: &Node, types: &HashMap<&str, DType>) -> String {
    let of = |name: &String| types.get(name.as_str()).map_or("-".into(), DType::to_string);
    let inputs: Vec<_> = node.inputs.iter().map(of).collect();
    format!("{}>{}", inputs.join(","), of(&node.outputs[0]))
}

/// What of a graph has no kernel. Whole numbers that sizes are computed in are the processor's where sizes are open: ONNX
/// Runtime puts them there by itself.
fn without_kernel(kernels: &Kernels, model: &Model) -> BTreeSet<String> {
    let types = types(model);
    let open = model.nodes.iter().any(|node| node.op_type == "Shape");
    let sizes = |node: &Node| {
        let whole = |name: &String| types.get(name.as_str()).is_some_and(|t| *t == DType::I64);
        node.outputs.iter().all(whole) && (node.op_type == "Shape" || node.inputs.iter().all(whole))
    };
    let nodes = model.nodes.iter().filter(|node| !(open && sizes(node)));
    nodes.map(|node| kernels.wanted(node, model.opset, &types)).filter(|w| !kernels.kernels.contains(w)).collect()
}

#[test]
fn every_node_of_every_cuda_graph_has_a_kernel() {
    let kernels = Kernels::read();
    let mut wrong: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut look = |name: &str, model: &Model| {
        for wanted in without_kernel(&kernels, model) {
            wrong.entry(wanted).or_default().insert(name.into());
        }
    };
    let seen = each_graph(|_| true, |name, path| look(name, &open(path).unwrap_or_else(|e| panic!("{e}"))));
    assert!(seen > 500, "{seen} graphs");
    for (name, bytes) in steps() {
        look(&name, &onnx::read(Path::new("step.onnx"), &bytes).unwrap_or_else(|e| panic!("{e}")));
    }
    let mut text = String::new();
    for (wanted, names) in &wrong {
        let _ = writeln!(text, "{wanted}: {} graphs, first {:?}", names.len(), names.first());
    }
    assert!(wrong.is_empty(), "no kernel of ONNX Runtime's CUDA provider:\n{text}");
}

#[test]
fn what_has_no_kernel_is_found() {
    let kernels = Kernels::read();
    let model = |dtype: DType, target: Target, convolved: bool| {
        let graph = Graph::new();
        let x = graph.input("x", dtype, dims![1, 4, 2, 6, 6]);
        let y = if convolved { x.upsample([1, 1, 1, 2, 2]) } else { x.group_norm(2, 1e-5) };
        graph.output("y", y);
        let lowered = pass::run(&mut Lower::new(target), &graph).expect("a sound graph");
        let bytes = serialize(&lowered, "test", |_| Err("no weights")).expect("no weights").bytes;
        let mut model = onnx::read(Path::new("test.onnx"), &bytes).expect("what was written");
        // As beside a `Conv` of `bfloat16`.
        model.opset = 22;
        model
    };
    let missing: Vec<_> = without_kernel(&kernels, &model(DType::F32, Target::TensorRt, false)).into_iter().collect();
    assert_eq!(missing, ["InstanceNormalization 22 f32,f32,f32>f32"]);
    let missing: Vec<_> = without_kernel(&kernels, &model(DType::BF16, Target::Cpu, true)).into_iter().collect();
    assert_eq!(missing, ["Resize 19 bf16,-,f32>bf16"]);
}

/// One of the tests below, in a process of its own, where the libraries are found.
fn inside(test: &str) {
    let command = Command::new(std::env::current_exe().expect("this program"));
    if let Some(mut command) = on_no_gpu(command) {
        let output = command.args(["--exact", "--ignored", "--nocapture", test]).output().expect("this program runs");
        assert!(output.status.success() && said(&output).contains("1 passed"), "{}", said(&output));
    }
}

#[test]
fn onnx_runtime_finds_a_kernel_for_every_node() {
    inside("inside_every_graph_loads");
}

#[test]
#[ignore = "run by `onnx_runtime_finds_a_kernel_for_every_node`"]
fn inside_every_graph_loads() {
    let runtime = Runtime::start(Device::Cuda, 1).expect("the CUDA provider starts");
    let mut wrong = vec![];
    // All float graphs of fixed sizes, for which fallback to the processor is refused; the rest of two checkpoints.
    let wanted =
        |name: &str| name.contains(" fixed float") || name.starts_with("2b-fp32 ") || name.starts_with("5b-i2v ");
    let seen = each_graph(wanted, |name, path| {
        let model = open(path).unwrap_or_else(|e| panic!("{e}"));
        let traits = Traits::of(&model, Layout::Mapped);
        assert!(traits.fixed || !name.contains(" fixed "), "{name}");
        wrong.extend(runtime.load(path, traits).err().map(|e| format!("{name}: {e}")));
    });
    assert!(seen > 200, "{seen} graphs");
    let folder = fresh_folder();
    for (name, bytes) in steps() {
        let path = folder.path().join("step.onnx");
        fs::write(&path, bytes).expect("a writable folder");
        let traits = Traits { fixed: true, ..Traits::default() };
        wrong.extend(runtime.load(&path, traits).err().map(|e| format!("{name}: {e}")));
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn options_are_those_the_providers_know() {
    inside("inside_options_are_known");
    let Ok((_, library)) = without_gpu() else { return };
    let provider = fs::read(library.with_file_name("libonnxruntime_providers_tensorrt.so")).expect("a library");
    let source = fs::read_to_string(root().join("src/runtime/tensorrt.rs")).expect("its source");
    let keys: BTreeSet<_> = source.split('"').filter(|word| word.starts_with("trt_") && !word.contains('=')).collect();
    assert!(keys.len() > 12, "{keys:?}");
    for key in keys {
        let known = provider.windows(key.len()).any(|bytes| bytes == key.as_bytes());
        assert!(known, "{key}");
    }
}

#[test]
#[ignore = "run by `options_are_those_the_providers_know`"]
fn inside_options_are_known() {
    let cuda = CudaOptions { device: 0, memory_limit: Some(1 << 30), graphs: true };
    let runtime = Runtime::start(Setup::Cuda(cuda), 1).expect("the CUDA provider starts");
    let (_, bytes) = steps().swap_remove(0);
    let folder = fresh_folder();
    let path = folder.path().join("step.onnx");
    fs::write(&path, bytes).expect("a writable folder");
    let traits = Traits { fixed: true, convolves: true, repeats: true, ..Traits::default() };
    let session = runtime.load(&path, traits).unwrap_or_else(|e| panic!("{e}"));
    // The device's memory keeps what is put there.
    let numbers =
        ArrayD::from_shape_fn(IxDyn(&[2, 3]), |place| f32::from(u8::try_from(place[0] + 2 * place[1]).unwrap_or(0)));
    let mut there = session.resident(&[2, 3]).expect("room");
    there.put(&numbers.view()).expect("a copy");
    let mut back = vec![0.0; 6];
    there.get(&mut back).expect("a copy");
    assert_eq!(back, numbers.into_raw_vec_and_offset().0);
    let wrong = Runtime::start(Setup::Cuda(CudaOptions { device: 4, ..CudaOptions::default() }), 1);
    assert_eq!(wrong.err().map(|e| e.to_string().starts_with("`--device`")), Some(true));
}

#[test]
fn what_a_vae_hands_from_call_to_call_stays_on_the_device() {
    inside("inside_states_stay");
}

#[test]
#[ignore = "run by `what_a_vae_hands_from_call_to_call_stays_on_the_device`"]
fn inside_states_stay() {
    let runtime = Runtime::start(Device::Cuda, 1).expect("the CUDA provider starts");
    let graph = Graph::new();
    let x = graph.input("x", DType::F32, dims![2]);
    // A reshape is a copy, which even a device that computes nothing makes.
    graph.output("y", x.reshape(dims![1, 2]));
    graph.state_output("layer.cache", x.reshape(dims![2, 1]));
    let lowered = pass::run(&mut Lower::new(Target::Cuda), &graph).expect("a sound graph");
    let folder = fresh_folder();
    let path = folder.path().join("model.onnx");
    fs::write(&path, serialize(&lowered, "test", |_| Err("no weights")).expect("no weights").bytes).expect("a folder");
    let mut session = runtime.load(&path, Layout::Mapped).expect("a graph it knows");
    let x = ArrayD::from_shape_vec(IxDyn(&[2]), vec![3.0, 4.0]).expect("two numbers");
    let outputs = session.run_keeping(&[("x", Input::Float(x.view()))], ".cache").expect("a run");
    assert_eq!(outputs.array("y").expect("on the processor").into_raw_vec_and_offset().0, [3.0, 4.0]);
    let away = outputs.array("layer.cache").map(drop).map_err(|e| e.to_string());
    assert!(away.is_err(), "a cache came back to the processor");
}

/// A bundle for CUDA of fixed sizes.
fn fixed_bundle(folder: &TempDir, precision: DType) -> PathBuf {
    let mut options = ExportOptions { target: Target::Cuda, shapes: Some(FIXED), ..ExportOptions::default() };
    options.precision = Some(precision);
    bundle_of(&fixture("2b-fp32"), folder.path(), &options).0
}

#[test]
fn attention_takes_cudnn_s_kernel_in_16_bits_on_a_gpu_like_h200() {
    for precision in [DType::F16, DType::BF16] {
        let folder = fresh_folder();
        let Some(mut command) = on_no_gpu(program(env!("CARGO_BIN_EXE_cogvx"))) else { return };
        command.env("ORT_ENABLE_ATTENTION_KERNEL_DEBUG_INFO", "1").arg("bench").arg(fixed_bundle(&folder, precision));
        let output = command.args(["--repeat", "1"]).output().expect("cogvx runs");
        let text = said(&output);
        let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"=_".contains(c));
        let kernels: BTreeSet<_> = words.filter_map(|word| word.strip_prefix("SdpaKernel=")).collect();
        assert_eq!(Vec::from_iter(kernels), ["CUDNN_FLASH_ATTENTION"], "{precision}: {text}");
    }
}

/// What `cogvx run` says on a machine like this.
fn run_on(machine: Option<(&str, &str)>, arguments: &[&str]) -> Option<Output> {
    let folder = fresh_folder();
    let bundle = fixed_bundle(&folder, DType::F16);
    let mut command = on_no_gpu(program(env!("CARGO_BIN_EXE_cogvx")))?;
    command.envs(machine).arg("run").arg(bundle).args(["--prompt", "a fox"]);
    command.args(arguments).arg("--output").arg(folder.path().join("video.npy"));
    Some(command.output().expect("cogvx runs"))
}

#[test]
fn what_is_wrong_with_a_gpu_is_one_message_with_the_next_step() {
    let cases = [
        (Some(("FAKE_CUDA_ERROR", "35")), "error: the GPU: expected an NVIDIA driver for CUDA 13"),
        (Some(("FAKE_CUDA_ERROR", "100")), "error: the GPU: expected an NVIDIA GPU, found none"),
        (Some(("FAKE_CUDA_ERROR", "802")), "error: the GPU: CUDA failure 802: system not yet initialized"),
        (Some(("FAKE_CUDA_LAUNCH", "209")), "error: the GPU: expected one that ONNX Runtime 1.31.1 has kernels for"),
        (Some(("FAKE_CUDA_MB", "1")), "error: the GPU: expected more of its memory"),
        (None, "error: `--device`: expected a GPU that `nvidia-smi` lists, counted from 0, found 3"),
    ];
    for (machine, expected) in cases {
        let arguments: &[_] = if machine.is_none() { &["--device", "3"] } else { &["--steps", "1"] };
        let Some(output) = run_on(machine, arguments) else { return };
        let text = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{machine:?}: {text}");
        // Stages that went well are told before.
        assert!(text.trim().lines().last().is_some_and(|line| line.starts_with(expected)), "{machine:?}: {text}");
        assert_eq!(text.matches("error: ").count(), 1, "{machine:?}: {text}");
    }
}

/// Of two bundles the one for the processor comes first, and each library is where cogvx looks for it.
#[test]
fn a_bundle_for_the_processor_is_compared_with_one_for_cuda() {
    let [cpu, cuda] = [(); 2].map(|()| fresh_folder());
    let options = ExportOptions { shapes: Some(FIXED), ..ExportOptions::default() };
    let (bundle, _) = bundle_of(&fixture("2b-fp32"), cpu.path(), &options);
    let against = fixed_bundle(&cuda, DType::F32);
    let Some(mut command) = on_no_gpu(program(env!("CARGO_BIN_EXE_cogvx"))) else { return };
    command.env_remove("ORT_DYLIB_PATH").arg("bench").arg(&bundle).arg("--against").arg(&against);
    let output = command.args(["--component", "transformer", "--repeat", "1"]).output().expect("cogvx runs");
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    // What CUDA computes here is wrong, but it is there.
    let Some(mut command) = on_no_gpu(program(env!("CARGO_BIN_EXE_cogvx"))) else { return };
    command.env_remove("ORT_DYLIB_PATH").arg("quality").arg(&bundle).arg("--against").arg(&against);
    let output = command.args(["--steps", "1", "--samples", "1"]).output().expect("cogvx runs");
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
}

/// The processor has no kernels for them.
#[test]
fn graphs_for_tensorrt_in_bf16_are_tried_on_cuda_before_anything_is_built_of_them() {
    for checkpoint in ["2b-fp32", "5b-i2v"] {
        let folder = fresh_folder();
        let options =
            ExportOptions { target: Target::TensorRt, precision: Some(DType::BF16), ..ExportOptions::default() };
        let (bundle, _) = bundle_of(&fixture(checkpoint), folder.path(), &options);
        let Some(mut command) = on_no_gpu(program(env!("CARGO_BIN_EXE_cogvx"))) else { return };
        let output = command.arg("compile").arg(bundle).output().expect("cogvx runs");
        // All of them run; what comes of a device that computes nothing is told.
        let text = said(&output);
        assert!(output.status.code() == Some(1) && text.contains(": zero latents\n"), "{checkpoint}: {text}");
    }
}

/// Copies to and from the device and starts of recorded graphs, with the bytes, of a run of so many steps.
fn done(steps: usize, arguments: &[&str]) -> Option<Vec<(String, u64)>> {
    let folder = fresh_folder();
    let log = folder.path().join("log");
    let steps = steps.to_string();
    let arguments = [&["--steps", &steps], arguments].concat();
    let output = run_on(Some(("FAKE_CUDA_LOG", log.to_str()?)), &arguments)?;
    assert!(output.status.success(), "{}", said(&output));
    let text = fs::read_to_string(&log).expect("a log");
    let line = |line: &str| line.rsplit_once(' ').map(|(what, bytes)| (what.to_string(), bytes.parse().unwrap_or(0)));
    Some(text.lines().filter_map(line).collect())
}

#[test]
fn steps_send_a_few_numbers_up_and_nothing_down() {
    let all = |done: &[(String, u64)], what: &str| -> (u64, u64) {
        let bytes = done.iter().filter(|(done, _)| done == what).map(|(_, bytes)| bytes);
        bytes.fold((0, 0), |(count, sum), bytes| (count + 1, sum + bytes))
    };
    for sampler in ["ddim", "dpm"] {
        for recorded in [&[][..], &["--cuda-graph"]] {
            let arguments = [&["--scheduler", sampler], recorded].concat();
            let (Some(few), Some(many)) = (done(2, &arguments), done(6, &arguments)) else { return };
            let case = format!("{sampler} {recorded:?}");
            assert_eq!(all(&few, "copy 2"), all(&many, "copy 2"), "{case}: what came down");
            let up = (all(&many, "copy 1").1 - all(&few, "copy 1").1) / 4;
            // A timestep and eight factors, and with DPM noise: 3x4x4x6 latents.
            let noise = if sampler == "dpm" { 4 * 3 * 4 * 4 * 6 } else { 0 };
            assert!((36 + noise..=72 + 2 * noise).contains(&up), "{case}: {up} bytes a step");
            let starts = all(&many, "graph 0").0;
            assert_eq!(starts >= 6, !recorded.is_empty(), "{case}: {starts} starts of a recorded graph");
        }
    }
}

#[test]
fn libraries_that_are_missing_are_named_with_the_command_that_installs_them() {
    let folder = fresh_folder();
    let (bundle, _) =
        bundle_of(&fixture("2b-fp32"), folder.path(), &ExportOptions { target: Target::Cuda, ..Default::default() });
    let Some(mut command) = on_no_gpu(program(env!("CARGO_BIN_EXE_cogvx"))) else { return };
    let output = command
        .env_remove("LD_LIBRARY_PATH")
        .env("PYTHONPATH", "")
        .arg("run")
        .arg(bundle)
        .args(["--prompt", "a fox", "--output"])
        .arg(folder.path().join("video.npy"))
        .output()
        .expect("cogvx runs");
    let text = String::from_utf8_lossy(&output.stderr);
    if !text.contains("libcublas") {
        // A machine that has some of them.
        return println!("skipped: {text}");
    }
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.starts_with("error: the GPU: expected `libc"), "{text}");
    assert!(text.contains("`python3 -m pip install \"onnxruntime-gpu[cuda,cudnn]==1.31.1\"`"), "{text}");
}

#[test]
fn the_processor_takes_over_only_when_told_to() {
    let Some(output) = run_on(Some(("FAKE_CUDA_ERROR", "100")), &["--steps", "1", "--fallback", "cpu"]) else { return };
    let text = said(&output);
    assert!(output.status.success(), "{text}");
    assert!(
        text.contains("warning: the GPU: expected an NVIDIA GPU, found none") && text.contains("processor"),
        "{text}"
    );
}
