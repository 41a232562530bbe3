//! What can be seen of a run by itself: broken output, flicker, and what the video shows.

use std::fmt;

use serde::Serialize;

use super::shapes::{Scorer, Seen};
use crate::video::to_rgb8;

/// Up to this value a pixel is black: black of video is 16 of 255.
const BLACK: f32 = 16.0 / 255.0;
/// Up to this spread values are the same: one level of 255.
const SAME: f32 = 1.0 / 255.0;

/// What is broken about a video, whatever it is compared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fault {
    /// The component gave NaN or infinity, and the run ended.
    NotFinite(&'static str),
    /// The latents of a step are all zero.
    ZeroLatents,
    /// The latents of a step are all the same number.
    ConstantLatents,
    /// No pixel of the video is brighter than video's black, 16 of 255.
    Black,
    /// All pixels of the video have the same colour, within one level of 255.
    OneColour,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFinite(component) => write!(f, "NaN or infinity from the {}", component.replace('_', " ")),
            Self::ZeroLatents => f.write_str("zero latents"),
            Self::ConstantLatents => f.write_str("constant latents"),
            Self::Black => f.write_str("black video"),
            Self::OneColour => f.write_str("video of one colour"),
        }
    }
}

/// Looks at a run.
pub(super) struct Look {
    faults: Vec<Fault>,
    bounds: [[f32; 2]; 3],
    before: Vec<f32>,
    changes: f64,
    frames: usize,
    scorer: Option<Scorer>,
}

/// What was seen.
pub(super) struct Sight {
    pub faults: Vec<Fault>,
    /// Mean of `|frame[t + 1] - frame[t]|`.
    pub flicker: Option<f64>,
    pub seen: Option<Seen>,
}

impl Look {
    pub fn new([height, width]: [usize; 2], scored: bool) -> Self {
        Self {
            faults: vec![],
            bounds: [[f32::INFINITY, f32::NEG_INFINITY]; 3],
            before: vec![],
            changes: 0.0,
            frames: 0,
            scorer: scored.then(|| Scorer::new(height, width)),
        }
    }

    fn fault(&mut self, fault: Fault) {
        if !self.faults.contains(&fault) {
            self.faults.push(fault);
        }
    }

    pub fn latents(&mut self, latents: &[f32]) {
        let [least, greatest] = bounds(latents.iter().copied());
        if least == 0.0 && greatest == 0.0 {
            self.fault(Fault::ZeroLatents);
        } else if least >= greatest {
            self.fault(Fault::ConstantLatents);
        }
    }

    pub fn frame(&mut self, frame: &[f32]) {
        for (channel, seen) in self.bounds.iter_mut().enumerate() {
            let [least, greatest] = bounds(frame.iter().skip(channel).step_by(3).copied());
            *seen = [seen[0].min(least), seen[1].max(greatest)];
        }
        if self.frames > 0 {
            let change = |(&now, &before): (&f32, &f32)| f64::from((now - before).abs());
            #[expect(clippy::cast_precision_loss, reason = "a number of pixels")]
            let pixels = frame.len() as f64;
            self.changes += frame.iter().zip(&self.before).map(change).sum::<f64>() / pixels;
        }
        self.before.clear();
        self.before.extend(frame);
        self.frames += 1;
        if let Some(scorer) = &mut self.scorer {
            scorer.frame(&to_rgb8(frame));
        }
    }

    /// The run ended in NaN or infinity of this component.
    pub fn broke_off(&mut self, component: &'static str) {
        self.fault(Fault::NotFinite(component));
    }

    pub fn finish(mut self) -> Sight {
        if self.frames > 0 && self.bounds.iter().all(|[_, greatest]| *greatest <= BLACK) {
            self.fault(Fault::Black);
        } else if self.frames > 0 && self.bounds.iter().all(|[least, greatest]| greatest - least <= SAME) {
            self.fault(Fault::OneColour);
        }
        let times = u32::try_from(self.frames.saturating_sub(1)).unwrap_or(u32::MAX);
        let flicker = (times > 0).then(|| self.changes / f64::from(times));
        Sight { faults: self.faults, flicker, seen: self.scorer.map(Scorer::finish) }
    }
}

/// The least and the greatest value.
fn bounds(values: impl Iterator<Item = f32>) -> [f32; 2] {
    values.fold([f32::INFINITY, f32::NEG_INFINITY], |[least, greatest], value| [least.min(value), greatest.max(value)])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(frames: &[[f32; 6]]) -> Sight {
        let mut look = Look::new([1, 2], false);
        for frame in frames {
            look.frame(frame);
        }
        look.finish()
    }

    #[test]
    fn broken_output_is_found_and_sound_output_is_not() {
        let sound = [[0.0, 0.5, 1.0, 0.2, 0.3, 0.4], [0.0; 6]];
        for (frames, faults) in [
            (&sound[..], &[][..]),
            (&[[0.0; 6], [0.05; 6]], &[Fault::Black]),
            (&[[0.5, 0.2, 0.9, 0.5, 0.2, 0.9]; 3], &[Fault::OneColour]),
            // One colour in each frame, but not the same one.
            (&[[0.5; 6], [0.6; 6]], &[]),
            (&[], &[]),
        ] {
            assert_eq!(look(frames).faults, faults, "{frames:?}");
        }
        for (latents, faults) in [
            (&[0.0, -0.0][..], &[Fault::ZeroLatents][..]),
            (&[2.0, 2.0], &[Fault::ConstantLatents]),
            (&[0.0, 1e-9], &[]),
        ] {
            let mut look = Look::new([1, 2], false);
            look.latents(latents);
            look.latents(latents);
            assert_eq!(look.finish().faults, faults, "{latents:?}");
        }
    }

    #[test]
    fn flicker_is_the_mean_change_between_frames() {
        assert_eq!(look(&[[0.5; 6]]).flicker, None);
        let flicker = look(&[[0.0; 6], [0.5; 6], [0.25, 0.75, 0.5, 0.5, 0.5, 0.5]]).flicker.expect("three frames");
        assert!((flicker - 7.0 / 24.0).abs() < 1e-9, "{flicker}");
    }
}
