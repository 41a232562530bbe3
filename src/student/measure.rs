//! What blocks, heads and channels of the teacher are worth, by running it.

use cogvx_calibration::probe::Probe;

use super::probed::{Probed, additions, block, linear, rows};
use super::record::Recording;
use super::select::{BlockEnergies, Energies};
use super::{Job, StudentError, Teacher, layers};
use crate::export::Component;

/// Predictions that blocks are measured by: some of each run.
const SAMPLES: usize = 24;

/// `count` of the teacher's blocks, by what its predictions lose without the others, and what they lose without each alone.
pub(super) fn layers(
    teacher: &Teacher,
    count: usize,
    recording: &Recording,
    job: &mut Job<'_>,
) -> Result<(Vec<usize>, Vec<f64>), StudentError> {
    layers::by_error(teacher.shape.layers, count, |without| {
        let names: Vec<_> = without.iter().map(usize::to_string).collect();
        (job.told)(&format!("running the teacher without blocks {}", names.join(", ")));
        let probe = Probe { skip: without.iter().flat_map(|&layer| additions(layer)).collect(), ..Probe::default() };
        let probed = Probed::open(&teacher.folder, probe, vec![Component::Transformer], job)?;
        error(&probed, recording, SAMPLES, job)
    })
}

/// Relative L2 of a checkpoint's predictions from the teacher's, over some `samples` of what was recorded.
pub(super) fn error(
    probed: &Probed,
    recording: &Recording,
    samples: usize,
    job: &Job<'_>,
) -> Result<f64, StudentError> {
    let mut transformer = probed.pipeline.transformer()?;
    let (mut wrong, mut whole) = (0.0, 0.0);
    recording.each(recording.samples().div_ceil(samples), |sample| {
        job.options.go_on()?;
        let found = transformer.predict(&sample.latents, &sample.text, sample.timestep)?;
        for (&a, &b) in found.iter().zip(&sample.prediction) {
            wrong += f64::from(a - b).powi(2);
            whole += f64::from(b).powi(2);
        }
        Ok(())
    })?;
    Ok((wrong / f64::max(whole, f64::MIN_POSITIVE)).sqrt())
}

/// Mean squares of what the teacher's layers read.
pub(super) fn energies(teacher: &Teacher, recording: &Recording, job: &mut Job<'_>) -> Result<Energies, StudentError> {
    (job.told)("seeing what the teacher's layers read");
    let read = |path: String| linear(&path)[0].clone();
    let places: Vec<[String; 4]> = (0..teacher.shape.layers)
        .map(|layer| {
            ["attn1.to_q", "attn1.to_out.0", "ff.net.0.proj", "ff.net.2"]
                .map(|name| read(format!("{}.{name}", block(layer))))
        })
        .collect();
    let head = read("proj_out".into());
    let tell: Vec<_> = places.iter().flatten().cloned().chain([head.clone()]).collect();
    let mut squares: Vec<Vec<f64>> = vec![vec![]; tell.len()];
    let probed = Probed::telling(&teacher.folder, &tell, job)?;
    let mut transformer = probed.pipeline.transformer()?;
    recording.each(recording.samples().div_ceil(SAMPLES), |sample| {
        job.options.go_on()?;
        let outputs = transformer.run(&sample.latents.view(), &sample.text.view(), sample.timestep)?;
        for (name, squares) in tell.iter().zip(&mut squares) {
            let rows = rows(&outputs, name)?;
            squares.resize(rows.ncols(), 0.0);
            for row in rows.rows() {
                squares.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f64::from(x).powi(2));
            }
        }
        Ok(())
    })?;
    let mut squares = squares.into_iter();
    let mut next = || squares.next().unwrap_or_default();
    let blocks = places
        .iter()
        .map(|_| BlockEnergies { attention: next(), heads: next(), feed_forward: next(), inner: next() })
        .collect();
    Ok(Energies { blocks, head: next() })
}
