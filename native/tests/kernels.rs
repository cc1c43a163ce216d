//! The kernels against the crates that do the same more slowly: `bao-tree`, `blake3` and `fastcdc`.
//!
//! They are included by path, so that these tests link neither the extension module nor libpython.

#[allow(dead_code)] // the same source as the module, of which this uses a part
#[path = "../src/kernels/mod.rs"]
mod kernels;

use bao_tree::BlockSize;
use bao_tree::io::outboard::PreOrderMemOutboard;
use kernels::cutter::Cutter;
use kernels::record::{self, Entry, Header, Stop};
use kernels::{gear, probe, tree};

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
}

/// Around a chunk, a group, two groups, powers of two of groups, and a few MiB.
fn boundary_sizes() -> Vec<usize> {
    let mut sizes = vec![0, 1, 2, 63, 64, 65, 3 << 20, (5 << 20) + 12_345];
    for power in 10..=22 {
        sizes.extend([(1 << power) - 1, 1 << power, (1 << power) + 1]);
    }
    for groups in [3, 5, 6, 7, 9, 15, 17, 31, 33, 63, 65] {
        sizes.extend([groups * tree::GROUP - 1, groups * tree::GROUP, groups * tree::GROUP + 1]);
    }
    sizes
}

fn hash_in_pieces(data: &[u8], mut piece: impl FnMut() -> usize) -> ([u8; 32], Vec<u8>) {
    let mut hasher = tree::BlobHasher::new();
    let (mut rest, mut groups) = (data, Vec::new());
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(piece().min(rest.len()));
        hasher.update(head);
        groups.extend(hasher.take_groups());
        rest = tail;
    }
    let (root, last) = hasher.finish();
    groups.extend(last);
    (root, groups)
}

#[test]
fn outboards_are_those_of_bao_tree() {
    let data = Random(1).bytes(6 << 20);
    for size in boundary_sizes() {
        let data = &data[..size];
        let (root, groups) = hash_in_pieces(data, || 100_000);
        let oracle = PreOrderMemOutboard::create(data, BlockSize::from_chunk_log(4));
        assert_eq!(root, *oracle.root.as_bytes(), "{size}");
        assert_eq!(root, *blake3::hash(data).as_bytes(), "{size}");
        if size <= tree::GROUP {
            assert!(groups.is_empty() && oracle.data.is_empty(), "{size}");
            continue;
        }
        assert_eq!(groups.len(), size.div_ceil(tree::GROUP) * tree::CV, "{size}");
        let mut pairs = vec![0; groups.len() * 2 - tree::PAIR];
        assert_eq!(tree::outboard(&groups, &mut pairs, true), root, "{size}");
        assert!(pairs == oracle.data, "{size}");

        let mut cvs = Vec::new();
        tree::leaf_cvs(&pairs, groups.len() / tree::CV, &root, true, &mut cvs).unwrap();
        assert!(cvs == groups, "{size}");
        assert_eq!(tree::first_bad_group(data, 0, &groups), None, "{size}");
    }
}

#[test]
fn hashing_does_not_depend_on_the_split() {
    let mut random = Random(2);
    let data = random.bytes(400_000);
    for size in [16_383, 16_384, 16_385, 32_767, 32_768, 32_769, 65_536, 65_537, 400_000] {
        let whole = hash_in_pieces(&data[..size], || usize::MAX);
        for piece in [1, 63, 1024, 1025, 16_383, 16_384, 16_385, 32_768] {
            assert_eq!(hash_in_pieces(&data[..size], || piece), whole, "{size} in {piece}");
        }
        for _ in 0..20 {
            assert_eq!(hash_in_pieces(&data[..size], || 1 + random.below(40_000)), whole, "{size}");
        }
    }
}

#[test]
fn the_first_group_is_kept_back_and_no_other() {
    let mut hasher = tree::BlobHasher::new();
    hasher.update(&[0; tree::GROUP]);
    assert_eq!(hasher.take_groups().len(), 0);
    hasher.update(&[0]);
    assert_eq!(hasher.take_groups().len(), 32);
    hasher.update(&[0; tree::GROUP - 1]);
    assert_eq!(hasher.take_groups().len(), 32);
    assert_eq!(hasher.take_groups().len(), 0);
}

