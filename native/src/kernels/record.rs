//! Records of the log: headers, index entries, walking, checking (docs/format.md).
//!
//! Whatever decides about a position or a length is first copied out of the buffer (`Header::read`): another thread
//! of Python might change the bytes between a check and a use.

use std::hint::black_box;

use super::tree::array;

pub const MAGIC: [u8; 4] = *b"HFrc";
pub const VERSION: u8 = 1;
pub const HEADER: usize = 64;
pub const ENTRY: usize = 46;
pub const MAX_PAYLOAD: usize = 16 << 20;
pub const COMPRESSED: u8 = 1 << 1;

/// A payload is hashed and summed in steps that stay in the cache in between.
const STEP: usize = 64 << 10;
const SUMMED: usize = 60;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    pub version: u8,
    pub kind: u8,
    pub flags: u8,
    pub segment: u32,
    pub offset: u32,
    pub stored: u32,
    pub plain: u32,
    pub payload_crc: u32,
    pub hash: [u8; 32],
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

impl Header {
    pub fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&MAGIC);
        bytes[4..8].copy_from_slice(&[self.kind, self.flags, self.version, 0]);
        let words = [self.segment, self.offset, self.stored, self.plain, self.payload_crc];
        for (place, word) in bytes[8..28].chunks_exact_mut(4).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[28..SUMMED].copy_from_slice(&self.hash);
        let crc = crc32c::crc32c(&bytes[..SUMMED]);
        bytes[SUMMED..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// None if magic, version or checksum are wrong. `bytes` has at least 64 bytes.
    pub fn read(bytes: &[u8]) -> Option<Self> {
        let mut copy = [0; HEADER];
        copy.copy_from_slice(&bytes[..HEADER]);
        let copy = black_box(copy); // the compiler may not read the buffer again instead
        if copy[..4] != MAGIC || copy[6] == 0 || u32_at(&copy, SUMMED) != crc32c::crc32c(&copy[..SUMMED]) {
            return None;
        }
        Some(Self {
            kind: copy[4],
            flags: copy[5],
            version: copy[6],
            segment: u32_at(&copy, 8),
            offset: u32_at(&copy, 12),
            stored: u32_at(&copy, 16),
            plain: u32_at(&copy, 20),
            payload_crc: u32_at(&copy, 24),
            hash: array(&copy[28..]),
        })
    }

    pub fn entry(&self) -> Entry {
        Entry {
            kind: self.kind,
            flags: self.flags,
            offset: self.offset,
            stored: self.stored,
            plain: self.plain,
            hash: self.hash,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    pub kind: u8,
    pub flags: u8,
    pub offset: u32,
    pub stored: u32,
    pub plain: u32,
    pub hash: [u8; 32],
}

impl Entry {
    pub fn encode(&self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..2].copy_from_slice(&[self.kind, self.flags]);
        for (place, word) in bytes[2..14].chunks_exact_mut(4).zip([self.offset, self.stored, self.plain]) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes[14..].copy_from_slice(&self.hash);
        bytes
    }

    /// `bytes` has at least 46 bytes.
    pub fn read(bytes: &[u8]) -> Self {
        let mut copy = [0; ENTRY];
        copy.copy_from_slice(&bytes[..ENTRY]);
        let copy = black_box(copy);
        Self {
            kind: copy[0],
            flags: copy[1],
            offset: u32_at(&copy, 2),
            stored: u32_at(&copy, 6),
            plain: u32_at(&copy, 10),
            hash: array(&copy[14..]),
        }
    }
}

/// Where records of a known size lie, one after another; None if an offset does not fit into 32 bits.
pub fn offsets(start: u32, stored: impl Iterator<Item = usize>) -> Option<Vec<u32>> {
    let mut next = u64::from(start);
    stored
        .map(|bytes| {
            let offset = u32::try_from(next).ok();
            next += (HEADER + bytes) as u64;
            offset
        })
        .collect()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    End,
    Short,
    Magic,
    Header,
    Length,
    Payload,
}

impl Stop {
    pub fn name(self) -> &'static str {
        match self {
            Self::End => "end",
            Self::Short => "short",
            Self::Magic => "magic",
            Self::Header => "header",
            Self::Length => "length",
            Self::Payload => "payload",
        }
    }
}

/// The entries of good records from data[0] on, how many bytes they take, and why it stopped.
pub fn scan(data: &[u8], segment: u32, offset: u64, deep: bool) -> (Vec<u8>, usize, Stop) {
    let mut entries = Vec::new();
    let mut at = 0;
    loop {
        match next_record(&data[at..], segment, offset.saturating_add(at as u64), deep) {
            Ok(header) => {
                entries.extend_from_slice(&header.entry().encode());
                at += HEADER + header.stored as usize;
            }
            Err(stop) => return (entries, at, stop),
        }
    }
}

fn next_record(data: &[u8], segment: u32, offset: u64, deep: bool) -> Result<Header, Stop> {
    if data.is_empty() {
        return Err(Stop::End);
    }
    let start = data.len().min(MAGIC.len());
    if data[..start] != MAGIC[..start] {
        return Err(Stop::Magic);
    }
    if data.len() < HEADER {
        return Err(Stop::Short);
    }
    let header = Header::read(data).ok_or(Stop::Header)?;
    if header.segment != segment || u64::from(header.offset) != offset {
        return Err(Stop::Header);
    }
    let stored = header.stored as usize;
    if stored > MAX_PAYLOAD {
        return Err(Stop::Length);
    }
    let payload = data[HEADER..].get(..stored).ok_or(Stop::Short)?;
    if deep && crc32c::crc32c(payload) != header.payload_crc {
        return Err(Stop::Payload);
    }
    Ok(header)
}

/// The first position >= `start` of a header that is valid in every way.
pub fn find_header(data: &[u8], segment: u32, offset: u64, start: usize) -> Option<usize> {
    memchr::memmem::find_iter(data.get(start..)?, &MAGIC).map(|found| start + found).find(|&at| {
        data.len() - at >= HEADER
            && Header::read(&data[at..]).is_some_and(|header| {
                header.segment == segment
                    && Some(u64::from(header.offset)) == offset.checked_add(at as u64)
                    && header.stored as usize <= MAX_PAYLOAD
            })
    })
}

/// What is wrong with the record that `entry` names, if anything; `data` begins at `base` of its segment.
pub fn check(data: &[u8], entry: &Entry, base: u64) -> Option<&'static str> {
    let whole = u64::from(entry.offset)
        .checked_sub(base)
        .and_then(|at| usize::try_from(at).ok())
        .and_then(|at| data.get(at..)?.get(..HEADER.checked_add(entry.stored as usize)?));
    let Some(record) = whole else {
        return Some("short");
    };
    let Some(header) = Header::read(record) else {
        return Some("header");
    };
    if header.entry() != *entry || entry.stored as usize > MAX_PAYLOAD {
        return Some("header");
    }
    let (mut crc, mut hasher) = (0, blake3::Hasher::new());
    let is_plain = entry.flags & COMPRESSED == 0;
    for step in record[HEADER..].chunks(STEP) {
        crc = crc32c::crc32c_append(crc, step);
        if is_plain {
            hasher.update(step);
        }
    }
    if crc != header.payload_crc {
        Some("payload")
    } else if is_plain && *hasher.finalize().as_bytes() != entry.hash {
        Some("hash")
    } else {
        None
    }
}
