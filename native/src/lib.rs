//! The Python side of the kernels: arguments in, results out, the GIL given back while there is work to do.
//! `src/holdfast/_native.pyi` says what each function is for.
//!
//! # Buffers that change
//!
//! `bytes` never change. Any other buffer (`bytearray`, `mmap`, a writable array) is locked by its export against
//! being resized or freed, but another thread may write into it while the GIL is released. Kernels read such memory
//! as `&[u8]` all the same, as `hashlib` does in C: a private copy would cost a quarter of the hash rate. What keeps
//! this from becoming a fault: bytes of a buffer are used as data only (hashed, summed, looked up in a table of 256),
//! and what decides about a position or a length is copied out first and used from the copy (`kernels::record`,
//! `kernels::tree`). The result is then that of some mixture of old and new bytes, which is the caller's race.

mod kernels;
mod stream;

use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyOverflowError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use kernels::record::{self, Entry, Header};
use kernels::{cutter, probe, tree};

/// To release and take the GIL costs as much as hashing about half of this.
const WORTH_DETACHING: usize = 2048;

/// Bytes of a Python object, held while they are used.
enum Buffer<'py> {
    Bytes(Bound<'py, PyBytes>),
    Exported(PyBuffer<u8>),
}

impl<'a, 'py> FromPyObject<'a, 'py> for Buffer<'py> {
    type Error = PyErr;

    fn extract(object: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        if let Ok(bytes) = object.cast_exact::<PyBytes>() {
            return Ok(Self::Bytes(bytes.to_owned()));
        }
        let buffer = PyBuffer::<u8>::get(&object)?;
        if !buffer.is_c_contiguous() {
            return Err(PyBufferError::new_err("a C-contiguous buffer is needed"));
        }
        Ok(Self::Exported(buffer))
    }
}

impl Buffer<'_> {
    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Bytes(bytes) => bytes.as_bytes(),
            Self::Exported(buffer) if buffer.len_bytes() == 0 => &[],
            // SAFETY: the exporter keeps `len_bytes` contiguous bytes at `buf_ptr` in place until the buffer is
            // released, which is when `self` is dropped. For writes by others meanwhile see the top of this file.
            Self::Exported(buffer) => unsafe {
                std::slice::from_raw_parts(buffer.buf_ptr().cast::<u8>(), buffer.len_bytes())
            },
        }
    }
}

fn slices<'a>(buffers: &'a [Buffer<'_>]) -> Vec<&'a [u8]> {
    buffers.iter().map(Buffer::as_slice).collect()
}

fn total(pieces: &[&[u8]]) -> usize {
    pieces.iter().fold(0, |sum, piece| sum.saturating_add(piece.len()))
}

/// Do `work`, without the GIL if it touches enough bytes.
fn run<T: Send>(py: Python<'_>, bytes: usize, work: impl FnOnce() -> T + Send) -> T {
    if bytes > WORTH_DETACHING { py.detach(work) } else { work() }
}

fn invalid(message: impl Into<String>) -> PyErr {
    PyValueError::new_err(message.into())
}

/// The hashes or chaining values in `bytes`; ValueError if it is not `count` times 32 bytes.
fn expect_hashes(bytes: &[u8], count: usize, what: &str) -> PyResult<()> {
    if Some(bytes.len()) == count.checked_mul(tree::CV) {
        Ok(())
    } else {
        Err(invalid(format!("{count} {what} of 32 bytes are needed, got {} bytes", bytes.len())))
    }
}

fn hash_array(bytes: &[u8], what: &str) -> PyResult<[u8; 32]> {
    bytes.try_into().map_err(|_| invalid(format!("{what} must be 32 bytes, got {}", bytes.len())))
}

fn index_or_minus_one(index: Option<usize>) -> isize {
    index.map_or(-1, |index| index as isize)
}

// --- hashes and checksums

/// Hash `data` on this thread: 32 bytes.
#[pyfunction]
fn blake3<'py>(py: Python<'py>, data: Buffer<'py>) -> Bound<'py, PyBytes> {
    let data = data.as_slice();
    let hash = run(py, data.len(), || ::blake3::hash(data));
    PyBytes::new(py, hash.as_bytes())
}

/// Hash consecutive pieces of one buffer: 32 bytes each.
#[pyfunction]
fn blake3_many<'py>(
    py: Python<'py>,
    data: Buffer<'py>,
    lengths: Vec<usize>,
) -> PyResult<Bound<'py, PyBytes>> {
    let data = data.as_slice();
    let sum = lengths.iter().try_fold(0usize, |sum, &length| sum.checked_add(length));
    if sum != Some(data.len()) {
        return Err(invalid(format!("the lengths do not add up to the {} bytes of the data", data.len())));
    }
    let hashes = run(py, data.len(), || {
        let mut rest = data;
        let mut hashes = Vec::with_capacity(lengths.len() * tree::CV);
        for &length in &lengths {
            let (piece, others) = rest.split_at(length);
            hashes.extend_from_slice(::blake3::hash(piece).as_bytes());
            rest = others;
        }
        hashes
    });
    Ok(PyBytes::new(py, &hashes))
}

