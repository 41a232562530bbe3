//! What ONNX Runtime's arena takes from the system (`onnxruntime/core/framework/bfc_arena.cc`).
//!
//! It fetches regions of memory, each twice as large as the one before unless more is asked for, or as large as what is asked for; hands
//! out the smallest free piece that holds what is wanted, cut where much would be left, and joins free neighbours of a region. What
//! nothing was written to yet is no memory of the system's, so a region counts as far as it was ever handed out.

use super::Device;

/// Pieces are multiples of this.
const UNIT: u64 = 256;
/// The first region, and the largest one that is fetched unasked.
const REGION: [u64; 2] = [1 << 20, 1 << 30];
/// The first region after some were given back.
const AFTER_SHRINKING: u64 = 2 << 20;
/// A piece is cut if so much would be left, or as much as is wanted.
const LARGEST_REST: u64 = 128 << 20;

/// The arena of a session.
#[derive(Default)]
pub(super) struct Arena {
    regions: Vec<Region>,
    /// The size of the next region.
    next: u64,
    /// On CUDA regions are as large as what is asked for: cogvx says so to the provider.
    device: Device,
}

struct Region {
    /// In order, without gaps.
    pieces: Vec<Piece>,
    /// How far it was handed out.
    touched: u64,
}

#[derive(Clone, Copy)]
struct Piece {
    at: u64,
    bytes: u64,
    is_free: bool,
}

/// Where memory lies that was handed out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    region: usize,
    at: u64,
}

impl Arena {
    /// An arena of this device.
    pub fn new(device: Device) -> Self {
        Self { device, ..Self::default() }
    }

    /// Hand out so many bytes; none for none.
    pub fn take(&mut self, bytes: u64) -> Option<Place> {
        let wanted = bytes.next_multiple_of(UNIT);
        if wanted == 0 {
            return None;
        }
        let (region, piece) = self.smallest(wanted).unwrap_or_else(|| self.fetch(wanted));
        let region_of = &mut self.regions[region];
        let Piece { at, bytes: found, .. } = region_of.pieces[piece];
        let rest = found - wanted;
        let taken = if rest >= wanted || rest >= LARGEST_REST { wanted } else { found };
        region_of.pieces[piece] = Piece { at, bytes: taken, is_free: false };
        if taken < found {
            region_of.pieces.insert(piece + 1, Piece { at: at + taken, bytes: found - taken, is_free: true });
        }
        region_of.touched = region_of.touched.max(at + wanted);
        Some(Place { region, at })
    }

    /// Take back what was handed out there.
    pub fn give_back(&mut self, place: Place) {
        let pieces = &mut self.regions[place.region].pieces;
        let Some(mut i) = pieces.iter().position(|piece| piece.at == place.at) else { return };
        pieces[i].is_free = true;
        if pieces.get(i + 1).is_some_and(|next| next.is_free) {
            pieces[i].bytes += pieces.remove(i + 1).bytes;
        }
        if i > 0 && pieces[i - 1].is_free {
            i -= 1;
            pieces[i].bytes += pieces.remove(i + 1).bytes;
        }
    }

    /// Give regions back to the system of which nothing is handed out, but for the first one.
    pub fn shrink(&mut self) {
        for region in self.regions.iter_mut().skip(1).filter(|region| region.pieces.iter().all(|piece| piece.is_free)) {
            *region = Region { pieces: vec![], touched: 0 };
        }
        self.next = AFTER_SHRINKING;
    }

    /// Bytes that were ever written to.
    pub fn touched(&self) -> u64 {
        self.regions.iter().map(|region| region.touched).sum()
    }

    /// The smallest free piece that is large enough. Of equals the first in memory: the system places a new region before the others.
    fn smallest(&self, wanted: u64) -> Option<(usize, usize)> {
        let pieces =
            self.regions.iter().enumerate().rev().flat_map(|(region, of)| {
                of.pieces.iter().enumerate().map(move |(piece, found)| ((region, piece), found))
            });
        let fit = pieces.filter(|(_, piece)| piece.is_free && piece.bytes >= wanted);
        fit.min_by_key(|(_, piece)| piece.bytes).map(|(place, _)| place)
    }

