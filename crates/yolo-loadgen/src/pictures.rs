//! Request bodies: JPEG files of one folder, sent again and again, or each time as other bytes of the same pixels.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

/// More files than this in one folder are refused: they are all held in memory.
const FILES_MAX: usize = 1_000;
/// The server's own limit for a body; a bigger file would only ever be refused.
const FILE_BYTES_MAX: u64 = 20 * 1024 * 1024;
/// Every JPEG file starts with it.
const START_OF_IMAGE: [u8; 2] = [0xFF, 0xD8];
/// Comment segment: marker, then the segment's length (2 for itself, 16 of payload).
const COMMENT_HEADER: [u8; 4] = [0xFF, 0xFE, 0x00, 0x12];

/// Whether a result cache can help.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// No two requests carry the same bytes: a comment segment with a number follows the JPEG's start marker,
    /// so that the hash differs while every decoder sees the same pixels.
    Distinct,
    /// The files as they are, in turn.
    Repeated,
}

/// Why a folder of pictures cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PicturesError {
    /// The folder or a file in it cannot be read.
    #[error("failed to read {}", path.display())]
    Read {
        /// What could not be read.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// There is no `*.jpg` or `*.jpeg` file in it.
    #[error("{} holds no *.jpg file", .0.display())]
    Empty(PathBuf),
    /// A file is not a JPEG, or too large.
    #[error("{} is not a JPEG file of at most {FILE_BYTES_MAX} bytes", .0.display())]
    NotJpeg(PathBuf),
    /// More files than the limit.
    #[error("{} holds more than {FILES_MAX} pictures", .0.display())]
    TooMany(PathBuf),
}

/// JPEG files in memory, in the order of their names; at least one.
#[derive(Debug)]
pub struct Pictures {
    files: Vec<Bytes>,
    /// Mixed into the comment, so that two runs in a row do not repeat each other's bytes.
    run: u64,
    /// Distinct bodies made. Counted here and not by the caller, whose numbers start again with each phase of a load: a
    /// result cache would then answer the second phase from the first.
    made: AtomicU64,
}

impl Pictures {
    /// Reads every `*.jpg` and `*.jpeg` of `folder`. `run` is a number that no other run uses (a start time will do).
    ///
    /// # Errors
    /// [`PicturesError`]: unreadable, empty, too many, or a file that is no JPEG.
    pub fn read(folder: &Path, run: u64) -> Result<Self, PicturesError> {
        let failed = |path: &Path| {
            let path = path.to_owned();
            move |source| PicturesError::Read { path, source }
        };
        let mut paths = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(failed(folder))? {
            let path = entry.map_err(failed(folder))?.path();
            if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("jpg") || e.eq_ignore_ascii_case("jpeg")) {
                paths.push(path);
            }
        }
        if paths.len() > FILES_MAX {
            return Err(PicturesError::TooMany(folder.to_owned()));
        }
        paths.sort();
        let mut files = Vec::with_capacity(paths.len());
        for path in paths {
            let length = std::fs::metadata(&path).map_err(failed(&path))?.len();
            if length > FILE_BYTES_MAX {
                return Err(PicturesError::NotJpeg(path));
            }
            let file = std::fs::read(&path).map_err(failed(&path))?;
            if !file.starts_with(&START_OF_IMAGE) {
                return Err(PicturesError::NotJpeg(path));
            }
            files.push(Bytes::from(file));
        }
        if files.is_empty() {
            return Err(PicturesError::Empty(folder.to_owned()));
        }
        Ok(Self { files, run, made: AtomicU64::new(0) })
    }

    /// The body of request number `index`: with it the files take turns.
    pub fn body(&self, mode: Mode, index: u64) -> Bytes {
        let count = u64::try_from(self.files.len()).unwrap_or(1).max(1);
        let turn = usize::try_from(index % count).unwrap_or(0);
        let file = self.files.get(turn).cloned().unwrap_or_default();
        match mode {
            Mode::Repeated => file,
            Mode::Distinct => with_comment(&file, self.run, self.made.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// Inserts a comment of 16 bytes, `run` and `number`, right after the start marker.
fn with_comment(file: &Bytes, run: u64, number: u64) -> Bytes {
    let rest = file.get(START_OF_IMAGE.len()..).unwrap_or_default();
    let mut body = Vec::with_capacity(file.len() + COMMENT_HEADER.len() + 16);
    body.extend_from_slice(&START_OF_IMAGE);
    body.extend_from_slice(&COMMENT_HEADER);
    body.extend_from_slice(&run.to_be_bytes());
    body.extend_from_slice(&number.to_be_bytes());
    body.extend_from_slice(rest);
    Bytes::from(body)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A whole 8x8 grey JPEG is not needed here: only the frame of markers is looked at.
    const FILE: &[u8] = &[0xFF, 0xD8, 0xFF, 0xE0, 0x00, 0x04, 1, 2, 0xFF, 0xD9];

    fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    #[test]
    fn distinct_bodies_differ_only_by_one_comment_segment() {
        let folder = folder(&[("a.jpg", FILE)]);
        let pictures = Pictures::read(folder.path(), 9).unwrap();
        // The same request number twice: two phases of a load both start at 0.
        let (first, second) = (pictures.body(Mode::Distinct, 0), pictures.body(Mode::Distinct, 0));
        assert_ne!(first, second);
        for body in [first, second] {
            assert_eq!(body[..2], FILE[..2]);
            let segment_end = 4 + usize::from(u16::from_be_bytes([body[4], body[5]]));
            assert_eq!(body[2..4], [0xFF, 0xFE]);
            assert_eq!(body[segment_end..], FILE[2..]);
        }
    }

    #[test]
    fn repeated_bodies_are_the_files_in_turn() {
        let second: &[u8] = &[0xFF, 0xD8, 0xFF, 0xD9];
        let folder = folder(&[("b.jpeg", second), ("a.jpg", FILE), ("c.txt", b"no")]);
        let pictures = Pictures::read(folder.path(), 0).unwrap();
        let bodies = [0, 1, 2].map(|index| pictures.body(Mode::Repeated, index));
        assert_eq!(bodies, [Bytes::from_static(FILE), Bytes::from_static(second), Bytes::from_static(FILE)]);
    }

    #[test]
    fn a_folder_without_pictures_and_a_file_that_is_none_are_refused() {
        assert!(matches!(Pictures::read(folder(&[]).path(), 0), Err(PicturesError::Empty(_))));
        let text = folder(&[("a.jpg", b"text")]);
        assert!(matches!(Pictures::read(text.path(), 0), Err(PicturesError::NotJpeg(_))));
    }
}
