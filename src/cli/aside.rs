//! Folders for bundles that are exported for the occasion, and what killed runs left of theirs.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// How their names begin.
const PREFIX: &str = ".cogvx-run-";
/// A file in each that is locked as long as the run lives: the system unlocks it whatever ends the run.
const LOCK: &str = "lock";

/// A new folder, which goes when this is dropped.
pub(super) struct Aside {
    // Some systems do not remove what is open: this goes first.
    _lock: File,
    folder: TempDir,
}

impl Aside {
    /// A folder in `parent`. Those of runs that have ended there without removing theirs are removed.
    pub fn new(parent: &Path) -> io::Result<Self> {
        sweep(parent);
        let folder = tempfile::Builder::new().prefix(PREFIX).tempdir_in(parent)?;
        // It gets its name when it is locked, so that nobody finds it unlocked meanwhile.
        let unlocked = folder.path().join("unlocked");
        let lock = File::create_new(&unlocked)?;
        // Where the file system has no locks, the folder is left without one.
        if lock.try_lock().is_ok() {
            fs::rename(unlocked, folder.path().join(LOCK))?;
        }
        Ok(Self { _lock: lock, folder })
    }

    /// Where the bundle goes.
    pub fn bundle(&self) -> PathBuf {
        self.folder.path().join("bundle")
    }
}

fn sweep(parent: &Path) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let is_ours = entry.file_name().as_encoded_bytes().starts_with(PREFIX.as_bytes());
        if is_ours && entry.file_type().is_ok_and(|kind| kind.is_dir()) && is_left(&entry.path()) {
            // What cannot be removed is in nobody's way.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Whether the run that made `folder` has ended: its lock can be had. A folder without a lock may be a moment old, or of a run of
/// days on a system that has none: nobody can tell, and it is left alone.
fn is_left(folder: &Path) -> bool {
    let lock = folder.join(LOCK);
    let is_file = lock.symlink_metadata().is_ok_and(|metadata| metadata.is_file());
    let open = || File::options().read(true).write(true).open(lock);
    is_file && open().is_ok_and(|file| file.try_lock().is_ok())
}
