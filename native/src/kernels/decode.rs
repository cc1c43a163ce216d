//! Verify a BAO stream as it arrives: nothing comes out that does not match the root hash.
//!
//! Memory: the ranges, a node for each level of the tree, and at most one group that is not complete yet.

use std::ops::Range;

use super::tree::{self, CV, GROUP, PAIR, subtree_cv};
use super::walk::{self, Walk};

const HEADER: usize = 8;

/// Why a stream is wrong, and the offset in it of what is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Failure {
    pub offset: u64,
    pub kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// The size in front exceeds what a blob can have.
    Size(u64),
    /// A pair of hashes does not match what is above it.
    Parent,
    /// Data at this offset of the blob does not match its hash.
    Leaf(u64),
    /// The stream goes on after its end.
    Trailing,
    /// The stream ends too early.
    Truncated,
}

/// Takes verified data. What `copy` gives back is verified, not what went in, which somebody else may change.
pub trait Sink {
    /// Keep a copy of `data` at `offset` of the blob, and show it.
    fn copy(&mut self, offset: u64, data: &[u8]) -> &[u8];
    /// Forget the last copy, of `length` bytes.
    fn drop_last(&mut self, length: usize);
}

pub struct Decoder {
    root: [u8; CV],
    boundaries: Vec<u64>,
    ranges: Vec<Range<u64>>,
    walk: Option<Walk>,
    size: u64,
    /// The beginning of an item whose rest has not arrived.
    pending: Vec<u8>,
    position: u64,
    is_size_proven: bool,
    failure: Option<Failure>,
    /// Verified pairs of the outboard: runs of (offset in the outboard, bytes).
    pairs: Option<Vec<(u64, Vec<u8>)>>,
    /// Pairs above the next leaf. Where a pair stands in the outboard follows from the size, which may be a lie. A
    /// leaf verifies at its own place alone, and that place, a sum of different powers of two, proves those of all
    /// that is above it. So pairs wait for it.
    open_pairs: Vec<(u64, [u8; PAIR])>,
}

impl Decoder {
    /// `boundaries` rise strictly (`walk::are_boundaries`).
    pub fn new(root: [u8; CV], boundaries: Vec<u64>, keeps_pairs: bool) -> Self {
        Self {
            root,
            boundaries,
            ranges: Vec::new(),
            walk: None,
            size: 0,
            pending: Vec::new(),
            position: 0,
            is_size_proven: false,
            failure: None,
            pairs: keeps_pairs.then(Vec::new),
            open_pairs: Vec::new(),
        }
    }

    /// The claimed size, as soon as it is here.
    pub fn size(&self) -> Option<u64> {
        self.walk.as_ref().map(|_| self.size)
    }

    /// Whether the last leaf was verified, which proves the size.
    pub fn is_size_proven(&self) -> bool {
        self.is_size_proven
    }

    /// How many bytes of the stream are verified: where the next item begins.
    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn failure(&self) -> Option<Failure> {
        self.failure
    }

    pub fn is_done(&mut self) -> bool {
        match &mut self.walk {
            Some(walk) => walk.peek(&self.ranges).is_none(),
            None => self.boundaries.is_empty(),
        }
    }

    /// Pairs above leaves that were verified.
    pub fn take_pairs(&mut self) -> Vec<(u64, Vec<u8>)> {
        self.pairs.as_mut().map(std::mem::take).unwrap_or_default()
    }

    /// How many bytes, counted from the last one fed, certainly belong to the stream: at most `limit`, but at least
    /// those that complete the next item. 0 if the stream is complete or wrong.
    pub fn wants(&self, limit: usize) -> usize {
        if self.failure.is_some() {
            return 0;
        }
        let Some(walk) = &self.walk else {
            return if self.boundaries.is_empty() { 0 } else { HEADER - self.pending.len() };
        };
        let (mut walk, mut sum) = (walk.clone(), 0);
        let limit = limit.saturating_add(self.pending.len());
        while let Some((bytes, _)) = walk.step(&self.ranges) {
            let next = sum + bytes as usize;
            if sum > 0 && next > limit {
                break;
            }
            sum = next;
        }
        sum - self.pending.len().min(sum)
    }

