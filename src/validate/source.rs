//! `spec.model`: which file the server loads, and how it comes into the container.

use yolo_api::v1alpha1::model::Model as SpecModel;
use yolo_api::v1alpha1::validate::FieldError;

use super::Invalid;
use crate::build::MODEL_DIRECTORY;

/// The model of a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// The file's path in the container.
    pub path: String,
    /// How it comes there.
    pub file: ModelFile,
    /// Its digest, if one is demanded.
    pub sha256: Option<String>,
    /// Side of the square input; absent: the model's own.
    pub image_side_px: Option<u32>,
    /// Default confidence threshold, as text: handed through.
    pub confidence: String,
    /// Default `IoU` threshold, as text: handed through.
    pub iou: String,
    /// Most detections an image.
    pub detections_max: u32,
}

/// How a model's file comes into the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ModelFile {
    /// The image carries it.
    Image,
    /// A claim of this name, mounted at [`MODEL_DIRECTORY`].
    Claim(String),
    /// An init container fetches it to [`MODEL_DIRECTORY`].
    Fetched {
        /// Where from.
        uri: String,
        /// The Secret whose keys are the environment of the init container.
        credentials: Option<String>,
    },
}

impl Model {
    /// The claim that holds the file.
    pub fn claim(&self) -> Option<&str> {
        match &self.file {
            ModelFile::Claim(claim) => Some(claim),
            ModelFile::Image | ModelFile::Fetched { .. } => None,
        }
    }
}

/// Reads `spec.model`.
pub(super) fn model(spec: &SpecModel) -> Result<Model, Invalid> {
    // Texts go to the server as they are; parsing them here refuses what the server would refuse at its start.
    spec.confidence.number("spec.model.confidence")?;
    spec.iou.number("spec.model.iou")?;
    let source = &spec.source;
    let (path, file) = match (&source.image_path, &source.persistent_volume_claim, &source.uri) {
        (Some(path), _, _) => (path.clone(), ModelFile::Image),
        (None, Some(file), _) => {
            (format!("{MODEL_DIRECTORY}/{}", file.path), ModelFile::Claim(file.claim_name.clone()))
        }
        (None, None, uri) => {
            let uri = checked(uri.clone().unwrap_or_default(), spec.sha256.is_some())?;
            let path = format!("{MODEL_DIRECTORY}/{}", file_name(&uri));
            (path, ModelFile::Fetched { uri, credentials: spec.credentials_secret_name.clone() })
        }
    };
    Ok(Model {
        path,
        file,
        sha256: spec.sha256.clone(),
        image_side_px: spec.image_size.and_then(|side| u32::try_from(side).ok()),
        confidence: spec.confidence.to_string(),
        iou: spec.iou.to_string(),
        detections_max: u32::try_from(spec.max_detections).unwrap_or(0),
    })
}

/// The rules of the schema once more: what is fetched has to be of a known kind and of a known content.
fn checked(uri: String, digest_given: bool) -> Result<String, FieldError> {
    let path = "spec.model.source.uri";
    let schemes = ["s3://", "gs://", "az://", "https://", "oci://"];
    if !schemes.iter().any(|scheme| uri.starts_with(scheme)) {
        return Err(FieldError { path, value: uri, expected: "an address such as \"s3://models/yolo11n.onnx\"" });
    }
    let pinned = uri.starts_with("oci://") && uri.contains("@sha256:");
    if !digest_given && !pinned {
        let expected = "of a known content: set spec.model.sha256, or pin an oci uri with @sha256:…";
        return Err(FieldError { path, value: uri, expected });
    }
    Ok(uri)
}

/// What the file is called in the container, which is also the name that answers and metrics give the model.
fn file_name(uri: &str) -> String {
    let address = uri.split(['?', '#']).next().unwrap_or_default();
    let last = address.rsplit('/').next().unwrap_or_default();
    // An artifact's tag and digest are no part of its name.
    let name = if uri.starts_with("oci://") { last.split(['@', ':']).next().unwrap_or_default() } else { last };
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let stem = name.strip_suffix(".onnx").unwrap_or(name);
    let usable = !stem.is_empty() && !stem.starts_with('.') && stem.len() <= 128 && stem.chars().all(plain);
    format!("{}.onnx", if usable { stem } else { "model" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::validate::fixtures;

    fn with(model: &str) -> Result<Model, Invalid> {
        fixtures::checked(&format!("{{model: {{{model}}}}}")).map(|spec| spec.workload.model)
    }

    #[test]
    fn fetched_model_is_named_as_its_file() {
        for (uri, name) in [
            ("s3://models/detect/yolo11n.onnx", "yolo11n.onnx"),
            ("https://example.com/a/b.onnx?X-Amz-Signature=c/d", "b.onnx"),
            ("https://example.com/models/latest", "latest.onnx"),
            ("oci://registry.example.com:5000/models/yolo11n:1.2", "yolo11n.onnx"),
            ("gs://models/%2e%2e", "model.onnx"),
            ("az://models/..", "model.onnx"),
        ] {
            assert_eq!(file_name(uri), name, "{uri}");
        }
    }

    #[test]
    fn what_is_fetched_has_a_known_content() {
        let digest = "0123456789abcdef".repeat(4);
        let open = with("source: {uri: 's3://models/a.onnx'}").unwrap_err();
        assert!(open.to_string().contains("spec.model.sha256"), "{open}");
        let tag = with("source: {uri: 'https://example.com/a@sha256:0'}").unwrap_err();
        assert!(tag.to_string().contains("spec.model.sha256"), "only a registry keeps content by digest: {tag}");
        let other = with(&format!("source: {{uri: 'file:///etc/passwd'}}, sha256: {digest}")).unwrap_err();
        assert!(other.to_string().contains("s3://models"), "{other}");
        let pinned = with(&format!("source: {{uri: 'oci://r.example.com/a@sha256:{digest}'}}")).unwrap();
        assert_eq!(pinned.path, format!("{MODEL_DIRECTORY}/a.onnx"));
        let given = with(&format!("source: {{uri: 's3://m/a.onnx'}}, sha256: {digest}, credentialsSecretName: s"));
        let credentials = Some("s".to_owned());
        assert_eq!(given.unwrap().file, ModelFile::Fetched { uri: "s3://m/a.onnx".to_owned(), credentials });
    }
}
