//! Writes a bundle beside its place and moves it there when complete.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read as _, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tempfile::TempDir;

use super::error::BundleError;
use super::files;
use super::manifest::{FileEntry, MANIFEST, Manifest, Origin};
use super::place::{MadeParents, Place, sync_dir};

/// Linked and copied files up to this size are hashed whole.
const SMALL: u64 = 16 << 20;
/// Bytes copied between two looks at the flag that stops.
const BLOCK: u64 = 64 << 20;

/// How weight files get into a bundle.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WeightsMode {
    /// Link where the file system can, else copy.
    #[default]
    Auto,
    /// Link, or fail.
    Link,
    /// Copy.
    Copy,
}

/// What became of a hard link.
#[derive(Debug)]
pub enum LinkOutcome {
    /// The file is in the bundle and takes no space.
    Linked,
    /// It is not in the bundle: another file system, or one without hard links.
    Refused(io::Error),
}

/// A bundle being written. Dropped before [`BundleWriter::finish`], it leaves nothing behind.
///
/// Files may be added from several threads.
#[derive(Debug)]
pub struct BundleWriter {
    place: Place,
    overwrite: bool,
    partial: TempDir,
    /// Goes after `partial`, which is in it.
    _parents: MadeParents,
    stop: Arc<AtomicBool>,
    /// By path; none while the file is being written.
    files: Mutex<BTreeMap<String, Option<FileEntry>>>,
}

impl BundleWriter {
    /// Begins a bundle that will be at `output`, in a hidden directory beside it.
    ///
    /// With `overwrite`, a bundle there is replaced. `checkpoint` is what is exported, to be left alone.
    ///
    /// # Errors
    /// When something else is at `output`, it lies in a component of `checkpoint` or holds `checkpoint`, or its parent
    /// cannot be written.
    pub fn create(output: &Path, checkpoint: Option<&Path>, overwrite: bool) -> Result<Self, BundleError> {
        let place = Place::new(output)?;
        checkpoint.map_or(Ok(()), |checkpoint| place.spares(checkpoint))?;
        place.is_free(overwrite)?;
        let parents = place.make_parents()?;
        let partial = place.partial()?;
        Ok(Self { place, overwrite, partial, _parents: parents, stop: Arc::default(), files: Mutex::default() })
    }

    /// Ends with [`BundleError::Interrupted`] once `stop` is set.
    #[must_use]
    pub fn until(self, stop: Arc<AtomicBool>) -> Self {
        Self { stop, ..self }
    }

    fn go_on(&self) -> Result<(), BundleError> {
        if self.stop.load(Ordering::SeqCst) { Err(BundleError::Interrupted) } else { Ok(()) }
    }

    /// The hidden directory, for programs that check the files before they are in place.
    #[must_use]
    pub fn partial(&self) -> &Path {
        self.partial.path()
    }

    /// Adds a file with the contents `bytes` at `path` in the bundle.
    ///
    /// # Errors
    /// When `path` is unsafe or taken, or writing fails.
    pub fn add_bytes(&self, path: &str, bytes: &[u8]) -> Result<(), BundleError> {
        let mut file = self.create_file(path)?;
        file.write_all(bytes).map_err(BundleError::io(&file.at))?;
        file.finish()
    }

