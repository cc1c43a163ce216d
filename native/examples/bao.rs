//! BAO streams of the crate `bao-tree`: what it writes (`-- vectors`) and how fast beside ours (`-- bench`).
//!
//! `cargo run --release --example bao -- vectors > ../tests/unit/data/bao_vectors.json`

#[allow(dead_code)] // the same source as the module, of which this uses a part
#[path = "../src/kernels/mod.rs"]
mod kernels;

use std::hint::black_box;
use std::mem::MaybeUninit;
use std::time::Instant;

use bao_tree::io::BaoContentItem;
use bao_tree::io::outboard::PreOrderMemOutboard;
use bao_tree::io::sync::{DecodeResponseIter, encode_ranges_validated};
use bao_tree::{BaoTree, BlockSize, ChunkNum, ChunkRanges};
use kernels::decode::{Decoder, Sink};
use kernels::encode::{Encoder, Output};

const BLOCK: BlockSize = BlockSize::from_chunk_log(4);

fn ranges_of(boundaries: &[u64]) -> ChunkRanges {
    let mut ranges = ChunkRanges::empty();
    for pair in boundaries.chunks(2) {
        ranges |= match pair {
            [start, stop] => ChunkRanges::from(ChunkNum(*start)..ChunkNum(*stop)),
            _ => ChunkRanges::from(ChunkNum(pair[0])..),
        };
    }
    ranges
}

fn crate_stream(data: &[u8], outboard: &PreOrderMemOutboard, boundaries: &[u64], stream: &mut Vec<u8>) {
    stream.clear();
    if !boundaries.is_empty() {
        stream.extend((data.len() as u64).to_le_bytes());
        encode_ranges_validated(data, outboard, &ranges_of(boundaries), stream).expect("whole");
    }
}

/// Sizes at which something changes, ranges at which something changes: length and BLAKE3 of each stream.
fn vectors() {
    let mut lines = Vec::new();
    let sizes: &[u64] = &[
        0, 1, 1023, 1024, 1025, 2048, 3000, 15_361, 16_383, 16_384, 16_385, 17_409, 32_768, 32_769, 50_000,
        65_536, 100_001, 262_145, 1_000_003,
    ];
    for &size in sizes {
        let data: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
        let outboard = PreOrderMemOutboard::create(&data[..], BLOCK);
        let leaves = size.div_ceil(1024).max(1);
        let mut queries: Vec<Vec<u64>> = vec![
            vec![],
            vec![0],
            vec![u64::MAX],
            vec![0, 1],
            vec![1, 2],
            vec![0, 8],
            vec![15, 17],
            vec![16, 32],
            vec![3, 5, 40, 50],
            vec![1, 2, 3, 4, 5, 6, 20, 21, 60],
            vec![2, leaves.max(3)],
            vec![leaves - 1, leaves],
            vec![leaves],
            vec![0, 1, leaves.max(2), leaves + 5],
            vec![1_000_000, 2_000_000],
            vec![16, 1 << 40, 1 << 41],
        ];
        if leaves > 2 {
            queries.extend([
                vec![0, leaves - 1],
                vec![0, leaves - 1, leaves, leaves + 1],
                vec![0, leaves - 2, leaves],
            ]);
        }
        let mut stream = Vec::new();
        for boundaries in queries {
            crate_stream(&data, &outboard, &boundaries, &mut stream);
            lines.push(format!(
                "  {{\"size\": {size}, \"boundaries\": {boundaries:?}, \"length\": {}, \"blake3\": \"{}\"}}",
                stream.len(),
                blake3::hash(&stream).to_hex()
            ));
        }
    }
    println!("[\n{}\n]", lines.join(",\n"));
}

struct Into<'a>(Output<'a>);

impl Sink for Into<'_> {
    fn copy(&mut self, _offset: u64, data: &[u8]) -> &[u8] {
        if self.0.room() < data.len() {
            self.0.drop_last(1 << 20);
        }
        self.0.copy(data)
    }

    fn drop_last(&mut self, length: usize) {
        self.0.drop_last(length);
    }
}

fn encode(
    data: &[u8],
    pairs: &[u8],
    root: [u8; 32],
    boundaries: &[u64],
    buffer: &mut [MaybeUninit<u8>],
) -> usize {
    let mut encoder = Encoder::new(root, data.len() as u64, boundaries);
    let mut sum = 0;
    loop {
        let plan = encoder.plan(1 << 20).clone();
        if plan.output == 0 {
            return sum;
        }
        let pair_runs: Vec<&[u8]> =
            plan.pairs.iter().map(|&(at, length)| &pairs[at as usize..][..length as usize]).collect();
        let data_runs: Vec<&[u8]> =
            plan.data.iter().map(|&(at, length)| &data[at as usize..][..length as usize]).collect();
        encoder.encode(&pair_runs, &data_runs, &mut Output::new(&mut buffer[..plan.output])).expect("whole");
        sum += plan.output;
    }
}

