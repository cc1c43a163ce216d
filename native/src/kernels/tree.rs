//! BLAKE3 trees over groups of 16 KiB: hashing in one pass, outboards in pre-order, verification.
//!
//! A group of 16 chunks is a whole subtree of the BLAKE3 tree, so that its chaining value, with the offset of the
//! group as its input offset, is that of the inner node in bao-tree's layout with block size 4.

use blake3::Hasher;
use blake3::hazmat::{ChainingValue, HasherExt, Mode, merge_subtrees_non_root, merge_subtrees_root};

pub const GROUP: usize = 16_384;
pub const CV: usize = 32;
pub const PAIR: usize = 64;
/// BLAKE3 counts chunks in 64 bits; blobs beyond 2^62 bytes do not exist here, and offsets of groups cannot overflow.
pub const MAX_GROUPS: u64 = 1 << 48;

pub fn parent(left: &ChainingValue, right: &ChainingValue, is_root: bool) -> ChainingValue {
    if is_root {
        *merge_subtrees_root(left, right, Mode::Hash).as_bytes()
    } else {
        merge_subtrees_non_root(left, right, Mode::Hash)
    }
}

/// The chaining value of the group `index`; `data` is not empty and at most a group.
fn group_cv(data: &[u8], index: u64) -> ChainingValue {
    debug_assert!(!data.is_empty() && data.len() <= GROUP);
    let mut hasher = Hasher::new();
    hasher.set_input_offset(index * GROUP as u64).update(data);
    hasher.finalize_non_root()
}

/// The chaining value (of the root: the hash) of a subtree of at most a group that begins at `offset` of the blob.
pub fn subtree_cv(data: &[u8], offset: u64, is_root: bool) -> ChainingValue {
    if is_root {
        return *blake3::hash(data).as_bytes();
    }
    let mut hasher = Hasher::new();
    hasher.set_input_offset(offset).update(data);
    hasher.finalize_non_root()
}

/// Streaming BLAKE3 that also gives the chaining value of each group.
pub struct BlobHasher {
    /// The bytes of the group being filled. Copying them and hashing the group at once is faster than feeding a live
    /// hasher in odd pieces. The first group stays, full, until a byte after it shows that it is not the root.
    open: Vec<u8>,
    /// How many groups have been closed.
    closed: u64,
    /// Chaining values of whole subtrees left of the open group, larger ones first, merged one step late so that the
    /// last merge can still be the root.
    stack: Vec<ChainingValue>,
    ready: Vec<u8>,
}

impl BlobHasher {
    pub fn new() -> Self {
        Self { open: Vec::new(), closed: 0, stack: Vec::new(), ready: Vec::new() }
    }

    pub fn update(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.open.len() == GROUP {
                self.close_open();
            }
            let is_root_excluded = self.closed > 0 || data.len() > GROUP;
            if self.open.is_empty() && is_root_excluded && data.len() >= GROUP {
                let (group, rest) = data.split_at(GROUP);
                self.close(group_cv(group, self.closed));
                data = rest;
            } else {
                let (head, rest) = data.split_at(data.len().min(GROUP - self.open.len()));
                self.open.extend_from_slice(head);
                data = rest;
            }
        }
        if self.open.len() == GROUP && self.closed > 0 {
            self.close_open();
        }
    }

    fn close_open(&mut self) {
        let cv = group_cv(&self.open, self.closed);
        self.open.clear();
        self.close(cv);
    }

    fn close(&mut self, cv: ChainingValue) {
        self.ready.extend_from_slice(&cv);
        while self.stack.len() > self.closed.count_ones() as usize {
            self.merge_last(false);
        }
        self.stack.push(cv);
        self.closed += 1;
    }

    fn merge_last(&mut self, is_root: bool) {
        if let (Some(right), Some(left)) = (self.stack.pop(), self.stack.pop()) {
            self.stack.push(parent(&left, &right, is_root));
        }
    }

    /// Go on behind groups that were hashed before, of which `cvs` are the chaining values; no data may be open.
    pub fn resume(&mut self, cvs: &[u8]) -> bool {
        if !self.open.is_empty() {
            return false;
        }
        let ready = std::mem::take(&mut self.ready);
        for cv in cvs.chunks_exact(CV) {
            self.close(array(cv));
        }
        self.ready = ready;
        true
    }

    pub fn take_groups(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.ready)
    }

    /// Whether all that it knows is the chaining value of one group, which does not give its root hash.
    pub fn is_lone_group(&self) -> bool {
        self.closed == 1 && self.open.is_empty()
    }

    pub fn finish(mut self) -> (ChainingValue, Vec<u8>) {
        if self.closed == 0 {
            return (*blake3::hash(&self.open).as_bytes(), Vec::new());
        }
        if !self.open.is_empty() {
            self.close_open();
        }
        while self.stack.len() > 2 {
            self.merge_last(false);
        }
        self.merge_last(true);
        (self.stack[0], self.ready)
    }
}

