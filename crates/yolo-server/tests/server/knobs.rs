//! The knobs file as a mounted `ConfigMap` changes: swapped whole, torn, broken.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::support::{emulated, eventually, metric, start};

/// Writes a new version as the kubelet does: a new folder, then the link `..data` renamed onto it.
fn swap(directory: &Path, version: usize, document: &str) {
    let folder = format!("..version_{version}");
    fs::create_dir(directory.join(&folder)).unwrap();
    fs::write(directory.join(&folder).join("knobs.json"), document).unwrap();
    let temporary = directory.join("..data_tmp");
    symlink(&folder, &temporary).unwrap();
    fs::rename(&temporary, directory.join("..data")).unwrap();
    if version == 0 {
        symlink("..data/knobs.json", directory.join("knobs.json")).unwrap();
    } else {
        fs::remove_dir_all(directory.join(format!("..version_{}", version - 1))).unwrap();
    }
}

#[tokio::test]
async fn a_swapped_config_map_is_applied_without_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    swap(directory.path(), 0, r#"{"generation":5,"maxBatchSize":4,"cacheBytes":1048576,"deadlineMillis":700}"#);
    let mut config = emulated(0, 1);
    config.knobs_dir = Some(directory.path().to_owned());
    let server = start(config).await;
    assert_eq!(server.app().knobs().generation, 5, "known before the first request");
    assert!((metric(&server, "yolo_deadline_seconds").await - 0.7).abs() < 1e-9);
    for version in 1..50 {
        swap(directory.path(), version, &format!(r#"{{"generation":{},"cacheBytes":{version}}}"#, 5 + version));
    }
    eventually("last generation", async || (metric(&server, "yolo_knobs_generation").await - 54.0).abs() < 0.5).await;
    assert!((metric(&server, "yolo_cache_capacity_bytes").await - 49.0).abs() < 1e-9);
    assert_eq!(server.app().knobs().batch_max, 4, "a missing field keeps its value");
    assert!(metric(&server, "yolo_knobs_rejected_total").await.abs() < 1e-9, "nothing torn was read");
    server.stop().await;
}

#[tokio::test]
async fn a_torn_or_broken_document_changes_nothing_and_heals() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("knobs.json");
    let whole = r#"{"generation":2,"maxBatchSize":2,"cacheBytes":4096,"colour":"red"}"#;
    fs::write(&file, r#"{"generation":1,"maxBatchSize":3}"#).unwrap();
    let mut config = emulated(0, 1);
    config.knobs_dir = Some(directory.path().to_owned());
    let server = start(config).await;
    let good = server.app().knobs();
    assert_eq!((good.generation, good.batch_max), (1, 3));
    for end in 0..whole.len() {
        server.app().offer_knobs(&whole.as_bytes()[..end]);
        assert_eq!(server.app().knobs(), good, "{}", &whole[..end]);
    }
    fs::write(&file, r#"{"generation":9,"maxBatchSize":99}"#).unwrap();
    let refused = whole.len() + 1;
    let refused = f64::from(u32::try_from(refused).unwrap());
    eventually("refusal counted", async || metric(&server, "yolo_knobs_rejected_total").await >= refused - 0.5).await;
    assert_eq!(server.app().knobs(), good);
    fs::write(&file, whole).unwrap();
    eventually("healed", async || server.app().knobs().generation == 2).await;
    assert_eq!(server.app().knobs().batch_max, 2);
    assert!((metric(&server, "yolo_knobs_unknown_fields_total").await - 1.0).abs() < 1e-9);
    server.stop().await;
}

#[tokio::test]
async fn a_document_is_found_without_a_notice() {
    let parent = tempfile::tempdir().unwrap();
    // Of a folder that is not there yet, the system gives no notices.
    let directory = parent.path().join("later");
    let mut config = emulated(0, 1);
    config.knobs_dir = Some(directory.clone());
    let server = start(config).await;
    fs::create_dir(&directory).unwrap();
    for generation in [3, 4] {
        fs::write(directory.join("knobs.json"), format!(r#"{{"generation":{generation}}}"#)).unwrap();
        eventually("it is read", async || server.app().knobs().generation == generation).await;
    }
    server.stop().await;
}
