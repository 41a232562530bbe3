//! Healing: the linear layers of a student refitted in closed form to what the teacher computes.
//!
//! Layer after layer, the student reads what it makes of the teacher's inputs so far, and the layer is changed so that its outputs
//! come nearest to the teacher's, by least squares. Layers that add to the residual stream are fitted to the stream itself: to
//! what it is in the teacher before the next block that the student has, so that they also do what the blocks that went did, and
//! make up for what is wrong of the stream already.

use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::Path;

use cogvx_graphs::Weights;
use ndarray::{Array1, Array2, Array3, ArrayView3, Axis, Slice, concatenate};

use super::least_squares::Normal;
use super::measure::error;
use super::probed::{Half, Probed, block, gates, linear, rows, streams, tokens};
use super::record::{Recording, Sample};
use super::select::Selection;
use super::teacher::STEM;
use super::{Job, StudentError, Teacher};
use crate::export::convert::{decode, encode};
use crate::pipeline::Transformer;
use crate::runtime::Outputs;

const TOKENS: Axis = Axis(1);
/// Predictions that a layer is fitted on.
const SAMPLES: usize = 240;
/// Rows taken of a prediction's stream.
const ROWS: usize = 2048;
/// Of the inputs' mean square: what a weight may change by costs that much.
const RIDGE: f64 = 1e-2;
/// Rows of each of these that are kept to see how far a change should go.
const KEPT: usize = 4;

/// Layers that read the same, refitted together.
struct Step {
    /// In the student.
    layers: Vec<String>,
    target: Target,
}

enum Target {
    /// The outputs of layers of the teacher, of each the features that the student has.
    Outputs(Vec<(String, Vec<usize>)>),
    /// A residual stream: after this half of a block of the student, as it is in the teacher after one of its own.
    Stream { student: usize, teacher: usize, half: Half },
}

/// Refit the student in `folder`; returns the relative error of its predictions before and after.
pub(super) fn heal(
    teacher: &Teacher,
    folder: &Path,
    selection: &Selection,
    recording: &Recording,
    job: &mut Job<'_>,
) -> Result<[f64; 2], StudentError> {
    let whole = |job: &Job<'_>| error(&Probed::telling(folder, &[], job)?, recording, SAMPLES, job);
    let before = whole(job)?;
    let healer = Healer { teacher, folder, selection, recording };
    let steps = healer.steps();
    for (i, step) in steps.iter().enumerate() {
        let found = healer.refit(step, job)?;
        let (number, layer) = (i + 1, &step.layers[0]);
        (job.told)(&format!("refitting {number}/{}: {layer}, off by {found:.4} before", steps.len()));
    }
    Ok([before, whole(job)?])
}

struct Healer<'a> {
    teacher: &'a Teacher,
    folder: &'a Path,
    selection: &'a Selection,
    recording: &'a Recording,
}

