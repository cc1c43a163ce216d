//! FastCDC of 2020 with normalisation level 1, streaming.
//!
//! A chunk is cut before the first byte, at a position >= min in it, at which the gear hash of the bytes since min has
//! zeros under a mask: a strict mask before the average size, a lax one after it; at max in any case. Bytes count in
//! pairs from the beginning of the chunk: at the end of a stream a first byte without its second is never a cut.

use super::gear::{GEAR, MASKS};

/// Bytes for each of the two lanes: large against the 64 bytes that the second lane reads ahead of its start, small
/// against a chunk, because what it has done is lost when the first lane finds a cut.
const LANE: usize = 2048;
/// Bytes that are hashed between two shifts.
const STEP: usize = 8;
/// After as many bytes nothing of what was before is left in the 64-bit hash.
const WINDOW: usize = 64;

pub const MIN: std::ops::RangeInclusive<usize> = 64..=1 << 20;
pub const AVERAGE: std::ops::RangeInclusive<usize> = 256..=4 << 20;
pub const MAX: std::ops::RangeInclusive<usize> = 1024..=16 << 20;

pub struct Cutter {
    min: usize,
    average: usize,
    max: usize,
    strict: u64,
    lax: u64,
    /// Bytes of the unfinished chunk.
    length: usize,
    hash: u64,
    /// The last byte is a cut if another one follows.
    pending: bool,
}

impl Cutter {
    /// None unless each size is even, in its range, and min <= average <= max.
    pub fn new(min: usize, average: usize, max: usize) -> Option<Self> {
        let valid = MIN.contains(&min)
            && AVERAGE.contains(&average)
            && MAX.contains(&max)
            && min <= average
            && average <= max
            && (min | average | max).is_multiple_of(2);
        // Rounded, as the crate does; exact for every size in range, because no f64 lies near enough to a tie.
        let bits = valid.then(|| (average as f64).log2().round() as usize)?;
        Some(Self {
            min,
            average,
            max,
            strict: MASKS[bits + 1],
            lax: MASKS[bits - 1],
            length: 0,
            hash: 0,
            pending: false,
        })
    }

    pub fn feed(&mut self, data: &[u8], lengths: &mut Vec<u64>) {
        if data.is_empty() {
            return;
        }
        if self.pending {
            self.pending = false;
            self.cut(self.length - 1, 1, lengths);
        }
        let mut at = 0;
        while at < data.len() {
            if self.length < self.min {
                let skipped = (self.min - self.length).min(data.len() - at);
                self.length += skipped;
                at += skipped;
                continue;
            }
            let (stop, mask) =
                if self.length < self.average { (self.average, self.strict) } else { (self.max, self.lax) };
            let take = (stop - self.length).min(data.len() - at);
            match find(&data[at..at + take], &mut self.hash, mask) {
                Some(index) => {
                    let length = self.length + index;
                    at += index + 1;
                    if length.is_multiple_of(2) && at == data.len() {
                        self.length = length + 1;
                        self.pending = true;
                    } else {
                        self.cut(length, 1, lengths);
                    }
                }
                None => {
                    self.length += take;
                    at += take;
                }
            }
            if self.length == self.max {
                self.cut(self.max, 0, lengths);
            }
        }
    }

    /// End a chunk; `begun` bytes of the next one have been read.
    fn cut(&mut self, length: usize, begun: usize, lengths: &mut Vec<u64>) {
        lengths.push(length as u64);
        self.length = begun;
        self.hash = 0;
    }

    pub fn finish(&mut self) -> u64 {
        let length = self.length as u64;
        (self.length, self.hash, self.pending) = (0, 0, false);
        length
    }
}

/// `SHIFTED[i]` is `GEAR` for the byte i of a step, shifted as far as the hash will be at the end of the step.
///
/// So the hash is shifted once a step and not with each byte; after byte i it is `STEP - 1 - i` bits too far left, and
/// so is the mask that it is compared with. No mask has bits that would be lost.
static SHIFTED: [[u64; 256]; STEP] = {
    let mut tables = [[0; 256]; STEP];
    let mut i = 0;
    while i < STEP {
        let mut byte = 0;
        while byte < 256 {
            tables[i][byte] = GEAR[byte] << (STEP - 1 - i);
            byte += 1;
        }
        i += 1;
    }
    tables
};

const _: () = {
    let mut i = 0;
    while i < MASKS.len() {
        assert!(MASKS[i].leading_zeros() as usize >= STEP);
        i += 1;
    }
};

/// The hash of whole steps of bytes, from nothing.
fn hash_of(data: &[u8]) -> u64 {
    data.as_chunks::<STEP>().0.iter().fold(0, |hash, bytes| {
        let step = (0..STEP).map(|i| SHIFTED[i][bytes[i] as usize]);
        step.fold(hash << STEP, u64::wrapping_add)
    })
}

/// The first index at which the hash, rolled on, has only zeros under `mask`. Leaves the hash at the end if none.
fn find(data: &[u8], hash: &mut u64, mask: u64) -> Option<usize> {
    let mut at = 0;
    while data.len() - at >= 2 * LANE {
        if let Some(index) = find_in_lanes(&data[at..at + LANE], &data[at + LANE..at + 2 * LANE], hash, mask)
        {
            return Some(at + index);
        }
        at += 2 * LANE;
    }
    find_serially(&data[at..], hash, mask).map(|index| at + index)
}

fn find_serially(data: &[u8], hash: &mut u64, mask: u64) -> Option<usize> {
    let mut rolled = *hash;
    let (steps, rest) = data.as_chunks::<STEP>();
    for (step, bytes) in steps.iter().enumerate() {
        rolled <<= STEP;
        for i in 0..STEP {
            rolled = rolled.wrapping_add(SHIFTED[i][bytes[i] as usize]);
            if rolled & (mask << (STEP - 1 - i)) == 0 {
                return Some(step * STEP + i);
            }
        }
    }
    for (index, &byte) in rest.iter().enumerate() {
        rolled = (rolled << 1).wrapping_add(GEAR[byte as usize]);
        if rolled & mask == 0 {
            return Some(steps.len() * STEP + index);
        }
    }
    *hash = rolled;
    None
}

/// One chain of hashes waits for itself; two side by side fill the time. `second` follows `first` in memory.
fn find_in_lanes(first: &[u8], second: &[u8], hash: &mut u64, mask: u64) -> Option<usize> {
    let mut a = *hash;
    let mut b = hash_of(&first[LANE - WINDOW..]);
    let (firsts, _) = first.as_chunks::<STEP>();
    let (seconds, _) = second.as_chunks::<STEP>();
    for (step, (x, y)) in firsts.iter().zip(seconds).enumerate() {
        a <<= STEP;
        b <<= STEP;
        for i in 0..STEP {
            a = a.wrapping_add(SHIFTED[i][x[i] as usize]);
            b = b.wrapping_add(SHIFTED[i][y[i] as usize]);
            let mask_here = mask << (STEP - 1 - i);
            if a & mask_here == 0 {
                return Some(step * STEP + i);
            }
            if b & mask_here == 0 {
                // A cut in the first lane, which is not through yet, would come before this one. Shifted back, its
                // hash lacks bits above those of any mask, and nothing of them ever comes down.
                let next = step * STEP + i + 1;
                let mut back = a >> (STEP - 1 - i);
                let earlier = find_serially(&first[next..], &mut back, mask).map(|index| next + index);
                return earlier.or(Some(LANE + next - 1));
            }
        }
    }
    *hash = b;
    None
}
