//! Squares of eight rows by eight, and sixteen by sixteen, turned in registers.

use core::arch::x86_64::{__m256, __m512};

use pulp::x86::{V3, V4};

/// `[i][j]` becomes `[j][i]`.
// Loops, as closures would not be compiled for these vectors.
#[inline(always)]
pub fn eight(simd: V3, from: [__m256; 8]) -> [__m256; 8] {
    let f = simd.avx;
    // Numbers of two rows side by side, then of four: [4 group + c] has columns c and c + 4 of a group's rows.
    let (mut twos, mut fours, mut to) = (from, from, from);
    for i in (0..8).step_by(2) {
        twos[i] = f._mm256_unpacklo_ps(from[i], from[i + 1]);
        twos[i + 1] = f._mm256_unpackhi_ps(from[i], from[i + 1]);
    }
    for group in [0, 4] {
        for half in 0..2 {
            let [a, b] = [twos[group + half], twos[group + half + 2]];
            fours[group + 2 * half] = f._mm256_shuffle_ps::<0x44>(a, b);
            fours[group + 2 * half + 1] = f._mm256_shuffle_ps::<0xee>(a, b);
        }
    }
    for c in 0..4 {
        to[c] = f._mm256_permute2f128_ps::<0x20>(fours[c], fours[4 + c]);
        to[c + 4] = f._mm256_permute2f128_ps::<0x31>(fours[c], fours[4 + c]);
    }
    to
}

/// `[i][j]` becomes `[j][i]`.
#[inline(always)]
pub fn sixteen(simd: V4, from: [__m512; 16]) -> [__m512; 16] {
    let f = simd.avx512f;
    // Numbers of two rows side by side, then of four: [4 group + c] has columns c, c + 4, c + 8, c + 12 of a group's rows.
    let (mut twos, mut fours, mut to) = (from, from, from);
    for i in (0..16).step_by(2) {
        twos[i] = f._mm512_unpacklo_ps(from[i], from[i + 1]);
        twos[i + 1] = f._mm512_unpackhi_ps(from[i], from[i + 1]);
    }
    for group in (0..16).step_by(4) {
        for half in 0..2 {
            let a = f._mm512_castps_pd(twos[group + half]);
            let b = f._mm512_castps_pd(twos[group + half + 2]);
            fours[group + 2 * half] = f._mm512_castpd_ps(f._mm512_unpacklo_pd(a, b));
            fours[group + 2 * half + 1] = f._mm512_castpd_ps(f._mm512_unpackhi_pd(a, b));
        }
    }
    for c in 0..4 {
        let [a, b, d, e] = [fours[c], fours[4 + c], fours[8 + c], fours[12 + c]];
        let (ab, de) = (f._mm512_shuffle_f32x4::<0x88>(a, b), f._mm512_shuffle_f32x4::<0x88>(d, e));
        to[c] = f._mm512_shuffle_f32x4::<0x88>(ab, de);
        to[c + 8] = f._mm512_shuffle_f32x4::<0xdd>(ab, de);
        let (ab, de) = (f._mm512_shuffle_f32x4::<0xdd>(a, b), f._mm512_shuffle_f32x4::<0xdd>(d, e));
        to[c + 4] = f._mm512_shuffle_f32x4::<0x88>(ab, de);
        to[c + 12] = f._mm512_shuffle_f32x4::<0xdd>(ab, de);
    }
    to
}