impl Healer<'_> {
    /// All layers but those before the first block, in the order in which they are computed.
    fn steps(&self) -> Vec<Step> {
        let Selection { layers, heads, ffn, .. } = self.selection;
        let mut steps = vec![];
        for (at, &layer) in layers.iter().enumerate() {
            let [to, from] = [block(at), block(layer)];
            let fitted = |names: &[&str], columns: &Vec<usize>| Step {
                layers: names.iter().map(|name| format!("{to}.{name}")).collect(),
                target: Target::Outputs(names.iter().map(|name| (format!("{from}.{name}"), columns.clone())).collect()),
            };
            let streamed = |name: &str, teacher: usize, half: Half| Step {
                layers: vec![format!("{to}.{name}")],
                target: Target::Stream { student: at, teacher, half },
            };
            // What comes before the next block that stays.
            let until = layers.get(at + 1).map_or(self.teacher.shape.layers, |&next| next) - 1;
            steps.push(fitted(&["attn1.to_q", "attn1.to_k", "attn1.to_v"], &heads[at]));
            steps.push(streamed("attn1.to_out.0", layer, Half::Attention));
            steps.push(fitted(&["ff.net.0.proj"], &ffn[at]));
            steps.push(streamed("ff.net.2", until, Half::FeedForward));
        }
        let outputs = (0..self.teacher.tensor("proj_out.bias").shape[0]).collect();
        let head = "proj_out".to_string();
        steps.push(Step { layers: vec![head.clone()], target: Target::Outputs(vec![(head, outputs)]) });
        steps
    }

    /// Names of the streams of both after half a block, the video's alone where one has no other.
    fn streams_of(&self, student: usize, teacher: usize, half: Half) -> [Vec<String>; 3] {
        let last = student + 1 == self.selection.layers.len();
        let mut theirs = streams(teacher, half, teacher + 1 == self.teacher.shape.layers);
        if last && theirs.len() > 1 {
            theirs.remove(0);
        }
        [streams(student, half, last), gates(student, half, last), theirs]
    }

    /// Refit the layers of a step; returns how far off what they are to make was, relative L2.
    fn refit(&self, step: &Step, job: &Job<'_>) -> Result<f64, StudentError> {
        let [read, _] = linear(&step.layers[0]);
        let (ours, theirs): (Vec<String>, Vec<String>) = match &step.target {
            Target::Outputs(from) => {
                let outputs = |path: &String| linear(path)[1].clone();
                (step.layers.iter().map(outputs).collect(), from.iter().map(|(path, _)| outputs(path)).collect())
            }
            Target::Stream { student, teacher, half } => {
                let [streams, gates, theirs] = self.streams_of(*student, *teacher, *half);
                ([streams, gates].concat(), theirs)
            }
        };
        let student = Probed::telling_alone(self.folder, &[&[read.clone()][..], &ours].concat(), job)?;
        let teacher = Probed::telling_alone(&self.teacher.folder, &theirs, job)?;
        let mut both = [student.pipeline.transformer()?, teacher.pipeline.transformer()?];
        let weights = Weights::open(&self.folder.join("transformer"), STEM)?;
        let shape =
            |layer: &String| weights.get(&format!("{layer}.weight")).map_or([0, 0], |t| [t.shape[0], t.shape[1]]);
        let outputs = step.layers.iter().map(|layer| shape(layer)[0]).sum();
        let mut fit = Fit::new(shape(&step.layers[0])[1], outputs);
        self.recording.each(self.recording.samples().div_ceil(SAMPLES), |sample| {
            job.options.go_on()?;
            let [ours, theirs] = run(&mut both, sample)?;
            let read = tokens(&ours, &read)?;
            match &step.target {
                Target::Outputs(from) => {
                    let mut residuals = vec![];
                    let mut scale = 0.0;
                    for (layer, (path, columns)) in step.layers.iter().zip(from) {
                        let (ours, theirs) = (tokens(&ours, &linear(layer)[1])?, tokens(&theirs, &linear(path)[1])?);
                        let theirs = theirs.select(Axis(2), columns);
                        // The student's last block has no text where the teacher's may have.
                        let skip = theirs.len_of(Axis(1)) - ours.len_of(Axis(1));
                        let theirs = theirs.slice_axis(TOKENS, Slice::from(skip..));
                        scale += square(&theirs);
                        residuals.push(&theirs - &ours);
                    }
                    let views: Vec<_> = residuals.iter().map(|residual: &Array3<f32>| residual.view()).collect();
                    let residual = concatenate(Axis(2), &views).expect("of the same tokens");
                    fit.add(&read.view(), &residual, &Array1::ones(outputs), scale);
                }
                Target::Stream { student, teacher, half } => {
                    let [streams, gates, theirs_named] = self.streams_of(*student, *teacher, *half);
                    let mut at = 0;
                    for ((stream, gate), from) in streams.iter().zip(&gates).zip(&theirs_named) {
                        let theirs = tokens(&theirs, from)?.select(Axis(2), &self.selection.hidden);
                        let residual = &theirs - &tokens(&ours, stream)?;
                        let gate = rows(&ours, gate)?.row(0).to_owned();
                        let end = at + residual.len_of(Axis(1));
                        fit.add(
                            &read.slice_axis(TOKENS, Slice::from(at..end)),
                            &residual,
                            &gate,
                            square(&theirs.view()),
                        );
                        at = end;
                    }
                }
            }
            Ok(())
        })?;
        // Unmapped before the file is written.
        drop(both);
        let (map, off) = fit.solve()?;
        self.add(&weights, &step.layers, &map)?;
        Ok(off)
    }

    /// Add the map `[inputs + 1, outputs]` to the weights and biases of these layers, in their file.
    #[allow(clippy::cast_possible_truncation)] // Rounded to the file's precision.
    fn add(&self, weights: &Weights, layers: &[String], map: &Array2<f64>) -> Result<(), StudentError> {
        let failed = StudentError::Numbers { what: "healing" };
        let path = self.folder.join("transformer").join(format!("{STEM}.safetensors"));
        let io = StudentError::io(&path);
        let mut file = File::options().write(true).open(&path).map_err(&io)?;
        let (mut first, inputs) = (0, map.nrows() - 1);
        for layer in layers {
            let [weight, bias] = ["weight", "bias"].map(|end| weights.get(&format!("{layer}.{end}")));
            let Some(weight) = weight else { continue };
            let outputs = weight.shape[0];
            let part = map.slice_axis(Axis(1), Slice::from(first..first + outputs));
            let changes = [
                (
                    Some(weight),
                    part.slice_axis(Axis(0), Slice::from(..inputs)).t().iter().copied().collect::<Vec<f64>>(),
                ),
                (bias, part.row(inputs).to_vec()),
            ];
            for (tensor, changes) in changes.into_iter().filter_map(|(tensor, changes)| Some((tensor?, changes))) {
                let (mut numbers, mut bytes) = (vec![], vec![]);
                decode(&weights.read(tensor)?, tensor.dtype, &mut numbers);
                numbers.iter_mut().zip(changes).for_each(|(x, change)| *x = (f64::from(*x) + change) as f32);
                encode(&numbers, tensor.dtype, &mut bytes);
                decode(&bytes, tensor.dtype, &mut numbers);
                if !numbers.iter().all(|x| x.is_finite()) {
                    return Err(failed);
                }
                file.seek(SeekFrom::Start(tensor.offset)).and_then(|_| file.write_all(&bytes)).map_err(&io)?;
            }
            first += outputs;
        }
        Ok(())
    }
}

