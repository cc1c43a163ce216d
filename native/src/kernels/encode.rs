//! Write a BAO stream, verifying all that goes into it.
//!
//! The caller learns what is needed next (`plan`), reads it from wherever it is, and gets the bytes of the stream
//! (`encode`). Data is asked for in whole groups, pairs as they lie in the pre-order outboard.

use std::mem::MaybeUninit;
use std::ops::Range;

use super::tree::{self, CV, GROUP, PAIR, subtree_cv};
use super::walk::{self, Cursor, GROUP_LEAVES, LEAF, Walk, Wanted, left_leaves};

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Failure {
    /// The pair at this offset of the outboard does not verify.
    Pair(u64),
    /// The group at this offset of the blob does not verify.
    Data(u64),
    /// What was given is not what was planned.
    Mismatch,
}

/// What the next part of a stream is made of: extents are (offset, length) in bytes.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct Plan {
    pub pairs: Vec<(u64, u64)>,
    pub data: Vec<(u64, u64)>,
    /// How many bytes of the stream it gives.
    pub output: usize,
    items: usize,
}

/// Bytes that need not be initialised, filled from the front.
pub struct Output<'a> {
    slots: &'a mut [MaybeUninit<u8>],
    filled: usize,
}

impl<'a> Output<'a> {
    pub fn new(slots: &'a mut [MaybeUninit<u8>]) -> Self {
        Self { slots, filled: 0 }
    }

    /// How many bytes were filled; what is left is set to zero.
    pub fn finish(self) -> usize {
        self.slots[self.filled..].fill(MaybeUninit::new(0));
        self.filled
    }

    pub fn room(&self) -> usize {
        self.slots.len() - self.filled
    }

    /// Append a copy of `data` and show it. Panics if it does not fit, which a plan rules out.
    pub fn copy(&mut self, data: &[u8]) -> &[u8] {
        let slots = &mut self.slots[self.filled..][..data.len()];
        // SAFETY: both have `data.len()` bytes and do not overlap, `slots` being borrowed mutably; after the copy
        // these are initialised.
        let copy = unsafe {
            std::ptr::copy_nonoverlapping(data.as_ptr(), slots.as_mut_ptr().cast::<u8>(), data.len());
            std::slice::from_raw_parts(slots.as_ptr().cast::<u8>(), data.len())
        };
        self.filled += data.len();
        copy
    }

    pub fn drop_last(&mut self, length: usize) {
        self.filled -= length;
    }
}

pub struct Encoder {
    ranges: Vec<Range<u64>>,
    walk: Walk,
    size: u64,
    has_header: bool,
    planned: Plan,
    /// A group that is sent in part, and that part.
    group: Vec<u8>,
    part: Vec<u8>,
}

impl Encoder {
    /// `size` is at most `walk::MAX_SIZE`, `boundaries` rise strictly. Empty ranges give an empty stream.
    pub fn new(root: [u8; CV], size: u64, boundaries: &[u64]) -> Self {
        Self {
            ranges: walk::select(boundaries, size),
            walk: Walk::new(root, size),
            size,
            has_header: boundaries.is_empty(),
            planned: Plan::default(),
            group: Vec::new(),
            part: Vec::new(),
        }
    }

    /// What the next part needs, about `limit` bytes of data or less, at least one item. An empty plan is the end.
    pub fn plan(&mut self, limit: u64) -> &Plan {
        let mut plan = Plan { output: if self.has_header { 0 } else { 8 }, ..Plan::default() };
        let (mut walk, mut sum) = (self.walk.clone(), 0);
        while let Some((node, is_all)) = walk.peek(&self.ranges) {
            if node.is_in_outboard() {
                push_extent(&mut plan.pairs, node.pair * PAIR as u64, PAIR as u64);
                walk.descend([0; CV], [0; CV]);
                plan.output += PAIR;
            } else {
                let bytes = walk.bytes(&node);
                if sum > 0 && sum + bytes > limit {
                    break;
                }
                sum += bytes;
                push_extent(&mut plan.data, node.offset(), bytes);
                if is_all {
                    walk.skip();
                    plan.output += bytes as usize;
                } else {
                    let stop = node.first + node.count;
                    while walk.peek(&self.ranges).is_some_and(|(below, _)| below.first < stop) {
                        let Some((bytes, _)) = walk.step(&self.ranges) else { break };
                        plan.output += bytes as usize;
                    }
                }
            }
            plan.items += 1;
        }
        self.planned = plan;
        &self.planned
    }

