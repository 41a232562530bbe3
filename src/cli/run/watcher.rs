//! Looks on while videos are made: progress, frames to their files, states to theirs.

use std::cell::RefCell;
use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Instant;

use ndarray::ArrayD;

use super::saver::Saver;
use crate::cli::progress::{Progress, say};
use crate::pipeline::{Observer, Pipeline, PipelineError, Reads, Request, Runs, Shortcuts, Stage, Walk};
use crate::runtime::Outputs;
use crate::stats::Stats;
use crate::video::{FrameSink, VideoError, open_sink, to_rgb8};

/// A video that is to be made.
pub(super) struct Planned {
    pub output: PathBuf,
    pub fps: f64,
    /// Frames, rows and columns.
    pub size: [usize; 3],
    /// Steps left.
    pub steps: usize,
    pub saver: Option<Saver>,
    pub written: usize,
    /// How often the transformer ran, where steps leave out some of it.
    pub runs: Option<Runs>,
}

impl Planned {
    /// The video of a request, found to have a place at `output`.
    pub fn new(output: &Path, fps: f64, pipeline: &Pipeline, request: &Request) -> Result<Self, VideoError> {
        let Request { frames, height, width, steps, .. } = *request;
        let frames = pipeline.decoded_frames(frames);
        let runs = (request.shortcuts != Shortcuts::default()).then(Runs::default);
        let size = [frames, height, width];
        let planned = Self { output: output.into(), fps, size, steps, saver: None, written: 0, runs };
        // What can be refused without frames is refused before the work.
        planned.open().map(drop)?;
        Ok(planned)
    }

    /// It is made from `walk` on.
    pub fn goes_on(&mut self, walk: &Walk) {
        self.steps = walk.steps() - walk.done();
        self.saver = self.saver.take().map(|saver| saver.has(walk));
    }

    fn open(&self) -> Result<Box<dyn FrameSink>, VideoError> {
        let [frames, height, width] = self.size;
        open_sink(&self.output, width, height, self.fps, frames)
    }
}

/// The observer of all videos of a command.
pub(super) struct Watcher<'a> {
    /// By number; none for what failed.
    videos: &'a RefCell<Vec<Option<Planned>>>,
    /// Of each, its place in the file of prompts.
    numbers: Option<&'a RefCell<Vec<usize>>>,
    /// The one that is worked on, of so many.
    video: usize,
    of: usize,
    sink: Option<Box<dyn FrameSink>>,
    stats: Option<Stats>,
    progress: Option<Progress>,
    stage: Option<Stage>,
    since: Instant,
    /// Steps or frames of the stage.
    done: usize,
    total: usize,
}

impl<'a> Watcher<'a> {
    pub fn new(videos: &'a RefCell<Vec<Option<Planned>>>, of: usize, stats: Option<Stats>) -> Self {
        let since = Instant::now();
        Self {
            videos,
            numbers: None,
            video: 0,
            of,
            sink: None,
            stats,
            progress: None,
            stage: None,
            since,
            done: 0,
            total: 0,
        }
    }

    /// Videos are called by these numbers, counted from 0.
    pub fn numbered(&mut self, numbers: &'a RefCell<Vec<usize>>) {
        self.numbers = Some(numbers);
    }

    pub fn clear(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.clear();
        }
    }

    pub fn into_stats(mut self) -> Option<Stats> {
        self.clear();
        self.stats.take()
    }

    /// What the line on a step or frame says of its video.
    fn of_video(&self) -> String {
        self.numbers.map_or_else(String::new, |_| format!(" of {}", self.name(self.video)))
    }

    fn name(&self, video: usize) -> String {
        let number = self.numbers.and_then(|numbers| numbers.borrow().get(video).copied());
        format!("video {}/{}", number.unwrap_or(video) + 1, self.of)
    }

    fn count(&mut self, more: usize) {
        self.done += more;
        if let Some(stats) = &mut self.stats {
            stats.count(more);
        }
    }

    /// The file of the video is complete.
    pub fn finish(&mut self) -> Result<(), VideoError> {
        self.sink.take().map_or(Ok(()), FrameSink::finish)
    }
}

