//! MP4: H.264 by OpenH264 at constant quality, put into the container by `muxide`.

use std::fs::File;
use std::path::Path;

use muxide::api::{Muxer, MuxerBuilder, VideoCodec};
use openh264::OpenH264API;
use openh264::encoder::{
    BitRate, Complexity, Encoder, EncoderConfig, FrameRate, FrameType, IntraFramePeriod, MatrixCoefficients, QpRange,
    RateControlMode, VuiConfig,
};

use super::pending::PendingFile;
use super::yuv::Yuv;
use super::{FrameSink, Size, VideoError};

/// Quantizer of every block, 12 (best) to 51: at 16 the loss is hard to see.
const QUANTIZER: u8 = 16;
/// The coarsest quantizer there is.
const COARSEST: u8 = 51;
/// Frames between two that can be sought to.
const KEY_INTERVAL: u32 = 48;
/// A bit rate that never limits the quality; OpenH264 wants one.
const BIT_RATE: u32 = 200_000_000;

/// Encodes frames as they come; the container is written at the end.
pub(super) struct Mp4 {
    encoder: Encoder,
    quantizer: u8,
    muxer: Muxer<File>,
    file: PendingFile,
    size: Size,
    fps: f64,
    frames: u32,
}

impl Mp4 {
    pub(super) fn open(path: &Path, size: Size, fps: f64) -> Result<Self, VideoError> {
        let (width, height) = (size.width(), size.height());
        let long = width.max(height);
        let short = width.min(height);
        if width % 2 + height % 2 > 0 || short < 16 || long > 3840 || short > 2160 {
            let expected = "even sides from 16x16 to 3840x2160 pixels";
            return Err(VideoError::Size { path: path.to_owned(), expected, width, height });
        }
        let file = PendingFile::create(path)?;
        let encoder = encoder(QUANTIZER, fps).map_err(|e| file.refused(&e))?;
        let builder = MuxerBuilder::new(file.handle()?);
        let builder = builder.video(VideoCodec::H264, size.width.into(), size.height.into(), fps);
        let muxer = builder.with_fast_start(true).build().map_err(|e| file.refused(&e))?;
        Ok(Self { encoder, quantizer: QUANTIZER, muxer, file, size, fps, frames: 0 })
    }

    /// The frame's bytes, and whether it can be sought to. OpenH264 has no room for the details of some frames, such as
    /// noise: those and what follows get a coarser quantizer.
    fn encode(&mut self, yuv: &Yuv) -> Result<(Vec<u8>, bool), VideoError> {
        loop {
            let failure = match self.encoder.encode(yuv) {
                Ok(encoded) => {
                    let is_key = matches!(encoded.frame_type(), FrameType::IDR | FrameType::I);
                    return Ok((encoded.to_vec(), is_key));
                }
                Err(failure) => failure,
            };
            if self.quantizer == COARSEST {
                return Err(self.file.refused(&failure));
            }
            self.quantizer = (self.quantizer + 4).min(COARSEST);
            // What a failed frame leaves behind is not to be built on: this one begins with a frame that can be sought to.
            self.encoder = encoder(self.quantizer, self.fps).map_err(|e| self.file.refused(&e))?;
        }
    }
}

fn encoder(quantizer: u8, fps: f64) -> Result<Encoder, openh264::Error> {
    Encoder::with_api_config(OpenH264API::from_source(), config(quantizer, fps))
}

/// One quantizer throughout, whatever the bit rate. sRGB's primaries, and the matrix that players assume for small
/// videos even where they ignore the tags.
#[expect(clippy::cast_possible_truncation, reason = "a rate for the encoder's books; times are in the container")]
fn config(quantizer: u8, fps: f64) -> EncoderConfig {
    EncoderConfig::new()
        // Of all modes this one alone takes the quantizer from its range and from nothing else.
        .rate_control_mode(RateControlMode::Bufferbased)
        .qp(QpRange::new(quantizer, quantizer))
        .bitrate(BitRate::from_bps(BIT_RATE))
        .max_frame_rate(FrameRate::from_hz(fps.clamp(1.0, 60.0) as f32))
        .skip_frames(false)
        .complexity(Complexity::High)
        .adaptive_quantization(false)
        .background_detection(false)
        .scene_change_detect(false)
        .intra_frame_period(IntraFramePeriod::from_num_frames(KEY_INTERVAL))
        .num_threads(1)
        .vui(VuiConfig::bt709().matrix_coefficients(MatrixCoefficients::Smpte170M))
}

impl FrameSink for Mp4 {
    fn write(&mut self, rgb: &[u8]) -> Result<(), VideoError> {
        self.size.check(self.frames as usize, rgb)?;
        let yuv = Yuv::from_rgb(rgb, self.size.width(), self.size.height());
        let (encoded, is_key) = self.encode(&yuv)?;
        let seconds = f64::from(self.frames) / self.fps;
        let written = self.muxer.write_video(seconds, &encoded, is_key);
        written.map_err(|e| self.file.refused(&e))?;
        self.frames += 1;
        Ok(())
    }

    fn finish(self: Box<Self>) -> Result<(), VideoError> {
        let Self { muxer, file, frames, .. } = *self;
        if frames == 0 {
            return Err(VideoError::NoFrames(file.path().to_owned()));
        }
        muxer.finish().map_err(|e| file.refused(&e))?;
        file.finish()
    }
}
