//! The reference pages: pictures, what `make reference` found on them, and an engine's answers.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use yolo_server::engine::ort::{Options, load};
use yolo_server::engine::{Engine, EngineInput, LoadedModel, Memory, Pixels};
use yolo_vision::{DecodeLimits, Detection, Letterbox, Parameters, Picture, decode, letterbox_into, postprocess};

#[derive(Deserialize)]
pub struct Page {
    pub size: [u32; 2],
    pub detections: Vec<Expected>,
}

#[derive(Deserialize)]
pub struct Expected {
    pub class: u32,
    pub confidence: f32,
    #[serde(rename = "box")]
    pub bounds: [f32; 4],
}

/// Folder of the pages, then file name.
type Reference = BTreeMap<String, BTreeMap<String, Page>>;

fn cache() -> PathBuf {
    let folder = |variable: &str| std::env::var_os(variable).map(PathBuf::from);
    folder("YOLO_CACHE")
        .or_else(|| folder("XDG_CACHE_HOME").map(|path| path.join("yolo-operator")))
        .or_else(|| folder("HOME").map(|path| path.join(".cache/yolo-operator")))
        .expect("a home directory")
}

fn read(path: &Path) -> Vec<u8> {
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}; make reference writes it", path.display()))
}

pub fn reference() -> Reference {
    serde_json::from_slice(&read(&cache().join("reference/pages-640.json"))).expect("as make reference writes it")
}

/// The page-layout model for pictures of `side_px` squared, on one core.
pub fn page_options(side_px: u32) -> Options {
    Options::new(cache().join(format!("models/page-layout-{side_px}.onnx")))
}

pub fn opened(options: &Options) -> LoadedModel {
    load(options).unwrap_or_else(|error| panic!("{error}; make test-unit fetches the model and names the library"))
}

pub fn page(folder: &str, name: &str) -> Picture {
    let bytes = read(&cache().join("pages").join(folder).join(name));
    decode(&bytes, &DecodeLimits::default()).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// As the server hands it to the model's engine.
pub fn prepared(picture: &Picture, model: &LoadedModel) -> (EngineInput, Letterbox) {
    let target = model.info.size();
    let letterbox = Letterbox::plan(picture.size(), target).expect("pages are not empty");
    let pixels = if model.takes(picture.size(), target) {
        Pixels::Picture(picture.clone(), letterbox)
    } else {
        let mut levels = vec![0; letterbox.output_len()];
        letterbox_into(picture, &letterbox, &mut levels).expect("planned for this page");
        levels.into()
    };
    (EngineInput { pixels, size: target, content: [0; 32] }, letterbox)
}

/// Runs pictures as one batch.
pub fn detections(engine: &mut dyn Engine, model: &LoadedModel, pictures: &[Picture]) -> Vec<Vec<Detection>> {
    let prepared = pictures.iter().map(|picture| prepared(picture, model));
    let (inputs, letterboxes): (Vec<_>, Vec<_>) = prepared.unzip();
    let outputs = engine.run(&inputs.iter().collect::<Vec<_>>(), Memory::Keep).expect("the engine runs");
    let found = |(index, letterbox): (usize, &Letterbox)| {
        let outputs = outputs.image(index).expect("an output an image");
        postprocess(&outputs, &model.info, letterbox, &Parameters::default()).expect("the model's layout")
    };
    letterboxes.iter().enumerate().map(found).collect()
}
