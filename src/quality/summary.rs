//! All videos together: means, worsts, and whether they are good enough.

use serde::Serialize;

use super::shapes::{Seen, Wanted};
use super::{Quality, VideoQuality};

/// Mean over the videos, and the worst of them.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Mean.
    pub mean: f64,
    /// The worst one.
    pub worst: f64,
}

/// All videos together.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// How many videos there are.
    pub videos: usize,
    /// How many of them are equal to the reference's.
    pub equal: usize,
    /// How many of them, or of the reference's, have a fault.
    pub faulty: usize,
    /// PSNR in dB. The mean is over those that are not equal, whose PSNR is finite; it is infinite (in JSON: null) if all are.
    pub psnr: Option<Spread>,
    /// PSNR of the worst frame of all videos.
    pub worst_frame_psnr: Option<f64>,
    /// SSIM.
    pub ssim: Option<Spread>,
    /// Relative L2 error of the latents after the last step.
    pub latent_error: Option<Spread>,
    /// Relative L2 error of the latents after each step.
    pub latent_error_by_step: Vec<Spread>,
    /// Difference in flicker; the worst is the one furthest from 0.
    pub flicker_difference: Option<Spread>,
    /// How many videos show what the prompt asks for, where prompts are of the shapes model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<Accuracy>,
    /// The same of the reference.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reference_accuracy: Option<Accuracy>,
}

/// Shares of the videos that show what their prompts ask for, from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Accuracy {
    /// The colour.
    pub colour: f64,
    /// The shape.
    pub shape: f64,
    /// The direction.
    pub direction: f64,
    /// All three.
    pub all: f64,
    /// Mean intersection over union of the object with the shape that fits best.
    pub iou: f64,
}

/// What is good enough.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Limits {
    /// Least mean PSNR in dB.
    pub min_psnr: Option<f64>,
    /// Least PSNR in dB of any video.
    pub min_worst_psnr: Option<f64>,
}

impl Summary {
    pub(super) fn of(videos: &[VideoQuality]) -> Self {
        let all: Vec<_> = videos.iter().filter_map(|video| video.psnr).collect();
        let finite: Vec<_> = all.iter().copied().filter(|psnr| psnr.is_finite()).collect();
        let psnr = (!all.is_empty()).then(|| Spread {
            mean: if finite.is_empty() { f64::INFINITY } else { mean(finite.iter().copied()) },
            worst: all.iter().copied().fold(f64::INFINITY, f64::min),
        });
        let steps = videos.iter().map(|video| video.latent_error.len()).max().unwrap_or(0);
        let error = |step: usize| spread(videos.iter().filter_map(|v| v.latent_error.get(step).copied()), f64::abs);
        let differences = videos.iter().filter_map(|video| video.flicker).map(|flicker| flicker.difference);
        let accuracy = |seen: fn(&VideoQuality) -> Option<&Seen>| {
            let shown: Option<Vec<_>> = videos.iter().map(|v| Some((Wanted::of(&v.prompt)?, seen(v)?))).collect();
            shown.filter(|shown| !shown.is_empty()).map(|shown| Accuracy::of(&shown))
        };
        Self {
            videos: videos.len(),
            equal: videos.iter().filter(|video| video.equal).count(),
            faulty: videos.iter().filter(|v| !v.faults.is_empty() || !v.reference_faults.is_empty()).count(),
            psnr,
            worst_frame_psnr: videos.iter().flat_map(|video| video.frame_psnr.iter().copied()).reduce(f64::min),
            ssim: spread(videos.iter().filter_map(|video| video.ssim), |ssim| -ssim),
            latent_error: spread(videos.iter().filter_map(|v| v.latent_error.last().copied()), f64::abs),
            latent_error_by_step: (0..steps).filter_map(error).collect(),
            flicker_difference: spread(differences, f64::abs),
            accuracy: accuracy(|video| video.seen.as_ref()),
            reference_accuracy: accuracy(|video| video.reference_seen.as_ref()),
        }
    }
}

/// Mean, and the value that is worst by `badness`.
fn spread(values: impl Iterator<Item = f64>, badness: impl Fn(f64) -> f64) -> Option<Spread> {
    let values: Vec<_> = values.collect();
    let worst = values.iter().copied().max_by(|a, b| badness(*a).total_cmp(&badness(*b)))?;
    Some(Spread { mean: mean(values.into_iter()), worst })
}

impl Accuracy {
    fn of(shown: &[(Wanted, &Seen)]) -> Self {
        let share = |right: fn(&Wanted, &Seen) -> bool| {
            mean(shown.iter().map(|(wanted, seen)| f64::from(u8::from(right(wanted, seen)))))
        };
        Self {
            colour: share(|w, s| s.colour == Some(w.colour)),
            shape: share(|w, s| s.shape == Some(w.shape)),
            direction: share(|w, s| s.direction == Some(w.direction)),
            all: share(|w, s| s.is(w)),
            iou: mean(shown.iter().map(|(_, seen)| seen.iou)),
        }
    }
}

impl Quality {
    /// Why the answer is no; empty if it is yes.
    #[must_use]
    pub fn problems(&self, limits: &Limits) -> Vec<String> {
        let mut problems = vec![];
        for (of, faults) in [
            ("", (|v| &v.faults) as fn(&VideoQuality) -> &Vec<super::Fault>),
            ("the reference's ", |v| &v.reference_faults),
        ] {
            let faulty: Vec<_> = self.videos.iter().filter(|video| !faults(video).is_empty()).collect();
            if let Some(first) = faulty.first() {
                let found: Vec<_> = faults(first).iter().map(ToString::to_string).collect();
                let (count, all, found) = (faulty.len(), self.videos.len(), found.join(", "));
                problems.push(format!("{count} of {of}{all} videos broken: {found} (\"{}\")", first.prompt));
            }
        }
        let psnr = self.summary.psnr;
        for (name, limit, found) in [
            ("mean PSNR", limits.min_psnr, psnr.map(|spread| spread.mean)),
            ("worst PSNR", limits.min_worst_psnr, psnr.map(|spread| spread.worst)),
        ] {
            if let Some(limit) = limit.filter(|limit| found.is_none_or(|found| found.is_nan() || found < *limit)) {
                let found = found.map_or("none".into(), |found| format!("{found:.2} dB"));
                problems.push(format!("{name}: expected at least {limit} dB, found {found}"));
            }
        }
        problems
    }
}

/// Mean; of nothing, not a number.
#[expect(clippy::cast_precision_loss, reason = "few values")]
pub(super) fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len() as f64;
    values.sum::<f64>() / count
}