#[test]
fn every_flipped_bit_of_an_outboard_is_found_where_it_is() {
    let data = Random(3).bytes(7 * tree::GROUP + 5);
    let (root, groups) = hash_in_pieces(&data, || usize::MAX);
    let mut pairs = vec![0; groups.len() * 2 - tree::PAIR];
    tree::outboard(&groups, &mut pairs, true);
    for at in 0..pairs.len() {
        pairs[at] ^= 1 << (at % 8);
        let offset = tree::leaf_cvs(&pairs, 8, &root, true, &mut Vec::new()).unwrap_err();
        assert_eq!(offset, at / tree::PAIR * tree::PAIR);
        pairs[at] ^= 1 << (at % 8);
    }
}

#[test]
fn bad_groups_are_named_from_any_start() {
    let mut data = Random(4).bytes(5 * tree::GROUP + 100);
    let (_, groups) = hash_in_pieces(&data, || usize::MAX);
    for first in 0..6 {
        let start = first * tree::GROUP;
        assert_eq!(tree::first_bad_group(&data[start..], first as u64, &groups[first * 32..]), None);
        for bad in first..6 {
            data[bad * tree::GROUP] ^= 1;
            let found = tree::first_bad_group(&data[start..], first as u64, &groups[first * 32..]);
            assert_eq!(found, Some(bad - first));
            data[bad * tree::GROUP] ^= 1;
        }
    }
}

// --- cut points

const SIZES: [(usize, usize, usize); 7] = [
    (64, 256, 1024),
    (64, 1024, 65_536),
    (2048, 2048, 2048),
    (2048, 8192, 8192),
    (4096, 16_384, 65_534),
    (16_384, 65_536, 262_144),
    (65_536, 262_144, 1_048_576),
];

fn cuts_of_the_crate(data: &[u8], (min, average, max): (usize, usize, usize)) -> Vec<u64> {
    fastcdc::v2020::FastCDC::new(data, min, average, max).map(|chunk| chunk.length as u64).collect()
}

fn our_cuts(
    data: &[u8],
    (min, average, max): (usize, usize, usize),
    mut piece: impl FnMut() -> usize,
) -> Vec<u64> {
    let mut cutter = Cutter::new(min, average, max).unwrap();
    let (mut rest, mut lengths) = (data, Vec::new());
    while !rest.is_empty() {
        let (head, tail) = rest.split_at(piece().min(rest.len()));
        cutter.feed(head, &mut lengths);
        rest = tail;
    }
    lengths.extend(Some(cutter.finish()).filter(|&length| length > 0));
    lengths
}

/// Random bytes; random bytes of few values; zeros; a repeated page with changes: the cutter sees each kind of hit.
fn corpora(count: usize) -> Vec<Vec<u8>> {
    let mut random = Random(5);
    let noise = random.bytes(count);
    let letters = noise.iter().map(|byte| b"etaoin shrdlu"[*byte as usize % 13]).collect();
    let page = random.bytes(4096);
    let mut pages: Vec<u8> = page.iter().copied().cycle().take(count).collect();
    for _ in 0..count / 50_000 {
        let at = random.below(count);
        pages[at] ^= 0xff;
    }
    vec![noise, letters, vec![0; count], pages]
}

#[test]
fn cuts_are_those_of_the_crate() {
    for data in corpora(5 << 20) {
        for sizes in SIZES {
            assert!(our_cuts(&data, sizes, || usize::MAX) == cuts_of_the_crate(&data, sizes), "{sizes:?}");
        }
    }
}