/// Hash separate buffers: 32 bytes each.
#[pyfunction]
fn blake3_list<'py>(py: Python<'py>, items: Vec<Buffer<'py>>) -> Bound<'py, PyBytes> {
    let pieces = slices(&items);
    let hashes = run(py, total(&pieces), || {
        let mut hashes = Vec::with_capacity(pieces.len() * tree::CV);
        for piece in &pieces {
            hashes.extend_from_slice(::blake3::hash(piece).as_bytes());
        }
        hashes
    });
    PyBytes::new(py, &hashes)
}

/// CRC-32C (Castagnoli) of `data`, continuing from `value`.
#[pyfunction]
#[pyo3(signature = (data, value=0))]
fn crc32c(py: Python<'_>, data: Buffer<'_>, value: u32) -> u32 {
    let data = data.as_slice();
    run(py, data.len(), || ::crc32c::crc32c_append(value, data))
}

/// Guess for each item, 1 or 0, whether compression is worth a try.
#[pyfunction]
fn compressible<'py>(py: Python<'py>, items: Vec<Buffer<'py>>) -> Bound<'py, PyBytes> {
    let pieces = slices(&items);
    let answers: Vec<u8> = run(py, total(&pieces), || {
        pieces.iter().map(|piece| u8::from(probe::is_compressible(piece))).collect()
    });
    PyBytes::new(py, &answers)
}

// --- trees

/// BLAKE3 of a whole blob, and the chaining values of its 16 KiB groups, in one pass.
#[pyclass(module = "holdfast._native")]
struct BlobHasher {
    kernel: Option<tree::BlobHasher>,
    #[pyo3(get)]
    size_bytes: u64,
}

impl BlobHasher {
    fn live(&mut self) -> PyResult<&mut tree::BlobHasher> {
        self.kernel.as_mut().ok_or_else(|| invalid("this hasher is finished"))
    }
}

#[pymethods]
impl BlobHasher {
    #[new]
    fn new() -> Self {
        Self { kernel: Some(tree::BlobHasher::new()), size_bytes: 0 }
    }

    fn update(&mut self, py: Python<'_>, data: Buffer<'_>) -> PyResult<()> {
        let data = data.as_slice();
        let kernel = self.live()?;
        run(py, data.len(), || kernel.update(data));
        self.size_bytes += data.len() as u64;
        Ok(())
    }

    fn resume(&mut self, py: Python<'_>, groups: Buffer<'_>) -> PyResult<()> {
        let cvs = groups.as_slice();
        let count = (cvs.len() / tree::CV) as u64;
        if !cvs.len().is_multiple_of(tree::CV) {
            return Err(invalid(format!("chaining values are 32 bytes each, got {} bytes", cvs.len())));
        }
        let kernel = self.live()?;
        if !run(py, cvs.len(), || kernel.resume(cvs)) {
            return Err(invalid("the hasher stands within a group"));
        }
        self.size_bytes += count * tree::GROUP as u64;
        Ok(())
    }

