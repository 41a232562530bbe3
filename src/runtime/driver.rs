//! CUDA, cuDNN and TensorRT: found on the system or in Python's packages, and loaded before ONNX Runtime asks for them.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{DeviceError, Setup};

/// cuDNN's library. Without it there is no convolution on a GPU.
pub(super) const CUDNN: &str = "libcudnn.so.9";
/// What gives a system without CUDA the libraries.
pub(super) const INSTALL: &str = "python3 -m pip install \"onnxruntime-gpu[cuda,cudnn]==1.31.1\"";
/// What gives it TensorRT's, of the version that ONNX Runtime is built for.
pub(super) const INSTALL_TENSORRT: &str =
    "python3 -m pip install tensorrt-cu13==10.14.1.48 --extra-index-url https://pypi.nvidia.com";
/// What gives it TensorRT-RTX and ONNX Runtime's provider for it, of the version that cogvx is tested with.
pub(super) const INSTALL_RTX: &str = "python3 -m pip install onnxruntime-ep-nv-tensorrt-rtx-cu13==0.5.0";

/// What ONNX Runtime's CUDA provider is linked with, each after those it needs itself, and cuDNN, which it opens later. Those
/// that NVIDIA's driver brings are never in a Python package.
const CUDA: [&str; 6] =
    ["libcuda.so.1", "libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", CUDNN];
/// What cuDNN opens to compile kernels; most convolutions do without.
const OPTIONAL: [&str; 1] = ["libnvrtc.so.13"];
/// What the TensorRT provider is linked with.
const TENSORRT: [&str; 3] = ["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"];
/// What the provider for TensorRT-RTX is linked with.
const RTX: [&str; 3] = ["libnvidia-ml.so.1", "libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1"];
/// That provider, which ONNX Runtime opens by its path.
const RTX_PROVIDER: &str = "libonnxruntime_providers_nv_tensorrt_rtx.so";

/// Load what a setup takes of a GPU. What is not found is told by name, with the command that installs it. The provider for
/// TensorRT-RTX is not loaded but found, where it is asked for.
pub(super) fn load(setup: &Setup) -> Result<Option<PathBuf>, DeviceError> {
    let more: &[&str] = match setup {
        Setup::Cpu(_) => return Ok(None),
        Setup::Cuda(_) => &[],
        Setup::TensorRt(_) => &TENSORRT,
        Setup::Rtx(_) => &RTX,
    };
    let is_rtx = matches!(setup, Setup::Rtx(_));
    if cfg!(not(target_os = "linux")) {
        // Elsewhere the system finds them, or says so itself.
        let file = format!("{DLL_PREFIX}onnxruntime_providers_nv_tensorrt_rtx{DLL_SUFFIX}");
        return Ok(is_rtx.then(|| file.into()));
    }
    let mut folders = Folders::default();
    let wanted = OPTIONAL.iter().chain(&CUDA).chain(more);
    let missing = wanted.filter(|name| !folders.load(name) && !OPTIONAL.contains(name)).map(|name| (*name).to_string());
    let mut missing: Vec<_> = missing.collect();
    let provider = if is_rtx { folders.find(RTX_PROVIDER).next() } else { None };
    missing.extend((is_rtx && provider.is_none()).then(|| RTX_PROVIDER.into()));
    if missing.is_empty() { Ok(provider) } else { Err(DeviceError::libraries(missing)) }
}

/// Folders of libraries in Python's packages, looked for when the system has not all of them.
#[derive(Default)]
struct Folders(Option<Vec<PathBuf>>);

impl Folders {
    /// Load a library from where the system finds it, or from a Python package.
    fn load(&mut self, name: &str) -> bool {
        let opens = |path: &Path| ort::util::preload_dylib(path).is_ok();
        opens(Path::new(name)) || self.find(name).any(|path| opens(&path))
    }

    /// The files of this name, or of it with more of a version.
    fn find(&mut self, name: &str) -> impl Iterator<Item = PathBuf> {
        let folders = self.0.get_or_insert_with(|| of_packages(&search_path()));
        let of_version = format!("{name}.");
        folders.iter().flat_map(move |folder| {
            let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
            let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
            let mut found: Vec<_> = names.filter(|n| *n == name || n.starts_with(&of_version)).collect();
            // The one of just this name first.
            found.sort();
            found.into_iter().map(|name| folder.join(name)).filter(|path| path.is_file()).collect::<Vec<_>>()
        })
    }
}

/// Where `python3` looks for packages.
fn search_path() -> Vec<PathBuf> {
    let print = "import sys; print('\\n'.join(sys.path))";
    let output = Command::new("python3").args(["-c", print]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().filter(|line| !line.is_empty()).map(PathBuf::from).collect()
}

/// Folders of NVIDIA's libraries among packages, in the order of the search path.
fn of_packages(search_path: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = vec![];
    for place in search_path {
        let packages = std::fs::read_dir(place.join("nvidia")).into_iter().flatten().flatten();
        // `nvidia/cu13/lib` has CUDA, `nvidia/cudnn/lib` cuDNN.
        let mut folders: Vec<_> = packages.map(|package| package.path().join("lib")).filter(|p| p.is_dir()).collect();
        folders.sort();
        found.append(&mut folders);
        let more = ["tensorrt_libs", "onnxruntime_ep_nv_tensorrt_rtx"].map(|package| place.join(package));
        found.extend(more.into_iter().filter(|folder| folder.is_dir()));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_looked_for_where_pip_puts_them() {
        let [first, second] = [tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder")];
        let made = |path: PathBuf| {
            std::fs::create_dir_all(&path).expect("a folder");
            path
        };
        let cuda = made(first.path().join("nvidia/cu13/lib"));
        let cudnn = made(first.path().join("nvidia/cudnn/lib"));
        made(first.path().join("nvidia/cudnn/include"));
        let tensorrt = made(second.path().join("tensorrt_libs"));
        let rtx = made(second.path().join("onnxruntime_ep_nv_tensorrt_rtx"));
        let path = [first.path().into(), "/nowhere".into(), second.path().into()];
        assert_eq!(of_packages(&path), [cuda, cudnn, tensorrt, rtx]);
    }

    #[test]
    fn what_pip_is_to_install_is_of_the_version_that_is_loaded() {
        assert!(INSTALL.ends_with(&format!("=={}\"", crate::runtime::VERSION)), "{INSTALL}");
    }

    #[test]
    fn a_library_is_found_by_its_name_with_more_of_its_version() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in ["libx.so.1.7.1", "libx.so.12", "libx.so", "liby.so.1", "liby.so.1.2"] {
            std::fs::write(folder.path().join(name), "").expect("a file");
        }
        let mut folders = Folders(Some(vec!["/nowhere".into(), folder.path().into()]));
        let mut found = |name: &str| {
            let files = folders.find(name).map(|path| path.file_name().unwrap_or_default().to_owned());
            files.collect::<Vec<_>>()
        };
        assert_eq!(found("libx.so.1"), ["libx.so.1.7.1"]);
        assert_eq!(found("liby.so.1"), ["liby.so.1", "liby.so.1.2"]);
        assert!(found("libz.so").is_empty());
    }

    #[test]
    fn what_is_nowhere_is_not_loaded() {
        assert!(!Folders(Some(vec!["/nowhere".into()])).load("libcogvx-nothing.so.1"));
    }
}
