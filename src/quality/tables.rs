//! The figures as tables of text, for the terminal and the page.

use indicatif::HumanBytes;

use super::shapes::{Seen, Wanted};
use super::{Accuracy, Cost, Fault, Quality, Spread, VideoQuality};
use crate::pipeline::Stage;

/// A table of text; the first cell of each row says what it is of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Table {
    /// Titles of the columns.
    pub header: Vec<String>,
    /// Rows of as many cells.
    pub rows: Vec<Vec<String>>,
}

impl Table {
    fn of<const N: usize>(header: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> Self {
        Self { header: header.map(String::from).into(), rows: rows.into_iter().map(Vec::from).collect() }
    }
}

/// PSNR for people.
pub(super) fn decibels(psnr: f64) -> String {
    if psnr == f64::INFINITY { "equal".into() } else { format!("{psnr:.2} dB") }
}

/// A difference in flicker, in levels of 8 bits.
fn levels(difference: f64) -> String {
    format!("{:+.4}", difference * 255.0)
}

impl Quality {
    /// Means and worsts of the videos.
    #[must_use]
    pub fn summary_table(&self) -> Table {
        let summary = &self.summary;
        let row = |name: &str, spread: Option<Spread>, show: fn(f64) -> String| {
            let [mean, worst] = spread.map_or(["none", "none"].map(String::from), |s| [show(s.mean), show(s.worst)]);
            [name.to_string(), mean, worst]
        };
        let mut rows = vec![
            row("PSNR", summary.psnr, decibels),
            row("SSIM", summary.ssim, |ssim| format!("{ssim:.6}")),
            row("latent error, last step", summary.latent_error, |error| format!("{error:.2e}")),
            row("flicker difference, of 255", summary.flicker_difference, levels),
        ];
        rows[0][0] += match (summary.equal, summary.videos) {
            (0, _) => String::new(),
            (equal, videos) => format!(" ({equal} of {videos} equal)"),
        }
        .as_str();
        if let Some(frame) = summary.worst_frame_psnr {
            rows.insert(1, ["PSNR of a frame".into(), String::new(), decibels(frame)]);
        }
        Table::of(["", "mean", "worst"], rows)
    }

    /// How many videos show what is asked for, if prompts are of the shapes model.
    #[must_use]
    pub fn accuracy_table(&self) -> Option<Table> {
        let (ours, theirs) = (self.summary.accuracy?, self.summary.reference_accuracy?);
        let share = |accuracy: f64| format!("{:.1} %", accuracy * 100.0);
        let row = |name: &str, of: fn(&Accuracy) -> f64| [name.into(), share(of(&ours)), share(of(&theirs))];
        let rows = [
            row("colour", |a| a.colour),
            row("direction", |a| a.direction),
            row("shape", |a| a.shape),
            row("all three", |a| a.all),
            ["IoU with the best-fitting shape".into(), format!("{:.4}", ours.iou), format!("{:.4}", theirs.iou)],
        ];
        Some(Table::of(["accuracy", "judged", "reference"], rows))
    }

    /// What the bundles take.
    #[must_use]
    pub fn cost_table(&self) -> Table {
        let (ours, theirs) = (&self.judged, &self.reference);
        let row = |name: String, of: &dyn Fn(&Cost) -> Option<f64>, show: fn(f64) -> String| {
            let [a, b] = [of(ours), of(theirs)];
            let ratio = a.zip(b).filter(|(_, b)| *b > 0.0).map(|(a, b)| format!("{:.2}x", a / b));
            [name, a.map_or("-".into(), show), b.map_or("-".into(), show), ratio.unwrap_or_default()]
        };
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "for people"
        )]
        let (float, bytes) = (|bytes: u64| bytes as f64, |bytes: f64| HumanBytes(bytes as u64).to_string());
        let mut rows = vec![row("size".into(), &|cost| Some(float(cost.bytes)), bytes)];
        for name in theirs.components.keys() {
            rows.push(row(format!("  {name}"), &|cost| cost.components.get(name).copied().map(float), bytes));
        }
        rows.push(row("a step".into(), &|cost| cost.step_seconds, |seconds| format!("{seconds:.4} s")));
        let all_steps = |cost: &Cost| Some(cost.stages.iter().find(|s| s.stage == Stage::Denoise)?.seconds);
        rows.push(row("all steps".into(), &all_steps, |seconds| format!("{seconds:.3} s")));
        rows.push(row("runs of the transformer".into(), &|cost| Some(cost.transformer_runs), |runs| {
            format!("{runs:.1}")
        }));
        for stage in theirs.stages.iter().map(|stage| stage.stage) {
            let peak = |cost: &Cost| cost.stages.iter().find(|s| s.stage == stage)?.memory.map(|m| float(m.total));
            rows.push(row(format!("peak memory, {}", component(stage)), &peak, bytes));
        }
        Table::of(["", "judged", "reference", ""], rows)
    }

    /// Each video.
    #[must_use]
    pub fn video_table(&self) -> Table {
        Table::of(
            ["prompt", "seed", "latent error", "PSNR", "worst frame", "SSIM", "flicker", "shows", "faults"],
            self.videos.iter().map(VideoQuality::cells),
        )
    }
}

impl VideoQuality {
    fn cells(&self) -> [String; 9] {
        let worst = self.frame_psnr.iter().copied().reduce(f64::min);
        let faults = [("", &self.faults), ("reference: ", &self.reference_faults)].into_iter();
        let faults = faults.flat_map(|(of, faults)| faults.iter().map(move |fault: &Fault| format!("{of}{fault}")));
        let or_none = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        [
            self.prompt.clone(),
            self.seed.to_string(),
            or_none(self.latent_error.last().map(|error| format!("{error:.2e}"))),
            or_none(self.psnr.map(decibels)),
            or_none(worst.map(decibels)),
            or_none(self.ssim.map(|ssim| format!("{ssim:.6}"))),
            or_none(self.flicker.map(|flicker| levels(flicker.difference))),
            self.shows(),
            faults.collect::<Vec<_>>().join(", "),
        ]
    }

    /// What the judged video shows, if it is not what was asked for.
    fn shows(&self) -> String {
        match (Wanted::of(&self.prompt), &self.seen) {
            (Some(wanted), Some(seen)) if seen.is(&wanted) => "as asked".into(),
            (_, Some(Seen { colour, shape, direction, .. })) => {
                [colour, shape, direction].map(|part| part.unwrap_or("?")).join(" ")
            }
            _ => String::new(),
        }
    }
}

/// The component that works in a stage.
fn component(stage: Stage) -> &'static str {
    match stage {
        Stage::Text => "text encoder",
        Stage::Encode => "VAE encoder",
        Stage::Denoise => "transformer",
        Stage::Decode => "VAE decoder",
    }
}
