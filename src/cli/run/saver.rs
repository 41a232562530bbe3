//! States of runs in files, to go on from.

use std::path::{Path, PathBuf};

use anyhow::bail;

use crate::cli::progress::say;
use crate::pending;
use crate::pipeline::{Pipeline, Request, RunId, Walk};

/// Writes the state of a run after each step.
pub(super) struct Saver {
    path: PathBuf,
    id: RunId,
    /// Steps of the state that is there, and in all.
    pub saved: Option<[usize; 2]>,
    failed: bool,
}

impl Saver {
    /// One that writes to `path`, where a file can be made.
    pub fn new(path: &Path, pipeline: &Pipeline, request: &Request) -> anyhow::Result<Self> {
        if let Err(e) = pending::builder(0o666).tempfile_in(pending::parent(path)) {
            bail!("cannot write `{}`: {}", path.display(), std::io::Error::from(e.kind()));
        }
        Ok(Self { path: path.into(), id: pipeline.run_id(request)?, saved: None, failed: false })
    }

    /// The state of `walk` is there.
    pub fn has(mut self, walk: &Walk) -> Self {
        self.saved = Some([walk.done(), walk.steps()]);
        self
    }

    /// A state that cannot be written is no reason to lose the video.
    pub fn save(&mut self, walk: &Walk) {
        match walk.save(&self.path, &self.id) {
            Ok(()) => self.saved = Some([walk.done(), walk.steps()]),
            Err(e) if !self.failed => {
                say(&format!("warning: {e}: the run goes on without"));
                self.failed = true;
            }
            Err(_) => {}
        }
    }

    /// Nothing is left to go on with.
    pub fn remove(&self) {
        if self.saved.is_some() {
            // One that stays is taken for a finished run's, which it is.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
