//! Models as artifacts of an OCI registry (`oras push`), through the crate `oci-client`.

use std::collections::BTreeMap;
use std::path::Path;

use base64::Engine;
use futures::{StreamExt, TryStreamExt};
use oci_client::client::{BlobResponse, Certificate, CertificateEncoding, ClientConfig};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use oci_client::manifest::{OciDescriptor, OciManifest};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};
use serde::Deserialize;

use super::source::{Failure, Transfer, cause};
use super::{credential, trusted};
use crate::limits;

/// The annotation in which `oras` keeps a file's name.
const TITLE: &str = "org.opencontainers.image.title";

/// One artifact of a registry.
pub struct Registry {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
}

impl Registry {
    /// A client for `reference`; connects to nothing.
    ///
    /// # Errors
    /// [`Failure::Refused`] if a setting of the environment has the wrong form.
    pub fn new(reference: Reference) -> Result<Self, Failure> {
        let der = |data| Certificate { encoding: CertificateEncoding::Der, data };
        let config = ClientConfig {
            extra_root_certificates: trusted()?.into_iter().map(der).collect(),
            connect_timeout: Some(limits::FETCH_CONNECT_MAX),
            ..ClientConfig::default()
        };
        let client = Client::try_from(config).map_err(|error| Failure::Refused(cause(&error)))?;
        let auth = auth(reference.registry())?;
        Ok(Self { client, reference, auth })
    }

    /// See [`super::source::Source::open`].
    pub async fn open(&self, offset: u64) -> Result<Transfer, Failure> {
        // Each time: the registry's token may have expired since.
        let (manifest, _) = self.client.pull_manifest(&self.reference, &self.auth).await.map_err(|e| failure(&e))?;
        let layer = model_layer(manifest)?;
        let (size, sha256) = (u64::try_from(layer.size).unwrap_or(0), layer.digest.strip_prefix("sha256:"));
        let Some(sha256) = sha256.map(str::to_owned) else {
            return Err(Failure::Unsupported(format!("its layer's digest {} is no SHA-256", layer.digest)));
        };
        let bytes = if offset < size {
            let opened = self.client.pull_blob_stream_partial(&self.reference, &layer, offset, None).await;
            match opened.map_err(|error| failure(&error))? {
                BlobResponse::Partial(stream) => stream.stream,
                BlobResponse::Full(stream) if offset == 0 => stream.stream,
                BlobResponse::Full(_) => return Err(Failure::Stale),
            }
        } else {
            futures::stream::empty().boxed()
        };
        let bytes = bytes.map_err(|error| Failure::Interrupted(cause(&error))).boxed();
        Ok(Transfer { size, sha256: Some(sha256), bytes })
    }
}

/// The one layer that is the model: the only one, or the only `.onnx` file.
fn model_layer(manifest: OciManifest) -> Result<OciDescriptor, Failure> {
    let OciManifest::Image(manifest) = manifest else {
        let advice = "it is an index of several artifacts; name one of them by its digest";
        return Err(Failure::Unsupported(advice.to_owned()));
    };
    let titled = |layer: &OciDescriptor| {
        let title = layer.annotations.as_ref().and_then(|all| all.get(TITLE));
        title.is_some_and(|title| Path::new(title).extension().is_some_and(|kind| kind.eq_ignore_ascii_case("onnx")))
    };
    let mut layers = manifest.layers;
    if layers.len() > 1 {
        layers.retain(titled);
    }
    match <[OciDescriptor; 1]>::try_from(layers) {
        Ok([layer]) if layer.media_type.contains("tar") => {
            let what = format!("its layer is an archive ({})", layer.media_type);
            Err(Failure::Unsupported(format!("{what}; push the ONNX file itself, for example with oras")))
        }
        Ok([layer]) => Ok(layer),
        Err(layers) => {
            Err(Failure::Unsupported(format!("it has {} layers with an .onnx file; one is needed", layers.len())))
        }
    }
}

