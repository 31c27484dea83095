//! An OCI registry: docker-registry, with artifacts pushed by a public client.

use base64::Engine;
use oci_client::client::{Certificate, CertificateEncoding, ClientConfig, Config, ImageLayer};
use oci_client::secrets::RegistryAuth;
use oci_client::{Client, Reference};

use crate::program::{Fetch, model, sha256};
use crate::proxy::{Break, Proxy};
use crate::servers::{PASSWORD, Server, USER};

const SIZE: usize = 4 << 20;

/// Pushes `model` as `oras push` does; returns the manifest's digest.
fn push(server: &Server, name: &str, model: &[u8]) -> String {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let data = server.authority.clone().into_bytes();
    let config = ClientConfig {
        extra_root_certificates: vec![Certificate { encoding: CertificateEncoding::Pem, data }],
        ..ClientConfig::default()
    };
    let client = Client::try_from(config).unwrap();
    let reference: Reference = format!("{}/{name}", server.address).parse().unwrap();
    let layer = ImageLayer::new(model.to_vec(), "application/octet-stream".to_owned(), None);
    let config = Config::new(&b"{}"[..], "application/vnd.oci.empty.v1+json".to_owned(), None);
    let auth = RegistryAuth::Basic(USER.to_owned(), PASSWORD.to_owned());
    let push = async {
        client.push(&reference, &[layer], config, &auth, None).await.unwrap();
        client.fetch_manifest_digest(&reference, &auth).await.unwrap()
    };
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(push)
}

fn fetch(server: &Server, uri: &str) -> Fetch {
    Fetch::new(uri, &server.authority).env("OCI_USERNAME", USER).env("OCI_PASSWORD", PASSWORD)
}

#[test]
fn pinned_artifact_needs_no_digest_beside_and_a_cut_transfer_goes_on() {
    let model = model(SIZE);
    let server = Server::registry();
    let digest = push(&server, "models/a:1", &model);
    let proxy = Proxy::start(server.address, vec![Break::Cut(1 << 20)]);
    let pinned = fetch(&server, &format!("oci://{}/models/a@{digest}", proxy.address));
    pinned.brings(&model);
    let down = proxy.down();
    assert!(down < SIZE as u64 + (128 << 10), "{down} bytes: some came twice");
    pinned.brings(&model);
    assert!(proxy.down() - down < 64 << 10, "a model that is here is checked, not fetched again");
}

#[test]
fn artifact_of_a_tag_comes_with_the_digest_that_was_asked_for_or_not_at_all() {
    let model = model(1000);
    let server = Server::registry();
    push(&server, "models/a:1", &model);
    let uri = format!("oci://{}/models/a:1", server.address);
    fetch(&server, &uri).sha256(&sha256(&model)).brings(&model);
    fetch(&server, &uri).fails("model_unsupported", &["@sha256:"]);
    let other = "0123456789abcdef".repeat(4);
    fetch(&server, &uri).sha256(&other).fails("model_digest_mismatch", &[&other, &sha256(&model)]);
    let absent = format!("oci://{}/models/absent:1", server.address);
    fetch(&server, &absent).sha256(&other).fails("model_missing", &[&absent]);
}

#[test]
fn registry_is_opened_by_a_pull_secret_and_closed_without() {
    let model = model(1000);
    let server = Server::registry();
    let digest = push(&server, "models/a:1", &model);
    let uri = format!("oci://{}/models/a@{digest}", server.address);
    let pair = base64::engine::general_purpose::STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let secret = serde_json::json!({"auths": {server.address.to_string(): {"auth": pair}}});
    Fetch::new(&uri, &server.authority).env("OCI_DOCKER_CONFIG", &secret.to_string()).brings(&model);
    Fetch::new(&uri, &server.authority).fails("model_fetch_failed", &["401", "credentials"]);
}