impl Observer for Watcher<'_> {
    fn reads(&self) -> Reads {
        let saves = self.videos.borrow().iter().flatten().any(|video| video.saver.is_some());
        if saves { Reads::Steps } else { Reads::Nothing }
    }

    fn stage(&mut self, stage: Stage) {
        self.clear();
        if let Some(stats) = &mut self.stats {
            stats.stage(stage);
        }
        (self.stage, self.since, self.done) = (Some(stage), Instant::now(), 0);
        let videos = self.videos.borrow();
        let videos = videos.iter().flatten();
        (self.total, self.progress) = match stage {
            Stage::Denoise => {
                let total = videos.map(|video| video.steps).sum();
                (total, Some(Progress::steps("denoising", total)))
            }
            Stage::Text if self.numbers.is_some() => (self.of, Some(Progress::steps("encoding", self.of))),
            // Encoding takes one call; decoding knows its frames when the first ones come.
            Stage::Text | Stage::Encode | Stage::Decode => (videos.map(|video| video.size[0]).sum(), None),
        };
    }

    fn video(&mut self, video: usize) {
        self.video = video;
    }

    fn ran(&mut self, _: &'static str, _: usize, _: usize, _: &Outputs) {
        if self.stage == Some(Stage::Text) && self.numbers.is_some() {
            self.count(1);
            if let Some(progress) = &self.progress {
                progress.reach(self.done);
            }
        }
    }

    fn step(&mut self, step: usize, steps: usize, _: &ArrayD<f32>) {
        self.count(1);
        let (done, total, since) = (self.done, self.total, self.since);
        if let Some(progress) = &self.progress {
            progress.step(done, || {
                let spent = since.elapsed();
                let count = |n: usize| u32::try_from(n).unwrap_or(1);
                let left = spent / count(done.max(1)) * count(total.saturating_sub(done));
                format!("step {step}/{steps}{}, {:.1} s left", self.of_video(), left.as_secs_f64())
            });
        }
    }

    fn walked(&mut self, walk: &Walk) {
        let mut videos = self.videos.borrow_mut();
        let Some(video) = videos.get_mut(self.video).and_then(Option::as_mut) else { return };
        if let Some(saver) = &mut video.saver {
            saver.save(walk);
        }
        if let Some(runs) = &mut video.runs {
            *runs = walk.runs();
        }
    }

    fn frames(&mut self, frames: ArrayD<f32>, total: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        let mut videos = self.videos.borrow_mut();
        let Some(video) = videos.get_mut(self.video).and_then(Option::as_mut) else { return Ok(()) };
        let sink = match &mut self.sink {
            Some(sink) => sink,
            none => none.insert(video.open()?),
        };
        let size = frames.len() / frames.shape()[0];
        for frame in to_rgb8(frames.as_slice().unwrap_or_default()).chunks_exact(size) {
            sink.write(frame)?;
            video.written += 1;
        }
        let written = video.written;
        drop(videos);
        self.count(frames.shape()[0]);
        let all = if self.numbers.is_none() { total } else { self.total };
        let (done, of) = (self.done, self.of_video());
        let progress = self.progress.get_or_insert_with(|| Progress::steps("decoding", all));
        progress.step(done, || format!("frame {written}/{total}{of}"));
        Ok(())
    }

    fn finished(&mut self, _: usize) -> Result<(), Box<dyn Error + Send + Sync>> {
        Ok(self.finish()?)
    }

    fn failed(&mut self, video: usize, why: &PipelineError) {
        // What it has of a file goes.
        self.sink = None;
        let planned = self.videos.borrow_mut().get_mut(video).and_then(Option::take);
        let output = planned.map(|video| format!(", `{}`", video.output.display())).unwrap_or_default();
        say(&format!("{}{output}: {why}", self.name(video)));
    }
}
