//! Which blocks of the teacher a student keeps.

use super::{LayerChoice, StudentError};

/// The blocks to keep of `all`, in order, where it takes no measuring; none where `count` is to be chosen by measuring.
pub(super) fn check(choice: &LayerChoice, all: usize) -> Result<(), StudentError> {
    match choice {
        LayerChoice::All => Ok(()),
        LayerChoice::Count(n) if (1..=all).contains(n) => Ok(()),
        LayerChoice::Count(n) => {
            Err(StudentError::Size { option: "layers", expected: format!("1 to {all}, the teacher's"), found: *n })
        }
        LayerChoice::Map(map) => {
            let ascending = map.windows(2).all(|pair| pair[0] < pair[1]);
            if !map.is_empty() && ascending && map.iter().all(|&layer| layer < all) {
                return Ok(());
            }
            let found = map.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
            Err(StudentError::LayerMap { last: all - 1, found })
        }
    }
}

/// `count` of `all` blocks without having seen them run: the first and the last ones do most, and what stands between two that
/// stay is best made up for where it is short. So the block goes next whose place between the ends and whose gap cost least.
#[allow(clippy::cast_precision_loss)] // Few layers.
pub(super) fn by_place(all: usize, count: usize) -> Vec<usize> {
    let mut kept: Vec<_> = (0..all).collect();
    // From 0.5 in the middle to 1.5 at the ends.
    let worth = |layer: usize| 0.5 + (2.0 * layer as f64 / (all.max(2) - 1) as f64 - 1.0).powi(2);
    while kept.len() > count {
        let last = kept.len() - 1;
        // The ends stay until nothing else is left.
        let inner = if last > 1 { 1..last } else { 0..last + 1 };
        let gap = |i: usize| {
            let before = if i == 0 { 0 } else { kept[i - 1] + 1 };
            let after = kept.get(i + 1).map_or(all, |&layer| layer);
            (after - before) as f64
        };
        let cost = |i: &usize| worth(kept[*i]) * gap(*i).powi(2);
        let least = inner.min_by(|a, b| cost(a).total_cmp(&cost(b))).unwrap_or(0);
        kept.remove(least);
    }
    kept
}

/// `count` of `all` blocks, by what `error` says of the model without some of them: the one without which it is least goes, then
/// the next of those left. Tells the errors of leaving out each one alone, too.
pub(super) fn by_error(
    all: usize,
    count: usize,
    mut error: impl FnMut(&[usize]) -> Result<f64, StudentError>,
) -> Result<(Vec<usize>, Vec<f64>), StudentError> {
    let mut without: Vec<usize> = vec![];
    let mut alone = vec![];
    loop {
        let left: Vec<_> = (0..all).filter(|layer| !without.contains(layer)).collect();
        if left.len() <= count && !alone.is_empty() {
            return Ok((left, alone));
        }
        let mut errors = vec![];
        for &layer in &left {
            errors.push(error(&[&without[..], &[layer]].concat())?);
        }
        if alone.is_empty() {
            alone.clone_from(&errors);
        }
        if left.len() <= count {
            continue;
        }
        let least = (0..left.len()).min_by(|&a, &b| errors[a].total_cmp(&errors[b])).unwrap_or(0);
        without.push(left[least]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_dense_at_the_ends_and_gaps_short() {
        assert_eq!(by_place(6, 4), [0, 1, 3, 5]);
        assert_eq!(by_place(6, 3), [0, 3, 5]);
        assert_eq!(by_place(6, 2), [0, 5]);
        assert_eq!(by_place(6, 1).len(), 1);
        let half = by_place(30, 15);
        assert_eq!((half.len(), half[0], half[14]), (15, 0, 29));
        assert!(half.windows(2).all(|pair| (1..=4).contains(&(pair[1] - pair[0]))), "{half:?}");
    }

    #[test]
    fn the_block_goes_without_which_the_error_is_least_among_those_left() {
        // 1 and 2 do the same: either may go, not both.
        let error = |without: &[usize]| {
            let both = without.contains(&1) && without.contains(&2);
            let of = |layer: &usize| [5.0, 1.0, 1.5, 3.0][*layer];
            Ok(without.iter().map(of).sum::<f64>() + if both { 10.0 } else { 0.0 })
        };
        let (kept, alone) = by_error(4, 2, error).expect("no errors");
        assert_eq!(kept, [0, 2]);
        assert_eq!(alone, [5.0, 1.0, 1.5, 3.0]);
        assert_eq!(by_error(4, 4, error).expect("no errors").0, [0, 1, 2, 3]);
    }
}
