//! An input is a blob, ranges, damage to their stream, and how it is cut: ours and the crate `bao-tree` must write
//! the same bytes, give the same verdict on the damaged stream, and take the same data from it.
//!
//! From this directory, with a stable compiler (and one for C++, for libFuzzer):
//!
//! ```sh
//! mkdir -p ../../native/target/fuzz/found
//! cargo run --release --locked --target "$(rustc -vV | sed -n 's/^host: //p')" -- \
//!     ../../native/target/fuzz/found corpus -max_total_time=60 -max_len=64
//! ```
//!
//! What is new goes to `found`; `-set_cover_merge=1 corpus ../../native/target/fuzz/found` adds what is worth keeping.

#![no_main]

#[allow(dead_code)]
#[path = "../../native/src/kernels/mod.rs"]
mod kernels;

use std::mem::MaybeUninit;

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::{DecodeResponseIter, encode_ranges_validated};
use bao_tree::io::{BaoContentItem, DecodeError};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use kernels::decode::{Decoder, Kind, Sink};
use kernels::encode::{Encoder, Output};
use kernels::walk;
use libfuzzer_sys::fuzz_target;

const BLOCK: BlockSize = BlockSize::from_chunk_log(4);

struct Input<'a>(&'a [u8]);

impl Input<'_> {
    /// A number of `bytes` bytes, zeros when the input is used up.
    fn number(&mut self, bytes: usize) -> u64 {
        let (head, rest) = self.0.split_at(bytes.min(self.0.len()));
        self.0 = rest;
        head.iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
    }

    /// Mostly small, now and then anything.
    fn leaf(&mut self) -> u64 {
        match self.number(1) {
            255 => self.number(8),
            254 => self.number(2),
            small => small,
        }
    }
}

/// Runs of (offset, bytes), adjacent pieces joined.
#[derive(Default)]
struct Collected {
    runs: Vec<(u64, Vec<u8>)>,
}

impl Collected {
    fn total(&self) -> usize {
        self.runs.iter().map(|(_, run)| run.len()).sum()
    }
}

impl Sink for Collected {
    fn copy(&mut self, offset: u64, data: &[u8]) -> &[u8] {
        if data.is_empty() {
            return &[];
        }
        if self.runs.last().is_none_or(|(start, run)| start + run.len() as u64 != offset) {
            self.runs.push((offset, Vec::new()));
        }
        let (_, run) = self.runs.last_mut().expect("just pushed");
        run.extend_from_slice(data);
        &run[run.len() - data.len()..]
    }

    fn drop_last(&mut self, length: usize) {
        if let Some((_, run)) = self.runs.last_mut().filter(|_| length > 0) {
            run.truncate(run.len() - length);
            if run.is_empty() {
                self.runs.pop();
            }
        }
    }
}

fn encode(data: &[u8], outboard: &PreOrderMemOutboard, boundaries: &[u64], limit: u64) -> Vec<u8> {
    let mut encoder = Encoder::new(*outboard.root.as_bytes(), data.len() as u64, boundaries);
    let mut stream = Vec::new();
    loop {
        let plan = encoder.plan(limit).clone();
        if plan.output == 0 {
            return stream;
        }
        let pairs: Vec<&[u8]> =
            plan.pairs.iter().map(|&(at, length)| &outboard.data[at as usize..][..length as usize]).collect();
        let runs: Vec<&[u8]> =
            plan.data.iter().map(|&(at, length)| &data[at as usize..][..length as usize]).collect();
        let mut slots = vec![MaybeUninit::new(0u8); plan.output];
        let mut output = Output::new(&mut slots);
        encoder.encode(&pairs, &runs, &mut output).expect("good data verifies");
        assert_eq!(output.finish(), plan.output);
        // SAFETY: initialised above.
        stream.extend(slots.iter().map(|slot| unsafe { slot.assume_init() }));
    }
}

