//! Where ONNX Runtime's shared library comes from.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::fs;
use std::io::{Write as _, stderr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The version cogvx is tested with.
pub const VERSION: &str = "1.31.1";

/// Where the library lies in its wheel.
const IN_WHEEL: &str = "onnxruntime/capi";

/// Names the library to use, whatever its version.
const OVERRIDE: &str = "ORT_DYLIB_PATH";

/// Why there is no library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[allow(missing_docs)]
pub enum LibraryError {
    #[error("`{OVERRIDE}`: expected a file, found nothing at `{}`", .0.display())]
    Override(PathBuf),
    #[error("no folder for ONNX Runtime: set `{OVERRIDE}` to its library, or `HOME`")]
    NoCache,
    #[error("ONNX Runtime {VERSION} was not found, and pip could not install it: {0}; set `{OVERRIDE}` to its library")]
    Install(String),
    #[error("`{}`: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Which build of ONNX Runtime is wanted, by the name of its Python package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Build {
    Cpu,
    Gpu,
}

impl Build {
    /// What pip is to install: the package, its version and the hashes of its wheels.
    fn requirement(self) -> &'static str {
        match self {
            Self::Cpu => include_str!("onnxruntime.txt"),
            Self::Gpu => include_str!("onnxruntime-gpu.txt"),
        }
    }

    fn package(self) -> &'static str {
        match self {
            Self::Cpu => "onnxruntime",
            Self::Gpu => "onnxruntime-gpu",
        }
    }

    /// Whether the library at `path` is there and of this build or a larger one.
    pub fn is_at(self, path: &Path) -> bool {
        let cuda = format!("{DLL_PREFIX}onnxruntime_providers_cuda{DLL_SUFFIX}");
        path.is_file() && (self == Self::Cpu || path.with_file_name(cuda).is_file())
    }
}

/// How a library was come by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// `ORT_DYLIB_PATH` names it.
    Environment,
    /// It lies beside the executable.
    Executable,
    /// It is in cogvx's cache.
    Cache,
    /// An installed Python package has it.
    Python,
    /// It was installed into the cache just now.
    Installed,
}

/// ONNX Runtime's shared library.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Library {
    /// The file.
    pub path: PathBuf,
    /// How it was come by.
    pub origin: Origin,
}

/// The library: the one that is [found](find); otherwise pip downloads the wheel into the cache, which takes no root and changes
/// no environment, and checks it against the hashes known here.
pub(super) fn find_or_install(build: Build) -> Result<Library, LibraryError> {
    if let Some(found) = find(build)? {
        return Ok(found);
    }
    let folder = folder(build)?;
    install(build, &folder)?;
    let path = folder.join(IN_WHEEL).join(file_name());
    if build.is_at(&path) {
        Ok(Library { path, origin: Origin::Installed })
    } else {
        Err(LibraryError::Install(format!("the wheel has no `{}`", file_name())))
    }
}

/// The library that `ORT_DYLIB_PATH` names, or one of [`VERSION`] beside the executable, in cogvx's cache or in Python's packages.
pub(super) fn find(build: Build) -> Result<Option<Library>, LibraryError> {
    let library = |origin, path| Ok(Some(Library { path, origin }));
    if let Some(path) = std::env::var_os(OVERRIDE).map(PathBuf::from) {
        return if path.is_file() { library(Origin::Environment, path) } else { Err(LibraryError::Override(path)) };
    }
    let executable = std::env::current_exe().ok();
    let beside = executable.as_deref().and_then(Path::parent).map(|folder| folder.join(file_name()));
    if let Some(path) = beside.filter(|path| build.is_at(path)) {
        return library(Origin::Executable, path);
    }
    let cached = folder(build)?.join(IN_WHEEL).join(file_name());
    if build.is_at(&cached) {
        return library(Origin::Cache, cached);
    }
    if let Some(path) = in_python().filter(|path| build.is_at(path)) {
        return library(Origin::Python, path);
    }
    Ok(None)
}

/// Where a build is installed.
fn folder(build: Build) -> Result<PathBuf, LibraryError> {
    Ok(cache()?.join(format!("{}-{VERSION}", build.package())))
}

fn file_name() -> String {
    match std::env::consts::OS {
        "windows" => "onnxruntime.dll".into(),
        "macos" => format!("libonnxruntime.{VERSION}.dylib"),
        _ => format!("libonnxruntime.so.{VERSION}"),
    }
}

