//! One video kept among the temporary files, and the other compared with it.

use std::fs::File;
use std::io::{self, Read as _, Seek as _, Write as _};

use cogvx_calibration::metrics::{difference, psnr, ssim};

use super::look::Sight;
use super::summary::mean;
use super::{Case, Flicker, FramePair, VideoQuality, Watch};

/// Latents and frames of a run. The files have no name: they go with the process.
pub(super) struct Recording {
    latents: Tape,
    frames: Tape,
}

impl Recording {
    pub fn new() -> io::Result<Self> {
        Ok(Self { latents: Tape::new()?, frames: Tape::new()? })
    }

    pub fn step(&mut self, latents: &[f32]) -> io::Result<()> {
        self.latents.write(latents)
    }

    pub fn frame(&mut self, frame: &[f32]) -> io::Result<()> {
        self.frames.write(frame)
    }
}

/// Numbers in a file, written all and then read in the same pieces.
struct Tape {
    file: File,
    left: usize,
    bytes: Vec<u8>,
}

impl Tape {
    fn new() -> io::Result<Self> {
        Ok(Self { file: tempfile::tempfile()?, left: 0, bytes: vec![] })
    }

    fn write(&mut self, values: &[f32]) -> io::Result<()> {
        self.bytes.clear();
        self.bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.left += 1;
        self.file.write_all(&self.bytes)
    }

    /// The next `count` numbers, if there are any left.
    fn read(&mut self, count: usize) -> io::Result<Option<Vec<f32>>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.bytes.resize(count * 4, 0);
        self.file.read_exact(&mut self.bytes)?;
        let (numbers, _) = self.bytes.as_chunks::<4>();
        Ok(Some(numbers.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()))
    }
}

/// The judged run, compared with a recording as it comes.
pub(super) struct Comparison<'a> {
    recording: &'a mut Recording,
    size: [usize; 2],
    latent_error: Vec<f64>,
    frame_psnr: Vec<f64>,
    frame_ssim: Vec<Option<f64>>,
    is_begun: bool,
}

impl<'a> Comparison<'a> {
    pub fn of(recording: &'a mut Recording, size: [usize; 2]) -> Self {
        Self { recording, size, latent_error: vec![], frame_psnr: vec![], frame_ssim: vec![], is_begun: false }
    }

    fn begin(&mut self) -> io::Result<()> {
        if !self.is_begun {
            self.recording.latents.file.rewind()?;
            self.recording.frames.file.rewind()?;
            self.is_begun = true;
        }
        Ok(())
    }

    pub fn step(&mut self, latents: &[f32]) -> io::Result<()> {
        self.begin()?;
        if let Some(expected) = self.recording.latents.read(latents.len())? {
            self.latent_error.push(difference(latents, &expected).relative_l2);
        }
        Ok(())
    }

    pub fn frame(&mut self, frame: &[f32], frames: usize, watch: &mut dyn Watch) -> io::Result<()> {
        self.begin()?;
        if let Some(expected) = self.recording.frames.read(frame.len())? {
            let [height, width] = self.size;
            let pair = FramePair {
                frame: self.frame_psnr.len(),
                frames,
                size: self.size,
                reference: &expected,
                judged: frame,
            };
            watch.frame(pair);
            self.frame_psnr.push(psnr(frame, &expected));
            self.frame_ssim.push(ssim(frame, &expected, [height, width, 3]));
        }
        Ok(())
    }

    pub fn finish(self, case: &Case, ours: Sight, theirs: Sight) -> VideoQuality {
        let Self { latent_error, frame_psnr, frame_ssim, .. } = self;
        let broke_off = |sight: &Sight| sight.faults.iter().any(|fault| matches!(fault, super::Fault::NotFinite(_)));
        let is_whole = !frame_psnr.is_empty() && !broke_off(&ours) && !broke_off(&theirs);
        // Frames are of the same size: the video's mean square is the mean of theirs.
        let squares = frame_psnr.iter().map(|psnr| 10_f64.powf(psnr / -10.0));
        let flicker = ours.flicker.zip(theirs.flicker).filter(|_| is_whole);
        VideoQuality {
            prompt: case.prompt.clone(),
            image: case.image.clone(),
            seed: case.seed,
            psnr: is_whole.then(|| -10.0 * mean(squares).log10()),
            ssim: frame_ssim
                .iter()
                .copied()
                .collect::<Option<Vec<_>>>()
                .filter(|_| is_whole)
                .map(|s| mean(s.into_iter())),
            equal: is_whole && frame_psnr.iter().all(|psnr| *psnr == f64::INFINITY),
            latent_error,
            frame_psnr,
            frame_ssim,
            flicker: flicker.map(|(judged, reference)| Flicker { judged, reference, difference: judged - reference }),
            faults: ours.faults,
            reference_faults: theirs.faults,
            seen: ours.seen,
            reference_seen: theirs.seen,
        }
    }
}
