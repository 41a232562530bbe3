//! The instructions. The compiler never keeps numbers in tile registers itself, so what is in them lasts from one `asm!` to the next.
#![allow(unsafe_code)]

use core::arch::{asm, x86_64::__cpuid_count};
use std::sync::OnceLock;

use crate::{SIDE, Sums, Tile};

/// What `ldtilecfg` reads: eight tiles of sixteen lines of 64 bytes.
#[repr(C, align(64))]
struct Configuration {
    palette: u8,
    start: u8,
    reserved: [u8; 14],
    bytes: [u16; 16],
    lines: [u8; 16],
}

static CONFIGURATION: Configuration = Configuration {
    palette: 1,
    start: 0,
    reserved: [0; 14],
    bytes: [64, 64, 64, 64, 64, 64, 64, 64, 0, 0, 0, 0, 0, 0, 0, 0],
    lines: [16, 16, 16, 16, 16, 16, 16, 16, 0, 0, 0, 0, 0, 0, 0, 0],
};

pub fn available() -> bool {
    static AVAILABLE: OnceLock<bool> = OnceLock::new();
    *AVAILABLE.get_or_init(|| has_tiles() && is_permitted())
}

/// Whether the processor has tiles, products of `bf16` in them, and a palette as [`CONFIGURATION`] has it.
fn has_tiles() -> bool {
    const BF16_AND_TILES: u32 = 1 << 22 | 1 << 24;
    if __cpuid_count(0, 0).eax < 0x1d || __cpuid_count(7, 0).edx & BF16_AND_TILES != BF16_AND_TILES {
        return false;
    }
    let palette = __cpuid_count(0x1d, 1);
    // Bytes of a line, registers, lines.
    palette.ebx & 0xffff >= 64 && palette.ebx >> 16 >= 8 && palette.ecx & 0xffff >= 16
}

/// Ask Linux for room for tiles in what it keeps of threads.
fn is_permitted() -> bool {
    const ARCH_PRCTL: i64 = 158;
    const ARCH_REQ_XCOMP_PERM: u64 = 0x1023;
    const XTILEDATA: u64 = 18;
    let answer: i64;
    // SAFETY: the call reads numbers alone, and its instruction changes no more than these registers.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") ARCH_PRCTL => answer,
            in("rdi") ARCH_REQ_XCOMP_PERM,
            in("rsi") XTILEDATA,
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack)
        );
    }
    answer == 0
}

/// Load both tiles of part `$part` of what is in `$from`.
macro_rules! load {
    (rows $part:literal) => {
        load!("tmm4", "tmm5", "rows", $part)
    };
    (columns $part:literal) => {
        load!("tmm6", "tmm7", "columns", $part)
    };
    ($first:literal, $second:literal, $from:literal, $part:literal) => {
        concat!(
            "tileloadd ",
            $first,
            ", [{",
            $from,
            "} + 1*{line} + 2048*",
            $part,
            "]\n",
            "tileloadd ",
            $second,
            ", [{",
            $from,
            "} + 1*{line} + 2048*",
            $part,
            " + 1024]\n",
        )
    };
}

/// Add what the four tiles that were loaded make.
macro_rules! add {
    () => {
        "tdpbf16ps tmm0, tmm4, tmm6\n\
         tdpbf16ps tmm1, tmm4, tmm7\n\
         tdpbf16ps tmm2, tmm5, tmm6\n\
         tdpbf16ps tmm3, tmm5, tmm7\n"
    };
}

/// All features of one of sums, from `$rows` and `$columns` on; `$steps` for each 32 of them.
macro_rules! steps {
    ($x:literal, $w:literal, $rows:expr, $columns:expr, $sums:expr, $count:expr, [$($step:expr),+ $(,)?]) => {
        asm!(
            "2:",
            $($step,)+
            concat!("add {rows}, 2048*", $x),
            concat!("add {columns}, 2048*", $w),
            "dec {count}",
            "jnz 2b",
            "tilestored [{sums} + 1*{row}], tmm0",
            "tilestored [{sums} + 1*{row} + 64], tmm1",
            "tilestored [{sums} + 1*{row} + 2048], tmm2",
            "tilestored [{sums} + 1*{row} + 2112], tmm3",
            rows = inout(reg) $rows => _,
            columns = inout(reg) $columns => _,
            count = inout(reg) $count => _,
            sums = in(reg) $sums,
            row = in(reg) 4 * SIDE,
            line = in(reg) 64_usize,
            options(nostack)
        )
    };
}

pub fn multiply<const X: usize, const W: usize>(
    rows: &[[[Tile; 2]; X]],
    columns: &[[[Tile; 2]; W]],
    sums: &mut [Sums],
    are_more: bool,
) {
    const { assert!(matches!((X, W), (2, 2) | (3, 1..=3)), "no such product") };
    let count = rows.len();
    if count == 0 {
        return;
    }
    // SAFETY: tiles are available. Each of `sums` has `count` elements of `columns`, as was asserted, and of either `count` are
    // read: `X` and `W` times two tiles. Sums are 32 rows of 128 bytes.
    unsafe {
        asm!("ldtilecfg [{}]", in(reg) &raw const CONFIGURATION, options(nostack, readonly));
        for (sums, columns) in sums.iter_mut().zip(columns.chunks_exact(count)) {
            let (x, w, sums) = (rows.as_ptr(), columns.as_ptr(), &raw mut *sums);
            if are_more {
                asm!(
                    "tileloadd tmm0, [{sums} + 1*{row}]",
                    "tileloadd tmm1, [{sums} + 1*{row} + 64]",
                    "tileloadd tmm2, [{sums} + 1*{row} + 2048]",
                    "tileloadd tmm3, [{sums} + 1*{row} + 2112]",
                    sums = in(reg) sums,
                    row = in(reg) 4 * SIDE,
                    options(nostack, readonly)
                );
            } else {
                asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem));
            }
            match (X, W) {
                (2, 2) => steps!(
                    2,
                    2,
                    x,
                    w,
                    sums,
                    count,
                    [load!(columns 0), load!(rows 1), add!(), load!(rows 0), add!(), load!(columns 1), add!()]
                ),
                (3, 1) => steps!(
                    3,
                    1,
                    x,
                    w,
                    sums,
                    count,
                    [load!(columns 0), load!(rows 2), add!(), load!(rows 1), add!(), load!(rows 0), add!()]
                ),
                (3, 2) => steps!(
                    3,
                    2,
                    x,
                    w,
                    sums,
                    count,
                    [
                        load!(columns 0),
                        load!(rows 2),
                        add!(),
                        load!(rows 1),
                        add!(),
                        load!(columns 1),
                        add!(),
                        load!(rows 0),
                        add!(),
                        load!(columns 0),
                        add!()
                    ]
                ),
                (3, 3) => steps!(
                    3,
                    3,
                    x,
                    w,
                    sums,
                    count,
                    [
                        load!(columns 0),
                        load!(rows 2),
                        add!(),
                        load!(rows 1),
                        add!(),
                        load!(columns 1),
                        add!(),
                        load!(rows 0),
                        add!(),
                        load!(columns 2),
                        add!(),
                        load!(columns 0),
                        add!()
                    ]
                ),
                _ => unreachable!("checked as it was compiled"),
            }
        }
        asm!("tilerelease", options(nostack, nomem));
    }
}
