//! What a run costs: seconds and memory, stage by stage.

mod memory;

use std::time::Instant;

use serde::Serialize;

pub use memory::{Memory, Meter};

/// Seconds of processor time this process has taken, all threads together; none where the system does not tell.
#[must_use]
pub fn cpu_seconds() -> Option<f64> {
    #[cfg(target_os = "linux")]
    {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        #[allow(clippy::cast_precision_loss)] // Far fewer than 2^52 seconds.
        Some(time.tv_sec as f64 + time.tv_nsec as f64 / 1e9)
    }
    #[cfg(not(target_os = "linux"))]
    None
}

use crate::pipeline::Stage;

/// What one stage of a run took.
#[derive(Clone, Debug, Serialize)]
pub struct StageStats {
    /// The stage.
    pub stage: Stage,
    /// Seconds from its begin, loading included, to the next one's.
    pub seconds: f64,
    /// Denoising steps done, or frames decoded; 0 in stages that do one thing.
    pub count: usize,
    /// The most memory it held; absent where the system does not tell.
    pub memory: Option<Memory>,
}

/// Takes the stages' time and memory while a run is made: an observer tells it what happens.
///
/// ```
/// use cogvx::pipeline::Stage;
/// use cogvx::stats::Stats;
/// let mut stats = Stats::start();
/// stats.stage(Stage::Denoise);
/// stats.count(1);
/// let stages = stats.finish();
/// assert_eq!((stages[0].stage, stages[0].count), (Stage::Denoise, 1));
/// ```
pub struct Stats {
    meter: Option<Meter>,
    current: Option<(Stage, Instant, usize)>,
    done: Vec<StageStats>,
}

impl Stats {
    /// Begin to look at this process's memory, from a thread of its own.
    #[must_use]
    pub fn start() -> Self {
        Self { meter: Meter::start(), current: None, done: vec![] }
    }

    /// A stage begins and the one before it ends.
    pub fn stage(&mut self, stage: Stage) {
        self.end();
        self.current = Some((stage, Instant::now(), 0));
    }

    /// So many more steps or frames of the stage are done.
    pub fn count(&mut self, more: usize) {
        if let Some((.., count)) = &mut self.current {
            *count += more;
        }
    }

    /// The last stage ends; all of them in order.
    #[must_use]
    pub fn finish(mut self) -> Vec<StageStats> {
        self.end();
        self.done
    }

    fn end(&mut self) {
        let memory = self.meter.as_mut().map(Meter::lap);
        if let Some((stage, since, count)) = self.current.take() {
            self.done.push(StageStats { stage, seconds: since.elapsed().as_secs_f64(), count, memory });
        }
    }
}
