//! What the processor has for large products.

use pulp::Arch;

/// What the processor has for large products.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Processor {
    /// Its vectors.
    pub arch: Arch,
    /// Whether tile registers take the largest, too.
    pub tiles: bool,
}

impl Processor {
    /// All that this one has.
    pub fn new() -> Self {
        Self { arch: Arch::new(), tiles: crate::has_tiles() }
    }

    /// All kinds that this one can stand for, for tests.
    #[cfg(test)]
    pub fn all() -> Vec<Self> {
        let mut archs = vec![Arch::new(), Arch::Scalar];
        #[cfg(target_arch = "x86_64")]
        archs.extend(pulp::x86::V3::try_new().map(Arch::V3));
        let mut all: Vec<_> = archs.into_iter().map(|arch| Self { arch, tiles: false }).collect();
        all.extend(crate::has_tiles().then(Self::new));
        all
    }
}
