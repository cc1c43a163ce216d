//! FastCDC of 2020 with normalisation level 1, streaming.
//!
//! A chunk is cut before the first byte, at a position >= min in it, at which the gear hash of the bytes since min has
//! zeros under a mask: a strict mask before the average size, a lax one after it; at max in any case. Bytes count in
//! pairs from the beginning of the chunk: at the end of a stream a first byte without its second is never a cut.

use super::gear::{GEAR, MASKS};

/// Bytes for each of the two lanes: large against the 64 bytes that the second lane reads ahead of its start, small
/// against a chunk, because what it has done is lost when the first lane finds a cut.
const LANE: usize = 2048;
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

#[inline(always)]
fn roll(hash: u64, byte: u8) -> u64 {
    (hash << 1).wrapping_add(GEAR[byte as usize])
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
    for (index, &byte) in data.iter().enumerate() {
        rolled = roll(rolled, byte);
        if rolled & mask == 0 {
            return Some(index);
        }
    }
    *hash = rolled;
    None
}

/// One chain of hashes waits for itself; two side by side fill the time. `second` follows `first` in memory.
fn find_in_lanes(first: &[u8], second: &[u8], hash: &mut u64, mask: u64) -> Option<usize> {
    const STEP: usize = 8;
    let mut a = *hash;
    let mut b = first[LANE - WINDOW..].iter().fold(0, |b, &byte| roll(b, byte));
    let (firsts, _) = first.as_chunks::<STEP>();
    let (seconds, _) = second.as_chunks::<STEP>();
    for (step, (x, y)) in firsts.iter().zip(seconds).enumerate() {
        let (x, y) = (u64::from_le_bytes(*x), u64::from_le_bytes(*y));
        for i in 0..STEP {
            a = roll(a, (x >> (8 * i)) as u8);
            b = roll(b, (y >> (8 * i)) as u8);
            if a & mask == 0 {
                return Some(step * STEP + i);
            }
            if b & mask == 0 {
                // A cut in the first lane would come before this one.
                let done = step * STEP + i + 1;
                return match find_serially(&first[done..], &mut a, mask) {
                    Some(index) => Some(done + index),
                    None => Some(LANE + done - 1),
                };
            }
        }
    }
    *hash = b;
    None
}
