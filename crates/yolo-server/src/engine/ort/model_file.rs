//! The model's file: its digest, and proof that sessions opened later are of the same bytes.

use std::fs::{self, File, Metadata};
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ort::session::Session;
use ort::session::builder::SessionBuilder;

use crate::engine::{EngineError, LoadError};
use crate::sha256::Sha256;

/// A file, its digest, and how it looked before that was taken.
#[derive(Debug, Clone)]
pub(super) struct ModelFile {
    path: PathBuf,
    seen: Seen,
    pub(super) sha256: String,
}

/// What changes with a file's bytes: inode, length, seconds and nanoseconds of the last write.
type Seen = (u64, u64, i64, i64);

fn seen(file: &Metadata) -> Seen {
    (file.ino(), file.len(), file.mtime(), file.mtime_nsec())
}

impl ModelFile {
    /// Reads the file.
    ///
    /// # Errors
    /// As [`digest`].
    pub(super) fn read(path: &Path) -> Result<Self, LoadError> {
        let file = fs::metadata(path).map_err(|error| missing(path, &error))?;
        Ok(Self { path: path.to_owned(), seen: seen(&file), sha256: digest(path)? })
    }

    /// Opens a session.
    pub(super) fn open(&self, mut builder: SessionBuilder) -> ort::Result<Session> {
        builder.commit_from_file(&self.path)
    }

    /// To be asked after [`Self::open`]: a session of a file that was replaced would answer in the name of the other.
    ///
    /// # Errors
    /// [`EngineError`] if the file holds other bytes now.
    pub(super) fn check(&self) -> Result<(), EngineError> {
        match fs::metadata(&self.path) {
            Ok(file) if seen(&file) == self.seen => Ok(()),
            // Touched, or on a file system that numbers its files anew.
            Ok(_) if digest(&self.path).is_ok_and(|sha256| sha256 == self.sha256) => Ok(()),
            _ => Err(EngineError(format!("the model file {} was replaced: reload it", self.path.display()))),
        }
    }
}

/// SHA-256 of the file: 64 hexadecimal digits, lower case.
///
/// # Errors
/// [`LoadError::Missing`] if it cannot be read, [`LoadError::Truncated`] if it is empty.
pub fn digest(path: &Path) -> Result<String, LoadError> {
    let missing = |error: std::io::Error| missing(path, &error);
    let mut reader = File::open(path).map_err(missing)?;
    let mut sha256 = Sha256::new();
    let mut buffer = vec![0; 64 << 10];
    let mut bytes = 0;
    loop {
        let read = reader.read(&mut buffer).map_err(missing)?;
        let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
        sha256.update(chunk);
        bytes += read;
    }
    if bytes == 0 {
        let file = path.display().to_string();
        return Err(LoadError::Truncated { file, detail: "the file is empty".to_owned() });
    }
    Ok(sha256.hex())
}

fn missing(path: &Path, error: &std::io::Error) -> LoadError {
    LoadError::Missing { file: path.display().to_string(), detail: error.to_string() }
}
