use super::{SIDE, Sums, Tile, available, multiply, multiply_add};

/// Sixteen bits of `bf16`: a number from -1 to 1 in steps of 1/8, so that sums are exact.
fn number(state: &mut u32) -> u32 {
    *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
    let eighths = f32::from(u8::try_from(*state >> 28).unwrap_or(0)) - 7.5;
    (eighths / 8.0).to_bits() >> 16
}

fn tiles<const P: usize>(count: usize, state: &mut u32) -> Vec<[[Tile; 2]; P]> {
    let mut all = vec![[[Tile::ZERO; 2]; P]; count];
    for pair in all.as_flattened_mut().as_flattened_mut().iter_mut().flat_map(|tile| tile.0.as_flattened_mut()) {
        *pair = number(state) | number(state) << 16;
    }
    all
}

fn float(pair: u32, upper: usize) -> f32 {
    f32::from_bits(if upper == 1 { pair & 0xffff_0000 } else { pair << 16 })
}

/// One sum by the formula.
fn expected<const X: usize, const W: usize>(
    rows: &[[[Tile; 2]; X]],
    columns: &[[[Tile; 2]; W]],
    [row, column]: [usize; 2],
) -> f32 {
    let (mut sum, parts) = (0.0, X.max(W));
    for (rows, columns) in rows.iter().zip(columns) {
        for (i, left) in rows.iter().enumerate() {
            for right in columns.iter().take(parts - i) {
                for feature in 0..32 {
                    let x = left[row / 16].0[row % 16][feature / 2];
                    let w = right[column / 16].0[feature / 2][column % 16];
                    sum += float(x, feature % 2) * float(w, feature % 2);
                }
            }
        }
    }
    sum
}

fn check<const X: usize, const W: usize>() {
    let mut state = 7;
    for (steps, panels) in [(1, 1), (3, 2), (7, 5)] {
        let (rows, columns) = (tiles::<X>(steps, &mut state), tiles::<W>(steps * panels, &mut state));
        let mut sums = vec![Sums([[f32::NAN; SIDE]; SIDE]); panels];
        multiply(&rows, &columns, &mut sums);
        let mut twice = sums.clone();
        multiply_add(&rows, &columns, &mut twice);
        for (panel, columns) in columns.chunks_exact(steps).enumerate() {
            for place in (0..SIDE * SIDE).map(|i| [i / SIDE, i % SIDE]) {
                let [expected, once, twice] = [
                    expected(&rows, columns, place),
                    sums[panel].0[place[0]][place[1]],
                    twice[panel].0[place[0]][place[1]],
                ];
                assert!((once - expected).abs() < 1e-3 && (twice - 2.0 * expected).abs() < 1e-3, "{X} {W} {place:?}");
            }
        }
    }
}

#[test]
fn sums_of_tiles_are_the_product_of_their_parts() {
    if !available() {
        println!("skipped: this processor has no tile registers");
        return;
    }
    check::<2, 2>();
    check::<3, 1>();
    check::<3, 2>();
    check::<3, 3>();
}

#[test]
#[should_panic(expected = "3 x 1 is not 2")]
fn slices_that_do_not_fit_are_refused() {
    multiply(&[[[Tile::ZERO; 2]; 2]; 3], &[[[Tile::ZERO; 2]; 2]; 2], &mut [Sums::ZERO]);
}
