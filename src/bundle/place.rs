//! Where a bundle goes: what may be replaced, and the step that does it.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use tempfile::TempDir;

use super::error::BundleError;
use super::manifest::{MANIFEST, Manifest};

/// Directories of a checkpoint that no output may be in.
const COMPONENTS: [&str; 5] = ["scheduler", "text_encoder", "tokenizer", "transformer", "vae"];
/// Directories of a bundle that hold nothing but what can be made again.
const CACHES: [&str; 1] = ["cache"];
/// Age from which on an unfinished directory is nobody's.
const STALE: Duration = Duration::from_hours(24);

/// Directories made for a bundle, from the inside out; those that hold nothing when this is dropped go.
#[derive(Debug)]
pub(crate) struct MadeParents(Vec<PathBuf>);

impl Drop for MadeParents {
    fn drop(&mut self) {
        for path in &self.0 {
            // One that holds the bundle stays.
            let _ = fs::remove_dir(path);
        }
    }
}

/// The place of a bundle: `parent/name`, where `parent` is canonical.
#[derive(Debug)]
pub(crate) struct Place {
    parent: PathBuf,
    name: OsString,
}

impl Place {
    /// The place `output` means, after links. Nothing is made yet.
    pub fn new(output: &Path) -> Result<Self, BundleError> {
        let whole = std::path::absolute(output).map_err(BundleError::io(output))?;
        let there = whole.ancestors().find(|path| path.symlink_metadata().is_ok()).unwrap_or(&whole);
        // A dangling link ends here.
        let not_ours = || BundleError::NotOurs { output: output.into() };
        let real = there.canonicalize().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => not_ours(),
            _ => BundleError::io(there)(error),
        })?;
        let rest = whole.strip_prefix(there).unwrap_or(Path::new(""));
        if rest.components().any(|part| part == Component::ParentDir) {
            return Err(BundleError::Climbs { output: output.into() });
        }
        // Part by part: joining an empty rest would end in a slash.
        let whole = rest.components().fold(real, |path, part| path.join(part));
        let (Some(parent), Some(name)) = (whole.parent(), whole.file_name()) else {
            return Err(not_ours());
        };
        Ok(Self { parent: parent.into(), name: name.into() })
    }

    /// The final path.
    pub fn output(&self) -> PathBuf {
        self.parent.join(&self.name)
    }

    /// Checks that writing here leaves `checkpoint` alone.
    pub fn spares(&self, checkpoint: &Path) -> Result<(), BundleError> {
        let checkpoint = checkpoint.canonicalize().map_err(BundleError::io(checkpoint))?;
        let output = self.output();
        let inside = COMPONENTS.iter().any(|name| output.starts_with(checkpoint.join(name)));
        if inside || checkpoint.starts_with(&output) {
            return Err(BundleError::InsideCheckpoint { output, checkpoint });
        }
        Ok(())
    }

    /// Checks that nothing here would be lost: nothing is there, an empty directory, or a bundle and `overwrite`.
    pub fn is_free(&self, overwrite: bool) -> Result<(), BundleError> {
        let output = self.output();
        if output.symlink_metadata().is_err() {
            return Ok(());
        }
        if !output.is_dir() {
            return Err(BundleError::NotOurs { output });
        }
        if fs::read_dir(&output).map_err(BundleError::io(&output))?.next().is_none() {
            return Ok(());
        }
        let Ok(manifest) = Manifest::parse(&output) else {
            return Err(BundleError::NotOurs { output });
        };
        if !overwrite {
            return Err(BundleError::Exists { output });
        }
        let mut ours: BTreeSet<PathBuf> = manifest.files.iter().map(|entry| output.join(&entry.path)).collect();
        ours.insert(output.join(MANIFEST));
        match foreign(&output, &output, &ours)? {
            Some(path) => {
                let file = path.strip_prefix(&output).unwrap_or(&path).display().to_string();
                Err(BundleError::Foreign { output, file })
            }
            None => Ok(()),
        }
    }

    /// Makes the missing parents.
    pub fn make_parents(&self) -> Result<MadeParents, BundleError> {
        let missing = self.parent.ancestors().take_while(|path| path.symlink_metadata().is_err());
        let made = MadeParents(missing.map(Path::to_path_buf).collect());
        fs::create_dir_all(&self.parent).map_err(BundleError::io(&self.parent))?;
        Ok(made)
    }

    /// A fresh directory beside the place, removed when dropped. What runs killed a day ago left is removed.
    pub fn partial(&self) -> Result<TempDir, BundleError> {
        let mut prefix = OsString::from(".");
        prefix.push(&self.name);
        prefix.push(".partial-");
        self.sweep(&prefix);
        let mut builder = tempfile::Builder::new();
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            // As for any directory: all that the umask leaves.
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        let made = builder.prefix(&prefix).tempdir_in(&self.parent);
        // Without the random name it tried.
        made.map_err(|error| BundleError::io(&self.parent)(error.kind().into()))
    }

    fn sweep(&self, prefix: &OsStr) {
        let Ok(entries) = fs::read_dir(&self.parent) else { return };
        for entry in entries.flatten() {
            let named = entry.file_name().as_encoded_bytes().starts_with(prefix.as_encoded_bytes());
            if !named || !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                continue;
            }
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            if modified.is_ok_and(|then| then.elapsed().is_ok_and(|age| age > STALE)) {
                // What cannot be removed is in nobody's way.
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }

    /// Whether something is there that putting a bundle here replaces.
    pub fn is_occupied(&self) -> bool {
        fs::read_dir(self.output()).is_ok_and(|mut entries| entries.next().is_some())
    }

    /// Puts `partial` in its place in one step; what was there is removed afterwards.
    pub fn put(&self, partial: TempDir) -> Result<PathBuf, BundleError> {
        let output = self.output();
        if !self.is_occupied() {
            move_to(&partial, &output)?;
            let _ = partial.keep();
        } else if exchange(partial.path(), &output) {
            sync_dir(&self.parent);
            // Dropping `partial` now removes the old bundle.
            drop(partial);
        } else {
            self.put_in_two_steps(partial, &output)?;
        }
        Ok(output)
    }

    /// For systems that cannot exchange two directories: old aside, new in; old back if that fails.
    pub fn put_in_two_steps(&self, partial: TempDir, output: &Path) -> Result<(), BundleError> {
        let aside = self.partial()?;
        let old = aside.path().join("old");
        fs::rename(output, &old).map_err(BundleError::io(output))?;
        if let Err(error) = move_to(&partial, output) {
            if fs::rename(&old, output).is_err() {
                // Better a directory with an odd name than none.
                let _ = aside.keep();
            }
            return Err(error);
        }
        let _ = partial.keep();
        // Before `aside` goes, and the old bundle with it.
        sync_dir(&self.parent);
        Ok(())
    }
}