    /// What the next `available` bytes will give if they verify: runs of (offset in the blob, length).
    pub fn plan(&self, available: usize) -> Vec<(u64, usize)> {
        let mut runs: Vec<(u64, usize)> = Vec::new();
        let Some(walk) = self.walk.as_ref().filter(|_| self.failure.is_none()) else { return runs };
        let (mut walk, mut left) = (walk.clone(), (self.pending.len() + available) as u64);
        while let Some((bytes, offset)) = walk.step(&self.ranges) {
            if bytes > left {
                break;
            }
            left -= bytes;
            match (offset, runs.last_mut()) {
                (None, _) => {}
                (Some(at), Some((start, length))) if *start + *length as u64 == at => {
                    *length += bytes as usize;
                }
                (Some(_), _) if bytes == 0 => {}
                (Some(at), _) => runs.push((at, bytes as usize)),
            }
        }
        runs
    }

    /// Take the size from the front of `data`, if it has not come yet: how many bytes of `data` that took.
    pub fn feed_header(&mut self, data: &[u8]) -> usize {
        if self.walk.is_some() || self.boundaries.is_empty() || self.failure.is_some() {
            return 0;
        }
        let taken = data.len().min(HEADER - self.pending.len());
        self.pending.extend_from_slice(&data[..taken]);
        let Some(header) = self.pending.first_chunk::<HEADER>() else { return taken };
        self.size = u64::from_le_bytes(*header);
        if self.size > walk::MAX_SIZE {
            self.fail(Kind::Size(self.size));
            return taken;
        }
        self.pending.clear();
        self.position = HEADER as u64;
        self.ranges = walk::select(&self.boundaries, self.size);
        self.boundaries = Vec::new();
        self.walk = Some(Walk::new(self.root, self.size));
        taken
    }

    /// Verify what is complete, keep what is not; `feed_header` has taken its part. What came before a failure is in
    /// `out`, the failure in `failure`, and nothing is looked at after it.
    pub fn feed(&mut self, mut data: &[u8], out: &mut impl Sink) {
        while self.failure.is_none() {
            let Some(walk) = &mut self.walk else {
                if self.boundaries.is_empty() && !data.is_empty() {
                    self.fail(Kind::Trailing);
                }
                return;
            };
            let Some((node, is_all)) = walk.peek(&self.ranges) else {
                if !data.is_empty() {
                    self.fail(Kind::Trailing);
                }
                return;
            };
            let is_data = Walk::is_data(&node, is_all);
            let length = if is_data { walk.bytes(&node) as usize } else { PAIR };
            debug_assert!(length <= GROUP);
            let from_pending = !self.pending.is_empty();
            if from_pending || data.len() < length {
                let (head, rest) = data.split_at(data.len().min(length - self.pending.len()));
                if self.pending.is_empty() && !head.is_empty() {
                    self.pending.reserve_exact(length);
                }
                self.pending.extend_from_slice(head);
                data = rest;
                if self.pending.len() < length {
                    return;
                }
            }
            let (item, rest) = if from_pending { (&self.pending[..], data) } else { data.split_at(length) };
            let (is_root, is_last) = (walk.is_root(&node), walk.is_last(&node));
            if is_data {
                let copy = out.copy(node.offset(), item);
                if subtree_cv(copy, node.offset(), is_root) != node.cv {
                    out.drop_last(length);
                    return self.fail(Kind::Leaf(node.offset()));
                }
                walk.skip();
                self.is_size_proven |= is_last;
                if let Some(pairs) = &mut self.pairs {
                    self.open_pairs.drain(..).for_each(|(offset, pair)| keep_pair(pairs, offset, &pair));
                }
            } else {
                let (left, right) = (tree::array(item), tree::array(&item[CV..]));
                if tree::parent(&left, &right, is_root) != node.cv {
                    return self.fail(Kind::Parent);
                }
                walk.descend(left, right);
                if self.pairs.is_some() && node.is_in_outboard() {
                    self.open_pairs.push((node.pair * PAIR as u64, tree::pair(&left, &right)));
                }
            }
            self.pending.clear();
            self.position += length as u64;
            data = rest;
        }
    }

    /// The stream has ended: fails unless all of it came.
    pub fn finish(&mut self) -> Result<(), Failure> {
        if self.failure.is_none() && !self.is_done() {
            self.failure =
                Some(Failure { offset: self.position + self.pending.len() as u64, kind: Kind::Truncated });
        }
        self.failure.map_or(Ok(()), Err)
    }

    fn fail(&mut self, kind: Kind) {
        self.failure = Some(Failure { offset: self.position, kind });
    }
}

fn keep_pair(pairs: &mut Vec<(u64, Vec<u8>)>, offset: u64, pair: &[u8; PAIR]) {
    match pairs.last_mut() {
        Some((start, run)) if *start + run.len() as u64 == offset => run.extend_from_slice(pair),
        _ => pairs.push((offset, pair.to_vec())),
    }
}
