//! `--prepack`, `--arena`: memory for speed on the processor.

use clap::Args;

use crate::runtime::CpuOptions;

/// How a bundle for the processor runs.
#[derive(Args, Clone, Copy, Default)]
pub(super) struct Cpu {
    /// Widen 16-bit weights once and keep them as the processor's kernels read them: faster, at four bytes a parameter of memory
    #[arg(long, help_heading = "Processor")]
    pub prepack: bool,
    /// Keep the memory of tensors that are done for those to come: the VAE decodes faster, in up to 1.7 times the memory
    #[arg(long, help_heading = "Processor")]
    arena: bool,
}

impl Cpu {
    pub fn options(self) -> CpuOptions {
        CpuOptions { prepack: self.prepack, arena: self.arena }
    }
}