fn decode(stream: &[u8], root: [u8; 32], boundaries: &[u64], buffer: &mut [MaybeUninit<u8>]) {
    let mut decoder = Decoder::new(root, boundaries.to_vec(), false);
    for piece in stream.chunks(1 << 20) {
        let header = decoder.feed_header(piece);
        black_box(decoder.plan(piece.len() - header));
        decoder.feed(&piece[header..], &mut Into(Output::new(buffer)));
    }
    decoder.finish().expect("whole");
}

fn crate_decode(stream: &[u8], root: blake3::Hash, boundaries: &[u64]) {
    let size = u64::from_le_bytes(stream[..8].try_into().expect("eight"));
    let ranges = ranges_of(boundaries);
    for item in DecodeResponseIter::new(root, BaoTree::new(size, BLOCK), &stream[8..], &ranges) {
        if let BaoContentItem::Leaf(leaf) = item.expect("whole") {
            black_box(leaf);
        }
    }
}

type Work<'a> = (&'a str, Box<dyn FnMut() + 'a>);

/// The best of several rounds of each, taking turns, so that a busy machine slows them alike.
fn compare(name: &str, unit: &str, amount: f64, works: &mut [Work<'_>]) {
    let mut best = vec![f64::INFINITY; works.len()];
    for _ in 0..15 {
        for (index, (_, work)) in works.iter_mut().enumerate() {
            let start = Instant::now();
            work();
            best[index] = best[index].min(start.elapsed().as_secs_f64());
        }
    }
    let base = best[0];
    for ((who, _), seconds) in works.iter().zip(&best) {
        println!(
            "{name:28}{who:10}{:12.2} {unit:6}{:8.2} x {}",
            amount / seconds,
            base / seconds,
            works[0].0
        );
    }
}

fn bench() {
    let size = 64 << 20;
    let data: Vec<u8> =
        (0..size as u64).flat_map(|at| [(at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8]).collect();
    let outboard = PreOrderMemOutboard::create(&data[..], BLOCK);
    let root = *outboard.root.as_bytes();
    let mut stream = Vec::with_capacity(size + (size >> 7));
    crate_stream(&data, &outboard, &[0], &mut stream);
    let whole = stream.clone();
    let mut buffer = vec![MaybeUninit::new(0); 2 << 20];
    let mut second = vec![MaybeUninit::new(0); 2 << 20];
    let gigabytes = size as f64 / 1e9;
    compare(
        "encode 64 MiB",
        "GB/s",
        gigabytes,
        &mut [
            ("crate", Box::new(|| crate_stream(&data, &outboard, &[0], &mut stream))),
            ("ours", Box::new(|| _ = black_box(encode(&data, &outboard.data, root, &[0], &mut buffer)))),
            ("blake3", Box::new(|| _ = black_box(blake3::hash(&data)))),
        ],
    );
    compare(
        "decode 64 MiB",
        "GB/s",
        gigabytes,
        &mut [
            ("crate", Box::new(|| crate_decode(&whole, outboard.root, &[0]))),
            ("ours", Box::new(|| decode(&whole, root, &[0], &mut second))),
        ],
    );
    let queries: Vec<[u64; 2]> =
        (0..2000u64).map(|i| i * 7919 * 13 % 65_000).map(|at| [at, at + 64]).collect();
    let streams: Vec<Vec<u8>> = (queries.iter())
        .map(|query| {
            let mut stream = Vec::new();
            crate_stream(&data, &outboard, query, &mut stream);
            stream
        })
        .collect();
    let mut scratch = Vec::new();
    compare(
        "encode 64 KiB at random",
        "/s",
        2000.0,
        &mut [
            (
                "crate",
                Box::new(|| {
                    queries.iter().for_each(|query| crate_stream(&data, &outboard, query, &mut scratch))
                }),
            ),
            (
                "ours",
                Box::new(|| {
                    queries
                        .iter()
                        .for_each(|query| _ = encode(&data, &outboard.data, root, query, &mut buffer))
                }),
            ),
        ],
    );
    compare(
        "decode 64 KiB at random",
        "/s",
        2000.0,
        &mut [
            (
                "crate",
                Box::new(|| {
                    queries
                        .iter()
                        .zip(&streams)
                        .for_each(|(query, stream)| crate_decode(stream, outboard.root, query))
                }),
            ),
            (
                "ours",
                Box::new(|| {
                    queries
                        .iter()
                        .zip(&streams)
                        .for_each(|(query, stream)| decode(stream, root, query, &mut second))
                }),
            ),
        ],
    );
}

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("vectors") => vectors(),
        Some("bench") => bench(),
        _ => eprintln!("vectors | bench"),
    }
}
