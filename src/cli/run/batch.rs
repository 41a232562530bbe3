//! `cogvx run --prompts`: many videos.

use std::cell::RefCell;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{anyhow, bail};
use serde_json::{Value, json};

use super::lines::{Form, Line, read};
use super::saver::Saver;
use super::watcher::{Planned, Watcher};
use super::{Answer, Args, StatsForm, how_to_go_on, is_free, limit, same_place, show};
use crate::cli::engines::prepared;
use crate::cli::interrupt::Interrupted;
use crate::cli::open;
use crate::pipeline::{Job, Pipeline, PipelineError};
use crate::runtime::{Device, RuntimeError};
use crate::stats::Stats;

/// The one size of all videos, where they are made with TensorRT: its engines are loaded once, and have one.
fn size(lines: &[Line], pipeline: &Pipeline) -> anyhow::Result<Option<[usize; 3]>> {
    if pipeline.runtime().device() != Device::TensorRt {
        return Ok(None);
    }
    let own = pipeline.request("")?;
    let mut sizes = lines.iter().map(|Line { wish, .. }| {
        [wish.frames.unwrap_or(own.frames), wish.height.unwrap_or(own.height), wish.width.unwrap_or(own.width)]
    });
    let first = sizes.next();
    if let (Some(first), Some(other)) = (first, sizes.find(|size| Some(*size) != first)) {
        let [first, other] = [first, other].map(|size| size.map(|n| n.to_string()).join("x"));
        bail!("with TensorRT: expected videos of one size, found {first} and {other}: make a batch of each size");
    }
    Ok(first)
}

/// What became of a video.
enum Outcome {
    /// It is there from the run that this one goes on with.
    Before,
    /// Frames, rows and columns.
    Made([usize; 3]),
    Failed(String),
}

pub(super) fn run(args: &Args, prompts: &Path) -> anyhow::Result<Answer> {
    let lines = read(prompts, &args.wish, &args.output, args.format.unwrap_or(Form::Mp4))?;
    let states = args.save_state.as_ref().or(args.resume.as_ref());
    if let Some(path) = states.filter(|path| same_place(path, &args.output)) {
        bail!("`{}`: expected another folder than the videos'", path.display());
    }
    if let Some(path) = &args.save_state {
        is_free(path, true)?;
    }
    if let Some(path) = args.resume.as_ref().filter(|path| !path.is_dir()) {
        bail!(
            "`{}`: expected a folder of states, as `--save-state` with `--prompts` makes it, found none",
            path.display()
        );
    }
    if args.output.exists() && !args.output.is_dir() {
        bail!("`{}`: expected a folder for the videos, found a file", args.output.display());
    }
    let opened = open(&args.bundle, args.threads, &args.gpu.or_on(args.cpu.within(args.max_memory)).through(args.rtx))?;
    // A limit of memory may choose tiles for any of them.
    let tiled = args.max_memory.is_some() || lines.iter().any(|line| line.wish.vae_tiling);
    let mut opened = match size(&lines, &opened.pipeline)? {
        Some(size) => prepared(opened, size, tiled)?,
        None => opened,
    };
    if args.max_memory.is_some() && opened.pipeline.runtime().device() == Device::Cuda {
        // What is wrong with a line is told when it is its turn.
        let requests: Vec<_> = lines.iter().filter_map(|line| line.wish.request(&opened.pipeline).ok()).collect();
        opened.pipeline = limit::streaming(args, opened.pipeline, &requests)?;
    }
    let made_folders = [Some(&args.output), states].into_iter().flatten().map(|path| Folder::new(path));
    let _made_folders = made_folders.collect::<anyhow::Result<Vec<_>>>()?;

    let videos = RefCell::new(vec![]);
    // The line of each video: those that are there already are no videos of this run.
    let numbers = RefCell::new(vec![]);
    let jobs = lines.iter().enumerate().filter_map(|(number, line)| {
        let (planned, job) = match begin(args, &opened.pipeline, line, number + 1, states).transpose()? {
            Ok((planned, job)) => (Some(planned), Ok(job)),
            Err(why) => (None, Err(PipelineError::Sink(why.into()))),
        };
        videos.borrow_mut().push(planned);
        numbers.borrow_mut().push(number);
        Some(job)
    });
    let mut watcher = Watcher::new(&videos, lines.len(), args.stats.map(|_| Stats::start()));
    watcher.numbered(&numbers);
    let results = opened.pipeline.generate_all(jobs, &mut watcher);
    watcher.clear();
    if let Err(PipelineError::Runtime(RuntimeError::Interrupted)) = results {
        return Err(interrupted(args, &videos.borrow(), states));
    }
    let results = results?;
    let stages = watcher.into_stats().map(Stats::finish);
    let mut outcomes: Vec<_> = lines.iter().map(|_| Outcome::Before).collect();
    for ((result, &number), video) in results.into_iter().zip(&*numbers.borrow()).zip(&*videos.borrow()) {
        outcomes[number] = match (result, video) {
            (Ok(()), Some(video)) => Outcome::Made([video.written, video.size[1], video.size[2]]),
            (result, _) => Outcome::Failed(result.err().map(|why| why.to_string()).unwrap_or_default()),
        };
    }
    let failed = outcomes.iter().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count();
    if let Some(states) = states.filter(|_| failed == 0) {
        // Nothing is left to go on with.
        for line in &lines {
            let _ = fs::remove_file(state_of(states, line));
        }
        let _ = fs::remove_dir(states);
    }
    let mut out = std::io::stdout().lock();
    if args.stats == Some(StatsForm::Json) {
        let videos: Vec<_> = lines.iter().zip(&outcomes).map(|(line, outcome)| in_json(line, outcome)).collect();
        writeln!(out, "{}", serde_json::to_string_pretty(&json!({"videos": videos, "stages": stages}))?)?;
    } else {
        for (line, outcome) in lines.iter().zip(&outcomes) {
            let output = line.output.display();
            match outcome {
                Outcome::Before => writeln!(out, "{output}: there already")?,
                Outcome::Made([frames, height, width]) => {
                    writeln!(out, "{output}: {frames} frames of {width}x{height}")?;
                }
                Outcome::Failed(why) => writeln!(out, "{output}: failed: {why}")?,
            }
        }
        writeln!(out, "{} of {} videos", lines.len() - failed, lines.len())?;
        if let Some(stages) = stages {
            writeln!(out, "{}", show::table(&stages))?;
        }
    }
    Ok(if failed == 0 { Answer::Done } else { Answer::No })
}

