//! Is compression worth a try? A guess that costs far less than hashing the same bytes.

/// A smaller payload gains too little.
const SMALLEST: usize = 64;
const PLACES: usize = 8;
const PLACE: usize = 256;

/// Count how many pairs of sampled bytes are equal, and compare with what random bytes would give.
///
/// For independent, uniform bytes a pair is equal with probability 1/256, whatever the size of the sample, so there
/// is no bias to correct in small ones. An excess of 30 % (a collision entropy of 7.6 bits a byte) beyond four
/// standard deviations says that some values are common enough for an entropy coder to pay.
pub fn is_compressible(data: &[u8]) -> bool {
    if data.len() < SMALLEST {
        return false;
    }
    let mut counts = [[0u16; 256]; 2];
    let mut sampled = 0usize;
    let mut count = |piece: &[u8]| {
        sampled += piece.len();
        for (index, &byte) in piece.iter().enumerate() {
            counts[index % 2][byte as usize] += 1;
        }
    };
    if data.len() <= PLACES * PLACE {
        count(data);
    } else {
        for place in 0..PLACES {
            let start = (data.len() - PLACE) / (PLACES - 1) * place;
            count(&data[start..start + PLACE]);
        }
    }
    let ordered_pairs = |n: u64| n * n.saturating_sub(1);
    let [even, odd] = &counts;
    let equal: u64 = even.iter().zip(odd).map(|(&e, &o)| ordered_pairs(u64::from(e) + u64::from(o))).sum();
    let (equal, expected) = (equal as f64 / 2.0, ordered_pairs(sampled as u64) as f64 / 512.0);
    equal > 1.3 * expected + 4.0 * expected.sqrt()
}