#[test]
fn cuts_of_short_streams_are_those_of_the_crate_whatever_the_split() {
    let mut random = Random(6);
    for data in corpora(200_000) {
        for sizes in SIZES {
            for _ in 0..60 {
                let end = random.below(data.len() + 1);
                let expected = cuts_of_the_crate(&data[..end], sizes);
                assert_eq!(
                    our_cuts(&data[..end], sizes, || 1 + random.below(9000)),
                    expected,
                    "{sizes:?} {end}"
                );
            }
        }
        // Every end, odd and even, and every split into single bytes: the pairs at the end of a stream.
        for end in 0..3000 {
            let expected = cuts_of_the_crate(&data[..end], SIZES[0]);
            assert_eq!(our_cuts(&data[..end], SIZES[0], || usize::MAX), expected, "{end}");
            assert_eq!(our_cuts(&data[..end], SIZES[0], || 1), expected, "{end}");
        }
    }
}

#[test]
fn masks_are_those_of_the_crate_for_every_average() {
    assert_eq!(gear::MASKS, fastcdc::v2020::MASKS);
    assert_eq!(gear::GEAR, *fastcdc::v2020::get_gear_with_seed(0).0);
    let data = Random(7).bytes(300_000);
    for average in [256, 362, 364, 724, 726, 1448, 1450, 5792, 5794, 11_584, 11_586, 92_680, 92_682] {
        let sizes = (64, average, 1 << 20);
        assert_eq!(our_cuts(&data, sizes, || 7777), cuts_of_the_crate(&data, sizes), "{average}");
    }
}

#[test]
fn a_cutter_can_be_used_again_and_refuses_wrong_sizes() {
    let data = Random(8).bytes(300_000);
    let mut cutter = Cutter::new(2048, 8192, 65_536).unwrap();
    let (mut once, mut again) = (Vec::new(), Vec::new());
    cutter.feed(&data, &mut once);
    let last = cutter.finish();
    cutter.feed(&data, &mut again);
    assert_eq!((once, last), (again, cutter.finish()));
    assert_eq!(cutter.finish(), 0);
    for (min, average, max) in [
        (62, 256, 1024),
        (65, 256, 1024),
        (512, 256, 1024),
        (64, 2048, 1024),
        (64, 256, 1025),
        (64, 255, 1024),
    ] {
        assert!(Cutter::new(min, average, max).is_none());
    }
}

// --- records

fn some_records(random: &mut Random, segment: u32, start: u32, sizes: &[usize]) -> (Vec<u8>, Vec<u8>) {
    let offsets = record::offsets(start, sizes.iter().copied()).unwrap();
    let (mut data, mut entries) = (Vec::new(), Vec::new());
    for (&size, &offset) in sizes.iter().zip(&offsets) {
        let payload = random.bytes(size);
        let header = Header {
            version: record::VERSION,
            kind: 1,
            flags: 0,
            segment,
            offset,
            stored: size as u32,
            plain: size as u32,
            payload_crc: crc32c::crc32c(&payload),
            hash: *blake3::hash(&payload).as_bytes(),
        };
        data.extend_from_slice(&header.encode());
        data.extend_from_slice(&payload);
        entries.extend_from_slice(&header.entry().encode());
    }
    (data, entries)
}

#[test]
fn records_are_walked_and_a_flip_of_any_byte_is_found() {
    let (mut data, entries) = some_records(&mut Random(9), 7, 100, &[0, 1, 300, 64]);
    assert_eq!(record::scan(&data, 7, 100, true), (entries.clone(), data.len(), Stop::End));
    assert_eq!(record::scan(&data, 8, 100, true), (vec![], 0, Stop::Header));
    assert_eq!(record::scan(&data, 7, 101, true), (vec![], 0, Stop::Header));
    for at in 0..data.len() {
        data[at] ^= 0x10;
        let (found, consumed, stop) = record::scan(&data, 7, 100, true);
        assert!(consumed <= at && entries.starts_with(&found) && stop != Stop::End, "{at}");
        let bad = entries
            .chunks_exact(record::ENTRY)
            .filter(|entry| record::check(&data, &Entry::read(entry), 100).is_some())
            .count();
        assert_eq!(bad, 1, "{at}");
        data[at] ^= 0x10;
    }
    for end in 0..data.len() {
        let (found, consumed, stop) = record::scan(&data[..end], 7, 100, true);
        assert!(entries.starts_with(&found) && consumed <= end);
        assert_eq!(stop, if consumed == end { Stop::End } else { Stop::Short }, "{end}");
    }
}