/// A parent over n > 1 groups has the largest power of two below n in its left subtree.
fn left_groups(groups: usize) -> usize {
    groups.div_ceil(2).next_power_of_two()
}

/// Write the pairs of the subtree over `cvs` (n * 32 bytes, n >= 1) to `out` ((n - 1) * 64 bytes); give its top.
pub fn outboard(cvs: &[u8], out: &mut [u8], is_root: bool) -> ChainingValue {
    let groups = cvs.len() / CV;
    if groups == 1 {
        return array(cvs);
    }
    let left = left_groups(groups);
    let (pair, rest) = out.split_at_mut(PAIR);
    let (left_out, right_out) = rest.split_at_mut((left - 1) * PAIR);
    let (left_cvs, right_cvs) = cvs.split_at(left * CV);
    let left_cv = outboard(left_cvs, left_out, false);
    let right_cv = outboard(right_cvs, right_out, false);
    pair[..CV].copy_from_slice(&left_cv);
    pair[CV..].copy_from_slice(&right_cv);
    parent(&left_cv, &right_cv, is_root)
}

/// Verify the pairs of a subtree over `groups` >= 1 groups, append the groups' chaining values to `out`.
///
/// `pairs` is (groups - 1) * 64 bytes. The error is the offset of the first bad pair. Each pair is copied before it
/// is hashed, so that what was verified is what is used.
pub fn leaf_cvs(
    pairs: &[u8],
    groups: usize,
    expected: &ChainingValue,
    is_root: bool,
    out: &mut Vec<u8>,
) -> Result<(), usize> {
    descend(pairs, 0, groups, expected, is_root, out)
}

fn descend(
    pairs: &[u8],
    at: usize,
    groups: usize,
    expected: &ChainingValue,
    is_root: bool,
    out: &mut Vec<u8>,
) -> Result<(), usize> {
    if groups == 1 {
        out.extend_from_slice(expected);
        return Ok(());
    }
    let left_cv: ChainingValue = array(&pairs[at..]);
    let right_cv: ChainingValue = array(&pairs[at + CV..]);
    if parent(&left_cv, &right_cv, is_root) != *expected {
        return Err(at);
    }
    let left = left_groups(groups);
    descend(pairs, at + PAIR, left, &left_cv, false, out)?;
    descend(pairs, at + left * PAIR, groups - left, &right_cv, false, out)
}

/// The index of the first group of `data` that does not have its chaining value; `cvs` has one for each.
pub fn first_bad_group(data: &[u8], first_group: u64, cvs: &[u8]) -> Option<usize> {
    data.chunks(GROUP)
        .zip(cvs.chunks_exact(CV))
        .enumerate()
        .find(|(index, (group, cv))| group_cv(group, first_group + *index as u64) != **cv)
        .map(|(index, _)| index)
}

pub fn pair(left: &ChainingValue, right: &ChainingValue) -> [u8; PAIR] {
    let mut pair = [0; PAIR];
    pair[..CV].copy_from_slice(left);
    pair[CV..].copy_from_slice(right);
    pair
}

/// The first 32 bytes of `bytes`, which has as many.
pub fn array(bytes: &[u8]) -> ChainingValue {
    let mut copy = [0; CV];
    copy.copy_from_slice(&bytes[..CV]);
    copy
}