fn move_to(partial: &TempDir, output: &Path) -> Result<(), BundleError> {
    if cfg!(windows) {
        // Windows does not rename onto an empty directory.
        let _ = fs::remove_dir(output);
    }
    fs::rename(partial.path(), output).map_err(BundleError::io(output))
}

#[cfg(target_os = "linux")]
fn exchange(a: &Path, b: &Path) -> bool {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE).is_ok()
}

#[cfg(not(target_os = "linux"))]
fn exchange(_: &Path, _: &Path) -> bool {
    false
}

/// Makes a rename in `dir` last; not every system can.
pub(super) fn sync_dir(dir: &Path) {
    if let Ok(open) = fs::File::open(dir) {
        let _ = open.sync_all();
    }
}

/// A file or directory below `dir` that is not one of `ours`; caches of the bundle at `root` do not count.
fn foreign(dir: &Path, root: &Path, ours: &BTreeSet<PathBuf>) -> Result<Option<PathBuf>, BundleError> {
    for entry in fs::read_dir(dir).map_err(BundleError::io(dir))? {
        let entry = entry.map_err(BundleError::io(dir))?;
        let path = entry.path();
        let found = if entry.file_type().map_err(BundleError::io(&path))?.is_dir() {
            let cache = dir == root && CACHES.iter().any(|name| entry.file_name() == *name);
            // Only directories of the bundle are entered, so the depth is that of its paths.
            let part = ours.iter().any(|file| file.starts_with(&path));
            match (cache, part) {
                (true, _) => None,
                (false, true) => foreign(&path, root, ours)?,
                (false, false) => Some(path),
            }
        } else {
            (!ours.contains(&path)).then_some(path)
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}
