//! A file that is written into the memory for bodies, and is given out with what it holds of it.

use std::io::{self, Write};
use std::sync::Arc;

use tokio::sync::OwnedSemaphorePermit;

use super::body::BodyMemory;
use super::error::ApiError;
use super::unread::HeldAnswer;

/// Room that a file begins with.
const BYTES_MIN: usize = 8 << 10;

/// The file, as far as it is written.
#[derive(Debug)]
pub(super) struct HeldFile {
    bytes: Vec<u8>,
    memory: BodyMemory,
    held: Option<OwnedSemaphorePermit>,
    refused: Option<ApiError>,
}

impl HeldFile {
    /// Nothing yet.
    pub(super) const fn new(memory: BodyMemory) -> Self {
        Self { bytes: Vec::new(), memory, held: None, refused: None }
    }

    /// Why it could not grow: 429, or 413 if it never could.
    pub(super) fn refused(self) -> Option<ApiError> {
        self.refused
    }

    /// The whole file, and what it holds.
    pub(super) fn finished(mut self) -> (Vec<u8>, HeldAnswer) {
        self.bytes.shrink_to_fit();
        let kib = self.bytes.len().div_ceil(1 << 10);
        let held = self.held.and_then(|mut held| held.split(kib));
        (self.bytes, HeldAnswer(held.map(Arc::new)))
    }

    fn make_room(&mut self, bytes: usize) -> Result<(), ApiError> {
        let needed = self.bytes.len() + bytes;
        let room = self.bytes.capacity();
        if needed > room {
            let room = needed.max(room + room / 2).max(BYTES_MIN);
            self.memory.hold(&mut self.held, room)?;
            self.bytes.reserve_exact(room - self.bytes.len());
        }
        Ok(())
    }
}

impl Write for HeldFile {
    fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
        if let Err(error) = self.make_room(piece.len()) {
            self.refused = Some(error);
            return Err(io::ErrorKind::OutOfMemory.into());
        }
        self.bytes.extend_from_slice(piece);
        Ok(piece.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::BodyLimits;

    #[test]
    fn a_file_holds_what_it_takes_and_fails_where_there_is_no_more() {
        let memory = BodyMemory::new(BodyLimits { bodies_bytes_max: 100 << 10, ..BodyLimits::DEFAULT });
        let is_free = |kib: usize| memory.hold(&mut None, kib << 10).is_ok();
        let mut file = HeldFile::new(memory.clone());
        for _ in 0..30 {
            file.write_all(&[7; 1_000]).unwrap();
        }
        assert!(!is_free(70), "room to grow");
        let (bytes, held) = file.finished();
        assert_eq!(bytes, vec![7; 30_000]);
        assert!(is_free(70) && !is_free(71), "30 KB of 100 KiB");
        let mut other = HeldFile::new(memory.clone());
        assert!(other.write_all(&vec![0; 80_000]).is_err());
        assert!(other.refused().unwrap().code.retryable());
        drop(held);
        assert!(is_free(100));
    }
}
