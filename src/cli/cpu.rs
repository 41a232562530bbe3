//! `--prepack`, `--arena`, `--plain-kernels`: how graphs run on the processor.

use clap::Args;

use crate::runtime::{Arenas, CpuOptions, Kernels};

/// How a bundle for the processor runs.
#[derive(Args, Clone, Copy, Default)]
pub(super) struct Cpu {
    /// Widen 16-bit weights once and keep them as the processor's kernels read them: faster, at four bytes a parameter of memory
    #[arg(long, help_heading = "Processor")]
    prepack: bool,
    /// Keep the memory of tensors that are done for those to come: the VAE decodes faster, in up to 2.4 times the memory
    #[arg(long, help_heading = "Processor")]
    arena: bool,
    /// Run text encoder and transformer with ONNX Runtime's kernels alone, not with cogvx's own where it has them
    #[arg(long, help_heading = "Processor")]
    plain_kernels: bool,
}

/// The option that gave them, if any did.
pub(super) fn given(options: CpuOptions) -> Option<&'static str> {
    let given = [
        ("prepack", options.prepack),
        ("arena", options.arenas == Arenas::All),
        ("plain-kernels", options.kernels == Kernels::Plain),
    ];
    given.into_iter().find_map(|(option, given)| given.then_some(option))
}

impl Cpu {
    pub fn options(self) -> CpuOptions {
        let arenas = if self.arena { Arenas::All } else { Arenas::Usual };
        let kernels = if self.plain_kernels { Kernels::Plain } else { Kernels::Fastest };
        CpuOptions { prepack: self.prepack, arenas, kernels }
    }

    /// The same where memory may be limited: then no more is kept than was asked for.
    pub fn within(self, limit: Option<u64>) -> CpuOptions {
        let arenas = if limit.is_some() && !self.arena { Arenas::Fewest } else { self.options().arenas };
        CpuOptions { arenas, ..self.options() }
    }
}
