//! How much memory this process holds at most, in stretches of time.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde::Serialize;

/// How often the memory is looked at; what is held for less than this may be missed.
const INTERVAL: Duration = Duration::from_millis(5);

/// The most memory that was resident at once, in bytes; the peaks need not be at the same moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Backed by no file: what the machine must have.
    pub anonymous: u64,
    /// Pages of mapped files, such as weights, which the system drops when it needs the room.
    pub mapped: u64,
    /// Both together.
    pub total: u64,
}

/// Watches the memory of this process, on Linux.
pub struct Meter {
    peaks: Arc<Peaks>,
    thread: Option<JoinHandle<()>>,
    /// Whether the system's own peak was reset at the last lap.
    is_reset: bool,
}

/// Peaks since the last lap, in bytes.
#[derive(Default)]
struct Peaks {
    anonymous: AtomicU64,
    mapped: AtomicU64,
    total: AtomicU64,
    stop: AtomicBool,
}

impl Meter {
    /// Begin; none where `/proc/self/status` does not tell the memory.
    #[must_use]
    pub fn start() -> Option<Self> {
        Now::look()?;
        let peaks = Arc::new(Peaks::default());
        let watched = peaks.clone();
        let watch = move || {
            while !watched.stop.load(Ordering::Relaxed) {
                watched.note();
                thread::sleep(INTERVAL);
            }
        };
        let thread = Some(thread::Builder::new().name("memory".into()).spawn(watch).ok()?);
        Some(Self { peaks, thread, is_reset: reset_peak() })
    }

    /// The peaks since the start or the last lap.
    ///
    /// The total is exact where the system lets its own peak be reset; otherwise, and for the parts, memory is looked at every
    /// five milliseconds.
    pub fn lap(&mut self) -> Memory {
        let now = self.peaks.note();
        let take = |peak: &AtomicU64| peak.swap(0, Ordering::Relaxed);
        let [anonymous, mapped, total] = [&self.peaks.anonymous, &self.peaks.mapped, &self.peaks.total].map(take);
        let exact = now.filter(|_| self.is_reset).map_or(0, |now| now.peak);
        self.is_reset = reset_peak();
        Memory { anonymous, mapped, total: total.max(exact) }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.peaks.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A thread that only reads a file ends by itself.
            let _ = thread.join();
        }
    }
}

impl Peaks {
    fn note(&self) -> Option<Now> {
        let now = Now::look()?;
        self.anonymous.fetch_max(now.anonymous, Ordering::Relaxed);
        self.mapped.fetch_max(now.mapped, Ordering::Relaxed);
        self.total.fetch_max(now.anonymous + now.mapped, Ordering::Relaxed);
        Some(now)
    }
}

/// Memory at this moment, in bytes.
struct Now {
    anonymous: u64,
    mapped: u64,
    /// The largest total since the system's peak was reset.
    peak: u64,
}

impl Now {
    fn look() -> Option<Self> {
        Self::parse(&fs::read_to_string("/proc/self/status").ok()?)
    }

    /// Lines such as `RssAnon:      1234 kB`.
    fn parse(status: &str) -> Option<Self> {
        let bytes = |field: &str| {
            let rest = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
            rest.trim().strip_suffix(" kB")?.parse::<u64>().ok()?.checked_mul(1024)
        };
        let mapped = bytes("RssFile")?.checked_add(bytes("RssShmem")?)?;
        Some(Self { anonymous: bytes("RssAnon")?, mapped, peak: bytes("VmHWM")? })
    }
}

/// Let the system's peak begin anew (`proc_pid_clear_refs(5)`); whether it does.
fn reset_peak() -> bool {
    let file = OpenOptions::new().write(true).open("/proc/self/clear_refs");
    file.is_ok_and(|mut file| file.write_all(b"5").is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_read_in_bytes_and_a_damaged_one_is_none() {
        let status = "Name:\tx\nVmHWM:\t    30 kB\nRssAnon:\t 10 kB\nRssFile:\t   5 kB\nRssShmem:\t 2 kB\n";
        let now = Now::parse(status).map(|now| (now.anonymous, now.mapped, now.peak));
        assert_eq!(now, Some((10 << 10, 7 << 10, 30 << 10)));
        assert!(Now::parse(&status.replace("10 kB", "10 pages")).is_none());
        assert!(Now::parse(&status.replace("RssFile", "File")).is_none());
    }

    #[test]
    fn a_lap_has_its_own_peak() {
        let Some(mut meter) = Meter::start() else {
            println!("skipped: this system does not tell a process its memory");
            return;
        };
        let size = 256 << 20;
        let small = meter.lap();
        let block = std::hint::black_box(vec![1_u8; size]);
        drop(block);
        let large = meter.lap();
        let after = meter.lap();
        let more = |a: Memory, b: Memory| a.total.saturating_sub(b.total) > size as u64 / 2;
        assert!(more(large, small), "{small:?} {large:?}");
        assert!(more(large, after), "{large:?} {after:?}");
    }
}
