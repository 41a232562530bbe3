//! Products of matrices in the tile registers that some processors have (Intel's AMX, from Sapphire Rapids on): sixteen by sixteen sums
//! of 32 products each in one instruction.
//!
//! Tiles hold `bf16`. A `float32` number is the sum of three of those, so products of floats are sums of a few products of tiles; what
//! cuts numbers and arranges them is not here, for it needs nothing unsafe.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;

/// Rows and columns of what one call of [`multiply`] makes: two tiles by two.
pub const SIDE: usize = 32;

/// What a tile register holds, sixteen lines of 32 `bf16`: of a left factor sixteen rows of 32 numbers; of a right one its 32 rows by
/// sixteen columns, where line `i` has rows `2 i` and `2 i + 1` of each column side by side.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Tile(pub [[u32; 16]; 16]);

impl Tile {
    /// Zeros.
    pub const ZERO: Self = Self([[0; 16]; 16]);
}

/// What a product writes: [`SIDE`] rows of as many sums.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Sums(pub [[f32; SIDE]; SIDE]);

impl Sums {
    /// Zeros.
    pub const ZERO: Self = Self([[0.0; SIDE]; SIDE]);
}

/// Whether the processor has tile registers for `bf16`, and the system lets this process use them.
#[must_use]
pub fn available() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return amx::available();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    false
}

/// Each of `sums` becomes the product of [`SIDE`] rows and as many columns.
///
/// `rows` are those of all: of each 32 features the `X` parts that their numbers are sums of, the largest first, each an upper and a
/// lower tile. `columns` are those of one of `sums` after the other: of each 32 features likewise the `W` parts, each a left and a
/// right tile. A number's first part has its first eight bits, and so on: of two numbers the products are added up that are not smaller
/// than what the last parts leave out.
///
/// # Panics
/// When the lengths of slices do not fit each other, or tiles are not [`available`].
pub fn multiply<const X: usize, const W: usize>(
    rows: &[[[Tile; 2]; X]],
    columns: &[[[Tile; 2]; W]],
    sums: &mut [Sums],
) {
    run(rows, columns, sums, false);
}

/// The same, added to what `sums` are.
///
/// # Panics
/// As [`multiply`].
pub fn multiply_add<const X: usize, const W: usize>(
    rows: &[[[Tile; 2]; X]],
    columns: &[[[Tile; 2]; W]],
    sums: &mut [Sums],
) {
    run(rows, columns, sums, true);
}

fn run<const X: usize, const W: usize>(
    rows: &[[[Tile; 2]; X]],
    columns: &[[[Tile; 2]; W]],
    sums: &mut [Sums],
    are_more: bool,
) {
    assert!(columns.len() == rows.len() * sums.len(), "{} x {} is not {}", rows.len(), sums.len(), columns.len());
    assert!(available(), "no tile registers");
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    amx::multiply(rows, columns, sums, are_more);
}

#[cfg(test)]
mod tests;
