//! The Python side of encoding and decoding BAO streams. What `lib.rs` says of buffers that change holds here too:
//! data is copied into the result first, and the copy is what is verified.

use std::mem::MaybeUninit;

use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};

use super::kernels::decode::{Decoder, Kind, Sink};
use super::kernels::encode::{Encoder, Failure, Output};
use super::kernels::walk;
use super::{Buffer, hash_array, invalid, run, slices, total};

fn check_boundaries(boundaries: &[u64]) -> PyResult<()> {
    if walk::are_boundaries(boundaries) { Ok(()) } else { Err(invalid("the boundaries of ranges must rise")) }
}

/// A `bytes` of `length` (but at least 2) that nobody has filled, and `length` of its memory. It is of no use to
/// Python until that is done.
fn unfilled<'py>(
    py: Python<'py>,
    length: usize,
) -> PyResult<(Bound<'py, PyBytes>, &'py mut [MaybeUninit<u8>])> {
    let size = ffi::Py_ssize_t::try_from(length.max(2)).map_err(|_| invalid("too many bytes at once"))?;
    // SAFETY: with a null pointer and more than a byte CPython makes a new, unshared `bytes` of that length, or sets
    // an error. Its memory stays where it is as long as the object lives, and the callers below keep the object
    // longer than the slice and show it to nobody else before.
    unsafe {
        let object = ffi::PyBytes_FromStringAndSize(std::ptr::null(), size);
        let object = Bound::from_owned_ptr_or_err(py, object)?.cast_into_unchecked::<PyBytes>();
        let memory = ffi::PyBytes_AsString(object.as_ptr()).cast::<MaybeUninit<u8>>();
        if length < 2 {
            memory.write_bytes(0, 2);
        }
        Ok((object, std::slice::from_raw_parts_mut(memory, length)))
    }
}

/// The first `length` bytes of an object whose memory is all initialised.
fn filled<'py>(object: Bound<'py, PyBytes>, length: usize) -> Bound<'py, PyBytes> {
    if object.as_bytes().len() == length {
        object
    } else {
        PyBytes::new(object.py(), &object.as_bytes()[..length])
    }
}

/// Runs of the blob as they were planned, filled one after the other.
struct Runs<'a> {
    outputs: Vec<Output<'a>>,
    current: usize,
    room: usize,
    nothing: [u8; 0],
}

impl Sink for Runs<'_> {
    fn copy(&mut self, _offset: u64, data: &[u8]) -> &[u8] {
        if data.is_empty() {
            return &self.nothing;
        }
        while self.room == 0 {
            self.current += 1;
            self.room = self.outputs[self.current].room();
        }
        self.room -= data.len();
        self.outputs[self.current].copy(data)
    }

    fn drop_last(&mut self, length: usize) {
        if length > 0 {
            self.room += length;
            self.outputs[self.current].drop_last(length);
        }
    }
}

/// Verifies a BAO stream as it arrives.
#[pyclass(module = "holdfast._native")]
pub struct StreamDecoder(Decoder);

#[pymethods]
impl StreamDecoder {
    #[new]
    fn new(root: &[u8], boundaries: Vec<u64>, keeps_pairs: bool) -> PyResult<Self> {
        check_boundaries(&boundaries)?;
        Ok(Self(Decoder::new(hash_array(root, "root")?, boundaries, keeps_pairs)))
    }

    fn feed<'py>(&mut self, py: Python<'py>, data: Buffer<'py>) -> PyResult<Bound<'py, PyList>> {
        let decoder = &mut self.0;
        let data = data.as_slice();
        let data = &data[decoder.feed_header(data)..];
        let planned = decoder.plan(data.len());
        let mut objects = Vec::with_capacity(planned.len());
        let mut outputs = Vec::with_capacity(planned.len());
        for &(offset, length) in &planned {
            let (object, memory) = unfilled(py, length)?;
            objects.push((offset, object));
            outputs.push(Output::new(memory));
        }
        let room = outputs.first().map_or(0, Output::room);
        let mut runs = Runs { outputs, current: 0, room, nothing: [] };
        run(py, data.len(), || decoder.feed(data, &mut runs));
        let lengths: Vec<usize> = runs.outputs.into_iter().map(Output::finish).collect();
        let done = objects.into_iter().zip(lengths).filter(|&(_, length)| length > 0);
        PyList::new(
            py,
            done.map(|((offset, object), length)| (offset, filled(object, length))).collect::<Vec<_>>(),
        )
    }

    fn wants(&self, limit: usize) -> usize {
        self.0.wants(limit)
    }

    fn take_pairs<'py>(&mut self, py: Python<'py>) -> Vec<(u64, Bound<'py, PyBytes>)> {
        self.0.take_pairs().into_iter().map(|(offset, run)| (offset, PyBytes::new(py, &run))).collect()
    }

    fn finish(&mut self) -> bool {
        self.0.finish().is_ok()
    }

    #[getter]
    fn failure(&self) -> Option<(&'static str, u64, u64)> {
        self.0.failure().map(|failure| {
            let (kind, detail) = match failure.kind {
                Kind::Size(size) => ("size", size),
                Kind::Parent => ("parent", 0),
                Kind::Leaf(offset) => ("leaf", offset),
                Kind::Trailing => ("trailing", 0),
                Kind::Truncated => ("truncated", 0),
            };
            (kind, failure.offset, detail)
        })
    }

    #[getter]
    fn size_bytes(&self) -> Option<u64> {
        self.0.size()
    }

    #[getter]
    fn is_size_proven(&self) -> bool {
        self.0.is_size_proven()
    }

    #[getter]
    fn position(&self) -> u64 {
        self.0.position()
    }
}

type Extents = Vec<(u64, u64)>;

/// Writes a BAO stream, verifying all that goes into it.
#[pyclass(module = "holdfast._native")]
pub struct StreamEncoder {
    kernel: Encoder,
    output: usize,
}

#[pymethods]
impl StreamEncoder {
    #[new]
    fn new(root: &[u8], size_bytes: u64, boundaries: Vec<u64>) -> PyResult<Self> {
        check_boundaries(&boundaries)?;
        if size_bytes > walk::MAX_SIZE {
            return Err(invalid(format!("no blob has {size_bytes} bytes")));
        }
        Ok(Self { kernel: Encoder::new(hash_array(root, "root")?, size_bytes, &boundaries), output: 0 })
    }

    fn plan(&mut self, limit: u64) -> (usize, Extents, Extents) {
        let plan = self.kernel.plan(limit);
        self.output = plan.output;
        (plan.output, plan.pairs.clone(), plan.data.clone())
    }

    fn encode<'py>(
        &mut self,
        py: Python<'py>,
        pairs: Vec<Buffer<'py>>,
        data: Vec<Buffer<'py>>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let (pairs, data) = (slices(&pairs), slices(&data));
        let length = std::mem::take(&mut self.output);
        let (object, memory) = unfilled(py, length)?;
        let mut output = Output::new(memory);
        let kernel = &mut self.kernel;
        let result = run(py, total(&data), || kernel.encode(&pairs, &data, &mut output));
        let what = match result {
            Ok(()) => return Ok(filled(object, output.finish())),
            Err(Failure::Mismatch) => return Err(invalid("not the pairs and the data that were planned")),
            Err(Failure::Pair(offset)) => ("outboard", offset),
            Err(Failure::Data(offset)) => ("data", offset),
        };
        Err(pyo3::exceptions::PyValueError::new_err((
            format!("the {} does not verify at {}", what.0, what.1),
            what.0,
            what.1,
        )))
    }
}