/// cogvx's folder in the user's cache.
pub(super) fn cache() -> Result<PathBuf, LibraryError> {
    let variable = |name| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let base = variable("XDG_CACHE_HOME").filter(|p| p.is_absolute());
    let base = base.or_else(|| variable("LOCALAPPDATA")).or_else(|| variable("HOME").map(|home| home.join(".cache")));
    base.map(|b| b.join("cogvx")).ok_or(LibraryError::NoCache)
}

fn python() -> Option<Command> {
    let works = |name: &&'static str| {
        let mut command = Command::new(name);
        command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|s| s.success())
    };
    ["python3", "python"].into_iter().find(works).map(Command::new)
}

/// Where the library of an `onnxruntime` or `onnxruntime-gpu` that Python has would be, were it of the right version.
fn in_python() -> Option<PathBuf> {
    let find = "import importlib.util as u; s = u.find_spec('onnxruntime'); print(s.origin if s else '')";
    let output = python()?.args(["-c", find]).output().ok()?;
    let origin = PathBuf::from(String::from_utf8(output.stdout).ok()?.trim());
    Some(origin.parent()?.join("capi").join(file_name()))
}

/// Install the wheel beside `folder`, then rename it into place.
fn install(build: Build, folder: &Path) -> Result<(), LibraryError> {
    let mut pip = python().ok_or_else(|| LibraryError::Install("there is no `python3`".into()))?;
    let parent = folder.parent().unwrap_or(folder);
    let io = |source| LibraryError::Io { path: parent.into(), source };
    fs::create_dir_all(parent).map_err(io)?;
    let partial = tempfile::Builder::new().prefix(".onnxruntime-").tempdir_in(parent).map_err(io)?;
    // That nobody reads it is no reason to end.
    let _ = writeln!(stderr(), "installing ONNX Runtime {VERSION} with pip into {} (once)", folder.display());
    let requirement = tempfile::Builder::new().suffix(".txt").tempfile_in(parent).map_err(io)?;
    fs::write(requirement.path(), build.requirement()).map_err(io)?;
    let arguments =
        ["-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:"];
    pip.args(arguments).arg("--target").arg(partial.path()).arg("--require-hashes").arg("-r").arg(requirement.path());
    let output = pip.output().map_err(|e| LibraryError::Install(e.to_string()))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(LibraryError::Install(message.trim().lines().last().unwrap_or("no message").into()));
    }
    match fs::rename(partial.path(), folder) {
        Ok(()) => Ok(()),
        // Another process was faster.
        Err(_) if build.is_at(&folder.join(IN_WHEEL).join(file_name())) => Ok(()),
        Err(source) => Err(io(source)),
    }
}

/// Files of the libraries with these beginnings of names that this process has loaded; nothing where the system does not tell.
pub(super) fn loaded<'a>(names: &[&'a str]) -> Vec<(&'a str, PathBuf)> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let path = |line: &str| line.split_once('/').map(|(_, rest)| PathBuf::from(format!("/{rest}")));
    let paths: Vec<_> = maps.lines().filter_map(path).collect();
    let is_of =
        |path: &Path, name: &str| path.file_name().and_then(|f| f.to_str()).is_some_and(|f| f.starts_with(name));
    names.iter().filter_map(|name| Some((*name, paths.iter().find(|path| is_of(path, name))?.clone()))).collect()
}

#[cfg(test)]
mod tests {
    use super::{Build, VERSION, loaded};

    #[test]
    fn libraries_that_are_loaded_are_known_by_their_files() {
        let found = loaded(&["libc.so", "libcogvx-nothing.so"]);
        if cfg!(all(target_os = "linux", target_env = "gnu")) {
            assert!(found.len() == 1 && found[0].0 == "libc.so" && found[0].1.is_file(), "{found:?}");
        }
    }

    #[test]
    fn pip_is_asked_for_this_version_with_the_hash_of_each_wheel() {
        for build in [Build::Cpu, Build::Gpu] {
            let text = build.requirement();
            assert!(text.contains(&format!("\n{}=={VERSION} \\\n", build.package())), "{text}");
            let hashes: Vec<_> = text.lines().filter_map(|l| l.trim().strip_prefix("--hash=sha256:")).collect();
            let whole = |h: &&str| h.trim_end_matches(" \\").len() == 64;
            assert!(hashes.len() >= 16 && hashes.iter().all(whole), "{text}");
        }
    }
}