fn run(both: &mut [Transformer<'_>; 2], sample: &Sample) -> Result<[Outputs; 2], StudentError> {
    let [student, teacher] = both;
    let run = |of: &mut Transformer<'_>| of.run(&sample.latents.view(), &sample.text.view(), sample.timestep);
    Ok([run(student)?, run(teacher)?])
}

fn square(x: &ArrayView3<'_, f32>) -> f64 {
    x.iter().map(|&x| f64::from(x).powi(2)).sum()
}

/// The change `D` of a layer that makes `|R - g (X D)|^2` least, where `g` is a gate for each feature that differs from timestep to
/// timestep.
///
/// Each feature would have normal equations of its own, `sum of g^2 X^T X`. They are taken to be alike: those of the mean square of
/// all gates. What is solved with them is the exact gradient, so this is the direction of Newton's method with nearly the right
/// curvature; how far each feature goes in it is what makes its error least on rows kept from all predictions.
struct Fit {
    normal: Normal,
    /// Rows kept: what is read, what is off, and the gates.
    kept: [Vec<f32>; 3],
    /// Squares of what is off, and of what it should be.
    off: f64,
    whole: f64,
}

impl Fit {
    fn new(inputs: usize, outputs: usize) -> Self {
        Self { normal: Normal::new(inputs, outputs), kept: [vec![], vec![], vec![]], off: 0.0, whole: 0.0 }
    }

    /// Take in tokens `read`, their `residual`, and the square of what they should be.
    #[allow(clippy::cast_precision_loss)] // Few features.
    fn add(&mut self, read: &ArrayView3<'_, f32>, residual: &Array3<f32>, gate: &Array1<f32>, whole: f64) {
        self.off += square(&residual.view());
        self.whole += whole;
        let mean = gate.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>() / gate.len() as f64;
        let step = read.len_of(TOKENS).saturating_mul(read.len_of(Axis(0))).div_ceil(ROWS).max(1);
        let every = Slice::new(0, None, isize::try_from(step).unwrap_or(1));
        for (x, r) in read.outer_iter().zip(residual.outer_iter()) {
            let (x, r) = (x.slice_axis(Axis(0), every), r.slice_axis(Axis(0), every));
            self.normal.add(&x, &(&r * gate).view(), mean);
            // Evenly over the tokens, others in each sample.
            let apart = x.nrows().div_ceil(KEPT).max(1);
            for row in (self.kept[0].len() % apart..x.nrows()).step_by(apart) {
                self.kept[0].extend(x.row(row));
                self.kept[1].extend(r.row(row));
                self.kept[2].extend(gate);
            }
        }
    }

    /// The change, and how far off it was, relative L2.
    fn solve(self) -> Result<(Array2<f64>, f64), StudentError> {
        let failed = || StudentError::Numbers { what: "healing" };
        let mut map = self.normal.solve(RIDGE).ok_or_else(failed)?;
        let [x, r, gates] = self.kept;
        let (inputs, outputs) = (map.nrows() - 1, map.ncols());
        let rows = |kept: Vec<f32>, width: usize| Array2::from_shape_vec((kept.len() / width, width), kept);
        let (x, r, gates) = (rows(x, inputs), rows(r, outputs), rows(gates, outputs));
        let (Ok(x), Ok(r), Ok(gates)) = (x, r, gates) else { unreachable!("whole rows are kept") };
        let weight = map.slice_axis(Axis(0), Slice::from(..inputs)).mapv(narrow);
        let change = (x.dot(&weight) + map.row(inputs).mapv(narrow)) * gates;
        let (mut along, mut square) = (Array1::<f64>::zeros(outputs), Array1::<f64>::zeros(outputs));
        for (change, r) in change.rows().into_iter().zip(r.rows()) {
            for (i, (&change, &r)) in change.iter().zip(r).enumerate() {
                along[i] += f64::from(change) * f64::from(r);
                square[i] += f64::from(change).powi(2);
            }
        }
        // Where gates are closed, nothing changes whatever is done.
        let far = along.iter().zip(&square).map(|(a, s)| if *s > 0.0 { (a / s).max(0.0) } else { 0.0 });
        map *= &far.collect::<Array1<_>>();
        if !map.iter().all(|x| x.is_finite()) {
            return Err(failed());
        }
        Ok((map, (self.off / self.whole.max(f64::MIN_POSITIVE)).sqrt()))
    }
}

#[allow(clippy::cast_possible_truncation)] // Close enough to measure with.
fn narrow(x: f64) -> f32 {
    x as f32
}
