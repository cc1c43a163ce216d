//! Encoding and decoding of BAO streams against the crate `bao-tree`, byte for byte, and bad streams.

#[allow(dead_code)] // the same source as the module, of which this uses a part
#[path = "../src/kernels/mod.rs"]
mod kernels;

use std::mem::MaybeUninit;

use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::{DecodeResponseIter, encode_ranges_validated};
use bao_tree::io::{BaoContentItem, DecodeError};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use kernels::decode::{Decoder, Kind, Sink};
use kernels::encode::{Encoder, Failure, Output};
use kernels::walk;

const BLOCK: BlockSize = BlockSize::from_chunk_log(4);

/// SplitMix64: reproducible bytes without a crate.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).take(count).collect()
    }

    /// Boundaries within and around a blob of `leaves`, of any fineness; sometimes far beyond it.
    fn boundaries(&mut self, leaves: u64) -> Vec<u64> {
        let grain = [1, 1, 4, 16, 64][self.below(5)];
        let far = self.below(8) == 0;
        let mut all: Vec<u64> = (0..self.below(9))
            .map(|_| match far && self.below(3) == 0 {
                true => self.next() >> self.below(64),
                false => self.next() % (leaves + 4) / grain * grain,
            })
            .collect();
        if self.below(12) == 0 {
            all.push(u64::MAX);
        }
        if self.below(6) == 0 {
            all.extend([leaves - 1, leaves].into_iter().take(1 + self.below(2)));
        }
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Around leaves, groups, powers of two of both.
fn sizes(random: &mut Random) -> Vec<usize> {
    let mut sizes = vec![0, 1, 2, 1023, 1024, 1025, 2047, 2048, 2049, 3000, 5000, 10_000];
    for groups in [1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 64] {
        sizes.extend([groups * 16_384 - 1, groups * 16_384, groups * 16_384 + 1, groups * 16_384 + 1025]);
    }
    sizes.extend((0..20).map(|_| random.below(400_000)));
    sizes
}

struct Blob {
    data: Vec<u8>,
    outboard: PreOrderMemOutboard,
}

impl Blob {
    fn new(data: Vec<u8>) -> Self {
        Self { outboard: PreOrderMemOutboard::create(&data[..], BLOCK), data }
    }

    fn root(&self) -> [u8; 32] {
        *self.outboard.root.as_bytes()
    }

    fn size(&self) -> u64 {
        self.data.len() as u64
    }

    /// What the crate writes, with the size in front, as iroh-blobs sends it; nothing for nothing.
    fn crate_stream(&self, boundaries: &[u64]) -> Vec<u8> {
        let mut stream = Vec::new();
        if !boundaries.is_empty() {
            stream.extend(self.size().to_le_bytes());
            encode_ranges_validated(&self.data[..], &self.outboard, &crate_ranges(boundaries), &mut stream)
                .expect("whole");
        }
        stream
    }

    fn stream(&self, boundaries: &[u64], limit: u64) -> Result<Vec<u8>, Failure> {
        let mut encoder = Encoder::new(self.root(), self.size(), boundaries);
        let mut stream = Vec::new();
        loop {
            let plan = encoder.plan(limit).clone();
            if plan.output == 0 {
                return Ok(stream);
            }
            let cut = |from: &[u8], extents: &[(u64, u64)]| -> Vec<Vec<u8>> {
                extents.iter().map(|&(at, length)| from[at as usize..][..length as usize].to_vec()).collect()
            };
            let (pairs, data) = (cut(&self.outboard.data, &plan.pairs), cut(&self.data, &plan.data));
            let mut slots = vec![MaybeUninit::new(0); plan.output];
            let mut output = Output::new(&mut slots);
            let pairs: Vec<&[u8]> = pairs.iter().map(|piece| &piece[..]).collect();
            let data: Vec<&[u8]> = data.iter().map(|piece| &piece[..]).collect();
            let result = encoder.encode(&pairs, &data, &mut output);
            let filled = output.finish();
            // SAFETY: initialised above.
            stream.extend(slots[..filled].iter().map(|slot| unsafe { slot.assume_init() }));
            result?;
            assert_eq!(filled, plan.output);
        }
    }
}

fn crate_ranges(boundaries: &[u64]) -> ChunkRanges {
    let mut ranges = ChunkRanges::empty();
    for pair in boundaries.chunks(2) {
        ranges |= match pair {
            [start, stop] => ChunkRanges::from(ChunkNum(*start)..ChunkNum(*stop)),
            _ => ChunkRanges::from(ChunkNum(pair[0])..),
        };
    }
    ranges
}

#[derive(Default, PartialEq, Debug)]
struct Collected {
    /// (offset, bytes), adjacent pieces joined.
    data: Vec<(u64, Vec<u8>)>,
    last: Vec<u8>,
}

impl Collected {
    fn push(&mut self, offset: u64, data: &[u8]) {
        match self.data.last_mut() {
            _ if data.is_empty() => {}
            Some((start, run)) if *start + run.len() as u64 == offset => run.extend_from_slice(data),
            _ => self.data.push((offset, data.to_vec())),
        }
    }
}

impl Sink for Collected {
    fn copy(&mut self, offset: u64, data: &[u8]) -> &[u8] {
        self.push(offset, data);
        self.last = data.to_vec();
        &self.last
    }

    fn drop_last(&mut self, length: usize) {
        if let Some((_, run)) = self.data.last_mut().filter(|_| length > 0) {
            run.truncate(run.len() - length);
            if run.is_empty() {
                self.data.pop();
            }
        }
    }
}

fn decode(
    root: [u8; 32],
    boundaries: &[u64],
    stream: &[u8],
    mut piece: impl FnMut() -> usize,
) -> (Decoder, Vec<(u64, Vec<u8>)>) {
    let mut decoder = Decoder::new(root, boundaries.to_vec(), true);
    let (mut out, mut rest, mut planned) = (Collected::default(), stream, 0);
    loop {
        let (head, tail) = rest.split_at(piece().min(rest.len()));
        let body = &head[decoder.feed_header(head)..];
        planned += decoder.plan(body.len()).iter().map(|run| run.1).sum::<usize>();
        decoder.feed(body, &mut out);
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    let given: usize = out.data.iter().map(|(_, run)| run.len()).sum();
    assert!(given == planned || (given < planned && decoder.failure().is_some()));
    (decoder, out.data)
}

#[test]
fn streams_are_those_of_the_crate() {
    let mut random = Random(1);
    for size in sizes(&mut random) {
        let blob = Blob::new(random.bytes(size));
        let leaves = walk::leaves(blob.size());
        let mut queries = vec![vec![], vec![0], vec![u64::MAX], vec![0, 1], vec![leaves - 1], vec![leaves]];
        queries.extend((0..20).map(|_| random.boundaries(leaves)));
        for boundaries in queries {
            let expected = blob.crate_stream(&boundaries);
            let limit = [1, 16_384, 50_000, 1 << 20][random.below(4)];
            let stream = blob.stream(&boundaries, limit).expect("whole");
            assert!(stream == expected, "{size} bytes, {boundaries:?}");
            let longest = [10, 1_000, 40_000, 1_000_000][random.below(4)];
            let step = 1 + random.below(longest);
            let (mut decoder, data) = decode(blob.root(), &boundaries, &stream, || step);
            assert_eq!(decoder.finish(), Ok(()), "{size} bytes, {boundaries:?}");
            assert_eq!(decoder.position(), stream.len() as u64);
            assert_eq!(decoder.wants(1 << 20), 0);
            let selected = walk::select(&boundaries, blob.size());
            assert_eq!(decoder.is_size_proven(), selected.last().is_some_and(|range| range.end == leaves));
            let expected: Vec<(u64, Vec<u8>)> = (selected.iter().filter(|_| size > 0))
                .map(|range| {
                    let (start, stop) = (range.start * 1024, (range.end * 1024).min(blob.size()));
                    (start, blob.data[start as usize..stop as usize].to_vec())
                })
                .collect();
            assert!(data == expected, "{size} bytes, {boundaries:?}");
            for (at, run) in decoder.take_pairs() {
                assert_eq!(blob.outboard.data[at as usize..][..run.len()], run);
            }
        }
        let (mut decoder, _) = decode(blob.root(), &[0], &blob.crate_stream(&[0]), || 1 << 20);
        let pairs = decoder.take_pairs();
        assert!(pairs.len() <= 1);
        assert_eq!(pairs.first().map_or(&[][..], |(_, run)| run), blob.outboard.data);
    }
}

#[test]
fn selections_are_sets_of_leaves() {
    let mut random = Random(2);
    for _ in 0..20_000 {
        let leaves = 1 + random.below(40) as u64;
        let size = leaves * 1024 - random.below(1024) as u64;
        let boundaries = random.boundaries(leaves);
        let wants = |leaf: u64| boundaries.iter().filter(|&&boundary| boundary <= leaf).count() % 2 == 1;
        let beyond = boundaries.len() % 2 == 1 || boundaries.last().is_some_and(|&last| last > leaves);
        let selected = walk::select(&boundaries, size);
        for leaf in 0..leaves + 3 {
            let expected = leaf < leaves && (wants(leaf) || (beyond && leaf == leaves - 1));
            let found = selected.iter().any(|range| range.contains(&leaf));
            assert_eq!(found, expected, "{leaf} of {leaves} in {boundaries:?}");
        }
        assert!(selected.iter().all(|range| range.start < range.end));
        assert!(selected.windows(2).all(|pair| pair[0].end < pair[1].start));
    }
}

#[test]
fn wants_says_how_much_belongs_to_the_stream() {
    let mut random = Random(3);
    for size in [0, 1, 1024, 16_384, 40_000, 300_000] {
        let blob = Blob::new(random.bytes(size));
        for _ in 0..20 {
            let boundaries = random.boundaries(walk::leaves(blob.size()));
            let stream = blob.crate_stream(&boundaries);
            let mut decoder = Decoder::new(blob.root(), boundaries, false);
            let (mut out, mut at) = (Collected::default(), 0);
            let limit = 1 + random.below(100_000);
            loop {
                let wants = decoder.wants(limit);
                if wants == 0 {
                    break;
                }
                assert!(wants <= limit.max(16_384));
                let piece = &stream[at..at + 1 + random.below(wants)];
                at += piece.len();
                let header = decoder.feed_header(piece);
                decoder.feed(&piece[header..], &mut out);
            }
            assert_eq!((decoder.finish(), at), (Ok(()), stream.len()));
        }
    }
}

/// Each wrong stream fails where it is wrong, and all that came out is right.
#[test]
fn wrong_streams_fail() {
    let mut random = Random(4);
    for size in [1, 1024, 3000, 16_384, 20_000, 50_000] {
        let blob = Blob::new(random.bytes(size));
        for boundaries in [vec![0], vec![u64::MAX], vec![1, 3, 17, 20]] {
            let stream = blob.crate_stream(&boundaries);
            let is_right = |data: &[(u64, Vec<u8>)]| {
                data.iter()
                    .all(|(at, run)| blob.data.get(*at as usize..*at as usize + run.len()) == Some(run))
            };
            for length in 0..stream.len() {
                let (mut decoder, data) = decode(blob.root(), &boundaries, &stream[..length], || 7_000);
                let failure = decoder.finish().expect_err("truncated");
                assert_eq!((failure.kind, failure.offset), (Kind::Truncated, length as u64));
                assert!(is_right(&data));
            }
            for at in 0..stream.len() {
                let mut wrong = stream.clone();
                wrong[at] ^= 1 << random.below(8);
                let (mut decoder, data) = decode(blob.root(), &boundaries, &wrong, || 9_000);
                // With a wrong size the same stream may be a right one, as long as the last leaf is not in it.
                match decoder.finish() {
                    Ok(()) => assert!(at < 8 && !decoder.is_size_proven()),
                    Err(failure) => {
                        let in_order = failure.offset <= at as u64 && at as u64 <= failure.offset + 16_384;
                        assert!(at < 8 || in_order, "{at} {failure:?}");
                    }
                }
                assert!(is_right(&data));
            }
            for claimed in
                [0, size as u64 - 1, size as u64 + 1, 1 << 40, 1 << 62, (1 << 62) + 1, 1 << 63, u64::MAX]
            {
                let mut wrong = stream.clone();
                wrong[..8].copy_from_slice(&claimed.to_le_bytes());
                let (mut decoder, data) = decode(blob.root(), &boundaries, &wrong, || 1 << 20);
                assert!(decoder.finish().is_err() || !decoder.is_size_proven(), "{size} {claimed}");
                assert!(is_right(&data));
                if claimed > 1 << 62 {
                    let failure = decoder.finish().expect_err("too large");
                    assert_eq!((failure.kind, failure.offset), (Kind::Size(claimed), 0));
                }
            }
            let (mut decoder, _) = decode(blob.root(), &boundaries, &[&stream[..], b"x"].concat(), || 5_000);
            let failure = decoder.finish().expect_err("trailing");
            assert_eq!((failure.kind, failure.offset), (Kind::Trailing, stream.len() as u64));
        }
    }
}

#[test]
fn damaged_sources_are_not_sent() {
    let mut random = Random(5);
    let mut blob = Blob::new(random.bytes(100_000));
    for boundaries in [vec![0], vec![3, 5], vec![16, 17, 40, 60]] {
        for at in (0..100_000).step_by(997) {
            blob.data[at] ^= 4;
            let group = at as u64 / 16_384;
            let is_read = walk::select(&boundaries, 100_000)
                .iter()
                .any(|range| range.start / 16 <= group && group <= (range.end - 1) / 16);
            let result = blob.stream(&boundaries, 1 << 20);
            assert_eq!(result.err(), is_read.then_some(Failure::Data(group * 16_384)));
            blob.data[at] ^= 4;
        }
        blob.outboard.data[0] ^= 1;
        assert_eq!(blob.stream(&boundaries, 1 << 20).err(), Some(Failure::Pair(0)));
        blob.outboard.data[0] ^= 1;
    }
}

/// A size that is a lie verifies some parents at the wrong place: they are not given.
#[test]
fn pairs_stand_where_they_belong() {
    let blob = Blob::new(Random(7).bytes(12 * 16_384));
    let mut stream = blob.crate_stream(&[u64::MAX]);
    stream[..8].copy_from_slice(&(7 * 16_384u64).to_le_bytes());
    let (mut decoder, data) = decode(blob.root(), &[u64::MAX], &stream, || 1 << 20);
    let failure = decoder.finish().expect_err("not of that size");
    assert_eq!(failure.kind, Kind::Leaf(6 * 16_384 + 15 * 1024));
    assert_eq!((decoder.take_pairs(), data), (vec![], vec![]));
}

/// What the crate accepts is accepted, and the other way round, also when both are lied to.
#[test]
fn verdicts_are_those_of_the_crate() {
    let mut random = Random(6);
    for _ in 0..3_000 {
        let size = random.below(60_000);
        let blob = Blob::new(random.bytes(size));
        let boundaries = random.boundaries(walk::leaves(blob.size()));
        let mut stream = blob.crate_stream(&boundaries);
        if boundaries.is_empty() {
            continue;
        }
        match random.below(4) {
            0 => {
                let claimed =
                    if random.below(2) == 0 { random.below(100_000) } else { size + random.below(3) };
                stream[..8].copy_from_slice(&(claimed as u64).to_le_bytes());
            }
            1 if stream.len() > 8 => {
                let at = 8 + random.below(stream.len() - 8);
                stream[at] ^= 1;
            }
            2 => stream.truncate(8 + random.below(stream.len() - 7)),
            _ => {}
        }
        let claimed = u64::from_le_bytes(stream[..8].try_into().expect("eight"));
        let tree = BaoTree::new(claimed, BLOCK);
        let ranges = crate_ranges(&boundaries);
        let mut expected = Collected::default();
        let mut rest = &stream[8..];
        let verdict =
            DecodeResponseIter::new(blob.outboard.root, tree, &mut rest, &ranges).try_for_each(|item| {
                if let BaoContentItem::Leaf(leaf) = item? {
                    expected.push(leaf.offset, &leaf.data);
                }
                Ok::<(), DecodeError>(())
            });
        let is_whole = verdict.is_ok() && rest.is_empty();
        let step = 1 + random.below(30_000);
        let (mut decoder, data) = decode(blob.root(), &boundaries, &stream, || step);
        assert_eq!(decoder.finish().is_ok(), is_whole, "{size} {boundaries:?} {claimed}");
        for (at, run) in decoder.take_pairs() {
            assert_eq!(blob.outboard.data.get(at as usize..at as usize + run.len()), Some(&run[..]));
        }
        assert_eq!(data, expected.data);
    }
}