#[test]
fn an_entry_that_differs_from_its_header_is_bad() {
    let (data, entry) = some_records(&mut Random(13), 7, 100, &[300]);
    assert_eq!(record::check(&data, &Entry::read(&entry), 100), None);
    for at in 0..entry.len() {
        let mut changed = entry.clone();
        changed[at] ^= 1;
        assert!(record::check(&data, &Entry::read(&changed), 100).is_some(), "{at}");
    }
    let mut version_0 = Header::read(&data).unwrap();
    version_0.version = 0;
    assert_eq!(Header::read(&version_0.encode()), None);
}

#[test]
fn the_next_header_is_found_in_noise_full_of_magic() {
    let mut random = Random(10);
    let noise: Vec<u8> = record::MAGIC.iter().copied().cycle().take(4001).collect();
    let start = 50 + noise.len() as u32;
    let (records, _) = some_records(&mut random, 3, start, &[200, 5]);
    let data = [noise.clone(), records].concat();
    let first = noise.len();
    assert_eq!(record::find_header(&data, 3, 50, 0), Some(first));
    assert_eq!(record::find_header(&data, 3, 50, first), Some(first));
    assert_eq!(record::find_header(&data, 3, 50, first + 1), Some(first + 264));
    assert_eq!(record::find_header(&data, 3, 50, first + 265), None);
    assert_eq!(record::find_header(&data, 3, 51, 0), None);
    assert_eq!(record::find_header(&data, 4, 50, 0), None);
    assert_eq!(record::find_header(&data, 3, u64::MAX, 0), None);
    assert_eq!(record::find_header(&data, 3, 50, usize::MAX), None);
}

#[test]
fn hostile_bytes_are_answered() {
    let mut random = Random(11);
    for _ in 0..2000 {
        let size = random.below(300);
        let mut data = random.bytes(size);
        if random.below(2) == 0 {
            let magic = record::MAGIC.len().min(data.len());
            data[..magic].copy_from_slice(&record::MAGIC[..magic]);
        }
        record::scan(&data, random.next() as u32, random.next(), true);
        record::find_header(&data, 0, random.next(), random.below(400));
        for entry in data.chunks_exact(record::ENTRY) {
            record::check(&data, &Entry::read(entry), random.next());
            record::check(&data, &Entry::read(entry), 0);
        }
        let pairs = &data[..data.len() / 64 * 64];
        let _ = tree::leaf_cvs(pairs, pairs.len() / 64 + 1, &[0; 32], true, &mut Vec::new());
        probe::is_compressible(&data);
    }
}

#[test]
fn a_record_larger_than_allowed_stops_the_walk() {
    let header = Header {
        version: 1,
        kind: 1,
        flags: 0,
        segment: 0,
        offset: 0,
        stored: record::MAX_PAYLOAD as u32 + 1,
        plain: 0,
        payload_crc: 0,
        hash: [0; 32],
    };
    assert_eq!(record::scan(&header.encode(), 0, 0, true).2, Stop::Length);
    assert_eq!(record::find_header(&header.encode(), 0, 0, 0), None);
    assert_eq!(record::offsets(u32::MAX, [1].into_iter()), Some(vec![u32::MAX]));
    assert_eq!(record::offsets(u32::MAX, [1, 1].into_iter()), None);
}

#[test]
fn the_probe_tells_noise_from_text() {
    let mut random = Random(12);
    let noise = random.bytes(1 << 20);
    let text: Vec<u8> = noise.iter().map(|byte| b"etaoin shrdlu"[*byte as usize % 13]).collect();
    for size in [64, 100, 511, 512, 2048, 2049, 65_536, 1 << 20] {
        assert!(probe::is_compressible(&text[..size]), "{size}");
        assert!(!probe::is_compressible(&noise[..size]), "{size}");
    }
    assert!(!probe::is_compressible(&text[..63]));
}