fuzz_target!(|input: &[u8]| {
    let mut input = Input(input);
    let size = input.number(2) as usize;
    let seed = input.number(1);
    let pattern: Vec<u8> = (0..=250).cycle().skip(seed as usize % 251).take(251).collect();
    let data: Vec<u8> = pattern.iter().copied().cycle().take(size).collect();
    let outboard = PreOrderMemOutboard::create(&data[..], BLOCK);

    let mut boundaries: Vec<u64> = (0..input.number(1) % 9).map(|_| input.leaf()).collect();
    boundaries.sort_unstable();
    boundaries.dedup();
    let mut ranges = ChunkRanges::empty();
    for pair in boundaries.chunks(2) {
        ranges |= match pair {
            [start, stop] => ChunkRanges::from(ChunkNum(*start)..ChunkNum(*stop)),
            _ => ChunkRanges::from(ChunkNum(pair[0])..),
        };
    }

    let mut stream = Vec::new();
    if !boundaries.is_empty() {
        stream.extend((size as u64).to_le_bytes());
        encode_ranges_validated(&data[..], &outboard, &ranges, &mut stream).expect("whole");
    }
    assert!(encode(&data, &outboard, &boundaries, 1 << (input.number(1) % 20)) == stream);

    for _ in 0..input.number(1) % 4 {
        let (kind, at) = (input.number(1), input.number(2) as usize % (stream.len() + 1));
        match kind % 6 {
            0 => stream.truncate(at),
            1 => stream.extend(std::iter::repeat_n(input.number(1) as u8, at % 2000)),
            2 => stream.rotate_left(at),
            3 if stream.len() >= 8 => {
                let width = input.number(1) as usize % 9;
                stream[..8].copy_from_slice(&input.number(width).to_le_bytes());
            }
            4 => _ = stream.drain(..at.min(stream.len()).min(100)),
            _ => {
                if let Some(byte) = stream.get_mut(at) {
                    *byte ^= input.number(1) as u8;
                }
            }
        }
    }

    let mut decoder = Decoder::new(*outboard.root.as_bytes(), boundaries.clone(), true);
    let mut ours = Collected::default();
    let mut rest = &stream[..];
    loop {
        let wants = decoder.wants(1 << 16);
        assert!(wants <= 1 << 16);
        let step = match input.number(2) {
            0 => 1 << 17,
            step => step as usize,
        };
        let (piece, after) = rest.split_at(step.min(rest.len()));
        let body = &piece[decoder.feed_header(piece)..];
        let planned: usize = decoder.plan(body.len()).iter().map(|run| run.1).sum();
        let before = ours.total();
        decoder.feed(body, &mut ours);
        let given = ours.total() - before;
        assert!(given <= body.len() + 16_384);
        assert!(given == planned || (given < planned && decoder.failure().is_some()));
        rest = after;
        if rest.is_empty() {
            break;
        }
    }
    let verdict = decoder.finish();
    for (at, run) in &ours.runs {
        assert!(data.get(*at as usize..*at as usize + run.len()) == Some(run));
    }
    for (at, run) in decoder.take_pairs() {
        assert!(outboard.data.get(at as usize..at as usize + run.len()) == Some(&run));
    }
    match verdict {
        Ok(()) => assert!(!decoder.is_size_proven() || decoder.size() == Some(size as u64)),
        Err(failure) => assert!(failure.offset <= stream.len() as u64),
    }

    let Some(header) = stream.first_chunk::<8>().filter(|_| !boundaries.is_empty()) else {
        assert_eq!(verdict.is_ok(), stream.is_empty() && boundaries.is_empty());
        return;
    };
    let claimed = u64::from_le_bytes(*header);
    if claimed > walk::MAX_SIZE {
        assert_eq!(verdict.expect_err("too large").kind, Kind::Size(claimed));
        return;
    }
    let mut theirs = Collected::default();
    let mut rest = &stream[8..];
    let whole = DecodeResponseIter::new(outboard.root, BaoTree::new(claimed, BLOCK), &mut rest, &ranges)
        .try_for_each(|item| {
            if let BaoContentItem::Leaf(leaf) = item? {
                theirs.copy(leaf.offset, &leaf.data);
            }
            Ok::<(), DecodeError>(())
        })
        .is_ok();
    assert_eq!(verdict.is_ok(), whole && rest.is_empty());
    assert!(ours.runs == theirs.runs);
});
