//! The fuzz targets on their corpus, and on some thousand changes of it that are the same in every run: no panic, no hang, no
//! memory that the input does not account for.

use std::fs;
use std::panic::catch_unwind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

#[path = "../fuzz/src/lib.rs"]
mod targets;

/// Changed inputs of each target.
const CHANGES: usize = 3000;
/// Longest time for one input; the slowest takes some milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);
/// Most memory that all of this may take, in bytes: a corpus file has less than 30 kB.
const MEMORY: u64 = 512 << 20;
/// What headers, lengths and counts are tried with.
const NUMBERS: [u64; 8] = [0, 1, 0x7f, 0xff, 0xffff, 0x7fff_ffff, 0x7fff_ffff_ffff_ffff, u64::MAX];

fn corpus(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display())).flatten();
    let read = |path: PathBuf| (path.display().to_string(), fs::read(&path).expect("readable"));
    let mut files: Vec<_> = entries.map(|entry| read(entry.path())).collect();
    files.sort();
    assert!(files.len() >= 3, "{target}: a corpus of {} files", files.len());
    files
}

/// Numbers that look random (splitmix64).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("below a size")
    }
}

/// One to four changes of `bytes`: a byte, a number, a piece cut out, doubled, or taken from `other`.
fn change(bytes: &mut Vec<u8>, other: &[u8], numbers: &mut Numbers) {
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len());
        let end = (at + 1 + numbers.below(16)).min(bytes.len());
        match numbers.below(7) {
            0 if !bytes.is_empty() => bytes[at] = numbers.next().to_le_bytes()[0],
            1 if !bytes.is_empty() => bytes[at] ^= 1 << numbers.below(8),
            2 => drop(bytes.drain(at..end)),
            3 => {
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            4 => {
                let from = numbers.below(other.len());
                let piece = other[from..(from + numbers.below(64)).min(other.len())].to_vec();
                bytes.splice(at..end, piece);
            }
            5 => {
                let number = NUMBERS[numbers.below(NUMBERS.len())];
                let binary = number.to_le_bytes()[..1 << numbers.below(4)].to_vec();
                let piece = if numbers.below(2) == 0 { number.to_string().into_bytes() } else { binary };
                bytes.splice(at..end, piece);
            }
            _ => bytes.truncate(at.max(1)),
        }
    }
}

fn run(name: &str, target: fn(&[u8]) -> bool) {
    let files = corpus(name);
    let mut numbers = Numbers(7);
    let attempt = |what: &str, bytes: &[u8]| {
        let since = Instant::now();
        let accepted = catch_unwind(|| target(bytes));
        assert!(accepted.is_ok(), "{name}: a panic on {what}: {:?}", String::from_utf8_lossy(bytes));
        assert!(since.elapsed() < PATIENCE, "{name}: {:?} for {what}", since.elapsed());
        accepted.is_ok_and(|accepted| accepted)
    };
    // Only inputs that are whole let changes past the first checks.
    let accepted = files.iter().filter(|(file, bytes)| attempt(file, bytes)).count();
    assert!(accepted * 2 > files.len(), "{name}: {accepted} of {} files are accepted", files.len());
    for i in 0..CHANGES {
        let (file, bytes) = &files[i % files.len()];
        let mut bytes = bytes.clone();
        let (_, other) = &files[numbers.below(files.len())];
        change(&mut bytes, other, &mut numbers);
        attempt(&format!("change {i}, of {file}"), &bytes);
    }
    if let Some(peak) = peak() {
        assert!(peak < MEMORY, "{name}: {peak} bytes");
    }
}

/// Most memory this process has had.
fn peak() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

#[test]
fn safetensors() {
    run("safetensors", targets::safetensors);
}

#[test]
fn config() {
    run("config", targets::config);
}

#[test]
fn spiece() {
    run("spiece", targets::spiece);
}

#[test]
fn onnx() {
    run("onnx", targets::onnx);
}

#[test]
fn manifest() {
    run("manifest", targets::manifest);
}

#[test]
fn table() {
    run("table", targets::table);
}

#[test]
fn state() {
    run("state", targets::state);
}