    fn fetch(&mut self, wanted: u64) -> (usize, usize) {
        if self.device == Device::Cuda {
            self.regions.push(Region { pieces: vec![Piece { at: 0, bytes: wanted, is_free: true }], touched: 0 });
            return (self.regions.len() - 1, 0);
        }
        let [first, most] = REGION;
        let planned = self.next.max(first);
        let mut bytes = planned;
        while bytes < wanted {
            bytes = bytes.saturating_mul(2);
        }
        // One that had to be larger than planned is not doubled.
        self.next = if bytes > planned { bytes } else { (2 * bytes).min(most) };
        self.regions.push(Region { pieces: vec![Piece { at: 0, bytes, is_free: true }], touched: 0 });
        (self.regions.len() - 1, 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    /// Hand out so many MiB.
    fn take(arena: &mut Arena, mib: u64) -> Place {
        arena.take(mib * MIB).expect("not nothing")
    }

    #[test]
    fn the_smallest_piece_that_fits_is_handed_out_and_cut_where_much_is_left() {
        let mut arena = Arena::default();
        assert_eq!(arena.take(0), None);
        let [a, b] = [3, 1].map(|mib| take(&mut arena, mib));
        // Each of them has a region of four: of the first there was too little left to cut it.
        assert_eq!((a, b), (Place { region: 0, at: 0 }, Place { region: 1, at: 0 }));
        assert_eq!(arena.touched(), 4 * MIB);
        arena.give_back(a);
        // What is left of the second one is smaller than the first.
        let c = take(&mut arena, 2);
        assert_eq!(c, Place { region: 1, at: MIB });
        assert_eq!(take(&mut arena, 2), a);
        assert_eq!(arena.touched(), 6 * MIB);
        arena.give_back(b);
        arena.give_back(c);
        assert_eq!(take(&mut arena, 4), b, "neighbours are joined");
        assert_eq!(arena.touched(), 7 * MIB);
    }

    #[test]
    fn regions_without_anything_in_them_go_back() {
        let mut arena = Arena::default();
        let places = [1, 4, 16].map(|mib| take(&mut arena, mib));
        places[..2].iter().for_each(|&place| arena.give_back(place));
        arena.shrink();
        assert_eq!(arena.touched(), 17 * MIB, "the first one stays, and the one in use");
        assert_eq!(take(&mut arena, 2), Place { region: 3, at: 0 });
        assert_eq!(arena.regions[3].pieces[0].bytes, 2 * MIB);
        arena.give_back(places[2]);
        arena.shrink();
        assert_eq!(arena.touched(), 3 * MIB);
    }

    #[test]
    fn regions_on_cuda_are_as_large_as_what_is_asked_for() {
        let mut arena = Arena::new(Device::Cuda);
        let places = [1, 4, 2].map(|mib| take(&mut arena, mib));
        assert_eq!(arena.touched(), 7 * MIB);
        for place in places {
            arena.give_back(place);
        }
        // Pieces of different regions are not joined, but cut.
        take(&mut arena, 5);
        assert_eq!([2, 1, 2].map(|mib| take(&mut arena, mib).region), [2, 0, 1]);
        assert_eq!(arena.touched(), 12 * MIB);
    }

    #[test]
    fn regions_grow_as_they_are_asked_for_and_by_themselves() {
        let mut arena = Arena::default();
        let sizes =
            |arena: &Arena| arena.regions.iter().map(|r| r.pieces.iter().map(|p| p.bytes / MIB).sum()).collect();
        for _ in 0..4 {
            take(&mut arena, 1);
        }
        take(&mut arena, 100);
        take(&mut arena, 1000);
        for _ in 0..3 {
            take(&mut arena, 600);
        }
        let found: Vec<u64> = sizes(&arena);
        assert_eq!(found, [1, 2, 4, 128, 1024, 1024, 1024, 1024]);
    }
}
