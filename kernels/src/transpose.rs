//! Squares of eight rows by eight, turned in registers.

use core::arch::x86_64::__m256;

use pulp::x86::V3;

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