    fn take_groups<'py>(&mut self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        Ok(PyBytes::new(py, &self.live()?.take_groups()))
    }

    fn finish<'py>(&mut self, py: Python<'py>) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
        if self.live()?.is_lone_group() {
            return Err(invalid("the chaining value of a lone group does not give the root hash"));
        }
        let (root, groups) = self.kernel.take().expect("is live").finish();
        Ok((PyBytes::new(py, &root), PyBytes::new(py, &groups)))
    }
}

/// Build the pre-order outboard of n groups from their chaining values.
#[pyfunction]
fn outboard<'py>(
    py: Python<'py>,
    groups: Buffer<'py>,
    is_root: bool,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let cvs = groups.as_slice();
    let count = cvs.len() / tree::CV;
    if count == 0 || !cvs.len().is_multiple_of(tree::CV) {
        return Err(invalid(format!(
            "chaining values are 32 bytes each, at least one: got {} bytes",
            cvs.len()
        )));
    }
    if count == 1 && is_root {
        return Err(invalid("the chaining value of a lone group does not give the root hash"));
    }
    let mut top = [0; 32];
    let pairs = PyBytes::new_with(py, (count - 1) * tree::PAIR, |out| {
        top = run(py, cvs.len(), || tree::outboard(cvs, out, is_root));
        Ok(())
    })?;
    Ok((pairs, PyBytes::new(py, &top)))
}

/// Verify every pair of a pre-order outboard; give the chaining values of the groups.
#[pyfunction]
fn leaf_cvs<'py>(
    py: Python<'py>,
    outboard: Buffer<'py>,
    groups: u64,
    expected: &[u8],
    is_root: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let pairs = outboard.as_slice();
    let top = hash_array(expected, "expected")?;
    if groups == 0 || groups.checked_sub(1).and_then(|n| n.checked_mul(64)) != Some(pairs.len() as u64) {
        return Err(invalid(format!("an outboard of {groups} groups does not have {} bytes", pairs.len())));
    }
    if groups == 1 && is_root {
        return Err(invalid("the root hash of a lone group is not its chaining value"));
    }
    let groups = groups as usize; // at most pairs.len() / 64 + 1
    run(py, pairs.len(), || {
        let mut cvs = Vec::with_capacity(groups * tree::CV);
        tree::leaf_cvs(pairs, groups, &top, is_root, &mut cvs).map(|()| cvs)
    })
    .map(|cvs| PyBytes::new(py, &cvs))
    .map_err(|offset| {
        PyValueError::new_err((format!("the pair at byte {offset} of the outboard is wrong"), offset))
    })
}

/// The chaining value (or, if `is_root`, the root hash) of the parent of two subtrees.
#[pyfunction]
fn parent_cv<'py>(
    py: Python<'py>,
    left: &[u8],
    right: &[u8],
    is_root: bool,
) -> PyResult<Bound<'py, PyBytes>> {
    let (left, right) = (hash_array(left, "left")?, hash_array(right, "right")?);
    Ok(PyBytes::new(py, &tree::parent(&left, &right, is_root)))
}

/// The index of the first 16 KiB group of `data` that does not match its chaining value, or -1.
#[pyfunction]
fn verify_groups(py: Python<'_>, data: Buffer<'_>, first_group: u64, cvs: Buffer<'_>) -> PyResult<isize> {
    let (data, cvs) = (data.as_slice(), cvs.as_slice());
    expect_hashes(cvs, data.len().div_ceil(tree::GROUP), "chaining values")?;
    if first_group >= tree::MAX_GROUPS {
        return Err(invalid(format!("no blob has a group {first_group}")));
    }
    Ok(index_or_minus_one(run(py, data.len(), || tree::first_bad_group(data, first_group, cvs))))
}