    /// Begins a file at `path` in the bundle, for contents too large for memory.
    ///
    /// # Errors
    /// When `path` is unsafe or taken, or it cannot be created.
    pub fn create_file(&self, path: &str) -> Result<BundleFile<'_>, BundleError> {
        let (at, file) = self.reserve_and_create(path)?;
        let file = BufWriter::with_capacity(1 << 16, file);
        Ok(BundleFile { writer: self, path: path.into(), at, file, hasher: blake3::Hasher::new(), bytes: 0 })
    }

    /// Adds a copy of the file `from` at `path` in the bundle; shares blocks where the file system can.
    ///
    /// # Errors
    /// When `path` is unsafe or taken, `from` is not a regular file, or copying fails.
    pub fn add_file_copy(&self, path: &str, from: &Path) -> Result<(), BundleError> {
        let (mut source, expected) = files::open(from)?;
        let (at, mut file) = self.reserve_and_create(path)?;
        let mut found = 0;
        loop {
            self.go_on()?;
            match io::copy(&mut (&mut source).take(BLOCK), &mut file).map_err(BundleError::io(&at))? {
                0 => break,
                copied => found += copied,
            }
        }
        if found != expected {
            return Err(BundleError::Size { path: from.into(), expected, found });
        }
        self.record(path, &at, found, Origin::Copied)
    }

    /// Adds a hard link to the file `from`, links in its path resolved, at `path` in the bundle.
    ///
    /// # Errors
    /// When `path` is unsafe or taken, or `from` is not a regular file. That it cannot be linked is no error.
    pub fn add_link(&self, path: &str, from: &Path) -> Result<LinkOutcome, BundleError> {
        let real = from.canonicalize().map_err(BundleError::io(from))?;
        let (_, bytes) = files::open(&real)?;
        let at = self.reserve(path)?;
        match fs::hard_link(&real, &at) {
            Ok(()) => self.record(path, &at, bytes, Origin::Linked).map(|()| LinkOutcome::Linked),
            Err(reason) => {
                self.files().remove(path);
                Ok(LinkOutcome::Refused(reason))
            }
        }
    }

    /// Adds the weight file `from` at `path` in the bundle as `mode` says; tells how.
    ///
    /// # Errors
    /// As [`BundleWriter::add_file_copy`], and when it must be linked and cannot be.
    pub fn add_weights(&self, path: &str, from: &Path, mode: WeightsMode) -> Result<Origin, BundleError> {
        if mode != WeightsMode::Copy {
            match self.add_link(path, from)? {
                LinkOutcome::Linked => return Ok(Origin::Linked),
                LinkOutcome::Refused(reason) if mode == WeightsMode::Link => {
                    return Err(BundleError::CannotLink { from: from.into(), path: path.into(), reason });
                }
                LinkOutcome::Refused(_) => {}
            }
        }
        self.add_file_copy(path, from)?;
        Ok(Origin::Copied)
    }

    /// Writes `cogvx.json`, with the list of files filled in, and moves the bundle into its place. A bundle that is
    /// replaced goes when the new one is on the disk.
    ///
    /// # Errors
    /// When a file was not finished, `manifest` names a file that was not added, or something came into the place in
    /// the meantime.
    pub fn finish(self, mut manifest: Manifest) -> Result<PathBuf, BundleError> {
        self.go_on()?;
        let written = std::mem::take(&mut *self.files());
        manifest.files = written
            .into_iter()
            .map(|(path, entry)| entry.ok_or(BundleError::Unfinished { path }))
            .collect::<Result<_, _>>()?;
        let root = self.partial.path();
        let at = root.join(MANIFEST);
        manifest.check_paths(&at)?;
        manifest.check_files(root)?;
        manifest.write(root)?;
        self.place.is_free(self.overwrite)?;
        if self.place.is_occupied() {
            // The old bundle goes once the new one cannot be lost. Where there is none, a power failure can at worst
            // leave a bundle that its manifest shows to be damaged, as it can after `cp`, and the checkpoint is still
            // there.
            let ours = manifest.files.iter().filter(|entry| entry.origin != Origin::Linked);
            for path in ours.map(|entry| root.join(&entry.path)).chain([at]) {
                File::open(&path).and_then(|file| file.sync_all()).map_err(BundleError::io(&path))?;
            }
            sync_dir(root);
        }
        self.place.put(self.partial)
    }

    fn files(&self) -> MutexGuard<'_, BTreeMap<String, Option<FileEntry>>> {
        self.files.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes `path` for one file, and makes its directories.
    fn reserve(&self, path: &str) -> Result<PathBuf, BundleError> {
        self.go_on()?;
        files::check_plain(path, self.partial.path())?;
        // One lock for the question and the answer: two threads may want the same path.
        match self.files().entry(path.into()) {
            Entry::Vacant(vacant) => vacant.insert(None),
            Entry::Occupied(_) => {
                return Err(BundleError::Duplicate { path: path.into(), bundle: self.place.output() });
            }
        };
        let at = self.partial.path().join(path);
        if let Some(parent) = at.parent() {
            fs::create_dir_all(parent).map_err(BundleError::io(parent))?;
        }
        Ok(at)
    }

    fn reserve_and_create(&self, path: &str) -> Result<(PathBuf, File), BundleError> {
        let at = self.reserve(path)?;
        let file = File::create_new(&at).map_err(BundleError::io(&at))?;
        Ok((at, file))
    }

    /// Lists a linked or copied file: small ones with their hash, large ones with their header's.
    fn record(&self, path: &str, at: &Path, bytes: u64, origin: Origin) -> Result<(), BundleError> {
        let small = bytes <= SMALL;
        let blake3 = small.then(|| files::hash(at)).transpose()?;
        let header_blake3 = if small { None } else { files::header_hash(at)? };
        let entry = FileEntry { path: path.into(), bytes, blake3, header_blake3, origin };
        self.files().insert(path.into(), Some(entry));
        Ok(())
    }
}

/// A file of a bundle being written; [`BundleFile::finish`] lists it.
#[derive(Debug)]
pub struct BundleFile<'a> {
    writer: &'a BundleWriter,
    path: String,
    at: PathBuf,
    file: BufWriter<File>,
    hasher: blake3::Hasher,
    bytes: u64,
}

impl BundleFile<'_> {
    /// Bytes written so far.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Writes what is buffered and lists the file.
    ///
    /// # Errors
    /// When writing fails.
    pub fn finish(mut self) -> Result<(), BundleError> {
        self.file.flush().map_err(BundleError::io(&self.at))?;
        let entry = FileEntry {
            path: self.path.clone(),
            bytes: self.bytes,
            blake3: Some(self.hasher.finalize().to_hex().to_string()),
            header_blake3: None,
            origin: Origin::Written,
        };
        self.writer.files().insert(self.path, Some(entry));
        Ok(())
    }
}

impl Write for BundleFile<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.go_on().map_err(io::Error::other)?;
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}