fn failure(error: &OciDistributionError) -> Failure {
    match error {
        OciDistributionError::UnauthorizedError { .. } => Failure::of_status(401),
        OciDistributionError::ServerError { code, .. } => Failure::of_status(*code),
        OciDistributionError::RegistryError { envelope, .. } => {
            match envelope.errors.first().map(|first| &first.code) {
                Some(
                    OciErrorCode::ManifestUnknown
                    | OciErrorCode::NameUnknown
                    | OciErrorCode::BlobUnknown
                    | OciErrorCode::NotFound,
                ) => Failure::Missing("the registry does not know it".to_owned()),
                Some(OciErrorCode::Unauthorized | OciErrorCode::Denied) => Failure::of_status(403),
                Some(OciErrorCode::Toomanyrequests) => Failure::of_status(429),
                _ => Failure::Refused(envelope.to_string()),
            }
        }
        OciDistributionError::RequestError(error) => Failure::Interrupted(cause(error)),
        OciDistributionError::IoError(error) => Failure::Interrupted(cause(error)),
        error => Failure::Refused(cause(error)),
    }
}

/// The Docker configuration of a `kubernetes.io/dockerconfigjson` Secret.
#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: BTreeMap<String, DockerAuth>,
}

/// `auth` is the base64 of `user:password`.
#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerAuth {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
}

/// `OCI_USERNAME` and `OCI_PASSWORD`, or what `OCI_DOCKER_CONFIG` holds for `registry`, or nothing.
fn auth(registry: &str) -> Result<RegistryAuth, Failure> {
    if let Some(user) = credential("OCI_USERNAME") {
        return Ok(RegistryAuth::Basic(user, credential("OCI_PASSWORD").unwrap_or_default()));
    }
    credential("OCI_DOCKER_CONFIG").map_or(Ok(RegistryAuth::Anonymous), |config| docker_auth(&config, registry))
}

fn docker_auth(config: &str, registry: &str) -> Result<RegistryAuth, Failure> {
    let unfit = |why: String| Failure::Refused(format!("the Docker configuration cannot be read: {why}"));
    let config: DockerConfig = serde_json::from_str(config).map_err(|error| unfit(error.to_string()))?;
    let host = |key: &str| key.trim_start_matches("https://").split('/').next() == Some(registry);
    let Some((_, entry)) = config.auths.into_iter().find(|(key, _)| host(key)) else {
        return Ok(RegistryAuth::Anonymous);
    };
    if let (Some(user), Some(password)) = (entry.username, entry.password) {
        return Ok(RegistryAuth::Basic(user, password));
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(entry.auth.unwrap_or_default());
    let pair = decoded.map_err(|error| unfit(error.to_string()))?;
    let pair = String::from_utf8(pair).map_err(|error| unfit(error.to_string()))?;
    let (user, password) = pair.split_once(':').ok_or_else(|| unfit("auth is not user:password".to_owned()))?;
    Ok(RegistryAuth::Basic(user.to_owned(), password.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_secret_opens_its_registry_and_no_other() {
        // base64 of `me:secret`
        let config = r#"{"auths": {"https://registry.example.com/v2/": {"auth": "bWU6c2VjcmV0"}}}"#;
        let basic = RegistryAuth::Basic("me".to_owned(), "secret".to_owned());
        assert_eq!(docker_auth(config, "registry.example.com").unwrap(), basic);
        assert_eq!(docker_auth(config, "other.example.com").unwrap(), RegistryAuth::Anonymous);
        assert!(docker_auth("{", "registry.example.com").is_err());
    }

    #[test]
    fn model_is_the_only_layer_or_the_only_onnx_file() {
        let layer = |title: &str| {
            format!(
                r#"{{"mediaType": "application/octet-stream", "digest": "sha256:00", "size": 1, "annotations": {{"{TITLE}": "{title}"}}}}"#
            )
        };
        let chosen = |titles: &[&str]| {
            let layers: Vec<_> = titles.iter().map(|title| layer(title)).collect();
            let config = layer("config");
            let text = format!(r#"{{"schemaVersion": 2, "config": {config}, "layers": [{}]}}"#, layers.join(","));
            let manifest = OciManifest::Image(serde_json::from_str(&text).unwrap());
            model_layer(manifest).map(|layer| layer.annotations.unwrap()[TITLE].clone())
        };
        assert_eq!(chosen(&["weights"]).unwrap(), "weights");
        assert_eq!(chosen(&["README.md", "a.onnx"]).unwrap(), "a.onnx");
        for unclear in [&["a.onnx", "b.onnx"][..], &["a.md", "b.md"], &[]] {
            assert!(matches!(chosen(unclear), Err(Failure::Unsupported(_))), "{unclear:?}");
        }
    }
}
