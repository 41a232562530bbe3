//! The folder of engines: each appears complete, is checked before it is used, and is built by one process at a time.

use std::fs::{self, File, Metadata, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};
use tempfile::TempDir;

use super::{EnginesError, Hashes, Key};

/// What an entry says of itself.
const ENTRY: &str = "entry.json";
const FORMAT: u32 = 1;
/// Most bytes of it.
const MOST: u64 = 4 << 20;
/// Folders of engines that are being built begin with this; the hash and a random ending follow.
const PARTIAL: &str = ".building-";
/// How long to wait before looking again whether another process is done.
const PAUSE: Duration = Duration::from_millis(200);

/// The engines of a user, of all bundles.
#[derive(Clone, Debug)]
pub struct Store {
    folder: PathBuf,
}

/// A complete engine.
#[derive(Clone, Debug)]
pub struct Entry {
    /// Its folder.
    pub folder: PathBuf,
    /// What it was built from.
    pub key: Key,
    /// Names of its files, in order.
    pub files: Vec<String>,
    /// Bytes of all of them.
    pub bytes: u64,
    /// Seconds it took to build.
    pub seconds: f64,
}

/// `entry.json`.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    format: u32,
    key: Key,
    seconds: f64,
    files: Vec<Part>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    name: String,
    bytes: u64,
    blake3: String,
}

/// What is there for a key.
#[derive(Debug)]
pub enum Found {
    /// An engine whose files are as they were written.
    Ready(Box<Entry>),
    /// Nothing.
    Absent,
    /// Something that must not be loaded, and why.
    Damaged(String),
}

/// What happens on the way to an engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Another process is building it.
    Waiting,
    /// What was there is of no use, and why; it is built anew.
    Damaged(String),
    /// It is being built.
    Building,
}

/// An entry as a list shows it.
#[derive(Debug)]
pub struct Listed {
    /// Name of its folder.
    pub name: String,
    /// The entry, or what is wrong with it.
    pub entry: Result<Entry, String>,
    /// When it was last used.
    pub used: Option<SystemTime>,
}

/// What [`Store::gc`] removed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Removed {
    /// Names of folders.
    pub names: Vec<String>,
    /// What they held.
    pub bytes: u64,
}