/// Check BLAKE3 of pieces of `data` against `hashes`: the first bad index, or -1.
#[pyfunction]
fn verify_many(
    py: Python<'_>,
    data: Buffer<'_>,
    offsets: Vec<usize>,
    lengths: Vec<usize>,
    hashes: Buffer<'_>,
) -> PyResult<isize> {
    let (data, hashes) = (data.as_slice(), hashes.as_slice());
    if offsets.len() != lengths.len() {
        return Err(invalid(format!("{} offsets, but {} lengths", offsets.len(), lengths.len())));
    }
    expect_hashes(hashes, offsets.len(), "hashes")?;
    let pieces = offsets
        .iter()
        .zip(&lengths)
        .map(|(&offset, &length)| {
            data.get(offset..).and_then(|rest| rest.get(..length)).ok_or_else(|| {
                invalid(format!("{length} bytes at {offset} are not inside {} bytes", data.len()))
            })
        })
        .collect::<PyResult<Vec<_>>>()?;
    let bad = run(py, total(&pieces), || {
        pieces
            .iter()
            .zip(hashes.chunks_exact(32))
            .position(|(piece, hash)| ::blake3::hash(piece).as_bytes() != hash)
    });
    Ok(index_or_minus_one(bad))
}

// --- cut points

/// FastCDC (2020, normalisation level 1) over a stream.
#[pyclass(module = "holdfast._native")]
struct Cutter(cutter::Cutter);

#[pymethods]
impl Cutter {
    #[new]
    fn new(min_bytes: usize, average_bytes: usize, max_bytes: usize) -> PyResult<Self> {
        cutter::Cutter::new(min_bytes, average_bytes, max_bytes).map(Self).ok_or_else(|| {
            invalid(format!(
                "chunk sizes must be even, in order, and in their ranges: min_bytes {:?}, average_bytes {:?}, \
                 max_bytes {:?}; got {min_bytes}, {average_bytes}, {max_bytes}",
                cutter::MIN,
                cutter::AVERAGE,
                cutter::MAX,
            ))
        })
    }

    fn feed(&mut self, py: Python<'_>, data: Buffer<'_>) -> Vec<u64> {
        let data = data.as_slice();
        let cutter = &mut self.0;
        run(py, data.len(), || {
            let mut lengths = Vec::new();
            cutter.feed(data, &mut lengths);
            lengths
        })
    }

    fn finish(&mut self) -> u64 {
        self.0.finish()
    }
}

// --- records

/// The checked arguments of `frame` and `frame_joined`.
struct Framing<'a> {
    segment: u32,
    kinds: &'a [u8],
    flags: &'a [u8],
    hashes: &'a [u8],
    plain: Vec<u32>,
    offsets: Vec<u32>,
    payloads: Vec<&'a [u8]>,
}

impl<'a> Framing<'a> {
    #[allow(clippy::too_many_arguments)] // those of the two functions
    fn new(
        segment: u64,
        offset: u64,
        kinds: &'a [u8],
        flags: &'a [u8],
        hashes: &'a [u8],
        plain_lengths: &[u64],
        payloads: Vec<&'a [u8]>,
    ) -> PyResult<Self> {
        let count = payloads.len();
        if kinds.len() != count || flags.len() != count || plain_lengths.len() != count {
            return Err(invalid(format!(
                "{count} payloads, but {} kinds, {} flags, {} lengths",
                kinds.len(),
                flags.len(),
                plain_lengths.len()
            )));
        }
        expect_hashes(hashes, count, "hashes")?;
        if let Some(large) = payloads.iter().map(|payload| payload.len()).find(|&n| n > record::MAX_PAYLOAD) {
            return Err(invalid(format!("a payload of {large} bytes exceeds {} bytes", record::MAX_PAYLOAD)));
        }
        let too_large = |what: &str| PyOverflowError::new_err(format!("{what} does not fit into 32 bits"));
        let segment = u32::try_from(segment).map_err(|_| too_large("the segment"))?;
        let plain = plain_lengths
            .iter()
            .map(|&length| u32::try_from(length).map_err(|_| too_large("a plain length")))
            .collect::<PyResult<_>>()?;
        let offsets = u32::try_from(offset)
            .ok()
            .and_then(|offset| record::offsets(offset, payloads.iter().map(|payload| payload.len())))
            .ok_or_else(|| too_large("an offset"))?;
        Ok(Self { segment, kinds, flags, hashes, plain, offsets, payloads })
    }

