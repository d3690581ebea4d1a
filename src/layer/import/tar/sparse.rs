//! Maps of sparse members: which ranges of the file the archive holds, in all four formats.
//!
//! Old GNU keeps the map in the header and in blocks after it; PAX 0.0 and 0.1 keep it in
//! extended records; PAX 1.0 keeps it as text before the data. GNU tar manual, "Sparse Formats".

use super::TarFault;
use super::pax::{PaxSparse, decimal};

/// The ranges of a file that an archive holds; everything else is zeros.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SparseMap {
    /// `(offset, length)` in bytes: ascending, not overlapping, none empty.
    ranges: Vec<(u64, u64)>,
    /// Size of the expanded file in bytes.
    real_size: u64,
}

impl SparseMap {
    /// Checks `ranges` against the size of the file and the bytes the archive has for it.
    pub(super) fn new(
        ranges: impl IntoIterator<Item = (u64, u64)>,
        real_size: u64,
        stored_bytes: u64,
    ) -> Result<Self, TarFault> {
        let mut kept = Vec::new();
        let mut end = 0_u64;
        let mut sum = 0_u64;
        for (offset, length) in ranges {
            let next = offset
                .checked_add(length)
                .filter(|next| offset >= end && *next <= real_size)
                .ok_or(TarFault::BadSparseMap("its ranges overlap or leave the file"))?;
            end = next;
            // The ranges do not overlap, so their sum is at most `real_size`.
            sum += length;
            if length > 0 {
                kept.push((offset, length));
            }
        }
        if sum != stored_bytes {
            return Err(TarFault::BadSparseMap("it does not add up to the stored bytes"));
        }
        Ok(Self { ranges: kept, real_size })
    }

    pub(super) fn real_size(&self) -> u64 {
        self.real_size
    }

    /// The range at or after `index`, for a reader that walks the map.
    pub(super) fn range(&self, index: usize) -> Option<(u64, u64)> {
        self.ranges.get(index).copied()
    }
}

/// The ranges that PAX records give (formats 0.0 and 0.1); `None` for other members.
pub(super) fn pax_ranges(sparse: &PaxSparse) -> Result<Option<Vec<(u64, u64)>>, TarFault> {
    if let Some(map) = &sparse.map {
        let numbers: Option<Vec<u64>> = map.split(|byte| *byte == b',').map(decimal).collect();
        let numbers = numbers
            .filter(|numbers| numbers.len() % 2 == 0)
            .ok_or(TarFault::BadSparseMap("it is not a list of number pairs"))?;
        return Ok(Some(numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect()));
    }
    Ok((!sparse.pairs.is_empty()).then(|| sparse.pairs.clone()))
}

/// Reads the map of format 1.0: a count and then pairs, each a decimal line.
///
/// `block` gives the next 512 bytes of the member's data. The rest of the last block is padding.
pub(super) fn text_ranges(
    mut block: impl FnMut() -> Result<[u8; 512], TarFault>,
) -> Result<Vec<(u64, u64)>, TarFault> {
    let mut numbers = Vec::new();
    let mut wanted = None;
    let mut number: Option<u64> = None;
    loop {
        for byte in block()? {
            match (byte, number) {
                (b'0'..=b'9', so_far) => {
                    let next = so_far.unwrap_or(0).checked_mul(10);
                    let next = next.and_then(|tens| tens.checked_add(u64::from(byte - b'0')));
                    number =
                        Some(next.ok_or(TarFault::BadSparseMap("a number in it is too large"))?);
                }
                (b'\n', Some(whole)) => {
                    number = None;
                    match wanted {
                        None => wanted = Some(whole),
                        Some(_) => numbers.push(whole),
                    }
                    let pairs = u64::try_from(numbers.len() / 2).unwrap_or(u64::MAX);
                    if numbers.len() % 2 == 0 && wanted == Some(pairs) {
                        return Ok(numbers
                            .chunks_exact(2)
                            .map(|pair| (pair[0], pair[1]))
                            .collect());
                    }
                }
                _ => return Err(TarFault::BadSparseMap("it is not a list of numbers")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(map: &str) -> Result<Vec<(u64, u64)>, TarFault> {
        let mut blocks = map.as_bytes().chunks(512);
        text_ranges(|| {
            let chunk = blocks.next().ok_or(TarFault::Truncated)?;
            let mut block = [0; 512];
            block[..chunk.len()].copy_from_slice(chunk);
            Ok(block)
        })
    }

    #[test]
    fn maps_are_checked_against_the_file() {
        let map = SparseMap::new([(0, 10), (100, 5), (200, 0)], 200, 15).unwrap();
        assert_eq!(map.real_size(), 200);
        assert_eq!(map.range(1), Some((100, 5)));
        assert_eq!(map.range(2), None);
        for (ranges, size, stored) in [
            (vec![(0, 10), (5, 5)], 100, 15),
            (vec![(0, 10), (95, 10)], 100, 20),
            (vec![(10, 10), (0, 10)], 100, 20),
            (vec![(u64::MAX, 2)], u64::MAX, 2),
            (vec![(0, 10)], 100, 11),
        ] {
            assert!(SparseMap::new(ranges, size, stored).is_err());
        }
    }

    #[test]
    fn text_maps_may_cross_blocks() {
        assert_eq!(text("0\n").unwrap(), []);
        assert_eq!(text("2\n0\n512\n1048576\n0\n").unwrap(), [(0, 512), (1_048_576, 0)]);
        let long: String = std::iter::once("300\n".to_owned())
            .chain((0..300).map(|number| format!("{}\n1\n", number * 10)))
            .collect();
        assert_eq!(text(&long).unwrap().len(), 300);
        assert!(text("2\n0\n512\n").is_err());
        assert!(text("x\n").is_err());
        assert!(text("\n").is_err());
        assert!(text("99999999999999999999999\n").is_err());
    }
}
