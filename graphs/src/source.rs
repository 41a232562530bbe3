//! Opening checkpoint files: regular files only, and only those the checkpoint owns.

use std::ffi::OsStr;
use std::fs::{self, File, FileType};
use std::io;
use std::path::{Path, PathBuf};

/// Why a checkpoint file was not opened.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// Nothing is there, or a link points nowhere.
    #[error("`{}`: expected a file, found nothing", path.display())]
    Missing {
        /// The path as given.
        path: PathBuf,
    },
    /// A directory, FIFO, socket or device sits where a file belongs.
    #[error("`{}`: expected a regular file, found a {kind}", path.display())]
    NotAFile {
        /// The path as given.
        path: PathBuf,
        /// What it is.
        kind: &'static str,
    },
    /// A link leads out of the checkpoint.
    #[error("`{}`: expected a link to a file inside `{}`, found `{}`", path.display(), root.display(), target.display())]
    Escapes {
        /// The path as given.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// The directory it may not leave.
        root: PathBuf,
    },
    /// The operating system refused.
    #[error("`{}`: {source}", path.display())]
    Io {
        /// The path as given.
        path: PathBuf,
        /// The refusal.
        source: io::Error,
    },
}

impl SourceError {
    fn io(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            _ => Self::Io { path, source },
        }
    }
}

/// A regular file, open for reading.
pub struct Opened {
    /// The file.
    pub file: File,
    /// Its size.
    pub bytes: u64,
}

/// Opens `path` when it is a regular file.
///
/// The kind is checked before opening, because opening a FIFO waits for a writer, and again on the open file.
///
/// # Errors
/// Nothing is there, something else than a regular file, or the system refuses.
pub fn open_regular(path: &Path) -> Result<Opened, SourceError> {
    let regular = |kind: FileType| {
        let path = path.to_path_buf();
        if kind.is_file() { Ok(()) } else { Err(SourceError::NotAFile { path, kind: name_of(kind) }) }
    };
    regular(fs::metadata(path).map_err(|e| SourceError::io(path, e))?.file_type())?;
    let file = File::open(path).map_err(|e| SourceError::io(path, e))?;
    let metadata = file.metadata().map_err(|e| SourceError::io(path, e))?;
    regular(metadata.file_type())?;
    Ok(Opened { file, bytes: metadata.len() })
}

fn name_of(kind: FileType) -> &'static str {
    #[cfg(unix)]
    {
        use std::os::unix::fs::FileTypeExt as _;
        if kind.is_fifo() {
            return "fifo";
        }
        if kind.is_socket() {
            return "socket";
        }
        if kind.is_char_device() || kind.is_block_device() {
            return "device";
        }
    }
    if kind.is_dir() { "directory" } else { "special file" }
}

/// The directory whose files the component directory `dir` may link to.
///
/// That is the checkpoint, the parent of `dir`; in a Hugging Face cache
/// (`models--owner--name/snapshots/<revision>`, whose files are links to `../../../blobs/<hash>`) it is the whole
/// repository folder `models--owner--name`.
///
/// # Errors
/// The checkpoint is not there.
pub fn root_of(dir: &Path) -> Result<PathBuf, SourceError> {
    let absolute = std::path::absolute(dir).map_err(|e| SourceError::io(dir, e))?;
    let checkpoint = match (absolute.file_name(), absolute.parent()) {
        (Some(_), Some(parent)) => parent.canonicalize(),
        _ => absolute.canonicalize().map(|real| real.parent().unwrap_or(&real).to_path_buf()),
    };
    let checkpoint = checkpoint.map_err(|e| SourceError::io(dir, e))?;
    Ok(cache_repository(&checkpoint).unwrap_or(&checkpoint).to_path_buf())
}

/// `models--owner--name` when `checkpoint` is one of its snapshots.
fn cache_repository(checkpoint: &Path) -> Option<&Path> {
    let snapshots = checkpoint.parent()?;
    let repository = snapshots.parent()?;
    let named = repository.file_name()?.as_encoded_bytes().starts_with(b"models--");
    (named && snapshots.file_name() == Some(OsStr::new("snapshots"))).then_some(repository)
}

/// Where `path` really is, when that is inside `root` (which is canonical).
///
/// # Errors
/// Nothing is there, or it is elsewhere.
pub fn resolve_inside(path: &Path, root: &Path) -> Result<PathBuf, SourceError> {
    let target = path.canonicalize().map_err(|e| SourceError::io(path, e))?;
    if target.starts_with(root) {
        return Ok(target);
    }
    Err(SourceError::Escapes { path: path.to_path_buf(), target, root: root.to_path_buf() })
}