    /// The header of a payload whose bytes, as they are written, have the checksum `payload_crc`.
    fn header(&self, index: usize, payload_crc: u32) -> Header {
        Header {
            version: record::VERSION,
            kind: self.kinds[index],
            flags: self.flags[index],
            segment: self.segment,
            offset: self.offsets[index],
            stored: self.payloads[index].len() as u32,
            plain: self.plain[index],
            payload_crc,
            hash: tree::array(&self.hashes[index * tree::CV..]),
        }
    }
}

/// Headers and index entries of records that follow each other from `offset`.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // one buffer for each column of a group, so that Python packs none
fn frame<'py>(
    py: Python<'py>,
    segment: u64,
    offset: u64,
    kinds: &[u8],
    flags: &[u8],
    hashes: Buffer<'py>,
    plain_lengths: Vec<u64>,
    payloads: Vec<Buffer<'py>>,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let framing =
        Framing::new(segment, offset, kinds, flags, hashes.as_slice(), &plain_lengths, slices(&payloads))?;
    let count = framing.payloads.len();
    let (headers, entries) = run(py, total(&framing.payloads), || {
        let mut headers = Vec::with_capacity(count * record::HEADER);
        let mut entries = Vec::with_capacity(count * record::ENTRY);
        for index in 0..count {
            let header = framing.header(index, ::crc32c::crc32c(framing.payloads[index]));
            headers.extend_from_slice(&header.encode());
            entries.extend_from_slice(&header.entry().encode());
        }
        (headers, entries)
    });
    Ok((PyBytes::new(py, &headers), PyBytes::new(py, &entries)))
}

/// Like `frame`, but header, payload, header, payload, … in one piece, and the entries.
#[pyfunction]
#[allow(clippy::too_many_arguments)] // those of `frame`
fn frame_joined<'py>(
    py: Python<'py>,
    segment: u64,
    offset: u64,
    kinds: &[u8],
    flags: &[u8],
    hashes: Buffer<'py>,
    plain_lengths: Vec<u64>,
    payloads: Vec<Buffer<'py>>,
) -> PyResult<(Bound<'py, PyBytes>, Bound<'py, PyBytes>)> {
    let framing =
        Framing::new(segment, offset, kinds, flags, hashes.as_slice(), &plain_lengths, slices(&payloads))?;
    let count = framing.payloads.len();
    let payload_bytes = total(&framing.payloads);
    let mut entries = Vec::with_capacity(count * record::ENTRY);
    let joined = PyBytes::new_with(py, payload_bytes + count * record::HEADER, |out| {
        run(py, payload_bytes, || {
            let mut out = out;
            for index in 0..count {
                let payload = framing.payloads[index];
                let (head, rest) = out.split_at_mut(record::HEADER);
                let (body, rest) = rest.split_at_mut(payload.len());
                body.copy_from_slice(payload);
                // The checksum is of the copy: what is written is what was summed, even if a payload changes now.
                let header = framing.header(index, ::crc32c::crc32c(body));
                head.copy_from_slice(&header.encode());
                entries.extend_from_slice(&header.entry().encode());
                out = rest;
            }
        });
        Ok(())
    })?;
    Ok((joined, PyBytes::new(py, &entries)))
}