impl Store {
    /// The engines in `folder`, which need not be there yet.
    #[must_use]
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.into() }
    }

    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Hashes of the files that engines are built from, remembered here.
    #[must_use]
    pub fn hashes(&self) -> Hashes {
        Hashes::open(&self.folder.join("hashes.json"))
    }

    /// What is there for `key`; all of its files are read.
    ///
    /// # Errors
    /// None but for a folder that cannot be looked into.
    pub fn find(&self, key: &Key) -> Result<Found, EnginesError> {
        let folder = self.folder.join(key.hash());
        if folder.symlink_metadata().is_err() {
            return Ok(Found::Absent);
        }
        let entry = read(&folder).and_then(|(entry, parts)| {
            if entry.key != *key {
                return Err("it is the engine of something else".into());
            }
            check(&folder, &parts).map(|()| entry)
        });
        Ok(match entry {
            Ok(entry) => {
                touch(&folder);
                Found::Ready(Box::new(entry))
            }
            Err(why) => Found::Damaged(why),
        })
    }

    /// The first of these engines that is there; if none is, one of the same kind whose range of sizes holds theirs, the narrowest.
    ///
    /// # Errors
    /// A folder that cannot be looked into.
    pub fn choose(&self, keys: &[Key]) -> Result<Option<Entry>, EnginesError> {
        for key in keys {
            if let Found::Ready(entry) = self.find(key)? {
                return Ok(Some(*entry));
            }
        }
        let listed: Vec<_> = self.list(false)?.into_iter().filter_map(|listed| Some(listed.entry.ok()?.key)).collect();
        for wanted in keys {
            let mut ranges: Vec<_> = listed.iter().filter(|key| key.holds(wanted)).collect();
            ranges.sort_by_key(|key| key.width());
            for key in ranges {
                if let Found::Ready(entry) = self.find(key)? {
                    return Ok(Some(*entry));
                }
            }
        }
        Ok(None)
    }

    /// The engine of `key`: the one that is there, or else the one that `build` writes into an empty folder. Where another
    /// process builds it, that one is waited for. `stop` ends the waiting.
    ///
    /// # Errors
    /// What `build` says, a file system that fails, or an interrupt.
    pub fn get_or_build(
        &self,
        key: &Key,
        stop: &AtomicBool,
        mut tell: impl FnMut(Event),
        build: impl FnOnce(&Path) -> Result<(), EnginesError>,
    ) -> Result<Entry, EnginesError> {
        if let Found::Ready(entry) = self.find(key)? {
            return Ok(*entry);
        }
        fs::create_dir_all(&self.folder).map_err(EnginesError::io(&self.folder))?;
        let name = key.hash();
        let _lock = self.lock(&name, stop, &mut tell)?;
        // Whoever held the lock may have built it.
        match self.find(key)? {
            Found::Ready(entry) => return Ok(*entry),
            Found::Damaged(why) => {
                tell(Event::Damaged(why));
                self.remove(&name)?;
            }
            Found::Absent => {}
        }
        self.sweep(&name);
        tell(Event::Building);
        let prefix = format!("{PARTIAL}{name}-");
        let io = || EnginesError::io(&self.folder);
        let partial = tempfile::Builder::new().prefix(&prefix).tempdir_in(&self.folder).map_err(io())?;
        let began = Instant::now();
        build(partial.path())?;
        if stop.load(Ordering::SeqCst) {
            return Err(EnginesError::Interrupted);
        }
        write(partial.path(), key, began.elapsed().as_secs_f64())?;
        let folder = self.folder.join(&name);
        fs::rename(partial.path(), &folder).map_err(EnginesError::io(&folder))?;
        // It has its name now.
        let _ = partial.keep();
        read(&folder).map(|(entry, _)| entry).map_err(EnginesError::Build)
    }

    /// All entries, in the order of their names; with `full` all of their files are read and hashed.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn list(&self, full: bool) -> Result<Vec<Listed>, EnginesError> {
        let mut all = vec![];
        for name in self.names()? {
            if name.starts_with(PARTIAL) {
                continue;
            }
            let folder = self.folder.join(&name);
            let entry = read(&folder).and_then(|(entry, parts)| {
                let expected = entry.key.hash();
                if expected != name {
                    return Err(format!("expected the name {expected}"));
                }
                if full { check(&folder, &parts) } else { sizes(&folder, &parts) }.map(|()| entry)
            });
            let used = fs::metadata(folder.join(ENTRY)).and_then(|metadata| metadata.modified()).ok();
            all.push(Listed { name, entry, used });
        }
        Ok(all)
    }

    /// Remove what is damaged, what killed builds left, what was not used for `unused`, and then what was used longest ago
    /// until the rest has at most `most` bytes. What is being built stays. With `dry` nothing is removed, only told.
    ///
    /// # Errors
    /// A folder that cannot be read, or an entry that cannot be removed.
    pub fn gc(&self, most: Option<u64>, unused: Option<Duration>, dry: bool) -> Result<Removed, EnginesError> {
        let mut removed = Removed::default();
        let mut take = |name: &str, of: &str| -> Result<bool, EnginesError> {
            // Held by whoever builds or replaces it.
            let Some(_lock) = self.try_lock(of)? else { return Ok(false) };
            removed.bytes += size_of(&self.folder.join(name));
            removed.names.push(name.into());
            if !dry {
                self.remove(name)?;
            }
            Ok(true)
        };
        for name in self.names()? {
            if let Some(rest) = name.strip_prefix(PARTIAL) {
                take(&name, rest.split('-').next().unwrap_or(rest))?;
            }
        }
        let now = SystemTime::now();
        let mut kept = vec![];
        for Listed { name, entry, used } in self.list(false)? {
            let old =
                || unused.zip(used).is_some_and(|(limit, used)| now.duration_since(used).is_ok_and(|d| d > limit));
            match entry {
                Ok(entry) if !old() => kept.push((used, name, entry.bytes)),
                _ => drop(take(&name, &name)?),
            }
        }
        let mut total: u64 = kept.iter().map(|(.., bytes)| bytes).sum();
        kept.sort();
        for (_, name, bytes) in kept {
            if most.is_some_and(|most| total > most) && take(&name, &name)? {
                total -= bytes;
            }
        }
        Ok(removed)
    }

    /// Names of the folders in the store.
    fn names(&self) -> Result<Vec<String>, EnginesError> {
        let entries = match fs::read_dir(&self.folder) {
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(vec![]),
            entries => entries.map_err(EnginesError::io(&self.folder))?,
        };
        let is_engine = |name: &String| name.starts_with(PARTIAL) || is_hash(name);
        let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        let mut names: Vec<_> =
            folders.filter_map(|entry| entry.file_name().into_string().ok()).filter(is_engine).collect();
        names.sort();
        Ok(names)
    }

    /// Wait until nobody else builds the engine `name`.
    fn lock(&self, name: &str, stop: &AtomicBool, tell: &mut impl FnMut(Event)) -> Result<File, EnginesError> {
        let mut waiting = false;
        loop {
            if let Some(lock) = self.try_lock(name)? {
                return Ok(lock);
            }
            if stop.load(Ordering::SeqCst) {
                return Err(EnginesError::Interrupted);
            }
            if !waiting {
                tell(Event::Waiting);
            }
            waiting = true;
            sleep(PAUSE);
        }
    }

    /// The lock of the engine `name`, unless another process has it. The system frees it whatever ends a process, and its file
    /// stays: were it removed, two processes could hold locks of one name.
    fn try_lock(&self, name: &str) -> Result<Option<File>, EnginesError> {
        let path = self.folder.join(format!("{name}.lock"));
        let mut options = File::options();
        let file = options.create(true).truncate(false).write(true).open(&path).map_err(EnginesError::io(&path))?;
        match file.try_lock() {
            Err(TryLockError::WouldBlock) => Ok(None),
            // On a file system without locks the worst is that an engine is built twice.
            Ok(()) | Err(TryLockError::Error(_)) => Ok(Some(file)),
        }
    }

    /// Remove what killed builds of `name` left; its lock is held.
    fn sweep(&self, name: &str) {
        let prefix = format!("{PARTIAL}{name}-");
        for left in self.names().unwrap_or_default().iter().filter(|left| left.starts_with(&prefix)) {
            // It is in nobody's way.
            let _ = fs::remove_dir_all(self.folder.join(left));
        }
    }

    /// Remove a folder: under its name it is gone at once.
    fn remove(&self, name: &str) -> Result<(), EnginesError> {
        let folder = self.folder.join(name);
        let aside = TempDir::with_prefix_in(format!("{PARTIAL}{name}-"), &self.folder);
        let aside = aside.map_err(EnginesError::io(&self.folder))?;
        fs::rename(&folder, aside.path().join("old")).map_err(EnginesError::io(&folder))?;
        aside.close().map_err(EnginesError::io(&folder))
    }
}

