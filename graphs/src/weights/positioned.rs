//! Reads at an offset. Not a memory map: a file that shrinks gives an error, not a signal.

use std::fs::File;
use std::io;

/// The bytes of a weight file.
#[derive(Debug)]
pub(super) enum Bytes {
    /// On disk.
    File(File),
    /// In memory.
    Memory(Vec<u8>),
}

impl Bytes {
    /// Fills `buf` from byte `at` on; an end before that gives [`io::ErrorKind::UnexpectedEof`].
    pub fn read_exact_at(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        match self {
            Self::File(file) => read_exact_at(file, buf, at),
            Self::Memory(bytes) => {
                let start = usize::try_from(at).ok();
                let range = start.and_then(|start| bytes.get(start..start.checked_add(buf.len())?));
                buf.copy_from_slice(range.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    /// How many there are now; 0 where the system does not say.
    pub fn len(&self) -> u64 {
        match self {
            Self::File(file) => file.metadata().map_or(0, |metadata| metadata.len()),
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }
}

/// Fills `buf` from byte `at` on.
///
/// # Errors
/// What the system tells; a file that ends before gives [`io::ErrorKind::UnexpectedEof`].
#[cfg(unix)]
pub fn read_exact_at(file: &File, buf: &mut [u8], at: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buf, at)
}

/// Fills `buf` from byte `at` on.
///
/// # Errors
/// What the system tells; a file that ends before gives [`io::ErrorKind::UnexpectedEof`].
#[cfg(windows)]
pub fn read_exact_at(file: &File, mut buf: &mut [u8], mut at: u64) -> io::Result<()> {
    use std::os::windows::fs::FileExt as _;
    while !buf.is_empty() {
        match file.seek_read(buf, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
