//! Sixteen rows of a matrix as columns of sixteen numbers, which is how products read them.

use half::{bf16, f16, slice::HalfFloatSliceExt};
use pulp::Arch;

use crate::scratch::Line;

/// A number that a matrix is stored in.
pub trait Number: Copy + Default + Send + Sync {
    /// `from` as floats.
    fn widen(from: &[Self], to: &mut [f32]);

    /// Eight numbers as floats in a register.
    #[cfg(target_arch = "x86_64")]
    fn eight(simd: pulp::x86::V3, from: &[Self; 8]) -> core::arch::x86_64::__m256;

    /// Sixteen numbers as floats in a register.
    #[cfg(target_arch = "x86_64")]
    fn load(simd: pulp::x86::V4, from: &[Self; 16]) -> core::arch::x86_64::__m512;
}

impl Number for f32 {
    fn widen(from: &[Self], to: &mut [f32]) {
        to.copy_from_slice(from);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn eight(_: pulp::x86::V3, from: &[Self; 8]) -> core::arch::x86_64::__m256 {
        bytemuck::cast(*from)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn load(_: pulp::x86::V4, from: &[Self; 16]) -> core::arch::x86_64::__m512 {
        bytemuck::cast(*from)
    }
}

impl Number for f16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn eight(_: pulp::x86::V3, from: &[Self; 8]) -> core::arch::x86_64::__m256 {
        let mut wide = [0.; 8];
        from.convert_to_f32_slice(&mut wide);
        bytemuck::cast(wide)
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn load(simd: pulp::x86::V4, from: &[Self; 16]) -> core::arch::x86_64::__m512 {
        simd.avx512f._mm512_cvtph_ps(bytemuck::cast(*from))
    }
}

impl Number for bf16 {
    fn widen(from: &[Self], to: &mut [f32]) {
        from.convert_to_f32_slice(to);
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn eight(simd: pulp::x86::V3, from: &[Self; 8]) -> core::arch::x86_64::__m256 {
        let wide = simd.avx2._mm256_cvtepu16_epi32(bytemuck::cast(*from));
        bytemuck::cast(simd.avx2._mm256_slli_epi32::<16>(wide))
    }

    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    fn load(simd: pulp::x86::V4, from: &[Self; 16]) -> core::arch::x86_64::__m512 {
        let wide = simd.avx512f._mm512_cvtepu16_epi32(bytemuck::cast(*from));
        bytemuck::cast(simd.avx512f._mm512_slli_epi32::<16>(wide))
    }
}

/// `columns[k][part][row] = rows[row][k]`: each row as long as there are columns of `N` parts.
pub fn pack<T: Number, const N: usize>(arch: Arch, rows: [&[T]; 16], columns: &mut [Line], part: usize) {
    let columns = columns.as_chunks_mut::<N>().0;
    #[cfg(target_arch = "x86_64")]
    let done = match arch {
        Arch::V4(simd) => {
            simd.vectorize(transpose::Transpose { simd, rows, columns: &mut *columns, part });
            columns.len() / 16 * 16
        }
        Arch::V3(simd) => {
            simd.vectorize(transpose::Eights { simd, rows, columns: &mut *columns, part });
            columns.len() / 8 * 8
        }
        _ => 0,
    };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    let mut wide = [0.; 64];
    let mut first = done;
    for columns in columns[done..].chunks_mut(wide.len()) {
        for (lane, row) in rows.iter().enumerate() {
            let wide = &mut wide[..columns.len()];
            T::widen(&row[first..][..columns.len()], wide);
            for (column, number) in columns.iter_mut().zip(wide) {
                column[part].0[lane] = *number;
            }
        }
        first += columns.len();
    }
}

#[cfg(target_arch = "x86_64")]
mod transpose {
    use pulp::{
        NullaryFnOnce,
        x86::{V3, V4},
    };

    use super::{Line, Number};
    use crate::transpose::{eight, sixteen};

    /// The whole squares of eight by eight.
    pub struct Eights<'a, T, const N: usize> {
        pub simd: V3,
        pub rows: [&'a [T]; 16],
        pub columns: &'a mut [[Line; N]],
        pub part: usize,
    }

    impl<T: Number, const N: usize> NullaryFnOnce for Eights<'_, T, N> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            for (number, to) in self.columns.as_chunks_mut::<8>().0.iter_mut().enumerate() {
                for (half, rows) in self.rows.as_chunks::<8>().0.iter().enumerate() {
                    let mut from = [self.simd.avx._mm256_setzero_ps(); 8];
                    for (from, row) in from.iter_mut().zip(rows) {
                        *from = T::eight(self.simd, &row.as_chunks::<8>().0[number]);
                    }
                    for (to, column) in to.iter_mut().zip(eight(self.simd, from)) {
                        to[self.part].0.as_chunks_mut::<8>().0[half] = bytemuck::cast(column);
                    }
                }
            }
        }
    }

    /// The whole squares of sixteen by sixteen.
    pub struct Transpose<'a, T, const N: usize> {
        pub simd: V4,
        pub rows: [&'a [T]; 16],
        pub columns: &'a mut [[Line; N]],
        pub part: usize,
    }

    impl<T: Number, const N: usize> NullaryFnOnce for Transpose<'_, T, N> {
        type Output = ();

        #[inline(always)]
        fn call(self) {
            for (number, to) in self.columns.as_chunks_mut::<16>().0.iter_mut().enumerate() {
                // Loops, as closures would not be compiled for these vectors.
                let mut from = [self.simd.avx512f._mm512_setzero_ps(); 16];
                for (from, row) in from.iter_mut().zip(self.rows) {
                    *from = T::load(self.simd, &row.as_chunks::<16>().0[number]);
                }
                for (to, column) in to.iter_mut().zip(sixteen(self.simd, from)) {
                    to[self.part].0 = bytemuck::cast(column);
                }
            }
        }
    }
}
