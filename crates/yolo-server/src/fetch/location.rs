//! Where a model is, from the text of its uri.

use std::fmt;

use oci_client::Reference;
use url::Url;

/// Where a model is.
#[derive(Debug, Clone)]
pub struct Location {
    /// What to ask.
    pub place: Place,
    shown: String,
}

/// What to ask for a model.
#[derive(Debug, Clone)]
pub enum Place {
    /// An object: `s3`, `gs`, `az` or `https`.
    Url(Url),
    /// An artifact of an OCI registry.
    Registry(Reference),
}

impl Location {
    /// Reads `uri`.
    ///
    /// # Errors
    /// A sentence on what to write instead.
    pub fn parse(uri: &str) -> Result<Self, String> {
        if let Some(artifact) = uri.strip_prefix("oci://") {
            let reference: Reference = artifact.parse().map_err(|error| format!("no OCI reference: {error}"))?;
            return Ok(Self { place: Place::Registry(reference), shown: uri.to_owned() });
        }
        let url = Url::parse(uri).map_err(|error| error.to_string())?;
        if !matches!(url.scheme(), "s3" | "gs" | "az" | "https") {
            return Err("it has to start with s3://, gs://, az://, https:// or oci://".to_owned());
        }
        if url.host_str().is_none() || url.path().len() < 2 {
            return Err("it has to name a server or bucket and a file".to_owned());
        }
        if url.password().is_some() || !url.username().is_empty() && url.scheme() == "https" {
            return Err("credentials belong into the environment, not into the uri".to_owned());
        }
        // A query may be a signature: it opens the file to whoever reads it.
        let shown = uri.split(['?', '#']).next().unwrap_or_default().to_owned();
        Ok(Self { place: Place::Url(url), shown })
    }

    /// Whether the uri itself says which content it means.
    pub fn pinned(&self) -> bool {
        matches!(&self.place, Place::Registry(reference) if reference.digest().is_some())
    }
}

/// Without what must not be read in a log or a status.
impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.shown)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uri_is_shown_without_its_signature() {
        let signed = Location::parse("https://example.com/m/a.onnx?X-Amz-Signature=5ec2e7").unwrap();
        assert_eq!(signed.to_string(), "https://example.com/m/a.onnx");
        let Place::Url(url) = signed.place else { panic!("no registry") };
        assert_eq!(url.query(), Some("X-Amz-Signature=5ec2e7"), "and asked with it");
    }

    #[test]
    fn only_a_digest_pins() {
        let digest = "0123456789abcdef".repeat(4);
        for (uri, pinned) in [
            (format!("oci://registry.example.com:5000/models/a@sha256:{digest}"), true),
            ("oci://registry.example.com/models/a:1".to_owned(), false),
            (format!("s3://models/a@sha256:{digest}"), false),
        ] {
            assert_eq!(Location::parse(&uri).unwrap().pinned(), pinned, "{uri}");
        }
    }

    #[test]
    fn uri_that_names_no_file_is_refused_with_what_to_write() {
        for (uri, says) in [
            ("http://example.com/a.onnx", "https://"),
            ("file:///etc/passwd", "https://"),
            ("s3://models", "a file"),
            ("https://example.com/", "a file"),
            ("https://me:secret@example.com/a.onnx", "environment"),
            ("oci://registry.example.com/UPPER", "OCI reference"),
            ("a.onnx", "relative"),
        ] {
            let refused = Location::parse(uri).unwrap_err();
            assert!(refused.contains(says), "{uri}: {refused}");
        }
    }
}
