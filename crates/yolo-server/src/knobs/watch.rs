//! Follows the knobs file of a mounted ConfigMap.
//!
//! Reads: the directory's change notices and, each [`limits::KNOBS_POLL`], the file itself (a notice may be lost).
//! The kubelet replaces a ConfigMap by renaming the link `..data`, so the *directory* is watched: a watch on the file
//! would follow the old inode for ever.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecursiveMode, Watcher};
use tokio::sync::Notify;

use crate::knobs::KNOBS_FILE;
use crate::limits;

/// Calls `offer` with the file's content whenever it differs from the content before, `last` at first, until dropped.
///
/// A document that could not be read whole is offered again as soon as it changes once more, so a torn read heals.
/// Nothing is offered while the file is absent.
pub async fn watch<F: Future<Output = ()>>(
    directory: PathBuf,
    mut last: Option<Vec<u8>>,
    mut offer: impl FnMut(Vec<u8>) -> F,
) {
    let changed = Arc::new(Notify::new());
    let notices = start_notices(&directory, Arc::clone(&changed));
    if let Err(error) = &notices {
        tracing::warn!(directory = %directory.display(), %error, "Knobs directory is only polled.");
    }
    loop {
        match read(&directory) {
            Ok(document) if last.as_ref() != Some(&document) => {
                offer(document.clone()).await;
                last = Some(document);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::warn!(directory = %directory.display(), %error, "Knobs file cannot be read."),
        }
        // Either is enough: a lost notice costs one poll interval.
        let _ = tokio::time::timeout(limits::KNOBS_POLL, changed.notified()).await;
    }
}

/// The file's content, at most one byte more than is accepted, so that a longer one is seen as too long.
///
/// # Errors
/// Any error of opening or reading the file.
pub fn read(directory: &Path) -> io::Result<Vec<u8>> {
    let mut document = Vec::new();
    File::open(directory.join(KNOBS_FILE))?.take(limits::KNOBS_BYTES_MAX + 1).read_to_end(&mut document)?;
    Ok(document)
}

fn start_notices(directory: &Path, changed: Arc<Notify>) -> notify::Result<notify::RecommendedWatcher> {
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        // Our own reading is an access too: to react to it would read for ever.
        let read_only = event.is_ok_and(|event| {
            event.kind.is_access() && event.kind != EventKind::Access(AccessKind::Close(AccessMode::Write))
        });
        if !read_only {
            changed.notify_one();
        }
    })?;
    watcher.watch(directory, RecursiveMode::NonRecursive)?;
    Ok(watcher)
}
