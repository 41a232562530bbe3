//! Running the float model to see what its layers read.

mod fingerprint;

use std::collections::BTreeMap;
use std::path::Path;

use cogvx_calibration::observe::Seen;
use cogvx_calibration::table::{Run, Table, TableError};
use ndarray::ArrayD;

use crate::pending;
use crate::pipeline::{Observer, Pipeline, PipelineError, Prompt};
use crate::runtime::Outputs;

pub use fingerprint::{FingerprintError, fingerprint, vae_fingerprint};

/// The prompts that are run if none are given, one a line.
pub const PROMPTS: &str = include_str!("../calibration/prompts.txt");

/// What is kept of what is seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keep {
    /// Ranges that the steps are divided into, each with bounds of its own.
    pub ranges: usize,
    /// Rows kept of each place, drawn from all.
    pub rows: usize,
}

/// Take what a run of `pipeline`, whose graphs were exported to be observed, shows into `table`. The image that it starts from, if
/// it does, is the file `image`. `step` is told each step and how many there are.
///
/// # Errors
/// A request the model cannot fulfil, an image that cannot be read, a failure of the runtime, or an interrupt; the table then holds a part of the run.
pub fn observe(
    pipeline: &Pipeline,
    table: &mut Table,
    (run, image): (&Run, Option<&Path>),
    keep: Keep,
    step: impl FnMut(usize, usize),
) -> Result<(), PipelineError> {
    let prompt = Prompt { text: run.prompt.clone(), image: image.map(Path::to_path_buf) };
    let mut request = pipeline.request_of(&prompt, run.size.map(Some))?;
    (request.seed, request.steps, request.guidance) = (run.seed, run.steps, run.guidance);
    let mut watcher = Watcher { table, keep, step };
    if run.vae {
        pipeline.generate(&request, &mut watcher)?;
    } else {
        pipeline.latents(&request, &mut watcher)?;
    }
    table.runs.push(run.clone());
    Ok(())
}

struct Watcher<'a, F> {
    table: &'a mut Table,
    keep: Keep,
    step: F,
}

impl<F: FnMut(usize, usize)> Observer for Watcher<'_, F> {
    fn ran(&mut self, component: &'static str, step: usize, steps: usize, outputs: &Outputs) {
        let range = step * self.keep.ranges / steps.max(1);
        let mut bounds: BTreeMap<&str, [Vec<f32>; 2]> = BTreeMap::new();
        let mut names: Vec<_> = outputs.names().collect();
        names.sort_unstable();
        let numbers =
            |name: &str| outputs.array(name).map(|array| array.into_raw_vec_and_offset().0).unwrap_or_default();
        for (output, (place, seen)) in names.iter().filter_map(|name| Some((*name, Seen::of_output(name)?))) {
            match seen {
                Seen::Least => bounds.entry(place).or_default()[0] = numbers(output),
                Seen::Greatest => bounds.entry(place).or_default()[1] = numbers(output),
                Seen::Minimum => {
                    let [least, greatest] = [seen, Seen::Maximum].map(|seen| numbers(&seen.output_of(place)));
                    if let ([least], [greatest]) = (&least[..], &greatest[..]) {
                        self.table.see_value(&format!("{component}/{place}"), [*least, *greatest]);
                    }
                }
                Seen::Rows | Seen::Maximum => {}
            }
        }
        for (place, [least, greatest]) in bounds {
            let rows = numbers(&Seen::Rows.output_of(place));
            let place = self.table.places.entry(format!("{component}/{place}")).or_default();
            place.see(range, self.keep.ranges, &least, &greatest);
            place.sample(&rows, self.keep.rows);
        }
    }

    fn step(&mut self, step: usize, steps: usize, _: &ArrayD<f32>) {
        (self.step)(step, steps);
    }

    fn frames(&mut self, _: ArrayD<f32>, _: usize) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        Ok(())
    }
}

/// Write the table at `path`, beside it first.
///
/// # Errors
/// What the system says, or a table too large to be read again.
pub fn save(table: &Table, path: &Path) -> Result<(), TableError> {
    let io = |source| TableError::Io { path: path.into(), source };
    table.check_size(path)?;
    let mut file = pending::builder(0o666).tempfile_in(pending::parent(path)).map_err(io)?;
    table.write(file.as_file_mut()).map_err(io)?;
    file.as_file().sync_all().map_err(io)?;
    file.persist(path).map_err(|e| io(e.error))?;
    Ok(())
}