    /// Write the part that was planned last. `pairs` and `data` are what its extents name, in order, in any pieces
    /// of whole pairs and groups. After a failure the encoder is of no use; `out` then holds what had verified.
    pub fn encode(&mut self, pairs: &[&[u8]], data: &[&[u8]], out: &mut Output<'_>) -> Result<(), Failure> {
        let plan = std::mem::take(&mut self.planned);
        if !fits(&plan.pairs, pairs) || !fits(&plan.data, data) || out.slots.len() < plan.output {
            return Err(Failure::Mismatch);
        }
        if !self.has_header {
            self.has_header = true;
            out.copy(&self.size.to_le_bytes());
        }
        let mut pairs = pairs.iter().flat_map(|run| run.chunks_exact(PAIR));
        let mut data = Groups { runs: data, rest: &[] };
        for _ in 0..plan.items {
            let Some((node, is_all)) = self.walk.peek(&self.ranges) else { return Err(Failure::Mismatch) };
            let is_root = self.walk.is_root(&node);
            if node.is_in_outboard() {
                let copy = out.copy(pairs.next().ok_or(Failure::Mismatch)?);
                let (left, right) = (tree::array(copy), tree::array(&copy[CV..]));
                if tree::parent(&left, &right, is_root) != node.cv {
                    out.drop_last(PAIR);
                    return Err(Failure::Pair(node.pair * PAIR as u64));
                }
                self.walk.descend(left, right);
                continue;
            }
            let length = self.walk.bytes(&node) as usize;
            let group = data.take(length).ok_or(Failure::Mismatch)?;
            if is_all {
                if subtree_cv(out.copy(group), node.offset(), is_root) != node.cv {
                    out.drop_last(length);
                    return Err(Failure::Data(node.offset()));
                }
            } else {
                self.group.clear();
                self.group.extend_from_slice(group);
                self.part.clear();
                let mut cursor = self.walk.cursor();
                let cv =
                    encode_part(&self.group, node.first, is_root, &self.ranges, &mut cursor, &mut self.part);
                if cv != node.cv {
                    return Err(Failure::Data(node.offset()));
                }
                out.copy(&self.part);
            }
            self.walk.skip();
        }
        Ok(())
    }
}

/// The runs of memory behind extents, cut into groups. A run ends where an extent does, never inside a group.
struct Groups<'a> {
    runs: &'a [&'a [u8]],
    rest: &'a [u8],
}

impl<'a> Groups<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        while self.rest.is_empty() && length > 0 {
            let (&first, others) = self.runs.split_first()?;
            (self.rest, self.runs) = (first, others);
        }
        let (group, rest) = self.rest.split_at_checked(length)?;
        self.rest = rest;
        Some(group)
    }
}

fn fits(extents: &[(u64, u64)], runs: &[&[u8]]) -> bool {
    extents.len() == runs.len()
        && extents.iter().zip(runs).all(|(&(_, length), run)| run.len() as u64 == length)
}

fn push_extent(extents: &mut Vec<(u64, u64)>, offset: u64, length: u64) {
    match extents.last_mut() {
        Some((start, sum)) if *start + *sum == offset => *sum += length,
        _ if length == 0 => {}
        _ => extents.push((offset, length)),
    }
}

/// Append what is wanted of a subtree of at most a group; give the chaining value of all of it.
fn encode_part(
    data: &[u8],
    first: u64,
    is_root: bool,
    ranges: &[Range<u64>],
    cursor: &mut Cursor,
    out: &mut Vec<u8>,
) -> [u8; CV] {
    debug_assert!(data.len() <= GROUP);
    let count = walk::leaves(data.len() as u64);
    debug_assert!(count <= GROUP_LEAVES);
    let wanted = cursor.wanted(ranges, first, count);
    if wanted == Wanted::All || (wanted == Wanted::Part && count == 1) {
        out.extend_from_slice(data);
    }
    if wanted != Wanted::Part || count == 1 {
        return subtree_cv(data, first * LEAF, is_root);
    }
    let left = left_leaves(count);
    let (left_data, right_data) = data.split_at((left * LEAF) as usize);
    let at = out.len();
    out.extend_from_slice(&[0; PAIR]);
    let left_cv = encode_part(left_data, first, false, ranges, cursor, out);
    let right_cv = encode_part(right_data, first + left, false, ranges, cursor, out);
    out[at..at + CV].copy_from_slice(&left_cv);
    out[at + CV..at + PAIR].copy_from_slice(&right_cv);
    tree::parent(&left_cv, &right_cv, is_root)
}
