//! The file under way: `<model>.part` beside the model, which a later try or a later process goes on with.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::sha256::Sha256;

/// A file under way. It gets the model's name by [`Part::finish`] alone.
pub struct Part {
    file: File,
    path: PathBuf,
    model: PathBuf,
    len: u64,
    sha256: Sha256,
}

impl Part {
    /// Opens what an earlier process left for `model`, or a new file.
    ///
    /// # Errors
    /// The directory or the file cannot be read or written.
    pub fn open(model: &Path) -> io::Result<Self> {
        let mut name = OsString::from(model);
        name.push(".part");
        let path = PathBuf::from(name);
        // A finished model is checked as any other bytes are: nothing is trusted for its name.
        if model.exists() && !path.exists() {
            fs::rename(model, &path)?;
        }
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(&path)?;
        let mut sha256 = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        let mut left = file.metadata()?.len();
        let mut len = 0;
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let read = file.read(buffer.get_mut(..most).unwrap_or_default())?;
            let Some(chunk) = buffer.get(..read).filter(|chunk| !chunk.is_empty()) else { break };
            sha256.update(chunk);
            (len, left) = (len + read as u64, left - read as u64);
        }
        Ok(Self { file, path, model: model.to_owned(), len, sha256 })
    }

    /// Bytes so far.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// SHA-256 of the bytes so far, 64 hexadecimal digits.
    pub fn sha256(&self) -> String {
        self.sha256.clone().hex()
    }

    /// Adds what follows.
    ///
    /// # Errors
    /// The disk is full, say.
    pub fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)?;
        self.sha256.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    /// Throws everything away.
    ///
    /// # Errors
    /// The file cannot be cut.
    pub fn clear(&mut self) -> io::Result<()> {
        self.file.set_len(0)?;
        self.file.rewind()?;
        (self.len, self.sha256) = (0, Sha256::new());
        Ok(())
    }

    /// Gives the file its name, in one step and for good.
    ///
    /// # Errors
    /// The disk refuses the bytes at last, or the name.
    pub fn finish(self) -> io::Result<()> {
        // Before the name: after a crash of the node the name must not stand for half a file.
        self.file.sync_all()?;
        fs::rename(&self.path, &self.model)
    }

    /// Removes the file.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_process_goes_on_where_the_first_one_ended() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("a.onnx");
        Part::open(&model).unwrap().append(b"hello ").unwrap();
        assert!(!model.exists(), "half a model has no name");
        let mut part = Part::open(&model).unwrap();
        assert_eq!(part.len(), 6);
        part.append(b"world").unwrap();
        assert_eq!(part.sha256(), "b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9");
        part.finish().unwrap();
        assert_eq!(fs::read(&model).unwrap(), b"hello world");
        let again = Part::open(&model).unwrap();
        assert_eq!((again.len(), model.exists()), (11, false), "a finished model is checked again");
    }

    #[test]
    fn cleared_file_starts_over() {
        let folder = tempfile::tempdir().unwrap();
        let model = folder.path().join("a.onnx");
        let mut part = Part::open(&model).unwrap();
        part.append(b"old").unwrap();
        part.clear().unwrap();
        part.append(b"hi").unwrap();
        assert_eq!(part.len(), 2);
        part.finish().unwrap();
        assert_eq!(fs::read(&model).unwrap(), b"hi");
    }
}
