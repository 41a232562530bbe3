//! Single files of a bundle: safe paths, sizes and hashes.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::Path;

use super::error::BundleError;
use super::manifest::MANIFEST;

/// Longest safetensors header, by its format.
const MAX_HEADER: u64 = 100_000_000;
/// How many pieces of a large file are looked at, and bytes of each.
const SAMPLES: u64 = 64;
const SAMPLE: u64 = 4096;

/// Checks that `path` is relative, does not climb, means the same on every system and is not the manifest's.
pub(super) fn check_plain(path: &str, bundle: &Path) -> Result<(), BundleError> {
    let odd = |c: char| c.is_control() || matches!(c, '\\' | ':' | '*' | '?' | '"' | '<' | '>' | '|');
    let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    if path.len() <= 1024 && !path.contains(odd) && path.split('/').all(plain) && path != MANIFEST {
        return Ok(());
    }
    let path = path.chars().take(200).flat_map(char::escape_debug).collect();
    Err(BundleError::UnsafePath { path, bundle: bundle.into() })
}

/// Opens `path` when it is a regular file; opening anything else could wait forever.
pub(super) fn open(path: &Path) -> Result<(File, u64), BundleError> {
    let regular = |metadata: &fs::Metadata| {
        let found = if metadata.is_dir() { "a directory" } else { "a special file" };
        let path = path.to_path_buf();
        if metadata.is_file() { Ok(()) } else { Err(BundleError::NotAFile { path, found }) }
    };
    regular(&fs::metadata(path).map_err(BundleError::io(path))?)?;
    let file = File::open(path).map_err(BundleError::io(path))?;
    let metadata = file.metadata().map_err(BundleError::io(path))?;
    regular(&metadata)?;
    Ok((file, metadata.len()))
}

/// All of a file of at most `limit` bytes.
pub(super) fn read_small(path: &Path, limit: u64) -> Result<Vec<u8>, BundleError> {
    let mut bytes = Vec::new();
    open(path)?.0.take(limit + 1).read_to_end(&mut bytes).map_err(BundleError::io(path))?;
    if bytes.len() as u64 <= limit {
        return Ok(bytes);
    }
    let problem = format!("expected at most {limit} bytes, found more");
    Err(BundleError::Manifest { path: path.into(), problem })
}

/// Checks that `path` is a regular file inside `root` (which is canonical) of `expected` bytes.
pub(super) fn check_size(path: &Path, root: &Path, expected: u64) -> Result<(), BundleError> {
    let real = path.canonicalize().map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => BundleError::MissingFile { path: path.into() },
        _ => BundleError::Io { path: path.into(), source },
    })?;
    if !real.starts_with(root) {
        return Err(BundleError::NotAFile { path: path.into(), found: "a link out of the bundle" });
    }
    let (_, found) = open(path)?;
    if found == expected { Ok(()) } else { Err(BundleError::Size { path: path.into(), expected, found }) }
}

/// Hash of all of `path`.
pub(super) fn hash(path: &Path) -> Result<String, BundleError> {
    let (file, _) = open(path)?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(BundleError::io(path))?;
    Ok(hasher.finalize().to_hex().to_string())
}

/// Hash of the safetensors header of `path` with its eight bytes of length; none when it has no such header.
pub(super) fn header_hash(path: &Path) -> Result<Option<String>, BundleError> {
    let (mut file, bytes) = open(path)?;
    let mut start = [0; 8];
    if bytes < 8 {
        return Ok(None);
    }
    file.read_exact(&mut start).map_err(BundleError::io(path))?;
    let length = u64::from_le_bytes(start);
    if length > MAX_HEADER || length > bytes - 8 {
        return Ok(None);
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&start);
    hasher.update_reader(file.take(length)).map_err(BundleError::io(path))?;
    Ok(Some(hasher.finalize().to_hex().to_string()))
}

/// Puts pieces of `path`, spread evenly over it, into `hasher`.
pub(super) fn sample(path: &Path, hasher: &mut blake3::Hasher) -> Result<(), BundleError> {
    let (mut file, bytes) = open(path)?;
    for i in 0..SAMPLES {
        let at = bytes.saturating_sub(SAMPLE) / (SAMPLES - 1) * i;
        file.seek(SeekFrom::Start(at)).map_err(BundleError::io(path))?;
        hasher.update_reader((&mut file).take(SAMPLE)).map_err(BundleError::io(path))?;
    }
    Ok(())
}
