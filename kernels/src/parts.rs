//! Floats cut into sums of `bf16`, as tile registers want them (`cogvx-tiles`).

use core::arch::x86_64::__m512;

use cogvx_tiles::Tile;
use pulp::x86::V4;

use crate::transpose::sixteen;

/// Features in a line of a tile.
pub const STEP: usize = 32;

/// How the numbers of two registers lie in the line of a tile.
#[derive(Clone, Copy)]
pub enum Order {
    /// One register's after the other's.
    Rows,
    /// One of each in turns.
    Pairs,
}

impl Order {
    /// Of a line the upper halves of 32-bit numbers of two registers.
    const fn upper(self) -> [u16; 32] {
        let mut upper = [0; 32];
        let mut i = 0;
        while i < 16 {
            let places = match self {
                Self::Rows => [i, 16 + i],
                Self::Pairs => [2 * i, 2 * i + 1],
            };
            #[allow(clippy::cast_possible_truncation)] // At most 63.
            let from = 2 * i as u16 + 1;
            (upper[places[0]], upper[places[1]]) = (from, 32 + from);
            i += 1;
        }
        upper
    }
}

/// Of 32 features, the `P` parts that numbers are about the sum of, the largest first (three make all of them), each two tiles.
pub type Parts<const P: usize> = [[Tile; 2]; P];

/// Cut numbers into parts, as line `line` of tiles `half`. What is not finite does not become finite.
#[inline(always)]
pub fn cut<const P: usize>(simd: V4, numbers: [__m512; 2], order: Order, to: &mut Parts<P>, half: usize, line: usize) {
    let upper = bytemuck::cast(order.upper());
    let mut rest = numbers;
    for part in to {
        let rounded = [rounded(simd, rest[0]), rounded(simd, rest[1])];
        let [low, high] = [bytemuck::cast(rounded[0]), bytemuck::cast(rounded[1])];
        part[half].0[line] = bytemuck::cast(simd.avx512bw._mm512_permutex2var_epi16(low, upper, high));
        rest[0] = simd.avx512f._mm512_sub_ps(rest[0], rounded[0]);
        rest[1] = simd.avx512f._mm512_sub_ps(rest[1], rounded[1]);
    }
}

/// Make columns of the rows in tiles `half`.
#[inline(always)]
pub fn turn<const P: usize>(simd: V4, tiles: &mut Parts<P>, half: usize) {
    for part in tiles {
        let tile = &mut part[half].0;
        let mut lines = [simd.avx512f._mm512_setzero_ps(); 16];
        for (line, from) in lines.iter_mut().zip(&*tile) {
            *line = bytemuck::cast(*from);
        }
        for (to, line) in tile.iter_mut().zip(sixteen(simd, lines)) {
            *to = bytemuck::cast(line);
        }
    }
}

/// To eight bits, next to the number; what is none stays so.
#[inline(always)]
fn rounded(simd: V4, x: __m512) -> __m512 {
    const BOTH_ARE_NUMBERS: i32 = 7;
    let f = simd.avx512f;
    let bits = bytemuck::cast(x);
    let numbers = f._mm512_cmp_ps_mask::<BOTH_ARE_NUMBERS>(x, x);
    let up = f._mm512_mask_add_epi32(bits, numbers, bits, f._mm512_set1_epi32(1 << 15));
    bytemuck::cast(f._mm512_and_si512(up, f._mm512_set1_epi32(-1 << 16)))
}
