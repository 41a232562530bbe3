//! A machine with a GPU that computes nothing (`tests/cuda/device.c`), for ONNX Runtime's real libraries.
#![allow(dead_code)] // No test uses all of it.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::common::{fresh_folder, root, said};

/// Where ONNX Runtime's CUDA provider is installed, a folder with it and libraries that compute nothing; or why there is none.
pub fn without_gpu() -> &'static Result<(TempDir, PathBuf), String> {
    static FOLDER: OnceLock<Result<(TempDir, PathBuf), String>> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
        let base = base.or_else(|| std::env::home_dir().map(|home| home.join(".cache"))).unwrap_or_default();
        let version = cogvx::runtime::VERSION;
        let folder = base.join(format!("cogvx/onnxruntime-gpu-{version}/onnxruntime/capi"));
        let library = folder.join(format!("libonnxruntime.so.{version}"));
        if !folder.join("libonnxruntime_providers_cuda.so").is_file() {
            return Err(format!(
                "skipped: {}: nothing there; `cogvx runtime --device cuda` installs it",
                folder.display()
            ));
        }
        let made = fresh_folder();
        for (define, name, version) in [
            ("CUDART", "libcudart.so.13", Some("libcudart.so.13")),
            ("CUBLAS", "libcublas.so.13", Some("libcublas.so.13")),
            ("CUBLASLT", "libcublasLt.so.13", Some("libcublasLt.so.13")),
            ("CURAND", "libcurand.so.10", None),
            ("CUDNN", "libcudnn.so.9", None),
            ("CUDA", "libcuda.so.1", None),
            ("NVML", "libnvidia-ml.so.1", None),
        ] {
            let mut cc = Command::new("cc");
            cc.args(["-shared", "-fPIC", "-w", &format!("-D{define}"), &format!("-Wl,-soname,{name}"), "-o"]);
            cc.arg(made.path().join(name)).arg(root().join("tests/cuda/device.c"));
            if let Some(version) = version {
                let map = made.path().join("map");
                fs::write(&map, format!("{version} {{ global: *; }};")).expect("a writable folder");
                cc.arg(format!("-Wl,--version-script={}", map.display()));
            }
            let output = cc.output().map_err(|e| format!("skipped: cc: {e}"))?;
            assert!(output.status.success(), "{}", said(&output));
        }
        Ok((made, library))
    })
}

/// A command that sees a GPU which computes nothing.
pub fn on_no_gpu(mut command: Command) -> Option<Command> {
    match without_gpu() {
        Ok((folder, library)) => {
            command.env("LD_LIBRARY_PATH", folder.path()).env("ORT_DYLIB_PATH", library);
            Some(command)
        }
        Err(why) => {
            println!("{why}");
            None
        }
    }
}

/// A command that sees an RTX GPU of this compute capability (89: 8.9) which computes nothing, and a Python with TensorRT-RTX; or why
/// there is none. ONNX Runtime looks for GPUs among the devices of the PCI bus: the command gets a list of its own of those.
pub fn on_no_rtx_gpu(program: &str, architecture: u32) -> Option<Command> {
    let python = std::env::var_os("COGVX_TENSORRT_PYTHON").map_or("python3".into(), PathBuf::from);
    let find =
        "import importlib.util as u; print('found' if u.find_spec('onnxruntime_ep_nv_tensorrt_rtx') else 'none')";
    let found = Command::new(&python).args(["-c", find]).output();
    if !found.is_ok_and(|output| output.stdout.starts_with(b"found")) {
        println!("skipped: {}: no `onnxruntime-ep-nv-tensorrt-rtx-cu13`", python.display());
        return None;
    }
    let apart = Command::new("unshare").args(["-rm", "true"]).stderr(Stdio::null()).status();
    if !apart.is_ok_and(|status| status.success()) || !PathBuf::from(BUS).is_dir() {
        println!("skipped: `unshare -rm` or `{BUS}`: expected a system that lets processes have mounts of their own");
        return None;
    }
    let mut command = Command::new("unshare");
    let script = format!("mount --bind \"$0\" {BUS} && exec \"$@\"");
    command.args(["-rm", "sh", "-c", &script]).arg(bus()).arg(program);
    command.env("COLUMNS", "100").env("FAKE_CUDA_ARCH", architecture.to_string()).stdin(Stdio::null());
    // cogvx asks `python3`.
    let folder = python.parent().filter(|folder| folder.is_dir()).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = folder.into_iter().chain(std::env::split_paths(&path));
    command.env("PATH", std::env::join_paths(folders).expect("folders"));
    on_no_gpu(command)
}

/// Where the devices of the PCI bus are.
const BUS: &str = "/sys/bus/pci/devices";

/// A PCI bus with one GPU of NVIDIA's.
fn bus() -> PathBuf {
    static FOLDER: OnceLock<TempDir> = OnceLock::new();
    let folder = FOLDER.get_or_init(|| {
        let folder = fresh_folder();
        let device = folder.path().join("0000:00:02.0");
        fs::create_dir(&device).expect("a folder");
        for (name, text) in [("class", "0x030200"), ("vendor", "0x10de"), ("device", "0x2684")] {
            fs::write(device.join(name), format!("{text}\n")).expect("a file");
        }
        folder
    });
    folder.path().into()
}
