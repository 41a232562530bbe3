//! CUDA and cuDNN: found on the system or in Python's packages, and loaded before ONNX Runtime asks for them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::DeviceError;

/// cuDNN's library. Without it there is no convolution on a GPU.
pub(super) const CUDNN: &str = "libcudnn.so.9";
/// What gives a system without CUDA the libraries.
pub(super) const INSTALL: &str = "python3 -m pip install \"onnxruntime-gpu[cuda,cudnn]==1.31.1\"";
/// What gives it TensorRT's, of the version that ONNX Runtime is built for.
pub(super) const INSTALL_TENSORRT: &str =
    "python3 -m pip install tensorrt-cu13==10.14.1.48 --extra-index-url https://pypi.nvidia.com";

/// What ONNX Runtime's CUDA provider is linked with, each after those it needs itself, and cuDNN, which it opens later. Those
/// that NVIDIA's driver brings are never in a Python package.
const CUDA: [&str; 6] =
    ["libcuda.so.1", "libcudart.so.13", "libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", CUDNN];
/// What cuDNN opens to compile kernels; most convolutions do without.
const OPTIONAL: [&str; 1] = ["libnvrtc.so.13"];
/// What the TensorRT provider is linked with.
const TENSORRT: [&str; 3] = ["libnvinfer.so.10", "libnvinfer_plugin.so.10", "libnvonnxparser.so.10"];

/// Load what a GPU takes. What is not found is told by name, with the command that installs it.
pub(super) fn load(tensorrt: bool) -> Result<(), DeviceError> {
    if cfg!(not(target_os = "linux")) {
        // Elsewhere the system finds them, or says so itself.
        return Ok(());
    }
    let wanted = OPTIONAL.iter().chain(&CUDA).chain(TENSORRT.iter().filter(|_| tensorrt));
    let mut folders = Folders::default();
    let missing = wanted.filter(|name| !folders.load(name) && !OPTIONAL.contains(name)).map(|name| (*name).to_string());
    let missing: Vec<_> = missing.collect();
    if missing.is_empty() { Ok(()) } else { Err(DeviceError::libraries(missing)) }
}

/// Folders of libraries in Python's packages, looked for when the system has not all of them.
#[derive(Default)]
struct Folders(Option<Vec<PathBuf>>);

impl Folders {
    /// Load a library from where the system finds it, or from a Python package.
    fn load(&mut self, name: &str) -> bool {
        let opens = |path: &Path| ort::util::preload_dylib(path).is_ok();
        opens(Path::new(name)) || {
            let folders = self.0.get_or_insert_with(|| of_packages(&search_path()));
            folders.iter().map(|folder| folder.join(name)).any(|path| path.is_file() && opens(&path))
        }
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
        found.extend(Some(place.join("tensorrt_libs")).filter(|folder| folder.is_dir()));
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
        let path = [first.path().into(), "/nowhere".into(), second.path().into()];
        assert_eq!(of_packages(&path), [cuda, cudnn, tensorrt]);
    }

    #[test]
    fn what_pip_is_to_install_is_of_the_version_that_is_loaded() {
        assert!(INSTALL.ends_with(&format!("=={}\"", crate::runtime::VERSION)), "{INSTALL}");
    }

    #[test]
    fn what_is_nowhere_is_not_loaded() {
        assert!(!Folders(Some(vec!["/nowhere".into()])).load("libcogvx-nothing.so.1"));
    }
}