/// Whether this is the name of an entry.
fn is_hash(name: &str) -> bool {
    name.len() == 32 && name.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Write what the files of `folder` are.
fn write(folder: &Path, key: &Key, seconds: f64) -> Result<(), EnginesError> {
    let mut files = vec![];
    for entry in fs::read_dir(folder).map_err(EnginesError::io(folder))? {
        let entry = entry.map_err(EnginesError::io(folder))?;
        let path = entry.path();
        let Ok(name) = entry.file_name().into_string() else { continue };
        let (bytes, blake3) = hash(&path).map_err(EnginesError::io(&path))?;
        // What a power failure leaves of it is found by its hash, but an hour's work is worth a flush.
        File::open(&path).and_then(|file| file.sync_all()).map_err(EnginesError::io(&path))?;
        files.push(Part { name, bytes, blake3 });
    }
    if files.is_empty() {
        return Err(EnginesError::Nothing(folder.into()));
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let written = Written { format: FORMAT, key: key.clone(), seconds, files };
    let path = folder.join(ENTRY);
    let json =
        serde_json::to_vec_pretty(&written).map_err(|e| EnginesError::Io { path: path.clone(), source: e.into() })?;
    fs::write(&path, json).map_err(EnginesError::io(&path))
}

/// What the entry in `folder` says, or what is wrong with it.
fn read(folder: &Path) -> Result<(Entry, Vec<Part>), String> {
    let path = folder.join(ENTRY);
    let is_small = path.symlink_metadata().is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MOST);
    if !is_small {
        return Err(format!("it has no `{ENTRY}`"));
    }
    let bytes = fs::read(&path).map_err(|e| format!("`{ENTRY}`: {e}"))?;
    let written: Written = serde_json::from_slice(&bytes).map_err(|e| format!("`{ENTRY}`: {e:.200}"))?;
    if written.format != FORMAT {
        return Err(format!("`{ENTRY}`: expected format {FORMAT}, found {}", written.format));
    }
    let is_plain = |name: &str| {
        let mut parts = Path::new(name).components();
        matches!((parts.next(), parts.next()), (Some(std::path::Component::Normal(_)), None))
            && !name.contains(['/', '\\'])
    };
    if let Some(part) = written.files.iter().find(|part| !is_plain(&part.name)) {
        return Err(format!("`{ENTRY}`: expected names of files, found `{}`", part.name.escape_debug()));
    }
    let files = written.files.iter().map(|part| part.name.clone()).collect();
    let bytes = written.files.iter().fold(0_u64, |sum, part| sum.saturating_add(part.bytes));
    let entry = Entry { folder: folder.into(), key: written.key, files, bytes, seconds: written.seconds };
    Ok((entry, written.files))
}

/// Find that the files are there with their sizes, and nothing else.
fn sizes(folder: &Path, parts: &[Part]) -> Result<(), String> {
    for Part { name, bytes, .. } in parts {
        match folder.join(name).symlink_metadata() {
            Ok(metadata) if !metadata.is_file() => return Err(format!("`{name}`: expected a file")),
            Ok(metadata) if metadata.len() != *bytes => {
                return Err(format!("`{name}`: expected {bytes} bytes, found {}", metadata.len()));
            }
            Ok(_) => {}
            Err(e) => return Err(format!("`{name}`: {e}")),
        }
    }
    let found = fs::read_dir(folder).map_err(|e| e.to_string())?.flatten().map(|entry| entry.file_name());
    let is_known = |name: &std::ffi::OsString| name == ENTRY || parts.iter().any(|part| name == part.name.as_str());
    match found.into_iter().find(|name| !is_known(name)) {
        Some(name) => Err(format!("`{}`: expected no such file", name.to_string_lossy().escape_debug())),
        None => Ok(()),
    }
}

/// Find that the files are those that were written.
fn check(folder: &Path, parts: &[Part]) -> Result<(), String> {
    sizes(folder, parts)?;
    for Part { name, blake3: expected, .. } in parts {
        let (_, found) = hash(&folder.join(name)).map_err(|e| format!("`{name}`: {e}"))?;
        if found != *expected {
            return Err(format!("`{name}`: expected the hash {expected:.16}..., found {found:.16}..."));
        }
    }
    Ok(())
}

/// Size and hash of a file.
fn hash(path: &Path) -> std::io::Result<(u64, String)> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok((hasher.count(), hasher.finalize().to_hex().to_string()))
}

/// Remember that the entry was used now. That it cannot be is no reason not to use it.
fn touch(folder: &Path) {
    let touch = || File::options().append(true).open(folder.join(ENTRY))?.set_modified(SystemTime::now());
    let _ = touch();
}

/// Bytes of all files in a folder.
fn size_of(folder: &Path) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.metadata().ok()).filter(Metadata::is_file).map(|metadata| metadata.len()).sum()
}