/// The video of a line: nothing to do where the run that this one goes on with has made it.
fn begin(
    args: &Args,
    pipeline: &Pipeline,
    line: &Line,
    number: usize,
    states: Option<&PathBuf>,
) -> anyhow::Result<Option<(Planned, Job)>> {
    let request = limit::within(args, pipeline, line.wish.request(pipeline)?, &format!("video {number}: "))?;
    let mut planned = Planned::new(&line.output, line.wish.fps, pipeline, &request)?;
    let Some(states) = states else {
        show::warn(pipeline, &request, &format!("video {number}: "))?;
        return Ok(Some((planned, request.into())));
    };
    let state = state_of(states, line);
    planned.saver = Some(Saver::new(&state, pipeline, &request)?);
    let is_begun = args.resume.is_some() && state.symlink_metadata().is_ok();
    let walk = if is_begun { Some(pipeline.open_state(&state, &request)?) } else { None };
    if let Some(walk) = &walk {
        // A video that is younger than its last state was made of it.
        let written = |path: &Path| path.symlink_metadata().and_then(|metadata| metadata.modified()).ok();
        if walk.is_done() && written(&line.output).is_some_and(|video| Some(video) >= written(&state)) {
            return Ok(None);
        }
        planned.goes_on(walk);
    }
    show::warn(pipeline, &request, &format!("video {number}: "))?;
    Ok(Some((planned, Job { request, walk })))
}

/// Where the state of a line's video is.
fn state_of(states: &Path, line: &Line) -> PathBuf {
    let mut name = line.output.file_name().unwrap_or_default().to_os_string();
    name.push(".state");
    states.join(name)
}

fn interrupted(args: &Args, videos: &[Option<Planned>], states: Option<&PathBuf>) -> anyhow::Error {
    let mut text = "interrupted".to_string();
    let is_saved = videos.iter().flatten().any(|video| video.saver.as_ref().is_some_and(|s| s.saved.is_some()));
    if let Some(path) = states.filter(|_| is_saved) {
        text = text + ": " + &how_to_go_on(args, path);
    }
    anyhow!(Interrupted(text))
}

fn in_json(line: &Line, outcome: &Outcome) -> Value {
    let mut video = json!({"output": line.output, "prompt": line.wish.prompt, "seed": line.wish.seed});
    match outcome {
        Outcome::Before => video["before"] = true.into(),
        Outcome::Made([frames, height, width]) => {
            (video["frames"], video["height"], video["width"]) = ((*frames).into(), (*height).into(), (*width).into());
        }
        Outcome::Failed(why) => video["error"] = why.as_str().into(),
    }
    video
}

/// A folder made for files, which goes if none came.
struct Folder(Option<PathBuf>);

impl Folder {
    fn new(path: &Path) -> anyhow::Result<Self> {
        if path.is_dir() {
            return Ok(Self(None));
        }
        fs::create_dir_all(path).map_err(|e| crate::cli::unwritable(path, &e))?;
        Ok(Self(Some(path.into())))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Some(path) = &self.0 {
            // One that holds something stays.
            let _ = fs::remove_dir(path);
        }
    }
}
