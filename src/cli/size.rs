//! `--frames`, `--height`, `--width`.

use clap::Args;

use crate::pipeline::Request;

/// The size of a video, where it is not the checkpoint's.
#[derive(Args, Default)]
pub(super) struct Size {
    /// Frames [default: the checkpoint's]
    #[arg(long)]
    frames: Option<usize>,
    /// Rows of pixels [default: the checkpoint's]
    #[arg(long)]
    height: Option<usize>,
    /// Columns of pixels [default: the checkpoint's]
    #[arg(long)]
    width: Option<usize>,
}

impl Size {
    /// Frames, rows and columns, where they were asked for.
    pub fn asked(&self) -> [Option<usize>; 3] {
        [self.frames, self.height, self.width]
    }

    /// Give `request` what was asked for.
    pub fn apply(&self, request: &mut Request) {
        request.frames = self.frames.unwrap_or(request.frames);
        request.height = self.height.unwrap_or(request.height);
        request.width = self.width.unwrap_or(request.width);
    }
}
