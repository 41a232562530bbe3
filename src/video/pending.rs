//! Files and folders that take their place when they are complete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::{NamedTempFile, TempDir};

use super::VideoError;
use crate::pending::{builder, parent};

/// A file written beside its target.
#[derive(Debug)]
pub(super) struct PendingFile {
    path: PathBuf,
    file: NamedTempFile,
}

impl PendingFile {
    pub(super) fn create(path: &Path) -> Result<Self, VideoError> {
        fs::metadata(parent(path)).map_err(|e| failed(path, e))?;
        let file = builder(0o666).tempfile_in(parent(path)).map_err(|e| failed(path, e.kind().into()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// The target.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn file(&mut self) -> &mut File {
        self.file.as_file_mut()
    }

    /// A second handle, for encoders that want to own theirs.
    pub(super) fn handle(&self) -> Result<File, VideoError> {
        self.file.as_file().try_clone().map_err(|e| failed(&self.path, e))
    }

    /// Takes the target's place.
    pub(super) fn finish(self) -> Result<(), VideoError> {
        self.file.persist(&self.path).map(drop).map_err(|e| failed(&self.path, e.error))
    }

    /// What the system said, about the target.
    pub(super) fn failed(&self, source: io::Error) -> VideoError {
        failed(&self.path, source)
    }

    /// What an encoder said, about the target.
    pub(super) fn refused(&self, problem: &dyn ToString) -> VideoError {
        VideoError::Encode { path: self.path.clone(), problem: problem.to_string() }
    }
}

/// A folder filled beside its target.
#[derive(Debug)]
pub(super) struct PendingFolder {
    path: PathBuf,
    folder: TempDir,
}

impl PendingFolder {
    /// Refuses a target that holds anything but files whose names are `ours`.
    pub(super) fn create(path: &Path, ours: impl Fn(&str) -> bool) -> Result<Self, VideoError> {
        let occupied = |expected, found: &str| {
            Err(VideoError::Occupied { path: path.to_owned(), expected, found: found.to_owned() })
        };
        if path.file_name().is_none() {
            return occupied("a named folder", &path.display().to_string());
        }
        if path.is_dir() {
            for entry in fs::read_dir(path).map_err(|e| failed(path, e))? {
                let name = entry.map_err(|e| failed(path, e))?.file_name();
                let name = name.to_string_lossy();
                if !ours(&name) {
                    return occupied("a folder with nothing but frames in it", &format!("`{name}`"));
                }
            }
        }
        fs::metadata(parent(path)).map_err(|e| failed(path, e))?;
        let folder = builder(0o777).tempdir_in(parent(path)).map_err(|e| failed(path, e.kind().into()))?;
        Ok(Self { path: path.to_owned(), folder })
    }

    /// The folder to fill.
    pub(super) fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The target.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the target's place; frames that were there go.
    pub(super) fn finish(self) -> Result<(), VideoError> {
        let path = &self.path;
        let old = builder(0o777).tempdir_in(parent(path)).map_err(|e| failed(path, e))?;
        let aside = old.path().join("old");
        if path.is_dir() {
            fs::rename(path, &aside).map_err(|e| failed(path, e))?;
        }
        if let Err(e) = fs::rename(self.folder.path(), path) {
            if aside.is_dir() {
                fs::rename(&aside, path).map_err(|e| failed(path, e))?;
            }
            return Err(failed(path, e));
        }
        Ok(())
    }
}

fn failed(path: &Path, source: io::Error) -> VideoError {
    VideoError::Write { path: path.to_owned(), source }
}