/// Walk consecutive records: the entries of the good ones, the bytes that these take, why it stopped.
#[pyfunction]
#[pyo3(signature = (data, segment, offset, *, deep))]
fn scan<'py>(
    py: Python<'py>,
    data: Buffer<'py>,
    segment: u32,
    offset: u64,
    deep: bool,
) -> (Bound<'py, PyBytes>, usize, &'static str) {
    let data = data.as_slice();
    let (entries, consumed, stop) = run(py, data.len(), || record::scan(data, segment, offset, deep));
    (PyBytes::new(py, &entries), consumed, stop.name())
}

/// The first position >= `start` in `data` of a header valid in every way, or -1.
#[pyfunction]
fn find_header(py: Python<'_>, data: Buffer<'_>, segment: u32, offset: u64, start: usize) -> isize {
    let data = data.as_slice();
    index_or_minus_one(run(py, data.len(), || record::find_header(data, segment, offset, start)))
}

fn expect_entries(entries: &[u8]) -> PyResult<()> {
    if entries.len().is_multiple_of(record::ENTRY) {
        Ok(())
    } else {
        Err(invalid(format!("entries are 46 bytes each, got {} bytes", entries.len())))
    }
}

/// Check the records that `entries` name: (index of the entry, what is wrong) for each bad one.
#[pyfunction]
fn check_payloads(
    py: Python<'_>,
    data: Buffer<'_>,
    entries: Buffer<'_>,
    base_offset: u64,
) -> PyResult<Vec<(usize, &'static str)>> {
    let (data, entries) = (data.as_slice(), entries.as_slice());
    expect_entries(entries)?;
    Ok(run(py, data.len().saturating_add(entries.len()), || {
        entries
            .chunks_exact(record::ENTRY)
            .enumerate()
            .filter_map(|(index, entry)| {
                Some((index, record::check(data, &Entry::read(entry), base_offset)?))
            })
            .collect()
    }))
}

type Columns<'py> = (
    Bound<'py, PyList>,
    Bound<'py, PyList>,
    Bound<'py, PyList>,
    Bound<'py, PyList>,
    Bound<'py, PyList>,
    Bound<'py, PyList>,
);

/// Kinds, flags, offsets, stored lengths, plain lengths and hashes of index entries, a list each.
#[pyfunction]
fn entry_columns<'py>(py: Python<'py>, entries: Buffer<'py>) -> PyResult<Columns<'py>> {
    let bytes = entries.as_slice();
    expect_entries(bytes)?;
    let entries: Vec<Entry> = bytes.chunks_exact(record::ENTRY).map(Entry::read).collect();
    let column = |of: fn(&Entry) -> u32| PyList::new(py, entries.iter().map(of));
    Ok((
        column(|entry| entry.kind.into())?,
        column(|entry| entry.flags.into())?,
        column(|entry| entry.offset)?,
        column(|entry| entry.stored)?,
        column(|entry| entry.plain)?,
        PyList::new(py, entries.iter().map(|entry| PyBytes::new(py, &entry.hash)))?,
    ))
}

#[pymodule]
mod _native {
    #[pymodule_export]
    use super::{
        BlobHasher, Cutter, blake3, blake3_list, blake3_many, check_payloads, compressible, crc32c,
        entry_columns, find_header, frame, frame_joined, leaf_cvs, outboard, parent_cv, scan, verify_groups,
        verify_many,
    };

    #[pymodule_export]
    use super::stream::{StreamDecoder, StreamEncoder};

    #[pymodule_export]
    const BLOCK_BYTES: usize = super::tree::GROUP;
    #[pymodule_export]
    const HEADER_BYTES: usize = super::record::HEADER;
    #[pymodule_export]
    const ENTRY_BYTES: usize = super::record::ENTRY;
    #[pymodule_export]
    const MAX_PAYLOAD_BYTES: usize = super::record::MAX_PAYLOAD;
}
