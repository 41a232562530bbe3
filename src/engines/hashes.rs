//! Hashes of large files, each taken once.

use std::collections::BTreeMap;
use std::fs::{self, File, Metadata};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use super::EnginesError;
use crate::pending;

/// Most bytes of the list.
const MOST: u64 = 16 << 20;

/// BLAKE3 of files, remembered as long as nothing tells that they changed: 10 GB of weights are read once, not at every start.
///
/// A list that cannot be read or written is as good as none.
pub struct Hashes {
    list: PathBuf,
    known: BTreeMap<String, String>,
    changed: bool,
}

impl Hashes {
    /// The list kept at `list`.
    #[must_use]
    pub fn open(list: &Path) -> Self {
        let small = fs::metadata(list).is_ok_and(|metadata| metadata.is_file() && metadata.len() <= MOST);
        let bytes = if small { fs::read(list).unwrap_or_default() } else { vec![] };
        Self { list: list.into(), known: serde_json::from_slice(&bytes).unwrap_or_default(), changed: false }
    }

    /// BLAKE3 of the file at `path`, in hexadecimal digits.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub fn of(&mut self, path: &Path) -> Result<String, EnginesError> {
        let io = EnginesError::io(path);
        let read = || -> std::io::Result<_> {
            let file = File::open(path)?;
            let identity = identity(&file.metadata()?);
            Ok((file, identity))
        };
        let (file, identity) = read().map_err(io)?;
        if let Some(hash) = identity.as_ref().and_then(|identity| self.known.get(identity)) {
            return Ok(hash.clone());
        }
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(&file).map_err(EnginesError::io(path))?;
        let hash = hasher.finalize().to_hex().to_string();
        // One that is written to while it is read has changed since.
        let after = file.metadata().ok().as_ref().and_then(self::identity);
        if let Some(identity) = identity.filter(|before| after.as_ref() == Some(before)) {
            self.known.insert(identity, hash.clone());
            self.changed = true;
        }
        Ok(hash)
    }
}

impl Drop for Hashes {
    fn drop(&mut self) {
        if !self.changed {
            return;
        }
        let write = || -> std::io::Result<()> {
            let mut file = pending::builder(0o600).tempfile_in(pending::parent(&self.list))?;
            file.write_all(&serde_json::to_vec(&self.known)?)?;
            file.persist(&self.list)?;
            Ok(())
        };
        // They are hashed again the next time.
        let _ = write();
    }
}

/// What changes when a file's contents do: its place on the disk, size, and the times of its last write and of its last change in
/// anything, which no program can set back.
#[cfg(unix)]
fn identity(metadata: &Metadata) -> Option<String> {
    use std::os::unix::fs::MetadataExt as _;
    let written = metadata.modified().ok()?.duration_since(UNIX_EPOCH).ok()?.as_nanos();
    let changed = (metadata.ctime(), metadata.ctime_nsec());
    Some(format!("{} {} {} {written} {}.{}", metadata.dev(), metadata.ino(), metadata.len(), changed.0, changed.1))
}

/// Nothing tells for sure.
#[cfg(not(unix))]
fn identity(_: &Metadata) -> Option<String> {
    let _ = UNIX_EPOCH;
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hash_is_that_of_the_contents_whatever_was_known_before() {
        let folder = tempfile::tempdir().expect("a folder");
        let (list, file) = (folder.path().join("hashes.json"), folder.path().join("weights"));
        let hash = |bytes: &[u8]| blake3::hash(bytes).to_hex().to_string();
        fs::write(&file, b"one").expect("written");
        assert_eq!(Hashes::open(&list).of(&file).expect("read"), hash(b"one"));
        // Of the same size, a moment later.
        std::thread::sleep(std::time::Duration::from_millis(20));
        fs::write(&file, b"two").expect("written");
        assert_eq!(Hashes::open(&list).of(&file).expect("read"), hash(b"two"));
        #[cfg(unix)]
        {
            // It is the list that tells: with another hash in it, that one comes.
            let text = fs::read_to_string(&list).expect("a list");
            fs::write(&list, text.replace(&hash(b"two"), "known")).expect("written");
            assert_eq!(Hashes::open(&list).of(&file).expect("read"), "known");
        }
        fs::write(&list, b"{broken").expect("written");
        assert_eq!(Hashes::open(&list).of(&file).expect("read"), hash(b"two"));
        assert!(Hashes::open(&list).of(&folder.path().join("none")).is_err());
    }
}
