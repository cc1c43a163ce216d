//! Which parents and leaves a response to ranges has, in which order: the geometry of a BAO stream, without bytes.
//!
//! A *leaf* is a BLAKE3 chunk of 1,024 bytes, a *group* 16 of them. A node is a run of leaves that is a subtree; one
//! that is wanted in part is a parent on the wire, one that is wanted whole and is at most a group travels as data.

use std::ops::Range;

use super::tree::{CV, GROUP};

pub const LEAF: u64 = 1024;
pub const GROUP_LEAVES: u64 = GROUP as u64 / LEAF;
/// Larger blobs do not exist here, so that nothing below can overflow.
pub const MAX_SIZE: u64 = 1 << 62;

/// How many leaves a blob has; an empty one has one.
pub fn leaves(size: u64) -> u64 {
    size.div_ceil(LEAF).max(1)
}

/// The leaves that a response carries: the wanted ones that exist, and the last one if any beyond it is wanted.
///
/// `boundaries` rise strictly: on, off, on, …; an odd number of them is open-ended.
pub fn select(boundaries: &[u64], size: u64) -> Vec<Range<u64>> {
    let end = leaves(size);
    let mut ranges: Vec<Range<u64>> = Vec::new();
    for pair in boundaries.chunks(2) {
        let (start, stop) = (pair[0], pair.get(1).copied().unwrap_or(u64::MAX));
        let is_beyond = pair.len() == 1 || stop > end;
        let start = if is_beyond { start.min(end - 1) } else { start };
        match ranges.last_mut() {
            Some(last) if last.end >= start => last.end = stop.min(end),
            _ => ranges.push(start..stop.min(end)),
        }
        if is_beyond {
            break;
        }
    }
    ranges
}

pub fn are_boundaries(boundaries: &[u64]) -> bool {
    boundaries.windows(2).all(|pair| pair[0] < pair[1])
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wanted {
    None,
    Part,
    All,
}

/// Looks nodes up in ranges. They must come in order, each beginning at or after the one before it.
#[derive(Clone, Copy, Default)]
pub struct Cursor(usize);

impl Cursor {
    pub fn wanted(&mut self, ranges: &[Range<u64>], first: u64, count: u64) -> Wanted {
        while ranges.get(self.0).is_some_and(|range| range.end <= first) {
            self.0 += 1;
        }
        match ranges.get(self.0) {
            Some(range) if range.start <= first && range.end >= first + count => Wanted::All,
            Some(range) if range.start < first + count => Wanted::Part,
            _ => Wanted::None,
        }
    }
}

/// The left subtree of `count` > 1 leaves has the largest power of two below `count`.
pub fn left_leaves(count: u64) -> u64 {
    1 << (u64::BITS - 1 - (count - 1).leading_zeros())
}

/// A subtree, and the chaining value (of the root: the hash) that its parent gives it.
#[derive(Clone, Copy)]
pub struct Node {
    pub first: u64,
    pub count: u64,
    /// Where its own pair stands in the pre-order outboard, if it has more than one group.
    pub pair: u64,
    pub cv: [u8; CV],
}

impl Node {
    pub fn is_in_outboard(&self) -> bool {
        self.count > GROUP_LEAVES
    }

    pub fn offset(&self) -> u64 {
        self.first * LEAF
    }
}

/// A walk over the wanted nodes in pre-order. Memory: a node for each level of the tree, at most 53.
#[derive(Clone)]
pub struct Walk {
    size: u64,
    leaves: u64,
    cursor: Cursor,
    stack: Vec<Node>,
}

impl Walk {
    pub fn new(root: [u8; CV], size: u64) -> Self {
        debug_assert!(size <= MAX_SIZE);
        let leaves = leaves(size);
        let node = Node { first: 0, count: leaves, pair: 0, cv: root };
        Self { size, leaves, cursor: Cursor::default(), stack: vec![node] }
    }

    /// The next node of which something is wanted, and whether that is all of it.
    pub fn peek(&mut self, ranges: &[Range<u64>]) -> Option<(Node, bool)> {
        while let Some(&node) = self.stack.last() {
            match self.cursor.wanted(ranges, node.first, node.count) {
                Wanted::None => _ = self.stack.pop(),
                wanted => return Some((node, wanted == Wanted::All)),
            }
        }
        None
    }

    /// Go on behind the node that was peeked at.
    pub fn skip(&mut self) {
        self.stack.pop();
    }

    /// Go down into the children of the node that was peeked at; it has more than one leaf.
    pub fn descend(&mut self, left_cv: [u8; CV], right_cv: [u8; CV]) {
        let Some(node) = self.stack.pop() else { return };
        let left = left_leaves(node.count);
        let right = Node {
            first: node.first + left,
            count: node.count - left,
            pair: node.pair + left / GROUP_LEAVES,
            cv: right_cv,
        };
        self.stack.push(right);
        self.stack.push(Node { first: node.first, count: left, pair: node.pair + 1, cv: left_cv });
    }

    pub fn cursor(&self) -> Cursor {
        self.cursor
    }

    pub fn is_root(&self, node: &Node) -> bool {
        node.count == self.leaves
    }

    pub fn is_last(&self, node: &Node) -> bool {
        node.first + node.count == self.leaves
    }

    /// How many bytes of the blob a node covers.
    pub fn bytes(&self, node: &Node) -> u64 {
        (node.count * LEAF).min(self.size - node.offset())
    }

    /// Whether a node travels as data. One that does not travels as a pair, and then what is wanted of its children.
    pub fn is_data(node: &Node, is_all: bool) -> bool {
        node.count == 1 || (is_all && node.count <= GROUP_LEAVES)
    }

    /// Step over the next item of a stream: (bytes on the wire, Some(offset) if they are data).
    pub fn step(&mut self, ranges: &[Range<u64>]) -> Option<(u64, Option<u64>)> {
        let (node, is_all) = self.peek(ranges)?;
        if Self::is_data(&node, is_all) {
            self.skip();
            Some((self.bytes(&node), Some(node.offset())))
        } else {
            self.descend([0; CV], [0; CV]);
            Some((2 * CV as u64, None))
        }
    }
}
