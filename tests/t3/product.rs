//! The product on the cluster of this test binary: images and charts, installed by the first test that asks.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use yolo_testkit::cluster::{LocalCluster, Tier};
use yolo_testkit::demo::install::{self, Release};
use yolo_testkit::demo::site::Site;

/// What every test of the whole product needs.
pub struct Product {
    /// The cluster with the operator in it.
    pub cluster: &'static LocalCluster,
    /// The same as the demo's steps want it.
    pub site: Arc<Site>,
    /// Root of the repository.
    pub repository: PathBuf,
    /// Folder of models and pictures.
    pub cache: PathBuf,
}

impl Product {
    /// Folder of the real pages.
    pub fn pages(&self) -> PathBuf {
        self.cache.join("pages/jpeg")
    }

    /// Folder of small copies of the pages, for engines that do not look at them.
    pub fn thumbnails(&self) -> PathBuf {
        self.cache.join("pages/thumbnails")
    }

    /// The model that the server image carries as `/models/page-layout-320.onnx`.
    pub fn model(&self) -> PathBuf {
        self.cache.join("models/page-layout-320.onnx")
    }
}

/// The installed product; nothing where a cluster cannot run (then `SKIPPED` is printed).
pub fn product() -> Option<&'static Product> {
    static PRODUCT: OnceLock<Product> = OnceLock::new();
    let cluster = LocalCluster::shared(Tier::T3)?;
    Some(PRODUCT.get_or_init(|| install(cluster)))
}

fn install(cluster: &'static LocalCluster) -> Product {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).to_owned();
    let release = Release::local(repository.clone());
    let site = Arc::new(Site::local(cluster.instance().name()).unwrap());
    install::images(&site, &release).expect("make image has been run");
    install::namespaces(&site).unwrap();
    install::operator(&site, &release).unwrap();
    let cache = std::env::var_os("YOLO_CACHE").expect("YOLO_CACHE is set by make");
    Product { cluster, site, repository, cache: cache.into() }
}
